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
with this action, not only for the one that was playing. Relabelled with all of them, each such transition need be seen
about once: 20 in a 2 x 2 game, where there are 32 leaders to try, and 90 in a 3 x 3 game, where there are 59,049. The
same transitions give the leader imagined episodes, the queries and then the game against the follower's replies, which
cost no steps of the environment. Real episodes try what was tried least.

`--follower planning` has no weights: value iteration on the means of what was seen, for the leader's answers.
`--follower network` is Q-learning with a network on relabelled transitions, for games too large for a table.
"""

import importlib.util
import itertools
import json
import math
import os
import time
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
from torch.distributions.categorical import Categorical
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
    save_model: bool = False
    """save both policies as model.pt in the run's folder"""
    run_dir: str = "runs"
    """folder that the run's own folder is made in"""

    env_id: str = "prisoners_dilemma"
    """a game of the paper's Table 3, as they are named below (`PAYOFFS`)"""
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
    """combined environment steps, queries included; default: 10 for each (observation, leader's action, follower's
    action), without imagination 1,000"""
    rounds: int = 20
    """so often, evenly over the steps, follower and leader learn from what was seen"""

    follower: Literal["planning", "network"] = "planning"
    """planning: value iteration on the table of what was seen; network: Q-learning, the context as an input"""
    gamma: float = 0.9
    """discount of the follower, which sees no clock and so takes the end of a matrix game for no terminal state"""
    hindsight: bool = True
    """network: relabel transitions with other leaders; off: learn from them as they were played"""
    follower_learns_on: bool = True
    """network: learn while the leader does, half of the time about leaders like it; off: the follower learns in the
    first half of all rounds, and the leader in the second"""
    follower_updates: int = 300
    """network: gradient steps in each round"""
    follower_batch_size: int = 256
    """network: transitions in each gradient step"""
    follower_learning_rate: float = 1e-3
    """network: Adam's learning rate"""
    verification_episodes: int = 20
    """real episodes in which the follower learns on against the final leader; they do not count"""

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
    risk_seeking: float = 5.0
    """a table weighs exp(risk_seeking * its return in standard deviations), so that the best of a batch count most"""
    ent_coef: float = 0.05
    """first coefficient of the leader's entropy bonus, which decays to 0 in each round"""
    eval_episodes: int = 100
    """your own game: episodes of every evaluation; they do not count"""

    def __post_init__(self):
        may_be_zero = {"seed", "risk_seeking", "ent_coef", "verification_episodes"}
        for flag, value in asdict(self).items():
            if type(value) in (int, float) and not (0 < value < math.inf or (value == 0 and flag in may_be_zero)):
                raise ValueError(f"--{flag.replace('_', '-')} must be positive, got {value}")
        if self.gamma >= 1:
            raise ValueError(f"--gamma must be less than 1, got {self.gamma}")
        if self.follower == "planning" and not (self.hindsight and self.follower_learns_on):
            raise ValueError("a follower that plans learns in hindsight and learns on: add --follower network")
        if self.env_file is None and self.leader_agent is not None:
            raise ValueError("--leader-agent is for --env-file: in matrix games the rows lead")
        if self.env_file is not None:
            self.env, self.payoffs, self.env_id = load_env(self.env_file), None, self.env_file.rpartition(":")[2]
            if self.leader == "solver":
                raise ValueError("--leader solver knows matrix games alone")
        else:
            self.payoffs = payoffs_of(self)
            self.env = MatrixGame(self.payoffs, self.num_steps)
            if self.random_game is not None:
                self.env_id = "random_{0}x{0}_{1}".format(*self.random_game)
            elif self.leader_payoff:
                self.env_id = "custom"
        agents = self.env.possible_agents
        self.leader_agent = agents[0] if self.leader_agent is None else self.leader_agent
        if self.leader_agent not in agents:
            raise ValueError(f"no agent {self.leader_agent!r} to lead: choose from {', '.join(map(str, agents))}")


# ---------------------------------------------------------------------------------------------------------- the game
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
    """Returns the game's payoffs, [player, leader's action, follower's action]; player 0 is the leader.
    Raises ValueError if the flags give none."""
    if args.random_game is not None:
        actions, number = args.random_game
        if actions < 1 or number < 0:
            raise ValueError(f"--random-game needs the number of actions and the game's, got {actions} and {number}")
        return np.random.default_rng(number).random((2, actions, actions))
    if args.leader_payoff or args.follower_payoff:
        size = len(args.leader_payoff)
        rows = args.leader_actions or math.isqrt(size)
        if not (0 < size == len(args.follower_payoff) and rows > 0 and size % rows == 0):
            raise ValueError("--leader-payoff, --follower-payoff: as many of each, a square or --leader-actions rows")
        return np.array([args.leader_payoff, args.follower_payoff], dtype=np.float64).reshape(2, rows, -1)
    if args.env_id not in PAYOFFS:
        raise ValueError(f"no game {args.env_id!r}: choose from {', '.join(PAYOFFS)}, or give your own payoffs")
    return np.array([PAYOFFS[args.env_id], np.transpose(PAYOFFS[args.env_id])], dtype=np.float64)


class MatrixGame(ParallelEnv):
    """An iterated m x n game of `num_steps` steps, in which both players observe the last pair of actions.

    Payoffs are [player, leader's action, follower's action]. Observation 0 is the start, 1 + n a + b the pair (a, b).
    """

    metadata = {"name": "iterated_matrix_game"}  # noqa: RUF012

    def __init__(self, payoffs: np.ndarray, num_steps: int = 10):
        self.payoffs, self.num_steps = payoffs, num_steps
        self.possible_agents = ["leader", "follower"]
        _, rows, columns = payoffs.shape
        self.spaces = gym.spaces.Discrete(1 + rows * columns), (gym.spaces.Discrete(rows), gym.spaces.Discrete(columns))

    def observation_space(self, agent: str) -> gym.spaces.Discrete:
        """The start, and each pair of actions."""
        return self.spaces[0]

    def action_space(self, agent: str) -> gym.spaces.Discrete:
        """The rows for the leader, the columns for the follower."""
        return self.spaces[1][self.possible_agents.index(agent)]

    def reset(self, seed: int | None = None, options: dict | None = None) -> tuple[dict, dict]:
        """Starts an episode."""
        self.agents, self.t = self.possible_agents[:], 0
        return dict.fromkeys(self.agents, 0), {agent: {} for agent in self.agents}

    def step(self, actions: dict) -> tuple[dict, dict, dict, dict, dict]:
        """Both act at once; the episode is cut off after `num_steps`."""
        agents, pair = self.agents, (int(actions["leader"]), int(actions["follower"]))
        self.t += 1
        rewards = dict(zip(agents, self.payoffs[(slice(None), *pair)].tolist(), strict=True))
        observations = dict.fromkeys(agents, 1 + self.payoffs.shape[2] * pair[0] + pair[1])
        truncations = dict.fromkeys(agents, self.t == self.num_steps)
        if self.t == self.num_steps:
            self.agents = []
        return observations, rewards, dict.fromkeys(agents, False), truncations, {agent: {} for agent in agents}


def load_env(env_file: str) -> ParallelEnv:
    """Returns the user's own game. Raises ValueError with what would fit if it does not."""
    path, _, function = env_file.rpartition(":")
    try:
        spec = importlib.util.spec_from_file_location("own_game", path)
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        env = getattr(module, function)()
        agents = env.possible_agents
        assert len(agents) == 2, f"it has {len(agents)} agents; two are needed, the leader and the follower"
        for agent in agents:
            for space in (env.observation_space(agent), env.action_space(agent)):
                fits = isinstance(space, gym.spaces.Discrete) and space.start == 0
                assert fits, f"{agent} has the space {space}; Discrete(n) is needed for observations and actions"
        env.reset(seed=0)
        for _ in range(1000):
            assert len(env.agents) in (0, 2), "an agent leaves early; both must stay until the end"
            if env.agents:
                env.step({agent: 0 for agent in env.agents})
        parallel_api_test(env, num_cycles=100)
    except Exception as error:  # whatever the user's file raises
        raise ValueError(f"--env-file {env_file!r} does not fit: {error or type(error).__name__}") from error
    return env


# -------------------------------------------------------------------------------------------- episodes and experience
class Transition(NamedTuple):
    """A step of a real episode; a state is what both players observe, (leader, follower)."""

    t: int
    state: tuple[int, int]
    actions: tuple[int, int]
    rewards: tuple[float, float]
    next_state: tuple[int, int]
    terminated: bool


class Game:
    """A ParallelEnv as leader and follower see it: how many observations and actions they have, and its episodes."""

    def __init__(self, env: ParallelEnv, leader: str):
        self.env, self.agents = env, sorted(env.possible_agents, key=lambda agent: agent != leader)
        self.num_observations = [int(env.observation_space(agent).n) for agent in self.agents]
        self.num_actions = [int(env.action_space(agent).n) for agent in self.agents]

    def play(self, table: np.ndarray, reply, seed: int) -> list[Transition]:
        """An episode in which the leader plays its table [its observations], the follower `reply(state, action)`.

        A deterministic leader's answers to the queries are its table: they are not stepped through, but counted.
        """
        observations, _ = self.env.reset(seed=seed)
        state, episode, done = tuple(int(observations[agent]) for agent in self.agents), [], False
        while not done:
            a = int(table[state[0]])
            actions = a, int(reply(state, a))
            step = self.env.step(dict(zip(self.agents, actions, strict=True)))
            observations, rewards, terminated, truncated = ([of[agent] for agent in self.agents] for of in step[:4])
            next_state = tuple(map(int, observations))
            episode.append(Transition(len(episode), state, actions, tuple(rewards), next_state, terminated[0]))
            state, done = next_state, terminated[0] or truncated[0]
        return episode


class Experience:
    """All real transitions so far, the leader's table in each, and how often what was tried."""

    def __init__(self, game: Game):
        self.game, self.transitions, self.tables = game, [], []
        self.answered, self.tried = Counter(), Counter()  # (leader's observation, action), and (state, both actions)

    def add(self, episode: list[Transition], table: np.ndarray) -> bool:
        """Adds an episode; returns whether something was tried for the first time."""
        before = len(self.tried)
        self.transitions += episode
        self.tables += [table] * len(episode)
        self.answered.update((t.state[0], t.actions[0]) for t in episode)
        self.tried.update((t.state, *t.actions) for t in episode)
        return len(self.tried) > before

    def least_tried(self, rng: np.random.Generator):
        """Returns the leader's table, and the replies to it, that were tried least; ties by chance."""
        rows, columns = map(range, self.game.num_actions)
        observations = range(self.game.num_observations[0])
        table = [min(rows, key=lambda a: (self.answered[o, a], rng.random())) for o in observations]
        return np.array(table), lambda s, a: min(columns, key=lambda b: (self.tried[s, a, b], rng.random()))


class Model(NamedTuple):
    """Means of transitions for each of S states, A leader's and B follower's actions, with up to k next states."""

    leader_observation: torch.Tensor  # [S]
    follower_observation: torch.Tensor  # [S + 1], the last one is the end
    tried: torch.Tensor  # [S, A, B]
    rewards: torch.Tensor  # [2, S, A, B] in units of `scale`; of what was not tried the least that was seen
    next_state: torch.Tensor  # [S, A, B, k]
    probability: torch.Tensor  # [S, A, B, k]
    start: torch.Tensor  # [S + 1], probabilities
    horizon: int  # steps of the longest episode
    scale: np.ndarray  # [2], the range of rewards


def make_model(game: Game, transitions: list[Transition]) -> Model:
    """Returns the means of all that was seen."""
    states = dict.fromkeys(state for t in transitions for state in (t.state, t.next_state))
    states = {state: s for s, state in enumerate(states)}
    end, shape = len(states), (len(states), *game.num_actions)
    cells = np.array([(states[t.state], *t.actions) for t in transitions])
    after = [end if t.terminated else states[t.next_state] for t in transitions]
    outcomes, counts = np.unique(np.column_stack([cells, after]), axis=0, return_counts=True)
    tried = np.zeros(shape)
    np.add.at(tried, tuple(cells.T), 1)

    # outcomes of one cell stand together: the place of each among them is its k
    first = np.append(True, (outcomes[1:, :3] != outcomes[:-1, :3]).any(axis=1))
    place = np.arange(len(outcomes)) - np.flatnonzero(first)[np.cumsum(first) - 1]
    next_state, probability = np.full((*shape, place.max() + 1), end), np.zeros((*shape, place.max() + 1))
    next_state[(*outcomes[:, :3].T, place)] = outcomes[:, 3]
    probability[(*outcomes[:, :3].T, place)] = counts / tried[tuple(outcomes[:, :3].T)]

    rewards, scale = np.zeros((2, *shape)), np.zeros(2)
    for player, received in enumerate(np.array([t.rewards for t in transitions]).T):
        scale[player] = np.ptp(received) or 1.0
        np.add.at(rewards[player], tuple(cells.T), received)
        rewards[player] = np.where(tried > 0, rewards[player] / np.maximum(tried, 1), received.min()) / scale[player]
    observations = np.array([*states, (0, game.num_observations[1])])
    start = np.bincount([states[t.state] for t in transitions if t.t == 0], minlength=end + 1)
    tried, rewards, probability, start = (
        torch.tensor(x, dtype=torch.float32) for x in (tried, rewards, probability, start / start.sum())
    )
    seen = torch.tensor(observations[:-1, 0]), torch.tensor(observations[:, 1])
    horizon = 1 + max(t.t for t in transitions)
    return Model(*seen, tried, rewards, torch.tensor(next_state), probability, start, horizon, scale)


# ------------------------------------------------------------------------------------------------ planning on the model
def follower_values(model: Model, tables: torch.Tensor, gamma: float, replies: torch.Tensor | None = None):
    """Value iteration for leaders' tables [n, leader's observations]: the follower's Q-values [n, its observations, B],
    minus infinity where nothing was tried, and values; of its best replies, or of those given, [n, its observations].

    All transitions count that such a leader could have brought, by how often they were seen. That is exact where the
    follower sees what the leader sees, and it is a Markov state; else it is the best reply to what was seen.
    """
    n, states = len(tables), torch.arange(len(model.leader_observation))
    actions = tables[:, model.leader_observation]
    tried, reward = model.tried[states, actions], model.rewards[1][states, actions]  # [n, S, B]
    probability = model.probability[states, actions]  # [n, S, B, k]
    following = model.follower_observation[model.next_state[states, actions]]
    observation, end = model.follower_observation[:-1], int(model.follower_observation[-1])
    least = float(model.rewards[1].min()) / (1 - gamma)  # what an observation is worth in which nothing was tried
    total = torch.zeros(n, end, tried.shape[-1]).index_add_(1, observation, tried)
    values = torch.zeros(n, end + 1)  # 0 at the end
    for _ in range(math.ceil(math.log(1e-4 * (1 - gamma)) / math.log(gamma))):
        after = (probability * values.gather(1, following.flatten(1)).view(following.shape)).sum(-1)
        weighted = torch.zeros(total.shape).index_add_(1, observation, tried * (reward + gamma * after))
        q_values = torch.where(total > 0, weighted / total, -torch.inf)
        best = q_values.amax(-1) if replies is None else q_values.gather(2, replies[..., None]).squeeze(2)
        best = best.clamp(min=least)
        change = (best - values[:, :-1]).abs().max()
        values[:, :-1] = best
        if change < 1e-5:
            break
    return q_values, values[:, :-1]


def imagine(model: Model, tables: torch.Tensor, replies: torch.Tensor) -> torch.Tensor:
    """Both players' expected returns [2, n] in imagined episodes, in units of `scale`, for tables [n, leader's
    observations] and replies [n, follower's observations]. What was not tried ends an episode."""
    n, states = len(tables), torch.arange(len(model.leader_observation))
    a, b = tables[:, model.leader_observation], replies[:, model.follower_observation[:-1]]  # [n, S]
    rewards, probability = model.rewards[:, states, a, b], model.probability[states, a, b]
    following = model.next_state[states, a, b].flatten(1)
    here, returns = model.start.expand(n, -1), torch.zeros(2, n)
    for _ in range(model.horizon):
        returns += (here[:, :-1] * rewards).sum(-1)
        flow = (here[:, :-1, None] * probability).flatten(1)
        here = torch.zeros(n, len(states) + 1).scatter_add_(1, following, flow)
    return returns


# ------------------------------------------------------------------------------------------------------- the follower
class FollowerNetwork(nn.Module):
    """Q-values of the follower's actions: context and observation as one-hot inputs."""

    def __init__(self, game: Game):
        super().__init__()
        self.sizes = game.num_actions[0], game.num_observations[1]
        size = game.num_observations[0] * game.num_actions[0] + game.num_observations[1]
        hidden = nn.Linear(size, 256), nn.ReLU(), nn.Linear(256, 256), nn.ReLU()
        self.layers = nn.Sequential(*hidden, nn.Linear(256, game.num_actions[1]))

    def forward(self, context: torch.Tensor, observation: torch.Tensor) -> torch.Tensor:
        """The leader's table [n, leader's observations] and the observation [n] -> [n, B]."""
        answers = F.one_hot(context, self.sizes[0]).flatten(1)
        return self.layers(torch.cat([answers, F.one_hot(observation, self.sizes[1])], 1).float())


class Follower:
    """The oracle: replies to a leader's answers, by planning or by a network."""

    def __init__(self, game: Game, args: Args):
        self.args, self.game, self.model = args, game, None
        if args.follower == "network":
            self.network, self.target = FollowerNetwork(game), FollowerNetwork(game)
            self.target.load_state_dict(self.network.state_dict())
            self.optimizer = torch.optim.Adam(self.network.parameters(), lr=args.follower_learning_rate)

    @torch.no_grad()
    def replies(self, tables: torch.Tensor) -> torch.Tensor:
        """The greedy reply to each observation, [n, follower's observations], for tables [n, leader's observations]."""
        if self.args.follower == "planning":
            return follower_values(self.model, tables, self.args.gamma)[0].argmax(-1)
        num = self.game.num_observations[1]
        q_values = self.network(tables.repeat_interleave(num, 0), torch.arange(num).repeat(len(tables)))
        return q_values.argmax(-1).view(-1, num)

    def learn(self, experience: Experience, model: Model, near: torch.Tensor) -> float | None:
        """Double Q-learning on relabelled transitions; half of the leaders are random, half are from `near`, [n,
        leader's observations]. Returns the last loss; a follower that plans has none."""
        self.model, args = model, self.args
        if args.follower == "planning":
            return None
        transitions = experience.transitions
        seen, observation, answer, action, following, terminated = torch.tensor(
            [(*t.state, *t.actions, t.next_state[1], t.terminated) for t in transitions]
        ).unbind(1)
        reward = torch.tensor([t.rewards[1] for t in transitions]) / float(model.scale[1])
        played = torch.as_tensor(np.stack(experience.tables))
        for _ in range(args.follower_updates):
            i = torch.randint(len(transitions), (args.follower_batch_size,))
            context = played[i]
            if args.hindsight:
                context = torch.randint(self.game.num_actions[0], context.shape)
                context[::2] = near[torch.randint(len(near), (len(context[::2]),))]
                context[torch.arange(len(i)), seen[i]] = answer[i]
            with torch.no_grad():
                best = self.network(context, following[i]).argmax(-1, keepdim=True)
                after = self.target(context, following[i]).gather(1, best).squeeze(1)
                target = reward[i] + args.gamma * after * (1 - terminated[i])
            q_value = self.network(context, observation[i]).gather(1, action[i, None]).squeeze(1)
            loss = F.mse_loss(q_value, target)
            if not loss.isfinite():
                raise SystemExit("the follower's training diverged: lower --follower-learning-rate")
            self.optimizer.zero_grad()
            loss.backward()
            self.optimizer.step()
            for slow, fast in zip(self.target.parameters(), self.network.parameters(), strict=True):
                slow.data.lerp_(fast.data, 0.01)
        return loss.item()


# --------------------------------------------------------------------------------------------------------- the leader
def train_leaders(game: Game, args: Args, num_leaders: int, updates: int, returns_of, log=lambda *_: None):
    """Policy gradient of leaders side by side, from random ones; each tries whole tables, and one table is one episode.

    `returns_of` tables [n, observations] -> [n]. Returns the best table that each leader tried and its greedy one, both
    [num_leaders, observations], and the last batch, [n, observations]. A table's weight is that of the gradient of
    log E[exp(risk_seeking * return)].
    """
    logits = nn.Parameter(0.01 * torch.randn(num_leaders, game.num_observations[0], game.num_actions[0]))
    optimizer = torch.optim.Adam([logits], lr=args.learning_rate, eps=1e-3)
    best_returns, best = torch.full((num_leaders,), -torch.inf), logits.argmax(-1)
    for update in range(updates):
        policy = Categorical(logits=logits, validate_args=False)
        tables = policy.sample((args.batch_size,))  # [batch, leaders, observations]
        returns = returns_of(tables.flatten(0, 1)).view(args.batch_size, num_leaders)
        top = returns.max(dim=0)
        best = torch.where((top.values > best_returns)[:, None], tables[top.indices, torch.arange(num_leaders)], best)
        best_returns = torch.maximum(best_returns, top.values)

        advantages = (returns - returns.mean(dim=0)) / (returns.std(dim=0, correction=0) + 1e-3)
        if args.risk_seeking:
            advantages = args.batch_size * torch.softmax(args.risk_seeking * advantages, dim=0) - 1  # their mean is 0
        pg_loss = -(advantages * policy.log_prob(tables).sum(-1)).mean(dim=0).sum()
        ent_coef = args.ent_coef * (1 - update / updates)
        loss = pg_loss - ent_coef * policy.entropy().sum()
        if not loss.isfinite():
            raise SystemExit("the leader's training diverged: lower --learning-rate")
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        log(logits.argmax(-1), returns.mean().item())
    return best, logits.argmax(-1), tables.flatten(0, 1)


# --------------------------------------------------------------------------------------- the exact solution, proved
TIE = 1e-9  # what rounding leaves of a tie


class Solution(NamedTuple):
    """An optimum and the argument for it."""

    value: float  # the leader's mean payoff per step, discounted or over the horizon
    follower_value: float  # the follower's discounted mean
    leader_table: list[int]  # [1 + m n]: the action at the start, and after each pair of actions
    follower_table: list[int]  # [1 + m n]: the reply in the same observations
    path: list[tuple[int, int]]  # pairs of actions as they are played, each leader action once
    cycle: int  # the path's place that play returns to after its end
    threat: int  # the leader's action after every other pair
    margins: list[float]  # [path]: what the best deviation in each place costs the follower, in discounted payoff


def frontier(payoffs: np.ndarray):
    """Returns the function from a follower's mean to the most that the leader can have with at least that: the upper
    right edge of the convex hull of the payoff pairs; minus infinity beyond the follower's largest payoff."""
    corners = []  # from the follower's best to the leader's best
    for follower, leader in sorted(zip(*payoffs[::-1].reshape(2, -1).tolist(), strict=True), reverse=True):
        if corners and leader <= corners[-1][1]:
            continue
        while len(corners) > 1:
            (f0, l0), (f1, l1) = corners[-2:]
            if (l1 - l0) * (f0 - follower) > (leader - l0) * (f0 - f1):
                break
            corners.pop()  # it lies below the line between its neighbours
        corners.append((follower, leader))
    means, values = zip(*reversed(corners), strict=True)
    return lambda mean: np.interp(mean, means, values) if mean <= means[-1] + TIE else -math.inf


def discounted(payoff: list[list[float]], path: list[tuple[int, int]], cycle: int, gamma: float) -> list[float]:
    """Returns a player's discounted payoff from each place of a path on."""
    value = sum(gamma**t * payoff[a][b] for t, (a, b) in enumerate(path[cycle:])) / (1 - gamma ** (len(path) - cycle))
    values = []
    for a, b in reversed(path):
        value = payoff[a][b] + gamma * value
        values.append(value)
    return values[::-1]


def solve(payoffs: np.ndarray, gamma: float = 0.9, horizon: int | None = None, strict: bool = False) -> Solution | None:
    """Returns the optimum for payoffs [2, m, n]: depth-first search with a bound over the paths of the docstring.

    `horizon`: the leader's mean over so many steps instead of the discounted one. `strict`: unique best replies only;
    None if no leader leaves the follower one.
    """
    leader, follower = payoffs.tolist()
    rows, columns = range(payoffs.shape[1]), range(payoffs.shape[2])
    stay = [max(follower[a]) / (1 - gamma) for a in rows]  # the follower's value if the leader repeats an action
    other = [[max((follower[a][c] for c in columns if c != b), default=-math.inf) for b in columns] for a in rows]
    most, largest, margin = frontier(payoffs), payoffs[0].max(), TIE if strict else -TIE
    best = None

    def close(path: list[tuple[int, int]], cycle: int) -> Solution | None:
        """Returns the path that returns to its place `cycle`, if the follower keeps to it."""
        values = discounted(follower, path, cycle, gamma)
        nodes = dict(enumerate(stay)) | {a: value for (a, _), value in zip(path, values, strict=True)}
        threat = min(nodes, key=nodes.get)
        margins = [v - other[a][b] - gamma * nodes[threat] for v, (a, b) in zip(values, path, strict=True)]
        if min(margins) < margin:
            return None
        if horizon is None:
            mean = (1 - gamma) * discounted(leader, path, cycle, gamma)[0]
        else:
            played = itertools.islice(itertools.chain(path, itertools.cycle(path[cycle:])), horizon)
            mean = sum(leader[a][b] for a, b in played) / horizon
        return Solution(mean, (1 - gamma) * values[0], [], [], path, cycle, threat, margins)

    def extend(path: list[tuple[int, int]], needed: float, payoff: float):
        """Tries every next pair, the best bound first. `needed`: what the follower must have from here on, discounted
        to here; `payoff`: what the leader has had."""
        nonlocal best
        k, extensions = len(path), []
        for a in set(rows) - {a for a, _ in path}:
            for b in columns:
                rest = (max(needed, other[a][b] + gamma * min(stay)) - follower[a][b]) / gamma
                bound = most((1 - gamma) * rest)
                if horizon is None:
                    so_far = payoff + (1 - gamma) * gamma**k * leader[a][b]
                    bound = so_far + gamma ** (k + 1) * bound
                else:
                    so_far = payoff + (leader[a][b] / horizon if k < horizon else 0.0)
                    bound = -math.inf if bound == -math.inf else so_far + max(1 - (k + 1) / horizon, 0.0) * largest
                extensions.append((bound, a, b, rest, so_far))
        for bound, a, b, rest, so_far in sorted(extensions, reverse=True):
            if best is not None and bound <= best.value + TIE:
                return
            longer = [*path, (a, b)]
            for cycle in range(k + 1):
                solution = close(longer, cycle)
                if solution and (best is None or solution.value > best.value + TIE):
                    best = solution
            extend(longer, rest, so_far)

    extend([], -math.inf, 0.0)
    return best and best._replace(**tables(best, payoffs[1]))


def tables(solution: Solution, follower_payoff: np.ndarray) -> dict[str, list[int]]:
    """Writes a path and its threat out as both players' tables, in the order start, (0, 0), (0, 1), ..."""
    path, (rows, columns) = solution.path, follower_payoff.shape
    leader = np.full((rows, columns), solution.threat)
    for pair, (action, _) in zip(path, [*path[1:], path[solution.cycle]], strict=True):
        leader[pair] = action
    # Off the path every answer is the threat, so the follower plays for the moment.
    replies = follower_payoff.argmax(axis=1)
    for action, reply in path:
        replies[action] = reply
    leader = [path[0][0], *leader.ravel().tolist()]
    return {"leader_table": leader, "follower_table": replies[leader].tolist()}


# ------------------------------------------------------------------------------------------------------- measurement
def complete_model(game: Game) -> Model:
    """Returns the true model of a matrix game."""
    payoffs, num_steps = game.env.payoffs, game.env.num_steps
    pairs = list(itertools.product(range(payoffs.shape[1]), range(payoffs.shape[2])))
    transitions = []
    for s, (reached, pair) in itertools.product(range(1 + len(pairs)), enumerate(pairs, start=1)):
        rewards, t = tuple(payoffs[:, *pair].tolist()), 0 if s == 0 else num_steps - 1
        transitions.append(Transition(t, (s, s), pair, rewards, (reached, reached), False))
    return make_model(game, transitions)


def measure(game: Game, args: Args, model: Model, table: torch.Tensor, replies: torch.Tensor) -> dict[str, float]:
    """What both players get, for the leader's table and the replies, and how much more the follower could have.

    Matrix games: by the true model, per game step. Other games: in real episodes that do not count, per episode; the
    follower's regret by what was seen. It is discounted, as the mean reward per step with the same value.
    """
    if args.payoffs is not None:
        returns = imagine(model, table[None], replies[None])[:, 0].numpy() * model.scale / args.num_steps
    else:
        episodes = [game.play(table, lambda s, _: replies[s[1]], 10**6 + k) for k in range(args.eval_episodes)]
        returns = np.mean([np.sum([t.rewards for t in episode], axis=0) for episode in episodes], axis=0)
    (_, best), (_, own) = (follower_values(model, table[None], args.gamma, given) for given in (None, replies[None]))
    gaps = (best - own)[0, model.follower_observation[:-1]]
    regret = float(gaps @ model.start[:-1]) * (1 - args.gamma) * model.scale[1]
    return {"leader_return_greedy": returns[0], "follower_return": returns[1], "follower_regret": regret}


TOLERANCE = 0.05 + 1e-6  # what passes for equal, in mean rewards: half of what one step of ten can change


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
    start_time, rng, game = time.time(), np.random.default_rng(args.seed), Game(args.env, args.leader_agent)
    run_path, writer = start_run(args)
    experience, follower, unit = Experience(game), Follower(game, args), 1
    optimum = true_model = None
    if args.payoffs is not None:
        optimum, strict = (solve(args.payoffs, args.gamma, args.num_steps, strict) for strict in (False, True))
        true_model, unit = complete_model(game), args.num_steps
    steps, steps_to_try_all, news, curve = 0, 0, True, []
    # what leaders tried last, at first random tables, and the best of all so far
    near = torch.randint(game.num_actions[0], (args.num_leaders * args.batch_size, game.num_observations[0]))
    champions = near[:1]

    def real_episode(table: np.ndarray, reply) -> float:
        nonlocal steps, steps_to_try_all, news
        episode = game.play(table, reply, int(rng.integers(2**31)))
        steps += game.num_observations[0] + len(episode)
        news = experience.add(episode, table)
        steps_to_try_all = steps if news else steps_to_try_all
        return sum(t.rewards[0] for t in episode)

    def real_returns(tables: torch.Tensor) -> torch.Tensor:
        pairs = zip(tables.numpy(), follower.replies(tables).tolist(), strict=True)
        return torch.tensor([real_episode(table, lambda s, _, own=own: own[s[1]]) for table, own in pairs])

    def imagined_returns(tables: torch.Tensor) -> torch.Tensor:
        keys = [tuple(table) for table in tables.tolist()]
        if new := list(dict.fromkeys(key for key in keys if key not in known)):
            distinct = torch.tensor(new)
            returns = imagine(model, distinct, follower.replies(distinct))[0] * float(model.scale[0])
            known.update(zip(new, returns.tolist(), strict=True))
        return torch.tensor([known[key] for key in keys])

    def log(table: torch.Tensor, exploring: float, td_loss: float | None = None) -> None:
        measured = measure(game, args, true_model or model, table, follower.replies(table[None])[0])
        scalars = {f"charts/{name}": value for name, value in measured.items()} | {"charts/leader_return": exploring}
        scalars["charts/SPS"] = int(steps / (time.time() - start_time))
        if optimum is not None:
            scalars["charts/stackelberg_value"] = optimum.value
            scalars["charts/leader_regret"] = optimum.value - measured["leader_return_greedy"]
        if td_loss is not None:
            scalars["losses/follower_td_loss"] = td_loss
        for tag, scalar in scalars.items():
            writer.add_scalar(tag, scalar, steps)
        curve.append([steps, float(measured["leader_return_greedy"]), exploring])

    cells = game.num_observations[0] * math.prod(game.num_actions)
    total = args.total_timesteps or cells * (10 if args.imagination else 1_000)
    explored = total if args.imagination else total // 2
    for k in tqdm(range(1, args.rounds + 1), desc="rounds", leave=False, disable=None):
        while steps < explored * k / args.rounds:
            if news or k == 1 or not args.imagination:
                real_episode(*experience.least_tried(rng))
            else:  # where nothing new is found, the leader as it is, to know it better
                real_returns(champions[:1])
                news = True
        model, td_loss, known = make_model(game, experience.transitions), None, {}
        first_half = 2 * k <= args.rounds
        if args.follower_learns_on or first_half:
            td_loss = follower.learn(experience, model, near)
        if args.imagination and (args.follower_learns_on or not first_half):
            if args.leader == "solver":
                payoffs = (model.rewards * model.tried).sum(1) / model.tried.sum(0).clamp(min=1)
                best = near = torch.tensor([solve(payoffs.double().numpy(), args.gamma, args.num_steps).leader_table])
            else:
                best, _, near = train_leaders(game, args, args.num_leaders, args.leader_updates, imagined_returns)
            candidates = torch.cat([champions, best])
            order = imagined_returns(candidates).argsort(descending=True, stable=True)
            champions = candidates[order][: args.num_leaders]
            log(champions[0], imagined_returns(near).mean().item() / unit, td_loss)
    if not args.imagination:
        updates = max((total - steps) // (args.batch_size * (game.num_observations[0] + model.horizon)), 1)
        _, champions, _ = train_leaders(game, args, 1, updates, real_returns, lambda t, mean: log(t[0], mean / unit))

    # the follower learns on against the final leader
    table = champions[0]
    replies = follower.replies(table[None])[0]
    final = measure(game, args, true_model or model, table, replies)
    result = {"script": os.path.basename(__file__), "env_id": args.env_id, "seed": args.seed, "args": asdict(args)}
    result |= {name: float(value) for name, value in final.items()}
    result |= {"leader_policy": table.tolist(), "follower_policy": replies.tolist()}
    result |= {"combined_steps": steps, "steps_to_try_all": steps_to_try_all, "triples_tried": len(experience.tried)}
    for _ in range(args.verification_episodes):
        _, reply = experience.least_tried(rng)
        experience.add(game.play(table.numpy(), reply, int(rng.integers(2**31))), table.numpy())
    model = make_model(game, experience.transitions)
    follower.learn(experience, model, table[None])
    after = measure(game, args, true_model or model, table, follower.replies(table[None])[0])
    result["verification_gain"] = float(after["follower_return"] - final["follower_return"])

    points, greedy, exploring = np.array(curve).T
    result["leader_return"] = exploring[-math.ceil(len(curve) / 10) :].mean()
    result |= {"stackelberg_value": None, "stackelberg_value_pessimistic": None, "optimum_of": "not known"}
    if optimum is not None:
        result |= {"stackelberg_value": optimum.value, "stackelberg_value_pessimistic": strict and strict.value}
        result["optimum_of"] = (
            f"the mean over {args.num_steps} steps of deterministic memory-1 leaders against stationary followers "
            f"discounted by {args.gamma}"
        )
        result["leader_regret"] = optimum.value - result["leader_return_greedy"]
        scale = np.ptp(args.payoffs[0]) / 3 or 1.0
        for name, returns in (("steps_to_converge", greedy), ("steps_to_converge_exploring", exploring)):
            result[name] = steps_to_converge(points, (returns - optimum.value) / scale)
    if args.save_model:
        torch.save({"leader": table, "follower": replies}, f"{run_path}/model.pt")
    result |= {"curve": curve, "wall_seconds": time.time() - start_time}
    result["steps_per_second"] = steps / result["wall_seconds"]
    writer.close()
    finish(result, args, run_path)
    return result


def finish(result: dict, args: Args, run_path: str) -> None:
    """Writes result.json, of which nobody ever meets half, and says in words what was found."""
    with open(f"{run_path}/result.json.tmp", "w") as file:
        json.dump(result, file)
    os.replace(f"{run_path}/result.json.tmp", f"{run_path}/result.json")
    unit = "per episode" if args.payoffs is None else "per game step"
    optimum = "" if args.payoffs is None else f"{result['stackelberg_value']:.3f}, "
    scope = "(discounted, a lower bound: by what was seen)" if args.payoffs is None else "(discounted)"
    print(f"""
{result["env_id"]}: after {result["combined_steps"]:,} combined steps
  leader's return    {result["leader_return_greedy"]:.3f} {unit}, greedy
  optimum            {optimum}{result["optimum_of"]}
  leader's policy    {result["leader_policy"]} in its observations
  follower's reply   {result["follower_policy"]}
  follower's regret  {result["follower_regret"]:.3f} {scope}; learning on, it gains {result["verification_gain"]:.3f}
  curves             tensorboard --logdir {os.path.dirname(run_path)}
  result             {run_path}/result.json""")


if __name__ == "__main__":
    main(tyro.cli(Args, description=__doc__))
