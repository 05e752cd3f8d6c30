"""What the tests of the matrix-game scripts share."""

import importlib

import numpy as np
import pytest
import torch
import tyro

MATRIX_SCRIPTS = ["stackelberg_ppo_matrix", "stackelberg_pg_matrix", "stackelberg_dqn_matrix"]

# a budget of a second in which every script's leader takes gradient steps
SHORT = ("--follower-timesteps", 1050, "--follower-batch-size", 105, "--total-timesteps", 8000)
SHORT += ("--verification-iterations", 2)

# The other scripts, each with flags of a run that takes about a second.
QUICK = {
    "ppo_qlearning_matrix": ("--total-timesteps", 30_000, "--evaluation-followers", 3),
    "es_md_matrix": ("--total-timesteps", 50_000, "--population", 8, "--follower-updates", 5),
    "theorem2_divergence": ("--num-episodes", 200, "--num-seeds", 1),
    "noninvariant_leader": ("--num-seeds", 1, "--total-timesteps", 2080, "--learning-rates", 0.03),
    "hidden_queries": ("--num-seeds", 1, "--total-timesteps", 2000),
    "leader_reward_during_learning": ("--num-seeds", 1, "--total-timesteps", 330),
    "continuous_follower": ("--num-seeds", 1, "--total-timesteps", 2200),
    "no_regret_follower": ("--env-id", "hero", "--rounds", 3, "--num-seeds", 1, "--num-episodes", 320),
    "two_followers_matrix": ("--env-id", "public_good", "--num-seeds", 1, "--follower-episodes", 64),
    "recurrent_follower_matrix": ("--follower-timesteps", 2560, "--trials-per-leader", 1, "--num-trials", 640),
    "hindsight_follower": ("--rounds", 5, "--leader-updates", 5),
    "mixed_commitment_matrix": ("--follower", "network", "--rounds", 3, "--follower-updates", 20, "--generations", 5),
}

torch.set_num_threads(1)


def parse(script, *flags):
    """Returns a script's Args for flags as on a command line."""
    return tyro.cli(script.Args, args=[*map(str, flags)], description=script.__doc__)


@pytest.fixture(params=MATRIX_SCRIPTS)
def script(request):
    """Each matrix script in turn, as a module."""
    return importlib.import_module(request.param)


@pytest.fixture(params=[*MATRIX_SCRIPTS, *QUICK])
def any_script(request):
    """Each script but Atari's in turn, as a module."""
    return importlib.import_module(request.param)


@pytest.fixture
def run(script, tmp_path, capsys):
    """Runs the script in this process with flags as on a command line: returns its result and what it printed.

    The run folder is tmp_path/runs, unless the flags say otherwise.
    """

    def run(*flags):
        result = script.main(parse(script, "--run-dir", tmp_path / "runs", *flags))
        return result, capsys.readouterr().out

    return run


def best_replies(script, game):
    """The exact follower as the POMDP wants it: its table for each context, [32, 5]."""
    n = len(script.TABLES)
    _, _, rewards = script.play(game, script.TABLES.repeat(n, axis=0), np.tile(script.TABLES, (n, 1)))
    return script.TABLES[rewards[1].mean(axis=0).reshape(n, n).argmax(axis=1)]


def exact_returns(script, game, leader_tables, follower_tables):
    """Both players' payoff per game step, [n] each, for pairs of tables [n, 5]."""
    rewards = script.play(game, np.asarray(leader_tables), np.asarray(follower_tables))[2].mean(axis=1)
    return game.payoff(0, rewards[0]), game.payoff(1, rewards[1])
