"""Two followers: the exact equilibria, both oracles, the leaders, and what the script reports."""

import functools
import itertools
import json
import math
import re

import numpy as np
import pytest
import torch
from conftest import parse

from ablations import two_followers_matrix as script

GAMES = script.Args().games


@functools.cache
def returns_of(name):
    return script.returns_of_tables(GAMES[name])


def play(payoffs, leader, first, second, num_steps=10):
    """All players' mean payoff, one step after the other."""
    total, observation = np.zeros(3), 0
    for _ in range(num_steps):
        actions = leader[observation], first[observation], second[observation]
        total += payoffs[:, *actions]
        observation = 1 + 3 * actions[0] + actions[1:].count(0)
    return total / num_steps


# ----------------------------------------------------------------------------------------------------------- the games
def test_regulators_and_firms():
    """One step: nothing keeps firms from polluting but an inspection with the high fine."""
    for fine, stays in ((0.8, False), (3.0, True)):
        payoffs = script.regulator(fine)
        assert payoffs[0].max() == payoffs[0, 0, 0, 0] == 0 and payoffs[0, 1, 0, 0] == pytest.approx(-0.6)
        np.testing.assert_allclose(payoffs[1], payoffs[2].transpose(0, 2, 1))
        pollutes = payoffs[1, :, 1] - payoffs[1, :, 0]  # [leader, the other firm]
        assert (pollutes[0] > 0).all() and (pollutes[1] < 0).all() == stays


def test_public_goods():
    good, volunteer = script.PAYOFFS["public_good"], script.PAYOFFS["volunteer"]
    np.testing.assert_allclose(good[1], good[2].transpose(0, 2, 1))
    contributes = good[1, :, 0] - good[1, :, 1]
    assert (contributes[0] > 0).all() and (contributes[1] < 0).all()  # matched, unmatched
    assert good[0, 1, 0, 0] == good[0].max()  # which the leader would rather not do
    unmatched = volunteer[:, 1]
    assert unmatched[1, 0, 0] > unmatched[1, 1, 0] and unmatched[1, 0, 1] < unmatched[1, 1, 1]  # with the second
    assert unmatched[2, 0, 0] < unmatched[2, 0, 1] and unmatched[2, 1, 0] > unmatched[2, 1, 1]  # without the first


# -------------------------------------------------------------------------------------------------- the exact solution
def test_returns_are_those_of_a_game_played_step_by_step():
    rng = np.random.default_rng(1)
    for name in ("regulator_low_fine", "volunteer"):
        for tables in rng.integers(len(script.TABLES), size=(30, 3)):
            expected = play(script.PAYOFFS[name], *script.TABLES[tables].tolist())
            found = [GAMES[name].payoff(player, returns_of(name)[player, *tables]) for player in range(3)]
            assert found == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("name", ["regulator_low_fine", "volunteer"])
def test_equilibria_are_those_of_the_definition(name):
    """For some leaders: pairs from which neither follower gains by any of its tables, by loops in plain Python."""
    leader_best, leader_worst = script.solve(returns_of(name))
    some = [0, 77, 127, *np.flatnonzero(np.isinf(leader_best))[:2]]
    for table in some:
        leader, first, second = returns_of(name)[:, table].astype(float).round(5)
        values = [
            leader[i, j]
            for i, j in itertools.product(range(128), repeat=2)
            if first[i, j] >= max(first[:, j]) and second[i, j] >= max(second[i])
        ]
        assert leader_best[table] == pytest.approx(max(values, default=-math.inf), abs=1e-4)
        assert leader_worst[table] == pytest.approx(min(values, default=math.inf), abs=1e-4)


def test_what_is_claimed_of_the_games():
    """The leader's value if it may choose among equilibria and if it gets the worst; leaders that leave none."""
    expected = {
        "regulator_low_fine": (-1.08, -2.55, 0),
        "regulator_high_fine": (0.0, -0.6, 0),
        "public_good": (2.0, 0.6, 0),
        "volunteer": (1.4, 1.4, 12),
    }
    for name, (optimum, certain, without) in expected.items():
        best, worst = script.solve(returns_of(name))
        exists = np.isfinite(best)
        assert GAMES[name].payoff(0, best.max()) == pytest.approx(optimum, abs=1e-4)
        assert GAMES[name].payoff(0, worst[exists].max()) == pytest.approx(certain, abs=1e-4)
        assert (~exists).sum() == np.isinf(worst).sum() == without and (best >= worst)[exists].all()


def test_regrets_are_gains_from_the_best_deviation():
    rng, returns = np.random.default_rng(2), returns_of("public_good")
    pairs = rng.integers(128, size=(2, 128))
    rewards, regrets = script.evaluate_pairs(returns, pairs)
    for table in (3, 50, 120):
        i, j = pairs[:, table]
        assert rewards[:, table] == pytest.approx(returns[:, table, i, j])
        gains = (
            max(returns[1, table, :, j]) - returns[1, table, i, j],
            max(returns[2, table, i]) - returns[2, table, i, j],
        )
        assert regrets[:, table] == pytest.approx(gains, abs=1e-6)


# ---------------------------------------------------------------------------------------------------------- the oracles
@pytest.fixture(scope="module")
def followers():
    """Self-play in two games, two runs each, in an eighth of the episodes: [games, follower, runs, 128]."""
    torch.manual_seed(1)
    names = "regulator_high_fine", "volunteer"
    args = script.Args(follower_episodes=16_000, num_seeds=2)
    rewards = np.stack([GAMES[name].reward[1:] for name in names], axis=1).repeat(2, axis=1)
    pairs = script.train_followers(torch.as_tensor(rewards, dtype=torch.float32), args)
    return {name: pairs[:, 2 * i : 2 * i + 2] for i, name in enumerate(names)}


def test_self_play_finds_an_equilibrium_for_almost_every_leader_with_the_high_fine(followers):
    for run in range(2):
        _, regrets = script.evaluate_pairs(returns_of("regulator_high_fine"), followers["regulator_high_fine"][:, run])
        assert (regrets <= script.TOLERANCE).all(axis=0).mean() >= 0.9
    random = np.random.default_rng(1).integers(128, size=(2, 128))
    _, regrets = script.evaluate_pairs(returns_of("regulator_high_fine"), random)
    assert (regrets <= script.TOLERANCE).all(axis=0).mean() < 0.2


def test_self_play_is_in_no_equilibrium_more_often_than_there_is_none_in_the_last_game(followers):
    for run in range(2):
        _, regrets = script.evaluate_pairs(returns_of("volunteer"), followers["volunteer"][:, run])
        assert 12 < (regrets > script.TOLERANCE).any(axis=0).sum() < 80


def test_no_regret_followers_are_multiplicative_weights():
    """One leader, by loops as the books write them."""
    returns, rounds = returns_of("volunteer"), 30
    rewards, regrets = script.no_regret_followers(returns, rounds)
    leader, first, second = (returns[:, 77].astype(float) + 1.5) / 3
    weights, step_size = np.ones((2, 128)), math.sqrt(8 * math.log(128) / rounds)
    mean, payoffs = np.zeros(3), np.zeros((2, 128))
    for _ in range(rounds):
        p, q = weights / weights.sum(axis=1, keepdims=True)
        mean += np.array([p @ leader @ q, p @ first @ q, p @ second @ q]) / rounds
        gains = np.stack([first @ q, p @ second])
        payoffs += gains / rounds
        weights *= np.exp(step_size * gains)
    assert (rewards[:, 77] + 1.5) / 3 == pytest.approx(mean, abs=1e-5)
    assert regrets[:, 77] / 3 == pytest.approx(payoffs.max(axis=1) - mean[1:], abs=1e-5)


@pytest.mark.parametrize("name", GAMES)
def test_no_regret_keeps_its_bound_for_every_leader(name):
    largest = []
    for rounds in (5, 40):
        _, regrets = script.no_regret_followers(returns_of(name), rounds)
        largest.append(regrets.max())
        assert 0 < largest[-1] <= 3 * math.sqrt(math.log(128) / (2 * rounds))
    assert largest[1] < 0.7 * largest[0]


# ----------------------------------------------------------------------------------------------------------- the leader
def test_leaders_find_the_best_of_their_tables():
    """Random look-ups, and one in which a single table is better than the others, which are all alike."""
    torch.manual_seed(1)
    returns = torch.rand(20, 128).sort(dim=1).values  # tables that share their first answers are alike
    returns[10:] = 0
    returns[10:, 77] = 1
    leaders = torch.nn.Parameter(0.01 * torch.randn(20, 7))
    tables, rewards = script.train_leaders(leaders, returns, script.Args())
    assert tables.shape == rewards.shape == (100, 20)
    best = returns.amax(dim=1).numpy()
    assert (returns.numpy()[range(20), tables[-1]] >= best - 0.05).sum() >= 19
    assert (rewards[-10:].mean(axis=0) >= best - 0.1).sum() >= 19


@pytest.fixture
def run(tmp_path, capsys):
    def run(*flags):
        result = script.main(parse(script, "--run-dir", tmp_path / "runs", *flags))
        return result, capsys.readouterr().out

    return run


def test_leaders_end_at_the_best_that_equilibria_allow(run):
    result, printed = run("--env-id", "regulator_high_fine", "--num-seeds", 2, "--follower-episodes", 24_000)
    runs = result["runs"]
    assert sum(one["is_stackelberg"] for one in runs) >= 1 and "of 2 runs end at a Stackelberg equilibrium" in printed
    assert [one["leader_return_greedy"] for one in runs] == pytest.approx([-0.6] * 2, abs=0.05)


def test_result_and_words(run, tmp_path):
    """What a run says of its tables is what the games' solution says; a game of one's own comes from a file."""
    rows = ["l,f1,f2,leader,follower1,follower2"]
    rows += [
        ",".join(map(str, (*triple, *(10 * script.PAYOFFS["volunteer"][:, *triple] + 3)))) for triple in script.TRIPLES
    ]
    (tmp_path / "mine.csv").write_text("\n".join(rows))
    flags = ("--payoff-file", tmp_path / "mine.csv", "--env-id", "mine", "--num-seeds", 2)
    result, printed = run(*flags, "--oracle", "no-regret", "--rounds", 20, "--num-episodes", 1280)
    assert "mine: 0 of 2 runs" in printed and re.search(r"tables without equilibrium +12\.00", printed)
    rewards, regrets = script.no_regret_followers(returns_of("volunteer"), 20)
    for one in result["runs"]:
        index = np.array(one["leader_policy"]) @ script.PLACES
        assert one["stackelberg_value"] == pytest.approx(17, abs=1e-3) and one["tables_in_equilibrium"] == 0
        expected = 10 * GAMES["volunteer"].payoff(0, rewards[0, index]) + 3
        assert one["leader_return_greedy"] == pytest.approx(expected, abs=1e-3)
        scale = 10 * GAMES["volunteer"].scale[1:]
        assert one["follower_regret"] == pytest.approx((scale * regrets[:, index]).max(), abs=1e-3)
        assert [step for step, *_ in one["curve"]] == [64 * (20 * 17 + 10) * batch for batch in range(1, 21)]
    (path,) = (tmp_path / "runs").iterdir()
    assert {p.name for p in path.iterdir()} == {"mine", "result.json"}
    assert json.loads((path / "result.json").read_text()) == json.loads(json.dumps(result))


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (("--env-id", "poker"), "choose from all, regulator_low_fine"),
        (("--rounds", 0), "--rounds must be positive, got 0"),
        (("--oracle", "oracle"), "--oracle"),
        (("--num-episodes", 63), "must hold a batch each"),
        (("--follower-episodes", 63), "must hold a batch each"),
        (("--payoff-file", "none.csv"), "--payoff-file 'none.csv' does not fit"),
        (("--payoff-file", "short.csv"), "not 0,0,0 to 1,1,1"),
        (("--payoff-file", "order.csv"), "not 0,0,0 to 1,1,1"),
        (("--payoff-file", "nan.csv"), "not 0,0,0 to 1,1,1"),
        (("--payoff-file", "words.csv"), "does not fit"),
    ],
)
def test_wrong_flags(flags, words, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    rows = [f"{a},{b},{c},1,2,3" for a, b, c in script.TRIPLES]
    files = {"short": rows[:7], "order": rows[::-1], "nan": [*rows[:7], "1,1,1,nan,2,3"], "words": [*rows[:7], "one"]}
    for name, lines in files.items():
        (tmp_path / f"{name}.csv").write_text("\n".join(["l,f1,f2,leader,follower1,follower2", *lines]))
    with pytest.raises(SystemExit) as error:
        parse(script, *flags)
    assert error.value.code == 2 and words in " ".join(re.sub(r"[│\s]+", " ", capsys.readouterr().err).split())
