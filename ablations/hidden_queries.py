# /// script
# requires-python = ">=3.11"
# dependencies = ["numpy==2.4.6", "tensorboard==2.21.0", "torch==2.13.0", "tqdm==4.70.1", "tyro==1.0.17",
#   "wandb==0.31.0"]
# ///
"""Hidden queries: a leader that does not see the questions it answers (Figure 3).

The game is Theorem 2's modified prisoner's dilemma, 5 steps in which each player observes the other's last action.
Before them the follower asks the leader three queries (what would you do at the start, after cooperation, after
defection?) and replies by the exact best response to the answers or, with `--follower meta`, as in the paper, by a
contextual policy that was trained against random leaders. Observed queries are the first steps of the leader's own
episode, as in Theorem 1. Hidden ones are asked and answered all the same, but the leader does not learn from them.

    python ablations/hidden_queries.py --leader pg     (or dqn, or es)

In a few seconds (half a minute for DQN) you should see that policy gradient and DQN learn tit-for-tat from observed
queries, and get 0.00 per step, the optimum of deterministic memory-1 leaders against stationary followers. With hidden
ones they end at -2.00: within the game, defecting after defection only costs; it pays because the follower has asked
first, and so never defects. Evolution strategies see returns of whole episodes, from which hiding takes nothing. The
three queries are of the authors' code (mgerstgrasser/oracles_and_followers, commit e98db77).
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

    num_seeds: int = 10
    """leaders (and meta-followers) trained side by side in each arm; their seeds are seed, seed + 1, ..."""
    arm: Literal["both", "observed", "hidden"] = "both"
    """whether the leader learns from the queries it answers (observed) or not (hidden)"""
    leader: Literal["pg", "dqn", "es"] = "pg"
    """how the leader learns: policy gradient (REINFORCE), DQN with parameter noise, or evolution strategies"""
    num_steps: int = 5
    """game steps per episode; an episode is 3 queries and then these steps"""
    total_timesteps: int = 200_000
    """environment steps of each leader's training, queries included, hidden or not"""

    follower: Literal["exact", "meta"] = "exact"
    """exact: the best response to the answers; meta: a policy conditioned on them, trained against random leaders"""
    follower_timesteps: int = 52_000
    """meta: environment steps of each follower's pre-training, queries included (500 iterations, Table 4)"""
    follower_learning_rate: float = 0.02
    """meta: Adam learning rate of the follower (Table 4)"""

    learning_rate: float | None = None
    """Adam learning rate of the leader; default: 0.008 for pg, 0.01 for dqn, 0.015 for es"""
    num_episodes: int = 13
    """episodes between updates of a follower, a pg or a dqn leader; 13 are the first to make 100 steps (Table 4)"""
    gradient_steps: int = 6
    """dqn: gradient steps after each batch of episodes; the target network is updated before them"""
    replay_batch_size: int = 256
    """dqn: transitions per gradient step, drawn from all that the leader has seen so far"""
    n_step: int = 5
    """dqn: steps of reward in a target before it bootstraps; 0 = the whole episode. All queries end in the same
    observation, whatever was answered, so one-step targets carry none of the game's reward back to an answer"""
    population_size: int = 50
    """es: perturbed leaders per update (an even number), each evaluated in one episode"""
    es_stddev: float = 0.1
    """es: standard deviation of the perturbations; with updates as large, all may soon act alike, and learning stops"""

    def __post_init__(self):
        may_be_zero = {"seed", "n_step"}
        for flag, value in asdict(self).items():
            if type(value) in (int, float) and not (0 < value < math.inf or (value == 0 and flag in may_be_zero)):
                raise ValueError(f"--{flag.replace('_', '-')} must be positive, got {value}")
        if self.population_size % 2:
            raise ValueError(f"--population-size must be even, got {self.population_size}")
        self.learning_rate = self.learning_rate or {"pg": 0.008, "dqn": 0.01, "es": 0.015}[self.leader]
        self.seeds = range(self.seed, self.seed + self.num_seeds)
        self.arms = ["observed", "hidden"] if self.arm == "both" else [self.arm]

        self.episode_length = NUM_OBSERVATIONS + self.num_steps  # batches are complete episodes
        self.follower_batch = self.num_episodes * self.episode_length
        self.leader_batch = self.population_size * self.episode_length if self.leader == "es" else self.follower_batch
        self.follower_iterations = self.follower_timesteps // self.follower_batch if self.follower == "meta" else 0
        self.follower_steps = self.follower_iterations * self.follower_batch
        self.leader_iterations = self.total_timesteps // self.leader_batch
        if self.total_timesteps < self.leader_batch or self.follower_timesteps < self.follower_batch:
            raise ValueError("--total-timesteps and --follower-timesteps must hold a batch each")


# ---------------------------------------------------------------------------------------------------------- the game
NUM_ACTIONS = 2  # action 0 is the first row or column of the payoff matrix
NUM_OBSERVATIONS = 1 + NUM_ACTIONS  # the start, then one for each last action of the other player
START = 0

ENV_ID = "prisoners_dilemma_modified"  # Table 3; Appendix D
LEADER_PAYOFF = np.array(((0.0, -2.0), (-1.0, -3.0)))  # [leader action, follower action]
FOLLOWER_PAYOFF = np.array(((-1.0, 0.0), (-3.0, -2.0)))
PAYOFF_CENTRE = -1.5  # of both; players are trained on payoffs less this, -1.5 to 1.5 (Appendix F)

# A table is a deterministic memory-1 policy, [3]: the action in each observation. As answers to the queries, the
# leader's table is the follower's context; TABLES[i] is the table, or context, with index i.
TABLES = np.array(list(itertools.product(range(NUM_ACTIONS), repeat=NUM_OBSERVATIONS)))


def table_index(table: np.ndarray) -> np.ndarray:
    """Returns the row of TABLES that equals each table, [..., 3] -> [...]."""
    return table @ (NUM_ACTIONS ** np.arange(NUM_OBSERVATIONS)[::-1])


# --------------------------------------------------------------------------------------------- queries, then the game
def play_episodes(leader, follower, num_steps: int, leader_uniforms=0.5, follower_uniforms=0.5):
    """Plays n episodes for each seed: the leader answers the follower's three queries, then both play.

    `leader`, [seeds, n, 3], and `follower`, [seeds, 8, 3], are the probabilities of action 1 in each observation, the
    follower's in each context too. Uniform numbers, [seeds, T, n] with T = 3 + num_steps, decide, and matter only where
    a probability is neither 0 nor 1. The leader's answers and its play are sampled alike, each afresh.

    Returns both players' observations, actions and rewards (centred payoffs, 0 in queries), [2, seeds, T, n] each, and
    their mean payoffs per game step, [2, seeds, n].
    """
    num_seeds, n, _ = leader.shape
    shape = (num_seeds, NUM_OBSERVATIONS + num_steps, n)
    uniforms = np.broadcast_to(leader_uniforms, shape), np.broadcast_to(follower_uniforms, shape)
    seed, episode = np.arange(num_seeds)[:, None], np.arange(n)
    observations, actions = np.full((2, 2, *shape), START)
    rewards = np.zeros((2, *shape))

    queries, game = slice(NUM_OBSERVATIONS), slice(NUM_OBSERVATIONS, None)
    observations[0, :, queries] = np.arange(NUM_OBSERVATIONS)[:, None]
    actions[0, :, queries] = uniforms[0][:, queries] < leader.swapaxes(1, 2)
    context_index = table_index(actions[0, :, queries].swapaxes(1, 2))
    for t in range(NUM_OBSERVATIONS, shape[1]):
        if t > NUM_OBSERVATIONS:
            observations[:, :, t] = 1 + actions[::-1, :, t - 1]  # each player observes the other's last action
        actions[0, :, t] = uniforms[0][:, t] < leader[seed, episode, observations[0, :, t]]
        actions[1, :, t] = uniforms[1][:, t] < follower[seed, context_index, observations[1, :, t]]
    played = actions[0, :, game], actions[1, :, game]
    rewards[:, :, game] = np.stack([LEADER_PAYOFF[played], FOLLOWER_PAYOFF[played]]) - PAYOFF_CENTRE
    return observations, actions, rewards, rewards[:, :, game].mean(axis=2) + PAYOFF_CENTRE


# ------------------------------------------------------------------------------------------------ the exact solution
def solve(num_steps: int) -> tuple[np.ndarray, np.ndarray, float]:
    """Returns the follower's best table against each of the 8 leader tables, [8, 3], its payoff per game step, [8], and
    the optimum of deterministic memory-1 leaders against stationary followers.

    Of equally good tables it takes one that acts alike everywhere, as in the proof of Theorem 2: it always cooperates
    with a leader that returns cooperation and defection, and always defects against any other.
    """
    n = len(TABLES)
    leaders = np.broadcast_to(TABLES, (n, n, NUM_OBSERVATIONS))
    followers = leaders.swapaxes(0, 1)  # one in each row, the same in all contexts
    leader_payoffs, follower_payoffs = play_episodes(leaders, followers, num_steps)[3]
    acts_alike = TABLES.std(axis=1) == 0
    best = (follower_payoffs + 1e-9 * acts_alike[:, None]).argmax(axis=0)
    return TABLES[best], follower_payoffs.max(axis=0), leader_payoffs[best, np.arange(n)].max().item()


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
        episodes = play_episodes(TABLES[context_index], policies, args.num_steps, follower_uniforms=uniforms)
        observations, actions, rewards = (torch.as_tensor(x[1, :, NUM_OBSERVATIONS:]) for x in episodes[:3])

        returns = rewards.flip(1).cumsum(1).flip(1)  # to go, undiscounted
        probs = Categorical(logits=follower[seed, context_index[:, None], observations], validate_args=False)
        losses = -(probs.log_prob(actions) * returns).mean((1, 2))
        descend(losses, optimizer, "--follower-learning-rate")
        writer.add_scalar("charts/follower_return", episodes[3][1].mean(), iteration * args.follower_batch)
    return follower.detach().argmax(-1).numpy()


# ---------------------------------------------------------------------------------------------------- leader training
# All leaders are bias-free linear functions of a one-hot observation, [seeds, 3, 2], that start near 0 and are trained
# in place. `replies`, [seeds, 8, 3], are the follower's tables. Each trainer calls `log(steps, scalars)`.
RETURNS = ("charts/leader_return", "charts/follower_return")  # of a batch


def train_pg(leaders: nn.Parameter, replies: np.ndarray, observed: bool, args: Args, rngs, log):
    """REINFORCE on complete episodes (observed) or on their game steps alone (hidden)."""
    optimizer = torch.optim.Adam([leaders], lr=args.learning_rate)
    visible = slice(0 if observed else NUM_OBSERVATIONS, None)
    seed, n = np.arange(len(rngs))[:, None, None], args.num_episodes
    for iteration in tqdm(range(1, args.leader_iterations + 1), desc="leaders", leave=False, disable=None):
        policies = leaders.detach().softmax(-1)[:, None, :, 1].expand(-1, n, -1).numpy()
        uniforms = draw(rngs, "random", (args.episode_length, n))
        episodes = play_episodes(policies, replies, args.num_steps, uniforms)
        observations, actions, rewards = (torch.as_tensor(x[0, :, visible]) for x in episodes[:3])

        returns = rewards.flip(1).cumsum(1).flip(1)  # to go, undiscounted: a query's is that of the whole game
        probs = Categorical(logits=leaders[seed, observations], validate_args=False)
        losses = -(probs.log_prob(actions) * returns).mean((1, 2))
        descend(losses, optimizer, "--learning-rate")
        scalars = dict(zip(RETURNS, episodes[3].mean(axis=2), strict=True))
        log(iteration * args.leader_batch, scalars | {"losses/policy_loss": losses.detach()})


def train_dqn(leaders: nn.Parameter, replies: np.ndarray, observed: bool, args: Args, rngs, log):
    """DQN with parameter noise: one noisy policy answers an episode's queries and plays it."""
    optimizer = torch.optim.Adam([leaders], lr=args.learning_rate)
    num_seeds, length, n = len(rngs), args.episode_length, args.num_episodes
    seed, first = np.arange(num_seeds)[:, None, None], 0 if observed else NUM_OBSERVATIONS
    stddev = np.ones((num_seeds, 1, 1, 1))  # of the noise on the values
    # the replay buffer keeps every episode; differences of `cumulative` are n-step returns
    capacity = args.leader_iterations * n
    observations, actions = np.zeros((2, num_seeds, length, capacity), dtype=np.int64)
    cumulative, total = np.zeros((num_seeds, length + 1, capacity)), np.zeros((num_seeds, length + 1))
    for iteration in tqdm(range(1, args.leader_iterations + 1), desc="leaders", leave=False, disable=None):
        q = leaders.detach().numpy()
        filled, new = iteration * n, slice((iteration - 1) * n, iteration * n)
        noise = stddev * draw(rngs, "standard_normal", (n, NUM_OBSERVATIONS, NUM_ACTIONS))
        tables = (q[:, None] + noise).argmax(axis=-1)
        episodes = play_episodes(tables, replies, args.num_steps)
        observations[..., new], actions[..., new], rewards = (x[0] for x in episodes[:3])
        cumulative[:, 1:, new] = rewards.cumsum(axis=1)

        # the noise adapts until it changes 5 % of the actions
        share = (tables != q.argmax(axis=-1)[:, None]).mean(axis=(1, 2))
        stddev *= np.where(share < 0.05, 1.01, 1 / 1.01).reshape(stddev.shape)

        # without this centring, values compare how many steps are left, which the leader cannot see, more than actions
        total += cumulative[..., new].sum(axis=2)
        centre = total / filled
        shape = (args.gradient_steps, args.replay_batch_size)
        e, t = draw(rngs, "integers", 0, filled, shape), draw(rngs, "integers", first, length, shape)
        last = np.minimum(t + (args.n_step or length), length)
        td_targets = cumulative[seed, last, e] - cumulative[seed, t, e] - centre[seed, last] + centre[seed, t]
        last_observations = observations[seed, np.minimum(last, length - 1), e]
        td_targets += q.max(axis=-1)[seed, last_observations] * (last < length)  # no value after the end
        td_targets, inputs = torch.as_tensor(td_targets), (observations[seed, t, e], actions[seed, t, e])

        for i in range(args.gradient_steps):
            values = leaders[seed[..., 0], inputs[0][:, i], inputs[1][:, i]]
            losses = (values - td_targets[:, i]).square().mean(1) / 2
            descend(losses, optimizer, "--learning-rate")
        scalars = dict(zip(RETURNS, episodes[3].mean(axis=2), strict=True))
        scalars |= {"losses/td_loss": losses.detach(), "charts/noise_stddev": stddev.ravel()}
        log(iteration * args.leader_batch, scalars)


def train_es(leaders: nn.Parameter, replies: np.ndarray, observed: bool, args: Args, rngs, log):
    """Evolution strategies with antithetic perturbations and centred ranks (Salimans et al., 2017).

    Each perturbed leader acts greedily in one episode, of which only the return is used. Queries have no reward, so
    `observed` makes no difference: the arms are the same computation.
    """
    optimizer = torch.optim.Adam([leaders], lr=args.learning_rate)
    for iteration in tqdm(range(1, args.leader_iterations + 1), desc="leaders", leave=False, disable=None):
        noise = draw(rngs, "standard_normal", (args.population_size // 2, NUM_OBSERVATIONS, NUM_ACTIONS))
        noise = np.concatenate([noise, -noise], axis=1)
        tables = (leaders.detach().numpy()[:, None] + args.es_stddev * noise).argmax(axis=-1)
        returns = play_episodes(tables, replies, args.num_steps)[3]  # of both players, [2, seeds, population]

        # a return's rank, from -0.5 to 0.5, equal ones sharing theirs: the mean outcome of all its comparisons
        ranks = np.sign(returns[0, :, :, None] - returns[0, :, None]).mean(axis=2) / 2
        ascent = torch.as_tensor((ranks[..., None, None] * noise).mean(axis=1) / args.es_stddev)
        descend(-(ascent * leaders).sum((1, 2)), optimizer, "--learning-rate")
        scalars = dict(zip(RETURNS, returns.mean(axis=2), strict=True))
        log(iteration * args.leader_batch, scalars | {"losses/gradient_norm": ascent.square().sum((1, 2)).sqrt()})


TOLERANCE = 0.05 + 1e-6  # what passes for equal, in mean rewards; a unit of reward is a unit of payoff here


def steps_to_converge(steps: np.ndarray, gaps: np.ndarray) -> int | None:
    """Returns the first of the steps from which on the gaps stay within the tolerance, or None."""
    stays = np.logical_and.accumulate(abs(gaps[::-1]) <= TOLERANCE)[::-1]
    return int(steps[stays.argmax()]) if stays.any() else None


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


def finish(result: dict, run_path: str) -> None:
    """Writes result.json, of which nobody ever meets half, and says in words what was found."""
    with open(f"{run_path}/result.json.tmp", "w") as file:
        json.dump(result, file)
    os.replace(f"{run_path}/result.json.tmp", f"{run_path}/result.json")
    args, optimum = result["args"], result["stackelberg_value"]
    print(f"\n{args['leader']} leader, learning rate {args['learning_rate']:g}, {args['follower']} follower")
    print(f"  optimum             {optimum:.2f} for deterministic memory-1 leaders and stationary followers")
    for arm in dict.fromkeys(run["arm"] for run in result["runs"]):
        runs = [run for run in result["runs"] if run["arm"] == arm]
        returns = np.array([[run["leader_return_greedy"], run["leader_return"]] for run in runs])
        greedy, exploring = returns.mean(axis=0).round(2) + 0.0
        print(f"  queries {arm:<8}    {greedy:.2f} per game step greedy, {exploring:.2f} as they explore; ", end="")
        print(f"{(returns >= optimum - 0.1).all(axis=1).sum()} of {len(runs)} leaders within 0.1 of it in both")
    regret = max(run["follower_regret_all"] for run in result["runs"])
    print(f"  follower's regret   {regret:.2f} at most, summed over all 8 leader tables")
    print(f"  curves              tensorboard --logdir {run_path}\n  result              {run_path}/result.json")


def train_arm(arm: str, replies: np.ndarray, args: Args, run_path: str) -> list[dict]:
    """Trains an arm's leaders, one against each follower of `replies`, [seeds, 8, 3]; returns their results."""
    start_time, writer = time.time(), start_writer(f"{run_path}/{arm}", args)
    _, best_payoffs, optimum = solve(args.num_steps)
    payoffs = play_episodes(np.broadcast_to(TABLES, replies.shape), replies, args.num_steps)[3]
    regrets = best_payoffs - payoffs[1]  # [seeds, 8]: of each follower, against each leader table
    seeds, rngs = np.arange(args.num_seeds), [np.random.default_rng(seed) for seed in args.seeds]
    leaders = nn.Parameter(0.01 * torch.as_tensor(draw(rngs, "standard_normal", (NUM_OBSERVATIONS, NUM_ACTIONS))))
    curve, recent = [], []  # [combined step, greedy returns, exploring returns since the last point]
    points = {math.ceil(share * args.leader_iterations / 100) for share in range(1, 101)}  # after which iterations

    def log(leader_steps: int, scalars: dict):
        recent.append(scalars["charts/leader_return"])
        if leader_steps // args.leader_batch not in points:
            return
        global_step, index = args.follower_steps + leader_steps, table_index(leaders.argmax(-1).numpy())
        greedy, exploring = payoffs[0][seeds, index], sum(recent) / len(recent)
        curve.append((global_step, greedy, exploring))
        recent.clear()
        scalars |= {"charts/leader_return": exploring, "charts/leader_return_greedy": greedy}
        scalars |= {"charts/leader_regret": optimum - greedy, "charts/follower_regret": regrets[seeds, index]}
        sps = len(seeds) * leader_steps / (time.time() - start_time)
        scalars |= {"charts/stackelberg_value": optimum, "charts/SPS": sps}
        for tag, values in scalars.items():
            writer.add_scalar(tag, np.asarray(values).mean(), global_step)

    train = {"pg": train_pg, "dqn": train_dqn, "es": train_es}[args.leader]
    train(leaders, replies, arm == "observed", args, rngs, log)
    writer.close()

    steps, greedy, exploring = (np.array(x) for x in zip(*curve, strict=True))
    runs = []
    for i, index in enumerate(table_index(leaders.argmax(-1).numpy())):
        run = {"arm": arm, "seed": args.seeds[i], "stackelberg_value": optimum}
        run["leader_return"] = exploring[-math.ceil(len(steps) / 10) :, i].mean()
        run |= {"leader_return_greedy": greedy[-1, i], "leader_regret": optimum - greedy[-1, i]}
        run |= {"follower_regret": regrets[i, index], "follower_regret_all": regrets[i].sum()}
        run |= {"leader_policy": TABLES[index].tolist(), "follower_policy": replies[i, index].tolist()}
        for name, returns in (("steps_to_converge", greedy), ("steps_to_converge_exploring", exploring)):
            run[name] = steps_to_converge(steps, returns[:, i] - optimum)
        run["curve"] = [[*point] for point in zip(steps.tolist(), greedy[:, i], exploring[:, i], strict=True)]
        runs.append(run)
    return runs


def main(args: Args) -> dict:
    """Trains the followers if they are to learn, and every arm's leaders; returns what it writes to result.json."""
    torch.set_num_threads(1)  # a thread pool costs more than it gives with models of this size
    start_time = time.time()
    run_path = start_run(args)

    # phase 1: each seed's follower, the same for both arms
    replies, _, stackelberg_value = solve(args.num_steps)
    replies = np.broadcast_to(replies, (args.num_seeds, *replies.shape))
    if args.follower == "meta":
        rngs = [np.random.default_rng((seed, 1)) for seed in args.seeds]  # other numbers than the leader's
        with start_writer(f"{run_path}/follower", args) as writer:
            replies = train_follower(args, rngs, writer)

    # phase 2: the leaders
    runs = [run for arm in args.arms for run in train_arm(arm, replies, args, run_path)]

    leader_steps, wall_seconds = args.leader_iterations * args.leader_batch, time.time() - start_time
    result = {"script": os.path.basename(__file__), "env_id": ENV_ID, "seed": args.seed, "args": asdict(args)}
    result |= {"stackelberg_value": stackelberg_value, "follower_steps": args.follower_steps}
    result |= {"leader_steps": leader_steps, "runs": runs, "wall_seconds": wall_seconds}
    result["steps_per_second"] = (args.num_seeds * args.follower_steps + len(runs) * leader_steps) / wall_seconds
    finish(result, run_path)
    return result


if __name__ == "__main__":
    main(tyro.cli(Args, description=__doc__))
