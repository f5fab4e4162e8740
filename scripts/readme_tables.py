"""Rewrites the tables of README.md that stand in the code: flags (from `Config`) and environments (from `ENVS`).

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

import utils  # noqa: E402
from envs.check import table as environment_table  # noqa: E402


def flag_table() -> str:
    """One row per flag: its default, its documentation, and the names it accepts."""
    rows = ["| flag | default | meaning |", "|---|---|---|"]
    documentation = field_documentation()
    for field in dataclasses.fields(utils.Config):
        default = f"`{field.default}`" if field.default is not None else "none"
        names = next((arg.metavar for arg in getattr(field.type, "__metadata__", ())), "")
        names = f" `{names.strip('{}').replace(',', '`, `')}`." if names else ""
        rows.append(f"| `--{field.name}` | {default} | {documentation[field.name]}{names} |")
    return "\n".join(rows)


def field_documentation() -> dict[str, str]:
    """Field of `Config` -> the docstring below it, on one line."""
    body = ast.parse(inspect.getsource(utils.Config)).body[0].body
    return {
        field.target.id: " ".join(text.value.value.split())
        for field, text in zip(body, body[1:], strict=False)
        if isinstance(field, ast.AnnAssign) and isinstance(text, ast.Expr)
    }


TABLES: dict[str, Callable[[], str]] = {"flags": flag_table, "environments": environment_table}


def with_tables(readme: str) -> str:
    """The README's text with every table made anew."""
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
