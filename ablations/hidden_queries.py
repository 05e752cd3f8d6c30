# /// script
# requires-python = ">=3.11"
# dependencies = ["numpy==2.4.6", "tensorboard==2.21.0", "torch==2.13.0", "tqdm==4.70.1", "tyro==1.0.17",
#   "wandb==0.31.0"]
# ///
"""Hidden queries: a leader that does not see the questions it answers (Figure 3).

The game is Theorem 2's modified prisoner's dilemma, 5 steps in which each player observes the other's last action.
Before them the follower asks the leader three queries (what would you do at the start, after cooperation, after
defection?) and prepares the exact best response to the answers. Observed queries are the first steps of the leader's
own episode, as in Theorem 1. Hidden ones are asked and answered all the same, but the leader does not learn from them.

    python ablations/hidden_queries.py --leader pg     (or dqn, or es)

In a few seconds (a minute for DQN) you should see that policy gradient and DQN reach the Stackelberg value, 0.00 per
step, with observed queries: by tit-for-tat, which defects after defection only. With hidden ones they end at -2.00.
Within the game, defecting after defection only costs; it pays because the follower has asked first, and therefore never
defects. Evolution strategies see the return of whole episodes, from which hiding takes nothing away: both arms succeed.
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
from typing import Literal, NoReturn

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

    num_seeds: int = 10
    """leaders trained in each arm, side by side; their seeds are seed, seed + 1, ..."""
    arm: Literal["both", "observed", "hidden"] = "both"
    """whether the leader learns from the queries it answers (observed) or not (hidden)"""
    leader: Literal["pg", "dqn", "es"] = "pg"
    """how the leader learns: policy gradient (REINFORCE), DQN with parameter noise, or evolution strategies"""
    num_steps: int = 5
    """game steps per episode; an episode is 3 queries and then these steps"""
    total_timesteps: int = 200_000
    """environment steps of each leader's training, queries included, hidden or not"""
    learning_rate: float | None = None
    """Adam learning rate of the leader; default: 0.008 for pg, 0.01 for dqn, 0.015 for es"""

    num_episodes: int = 13
    """pg, dqn: episodes of each leader between updates; 13 are the first to make the authors' batch of 100 steps"""
    gradient_steps: int = 6
    """dqn: gradient steps after each batch of episodes; the target network is updated before them"""
    replay_batch_size: int = 256
    """dqn: transitions per gradient step, drawn from all that the leader has seen so far"""
    n_step: int = 5
    """dqn: steps of reward in a target before it bootstraps; 0 = the whole episode. All queries end in the same
    observation, whatever was answered, so one-step targets carry none of the game's reward back to an answer"""
    noise_stddev: float = 1.0
    """dqn: standard deviation that the noise on the values begins with; it adapts until 5 % of the actions change"""
    population_size: int = 50
    """es: perturbed leaders per update (an even number), each evaluated in one episode"""
    es_stddev: float = 0.1
    """es: standard deviation of the perturbations; where updates are about as large, all perturbed leaders may soon act
    alike, and learning stops"""


# ---------------------------------------------------------------------------------------------------------- the game
NUM_ACTIONS = 2  # action 0 is the first row or column of the payoff matrix
NUM_OBSERVATIONS = 1 + NUM_ACTIONS  # the start, then one for each last action of the other player
START = 0

ENV_ID = "prisoners_dilemma_modified"  # Table 3; Appendix D
LEADER_PAYOFF = np.array(((0.0, -2.0), (-1.0, -3.0)))  # [leader action, follower action]
FOLLOWER_PAYOFF = np.array(((-1.0, 0.0), (-3.0, -2.0)))
PAYOFF_CENTRE = -1.5  # leaders are trained on payoffs less this, -1.5 to 1.5 (Appendix F)


# -------------------------------------------------------------------------------------------------------- policies
# A table is a deterministic memory-1 policy, [3]: the action in each observation. As answers to the queries, the
# leader's table is the follower's context; TABLES[i] is the table, or context, with index i.
TABLES = np.array(list(itertools.product(range(NUM_ACTIONS), repeat=NUM_OBSERVATIONS)))


def table_index(table: np.ndarray) -> np.ndarray:
    """Returns the row of TABLES that equals each table, [..., 3] -> [...]."""
    return table @ (NUM_ACTIONS ** np.arange(NUM_OBSERVATIONS)[::-1])


# ------------------------------------------------------------------------------------------------ the exact solution
def play_tables(leader: np.ndarray, follower: np.ndarray, num_steps: int) -> tuple[np.ndarray, np.ndarray]:
    """Plays one episode for each pair of tables [n, 3]; returns both players' mean payoff per game step, [n]."""
    rows = np.arange(len(leader))
    leader_observation, follower_observation = np.full((2, len(rows)), START)
    leader_return, follower_return = np.zeros((2, len(rows)))
    for _ in range(num_steps):
        leader_action, follower_action = leader[rows, leader_observation], follower[rows, follower_observation]
        leader_return += LEADER_PAYOFF[leader_action, follower_action] / num_steps
        follower_return += FOLLOWER_PAYOFF[leader_action, follower_action] / num_steps
        leader_observation, follower_observation = 1 + follower_action, 1 + leader_action
    return leader_return, follower_return


def best_responses(num_steps: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns the follower's best table against each of the 8 leader tables, [8, 3], and its return, [8].

    Of equally good tables it takes one that acts alike everywhere, as in the proof of Theorem 2: it always cooperates
    with a leader that returns cooperation and defection, and always defects against any other.
    """
    n = len(TABLES)
    _, returns = play_tables(TABLES.repeat(n, axis=0), np.tile(TABLES, (n, 1)), num_steps)
    acts_alike = TABLES.std(axis=1) == 0
    best = (returns.reshape(n, n) + 1e-9 * acts_alike).argmax(axis=1)
    return TABLES[best], returns.reshape(n, n)[np.arange(n), best]


# --------------------------------------------------------------------------------------------- queries, then the game
def play_episodes(
    defection: np.ndarray, uniforms: np.ndarray, replies: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray, dict[str, np.ndarray]]:
    """Plays n episodes of each leader: the follower asks its queries, then plays its reply to the answers.

    `defection`, [seeds, n, 3], is the probability of action 1 in each observation; `uniforms`, [seeds, T, n], decides
    every action. Answers and play are sampled alike, each afresh; `replies`, [8, 3], are the follower's tables.

    Returns observations, actions and the leader's rewards (centred payoffs, 0 in queries), all [seeds, T, n], and both
    players' mean payoff per game step, [seeds], as scalars to log.
    """
    num_seeds, length, n = uniforms.shape
    seed, episode = np.arange(num_seeds)[:, None], np.arange(n)
    observations, actions = np.zeros((2, num_seeds, length, n), dtype=np.int64)
    rewards, payoffs = np.zeros((num_seeds, length, n)), np.zeros((2, num_seeds))
    for t in range(length):
        if t < NUM_OBSERVATIONS:
            observation = np.full((num_seeds, n), t)
        elif t == NUM_OBSERVATIONS:  # the game starts
            follower_tables = replies[table_index(actions[:, :NUM_OBSERVATIONS].swapaxes(1, 2))]
            observation, follower_observation = np.full((2, num_seeds, n), START)
        observations[:, t] = observation
        actions[:, t] = uniforms[:, t] < defection[seed, episode, observation]
        if t >= NUM_OBSERVATIONS:
            follower_action = follower_tables[seed, episode, follower_observation]
            payoff = LEADER_PAYOFF[actions[:, t], follower_action]
            rewards[:, t] = payoff - PAYOFF_CENTRE
            both = payoff, FOLLOWER_PAYOFF[actions[:, t], follower_action]
            payoffs += np.mean(both, axis=2) / (length - NUM_OBSERVATIONS)
            observation, follower_observation = 1 + follower_action, 1 + actions[:, t]
    scalars = dict(zip(("charts/leader_return", "charts/follower_return"), payoffs, strict=True))
    return observations, actions, rewards, scalars


# ---------------------------------------------------------------------------------------------------------- the leader
class Adam:
    """Adam for arrays whose first axis is the seed: element by element, so that no seed depends on another."""

    def __init__(self, learning_rate: float, eps: float = 1e-8):
        self.learning_rate, self.eps = learning_rate, eps
        self.mean = self.square = self.updates = 0

    def step(self, parameters: np.ndarray, gradient: np.ndarray) -> None:
        """Moves the parameters down the gradient, in place."""
        self.updates += 1
        self.mean = 0.9 * self.mean + 0.1 * gradient
        self.square = 0.999 * self.square + 0.001 * gradient**2
        mean, square = self.mean / (1 - 0.9**self.updates), self.square / (1 - 0.999**self.updates)
        parameters -= self.learning_rate * mean / (np.sqrt(square) + self.eps)


def draw(rngs: list[np.random.Generator], method: str, *args) -> np.ndarray:
    """Draws from each seed's own generator, so that a seed's run is the same whichever seeds run beside it."""
    return np.stack([getattr(rng, method)(*args) for rng in rngs])


# All leaders are bias-free linear functions of a one-hot observation: arrays [seeds, 3, 2] that start near 0. Each
# trainer yields the environment steps so far, scalars to log, [seeds] each, and the greedy tables, [seeds, 3].
Trainer = Iterator[tuple[int, dict[str, np.ndarray], np.ndarray]]


def train_pg(observed: bool, rngs: list[np.random.Generator], replies: np.ndarray, args: Args) -> Trainer:
    """REINFORCE on complete episodes (observed) or on their game steps alone (hidden)."""
    length, n = NUM_OBSERVATIONS + args.num_steps, args.num_episodes
    visible = slice(0 if observed else NUM_OBSERVATIONS, length)
    logits = 0.01 * draw(rngs, "standard_normal", (NUM_OBSERVATIONS, NUM_ACTIONS))
    optimizer = Adam(args.learning_rate)
    for step in range(n * length, args.total_timesteps + 1, n * length):
        defection = (1 + np.tanh((logits[..., 1] - logits[..., 0]) / 2)) / 2  # softmax
        uniforms = draw(rngs, "random", (length, n))
        episodes = play_episodes(defection[:, None].repeat(n, axis=1), uniforms, replies)
        observations, actions, rewards = (x[:, visible] for x in episodes[:3])
        returns = rewards[:, ::-1].cumsum(axis=1)[:, ::-1]  # to go, undiscounted: a query's is that of the whole game
        # the gradient of the chosen action's log-probability in a softmax's logits is one_hot(action) - probabilities
        score = actions - np.take_along_axis(defection[:, None], observations, axis=2)
        of_observation = observations[..., None] == np.arange(NUM_OBSERVATIONS)
        gradient = -(of_observation * (score * returns)[..., None]).mean(axis=(1, 2))
        optimizer.step(logits, np.stack([-gradient, gradient], axis=-1))
        loss = -(np.log1p(-np.abs(score)) * returns).mean(axis=(1, 2))  # 1 - |score| is the chosen one's probability
        yield step, {**episodes[3], "losses/policy_loss": loss}, logits.argmax(axis=-1)


def train_dqn(observed: bool, rngs: list[np.random.Generator], replies: np.ndarray, args: Args) -> Trainer:
    """DQN with parameter noise: one noisy policy answers an episode's queries and plays it."""
    num_seeds, length, n = len(rngs), NUM_OBSERVATIONS + args.num_steps, args.num_episodes
    seed, first = np.arange(num_seeds)[:, None, None], 0 if observed else NUM_OBSERVATIONS
    q = 0.01 * draw(rngs, "standard_normal", (NUM_OBSERVATIONS, NUM_ACTIONS))
    stddev, optimizer, n_step = np.full((num_seeds, 1, 1, 1), args.noise_stddev), Adam(args.learning_rate), args.n_step
    # the replay buffer keeps every episode; differences of `cumulative` are n-step returns
    capacity = args.total_timesteps // (n * length) * n
    observations, actions = np.zeros((2, num_seeds, length, capacity), dtype=np.int64)
    cumulative, total = np.zeros((num_seeds, length + 1, capacity)), 0.0
    for filled in range(n, capacity + 1, n):
        noisy_q = q[:, None] + stddev * draw(rngs, "standard_normal", (n, NUM_OBSERVATIONS, NUM_ACTIONS))
        tables, new = noisy_q.argmax(axis=-1), slice(filled - n, filled)
        episodes = play_episodes(tables, np.full((num_seeds, length, n), 0.5), replies)
        observations[..., new], actions[..., new], rewards, scalars = episodes
        cumulative[:, 1:, new] = rewards.cumsum(axis=1)
        # the noise adapts until it changes the wanted share of the actions
        share = (tables != q.argmax(axis=-1)[:, None]).mean(axis=(1, 2))
        stddev *= np.where(share < 0.05, 1.01, 1 / 1.01).reshape(stddev.shape)
        # without this centring, values compare how many steps are left, which the leader cannot see, more than actions
        total = total + cumulative[..., new].sum(axis=2)
        centre = total / filled
        shape, target_q = (args.gradient_steps, args.replay_batch_size), q.copy()
        e, t = draw(rngs, "integers", 0, filled, shape), draw(rngs, "integers", first, length, shape)
        last = np.minimum(t + (n_step or length), length)
        td_targets = cumulative[seed, last, e] - cumulative[seed, t, e] - centre[seed, last] + centre[seed, t]
        last_observations = observations[seed, np.minimum(last, length - 1), e]
        td_targets += target_q.max(axis=-1)[seed, last_observations] * (last < length)  # no value after the end
        entries = (seed * NUM_OBSERVATIONS + observations[seed, t, e]) * NUM_ACTIONS + actions[seed, t, e]
        for i in range(args.gradient_steps):
            error = q.ravel()[entries[:, i]] - td_targets[:, i]
            gradient = np.bincount(entries[:, i].ravel(), error.ravel(), q.size).reshape(q.shape)
            optimizer.step(q, gradient / args.replay_batch_size)
        scalars |= {"losses/td_loss": (error**2).mean(axis=1), "charts/noise_stddev": stddev.ravel()}
        yield filled * length, scalars, q.argmax(axis=-1)


def train_es(observed: bool, rngs: list[np.random.Generator], replies: np.ndarray, args: Args) -> Trainer:
    """Evolution strategies with antithetic perturbations and centred ranks (Salimans et al., 2017).

    Each perturbed leader acts greedily in one episode, of which only the return is used. Queries have no reward, so
    `observed` makes no difference: the arms are the same computation.
    """
    length, n = NUM_OBSERVATIONS + args.num_steps, args.population_size
    visible = slice(0 if observed else NUM_OBSERVATIONS, length)
    weights = 0.01 * draw(rngs, "standard_normal", (NUM_OBSERVATIONS, NUM_ACTIONS))
    optimizer = Adam(args.learning_rate)
    for step in range(n * length, args.total_timesteps + 1, n * length):
        noise = draw(rngs, "standard_normal", (n // 2, NUM_OBSERVATIONS, NUM_ACTIONS))
        noise = np.concatenate([noise, -noise], axis=1)
        tables = (weights[:, None] + args.es_stddev * noise).argmax(axis=-1)
        _, _, rewards, scalars = play_episodes(tables, np.full((len(rngs), length, n), 0.5), replies)
        returns = rewards[:, visible].sum(axis=1)
        # a return's rank, from -0.5 to 0.5, equal ones sharing theirs: the mean outcome of all its comparisons
        ranks = np.sign(returns[:, :, None] - returns[:, None]).mean(axis=2) / 2
        gradient = -(ranks[..., None, None] * noise).mean(axis=1) / args.es_stddev
        optimizer.step(weights, gradient)
        scalars["losses/gradient_norm"] = np.sqrt((gradient**2).sum(axis=(1, 2)))
        yield step, scalars, weights.argmax(axis=-1)


LEARNING_RATES = {"pg": 0.008, "dqn": 0.01, "es": 0.015}
TRAINERS = {"pg": train_pg, "dqn": train_dqn, "es": train_es}


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


def check_flags(args: Args) -> None:
    """Checks every flag that can be checked alone. Exits with 2 if one is wrong."""
    may_be_zero = ["seed", "n_step", "learning_starts", "adam_eps", "epsilon"]
    for flag, value in asdict(args).items():
        name = f"--{flag.replace('_', '-')}"
        if flag == "exp_name" and not re.fullmatch(r"[\w.-]+", value):
            fail(f"{name} becomes part of a folder's name: use letters, digits, '_', '-' and '.', not {value!r}")
        if isinstance(value, tuple) and not (value and np.isfinite(value).all()):
            fail(f"{name} must be one or more finite numbers, got {' '.join(map(str, value)) or 'none'}")
        if isinstance(value, float) and not math.isfinite(value):
            fail(f"{name} must be a finite number, got {value}")
        if flag in may_be_zero:
            if not 0 <= value < 2**63:
                fail(f"{name} must not be negative, got {value}")
        elif isinstance(value, int | float) and not isinstance(value, bool) and value <= 0:
            fail(f"{name} must be positive, got {value}")
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


def summary(result: dict) -> str:
    """Says in words what the run found: how many leaders end near the Stackelberg value, and how many far below it."""
    value, learns, fails, lines = result["stackelberg_value"], {}, {}, []
    for arm in dict.fromkeys(run["arm"] for run in result["runs"]):
        runs = [run for run in result["runs"] if run["arm"] == arm]
        avenging = sum(run["leader_policy"][2] for run in runs)
        lines.append(f"  {arm} queries: {avenging} of {len(runs)} leaders answer defection with defection")
        for name, key in (("greedy", "leader_return"), ("while learning", "training_return")):
            returns = np.array([run[key] for run in runs])
            near, far = (returns >= value - 0.1 - 1e-9).sum(), (returns < value - 0.5).sum()
            counts = f"at least {value - 0.1:.1f} in {near} of {len(runs)} seeds, below {value - 0.5:.1f} in {far}"
            lines.append(f"    {name:<16} {round(returns.mean(), 2) + 0.0:.2f} per game step; {counts}")
            learns[arm] = learns.get(arm, True) and near >= 0.8 * len(runs)
            fails[arm] = fails.get(arm, True) and far >= 0.9 * len(runs)
    verdict = "no clear contrast in this run"
    if len(learns) == 1:
        verdict = "one arm alone shows no contrast"
    elif learns["observed"] and fails["hidden"]:
        verdict = "it learns from observed queries, and fails when they are hidden"
    elif learns["observed"] and learns["hidden"]:
        verdict = "it learns whether the queries are observed or hidden"
    name = f"{result['args']['leader']} leader, learning rate {result['args']['learning_rate']:g}"
    return "\n".join([f"\n{name}: {verdict}", *lines])


# ------------------------------------------------------------------------------------------------------------- the run
def main(args: Args) -> dict:
    """Trains every leader; returns what it writes to result.json. Exits with 2, nothing written, on wrong flags."""
    check_flags(args)
    n = args.population_size if args.leader == "es" else args.num_episodes
    batch = n * (NUM_OBSERVATIONS + args.num_steps)
    steps = args.total_timesteps // batch * batch
    if steps == 0:
        fail(f"--total-timesteps {args.total_timesteps} is less than one batch of {batch} steps")
    if args.population_size % 2:
        fail(f"--population-size must be even, got {args.population_size}")
    args.learning_rate = args.learning_rate or LEARNING_RATES[args.leader]
    start_time = time.time()
    run_path = start_run(args, ENV_ID)

    replies, best_follower_returns = best_responses(args.num_steps)
    leader_returns, follower_returns = play_tables(TABLES, replies, args.num_steps)
    follower_regrets = best_follower_returns - follower_returns
    stackelberg_value = leader_returns.max().item()
    seeds = range(args.seed, args.seed + args.num_seeds)
    runs = []
    for arm in ["observed", "hidden"] if args.arm == "both" else [args.arm]:
        writer = SummaryWriter(os.path.join(run_path, arm))
        rows = "\n".join(f"|{flag}|{value}|" for flag, value in asdict(args).items())
        writer.add_text("hyperparameters", f"|param|value|\n|-|-|\n{rows}")
        rngs = [np.random.default_rng(seed) for seed in seeds]
        arm_start, points, recent = time.time(), [], []
        with tqdm(total=steps, desc=arm, unit="step", leave=False, disable=None) as progress:
            for step, scalars, tables in TRAINERS[args.leader](arm == "observed", rngs, replies, args):
                progress.update(step - progress.n)
                recent.append(scalars["charts/leader_return"])
                if step * 100 // steps == (step - batch) * 100 // steps:
                    continue  # 100 points make a curve
                index = table_index(tables)
                points.append((step, np.mean(recent, axis=0), leader_returns[index]))
                recent = []
                scalars = {tag: values.mean() for tag, values in scalars.items()}
                scalars["charts/leader_return"] = points[-1][1].mean()
                scalars["charts/leader_return_greedy"] = leader_returns[index].mean()
                scalars["charts/leader_regret"] = stackelberg_value - leader_returns[index].mean()
                scalars["charts/follower_regret"] = follower_regrets[index].mean()
                scalars["charts/stackelberg_value"] = stackelberg_value
                scalars["charts/SPS"] = int(step * len(seeds) / (time.time() - arm_start))
                for tag, scalar in scalars.items():
                    writer.add_scalar(tag, scalar, step)
        writer.close()
        for i, seed in enumerate(seeds):
            run = {"arm": arm, "leader": args.leader, "seed": seed}
            run["leader_return"] = leader_returns[index[i]].item()
            run["training_return"] = np.mean([training[i] for _, training, _ in points[-10:]]).item()
            run["stackelberg_value"] = stackelberg_value
            run["leader_regret"] = stackelberg_value - run["leader_return"]
            run["follower_regret"] = follower_regrets[index[i]].item()
            run["leader_policy"] = tables[i].tolist()
            run["curve"] = [[step, training[i].item()] for step, training, _ in points]
            run["curve_greedy"] = [[step, greedy[i].item()] for step, _, greedy in points]
            runs.append(run)
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
        "leader_steps": steps,
        "runs": runs,
        "wall_seconds": wall_seconds,
        "steps_per_second": steps * len(runs) / wall_seconds,
    }
    result_path = os.path.join(run_path, "result.json")
    write_atomically(result_path, lambda path: Path(path).write_text(json.dumps(result) + "\n"))
    print(summary(result))
    print(f"  speed              {result['steps_per_second']:,.0f} steps per second, {wall_seconds:.1f} s in all")
    print(f"  curves             tensorboard --logdir {run_path}\n  result             {result_path}")
    return result


if __name__ == "__main__":
    main(parse_args())
