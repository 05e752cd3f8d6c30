"""Runs the Atari trade with other settings than the defaults, and writes benchmark/results/atari_variants*.csv.

    python benchmark/atari_variants.py

With the seller as leader, from the committed gameplay networks of seeds 1 to 3:
- discount and lambda of the trades, hits rewarded at the shot or as they land, the game frozen
- what shapes the network: the game's actions alone, or trades and values too; either at the default rate, and faster

With either leader, one seed:
- Table 4's PPO, where it can be had by flags
- random weights instead of gameplay weights, for about an hour on a core

Runs are executed as those of `run.py` are: an interrupted command goes on where it stopped.
"""

import os
import sys
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
import tyro
from tqdm import tqdm

sys.path.append(str(Path(__file__).resolve().parent))

from run import ROOT, Run, read, result_of, run_in_processes, write_csv


@dataclass
class Args:
    jobs: int = os.cpu_count() or 1
    """runs at a time"""
    run_dir: str = "runs/benchmark"
    """folder that every run's own folder is made in"""
    only: str = ""
    """settings to run, by a part of their name; the files then hold only these"""


CHECKPOINTS = ROOT / "benchmark/checkpoints"
TABLE_4 = {"num_envs": 28, "learning_rate": 1e-3, "body_learning_rate": 1e-3, "anneal_lr": False, "shape_body": True}
TABLE_4 |= {"minibatch_size": 100, "update_epochs": 10, "clip_coef": 0.1, "gae_lambda": 0.95, "game_gae_lambda": 0.95}
TABLE_4 |= {"ent_coef": 0.01, "game_ent_coef": 0.01, "kl_coef": 0.5}
RANDOM_WEIGHTS = {"stage": "all", "gameplay_timesteps": 0, "body_learning_rate": 7e-4, "shape_body": True}
RANDOM_WEIGHTS |= {"follower_timesteps": 2_000_000, "total_timesteps": 3_000_000}
# name: flags, seeds, who leads
SETTINGS = {
    "default": ({}, 3, ["seller"]),
    "discount 0.998, lambda 0.95": ({"gae_lambda": 0.95}, 3, ["seller"]),
    "discount 0.99, lambda 0.95": ({"gamma": 0.99, "gae_lambda": 0.95}, 3, ["seller"]),
    "hits at the shot": ({"credit_shots": True}, 3, ["seller"]),
    "game frozen": ({"body_learning_rate": 0.0}, 3, ["seller"]),
    "all shapes the body": ({"shape_body": True}, 3, ["seller"]),
    "game at 0.0001": ({"body_learning_rate": 1e-4}, 3, ["seller"]),
    "all shapes the body at 0.0001": ({"shape_body": True, "body_learning_rate": 1e-4}, 3, ["seller"]),
    "Table 4": (TABLE_4, 1, ["seller", "buyer"]),
    "random weights": (RANDOM_WEIGHTS, 1, ["seller", "buyer"]),
}


def runs_of(name: str) -> list[Run]:
    """Returns the runs of a setting."""
    flags, seeds, leaders = SETTINGS[name]
    runs = []
    for leader in leaders:
        for seed in range(1, seeds + 1):
            common = {"stage": "trade", "leader": leader, "seed": seed}
            if flags.get("stage") != "all":
                common["checkpoint"] = str((CHECKPOINTS / f"atari_trade_{leader}_{seed}.pt").relative_to(ROOT))
            runs.append(Run("stackelberg_ppo_atari_trade", common | flags))
    return runs


def main(args: Args) -> int:
    """Runs what is missing and writes the files; returns the exit code: 1 if a run failed."""
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    os.chdir(ROOT)  # the checkpoints' paths, which are part of a run's name, are the same on every machine
    runs = {name: runs_of(name) for name in SETTINGS if args.only in name}
    missing = [run for some in runs.values() for run in some if result_of(run, args.run_dir) is None]
    for run, how_it_ended in tqdm(run_in_processes(missing, args), total=len(missing), disable=None):
        if result_of(run, args.run_dir) is None:
            print(f"failed: {run.name} ({how_it_ended})", file=sys.stderr)
    paths = [(name, result_of(run, args.run_dir)) for name, some in runs.items() for run in some]
    tables = [[part.assign(setting=name) for part in read("fig2", path)] for name, path in paths if path]
    if tables:
        points, ends = (pd.concat(parts) for parts in zip(*tables, strict=True))
        write_csv(str(ROOT / "benchmark/results/atari_variants.csv"), points)
        write_csv(str(ROOT / "benchmark/results/atari_variants_runs.csv"), ends)
        print(ends.groupby("setting", sort=False).size().to_string())
    return int(not all(path for _, path in paths))


if __name__ == "__main__":
    sys.exit(main(tyro.cli(Args, description=__doc__)))
