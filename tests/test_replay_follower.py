"""The replay follower: an order of magnitude fewer steps, on the paper's games and on others."""

import contextlib
import importlib
import io
import os
from concurrent.futures import ProcessPoolExecutor

import numpy as np
import pytest
import torch
from conftest import parse
from test_matrix_game import GAMES, brute_force

# Payoffs of 2x2 games that nobody chose: uniform in [-3, 0], independent for both players.
PAYOFFS = {
    f"random_{seed}": np.random.default_rng(seed).uniform(-3, 0, (2, 4)).tolist()
    for seed in (*range(20), *range(1000, 1040))
}
RANDOM_GAMES, HELD_OUT_GAMES = list(PAYOFFS)[:20], list(PAYOFFS)[20:]  # the settings were chosen on games 0-99


@pytest.fixture
def script():
    return importlib.import_module("replay_follower_matrix")


def job(name, seed, run_dir):
    """The flags of a run, as a command line has them."""
    flags = ["--env-id", name, "--seed", seed, "--run-dir", run_dir]
    if name in PAYOFFS:
        leader_payoff, follower_payoff = PAYOFFS[name]
        flags += ["--leader-payoff", *leader_payoff, "--follower-payoff", *follower_payoff]
    return flags


def run_quietly(flags):
    script = importlib.import_module("replay_follower_matrix")
    with contextlib.redirect_stdout(io.StringIO()):
        return script.main(parse(script, *flags))


def converged_within(result, steps):
    """The greedy leader ends at the optimum of a paper's game, and was there from `steps` on."""
    at_optimum = abs(result["leader_regret"]) <= 0.05 + 1e-9
    return at_optimum and result["steps_to_converge"] is not None and result["steps_to_converge"] <= steps


@pytest.mark.parametrize("name", GAMES)
def test_the_optimum_within_10000_steps(name, tmp_path):
    result = run_quietly(job(name, 1, tmp_path))
    assert converged_within(result, 10_000)
    assert result["follower_steps"] == 1920 and result["curve"][-1][0] <= 10_000
    assert result["follower_regret"] <= 0.05 and abs(result["verification_gain"]) <= 0.05


def at_the_optimum(result):
    """Whether the greedy leader is within 0.05 of the optimum, in the paper's scale (payoffs spread over 3)."""
    leader_payoff, follower_payoff = PAYOFFS[result["env_id"]]
    optimum, _, _ = brute_force(leader_payoff, follower_payoff, 10)
    return abs(optimum - result["leader_return_greedy"]) <= 0.05 * (max(leader_payoff) - min(leader_payoff)) / 3 + 1e-9


def test_random_games(tmp_path):
    runs = [run_quietly([*job(name, 1, tmp_path), "--verification-iterations", "0"]) for name in RANDOM_GAMES]
    missed = [result["env_id"] for result in runs if not at_the_optimum(result)]
    assert len(missed) <= 1, missed


def follower_returns(script, game, tables):
    """The follower's payoff per game step with each of its tables [32, 5], one for each leader."""
    return game.payoff(1, script.play(game, script.TABLES, tables)[2][1].mean(axis=0))


def pretrain(script, args, iterations):
    """Trains a follower; returns its Q-values after each iteration, [iterations, 32, 5, 2]."""
    torch.manual_seed(args.seed)
    follower, q_values = torch.zeros(32, 5, 2), []
    leaders = script.random_leaders(args.seed, True)
    script.train_follower(follower, leaders, iterations, args, lambda steps, scalars: q_values.append(follower.clone()))
    return torch.stack(q_values)


def test_four_episodes_with_each_leader_teach_nearly_the_best_response(script):
    """Regret summed over the 32 leaders, by the number of times that the deck was dealt; ends of episodes remain."""
    for name in GAMES:
        args = script.Args(env_id=name)
        best = args.game.payoff(1, script.solve(args.game)[2])
        tables = pretrain(script, args, 4).argmax(-1).numpy()
        regrets = [(best - follower_returns(script, args.game, after)).sum() for after in tables]
        assert regrets[-1] <= 0.2 + 1e-9 < 2 < regrets[0], (name, regrets)


def test_q_values_solve_the_bellman_equation(script):
    """Where every action was tried, Q = reward + 0.9 * the best next Q, as the game's payoffs say."""
    args = script.Args(env_id="hero", follower_timesteps=4800)
    q_values = pretrain(script, args, 10)[-1].numpy()
    follower_payoff = np.array(script.PAYOFFS["hero"]).T
    for context, table in enumerate(script.TABLES):
        for observation in (0, *{1 + 2 * table[0] + a for a in (0, 1)}):  # reached whatever the follower does
            for action in (0, 1):
                follows = 1 + 2 * table[observation] + action
                reward = follower_payoff[table[observation], action] + 1.5
                target = reward + 0.9 * q_values[context, follows].max()
                assert q_values[context, observation, action] == pytest.approx(target, abs=1e-3)


def test_verification_finds_every_flipped_reply(script):
    """Unlike the paper's follower, this one goes on to try what it thinks is worse: it gains what the flip had cost."""
    args = script.Args(verification_iterations=2)
    follower = script.pretrain_follower(args).data
    returns = follower_returns(script, args.game, follower.argmax(-1).numpy())
    costly = 0
    for context_index, observation in np.ndindex(32, 5):
        flipped = follower.clone()
        flipped[context_index, observation] = follower[context_index, observation].flip(-1)
        cost = returns - follower_returns(script, args.game, flipped.argmax(-1).numpy())
        gain = script.verify(flipped, context_index, args)
        assert gain == pytest.approx(cost[context_index], abs=1e-9), (context_index, observation)
        costly += cost[context_index] > 0.05
    assert costly >= 60


def test_leader_plays_as_it_answered(script):
    args = script.Args(batch_size=90, total_timesteps=1920 + 10 * 90)
    envs = script.LeaderPOMDP(args.game, np.random.default_rng(1).integers(2, size=(32, 5)), args.num_envs)
    step, played = envs.step, []

    def recording_step(actions):
        if envs.t >= script.NUM_OBSERVATIONS:
            played.append((envs.context.copy(), envs.observation.copy(), actions.copy()))
        return step(actions)

    envs.step = recording_step
    torch.manual_seed(1)
    script.train_leader(script.Leader(), envs, args, lambda steps, scalars: None)
    contexts, observations, actions = (np.array(x) for x in zip(*played, strict=True))
    answers = np.take_along_axis(contexts, observations[..., None], axis=-1).squeeze(-1)
    assert answers.shape == (100, 6) and (actions == answers).all()
    assert len({tuple(table) for table in contexts.reshape(-1, 5)}) > 10


def test_wrong_flags_of_its_own(script, capsys):
    for flags in (
        ("--follower-gamma", -0.1),
        ("--follower-replay-sweeps", 0),
        ("--risk-seeking", -1),
        ("--ent-coef", -1),
    ):
        with pytest.raises(SystemExit) as error:
            parse(script, *flags)
        assert error.value.code == 2 and f"{flags[0]} must be positive" in capsys.readouterr().err
    parse(script, "--follower-gamma", 0, "--risk-seeking", 0, "--ent-coef", 0)


@pytest.mark.parametrize("flags", [("--follower-learning-rate", 2), ("--follower-gamma", 1.5)])
def test_a_diverged_follower_ends_the_run(script, flags, tmp_path):
    with pytest.raises(SystemExit, match=f"diverged: lower .*{flags[0]}"):
        script.main(parse(script, "--run-dir", tmp_path, *flags))
    assert not [*tmp_path.glob("*/result.json*")]


@pytest.mark.acceptance
def test_all_games_and_ten_seeds(tmp_path, capsys):
    """Every run, not only most of them, 20 random games, and 40 others."""
    jobs = [job(name, seed, tmp_path) for name in GAMES for seed in range(1, 11)]
    jobs += [job(name, 1, tmp_path) for name in (*RANDOM_GAMES, *HELD_OUT_GAMES)]
    with ProcessPoolExecutor(os.cpu_count()) as pool:
        runs = list(pool.map(run_quietly, jobs))
    paper, random, held_out = runs[:120], runs[120:140], runs[140:]
    measures = ("steps_to_converge", "steps_to_converge_exploring")
    steps, exploring = np.array([[result[name] or np.inf for result in paper] for name in measures])
    with capsys.disabled():
        print("\n| game | median steps | most | as it explores: median | runs of 10 | follower_regret_all |")
        print("|---|---|---|---|---|---|")
        for i, name in enumerate(GAMES):
            of_game, regret = slice(10 * i, 10 * i + 10), paper[10 * i]["follower_regret_all"]
            print(f"| {name} | {np.median(steps[of_game]):,.0f} | {max(steps[of_game]):,.0f} |", end=" ")
            print(f"{np.median(exploring[of_game]):,.0f} | {np.isfinite(exploring[of_game]).sum()} | {regret:.2f} |")
        print(f"| all | {np.median(steps):,.0f} | {max(steps):,.0f} |", end=" ")
        print(f"{np.median(exploring):,.0f} | {np.isfinite(exploring).sum()} of 120 | |")
        print(f"random games at the optimum: {sum(map(at_the_optimum, random))} of 20")
        print(f"held-out random games at the optimum: {sum(map(at_the_optimum, held_out))} of 40")
        print(f"seconds per run: {np.median([r['wall_seconds'] for r in runs]):.1f} (median)")
    assert all(converged_within(result, 10_000) for result in paper)
    assert np.median(steps) <= 5_000
    assert sum(map(at_the_optimum, random)) >= 19
    assert sum(map(at_the_optimum, held_out)) >= 36
