"""Runs the Atari trade with other settings than the defaults: benchmark/results/atari_variants*.csv, and their figure.

    python benchmark/atari_variants.py
    python benchmark/atari_variants.py --draw-only

With the seller as leader, from the committed gameplay networks of seeds 1 to 3:
- discount and lambda of the trades, hits rewarded at the shot or as they land, the game frozen
- what shapes the network: the game's actions alone, or trades and values too; either at the default rate, and faster
The defaults themselves are the runs of Figure 2 that made these networks, from stage 2 on.

With either leader, one seed:
- Table 4's PPO, where it can be had by flags
- random weights instead of gameplay weights, for three million steps

Runs are executed as those of `run.py` are: an interrupted command goes on where it stopped. They leave out the
verification.
"""

import os
import sys
from dataclasses import dataclass
from pathlib import Path

import matplotlib.pyplot as plt
import pandas as pd
import tyro
from tqdm import tqdm

sys.path.append(str(Path(__file__).resolve().parent))

import plot
from plot import BLACK, BLUE, DASHED, GREEN, ORANGE, PINK, RED, SKY, YELLOW, draw_mean, legend_above, thousands
from run import ROOT, Run, read, result_of, run_in_processes, write_csv


@dataclass
class Args:
    jobs: int = os.cpu_count() or 1
    """runs at a time"""
    run_dir: str = "runs/benchmark"
    """folder that every run's own folder is made in"""
    only: str = ""
    """settings to run, by a part of their name; the files keep what they have of the others"""
    draw_only: bool = False
    """draw the figure from the CSVs, and run nothing"""


CHECKPOINTS = ROOT / "benchmark/checkpoints"
TABLE_4 = {"num_envs": 28, "learning_rate": 1e-3, "body_learning_rate": 1e-3, "anneal_lr": False, "shape_body": True}
TABLE_4 |= {"minibatch_size": 100, "update_epochs": 10, "clip_coef": 0.1, "gae_lambda": 0.95, "game_gae_lambda": 0.95}
TABLE_4 |= {"ent_coef": 0.01, "game_ent_coef": 0.01, "kl_coef": 0.5}
RANDOM_WEIGHTS = {"stage": "all", "gameplay_timesteps": 0, "body_learning_rate": 7e-4, "shape_body": True}
RANDOM_WEIGHTS |= {"follower_timesteps": 2_000_000, "total_timesteps": 3_000_000}
# name: flags, seeds, who leads
SETTINGS = {
    "discount 0.998, lambda 0.99": ({"gae_lambda": 0.99}, 3, ["seller"]),
    "discount 0.99, lambda 0.95": ({"gamma": 0.99}, 3, ["seller"]),
    "hits at the shot": ({"credit_shots": True}, 3, ["seller"]),
    "game frozen": ({"body_learning_rate": 0.0}, 3, ["seller"]),
    "all shapes the body": ({"shape_body": True}, 3, ["seller"]),
    "game at 0.0001": ({"body_learning_rate": 1e-4}, 3, ["seller"]),
    "all shapes the body at 0.0001": ({"shape_body": True, "body_learning_rate": 1e-4}, 3, ["seller"]),
    "Table 4": (TABLE_4, 1, ["seller", "buyer"]),
    "random weights": (RANDOM_WEIGHTS, 1, ["seller", "buyer"]),
}
RESULTS = ROOT / "benchmark/results"
FIG2 = ("fig2", "fig2_runs")


def runs_of(name: str) -> list[Run]:
    """Returns the runs of a setting."""
    flags, seeds, leaders = SETTINGS[name]
    runs = []
    for leader in leaders:
        for seed in range(1, seeds + 1):
            common = {"stage": "trade", "leader": leader, "seed": seed, "verification_timesteps": 1}
            if flags.get("stage") != "all":
                common["checkpoint"] = str((CHECKPOINTS / f"atari_trade_{leader}_{seed}.pt").relative_to(ROOT))
            runs.append(Run("stackelberg_ppo_atari_trade", common | flags))
    return runs


def default_runs() -> tuple[pd.DataFrame, pd.DataFrame]:
    """Returns the curves, from the end of stage 1 on, and the ends of Figure 2's runs from the same networks."""
    curves, ends = (pd.read_csv(RESULTS / f"{name}.csv").query("leader == 'seller' and seed <= 3") for name in FIG2)
    start = curves[curves["stage"] == "gameplay"].groupby("seed")["step"].max()
    curves = curves.assign(step=curves["step"] - curves["seed"].map(start)).query("step > 0")
    return curves.assign(setting="default"), ends.assign(setting="default")


# The figure: colour and line of each setting.
CREDIT = {
    "default": (BLACK, "-"),
    "discount 0.998, lambda 0.99": (BLUE, DASHED),
    "discount 0.99, lambda 0.95": (RED, DASHED),
    "hits at the shot": (GREEN, "-"),
    "game frozen": (ORANGE, "-"),
}
BODY = {
    "default": (BLACK, "-"),
    "game at 0.0001": (BLACK, DASHED),
    "all shapes the body": (PINK, "-"),
    "all shapes the body at 0.0001": (PINK, DASHED),
}
FROM_NOTHING = {"random weights": (SKY, "-"), "Table 4": (YELLOW, "-")}


def draw(results_dir: Path):
    """The Atari trade with other settings: credit, what shapes the network, random weights and Table 4."""
    rows = pd.read_csv(results_dir / "atari_variants.csv")  # with gaps: a stage has its own columns
    rows = rows[rows["stage"].isin(["gameplay", "follower", "leader"])]
    figure, axes = plt.subplots(2, 3, figsize=(11, 6.2))

    def panel(ax, settings, column, stages, title, leader="seller"):
        for name, (color, line) in settings.items():
            part = rows[(rows["setting"] == name) & (rows["leader"] == leader) & rows["stage"].isin(stages)]
            if len(part := part.dropna(subset=column)):
                draw_mean(ax, part, color, line, column=column)
        ax.set_title(title)
        ax.xaxis.set_major_formatter(thousands)

    panel(axes[0, 0], CREDIT, "acceptance_at_0.75", ["follower"], "buyers who follow: 0.75 accepted")
    panel(axes[0, 1], CREDIT, "leader_return", ["leader"], "sellers who lead: return")
    panel(axes[0, 2], BODY, "buyer_hits_per_shot", ["follower", "leader"], "buyers who follow: hits per shot")
    for ax, leader, price in ((axes[1, 0], "seller", "0.75"), (axes[1, 1], "buyer", "0.25")):
        panel(ax, FROM_NOTHING, f"acceptance_at_{price}", ["follower"], f"{leader} leads: {price} accepted", leader)
    panel(axes[1, 2], FROM_NOTHING, "buyer_hits_per_shot", ["follower", "leader"], "buyers who follow: hits per shot")
    for ax in axes.flat:
        ax.set_ylim(0, 4 if ax is axes[0, 1] else 1.02)
    axes[0, 2].set_ylim(0.7, 1.0)
    figure.supxlabel("environment steps of all stages, queries included", fontsize=9)
    entries = {**CREDIT, **BODY, **FROM_NOTHING}
    legend_above(figure, [(name, {"color": c, "linestyle": line}) for name, (c, line) in entries.items()], 3)
    return figure


def save_figure() -> None:
    """Draws the figure into its file."""
    plot.FIGURES["atari_variants"] = draw
    plot.save("atari_variants", RESULTS, ROOT / "benchmark/figures/atari_variants.png")


def main(args: Args) -> int:
    """Runs what is missing and writes the files; returns the exit code: 1 if a run failed."""
    if args.draw_only:
        save_figure()
        return 0
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    os.chdir(ROOT)  # the checkpoints' paths, which are part of a run's name, are the same on every machine
    runs = {name: runs_of(name) for name in SETTINGS if args.only in name}
    missing = [run for some in runs.values() for run in some if result_of(run, args.run_dir) is None]
    for run, how_it_ended in tqdm(run_in_processes(missing, args), total=len(missing), disable=None):
        if result_of(run, args.run_dir) is None:
            print(f"failed: {run.name} ({how_it_ended})", file=sys.stderr)
    paths = [(name, result_of(run, args.run_dir)) for name, some in runs.items() for run in some]
    tables = [[part.assign(setting=name) for part in read("fig2", path)] for name, path in paths if path]
    tables.append(default_runs())
    for name, parts in zip(("atari_variants", "atari_variants_runs"), zip(*tables, strict=True), strict=True):
        rows = pd.concat(parts)
        if (RESULTS / f"{name}.csv").exists():
            others = pd.read_csv(RESULTS / f"{name}.csv")
            rows = pd.concat([others[~others["setting"].isin(rows["setting"])], rows])
        write_csv(str(RESULTS / f"{name}.csv"), rows)
    print(rows.groupby("setting", sort=False).size().to_string())
    save_figure()
    return int(not all(path for _, path in paths))


if __name__ == "__main__":
    sys.exit(main(tyro.cli(Args, description=__doc__)))
