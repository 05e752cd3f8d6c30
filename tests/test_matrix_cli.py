"""The command line, the files of a run and what is promised about them."""

import csv
import json
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import SHORT
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

ROOT = Path(__file__).parent.parent
KEYS = {
    "script": str,
    "env_id": str,
    "seed": int,
    "args": dict,
    "leader_return": float,
    "stackelberg_value": float,
    "stackelberg_value_pessimistic": float,
    "leader_regret": float,
    "follower_regret": float,
    "follower_regret_all": float,
    "verification_gain": float,
    "verification_gain_leader": float,
    "leader_policy": list,
    "follower_policy": list,
    "follower_steps": int,
    "leader_steps": int,
    "steps_to_converge": (int, type(None)),
    "curve": list,
    "wall_seconds": float,
    "steps_per_second": float,
}
TAGS = {f"charts/{tag}" for tag in ("leader_return", "leader_return_greedy", "follower_return", "stackelberg_value")}
TAGS |= {"charts/leader_regret", "charts/follower_regret", "charts/SPS"}


@pytest.fixture
def checkpoint(script, run, tmp_path):
    """model.pt of a short run on the prisoner's dilemma."""
    run(*SHORT, "--save-model", "--run-dir", tmp_path / "pretrained")
    return next(tmp_path.glob("pretrained/*/model.pt"))


def wrong_inputs(tmp_path, checkpoint):
    """name: flags, and words that the error line must hold."""
    (tmp_path / "file").write_text("no model")
    torch.save({"weights": torch.zeros(3)}, tmp_path / "foreign.pt")
    model = torch.load(checkpoint, weights_only=True)
    model["follower"] = {name: torch.zeros(2, 24) for name in model["follower"]}
    torch.save(model, tmp_path / "shape.pt")
    payoff = ("--leader-payoff", 1, 2, 3, 4)
    return {
        "unknown game": (["--env-id", "poker"], "prisoners_dilemma, stag_hunt"),
        "name with a slash": (["--env-id", "a/b"], "--env-id"),
        "experiment with a slash": (["--exp-name", "../x"], "--exp-name"),
        "three payoffs": (
            ["--leader-payoff", 1, 2, 3, "--follower-payoff", 1, 2, 3, 4],
            "--leader-payoff must be four",
        ),
        "five payoffs": ([*payoff, "--follower-payoff", 1, 2, 3, 4, 5], "--follower-payoff must be four"),
        "one player's payoffs": (payoff, "--follower-payoff must be four"),
        "NaN payoff": ([*payoff, "--follower-payoff", 1, 2, "nan", 4], "--follower-payoff must be four finite"),
        "infinite payoff": ([*payoff, "--follower-payoff", 1, 2, "-inf", 4], "--follower-payoff must be four finite"),
        "overflowing payoffs": ([*payoff, "--follower-payoff", 1e308, -1e308, 0, 0], "--follower-payoff"),
        "word as payoff": ([*payoff, "--follower-payoff", 1, 2, 3, "x"], "--follower-payoff"),
        "own game under a paper's name": ([*payoff, "--follower-payoff", 1, 2, 3, 4, "--env-id", "hero"], "hero"),
        "zero steps": (["--num-steps", 0], "--num-steps must be positive"),
        "negative steps": (["--num-steps", -3], "--num-steps must be positive"),
        "zero budget": (["--total-timesteps", 0], "--total-timesteps must be positive"),
        "budget below pre-training": (["--total-timesteps", 1_900], "--total-timesteps 1900 is less than"),
        "pre-training below one batch": (
            ["--follower-timesteps", 104, "--follower-batch-size", 100],
            "one batch of 105",
        ),
        "fraction as steps": (["--total-timesteps", "1e5.5"], "--total-timesteps"),
        "zero batch": (["--follower-batch-size", 0], "--follower-batch-size must be positive"),
        "negative follower learning rate": (
            ["--follower-learning-rate", -1],
            "--follower-learning-rate must be positive",
        ),
        "zero learning rate": (["--learning-rate", 0], "--learning-rate must be positive"),
        "negative learning rate": (["--learning-rate", -0.1], "--learning-rate must be positive"),
        "NaN learning rate": (["--learning-rate", "nan"], "--learning-rate must be a finite number"),
        "negative seed": (["--seed", -1], "--seed must not be negative"),
        "huge seed": (["--seed", 2**64], "--seed"),
        "word as seed": (["--seed", "one"], "--seed"),
        "baseline rate above 1": (["--follower-baseline-rate", 1.5], "--follower-baseline-rate"),
        "unknown flag": (["--entropy", 1], "--entropy"),
        "stray word": (["chicken"], "chicken"),
        "missing checkpoint": (["--follower-checkpoint", tmp_path / "none.pt"], "No such file"),
        "folder as checkpoint": (["--follower-checkpoint", tmp_path], "directory"),
        "corrupt checkpoint": (["--follower-checkpoint", tmp_path / "file"], "is not a model.pt"),
        "foreign checkpoint": (["--follower-checkpoint", tmp_path / "foreign.pt"], "is not a model.pt"),
        "checkpoint of another shape": (["--follower-checkpoint", tmp_path / "shape.pt"], "is not a model.pt"),
        "checkpoint of another game": (["--env-id", "hero", "--follower-checkpoint", checkpoint], "from another game"),
        "checkpoint of another length": (["--num-steps", 9, "--follower-checkpoint", checkpoint], "from another game"),
        "run folder below a file": (["--run-dir", tmp_path / "file" / "runs"], "--run-dir"),
    }


def test_wrong_input_ends_with_one_line_and_nothing_written(script, checkpoint, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    cases = wrong_inputs(tmp_path, checkpoint)
    before = sorted(tmp_path.rglob("*"))
    for name, (flags, words) in cases.items():
        with pytest.raises(SystemExit) as error:
            script.main(script.parse_args([*map(str, flags)]))
        printed = capsys.readouterr()
        assert error.value.code == 2, name
        assert printed.out == "" and printed.err.count("\n") == 1, (name, printed)
        assert printed.err.startswith(f"{script.__name__}.py: error: ") and words in printed.err, (name, printed.err)
        assert sorted(tmp_path.rglob("*")) == before, name


def test_wrong_input_in_a_terminal_of_its_own(script, tmp_path):
    command = [sys.executable, script.__file__, "--learning-rate", "-1"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 2 and done.stdout == "" and list(tmp_path.iterdir()) == []
    assert done.stderr == f"{script.__name__}.py: error: --learning-rate must be positive, got -1.0\n"


def test_tracking_without_wandb_says_what_to_install(script, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(SystemExit) as error:
        script.main(script.parse_args(["--track", "--run-dir", str(tmp_path / "runs")]))
    assert error.value.code == 2 and "pip install wandb" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_tracking_without_a_key_is_one_line(script, tmp_path):
    command = [sys.executable, script.__file__, "--track"]
    environment = {key: value for key, value in os.environ.items() if not key.startswith("WANDB")}
    environment |= {"HOME": str(tmp_path), "NETRC": str(tmp_path / "none")}
    done = subprocess.run(
        command, cwd=tmp_path, env=environment, capture_output=True, text=True, stdin=subprocess.DEVNULL
    )
    assert done.returncode == 2 and done.stdout == "" and not list(tmp_path.glob("runs/*"))
    assert re.fullmatch(rf"{script.__name__}.py: error: --track: .*\n", done.stderr)


def test_help_explains_every_flag(any_script, capsys):
    with pytest.raises(SystemExit) as error:
        any_script.parse_args(["--help"])
    _, _, options = capsys.readouterr().out.partition("show this help")
    text = " ".join(re.sub(r"[^\w\s(){}\[\]:;,.'=/-]", " ", options).split())
    assert error.value.code == 0
    for field, default in vars(any_script.Args()).items():
        start = re.search(rf"--{field.replace('_', '-')}[ ,]", text).start()
        assert re.search(r"[a-z]{3,} [a-z]{2,}.*\(default: ", text[start : start + 600]), (field, default)


def test_a_run_writes_its_folder_and_nothing_else(script, run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    result, printed = run(*SHORT, "--save-model", "--seed", 7)
    (folder,) = tmp_path.glob("runs/*")
    assert re.fullmatch(rf"prisoners_dilemma__{script.__name__}__7__\d+", folder.name)
    assert [path.name for path in tmp_path.iterdir()] == ["runs"]
    names = sorted(path.name.split(".tfevents")[0] for path in folder.iterdir())
    assert names == ["events.out", "model.pt", "result.json"]
    assert json.loads((folder / "result.json").read_text()) == json.loads(json.dumps(result))
    assert str(folder / "result.json") in printed and f"tensorboard --logdir {tmp_path / 'runs'}" in printed


def test_result_follows_the_schema(script, run):
    result, _ = run(*SHORT, "--env-id", "hero", "--seed", 3)
    assert list(result) == list(KEYS)
    assert all(isinstance(result[key], kind) for key, kind in KEYS.items())
    assert result["script"] == f"{script.__name__}.py" and result["env_id"] == "hero" and result["seed"] == 3
    assert result["args"] == vars(script.Args(**result["args"]))
    assert len(result["leader_policy"]) == len(result["follower_policy"]) == 5
    assert result["leader_regret"] == result["stackelberg_value"] - result["leader_return"]
    assert result["follower_regret"] >= 0 and result["follower_regret_all"] >= result["follower_regret"]
    # the result is what the exact play of the two policies gives
    game = script.make_game(script.Args(env_id="hero"))
    policies = [np.array([result[key]]) for key in ("leader_policy", "follower_policy")]
    assert result["leader_return"] == pytest.approx(script.play(game, *policies)[0][0])
    # steps: the follower's are a multiple of 7 episodes, the curve starts after them and ends with the budget
    assert result["follower_steps"] == 1050 and result["curve"][0][0] == 1050
    assert result["curve"][-1] == [1050 + result["leader_steps"], result["leader_return"]]
    assert 8000 - 1005 < result["curve"][-1][0] <= 8000
    assert all(later[0] > earlier[0] for earlier, later in zip(result["curve"], result["curve"][1:], strict=False))
    assert result["steps_per_second"] == pytest.approx(result["curve"][-1][0] / result["wall_seconds"])


def test_steps_to_converge_is_the_first_step_of_the_last_stay(run):
    result, _ = run("--env-id", "hero", "--total-timesteps", 75_000)
    good = [abs(value - result["stackelberg_value"]) <= 0.05 + 1e-9 for _, value in result["curve"]]
    stays = [step for i, (step, _) in enumerate(result["curve"]) if all(good[i:])]
    assert result["steps_to_converge"] == (stays[0] if stays else None)


def test_curves_have_the_shared_tags_and_count_every_step(run, tmp_path):
    result, _ = run(*SHORT, "--env-id", "stag_hunt")
    events = EventAccumulator(str(next(tmp_path.glob("runs/*"))), size_guidance={"scalars": 0})
    events.Reload()
    assert set(events.Tags()["scalars"]) >= TAGS
    assert any(tag.startswith("losses/follower_") for tag in events.Tags()["scalars"])
    assert all(tag.startswith(("charts/", "losses/")) for tag in events.Tags()["scalars"])
    greedy = [[event.step, pytest.approx(event.value)] for event in events.Scalars("charts/leader_return_greedy")]
    assert greedy == result["curve"][1:]
    steps = [event.step for event in events.Scalars("charts/follower_return")]
    assert steps == sorted(set(steps)) and steps[0] == 105
    optimum = events.Scalars("charts/stackelberg_value")
    assert [event.step for event in optimum] == steps and {event.value for event in optimum} == {0.0}


def same(result):
    """All of a result that the seed and the learning settle."""
    return {key: result[key] for key in KEYS if key not in ("args", "wall_seconds", "steps_per_second")}


def test_same_seed_same_result_other_seed_other_weights(run):
    runs = [run(*SHORT, "--seed", seed, "--save-model") for seed in (5, 5, 6)]
    (first, _), (again, _), _ = runs
    assert same(first) == same(again) and first["args"] == again["args"]
    folders = [Path(printed.split("result  ")[1].strip()).parent for _, printed in runs]
    models = [torch.load(folder / "model.pt", weights_only=True) for folder in folders]
    weights = [(next(iter(model["follower"].values())), *model["leader"].values()) for model in models]
    assert all(torch.equal(a, b) for a, b in zip(weights[0], weights[1], strict=True))
    assert not any(torch.equal(a, b) for a, b in zip(weights[0], weights[2], strict=True))


def test_a_followers_checkpoint_repeats_the_run_it_came_from(run, checkpoint):
    """The leader trains, step for step, as it did in the run that trained the follower; its steps are counted too."""
    first = json.loads((checkpoint.parent / "result.json").read_text())
    again, _ = run(*SHORT, "--follower-checkpoint", checkpoint)
    assert same(again) == same(first)
    assert torch.load(checkpoint, weights_only=True)["follower_steps"] == again["follower_steps"] == 1050


def test_a_crash_in_the_middle_leaves_no_half_written_file(script, run, tmp_path, monkeypatch):
    def write_half(model, path):
        Path(path).write_bytes(b"half")
        raise OSError("disk full")

    monkeypatch.setattr(torch, "save", write_half)
    with pytest.raises(OSError, match="disk full"):
        run(*SHORT, "--save-model")
    assert not list(tmp_path.glob("runs/*/model.pt")) and not list(tmp_path.glob("runs/*/result.json"))


def test_wandb_offline(run, tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    monkeypatch.chdir(tmp_path)
    run(*SHORT, "--track")
    (folder,) = tmp_path.glob("runs/*")
    assert list(folder.glob("wandb/offline-run-*/*.wandb"))
    assert [path.name for path in tmp_path.iterdir()] == ["runs"]


def test_inline_script_metadata_pins_what_was_tested(any_script):
    """PEP 723: a copied script brings its own pins, the same as in requirements.txt, for all that it imports."""
    source = Path(any_script.__file__).read_text()
    block = re.search(r"^# /// script\n((?:#.*\n)+?)# ///$", source, re.MULTILINE).group(1)
    metadata = tomllib.loads("".join(line.removeprefix("#").lstrip(" ") for line in block.splitlines(keepends=True)))
    pins = set(metadata["dependencies"])
    assert pins <= set((ROOT / "requirements.txt").read_text().split("\n"))
    imported = set(re.findall(r"^ *(?:import|from) (\w+)", source, re.MULTILINE)) - set(sys.stdlib_module_names)
    assert {pin.split("==")[0] for pin in pins} == imported | {"tensorboard"}
    assert metadata["requires-python"] == ">=3.11"


def test_every_scripts_pins_stand_in_the_requirements():
    requirements = set((ROOT / "requirements.txt").read_text().split("\n"))
    for path in (*ROOT.glob("*.py"), *ROOT.glob("ablations/*.py")):
        block = path.read_text().partition("# ///\n")[0]
        pins = re.findall(r'"([\w-]+==[\d.]+)"', block)
        assert len(pins) >= 6 and set(pins) <= requirements, path.name


def test_requirements_are_what_is_installed():
    from importlib.metadata import version

    for line in (ROOT / "requirements.txt").read_text().splitlines():
        if line and not line.startswith("#"):
            name, pin = line.split("==")
            assert version(name).split("+")[0] == pin


def test_scripts_import_nothing_of_the_project(any_script):
    source = Path(any_script.__file__).read_text()
    folders = ("ablations", "benchmark", "tests")
    others = {*folders, *(path.stem for folder in (".", *folders) for path in (ROOT / folder).glob("*.py"))}
    assert not others & set(re.findall(r"^ *(?:import|from) (\w+)", source, re.MULTILINE))


def test_code_style():
    for command in (["check"], ["format", "--check"]):
        done = subprocess.run([sys.executable, "-m", "ruff", *command, ROOT], capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr


def test_readme_and_ci_run_the_same_two_commands():
    commands = [
        "pip install -r requirements.txt && python stackelberg_ppo_matrix.py",
        "pip install -r requirements.txt && python -m pytest tests",
    ]
    for text in ((ROOT / "README.md").read_text(), (ROOT / ".ci/run").read_text()):
        assert all(re.search(rf"^ *{re.escape(command)}$", text, re.MULTILINE) for command in commands)
    assert os.access(ROOT / ".ci/run", os.X_OK)


def test_readmes_example_of_the_pomdp_runs():
    """The README's lines give a VectorEnv against a trained follower, and the best of all leaders is at the optimum."""
    (example,) = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    names = {}
    exec(example, names)
    observation, _ = names["envs"].reset(seed=1)
    assert observation.shape == (16, 5)
    leader_returns, _ = names["play"](names["game"], names["TABLES"], names["replies"])
    assert leader_returns.max() == 0


def test_readmes_tables_say_what_the_results_say():
    """Each row of the README that names a results file counts its runs within 0.05 and 0.1, or lists their regrets."""
    for line in (ROOT / "README.md").read_text().splitlines():
        file = re.search(r"`(?:benchmark/results/)?(\w+\.csv)` \|$", line)
        if not file:
            continue
        rows = list(csv.DictReader((ROOT / "benchmark/results" / file.group(1)).open()))
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        regrets = [abs(float(row["leader_regret"])) for row in rows]
        if "/" in cells[1]:
            hits = [f"{sum(regret <= bound + 1e-9 for regret in regrets)}/{len(rows)}" for bound in (0.05, 0.1)]
            steps = np.median([float(row["steps_to_converge"] or "inf") for row in rows])
            assert len(rows) == 60 and cells[1:4] == [*hits, f"{steps:,.0f}"], line
        else:
            for game, cell in zip(("prisoners_dilemma", "chicken"), cells[1:3], strict=True):
                of_game = [f"{regret:.1f}" for regret, row in zip(regrets, rows, strict=True) if row["env_id"] == game]
                assert cell == ", ".join(of_game), line


def test_readmes_run_flags_are_understood():
    """Every command line in the README that calls a script parses."""
    import importlib

    lines = re.findall(
        r"^ +(?:pip .*&& )?python (?:ablations/)?(\w+)\.py(.*)$", (ROOT / "README.md").read_text(), re.MULTILINE
    )
    assert len(lines) >= 6
    for script, flags in lines:
        importlib.import_module(script).parse_args(flags.split())
