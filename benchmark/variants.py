"""Runs the settings that the texts compare with the defaults, and writes benchmark/results/variants.csv, a row per run.

    python benchmark/variants.py

- the authors' settings (mgerstgrasser/oracles_and_followers, commit e98db77) where Table 4 is silent: PPO, PG, DQN
- DQN's targets: one step, and the whole episode
- one flag of an ablation changed, where ablations/README.md says what comes of it

Runs are executed as those of `run.py` are: an interrupted command goes on where it stopped.
"""

import json
import os
import sys
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
import tyro
from tqdm import tqdm

sys.path.append(str(Path(__file__).resolve().parent))

from run import GAMES, ROOT, Run, result_of, run_in_processes, write_csv


@dataclass
class Args:
    jobs: int = os.cpu_count() or 1
    """runs at a time"""
    run_dir: str = "runs/benchmark"
    """folder that every run's own folder is made in"""
    only: str = ""
    """settings to run, by a part of their name; the file keeps what it has of the others"""


PAPER_FOLLOWER = {"follower_learning_rate": 0.02, "follower_gamma": 1.0, "follower_ent_coef": 0.0}
AUTHORS_FOLLOWER = PAPER_FOLLOWER | {"follower_baseline_rate": 0.0, "shuffled_leaders": False}
EVERY_STEP, TWO_GAMES = {"answers_only": False, "follower_baseline_rate": 0.2}, ("prisoners_dilemma", "chicken")
# name: script, flags, seeds (None: the script's own, side by side), games (None: the script's own)
SETTINGS = {
    "ppo authors": (
        "stackelberg_ppo_matrix",
        AUTHORS_FOLLOWER | {"explore": "action", "learning_rate": 0.008, "adam_eps": 1e-8, "update_epochs": 30},
        5,
        GAMES,
    ),
    "pg authors": (
        "stackelberg_pg_matrix",
        AUTHORS_FOLLOWER | {"explore": "action", "adam_eps": 1e-8, "baseline": False, "norm_adv": False},
        5,
        GAMES,
    ),
    "dqn authors": (
        "stackelberg_dqn_matrix",
        AUTHORS_FOLLOWER | {"answers_only": False, "n_step": 1, "centre_rewards": False},
        5,
        GAMES,
    ),
    "dqn one step": ("stackelberg_dqn_matrix", PAPER_FOLLOWER | EVERY_STEP | {"n_step": 1}, 5, TWO_GAMES),
    "dqn 5 steps": ("stackelberg_dqn_matrix", PAPER_FOLLOWER | EVERY_STEP, 5, TWO_GAMES),
    "dqn whole episode": ("stackelberg_dqn_matrix", PAPER_FOLLOWER | EVERY_STEP | {"n_step": 0}, 5, TWO_GAMES),
    "ppo_qlearning zero start": ("ppo_qlearning_matrix", {"q_init": 0.0}, 3, GAMES),
    "es_md paid afterwards": ("es_md_matrix", {"reward_during_learning": False}, 3, GAMES),
    "hidden dqn 0.001": ("hidden_queries", {"leader": "dqn", "learning_rate": 0.001}, None, None),
    "hidden dqn 0.1": ("hidden_queries", {"leader": "dqn", "learning_rate": 0.1}, None, None),
    "hidden dqn one step": ("hidden_queries", {"leader": "dqn", "n_step": 1}, None, None),
    "hidden es small noise": ("hidden_queries", {"leader": "es", "es_stddev": 0.02}, None, None),
    "reward one step": ("leader_reward_during_learning", {"n_step": 1}, None, None),
    "reward epsilon": ("leader_reward_during_learning", {"epsilon": 0.2}, None, None),
    "continuous 0.015": ("continuous_follower", {"learning_rate": 0.015}, None, None),
    "continuous 0.03": ("continuous_follower", {"learning_rate": 0.03}, None, None),
}


def runs_of(name: str) -> list[Run]:
    """Returns the runs of a setting."""
    script, flags, seeds, games = SETTINGS[name]
    if seeds is None:
        return [Run(script, flags)]
    return [Run(script, {"env_id": game, "seed": seed} | flags) for game in games for seed in range(1, seeds + 1)]


def rows_of(name: str, path: Path) -> list[dict]:
    """Returns a row for each leader of a result.json: labels, and every number that it holds."""
    result = json.loads(path.read_text())
    labels = {"setting": name, "script": result["script"].removesuffix(".py")}
    rows = []
    for run in result.get("runs", [result]):
        of_run = {"env_id": run.get("env_id", result["env_id"]), "seed": run["seed"]}
        of_run |= {key: run[key] for key in ("arm", "reward") if key in run}
        names = "stackelberg_value follower_regret leader_return_greedy leader_return leader_return_exact".split()
        names += "steps_to_converge steps_to_converge_exploring share_at_value follower_regret_all".split()
        rows.append(labels | of_run | {key: run[key] for key in names if key in run})
    return rows


def main(args: Args) -> int:
    """Runs what is missing and writes the file; returns the exit code: 1 if a run failed."""
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    names = [name for name in SETTINGS if args.only in name]
    runs = {run.name: run for name in names for run in runs_of(name)}
    missing = [run for run in runs.values() if result_of(run, args.run_dir) is None]
    for run, how_it_ended in tqdm(run_in_processes(missing, args), total=len(missing), disable=None):
        if result_of(run, args.run_dir) is None:
            print(f"failed: {run.name} ({how_it_ended})", file=sys.stderr)
    paths = [(name, result_of(run, args.run_dir)) for name in names for run in runs_of(name)]
    rows = pd.DataFrame([row for name, path in paths if path for row in rows_of(name, path)])
    path = ROOT / "benchmark/results/variants.csv"
    others = pd.read_csv(path) if path.exists() else pd.DataFrame({"setting": []})
    rows = pd.concat([others[~others["setting"].isin(names)], rows])
    write_csv(str(path), rows)
    print(rows.groupby("setting", sort=False).size().to_string())
    return int(not all(path for _, path in paths))


if __name__ == "__main__":
    sys.exit(main(tyro.cli(Args, description=__doc__)))
