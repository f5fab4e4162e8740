"""The README says what is true: its tables are those of the code, its commands run, its recipe builds an env."""

import json
import os
import re
import shlex
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from drawing import can_draw

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


# The commands, each with the same sizes made small.

TRAINING = shlex.split("""
    --num_envs 4 --batch_size 8 --episode_length 40 --unroll_length 10 --min_replay_size 20 --max_replay_size 100
    --num_timesteps 400 --num_evals 2 --num_eval_envs 2 --no_render
""")

# What stands after the words of a command, by its program.
SMALL = {
    "training.py": TRAINING,
    "scripts/benchmark.py": [*TRAINING, "--repeats", "1", "--updates", "2"],
    "scripts/benchmark_checkpoint.py": [*TRAINING, "--pairs", "1"],
    "scripts/benchmark_mazes.py": shlex.split("--layouts u_maze --num-envs 2 --steps 2 --repeats 1"),
    "scripts/crash_test.py": ["--kills", "1", f"--flags={' '.join([*TRAINING, '--num_evals', '20'])}"],
    "scripts/evaluate.py": ["--episodes", "4"],
    "scripts/gallery.py": [],
    "scripts/plot.py": [],
    "scripts/render.py": ["--episodes", "2"],
    "scripts/scale_plan.py": [],
    "scripts/sweep.py": ["--", *TRAINING, "--no_log_wandb"],
    "envs.check": shlex.split("--num_envs 2 --num_steps 5"),
}

# In the place of python: the real one, on small sizes.
PYTHON = """#!{python}
import os, sys
words = sys.argv[1:]
program = words[1] if words[0] == "-m" else words[0]
if program == "pytest":
    sys.exit()  # these tests, inside of themselves
more = {small}[program]
if more[:1] == ["--"] and "--" in words:
    more = more[1:]
os.execv({python!r}, [{python!r}, *words, *more])
"""

# What no test of this machine can run, by its first word; W&B's commands run in test_sweep.py, the viewer in
# test_play.py, the loops in test_experiments.py.
ELSEWHERE = (
    "conda",
    "pip",
    "source",
    "srun",
    "ssh",
    "taskset",
    "wandb",
    "scripts/",
    "SEEDS",
    "docker",
    "python scripts/play.py",
)


def commands() -> list[str]:
    """Every bash block of the README, and every command inside of its sentences, without the comments."""
    blocks = re.findall(r"```bash\n(.*?)```", README, re.DOTALL)
    sentences = re.sub(r"```.*?```", "", README, flags=re.DOTALL)
    quoted = [" ".join(words.split()) for words in re.findall(r"`([^`]+)`", sentences)]
    quoted = [words for words in quoted if re.match(r"python |(\./)?scripts/\S+\.sh |SEEDS=", words)]
    return list(dict.fromkeys(re.sub(r"\s+# .*", "", block).strip() for block in [*blocks, *quoted]))


def runnable(block: str) -> str:
    """The lines of a block that run here, with its placeholders filled in."""
    lines = block.replace("\\\n", " ").splitlines()
    lines = [line for line in lines if not line.strip().startswith(ELSEWHERE)]
    together = [f"{line} &" if "HOST0" in line else line for line in lines]
    script = "\n".join([*together, *["wait -n"] * sum("HOST0" in line for line in lines)])
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        script = script.replace("HOST0:1234", f"127.0.0.1:{free.getsockname()[1]}")
    for placeholder, value in {
        "RUN_DIR": '"$RUN_DIR"',
        "NAME": "reacher",
        "1 2 3 4 5": "1",
        "check point": "check reacher",
    }.items():
        script = script.replace(placeholder, value)
    return script.replace("--runs 20", "--runs 2").replace("sweep.yml\n", "sweep.yml --runs 2\n")


@pytest.fixture(scope="module")
def clone(tmp_path_factory):
    """A copy of the repository with an environment of its own and one run; run(script) does it there."""
    root = tmp_path_factory.mktemp("clone") / "crl"
    shutil.copytree(
        ROOT, root, ignore=shutil.ignore_patterns(".git", ".venv", "runs", "wandb", "__pycache__", ".*cache")
    )
    binaries = root / ".venv" / "bin"
    binaries.mkdir(parents=True)
    (binaries / "python").write_text(PYTHON.format(python=sys.executable, small=json.dumps(SMALL)))
    (binaries / "python").chmod(0o755)
    checksum = subprocess.run(["cksum"], stdin=(root / "requirements.lock").open(), capture_output=True, text=True)
    (root / ".venv" / "complete").write_text(f"{checksum.stdout.strip()}  python3\n")
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("WANDB_", "PYTHON"))}
    environment |= {"PATH": f"{binaries}{os.pathsep}{os.environ['PATH']}", "JAX_EXTRA": "", "HOME": str(root)}

    def run(script):
        command = ["bash", "-euo", "pipefail", "-c", script]
        process = subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True, timeout=900)
        assert process.returncode == 0, f"{script}\n{process.stdout[-2000:]}\n{process.stderr[-4000:]}"
        return process.stdout

    run("python training.py --env_name reacher --exp_name shown")
    (environment["RUN_DIR"],) = map(str, (root / "runs" / "crl" / "test").glob("shown_*"))
    run.run_dir = environment["RUN_DIR"]
    return run


def test_the_readme_has_commands():
    assert sum("training.py" in block for block in commands()) >= 5
    assert {block for block in commands() if not runnable(block).strip()} <= {
        block for block in commands() if block.startswith(ELSEWHERE)
    }


@pytest.mark.slow
@pytest.mark.parametrize("block", [block for block in commands() if runnable(block).strip()])
def test_a_command_runs(clone, block):
    if ("render.py" in block or "gallery.py" in block) and not can_draw():
        pytest.skip("no OpenGL here")
    clone(runnable(block))


@pytest.mark.slow
def test_a_policy_is_loaded_as_shown(clone):
    code = next(block for block in re.findall(r"```python\n(.*?)```", README, re.DOTALL) if "load_policy" in block)
    code = re.sub(r'"runs/[^"]*"', repr(clone.run_dir), code)
    names = {"obs": np.zeros((3, 13), np.float32)}  # reacher: state 10, goal 3
    exec(code, names)
    assert names["action"].shape == (3, 2)
    assert np.all(np.abs(names["action"]) <= 1)
