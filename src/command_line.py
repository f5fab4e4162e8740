"""A frozen dataclass as a command line: flags with underscores, switches, and errors of one line.

Imports no JAX, so that scripts that only read files start at once.
"""

import contextlib
import dataclasses
import difflib
import io
import re
from typing import TypeVar

import tyro

_Config = TypeVar("_Config")
_SWITCH_VALUES = {"true": "", "1": "", "false": "no_", "0": "no_"}


class ConfigError(ValueError):
    """A request that cannot be carried out; its text is one line that says what would be right."""


def parse(config_class: type[_Config], args: list[str], prog: str) -> _Config:
    """Reads `args` into a `config_class`.

    Raises:
      ConfigError: an unknown flag, or a value of the wrong type.
      SystemExit: after --help.
    """
    fields = dataclasses.fields(config_class)
    switches = {field.name for field in fields if field.type is bool}
    captured = io.StringIO()
    try:
        with contextlib.redirect_stderr(captured):
            return tyro.cli(config_class, args=plain_switches(args, switches), prog=prog, use_underscores=True)
    except SystemExit as stop:
        if not stop.code:
            raise
        raise ConfigError(one_line(captured.getvalue(), [f"--{field.name}" for field in fields])) from None


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
