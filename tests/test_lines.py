"""Scripts stay short, and mostly science: the game, the episode, the learners, the exact solution and the measurement.

    python -m pytest tests/test_lines.py -n0 -s

prints, for each script, its lines, and how many of those below the imports are science, the run (`main`: the phases in
order, and what is found), flags and their checks, or files and logging.
"""

from pathlib import Path

import pytest
from test_shared_blocks import blocks_of

ROOT = Path(__file__).parent.parent
# script: most lines
LIMITS = {
    "stackelberg_ppo_matrix": 551,
    "stackelberg_pg_matrix": 542,
    "stackelberg_dqn_matrix": 581,
    "stackelberg_ppo_atari_trade": 918,
    "theorem2_divergence": 480,
    "hidden_queries": 430,
    "noninvariant_leader": 430,
    "leader_reward_during_learning": 430,
    "continuous_follower": 430,
    "ppo_qlearning_matrix": 430,
    "es_md_matrix": 430,
    "no_regret_follower": 430,
    "diff_md_matrix": 310,
    "hindsight_follower": 650,
    "exact_stackelberg": 250,
    "vectorized_ppo_matrix": 549,
    "two_followers_matrix": 430,
    "mixed_commitment_matrix": 650,
    "recurrent_follower_matrix": 430,
}
HEAD = {"inline script metadata", "docstring", "imports"}
RUN = {"main", "__main__"}
FLAGS = {"load_follower", "stored_flags", "load_state", "load", "lock", "fingerprint"}
FILES = {"start_run", "start_writer", "finish", "print_equilibrium", "write_video"}


def count(script):
    """Returns a script's lines, and those of science, the run, flags and files."""
    source = next(ROOT.glob(f"**/{script}.py")).read_text()
    lines = {"science": 0, "run": 0, "flags": 0, "files": 0}
    for name, text in blocks_of(source).items():
        if name not in HEAD:
            kind = "run" if name in RUN else "files" if name in FILES else "science"
            kind = "flags" if name in FLAGS or name.startswith("Args.") else kind
            lines[kind] += text.count("\n")
    return source.count("\n"), lines


@pytest.mark.parametrize("script", LIMITS)
def test_a_script_is_short_and_mostly_science(script):
    total, lines = count(script)
    body = sum(lines.values())
    science, with_run = lines["science"] / body, (lines["science"] + lines["run"]) / body
    print(f"\n{script}: {total} lines; {lines}; science {science:.0%}, with the run {with_run:.0%}")
    assert total <= LIMITS[script]
    assert with_run >= 0.65


def test_every_script_has_a_limit():
    assert {path.stem for path in (*ROOT.glob("*.py"), *ROOT.glob("ablations/*.py"))} == set(LIMITS)
