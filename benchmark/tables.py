"""Writes the tables of the READMEs from the CSVs in benchmark/results.

    python benchmark/tables.py

A table stands between `<!-- NAME -->` and `<!-- end -->`, where NAME is a function of this file. So no number in them
is typed; tests/test_readmes.py holds the texts to what this script would write.
"""

import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pandas as pd

sys.path.append(str(Path(__file__).resolve().parent))

import league
import league_tuning as tuning
import plot
import run
from held_out import shares

ROOT = Path(__file__).resolve().parent.parent
READMES = ("README.md", "benchmark/README.md", "ablations/README.md")
NEAR = 0.05 + 1e-6  # per step, in the paper's scale: what passes for the optimum


def two_digits(seconds: float) -> str:
    """Returns 140 for 141.0 and 0.0051 for 0.00513."""
    return f"{float(f'{seconds:.2g}'):g}"


def load(name: str) -> pd.DataFrame:
    """Returns a CSV of benchmark/results."""
    return pd.read_csv(ROOT / f"benchmark/results/{name}.csv")


def pick(rows: pd.DataFrame, **labels) -> pd.DataFrame:
    """Returns the rows with these labels."""
    for column, value in labels.items():
        rows = rows[rows[column] == value]
    return rows


def markdown(header: list[str], rows: list[list[str]]) -> str:
    """Returns a Markdown table."""
    return "\n".join(f"| {' | '.join(row)} |" for row in [header, ["---"] * len(header), *rows])


def number(value: float, digits: int = 2) -> str:
    """Returns a number with so many digits, never -0."""
    return f"{round(value, digits) + 0.0:.{digits}f}"


def steps(column: pd.Series) -> str:
    """Returns after how many steps the median run gets there, or "never"."""
    median = column.fillna(float("inf")).quantile(0.5, interpolation="higher")
    return "never" if median == float("inf") else f"{median:,.0f}"


def arrivals(rows: pd.DataFrame) -> list[str]:
    """Returns how many runs end at the optimum, and the median steps: of the leader as it explores, and greedy."""
    return [
        f"{rows[column].notna().sum()}/{len(rows)} {steps(rows[column])}"
        for column in ("steps_to_converge_exploring", "steps_to_converge")
    ]


# ------------------------------------------------------------------------------------------------------------ README.md
def methods() -> str:
    """All games of Figure 1 together, by method."""
    runs = load("fig1_runs")
    rows = [[name, *arrivals(pick(runs, script=script))] for script, name in run.METHODS.items()]
    hindsight = pick(load("hindsight_runs"), games="table3", learner="planning")["steps_to_converge"]
    rows.insert(0, ["hindsight, planning", "", f"{hindsight.notna().sum()}/{len(hindsight)} {steps(hindsight)}"])
    return markdown(["method", "as it explores: runs at the optimum, median steps", "greedy: runs, steps"], rows)


# ------------------------------------------------------------------------------------------------- benchmark/README.md
def held_out() -> str:
    """The PPO, PG and DQN scripts on held-out random games."""
    names = {"at_optimum": "greedy leader at the optimum (95 % interval)", "at_optimum_exploring": "as it explores"}
    names["follower_is_right"] = "follower's regret at most 0.05 at the leader's policy"
    rows = []
    complete = load("held_out").groupby("script").filter(lambda some: len(some) >= 200)
    for script, row in shares(complete).iterrows():
        cells = [f"{row[name]:.1%}" for name in names]
        cells[0] += f" ({row['low']:.1%} to {row['high']:.1%})"
        rows.append([run.METHODS[script], f"{row['games']:.0f}", *cells])
    return markdown(["leader", "random games", *names.values()], rows)


def throughput() -> str:
    """Batches of runs of 200,000 combined steps, paper's settings, beside the PPO script, on one core."""
    rows = load("vectorized_throughput")
    script = pick(rows, script="stackelberg_ppo_matrix")["steps_per_second"].median()
    table = [["`stackelberg_ppo_matrix.py`", number(200_000 / script, 1), f"{script:,.0f}", "1", ""]]
    for row in pick(rows, setting="paper").itertuples():
        rate = row.steps_per_second
        cells = [number(row.seconds, 1), f"{rate:,.0f}", f"{rate / script:,.0f}", number(row.gigabytes, 1)]
        table.append([f"{row.runs:,.0f}", *cells])
    header = ["runs in the batch", "seconds", "combined steps per second", "times the script", "GB at most"]
    return markdown(header, table)


def percent(row: NamedTuple, name: str) -> str:
    """Returns a share of the league with its interval."""
    return f"{getattr(row, name):.1%} ({getattr(row, f'{name}_low'):.1%} to {getattr(row, f'{name}_high'):.1%})"


def medians(row: NamedTuple) -> list[str]:
    """Returns the median steps of a method of the league, greedy and as it explores."""
    columns = row.steps_to_converge, row.steps_to_converge_exploring
    return ["" if pd.isna(x) else "never" if x == float("inf") else f"{x:,.0f}" for x in columns]


def league_short() -> str:
    """The league in short: whether a method is right, what it takes, and what it costs."""
    rows, batches = [], {method.name for method in league.METHODS if method.batch}
    for row in league.shares(load("league")).itertuples():
        if row.method.endswith("paper's settings") and row.method != "PPO, paper's settings":
            continue  # one example is enough
        cells = [row.method, "yes" if row.commitment == "stochastic" else "", "yes" if row.knows_payoffs else ""]
        cells += [f"{row.guarantees_optimum:.0%}", medians(row)[0]]
        rows.append([*cells, two_digits(row.cpu_seconds) + " (batch)" * (row.method in batches)])
    header = ["method", "mixes", "is given payoffs", "guarantees the optimum", "median steps", "seconds"]
    return markdown(header, rows)


def league_table() -> str:
    """The league: a line for each method."""
    rows = []
    for row in league.shares(load("league")).itertuples():
        cells = [row.method, f"{row.games} x {row.seeds}", row.commitment, "yes" if row.knows_payoffs else "no"]
        cells += [percent(row, name) for name in ("guarantees_optimum", "in_equilibrium")]
        rows.append([*cells, *medians(row), two_digits(row.cpu_seconds)])
    header = ["method", "games x seeds", "commitments", "knows payoffs", "guarantees the optimum of its class"]
    header += ["in equilibrium", "median steps, greedy", "as it explores", "CPU seconds a run"]
    return markdown(header, rows)


def league_why_not() -> str:
    """Why leaders of the league are not guaranteed the optimum: a line for each method that misses it."""
    rows, found = [], league.why_not(load("league"))
    for name, some in found.groupby("method", sort=False):
        misses, enough = some["why_not"] != "", some["optimum"] - some["one_action"] <= NEAR
        shares = [misses[enough], misses[~enough], *(some["why_not"] == why for why in league.REASONS)]
        if misses.any():
            rows.append([name, *(f"{share.mean():.1%}" for share in shares)])
    header = ["method", "misses where one action for all is enough", "where it is not"]
    return markdown([*header, *league.REASONS], rows)


def league_settings() -> str:
    """What was tried on random games before the league: each method's first setting and the best of all."""
    rows, found = [], load("league_tuning").fillna({"setting": ""})
    for best in tuning.best(found).to_dict("records"):
        tried = found[found["method"] == best["method"]]
        cells = [best["method"], str(len(tried)), f"{best['games']} x {best['runs'] // best['games']}"]
        for row in (tried.iloc[0], best):
            share = "" if pd.isna(row["guarantees_optimum"]) else f"{row['guarantees_optimum']:.0%}, "
            cells += [f"`{row['setting']}`" if row["setting"] else "", f"{share}{number(row['mean_loss'], 3)}"]
        rows.append(cells)
    header = ["method", "settings", "games x seeds", "the first", "guarantees the optimum, loss"]
    return markdown([*header, "the best", "guarantees the optimum, loss"], rows)


def landscapes() -> pd.DataFrame:
    """Returns the games of the league, those that most methods miss first, and what their exact solutions are like."""
    missed = plot.missed_by(load("league")).sum(axis=1)
    return pd.DataFrame([league.landscape(env_id) | {"missed": count} for env_id, count in missed.items()])


def league_why() -> str:
    """How many methods miss a game, by how much more a threat brings the leader than one action for all."""

    def span(values: pd.Series, form: str) -> str:
        return " to ".join(format(x, form) for x in dict.fromkeys((values.min(), values.max())))

    games, rows = landscapes(), []
    edges = pd.cut(games["beyond_one_action"], [-1, NEAR, 0.25, 0.75, 10])
    for _, some in games.groupby(edges, observed=True):
        cells = [span(some["beyond_one_action"].round(6), ".2f"), str(len(some)), f"{some['missed'].mean():.1f}"]
        cells += [span(some["missed"], "d"), span(some["tables"], "d")]
        rows.append([*cells, number(some["second_reply_costs"].median())])
    header = [
        "the optimum is beyond one action for all by",
        "games",
        "methods that miss one, in the mean",
        "fewest to most",
    ]
    return markdown([*header, "tables that attain it, of 32", "the follower's second reply costs it, median"], rows)


def league_hardest() -> str:
    """The games that most methods miss: five, and those that as many miss as the fifth."""
    rows = []
    games = landscapes()
    for game in games[games["missed"] >= games["missed"].iloc[4]].itertuples():
        numbers = [number(x) for x in (game.optimum, game.optimum - game.beyond_one_action, game.second_reply_costs)]
        rows.append([game.env_id, str(game.missed), *numbers, str(game.tables), f"`{game.leader_policy}`"])
    header = [
        "game",
        "methods that miss it",
        "guaranteed to tables",
        "to one action for all",
        "second reply costs the follower",
    ]
    return markdown([*header, "tables that attain the optimum", "one of them"], rows)


def budget() -> str:
    """The 12 games x 5 seeds by the follower's budget of pre-training."""
    rows = []
    for row in load("vectorized_budget").itertuples():
        exploring = row.steps_to_converge_exploring
        cells = [f"{row.at_optimum:.0f}/60", f"{row.at_optimum_exploring:.0f}/60", f"{row.steps_to_converge:,.0f}"]
        rows.append([f"{row.follower_timesteps:,.0f}", *cells, f"{exploring:,.0f}", f"{row.wrong_replies:.1%}"])
    header = ["steps of pre-training", "greedy: runs at the optimum", "as it explores", "greedy: median steps"]
    return markdown([*header, "as it explores: median steps", "wrong replies, of 32 tables"], rows)


def fig1() -> str:
    """Figure 1: every game and method."""
    return run.table(load("fig1_summary"))


def authors() -> str:
    """PPO, PG and DQN with our defaults and with the authors' settings."""
    ours, theirs = load("fig1_runs"), load("variants")
    rows = []
    for name in ("PPO", "PG", "DQN"):
        script = f"stackelberg_{name.lower()}_matrix"
        for settings, some in (
            ("defaults", pick(ours, script=script)),
            ("the authors'", pick(theirs, setting=f"{name.lower()} authors")),
        ):
            gap = (some["leader_return_greedy"] - some["stackelberg_value"]).abs()
            tenth, regret = f"{(gap <= 0.1 + 1e-6).sum()}/{len(some)}", some["follower_regret_all"].mean()
            exploring, greedy = arrivals(some)
            rows.append([name, settings, exploring, greedy, tenth, number(regret)])
    header = ["leader", "settings", "as it explores: runs at the optimum, median steps", "greedy: runs, steps"]
    return markdown([*header, "greedy, within 0.1", "follower's regret, summed over 32 leaders"], rows)


def dqn_targets() -> str:
    """What the greedy leader misses with each of DQN's targets."""
    ours, variants = load("fig1_runs"), load("variants")
    settings = {
        "answers alone (default)": pick(ours, script="stackelberg_dqn_matrix"),
        "every step, to the end of the episode (`--n-step 0`)": pick(variants, setting="dqn whole episode"),
        "every step, 5 steps ahead (`--n-step 5`)": pick(variants, setting="dqn 5 steps"),
        "every step, one step ahead (`--n-step 1`)": pick(variants, setting="dqn one step"),
        "the same, with all of the authors' settings": pick(variants, setting="dqn authors"),
    }
    games, rows = ("prisoners_dilemma", "chicken"), []
    for name, some in settings.items():
        regrets = (some["stackelberg_value"] - some["leader_return_greedy"]).map(lambda x: number(x, 1))
        rows.append([name, *(", ".join(regrets[some["env_id"] == game]) for game in games)])
    return markdown(["target", *games], rows)


def misses() -> str:
    """Held-out random games: what is missed before and after each change."""
    table = load("vectorized_misses").set_index(["share", "setting"])
    names = {
        "at_optimum": "greedy leader at the optimum (95 % interval)",
        "exploring_at_optimum": "as it explores",
        "follower_allows": "the follower allows the optimum",
        "leader_finds": "the leader finds the best of its POMDP",
        "follower_is_right": "follower's regret at most 0.05 at the leader's policy",
    }
    settings = {"paper": "paper's settings", "follower": "better follower", "table": "one table per episode"}
    settings["both"] = "both"
    rows = []
    for share, name in names.items():
        cells = [table.loc[(share, setting)] for setting in settings]
        rows.append([name, *(f"{cell['mean']:.1%}" for cell in cells)])
        if share == "at_optimum":
            rows[-1][1:] = [f"{cell['mean']:.1%} ({cell['low']:.1%} to {cell['high']:.1%})" for cell in cells]
    return markdown(["share of 1,000 random games", *settings.values()], rows)


def commitments() -> str:
    """The leader's optimum by the class of commitments and replies."""
    columns = {
        "deterministic": "deterministic, stationary follower",
        "deterministic_against_clock": "deterministic, follower that counts steps",
        "stochastic_guaranteed": "stochastic, stationary follower, guaranteed",
    }
    rows = [[row["env_id"], *(number(row[column]) for column in columns)] for _, row in load("commitments").iterrows()]
    return markdown(["game", *columns.values()], rows)


def clock() -> str:
    """What a clock is worth to a follower, in words."""
    table = load("clock")
    gains, changed = table["largest_gain"], (table["change_of_optimum"].abs() > 1e-6).sum()
    some = gains[gains > 1e-6]
    games = f"In {len(some)} of {len(gains)} random 2x2 games"
    return (
        f"{games} of 10 steps some leader lets such a follower do better than any stationary one.\n"
        f"The gain is {some.mean():.1%} of the range of its payoffs in the mean over these {len(some)},\n"
        f"{some.max():.1%} at most; the leader's optimum changes in {changed} of the {len(gains)} (`clock.csv`)."
    )


def pomdp_values() -> str:
    """What the POMDP is worth to a stochastic leader, where that differs from the optimum of deterministic ones."""
    table = load("pomdp_values")
    differ = table[(table["any_best_reply"] - table["deterministic"]).abs() > 0.005]
    columns = ["deterministic", "trained_follower", "any_best_reply"]
    rows = [[row["env_id"], *(number(row[column]) for column in columns)] for _, row in differ.iterrows()]
    header = ["game", "optimum of deterministic leaders", "POMDP, trained follower", "POMDP, any exact follower"]
    return markdown(header, rows)


def verification() -> str:
    """How often 50 further iterations find a flipped reply, by how sure the follower is of it."""
    flips = load("verification")
    rows = []
    for low, high in ((0.5, 0.6), (0.6, 0.8), (0.8, 0.9), (0.9, 1.0), (0.5, 1.0)):
        some = flips[(flips["confidence"] >= low) & (flips["confidence"] < high)]
        found = (some["verification_gain"] > 0.01).sum()
        mended = (some["verification_gain"] > some["follower_regret"] - 0.01).sum()
        name = "all" if (low, high) == (0.5, 1.0) else f"{low:g} to {high:g}"
        shares = (f"{count} ({count / len(some):.0%})" for count in (found, mended))
        rows.append([name, f"{len(some):,}", *shares])
    header = ["probability of the wrong reply", "wrong replies", "the follower gains", "and is right again"]
    return markdown(header, rows)


TRADE_PRICES = ("0.0", "0.25", "0.5", "0.75", "1.0")


def fig2() -> str:
    """The Atari runs."""
    rows = []
    for _, row in load("fig2_runs").iterrows():
        cells = [row["leader"], str(row["seed"]), number(row["optimal_leader_price"]), f"{row['share_at_optimum']:.0%}"]
        cells += [f"{row['acceptance_rate']:.0%}", number(row["leader_return"]), number(row["leader_return_greedy"])]
        cells.append(f"{number(row['stackelberg_value'])} ± {number(row['stackelberg_value_error'])}")
        for how in ("greedy", "sampled"):
            for player in ("seller", "buyer"):
                before, after = (row[f"{player}_hits_per_shot_{when}{how}"] for when in ("before_", ""))
                cells.append(f"{before:.3f} → {after:.3f}")
        for name in ("trade_deviation", "deviation"):
            cells.append(f"{number(row[f'{name}_gain'], 3)} ± {row[f'{name}_gain_error']:.3f}")
        rows.append(cells)
    header = ["leader", "seed", "price", "share", "sold", "leader's return as it explores", "greedy", "optimum"]
    header += [f"{who}'s aim, {how}" for how in ("greedy", "sampled") for who in ("seller", "buyer")]
    return markdown([*header, "follower's gain, trades alone", "all of it"], rows)


def fig2_responses() -> str:
    """The Atari followers at every fixed price."""
    rows = []
    for leader, runs in load("fig2_runs").groupby("leader", sort=False):
        for price in TRADE_PRICES:
            cells = [leader, price]
            for how in ("greedy", "sampled"):
                best = runs[f"best_response_at_{price}_{how}"]
                cells += [f"{(best >= 0.97).sum()} of {len(runs)}", f"{best.mean():.1%}", f"{best.min():.0%}"]
            rows.append([*cells, str(runs[f"tie_at_{price}_greedy"].sum())])
    header = ["leader", "price", "greedy: followers with 97 %", "mean", "least", "sampled: followers with 97 %"]
    return markdown([*header, "mean", "least", "ties"], rows)


def atari_variants() -> str:
    """The Atari runs with other settings, below the defaults."""
    table, rows = load("atari_variants_runs"), []
    table = pd.concat([pick(table, setting="default"), table[table["setting"] != "default"]])
    for (name, leader), runs in table.groupby(["setting", "leader"], sort=False):
        price = "0.75" if leader == "seller" else "0.25"
        cells = [name, leader, str(len(runs))]
        for how in ("greedy", "sampled"):
            cells.append(" ".join(f"{best:.0%}" for best in runs[f"best_response_at_{price}_{how}"]))
        cells.append(" ".join(number(value) for value in runs["leader_return_greedy"]))
        for how in ("greedy", "sampled"):
            for player in ("seller", "buyer"):
                change = runs[f"{player}_hits_per_shot_{how}"] - runs[f"{player}_hits_per_shot_before_{how}"]
                cells.append(f"{change.mean():+.3f}")
        rows.append(cells)
    header = [
        "setting",
        "leader",
        "seeds",
        "best responses at 0.75 (0.25), greedy",
        "sampled",
        "leader's return, greedy",
    ]
    header += [f"{who}'s aim, {how}" for how in ("greedy", "sampled") for who in ("seller", "buyer")]
    return markdown(header, rows)


# ------------------------------------------------------------------------------------------------- ablations/README.md
def ended(rows: pd.DataFrame) -> list[str]:
    """Returns the mean return of greedy and exploring leaders, and in how many seeds both are at least -0.1."""
    returns = rows[["leader_return_greedy", "leader_return"]]
    greedy, exploring = returns.mean()
    return [f"{number(greedy)} ({number(exploring)})", f"{(returns >= -0.1).all(axis=1).sum()}/{len(rows)}"]


def fig3() -> str:
    """Observed and hidden queries."""
    names = {"pg": "PG", "dqn": "DQN", "es": "ES"}
    table, rows = load("fig3_runs"), []
    for (follower, leader, rate), some in table.groupby(["follower", "leader", "learning_rate"], sort=False):
        cells = [x for arm in ("observed", "hidden") for x in ended(pick(some, arm=arm))]
        rows.append([follower, names[leader], f"{rate:.5f}".rstrip("0"), *cells])
    flags = {
        "hidden dqn 0.001": ["DQN", "0.001"],
        "hidden dqn 0.1": ["DQN", "0.1"],
        "hidden dqn one step": ["DQN, one-step targets (`--n-step 1`)", "0.01"],
        "hidden es small noise": ["ES, perturbations of 0.02 (`--es-stddev 0.02`)", "0.015"],
    }
    for setting, labels in flags.items():
        some = pick(load("variants"), setting=setting)
        rows.append(["exact", *labels, *(x for arm in ("observed", "hidden") for x in ended(pick(some, arm=arm)))])
    return markdown(["follower", "leader", "learning rate", "observed", "seeds", "hidden", "seeds"], rows)


def fig4() -> str:
    """Leaders that can tell queries from play, and leaders that cannot."""
    rows = []
    for (follower, arm, rate), some in load("fig4_runs").groupby(["follower", "arm", "learning_rate"], sort=False):
        above = (some["leader_return_greedy"] > some["stackelberg_value"] + NEAR).sum()
        means = [number(some[x].mean()) for x in ("leader_return_greedy", "leader_return", "follower_regret")]
        rows.append([follower, arm, f"{rate:g}", f"{above}/{len(some)}", *means])
    header = ["follower", "leader", "learning rate", "above the Stackelberg value", "return, greedy", "exploring"]
    return markdown([*header, "follower's exact regret"], rows)


def fig5() -> str:
    """Reward withheld and given while the follower learns; other designs."""
    runs, variants = load("fig5_runs"), load("variants")
    designs = {"none": runs}
    designs["`--n-step 1`: DQN's one-step targets, as the authors'"] = pick(variants, setting="reward one step")
    designs["`--epsilon 0.2`: random actions within an episode, too"] = pick(variants, setting="reward epsilon")
    games = list(dict.fromkeys(runs["env_id"]))
    rows = []
    for name, of_design in designs.items():
        cells = []
        for game in games:
            parts = []
            for reward in ("withheld", "given"):
                some = pick(of_design, env_id=game, reward=reward)
                hits = ((some["leader_return_greedy"] - some["stackelberg_value"]).abs() <= NEAR).sum()
                parts.append(f"{hits} ({some['share_at_value'].mean():.0%})")
            cells.append(", ".join(parts))
        rows.append([name, *cells])
    titles = [re.sub(r".*_a(.*)_p(.*)", r"a = \1, p = \2", game) for game in games]
    return markdown(["flags", *titles], rows)


def fig6() -> str:
    """A follower that is reset, and one that is kept."""
    runs, variants = load("fig6_runs"), load("variants")
    settings = {(rate, eps): some for (rate, eps), some in runs.groupby(["learning_rate", "adam_eps"])}
    settings |= {(rate, 0.02): pick(variants, setting=f"continuous {rate:g}") for rate in (0.015, 0.03)}
    rows = []
    for (rate, eps), some in sorted(settings.items(), key=lambda item: (-item[0][1], item[0][0])):
        cells = []
        for arm, value in (("reset", 2), ("kept", 1)):
            greedy, exploring = (pick(some, arm=arm)[f"leader_return{x}"] for x in ("_greedy", ""))
            hits = ((greedy - value).abs() <= NEAR).sum()
            cells.append(f"{number(greedy.mean())} ({number(exploring.mean())}); {hits}/{len(greedy)} at {value}")
        rows.append([f"{rate:g}", f"{eps:g}", *cells])
    return markdown(["learning rate", "Adam's epsilon", "Q-table reset", "Q-table kept"], rows)


def ppo_qlearning() -> str:
    """PPO + Q-learning, beside Meta-RL PPO."""
    fig1_runs, zero = load("fig1_runs"), pick(load("variants"), setting="ppo_qlearning zero start")
    runs, meta = (pick(fig1_runs, script=x) for x in ("ppo_qlearning_matrix", "stackelberg_ppo_matrix"))
    rows = []
    for game in [*run.GAMES, "all"]:
        some, others, from_zero = (x if game == "all" else pick(x, env_id=game) for x in (runs, meta, zero))
        exact = ((some["leader_return_exact"] - some["stackelberg_value"]).abs() <= NEAR).sum()
        rows.append([game, *arrivals(some), f"{exact}/{len(some)}", *arrivals(others), arrivals(from_zero)[1]])
    header = ["game", "as it explores", "greedy", "greedy, at the end, from exact replies"]
    return markdown([*header, "Meta-RL PPO: as it explores", "greedy", "`--q-init 0`: greedy"], rows)


def es_md() -> str:
    """Evolution strategies, paid while followers learn or afterwards."""
    during = pick(load("fig1_runs"), script="es_md_matrix")
    after = pick(load("variants"), setting="es_md paid afterwards")
    rows = []
    for game in run.GAMES:
        cells = []
        for some in (pick(during, env_id=game), pick(after, env_id=game)):
            hits = ((some["leader_return_greedy"] - some["stackelberg_value"]).abs() <= NEAR).sum()
            million = some["steps_to_converge"].fillna(float("inf")).median() / 1e6
            cells += [f"{hits}/{len(some)}", f"{million:.1f}M", number(some["leader_return"].median())]
        rows.append([game, *cells])
    paid = ["greedy, at the optimum", "steps", "leader as it is"]
    header = ["game", *(f"paid during: {x}" for x in paid), *(f"paid afterwards: {x}" for x in paid)]
    return markdown(header, rows)


def theorem2() -> str:
    """How the leaders of each arm end."""
    rows = []
    summary = load("theorem2_summary")
    # Q-learning by where its tables start, REINFORCE by the size of its steps
    summary["start"] = summary["q_init"].map("Q = {:g}".format)
    step_sizes = summary["learning_rate"].map("steps of {:g}".format)
    summary["start"] = summary["start"].where(summary["q_init"].notna(), step_sizes)
    for (arm, start), some in summary.groupby(["arm", "start"], sort=False):
        queries, learner = arm.split("_", 1)
        counts = some[["runs", "o_D_cooperate", "diverged", "tit_for_tat", "return_0"]].sum()
        rows.append([queries, learner.replace("_", " "), start, *(f"{count:,.0f}" for count in counts)])
    header = ["queries", "learner", "from", "runs", "cooperates in o_D", "diverged", "tit-for-tat", "return 0"]
    return markdown(header, rows)


def mixed_of(*games: str, setting: str) -> pd.DataFrame:
    """Returns the runs of a setting in these families of games, with what the guaranteed return misses of the most that
    can be guaranteed, in units of the scale."""
    rows = pick(load("mixed_runs"), setting=setting)
    rows = rows[rows["games"].isin(games)]
    return rows.assign(miss=(rows["stackelberg_value_guaranteed"] - rows["leader_return_guaranteed"]) / rows["scale"])


def mixed() -> str:
    """Leaders that mix: how near their guaranteed return comes to the most that can be guaranteed."""
    runs = load("mixed_runs")
    names = {"dilemma": "prisoner's dilemma", "table3": "Table 3", "ordinal": "the other 132 ordinal games"}
    names["others"] = "the others of Table 3"
    names |= {"one-shot 3x3": "random one-shot 3 x 3"}
    rows = []
    for family, setting in dict.fromkeys(zip(runs["games"], runs["setting"], strict=True)):
        if "actions" in setting:
            continue
        some = mixed_of(family, setting=setting)
        near = [f"{(some['miss'] <= limit).sum()}/{len(some)}" for limit in (0.02 + 1e-6, 0.05 + 1e-6)]
        cells = [number(x, 4) for x in (some["miss"].median(), some["miss"].max(), some["miss"].min())]
        cells += [number((some["follower_regret"] / some["scale"]).max(), 3), f"{some['combined_steps'].max():,}"]
        rows.append([names.get(family, family), setting, *near, *cells])
    header = ["games", "follower", "within 0.02", "within 0.05", "median miss", "largest miss", "least"]
    return markdown([*header, "largest regret of the follower", "steps"], rows)


def mixed_queries() -> str:
    """What leaders get and what they are guaranteed, by what a query is answered with."""
    runs = load("mixed_runs")
    cells = {"prisoner's dilemma": "dilemma", "[[2, 4], [1, 3]] / [[1, 0], [0, 1]], one shot": "textbook 2x2"}
    rows = []
    for name, family in cells.items():
        some = pick(runs, games=family)
        if family == "dilemma":
            some = pd.concat([some, pick(runs, games="table3", env_id="prisoners_dilemma")])
        for setting in (*(f"{k} actions" for k in (1, 2, 4, 16, 64)), "planning"):
            if pick(some, setting=setting).empty:
                continue
            means = pick(some, setting=setting)[["leader_return_greedy", "leader_return_guaranteed"]].mean()
            label = "1 action" if setting == "1 actions" else setting.replace("planning", "probabilities")
            seeds = str(some[some["setting"] == setting]["seed"].nunique())
            rows.append([name, label, seeds, number(means.iloc[0], 3), number(means.iloc[1], 3)])
    return markdown(["game", "answer", "seeds", "against the follower, which sees answers", "guaranteed"], rows)


def mixed_classes() -> str:
    """The optima by class, of the games of Table 3."""
    rows = mixed_of("table3", setting="planning").drop_duplicates("env_id")
    columns = {
        "": "deterministic",
        "_mixture": "mixtures of these, drawn before play",
        "_stochastic": "memory-1, mixing",
    }
    columns |= {"_guaranteed": "memory-1, guaranteed", "_bound": "no memory-1 leader has more than"}
    cells = [[row["env_id"], *(number(row[f"stackelberg_value{x}"], 3) for x in columns)] for _, row in rows.iterrows()]
    return markdown(["game", *columns.values()], cells)


def mixed_gains() -> str:
    """How often mixing helps, and by how much: the 144 ordinal games and 200 random ones."""
    ordinal = mixed_of("table3", "ordinal", setting="planning").drop_duplicates("env_id")
    ordinal.columns = [name.removeprefix("stackelberg_value_") for name in ordinal.columns]
    ordinal = ordinal.rename(columns={"stackelberg_value": "deterministic"})
    rows = []
    for name, games in {"144 ordinal": ordinal, "random": load("mixed_optima")}.items():
        cells = [f"{len(games)} random" if name == "random" else name]
        for column, base in (
            ("stochastic", "deterministic"),
            ("guaranteed", "pessimistic"),
            ("mixture", "deterministic"),
        ):
            gain = (games[column] - games[base]) / games["scale"]
            some = gain[gain > 0.01]
            cells.append(f"{len(some)}: {number(some.mean())}, {number(some.max())}")
        proved = (games["bound"] - games["stochastic"] <= 0.02 * games["scale"]).sum()
        unattained = (games["stochastic"] - games["guaranteed"] > 0.02 * games["scale"]).sum()
        rows.append([*cells, f"{proved}", f"{unattained}"])
    header = ["games", "memory-1, ties for the leader", "memory-1, guaranteed", "mixtures drawn before play"]
    return markdown([*header, "proved: bound within 0.02", "guaranteed over 0.02 less"], rows)


def no_regret() -> str:
    """A follower that learns by multiplicative weights for T rounds, beside Q-learning and Meta-RL."""
    table, fig1_runs = load("no_regret"), load("fig1_runs")
    table["gap"] = table["leader_return_best"] - table["stackelberg_value"]
    rows = []
    for rounds in sorted(set(table["rounds"])):
        arms = [pick(table, rounds=rounds, explore=e, reply=r) for e, r in (("episode", "last"), ("round", "last"))]
        ours = arms[0]
        gaps = " to ".join(f"{gap:+.2f}" for gap in (ours["gap"].min(), ours["gap"].max()))
        cells = [
            f"{rounds:,} round{'s' * (rounds > 1)}",
            *arrivals(ours),
            *arrivals(arms[1]),
            gaps,
            f"{ours['follower_regret'].mean():.4f}",
        ]
        rows.append([*cells, f"{ours['regret_share_of_bound'].max():.2f}"])
    for name, script in (("Q-learning", "ppo_qlearning_matrix"), ("Meta-RL", "stackelberg_ppo_matrix")):
        rows.append([name, *arrivals(pick(fig1_runs, script=script)), "", "", "", "", ""])
    header = [
        "follower",
        "as it explores: runs, median steps",
        "greedy",
        "drawn in each round: as it explores",
        "greedy",
    ]
    return markdown([*header, "best table less the optimum", "follower's regret", "most regret / bound"], rows)


def two_followers() -> str:
    """One leader and two followers: what equilibria leave it, and where it ends."""
    table, rows = load("two_followers"), []
    columns = {"stackelberg_value": "followers' best equilibria", "stackelberg_value_pessimistic": "their worst"}
    columns |= {"leader_return_best": "best table, given the oracle", "leader_return_greedy": "leader, greedy"}
    for game, some in table.groupby("env_id", sort=False):
        means = some.mean(numeric_only=True)
        cells = [game, *(number(means[name]) for name in columns), f"{some['is_stackelberg'].sum()}/{len(some)}"]
        answered, most = means["tables_in_equilibrium"], 128 - means["tables_without_equilibrium"]
        shares = (means[f"tables_in_the_{x}"] / means["tables_in_one_of_several"] for x in ("best", "worst"))
        rows.append([*cells, f"{answered:.0f} of {most:.0f}", *(f"{share:.0%}" for share in shares)])
    header = ["game", *columns.values(), "runs in a Stackelberg equilibrium", "tables answered by an equilibrium"]
    return markdown([*header, "of several: the best", "the worst"], rows)


def diff_md() -> str:
    """Diff-MD on all ordinal games: over k, and for both objectives."""
    table, rows = load("diff_md"), []
    names = {"last": "return after the steps", "sum": "summed over the steps"}
    mixing = table["env_id"].map(load("ordinal_games").set_index("env_id")["stackelberg_value_guaranteed"])
    table["below_mixing"] = table["leader_return_guaranteed"] < mixing - NEAR
    for (objective, k), some in table.groupby(["objective", "unroll"], sort=False):
        cells = [names[objective], str(k), f"{some['step_size'].iloc[0]:g}"]
        for measure in ("leader_return", "leader_return_guaranteed"):
            below = some[measure] < some["stackelberg_value_pessimistic"] - NEAR
            above = some[measure] > some["stackelberg_value"] + NEAR
            cells += [f"{below.mean():.0%}, {above.mean():.0%}"]
        cells.append(f"{some['below_mixing'].mean():.0%}")
        always = some.assign(below=below).groupby("env_id")["below"].all().sum()
        dilemma = pick(some, env_id="prisoners_dilemma")
        cells += [f"{always} of {some['env_id'].nunique()}", number(dilemma["leader_return"].mean())]
        worth = dilemma["leader_return_guaranteed"]
        rows.append([*cells, f"{number(worth.mean())} ({number(worth.min())} to {number(worth.max())})"])
    header = ["leader climbs", "k", "step size", "after the steps: below, above", "guaranteed: below, above"]
    header += [
        "guaranteed: below what mixing can guarantee",
        "games below in all seeds",
        "prisoner's dilemma: after the steps",
        "guaranteed (range)",
    ]
    return markdown(header, rows)


def recurrent() -> str:
    """A follower that asks nothing: where leaders end, and how fast the follower finds out."""
    table, rows = load("recurrent_runs"), []
    regrets = [name for name in table if re.fullmatch(r"follower_regret_\d+", name)]
    for game in run.GAMES:
        some, clock = (pick(table, env_id=game, leader=leader) for leader in ("invariant", "clock"))
        hits = (some["leader_return_greedy"] - some["stackelberg_value"]).abs() <= NEAR
        cells = [game, *(number(some[f"stackelberg_value{x}"].iloc[0]) for x in ("", "_counting"))]
        cells += [" ".join(map(number, some["leader_return_greedy"])), f"{hits.sum()}/{len(some)}"]
        cells += [", ".join(number(some[name].mean(), 3) for name in regrets)]
        cells += [f"{some[f'tables_answered_{len(regrets)}'].mean():.1f}"]
        rows.append([*cells, " ".join(map(number, clock["leader_return_greedy"]))])
    header = ["game", "optimum", "if followers count steps", "leaders, greedy, by seed", "at the optimum"]
    header += ["follower's regret in each episode", "leaders answered rightly at the end, of 32"]
    return markdown([*header, "leaders with a clock"], rows)


def hindsight() -> str:
    """Any game: the runs of `hindsight.py`, by games and learner."""
    rows = []
    for (games, learner), some in load("hindsight_runs").groupby(["games", "learner"], sort=False):
        found = some["steps_to_converge"].notna()
        most = f"{some['steps_to_converge'].max():,.0f}" if found.any() else ""
        tried = steps(some["steps_to_try_all"]) if some["triples_tried"].notna().all() else ""  # PPO does not say
        cells = [f"{found.sum()} of {len(some)}", steps(some["steps_to_converge"]), most, tried]
        rows.append([games, learner, *cells, two_digits(some["cpu_seconds"].median())])
    header = ["games", "learner", "runs at the optimum", "median steps", "most steps", "until everything was tried"]
    return markdown([*header, "CPU seconds, median"], rows)


TABLES: dict[str, Callable[[], str]] = {
    f.__name__: f
    for f in (
        *(methods, misses, throughput, budget, held_out, fig1, authors, dqn_targets),
        *(commitments, clock, pomdp_values, verification),
        *(fig2, fig2_responses, atari_variants),
        *(fig3, fig4, fig5, fig6, ppo_qlearning, es_md, theorem2),
        *(mixed, mixed_queries, mixed_classes, mixed_gains),
        *(
            no_regret,
            two_followers,
            diff_md,
            recurrent,
            hindsight,
            league_table,
            league_short,
            league_settings,
            league_why_not,
            league_why,
            league_hardest,
        ),
    )
}


def filled(text: str) -> str:
    """Returns a README's text with its tables made anew."""
    pattern = re.compile(r"(<!-- (\w+) -->\n).*?(<!-- end -->)", re.DOTALL)
    return pattern.sub(lambda match: f"{match[1]}{TABLES[match[2]]()}\n{match[3]}", text)


def main() -> None:
    """Writes all tables."""
    for name in READMES:
        path = ROOT / name
        path.write_text(filled(path.read_text()))


if __name__ == "__main__":
    main()
