# /// script
# requires-python = ">=3.11"
# dependencies = ["numpy==2.4.6", "pandas==3.1.1", "tensorboard==2.21.0", "torch==2.13.0",
#   "tqdm==4.70.1", "tyro==1.0.17", "wandb==0.31.0"]
# ///
"""Hundreds of runs at the price of one: games x seeds x settings, trained as one batch (Figure 1 in a second).

The Meta-RL follower and PPO leader of stackelberg_ppo_matrix.py, with a leading axis, the run, on everything:

    python ablations/vectorized_ppo_matrix.py                           # Figure 1: 12 games x 5 seeds
    python ablations/vectorized_ppo_matrix.py --games ordinal --seeds 10          # all 144 ordinal 2x2 games
    python ablations/vectorized_ppo_matrix.py --random-games 1000 --seeds 1 --explore action table

Every run has one row in runs.csv. Three things make it fast. Two actions need one logit. The uniform numbers of a batch
are drawn at once, so that a step of the game is a look-up. And PPO's epochs see sufficient statistics instead of rows.
With p(a|o) the policy that acted, q the one that learns, r = q(a|o) / p(a|o), c the clipping and A a row's advantage,
the row adds to PPO's objective

    min(A r, A clip(r, 1 - c, 1 + c))  =  A min(r, 1 + c) if A > 0,  A max(r, 1 - c) if A < 0

In both cases it is A times something that depends on (o, a) alone. So the objective is the sum over (o, a) of
S+(o, a) min(r, 1 + c) + S-(o, a) max(r, 1 - c), where S+ and S- are the sums of positive and of negative advantages:
20 numbers a run, however large the batch. The value loss, the sum of (V(o) - G)^2, has the gradient
2 (n(o) V(o) - sum of G), the entropy bonus is the sum of n(o) H(q(.|o)): 10 numbers more. This is exact for every
tabular policy, as long as a batch is one minibatch and the value loss is not clipped.
"""

import itertools
import math
import os
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Literal

import numpy as np
import pandas as pd
import torch
import tyro
from torch.nn.functional import logsigmoid, one_hot
from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm


@dataclass
class Args:
    exp_name: str = os.path.basename(__file__)[: -len(".py")]
    """name of this experiment"""
    seed: int = 1
    """the first seed; all runs of a command draw from one stream of random numbers, which begins with it"""
    track: bool = False
    """track the run with Weights and Biases too"""
    wandb_project_name: str = "stackelberg"
    """project in Weights and Biases"""
    wandb_entity: str | None = None
    """entity (team) in Weights and Biases"""
    run_dir: str = "runs"
    """folder that the run's own folder is made in"""
    curves: Literal["settings", "runs"] = "settings"
    """curves in TensorBoard: mean and quartiles over the runs of each setting, or every single run too"""
    device: str = "cpu"
    """device of all tensors: cpu or cuda"""

    games: tuple[str, ...] = ()
    """games by name; table3: the paper's 12 (default); ordinal: all 144 strict ordinal 2x2 games, LEADER-FOLLOWER, the
    leader's payoffs of one of the 12 with the follower's of another, as prisoners_dilemma-stag_hunt"""
    random_games: int = 0
    """number of random games, payoffs uniform in [-3, 0]"""
    first_game: int = 0
    """number of the first random game"""
    payoff_file: str | None = None
    """your own games: a CSV with columns name,l00,l01,l10,l11,f00,f01,f10,f11 (l01: leader's action 0, follower's 1)"""
    seeds: int = 5
    """runs of each game and setting"""
    num_steps: int = 10
    """game steps per episode; an episode is 5 queries and then these steps"""
    total_timesteps: int = 200_000
    """combined environment steps of a run's follower pre-training and leader training, queries included"""

    # Each flag below takes several values: all combinations are trained, side by side where tensors have one shape.
    follower_timesteps: tuple[int, ...] = (52_500,)
    """environment steps of follower pre-training (500 iterations, Table 4)"""
    follower_batch_size: tuple[int, ...] = (100,)
    """environment steps per follower batch (Table 4), rounded up to complete episodes"""
    follower_learning_rate: tuple[float, ...] = (0.1,)
    """Adam learning rate of the follower (Table 4: 0.02)"""
    follower_baseline_rate: tuple[float, ...] = (0.3,)
    """step size of the follower's baseline (the authors' code: 0, none)"""
    follower_gamma: tuple[float, ...] = (0.9,)
    """discount in the follower's returns (paper: 1); what comes late is mostly the noise of its other choices"""
    follower_ent_coef: tuple[float, ...] = (1.0,)
    """coefficient of the follower's entropy bonus, falling to 0 linearly (paper: 0)"""
    explore: tuple[Literal["action", "table"], ...] = ("table",)
    """action: draw every action afresh (paper); table: draw an answer to each query, and keep to it in play"""
    batch_size: tuple[int, ...] = (1000,)
    """environment steps per leader batch (Table 4), rounded up to complete episodes"""
    update_epochs: tuple[int, ...] = (10,)
    """passes over a leader batch, which is one minibatch (Table 4)"""
    learning_rate: tuple[float, ...] = (0.1,)
    """Adam learning rate of the leader (Table 4: 0.008)"""
    adam_eps: tuple[float, ...] = (1e-3,)
    """Adam's epsilon for the leader"""
    clip_coef: tuple[float, ...] = (0.3,)
    """PPO's clipping coefficient"""
    ent_coef: tuple[float, ...] = (0.0,)
    """coefficient of the leader's entropy bonus, falling to 0 linearly (Table 4: none)"""
    risk_seeking: tuple[float, ...] = (5.0,)
    """k of the advantages exp(k z) / mean - 1, z the standardised return: rare tables that are far better than the rest
    outweigh them; only for --explore table. 0: z itself"""

    def __post_init__(self):
        may_be_zero = {"seed", "random_games", "first_game", "follower_baseline_rate", "follower_ent_coef"}
        may_be_zero |= {"adam_eps", "ent_coef", "risk_seeking"}
        for flag, values in asdict(self).items():
            name = f"--{flag.replace('_', '-')}"
            if flag in GRID and (not values or len(set(values)) < len(values)):
                raise ValueError(f"{name} must be one or more different values")
            for value in values if flag in GRID else [values]:
                if type(value) in (int, float) and not (0 < value < math.inf or (value == 0 and flag in may_be_zero)):
                    raise ValueError(f"{name} must be positive, got {value}")
        if max(self.follower_gamma) > 1:
            raise ValueError(f"--follower-gamma must be at most 1, got {max(self.follower_gamma)}")
        try:
            games = load_games(self)
            torch.empty(0, device=self.device)
        except Exception as error:  # a foreign file, or a device that is not there, trips wherever it likes
            raise ValueError(f"{type(error).__name__}: {error}") from error
        self.env_ids, self.payoffs = list(games), np.stack(list(games.values()))
        # players are trained on rewards, payoffs centred on 0 and stretched to +-1.5 (Appendix F)
        low, high = self.payoffs.min(axis=(2, 3), keepdims=True), self.payoffs.max(axis=(2, 3), keepdims=True)
        self.centre, self.scale = (low + high) / 2, np.where(high > low, (high - low) / 3, 1.0)

        self.episode_length = length = NUM_OBSERVATIONS + self.num_steps  # batches are complete episodes
        batches = [math.ceil(max(sizes) / length) * length for sizes in (self.follower_batch_size, self.batch_size)]
        left = self.total_timesteps - max(self.follower_timesteps)
        if min(self.follower_timesteps) < batches[0] or left < batches[1]:
            raise ValueError("--follower-timesteps, and what they leave of --total-timesteps, must hold a batch each")
        # a step takes about 100 bytes while its batch is played, and a follower 2 to know its leaders in advance
        num_runs = len(games) * self.seeds * math.prod(len(getattr(self, flag)) for flag in LEADER + FOLLOWER)
        needed = num_runs * (100 * max(batches) + 2 * max(self.follower_timesteps))
        free = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
        if self.device.startswith("cuda"):
            free = torch.cuda.mem_get_info(self.device)[0]
        if needed > free:
            raise ValueError(f"{num_runs:,} runs need about {needed / 1e9:.1f} GB of memory, {free / 1e9:.1f} are free")


# The flags with several values. What differs in shape is trained in turn, the rest side by side.
IN_TURN = ["follower_timesteps", "follower_batch_size", "explore", "batch_size", "update_epochs"]
LEADER = ["learning_rate", "adam_eps", "clip_coef", "ent_coef", "risk_seeking"]
FOLLOWER = ["follower_learning_rate", "follower_baseline_rate", "follower_gamma", "follower_ent_coef"]
GRID = IN_TURN + LEADER + FOLLOWER


# --------------------------------------------------------------------------------------------------------- the games
NUM_ACTIONS = 2  # action 0 is the first row or column of the payoff matrix
NUM_OBSERVATIONS = 1 + NUM_ACTIONS**2  # the start, then 1 + 2 * leader's last action + follower's last action
START = 0

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


def load_games(args: Args) -> dict[str, np.ndarray]:
    """Returns the payoffs [player, leader's action, follower's action] of the games that the flags name. Table 3's are
    the symmetric ones of the 144 strict ordinal 2x2 games (Robinson and Goforth 2005); every one of these is the
    leader's payoffs of one of the twelve with the follower's of another."""
    pairs, games = itertools.product(PAYOFFS, PAYOFFS), {}
    ordinal = {a if a == b else f"{a}-{b}": np.stack([PAYOFFS[a], np.transpose(PAYOFFS[b])]) for a, b in pairs}
    has_others = args.random_games > 0 or args.payoff_file is not None
    for name in args.games or ([] if has_others else ["table3"]):
        for member in {"table3": PAYOFFS, "ordinal": ordinal}.get(name, [name]):
            if member not in ordinal:
                raise ValueError(f"no game {member!r}: give table3, ordinal, {', '.join(PAYOFFS)} or two of these, A-B")
            games[member] = ordinal[member]
    for k in range(args.first_game, args.first_game + args.random_games):
        games[f"random_{k}"] = 3 * np.random.default_rng(k).random((2, NUM_ACTIONS, NUM_ACTIONS)) - 3
    if args.payoff_file is not None:
        columns = [f"{player}{a}{b}" for player in "lf" for a in "01" for b in "01"]
        rows = pd.read_csv(args.payoff_file, index_col="name")[columns].astype(float)
        if rows.empty or not (abs(rows) < 1e30).all(axis=None) or not rows.index.is_unique:
            raise ValueError(f"{args.payoff_file} must have a row, a name of its own and eight numbers, for each game")
        games |= dict(zip(map(str, rows.index), rows.to_numpy().reshape(-1, 2, NUM_ACTIONS, NUM_ACTIONS), strict=True))
    return games


# ------------------------------------------------------------------------------------------------ the exact solution
# A table is a deterministic memory-1 policy, [5]: the action in each observation. As answers to the queries, the
# leader's table is the follower's context. TABLES[i] has index i, whose binary digits it is.
TABLES = np.array(list(itertools.product(range(NUM_ACTIONS), repeat=NUM_OBSERVATIONS)))
PLACES = NUM_ACTIONS ** np.arange(NUM_OBSERVATIONS)[::-1]  # table @ PLACES is its index
TOLERANCE = 0.05 + 1e-6  # what passes for equal, in mean rewards

# A run's one logit, of action 1, is the difference of the paper's two, whose standard deviation is 0.01 at first. It
# moves twice as far as either, so its learning rate is twice theirs.
LOGIT_STD = 0.01 * math.sqrt(2)


def index_of(tables: torch.Tensor) -> torch.Tensor:
    """Returns the indices in TABLES of tables [5, ...] -> [...]."""
    return sum(actions * place for actions, place in zip(tables, PLACES.tolist(), strict=True))


def play(probabilities, rows, tables, uniforms, chance_plays_follower: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """Plays an episode in each place of `uniforms`, [num_steps, ...]. One player takes action 1 if the uniform number
    is below `probabilities.flatten()[rows + observation]`; the other has a table, with its index in `tables`, [...].
    Returns the observations and the pairs of actions, 2 * leader's + follower's, [num_steps, ...]."""
    observations, pairs = [torch.full_like(uniforms[0], START, dtype=torch.int64)], []
    for uniform in uniforms:
        drawn = uniform < probabilities.take(rows + observations[-1])
        known = (tables >> (NUM_OBSERVATIONS - 1 - observations[-1])) & 1
        leader, follower = (known, drawn) if chance_plays_follower else (drawn, known)
        pairs.append(NUM_ACTIONS * leader + follower)
        observations.append(1 + pairs[-1])
    return torch.stack(observations[:-1]), torch.stack(pairs)


def solve(payoffs: np.ndarray, num_steps: int) -> dict[str, np.ndarray]:
    """Returns, for each game, as mean payoffs per step: the `returns` of every pair of tables, [games, player, 32, 32];
    their exact optimum for the leader, if the follower breaks ties in its favour (Definition 2) and if it breaks them
    against it; and the follower's `best` against each leader, [games, 32]."""
    table = torch.arange(len(TABLES))
    halves = torch.full((num_steps, len(TABLES), len(TABLES)), 0.5)  # between a table's probabilities, 0 and 1
    _, pairs = play(torch.as_tensor(TABLES), NUM_OBSERVATIONS * table[:, None], table, halves, False)
    played = (one_hot(pairs, NUM_ACTIONS**2).numpy() / num_steps).sum(axis=0)  # in every game alike
    returns = np.einsum("ijk,gpk->gpij", played, payoffs.reshape(-1, 2, NUM_ACTIONS**2))
    leader, follower = returns.swapaxes(0, 1)
    best = follower.max(axis=2)
    is_best = follower >= best[..., None] - 1e-6  # what rounding leaves of a tie
    optimistic = np.where(is_best, leader, -np.inf).max(axis=(1, 2))
    pessimistic = np.where(is_best, leader, np.inf).min(axis=2).max(axis=1)
    values = {"stackelberg_value": optimistic, "stackelberg_value_pessimistic": pessimistic}
    return {**values, "best": best, "returns": returns}


# ------------------------------------------------------------------------- follower pre-training (Algorithm 1, phase 1)
class Adam:
    """Adam on one tensor of parameters [runs, ...]: it works element by element, so runs stay independent. Unlike
    torch.optim.Adam it has a learning rate and an epsilon for each run, [runs, 1, ...]."""

    def __init__(self, parameters: torch.Tensor, learning_rate: torch.Tensor, eps: torch.Tensor | float):
        self.parameters, self.learning_rate, self.eps = parameters, learning_rate, eps
        self.mean, self.square, self.t = torch.zeros_like(parameters), torch.zeros_like(parameters), 0

    def step(self, gradient: torch.Tensor):
        self.t += 1
        self.mean.lerp_(gradient, 0.1)
        self.square.mul_(0.999).addcmul_(gradient, gradient, value=0.001)
        denominator = (self.square / (1 - 0.999**self.t)).sqrt_().add_(self.eps)
        self.parameters.sub_(self.mean / denominator * (self.learning_rate / (1 - 0.9**self.t)))


def train_follower(logits, rewards, iterations: int, num_episodes: int, num_steps: int, flags: dict) -> None:
    """REINFORCE with a baseline on the followers' logits [runs, 32 * 5], one for each context and observation, in
    place, against random leader tables, one per episode, dealt from a shuffled deck of all 32. `rewards` are the
    follower's [runs, 4] for each pair of actions; flags: learning_rate, baseline_rate, gamma, ent_coef, [runs, 1]."""
    num_runs, device = len(rewards), rewards.device
    num_decks = math.ceil(iterations * num_episodes / len(TABLES))
    dealt = torch.rand(num_runs, num_decks, len(TABLES), device=device).argsort(dim=2).flatten(1)
    optimizer = Adam(logits, 2 * flags["learning_rate"], 1e-8)
    baseline = torch.zeros_like(logits)  # of the reward per remaining step, for each context and observation
    run = torch.arange(num_runs, device=device)[:, None]
    remaining = torch.ones(num_steps, num_runs, 1, device=device)  # what a reward of 1 in every step would return
    for t in reversed(range(num_steps - 1)):
        remaining[t] += flags["gamma"] * remaining[t + 1]
    for iteration in tqdm(range(iterations), desc="followers", leave=False, disable=None):
        contexts = dealt[:, iteration * num_episodes : (iteration + 1) * num_episodes]
        inputs = TABLES.size * run + NUM_OBSERVATIONS * contexts
        policies = logits.sigmoid()
        uniforms = torch.rand(num_steps, num_runs, num_episodes, device=device)
        observations, pairs = play(policies, inputs, contexts, uniforms, chance_plays_follower=True)
        returns = rewards.take(4 * run + pairs)
        for t in reversed(range(num_steps - 1)):
            returns[t] += flags["gamma"] * returns[t + 1]

        # sums over the rows of each (run, context, observation)
        index = inputs + observations
        advantages = returns - baseline.take(index) * remaining
        scores = advantages * ((pairs & 1) - policies.take(index))
        columns = scores, torch.ones_like(scores), returns / remaining
        sums = [torch.bincount(index.flatten(), column.flatten(), logits.numel()) for column in columns]
        score, visits, level = torch.stack(sums).view(3, *logits.shape)

        # the entropy's gradient in a logit is -logit p (1 - p)
        ent_coef = flags["ent_coef"] * (1 - iteration / iterations)
        gradient = -score + ent_coef * visits * logits * policies * (1 - policies)
        optimizer.step(gradient / (num_episodes * num_steps))
        # the baseline moves towards the mean over all visits to an input in this batch
        baseline += flags["baseline_rate"] * (level - visits * baseline) / visits.clamp(min=1)
    if not logits.isfinite().all():
        raise SystemExit("a follower's training diverged: lower --follower-learning-rate or -baseline-rate")


# ------------------------------------------------------------------------------ leader training (Algorithm 1, phase 2)
def ppo_epochs(actor: Adam, critic: Adam, statistics: list, ent_coef: torch.Tensor, flags: dict) -> None:
    """PPO's passes over a batch, by the optimizers of logits and values [runs, 5]. The statistics are S+ and S-, the
    sums of positive and of negative advantages of each observation and action, [runs, 5, 2], and of each observation
    the visits and the sum of returns, [runs, 5] (None: leave the values alone)."""
    gains, losses, visits, returns = statistics
    rows = visits.sum(1, keepdim=True)
    clip_coef = flags["clip_coef"][..., None]
    logits, signs = actor.parameters, actor.parameters.new_tensor([-1.0, 1.0])
    old_logprobs = logsigmoid(signs * logits[..., None])
    for _ in range(flags["update_epochs"]):
        logprobs = logsigmoid(signs * logits[..., None])
        probs = logprobs.exp()
        ratio = (logprobs - old_logprobs).exp()
        slope = gains * (ratio < 1 + clip_coef) + losses * (ratio > 1 - clip_coef)  # of the objective in the ratio
        # the ratio's gradient in the logit is +- ratio * probability of the other action
        ascent = (slope * signs * ratio * probs.flip(-1)).sum(-1) - ent_coef * visits * logits * probs.prod(-1)
        actor.step(-ascent / rows)
        if returns is not None:
            critic.step(2 * (visits * critic.parameters - returns) / rows)


def act_by_action(answers, policies, uniforms, values, replies, rewards):
    """Plays a batch of episodes in which every action is drawn afresh, in queries and in play; returns what PPO's
    epochs need, gains, losses, visits and returns (`ppo_epochs`), and the mean reward per game step, [runs]."""
    run = torch.arange(len(values), device=values.device)[:, None]
    follower = replies.gather(1, index_of(answers))
    played, pairs = play(policies, NUM_OBSERVATIONS * run, follower, uniforms, chance_plays_follower=False)
    step_rewards = rewards.take(4 * run + pairs)
    returns = step_rewards.flip(0).cumsum(0).flip(0)

    # all rows of an episode: queries, then game steps
    queries = torch.arange(NUM_OBSERVATIONS, device=values.device)[:, None, None].expand_as(answers)
    inputs = NUM_OBSERVATIONS * run + torch.cat([queries, played])
    actions = torch.cat([answers, pairs >= NUM_ACTIONS])
    returns = torch.cat([returns[:1].expand_as(queries), returns])
    # Undiscounted returns of complete episodes: nothing to bootstrap. The value sees no clock, yet how many steps are
    # left weighs more than any one action, so advantages are centred at each step of the episode.
    advantages = returns - values.take(inputs)
    advantages -= advantages.mean(dim=2, keepdim=True)
    std = (advantages.square().sum(dim=2).sum(dim=0) / (advantages[:, 0].numel() - 1)).sqrt()
    advantages /= std[:, None] + 1e-8

    index = inputs.mul_(4).add_(actions, alpha=2).add_(advantages > 0)  # in place: many runs take much memory
    columns = advantages, torch.ones_like(returns), returns
    sums = [torch.bincount(index.flatten(), column.flatten(), 4 * values.numel()) for column in columns]
    advantages, visits, returns = torch.stack(sums).view(3, -1, NUM_OBSERVATIONS, 2, 2)
    losses, gains = advantages.unbind(-1)
    return gains, losses, visits.sum((2, 3)), returns.sum((2, 3)), step_rewards.mean(dim=2).mean(dim=0)


def act_by_table(answers, table_returns, risk_seeking):
    """Plays a batch of episodes in which each observation's action is drawn once, in its query, and kept in play. All
    that counts is how often each table was drawn; the answers are the only rows. Returns what PPO's epochs need, gains,
    losses and visits, and the mean reward per game step, [runs]."""
    rows, num_episodes, drawn = answers[:, 0].numel(), answers.shape[2], index_of(answers)
    counts = torch.zeros_like(table_returns).scatter_add_(1, drawn, table_returns.new_ones(drawn.shape))

    def mean(x):  # over episodes
        return (counts * x).sum(1, keepdim=True) / num_episodes

    advantages = table_returns - (batch_return := mean(table_returns))
    advantages *= counts > 0  # of tables that were not drawn, which do not count, the exponential might overflow
    advantages /= (mean(advantages**2) * (rows / max(rows - 1, 1))).sqrt() + 1e-8
    # A rare table that is far better than the others changes little in the mean, and all in the mean of exp(k z).
    weights = (risk_seeking * (advantages - advantages.amax(dim=1, keepdim=True))).exp()
    advantages = counts * torch.where(risk_seeking > 0, weights / mean(weights) - 1, advantages)
    takes = one_hot(torch.as_tensor(TABLES, device=counts.device)).to(advantages.dtype)  # [32, 5, 2]: their actions
    gains, losses = (torch.einsum("ri,ioa->roa", x, takes) for x in (advantages.clamp(min=0), advantages.clamp(max=0)))
    visits = counts.sum(1, keepdim=True).expand(-1, NUM_OBSERVATIONS)
    # A value, the same for all answers to a query, would be gone with the mean of their returns: there is none.
    return gains, losses, visits, None, batch_return[:, 0]


def train_leader(logits, values, replies, rewards, table_returns, iterations: int, num_steps: int, flags: dict):
    """PPO on the leaders' logits and values [runs, 5], in place; returns the index of the greedy table after each
    iteration and its mean reward per game step, both [iterations, runs]. `replies`, [runs, 32], are the indices of the
    followers' tables, `rewards` the leader's [runs, 4] for each pair of actions, `table_returns`, [runs, 32], its mean
    reward for each of its tables; flags: explore, num_episodes, update_epochs and those of LEADER, [runs, 1]."""
    actor = Adam(logits, 2 * flags["learning_rate"], flags["adam_eps"])
    critic = Adam(values, flags["learning_rate"], flags["adam_eps"])
    rows, curves = NUM_OBSERVATIONS + (num_steps if flags["explore"] == "action" else 0), ([], [])
    for iteration in tqdm(range(iterations), desc="leaders", leave=False, disable=None):
        policies = logits.sigmoid()
        uniforms = torch.rand(rows, len(logits), flags["num_episodes"], device=logits.device)
        answers = uniforms[:NUM_OBSERVATIONS] < policies.T[..., None]
        if flags["explore"] == "table":
            *statistics, reward = act_by_table(answers, table_returns, flags["risk_seeking"])
        else:
            play_uniforms = uniforms[NUM_OBSERVATIONS:]
            *statistics, reward = act_by_action(answers, policies, play_uniforms, values, replies, rewards)
        ppo_epochs(actor, critic, statistics, flags["ent_coef"] * (1 - iteration / iterations), flags)
        curves[0].append(index_of((logits > 0).T))
        curves[1].append(reward)
    if not logits.isfinite().all():
        raise SystemExit("a leader's training diverged: lower --learning-rate")
    return tuple(torch.stack(curve).cpu().numpy() for curve in curves)


# -------------------------------------------------------------------------------------------------------- all the runs
def table_of(args: Args) -> pd.DataFrame:
    """Returns a row for each run: the number of its game, `game`, its name and payoffs, its seed and its settings."""
    text = np.array([[" ".join(f"{x:.6g}" for x in player.flat) for player in game] for game in args.payoffs])
    games = pd.DataFrame({"env_id": args.env_ids, "leader_payoff": text[:, 0], "follower_payoff": text[:, 1]})
    values = {flag: getattr(args, flag) for flag in GRID}
    values |= {"game": games.index, "seed": range(args.seed, args.seed + args.seeds)}
    runs = pd.MultiIndex.from_product(values.values(), names=values).to_frame(index=False)
    return runs.join(games, on="game")[[*games, *values]]


def train(args: Args, returns: np.ndarray) -> Iterator[tuple]:
    """Trains everything, with the `returns` of `solve`; yields, for runs with tensors of one shape: them, the steps
    [iterations], the leader's greedy tables and exploring return [iterations, runs], the replies [runs, 32]."""
    rewards, returns = (args.payoffs - args.centre) / args.scale, (returns - args.centre) / args.scale
    rewards, length = rewards.reshape(-1, 2, NUM_ACTIONS**2), args.episode_length

    def tensor(values) -> torch.Tensor:
        return torch.as_tensor(np.array(values), device=args.device, dtype=torch.get_default_dtype())

    for setting, runs in table_of(args).groupby(IN_TURN, sort=False):
        follower_timesteps, follower_batch_size, explore, batch_size, update_epochs = setting
        runs, followers = runs.reset_index(drop=True), runs.drop_duplicates([*FOLLOWER, "game", "seed"])
        torch.manual_seed(args.seed)
        flags = {flag.removeprefix("follower_"): tensor(followers[[flag]]) for flag in FOLLOWER}
        num_episodes = math.ceil(follower_batch_size / length)
        iterations = follower_timesteps // (num_episodes * length)
        follower_steps = iterations * num_episodes * length
        logits = LOGIT_STD * torch.randn(len(followers), TABLES.size, device=args.device)
        train_follower(logits, tensor(rewards[followers["game"], 1]), iterations, num_episodes, args.num_steps, flags)
        replies = index_of((logits > 0).view(-1, *TABLES.shape).movedim(-1, 0))

        torch.manual_seed(args.seed)  # again, so that all settings of the leader meet the same followers
        replies, game = replies.repeat(len(runs) // len(followers), 1), runs["game"]
        against = tensor(returns[game, 0]).gather(2, replies[..., None])[..., 0]
        num_episodes = math.ceil(batch_size / length)
        steps = np.arange(follower_steps, args.total_timesteps + 1, num_episodes * length)[1:]
        flags = {"explore": explore, "num_episodes": num_episodes, "update_epochs": update_epochs}
        flags |= {flag: tensor(runs[[flag]]) for flag in LEADER}
        logits = LOGIT_STD * torch.randn(len(runs), NUM_OBSERVATIONS, device=args.device)
        inputs = logits, 0.01 * torch.randn_like(logits), replies, tensor(rewards[game, 0]), against
        greedy, exploring = train_leader(*inputs, len(steps), args.num_steps, flags)
        exploring = args.centre[game, 0, 0, 0] + args.scale[game, 0, 0, 0] * exploring
        yield runs, steps, greedy, exploring, replies.cpu().numpy()


def results_of(steps, tables, exploring, replies, exact, tolerance) -> tuple[pd.DataFrame, np.ndarray]:
    """Returns a row for each run, with the names of result.json and what tells misses apart, and the greedy leader's
    return, [iterations, runs]. `exact` is the solution of each run's game, `tolerance` [player, runs]."""
    run, final, optimum = np.arange(len(replies)), tables[-1], exact["stackelberg_value"]
    leader, follower = np.take_along_axis(exact["returns"], replies[:, None, :, None], axis=3)[..., 0].swapaxes(0, 1)
    greedy, best, regrets = leader[run, tables], leader.max(axis=1), exact["best"] - follower
    policies = np.array(["".join(map(str, table)) for table in TABLES])
    rows = pd.DataFrame({"leader_policy": policies[final], "follower_policy": policies[replies[run, final]]})
    rows["leader_return"] = exploring[-math.ceil(len(steps) / 10) :].mean(axis=0)
    rows["leader_return_greedy"], rows["leader_return_best"] = greedy[-1], best
    rows["stackelberg_value"], rows["stackelberg_value_pessimistic"] = optimum, exact["stackelberg_value_pessimistic"]
    rows["leader_regret"], rows["follower_regret"] = optimum - greedy[-1], regrets[run, final]
    rows["follower_regret_all"] = regrets.sum(axis=1)
    for name, returns in (("steps_to_converge", greedy), ("steps_to_converge_exploring", exploring)):
        stays = np.logical_and.accumulate(abs(returns - optimum)[::-1] <= tolerance[0])[::-1]
        rows[name] = np.where(stays.any(axis=0), steps[stays.argmax(axis=0)], np.nan)
    neighbours = leader[run[:, None], final[:, None] ^ PLACES]  # with one answer changed
    shares = {
        "at_optimum": abs(greedy[-1] - optimum) <= tolerance[0],
        "at_optimum_exploring": abs(rows["leader_return"] - optimum) <= tolerance[0],
        "follower_allows": abs(best - optimum) <= tolerance[0],
        "leader_finds": greedy[-1] >= best - tolerance[0],
        "is_local_optimum": (neighbours <= greedy[-1][:, None] + 1e-6).all(axis=1),
        "follower_is_right": rows["follower_regret"] <= tolerance[1],
        "wrong_replies": (regrets > tolerance[1][:, None]).mean(axis=1),
    }
    return rows.join(pd.DataFrame(shares, dtype=float)), greedy


# ------------------------------------------------------------------------------------------------------------- the run
def write_curves(path: str, steps: np.ndarray, curves: dict[str, np.ndarray]) -> None:
    """Writes curves, [iterations, runs], to TensorBoard: mean and quartiles over the runs."""
    with SummaryWriter(path) as writer:
        writer.add_custom_scalars({"returns": {"leader and optimum": ["Multiline", list(curves)]}})
        for tag, curve in curves.items():
            lines = {tag: curve.mean(axis=1)}
            if curve.shape[1] > 1:
                lower, upper = np.quantile(curve, (0.25, 0.75), axis=1)
                lines |= {f"{tag}_lower_quartile": lower, f"{tag}_upper_quartile": upper}
            for (name, line), i in itertools.product(lines.items(), range(len(steps))):
                writer.add_scalar(name, line[i], steps[i])


def finish(runs: pd.DataFrame, varied: list[str], run_path: str) -> None:
    """Writes runs.csv, of which nobody ever meets half, and prints a table: each game, and all, with each setting."""
    runs.to_csv(f"{run_path}/runs.csv.tmp", index=False, float_format="%.6g")
    os.replace(f"{run_path}/runs.csv.tmp", f"{run_path}/runs.csv")
    steps = ["steps_to_converge", "steps_to_converge_exploring"]
    runs = pd.concat([runs, runs.assign(env_id="all")]).fillna(dict.fromkeys(steps, math.inf))  # never
    games = runs.groupby(["env_id", *varied], sort=False)
    means = ["leader_return_greedy", "leader_return", "stackelberg_value"]
    means += ["at_optimum", "at_optimum_exploring", "follower_allows", "leader_finds"]
    names = "greedy exploring optimum found found_exploring allowed leader_finds steps steps_exploring".split()
    table = (games[means].mean().round(3) + 0.0).join(games[steps].median()).set_axis(names, axis=1)
    print(f"""{table.to_string(max_rows=200)}

  found       share of runs whose leader ends within 0.05 of the scale of the optimum of deterministic memory-1 leaders
              against stationary followers, greedy or as it explores; steps: the median until it stays there
  allowed     share whose follower lets a leader get there; leader_finds: whose leader gets the most that it can
  curves      tensorboard --logdir {run_path}
  every run   {run_path}/runs.csv""")


def main(args: Args) -> pd.DataFrame:
    """Trains all runs; returns what it writes to runs.csv."""
    torch.set_num_threads(1)  # a thread pool costs more than it gives with tensors of this size
    run_name = f"{len(args.env_ids)}_games__{args.exp_name}__{args.seed}__{int(1000 * time.time())}"
    os.makedirs(run_path := f"{args.run_dir}/{run_name}")
    if args.track:
        import wandb

        # dir: in the run's own folder, W&B would take its links to the event files for new ones and send them again
        names = {"project": args.wandb_project_name, "entity": args.wandb_entity, "name": run_name}
        wandb.init(**names, dir=args.run_dir, config=asdict(args), sync_tensorboard=True, save_code=True)
    solution, varied = solve(args.payoffs, args.num_steps), [flag for flag in GRID if len(getattr(args, flag)) > 1]
    frames, combined_steps, start_time = [], 0, time.time()
    for runs, steps, tables, exploring, replies in train(args, solution["returns"]):
        exact = {name: values[runs["game"]] for name, values in solution.items()}
        tolerance = TOLERANCE * args.scale[runs["game"], :, 0, 0].T
        results, greedy = results_of(steps, tables, exploring, replies, exact, tolerance)
        frames.append(runs.join(results))
        combined_steps += steps[-1] * len(runs)
        curves = {"charts/leader_return": exploring, "charts/leader_return_greedy": greedy}
        curves["charts/stackelberg_value"] = np.broadcast_to(exact["stackelberg_value"], greedy.shape)
        folders = runs.apply(lambda run: "__".join(f"{flag}-{run[flag]}" for flag in varied) or "all", axis=1)
        if args.curves == "runs":
            folders = pd.concat([folders, folders + "/" + runs["env_id"] + "__" + runs["seed"].astype(str)])
        for folder, members in folders.groupby(folders).groups.items():
            write_curves(f"{run_path}/{folder}", steps, {tag: curve[:, members] for tag, curve in curves.items()})
    seconds = time.time() - start_time
    runs = pd.concat(frames, ignore_index=True).drop(columns="game")
    finish(runs, varied, run_path)
    print(f"  trained     {len(runs):,} runs in {seconds:.1f} s: {combined_steps / seconds / 1e6:.1f} million steps/s")
    return runs


if __name__ == "__main__":
    main(tyro.cli(Args, description=__doc__))
