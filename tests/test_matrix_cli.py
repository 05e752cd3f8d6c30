"""The command line, the files of a run and what is promised about them."""

import ast
import importlib
import json
import os
import re
import struct
import subprocess
import sys
import tomllib
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import MATRIX_SCRIPTS, QUICK, SHORT, exact_returns, parse
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from wandb.proto.wandb_internal_pb2 import Record

ROOT = Path(__file__).parent.parent
KEYS = {
    "script": str,
    "env_id": str,
    "seed": int,
    "args": dict,
    "leader_return": float,
    "leader_return_greedy": float,
    "stackelberg_value": float,
    "stackelberg_value_pessimistic": float,
    "leader_regret": float,
    "follower_regret": float,
    "follower_regret_all": float,
    "verification_gain": float,
    "leader_policy": list,
    "follower_policy": list,
    "follower_steps": int,
    "leader_steps": int,
    "steps_to_converge": (int, type(None)),
    "steps_to_converge_exploring": (int, type(None)),
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
    """name: flags, and words that the error must hold."""
    (tmp_path / "file").write_text("no model")
    torch.save({"weights": torch.zeros(3)}, tmp_path / "foreign.pt")
    model = torch.load(checkpoint, weights_only=True)
    torch.save({**model, "follower": torch.zeros(2, 24)}, tmp_path / "shape.pt")
    torch.save({**model, "follower": model["follower"] * np.nan}, tmp_path / "nan.pt")
    torch.save({key: value for key, value in model.items() if key != "game"}, tmp_path / "no_game.pt")
    payoff = ("--leader-payoff", 1, 2, 3, 4)
    return {
        "unknown game": (["--env-id", "poker"], "prisoners_dilemma, stag_hunt"),
        "three payoffs": (["--leader-payoff", 1, 2, 3, "--follower-payoff", 1, 2, 3, 4], "must be four numbers"),
        "five payoffs": ([*payoff, "--follower-payoff", 1, 2, 3, 4, 5], "must be four numbers"),
        "one player's payoffs": (payoff, "must be four numbers"),
        "NaN payoff": ([*payoff, "--follower-payoff", 1, 2, "nan", 4], "must be four numbers"),
        "infinite payoff": ([*payoff, "--follower-payoff", 1, 2, "-inf", 4], "must be four numbers"),
        "overflowing payoffs": ([*payoff, "--follower-payoff", 1e307, -1e307, 0, 0], "must be four numbers"),
        "word as payoff": ([*payoff, "--follower-payoff", 1, 2, 3, "x"], "--follower-payoff"),
        "zero steps": (["--num-steps", 0], "--num-steps must be positive"),
        "negative steps": (["--num-steps", -3], "--num-steps must be positive"),
        "zero budget": (["--total-timesteps", 0], "--total-timesteps must be positive"),
        "budget below pre-training": (["--total-timesteps", 1_900], "must hold a batch each"),
        "pre-training below one batch": (["--follower-timesteps", 104], "must hold a batch each"),
        "fraction as steps": (["--total-timesteps", "1e5.5"], "--total-timesteps"),
        "zero batch": (["--follower-batch-size", 0], "--follower-batch-size must be positive"),
        "zero learning rate": (["--learning-rate", 0], "--learning-rate must be positive"),
        "negative learning rate": (["--learning-rate", -0.1], "--learning-rate must be positive"),
        "NaN learning rate": (["--learning-rate", "nan"], "--learning-rate must be positive"),
        "negative seed": (["--seed", -1], "--seed must be positive"),
        "word as seed": (["--seed", "one"], "--seed"),
        "unknown flag": (["--leaning-rate", 1], "Perhaps you meant"),
        "stray word": (["chicken"], "chicken"),
        "no checkpoint": (["--follower-checkpoint", ""], "--follower-checkpoint '' does not fit"),
        "missing checkpoint": (["--follower-checkpoint", tmp_path / "none.pt"], "No such file"),
        "folder as checkpoint": (["--follower-checkpoint", tmp_path], "directory"),
        "corrupt checkpoint": (["--follower-checkpoint", tmp_path / "file"], "does not fit"),
        "foreign checkpoint": (["--follower-checkpoint", tmp_path / "foreign.pt"], "does not fit"),
        "checkpoint of another shape": (["--follower-checkpoint", tmp_path / "shape.pt"], "does not fit"),
        "checkpoint of NaNs": (["--follower-checkpoint", tmp_path / "nan.pt"], "not finite"),
        "checkpoint without its game": (["--follower-checkpoint", tmp_path / "no_game.pt"], "does not fit"),
        "checkpoint of another game": (["--env-id", "hero", "--follower-checkpoint", checkpoint], "another game"),
        "checkpoint of another length": (["--num-steps", 9, "--follower-checkpoint", checkpoint], "another game"),
    }


def test_wrong_input_ends_in_tyros_box_and_nothing_written(script, checkpoint, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    cases = wrong_inputs(tmp_path, checkpoint)
    before = sorted(tmp_path.rglob("*"))
    for name, (flags, words) in cases.items():
        with pytest.raises(SystemExit) as error:
            parse(script, *flags)
        printed = capsys.readouterr()
        text = " ".join(re.sub(r"[│╭╮╰╯─]", " ", printed.err).split())
        assert error.value.code == 2 and printed.out == "", name
        assert words in text and "full helptext" in text and "Traceback" not in text, (name, text)
        assert sorted(tmp_path.rglob("*")) == before, name


def test_wrong_input_in_a_terminal_of_its_own(any_script, tmp_path):
    command = [sys.executable, any_script.__file__, "--seed", "-1"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 2 and done.stdout == "" and list(tmp_path.iterdir()) == []
    assert "Value error" in done.stderr and "--seed must be positive, got -1" in done.stderr


def test_a_diverged_run_says_what_to_lower_and_leaves_no_result(script, run, tmp_path):
    """A leader with a value diverges; policy gradients alone saturate (test_leaders)."""
    if script.__name__ in ("stackelberg_ppo_matrix", "stackelberg_dqn_matrix"):
        with pytest.raises(SystemExit, match=r"leader's training diverged: lower --learning-rate"):
            run(*SHORT, "--learning-rate", 1e30)
    with pytest.raises(SystemExit, match=r"follower's training diverged: lower --follower-learning-rate"):
        run("--follower-baseline-rate", 1000)
    assert list(tmp_path.glob("runs/*")) and not list(tmp_path.glob("runs/*/result.json"))


def test_help_explains_every_flag(any_script, capsys):
    with pytest.raises(SystemExit) as error:
        parse(any_script, "--help")
    _, _, options = capsys.readouterr().out.partition("show this help")
    text = " ".join(re.sub(r"[^\w\s(){}\[\]:;,.'=/-]", " ", options).split())
    assert error.value.code == 0
    for field, default in asdict(any_script.Args()).items():
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
    assert set(result) == set(KEYS)
    assert all(isinstance(result[key], kind) for key, kind in KEYS.items())
    assert result["script"] == f"{script.__name__}.py" and result["env_id"] == "hero" and result["seed"] == 3
    assert result["args"] == asdict(script.Args(**result["args"]))
    assert len(result["leader_policy"]) == len(result["follower_policy"]) == 5
    assert result["leader_regret"] == pytest.approx(result["stackelberg_value"] - result["leader_return_greedy"])
    assert result["follower_regret"] >= 0 and result["follower_regret_all"] >= result["follower_regret"]
    # the result is what the exact play of the two policies gives
    game = script.Args(env_id="hero").game
    returns = exact_returns(script, game, [result["leader_policy"]], [result["follower_policy"]])
    assert result["leader_return_greedy"] == pytest.approx(returns[0].item())
    # steps: the follower's are a multiple of 7 episodes, the curve starts after them and ends with the budget
    steps, greedy, exploring = zip(*result["curve"], strict=True)
    assert result["follower_steps"] == 1050 < steps[0] and sorted(set(steps)) == list(steps)
    assert steps[-1] == 1050 + result["leader_steps"] and 8000 - 1005 < steps[-1] <= 8000
    assert greedy[-1] == result["leader_return_greedy"]
    assert result["leader_return"] == pytest.approx(np.mean(exploring[-int(np.ceil(len(steps) / 10)) :]))
    assert result["steps_per_second"] == pytest.approx(result["curve"][-1][0] / result["wall_seconds"])


def test_steps_to_converge_is_the_first_step_of_the_last_stay(script, run):
    result, _ = run("--env-id", "hero", "--total-timesteps", 75_000)
    for column, key in ((1, "steps_to_converge"), (2, "steps_to_converge_exploring")):
        good = [abs(row[column] - result["stackelberg_value"]) <= 0.05 + 1e-6 for row in result["curve"]]
        stays = [row[0] for i, row in enumerate(result["curve"]) if all(good[i:])]
        assert result[key] == (stays[0] if stays else None)
    steps = np.array([1, 2, 3, 4])
    assert script.steps_to_converge(steps, np.array([0, 0.1, 0.05, -0.05])) == 3
    assert script.steps_to_converge(steps, np.array([0, 0, 0, 0.06])) is None


def test_tiny_payoffs_get_the_verdict_of_their_game(script, run):
    """The same run at two scales of the payoffs. Five leader batches are too few for the paper's leaders in the
    prisoner's dilemma; the verdict says so whatever the scale."""
    results = []
    for scale in (1, 1e-9):
        leader_payoff, follower_payoff = ([scale * x for x in row] for row in ((-1, -3, 0, -2), (-1, 0, -3, -2)))
        payoffs = ("--leader-payoff", *leader_payoff, "--follower-payoff", *follower_payoff)
        results.append(run(*SHORT, *payoffs))
    (result, printed), (tiny, tiny_printed) = results
    verdicts = ["custom: NOT a Stackelberg equilibrium" in text for text in (printed, tiny_printed)]
    assert verdicts == [True, True]
    assert tiny["steps_to_converge"] == result["steps_to_converge"]
    assert tiny["leader_policy"] == result["leader_policy"]
    for key in ("leader_regret", "follower_regret", "leader_return"):
        assert tiny[key] * 1e9 == pytest.approx(result[key], abs=1e-6)


def test_curves_have_the_shared_tags_and_count_every_step(run, tmp_path):
    result, _ = run(*SHORT, "--env-id", "stag_hunt")
    events = EventAccumulator(str(next(tmp_path.glob("runs/*"))), size_guidance={"scalars": 0, "tensors": 0})
    events.Reload()
    assert set(events.Tags()["scalars"]) >= TAGS
    assert any(tag.startswith("losses/follower_") for tag in events.Tags()["scalars"])
    assert all(tag.startswith(("charts/", "losses/")) for tag in events.Tags()["scalars"])
    for column, tag in ((1, "charts/leader_return_greedy"), (2, "charts/leader_return")):
        points = [(event.step, pytest.approx(event.value)) for event in events.Scalars(tag)]
        assert points == [(row[0], row[column]) for row in result["curve"]]
    (layout,) = events.Tensors("custom_scalars__config__")
    assert all(
        tag.encode() in layout.tensor_proto.string_val[0] for tag in ("leader_return_greedy", "stackelberg_value")
    )
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
    weights = [(model["follower"], *model["leader"].values()) for model in models]
    assert all(torch.equal(a, b) for a, b in zip(weights[0], weights[1], strict=True))
    assert not any(torch.equal(a, b) for a, b in zip(weights[0], weights[2], strict=True))


def test_a_followers_checkpoint_repeats_the_run_it_came_from(run, checkpoint):
    """The leader trains, step for step, as it did in the run that trained the follower; its steps are counted too."""
    first = json.loads((checkpoint.parent / "result.json").read_text())
    again, _ = run(*SHORT, "--follower-checkpoint", checkpoint)
    assert same(again) == same(first)
    assert torch.load(checkpoint, weights_only=True)["follower_steps"] == again["follower_steps"] == 1050


def test_a_crash_in_the_middle_leaves_no_half_written_result(run, tmp_path, monkeypatch):
    def write_half(result, file):
        file.write("{")
        raise OSError("disk full")

    monkeypatch.setattr(json, "dump", write_half)
    with pytest.raises(OSError, match="disk full"):
        run(*SHORT)
    assert not list(tmp_path.glob("runs/*/result.json"))


def wandb_records(path):
    """Yields the records of an offline run: a log of LevelDB's format, after a header of 7 bytes."""
    data, offset, parts = path.read_bytes(), 7, b""
    while offset + 7 <= len(data):
        if 32768 - offset % 32768 < 7:  # the end of a block, too short for a header
            offset += 32768 - offset % 32768
        _, length, kind = struct.unpack_from("<IHB", data, offset)
        parts += data[offset + 7 : offset + 7 + length]
        offset += 7 + length
        if kind in (1, 4):  # a full record, or the last part of one
            record = Record()
            record.ParseFromString(parts)
            yield record
            parts = b""


# Scripts whose event files W&B's records are compared with, which takes seconds: one curve, or several in folders
TRACKED = ["stackelberg_ppo_matrix", "theorem2_divergence", "hidden_queries"]


@pytest.mark.parametrize("name", TRACKED)
def test_wandb_records_every_point_once(name, tmp_path):
    """An offline run holds each point of the event files once; the run's own folder holds none of W&B's files."""
    flags = SHORT if name in MATRIX_SCRIPTS else QUICK[name]
    environment = os.environ | {"WANDB_MODE": "offline", "WANDB_SILENT": "true"}
    command = [sys.executable, importlib.import_module(name).__file__, "--track", *map(str, flags)]
    subprocess.run(command, cwd=tmp_path, env=environment, check=True, capture_output=True)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["runs"]
    (folder,) = [path for path in tmp_path.glob("runs/*") if path.name != "wandb"]
    points = 0
    for path in {path.parent for path in folder.rglob("*tfevents*")}:
        events = EventAccumulator(str(path), size_guidance={"scalars": 0})
        events.Reload()
        points += sum(len(events.Scalars(tag)) for tag in events.Tags()["scalars"])

    names = []
    for record in wandb_records(next(tmp_path.glob("runs/wandb/offline-run-*/*.wandb"))):
        names += [item.key or "/".join(item.nested_key) for item in record.history.item]
    recorded = sum("charts/" in name or "losses/" in name for name in names)
    assert points > 20 and recorded == points


def test_every_script_tracks_in_the_same_words(any_script):
    """W&B records what is written after its start: so does every script, if those of TRACKED do."""
    sources = [Path(importlib.import_module(name).__file__).read_text() for name in (*TRACKED, any_script.__name__)]
    start, end = "    if args.track:\n", "sync_tensorboard=True, save_code=True)\n"
    for source in sources:
        tracking, _, after = source.partition(start)[2].partition(end)
        assert tracking == sources[0].partition(start)[2].partition(end)[0]
        before = source.partition(start)[0]
        assert "SummaryWriter(" in after and "SummaryWriter(" not in before and after.count("args.track") == 0


def imports(source):
    """The top-level names of the modules that a script imports, anywhere in it."""
    names = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names.add(node.module.split(".")[0])
    return names


def test_inline_script_metadata_pins_what_was_tested(any_script):
    """PEP 723: a copied script brings its own pins, the same as in requirements.txt, for all that it imports."""
    source = Path(any_script.__file__).read_text()
    block = re.search(r"^# /// script\n((?:#.*\n)+?)# ///$", source, re.MULTILINE).group(1)
    metadata = tomllib.loads("".join(line.removeprefix("#").lstrip(" ") for line in block.splitlines(keepends=True)))
    pins = set(metadata["dependencies"])
    assert pins <= set((ROOT / "requirements.txt").read_text().split("\n"))
    assert {pin.split("==")[0] for pin in pins} == imports(source) - set(sys.stdlib_module_names) | {"tensorboard"}
    assert metadata["requires-python"] == ">=3.11"


def test_every_scripts_pins_stand_in_the_requirements():
    requirements = set((ROOT / "requirements.txt").read_text().split("\n"))
    for path in (*ROOT.glob("*.py"), *ROOT.glob("ablations/*.py")):
        text = path.read_text()
        pins = re.findall(r'"([\w-]+==[\d.]+)"', text.partition("# ///\n")[0])
        names = {pin.split("==")[0] for pin in pins}
        assert len(pins) >= 6 or names == imports(text) - set(sys.stdlib_module_names), path.name
        assert set(pins) <= requirements, path.name


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
    assert not others & imports(source)


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
