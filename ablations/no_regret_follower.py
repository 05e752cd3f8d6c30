# /// script
# requires-python = ">=3.11"
# dependencies = ["numpy==2.4.6", "tensorboard==2.21.0", "torch==2.13.0", "tqdm==4.70.1", "tyro==1.0.17",
#   "wandb==0.31.0"]
# ///
"""A follower that learns by multiplicative weights in every episode of the leader's: how many rounds are enough?

The no-regret oracle (Brero et al. 2021a) of Table 2 in "Oracles & Followers: Stackelberg Equilibria in Deep Multi-Agent
RL", in its 12 iterated matrix games. An episode of the leader's opens with T rounds. In each the leader is asked for
its action in each observation, and the follower, which knows its payoffs, multiplies the weights of all its 32 tables
(Hedge); both play the game with a table drawn from theirs, unpaid. Then comes the game that the leader is paid for.

    python ablations/no_regret_follower.py
    python ablations/no_regret_follower.py --explore round --rounds 100 --env-id prisoners_dilemma

The first command trains PPO leaders as one batch, 12 games x 7 numbers of rounds x 5 seeds. Whatever a leader does, the
follower's regret over its T rounds is at most sqrt(T ln 32 / 2), in payoffs from 0 to 1: every episode is held to it.
Lemma 1 wants a best response, and few rounds make none.
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
from torch.nn.functional import logsigmoid, one_hot
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

    env_id: str = "table3"
    """table3: the paper's 12 games, side by side; ordinal: all 144; one of them by its name, or a name for your own"""
    leader_payoff: tuple[float, ...] = ()
    """your own game: the leader's payoffs, row by row (row = leader's action, column = follower's action)"""
    follower_payoff: tuple[float, ...] = ()
    """your own game: the follower's payoffs in the same layout (not transposed)"""
    num_steps: int = 10
    """game steps per episode of the game"""
    rounds: tuple[int, ...] = (1, 3, 10, 30, 100, 300, 1000)
    """rounds of the follower's learning in each of the leader's episodes; all values are trained side by side"""
    reply: Literal["last", "average"] = "last"
    """how the follower plays after its rounds: by the weights it ends with, or by their mean over the rounds, which is
    what the bound on its regret is about"""

    num_seeds: int = 5
    """leaders of each game and number of rounds; all draw from one stream of random numbers, which begins with seed"""
    num_episodes: int = 3200
    """episodes of each leader; one is 15 steps in each round, 5 queries and 10 game steps, and 10 that are paid for"""
    batch_episodes: int = 32
    """episodes per batch, which is one minibatch"""
    explore: Literal["episode", "round"] = "episode"
    """how often the leader draws its action in each observation: once an episode, or anew in each round"""
    learning_rate: float = 0.06
    """Adam learning rate of the leader, which has one logit for each observation"""
    adam_eps: float = 1e-3
    """Adam's epsilon for the leader"""
    update_epochs: int = 10
    """passes over a batch"""
    clip_coef: float = 0.3
    """PPO's clipping coefficient"""

    def __post_init__(self):
        for flag, value in asdict(self).items():
            may_be_zero = flag in ("seed", "adam_eps")
            for number in value if flag == "rounds" else [value]:
                if type(number) in (int, float) and not (0 < number < math.inf or (number == 0 and may_be_zero)):
                    raise ValueError(f"--{flag.replace('_', '-')} must be positive, got {number}")
        if len(set(self.rounds)) != len(self.rounds) or not self.rounds:
            raise ValueError("--rounds must be one or more different numbers")
        if self.batch_episodes < 2 or self.num_episodes < self.batch_episodes:
            raise ValueError("--batch-episodes must be at least 2, and --num-episodes hold a batch")
        ordinal = {a if a == b else f"{a}-{b}": (a, b) for a in PAYOFFS for b in PAYOFFS}
        payoffs, sets = (self.leader_payoff, self.follower_payoff), {"table3": {*PAYOFFS}, "ordinal": {*ordinal}}
        if payoffs == ((), ()):
            names = sets.get(self.env_id, {self.env_id})
            if not names <= {*ordinal}:
                raise ValueError(f"no game {self.env_id!r}: {', '.join((*sets, *PAYOFFS))}, A-B, or your own payoffs")
            pairs = {name: pair for name, pair in ordinal.items() if name in names}
            games = {name: (np.ravel(PAYOFFS[a]), np.transpose(PAYOFFS[b]).ravel()) for name, (a, b) in pairs.items()}
        else:
            if not all(len(payoff) == 4 and np.abs(payoff).max() < 1e30 for payoff in payoffs):
                raise ValueError("--leader-payoff and --follower-payoff must be four numbers each, row by row")
            self.env_id = "custom" if self.env_id in (*sets, *ordinal) else self.env_id
            games = {self.env_id: payoffs}
        self.games = {name: MatrixGame(*payoff, self.num_steps) for name, payoff in games.items()}


# ------------------------------------------------------------------------------------------------------------- the game
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


# ------------------------------------------------------------------------------------------------------------- policies
# A table is a deterministic memory-1 policy, [5]: the action in each observation; TABLES[i] is the table with index i.
# A leader has logits, [5], of action 1 in each observation, a follower weights, [32], of its tables.
TABLES = np.array(list(itertools.product(range(NUM_ACTIONS), repeat=NUM_OBSERVATIONS)))


def table_index(table: np.ndarray) -> np.ndarray:
    """Returns the row of TABLES that equals each table, [..., 5] -> [...]."""
    return table @ (NUM_ACTIONS ** np.arange(NUM_OBSERVATIONS)[::-1])


# --------------------------------------------------------------------------------------------------- the exact solution
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


def returns_of_tables(game: MatrixGame) -> np.ndarray:
    """Returns both players' mean reward per step for every leader's and follower's table, [player, 32, 32]."""
    n = len(TABLES)
    _, _, rewards = play(game, TABLES.repeat(n, axis=0), np.tile(TABLES, (n, 1)))
    return rewards.mean(axis=1).reshape(2, n, n)


def best_response(returns: np.ndarray, leaders: np.ndarray) -> np.ndarray:
    """Returns both players' mean reward, [player, n], where leaders play mixtures of tables, [n, 32], and the follower
    best-responds to each, ties broken for the leader; `returns` are those of the game's tables. The largest of the
    leader's over pure tables is the optimum of deterministic memory-1 leaders."""
    leader_rewards, follower_rewards = leaders @ returns
    best = follower_rewards.max(axis=1, keepdims=True)
    is_best = follower_rewards >= best - 1e-6  # what rounding leaves of a tie
    return np.stack([np.where(is_best, leader_rewards, -np.inf).max(axis=1), best[:, 0]])


# ----------------------------------------------------------------------------------------------- the no-regret follower
def unit_payoffs(rewards):
    """Returns rewards, from -1.5 to 1.5, as payoffs from 0 to 1, for which the bound on the follower's regret holds."""
    return (rewards + 1.5) / 3


class Hedge:
    """Followers that learn by multiplicative weights over their 32 tables, one in each episode of each run.

    After a round a table's weight is multiplied by exp(step size * the payoff, from 0 to 1, it would have had). With
    the step size sqrt(8 ln 32 / T) the best table has at most sqrt(T ln 32 / 2) more than the follower after T rounds,
    whatever the leader does (Cesa-Bianchi and Lugosi 2006, Theorem 2.2). `rounds`, [runs], falling, are each run's T.
    """

    def __init__(self, rounds: torch.Tensor, num_episodes: int):
        self.rounds = rounds[:, None, None]
        self.step_size, self.bound = (8 * math.log(32) / self.rounds).sqrt(), (self.rounds * math.log(32) / 2).sqrt()
        # summed over rounds: what each table would have had, what the weights had in expectation, and the weights
        self.payoffs, self.weights_sum = torch.zeros(2, len(rounds), num_episodes, len(TABLES))
        self.earned = torch.zeros(len(rounds), num_episodes)

    def weights(self, n: int | None = None) -> torch.Tensor:
        """Returns the weights of the tables in the first n runs, [n, episodes, 32]; they add up to 1."""
        return (self.step_size[:n] * self.payoffs[:n]).softmax(-1)

    def update(self, payoffs: torch.Tensor) -> None:
        """Learns from one round of the first n runs: the payoff of each table in it, [n, episodes, 32]."""
        n, weights = len(payoffs), self.weights(len(payoffs))
        self.earned[:n] += (weights * payoffs).sum(-1)
        self.weights_sum[:n] += weights
        self.payoffs[:n] += payoffs

    def reply(self, kind: str) -> torch.Tensor:
        """Returns the weights that the followers play by after their rounds, [runs, episodes, 32]."""
        return self.weights() if kind == "last" else self.weights_sum / self.rounds

    def share_of_bound(self) -> torch.Tensor:
        """Returns the regret over the rounds in units of its bound, [runs, episodes]."""
        return (self.payoffs.amax(-1) - self.earned) / self.bound[..., 0]


def evaluate(game: MatrixGame, returns: np.ndarray, rounds: int, kind: str) -> dict[str, np.ndarray]:
    """Returns what a leader gets that keeps to a table, by the follower's rounds and by an exact best response, and
    what either player misses; exact payoffs per game step, [32] each."""
    hedge = Hedge(torch.tensor([rounds]), len(TABLES))
    for _ in range(rounds):
        hedge.update(unit_payoffs(torch.as_tensor(returns[1:], dtype=torch.float32)))
    leader_rewards, follower_rewards = (hedge.reply(kind)[0].numpy() * returns).sum(axis=-1)
    leader_best, follower_best = best_response(returns, np.eye(len(TABLES)))
    return {
        "leader_return_greedy": game.payoff(0, leader_rewards),
        "leader_return_exact": game.payoff(0, leader_best),
        "leader_regret": game.scale[0] * (leader_best.max() - leader_rewards),
        "follower_regret": game.scale[1] * (follower_best - follower_rewards),
    }


# --------------------------------------------------------------------------------------- the leader's POMDP (Theorem 1)
def play_episodes(policies: torch.Tensor, returns: torch.Tensor, rounds: torch.Tensor, args: Args):
    """Plays a batch of episodes of every run's leader, which takes action 1 with probabilities `policies`, [runs, 5].

    A round's ten game steps teach a follower nothing that knows its payoffs: they are counted, not played. `returns`,
    [player, runs, 32, 32], are the mean rewards of all pairs of tables, `rounds`, [runs], falling, each run's T.
    Returns how often each table was drawn, in the rounds and for the game after them, [runs, episodes, 32], both
    players' mean reward in that game, [player, runs, episodes], and the followers' regret in units of its bound.
    """
    run, payoffs = torch.arange(len(policies))[:, None], unit_payoffs(returns[1])
    places = torch.as_tensor(table_index(np.eye(NUM_OBSERVATIONS, dtype=np.int64)))

    def draw(n: int) -> torch.Tensor:
        """Returns the index of a table of the leader's for each episode of the first n runs."""
        return ((torch.rand(n, args.batch_episodes, NUM_OBSERVATIONS) < policies[:n, None]) * places).sum(-1)

    hedge, tables = Hedge(rounds, args.batch_episodes), draw(len(policies))
    counts = torch.zeros_like(hedge.payoffs)
    for t in range(rounds.max()):
        n = (rounds > t).sum()  # the other runs have had their rounds
        drawn = draw(n) if args.explore == "round" else tables[:n]
        hedge.update(payoffs[run[:n], drawn])
        counts[:n] += one_hot(drawn, len(TABLES))
    counts += one_hot(tables, len(TABLES))
    replies = torch.multinomial(hedge.reply(args.reply).flatten(0, 1), 1).view_as(tables)
    return counts, returns[:, run, tables, replies], hedge.share_of_bound()


# ------------------------------------------------------------------------------------------------------ leader training
def train_leaders(leaders: torch.Tensor, returns: torch.Tensor, rounds: torch.Tensor, args: Args) -> list[np.ndarray]:
    """PPO on the leaders' logits of action 1, [runs, 5], in place. Returns the index of the greedy table, both players'
    mean reward and the largest regret in units of its bound after each batch: [batches, runs], but [batches, 2, runs].

    In PPO's objective an answer counts A min(r, 1 + c) if its advantage A > 0, else A max(r, 1 - c), where the ratio r
    depends on its observation and action alone. So advantages are summed first, by these and by sign, which is exact.
    """
    optimizer, history = torch.optim.Adam([leaders], lr=args.learning_rate, eps=args.adam_eps), []
    takes = one_hot(torch.as_tensor(TABLES)).float()  # [32, 5, 2]: a table's action in each observation
    signs = torch.tensor([-1.0, 1.0])
    for _ in tqdm(range(args.num_episodes // args.batch_episodes), desc="leaders", leave=False, disable=None):
        counts, rewards, share_of_bound = play_episodes(leaders.detach().sigmoid(), returns, rounds, args)
        # All answers of an episode have its one return. So would a value: it is gone with the mean of the batch.
        advantages = rewards[0] - rewards[0].mean(dim=1, keepdim=True)
        advantages /= advantages.std(dim=1, keepdim=True) + 1e-8
        shares = counts / counts.sum(dim=(1, 2), keepdim=True)
        gains = torch.einsum("re,ret,toa->roa", advantages.clamp(min=0), shares, takes)
        losses = torch.einsum("re,ret,toa->roa", advantages.clamp(max=0), shares, takes)

        old_logprobs = logsigmoid(signs * leaders.detach()[..., None])
        for _ in range(args.update_epochs):
            ratio = (logsigmoid(signs * leaders[..., None]) - old_logprobs).exp()
            objective = gains * ratio.clamp(max=1 + args.clip_coef) + losses * ratio.clamp(min=1 - args.clip_coef)
            optimizer.zero_grad()
            (-objective.sum()).backward()  # runs share no parameter, so none depends on another
            optimizer.step()
        tables = table_index((leaders.detach() > 0).long().numpy())
        history.append((tables, rewards.mean(dim=2).numpy(), share_of_bound.amax(dim=1).numpy()))
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


def results_of(arm: dict, history: list[np.ndarray], leaders: np.ndarray, writer: SummaryWriter, args: Args) -> list:
    """Writes the mean curves of an arm's leaders; returns what result.json says about each of them. `history` is what
    `train_leaders` returns, of these leaders; they end with probabilities of action 1, [seeds, 5]."""
    (tables, rewards, shares), game = history, args.games[arm["env_id"]]
    returns = returns_of_tables(game)
    exact = evaluate(game, returns, arm["rounds"], args.reply)
    optimum = exact["leader_return_exact"].max()
    episode_steps = arm["rounds"] * (NUM_OBSERVATIONS + args.num_steps) + args.num_steps
    steps = episode_steps * args.batch_episodes * np.arange(1, len(tables) + 1)
    curves = {name: values[tables] for name, values in exact.items()}
    curves |= {name: game.payoff(i, rewards[:, i]) for i, name in enumerate(("leader_return", "follower_return"))}
    curves |= {"regret_share_of_bound": shares, "stackelberg_value": np.full(shares.shape, optimum)}
    for name, values in curves.items():
        for step, value in zip(steps.tolist(), values.mean(axis=1), strict=True):
            writer.add_scalar(f"charts/{name}", value, step)

    runs = []
    mixtures = np.where(TABLES == 1, leaders[:, None], 1 - leaders[:, None]).prod(axis=2)  # [seeds, 32]
    mixture_returns = game.payoff(0, best_response(returns, mixtures)[0])
    for i, final in enumerate(tables[-1]):
        greedy, exploring = curves["leader_return_greedy"][:, i], curves["leader_return"][:, i]
        run = {**arm, "seed": args.seed + i, "stackelberg_value": optimum}
        run["leader_return"] = exploring[-math.ceil(len(steps) / 10) :].mean()
        run |= {name: values[final] for name, values in exact.items()}
        run["leader_return_best"] = exact["leader_return_greedy"].max()  # of all tables
        run["mixture_return_exact"] = mixture_returns[i]  # of the leader as it explores, redrawn in each round
        run["regret_share_of_bound"] = shares[:, i].max().item()
        run |= {"leader_policy": TABLES[final].tolist(), "leader_probabilities": leaders[i].tolist()}
        for name, values in (("steps_to_converge", greedy), ("steps_to_converge_exploring", exploring)):
            run[name] = steps_to_converge(steps, (values - optimum) / game.scale[0])
        run["curve"] = [[*point] for point in zip(steps.tolist(), greedy, exploring.tolist(), strict=True)]
        runs.append(run)
    return runs


def finish(result: dict, run_path: str) -> None:
    """Writes result.json, of which nobody ever meets half, and says in words what was found."""
    with open(f"{run_path}/result.json.tmp", "w") as file:
        json.dump(result, file)
    os.replace(f"{run_path}/result.json.tmp", f"{run_path}/result.json")
    print(f"\n{result['env_id']}: runs that end within 0.05 of the optimum of deterministic memory-1 leaders")
    print("  rounds  greedy   exploring  best table less the optimum  follower's regret  regret / bound")
    for rounds in sorted(result["args"]["rounds"]):
        runs = [run for run in result["runs"] if run["rounds"] == rounds]
        kinds = "steps_to_converge", "steps_to_converge_exploring"
        greedy, exploring = (f"{sum(run[kind] is not None for run in runs)}/{len(runs)}" for kind in kinds)
        gaps = [run["leader_return_best"] - run["stackelberg_value"] for run in runs]
        regret, share = np.mean([run["follower_regret"] for run in runs]), max(r["regret_share_of_bound"] for r in runs)
        gap = f"{min(gaps):+.2f} to {max(gaps):+.2f}"
        print(f"  {rounds:<8}{greedy:<9}{exploring:<11}{gap:<29}{regret:<19.3f}at most {share:.2f}")
    print(f"  curves  tensorboard --logdir {run_path}\n  result  {run_path}/result.json")


def main(args: Args) -> dict:
    """Trains all leaders as one batch; returns what it writes to result.json."""
    torch.set_num_threads(1)  # a thread pool costs more than it gives with tensors of this size
    start_time, run_path = time.time(), start_run(args)
    torch.manual_seed(args.seed)
    # an arm is a game and a number of rounds; its leaders, one for each seed, are neighbours in the batch
    product = itertools.product(sorted(args.rounds, reverse=True), args.games)
    arms = [{"env_id": env_id, "rounds": rounds} for rounds, env_id in product]
    writers = [start_writer(f"{run_path}/{arm['env_id']}__rounds-{arm['rounds']}", args) for arm in arms]
    of_run = [arm for arm in arms for _ in range(args.num_seeds)]
    returns = np.stack([returns_of_tables(args.games[arm["env_id"]]) for arm in of_run], axis=1)
    leaders = torch.nn.Parameter(0.01 * torch.randn(len(of_run), NUM_OBSERVATIONS))
    rounds = torch.tensor([arm["rounds"] for arm in of_run])
    history = train_leaders(leaders, torch.as_tensor(returns, dtype=torch.float32), rounds, args)

    runs, probabilities = [], leaders.detach().sigmoid().numpy()
    for i, (arm, writer) in enumerate(zip(arms, writers, strict=True)):
        here = slice(i * args.num_seeds, (i + 1) * args.num_seeds)
        runs += results_of(arm, [x[..., here] for x in history], probabilities[here], writer, args)
        writer.add_scalar("charts/SPS", runs[-1]["curve"][-1][0] * args.num_seeds / (time.time() - start_time))
        writer.close()
    result = {"script": os.path.basename(__file__), "env_id": args.env_id, "seed": args.seed, "args": asdict(args)}
    result |= {"runs": runs, "wall_seconds": time.time() - start_time}
    result["steps_per_second"] = sum(run["curve"][-1][0] for run in runs) / result["wall_seconds"]
    finish(result, run_path)
    return result


if __name__ == "__main__":
    main(tyro.cli(Args, description=__doc__))
