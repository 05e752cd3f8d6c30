# /// script
# requires-python = ">=3.11"
# dependencies = ["numpy==2.4.6", "tensorboard==2.21.0", "torch==2.13.0", "tqdm==4.70.1", "tyro==1.0.17",
#   "wandb==0.31.0"]
# ///
"""One leader, two followers: the oracle answers with an equilibrium of the followers, and there may be many, or none.

In "Oracles & Followers: Stackelberg Equilibria in Deep Multi-Agent RL" a commitment leaves several followers a game of
their own (Section 2). Here are iterated 2x2x2 games of which all is known: players observe the leader's last action and
how many followers played 0, so that each has 128 deterministic policies, and trying all pairs of the followers' finds
every pure equilibrium for every leader.

    python ablations/two_followers_matrix.py
    python ablations/two_followers_matrix.py --oracle no-regret

The oracle is a contextual policy for each follower, trained by self-play against random leaders (Meta-RL); with the
second command both learn by multiplicative weights in every episode of the leader's (a coarse correlated equilibrium).
In half a minute you should see that leaders end at Stackelberg equilibria given the equilibria that self-play selects,
which are seldom the leader's best. In the last game some leaders leave no pure equilibrium, self-play does not find
those of many others, and that is where leaders end.
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

    env_id: str = "all"
    """all: the four games of this script, side by side; one of them (regulator_low_fine, regulator_high_fine,
    public_good, volunteer); or a name for your own"""
    payoff_file: str | None = None
    """your own game: a CSV with a header and 8 rows, the actions of leader and followers, 0,0,0 to 1,1,1, and all three
    payoffs, as 0,1,0,-2,0.5,1"""
    num_steps: int = 10
    """game steps per episode"""
    num_seeds: int = 10
    """runs of each game, followers and leader; all draw from one stream of random numbers, which begins with seed"""

    oracle: Literal["self-play", "no-regret"] = "self-play"
    """how the followers come to an equilibrium: trained once, against random leaders, or learning in every episode"""
    follower_episodes: int = 128_000
    """self-play: episodes of pre-training, each of 7 queries and the game"""
    follower_learning_rate: float = 0.1
    """self-play: Adam learning rate of both followers"""
    follower_baseline_rate: float = 0.3
    """self-play: step size of the followers' baselines"""
    rounds: int = 2000
    """no-regret: rounds of learning in each of the leader's episodes, each of 7 queries and the game"""

    num_episodes: int = 6400
    """the leader's episodes, each of 7 queries (no-regret: the rounds) and the game"""
    batch_episodes: int = 64
    """episodes per batch, of self-play and of the leader's; a batch is one minibatch"""
    learning_rate: float = 0.06
    """Adam learning rate of the leader, which has one logit for each observation"""
    risk_seeking: float = 5.0
    """k of the advantages exp(k z) / mean - 1, z the standardised return, with which a rare table that is far better
    than the rest outweighs it"""
    update_epochs: int = 10
    """passes over a batch"""
    clip_coef: float = 0.3
    """PPO's clipping coefficient"""

    def __post_init__(self):
        may_be_zero = {"seed", "follower_baseline_rate"}
        for flag, value in asdict(self).items():
            if type(value) in (int, float) and not (0 < value < math.inf or (value == 0 and flag in may_be_zero)):
                raise ValueError(f"--{flag.replace('_', '-')} must be positive, got {value}")
        if min(self.num_episodes, self.follower_episodes) < self.batch_episodes or self.batch_episodes < 2:
            raise ValueError("--num-episodes and --follower-episodes must hold a batch each, of at least 2")
        if self.payoff_file is not None:
            self.env_id = "custom" if self.env_id in ("all", *PAYOFFS) else self.env_id
            payoffs = {self.env_id: load_payoffs(self.payoff_file)}
        elif self.env_id == "all":
            payoffs = PAYOFFS
        elif self.env_id in PAYOFFS:
            payoffs = {self.env_id: PAYOFFS[self.env_id]}
        else:
            raise ValueError(f"no game {self.env_id!r}: choose from all, {', '.join(PAYOFFS)}, or give --payoff-file")
        self.games = {name: ThreePlayerGame(payoff, self.num_steps) for name, payoff in payoffs.items()}

        self.leader_episode = episode = NUM_OBSERVATIONS + self.num_steps  # queries and game
        self.follower_iterations = self.follower_episodes // self.batch_episodes
        self.follower_steps = self.follower_iterations * self.batch_episodes * episode
        if self.oracle == "no-regret":  # all the followers' steps are in the leader's episodes
            self.follower_steps, self.leader_episode = 0, self.rounds * episode + self.num_steps


# ------------------------------------------------------------------------------------------------------------ the games
NUM_ACTIONS = 2  # action 0 is the first row or column of the payoff matrix
NUM_OBSERVATIONS = 1 + NUM_ACTIONS * 3  # the start, then 1 + 3 * leader's last action + how many followers played 0
START = 0
TRIPLES = list(itertools.product(range(NUM_ACTIONS), repeat=3))  # actions of the leader and of the two followers


def regulator(fine: float) -> np.ndarray:
    """Returns the payoffs [player, leader, first, second] of a regulator that inspects (1) or does not, at a cost, and
    two firms that comply (0) or pollute (1). Pollution harms the regulator. It saves a firm 1, and a firm that complies
    loses business of 0.5 to one that does not. An inspection is a nuisance to both firms, and fines polluters."""
    payoffs = np.zeros((3, 2, 2, 2))
    for leader, *firms in TRIPLES:
        payoffs[0, leader, *firms] = -1.5 * sum(firms) - 0.6 * leader
        for player, own, other in ((1, *firms), (2, *reversed(firms))):
            payoffs[player, leader, *firms] = own - 0.5 * other * (1 - own) - 0.2 * leader - fine * own * leader
    return payoffs


def public_good(values: tuple, benefit: float, matching_cost: float) -> np.ndarray:
    """Returns the payoffs [player, leader, first, second] of a leader that matches contributions (0) or does not, and
    two followers that contribute (0), at a cost of 1, or do not. `values`, [follower][units], is what the good is worth
    to each: a contribution is a unit of it, and two if it is matched. A unit is worth `benefit` to the leader."""
    payoffs = np.zeros((3, 2, 2, 2))
    for leader, *actions in TRIPLES:
        contributions, matched = 2 - sum(actions), 1 - leader
        units = contributions * (1 + matched)
        payoffs[0, leader, *actions] = benefit * units - matching_cost * contributions * matched
        for player, own in enumerate(actions, start=1):
            payoffs[player, leader, *actions] = values[player - 1][units] - (1 - own)
    return payoffs


PAYOFFS = {
    "regulator_low_fine": regulator(0.8),  # inspected, a polluter still has 0.2 more than one that complies
    "regulator_high_fine": regulator(3.0),
    "public_good": public_good(2 * ((0, 0.6, 1.2, None, 2.4),), 1.0, 1.7),  # unmatched, contributions do not pay
    # the first contributes if the second does, the second if the first does not: unmatched, no pure equilibrium
    "volunteer": public_good(((0, 0.5, 2.5, None, 3), (0, 1.5, 1.5, None, 1.5)), 1.0, 1.2),
}


def load_payoffs(path: str) -> np.ndarray:
    """Returns the payoffs [player, leader, first, second] of a CSV. Raises ValueError if it is not as --help says."""
    try:
        rows = np.loadtxt(path, delimiter=",", skiprows=1, ndmin=2)
        is_complete = rows.shape == (8, 6) and (rows[:, :3] == TRIPLES).all()
        assert is_complete and np.abs(rows).max() < 1e30, "not 0,0,0 to 1,1,1 with three finite payoffs each"
    except Exception as error:  # a foreign file trips wherever it likes
        raise ValueError(f"--payoff-file {path!r} does not fit: {error}") from error
    return rows[:, 3:].T.reshape(3, 2, 2, 2)


class ThreePlayerGame:
    """An iterated 2x2x2 game of `num_steps` steps; player 0 is the leader. `reward`, [player, 4 * leader's action + 2 *
    first follower's + second's], are the payoffs centred on 0 and stretched to +-1.5: `scale` are units of payoff."""

    def __init__(self, payoffs: np.ndarray, num_steps: int):
        payoffs = payoffs.reshape(3, len(TRIPLES))
        low, high = payoffs.min(axis=1, keepdims=True), payoffs.max(axis=1, keepdims=True)
        centre, scale = (low + high) / 2, np.where(high > low, (high - low) / 3, 1.0)
        self.reward, self.centre, self.scale = (payoffs - centre) / scale, centre.ravel(), scale.ravel()
        self.num_steps = num_steps

    def payoff(self, player: int, reward):
        """Returns the payoff that a player's reward, a number or an array, stands for."""
        return self.centre[player] + self.scale[player] * reward


# --------------------------------------------------------------------------------------------------- the exact solution
# A table is a deterministic policy, [7]: the action in each observation; TABLES[i] is the table with index i. The
# leader's, its answers to the queries, is the followers' context.
TABLES = np.array(list(itertools.product(range(NUM_ACTIONS), repeat=NUM_OBSERVATIONS)))
PLACES = NUM_ACTIONS ** np.arange(NUM_OBSERVATIONS)[::-1]  # table @ PLACES is its index


def returns_of_tables(game: ThreePlayerGame) -> np.ndarray:
    """Returns all players' mean reward per step for all triples of tables, [player, 128, 128, 128]."""
    first, second = np.indices((len(TABLES), len(TABLES)))
    returns = np.zeros((3, len(TABLES), *first.shape), dtype=np.float32)
    for leader, table in enumerate(TABLES):
        observation = np.full(first.shape, START)
        for _ in range(game.num_steps):
            a, b, c = table[observation], TABLES[first, observation], TABLES[second, observation]
            returns[:, leader] += game.reward[:, 4 * a + 2 * b + c]
            observation = 1 + 3 * a + 2 - b - c
    return returns / game.num_steps


def solve(returns: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns the leader's mean reward in its best and in its worst pure equilibrium of the followers, for each of its
    tables, [128]; -inf and inf if there is none. What a leader gets that may choose among equilibria is the largest of
    the best, what it gets for certain the largest of the worst."""
    leader, first, second = returns
    is_best_first = first >= first.max(axis=1, keepdims=True) - 1e-5  # what rounding leaves of a tie
    is_equilibrium = is_best_first & (second >= second.max(axis=2, keepdims=True) - 1e-5)
    best, worst = np.where(is_equilibrium, leader, -np.inf), np.where(is_equilibrium, leader, np.inf)
    return best.max(axis=(1, 2)), worst.min(axis=(1, 2))


def evaluate_pairs(returns: np.ndarray, pairs: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns what followers make of each of the leader's tables if they answer it with a pair of theirs, [2, 128]: all
    players' mean reward, [player, 128], and both followers' exact regret, [follower, 128]."""
    leader, (first, second) = np.arange(len(TABLES)), pairs
    rewards = returns[:, leader, first, second]
    best = returns[1, leader, :, second].max(axis=1), returns[2, leader, first].max(axis=1)
    return rewards, np.stack(best) - rewards[1:]


# ------------------------------------------------------------------------------------ the oracle by self-play (Meta-RL)
def train_followers(rewards: torch.Tensor, args: Args) -> np.ndarray:
    """Trains both followers of each run, by policy gradient, against each other and a random table of the leader's in
    each episode, dealt from a shuffled deck; `rewards`, [follower, runs, 8], are theirs. Returns the indices of their
    greedy tables for each context, [2, runs, 128]."""
    num_runs, num_episodes = rewards.shape[1], args.batch_episodes
    logits = torch.nn.Parameter(0.01 * torch.randn(2 * num_runs * TABLES.size))  # of action 1, for all inputs there are
    baseline = torch.zeros_like(logits.data)  # of the reward per remaining step
    optimizer = torch.optim.Adam([logits], lr=args.follower_learning_rate)
    tables = torch.as_tensor(TABLES).flatten()
    follower, run = torch.arange(2)[:, None, None], torch.arange(num_runs)[:, None]
    dealt = torch.rand(num_runs, math.ceil(args.follower_episodes / len(TABLES)), len(TABLES)).argsort(2).flatten(1)
    remaining = torch.arange(args.num_steps, 0, -1)[:, None, None, None]

    for iteration in tqdm(range(args.follower_iterations), desc="followers", leave=False, disable=None):
        contexts = dealt[:, iteration * num_episodes : (iteration + 1) * num_episodes]
        policies, observation, steps = logits.detach().sigmoid(), torch.full_like(contexts, START), []
        for uniforms in torch.rand(args.num_steps, 2, num_runs, num_episodes):
            row = NUM_OBSERVATIONS * contexts + observation
            inputs = (follower * num_runs + run) * TABLES.size + row  # [follower, runs, episodes]
            leader, actions = tables[row], (uniforms < policies[inputs]).long()
            steps.append((inputs, actions, rewards[:, run, 4 * leader + 2 * actions[0] + actions[1]]))
            observation = 1 + 3 * leader + 2 - actions.sum(0)
        inputs, actions, step_rewards = (torch.stack(column) for column in zip(*steps, strict=True))
        returns = step_rewards.flip(0).cumsum(0).flip(0)

        # REINFORCE with a baseline
        advantages = returns - baseline[inputs] * remaining
        probs = Bernoulli(logits=logits[inputs], validate_args=False)
        loss = -(probs.log_prob(actions.float()) * advantages).sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

        # the baseline moves towards the mean over all visits to an input in this batch
        visits, errors = torch.zeros(2, len(baseline))
        visits.scatter_add_(0, inputs.flatten(), torch.ones(inputs.numel()))
        errors.scatter_add_(0, inputs.flatten(), (returns / remaining - baseline[inputs]).flatten())
        baseline += args.follower_baseline_rate * errors / visits.clamp(min=1)
    return (logits.detach().view(2, num_runs, *TABLES.shape) > 0).numpy() @ PLACES


# ---------------------------------------------------------------------- the oracle by no-regret learning in the episode
def no_regret_followers(returns: np.ndarray, rounds: int) -> tuple[np.ndarray, np.ndarray]:
    """Lets both followers learn by multiplicative weights, as in no_regret_follower.py, against each of the leader's
    tables and each other. They play the mean, over all rounds, of the product of their weights: a coarse correlated
    equilibrium, up to their regrets, which are at most sqrt(ln 128 / 2T) in payoffs from 0 to 1, whatever they do.
    Returns the same as `evaluate_pairs`. Followers know their payoffs, so that nothing is left to chance."""
    unit_returns = torch.as_tensor((returns + 1.5) / 3).movedim(1, 0).flatten(1, 2)  # from 0 to 1, [128, 3 * 128, 128]
    of_second = unit_returns[:, -len(TABLES) :].mT.contiguous()
    step_size = math.sqrt(8 * math.log(len(TABLES)) / rounds)
    payoffs, earned = torch.zeros(2, len(TABLES), len(TABLES)), torch.zeros(3, len(TABLES))
    for _ in tqdm(range(rounds), desc="followers", leave=False, disable=None):
        weights = (step_size * payoffs).softmax(-1)  # [follower, leader's table, table]
        against_second = (unit_returns @ weights[1, ..., None]).view(-1, 3, len(TABLES))  # [128, player, first's table]
        payoffs += torch.stack([against_second[:, 1], (of_second @ weights[0, ..., None])[..., 0]])
        earned += torch.einsum("xpi,xi->px", against_second, weights[0])
    regrets = (payoffs.amax(-1) - earned[1:]) / rounds
    return (3 * earned / rounds - 1.5).numpy(), (3 * regrets).numpy()


# ------------------------------------------------------------------------------------------------------ leader training
def train_leaders(leaders: torch.Tensor, returns: torch.Tensor, args: Args) -> list[np.ndarray]:
    """PPO on the leaders' logits of action 1, [runs, 7], in place. A leader keeps to its answers in the game; the mean
    reward of each of its tables, `returns` [runs, 128], follows from its followers' replies. Returns the index of the
    greedy table and the mean reward after each batch, [batches, runs]."""
    optimizer, history = torch.optim.Adam([leaders], lr=args.learning_rate, eps=1e-3), []
    for _ in tqdm(range(args.num_episodes // args.batch_episodes), desc="leaders", leave=False, disable=None):
        old_probs = Bernoulli(logits=leaders.detach()[:, None], validate_args=False)
        uniforms = torch.rand(len(leaders), args.batch_episodes, NUM_OBSERVATIONS)
        answers = (uniforms < old_probs.probs).float()
        rewards = returns.gather(1, (answers.long() * torch.as_tensor(PLACES)).sum(-1))
        # All answers of an episode have its one return. So would a value: it is gone with the mean of the batch.
        scores = (rewards - rewards.mean(dim=1, keepdim=True)) / (rewards.std(dim=1, keepdim=True) + 1e-8)
        advantages = (args.batch_episodes * (args.risk_seeking * scores).softmax(dim=1) - 1)[..., None]
        for _ in range(args.update_epochs):
            probs = Bernoulli(logits=leaders[:, None], validate_args=False)
            ratio = (probs.log_prob(answers) - old_probs.log_prob(answers)).exp()
            clipped_ratio = torch.clamp(ratio, 1 - args.clip_coef, 1 + args.clip_coef)
            loss = torch.max(-advantages * ratio, -advantages * clipped_ratio).mean(dim=(1, 2)).sum()
            optimizer.zero_grad()
            loss.backward()  # runs share no parameter, so none depends on another
            optimizer.step()
        history.append(((leaders.detach() > 0).numpy() @ PLACES, rewards.mean(dim=1).numpy()))
    return [np.array(x) for x in zip(*history, strict=True)]


# ---------------------------------------------------------------------------------------------------------- convergence
TOLERANCE = 0.05 + 1e-6  # what passes for equal, in mean rewards: half of what one step of ten can change


def steps_to_converge(steps: np.ndarray, gaps: np.ndarray) -> int | None:
    """Returns the first of the steps from which on the gaps stay within the tolerance, or None."""
    stays = np.logical_and.accumulate(abs(gaps[::-1]) <= TOLERANCE)[::-1]
    return int(steps[stays.argmax()]) if stays.any() else None


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


def results_of(env_id: str, solution: tuple, outcomes: list, history: list, writer: SummaryWriter, args: Args) -> list:
    """Writes the mean curves of a game's leaders; returns what result.json says about each of them. `solution` is that
    of `solve`, `outcomes` what the followers of each run make of the tables, `history` what `train_leaders` returns."""
    (best, worst), (tables, rewards), game, run = solution, history, args.games[env_id], np.arange(args.num_seeds)
    returns, regrets = (np.stack(x) for x in zip(*outcomes, strict=True))  # [runs, player, 128], [runs, follower, 128]
    steps = args.follower_steps + args.leader_episode * args.batch_episodes * np.arange(1, len(tables) + 1)
    optimum, certain = game.payoff(0, best.max()), game.payoff(0, worst[worst < np.inf].max(initial=-np.inf))
    greedy, exploring = game.payoff(0, returns[run, 0, tables]), game.payoff(0, rewards)
    curves = {"leader_return": exploring, "leader_return_greedy": greedy, "leader_regret": optimum - greedy}
    curves |= {"follower_return": game.payoff(1, returns[run, 1, tables]), "stackelberg_value": optimum + 0 * greedy}
    for name, values in curves.items():
        for step, value in zip(steps.tolist(), values.mean(axis=1), strict=True):
            writer.add_scalar(f"charts/{name}", value, step)

    final, leader, in_equilibrium = tables[-1], returns[:, 0], (regrets <= TOLERANCE).all(axis=1)  # [runs, 128]
    in_one_of_several = in_equilibrium & (best - worst > TOLERANCE)
    columns = {
        "leader_return": exploring[-math.ceil(len(steps) / 10) :].mean(axis=0),
        "leader_return_greedy": greedy[-1],
        "leader_return_best": game.payoff(0, leader.max(axis=1)),  # of all tables against these followers
        "leader_regret": optimum - greedy[-1],
        "follower_regret": (game.scale[1:] * regrets[run, :, final]).max(axis=1),  # of the two, the larger
        "is_stackelberg": in_equilibrium[run, final] & (leader[run, final] >= leader.max(axis=1) - TOLERANCE),
        # of the leader's 128 tables: how many these followers answer with an equilibrium, and with which of several
        "tables_in_equilibrium": in_equilibrium.sum(axis=1),
        "tables_in_one_of_several": in_one_of_several.sum(axis=1),
        "tables_in_the_best": (in_one_of_several & (leader >= best - TOLERANCE)).sum(axis=1),
        "tables_in_the_worst": (in_one_of_several & (leader <= worst + TOLERANCE)).sum(axis=1),
        "leader_policy": TABLES[final],
    }
    runs = []
    for i in range(args.num_seeds):
        one = {"env_id": env_id, "seed": args.seed + i, "stackelberg_value": optimum}
        one |= {"stackelberg_value_pessimistic": certain, "tables_without_equilibrium": np.isinf(best).sum().item()}
        one |= {name: values[i].tolist() for name, values in columns.items()}
        for name, values in (("steps_to_converge", greedy), ("steps_to_converge_exploring", exploring)):
            one[name] = steps_to_converge(steps, (values[:, i] - one["leader_return_best"]) / game.scale[0])
        one["curve"] = [[*point] for point in zip(steps.tolist(), greedy[:, i], exploring[:, i], strict=True)]
        runs.append(one)
    return runs


def finish(result: dict, run_path: str) -> None:
    """Writes result.json, of which nobody ever meets half, and says in words what was found."""
    with open(f"{run_path}/result.json.tmp", "w") as file:
        json.dump(result, file)
    os.replace(f"{run_path}/result.json.tmp", f"{run_path}/result.json")
    for env_id in dict.fromkeys(run["env_id"] for run in result["runs"]):
        runs = [run for run in result["runs"] if run["env_id"] == env_id]
        found = f"{sum(run['is_stackelberg'] for run in runs)} of {len(runs)}"
        print(f"\n{env_id}: {found} runs end at a Stackelberg equilibrium, given the oracle; means:")
        for name in (name for name in runs[0] if name.startswith(("stackelberg", "leader_r", "follower_r", "tables"))):
            print(f"  {name.replace('_', ' '):<31}{np.mean([run[name] for run in runs]).round(2) + 0.0:6.2f}")
    print(f"  curves  tensorboard --logdir {run_path}\n  result  {run_path}/result.json")


def main(args: Args) -> dict:
    """Trains the followers and leaders of all runs; returns what it writes to result.json."""
    torch.set_num_threads(1)  # a thread pool costs more than it gives with tensors of this size
    start_time, run_path = time.time(), start_run(args)
    torch.manual_seed(args.seed)
    returns = [returns_of_tables(game) for game in args.games.values()]
    if args.oracle == "self-play":
        rewards = np.stack([game.reward[1:] for game in args.games.values()], axis=1).repeat(args.num_seeds, axis=1)
        pairs = train_followers(torch.as_tensor(rewards, dtype=torch.float32), args)
        outcomes = [evaluate_pairs(returns[i // args.num_seeds], pairs[:, i]) for i in range(pairs.shape[1])]
    else:
        of_games = [no_regret_followers(of_game, args.rounds) for of_game in returns]
        outcomes = [outcome for outcome in of_games for _ in range(args.num_seeds)]
    leaders = torch.nn.Parameter(0.01 * torch.randn(len(outcomes), NUM_OBSERVATIONS))
    history = train_leaders(leaders, torch.as_tensor(np.stack([rewards[0] for rewards, _ in outcomes])), args)
    runs = []
    for i, env_id in enumerate(args.games):
        here = slice(i * args.num_seeds, (i + 1) * args.num_seeds)
        with start_writer(f"{run_path}/{env_id}", args) as writer:
            runs += results_of(env_id, solve(returns[i]), outcomes[here], [x[:, here] for x in history], writer, args)
            writer.add_scalar("charts/SPS", runs[-1]["curve"][-1][0] * args.num_seeds / (time.time() - start_time))
    result = {"script": os.path.basename(__file__), "env_id": args.env_id, "seed": args.seed, "args": asdict(args)}
    result |= {"runs": runs, "wall_seconds": time.time() - start_time}
    result["steps_per_second"] = sum(run["curve"][-1][0] for run in runs) / result["wall_seconds"]
    finish(result, run_path)
    return result


if __name__ == "__main__":
    main(tyro.cli(Args, description=__doc__))
