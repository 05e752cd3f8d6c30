"""Draws the paper's figures from the CSVs that `run.py` wrote; runs nothing.

    python benchmark/plot.py

One function draws one figure, and reads benchmark/results alone; the pictures go to benchmark/figures. Lines are means
over seeds: thick ones of the leader as it explores, which is what the paper plots, thin ones of the greedy leader. The
same CSVs give the same pictures, pixel for pixel.
"""

import itertools
import os
import re
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import matplotlib

matplotlib.use("Agg")  # no window
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import tyro
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle
from PIL import Image

ROOT = Path(__file__).resolve().parent.parent
Figure = Literal[
    *("fig1", "fig1_steps", "fig2", "fig3", "fig4", "fig5", "fig6", "fig8", "theorem2", "es_md", "recurrent"),
    *("league", "league_boards", "league_games", "all"),
]


@dataclass
class Args:
    figures: tyro.conf.Positional[tuple[Figure, ...]] = ("all",)
    """figures of the paper; fig1_steps: how many steps each method takes to the optimum; es_md: the learning curves of
    evolution strategies; recurrent: a follower without queries; league: every method on all 144 ordinal games, with
    league_boards and league_games; all: those for which there are CSVs"""
    results_dir: Annotated[str, tyro.conf.arg(name="from")] = str(ROOT / "benchmark/results")
    """folder with the CSVs"""
    figures_dir: Annotated[str | None, tyro.conf.arg(name="to")] = None
    """folder for the pictures; default: benchmark/figures, or figures beside the CSVs of another --from"""

    def __post_init__(self):
        missing = [name for name in FIGURES if not Path(self.results_dir, f"{source(name)}.csv").is_file()]
        for name in self.figures:
            if name in missing:
                command = f"python benchmark/run.py {name.partition('_')[0] if name != 'es_md' else name}"
                raise ValueError(f"no {source(name)}.csv in {self.results_dir}: {command}")
        if "all" in self.figures:
            self.figures = tuple(name for name in FIGURES if name not in missing)
        elif "league" in self.figures:
            self.figures = tuple(dict.fromkeys([*self.figures, "league_boards", "league_games"]))
        if not self.figures:
            raise ValueError(f"no CSVs of figures in {self.results_dir}: python benchmark/run.py all")
        if self.figures_dir is None:
            is_default = Path(self.results_dir).resolve() == ROOT / "benchmark/results"
            self.figures_dir = str(ROOT / "benchmark/figures" if is_default else Path(self.results_dir, "figures"))


# --------------------------------------------------------------------------------------------------------------- style
# Okabe and Ito's colours, which colour-blind readers tell apart
BLACK, ORANGE, SKY, GREEN, YELLOW, BLUE, RED, PINK = (
    "#000000 #E69F00 #56B4E9 #009E73 #F0E442 #0072B2 #D55E00 #CC79A7".split()
)
GREY = "#777777"

# script: name, colour, line, marker; in this order in every legend
METHODS = {
    "stackelberg_ppo_matrix": ("Meta-RL, PPO leader", BLUE, "-", "o"),
    "stackelberg_pg_matrix": ("Meta-RL, PG leader", SKY, (0, (3, 1)), "^"),
    "stackelberg_dqn_matrix": ("Meta-RL, DQN leader", GREEN, (0, (2, 2)), "v"),
    "ppo_qlearning_matrix": ("PPO + Q-learning", ORANGE, "-", "s"),
    "es_md_matrix": ("ES-MD", BLACK, "--", "P"),
    "replay_follower_matrix": ("replay (a former script, commit 123dc58)", PINK, "-", "D"),
}
GAMES = ("prisoners_dilemma", "stag_hunt", "assurance", "coordination", "mixedharmony", "harmony")
GAMES += ("noconflict", "deadlock", "prisoners_delight", "hero", "battle", "chicken")
BRUTE_FORCE = 480  # steps to try each of the 32 leaders once: 32 x 15

# What stochastic memory-1 leaders can get in the prisoner's dilemma (results/commitments.csv). No leader gets more: the
# follower can have -2 by defecting, and half CC, half DC is the best outcome for the leader that leaves it that much.
STOCHASTIC_LIMIT = -0.5

DASHED = (0, (4, 1))
OPTIMUM = {"color": "#444444", "linewidth": 0.9, "linestyle": (0, (1, 2))}
PRE_TRAINING = {"color": GREY, "linewidth": 0.9, "linestyle": (0, (6, 2))}
MEASURES = [("thick: the leader as it explores (paper)", {"color": GREY, "linewidth": 2})]
MEASURES += [("thin: the greedy leader", {"color": GREY, "linewidth": 0.7})]

STYLE = {
    "figure.dpi": 180,
    "figure.facecolor": "white",  # opaque, so that dark pages show it as light ones do
    "font.family": "DejaVu Sans",  # comes with matplotlib
    "font.size": 9,
    "axes.titlesize": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": GREY,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#E5E5E5",
    "grid.linewidth": 0.6,
    "legend.frameon": False,
    "legend.fontsize": 8,
    "lines.linewidth": 1.6,
    "xtick.color": "#333333",
    "ytick.color": "#333333",
    "figure.constrained_layout.use": True,
}


def title_of(game: str) -> str:
    """Returns a game's name as a title."""
    return {"mixedharmony": "mixed harmony", "noconflict": "no conflict", "battle": "battle of the sexes"}.get(
        game, game.replace("prisoners", "prisoner's").replace("_", " ")
    )


def minus(number: float) -> str:
    """Returns a number with a proper minus sign."""
    return f"{number:g}".replace("-", "\N{MINUS SIGN}")


def thousands(x: float, _=None) -> str:
    """Returns a tick's label."""
    return f"{x / 1e3:g}k" if x else "0"


def millions(x: float, _=None) -> str:
    """Returns a tick's label."""
    return f"{x / 1e6:g}M" if x else "0"


# ---------------------------------------------------------------------------------------------------------------- data
def source(figure: str) -> str:
    """Returns the name of the CSV without which a figure cannot be drawn."""
    sources = {"fig1_steps": "fig1_runs", "theorem2": "theorem2_summary", "es_md": "fig1_es_md"}
    return "league" if figure.startswith("league") else sources.get(figure, figure)


def load(results_dir: Path, name: str, texts: str, numbers: str) -> pd.DataFrame:
    """Reads the named columns of a CSV. Raises ValueError, which names the file, if they are not there as such."""
    path, texts, numbers = results_dir / f"{name}.csv", texts.split(), numbers.split()
    try:
        rows = pd.read_csv(path, usecols=[*texts, *numbers], dtype=dict.fromkeys(texts, str))
        rows = rows.astype(dict.fromkeys(numbers, float))
        filled = [name for name in rows if not name.startswith(("steps_to_converge", "q_init"))]
        if rows.empty or rows[filled].isna().any(axis=None):
            raise ValueError("it is cut off")
    except (ValueError, OSError) as error:
        raise ValueError(f"{path}: {error}") from error
    return rows


def load_curves(results_dir: Path, name: str, labels: str, texts: str) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Reads a figure's curves and its runs; `labels` are the numbers that tell runs apart, `texts` the words."""
    measures = f"{labels} seed leader_return leader_return_greedy"
    runs = load(results_dir, f"{name}_runs", texts, f"{measures} stackelberg_value follower_regret follower_steps")
    return load(results_dir, name, texts, f"{measures} step"), runs


def pick(rows: pd.DataFrame, **labels) -> pd.DataFrame:
    """Returns the rows with these labels."""
    return rows[np.logical_and.reduce([rows[label] == value for label, value in labels.items()])]


def curves_of(rows: pd.DataFrame, column: str) -> pd.DataFrame:
    """Returns each seed's curve, a column, at the steps of all seeds together, straight between its own points."""
    curves = rows.pivot(index="step", columns="seed", values=column)
    return curves.interpolate(method="index", limit_direction="both")


# ------------------------------------------------------------------------------------------------------ parts of plots
def board(ax, cells: pd.Series, cmap, low: float, high: float, text=None) -> plt.cm.ScalarMappable:
    """Draws a number for each of the 144 games, by name: the leader's payoffs down, the follower's across."""
    names = [[a if a == b else f"{a}-{b}" for b in GAMES] for a in GAMES]
    values = np.array([[cells[name] for name in row] for row in names], dtype=float)
    image = ax.imshow(values, cmap=cmap, vmin=low, vmax=high)
    for i, j in np.ndindex(values.shape):
        if np.isnan(values[i, j]):
            ax.add_patch(Rectangle((j - 0.5, i - 0.5), 1, 1, fill=False, hatch="////", edgecolor=GREY, linewidth=0))
        elif text is not None and text(values[i, j]):
            dark = (values[i, j] - low) / (high - low)
            color = "white" if (dark < 0.5) == (cmap == "viridis") else "black"
            label = text(values[i, j])
            ax.text(j, i, label, ha="center", va="center", fontsize=5.5, color=color)
        if i == j:
            ax.add_patch(Rectangle((j - 0.5, i - 0.5), 1, 1, fill=False, edgecolor=BLACK, linewidth=1.2))
    labels = [title_of(game) for game in GAMES]
    ax.set_xticks(range(12), labels, rotation=60, ha="right", fontsize=7)
    ax.set_yticks(range(12), labels, fontsize=7)
    ax.tick_params(length=0)
    ax.grid(visible=False)
    return image


def draw_mean(ax, rows: pd.DataFrame, color: str, line="-", seeds=False, column="leader_return", **kwargs) -> None:
    """Draws the mean over seeds, and around it their range or each of them as a thin line."""
    curves = curves_of(rows, column)
    if seeds:
        ax.plot(curves.index, curves, color=color, linewidth=0.5, alpha=0.25)
    else:
        ax.fill_between(curves.index, curves.min(axis=1), curves.max(axis=1), color=color, alpha=0.13, linewidth=0)
    ax.plot(curves.index, curves.mean(axis=1), color=color, linestyle=line, **kwargs)


def draw_measures(ax, rows: pd.DataFrame, color: str, line="-", seeds=False, **kwargs) -> None:
    """Draws both measures: thick the leader as it explores, thin the greedy one."""
    if len(rows):
        draw_mean(ax, rows, color, line, seeds, **kwargs)
        greedy = curves_of(rows, "leader_return_greedy").mean(axis=1)
        ax.plot(greedy.index, greedy, color=color, linestyle=line, linewidth=0.7)


def draw_optimum(ax, runs: pd.DataFrame) -> None:
    """Draws the exact optimum as a line behind the curves."""
    ax.axhline(runs["stackelberg_value"].iloc[0], zorder=1, **OPTIMUM)


def draw_pre_training(ax, runs: pd.DataFrame) -> None:
    """Marks the end of the follower's pre-training, if there is one."""
    for steps in runs.loc[runs["follower_steps"] > 0, "follower_steps"].unique():
        ax.axvline(steps, zorder=1, **PRE_TRAINING)


def legend_above(figure, entries: list[tuple], columns: int) -> None:
    """Puts one legend for all panels above them; an entry is a name and the properties of its line."""
    handles = [Line2D([], [], label=name, **properties) for name, properties in entries]
    figure.legend(handles=handles, loc="outside upper center", ncols=columns, handlelength=2.6, columnspacing=1.6)


def method_entries(rows: pd.DataFrame) -> list[tuple]:
    """Returns the legend's entries of the methods that are in the rows."""
    return [
        (name, {"color": color, "linestyle": line})
        for script, (name, color, line, _) in METHODS.items()
        if script in set(rows["script"])
    ]


def optimum_entry(leaders: str = "deterministic memory-1 leaders") -> tuple:
    """Returns the legend's entry of the optimum, with the class of leaders that it is the optimum of."""
    return f"optimum of {leaders}", OPTIMUM


def pre_training_entry(runs: pd.DataFrame) -> tuple:
    """Returns the legend's entry of the end of pre-training."""
    return f"pre-training, {runs['follower_steps'].max():,.0f} steps: a setting, not a finding", PRE_TRAINING


# ------------------------------------------------------------------------------------------------------------- figures
def fig1(results_dir: Path):
    """Figure 1: the leader's return over combined steps, in 12 games."""
    rows, runs = load_curves(results_dir, "fig1", "", "script env_id")
    paper_follower = pick(runs, script="stackelberg_ppo_matrix")
    figure, axes = plt.subplots(3, 4, figsize=(9, 6.8), sharex=True, sharey=True)
    for ax, game in zip(axes.flat, GAMES, strict=True):
        draw_optimum(ax, pick(runs, env_id=game))
        draw_pre_training(ax, paper_follower)
        # dashed lines last, so that they show on top of a solid one on the same way
        for script, (_, color, line, _) in sorted(METHODS.items(), key=lambda item: (item[1][2] != "-", item[0])):
            if script == "es_md_matrix":  # far beyond the axis: where it ends
                ends = pick(runs, env_id=game, script=script)[["leader_return", "leader_return_greedy"]].mean()
                for end, size in zip(ends, (7, 3.5), strict=True):
                    ax.plot(2.4e6, end, "P", color=color, markersize=size, clip_on=False, zorder=5, markeredgewidth=0)
            else:
                draw_measures(ax, pick(rows, env_id=game, script=script), color, line, linewidth=1.8)
        ax.set(title=title_of(game), xscale="log", xlim=(1.5e3, 2.4e6), ylim=(-3.1, 0.2))
        ax.set_xticks([1e4, 1e5, 1e6], ["10k", "100k", "1M"])
        ax.minorticks_off()
    figure.supxlabel(
        "environment steps: follower's training, leader's training and all queries (log scale)", fontsize=9
    )
    figure.supylabel("leader's return per game step", fontsize=9)
    entries = method_entries(rows[rows["script"] != "es_md_matrix"])
    entries.append(("ES-MD, where it ends (small: greedy)", {"color": BLACK, "linestyle": "", "marker": "P"}))
    legend_above(figure, [*entries, *MEASURES, optimum_entry(), pre_training_entry(paper_follower)], 3)
    return figure


def fig1_steps(results_dir: Path):
    """Beside Figure 1: combined steps from which a run stays at the optimum, per game and method."""
    panels = {"steps_to_converge_exploring": "as the leader explores (the paper's measure)"}
    panels |= {"steps_to_converge": "greedy leader"}
    runs = load(results_dir, "fig1_runs", "script env_id", f"seed follower_steps {' '.join(panels)}")
    there = [script for script in METHODS if script in set(runs["script"])]
    figure, axes = plt.subplots(1, 2, figsize=(9, 9.6), sharex=True, sharey=True)
    never, gap = 5e8, 0.8 / len(there)
    for ax, (column, title) in zip(axes, panels.items(), strict=True):
        for (i, game), (j, script) in itertools.product(enumerate(GAMES), enumerate(there)):
            _, color, _, marker = METHODS[script]
            steps = pick(runs, env_id=game, script=script)[column].fillna(np.inf).sort_values().to_numpy()
            y = i + gap * (j - (len(there) - 1) / 2)
            reached = steps[steps < np.inf]
            ax.plot(reached, [y] * len(reached), marker, color=color, markersize=3, alpha=0.45, markeredgewidth=0)
            if len(steps) and steps[len(steps) // 2] < np.inf:
                median = {"color": color, "markersize": 6, "markeredgecolor": "white", "markeredgewidth": 0.5}
                ax.plot(steps[len(steps) // 2], y, marker, **median)
            if len(reached) < len(steps):
                text = f"{len(steps) - len(reached)} of {len(steps)}"
                ax.text(never, y, text, color=color, fontsize=5.5, va="center", ha="center", weight="bold")
        for i in range(0, len(GAMES), 2):
            ax.axhspan(i - 0.5, i + 0.5, color="#F5F5F5", zorder=0, linewidth=0)
        ax.axvline(BRUTE_FORCE, color=RED, linewidth=1.2)
        draw_pre_training(ax, pick(runs, script="stackelberg_ppo_matrix"))
        ax.axvline(1.5e8, color=GREY, linewidth=0.6)
        ax.text(never, -0.62, "never", ha="center", va="bottom", fontsize=8)
        ax.set_title(title, pad=16)
        ax.set(xscale="log", xlim=(300, 1.7e9), ylim=(len(GAMES) - 0.5, -0.5))
        ax.set_xticks([1e3, 1e4, 1e5, 1e6, 1e7, 1e8], ["1k", "10k", "100k", "1M", "10M", "100M"])
        ax.minorticks_off()
        ax.set_yticks(range(len(GAMES)), [title_of(game) for game in GAMES])
        ax.tick_params(axis="y", length=0)
        ax.grid(axis="y", visible=False)
    text = (
        "environment steps until the leader's return stays within 0.05 of the optimum of deterministic memory-1 leaders"
    )
    figure.supxlabel(f"{text} (log scale)", fontsize=9)
    entries = [(METHODS[s][0], {"color": METHODS[s][1], "marker": METHODS[s][3], "linestyle": ""}) for s in there]
    entries.append((f"brute force, each of 32 leaders once: {BRUTE_FORCE}", {"color": RED, "linewidth": 1.2}))
    legend_above(figure, [*entries, pre_training_entry(pick(runs, script="stackelberg_ppo_matrix"))], 3)
    return figure


PRICE_COLORS = {"0.0": "#9ECAE1", "0.25": "#6BAED6", "0.5": "#3182BD", "0.75": "#08519C", "1.0": "#CB181D"}


def fig2(results_dir: Path):
    """Figure 2: trade in Space Invaders, led by the seller (left) or the buyer (right), stage by stage."""
    load(results_dir, "fig2", "leader stage", "seed step seller_hits_per_shot buyer_hits_per_shot")
    rows = pd.read_csv(results_dir / "fig2.csv")  # with gaps: a stage has its own columns
    ends = load(results_dir, "fig2_runs", "leader", "seed stackelberg_value optimal_leader_price")
    figure, axes = plt.subplots(3, 2, figsize=(9, 7.2), sharex="col", sharey="row")
    for (top, middle, bottom), leader in zip(axes.T, ("seller", "buyer"), strict=True):
        of_leader = rows[(rows["leader"] == leader) & rows["stage"].isin(["gameplay", "follower", "leader"])]
        if not len(of_leader):
            continue
        parts = {stage: part for stage, part in of_leader.groupby("stage")}
        for price, color in PRICE_COLORS.items():
            accepted = parts["follower"].dropna(subset=f"acceptance_at_{price}")
            draw_mean(top, accepted, color, column=f"acceptance_at_{price}")
        draw_mean(top, parts["leader"], "black", DASHED, column="price")
        top.axhline(ends.loc[ends["leader"] == leader, "optimal_leader_price"].median(), color=RED, linewidth=0.8)
        for stage, column, color in (
            ("leader", "leader_return", BLUE),
            ("leader", "follower_return", ORANGE),
            ("follower", "follower_return", ORANGE),
        ):
            draw_mean(middle, parts[stage], color, column=column)
        middle.axhline(ends.loc[ends["leader"] == leader, "stackelberg_value"].mean(), color=RED, linewidth=0.8)
        for player, color in (("seller", GREEN), ("buyer", ORANGE)):
            name = f"{player}_hits_per_shot"
            # A seller sells its bullets as soon as somebody leads: nothing is left to aim with.
            fires = [part for stage, part in parts.items() if stage != "leader" or player == "buyer"]
            for part in fires:
                draw_mean(bottom, part, color, column=name)
        for stage, part in parts.items():
            top.axvline(part["step"].max(), color="#BBBBBB", linewidth=0.8)
            top.text(part["step"].median(), 1.04, stage, ha="center", fontsize=8)
        top.set_title(f"{leader} leads", pad=16)
        bottom.set_xlim(0)
        bottom.xaxis.set_major_formatter(thousands)
    axes[0, 0].set(ylim=(0, 1.02), ylabel="accepted, per price; leader's price")
    axes[1, 0].set(ylim=(0, None), ylabel="return per episode")
    axes[2, 0].set(ylim=(0.5, 1.0), ylabel="hits per shot, in training")
    figure.supxlabel("environment steps of all stages, queries included", fontsize=9)
    entries = [(f"price {price}", {"color": color}) for price, color in PRICE_COLORS.items()]
    entries += [("leader's price", {"color": "black", "linestyle": DASHED}), ("optimum", {"color": RED})]
    entries += [("leader's return", {"color": BLUE}), ("follower's return", {"color": ORANGE})]
    entries += [("seller's aim", {"color": GREEN}), ("buyer's aim", {"color": ORANGE})]
    legend_above(figure, entries, 4)
    return figure


def fig3(results_dir: Path):
    """Figure 3: queries that the leader observes, or that are hidden from it, with two kinds of follower."""
    rows, runs = load_curves(results_dir, "fig3", "learning_rate", "follower leader arm")
    names, followers = {"pg": "PG", "dqn": "DQN", "es": "ES"}, {"exact": "exact follower", "meta": "meta-follower"}
    settings = [(name, rate) for name in names for rate in sorted(set(pick(rows, leader=name)["learning_rate"]))]
    columns = 4
    height = -(-len(settings) // columns)  # rows of panels for each follower
    figure, axes = plt.subplots(2 * height, columns, figsize=(9, 2 + 1.6 * 2 * height), sharex=True, sharey=True)
    for ax, (follower, (leader, rate)) in zip(axes.flat, itertools.product(followers, settings), strict=False):
        labels = {"follower": follower, "leader": leader, "learning_rate": rate}
        draw_optimum(ax, runs)
        draw_pre_training(ax, pick(runs, **labels))
        for arm, color, line in (("observed", BLUE, "-"), ("hidden", ORANGE, DASHED)):
            draw_measures(ax, pick(rows, arm=arm, **labels), color, line, seeds=True)
        title = f"{names[leader]}, learning rate {np.format_float_positional(rate)}"
        ax.set(title=f"{followers[follower]}\n{title}", ylim=(-2.6, 0.15))
        ax.xaxis.set_major_formatter(thousands)
    for ax in axes.flat[2 * len(settings) :]:
        ax.set_visible(False)
    figure.supxlabel("environment steps: the follower's training, the leader's and all queries", fontsize=9)
    figure.supylabel("leader's return per game step", fontsize=9)
    entries = [("observed queries", {"color": BLUE}), ("hidden queries", {"color": ORANGE, "linestyle": DASHED})]
    optimum = optimum_entry("deterministic leaders that recall the follower's last action")
    legend_above(figure, [*entries, *MEASURES, optimum, pre_training_entry(runs)], 2)
    return figure


def fig4(results_dir: Path):
    """Figure 4: a leader that can tell queries from play, and one that cannot, with two kinds of follower."""
    rows, runs = load_curves(results_dir, "fig4", "learning_rate", "follower arm")
    rates, followers = sorted(set(rows["learning_rate"])), {"exact": "exact follower", "meta": "meta-follower"}
    figure, axes = plt.subplots(2, len(rates), figsize=(9, 5.2), sharex=True, sharey=True, squeeze=False)
    for ax, (follower, rate) in zip(axes.flat, itertools.product(followers, rates), strict=True):
        labels = {"follower": follower, "learning_rate": rate}
        draw_optimum(ax, runs)
        draw_pre_training(ax, pick(runs, **labels))
        for arm, color, line, y in (("noninvariant", ORANGE, DASHED, 0.13), ("invariant", BLUE, "-", 0.04)):
            draw_measures(ax, pick(rows, arm=arm, **labels), color, line, seeds=True)
            regret = pick(runs, arm=arm, **labels)["follower_regret"].mean()
            box = {"facecolor": "white", "edgecolor": "none", "pad": 0.5}  # the curves stay legible behind it
            text = f"follower's regret {abs(regret):.1f}"
            ax.text(0.97, y, text, color=color, ha="right", transform=ax.transAxes, bbox=box)
        ax.set_title(f"{followers[follower]}\nlearning rate {rate:g}")
        ax.xaxis.set_major_formatter(thousands)
    figure.supxlabel("environment steps: the follower's training, the leader's and all queries", fontsize=9)
    figure.supylabel("leader's return per game step", fontsize=9)
    entries = [("invariant leader", {"color": BLUE})]
    entries += [("leader that tells queries from play", {"color": ORANGE, "linestyle": DASHED}), *MEASURES]
    optimum = optimum_entry("deterministic invariant leaders that recall the follower's last action")
    legend_above(figure, [*entries, optimum, pre_training_entry(runs)], 2)
    return figure


def fig5(results_dir: Path):
    """Figure 5: reward withheld or given while the follower learns."""
    rows, runs = load_curves(results_dir, "fig5", "", "env_id reward")
    games = sorted(set(rows["env_id"]), key=lambda game: [-float(x) for x in re.findall(r"-?[\d.]+", game)])
    figure, axes = plt.subplots(1, len(games), figsize=(9, 3.1), sharex=True, sharey=True, squeeze=False)
    for ax, game in zip(axes.flat, games, strict=True):
        draw_optimum(ax, pick(runs, env_id=game))
        for reward, color, line in (("withheld", BLUE, "-"), ("given", ORANGE, DASHED)):
            draw_measures(ax, pick(rows, env_id=game, reward=reward), color, line, seeds=True)
        preferred, mismatch = re.search(r"_a(.*)_p(.*)$", game).groups()
        ax.set_title(f"a = {preferred}, p = {minus(float(mismatch))}")
    figure.supxlabel("environment steps, the follower's learning included", fontsize=9)
    axes[0, 0].set_ylabel("leader's return in play")
    entries = [("reward withheld while the follower learns", {"color": BLUE})]
    entries += [("reward given", {"color": ORANGE, "linestyle": DASHED}), *MEASURES]
    legend_above(figure, [*entries, optimum_entry("deterministic leaders")], 3)
    return figure


def fig6(results_dir: Path):
    """Figure 6: the follower's Q-table reset or kept between the leader's episodes, with four settings of Adam."""
    rows, runs = load_curves(results_dir, "fig6", "learning_rate adam_eps", "arm")
    settings = rows[["learning_rate", "adam_eps"]].drop_duplicates().sort_values(["learning_rate", "adam_eps"])
    figure, axes = plt.subplots(1, len(settings), figsize=(9, 3.2), sharex=True, sharey=True, squeeze=False)
    for ax, (rate, epsilon) in zip(axes.flat, settings.to_numpy()[::-1], strict=True):
        draw_optimum(ax, runs)
        for arm, color, line in (("reset", BLUE, "-"), ("kept", ORANGE, DASHED)):
            of_arm = pick(rows, learning_rate=rate, adam_eps=epsilon, arm=arm)
            draw_measures(ax, of_arm, color, line, seeds=True)
        epsilon = minus(epsilon).replace("e\N{MINUS SIGN}0", "e\N{MINUS SIGN}")
        ax.set_title(f"learning rate {rate:g}{' (paper)' if rate == 0.156 else ''}\nAdam's ε {epsilon}")
        ax.xaxis.set_major_formatter(thousands)
    figure.supxlabel("environment steps, the follower's learning included", fontsize=9)
    axes[0, 0].set_ylabel("leader's return")
    entries = [("Q-table reset", {"color": BLUE}), ("Q-table kept", {"color": ORANGE, "linestyle": DASHED})]
    legend_above(figure, [*entries, *MEASURES, optimum_entry("deterministic leaders")], 3)
    return figure


def fig8(results_dir: Path):
    """Figure 8: PPO + Q-learning, and Meta-RL, to two million steps."""
    rows, runs = load_curves(results_dir, "fig8", "", "script env_id")
    paper_follower = pick(runs, script="stackelberg_ppo_matrix")
    figure, axes = plt.subplots(3, 4, figsize=(9, 6.4), sharex=True, sharey=True)
    for ax, game in zip(axes.flat, GAMES, strict=True):
        draw_optimum(ax, pick(runs, env_id=game))
        draw_pre_training(ax, paper_follower)
        for script in ("ppo_qlearning_matrix", "stackelberg_ppo_matrix"):
            draw_measures(ax, pick(rows, env_id=game, script=script), *METHODS[script][1:3], linewidth=1.8)
        ax.set(title=title_of(game), ylim=(-3.1, 0.2))
        ax.xaxis.set_major_formatter(millions)
    figure.supxlabel("environment steps: follower's training, leader's training and all queries", fontsize=9)
    figure.supylabel("leader's return per game step", fontsize=9)
    legend_above(figure, [*method_entries(rows), *MEASURES, optimum_entry(), pre_training_entry(paper_follower)], 2)
    return figure


def theorem2(results_dir: Path):
    """Theorem 2: how leaders end that learn against a follower that best-responds at once."""
    counts = ["tit_for_tat", "o_D_cooperate", "others"]
    rows = load(results_dir, "theorem2_summary", "arm", "q_init learning_rate runs tit_for_tat o_D_cooperate")
    rows["others"] = rows["runs"] - rows["tit_for_tat"] - rows["o_D_cooperate"]
    rows[["queries", "learner"]] = rows["arm"].str.split("_", n=1).tolist()
    ends = {"tit-for-tat": BLUE, "cooperates after a defection": ORANGE, "defects after either": "#BBBBBB"}
    learners = {"parameter_noise": "Q-learning, parameter noise", "epsilon_greedy": "Q-learning, ε-greedy"}
    learners |= {"epsilon_soft": "Q-learning, ε-soft reply", "reinforce": "REINFORCE"}
    # Q-tables by where they start, near what they can reach first; policies by their steps, small ones first
    rows["start"] = rows["q_init"].fillna(rows["learning_rate"])
    settings = sorted({(list(learners).index(row.learner), abs(row.start), row.start) for row in rows.itertuples()})
    figure, axes = plt.subplots(1, 2, figsize=(9, 3.6), sharex=True, sharey=True)
    figure.get_layout_engine().set(wspace=0.06)
    names = []
    for y, (i, _, start) in enumerate(settings):
        learner, name = list(learners.items())[i]
        names.append(f"{name}, {'steps of' if learner == 'reinforce' else 'Q from'} {minus(start)}")
        for ax, queries in zip(axes, ("hidden", "observed"), strict=True):
            total = pick(rows, queries=queries, learner=learner, start=start)[counts].sum()
            left = 0.0
            for share, color in zip(total / max(total.sum(), 1), ends.values(), strict=True):
                ax.barh(y, share, 0.7, left, color=color)
                if share >= 0.095:
                    text = {"color": "white" if color == BLUE else "black", "fontsize": 7.5}
                    ax.text(left + share / 2, y, f"{share:.0%}", ha="center", va="center", **text)
                left += share
    for ax, queries in zip(axes, ("hidden", "observed"), strict=True):
        ax.set(title=f"{queries} queries", xlim=(0, 1), ylim=(len(settings) - 0.5, -0.5))
        ax.set_xticks([0, 0.5, 1], ["0", "50 %", "100 %"])
        ax.set_yticks(range(len(settings)), names)
        ax.tick_params(axis="y", length=0)
        ax.grid(axis="y", visible=False)
    figure.supxlabel("share of runs, over all learning rates, discounts and exploration strengths", fontsize=9)
    legend_above(figure, [(name, {"color": color, "linewidth": 7}) for name, color in ends.items()], 3)
    return figure


def es_md(results_dir: Path):
    """Evolution strategies: the leader's return over environment steps, in 12 games."""
    rows, runs = load_curves(results_dir, "fig1_es_md", "", "script env_id")
    limit = {"color": RED, "linewidth": 0.9, "linestyle": (0, (1, 2))}
    figure, axes = plt.subplots(3, 4, figsize=(9, 6.2), sharex=True, sharey=True)
    for ax, game in zip(axes.flat, GAMES, strict=True):
        draw_optimum(ax, pick(runs, env_id=game))
        draw_mean(ax, pick(rows, env_id=game), RED)
        draw_mean(ax, pick(rows, env_id=game), BLACK, column="leader_return_greedy", linewidth=0.8)
        ax.set(title=title_of(game), xscale="log", ylim=(-3.1, 0.2))
        ax.set_xticks([1e6, 1e7, 1e8], ["1M", "10M", "100M"])
        ax.minorticks_off()
        if game == "prisoners_dilemma":
            ax.axhline(STOCHASTIC_LIMIT, zorder=1, **limit)
            text = {"s": f"stochastic leaders: up to {minus(STOCHASTIC_LIMIT)}", "color": RED, "fontsize": 7.5}
            ax.text(0.97, STOCHASTIC_LIMIT + 0.08, **text, ha="right", transform=ax.get_yaxis_transform())
    figure.supxlabel("environment steps, all followers' learning included (log scale)", fontsize=9)
    figure.supylabel("leader's return per game step", fontsize=9)
    entries = [("ES-MD's leader as it is: stochastic", {"color": RED})]
    entries += [("the same made greedy: deterministic", {"color": BLACK, "linewidth": 0.8}), optimum_entry()]
    legend_above(figure, [*entries, ("optimum of stochastic memory-1 leaders, where it is higher", limit)], 2)
    return figure


def recurrent(results_dir: Path):
    """A follower that asks nothing: its regret in each episode of a trial, two leaders, and the steps it all takes."""
    measures = "seed stackelberg_value leader_return leader_return_greedy follower_steps steps_to_converge"
    runs = pd.read_csv(results_dir / "recurrent_runs.csv")
    regrets = [name for name in runs if re.fullmatch(r"follower_regret_\d+", name)]
    runs = load(results_dir, "recurrent_runs", "env_id leader", f"{measures} {' '.join(regrets)}")
    games = [game for game in GAMES if game in set(runs["env_id"])]
    figure, (left, middle, right) = plt.subplots(1, 3, figsize=(9, 3.8), width_ratios=(1, 1.3, 1))
    invariant, episodes = pick(runs, leader="invariant"), range(1, 1 + len(regrets))
    left.plot(episodes, invariant[regrets].T, color=BLUE, linewidth=0.5, alpha=0.4)
    left.plot(episodes, invariant[regrets].mean(), color=BLUE, linewidth=2.2, marker="o")
    left.set(title="follower's exact regret,\nmean over 32 leaders", xlabel="episode of a trial", ylim=(0, None))
    left.set_xticks(episodes)
    for leader, color, offset in (("invariant", BLUE, -0.15), ("clock", ORANGE, 0.15)):
        some = pick(runs, leader=leader)
        y = some["env_id"].map(games.index) + offset
        exploring = some["leader_return"] - some["stackelberg_value"]
        middle.plot(exploring, y, "o", color=color, markersize=5, markerfacecolor="none", markeredgewidth=0.8)
        middle.plot(some["leader_return_greedy"] - some["stackelberg_value"], y, "o", color=color, markersize=3)
    middle.axvline(0, zorder=1, **OPTIMUM)
    middle.set_yticks(range(len(games)), [title_of(game) for game in games], fontsize=7)
    middle.set(title="leader's return less the optimum", xlabel="payoff per game step", ylim=(len(games) - 0.5, -0.5))
    bars = {"pre-training: GRU": (invariant["follower_steps"].max(), BLUE)}
    if (results_dir / "fig1_runs.csv").is_file():
        queries = pick(load(results_dir, "fig1_runs", "script", "follower_steps"), script="stackelberg_ppo_matrix")
        bars["pre-training: 5 queries"] = queries["follower_steps"].max(), SKY
    bars |= {"a leader's trial: GRU": (10 * len(regrets), BLUE), "its episode: 5 queries": (15, SKY)}
    for y, (steps, color) in enumerate(bars.values()):
        right.barh(y, steps, 0.7, color=color)
        right.text(1.2 * steps, y, f"{steps:,.0f}", va="center", fontsize=7)
    right.set_yticks(range(len(bars)), bars, fontsize=7)
    right.set(title="combined steps; pre-training:\na setting, not a finding", xscale="log", xlim=(1, 3e8))
    right.set_ylim(len(bars) - 0.5, -0.5)
    right.grid(axis="y", visible=False)
    entries = [("leader that keeps to one table", {"color": BLUE, "marker": "o", "linestyle": ""})]
    entries += [("leader with a clock, which pretends", {"color": ORANGE, "marker": "o", "linestyle": ""})]
    hollow = {"color": GREY, "marker": "o", "linestyle": "", "markerfacecolor": "none"}
    entries += [("filled: greedy", {"color": GREY, "marker": "o", "linestyle": ""}), ("hollow: as it explores", hollow)]
    legend_above(figure, [*entries, optimum_entry()], 3)
    return figure


# method: colour, line; in this order in every legend
LEAGUE = {
    "hindsight, planning": (PINK, "-"),
    "hindsight, network": (PINK, DASHED),
    "mixed commitments, planning": (RED, "-"),
    "PPO": (BLUE, "-"),
    "PPO, paper's settings": (BLUE, DASHED),
    "PG": (SKY, "-"),
    "PG, paper's settings": (SKY, DASHED),
    "DQN": (GREEN, "-"),
    "DQN, paper's settings": (GREEN, DASHED),
    "PPO + Q-learning": (ORANGE, "-"),
    "PPO + Q-learning, paper's settings": (ORANGE, DASHED),
    "ES-MD": (BLACK, "-"),
    "no-regret follower": (YELLOW, "-"),
    "recurrent follower": (GREY, DASHED),
    "Diff-MD": (GREY, (0, (1, 1))),
}
FLOOR = 60  # steps in which every pair of actions can have been seen in every observation


def load_league(results_dir: Path) -> pd.DataFrame:
    """Reads league.csv, and which of its games are tied: optimistic and pessimistic optimum differ."""
    rows = pd.read_csv(results_dir / "league.csv")
    optima = pd.read_csv(ROOT / "benchmark/results/ordinal_games.csv").set_index("env_id")
    tied = optima["stackelberg_value"] > optima["stackelberg_value_pessimistic"] + 1e-6
    return rows.assign(is_tied=rows["env_id"].map(tied))


def league(results_dir: Path):
    """The performance profile: the share of runs that hold the optimum, over combined steps, all methods."""
    rows = load_league(results_dir)
    figure, ax = plt.subplots(figsize=(9, 4.2))
    for method, (color, line) in LEAGUE.items():
        some = rows[(rows["method"] == method) & ~rows["is_tied"]]
        if some["steps_to_converge"].notna().any():
            steps = np.sort(some["steps_to_converge"].dropna())
            share = np.arange(1, 1 + len(steps)) / len(some)
            ends = [steps[0], *steps, 1e8], [0, *share, share[-1]]
            ax.step(*ends, where="post", color=color, linestyle=line, zorder=3)
        elif len(some):  # no steps: it learns from a description of the game
            ax.axhline(some["guarantees_optimum"].mean(), color=color, linestyle=line, linewidth=1.2)
    for steps, text in ((FLOOR, "all pairs seen once"), (BRUTE_FORCE, "brute force")):
        ax.axvline(steps, color=GREY, linewidth=0.9, linestyle=(0, (6, 2)), zorder=1)
        ax.text(1.05 * steps, 1.03, text, fontsize=7.5, color="#333333")
    ax.set(xscale="log", xlim=(30, 1e8), ylim=(0, 1.09), yticks=np.linspace(0, 1, 6))
    ax.set(xlabel="combined environment steps: queries, all learning and play (log scale)")
    ax.set_ylabel("share of runs at the optimum\nof their class, 134 games")
    entries = [(name, {"color": color, "linestyle": line}) for name, (color, line) in LEAGUE.items()]
    legend_above(figure, [entry for entry in entries if entry[0] in set(rows["method"])], 4)
    return figure


def league_boards(results_dir: Path):
    """A board for each method: the share of its runs in each of the 144 games that end in equilibrium."""
    rows = load_league(results_dir)
    names = [a if a == b else f"{a}-{b}" for a in GAMES for b in GAMES]
    figure, axes = plt.subplots(3, 5, figsize=(12, 7.6), sharey=True)
    for k, (ax, method) in enumerate(zip(axes.flat, LEAGUE, strict=True)):
        some = rows[rows["method"] == method]
        shares = some.groupby("env_id")["in_equilibrium"].mean().reindex(names)
        image = board(ax, shares, "viridis", 0, 1)
        if k < len(LEAGUE) - 5:
            ax.set_xticklabels([])  # those of the board below are enough
        ax.set_title(f"{method}: {some['in_equilibrium'].mean():.0%}" if len(some) else method, fontsize=7.5)
    figure.colorbar(image, ax=axes, shrink=0.4, label="share of runs in equilibrium (hatched: not run)")
    figure.supxlabel("follower's payoffs of", fontsize=9)
    figure.supylabel("leader's payoffs of", fontsize=9)
    return figure


def missed_by(rows: pd.DataFrame) -> pd.DataFrame:
    """Returns, for each game and each method that plays all, whether most of its runs end out of equilibrium."""
    shares = rows.pivot_table("in_equilibrium", "env_id", "method", aggfunc="mean")
    missed = (shares < 0.5)[shares.columns[shares.notna().all()]]
    return missed.loc[missed.sum(axis=1).sort_values(ascending=False, kind="stable").index]


def league_games(results_dir: Path):
    """The games that most methods miss, and which."""
    missed = missed_by(load_league(results_dir))[:24]
    methods = [method for method in LEAGUE if method in missed]
    figure, ax = plt.subplots(figsize=(9, 5.6))
    cells = missed[methods].T.astype(float)
    ax.pcolormesh(cells, cmap="Greys", vmin=-0.1, vmax=1.6, edgecolors="white", linewidth=1)
    ax.invert_yaxis()
    ax.set_yticks(np.arange(len(methods)) + 0.5, methods)
    labels = [f"{game}  {count}" for game, count in missed.sum(axis=1).items()]
    ax.set_xticks(np.arange(len(missed)) + 0.5, labels, rotation=60, ha="right", rotation_mode="anchor", fontsize=7)
    ax.set(title="dark: most runs of the method end out of equilibrium; after a game's name how many methods miss it")
    ax.grid(visible=False)
    ax.tick_params(length=0)
    return figure


PAPER = (fig1, fig1_steps, fig2, fig3, fig4, fig5, fig6, fig8, theorem2, es_md)
FIGURES = {f.__name__: f for f in (*PAPER, recurrent, league, league_boards, league_games)}


# --------------------------------------------------------------------------------------------------------- the drawing
def save(name: str, results_dir: Path, path: Path) -> None:
    """Draws a figure into a PNG file, which is never there by half."""
    with plt.rc_context():
        matplotlib.rcdefaults()  # whatever this machine's matplotlibrc says
        matplotlib.rcParams.update(STYLE)
        figure = FIGURES[name](results_dir)
        figure.canvas.draw()
        image = Image.fromarray(np.asarray(figure.canvas.buffer_rgba())).convert("RGB")
    # a palette of 256 colours makes the file a third as large
    image.quantize(256, dither=Image.Dither.NONE).save(f"{path}.tmp", format="png", optimize=True)
    os.replace(f"{path}.tmp", path)


def main(args: Args) -> int:
    """Draws the figures; returns the exit code: 1 if one could not be drawn."""
    failed = False
    os.makedirs(args.figures_dir, exist_ok=True)
    for name in args.figures:
        path = Path(args.figures_dir, f"{name}.png")
        try:
            save(name, Path(args.results_dir), path)
            print(path)
        except Exception as error:  # a CSV that is cut off or changed trips anywhere; the others can be drawn
            failed = True
            csvs = f"{args.results_dir}/{source(name)}*.csv"
            print(f"{name} is not drawn from {csvs}: {type(error).__name__}: {error}", file=sys.stderr)
        plt.close("all")
    return int(failed)


if __name__ == "__main__":
    sys.exit(main(tyro.cli(Args, description=__doc__)))
