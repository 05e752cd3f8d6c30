"""benchmark/results/ordinal_games.csv: all optima once more, by playing all pairs of tables in plain Python."""

import importlib
import itertools
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy.optimize import linprog
from scipy.sparse import csr_array

ROOT = Path(__file__).parent.parent
sys.path.append(str(ROOT / "benchmark"))  # at the end: `run` is a common name

import ordinal_games  # noqa: E402

GAMES = pd.read_csv(
    ROOT / "benchmark/results/ordinal_games.csv", dtype={"leader_policy": str, "follower_policy": str}
).set_index("env_id")
TABLES = ["".join(digits) for digits in itertools.product("01", repeat=5)]


def cells_played(leader, follower, num_steps=10):
    """Returns how often each pair of actions is played, from the rules of the game alone."""
    counts, last = dict.fromkeys(("00", "01", "10", "11"), 0), None
    for _ in range(num_steps):
        place = 0 if last is None else 1 + int(last, 2)
        last = leader[place] + follower[place]
        counts[last] += 1
    return counts


COUNTS = {pair: cells_played(*pair) for pair in itertools.product(TABLES, TABLES)}


@pytest.fixture(scope="module", params=range(12), ids=lambda row: GAMES.index[13 * row])
def solved(request):
    """The twelve games of a row of the board: name -> returns of all pairs of tables, in tenths, which are whole."""
    games = GAMES.iloc[12 * request.param : 12 * request.param + 12]
    cells = ("00", "01", "10", "11")

    def returns(game, player, counts):
        return sum(counts[cell] * int(game[player + cell]) for cell in cells)

    return {
        name: {pair: (returns(game, "l", counts), returns(game, "f", counts)) for pair, counts in COUNTS.items()}
        for name, game in games.iterrows()
    }


def test_the_games_are_all_144():
    """Strict, and no two are the same game with actions renamed."""
    forms = set()
    for _, game in GAMES[ordinal_games.CELLS].iterrows():
        leader, follower = tuple(game.iloc[:4]), tuple(game.iloc[4:])
        assert sorted(leader) == sorted(follower) == [-3, -2, -1, 0]
        swaps = ((0, 1, 2, 3), (2, 3, 0, 1), (1, 0, 3, 2), (3, 2, 1, 0))
        forms.add(min(tuple(payoffs[i] for payoffs in (leader, follower) for i in swap) for swap in swaps))
    assert len(forms) == len(GAMES) == 144


def test_optima_and_policies(solved):
    for name, returns in solved.items():
        game, of_leader = GAMES.loc[name], {}
        for leader in TABLES:
            best = max(returns[leader, follower][1] for follower in TABLES)
            replies = [follower for follower in TABLES if returns[leader, follower][1] == best]
            got = [returns[leader, follower][0] for follower in replies]
            of_leader[leader] = max(got), min(got), replies
        optimum = max(value for value, _, _ in of_leader.values())
        assert game["stackelberg_value"] == pytest.approx(optimum / 10)
        worst = max(value for _, value, _ in of_leader.values())
        assert game["stackelberg_value_pessimistic"] == pytest.approx(worst / 10)
        assert game["num_optimal_leaders"] == sum(value == optimum for value, _, _ in of_leader.values())
        pair = game["leader_policy"], game["follower_policy"]
        assert returns[pair][0] == optimum and pair[1] in of_leader[pair[0]][2]


def test_equilibria_without_commitment(solved):
    for name, returns in solved.items():
        best_leader = {follower: max(returns[leader, follower][0] for leader in TABLES) for follower in TABLES}
        best_follower = {leader: max(returns[leader, follower][1] for follower in TABLES) for leader in TABLES}
        nash = {
            values
            for (leader, follower), values in returns.items()
            if values == (best_leader[follower], best_follower[leader])
        }
        found = GAMES.loc[name]
        listed = [] if pd.isna(found["nash_returns"]) else found["nash_returns"].split("; ")
        assert {tuple(round(10 * float(x)) for x in pair.split()) for pair in listed} == nash
        if nash:
            assert found["nash_value"] == pytest.approx(max(nash)[0] / 10)
            assert found["nash_value_worst"] == pytest.approx(min(nash)[0] / 10)
        else:
            assert pd.isna(found["nash_value"]) and pd.isna(found["nash_value_worst"])


SCRIPTS = "stackelberg_ppo_matrix stackelberg_pg_matrix stackelberg_dqn_matrix es_md_matrix"
SCRIPTS += (
    " ppo_qlearning_matrix recurrent_follower_matrix no_regret_follower hindsight_follower mixed_commitment_matrix"
)


@pytest.mark.parametrize("name", SCRIPTS.split())
def test_every_script_takes_the_games_by_name(name):
    script = importlib.import_module(name)
    for env_id in ("battle", "assurance-battle"):
        args = script.Args(env_id=env_id)
        if hasattr(args, "payoffs"):
            payoffs = args.payoffs
        else:
            game = args.games[env_id] if hasattr(args, "games") else args.game
            payoffs = [game.payoff(player, game.reward[player]) for player in (0, 1)]
        np.testing.assert_allclose(np.ravel(payoffs), GAMES.loc[env_id, ordinal_games.CELLS].astype(float))
    for wrong in ("battle-chess", "battle-", "battle-hero-chicken"):
        with pytest.raises(ValueError, match="no game"):
            script.Args(env_id=wrong)


def test_the_exact_solver_and_the_board_of_the_no_regret_follower_have_them_too():
    exact, no_regret = map(importlib.import_module, ("exact_stackelberg", "no_regret_follower"))
    payoffs = exact.payoffs_of(exact.Args(env_id="assurance-battle"))
    assert payoffs.ravel().tolist() == GAMES.loc["assurance-battle", ordinal_games.CELLS].tolist()
    assert list(no_regret.Args(env_id="ordinal").games) == list(GAMES.index)


# ------------------------------------------------------------------------------------------------ leaders that mix
def both_returns(leader, reply, game):
    """Returns both players' expected payoffs per step, from the rules of the game: a leader's probabilities of action
    1 against a reply of five digits, as an expectation over what was played last."""
    chances, totals = {None: 1.0}, [0.0, 0.0]
    for _ in range(10):
        after = dict.fromkeys(("00", "01", "10", "11"), 0.0)
        for last, chance in chances.items():
            place = 0 if last is None else 1 + int(last, 2)
            for action, p in (("0", 1 - leader[place]), ("1", leader[place])):
                after[action + reply[place]] += chance * p
        chances = after
        for player, name in enumerate("lf"):
            totals[player] += sum(chance * game[name + cell] for cell, chance in chances.items()) / 10
    return totals


def test_the_policy_of_leaders_that_mix_guarantees_what_the_file_says():
    """The certificate of a lower bound: the policy, and the worst of the exact best replies to it."""
    for _, game in GAMES.iterrows():
        leader = [float(p) for p in game["stochastic_policy"].split()]
        got = [both_returns(leader, reply, game) for reply in TABLES]
        most = max(follower for _, follower in got)
        worst = min(value for value, follower in got if follower >= most - 1e-6)
        assert worst == pytest.approx(game["stackelberg_value_guaranteed"], abs=1e-5)


def test_another_search_finds_no_better_leader():
    """Differential evolution on the five probabilities, which knows nothing of the follower's tables."""
    gap = GAMES["guaranteed_by_search"] - GAMES["stackelberg_value_guaranteed"]
    assert gap.max() <= 0.005 and len(gap.dropna()) == 144


def test_no_optimum_exceeds_its_bound_and_the_classes_are_nested():
    value = {name: GAMES[f"stackelberg_value{name}"] for name in ("", "_pessimistic", "_mixture", "_stochastic")}
    guaranteed, bound = GAMES["stackelberg_value_guaranteed"], GAMES["stackelberg_value_bound"]
    assert (value["_pessimistic"] <= value[""] + 1e-9).all() and (value[""] <= value["_mixture"] + 1e-6).all()
    assert (value[""] <= value["_stochastic"] + 1e-9).all() and (value["_stochastic"] <= bound + 1e-5).all()
    assert (value["_pessimistic"] <= guaranteed + 1e-5).all() and (guaranteed <= value["_stochastic"] + 1e-5).all()


def test_mixtures_by_one_linear_programme():
    """Conitzer and Korzhyk (2011): of all distributions over pairs of tables in which the follower would not rather
    play another table than the one it is told, the leader's best is worth its best mixture drawn before play."""
    n, cells = len(TABLES), ("00", "01", "10", "11")
    counts = np.array([[pair[cell] for cell in cells] for pair in COUNTS.values()]).reshape(n, n, 4) / 10
    leader_table, told, instead = np.mgrid[:n, :n, :n].reshape(3, -1)
    for _, game in GAMES.iterrows():
        leader, follower = (counts @ [game[player + cell] for cell in cells] for player in "lf")
        gain = follower[leader_table, instead] - follower[leader_table, told]
        gains = csr_array((gain, (n * told + instead, n * leader_table + told)), shape=(n * n, n * n))
        solved = linprog(-leader.ravel(), gains, np.zeros(n * n), np.ones((1, n * n)), [1])
        assert -solved.fun == pytest.approx(game["stackelberg_value_mixture"], abs=1e-5)


def test_bounds_by_pricing_what_the_follower_gets():
    """The dual of the file's linear programmes, by backward induction: a leader, even one that remembers all, that has
    to leave the follower what that can be sure of gets no more than if it were paid a price for what it leaves it."""
    tables = np.array([[int(x) for x in table] for table in TABLES])
    payoffs = GAMES[ordinal_games.CELLS].to_numpy(float).reshape(-1, 2, 2, 2)

    def most(rewards):
        """Of ten steps with rewards [games, a, b], the most that a leader can have against each table: [games, 32]."""
        value = np.zeros((len(rewards), *tables.shape))
        for _ in range(10):
            after = [np.take_along_axis(value, (1 + 2 * a + tables)[None], axis=2) for a in (0, 1)]
            value = np.maximum(*(rewards[:, a][:, tables] + after[a] for a in (0, 1)))
        return value[:, :, 0]

    sure = -most(-payoffs[:, 1]).min(axis=1, keepdims=True)
    prices = np.concatenate([[0], np.geomspace(0.05, 500, 600)])
    bounds = [most(payoffs[:, 0] + price * payoffs[:, 1]) - price * sure for price in prices]
    bounds = np.min(bounds, axis=0).max(axis=1) / 10
    assert (bounds >= GAMES["stackelberg_value_bound"] - 1e-5).all()
    np.testing.assert_allclose(bounds, GAMES["stackelberg_value_bound"], atol=0.01)


def test_the_file_is_what_the_command_writes():
    again = ordinal_games.ordinal_games().set_index("env_id").replace("", None)
    pd.testing.assert_frame_equal(again, GAMES[again.columns], check_dtype=False, check_exact=False, rtol=1e-5)
