"""Trains batches of runs, mostly with ablations/vectorized_ppo_matrix.py, and writes what `plot_batch.py` draws.

    python benchmark/batch.py misses && python benchmark/plot_batch.py misses

A figure's CSV in benchmark/results, vectorized_NAME.csv, holds shares of runs. Published numbers are of random games
5,000 to 5,999; all settings were chosen on games 0 to 999 and the paper's 12. Scripts that train their own figure as
one batch are here, too: NAME.csv has a row for each of their runs.
"""

import resource
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

import numpy as np
import pandas as pd
import torch
import tyro

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "ablations")]

import diff_md_matrix  # noqa: E402
import no_regret_follower  # noqa: E402
import two_followers_matrix  # noqa: E402
import vectorized_ppo_matrix as batch  # noqa: E402

Figure = Literal[
    *("explore", "misses", "atlas", "follower_heatmap", "leader_sensitivity", "budget", "throughput"),
    *("no_regret", "two_followers", "diff_md_rates", "diff_md", "all"),
]


@dataclass
class Args:
    figures: tyro.conf.Positional[tuple[Figure, ...]]
    """figures to make the CSVs of"""
    results_dir: str = str(ROOT / "benchmark/results")
    """folder for the CSVs"""
    num_games: int = 1000
    """random games where a figure has them"""

    def __post_init__(self):
        if "all" in self.figures:
            self.figures = get_args(Figure)[:-1]


# The paper's settings: Table 4, but with a baseline and a deck of leaders; Adam's epsilon is ours.
PAPER_FOLLOWER = {
    "follower_learning_rate": (0.02,),
    "follower_baseline_rate": (0.2,),
    "follower_gamma": (1.0,),
    "follower_ent_coef": (0.0,),
}
PAPER_LEADER = {
    "explore": ("action",),
    "learning_rate": (0.008,),
    "adam_eps": (0.02,),
    "risk_seeking": (0.0,),
}
PAPER = PAPER_FOLLOWER | PAPER_LEADER
HELD_OUT, TUNING = 5000, 0


def run(**flags) -> pd.DataFrame:
    """Trains a batch of runs; returns its runs.csv."""
    with tempfile.TemporaryDirectory() as run_dir:
        return batch.main(batch.Args(run_dir=run_dir, **flags))


def interval(values: pd.Series, resamples: int = 10_000) -> tuple[float, float]:
    """Returns the bootstrap's 95 % interval of a mean."""
    values = values.to_numpy(float)
    index = np.random.default_rng(0).integers(len(values), size=(resamples, len(values)))
    return tuple(np.quantile(values[index].mean(axis=1), (0.025, 0.975)))


def explore(args: Args) -> pd.DataFrame:
    """Action against table, with one and the same follower: when each run reaches the optimum."""
    arms = {
        "action": {"explore": ("action",), "learning_rate": (0.008,), "adam_eps": (0.02,), "risk_seeking": (0.0,)},
        "action, faster": {"explore": ("action",), "risk_seeking": (0.0,)},
        "table": {"explore": ("table",), "risk_seeking": (0.0,)},
        "table, risk-seeking": {"explore": ("table",)},
    }
    families = {"table3": {}, "random": {"random_games": args.num_games, "first_game": HELD_OUT, "seeds": 1}}
    rows = []
    for (arm, flags), (family, games) in ((a, f) for a in arms.items() for f in families.items()):
        runs = run(**flags, **games)
        columns = ["steps_to_converge", "steps_to_converge_exploring", "leader_finds", "follower_allows"]
        rows.append(runs[["env_id", "seed", *columns]].assign(arm=arm, family=family))
    return pd.concat(rows)


def misses(args: Args) -> pd.DataFrame:
    """Held-out random games by what they miss, before and after each of the two changes."""
    settings = {"paper": PAPER, "follower": PAPER_LEADER, "table": PAPER_FOLLOWER, "both": {}}
    rows = []
    for name, flags in settings.items():
        runs = run(random_games=args.num_games, first_game=HELD_OUT, seeds=1, **flags)
        tolerance = batch.TOLERANCE * scale_of(runs)
        above = runs["leader_return_best"] > runs["stackelberg_value"] + tolerance
        allowed = runs["follower_allows"] > 0
        shares = {
            "at_optimum": runs["at_optimum"],
            "exploring_at_optimum": runs["at_optimum_exploring"],
            "follower_is_right": runs["follower_is_right"],
            "follower_allows": runs["follower_allows"],
            "leader_finds": runs["leader_finds"],
            "leader_stuck": (runs["leader_finds"] < 1) & (runs["is_local_optimum"] > 0),
            "miss_follower_less": ~allowed & ~above & (runs["at_optimum"] < 1),
            "miss_follower_more": above & (runs["at_optimum"] < 1),
            "miss_leader": allowed & (runs["at_optimum"] < 1),
            "wrong_replies": runs["wrong_replies"],
        }
        for share, values in shares.items():
            low, high = interval(values)
            rows.append({"setting": name, "share": share, "mean": values.mean(), "low": low, "high": high})
    return pd.DataFrame(rows)


def scale_of(runs: pd.DataFrame, player: str = "leader") -> pd.Series:
    """Returns the scale of a player's payoffs in each run."""
    payoffs = np.array([[float(x) for x in text.split()] for text in runs[f"{player}_payoff"]])
    return pd.Series(np.ptp(payoffs, axis=1) / 3, index=runs.index)


def nash_values() -> pd.Series:
    """Returns, for each ordinal game, the leader's best pure equilibrium of the 32 x 32 tables, what it would get
    without commitment; nan if there is none."""
    games = batch.load_games(batch.Args(games=("ordinal",)))
    leader, follower = batch.solve(np.stack(list(games.values())), num_steps=10)["returns"].swapaxes(0, 1)
    is_nash = follower >= follower.max(axis=2, keepdims=True) - 1e-6
    is_nash &= leader >= leader.max(axis=1, keepdims=True) - 1e-6
    values = np.where(is_nash, leader, -np.inf).max(axis=(1, 2))
    return pd.Series(values, games, name="nash_value").replace(-np.inf, np.nan)


def atlas(args: Args) -> pd.DataFrame:
    """All 144 ordinal games, 10 seeds each, before and after; and what the leader gets without commitment."""
    rows = []
    for name, flags in {"paper": PAPER, "both": {}}.items():
        runs = run(games=("ordinal",), seeds=10, **flags)
        runs["between"] = (
            (runs["leader_return_greedy"] >= runs["stackelberg_value_pessimistic"] - batch.TOLERANCE)
            & (runs["leader_return_greedy"] <= runs["stackelberg_value"] + batch.TOLERANCE)
        ).astype(float)
        runs["found"] = runs["between"] * runs["follower_is_right"]
        values = ["at_optimum", "between", "found", "follower_is_right", "leader_finds"]
        values += ["stackelberg_value", "stackelberg_value_pessimistic"]
        means = runs.groupby("env_id", sort=False)[values].mean()
        rows.append(means.join(nash_values()).reset_index().assign(setting=name))
    return pd.concat(rows)


def follower_heatmap(args: Args) -> pd.DataFrame:
    """Share of wrong replies and of games whose optimum the follower allows: budget x learning rate x baseline."""
    budgets = (5_250, 10_500, 15_750, 26_250, 52_500)
    rows = []
    for games in ({"random_games": args.num_games // 5, "seeds": 1}, {"games": ("table3",)}):
        runs = run(
            **games,
            follower_timesteps=budgets,
            follower_learning_rate=(0.02, 0.05, 0.1, 0.2),
            follower_baseline_rate=(0.1, 0.3, 0.5),
            total_timesteps=max(budgets) + 1005,
        )
        by = ["follower_timesteps", "follower_learning_rate", "follower_baseline_rate"]
        shares = runs.groupby(by)[["wrong_replies", "follower_allows"]].mean().reset_index()
        rows.append(shares.assign(family="table3" if "games" in games else "random"))
    return pd.concat(rows)


def leader_sensitivity(args: Args) -> pd.DataFrame:
    """Share of random games in which the leader finds the best of its POMDP: learning rate x Adam's epsilon."""
    runs = run(
        random_games=args.num_games // 5,
        seeds=1,
        explore=("action", "table"),
        learning_rate=(0.003, 0.01, 0.03, 0.1, 0.3),
        adam_eps=(1e-8, 1e-5, 1e-3, 0.02, 0.1),
        risk_seeking=(0.0, 5.0),
        total_timesteps=105_000,
    )
    runs = runs[(runs["explore"] == "table") | (runs["risk_seeking"] == 0)]
    by = ["explore", "risk_seeking", "learning_rate", "adam_eps"]
    return runs.groupby(by)[["leader_finds", "at_optimum", "at_optimum_exploring"]].mean().reset_index()


def budget(args: Args) -> pd.DataFrame:
    """The 12 games x 5 seeds: how little pre-training keeps all at the optimum, and the steps until then."""
    budgets = (4_200, 5_250, 6_300, 7_875, 10_500, 13_125, 15_750, 21_000, 26_250, 52_500)
    runs = run(follower_timesteps=budgets).fillna({"steps_to_converge_exploring": np.inf})
    by_budget = runs.groupby("follower_timesteps")
    sums = by_budget[["at_optimum", "at_optimum_exploring", "follower_is_right"]].sum()
    medians = by_budget[["steps_to_converge", "steps_to_converge_exploring"]].median()
    return sums.join(medians).join(by_budget[["wrong_replies"]].mean()).reset_index()


def throughput(args: Args) -> pd.DataFrame:
    """Combined steps per second over the number of runs, in turns with the PPO script, both with the paper's settings,
    on one core."""
    torch.set_num_threads(1)
    flags = "--explore action --learning-rate 0.008 --adam-eps 0.02 --risk-seeking 0 --follower-learning-rate 0.02"
    flags += " --follower-baseline-rate 0.2 --follower-gamma 1 --follower-ent-coef 0 --verification-iterations 1"
    rows = []

    def time_script(after: int):
        with tempfile.TemporaryDirectory() as run_dir:
            command = [sys.executable, str(ROOT / "stackelberg_ppo_matrix.py"), *flags.split(), "--run-dir", run_dir]
            subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
            result = pd.read_json(next(Path(run_dir).glob("*/result.json")), typ="series")
        rows.append({"script": "stackelberg_ppo_matrix", "runs": after, "steps_per_second": result["steps_per_second"]})

    for num_runs in (1, 3, 10, 30, 60, 100, 300, 600, 1000, 3000, 6000):
        games = (
            {"games": ("table3",), "seeds": num_runs // 12}
            if num_runs == 60
            else {"random_games": num_runs, "seeds": 1}
        )
        for setting, flags_of in (("paper", PAPER), ("default", {})):
            arguments = batch.Args(**games, **flags_of)
            returns = batch.solve(arguments.payoffs, arguments.num_steps)["returns"]
            start = time.perf_counter()
            steps = [steps[-1] * len(replies) for _, steps, _, _, replies in batch.train(arguments, returns)]
            seconds = time.perf_counter() - start
            row = {"script": "vectorized_ppo_matrix", "setting": setting, "runs": num_runs, "seconds": seconds}
            row["gigabytes"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6  # the most so far
            rows.append(row | {"steps_per_second": sum(steps) / seconds})
        time_script(num_runs)
    return pd.DataFrame(rows)


def rows_of(script, **flags) -> pd.DataFrame:
    """Trains what a script trains as one batch; returns a row for each of its runs, with these flags, without lists."""
    with tempfile.TemporaryDirectory() as run_dir:
        result = script.main(script.Args(run_dir=run_dir, **flags))
    rows = pd.DataFrame(result["runs"])
    lists = [name for name in rows if isinstance(rows[name].iloc[0], list)]
    return pd.DataFrame(flags, index=rows.index).join(rows.drop(columns=lists))


def no_regret(args: Args) -> pd.DataFrame:
    """The 12 games x 7 numbers of rounds x 5 seeds: how leaders draw their answers, and how followers reply."""
    arms = ("episode", "last"), ("round", "last"), ("episode", "average")
    return pd.concat(rows_of(no_regret_follower, explore=explore, reply=reply) for explore, reply in arms)


def two_followers(args: Args) -> pd.DataFrame:
    """Four games of one leader and two followers x 10 seeds, with followers that learn by self-play."""
    return rows_of(two_followers_matrix, oracle="self-play")


# The follower's step sizes for k steps of Diff-MD: those with the best guaranteed return in diff_md_rates.csv.
STEP_SIZES = {1: 30.0, 3: 30.0, 10: 10.0, 30: 3.0, 100: 3.0}


def diff_md_rates(args: Args) -> pd.DataFrame:
    """What leaders of random games 0 to 99 are guaranteed above the pessimistic optimum, in scales, by k and
    the follower's step size. In half of the iterations: this only chooses."""
    sizes = (1.0, 3.0, 10.0, 30.0, 100.0)
    games = tuple(f"random_{TUNING + i}" for i in range(min(args.num_games, 100)))
    flags = {"unroll": tuple(STEP_SIZES), "num_seeds": len(sizes), "follower_step_size": sizes, "iterations": 100}
    with tempfile.TemporaryDirectory() as run_dir:
        runs = diff_md_matrix.main(diff_md_matrix.Args(games=games, run_dir=run_dir, **flags))
    above = (runs["leader_return_guaranteed"] - runs["stackelberg_value_pessimistic"]) / runs["scale"]
    runs = runs.assign(guaranteed_above=above, below=above < -batch.TOLERANCE)
    return runs.groupby(["unroll", "step_size"])[["guaranteed_above", "below"]].mean().reset_index()


def diff_md(args: Args) -> pd.DataFrame:
    """Diff-MD on all 144 ordinal games x 10 seeds, for each number k of the follower's steps and both objectives."""
    rows = []
    for objective, (k, step_size) in ((o, item) for o in ("last", "sum") for item in STEP_SIZES.items()):
        with tempfile.TemporaryDirectory() as run_dir:
            flags = {"objective": objective, "unroll": (k,), "follower_step_size": (step_size,)}
            runs = diff_md_matrix.main(diff_md_matrix.Args(run_dir=run_dir, **flags))
        rows.append(runs.drop(columns=["leader_policy", "scale", "seconds"]).assign(objective=objective))
    return pd.concat(rows)


VECTORIZED = (explore, misses, atlas, follower_heatmap, leader_sensitivity, budget, throughput)
FIGURES = {f.__name__: f for f in (*VECTORIZED, no_regret, two_followers, diff_md_rates, diff_md)}


def main(args: Args):
    """Makes the figures' CSVs."""
    Path(args.results_dir).mkdir(parents=True, exist_ok=True)  # before minutes of work
    for name in args.figures:
        rows, prefix = FIGURES[name](args), "vectorized_" if FIGURES[name] in VECTORIZED else ""
        rows.to_csv(f"{args.results_dir}/{prefix}{name}.csv", index=False, float_format="%.6g")
        print(f"{args.results_dir}/{prefix}{name}.csv")


if __name__ == "__main__":
    main(tyro.cli(Args, description=__doc__))
