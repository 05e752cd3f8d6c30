# /// script
# requires-python = ">=3.11"
# dependencies = ["numpy==2.4.6", "tensorboard==2.21.0", "torch==2.13.0", "tqdm==4.70.1", "tyro==1.0.17",
#   "wandb==0.31.0"]
# ///
"""A recurrent follower asks nothing: it infers the leader's policy from play, and a leader with a clock pretends.

"Oracles & Followers: Stackelberg Equilibria in Deep Multi-Agent RL" ends with followers that learn their context from
play, as in RL^2 (Duan et al. 2016). Here the follower is a GRU that sees the last actions and its reward, pre-trained
against random leaders and then frozen. A leader's trial is some episodes for the follower to adapt in, and a paid one.

    python ablations/recurrent_follower_matrix.py
    python ablations/recurrent_follower_matrix.py --env-id chicken --seed 2

What the greedy follower misses in each episode of a trial, against each of the 32 leaders, is exact: it should fall. A
second leader knows whether the episode is paid for. It is not invariant (Appendix B): it pretends to be another.
"""

import itertools
import json
import math
import os
import time
from dataclasses import asdict, dataclass

import numpy as np
import torch
import torch.nn as nn
import tyro
from torch.distributions.bernoulli import Bernoulli
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
    """a game of the paper's Table 3 (prisoners_dilemma, stag_hunt, assurance, coordination, mixedharmony, harmony,
    noconflict, deadlock, prisoners_delight, hero, battle, chicken), two of them as A-B, or a name for your own"""
    leader_payoff: tuple[float, ...] = ()
    """your own game: the leader's payoffs, row by row (row = leader's action, column = follower's action)"""
    follower_payoff: tuple[float, ...] = ()
    """your own game: the follower's payoffs in the same layout (not transposed)"""
    num_steps: int = 10
    """game steps per episode of the game"""
    trial_episodes: int = 4
    """episodes of a trial, in which the leader keeps to one table; the last is paid for"""

    follower_timesteps: int = 3_600_000
    """environment steps of pre-training"""
    trials_per_leader: int = 4
    """trials against each of the 32 leaders in a batch of pre-training"""
    hidden_size: int = 48
    """units of the GRU, and of the layer above it"""
    follower_learning_rate: float = 5e-3
    """Adam learning rate of the follower, decaying linearly to 0"""
    follower_first_weight: float = 0.05
    """what the follower's regret counts in the first episode of a trial, where it finds out; in later ones it is 1"""
    follower_baseline_rate: float = 0.2
    """step size of the baseline of what is lost later"""
    follower_ent_coef: float = 0.3
    """coefficient of the follower's entropy bonus, decaying linearly to 0"""

    num_trials: int = 6400
    """the leader's trials"""
    batch_trials: int = 64
    """trials per batch of the leader's, which is one minibatch"""
    learning_rate: float = 0.06
    """Adam learning rate of the leader, which has one logit for each observation"""
    risk_seeking: float = 5.0
    """k of the advantages exp(k z) / mean - 1, z the standardised return: a rare table that is far better counts"""
    update_epochs: int = 10
    """passes over a batch"""
    clip_coef: float = 0.3
    """PPO's clipping coefficient"""

    def __post_init__(self):
        may_be_zero = {"seed", "follower_first_weight", "follower_baseline_rate", "follower_ent_coef"}
        for flag, value in asdict(self).items():
            if type(value) in (int, float) and not (0 < value < math.inf or (value == 0 and flag in may_be_zero)):
                raise ValueError(f"--{flag.replace('_', '-')} must be positive, got {value}")
        payoffs, names = (self.leader_payoff, self.follower_payoff), self.env_id.split("-")
        is_known = len(names) <= 2 and {*names} <= {*PAYOFFS}
        if payoffs == ((), ()):
            if not is_known:
                raise ValueError(f"no game {self.env_id!r}: {', '.join(PAYOFFS)}, two as A-B, or your own payoffs")
            payoffs = np.ravel(PAYOFFS[names[0]]), np.transpose(PAYOFFS[names[-1]]).ravel()
        elif is_known:
            self.env_id = "custom"
        if not all(len(payoff) == 4 and np.abs(payoff).max() < 1e30 for payoff in payoffs):
            raise ValueError("--leader-payoff and --follower-payoff must be four numbers each, row by row")
        self.game = MatrixGame(*payoffs, self.num_steps)

        self.trial_steps = self.trial_episodes * self.num_steps
        follower_batch = self.trials_per_leader * len(TABLES) * self.trial_steps
        self.follower_iterations = self.follower_timesteps // follower_batch
        self.follower_steps = self.follower_iterations * follower_batch
        if self.follower_steps == 0 or self.num_trials < self.batch_trials or self.batch_trials < 2:
            raise ValueError("--follower-timesteps and --num-trials must hold a batch each, of at least 2 trials")


# ------------------------------------------------------------------------------------------------------------- the game
# ---------------------------------------------------------------------------------------------------------- the game
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


class MatrixGame:
    """An iterated 2x2 game of `num_steps` steps; both players observe the last pair of actions.

    `reward`, [player, leader's action, follower's action], are the payoffs centred on 0 and stretched to +-1.5, as in
    the paper's training (Appendix F). This changes no equilibrium, and the learning rates fit payoffs of any scale.
    A unit of a player's reward is `scale[player]` units of payoff, 1 in the paper's games; player 0 is the leader.
    """

    def __init__(self, leader_payoff, follower_payoff, num_steps: int = 10):
        payoffs = np.array([leader_payoff, follower_payoff], dtype=np.float64).reshape(2, NUM_ACTIONS, NUM_ACTIONS)
        low, high = payoffs.min(axis=(1, 2), keepdims=True), payoffs.max(axis=(1, 2), keepdims=True)
        centre, scale = (low + high) / 2, np.where(high > low, (high - low) / 3, 1.0)
        self.reward, self.centre, self.scale = (payoffs - centre) / scale, centre.ravel(), scale.ravel()
        self.num_steps, self.episode_length = num_steps, NUM_OBSERVATIONS + num_steps

    def payoff(self, player: int, reward):
        """Returns the payoff that a player's reward, a number or an array, stands for."""
        return self.centre[player] + self.scale[player] * reward


# --------------------------------------------------------------------------------------------------- the exact solution
TABLES = np.array(list(itertools.product(range(NUM_ACTIONS), repeat=NUM_OBSERVATIONS)))  # policies, [32, 5]


def solve(game: MatrixGame) -> tuple[float, float]:
    """Returns the exact optimum of deterministic memory-1 leaders against stationary followers (32 x 32 tables), if the
    follower breaks ties for the leader and if it breaks them against it, as mean rewards per step."""
    leader, follower = np.indices((len(TABLES), len(TABLES)))
    observation, rewards = np.full(leader.shape, START), np.zeros((2, *leader.shape))
    for _ in range(game.num_steps):
        actions = TABLES[leader, observation], TABLES[follower, observation]
        rewards += game.reward[:, *actions] / game.num_steps
        observation = 1 + NUM_ACTIONS * actions[0] + actions[1]
    is_best = rewards[1] >= rewards[1].max(axis=1, keepdims=True) - 1e-6  # what rounding leaves of a tie
    optimistic, pessimistic = np.where(is_best, rewards[0], -np.inf), np.where(is_best, rewards[0], np.inf)
    return optimistic.max(), pessimistic.min(axis=1).max()


def best_replies(game: MatrixGame) -> tuple[np.ndarray, np.ndarray]:
    """Returns both players' mean reward per step, [32] each, if the follower replies to each of the leader's tables as
    well as anyone can who knows it and counts steps: by dynamic programming. Ties are broken for the leader."""
    pairs = NUM_ACTIONS * TABLES[..., None] + np.arange(NUM_ACTIONS)  # [32, observation, follower's action]
    payoffs, leader = game.reward.reshape(2, -1)[:, pairs], np.arange(len(TABLES))[:, None, None]
    values = np.zeros((2, *TABLES.shape))
    for _ in range(game.num_steps):
        later = payoffs + values[:, leader, 1 + pairs]
        is_best = later[1] >= later[1].max(axis=2, keepdims=True) - 1e-6
        values = np.stack([np.where(is_best, later[0], -np.inf).max(axis=2), later[1].max(axis=2)])
    return tuple(values[:, :, START] / game.num_steps)


# -------------------------------------------------------------------------------------------- the follower, and a trial
class Follower(nn.Module):
    """A GRU that reads what happened in the last step, and above it what to do in each observation."""

    def __init__(self, hidden_size: int):
        super().__init__()
        self.memory = nn.GRUCell(NUM_OBSERVATIONS * NUM_ACTIONS**2 + 1, hidden_size)
        self.policy = nn.Sequential(nn.Linear(hidden_size, hidden_size), nn.ReLU(), nn.Linear(hidden_size, 5))
        nn.init.normal_(self.memory.weight_ih)  # a one-hot has one input; torch's default would whisper
        nn.init.constant_(self.memory.bias_hh[hidden_size : 2 * hidden_size], 1.0)  # remember, unless there is news

    def forward(self, inputs: torch.Tensor, state: torch.Tensor):
        """Takes the last observation and actions, as one one-hot, and reward, [n, 21], all zeros at the start of a
        trial, and the memory, [n, hidden size]; returns logits of action 1, [n, 5], and the memory."""
        state = self.memory(inputs, state)
        return self.policy(state), state


def play_trials(follower: Follower, game: MatrixGame, leaders: torch.Tensor, uniforms=None):
    """Plays trials against leaders' tables, [episodes, n, 5]. The follower takes action 1 where its probability exceeds
    a uniform number, [trial steps, n], or without these 0.5. Returns observations, the follower's actions and logits of
    action 1, [trial steps, n] each, and both players' rewards, [trial steps, 2, n]. Its memory lasts for a trial."""
    n, payoffs = leaders.shape[1], torch.as_tensor(game.reward, dtype=torch.float32).flatten(1)
    state, inputs = torch.zeros(n, follower.memory.hidden_size), torch.zeros(n, follower.memory.input_size)
    one_hots, steps = torch.eye(follower.memory.input_size - 1), []
    for tables in leaders:
        observation = torch.full((n, 1), START)
        for _ in range(game.num_steps):
            logits, state = follower(inputs, state)
            logit = logits.gather(1, observation)
            chance = 0.5 if uniforms is None else uniforms[len(steps), :, None]
            action = (chance < logit.detach().sigmoid()).long()
            pair = NUM_ACTIONS * tables.gather(1, observation) + action
            rewards = payoffs[:, pair[:, 0]]
            steps.append((observation[:, 0], action[:, 0], logit[:, 0], rewards))
            inputs = torch.cat([one_hots[4 * observation[:, 0] + pair[:, 0]], rewards[1, :, None]], dim=1)
            observation = 1 + pair
    return [torch.stack(column) for column in zip(*steps, strict=True)]


def evaluate(follower: Follower, args: Args) -> torch.Tensor:
    """Returns both players' mean reward per step in each episode of a trial with the greedy follower, [episodes, 2, 32,
    32], for each table that the leader has while the follower adapts, and each that it has in the last episode. On the
    diagonal are leaders that keep to one."""
    adapting, last = torch.as_tensor(TABLES).repeat_interleave(len(TABLES), 0), torch.as_tensor(TABLES).repeat(32, 1)
    with torch.no_grad():
        rewards = play_trials(follower, args.game, torch.stack([*[adapting] * (args.trial_episodes - 1), last]))[3]
    return rewards.double().view(args.trial_episodes, args.num_steps, 2, len(TABLES), -1).mean(dim=1)


# ---------------------------------------------------------------------------------------- follower pre-training (RL^2)
def train_follower(args: Args, writer: SummaryWriter) -> Follower:
    """Trains a follower against random leaders, each of the 32 tables as often as any other in a batch, to keep its
    regrets small. The critic may know the leader, since it is gone when training ends: Q-values of steps left, leader,
    observation and action, by Q-learning. What an action loses by them is known of all actions; what is lost later, for
    want of memory too, is sampled (REINFORCE with a baseline). Writes mean regrets a hundred times."""
    follower, n = Follower(args.hidden_size), len(TABLES) * args.trials_per_leader
    optimizer = torch.optim.Adam(follower.parameters(), lr=args.follower_learning_rate, eps=1e-5)
    contexts, best = torch.arange(len(TABLES)).repeat(args.trials_per_leader), torch.tensor(best_replies(args.game)[1])
    leaders = torch.as_tensor(TABLES)[contexts].expand(args.trial_episodes, -1, -1)
    # Q-values, hopeful until tried; as a table of the leader's makes the game deterministic, one try is enough
    q = 1.5 * torch.arange(args.num_steps + 1.0)[:, None, None, None].repeat(1, len(TABLES), NUM_OBSERVATIONS, 2)
    baseline = torch.zeros(args.trial_steps, len(TABLES), NUM_OBSERVATIONS)
    steps = torch.arange(args.trial_steps)[:, None]
    weights = torch.where(steps < args.num_steps, args.follower_first_weight, 1.0)[..., None]

    for iteration in tqdm(range(args.follower_iterations), desc="follower", leave=False, disable=None):
        decay, uniforms = 1 - iteration / args.follower_iterations, torch.rand(args.trial_steps, n)
        optimizer.param_groups[0]["lr"] = decay * args.follower_learning_rate
        observations, actions, logits, rewards = play_trials(follower, args.game, leaders, uniforms)
        next_observations = torch.cat([observations[1:], observations[:1]])
        for t in reversed(range(args.num_steps)):
            now, k = slice(t, None, args.num_steps), args.num_steps - t
            later = q[k - 1, contexts, next_observations[now]].amax(-1)
            q[k, contexts, observations[now], actions[now]] = rewards[now, 1] + later
        q_now = q[args.num_steps - steps % args.num_steps, contexts, observations]  # [trial steps, n, action]
        losses = weights * (q_now - q_now.amax(-1, keepdim=True))
        taken = losses.gather(2, actions[..., None])[..., 0]
        later = taken.flip(0).cumsum(0).flip(0) - taken  # what is lost after each step
        inputs = steps, contexts, observations
        errors = later - baseline[inputs]
        probs = Bernoulli(logits=logits, validate_args=False)
        gain = probs.probs * (losses[..., 1] - losses[..., 0]) + probs.log_prob(actions.float()) * errors
        loss = -(gain + decay * args.follower_ent_coef * probs.entropy()).mean()
        if not loss.isfinite():
            raise SystemExit("the follower's training diverged: lower --follower-learning-rate")
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(follower.parameters(), 0.5)
        optimizer.step()
        baseline[inputs] += args.follower_baseline_rate * errors  # of trials that are alike, one counts
        if (iteration + 1) % math.ceil(args.follower_iterations / 100) == 0:
            regrets = best - evaluate(follower, args)[:, 1].diagonal(dim1=1, dim2=2)
            for i, regret in enumerate(regrets.mean(dim=1).tolist(), start=1):
                writer.add_scalar(f"charts/follower_regret_{i}", regret, (iteration + 1) * uniforms.numel())
    return follower


# ------------------------------------------------------------------------------------------------------ leader training
def train_leader(returns: torch.Tensor, args: Args) -> list[np.ndarray]:
    """PPO on a leader's logits of action 1, one for each of its observations. It keeps to its answers in a trial; the
    mean reward of each of its tables in the paid episode, `returns` [tables], follows from the frozen follower. Returns
    the index of the greedy table and the mean reward after each batch, [batches] each."""
    num_observations = int(math.log2(len(returns)))
    places = NUM_ACTIONS ** torch.arange(num_observations).flip(0)
    leader, history = nn.Parameter(0.01 * torch.randn(num_observations)), []
    optimizer = torch.optim.Adam([leader], lr=args.learning_rate, eps=1e-3)
    for _ in tqdm(range(args.num_trials // args.batch_trials), desc="leader", leave=False, disable=None):
        old_probs = Bernoulli(logits=leader.detach(), validate_args=False)
        answers = (torch.rand(args.batch_trials, num_observations) < old_probs.probs).float()
        rewards = returns[(answers.long() * places).sum(-1)]
        # All answers of a trial have its one return. So would a value: it is gone with the mean of the batch.
        scores = (rewards - rewards.mean()) / (rewards.std() + 1e-8)
        advantages = (args.batch_trials * (args.risk_seeking * scores).softmax(dim=0) - 1)[:, None]
        for _ in range(args.update_epochs):
            probs = Bernoulli(logits=leader, validate_args=False)
            ratio = (probs.log_prob(answers) - old_probs.log_prob(answers)).exp()
            clipped = ratio.clamp(1 - args.clip_coef, 1 + args.clip_coef)
            loss = -torch.min(advantages * ratio, advantages * clipped).mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        history.append((((leader.detach() > 0) * places).sum().item(), rewards.mean().item()))
    return [np.array(x) for x in zip(*history, strict=True)]


# ---------------------------------------------------------------------------------------------------------- convergence
# ------------------------------------------------------------------------------ equilibrium verification (Appendix F)
TOLERANCE = 0.05 + 1e-6  # what passes for equal, in mean rewards: half of what one step of ten can change


def steps_to_converge(steps: np.ndarray, gaps: np.ndarray) -> int | None:
    """Returns the first of the steps from which on the gaps stay within the tolerance, or None."""
    stays = np.logical_and.accumulate(abs(gaps[::-1]) <= TOLERANCE)[::-1]
    return int(steps[stays.argmax()]) if stays.any() else None


# -------------------------------------------------------------------------------------------------------------- the run
# -------------------------------------------------------------------------------------------------------------- the run
def start_run(args: Args) -> str:
    """Makes the run's folder and returns it; starts Weights and Biases if asked for."""
    run_name = f"{args.env_id}__{args.exp_name}__{args.seed}__{int(1000 * time.time())}"
    os.makedirs(f"{args.run_dir}/{run_name}")
    if args.track:
        import wandb

        # dir: in the run's own folder, W&B would take its links to the event files for new ones and send them again
        names = {"project": args.wandb_project_name, "entity": args.wandb_entity, "name": run_name}
        wandb.init(**names, dir=args.run_dir, config=asdict(args), sync_tensorboard=True, save_code=True)
    return f"{args.run_dir}/{run_name}"


def start_writer(path: str, args: Args) -> SummaryWriter:
    """Returns the writer of an arm's curves."""
    writer = SummaryWriter(path)
    flags = "\n".join(f"|{flag}|{value}|" for flag, value in asdict(args).items())
    writer.add_text("hyperparameters", f"|param|value|\n|-|-|\n{flags}")
    returns = ["charts/leader_return", "charts/leader_return_greedy", "charts/stackelberg_value"]
    writer.add_custom_scalars({"returns": {"leader and optimum": ["Multiline", returns]}})
    return writer


def results_of(kind: str, rewards: torch.Tensor, args: Args, writer: SummaryWriter) -> dict:
    """Trains a leader, invariant or with a clock, writes its curves, and returns what result.json says about it, as
    payoffs per game step. `rewards` are those of `evaluate`."""
    game, paid = args.game, rewards[-1].numpy()  # [player, 32, 32]
    (optimum, certain), (counting, best) = solve(game), best_replies(game)
    tables = np.arange(1024) if kind == "clock" else 33 * np.arange(32)  # 32 * while it adapts + at the end
    leader_returns, follower_returns = paid.reshape(2, -1)[:, tables]
    indices, exploring = train_leader(torch.as_tensor(leader_returns.copy()), args)
    steps = args.follower_steps + args.batch_trials * args.trial_steps * np.arange(1, len(indices) + 1)
    greedy, exploring = game.payoff(0, leader_returns[indices]), game.payoff(0, exploring)
    optimum, final = game.payoff(0, optimum), indices[-1]
    curves = {"leader_return": exploring, "leader_return_greedy": greedy, "leader_regret": optimum - greedy}
    curves |= {"follower_return": game.payoff(1, follower_returns[indices]), "stackelberg_value": optimum + 0 * greedy}
    for name, values in curves.items():
        for step, value in zip(steps.tolist(), values.tolist(), strict=True):
            writer.add_scalar(f"charts/{name}", value, step)
    adapting, last = divmod(tables[final], len(TABLES))
    run = {"leader": kind, "stackelberg_value": optimum, "stackelberg_value_pessimistic": game.payoff(0, certain)}
    run["stackelberg_value_counting"] = game.payoff(0, counting.max())  # against a follower that counts steps
    run["leader_return"] = exploring[-math.ceil(len(steps) / 10) :].mean()
    run |= {"leader_return_greedy": greedy[-1], "leader_regret": optimum - greedy[-1]}
    run["leader_return_best"] = game.payoff(0, leader_returns.max())  # of all tables against this follower
    run["follower_regret"] = game.scale[1] * (best[last] - follower_returns[final])
    for i, (leader_rewards, follower_rewards) in enumerate(rewards.diagonal(dim1=2, dim2=3).numpy(), start=1):
        regrets = game.scale[1] * (best - follower_rewards)
        run |= {f"follower_regret_{i}": regrets.mean(), f"follower_regret_most_{i}": regrets.max()}
        run |= {f"tables_answered_{i}": (regrets <= TOLERANCE * game.scale[1]).sum()}
        run |= {f"leader_return_best_{i}": game.payoff(0, leader_rewards.max())}  # if this episode were the paid one
    run = {name: value if type(value) is str else value.item() for name, value in run.items()}
    run["leader_policy"] = [*(TABLES[adapting].tolist() if kind == "clock" else []), *TABLES[last].tolist()]
    for name, values in (("steps_to_converge", greedy), ("steps_to_converge_exploring", exploring)):
        run[name] = steps_to_converge(steps, (values - optimum) / game.scale[0])
    run["curve"] = [[*point] for point in zip(steps.tolist(), greedy.tolist(), exploring.tolist(), strict=True)]
    return run


def finish(result: dict, run_path: str) -> None:
    """Writes result.json, of which nobody ever meets half, and says in words what was found."""
    with open(f"{run_path}/result.json.tmp", "w") as file:
        json.dump(result, file)
    os.replace(f"{run_path}/result.json.tmp", f"{run_path}/result.json")
    run, clock = result["runs"]
    episodes = range(1, 1 + result["args"]["trial_episodes"])
    regrets = ", ".join(f"{run[f'follower_regret_{i}']:.3f}" for i in episodes)
    answered = ", ".join(str(run[f"tables_answered_{i}"]) for i in episodes)
    print(f"""
{result["env_id"]}: a follower that asks nothing
  its regret         {regrets} in the episodes of a trial, mean over all 32 leaders
                     (right, within 0.05, to {answered} of them)
  leader's return    {run["leader_return_greedy"]:z.2f} per game step; best table {run["leader_return_best"]:z.2f}
  optimum            {run["stackelberg_value"]:z.2f} for deterministic memory-1 leaders and stationary followers
                     ({run["stackelberg_value_counting"]:z.2f} if followers count steps)
  with a clock       {clock["leader_return_greedy"]:z.2f}, from {clock["leader_policy"][:5]} as the follower adapts,
                     then {clock["leader_policy"][5:]}; follower's regret {clock["follower_regret"]:z.2f}
  steps              {result["follower_steps"]:,} of pre-training, no queries
  curves             tensorboard --logdir {run_path}
  result             {run_path}/result.json""")


def main(args: Args) -> dict:
    """Trains a follower, then both leaders against it; returns what it writes to result.json."""
    torch.set_num_threads(1)  # a thread pool costs more than it gives with tensors of this size
    start_time, run_path = time.time(), start_run(args)
    torch.manual_seed(args.seed)
    writers = {kind: start_writer(f"{run_path}/{kind}", args) for kind in ("invariant", "clock")}
    rewards, runs = evaluate(train_follower(args, writers["invariant"]), args), []
    for kind, writer in writers.items():
        runs.append({"env_id": args.env_id, "seed": args.seed} | results_of(kind, rewards, args, writer))
        steps = runs[-1]["curve"][-1][0]
        writer.add_scalar("charts/SPS", steps / (time.time() - start_time), steps)
        writer.close()
    result = {"script": os.path.basename(__file__), "env_id": args.env_id, "seed": args.seed, "args": asdict(args)}
    result |= {"runs": runs, "follower_steps": args.follower_steps, "wall_seconds": time.time() - start_time}
    result["steps_per_second"] = steps / result["wall_seconds"]
    finish(result, run_path)
    return result


if __name__ == "__main__":
    main(tyro.cli(Args, description=__doc__))
