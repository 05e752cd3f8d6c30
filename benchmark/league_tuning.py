"""Chooses the settings of the league's methods on random games, and writes benchmark/results/league_tuning.csv.

    python benchmark/league_tuning.py

Of at most 20 settings of a method, the first its script's own (of the no-regret follower, 100 rounds), that one plays
in the league which guarantees the optimum in most runs; among equals that which loses least in the mean. Leaders that
mix are compared by this mean alone, since the optimum of their class is not known here. A row of the file is a setting.
An interrupted command goes on where it stopped.
"""

import json
import os
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import tyro
from tqdm import tqdm

sys.path.append(str(Path(__file__).resolve().parent))

import league
from held_out import payoffs_of
from run import ROOT, Run, result_of, run_in_processes, write_csv


@dataclass
class Args:
    jobs: int = os.cpu_count() or 1
    """runs at a time"""
    run_dir: str = "runs/league_tuning"
    """folder that every run's own folder is made in"""
    methods: tuple[str, ...] = ()
    """methods to tune; the file keeps what it has of the others"""
    file: str = str(ROOT / "benchmark/results/league_tuning.csv")
    """where the rows go"""

    def __post_init__(self):
        self.methods = self.methods or tuple(SETTINGS)
        if unknown := {*self.methods} - {*SETTINGS}:
            raise ValueError(f"no method {', '.join(unknown)}: choose from {', '.join(SETTINGS)}")


def one_by_one(**values: tuple) -> list[dict]:
    """Returns settings that differ from a script's own in one flag each."""
    return [{flag: value} for flag, some in values.items() for value in some]


NO_REGRET, SUM, STEP_SIZES = {"rounds": (100,)}, {"objective": "sum"}, {3: 30.0, 10: 10.0, 30: 3.0, 100: 3.0}
EPS = {"adam_eps": 1e-3}
SETTINGS = {
    "PPO + Q-learning": [
        {},
        *one_by_one(learning_rate=(0.06, 0.12), follower_episodes=(40, 160), batch_size=(24_000,)),
        *one_by_one(q_learning_rate=(0.3,), q_epsilon=(0.2,), ent_coef=(0.03,), adam_eps=(1e-4, 1e-3)),
        league.PAPER_Q,
        *(EPS | flags for flags in one_by_one(learning_rate=(0.015, 0.06), follower_episodes=(40,))),
        *(EPS | flags for flags in one_by_one(q_learning_rate=(0.3,), update_epochs=(4,), ent_coef=(0.01,))),
        EPS | {"q_learning_rate": 0.3, "learning_rate": 0.06},
        EPS | {"q_learning_rate": 0.3, "follower_episodes": 40},
    ],
    "ES-MD": [
        {},
        *one_by_one(noise_std=(1.0, 4.0), learning_rate=(0.03, 0.3), population=(64, 256)),
        *one_by_one(follower_updates=(25, 100), follower_step_size=(0.3, 3.0), reward_during_learning=(False,)),
        *({"noise_std": 4.0} | flags for flags in one_by_one(learning_rate=(0.3,), population=(64, 256))),
        *({"noise_std": 4.0} | flags for flags in one_by_one(follower_updates=(25,), follower_step_size=(0.3,))),
        *({"noise_std": 8.0} | flags for flags in ({}, {"learning_rate": 0.3})),
    ],
    "no-regret follower": [
        NO_REGRET,
        *(NO_REGRET | flags for flags in one_by_one(rounds=((30,), (300,)), learning_rate=(0.03, 0.12, 0.24))),
        *(NO_REGRET | flags for flags in one_by_one(batch_episodes=(16, 64, 128), adam_eps=(0.02,))),
        *(NO_REGRET | flags for flags in one_by_one(reply=("average",), num_episodes=(9600,))),
        *(NO_REGRET | {"batch_episodes": 8, "rounds": rounds} for rounds in ((100,), (300,))),
        NO_REGRET | {"batch_episodes": 16, "rounds": (300,)},
    ],
    "Diff-MD": [
        {},
        *one_by_one(learning_rate=(0.03, 0.3, 1.0), iterations=(600,), follower_std=(0.3, 1.0)),
        *({"unroll": (k,), "follower_step_size": (size,)} for k, size in STEP_SIZES.items() if k != 30),
        *(SUM | {"unroll": (k,), "follower_step_size": (size,)} for k, size in STEP_SIZES.items()),
        *(SUM | flags for flags in one_by_one(learning_rate=(0.3, 1.0), follower_std=(1.0,), iterations=(600,))),
        *(SUM | {"learning_rate": 0.3, "iterations": 600, "follower_std": std} for std in (0.1, 1.0)),
    ],
}
METHODS = {method.name: method for method in league.METHODS}


# ---------------------------------------------------------------------------------------------------------- the games
def random_games(number: int = 12) -> dict[str, np.ndarray]:
    """Returns the first `number` random games in which always playing one action does not attain the optimum, and as
    many others; stretched to payoffs from -3 to 0, for which the league's tolerance is meant. They are entered into
    league.RETURNS, by which its functions know a game."""
    hard, easy, k = {}, {}, 0
    while len(hard) < number or len(easy) < number:
        name, payoffs = f"random_{k}", payoffs_of(k)
        payoffs = 3 * (payoffs - payoffs.max((1, 2), keepdims=True)) / np.ptp(payoffs, axis=(1, 2), keepdims=True)
        league.RETURNS[name] = league.ordinal_games.batch.solve(payoffs[None], num_steps=10)["returns"][0]
        of_kind = hard if league.landscape(name)["beyond_one_action"] > league.TOLERANCE else easy
        if len(of_kind) < number:
            of_kind[name] = payoffs
        k += 1
    return hard | easy


GAMES = random_games()
OPTIMA = {name: league.landscape(name)["optimum"] for name in GAMES}


# ----------------------------------------------------------------------------------------------------------- the runs
def runs_of(name: str, setting: dict) -> list[Run]:
    """Returns the runs of a setting, on every game."""
    script = METHODS[name].script
    if script == "diff_md_matrix":
        return [Run(script, {"games": tuple(GAMES), "num_seeds": 3} | setting)]
    flags = {"es_md_matrix": {"evaluation_followers": 1}, "ppo_qlearning_matrix": {"evaluation_followers": 1}}
    flags = flags.get(script, {"num_seeds": 3} if METHODS[name].batch else {}) | setting
    own = {game: [tuple(row.tolist()) for row in payoffs.reshape(2, 4)] for game, payoffs in GAMES.items()}
    return [
        Run(script, {"env_id": game, **flags, "leader_payoff": leader, "follower_payoff": follower})
        for game, (leader, follower) in own.items()
    ]


def flags_of(setting: dict) -> str:
    """Returns a setting as flags of the command line."""
    words = []
    for flag, value in setting.items():
        flag = flag.replace("_", "-")
        values = value if isinstance(value, tuple) else (value,)
        words += [f"--no-{flag}"] if value is False else [f"--{flag}", *map(str, values)]
    return " ".join(words)


def losses(path: Path) -> list[float]:
    """Returns how much less than the optimum of deterministic leaders each leader of a run is guaranteed."""
    if path.suffix == ".csv":
        rows = pd.read_csv(path)
        return ((rows["stackelberg_value_pessimistic"] - rows["leader_return_guaranteed"]) / rows["scale"]).tolist()
    result = json.loads(path.read_text())
    runs = [result | run for run in result.get("runs", [result])]
    return [OPTIMA[r["env_id"]] - league.guaranteed(r["env_id"], league.digits(r["leader_policy"])) for r in runs]


def row_of(name: str, setting: dict, run_dir: str) -> dict:
    """Returns a setting's row."""
    paths = [result_of(run, run_dir) for run in runs_of(name, setting)]
    lost = np.array([loss for path in paths for loss in losses(path)])
    mixes = METHODS[name].commitment == "stochastic"
    seconds = sum(float((path.parents[1] / "cpu_seconds").read_text()) for path in paths)
    row = {"method": name, "setting": flags_of(setting), "games": len(GAMES), "runs": len(lost)}
    row |= {"guarantees_optimum": np.nan if mixes else np.mean(lost <= league.TOLERANCE)}
    return row | {"mean_loss": lost.mean(), "cpu_seconds": seconds / len(lost)}


def best(rows: pd.DataFrame) -> pd.DataFrame:
    """Returns the row of each method's best setting."""
    order = rows.assign(misses=-rows["guarantees_optimum"]).sort_values(["misses", "mean_loss"], kind="stable")
    return order.groupby("method", sort=False).first().loc[rows["method"].unique()].reset_index()


def main(args: Args) -> int:
    """Runs what is missing and writes the file; returns the exit code: 1 if a run failed."""
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    settings = [(name, setting) for name in args.methods for setting in SETTINGS[name]]
    runs = {run.name: run for one in settings for run in runs_of(*one)}
    missing = [run for run in runs.values() if result_of(run, args.run_dir) is None]
    failed = 0
    for run, how_it_ended in tqdm(run_in_processes(missing, args), total=len(missing), disable=None):
        if result_of(run, args.run_dir) is None:
            failed += 1
            print(f"failed: {run.name} ({how_it_ended})", file=sys.stderr)
    if failed:
        return 1
    rows = pd.DataFrame([row_of(name, setting, args.run_dir) for name, setting in settings])
    if os.path.exists(args.file):
        others = pd.read_csv(args.file)
        rows = pd.concat([others[~others["method"].isin(args.methods)], rows])
    rows = rows.sort_values("method", key=lambda names: names.map([*SETTINGS].index), kind="stable")
    write_csv(args.file, rows)
    print(rows.to_string(index=False, float_format="{:.3g}".format))
    return 0


if __name__ == "__main__":
    sys.exit(main(tyro.cli(Args, description=__doc__)))
