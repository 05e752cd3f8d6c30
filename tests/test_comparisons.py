"""What all scripts beside the Meta-RL ones promise: the theorem, the ablations and the two baselines.

Their own tests have their names; here is what they share with each other and with the main scripts.
"""

import dataclasses
import importlib
import json
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import MATRIX_SCRIPTS, QUICK
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from test_shared_blocks import blocks_of, change_one_character


@pytest.fixture(params=QUICK)
def script(request):
    return importlib.import_module(request.param)


@pytest.fixture
def run(script, tmp_path, capsys):
    """Runs the script for a second or two; returns its result and what it printed."""

    def run(*flags):
        flags = [*QUICK[script.__name__], "--run-dir", tmp_path / "runs", *flags]
        result = script.main(script.parse_args([*map(str, flags)]))
        return result, capsys.readouterr().out

    return run


def wrong_inputs(script, tmp_path):
    """Flags that are wrong in every script, and a word that the error line must hold."""
    (tmp_path / "file").write_text("no folder")
    yield ["--entropy", 1], "--entropy"
    yield ["stray"], "stray"
    yield ["--seed", "one"], "--seed"
    yield ["--seed", 2**64], "--seed"
    yield ["--exp-name", "../x"], "--exp-name"
    yield ["--run-dir", tmp_path / "file" / "runs"], "--run-dir"
    for field in dataclasses.fields(script.Args):
        flag, default = f"--{field.name.replace('_', '-')}", field.default
        if isinstance(default, float):
            yield [flag, "nan"], flag
        if isinstance(default, int | float) and not isinstance(default, bool):
            yield [flag, "word"], flag
            if field.name != "q_init":  # a value, not a size
                yield [flag, -1], flag


def test_wrong_input_ends_with_one_line_and_nothing_written(script, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    cases = list(wrong_inputs(script, tmp_path))
    assert len(cases) > 10
    for flags, word in cases:
        with pytest.raises(SystemExit) as error:
            script.main(script.parse_args([*map(str, flags)]))
        printed = capsys.readouterr()
        assert error.value.code == 2, flags
        assert printed.out == "" and printed.err.count("\n") == 1, (flags, printed)
        assert printed.err.startswith(f"{script.__name__}.py: error: ") and word in printed.err, (flags, printed.err)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_wrong_input_on_a_real_command_line(script, tmp_path):
    done = subprocess.run(
        [sys.executable, script.__file__, "--seed", "-1"], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 2 and done.stdout == "" and not list(tmp_path.iterdir())
    assert done.stderr == f"{script.__name__}.py: error: --seed must not be negative, got -1\n"


def test_tracking_without_wandb_says_what_to_install(script, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(SystemExit) as error:
        script.main(script.parse_args(["--track", "--run-dir", str(tmp_path / "runs")]))
    assert error.value.code == 2 and "pip install wandb" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_a_run_writes_its_folder_and_nothing_else_and_can_be_repeated(script, run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    result, printed = run("--seed", 7)
    (folder,) = tmp_path.glob("runs/*")
    assert folder.name.startswith(f"{result['env_id']}__{script.__name__}__7__")
    assert [path.name for path in tmp_path.iterdir()] == ["runs"]
    files = [path for path in folder.rglob("*") if path.is_file()]
    assert {path.name.split(".tfevents")[0] for path in files} == {"events.out", "result.json"}
    assert json.loads((folder / "result.json").read_text()) == json.loads(json.dumps(result))
    assert str(folder / "result.json") in printed and "tensorboard --logdir" in printed
    assert result["script"] == f"{script.__name__}.py" and result["seed"] == 7
    assert result["args"] == vars(script.Args(**result["args"]))
    assert result["wall_seconds"] > 0 and result["steps_per_second"] > 0

    tags = set()
    for path in {path.parent for path in files if "tfevents" in path.name}:
        events = EventAccumulator(str(path), size_guidance={"scalars": 0})
        events.Reload()
        tags |= set(events.Tags()["scalars"])
        for tag in events.Tags()["scalars"]:
            steps = [event.step for event in events.Scalars(tag)]
            assert steps == sorted(set(steps)), tag
    assert any(tag.startswith("charts/leader_return") for tag in tags)
    assert all(tag.startswith(("charts/", "losses/")) for tag in tags)

    again, _ = run("--seed", 7)
    assert len(list(tmp_path.glob("runs/*"))) == 2
    differ = {key for key in result if result[key] != again[key]}
    assert differ <= {"wall_seconds", "steps_per_second"}
    other, _ = run("--seed", 8)
    assert any(other[key] != result[key] for key in set(result) - {"seed", "args", "wall_seconds", "steps_per_second"})


def test_a_crash_in_the_middle_leaves_no_half_written_result(script, run, tmp_path, monkeypatch):
    def write_half(path, text, **kwargs):
        with open(path, "w") as file:
            file.write(text[:5])
        raise OSError("disk full")

    monkeypatch.setattr(Path, "write_text", write_half)
    with pytest.raises(OSError, match="disk full"):
        run()
    assert not list(tmp_path.rglob("result.json"))


PPO = MATRIX_SCRIPTS[0]
FIVE_OBSERVATIONS = (PPO, "ppo_qlearning_matrix", "es_md_matrix")
THREE_OBSERVATIONS = ("theorem2_divergence", "noninvariant_leader", "hidden_queries")
LEARNING_FOLLOWER = ("leader_reward_during_learning", "continuous_follower")
# Blocks, and the scripts that have them in the same words.
SAME_SOURCE = [
    ("fail parse_args write_atomically NUM_ACTIONS __main__", (PPO, *QUICK)),
    ("Args.exp_name Args.track Args.wandb_project_name Args.wandb_entity Args.run_dir", (PPO, *QUICK)),
    ("Args.leader_payoff Args.follower_payoff", FIVE_OBSERVATIONS),
    ("START OBSERVATIONS NUM_OBSERVATIONS MatrixGame TABLES table_index play solve PAYOFFS", FIVE_OBSERVATIONS),
    ("Leader layer_init", (PPO, "ppo_qlearning_matrix")),
    ("steps_to_stay", ("ppo_qlearning_matrix", "es_md_matrix")),
    ("PAYOFFS", (PPO, "noninvariant_leader")),
    ("NUM_OBSERVATIONS table_index", THREE_OBSERVATIONS),
    ("TABLES REPLIES MemoryGame", THREE_OBSERVATIONS[:2]),
    ("ENV_ID LEADER_PAYOFF FOLLOWER_PAYOFF", ("theorem2_divergence", "hidden_queries")),
    ("start_run draw", ("noninvariant_leader", "hidden_queries", *LEARNING_FOLLOWER)),
    ("check_flags Adam", ("hidden_queries", *LEARNING_FOLLOWER)),
    ("Game follower_learns expected_episode", LEARNING_FOLLOWER),
]


def read_sources():
    return {script: Path(importlib.util.find_spec(script).origin).read_text() for script in (PPO, *QUICK)}


def drift(sources):
    """Returns (script, block) wherever a block of SAME_SOURCE is missing or differs from the first script's."""
    blocks = {script: blocks_of(source) for script, source in sources.items()}
    pairs = [(scripts, block) for names, scripts in SAME_SOURCE for block in names.split()]
    return [
        (s, block) for scripts, block in pairs for s in scripts if blocks[s].get(block) != blocks[scripts[0]][block]
    ]


def test_blocks_that_are_said_to_be_the_same_are():
    assert drift(read_sources()) == []


@pytest.mark.filterwarnings("ignore::SyntaxWarning")  # of the changed source
@pytest.mark.parametrize("script", QUICK)
def test_one_changed_character_is_found(script):
    sources = read_sources()
    copied = [block for names, scripts in SAME_SOURCE for block in names.split() if script in scripts[1:]]
    assert len(copied) >= 10
    for block in copied:
        assert (script, block) in drift({**sources, script: change_one_character(sources[script], block)})
