"""The league: which runs it is made of, how their ends are judged, and that its file is what the runs have found."""

import importlib
import json
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

ROOT = Path(__file__).parent.parent
sys.path.append(str(ROOT / "benchmark"))  # at the end: `run` is a common name

import league  # noqa: E402
import league_tuning as tuning  # noqa: E402
import plot  # noqa: E402
import tables  # noqa: E402

METHODS = {method.name: method for method in league.METHODS}


def test_runs_of_a_method():
    assert len(league.GAMES) == 144 and len(set(league.SOME_GAMES)) == 24
    for side in (0, 1):
        assert set(Counter(name.split("-")[side] for name in league.SOME_GAMES).values()) == {2}
    runs = league.runs_of(METHODS["PG"])
    assert len(runs) == 144 * METHODS["PG"].seeds and {script for script, _ in runs} == {"stackelberg_pg_matrix"}
    assert [flags["seed"] for _, flags in league.runs_of(METHODS["PG"], 3, ("hero",))] == [1, 2, 3]
    assert {flags["env_id"] for _, flags in league.runs_of(METHODS["recurrent follower"])} == {*league.SOME_GAMES}
    batch = {"games": ("ordinal",), "explore": ("action",)}
    assert league.runs_of(league.Method("A", "script", batch, 5, "seeds"), 2) == [("script", batch | {"seeds": 2})]
    ((_, flags),) = league.runs_of(METHODS["no-regret follower"], 1, ("hero",))
    assert flags["env_id"] == "hero" and flags["num_seeds"] == 1


def test_the_best_guarantee_of_all_leaders_is_the_pessimistic_optimum():
    for game, optimum in league.OPTIMA["stackelberg_value_pessimistic"].items():
        best = max(league.guaranteed(game, policy) for policy in league.TABLES)
        assert best == pytest.approx(optimum, abs=1e-6)


def row(game, policy, greedy, regret, guaranteed):
    names = ["env_id", "leader_policy", "leader_return_greedy", "follower_regret", "leader_return_guaranteed"]
    return pd.DataFrame([[game, policy, greedy, regret, guaranteed]], columns=names)


# game, what the leader gets, the follower's regret, what the leader is guaranteed: guarantees the optimum, equilibrium
CASES = {
    "at the optimum": ("prisoners_dilemma", -0.9, 0.0, -0.9, 1, 1),
    "within the tolerance": ("prisoners_dilemma", -0.95, 0.05, -0.95, 1, 1),
    "below": ("prisoners_dilemma", -0.96, 0.0, -0.96, 0, 0),
    "above, by a wrong reply": ("prisoners_dilemma", -0.84, 0.0, -0.9, 1, 0),
    "a follower that errs": ("prisoners_dilemma", -0.9, 0.06, -0.9, 1, 0),
    "a tie that goes well": ("prisoners_dilemma", -0.9, 0.0, -1.5, 0, 1),
}


@pytest.mark.parametrize("name", CASES)
def test_judgement(name):
    game, greedy, regret, guaranteed, guarantees, in_equilibrium = CASES[name]
    judged = league.judge(row(game, "10101", greedy, regret, guaranteed), METHODS["PPO"]).iloc[0]
    assert judged["optimum"] == pytest.approx(-0.9)
    assert (judged["guarantees_optimum"], judged["in_equilibrium"]) == (guarantees, in_equilibrium)


def test_leaders_that_mix_are_judged_by_the_optimum_of_their_class():
    for guaranteed, expected in ((-0.5, 1), (-0.9, 0)):
        rows = row("prisoners_dilemma", "0.5 0.5 0.5 0.5 0.5", guaranteed, 0.0, guaranteed)
        judged = league.judge(rows, METHODS["Diff-MD"]).iloc[0]
        assert judged["guarantees_optimum"] == judged["in_equilibrium"] == expected


def test_what_a_result_says(tmp_path):
    """A pair of tables of a learner whose own numbers are of another follower is evaluated anew."""
    result = {"env_id": "prisoners_dilemma", "seed": 3, "leader_policy": [1, 0, 1, 0, 1], "follower_policy": [0] * 5}
    result |= {"leader_return": -1.0, "leader_return_greedy": 7.0, "follower_regret": 7.0, "steps_to_converge": 60}
    (tmp_path / "result.json").write_text(json.dumps(result))
    rows = league.rows_of(METHODS["hindsight, planning"], tmp_path / "result.json", 2.5)
    (found,) = rows.to_dict("records")
    assert found["leader_return_greedy"] == found["leader_return_guaranteed"] == pytest.approx(-0.9)
    assert found["follower_regret"] == pytest.approx(0) and found["leader_policy"] == "10101"
    assert found["seed"] == 3 and found["cpu_seconds"] == 2.5 and found["in_equilibrium"] == 1
    assert found["steps_to_converge"] == 60 and np.isnan(found["steps_to_converge_exploring"])


def test_intervals_are_over_games_and_then_runs():
    def rows_of(games):
        return pd.DataFrame([{"env_id": i, "x": x} for i, runs in enumerate(games) for x in runs])

    assert league.interval(rows_of([[1, 1]] * 5), "x") == (1, 1)
    # that runs of a game are alike makes 100 of them no surer than 20 games are
    low, high = league.interval(rows_of([[1] * 5] * 10 + [[0] * 5] * 10), "x")
    error = np.sqrt(0.25 / 20)
    assert low == pytest.approx(0.5 - 1.96 * error, abs=0.03) and high == pytest.approx(0.5 + 1.96 * error, abs=0.03)
    # if they are not, each counts
    low, high = league.interval(rows_of([[1, 0, 1, 0]] * 20), "x")
    assert high - low < 0.3


def test_the_rows_of_methods_that_were_not_run_stay(tmp_path, capsys):
    path, columns = tmp_path / "league.csv", {"seed": 1, "env_id": "hero", "leader_policy": "00000", "cpu_seconds": 1.0}
    columns |= dict.fromkeys(("guarantees_optimum", "in_equilibrium"), 1)
    columns |= dict.fromkeys(("steps_to_converge", "steps_to_converge_exploring"), 60)
    for method in ("DQN", "PPO", "DQN"):
        league.write(pd.DataFrame([{**columns, "method": method}]), str(path))
    assert pd.read_csv(path)["method"].tolist() == ["PPO", "DQN"]
    assert "PPO" in capsys.readouterr().out


def test_the_figures(tmp_path):
    """Drawn from a made-up file: opaque, each method named in the profile and on the boards."""
    assert list(plot.LEAGUE) == list(METHODS)
    rng, rows = np.random.default_rng(0), []
    for method in league.METHODS:
        for game in league.SOME_GAMES if method.some_games else league.GAMES:
            found = int(rng.random() < 0.5)
            row = {"method": method.name, "env_id": game, "guarantees_optimum": found, "in_equilibrium": found}
            rows.append(row | {"steps_to_converge": 10 ** rng.uniform(2, 7) if found else None})
    pd.DataFrame(rows).to_csv(tmp_path / "league.csv")
    args = plot.Args(figures=("league",), results_dir=str(tmp_path), figures_dir=str(tmp_path / "figures"))
    assert plot.main(args) == 0
    for name in ("league", "league_boards", "league_games"):
        assert 10_000 < (tmp_path / f"figures/{name}.png").stat().st_size < 250_000
    for name in ("league", "league_boards"):
        figure = plot.FIGURES[name](tmp_path)
        text = " ".join(text.get_text() for text in figure.findobj(plot.matplotlib.text.Text))
        assert all(method in text for method in METHODS)
        plot.plt.close(figure)
    missed = plot.missed_by(plot.load_league(tmp_path))
    counts = missed.sum(axis=1).tolist()
    assert counts == sorted(counts, reverse=True) and "recurrent follower" not in missed and "PPO" in missed
    hardest = pd.DataFrame(rows).set_index(["method", "env_id"])["in_equilibrium"]
    assert all(hardest[method, missed.index[0]] == (not missed.iloc[0][method]) for method in missed)


def test_the_committed_rows_say_what_their_policies_are_worth():
    rows = pd.read_csv(ROOT / "benchmark/results/league.csv", dtype={"leader_policy": str})
    for name, some in rows.groupby("method"):
        method = METHODS[name]
        assert set(some["env_id"]) == {*(league.SOME_GAMES if method.some_games else league.GAMES)}
        assert (some.groupby("env_id")["seed"].nunique() == method.seeds).all()
        assert some["leader_policy"].notna().all()
        if method.commitment == "deterministic":
            exact = list(map(league.guaranteed, some["env_id"], some["leader_policy"]))
            np.testing.assert_allclose(some["leader_return_guaranteed"], exact, atol=1e-5)
        again = league.judge(some, method)
        for column in ("optimum", "guarantees_optimum", "in_equilibrium"):
            np.testing.assert_allclose(again[column], some[column], atol=1e-5)


def test_what_makes_a_game_hard():
    dilemma, harmony = league.landscape("prisoners_dilemma"), league.landscape("harmony")
    assert dilemma["optimum"] == pytest.approx(-0.9) and dilemma["leader_policy"] == "10101"
    assert dilemma["beyond_one_action"] == pytest.approx(-0.9 + 2)  # who always defects gets -2, who never does -3
    # the follower cooperates always, for (-3 - 9) / 10 a step; to defect at the start alone brings (-2 - 3 - 8) / 10
    assert dilemma["second_reply_costs"] == pytest.approx(0.1)
    assert harmony["optimum"] == harmony["beyond_one_action"] == 0 and harmony["tables"] > 1
    for game in ("hero-coordination", "battle"):
        worth = [league.guaranteed(game, policy) for policy in league.TABLES]
        assert league.landscape(game)["tables"] == sum(max(worth) - value <= 0.05 + 1e-6 for value in worth)


# why a leader misses: what it gets in the prisoner's dilemma, its follower's regret, and what it is guaranteed
WHY = {
    "": (-0.9, 0.0, -0.95),
    "the follower errs": (-0.9, 0.06, -2.0),
    "rests on a tie": (-0.9, 0.0, -2.0),
    "gets what one action for all gets": (-2.0, 0.0, -2.0),
    "other": (-1.5, 0.0, -1.5),
}


def test_why_a_leader_is_not_guaranteed_the_optimum():
    rows = pd.concat(row("prisoners_dilemma", "", *case) for case in WHY.values())
    found = league.why_not(league.judge(rows, METHODS["PPO"]))
    assert dict(zip(WHY, found["why_not"], strict=True)) == {why: why for why in WHY}
    tied = row(league.TIED[0], "00000", 0, 0, 0)
    assert league.why_not(league.judge(tied, METHODS["PPO"])).empty


def test_what_the_text_says_of_misses():
    found = league.why_not(pd.read_csv(ROOT / "benchmark/results/league.csv", dtype={"leader_policy": str}))
    assert ((found["why_not"] == "") == (found["guarantees_optimum"] == 1)).all()
    found["hard"] = found["optimum"] - found["one_action"] > league.TOLERANCE
    assert found[found["hard"] & (found["method"] == "PPO")]["env_id"].nunique() == 28
    missed = dict(list(found[found["why_not"] != ""].groupby("method")))
    for name in ("PPO", "PG", "no-regret follower", "recurrent follower"):
        assert missed[name]["hard"].all()
    assert missed["ES-MD"][~missed["ES-MD"]["hard"]]["env_id"].nunique() == 1
    for name, least in (("PPO", 1), ("DQN", 1), ("PG", 0.5 + 1e-6)):
        assert (missed[name]["why_not"] == "rests on a tie").mean() >= least
    for name in ("ES-MD", "no-regret follower"):
        assert (missed[name]["why_not"] == "gets what one action for all gets").mean() > 0.5
    for name in (name for name in METHODS if name.endswith("paper's settings")):
        assert (missed[name][~missed[name]["hard"]]["why_not"] == "other").mean() > 0.5


def test_what_the_text_says_of_hard_games():
    games = tables.landscapes()
    assert len(games) == 144 and games["missed"].is_monotonic_decreasing
    threats = games[games["beyond_one_action"] > league.TOLERANCE]
    assert len(threats) == 36 and threats["tables"].max() == 2
    brings = pd.cut(threats["beyond_one_action"], [0, 0.25, 0.75, 10])
    means = threats.groupby(brings, observed=True)["missed"].mean()
    assert means.is_monotonic_decreasing and means.min() > games.drop(threats.index)["missed"].mean()
    hardest = games[games["missed"] >= games["missed"].iloc[4]]
    assert set(hardest.index) <= set(threats.index) and hardest["second_reply_costs"].max() <= 0.2 + 1e-9
    assert (hardest["beyond_one_action"].round(6) != 0.1).sum() == 1


def test_what_the_text_says_of_who_misses_hard_games():
    text = " ".join((ROOT / "benchmark/README.md").read_text().split())
    missed = league.why_not(tables.load("league")).query("why_not != ''")
    missed = missed[[METHODS[name].commitment == "deterministic" for name in missed["method"]]]
    brings = missed["env_id"].map(tables.landscapes().set_index("env_id")["beyond_one_action"])
    forms = "{} end at what one action for all gets and {} with a follower that errs,", "brings 1 or more, {} and {}."
    for form, some in zip(forms, (missed[brings.between(0.06, 0.25)], missed[brings > 0.75]), strict=True):
        assert form.format(*(f"{(some['why_not'] == league.REASONS[k]).mean():.0%}" for k in (2, 0))) in text


def test_the_discounted_optimum_is_the_same_where_no_tie_decides():
    """So the steps that hindsight counts to its own optimum can stand beside those of the others."""
    hindsight = importlib.import_module("hindsight_follower")
    for game, row in league.OPTIMA.iterrows():
        own = hindsight.Args(env_id=game).optimum
        assert own.strict == pytest.approx(row["stackelberg_value_pessimistic"], abs=1e-6)
        if game not in league.TIED:
            assert own.value == pytest.approx(row["stackelberg_value"], abs=1e-6)


# ------------------------------------------------------------------------------------------------------------ settings
def test_each_method_plays_with_the_best_of_the_settings_that_were_tried_on_random_games():
    found = pd.read_csv(ROOT / "benchmark/results/league_tuning.csv").fillna({"setting": ""})
    assert found["method"].unique().tolist() == list(tuning.SETTINGS)
    for name, some in found.groupby("method"):
        assert some["setting"].tolist() == list(map(tuning.flags_of, tuning.SETTINGS[name]))
        assert len(some) <= 20 and (some["games"] == len(tuning.GAMES)).all()
    for best in tuning.best(found).itertuples():
        played = {flag: value for flag, value in METHODS[best.method].flags.items() if flag not in ("games", "env_id")}
        assert tuning.flags_of(played) == best.setting, best.method


def test_the_best_setting_is_the_first_of_those_that_guarantee_most():
    def rows(*numbers):
        return pd.DataFrame([["A", i, *pair] for i, pair in enumerate(numbers)], columns=columns)

    columns = ["method", "setting", "guarantees_optimum", "mean_loss"]
    assert tuning.best(rows((0.5, 0.1), (0.7, 0.3), (0.7, 0.2), (0.7, 0.2)))["setting"].tolist() == [2]
    assert tuning.best(rows((np.nan, 0.1), (np.nan, -0.2)))["setting"].tolist() == [1]  # leaders that mix
    both = pd.concat([rows((0.5, 0.1)).assign(method="B"), rows((0.5, 0.1))])
    assert tuning.best(both)["method"].tolist() == ["B", "A"]


def test_settings_are_chosen_on_random_games_of_which_half_are_hard():
    assert not {*tuning.GAMES} & {*league.GAMES}
    hard = [league.landscape(name)["beyond_one_action"] > league.TOLERANCE for name in tuning.GAMES]
    assert hard == [True] * 12 + [False] * 12
    for name, payoffs in tuning.GAMES.items():
        np.testing.assert_allclose(payoffs.max(axis=(1, 2)), 0)
        np.testing.assert_allclose(np.ptp(payoffs, axis=(1, 2)), 3)
        assert int(name.removeprefix("random_")) < 1000


@pytest.mark.parametrize("name", tuning.SETTINGS)
def test_runs_of_a_setting(name):
    """All of them with flags that the script takes; in the batches with as many seeds for each."""
    for setting in tuning.SETTINGS[name]:
        runs = tuning.runs_of(name, setting)
        script = importlib.import_module(runs[0].script)
        assert len(runs) in (1, 24) and len({run.name for run in runs}) == len(runs)
        for run in runs:
            args = script.Args(**run.flags)
            assert all(getattr(args, flag) == value for flag, value in setting.items())


def test_what_a_leader_loses(tmp_path):
    game, own = next(iter(tuning.GAMES.items())), []
    for policy in league.TABLES:
        result = {"env_id": game[0], "leader_policy": [int(digit) for digit in policy]}
        (tmp_path / "result.json").write_text(json.dumps(result))
        own += tuning.losses(tmp_path / "result.json")
    assert min(own) == pytest.approx(0) and max(own) > 1


def test_what_the_texts_say_of_games_and_hours():
    hours = pd.read_csv(ROOT / "benchmark/results/league.csv")["cpu_seconds"].sum() / 3600
    assert f"All runs together took {hours:.1f} hours" in " ".join((ROOT / "benchmark/README.md").read_text().split())
    assert len(league.GAMES) - len(league.TIED) == 134
    assert len({*league.SOME_GAMES} - {*league.TIED}) == 23
    assert {*league.SOME_GAMES}.isdisjoint(league.ROWS)
