"""Trains agents: `python training.py --env_name ant`. See `--help` for every flag."""

import contextlib
import dataclasses
import sys
import time
from typing import NamedTuple

import jax

from src import devices
from src.command_line import command_line, parse_config
from src.loggers import check_wandb
from src.loop import RunState, run
from src.output import Progress, tolerant_output
from src.plan import describe_plan, measure, out_of_memory
from src.process import Interruption, enable_compilation_cache, only_first_process_prints
from src.program import Program, make_program
from src.recorder import Recorder, summary
from src.registries import REGISTRIES
from src.resume import find_checkpoints, load_resumed, seed_batches, seed_configs, with_backend
from src.run_folder import InUse, SeedRun, list_run_dirs, take_run_dirs
from utils import FAILED, IN_USE, INTERRUPTED, NEWEST, REFUSED, Config, derive_schedule


def main(args: list[str]) -> int:
    """Runs the command line; returns the exit status."""
    with contextlib.ExitStack() as until_the_end:
        until_the_end.enter_context(tolerant_output())
        try:
            config = parse_config(args, REGISTRIES)
            check_wandb(config)
            devices.spread_over_cores(config)
            devices.join(config)
            batches = seed_batches(config := with_backend(config))
            list_run_dirs(config, [], "w")
        except (ValueError, OSError) as error:  # ConfigError, what environments and file systems refuse
            print(f"error: {error}", file=sys.stderr)
            return REFUSED
        until_the_end.enter_context(only_first_process_prints())
        interruption = until_the_end.enter_context(Interruption().noticed())
        try:
            return train_batches(batches, config, interruption)
        except (MemoryError, jax.errors.JaxRuntimeError) as error:
            print(out_of_memory(batches[0], error), file=sys.stderr)
            return FAILED


def train_batches(batches: list[Config], config: Config, interruption: Interruption) -> int:
    """Trains one batch of the seeds of `config` after the other; returns the exit status of all."""
    statuses = []
    # A bare --resume stands for all batches. It repeats their size, which another machine might not choose.
    resume_command = command_line(dataclasses.replace(config, resume=NEWEST, seed_batch=batches[0].num_seeds))
    for batch in batches:
        last = batch.seed + batch.num_seeds - 1
        if len(batches) > 1:
            print(f"seeds       {batch.seed} to {last}, of {config.num_seeds}")
        statuses.append(train_batch(batch, None if batch == config else resume_command, interruption))
        if statuses[-1] in (REFUSED, INTERRUPTED, IN_USE) or config.dry_run:
            return statuses[-1]
        if batch is not batches[-1] and any(devices.in_any_process(bool(interruption.requested))):
            print(f"{interruption.reason()}: left after seed {last}; continue with  {resume_command}", flush=True)
            return INTERRUPTED
    return max(statuses)


def train_batch(config: Config, resume_command: str | None, interruption: Interruption) -> int:
    """Trains the seeds of `config` together; returns the exit status. `resume_command` continues the run if it is
    interrupted; None if the seeds are all there are: then their folder is named."""
    with contextlib.ExitStack() as locks:
        task, status = None, 0
        try:
            task = prepare(config, locks)
        except (ValueError, OSError) as error:
            status = IN_USE if isinstance(error, InUse) else REFUSED
            print(f"error: {error}", file=sys.stderr)
        resumed_at = task.resumed.position if task and task.resumed else None
        fingerprint = f"{status > 0} {task is None} {resumed_at} {dataclasses.replace(config, process_id=0)}"
        if not devices.same_in_all_processes(fingerprint):
            print("error: another process refused, or has another command or another checkpoint", file=sys.stderr)
            return status or REFUSED
        if task is None:
            return status
        # One run folder stands for all seeds that were trained together. Only the first process has it, and prints.
        folder = str(task.runs[0].run_dir) if task.runs else NEWEST
        return train(task, resume_command or command_line(dataclasses.replace(config, resume=folder)), interruption)


class Task(NamedTuple):
    """What `train` trains: the seeds, their folders (of the first process only), and where to resume, if anywhere."""

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
        list_run_dirs(config, [checkpoint.run_dir for checkpoint in checkpoints])
        for checkpoint in checkpoints:
            print(f"nothing left to train: {checkpoint.run_dir} is finished; a larger --num_timesteps continues it")
        return None
    left_out = config.num_seeds - len(checkpoints) if checkpoints else 0
    program = make_program(dataclasses.replace(config, num_seeds=config.num_seeds - left_out), schedule)
    costs = measure(program.config, program.env.env)
    print(describe_plan(program.config, schedule, costs, program.mesh.devices.shape), flush=True)
    if config.dry_run:
        return None
    if config.resume and not checkpoints:
        print(f"resume      no run of these names, env and seed with a checkpoint in {config.output_dir}: a new one")
    if left_out:
        print(f"resume      without the {left_out} seeds that stopped on their own")
    starts = [(each.config, each) for each in checkpoints] or [(own, None) for own in seed_configs(config)]
    runs = take_run_dirs(config, starts, locks) if devices.is_first_process() else []
    seeds = [own.seed for own, _ in starts]
    return Task(program, seeds, runs, load_resumed(program, checkpoints) if checkpoints else None)


def train(task: Task, resume_command: str, interruption: Interruption) -> int:
    """Trains all seeds of the task, logging and saving into their folders; returns the exit status. `resume_command`
    continues the run if it is interrupted."""
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
    if left_early:
        print(f"{interruption.reason()}: left at {moment.env_steps:,} env steps; continue with  {resume_command}")
        return INTERRUPTED if written else FAILED
    print(summary(runs, moment.env_steps, time.monotonic() - started), flush=True)
    return 0 if written and not recorder.failed() else FAILED


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
