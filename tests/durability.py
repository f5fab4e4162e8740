"""What the tests of resuming and of faults share: trainings of the probe env, in this process or one of their own."""

import shlex
import subprocess
import sys
from pathlib import Path

import training
from src.command_line import command_line
from utils import Config

STARTED: list[subprocess.Popen] = []
PROGRAM = str(Path(__file__).parent / "probe_training.py")


def arguments(config: Config, *more: str) -> list[str]:
    return [*shlex.split(command_line(config))[2:], *more]


def start_process(config: Config, *more: str, shell: str = 'exec "$@"', **options) -> subprocess.Popen:
    """The training as a process of its own, which `shell` starts."""
    words = ["bash", "-c", shell, "bash", sys.executable, PROGRAM, *arguments(config, *more)]
    piped = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    STARTED.append(subprocess.Popen(words, **piped | options))
    return STARTED[-1]


def end_started() -> None:
    """Ends what is left of the processes that were started: a test that failed must not keep a core busy."""
    while STARTED:
        process = STARTED.pop()
        if process.poll() is None:
            process.kill()
            process.wait()


def read_until(process: subprocess.Popen, text: str) -> str:
    """The output up to the line that holds `text`."""
    lines = []
    for line in process.stdout:
        lines.append(line)
        if text in line:
            break
    return "".join(lines)


def at_moment(monkeypatch, number: int, action) -> None:
    """Lets `action(recorder)` happen as the `number`th moment of a training in this process, from 0, is over."""
    record, seen = training.Recorder.record, []

    def record_and_act(recorder, moment):
        record(recorder, moment)
        if len(seen) == number:
            recorder.writer.wait()
            action(recorder)
        seen.append(moment)

    monkeypatch.setattr(training.Recorder, "record", record_and_act)


def run_dirs(output_dir: Path) -> list[Path]:
    return sorted(path.parent for path in output_dir.glob("*/*/*/config.json"))
