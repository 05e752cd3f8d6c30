"""The README's section on one's own training loop, as it is printed there: it runs, and the leaders learn."""

import re
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import exact_returns
from test_matrix_game import OPTIMA

import stackelberg_ppo_matrix as script

TESTS = Path(__file__).parent


def readmes_code(heading):
    """Returns the Python blocks below a heading of the README."""
    section = (TESTS.parent / "README.md").read_text().partition(f"\n## {heading}\n")[2].partition("\n## ")[0]
    return re.findall(r"^```python\n(.*?)^```$", section, re.MULTILINE | re.DOTALL)


def leader_return(envs, table):
    """Returns the exact payoff per game step of a leader's table against the follower of these environments."""
    reply = envs.replies[script.table_index(table)]
    return exact_returns(script, envs.game, [table], [reply])[0].item()


@pytest.mark.parametrize("env_id", ["stag_hunt", "prisoners_dilemma"])
def test_a_ppo_for_gymnasium_learns_with_one_line_changed(env_id):
    code, _ = readmes_code("Your own training loop")
    assert '"stag_hunt"' in code
    source = (TESTS / "vector_ppo.py").read_text()
    changed, count = re.subn(r"^envs = .*\n", code.replace("stag_hunt", env_id), source, flags=re.MULTILINE)
    assert count == 1 and "gym.make" not in changed
    names = {"__name__": "vector_ppo"}
    exec(compile(changed, "vector_ppo.py", "exec"), names)
    table = names["agent"].actor(torch.eye(5)).argmax(dim=1).numpy()
    assert leader_return(names["envs"], table) >= OPTIMA[env_id] - 0.1 - 1e-9
    # what it logs as episodes' returns are sums of the centred rewards: better at the end than at the start
    returns = names["episodic_returns"]
    assert len(returns) == 4 * (97 * 256 // 15)  # complete episodes of 4 environments
    assert np.mean(returns[-500:]) > np.mean(returns[:500]) + 1


def test_stable_baselines_learns_with_the_readmes_wrapper():
    _, code = readmes_code("Your own training loop")
    names = {"__name__": "sb3"}
    exec(compile(code, "README.md", "exec"), names)
    table, _ = names["model"].predict(np.eye(5, dtype=np.float32), deterministic=True)
    assert leader_return(names["envs"], table) >= OPTIMA["stag_hunt"] - 0.1 - 1e-9
