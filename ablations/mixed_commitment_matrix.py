# /// script
# requires-python = ">=3.11"
# dependencies = ["numpy==2.4.6", "scipy==1.17.1", "tensorboard==2.21.0", "torch==2.13.0", "tqdm==4.70.1",
#   "tyro==1.0.17", "wandb==0.31.0"]
# ///
"""Commitments that mix: leaders that are stochastic, and queries that can tell.

    python ablations/mixed_commitment_matrix.py --env-id prisoners_dilemma
    python ablations/mixed_commitment_matrix.py --env-id assurance-battle  # leader's payoffs, follower's payoffs
    python ablations/mixed_commitment_matrix.py --num-steps 1 --leader-payoff 2 4 1 3 --follower-payoff 1 0 0 1
    python ablations/mixed_commitment_matrix.py --random-games 5           # default_rng(number).random((2, 2, 2))

Definition 2 of "Oracles & Followers" allows leaders that mix; answers to queries that are single actions do not. Here a
leader is a probability of each action in each observation. It is asked for them (`--queries probabilities`), or for K
actions in each observation, of which the follower sees the shares (`--queries K`). With K = 1 that is the paper's
query, and a leader is paid for differing from its answers.

The best commitment leaves the follower indifferent, and is worth nothing: a follower that is a little wrong, or breaks
a tie against the leader, does something else there. So a leader counts the worst of all replies within a margin of the
best, and what decides is its guaranteed return: against an exact best response, ties against it.

`--follower planning` evaluates all of its tables on what was seen, and the leader climbs in that model. `--follower
network` learns what each table is worth to it against each leader, by temporal differences on relabelled transitions:
one with the leader's action a is valid for every leader, weighted by the probability with which that leader takes a.
The target has no maximum: a follower that keeps to one table for ten steps solves no discounted problem.
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
from scipy.special import softmax
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
    """a game of Table 3 (`PAYOFFS`), or LEADER-FOLLOWER: payoffs of two of them, in all 144 ordinal 2 x 2 games"""
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
    """combined steps, queries included; default: an episode per observation and pair of actions; one-shot network: 3"""
    rounds: int | None = None
    """so often, evenly over the steps, both learn from what was seen; default: 2, network 10"""

    queries: int | Literal["probabilities"] = "probabilities"
    """what a query is answered with: probabilities, or so many actions, of which the follower sees the shares"""
    follower: Literal["planning", "network"] = "planning"
    """planning: all of the follower's tables on the means of what was seen; network: it learns what they are worth"""
    follower_updates: int = 400
    """network: gradient steps in each round"""
    follower_learning_rate: float = 4e-3
    """network: Adam's learning rate, which decays to 0 over the rounds"""

    margin: float | None = None
    """with probabilities: replies count as best within so much per step, as a share of a third of the range of the
    follower's payoffs, and the worst of them for the leader; default: 1e-4, network 0.02, one-shot 0.01"""
    generations: int = 60
    """generations of each evolution of leaders"""

    def __post_init__(self):
        for flag, value in asdict(self).items():
            if type(value) in (int, float) and not (0 < value < math.inf or (value == 0 and flag == "seed")):
                raise ValueError(f"--{flag.replace('_', '-')} must be positive, got {value}")
        self.payoffs = payoffs_of(self)
        _, rows, columns = self.payoffs.shape
        if self.num_steps > 1 and (rows, columns) != (2, 2):
            raise ValueError(f"{rows} x {columns} actions are for one-shot games alone: add --num-steps 1")
        self.margin = self.margin or (1e-4 if self.follower == "planning" else 0.02 if self.num_steps > 1 else 0.01)
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
        return np.array([args.leader_payoff, args.follower_payoff], dtype=np.float64).reshape(2, rows, -1)
    names = args.env_id.split("-")
    if len(names) > 2 or not {*names} <= {*PAYOFFS}:
        raise ValueError(f"no game {args.env_id!r}: {', '.join(PAYOFFS)}, two as A-B, or your own payoffs")
    return np.array([PAYOFFS[names[0]], np.transpose(PAYOFFS[names[-1]])], dtype=np.float64)


class MatrixGame:
    """An iterated 2 x 2 game of `num_steps` steps, or an m x n game of one.

    Payoffs are [player, leader's action, follower's action]. Both observe the last pair of actions: 0 is the start, 1 +
    n a + b the pair (a, b). A one-shot game has the start alone."""

    def __init__(self, payoffs: np.ndarray, num_steps: int):
        self.payoffs, self.num_steps = payoffs, num_steps
        _, self.rows, self.columns = payoffs.shape
        self.num_observations = 1 if num_steps == 1 else 1 + self.rows * self.columns
        self.shape = self.num_observations, self.rows, self.columns
        self.scale = np.ptp(payoffs, axis=(1, 2)) / 3  # of each player
        self.scale[self.scale == 0] = 1

    def step(self, a: int, b: int) -> tuple[np.ndarray, int]:
        """Both act at once; returns their rewards and what they observe next."""
        return self.payoffs[:, a, b], 0 if self.num_steps == 1 else 1 + self.columns * a + b


# ------------------------------------------------------------------------------------- what was seen, and what it says
class Experience:
    """How often what was tried in real steps, and what came of it: sums for each (observation, both actions)."""

    def __init__(self, game: MatrixGame):
        self.game, self.count = game, np.zeros(game.shape)
        self.rewards, self.following = np.zeros((2, *game.shape)), np.zeros((*game.shape, game.num_observations))

    def step(self, observation: int, a: int, b: int) -> int:
        """A real step; returns the next observation."""
        rewards, after = self.game.step(a, b)
        self.count[observation, a, b] += 1
        self.rewards[:, observation, a, b] += rewards
        self.following[observation, a, b, after] += 1
        return after

    def play(self, rng: np.random.Generator) -> None:
        """An episode of a deterministic leader, and replies to it, that were tried least; ties by chance."""
        tried, observation = self.count.sum(-1), 0
        leader = (tried + rng.random(tried.shape)).argmin(-1)
        for _ in range(self.game.num_steps):
            a = leader[observation]
            b = (self.count[observation, a] + rng.random(self.game.columns)).argmin()
            observation = self.step(observation, a, b)


class Model(NamedTuple):
    """Means of what was seen, in O observations, of A leader's and B follower's actions, and for the T tables of the
    follower. What was not tried has the least reward that was seen, and leads back to the start."""

    seen: np.ndarray  # [O, A, B]
    rewards: np.ndarray  # [2, O, A, B]
    following: np.ndarray  # [O, A, B, O], probabilities of the next observation
    tables: np.ndarray  # [T, O], the follower's action
    table_rewards: np.ndarray  # [T, O A, 2]
    table_following: np.ndarray  # [T, O A, O]
    num_steps: int


def make_model(experience: Experience) -> Model:
    """Returns the means of all that was seen."""
    game, seen = experience.game, experience.count > 0
    means = experience.rewards / np.maximum(experience.count, 1)
    rewards = np.where(seen, means, means[:, seen].min(1)[:, None, None, None])
    following = experience.following / np.maximum(experience.count, 1)[..., None]
    following[~seen, 0] = 1

    tables = np.array(list(itertools.product(range(game.columns), repeat=game.num_observations)))
    at = np.arange(game.num_observations)[:, None], np.arange(game.rows), tables[:, :, None]  # [T, O, A]
    table_rewards = np.moveaxis(rewards[:, *at], 0, -1).reshape(len(tables), -1, 2)
    table_following = following[at].reshape(len(tables), -1, game.num_observations)
    return Model(seen, rewards, following, tables, table_rewards, table_following, game.num_steps)


def complete_model(game: MatrixGame) -> Model:
    """Returns the true model."""
    experience = Experience(game)
    for cell in np.ndindex(game.shape):
        experience.step(*cell)
    return make_model(experience)


def returns(model: Model, leaders: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Both players' exact expected rewards per step, [n, T] each, for leaders [n, O, A], probabilities, against all
    tables of the follower."""
    num_tables, num_observations = model.tables.shape
    here, visits = np.zeros((num_tables, len(leaders), num_observations)), 0
    here[:, :, 0] = 1
    for _ in range(model.num_steps):
        acts = (here[..., None] * leaders).reshape(num_tables, len(leaders), -1)  # [T, n, O A]
        visits = visits + acts
        here = acts @ model.table_following
    leader, follower = np.moveaxis(visits @ model.table_rewards, 2, 0) / model.num_steps
    return leader.T, follower.T


def worst_reply(leader_returns: np.ndarray, follower_values: np.ndarray, margin: float, price=np.inf) -> np.ndarray:
    """Returns what leaders get, [n], from the worst of the follower's tables within the margin of the best, [n, T];
    with a finite price, from the table that they like best, at that price for what it costs the follower."""
    gaps = follower_values.max(axis=1, keepdims=True) - follower_values
    worst = np.where(gaps <= margin, leader_returns, np.inf).min(axis=1)
    bribed = (leader_returns - np.where(np.isfinite(price), price, 0).reshape(-1, 1) * gaps).max(axis=1)
    return np.where(np.isfinite(price), bribed, worst)


# ------------------------------------------------------------------------------------------------------- the follower
class TableNetwork(nn.Module):
    """What a table of the follower's is worth to it over the next 1, ..., N steps, from an observation on. Its inputs
    are how likely each pair of actions is in each observation, which answers and table say, and the observation."""

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
        self.game, self.args, self.model = game, args, None
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
            leaders, start = torch.tensor(answers).float()[:, None], torch.eye(self.game.num_observations)[0]
            values = self.network(leaders, tables, start)[..., -1].double().numpy() / self.game.num_steps
            follower_returns = 3 * self.game.scale[1] * values + self.model.rewards[1].mean()
        return leader_returns, follower_returns

    def relabel(self, leaders: torch.Tensor, observation: torch.Tensor, reply: torch.Tensor):
        """Returns what was seen that is valid for leaders [n, O, A] in an observation [n] where the follower replies
        [n]: its rewards [n, A], centred, in ranges of its payoffs, the next observations [n, A, O], and the weights
        [n, A] of the leader's actions: the probabilities with which these leaders take them, as shares of what was
        seen."""
        rewards = (self.model.rewards[1] - self.model.rewards[1].mean()) / (3 * self.game.scale[1])
        tensors = (torch.tensor(x).float() for x in (rewards, self.model.following, self.model.seen))
        rewards, following, seen = (x[observation, :, reply] for x in tensors)
        weights = leaders[torch.arange(len(leaders)), observation] * seen
        return rewards, following, weights / weights.sum(-1, keepdim=True).clamp(min=1e-9)

    def learn(self, model: Model, near: np.ndarray, learning_rate: float) -> float | None:
        """Temporal differences on relabelled transitions; half of the leaders are random, half are like those of
        `near`, logits [n, O, A]. Returns the last loss; a follower that plans has none."""
        self.model, n, num_steps = model, 256, self.game.num_steps
        if self.args.follower == "planning":
            return None
        near, tables = torch.tensor(near, dtype=torch.float32), torch.as_tensor(model.tables)
        self.optimizer.param_groups[0]["lr"] = learning_rate
        for _ in range(self.args.follower_updates):
            noise = torch.randn(n, *near.shape[1:])
            logits = torch.cat([LOGIT_STD * noise[::2], near[torch.randint(len(near), (n // 2,))] + 0.2 * noise[1::2]])
            leaders, table = logits.softmax(-1), tables[torch.randint(len(tables), (n,))]
            observation = torch.randint(self.game.num_observations, (n,))
            rewards, following, weights = self.relabel(leaders, observation, table[torch.arange(n), observation])
            table = F.one_hot(table, self.game.columns).float()
            with torch.no_grad():
                to_go = self.target(leaders[:, None], table[:, None], following)  # [n, A, N]: of 1, ..., N steps
                to_go = torch.cat([torch.zeros_like(to_go[..., :1]), to_go], -1)[..., :num_steps]
                target = (weights[..., None] * (rewards[..., None] + to_go)).sum(1)
            start = torch.eye(self.game.num_observations)[observation]
            loss = F.mse_loss(self.network(leaders, table, start), target)
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


def search(worth, shape: tuple[int, int], generations: int, rng: np.random.Generator, known: np.ndarray):
    """Evolution of four populations of 32 leaders, on logits [O, A] = `shape`; each begins with the best of 1,000
    random leaders, of deterministic ones and of those that are `known`. `worth` leaders [n, O, A], prices [n] -> [n].

    A leader at the edge of what the follower bears may be surrounded by worse ones. So in the first half of the
    generations two of the populations may choose the follower's table, at a price that rises until it is at the edge.
    Returns the logits of the two best of each population [8, O, A], and the mean worth of all in the last generation.
    """
    tables = np.array(list(itertools.islice(itertools.product(np.eye(shape[1]), repeat=shape[0]), 500)))
    logits = np.concatenate([known, 20 * tables, rng.normal(0, LOGIT_STD, (1000, *shape))])
    orders = [np.argsort(-worth(softmax(logits, -1), np.full(len(logits), price))) for price in (np.inf, 1.0)]
    parents = np.stack([logits[orders[k % 2][k // 2 : k // 2 + 8 : 2]] for k in range(4)])
    for generation in range(generations):
        children = parents.repeat(7, axis=1)
        children = children + LOGIT_STD * 0.92**generation * rng.standard_normal(children.shape)
        candidates, prices = np.concatenate([parents, children], axis=1), np.full((4, 32), np.inf)
        if 2 * generation < generations:
            prices[1::2] = 100 ** (2 * generation / generations)
        values = worth(softmax(candidates, -1).reshape(-1, *shape), prices.ravel()).reshape(4, 32)
        best = np.argsort(-values, axis=1, kind="stable")[:, :4, None, None]
        parents = np.take_along_axis(candidates, best, axis=1)
    return parents[:, :2].reshape(-1, *shape), values.mean()


def make_worth(follower: Follower, args: Args, rng: np.random.Generator, samples: int):
    """Returns the function from leaders [n, O, A] to what they are worth in imagined episodes, [n]. Asked for its
    probabilities, a leader plays as it answers, and counts the worst reply within the margin. Asked for K actions, it
    does not: its worth is that of its POMDP, the mean over `samples` of its answers."""
    margin, scale, k = args.margin, follower.game.scale, args.queries

    def worth(leaders: np.ndarray, price: np.ndarray | float = np.inf) -> np.ndarray:
        if k == "probabilities":
            return worst_reply(*follower.values(leaders), margin * scale[1], price * scale[0] / scale[1])
        answers = rng.multinomial(k, leaders, size=(samples, *leaders.shape[:2])).reshape(-1, *leaders.shape[1:]) / k
        replies = follower.values(answers)[1].argmax(1).reshape(samples, -1).T
        return np.take_along_axis(returns(follower.model, leaders)[0], replies, axis=1).mean(1)

    return worth


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
        gaps = (follower - follower[:, [column]])[:, ~same].T  # the others are no better,
        worth = np.column_stack([-leader[:, same].T, np.ones(same.sum())])  # and the leader gets no less from the same
        constraints, limits = np.vstack([np.pad(gaps, ((0, 0), (0, 1))), worth]), np.repeat(-margin, len(gaps))
        limits, one = np.append(limits, np.zeros(len(worth))), np.append(np.ones(len(leader)), 0)[None]
        bounds = [(0, 1)] * len(leader) + [(None, None)]
        solved = linprog([0] * len(leader) + [-1], constraints, limits, one, [1], bounds, method="highs")
        if solved.status == 0 and -solved.fun > best[0]:
            best = -solved.fun, solved.x[:-1]
    return best


def upper_bounds(model: Model) -> np.ndarray:
    """Returns, for each table of the follower [T], more than which no leader gets while it is a best reply.

    Whatever a leader does, the follower is sure of the most over its tables of the least over leaders, even leaders
    with a clock (backward induction). So a bound is the largest return against the table, of a leader with a clock,
    that leaves the follower that much: a linear programme in how often it takes which action where and when.
    """
    (num_tables, num_observations), num_steps = model.tables.shape, model.num_steps
    to_go = np.zeros((num_tables, num_observations))
    for _ in range(num_steps):
        q_values = model.table_rewards[..., 1] + (model.table_following @ to_go[..., None]).squeeze(-1)
        to_go = q_values.reshape(num_tables, num_observations, -1).min(-1)
    sure, bounds = to_go[:, 0].max(), np.full(num_tables, -np.inf)
    size = model.table_rewards.shape[1]
    for table in range(num_tables):
        flow = np.kron(np.eye(num_steps), np.kron(np.eye(num_observations), np.ones(size // num_observations)))
        flow = flow - np.kron(np.eye(num_steps, k=-1), model.table_following[table].T)
        leader, follower = np.tile(model.table_rewards[table].T, num_steps)
        solved = linprog(-leader, -follower[None], [1e-9 - sure], flow, np.eye(len(flow))[0], method="highs")
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
            slopes = [(x[1 : n + 1] - x[n + 1 :]).T / (2 * step) for x in (-leader_returns[:, table], gaps)]
            known[p.tobytes()] = -leader_returns[0, table], slopes[0], gaps[0] - margin, slopes[1]
        return known[p.tobytes()]

    value, slope, slack, slopes = (lambda p, k=k: evaluate(p)[k] for k in range(4))
    inside, options = {"type": "ineq", "fun": slack, "jac": slopes}, {"maxiter": 30, "ftol": 1e-8}
    solved = minimize(value, leader[:, 1], (), "SLSQP", slope, bounds=[(0, 1)] * n, constraints=inside, options=options)
    p = np.clip(np.nan_to_num(solved.x, nan=0.5), 0, 1)
    return np.stack([1 - p, p], axis=-1)


def best_commitment(model: Model, scale: np.ndarray, margin: float, generations: int, rng, starts: int = 4):
    """Solves a model of an iterated game for a leader that mixes, unless a bound says that a deterministic one is best:
    by evolution, and by climbing, for each table of the follower, from the `starts` best of random leaders to the edge
    of where that is a best reply, and from there to where it, or one that ties there, is better by the margin. Returns
    the leader [O, 2] that is worth most with the margin, and bounds of what any gets with ties in its favour."""
    bounds, ties, enough = upper_bounds(model), TIES * scale[1], 1e-3 * scale[0]

    def worth(leaders, price=np.inf):
        return worst_reply(*returns(model, np.asarray(leaders)), margin, price * scale[0] / scale[1])

    shape = model.tables.shape[1], 2
    leaders = list(map(np.array, itertools.product(np.eye(2), repeat=shape[0])))
    if worth(leaders).max() <= bounds.max() - enough:
        leaders += [*softmax(search(worth, shape, generations, rng, np.zeros((0, *shape)))[0], -1)]
    found = hopeful = worth(leaders).max()
    random, tried = softmax(rng.normal(0, 3, (2000, *shape)), -1), set()
    of_leader, of_follower = returns(model, random)
    rank = of_leader + 10 * scale[0] / scale[1] * (of_follower - of_follower.max(1, keepdims=True))
    for table in np.argsort(-bounds, kind="stable"):
        for start in np.argsort(-rank[:, table], kind="stable")[:starts]:
            if bounds[table] <= found + enough:
                break
            edge = climb(model, table, random[start])
            (leader_returns,), (follower_returns,) = returns(model, edge[None])
            tied, value = follower_returns >= follower_returns.max() - ties, leader_returns[table]
            hopeful = max(hopeful, value if tied[table] else -np.inf)
            if not tied[table] or value <= found + enough or round(value / scale[0], 2) in tried:
                continue
            tried.add(round(value / scale[0], 2))
            same = np.flatnonzero(tied & (leader_returns >= value - enough))
            inner = [(1 - near) * edge + near / 2 for near in (0, 0.02)]
            leaders += [climb(model, other, x, 1.5 * margin) for other in same for x in inner]
            found = max(found, worth(leaders[-2 * len(same) :]).max())
    return leaders[worth(leaders).argmax()], max(hopeful, found), bounds.max()


def solve(game: MatrixGame, starts: int = 4) -> Optima:
    """Returns the optima by class: deterministic leaders by enumeration, mixtures of them by linear programmes on the
    bimatrix of tables, stochastic ones by `best_commitment`, a lower bound beside an upper one, or, in one-shot games,
    where they are mixtures, exactly."""
    model, ties = complete_model(game), TIES * game.scale[1]
    tables = np.array(list(itertools.product(np.eye(game.rows), repeat=game.num_observations)))
    of_leader, of_follower = returns(model, tables)
    best = of_follower >= of_follower.max(1, keepdims=True) - ties
    optimistic, pessimistic = np.where(best, of_leader, -np.inf).max(), worst_reply(of_leader, of_follower, ties).max()
    mixture, _ = commitment(of_leader, of_follower)
    if game.num_steps == 1:
        leader, stochastic, bound = commitment(of_leader, of_follower, 2 * ties)[1][None], mixture, mixture
    else:
        rng = np.random.default_rng(0)
        leader, stochastic, bound = best_commitment(model, game.scale, 2 * ties, 80, rng, starts)
    candidates = np.concatenate([leader[None], tables])
    guaranteed = worst_reply(*returns(model, candidates), ties)
    leader, guaranteed = candidates[guaranteed.argmax()], guaranteed.max()
    return Optima(optimistic, pessimistic, mixture, max(stochastic, optimistic), guaranteed, bound, leader)


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
    measured = {"leader_return_greedy": leader_returns[0, replies].mean(), "follower_return": own}
    measured["leader_return_guaranteed"] = worst_reply(leader_returns, follower_returns, TIES * game.scale[1])[0]
    measured["follower_regret"] = max(follower_returns.max() - own, 0.0)
    return {name: float(value) for name, value in measured.items()}


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
        rows, columns, first = args.random_game or (2, 2, 0)
        games = ((rows, columns, first + k) for k in range(args.random_games))
        return [main(replace(args, random_games=None, random_game=game)) for game in games][-1]
    torch.set_num_threads(1)  # a thread pool costs more than it gives with models of this size
    torch.manual_seed(args.seed)
    start_time, rng, game = time.time(), np.random.default_rng(args.seed), MatrixGame(args.payoffs, args.num_steps)
    run_path, writer = start_run(args)
    experience, follower, steps, steps_to_try_all, curve = Experience(game), Follower(game, args), 0, 0, []
    worth, look_again = (make_worth(follower, args, rng, n * 256 // game.num_observations**2) for n in (1, 64))
    optima, plans = solve(game), args.follower == "planning" and args.queries == "probabilities"
    episode_steps = game.num_observations * (1 if args.queries == "probabilities" else args.queries) + game.num_steps
    episodes = experience.count.size * (3 if args.follower == "network" and game.num_steps == 1 else 1)
    total = args.total_timesteps or episodes * episode_steps
    rounds = args.rounds or {"planning": 2, "network": 10}[args.follower]
    champions, exploring, news = np.zeros((1, *game.shape[:2])), None, True
    for k in tqdm(range(1, rounds + 1), desc="rounds", leave=False, disable=None):
        while steps < total * k / rounds:
            seen = (experience.count > 0).sum()
            experience.play(rng)
            steps += episode_steps
            if (experience.count > 0).sum() > seen:
                news, steps_to_try_all = True, steps
        model = make_model(experience)
        td_loss = follower.learn(model, champions, args.follower_learning_rate * (1 - (k - 1) / rounds))
        if not plans:  # of new leaders a network learns before one is chosen: the best are those it is most wrong about
            found, exploring = search(worth, game.shape[:2], args.generations, rng, champions)
            known = len(champions) if args.follower == "network" else None
            champions = np.concatenate([champions, found])
            best = np.argsort(-look_again(softmax(champions[:known], -1)), kind="stable")[:8]
            leader, champions = softmax(champions[best[0]], -1), np.concatenate([champions[best], found])
        elif news:
            margin, news = game.scale[1] * args.margin, False
            if game.num_steps == 1:
                leader = commitment(*model.rewards[:, 0], margin)[1][None]
            else:
                leader = best_commitment(model, game.scale, margin, args.generations, rng)[0]
            exploring = worth(leader[None])[0]
        measured = measure(game, follower, args, leader)
        scalars = {f"charts/{name}": value for name, value in measured.items()}
        scalars |= {"charts/leader_return": exploring, "charts/stackelberg_value": optima.deterministic}
        scalars |= {} if td_loss is None else {"losses/follower_td_loss": td_loss}
        scalars["charts/leader_regret"] = optima.deterministic - measured["leader_return_greedy"]
        scalars["charts/SPS"] = steps / (time.time() - start_time)
        for tag, scalar in scalars.items():
            writer.add_scalar(tag, scalar, steps)
        curve.append([steps, *(measured[f"leader_return_{x}"] for x in ("greedy", "guaranteed")), exploring])

    points, greedy, guaranteed, exploring = np.array(curve).T
    result = {"script": os.path.basename(__file__), "env_id": args.env_id, "seed": args.seed, "args": asdict(args)}
    result |= {"leader_return": exploring[-math.ceil(len(curve) / 10) :].mean()} | measured
    result |= {"combined_steps": steps, "steps_to_try_all": steps_to_try_all, "triples_tried": int(model.seen.sum())}
    result["leader_regret"] = optima.deterministic - result["leader_return_greedy"]
    for name, values in (("steps_to_converge", guaranteed), ("steps_to_converge_exploring", exploring)):
        result[name] = steps_to_converge(points, (values - optima.guaranteed) / game.scale[0])
    for name in ("", "_pessimistic", "_mixture", "_stochastic", "_guaranteed", "_bound"):
        result[f"stackelberg_value{name}"] = float(getattr(optima, name[1:] or "deterministic"))
    for name, policy in (("leader_policy", leader), ("stackelberg_policy", optima.leader)):
        result[name] = (policy[:, 1] if args.num_steps > 1 else policy[0]).tolist()
    result["follower_policy"] = model.tables[follower.values(leader[None])[1][0].argmax()].tolist()
    result |= {"curve": np.array([points, greedy, exploring]).T.tolist(), "wall_seconds": time.time() - start_time}
    result["steps_per_second"] = steps / result["wall_seconds"]
    writer.close()
    finish(result, args, run_path)
    return result


def finish(result: dict, args: Args, run_path: str) -> None:
    """Writes result.json, of which nobody ever meets half, and says in words what was found."""
    with open(f"{run_path}/result.json.tmp", "w") as file:
        json.dump(result, file)
    os.replace(f"{run_path}/result.json.tmp", f"{run_path}/result.json")
    value = {name: f"{result[f'stackelberg_value_{name}']:.3f}" for name in ("mixture", "stochastic", "guaranteed")}
    where = "of action 1, at the start and after 00, 01, 10, 11" if args.num_steps > 1 else "of each action"
    print(f"""
{result["env_id"]}: after {result["combined_steps"]:,} combined steps
  guaranteed return  {result["leader_return_guaranteed"]:.3f} per game step, from an exact best response, ties against the leader
  leader's return    {result["leader_return_greedy"]:.3f} against the follower as trained
  optimum            {value["guaranteed"]} guaranteed, {value["stochastic"]} with ties for the leader: memory-1 leaders that mix
  other classes      {result["stackelberg_value"]:.3f} deterministic, {value["mixture"]} mixtures of these drawn before play
  leader's policy    {[round(p, 3) for p in result["leader_policy"]]}, probabilities {where}
  follower's regret  {result["follower_regret"]:.3f}, its reply {result["follower_policy"]}
  curves             tensorboard --logdir {os.path.dirname(run_path)}
  result             {run_path}/result.json""")  # noqa: E501


if __name__ == "__main__":
    main(tyro.cli(Args, description=__doc__))
