"""Figure 4: the exact evaluation against plain Python, and what leaders with and without the bit learn."""

import importlib
import itertools
import json

import numpy as np
import pytest

ni = importlib.import_module("ablations.noninvariant_leader")

ALL = list(itertools.product((0, 1), repeat=3))
# exact optimum of each game with 3-state memory and 5 steps, from brute_force below
OPTIMA = dict.fromkeys(ni.PAYOFFS, 0.0) | {"prisoners_dilemma": -0.8, "deadlock": -1.0, "prisoners_delight": -1.0}
FEW = "--num-seeds 3 --total-timesteps 83200 --learning-rates 0.03"


def game(env_id="prisoners_dilemma", num_steps=5):
    return ni.MemoryGame(ni.PAYOFFS[env_id], np.array(ni.PAYOFFS[env_id]).T, num_steps)


def play(leader, follower, payoff, num_steps=5):
    """Both players' mean payoff when they follow tables, in a symmetric game."""
    seen, follower_seen, total = 0, 0, np.zeros(2)
    for _ in range(num_steps):
        action, reply = leader[seen], follower[follower_seen]
        total += payoff[action][reply], payoff[reply][action]
        seen, follower_seen = 1 + reply, 1 + action
    return total / num_steps


def reply_to(table, payoff):
    """The follower's best table; of equally good ones the leader's favourite, and one that always does the same."""
    return max(ALL, key=lambda reply: (*play(table, reply, payoff)[::-1].round(9), len(set(reply)) == 1))


@pytest.mark.parametrize("env_id", ni.PAYOFFS)
def test_stackelberg_values(env_id):
    payoff = ni.PAYOFFS[env_id]
    brute_force = max(play(table, reply_to(table, payoff), payoff)[0] for table in ALL)
    assert brute_force == pytest.approx(OPTIMA[env_id])
    returns, _ = game(env_id).returns(ni.TABLES, game(env_id).best_reply(ni.TABLES))
    assert returns.max() == pytest.approx(brute_force)


@pytest.mark.parametrize("answers", ALL)
def test_evaluate_deterministic_leaders(answers):
    payoff = ni.PAYOFFS["prisoners_dilemma"]
    policies = np.array([[*answers, *plays] for plays in ALL])
    leader, follower, regret = ni.exact_returns(game(), policies)
    for i, plays in enumerate(ALL):
        expected = play(plays, reply_to(answers, payoff), payoff)
        best = max(play(plays, reply, payoff)[1] for reply in ALL)
        assert (leader[i], follower[i]) == (pytest.approx(expected[0]), pytest.approx(expected[1]))
        assert regret[i] == pytest.approx(best - expected[1]) and (regret[i] == 0 or plays != answers)


def test_the_trick_needs_a_follower_that_forgives():
    """The reply that the script gives to tit-for-tat is the one that stays best if the leader errs. Another that is as
    good against tit-for-tat defects after a defection, and would make "answer tit-for-tat, play defection" pay -1.6."""
    tit_for_tat, forgiving, avenging = (np.array(table) for table in ((0, 0, 1), (0, 0, 0), (0, 0, 1)))
    assert (game().best_reply(tit_for_tat) == forgiving).all()
    assert game().returns(tit_for_tat, forgiving)[1] == game().returns(tit_for_tat, avenging)[1]
    assert (game().best_reply(0.99 * tit_for_tat + 0.005) == forgiving).all()
    assert game().returns(np.ones(3), avenging)[0] == pytest.approx(-1.6)


def test_rollouts_average_to_the_exact_returns():
    """Stochastic leaders: 20,000 episodes each, within 4 standard errors of a payoff between -3 and 0."""
    rng = np.random.default_rng(0)
    policies, n = rng.random((4, 6)), 20_000
    rows, actions, payoffs = ni.play_with_queries(game(), policies, rng.random((4, 8, n)))
    leader, follower, regret = ni.exact_returns(game(), policies)
    means = payoffs[:, :, 3:].mean(axis=(2, 3))
    assert means == pytest.approx(np.array([leader, follower]), abs=4 * 1.5 / np.sqrt(n))
    assert (payoffs[:, :, :3] == 0).all() and (regret > 0.01).all()
    assert (rows[:, :4] == np.array([0, 1, 2, 3])[:, None]).all() and (rows[:, 4:] > 3).all()
    for row in range(6):  # every action is sampled with the probability of what the leader observes
        shares = [actions[i][rows[i] == row].mean() for i in range(4)]
        assert shares == pytest.approx(policies[:, row], abs=0.05)


def test_only_the_bit_tells_queries_from_play():
    invariant, noninvariant = ni.features_of("invariant"), ni.features_of("noninvariant")
    assert (invariant[:3] == invariant[3:]).all() and (noninvariant[:, :3] == invariant).all()
    assert noninvariant[:, 3].tolist() == [1, 1, 1, 0, 0, 0]


@pytest.fixture(scope="module")
def few(tmp_path_factory):
    """Both arms, 3 seeds, the largest learning rate, a fifth of the steps."""
    folder = tmp_path_factory.mktemp("runs")
    return ni.main(ni.parse_args([*FEW.split(), "--run-dir", str(folder)])), folder


def test_the_bit_pays_and_the_follower_regrets_it(few):
    runs = few[0]["runs"]
    assert [run["arm"] for run in runs] == ["invariant"] * 3 + ["noninvariant"] * 3
    for run in runs:
        assert run["stackelberg_value"] == pytest.approx(-0.8)
        if run["arm"] == "noninvariant":  # it feigns tit-for-tat, and defects
            assert run["leader_answers"][1:] == [0, 1] and run["leader_policy"] == [1, 1, 1]
            assert run["leader_return"] == 0 and run["follower_regret"] == pytest.approx(1.0)
            assert run["exploring_return"] > -0.5 and run["exploring_regret"] > 0.3
        else:
            assert run["leader_answers"] == run["leader_policy"] == [1, 0, 1]
            assert run["leader_regret"] == pytest.approx(0) and run["follower_regret"] == pytest.approx(0)
            assert run["exploring_regret"] < 0.05


def test_a_seed_does_not_depend_on_its_neighbours(few, tmp_path):
    flags = [*FEW.split(), "--num-seeds", "1", "--seed", "2", "--arm", "noninvariant", "--run-dir", str(tmp_path)]
    assert ni.main(ni.parse_args(flags))["runs"] == [few[0]["runs"][4]]


def test_result_and_curves(few):
    result, folder = few
    (path,) = folder.glob("prisoners_dilemma__noninvariant_leader__1__*/result.json")
    assert json.loads(path.read_text()) == json.loads(json.dumps(result))
    assert {p.name for p in path.parent.iterdir()} == {"invariant_0.03", "noninvariant_0.03", "result.json"}
    assert result["leader_steps"] == 83_200
    for run in result["runs"]:
        steps = [step for step, _ in run["curve"]]
        assert steps == sorted(set(steps)) and steps[-1] == 83_200 and 50 <= len(steps) <= 60
        assert run["curve"][-1][1] == run["exploring_return"] and run["curve_regret"][-1][1] == run["exploring_regret"]


def test_words_follow_the_runs(few):
    result = json.loads(json.dumps(few[0]))
    assert "tricks the follower; this is no equilibrium" in ni.contrast(result)
    assert "noninvariant, 3 leaders: 3 end at least 0.3 above the Stackelberg value of -0.80" in ni.contrast(result)
    assert "  invariant, 3 leaders: 0 end at least 0.3 above" in ni.contrast(result)
    result["runs"][3]["follower_regret"] = 0.2
    assert "it is otherwise" in ni.contrast(result) and "at least 0.3 in 2, at most 0.05 in 0" in ni.contrast(result)
    result["runs"] = result["runs"][:3]
    assert "one arm alone" in ni.contrast(result)


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ("--learning-rates 0.1 0.1", "--learning-rates must be one or more different numbers"),
        ("--learning-rates inf", "--learning-rates must be a finite number"),
        ("--learning-rates 0", "--learning-rates must be positive"),
        ("--total-timesteps 103", "--total-timesteps 103 is less than one batch of 104 steps"),
        ("--env-id chess", "no game 'chess'"),
        ("--arm bit", "no arm 'bit'"),
    ],
)
def test_wrong_flags_end_with_one_line(flags, words, tmp_path, capsys):
    with pytest.raises(SystemExit) as end:
        ni.main(ni.parse_args([*flags.split(), "--run-dir", str(tmp_path / "runs")]))
    error = capsys.readouterr().err
    assert end.value.code == 2 and error.count("\n") == 1 and words in error
    assert not (tmp_path / "runs").exists()


def test_rewards_are_centred():
    """Payoffs that are all 8 higher train the same leader."""
    payoff, args = np.array(ni.PAYOFFS["prisoners_dilemma"]), ni.Args(num_seeds=2, total_timesteps=2080)
    policies = [
        [policy for _, policy, _ in ni.train_leaders("noninvariant", 0.03, ni.MemoryGame(p, p.T, 5), args)][-1]
        for p in (payoff, payoff + 8)
    ]
    assert (policies[0] == policies[1]).all() and (np.abs(policies[0] - 0.5) > 0.05).any()
