"""The rows of scripts/settings.yml: what is trained, how long, why so, and the published values to compare with."""

import dataclasses
import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from src.algorithms import ALGORITHMS
from src.command_line import parse_config
from src.registries import REGISTRIES
from utils import Config, ConfigError, bookkeeping, config_of, unknown

MACHINES = ("cpu", "gpu")
REQUIRED = {"env", "label", "steps", "evals"}  # of a row
OPTIONAL = {"algorithm", "flags", "why", "published", "source"}


@dataclasses.dataclass(frozen=True)
class Published:
    """A published value: `success` is a share of episodes, `time` steps of 1,000 near the goal."""

    steps: int
    success: float | None = None
    time: float | None = None


@dataclasses.dataclass(frozen=True)
class Row:
    """A setting on one machine: the flags of its runs, its seeds from 0 on, and what it is compared with.

    Attributes:
      machine: "cpu" or "gpu".
      config: the flags, seed 0.
      published: in the order of their steps; none where nothing is published.
      source: where the published values are from.
    """

    name: str
    label: str
    machine: str
    config: Config
    seeds: int
    why: str
    published: tuple[Published, ...]
    source: str

    def published_at(self, steps: float) -> Published | None:
        """The first published value at as many env steps or more, else the last one."""
        later = [value for value in self.published if value.steps >= steps]
        return (later or [None, *self.published][-1:])[0]

    def describes(self, flags: Mapping[str, Any]) -> bool:
        """Whether recorded flags are those of this row, as `differences` compares them."""
        try:
            return not differences(flags, self.config)
        except ConfigError:  # a record that lacks what this code must know
            return False


def differences(flags: Mapping[str, Any], config: Config) -> list[str]:
    """The flags in which a recorded run is of another setting than `config`.

    Names, seeds, lengths and how a run is kept may differ, and the engine: a machine without an accelerator may have
    chosen another one for the same model.

    Raises:
      ConfigError: the record does not say all that this code must know.
    """
    stored = config_of(flags, ALGORITHMS, "config.json")
    if type(stored) is not type(config):
        return ["algorithm"]
    free = bookkeeping(type(config)) - {"env_name", "eval_env"} | {"num_timesteps", "backend"}
    names = [field.name for field in dataclasses.fields(config) if field.name not in free]
    return [name for name in names if getattr(stored, name) != getattr(config, name)]


def read_settings(path: Path) -> list[Row]:
    """Every row of a settings file on every machine, in the file's order.

    Raises:
      ConfigError: it cannot be read, or a row asks for what training.py would refuse; one line.
    """
    try:
        content = yaml.safe_load(path.read_bytes())
    except (OSError, yaml.YAMLError) as error:
        raise ConfigError(" ".join(f"cannot read {path}: {error}".split())) from None
    if not isinstance(content, dict) or not {"source", "machines", "rows"} <= content.keys():
        raise ConfigError(f"{path}: it holds source, machines and rows")
    rows = []
    for name, machine in itertools.product(content["rows"], MACHINES):
        try:
            rows.append(make_row(name, content["rows"][name], machine, content["machines"][machine], content["source"]))
        except (ValueError, TypeError, KeyError) as error:
            raise ConfigError(f"{path}: row {name}: {' '.join(str(error).split())}") from None
    return rows


def make_row(name: str, entry: Mapping[str, Any], machine: str, on_machine: Mapping[str, Any], source: str) -> Row:
    """One row of the file on one machine.

    Raises:
      ValueError, TypeError, KeyError: a key is missing or unknown, or a flag is refused.
    """
    keys = set(entry)
    if strange := sorted(keys - REQUIRED - OPTIONAL):
        raise ConfigError(unknown("key", strange[0], REQUIRED | OPTIONAL))
    if missing := sorted(REQUIRED - keys):
        raise ConfigError(f"lacks {', '.join(missing)}")
    flags = {"algorithm": entry.get("algorithm", Config.algorithm), "env_name": entry["env"], "exp_name": name}
    flags |= {"num_timesteps": on_machine.get("steps", entry["steps"]), "num_evals": entry["evals"]}
    flags |= on_machine["flags"] | entry.get("flags", {})
    return Row(
        name=name,
        label=entry["label"],
        machine=machine,
        config=parse_config(words(flags), REGISTRIES),
        seeds=on_machine["seeds"],
        why=entry.get("why", ""),
        published=tuple(Published(**value) for value in entry.get("published", [])),
        source=entry.get("source", source),
    )


def words(flags: Mapping[str, Any]) -> list[str]:
    """The flags as training.py reads them."""
    return [f"--{name}={value}" for name, value in flags.items()]


def choose_rows(rows: Sequence[Row], names: Sequence[str]) -> list[Row]:
    """The rows with one of these names or environments; all of them where none is named.

    Raises:
      ConfigError: a name that is neither.
    """
    known = {row.name for row in rows} | {row.config.env_name for row in rows}
    for name in names:
        if name not in known:
            raise ConfigError(unknown("row", name, known))
    return [row for row in rows if not names or row.name in names or row.config.env_name in names]
