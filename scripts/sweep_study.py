"""A sweep's study in its database: Optuna's, made once, shared by all processes that run the sweep."""

import contextlib
import itertools
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import optuna
import sqlalchemy

from scripts.sweep_file import METHODS, one_line
from scripts.sweep_space import grid
from utils import ConfigError

LOCK_SECONDS = 60
STORAGE_ERRORS = optuna.exceptions.OptunaError, sqlalchemy.exc.SQLAlchemyError
SAMPLERS: dict[str, Callable[[], optuna.samplers.BaseSampler]] = {
    "bayes": lambda: optuna.samplers.TPESampler(constant_liar=True),  # runs on the way count as bad ones
    "random": optuna.samplers.RandomSampler,
    "grid": optuna.samplers.RandomSampler,  # never asked: all combinations are queued from the start
}
assert SAMPLERS.keys() == set(METHODS)


class DatabaseError(ConfigError):
    """What the database says no to, perhaps because another process is making its tables."""


@contextlib.contextmanager
def database_errors(url: str) -> Iterator[None]:
    """Says in one line what goes wrong with a database inside."""
    try:
        yield
    except Exception as error:  # also a URL that is none, a driver that is not installed
        kind = DatabaseError if isinstance(error, sqlalchemy.exc.DBAPIError) else ConfigError
        raise kind(one_line(f"cannot open {url}: {error}")) from None


def check_url(url: str) -> None:
    """Raises ConfigError for what is no URL of a database."""
    with database_errors(url):
        sqlalchemy.make_url(url)


def sqlite_url(path: Path) -> str:
    """The URL of a database file, whatever signs its path has."""
    return sqlalchemy.URL.create("sqlite", database=str(path)).render_as_string()


def open_storage(url: str) -> optuna.storages.RDBStorage:
    """Optuna's storage, with SQLite too one in which a queued run is taken by one process alone.

    Optuna takes it by SELECT FOR UPDATE, which SQLite has not: there, a transaction gets the whole database from its
    start (https://docs.sqlalchemy.org/en/20/dialects/sqlite.html).

    Raises:
      ConfigError: no such database.
    """
    with database_errors(url):
        if not url.startswith("sqlite"):
            return optuna.storages.RDBStorage(url)
        storage = optuna.storages.RDBStorage(url, engine_kwargs={"connect_args": {"timeout": LOCK_SECONDS}})
    storage.engine.dispose()  # drop connections opened before the listeners were attached

    @sqlalchemy.event.listens_for(storage.engine, "connect")
    def begin_nothing_itself(connection: Any, _: Any) -> None:
        connection.isolation_level = None

    @sqlalchemy.event.listens_for(storage.engine, "begin")
    def begin_alone(connection: sqlalchemy.Connection) -> None:
        connection.exec_driver_sql("BEGIN IMMEDIATE")

    return storage


@contextlib.contextmanager
def opened_storage(url: str) -> Iterator[optuna.storages.RDBStorage]:
    """`open_storage`, its connections closed at the end."""
    storage = open_storage(url)
    try:
        yield storage
    finally:
        storage.engine.dispose()


def open_study(
    name: str, storage: optuna.storages.BaseStorage, sweep: dict[str, Any], runs: int, url: str = ""
) -> optuna.Study:
    """The study in the database, made there if need be; a grid's `runs` are queued as it is made.

    Raises:
      ConfigError: the database refuses, or its study was made from another sweep file, or is not made yet.
    """
    made_from = {key: sweep[key] for key in ("method", "metric", "parameters", "command") if key in sweep}
    options = {"storage": storage, "sampler": SAMPLERS[sweep["method"]](), "study_name": name}
    with database_errors(url):
        try:
            study = optuna.create_study(**options, direction=sweep["metric"].get("goal", "minimize"))
            settings = grid(sweep["parameters"]) if sweep["method"] == "grid" else ()
            for chosen in itertools.islice(settings, runs):
                study.enqueue_trial(chosen, user_attrs={"queued": True})
            study.set_user_attr("made_from", made_from)  # last: other processes wait for the whole queue
        except optuna.exceptions.DuplicatedStudyError:
            study = optuna.load_study(**options)
        found = study.user_attrs.get("made_from")
    if found is None:
        raise DatabaseError(f"the study {name} is not made in full yet, or never was: --study NAME begins a new one")
    if found != made_from:
        raise ConfigError(f"the study {name} was made from another sweep file: --study NAME begins a new one")
    return study


def retry(attempt: Callable[[], optuna.Study]) -> optuna.Study:
    """Tries again for a while what the database refuses."""
    for seconds in (0.5, 1.0, 2.0):
        with contextlib.suppress(DatabaseError):
            return attempt()
        time.sleep(seconds)
    return attempt()


CONTINUES = "goes_on"  # the user attribute of a trial that continues a run: the number of the run's first trial


def origin(trial: optuna.trial.FrozenTrial) -> int:
    """The number of the run, which is that of its first trial, however often it was queued again."""
    return trial.user_attrs.get(CONTINUES, trial.number)


def heartbeat(trial: optuna.Trial) -> None:
    """Says that the process of a trial is alive; a database that is out of reach hears of it next time."""
    with contextlib.suppress(*STORAGE_ERRORS):
        trial.set_user_attr("alive", time.time())
