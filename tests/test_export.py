"""scripts/export.py: what it writes acts as the policy does, with NumPy alone, in projects that know nothing of us."""

import dataclasses
import itertools
import json
import shutil
import subprocess
import sys
from pathlib import Path

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import ProbeEnv, slow, tiny, tiny_of
from toys import LINEAR

from scripts import export, exported_policy
from scripts.exported_policy import ExportedPolicy
from src import networks
from src.agent import update_moments
from src.algorithms import ALGORITHMS
from src.algorithms.crl import CRLConfig
from src.checkpoint import BEST_PARAMS_FILE, PARAMS_FILE, save_params
from src.networks import NETWORKS
from src.policy import load_policy
from utils import FAILED, REFUSED, derive_schedule, write_record

pytestmark = pytest.mark.usefixtures("probe_registered")
OBS = (np.random.default_rng(0).standard_normal((7, 3, 4)) * 2).astype(np.float32)


def agent_state_of(config, seed=0):
    """One that could have been trained: every parameter has moved, and states were seen."""
    state = ALGORITHMS[config.algorithm].make(config, ProbeEnv()).init(jax.random.key(seed))
    rng = np.random.default_rng(seed)
    params = jax.tree.map(
        lambda leaf: leaf + rng.normal(0, 0.4 / max(leaf.shape, default=1) ** 0.5, leaf.shape), state.params
    )
    states = jnp.asarray(rng.normal(1, 3, (50, ProbeEnv.state_dim)), jnp.float32)
    return state.replace(params=params, normalizer=update_moments(state.normalizer, states))


def run_of(run_dir, config):
    """A run folder as training leaves it."""
    run_dir.mkdir(exist_ok=True)
    write_record(run_dir, config, derive_schedule(config), ["cpu"], [run_dir.name])
    save_params(run_dir / PARAMS_FILE, agent_state_of(config))
    return run_dir


def planned(policy, obs):
    """The actions of a policy of one step, or the plan (..., H, action_size) of one with a memory."""
    if not policy.has_memory:
        return policy(obs)
    return policy(obs, policy.init_memory(obs.shape[:-1]))[1].actions


def assert_exported(run_dir, *args, obs=OBS):
    """The export acts as the policy of the run; returns it."""
    out = run_dir / "exported.npz"
    assert export.main([str(run_dir), "--out", str(out), *args]) == 0
    policy, exported = load_policy(run_dir, params=args[1] if args else "last"), ExportedPolicy(out)
    expected = planned(policy, obs)
    assert exported(obs).shape == expected.shape
    np.testing.assert_allclose(exported(obs), expected, atol=1e-5)
    np.testing.assert_allclose(exported(obs[0, 0].tolist()), expected[0, 0], atol=1e-5)
    assert np.std(expected) > 0.01  # actions that tell one policy from another
    return exported


def parts_of_policies():
    """Every algorithm and network; by default CRL's, and of the others an MLP with all of its parts."""
    kinds = [network for network in NETWORKS if network != "by_depth"]  # which is one of the others
    for algorithm, network, *parts in itertools.product(ALGORITHMS, kinds, (False, True), (False, True)):
        by_default = algorithm == "crl" or (network == "mlp" and all(parts))
        case = (algorithm, network, *parts)
        yield case if by_default else slow(*case)


@pytest.mark.parametrize(("algorithm", "network", "use_ln", "normalize"), list(parts_of_policies()))
def test_an_export_acts_as_the_policy(tmp_path, algorithm, network, use_ln, normalize):
    """Every algorithm and network that there is, so that none can be forgotten."""
    sizes = {"network": network, "use_ln": use_ln, "normalize_observations": normalize, "n_hidden": 4}
    config = tiny_of(ALGORITHMS[algorithm].config, **sizes, actor_n_hidden=8 if network == "residual4" else 3)
    exported = assert_exported(run_of(tmp_path, config))
    assert (exported.obs_size, exported.action_size) == (4, 2)
    assert exported.plan_length == getattr(config, "action_chunk", 1)


@pytest.mark.parametrize(("n_hidden", "h_dim"), [(1, 8), slow(2, 5), slow(3, 8), (16, 32)])
@pytest.mark.parametrize("network", list(NETWORKS))
def test_networks_of_any_depth(tmp_path, network, n_hidden, h_dim):
    n_hidden *= networks.DEPTH_STEPS.get(network, 1)
    config = tiny(network=network, n_hidden=n_hidden, h_dim=h_dim, use_ln=True)
    assert_exported(run_of(tmp_path, config))


PLANNERS = [name for name, method in ALGORITHMS.items() if "action_chunk" in method.config.__dataclass_fields__]


@pytest.mark.parametrize("algorithm", PLANNERS)
def test_a_policy_with_a_memory_exports_its_whole_plan(tmp_path, algorithm):
    config = tiny_of(ALGORITHMS[algorithm].config, action_chunk=3, normalize_observations=True)
    exported = assert_exported(run_of(tmp_path, config))
    assert exported(OBS).shape == (7, 3, 3, 2) and exported.plan_length == 3


def test_any_kept_policy_is_exported(tmp_path):
    config = tiny()
    run_dir = run_of(tmp_path, config)
    (run_dir / "policies").mkdir()
    places = {"best": BEST_PARAMS_FILE, "800": "policies/000000000800.npz", str(run_dir / "copy.npz"): "copy.npz"}
    actions = [assert_exported(run_dir)(OBS)]
    for seed, (params, file) in enumerate(places.items(), start=1):
        save_params(run_dir / file, agent_state_of(config, seed))
        actions.append(assert_exported(run_dir, "--params", params)(OBS))
    assert all(np.any(one != other) for one, other in itertools.combinations(actions, 2))


# The project of somebody else.

FOREIGN = """
import json, sys
import utils, envs.maze
from exported_policy import ExportedPolicy

try:
    import jax
    sys.exit("JAX is here")
except ImportError:
    pass
policy = ExportedPolicy(sys.argv[1])
obs = json.loads(sys.stdin.read())
print(json.dumps([utils.MINE, envs.maze.MINE, sorted(name for name in sys.modules if name.startswith("src"))]))
print(json.dumps(policy(obs).tolist()))
"""


def test_an_export_is_loaded_in_a_project_with_its_own_utils_and_envs(tmp_path):
    """With NumPy and nothing else to import, not even what is installed beside it."""
    run_dir = run_of(tmp_path / "run", tiny(action_chunk=2, normalize_observations=True, use_ln=True))
    assert export.main([str(run_dir), "--out", str(tmp_path / "policy.npz")]) == 0
    project, installed = tmp_path / "project", tmp_path / "installed"
    (project / "envs").mkdir(parents=True)
    installed.mkdir()
    for name in ("utils.py", "envs/__init__.py", "envs/maze.py"):
        (project / name).write_text("MINE = True\n")
    (project / "main.py").write_text(FOREIGN)
    shutil.copy(exported_policy.__file__, project)
    packages = Path(np.__file__).parents[1]
    for name in ("numpy", "numpy.libs"):
        if (packages / name).exists():
            (installed / name).symlink_to(packages / name)
    command = [sys.executable, "-S", str(project / "main.py"), str(tmp_path / "policy.npz")]
    environment = {"PYTHONPATH": str(installed)}
    text = json.dumps(OBS.tolist())
    answer = subprocess.run(command, input=text, env=environment, cwd=tmp_path, capture_output=True, text=True)
    assert answer.returncode == 0, answer.stderr
    modules, actions = map(json.loads, answer.stdout.splitlines())
    assert modules == [True, True, []]
    np.testing.assert_allclose(actions, planned(load_policy(run_dir), OBS), atol=1e-5)


def test_the_loader_is_one_short_file():
    lines = Path(exported_policy.__file__).read_text().split('"""', 2)[2].splitlines()
    assert sum(bool(line.strip()) for line in lines) <= 35


# Refusals.


def refused(capsys, *args, status=REFUSED):
    capsys.readouterr()
    assert export.main(list(args)) == status
    (line,) = capsys.readouterr().err.splitlines()
    return line


def test_requests_that_cannot_be_carried_out(tmp_path, capsys):
    run_dir, out = str(run_of(tmp_path, tiny())), str(tmp_path / "policy.npz")
    assert "is not a run folder" in refused(capsys, str(tmp_path / "nothing"), "--out", out)
    assert "holds no policy '900': there are last" in refused(capsys, run_dir, "--params", "900", "--out", out)
    assert "--out policy has another ending than .npz, e.g. policy.npz" in refused(capsys, run_dir, "--out", "policy")
    (tmp_path / "file").touch()
    line = refused(capsys, run_dir, "--out", str(tmp_path / "file" / "policy.npz"), status=FAILED)
    assert line.startswith("error: ")
    assert not list(tmp_path.glob("*policy*"))


def test_an_algorithm_without_an_actor_is_refused(tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(ALGORITHMS, "linear", LINEAR)
    run_dir = run_of(tmp_path, tiny_of(LINEAR.config))
    line = refused(capsys, str(run_dir), "--out", str(tmp_path / "policy.npz"))
    assert line == "error: --algorithm linear has no policy that can be exported: no `actor`"


def test_an_activation_that_the_loader_lacks_is_refused(tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(NETWORKS, "elu", lambda **sizes: networks.MLP(**sizes, activation=nn.elu))
    line = refused(capsys, str(run_of(tmp_path, tiny(network="elu"))), "--out", str(tmp_path / "policy.npz"))
    assert line == "error: scripts/exported_policy.py has no activation elu: add it there"


def test_an_export_that_would_act_otherwise_is_not_written(tmp_path, capsys, monkeypatch):
    """An algorithm whose policy is more than the tanh of its actor."""

    def halved(config, env):
        algorithm = ALGORITHMS["crl"].make(config, env)

        def act(*inputs, **options):
            action, memory = algorithm.act(*inputs, **options)
            return action / 2, memory

        return algorithm._replace(act=act)

    config_class = dataclasses.make_dataclass("Halved", [("algorithm", str, "halved")], bases=(CRLConfig,), frozen=True)
    monkeypatch.setitem(ALGORITHMS, "halved", ALGORITHMS["crl"]._replace(config=config_class, make=halved))
    run_dir = run_of(tmp_path, tiny_of(config_class))
    line = refused(capsys, str(run_dir), "--out", str(tmp_path / "policy.npz"))
    assert "the exported policy would differ from the run's by 0." in line
    assert not list(tmp_path.glob("*policy*"))
