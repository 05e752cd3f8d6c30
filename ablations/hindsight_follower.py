# /// script
# requires-python = ">=3.11"
# dependencies = ["gymnasium==1.4.0", "numpy==2.4.6", "pettingzoo==1.27.0", "tensorboard==2.21.0", "torch==2.13.0",
#   "tqdm==4.70.1", "tyro==1.0.17", "wandb==0.31.0"]
# ///
"""Stackelberg equilibria of any small game from fewer steps than brute force: a follower that learns in hindsight.

    python ablations/hindsight_follower.py --env-id prisoners_dilemma
    python ablations/hindsight_follower.py --random-game 4 7              # 4 x 4: default_rng(7).random((2, 4, 4))
    python ablations/hindsight_follower.py --env-file my_game.py:make_env  # your own: a PettingZoo ParallelEnv

The follower's context is the leader's policy: its answer to each of its observations. So a transition (observation,
leader's action, follower's action, rewards, next observation) is valid for every leader that answers this observation
with this action, and need be seen about once: 90 in a 3 x 3 game, which has 59,049 leaders. From the same transitions
leaders learn in imagined episodes, queries and then the game, at no cost in steps. Real ones try what was tried least.
"""

import itertools
import json
import math
import os
import runpy
import sys
import time
import traceback
from collections import Counter
from dataclasses import asdict, dataclass
from typing import Literal, NamedTuple

import gymnasium as gym
import numpy as np
import torch
import torch.nn as nn
import torch.nn.functional as F
import tyro
from pettingzoo import ParallelEnv
from pettingzoo.test import parallel_api_test
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm


@dataclass
class Args:
    exp_name: str = os.path.basename(__file__)[: -len(".py")]
    """name of this experiment"""
    seed: int = 1
    """seed of every random number"""
    track: bool = False
    """track the run with Weights and Biases too"""
    wandb_project_name: str = "stackelberg"
    """project in Weights and Biases"""
    wandb_entity: str | None = None
    """entity (team) in Weights and Biases"""
    run_dir: str = "runs"
    """folder that the run's own folder is made in"""

    env_id: str = "prisoners_dilemma"
    """a game of the paper's Table 3, as they are named below (`PAYOFFS`), or two of them as A-B"""
    leader_payoff: tuple[float, ...] = ()
    """your own matrix game: the leader's payoffs, row by row (row = leader's action, column = follower's action)"""
    follower_payoff: tuple[float, ...] = ()
    """your own matrix game: the follower's payoffs in the same layout (not transposed)"""
    leader_actions: int | None = None
    """rows of the payoffs, if there are not as many as columns"""
    random_game: tuple[int, int] | None = None
    """instead: actions of both players, and the game's number"""
    env_file: str | None = None
    """instead: FILE.py:FUNCTION, which returns a PettingZoo ParallelEnv of two agents with Discrete spaces"""
    leader_agent: str | None = None
    """which agent of `--env-file` leads; default: the first"""
    num_steps: int = 10
    """matrix games: game steps per episode; an episode is a query of each leader's observation and then these"""
    total_timesteps: int | None = None
    """combined steps, queries included; default: at least 10 (without imagination 1,000) per observation and actions"""
    rounds: int = 20
    """how often, evenly over the steps, follower and leader learn from what was seen"""

    follower: Literal["planning", "network"] = "planning"
    """planning: policy iteration on the table of what was seen; network: Q-learning"""
    gamma: float = 0.9
    """discount of the follower, which sees no clock and so takes the end of a matrix game for no terminal state"""
    hindsight: bool = True
    """network: relabel transitions with other leaders; off: learn from them as they were played"""
    follower_learns_on: bool = True
    """network: learn while the leader does; off: in the first half of all rounds, and the leader in the second"""
    follower_updates: int = 200
    """network: gradient steps in each round"""
    follower_learning_rate: float = 0.02
    """network: Adam's learning rate, decaying with the square root of the rounds of learning that are left"""
    margin: float = 0.03
    """network: replies within so much of the range of rewards, decaying linearly, count as ties: the worst counts"""

    leader: Literal["policy-gradient", "solver"] = "policy-gradient"
    """solver: no learning, but the exact solution of the matrix game that was seen, for comparison"""
    imagination: bool = True
    """train the leader in imagined episodes; off: in real ones, in the second half of the steps"""
    num_leaders: int = 8
    """leaders that learn side by side, anew in each round; without imagination there is one"""
    batch_size: int = 32
    """whole tables, each an episode, that a leader tries in each update"""
    leader_updates: int = 60
    """gradient steps of a leader in each round"""
    learning_rate: float = 0.2
    """Adam's learning rate of the leader"""
    eval_episodes: int = 100
    """your own game: episodes of every evaluation; any game: those in which the follower learns on, in the end"""

    def __post_init__(self):
        for flag, value in asdict(self).items():
            if type(value) in (int, float) and not (0 <= value < math.inf and (value or flag in ("seed", "margin"))):
                raise ValueError(f"--{flag.replace('_', '-')} must be positive, got {value}")
        if self.gamma >= 1:
            raise ValueError(f"--gamma must be below 1, got {self.gamma}")
        if self.follower == "planning" and not (self.hindsight and self.follower_learns_on):
            raise ValueError("a follower that plans learns in hindsight and learns on: add --follower network")
        if self.env_file is None:
            if self.num_steps == 1:
                raise ValueError("--num-steps must be 2 or more: in one step no answer but the first is ever given")
            self.payoffs, length, leaders = payoffs_of(self), self.num_steps, ()
            self.env, self.optimum = MatrixGame(self.payoffs, length), solve(self)
        else:
            (self.env, length), self.payoffs, self.optimum = load_env(self.env_file), None, None
            self.env_id, leaders = self.env_file.rpartition(":")[2], self.env.possible_agents
        if self.leader == "solver" and self.optimum is None:
            raise ValueError("--leader solver is for matrix games alone, of six actions or so")
        if self.leader_agent not in (None, *leaders):
            raise ValueError(f"no {self.leader_agent!r}: --leader-agent is for --env-file, here one of {(*leaders,)}")
        self.agents = sorted(self.env.possible_agents, key=lambda agent: agent != self.leader_agent)  # the leader first
        self.num_observations = [int(self.env.observation_space(agent).n) for agent in self.agents]
        self.num_actions = [int(self.env.action_space(agent).n) for agent in self.agents]
        triples, episode = max(self.num_observations) * math.prod(self.num_actions), length + self.num_observations[0]
        enough = max(10 * triples, 3 * triples * episode / length, 10 * episode)
        self.total_timesteps = self.total_timesteps or math.ceil(enough * (1 if self.imagination else 100))


# ---------------------------------------------------------------------------------------------------------- the game
TOLERANCE = 0.05 + 1e-6  # what passes for equal, in mean rewards: half of what one step of ten can change
# Leader payoffs of Table 3; all games are symmetric, so the follower's payoffs are the transpose.
PAYOFFS = {
    "prisoners_dilemma": ((-1, -3), (0, -2)),
    "stag_hunt": ((0, -3), (-1, -2)),
    "assurance": ((0, -3), (-2, -1)),
    "coordination": ((0, -2), (-3, -1)),
    "mixedharmony": ((0, -1), (-3, -2)),
    "harmony": ((0, -1), (-2, -3)),
    "noconflict": ((0, -2), (-1, -3)),
    "deadlock": ((-2, -3), (0, -1)),
    "prisoners_delight": ((-3, -2), (0, -1)),
    "hero": ((-3, -1), (0, -2)),
    "battle": ((-2, -1), (0, -3)),
    "chicken": ((-1, -2), (0, -3)),
}


def payoffs_of(args) -> np.ndarray:
    """Returns payoffs [player, leader's action, follower's action], names their game, or raises ValueError."""
    names = args.env_id.split("-")
    is_known = len(names) <= 2 and {*names} <= {*PAYOFFS}
    if args.random_game is not None:
        actions, number = args.random_game
        if actions < 1 or number < 0 or args.leader_actions:
            raise ValueError("--random-game needs the number of actions of both players, and the game's; nothing else")
        args.env_id = f"random_{actions}x{actions}_{number}"
        return np.random.default_rng(number).random((2, actions, actions))
    if args.leader_payoff or args.follower_payoff:
        size, finite = len(args.leader_payoff), np.isfinite(args.leader_payoff + args.follower_payoff).all()
        rows = args.leader_actions or math.isqrt(size)
        if not (finite and 0 < size == len(args.follower_payoff) and rows > 0 and size % rows == 0):
            raise ValueError("--leader-payoff, --follower-payoff: as many, finite; a square or --leader-actions rows")
        args.env_id = "custom" if is_known else args.env_id
        return np.array([args.leader_payoff, args.follower_payoff], dtype=np.float64).reshape(2, rows, -1)
    if not is_known:
        raise ValueError(f"no game {args.env_id!r}: {', '.join(PAYOFFS)}, two as A-B, or your own payoffs")
    return np.array([PAYOFFS[names[0]], np.transpose(PAYOFFS[names[-1]])], dtype=np.float64)


class MatrixGame(ParallelEnv):
    """An iterated m x n game of `num_steps` steps with payoffs [player, leader's action, follower's action]. Both
    observe the last pair of actions: 0 is the start, 1 + n a + b the pair (a, b)."""

    metadata = {"name": "iterated_matrix_game"}  # noqa: RUF012

    def __init__(self, payoffs: np.ndarray, num_steps: int = 10):
        self.payoffs, self.num_steps, self.possible_agents = payoffs, num_steps, ["leader", "follower"]
        _, rows, columns = payoffs.shape
        self.observation_space = self.all(gym.spaces.Discrete(1 + rows * columns)).__getitem__
        self.action_space = {"leader": gym.spaces.Discrete(rows), "follower": gym.spaces.Discrete(columns)}.__getitem__

    def all(self, value) -> dict:
        return dict.fromkeys(self.possible_agents, value)

    def reset(self, seed: int | None = None, options: dict | None = None) -> tuple[dict, dict]:
        self.agents, self.t = self.possible_agents[:], 0
        return self.all(0), self.all({})

    def step(self, actions: dict) -> tuple[dict, dict, dict, dict, dict]:
        """Both act at once; the episode is cut off after `num_steps`."""
        a, b = (int(actions[agent]) for agent in self.possible_agents)
        self.t += 1
        self.agents = self.agents if self.t < self.num_steps else []
        rewards, over = dict(zip(self.possible_agents, self.payoffs[:, a, b].tolist(), strict=True)), not self.agents
        return self.all(1 + self.payoffs.shape[2] * a + b), rewards, self.all(False), self.all(over), self.all({})


def load_env(env_file: str) -> tuple[ParallelEnv, float]:
    """Returns the user's own game and the mean length of its episodes. Raises ValueError if it does not fit."""
    path, colon, function = env_file.rpartition(":")
    try:
        assert colon, "FILE.py:FUNCTION is needed"
        sys.path.insert(0, os.path.dirname(os.path.abspath(path)))  # for what the file imports
        env, length = runpy.run_path(path)[function](), 0
        agents = env.possible_agents
        assert len(agents) == 2, f"it has {len(agents)} agents; two are needed, the leader and the follower"
        for space in (of(agent) for agent in agents for of in (env.observation_space, env.action_space)):
            assert isinstance(space, gym.spaces.Discrete) and space.start == 0, f"Discrete(n) is needed, not {space}"
        for seed, rng in enumerate(map(np.random.default_rng, range(10))):
            observations, before = env.reset(seed=seed)[0], length
            while True:
                fits = all(env.observation_space(agent).contains(observations[agent]) for agent in agents)
                assert fits, f"it returns the observations {observations}, which are not in their spaces"
                assert len(env.agents) in (0, 2), "an agent leaves early; both must stay until the end"
                assert length < before + 10_000, "random actions do not end an episode within 10,000 steps; they must"
                if not env.agents:
                    break
                actions = {agent: int(rng.integers(env.action_space(agent).n)) for agent in agents}
                observations, length = env.step(actions)[0], length + 1
        parallel_api_test(env, num_cycles=100)
    except Exception as error:  # whatever the user's file raises
        last = traceback.extract_tb(error.__traceback__)[-1]
        what = f"{type(error).__name__}: {str(error) or last.line} ({os.path.basename(last.filename)}, {last.lineno})"
        raise ValueError(f"--env-file {env_file!r} does not fit: {what}") from error
    return env, length / 10


# ------------------------------------------------------------------ episodes, experience, and planning on what was seen
class Transition(NamedTuple):  # a step of a real episode; a state is what both players observe, (leader, follower)
    table: np.ndarray  # the leader's, [its observations]
    t: int
    state: tuple[int, int]
    actions: tuple[int, int]
    rewards: tuple[float, float]
    next_state: tuple[int, int]
    terminated: bool


def play(args: Args, table: np.ndarray, reply, seed: int) -> list[Transition]:
    """Returns an episode of a leader's table, its answers to all queries, and a follower's `reply(state, action)`."""
    observations, _ = args.env.reset(seed=seed)
    state, episode, is_over = tuple(int(observations[agent]) for agent in args.agents), [], False
    while not is_over:
        a = int(table[state[0]])
        actions = a, int(reply(state, a))
        step = args.env.step(dict(zip(args.agents, actions, strict=True)))
        observations, rewards, terminated, truncated = ([of[agent] for agent in args.agents] for of in step[:4])
        next_state = tuple(map(int, observations))
        episode.append(Transition(table, len(episode), state, actions, tuple(rewards), next_state, terminated[0]))
        state, is_over = next_state, terminated[0] or truncated[0]
    return episode


class Experience:
    """All real transitions so far, how often what was tried, and how many steps that took, queries included."""

    def __init__(self, args: Args):
        self.args, self.rng, self.transitions = args, np.random.default_rng(args.seed), []
        self.answered, self.tried = Counter(), Counter()  # (leader's observation, action), and (state, both actions)
        self.steps = self.steps_to_try_all = 0

    def play(self, table: np.ndarray, reply) -> float:
        """Plays a real episode; returns the leader's return."""
        episode, before = play(self.args, table, reply, int(self.rng.integers(2**31))), len(self.tried)
        self.transitions += episode
        self.answered.update((t.state[0], t.actions[0]) for t in episode)
        self.tried.update((t.state, *t.actions) for t in episode)
        self.steps += self.args.num_observations[0] + len(episode)
        self.steps_to_try_all = self.steps if len(self.tried) > before else self.steps_to_try_all
        return sum(t.rewards[0] for t in episode)

    def explore(self, table: np.ndarray | None = None) -> None:
        """Plays an episode of what both tried least, ties by chance; a table that is given is the leader's."""
        rows, columns, observations = map(range, (*self.args.num_actions, self.args.num_observations[0]))
        if table is None:
            table = [min(rows, key=lambda a: (self.answered[o, a], self.rng.random())) for o in observations]
        self.play(table, lambda s, a: min(columns, key=lambda b: (self.tried[s, a, b], self.rng.random())))


class Model(NamedTuple):
    """Means of transitions, for each of S states, A leader's and B follower's actions."""

    states: torch.Tensor  # [S, 2], what leader and follower observe there
    tried: torch.Tensor  # [S, A, B], how often
    rewards: torch.Tensor  # [2, S, A, B] in units of `scale`; of what was not tried the least that was seen
    next_state: torch.Tensor  # [S, A, B, S], probabilities; what they lack to 1 ends the game, as does all not tried
    start: torch.Tensor  # [S], probabilities
    horizon: int  # steps of the longest episode
    scale: torch.Tensor  # [2], the range of rewards


def make_model(args: Args, transitions: list[Transition]) -> Model:
    """Returns the means of all that was seen."""
    _, t, state, actions, rewards, next_state, terminated = map(np.array, zip(*transitions, strict=True))
    states, index = np.unique(np.concatenate([state, next_state]), axis=0, return_inverse=True)
    here, after = index.reshape(2, -1)
    shape, cells = (len(states), *args.num_actions), (here, *actions.T)
    tried, sums, following = np.zeros(shape), np.zeros((*shape, 2)), np.zeros((*shape, len(states)))
    np.add.at(tried, cells, 1)
    np.add.at(sums, cells, rewards)
    np.add.at(following, (*cells, after), np.logical_not(terminated))
    scale = np.where(np.ptp(rewards, axis=0) > 0, np.ptp(rewards, axis=0), 1)
    often = np.maximum(tried, 1)[..., None]
    means = np.where(tried[..., None] > 0, sums / often, rewards.min(axis=0)) / scale
    start = np.bincount(here[t == 0], minlength=len(states)) / sum(t == 0)
    arrays = states, tried, np.moveaxis(means, -1, 0), following / often, start
    return Model(*map(torch.tensor, arrays), 1 + int(t.max()), torch.tensor(scale))


def follower_values(args: Args, model: Model, tables: torch.Tensor, replies: torch.Tensor | None = None):
    """Policy iteration for leaders' tables [n, leader's observations]: the follower's Q-values [n, its observations,
    B], minus infinity where nothing was tried, and values [n, its observations], of its best replies or those given.
    All transitions count that fit, by how often they were seen: exact where both see the same, and that is Markov."""
    (n, num), states, gamma = (len(tables), args.num_observations[1]), torch.arange(len(model.states)), args.gamma
    actions, next_seen = tables[:, model.states[:, 0]], model.next_state @ torch.eye(num)[model.states[:, 1]].double()

    def pool(values: torch.Tensor) -> torch.Tensor:
        """Adds up states in which the follower observes the same, [n, S, ...] -> [n, follower's observations, ...]."""
        return values.new_zeros(n, num, *values.shape[2:]).index_add_(1, model.states[:, 1], values)

    tried = model.tried[states, actions]  # [n, S, B]
    total = pool(tried)
    rewards = pool(tried * model.rewards[1][states, actions]) / total.clamp(min=1)
    following = pool(tried[..., None] * next_seen[states, actions]) / total.clamp(min=1)[..., None]
    least = model.rewards[1].min()  # for ever, or once and the game ends: so little is worth what was not tried
    rewards = torch.where(total > 0, rewards, torch.minimum(least, least / (1 - gamma)))
    values, row, column = rewards.new_zeros(n, num), torch.arange(n)[:, None], torch.arange(num)
    for _ in range(100):  # few are needed
        q_values = torch.where(total > 0, rewards + gamma * torch.einsum("nobp,np->nob", following, values), -torch.inf)
        chosen = row, column, q_values.argmax(-1) if replies is None else replies
        before, values = values, torch.linalg.solve(torch.eye(num) - gamma * following[chosen], rewards[chosen])
        if (values - before).abs().max() < 1e-9:
            break
    return q_values, values


def imagine(model: Model, tables: torch.Tensor, best: torch.Tensor) -> torch.Tensor:
    """The leader's expected returns [n] in imagined episodes, in units of `scale`, for its tables [n, its observations]
    and the worst for it of all `best` replies, [n, follower's observations, B]."""
    states, (seen_by_leader, seen_by_follower) = torch.arange(len(model.states)), model.states.T
    chosen, best, values = (states, tables[:, seen_by_leader]), best[:, seen_by_follower], 0 * model.start[None]
    least = model.rewards[0].min()  # in all steps that are left, or once: so little is worth what was not tried
    for left in range(1, 1 + model.horizon):
        q_values = model.rewards[0][chosen] + (model.next_state[chosen] @ values[:, None, :, None])[..., 0]
        q_values = torch.where(model.tried[chosen] > 0, q_values, torch.minimum(least, left * least))
        values = torch.where(best, q_values, torch.inf).amin(-1)
    return values @ model.start


# ----------------------------------------------------------------------------------------------------- both learners
class Network(nn.Module):
    """Q-values in the shape of value iteration (Tamar et al. 2016, VIN): what each reply pays, in `width` channels, and
    to which of the follower's observations it leads are learned for each answer of the leader."""

    def __init__(self, args: Args, width: int = 16, steps: int = 8):
        super().__init__()
        (leader, num), (answers, self.replies), self.width = args.num_observations, args.num_actions, width
        self.answers = nn.Parameter(0.3 * torch.randn(leader, answers, self.replies * (width + num)))
        self.observations = nn.Parameter(torch.zeros(num, self.replies * (width + num)))
        self.discount, self.head, self.steps = nn.Linear(width, width), nn.Linear(width, 1), steps

    def forward(self, tables: torch.Tensor, model: Model) -> tuple[torch.Tensor, torch.Tensor]:
        """Tables [n, leader's observations] -> Q-values [n, O, B], logits of the next observation [n, O, B, O]."""
        seen = torch.zeros(len(self.observations), len(self.answers))  # how often, together
        seen[tuple(model.states.T.flip(0))] = model.tried.sum((1, 2)).float()
        known = self.observations + F.normalize(seen, p=1, dim=1) @ self.answers[torch.arange(tables.shape[1]), tables]
        rewards, links = known.unflatten(-1, (self.replies, -1)).tensor_split([self.width], dim=-1)
        following, q_values = links.softmax(-1).flatten(1, 2), rewards
        for _ in range(self.steps):
            q_values = rewards + self.discount(following @ q_values.amax(-2)).view(rewards.shape)
        return self.head(q_values).squeeze(-1), links


class Follower:
    """The oracle: replies to a leader's answers, by planning or by a network."""

    def __init__(self, args: Args):
        self.args, self.model = args, None
        if args.follower == "network":
            self.network = Network(args)
            self.target = AveragedModel(self.network, multi_avg_fn=get_ema_multi_avg_fn(0.95))
            self.optimizer = torch.optim.Adam(self.network.parameters(), lr=args.follower_learning_rate)

    @torch.no_grad()
    def q_values(self, tables: torch.Tensor) -> torch.Tensor:
        """[n, follower's observations, B], in units of `scale`, for tables [n, leader's observations]."""
        if self.args.follower == "planning":
            return follower_values(self.args, self.model, tables)[0]
        return self.target(tables, self.model)[0]  # it is steadier

    def learn(self, transitions: list[Transition], contexts: torch.Tensor, left: float) -> float:
        """Double Q-learning on transitions that are valid for leaders of `contexts` [n, leader's observations], which
        the network learns to predict, too; `left` is the share of rounds to come. Returns its loss."""
        self.optimizer.param_groups[0]["lr"] = self.args.follower_learning_rate * left**0.5
        columns = [torch.as_tensor(np.array(column)) for column in zip(*transitions, strict=True)]
        played, _, state, action, rewards, next_state, terminated = columns
        reward = (rewards[:, 1] / self.model.scale[1]).float()
        if not self.optimizer.state:  # begin at the level of all values, which is far from 0
            self.network.head.bias.data.fill_(reward.mean() / (1 - self.args.gamma * (1 - terminated.float().mean())))
            self.target.update_parameters(self.network)  # the first time it is copied
        for _ in range(self.args.follower_updates):
            i = torch.randint(len(transitions), (256 if self.args.hindsight else 64,))
            tables = contexts[torch.randint(len(contexts), (32,))] if self.args.hindsight else played[i]
            fits = tables[:, state[i, 0]] == action[i, 0] if self.args.hindsight else torch.eye(len(i))
            n, fitting = fits.nonzero(as_tuple=True)  # pairs of a table and a transition
            i, (q_values, links) = i[fitting], self.network(tables, self.model)
            with torch.no_grad():
                after = self.target(tables, self.model)[0].gather(-1, q_values.argmax(-1, keepdim=True)).squeeze(-1)
                target = reward[i] + self.args.gamma * after[n, next_state[i, 1]] * terminated[i].logical_not()
            cells = n, state[i, 1], action[i, 1]
            loss = F.mse_loss(q_values[cells], target) + F.cross_entropy(links[cells], next_state[i, 1])
            if not loss.isfinite():
                raise SystemExit("the follower's training diverged: lower --follower-learning-rate")
            self.optimizer.zero_grad()
            loss.backward()
            self.optimizer.step()
            self.target.update_parameters(self.network)
        return loss.item()


def train_leaders(args: Args, num_leaders: int, updates: int, returns_of, log=lambda *_: None):
    """Policy gradient of leaders side by side, from random ones; each tries whole tables, and one table is one episode.
    `returns_of` tables [n, observations] -> [n]. Returns the leaders' greedy tables, [num_leaders, observations], and
    their last batch. A table's weight is that of the gradient of log E[exp(5 * normalised return)]: seeking risk."""
    logits = nn.Parameter(0.01 * torch.randn(num_leaders, args.num_observations[0], args.num_actions[0]))
    optimizer = torch.optim.Adam([logits], lr=args.learning_rate, eps=1e-3)
    for _ in range(updates):
        policy = torch.distributions.Categorical(logits=logits, validate_args=False)
        tables = policy.sample((args.batch_size,))  # [batch, leaders, observations]
        returns = returns_of(tables.flatten(0, 1)).view(args.batch_size, num_leaders)
        advantages = (returns - returns.mean(dim=0)) / (returns.std(dim=0, correction=0) + 1e-3)
        advantages = args.batch_size * torch.softmax(5 * advantages, dim=0) - 1  # the best count most
        loss = -(advantages * policy.log_prob(tables).sum(-1)).mean(dim=0).sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        log(logits.argmax(-1), returns.mean().item())
    return logits.argmax(-1), tables.flatten(0, 1)


# --------------------------------------------------------------------------------------- the exact solution, proved
class Solution(NamedTuple):
    value: float  # the leader's mean payoff in an episode, by a follower that breaks ties for it
    strict: float | None  # the most of leaders that leave no ties on their path, if there are any
    leader_table: list[int]  # [1 + m n], the action at the start and after each pair of actions


def solve(args: Args, payoffs: np.ndarray | None = None) -> Solution | None:
    """Returns the optimum of deterministic memory-1 leaders against stationary discounted followers for payoffs [2, m,
    n], by default the game's: by the proof in exact_stackelberg.py a path over distinct actions into a cycle, of which
    all are tried. Returns None if they are too many."""
    leader, follower = args.payoffs if payoffs is None else payoffs
    rows, columns = leader.shape
    if sum(math.perm(rows, k) * k * columns**k for k in range(1, rows + 1)) > 3e7:
        return None
    stay = follower.max(axis=1) / (1 - args.gamma)  # the follower's value if the leader repeats an action
    best_other = np.where(np.eye(columns, dtype=bool), -math.inf, follower[:, None]).max(axis=2)
    value, strict, table, tie = -math.inf, -math.inf, None, 1e-9  # what rounding leaves of a tie
    for length, cycle in ((k, i) for k in range(1, rows + 1) for i in range(k)):
        step = np.eye(length)[[*range(1, length), cycle]]  # from each place of the path to the next
        discounted = np.linalg.inv(np.eye(length) - args.gamma * step)
        shares = sum(np.linalg.matrix_power(step, t)[0] for t in range(args.num_steps)) / args.num_steps
        replies = np.indices((columns,) * length).reshape(length, -1).T
        for path in map(list, itertools.permutations(range(rows), length)):
            values, returns = follower[path, replies] @ discounted.T, leader[path, replies] @ shares
            least = np.minimum(values.min(axis=1), np.delete(stay, path).min(initial=math.inf))
            margins = (values - best_other[path, replies] - args.gamma * least[:, None]).min(axis=1)
            strict = max(strict, returns[margins >= tie].max(initial=-math.inf))
            best = np.where(margins >= -tie, returns, -math.inf).argmax()
            if margins[best] >= -tie and returns[best] > value + tie:
                value, nodes = float(returns[best]), stay.copy()
                nodes[path] = values[best]
                answers = np.full(leader.shape, nodes.argmin())
                answers[path, replies[best]] = [*path[1:], path[cycle]]
                table = [path[0], *answers.ravel().tolist()]
    return Solution(value, float(strict) if strict > -math.inf else None, table)


# ------------------------------------------------------------------------------------------------------- measurement
def complete_model(args: Args) -> Model:
    """Returns the true model of a matrix game: that of all transitions there are."""
    steps, (_, rows, columns) = [], args.payoffs.shape
    for s, a, b in np.ndindex(1 + rows * columns, rows, columns):
        next_state, t = 2 * (1 + columns * a + b,), args.num_steps - 1 if s else 0
        steps.append(Transition(None, t, (s, s), (a, b), args.payoffs[:, a, b], next_state, False))
    return make_model(args, steps)


def measure(args: Args, model: Model, table: torch.Tensor, replies: torch.Tensor) -> dict[str, float]:
    """What both players get, and how much more each could have: in real episodes that do not count, per game step in
    matrix games, where one says all, else per episode. The follower's regret is on the model, discounted."""
    count, unit, share = (args.eval_episodes, 1, 1) if args.payoffs is None else (1, args.num_steps, 1 - args.gamma)
    episodes = [play(args, table, lambda state, _: replies[state[1]], 10**6 + k) for k in range(count)]
    leader, follower = np.mean([np.sum([t.rewards for t in episode], axis=0) for episode in episodes], axis=0) / unit
    (_, best), (_, own) = (follower_values(args, model, table[None], given) for given in (None, replies[None]))
    regret = (best - own)[0, model.states[:, 1]] @ model.start * model.scale[1] * share
    found = {"leader_return_greedy": leader, "follower_return": follower, "follower_regret": regret}
    if args.optimum is not None:
        found |= {"stackelberg_value": args.optimum.value, "leader_regret": args.optimum.value - leader}
    return {name: float(value) for name, value in found.items()}


def steps_to_converge(steps: np.ndarray, gaps: np.ndarray) -> int | None:
    """Returns the first of the steps from which on the gaps stay within the tolerance, or None."""
    stays = np.logical_and.accumulate(abs(gaps[::-1]) <= TOLERANCE)[::-1]
    return int(steps[stays.argmax()]) if stays.any() else None


# ------------------------------------------------------------------------------------------------------------- the run
def start_run(args: Args) -> tuple[str, SummaryWriter]:
    """Makes the run's folder and the writer of its curves; starts Weights and Biases if asked for."""
    run_name = f"{args.env_id}__{args.exp_name}__{args.seed}__{int(1000 * time.time())}"
    os.makedirs(f"{args.run_dir}/{run_name}")
    if args.track:
        import wandb

        # dir: in the run's own folder, W&B would take its links to the event files for new ones and send them again
        names = {"project": args.wandb_project_name, "entity": args.wandb_entity, "name": run_name}
        wandb.init(**names, dir=args.run_dir, config=asdict(args), sync_tensorboard=True, save_code=True)
    writer = SummaryWriter(f"{args.run_dir}/{run_name}")
    flags = "\n".join(f"|{flag}|{value}|" for flag, value in asdict(args).items())
    writer.add_text("hyperparameters", f"|param|value|\n|-|-|\n{flags}")
    returns = ["charts/leader_return", "charts/leader_return_greedy", "charts/stackelberg_value"]
    writer.add_custom_scalars({"returns": {"leader and optimum": ["Multiline", returns]}})
    return f"{args.run_dir}/{run_name}", writer


def main(args: Args) -> dict:
    """Explores, learns and measures in rounds; then verifies the equilibrium. Returns what it writes to result.json."""
    torch.set_num_threads(1)  # a thread pool costs more than it gives with models of this size
    torch.manual_seed(args.seed)
    start_time, start_cpu = time.time(), time.process_time()
    run_path, writer = start_run(args)
    experience, follower, curve, known = Experience(args), Follower(args), [], {}
    true_model, unit = (None, 1) if args.payoffs is None else (complete_model(args), args.num_steps)
    near, best, champions = (torch.randint(args.num_actions[0], (n, args.num_observations[0])) for n in (256, 0, 1))
    learning = args.rounds if args.follower_learns_on else max(args.rounds // 2, 1)  # rounds of the follower
    end = args.rounds - args.rounds // 4 * (args.follower == "network" and args.follower_learns_on and args.imagination)

    def real_returns(tables: torch.Tensor) -> torch.Tensor:
        pairs = zip(tables.numpy(), follower.q_values(tables).argmax(-1).tolist(), strict=True)
        return torch.tensor([experience.play(table, lambda s, _, own=own: own[s[1]]) for table, own in pairs])

    def imagined_returns(tables: torch.Tensor) -> torch.Tensor:
        keys = [tuple(table) for table in tables.tolist()]
        if new := list(dict.fromkeys(key for key in keys if key not in known)):
            q_values = follower.q_values(torch.tensor(new))
            ties = q_values >= q_values.amax(-1, keepdim=True) - margin
            returns = imagine(model, torch.tensor(new), ties) * model.scale[0]
            known.update(zip(new, returns.round(decimals=9).tolist(), strict=True))  # what rounding leaves of a tie
        return torch.tensor([known[key] for key in keys], dtype=torch.float64)

    def log(table: torch.Tensor, exploring: float) -> None:
        found = measure(args, true_model or model, table, follower.q_values(table[None])[0].argmax(-1))
        curve.append([experience.steps, found["leader_return_greedy"], exploring])
        found |= {"leader_return": exploring, "SPS": int(experience.steps / (time.time() - start_time))}
        for name, value in found.items():
            writer.add_scalar(f"charts/{name}", value, experience.steps)

    for k in tqdm(range(1, args.rounds + 1), desc="rounds", leave=False, disable=None):
        while experience.steps < args.total_timesteps * (1 if args.imagination else 0.5) * k / args.rounds:
            experience.explore()
        follower.model = model = make_model(args, experience.transitions)
        if args.follower == "network" and k <= learning:
            tables = torch.cat([near, best.repeat(8, 1)]).repeat(8, 1)  # and as many random ones, but in the end
            habits = torch.distributions.Dirichlet(torch.full((args.num_actions[0],), 0.5)).sample((len(tables),))
            tables = torch.cat([tables, torch.multinomial(habits, args.num_observations[0], True)])
            loss = follower.learn(experience.transitions, tables if k <= end else champions, 1 - (k - 1) / learning)
            writer.add_scalar("losses/follower_td_loss", loss, experience.steps)
        if args.imagination and (args.follower_learns_on or k >= learning):
            known.clear()
            margin = 1e-6 if args.follower == "planning" else args.margin * (1 - (k - 1) / args.rounds)
            champions = champions[imagined_returns(champions).argsort()]  # the follower has learned about them
            if args.leader == "solver":
                seen = model.tried + 1e-9  # of pairs that were never tried the least that was seen
                near = torch.tensor([solve(args, ((model.rewards * seen).sum(1) / seen.sum(0)).numpy()).leader_table])
            elif k <= end:  # of the search; then the best of all rounds meet in a final
                _, near = train_leaders(args, args.num_leaders, args.leader_updates, imagined_returns)
            exploring = imagined_returns(near).mean().item() / unit
            best = torch.tensor([*{known[key]: key for key in sorted(known, key=known.get)}.values()][-32:])
            table = champions[-1] if args.follower == "network" else near[0] if args.leader == "solver" else best[-1]
            log(table, exploring)
            champions = torch.cat([best, champions]).unique(dim=0) if k <= end else champions[len(champions) // 2 :]
    if not args.imagination:
        episode = args.num_observations[0] + model.horizon
        updates = max((args.total_timesteps - experience.steps) // (args.batch_size * episode), 1)
        (table,), _ = train_leaders(args, 1, updates, real_returns, lambda tables, mean: log(tables[0], mean / unit))

    points, greedy, exploring = np.array(curve).T
    replies = follower.q_values(table[None])[0].argmax(-1)
    result = {"script": os.path.basename(__file__), "env_id": args.env_id, "seed": args.seed, "args": asdict(args)}
    unknown = "stackelberg_value stackelberg_value_strict leader_regret steps_to_converge steps_to_converge_exploring"
    result |= dict.fromkeys(f"{unknown} steps_to_try_all".split()) | {"optimum_of": "not known"}
    result |= measure(args, true_model or model, table, replies)
    result |= {"leader_policy": table.tolist(), "follower_policy": replies.tolist()}
    result |= {"combined_steps": experience.steps, "triples_tried": len(experience.tried)}
    result["leader_return"] = exploring[-math.ceil(len(curve) / 10) :].mean()  # in imagined episodes, if there are any
    if true_model and true_model.tried.numel() == len(experience.tried):
        result["steps_to_try_all"] = experience.steps_to_try_all
    if args.optimum is not None:
        leaders = f"the mean over {args.num_steps} steps of deterministic memory-1 leaders"
        result["optimum_of"] = f"{leaders} against stationary followers discounted by {args.gamma}"
        result["stackelberg_value_strict"] = args.optimum.strict
        scale = np.ptp(args.payoffs[0]) / 3 or 1.0
        for name, returns in (("steps_to_converge", greedy), ("steps_to_converge_exploring", exploring)):
            result[name] = steps_to_converge(points, (returns - args.optimum.value) / scale)

    for _ in range(args.eval_episodes):  # the follower learns on against the final leader
        experience.explore(table.numpy())
    follower.model = model = make_model(args, experience.transitions)
    if args.follower == "network":
        follower.learn(experience.transitions, table[None], 1 / args.rounds)
    after = measure(args, true_model or model, table, follower.q_values(table[None])[0].argmax(-1))
    result["verification_gain"] = after["follower_return"] - result["follower_return"]

    result |= {"curve": curve, "wall_seconds": time.time() - start_time, "cpu_seconds": time.process_time() - start_cpu}
    result["steps_per_second"] = result["combined_steps"] / result["wall_seconds"]
    writer.close()
    finish(result, args, run_path)
    return result


def finish(result: dict, args: Args, run_path: str) -> None:
    """Writes result.json, of which nobody ever meets half, and says in words what was found."""
    with open(f"{run_path}/result.json.tmp", "w") as file:
        json.dump(result, file)
    os.replace(f"{run_path}/result.json.tmp", f"{run_path}/result.json")
    unit, scope = ("per episode", "; on the means of what was seen") if args.env_file else ("per game step", "")
    optimum = "" if args.optimum is None else f"{args.optimum.value:.3f}, "
    print(f"""
{result["env_id"]}: after {result["combined_steps"]:,} combined steps
  leader's return    {result["leader_return_greedy"]:.3f} {unit}, greedy
  optimum            {optimum}{result["optimum_of"]}
  leader's policy    {result["leader_policy"]} in its observations
  follower's reply   {result["follower_policy"]}; learning on, it gains {result["verification_gain"]:.3f}
  follower's regret  {result["follower_regret"]:.3f}, discounted{scope}
  curves             tensorboard --logdir {os.path.dirname(run_path)}
  result             {run_path}/result.json""")


if __name__ == "__main__":
    main(tyro.cli(Args, description=__doc__))
