"""The follower that learns in hindsight: exact plans, exact imagined episodes, and any small game."""

import importlib
import itertools
import re
from pathlib import Path

import exact_stackelberg as exact
import hindsight_follower as script
import numpy as np
import pytest
import torch
from conftest import parse
from test_exact_stackelberg import all_leaders, best_replies, leader_values, random_payoffs

ROOT = Path(__file__).parent.parent
QUICK = ("--rounds", 5, "--leader-updates", 30)


@pytest.fixture(name="script")
def the_script():
    """What `run` of conftest.py runs."""
    return script


def matrix_game(payoffs):
    """The flags of a game with payoffs [2, rows, columns], as they are parsed."""
    leader, follower = (player.ravel() for player in np.asarray(payoffs))
    flags = "--leader-actions", len(payoffs[0]), "--leader-payoff", *leader, "--follower-payoff", *follower
    return parse(script, *flags)


@pytest.mark.parametrize("shape", [(2, 2), (2, 3), (3, 2)])
def test_planning_on_the_true_model_is_exact(shape):
    payoffs, leaders = np.random.default_rng(1).random((2, *shape)), all_leaders(*shape)
    args = matrix_game(payoffs)
    model = script.complete_model(args)
    q_values, values = (x * model.scale[1] for x in script.follower_values(args, model, torch.tensor(leaders)))
    expected, following = best_replies(payoffs, leaders)
    np.testing.assert_allclose(q_values, expected, atol=1e-6)
    np.testing.assert_allclose(values, expected.max(axis=-1), atol=1e-6)

    # imagined episodes are real ones
    replies = q_values.argmax(-1)
    best = torch.nn.functional.one_hot(replies, shape[1]).bool()
    imagined = script.imagine(model, torch.tensor(leaders), best).numpy() * model.scale[0].item()
    for i in range(0, len(leaders), 7):
        episode = script.play(args, leaders[i], lambda s, _, i=i: replies[i, s[1]], 0)
        assert len(episode) == 10
        assert imagined[i] == pytest.approx(sum(t.rewards[0] for t in episode), abs=1e-9)
        assert all(following[i, t.state[0], t.actions[1]] == t.next_state[0] for t in episode)


def test_of_tied_replies_the_worst_counts(tmp_path):
    """Against a leader that repeats an action a follower may reply 0 or 1, and each time anew."""
    payoffs = np.array([[[1.0, 0.0], [0.3, 0.3]], [[1.0, 1.0], [0.0, 0.5]]])
    args = matrix_game(payoffs)
    follower, tables = script.Follower(args), torch.zeros(1, 5, dtype=torch.int64)
    follower.model = script.complete_model(args)
    q_values = follower.q_values(tables)
    best = q_values >= q_values.amax(-1, keepdim=True) - 1e-6
    assert best.all() and script.imagine(follower.model, tables, best).item() == pytest.approx(0)
    # a leader that answers 1 to a reply of 1 leaves no tie
    args.run_dir = str(tmp_path)
    result = script.main(args)
    assert result["leader_return_greedy"] == pytest.approx(args.optimum.strict) == 1
    q_values = follower.q_values(torch.tensor([result["leader_policy"]]))
    best = q_values >= q_values.amax(-1, keepdim=True) - 1e-6
    guaranteed = script.imagine(follower.model, torch.tensor([result["leader_policy"]]), best).item() / 10
    assert guaranteed == pytest.approx(1)


def test_what_was_not_tried_is_worth_least_at_any_level_of_payoffs():
    """So a leader does not look for what nobody tried where all payoffs are negative, nor fear it more where they are
    positive: by hand, one step of -1 and then the least, -3, for the nine that are left, or once."""
    args = matrix_game(np.zeros((2, 2, 2)))
    step = script.Transition(None, 0, (0, 0), (0, 0), (-1.0, 0.0), (1, 1), False)
    later = step._replace(t=9, state=(4, 4), actions=(1, 1), rewards=(-3.0, 0.0))
    tables, best = torch.tensor([[0, 0, 0, 0, 0], [1, 0, 0, 0, 0]]), torch.zeros(2, 5, 2, dtype=torch.bool)
    best[..., 0] = True
    for shift, expected in ((0.0, [-1 - 9 * 3, -10 * 3]), (4.0, [3 + 1, 1])):
        steps = [t._replace(rewards=(t.rewards[0] + shift, 0.0)) for t in (step, later)]
        model = script.make_model(args, steps)
        returns = script.imagine(model, tables, best) * model.scale[0]
        np.testing.assert_allclose(returns, expected, atol=1e-9)


def test_solve_agrees_with_exact_stackelberg():
    """Two searches for one optimum: all paths here, a bound there; also with ties, and in uneven games."""
    shapes = [(2, 2), (3, 3), (4, 4), (2, 4), (3, 2), (1, 3), (3, 1)]
    for number, (shape, ties) in enumerate(itertools.product(shapes, (False, True, False, True, False))):
        payoffs = random_payoffs(number, *shape, ties)
        args = matrix_game(payoffs)
        optimistic, strict = (exact.solve(payoffs, args.gamma, args.num_steps, strict) for strict in (False, True))
        assert args.optimum.value == pytest.approx(optimistic.value, abs=1e-8)
        assert args.optimum.strict == pytest.approx(strict and strict.value, abs=1e-8)
        # the table is worth it, by a follower that breaks ties for the leader
        leader = np.array([args.optimum.leader_table])
        assert leader_values(payoffs, leader, args.num_steps, 1)[0] >= args.optimum.value - 1e-6


def test_values_of_given_replies_and_of_what_the_follower_cannot_tell_apart():
    """A follower that sees nothing: by hand, the mean over the states in which it was seen to play."""
    args = matrix_game(np.zeros((2, 2, 2)))
    args.num_observations = [2, 1]
    step = script.Transition(None, 0, (0, 0), (0, 0), (0.0, 1.0), (1, 0), False)
    steps = [step, step._replace(state=(1, 0), rewards=(0.0, 4.0), terminated=True)]
    steps += [step._replace(actions=(0, 1), rewards=(0.0, 2.0), terminated=True)] * 3
    model = script.make_model(args, steps)
    table = torch.tensor([[0, 0]])
    for replies, value in ((None, 2.5 / (1 - 0.9 / 2)), ([[0]], 2.5 / (1 - 0.9 / 2)), ([[1]], 2.0)):
        _, values = script.follower_values(args, model, table, replies and torch.tensor(replies))
        assert values.item() * model.scale[1] == pytest.approx(value)


def test_what_was_seen_is_all_that_the_model_knows():
    """Means of rewards and shares of next states, by how often they were seen; the end and what was never tried."""
    args = matrix_game(np.zeros((2, 2, 2)))
    step = script.Transition(None, 0, (0, 0), (1, 0), (2.0, 4.0), (3, 3), False)
    steps = [step, step, step._replace(next_state=(4, 4), rewards=(5.0, -5.0)), step._replace(terminated=True)]
    model = script.make_model(args, [*steps, step._replace(t=1, state=(3, 3), rewards=(-1.0, 1.0), terminated=True)])
    assert model.scale.tolist() == [6, 9] and model.horizon == 2
    assert model.states.tolist() == [[0, 0], [3, 3], [4, 4]] and model.start.tolist() == [1, 0, 0]
    np.testing.assert_allclose(model.rewards[:, 0, 1, 0] * model.scale, [11 / 4, 7 / 4], atol=1e-6)
    assert model.next_state[0, 1, 0].tolist() == [0, 0.5, 0.25]  # and 0.25 that the game ends
    assert model.tried[0].tolist() == [[0, 0], [4, 0]]
    np.testing.assert_allclose(model.rewards[:, 0, 0, 0] * model.scale, [-1, -5], atol=1e-6)

    table = torch.tensor([[1, 0, 0, 1, 0]])
    (q_values,), _ = script.follower_values(args, model, table)
    q_values = q_values * model.scale[1]
    # only the leader that answers 1 at the start and in observation 3 can have brought these transitions
    nothing_known = -5 / (1 - 0.9)
    assert q_values[3, 0] == pytest.approx(1.0) and q_values[0, 1] == -np.inf
    assert q_values[0, 0] == pytest.approx(7 / 4 + 0.9 * (0.5 * 1.0 + 0.25 * nothing_known), rel=1e-4)


@pytest.mark.parametrize("hindsight", [True, False])
def test_contexts_give_the_answer_that_was_seen(monkeypatch, hindsight):
    """A network learns what follows a triple in contexts with its answer alone, relabelled or as it was played."""
    args = parse(script, "--follower", "network", "--follower-updates", 20, *(() if hindsight else ("--no-hindsight",)))
    experience, follower, seen, forward = script.Experience(args), script.Follower(args), [], script.Network.forward
    for _ in range(4):
        experience.explore()

    def spy(self, tables, model):
        q_values, links = forward(self, tables, model)
        if links.requires_grad:
            links = links.detach().requires_grad_()  # so that no gradient but that of the prediction comes here
            seen.append((tables, links))
        return q_values, links

    monkeypatch.setattr(script.Network, "forward", spy)
    near = torch.ones(4096, 5, dtype=torch.long)
    follower.model = script.make_model(args, experience.transitions)
    follower.learn(experience.transitions, torch.cat([near, torch.randint_like(near, 2)]), 1.0)
    learned, pairs = set(), set()
    for tables, links in seen:
        n, observation, reply = (links.grad != 0).any(-1).nonzero(as_tuple=True)
        answer = tables[n, observation]
        learned |= set(zip(observation.tolist(), answer.tolist(), reply.tolist(), strict=True))
        pairs |= set(zip(map(tuple, tables[n].tolist()), observation.tolist(), strict=True))
    assert learned == {(t.state[0], *t.actions) for t in experience.transitions}  # of what was seen, all, and no more
    played = {(tuple(t.table), t.state[0]) for t in experience.transitions}
    assert pairs > played if hindsight else pairs == played
    if hindsight:  # half of the leaders are the one that is near, as it is, and the others are uniform
        contexts = torch.cat([tables for tables, _ in seen])
        is_near = (contexts == 1).all(1)
        assert is_near.float().mean() == pytest.approx(0.5 + 0.5 / 32, abs=4 * 0.5 / len(contexts) ** 0.5)
        others = contexts[~is_near].float()
        assert others.mean() == pytest.approx(15 / 31, abs=4 * 0.5 / others.numel() ** 0.5)


def test_a_diverged_network_says_what_to_lower(run):
    with pytest.raises(SystemExit, match="training diverged: lower --follower-learning-rate"):
        run("--follower", "network", "--follower-learning-rate", 1e30, *QUICK)


def test_in_the_last_quarter_of_rounds_a_network_learns_about_the_best_leaders_alone(tmp_path, monkeypatch):
    contexts, learn = [], script.Follower.learn

    def spy(self, transitions, tables, left):
        contexts.append(tables.clone())
        return learn(self, transitions, tables, left)

    monkeypatch.setattr(script.Follower, "learn", spy)
    flags = "--follower network --random-game 3 4 --rounds 8 --follower-updates 3 --leader-updates 3 --num-leaders 1"
    result = script.main(parse(script, *flags.split(), "--run-dir", tmp_path))
    *rounds, verified = [{tuple(table) for table in tables.tolist()} for tables in contexts]
    assert len(rounds) == 8 and verified == {tuple(result["leader_policy"])}
    in_search = [len(tables) for tables in contexts[:6]]
    assert in_search[0] == 2 * 8 * 256 and min(in_search[1:]) >= 2 * 8 * (32 + 8)  # those of a batch and the best
    drawn = contexts[0][8 * 256 :]  # each with its own preferences, from Dirichlet(0.5): p @ p is 1.5 / 2.5 in the mean
    repeats = (drawn[:, 0] == drawn[:, 1]).float().mean()
    assert repeats == pytest.approx(0.6, abs=4 * 0.5 / len(drawn) ** 0.5)
    assert len(rounds[6]) == len(contexts[6]) <= 1 + 6 * 32 and rounds[7] < rounds[6]  # nothing random, nothing new
    assert len(rounds[7]) == len(contexts[7]) == len(rounds[6]) - len(rounds[6]) // 2  # of which half are worse
    assert verified < rounds[7]


def test_values_begin_at_their_level():
    """That of rewards that go on with the share of transitions that do not end the game, discounted."""
    args = parse(script, "--follower", "network", "--follower-updates", 1, "--follower-learning-rate", 1e-9)
    step = script.Transition(np.zeros(5, int), 0, (0, 0), (0, 1), (0.0, 2.0), (2, 2), False)
    steps = [step, step._replace(rewards=(0.0, 6.0)), step, step._replace(rewards=(0.0, 6.0), terminated=True)]
    follower, tables = script.Follower(args), torch.zeros(1, 5, dtype=torch.int64)
    follower.model = script.make_model(args, steps)
    follower.learn(steps, tables, 1.0)
    level = follower.network.head.bias.mean().item() * follower.model.scale[1].item()
    assert level == pytest.approx(4 / (1 - 0.9 * 3 / 4), rel=1e-4)
    assert torch.equal(follower.network.head.bias, follower.target.module.head.bias)


@pytest.mark.parametrize("flags", [("--env-id", "prisoners_dilemma"), ("--env-id", "chicken"), ("--random-game", 3, 4)])
def test_it_finds_the_optimum_after_few_steps(run, flags):
    result, printed = run(*flags, *QUICK)
    assert result["leader_return_greedy"] == pytest.approx(result["stackelberg_value"], abs=1e-4)
    assert result["follower_regret"] == pytest.approx(0, abs=1e-4) and abs(result["verification_gain"]) < 1e-6
    assert result["steps_to_converge"] <= (210 if flags[0] == "--env-id" else 900)
    assert len(result["leader_policy"]) == (5 if flags[0] == "--env-id" else 10)
    assert result["triples_tried"] == (20 if flags[0] == "--env-id" else 90)
    assert result["steps_to_try_all"] <= result["combined_steps"] and result["stackelberg_value_strict"] is not None
    assert f"optimum            {result['stackelberg_value']:.3f}" in printed


@pytest.mark.parametrize(
    "flags",
    [
        ("--follower", "network", "--leader-updates", 15),
        ("--follower", "network", "--leader-updates", 15, "--no-follower-learns-on", "--follower-updates", 900),
        ("--leader", "solver"),
        ("--no-imagination", "--total-timesteps", 12_000, "--batch-size", 20),
    ],
)
def test_network_solver_and_real_episodes_find_the_optimum_too(run, flags):
    result, _ = run(*QUICK, *flags)
    assert result["leader_return_greedy"] == pytest.approx(-0.9, abs=0.05)
    assert result["follower_regret"] <= 0.05


def test_the_same_seed_gives_the_same_result(run):
    first, second = (run(*QUICK, "--seed", 5)[0] for _ in range(2))
    for name in ("wall_seconds", "cpu_seconds", "steps_per_second", "args"):
        del first[name], second[name]
    assert first == second


# ------------------------------------------------------------------------------------------------------- other games
OWN_GAMES = """
from functools import cache

import gymnasium as gym
from pettingzoo import ParallelEnv


class Own(ParallelEnv):
    metadata = {"name": "own"}
    possible_agents = ["leader", "follower"]
    sizes = {"leader": (2, 2), "follower": (2, 2)}  # observations, actions

    @cache
    def observation_space(self, agent):
        return gym.spaces.Discrete(self.sizes[agent][0])

    @cache
    def action_space(self, agent):
        return gym.spaces.Discrete(self.sizes[agent][1])

    def reset(self, seed=None, options=None):
        if seed is not None:
            self.rng = gym.utils.seeding.np_random(seed)[0]
        self.agents = self.possible_agents[:]
        self.begin()
        return self.see(), {agent: {} for agent in self.agents}

    def step(self, actions):
        agents, (rewards, done) = self.agents, self.play(actions["leader"], actions["follower"])
        self.agents = [] if done else agents
        rest = [dict.fromkeys(agents, done), dict.fromkeys(agents, False), {agent: {} for agent in agents}]
        return self.see(), dict(zip(agents, rewards)), *rest


LEADER = [[[2, 4], [1, 3]], [[0, 3], [1, 2]]]  # for each weather
FOLLOWER = [[[1, 0], [0, 1]], [[0, 1], [2, 0]]]


class Weather(Own):  # chance moves: the weather, and a coin in the rewards
    seen_by = ("leader", "follower")

    def begin(self):
        self.weather = int(self.rng.random() < 0.4)

    def see(self):
        return {agent: self.weather if agent in self.seen_by else 0 for agent in self.possible_agents}

    def play(self, a, b):
        coin = self.rng.choice([-0.5, 0.5])
        return (LEADER[self.weather][a][b] + coin, FOLLOWER[self.weather][a][b] - coin), True


class Hidden(Weather):  # the follower knows the weather, the leader does not
    seen_by = ("follower",)
    sizes = {"leader": (1, 2), "follower": (2, 2)}
"""


@pytest.fixture
def own_games(tmp_path):
    path = tmp_path / "games.py"
    path.write_text(OWN_GAMES)
    return path


def optimum(name, games):
    """By enumeration of the leader's tables, and of the follower's replies in each weather."""
    scope = {}
    exec(games.read_text(), scope)
    chance, leader, follower = np.array([0.6, 0.4]), np.array(scope["LEADER"]), np.array(scope["FOLLOWER"])
    tables = itertools.product(range(2), repeat=2) if name == "Weather" else [(0, 0), (1, 1)]
    return max(sum(chance[w] * leader[w, a, follower[w, a].argmax()] for w, a in enumerate(x)) for x in tables)


@pytest.mark.parametrize("name", ["Weather", "Hidden"])
def test_a_game_with_chance_moves_and_one_with_different_observations(run, own_games, name):
    flags = ("--total-timesteps", 2_000, "--eval-episodes", 200)
    result, printed = run("--env-file", f"{own_games}:{name}", *flags, *QUICK)
    expected = optimum(name, own_games)
    assert result["leader_return_greedy"] == pytest.approx(expected, abs=4 * 1.2 / 200**0.5)
    unknown = "stackelberg_value stackelberg_value_strict leader_regret steps_to_converge steps_to_try_all".split()
    assert all(result[name] is None for name in unknown)
    assert "not known" in printed and "on the means of what was seen" in printed
    assert len(result["leader_policy"]) == (2 if name == "Weather" else 1) and result["env_id"] == name
    policy, scope = result["leader_policy"], {}
    exec(own_games.read_text(), scope)
    for weather in range(2):
        a = policy[weather if name == "Weather" else 0]
        assert result["follower_policy"][weather] == np.argmax(scope["FOLLOWER"][weather][a])


def test_steps_by_default_are_enough_for_all_that_can_be_seen(own_games):
    """Ten of each state and pair of actions, and thrice as many as queries leave in short episodes."""
    assert parse(script).total_timesteps == 200 and parse(script, "--random-game", 3, 1).total_timesteps == 900
    assert parse(script, "--no-imagination").total_timesteps == 20_000
    for name, steps in (("Weather", 10 * 8), ("Hidden", 10 * 8)):  # an episode is one step, and two queries or one
        assert parse(script, "--env-file", f"{own_games}:{name}").total_timesteps == steps
    shy = "class Shy(Weather):\n    sizes = {'leader': (9, 2), 'follower': (2, 2)}\n"
    own_games.write_text(OWN_GAMES + shy)
    assert parse(script, "--env-file", f"{own_games}:Shy").total_timesteps == 3 * (9 * 4) * (1 + 9)


def test_the_readmes_game(run, tmp_path):
    """By hand: if the incumbent fights, the entrant stays out, 2 for the incumbent; if it yields, it gets 1 or 0."""
    readme = (ROOT / "README.md").read_text()
    code = re.search(r"## Any game.*?```python\n(.*?)```", readme, re.DOTALL).group(1)
    (tmp_path / "entry.py").write_text(code)
    assert code.count("\n") <= 34
    flags = ("--env-file", f"{tmp_path}/entry.py:Entry", *QUICK)
    result, printed = run(*flags)
    assert result["leader_return_greedy"] == 2 and result["leader_policy"][1:] == [1, 1]
    assert result["follower_policy"][0] == 0 and "not known" in printed
    assert result["follower_regret"] == pytest.approx(0, abs=1e-5)
    # the entrant leads: it enters big, and the incumbent yields
    result, _ = run(*flags, "--leader-agent", "entrant")
    assert result["leader_return_greedy"] == 2 and result["leader_policy"][0] == 2


WRONG = """
class Continuous(Weather):
    def action_space(self, agent):
        return gym.spaces.Box(0.0, 1.0, (1,))

class Three(Weather):
    possible_agents = ["leader", "follower", "judge"]
    sizes = {agent: (2, 2) for agent in possible_agents}

class Leaves(Weather):
    def step(self, actions):
        observations, rewards, terminations, truncations, infos = super().step(actions)
        if len(actions) == 2:
            self.agents, terminations["leader"] = ["leader"], False
        return observations, rewards, terminations, truncations, infos

class Outside(Weather):
    def see(self):
        return {"leader": 2, "follower": 0}

class Endless(Weather):
    def play(self, a, b):
        return (0.0, 0.0), False

class Unseen(Weather):
    def see(self):
        return {"leader": 0}

def broken():
    raise RuntimeError("no such luck")
"""


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--env-file", "{games}:Continuous"), "Discrete"),
        (("--env-file", "{games}:Three"), "3 agents"),
        (("--env-file", "{games}:Leaves"), "leaves early"),
        (("--env-file", "{games}:Outside"), "not in their spaces"),
        (("--env-file", "{games}:Endless"), "10,000 steps"),
        (("--env-file", "{games}:Unseen"), "KeyError: 'follower'"),
        (("--env-file", "{games}:broken"), "RuntimeError: no such luck (games.py, "),
        (("--env-file", "{games}"), "FILE.py:FUNCTION"),
        (("--env-file", "{games}:nothing"), "nothing"),
        (("--env-file", "none.py:make"), "none.py"),
        (("--env-file", "{games}:Weather", "--leader", "solver"), "matrix games"),
        (("--env-file", "{games}:Weather", "--leader-agent", "judge"), "judge"),
        (("--leader-agent", "follower"), "--leader-agent is for --env-file"),
        (("--env-id", "go"), "no game 'go'"),
        (("--leader-payoff", 1, 2, 3), "as many"),
        (("--leader-payoff", 1, "--follower-payoff", "nan"), "finite"),
        (("--random-game", 2, 1, "--leader-actions", 3), "nothing else"),
        (("--num-steps", 1), "--num-steps"),
        (("--no-hindsight",), "--follower network"),
        (("--gamma", 1), "--gamma"),
        (("--rounds", 0), "--rounds"),
    ],
)
def test_what_does_not_fit_ends_with_a_message(own_games, capsys, tmp_path, flags, message):
    own_games.write_text(OWN_GAMES + WRONG)
    with pytest.raises(SystemExit) as stop:
        parse(script, "--run-dir", tmp_path / "runs", *[str(flag).format(games=own_games) for flag in flags])
    assert stop.value.code == 2 and not (tmp_path / "runs").exists()
    assert message in re.sub(r"\s+", " ", capsys.readouterr().err.replace("│", ""))


def test_the_benchmark_keeps_rows_and_runs_what_is_missing(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "benchmark")
    benchmark, started = importlib.import_module("hindsight"), []
    settings = {("random 2x2", "solver"): (2, 1, 60, {}), ("table3", "solver"): (1, 1, 60, {})}
    monkeypatch.setattr(benchmark, "SETTINGS", settings)
    monkeypatch.setattr(benchmark, "GAMES", ["hero"])

    def run_here(runs, args):
        for run in runs:
            started.append(run.flags)
            folder = Path(args.run_dir, run.name)
            if started[-1].get("env_id") != "hero" or len(started) > 3:  # which fails the first time
                script.main(script.Args(**run.flags, run_dir=str(folder)))
                (folder / "source.sha256").write_text(benchmark.digest(run.script))
            yield run, "exit code 0"

    monkeypatch.setattr(benchmark, "run_in_processes", run_here)
    path = tmp_path / "hindsight_runs.csv"

    def rows(run_dir):
        failed = benchmark.run_all(benchmark.Args(run_dir=str(tmp_path / run_dir)), path)
        return failed, path.read_text().splitlines()

    failed, table = rows("first")
    assert failed and len(started) == 3 and len(table) == 1 + 2
    failed, table = rows("first")
    assert not failed and started[3:] == [started[2]] and len(table) == 1 + 3
    assert rows("second") == (False, table) and len(started) == 4  # their rows are there
    path.unlink()
    assert rows("first") == (False, table) and len(started) == 4  # their results are
    monkeypatch.setattr(benchmark, "digest", lambda _: "another version of the script")
    failed, other = rows("first")
    sources = ({row.split(",")[4] for row in lines[1:]} for lines in (table, other))
    assert not failed and len(started) == 7 and not set.intersection(*sources)
    monkeypatch.setattr(benchmark, "SETTINGS", {("table3", "solver"): (1, 1, 60, {"rounds": 30})})
    assert rows("first")[1][2:] == other[1:3] and len(started) == 8  # other flags: run again; the other rows stay


def test_environments_of_the_mlp_line(monkeypatch):
    """Queries without reward, then the game against replies to the answers; a follower that sees a random table."""
    monkeypatch.syspath_prepend(ROOT / "benchmark")
    mlp = importlib.import_module("mlp_meta_rl")
    payoffs, rng, asked = np.random.default_rng(0).random((2, 2, 2)), np.random.default_rng(1), []
    envs = mlp.LeaderEnvs(payoffs, 3, lambda answers: asked.append(answers.copy()) or 1 - answers)
    inputs, answers, last = envs.reset(), np.zeros((3, 5), int), None
    for t in range(15):
        actions = rng.integers(2, size=3)
        observations = inputs.argmax(1)
        assert t >= 5 or (observations == t).all()
        assert t != 5 or (observations == 0).all()
        envs.step_async(actions)
        inputs, rewards, over, infos = envs.step_wait()
        if t < 5:
            answers[:, t] = actions
            assert (rewards == 0).all()
        else:
            follower = 1 - answers[range(3), observations]
            assert rewards == pytest.approx(payoffs[0, actions, follower])
            last = 1 + 2 * actions + follower
            assert t == 14 or (inputs.argmax(1) == last).all()
        assert (over == (t == 14)).all()
    assert len(asked) == 1 and (asked[0] == answers).all() and (inputs.argmax(1) == 0).all()
    assert (np.stack([info["terminal_observation"] for info in infos]).argmax(1) == last).all()

    envs = mlp.FollowerEnvs(payoffs, 4, seed=0)
    inputs = envs.reset()
    for t in range(10):
        tables, observations = inputs[:, :10].reshape(4, 5, 2).argmax(2), inputs[:, 10:].argmax(1)
        actions, leader = rng.integers(2, size=4), tables[range(4), observations]
        envs.step_async(actions)
        inputs, rewards, over, infos = envs.step_wait()
        assert rewards == pytest.approx(payoffs[1, leader, actions]) and (over == (t == 9)).all()
        after = inputs if t < 9 else np.stack([info["terminal_observation"] for info in infos])
        assert (after[:, 10:].argmax(1) == 1 + 2 * leader + actions).all() and (after[:, :10] >= 0).all()
    assert all(info["TimeLimit.truncated"] for info in infos) and (inputs[:, 10] == 1).all()
