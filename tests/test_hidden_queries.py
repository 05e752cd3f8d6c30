"""Hidden queries: the follower against an independent enumeration, the learners, and what the script reports."""

import json
import re

import numpy as np
import pytest
import torch
from conftest import parse

from ablations import hidden_queries as script

TIT_FOR_TAT = [0, 0, 1]
LEADERS = {"pg": script.train_pg, "dqn": script.train_dqn, "es": script.train_es}


def train(leader, observed, num_seeds=4, start=None, **flags):
    """Trains leaders against the exact follower, without a run's files; returns their greedy tables and return per
    step, and all scalars."""
    args, logged = script.Args(leader=leader, **flags), []
    replies = np.broadcast_to(script.solve(args.num_steps)[0], (num_seeds, 8, 3))
    rngs = [np.random.default_rng(seed) for seed in range(num_seeds)]
    start = 0.01 * script.draw(rngs, "standard_normal", (3, 2)) if start is None else start
    leaders = torch.nn.Parameter(torch.tensor(start, dtype=torch.float64))
    LEADERS[leader](leaders, replies, observed, args, rngs, lambda _, scalars: logged.append(scalars))
    tables = leaders.argmax(-1).numpy()
    returns = script.play_episodes(tables[:, None], replies, args.num_steps)[3][0, :, 0]
    return tables, returns, logged


def follower_return(leader, follower, num_steps):
    """The definition, one step after the other: the follower's payoff per step, by the words of Appendix D."""
    total, seen_by_leader, seen_by_follower = 0, "start", "start"
    for _ in range(num_steps):
        leader_defects, follower_defects = leader[seen_by_leader], follower[seen_by_follower]
        total += {(0, 0): -1, (0, 1): 0, (1, 0): -3, (1, 1): -2}[leader_defects, follower_defects]
        seen_by_leader, seen_by_follower = "CD"[follower_defects], "CD"[leader_defects]
    return total / num_steps


@pytest.mark.parametrize("num_steps", [4, 5, 10])
def test_follower_is_the_best_response_of_the_proof(num_steps):
    tables = [dict(zip(("start", "C", "D"), table, strict=True)) for table in script.TABLES.tolist()]
    replies, best_payoffs, stackelberg_value = script.solve(num_steps)
    for leader, reply, best_payoff in zip(tables, replies, best_payoffs, strict=True):
        assert best_payoff == pytest.approx(max(follower_return(leader, table, num_steps) for table in tables))
        # "for theta = (*, 0, 1) the follower best-response is to always cooperate, for the others to always defect"
        assert set(reply) == ({0} if (leader["C"], leader["D"]) == (0, 1) else {1})
    leader_payoffs = script.play_episodes(script.TABLES[None], replies[None], num_steps)[3][0, 0]
    assert script.TABLES[leader_payoffs.argmax()].tolist() == TIT_FOR_TAT
    assert leader_payoffs.max() == stackelberg_value == 0


def test_episodes_are_three_queries_and_then_the_game():
    """Each deterministic leader against the replies to it, and against a follower that acts by chance."""
    follower = np.where(np.arange(8)[:, None] % 2, script.solve(5)[0], 0.5)[None]
    uniforms = np.random.default_rng(0).random((1, 8, 8))
    episodes = script.play_episodes(script.TABLES[None], follower, 5, follower_uniforms=uniforms)
    observations, actions, rewards, payoffs = (x[:, 0] for x in episodes)
    assert (observations[0, :4].T == [0, 1, 2, 0]).all() and (observations[1, 3] == 0).all()
    assert (actions[0, :3].T == script.TABLES).all() and (rewards[:, :3] == 0).all()
    for context in range(8):
        for t in range(3, 8):
            assert actions[0, t, context] == script.TABLES[context, observations[0, t, context]]
            probability = follower[0, context, observations[1, t, context]]
            assert actions[1, t, context] == (uniforms[0, t, context] < probability)
            joint = actions[0, t, context], actions[1, t, context]
            assert rewards[0, t, context] == [[0, -2], [-1, -3]][joint[0]][joint[1]] + 1.5
            assert rewards[1, t, context] == [[-1, 0], [-3, -2]][joint[0]][joint[1]] + 1.5
    assert (observations[0, 4:] == 1 + actions[1, 3:-1]).all() and (observations[1, 4:] == 1 + actions[0, 3:-1]).all()
    assert payoffs == pytest.approx(rewards[:, 3:].mean(axis=1) - 1.5)


def test_leaders_that_answer_otherwise_than_they_play():
    """The follower believes the answers: a leader that promises tit-for-tat and then defects gets -1 per step."""
    uniforms = np.full((1, 8, 1), 0.5)
    uniforms[:, 2:] = 0.1  # 0.1 < 0.3: defects when asked about defection, and in the game
    payoffs = script.play_episodes(np.full((1, 1, 3), 0.3), script.solve(5)[0][None], 5, uniforms)[3]
    assert payoffs.ravel() == pytest.approx([-1, -3])


@pytest.mark.parametrize(("leader", "steps"), [("pg", 60_000), ("dqn", 30_000)])
def test_reinforcement_learning_needs_to_see_the_queries(leader, steps):
    tables, returns, logged = train(leader, observed=True, total_timesteps=steps)
    assert (tables == TIT_FOR_TAT).all() and (returns >= -0.1).all()
    assert np.mean([scalars["charts/leader_return"] for scalars in logged[-20:]]) > -0.5
    tables, returns, _ = train(leader, observed=False, total_timesteps=steps)
    assert (tables[:, 2] == 0).all() and (returns < -0.5).all()


def test_one_step_targets_carry_no_reward_back_to_an_answer():
    """All queries end in the same observation: within these steps five-step targets learn, and one-step targets don't
    get certain of it."""
    exploring = {}
    for n_step in (1, 5):
        _, _, logged = train("dqn", observed=True, total_timesteps=30_000, n_step=n_step)
        exploring[n_step] = np.mean([scalars["charts/leader_return"] for scalars in logged[-20:]])
    assert exploring[1] < exploring[5] - 0.1


def test_dqn_noise_fades_until_play_is_nearly_greedy():
    _, returns, logged = train("dqn", observed=True, total_timesteps=30_000)
    assert (logged[-1]["charts/noise_stddev"] != 1).all()
    assert (logged[-1]["charts/leader_return"] >= returns - 0.7).all()


def test_policy_loss_is_that_of_reinforce():
    """Of a policy that is uniform: log(2) times the mean return of all steps that the leader sees."""
    uniforms = np.random.default_rng(0).random((8, 13))
    replies = script.solve(5)[0][None]
    rewards = script.play_episodes(np.full((1, 13, 3), 0.5), replies, 5, uniforms[None])[2][0, 0]
    for observed in (True, False):
        _, _, (scalars,) = train("pg", observed, num_seeds=1, start=np.zeros((1, 3, 2)), total_timesteps=104)
        returns = np.array([rewards[t:].sum(axis=0) for t in range(0 if observed else 3, 8)])
        assert scalars["losses/policy_loss"].item() == pytest.approx(np.log(2) * returns.mean())


def test_evolution_strategies_do_not():
    tables, returns, logged = train("es", observed=False, total_timesteps=60_000)
    assert (tables == TIT_FOR_TAT).all() and (returns >= -0.1).all()
    _, _, observed = train("es", observed=True, total_timesteps=60_000)
    assert all((logged[-1][tag] == observed[-1][tag]).all() for tag in observed[-1])  # the same computation


def test_evolution_stops_where_all_perturbed_leaders_act_alike():
    """Weights far beyond the perturbations' reach: all returns tie, and ties give no gradient."""
    _, _, logged = train("es", observed=True, total_timesteps=2000, es_stddev=1e-9)
    assert (logged[-1]["losses/gradient_norm"] == 0).all()


def test_the_meta_follower_best_responds_and_ties_are_left_to_chance(tmp_path):
    """After 500 iterations all 20 followers' replies are best responses, but not the same ones."""
    args = parse(script, "--follower", "meta", "--num-seeds", 20)
    rngs = [np.random.default_rng(seed) for seed in range(20)]
    replies = script.train_follower(args, rngs, script.SummaryWriter(tmp_path))
    payoffs = script.play_episodes(np.broadcast_to(script.TABLES, replies.shape), replies, 5)[3]
    exact, best_payoffs, _ = script.solve(5)
    assert payoffs[1] == pytest.approx(np.broadcast_to(best_payoffs, (20, 8)))
    assert (replies != exact).any(axis=(1, 2)).mean() > 0.5 and len(np.unique(replies, axis=0)) > 3


@pytest.fixture
def run(tmp_path, capsys):
    def run(*flags):
        result = script.main(parse(script, "--run-dir", tmp_path / "runs", *flags))
        return result, capsys.readouterr().out

    return run


@pytest.mark.parametrize("leader", LEADERS)
def test_a_seed_does_not_depend_on_its_neighbours(run, leader):
    """Nor on the arms beside it; long enough for points of a curve that are means of several batches."""
    flags = ("--leader", leader, "--total-timesteps", {"pg": 84_000, "dqn": 4000, "es": 84_000}[leader])
    together, _ = run(*flags, "--num-seeds", 3, "--seed", 5)
    alone, _ = run(*flags, "--num-seeds", 1, "--seed", 7, "--arm", "hidden")
    assert [r for r in together["runs"] if (r["seed"], r["arm"]) == (7, "hidden")] == alone["runs"]
    assert {r["seed"] for r in together["runs"]} == {5, 6, 7} and len(together["runs"]) == 6
    assert len({json.dumps(r["curve"]) for r in together["runs"] if r["arm"] == "observed"}) == 3


def test_result_and_words(run, tmp_path):
    result, printed = run("--num-seeds", 2, "--total-timesteps", 150_000)
    assert "0.00 for deterministic memory-1 leaders and stationary followers" in printed
    assert re.search(r"queries observed +0.00 per game step greedy, -0.0\d as they explore; 2 of 2 leaders", printed)
    assert re.search(r"queries hidden +-2.00 per game step greedy, -2.0\d as they explore; 0 of 2 leaders", printed)
    assert result["args"]["learning_rate"] == 0.008 and result["follower_steps"] == 0
    assert result["leader_steps"] == 150_000 // 104 * 104
    for r in result["runs"]:
        assert r["leader_return_greedy"] == pytest.approx({"observed": 0.0, "hidden": -2.0}[r["arm"]])
        assert r["leader_regret"] == -r["leader_return_greedy"] and r["stackelberg_value"] == 0
        assert r["follower_regret"] == pytest.approx(0) and r["follower_regret_all"] == pytest.approx(0)
        steps, greedy, exploring = np.array(r["curve"]).T
        assert steps[-1] == result["leader_steps"] and len(steps) == 100 and greedy[-1] == r["leader_return_greedy"]
        assert r["leader_return"] == pytest.approx(exploring[-10:].mean())
        if r["arm"] == "observed":
            assert abs(exploring[steps >= r["steps_to_converge_exploring"]]).max() <= 0.0501
            assert r["steps_to_converge"] < r["steps_to_converge_exploring"]
        else:
            assert r["steps_to_converge"] is r["steps_to_converge_exploring"] is None
    (path,) = (tmp_path / "runs").iterdir()
    assert {p.name for p in path.iterdir()} == {"observed", "hidden", "result.json"}
    assert json.loads((path / "result.json").read_text()) == result

    _, printed = run("--num-seeds", 2, "--total-timesteps", 1000, "--arm", "hidden")
    assert "queries hidden" in printed and "queries observed" not in printed


def test_with_a_meta_follower_it_is_the_same(run, tmp_path):
    result, printed = run("--num-seeds", 2, "--total-timesteps", 150_000, "--follower", "meta")
    assert "meta follower" in printed and result["follower_steps"] == 52_000
    for r in result["runs"]:
        assert r["curve"][0][0] > 52_000 and r["curve"][-1][0] == 52_000 + result["leader_steps"]
        assert r["follower_regret_all"] == pytest.approx(0, abs=0.3)
        assert (r["leader_return_greedy"] > -0.1) == (r["arm"] == "observed")
    (path,) = (tmp_path / "runs").iterdir()
    assert {p.name for p in path.iterdir()} == {"observed", "hidden", "follower", "result.json"}


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (("--population-size", 5), "--population-size must be even, got 5"),
        (("--total-timesteps", 103), "must hold a batch each"),
        (("--follower-timesteps", 103), "must hold a batch each"),
        (("--leader", "ppo"), "--leader"),
        (("--learning-rate", 0), "--learning-rate must be positive"),
        (("--n-step", -1), "--n-step must be positive"),
    ],
)
def test_wrong_flags(flags, words, capsys):
    with pytest.raises(SystemExit) as error:
        parse(script, *flags)
    assert error.value.code == 2 and words in " ".join(re.sub(r"[│\s]+", " ", capsys.readouterr().err).split())
