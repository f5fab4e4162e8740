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
from typing import Any

import jax
import numpy as np

from src.checkpoint import PARAMS_FILE, CheckpointWriter, host_arrays
from src.run_folder import Checkpoint, SeedRun, find_checkpoints, load_run_state, lock, seed_configs
from src.showcase import Showcase
from src.train import Moment, Program, RunState, make_program, run
from utils import Progress, command_line, derive_schedule, describe_plan, parse_config

# Exit statuses besides 0: a run that went wrong, bad input, left by a signal and ready to be resumed.
FAILED, REFUSED, INTERRUPTED = 1, 2, 75


def main(args: list[str]) -> int:
    """Runs the command line; returns the exit status."""
    with contextlib.ExitStack() as locks:
        try:
            prepared = prepare(args, locks)
        except ValueError as error:  # ConfigError, and what the environments refuse
            print(f"error: {error}", file=sys.stderr)
            return REFUSED
        try:
            return train(*prepared) if prepared else 0
        except (MemoryError, jax.errors.JaxRuntimeError) as error:
            if not isinstance(error, MemoryError) and not re.search("RESOURCE_EXHAUSTED|[Oo]ut of memory", str(error)):
                raise
            lower = "--max_replay_size, --num_envs, --batch_size, --num_eval_envs or --num_seeds"
            print(f"error: out of memory; lower {lower} ({str(error).splitlines()[0]})", file=sys.stderr)
            return FAILED


def prepare(args: list[str], locks: contextlib.ExitStack) -> tuple[Program, list[SeedRun], RunState | None] | None:
    """What `train` takes, or None if there is nothing to train; the run folders are ours until `locks` is closed.

    Raises:
      ValueError: a request that cannot be carried out.
    """
    config = parse_config(args)
    schedule = derive_schedule(config)
    checkpoints = find_checkpoints(config) if config.resume else []
    if checkpoints and all(checkpoint.finished(schedule) for checkpoint in checkpoints):
        print(f"nothing left to train: {checkpoints[0].run_dir} is finished; a larger --num_timesteps goes on")
        return None
    program = make_program(config, schedule)
    env = program.env.env
    print(describe_plan(config, schedule, env.state_dim, env.action_size, env.goal_dim), flush=True)
    if config.dry_run:
        return None
    if config.resume and not checkpoints:
        print(f"resume      no run of these names, env and seed with a checkpoint in {config.output_dir}: a new one")
    runs = [SeedRun(each.config, each) for each in checkpoints] or [SeedRun(own) for own in seed_configs(config)]
    for seed_run in runs:
        locks.enter_context(lock(seed_run.run_dir))
    return program, runs, go_on(program, checkpoints) if checkpoints else None


def go_on(program: Program, checkpoints: list[Checkpoint]) -> RunState:
    """The state to go on from, and says so.

    Raises:
      ConfigError: a checkpoint cannot be read.
    """
    resumed = load_run_state(program, checkpoints)
    steps, per_step = resumed.position.training_steps, program.schedule.env_steps_per_training_step
    print(f"resume      at {steps * per_step:,} env steps, from {checkpoints[0].path}")
    left_out = program.config.num_seeds - len(checkpoints)
    if left_out:
        print(f"resume      without the {left_out} seeds that stopped on their own")
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


def train(program: Program, runs: list[SeedRun], resumed: RunState | None) -> int:
    """Trains all seeds, logging and saving into their folders; returns the exit status."""
    config, schedule = program.config, program.schedule
    cache = enable_compilation_cache() if config.compilation_cache else "off"
    devices = [device.device_kind for device in jax.devices()]
    progress = Progress(schedule.total_env_steps)
    with Interruption().noticed() as interruption:
        recorder = Recorder(program, runs, devices, progress)
        print(f"device      {devices[0]} x {len(devices)}, compilation cache {cache}")
        print(f"flags       {config}", flush=True)
        started = time.monotonic()
        try:
            for moment in run(program, [seed_run.config.seed for seed_run in runs], progress.announce, resumed):
                interruption.started = True
                recorder.record(moment)
                if interruption.requested or all(seed_run.failure for seed_run in runs):
                    break
            left_early = moment.run_state.position.evaluated_at < schedule.eval_at[-1] and interruption.requested
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
        again = command_line(dataclasses.replace(config, resume=str(runs[0].run_dir)))
        print(f"{left_early}: left at {moment.env_steps:,} env steps; go on with  {again}", flush=True)
        return INTERRUPTED if written else FAILED
    print(summary(runs, moment.env_steps, time.monotonic() - started), flush=True)
    return 0 if written and not any(seed_run.failure for seed_run in runs) else FAILED


class Recorder:
    """What each moment of a run leaves behind: numbers checked, metrics logged, parameters and checkpoints saved."""

    def __init__(self, program: Program, runs: list[SeedRun], devices: list[str], progress: Progress):
        """Opens the run folders."""
        self.runs = runs
        self.progress = progress
        self.writer = CheckpointWriter(progress.announce)
        self.showcase = Showcase(program, progress.announce)
        self.seconds_between = 60 * program.config.checkpoint_every or float("inf")
        self.keep_replay = program.config.checkpoint_replay
        self.saved_at, self.saved_position = time.monotonic(), None
        for seed_run in runs:
            seed_run.open(program, devices, [each.run_dir.name for each in runs], self.writer.wait)
            print(f"run folder  {seed_run.run_dir}", flush=True)

    def record(self, moment: Moment) -> None:
        totals = jax.device_get(moment.run_state.totals)
        for index, seed_run in enumerate(self.runs):
            own = {f"training/{name}": value for name, value in self._own(totals, index).items()}
            seed_run.watch(own, moment.env_steps)
        if moment.metrics is None:
            self.progress.update(moment.env_steps, moment.speed)
        else:
            self._report(moment)
        if moment.metrics is not None or time.monotonic() - self.saved_at > self.seconds_between:
            self.checkpoint(moment)
        if moment.metrics is not None and self.showcase.due(moment.run_state.position):
            self._show(moment)  # once the parameters are on the disk
        for seed_run in self.runs:
            seed_run.checked_at = moment.env_steps

    def _report(self, moment: Moment) -> None:
        agent_state = jax.device_get(moment.run_state.train_state.agent_state)
        for index, (seed_run, metrics) in enumerate(zip(self.runs, moment.metrics, strict=True)):
            if not seed_run.failure:
                seed_run.report(metrics, moment.env_steps, self._own(agent_state, index))
        healthy = [metrics for metrics, each in zip(moment.metrics, self.runs, strict=True) if not each.failure]
        self.progress.evaluated(moment.env_steps, mean_metrics(healthy or moment.metrics))

    def _show(self, moment: Moment) -> None:
        agent_state = jax.device_get(moment.run_state.train_state.agent_state)
        for index, seed_run in enumerate(self.runs):
            if not seed_run.failure:
                own = self._own(agent_state, index)
                self.showcase.show(seed_run.run_dir, own, moment.run_state.position, moment.env_steps)

    def checkpoint(self, moment: Moment) -> None:
        """Starts to write a checkpoint of every healthy seed, if this moment has none yet."""
        train_state, totals, position = moment.run_state
        if position == self.saved_position:
            return
        if not self.keep_replay:
            train_state = train_state.replace(buffer_state=None)
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
