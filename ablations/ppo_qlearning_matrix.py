# /// script
# requires-python = ">=3.11"
# dependencies = ["numpy==2.4.6", "tensorboard==2.21.0", "torch==2.13.0", "tqdm==4.70.1", "tyro==1.0.17",
#   "wandb==0.31.0"]
# ///
"""Stackelberg equilibria of iterated 2x2 matrix games: a PPO leader, and a Q-learning follower in its every episode.

The baseline (Brero et al.) in "Oracles & Followers: Stackelberg Equilibria in Deep Multi-Agent RL": the orange curves
of Figures 1 and 8.

    python ablations/ppo_qlearning_matrix.py --env-id stag_hunt

Theorem 1 with the oldest of oracles. Each leader episode opens with the whole learning of a tabular Q-learning
follower, 80 episodes of the game, in which the leader's actions are the answers to the follower's queries and earn it
nothing. Then follows one episode against what the follower has learned, and that is what the leader is paid for. Every
step counts: 810 buy one sample of the leader's reward, where the Meta-RL follower of stackelberg_ppo_matrix.py needs
15. In under a minute you should see the leader settle near 0.00, the optimum of the stag hunt, after 100,000 to
1,600,000 steps: it depends on the seed. In some games some seeds, in hero all, end short of the optimum.
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
from typing import NamedTuple, NoReturn

import numpy as np
import torch
import torch.nn as nn
import torch.optim as optim
import tyro
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
    """save the leader's policy as model.pt in the run's folder"""
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
    """game steps per episode of the game; a leader episode holds `follower_episodes` of them and one more"""
    total_timesteps: int = 2_000_000
    """environment steps in all, those in which the follower learns included (Figure 8)"""

    follower_episodes: int = 80
    """episodes of the game in which the follower learns, from scratch, in every leader episode (authors' setting)"""
    q_learning_rate: float = 0.1
    """step size of the follower's Q-learning (authors' setting)"""
    q_epsilon: float = 0.1
    """share of the follower's actions that are random while it learns (authors' setting)"""
    q_gamma: float = 0.9
    """discount factor of the follower's Q-learning (authors' setting)"""
    q_init: float = 1.5
    """the follower's first Q-values: the largest reward of a step (1.5 in every game) makes it try what it has not
    tried; from 0 it more often stays with what it happened to try first"""
    evaluation_followers: int = 100
    """followers that learn against each of the 32 leader tables, before training and not in the budget: their mean
    says what a greedy leader gets"""

    learning_rate: float = 0.03
    """Adam learning rate of the leader (authors' setting)"""
    adam_eps: float = 0.02
    """Adam's epsilon for the leader, so large that steps stay roughly in proportion to the gradient;
    equal steps (1e-8) saturate the policy where a weak gradient is mostly noise, short of the optimum"""
    batch_size: int = 8000
    """environment steps per leader batch (authors' setting), rounded up to complete leader episodes"""
    update_epochs: int = 10
    """passes over a leader batch, which is one minibatch (Table 4); more of them fit its noise"""
    norm_adv: bool = True
    """divide advantages by their standard deviation (they are always centred, at each step of the episode)"""
    clip_coef: float = 0.3
    """PPO's clipping coefficient"""
    ent_coef: float = 0.0
    """coefficient of the entropy bonus (Table 4: none)"""
    vf_coef: float = 1.0
    """coefficient of the value loss"""


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


def layer_init(layer: nn.Linear, std: float = 0.01) -> nn.Linear:
    """Draws small weights, so that every policy starts near uniform and every value near 0."""
    nn.init.orthogonal_(layer.weight, std)
    return layer


class Leader(nn.Module):
    """Memory-less policy and value, both linear in the one-hot observation, no bias."""

    def __init__(self):
        super().__init__()
        self.actor = layer_init(nn.Linear(NUM_OBSERVATIONS, NUM_ACTIONS, bias=False))
        self.critic = layer_init(nn.Linear(NUM_OBSERVATIONS, 1, bias=False))

    def get_action_and_value(self, observation: torch.Tensor, action: torch.Tensor | None = None):
        """Returns action, its log-probability, the policy's entropy and the value, all [...], for [..., 5]."""
        probs = Categorical(logits=self.actor(observation))
        action = probs.sample() if action is None else action
        return action, probs.log_prob(action), probs.entropy(), self.critic(observation).squeeze(-1)

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


def best_responses(game: MatrixGame) -> np.ndarray:
    """Returns what each of the 32 leader tables gets from the best of the 32 replies, ties broken for it, [32]."""
    n = len(TABLES)
    leader, follower = play(game, TABLES.repeat(n, axis=0), np.tile(TABLES, (n, 1)))
    leader, follower = leader.reshape(n, n), follower.reshape(n, n)
    is_best = follower >= follower.max(axis=1, keepdims=True) - 1e-9 * game.follower_scale
    return np.where(is_best, leader, -np.inf).max(axis=1)


# --------------------------------------------------------- the leader's POMDP, with a follower that learns (Theorem 1)
class Rollout(NamedTuple):
    """n leader episodes side by side, each of L = (follower_episodes + 1) * num_steps steps."""

    observations: np.ndarray  # [L, n]
    actions: np.ndarray  # the leader's, [L, n]
    rewards: np.ndarray  # the leader's, [L, n]: 0 while the follower learns
    payoffs: np.ndarray  # the leader's and the follower's in the last episode, per game step, [2, n]
    follower_tables: np.ndarray  # what the followers have learned, [n, 5]


def rollout(rng: np.random.Generator, game: MatrixGame, leaders: np.ndarray, args: Args) -> Rollout:
    """Plays one leader episode for each of `leaders`, [n, 5]: its probability of action 1 in each observation.

    First the follower learns: Q-learning with an epsilon-greedy policy and a new table, `follower_episodes` times
    through the game. What it observes is what the leader observes. Then both play the game once more, the follower
    greedily and as it is, and only this earns the leader reward.
    """
    n, rows = len(leaders), np.arange(len(leaders))
    length = (args.follower_episodes + 1) * game.num_steps
    observations, actions = np.zeros((2, length, n), dtype=np.int8)
    rewards, payoffs = np.zeros((length, n), dtype=np.float32), np.zeros((2, n))
    q = rng.normal(args.q_init, 1e-6, (n, NUM_OBSERVATIONS, NUM_ACTIONS))  # the noise breaks ties
    for step in range(length):
        t, learning = step % game.num_steps, step < args.follower_episodes * game.num_steps
        if t == 0:
            observation = np.full(n, START)
        draws = rng.random((3, n))
        action = (draws[0] < leaders[rows, observation]).astype(np.int64)
        values = q[rows, observation]
        reply = (values[:, 1] > values[:, 0]).astype(np.int64)
        if learning:
            reply = np.where(draws[1] < args.q_epsilon, draws[2] < 0.5, reply).astype(np.int64)
        next_observation = game.next_observation(action, reply)
        observations[step], actions[step] = observation, action
        if learning:
            target = game.follower_reward[action, reply]
            if t < game.num_steps - 1:
                target = target + args.q_gamma * q[rows, next_observation].max(axis=1)
            q[rows, observation, reply] += args.q_learning_rate * (target - values[rows, reply])
        else:
            rewards[step] = game.leader_reward[action, reply]
            payoffs += game.leader_payoff[action, reply], game.follower_payoff[action, reply]
        observation = next_observation
    return Rollout(observations, actions, rewards, payoffs / game.num_steps, q.argmax(axis=2))


def evaluate_q_followers(game: MatrixGame, args: Args) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Lets `evaluation_followers` learn against each of the 32 leader tables, as they do in training.

    Returns what leader and follower then get per game step, means over the followers, [32] each, and the followers'
    most common table, [32, 5]. A greedy leader is one of the 32, so this evaluates every leader there can be.
    """
    rng = np.random.default_rng(args.seed)
    batch = rollout(rng, game, TABLES.repeat(args.evaluation_followers, axis=0), args)
    indices = table_index(batch.follower_tables).reshape(len(TABLES), -1)
    most_common = [np.bincount(row).argmax() for row in indices]
    leader_returns, follower_returns = batch.payoffs.reshape(2, len(TABLES), -1).mean(axis=2)
    return leader_returns, follower_returns, TABLES[most_common]


# ------------------------------------------------------------------------------------------------- leader training
def train_leader(leader: Leader, game: MatrixGame, num_iterations: int, args: Args) -> Iterator[tuple[int, dict]]:
    """PPO on the leader's POMDP, a batch of complete leader episodes in each iteration.

    Yields the environment steps so far, those of the followers' learning included, and the scalars to log.
    """
    device = leader.actor.weight.device
    optimizer = optim.Adam(leader.parameters(), lr=args.learning_rate, eps=args.adam_eps)
    rng = np.random.default_rng(args.seed)
    one_hot = torch.eye(NUM_OBSERVATIONS, device=device)
    num_episodes = math.ceil(args.batch_size / ((args.follower_episodes + 1) * game.num_steps))
    for iteration in tqdm(range(1, num_iterations + 1), desc="leader", unit="iteration", leave=False, disable=None):
        with torch.no_grad():
            policy = leader.actor(one_hot).softmax(dim=1)[:, 1].cpu().numpy()
        batch = rollout(rng, game, np.tile(policy, (num_episodes, 1)), args)
        obs = one_hot[torch.as_tensor(batch.observations, device=device).long()]
        actions = torch.as_tensor(batch.actions, device=device).long()
        rewards = torch.as_tensor(batch.rewards, device=device)
        with torch.no_grad():
            _, logprobs, _, values = leader.get_action_and_value(obs, actions)

        # Undiscounted returns of complete episodes: every answer to the follower is credited with what it led to. The
        # value sees no clock, so advantages are centred at each step of the episode.
        returns = rewards.flip(0).cumsum(0).flip(0)
        advantages = returns - values
        if num_episodes > 1:  # a single episode is its own mean
            advantages -= advantages.mean(dim=1, keepdim=True)
        if args.norm_adv:
            advantages /= advantages.std() + 1e-8

        for _ in range(args.update_epochs):
            _, newlogprob, entropy, newvalue = leader.get_action_and_value(obs, actions)
            logratio = newlogprob - logprobs
            ratio = logratio.exp()
            clipped_ratio = torch.clamp(ratio, 1 - args.clip_coef, 1 + args.clip_coef)
            pg_loss = torch.max(-advantages * ratio, -advantages * clipped_ratio).mean()
            v_loss = ((newvalue - returns) ** 2).mean()
            loss = pg_loss - args.ent_coef * entropy.mean() + args.vf_coef * v_loss
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()

        leader_return, follower_return = batch.payoffs.mean(axis=1)
        scalars = {"charts/leader_return": leader_return, "charts/follower_return": follower_return}
        scalars |= {"losses/policy_loss": pg_loss.item(), "losses/value_loss": v_loss.item()}
        scalars |= {"losses/entropy": entropy.mean().item(), "losses/approx_kl": ((ratio - 1) - logratio).mean().item()}
        yield iteration * actions.numel(), scalars


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
    may_be_zero = ["seed", "q_epsilon", "q_gamma", "adam_eps", "ent_coef", "vf_coef"]
    for flag, value in asdict(args).items():
        name = f"--{flag.replace('_', '-')}"
        if flag in ("exp_name", "env_id") and not re.fullmatch(r"[\w.-]+", value):
            fail(f"{name} becomes part of a folder's name: use letters, digits, '_', '-' and '.', not {value!r}")
        if isinstance(value, float) and not math.isfinite(value):
            fail(f"{name} must be a finite number, got {value}")
        if flag in may_be_zero:
            if not 0 <= value < 2**63:
                fail(f"{name} must not be negative, got {value}")
        elif isinstance(value, int | float) and not isinstance(value, bool) and value <= 0 and flag != "q_init":
            fail(f"{name} must be positive, got {value}")
        if flag in ("q_learning_rate", "q_epsilon", "q_gamma") and value > 1:
            fail(f"{name} must be at most 1, got {value}")
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
    converged = result["steps_to_converge"]
    return f"""
{result["env_id"]}: {verdict}
  leader's return    {return_:.2f} per game step (exact optimum {value:.2f}; {exact:.2f} from exact best responses)
  leader's regret    {leader_regret:.2f}
  leader's policy    {leader}   (observation: action)
  follower's reply   {follower}   (the most common of {number})
  follower's regret  {follower_regret:.2f} (exact; mean of the {number})
  converged          {"never" if converged is None else f"after {converged:,} steps"}
  speed              {result["steps_per_second"]:,.0f} steps per second, {result["wall_seconds"]:.1f} s in all"""


# ------------------------------------------------------------------------------------------------------------- the run
def main(args: Args) -> dict:
    """Trains the leader; returns what it writes to result.json. Exits with 2, nothing written, on wrong flags."""
    game = make_game(args)
    episode_length = (args.follower_episodes + 1) * game.num_steps
    batch_size = math.ceil(args.batch_size / episode_length) * episode_length
    num_iterations = args.total_timesteps // batch_size
    if num_iterations < 1:
        fail(f"--total-timesteps {args.total_timesteps} is less than one batch of {batch_size} steps")
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
    # what each of the 32 greedy leaders gets from exact best responses, and from followers that learn against it
    exact_returns = best_responses(game)
    leader_returns, follower_returns, follower_tables = evaluate_q_followers(game, args)
    follower_regrets = best_follower_return - follower_returns

    torch.manual_seed(args.seed)
    leader = Leader().to(device)
    index = table_index(leader.greedy_table())
    curve, exact_curve, training_curve = [[0, leader_returns[index].item()]], [[0, exact_returns[index].item()]], []
    for global_step, scalars in train_leader(leader, game, num_iterations, args):
        index = table_index(leader.greedy_table())
        curve.append([global_step, leader_returns[index].item()])
        exact_curve.append([global_step, exact_returns[index].item()])
        training_curve.append([global_step, scalars["charts/leader_return"].item()])
        scalars["charts/leader_return_greedy"] = leader_returns[index]
        scalars["charts/leader_return_exact"] = exact_returns[index]
        scalars["charts/leader_regret"] = stackelberg_value - leader_returns[index]
        scalars["charts/follower_regret"] = follower_regrets[index]
        scalars["charts/stackelberg_value"] = stackelberg_value
        scalars["charts/SPS"] = int(global_step / (time.time() - start_time))
        for tag, scalar in scalars.items():
            writer.add_scalar(tag, scalar, global_step)
    writer.close()
    if args.track:
        wandb.finish()
    if args.save_model:
        payoffs = [game.leader_payoff.tolist(), game.follower_payoff.tolist()]
        model = {"env_id": args.env_id, "payoffs": payoffs, "num_steps": game.num_steps, "leader": leader.state_dict()}
        write_atomically(os.path.join(run_path, "model.pt"), lambda path: torch.save(model, path))
    wall_seconds = time.time() - start_time
    tolerance = 0.05 * game.leader_scale
    result = {
        "script": os.path.basename(__file__),
        "env_id": args.env_id,
        "seed": args.seed,
        "args": asdict(args),
        "leader_return": curve[-1][1],
        "leader_return_exact": exact_returns[index].item(),
        "stackelberg_value": stackelberg_value,
        "stackelberg_value_pessimistic": pessimistic_value,
        "leader_regret": stackelberg_value - curve[-1][1],
        "follower_regret": follower_regrets[index].item(),
        "leader_policy": TABLES[index].tolist(),
        "follower_policy": follower_tables[index].tolist(),
        "leader_steps": global_step,
        "steps_to_converge": steps_to_stay(curve, stackelberg_value, tolerance),
        "steps_to_0.1": steps_to_stay(curve, stackelberg_value, 2 * tolerance),
        "curve": curve,
        "exact_curve": exact_curve,
        "training_curve": training_curve,
        "wall_seconds": wall_seconds,
        "steps_per_second": global_step / wall_seconds,
    }
    result_path = os.path.join(run_path, "result.json")
    write_atomically(result_path, lambda path: Path(path).write_text(json.dumps(result) + "\n"))
    print(findings(result, game))
    print(f"  curves             tensorboard --logdir {args.run_dir}\n  result             {result_path}")
    return result


if __name__ == "__main__":
    main(parse_args())
