"""Rewrites the tables of README.md that stand in the code: flags (of every algorithm) and environments.

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
        names = f" `{'`, `'.join(REGISTRIES[choice.kind])}`." if choice else ""
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


TABLES: dict[str, Callable[[], str]] = {"flags": flag_table, "environments": environment_table}


def with_tables(readme: str) -> str:
    """The README's text with every table made again."""
    for name, table in TABLES.items():
        before, start, rest = readme.partition(f"<!-- {name} -->\n")
        _, end, after = rest.partition(f"<!-- end of {name} -->")
        if not end:
            raise SystemExit(f"README.md has no place for the table {name!r}")
        readme = f"{before}{start}{table()}\n{end}{after}"
    return readme


if __name__ == "__main__":
    path = ROOT / "README.md"
    readme = path.read_text()
    if "--check" in sys.argv:
        sys.exit("README.md is behind the code" if with_tables(readme) != readme else 0)
    path.write_text(with_tables(readme))
