"""The rows of scripts/settings.yml: what is trained, how long, why so, and the published values to compare with."""

import dataclasses
import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from envs import own_backend
from src.algorithms import ALGORITHMS
from src.command_line import parse_config
from src.registries import REGISTRIES
from utils import Config, ConfigError, bookkeeping, config_of, unknown

MACHINES = ("cpu", "gpu")
REQUIRED = {"env", "label", "steps", "evals"}  # of a row
OPTIONAL = {"algorithm", "flags", "why", "published", "source"}
NOT_FLAGS = {"algorithm", "env_name", "exp_name", "group_name", "num_evals", "num_seeds", "num_timesteps"}
NOT_FLAGS |= {"output_dir", "resume", "seed"}  # what a row says otherwise, or scripts/reproduce.sh
OVERSHOOT = 1.02  # a run ends with a whole training step, a little later than asked for


@dataclasses.dataclass(frozen=True)
class Published:
    """A published value: `success` is a share of episodes, `time` steps of 1,000 near the goal, `by` by what, if it is
    another method than ours.

    Raises:
      ConfigError: numbers out of these ranges, or neither of the two.
    """

    steps: int
    success: float | None = None
    time: float | None = None
    by: str = ""

    def __post_init__(self):
        values = {"steps": (self.steps, 1, 10**12), "success": (self.success, 0, 1), "time": (self.time, 0, 1000)}
        for name, (value, least, most) in values.items():
            whole = not isinstance(value, bool) and isinstance(value, int if name == "steps" else (int, float))
            if not (whole and least <= value <= most) and not (value is None and name != "steps"):
                raise ConfigError(f"published: {name} {value!r} is not a number from {least:,} to {most:,}")
        if self.success is None and self.time is None:
            raise ConfigError(f"published at {self.steps:,} steps: neither success nor time")


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
        later = [value for value in self.published if OVERSHOOT * value.steps >= steps]
        return (later or [None, *self.published][-1:])[0]

    def describes(self, flags: Mapping[str, Any]) -> bool:
        """Whether recorded flags are those of this row, as `differences` compares them."""
        try:
            return not differences(config_of(flags, ALGORITHMS, "config.json"), self.config)
        except ConfigError:  # a record that lacks what this code must know
            return False


def differences(stored: Config, config: Config) -> list[str]:
    """The flags in which a recorded run is of another setting than `config`.

    Names, seeds, lengths and how a run is kept may differ, and whether MJX or MuJoCo's own engine steps: they step the
    same model.
    """
    if type(stored) is not type(config):
        return ["algorithm"]
    free = bookkeeping(type(config)) - {"env_name", "eval_env"} | {"num_timesteps", "backend"}
    names = [field.name for field in dataclasses.fields(config) if field.name not in free]
    other = [name for name in names if getattr(stored, name) != getattr(config, name)]
    return other if "env_name" in other or physics_of(stored) == physics_of(config) else [*other, "backend"]


def physics_of(config: Config) -> str | None:
    """Which physics a run is of: its engine, `mjx` standing for `mujoco` too."""
    backend = config.backend or own_backend(config.env_name)
    return "mjx" if backend == "mujoco" else backend


class _UniqueKeys(yaml.SafeLoader):
    """Refuses a key that stands twice in a mapping, of which YAML would take the last."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict:
        keys = [key.value for key, _ in node.value if key.tag != "tag:yaml.org,2002:merge"]
        if twice := next((key for key in keys if keys.count(key) > 1), None):
            raise yaml.YAMLError(f"{twice} stands twice, the second time before line {node.end_mark.line + 1}")
        return super().construct_mapping(node, deep)


def read_settings(path: Path) -> list[Row]:
    """Every row of a settings file on every machine, in the file's order.

    Raises:
      ConfigError: it cannot be read, or a row asks for what training.py would refuse; one line.
    """
    try:
        content = yaml.load(path.read_bytes(), _UniqueKeys)
    except (OSError, yaml.YAMLError) as error:
        raise ConfigError(" ".join(f"cannot read {path}: {error}".split())) from None
    if not isinstance(content, dict) or not {"source", "machines", "rows"} <= content.keys():
        raise ConfigError(f"{path}: it holds source, machines and rows")
    if not isinstance(content["rows"], dict) or not content["rows"]:
        raise ConfigError(f"{path}: rows holds no row")
    machines = content["machines"]
    if not isinstance(machines, dict) or set(machines) != set(MACHINES):
        raise ConfigError(f"{path}: machines holds {' and '.join(MACHINES)}")
    rows = []
    for name, machine in itertools.product(content["rows"], MACHINES):
        try:
            rows.append(make_row(name, content["rows"][name], machine, machines[machine], content["source"]))
        except (ValueError, TypeError) as error:
            raise ConfigError(f"{path}: row {name}: {' '.join(str(error).split())}") from None
    return rows


def make_row(name: str, entry: Any, machine: str, on_machine: Any, source: str) -> Row:
    """One row of the file on one machine.

    Raises:
      ValueError, TypeError: a key is missing or unknown, or a flag is refused.
    """
    check_entry(require_mapping("it", entry))
    seeds = require_mapping(machine, on_machine).get("seeds")
    if not isinstance(seeds, int) or seeds < 1:
        raise ConfigError(f"{machine}: seeds {seeds!r} is no number from 1 on")
    own = require_mapping(f"{machine}: flags", on_machine.get("flags", {}))
    own = own | require_mapping("flags", entry.get("flags", {}))
    if said := sorted(NOT_FLAGS & own.keys()):
        raise ConfigError(f"flags: {said[0]} is not for flags to say")
    flags = {
        "algorithm": entry.get("algorithm", Config.algorithm),
        "env_name": entry["env"],
        # Each machine's runs have names of their own: they do not resume each other's.
        "exp_name": name + ("_gpu" if machine == "gpu" else ""),
        "num_timesteps": on_machine.get("steps", entry["steps"]),
        "num_evals": entry["evals"],
    }
    return Row(
        name=name,
        label=entry["label"],
        machine=machine,
        config=parse_config(words(flags | own), REGISTRIES),
        seeds=seeds,
        why=entry.get("why", ""),
        published=published_of(entry),
        source=entry.get("source", source),
    )


def require_mapping(what: str, value: Any) -> Mapping[str, Any]:
    """The value, if it holds names and values."""
    if not isinstance(value, dict):
        raise ConfigError(f"{what} holds names and values, not {value!r}")
    return value


def check_entry(entry: Mapping[str, Any]) -> None:
    """Raises ConfigError where a row's keys are not those that there are, or it has no name for the table."""
    if strange := sorted(set(entry) - REQUIRED - OPTIONAL):
        raise ConfigError(unknown("key", strange[0], REQUIRED | OPTIONAL))
    if missing := sorted(REQUIRED - set(entry)):
        raise ConfigError(f"lacks {', '.join(missing)}")
    if not isinstance(entry["label"], str) or not entry["label"]:
        raise ConfigError(f"label {entry['label']!r} is no text")


def published_of(entry: Mapping[str, Any]) -> tuple[Published, ...]:
    """The published values of a row, which stand in the order of their steps."""
    published = tuple(Published(**value) for value in entry.get("published", []))
    if list(published) != sorted(published, key=lambda value: value.steps):
        raise ConfigError("published: the values are in the order of their steps")
    return published


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
