"""Runs the scripts behind the paper's figures, in parallel, and writes what `plot.py` draws them from.

    python benchmark/run.py fig1 && python benchmark/plot.py fig1

A figure is a list of runs, each a script with flags. A run has its own folder below --run-dir and is finished once its
result.json is there. So an interrupted command goes on where it stopped, and figures share their runs. When all have
ended, the figure's CSVs are written to benchmark/results, and a table is printed.
"""

import contextlib
import csv
import fcntl
import hashlib
import importlib
import importlib.util
import io
import itertools
import json
import multiprocessing
import multiprocessing.connection
import os
import re
import shutil
import signal
import sys
import tempfile
import threading
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, NoReturn

import numpy as np
import tyro
from tqdm import tqdm

ROOT = Path(__file__).resolve().parent.parent
tqdm.set_lock(threading.RLock())  # else it makes a semaphore, of which a killed process leaves a warning behind
Figure = Literal["fig1", "fig2", "fig3", "fig4", "fig5", "fig6", "fig8", "theorem2", "es_md", "all"]


@dataclass
class Args:
    figures: tyro.conf.Positional[tuple[Figure, ...]] = ()
    """figures of the paper to make; es_md: the learning curves of evolution strategies; all: all of them"""
    seeds: int | None = None
    """seeds of every run: 1, 2, ...; default: 5 in Figures 1 and 8, 3 in Figure 2 and for evolution strategies, and
    the scripts' own number elsewhere"""
    jobs: int | None = None
    """runs at a time; default: the cores that this process may use, or whatever SLURM gives"""
    quick: bool = False
    """a small version of the figures, in a minute or two; its CSVs go to RUN_DIR/quick"""
    run_dir: str = "runs/benchmark"
    """folder that every run's own folder is made in"""
    results_dir: str | None = None
    """folder for the CSVs; default: benchmark/results"""
    cluster: Literal["local", "slurm"] | None = None
    """start the runs with submitit: slurm submits an array, one task per run; local tries the same on this machine"""
    slurm_partition: str | None = None
    """partition for --cluster slurm"""
    slurm_minutes: int = 240
    """time limit of each task for --cluster slurm"""


# ------------------------------------------------------------------------------------------------- the figures' runs
GAMES = ("prisoners_dilemma", "stag_hunt", "assurance", "coordination", "mixedharmony", "harmony")
GAMES += ("noconflict", "deadlock", "prisoners_delight", "hero", "battle", "chicken")
META_RL = ("stackelberg_ppo_matrix", "stackelberg_pg_matrix", "stackelberg_dqn_matrix", "replay_follower_matrix")

# script: seconds of one run (for the time left, and to start long ones first)
SECONDS = {"stackelberg_ppo_matrix": 5, "stackelberg_pg_matrix": 7, "stackelberg_dqn_matrix": 8}
SECONDS |= {"replay_follower_matrix": 1, "ppo_qlearning_matrix": 12, "es_md_matrix": 3, "theorem2_divergence": 20}
SECONDS |= {
    "hidden_queries": 3,
    "noninvariant_leader": 8,
    "leader_reward_during_learning": 3,
    "continuous_follower": 3,
}
SECONDS |= {"stackelberg_ppo_atari_trade": 150}

# script: flags of the small version
QUICK_META_RL = {"follower_timesteps": 5250, "total_timesteps": 10_000, "verification_iterations": 1}
QUICK = {
    "stackelberg_ppo_matrix": QUICK_META_RL,
    "stackelberg_pg_matrix": QUICK_META_RL,
    "stackelberg_dqn_matrix": QUICK_META_RL | {"learning_starts": 1000},
    "replay_follower_matrix": {"total_timesteps": 4000, "verification_iterations": 1},
    "ppo_qlearning_matrix": {"total_timesteps": 33_000, "evaluation_followers": 4},
    "es_md_matrix": {"total_timesteps": 1_500_000, "evaluation_followers": 4},
    "theorem2_divergence": {"num_episodes": 200},
    "hidden_queries": {"total_timesteps": 10_000},
    "noninvariant_leader": {"total_timesteps": 5200},
    "leader_reward_during_learning": {"total_timesteps": 440},
    "continuous_follower": {"total_timesteps": 5500},
    "stackelberg_ppo_atari_trade": {
        "num_envs": 1,
        "follower_timesteps": 200,
        "total_timesteps": 500,
        "verification_timesteps": 50,
        "eval_episodes": 1,
    },
}


@dataclass(frozen=True)
class Run:
    """A script and its flags (by the names in the script's Args)."""

    script: str
    flags: dict = field(hash=False)

    @property
    def name(self) -> str:
        """The run's folder: the same run has the same name, whichever figure asks for it."""
        return "__".join([self.script, *(f"{flag.replace('_', '-')}-{value}" for flag, value in self.flags.items())])

    @property
    def argv(self) -> list[str]:
        return [word for flag, value in self.flags.items() for word in (f"--{flag.replace('_', '-')}", str(value))]


def per_seed(args: Args, script: str, seeds: int, **settings: tuple) -> list[Run]:
    """A run for each combination of settings and each seed, for a script that trains one leader."""
    seeds = args.seeds or (1 if args.quick else seeds)
    quick = QUICK[script] if args.quick else {}
    return [
        Run(script, {**dict(zip(settings, values, strict=True)), "seed": seed, **quick})
        for seed in range(1, seeds + 1)
        for values in itertools.product(*settings.values())
    ]


def all_seeds(args: Args, script: str, **settings) -> list[Run]:
    """A run for a script that trains all seeds side by side."""
    seeds = {"num_seeds": args.seeds or 2} if args.seeds or args.quick else {}
    return [Run(script, {**settings, **seeds, **(QUICK[script] if args.quick else {})})]


def fig1(args: Args) -> list[Run]:
    """Twelve games: the Meta-RL scripts, PPO + Q-learning, and evolution strategies."""
    runs = [run for script in META_RL for run in per_seed(args, script, 5, env_id=GAMES)]
    return runs + per_seed(args, "ppo_qlearning_matrix", 5, env_id=GAMES) + es_md(args)


def fig2(args: Args) -> list[Run]:
    """Trade in Space Invaders, led by the seller and by the buyer."""
    return per_seed(args, "stackelberg_ppo_atari_trade", 3, leader=("seller", "buyer"), num_threads=(1,))


def fig3(args: Args) -> list[Run]:
    """Hidden and observed queries, with the authors' learning rates (and PG's largest elsewhere)."""
    rates = {"pg": (0.00005, 0.0002, 0.0008, 0.008, 0.03), "dqn": (0.01,), "es": (0.004, 0.015)}
    settings = [(leader, rate) for leader, of_leader in rates.items() for rate in of_leader]
    return [
        run for leader, rate in settings for run in all_seeds(args, "hidden_queries", leader=leader, learning_rate=rate)
    ]


def fig4(args: Args) -> list[Run]:
    """A leader that can tell queries from play, and one that cannot."""
    arms = ("invariant", "noninvariant")
    return [run for arm in arms for run in all_seeds(args, "noninvariant_leader", arm=arm)]


def fig5(args: Args) -> list[Run]:
    """Reward given or withheld while the follower learns."""
    arms = ("withheld", "given")
    return [run for arm in arms for run in all_seeds(args, "leader_reward_during_learning", reward=arm)]


def fig6(args: Args) -> list[Run]:
    """The follower's Q-table reset or kept."""
    return [run for arm in ("reset", "kept") for run in all_seeds(args, "continuous_follower", arm=arm)]


def fig8(args: Args) -> list[Run]:
    """Figure 1's PPO + Q-learning beside the Meta-RL follower, to 2M steps."""
    return [run for run in fig1(args) if run.script in ("stackelberg_ppo_matrix", "ppo_qlearning_matrix")]


def theorem2(args: Args) -> list[Run]:
    """Every arm of the divergence experiment."""
    learners = ("parameter_noise", "epsilon_greedy", "reinforce")
    arms = [f"{queries}_{learner}" for queries in ("hidden", "observed") for learner in learners]
    return [run for arm in [*arms, "hidden_epsilon_soft"] for run in all_seeds(args, "theorem2_divergence", arm=arm)]


def es_md(args: Args) -> list[Run]:
    """Evolution strategies, 10^8 steps in every game."""
    return per_seed(args, "es_md_matrix", 3, env_id=GAMES)


FIGURES = {function.__name__: function for function in (fig1, fig2, fig3, fig4, fig5, fig6, fig8, theorem2, es_md)}


# ------------------------------------------------------------------------------------------------------------- one run
@contextlib.contextmanager
def output_to(path: Path) -> Iterator[None]:
    """Sends all output of this process to a file, that of libraries written in C too."""
    kept = os.dup(1), os.dup(2)
    with open(path, "wb") as log:
        os.dup2(log.fileno(), 1)
        os.dup2(log.fileno(), 2)
    try:
        yield
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        for number, copy in zip((1, 2), kept, strict=True):
            os.dup2(copy, number)
            os.close(copy)


def execute(name: str, script: str, argv: list[str], run_dir: str) -> str | None:
    """Executes a run in this process; returns None if it is finished, or the end of its log if it failed.

    It works in a folder of its own under RUN_DIR/unfinished, which gets the run's name when it is complete. So neither
    an interruption nor a second process at the same run can leave half a run behind.
    """
    os.makedirs(os.path.join(run_dir, "unfinished"), exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix=f"{name}.", dir=os.path.join(run_dir, "unfinished")))
    with output_to(folder / "log.txt"):
        try:
            sys.path[:0] = [path for path in (str(ROOT), str(ROOT / "ablations")) if path not in sys.path]
            module = importlib.import_module(script)  # the first time; after that it is there, and so is torch
            (folder / "source.sha256").write_text(hashlib.sha256(Path(module.__file__).read_bytes()).hexdigest())
            module.main(module.parse_args([*argv, "--run-dir", str(folder)]))
        except SystemExit:
            pass  # the script has printed its line
        except Exception:
            traceback.print_exc()
    if not list(folder.glob("*/result.json")):
        return end_of_log(folder)
    try:
        os.rename(folder, os.path.join(run_dir, name))
    except OSError:  # another process has finished the same run in the meantime
        shutil.rmtree(folder)
    return None


def end_of_log(folder: Path) -> str:
    """Returns where the log is and its last lines."""
    lines = (folder / "log.txt").read_text(errors="replace").rstrip().splitlines()
    return "\n".join([f"  {folder / 'log.txt'}", *(f"  | {line}" for line in lines[-8:])])


# ------------------------------------------------------------------------------------------------- many runs at a time
def num_cores() -> int:
    """Returns how many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def work(pipe, run_dir: str) -> None:
    """A worker process: executes the runs that come through the pipe, and ends with the process that started it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the process that started it
    threading.Thread(target=lambda: (multiprocessing.parent_process().join(), os._exit(1)), daemon=True).start()
    with contextlib.suppress(EOFError):
        while True:
            run = pipe.recv()
            pipe.send(execute(run.name, run.script, run.argv, run_dir))


def run_in_processes(runs: list[Run], jobs: int, run_dir: str) -> Iterator[tuple[Run, str | None]]:
    """Executes runs in `jobs` processes, each of which imports torch once; yields each run and its error, as they end.

    A worker that dies (out of memory, say) costs the run it was at, and is replaced.
    """
    context, waiting, workers = multiprocessing.get_context("spawn"), list(runs), {}

    def start_worker() -> None:
        pipe, other_end = context.Pipe()
        process = context.Process(target=work, args=(other_end, run_dir), daemon=True)
        process.start()
        other_end.close()
        workers[pipe] = [process, None]
        give_work(pipe)

    def give_work(pipe) -> None:
        workers[pipe][1] = waiting.pop(0)
        pipe.send(workers[pipe][1])

    try:
        while waiting and len(workers) < jobs:
            start_worker()
        while workers:
            for pipe in multiprocessing.connection.wait(list(workers)):
                process, run = workers[pipe]
                try:
                    error = pipe.recv()
                except EOFError:
                    process.join()
                    del workers[pipe]
                    error = f"  its process died with exit code {process.exitcode}"
                    for folder in Path(run_dir, "unfinished").glob(f"{run.name}.*"):
                        error += "\n" + end_of_log(folder)
                    if waiting:
                        start_worker()
                else:
                    if waiting:
                        give_work(pipe)
                    else:
                        del workers[pipe]
                        pipe.close()
                yield run, error
    finally:
        for process, _ in workers.values():
            process.kill()


def run_on_cluster(runs: list[Run], args: Args) -> Iterator[tuple[Run, str | None]]:
    """Executes runs through submitit, one task of an array per run; yields each run and its error, as they end."""
    import submitit

    executor = submitit.AutoExecutor(os.path.join(args.run_dir, "submitit"), cluster=args.cluster)
    executor.update_parameters(name="stackelberg", cpus_per_task=1, mem_gb=4, timeout_min=args.slurm_minutes)
    # SLURM has a queue; submitit's local executor has none, and would start everything at once
    at_a_time = max(1, len(runs))
    if args.cluster == "slurm":
        executor.update_parameters(slurm_partition=args.slurm_partition, slurm_array_parallelism=args.jobs or 256)
    else:
        at_a_time = args.jobs or num_cores()
    for batch in (runs[i : i + at_a_time] for i in range(0, len(runs), at_a_time)):
        with executor.batch():
            jobs = [executor.submit(execute, run.name, run.script, run.argv, args.run_dir) for run in batch]
        runs_of = dict(zip((job.job_id for job in jobs), batch, strict=True))
        for job in submitit.helpers.as_completed(jobs, poll_frequency=1):
            error = job.exception()
            if error is None:
                error = job.result()
            else:
                error = "\n".join(f"  | {line}" for line in [*str(error).splitlines(), f"log: {job.paths.stderr}"][-8:])
            yield runs_of[job.job_id], error


# ------------------------------------------------------------------------------------------------ results and tables
TOLERANCE = 0.05  # per step, in the paper's scale: what passes for the optimum
NUM_POINTS = 60  # of a curve in a CSV

# What tells the runs of a figure apart, seeds aside
LABELS = dict.fromkeys(FIGURES, ("script", "env_id"))
LABELS |= {"fig3": ("leader", "learning_rate", "arm"), "fig4": ("arm", "learning_rate"), "fig6": ("arm",)}
LABELS |= {"fig2": ("leader",), "fig5": ("env_id", "reward"), "theorem2": ("queries", "learner", "start")}
# and the columns of a run beside its labels and its seed
COLUMNS = dict.fromkeys(FIGURES, ("leader_return", "stackelberg_value", "leader_regret", "follower_regret"))
COLUMNS |= dict.fromkeys(
    ("fig1", "fig8", "es_md"),
    (*COLUMNS["fig1"], "steps_to_converge", "steps_to_0.1", "wall_seconds", "steps_per_second"),
)
COLUMNS["theorem2"] = ("o_D_cooperate", "tit_for_tat", "diverged", "return_0")
COLUMNS["fig2"] += ("episodes", "optimal_leader_price", "share_at_optimum", "acceptance_rate")
COLUMNS["fig2"] += (
    "seller_bullet_value",
    "seller_bullet_value_error",
    "buyer_bullet_value",
    "buyer_bullet_value_error",
)
COLUMNS["fig2"] += ("buyer_hits_per_shot", "buyer_hits_per_bullet", "best_responses_at_5_prices", "verification_gain")
COLUMNS["fig2"] += ("verification_gain_error", "global_step", "wall_seconds")


# Where the leader with its probabilities is drawn beside the greedy one: in training, which is the paper's measure of
# PPO + Q-learning, or against exact best responses
AS_IT_IS = {"fig8": "training_curve", "es_md": "mixed_curve"}
METHODS = {"replay_follower_matrix": "replay", "stackelberg_ppo_matrix": "PPO", "stackelberg_pg_matrix": "PG"}
METHODS |= {"stackelberg_dqn_matrix": "DQN", "ppo_qlearning_matrix": "PPO + Q-learning", "es_md_matrix": "ES-MD"}


def thin(curve: list[list[float]]) -> list[list[float]]:
    """Leaves out the points inside level stretches, which loses nothing, and then, if there are still more than
    NUM_POINTS, keeps the means of blocks of points, each at the step of its last one."""
    inner = zip(curve, curve[1:], curve[2:], strict=False)
    kept = [point for before, point, after in inner if not before[1] == point[1] == after[1]]
    kept = [*curve[:1], *kept, *curve[1:][-1:]]
    if len(kept) <= NUM_POINTS:
        return kept
    blocks = np.array_split(np.array(curve), NUM_POINTS)
    return [[int(block[-1, 0]), float(block[:, 1].mean())] for block in blocks]


def steps_to_stay(curve: list[list[float]], value: float, tolerance: float) -> int | None:
    """Returns the first step from which a curve stays within `tolerance` of a value; None if it does not end there."""
    missed = [step for step, return_ in curve if abs(return_ - value) > tolerance + 1e-9]
    return next((step for step, _ in curve if not missed or step > missed[-1]), None)


def trade_curve(folder: Path, leader: str, steps: list[int]) -> list[dict]:
    """Returns the points of an Atari run's leader training, those at `steps`, from its TensorBoard curves; `price` is
    what the leader commits to."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder), size_guidance={"scalars": 0})
    events.Reload()
    tags = {"price": {"seller": "price_offered", "buyer": "price_limit"}[leader], "acceptance": "acceptance_rate"}
    tags |= {"leader_return": "leader_return", "follower_return": "follower_return"}
    columns = {}
    for column, tag in tags.items():
        at = {event.step: event.value for event in events.Scalars(f"charts/{tag}")}
        columns[column] = [at[step] for step in steps]
    blocks = np.array_split(np.array([steps, *columns.values()]), min(NUM_POINTS, len(steps)), axis=1)
    return [{"step": int(b[0, -1]), **dict(zip(columns, b[1:].mean(1).tolist(), strict=True))} for b in blocks]


def trade_columns(result: dict) -> dict:
    """Returns what an Atari run's result holds in lists and tables, by column."""
    columns = {"share_at_optimum": result["leader_prices"][str(result["optimal_leader_price"])]}
    for player, value, error in zip(
        ("seller", "buyer"), result["bullet_values"], result["bullet_value_errors"], strict=True
    ):
        columns |= {f"{player}_bullet_value": value, f"{player}_bullet_value_error": error}
    columns["best_responses_at_5_prices"] = sum(row["best_response_rate"] == 1 for row in result["best_responses"])
    return columns


def rows_of(figure: str, runs: list[Run], run_dir: str) -> tuple[list[dict], list[dict]]:
    """Reads the results of the finished runs; returns the rows of the figure's two CSVs: one for each point of a curve
    (script, game, seed, step, return, regret, ...), and one for each run."""
    points, ends = [], []
    for run in runs:
        for path in Path(run_dir, run.name).glob("*/result.json"):
            result = json.loads(path.read_text())
            result["script"] = result["script"].removesuffix(".py")
            for row in result.get("table", []):  # Theorem 2 has counts instead of curves
                queries, learner = row.pop("arm").split("_", 1)
                points.append({label: result[label] for label in ("script", "env_id")})
                points[-1] |= {"queries": queries, "learner": learner, **row}
            for leader in result.get("runs", [result]):
                found = {**result["args"], **result, **leader}
                if figure == "theorem2":
                    found["queries"], found["learner"] = found["arm"].split("_", 1)
                    q_init, step = found["q_init"], found["learning_rate"]
                    found["start"] = f"steps of {step:g}" if q_init is None else f"Q from {q_init:g}"
                labels = {label: found[label] for label in (*LABELS[figure], "seed")}
                if figure == "fig2":
                    found |= trade_columns(found)
                if "steps_to_converge" in found:
                    found["steps_to_0.1"] = steps_to_stay(found["curve"], found["stackelberg_value"], 0.1)
                ends.append(labels | {column: found[column] for column in COLUMNS[figure]})
                if figure == "theorem2":
                    continue
                if figure == "fig2":
                    curve = trade_curve(path.parent, found["leader"], [step for step, _ in leader["curve"]])
                    points += [labels | point for point in curve]
                    continue
                curves = {"greedy": leader["curve"]}
                if figure in AS_IT_IS:
                    curves |= {"as it is": leader.get(AS_IT_IS[figure], [])}
                for policy, curve in curves.items():
                    for step, return_ in thin(curve):
                        point = {"step": step, "leader_return": return_}
                        point["leader_regret"] = found["stackelberg_value"] - return_
                        points.append(labels | ({"policy": policy} if figure in AS_IT_IS else {}) | point)
    return points, ends


def csv_names(figure: str) -> tuple[str, str, str]:
    """Returns the names of the CSVs with a figure's curves, runs and summary."""
    prefix = "fig1_es_md" if figure == "es_md" else figure
    return "atari_trade_curves" if figure == "fig2" else prefix, f"{prefix}_runs", f"{prefix}_summary"


def write_csv(path: Path, rows: list[dict]) -> None:
    """Writes rows with the same keys, numbers with 6 digits, to a file that is never there by half."""

    def cell(value) -> str:
        return "" if value is None else f"{value + 0.0:.6g}" if isinstance(value, float) else str(value)

    with open(f"{path}.tmp", "w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(rows[0])
        writer.writerows([cell(value) for value in row.values()] for row in rows)
    os.replace(f"{path}.tmp", path)


def summarise(figure: str, ends: list[dict]) -> list[dict]:
    """Returns a row for each setting: how many runs end at the optimum, and the quartiles of what matters, which is the
    steps to get there, or the return at the end."""
    groups: dict[tuple, list[dict]] = {}
    for end in ends:
        groups.setdefault(tuple(end[label] for label in LABELS[figure]), []).append(end)
    rows = []
    for labels, group in sorted(groups.items(), key=lambda item: order(item[0])):
        row = dict(zip(LABELS[figure], labels, strict=True)) | {"runs": len(group)}
        if figure == "theorem2":
            rows.append(row | {column: sum(end[column] for end in group) for column in COLUMNS[figure]})
            continue
        row["at_optimum"] = sum(abs(end["leader_regret"]) <= TOLERANCE + 1e-9 for end in group)
        column, name = (
            ("steps_to_converge", "steps") if "steps_to_converge" in group[0] else ("leader_return", "return")
        )
        values = sorted(np.inf if end[column] is None else end[column] for end in group)
        for quartile, share in (("q25", 0.25), ("median", 0.5), ("q75", 0.75)):
            # no interpolation: it has no meaning between a number of steps and never
            value = values[int(share * (len(values) - 1) + 0.5)]
            row[f"{quartile}_{name}"] = None if value == np.inf else value
        rows.append(row)
    return rows


def order(labels: tuple) -> tuple:
    """Sorts games and scripts as the figures have them, and everything else by its value."""
    known = [*GAMES, *SECONDS]
    return tuple(
        (known.index(x), "", 0) if x in known else (99, "", x) if isinstance(x, float) else (99, str(x), 0)
        for x in labels
    )


def table(figure: str, rows: list[dict]) -> str:
    """Returns a figure's summary as text: columns, or a Markdown table of games and methods."""

    def cell(value) -> str:
        if value is None:
            return "-"
        return f"{value + 0.0:.4g}" if isinstance(value, float) else str(value)

    if "env_id" in rows[0] and "median_steps" in rows[0]:
        methods = [script for script in METHODS if any(row["script"] == script for row in rows)]
        lines = [["game", *(METHODS[script] for script in methods)], [""] * (len(methods) + 1)]
        for game in [game for game in GAMES if any(row["env_id"] == game for row in rows)]:
            of_game = {row["script"]: row for row in rows if row["env_id"] == game}
            lines.append([game, *(steps_cell(of_game[script]) if script in of_game else "" for script in methods)])
        widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
        lines[1] = ["-" * width for width in widths]
        padded = ([f"{text:<{width}}" for text, width in zip(line, widths, strict=True)] for line in lines)
        return "\n".join(f"| {' | '.join(line)} |" for line in padded)
    lines = [list(rows[0]), *([cell(value) for value in row.values()] for row in rows)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join("  ".join(f"{text:>{width}}" for text, width in zip(line, widths, strict=True)) for line in lines)


def steps_cell(row: dict) -> str:
    """Returns how many runs end at the optimum, and the median and the quartiles of their steps to it."""

    def short(steps) -> str:
        if steps is None:
            return "never"
        unit, name = (1e6, "M") if steps >= 1e6 else (1e3, "k") if steps >= 1e3 else (1, "")
        return f"{float(f'{steps / unit:.3g}'):g}{name}"

    low, median, high = (short(row[f"{quartile}_steps"]) for quartile in ("q25", "median", "q75"))
    return f"{row['at_optimum']}/{row['runs']} {median}" + (f" ({low} to {high})" if low != high else "")


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
    """Exits with 2 if a flag is wrong."""
    if not args.figures:
        fail(f"which figure? Choose from {', '.join(FIGURES)}, or all")
    for flag in ("seeds", "jobs", "slurm_minutes"):
        value = getattr(args, flag)
        if value is not None and value <= 0:
            fail(f"--{flag.replace('_', '-')} must be positive, got {value}")
    if args.cluster and importlib.util.find_spec("submitit") is None:
        fail("--cluster needs submitit: pip install submitit")
    if args.cluster == "slurm" and shutil.which("sbatch") is None:
        fail("--cluster slurm needs SLURM's sbatch, which is not on this machine")


def check_folder(flag: str, folder: str) -> None:
    """Exits with 2 if a folder is not there and cannot be made."""
    there = next(path for path in (Path(folder).absolute(), *Path(folder).absolute().parents) if path.exists())
    if not there.is_dir() or not os.access(there, os.W_OK):
        fail(f"{flag} {folder}: cannot make a folder in {there}")


def lock(run_dir: str) -> Callable:
    """Takes --run-dir for this process alone, as long as it lives. Exits with 2 if another one has it."""
    os.makedirs(run_dir, exist_ok=True)
    file = open(os.path.join(run_dir, ".lock"), "w")  # noqa: SIM115
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        fail(f"--run-dir {run_dir}: another run.py is at work there")
    return file


# ------------------------------------------------------------------------------------------------------------- the run
def main(args: Args) -> int:
    """Runs what is missing of the figures and writes their CSVs; returns the exit code: 1 if a run failed."""
    check_flags(args)
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # the models are so small that a second thread only costs
    figures = [name for name in FIGURES if name in args.figures or "all" in args.figures]
    runs = list({run.name: run for figure in figures for run in FIGURES[figure](args)}.values())
    results_dir = Path(args.results_dir or (Path(args.run_dir, "quick") if args.quick else ROOT / "benchmark/results"))
    check_folder("--run-dir", args.run_dir)
    check_folder("--results-dir", results_dir)
    held = lock(args.run_dir)
    results_dir.mkdir(parents=True, exist_ok=True)
    if not args.cluster:  # what an interrupted run left; tasks on a cluster may still be at work there
        shutil.rmtree(os.path.join(args.run_dir, "unfinished"), ignore_errors=True)

    missing = [run for run in runs if not list(Path(args.run_dir, run.name).glob("*/result.json"))]
    missing.sort(key=lambda run: -SECONDS[run.script])
    print(f"{len(runs)} runs, {len(runs) - len(missing)} of them finished before, in {args.run_dir}", flush=True)
    for script in dict.fromkeys(run.script for run in runs if run not in missing):
        source = next(path for path in (ROOT / f"{script}.py", ROOT / f"ablations/{script}.py") if path.exists())
        now = hashlib.sha256(source.read_bytes()).hexdigest()
        digests = [path.read_text() for path in Path(args.run_dir).glob(f"{script}__*/source.sha256")]
        if old := sum(digest != now for digest in digests):
            where = os.path.join(args.run_dir, f"{script}__*")
            print(f"note: {old} of them are from another version of {script}.py; to make them anew: rm -r {where}")

    failed, done = [], len(runs) - len(missing)
    started = run_on_cluster(missing, args) if args.cluster else None
    started = started or run_in_processes(missing, args.jobs or num_cores(), args.run_dir)
    # the bar counts seconds, not runs, so that the time left is right although some runs are much longer than others
    layout = "{desc} {percentage:3.0f}%|{bar}| {elapsed} gone, {remaining} left"
    with tqdm(
        desc=f"{done} of {len(runs)} runs",
        total=sum(SECONDS[run.script] for run in missing),
        bar_format=layout,
        disable=None,
    ) as bar:
        try:
            for run, error in started:
                if error is None:
                    done += 1
                else:
                    failed.append(run)
                    tqdm.write(f"failed: {run.script}.py {' '.join(run.argv)}\n{error}", file=sys.stderr)
                bar.set_description_str(f"{done} of {len(runs)} runs")
                bar.update(SECONDS[run.script])
        except KeyboardInterrupt:
            started.close()
            bar.close()
            print(f"interrupted: {done} of {len(runs)} runs are finished and kept; the same command goes on from there")
            return 130

    with contextlib.suppress(OSError):  # it is empty, unless a run failed
        os.rmdir(os.path.join(args.run_dir, "unfinished"))
    for figure in figures:
        points, ends = rows_of(figure, FIGURES[figure](args), args.run_dir)
        if not ends:
            continue
        summary = summarise(figure, ends)
        for name, rows in zip(csv_names(figure), (points, ends, summary), strict=True):
            if name != "theorem2_runs":  # thousands, whose counts are in the table
                write_csv(results_dir / f"{name}.csv", rows)
        print(f"\n{figure}\n{table(figure, summary)}\n  results  {results_dir / csv_names(figure)[0]}.csv and so on")
    if failed:
        print(f"\n{len(failed)} of {len(runs)} runs failed (see above) and are not in the results", file=sys.stderr)
    held.close()
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main(parse_args()))
