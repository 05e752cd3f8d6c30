"""benchmark/results/ordinal_games.csv: all optima once more, by playing all pairs of tables in plain Python."""

import importlib
import itertools
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

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


def test_the_file_is_what_the_command_writes():
    again = ordinal_games.ordinal_games().set_index("env_id").replace("", None)
    pd.testing.assert_frame_equal(again, GAMES[again.columns], check_dtype=False, check_exact=False, rtol=1e-5)
