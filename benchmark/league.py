"""The league: every method on the 144 ordinal 2x2 games of ordinal_games.csv. Its runs are made by `run.py league`.

A method is a script with flags. Each of its runs ends with a leader's policy, of which two things are asked. Does it
guarantee the optimum of its class of commitments, against a follower that replies as well as it can and breaks ties
against the leader? And are the leader and the follower that the run ends with in equilibrium, the leader between the
pessimistic and the optimistic optimum of its class, the follower's regret at most 0.05? All values are mean payoffs per
step of 10 steps; a scale of 1, for payoffs from 0 to -3.
"""

import json
import sys
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd

sys.path.append(str(Path(__file__).resolve().parent))

import ordinal_games
from run import write_csv

ROOT = Path(__file__).resolve().parent.parent
TOLERANCE = 0.05 + 1e-6  # per step: what passes for the optimum


class Method(NamedTuple):
    """A line of the table."""

    name: str
    script: str
    flags: dict
    seeds: int  # runs of a game
    batch: str | None = None  # one run of the script trains all games side by side, and this flag says how many seeds
    commitment: str = "deterministic"  # the class of policies that the leader chooses from, or stochastic
    knows_payoffs: bool = False  # leader or follower is given payoffs; others learn from rewards that they were paid
    some_games: bool = False  # on SOME_GAMES only: a run takes a minute or more


GAMES = ordinal_games.batch.load_games(ordinal_games.batch.Args(games=("ordinal",)))
ROWS = [name for name in GAMES if "-" not in name]
# Two of each row and of each column of the board: the follower has the payoffs of the next game, or of the third
SOME_GAMES = [f"{ROWS[i]}-{ROWS[(i + k) % 12]}" for i in range(12) for k in (1, 3)]

# The paper's settings, as far as the batch has them: Table 4, with a baseline and a deck of leaders
PAPER = {"explore": ("action",), "learning_rate": (0.008,), "adam_eps": (0.02,), "risk_seeking": (0.0,)}
PAPER |= {"follower_learning_rate": (0.02,), "follower_baseline_rate": (0.2,)}
PAPER |= {"follower_gamma": (1.0,), "follower_ent_coef": (0.0,)}
# The same of PG and DQN, all of it (benchmark/README.md, "The authors' settings")
PAPER_FOLLOWER = {"follower_learning_rate": 0.02, "follower_baseline_rate": 0.0, "follower_gamma": 1.0}
PAPER_FOLLOWER |= {"follower_ent_coef": 0.0, "shuffled_leaders": False}
PAPER_PG = {"explore": "action", "adam_eps": 1e-8, "baseline": False, "norm_adv": False} | PAPER_FOLLOWER
PAPER_DQN = {"answers_only": False, "n_step": 1, "centre_rewards": False} | PAPER_FOLLOWER
# The authors' Q-learners start from 0, their leaders have Adam's usual epsilon
PAPER_Q = {"q_init": 0.0, "adam_eps": 1e-8}
ORDINAL, STOCHASTIC = {"games": ("ordinal",)}, {"commitment": "stochastic"}
# The best of league_tuning.csv
NO_REGRET = {"env_id": "ordinal", "rounds": (100,), "batch_episodes": 16}
DIFF_MD = ORDINAL | {"objective": "sum", "iterations": 600}

METHODS = [
    Method("hindsight, planning", "hindsight_follower", {}, 5),
    Method("hindsight, network", "hindsight_follower", {"follower": "network"}, 1, some_games=True),
    Method("mixed commitments, planning", "mixed_commitment_matrix", {}, 5, **STOCHASTIC),
    Method("PPO", "vectorized_ppo_matrix", ORDINAL, 5, "seeds"),
    Method("PPO, paper's settings", "vectorized_ppo_matrix", ORDINAL | PAPER, 5, "seeds"),
    Method("PG", "stackelberg_pg_matrix", {}, 5),
    Method("PG, paper's settings", "stackelberg_pg_matrix", PAPER_PG, 5),
    Method("DQN", "stackelberg_dqn_matrix", {}, 5),
    Method("DQN, paper's settings", "stackelberg_dqn_matrix", PAPER_DQN, 5),
    Method("PPO + Q-learning", "ppo_qlearning_matrix", {"adam_eps": 0.001, "learning_rate": 0.015}, 2),
    Method("PPO + Q-learning, paper's settings", "ppo_qlearning_matrix", PAPER_Q, 1),
    Method("ES-MD", "es_md_matrix", {"noise_std": 4.0}, 5),
    Method("no-regret follower", "no_regret_follower", NO_REGRET, 5, "num_seeds", knows_payoffs=True),
    Method("recurrent follower", "recurrent_follower_matrix", {}, 1, some_games=True),
    Method("Diff-MD", "diff_md_matrix", DIFF_MD, 5, "num_seeds", knows_payoffs=True, **STOCHASTIC),
]


def runs_of(method: Method, seeds: int | None = None, games: tuple[str, ...] = ()) -> list[tuple[str, dict]]:
    """Returns a method's runs, as scripts and flags; `seeds` and `games` instead of its own."""
    seeds = seeds or method.seeds
    if method.batch is None:
        names = games or (SOME_GAMES if method.some_games else GAMES)
        flags = [{"env_id": name, **method.flags, "seed": k} for name in names for k in range(1, 1 + seeds)]
    else:
        flags = [method.flags | {method.batch: seeds}]
        if games and "games" in method.flags:
            flags = [flags[0] | {"games": games}]
        elif games:
            flags = [flags[0] | {"env_id": name} for name in games]
    return [(method.script, run) for run in flags]


# ---------------------------------------------------------------------------------------------------- what a run found
OPTIMA = pd.read_csv(ROOT / "benchmark/results/ordinal_games.csv").set_index("env_id")
TIED = OPTIMA.index[OPTIMA["stackelberg_value"] > OPTIMA["stackelberg_value_pessimistic"] + ordinal_games.TIE]
TABLES = {ordinal_games.digits(table): k for k, table in enumerate(ordinal_games.batch.TABLES)}
RETURNS = ordinal_games.batch.solve(np.stack(list(GAMES.values())), num_steps=10)["returns"]
RETURNS = dict(zip(GAMES, RETURNS, strict=True))  # of a game: [player, leader's table, follower's table]


def guaranteed(env_id: str, policy: str) -> float:
    """Returns what a deterministic leader gets from an exact best response with ties against it."""
    leader, follower = RETURNS[env_id][:, TABLES[policy]]
    return leader[follower >= follower.max() - ordinal_games.TIE].min()


def landscape(env_id: str) -> dict:
    """Returns what makes a game hard, per step: the most that an exact best response guarantees a deterministic leader;
    how much of it is beyond one that always takes the same action; how many of the 32 tables attain it; and what the
    follower loses by its second best reply to the first of these."""
    worth, follower = np.array([guaranteed(env_id, policy) for policy in TABLES]), RETURNS[env_id][1]
    values = np.unique(follower[worth.argmax()].round(6))
    beyond = worth.max() - max(worth[TABLES["00000"]], worth[TABLES["11111"]])
    optimal = worth >= worth.max() - TOLERANCE
    policy = list(TABLES)[worth.argmax()]
    row = {"env_id": env_id, "optimum": worth.max(), "beyond_one_action": beyond, "tables": optimal.sum()}
    return row | {"leader_policy": policy, "second_reply_costs": values[-1] - values[-2]}


def exact_pair(row: pd.Series) -> pd.Series:
    """Returns the leader's return and the follower's regret of a pair of deterministic policies."""
    leader, follower = RETURNS[row["env_id"]][:, TABLES[row["leader_policy"]]]
    reply = TABLES[row["follower_policy"]]
    return pd.Series({"leader_return_greedy": leader[reply], "follower_regret": follower.max() - follower[reply]})


def digits(policy: str | list) -> str:
    """Returns a policy as one word: five digits, or probabilities with blanks between them."""
    if isinstance(policy, str):
        return policy
    whole = all(float(p).is_integer() for p in policy)
    return "".join(str(int(p)) for p in policy) if whole else " ".join(f"{p:.6f}" for p in policy)


REASONS = ["the follower errs", "rests on a tie", "gets what one action for all gets", "other"]
COLUMNS = ["env_id", "seed", "leader_policy", "leader_return", "leader_return_greedy", "leader_return_guaranteed"]
COLUMNS += ["follower_regret", "steps_to_converge", "steps_to_converge_exploring"]


def rows_of(method: Method, path: Path, cpu_seconds: float) -> pd.DataFrame:
    """Reads what a run wrote, a table or a result; returns a row for each leader that it trained."""
    if path.suffix == ".csv":
        rows = pd.read_csv(path, dtype={"leader_policy": str, "follower_policy": str})
    else:
        result = json.loads(path.read_text())
        rows = pd.DataFrame([result | run for run in result.get("runs", [result])])
        if "leader" in rows:  # beside leaders that keep to a table, one with a clock
            rows = rows[rows["leader"] == "invariant"]
    for column in rows.columns.intersection(["leader_policy", "follower_policy"]):
        rows[column] = rows[column].map(digits)
    if method.script == "hindsight_follower":  # its own numbers are of a discounted follower
        rows[["leader_return_greedy", "follower_regret"]] = rows.apply(exact_pair, axis=1)
    if method.script == "diff_md_matrix":  # what its leader plays is what it has learned
        rows["leader_return_greedy"] = rows["leader_return"]
    if method.commitment == "deterministic":
        rows["leader_return_guaranteed"] = list(map(guaranteed, rows["env_id"], rows["leader_policy"]))
    rows = rows.reindex(columns=COLUMNS)
    return judge(rows.assign(cpu_seconds=cpu_seconds / len(rows)), method).assign(method=method.name)


def judge(rows: pd.DataFrame, method: Method) -> pd.DataFrame:
    """Adds the optimum of the method's class, whether a leader guarantees it, and whether it and its follower are in
    equilibrium."""
    kinds = {"deterministic": ("_pessimistic", ""), "stochastic": ("_guaranteed", "_stochastic")}
    games, (least, most) = OPTIMA.loc[rows["env_id"]], kinds[method.commitment]
    low, high = (games[f"stackelberg_value{kind}"].to_numpy() for kind in (least, most))
    between = rows["leader_return_greedy"].between(low - TOLERANCE, high + TOLERANCE)
    return rows.assign(
        optimum=low,
        guarantees_optimum=(rows["leader_return_guaranteed"] >= low - TOLERANCE).astype(int),
        in_equilibrium=(between & (rows["follower_regret"] <= TOLERANCE)).astype(int),
    )


def shares(rows: pd.DataFrame) -> pd.DataFrame:
    """Returns a row for each method, in the order of METHODS: games, seeds, shares with the bootstrap's 95 % intervals,
    medians of the steps until the optimum is held (infinite: never), and CPU seconds of a run."""
    table = []
    for method in METHODS:
        some = rows[rows["method"] == method.name]
        if some.empty:
            continue
        untied = some[~some["env_id"].isin(TIED)]
        row = {"method": method.name, "games": some["env_id"].nunique(), "seeds": some["seed"].nunique()}
        row |= {"commitment": method.commitment, "knows_payoffs": method.knows_payoffs}
        for name, part in (("guarantees_optimum", untied), ("in_equilibrium", some)):
            row[name], (row[f"{name}_low"], row[f"{name}_high"]) = part[name].mean(), interval(part, name)
        for name in ("steps_to_converge", "steps_to_converge_exploring"):
            never = untied[name].fillna(np.inf)
            row[name] = np.nan if some[name].isna().all() else never.quantile(0.5, interpolation="higher")
        table.append(row | {"cpu_seconds": some["cpu_seconds"].mean()})
    return pd.DataFrame(table)


def why_not(rows: pd.DataFrame) -> pd.DataFrame:
    """Returns the rows of games that no tie decides, with what a leader that always takes one action is guaranteed
    there, and why the run's leader is not guaranteed the optimum of its class (REASONS; "" if it is)."""
    rows = rows[~rows["env_id"].isin(TIED)]
    one_action = rows["env_id"].map({name: max(guaranteed(name, p) for p in ("00000", "11111")) for name in GAMES})
    conditions = [
        rows["guarantees_optimum"] == 1,
        rows["follower_regret"] > TOLERANCE,
        (rows["leader_return_greedy"] >= rows["optimum"] - TOLERANCE) & (rows["follower_regret"] <= ordinal_games.TIE),
        (rows["leader_return_guaranteed"] - one_action).abs() <= TOLERANCE,
    ]
    why = np.select(conditions, ["", *REASONS[:3]], REASONS[3])
    return rows.assign(one_action=one_action, why_not=why)


def interval(rows: pd.DataFrame, column: str, resamples: int = 2000) -> tuple[float, float]:
    """Returns the bootstrap's 95 % interval of a column's mean: games are drawn, and in each as many runs as it has."""
    rng = np.random.default_rng(0)
    games = [values.to_numpy(float) for _, values in rows.groupby("env_id", sort=False)[column]]
    most = max(map(len, games))
    values = np.stack([np.resize(game, most) for game in games])
    drawn = values[rng.integers(len(games), size=(resamples, len(games)))]
    drawn = np.take_along_axis(drawn, rng.integers(most, size=drawn.shape), axis=2)
    return tuple(np.quantile(drawn.mean(axis=(1, 2)), (0.025, 0.975)))


def write(rows: pd.DataFrame, path: str) -> None:
    """Writes league.csv, in which the rows of methods that were not run now stay, and prints the table."""
    if Path(path).exists():
        others = pd.read_csv(path, dtype={"leader_policy": str})
        rows = pd.concat([rows, others[~others["method"].isin(rows["method"])]])
    order = [method.name for method in METHODS]
    rows = rows[rows["method"].isin(order)].sort_values("method", key=lambda c: c.map(order.index), kind="stable")
    write_csv(path, rows[["method", *(name for name in rows if name != "method")]])
    table = shares(rows).to_string(index=False, na_rep="-", float_format="{:.4g}".format)
    print(f"\nleague\n{table}\n  results  {path}", flush=True)
