"""The commands of a sweep's runs: the program, W&B's macros, and what training.py says to them before anything starts.

https://docs.wandb.ai/guides/sweeps/sweep-config-keys#command
"""

import contextlib
import dataclasses
import itertools
import json
import os
import random
import re
import reprlib
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # so that it runs from any directory

from scripts.sweep_space import Spec, samples  # noqa: E402
from utils import ConfigError, unknown  # noqa: E402

ROOT = Path(__file__).resolve().parents[1]
TRAINING = ROOT / "training.py"


def shown(value: Any) -> str:
    """A value of a sweep file in a message; never long, whatever it is."""
    return reprlib.repr(value)


def argument(value: Any, where: str) -> str:
    """A value as a word of a command.

    Raises:
      ConfigError: the system cannot hand it on.
    """
    try:
        if b"\0" not in os.fsencode(str(value)):
            return str(value)
        reason = "no word of a command holds a character of code 0"
    except UnicodeEncodeError as error:
        reason = f"it has no form in the encoding {error.encoding} (if it is not UTF-8, set LC_ALL=C.UTF-8)"
    raise ConfigError(f"{where} {ascii(value)[:60]}: {reason}")


def flag_of(word: str) -> str:
    """The flag that a parameter's name or a word of a command stands for: --h-dim=16, h-dim and h_dim are one."""
    return word.partition("=")[0].removeprefix("--").replace("-", "_")


# The program.

# What JaxGCRL calls it today -> what the published benchmark called it, which is what it is called here.
GONE_PROGRAMS, GONE_WORDS = ("main.py", "run.py"), ("crl", "sac", "td3", "ppo")
GONE_FLAGS = {
    "env": "env_name",
    "total_env_steps": "num_timesteps",
    "train_step_multiplier": "multiplier_num_sgd_steps",
    "logsumexp_penalty_coeff": "logsumexp_penalty",
    "wandb_project_name": "project_name",
    "wandb_group": "group_name",
    "visualization_interval": "video_every",
}
GONE_VALUES = {
    "contrastive_loss_fn": {
        "fwd_infonce": "infonce",
        "bwd_infonce": "infonce_backward",
        "sym_infonce": "symmetric_infonce",
        "binary_nce": "binary",
    },
    "energy_fn": {"norm": "l2", "cosine": "cos"},
}


def find_program(program: str, command: list[str], parameters: dict[str, Spec]) -> Path:
    """The file that runs, looked for in this repository, then in the working directory.

    Raises:
      ConfigError: there is none, or the sweep file speaks of it by names that are gone.
    """
    path = os.path.expanduser(program)
    found = next((folder / path for folder in (ROOT, Path.cwd()) if os.path.isfile(folder / path)), None)
    if Path(program).name in GONE_PROGRAMS and found is None:
        gone = [f"program {program} (now training.py)", *_gone(command, parameters)]
    elif found is None:
        raise ConfigError(f"program {program}: no such file, neither in {ROOT} nor in the working directory")
    else:
        gone = _gone(command, parameters) if is_training(found) else []
    if gone:
        raise ConfigError(f"names that are gone: {', '.join(gone)}")
    return found.resolve()


def is_training(program: str | Path) -> bool:
    """Whether a program is this repository's training.py."""
    return Path(program).resolve() == TRAINING


def _gone(command: list[str], parameters: dict[str, Spec]) -> list[str]:
    """Each name that is gone, with its successor."""
    pairs = list(itertools.pairwise([*command, ""]))
    found = [
        f"{name} after ${{program}} (now --algorithm {name})" for name in GONE_WORDS if ("${program}", name) in pairs
    ]
    flags = [word for word in command if word.startswith("--")]
    for flag in dict.fromkeys(map(flag_of, (*flags, *parameters))):
        if flag in GONE_FLAGS:
            found.append(f"{flag} (now {GONE_FLAGS[flag]})")
    for flag, successors in GONE_VALUES.items():
        spec = parameters.get(flag, {})
        values = [*spec.get("values", ()), spec.get("value")]
        values += [word for before, word in pairs if before == f"--{flag}"]
        values += [word.partition("=")[2] for word in command if word.startswith(f"--{flag}=")]
        found += [f"{flag} {value} (now {successors[value]})" for value in dict.fromkeys(values) if value in successors]
    return found


# The command section.

ARGUMENTS: dict[str, Callable[[dict[str, Any]], list[str]]] = {
    "args": lambda settings: [f"--{name}={value}" for name, value in settings.items()],
    "args_no_boolean_flags": lambda settings: [
        f"--{name}" if value is True else f"--{name}={value}" for name, value in settings.items() if value is not False
    ],
    "args_no_equals": lambda settings: [word for name, value in settings.items() for word in (f"--{name}", str(value))],
    "args_no_hyphens": lambda settings: [f"{name}={value}" for name, value in settings.items()],
    "args_append_hydra": lambda settings: [f"+{name}={value}" for name, value in settings.items()],
    "args_override_hydra": lambda settings: [f"++{name}={value}" for name, value in settings.items()],
    "args_json": lambda settings: [json.dumps(settings)],
}
MACROS = ("env", "interpreter", "program", *ARGUMENTS, "args_json_file")
DEFAULT_COMMAND = ["${interpreter}", "${program}", "${args}"]
_MACRO, _VARIABLE = re.compile(r"\$\{([^{}]*)\}"), re.compile(r"\$\{envvar:([A-Za-z0-9_]*)\}")


def check_command(command: Any) -> list[str]:
    """The words of a command section.

    Raises:
      ConfigError: it is no list of words, has a macro that W&B would not replace or a variable that is not set, or
        hands no parameters on.
    """
    if not isinstance(command, list) or not command:
        raise ConfigError(f"command {shown(command)} must be a list of words, e.g. [{', '.join(DEFAULT_COMMAND)}]")
    for word in command:
        if isinstance(word, list | dict | None):
            raise ConfigError(f"command: {shown(word)} is no word")
        _check_macros(argument(word, "command:"))
    words = [str(word) for word in command]
    if not any(f"${{{name}}}" in words for name in (*ARGUMENTS, "args_json_file")):
        raise ConfigError("command: nothing hands the parameters on: add ${args}")
    return words


def search_path() -> str:
    """Where the first word of a command is looked for; `python` is the one that runs here."""
    return os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)])


def check_start(words: list[str], program: str) -> None:
    """Raises ConfigError unless the first word of a command can be started."""
    first = expand(words[:1], program, {}, Path())
    if len(first) != 1 or shutil.which(first[0], path=search_path()) is None:
        raise ConfigError(
            f"command: {shown(words[0])} cannot be started: begin with ${{interpreter}}, or ${{env}} and python"
        )


def _check_macros(word: str) -> None:
    for name in _VARIABLE.findall(word):
        if name not in os.environ:
            raise ConfigError(f"command: {shown(word)}: the variable {name or 'without a name'} is not set")
    names = [name for name in _MACRO.findall(word) if not name.startswith("envvar:")]
    whole = _MACRO.fullmatch(word) is not None
    if whole and names and names[0] not in MACROS:
        raise ConfigError(f"command: {unknown('macro', names[0], (*MACROS, 'envvar:NAME'))}")
    if not whole and (inside := next((name for name in names if name in MACROS), None)):
        raise ConfigError(f"command: {shown(word)}: ${{{inside}}} is replaced only where it is a word of its own")


def expand(words: list[str], program: str, settings: dict[str, Any], json_file: Path) -> list[str]:
    """A run's command, macros replaced. `json_file` is what ${args_json_file} stands for; the caller writes it."""
    macros = {"env": ["/usr/bin/env"], "interpreter": [sys.executable], "program": [program]}
    macros |= {name: write(settings) for name, write in ARGUMENTS.items()} | {"args_json_file": [str(json_file)]}
    expanded = []
    for word in words:
        macro = _MACRO.fullmatch(word)
        if macro and macro[1] in macros:
            expanded += macros[macro[1]]
        else:
            expanded.append(_VARIABLE.sub(lambda variable: os.environ[variable[1]], word))
    return expanded


# Asking training.py. It is asked in a process of its own, as its parser needs JAX.


# Of each command line the words that the command section hands on, and those that the parameters stand for.
Lines = list[tuple[list[str], list[str]]]


class Question(NamedTuple):
    """Whether training.py takes one of several command lines.

    Attributes:
      about: what the refusal is about.
      lines: the command lines.
    """

    about: str
    lines: Lines


def check_flags(sweep: dict[str, Any], more: list[str], ask: Callable[[list[Lines]], list[str | None]]) -> None:
    """Asks about every value of every parameter, each together with values of the others.

    Raises:
      ConfigError: a flag or value that is refused in every combination, or that the command section does not hand on.
    """
    words = sweep.get("command", DEFAULT_COMMAND)
    if not is_training(sweep["program"]) or "${program}" not in words:
        return  # a program of their own knows what it takes
    questions = list(_questions(sweep, more))
    for question, refusal in zip(questions, ask([question.lines for question in questions]), strict=True):
        if refusal:
            raise ConfigError(f"{question.about}{refusal}")


def ask_training(questions: list[Lines]) -> list[str | None]:
    """`answers`, from a process of its own."""
    command = [sys.executable, __file__]
    asked = json.dumps(questions)
    answer = subprocess.run(command, input=asked, capture_output=True, encoding="utf-8", errors="replace", check=False)
    if answer.returncode:
        lines = [line for line in answer.stderr.splitlines() if line.strip()] or [f"status {answer.returncode}"]
        raise ConfigError(f"training.py does not start: {lines[-1]}")
    return json.loads(answer.stdout)


def _questions(sweep: dict[str, Any], more: list[str], most: int = 6400) -> Iterator[Question]:
    """One about the names and constants, and one about each value that is searched. Each may be answered by any of a
    number of combinations, since what goes with one may not go with another; `most` lines in all, or two per value."""
    values = {name: samples(spec) for name, spec in sweep["parameters"].items()}
    searched = [(name, value) for name, own in values.items() if len(own) > 1 for value in own]
    first = {name: own[0] for name, own in values.items()}
    generator = random.Random(0)
    several = max(1, min(64, most // (1 + len(searched))))
    combinations = [first] + [{name: generator.choice(own) for name, own in values.items()} for _ in range(several)]

    def line(settings: dict[str, Any]) -> tuple[list[str], list[str]]:
        words = expand(sweep.get("command", DEFAULT_COMMAND), sweep["program"], settings, Path("settings.json"))
        own = words[words.index(sweep["program"]) + 1 :]
        project = [f"--project_name={sweep['project']}"] if "project" in sweep else []
        return [*own, *project, *more], [*own, *ARGUMENTS["args"](settings), *project, *more]

    yield Question("", [line(settings) for settings in combinations])
    for name, value in searched:
        yield Question(f"{name} {shown(value)}: ", [line(settings | {name: value}) for settings in combinations])


def answers(questions: list[Lines]) -> list[str | None]:
    """For each question why training.py refuses its first line, or nothing if it takes any."""
    from src.command_line import parse_config
    from src.loggers import check_wandb
    from src.registries import REGISTRIES

    def refusal(words: list[str], meant: list[str]) -> str | None:
        try:
            handed_on, intended = parse_config(words, REGISTRIES), parse_config(meant, REGISTRIES)
            check_wandb(handed_on)
        except (ValueError, SystemExit) as stop:
            return str(stop) if isinstance(stop, ValueError) else f"training.py does not train: {' '.join(words)}"
        told = dataclasses.asdict(handed_on)
        return "; ".join(
            f"the parameters say {name} {value}, the command section hands on {told.get(name)}: use ${{args}}"
            for name, value in dataclasses.asdict(intended).items()
            if value != told.get(name)
        )

    def answer(lines: Lines) -> str | None:
        refusals = itertools.takewhile(bool, (refusal(*line) for line in lines))
        kept = list(refusals)
        return kept[0] if len(kept) == len(lines) else None

    return [answer(lines) for lines in questions]


if __name__ == "__main__":
    with contextlib.redirect_stdout(sys.stderr):  # what parsing may print
        said = answers(json.load(sys.stdin))
    json.dump(said, sys.stdout)
