"""benchmark/: no finished run is lost or repeated, a failure is told, and every figure is drawn from what was run."""

import contextlib
import fcntl
import importlib
import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
import tyro
from PIL import Image

ROOT = Path(__file__).parent.parent
sys.path.append(str(ROOT / "benchmark"))  # at the end: `run` is a common name

import atari_variants  # noqa: E402
import held_out  # noqa: E402
import league  # noqa: E402
import plot  # noqa: E402
import run as benchmark  # noqa: E402

RUN = [sys.executable, str(ROOT / "benchmark/run.py")]
FIGURES = benchmark.get_args(benchmark.Figure)[:-1]
MEASURES = ["leader_return", "leader_return_greedy", "steps_to_converge", "steps_to_converge_exploring"]


def runs_of(figure, **flags):
    return benchmark.runs_of_figures(benchmark.Args(figures=(figure,), **flags))[figure]


def finished(run_dir):
    """Returns when each finished run was finished."""
    paths = (path for name in ("result.json", "runs.csv") for path in run_dir.glob(f"*/*/{name}"))
    return {path.parts[-3]: path.stat().st_mtime_ns for path in paths if path.parts[-3] != "quick"}


# ----------------------------------------------------------------------------------------------------- runs and figures
@pytest.mark.parametrize("figure", FIGURES)
def test_a_figures_runs(figure):
    """Names are good for folders, figures share runs, and every flag is understood by its script."""
    for quick in (False, True):
        runs = runs_of(figure, quick=quick)
        names = [run.name for run in runs]
        assert len(set(names)) == len(names) and all(re.fullmatch(r"[\w.-]{1,230}", name) for name in names)
        for run in runs[:: 1 + len(runs) // 100]:
            args = importlib.import_module(run.script).Args(**run.flags)
            assert all(getattr(args, flag) == value for flag, value in run.flags.items())
            small = benchmark.QUICK[run.script].items()
            assert quick == (small <= run.flags.items())


def test_a_figures_settings():
    """What the READMEs say of seeds, followers and learning rates."""
    fig1 = runs_of("fig1")
    seeds = {script: sum(run.script == script for run in fig1) / 12 for script in {run.script for run in fig1}}
    assert seeds == dict.fromkeys([*benchmark.META_RL, "ppo_qlearning_matrix"], 5) | {"es_md_matrix": 3}
    assert {run.name for figure in ("fig8", "es_md") for run in runs_of(figure)} < {run.name for run in fig1}
    assert {run.flags["env_id"] for run in fig1} == set(benchmark.GAMES) == set(plot.GAMES)
    assert len(runs_of("fig1", seeds=2)) == 12 * 5 * 2 and runs_of("fig6", seeds=7)[0].flags["num_seeds"] == 7

    def settings(figure, *flags):
        return {tuple(run.flags[flag] for flag in flags) for run in runs_of(figure)}

    rates = {("pg", 0.00005), ("pg", 0.0002), ("pg", 0.0008), ("pg", 0.008), ("pg", 0.03)}
    rates |= {("dqn", 0.01), ("es", 0.004), ("es", 0.015)}
    assert settings("fig3", "leader", "learning_rate", "follower") == {
        (*x, f) for x in rates for f in ("exact", "meta")
    }
    arms = {(f, a) for f in ("exact", "meta") for a in ("invariant", "noninvariant")}
    assert settings("fig4", "follower", "arm") == arms
    optimizers = {(rate, eps, arm) for rate in (0.008, 0.156) for eps in (0.02, 1e-8) for arm in ("reset", "kept")}
    assert settings("fig6", "learning_rate", "adam_eps", "arm") == optimizers


@pytest.fixture(scope="module")
def quick(tmp_path_factory):
    """The small version of every figure, of 2 games where there are 12; once for all of pytest-xdist's workers."""
    base = tmp_path_factory.getbasetemp()
    folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "quick_benchmark"
    folder.mkdir(exist_ok=True)
    with open(folder / "lock", "w") as file, pytest.MonkeyPatch.context() as patch:
        fcntl.flock(file, fcntl.LOCK_EX)
        patch.setattr(benchmark, "GAMES", ("prisoners_dilemma", "stag_hunt"))
        patch.setitem(benchmark.QUICK, "hidden_queries", {"follower_timesteps": 1040, "total_timesteps": 2100})
        patch.setitem(benchmark.QUICK, "noninvariant_leader", {"follower_timesteps": 1040, "total_timesteps": 2080})
        patch.setitem(benchmark.QUICK, "theorem2_divergence", {"num_episodes": 60})
        args = benchmark.Args(figures=("all",), quick=True, jobs=1, run_dir=str(folder / "runs"))
        figures = benchmark.runs_of_figures(args)
        if not (folder / "printed").exists():
            printed = io.StringIO()
            with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(printed):
                code = benchmark.main(args)
            assert code == 0, printed.getvalue()
            (folder / "printed").write_text(printed.getvalue())
    return folder / "runs", (folder / "printed").read_text(), figures


def test_quick_runs_everything_and_writes_tidy_results(quick):
    folder, printed, figures = quick
    names = {run.name for runs in figures.values() for run in runs}
    assert set(finished(folder)) == names and f"{len(names)} runs, 0 of them finished before" in printed
    assert not list(folder.glob("unfinished/*"))
    assert set(pd.read_csv(folder / "quick/league.csv")["method"]) == {method.name for method in league.METHODS}
    for figure in FIGURES[:-1]:
        csv = "fig1_es_md" if figure == "es_md" else figure
        rows, summary = (pd.read_csv(folder / f"quick/{csv}{kind}.csv") for kind in ("", "_summary"))
        labels = benchmark.LABELS[figure]
        assert set(labels) <= set(summary) and f"{csv}.csv and so on" in printed
        if figure == "theorem2":
            assert summary["runs"].sum() == rows["runs"].sum() == 648
            continue
        ends = pd.read_csv(folder / f"quick/{csv}_runs.csv")
        assert summary["runs"].sum() == len(ends)
        curves = dict(list(rows.groupby([*labels, "seed"])))
        assert len(curves) == len(ends)
        for end in ends.to_dict("records"):  # a curve ends where its run ends
            curve = curves[tuple(end[label] for label in (*labels, "seed"))]
            assert curve["step"].is_monotonic_increasing and 1 <= len(curve) <= benchmark.NUM_POINTS
            if figure != "fig2":
                assert curve["leader_return_greedy"].iloc[-1] == pytest.approx(end["leader_return_greedy"], abs=1e-5)
                assert curve["step"].iloc[0] > end["follower_steps"]


@pytest.mark.parametrize("figure", ["fig1", "fig3", "fig4", "fig5", "fig6", "fig8", "fig1_es_md"])
def test_both_measures_are_there_for_every_method(quick, figure):
    folder, _, figures = quick
    ends = pd.read_csv(folder / f"quick/{figure}_runs.csv")
    assert set(MEASURES) <= set(ends) and ends[MEASURES[:2]].notna().all(axis=None)
    if "script" not in ends:
        return
    assert set(ends["script"]) == {run.script for run in figures["es_md" if figure == "fig1_es_md" else figure]}
    for end in ends.to_dict("records"):
        (path,) = folder.glob(f"{end['script']}__env-id-{end['env_id']}__*/*/result.json")
        result = json.loads(path.read_text())
        for measure in MEASURES:
            expected = np.nan if result[measure] is None else result[measure]
            assert end[measure] == pytest.approx(expected, abs=1e-5, nan_ok=True), (end["script"], measure)


def test_the_summary_counts_the_runs(quick):
    folder, printed, _ = quick
    ends, summary = (pd.read_csv(folder / f"quick/fig1{kind}.csv") for kind in ("_runs", "_summary"))
    rows = summary.merge(ends, on=["script", "env_id"], validate="1:1")
    for end in ("", "_exploring"):
        steps = f"steps_to_converge{end}"
        assert rows[f"median_{steps}"].equals(rows[steps]) and (rows[f"at_optimum{end}"] == rows[steps].notna()).all()
    row = rows[(rows["env_id"] == "stag_hunt") & (rows["script"] == "ppo_qlearning_matrix")].iloc[0]
    cells = []
    for end in ("_exploring", ""):
        steps = row[f"steps_to_converge{end}"]
        cells.append("0/1 never" if np.isnan(steps) else f"1/1 {steps:,.0f}")
    assert re.search(rf"\| stag_hunt \|.*\| {'; '.join(cells)} \|", printed)


# ------------------------------------------------------------------------------------------------------------- pictures
@pytest.fixture(scope="module")
def csvs(quick, tmp_path_factory):
    """The small results, where the two games stand for all twelve."""
    folder = tmp_path_factory.mktemp("csvs")
    for path in quick[0].glob("quick/*.csv"):
        rows = pd.read_csv(path)
        if "env_id" in rows and "script" in rows:
            first, second = (rows[rows["env_id"] == game] for game in ("prisoners_dilemma", "stag_hunt"))
            games = (first, *[second] * (len(plot.GAMES) - 1))
            rows = pd.concat(rows.assign(env_id=game) for rows, game in zip(games, plot.GAMES, strict=True))
        rows.to_csv(folder / path.name, index=False)
    return folder


def draw(figure, csvs, folder):
    assert plot.main(plot.Args(figures=(figure,), results_dir=str(csvs), figures_dir=str(folder))) == 0
    return folder / f"{figure}.png"


@pytest.mark.parametrize("figure", [name for name in plot.FIGURES if not name.startswith("league")])
def test_a_figure_is_drawn_and_says_what_its_lines_are(figure, csvs, tmp_path, monkeypatch):
    drawn, function = [], plot.FIGURES[figure]
    monkeypatch.setitem(plot.FIGURES, figure, lambda results_dir: drawn.append(function(results_dir)) or drawn[0])
    path = draw(figure, csvs, tmp_path)

    # opaque, with marks in the colours of more than one method, and no letter is cut off at the edge
    assert path.stat().st_size < 250_000 and [path.name for path in tmp_path.iterdir()] == [path.name]
    with Image.open(path) as image:
        pixels = np.asarray(image.convert("RGBA")).astype(int)
    assert pixels.shape[1] >= 900 and (pixels[..., 3] == 255).all()
    edge = np.concatenate((pixels[:, :4].reshape(-1, 4), pixels[:, -4:].reshape(-1, 4), pixels[:4].reshape(-1, 4)))
    assert (edge >= 250).all()
    for color in (plot.BLUE, plot.ORANGE) if figure != "es_md" else (plot.BLACK, plot.RED):
        rgb = [int(color[i : i + 2], 16) for i in (1, 3, 5)]
        assert (abs(pixels[..., :3] - rgb).max(-1) < 12).sum() > 100, color

    # the class of leaders that an optimum is the optimum of, both measures, and that pre-training is a setting
    text = " ".join(text.get_text() for text in drawn[0].findobj(plot.matplotlib.text.Text)).replace("\n", " ")
    if figure not in ("theorem2", "fig2"):
        assert re.search(r"optimum of deterministic ([\w-]+ )*leaders", text)
        assert "greedy" in text and ("explores" in text or figure == "es_md")
    if figure in ("fig1", "fig1_steps", "fig3", "fig4", "fig8"):
        assert "a setting, not a finding" in text
    if figure == "es_md":
        assert "optimum of stochastic memory-1 leaders" in text and "stochastic leaders: up to" in text


def test_the_same_csvs_give_the_same_picture(csvs, tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    first, second = (draw("fig6", csvs, tmp_path / name) for name in "ab")
    assert first.read_bytes() == second.read_bytes()


def test_thick_lines_are_the_leader_as_it_explores_and_thin_ones_greedy(csvs):
    """In Figures 1 and 8, of every method."""
    for name in ("fig1", "fig8"):
        figure, rows = plot.FIGURES[name](csvs), pd.read_csv(csvs / f"{name}.csv")
        panel = next(ax for ax in figure.axes if ax.get_title() == "prisoner's dilemma")
        for script in set(rows["script"]) - {"es_md_matrix"}:
            color = plot.METHODS[script][1]
            lines = [line for line in panel.lines if line.get_color() == color]
            curve = rows[(rows["script"] == script) & (rows["env_id"] == "prisoners_dilemma")]
            thick, thin = sorted(lines, key=lambda line: -line.get_linewidth())
            assert thick.get_linewidth() > 2 * thin.get_linewidth()
            for line, measure in ((thick, "leader_return"), (thin, "leader_return_greedy")):
                assert line.get_xdata().tolist() == curve["step"].tolist()
                assert line.get_ydata() == pytest.approx(curve[measure]), (name, script)
        marked = [line for line in panel.lines if line.get_color() == plot.PRE_TRAINING["color"]]
        assert [line.get_xdata()[0] for line in marked] == [5250]
        plot.plt.close(figure)


def test_a_bad_csv_is_named_and_the_other_figures_are_drawn(csvs, tmp_path, capsys):
    """Cut off in the middle of a row, a column missing, a word for a number, rows of games missing, no rows at all."""
    folder = tmp_path / "csvs"
    shutil.copytree(csvs, folder)
    cut = (folder / "fig6.csv").read_text()
    (folder / "fig6.csv").write_text(cut[: cut.rindex(",")])
    pd.read_csv(folder / "fig5_runs.csv").drop(columns="leader_return_greedy").to_csv(folder / "fig5_runs.csv")
    (folder / "fig4.csv").write_text((folder / "fig4.csv").read_text().replace("0.03", "three"))
    rows = pd.read_csv(folder / "fig8_runs.csv")
    rows[rows["env_id"] != "hero"].to_csv(folder / "fig8_runs.csv")
    (folder / "fig3.csv").write_text(cut.splitlines()[0])
    figures = ("fig3", "fig4", "fig5", "fig6", "fig8", "theorem2", "es_md")
    args = plot.Args(figures=figures, results_dir=str(folder), figures_dir=str(tmp_path / "pictures"))
    assert plot.main(args) == 1
    printed = capsys.readouterr()
    for name, csv in (("fig3", "fig3"), ("fig4", "fig4"), ("fig5", "fig5_runs"), ("fig6", "fig6")):
        assert re.search(rf"{name} is not drawn .*{folder}/{csv}\.csv", printed.err), (name, printed.err)
    assert f"fig8 is not drawn from {folder}/fig8*.csv" in printed.err and "Traceback" not in printed.err
    assert sorted(path.name for path in (tmp_path / "pictures").iterdir()) == ["es_md.png", "theorem2.png"]
    assert printed.out.splitlines() == [f"{tmp_path}/pictures/{name}.png" for name in ("theorem2", "es_md")]


# -------------------------------------------------------------------------------------------------- kill, resume, fail
def test_killed_twice_it_goes_on_and_repeats_nothing(tmp_path):
    """Ctrl-C first, then SIGKILL; the runs that were finished keep their files, and workers do not outlive run.py."""
    command, total = [*RUN, "fig6", "--quick", "--jobs", "1", "--run-dir", str(tmp_path)], 8
    before = {}
    for number in (signal.SIGINT, signal.SIGKILL):
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        while len(finished(tmp_path)) < len(before) + 2 and process.poll() is None:
            time.sleep(0.02)
        process.send_signal(number)
        printed, error = process.communicate()
        assert "leaked" not in error
        # a worker that SIGKILL finds at its birth has nothing to read from its parent, and says so
        at_birth = number == signal.SIGKILL and error.rstrip().endswith("EOFError: Ran out of input")
        assert "Traceback" not in error or (at_birth and error.count("Traceback") == 1)
        if number == signal.SIGINT:
            assert process.returncode == 130 and "finished and kept" in printed
        after = finished(tmp_path)
        assert len(after) >= len(before) + 2 and before.items() <= after.items() and len(after) < total
        assert f"{total} runs, {len(before)} of them finished before" in printed or number == signal.SIGKILL
        assert not (tmp_path / "quick/fig6.csv").exists()
        before = after
    time.sleep(0.5)
    before = finished(tmp_path)
    time.sleep(1)
    assert finished(tmp_path) == before  # the worker of the killed process has ended too
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0 and f"{total} runs, {len(before)} of them finished before" in done.stdout, done.stderr
    after = finished(tmp_path)
    assert len(after) == total and before.items() <= after.items()
    assert not list((tmp_path / "unfinished").glob("*"))
    assert len(pd.read_csv(tmp_path / "quick/fig6_runs.csv")) == 2 * total
    again = subprocess.run(command, capture_output=True, text=True)
    assert "8 runs, 8 of them finished before" in again.stdout and finished(tmp_path) == after


def test_an_interrupted_atari_run_goes_on_from_its_checkpoint(quick, tmp_path, monkeypatch):
    """A run of minutes does not begin anew: its folder and its steps stay, and its result is that of one go."""
    run = runs_of("fig2", quick=True)[0]
    code = f"import run; run.execute(run.Run(*{tuple(run)!r}), {str(tmp_path)!r})"
    process = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT / "benchmark")
    while not (begun := list(tmp_path.glob("unfinished/*/*/checkpoint.pt"))):
        assert process.poll() is None
        time.sleep(0.02)
    process.kill()
    process.wait()
    steps = torch.load(begun[0], weights_only=True)["global_step"]
    monkeypatch.setattr(benchmark, "runs_of_figures", lambda args: {"fig2": [run]})
    assert benchmark.main(benchmark.Args(figures=("fig2",), quick=True, jobs=1, run_dir=str(tmp_path))) == 0
    (path,) = tmp_path.glob(f"stackelberg_ppo_atari_trade*/{begun[0].parent.name}/result.json")
    (whole,) = quick[0].glob(f"{path.parts[-3]}/*/result.json")
    result, one_go = json.loads(path.read_text()), json.loads(whole.read_text())
    assert steps < result["global_step"] and result["args"]["resume"]
    for name in ("global_step", "curve", "leader_return_greedy", "aim"):
        assert result[name] == one_go[name]


SCRIPT = """
import os
from dataclasses import dataclass

@dataclass
class Args:
    seed: int
    run_dir: str

def main(args):
    print("about to end", flush=True)
"""


def test_a_failed_run_shows_its_log_and_does_not_stop_the_others(tmp_path, monkeypatch, capfd):
    """Wrong flags, an exception, and a process that dies: each costs its own run, and the exit code is 1."""
    (tmp_path / "crashes.py").write_text(f"{SCRIPT}    raise RuntimeError('boom')\n")
    (tmp_path / "dies.py").write_text(f"{SCRIPT}    os.kill(os.getpid(), 9)\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    short = {"learning_rate": 0.008, "adam_eps": 0.02, "num_seeds": 2, "total_timesteps": 1100}
    runs = [benchmark.Run("continuous_follower", {"arm": "reset", **short}), benchmark.Run("crashes", {"seed": 1})]
    runs += [benchmark.Run("dies", {"seed": 1}), benchmark.Run("continuous_follower", {"total_timesteps": 100})]
    runs += [benchmark.Run("continuous_follower", {"arm": "kept", **short})]
    monkeypatch.setattr(benchmark, "runs_of_figures", lambda args: {"fig6": runs})
    monkeypatch.setattr(benchmark, "QUICK", {"crashes": {}, "dies": {}} | benchmark.QUICK)  # these come first
    folders = {"run_dir": str(tmp_path / "runs"), "results_dir": str(tmp_path / "results")}
    assert benchmark.main(benchmark.Args(figures=("fig6",), jobs=1, **folders)) == 1
    printed = capfd.readouterr()
    for words in ("failed: crashes.py {'seed': 1}", "| RuntimeError: boom", "| about to end", "exit code -9"):
        assert words in printed.err, words
    assert "| ValueError: --total-timesteps must hold a batch" in printed.err and "log.txt" in printed.err
    assert "3 of 5 runs failed" in printed.err and len(finished(tmp_path / "runs")) == 2
    assert set(pd.read_csv(tmp_path / "results/fig6_runs.csv")["arm"]) == {"reset", "kept"}


def copy_of(quick, folder, *scripts):
    """Copies the finished runs of some scripts."""
    for script in scripts:
        for path in quick[0].glob(f"{script}__*"):
            shutil.copytree(path, folder / path.name)
    return folder


def test_a_corrupt_result_is_named_and_left_out(quick, tmp_path, capsys):
    """Cut off, or of another version of the script; the rest of its figure, and other figures, are made."""
    folder = copy_of(quick, tmp_path / "runs", "continuous_follower", "leader_reward_during_learning")
    cut, old = sorted(folder.glob("continuous_follower__*arm-kept*/*/result.json"))[:2]
    cut.write_text(cut.read_text()[:1000])
    result = json.loads(old.read_text())
    del result["runs"][0]["curve"]
    old.write_text(json.dumps(result))
    args = benchmark.Args(figures=("fig6", "fig5"), quick=True, run_dir=str(folder))
    assert benchmark.main(args) == 1
    printed = capsys.readouterr()
    assert "10 runs, 10 of them finished before" in printed.out
    for path in (cut, old):
        assert f"fig6: left out {path}" in printed.err and f"rm -r {path.parents[1]}\n" in printed.err
    assert printed.err.count("left out") == 2 and "Traceback" not in printed.err
    assert len(pd.read_csv(folder / "quick/fig6_runs.csv")) == 12  # 6 of 8 runs, 2 seeds each
    assert (folder / "quick/fig5.csv").read_text() == (quick[0] / "quick/fig5.csv").read_text()
    # and once the bad ones are removed, they are run anew, to the same result
    for path in (cut, old):
        shutil.rmtree(path.parents[1])
    assert benchmark.main(args) == 0 and "10 runs, 8 of them finished before" in capsys.readouterr().out
    assert (folder / "quick/fig6.csv").read_text() == (quick[0] / "quick/fig6.csv").read_text()


def test_two_at_once_in_one_folder_and_a_changed_script_are_told(quick, tmp_path, capsys):
    folder = copy_of(quick, tmp_path / "runs", "continuous_follower")
    args = benchmark.Args(figures=("fig6",), quick=True, run_dir=str(folder))
    with open(folder / ".lock", "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        with pytest.raises(SystemExit, match=r"another run\.py is at work there"):
            benchmark.main(args)
    next(folder.glob("continuous_follower__*/source.sha256")).write_text("another")
    assert benchmark.main(args) == 0
    assert "note: 1 are from another version of continuous_follower.py" in capsys.readouterr().out


# -------------------------------------------------------------------------------------------------------------- cluster
def test_submitits_local_executor_runs_two_tasks(quick, tmp_path):
    """With the same result as the processes of run.py."""
    command = [*RUN, "fig5", "--quick", "--cluster", "local", "--jobs", "2", "--run-dir", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0 and len(finished(tmp_path)) == 2, done.stderr
    assert len(list(tmp_path.glob("submitit/*_result.pkl"))) == 2
    assert (tmp_path / "quick/fig5.csv").read_text() == (quick[0] / "quick/fig5.csv").read_text()


def test_slurm_gets_one_array_with_a_task_per_run(tmp_path, monkeypatch):
    """What submitit writes for sbatch; there is no SLURM here to take it."""
    bin_dir = tmp_path / "bin"
    bin_dir.mkdir()
    (bin_dir / "sbatch").write_text(f"#!/bin/sh\ncp $1 {tmp_path}/submitted.sh\necho Submitted batch job 7\n")
    for name, text in (("squeue", ""), ("srun", ""), ("sacct", "echo 'JobID|State'\n")):
        (bin_dir / name).write_text(f"#!/bin/sh\n{text}")
    for path in bin_dir.iterdir():
        path.chmod(0o755)
    monkeypatch.setenv("PATH", f"{bin_dir}:{os.environ['PATH']}")
    slurm = {"cluster": "slurm", "slurm_partition": "cpu", "run_dir": str(tmp_path / "runs")}
    args = benchmark.Args(figures=("fig8",), jobs=10, **slurm)
    assert benchmark.Args(figures=("fig8",), **slurm).jobs == 256
    monkeypatch.setattr("submitit.helpers.as_completed", lambda jobs, poll_frequency: iter(()))
    assert list(benchmark.run_on_cluster(runs_of("fig8"), args)) == []
    script = (tmp_path / "submitted.sh").read_text()
    assert "#SBATCH --array=0-119%10\n" in script and "#SBATCH --partition=cpu\n" in script
    assert "#SBATCH --time=240\n" in script and "#SBATCH --cpus-per-task=1\n" in script


# --------------------------------------------------------------------------------------------------------- wrong input
def test_wrong_input_ends_in_tyros_box_and_nothing_written(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    cases = {
        "no figure": (benchmark, [], "which figure? Choose from fig1"),
        "unknown figure": (benchmark, ["fig7"], "fig7"),
        "no seeds": (benchmark, ["fig1", "--seeds", "0"], "--seeds must be positive"),
        "word as seeds": (benchmark, ["fig1", "--seeds", "five"], "five"),
        "no jobs": (benchmark, ["fig1", "--jobs", "-1"], "--jobs must be positive"),
        "no time": (benchmark, ["fig1", "--slurm-minutes", "0"], "--slurm-minutes must be positive"),
        "unknown flag": (benchmark, ["fig1", "--fast"], "--fast"),
        "unknown script": (benchmark, ["fig1", "--scripts", "chess"], "no script chess: choose from"),
        "unknown script of games": (held_out, ["--scripts", "chess"], "no script chess: choose from"),
        "no games": (held_out, ["--num-games", "0"], "--num-games and --jobs must be positive"),
        "unknown cluster": (benchmark, ["fig1", "--cluster", "cloud"], "cloud"),
        "slurm without slurm": (benchmark, ["fig1", "--cluster", "slurm"], "sbatch"),
        "unknown drawing": (plot, ["fig9"], "fig9"),
        "nothing to draw": (plot, ["--from", "empty"], "python benchmark/run.py all"),
        "nothing to draw one from": (plot, ["fig3", "--from", "none"], "no fig3.csv in none: python benchmark/run.py"),
    }
    for name, (module, flags, words) in cases.items():
        with pytest.raises(SystemExit) as error:
            tyro.cli(module.Args, args=flags)
        printed = capsys.readouterr()
        text = " ".join(re.sub(r"[│╭╮╰╯─]", " ", printed.err).split())
        assert error.value.code == 2 and printed.out == "" and words in text, (name, text)
    done = subprocess.run([*RUN, "fig1", "--jobs", "0"], capture_output=True, text=True)
    assert done.returncode == 2 and "--jobs must be positive" in done.stderr
    assert list(tmp_path.rglob("*")) == [tmp_path / "empty"]


# ------------------------------------------------------------------------------------------------------ small parts
@pytest.mark.parametrize("name", ["fig1", "fig1_runs", "fig8"])
def test_some_scripts_runs_leave_the_rows_of_the_others(name, tmp_path):
    path, script = ROOT / f"benchmark/results/{name}.csv", "stackelberg_ppo_matrix"
    rows = pd.read_csv(path)
    theirs, own = rows["script"] != script, rows[rows["script"] == script]
    benchmark.write_csv(tmp_path / "same.csv", benchmark.beside_others(own, path))
    assert (tmp_path / "same.csv").read_text() == path.read_text()
    merged = benchmark.beside_others(own[1:].assign(leader_return=7.0), path)
    pd.testing.assert_frame_equal(merged[merged["script"] != script], rows[theirs])
    assert merged["script"].iloc[0] == script and (merged["leader_return"] == 7).sum() == len(own) - 1
    alone = benchmark.beside_others(own, tmp_path / "none.csv")
    pd.testing.assert_frame_equal(alone, own)


def test_held_out_games_are_run_once(tmp_path, monkeypatch, capsys):
    """A run is a row, which says what its game's result.json does; the same command runs what is missing alone."""
    assert np.array_equal(held_out.payoffs_of(7), 3 * np.random.default_rng(7).random((2, 2, 2)) - 3)
    flags = {"scripts": ("stackelberg_ppo_matrix",), "first_game": 7, "file": str(tmp_path / "held_out.csv")}
    held_out.main(held_out.Args(**flags, num_games=1, jobs=1))
    first = pd.read_csv(flags["file"]).iloc[0]
    script, payoffs = importlib.import_module("stackelberg_ppo_matrix"), held_out.payoffs_of(7).reshape(2, 4)
    game = script.MatrixGame(*payoffs)
    assert first["stackelberg_value"] == pytest.approx(game.payoff(0, script.solve(game)[0]), abs=1e-5)
    assert first["leader_scale"] == pytest.approx(np.ptp(payoffs[0]) / 3, abs=1e-5)
    assert first["leader_regret"] == pytest.approx(0, abs=0.05) and first["steps_to_converge"] >= 52_500

    monkeypatch.setattr(held_out, "ProcessPoolExecutor", lambda jobs: ThreadPoolExecutor(jobs))
    monkeypatch.setattr(held_out, "row_of", lambda script, game: {**first, "script": script, "game": game})
    held_out.main(held_out.Args(**flags, num_games=3, jobs=1))
    rows = pd.read_csv(flags["file"])
    assert rows["game"].tolist() == [7, 8, 9] and rows["script"].nunique() == 1
    monkeypatch.setattr(held_out, "row_of", None)
    held_out.main(held_out.Args(**flags, num_games=3, jobs=1))  # nothing is missing
    assert "stackelberg_ppo_matrix      3" in capsys.readouterr().out


def test_commitments_that_mix_are_run_where_rows_are_missing(tmp_path, monkeypatch):
    """A run is made again to what the committed row says; the other rows and the optima stay."""
    mixed, started = importlib.import_module("mixed"), []
    committed = {name: pd.read_csv(ROOT / f"benchmark/results/{name}.csv") for name in ("mixed_runs", "mixed_optima")}
    rows = committed["mixed_runs"]
    (place,) = rows.index[(rows["games"] == "textbook 2x3") & (rows["setting"] == "planning") & (rows["seed"] == 3)]
    rows.drop(place).to_csv(tmp_path / "mixed_runs.csv", index=False)

    def run_here(runs, args):
        for run in runs:
            if run.flags["seed"] == 3:
                started.append(run.flags)
                folder = Path(args.run_dir, run.name)
                mixed.mixed.main(mixed.mixed.Args(**run.flags, run_dir=str(folder)))
                (folder / "source.sha256").write_text(benchmark.digest(run.script))
            yield run, "exit code 0"

    monkeypatch.setattr(mixed, "run_in_processes", run_here)
    folders = {"run_dir": str(tmp_path / "runs"), "results_dir": str(tmp_path), "figures_dir": str(tmp_path)}
    assert mixed.main(mixed.Args(**folders, only="textbook 2x3, planning")) == 1  # nine runs have no result
    table = pd.read_csv(tmp_path / "mixed_runs.csv")
    assert len(started) == 1 and mixed.FIGURES.keys() == {path.stem for path in tmp_path.glob("*.png")}
    tables = (x.sort_values(["games", "setting", "env_id", "seed"], ignore_index=True) for x in (table, rows))
    pd.testing.assert_frame_equal(*tables, atol=2e-5)
    assert not (tmp_path / "mixed_optima.csv").exists()

    number, game = 5003, committed["mixed_optima"].set_index("game")
    assert mixed.optima_of(number) == pytest.approx({"game": number, **game.loc[number]}, abs=2e-5)


def test_shares_of_held_out_games():
    columns = {"leader_scale": 0.5, "follower_scale": 1.0, "stackelberg_value": -1.0, "leader_return": -1.02}
    rows = pd.DataFrame({"script": ["a", "a", "b", "b"], **columns})
    rows["leader_return_greedy"], rows["follower_regret"] = [-1.0, -0.97, -1.024, -1.026], [0, 0.06, 0.05, 0]
    shares = held_out.shares(rows)
    assert shares["games"].tolist() == [2, 2] and shares["at_optimum"].tolist() == [0.5, 0.5]
    assert shares["at_optimum_exploring"].tolist() == [1, 1] and shares["follower_is_right"].tolist() == [0.5, 1]
    assert shares["low"].tolist() == [0, 0] and shares["high"].tolist() == [1, 1]


def test_thinning_a_curve():
    """A point has the step and the greedy return of the last of its block, and the mean of what is noisy."""
    rng = np.random.default_rng(1)
    columns = ["step", "leader_return_greedy", "leader_return"]
    curve = pd.DataFrame({name: rng.normal(size=600) for name in columns}).assign(step=range(600))
    thinned = benchmark.thin(curve)
    assert len(thinned) == benchmark.NUM_POINTS == 50 and list(thinned["step"]) == list(range(11, 600, 12))
    assert thinned["leader_return_greedy"].tolist() == curve["leader_return_greedy"][11::12].tolist()
    assert thinned["leader_return"].tolist() == pytest.approx(curve["leader_return"].to_numpy().reshape(50, 12).mean(1))
    for n in (1, 2, 49, 50, 51, 99):
        thinned = benchmark.thin(curve[:n])
        assert len(thinned) == min(n, 50) and thinned["step"].iloc[-1] == n - 1
        if n <= 50:
            assert thinned[columns].equals(curve[columns][:n])


def test_medians_where_some_never_arrive():
    def row(steps):
        columns = {"script": "es_md_matrix", "env_id": "hero", "leader_return": 0.0, "leader_return_greedy": 0.0}
        return columns | {"stackelberg_value": 0.0, "steps_to_converge": steps, "steps_to_converge_exploring": 7}

    for steps, median in (([30, np.nan, 10, 20, np.nan], 30), ([10, 20], 20), ([np.nan, 5], np.nan)):
        (summary,) = benchmark.summarise("es_md", pd.DataFrame([row(n) for n in steps])).to_dict("records")
        assert summary["median_steps_to_converge"] == pytest.approx(median, nan_ok=True)
        assert summary["at_optimum"] == np.isfinite(steps).sum() and summary["runs"] == len(steps)
        assert summary["at_optimum_exploring"] == len(steps) and summary["median_steps_to_converge_exploring"] == 7


def test_a_csvs_numbers(tmp_path):
    """Six digits, but whole numbers stay whole, also beside empty cells; no minus before a zero."""
    rows = pd.DataFrame({"steps": [104448012, np.nan], "x": [-0.123456789, 1e-8], "zero": [-0.0, -1e-12]})
    benchmark.write_csv(str(tmp_path / "x.csv"), rows.assign(word=["a", "b"]))
    assert (tmp_path / "x.csv").read_text() == "steps,x,zero,word\n104448012,-0.123457,0,a\n,1e-08,0,b\n"


def test_atari_variants_have_flags_that_fit_and_the_defaults_of_figure_2(monkeypatch):
    monkeypatch.chdir(ROOT)  # as the script does: checkpoints are named from there
    script = importlib.import_module("stackelberg_ppo_atari_trade")
    runs = [run for name in atari_variants.SETTINGS for run in atari_variants.runs_of(name)]
    assert len({run.name for run in runs}) == len(runs) == 7 * 3 + 2 * 2
    for run in runs:
        assert script.Args(**run.flags) != script.Args(stage=run.flags["stage"], seed=run.flags["seed"])
    curves, ends = atari_variants.default_runs()
    assert set(curves["stage"]) >= {"follower", "leader"} and set(curves["seed"]) == set(ends["seed"]) == {1, 2, 3}
    first = curves.groupby(["seed", "stage"])["step"].min().unstack()
    assert (first["follower"] > 0).all() and (first["leader"] > script.Args().follower_timesteps).all()


def test_an_atari_runs_curves_come_from_its_tensorboard(tmp_path):
    """Stage by stage; the leader's commitment is the offer if it sells, and the limit if it buys."""
    from torch.utils.tensorboard import SummaryWriter

    writer = SummaryWriter(str(tmp_path))
    for step in range(10, 60, 10):  # 10, 20: the follower's stage; 30, 40: the leader's; 50: verification
        values = {"price_offered": 0.25, "price_limit": step / 100, "acceptance_rate": 0.5, "follower_return": -step}
        values |= {"acceptance_at_0.75": step / 50, "buyer_hits_per_shot": 0.9, "seller_hits_per_shot": 0.8, "SPS": 7}
        values |= {"leader_return": step} if step in (30, 40) else {}
        for tag, value in values.items():
            writer.add_scalar(f"charts/{tag}", value, step)
    for name in ("leader_return_greedy", "follower_return_greedy"):
        writer.add_scalar(f"charts/{name}", 4.75, 50)
    writer.close()
    numbers = {"stackelberg_value": 5.0, "leader_return": 3.5, "leader_return_greedy": 4.75}
    numbers |= {"follower_return_greedy": 1, "trade_deviation_gain": 0.0}
    lists = {"leader_prices": {"0.25": 0.9, "0.5": 0.1}, "optimal_leader_price": 0.25, "curve": [[30, None, 30.0]]}
    measured = {"bullet_values": [0.1, 0.98], "bullet_value_errors": [0.01, 0.02], "hits_per_shot": [0.9, 0.97]}
    lists |= {"aim": {"greedy": measured, "sampled": measured}, "aim_before": {"greedy": measured}}
    row = {"leader_price": 0.5, "acceptance_rate": 1.0, "best_response_rate": 0.75, "tie": True}
    lists |= {"best_responses": {"greedy": [row]}, "stage_steps": {"follower": 20, "leader": 20, "deviation": 10}}
    result = {"script": "stackelberg_ppo_atari_trade.py", "seed": 1, "args": {"leader": "buyer"}, **numbers, **lists}
    (tmp_path / "result.json").write_text(json.dumps(result))
    points, ends = benchmark.read("fig2", tmp_path / "result.json")
    assert points["step"].tolist() == [10, 20, 30, 40, 50]
    assert points["stage"].tolist() == ["follower"] * 2 + ["leader"] * 2 + ["deviation"]
    expected = {"leader": "buyer", "seed": 1, "step": 30, "price": 0.3, "acceptance": 0.5, "leader_return": 30}
    expected |= {"follower_return": -30, "acceptance_at_0.75": 0.6, "buyer_hits_per_shot": 0.9}
    expected |= {"seller_hits_per_shot": 0.8, "stage": "leader"}
    assert points.iloc[2].to_dict() == pytest.approx(expected)
    assert points["leader_return"].isna().tolist() == [True, True, False, False, True]
    (end,) = ends.to_dict("records")
    expected = numbers | {"share_at_optimum": 0.9, "best_response_at_0.5_greedy": 0.75, "tie_at_0.5_greedy": 1}
    expected |= {"seller_bullet_values_greedy": 0.1, "buyer_bullet_value_errors_sampled": 0.02}
    expected |= {"buyer_hits_per_shot_before_greedy": 0.97}
    assert expected.items() <= end.items() and end["leader"] == "buyer" and end["seed"] == 1
