"""PPO with a Q-learning follower inside every leader episode (ablations/ppo_qlearning_matrix.py)."""

import json

import numpy as np
import pytest
import torch
import tyro
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from ablations import ppo_qlearning_matrix as script

TIT_FOR_TAT, ALWAYS_DEFECT = [0, 0, 1, 0, 1], [1, 1, 1, 1, 1]  # leader tables: start, 00, 01, 10, 11
QUICK = ("--total-timesteps", 20_000, "--evaluation-followers", 2)

torch.set_num_threads(1)


def parse(*flags):
    return tyro.cli(script.Args, args=[*map(str, flags)])


def run(tmp_path, *flags):
    return script.main(parse("--run-dir", tmp_path / "runs", *flags))


def share_of_best_responses(leader, **flags):
    """How many of 200 followers that learned against this leader of the prisoner's dilemma get the most there is."""
    args = script.Args(**flags)
    _, _, rewards, _ = script.leader_episodes(np.tile(leader, (200, 1)), args, np.random.default_rng(0))
    follower_rewards = rewards[1].sum(axis=0) / args.num_steps
    best = script.solve(args.game)[2][script.table_index(np.array(leader))]
    assert (follower_rewards <= best + 1e-9).all()
    return (follower_rewards >= best - 1e-9).mean()


@pytest.mark.parametrize("leader", [TIT_FOR_TAT, ALWAYS_DEFECT])
def test_q_learning_finds_a_best_response(leader):
    assert share_of_best_responses(leader) >= 0.8
    assert share_of_best_responses(leader, follower_episodes=1, batch_size=50) <= 0.6  # it is the learning that does it


def test_q_learning_from_zero_stays_with_its_first_choice():
    """Why `--q-init` is not 0: the reply to tit-for-tat is then found by few."""
    assert share_of_best_responses(TIT_FOR_TAT, q_init=0.0) <= 0.4


def test_a_leader_episode_is_q_learning_as_in_the_textbook():
    """The same draws, one number at a time, in plain Python."""
    args = script.Args(follower_episodes=7, env_id="chicken", q_learning_rate=0.3, q_gamma=0.7, q_epsilon=0.4)
    leaders = np.random.default_rng(5).random((3, 5))
    observations, actions, rewards, tables = script.leader_episodes(leaders, args, np.random.default_rng(9))
    rng = np.random.default_rng(9)
    first = rng.normal(args.q_init, 1e-6, (3, 5, 2))
    draws = rng.random((80, 3, 3))
    for i, leader in enumerate(leaders):
        q, step = {(o, a): first[i, o, a] for o in range(5) for a in range(2)}, 0
        for episode in range(8):
            observation = 0
            for t in range(10):
                leads, explores, coin = draws[step, :, i]
                action = 1 if leads < leader[observation] else 0
                reply = 1 if q[observation, 1] > q[observation, 0] else 0
                if episode < 7 and explores < args.q_epsilon:
                    reply = 1 if coin < 0.5 else 0
                assert (observations[step, i], actions[step, i]) == (observation, action)
                following = 1 + 2 * action + reply
                reward = args.game.reward[:, action, reply]
                if episode < 7:
                    future = 0 if t == 9 else max(q[following, 0], q[following, 1])
                    target = reward[1] + args.q_gamma * future
                    q[observation, reply] += args.q_learning_rate * (target - q[observation, reply])
                    assert rewards[:, step, i].tolist() == [0, 0]
                else:
                    assert rewards[:, step, i] == pytest.approx(reward)
                observation, step = following, step + 1
        assert tables[i].tolist() == [int(q[o, 1] > q[o, 0]) for o in range(5)]


def test_evaluation_of_a_leader_that_settles_everything():
    """In deadlock, a leader that always plays 1 leaves the follower one good reply, which all of them learn."""
    args = script.Args(env_id="deadlock")
    rewards, tables = script.evaluate_leaders(args)
    index = script.table_index(np.array(ALWAYS_DEFECT))
    assert args.game.payoff(0, rewards[0, index]) == pytest.approx(-1)
    assert args.game.payoff(1, rewards[1, index]) == pytest.approx(-1)
    assert tables[index, [0, 4]].tolist() == [1, 1]


@pytest.mark.parametrize("name", script.PAYOFFS)
def test_best_responses_hold_the_optimum(name):
    game = script.Args(env_id=name).game
    rewards = script.best_response_rewards(game)
    assert rewards.max() == script.solve(game)[0]
    if name == "prisoners_dilemma":
        indices = script.table_index(np.array([TIT_FOR_TAT, ALWAYS_DEFECT, [1, 0, 1, 0, 1]]))
        assert game.payoff(0, rewards[indices]) == pytest.approx([-1, -2, -0.9])


def test_learns_the_optimum_counts_every_step_and_reports_both_measures(tmp_path, capsys):
    result = run(tmp_path, "--env-id", "prisoners_delight", "--seed", 2, "--total-timesteps", 300_000)
    assert result["stackelberg_value"] == -1 and abs(result["leader_regret"]) <= 0.05
    assert result["follower_regret"] <= 0.05 and result["steps_to_converge"] <= 300_000
    steps, greedy, exploring = zip(*result["curve"], strict=True)
    assert list(steps) == [8100 * i for i in range(1, 38)] and result["leader_steps"] == steps[-1]
    assert np.mean(exploring[:5]) < -1.4 and np.mean(exploring[-5:]) > -1.3
    assert result["leader_return_greedy"] == greedy[-1] == -1 - result["leader_regret"]
    assert result["leader_return"] == pytest.approx(np.mean(exploring[-4:]))  # the last tenth, not the greedy leader's
    assert result["leader_return"] < greedy[-1] and result["steps_to_converge_exploring"] is None
    assert "prisoners_delight: a Stackelberg equilibrium" in capsys.readouterr().out

    (folder,) = (tmp_path / "runs").iterdir()
    events = EventAccumulator(str(folder), size_guidance={"scalars": 0})
    events.Reload()
    for tag, values in (("leader_return", exploring), ("leader_return_greedy", greedy)):
        logged = events.Scalars(f"charts/{tag}")
        assert [event.step for event in logged] == list(steps)
        assert [event.value for event in logged] == pytest.approx(values, rel=1e-5)


def test_steps_to_converge():
    steps, gaps = np.arange(10, 60, 10), np.array([-1.0, -0.05, -0.2, 0.04, 0.0])
    assert script.steps_to_converge(steps, gaps) == 40
    assert script.steps_to_converge(steps, gaps / 4) == 20
    assert script.steps_to_converge(steps, gaps * 5) == 50
    assert script.steps_to_converge(steps, gaps - 1) is None


@pytest.mark.parametrize(("scale", "offset"), [(1e-9, 0.0), (1e3, 1e6)])
def test_the_scale_of_the_payoffs_changes_nothing(scale, offset, tmp_path):
    """What passes for equal is relative to the payoffs, and so are the rewards."""
    payoff = np.array(script.PAYOFFS["chicken"])
    own = ["--env-id", "own", "--leader-payoff", *(offset + scale * payoff.ravel())]
    own += ["--follower-payoff", *(offset + scale * payoff.T.ravel())]
    results = [run(tmp_path, *QUICK, "--total-timesteps", 60_000, *flags) for flags in (["--env-id", "chicken"], own)]
    for key in ("steps_to_converge", "steps_to_converge_exploring", "leader_policy", "follower_policy", "leader_steps"):
        assert results[0][key] == results[1][key], key
    for key in ("leader_return", "leader_return_greedy", "leader_return_exact", "stackelberg_value"):
        assert (results[1][key] - offset) / scale == pytest.approx(results[0][key], abs=1e-5), key


def test_saved_model_is_the_leader_of_the_result(tmp_path):
    result = run(tmp_path, *QUICK, "--save-model", "--env-id", "hero")
    (folder,) = (tmp_path / "runs").iterdir()
    model = torch.load(folder / "model.pt", weights_only=True)
    assert model["leader"]["actor.weight"].argmax(0).tolist() == result["leader_policy"]
    assert json.loads((folder / "result.json").read_text()) == json.loads(json.dumps(result))
    again = run(tmp_path, *QUICK, "--save-model", "--env-id", "hero")
    for key in result.keys() - {"wall_seconds", "steps_per_second"}:
        assert again[key] == result[key], key


def test_a_diverged_run_ends_at_once_and_names_the_flag(tmp_path):
    with pytest.raises(SystemExit, match=r"lower --learning-rate"):
        run(tmp_path, *QUICK, "--learning-rate", 1e30)
    assert list(tmp_path.rglob("events.out*")) and not list(tmp_path.rglob("result.json*"))


@pytest.mark.parametrize(
    "flags",
    [
        ("--q-epsilon", "1.5"),
        ("--q-gamma", "-0.1"),
        ("--q-learning-rate", "0"),
        ("--q-init", "nan"),
        ("--follower-episodes", "0"),
        ("--total-timesteps", "8000"),
        ("--batch-size", "810"),
    ],
)
def test_wrong_flags_are_named_and_nothing_is_written(flags, tmp_path, capsys):
    with pytest.raises(SystemExit) as error:
        run(tmp_path, *flags)
    assert error.value.code == 2 and not list(tmp_path.iterdir())
    assert flags[0] in capsys.readouterr().err
