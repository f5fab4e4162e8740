"""What a run tells while it trains: rows for metrics.csv, and lines for a person, which may be lost."""

import contextlib
import csv
import io
import itertools
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Protocol, TextIO

from utils import FAILED, FAILURES, write_text


class _Tolerant:
    """A stream of text whose failures are none of the program's."""

    def __init__(self, stream: TextIO):
        self._stream = stream

    def write(self, text: str) -> int:
        with contextlib.suppress(OSError, ValueError):  # ValueError: closed
            try:
                self._stream.write(text)
            except UnicodeEncodeError as error:  # a terminal of few letters
                self._stream.write(text.encode(error.encoding, "backslashreplace").decode(error.encoding))
        return len(text)

    def flush(self) -> None:
        with contextlib.suppress(OSError, ValueError):
            self._stream.flush()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


@contextlib.contextmanager
def tolerant_output() -> Iterator[None]:
    """Lets the program inside outlive whoever receives what it prints: a closed pipe, a dropped terminal, a full disk.

    What is printed is no record, so neither what the program does nor its exit status depends on it.
    """
    with contextlib.ExitStack() as until_the_end:
        nowhere = until_the_end.enter_context(open(os.devnull, "w"))
        streams = [stream or nowhere for stream in (sys.stdout, sys.stderr)]  # None: closed before the start
        until_the_end.callback(_drain, streams)
        until_the_end.enter_context(contextlib.redirect_stdout(_Tolerant(streams[0])))
        until_the_end.enter_context(contextlib.redirect_stderr(_Tolerant(streams[1])))
        yield


def _drain(streams: list[TextIO]) -> None:
    """Writes what is left, or drops it: Python itself would end with another status as it flushes them."""
    for stream in streams:
        try:
            stream.flush()
        except (OSError, ValueError):
            with contextlib.suppress(OSError, ValueError), open(os.devnull, "w") as nowhere:
                os.dup2(nowhere.fileno(), stream.fileno())
                stream.flush()


def run_command(main: Callable[[list[str]], int]) -> int:
    """The exit status of a script's `main` on the words of the command line. One line says how a physics engine failed;
    other errors pass."""
    with tolerant_output():
        try:
            return main(sys.argv[1:])
        except RuntimeError as error:
            if not FAILURES:
                raise
            print(error_line(error), file=sys.stderr)
            return FAILED


def error_line(error: Exception) -> str:
    """What went wrong outside of JAX if anything did, since JAX's error is not about that; else the error itself."""
    return f"error: {FAILURES[0] if FAILURES else error}"


class Logger(Protocol):
    """Where metrics go. A metric that was not measured is absent from `metrics`, never 0."""

    def log(self, metrics: dict[str, float], step: int) -> None: ...

    def close(self) -> None: ...


def survives(what: str, write: Callable[[], Any], nevertheless: str = "training continues") -> bool:
    """Whether `write` worked. If not, one line says why: a failed write never ends a run."""
    try:
        write()
    except Exception as error:  # a full disk, a lost folder, whatever a service answers
        reason = " ".join(str(error).split())[:300]
        print(f"warning: {what} failed, {nevertheless} ({type(error).__name__}: {reason})", file=sys.stderr)
        return False
    return True


class CSVLogger:
    """One row per `log` in metrics.csv, first column env_steps; columns are added as metrics appear.

    All rows stay in memory: what a full disk or a lost folder kept from being written is written at the next chance.

    Attributes:
      rows: all rows so far, column -> text.
      complete: whether the file holds all of them.
    """

    def __init__(self, path: Path, rows: list[dict[str, str]] | None = None):
        """Continues after `rows`; without any, the file begins with the first `log`."""
        self.path = path
        self.rows: list[dict[str, str]] = rows or []
        self.columns = list(dict.fromkeys(["env_steps", *itertools.chain(*self.rows)]))
        self.complete = not rows or survives(str(path), self._rewrite)

    def log(self, metrics: dict[str, float], step: int) -> None:
        row = {name: str(value) for name, value in {"env_steps": step, **metrics}.items()}
        self.rows.append(row)
        new = [name for name in row if name not in self.columns]
        self.columns += new
        longer = self.complete and not new and self.path.exists()
        self.complete = survives(str(self.path), self._append if longer else self._rewrite)

    def _append(self) -> None:
        with self.path.open("a", newline="") as file:
            csv.DictWriter(file, self.columns).writerow(self.rows[-1])

    def _rewrite(self) -> None:
        text = io.StringIO()
        writer = csv.DictWriter(text, self.columns)
        writer.writeheader()
        writer.writerows(self.rows)
        write_text(self.path, text.getvalue())

    def close(self) -> None:
        """Writes what could not be written before."""
        if self.rows and not (self.complete and self.path.exists()):
            self.complete = survives(str(self.path), self._rewrite)


def read_rows(path: Path, last_env_step: int) -> list[dict[str, str]]:
    """The rows of a metrics.csv up to an env step; a last line that a crash cut short is left out."""
    try:
        with path.open(newline="", errors="replace") as file:
            rows = [row for row in csv.DictReader(file) if None not in row and None not in row.values()]
    except (OSError, csv.Error):
        return []
    rows = [row for row in rows if row.get("env_steps", "").isdigit() and int(row["env_steps"]) <= last_env_step]
    return [{name: text for name, text in row.items() if text} for row in rows]


class Progress:
    """The line a person watches: redrawn in place on a terminal, one line per evaluation when piped."""

    def __init__(self, total_env_steps: int):
        self.total = total_env_steps
        self.live = sys.stdout.isatty()
        self.success = ""

    def announce(self, text: str) -> None:
        """Says what is being compiled. A finished line ends with a newline; unfinished ones are for terminals."""
        if self.live or text.endswith("\n"):
            print(f"\x1b[2K\r{text}" if self.live else text, end="", flush=True)

    def update(self, env_steps: int, steps_per_second: float) -> None:
        """Redraws the live line; says nothing when piped."""
        if self.live:
            self._show(env_steps, steps_per_second, end="\r")

    def evaluated(self, env_steps: int, metrics: dict[str, float]) -> None:
        """Prints the line of an evaluation."""
        if "eval/episode_success" in metrics:
            near, any_success = metrics["eval/episode_success"], metrics["eval/episode_success_any"]
            self.success = f"   near goal {near:6.1f} steps   success {any_success:.2f}"
        self._show(env_steps, metrics.get("training/sps"), end="\n")

    def _show(self, env_steps: int, steps_per_second: float | None, end: str) -> None:
        speed, left = " " * 21, ""
        if steps_per_second:
            speed = f"{steps_per_second:>9,.0f} env steps/s"
            left = f"   {_duration((self.total - env_steps) / steps_per_second)} left"
        clear = "\x1b[2K" if self.live else ""
        print(f"{clear}{env_steps:>12,} / {self.total:,} env steps{speed}{left}{self.success}", end=end, flush=True)


def _duration(seconds: float) -> str:
    minutes, seconds = divmod(round(max(seconds, 0)), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{seconds:02d}"
