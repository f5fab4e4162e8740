"""scripts/check_result.py: the folders of results/ are complete, and what is missing is named."""

import json
import re
import shutil
from pathlib import Path

import pytest

from scripts import check_result

RESULTS = Path(__file__).resolve().parents[1] / "results"
FOLDERS = sorted(path.name for path in RESULTS.iterdir() if any(path.rglob("config.json")))


@pytest.mark.parametrize("name", FOLDERS)
def test_a_folder_of_results_is_complete(name):
    assert check_result.check(RESULTS / name) == []


@pytest.fixture
def folder(tmp_path):
    """A copy of a complete folder, with the README beside it."""
    shutil.copytree(RESULTS / "ant_cpu", tmp_path / "ant_cpu")
    shutil.copy(RESULTS / "README.md", tmp_path)
    return tmp_path / "ant_cpu"


def rewrite_record(folder, **changes):
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def without_last_rows(folder):
    lines = (folder / "metrics.csv").read_text().splitlines()
    (folder / "metrics.csv").write_text("\n".join(lines[:-3]) + "\n")


def swap_rows(folder):
    header, *lines = (folder / "metrics.csv").read_text().splitlines()
    lines[2], lines[3] = lines[3], lines[2]
    (folder / "metrics.csv").write_text("\n".join([header, *lines]) + "\n")


def replace_in(name):
    def replace(folder, old, new):
        path = folder / name
        assert old in path.read_text()
        path.write_text(path.read_text().replace(old, new))

    return replace


in_record, in_readme = replace_in("config.json"), replace_in("../README.md")


def edit_table(edit):
    """Gives `edit` the header and the rows of metrics.csv as lists of cells."""

    def spoil(folder):
        path = folder / "metrics.csv"
        table = [line.split(",") for line in path.read_text().splitlines()]
        edit(table)
        path.write_text("\n".join(",".join(cells) for cells in table) + "\n")

    return spoil


def put(column, text):
    """Writes a text into a column of the third row."""
    return edit_table(lambda table: table[3].__setitem__(table[0].index(column), text))


def keep_columns(*names):
    def keep(table):
        places = [table[0].index(name) for name in names]
        table[:] = [[cells[place] for place in places] for cells in table]

    return edit_table(keep)


def cut_last_row(folder):
    path = folder / "metrics.csv"
    text = path.read_text().rstrip()
    path.write_text(text[: (text.rindex("\n") + len(text)) // 2])


def flags_of(folder, **changes):
    flags = json.loads((folder / "config.json").read_text())["flags"]
    rewrite_record(folder, flags={name: value for name, value in (flags | changes).items() if value is not ...})


def copy_as(name, **changes):
    def copy(folder):
        shutil.copytree(folder, folder / name)
        flags_of(folder / name, **changes)

    return copy


VERSIONS = json.loads((RESULTS / "ant_cpu" / "config.json").read_text())["versions"]

# What is broken -> how, and what is said of it.
BROKEN = {
    "commit": (lambda folder: rewrite_record(folder, git_commit=None), "lacks git_commit"),
    "dirty": (lambda folder: rewrite_record(folder, git_commit="ab12-dirty"), "changes that no commit holds"),
    "versions": (lambda folder: rewrite_record(folder, versions=VERSIONS | {"jax": ""}), "lacks the version of jax"),
    "engine": (lambda folder: rewrite_record(folder, versions={"python": "3.11"}), "lacks the version of mujoco"),
    "text": (lambda folder: rewrite_record(folder, versions="all"), "config.json cannot be read"),
    "record": (lambda folder: (folder / "config.json").write_text("{"), "config.json cannot be read"),
    "no record": (lambda folder: (folder / "config.json").unlink(), "config.json cannot be read"),
    "flags as a list": (lambda folder: rewrite_record(folder, flags=[1]), "config.json cannot be read"),
    "no length": (lambda folder: flags_of(folder, num_timesteps=...), "config.json cannot be read"),
    "length as a text": (lambda folder: flags_of(folder, num_timesteps="6M"), "config.json cannot be read"),
    "curve": (lambda folder: (folder / "metrics.csv").unlink(), "metrics.csv cannot be read"),
    "cut": (cut_last_row, "has not as many cells as the header"),
    "more cells": (edit_table(lambda table: table[4].append("1")), "line 5 has not as many cells as the header"),
    "columns": (keep_columns("env_steps", check_result.SUCCESS, check_result.TIME), "lacks training/sps"),
    "success": (
        edit_table(lambda table: table[3].__setitem__(table[0].index(check_result.SUCCESS), "")),
        "lacks eval/",
    ),
    "rows": (edit_table(lambda table: table.__delitem__(slice(3, 10))), "lacks the evaluation at"),
    "loss": (put("training/crl_critic_loss", "nan"), "training/crl_critic_loss is no number"),
    "share": (put(check_result.SUCCESS, "7.5"), f"{check_result.SUCCESS} is no number, or one that it cannot be"),
    "steps": (put("env_steps", "inf"), "metrics.csv cannot be read"),
    "order": (swap_rows, "env steps come"),
    "stopped": (without_last_rows, "of 6,000,000 env steps: the row in README.md must say that it was stopped"),
    "flags": (lambda folder: in_record(folder, '"energy_fn": "l2"', '"energy_fn": "dot"'), "--energy_fn dot, which"),
    "physics": (lambda folder: flags_of(folder, backend="generalized"), "--backend generalized, which"),
    "episodes": (lambda folder: flags_of(folder, num_eval_envs=64), "--num_eval_envs 64, which"),
    "seed": (lambda folder: flags_of(folder, seed=3), "--seed 3, which"),
    "copy": (copy_as("copy"), "the same flags, seed and commit as"),
    "row": (lambda folder: in_readme(folder, "| `ant_cpu` |", "| `other` |"), "has no row | `ant_cpu` |"),
    "command": (
        lambda folder: in_readme(folder, "`python training.py --env_name ant --num_envs 256", "`"),
        "no command",
    ),
    "no such flag": (lambda folder: in_readme(folder, "--num_envs 256", "--numenvs 256"), "cannot be read"),
    "quote": (lambda folder: in_readme(folder, "--num_envs 256", "--exp_name don't"), "cannot be read"),
    "help": (lambda folder: in_readme(folder, "--num_envs 256", "--help"), "asks for help"),
}


@pytest.mark.parametrize("what", BROKEN)
def test_what_is_missing_is_named(folder, what, capsys):
    spoil, said = BROKEN[what]
    spoil(folder)
    assert check_result.main([str(folder)]) == 1
    assert said in capsys.readouterr().out


def test_a_row_may_say_that_a_run_was_stopped(folder):
    without_last_rows(folder)
    in_readme(folder, "success 0.62 at 3.9M", "stopped after 5.3M: success 0.62 at 3.9M")
    assert check_result.check(folder) == []


def test_a_row_may_have_several_commands(folder):
    """A run has to be of one of them."""
    for name, energy_fn in (("l2", "l2"), ("dot", "dot")):
        shutil.copytree(folder, folder.parent / "new" / name)
        in_record(folder.parent / "new" / name, '"energy_fn": "l2"', f'"energy_fn": "{energy_fn}"')
    command = re.search("`(python training.py [^`]*)`", check_result.readme_row(folder))[1]
    row = f"| `new` | `{command}`"
    readme = folder.parent / "README.md"
    readme.write_text(f"{row} |\n")
    (problem,) = check_result.check(folder.parent / "new")
    assert "new/dot: config.json has --energy_fn dot" in problem
    readme.write_text(f"{row}, `{command} --energy_fn dot` |\n")
    assert check_result.check(folder.parent / "new") == []


def test_a_folder_without_runs_and_no_folder(tmp_path, capsys):
    assert check_result.main([str(tmp_path)]) == 1
    assert "no run in it" in capsys.readouterr().out
    assert check_result.main([str(tmp_path / "nowhere")]) == 2
    assert capsys.readouterr().err.count("\n") == 1
