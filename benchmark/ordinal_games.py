"""The 144 strict ordinal 2x2 games and their exact solutions, one row each: benchmark/results/ordinal_games.csv.

    python benchmark/ordinal_games.py

The games are iterated for 10 steps, and a player is a deterministic policy that remembers the last pair of actions (32
tables): the action in the first step, then after 00, 01, 10 and 11, leader's action first. All values are mean payoffs
per step. `tests/test_ordinal_games.py` computes them again in another way.
"""

import sys
from pathlib import Path

import numpy as np
import pandas as pd

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "ablations")]

import vectorized_ppo_matrix as batch  # noqa: E402
from run import write_csv  # noqa: E402

CELLS = [f"{player}{a}{b}" for player in "lf" for a in "01" for b in "01"]
TIE = 1e-6  # what rounding leaves of one


def digits(table: np.ndarray) -> str:
    """Returns a table as five digits."""
    return "".join(map(str, table))


def solve(payoffs: np.ndarray, leader: np.ndarray, follower: np.ndarray) -> dict:
    """Returns a game's columns, from its payoffs [2, 2, 2] and from the returns [32, 32] of all pairs of tables."""
    replies = follower >= follower.max(axis=1, keepdims=True) - TIE  # of the follower, to each of the leader's tables
    optimistic, pessimistic = np.where(replies, leader, -np.inf).max(1), np.where(replies, leader, np.inf).min(1)
    equilibria = replies & (leader >= leader.max(axis=0, keepdims=True) - TIE)
    nash = {pair for pair in zip(leader[equilibria].round(9), follower[equilibria].round(9), strict=True)}
    best = int(optimistic.argmax())
    return {
        **dict(zip(CELLS, payoffs.ravel(), strict=True)),
        "stackelberg_value": optimistic.max(),
        "stackelberg_value_pessimistic": pessimistic.max(),
        "num_optimal_leaders": int((optimistic >= optimistic.max() - TIE).sum()),
        "leader_policy": digits(batch.TABLES[best]),
        "follower_policy": digits(batch.TABLES[np.where(replies[best], leader[best], -np.inf).argmax()]),
        "nash_value": max((value for value, _ in nash), default=np.nan),
        "nash_value_worst": min((value for value, _ in nash), default=np.nan),
        "nash_returns": "; ".join(f"{a:g} {b:g}" for a, b in sorted(nash, reverse=True)),
    }


def ordinal_games() -> pd.DataFrame:
    """Returns the table: a row for each game."""
    games = batch.load_games(batch.Args(games=("ordinal",)))
    returns = batch.solve(np.stack(list(games.values())), num_steps=10)["returns"]
    rows = [{"env_id": name} | solve(games[name], *pair) for name, pair in zip(games, returns, strict=True)]
    return pd.DataFrame(rows)


if __name__ == "__main__":
    write_csv(str(ROOT / "benchmark/results/ordinal_games.csv"), ordinal_games())
