"""Measures the follower that learns in hindsight against the exact optimum, from 2 to 5 actions, and draws the figure.

    python benchmark/hindsight.py                      # all of it; goes on where it was interrupted
    python benchmark/hindsight.py --only "3x3"
    python benchmark/hindsight.py --draw-only

benchmark/results/hindsight_runs.csv has one row per run, written as soon as it is finished. A run whose row is there,
by the same version of its script and the same flags (`source`, the beginning of a SHA-256 of both), is not repeated,
whatever is in the folder of runs; rows of another version stay until their runs are asked for again. Settings that only
the figure needs have one seed.

Random games start with number 5,000; settings were chosen on games below 1,000. Of "hard" games only those are taken in
which the best leader that always plays one action loses more than 0.05 of the scale (a third of the range of its
payoffs). The optimum is exact, that of the mean over 10 steps against a follower discounted by 0.9; a run is there if
it is within 0.05 of the scale, greedily, from then on. That is looked at after each round, which is an episode in 2x2
and 3x3 games with planning, and at most 5 % of the steps else. Without imagination half of the steps are exploration,
and two thirds of those of PPO + Meta-RL its follower's, before the leader learns: where these are is set by the budget.
"""

import functools
import hashlib
import itertools
import json
import math
import os
import sys
from dataclasses import dataclass
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import tyro
from tqdm import tqdm

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT / "ablations"), str(ROOT / "benchmark")]

import exact_stackelberg as exact  # noqa: E402
import plot  # noqa: E402
from plot import BLACK, BLUE, DASHED, GAMES, GREEN, GREY, ORANGE, PINK, RED, SKY  # noqa: E402
from run import Run, digest, result_of, run_in_processes, write_csv  # noqa: E402


@dataclass
class Args:
    jobs: int = os.cpu_count() or 1
    """runs at a time"""
    only: str = ""
    """settings to run, by a part of their name; the CSV holds what is finished of all"""
    run_dir: str = "runs/benchmark"
    """folder that every run's own folder is made in"""
    results_dir: str = str(ROOT / "benchmark/results")
    """folder for the CSV"""
    figures_dir: str = str(ROOT / "benchmark/figures")
    """folder for the picture"""
    draw_only: bool = False
    """draw the figure from the CSV, and run nothing"""


HELD_OUT = 5000
NETWORK = {"follower": "network"}
NO_HINDSIGHT = NETWORK | {"hindsight": False}
REAL = {"imagination": False, "batch_size": 20}
MLP = "PPO + Meta-RL, MLP follower"  # two thirds of the steps are pre-training
# learner: flags
LEARNERS = {
    "planning": {},
    "network": NETWORK,
    "solver": {"leader": "solver"},
    "random tables": {"leader_updates": 1},
    "network, frozen before the leader learns": NETWORK | {"follower_learns_on": False, "follower_updates": 400},
    "network, no hindsight": NO_HINDSIGHT,
    "planning, no imagination": REAL,
    "network, no hindsight, no imagination": NO_HINDSIGHT | REAL,
}
# (games, learner): how many games, seeds, combined steps, and other flags
SETTINGS = {
    ("table3", "planning"): (12, 10, 480, {"rounds": 32}),
    ("random 2x2", "planning"): (200, 1, 480, {"rounds": 32}),
    ("hard 3x3", "planning"): (20, 3, 900, {"rounds": 45}),
    ("hard 4x4", "planning"): (20, 3, 2_700, {}),
    ("hard 3x3", "network"): (20, 3, 1_200, {}),
    ("hard 4x4", "network"): (20, 3, 3_600, {}),
    ("hard 5x5", "planning"): (10, 1, 6_000, {}),
    ("hard 5x5", "network"): (5, 1, 9_000, {}),
    ("hard 2x2", "planning"): (20, 1, 480, {"rounds": 32}),
    ("hard 2x2", "network"): (20, 1, 480, {"rounds": 32}),
    ("hard 2x2", "solver"): (20, 1, 480, {"rounds": 32}),
    ("hard 3x3", "solver"): (20, 1, 900, {"rounds": 45}),
    ("hard 4x4", "solver"): (20, 1, 2_700, {}),
    ("hard 5x5", "solver"): (10, 1, 6_000, {}),
    ("hard 3x3", "random tables"): (20, 1, 900, {"rounds": 45}),
    ("hard 4x4", "random tables"): (20, 1, 2_700, {}),
    ("hard 3x3", "network, frozen before the leader learns"): (20, 1, 1_200, {}),
    ("hard 2x2", "network, no hindsight"): (5, 1, 5_000, {"rounds": 100}),
    ("hard 3x3", "network, no hindsight"): (5, 1, 20_000, {"rounds": 100}),
    ("hard 2x2", "planning, no imagination"): (5, 1, 20_000, {}),
    ("hard 3x3", "planning, no imagination"): (5, 1, 100_000, {}),
    ("hard 2x2", "network, no hindsight, no imagination"): (5, 1, 20_000, {"rounds": 100}),
    ("hard 3x3", "network, no hindsight, no imagination"): (5, 1, 100_000, {"rounds": 100}),
    ("hard 2x2", MLP): (5, 1, 300_000, {}),
    ("hard 3x3", MLP): (5, 1, 1_500_000, {}),
    ("hard 4x4", MLP): (5, 1, 3_000_000, {}),
}
KEY = ["games", "learner", "env_id", "seed"]
COLUMNS = "leader_return_greedy stackelberg_value stackelberg_value_strict leader_regret follower_regret"
COLUMNS += " combined_steps steps_to_converge steps_to_try_all triples_tried verification_gain wall_seconds cpu_seconds"


@functools.cache
def games_of(family: str, count: int) -> list[dict]:
    """Returns the flags of a family's games: Table 3's, random ones, or those of them that are hard."""
    if family == "table3":
        return [{"env_id": name} for name in GAMES]
    kind, size = family.split()
    games, number, n = [], HELD_OUT, int(size[0])
    while len(games) < count:
        payoffs = np.random.default_rng(number).random((2, n, n))
        constant = max(payoffs[0, a, payoffs[1, a].argmax()] for a in range(n))
        tolerance = 0.05 * np.ptp(payoffs[0]) / 3
        if kind == "random" or exact.solve(payoffs, horizon=10).value - constant > tolerance:
            games.append({"random_game": (n, number)})
        number += 1
    return games


def runs_of(family: str, learner: str) -> dict[tuple, Run]:
    """Returns the runs of a setting, each by its row's KEY."""
    count, seeds, steps, more = SETTINGS[family, learner]
    script, flags, runs = "hindsight_follower", LEARNERS.get(learner, {}) | more | {"total_timesteps": steps}, {}
    if learner == MLP:
        script, flags = "mlp_meta_rl", flags | {"follower_timesteps": 2 * steps // 3}
    for game, seed in itertools.product(games_of(family, count), range(1, seeds + 1)):
        env_id = game["env_id"] if "env_id" in game else "random_{0}x{0}_{1}".format(*game["random_game"])
        runs[family, learner, env_id, seed] = Run(script, game | flags | {"seed": seed})
    return runs


def result_here(run: Run, run_dir: str) -> Path | None:
    """Returns the result.json of a run of this version of the script, or None."""
    path = result_of(run, run_dir)
    return path if path and (path.parents[1] / "source.sha256").read_text() == digest(run.script) else None


def source_of(run: Run) -> str:
    """Returns what tells versions of a run's script apart."""
    return hashlib.sha256(f"{digest(run.script)} {sorted(run.flags.items())}".encode()).hexdigest()[:12]


def row_of(key: tuple, run: Run, path: Path) -> dict:
    """Returns a run's row of the CSV."""
    result = json.loads(path.read_text())
    labels = dict(zip(KEY, key, strict=True)) | {"source": source_of(run)}
    return labels | {name: result.get(name) for name in COLUMNS.split()}


# --------------------------------------------------------------------------------------------------------- the figure
def floor(n: int) -> int:
    """Combined steps before which no learner can have seen every (observation, both actions): an episode of 10 steps
    begins at the start, which has n^2 pairs of actions, and visits nine of the n^4 other triples."""
    return max(n**2, -(-(n**4) // 9)) * (n**2 + 11)


def brute_force(n: int) -> float:
    """Combined steps to try every leader once."""
    return float(n) ** (n**2 + 1) * (n**2 + 11)


LINES = {
    "planning": (BLUE, "-", "o"),
    "network": (ORANGE, "-", "s"),
    "solver": (GREEN, DASHED, "^"),
    "network, no hindsight": (PINK, "-", "v"),
    "planning, no imagination": (SKY, "-", "D"),
    "network, no hindsight, no imagination": (RED, "-", "x"),
    MLP: (BLACK, DASHED, "P"),
}


def scaling(results_dir: Path):
    """Combined steps to within 0.05 of the optimum over the number of actions. An arrow starts at a budget in which
    most runs do not get there."""
    runs = pd.read_csv(results_dir / "hindsight_runs.csv")
    runs = runs[runs["games"].str.startswith("hard")]
    figure, ax = plt.subplots(figsize=(9, 4.5))
    sizes, dotted = np.arange(2, 6), (0, (1, 2))
    ax.plot(sizes, list(map(floor, sizes)), color=GREY, linestyle=dotted, label="seeing every triple once, at best")
    ax.plot(sizes, list(map(brute_force, sizes)), color=BLACK, marker="*", label="brute force")
    for learner, (color, line, marker) in LINES.items():
        some = runs[runs["learner"] == learner].assign(size=lambda rows: rows["games"].str[-1].astype(int))
        if some.empty:
            continue
        steps = some.fillna({"steps_to_converge": np.inf}).groupby("size")["steps_to_converge"]
        median = steps.median()
        reached = median[np.isfinite(median)]
        ax.plot(reached.index, reached, color=color, linestyle=line, marker=marker, label=learner)
        for size in median.index.difference(reached.index):  # most runs never come there: their budget, pointing up
            budget = some[some["size"] == size]["combined_steps"].median()
            ax.plot(size, budget, color=color, marker=marker, fillstyle="none")
            ax.annotate("", (size, 2.2 * budget), (size, budget), arrowprops={"arrowstyle": "->", "color": color})
    ax.set_yscale("log")
    ax.set_ylim(30, 3e7)  # and brute force goes on
    ax.set_xticks(sizes)
    ax.set_xlabel("actions of each player")
    ax.set_ylabel("combined steps to the optimum, median")
    ax.legend(fontsize=8, loc="upper left", bbox_to_anchor=(1.01, 1.0))
    return figure


def run_all(args: Args, path: Path) -> bool:
    """Runs what of SETTINGS is missing in the CSV, and adds its rows as they come; returns whether a run failed."""
    failed = False
    rows = pd.read_csv(path).to_dict("records") if path.exists() else []
    rows = {tuple(row[name] for name in KEY): row for row in rows}
    asked = [pair for setting in SETTINGS if args.only in ", ".join(setting) for pair in runs_of(*setting).items()]
    runs = {key: run for key, run in asked if rows.get(key, {}).get("source") != source_of(run)}

    def keep(finished: Run) -> bool:
        found = result_here(finished, args.run_dir)
        for key in (key for key, run in runs.items() if run == finished and found):
            rows[key] = row_of(key, finished, found)
        places = {setting: i for i, setting in enumerate(SETTINGS)}
        of_rows = sorted(rows.values(), key=lambda row: places.get((row["games"], row["learner"]), math.inf))
        write_csv(str(path), pd.DataFrame(of_rows))
        return found is not None

    missing = {run.name: run for run in runs.values() if result_here(run, args.run_dir) is None or not keep(run)}
    for run, how_it_ended in tqdm(run_in_processes(list(missing.values()), args), total=len(missing), disable=None):
        if not keep(run):
            failed = True
            print(f"failed: {run.name} ({how_it_ended})", file=sys.stderr)
    return failed


def main(args: Args) -> int:
    """Runs what is missing, and writes CSV and figure; returns the exit code: 1 if a run failed."""
    failed, results_dir = False, Path(args.results_dir)
    if not args.draw_only:
        os.environ.setdefault("OMP_NUM_THREADS", "1")
        results_dir.mkdir(parents=True, exist_ok=True)
        failed = run_all(args, results_dir / "hindsight_runs.csv")
        table = pd.read_csv(results_dir / "hindsight_runs.csv")
        table["found"] = table["steps_to_converge"].notna()
        columns = ["found", "steps_to_converge", "cpu_seconds"]
        print(table.groupby(["games", "learner"], sort=False)[columns].agg(["mean", "median"]).to_string())
    plot.FIGURES["hindsight_scaling"] = scaling
    os.makedirs(args.figures_dir, exist_ok=True)
    plot.save("hindsight_scaling", results_dir, Path(args.figures_dir, "hindsight_scaling.png"))
    return int(failed)


if __name__ == "__main__":
    sys.exit(main(tyro.cli(Args, description=__doc__)))
