"""The process of a run: the signals that ask it to leave, and where compiled programs are kept."""

import contextlib
import os
import signal
import sys
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path

import jax

from src import devices
from utils import INTERRUPTED


class Interruption:
    """Notices the signals that ask a run to leave: of batch systems, Ctrl-C, of a terminal that goes away.

    Before training has `started` there is nothing to save, and after a first Ctrl-C the second one is meant: the
    process ends at once then.
    """

    def __init__(self):
        self.requested = ""
        self.started = False

    def notice(self, number: int, _frame: object) -> None:
        repeated = number == signal.SIGINT and self.requested == "SIGINT"
        self.requested = signal.Signals(number).name
        if repeated or not self.started:
            with contextlib.suppress(OSError):  # the terminal may be what has gone
                os.write(2, f"\n{self.requested}: leaving at once\n".encode())
            os._exit(130 if repeated else INTERRUPTED)

    def reason(self) -> str:
        """Why all processes leave, if this one does."""
        return self.requested or "another process was interrupted"

    @contextlib.contextmanager
    def noticed(self) -> Iterator["Interruption"]:
        """Receives the signals inside the `with`; only a process's main thread can. A SIGHUP that is ignored, as under
        nohup, stays ignored."""
        numbers = [signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2]
        numbers += [] if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN else [signal.SIGHUP]
        numbers = numbers if threading.current_thread() is threading.main_thread() else []
        before = {number: signal.signal(number, self.notice) for number in numbers}
        try:
            yield self
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


@contextlib.contextmanager
def only_first_process_prints() -> Iterator[None]:
    """Drops what all other processes of a run print, but for errors."""
    first = devices.is_first_process()
    with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(sys.stdout if first else nowhere):
        yield


def enable_compilation_cache() -> str:
    """Turns on JAX's persistent cache and returns its folder: $JAX_COMPILATION_CACHE_DIR, or one under the user's
    cache; "off" where the user has no home, or none to write in."""
    folder = os.environ.get("JAX_COMPILATION_CACHE_DIR", "")
    try:
        folder = folder or str(Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "crl" / "jax")
        if "://" not in folder:  # JAX takes URLs of storage services too
            _require_writable(Path(folder))
    except (RuntimeError, OSError) as error:  # else JAX would warn at every program
        reason = str(error).rstrip(".")
        print(f"warning: no compilation cache: {reason}; JAX_COMPILATION_CACHE_DIR names a folder", file=sys.stderr)
        return "off"
    jax.config.update("jax_compilation_cache_dir", folder)
    if "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS" not in os.environ:
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)
    return folder


def _require_writable(folder: Path) -> None:
    """Raises OSError if the folder cannot be made, or nothing can be written into it."""
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryFile(dir=folder):
        pass
