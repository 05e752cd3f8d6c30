"""Runs the PPO, PG and DQN scripts on random games that no setting was chosen on; writes results/held_out.csv.

    python benchmark/held_out.py

Random game k is `3 * numpy.random.default_rng(k).random((2, 2, 2)) - 3`, leader first. Settings were chosen on games 0
to 999. A row of the file is a run, written when it ends: interrupt the command, and it goes on where it stopped. It
does not notice that a script has changed since; then `--fresh` runs it anew.
"""

import contextlib
import importlib
import io
import os
import sys
import tempfile
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import tyro
from tqdm import tqdm

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "benchmark")]

from run import TOLERANCE, write_csv  # noqa: E402

SCRIPTS = ("stackelberg_pg_matrix", "stackelberg_dqn_matrix", "stackelberg_ppo_matrix")
COLUMNS = "leader_return leader_return_greedy stackelberg_value stackelberg_value_pessimistic leader_regret"
COLUMNS += " follower_regret follower_regret_all steps_to_converge steps_to_converge_exploring"


@dataclass
class Args:
    scripts: tuple[str, ...] = SCRIPTS
    """scripts to run, with their default flags"""
    first_game: int = 5000
    """number of the first random game"""
    num_games: int = 200
    """random games"""
    jobs: int = os.cpu_count() or 1
    """runs at a time"""
    fresh: bool = False
    """forget what the file holds of these scripts"""
    file: str = str(ROOT / "benchmark/results/held_out.csv")
    """where the rows go"""

    def __post_init__(self):
        if unknown := {*self.scripts} - {*SCRIPTS}:
            raise ValueError(f"no script {', '.join(unknown)}: choose from {', '.join(SCRIPTS)}")
        if self.num_games <= 0 or self.first_game < 0 or self.jobs <= 0:
            raise ValueError("--num-games and --jobs must be positive, --first-game at least 0")


def payoffs_of(game: int) -> np.ndarray:
    """Returns the payoffs of a random game, [player, leader's action, follower's action]."""
    return 3 * np.random.default_rng(game).random((2, 2, 2)) - 3


def row_of(script: str, game: int) -> dict:
    """Runs a script on a random game; returns its row."""
    module, payoffs = importlib.import_module(script), payoffs_of(game)
    own = dict(zip(("leader_payoff", "follower_payoff"), map(tuple, payoffs.reshape(2, 4).tolist()), strict=True))
    with contextlib.redirect_stdout(io.StringIO()), tempfile.TemporaryDirectory() as run_dir:
        result = module.main(module.Args(env_id=f"random_{game}", run_dir=run_dir, **own))
    leader_scale, follower_scale = np.ptp(payoffs, axis=(1, 2)) / 3  # a unit of Table 3's games
    row = {"script": script, "game": game, "leader_scale": leader_scale, "follower_scale": follower_scale}
    return row | {name: np.nan if result[name] is None else result[name] for name in COLUMNS.split()}


def shares(rows: pd.DataFrame) -> pd.DataFrame:
    """Returns, for each script, how many games and the shares of them in which the greedy leader, and the leader as it
    explores, end within 0.05 of the scale of the optimum, and the follower's regret there is at most that of its own;
    and the bootstrap's 95 % interval of the first."""
    gaps = {name: rows[name] - rows["stackelberg_value"] for name in ("leader_return_greedy", "leader_return")}
    found = pd.DataFrame({name: gap.abs() <= TOLERANCE * rows["leader_scale"] for name, gap in gaps.items()})
    found = found.set_axis(["at_optimum", "at_optimum_exploring"], axis=1)
    found["follower_is_right"] = rows["follower_regret"] <= TOLERANCE * rows["follower_scale"]
    by_script = found.groupby(rows["script"], sort=False)
    low, high = {}, {}
    for script, some in by_script["at_optimum"]:
        index = np.random.default_rng(0).integers(len(some), size=(10_000, len(some)))
        low[script], high[script] = np.quantile(some.to_numpy(float)[index].mean(axis=1), (0.025, 0.975))
    table = by_script.mean().assign(low=pd.Series(low), high=pd.Series(high))
    return by_script.size().to_frame("games").join(table)


def main(args: Args) -> None:
    """Runs what is missing, and prints the shares."""
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    os.makedirs(os.path.dirname(args.file) or ".", exist_ok=True)
    rows = pd.read_csv(args.file) if os.path.exists(args.file) else pd.DataFrame(columns=["script", "game"])
    if args.fresh:
        rows = rows[~rows["script"].isin(args.scripts)]
    done = set(zip(rows["script"], rows["game"], strict=True))
    games = range(args.first_game, args.first_game + args.num_games)
    missing = [(script, game) for script in args.scripts for game in games if (script, game) not in done]
    with ProcessPoolExecutor(args.jobs) as pool:
        ended = as_completed([pool.submit(row_of, *one) for one in missing])
        for future in tqdm(ended, total=len(missing), disable=None):
            rows = pd.concat([rows, pd.DataFrame([future.result()])]) if len(rows) else pd.DataFrame([future.result()])
            write_csv(args.file, rows.sort_values(["script", "game"]))
    print(shares(pd.read_csv(args.file)).to_string(float_format="{:.3f}".format))


if __name__ == "__main__":
    main(tyro.cli(Args, description=__doc__))
