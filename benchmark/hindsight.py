"""Measures the follower that learns in hindsight against the exact optimum, from 2 to 5 actions, and draws the figure.

    python benchmark/hindsight.py                      # all of it; goes on where it was interrupted
    python benchmark/hindsight.py --only "3x3"
    python benchmark/hindsight.py --draw-only

benchmark/results/hindsight_runs.csv has one row per run. Its random games start with number 5,000, and only those are
taken that are hard: in which the best leader that always plays one action loses more than 0.05 of the scale (a third of
the range of its payoffs). Settings were chosen on games below 1,000. The optimum is proved, that of the mean over 10
steps against a follower discounted by 0.9; a run is there if it is within 0.05 of the scale, greedily.
"""

import json
import multiprocessing
import os
import sys
import tempfile
from collections.abc import Iterator
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
import hindsight_follower as script  # noqa: E402
import plot  # noqa: E402
from plot import BLACK, BLUE, DASHED, GAMES, GREEN, GREY, ORANGE, PINK, RED, SKY  # noqa: E402


@dataclass
class Args:
    jobs: int = os.cpu_count() or 1
    """runs at a time"""
    only: str = ""
    """settings to run, by a part of their name"""
    runs_file: str = str(ROOT / "runs/hindsight.jsonl")
    """where the result of every finished run is kept, so that it need not be run again"""
    results_dir: str = str(ROOT / "benchmark/results")
    """folder for the CSV"""
    draw_only: bool = False
    """draw the figure from the CSV, and run nothing"""


HELD_OUT = 5000
NETWORK = {"follower": "network"}
NO_HINDSIGHT = NETWORK | {"hindsight": False}
REAL = {"imagination": False, "batch_size": 20}
# learner: flags
LEARNERS = {
    "planning": {},
    "network": NETWORK,
    "solver": {"leader": "solver"},
    "network, frozen before the leader learns": NETWORK | {"follower_learns_on": False},
    "network, no hindsight": NO_HINDSIGHT,
    "planning, no imagination": REAL,
    "network, no hindsight, no imagination": NO_HINDSIGHT | REAL,
}
# (games, learner): how many games, seeds, combined steps
SETTINGS = {
    ("table3", "planning"): (12, 10, 480),
    ("random 2x2", "planning"): (200, 1, 480),
    ("hard 2x2", "planning"): (20, 3, 480),
    ("hard 3x3", "planning"): (20, 3, 900),
    ("hard 4x4", "planning"): (20, 3, 2_700),
    ("hard 5x5", "planning"): (10, 1, 6_000),
    ("hard 2x2", "network"): (20, 3, 480),
    ("hard 3x3", "network"): (20, 3, 1_200),
    ("hard 4x4", "network"): (20, 3, 4_500),
    ("hard 5x5", "network"): (10, 1, 9_000),
    ("hard 2x2", "solver"): (20, 3, 480),
    ("hard 3x3", "solver"): (20, 3, 900),
    ("hard 4x4", "solver"): (20, 3, 2_700),
    ("hard 5x5", "solver"): (10, 1, 6_000),
    ("hard 3x3", "network, frozen before the leader learns"): (20, 1, 1_200),
    ("hard 2x2", "network, no hindsight"): (10, 1, 5_000),
    ("hard 3x3", "network, no hindsight"): (10, 1, 20_000),
    ("hard 2x2", "planning, no imagination"): (10, 1, 20_000),
    ("hard 3x3", "planning, no imagination"): (10, 1, 100_000),
    ("hard 2x2", "network, no hindsight, no imagination"): (10, 1, 20_000),
    ("hard 3x3", "network, no hindsight, no imagination"): (10, 1, 100_000),
}
COLUMNS = "leader_return_greedy stackelberg_value stackelberg_value_pessimistic leader_regret follower_regret"
COLUMNS = f"{COLUMNS} combined_steps steps_to_converge steps_to_try_all triples_tried verification_gain wall_seconds"


def games_of(family: str, count: int) -> Iterator[dict]:
    """Yields the flags of a family's games: Table 3's, random ones, or those of them that are hard."""
    if family == "table3":
        yield from ({"env_id": name} for name in GAMES)
        return
    kind, size = family.split()
    number, found, n = HELD_OUT, 0, int(size[0])
    while found < count:
        payoffs = np.random.default_rng(number).random((2, n, n))
        constant = max(payoffs[0, a, payoffs[1, a].argmax()] for a in range(n))
        tolerance = 0.05 * np.ptp(payoffs[0]) / 3
        if kind == "random" or exact.solve(payoffs, horizon=10).value - constant > tolerance:
            found += 1
            yield {"random_game": (n, number)}
        number += 1


def run(job: tuple) -> dict:
    """Runs the script once; returns a row of the CSV."""
    family, learner, game, seed, steps = job
    with tempfile.TemporaryDirectory() as run_dir, open(os.devnull, "w") as nothing:
        stdout, sys.stdout = sys.stdout, nothing
        try:
            flags = game | LEARNERS[learner]
            result = script.main(script.Args(seed=seed, total_timesteps=steps, run_dir=run_dir, **flags))
        finally:
            sys.stdout = stdout
    labels = {"games": family, "learner": learner, "env_id": result["env_id"], "seed": seed}
    return labels | {name: result[name] for name in COLUMNS.split()} | {"scale": np.ptp(script_payoffs(game)[0]) / 3}


def script_payoffs(game: dict) -> np.ndarray:
    """Returns the payoffs of a game's flags."""
    return script.Args(**game).payoffs


def name_of(game: dict) -> str:
    """Returns a game's env_id."""
    return script.Args(**game).env_id


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
}


def scaling(results_dir: Path):
    """Combined steps to within 0.05 of the optimum over the number of actions."""
    runs = pd.read_csv(results_dir / "hindsight_runs.csv")
    runs = runs[runs["games"].str.startswith("hard")]
    figure, ax = plt.subplots(figsize=(7, 5))
    sizes = np.arange(2, 6)
    ax.plot(
        sizes, [floor(n) for n in sizes], color=GREY, linestyle=(0, (1, 2)), label="seeing every triple once, at best"
    )
    ax.plot(sizes[:2], [brute_force(n) for n in sizes[:2]], color=BLACK, marker="*", label="brute force")
    for learner, (color, line, marker) in LINES.items():
        some = runs[runs["learner"] == learner].assign(size=lambda rows: rows["games"].str[-1].astype(int))
        steps = some.fillna({"steps_to_converge": np.inf}).groupby("size")["steps_to_converge"]
        median = steps.median()
        reached = median[np.isfinite(median)]
        ax.plot(reached.index, reached, color=color, linestyle=line, marker=marker, label=learner)
        for size in median.index.difference(reached.index):  # most runs never come there: their budget, pointing up
            budget = some[some["size"] == size]["combined_steps"].median()
            ax.plot(size, budget, color=color, marker=marker, fillstyle="none")
            ax.annotate("", (size, 2.2 * budget), (size, budget), arrowprops={"arrowstyle": "->", "color": color})
    ax.set_yscale("log")
    ax.set_xticks(sizes)
    ax.set_xlabel("actions of each player")
    ax.set_ylabel("combined steps to the optimum, median")
    ax.legend(fontsize=8, loc="upper left")
    return figure


def main(args: Args) -> int:
    """Runs what is missing, and writes CSV and figure."""
    results_dir = Path(args.results_dir)
    if not args.draw_only:
        os.environ.setdefault("OMP_NUM_THREADS", "1")
        runs_file = Path(args.runs_file)
        runs_file.parent.mkdir(parents=True, exist_ok=True)
        rows = [json.loads(line) for line in runs_file.read_text().splitlines()] if runs_file.exists() else []
        done = {(row["games"], row["learner"], row["env_id"], row["seed"]) for row in rows}
        jobs = [
            (family, learner, game, seed, steps)
            for (family, learner), (count, seeds, steps) in SETTINGS.items()
            if args.only in f"{family}, {learner}"
            for game in games_of(family, count)
            for seed in range(1, seeds + 1)
            if (family, learner, name_of(game), seed) not in done
        ]
        with multiprocessing.get_context("spawn").Pool(args.jobs) as pool, runs_file.open("a") as file:
            for row in tqdm(pool.imap_unordered(run, jobs), total=len(jobs), disable=None):
                file.write(json.dumps(row) + "\n")
                file.flush()
                rows.append(row)
        table = pd.DataFrame(rows).sort_values(["games", "learner", "env_id", "seed"])
        table.to_csv(results_dir / "hindsight_runs.csv", index=False, float_format="%.6g")
        table["found"] = table["leader_regret"].abs() <= 0.05 * table["scale"] + 1e-6
        print(
            table.groupby(["games", "learner"])[["found", "steps_to_converge", "wall_seconds"]].agg(["mean", "median"])
        )
    plot.FIGURES["hindsight_scaling"] = scaling
    plot.save("hindsight_scaling", results_dir, ROOT / "benchmark/figures/hindsight_scaling.png")
    return 0


if __name__ == "__main__":
    sys.exit(main(tyro.cli(Args, description=__doc__)))
