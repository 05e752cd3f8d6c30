"""PPO with a Q-learning follower inside every leader episode (ablations/ppo_qlearning_matrix.py)."""

import json

import numpy as np
import pytest
import torch

from ablations import ppo_qlearning_matrix as script

TIT_FOR_TAT, ALWAYS_DEFECT = [0, 0, 1, 0, 1], [1, 1, 1, 1, 1]  # leader tables: start, 00, 01, 10, 11

torch.set_num_threads(1)


def run(tmp_path, *flags):
    return script.main(script.parse_args(["--run-dir", str(tmp_path / "runs"), *map(str, flags)]))


def share_of_best_responses(leader, **flags):
    """How many of 200 followers that learned against this leader of the prisoner's dilemma get the most there is."""
    args = script.Args(**flags)
    game = script.make_game(args)
    batch = script.rollout(np.random.default_rng(0), game, np.tile(leader, (200, 1)), args)
    best = script.solve(game)[2][script.table_index(np.array(leader))]
    assert (batch.payoffs[1] <= best + 1e-9).all()
    return (batch.payoffs[1] >= best - 1e-9).mean()


@pytest.mark.parametrize("leader", [TIT_FOR_TAT, ALWAYS_DEFECT])
def test_q_learning_finds_a_best_response(leader):
    assert share_of_best_responses(leader) >= 0.8
    assert share_of_best_responses(leader, follower_episodes=1) <= 0.6  # it is the learning that does it


def test_q_learning_from_zero_stays_with_its_first_choice():
    """Why `--q-init` is not 0: the reply to tit-for-tat is then found by few."""
    assert share_of_best_responses(TIT_FOR_TAT, q_init=0.0) <= 0.4


def test_rollout_is_q_learning_as_in_the_textbook():
    """The same draws, one number at a time, in plain Python."""
    args = script.Args(follower_episodes=7, env_id="chicken", q_learning_rate=0.3, q_gamma=0.7, q_epsilon=0.4)
    game = script.make_game(args)
    leaders = np.random.default_rng(5).random((3, 5))
    batch = script.rollout(np.random.default_rng(9), game, leaders, args)
    rng = np.random.default_rng(9)
    first = rng.normal(args.q_init, 1e-6, (3, 5, 2))
    draws = rng.random((80, 3, 3))
    for i, leader in enumerate(leaders):
        q, step, payoffs = {(o, a): first[i, o, a] for o in range(5) for a in range(2)}, 0, np.zeros(2)
        for episode in range(8):
            observation = 0
            for t in range(10):
                leads, explores, coin = draws[step, :, i]
                action = 1 if leads < leader[observation] else 0
                reply = 1 if q[observation, 1] > q[observation, 0] else 0
                if episode < 7 and explores < args.q_epsilon:
                    reply = 1 if coin < 0.5 else 0
                assert (batch.observations[step, i], batch.actions[step, i]) == (observation, action)
                following = 1 + 2 * action + reply
                if episode < 7:
                    future = 0 if t == 9 else max(q[following, 0], q[following, 1])
                    target = game.follower_reward[action, reply] + args.q_gamma * future
                    q[observation, reply] += args.q_learning_rate * (target - q[observation, reply])
                    assert batch.rewards[step, i] == 0
                else:
                    assert batch.rewards[step, i] == pytest.approx(game.leader_reward[action, reply])
                    payoffs += game.leader_payoff[action, reply] / 10, game.follower_payoff[action, reply] / 10
                observation, step = following, step + 1
        assert batch.payoffs[:, i] == pytest.approx(payoffs)
        assert batch.follower_tables[i].tolist() == [int(q[o, 1] > q[o, 0]) for o in range(5)]


def test_evaluation_of_a_leader_that_settles_everything():
    """In deadlock, a leader that always plays 1 leaves the follower one good reply, which all of them learn."""
    args = script.Args(env_id="deadlock")
    leader_returns, follower_returns, tables = script.evaluate_q_followers(script.make_game(args), args)
    index = script.table_index(np.array(ALWAYS_DEFECT))
    assert leader_returns[index] == pytest.approx(-1) and follower_returns[index] == pytest.approx(-1)
    assert tables[index, [0, 4]].tolist() == [1, 1]


@pytest.mark.parametrize("name", script.PAYOFFS)
def test_best_responses_hold_the_optimum(name):
    game = script.make_game(script.Args(env_id=name))
    returns = script.best_responses(game)
    assert returns.max() == script.solve(game)[0]
    if name == "prisoners_dilemma":
        assert returns[script.table_index(np.array([TIT_FOR_TAT, ALWAYS_DEFECT, [1, 0, 1, 0, 1]]))] == pytest.approx(
            [-1, -2, -0.9]
        )


def test_learns_the_optimum_and_counts_every_step(tmp_path, capsys):
    result = run(tmp_path, "--env-id", "prisoners_delight", "--seed", 2, "--total-timesteps", 300_000)
    assert result["stackelberg_value"] == -1 and abs(result["leader_regret"]) <= 0.05
    assert result["follower_regret"] <= 0.05 and result["steps_to_converge"] <= 300_000
    assert [step for step, _ in result["curve"]] == [8100 * i for i in range(38)]
    returns = [value for _, value in result["training_curve"]]  # of the leader as it is, exploring
    assert np.mean(returns[:5]) < -1.4 and np.mean(returns[-5:]) > -1.3
    assert "prisoners_delight: a Stackelberg equilibrium" in capsys.readouterr().out


def test_words_follow_the_numbers():
    game = script.make_game(script.Args(env_id="prisoners_dilemma"))
    result = {"env_id": "prisoners_dilemma", "args": {"evaluation_followers": 100}, "leader_policy": [1, 0, 1, 0, 1]}
    result |= {
        "follower_policy": [0] * 5,
        "stackelberg_value": -0.9,
        "stackelberg_value_pessimistic": -0.9,
        "steps_to_converge": None,
    }
    result |= {"steps_per_second": 1.0, "wall_seconds": 1.0}

    def words(learned, exact, regret):
        numbers = {"leader_return": learned, "leader_return_exact": exact, "follower_regret": regret}
        return script.findings({**result, **numbers, "leader_regret": -0.9 - learned}, game).splitlines()[1]

    assert words(-0.9, -0.9, 0.0) == "prisoners_dilemma: a Stackelberg equilibrium"
    assert words(-1.1, -0.9, 0.2).endswith(
        "the leader is optimal, but its followers do not all learn the best response"
    )
    assert words(-1.0, -1.0, 0.0) == words(-1.0, -1.0, 0.2) == "prisoners_dilemma: NOT a Stackelberg equilibrium"


def test_steps_to_stay():
    curve = [[10, -1.0], [20, -0.05], [30, -0.2], [40, 0.04], [50, 0.0]]
    assert script.steps_to_stay(curve, 0.0, 0.05) == 40
    assert script.steps_to_stay(curve, 0.0, 0.2) == 20
    assert script.steps_to_stay(curve, 0.0, 0.01) == 50
    assert script.steps_to_stay(curve, -1.0, 0.1) is None


def test_saved_model_is_the_leader_of_the_result(tmp_path):
    flags = ("--total-timesteps", 20_000, "--evaluation-followers", 2, "--save-model", "--env-id", "hero")
    result = run(tmp_path, *flags)
    (folder,) = (tmp_path / "runs").iterdir()
    model = torch.load(folder / "model.pt", weights_only=True)
    assert model["leader"]["actor.weight"].argmax(0).tolist() == result["leader_policy"]
    assert json.loads((folder / "result.json").read_text()) == json.loads(json.dumps(result))
    again = run(tmp_path, *flags)
    for key in result.keys() - {"wall_seconds", "steps_per_second"}:
        assert again[key] == result[key], key


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--q-epsilon", "1.5"), "--q-epsilon must be at most 1, got 1.5"),
        (("--q-gamma", "-0.1"), "--q-gamma must not be negative, got -0.1"),
        (("--q-learning-rate", "0"), "--q-learning-rate must be positive, got 0.0"),
        (("--q-init", "nan"), "--q-init must be a finite number, got nan"),
        (("--follower-episodes", "0"), "--follower-episodes must be positive, got 0"),
        (("--total-timesteps", "8000"), "--total-timesteps 8000 is less than one batch of 8100 steps"),
    ],
)
def test_wrong_flags_end_with_one_line(flags, message, tmp_path, capsys):
    with pytest.raises(SystemExit) as error:
        run(tmp_path, *flags)
    assert error.value.code == 2 and not list(tmp_path.iterdir())
    assert capsys.readouterr().err == f"ppo_qlearning_matrix.py: error: {message}\n"
