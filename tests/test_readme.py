"""The README says what is true: its tables are those of the code, its recipe builds a working environment."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

import envs
from envs.check import QUICK_COMPILE, check_env

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text()


def test_tables_are_those_of_the_code():
    # A process of its own: the registry here may hold the environments of other tests.
    command = [sys.executable, str(ROOT / "scripts" / "readme_tables.py"), "--check"]
    checked = subprocess.run(command, capture_output=True, text=True)
    assert checked.returncode == 0, f"run scripts/readme_tables.py: {checked.stderr}"


def test_files_named_in_the_readme_exist():
    links = re.findall(r"\]\((?!http|#)([^)]+)\)", README)
    assert links
    assert [link for link in links if not (ROOT / link).exists()] == []


def test_recipe_of_an_environment(monkeypatch):
    code = next(block for block in re.findall(r"```python\n(.*?)```", README, re.DOTALL) if "GoalEnv" in block)
    module: dict = {}
    exec(code, module)
    monkeypatch.setitem(envs.ENVS, "point", module["Point"])
    for backend in module["Point"].physics:
        checks, _ = check_env(envs.make_env("point", backend), 4, 60, QUICK_COMPILE)
        assert [check for check in checks if not check.passed] == []
    with pytest.raises(ValueError, match="spring"):
        envs.make_env("point", "spring")
