"""benchmark/batch.py and plot_batch.py: what was chosen is what the CSVs say, and what READMEs make of them."""

import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

ROOT = Path(__file__).parent.parent
sys.path.append(str(ROOT / "benchmark"))  # at the end: `run` is a common name

import batch  # noqa: E402
import plot_batch  # noqa: E402


def load(name):
    return pd.read_csv(ROOT / f"benchmark/results/{name}.csv")


def test_the_followers_step_sizes_are_the_best_of_the_random_games():
    rates = load("diff_md_rates")
    best = rates.loc[rates.groupby("unroll")["guaranteed_above"].idxmax()]
    assert dict(zip(best["unroll"], best["step_size"], strict=True)) == batch.STEP_SIZES
    assert set(rates["step_size"]) == {1, 3, 10, 30, 100} and len(rates) == 25
    assert batch.diff_md_matrix.Args().follower_step_size == (batch.STEP_SIZES[30],)


def test_the_choice_of_step_sizes_is_made_on_the_games_that_it_says(monkeypatch):
    """Games 0 to 99 of those for tuning; what is published is another set."""
    seen = []
    monkeypatch.setattr(batch.diff_md_matrix, "main", lambda args: seen.append(args) or pd.DataFrame())
    with pytest.raises(KeyError):
        batch.diff_md_rates(batch.Args(figures=("diff_md_rates",)))
    assert seen[0].games == tuple(f"random_{i}" for i in range(100)) and seen[0].objective == "last"
    with pytest.raises(KeyError):
        batch.diff_md(batch.Args(figures=("diff_md",)))
    assert seen[1].games == ("ordinal",) and seen[1].num_seeds == 10 and seen[1].iterations == 200


def test_no_regret_keeps_its_bound_in_every_run():
    runs = load("no_regret")
    assert len(runs) == 3 * 12 * 7 * 5 and (runs["regret_share_of_bound"] < 1).all()
    default = runs[(runs["explore"] == "episode") & (runs["reply"] == "last")]
    gap = default["leader_return_best"] - default["stackelberg_value"]
    assert (abs(gap[default["rounds"] >= 300]) < 0.02).all() and (gap[default["rounds"] == 1]).max() > 0.2


def test_leaders_of_two_followers_end_in_stackelberg_equilibria_given_the_oracle():
    """At least 27 of 30 where there always is an equilibrium; the fourth game is about where there is none."""
    runs = load("two_followers")
    assert runs.groupby("env_id").size().eq(10).all() and runs["env_id"].nunique() == 4
    three = runs[runs["env_id"] != "volunteer"]
    assert (three["tables_without_equilibrium"] == 0).all() and three["is_stackelberg"].sum() >= 27
    assert (three["leader_return_greedy"] <= three["stackelberg_value"] + 1e-6).all()
    volunteer = runs[runs["env_id"] == "volunteer"]
    above = volunteer["leader_return_greedy"] > volunteer["stackelberg_value"] + 0.05
    assert (~volunteer["is_stackelberg"]).sum() == 8 and above.sum() == 7
    assert (volunteer["follower_regret"][above] > 0.05).all()


def test_leaders_that_mix_are_guaranteed_nearly_all_that_can_be():
    """With each follower, 9 of 10 seeds of a game, and 9 of 10 random games; the limits are shares of the scale."""
    runs = load("mixed_runs")
    runs["miss"] = (runs["stackelberg_value_guaranteed"] - runs["leader_return_guaranteed"]) / runs["scale"]
    for follower, limit, share in (("planning", 0.02, 1.0), ("network", 0.05, 0.9)):
        some = runs[(runs["setting"] == follower) & (runs["games"] != "one-shot 3x3")]
        near = (some["miss"] <= limit).groupby([some["games"], some["env_id"]]).mean()
        assert len(near) == (12 + 2 + 132 if follower == "planning" else 1 + 2 + 11) and (near >= share).all()
        random = runs[(runs["setting"] == follower) & (runs["games"] == "one-shot 3x3")]
        assert len(random) == 50 and (random["miss"] <= 3 * limit).mean() >= share  # of the range: three scales


def test_a_follower_that_asks_nothing_finds_out_and_leaders_end_at_the_optimum():
    runs = load("recurrent_runs")
    some, clock = (runs[runs["leader"] == kind] for kind in ("invariant", "clock"))
    near = (some["leader_return_greedy"] - some["stackelberg_value"]).abs() <= 0.05 + 1e-6
    assert len(some) == 36 and near.groupby(some["env_id"]).all().sum() == 12
    assert (some["follower_steps"] <= 3_600_000).all()
    regrets = some.groupby("env_id")[["follower_regret_1", "follower_regret_4"]].mean()
    assert (regrets["follower_regret_4"] < regrets["follower_regret_1"]).all()
    assert (regrets["follower_regret_4"] <= 0.05).all()
    gain = clock["leader_return_greedy"] - clock["stackelberg_value"]
    pays = gain.groupby(clock["env_id"]).min() > 0.05
    assert set(pays.index[pays]) == {"prisoners_dilemma", "deadlock", "prisoners_delight"}


@pytest.mark.parametrize("figure", ["no_regret", "two_followers", "diff_md"])
def test_a_figure_is_drawn_from_the_committed_results(figure, tmp_path):
    plot_batch.main(plot_batch.Args(figures=(figure,), figures_dir=str(tmp_path)))
    (path,) = tmp_path.iterdir()
    with Image.open(path) as image:
        pixels = np.asarray(image.convert("RGB")).astype(int)
    assert path.name == f"{figure}.png" and pixels.shape[1] >= 1200
    edge = np.concatenate((pixels[:, :4].reshape(-1, 3), pixels[:, -4:].reshape(-1, 3), pixels[:4].reshape(-1, 3)))
    assert (edge >= 250).all()  # no letter is cut off
    for color in (plot_batch.BLUE, plot_batch.ORANGE):
        rgb = [int(color[i : i + 2], 16) for i in (1, 3, 5)]
        assert (abs(pixels - rgb).max(-1) < 12).sum() > 100
