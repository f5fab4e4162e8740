"""What each moment of a run leaves behind: numbers checked, metrics logged, parameters, checkpoints and pictures."""

import sys
import time
from typing import Any

import jax
import numpy as np

from src import devices
from src.checkpoint import PARAMS_FILE, CheckpointWriter, host_arrays
from src.loop import Moment
from src.output import Progress
from src.process import Interruption
from src.program import Program
from src.run_folder import SeedRun
from src.showcase import Showcase


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
            seed_run.check_finite(own, moment.env_steps)
            if moment.drawable is not None:
                seed_run.require_rows(int(moment.drawable[index]), moment.env_steps)
        if moment.metrics is None:
            self.progress.update(moment.env_steps, moment.speed)
            if any(devices.in_any_process(self._is_due())):
                self.checkpoint(moment)
        else:
            agent_state = devices.fetch(moment.run_state.train_state.agent_state)
            self._log(moment, agent_state)
            self.checkpoint(moment)  # before anything is printed: that may take its time
            self._say(moment)
            if self.showcase.due(moment.run_state.position):
                self._show(moment, agent_state)  # once the parameters are on the disk
        for seed_run in self.runs:
            seed_run.checked_at = moment.env_steps

    def _log(self, moment: Moment, agent_state: Any) -> None:
        for index, seed_run in enumerate(self.runs):
            if not seed_run.failure:
                own = self._own(agent_state, index)
                seed_run.report(moment.metrics[index], moment.env_steps, own, moment.env_resets[index])

    def _say(self, moment: Moment) -> None:
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
            seed_run.check_finite(learned, moment.env_steps)
            if not seed_run.failure:
                checkpoints[seed_run.run_dir] = (own, seed_run.manifest(position, moment.env_steps))
        if checkpoints:
            self.writer.save(checkpoints)
        self.saved_at, self.saved_position = time.monotonic(), position

    def _own(self, tree: Any, index: int) -> Any:
        """The part of one seed; only a run of several seeds has a seed axis."""
        return jax.tree.map(lambda leaf: leaf[index, ...], tree) if len(self.runs) > 1 else tree

    def close(self) -> bool:
        """Closes everything, says what went wrong, and whether all that the run must leave is on disk."""
        self.writer.wait()
        written = all([seed_run.close() for seed_run in self.runs]) and self.writer.complete
        for seed_run in self.runs:
            if seed_run.failure:
                print(f"error: seed {seed_run.config.seed} stopped: {seed_run.failure}", file=sys.stderr)
        if not written:
            print("error: not everything could be written, see the warnings above", file=sys.stderr)
        return written

    def failed(self) -> bool:
        """Whether a seed stopped on its own."""
        return any(seed_run.failure for seed_run in self.runs)


def mean_metrics(metrics: list[dict[str, float]]) -> dict[str, float]:
    """The mean over seeds of each metric."""
    return {name: float(np.mean([each[name] for each in metrics])) for name in metrics[0]}


def summary(runs: list[SeedRun], env_steps: int, seconds: float) -> str:
    """The closing lines of a run."""
    healthy = [seed_run.metrics for seed_run in runs if not seed_run.failure]
    metrics = mean_metrics(healthy) if healthy else {}
    speed = f", {metrics['training/sps']:,.0f} env steps/s last" if "training/sps" in metrics else ""
    lines = [f"{'done' if healthy else 'stopped'}: {env_steps:,} env steps per seed in {seconds:.0f} s{speed}"]
    if "eval/episode_success" in metrics:
        lines.append(f"  success rate    {metrics['eval/episode_success_any']:.3f} of the episodes reach the goal")
        lines.append(f"  time near goal  {metrics['eval/episode_success']:.1f} env steps per episode")
    lines += [f"  files           {seed_run.run_dir}/ (metrics.csv, {PARAMS_FILE})" for seed_run in runs]
    return "\n".join(lines)
