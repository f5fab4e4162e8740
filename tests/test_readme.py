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
from scripts import readme_tables

ROOT = Path(__file__).resolve().parents[1]
PAGES = {path: path.read_text() for path in [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]}
TEXT = "\n".join(PAGES.values())


def test_tables_are_those_of_the_code():
    # A process of its own: the registry here may hold the environments of other tests.
    command = [sys.executable, str(ROOT / "scripts" / "readme_tables.py"), "--check"]
    checked = subprocess.run(command, capture_output=True, text=True)
    assert checked.returncode == 0, f"run scripts/readme_tables.py: {checked.stderr}"


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.name)
def test_links_lead_somewhere(path):
    links = re.findall(r"\]\((?!http)([^)#]*)#?([^)]*)\)", PAGES[path])
    for file, heading in links:
        target = (path.parent / file).resolve() if file else path
        assert target.exists(), file
        if heading:
            headings = re.findall(r"^#+ (.*)$", target.read_text(), re.MULTILINE)
            assert heading in [re.sub(r"[^\w -]", "", each).lower().replace(" ", "-") for each in headings]


def test_the_readme_is_short():
    assert len(PAGES[ROOT / "README.md"].encode()) <= 20_000


def test_what_a_newcomer_reads_is_short():
    assert sum(readme_tables.line_count(ROOT / name, part) for name, part, _ in readme_tables.READING_PATH) <= 1500


def test_recipe_of_an_environment(monkeypatch):
    code = next(block for block in re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL) if "PhysicsEnv" in block)
    module: dict = {}
    exec(code, module)
    monkeypatch.setitem(envs.ENVS, "point_mass", module["PointMass"])
    for backend in module["PointMass"].physics:
        checks, _ = check_env(envs.make_env("point_mass", backend), 4, 60, QUICK_COMPILE)
        assert [check for check in checks if not check.passed] == []
    with pytest.raises(ValueError, match="spring"):
        envs.make_env("point_mass", "spring")


# The commands, each with the same sizes made small.

TRAINING = shlex.split("""
    --num_envs 4 --batch_size 8 --episode_length 40 --unroll_length 10 --min_replay_size 20 --max_replay_size 100
    --num_timesteps 400 --num_evals 2 --num_eval_envs 2 --no_render
""")

MANY_CHECKPOINTS = ["--num_timesteps", "20000", "--num_evals", "40"]  # so that kills come after some of them

# What stands after the words of a command, by its program.
SMALL = {
    "training.py": TRAINING,
    "scripts/benchmark.py": [*TRAINING, "--repeats", "1", "--updates", "2"],
    "scripts/benchmark.py checkpoint": [*TRAINING, "--pairs", "1"],
    "scripts/benchmark.py engines": shlex.split("--envs reacher --num_envs 2 --steps 2 --repeats 1"),
    "scripts/benchmark.py agreement": shlex.split("--envs pusher_easy --num_envs 2 --steps 2"),
    "scripts/benchmark.py mazes": shlex.split("--layouts u_maze --num_envs 2 --steps 2 --repeats 1"),
    "scripts/benchmark.py scale": [],
    "scripts/crash_test.py": ["--kills", "4", f"--flags={shlex.join([*TRAINING, *MANY_CHECKPOINTS])}"],
    "scripts/evaluate.py": ["--episodes", "4"],
    "scripts/export.py": [],
    "scripts/gallery.py": [],
    "scripts/plot.py": [],
    "scripts/readme_tables.py": [],
    "scripts/render.py": ["--seconds", "1"],
    "scripts/sweep.py": ["--", *TRAINING, "--no_log_wandb"],
    "envs.check": shlex.split("--num_envs 2 --num_steps 5"),
}

# In the place of python: the real one, on small sizes.
PYTHON = """#!{python}
import os, sys
words = sys.argv[1:]
if words[0] == "-c":
    os.execv({python!r}, [{python!r}, *words])
program = words[1] if words[0] == "-m" else words[0]
if program == "pytest":
    sys.exit()  # these tests, inside of themselves
small = {small}
more = small.get(" ".join(words[:2]), small.get(program))
if more[:1] == ["--"] and "--" in words:
    more = more[1:]
os.execv({python!r}, [{python!r}, *words, *more])
"""

# What runs nowhere or elsewhere: the loops in test_experiments.py and test_reproduce.py, the viewer in test_play.py,
# W&B's own commands in test_sweep.py.
ELSEWHERE = {
    *("scripts/losses.sh --env_name ant", "SEEDS=1 scripts/losses.sh --num_seeds 5", 'SEEDS="1 2 3"'),
    "scripts/reproduce.sh ENV",
    "python scripts/play.py RUN_DIR",
    # of a run in a maze
    "python scripts/evaluate.py RUN_DIR --eval_gen_distances 10",
    "python scripts/evaluate.py RUN_DIR --eval_env ant_u4_maze_eval",
    "source .venv/bin/activate",
    "wandb sweep --project exemplary_sweep ./scripts/sweep.yml",
    "wandb agent ID",
    "srun python training.py --env_name ant --num_seeds 8 --coordinator_address auto",
}

# What stands for something in a command, or takes long.
PLACEHOLDERS = {
    " --sweep ": " ",
    "RUN_DIR": '"$RUN_DIR"',
    "NAME": "reacher",
    "envs.check point_mass": "envs.check reacher",
    "envs.check --all": "envs.check reacher",
    "in 1 2 3 4 5;": "in 1;",
    "in binary infonce flatnce fb dp;": "in binary dp;",
    # What compiles faster. The ant is trained by scripts/train.sh.
    "--env_name ant ": "--env_name reacher ",
    "--env_name ant\n": "--env_name reacher\n",
    "_maze_gen --gen": "_maze_gen --backend mujoco --gen",
    "_maze --network": "_maze --backend mujoco --network",
    "sweep.yml\n": "sweep.yml --runs 1\n",
    "--runs 20": "--runs 2",
    "--num_seeds 5": "--num_seeds 2",
    "--num_seeds 8": "--num_seeds 2",
}


def commands() -> list[str]:
    """Every bash block of README and docs, and every command inside of their sentences, without comments and line
    breaks."""
    blocks = re.findall(r"```bash\n(.*?)```", TEXT, re.DOTALL)
    pages = [re.sub(r"```.*?```", "", page, flags=re.DOTALL) for page in PAGES.values()]
    quoted = [" ".join(words.split()) for page in pages for words in re.findall(r"`([^`]+)`", page)]
    quoted = [words for words in quoted if re.match(r"python |(\./)?scripts/\S+\.sh |SEEDS=", words)]
    without_comments = [re.sub(r"\s+# .*", "", block).strip() for block in [*blocks, *quoted]]
    return list(dict.fromkeys(re.sub(r"\\\n\s*", "", block) for block in without_comments))


def runnable(block: str) -> str:
    """The lines of a block that run here, with its placeholders filled in; the two hosts of one run side by side."""
    lines = [line for line in block.splitlines() if line.strip() not in ELSEWHERE]
    hosts = [f"{line} & hosts+=($!)" for line in lines if "HOST0" in line]
    waits = ['for host in "${hosts[@]}"; do wait "$host"; done'] if hosts else []
    script = "\n".join([*(line for line in lines if "HOST0" not in line), *hosts, *waits])
    script += "\n"
    for placeholder, value in PLACEHOLDERS.items():
        script = script.replace(placeholder, value)
    return script


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
    lock = (root / "requirements.lock").read_bytes()
    checksum = subprocess.run(["cksum"], input=lock, capture_output=True, check=True).stdout.decode().strip()
    (root / ".venv" / "complete").write_text(f"{checksum}  python3\n")
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("WANDB_", "PYTHON"))}
    environment["XLA_FLAGS"] = "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"
    environment |= {"PATH": f"{binaries}{os.pathsep}{os.environ['PATH']}", "JAX_EXTRA": "", "HOME": str(root)}

    def run(script):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            script = script.replace("HOST0:1234", f"127.0.0.1:{free.getsockname()[1]}")
        command = ["timeout", "900", "bash", "-euo", "pipefail", "-c", script]  # ends all that it started
        process = subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True)
        assert process.returncode == 0, f"{script}\n{process.stdout[-2000:]}\n{process.stderr[-20000:]}"

    run("python training.py --env_name reacher --exp_name shown")
    (environment["RUN_DIR"],) = map(str, (root / "runs" / "crl" / "test").glob("shown_*"))
    run.run_dir = environment["RUN_DIR"]
    return run


def test_what_runs_elsewhere_is_in_the_readme():
    assert {line.strip() for block in commands() for line in block.splitlines()} >= ELSEWHERE


@pytest.mark.slow
@pytest.mark.parametrize("block", [block for block in commands() if runnable(block).strip()])
def test_a_command_runs(clone, block):
    if ("render.py" in block or "gallery.py" in block) and not can_draw():
        pytest.skip("no OpenGL here")
    clone(runnable(block))


@pytest.mark.slow
def test_a_policy_is_loaded_as_shown(clone):
    code = next(block for block in re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL) if "load_policy" in block)
    code = re.sub(r'"runs/[^"]*"', repr(clone.run_dir), code)
    names = {"obs": np.zeros((3, 13), np.float32)}  # reacher: state 10, goal 3
    exec(code, names)
    assert names["action"].shape == (3, 2)
    assert np.all(np.abs(names["action"]) <= 1)


@pytest.mark.slow
def test_an_export_is_loaded_as_shown(clone):
    """By the loader as it lies there, in a process without the repository."""
    code = next(block for block in re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL) if "ExportedPolicy" in block)
    clone('python scripts/export.py "$RUN_DIR" --out elsewhere/policy.npz; cp scripts/exported_policy.py elsewhere')
    program = f"import numpy\nobs = numpy.zeros((3, 13))\n{code}\nassert action.shape == (3, 2)"  # reacher: 10 + 3
    clone(f"cd elsewhere; {sys.executable} -c {shlex.quote(program)}")
