"""scripts/check_result.py: the folders of results/ are complete, and what is missing is named."""

import json
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

# What is broken -> how, and what is said of it.
BROKEN = {
    "commit": (lambda folder: rewrite_record(folder, git_commit=None), "lacks git_commit"),
    "versions": (lambda folder: rewrite_record(folder, versions={"python": "3.11"}), "lacks the version of jax"),
    "record": (lambda folder: (folder / "config.json").write_text("{"), "config.json cannot be read"),
    "curve": (lambda folder: (folder / "metrics.csv").unlink(), "metrics.csv cannot be read"),
    "order": (swap_rows, "env steps come"),
    "stopped": (without_last_rows, "of 6,000,000 env steps: the row in README.md must say that it was stopped"),
    "flags": (lambda folder: in_record(folder, '"energy_fn": "l2"', '"energy_fn": "dot"'), "--energy_fn dot, which"),
    "row": (lambda folder: in_readme(folder, "| `ant_cpu` |", "| `other` |"), "has no row | `ant_cpu` |"),
    "command": (
        lambda folder: in_readme(folder, "`python training.py --env_name ant --num_envs 256", "`"),
        "no command",
    ),
    "no such flag": (lambda folder: in_readme(folder, "--num_envs 256", "--numenvs 256"), "cannot be read"),
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
    command = check_result.commands_of(check_result.readme_row(folder))[0]
    row = f"| `new` | `python training.py {' '.join(command)}`"
    readme = folder.parent / "README.md"
    readme.write_text(f"{row} |\n")
    (problem,) = check_result.check(folder.parent / "new")
    assert "new/dot: config.json has --energy_fn dot" in problem
    readme.write_text(f"{row}, `python training.py {' '.join(command)} --energy_fn dot` |\n")
    assert check_result.check(folder.parent / "new") == []


def test_a_folder_without_runs_and_no_folder(tmp_path, capsys):
    assert check_result.main([str(tmp_path)]) == 1
    assert "no run in it" in capsys.readouterr().out
    assert check_result.main([str(tmp_path / "nowhere")]) == 2
    assert capsys.readouterr().err.count("\n") == 1
