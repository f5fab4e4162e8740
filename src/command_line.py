"""A frozen dataclass as a command line: flags with underscores, switches, and errors of one line.

Imports no JAX, so that scripts that only read files start at once.
"""

import contextlib
import dataclasses
import decimal
import difflib
import functools
import io
import re
import shlex
from pathlib import Path
from typing import Annotated, Any, TypeVar

import tyro

from utils import NEWEST, Choice, Config, ConfigError, Registries, fact, plain_type, unknown

_Config = TypeVar("_Config")
_SWITCH_VALUES = {"true": "", "1": "", "false": "no_", "0": "no_"}


def parse_config(
    args: list[str], registries: Registries, prog: str = "training.py", more: type | None = None
) -> Config:
    """Reads the command line into a checked config of the class that `--algorithm` names.

    Args:
      registries: what flags choose from, by kind.
      more: a frozen dataclass of further flags, which a script has besides.

    Raises:
      ConfigError: an unknown flag, a value of the wrong type or out of range.
      SystemExit: after --help.
    """
    bare = [arg == "--resume" and (args + ["--"])[at + 1].startswith("--") for at, arg in enumerate(args)]
    args = [f"--resume={NEWEST}" if alone else arg for arg, alone in zip(args, bare, strict=True)]
    config_class = chosen_class(args, registries)
    config = parse(with_flags(config_class, more) if more else config_class, args, prog, registries)
    check_config(config, registries)
    return config


def chosen_class(args: list[str], registries: Registries) -> type[Config]:
    """The class of flags that `--algorithm` names.

    Raises:
      ConfigError: an unknown algorithm, or a flag that only others have.
    """
    algorithms, name = registries["algorithm"], Config.algorithm
    for arg, following in zip(args, [*args, ""][1:], strict=True):
        if arg == "--algorithm" or arg.startswith("--algorithm="):
            name = arg.partition("=")[2] or following
    if name not in algorithms:
        raise ConfigError(f"--algorithm: {unknown('algorithm', name, algorithms)}")
    own = _flag_names(algorithms[name].config)
    for arg in args:
        flag = arg.partition("=")[0].removeprefix("--").replace("-", "_") if arg.startswith("--") else ""
        for word in () if flag in own else (flag, flag.removeprefix("no_")):
            others = [other for other, method in algorithms.items() if word in _flag_names(method.config) - own]
            if others:
                raise ConfigError(f"--{word} is a flag of --algorithm {' or '.join(others)}, not of {name}")
    return algorithms[name].config


def _flag_names(config_class: type[Config]) -> set[str]:
    return {field.name for field in dataclasses.fields(config_class)}


@functools.cache
def with_flags(config_class: type[Config], more: type) -> type[Config]:
    """The class with the fields of `more` besides; instances are of both."""
    return dataclasses.dataclass(frozen=True)(type(more.__name__, (more, config_class), {"__doc__": more.__doc__}))


def check_config(config: Config, registries: Registries) -> None:
    """Checks every name against its registry, then the rules of the config itself.

    Raises:
      ConfigError: the first rule that does not hold.
    """
    for field in dataclasses.fields(config):
        choice, name = fact(field, Choice), getattr(config, field.name)
        if choice and name is not None and name not in registries[choice.kind]:
            raise ConfigError(f"--{field.name}: {unknown(choice.kind, name, registries[choice.kind])}")
    config.check()


def command_line(config: Config) -> str:
    """The command that trains `config`."""
    words = ["python", "training.py"]
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        default = Config.algorithm if field.name == "algorithm" else field.default  # a subclass may have its own
        if isinstance(value, bool) and value != default:
            words.append(f"--{field.name}" if value else f"--no_{field.name}")
        elif value != default:
            words += [f"--{field.name}={value}"] if str(value).startswith("-") else [f"--{field.name}", str(value)]
    return shlex.join(words)


# A dataclass of any kind.


def parse(config_class: type[_Config], args: list[str], prog: str, registries: Registries | None = None) -> _Config:
    """Reads `args` into a `config_class`; the help shows the names of the registries.

    Raises:
      ConfigError: an unknown flag, or a value of the wrong type.
      SystemExit: after --help.
    """
    fields = dataclasses.fields(config_class)
    switches = {field.name for field in fields if plain_type(field) is bool}
    args = whole_numbers(plain_switches(args, switches), fields)
    captured = io.StringIO()
    try:
        with contextlib.redirect_stderr(captured):
            shown = with_choices(config_class, registries or {})
            parsed: Any = tyro.cli(shown, args=args, prog=prog, use_underscores=True)
    except SystemExit as stop:
        if not stop.code:
            raise
        raise ConfigError(one_line(captured.getvalue(), [f"--{field.name}" for field in fields])) from None
    return config_class(**{field.name: user_path(field, getattr(parsed, field.name)) for field in fields})


def with_choices(config_class: type, registries: Registries) -> type:
    """The class whose help shows, for each field that names a registry, what is in it."""
    types = {}
    for field in dataclasses.fields(config_class):
        choice = fact(field, Choice)
        if choice:
            names = tyro.conf.arg(metavar="{" + ",".join(registries[choice.kind]) + "}")
            types[field.name] = Annotated[field.type, names]
    defaults = {field.name: field.default for field in dataclasses.fields(config_class) if field.name in types}
    namespace = {"__doc__": config_class.__doc__, "__annotations__": types, **defaults}
    return dataclasses.dataclass(frozen=True)(type(config_class.__name__, (config_class,), namespace))


def plain_switches(args: list[str], switches: set[str]) -> list[str]:
    """Turns `--use_ln=True` and `--use_ln true`, as sweep agents write them, into the switch `--use_ln` (and False into
    `--no_use_ln`). Another value raises ConfigError."""
    plain: list[str] = []
    for arg in args:
        name, _, value = arg.removeprefix("--").partition("=")
        name = name.replace("-", "_")
        last = plain[-1].removeprefix("--") if plain else ""
        if last in switches and arg.lower() in _SWITCH_VALUES:
            plain[-1] = f"--{_SWITCH_VALUES[arg.lower()]}{last}"
        elif arg.startswith("--") and name in switches and value.lower() in _SWITCH_VALUES:
            plain.append(f"--{_SWITCH_VALUES[value.lower()]}{name}")
        elif arg.startswith("--") and name in switches and "=" in arg:
            raise ConfigError(f"--{name} is a switch: true or false, not {value!r}")
        else:
            plain.append(arg)
    return plain


def whole_numbers(args: list[str], fields: tuple[dataclasses.Field, ...]) -> list[str]:
    """Writes out the whole numbers that stand as 1e6 or 16.0.

    Raises:
      ConfigError: another value where a whole number is asked for; says one that would do.
    """
    asked = {field.name: field for field in fields if plain_type(field) in (int, int | None)}
    written: list[str] = []
    for arg in args:
        name, equals, value = arg.partition("=")
        before = written[-1] if written else ""
        if not equals and before.startswith("--") and "=" not in before:
            name, value = before, arg
        field = asked.get(name.removeprefix("--").replace("-", "_")) if name.startswith("--") else None
        if field is not None and value and not (value == "None" and plain_type(field) is not int):
            arg = arg[: len(arg) - len(value)] + whole_number(field, value)
        written.append(arg)
    return written


def read_whole(text: str) -> int | None:
    """The whole number that a text stands for, however it is written: 1000, 1_000, 1e3, 1000.0; None if it is none."""
    with contextlib.suppress(decimal.InvalidOperation, OverflowError, ValueError):  # no number; infinite
        number = decimal.Decimal(text)
        if number == number.to_integral_value() and number.adjusted() < 1000:
            return int(number)
    return None


def whole_number(field: dataclasses.Field, text: str) -> str:
    """The digits of a whole number."""
    number = read_whole(text)
    if number is not None:
        return str(number)
    near = round(float(text)) if re.fullmatch(r"-?\d{1,15}\.\d+", text) else field.default
    remedy = "" if near is None else f", {near} would be"
    raise ConfigError(f"--{field.name} {text[:60]!r} is no whole number{remedy}")


def user_path(field: dataclasses.Field, value: Any) -> Any:
    """The value of a flag; of a path (`Annotated[str, Path]`), with a leading ~ as the user's home, which shells leave
    as it is after `=`."""
    if Path not in getattr(field.type, "__metadata__", ()) or not str(value).startswith("~"):
        return value
    try:
        return str(Path(value).expanduser())
    except RuntimeError as error:
        raise ConfigError(f"--{field.name} {value}: {error}") from None


def one_line(report: str, flags: list[str]) -> str:
    """The message inside tyro's report, boxed or (where the terminal is not UTF-8) not, with the nearest of `flags`
    for one that does not exist."""
    lines = [line.strip("│╭╮╰╯─ ") for line in report.splitlines()]
    title, *body = [line for line in lines if line.strip("-")]
    message = re.split("Argument helptext|Perhaps you meant|For full helptext", " ".join(body) or title)[0].strip()
    stranger = next((word.strip(",") for word in message.split() if word.startswith("--")), None)
    if message.startswith("Unrecognized") and stranger:
        message += f"; did you mean {difflib.get_close_matches(stranger, flags, n=1, cutoff=0.0)[0]}?"
    return message
