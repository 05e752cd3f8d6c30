"""Hidden queries: the follower against an independent enumeration, the learners, and what the script reports."""

import json

import numpy as np
import pytest

from ablations import hidden_queries as script

TIT_FOR_TAT = [0, 0, 1]


def train(leader, observed, num_seeds=4, **flags):
    """Trains leaders without a run's files; returns their greedy tables and return per step, and the last scalars."""
    args = script.Args(leader=leader, learning_rate=script.LEARNING_RATES[leader], **flags)
    replies, _ = script.best_responses(args.num_steps)
    rngs = [np.random.default_rng(seed) for seed in range(num_seeds)]
    *_, (_, scalars, tables) = script.TRAINERS[leader](observed, rngs, replies, args)
    returns, _ = script.play_tables(tables, replies[script.table_index(tables)], args.num_steps)
    return tables, returns, scalars


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
    replies, best_returns = script.best_responses(num_steps)
    for leader, reply, best_return in zip(tables, replies, best_returns, strict=True):
        assert best_return == pytest.approx(max(follower_return(leader, table, num_steps) for table in tables))
        # "for theta = (*, 0, 1) the follower best-response is to always cooperate, for the others to always defect"
        assert set(reply) == ({0} if (leader["C"], leader["D"]) == (0, 1) else {1})
    leader_returns, _ = script.play_tables(script.TABLES, replies, num_steps)
    assert script.TABLES[leader_returns.argmax()].tolist() == TIT_FOR_TAT and leader_returns.max() == 0


def test_episodes_are_three_queries_and_then_the_game():
    """Each deterministic leader, played by a group of seeds, against the exact solution."""
    replies, _ = script.best_responses(5)
    episodes = script.play_episodes(script.TABLES[:, None].astype(float), np.full((8, 8, 1), 0.5), replies)
    observations, actions, rewards, scalars = (*(x[..., 0] for x in episodes[:3]), episodes[3])
    assert (observations[:, :4] == [0, 1, 2, 0]).all() and (actions[:, :3] == script.TABLES).all()
    assert (actions == np.take_along_axis(script.TABLES, observations, axis=1)).all()
    leader_returns, follower_returns = script.play_tables(script.TABLES, replies, 5)
    assert (rewards[:, :3] == 0).all() and np.allclose(rewards[:, 3:].mean(axis=1), leader_returns + 1.5)
    assert np.allclose(scalars["charts/leader_return"], leader_returns)
    assert np.allclose(scalars["charts/follower_return"], follower_returns)


def test_leaders_that_answer_otherwise_than_they_play():
    """The follower believes the answers: a leader that promises tit-for-tat and then defects gets -1 per step."""
    replies, _ = script.best_responses(5)
    uniforms = np.full((1, 8, 1), 0.5)
    uniforms[:, 2], uniforms[:, 3:] = 0.1, 0.1  # 0.1 < 0.3: defects when asked about defection, and in the game
    *_, scalars = script.play_episodes(np.full((1, 1, 3), 0.3), uniforms, replies)
    assert scalars["charts/leader_return"] == pytest.approx(-1) and scalars["charts/follower_return"] == pytest.approx(
        -3
    )


def test_adam_is_adam():
    """Its moments are weighted means of all gradients so far, here written out."""
    rng = np.random.default_rng(0)
    parameters, gradients = rng.standard_normal((2, 3)), rng.standard_normal((20, 2, 3))
    expected, adam = parameters.copy(), script.Adam(0.03, 0.02)
    for t in range(1, 21):
        mean = np.average(gradients[:t], axis=0, weights=0.9 ** np.arange(t)[::-1])
        square = np.average(gradients[:t] ** 2, axis=0, weights=0.999 ** np.arange(t)[::-1])
        expected -= 0.03 * mean / (np.sqrt(square) + 0.02)
        adam.step(parameters, gradients[t - 1])
    assert np.allclose(parameters, expected)


@pytest.mark.parametrize(("leader", "steps"), [("pg", 60_000), ("dqn", 30_000)])
def test_reinforcement_learning_needs_to_see_the_queries(leader, steps):
    tables, returns, _ = train(leader, observed=True, total_timesteps=steps)
    assert (tables == TIT_FOR_TAT).all() and (returns >= -0.1).all()
    tables, returns, _ = train(leader, observed=False, total_timesteps=steps)
    assert (tables[:, 2] == 0).all() and (returns < -0.5).all()


def test_dqn_noise_fades_until_play_is_nearly_greedy():
    _, returns, scalars = train("dqn", observed=True, total_timesteps=30_000)
    assert (scalars["charts/noise_stddev"] != 1).all() and (scalars["charts/leader_return"] >= returns - 0.7).all()


def test_policy_loss_is_that_of_reinforce():
    """Of a policy that is uniform, or nearly: log(2) times the mean return of all steps that the leader sees."""
    args = script.Args(learning_rate=1e-9, total_timesteps=104)
    replies, _ = script.best_responses(5)
    rng = np.random.default_rng(3)
    rng.standard_normal((3, 2))  # the initial logits
    *_, rewards, _ = script.play_episodes(np.full((1, 13, 3), 0.5), rng.random((1, 8, 13)), replies)
    for observed in (True, False):
        ((_, scalars, _),) = script.train_pg(observed, [np.random.default_rng(3)], replies, args)
        returns = np.array([rewards[:, t:].sum(axis=1) for t in range(0 if observed else 3, 8)])
        assert scalars["losses/policy_loss"] == pytest.approx(np.log(2) * returns.mean(), abs=0.05)


def test_evolution_strategies_do_not():
    tables, returns, scalars = train("es", observed=False, total_timesteps=60_000)
    assert (tables == TIT_FOR_TAT).all() and (returns >= -0.1).all()
    _, _, observed_scalars = train("es", observed=True, total_timesteps=60_000)
    assert all((scalars[tag] == observed_scalars[tag]).all() for tag in scalars)  # the same computation


def test_evolution_stops_where_all_perturbed_leaders_act_alike():
    """Weights far beyond the perturbations' reach: all returns tie, and ties give no gradient."""
    _, _, scalars = train("es", observed=True, total_timesteps=2000, es_stddev=1e-9)
    assert (scalars["losses/gradient_norm"] == 0).all()


@pytest.fixture
def run(tmp_path, capsys):
    def run(*flags):
        result = script.main(script.parse_args(["--run-dir", str(tmp_path / "runs"), *map(str, flags)]))
        return result, capsys.readouterr().out

    return run


@pytest.mark.parametrize("leader", script.TRAINERS)
def test_a_seed_does_not_depend_on_its_neighbours(run, leader):
    flags = ("--leader", leader, "--total-timesteps", 4000)
    together, _ = run(*flags, "--num-seeds", 3, "--seed", 5)
    alone, _ = run(*flags, "--num-seeds", 1, "--seed", 7)
    assert [r for r in together["runs"] if r["seed"] == 7] == alone["runs"]
    assert {r["seed"] for r in together["runs"]} == {5, 6, 7} and len(together["runs"]) == 6
    curves = {json.dumps(r["curve"]) for r in together["runs"] if r["arm"] == "observed"}
    assert len(curves) == 3


def test_result_and_words(run, tmp_path):
    result, printed = run("--num-seeds", 2, "--total-timesteps", 150_000)
    assert "it learns from observed queries, and fails when they are hidden" in printed
    assert "observed queries: 2 of 2 leaders answer defection with defection" in printed
    assert "hidden queries: 0 of 2 leaders answer defection with defection" in printed
    assert result["args"]["learning_rate"] == 0.008 and result["leader_steps"] == 150_000 // 104 * 104
    for r in result["runs"]:
        assert r["leader_return"] == pytest.approx({"observed": 0.0, "hidden": -2.0}[r["arm"]])
        assert r["leader_regret"] == r["stackelberg_value"] - r["leader_return"] and r["stackelberg_value"] == 0
        assert r["follower_regret"] == pytest.approx(0) and r["leader"] == "pg"
        assert r["curve"][-1][0] == result["leader_steps"] and 90 <= len(r["curve"]) <= 100
        assert r["curve_greedy"][-1][1] == r["leader_return"]
    (path,) = (tmp_path / "runs").iterdir()
    assert {p.name for p in path.iterdir()} == {"observed", "hidden", "result.json"}
    assert json.loads((path / "result.json").read_text()) == result

    _, printed = run("--num-seeds", 2, "--total-timesteps", 1000)
    assert "no clear contrast in this run" in printed
    _, printed = run("--num-seeds", 2, "--total-timesteps", 1000, "--arm", "hidden")
    assert "one arm alone shows no contrast" in printed and "observed queries" not in printed
    _, printed = run("--leader", "es", "--total-timesteps", 60_000, "--num-seeds", 2)
    assert "it learns whether the queries are observed or hidden" in printed


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (("--population-size", 5), "--population-size must be even, got 5"),
        (("--total-timesteps", 103), "--total-timesteps 103 is less than one batch of 104 steps"),
        (("--leader", "ppo"), "leader"),
        (("--learning-rate", 0), "--learning-rate must be positive"),
        (("--n-step", -1), "--n-step must not be negative"),
    ],
)
def test_wrong_input_is_one_line(flags, words, tmp_path, capsys):
    with pytest.raises(SystemExit) as error:
        script.main(script.parse_args(["--run-dir", str(tmp_path / "runs"), *map(str, flags)]))
    message = capsys.readouterr().err
    assert error.value.code == 2 and words in message and message.count("\n") == 1
    assert not (tmp_path / "runs").exists()
