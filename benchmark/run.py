"""Runs the scripts behind the paper's figures, in parallel, and writes what `plot.py` draws them from.

    python benchmark/run.py fig1 && python benchmark/plot.py fig1

A figure is a list of runs, each a script with flags. A run has its own folder below --run-dir and is finished once its
result.json is there. So an interrupted command goes on where it stopped, and figures share their runs. When all have
ended, the figure's CSVs are written to benchmark/results, and a table is printed.
"""

import fcntl
import hashlib
import importlib.util
import itertools
import json
import multiprocessing
import multiprocessing.connection
import os
import shutil
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal, NamedTuple, get_args

import numpy as np
import pandas as pd
import submitit
import tyro
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tqdm import tqdm

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "ablations"), str(ROOT / "benchmark")]
tqdm.set_lock(threading.RLock())  # else it makes a semaphore, of which a killed process leaves a warning behind
Figure = Literal[
    *("fig1", "fig2", "fig3", "fig4", "fig5", "fig6", "fig8", "theorem2", "es_md", "recurrent", "league", "all"),
]


@dataclass
class Args:
    figures: tyro.conf.Positional[tuple[Figure, ...]] = ()
    """figures of the paper to make; es_md: the learning curves of evolution strategies; recurrent: a follower without
    queries; league: every method on all 144 ordinal games; all: all of them"""
    scripts: tuple[str, ...] = ()
    """run only these scripts of the figures, as stackelberg_ppo_matrix; what the CSVs hold of the others stays"""
    seeds: int | None = None
    """seeds of every run: 1, 2, ...; default: 5 in Figures 1 and 8, 10 in 2, 3 for es_md and recurrent, each method's
    own in the league, the scripts' own elsewhere"""
    jobs: int | None = None
    """runs at a time; default: the cores that this process may use, 256 with SLURM"""
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

    def __post_init__(self):
        if not self.figures:
            raise ValueError(f"which figure? Choose from {', '.join(get_args(Figure))}")
        for flag, value in asdict(self).items():
            if type(value) is int and value <= 0:
                raise ValueError(f"--{flag.replace('_', '-')} must be positive, got {value}")
        if self.cluster == "slurm" and shutil.which("sbatch") is None:
            raise ValueError("--cluster slurm needs SLURM's sbatch, which is not on this machine")
        if "all" in self.figures:
            self.figures = get_args(Figure)[:-1]
        if self.jobs is None:
            cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
            self.jobs = 256 if self.cluster == "slurm" else cores
        if unknown := {*self.scripts} - {*QUICK}:
            raise ValueError(f"no script {', '.join(unknown)}: choose from {', '.join(QUICK)}")
        if self.results_dir is None:
            self.results_dir = f"{self.run_dir}/quick" if self.quick else str(ROOT / "benchmark/results")


# ------------------------------------------------------------------------------------------------- the figures' runs
GAMES = ("prisoners_dilemma", "stag_hunt", "assurance", "coordination", "mixedharmony", "harmony")
GAMES += ("noconflict", "deadlock", "prisoners_delight", "hero", "battle", "chicken")
META_RL = ("stackelberg_ppo_matrix", "stackelberg_pg_matrix", "stackelberg_dqn_matrix")

# script: flags of its small version; scripts whose runs are long come first, because they are started first
QUICK_META_RL = {"follower_timesteps": 5250, "total_timesteps": 10_000, "verification_iterations": 1}
QUICK_ATARI = {"gameplay_timesteps": 200, "follower_timesteps": 200, "total_timesteps": 500}
QUICK_ATARI |= {"verification_timesteps": 50}
QUICK = {
    "stackelberg_ppo_atari_trade": QUICK_ATARI | {"num_envs": 1, "eval_episodes": 1},
    "hidden_queries": {"follower_timesteps": 5200, "total_timesteps": 10_000},
    "noninvariant_leader": {"follower_timesteps": 5200, "total_timesteps": 5200},
    "theorem2_divergence": {"num_episodes": 200},
    "ppo_qlearning_matrix": {"total_timesteps": 33_000, "evaluation_followers": 4},
    "stackelberg_dqn_matrix": QUICK_META_RL | {"learning_starts": 1000},
    "stackelberg_pg_matrix": QUICK_META_RL,
    "stackelberg_ppo_matrix": QUICK_META_RL,
    "recurrent_follower_matrix": {"follower_timesteps": 6400, "trials_per_leader": 1, "num_trials": 640},
    "es_md_matrix": {"population": 32, "total_timesteps": 1_500_000, "evaluation_followers": 4},
    "no_regret_follower": {"rounds": (3,), "num_episodes": 320},
    "diff_md_matrix": {"unroll": (3,), "iterations": 5},
    "vectorized_ppo_matrix": {"total_timesteps": 60_000},
    "hindsight_follower": {"rounds": 5, "leader_updates": 5},
    "mixed_commitment_matrix": {"generations": 5},
    "leader_reward_during_learning": {"total_timesteps": 440},
    "continuous_follower": {"total_timesteps": 5500},
}


class Run(NamedTuple):
    """A script and its flags (by the names in the script's Args)."""

    script: str
    flags: dict

    @property
    def name(self) -> str:
        """The run's folder: the same run has the same name, whichever figure asks for it."""
        values = {flag: value if isinstance(value, tuple) else (value,) for flag, value in self.flags.items()}
        flags = ("-".join(map(str, (flag.replace("_", "-"), *value))) for flag, value in values.items())
        name = "__".join([self.script, *flags]).replace("/", "-")
        # file systems take 255 letters
        return name if len(name) < 220 else f"{name[:200]}__{hashlib.sha256(name.encode()).hexdigest()[:12]}"


def grid(args: Args, script: str, seeds: int | None = None, **settings: tuple) -> list[Run]:
    """Returns a run for each combination of settings and each of the seeds 1, 2, ...; without `seeds` the script trains
    its own number of them side by side."""
    quick = QUICK[script] if args.quick else {}
    if seeds is not None:
        settings["seed"] = tuple(range(1, 1 + (args.seeds or (1 if args.quick else seeds))))
    elif args.seeds or args.quick:
        quick = {"num_seeds": args.seeds or 2} | quick
    combinations = itertools.product(*settings.values())
    return [Run(script, dict(zip(settings, values, strict=True)) | quick) for values in combinations]


# a run has one core, and a gameplay network of its own
ATARI = {"stage": ("all",), "save_model": (True,)}


def runs_of_figures(args: Args) -> dict[str, list[Run]]:
    """Returns the runs of every figure."""
    es_md = grid(args, "es_md_matrix", 3, env_id=GAMES)
    q_learning = grid(args, "ppo_qlearning_matrix", 5, env_id=GAMES)
    ppo, *others = (grid(args, script, 5, env_id=GAMES) for script in META_RL)

    # Figure 3: the authors' learning rates, and PG's largest elsewhere
    rates = {"pg": (0.00005, 0.0002, 0.0008, 0.008, 0.03), "dqn": (0.01,), "es": (0.004, 0.015)}
    followers = {"follower": ("exact", "meta")}
    fig3 = (grid(args, "hidden_queries", leader=(name,), learning_rate=rates[name], **followers) for name in rates)
    # Figure 6: our learning rate and the paper's, our epsilon and Adam's usual one
    fig6 = {"learning_rate": (0.008, 0.156), "adam_eps": (0.02, 1e-8), "arm": ("reset", "kept")}
    return {
        "fig1": [*ppo, *itertools.chain(*others), *q_learning, *es_md],
        "fig2": grid(args, "stackelberg_ppo_atari_trade", 10, leader=("seller", "buyer"), **ATARI),
        "fig3": list(itertools.chain(*fig3)),
        "fig4": grid(args, "noninvariant_leader", arm=("invariant", "noninvariant"), **followers),
        "fig5": grid(args, "leader_reward_during_learning", reward=("withheld", "given")),
        "fig6": grid(args, "continuous_follower", **fig6),
        "fig8": [*ppo, *q_learning],
        "theorem2": grid(args, "theorem2_divergence"),
        "es_md": es_md,
        "recurrent": grid(args, "recurrent_follower_matrix", 3, env_id=GAMES),
        **({"league": [run for _, run in league_runs(args)]} if "league" in args.figures else {}),
    }


def league_runs(args: Args) -> list[tuple[NamedTuple, Run]]:
    """Returns the runs of all methods, each with its method; in the small version one of each on one game."""
    import league  # here, since each run's process imports this file, too

    seeds, games = (args.seeds or 1, (f"{GAMES[0]}-{GAMES[1]}",)) if args.quick else (args.seeds, ())
    runs = [(method, *run) for method in league.METHODS for run in league.runs_of(method, seeds, games)]
    return [(method, Run(script, flags | (QUICK[script] if args.quick else {}))) for method, script, flags in runs]


# ------------------------------------------------------------------------------------------------------------- one run
def execute(run: Run, run_dir: str) -> None:
    """Executes a run in this process, which is there for it alone: in a folder under RUN_DIR/unfinished that gets the
    run's name when it is complete, so that neither an interruption nor a second process leaves half a run behind. What
    an interrupted run of a script with `--resume` left there goes on."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the process that started this one,
    if parent := multiprocessing.parent_process():  # which this one does not outlive
        threading.Thread(target=lambda: (parent.join(), os._exit(1)), daemon=True).start()
    sys.path[:0] = [str(ROOT), str(ROOT / "ablations")]  # for a task on a cluster, which gets this function alone
    os.makedirs(f"{run_dir}/unfinished", exist_ok=True)
    begun = Path(run_dir, "unfinished").glob(f"{run.name}.*/*/checkpoint.pt")
    begun = [file.parent for file in begun if (file.parents[1] / "source.sha256").read_text() == digest(run.script)]
    folder = begun[0].parent if begun else tempfile.mkdtemp(prefix=f"{run.name}.", dir=f"{run_dir}/unfinished")
    folder = Path(folder)
    with open(folder / "log.txt", "ab") as log:  # for all output, that of libraries written in C too
        os.dup2(log.fileno(), 1)
        os.dup2(log.fileno(), 2)
    (folder / "source.sha256").write_text(digest(run.script))
    module, start = importlib.import_module(run.script), time.process_time()
    flags = {"resume": str(begun[0])} if begun else run.flags | {"run_dir": str(folder)}
    module.main(module.Args(**flags))
    (folder / "cpu_seconds").write_text(f"{time.process_time() - start:.3f}")
    shutil.rmtree(f"{run_dir}/{run.name}", ignore_errors=True)  # it has no result.json, or the same one
    os.rename(folder, f"{run_dir}/{run.name}")


def digest(script: str) -> str:
    """Returns the fingerprint of a script's source."""
    return hashlib.sha256(Path(importlib.util.find_spec(script).origin).read_bytes()).hexdigest()


def result_of(run: Run, run_dir: str) -> Path | None:
    """Returns the result.json of a run, or its runs.csv, or None if it is not finished."""
    files = (file for name in ("result.json", "runs.csv") for file in Path(run_dir, run.name).glob(f"*/{name}"))
    return next(files, None)


def end_of_log(run: Run, run_dir: str) -> str:
    """Returns where the log of a failed run is, and its last lines."""
    logs = sorted(Path(run_dir, "unfinished").glob(f"{run.name}.*/log.txt"), key=os.path.getmtime)
    lines = logs[-1].read_text(errors="replace").rstrip().splitlines()[-8:] if logs else []
    return "\n".join([f"  log {path}" for path in logs[-1:]] + [f"  | {line}" for line in lines])


# ------------------------------------------------------------------------------------------------- many runs at a time
def run_in_processes(runs: list[Run], args: Args) -> Iterator[tuple[Run, str]]:
    """Executes runs, some at a time, each in its own process; yields each run and how its process ended. One that dies
    (out of memory, say) takes nothing with it, where a pool of processes would break."""
    context = multiprocessing.get_context("forkserver")
    libraries = "gymnasium pandas submitit torch._dynamo torch.utils.tensorboard tqdm tyro"
    context.set_forkserver_preload(libraries.split())  # once for all; torch._dynamo is for torch.optim
    waiting, at_work = list(runs), {}
    try:
        while waiting or at_work:
            while waiting and len(at_work) < args.jobs:
                run = waiting.pop(0)
                process = context.Process(target=execute, args=(run, args.run_dir), daemon=True)
                process.start()
                at_work[process.sentinel] = process, run
            for sentinel in multiprocessing.connection.wait(list(at_work)):
                process, run = at_work.pop(sentinel)
                process.join()
                yield run, f"exit code {process.exitcode}"
    finally:
        for process, _ in at_work.values():
            process.kill()


def run_on_cluster(runs: list[Run], args: Args) -> Iterator[tuple[Run, str]]:
    """Executes runs through submitit, one task of an array per run; yields each run and where its task's logs are."""
    executor = submitit.AutoExecutor(f"{args.run_dir}/submitit", cluster=args.cluster)
    executor.update_parameters(name="stackelberg", cpus_per_task=1, mem_gb=4, timeout_min=args.slurm_minutes)
    executor.update_parameters(slurm_partition=args.slurm_partition, slurm_array_parallelism=args.jobs)
    # SLURM has a queue; submitit's local executor has none, and would start everything at once
    at_a_time = len(runs) if args.cluster == "slurm" else args.jobs
    for batch in (runs[i : i + at_a_time] for i in range(0, len(runs), at_a_time)):
        with executor.batch():
            jobs = [executor.submit(execute, run, args.run_dir) for run in batch]
        for job in submitit.helpers.as_completed(jobs, poll_frequency=1):
            yield batch[jobs.index(job)], f"task {job.job_id}, {job.paths.stderr}"


# ------------------------------------------------------------------------------------------------- results and tables
TOLERANCE = 0.05 + 1e-6  # per step, in the paper's scale: what passes for the optimum
NUM_POINTS = 50  # of a curve in a CSV

# What tells the runs of a figure apart, seeds aside
LABELS = {"fig2": ["leader"], "fig3": ["follower", "leader", "learning_rate", "arm"]}
LABELS |= {"fig4": ["follower", "arm", "learning_rate"], "fig5": ["env_id", "reward"]}
LABELS |= {"fig6": ["learning_rate", "adam_eps", "arm"], "theorem2": ["arm", "q_init", "learning_rate"]}
LABELS["recurrent"] = ["env_id", "leader"]
LABELS |= {figure: ["script", "env_id"] for figure in ("fig1", "fig8", "es_md")}

METHODS = {"stackelberg_ppo_matrix": "PPO", "stackelberg_pg_matrix": "PG", "stackelberg_dqn_matrix": "DQN"}
METHODS |= {"ppo_qlearning_matrix": "PPO + Q-learning", "es_md_matrix": "ES-MD"}
METHODS["replay_follower_matrix"] = "replay (at 123dc58)"  # the rows of a script that is no longer here


def thin(curve: pd.DataFrame) -> pd.DataFrame:
    """Returns a curve of at most NUM_POINTS points: each stands for a block of points, with the step and the greedy
    return of its last one, and the means of the rest, which is noisy."""
    block = np.arange(len(curve)) * min(NUM_POINTS, len(curve)) // len(curve)
    last = curve[curve.columns.intersection(["step", "leader_return_greedy"])].groupby(block).last()
    return curve.groupby(block).mean().assign(**last)


def trade_curve(folder: Path, result: dict) -> pd.DataFrame:
    """Returns an Atari run's curves from its event files, stage by stage: `price` is what the leader commits to,
    `acceptance_at_...` what the follower makes of each of its prices."""
    events = EventAccumulator(str(folder), size_guidance={"scalars": 0}).Reload()
    seller_leads = result["args"]["leader"] == "seller"
    columns = {"price_offered" if seller_leads else "price_limit": "price", "acceptance_rate": "acceptance"}
    kept = ("leader_return", "follower_return", "seller_hits_per_shot", "buyer_hits_per_shot", *columns)
    curves = {}
    for tag in events.Tags()["scalars"]:
        name = tag.removeprefix("charts/")
        if name in kept or name.startswith("acceptance_at_"):
            curves[columns.get(name, name)] = {event.step: event.value for event in events.Scalars(tag)}
    curves = pd.DataFrame(curves).rename_axis("step").sort_index().reset_index()
    stages, steps = zip(*result["stage_steps"].items(), strict=True)
    stage = np.searchsorted(np.cumsum(steps), curves["step"])
    parts = [thin(curves[stage == k].reset_index(drop=True)).assign(stage=name) for k, name in enumerate(stages)]
    return pd.concat(parts, ignore_index=True)


def trade_columns(result: dict) -> dict:
    """Returns what an Atari run's result holds in lists and tables, by column."""
    columns = {"share_at_optimum": result["leader_prices"][str(result["optimal_leader_price"])]}
    for aim, when in (("aim_before", "before_"), ("aim", "")):
        for how, measured in result[aim].items():
            for i, player in enumerate(("seller", "buyer")):
                columns |= {f"{player}_{name}_{when}{how}": values[i] for name, values in measured.items()}
    for how, rows in result["best_responses"].items():
        for row in rows:
            columns[f"acceptance_at_{row['leader_price']}_{how}"] = row["acceptance_rate"]
            columns[f"best_response_at_{row['leader_price']}_{how}"] = row["best_response_rate"]
            columns[f"tie_at_{row['leader_price']}_{how}"] = int(row["tie"])
    return columns


def read(figure: str, path: Path) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Reads a result.json; returns its rows of the figure's two CSVs: one for each point of a curve, and one for each
    run, with every number that the result holds. Scripts that train all seeds side by side have several runs in one."""
    result = json.loads(path.read_text())
    result["script"] = result["script"].removesuffix(".py")
    curves, ends = [], []
    for run in result.get("runs", [result]):
        found = {**result["args"], **result, **run}
        labels = {label: found[label] for label in (*LABELS[figure], "seed")}
        if figure == "theorem2":  # it has counts instead of curves
            curve = pd.DataFrame()
        elif figure == "fig2":
            run = run | trade_columns(result)
            curve = trade_curve(path.parent, result)
        else:
            curve = thin(pd.DataFrame(run["curve"], columns=["step", "leader_return_greedy", "leader_return"]))
        curves.append(pd.DataFrame(labels, index=curve.index).join(curve))
        of_all = {"stackelberg_value": found["stackelberg_value"], "follower_steps": found.get("follower_steps", 0)}
        numbers = {name: value for name, value in run.items() if isinstance(value, int | float)}
        never = {name: np.nan for name, value in run.items() if name.startswith("steps_to_converge") and value is None}
        ends.append(labels | of_all | numbers | never)
    return pd.DataFrame(result["table"]) if figure == "theorem2" else pd.concat(curves), pd.DataFrame(ends)


def read_league(method: NamedTuple, path: Path) -> pd.DataFrame:
    """Returns the league's rows of a run of a method."""
    import league

    seconds = path.parents[1] / "cpu_seconds"  # not there in runs of former versions
    cpu_seconds = float(seconds.read_text()) if seconds.exists() else np.nan
    return league.rows_of(method, path, cpu_seconds)


def write_csv(path: str, rows: pd.DataFrame) -> None:
    """Writes a table, numbers with 6 digits, to a file that is never there by half."""
    rows = rows.assign(**rows.select_dtypes("float").round(9) + 0.0)  # no minus before a zero
    rows.convert_dtypes().to_csv(f"{path}.tmp", index=False, float_format="%.6g")  # whole numbers stay whole
    os.replace(f"{path}.tmp", path)


def beside_others(rows: pd.DataFrame, path: str) -> pd.DataFrame:
    """Returns rows of some scripts together with those that a CSV holds of others, in the order of METHODS."""
    others = pd.read_csv(path) if os.path.exists(path) else rows[:0]
    rows = pd.concat([rows, others[~others["script"].isin(rows["script"])]])
    return rows.sort_values("script", key=lambda column: column.map(list(METHODS).index), kind="stable")


def summarise(figure: str, ends: pd.DataFrame) -> pd.DataFrame:
    """Returns a row for each setting: how many runs end at the optimum (and in each way that the script tells apart),
    and the medians of both measures of what matters: the steps to get there, or else the return at the end."""
    measures = ["leader_return_greedy", "leader_return"]
    at_optimum = ends[measures].sub(ends["stackelberg_value"], axis=0).abs() <= TOLERANCE
    if "script" in ends:  # Figures 1 and 8: every run says after how many steps
        measures = ["steps_to_converge", "steps_to_converge_exploring"]
        at_optimum = ends[measures].notna()
    ends = ends.assign(at_optimum=at_optimum[measures[0]], at_optimum_exploring=at_optimum[measures[1]])
    ends[measures] = ends[measures].fillna(np.inf)  # never
    groups = ends.groupby(LABELS[figure], sort=False, dropna=False)
    counts = groups[list(ends.select_dtypes("bool"))].sum()
    worse = "higher" if "script" in ends else "lower"  # the worse of two in the middle: never and a number have no mean
    medians = groups[measures].quantile(0.5, interpolation=worse).replace(np.inf, np.nan).add_prefix("median_")
    return groups.size().to_frame("runs").join([counts, medians]).reset_index()


def table(summary: pd.DataFrame) -> str:
    """Returns a figure's summary as text: columns, or a Markdown table of games and methods, whose cells say for the
    leader as it explores, and then for the greedy one, how many runs end at the optimum, and after how many steps."""
    if "script" not in summary:
        return summary.to_string(index=False, na_rep="-", float_format="{:.4g}".format)

    def cell(row: dict, end: str) -> str:
        steps = row[f"median_steps_to_converge{end}"]
        return f"{row[f'at_optimum{end}']}/{row['runs']} {'never' if pd.isna(steps) else f'{steps:,.0f}'}"

    rows = summary.assign(cell=[f"{cell(row, '_exploring')}; {cell(row, '')}" for row in summary.to_dict("records")])
    cells = rows.set_index(["env_id", "script"])["cell"].unstack(sort=False, fill_value="").rename(columns=METHODS)
    header = ["game (as it explores; greedy)", *cells]
    lines = [header, ["---"] * len(header), *cells.reset_index().to_numpy()]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


# ------------------------------------------------------------------------------------------------------------- the run
def make_results(figure: str, runs: list[Run], args: Args) -> bool:
    """Writes the figure's CSVs and prints its table; returns whether it had to leave out a file."""
    tables, left_out = [], False
    methods = {run.name: method for method, run in league_runs(args)} if figure == "league" else {}
    for run, path in ((run, path) for run in runs if (path := result_of(run, args.run_dir))):
        try:
            tables.append(read_league(methods[run.name], path) if methods else read(figure, path))
        except Exception as error:  # a file that is cut off, or from another version of the script, trips anywhere
            left_out = True
            print(f"{figure}: left out {path} ({error!r}); to run it anew: rm -r {path.parents[1]}", file=sys.stderr)
    if tables and figure == "league":
        import league

        league.write(pd.concat(tables), f"{args.results_dir}/league.csv")
    elif tables:
        points, ends = (pd.concat(parts) for parts in zip(*tables, strict=True))
        prefix = f"{args.results_dir}/{'fig1_es_md' if figure == 'es_md' else figure}"
        if "script" in ends:
            points, ends = beside_others(points, f"{prefix}.csv"), beside_others(ends, f"{prefix}_runs.csv")
        summary = summarise(figure, ends)
        write_csv(f"{prefix}.csv", points)
        write_csv(f"{prefix}_summary.csv", summary)
        if figure != "theorem2":  # thousands, whose counts are in its first table
            write_csv(f"{prefix}_runs.csv", ends)
        print(f"\n{figure}\n{table(summary)}\n  results  {prefix}.csv and so on", flush=True)
    return left_out


def main(args: Args) -> int:
    """Runs what is missing of the figures and writes their CSVs; returns the exit code: 1 if a run failed."""
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # the models are so small that a second thread only costs
    figures = {name: runs for name, runs in runs_of_figures(args).items() if name in args.figures}
    if args.scripts:
        figures = {name: [run for run in runs if run.script in args.scripts] for name, runs in figures.items()}
    runs = list({run.name: run for of_figure in figures.values() for run in of_figure}.values())
    for folder in (args.run_dir, args.results_dir):
        os.makedirs(folder, exist_ok=True)
    lock = open(f"{args.run_dir}/.lock", "w")  # noqa: SIM115
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)  # as long as this process lives
    except OSError:
        raise SystemExit(f"--run-dir {args.run_dir}: another run.py is at work there") from None
    if not args.cluster:  # what an interrupted run left; tasks on a cluster may still be at work there
        for folder in Path(args.run_dir, "unfinished").glob("*"):
            if not any(folder.glob("*/checkpoint.pt")):  # else it goes on from there
                shutil.rmtree(folder, ignore_errors=True)

    missing = [run for run in runs if result_of(run, args.run_dir) is None]
    missing.sort(key=lambda run: list(QUICK).index(run.script))
    print(f"{len(runs)} runs, {len(runs) - len(missing)} of them finished before, in {args.run_dir}", flush=True)
    for script in dict.fromkeys(run.script for run in runs):
        digests = [path.read_text() for path in Path(args.run_dir).glob(f"{script}__*/source.sha256")]
        if older := sum(was != digest(script) for was in digests):
            print(f"note: {older} are from another version of {script}.py; anew: rm -r {args.run_dir}/{script}__*")
    started, failed = run_on_cluster(missing, args) if args.cluster else run_in_processes(missing, args), 0
    try:
        with tqdm(desc="runs", initial=len(runs) - len(missing), total=len(runs), disable=None) as bar:
            for run, how_it_ended in started:
                if result_of(run, args.run_dir) is None:
                    failed += 1
                    text = f"failed: {run.script}.py {run.flags} ({how_it_ended})\n{end_of_log(run, args.run_dir)}"
                    tqdm.write(text, file=sys.stderr)
                bar.update()
    except KeyboardInterrupt:
        started.close()
        done = sum(result_of(run, args.run_dir) is not None for run in runs)
        print(f"interrupted: {done} of {len(runs)} runs are finished and kept; the same command goes on from there")
        return 130

    left_out = [make_results(figure, of_figure, args) for figure, of_figure in figures.items()]
    if failed:
        print(f"\n{failed} of {len(runs)} runs failed (see above) and are not in the results", file=sys.stderr)
    return 1 if failed or any(left_out) else 0


if __name__ == "__main__":
    sys.exit(main(tyro.cli(Args, description=__doc__)))
