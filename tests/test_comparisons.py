"""What all scripts beside the Meta-RL ones promise: the theorem, the ablations and the two baselines.

Their own tests have their names, and test_matrix_cli.py has what they share with the Meta-RL scripts: wrong input,
--help, W&B and metadata. Here is the rest of a run's files, and the blocks that are copies of each other.
"""

import difflib
import importlib
import json
import re
from pathlib import Path

import numpy as np
import pytest
from conftest import MATRIX_SCRIPTS, QUICK, parse
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from test_shared_blocks import blocks_of, change_one_character


@pytest.fixture(params=QUICK)
def script(request):
    return importlib.import_module(request.param)


@pytest.fixture
def run(script, tmp_path, capsys):
    """Runs the script for a second or two; returns its result and what it printed."""

    def run(*flags):
        result = script.main(parse(script, *QUICK[script.__name__], "--run-dir", tmp_path / "runs", *flags))
        return result, capsys.readouterr().out

    return run


TIMES = {"wall_seconds", "cpu_seconds", "steps_per_second"}


def curves_of(folder):
    """The scalars of all event files below a folder: tag -> [(step, value), ...], as often as there are files."""
    for path in {path.parent for path in folder.rglob("*tfevents*")}:
        events = EventAccumulator(str(path), size_guidance={"scalars": 0, "tensors": 0})
        events.Reload()
        yield {tag: [(e.step, e.value) for e in events.Scalars(tag)] for tag in events.Tags()["scalars"]}, events


def test_a_run_writes_its_folder_and_nothing_else_and_can_be_repeated(script, run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    result, printed = run("--seed", 7)
    (folder,) = tmp_path.glob("runs/*")
    assert re.fullmatch(rf"{result['env_id']}__{script.__name__}__7__\d+", folder.name)
    assert [path.name for path in tmp_path.iterdir()] == ["runs"]
    files = [path for path in folder.rglob("*") if path.is_file()]
    assert {path.name.split(".tfevents")[0] for path in files} == {"events.out", "result.json"}
    assert json.loads((folder / "result.json").read_text()) == json.loads(json.dumps(result))
    assert str(folder / "result.json") in printed and f"tensorboard --logdir {tmp_path / 'runs'}" in printed
    assert result["script"] == f"{script.__name__}.py" and result["seed"] == 7
    assert set(result["args"]) == set(script.Args.__dataclass_fields__)
    assert result["wall_seconds"] > 0 and result["steps_per_second"] > 0

    again, _ = run("--seed", 7)
    differ = {key for key in result if result[key] != again[key]}
    assert len(list(tmp_path.glob("runs/*"))) == 2 and differ <= TIMES
    other, _ = run("--seed", 8)
    assert any(other[key] != result[key] for key in set(result) - {"seed", "args", *TIMES})


def test_curves_have_the_shared_tags_and_one_chart_of_returns(script, run, tmp_path):
    """The means of the runs of an arm, as they stand in result.json."""
    result, _ = run()
    shared = {f"charts/{name}" for name in ("leader_return", "leader_return_greedy", "leader_regret", "SPS")}
    shared |= {"charts/stackelberg_value", "charts/follower_return"}
    for curves, events in curves_of(tmp_path):
        assert set(curves) >= shared and all(tag.startswith(("charts/", "losses/")) for tag in curves)
        for tag, points in curves.items():
            steps = [step for step, _ in points]
            assert steps == sorted(set(steps)), tag
            assert np.isfinite([value for _, value in points]).all(), tag
        (layout,) = events.Tensors("custom_scalars__config__")
        for tag in ("leader_return", "leader_return_greedy", "stackelberg_value"):
            assert f"charts/{tag}".encode() in layout.tensor_proto.string_val[0]

    if script.__name__ != "theorem2_divergence":  # which has curves of arms
        points = [{tag: dict(curve) for tag, curve in curves.items()} for curves, _ in curves_of(tmp_path)]
        for one in result.get("runs", [result]):
            step, greedy, exploring = one["curve"][-1]
            ends = [(of["charts/leader_return_greedy"][step], of["charts/leader_return"][step]) for of in points]
            assert any(end == pytest.approx((greedy, exploring), abs=1e-6) for end in ends)


def test_runs_say_what_the_readers_of_results_need(script, run):
    """One name means one thing in every result.json: what is exploring, what is greedy, how much it fell short."""
    result, _ = run()
    assert result["args"]["seed"] == result["seed"] == 1
    for one in result.get("runs", [result]):
        found = {**result, **one}
        assert {"leader_return", "leader_return_greedy", "stackelberg_value", "leader_policy", "seed"} <= set(found)
        if script.__name__ == "theorem2_divergence":
            continue
        steps, greedy, exploring = np.array(one["curve"]).T
        assert greedy[-1] == one["leader_return_greedy"] and (np.diff(steps) > 0).all()
        assert one["leader_regret"] == pytest.approx(one["stackelberg_value"] - one["leader_return_greedy"])
        assert one["follower_regret"] > -1e-9
        assert {"steps_to_converge", "steps_to_converge_exploring"} <= set(one)
        if script.__name__ != "continuous_follower":  # whose points are means of several batches
            last_tenth = exploring[-int(np.ceil(len(steps) / 10)) :]
            assert one["leader_return"] == pytest.approx(last_tenth.mean())


@pytest.mark.parametrize("name", [name for name in QUICK if name != "theorem2_divergence"])
def test_steps_to_converge_is_the_first_step_of_the_last_stay(name):
    script, steps = importlib.import_module(name), np.array([10, 20, 30, 40])
    assert script.steps_to_converge(steps, np.array([0, 0.1, 0.05, -0.05])) == 30
    assert script.steps_to_converge(steps, np.array([0, 0, 0, 0.06])) is None
    assert script.steps_to_converge(steps, np.zeros(4)) == 10


def test_a_crash_in_the_middle_leaves_no_half_written_result(run, tmp_path, monkeypatch):
    def write_half(result, file):
        file.write("{")
        raise OSError("disk full")

    monkeypatch.setattr(json, "dump", write_half)
    with pytest.raises(OSError, match="disk full"):
        run()
    assert not list(tmp_path.glob("runs/*/result.json"))


# script, flags with which a learner diverges, and the flag that the last words name. A policy gradient's loss and that
# of evolution strategies are finite for all but absurd steps: their leaders saturate. Theorem 2's learners are bounded.
DIVERGING = [
    ("ppo_qlearning_matrix", ("--learning-rate", 1e30), "--learning-rate"),
    ("es_md_matrix", ("--learning-rate", 1e308), "--learning-rate"),
    ("hidden_queries", ("--leader", "dqn", "--learning-rate", 1e200), "--learning-rate"),
    ("hidden_queries", ("--leader", "pg", "--learning-rate", 1e308), "--learning-rate"),
    ("hidden_queries", ("--leader", "es", "--learning-rate", 1e308), "--learning-rate"),
    ("hidden_queries", ("--follower", "meta", "--follower-learning-rate", 1e308), "--follower-learning-rate"),
    ("noninvariant_leader", ("--learning-rates", 1e308), "--learning-rates"),
    ("noninvariant_leader", ("--follower", "meta", "--follower-learning-rate", 1e308), "--follower-learning-rate"),
    ("leader_reward_during_learning", ("--learning-rate", 1e200), "--learning-rate"),
    ("continuous_follower", ("--learning-rate", 1e308), "--learning-rate"),
    ("hindsight_follower", ("--follower", "network", "--follower-learning-rate", 1e30), "--follower-learning-rate"),
]


@pytest.mark.parametrize(("name", "flags", "lower"), DIVERGING, ids=[" ".join(map(str, x[:2])) for x in DIVERGING])
def test_a_diverged_run_says_what_to_lower_and_leaves_no_result(name, flags, lower, tmp_path):
    script = importlib.import_module(name)
    with pytest.raises(SystemExit, match=f"training diverged: lower {lower}$"):
        script.main(parse(script, *QUICK[name], "--run-dir", tmp_path, *flags))
    assert list(tmp_path.glob("*/**/events*")) and not list(tmp_path.glob("*/result.json*"))


PPO = MATRIX_SCRIPTS[0]
FIVE_OBSERVATIONS = (PPO, "ppo_qlearning_matrix", "es_md_matrix")
THREE_OBSERVATIONS = ("theorem2_divergence", "noninvariant_leader", "hidden_queries")
META_FOLLOWER = ("noninvariant_leader", "hidden_queries")  # the paper's: Table 4, no discount, no entropy bonus
LEARNING_FOLLOWER = ("leader_reward_during_learning", "continuous_follower")
SIDE_BY_SIDE = (*META_FOLLOWER, *LEARNING_FOLLOWER)
BATCHES = ("no_regret_follower", "two_followers_matrix", "recurrent_follower_matrix")
NO_ACTIONS = ("hindsight_follower", "mixed_commitment_matrix")  # of any number
NOT_QUICK = ("exact_stackelberg", "diff_md_matrix")  # their runs have no result.json
# Blocks, and the scripts that have them in the same words.
SAME_SOURCE = [
    ("Args.exp_name Args.track Args.wandb_project_name Args.wandb_entity", (PPO, *QUICK, "diff_md_matrix")),
    ("Args.seed", (PPO, *QUICK)),
    ("__main__", (PPO, *QUICK, *NOT_QUICK)),
    ("Args.run_dir", (PPO, *QUICK, "diff_md_matrix")),
    ("NUM_ACTIONS", (PPO, *(name for name in QUICK if name not in NO_ACTIONS), "diff_md_matrix")),
    ("Args.env_id solve start_run", FIVE_OBSERVATIONS),
    ("Args.leader_payoff Args.follower_payoff PAYOFFS", (*FIVE_OBSERVATIONS, "no_regret_follower", BATCHES[-1])),
    ("NUM_OBSERVATIONS START MatrixGame Args.env_id", (PPO, BATCHES[-1])),
    ("NUM_OBSERVATIONS START MatrixGame table_index play", (*FIVE_OBSERVATIONS, "no_regret_follower")),
    ("PAYOFFS", (PPO, "noninvariant_leader", "hindsight_follower", *NOT_QUICK)),
    ("start_run", (PPO, "hindsight_follower")),
    ("start_run PAYOFFS", (PPO, "mixed_commitment_matrix")),
    ("Args.leader_payoff Args.follower_payoff Args.leader_actions", ("hindsight_follower", "mixed_commitment_matrix")),
    ("payoffs_of", ("exact_stackelberg", "hindsight_follower")),
    ("NUM_OBSERVATIONS START", (PPO, "diff_md_matrix")),
    ("Leader Args.update_epochs Args.clip_coef", FIVE_OBSERVATIONS[:2]),
    ("Args.adam_eps", ("ppo_qlearning_matrix", "continuous_follower")),  # which draw every action afresh
    ("NUM_OBSERVATIONS START TABLES table_index", THREE_OBSERVATIONS),
    ("REPLIES MemoryGame", THREE_OBSERVATIONS[:2]),
    ("ENV_ID LEADER_PAYOFF FOLLOWER_PAYOFF", (THREE_OBSERVATIONS[0], THREE_OBSERVATIONS[2])),
    ("start_run start_writer", (THREE_OBSERVATIONS[0], *SIDE_BY_SIDE, *BATCHES)),
    ("draw descend", SIDE_BY_SIDE),
    ("steps_to_converge", (*FIVE_OBSERVATIONS, *SIDE_BY_SIDE, *BATCHES, *NO_ACTIONS)),
    ("TOLERANCE", (PPO, *BATCHES, *NO_ACTIONS)),
    ("Args.num_steps Args.follower Args.follower_timesteps Args.follower_learning_rate", META_FOLLOWER),
    ("imports TOLERANCE train_follower", META_FOLLOWER),
    ("Args.follower_episodes Args.follower_noise Game follower_learns expected_episode", LEARNING_FOLLOWER),
]
# (script, block): what the first script has there and what this one has instead
DIFFERENCES = {
    ("noninvariant_leader", "start_run"): [("{ENV_ID}__", "{args.env_id}__")],
    ("no_regret_follower", "start_run"): [("{ENV_ID}__", "{args.env_id}__")],
    ("two_followers_matrix", "start_run"): [("{ENV_ID}__", "{args.env_id}__")],
    ("recurrent_follower_matrix", "start_run"): [("{ENV_ID}__", "{args.env_id}__")],
    ("hidden_queries", "train_follower"): [
        (
            """\
        leaders = np.tile(TABLES[context_index], 2)  # these answer as they play
        episodes = play_episodes(args.game, leaders, policies, follower_uniforms=uniforms)
""",
            """\
        episodes = play_episodes(TABLES[context_index], policies, args.num_steps, follower_uniforms=uniforms)
""",
        ),
        ("args.batch_steps", "args.follower_batch"),
    ],
}


def read_sources():
    """Without the rulers between the parts of a script, which may stand elsewhere."""
    texts = {script: Path(importlib.util.find_spec(script).origin).read_text() for script in (PPO, *QUICK, *NOT_QUICK)}
    return {script: re.sub(r"^# -{20,} .*\n", "", text, flags=re.MULTILINE) for script, text in texts.items()}


def drift(sources):
    """Compares the blocks of SAME_SOURCE with those of the first script that has them; returns the lines that differ,
    by script and block."""
    blocks = {
        script: {name: text.lstrip("\n") for name, text in blocks_of(source).items()}
        for script, source in sources.items()
    }
    differences = {}
    for names, (first, *others) in SAME_SOURCE:
        for script in others:
            for block in names.split():
                expected, found = blocks[first][block], blocks[script].get(block, "")
                for old, new in DIFFERENCES.get((script, block), ()):
                    assert expected.count(old) == 1, f"{block} of {first}.py lacks what DIFFERENCES replaces: {old}"
                    expected = expected.replace(old, new)
                if found != expected:
                    texts = expected.splitlines(keepends=True), found.splitlines(keepends=True)
                    lines = difflib.unified_diff(*texts, f"{block} in {first}.py", f"{block} in {script}.py")
                    differences[script, block] = "".join(lines)
    return differences


def test_blocks_that_are_said_to_be_the_same_are():
    differences = drift(read_sources())
    assert not differences, "\n" + "\n".join(differences.values())


@pytest.mark.filterwarnings("ignore::SyntaxWarning")  # of the changed source
@pytest.mark.parametrize("script", QUICK)
def test_one_changed_character_is_found(script):
    sources = read_sources()
    copied = [block for names, scripts in SAME_SOURCE for block in names.split() if script in scripts[1:]]
    assert len(copied) >= 8
    for block in copied:
        difference = drift({**sources, script: change_one_character(sources[script], block)})[script, block]
        assert f"+++ {block} in {script}.py" in difference and re.search(r"^-.*\n(-.*\n)*\+", difference, re.MULTILINE)
