"""The 144 strict ordinal 2x2 games and their solutions, one row each: benchmark/results/ordinal_games.csv.

    python benchmark/ordinal_games.py

The games are iterated for 10 steps, and a player is a policy that remembers the last pair of actions: the action in the
first step, then after 00, 01, 10 and 11, leader's action first. Followers are deterministic (32 tables), leaders are
deterministic, mixtures of these drawn before play, or stochastic in each observation. All values are mean payoffs per
step. `tests/test_ordinal_games.py` computes them again in another way.
"""

import os
import sys
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
import pandas as pd
from scipy.optimize import differential_evolution
from tqdm import tqdm

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "ablations")]

import mixed_commitment_matrix as mixed  # noqa: E402
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


def guaranteed(model: mixed.Model, leaders: np.ndarray) -> np.ndarray:
    """Returns what leaders, [n, 5] probabilities of action 1, get from an exact best response, ties against them."""
    both_players = mixed.returns(model, np.stack([1 - leaders, leaders], axis=-1))
    return mixed.worst_reply(*both_players, TIE)


def solve_mixed(payoffs: np.ndarray) -> dict:
    """Returns a game's columns of leaders that mix: those of `mixed_commitment_matrix.solve`, the leader with its reply
    that is guaranteed most, and what differential evolution, which knows nothing of the follower's tables, finds."""
    game = mixed.MatrixGame(payoffs, num_steps=10)
    optima, model = mixed.solve(game, starts=16), mixed.complete_model(game)
    policy = optima.leader[:, 1].round(9)
    settings = {"popsize": 30, "maxiter": 300, "tol": 1e-8, "seed": 0, "polish": False, "updating": "deferred"}
    found = differential_evolution(lambda x: -guaranteed(model, x.T), [(0, 1)] * 5, vectorized=True, **settings)
    return {
        "stackelberg_value_mixture": optima.mixture,
        "stackelberg_value_stochastic": optima.stochastic,
        "stackelberg_value_guaranteed": guaranteed(model, policy[None])[0],
        "stackelberg_value_bound": optima.bound,
        "guaranteed_by_search": -found.fun,
        "stochastic_policy": " ".join(f"{p:.9g}" for p in policy),
    }


def ordinal_games() -> pd.DataFrame:
    """Returns the columns of deterministic leaders: a row for each game."""
    games = batch.load_games(batch.Args(games=("ordinal",)))
    returns = batch.solve(np.stack(list(games.values())), num_steps=10)["returns"]
    rows = [{"env_id": name} | solve(games[name], *pair) for name, pair in zip(games, returns, strict=True)]
    return pd.DataFrame(rows)


def main() -> None:
    """Solves all games and writes the file; minutes, for leaders that mix."""
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    rows = ordinal_games()
    games = rows[CELLS].to_numpy(float).reshape(-1, 2, 2, 2)
    with ProcessPoolExecutor() as pool:
        columns = list(tqdm(pool.map(solve_mixed, games), total=len(games), disable=None))
    write_csv(str(ROOT / "benchmark/results/ordinal_games.csv"), rows.join(pd.DataFrame(columns)))


if __name__ == "__main__":
    main()
