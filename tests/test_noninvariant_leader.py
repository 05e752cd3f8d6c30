"""Figure 4: the exact evaluation against plain Python, and what leaders with and without the bit learn."""

import importlib
import itertools
import json
import re

import numpy as np
import pytest
import torch
from conftest import parse

ni = importlib.import_module("ablations.noninvariant_leader")

ALL = list(itertools.product((0, 1), repeat=3))
TIT_FOR_TAT = (0, 0, 1)
# exact optimum of each game with 3-state memory and 5 steps, from brute_force below
OPTIMA = dict.fromkeys(ni.PAYOFFS, 0.0) | {"prisoners_dilemma": -0.8, "deadlock": -1.0, "prisoners_delight": -1.0}
FEW = ("--total-timesteps", 83_200, "--learning-rates", 0.03)


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
    assert ni.stackelberg_value(game(env_id)) == pytest.approx(brute_force)
    assert (np.min(payoff) + np.max(payoff)) / 2 == ni.PAYOFF_CENTRE and np.ptp(payoff) == 3


@pytest.mark.parametrize("answers", ALL)
def test_exact_returns_of_deterministic_leaders(answers):
    """Any pair of answers and plays, against the exact follower; the regret is 0 for those that play as they answer."""
    payoff = ni.PAYOFFS["prisoners_dilemma"]
    policies = np.array([[*answers, *plays] for plays in ALL])
    leader, follower, regret = ni.exact_returns(game(), policies, game().best_reply(ni.TABLES))
    for i, plays in enumerate(ALL):
        expected = play(plays, reply_to(answers, payoff), payoff)
        best = max(play(plays, reply, payoff)[1] for reply in ALL)
        assert (leader[i], follower[i]) == (pytest.approx(expected[0]), pytest.approx(expected[1]))
        assert regret[i] == pytest.approx(best - expected[1], abs=1e-9) and (plays != answers or regret[i] < 1e-9)


def test_the_trick_needs_a_follower_that_forgives():
    """The exact follower's reply to tit-for-tat is the one that stays best if the leader errs. Another, that is as good
    against tit-for-tat, avenges a defection, and would make "answer tit-for-tat, play defection" pay -1.6."""
    tit_for_tat, forgiving, avenging = (np.array(table) for table in (TIT_FOR_TAT, (0, 0, 0), (0, 0, 1)))
    assert (game().best_reply(tit_for_tat) == forgiving).all()
    assert game().returns(tit_for_tat, forgiving)[1] == game().returns(tit_for_tat, avenging)[1]
    assert (game().best_reply(0.99 * tit_for_tat + 0.005) == forgiving).all()
    for reply, value in ((forgiving, 0.0), (avenging, -1.6)):
        replies = game().best_reply(ni.TABLES)
        replies[ni.table_index(tit_for_tat)] = reply
        assert ni.exact_returns(game(), np.array([*TIT_FOR_TAT, 1, 1, 1]), replies)[0] == pytest.approx(value)


def test_rollouts_average_to_the_exact_returns():
    """Stochastic leaders and any replies: 20,000 episodes each, within 4 standard errors of payoffs of -3 to 0."""
    rng = np.random.default_rng(0)
    policies, replies, n = rng.random((4, 6)), rng.integers(0, 2, (4, 8, 3)), 20_000
    leaders = np.broadcast_to(policies[:, None], (4, n, 6))
    observations, actions, rewards, payoffs = ni.play_episodes(game(), leaders, replies, rng.random((4, 8, n)))
    leader, follower, regret = ni.exact_returns(game(), policies, replies)
    assert payoffs.mean(axis=2) == pytest.approx(np.array([leader, follower]), abs=4 * 1.5 / np.sqrt(n))
    assert rewards[:, :, 3:].mean(axis=2) - 1.5 == pytest.approx(payoffs) and (rewards[:, :, :3] == 0).all()
    assert (regret > 0.01).all()
    assert (observations[0, :, :4] == np.array([0, 1, 2, 3])[:, None]).all() and (observations[0, :, 4:] > 3).all()
    for i in range(4):  # every action is sampled with the probability of what the leader observes
        for row in range(6):
            assert actions[0, i][observations[0, i] == row].mean() == pytest.approx(policies[i, row], abs=0.02)
    # each player observes the other's last action, and the follower acts by the answers
    assert (observations[0, :, 4:] == 4 + actions[1, :, 3:-1]).all()
    assert (observations[1, :, 4:] == 1 + actions[0, :, 3:-1]).all() and (observations[1, :, 3] == 0).all()
    contexts = ni.table_index(actions[0, :, :3].swapaxes(1, 2))
    for t in range(3, 8):
        assert (actions[1, :, t] == replies[np.arange(4)[:, None], contexts, observations[1, :, t]]).all()


def test_only_the_bit_tells_queries_from_play():
    weights = torch.randn(5, 4, 2)
    invariant, noninvariant = ni.logits_of(weights[:, :3]), ni.logits_of(weights)
    assert torch.equal(invariant[:, :3], invariant[:, 3:])
    assert torch.equal(noninvariant[:, 3:], weights[:, :3])  # in play, where the bit is 0
    assert torch.allclose(noninvariant[:, :3] - noninvariant[:, 3:], weights[:, 3:].expand(-1, 3, -1))


def run(tmp_path, *flags):
    return ni.main(parse(ni, *FEW, "--run-dir", tmp_path, *flags))


@pytest.fixture(scope="module")
def few(tmp_path_factory):
    """Both arms, 3 seeds, the largest learning rate, a fifth of the steps."""
    folder = tmp_path_factory.mktemp("runs")
    return run(folder, "--num-seeds", 3), folder


def test_the_bit_pays_and_the_follower_regrets_it(few):
    runs = few[0]["runs"]
    assert [(run["arm"], run["seed"]) for run in runs] == list(
        itertools.product(("invariant", "noninvariant"), (1, 2, 3))
    )
    for run in runs:
        assert run["stackelberg_value"] == pytest.approx(-0.8) and run["follower_regret_all"] == pytest.approx(0)
        assert run["learning_rate"] == 0.03 and run["follower"] == "exact"
        if run["arm"] == "noninvariant":  # it feigns tit-for-tat, and defects
            assert run["leader_answers"][1:] == [0, 1] and run["leader_policy"] == [1, 1, 1]
            assert run["leader_return_greedy"] == 0 and run["follower_regret"] == pytest.approx(1.0)
            assert run["leader_return"] > -0.5 and run["follower_regret_exploring"] > 0.3
            assert run["follower_policy"] == [0, 0, 0]
        else:
            assert run["leader_answers"] == run["leader_policy"] == [1, 0, 1]
            assert run["leader_regret"] == pytest.approx(0) and run["follower_regret"] == pytest.approx(0)
            assert run["follower_regret_exploring"] < 0.05 and -0.9 < run["leader_return"] < -0.75


def test_a_meta_follower_is_tricked_if_chance_made_it_forgive(tmp_path):
    """Seeds 1 and 4 of 4 reply to tit-for-tat by always cooperating. All best-respond: without the bit it is as with
    the exact follower."""
    result = run(tmp_path, "--num-seeds", 4, "--follower", "meta")
    args = parse(ni, "--follower", "meta", "--num-seeds", 4)
    rngs = [np.random.default_rng((seed, 1)) for seed in args.seeds]
    replies = ni.train_follower(args, rngs, ni.SummaryWriter(tmp_path / "again"))
    forgives = [(table[ni.table_index(np.array(TIT_FOR_TAT))] == 0).all() for table in replies]
    assert forgives == [True, False, False, True]
    for one in result["runs"]:
        assert one["follower_regret_all"] == pytest.approx(0)
        if one["arm"] == "invariant":
            assert one["leader_return_greedy"] == pytest.approx(-0.8) and one["follower_regret"] == pytest.approx(0)
        elif forgives[one["seed"] - 1]:
            assert one["leader_answers"][1:] == [0, 1] and one["leader_policy"] == [1, 1, 1]
            assert one["leader_return_greedy"] == 0 and one["follower_regret"] == pytest.approx(1.0)
        else:  # it may feign another policy, but not tit-for-tat
            assert one["leader_answers"] != list(TIT_FOR_TAT) and one["leader_return_greedy"] >= -0.8 - 1e-9
    assert result["follower_steps"] == 52_000 and result["runs"][0]["curve"][0][0] > 52_000
    (folder,) = tmp_path.glob("prisoners*")
    assert {p.name for p in folder.iterdir()} == {"follower", "invariant_0.03", "noninvariant_0.03", "result.json"}


@pytest.mark.parametrize("env_id", ["chicken", "deadlock"])
def test_invariant_leaders_learn_the_optimum_of_other_games(env_id, tmp_path):
    flags = ("--env-id", env_id, "--num-seeds", 3, "--arm", "invariant", "--total-timesteps", 41_600)
    runs = run(tmp_path, *flags)["runs"]
    assert [one["leader_regret"] for one in runs] == pytest.approx([0, 0, 0])


@pytest.mark.parametrize("follower", ["exact", "meta"])
def test_a_seed_does_not_depend_on_its_neighbours(follower, tmp_path):
    flags = ("--follower", follower, "--follower-timesteps", 5200, "--total-timesteps", 5200)
    together = run(tmp_path, *flags, "--num-seeds", 3, "--seed", 5)["runs"]
    alone = run(tmp_path, *flags, "--num-seeds", 1, "--seed", 7, "--arm", "noninvariant")["runs"]
    assert alone == [one for one in together if (one["seed"], one["arm"]) == (7, "noninvariant")]
    assert len({json.dumps(one["curve"]) for one in together}) == 6


def test_result_and_curves(few):
    result, folder = few
    (path,) = folder.glob("prisoners_dilemma__noninvariant_leader__1__*/result.json")
    assert {p.name for p in path.parent.iterdir()} == {"invariant_0.03", "noninvariant_0.03", "result.json"}
    assert result["leader_steps"] == 83_200 and result["follower_steps"] == 0
    for one in result["runs"]:
        steps, greedy, exploring = np.array(one["curve"]).T
        assert steps[-1] == 83_200 and len(steps) == 100 and (np.diff(steps) > 0).all()
        if one["arm"] == "invariant":
            assert abs(greedy[steps >= one["steps_to_converge"]] + 0.8).max() <= 0.0501
            assert abs(exploring[steps >= one["steps_to_converge_exploring"]] + 0.8).max() <= 0.0501
        else:  # above the optimum is not at it
            assert one["steps_to_converge"] is one["steps_to_converge_exploring"] is None


def test_words_follow_the_runs(few, tmp_path, capsys):
    result = json.loads(json.dumps(few[0]))
    ni.finish(result, str(tmp_path))
    words = capsys.readouterr().out
    assert "-0.80 for deterministic memory-1 leaders and stationary followers" in words
    assert re.search(r"noninvariant, learning rate 0.03: 0.00 greedy, .*3 of 3 leaders above.*regret 1.00", words)
    assert re.search(r"  invariant, learning rate 0.03: -0.80 greedy, .*0 of 3 leaders above.*regret 0.00", words)
    assert "3 of 3 answer [1, 0, 1] and play [1, 0, 1]" in words
    result["runs"][3] |= {"leader_regret": 0.0, "follower_regret": 0.4}
    ni.finish(result, str(tmp_path))
    assert re.search(r"noninvariant.*2 of 3 leaders above.*regret 0.80", capsys.readouterr().out)


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (("--env-id", "poker"), "no game 'poker': choose from prisoners_dilemma, stag_hunt"),
        (("--learning-rates", 0.1, 0), "--learning-rates must be positive, got 0"),
        (("--total-timesteps", 103), "must hold a batch each"),
        (("--follower", "meta", "--follower-timesteps", 103), "must hold a batch each"),
        (("--arm", "none"), "--arm"),
    ],
)
def test_wrong_flags(flags, words, capsys):
    with pytest.raises(SystemExit) as error:
        parse(ni, *flags)
    assert error.value.code == 2 and words in " ".join(re.sub(r"[│\s]+", " ", capsys.readouterr().err).split())
