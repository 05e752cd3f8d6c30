"""Draws the figures of batches of runs from the CSVs that `batch.py` wrote; runs nothing.

    python benchmark/plot_batch.py

One function draws one figure, from benchmark/results alone; the pictures go to benchmark/figures.
"""

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import tyro

ROOT = Path(__file__).resolve().parent.parent
sys.path.append(str(ROOT / "benchmark"))

import plot  # noqa: E402
from plot import BLACK, BLUE, DASHED, GAMES, GREEN, GREY, ORANGE, RED, SKY, YELLOW, load, pick, title_of  # noqa: E402

Figure = Literal[
    *("atlas", "commitment", "misses", "explore", "follower_heatmap", "leader_sensitivity", "throughput"),
    *("no_regret", "two_followers", "diff_md", "all"),
]


@dataclass
class Args:
    figures: tyro.conf.Positional[tuple[Figure, ...]] = ("all",)
    """figures to draw; all: those for which there are CSVs"""
    results_dir: str = str(ROOT / "benchmark/results")
    """folder with the CSVs"""
    figures_dir: str = str(ROOT / "benchmark/figures")
    """folder for the pictures"""

    def __post_init__(self):
        missing = [name for name in FIGURES if not Path(self.results_dir, f"{source(name)}.csv").is_file()]
        for name in self.figures:
            if name in missing:
                command = f"python benchmark/batch.py {source(name).removeprefix('vectorized_')}"
                raise ValueError(f"no {source(name)}.csv in {self.results_dir}: {command}")
        if "all" in self.figures:
            self.figures = tuple(name for name in FIGURES if name not in missing)


def source(figure: str) -> str:
    """Returns the name of a figure's CSV."""
    if figure in ("no_regret", "two_followers", "diff_md"):
        return figure
    return f"vectorized_{'atlas' if figure == 'commitment' else figure}"


def atlas(results_dir: Path):
    """All 144 strict ordinal 2x2 games: the share of seeds at the optimum, before and after."""
    numbers = "at_optimum between found stackelberg_value stackelberg_value_pessimistic"
    rows = load(results_dir, "vectorized_atlas", "env_id setting", numbers)
    titles = {"paper": "paper's settings: every action drawn afresh", "both": "one table per episode, better follower"}
    figure, axes = plt.subplots(1, 2, figsize=(9, 5.2), sharey=True)
    for ax, (setting, title) in zip(axes, titles.items(), strict=True):
        cells = pick(rows, setting=setting).set_index("env_id")
        # where optima differ, the follower's ties decide: there a run counts if it is between them
        tied = cells["stackelberg_value"] - cells["stackelberg_value_pessimistic"] > 1e-6
        share = cells["found"].where(tied, cells["at_optimum"])
        image = plot.board(ax, share, "viridis", 0, 1, lambda x: f"{x:.0%}" if x < 0.995 else "")
        for name in tied.index[tied]:
            leader, _, follower = name.partition("-")
            i, j = GAMES.index(leader), GAMES.index(follower or leader)
            ax.plot(j + 0.36, i - 0.36, ".", color=RED, markersize=4)
        ax.set_title(f"{title}\n{share.mean():.1%} of runs")
    figure.supxlabel("follower's payoffs of", fontsize=9)
    figure.supylabel("leader's payoffs of", fontsize=9)
    figure.colorbar(image, ax=axes, shrink=0.6, label="share of seeds at the optimum (red dot: between the two optima)")
    return figure


def commitment(results_dir: Path):
    """What commitment is worth in all 144 games: the optimum less the leader's best pure equilibrium."""
    rows = pd.read_csv(results_dir / "vectorized_atlas.csv")
    cells = rows[rows["setting"] == "both"].set_index("env_id")
    figure, ax = plt.subplots(figsize=(6, 5))
    worth = cells["stackelberg_value"] - cells["nash_value"]
    image = plot.board(ax, worth, "cividis_r", 0, 2, lambda x: f"{x:.1f}" if x > 0.04 else "")
    ax.set(xlabel="follower's payoffs of", ylabel="leader's payoffs of")
    label = "optimum less the leader's best pure equilibrium\n(hatched: there is none)"
    figure.colorbar(image, ax=ax, shrink=0.7, label=label)
    return figure


def misses(results_dir: Path):
    """Held-out random games: what the runs miss that do not end at the optimum."""
    rows = load(results_dir, "vectorized_misses", "setting share", "mean low high")
    names = {
        "paper": "paper's settings",
        "follower": "better follower",
        "table": "one table per episode",
        "both": "both",
    }
    causes = {"miss_leader": ("the leader stays below the best of its POMDP", BLUE)}
    causes |= {"miss_follower_less": ("wrong replies leave less than the optimum", ORANGE)}
    causes |= {"miss_follower_more": ("wrong replies pay more than the optimum", YELLOW)}
    figure, ax = plt.subplots(figsize=(9, 2.7))
    for y, setting in enumerate(names):
        left = 0.0
        for cause, (_, color) in causes.items():
            share = pick(rows, setting=setting, share=cause)["mean"].item()
            ax.barh(y, share, 0.6, left, color=color)
            left += share
        found = pick(rows, setting=setting, share="at_optimum").iloc[0]
        error = [[found["high"] - found["mean"]], [found["mean"] - found["low"]]]
        ax.errorbar(left, y, xerr=error, color=BLACK, linewidth=0.8, capsize=2)
        ax.text(left + 0.025, y, f"{found['mean']:.1%} at the optimum", va="center", fontsize=8)
    ax.set_yticks(range(len(names)), names.values())
    ax.set(ylim=(len(names) - 0.5, -0.5), xlabel="share of 1,000 held-out random games that miss the optimum")
    ax.set_xlim(0)
    ax.xaxis.set_major_formatter(lambda x, _: f"{x:.0%}")
    ax.grid(axis="y", visible=False)
    plot.legend_above(figure, [(name, {"color": color, "linewidth": 7}) for name, color in causes.values()], 2)
    return figure


def explore(results_dir: Path):
    """Action against table with the same followers: the share of runs that have come to the optimum to stay."""
    rows = pd.read_csv(results_dir / "vectorized_explore.csv")
    arms = {"action": (ORANGE, DASHED, "every action afresh, learning rate 0.008 (paper)")}
    arms |= {"action, faster": (RED, DASHED, "every action afresh, learning rate 0.1")}
    arms |= {"table": (SKY, "-", "one table per episode")}
    arms |= {"table, risk-seeking": (BLUE, "-", "one table per episode, risk-seeking (default)")}
    panels = {"table3": "Table 3: 12 games, 5 seeds", "random": "1,000 held-out random games"}
    figure, axes = plt.subplots(1, 2, figsize=(9, 3.6), sharex=True, sharey=True)
    for ax, (family, title) in zip(axes, panels.items(), strict=True):
        for arm, (color, line, _) in arms.items():
            runs = rows[(rows["family"] == family) & (rows["arm"] == arm)]
            for column, width in (("steps_to_converge_exploring", 2), ("steps_to_converge", 0.7)):
                steps = np.sort(runs[column].dropna())
                shares = np.arange(1, len(steps) + 1) / len(runs)
                ends = np.append(steps, 200_000), np.append(shares, len(steps) / len(runs))
                ax.step(*ends, where="post", color=color, linestyle=line, linewidth=width)
        ax.axvline(52_500, zorder=1, **plot.PRE_TRAINING)
        ax.set(title=title, xlim=(50_000, 200_000), ylim=(0, 1.02))
        ax.xaxis.set_major_formatter(plot.thousands)
        ax.yaxis.set_major_formatter(lambda x, _: f"{x:.0%}")
    axes[0].set_ylabel("runs within 0.05 of the optimum, to stay")
    figure.supxlabel("combined steps: follower's training, leader's training and all queries", fontsize=9)
    entries = [(name, {"color": color, "linestyle": line}) for color, line, name in arms.values()]
    plot.legend_above(figure, [*entries, *plot.MEASURES], 2)
    return figure


def heat(ax, table: pd.DataFrame, cmap: str, low: float, high: float, log=False):
    """Draws a table of shares, their percentage in each cell."""
    image = ax.imshow(table, cmap=cmap, vmin=low, vmax=high, aspect="auto", origin="lower")
    for (i, j), value in np.ndenumerate(table.to_numpy()):
        relative = (value - low) / (high - low)
        color = "white" if (relative < 0.5) == (not cmap.endswith("_r")) else "black"
        ax.text(j, i, f"{value:.1%}", ha="center", va="center", fontsize=6.5, color=color)
    ax.set_xticks(range(table.shape[1]), [f"{x:g}" for x in table.columns])
    ax.set_yticks(range(table.shape[0]), [f"{x:g}" if x < 1000 else f"{x:,.0f}" for x in table.index])
    ax.tick_params(length=0)
    ax.grid(visible=False)
    return image


def follower_heatmap(results_dir: Path):
    """The follower: share of wrong replies over its budget, learning rate and baseline."""
    numbers = "follower_timesteps follower_learning_rate follower_baseline_rate wrong_replies follower_allows"
    rows = load(results_dir, "vectorized_follower_heatmap", "family", numbers)
    rates = sorted(set(rows["follower_baseline_rate"]))
    figure, axes = plt.subplots(2, len(rates), figsize=(9, 5), sharex=True, sharey=True)
    for i, (column, cmap, low, high, label) in enumerate(
        (
            ("wrong_replies", "viridis_r", 0, 0.3, "wrong replies to the 32 leader tables"),
            ("follower_allows", "viridis", 0.7, 1, "games whose optimum the follower allows"),
        )
    ):
        for ax, rate in zip(axes[i], rates, strict=True):
            cells = pick(rows, family="random", follower_baseline_rate=rate)
            table = cells.pivot(index="follower_timesteps", columns="follower_learning_rate", values=column)
            image = heat(ax, table, cmap, low, high)
            if i == 0:
                ax.set_title(f"baseline rate {rate:g}")
        figure.colorbar(image, ax=axes[i], label=label, format=lambda x, _: f"{x:.0%}")
    figure.supxlabel("learning rate", fontsize=9)
    figure.supylabel("environment steps of pre-training", fontsize=9)
    return figure


def leader_sensitivity(results_dir: Path):
    """The leader: share of random games in which it finds the best of its POMDP, over learning rate and epsilon."""
    rows = load(
        results_dir, "vectorized_leader_sensitivity", "explore", "risk_seeking learning_rate adam_eps leader_finds"
    )
    panels = {("action", 0): "every action afresh", ("table", 0): "one table per episode"}
    panels[("table", 5)] = "one table, risk-seeking"
    figure, axes = plt.subplots(1, 3, figsize=(9, 3), sharex=True, sharey=True)
    for ax, ((arm, risk_seeking), title) in zip(axes, panels.items(), strict=True):
        cells = pick(rows, explore=arm, risk_seeking=risk_seeking)
        table = cells.pivot(index="adam_eps", columns="learning_rate", values="leader_finds")
        image = heat(ax, table, "viridis", 0.7, 1)
        ax.set_title(title)
    figure.colorbar(image, ax=axes, label="finds the best of its POMDP", format=lambda x, _: f"{x:.0%}")
    figure.supxlabel("learning rate", fontsize=9)
    axes[0].set_ylabel("Adam's epsilon")
    return figure


def throughput(results_dir: Path):
    """Combined steps per second over the number of runs trained as one batch."""
    rows = pd.read_csv(results_dir / "vectorized_throughput.csv")
    figure, ax = plt.subplots(figsize=(6, 3.6))
    lines = {
        "paper": ("batch, paper's settings", BLUE, "-"),
        "default": ("batch, one table per episode", GREEN, DASHED),
    }
    for setting, (_, color, line) in lines.items():
        runs = rows[rows["setting"] == setting]
        ax.plot(runs["runs"], runs["steps_per_second"], "o", color=color, linestyle=line, markersize=3.5)
    script = rows.loc[rows["script"] == "stackelberg_ppo_matrix", "steps_per_second"].median()
    ax.axhline(script, color=ORANGE)
    for times in (10, 100, 300):
        ax.axhline(times * script, color=GREY, linewidth=0.5, linestyle=(0, (1, 3)))
        ax.text(1, times * script, f" {times} x", va="bottom", fontsize=7, color=GREY)
    ax.set(xscale="log", yscale="log", xlabel="runs in the batch", ylabel="combined steps per second, one core")
    entries = [(name, {"color": color, "linestyle": line}) for name, color, line in lines.values()]
    plot.legend_above(figure, [*entries, ("stackelberg_ppo_matrix.py, one run", {"color": ORANGE})], 2)
    return figure


def no_regret(results_dir: Path):
    """Lemma 1's condition: what leaders get from a follower after T rounds of Hedge, and what it misses by then."""
    numbers = "rounds seed stackelberg_value leader_return_greedy leader_return_best follower_regret"
    rows = load(results_dir, "no_regret", "explore reply env_id", f"{numbers} steps_to_converge")
    rows["greedy"] = rows["leader_return_greedy"] - rows["stackelberg_value"]
    rows["best"] = rows["leader_return_best"] - rows["stackelberg_value"]
    arms = {("episode", "last"): ("one table an episode, last weights", BLUE, "-")}
    arms |= {("episode", "average"): ("one table an episode, mean weights", GREEN, DASHED)}
    arms |= {("round", "last"): ("answers drawn anew in each round, last weights", ORANGE, "-")}
    figure, axes = plt.subplots(1, 3, figsize=(9, 3.4), sharex=True)
    default = pick(rows, explore="episode", reply="last")
    first = pick(default, rounds=1).groupby("env_id")["best"].mean()
    for game in GAMES:
        best = pick(default, env_id=game).groupby("rounds")["best"].mean()
        axes[0].plot(best.index, best, color=BLUE, linewidth=0.6, alpha=0.6)
        if abs(best.iloc[0]) == first.abs().max() or best.iloc[0] == first.max():
            axes[0].annotate(title_of(game), (1, best.iloc[0]), (9, 0), textcoords="offset points", fontsize=7)
    axes[0].axhline(0, zorder=1, **plot.OPTIMUM)
    for (explore, reply), (_, color, line) in arms.items():
        arm = pick(rows, explore=explore, reply=reply).groupby("rounds")
        axes[1].plot(arm["follower_regret"].mean(), color=color, linestyle=line, marker="o", markersize=3)
        axes[2].plot(
            arm["steps_to_converge"].count() / arm.size(), color=color, linestyle=line, marker="o", markersize=3
        )
    axes[0].set(title="the best table less the optimum,\none line a game", ylabel="payoff per game step")
    axes[1].set(title="follower's exact regret at the\ngreedy leader, mean", yscale="log")
    axes[2].set(title="greedy leaders at the optimum\n(12 games, 5 seeds)", ylim=(0, 1.02))
    axes[2].yaxis.set_major_formatter(lambda x, _: f"{x:.0%}")
    for ax in axes:
        ax.set(xscale="log", xlabel="rounds of the follower's learning")
        ax.xaxis.set_major_formatter(lambda x, _: f"{x:,.0f}")
    entries = [(name, {"color": color, "linestyle": line}) for name, color, line in arms.values()]
    plot.legend_above(figure, [*entries, plot.optimum_entry()], 2)
    return figure


def two_followers(results_dir: Path):
    """Two followers: where leaders end, and which of the followers' equilibria self-play selects."""
    counts = "without_equilibrium in_equilibrium in_one_of_several in_the_best in_the_worst".split()
    numbers = "stackelberg_value stackelberg_value_pessimistic leader_return_greedy leader_return_best follower_regret "
    rows = load(results_dir, "two_followers", "env_id", numbers + " ".join(f"tables_{name}" for name in counts))
    games = list(dict.fromkeys(rows["env_id"]))
    figure, (top, bottom) = plt.subplots(1, 2, figsize=(9, 3.9), width_ratios=(1, 1.2))
    kinds = {"the only equilibrium (or value)": SKY, "the best of several": GREEN, "one between": YELLOW}
    kinds |= {"the worst of several": ORANGE, "none, though there is one": RED, "none, as there is none": GREY}
    len_tables = 128
    for y, game in enumerate(games):
        runs = pick(rows, env_id=game)
        low, high = (runs[f"stackelberg_value{kind}"].iloc[0] for kind in ("_pessimistic", ""))
        top.plot([low, high], [y, y], color=GREY, linewidth=0.9, zorder=1)
        top.plot([low, high], [y, y], "|", color=BLACK, markersize=16, zorder=2)
        spread = y + np.linspace(-0.28, 0.28, len(runs))
        top.plot(runs["leader_return_best"], spread, "|", color=ORANGE, markersize=7, markeredgewidth=1.4)
        top.plot(runs["leader_return_greedy"], spread, "o", color=BLUE, markersize=3)
        means = {name: runs[f"tables_{name}"].mean() for name in counts}
        several, best, worst = (means[f"in_{name}"] for name in ("one_of_several", "the_best", "the_worst"))
        parts = [means["in_equilibrium"] - several, best, several - best - worst, worst]
        parts += [len_tables - means["in_equilibrium"] - means["without_equilibrium"], means["without_equilibrium"]]
        left = 0.0
        for part, color in zip(np.clip(parts, 0, None), kinds.values(), strict=True):
            bottom.barh(y, part, 0.6, left, color=color)
            if part >= 6:
                text = {"ha": "center", "va": "center", "fontsize": 7}
                bottom.text(
                    left + part / 2, y, f"{part:.0f}", color="white" if color in (RED, GREEN) else "black", **text
                )
            left += part
    for ax in (top, bottom):
        ax.set_yticks(range(len(games)), [game.replace("_", " ") for game in games] if ax is top else [])
        ax.set_ylim(len(games) - 0.5, -0.5)
        ax.grid(axis="y", visible=False)
    top.set_xlabel("leader's payoff per game step")
    bottom.set(xlim=(0, len_tables), xlabel="the leader's 128 tables by how they are answered, mean")
    bottom.set_xticks(range(0, len_tables + 1, 32))
    entries = [("greedy leader of a run", {"color": BLUE, "marker": "o", "linestyle": ""})]
    entries += [("best table, given its followers", {"color": ORANGE, "marker": "|", "linestyle": ""})]
    entries += [("optimum with the followers' worst and best equilibria", {"color": BLACK, "marker": "|"})]
    entries += [(f"answer: {name}", {"color": color, "linewidth": 7}) for name, color in kinds.items()]
    plot.legend_above(figure, entries, 3)
    return figure


def diff_md(results_dir: Path):
    """Diff-MD: what leaders have after the follower's k steps, what they are guaranteed, and which games they miss."""
    numbers = "unroll seed stackelberg_value stackelberg_value_pessimistic leader_return leader_return_guaranteed"
    rows = load(results_dir, "diff_md", "objective env_id", numbers)
    measures = {"leader_return": ("after the k steps", DASHED), "leader_return_guaranteed": ("guaranteed", "-")}
    objectives = {"last": ("the return after the k steps", BLUE), "sum": ("summed over the steps", ORANGE)}
    figure, (left, middle, right) = plt.subplots(1, 3, figsize=(9, 3.9), width_ratios=(1, 1, 1.45))
    for objective, (_, color) in objectives.items():
        of_objective = pick(rows, objective=objective)
        for measure, (_, line) in measures.items():
            style = {"color": color, "linestyle": line, "marker": "o", "markersize": 3}
            left.plot(pick(of_objective, env_id="prisoners_dilemma").groupby("unroll")[measure].mean(), **style)
        guaranteed = of_objective["leader_return_guaranteed"]
        below = guaranteed < of_objective["stackelberg_value_pessimistic"] - 0.05 - 1e-6
        above = guaranteed > of_objective["stackelberg_value"] + 0.05 + 1e-6
        for share, marker in ((below, "v"), (above, "^")):
            shares = share.groupby(of_objective["unroll"]).mean()
            middle.plot(shares, color=color, marker=marker, markersize=5)
    game = pick(rows, env_id="prisoners_dilemma").iloc[0]
    left.axhline(game["stackelberg_value"], zorder=1, **plot.OPTIMUM)
    left.axhline(plot.STOCHASTIC_LIMIT, zorder=1, **plot.OPTIMUM | {"color": RED})
    left.set(title="prisoner's dilemma", ylabel="leader's return per game step", ylim=(-1.15, -0.4))
    middle.set(title="all 144 games: runs guaranteed\nless (▽) or more (△) than the optimum", ylim=(0, None))
    middle.yaxis.set_major_formatter(lambda x, _: f"{x:.0%}")
    for ax in (left, middle):
        ax.set(xscale="log", xlabel="k, the follower's gradient steps")
        ax.xaxis.set_major_formatter(lambda x, _: f"{x:g}")
    cells = pick(rows, objective="last", unroll=30)
    missed = cells["leader_return_guaranteed"] < cells["stackelberg_value_pessimistic"] - 0.05 - 1e-6
    image = plot.board(right, missed.groupby(cells["env_id"]).mean(), "cividis_r", 0, 1)
    right.set(title="share of seeds guaranteed less,\nk = 30, return after the steps")
    right.set(xlabel="follower's payoffs of", ylabel="leader's payoffs of")
    right.tick_params(labelsize=5.5)
    figure.colorbar(image, ax=right, shrink=0.6, format=lambda x, _: f"{x:.0%}")
    entries = [(f"leader climbs {name}", {"color": color}) for name, color in objectives.values()]
    entries += [(f"leader's return {name}", {"color": GREY, "linestyle": line}) for name, line in measures.values()]
    entries += [plot.optimum_entry(), ("supremum of stochastic leaders", plot.OPTIMUM | {"color": RED})]
    plot.legend_above(figure, entries, 2)
    return figure


BATCHES = (atlas, commitment, misses, explore, follower_heatmap, leader_sensitivity, throughput)
FIGURES = {f.__name__: f for f in (*BATCHES, no_regret, two_followers, diff_md)}


def main(args: Args):
    """Draws the figures."""
    plot.FIGURES.update(FIGURES)
    for name in args.figures:
        path = Path(args.figures_dir, f"{name}.png")
        plot.save(name, Path(args.results_dir), path)
        plt.close("all")
        print(path)


if __name__ == "__main__":
    main(tyro.cli(Args, description=__doc__))
