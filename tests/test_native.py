"""MuJoCo's own engine: the numbers of its C library, whatever the threads, devices and batches; failures that show."""

import dataclasses
import functools
import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import mujoco
import numpy as np
import pytest
from brax import kinematics
from conftest import slow, tiny
from durability import arguments, run_dirs, start_process
from rollouts import FAMILIES, FIRST_OF_FILE, random_ants, roll

import training
from envs import ENVS, make_env, native, quicker_backend
from envs.ant_maze import AntBallMaze
from envs.check import QUICK_COMPILE
from envs.half_cheetah import HalfCheetah
from envs.physics import ENGINES, PhysicsEnv
from src import output
from src.output import read_rows
from src.policy import load_policy
from src.resume import with_backend

STEPPED = [
    name if name in FIRST_OF_FILE.values() else slow(name)
    for family, name in FAMILIES.items()
    if issubclass(family, PhysicsEnv)
]


@functools.cache
def built(name: str):
    return make_env(name, "mujoco")


@functools.cache
def starts(name: str, count: int = 8):
    """(count, ...) q, qd of moving bodies, and controls."""
    env, rng = built(name), np.random.default_rng(0)
    q = np.tile(np.array(env.sys.init_q), (count, 1))
    hinges = [slice(7, None) if env.sys.link_types[0] == "f" else slice(None)][0]
    q[:, hinges] += rng.uniform(-0.1, 0.1, q[:, hinges].shape)
    qd, control = rng.normal(0, 0.5, (count, env.sys.qd_size())), rng.uniform(-1, 1, (count, env.sys.act_size()))
    return tuple(leaf.astype(np.float32) for leaf in (q, qd, control))


def advance(env, q, qd, control):
    """q, qd after one control step."""
    return native._advance(env.sys.mj_model, env._physics.n_frames, False, q, qd, control)


def by_hand(env, q, qd, control):
    """The same by MuJoCo's own functions, one body after the other, from a cold start each."""
    model, after = env.sys.mj_model, []
    for start in zip(q, qd, control, strict=True):
        data = mujoco.MjData(model)
        data.qpos, data.qvel, data.ctrl = start
        for _ in range(env._physics.n_frames):
            mujoco.mj_step(model, data)
        after.append((data.qpos.copy(), data.qvel.copy()))
    return [np.stack(leaf).astype(np.float32) for leaf in zip(*after, strict=True)]


# The numbers.


@pytest.mark.parametrize("name", STEPPED)
def test_a_step_is_that_of_the_c_library(name):
    env, start = built(name), starts(name)
    for found, expected in zip(advance(env, *start), by_hand(env, *start), strict=True):
        assert found.dtype == np.float32 and np.isfinite(expected).all()
        np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("name", ["reacher", slow("humanoid")])
def test_an_environment_steps_by_it(name):
    """Through reset, `control` and the batch of `vmap`; the state is of the end of the step."""
    env, (q, qd, action) = built(name), starts(name, 3)
    states = roll(env, q, qd, np.zeros((3, env.goal_dim)), np.array([action]))
    expected = by_hand(env, q, qd, np.asarray(jax.vmap(env.control)(action)))
    for found, leaf in zip((states.pipeline_state.q, states.pipeline_state.qd), expected, strict=True):
        np.testing.assert_allclose(found[0], leaf, atol=1e-6)  # compiled with the step, a control is rounded otherwise


@pytest.mark.parametrize("threads", [1, 2, 4])
def test_numbers_do_not_depend_on_threads(threads, monkeypatch):
    env, start = built("ant_push"), starts("ant_push", 37)
    monkeypatch.setattr(native, "num_cores", lambda: threads)
    native.idle_workers.cache_clear()
    found = advance(env, *start)
    (worker,) = native.idle_workers(env.sys.mj_model)
    assert len(worker.data) == threads
    native.idle_workers.cache_clear()
    for leaf, expected in zip(found, by_hand(env, *start), strict=True):
        np.testing.assert_array_equal(leaf, expected)


def test_numbers_do_not_depend_on_the_batch():
    """Nor on what a worker did before: an env alone, in a batch, and in a batch of batches, as the seeds are."""
    env, (q, qd, control) = built("ant"), starts("ant", 6)
    together = advance(env, q, qd, control)
    alone = [advance(env, *each) for each in zip(q, qd, control, strict=True)]
    apart = [np.stack(leaf) for leaf in zip(*alone, strict=True)]

    def step(q, qd, control):
        pipeline_state = env.engine.step(env.sys, native.init(env.sys, q, qd), control, env._physics.n_frames)
        return pipeline_state.q, pipeline_state.qd

    grid = [leaf.reshape(2, 3, -1) for leaf in (q, qd, control)]
    nested = [np.asarray(leaf).reshape(6, -1) for leaf in jax.jit(jax.vmap(jax.vmap(step)))(*grid)]
    for one, other, third in zip(together, apart, nested, strict=True):
        np.testing.assert_array_equal(one, other)
        np.testing.assert_array_equal(one, third)


@pytest.mark.parametrize("name", STEPPED)
def test_links_are_where_mujoco_has_them_and_move_as_it_says(name):
    env, (q, qd, _) = built(name), starts(name, 4)
    model = env.sys.mj_model
    state = jax.jit(jax.vmap(functools.partial(native.init, env.sys)))(q, qd)
    for i in range(4):
        data = mujoco.MjData(model)
        data.qpos, data.qvel = q[i], qd[i]
        mujoco.mj_forward(model, data)
        np.testing.assert_allclose(state.x.pos[i], data.xpos[1:], atol=2e-6)
        same_sign = np.sign(np.sum(data.xquat[1:] * state.x.rot[i], axis=1, keepdims=True))
        np.testing.assert_allclose(state.x.rot[i], same_sign * data.xquat[1:], atol=2e-6)
        spin, about_root = data.cvel[1:, :3], data.cvel[1:, 3:]
        offset = data.xpos[1:] - data.subtree_com[model.body_rootid[1:]]
        np.testing.assert_allclose(state.xd.ang[i], spin, atol=2e-5)
        np.testing.assert_allclose(state.xd.vel[i], about_root + np.cross(spin, offset), atol=2e-5)


def test_links_of_a_chain_are_not_computed_again_inside_each_other():
    system = built("pusher_easy").sys
    joints = jnp.zeros((8, system.q_size())), jnp.zeros((8, system.qd_size()))

    def num_operations(function):
        return jax.jit(jax.vmap(function)).lower(*joints).compile().cost_analysis()["flops"]

    poses_alone = num_operations(lambda q, qd: kinematics.forward(system, q, qd)[0])
    assert num_operations(functools.partial(native.init, system)) < 3 * poses_alone


class Converged(HalfCheetah):
    """For MJX as exact a solver as MuJoCo's own engine has."""

    physics = {"mjx": dataclasses.replace(HalfCheetah.physics["mjx"], option=native.SOLVER)}


@pytest.mark.slow
def test_a_step_is_that_of_mjx():
    env, mjx, start = built("cheetah"), Converged("mjx"), starts("cheetah", 4)

    def step(q, qd, control):
        after = mjx.engine.step(mjx.sys, mjx.engine.init(mjx.sys, q, qd), control, mjx._physics.n_frames)
        return after.q, after.qd

    q, qd = jax.jit(jax.vmap(step)).lower(*start).compile(compiler_options=QUICK_COMPILE)(*start)
    found = advance(env, *start)
    np.testing.assert_allclose(found[0], q, atol=1e-6)
    np.testing.assert_allclose(found[1], qd, atol=1e-4)


@pytest.mark.parametrize("name", STEPPED)
def test_models_are_stepped_to_convergence_and_are_dense(name):
    """MuJoCo 4.0.0 may factorise sparse models wrongly (mended in 4.0.1); MuJoCo decides by the model's size."""
    env = built(name)
    model, option = env.sys.mj_model, env.sys.mj_model.opt
    assert not mujoco.mj_isSparse(model)
    assert (option.solver, option.iterations, option.ls_iterations) == (mujoco.mjtSolver.mjSOL_NEWTON, 100, 50)
    assert option.disableflags & mujoco.mjtDisableBit.mjDSBL_AUTORESET
    assert option.timestep == env._physics.timestep and option.tolerance == 1e-10
    data = mujoco.MjData(model)
    for start in zip(*starts(name), strict=True):
        mujoco.mj_resetData(model, data)
        data.qpos, data.qvel, data.ctrl = start
        mujoco.mj_step(model, data)
        assert data.solver_niter.max(initial=0) < option.iterations


# Mazes.


def test_a_maze_has_all_of_its_walls_and_they_stop_ant_and_ball():
    env, rng = AntBallMaze(layout="u_maze_ball", backend="mujoco"), np.random.default_rng(0)
    assert np.sum(env.sys.mj_model.geom_type == mujoco.mjtGeom.mjGEOM_BOX) == env.walls.sum()
    q, qd = random_ants(env, rng, np.full((8, 2), 4.0))
    q[:, :2], q[:, 15:] = (3.2, 4.0), (4.0, 10.8)  # the ant flies at the wall x = 2, the ball at y = 14
    qd[:] = 0
    qd[:, 0], qd[:, 15] = -5.0, 8.0
    states = roll(env, q, qd, np.zeros((8, 2)), np.zeros((25, 8, 8)))
    poses = np.asarray(states.pipeline_state.q)
    assert 2.0 < poses[..., 0].min() < 2.6
    assert 13.2 < poses[..., 16].max() < 13.6


# What goes wrong.


def test_a_state_that_blew_up_is_not_reset_but_shows(tmp_path, monkeypatch, capfd):
    """NaN for what is no number or too large, nothing for its neighbours, and nothing in the user's folder."""
    monkeypatch.chdir(tmp_path)
    env, (q, qd, control) = built("cheetah"), (leaf.copy() for leaf in starts("cheetah", 6))
    sound = by_hand(env, q, qd, control)
    q[1, 0], qd[2, 3], control[3, 0], qd[4, 2] = np.nan, np.inf, np.nan, 1e20
    found = advance(env, q, qd, control)
    for leaf, expected in zip(found, sound, strict=True):
        assert np.isnan(leaf[1:5]).all()
        np.testing.assert_array_equal(leaf[[0, 5]], expected[[0, 5]])
    assert list(tmp_path.iterdir()) == []
    assert capfd.readouterr().err == ""


def test_a_warning_inside_of_a_control_step_shows():
    """MuJoCo keeps a state still after a warning, here of a velocity that passes its limit within the step."""
    env = built("ant")
    q, qd, control = (leaf.copy() for leaf in starts("ant", 2))
    qd[1, 2] = 1e11
    found = advance(env, q, qd, control)
    assert np.isfinite(found[0][0]).all() and np.isnan(found[0][1]).all() and np.isnan(found[1][1]).all()


def test_a_warning_in_the_last_frame_shows():
    """After it MuJoCo's clock is on time: the numbers say it."""
    env = built("ant")
    model, n_frames = env.sys.mj_model, env._physics.n_frames
    last = []
    for speed in np.linspace(1500, 2500, 40):
        data = mujoco.MjData(model)
        data.qpos, data.qvel[6] = env.sys.init_q, speed
        warnings = []
        for _ in range(n_frames):
            mujoco.mj_step(model, data)
            warnings.append(sum(warning.number for warning in data.warning))
        if warnings[-1] and not warnings[-2]:
            last.append(np.eye(len(data.qvel))[6] * speed)
            assert np.isfinite(data.qvel).all() and data.time == pytest.approx(env.dt)
    assert last
    q = np.tile(np.array(env.sys.init_q), (len(last), 1))
    found = advance(env, q, np.stack(last), np.zeros((len(last), 8)))
    assert all(np.isnan(leaf).all() for leaf in found)


SEEDS = tiny(env_name="reacher", backend="mujoco", num_seeds=2, num_envs=8, batch_size=8, num_eval_envs=8)

FAILING = """
import itertools, sys
import mujoco
import training
from envs import native

run, calls = native.Worker.run, itertools.count()

def fail(worker, start, control):
    if next(calls) == 20:
        raise mujoco.FatalError("mj_stackAlloc: insufficient memory")
    return run(worker, start, control)

native.Worker.run = fail
sys.exit(training.main(sys.argv[1:]))
"""


@pytest.mark.slow
@pytest.mark.parametrize(("num_devices", "num_seeds"), [(1, 1), (2, 1), (2, 2)])
def test_an_error_inside_of_it_ends_the_training_with_a_line(num_devices, num_seeds, tmp_path):
    """Not with a hang, which is what the other devices would do, nor with a traceback."""
    config = dataclasses.replace(SEEDS, num_seeds=num_seeds, output_dir=str(tmp_path))
    found = {"PYTHONPATH": str(Path(training.__file__).parent), "JAX_NUM_CPU_DEVICES": str(num_devices)}
    command = [sys.executable, "-c", FAILING, *arguments(config)]
    ended = subprocess.run(command, env=os.environ | found, capture_output=True, text=True, timeout=400, check=False)
    assert f"device      cpu x {num_devices}" in ended.stdout
    assert ended.returncode == 1
    assert ended.stderr == "error: MuJoCo: FatalError: mj_stackAlloc: insufficient memory\n"


def test_a_script_says_how_the_engine_failed(monkeypatch, capsys):
    def fails(args):
        raise jax.errors.JaxRuntimeError("INTERNAL: a traceback\nof many lines")

    monkeypatch.setattr(output, "FAILURES", ["MuJoCo: FatalError: mj_stackAlloc: insufficient memory"])
    assert output.run_command(fails) == 1
    assert capsys.readouterr().err == "error: MuJoCo: FatalError: mj_stackAlloc: insufficient memory\n"
    monkeypatch.setattr(output, "FAILURES", [])
    with pytest.raises(jax.errors.JaxRuntimeError, match="of many lines"):
        output.run_command(fails)


def test_what_cannot_be_begun_is_an_error_too(monkeypatch):
    def cannot(worker, model):
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(native.Worker, "__init__", cannot)
    monkeypatch.setattr(native, "idle_workers", lambda model: [])
    monkeypatch.setattr(native, "FAILURES", failures := [])
    with pytest.raises(RuntimeError, match="new thread"):
        advance(built("reacher"), *starts("reacher", 2))
    assert failures == ["MuJoCo: RuntimeError: can't start new thread"]


# The choice of it.


def test_it_is_chosen_on_a_cpu_in_place_of_mjx_alone():
    chosen = {name for name in ENVS if quicker_backend(name, "cpu")}
    assert chosen == {"cheetah", "ant_push", *(name for name in ENVS if name.startswith("arm_"))}
    assert quicker_backend("cheetah", "cpu") == "mujoco"
    assert not any(quicker_backend(name, "gpu") for name in ENVS)
    assert with_backend(tiny(env_name="cheetah")).backend == "mujoco"
    assert with_backend(tiny(env_name="cheetah", backend="mjx")).backend == "mjx"
    assert with_backend(tiny(env_name="reacher")).backend is None
    assert make_env("cheetah").backend == "mjx"  # which an older record means


def test_an_environment_has_it_if_it_has_mjx():
    for name, constructor in ENVS.items():
        family = getattr(constructor, "func", constructor)
        if issubclass(family, PhysicsEnv):
            assert family.supported()["mujoco"] == family.physics["mjx"], name
    assert ENGINES["mujoco"].physics_of == "mjx"


def small_cheetah(tmp_path: Path, **changes):
    return tiny(env_name="cheetah", output_dir=str(tmp_path / "runs"), **changes)


@pytest.fixture(scope="module")
def run_of_cheetah(tmp_path_factory):
    """A finished training of a moment on the engine that was chosen for it."""
    config = small_cheetah(tmp_path_factory.mktemp("cheetah"))
    assert training.main(arguments(config)) == 0
    (run_dir,) = run_dirs(Path(config.output_dir))
    return config, run_dir


@pytest.mark.slow
def test_the_engine_is_recorded_and_used_again(run_of_cheetah, capsys):
    config, run_dir = run_of_cheetah
    assert json.loads((run_dir / "config.json").read_text())["flags"]["backend"] == "mujoco"
    assert load_policy(run_dir)(jnp.zeros(19)).shape == (6,)
    longer = dataclasses.replace(config, num_timesteps=2 * config.num_timesteps, resume="newest")
    other = dataclasses.replace(longer, backend="mjx")
    assert training.main(arguments(other)) == 2
    assert "--backend: mujoco -> mjx" in capsys.readouterr().err
    assert with_backend(longer).backend == "mujoco"
    assert with_backend(dataclasses.replace(longer, resume=str(run_dir))).backend == "mujoco"
    record = json.loads((run_dir / "config.json").read_text())
    (run_dir / "config.json").write_text(json.dumps(record | {"flags": record["flags"] | {"backend": None}}))
    assert with_backend(longer).backend is None  # a run from before it was recorded: mjx, everywhere
    (run_dir / "config.json").write_text(json.dumps(record))


# Runs.


@pytest.mark.slow
def test_a_run_that_is_resumed_is_the_run_that_was_not(run_of_cheetah, tmp_path):
    config, whole = run_of_cheetah
    part = dataclasses.replace(config, output_dir=str(tmp_path / "runs"))
    assert training.main(arguments(dataclasses.replace(part, num_timesteps=100, num_evals=2))) == 0
    assert training.main(arguments(part, "--resume")) == 0
    (resumed,) = run_dirs(tmp_path / "runs")
    with np.load(whole / "params.npz") as one, np.load(resumed / "params.npz") as other:
        assert one.files == other.files
        for name in one.files:
            np.testing.assert_array_equal(one[name], other[name])


def trained_on(count: int, config, seconds: float = 400) -> list[dict[str, str]]:
    """The last rows of metrics.csv of all seeds of a training in a process with so many CPU devices."""
    environment = os.environ | {"JAX_NUM_CPU_DEVICES": str(count)}
    output = start_process(config, env=environment).communicate(timeout=seconds)[0]
    assert f"device      cpu x {count}" in output and "done: " in output, output
    assert "rematerialization" not in output  # XLA says so where it gathers all on one device
    return [read_rows(run_dir / "metrics.csv", 10**9)[-1] for run_dir in run_dirs(Path(config.output_dir))]


@pytest.fixture(scope="module")
def on_one_device(tmp_path_factory):
    return trained_on(1, dataclasses.replace(SEEDS, output_dir=str(tmp_path_factory.mktemp("one"))))


@pytest.mark.slow
@pytest.mark.parametrize("count", [2, 4])
def test_seeds_and_envs_on_several_devices_are_those_of_one(count, on_one_device, tmp_path):
    """Two devices have a seed each; of four, each seed has two, which share its envs."""
    others = trained_on(count, dataclasses.replace(SEEDS, output_dir=str(tmp_path)))
    for one, other in zip(on_one_device, others, strict=True):
        for name in (name for name in one if name.startswith("eval/episode")):
            assert float(other[name]) == pytest.approx(float(one[name]), rel=1e-3, abs=1e-3), name


@pytest.mark.slow
def test_seeds_on_two_devices_train_for_minutes(tmp_path):
    """Never does a device wait for ever for another, or for a core."""
    sizes = {"num_envs": 64, "batch_size": 64, "episode_length": 100, "unroll_length": 20, "max_replay_size": 1000}
    config = dataclasses.replace(SEEDS, **sizes, num_timesteps=500_000, h_dim=64, output_dir=str(tmp_path))
    assert len(trained_on(2, config, seconds=1800)) == 2
