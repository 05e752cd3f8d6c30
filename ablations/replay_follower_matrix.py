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
steps: the leader defects once, then plays tit-for-tat, the follower always cooperates, and the greedy leader gets -0.90
per step, the optimum of deterministic memory-1 leaders against stationary followers. To try each of the 32 leaders once
against a perfect follower takes 480 steps. (The authors' code: mgerstgrasser/oracles_and_followers, commit e98db77.)
"""

import itertools
import json
import math
import os
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass

import gymnasium as gym
import numpy as np
import torch
import torch.nn as nn
import tyro
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
    """a game of the paper's Table 3 (prisoners_dilemma, stag_hunt, assurance, coordination, mixedharmony, harmony,
    noconflict, deadlock, prisoners_delight, hero, battle, chicken), two of them as A-B, or a name for your own"""
    leader_payoff: tuple[float, ...] = ()
    """your own game: the leader's payoffs, row by row (row = leader's action, column = follower's action)"""
    follower_payoff: tuple[float, ...] = ()
    """your own game: the follower's payoffs in the same layout (not transposed)"""
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
    """deal the random leaders from a shuffled deck of all 32; off: draw each afresh (the authors' code)"""
    follower_checkpoint: str | None = None
    """model.pt of an earlier run on the same game: use its follower; its steps still count"""
    verification_iterations: int = 50
    """further follower iterations against the frozen leader (Appendix F); not in the budget"""

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

    def __post_init__(self):
        may_be_zero = {"seed", "verification_iterations", "follower_gamma"}
        may_be_zero |= {"risk_seeking", "ent_coef"}
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

        length = self.game.episode_length  # batches are complete episodes
        self.num_envs = math.ceil(self.batch_size / length)
        self.follower_episodes = math.ceil(self.follower_batch_size / length)
        self.follower_iterations = self.follower_timesteps // (self.follower_episodes * length)
        self.follower_steps = self.follower_iterations * self.follower_episodes * length
        self.follower = None
        if self.follower_checkpoint is not None:
            self.follower, self.follower_steps = load_follower(self)
        self.leader_iterations = (self.total_timesteps - self.follower_steps) // (self.num_envs * length)
        if self.follower_steps == 0 or self.leader_iterations < 1:
            raise ValueError("--follower-timesteps, and what they leave of --total-timesteps, must hold a batch each")


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


# ------------------------------------------------------------------------------------- the leader's POMDP (Theorem 1)
class LeaderPOMDP(gym.vector.VectorEnv):
    """The leader's learning problem of Theorem 1: queries first, then the game against the follower they inform.

    Step t < 5 shows observation t and keeps the action as its answer, without reward. The five answers are the context
    that the follower's oracle, `replies` [32, 5], turns into a table: the follower's action in each observation of the
    game that comes next. All episodes start and end together, and restart in the step in which they end.
    Nothing in the one-hot observation tells a query from the game: a memory-less leader is invariant (Appendix B). If
    it draws answers and play apart, it may gain where they differ (-0.66 in the prisoner's dilemma: pomdp_values.csv).
    """

    def __init__(self, game: MatrixGame, replies: np.ndarray, num_envs: int):
        self.game, self.replies, self.num_envs = game, replies, num_envs
        self.metadata = {"autoreset_mode": gym.vector.AutoresetMode.SAME_STEP}
        self.single_observation_space = gym.spaces.Box(0.0, 1.0, (NUM_OBSERVATIONS,), np.float32)
        self.single_action_space = gym.spaces.Discrete(NUM_ACTIONS)
        self.observation_space = gym.vector.utils.batch_space(self.single_observation_space, num_envs)
        self.action_space = gym.vector.utils.batch_space(self.single_action_space, num_envs)

    def reset(self, *, seed: int | None = None, options: dict | None = None) -> tuple[np.ndarray, dict]:
        """Starts all episodes; returns the first query [num_envs, 5] and no info. It draws no random numbers."""
        self.t = 0
        self.observation = np.full(self.num_envs, START)
        self.context = np.zeros((self.num_envs, NUM_OBSERVATIONS), dtype=np.int64)
        self.total_rewards = np.zeros((2, self.num_envs))  # of both players
        return self.one_hot(), {}

    def step(self, actions: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, dict]:
        """Takes the leader's actions [num_envs]; returns observations [num_envs, 5], rewards, terminations, truncations
        [num_envs], and infos: of episodes that end, both players' payoff per step, and what Gymnasium's loops read."""
        rewards, infos = np.zeros((2, self.num_envs)), {}
        if self.t < NUM_OBSERVATIONS:  # a query
            self.context[:, self.t] = actions
            self.observation = np.full(self.num_envs, (self.t + 1) % NUM_OBSERVATIONS)  # after the last one, START
        else:  # a step of the game
            follower_actions = self.replies[table_index(self.context), self.observation]
            rewards = self.game.reward[:, actions, follower_actions]
            self.observation = 1 + NUM_ACTIONS * actions + follower_actions
        self.total_rewards += rewards
        self.t += 1
        terminations = np.full(self.num_envs, self.t == self.game.episode_length)
        if terminations.all():
            mean_rewards = self.total_rewards / self.game.num_steps
            infos["leader_return"], infos["follower_return"] = map(self.game.payoff, (0, 1), mean_rewards)
            infos["final_info"] = [{"episode": {"r": total, "l": self.t}} for total in self.total_rewards[0]]
            infos["final_obs"] = self.one_hot()
            self.reset()
        return self.one_hot(), rewards[0], terminations, np.zeros(self.num_envs, dtype=bool), infos

    def one_hot(self) -> np.ndarray:
        """Returns the current observations as one-hot rows, [num_envs, 5]."""
        return np.eye(NUM_OBSERVATIONS, dtype=np.float32)[self.observation]


# -------------------------------------------------------------------------------------------------------- policies
# A table is a deterministic memory-1 policy, [5]: the action in each observation. As answers to the queries, the
# leader's table is the follower's context; TABLES[i] is the table, or context, with index i. The follower is Q-values
# [32, 5, 2] for each context, observation and action: the discounted rewards that it expects.
TABLES = np.array(list(itertools.product(range(NUM_ACTIONS), repeat=NUM_OBSERVATIONS)))


def table_index(table: np.ndarray) -> np.ndarray:
    """Returns the row of TABLES that equals each table, [..., 5] -> [...]."""
    return table @ (NUM_ACTIONS ** np.arange(NUM_OBSERVATIONS)[::-1])


class Leader(nn.Module):
    """Memory-less policy, linear in the one-hot observation, no bias."""

    def __init__(self):
        super().__init__()
        self.actor = nn.Linear(NUM_OBSERVATIONS, NUM_ACTIONS, bias=False)
        nn.init.normal_(self.actor.weight, std=0.01)  # the policy starts near uniform

    def forward(self, observation: torch.Tensor) -> Categorical:
        """Returns the distribution of the action, [...], for one-hot observations [..., 5]."""
        return Categorical(logits=self.actor(observation), validate_args=False)


# ------------------------------------------------------------------------------------------------ the exact solution
def play(game: MatrixGame, leader_tables: np.ndarray, follower_policies: np.ndarray, uniforms=0.5):
    """Plays an episode for each leader table and follower's probabilities of action 1, both [n, 5].

    Uniform numbers, [num_steps, n], decide, and matter only where a probability is neither 0 nor 1. Returns
    observations and follower's actions, [num_steps, n], and both players' rewards, [2, num_steps, n].
    """
    rows = np.arange(len(leader_tables))
    uniforms = np.broadcast_to(uniforms, (game.num_steps, len(rows)))
    observations, leader_actions, follower_actions = np.full((3, *uniforms.shape), START)
    for t in range(game.num_steps):
        if t > 0:
            observations[t] = 1 + NUM_ACTIONS * leader_actions[t - 1] + follower_actions[t - 1]
        leader_actions[t] = leader_tables[rows, observations[t]]
        follower_actions[t] = uniforms[t] < follower_policies[rows, observations[t]]
    return observations, follower_actions, game.reward[:, leader_actions, follower_actions]


def solve(game: MatrixGame) -> tuple[float, float, np.ndarray]:
    """Returns the exact optimum of deterministic memory-1 leaders against stationary followers (32 x 32 tables), if the
    follower breaks ties in the leader's favour (Definition 2) and if it breaks them against it, and the follower's best
    against each leader, [32]; all as mean rewards per step.

    Both restrictions matter. In the prisoner's dilemma stochastic memory-1 leaders reach -0.50 instead of -0.90, and
    against a follower that knows how many steps are left the optimum is -1.10 (benchmark/results/commitments.csv).
    """
    n = len(TABLES)
    _, _, rewards = play(game, TABLES.repeat(n, axis=0), np.tile(TABLES, (n, 1)))
    leader_rewards, follower_rewards = rewards.mean(axis=1).reshape(2, n, n)
    best = follower_rewards.max(axis=1)
    is_best = follower_rewards >= best[:, None] - 1e-6  # what rounding leaves of a tie
    optimistic, pessimistic = np.where(is_best, leader_rewards, -np.inf), np.where(is_best, leader_rewards, np.inf)
    return optimistic.max(), pessimistic.min(axis=1).max(), best


def evaluate(game: MatrixGame, replies: np.ndarray) -> dict[str, np.ndarray]:
    """Returns what each leader table gets against a follower's replies [32, 5], and what either player misses by the
    exact solution; payoffs per game step, [32] each."""
    optimum, _, best = solve(game)
    leader_rewards, follower_rewards = play(game, TABLES, replies)[2].mean(axis=1)
    return {
        "leader_return_greedy": game.payoff(0, leader_rewards),
        "leader_regret": game.scale[0] * (optimum - leader_rewards),
        "follower_regret": game.scale[1] * (best - follower_rewards),
    }


# ------------------------------------------------------------------------- follower pre-training (Algorithm 1, phase 1)
def random_leaders(seed: int, shuffled: bool) -> Iterator[int]:
    """Yields the indices of random leader tables: dealt from a shuffled deck of all 32, or each drawn afresh."""
    rng = np.random.default_rng(seed)
    while True:
        yield from rng.permutation(len(TABLES)) if shuffled else rng.integers(len(TABLES), size=len(TABLES))


def train_follower(follower: torch.Tensor, leaders: Iterator[int], iterations: int, args: Args, log):
    """Q-learning from replay on the follower's Q-values [32, 5, 2], in place, against one leader table in each episode;
    calls `log(steps, scalars)`. Off-policy learning leaves it free to explore: it plays what it has tried least in this
    context and observation, whatever it is worth."""
    game, q_values, visits = args.game, follower.data, np.zeros(follower.shape)
    replay = []  # of every game step so far: context index, observation, action, reward and next observation
    for iteration in tqdm(range(1, iterations + 1), desc="follower", leave=False, disable=None):
        # A deterministic leader's answers are its table: the follower's queries are not stepped through, but counted.
        steps = iteration * args.follower_episodes * game.episode_length
        context_index = np.array(list(itertools.islice(leaders, args.follower_episodes)))
        next_observation, mean_reward = np.full(args.follower_episodes, START), 0.0
        for _ in range(game.num_steps):
            observation = next_observation
            tried = torch.as_tensor(visits[context_index, observation])
            action = (tried + 0.5 * torch.rand(tried.shape)).argmin(-1).numpy()  # ties by chance
            leader_action = TABLES[context_index, observation]
            reward = game.reward[1, leader_action, action]
            next_observation = 1 + NUM_ACTIONS * leader_action + action
            replay.append((context_index, observation, action, reward, next_observation))
            np.add.at(visits, (context_index, observation, action), 1)
            mean_reward += reward.mean() / game.num_steps

        # All transitions at once. Leader and game are deterministic: repeats of a transition write the same value.
        columns = [torch.as_tensor(np.concatenate(column)) for column in zip(*replay, strict=True)]
        contexts, observations, actions, rewards, next_observations = columns
        for _ in range(args.follower_replay_sweeps):
            targets = rewards.float() + args.follower_gamma * q_values[contexts, next_observations].amax(-1)
            td_errors = targets - q_values[contexts, observations, actions]
            q_values[contexts, observations, actions] += args.follower_learning_rate * td_errors
        loss = (td_errors**2).mean()
        if not loss.isfinite():
            raise SystemExit("the follower's training diverged: lower --follower-learning-rate or --follower-gamma")
        log(steps, {"charts/follower_return": game.payoff(1, mean_reward), "losses/follower_td_loss": loss.item()})


def load_follower(args: Args) -> tuple[torch.Tensor, int]:
    """Returns the follower of a model.pt and its training's steps. Raises ValueError if it is not for this game."""
    try:
        model = torch.load(args.follower_checkpoint, weights_only=True)
        assert model["game"] == [args.game.reward.tolist(), args.num_steps], "it is from another game"
        assert model["follower"].shape == (len(TABLES), NUM_OBSERVATIONS, NUM_ACTIONS), "it has another shape"
        assert model["follower"].isfinite().all(), "it has weights that are not finite"
        return nn.Parameter(model["follower"]), int(model["follower_steps"])
    except Exception as error:  # torch.load raises whatever a foreign file makes it trip over
        raise ValueError(f"--follower-checkpoint {args.follower_checkpoint!r} does not fit: {error}") from error


def pretrain_follower(args: Args, log=lambda steps, scalars: None) -> torch.Tensor:
    """Returns a follower trained against random leaders, or that of `--follower-checkpoint`."""
    if args.follower is not None:
        return args.follower
    torch.manual_seed(args.seed)
    follower = nn.Parameter(0.01 * torch.randn(len(TABLES), NUM_OBSERVATIONS, NUM_ACTIONS))
    leaders = random_leaders(args.seed, args.shuffled_leaders)
    train_follower(follower, leaders, args.follower_iterations, args, log)
    return follower


def make_envs(env_id: str, num_envs: int, **flags) -> LeaderPOMDP:
    """Trains a follower and returns the leader's POMDP, for a loop of your own; `flags` are those of `Args`."""
    args = Args(env_id=env_id, **flags)
    with torch.random.fork_rng():  # your own random numbers stay as they are
        replies = pretrain_follower(args).argmax(-1).numpy()
    return LeaderPOMDP(args.game, replies, num_envs)


# ------------------------------------------------------------------------------ leader training (Algorithm 1, phase 2)
def train_leader(leader: Leader, envs: LeaderPOMDP, args: Args, log):
    """PPO on the leader's POMDP, a complete episode of each environment per iteration; calls `log(steps, scalars)`.

    The leader explores by whole tables: it draws one when an episode starts, and plays as it answered. An episode is
    one decision, weighted as in the gradient of log E[exp(risk_seeking * return)], which has the same maximum where
    nothing but the leader's own choice is random. In the plain mean an action that pays little (the first in the
    prisoner's dilemma: a thirtieth of the range) drowns in what the other four cause, and is saturated before they are
    settled. Among the best episodes of a batch they are settled already.
    """
    optimizer = torch.optim.Adam(leader.parameters(), lr=args.learning_rate, eps=1e-5)
    queries = torch.eye(NUM_OBSERVATIONS)  # one one-hot query in each row
    next_obs, _ = envs.reset(seed=args.seed)
    for iteration in tqdm(range(1, args.leader_iterations + 1), desc="leader", leave=False, disable=None):
        with torch.no_grad():
            policy = leader(queries)
            tables = (torch.rand(envs.num_envs, NUM_OBSERVATIONS) < policy.probs[:, 1]).long()
            logprobs = policy.log_prob(tables)
        returns = torch.zeros(envs.num_envs)
        for _ in range(envs.game.episode_length):
            actions = tables.numpy()[next_obs == 1]  # of each environment's table, the one for what it observes
            next_obs, reward, _, _, infos = envs.step(actions)
            returns += torch.as_tensor(reward)

        advantages = (returns - returns.mean()) / (returns.std(correction=0) + 1e-3)
        if args.risk_seeking:
            advantages = envs.num_envs * torch.softmax(args.risk_seeking * advantages, dim=0) - 1  # their mean is 0
        advantages = advantages.unsqueeze(1)  # the same for each of the five answers

        for _ in range(args.update_epochs):
            policy = leader(queries)
            ratio = (policy.log_prob(tables) - logprobs).exp()
            clipped_ratio = torch.clamp(ratio, 1 - args.clip_coef, 1 + args.clip_coef)
            pg_loss = torch.max(-advantages * ratio, -advantages * clipped_ratio).mean()
            entropy = policy.entropy().mean()
            loss = pg_loss - args.ent_coef * entropy
            if not loss.isfinite():
                raise SystemExit("the leader's training diverged: lower --learning-rate")
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()

        payoffs = {f"charts/{name}": infos[name].mean() for name in ("leader_return", "follower_return")}
        losses = {"losses/policy_loss": pg_loss, "losses/entropy": entropy}
        log(iteration * envs.num_envs * envs.game.episode_length, payoffs | losses)


# ------------------------------------------------------------------------------ equilibrium verification (Appendix F)
TOLERANCE = 0.05 + 1e-6  # what passes for equal, in mean rewards: half of what one step of ten can change


def verify(follower: torch.Tensor, leader_index: int, args: Args) -> float:
    """Trains the follower further against the frozen leader; returns how its greedy payoff per game step changes. The
    paper's follower mends replies of which it is unsure, and few that are wrong and confident, where it no longer tries
    the other action (benchmark/results/verification.csv). The exact regret decides."""
    before, leaders = follower.argmax(-1)[leader_index].numpy(), itertools.repeat(leader_index)
    train_follower(follower, leaders, args.verification_iterations, args, lambda steps, scalars: None)
    tables = np.stack([before, follower.argmax(-1)[leader_index].numpy()])
    rewards = play(args.game, TABLES[[leader_index, leader_index]], tables)[2][1]
    return args.game.scale[1] * np.diff(rewards.mean(axis=0)).item()


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


def finish(result: dict, game: MatrixGame, run_path: str) -> None:
    """Writes result.json, of which nobody ever meets half, and says in words what was found."""
    with open(f"{run_path}/result.json.tmp", "w") as file:
        json.dump(result, file)
    os.replace(f"{run_path}/result.json.tmp", f"{run_path}/result.json")
    greedy, pessimistic = result["leader_return_greedy"], result["stackelberg_value_pessimistic"]
    best_reply = result["follower_regret"] <= TOLERANCE * game.scale[1]
    found = best_reply and greedy >= pessimistic - TOLERANCE * game.scale[0]
    print(f"""
{result["env_id"]}: {"a" if found else "NOT a"} Stackelberg equilibrium
  leader's return    {greedy:.2f} per game step, greedy; {result["leader_return"]:.2f} as it explores
  optimum            {result["stackelberg_value"]:.2f} for deterministic memory-1 leaders and stationary followers
                     ({pessimistic:.2f} if the follower breaks ties against the leader)
  leader's policy    {result["leader_policy"]} at the start and after 00, 01, 10, 11 (leader's, follower's action)
  follower's reply   {result["follower_policy"]}
  exact regrets      leader {result["leader_regret"]:.2f}, follower {result["follower_regret"]:.2f}
  curves             tensorboard --logdir {os.path.dirname(run_path)}
  result             {run_path}/result.json""")


def main(args: Args) -> dict:
    """Runs the two phases of Algorithm 1 and the verification; returns what it writes to result.json."""
    torch.set_num_threads(1)  # a thread pool costs more than it gives with models of this size
    start_time, game = time.time(), args.game
    run_path, writer = start_run(args)
    optimum, pessimistic = (game.payoff(0, reward) for reward in solve(game)[:2])

    def log(global_step: int, scalars: dict[str, float]):
        sps = int(global_step / (time.time() - start_time))
        for tag, scalar in {**scalars, "charts/stackelberg_value": optimum, "charts/SPS": sps}.items():
            writer.add_scalar(tag, scalar, global_step)

    # phase 1: pre-train the follower; then what every leader table gets from it is known
    follower = pretrain_follower(args, log)
    replies = follower.argmax(-1).numpy()  # its greedy table for each context
    exact = evaluate(game, replies)

    # phase 2: train the leader against the frozen, greedy follower
    torch.manual_seed(args.seed)  # again, so that a checkpoint's follower gives the same run
    leader, curve = Leader(), []

    def log_leader(leader_steps: int, scalars: dict[str, float]):
        index, global_step = table_index(leader.actor.weight.argmax(0).numpy()), args.follower_steps + leader_steps
        log(global_step, scalars | {f"charts/{name}": values[index] for name, values in exact.items()})
        curve.append([global_step, exact["leader_return_greedy"][index], scalars["charts/leader_return"]])

    train_leader(leader, LeaderPOMDP(game, replies, args.num_envs), args, log_leader)
    index = table_index(leader.actor.weight.argmax(0).numpy())
    if args.save_model:
        model = {"game": [game.reward.tolist(), game.num_steps], "follower_steps": args.follower_steps}
        torch.save({**model, "follower": follower.data, "leader": leader.state_dict()}, f"{run_path}/model.pt")

    # phase 3: verify the equilibrium
    torch.manual_seed(args.seed)
    verification_gain = verify(follower, index, args)
    result = {"script": os.path.basename(__file__), "env_id": args.env_id, "seed": args.seed, "args": asdict(args)}
    result |= {"stackelberg_value": optimum, "stackelberg_value_pessimistic": pessimistic}
    steps, greedy, exploring = np.array(curve).T
    result["leader_return"] = exploring[-math.ceil(len(curve) / 10) :].mean()
    result |= {name: values[index] for name, values in exact.items()}
    result |= {"follower_regret_all": exact["follower_regret"].sum(), "verification_gain": verification_gain}
    result |= {"leader_policy": TABLES[index].tolist(), "follower_policy": replies[index].tolist()}
    result |= {"follower_steps": args.follower_steps, "leader_steps": curve[-1][0] - args.follower_steps}
    for name, returns in (("steps_to_converge", greedy), ("steps_to_converge_exploring", exploring)):
        result[name] = steps_to_converge(steps, (returns - optimum) / game.scale[0])
    wall_seconds = time.time() - start_time
    result |= {"curve": curve, "wall_seconds": wall_seconds, "steps_per_second": curve[-1][0] / wall_seconds}
    writer.close()
    finish(result, game, run_path)
    return result


if __name__ == "__main__":
    main(tyro.cli(Args, description=__doc__))
