"""Trains agents: `python training.py --env_name ant`. See `--help` for every flag."""

import contextlib
import dataclasses
import os
import re
import signal
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from envs import make_env
from src import devices
from src.checkpoint import PARAMS_FILE, CheckpointWriter, host_arrays
from src.loggers import check_wandb
from src.plan import describe_plan, seeds_that_fit, smaller_plans
from src.run_folder import Checkpoint, SeedRun, find_checkpoints, load_run_state, lock, seed_configs, trained_together
from src.showcase import Showcase
from src.train import Moment, Program, RunState, make_program, run
from utils import (
    NEWEST,
    Config,
    ConfigError,
    Progress,
    command_line,
    derive_schedule,
    parse_config,
)

# Exit statuses besides 0: a run that went wrong, bad input, left by a signal and ready to be resumed.
FAILED, REFUSED, INTERRUPTED = 1, 2, 75


def main(args: list[str]) -> int:
    """Runs the command line; returns the exit status."""
    with contextlib.ExitStack() as until_the_end:
        try:
            config = parse_config(args)
            check_wandb(config)
            devices.spread_over_cores(config)
            devices.join(config)
            batches = seed_batches(config)
        except ValueError as error:  # ConfigError, and what the environments refuse
            print(f"error: {error}", file=sys.stderr)
            return REFUSED
        if not devices.is_first_process():
            nowhere = until_the_end.enter_context(open(os.devnull, "w"))
            until_the_end.enter_context(contextlib.redirect_stdout(nowhere))
        interruption = until_the_end.enter_context(Interruption().noticed())
        try:
            return train_batches(batches, config, interruption)
        except (MemoryError, jax.errors.JaxRuntimeError) as error:
            if not isinstance(error, MemoryError) and not re.search("RESOURCE_EXHAUSTED|[Oo]ut of memory", str(error)):
                raise
            print(out_of_memory(batches[0], error), file=sys.stderr)
            return FAILED


def seed_batches(config: Config) -> list[Config]:
    """One config for each group of seeds that are trained together; the groups are trained one after the other.

    Raises:
      ValueError: an env that cannot be built, a group that does not divide among the devices, or a `--resume RUN_DIR`
        that could mean one group only.
    """
    named = config.resume not in (None, NEWEST)
    resumed = trained_together(config) if config.resume == NEWEST and config.num_seeds > 1 else None
    size = config.seed_batch or resumed or config.num_seeds
    if named and size < config.num_seeds:
        raise ConfigError(
            f"--resume {config.resume} goes on with the seeds of one --seed_batch: give a bare --resume, which goes on "
            f"with all, or --num_seeds {size}"
        )
    if config.num_seeds > 1 and not (config.seed_batch or resumed or named):
        sizes, memory = make_env(config.env_name, config.backend).sizes, devices.memory_per_device()
        if memory and config.checkpoint_replay and jax.default_backend() == "cpu":
            memory //= 2  # for the copy of the replay that a checkpoint is written from
        size = seeds_that_fit(config, sizes, devices.count(config), memory)
    end = config.seed + config.num_seeds
    batches = [
        dataclasses.replace(config, seed=first, num_seeds=min(size, end - first))
        for first in range(config.seed, end, size)
    ]
    for batch in batches:
        devices.make_mesh(batch)
    return batches


def train_batches(batches: list[Config], whole: Config, interruption: "Interruption") -> int:
    """Trains one batch of seeds after the other; returns the exit status of all."""
    statuses = []
    # A bare --resume stands for all batches. It repeats their size, which another machine might not choose.
    again = command_line(dataclasses.replace(whole, resume=NEWEST, seed_batch=batches[0].num_seeds))
    for batch in batches:
        last = batch.seed + batch.num_seeds - 1
        if len(batches) > 1:
            print(f"seeds       {batch.seed} to {last}, of {whole.num_seeds}")
        statuses.append(train_batch(batch, None if batch == whole else again, interruption))
        if statuses[-1] in (REFUSED, INTERRUPTED) or whole.dry_run:
            return statuses[-1]
        if batch is not batches[-1] and any(devices.in_any_process(bool(interruption.requested))):
            print(f"{interruption.reason()}: left after seed {last}; go on with  {again}", flush=True)
            return INTERRUPTED
    return max(statuses)


def train_batch(config: Config, again: str | None, interruption: "Interruption") -> int:
    """Trains the seeds of `config` together; returns the exit status. `again` is the command that goes on if the run is
    interrupted; None if the seeds are all there are: then their folder is named."""
    with contextlib.ExitStack() as locks:
        task, refused = None, False
        try:
            task = prepare(config, locks)
        except ValueError as error:
            refused = True
            print(f"error: {error}", file=sys.stderr)
        position = task and task.resumed and task.resumed.position
        here = f"{refused} {task is None} {position} {dataclasses.replace(config, process_id=0)}"
        if not devices.same_in_all_processes(here):
            print("error: another process refused, or has another command or another checkpoint", file=sys.stderr)
            return REFUSED
        if task is None:
            return REFUSED if refused else 0
        # One run folder stands for all seeds that were trained together. Only the first process has it, and prints.
        folder = str(task.runs[0].run_dir) if task.runs else NEWEST
        return train(task, again or command_line(dataclasses.replace(config, resume=folder)), interruption)


def out_of_memory(config: Config, error: Exception) -> str:
    """The line that says what to lower, and by how much."""
    sizes = make_env(config.env_name, config.backend).sizes
    lower = smaller_plans(config, sizes, devices.count(config), devices.memory_per_device())
    reason = next(iter(str(error).splitlines()), type(error).__name__)
    return f"error: out of memory; {lower} ({reason})"


class Task(NamedTuple):
    """What `train` trains: the seeds, their folders (of the first process only), and where to go on, if not anew."""

    program: Program
    seeds: list[int]
    runs: list[SeedRun]
    resumed: RunState | None


def prepare(config: Config, locks: contextlib.ExitStack) -> Task | None:
    """What there is to train, if anything; the run folders are ours until `locks` is closed.

    Raises:
      ValueError: a request that cannot be carried out.
    """
    schedule = derive_schedule(config)
    checkpoints = find_checkpoints(config) if config.resume else []
    if checkpoints and all(checkpoint.finished(schedule) for checkpoint in checkpoints):
        for checkpoint in checkpoints:
            print(f"nothing left to train: {checkpoint.run_dir} is finished; a larger --num_timesteps goes on")
        return None
    left_out = config.num_seeds - len(checkpoints) if checkpoints else 0
    program = make_program(dataclasses.replace(config, num_seeds=config.num_seeds - left_out), schedule)
    print(describe_plan(program.config, schedule, program.env.env.sizes, program.mesh.devices.shape), flush=True)
    if config.dry_run:
        return None
    if config.resume and not checkpoints:
        print(f"resume      no run of these names, env and seed with a checkpoint in {config.output_dir}: a new one")
    if left_out:
        print(f"resume      without the {left_out} seeds that stopped on their own")
    starts = [(each.config, each) for each in checkpoints] or [(own, None) for own in seed_configs(config)]
    runs = [SeedRun(*each) for each in starts] if devices.is_first_process() else []
    for seed_run in runs:
        locks.enter_context(lock(seed_run.run_dir))
    seeds = [own.seed for own, _ in starts]
    return Task(program, seeds, runs, go_on(program, checkpoints) if checkpoints else None)


def go_on(program: Program, checkpoints: list[Checkpoint]) -> RunState:
    """The state to go on from, and says so.

    Raises:
      ConfigError: a checkpoint cannot be read.
    """
    resumed = load_run_state(program, checkpoints)
    steps, per_step = resumed.position.training_steps, program.schedule.env_steps_per_training_step
    print(f"resume      at {steps * per_step:,} env steps, from {checkpoints[0].path}")
    if not checkpoints[0].manifest["replay"]:
        refilled = min(steps, program.schedule.prefill_steps) * per_step
        print(f"resume      the checkpoint has no replay: filling it by {refilled:,} env steps of the current policy")
    return resumed


class Interruption:
    """Notices the signals that ask a run to leave: SIGTERM, SIGINT and SIGUSR1.

    Before training has `started` there is nothing to save, and after a first Ctrl-C the second one is meant: the
    process ends at once then.
    """

    def __init__(self):
        self.requested = ""
        self.started = False

    def notice(self, number: int, _frame: object) -> None:
        again = number == signal.SIGINT and self.requested == "SIGINT"
        self.requested = signal.Signals(number).name
        if again or not self.started:
            os.write(2, f"\n{self.requested}: leaving at once\n".encode())
            os._exit(130 if again else INTERRUPTED)

    def reason(self) -> str:
        """Why all processes leave, if this one does."""
        return self.requested or "another process was interrupted"

    @contextlib.contextmanager
    def noticed(self) -> Iterator["Interruption"]:
        """Receives the signals inside the `with`; only a process's main thread can."""
        numbers = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)
        numbers = numbers if threading.current_thread() is threading.main_thread() else ()
        before = {number: signal.signal(number, self.notice) for number in numbers}
        try:
            yield self
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


def train(task: Task, again: str, interruption: Interruption) -> int:
    """Trains all seeds of the task, logging and saving into their folders; returns the exit status. `again` is the
    command that goes on if the run is interrupted."""
    program, seeds, runs, resumed = task
    config, schedule = program.config, program.schedule
    cache = enable_compilation_cache() if config.compilation_cache else "off"
    kinds = [device.device_kind for device in program.mesh.devices.flat]
    progress = Progress(schedule.total_env_steps)
    interruption.started = False
    recorder = Recorder(program, runs, kinds, progress, interruption)
    print(f"device      {kinds[0]} x {len(kinds)}, compilation cache {cache}")
    print(f"flags       {config}", flush=True)
    started = time.monotonic()
    try:
        for moment in run(program, seeds, progress.announce, resumed):
            interruption.started = True
            recorder.record(moment)
            interrupted, failed = devices.in_any_process(bool(interruption.requested), recorder.all_failed())
            if interrupted or failed:
                break
        left_early = moment.run_state.position.evaluated_at < schedule.eval_at[-1] and interrupted
        if left_early:
            recorder.checkpoint(moment)
    finally:
        written = recorder.close()
    for seed_run in runs:
        if seed_run.failure:
            print(f"error: seed {seed_run.config.seed} stopped: {seed_run.failure}", file=sys.stderr)
    if not written:
        print("error: not everything could be written, see the warnings above", file=sys.stderr)
    if left_early:
        print(f"{interruption.reason()}: left at {moment.env_steps:,} env steps; go on with  {again}", flush=True)
        return INTERRUPTED if written else FAILED
    print(summary(runs, moment.env_steps, time.monotonic() - started), flush=True)
    return 0 if written and not any(seed_run.failure for seed_run in runs) else FAILED


class Recorder:
    """What each moment of a run leaves behind: numbers checked, metrics logged, parameters and checkpoints saved.

    With several processes each has one, as all take part in reading what is spread over them; only that of the first
    has `runs` to write to.
    """

    def __init__(
        self, program: Program, runs: list[SeedRun], kinds: list[str], progress: Progress, interruption: Interruption
    ):
        """Opens the run folders. An `interruption` does not wait for what is only drawn."""
        self.runs = runs
        self.interruption = interruption
        self.progress = progress
        self.writer = CheckpointWriter(progress.announce)
        self.showcase = Showcase(program, progress.announce)
        self.seconds_between = 60 * program.config.checkpoint_every or float("inf")
        self.keep_replay = program.config.checkpoint_replay
        self.saved_at, self.saved_position = time.monotonic(), None
        for seed_run in runs:
            seed_run.open(program, kinds, [each.run_dir.name for each in runs], self.writer.wait)
            print(f"run folder  {seed_run.run_dir}", flush=True)

    def record(self, moment: Moment) -> None:
        totals = devices.fetch(moment.run_state.totals)
        for index, seed_run in enumerate(self.runs):
            own = {f"training/{name}": value for name, value in self._own(totals, index).items()}
            seed_run.watch(own, moment.env_steps)
        if moment.metrics is None:
            self.progress.update(moment.env_steps, moment.speed)
            if any(devices.in_any_process(self._is_due())):
                self.checkpoint(moment)
        else:
            agent_state = devices.fetch(moment.run_state.train_state.agent_state)
            self._report(moment, agent_state)
            self.checkpoint(moment)
            if self.showcase.due(moment.run_state.position):
                self._show(moment, agent_state)  # once the parameters are on the disk
        for seed_run in self.runs:
            seed_run.checked_at = moment.env_steps

    def _report(self, moment: Moment, agent_state: Any) -> None:
        for index, seed_run in enumerate(self.runs):
            if not seed_run.failure:
                own = self._own(agent_state, index)
                seed_run.report(moment.metrics[index], moment.env_steps, own, moment.env_resets[index])
        healthy = [moment.metrics[index] for index, each in enumerate(self.runs) if not each.failure]
        self.progress.evaluated(moment.env_steps, mean_metrics(healthy or moment.metrics))

    def all_failed(self) -> bool:
        """Whether no seed is left to train."""
        return bool(self.runs) and all(seed_run.failure for seed_run in self.runs)

    def _is_due(self) -> bool:
        return time.monotonic() - self.saved_at > self.seconds_between

    def _show(self, moment: Moment, agent_state: Any) -> None:
        for index, seed_run in enumerate(self.runs):
            if not (seed_run.failure or self.interruption.requested):
                own = self._own(agent_state, index)
                self.showcase.show(seed_run.run_dir, own, moment.run_state.position, moment.env_steps)

    def checkpoint(self, moment: Moment) -> None:
        """Starts to write a checkpoint of every healthy seed, if this moment has none yet."""
        train_state, totals, position = moment.run_state
        if position == self.saved_position:
            return
        if not self.keep_replay:
            train_state = train_state.replace(buffer_state=None)
        self.writer.wait()  # or the copy below would be the third in memory
        arrays = host_arrays({"train_state": train_state, "totals": totals})
        checkpoints = {}
        for index, seed_run in enumerate(self.runs):
            own = self._own(arrays, index)
            learned = {name: value for name, value in own.items() if name.startswith("train_state/agent_state/params")}
            seed_run.watch(learned, moment.env_steps)
            if not seed_run.failure:
                checkpoints[seed_run.run_dir] = (own, seed_run.manifest(position, moment.env_steps))
        if checkpoints:
            self.writer.save(checkpoints)
        self.saved_at, self.saved_position = time.monotonic(), position

    def _own(self, tree: Any, index: int) -> Any:
        """The part of one seed; only a run of several seeds has a seed axis."""
        return jax.tree.map(lambda leaf: leaf[index, ...], tree) if len(self.runs) > 1 else tree

    def close(self) -> bool:
        """Closes everything, and whether all that the run must leave is on disk."""
        self.writer.wait()
        return all([seed_run.close() for seed_run in self.runs]) and self.writer.complete


def mean_metrics(metrics: list[dict[str, float]]) -> dict[str, float]:
    """The mean over seeds of each metric."""
    return {name: float(np.mean([each[name] for each in metrics])) for name in metrics[0]}


def summary(runs: list[SeedRun], env_steps: int, seconds: float) -> str:
    """The closing lines of a run."""
    healthy = [seed_run.metrics for seed_run in runs if not seed_run.failure]
    metrics = mean_metrics(healthy) if healthy else {}
    speed = f", {metrics['training/sps']:,.0f} env steps/s last" if "training/sps" in metrics else ""
    lines = [f"{'done' if healthy else 'stopped'}: {env_steps:,} env steps a seed in {seconds:.0f} s{speed}"]
    if "eval/episode_success" in metrics:
        lines.append(f"  success rate    {metrics['eval/episode_success_any']:.3f} of the episodes reach the goal")
        lines.append(f"  time near goal  {metrics['eval/episode_success']:.1f} env steps per episode")
    lines += [f"  files           {seed_run.run_dir}/ (metrics.csv, {PARAMS_FILE})" for seed_run in runs]
    return "\n".join(lines)


def enable_compilation_cache() -> str:
    """Turns on JAX's persistent cache; the folder is $JAX_COMPILATION_CACHE_DIR or one under the user's cache."""
    base = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache"))
    folder = os.environ.get("JAX_COMPILATION_CACHE_DIR", str(base / "crl" / "jax"))
    jax.config.update("jax_compilation_cache_dir", folder)
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)
    return folder


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
