# /// script
# requires-python = ">=3.11"
# dependencies = ["numpy==2.4.6", "scipy==1.17.1", "tensorboard==2.21.0", "torch==2.13.0", "tqdm==4.70.1",
#   "tyro==1.0.17", "wandb==0.31.0"]
# ///
"""Commitments that mix: Stackelberg leaders that are stochastic, and queries that can tell.

    python ablations/mixed_commitment_matrix.py --env-id prisoners_dilemma
    python ablations/mixed_commitment_matrix.py --env-id assurance-battle     # leader's payoffs of one, follower's of the other
    python ablations/mixed_commitment_matrix.py --num-steps 1 --leader-payoff 2 4 1 3 --follower-payoff 1 0 0 1
    python ablations/mixed_commitment_matrix.py --random-games 5              # 2 x 2: default_rng(number).random((2, 2, 2))

Definition 2 of "Oracles & Followers" allows a leader that mixes; answers to queries that are single actions do not. A
memory-1 leader is a probability of each action in each observation here. It is asked for them (`--queries
probabilities`), or for K actions in each observation, of which the follower sees the shares (`--queries K`). With K = 1
that is the paper's query, and a leader is paid for differing from its answers.

The best commitment leaves the follower indifferent, and is worth nothing: a follower that is a little wrong, or breaks a
tie against the leader, does something else there. So a leader counts the worst of all replies that are within a margin of
the best, and what decides is its guaranteed return: against an exact best response, ties against it.

`--follower planning` evaluates all of the follower's tables on what was seen. `--follower network` learns what each table
is worth to it against each leader, by temporal differences on relabelled transitions: one with the leader's action a is
valid for every leader, weighted by the probability with which that leader takes a. There is no maximum in the target.
The follower of this game keeps to one table for its ten steps, which is the best reply of no discounted problem: leaders
at the edge of what a follower discounted by 0.9 bears are beyond what the game's follower does.
"""

import itertools
import json
import math
import os
import time
from dataclasses import asdict, dataclass, replace
from typing import Literal, NamedTuple

import numpy as np
import torch
import torch.nn as nn
import torch.nn.functional as F
import tyro
from scipy.optimize import linprog, minimize
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
    """a game of the paper's Table 3, as they are named below (`PAYOFFS`), or LEADER-FOLLOWER, the leader's payoffs of one
    and the follower's of another: all 144 strict ordinal 2 x 2 games"""
    leader_payoff: tuple[float, ...] = ()
    """your own matrix game: the leader's payoffs, row by row (row = leader's action, column = follower's action)"""
    follower_payoff: tuple[float, ...] = ()
    """your own matrix game: the follower's payoffs in the same layout (not transposed)"""
    leader_actions: int | None = None
    """rows of the payoffs, if there are not as many as columns"""
    random_game: tuple[int, int, int] | None = None
    """instead: rows, columns, and the game's number"""
    random_games: int | None = None
    """instead: so many random games, one after the other, from that of `--random-game` on (2 2 0)"""
    num_steps: int = 10
    """game steps per episode; 1: a one-shot game without memory, of any number of actions; otherwise 2 x 2"""
    total_timesteps: int | None = None
    """combined environment steps, queries included; default: an episode for each (observation, leader's action,
    follower's action)"""
    rounds: int | None = None
    """so often, evenly over the steps, follower and leader learn from what was seen; default: 4, network 10"""

    queries: int | Literal["probabilities"] = "probabilities"
    """in each observation, the leader is asked for its probabilities or for so many actions, of which the follower sees
    the shares"""
    answer_samples: int = 16
    """with so many actions: answers that a leader is tried with in each generation"""
    follower: Literal["planning", "network"] = "planning"
    """planning: all of the follower's tables on the means of what was seen; network: it learns what they are worth"""
    follower_updates: int = 400
    """network: gradient steps in each round"""
    follower_batch_size: int = 256
    """network: leaders, each with a table of the follower's and an observation, in each gradient step"""
    follower_learning_rate: float = 4e-3
    """network: Adam's learning rate, which decays to 0 over the rounds"""

    margin: float | None = None
    """with probabilities: replies count as best within so much per step, as a share of a third of the range of the
    follower's payoffs, and the worst of them for the leader; default: 1e-4, network 0.05"""
    num_leaders: int = 1000
    """random leaders that each search starts from"""
    num_searches: int = 4
    """populations that evolve side by side"""
    population: int = 32
    """leaders in each population, of which an eighth is kept"""
    generations: int = 60
    """generations of each search"""

    def __post_init__(self):
        for flag, value in asdict(self).items():
            if type(value) in (int, float) and not (0 < value < math.inf or (value == 0 and flag == "seed")):
                raise ValueError(f"--{flag.replace('_', '-')} must be positive, got {value}")
        if self.population < 8:
            raise ValueError(f"--population must be at least 8, got {self.population}")
        self.payoffs = payoffs_of(self)
        _, rows, columns = self.payoffs.shape
        if self.num_steps > 1 and (rows, columns) != (2, 2):
            raise ValueError(f"{rows} x {columns} actions are for one-shot games alone: add --num-steps 1")
        if self.num_leaders < self.num_searches * (self.population // 8):
            raise ValueError("--num-leaders must leave each population those that it begins with")
        if self.random_game is not None:
            self.env_id = "random_{}x{}_{}".format(*self.random_game)
        elif self.leader_payoff:
            self.env_id = "custom"


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


def payoffs_of(args: Args) -> np.ndarray:
    """Returns the game's payoffs, [player, leader's action, follower's action]; player 0 is the leader.
    Raises ValueError if the flags give none."""
    if args.random_games is not None and args.random_game is None:
        args.random_game = (2, 2, 0)
    if args.random_game is not None:
        rows, columns, number = args.random_game
        if min(rows, columns) < 1 or number < 0:
            raise ValueError(f"--random-game needs rows, columns and a number, got {args.random_game}")
        return np.random.default_rng(number).random((2, rows, columns))
    if args.leader_payoff or args.follower_payoff:
        size = len(args.leader_payoff)
        rows = args.leader_actions or math.isqrt(size)
        if not (0 < size == len(args.follower_payoff) and rows > 0 and size % rows == 0):
            raise ValueError("--leader-payoff, --follower-payoff: as many of each, a square or --leader-actions rows")
        payoffs = np.array([args.leader_payoff, args.follower_payoff], dtype=np.float64).reshape(2, rows, -1)
        if not np.isfinite(payoffs).all():
            raise ValueError("--leader-payoff, --follower-payoff: finite numbers")
        return payoffs
    leader, _, follower = args.env_id.partition("-")
    if not {leader, follower or leader} <= set(PAYOFFS):
        raise ValueError(f"no game {args.env_id!r}: choose from {', '.join(PAYOFFS)}, or give your own payoffs")
    return np.array([PAYOFFS[leader], np.transpose(PAYOFFS[follower or leader])], dtype=np.float64)


class Transition(NamedTuple):
    """A step of a real episode."""

    observation: int
    actions: tuple[int, int]
    rewards: tuple[float, float]
    next_observation: int


class MatrixGame:
    """An iterated 2 x 2 game of `num_steps` steps, or an m x n game of one.

    Payoffs are [player, leader's action, follower's action]. Both players observe the last pair of actions: 0 is the
    start, 1 + n a + b the pair (a, b). A one-shot game has the start alone.
    """

    def __init__(self, payoffs: np.ndarray, num_steps: int):
        self.payoffs, self.num_steps = payoffs, num_steps
        _, self.rows, self.columns = payoffs.shape
        self.num_observations = 1 if num_steps == 1 else 1 + self.rows * self.columns
        self.scale = np.ptp(payoffs, axis=(1, 2)) / 3  # of each player
        self.scale[self.scale == 0] = 1

    def step(self, observation: int, a: int, b: int) -> Transition:
        """Both act at once."""
        after = 0 if self.num_steps == 1 else 1 + self.columns * a + b
        return Transition(observation, (a, b), tuple(self.payoffs[:, a, b].tolist()), after)

    def play(self, leader: np.ndarray, reply, rng: np.random.Generator) -> list[Transition]:
        """An episode of a leader [observations, its actions], probabilities; the follower plays `reply(observation,
        leader's action)`."""
        episode, observation = [], 0
        for _ in range(self.num_steps):
            a = int(rng.choice(self.rows, p=leader[observation]))
            episode.append(self.step(observation, a, int(reply(observation, a))))
            observation = episode[-1].next_observation
        return episode


# ---------------------------------------------------------------------------------------- what was seen, and what it says
class Experience:
    """All real transitions so far, and how often what was tried."""

    def __init__(self, game: MatrixGame):
        self.game, self.transitions = game, []
        self.tried = np.zeros((game.num_observations, game.rows, game.columns), dtype=int)

    def add(self, episode: list[Transition]) -> None:
        """Adds an episode."""
        self.transitions += episode
        for t in episode:
            self.tried[t.observation, *t.actions] += 1

    def least_tried(self, rng: np.random.Generator):
        """Returns a deterministic leader, and the replies to it, that were tried least; ties by chance."""
        tried = self.tried.sum(-1)
        leader = np.eye(self.game.rows)[(tried + rng.random(tried.shape)).argmin(-1)]
        return leader, lambda o, a: (self.tried[o, a] + rng.random(self.game.columns)).argmin()


class Model(NamedTuple):
    """Means of what was seen, for each of the T tables of the follower, O observations and A leader's actions."""

    tables: np.ndarray  # [T, O], the follower's action
    rewards: np.ndarray  # [T, O A, 2], of both players, per step; of what was not tried the least that was seen
    following: np.ndarray  # [T, O A, O], probabilities of the next observation
    num_steps: int


def make_model(game: MatrixGame, transitions: list[Transition]) -> Model:
    """Returns the means of all that was seen."""
    shape = game.num_observations, game.rows, game.columns
    count, rewards, following = np.zeros(shape), np.zeros((2, *shape)), np.zeros((*shape, shape[0]))
    cells = tuple(np.array([(t.observation, *t.actions) for t in transitions]).T)
    received = np.array([t.rewards for t in transitions]).T
    np.add.at(count, cells, 1)
    np.add.at(following, (*cells, [t.next_observation for t in transitions]), 1)
    for player in range(2):
        np.add.at(rewards[player], cells, received[player])
    rewards = np.where(count > 0, rewards / np.maximum(count, 1), received.min(1)[:, None, None, None])
    following[count == 0, 0] = 1  # as if it led back to the start
    following /= following.sum(-1, keepdims=True)

    tables = np.array(list(itertools.product(range(shape[2]), repeat=shape[0])))
    at = np.arange(shape[0])[:, None], np.arange(shape[1]), tables[:, :, None]  # [T, O, A]
    of_tables = np.moveaxis(rewards[:, *at], 0, -1).reshape(len(tables), -1, 2)
    return Model(tables, of_tables, following[at].reshape(len(tables), -1, shape[0]), game.num_steps)


def complete_model(game: MatrixGame) -> Model:
    """Returns the true model."""
    cells = itertools.product(range(game.num_observations), range(game.rows), range(game.columns))
    return make_model(game, [game.step(*cell) for cell in cells])


def returns(model: Model, leaders: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Both players' exact expected rewards per step, [n, T] each, for leaders [n, O, A], probabilities, against all
    tables of the follower."""
    num_tables, num_observations = model.tables.shape
    here, visits = np.zeros((num_tables, len(leaders), num_observations)), 0
    here[:, :, 0] = 1
    for _ in range(model.num_steps):
        acts = (here[..., None] * leaders).reshape(num_tables, len(leaders), -1)  # [T, n, O A]
        visits = visits + acts
        here = acts @ model.following
    leader, follower = np.moveaxis(visits @ model.rewards, 2, 0) / model.num_steps
    return leader.T, follower.T


def worst_reply(leader_returns: np.ndarray, follower_values: np.ndarray, margin: float) -> np.ndarray:
    """Returns what leaders get, [n], from the worst of the follower's tables within the margin of the best, [n, T]."""
    best = follower_values.max(axis=1, keepdims=True)
    return np.where(follower_values >= best - margin, leader_returns, np.inf).min(axis=1)


# ------------------------------------------------------------------------------------------------------- the follower
class TableNetwork(nn.Module):
    """What a table of the follower's is worth to it over the next 1, ..., N steps, from an observation on.

    Its inputs are how likely each pair of actions is in each observation, [..., O A B], which the leader's answers and
    the table say, and the observation, one-hot.
    """

    def __init__(self, game: MatrixGame):
        super().__init__()
        self.pairs = nn.Linear(game.num_observations * game.rows * game.columns, 128)
        self.observation = nn.Linear(game.num_observations, 128, bias=False)
        self.rest = nn.Sequential(nn.ReLU(), nn.Linear(128, 128), nn.ReLU(), nn.Linear(128, game.num_steps))

    def forward(self, leaders: torch.Tensor, tables: torch.Tensor, observation: torch.Tensor) -> torch.Tensor:
        """Leaders [..., O, A], tables [..., O, B], observation [..., O], the last two one-hot -> [..., N]."""
        pairs = (leaders[..., None] * tables[..., None, :]).flatten(-3)
        return self.rest(self.pairs(pairs) + self.observation(observation))


class Follower:
    """The oracle: what each of its tables is worth to it against a leader's answers, by planning or by a network."""

    def __init__(self, game: MatrixGame, args: Args):
        self.game, self.args, self.model, self.updates = game, args, None, 0
        if args.follower == "network":
            self.network, self.target = TableNetwork(game), TableNetwork(game)
            self.target.load_state_dict(self.network.state_dict())
            self.optimizer = torch.optim.Adam(self.network.parameters(), lr=args.follower_learning_rate)

    @torch.no_grad()
    def values(self, answers: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Returns, for answers [n, O, A], what a leader that plays like them gets against each table in imagined
        episodes, and what the follower thinks that it gets itself: per step, [n, T] each."""
        leader_returns, follower_returns = returns(self.model, answers)
        if self.args.follower == "network":
            tables = F.one_hot(torch.as_tensor(self.model.tables), self.game.columns).float()
            leaders, start = torch.tensor(answers, dtype=torch.float32)[:, None], torch.eye(self.game.num_observations)[0]
            values = self.network(leaders, tables, start)[..., -1].double().numpy()
            follower_returns = values * self.game.scale[1] / self.game.num_steps
        return leader_returns, follower_returns

    def relabel(self, leaders: torch.Tensor, observation: torch.Tensor, reply: torch.Tensor):
        """Returns what follows for these leaders [n, O, A], where they are in an observation [n] and the follower
        replies [n]: a transition that was seen for each of the leader's actions, [n, A], and its weight, [n, A].

        A weight is the probability of the action, as a share of that of all actions that were seen there.
        """
        first, count = self.first[observation, :, reply], self.count[observation, :, reply]
        picked = self.order[(first + (torch.rand(count.shape) * count).long()).clamp(max=len(self.order) - 1)]
        weight = leaders[torch.arange(len(leaders)), observation] * (count > 0)
        return picked, weight / weight.sum(-1, keepdim=True).clamp(min=1e-9)

    def index(self, transitions: list[Transition]) -> None:
        """Sorts transitions by (observation, both actions), for `relabel`."""
        game = self.game
        shape = game.num_observations, game.rows, game.columns
        cells = torch.tensor([np.ravel_multi_index((t.observation, *t.actions), shape) for t in transitions])
        self.order, count = cells.argsort(stable=True), cells.bincount(minlength=math.prod(shape))
        self.first, self.count = (x.view(shape) for x in (count.cumsum(0) - count, count))
        self.reward = torch.tensor([t.rewards[1] for t in transitions]) / float(game.scale[1])
        self.following = torch.tensor([t.next_observation for t in transitions])

    def learn(self, transitions: list[Transition], model: Model, near: np.ndarray, learning_rate: float) -> float | None:
        """Temporal differences on relabelled transitions; half of the leaders are random, half are like those of
        `near`, [n, O, A], logits. Returns the last loss; a follower that plans has none."""
        self.model, args, game = model, self.args, self.game
        if args.follower == "planning":
            return None
        self.index(transitions)
        near, eye, n = torch.tensor(near, dtype=torch.float32), torch.eye(game.num_observations), args.follower_batch_size
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate
        for _ in range(args.follower_updates):
            logits = LOGIT_STD * torch.randn(n, *near.shape[1:])
            logits[::2] = near[torch.randint(len(near), (len(logits[::2]),))] + 0.2 * logits[::2] / LOGIT_STD
            leaders, table = logits.softmax(-1), torch.as_tensor(model.tables)[torch.randint(len(model.tables), (n,))]
            observation = torch.randint(game.num_observations, (n,))
            picked, weight = self.relabel(leaders, observation, table[torch.arange(n), observation])
            table = F.one_hot(table, game.columns).float()
            with torch.no_grad():
                target = self.reward[picked][..., None].repeat(1, 1, game.num_steps)  # [n, A, N]
                after = self.target(leaders[:, None], table[:, None], eye[self.following[picked]])
                target[..., 1:] += after[..., :-1]
                target = (weight[..., None] * target).sum(1)
            loss = F.mse_loss(self.network(leaders, table, eye[observation]), target)
            if not loss.isfinite():
                raise SystemExit("the follower's training diverged: lower --follower-learning-rate")
            self.optimizer.zero_grad()
            loss.backward()
            self.optimizer.step()
            for slow, fast in zip(self.target.parameters(), self.network.parameters(), strict=True):
                slow.data.lerp_(fast.data, 0.05)
        return loss.item()


# --------------------------------------------------------------------------------------------------------- the leader
LOGIT_STD = 2.0  # of the logits of random leaders


def softmax(logits: np.ndarray) -> np.ndarray:
    """Returns probabilities, over the last axis."""
    odds = np.exp(logits - logits.max(-1, keepdims=True))
    return odds / odds.sum(-1, keepdims=True)


def search(worth, num_observations: int, num_actions: int, args: Args, rng: np.random.Generator, known=()):
    """Evolution of populations side by side, on logits; each begins with the best of random leaders, of deterministic
    ones and of those that are `known`. `worth` leaders [n, O, A] -> [n].

    Returns the logits of the last generation [n, O, A], the best first, and their worth [n].
    """
    groups, keep, step = args.num_searches, args.population // 8, LOGIT_STD
    logits = rng.normal(0, LOGIT_STD, (args.num_leaders, num_observations, num_actions))
    tables = itertools.islice(itertools.product(np.eye(num_actions), repeat=num_observations), args.num_leaders // 2)
    logits = np.concatenate([*known, 20 * np.array(list(tables)), logits])
    best = np.argsort(-worth(softmax(logits)), kind="stable")[: groups * keep]
    parents = logits[best].reshape(keep, groups, num_observations, num_actions).swapaxes(0, 1)
    for _ in range(args.generations):
        children = parents.repeat(args.population // keep - 1, axis=1)
        children = children + step * rng.standard_normal(children.shape)
        candidates = np.concatenate([parents, children], axis=1)  # [groups, population, O, A]
        values = worth(softmax(candidates).reshape(-1, num_observations, num_actions)).reshape(groups, -1)
        best = np.argsort(-values, axis=1, kind="stable")
        parents = np.take_along_axis(candidates, best[:, :keep, None, None], axis=1)
        step *= 0.92
    order = np.argsort(-values.ravel(), kind="stable")
    return candidates.reshape(-1, num_observations, num_actions)[order], values.ravel()[order]


def make_worth(follower: Follower, args: Args, rng: np.random.Generator, samples: int | None = None):
    """Returns the function from leaders [n, O, A] to what they are worth in imagined episodes, [n].

    Asked for probabilities, a leader plays as it answers, and counts the worst reply within the margin. Asked for K
    actions, it does not: its worth is that of its POMDP, the mean over its answers of what it gets from the replies.
    """
    margin = args.margin if args.margin is not None else {"planning": 1e-4, "network": 0.05}[args.follower]
    margin, samples = margin * follower.game.scale[1], samples or args.answer_samples

    def of_probabilities(leaders: np.ndarray) -> np.ndarray:
        return worst_reply(*follower.values(leaders), margin)

    def of_actions(leaders: np.ndarray) -> np.ndarray:
        answers = rng.multinomial(args.queries, leaders, size=(samples, *leaders.shape[:2])) / args.queries
        replies = follower.values(answers.reshape(-1, *leaders.shape[1:]))[1].argmax(1).reshape(samples, -1)
        return np.take_along_axis(returns(follower.model, leaders)[0], replies.T, axis=1).mean(1)

    return of_probabilities if args.queries == "probabilities" else of_actions


# ------------------------------------------------------------------------------------- the exact solution, by class
TIES = 1e-6  # replies within this share of the scale are equally good to the follower


class Optima(NamedTuple):
    """What a leader can get, per step, by the class of its commitments."""

    deterministic: float  # ties for the leader
    pessimistic: float  # ties against it
    mixture: float  # of deterministic leaders, drawn before play
    stochastic: float  # memory 1, ties for the leader
    guaranteed: float  # memory 1, ties against the leader: the supremum
    bound: float  # no stochastic leader has more
    leader: np.ndarray  # [O, A], comes within rounding of `guaranteed`


def commitment(leader: np.ndarray, follower: np.ndarray, margin: float = 0.0) -> tuple[float, np.ndarray]:
    """The best mixture of rows of a bimatrix game [m, n], by a linear programme for each column (Conitzer and Sandholm,
    2006). Returns its value and the mixture [m].

    With a margin, the column's reply must be better by that than all others, except by those that are the same to the
    follower, of which the leader gets the worst: with a small margin that is the supremum of what is guaranteed.
    """
    best = -math.inf, np.full(len(leader), 1 / len(leader))
    for column in range(leader.shape[1]):
        same = (follower == follower[:, [column]]).all(0) if margin else np.arange(leader.shape[1]) == column
        gaps = (follower - follower[:, [column]])[:, ~same].T  # mixture and what it is worth: others are no better,
        constraints = np.block([[gaps, np.zeros((len(gaps), 1))], [-leader[:, same].T, np.ones((same.sum(), 1))]])
        limits = np.append(np.full(len(gaps), -margin), np.zeros(same.sum()))  # and no column that is the same worth less
        rows = len(leader)
        one, bounds = np.append(np.ones(rows), 0)[None], [(0, 1)] * rows + [(None, None)]
        solved = linprog(-np.eye(rows + 1)[-1], constraints, limits, one, [1], bounds, method="highs")
        if solved.status == 0 and -solved.fun > best[0]:
            best = -solved.fun, solved.x[:-1]
    return best


def upper_bounds(model: Model) -> np.ndarray:
    """Returns, for each table of the follower [T], more than which no leader gets while it is a best reply.

    Whatever a leader does, one of the follower's tables leaves the follower what it is sure of: the most over tables of
    the least over leaders, even leaders with a clock (backward induction). So a bound is the leader's largest return
    against the table, with a clock, that leaves the follower that much: a linear programme in how often the leader takes
    which action in which observation and step.
    """
    (num_tables, num_observations), num_steps = model.tables.shape, model.num_steps
    to_go = np.zeros((num_tables, num_observations))
    for _ in range(num_steps):
        q_values = model.rewards[..., 1] + (model.following @ to_go[..., None]).squeeze(-1)
        to_go = q_values.reshape(num_tables, num_observations, -1).min(-1)
    sure, bounds = to_go[:, 0].max(), np.full(num_tables, -np.inf)
    size = model.rewards.shape[1]
    for table in range(num_tables):
        flow = np.kron(np.eye(num_steps), np.kron(np.eye(num_observations), np.ones(size // num_observations)))
        flow = flow - np.kron(np.eye(num_steps, k=-1), model.following[table].T)
        leader, follower = np.tile(model.rewards[table].T, num_steps)
        start = np.eye(len(flow))[0]
        solved = linprog(-leader, -follower[None], [1e-9 - sure], flow, start, method="highs")
        if solved.status == 0:
            bounds[table] = -solved.fun / num_steps
    return bounds


def climb(model: Model, table: int, leader: np.ndarray, margin: float = 0.0) -> np.ndarray:
    """Returns the leader [O, 2] that sequential quadratic programming comes to from a leader, on the return against a
    table of the follower's, where that is a best reply by the margin. Derivatives are central differences."""
    n, step, known = len(leader), 1e-5, {}
    shifts = np.concatenate([np.zeros((1, n)), step * np.eye(n), -step * np.eye(n)])

    def evaluate(p: np.ndarray) -> tuple:
        if p.tobytes() not in known:
            known.clear()
            leader_returns, follower_returns = returns(model, np.stack([1 - p - shifts, p + shifts], axis=-1))
            gaps = follower_returns[:, [table]] - np.delete(follower_returns, table, axis=1)
            value, slack = leader_returns[:, table], gaps - margin
            slopes = [(x[1 : n + 1] - x[n + 1 :]).T / (2 * step) for x in (value, slack)]
            known[p.tobytes()] = -value[0], -slopes[0], slack[0], slopes[1]
        return known[p.tobytes()]

    inside = {"type": "ineq", "fun": lambda p: evaluate(p)[2], "jac": lambda p: evaluate(p)[3]}
    solved = minimize(
        lambda p: evaluate(p)[0],
        leader[:, 1],
        jac=lambda p: evaluate(p)[1],
        bounds=[(0, 1)] * n,
        constraints=inside,
        method="SLSQP",
        options={"maxiter": 100, "ftol": 1e-9},
    )
    p = np.clip(np.nan_to_num(solved.x, nan=0.5), 0, 1)
    return np.stack([1 - p, p], axis=-1)


def solve(game: MatrixGame, seed: int = 0, starts: int = 4, grid: np.ndarray | None = None) -> Optima:
    """Returns the optima by class. One-shot games: by linear programmes.

    Iterated ones: deterministic leaders by enumeration; mixtures by linear programmes on the bimatrix of tables;
    stochastic ones, for each table of the follower that could be worth more than what was found, by climbing from the
    `starts` best of random leaders (or of a `grid`, [n, O, 2]), a lower bound; what is guaranteed by evolution and
    by climbing from its best leader, with a margin. `bound` says how much could have been missed.
    """
    model, rng = complete_model(game), np.random.default_rng(seed)
    num_observations, ties = game.num_observations, TIES * game.scale[1]
    deterministic = np.array(list(itertools.product(np.eye(game.rows), repeat=num_observations)))
    of_leader, of_follower = returns(model, deterministic)
    best = of_follower >= of_follower.max(1, keepdims=True) - ties
    optimistic, pessimistic = np.where(best, of_leader, -np.inf).max(), worst_reply(of_leader, of_follower, ties).max()
    mixture, mixed = commitment(of_leader, of_follower)
    if game.num_steps == 1:
        guaranteed, mixed = commitment(of_leader, of_follower, 2 * ties)
        return Optima(optimistic, pessimistic, mixture, mixture, max(guaranteed, pessimistic), mixture, mixed[None])

    bounds = upper_bounds(model)
    random = softmax(rng.normal(0, 3, (2000, num_observations, 2))) if grid is None else grid
    candidates = np.concatenate([deterministic, random])
    of_leader, of_follower = returns(model, candidates)
    stochastic, short = optimistic, of_follower.max(1, keepdims=True) - of_follower
    for table in np.argsort(-bounds, kind="stable"):
        for start in np.argsort(10 * short[:, table] - of_leader[:, table], kind="stable")[:starts]:
            if bounds[table] > stochastic + 1e-4 * game.scale[0]:
                leader_returns, follower_returns = returns(model, climb(model, table, candidates[start])[None])
                if follower_returns[0, table] >= follower_returns.max() - ties:
                    stochastic = max(stochastic, leader_returns[0, table])

    settings = Args(generations=80)
    logits, _ = search(lambda x: worst_reply(*returns(model, x), 2 * ties), num_observations, 2, settings, rng)
    candidates = [*deterministic, *softmax(logits[:1])]
    leader_returns, follower_returns = returns(model, candidates[-1][None])
    candidates.append(climb(model, follower_returns[0].argmax(), candidates[-1], 3 * ties))
    guaranteed = worst_reply(*returns(model, np.array(candidates)), ties)
    leader = candidates[guaranteed.argmax()]
    stochastic = max(stochastic, guaranteed.max())
    return Optima(optimistic, pessimistic, mixture, stochastic, guaranteed.max(), bounds.max(), leader)


TOLERANCE = 0.05 + 1e-6  # what passes for equal, in mean rewards: half of what one step of ten can change


def steps_to_converge(steps: np.ndarray, gaps: np.ndarray) -> int | None:
    """Returns the first of the steps from which on the gaps stay within the tolerance, or None."""
    stays = np.logical_and.accumulate(abs(gaps[::-1]) <= TOLERANCE)[::-1]
    return int(steps[stays.argmax()]) if stays.any() else None


def measure(game: MatrixGame, follower: Follower, args: Args, leader: np.ndarray) -> dict[str, float]:
    """What both players get, per game step, by the true model: against the follower as it is, which sees the leader's
    [O, A] answers, and against an exact best response with ties against the leader."""
    rng, answers = np.random.default_rng(args.seed), leader[None]
    if args.queries != "probabilities":
        answers = rng.multinomial(args.queries, leader, size=(4096, len(leader))) / args.queries
    replies = follower.values(answers)[1].argmax(1)
    leader_returns, follower_returns = returns(complete_model(game), leader[None])
    own = follower_returns[0, replies].mean()
    return {
        "leader_return_greedy": leader_returns[0, replies].mean(),
        "leader_return_guaranteed": worst_reply(leader_returns, follower_returns, TIES * game.scale[1])[0],
        "follower_return": own,
        "follower_regret": max(follower_returns.max() - own, 0.0),
    }


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
    """Explores, learns and measures in rounds. Returns what it writes to result.json; of several games, the last."""
    if args.random_games is not None:
        rows, columns, first = args.random_game
        games = ((rows, columns, first + k) for k in range(args.random_games))
        results = [main(replace(args, random_games=None, random_game=game)) for game in games]
        return print_games(results)
    torch.set_num_threads(1)  # a thread pool costs more than it gives with models of this size
    torch.manual_seed(args.seed)
    start_time, rng, game = time.time(), np.random.default_rng(args.seed), MatrixGame(args.payoffs, args.num_steps)
    run_path, writer = start_run(args)
    experience, follower, steps, steps_to_try_all, curve = Experience(game), Follower(game, args), 0, 0, []
    worth, optima = make_worth(follower, args, rng), solve(game)
    answers = 1 if args.queries == "probabilities" else args.queries
    episode_steps = game.num_observations * answers + game.num_steps  # queries and game
    total = args.total_timesteps or experience.tried.size * episode_steps
    rounds = args.rounds or {"planning": 4, "network": 10}[args.follower]
    logits = np.zeros((1, game.num_observations, game.rows))
    for k in tqdm(range(1, rounds + 1), desc="rounds", leave=False, disable=None):
        while steps < total * k / rounds:
            before = (experience.tried > 0).sum()
            experience.add(game.play(*experience.least_tried(rng), rng))
            steps += episode_steps
            steps_to_try_all = steps if (experience.tried > 0).sum() > before else steps_to_try_all
        learning_rate = args.follower_learning_rate * (1 - (k - 1) / rounds)
        model = make_model(game, experience.transitions)
        td_loss = follower.learn(experience.transitions, model, logits, learning_rate)
        known = [logits[: args.population]] if k > 1 else []
        logits, values = search(worth, game.num_observations, game.rows, args, rng, known)
        if args.queries != "probabilities":  # the best of noisy values is not the best: look again
            values = make_worth(follower, args, rng, 512)(softmax(logits[:8]))
            logits[:8] = logits[:8][np.argsort(-values, kind="stable")]
        leader = softmax(logits[0])
        measured = measure(game, follower, args, leader)
        scalars = {f"charts/{name}": value for name, value in measured.items()} | {"charts/leader_return": values.mean()}
        scalars |= {"charts/stackelberg_value": optima.deterministic, "charts/SPS": steps / (time.time() - start_time)}
        scalars["charts/leader_regret"] = optima.deterministic - measured["leader_return_greedy"]
        if td_loss is not None:
            scalars["losses/follower_td_loss"] = td_loss
        for tag, scalar in scalars.items():
            writer.add_scalar(tag, scalar, steps)
        curve.append([steps, *(float(measured[f"leader_return_{x}"]) for x in ("greedy", "guaranteed")), values.mean()])

    result = {"script": os.path.basename(__file__), "env_id": args.env_id, "seed": args.seed, "args": asdict(args)}
    result |= {name: float(value) for name, value in measured.items()}
    policy = (leader[:, 1] if args.num_steps > 1 else leader[0]).tolist()
    follower_table = model.tables[follower.values(leader[None])[1][0].argmax()].tolist()
    result |= {"leader_policy": policy, "follower_policy": follower_table, "combined_steps": steps}
    result |= {"steps_to_try_all": steps_to_try_all, "triples_tried": int((experience.tried > 0).sum())}
    points, greedy, guaranteed, exploring = np.array(curve).T
    result["leader_return"] = exploring[-math.ceil(len(curve) / 10) :].mean()
    result["leader_regret"] = optima.deterministic - result["leader_return_greedy"]
    for name, values in (("steps_to_converge", guaranteed), ("steps_to_converge_exploring", exploring)):
        result[name] = steps_to_converge(points, (values - optima.guaranteed) / game.scale[0])
    result["stackelberg_value"] = optima.deterministic
    names = ("pessimistic", "mixture", "stochastic", "guaranteed", "bound")
    result |= {f"stackelberg_value_{name}": float(getattr(optima, name)) for name in names}
    result["stackelberg_policy"] = (optima.leader[:, 1] if args.num_steps > 1 else optima.leader[0]).tolist()
    result["curve"] = np.array([points, greedy, exploring]).T.tolist()
    result |= {"guaranteed_curve": guaranteed.tolist(), "cpu_seconds": time.process_time()}
    result["wall_seconds"] = time.time() - start_time
    result["steps_per_second"] = steps / result["wall_seconds"]
    writer.close()
    finish(result, args, run_path)
    return result


def finish(result: dict, args: Args, run_path: str) -> None:
    """Writes result.json, of which nobody ever meets half, and says in words what was found."""
    with open(f"{run_path}/result.json.tmp", "w") as file:
        json.dump(result, file)
    os.replace(f"{run_path}/result.json.tmp", f"{run_path}/result.json")
    value = {name: f"{result[f'stackelberg_value{name}']:.3f}" for name in ("", "_mixture", "_stochastic", "_guaranteed")}
    where = "at the start and after 00, 01, 10, 11: P(action 1)" if args.num_steps > 1 else "probability of each action"
    print(f"""
{result["env_id"]}: after {result["combined_steps"]:,} combined steps
  leader's return    {result["leader_return_guaranteed"]:.3f} per game step, guaranteed: an exact best response, ties against it
                     {result["leader_return_greedy"]:.3f} against the follower as trained
  optimum            {value["_guaranteed"]} guaranteed, {value["_stochastic"]} with ties for the leader: memory-1 leaders that mix
                     {value[""]} deterministic, {value["_mixture"]} mixtures of these drawn before play
  leader's policy    {[round(p, 3) for p in result["leader_policy"]]}, {where}
  follower's regret  {result["follower_regret"]:.3f}, its reply {result["follower_policy"]}
  curves             tensorboard --logdir {os.path.dirname(run_path)}
  result             {run_path}/result.json""")


if __name__ == "__main__":
    main(tyro.cli(Args, description=__doc__))
