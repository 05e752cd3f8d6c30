# /// script
# requires-python = ">=3.11"
# dependencies = ["numpy==2.4.6", "tensorboard==2.21.0", "torch==2.13.0", "tqdm==4.70.1", "tyro==1.0.17",
#   "wandb==0.31.0"]
# ///
"""Stackelberg equilibria of iterated 2x2 matrix games: evolution strategies, and followers that learn from scratch.

The baseline ES-MD ("The Good Shepherd", Balaguer et al.) in "Oracles & Followers: Stackelberg Equilibria in Deep
Multi-Agent RL", the dashed lines of Figure 1:

    python ablations/es_md_matrix.py --env-id prisoners_dilemma

Every candidate leader meets a follower that knows nothing and learns by policy gradient, and is scored by what it gets
while that follower learns (the original's aim) or only once it has learned (`--no-reward-during-learning`: Lemma 1).
Evolution strategies follow the scores. The original is known to have used 1.28 billion steps, and no learning curve of
it was published; population, noise, rates and the follower's schedule are ours. In well under a minute for 10^8 steps
you should see the leader defect first and then reciprocate, for a greedy return of -0.90 per step; the leader as it is,
with its probabilities, gets more: it defects now and then, as often as the follower will bear.
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
from typing import NoReturn

import numpy as np
import tyro
from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm


@dataclass
class Args:
    exp_name: str = os.path.basename(__file__)[: -len(".py")]
    """name of this experiment, part of the run's name"""
    seed: int = 1
    """seed of every random number in the run"""
    track: bool = False
    """track the run with Weights and Biases too (set WANDB_MODE=offline to work without the network)"""
    wandb_project_name: str = "stackelberg"
    """project name in Weights and Biases"""
    wandb_entity: str | None = None
    """entity (team) in Weights and Biases"""
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
    """game steps per episode of the game"""
    total_timesteps: int = 100_000_000
    """environment steps in all, those in which followers learn included"""

    reward_during_learning: bool = True
    """score a leader by its mean payoff while the follower learns, as the original; off: by its payoff afterwards"""
    follower_updates: int = 50
    """policy-gradient updates of each follower, from scratch"""
    follower_episodes: int = 16
    """episodes of the game per update, and those that a follower plays greedily after the last one"""
    follower_step_size: float = 1.0
    """step size of the follower's gradient ascent (no Adam), in logits per unit of centred reward"""
    evaluation_followers: int = 16
    """followers that learn against each of the 32 leader tables, before training and not in the budget: their mean
    says what a greedy leader gets"""

    population: int = 128
    """leaders per generation, half of them mirror images of the other half; each meets a follower of its own"""
    noise_std: float = 2.0
    """standard deviation of the leaders around the mean, in logits; less of it leaves hero in a local optimum"""
    learning_rate: float = 0.1
    """Adam learning rate of the mean, in logits"""


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


# -------------------------------------------------------------------------------------------------------- policies
# A table is a deterministic memory-1 policy, [5]: the action in each observation. As answers to the queries, the
# leader's table is the follower's context; TABLES[i] is the table, or context, with index i.
TABLES = np.array(list(itertools.product(range(NUM_ACTIONS), repeat=NUM_OBSERVATIONS)))


def table_index(table: np.ndarray) -> np.ndarray:
    """Returns the row of TABLES that equals each table, [..., 5] -> [...]."""
    return table @ (NUM_ACTIONS ** np.arange(NUM_OBSERVATIONS)[::-1])


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


def best_response_return(game: MatrixGame, leader: np.ndarray) -> float:
    """Returns what a leader with these probabilities of action 1, [5], gets per game step from the best of the 32
    follower tables, ties broken for the leader: exact expectations, by following the probability of each observation.
    """
    reached = np.zeros((len(TABLES), NUM_OBSERVATIONS))
    reached[:, START] = 1
    returns, rows = np.zeros((2, len(TABLES))), np.arange(len(TABLES))[:, None]
    for _ in range(game.num_steps):
        reached_next = np.zeros_like(reached)
        for action, probability in enumerate((1 - leader, leader)):
            weight = reached * probability
            returns[0] += (weight * game.leader_payoff[action, TABLES]).sum(axis=1) / game.num_steps
            returns[1] += (weight * game.follower_payoff[action, TABLES]).sum(axis=1) / game.num_steps
            np.add.at(reached_next, (rows, game.next_observation(action, TABLES)), weight)
        reached = reached_next
    return returns[0, returns[1] >= returns[1].max() - 1e-9 * game.follower_scale].max().item()


# -------------------------------------------------------------------------------------------- sampled episodes, fast
class Episodes:
    """B episodes for each of P pairs of a leader and a follower, T steps, sampled in NumPy at about 15 ns per step.

    What makes it fast: buffers are made once; arrays stay in the cache; while playing, every number is a byte. A
    policy is a threshold per observation, in 1/256: action 1 is taken if a random byte is below it. (So probabilities
    are multiples of 1/256, from 1/256 to 255/256.) An action is a mask, 0 or 255. Then a policy is looked up without
    an index: with last actions l and f, and ^ for exclusive or,

        threshold = t00 ^ (l & (t00 ^ t10)) ^ (f & (t00 ^ t01)) ^ (l & f & (t00 ^ t01 ^ t10 ^ t11))

    Likewise, any payoff is a constant and a weighted sum of three features: l, f and l & f, as 0 or 1.
    """

    def __init__(self, game: MatrixGame, num_pairs: int, num_episodes: int, seed: int):
        self.game, self.shape = game, (game.num_steps, num_episodes, num_pairs)
        self.random = np.random.SFC64(seed)
        self.masks = np.empty((3, *self.shape), dtype=np.uint8)  # the leader's action, the follower's, both
        self.features = np.empty((3, *self.shape), dtype=np.float32)  # the same as 0 or 1
        # the terms of the thresholds, both players'; the threshold and one term of it, now
        self.terms = np.empty((NUM_OBSERVATIONS, 2, *self.shape[1:]), dtype=np.uint8)
        self.threshold, self.term = np.empty((2, 2, *self.shape[1:]), dtype=np.uint8)
        self.returns, self.weighted, self.product = np.empty((3, *self.shape), dtype=np.float32)

    @staticmethod
    def quantise(probabilities: np.ndarray) -> np.ndarray:
        """Returns probabilities as thresholds, bytes."""
        return np.clip(np.rint(256 * probabilities), 1, 255).astype(np.uint8)

    def play(self, leader: np.ndarray, follower: np.ndarray) -> None:
        """Plays all episodes with the thresholds of each pair's leader and follower, [5, P]."""
        for player, (start, t00, t01, t10, t11) in enumerate((leader, follower)):
            terms = np.stack((start, t00, t00 ^ t10, t00 ^ t01, t00 ^ t01 ^ t10 ^ t11))
            self.terms[:, player] = terms[:, None]
        start, constant, *slopes = self.terms
        num_bytes = 2 * math.prod(self.shape)
        draws = self.random.random_raw(num_bytes // 8 + 1).view(np.uint8)[:num_bytes].reshape(-1, *start.shape)
        for t in range(len(draws)):
            np.copyto(self.threshold, constant if t else start)
            for mask, slope in zip(self.masks[:, t - 1], slopes, strict=True) if t else ():
                np.bitwise_and(mask, slope, out=self.term)
                np.bitwise_xor(self.threshold, self.term, out=self.threshold)
            np.less(draws[t], self.threshold, out=self.term.view(bool))
            np.negative(self.term, out=self.masks[:2, t])  # 1 becomes 255
            np.bitwise_and(self.masks[0, t], self.masks[1, t], out=self.masks[2, t])
        np.bitwise_and(self.masks, 1, out=self.masks)
        self.features[:] = self.masks

    @staticmethod
    def weights(payoff: np.ndarray) -> np.ndarray:
        """Returns the weights of the three features, [3], in payoff - payoff[0, 0], [2, 2]."""
        (_, follower), (leader, both) = payoff - payoff[0, 0]
        return np.array((leader, follower, both - leader - follower))

    def mean_payoff(self, payoff: np.ndarray) -> np.ndarray:
        """Returns the mean payoff per game step of each pair, [P]."""
        return payoff[0, 0] + self.weights(payoff) @ self.features.mean(axis=(1, 2))

    def follower_gradient(self, thresholds: np.ndarray) -> np.ndarray:
        """Returns REINFORCE's gradient for the followers' logits, [5, P], in the episodes last played.

        It is the mean over episodes of the sum over steps of (action - probability) * (return to go - baseline); the
        baseline is the mean return to go of the pair's episodes at that step.
        """
        returns, weights = self.returns, self.weights(self.game.follower_reward).astype(np.float32)
        np.matmul(weights, self.features.reshape(3, -1), out=returns.reshape(-1))  # up to a constant: see baseline
        for t in range(len(returns) - 2, -1, -1):
            returns[t] += returns[t + 1]
        returns -= returns.mean(axis=1, keepdims=True)
        np.multiply(returns, self.features[1], out=self.weighted)
        taken, all_ = self.sum_by_observation(self.weighted), self.sum_by_observation(returns)
        return (taken - thresholds / np.float32(256) * all_) / self.shape[1]

    def sum_by_observation(self, x: np.ndarray) -> np.ndarray:
        """Sums x, [T, B, P], over the steps at which each observation was made: [5, P]."""
        leader, follower, both = (
            np.multiply(x[1:], feature[:-1], out=self.product[1:]).sum(axis=(0, 1)) for feature in self.features
        )
        neither = x[1:].sum(axis=(0, 1)) - leader - follower + both
        return np.stack((x[0].sum(axis=0), neither, follower - both, leader - both, both))


# ------------------------------------------------------------------------------------------------------- the learners
def sigmoid(logits: np.ndarray) -> np.ndarray:
    """Returns the probabilities of action 1."""
    return (1 + np.tanh(logits / 2)) / 2  # cannot overflow


def train_followers(
    game: MatrixGame, episodes: Episodes, leaders: np.ndarray, args: Args
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Lets a follower learn from scratch against each of the leaders, probabilities of action 1, [5, P].

    Returns the leaders' payoff while the followers learn, the leaders' and the followers' payoff in the episodes that
    the followers, greedy and frozen, play afterwards, all per game step, [P], and the followers' logits, [5, P].
    """
    leaders, logits = episodes.quantise(leaders), np.zeros(leaders.shape, dtype=np.float32)
    during = np.zeros(leaders.shape[1])
    for _ in range(args.follower_updates):
        followers = episodes.quantise(sigmoid(logits))
        episodes.play(leaders, followers)
        if args.reward_during_learning:
            during += episodes.mean_payoff(game.leader_payoff) / args.follower_updates
        logits += args.follower_step_size * episodes.follower_gradient(followers)
    episodes.play(leaders, episodes.quantise(logits > 0))
    return during, episodes.mean_payoff(game.leader_payoff), episodes.mean_payoff(game.follower_payoff), logits


def train_leader(game: MatrixGame, num_generations: int, args: Args) -> Iterator[tuple[int, np.ndarray, dict]]:
    """Evolution strategies: Adam on the gradient of the ranks' expectation, estimated from mirrored Gaussian noise.

    Yields the environment steps so far, the mean's logits, [5], and the scalars to log, after each generation.
    """
    rng = np.random.default_rng(args.seed)
    episodes = Episodes(game, args.population, args.follower_episodes, args.seed)
    generation_steps = math.prod(episodes.shape) * (args.follower_updates + 1)
    logits, momentum, variance = np.zeros((3, NUM_OBSERVATIONS))
    for generation in tqdm(range(1, num_generations + 1), desc="leader", unit="generation", leave=False, disable=None):
        noise = rng.normal(size=(NUM_OBSERVATIONS, args.population // 2))
        noise = np.concatenate((noise, -noise), axis=1)
        leaders = sigmoid(logits[:, None] + args.noise_std * noise)
        during, after, follower_return, _ = train_followers(game, episodes, leaders, args)

        # ranks from -0.5 to 0.5, ties in random order: the scale of the payoffs does not matter
        order = np.lexsort((rng.random(args.population), during if args.reward_during_learning else after))
        ranks = np.empty(args.population)
        ranks[order] = np.linspace(-0.5, 0.5, args.population)
        gradient = (noise * ranks).mean(axis=1) / args.noise_std
        momentum = 0.9 * momentum + 0.1 * gradient
        variance = 0.999 * variance + 0.001 * gradient**2
        step_size = args.learning_rate * math.sqrt(1 - 0.999**generation) / (1 - 0.9**generation)
        logits = logits + step_size * momentum / (np.sqrt(variance) + 1e-8)

        scalars = {"charts/leader_return": after.mean(), "charts/follower_return": follower_return.mean()}
        if args.reward_during_learning:
            scalars["charts/leader_return_during_learning"] = during.mean()
        yield generation * generation_steps, logits, scalars


def evaluate_pg_followers(game: MatrixGame, args: Args) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Lets `evaluation_followers` learn against each of the 32 leader tables, as they do in training.

    Returns what leader and follower then get per game step, both greedy, means over the followers, [32] each, and the
    followers' most common table, [32, 5]. A greedy leader is one of the 32: this evaluates every leader there can be.
    """
    leaders = TABLES.repeat(args.evaluation_followers, axis=0)
    episodes = Episodes(game, len(leaders), args.follower_episodes, args.seed)
    *_, logits = train_followers(game, episodes, leaders.T, args)
    followers = (logits.T > 0).astype(np.int64)
    most_common = [np.bincount(row).argmax() for row in table_index(followers).reshape(len(TABLES), -1)]
    leader_returns, follower_returns = play(game, leaders, followers)
    shape = (len(TABLES), args.evaluation_followers)
    return leader_returns.reshape(shape).mean(axis=1), follower_returns.reshape(shape).mean(axis=1), TABLES[most_common]


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
    may_be_zero = ["seed"]
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
    if args.population % 2:
        fail(f"--population must be even, half of it mirrors the other half, got {args.population}")
    if args.follower_episodes < 2:
        fail("--follower-episodes must be at least 2: their mean is the gradient's baseline")
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


def write_atomically(path: str, write: Callable[[str], object]) -> None:
    """Lets `write` make the file under another name first, so that nobody ever meets half of it."""
    write(path + ".tmp")
    os.replace(path + ".tmp", path)


def steps_to_stay(curve: list, value: float, tolerance: float) -> int | None:
    """Returns the first step of `curve` from which every later return is within `tolerance` of `value`, or None."""
    missed = [step for step, return_ in curve if abs(return_ - value) > tolerance + 1e-9]
    stays = [step for step, _ in curve if not missed or step > missed[-1]]
    return stays[0] if stays else None


def findings(result: dict, game: MatrixGame) -> str:
    """Says in words what the run found; 0.05 in the paper's scale passes for equal."""
    value, return_, exact = (result[key] for key in ("stackelberg_value", "leader_return", "leader_return_exact"))
    leader, follower = (
        "  ".join(f"{o}: {a}" for o, a in zip(OBSERVATIONS, result[policy], strict=True))
        for policy in ("leader_policy", "follower_policy")
    )
    probabilities = zip(OBSERVATIONS, result["leader_probabilities"], strict=True)
    leader_regret, follower_regret = (round(result[key], 2) + 0.0 for key in ("leader_regret", "follower_regret"))
    number, tolerance = result["args"]["evaluation_followers"], 0.05 * game.leader_scale + 1e-9
    verdict = "NOT a Stackelberg equilibrium"
    if result["follower_regret"] <= 0.05 * game.follower_scale + 1e-9:
        if value - return_ <= tolerance:
            verdict = "a Stackelberg equilibrium"
        elif return_ >= result["stackelberg_value_pessimistic"]:
            verdict = "as good as the follower's choice among equally good replies allows, or nearly"
    elif value - exact <= tolerance:
        verdict += ": the leader is optimal, but its followers do not all learn the best response"
    mixed = round(result["leader_return_mixed"], 2) + 0.0
    gain = round(result["leader_return_mixed"] - value, 2) + 0.0
    converged, paid = result["steps_to_converge"], "while" if result["args"]["reward_during_learning"] else "after"
    return f"""
{result["env_id"]}, leader paid {paid} followers learn: {verdict}
  leader's return    {return_:.2f} per game step (exact optimum {value:.2f}; {exact:.2f} from exact best responses)
  leader's regret    {leader_regret:.2f}
  leader's policy    {leader}   (observation: action)
  follower's reply   {follower}   (the most common of {number})
  follower's regret  {follower_regret:.2f} (exact; mean of the {number})
  not made greedy    {mixed:.2f} from its exact best response: {gain:+.2f} beside the best greedy leader
                     {"  ".join(f"{o}: {p:.2f}" for o, p in probabilities)}   (probability of action 1)
  converged          {"never" if converged is None else f"after {converged:,} steps"}
  speed              {result["steps_per_second"]:,.0f} steps per second, {result["wall_seconds"]:.1f} s in all"""


# ------------------------------------------------------------------------------------------------------------- the run
def main(args: Args) -> dict:
    """Trains the leader; returns what it writes to result.json. Exits with 2, nothing written, on wrong flags."""
    game = make_game(args)
    generation_steps = args.population * args.follower_episodes * args.num_steps * (args.follower_updates + 1)
    num_generations = args.total_timesteps // generation_steps
    if num_generations < 1:
        fail(f"--total-timesteps {args.total_timesteps} is less than one generation of {generation_steps} steps")
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
    stackelberg_value, pessimistic_value, best_follower_return = solve(game)
    # what each of the 32 greedy leaders gets from exact best responses, and from followers that learn against it
    exact_returns = np.array([best_response_return(game, table) for table in TABLES])
    leader_returns, follower_returns, follower_tables = evaluate_pg_followers(game, args)
    follower_regrets = best_follower_return - follower_returns

    curve, exact_curve, mixed_curve, training_curve, training_time = [], [], [], [], time.time()
    for global_step, logits, scalars in train_leader(game, num_generations, args):
        index = table_index((logits > 0).astype(np.int64))
        mixed = best_response_return(game, sigmoid(logits))
        curve.append([global_step, leader_returns[index].item()])
        exact_curve.append([global_step, exact_returns[index].item()])
        mixed_curve.append([global_step, mixed])
        training_curve.append([global_step, scalars["charts/leader_return"].item()])
        scalars["charts/leader_return_greedy"] = leader_returns[index]
        scalars["charts/leader_return_exact"] = exact_returns[index]
        scalars["charts/leader_return_mixed"] = mixed
        scalars["charts/leader_regret"] = stackelberg_value - leader_returns[index]
        scalars["charts/follower_regret"] = follower_regrets[index]
        scalars["charts/stackelberg_value"] = stackelberg_value
        scalars["charts/SPS"] = int(global_step / (time.time() - training_time))
        for tag, scalar in scalars.items():
            writer.add_scalar(tag, scalar, global_step)
    writer.close()
    if args.track:
        wandb.finish()
    end_time = time.time()
    tolerance = 0.05 * game.leader_scale
    result = {
        "script": os.path.basename(__file__),
        "env_id": args.env_id,
        "seed": args.seed,
        "args": asdict(args),
        "leader_return": curve[-1][1],
        "leader_return_exact": exact_returns[index].item(),
        "leader_return_mixed": mixed,
        "stackelberg_value": stackelberg_value,
        "stackelberg_value_pessimistic": pessimistic_value,
        "leader_regret": stackelberg_value - curve[-1][1],
        "follower_regret": follower_regrets[index].item(),
        "leader_policy": TABLES[index].tolist(),
        "leader_probabilities": sigmoid(logits).tolist(),
        "follower_policy": follower_tables[index].tolist(),
        "leader_steps": global_step,
        "steps_to_converge": steps_to_stay(curve, stackelberg_value, tolerance),
        "steps_to_0.1": steps_to_stay(curve, stackelberg_value, 2 * tolerance),
        "curve": curve,
        "exact_curve": exact_curve,
        "mixed_curve": mixed_curve,
        "training_curve": training_curve,
        "wall_seconds": end_time - start_time,
        "steps_per_second": global_step / (end_time - training_time),
    }
    result_path = os.path.join(run_path, "result.json")
    write_atomically(result_path, lambda path: Path(path).write_text(json.dumps(result) + "\n"))
    print(findings(result, game))
    print(f"  curves             tensorboard --logdir {args.run_dir}\n  result             {result_path}")
    return result


if __name__ == "__main__":
    main(parse_args())
