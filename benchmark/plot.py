"""Draws the paper's figures from the CSVs that `run.py` wrote; runs nothing.

    python benchmark/plot.py

One function draws one figure, and reads benchmark/results alone; the pictures go to benchmark/figures. Lines are means
over seeds. The same CSVs give the same pictures, pixel for pixel.
"""

import contextlib
import csv
import io
import itertools
import os
import re
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal, NoReturn

import matplotlib

matplotlib.use("Agg")  # no window
import matplotlib.pyplot as plt
import numpy as np
import tyro
from matplotlib.lines import Line2D
from PIL import Image

ROOT = Path(__file__).resolve().parent.parent
Figure = Literal["fig1", "fig1_steps", "fig2", "fig3", "fig4", "fig5", "fig6", "fig8", "theorem2", "es_md", "all"]


@dataclass
class Args:
    figures: tyro.conf.Positional[tuple[Figure, ...]] = ("all",)
    """figures of the paper; fig1_steps: how many steps each method takes to the optimum; es_md: the learning curves of
    evolution strategies; all: those for which there are CSVs"""
    results_dir: Annotated[str, tyro.conf.arg(name="from")] = str(ROOT / "benchmark/results")
    """folder with the CSVs"""
    figures_dir: Annotated[str | None, tyro.conf.arg(name="to")] = None
    """folder for the pictures; default: benchmark/figures, or figures beside the CSVs of another --from"""


# --------------------------------------------------------------------------------------------------------------- style
# Okabe and Ito's colours, which colour-blind readers tell apart
BLACK, ORANGE, SKY, GREEN, YELLOW, BLUE, RED, PINK = (
    "#000000 #E69F00 #56B4E9 #009E73 #F0E442 #0072B2 #D55E00 #CC79A7".split()
)
GREY = "#777777"

# script: name, colour, line, marker; in this order in every legend
METHODS = {
    "replay_follower_matrix": ("Meta-RL by replay, PPO leader", PINK, "-", "D"),
    "stackelberg_ppo_matrix": ("Meta-RL, PPO leader", BLUE, "-", "o"),
    "stackelberg_pg_matrix": ("Meta-RL, PG leader", SKY, (0, (3, 3)), "^"),
    "stackelberg_dqn_matrix": ("Meta-RL, DQN leader", GREEN, (3, (2, 4)), "v"),
    "ppo_qlearning_matrix": ("PPO + Q-learning", ORANGE, "-", "s"),
    "es_md_matrix": ("ES-MD", BLACK, "--", "P"),
}
GAMES = ("prisoners_dilemma", "stag_hunt", "assurance", "coordination", "mixedharmony", "harmony")
GAMES += ("noconflict", "deadlock", "prisoners_delight", "hero", "battle", "chicken")
BRUTE_FORCE = 480  # steps to try each of the 32 leaders once: 32 x 15

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
def load(results_dir: Path, name: str) -> list[dict]:
    """Reads a CSV; numbers become floats, and empty cells None."""

    def value(cell: str):
        try:
            return float(cell) if cell else None
        except ValueError:
            return cell

    with open(results_dir / f"{name}.csv", newline="") as file:
        return [{key: value(cell) for key, cell in row.items()} for row in csv.DictReader(file)]


def pick(rows: list[dict], **labels) -> list[dict]:
    """Returns the rows with these labels."""
    return [row for row in rows if all(row[label] == value for label, value in labels.items())]


def values_of(rows: list[dict], label: str) -> list:
    """Returns the values of a column, each once, sorted."""
    return sorted({row[label] for row in rows})


def curves_of(rows: list[dict], column: str = "leader_return") -> tuple[np.ndarray, np.ndarray]:
    """Returns the steps of all seeds together, [n], and each seed's curve at these, straight between its own points,
    [seeds, n]."""
    steps = np.array(values_of(rows, "step"))
    by_seed = [pick(rows, seed=seed) for seed in values_of(rows, "seed")]
    curves = [np.interp(steps, [r["step"] for r in of_seed], [r[column] for r in of_seed]) for of_seed in by_seed]
    return steps, np.array(curves)


# ------------------------------------------------------------------------------------------------------ parts of plots
def draw_mean(
    ax, rows: list[dict], color: str, line="-", seeds: bool = False, column="leader_return", **kwargs
) -> None:
    """Draws the mean over seeds, and around it their range or each of them as a thin line."""
    steps, curves = curves_of(rows, column)
    if seeds:
        ax.plot(steps, curves.T, color=color, linewidth=0.6, alpha=0.35)
    else:
        ax.fill_between(steps, curves.min(0), curves.max(0), color=color, alpha=0.13, linewidth=0)
    ax.plot(steps, curves.mean(0), color=color, linestyle=line, **kwargs)


def draw_optimum(ax, value: float, label: str | None = None) -> None:
    """Draws the exact optimum as a line behind the curves."""
    ax.axhline(value, color="#444444", linewidth=0.8, linestyle=(0, (1, 2)), zorder=1)
    if label:
        ax.annotate(label, (1, value), (0, 2), ("axes fraction", "data"), "offset points", ha="right", va="bottom")


def legend_above(figure, entries: list[tuple], columns: int) -> None:
    """Puts one legend for all panels above them; an entry is a name and the properties of its line."""
    handles = [Line2D([], [], label=name, **properties) for name, properties in entries]
    figure.legend(handles=handles, loc="outside upper center", ncols=columns, handlelength=2.6, columnspacing=1.6)


def method_entries(rows: list[dict], scripts=tuple(METHODS)) -> list[tuple]:
    """Returns the legend's entries of the methods that are in the rows."""
    there = {row["script"] for row in rows}
    return [
        (name, {"color": color, "linestyle": line})
        for script, (name, color, line, _) in METHODS.items()
        if script in there and script in scripts
    ]


OPTIMUM = ("exact optimum", {"color": "#444444", "linewidth": 0.8, "linestyle": (0, (1, 2))})


# ------------------------------------------------------------------------------------------------------------- figures
def fig1(results_dir: Path):
    """Figure 1: the greedy leader's return over combined steps, in 12 games."""
    rows, runs = load(results_dir, "fig1"), load(results_dir, "fig1_runs")
    figure, axes = plt.subplots(3, 4, figsize=(9, 6.4), sharex=True, sharey=True)
    for ax, game in zip(axes.flat, GAMES, strict=True):
        of_game = pick(rows, env_id=game)
        draw_optimum(ax, pick(runs, env_id=game)[0]["stackelberg_value"])
        # dashed lines last, so that they show on top of a solid one on the same way
        for script, (_, color, line, _) in sorted(METHODS.items(), key=lambda item: (item[1][2] != "-", item[0])):
            of_script = pick(of_game, script=script)
            if script == "es_md_matrix" and of_script:  # far beyond the axis: where it ends
                ends = [run["leader_return"] for run in pick(runs, env_id=game, script=script)]
                ax.plot(2.4e6, np.mean(ends), "P", color=color, markersize=6, clip_on=False, zorder=5)
            elif of_script:
                draw_mean(ax, of_script, color, line, linewidth=2.2 if color == BLUE else 1.4)
        ax.set(title=title_of(game), xscale="log", xlim=(1.5e3, 2.4e6), ylim=(-3.1, 0.2))
        ax.set_xticks([1e4, 1e5, 1e6], ["10k", "100k", "1M"])
        ax.minorticks_off()
    figure.supxlabel(
        "environment steps: follower's training, leader's training and all queries (log scale)", fontsize=9
    )
    figure.supylabel("leader's return per game step", fontsize=9)
    entries = [entry for entry in method_entries(rows) if entry[0] != "ES-MD"]
    if pick(rows, script="es_md_matrix"):
        entries.append(("ES-MD, where it ends", {"color": BLACK, "linestyle": "", "marker": "P"}))
    legend_above(figure, [*entries, OPTIMUM], 4)
    return figure


def fig1_steps(results_dir: Path):
    """Beside Figure 1: combined steps from which a run stays at the optimum, per game and method."""
    runs = load(results_dir, "fig1_runs")
    there = [script for script in METHODS if pick(runs, script=script)]
    figure, ax = plt.subplots(figsize=(9, 6.6))
    never, gap = 4e8, 0.8 / len(there)
    for (i, game), (j, script) in itertools.product(enumerate(GAMES), enumerate(there)):
        _, color, _, marker = METHODS[script]
        of_method = pick(runs, env_id=game, script=script)
        steps = sorted(np.inf if run["steps_to_converge"] is None else run["steps_to_converge"] for run in of_method)
        y = i + gap * (j - (len(there) - 1) / 2)
        reached = [step for step in steps if step < np.inf]
        if not steps:
            continue
        ax.plot(reached, [y] * len(reached), marker, color=color, markersize=3, alpha=0.45, markeredgewidth=0)
        median = steps[len(steps) // 2]
        if median < np.inf:
            ax.plot(median, y, marker, color=color, markersize=6, markeredgecolor="white", markeredgewidth=0.5)
        if len(reached) < len(steps):
            text, x = f"{len(steps) - len(reached)} of {len(steps)}", never * 0.62 ** (-1) ** j
            ax.text(x, y, text, color=color, fontsize=7, va="center", ha="center", weight="bold")
    for i in range(0, len(GAMES), 2):
        ax.axhspan(i - 0.5, i + 0.5, color="#F5F5F5", zorder=0, linewidth=0)
    ax.axvline(BRUTE_FORCE, color=RED, linewidth=1.2)
    ax.text(BRUTE_FORCE * 1.12, -0.62, "brute force: 480", color=RED, va="bottom", fontsize=8)
    ax.axvline(1.5e8, color=GREY, linewidth=0.6)
    ax.text(never, -0.62, "never", ha="center", va="bottom", fontsize=8)
    ax.set(xscale="log", xlim=(300, 1e9), ylim=(len(GAMES) - 0.5, -0.5))
    ax.set_xlabel("environment steps until the greedy leader stays within 0.05 of the optimum (log scale)")
    ax.set_xticks([1e3, 1e4, 1e5, 1e6, 1e7, 1e8], ["1k", "10k", "100k", "1M", "10M", "100M"])
    ax.minorticks_off()
    ax.set_yticks(range(len(GAMES)), [title_of(game) for game in GAMES])
    ax.tick_params(axis="y", length=0)
    ax.grid(axis="y", visible=False)
    entries = [
        (name, {"color": color, "marker": marker, "linestyle": ""})
        for script, (name, color, _, marker) in METHODS.items()
        if script in there
    ]
    legend_above(figure, entries, 3)
    return figure


def fig2(results_dir: Path):
    """Figure 2: trade in Space Invaders, led by the seller (blue) or the buyer (orange)."""
    rows = load(results_dir, "atari_trade_curves")
    for row in rows:
        sides = ("seller", "buyer") if row["leader"] == "seller" else ("buyer", "seller")
        row |= dict(zip(sides, (row["leader_return"], row["follower_return"]), strict=True))
    figure, axes = plt.subplots(2, 2, figsize=(9, 4.6), sharex=True)
    panels = {"seller": "seller's return per episode", "buyer": "buyer's return per episode"}
    panels |= {"price": "price that the leader commits to", "acceptance": "share of bullets sold"}
    for ax, (column, title) in zip(axes.flat, panels.items(), strict=True):
        for leader, color, line in (("seller", BLUE, "-"), ("buyer", ORANGE, (0, (4, 1)))):
            if pick(rows, leader=leader):
                draw_mean(ax, pick(rows, leader=leader), color, line, column=column)
        ax.set_title(title)
        ax.xaxis.set_major_formatter(thousands)
    for ax in axes[0]:
        ax.set_ylim(0)
    for ax in axes.flat:
        first = min(row["step"] for row in rows)
        ax.axvspan(0, first, color="#F5F5F5", zorder=0, linewidth=0)
        ax.set_xlim(0)
    axes[0, 0].text(first / 2, 0.1, "follower's training", ha="center", va="bottom", color="#555555")
    axes[1, 0].set(ylim=(0, 1), yticks=(0, 0.25, 0.5, 0.75, 1))
    axes[1, 1].set(ylim=(0, 1.02))
    figure.supxlabel("environment steps: follower's training, leader's training and all queries", fontsize=9)
    entries = [("seller leads", {"color": BLUE}), ("buyer leads", {"color": ORANGE, "linestyle": (0, (4, 1))})]
    legend_above(figure, entries, 2)
    return figure


def fig3(results_dir: Path):
    """Figure 3: queries that the leader observes, or that are hidden from it."""
    rows = load(results_dir, "fig3")
    names = {"pg": "PG", "dqn": "DQN", "es": "ES"}
    settings = [(leader, rate) for leader in names for rate in values_of(pick(rows, leader=leader), "learning_rate")]
    figure, axes = plt.subplots(2, 4, figsize=(9, 4.4), sharex=True, sharey=True)
    for ax, (leader, rate) in zip(axes.flat, settings, strict=False):
        of_setting = pick(rows, leader=leader, learning_rate=rate)
        draw_optimum(ax, of_setting[0]["leader_return"] + of_setting[0]["leader_regret"])
        for arm, color, line in (("observed", BLUE, "-"), ("hidden", ORANGE, (0, (3, 2)))):
            if pick(of_setting, arm=arm):
                draw_mean(ax, pick(of_setting, arm=arm), color, line, seeds=True)
        ax.set(title=f"{names[leader]}, learning rate {np.format_float_positional(rate)}", ylim=(-2.6, 0.15))
        ax.xaxis.set_major_formatter(thousands)
    for ax in axes.flat[len(settings) :]:
        ax.set_visible(False)
    figure.supxlabel("environment steps, queries included", fontsize=9)
    figure.supylabel("leader's return per game step", fontsize=9)
    entries = [("observed queries", {"color": BLUE}), ("hidden queries", {"color": ORANGE, "linestyle": (0, (4, 1))})]
    legend_above(figure, [*entries, ("Stackelberg value", OPTIMUM[1])], 3)
    return figure


def fig4(results_dir: Path):
    """Figure 4: a leader that can tell queries from play, and one that cannot."""
    rows, runs = load(results_dir, "fig4"), load(results_dir, "fig4_runs")
    rates = values_of(rows, "learning_rate")
    figure, axes = plt.subplots(1, len(rates), figsize=(9, 2.9), sharex=True, sharey=True, squeeze=False)
    for ax, rate in zip(axes.flat, rates, strict=True):
        draw_optimum(ax, runs[0]["stackelberg_value"])
        for arm, color, line, y in (("noninvariant", ORANGE, (0, (4, 1)), 0.13), ("invariant", BLUE, "-", 0.04)):
            if of_arm := pick(rows, learning_rate=rate, arm=arm):
                draw_mean(ax, of_arm, color, line, seeds=True)
                regret = np.mean([run["follower_regret"] for run in pick(runs, learning_rate=rate, arm=arm)])
                ax.text(
                    0.97, y, f"follower's regret {abs(regret):.1f}", color=color, ha="right", transform=ax.transAxes
                )
        ax.set_title(f"learning rate {rate:g}")
        ax.xaxis.set_major_formatter(thousands)
    figure.supxlabel("environment steps, queries included", fontsize=9)
    axes[0, 0].set_ylabel("leader's return per game step")
    entries = [("invariant leader", {"color": BLUE})]
    entries += [("leader that tells queries from play", {"color": ORANGE, "linestyle": (0, (4, 1))})]
    legend_above(figure, [*entries, ("Stackelberg value", OPTIMUM[1])], 3)
    return figure


def fig5(results_dir: Path):
    """Figure 5: reward withheld or given while the follower learns."""
    rows = load(results_dir, "fig5")
    games = sorted(values_of(rows, "env_id"), key=lambda game: [-float(x) for x in re.findall(r"-?[\d.]+", game)])
    figure, axes = plt.subplots(1, len(games), figsize=(9, 2.9), sharex=True, sharey=True, squeeze=False)
    for ax, game in zip(axes.flat, games, strict=True):
        of_game = pick(rows, env_id=game)
        draw_optimum(ax, of_game[0]["leader_return"] + of_game[0]["leader_regret"])
        for reward, color, line in (("withheld", BLUE, "-"), ("given", ORANGE, (0, (4, 1)))):
            if pick(of_game, reward=reward):
                draw_mean(ax, pick(of_game, reward=reward), color, line, seeds=True)
        preferred, mismatch = re.search(r"_a(.*)_p(.*)$", game).groups()
        ax.set_title(f"a = {preferred}, p = {minus(float(mismatch))}")
    figure.supxlabel("environment steps, the follower's learning included", fontsize=9)
    axes[0, 0].set_ylabel("leader's return in play")
    entries = [("reward withheld while the follower learns", {"color": BLUE})]
    entries += [("reward given", {"color": ORANGE, "linestyle": (0, (4, 1))})]
    legend_above(figure, [*entries, ("Stackelberg value", OPTIMUM[1])], 3)
    return figure


def fig6(results_dir: Path):
    """Figure 6: the follower's Q-table reset or kept between the leader's episodes."""
    rows = load(results_dir, "fig6")
    figure, ax = plt.subplots(figsize=(6, 3.2))
    draw_optimum(ax, rows[0]["leader_return"] + rows[0]["leader_regret"])
    for arm, color, line in (("reset", BLUE, "-"), ("kept", ORANGE, (0, (4, 1)))):
        if pick(rows, arm=arm):
            draw_mean(ax, pick(rows, arm=arm), color, line, seeds=True)
    ax.set(xlabel="environment steps, the follower's learning included", ylabel="leader's return")
    ax.xaxis.set_major_formatter(thousands)
    entries = [("Q-table reset", {"color": BLUE}), ("Q-table kept", {"color": ORANGE, "linestyle": (0, (4, 1))})]
    legend_above(figure, [*entries, ("Stackelberg value", OPTIMUM[1])], 3)
    return figure


def fig8(results_dir: Path):
    """Figure 8: PPO + Q-learning, and Meta-RL, to two million steps."""
    rows, runs = load(results_dir, "fig8"), load(results_dir, "fig8_runs")
    scripts = ("ppo_qlearning_matrix", "stackelberg_ppo_matrix")
    exploring = {"linestyle": (0, (1, 1)), "linewidth": 1.2}
    figure, axes = plt.subplots(3, 4, figsize=(9, 6.2), sharex=True, sharey=True)
    for ax, game in zip(axes.flat, GAMES, strict=True):
        draw_optimum(ax, pick(runs, env_id=game)[0]["stackelberg_value"])
        for script in scripts:
            _, color, line, _ = METHODS[script]
            if of_script := pick(rows, env_id=game, script=script, policy="greedy"):
                draw_mean(ax, of_script, color, line)
            if of_script := pick(rows, env_id=game, script=script, policy="as it is"):
                steps, curves = curves_of(of_script)
                ax.plot(steps, curves.mean(0), color=RED, **exploring)
        ax.set(title=title_of(game), ylim=(-3.1, 0.2))
        ax.xaxis.set_major_formatter(millions)
    figure.supxlabel("environment steps: follower's training, leader's training and all queries", fontsize=9)
    figure.supylabel("leader's return per game step", fontsize=9)
    entries = method_entries(rows, scripts)
    entries.append(("PPO + Q-learning as it explores (the paper's measure)", {"color": RED, **exploring}))
    legend_above(figure, [*entries, OPTIMUM], 2)
    return figure


def theorem2(results_dir: Path):
    """Theorem 2: how leaders end that learn against a follower that best-responds at once."""
    rows = load(results_dir, "theorem2_summary")
    ends = {"tit_for_tat": ("tit-for-tat", BLUE), "o_D_cooperate": ("cooperates after a defection", ORANGE)}
    ends |= {"others": ("defects after either", "#BBBBBB")}
    learners = {"parameter_noise": "Q-learning, parameter noise", "epsilon_greedy": "Q-learning, ε-greedy"}
    learners |= {"epsilon_soft": "Q-learning, ε-soft reply", "reinforce": "REINFORCE"}
    order = {learner: i for i, learner in enumerate(learners)}
    settings = {(order[row["learner"]], row["learner"], row["start"]) for row in rows}
    # Q-tables that start near what they can reach first, small steps first
    settings = sorted(settings, key=lambda s: (s[0], abs(float(s[2].split()[-1]))))
    settings = [(learner, start) for _, learner, start in settings]
    names = [f"{learners[learner]}, {start}".replace("from -", "from \N{MINUS SIGN}") for learner, start in settings]
    figure, axes = plt.subplots(1, 2, figsize=(9, 3.6), sharex=True, sharey=True)
    figure.get_layout_engine().set(wspace=0.06)
    for ax, queries in zip(axes, ("hidden", "observed"), strict=True):
        for y, (learner, start) in enumerate(settings):
            left = 0.0
            for row in pick(rows, queries=queries, learner=learner, start=start):
                counts = [row["tit_for_tat"], row["o_D_cooperate"]]
                for count, (_, color) in zip([*counts, row["runs"] - sum(counts)], ends.values(), strict=True):
                    share = count / row["runs"]
                    ax.barh(y, share, 0.7, left, color=color)
                    if share >= 0.095:
                        text = {"color": "white" if color == BLUE else "black", "fontsize": 7.5}
                        ax.text(left + share / 2, y, f"{share:.0%}", ha="center", va="center", **text)
                    left += share
        ax.set(title=f"{queries} queries", xlim=(0, 1), ylim=(len(settings) - 0.5, -0.5))
        ax.set_xticks([0, 0.5, 1], ["0", "50 %", "100 %"])
        ax.set_yticks(range(len(settings)), names)
        ax.tick_params(axis="y", length=0)
        ax.grid(axis="y", visible=False)
    figure.supxlabel("share of runs, over all learning rates, discounts and exploration strengths", fontsize=9)
    entries = [(name, {"color": color, "linewidth": 7}) for name, color in ends.values()]
    legend_above(figure, entries, 3)
    return figure


def es_md(results_dir: Path):
    """Evolution strategies: the greedy leader's return over environment steps, in 12 games."""
    rows, runs = load(results_dir, "fig1_es_md"), load(results_dir, "fig1_es_md_runs")
    figure, axes = plt.subplots(3, 4, figsize=(9, 6.2), sharex=True, sharey=True)
    for ax, game in zip(axes.flat, GAMES, strict=True):
        draw_optimum(ax, pick(runs, env_id=game)[0]["stackelberg_value"])
        if of_game := pick(rows, env_id=game, policy="greedy"):
            draw_mean(ax, of_game, BLACK)
        if of_game := pick(rows, env_id=game, policy="as it is"):
            draw_mean(ax, of_game, RED, (0, (1, 1)), linewidth=1.2)
        ax.set(title=title_of(game), xscale="log", ylim=(-3.1, 0.2))
        ax.set_xticks([1e6, 1e7, 1e8], ["1M", "10M", "100M"])
        ax.minorticks_off()
    figure.supxlabel("environment steps, all followers' learning included (log scale)", fontsize=9)
    figure.supylabel("leader's return per game step", fontsize=9)
    entries = [("ES-MD, greedy leader", {"color": BLACK})]
    entries.append(
        ("leader as it is, with its probabilities", {"color": RED, "linestyle": (0, (1, 1)), "linewidth": 1.2})
    )
    legend_above(figure, [*entries, OPTIMUM], 3)
    return figure


FIGURES: dict[str, Callable] = {
    f.__name__: f for f in (fig1, fig1_steps, fig2, fig3, fig4, fig5, fig6, fig8, theorem2, es_md)
}
SOURCES = {"fig1_steps": "fig1_runs", "fig2": "atari_trade_curves", "theorem2": "theorem2_summary"}
SOURCES["es_md"] = "fig1_es_md"


# ----------------------------------------------------------------------------------------------------- flags and files
def fail(message: str) -> NoReturn:
    """Ends the program with one line on stderr and exit code 2."""
    print(f"{os.path.basename(__file__)}: error: {message}", file=sys.stderr)
    raise SystemExit(2)


def parse_args(argv: list[str] | None = None) -> Args:
    """Parses the command line with tyro, cutting its box of several lines down to the error itself."""
    box = io.StringIO()
    try:
        with contextlib.redirect_stderr(box):
            return tyro.cli(Args, args=argv, description=__doc__)
    except SystemExit as error:
        if error.code:
            plain = re.sub(r"\x1b\[[0-9;]*m", "", box.getvalue())  # a terminal gets colours
            lines = [line.strip("│ ") for line in plain.splitlines()[1:]]
            fail(" ".join(itertools.takewhile(lambda line: line[:1] not in "─╰", lines)))
        raise


def save(name: str, results_dir: Path, path: Path) -> None:
    """Draws a figure into a PNG file, which is never there by half."""
    with plt.rc_context():
        matplotlib.rcdefaults()  # whatever this machine's matplotlibrc says
        matplotlib.rcParams.update(STYLE)
        figure = FIGURES[name](results_dir)
        figure.canvas.draw()
        image = Image.fromarray(np.asarray(figure.canvas.buffer_rgba())).convert("RGB")
        plt.close(figure)
    # a palette of 256 colours makes the file a third as large
    image.quantize(256, dither=Image.Dither.NONE).save(f"{path}.tmp", format="png", optimize=True)
    os.replace(f"{path}.tmp", path)


# --------------------------------------------------------------------------------------------------------- the drawing
def main(args: Args) -> list[Path]:
    """Draws the figures; returns their files. Exits with 2, nothing written, if the CSV of a named one is not there."""
    results_dir = Path(args.results_dir)
    missing = [n for n in FIGURES if not (results_dir / f"{SOURCES.get(n, n)}.csv").is_file()]
    for name in args.figures:
        if name in missing:
            fail(f"no {SOURCES.get(name, name)}.csv in {results_dir}: python benchmark/run.py {name.split('_s')[0]}")
    wanted = [name for name in FIGURES if name in args.figures or ("all" in args.figures and name not in missing)]
    if not wanted:
        fail(f"no CSVs of figures in {results_dir}: python benchmark/run.py all")
    default = ROOT / "benchmark/figures"
    is_default = results_dir.resolve() == ROOT / "benchmark/results"
    figures_dir = Path(args.figures_dir or (default if is_default else results_dir / "figures"))
    try:
        figures_dir.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        fail(f"--to {figures_dir}: cannot make it: {error.strerror}")
    for name in wanted:
        save(name, results_dir, figures_dir / f"{name}.png")
        print(figures_dir / f"{name}.png")
    return [figures_dir / f"{name}.png" for name in wanted]


if __name__ == "__main__":
    main(parse_args())
