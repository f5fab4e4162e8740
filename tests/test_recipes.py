"""The recipes of the README, followed to the letter: lines are added to a copy of the code, which then trains."""

import csv
import inspect
import json
import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import toys

from scripts import plot

ROOT = Path(__file__).resolve().parents[1]

PIECES = {
    "soft_l1": """
def soft_l1(x, y):
    return -jnp.sum(jnp.sqrt(1 + jnp.square(x - y)) - 1, axis=-1)
""",
    "hinge": """
def hinge(logits, no_resubs=False):
    return jnp.mean(jax.nn.relu(1 + logits - positives(logits)[:, None]))
""",
    "TanhMLP": """
class TanhMLP(nn.Module):
    h_dim: int
    n_hidden: int
    use_ln: bool

    @nn.compact
    def __call__(self, x):
        for _ in range(self.n_hidden):
            x = nn.tanh(nn.Dense(self.h_dim)(x))
        return x
""",
    "ring": """
        1 1 1 1
        1 R G 1
        1 1 1 1
    """,
    "actor_weight": """
    actor_weight: Annotated[float, Range(0), Before(1.0)] = 1.0
    \"\"\"Weight of the energy in the actor's loss.\"\"\"
""",
}
# File -> (code that stands in it once, what is put before it): the piece, and the line that names it.
RECIPES = {
    "src/losses.py": [
        ("ENERGY_FNS: dict", PIECES["soft_l1"]),
        ('    "l2": l2,', '    "soft_l1": soft_l1,\n'),
        ("CONTRASTIVE_LOSSES: dict", PIECES["hinge"]),
        ('    "infonce": infonce,', '    "hinge": hinge,\n'),
    ],
    "src/networks.py": [("NETWORKS: dict", PIECES["TanhMLP"]), ('    "mlp": MLP,', '    "tanh": TanhMLP,\n')],
    "src/critics.py": [
        ("CRITICS: dict", inspect.getsource(toys.bounded)),
        ('"two_encoders": two_encoders', '"bounded": bounded, '),
    ],
    "src/goals.py": [
        ("GOAL_RULES: dict", inspect.getsource(toys.next_rows)),
        ('"geometric": geometric', '"next": next_rows, '),
    ],
    "src/algorithms/__init__.py": [
        ("from src.algorithms import", "from src.algorithms.toys import LINEAR\n"),
        ('    "crl": Method(', '    "linear": LINEAR,\n'),
    ],
    "src/algorithms/crl.py": [
        ("    contrastive_loss_fn: ", PIECES["actor_weight"]),
        ("        if not config.exploration_coef:", "        energy = config.actor_weight * energy\n"),
    ],
    "envs/maze.py": [('    "u_maze": """', f'    "ring": """{PIECES["ring"]}""",\n')],
    "envs/__init__.py": [('    "arm_reach": ArmReach,', '    "simple_ring": partial(SimpleMaze, layout="ring"),\n')],
    "envs/ant.py": [('            "x_position": torso[0],', '            "speed": jnp.linalg.norm(velocity),\n')],
}

# An ant's maze comes with the table; the point mass in it, from one line more, is quick to train.
USE = """
import sys, training
from envs import make_env
assert make_env("ant_ring").walls.shape == (3, 4)
flags = sys.argv[1:]
crl = ["--env_name", "simple_ring", "--energy_fn", "soft_l1", "--contrastive_loss_fn", "hinge", "--network", "tanh"]
crl += ["--critic", "bounded", "--goal_rule", "next", "--actor_weight", "0.5", "--run_dir_file", "crl.txt"]
linear = ["--env_name", "point", "--algorithm", "linear", "--run_dir_file", "linear.txt"]
sys.exit(training.main([*flags, *crl]) or training.main([*flags, *linear]))
"""
SMALL = shlex.split("""
    --num_envs 4 --batch_size 8 --episode_length 40 --unroll_length 10 --min_replay_size 20 --max_replay_size 100
    --num_timesteps 800 --num_evals 3 --num_eval_envs 4 --no_render
""")


def put_before(path: Path, place: str, text: str) -> None:
    code = path.read_text()
    assert code.count(place) == 1, (path, place)
    path.write_text(code.replace(place, text + place))


@pytest.mark.slow
def test_the_recipes_are_one_piece_and_one_line_each(tmp_path):
    """Energy, loss, network, critic, goal rule, algorithm, maze, environment metric and hyperparameter, all at once."""
    for name in ("envs", "src"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("training.py", "utils.py"):
        shutil.copy(ROOT / name, tmp_path)
    shutil.copy(ROOT / "tests" / "toys.py", tmp_path / "src" / "algorithms")
    for name, additions in RECIPES.items():
        for place, text in additions:
            put_before(tmp_path / name, place, text)

    quick = "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"
    command = [sys.executable, "-c", USE, *SMALL]
    process = subprocess.run(
        command, cwd=tmp_path, env=os.environ | {"XLA_FLAGS": quick}, capture_output=True, text=True, timeout=600
    )
    assert process.returncode == 0, process.stderr
    run_dir, linear = (tmp_path / (tmp_path / f"{name}.txt").read_text().strip() for name in ("crl", "linear"))
    chosen = json.loads((run_dir / "config.json").read_text())["flags"]
    assert {"soft_l1", "hinge", "tanh", "bounded", "next", 0.5} <= {value for value in chosen.values()}
    with (run_dir / "metrics.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    for metric in ("eval/episode_speed", "training/actor_loss"):  # the environment's metric is summed and logged ...
        assert np.isfinite(float(rows[-1][metric]))
    assert plot.main([str(run_dir), "--metric", "eval/episode_speed", "--out", str(tmp_path / "speed.png")]) == 0
    assert (tmp_path / "speed.png").exists()  # ... and plotted
    with (linear / "metrics.csv").open(newline="") as file:
        assert np.isfinite(float(list(csv.DictReader(file))[-1]["training/clone_loss"]))
