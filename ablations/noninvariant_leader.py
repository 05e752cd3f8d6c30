# /// script
# requires-python = ">=3.11"
# dependencies = ["numpy==2.4.6", "tensorboard==2.21.0", "torch==2.13.0", "tqdm==4.70.1", "tyro==1.0.17",
#   "wandb==0.31.0"]
# ///
"""Why leaders must be invariant: one that can tell queries from play feigns tit-for-tat, and defects (Figure 4).

The game is the iterated prisoner's dilemma, 5 steps in which each player observes the other's last action. Before them
the follower asks the leader three queries (what would you do at the start, after cooperation, after defection?) and
replies by the exact best response to the answers or, with `--follower meta`, as in the paper, by a contextual policy
that was trained against random leaders. Queries are the first steps of the leader's episode. Theorem 1 asks that the
leader be invariant, that is answer as it plays. Here one arm's leader also observes a bit: 1 in queries, 0 in play.

    python ablations/noninvariant_leader.py

In a minute you should see that with the bit the leader answers tit-for-tat, defects in play and gets 0.00 per step.
This is more than -0.80, the optimum of deterministic memory-1 leaders against stationary followers, and no equilibrium:
a best response to how it plays would give the follower 1.00 more. Without the bit, leaders get the optimum, and the
follower has nothing to regret. The trick needs a reply to tit-for-tat that always cooperates. Chance gives it to 6 of
10 meta-followers, whose leaders all play it; the other 4 avenge a defection, and 2 to 4 leaders stay at the optimum.

The paper's text has five queries and a bit that is 0 in them; the authors' code (mgerstgrasser/oracles_and_followers,
commit e98db77) has three, as each player recalls one action of the other's, and the bit 1. The meaning is the same.
"""

import itertools
import json
import math
import os
import time
from dataclasses import asdict, dataclass
from typing import Literal

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
    run_dir: str = "runs"
    """folder that the run's own folder is made in"""

    env_id: str = "prisoners_dilemma"
    """a game of the paper's Table 3: prisoners_dilemma, stag_hunt, assurance, coordination, mixedharmony, harmony,
    noconflict, deadlock, prisoners_delight, hero, battle or chicken; or two of them as A-B"""
    num_seeds: int = 10
    """leaders (and meta-followers) trained side by side in each arm; their seeds are seed, seed + 1, ..."""
    arm: Literal["both", "invariant", "noninvariant"] = "both"
    """whether the leader's observation tells queries from play (noninvariant) or not (invariant)"""
    num_steps: int = 5
    """game steps per episode; an episode is 3 queries and then these steps"""
    total_timesteps: int = 416_000
    """environment steps of each leader's training, queries included (4,000 batches: small learning rates are slow)"""

    follower: Literal["exact", "meta"] = "exact"
    """exact: the best response to the answers; meta: a policy conditioned on them, trained against random leaders"""
    follower_timesteps: int = 52_000
    """meta: environment steps of each follower's pre-training, queries included (500 iterations, Table 4)"""
    follower_learning_rate: float = 0.02
    """meta: Adam learning rate of the follower (Table 4)"""

    learning_rates: tuple[float, ...] = (0.004, 0.008, 0.015, 0.03)
    """Adam learning rates of the leader; each arm is trained with each"""
    num_episodes: int = 13
    """episodes between updates of a follower or a leader; 13 are the first to make 100 steps (Table 4)"""

    def __post_init__(self):
        for flag, values in asdict(self).items():
            for value in np.ravel(values).tolist():
                if type(value) in (int, float) and not (0 < value < math.inf or (value == 0 and flag == "seed")):
                    raise ValueError(f"--{flag.replace('_', '-')} must be positive, got {value}")
        names = self.env_id.split("-")
        if len(names) > 2 or not {*names} <= {*PAYOFFS}:
            raise ValueError(f"no game {self.env_id!r}: choose from {', '.join(PAYOFFS)}, or two of them as A-B")
        if not self.learning_rates:
            raise ValueError("--learning-rates must be one or more numbers")
        self.game = MemoryGame(PAYOFFS[names[0]], np.transpose(PAYOFFS[names[-1]]), self.num_steps)
        self.seeds = range(self.seed, self.seed + self.num_seeds)
        self.arms = ["invariant", "noninvariant"] if self.arm == "both" else [self.arm]

        self.episode_length = NUM_OBSERVATIONS + self.num_steps  # batches are complete episodes
        self.batch_steps = self.num_episodes * self.episode_length
        self.follower_iterations = self.follower_timesteps // self.batch_steps if self.follower == "meta" else 0
        self.follower_steps = self.follower_iterations * self.batch_steps
        self.leader_iterations = self.total_timesteps // self.batch_steps
        if min(self.total_timesteps, self.follower_timesteps) < self.batch_steps:
            raise ValueError("--total-timesteps and --follower-timesteps must hold a batch each")


# ---------------------------------------------------------------------------------------------------------- the game
NUM_ACTIONS = 2  # action 0 is the first row or column of the payoff matrix
NUM_OBSERVATIONS = 1 + NUM_ACTIONS  # the start, then one for each last action of the other player
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
PAYOFF_CENTRE = -1.5  # of all; players are trained on payoffs less this, -1.5 to 1.5 (Appendix F)

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


def stackelberg_value(game: MemoryGame) -> float:
    """Returns the optimum of deterministic memory-1 leaders, invariant ones, against stationary followers."""
    return game.returns(TABLES, game.best_reply(TABLES))[0].max().item()


def exact_returns(game: MemoryGame, leader: np.ndarray, replies: np.ndarray) -> tuple[np.ndarray, ...]:
    """Returns the leader's return, the follower's, and the follower's regret, exact and per game step, [...].

    `leader`, [..., 6], are its probabilities of action 1 in each observation, first in queries, then in play, and
    `replies`, [..., 8, 3], the follower's tables. Answers are drawn apart from play, even if the policy is the same:
    any of the 8 contexts may come up. The regret is what the best response to the play would give beyond the return.
    """
    answers, plays = leader[..., None, :NUM_OBSERVATIONS], leader[..., None, NUM_OBSERVATIONS:]
    chance = np.where(TABLES == 1, answers, 1 - answers).prod(axis=-1)  # of each context, [..., 8]
    leader_return, follower_return = ((chance * payoffs).sum(axis=-1) for payoffs in game.returns(plays, replies))
    best = game.returns(plays, TABLES)[1].max(axis=-1)
    return leader_return, follower_return, best - follower_return


# ------------------------------------------------------------------------------------- the leader's POMDP (Theorem 1)
def play_episodes(game: MemoryGame, leader, follower, leader_uniforms=0.5, follower_uniforms=0.5):
    """Plays n episodes for each seed: the leader answers the follower's three queries, then both play.

    `leader`, [seeds, n, 6], and `follower`, [seeds, 8, 3], are the probabilities of action 1 in each observation, the
    leader's first in queries and then in play, the follower's in each context. Uniform numbers, [seeds, T, n] with
    T = 3 + num_steps, decide, and matter only where a probability is neither 0 nor 1.

    Returns both players' observations (the leader's are 3 to 5 in play), actions and rewards (centred payoffs, 0 in
    queries), [2, seeds, T, n] each, and their mean payoffs per game step, [2, seeds, n].
    """
    num_seeds, n, _ = leader.shape
    shape = (num_seeds, NUM_OBSERVATIONS + game.num_steps, n)
    uniforms = np.broadcast_to(leader_uniforms, shape), np.broadcast_to(follower_uniforms, shape)
    seed, episode = np.arange(num_seeds)[:, None], np.arange(n)
    observations, actions = np.full((2, 2, *shape), START)
    rewards = np.zeros((2, *shape))

    queries, play = slice(NUM_OBSERVATIONS), slice(NUM_OBSERVATIONS, None)
    observations[0, :, queries] = np.arange(NUM_OBSERVATIONS)[:, None]
    actions[0, :, queries] = uniforms[0][:, queries] < leader[..., queries].swapaxes(1, 2)
    context_index = table_index(actions[0, :, queries].swapaxes(1, 2))
    observations[0, :, play] += NUM_OBSERVATIONS
    for t in range(NUM_OBSERVATIONS, shape[1]):
        if t > NUM_OBSERVATIONS:
            observations[:, :, t] += 1 + actions[::-1, :, t - 1]  # each player observes the other's last action
        actions[0, :, t] = uniforms[0][:, t] < leader[seed, episode, observations[0, :, t]]
        actions[1, :, t] = uniforms[1][:, t] < follower[seed, context_index, observations[1, :, t]]
    played = actions[0, :, play], actions[1, :, play]
    rewards[:, :, play] = np.stack([game.leader_payoff[played], game.follower_payoff[played]]) - PAYOFF_CENTRE
    return observations, actions, rewards, rewards[:, :, play].mean(axis=2) + PAYOFF_CENTRE


# ---------------------------------------------------------------------------------------------- follower pre-training
def draw(rngs: list[np.random.Generator], method: str, *args) -> np.ndarray:
    """Draws from each seed's own generator, so that a seed's run is the same whichever seeds run beside it."""
    return np.stack([getattr(rng, method)(*args) for rng in rngs])


def descend(losses: torch.Tensor, optimizer: torch.optim.Adam, flag: str):
    """A step of Adam on each seed's loss, [seeds]: it works element by element, so no seed depends on another."""
    if not losses.isfinite().all():
        raise SystemExit(f"training diverged: lower {flag}")
    optimizer.zero_grad()
    losses.sum().backward()
    optimizer.step()


def train_follower(args: Args, rngs: list[np.random.Generator], writer: SummaryWriter) -> np.ndarray:
    """Policy gradient on each seed's contextual policy against a random leader table in each episode; returns its
    greedy replies, [seeds, 8, 3]. Among equally good ones chance decides. As in the authors' code the leaders are drawn
    afresh, and returns have no baseline."""
    shape = (len(TABLES), NUM_OBSERVATIONS, NUM_ACTIONS)
    follower = nn.Parameter(0.01 * torch.as_tensor(draw(rngs, "standard_normal", shape)))
    optimizer = torch.optim.Adam([follower], lr=args.follower_learning_rate)
    seed = np.arange(len(rngs))[:, None, None]
    for iteration in tqdm(range(1, args.follower_iterations + 1), desc="follower", leave=False, disable=None):
        context_index = draw(rngs, "integers", 0, len(TABLES), args.num_episodes)
        uniforms = draw(rngs, "random", (args.episode_length, args.num_episodes))
        policies = follower.detach().softmax(-1)[..., 1].numpy()
        leaders = np.tile(TABLES[context_index], 2)  # these answer as they play
        episodes = play_episodes(args.game, leaders, policies, follower_uniforms=uniforms)
        observations, actions, rewards = (torch.as_tensor(x[1, :, NUM_OBSERVATIONS:]) for x in episodes[:3])

        returns = rewards.flip(1).cumsum(1).flip(1)  # to go, undiscounted
        probs = Categorical(logits=follower[seed, context_index[:, None], observations], validate_args=False)
        losses = -(probs.log_prob(actions) * returns).mean((1, 2))
        descend(losses, optimizer, "--follower-learning-rate")
        writer.add_scalar("charts/follower_return", episodes[3][1].mean(), iteration * args.batch_steps)
    return follower.detach().argmax(-1).numpy()


# ---------------------------------------------------------------------------------------------------- leader training
def logits_of(leaders: torch.Tensor) -> torch.Tensor:
    """Returns the leaders' logits, [seeds, 6, 2]: in the queries, then in the same observations in play.

    Leaders are bias-free linear functions of a one-hot observation, [seeds, 3, 2], or with the bit [seeds, 4, 2], whose
    weights are the last row: they are added in queries, where the bit is 1.
    """
    plays, bit = leaders[:, :NUM_OBSERVATIONS], leaders[:, NUM_OBSERVATIONS:]
    answers = plays + bit.sum(dim=1, keepdim=True)  # of an invariant leader: nothing
    return torch.cat([answers, plays], dim=1)


def train_leaders(leaders: nn.Parameter, replies: np.ndarray, learning_rate: float, args: Args, rngs, log):
    """REINFORCE on complete episodes trains the leaders in place, each against its follower's tables of `replies`,
    [seeds, 8, 3]. Calls `log(steps, scalars)` after each batch, with scalars [seeds]."""
    optimizer = torch.optim.Adam([leaders], lr=learning_rate)
    seed, n = np.arange(len(rngs))[:, None, None], args.num_episodes
    for iteration in tqdm(range(1, args.leader_iterations + 1), desc="leaders", leave=False, disable=None):
        logits = logits_of(leaders)
        policies = logits.detach().softmax(-1)[:, None, :, 1].expand(-1, n, -1).numpy()
        uniforms = draw(rngs, "random", (args.episode_length, n))
        episodes = play_episodes(args.game, policies, replies, uniforms)
        observations, actions, rewards = (torch.as_tensor(x[0]) for x in episodes[:3])

        returns = rewards.flip(1).cumsum(1).flip(1)  # to go, undiscounted: a query's is that of the whole game
        probs = Categorical(logits=logits[seed, observations], validate_args=False)
        losses = -(probs.log_prob(actions) * returns).mean((1, 2))
        descend(losses, optimizer, "--learning-rates")
        log(iteration * args.batch_steps, {"losses/policy_loss": losses.detach()})


TOLERANCE = 0.05 + 1e-6  # what passes for equal, in mean rewards; a unit of reward is a unit of payoff here


def steps_to_converge(steps: np.ndarray, gaps: np.ndarray) -> int | None:
    """Returns the first of the steps from which on the gaps stay within the tolerance, or None."""
    stays = np.logical_and.accumulate(abs(gaps[::-1]) <= TOLERANCE)[::-1]
    return int(steps[stays.argmax()]) if stays.any() else None


# ------------------------------------------------------------------------------------------------------------- the run
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


def finish(result: dict, run_path: str) -> None:
    """Writes result.json, of which nobody ever meets half, and says in words what was found."""
    with open(f"{run_path}/result.json.tmp", "w") as file:
        json.dump(result, file)
    os.replace(f"{run_path}/result.json.tmp", f"{run_path}/result.json")
    optimum, args = result["stackelberg_value"], result["args"]
    print(f"\n{result['env_id']}, {args['follower']} follower, return per game step")
    print(f"  optimum      {optimum:.2f} for deterministic memory-1 leaders and stationary followers")
    for arm, rate in dict.fromkeys((run["arm"], run["learning_rate"]) for run in result["runs"]):
        runs = [run for run in result["runs"] if (run["arm"], run["learning_rate"]) == (arm, rate)]
        names = "leader_return_greedy", "leader_return", "follower_regret"
        greedy, exploring, regret = np.mean([[run[name] for name in names] for run in runs], axis=0).round(2) + 0.0
        above = sum(run["leader_regret"] < -TOLERANCE for run in runs)
        policies = [(run["leader_answers"], run["leader_policy"]) for run in runs]
        answers, plays = most_common = max(policies, key=policies.count)
        print(f"  {arm}, learning rate {rate:g}: {greedy:.2f} greedy, {exploring:.2f} as they explore; ", end="")
        print(f"{above} of {len(runs)} leaders above the optimum; follower's exact regret {regret:.2f}")
        share = f"{policies.count(most_common)} of {len(runs)}"
        print(f"    {share} answer {answers} and play {plays} at the start, after action 0, after action 1")
    print(f"  curves       tensorboard --logdir {run_path}\n  result       {run_path}/result.json")


def train_arm(arm: str, learning_rate: float, replies: np.ndarray, args: Args, run_path: str) -> list[dict]:
    """Trains an arm's leaders, one against each follower of `replies`, [seeds, 8, 3]; returns their results."""
    start_time, writer = time.time(), start_writer(f"{run_path}/{arm}_{learning_rate:g}", args)
    game, optimum = args.game, stackelberg_value(args.game)
    rngs = [np.random.default_rng(seed) for seed in args.seeds]
    num_inputs = NUM_OBSERVATIONS + (arm == "noninvariant")  # one more: the bit
    leaders = nn.Parameter(0.01 * torch.as_tensor(draw(rngs, "standard_normal", (num_inputs, NUM_ACTIONS))))
    curve = []  # [combined step, returns and regret of the greedy leaders, of the leaders as they explore]
    points = {math.ceil(share * args.leader_iterations / 100) for share in range(1, 101)}  # after which iterations

    def log(leader_steps: int, scalars: dict):
        if leader_steps // args.batch_steps not in points:
            return
        global_step, policies = args.follower_steps + leader_steps, logits_of(leaders).detach().softmax(-1)[..., 1]
        greedy = exact_returns(game, (policies.numpy() > 0.5).astype(int), replies)
        exploring = exact_returns(game, policies.numpy(), replies)
        curve.append((global_step, greedy, exploring))
        scalars |= {"charts/leader_return": exploring[0], "charts/follower_return": exploring[1]}
        scalars |= {"charts/leader_return_greedy": greedy[0], "charts/leader_regret": optimum - greedy[0]}
        sps = len(rngs) * leader_steps / (time.time() - start_time)
        scalars |= {"charts/follower_regret": greedy[2], "charts/stackelberg_value": optimum, "charts/SPS": sps}
        for tag, values in scalars.items():
            writer.add_scalar(tag, np.asarray(values).mean(), global_step)

    train_leaders(leaders, replies, learning_rate, args, rngs, log)
    writer.close()

    steps, greedy, exploring = (np.array(x) for x in zip(*curve, strict=True))  # [points], [points, 3, seeds]
    regrets_all = exact_returns(game, np.tile(TABLES, 2)[:, None], replies)[2].sum(axis=0)
    runs = []
    for i, table in enumerate(logits_of(leaders).argmax(-1).numpy()):
        answers, plays = table[:NUM_OBSERVATIONS], table[NUM_OBSERVATIONS:]
        run = {"arm": arm, "learning_rate": learning_rate, "follower": args.follower, "seed": args.seeds[i]}
        run["leader_return"] = exploring[-math.ceil(len(steps) / 10) :, 0, i].mean()
        run |= {"leader_return_greedy": greedy[-1, 0, i], "stackelberg_value": optimum}
        run |= {"leader_regret": optimum - greedy[-1, 0, i], "follower_regret": greedy[-1, 2, i]}
        run |= {"follower_regret_exploring": exploring[-1, 2, i], "follower_regret_all": regrets_all[i]}
        run |= {"leader_answers": answers.tolist(), "leader_policy": plays.tolist()}
        run["follower_policy"] = replies[i, table_index(answers)].tolist()
        for name, returns in (("steps_to_converge", greedy), ("steps_to_converge_exploring", exploring)):
            run[name] = steps_to_converge(steps, returns[:, 0, i] - optimum)
        run["curve"] = [[*point] for point in zip(steps.tolist(), greedy[:, 0, i], exploring[:, 0, i], strict=True)]
        runs.append(run)
    return runs


def main(args: Args) -> dict:
    """Trains the followers if they are to learn, and every arm's leaders; returns what it writes to result.json."""
    torch.set_num_threads(1)  # a thread pool costs more than it gives with models of this size
    start_time = time.time()
    run_path = start_run(args)

    # phase 1: each seed's follower, the same for all arms
    replies = np.broadcast_to(args.game.best_reply(TABLES), (args.num_seeds, *TABLES.shape))
    if args.follower == "meta":
        rngs = [np.random.default_rng((seed, 1)) for seed in args.seeds]  # other numbers than the leader's
        with start_writer(f"{run_path}/follower", args) as writer:
            replies = train_follower(args, rngs, writer)

    # phase 2: the leaders
    runs = []
    for arm, learning_rate in itertools.product(args.arms, args.learning_rates):
        runs += train_arm(arm, learning_rate, replies, args, run_path)

    leader_steps, wall_seconds = args.leader_iterations * args.batch_steps, time.time() - start_time
    result = {"script": os.path.basename(__file__), "env_id": args.env_id, "seed": args.seed, "args": asdict(args)}
    result |= {"stackelberg_value": stackelberg_value(args.game), "follower_steps": args.follower_steps}
    result |= {"leader_steps": leader_steps, "runs": runs, "wall_seconds": wall_seconds}
    result["steps_per_second"] = (args.num_seeds * args.follower_steps + len(runs) * leader_steps) / wall_seconds
    finish(result, run_path)
    return result


if __name__ == "__main__":
    main(tyro.cli(Args, description=__doc__))
