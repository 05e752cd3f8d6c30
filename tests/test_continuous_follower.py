"""A follower that is reset or kept: the trap in closed form, the leaders, and what the script reports."""

import json
import re

import numpy as np
import pytest
import torch
from conftest import parse

from ablations import continuous_follower as script


def train(reset, num_seeds=8, probability=0.5, **flags):
    """Trains leaders, who begin by playing action 0 with a probability, without a run's files.

    Returns, after each batch, the leaders' probabilities of action 0, the followers' values, and the mean returns.
    """
    args, history = script.Args(**flags), []
    logits = torch.tensor([np.log(probability / (1 - probability)), 0.0], dtype=torch.float64)
    leaders, follower_q = torch.nn.Parameter(logits.repeat(num_seeds, 1)), np.zeros((num_seeds, 2))

    def log(step, scalars):
        policies = leaders.detach().softmax(1)[:, 0].numpy()
        history.append((policies, follower_q.copy(), scalars["charts/leader_return"]))

    rngs = [np.random.default_rng(seed) for seed in range(num_seeds)]
    script.train_leaders(leaders, follower_q, reset, args, rngs, log)
    return [np.array(x) for x in zip(*history, strict=True)]


def test_battle_of_the_sexes():
    assert script.GAME.outcomes().tolist() == [2.0, 1.0]  # the leader would rather lead to action 0
    assert script.GAME.leader_payoff.tolist() == [[2, 0], [0, 1]]
    assert script.GAME.follower_payoff.tolist() == [[1, 0], [0, 2]]
    assert script.GAME.outcomes().max() == script.GAME.leader_payoff.max()  # so no mixed commitment gets more


def test_one_episode_convinces_a_blank_follower_but_not_a_decided_one():
    """The trap, exactly: after learning that the leader plays 1, ten steps of 0 do not make the follower answer 0."""
    args = script.Args()
    decided = np.array([0.0, 1.5])
    for leader_action, value in ((0, 2.0), (1, 1.0)):
        _, leader_return, _ = script.expected_episode(script.GAME, leader_action, np.zeros(2), args)
        assert leader_return == pytest.approx(value, abs=0.01)
    returns = [script.expected_episode(script.GAME, leader_action, decided, args)[1] for leader_action in (0, 1)]
    assert returns[0] < 0.05 and returns[1] == pytest.approx(1)


@pytest.mark.parametrize("leader_action", [0, 1])
def test_expected_episode_is_the_mean_of_many(leader_action):
    args, n, rng = script.Args(), 40_000, np.random.default_rng(0)
    q = np.array([0.3, 0.5])
    values, action, while_learning = np.tile(q, (n, 1)), np.full(n, leader_action), np.zeros(n)
    for _ in range(args.follower_episodes):
        noise = args.follower_noise * rng.standard_normal((n, 2))
        reply = script.follower_learns(values, action, noise, script.GAME.follower_payoff, args.follower_step_size)
        while_learning += script.GAME.leader_payoff[action, reply]
    sample = script.GAME.leader_payoff[action, values.argmax(axis=1)]
    expected = script.expected_episode(script.GAME, leader_action, q, args)
    assert expected[0] == pytest.approx(while_learning.mean(), abs=4 * while_learning.std() / n**0.5)
    assert expected[1] == pytest.approx(sample.mean(), abs=4 * sample.std() / n**0.5 + 1e-9)


def test_leader_leads_a_reset_follower_and_follows_a_kept_one():
    policies, _, _ = train(reset=True, total_timesteps=55_000)
    assert (policies[-1] > 0.5).all()
    policies, follower_q, _ = train(reset=False, total_timesteps=55_000)
    assert (policies[-1] < 0.5).mean() >= 0.75
    # they do coordinate: an equilibrium, of the wrong leader
    assert (follower_q[-1].argmax(axis=1) == (policies[-1] < 0.5)).all()


def test_a_fast_leader_settles_on_what_a_kept_follower_happens_to_prefer_first():
    """At the learning rate of the authors' code; half of the followers prefer 0, and their leaders get 2."""
    policies, follower_q, _ = train(reset=False, num_seeds=60, learning_rate=0.156, total_timesteps=22_000)
    first, final = follower_q[0].argmax(axis=1), policies[-1] < 0.5
    assert 0.25 < first.mean() < 0.75 and 0.25 < final.mean() < 0.75
    assert (first == final).mean() >= 0.9
    policies, follower_q, _ = train(reset=True, num_seeds=60, learning_rate=0.156, total_timesteps=22_000)
    final = policies[-1] < 0.5
    assert 0 < final.mean() < 0.4 and (follower_q[0].argmax(axis=1) == final).mean() < 0.75


def test_a_kept_follower_comes_to_prefer_its_own_choice_while_the_leader_is_undecided():
    """Why a slow leader is caught: what the follower tried first keeps it for a while only."""
    _, follower_q, _ = train(reset=False, num_seeds=60, learning_rate=1e-12, total_timesteps=5500)
    prefers_0 = (follower_q.argmax(axis=2) == 0).mean(axis=1)
    assert prefers_0[0] > 0.25 and prefers_0[19] < 0.15 and prefers_0[49] < 0.05


def test_with_the_table_reset_the_return_has_two_peaks():
    """Why a fast leader can end at 1 even so: below P(action 0) = 0.4 the gradient leads to action 1."""
    flags = {"reset": True, "num_seeds": 60, "learning_rate": 1e-12, "total_timesteps": 2200}
    low, valley, even, high = (train(probability=p, **flags)[2].mean() for p in (0.1, 0.4, 0.5, 0.9))
    assert valley < even < low < high and valley == pytest.approx(0.65, abs=0.03)


@pytest.mark.parametrize("reset", [True, False])
def test_the_table_is_reset_or_kept(reset, monkeypatch):
    learns, starts = script.follower_learns, []

    def recording(q, *args):
        starts.append(q.copy())
        return learns(q, *args)

    monkeypatch.setattr(script, "follower_learns", recording)
    train(reset, total_timesteps=220)
    starts = np.reshape(starts, (20, 10, 8, 2))  # episodes, learning steps, seeds, actions
    assert (starts[0, 0] == 0).all() and (starts[:, 1:] != 0).any(axis=(1, 2, 3)).all()
    assert (starts[1:, 0] == 0).all() if reset else (starts[1:, 0] != 0).any(axis=(1, 2)).all()


def test_the_gradient_is_that_of_the_expected_return():
    """One huge batch of a reset follower: the loss's gradient against a difference of mean returns."""
    args = {"batch_size": 44_000, "total_timesteps": 44_000, "num_seeds": 4, "reset": True, "adam_eps": 1e6}
    policies, _, _ = train(probability=0.8, learning_rate=1e5, **args)  # a step of 0.1 times the gradient, about
    below, above = (train(probability=p, learning_rate=1e-9, **args)[2].mean() for p in (0.78, 0.82))
    slope = (above - below) / (np.log(0.82 / 0.18) - np.log(0.78 / 0.22))  # in the difference of the logits
    logits = np.log(policies[-1] / (1 - policies[-1])) - np.log(4)
    # REINFORCE averages over the 11 steps of an episode where the return's gradient sums; both logits move
    assert logits.mean() == pytest.approx(0.1 * 2 * slope / 11, rel=0.15)


@pytest.fixture
def run(tmp_path, capsys):
    def run(*flags):
        result = script.main(parse(script, "--run-dir", tmp_path / "runs", *flags))
        return result, capsys.readouterr().out

    return run


def test_a_seed_does_not_depend_on_its_neighbours(run):
    """Long enough for points of a curve that are means of several batches."""
    together, _ = run("--total-timesteps", 55_000, "--num-seeds", 3, "--seed", 5)
    alone, _ = run("--total-timesteps", 55_000, "--num-seeds", 1, "--seed", 7, "--arm", "kept")
    assert [r for r in together["runs"] if (r["seed"], r["arm"]) == (7, "kept")] == alone["runs"]
    assert len({json.dumps(r["curve"]) for r in together["runs"]}) == 6


def test_result_and_words(run, tmp_path):
    result, printed = run("--num-seeds", 4)
    assert "4 of 4 leaders at 2, 0 at the follower's choice, 1, or below" in printed
    assert "0 of 4 leaders at 2, 4 at the follower's choice, 1, or below" in printed
    for r in result["runs"]:
        assert r["leader_return_greedy"] == pytest.approx(2 - r["leader_policy"][0], abs=0.01)
        assert r["leader_regret"] == r["stackelberg_value"] - r["leader_return_greedy"] and r["stackelberg_value"] == 2
        assert r["follower_regret"] == pytest.approx(0, abs=0.01) and r["follower_policy"] == r["leader_policy"]
        steps, greedy, exploring = np.array(r["curve"]).T
        assert steps[-1] == result["leader_steps"] == 110_000 and len(steps) == 50
        assert greedy[-1] == r["leader_return_greedy"]
        assert r["leader_return"] == pytest.approx(exploring[-5:].mean()) and r["leader_return"] < greedy[-1]
        late = greedy[steps >= r["steps_to_converge"]] if r["steps_to_converge"] else greedy[-1:]
        assert (late > 1.95).all() == (r["arm"] == "reset")
        values = r["follower_values_when_settled"]
        if r["steps_to_settle"] is not None:
            assert 0 < r["steps_to_settle"] <= 110_000 and r["steps_to_settle"] % 110 == 0
            assert r["arm"] == "reset" or np.argmax(values) == r["leader_policy"][0]
    greedy = {arm: [p[1] for r in result["runs"] if r["arm"] == arm for p in r["curve"]] for arm in ("reset", "kept")}
    assert min(greedy["reset"]) > 0.99  # a follower that starts from scratch finds its reply to either action
    assert min(greedy["kept"]) < 0.5  # one that does not is not convinced yet when the leader changes its mind
    (path,) = (tmp_path / "runs").iterdir()
    assert {p.name for p in path.iterdir()} == {"reset", "kept", "result.json"}
    assert json.loads((path / "result.json").read_text()) == result


def test_one_arm_alone(run):
    result, printed = run("--num-seeds", 2, "--total-timesteps", 1100, "--arm", "kept")
    assert {r["arm"] for r in result["runs"]} == {"kept"} and "Q-table reset" not in printed


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (("--total-timesteps", 100), "--total-timesteps must hold a batch of 110 steps"),
        (("--follower-noise", 0), "--follower-noise must be positive, got 0"),
        (("--learning-rate", "nan"), "--learning-rate must be positive, got nan"),
        (("--arm", "both_"), "--arm"),
    ],
)
def test_wrong_flags(flags, words, capsys):
    with pytest.raises(SystemExit) as error:
        parse(script, *flags)
    assert error.value.code == 2 and words in " ".join(re.sub(r"[│\s]+", " ", capsys.readouterr().err).split())
