"""Measures commitments that mix: what leaders learn, what they are guaranteed, and what was to be had, by class.

    python benchmark/mixed.py                      # all of it; goes on where it was interrupted
    python benchmark/mixed.py --only "table3"
    python benchmark/mixed.py --draw-only

mixed_runs.csv has a row for each run, mixed_optima.csv one for each of 200 random games, whose optima are computed
without learning; it goes on where it stopped, too (to make all anew, delete the file). Settings were chosen on random
games with numbers below 1,000; random games here start with 5,000. A tolerance is a share of the scale, a third of the
range of the leader's payoffs.
"""

import json
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

import mixed_commitment_matrix as mixed  # noqa: E402
import plot  # noqa: E402
from plot import BLACK, BLUE, DASHED, GAMES, GREEN, GREY, ORANGE, RED, board  # noqa: E402
from run import Run, result_of, run_in_processes, write_csv  # noqa: E402


@dataclass
class Args:
    jobs: int = os.cpu_count() or 1
    """runs at a time"""
    only: str = ""
    """settings to run, by a part of their name; the CSV keeps the rows of other runs"""
    run_dir: str = "runs/benchmark"
    """folder that every run's own folder is made in"""
    results_dir: str = str(ROOT / "benchmark/results")
    """folder for the CSVs"""
    figures_dir: str = str(ROOT / "benchmark/figures")
    """folder for the pictures"""
    draw_only: bool = False
    """draw the figures from the CSVs, and run nothing"""


HELD_OUT = 5000
NUM_RANDOM = 200  # games of mixed_optima.csv
ONE_SHOT = {"num_steps": 1}
TEXTBOOK = {
    "textbook 2x2": {"leader_payoff": (2.0, 4.0, 1.0, 3.0), "follower_payoff": (1.0, 0.0, 0.0, 1.0)},
    "textbook 2x3": {"leader_payoff": (2.0, 0.0, 0.0, 1.0, 0.0, 0.0), "leader_actions": 2},
}
TEXTBOOK["textbook 2x3"]["follower_payoff"] = (0.0, 2.0, 5.0, 0.0, -1.0, -4.0)
# the games of a family, flags of each
FAMILIES = {
    "dilemma": [{"env_id": "prisoners_dilemma"}],
    "table3": [{"env_id": game} for game in GAMES],
    "others": [{"env_id": game} for game in GAMES[1:]],
    "ordinal": [{"env_id": f"{a}-{b}"} for a in GAMES for b in GAMES if a != b],
    **{name: [flags | ONE_SHOT] for name, flags in TEXTBOOK.items()},
    "one-shot 3x3": [{"random_game": (3, 3, HELD_OUT + k)} | ONE_SHOT for k in range(50)],
}
NETWORK = {"follower": "network"}
# (games, setting): seeds, flags
SETTINGS = {
    ("table3", "planning"): (10, {}),
    ("textbook 2x2", "planning"): (10, {}),
    ("textbook 2x3", "planning"): (10, {}),
    ("one-shot 3x3", "planning"): (1, {}),
    **{("textbook 2x2", f"{k} actions"): (5, {"queries": k}) for k in (1, 2, 4, 16, 64)},
    **{("dilemma", f"{k} actions"): (3, {"queries": k}) for k in (1, 2, 4, 16, 64)},
    ("ordinal", "planning"): (1, {}),
    ("dilemma", "network"): (10, NETWORK),
    ("textbook 2x2", "network"): (10, NETWORK),
    ("textbook 2x3", "network"): (10, NETWORK),
    ("one-shot 3x3", "network"): (1, NETWORK),
    ("others", "network"): (10, NETWORK),
}
COLUMNS = "leader_return leader_return_greedy leader_return_guaranteed follower_return follower_regret"
COLUMNS = f"{COLUMNS} combined_steps steps_to_try_all steps_to_converge"
OPTIMA = [f"stackelberg_value{x}" for x in ("", "_pessimistic", "_mixture", "_stochastic", "_guaranteed", "_bound")]


def runs_of(family: str, setting: str) -> list[Run]:
    """Returns the runs of a setting."""
    seeds, flags = SETTINGS[family, setting]
    games = [game | flags for game in FAMILIES[family]]
    return [Run("mixed_commitment_matrix", game | {"seed": 1 + seed}) for game in games for seed in range(seeds)]


def row_of(family: str, setting: str, path: Path) -> dict:
    """Returns a run's row of the CSV."""
    result = json.loads(path.read_text())
    args = result["args"]
    flags = {
        name: args[name] for name in "env_id leader_payoff follower_payoff leader_actions random_game num_steps".split()
    }
    scale = np.ptp(mixed.Args(**flags).payoffs[0]) / 3
    row = {"games": family, "setting": setting, "env_id": result["env_id"], "seed": result["seed"], "scale": scale}
    if args["random_game"]:
        row["env_id"] = "random_{}x{}_{}".format(*args["random_game"])
    row |= {name: result[name] for name in (*OPTIMA, *COLUMNS.split())}
    row |= {name: " ".join(f"{p:.6f}" for p in result[name]) for name in ("leader_policy", "stackelberg_policy")}
    return row


def optima_of(number: int) -> dict:
    """Returns a random iterated 2 x 2 game's row of mixed_optima.csv."""
    game = mixed.MatrixGame(np.random.default_rng(number).random((2, 2, 2)), 10)
    values = mixed.solve(game)
    return {"game": number, "scale": game.scale[0], **{name: getattr(values, name) for name in values._fields[:-1]}}


def solve_random(path: Path) -> None:
    """Writes the rows of mixed_optima.csv that are missing there."""
    rows = pd.read_csv(path).to_dict("records") if path.exists() else []
    numbers = sorted({*range(HELD_OUT, HELD_OUT + NUM_RANDOM)} - {row["game"] for row in rows})
    for number in tqdm(numbers, desc="optima", disable=None):
        rows.append(optima_of(number))
        write_csv(str(path), pd.DataFrame(rows))


def beside_older(table: pd.DataFrame, path: Path) -> pd.DataFrame:
    """Returns the rows of runs together with those that a CSV has of other runs, in the order of the settings."""
    key, order = ["games", "setting", "env_id", "seed"], list(SETTINGS)
    older = [pd.read_csv(path)] if path.exists() else []
    table = pd.concat([*older, table]).drop_duplicates(key, keep="last")
    place = [order.index(setting) for setting in zip(table["games"], table["setting"], strict=True)]
    return table.iloc[np.argsort(place, kind="stable")]


# -------------------------------------------------------------------------------------------------------- the figures
LINES = {
    "stackelberg_value": ("deterministic", GREY, (0, (1, 2))),
    "stackelberg_value_mixture": ("mixtures drawn before play", GREEN, (0, (3, 1, 1, 1))),
    "stackelberg_value_guaranteed": ("memory-1 leaders that mix", BLACK, DASHED),
}


def mixed_queries(results_dir: Path):
    """What leaders get and what they are guaranteed over the number of actions in an answer; the learned strategy."""
    runs = pd.read_csv(results_dir / "mixed_runs.csv")
    figure, axes = plt.subplots(1, 3, figsize=(10, 3.5), width_ratios=(3, 3, 2.4))
    panels = {"dilemma": "prisoner's dilemma, 10 steps", "textbook 2x2": "one shot: [[2, 4], [1, 3]], [[1, 0], [0, 1]]"}
    labels = [*(f"{k} actions" for k in (1, 2, 4, 16, 64)), "planning"]
    for ax, (family, title) in zip(axes, panels.items(), strict=False):
        some = runs[(runs["games"] == family) | ((runs["games"] == "table3") & (runs["env_id"] == "prisoners_dilemma"))]
        some = some[some["games"].isin([family, "table3"] if family == "dilemma" else [family])]
        for column, color, marker in (("greedy", ORANGE, "s"), ("guaranteed", BLUE, "o")):
            means = [some.loc[some["setting"] == label, f"leader_return_{column}"].mean() for label in labels]
            ax.plot(range(len(labels)), means, color=color, zorder=3)
            for x, label in enumerate(labels):
                values = some.loc[some["setting"] == label, f"leader_return_{column}"]
                ax.plot([x] * len(values), values, marker, color=color, markersize=3, alpha=0.5, zorder=4)
        for column, (_, color, line) in LINES.items():
            ax.axhline(some[column].iloc[0], color=color, linestyle=line, linewidth=1)
        ax.set_xticks(range(len(labels)), ["1", "2", "4", "16", "64", "proba-\nbilities"])
        ax.set(title=title, xlabel="actions that answer each query")
    axes[0].set_ylabel("leader's return per step")
    entries = [("against the follower, which sees the answers", {"color": ORANGE, "marker": "s", "markersize": 3})]
    entries += [("guaranteed: exact best response to its policy", {"color": BLUE, "marker": "o", "markersize": 3})]
    entries += [(f"optimum: {name}", {"color": color, "linestyle": line}) for name, color, line in LINES.values()]
    plot.legend_above(figure, entries, 3)

    learned = runs[(runs["games"] == "table3") & (runs["env_id"] == "prisoners_dilemma")]
    policies = np.array([[float(p) for p in text.split()] for text in learned["leader_policy"]])
    optimum = [float(p) for p in learned["stackelberg_policy"].iloc[0].split()]
    ax, x = axes[2], np.arange(5)
    ax.bar(x - 0.2, policies[0], 0.38, color=BLUE, label="learned, seed 1")
    ax.bar(x + 0.2, optimum, 0.38, color=BLACK, alpha=0.55, label="optimum, one of many")
    for policy in policies[1:]:
        ax.plot(x - 0.2, policy, "_", color=RED, markersize=7)
    ax.plot([], [], "_", color=RED, label="other seeds")
    ax.set_xticks(x, ["start", "CC", "CD", "DC", "DD"])
    ax.set(title="prisoner's dilemma, probabilities", ylabel="probability to defect", ylim=(0, 1.42))
    ax.set(xlabel="after leader's, follower's action", yticks=(0, 0.5, 1))
    ax.legend(loc="upper left", fontsize=7)
    ax.grid(axis="x", visible=False)
    return figure


def mixed_atlas(results_dir: Path):
    """All 144 ordinal games: what mixing adds to the guaranteed return, and what the planning leader misses of it."""
    runs = pd.read_csv(results_dir / "mixed_runs.csv")
    cells = runs[(runs["setting"] == "planning") & runs["games"].isin(["table3", "ordinal"])]
    cells = cells[cells["seed"] == 1].set_index("env_id")
    cells = cells.reindex([a if a == b else f"{a}-{b}" for a in GAMES for b in GAMES])  # hatched: not run
    figure, axes = plt.subplots(1, 2, figsize=(9.6, 5.2), sharey=True)
    gain = cells["stackelberg_value_guaranteed"] - cells["stackelberg_value_pessimistic"]
    image = board(axes[0], gain, "cividis_r", 0, 1.3, lambda x: f"{x:.1f}" if x > 0.02 else "")
    axes[0].set_title("what mixing adds to what a leader is guaranteed")
    figure.colorbar(image, ax=axes[0], shrink=0.5, label="per step")
    miss = cells["stackelberg_value_guaranteed"] - cells["leader_return_guaranteed"]
    image = board(axes[1], miss.clip(lower=0), "Reds", 0, 0.1, lambda x: f"{x:.2f}" if x > 0.02 else "")
    axes[1].set_title("what the planning leader misses of it")
    figure.colorbar(image, ax=axes[1], shrink=0.5, label="per step")
    for name in gain.index[cells["stackelberg_value_stochastic"] - cells["stackelberg_value_guaranteed"] > 0.02]:
        leader, _, follower = name.partition("-")
        i, j = GAMES.index(leader), GAMES.index(follower or leader)
        axes[0].plot(j + 0.36, i - 0.36, ".", color=RED, markersize=4)
    figure.supxlabel("follower's payoffs of (red dot: with ties for the leader it would be over 0.02 more)", fontsize=9)
    figure.supylabel("leader's payoffs of", fontsize=9)
    return figure


FIGURES = {f.__name__: f for f in (mixed_queries, mixed_atlas)}


def main(args: Args) -> int:
    """Runs what is missing, and writes CSVs and figures; returns the exit code: 1 if a run failed."""
    failed, results_dir = False, Path(args.results_dir)
    if not args.draw_only:
        os.environ.setdefault("OMP_NUM_THREADS", "1")
        results_dir.mkdir(parents=True, exist_ok=True)
        asked = [run for setting in SETTINGS if args.only in ", ".join(setting) for run in runs_of(*setting)]
        missing = [run for run in asked if result_of(run, args.run_dir) is None]
        for run, how_it_ended in tqdm(run_in_processes(missing, args), total=len(missing), disable=None):
            if result_of(run, args.run_dir) is None:
                failed = True
                print(f"failed: {run.name} ({how_it_ended})", file=sys.stderr)
        paths = [(setting, result_of(run, args.run_dir)) for setting in SETTINGS for run in runs_of(*setting)]
        table, file = pd.DataFrame([row_of(*setting, path) for setting, path in paths if path]), "mixed_runs.csv"
        table = beside_older(table, results_dir / file)
        write_csv(str(results_dir / file), table)
        table["miss"] = (table["stackelberg_value_guaranteed"] - table["leader_return_guaranteed"]) / table["scale"]
        groups = table.groupby(["games", "setting"], sort=False)[["miss", "combined_steps"]]
        print(groups.agg(["size", "median", "max"]).to_string())
        if args.only in "optima":
            solve_random(results_dir / "mixed_optima.csv")
    plot.FIGURES.update(FIGURES)
    os.makedirs(args.figures_dir, exist_ok=True)
    for name in FIGURES:
        plot.save(name, results_dir, Path(args.figures_dir, f"{name}.png"))
        plt.close("all")
    return int(failed)


if __name__ == "__main__":
    sys.exit(main(tyro.cli(Args, description=__doc__)))
