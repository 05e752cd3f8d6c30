# /// script
# requires-python = ">=3.11"
# dependencies = ["numpy==2.4.6", "tensorboard==2.21.0", "torch==2.13.0", "tqdm==4.70.1", "tyro==1.0.17",
#   "wandb==0.31.0"]
# ///
"""Theorem 2: reinforcement learning against a follower that best-responds at once can diverge, and when it does not.

Runs the proof of Appendix D in "Oracles & Followers: Stackelberg Equilibria in Deep Multi-Agent RL" as an experiment:

    python theorem2_divergence.py

The game is a prisoner's dilemma in which each player observes only the other's last action: o_0 (none yet), o_C or o_D.
Tit-for-tat is the optimum, return 0, of deterministic leaders that recall the other's last action: the follower, which
recalls no more, fears the answer to a defection and always cooperates. But then the leader never observes o_D, and
whenever it does, cooperating pays one more than defecting. So if the follower's queries are hidden, the leader learns
to cooperate in o_D, and the follower defects, unless luck drops the leader on tit-for-tat, where it learns nothing more
about o_D. If they are part of its episode (Theorem 1), REINFORCE learns tit-for-tat, unless its discount is small or
its steps are large. In a minute you should see where leaders end, and the limits of their Q-values; ablations/README.md
says what follows.

The follower plays the exact best response to the policy that the leader holds in an episode: the best of its policies
over the whole episode, given that it, too, observes only the other's last action (and so cannot count steps).
"""

import itertools
import json
import math
import os
import time
import zlib
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Literal

import numpy as np
import tyro
from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm

ARMS = (
    "hidden_parameter_noise hidden_epsilon_greedy hidden_epsilon_soft hidden_reinforce "
    "observed_parameter_noise observed_epsilon_greedy observed_reinforce"
).split()


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

    arm: Literal["all", *ARMS] = "all"
    """whether the follower's queries are hidden or observed, and how the leader learns; epsilon_soft is epsilon_greedy
    with a follower that responds to the exploring leader instead of the greedy one"""
    num_seeds: int = 10
    """runs of each setting: seed, seed + 1, ..."""
    num_steps: int = 5
    """game steps per episode: the paper leaves them open, the authors' code (mgerstgrasser/oracles_and_followers,
    commit e98db77) has 5 in this game"""
    num_episodes: int = 10_000
    """episodes of each run"""
    discounts: tuple[float, ...] = (0.5, 0.9, 1.0)
    """the leader's discount factors, at most 1; the follower maximises its undiscounted return"""
    q_init: tuple[float, ...] = (0.0, -20.0)
    """what Q-learning's values start from; above or below what they can reach decides which action is tried next"""
    q_init_std: float = 0.01
    """standard deviation of the start around it; 0: exact ties, which go to cooperation (the proof's equation 2)"""
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

    def __post_init__(self):
        may_be_zero = {"seed", "q_init_std"}
        for flag, values in asdict(self).items():
            for value in () if flag == "q_init" else np.ravel(values).tolist():
                if type(value) in (int, float) and not (0 < value < math.inf or (value == 0 and flag in may_be_zero)):
                    raise ValueError(f"--{flag.replace('_', '-')} must be positive, got {value}")
        for flag, most in {"discounts": 1, "q_learning_rates": 1, "epsilons": 1, "probability_floors": 0.499}.items():
            if max(getattr(self, flag)) > most:
                raise ValueError(f"--{flag.replace('_', '-')} must be at most {most}, got {max(getattr(self, flag))}")
        if self.num_steps < 3:
            raise ValueError(f"--num-steps must be at least 3, so that o_D can follow o_D, got {self.num_steps}")
        self.seeds = range(self.seed, self.seed + self.num_seeds)


# ---------------------------------------------------------------------------------------------------------- the game
NUM_ACTIONS = 2  # action 0 is the first row or column of the payoff matrix
NUM_OBSERVATIONS = 1 + NUM_ACTIONS  # the start, then one for each last action of the other player
START = 0
O_C, O_D = 1, 2  # the paper's names of the others; its o_0 is START

ENV_ID = "prisoners_dilemma_modified"  # Table 3; Appendix D
LEADER_PAYOFF = np.array(((0.0, -2.0), (-1.0, -3.0)))  # [leader action, follower action]
FOLLOWER_PAYOFF = np.array(((-1.0, 0.0), (-3.0, -2.0)))


def play(answers: np.ndarray, policy: np.ndarray, reply: np.ndarray, uniforms: np.ndarray) -> tuple[np.ndarray, ...]:
    """Plays an episode with each leader's policy and follower's table, [n, 3]; uniforms, [num_steps, n], decide.

    The queries o_0, o_C and o_D come first, and the leader's answers to them, [3, n], are steps without reward. If they
    are observed, it learns from the whole episode (Theorem 1), if they are hidden from the game alone. Returns its
    observations and actions, [T, n] with T = 3 + num_steps, and both players' rewards, [2, T, n].
    """
    observations, actions, follower_actions = np.full((3, len(answers) + len(uniforms), len(policy)), START)
    rewards = np.zeros((2, *actions.shape))
    observations[:NUM_OBSERVATIONS] = np.arange(NUM_OBSERVATIONS)[:, None]
    actions[:NUM_OBSERVATIONS] = answers
    rows, follower_observation = np.arange(len(policy)), START
    for t in range(NUM_OBSERVATIONS, len(actions)):
        if t > NUM_OBSERVATIONS:
            observations[t], follower_observation = 1 + follower_actions[t - 1], 1 + actions[t - 1]
        actions[t] = uniforms[t - NUM_OBSERVATIONS] < policy[rows, observations[t]]
        follower_actions[t] = reply[rows, follower_observation]
        rewards[:, t] = LEADER_PAYOFF[actions[t], follower_actions[t]], FOLLOWER_PAYOFF[actions[t], follower_actions[t]]
    return observations, actions, rewards


# -------------------------------------------------------------------------------------------------------- policies
# A table is a deterministic memory-1 policy, [3]: the action in each observation. As answers to the queries, the
# leader's table is the follower's context; TABLES[i] is the table, or context, with index i.
TABLES = np.array(list(itertools.product(range(NUM_ACTIONS), repeat=NUM_OBSERVATIONS)))


def table_index(table: np.ndarray) -> np.ndarray:
    """Returns the row of TABLES that equals each table, [..., 3] -> [...]."""
    return table @ (NUM_ACTIONS ** np.arange(NUM_OBSERVATIONS)[::-1])


REPLIES = TABLES[[0, 7, 1, 2, 3, 4, 5, 6]]  # the follower's, in the order that breaks its last ties
IS_TIT_FOR_TAT = (TABLES[:, O_C] == 0) & (TABLES[:, O_D] == 1)  # [8]; what it starts with changes no reply


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


def proof_limits(discount: float, num_steps: int) -> tuple[float, float]:
    """Returns the proof's limits of q(o_D, C), q(o_D, D): -2g, -3g, g = (1 - discount^(h/2)) / (1 - discount)."""
    g = num_steps / 2 if discount == 1 else (1 - discount ** (num_steps / 2)) / (1 - discount)
    return -2 * g, -3 * g


def small_step_limits(discount: float, num_steps: int) -> tuple[float, float]:
    """Returns what equation 1 makes of them, for small learning rates and a follower that always defects.

    The leader observes o_D in h - 1 steps of an episode; h - 2 of them lead to o_D again, the last one nowhere. So
    q(C) = -2 + discount (h - 2)/(h - 1) q(C), which is -2g with g = (h - 1) / (1 + (h - 2)(1 - discount)). The proof's
    g is of the h/2 steps that are left on average; a table without a clock expects h - 1. And q(D) is just 1 less, not
    -3g: it bootstraps from the better action.
    """
    again = discount * (num_steps - 2) / (num_steps - 1)
    cooperate = -2 / (1 - again)
    return cooperate, -3 + again * cooperate


def exact_limits(learning_rate: float, discount: float, num_steps: int) -> tuple[float, float]:
    """Returns the same for any learning rate: iterates equation 1 over an episode that cooperates in o_D and one that
    defects there. The last step, without a future, is learned last and so weighs the most."""
    q = [0.0, 0.0]
    for _ in range(10_000):
        for action, reward in enumerate((-2, -3)):
            for steps_left in reversed(range(num_steps - 1)):
                future = discount * max(q) if steps_left else 0.0
                q[action] += learning_rate * (reward + future - q[action])
    return tuple(q)


# ------------------------------------------------------------------------------------ the learners, of n leaders each
def greedy(values: np.ndarray) -> np.ndarray:
    """Returns the greedy tables, [n, 3], of Q-tables [n, 3, 2], where ties go to action 0 (equation 2), or of theta."""
    return (values[:, :, 1] > values[:, :, 0] if values.ndim == 3 else values > 0.5).astype(int)


# Both learn from an episode's observations, actions and rewards, [T, n], with learning rates and discounts, [n].
def q_learning(values: np.ndarray, observations, actions, rewards, learning_rates, discounts) -> None:
    """Equation 1: updates the Q-tables, [n, 3, 2], in place, from the episode's first step to its last."""
    rows = np.arange(len(values))
    for t in range(len(rewards)):
        target = rewards[t]
        if t + 1 < len(rewards):
            target = target + discounts * values[rows, observations[t + 1]].max(axis=1)
        visited = rows, observations[t], actions[t]
        values[visited] += learning_rates * (target - values[visited])


def reinforce(theta, observations, actions, rewards, learning_rates, discounts, discounted_gradient) -> np.ndarray:
    """Equation 3: returns theta, [n, 3], the probabilities of action 1, after a step of gradient ascent."""
    rows, gradient, return_ = np.arange(len(theta)), np.zeros_like(theta), 0.0
    for t in reversed(range(len(rewards))):
        return_ = rewards[t] + discounts * return_
        visited = rows, observations[t]
        score = np.where(actions[t] == 1, 1 / theta[visited], -1 / (1 - theta[visited]))
        gradient[visited] += return_ * score * (discounts**t if discounted_gradient else 1)
    return theta + learning_rates[:, None] * gradient


# ------------------------------------------------------------------------------------------------------------ training
BLOCK = 100  # episodes that random numbers are drawn for at once


def settings_of(arm: str, q_init: float | None, args: Args) -> list[dict]:
    """Returns the settings of all runs of an arm that start from `q_init`: its grid x seeds."""
    rates, exploration = args.q_learning_rates, args.epsilons
    if arm.endswith("parameter_noise"):
        exploration = args.noise_stds
    if arm.endswith("reinforce"):
        rates, exploration = args.reinforce_learning_rates, args.probability_floors
    names = ("arm", "q_init", "learning_rate", "discount", "exploration", "seed")
    grid = itertools.product([arm], [q_init], rates, args.discounts, exploration, args.seeds)
    return [dict(zip(names, values, strict=True)) for values in grid]


def random_numbers(rngs: list[np.random.Generator], num_uniforms: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yields the standard normal numbers of an episode, [n, 3, 2], and its uniform ones, [num_uniforms, n]."""
    while True:
        normals = [rng.standard_normal((BLOCK, NUM_OBSERVATIONS, NUM_ACTIONS)) for rng in rngs]
        uniforms = [rng.random((BLOCK, num_uniforms)) for rng in rngs]
        yield from zip(np.stack(normals, axis=1), np.stack(uniforms, axis=2), strict=True)


def explore(learner: str, values: np.ndarray, exploration: np.ndarray, normals: np.ndarray) -> np.ndarray:
    """Returns the leaders' policies in an episode, [n, 3]; `exploration`, [n, 1], and noise, [n, 3, 2], shape them."""
    if learner == "reinforce":
        return values
    if learner == "parameter_noise":
        return greedy(values + exploration[:, :, None] * normals)
    return abs(greedy(values) - exploration / 2)  # takes the other action with probability epsilon / 2


def train_leaders(arm: str, runs: list[dict], game: MemoryGame, args: Args, log) -> list[dict]:
    """Trains the leaders of n runs of an arm side by side, and returns how each of them ended.

    They learn after the episode, so that the reply is the best one in every step of it. Calls `log(steps of a leader,
    scalars)` now and then, with scalars [n].
    """
    queries, learner = arm.split("_", 1)
    first = 0 if queries == "observed" else NUM_OBSERVATIONS  # step of an episode that the leader learns from
    keys, n = ("learning_rate", "discount", "exploration"), np.arange(len(runs))
    learning_rates, discounts, exploration = np.array([[run[key] for key in keys] for run in runs]).T
    exploration = exploration[:, None]
    # each run has its own generator, seeded by its settings: its result does not depend on the runs beside it
    rngs = [np.random.default_rng([run["seed"], zlib.crc32(repr({**run, "seed": 0}).encode())]) for run in runs]
    values = np.full((len(runs), NUM_OBSERVATIONS), 0.5)  # theta
    if learner != "reinforce":
        noise = np.stack([rng.standard_normal((NUM_OBSERVATIONS, NUM_ACTIONS)) for rng in rngs])
        values = runs[0]["q_init"] + args.q_init_std * noise
    numbers = random_numbers(rngs, NUM_OBSERVATIONS + game.num_steps)

    # best replies to each table, [n, 8, 3]; the follower of epsilon_soft knows how the leader explores
    known_epsilon = exploration[:, :, None] * (learner == "epsilon_soft")
    replies = game.best_reply(abs(TABLES - known_epsilon / 2))
    greedy_returns, _ = game.returns(TABLES, game.best_reply(TABLES))
    tables, o_D_visits, returns = [table_index(greedy(values))], [], []
    interval = max(1, args.num_episodes // 50)  # episodes from one point of a curve to the next
    for iteration in tqdm(range(1, 1 + args.num_episodes), desc=arm, leave=False, disable=None):
        normals, uniforms = next(numbers)
        policy = explore(learner, values, exploration, normals)
        answers = (uniforms[:NUM_OBSERVATIONS] < policy.T).astype(int)
        if queries == "observed":
            reply = replies[n, table_index(answers.T)]
        elif learner == "reinforce":
            reply = game.best_reply(policy)
        else:
            reply = replies[n, table_index(policy if learner == "parameter_noise" else greedy(values))]
        observations, actions, rewards = play(answers, policy, reply, uniforms[NUM_OBSERVATIONS:])
        visible = observations[first:], actions[first:], rewards[0, first:]
        if learner == "reinforce":
            values = reinforce(values, *visible, learning_rates, discounts, args.discounted_gradient)
            values = np.clip(values, exploration, 1 - exploration)  # or one long step could end all exploration
        else:
            q_learning(values, *visible, learning_rates, discounts)

        tables.append(table_index(greedy(values)))
        o_D_visits.append((observations[NUM_OBSERVATIONS:] == O_D).sum(axis=0))
        returns.append(rewards[:, NUM_OBSERVATIONS:].mean(axis=1))
        if iteration % interval == 0 or iteration == args.num_episodes:
            leader_return, follower_return = np.mean(returns[-interval:], axis=0)
            scalars = {"charts/leader_return": leader_return, "charts/follower_return": follower_return}
            scalars |= {"charts/leader_return_greedy": greedy_returns[tables[-1]]}
            scalars |= {"charts/tit_for_tat": IS_TIT_FOR_TAT[tables[-1]]}
            log(iteration * (len(actions) - first), scalars)
    return measure(values, np.array(tables), np.array(o_D_visits), np.array(returns)[:, 0], greedy_returns)


# --------------------------------------------------------------------------------------------------------- measurement
def measure(values, tables: np.ndarray, o_D_visits: np.ndarray, returns: np.ndarray, greedy_returns) -> list[dict]:
    """Returns how the training of each of n leaders ended.

    From their final Q-tables or theta; the index of their greedy table, [1 + episodes, n], before and after each
    episode; how often they observed o_D and what they got per game step, [episodes, n]; and what each table gets, [8].
    """
    num_episodes, first, last = len(returns), TABLES[tables[0]], TABLES[tables[-1]]
    episodes = np.arange(num_episodes)[:, None]
    last_change = np.where(tables[1:] != tables[:-1], episodes, -1).max(axis=0)
    tit_for_tat_share = IS_TIT_FOR_TAT[tables[1 + num_episodes // 2 :]].mean(axis=0)  # of the second half of training
    ends = {
        # as it explores; copied, as sums along the other axis could round differently with other runs beside this one
        "leader_return": returns[-math.ceil(num_episodes / 10) :].T.copy().mean(axis=1),
        "leader_return_greedy": greedy_returns[tables[-1]],
        "return_0": greedy_returns[tables[-1]] == 0,
        "leader_policy": last,
        "values": values,
        "first_in_o_C": np.array(["C", "D"])[first[:, O_C]],
        "o_D_visits": (o_D_visits * (episodes > last_change)).sum(axis=0),  # since the greedy policy last changed
        "tit_for_tat": IS_TIT_FOR_TAT[tables[-1]],
        "tit_for_tat_share": tit_for_tat_share,
        "o_D_cooperate": last[:, O_D] == 0,
        "diverged": (last[:, O_D] == 0) & (tit_for_tat_share < 0.01),
    }
    ends = {name: column.tolist() for name, column in ends.items()}
    return [{name: column[i] for name, column in ends.items()} for i in range(len(last))]


def pick(runs: list[dict], **settings) -> list[dict]:
    """Returns the runs with these settings."""
    return [run for run in runs if all(run[key] == value for key, value in settings.items())]


def table(runs: list[dict], *keys: str) -> list[dict]:
    """Counts how runs ended, one row for each combination of the settings `keys`, in order of appearance."""
    rows = [dict(group) for group in dict.fromkeys(tuple((key, run[key]) for key in keys) for run in runs)]
    for row in rows:
        some = pick(runs, **row)
        row["runs"] = len(some)
        row |= {end: len(pick(some, **{end: True})) for end in ("o_D_cooperate", "diverged", "tit_for_tat", "return_0")}
        row["first_C_in_o_C"] = len(pick(some, first_in_o_C="C"))
        row["tit_for_tat_from_C"] = len(pick(some, first_in_o_C="C", tit_for_tat=True))
        visits = [[run["o_D_visits"] for run in pick(some, tit_for_tat=caught)] for caught in (True, False)]
        row["o_D_visits_tit_for_tat"] = max(visits[0], default=None)
        row["o_D_visits_others"] = float(np.median(visits[1])) if visits[1] else None
        row |= {name: float(np.mean([run[name] for run in some])) for name in ("leader_return_greedy", "leader_return")}
    return rows


def print_limits(runs: list[dict], game: MemoryGame, args: Args) -> None:
    """Prints what q(o_D, C) and q(o_D, D) should come to and what they did, on average and in the worst case, in
    leaders with parameter noise and hidden queries that cooperate in o_D at the end."""
    print("\nq(o_D, C), q(o_D, D)\ndiscount  rate  proof         small rates   exact         learned       differ")
    noise = pick(runs, arm="hidden_parameter_noise", q_init=min(args.q_init, key=abs), o_D_cooperate=True)
    for (discount, rate), some in itertools.groupby(noise, lambda run: (run["discount"], run["learning_rate"])):
        learned, exact = np.array([run["values"][O_D] for run in some]), exact_limits(rate, discount, game.num_steps)
        pairs = [proof_limits(discount, game.num_steps), small_step_limits(discount, game.num_steps), exact]
        pairs += [learned.mean(axis=0), abs(learned - exact).max(axis=0)]
        print(f"{discount:<10}{rate:<6}", *(f"{cooperate:.2f}, {defect:.2f}  " for cooperate, defect in pairs), sep="")


# ------------------------------------------------------------------------------------------------------------- the run
def start_run(args: Args) -> str:
    """Makes the run's folder and returns it; starts Weights and Biases if asked for."""
    run_name = f"{ENV_ID}__{args.exp_name}__{args.seed}__{int(1000 * time.time())}"
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


def finish(result: dict, game: MemoryGame, args: Args, run_path: str) -> None:
    """Writes result.json, of which nobody ever meets half, and prints counts and limits."""
    with open(f"{run_path}/result.json.tmp", "w") as file:
        json.dump(result, file)
    os.replace(f"{run_path}/result.json.tmp", f"{run_path}/result.json")
    print("\nqueries and learner       Q from  runs  C in o_D  diverged  tit-for-tat  return 0  greedy  exploring")
    for row in table(result["runs"], "arm", "q_init"):
        print("{arm:26}{q_init!s:>6}{runs:>6}{o_D_cooperate:>10}{diverged:>10}".format(**row), end="")
        print("{tit_for_tat:>13}{return_0:>10}{leader_return_greedy:>8.2f}{leader_return:>11.2f}".format(**row))
    print_limits(result["runs"], game, args)
    print(f"\ncurves  tensorboard --logdir {run_path}\nresult  {run_path}/result.json")


def train_arm(arm: str, q_init: float | None, game: MemoryGame, args: Args, run_path: str) -> tuple[list[dict], dict]:
    """Trains an arm's leaders, from `q_init` if they have Q-tables; returns their results and their mean curve."""
    name, runs, curve = arm if q_init is None else f"{arm}_q{q_init:g}", settings_of(arm, q_init, args), []
    start_time, writer = time.time(), start_writer(f"{run_path}/{name}", args)
    optimum = game.returns(TABLES, game.best_reply(TABLES))[0].max().item()

    def log(steps: int, scalars: dict[str, np.ndarray]):
        scalars |= {"charts/leader_regret": optimum - scalars["charts/leader_return_greedy"]}
        scalars |= {"charts/stackelberg_value": optimum, "charts/SPS": len(runs) * steps / (time.time() - start_time)}
        for tag, values in scalars.items():
            writer.add_scalar(tag, np.mean(values), steps)
        curve.append((steps, *(scalars[f"charts/leader_return{end}"].mean() for end in ("_greedy", ""))))

    ends = train_leaders(arm, runs, game, args, log)
    writer.close()
    return [run | end for run, end in zip(runs, ends, strict=True)], {"arm": name, "curve": curve}


def main(args: Args) -> dict:
    """Trains the leaders of all arms; returns what it writes to result.json."""
    start_time = time.time()
    run_path = start_run(args)
    game = MemoryGame(LEADER_PAYOFF, FOLLOWER_PAYOFF, args.num_steps)
    runs, curves, global_step = [], [], 0
    for arm in ARMS if args.arm == "all" else [args.arm]:
        # a curve for each start of the Q-tables, which decides more than any other setting
        for q_init in [None] if arm.endswith("reinforce") else args.q_init:
            some, curve = train_arm(arm, q_init, game, args, run_path)
            runs += some
            curves.append(curve)
            global_step += len(some) * curve["curve"][-1][0]

    result = {"script": os.path.basename(__file__), "env_id": ENV_ID, "seed": args.seed, "args": asdict(args)}
    result["stackelberg_value"] = game.returns(TABLES, game.best_reply(TABLES))[0].max().item()
    result["table"] = table(runs, "arm", "q_init", "learning_rate", "discount", "exploration")
    result |= {"curves": curves, "runs": runs, "wall_seconds": time.time() - start_time}
    result["steps_per_second"] = global_step / result["wall_seconds"]
    finish(result, game, args, run_path)
    return result


if __name__ == "__main__":
    main(tyro.cli(Args, description=__doc__))
