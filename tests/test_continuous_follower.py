"""A follower that is reset or kept: the trap in closed form, the leaders, and what the script reports."""

import json

import numpy as np
import pytest

from ablations import continuous_follower as script


def train(reset, num_seeds=8, **flags):
    """Trains leaders without a run's files; returns their greedy actions and the followers' values."""
    rngs = [np.random.default_rng(seed) for seed in range(num_seeds)]
    *_, (_, _, actions, follower_q) = script.pg_leader(reset, rngs, script.Args(**flags))
    return actions, follower_q


def test_battle_of_the_sexes():
    assert script.GAME.outcomes().tolist() == [2.0, 1.0]  # the leader would rather lead to action 0
    assert script.GAME.leader_payoff.tolist() == [[2, 0], [0, 1]]
    assert script.GAME.follower_payoff.tolist() == [[1, 0], [0, 2]]


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
    actions, _ = train(reset=True, total_timesteps=55_000)
    assert (actions == 0).all()
    actions, follower_q = train(reset=False, total_timesteps=55_000)
    assert (actions == 1).mean() >= 0.75
    assert (follower_q.argmax(axis=1) == actions).all()  # they do coordinate: an equilibrium, of the wrong leader


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


@pytest.fixture
def run(tmp_path, capsys):
    def run(*flags):
        result = script.main(script.parse_args(["--run-dir", str(tmp_path / "runs"), *map(str, flags)]))
        return result, capsys.readouterr().out

    return run


def test_a_seed_does_not_depend_on_its_neighbours(run):
    together, _ = run("--total-timesteps", 1100, "--num-seeds", 3, "--seed", 5)
    alone, _ = run("--total-timesteps", 1100, "--num-seeds", 1, "--seed", 7)
    assert [r for r in together["runs"] if r["seed"] == 7] == alone["runs"]
    assert len({json.dumps(r["curve"]) for r in together["runs"]}) == 6


def test_result_and_words(run, tmp_path):
    result, printed = run("--num-seeds", 4, "--total-timesteps", 66_000, "--learning-rate", 0.015)
    assert "the leader leads a follower that is reset, and follows one that is kept" in printed
    assert "2 in 4, at most 1 in 0 of 4 seeds" in printed
    for r in result["runs"]:
        assert r["leader_return"] == pytest.approx(2 - r["leader_policy"][0], abs=0.01)
        assert r["leader_regret"] == r["stackelberg_value"] - r["leader_return"] and r["stackelberg_value"] == 2
        assert r["follower_regret"] == pytest.approx(0, abs=0.01)
        assert r["curve"][-1][0] == result["leader_steps"] == 66_000 and len(r["curve"]) == 50
        assert r["curve_greedy"][-1][1] == r["leader_return"]
    greedy = {
        arm: [v for r in result["runs"] if r["arm"] == arm for _, v in r["curve_greedy"]] for arm in ("reset", "kept")
    }
    assert min(greedy["reset"]) > 0.99  # a follower that starts from scratch finds its reply to either action
    assert min(greedy["kept"]) < 0.5  # one that does not is not convinced yet when the leader changes its mind
    (path,) = (tmp_path / "runs").iterdir()
    assert {p.name for p in path.iterdir()} == {"reset", "kept", "result.json"}
    assert json.loads((path / "result.json").read_text()) == result

    for r in result["runs"]:
        r["leader_return"] = 2.0  # as if the kept follower had been led, too
    assert "no clear contrast in this run" in script.summary(result)
    _, printed = run("--num-seeds", 2, "--total-timesteps", 1100, "--arm", "kept")
    assert "one arm alone shows no contrast" in printed and "reset" not in printed.split("\n")[3]


def test_wrong_input_is_one_line(tmp_path, capsys):
    with pytest.raises(SystemExit) as error:
        script.main(script.parse_args(["--run-dir", str(tmp_path / "runs"), "--total-timesteps", "100"]))
    message = capsys.readouterr().err
    assert error.value.code == 2 and "--total-timesteps 100 is less than one batch of 110 steps" in message
    assert message.count("\n") == 1 and not (tmp_path / "runs").exists()
