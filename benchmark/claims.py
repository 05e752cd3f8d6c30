"""The numbers behind what the scripts say of optima, of invariance and of verification; writes them to results/.

    python benchmark/claims.py

- commitments.csv: the leader's optimum in each game of Table 3, by the class of its commitments and of the replies
- clock.csv: what it is worth to a follower to know how many steps are left, in 100 random games
- pomdp_values.csv: what a stochastic leader can get in the POMDP, where its answers and its play are drawn apart
- verification.csv: how often 50 further iterations find a wrong reply of a trained follower

All returns are payoffs per game step, 10 steps. It takes about three minutes of one core.
"""

import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from tqdm import tqdm

ROOT = Path(__file__).resolve().parent.parent
sys.path.append(str(ROOT))

from stackelberg_ppo_matrix import (  # noqa: E402
    NUM_ACTIONS,
    NUM_OBSERVATIONS,
    PAYOFFS,
    START,
    TABLES,
    Args,
    MatrixGame,
    play,
    pretrain_follower,
    solve,
    table_index,
    verify,
)

PAPER_FOLLOWER = {"follower_learning_rate": 0.02, "follower_baseline_rate": 0.2}  # with a baseline
PAPER_FOLLOWER |= {"follower_gamma": 1.0, "follower_ent_coef": 0.0}
TIES = 1e-6  # rewards within this are equally good to the follower


# -------------------------------------------------------------------------------------------------- stochastic leaders
def expected_rewards(game: MatrixGame, leaders: np.ndarray, tables: np.ndarray) -> np.ndarray:
    """Returns both players' exact expected reward per step, [2, n, m], for leaders [n, 5], probabilities of action 1,
    and follower tables [m, 5]."""
    n, m = len(leaders), len(tables)
    probability = np.zeros((n, m, NUM_OBSERVATIONS))
    probability[:, :, START] = 1
    total = np.zeros((2, n, m))
    for _ in range(game.num_steps):
        after = np.zeros_like(probability)
        for action in range(NUM_ACTIONS):
            acts = leaders if action == 1 else 1 - leaders
            weight = probability * acts[:, None, :]
            total += (weight * game.reward[:, action, tables][:, None]).sum(axis=-1)
            for reply in range(NUM_ACTIONS):
                after[:, :, 1 + NUM_ACTIONS * action + reply] += (weight * (tables == reply)).sum(axis=-1)
        probability = after
    return total / game.num_steps


def guaranteed_rewards(game: MatrixGame, leaders: np.ndarray) -> np.ndarray:
    """Returns what leaders [n, 5] get from an exact best response that breaks ties against them, [n]."""
    leader_rewards, follower_rewards = expected_rewards(game, leaders, TABLES)
    is_best = follower_rewards >= follower_rewards.max(axis=1, keepdims=True) - TIES
    return np.where(is_best, leader_rewards, np.inf).min(axis=1)


def search(value: Callable[[np.ndarray], np.ndarray], seed: int = 1) -> tuple[float, np.ndarray]:
    """Maximises value(leaders [n, 5]) -> [n] over stochastic memory-1 leaders, by evolution on their logits.

    Six restarts of 150 generations of 64 candidates, of which 8 are kept. A lower bound of the maximum. Returns the
    value and the leader.
    """
    rng = np.random.default_rng(seed)
    parents, step = rng.normal(0, 2, (6, 8, NUM_OBSERVATIONS)), 1.5  # [restart, kept, observation]
    for _ in range(150):
        children = parents.repeat(7, axis=1) + step * rng.standard_normal((6, 56, NUM_OBSERVATIONS))
        candidates = np.concatenate([parents, children], axis=1)
        leaders = 1 / (1 + np.exp(-candidates))
        values = value(leaders.reshape(-1, NUM_OBSERVATIONS)).reshape(6, -1)
        best = np.argsort(-values, axis=1)[:, :8, None]
        parents, step = np.take_along_axis(candidates, best, axis=1), 0.975 * step
    return values.max(), leaders[np.unravel_index(values.argmax(), values.shape)]


# -------------------------------------------------------------------------------------------- a follower with a clock
def clock_values(game: MatrixGame) -> tuple[np.ndarray, np.ndarray]:
    """Returns both players' rewards per step, [32] each, for every leader table against the best response that knows
    how many steps are left (backward induction, ties in the leader's favour)."""
    values = np.zeros((2, len(TABLES), NUM_OBSERVATIONS))  # of the steps to come: leader's, follower's
    rows, leader_action = np.arange(len(TABLES))[:, None], TABLES
    for _ in range(game.num_steps):
        after = [1 + NUM_ACTIONS * leader_action + reply for reply in range(NUM_ACTIONS)]
        options = [game.reward[:, leader_action, reply] + values[:, rows, after[reply]] for reply in range(NUM_ACTIONS)]
        (leader_0, follower_0), (leader_1, follower_1) = options
        tied = abs(follower_1 - follower_0) <= TIES
        takes_1 = np.where(tied, leader_1 > leader_0, follower_1 > follower_0)
        values = np.where(takes_1, options[1], options[0])
    return values[0, :, START] / game.num_steps, values[1, :, START] / game.num_steps


# ------------------------------------------------------------------------------------------------ the leader's POMDP
def pomdp_rewards(game: MatrixGame, leaders: np.ndarray, may_reply: np.ndarray) -> np.ndarray:
    """Returns the leader's exact expected reward in its POMDP, [n], for leaders [n, 5]: over all 32 answers, whatever
    they are, it plays as it would have without them.

    `may_reply`, [32, 32], says with which tables the follower may reply to the answers; of several it takes the one
    that this leader likes best.
    """
    answers = np.where(TABLES == 1, leaders[:, None], 1 - leaders[:, None]).prod(axis=-1)  # their probability, [n, 32]
    of_tables = expected_rewards(game, leaders, TABLES)[0]
    return (answers * np.where(may_reply, of_tables[:, None], -np.inf).max(axis=2)).sum(axis=1)


def best_replies(game: MatrixGame) -> np.ndarray:
    """Returns which tables are best replies to which leader table, [32, 32]. They are many: who answers with a table
    and plays it never meets some observations, in which the reply may be anything."""
    follower_rewards = expected_rewards(game, TABLES.astype(float), TABLES)[1]
    return follower_rewards >= follower_rewards.max(axis=1, keepdims=True) - TIES


# ------------------------------------------------------------------------------------------------------ verification
def verification_rows(env_id: str, seed: int) -> list[dict]:
    """Flips, one by one, each reply of a trained follower that its leader meets, with the confidence that it had, and
    verifies it; returns a row for each flip that costs the follower more than 0.01 per step."""
    args = Args(env_id=env_id, seed=seed, **PAPER_FOLLOWER)
    game, (_, _, best) = args.game, solve(args.game)
    follower = pretrain_follower(args)
    observations, _, _ = play(game, TABLES, follower.argmax(-1).numpy())
    rows = []
    for index in range(len(TABLES)):
        for observation in np.unique(observations[:, index]):
            flipped = torch.nn.Parameter(follower.detach().clone())
            flipped.data[index, observation] = follower.detach()[index, observation].flip(0)
            reward = play(game, TABLES[[index]], flipped[index].argmax(-1).numpy()[None])[2][1].mean()
            regret = best[index] - reward
            if regret > 0.01:
                torch.manual_seed(seed)
                row = {"env_id": env_id, "seed": seed, "leader": "".join(map(str, TABLES[index]))}
                confidence = follower.detach()[index, observation].softmax(-1).max().item()
                row |= {"observation": observation, "confidence": confidence, "follower_regret": regret}
                rows.append(row | {"verification_gain": verify(flipped, index, args)})
    return rows


# ----------------------------------------------------------------------------------------------------------- the tables
def commitments() -> pd.DataFrame:
    """The leader's optimum in each game, by class."""
    rows = []
    for env_id in tqdm(PAYOFFS, desc="commitments", disable=None):
        game = Args(env_id=env_id).game
        optimistic, pessimistic, _ = solve(game)
        stochastic, leader = search(lambda leaders, game=game: guaranteed_rewards(game, leaders))
        row = {"env_id": env_id, "deterministic": optimistic, "deterministic_pessimistic": pessimistic}
        row |= {"stochastic_guaranteed": stochastic, "deterministic_against_clock": clock_values(game)[0].max()}
        rows.append({key: x if key == "env_id" else game.payoff(0, x) for key, x in row.items()})
        rows[-1]["stochastic_leader"] = " ".join(f"{p:.9f}" for p in leader)  # on an edge
    return pd.DataFrame(rows)


def clock() -> pd.DataFrame:
    """What a clock is worth to the follower, and what it does to the optimum, as shares of the range of payoffs."""
    rows = []
    for game_number in range(100):
        game = MatrixGame(*np.random.default_rng(game_number).random((2, 2, 2)))
        optimistic, _, best = solve(game)
        leader_rewards, follower_rewards = clock_values(game)
        gains, change = (follower_rewards - best) / 3, (leader_rewards.max() - optimistic) / 3
        rows.append({"game": game_number, "leaders_that_let_it_gain": (gains > TIES).sum()})
        rows[-1] |= {"largest_gain": gains.max(), "change_of_optimum": change}
    return pd.DataFrame(rows)


def pomdp_values() -> pd.DataFrame:
    """What the POMDP is worth to a stochastic leader, beside the optimum of deterministic ones."""
    rows = []
    for env_id in tqdm(PAYOFFS, desc="pomdp_values", disable=None):
        args = Args(env_id=env_id, **PAPER_FOLLOWER)
        row = {"env_id": env_id, "deterministic": solve(args.game)[0]}
        trained = table_index(pretrain_follower(args).argmax(-1).numpy())
        may_reply = {
            "trained_follower": np.eye(len(TABLES), dtype=bool)[trained],
            "any_best_reply": best_replies(args.game),
        }
        for name, replies in may_reply.items():
            row[name], _ = search(lambda leaders, args=args, r=replies: pomdp_rewards(args.game, leaders, r))
        rows.append({key: x if key == "env_id" else args.game.payoff(0, x) for key, x in row.items()})
    return pd.DataFrame(rows)


def verification() -> pd.DataFrame:
    """Every flip of a reply that matters, followers of seeds 1 to 3."""
    pairs = [(env_id, seed) for env_id in PAYOFFS for seed in (1, 2, 3)]
    return pd.DataFrame(
        [row for pair in tqdm(pairs, desc="verification", disable=None) for row in verification_rows(*pair)]
    )


def main() -> None:
    """Makes the four tables and says what is in them."""
    torch.set_num_threads(1)
    tables = {table.__name__: table() for table in (commitments, clock, pomdp_values, verification)}
    for name, table in tables.items():
        table.to_csv(ROOT / f"benchmark/results/{name}.csv", index=False, float_format="%.4f", lineterminator="\n")
    print(tables["commitments"].round(2).to_string(index=False))
    gains = tables["clock"]["largest_gain"]
    some, changed = gains[gains > TIES], (tables["clock"]["change_of_optimum"].abs() > TIES).sum()
    print(
        f"\na clock pays in {len(some)} of {len(gains)} random games, by {some.mean():.1%} of the range of payoffs in"
    )
    print(f"the mean and {some.max():.1%} at most; the optimum changes in {changed}\n")
    print(tables["pomdp_values"].round(2).to_string(index=False))
    flips = tables["verification"]
    found = flips["verification_gain"] > 0.01
    mended = flips["verification_gain"] > flips["follower_regret"] - 0.01
    print(f"\nverification gains in {found.sum()} of {len(flips)} flipped replies, and mends {mended.sum()}")


if __name__ == "__main__":
    main()
