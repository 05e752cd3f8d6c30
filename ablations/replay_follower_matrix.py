# /// script
# requires-python = ">=3.11"
# dependencies = ["gymnasium==1.4.0", "numpy==2.4.6", "tensorboard==2.21.0", "torch==2.13.0", "tqdm==4.70.1",
#   "tyro==1.0.17", "wandb==0.31.0"]
# ///
"""Stackelberg equilibria of iterated 2x2 matrix games from a tenth of the steps: a follower that learns from replay.

Algorithm 1 of "Oracles & Followers: Stackelberg Equilibria in Deep Multi-Agent RL" allows the follower any learner. In
Figure 1 it is on-policy policy gradient, which uses a step once and takes nearly all of the 50,000. Here it is
Q-learning on a replay of all that it has seen, and PPO trains the leader on batches of 20 episodes:

    python ablations/replay_follower_matrix.py --env-id prisoners_dilemma

In a few seconds you should see the equilibrium of the iterated prisoner's dilemma, reached within 10,000 combined
steps: the leader defects once, then plays tit-for-tat, the follower always cooperates, and the leader's return is -0.90
per step. The floor is brute force: to try each of the 32 leaders once, against a perfect follower, takes 480 steps.
"""

import contextlib
import importlib.util
import io
import itertools
import json
import math
import os
import re
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import ClassVar, NoReturn

import gymnasium as gym
import numpy as np
import torch
import torch.nn as nn
import torch.optim as optim
import tyro
from gymnasium.vector import AutoresetMode
from gymnasium.vector.utils import batch_space
from torch.distributions.categorical import Categorical
from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm


@dataclass
class Args:
    exp_name: str = os.path.basename(__file__)[: -len(".py")]
    """name of this experiment, part of the run's name"""
    seed: int = 1
    """seed of every random number in the run"""
    torch_deterministic: bool = True
    """if toggled, `torch.backends.cudnn.deterministic=True`"""
    cuda: bool = False
    """use CUDA where it is available; the models are so small that a CPU is faster"""
    track: bool = False
    """track the run with Weights and Biases too (set WANDB_MODE=offline to work without the network)"""
    wandb_project_name: str = "stackelberg"
    """project name in Weights and Biases"""
    wandb_entity: str | None = None
    """entity (team) in Weights and Biases"""
    save_model: bool = False
    """save both policies as model.pt in the run's folder"""
    run_dir: str = "runs"
    """folder that the run's own folder is made in"""

    env_id: str = "prisoners_dilemma"
    """a game of the paper's Table 3, or a name for the game whose payoffs you give; Table 3 has
    prisoners_dilemma, stag_hunt, assurance, coordination, mixedharmony, harmony,
    noconflict, deadlock, prisoners_delight, hero, battle and chicken"""
    leader_payoff: tuple[float, ...] = ()
    """your own game: the leader's four payoffs, row by row (row = leader's action, column = follower's action)"""
    follower_payoff: tuple[float, ...] = ()
    """your own game: the follower's four payoffs in the same layout (not transposed)"""
    num_steps: int = 10
    """game steps per episode; an episode is 5 queries and then these steps"""
    total_timesteps: int = 10_000
    """combined environment steps of follower pre-training and leader training, queries included"""

    follower_timesteps: int = 1_920
    """environment steps of follower pre-training: 4 episodes with each of the 32 leaders"""
    follower_learning_rate: float = 1.0
    """step size of Q-learning; 1 is right for rewards and transitions without noise"""
    follower_batch_size: int = 480
    """environment steps between two rounds of Q-learning, rounded up to complete episodes"""
    follower_gamma: float = 0.9
    """discount of Q-learning, which sees no clock and so takes the end of an episode for no terminal state"""
    follower_replay_sweeps: int = 100
    """Q-learning updates of every transition in the replay, in each round"""
    shuffled_leaders: bool = True
    """deal the random leaders from a shuffled deck of all 32, so that none is met less often; off: draw each afresh"""
    follower_checkpoint: str | None = None
    """model.pt of an earlier run on the same game: use its follower; its steps still count"""
    verification_iterations: int = 50
    """follower iterations against the frozen leader that verify the equilibrium (Appendix F); not in the budget"""

    learning_rate: float = 0.05
    """Adam learning rate of the leader"""
    batch_size: int = 300
    """environment steps per leader batch, rounded up to complete episodes"""
    update_epochs: int = 10
    """passes over a leader batch, which is one minibatch"""
    risk_seeking: float = 5.0
    """an episode weighs exp(risk_seeking * its return in standard deviations), so that the best of a batch count most;
    0 = plain returns, which miss an action that pays little and is learned last (see `train_leader`)"""
    clip_coef: float = 0.3
    """PPO's clipping coefficient"""
    ent_coef: float = 0.1
    """coefficient of the entropy bonus"""


# ---------------------------------------------------------------------------------------------------------- the game
NUM_ACTIONS = 2  # action 0 is the first row or column of the payoff matrix
NUM_OBSERVATIONS = 1 + NUM_ACTIONS**2  # the start, then one for each pair of last actions (leader's, follower's)
START = 0
OBSERVATIONS = ("start", "00", "01", "10", "11")

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


class MatrixGame:
    """An iterated 2x2 game of `num_steps` steps; both players observe the last pair of actions.

    `leader_payoff` and `follower_payoff`, [leader action, follower action], are in the user's scale, in which
    everything is reported. `leader_reward` and `follower_reward` are the same, centred on 0 and stretched to +-1.5, as
    in the paper's training (Appendix F): this changes no equilibrium, and the learning rates fit every game. One unit
    of reward is `leader_scale` or `follower_scale` units of payoff (1 in the paper's games).
    """

    def __init__(self, leader_payoff, follower_payoff, num_steps: int = 10):
        self.leader_payoff = np.array(leader_payoff, dtype=np.float64).reshape(NUM_ACTIONS, NUM_ACTIONS)
        self.follower_payoff = np.array(follower_payoff, dtype=np.float64).reshape(NUM_ACTIONS, NUM_ACTIONS)
        self.num_steps = num_steps
        self.leader_reward, self.leader_scale = self.centre(self.leader_payoff)
        self.follower_reward, self.follower_scale = self.centre(self.follower_payoff)

    @staticmethod
    def centre(payoff: np.ndarray) -> tuple[np.ndarray, float]:
        """Returns the payoffs [2, 2] mapped to [-1.5, 1.5], and the payoff that one unit of the result stands for."""
        scale = (payoff.max() - payoff.min()) / 3 or 1.0
        return (payoff - (payoff.max() + payoff.min()) / 2) / scale, float(scale)

    @staticmethod
    def next_observation(leader_action: np.ndarray, follower_action: np.ndarray) -> np.ndarray:
        """Returns what both players observe after these actions (all of one shape)."""
        return 1 + NUM_ACTIONS * leader_action + follower_action


# ------------------------------------------------------------------------------------- the leader's POMDP (Theorem 1)
class LeaderPOMDP(gym.vector.VectorEnv):
    """The leader's learning problem of Theorem 1: queries first, then the game against the follower they inform.

    Step t < 5 shows observation t and keeps the action as its answer, without reward. The five answers are the
    context of `follower(observation [num_envs], context [num_envs, 5]) -> action [num_envs]`, which then plays
    `num_steps` steps of the game. Nothing in the one-hot observation tells a query from the game, so a memory-less
    leader answers as it plays: it is invariant (Appendix B). Actions are 0 or 1; rewards are `game.leader_reward`.

    All episodes start and end together, after 5 + num_steps steps, and restart in the step in which they end
    (`AutoresetMode.SAME_STEP`). `infos["final_info"]` then holds both players' payoff per game step.
    """

    metadata: ClassVar = {"autoreset_mode": AutoresetMode.SAME_STEP, "render_modes": []}

    def __init__(self, game: MatrixGame, follower: Callable[[np.ndarray, np.ndarray], np.ndarray], num_envs: int):
        self.game, self.follower, self.num_envs = game, follower, num_envs
        self.episode_length = NUM_OBSERVATIONS + game.num_steps
        self.single_observation_space = gym.spaces.Box(0.0, 1.0, (NUM_OBSERVATIONS,), np.float32)
        self.single_action_space = gym.spaces.Discrete(NUM_ACTIONS)
        self.observation_space = batch_space(self.single_observation_space, num_envs)
        self.action_space = batch_space(self.single_action_space, num_envs)

    def reset(self, *, seed: int | None = None, options: dict | None = None) -> tuple[np.ndarray, dict]:
        """Starts all episodes; returns the first query [num_envs, 5] and no info.

        Raises ValueError for a partial reset (`options["reset_mask"]`): the episodes share one clock.
        """
        super().reset(seed=seed)  # the POMDP itself draws no random numbers
        if options and not np.all(options.get("reset_mask", True)):
            raise ValueError("LeaderPOMDP resets all episodes together; reset_mask must not leave any out")
        self.t = 0
        self.observation = np.full(self.num_envs, START)
        self.context = np.zeros((self.num_envs, NUM_OBSERVATIONS), dtype=np.int64)
        self.payoffs = np.zeros((2, self.num_envs))
        return self.one_hot(), {}

    def step(self, actions: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, dict]:
        """Takes the leader's actions [num_envs]; returns observations [num_envs, 5], rewards, terminations and
        truncations [num_envs], and infos."""
        actions = np.asarray(actions)
        assert actions.shape == (self.num_envs,) and ((actions == 0) | (actions == 1)).all(), f"bad actions: {actions}"
        rewards = np.zeros(self.num_envs)
        if self.t < NUM_OBSERVATIONS:  # a query
            self.context[:, self.t] = actions
            self.observation = np.full(self.num_envs, (self.t + 1) % NUM_OBSERVATIONS)  # after the last one, START
        else:  # a step of the game
            follower_actions = self.follower(self.observation, self.context)
            rewards = self.game.leader_reward[actions, follower_actions]
            self.payoffs[0] += self.game.leader_payoff[actions, follower_actions]
            self.payoffs[1] += self.game.follower_payoff[actions, follower_actions]
            self.observation = self.game.next_observation(actions, follower_actions)
        self.t += 1

        done = self.t == self.episode_length
        terminations, truncations, infos = np.full(self.num_envs, done), np.zeros(self.num_envs, dtype=bool), {}
        if done:
            returns = dict(zip(("leader_return", "follower_return"), self.payoffs / self.game.num_steps, strict=True))
            infos = {"final_obs": self.one_hot(), "_final_obs": terminations.copy()}
            infos |= {"final_info": returns, "_final_info": terminations.copy()}
            self.reset()
        return self.one_hot(), rewards, terminations, truncations, infos

    def one_hot(self) -> np.ndarray:
        """Returns the current observations as one-hot rows, [num_envs, 5]."""
        return np.eye(NUM_OBSERVATIONS, dtype=np.float32)[self.observation]


# -------------------------------------------------------------------------------------------------------- policies
# A table is a deterministic memory-1 policy, [5]: the action in each observation. As answers to the queries, the
# leader's table is the follower's context; TABLES[i] is the table, or context, with index i.
TABLES = np.array(list(itertools.product(range(NUM_ACTIONS), repeat=NUM_OBSERVATIONS)))


def table_index(table: np.ndarray) -> np.ndarray:
    """Returns the row of TABLES that equals each table, [..., 5] -> [...]."""
    return table @ (NUM_ACTIONS ** np.arange(NUM_OBSERVATIONS)[::-1])


def layer_init(layer: nn.Linear, std: float = 0.01) -> nn.Linear:
    """Draws small weights, so that every policy starts near uniform and every value near 0."""
    nn.init.orthogonal_(layer.weight, std)
    return layer


class Follower(nn.Module):
    """Contextual Q-table: q_values [160, 2] are the discounted rewards of both actions in each of the 32 x 5 pairs of
    context and observation."""

    def __init__(self):
        super().__init__()
        self.register_buffer("q_values", torch.zeros(len(TABLES) * NUM_OBSERVATIONS, NUM_ACTIONS))

    def greedy_tables(self) -> np.ndarray:
        """Returns the follower's greedy table for each of the 32 contexts, [32, 5]."""
        return self.q_values.argmax(1).reshape(len(TABLES), NUM_OBSERVATIONS).cpu().numpy()


class Leader(nn.Module):
    """Memory-less policy, linear in the one-hot observation, no bias."""

    def __init__(self):
        super().__init__()
        self.actor = layer_init(nn.Linear(NUM_OBSERVATIONS, NUM_ACTIONS, bias=False))

    def forward(self, observation: torch.Tensor) -> Categorical:
        """Returns the distribution of the action, [...], for one-hot observations [..., 5]."""
        return Categorical(logits=self.actor(observation))

    def greedy_table(self) -> np.ndarray:
        """Returns the most probable action in each observation, [5]."""
        return self.actor.weight.argmax(0).cpu().numpy()


# ------------------------------------------------------------------------------------------------ the exact solution
def play(game: MatrixGame, leader_tables: np.ndarray, follower_tables: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Plays one episode for each pair of tables [n, 5]; returns both players' mean payoff per game step, [n]."""
    rows = np.arange(len(leader_tables))
    observation = np.full(len(rows), START)
    leader_return, follower_return = np.zeros(len(rows)), np.zeros(len(rows))
    for _ in range(game.num_steps):
        leader_action, follower_action = leader_tables[rows, observation], follower_tables[rows, observation]
        leader_return += game.leader_payoff[leader_action, follower_action]
        follower_return += game.follower_payoff[leader_action, follower_action]
        observation = game.next_observation(leader_action, follower_action)
    return leader_return / game.num_steps, follower_return / game.num_steps


def solve(game: MatrixGame) -> tuple[float, float, np.ndarray]:
    """Solves the game (Definition 2) by enumeration: 32 leader tables x 32 stationary follower tables.

    Returns the leader's optimal return if the follower breaks ties in its favour, the same if it breaks them against
    it, and the follower's best return against each leader table, [32]; all per game step, in the scale of the payoffs.
    """
    n = len(TABLES)
    leader, follower = play(game, TABLES.repeat(n, axis=0), np.tile(TABLES, (n, 1)))
    leader, follower = leader.reshape(n, n), follower.reshape(n, n)
    best = follower.max(axis=1)
    is_best = follower >= best[:, None] - 1e-9 * game.follower_scale
    optimistic, pessimistic = np.where(is_best, leader, -np.inf), np.where(is_best, leader, np.inf)
    return optimistic.max().item(), pessimistic.min(axis=1).max().item(), best


# ------------------------------------------------------------------------- follower pre-training (Algorithm 1, phase 1)
def random_leaders(seed: int, shuffled: bool) -> Iterator[int]:
    """Yields the indices of random leader tables: dealt from a shuffled deck of all 32, or each drawn afresh."""
    rng = np.random.default_rng(seed)
    while True:
        yield from rng.permutation(len(TABLES)) if shuffled else rng.integers(len(TABLES), size=len(TABLES))


def train_follower(
    follower: Follower, game: MatrixGame, leaders: Iterator[int], num_iterations: int, args: Args, label: str
) -> Iterator[tuple[int, dict]]:
    """Q-learning from replay for the follower, one leader table from `leaders` in each episode.

    Off-policy learning leaves the follower free to explore: it plays what it has tried least in this context and
    observation, whatever it is worth.

    Yields the environment steps so far, queries included, and the scalars to log, after each iteration.
    """
    q_values = follower.q_values
    rng = np.random.default_rng(args.seed)
    episode_length = NUM_OBSERVATIONS + game.num_steps
    num_episodes = math.ceil(args.follower_batch_size / episode_length)
    visits = np.zeros(q_values.shape)
    replay = []  # of every game step so far: inputs, actions, rewards and next inputs, each [num_episodes]
    for iteration in tqdm(range(1, num_iterations + 1), desc=label, unit="iteration", leave=False, disable=None):
        # a deterministic leader's answers to the five queries are its table
        context = np.array(list(itertools.islice(leaders, num_episodes)))
        observation = np.full(num_episodes, START)
        payoff = 0.0
        for _ in range(game.num_steps):
            inputs = NUM_OBSERVATIONS * context + observation
            action = (visits[inputs] + 0.5 * rng.random((num_episodes, NUM_ACTIONS))).argmin(axis=1)  # ties by chance
            leader_action = TABLES[context, observation]
            reward = game.follower_reward[leader_action, action]
            observation = game.next_observation(leader_action, action)
            replay.append((inputs, action, reward, NUM_OBSERVATIONS * context + observation))
            np.add.at(visits, (inputs, action), 1)
            payoff += game.follower_payoff[leader_action, action].mean() / game.num_steps

        # All transitions at once. Leader and game are deterministic: repeats of a transition write the same value.
        columns = (np.concatenate(column) for column in zip(*replay, strict=True))
        inputs, actions, rewards, next_inputs = (torch.as_tensor(column, device=q_values.device) for column in columns)
        for _ in range(args.follower_replay_sweeps):
            targets = rewards.float() + args.follower_gamma * q_values[next_inputs].amax(dim=1)
            td_error = targets - q_values[inputs, actions]
            q_values[inputs, actions] += args.follower_learning_rate * td_error

        scalars = {"charts/follower_return": payoff, "losses/follower_td_loss": (td_error**2).mean().item()}
        yield iteration * num_episodes * episode_length, scalars


# ------------------------------------------------------------------------------ leader training (Algorithm 1, phase 2)
def train_leader(leader: Leader, envs: LeaderPOMDP, num_iterations: int, args: Args) -> Iterator[tuple[int, dict]]:
    """PPO on the leader's POMDP, one complete episode of every environment in each iteration.

    The leader explores by whole tables: it draws one when an episode starts, each action with the policy's probability,
    and plays as it answered. So an episode is one decision, the five answers, and its return is what they earned.

    Episodes are weighted as in the gradient of log E[exp(risk_seeking * return)]. It has the same maximum here, where
    nothing but the leader's own choice is random. In the plain mean over all that a leader tries, an action that pays
    little (the first in the prisoner's dilemma: a thirtieth of the range) drowns in what the other four cause, drifts,
    and is saturated when they are settled at last. Among the best of a batch they are settled already.

    Yields the environment steps so far, queries included, and the scalars to log, after each iteration.
    """
    device = leader.actor.weight.device
    optimizer = optim.Adam(leader.parameters(), lr=args.learning_rate, eps=1e-5)
    queries = torch.eye(NUM_OBSERVATIONS, device=device)  # [5, 5], one one-hot query in each row
    rows = np.arange(envs.num_envs)
    next_obs, _ = envs.reset(seed=args.seed)
    for iteration in tqdm(range(1, num_iterations + 1), desc="leader", unit="iteration", leave=False, disable=None):
        with torch.no_grad():
            tables = leader(queries).sample((envs.num_envs,))  # [num_envs, 5]
            logprobs = leader(queries).log_prob(tables)
        returns = np.zeros(envs.num_envs)
        for _ in range(envs.episode_length):
            actions = tables.cpu().numpy()[rows, next_obs.argmax(axis=1)]
            next_obs, reward, _, _, infos = envs.step(actions)
            returns += reward

        returns = torch.as_tensor(returns, dtype=torch.float32, device=device)
        advantages = (returns - returns.mean()) / (returns.std(correction=0) + 1e-3)  # [num_envs]
        if args.risk_seeking:
            weights = torch.softmax(args.risk_seeking * advantages, dim=0)
            advantages = envs.num_envs * weights - 1  # their mean is 0
        advantages = advantages.unsqueeze(1)  # the same for each of the five answers

        for _ in range(args.update_epochs):
            policy = leader(queries)
            ratio = (policy.log_prob(tables) - logprobs).exp()
            clipped_ratio = torch.clamp(ratio, 1 - args.clip_coef, 1 + args.clip_coef)
            pg_loss = torch.max(-advantages * ratio, -advantages * clipped_ratio).mean()
            loss = pg_loss - args.ent_coef * policy.entropy().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()

        scalars = {f"charts/{name}": returns.mean() for name, returns in infos["final_info"].items()}
        scalars |= {"losses/policy_loss": pg_loss.item(), "losses/entropy": policy.entropy().mean().item()}
        scalars |= {"losses/approx_kl": ((ratio - 1) - ratio.log()).mean().item()}
        yield iteration * envs.episode_length * envs.num_envs, scalars


# ------------------------------------------------------------------------------ equilibrium verification (Appendix F)
def verify(follower: Follower, game: MatrixGame, leader: int, args: Args) -> tuple[float, float]:
    """Trains the follower further against the frozen leader TABLES[leader]; returns the change in the leader's and in
    the follower's greedy return, payoff per game step. At an equilibrium the follower gains nothing."""
    before = play(game, TABLES, follower.greedy_tables())
    for _ in train_follower(follower, game, itertools.repeat(leader), args.verification_iterations, args, "verify"):
        pass
    after = play(game, TABLES, follower.greedy_tables())
    return (after[0] - before[0])[leader].item(), (after[1] - before[1])[leader].item()


# ----------------------------------------------------------------------------------------------------- flags and files
def fail(message: str) -> NoReturn:
    """Ends the program with one line on stderr and exit code 2."""
    print(f"{os.path.basename(__file__)}: error: {message}", file=sys.stderr)
    raise SystemExit(2)


def parse_args(argv: list[str] | None = None) -> Args:
    """Parses the command line with tyro, cutting its box of several lines down to the error itself."""
    box = io.StringIO()
    try:
        with contextlib.redirect_stderr(box):
            return tyro.cli(Args, args=argv, description=__doc__)
    except SystemExit as error:
        if error.code:
            plain = re.sub(r"\x1b\[[0-9;]*m", "", box.getvalue())  # a terminal gets colours
            lines = [line.strip("│ ") for line in plain.splitlines()[1:]]
            fail(" ".join(itertools.takewhile(lambda line: line[:1] not in "─╰", lines)))
        raise


def make_game(args: Args) -> MatrixGame:
    """Checks every flag that can be checked alone; returns the game. Exits with 2 if one is wrong."""
    may_be_zero = ["seed", "verification_iterations", "follower_gamma", "risk_seeking", "ent_coef"]
    for flag, value in asdict(args).items():
        name = f"--{flag.replace('_', '-')}"
        if flag in ("exp_name", "env_id") and not re.fullmatch(r"[\w.-]+", value):
            fail(f"{name} becomes part of a folder's name: use letters, digits, '_', '-' and '.', not {value!r}")
        if isinstance(value, float) and not math.isfinite(value):
            fail(f"{name} must be a finite number, got {value}")
        if flag in may_be_zero:
            if not 0 <= value < 2**63:
                fail(f"{name} must not be negative, got {value}")
        elif isinstance(value, int | float) and not isinstance(value, bool) and value <= 0:
            fail(f"{name} must be positive, got {value}")
    if args.follower_learning_rate > 1:
        fail(f"--follower-learning-rate must be at most 1, got {args.follower_learning_rate}")
    if args.follower_gamma >= 1:
        fail(f"--follower-gamma must be less than 1, got {args.follower_gamma}")
    if not args.leader_payoff and not args.follower_payoff:
        if args.env_id not in PAYOFFS:
            fail(f"no game {args.env_id!r}: choose one of {', '.join(PAYOFFS)}, or give your own payoffs")
        leader_payoff = np.array(PAYOFFS[args.env_id])
        return MatrixGame(leader_payoff, leader_payoff.T, args.num_steps)
    for name, payoff in (("leader", args.leader_payoff), ("follower", args.follower_payoff)):
        if len(payoff) != NUM_ACTIONS**2 or not np.isfinite([*payoff, max(payoff) - min(payoff)]).all():
            fail(f"--{name}-payoff must be four finite numbers, row by row, got {payoff or 'none'}")
    args.env_id = "custom" if args.env_id == Args.env_id else args.env_id
    if args.env_id in PAYOFFS:
        fail(f"--env-id {args.env_id} is a game of the paper; give your own game another name")
    return MatrixGame(args.leader_payoff, args.follower_payoff, args.num_steps)


def load_checkpoint(path: str, game: MatrixGame) -> dict:
    """Loads a model.pt of an earlier run. Exits with 2 if it is none, or of another game."""
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
        payoffs, num_steps = checkpoint["payoffs"], checkpoint["num_steps"]
        Follower().load_state_dict(checkpoint["follower"])
        assert isinstance(checkpoint["follower_steps"], int)
    except OSError as error:
        fail(f"--follower-checkpoint {path}: {error.strerror or error}")
    except Exception:  # torch.load raises whatever a foreign file makes it trip over
        fail(f"--follower-checkpoint {path} is not a model.pt with a follower of this shape")
    if payoffs != [game.leader_payoff.tolist(), game.follower_payoff.tolist()] or num_steps != game.num_steps:
        fail(f"--follower-checkpoint {path} is from another game ({checkpoint['env_id']}, {num_steps} steps)")
    return checkpoint


def write_atomically(path: str, write: Callable[[str], object]) -> None:
    """Lets `write` make the file under another name first, so that nobody ever meets half of it."""
    write(path + ".tmp")
    os.replace(path + ".tmp", path)


def summary(result: dict, game: MatrixGame) -> str:
    """Says in words what the run found; 0.05 in the paper's scale passes for equal."""
    value, pessimistic_value = result["stackelberg_value"], result["stackelberg_value_pessimistic"]
    leader, follower = (
        "  ".join(f"{o}: {a}" for o, a in zip(OBSERVATIONS, result[policy], strict=True))
        for policy in ("leader_policy", "follower_policy")
    )
    verdict = "NOT a Stackelberg equilibrium"
    if result["follower_regret"] <= 0.05 * game.follower_scale + 1e-9:
        if result["leader_regret"] <= 0.05 * game.leader_scale + 1e-9:
            verdict = "a Stackelberg equilibrium"
        elif result["leader_return"] >= pessimistic_value:
            verdict = "as good as the follower's choice among equally good replies allows, or nearly"
    ties = ""
    if value - pessimistic_value > 1e-9 * game.leader_scale:  # sums of floats differ without a tie that matters
        ties = f"; {pessimistic_value:.2f} if the follower breaks ties against the leader"
    converged = result["steps_to_converge"]
    return f"""
{result["env_id"]}: {verdict}
  leader's return    {result["leader_return"]:.2f} per game step (exact optimum {value:.2f}{ties})
  leader's regret    {round(result["leader_regret"], 2) + 0.0:.2f}
  leader's policy    {leader}   (observation: action)
  follower's reply   {follower}
  follower's regret  {result["follower_regret"]:.2f} (exact)
  verification       further training changes the follower's return by {round(result["verification_gain"], 2) + 0.0:.2f}
  converged          {"never" if converged is None else f"after {converged:,} combined steps"}
  speed              {result["steps_per_second"]:,.0f} steps per second, {result["wall_seconds"]:.1f} s in all"""


# ------------------------------------------------------------------------------------------------------------- the run
def main(args: Args) -> dict:
    """Runs the three phases; returns what it writes to result.json. Exits with 2, nothing written, on wrong flags."""
    game = make_game(args)
    checkpoint = load_checkpoint(args.follower_checkpoint, game) if args.follower_checkpoint else None
    episode_length = NUM_OBSERVATIONS + game.num_steps
    follower_batch = math.ceil(args.follower_batch_size / episode_length) * episode_length
    leader_batch = math.ceil(args.batch_size / episode_length) * episode_length
    follower_iterations = args.follower_timesteps // follower_batch
    follower_steps = checkpoint["follower_steps"] if checkpoint else follower_iterations * follower_batch
    leader_iterations = (args.total_timesteps - follower_steps) // leader_batch
    if follower_steps == 0:
        fail(f"--follower-timesteps {args.follower_timesteps} is less than one batch of {follower_batch} steps")
    if leader_iterations < 1:
        needed = follower_steps + leader_batch
        fail(f"--total-timesteps {args.total_timesteps} is less than the follower's and one leader batch, {needed}")
    if args.track and importlib.util.find_spec("wandb") is None:
        fail("--track needs Weights and Biases: pip install wandb")
    start_time = time.time()
    for second in itertools.count(int(start_time)):  # the same run, started twice in one second, needs two names
        run_name = f"{args.env_id}__{args.exp_name}__{args.seed}__{second}"
        run_path = os.path.join(args.run_dir, run_name)
        try:
            os.makedirs(run_path)
            break
        except FileExistsError:
            continue
        except OSError as error:
            fail(f"--run-dir {args.run_dir}: cannot make a folder in it: {error.strerror}")

    if args.track:
        import wandb

        names = {"name": run_name, "project": args.wandb_project_name, "entity": args.wandb_entity}
        try:
            wandb.init(**names, dir=run_path, config=asdict(args), sync_tensorboard=True, save_code=True)
        except wandb.Error as error:  # no key, no network
            shutil.rmtree(run_path)
            fail(f"--track: {' '.join(str(error).split())}")
    writer = SummaryWriter(run_path)
    rows = "\n".join(f"|{flag}|{value}|" for flag, value in asdict(args).items())
    writer.add_text("hyperparameters", f"|param|value|\n|-|-|\n{rows}")
    torch.set_num_threads(1)  # a thread pool costs more than it gives with models of this size
    torch.backends.cudnn.deterministic = args.torch_deterministic
    device = torch.device("cuda" if torch.cuda.is_available() and args.cuda else "cpu")
    stackelberg_value, pessimistic_value, best_follower_return = solve(game)

    def log(global_step: int, scalars: dict[str, float]) -> None:
        sps = int(global_step / (time.time() - start_time))
        for tag, scalar in {**scalars, "charts/stackelberg_value": stackelberg_value, "charts/SPS": sps}.items():
            writer.add_scalar(tag, scalar, global_step)

    # phase 1: pre-train the follower against random leaders
    torch.manual_seed(args.seed)
    follower = Follower().to(device)
    if checkpoint:
        follower.load_state_dict(checkpoint["follower"])
    else:
        leaders = random_leaders(args.seed, args.shuffled_leaders)
        for step, scalars in train_follower(follower, game, leaders, follower_iterations, args, "follower"):
            log(step, scalars)
    follower_tables = follower.greedy_tables()
    # what each of the 32 leaders would get from this follower, and how far its replies are from the best
    leader_returns, follower_returns = play(game, TABLES, follower_tables)
    follower_regrets = best_follower_return - follower_returns

    # phase 2: train the leader against the frozen, greedy follower
    torch.manual_seed(args.seed)  # again, so that a checkpoint's follower gives the same run
    leader = Leader().to(device)

    def oracle(observation: np.ndarray, context: np.ndarray) -> np.ndarray:
        return follower_tables[table_index(context), observation]

    envs = LeaderPOMDP(game, oracle, leader_batch // episode_length)
    index = table_index(leader.greedy_table())
    curve = [[follower_steps, leader_returns[index].item()]]
    for step, scalars in train_leader(leader, envs, leader_iterations, args):
        index = table_index(leader.greedy_table())
        scalars["charts/leader_return_greedy"] = leader_returns[index]
        scalars["charts/leader_regret"] = stackelberg_value - leader_returns[index]
        scalars["charts/follower_regret"] = follower_regrets[index]
        log(follower_steps + step, scalars)
        curve.append([follower_steps + step, leader_returns[index].item()])
    global_step, leader_return = curve[-1]
    if args.save_model:
        payoffs = [game.leader_payoff.tolist(), game.follower_payoff.tolist()]
        model = {"env_id": args.env_id, "payoffs": payoffs, "num_steps": game.num_steps}
        model |= {"follower": follower.state_dict(), "leader": leader.state_dict(), "follower_steps": follower_steps}
        write_atomically(os.path.join(run_path, "model.pt"), lambda path: torch.save(model, path))

    # phase 3: verify the equilibrium
    torch.manual_seed(args.seed)
    leader_gain, follower_gain = verify(follower, game, index, args)
    writer.close()
    if args.track:
        wandb.finish()
    wall_seconds = time.time() - start_time
    missed = [step for step, value in curve if abs(value - stackelberg_value) > 0.05 * game.leader_scale + 1e-9]
    converged = [step for step, _ in curve if not missed or step > missed[-1]]
    result = {
        "script": os.path.basename(__file__),
        "env_id": args.env_id,
        "seed": args.seed,
        "args": asdict(args),
        "leader_return": leader_return,
        "stackelberg_value": stackelberg_value,
        "stackelberg_value_pessimistic": pessimistic_value,
        "leader_regret": stackelberg_value - leader_return,
        "follower_regret": follower_regrets[index].item(),
        "follower_regret_all": follower_regrets.sum().item(),
        "verification_gain": follower_gain,
        "verification_gain_leader": leader_gain,
        "leader_policy": TABLES[index].tolist(),
        "follower_policy": follower_tables[index].tolist(),
        "follower_steps": follower_steps,
        "leader_steps": global_step - follower_steps,
        "steps_to_converge": converged[0] if converged else None,
        "curve": curve,
        "wall_seconds": wall_seconds,
        "steps_per_second": (global_step - (follower_steps if checkpoint else 0)) / wall_seconds,
    }
    result_path = os.path.join(run_path, "result.json")
    write_atomically(result_path, lambda path: Path(path).write_text(json.dumps(result) + "\n"))
    print(summary(result, game))
    print(f"  curves             tensorboard --logdir {args.run_dir}\n  result             {result_path}")
    return result


if __name__ == "__main__":
    main(parse_args())
