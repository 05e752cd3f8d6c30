"""benchmark/: no finished run is lost or repeated, a failure is told, and every figure is drawn from what was run."""

import csv
import fcntl
import importlib
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

ROOT = Path(__file__).parent.parent
sys.path.append(str(ROOT / "benchmark"))  # at the end: `run` is a common name

import plot  # noqa: E402
import run as benchmark  # noqa: E402

RUN = [sys.executable, str(ROOT / "benchmark/run.py")]


def read(path):
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def finished(run_dir):
    """Returns when each finished run was finished."""
    return {path.parts[-3]: path.stat().st_mtime_ns for path in run_dir.glob("*/*/result.json")}


# ----------------------------------------------------------------------------------------------------- runs and figures
@pytest.mark.parametrize("figure", [*benchmark.FIGURES])
def test_a_figures_runs(figure):
    """Figures share runs, names are good for folders, and seeds are as many as the README says."""
    args = benchmark.Args(figures=(figure,))
    runs = benchmark.FIGURES[figure](args)
    names = [run.name for run in runs]
    assert len(set(names)) == len(names) and all(re.fullmatch(r"[\w.-]{1,200}", name) for name in names)
    quick = benchmark.FIGURES[figure](benchmark.Args(figures=(figure,), quick=True))
    assert {run.script for run in quick} == {run.script for run in runs}
    assert all(re.fullmatch(r"[\w.-]{1,230}", run.name) for run in quick)
    if figure == "fig1":
        seeds = {script: sum(run.script == script for run in runs) / 12 for script in {run.script for run in runs}}
        assert seeds == dict.fromkeys([*benchmark.META_RL, "ppo_qlearning_matrix"], 5) | {"es_md_matrix": 3}
        shared = {run.name for other in ("fig8", "es_md") for run in benchmark.FIGURES[other](args)}
        assert shared < set(names)


@pytest.mark.parametrize("figure", [*benchmark.FIGURES])
def test_every_runs_flags_are_understood_by_its_script(figure):
    for quick in (False, True):
        runs = benchmark.FIGURES[figure](benchmark.Args(figures=(figure,), quick=quick))
        for run in {(run.script, run.flags.get("arm"), run.flags.get("leader")): run for run in runs}.values():
            args = importlib.import_module(run.script).parse_args(run.argv)
            assert all(str(getattr(args, flag)) == str(value) for flag, value in run.flags.items())


@pytest.fixture(scope="module")
def quick(tmp_path_factory):
    """The small version of every figure, made by the command in the README; once for all of pytest-xdist's workers."""
    base = tmp_path_factory.getbasetemp()
    folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "quick_benchmark"
    folder.mkdir(exist_ok=True)
    with open(folder / "lock", "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        if not (folder / "printed").exists():
            command = [*RUN, "all", "--quick", "--run-dir", str(folder / "runs")]
            done = subprocess.run(command, capture_output=True, text=True, cwd=folder)
            assert done.returncode == 0, done.stdout + done.stderr
            (folder / "printed").write_text(done.stdout)
    return folder / "runs", (folder / "printed").read_text()


def test_quick_runs_everything_and_writes_tidy_results(quick):
    folder, printed = quick
    runs = {
        run.name
        for name in benchmark.FIGURES
        for run in benchmark.FIGURES[name](benchmark.Args(figures=("all",), quick=True))
    }
    assert set(finished(folder)) == runs and f"{len(runs)} runs, 0 of them finished before" in printed
    assert not list(folder.glob("unfinished/*"))
    for name in benchmark.FIGURES:
        curves_csv, runs_csv, summary_csv = benchmark.csv_names(name)
        rows, summary = read(folder / f"quick/{curves_csv}.csv"), read(folder / f"quick/{summary_csv}.csv")
        assert all(None not in row.values() and None not in row for row in rows + summary)
        assert set(benchmark.LABELS[name]) <= set(summary[0])
        if name == "theorem2":
            assert sum(int(row["runs"]) for row in summary) == sum(int(row["runs"]) for row in rows) == 648
            continue
        ends = read(folder / f"quick/{runs_csv}.csv")
        assert sum(int(row["runs"]) for row in summary) == len(ends)
        # a curve ends where its run ends, and every point is as far from the optimum as it says
        for end in ends:
            of_run = [row for row in rows if all(row[x] == end[x] for x in (*benchmark.LABELS[name], "seed"))]
            of_run = [row for row in of_run if row.get("policy") != "as it is"]
            steps = [int(row["step"]) for row in of_run]
            assert steps == sorted(set(steps)) and 1 <= len(steps) <= benchmark.NUM_POINTS
            if name == "fig2":
                continue
            sums = {round(float(row["leader_return"]) + float(row["leader_regret"]), 4) for row in of_run}
            assert len(sums) == 1 and sums.pop() == pytest.approx(float(end["stackelberg_value"]), abs=1e-4)
            if name in ("fig1", "fig8", "es_md"):
                assert of_run[-1]["leader_return"] == end["leader_return"]


def test_the_summary_counts_the_runs(quick):
    folder, printed = quick
    ends = read(folder / "quick/fig1_runs.csv")
    summary = read(folder / "quick/fig1_summary.csv")
    for row in summary:
        (of_row,) = [end for end in ends if (end["script"], end["env_id"]) == (row["script"], row["env_id"])]
        assert row["at_optimum"] == str(int(abs(float(of_row["leader_regret"])) <= 0.05))
        assert row["q25_steps"] == row["median_steps"] == row["q75_steps"] == of_row["steps_to_converge"]
    (first,) = [row for row in summary if row["env_id"] == "stag_hunt" and row["script"] == "replay_follower_matrix"]
    assert re.search(rf"\| stag_hunt +\| {first['at_optimum']}/1 \d\.\d+k ", printed)


@pytest.mark.parametrize("figure", [*plot.FIGURES])
def test_every_figure_is_drawn_from_the_small_runs(figure, quick, tmp_path):
    """Twice the same bytes, opaque, and not empty: a picture with marks in the colours of more than one method."""
    (first,), (second,) = (
        plot.main(plot.parse_args([figure, "--from", str(quick[0] / "quick"), "--to", str(tmp_path / name)]))
        for name in "ab"
    )
    assert first.read_bytes() == second.read_bytes() and len(first.read_bytes()) < 150_000
    with Image.open(first) as image:
        pixels = np.asarray(image.convert("RGBA"))
    assert pixels.shape[1] >= 900 and (pixels[..., 3] == 255).all() and (pixels[0, 0] == 255).all()
    colors = {plot.BLUE, plot.ORANGE} if figure != "es_md" else {plot.BLACK}
    for color in colors:
        rgb = [int(color[i : i + 2], 16) for i in (1, 3, 5)]
        assert (abs(pixels[..., :3].astype(int) - rgb).max(-1) < 12).sum() > 100, color


def committed():
    return sorted(path.stem for path in (ROOT / "benchmark/figures").glob("*.png"))


def test_the_committed_figures_are_what_the_committed_results_give(tmp_path):
    """Pixel for pixel. 1 pixel in 1,000 may differ: processors round the edges of lines differently, but whoever
    changes a result, a colour or a label moves more than that."""
    drawn = {path.stem: path for path in plot.main(plot.parse_args(["all", "--to", str(tmp_path)]))}
    assert sorted(drawn) == committed()
    for name, path in drawn.items():
        old, new = (
            np.asarray(Image.open(p).convert("RGB"), int) for p in (ROOT / f"benchmark/figures/{name}.png", path)
        )
        assert old.shape == new.shape, name
        assert (abs(old - new).max(-1) > 24).mean() < 0.001, name


# -------------------------------------------------------------------------------------------------- kill, resume, fail
def test_killed_twice_it_goes_on_and_repeats_nothing(tmp_path):
    """Ctrl-C first, then SIGKILL; the runs that were finished keep their files, and workers do not outlive run.py."""
    command, total = [*RUN, "fig8", "--quick", "--jobs", "1", "--run-dir", str(tmp_path)], 24
    before = {}
    for number in (signal.SIGINT, signal.SIGKILL):
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        while len(finished(tmp_path)) < len(before) + 3 and process.poll() is None:
            time.sleep(0.02)
        process.send_signal(number)
        printed, error = process.communicate()
        assert "leaked" not in error and "Traceback" not in error
        if number == signal.SIGINT:
            assert process.returncode == 130 and "finished and kept" in printed
        after = finished(tmp_path)
        assert len(after) >= len(before) + 3 and before.items() <= after.items() and len(after) < total
        assert f"{total} runs, {len(before)} of them finished before" in printed or number == signal.SIGKILL
        assert not (tmp_path / "quick/fig8.csv").exists()
        before = after
    time.sleep(1)
    before = finished(tmp_path)
    time.sleep(1)
    assert finished(tmp_path) == before  # the worker of the killed process has ended too
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0 and f"{total} runs, {len(before)} of them finished before" in done.stdout, done.stderr
    after = finished(tmp_path)
    assert len(after) == total and before.items() <= after.items()
    assert not list((tmp_path / "unfinished").glob("*"))
    assert len(read(tmp_path / "quick/fig8_runs.csv")) == total
    again = subprocess.run(command, capture_output=True, text=True)
    assert "24 runs, 24 of them finished before" in again.stdout and finished(tmp_path) == after


CRASHES = "def parse_args(argv): print('about to crash')\ndef main(args): raise RuntimeError('boom')\n"
DIES = "import os\ndef parse_args(argv): print('about to die', flush=True)\ndef main(args): os.kill(os.getpid(), 9)\n"


def test_a_failed_run_shows_its_log_and_does_not_stop_the_others(tmp_path, monkeypatch, capfd):
    """Wrong flags, an exception, and a process that dies: each costs its own run, and the exit code is 1."""
    (tmp_path / "crashes.py").write_text(CRASHES)
    (tmp_path / "dies.py").write_text(DIES)
    monkeypatch.syspath_prepend(str(tmp_path))
    short = {"num_seeds": 2, "total_timesteps": 1100}
    runs = [benchmark.Run("continuous_follower", {"arm": "reset", **short}), benchmark.Run("crashes", {"seed": 1})]
    runs += [benchmark.Run("dies", {"seed": 1}), benchmark.Run("continuous_follower", {"arm": "none", **short})]
    runs += [benchmark.Run("continuous_follower", {"arm": "kept", **short})]
    monkeypatch.setitem(benchmark.FIGURES, "fig6", lambda args: runs)
    monkeypatch.setattr(benchmark, "SECONDS", benchmark.SECONDS | {"crashes": 9, "dies": 9})
    flags = ["fig6", "--jobs", "1", "--run-dir", str(tmp_path / "runs"), "--results-dir", str(tmp_path / "results")]
    assert benchmark.main(benchmark.parse_args(flags)) == 1
    printed = capfd.readouterr()
    for words in ("failed: crashes.py --seed 1", "| about to crash", "| RuntimeError: boom", "exit code -9"):
        assert words in printed.err, words
    assert "| about to die" in printed.err and "| continuous_follower.py: error: " in printed.err
    assert "3 of 5 runs failed" in printed.err and len(finished(tmp_path / "runs")) == 2
    assert {row["arm"] for row in read(tmp_path / "results/fig6_runs.csv")} == {"reset", "kept"}


def test_two_at_once_in_one_folder_and_a_changed_script_are_told(quick, tmp_path, capsys):
    held = benchmark.lock(str(tmp_path))
    with pytest.raises(SystemExit) as error:
        benchmark.main(benchmark.parse_args(["fig6", "--run-dir", str(tmp_path)]))
    assert error.value.code == 2 and "another run.py is at work there" in capsys.readouterr().err
    held.close()
    copy = tmp_path / "copy"
    shutil.copytree(quick[0], copy)
    next(copy.glob("continuous_follower__arm-kept*/source.sha256")).write_text("another")
    assert benchmark.main(benchmark.parse_args(["fig6", "--quick", "--run-dir", str(copy)])) == 0
    assert "note: 1 of them are from another version of continuous_follower.py" in capsys.readouterr().out


# -------------------------------------------------------------------------------------------------------------- cluster
def test_submitits_local_executor_runs_two_tasks(quick, tmp_path):
    """With the same result as the processes of run.py."""
    command = [*RUN, "fig6", "--quick", "--cluster", "local", "--jobs", "2", "--run-dir", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0 and len(finished(tmp_path)) == 2, done.stderr
    assert len(list(tmp_path.glob("submitit/*_result.pkl"))) == 2
    again = subprocess.run(command, capture_output=True, text=True)
    assert again.returncode == 0 and "2 runs, 2 of them finished before" in again.stdout, again.stderr
    assert (tmp_path / "quick/fig6.csv").read_text() == (quick[0] / "quick/fig6.csv").read_text()


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
    flags = [
        "fig8",
        "--cluster",
        "slurm",
        "--slurm-partition",
        "cpu",
        "--jobs",
        "10",
        "--run-dir",
        str(tmp_path / "runs"),
    ]
    args = benchmark.parse_args(flags)
    benchmark.check_flags(args)
    monkeypatch.setattr("submitit.helpers.as_completed", lambda jobs, poll_frequency: iter(()))
    assert list(benchmark.run_on_cluster(benchmark.fig8(args), args)) == []
    script = (tmp_path / "submitted.sh").read_text()
    assert "#SBATCH --array=0-119%10\n" in script and "#SBATCH --partition=cpu\n" in script
    assert "#SBATCH --time=240\n" in script and "#SBATCH --cpus-per-task=1\n" in script


# --------------------------------------------------------------------------------------------------------- wrong input
def test_wrong_input_ends_with_one_line_and_nothing_written(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("")
    (tmp_path / "empty").mkdir()
    cases = {
        "no figure": (benchmark, [], "which figure? Choose from fig1"),
        "unknown figure": (benchmark, ["fig7"], "fig7"),
        "no seeds": (benchmark, ["fig1", "--seeds", "0"], "--seeds must be positive"),
        "word as seeds": (benchmark, ["fig1", "--seeds", "five"], "five"),
        "no jobs": (benchmark, ["fig1", "--jobs", "-1"], "--jobs must be positive"),
        "no time": (benchmark, ["fig1", "--slurm-minutes", "0"], "--slurm-minutes must be positive"),
        "unknown flag": (benchmark, ["fig1", "--fast"], "--fast"),
        "unknown cluster": (benchmark, ["fig1", "--cluster", "cloud"], "cloud"),
        "slurm without slurm": (benchmark, ["fig1", "--cluster", "slurm"], "sbatch"),
        "run folder below a file": (benchmark, ["fig1", "--run-dir", "file/runs"], "--run-dir file/runs"),
        "results below a file": (benchmark, ["fig1", "--results-dir", "file/x"], "--results-dir file/x"),
        "unknown drawing": (plot, ["fig9"], "fig9"),
        "nothing to draw": (plot, ["--from", "empty"], "python benchmark/run.py all"),
        "nothing to draw one from": (
            plot,
            ["fig3", "--from", "none"],
            "no fig3.csv in none: python benchmark/run.py fig3",
        ),
        "pictures below a file": (plot, ["fig3", "--from", "results", "--to", "file/x"], "--to file/x"),
    }
    (tmp_path / "results").mkdir()
    (tmp_path / "results/fig3.csv").write_text("leader,learning_rate,arm,seed,step,leader_return,leader_regret\n")
    before = sorted(tmp_path.rglob("*"))
    for name, (module, flags, words) in cases.items():
        with pytest.raises(SystemExit) as error:
            module.main(module.parse_args(flags))
        printed = capsys.readouterr()
        assert error.value.code == 2 and printed.out == "" and printed.err.count("\n") == 1, (name, printed)
        assert printed.err.startswith(f"{module.__name__}.py: error: ") and words in printed.err, (name, printed.err)
        assert sorted(tmp_path.rglob("*")) == before, name


def test_cluster_without_submitit_says_what_to_install(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(SystemExit) as error:
        benchmark.main(benchmark.parse_args(["fig1", "--cluster", "local", "--run-dir", str(tmp_path / "runs")]))
    assert error.value.code == 2 and "pip install submitit" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


# --------------------------------------------------------------------------------------------------------- the READMEs
README = "\n".join(path.read_text() for path in sorted(ROOT.glob("README*.md")))
COMMANDS = sorted(set(re.findall(r"^    (python (?!-m)[^\n#]*?) *(?:\(.*)?$", README, re.MULTILINE)))


def single_commands(line):
    """(script, flags) of each command in a line."""
    for command in line.split("&&"):
        _, path, *flags = shlex.split(command)
        yield Path(path), flags


@pytest.mark.parametrize("line", COMMANDS)
def test_every_command_in_the_readme_is_understood_and_the_quick_ones_run(line, tmp_path, monkeypatch, capsys):
    """Those of a script that takes seconds run as written. What stands for something else is in capitals: runs/RUN."""
    monkeypatch.chdir(tmp_path)
    for path, flags in single_commands(line):
        assert (ROOT / path).is_file(), line
        module = {"run": benchmark, "plot": plot}.get(path.stem) or importlib.import_module(path.stem)
        args = module.parse_args(flags)
        slow = benchmark.SECONDS.get(path.stem, 99) > 5 or re.search(r"[A-Z]{3}|--track|00000|--leader dqn", line)
        if not slow:
            module.main(args)
            assert "result" in capsys.readouterr().out and list(tmp_path.glob("runs/*/result.json"))


def test_the_readme_shows_every_figure_and_its_summary():
    shown = re.findall(r"benchmark/figures/(\w+)\.png", README)
    assert sorted(shown) == sorted(plot.FIGURES) == committed()
    rows = [
        {key: int(float(cell)) if re.fullmatch(r"[\d.e+]+", cell) else cell or None for key, cell in row.items()}
        for row in read(ROOT / "benchmark/results/fig1_summary.csv")
    ]
    assert benchmark.table("fig1", rows) in README
    assert len(rows) == 12 * len(benchmark.METHODS)


# ------------------------------------------------------------------------------------------------------ small parts
def test_thinning_a_curve():
    rng = np.random.default_rng(1)
    level = [
        [step, float(value)]
        for step, value in zip(range(0, 3000, 10), np.repeat(rng.integers(0, 3, 15), 20), strict=True)
    ]
    thinned = benchmark.thin(level)
    assert len(thinned) <= 30 and thinned[0] == level[0] and thinned[-1] == level[-1]
    steps, values = np.array(level).T
    assert np.array_equal(np.interp(steps, *np.array(thinned).T), values)  # nothing is lost
    noisy = [[step, float(value)] for step, value in zip(range(600), rng.normal(size=600), strict=True)]
    thinned = benchmark.thin(noisy)
    assert len(thinned) == 60 and thinned[0] == [9, pytest.approx(np.mean([v for _, v in noisy[:10]]))]
    for short in ([[5, 1.0]], [[5, 1.0], [6, 1.0]], [[1, 1.0], [2, 1.0], [3, 2.0]]):
        assert benchmark.thin(short) == short


def test_steps_to_stay():
    curve = [[10, 0.0], [20, -1.0], [30, -0.1], [40, 0.05]]
    assert benchmark.steps_to_stay(curve, 0.0, 0.1) == 30 and benchmark.steps_to_stay(curve, 0.0, 0.05) == 40
    assert benchmark.steps_to_stay(curve, 0.0, 2) == 10 and benchmark.steps_to_stay(curve[:2], 0.0, 0.1) is None


def test_quartiles_where_some_never_arrive():
    ends = [
        {"script": "es_md_matrix", "env_id": "hero", "leader_regret": 0.0, "steps_to_converge": n}
        for n in (30, None, 10, 20, None)
    ]
    (row,) = benchmark.summarise("es_md", ends)
    assert (row["q25_steps"], row["median_steps"], row["q75_steps"]) == (20, 30, None)
    assert row["runs"] == row["at_optimum"] == 5


def test_an_atari_runs_curve_comes_from_its_tensorboard(tmp_path):
    """The leader's stage alone; its commitment is the offer if it sells, and the limit if it buys."""
    from torch.utils.tensorboard import SummaryWriter

    folder = tmp_path / benchmark.Run("stackelberg_ppo_atari_trade", {"leader": "buyer"}).name / "run"
    writer = SummaryWriter(str(folder))
    for step in range(10, 60, 10):  # 10 and 20: the follower's stage; 50: verification
        values = {"price_offered": 0.25, "price_limit": step / 100, "acceptance_rate": 0.5}
        for tag, value in (values | {"leader_return": step, "follower_return": -step}).items():
            writer.add_scalar(f"charts/{tag}", value, step)
    writer.close()
    result = {"script": "stackelberg_ppo_atari_trade.py", "seed": 1, "args": {"leader": "buyer"}}
    known = set(benchmark.COLUMNS["fig2"]) - {"share_at_optimum", "best_responses_at_5_prices"}
    result |= {column: float(k) for k, column in enumerate(sorted(known))} | {"optimal_leader_price": 0.25}
    lists = {"leader_prices": {"0.25": 0.9, "0.5": 0.1}, "bullet_values": [0.1, 0.98]}
    lists |= {
        "bullet_value_errors": [0.01, 0.02],
        "best_responses": [{"best_response_rate": 1 - k / 9} for k in range(5)],
    }
    result |= lists
    (folder / "result.json").write_text(json.dumps(result | {"curve": [[30, 30.0], [40, 40.0]]}))
    runs = [benchmark.Run("stackelberg_ppo_atari_trade", {"leader": "buyer"})]
    points, ends = benchmark.rows_of("fig2", runs, str(tmp_path))
    columns = ["leader", "seed", "step", "price", "acceptance", "leader_return", "follower_return"]
    assert list(points[0]) == columns and [point["step"] for point in points] == [30, 40]
    assert [point["price"] for point in points] == pytest.approx([0.3, 0.4]) and points[1]["follower_return"] == -40
    expected = result | {"share_at_optimum": 0.9, "best_responses_at_5_prices": 1}
    expected |= {"seller_bullet_value": 0.1, "seller_bullet_value_error": 0.01}
    expected |= {"buyer_bullet_value": 0.98, "buyer_bullet_value_error": 0.02}
    assert ends == [{"leader": "buyer", "seed": 1, **{k: expected[k] for k in benchmark.COLUMNS["fig2"]}}]
