"""The tables of ablations/README.md say what the committed results say."""

import csv
import re
from pathlib import Path

import numpy as np
from test_matrix_game import GAMES

ROOT = Path(__file__).parent.parent
README = (ROOT / "ablations/README.md").read_text()


def results(name):
    return list(csv.DictReader((ROOT / f"benchmark/results/{name}.csv").open()))


def cells(first, section):
    """The cells of the one row of this section that starts with `first`."""
    text = README[README.index(section) :].split("\n## ")[0]
    (row,) = re.findall(rf"^\| {re.escape(first)} \|(.*)\|$", text, re.MULTILINE)
    return [cell.strip() for cell in row.split("|")]


def median_steps(rows, column):
    steps = [float(row[column] or "inf") for row in rows]
    median, arrived = np.median(steps), np.isfinite(steps).sum()
    return f"{'never' if median == np.inf else f'{median:,.0f}'} ({arrived}/{len(rows)})"


def test_ppo_qlearnings_table():
    runs, zero_start = results("ppo_qlearning"), results("ppo_qlearning_zero_start")
    columns = [(runs, "steps_to_0.1"), (runs, "steps_to_converge"), (runs, "steps_to_0.1_exact")]
    for game in [*GAMES, "all"]:
        shown = cells(game, "## A Q-learning follower")
        for cell, (rows, column) in zip(shown[1:4], columns, strict=True):
            assert cell == median_steps([row for row in rows if game in (row["env_id"], "all")], column), game
        of_game = [row for row in zero_start if game in (row["env_id"], "all")]
        assert shown[5:] == [median_steps(of_game, "steps_to_0.1"), median_steps(of_game, "steps_to_0.1_exact")]
        readme = (ROOT / "README.md").read_text()
        assert re.search(rf"^\| {game} \|.*\| {shown[0]} ?", readme, re.MULTILINE)  # Meta-RL PPO's steps


def test_es_mds_table():
    runs = [row for row in results("es_md") if int(row["leader_steps"]) < 2e8]
    assert len(runs) == 72
    for game in GAMES:
        shown = cells(game, "## Evolution strategies")
        for paid, of_aim in (("during", shown[:3]), ("after", shown[3:])):
            rows = [row for row in runs if row["env_id"] == game and row["paid"] == paid]
            hits = sum(float(row["leader_regret"]) <= 0.05 + 1e-9 for row in rows)
            steps = np.median([float(row["steps_to_converge"] or "inf") for row in rows])
            mixed = np.median([float(row["leader_return_mixed"]) for row in rows])
            assert of_aim == [f"{hits}/3", f"{steps / 1e6:.1f}M", f"{mixed:.2f}".replace("-0.00", "0.00")], (game, paid)


def test_hidden_queries_table():
    runs = results("hidden_queries")
    for leader, rates in {"PG": (5e-5, 2e-4, 8e-4, 8e-3, 3e-2), "ES": (0.004, 0.015)}.items():
        for rate in rates:
            text = README[README.index("## Hidden queries") :].split("\n## ")[0]
            (shown,) = re.findall(rf"^\| {leader} \| {rate:.5f}".rstrip("0") + r" \|(.*)\|$", text, re.MULTILINE)
            shown = [cell.strip() for cell in shown.split("|")]
            for arm, of_arm in (("observed", shown[:2]), ("hidden", shown[2:])):
                flags = f"--leader {leader.lower()} --learning-rate {rate:g}"
                rows = [row for row in runs if row["arm"] == arm and row["flags"] == flags]
                returns = np.array([[float(row["leader_return"]), float(row["training_return"])] for row in rows])
                both = (returns >= -0.1).all(axis=1).sum()
                greedy, playing = returns.mean(axis=0) + 0.0
                assert of_arm[1] == f"{both}/10" and len(rows) == 10
                assert of_arm[0] == f"{greedy:.2f} ({playing:.2f})".replace("-0.00", "0.00")


def test_figure_4s_table():
    for arm, name, answers in (("invariant", "without the bit", "101"), ("noninvariant", "with the bit", "001")):
        rows = [row for row in results("noninvariant_leader") if row["arm"] == arm]
        shown = cells(name, "## Figure 4")
        assert len(rows) == 40 and {row["leader_answers"] for row in rows} == {answers}
        for cell, column in zip(shown[2:], ("leader_return", "follower_regret"), strict=True):
            (value,) = {float(row[column]) for row in rows}
            assert f"{value:.2f}" in cell.replace("\N{MINUS SIGN}", "-")
