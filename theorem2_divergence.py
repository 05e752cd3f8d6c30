# /// script
# requires-python = ">=3.11"
# dependencies = ["numpy==2.4.6", "tensorboard==2.21.0", "torch==2.13.0", "tqdm==4.70.1", "tyro==1.0.17",
#   "wandb==0.31.0"]
# ///
"""Theorem 2: reinforcement learning against a follower that best-responds at once can diverge, and when it does not.

Runs the proof of Appendix D in "Oracles & Followers: Stackelberg Equilibria in Deep Multi-Agent RL" as an experiment:

    python theorem2_divergence.py

The game is a prisoner's dilemma in which each player observes only the other's last action: o_0 (none yet), o_C or o_D.
Tit-for-tat is the leader's optimum, return 0: the follower fears the answer to a defection and always cooperates. But
then the leader never observes o_D, and whenever it does, cooperating pays one more than defecting. So if the follower's
queries are hidden, the leader learns to cooperate in o_D, and the follower defects, unless luck drops the leader on
tit-for-tat, where it learns nothing more about o_D. If the queries are part of its episode (Theorem 1), REINFORCE
learns tit-for-tat. In about a minute you should see the counts for all learners, and which of them luck decides.

The follower plays the exact best response to the policy that the leader holds in an episode: the best of its policies
over the whole episode, given that it, too, observes only the other's last action (and so cannot count steps).
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
import zlib
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

    arm: str = "all"
    """train this arm only: {hidden,observed}_{parameter_noise,epsilon_greedy,reinforce} or hidden_epsilon_soft, in
    which the follower responds to the exploring leader instead of the greedy one"""
    num_seeds: int = 10
    """runs of each setting: seed, seed + 1, ..."""
    num_steps: int = 5
    """game steps per episode (5 in Appendix C)"""
    num_episodes: int = 10_000
    """episodes of each run"""
    discounts: tuple[float, ...] = (0.5, 0.9, 1.0)
    """the leader's discount factors, at most 1; the follower maximises its undiscounted return"""
    q_init: tuple[float, ...] = (0.0, -20.0)
    """what Q-learning's values start from; above or below what they can reach decides which action is tried next"""
    q_init_std: float = 0.01
    """standard deviation of the start around it; 0 = exact ties, which go to cooperation (the proof's equation 2)"""
    q_learning_rates: tuple[float, ...] = (0.01, 0.1, 0.5)
    """learning rates of Q-learning, at most 1"""
    noise_stds: tuple[float, ...] = (0.3, 1.0, 3.0)
    """standard deviations of parameter noise: drawn for the whole Q-table, kept for an episode"""
    epsilons: tuple[float, ...] = (0.05, 0.2, 0.5)
    """probabilities of a random action in epsilon-greedy Q-learning, at most 1"""
    reinforce_learning_rates: tuple[float, ...] = (0.0001, 0.001, 0.01)
    """step sizes of REINFORCE (plain steps, no baseline); its theta starts at 1/2"""
    probability_floors: tuple[float, ...] = (0.001, 0.01, 0.05)
    """REINFORCE keeps the probability of each action at or above this, below 1/2"""
    discounted_gradient: bool = False
    """weigh step t's gradient by discount^t, which makes it that of the discounted return; equation 3 does not"""


# ---------------------------------------------------------------------------------------------------------- the game
NUM_ACTIONS = 2  # action 0 is the first row or column of the payoff matrix
NUM_OBSERVATIONS = 1 + NUM_ACTIONS  # the start, then one for each last action of the other player
START = 0
O_C, O_D = 1, 2  # the paper's names of the others; its o_0 is START

ENV_ID = "prisoners_dilemma_modified"  # Table 3; Appendix D
LEADER_PAYOFF = np.array(((0.0, -2.0), (-1.0, -3.0)))  # [leader action, follower action]
FOLLOWER_PAYOFF = np.array(((-1.0, 0.0), (-3.0, -2.0)))


# -------------------------------------------------------------------------------------------------------- policies
# A table is a deterministic memory-1 policy, [3]: the action in each observation. As answers to the queries, the
# leader's table is the follower's context; TABLES[i] is the table, or context, with index i.
TABLES = np.array(list(itertools.product(range(NUM_ACTIONS), repeat=NUM_OBSERVATIONS)))


def table_index(table: np.ndarray) -> np.ndarray:
    """Returns the row of TABLES that equals each table, [..., 3] -> [...]."""
    return table @ (NUM_ACTIONS ** np.arange(NUM_OBSERVATIONS)[::-1])


REPLIES = TABLES[[0, 7, 1, 2, 3, 4, 5, 6]]  # the follower's, in the order that breaks its last ties


# ------------------------------------------------------------------------------------------------ the exact solution
class MemoryGame:
    """An iterated 2x2 game of `num_steps` steps, in which each player observes only the other's last action.

    A policy, [..., 3], is the probability of action 1 in each observation; leading dimensions broadcast.
    """

    def __init__(self, leader_payoff, follower_payoff, num_steps: int):
        self.leader_payoff, self.follower_payoff = np.array(leader_payoff, float), np.array(follower_payoff, float)
        self.num_steps = num_steps

    def returns(self, leader: np.ndarray, follower: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Returns both players' exact expected payoff per game step, [...]."""
        leader, follower = (np.moveaxis(policy, -1, 0) for policy in np.broadcast_arrays(leader, follower))
        leader, follower = (np.stack([1 - policy, policy], 1) for policy in (leader, follower))  # [3, action, ...]
        joint = leader[START][:, None] * follower[START]  # [leader's action, follower's action, ...]
        total = joint.copy()
        for _ in range(self.num_steps - 1):
            # each new action depends on the other's last one
            moved = (joint[:, :, None] * leader[1:]).sum(1)  # [leader's last action, leader's new one, ...]
            joint = (moved[:, :, None] * follower[1:, None]).sum(0)
            total += joint
        # summed one by one: a matrix product could round differently with other policies beside this one
        payoffs = (self.leader_payoff, self.follower_payoff)
        sums = (sum(payoff[pair] * total[pair] for pair in np.ndindex(2, 2)) for payoff in payoffs)
        return tuple(total / self.num_steps for total in sums)

    def best_reply(self, leader: np.ndarray) -> np.ndarray:
        """Returns the stationary deterministic policy with the follower's highest return, [..., 3].

        Ties go to the leader's favourite (Definition 2), and those that are left to always doing the same, as in the
        proof of Theorem 2: such replies differ only where this leader never takes the follower, and in the prisoner's
        dilemma (5 or 10 steps) these ones stay the best if the leader errs now and then.
        """
        leader_return, follower_return = self.returns(leader[..., None, :], REPLIES)
        is_best = follower_return >= follower_return.max(-1, keepdims=True) - 1e-9
        return REPLIES[np.where(is_best, leader_return, -np.inf).argmax(-1)]


# --------------------------------------------------------------------------------------- the leaders, many in one array
class QLearning:
    """Tabular Q-learning (equation 1) of n independent leaders; `values`, [n, 3, 2], are their Q-tables.

    `exploration`, [n], is the standard deviation of the noise on the whole table that a leader acts on for an episode
    (parameter noise), or else the probability of a random action (epsilon-greedy).
    """

    def __init__(self, values: np.ndarray, settings: dict[str, np.ndarray], parameter_noise: bool):
        self.values, self.parameter_noise, self.exploration = values, parameter_noise, settings["exploration"][:, None]
        self.learning_rate, self.discount = settings["learning_rate"], settings["discount"]

    def greedy(self) -> np.ndarray:
        """Returns the greedy policies, [n, 3]; ties go to action 0 (equation 2)."""
        return (self.values[:, :, 1] > self.values[:, :, 0]).astype(int)

    def policy(self, noise: np.ndarray) -> np.ndarray:
        """Returns the probabilities of action 1 in this episode, [n, 3], for standard normal noise [n, 3, 2]."""
        if self.parameter_noise:
            noisy = self.values + self.exploration[:, None] * noise
            return (noisy[:, :, 1] > noisy[:, :, 0]).astype(float)
        return np.where(self.greedy() == 1, 1 - self.exploration / 2, self.exploration / 2)

    def learn(self, observations: np.ndarray, actions: np.ndarray, rewards: np.ndarray) -> None:
        """Updates the tables after an episode, from its first step to its last; all [steps, n]."""
        rows = np.arange(len(self.values))
        for t, (observation, action, target) in enumerate(zip(observations, actions, rewards, strict=True)):
            if t + 1 < len(rewards):
                target = target + self.discount * self.values[rows, observations[t + 1]].max(1)
            error = target - self.values[rows, observation, action]
            self.values[rows, observation, action] += self.learning_rate * error


class Reinforce:
    """REINFORCE (equation 3) of n independent leaders; `values`, [n, 3], are theta: the probabilities of action 1.

    `exploration`, [n], is the least probability of any action: without it, one long step could end all exploration.
    """

    def __init__(self, values: np.ndarray, settings: dict[str, np.ndarray], discounted_gradient: bool):
        self.values, self.discounted_gradient = values, discounted_gradient
        self.floor = settings["exploration"][:, None]
        self.learning_rate, self.discount = settings["learning_rate"], settings["discount"]

    def greedy(self) -> np.ndarray:
        """Returns the most probable action in each observation, [n, 3]."""
        return (self.values > 0.5).astype(int)

    def policy(self, noise: np.ndarray) -> np.ndarray:
        """Returns theta, [n, 3]; it needs no noise."""
        return self.values

    def learn(self, observations: np.ndarray, actions: np.ndarray, rewards: np.ndarray) -> None:
        """Updates theta after an episode; all [steps, n]."""
        rows, gradient, return_ = np.arange(len(self.values)), np.zeros_like(self.values), 0.0
        for t in reversed(range(len(rewards))):
            return_ = rewards[t] + self.discount * return_
            theta = self.values[rows, observations[t]]
            score = np.where(actions[t] == 1, 1 / theta, -1 / (1 - theta))
            gradient[rows, observations[t]] += return_ * score * (self.discount**t if self.discounted_gradient else 1)
        self.values = np.clip(self.values + self.learning_rate[:, None] * gradient, self.floor, 1 - self.floor)


# ------------------------------------------------------------------------------------------------------------ training
# queries and learner; "epsilon_soft" is epsilon-greedy with a follower that responds to the exploring policy, too
ARMS = (
    "hidden_parameter_noise hidden_epsilon_greedy hidden_epsilon_soft hidden_reinforce "
    "observed_parameter_noise observed_epsilon_greedy observed_reinforce"
).split()
BLOCK = 100  # episodes that random numbers are drawn for at once
NUM_EVALUATIONS = 50  # points of a curve


def settings_of(arm: str, args: Args) -> list[dict]:
    """Returns the settings of all runs of an arm: its grid x seeds."""
    reinforce = arm.endswith("reinforce")
    grid = {
        "arm": (arm,),
        "q_init": (None,) if reinforce else args.q_init,
        "learning_rate": args.reinforce_learning_rates if reinforce else args.q_learning_rates,
        "discount": args.discounts,
        "exploration": args.probability_floors if reinforce else args.epsilons,
        "seed": range(args.seed, args.seed + args.num_seeds),
    }
    if arm.endswith("parameter_noise"):
        grid["exploration"] = args.noise_stds
    return [dict(zip(grid, values, strict=True)) for values in itertools.product(*grid.values())]


def play_game(game: MemoryGame, policy: np.ndarray, reply: np.ndarray, uniforms: np.ndarray) -> tuple[np.ndarray, ...]:
    """Plays the game once for each leader's policy and follower's table, [n, 3]; uniforms [num_steps, n] decide.

    Returns the leader's observations, its actions and the follower's, [num_steps, n].
    """
    observations, actions, follower_actions = np.zeros((3, *uniforms.shape), dtype=int)
    rows, follower_observation = np.arange(len(policy)), np.full(len(policy), START)
    for t, uniform in enumerate(uniforms):
        observations[t] = 1 + follower_actions[t - 1] if t else START
        actions[t] = uniform < policy[rows, observations[t]]
        follower_actions[t] = reply[rows, follower_observation]
        follower_observation = 1 + actions[t]
    return observations, actions, follower_actions


def train_arm(arm: str, runs: list[dict], game: MemoryGame, args: Args) -> Iterator[tuple[int, dict[str, np.ndarray]]]:
    """Trains the leaders of one arm side by side, and adds to each of `runs` how it ended.

    With hidden queries an episode is the game. With observed ones it opens with o_0, o_C, o_D as queries, which are
    answered like any step, and the follower best-responds to the answers. Leaders learn after the episode, so that the
    reply is the best one at every step. Yields each leader's environment steps so far, and what to log, [n] each.
    """
    (queries, learner), n = arm.split("_", 1), len(runs)
    # each run has its own generator, seeded by its settings: its result does not depend on the runs beside it
    rngs = [np.random.default_rng([run["seed"], zlib.crc32(repr({**run, "seed": 0}).encode())]) for run in runs]
    settings = {key: np.array([run[key] for run in runs]) for key in ("learning_rate", "discount", "exploration")}
    if learner == "reinforce":
        leaders = Reinforce(np.full((n, NUM_OBSERVATIONS), 0.5), settings, args.discounted_gradient)
    else:
        noise = np.stack([rng.standard_normal((NUM_OBSERVATIONS, NUM_ACTIONS)) for rng in rngs])
        values = np.array([run["q_init"] for run in runs])[:, None, None] + args.q_init_std * noise
        leaders = QLearning(values, settings, learner == "parameter_noise")
    replies = game.best_reply(TABLES)
    returns, _ = game.returns(TABLES, replies)
    reply, responded_to = np.zeros((n, NUM_OBSERVATIONS), dtype=int), np.full((n, NUM_OBSERVATIONS), np.nan)
    query_steps = np.tile(np.arange(NUM_OBSERVATIONS)[:, None], n)
    greedy = first = leaders.greedy()
    visits, held, payoffs, episodes = np.zeros(n, dtype=int), np.zeros(n), np.zeros((2, n)), 0
    for episode in tqdm(range(1, args.num_episodes + 1), desc=arm, unit="episode", leave=False, disable=None):
        if episode % BLOCK == 1:
            normals = np.stack([rng.standard_normal((BLOCK, NUM_OBSERVATIONS, NUM_ACTIONS)) for rng in rngs], 1)
            uniforms = np.stack([rng.random((BLOCK, NUM_OBSERVATIONS + game.num_steps)) for rng in rngs], 2)
        policy, uniform = leaders.policy(normals[episode % BLOCK - 1]), uniforms[episode % BLOCK - 1]
        answers = (uniform[:NUM_OBSERVATIONS] < policy.T).astype(int)
        known = answers.T if queries == "observed" else greedy if learner == "epsilon_greedy" else policy
        if learner in ("epsilon_soft", "reinforce") and queries == "hidden":  # to a stochastic policy: solve it anew
            changed = (known != responded_to).any(axis=1)
            reply[changed], responded_to = game.best_reply(known[changed]), known.copy()
        else:
            reply = replies[table_index(known.astype(int))]

        observations, actions, follower_actions = play_game(game, policy, reply, uniform[NUM_OBSERVATIONS:])
        rewards = game.leader_payoff[actions, follower_actions]
        payoffs += rewards.mean(axis=0), game.follower_payoff[actions, follower_actions].mean(axis=0)
        episodes += 1
        observed_o_D = (observations == O_D).sum(axis=0)
        if queries == "observed":
            observations, actions = np.concatenate([query_steps, observations]), np.concatenate([answers, actions])
            rewards = np.concatenate([np.zeros(answers.shape), rewards])
        leaders.learn(observations, actions, rewards)

        previous, greedy = greedy, leaders.greedy()
        visits = np.where((greedy == previous).all(axis=1), visits + observed_o_D, 0)
        tit_for_tat = (greedy[:, O_C] == 0) & (greedy[:, O_D] == 1)
        held += tit_for_tat * (2 * episode > args.num_episodes)
        if episode % max(1, args.num_episodes // NUM_EVALUATIONS) == 0 or episode == args.num_episodes:
            scalars = dict(zip(("leader_return", "follower_return"), payoffs / episodes, strict=True))
            scalars |= {"leader_return_greedy": returns[table_index(greedy)], "tit_for_tat": tit_for_tat}
            yield episode * len(rewards), {f"charts/{tag}": values for tag, values in scalars.items()}
            payoffs, episodes = np.zeros((2, n)), 0
    for i, run in enumerate(runs):
        run["leader_return"] = returns[table_index(greedy[i])].item()
        run["leader_policy"], run["values"] = greedy[i].tolist(), leaders.values[i].tolist()
        run["first_in_o_C"], run["o_D_visits"] = "CD"[first[i, O_C]], visits[i].item()
        run["tit_for_tat"], run["return_0"] = tit_for_tat[i].item(), run["leader_return"] == 0
        run["tit_for_tat_share"] = held[i].item() / math.ceil(args.num_episodes / 2)  # of the second half of training
        run["o_D_cooperate"] = run["leader_policy"][O_D] == 0
        run["diverged"] = run["o_D_cooperate"] and run["tit_for_tat_share"] < 0.01


# --------------------------------------------------------------------------------------------------------- the theory
def proof_limits(discount: float, num_steps: int) -> tuple[float, float]:
    """Returns the proof's limits of q(o_D, C), q(o_D, D): -2g, -3g, g = (1 - discount^(h/2)) / (1 - discount)."""
    g = num_steps / 2 if discount == 1 else (1 - discount ** (num_steps / 2)) / (1 - discount)
    return -2 * g, -3 * g


def small_step_limits(discount: float, num_steps: int) -> tuple[float, float]:
    """Returns what equation 1 makes of them, for small learning rates and a follower that always defects.

    The leader observes o_D in h - 1 steps of an episode; h - 2 of them lead to o_D again, the last one nowhere. So
    q(C) = -2 + discount (h - 2)/(h - 1) q(C), which is -2g with g = (h - 1) / (1 + (h - 2)(1 - discount)). The
    proof's g belongs to the h/2 steps that are left on average, but a table without a clock expects h - 1 after each
    o_D. And q(D) = -3 + discount (h - 2)/(h - 1) q(C) is just 1 less, not -3g: it bootstraps from the better action.
    """
    again = discount * (num_steps - 2) / (num_steps - 1)
    cooperate = -2 / (1 - again)
    return cooperate, -3 + again * cooperate


def exact_limits(learning_rate: float, discount: float, num_steps: int) -> tuple[float, float]:
    """Returns the same for any learning rate, after an episode: iterates equation 1 over an episode that cooperates in
    o_D and one that defects there. The last step, without a future, was learned last and so weighs the most."""
    q = [0.0, 0.0]
    for _ in range(10_000):
        previous = tuple(q)
        for action, reward in enumerate((-2, -3)):
            for steps_left in reversed(range(num_steps - 1)):
                future = discount * max(q) if steps_left else 0.0
                q[action] += learning_rate * (reward + future - q[action])
        if np.allclose(q, previous, rtol=0, atol=1e-12):
            break
    return tuple(q)


def tolerated_epsilon(game: MemoryGame) -> float:
    """Returns up to which epsilon, in steps of 0.001, the follower always cooperates with epsilon-soft tit-for-tat."""
    half = np.arange(1001)[:, None] / 2000
    cooperates = (game.best_reply(np.hstack([half, half, 1 - half])) == 0).all(axis=1)
    return cooperates.argmin() / 1000 - 0.001


def landscape(game: MemoryGame, resolution: int = 20) -> tuple[float, float]:
    """Returns in which shares of all stochastic policies (on a grid) expected REINFORCE steps with hidden queries leave
    theta_D where it is, and raise it. They follow the gradient of the leader's return for a fixed reply."""
    axis = (np.arange(resolution) + 0.5) / resolution
    theta = np.stack(np.meshgrid(axis, axis, axis), axis=-1).reshape(-1, NUM_OBSERVATIONS)
    reply, step = game.best_reply(theta), np.array([0, 0, 1e-4])
    gradient = game.returns(theta + step, reply)[0] - game.returns(theta - step, reply)[0]
    return (abs(gradient) < 1e-9).mean().item(), (gradient >= 1e-9).mean().item()


# ------------------------------------------------------------------------------------------------------ what was found
def pick(runs: list[dict], **settings) -> list[dict]:
    """Returns the runs with these settings."""
    return [run for run in runs if all(run[key] == value for key, value in settings.items())]


def table(runs: list[dict], *keys: str) -> list[dict]:
    """Counts how runs ended, one row for each combination of the settings `keys`, in order of appearance."""
    rows = []
    for group in dict.fromkeys(tuple(run[key] for key in keys) for run in runs):
        row = dict(zip(keys, group, strict=True))
        some = pick(runs, **row)
        row["runs"] = len(some)
        row |= {end: len(pick(some, **{end: True})) for end in ("o_D_cooperate", "diverged", "tit_for_tat", "return_0")}
        visits = [[run["o_D_visits"] for run in pick(some, tit_for_tat=caught)] for caught in (True, False)]
        row["o_D_visits_tit_for_tat"] = max(visits[0], default=None)
        row["o_D_visits_others"] = float(np.median(visits[1])) if visits[1] else None
        rows.append(row)
    return rows


def check(runs: list[dict], share: float = 1.0, **what) -> str:
    """Says whether at least this share of the runs ended like `what`, and how many did."""
    times = len(pick(runs, **what))
    return f"{'yes' if times >= share * len(runs) else 'NO'}, {times} of {len(runs)}" if runs else "not trained"


def report(runs: list[dict], game: MemoryGame, args: Args) -> str:
    """Says what diverged, what luck decided, and why; every number comes from the runs or from the exact game."""
    near, slow, top = min(args.q_init, key=abs), min(args.reinforce_learning_rates), max(args.discounts)
    ends, limits = "", ""
    for row in table(runs, "arm", "q_init"):
        some = pick(runs, arm=row["arm"], q_init=row["q_init"])
        by = [table(some, key) for key in ("learning_rate", "discount", "exploration")]
        by = ["/".join(str(part["tit_for_tat"]) for part in parts) for parts in by]
        cells = ["-" if cell is None else cell for key, cell in row.items() if key not in ("diverged", "return_0")]
        ends += "{:26}{:>7}{:>6}{:>8}{:>6}{:>16}{:>13}{:>16}{:>9}{:>9}\n".format(*cells[:5], *by, *cells[5:])
    noise = pick(runs, arm="hidden_parameter_noise", q_init=near)
    for discount, rate in itertools.product(args.discounts, args.q_learning_rates):
        learned = [r["values"][O_D] for r in pick(noise, discount=discount, learning_rate=rate, o_D_cooperate=True)]
        if learned:
            exact = exact_limits(rate, discount, game.num_steps)
            pairs = [proof_limits(discount, game.num_steps), small_step_limits(discount, game.num_steps), exact]
            pairs += [np.mean(learned, axis=0), abs(np.array(learned) - exact).max(axis=0)]
            cells = [f"{cooperate:.2f}, {defect:.2f}" for cooperate, defect in pairs]
            limits += "  {:<10}{:16}{:16}{:<15}{:16}{:16}{}\n".format(discount, *cells[:2], rate, *cells[2:])
    slowest = pick(runs, arm="hidden_reinforce", learning_rate=slow)
    greedy, soft = pick(runs, arm="hidden_epsilon_greedy"), pick(runs, arm="hidden_epsilon_soft")
    tolerated, (frozen, raised) = tolerated_epsilon(game), (f"{share:.1%}" for share in landscape(game))
    above = [run for run in soft if run["exploration"] > tolerated]
    observed = pick(runs, arm="observed_reinforce", discount=top)
    rates = sorted(table(observed, "learning_rate"), key=lambda row: row["return_0"])
    best = rates[-1]["learning_rate"] if rates else None
    reached = check(pick(observed, learning_rate=best), 0.9, return_0=True)
    return f"""
                          Q start  runs  o_D->C   TFT  by learn. rate  by discount  by exploration   o_D visits *
{ends}TFT: tit-for-tat, C in o_C and D in o_D, at the end; what is in neither column defects in both
* in the game since the greedy policy last changed: the most of any run at TFT, the median of the others

Hidden queries: while o_D keeps being observed, leaders diverge, as the theorem says
  parameter noise from Q = {near:g}: o_D -> C, and TFT was not held? {check(noise, diverged=True)}
  REINFORCE at learning rate {slow:g}: the same in 9 of 10? {check(slowest, 0.9, diverged=True)}
At TFT the follower cooperates: o_D is not observed, what is stored about it freezes, and TFT is absorbing
  epsilon-greedy at TFT: o_D not observed again? {check(pick(greedy, tit_for_tat=True), o_D_visits=0)}
so that luck decides. While the follower defects, o_C is not observed either, and a greedy leader stays as it started
  epsilon-greedy, -soft from D in o_C: never at TFT? {check(pick(greedy + soft, first_in_o_C="D"), tit_for_tat=False)}
  epsilon-greedy from C in o_C: mostly at TFT? {check(pick(greedy, first_in_o_C="C"), 0.5, tit_for_tat=True)}
A follower that knows epsilon cooperates with TFT up to epsilon = {tolerated:.3f}; above, it lets the leader observe o_D
  epsilon-soft above that: not at TFT in 9 of 10? {check(above, 0.9, tit_for_tat=False)}
A follower that knows theta always cooperates in {frozen} of all policies, where theta_D freezes. Elsewhere expected
steps lower theta_D, or raise it in {raised} of all: REINFORCE ends at TFT where long steps jump there (by learn. rate)

Observed queries: the query in o_D is credited with the game that follows
  REINFORCE, discount {top:g}, best learning rate {best}: return 0 in 9 of 10? {reached}
Equation 3 discounts returns, but not the weights of steps: small discounts and steps favour the game over the queries
before it (try --discounted-gradient). Q-learning's query in o_D leads to o_0, whatever is answered: both answers have
the target discount * max q(o_0, .), in the game C pays more, and TFT is kept where little exploration contradicts it

q(o_D, C), q(o_D, D) of parameter noise from Q = {near:g} that ends with o_D -> C, hidden queries
  discount  proof -2g, -3g  small steps     learning rate  exact           learned (mean)  furthest from exact
{limits}"""


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


def check_grid_flags(args: Args) -> None:
    """Checks every flag. Exits with 2 if one is wrong."""
    may_be_zero = ("seed", "q_init_std")
    most = {"discounts": 1, "q_learning_rates": 1, "epsilons": 1, "probability_floors": 0.499, "seed": 2**63 - 1}
    for flag, value in asdict(args).items():
        name, numbers = f"--{flag.replace('_', '-')}", value if isinstance(value, tuple) else (value,)
        if flag == "exp_name" and not re.fullmatch(r"[\w.-]+", value):
            fail(f"{name} becomes part of a folder's name: use letters, digits, '_', '-' and '.', not {value!r}")
        if len(set(numbers)) < max(1, len(numbers)):
            fail(f"{name} must be one or more different numbers, got {' '.join(map(str, numbers)) or 'none'}")
        for number in numbers:
            if isinstance(number, str | bool | None):
                continue
            if not math.isfinite(number):
                fail(f"{name} must be a finite number, got {number}")
            if flag in may_be_zero and number < 0:
                fail(f"{name} must not be negative, got {number}")
            if flag not in (*may_be_zero, "q_init") and number <= 0:
                fail(f"{name} must be positive, got {number}")
            if number > most.get(flag, math.inf):
                fail(f"{name} must be at most {most[flag]}, got {number}")
    if args.num_steps < 3:
        fail(f"--num-steps must be at least 3, so that o_D can follow o_D, got {args.num_steps}")
    if args.arm not in ("all", *ARMS):
        fail(f"no arm {args.arm!r}: choose all, {', '.join(ARMS)}")
    if args.track and importlib.util.find_spec("wandb") is None:
        fail("--track needs Weights and Biases: pip install wandb")


def start_run(args: Args, env_id: str) -> str:
    """Makes the run's folder and starts tracking; returns the folder. Exits with 2, nothing written, if it cannot."""
    for second in itertools.count(int(time.time())):  # the same run, started twice in one second, needs two names
        run_name = f"{env_id}__{args.exp_name}__{args.seed}__{second}"
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
    return run_path


def write_atomically(path: str, write: Callable[[str], object]) -> None:
    """Lets `write` make the file under another name first, so that nobody ever meets half of it."""
    write(path + ".tmp")
    os.replace(path + ".tmp", path)


# ------------------------------------------------------------------------------------------------------------- the run
def main(args: Args) -> dict:
    """Trains all arms; returns what it writes to result.json. Exits with 2, nothing written, on wrong flags."""
    check_grid_flags(args)
    start_time = time.time()
    run_path = start_run(args, ENV_ID)
    game = MemoryGame(LEADER_PAYOFF, FOLLOWER_PAYOFF, args.num_steps)
    stackelberg_value = game.returns(TABLES, game.best_reply(TABLES))[0].max().item()
    runs, curves, global_step = [], [], 0
    for arm in ARMS if args.arm == "all" else (args.arm,):
        arm_runs = settings_of(arm, args)
        groups = {}  # a curve for each start of the Q-tables, which decides more than any other setting
        for i, run in enumerate(arm_runs):
            groups.setdefault(arm if run["q_init"] is None else f"{arm}_q{run['q_init']:g}", []).append(i)
        writers = {name: SummaryWriter(os.path.join(run_path, name)) for name in groups}
        rows = "\n".join(f"|{flag}|{value}|" for flag, value in asdict(args).items())
        for writer in writers.values():
            writer.add_text("hyperparameters", f"|param|value|\n|-|-|\n{rows}")
        curve = {name: [] for name in groups}
        for step, scalars in train_arm(arm, arm_runs, game, args):
            sps = int((global_step + step * len(arm_runs)) / (time.time() - start_time))
            for name, members in groups.items():
                means = {tag: values[members].mean().item() for tag, values in scalars.items()}
                means["charts/leader_regret"] = stackelberg_value - means["charts/leader_return_greedy"]
                for tag, value in {**means, "charts/stackelberg_value": stackelberg_value, "charts/SPS": sps}.items():
                    writers[name].add_scalar(tag, value, step)
                curve[name].append([step, means["charts/leader_return_greedy"]])
        global_step += step * len(arm_runs)
        for writer in writers.values():
            writer.close()
        runs += arm_runs
        curves += [{"arm": name, "curve": points} for name, points in curve.items()]
    if args.track:
        import wandb

        wandb.finish()
    wall_seconds = time.time() - start_time
    result = {
        "script": os.path.basename(__file__),
        "env_id": ENV_ID,
        "seed": args.seed,
        "args": asdict(args),
        "stackelberg_value": stackelberg_value,
        "table": table(runs, "arm", "q_init", "learning_rate", "discount", "exploration"),
        "curves": curves,
        "runs": runs,
        "wall_seconds": wall_seconds,
        "steps_per_second": global_step / wall_seconds,
    }
    result_path = os.path.join(run_path, "result.json")
    write_atomically(result_path, lambda path: Path(path).write_text(json.dumps(result) + "\n"))
    print(report(runs, game, args))
    print(f"\n  curves  tensorboard --logdir {args.run_dir}\n  result  {result_path}")
    return result


if __name__ == "__main__":
    main(parse_args())
