"""Rewrites the tables of README.md and docs/ that stand in the code: flags, environments, and what to read first.

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
from src.registries import REGISTRIES  # noqa: E402
from utils import Choice, Config, fact  # noqa: E402


def flag_table() -> str:
    """One row per flag: its default, its documentation, and the names it accepts; first those that every run has, then
    those that algorithms add, each with its algorithms."""
    rows = ["| flag | default | meaning |", "|---|---|---|"]
    owners: dict[str, list[str]] = {field.name: [] for field in dataclasses.fields(Config)}
    fields = {field.name: (field, Config) for field in dataclasses.fields(Config)}
    for name, method in REGISTRIES["algorithm"].items():
        for field in dataclasses.fields(method.config):
            fields.setdefault(field.name, (field, method.config))
            if field.name not in Config.__dataclass_fields__:
                owners.setdefault(field.name, []).append(f"`{name}`")
    for flag, (field, config_class) in fields.items():
        default = f"`{field.default}`" if field.default is not None else "none"
        choice = fact(field, Choice)
        names = ""
        if choice and choice.kind == "env":
            names = " The names are in [environments](environments.md)."
        elif choice:
            names = f" `{'`, `'.join(REGISTRIES[choice.kind])}`."
        owned = f"{', '.join(owners[flag])}: " if owners[flag] else ""
        rows.append(f"| `--{flag}` | {default} | {owned}{field_documentation(config_class)[flag]}{names} |")
    return "\n".join(rows)


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


# Table -> its file and what makes it.
TABLES: dict[str, tuple[str, Callable[[], str]]] = {
    "flags": ("docs/flags.md", flag_table),
    "environments": ("docs/environments.md", environment_table),
    "reading": ("README.md", reading_table),
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
