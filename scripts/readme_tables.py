"""Rewrites the tables of README.md and docs/ that stand in the code: flags, their choices, environments, what to read.

    python scripts/readme_tables.py [--check]

With --check it only says, by its exit status, whether they are up to date. A table stands between `<!-- NAME -->` and
`<!-- end of NAME -->`.
"""

import ast
import dataclasses
import inspect
import sys
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # so that it runs from any directory

from envs.check import table as environment_table  # noqa: E402
from scripts.sweep_command import GONE_FLAGS, GONE_VALUES  # noqa: E402
from src.registries import REGISTRIES  # noqa: E402
from utils import Choice, Config, fact  # noqa: E402


def flag_table() -> str:
    """One row per flag: its default, what it means, and the names it accepts; first those that every run has."""
    algorithms = {name: method.config for name, method in REGISTRIES["algorithm"].items()}
    flags = dict.fromkeys(field.name for each in (Config, *algorithms.values()) for field in dataclasses.fields(each))
    rows = ["| flag | default | meaning |", "|---|---|---|"]
    return "\n".join(rows + [flag_row(flag, algorithms) for flag in flags])


def flag_row(flag: str, algorithms: dict[str, type[Config]]) -> str:
    """A flag as every run has it, or what it means to each of the algorithms that have it, and its other defaults."""
    having = {name: each for name, each in algorithms.items() if flag in each.__dataclass_fields__}
    shared = flag in Config.__dataclass_fields__
    config_class = Config if shared else next(iter(having.values()))
    field = config_class.__dataclass_fields__[flag]
    defaults = {name: each.__dataclass_fields__[flag].default for name, each in having.items()}
    others = [f"{name} `{value}`" for name, value in defaults.items() if value != field.default and flag != "algorithm"]
    default = ", ".join(["none" if field.default is None else f"`{field.default}`", *others])
    choice = fact(field, Choice)
    names = ""
    if choice and choice.kind == "env":
        names = " The names are in [environments](environments.md)."
    elif choice:
        names = f" `{'`, `'.join(REGISTRIES[choice.kind])}`."
    meaning = field_documentation(Config)[flag] if shared else meanings(flag, having)
    return f"| `--{flag}` | {default} | {meaning}{names} |"


def meanings(flag: str, having: dict[str, type[Config]]) -> str:
    """What a flag means to each of the algorithms that have it, those of one meaning together."""
    owners: dict[str, list[str]] = {}
    for name, each in having.items():
        owners.setdefault(field_documentation(each)[flag], []).append(name)
    return " ".join(f"{', '.join(who)}: {text}" for text, who in owners.items())


def field_documentation(config_class: type) -> dict[str, str]:
    """Field of a dataclass -> the docstring below it, on one line."""
    documentation = {}
    for each in reversed([each for each in config_class.__mro__ if dataclasses.is_dataclass(each)]):
        body = ast.parse(inspect.getsource(each)).body[0].body
        documentation |= {
            field.target.id: " ".join(text.value.value.split())
            for field, text in zip(body, body[1:], strict=False)
            if isinstance(field, ast.AnnAssign) and isinstance(text, ast.Expr)
        }
    return documentation


# Whose names are explained by the first paragraphs of their docstrings.
EXPLAINED = ("contrastive loss", "energy", "network", "goal rule", "hindsight rule")


def choice_table() -> str:
    """One row per name that these registries have: what it stands for."""
    rows = ["| | name | what it is |", "|---|---|---|"]
    for kind in EXPLAINED:
        for name, value in REGISTRIES[kind].items():
            paragraph = inspect.getdoc(getattr(value, "func", value)).split("\n\n")[0]
            rows.append(f"| {kind} | `{name}` | {' '.join(paragraph.split()).replace('|', chr(92) + '|')} |")
    return "\n".join(rows)


def name_table() -> str:
    """One row per flag or value of newer JaxGCRL that has another name here."""
    rows = ["| there | here |", "|---|---|"]
    rows += [f"| `--{before}` | `--{after}` |" for before, after in GONE_FLAGS.items()]
    for flag, values in GONE_VALUES.items():
        rows += [f"| `--{flag} {before}` | `--{flag} {after}` |" for before, after in values.items()]
    return "\n".join(rows)


# What a newcomer reads after the README, in this order: a file, a class of it if not all, and what it tells.
READING_PATH = (
    ("utils.py", "Config", "what can vary"),
    ("src/train.py", None, "what happens: collect, insert, index, draw, gather, update"),
    ("src/algorithms/crl.py", None, "the idea: actor, critic, their update"),
    ("src/losses.py", None, "energies and losses, pure functions of arrays"),
    ("envs/base.py", None, "what an environment is"),
    ("envs/ant.py", None, "a task"),
)


def reading_table() -> str:
    """One row per file to read, with its length."""
    rows = ["| file | lines | what it tells |", "|---|---:|---|"]
    for name, part, tells in READING_PATH:
        shown = f"`{part}` in `{name}`" if part else f"`{name}`"
        rows.append(f"| {shown} | {line_count(ROOT / name, part)} | {tells} |")
    return "\n".join(rows)


def line_count(path: Path, part: str | None) -> int:
    """Lines of a file, or of one class in it."""
    text = path.read_text()
    if part is None:
        return text.count("\n")
    node = next(node for node in ast.parse(text).body if getattr(node, "name", None) == part)
    return node.end_lineno - node.lineno + 1


def results_table() -> str:
    """The table of results/table.md, which scripts/reproduce.sh writes."""
    return "\n".join(line for line in (ROOT / "results/table.md").read_text().splitlines() if line.startswith("|"))


# Table -> its file and what makes it.
TABLES: dict[str, tuple[str, Callable[[], str]]] = {
    "flags": ("docs/flags.md", flag_table),
    "choices": ("docs/flags.md", choice_table),
    "names": ("docs/differences.md", name_table),
    "environments": ("docs/environments.md", environment_table),
    "reading": ("README.md", reading_table),
    "results": ("README.md", results_table),
}


def with_table(text: str, name: str, table: str) -> str:
    """A file's text with one table made again."""
    before, start, rest = text.partition(f"<!-- {name} -->\n")
    _, end, after = rest.partition(f"<!-- end of {name} -->")
    if not end:
        raise SystemExit(f"{TABLES[name][0]} has no place for the table {name!r}")
    return f"{before}{start}{table}\n{end}{after}"


def main(args: list[str]) -> int:
    """Rewrites, or with --check tells by the exit status whether that is needed."""
    for name, (file, table) in TABLES.items():
        path = ROOT / file
        text = path.read_text()
        rewritten = with_table(text, name, table())
        if rewritten != text and "--check" in args:
            print(f"{file} is behind the code: the table {name!r}", file=sys.stderr)
            return 1
        path.write_text(rewritten)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
