"""Reward while the follower learns: the exact worth of an action, the leaders, and what the script reports."""

import json
import re

import numpy as np
import pytest
import torch
from conftest import parse

from ablations import leader_reward_during_learning as script

GAMES = [(2.0, 0.0), (2.0, -5.0), (1.5, 0.0), (1.5, -5.0)]


def train(given, game, num_seeds=6, **flags):
    """Trains leaders without a run's files; returns their greedy actions and all scalars, by steps."""
    args, logged = script.Args(num_seeds=num_seeds, **flags), {}
    rngs = [np.random.default_rng(seed) for seed in range(num_seeds)]
    leaders = torch.nn.Parameter(torch.as_tensor(0.01 * script.draw(rngs, "standard_normal", 2)))
    script.train_leaders(leaders, script.coordination_game(*game), given, args, rngs, logged.__setitem__)
    return leaders.argmax(-1).numpy(), logged


@pytest.mark.parametrize("q", [(0.0, 0.0), (0.3, -0.2)])
@pytest.mark.parametrize("leader_action", [0, 1])
def test_expected_episode_is_the_mean_of_many(leader_action, q):
    game, args, n = script.coordination_game(2.0, -5.0), script.Args(), 40_000
    expected = script.expected_episode(game, leader_action, np.array(q), args)
    values, action, rng = np.tile(q, (n, 1)), np.full(n, leader_action), np.random.default_rng(0)
    while_learning = np.zeros(n)
    for _ in range(args.follower_episodes):
        noise = args.follower_noise * rng.standard_normal((n, 2))
        reply = script.follower_learns(values, action, noise, game.follower_payoff, args.follower_step_size)
        while_learning += game.leader_payoff[action, reply]
    reply = values.argmax(axis=1)
    samples = while_learning, game.leader_payoff[action, reply], game.follower_payoff[action, reply]
    for exact, sample in zip(expected, samples, strict=True):
        assert exact == pytest.approx(sample.mean(), abs=4 * sample.std() / n**0.5 + 1e-9)


def test_follower_learns_from_its_own_action():
    q = np.array([[0.0, 0.0], [0.5, 0.4]])
    noise = np.array([[0.0, 0.1], [0.0, 0.0]])
    action = script.follower_learns(q, np.array([1, 0]), noise, np.array([[0.001, 0.0], [0.0, 2.0]]), 0.2)
    assert action.tolist() == [1, 0] and np.allclose(q, [[0.0, 0.4], [0.4002, 0.4]])


def test_the_stackelberg_value_is_what_the_leader_prefers():
    for a, p in GAMES:
        game = script.coordination_game(a, p)
        assert game.outcomes().tolist() == [a, 1.0]
        assert game.outcomes().max() == game.leader_payoff.max()  # so no commitment, mixed ones included, gets more


@pytest.mark.parametrize("game", GAMES)
def test_reward_after_learning_leads_to_the_equilibrium(game):
    actions, _ = train(False, game)
    assert (actions == 0).all()


@pytest.mark.parametrize("game", [(2.0, 0.0), (2.0, -5.0), (1.5, -5.0)])
def test_reward_during_learning_leads_to_what_an_episode_is_worth(game):
    """That is action 1 at p = -5, but action 0 for a = 2 and p = 0; the leader need not find out about small gaps."""
    worth = [
        sum(script.expected_episode(script.coordination_game(*game), a, np.zeros(2), script.Args())[:2]) for a in (0, 1)
    ]
    assert np.argmax(worth) == (0 if game == (2.0, 0.0) else 1)
    actions, _ = train(True, game)
    assert (actions == np.argmax(worth)).all()


def test_whole_episode_targets_are_the_rewards_given():
    """With n_step 0 the best value is the reward from a random step on: 2 if withheld, much more if given."""
    _, withheld = train(False, (2.0, 0.0), n_step=0)
    _, given = train(True, (2.0, 0.0), n_step=0)
    assert withheld[2200]["losses/q_values"] == pytest.approx(2, abs=0.1)
    assert given[2200]["losses/q_values"] == pytest.approx(2 + 10 / 2, abs=1)  # 1 in each of 0 to 10 steps before play


@pytest.mark.parametrize("epsilon", [0.0, 0.5])
def test_leader_acts_alike_throughout_an_episode_unless_told_otherwise(epsilon, monkeypatch):
    learns, seen = script.follower_learns, []

    def recording(q, action, *args):
        seen.append(action.copy())
        return learns(q, action, *args)

    monkeypatch.setattr(script, "follower_learns", recording)
    train(True, (2.0, 0.0), epsilon=epsilon, total_timesteps=330)
    actions = np.reshape(seen, (30, 10, 6))  # episodes, learning steps, seeds
    alike = (actions == actions[:, :1]).all(axis=1)
    assert alike.all() if epsilon == 0 else alike.mean() < 0.3
    assert len({tuple(a) for a in actions[:, 0].T}) == 6 and set(actions.flat) == {0, 1}


def test_learning_starts_after_so_many_steps():
    _, logged = train(True, (2.0, 0.0), num_seeds=1, total_timesteps=330)
    assert list(logged) == list(range(11, 331, 11))
    assert [step for step, scalars in logged.items() if "losses/td_loss" in scalars] == list(range(110, 331, 11))


@pytest.fixture
def run(tmp_path, capsys):
    def run(*flags):
        result = script.main(parse(script, "--run-dir", tmp_path / "runs", *flags))
        return result, capsys.readouterr().out

    return run


def test_a_seed_does_not_depend_on_its_neighbours(run):
    flags = ("--preferred-payoff", 2, "--mismatch-payoff", 0, "--reward", "given", "--total-timesteps", 660)
    together, _ = run(*flags, "--num-seeds", 3, "--seed", 5)
    alone, _ = run(*flags, "--num-seeds", 1, "--seed", 7)
    assert [r for r in together["runs"] if r["seed"] == 7] == alone["runs"]


def test_result_and_words(run, tmp_path):
    result, printed = run("--preferred-payoff", 2, "--mismatch-payoff", 0, -5, "--num-seeds", 3)
    assert "slow_coordination_a2_p0: the optimum of deterministic leaders is 2" in printed
    lines = re.findall(r"reward (withheld|given): (.*)", printed)
    assert [reward for reward, _ in lines] == ["withheld", "given"] * 2
    for (_, words), at_optimum in zip(lines, (3, 3, 3, 0), strict=True):
        assert f"; {at_optimum} of 3 leaders at the optimum" in words
    worth = "action 0, played throughout an episode, is worth 10.02 while the follower learns and 2.00 in play, 12.02"
    assert f"{worth} in all" in printed
    assert [g["env_id"] for g in result["games"]] == ["slow_coordination_a2_p0", "slow_coordination_a2_p-5"]
    assert [g["scale"] for g in result["games"]] == pytest.approx([2 / 3, 7 / 3])
    for r in result["runs"]:
        expected = 0.994 if r["arm"] == "a2_p-5_given" else 2.0
        assert r["leader_return_greedy"] == pytest.approx(expected, abs=1e-3)
        assert r["leader_policy"] == r["follower_policy"] == [int(expected < 1)]
        assert r["leader_regret"] == r["stackelberg_value"] - r["leader_return_greedy"] and r["stackelberg_value"] == 2
        assert 0 <= r["follower_regret"] < 0.003 and (r["share_at_value"] > 0.5) == (expected == 2)
        steps, greedy, exploring = np.array(r["curve"]).T
        assert steps[-1] == 2200 and len(steps) == 200 and greedy[-1] == r["leader_return_greedy"]
        assert r["leader_return"] == pytest.approx(exploring[-20:].mean()) and set(exploring) <= {2, 0, -5, 1}
        if expected == 2:
            assert abs(greedy[steps >= r["steps_to_converge"]] - 2).max() < 0.01 and r["steps_to_converge"] <= 1500
        else:
            assert r["steps_to_converge"] is None
    (path,) = (tmp_path / "runs").iterdir()
    assert {p.name for p in path.iterdir()} == {*(r["arm"] for r in result["runs"]), "result.json"}
    assert json.loads((path / "result.json").read_text()) == json.loads(json.dumps(result))  # tuples are lists


def test_one_reward_alone(run):
    result, printed = run("--reward", "given", "--num-seeds", 1, "--total-timesteps", 330)
    assert {r["reward"] for r in result["runs"]} == {"given"} and len(result["runs"]) == 4
    assert "reward withheld" not in printed


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (("--epsilon", 1.5), "--epsilon must be at most 1"),
        (("--mismatch-payoff", "nan"), "--preferred-payoff and --mismatch-payoff must be finite numbers"),
        (("--total-timesteps", 10), "--total-timesteps must hold an episode of 11 steps and --learning-starts"),
        (("--total-timesteps", 66), "--total-timesteps must hold an episode of 11 steps and --learning-starts"),
        (("--follower-noise", 0), "--follower-noise must be positive"),
    ],
)
def test_wrong_flags(flags, words, capsys):
    with pytest.raises(SystemExit) as error:
        parse(script, *flags)
    assert error.value.code == 2 and words in " ".join(re.sub(r"[│\s]+", " ", capsys.readouterr().err).split())
