"""Every environment of the registry against its contract, and each of the plain ones against its published numbers.

Legend: T steps, N envs of a roll-out with random actions; q, qd are joint positions and velocities.
"""

import functools
import re
import types

import brax.envs
import jax
import jax.numpy as jnp
import mujoco
import numpy as np
import pytest
from conftest import ProbeEnv
from rollouts import FAMILIES, FIRST_OF_FILE, start_and_goal

from envs import ENVS, family, make_env
from envs.base import GoalEnv
from envs.check import QUICK_COMPILE, check_contract, check_control_step, check_env
from envs.humanoid import Humanoid
from envs.physics import BACKENDS, ENGINES, Engine, apply_physics
from envs.reacher import Reacher

SLOW = pytest.mark.slow
PLAIN = ["reacher", "ant", "cheetah", "pusher_easy", "humanoid"]
# The environment of brax with the same robot, and the joints of its target that ours lacks.
BRAX = {
    "reacher": ("reacher", 2),
    "ant": ("ant", 0),
    "cheetah": ("halfcheetah", 0),
    "pusher_easy": ("pusher", 2),
    "humanoid": ("humanoid", 0),
}


@functools.cache
def built(name: str, backend: str | None = None):
    return make_env(name, backend)


@functools.cache
def checked(name: str, backend: str | None):
    """The checks of an environment and its roll-out, in episodes of two steps."""
    env = built(name, backend)
    # MuJoCo's default solver, with 20 iterations of 50 line searches, takes a minute per step without optimisation, and
    # the 25 physics steps of an arm are many.
    options = None if env.backend == "mjx" and name.startswith(("pusher", "arm_")) else QUICK_COMPILE
    return check_env(env, num_envs=4, num_steps=24, compiler_options=options)


def quick_jit(function, *args):
    return jax.jit(function).lower(*args).compile(compiler_options=QUICK_COMPILE)(*args)


def flat(leaf) -> np.ndarray:
    """(T, N, ...) -> (T * N, ...) in double precision."""
    leaf = np.asarray(leaf, np.float64)
    return leaf.reshape(-1, *leaf.shape[2:])


def transitions(name: str):
    """The steps of an environment's roll-out, all leaves (T * N, ...): what was before, the action, what came after."""
    _, trace = checked(name, None)
    parts = {"action": flat(trace.action), "dense": flat(trace.dense), "starts": flat(trace.before.steps) == 0}
    for when, env_state in (("before", trace.before), ("after", trace.after)):
        q, qd = env_state.pipeline_state
        fields = {"q": flat(q), "qd": flat(qd), "state": flat(env_state.state), "goal": flat(env_state.goal)}
        metrics = {key: flat(value) for key, value in env_state.metrics.items()}
        parts[when] = types.SimpleNamespace(**fields, metrics=metrics)
    return types.SimpleNamespace(**parts)


def compiled_model(name: str, backend: str) -> mujoco.MjModel:
    env = built(name)
    return mujoco.MjModel.from_xml_string(apply_physics(env.build_xml(), env.supported()[backend]))


# Every environment.


# Variants differ from the first of their family in layout and goals; MJX compiles the contacts of an arm for minutes.
QUICK_BACKENDS = {
    name: "mujoco"
    for name in ENVS
    if name.startswith(("arm_", "ant_push"))
    or ("mjx" in getattr(family(name), "physics", ()) and name not in FAMILIES.values())
}


# By default one of each file, but for the maze whose body and walls have tests of their own.
CHECKED = set(FIRST_OF_FILE.values()) - {"humanoid_u_maze"}


@pytest.mark.parametrize("name", [name if name in CHECKED else pytest.param(name, marks=SLOW) for name in ENVS])
def test_environment_keeps_the_contract(name):
    checks, _ = checked(name, QUICK_BACKENDS.get(name))
    assert [f"{check.name}: {check.detail}" for check in checks if not check.passed] == []


OTHER_BACKENDS = [
    (name, backend)
    for env_class, name in FAMILIES.items()
    for backend in getattr(env_class, "physics", ())
    if backend != QUICK_BACKENDS.get(name, env_class.default_backend)
]
# `ant` on all, each other model on the engine that is least like its own. Mazes are stepped on every engine in
# test_envs_maze.py, arms on MJX in test_envs_arm.py.
ROLLED_OUT = {
    *(("ant", backend) for backend in BACKENDS),
    *((name, "mjx") for name in ("humanoid", "ant_ball", "simple_u_maze")),
    *((name, "spring") for name in ("reacher", "pusher_easy")),
    ("cheetah", "generalized"),
    ("ant_push", "mjx"),
}


@SLOW
@pytest.mark.parametrize(("name", "backend"), OTHER_BACKENDS)
def test_other_backends_keep_the_contract(name, backend):
    """In a roll-out where it tells something new, the others by what they trace."""
    if (name, backend) in ROLLED_OUT:
        checks, _ = checked(name, backend)
    else:
        checks = [check_contract(built(name, backend)), check_control_step(built(name, backend))]
    assert [f"{check.name}: {check.detail}" for check in checks if not check.passed] == []


WITH_PHYSICS = [name for name in ENVS if name != "point"]


@pytest.mark.parametrize("name", WITH_PHYSICS)
def test_unknown_backend_names_those_supported(name):
    with pytest.raises(ValueError, match="unknown backend 'warp'") as error:
        make_env(name, backend="warp")
    assert all(backend in str(error.value) for backend in built(name).physics)


def test_an_action_size_that_is_not_the_models_is_refused():
    class ThreeMotors(Reacher):
        action_size = 3

    message = "ThreeMotors: the model has 2 motors, but control() makes of an action of 3 (action_size): (3,)"
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        ThreeMotors()

    class SixteenMotors(Humanoid):
        action_size = 16  # which control() cannot stretch to the ranges of 17

    with pytest.raises(
        ValueError, match=r"the model has 17 motors, but control\(\) makes of an action of 16 .*: .*broadcast"
    ):
        SixteenMotors()


def test_control_may_make_more_motors_of_an_action():
    class OneForBoth(Reacher):
        action_size = 1

        def control(self, action):
            return jnp.repeat(action, 2)

    env, both = OneForBoth("mujoco"), Reacher("mujoco")
    assert (env.sizes.action, env.sys.act_size()) == (1, 2)
    start = both.reset(jax.random.key(0))
    one, two = (quick_jit(each.step, start, jnp.full(each.action_size, 0.5)) for each in (env, both))
    np.testing.assert_array_equal(one.state, two.state)
    assert float(one.metrics["reward_ctrl"]) == -0.25


def test_goal_indices_outside_the_state_are_refused():
    class Outside(ProbeEnv):
        goal_indices = (0, 2)

    with pytest.raises(ValueError, match=r"^Outside: goal_indices \(0, 2\) must lie in 0 to 1$"):
        Outside()


def test_hooks_that_are_left_out_are_named():
    class Empty(GoalEnv):
        pass

    with pytest.raises(TypeError, match="abstract.*dense_reward.*observe.*sample_goal.*sample_start"):
        Empty()


def test_a_link_is_found_by_its_body():
    env = built("ant")
    assert env.link("torso") == 0 and env.link("aux_2") == env.sys.link_names.index("aux_2")
    with pytest.raises(ValueError, match="unknown body 'aux_5' of Ant.*did you mean 'aux_"):
        env.link("aux_5")


def test_an_engine_is_one_function_and_a_line(monkeypatch):
    """A toy engine, which moves joints by the control, steps what knows nothing of it and trains like any other."""

    def step(sys, pipeline_state, control, n_frames):
        q = pipeline_state.q + sys.opt.timestep * n_frames * control
        return ENGINES["spring"].init(sys, q, jnp.zeros_like(q))

    toy = Engine(ENGINES["spring"].load, ENGINES["spring"].init, step, physics_of="spring")
    monkeypatch.setitem(ENGINES, "toy", toy)
    env = make_env("reacher", "toy")
    assert (env.backend, env.dt) == ("toy", 0.02)
    start = quick_jit(env.reset, jax.random.key(0))
    after = quick_jit(env.step, start, jnp.array([1.0, -0.5]))
    np.testing.assert_allclose(env.pose(after) - env.pose(start), [0.02, -0.01], atol=1e-6)
    checks, _ = check_env(env, num_envs=4, num_steps=8, compiler_options=QUICK_COMPILE)
    assert [check for check in checks if not check.passed] == []
    with pytest.raises(ValueError, match="unknown backend 'toy' of AntPush"):
        make_env("ant_push", "toy")


def test_goals_are_drawn_or_commanded():
    """The start of a commanded goal is drawn from the same key, and for that goal."""
    for name in ("point", "ant", "ant_ball_u_maze", "pusher_hard"):
        env, key = built(name), jax.random.key(3)
        goal = env.sample_goal(key)

        def starts(goal, env=env, key=key):
            states = [env.reset(key, commanded) for commanded in (None, goal, goal + 0.05)]
            return [(env.pose(env_state), env_state.goal) for env_state in states]  # no physics is left of it

        own, same, other = quick_jit(starts, goal)
        np.testing.assert_array_equal(own[1], goal)
        np.testing.assert_array_equal(own[0], same[0])
        np.testing.assert_array_equal(other[1], goal + 0.05)
    # The object never starts within 0.17 m of a commanded goal.
    keys, goal = jax.random.split(jax.random.key(0), 500), jnp.array([0.45, -0.2, -0.275])
    q, _ = jax.vmap(built("pusher_hard").sample_start, (0, None))(keys, goal)
    assert np.linalg.norm(np.asarray(q)[:, 7:] - [-0.15, 0.0], axis=1).min() >= 0.17 - 1e-6


def test_a_goal_that_is_not_that_of_the_indices_is_refused():
    class TwoIndices(Reacher):
        goal_indices = (4, 5)

    message = "goal_indices (4, 5) name 2 entries, but the goal has shape (3,)"
    with pytest.raises(ValueError, match=re.escape(message)):
        jax.eval_shape(TwoIndices().reset, jax.random.key(0))
    ((name, passed, detail),), _ = check_env(TwoIndices())
    assert (name, passed, detail) == ("contract", False, f"TwoIndices: {message}")


def test_unknown_environment_names_the_nearest():
    with pytest.raises(ValueError, match="did you mean 'humanoid'"):
        make_env("humanoids")


def test_wrong_action_size_is_refused():
    env = built("reacher")
    env_state = jax.eval_shape(env.reset, jax.random.key(0))
    with pytest.raises(ValueError, match=r"actions of shape \(2,\), got \(3,\)"):
        jax.eval_shape(env.step, env_state, jax.ShapeDtypeStruct((3,), jnp.float32))


def test_dense_reward_is_returned_when_asked_for():
    """Its value is tested below; `ProbeEnv` has the base's way to choose and takes no time to compile."""
    for use_dense_reward in (False, True):
        env = ProbeEnv(use_dense_reward=use_dense_reward)
        after = env.step(env.reset(jax.random.key(0)), jnp.ones(2))
        assert float(after.reward) == float(-after.metrics["dist"] if use_dense_reward else after.metrics["success"])
    assert make_env("reacher", use_dense_reward=True).use_dense_reward


# Physics.


def brax_twin(name: str, tmp_path, monkeypatch):
    """brax's environment of the same robot, on our default backend."""
    monkeypatch.chdir(tmp_path)  # MuJoCo complains of the half cheetah's asset in a log file
    return brax.envs.get_environment(BRAX[name][0], backend=built(name).backend)


# Where the model is brax's own, test_model_is_the_one_of_brax says as much, and compiles nothing.
COMPARED = [name if name == "ant" else pytest.param(name, marks=SLOW) for name in PLAIN]


@pytest.mark.parametrize("name", COMPARED)
def test_next_joint_positions_are_those_of_brax(name, tmp_path, monkeypatch):
    """From every start of the roll-out: same q, qd and action, same next q and qd."""
    env, twin, step = built(name), brax_twin(name, tmp_path, monkeypatch), transitions(name)
    start = step.starts
    num_joints, extra = env.sys.q_size(), BRAX[name][1]

    def control_step(q, qd, action):
        padded = [jnp.concatenate([joints, jnp.zeros(extra)]) for joints in (q, qd)]
        after = twin.pipeline_step(twin.pipeline_init(*padded), env.control(action))
        return after.q, after.qd

    inputs = [jnp.asarray(leaf[start], jnp.float32) for leaf in (step.before.q, step.before.qd, step.action)]
    q, qd = quick_jit(jax.vmap(control_step), *inputs)
    np.testing.assert_allclose(step.after.q[start], q[:, :num_joints], atol=2e-6)
    np.testing.assert_allclose(step.after.qd[start], qd[:, : env.sys.qd_size()], atol=2e-4)
    assert env.dt == pytest.approx(twin.dt)


@pytest.mark.parametrize("name", [name for name in PLAIN if BRAX[name][1] == 0])
def test_model_is_the_one_of_brax(name, tmp_path, monkeypatch):
    """Every number of the loaded model, those that a short roll-out may not show included."""
    env, twin = built(name), brax_twin(name, tmp_path, monkeypatch)
    assert twin._n_frames == env.physics[env.backend].n_frames
    ours, theirs = (
        {jax.tree_util.keystr(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(system)}
        for system in (env.sys, twin.sys)
    )
    assert ours.keys() == theirs.keys()
    for path, leaf in ours.items():
        if path.startswith(".actuator_") and env.backend != "mjx":
            continue  # what MJX reads; brax changes the gears of its own engines elsewhere
        np.testing.assert_allclose(leaf, theirs[path], rtol=1e-6, err_msg=path)


TIMINGS = {  # time step and frames of generalized and mjx, then of spring and positional
    "reacher": ((0.01, 2), (0.005, 4)),
    "ant": ((0.01, 5), (0.005, 10)),
    "cheetah": ((0.01, 5), (0.003125, 16)),
    "pusher_easy": ((0.01, 5), (0.001, 50)),
    "humanoid": ((0.003, 5), (0.0015, 10)),
}
GEARS = {  # of generalized and mjx, then of spring and positional
    "reacher": ([200] * 2, [25] * 2, [25] * 2),
    "ant": ([150] * 8, [150] * 8, [200] * 8),
    "cheetah": ([120, 90, 60, 120, 60, 30], *[[120, 90, 60, 120, 100, 100]] * 2),
    "pusher_easy": ([1] * 7, [20] * 7, [20] * 7),
    "humanoid": ([100] * 5 + [300, 200, 100, 100, 300, 200] + [25] * 6, *[[350] * 11 + [100] * 6] * 2),
}


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", PLAIN)
def test_time_steps_gears_and_solver_of_every_backend(name, backend):
    model, physics = compiled_model(name, backend), built(name).supported()[backend]
    soft = backend in ("spring", "positional")
    assert (model.opt.timestep, physics.n_frames) == TIMINGS[name][soft]
    np.testing.assert_array_equal(model.actuator_gear[:, 0], GEARS[name][(soft + (backend == "positional"))])
    eulerdamp = mujoco.mjtDisableBit.mjDSBL_EULERDAMP
    if backend in ("mjx", "mujoco") and name in ("ant", "humanoid"):  # MuJoCo's own solver is set when it loads
        assert (model.opt.iterations, model.opt.ls_iterations, model.opt.disableflags) == (1, 4, eulerdamp)
        assert model.opt.solver == mujoco.mjtSolver.mjSOL_NEWTON
    else:
        assert model.opt.disableflags == 0


@pytest.mark.parametrize("name", ["reacher", "pusher_easy"])
def test_model_holds_no_goal(name):
    model = compiled_model(name, "spring")
    bodies = {model.body(number).name for number in range(model.nbody)}
    assert not bodies & {"target", "goal"}
    assert "vel_damping" not in {model.numeric(number).name for number in range(model.nnumeric)}


def test_a_model_is_loaded_onto_a_device_of_this_process(monkeypatch):
    """The first of all devices may be another process's; two processes that train `reacher` are in test_readme."""

    def refuse(*args):
        raise AssertionError("asked for the devices of all processes")

    monkeypatch.setattr(jax, "devices", refuse)
    for leaf in jax.tree.leaves(make_env("reacher").sys):
        assert not isinstance(leaf, jax.Array) or leaf.devices() <= set(jax.local_devices())


def test_half_cheetah_weighs_fourteen_kilograms():
    assert compiled_model("cheetah", "mjx").body_mass.sum() == pytest.approx(14.0)


# Observations: every index.


@pytest.mark.parametrize("name", ["ant", "cheetah"])
def test_state_is_joint_positions_then_velocities(name):
    step = transitions(name)
    for part in (step.before, step.after):
        np.testing.assert_allclose(part.state, np.concatenate([part.q, part.qd], axis=-1), atol=1e-6)


def body_poses(name: str, q: np.ndarray, qd: np.ndarray):
    """MuJoCo's own kinematics of poses (K, nq) and velocities, a `MjData` each."""
    model = mujoco.MjModel.from_xml_string(built(name).model_xml)
    poses = []
    for positions, velocities in zip(q, qd, strict=True):
        data = mujoco.MjData(model)
        data.qpos, data.qvel = positions, velocities
        mujoco.mj_forward(model, data)
        poses.append(data)
    return poses


def test_reacher_state():
    step = transitions("reacher")
    poses = body_poses("reacher", step.after.q, step.after.qd)
    angles, rates = step.after.q, step.after.qd
    np.testing.assert_allclose(step.after.state[:, :4], np.hstack([np.cos(angles), np.sin(angles)]), atol=1e-6)
    np.testing.assert_allclose(step.after.state[:, 4:7], [data.body("fingertip").xpos for data in poses], atol=1e-5)
    # The velocity of the second link's origin, plus the tip's with an offset that keeps to the world's x axis.
    spin = rates.sum(axis=1)
    velocity = 0.1 * rates[:, :1] * np.stack([-np.sin(angles[:, 0]), np.cos(angles[:, 0])], axis=1)
    velocity[:, 1] += 0.11 * spin
    np.testing.assert_allclose(step.after.state[:, 7:9], velocity, atol=1e-4)
    np.testing.assert_allclose(step.after.state[:, 9], 0, atol=1e-6)


def test_pusher_state():
    step = transitions("pusher_easy")
    poses = body_poses("pusher_easy", step.after.q, step.after.qd)
    state, q, qd = step.after.state, step.after.q, step.after.qd
    np.testing.assert_allclose(state[:, :7], q[:, :7], atol=1e-6)
    # The wrist's own centre of mass: MuJoCo has the hand as a body of its own.
    np.testing.assert_allclose(state[:, 7:10], [data.body("r_wrist_flex_link").xipos for data in poses], atol=1e-5)
    object_position = np.stack([0.45 + q[:, 8], -0.05 + q[:, 7], np.full(len(q), -0.275)], axis=1)
    np.testing.assert_allclose(state[:, 10:13], object_position, atol=1e-6)
    np.testing.assert_allclose(state[:, 13:20], qd[:, :7], atol=1e-6)


@pytest.mark.parametrize("backend", ["spring", "generalized"])
def test_humanoid_state(backend):
    """In any pose: what brax observes behind x and y. The spring engine counts with unit inertias, others with true."""
    env, spring = built("humanoid", backend), built("humanoid", "spring")
    twin = brax.envs.get_environment("humanoid", backend=backend)
    rng = np.random.default_rng(0)
    q = np.array(env.sys.init_q) + rng.uniform(-0.3, 0.3, 24)
    q[3:7] /= np.linalg.norm(q[3:7])

    def observe(q, qd, action):
        pipeline_state = spring.init_pipeline((q, qd))  # compiles fast; the observation is the same code
        return env.observe(pipeline_state, action), twin._get_obs(pipeline_state, 0.4 * action)

    inputs = (q, rng.normal(size=23), rng.uniform(-1, 1, 17))
    state, expected = quick_jit(observe, *(jnp.asarray(leaf, jnp.float32) for leaf in inputs))
    np.testing.assert_allclose(state[:47], np.concatenate(inputs[:2]), rtol=1e-6)
    np.testing.assert_allclose(state[2:], expected, rtol=1e-5, atol=1e-5)
    masses = np.array(state[47:157]).reshape(11, 10)[:, 9]
    assert masses.sum() == pytest.approx(mujoco.MjModel.from_xml_string(env.model_xml).body_mass.sum())
    np.testing.assert_array_equal(state[223:229], np.zeros(6))
    gears = np.array(GEARS["humanoid"][0 if backend == "generalized" else 1])
    torques = gears * 0.4 * inputs[2]
    torques[:2] = torques[1::-1]  # the motors are those of abdomen y, z, the joints z, y
    np.testing.assert_allclose(state[229:], torques, rtol=1e-5)


# Rewards, metrics, ends.


def test_reacher_dense_reward():
    step = transitions("reacher")
    dist = np.linalg.norm(step.after.state[:, 4:7] - step.after.goal, axis=-1)
    np.testing.assert_allclose(step.dense, -dist, atol=1e-5)
    np.testing.assert_allclose(step.after.metrics["reward_dist"], -dist, atol=1e-5)
    np.testing.assert_allclose(step.after.metrics["reward_ctrl"], -(step.action**2).sum(axis=-1), rtol=1e-5)


def test_ant_dense_reward():
    step = transitions("ant")
    before, after = (np.linalg.norm(part.state[:, :2] - step.after.goal, axis=-1) for part in (step.before, step.after))
    control = 0.5 * (step.action**2).sum(axis=-1)
    np.testing.assert_allclose(step.dense, 10 * (before - after) / 0.05 + 1 - control, atol=2e-3)


def test_cheetah_dense_reward_and_metrics():
    step = transitions("cheetah")
    control = 0.1 * (step.action**2).sum(axis=-1)
    np.testing.assert_array_equal(step.after.goal, np.full((len(step.dense), 1), 5.0))
    np.testing.assert_allclose(step.dense, -np.abs(step.after.state[:, 0] - 5) - control, rtol=1e-5)
    np.testing.assert_allclose(step.after.metrics["reward_ctrl"], -control, rtol=1e-5)
    np.testing.assert_allclose(step.after.metrics["reward_run"], step.after.metrics["x_velocity"])
    # MJX hands out body positions of one physics step, 0.01 s, before.
    np.testing.assert_allclose(step.after.metrics["x_position"], step.after.q[:, 0], atol=0.05)


def test_pusher_dense_reward_and_metrics_are_of_the_state_after_the_step():
    step = transitions("pusher_easy")
    tip, thing = step.after.state[:, 7:10], step.after.state[:, 10:13]
    terms = {
        "reward_near": -np.linalg.norm(thing - tip, axis=-1),
        "reward_dist": -np.linalg.norm(thing - step.after.goal, axis=-1),
        "reward_ctrl": -(step.action**2).sum(axis=-1),
    }
    for name, value in terms.items():
        np.testing.assert_allclose(step.after.metrics[name], value, atol=1e-5)
    expected = terms["reward_dist"] + 0.1 * terms["reward_ctrl"] + 0.5 * terms["reward_near"]
    np.testing.assert_allclose(step.dense, expected, atol=1e-5)


def test_humanoid_dense_reward_and_metrics():
    step = transitions("humanoid")
    control = 0.1 * ((0.4 * step.action) ** 2).sum(axis=-1)
    dist = np.linalg.norm(step.after.state[:, :3] - step.after.goal, axis=-1)
    np.testing.assert_allclose(step.dense, 5 - dist - control, atol=1e-5)
    np.testing.assert_allclose(step.after.metrics["reward_quadctrl"], -control, rtol=1e-5)
    # The body alone: a target of 1 kg would move it by up to 0.1 m. The spring engine stretches joints by some mm.
    centres = np.array([data.subtree_com[0] for data in body_poses("humanoid", step.after.q, step.after.qd)])
    for key, value in zip(("x_position", "y_position"), centres.T[:2], strict=True):
        np.testing.assert_allclose(step.after.metrics[key], value, atol=1e-2)
    distance = np.linalg.norm(centres, axis=-1)
    np.testing.assert_allclose(step.after.metrics["distance_from_origin"], distance, atol=1e-2)
    second = ~step.starts
    for axis in "xy":
        places = [part.metrics[f"{axis}_position"][second] for part in (step.before, step.after)]
        speed = (places[1] - places[0]) / 0.015
        np.testing.assert_allclose(step.after.metrics[f"{axis}_velocity"][second], speed, atol=1e-4)
    for name in ("forward_reward", "reward_linvel"):
        np.testing.assert_allclose(step.after.metrics[name], 1.25 * step.after.metrics["x_velocity"], rtol=1e-5)
    np.testing.assert_array_equal(step.after.metrics["reward_alive"], 5)


@pytest.mark.parametrize(("name", "low", "high"), [("ant", 0.2, 1.0), ("humanoid", 1.0, 2.0)])
def test_episode_ends_where_the_torso_is_too_low_or_too_high(name, low, high):
    heights = np.array([low - 0.01, low + 0.01, high - 0.01, high + 0.01])
    states = [types.SimpleNamespace(x=types.SimpleNamespace(pos=jnp.array([[0.0, 0.0, z]]))) for z in heights]
    assert [bool(built(name).terminated(state)) for state in states] == [True, False, False, True]


# Starts and goals.


@functools.cache
def starts(name: str, count: int = 10_000):
    """(count, ...) q, qd, goal."""
    keys = jax.random.split(jax.random.key(7), count)
    return [np.asarray(leaf, np.float64) for leaf in jax.jit(jax.vmap(start_and_goal(built(name))))(keys)]


def assert_uniform(values: np.ndarray, low: float, high: float):
    assert low <= values.min() and values.max() <= high
    quartiles = np.quantile((values - low) / (high - low), [0.25, 0.5, 0.75])
    np.testing.assert_allclose(quartiles, [0.25, 0.5, 0.75], atol=0.02)


def test_ant_starts():
    q, qd, goal = starts("ant")
    np.testing.assert_allclose(np.linalg.norm(goal, axis=-1), 10.0, rtol=1e-6)
    assert_uniform(np.arctan2(goal[:, 1], goal[:, 0]), -np.pi, np.pi)
    rest = [0, 0, 0.55, *[None] * 4, 0, 1, 0, -1, 0, -1, 0, 1]
    for joint, middle in zip(q.T, rest, strict=True):
        if middle is not None:
            assert_uniform(joint, middle - 0.1 - 1e-6, middle + 0.1 + 1e-6)
    np.testing.assert_allclose(np.linalg.norm(q[:, 3:7], axis=-1), 1.0, atol=1e-6)
    np.testing.assert_allclose(qd.std(axis=0), 0.1, rtol=0.05)


def test_ant_velocities_are_displacements_by_the_control_step():
    step = transitions("ant")
    speed = (step.after.q[:, :2] - step.before.q[:, :2]) / 0.05
    assert np.abs(speed).max() > 0.5
    for name, expected in zip(("x_velocity", "y_velocity"), speed.T, strict=True):
        np.testing.assert_allclose(step.after.metrics[name], expected, atol=1e-3)


def test_reacher_starts():
    q, qd, goal = starts("reacher")
    for joint in q.T:
        assert_uniform(joint, -0.1, 0.1)
    for speed in qd.T:
        assert_uniform(speed, -0.005, 0.005)
    assert_uniform(np.linalg.norm(goal[:, :2], axis=-1), 0.0, 0.2 + 1e-6)
    assert_uniform(np.arctan2(goal[:, 1], goal[:, 0]), -np.pi, np.pi)
    np.testing.assert_allclose(goal[:, 2], 0.01)


def test_cheetah_starts():
    q, qd, goal = starts("cheetah")
    for joint in q.T:
        assert_uniform(joint, -0.1, 0.1)
    np.testing.assert_allclose(qd.std(axis=0), 0.1, rtol=0.05)
    assert np.all(goal == 5.0)


def test_humanoid_starts():
    q, qd, goal = starts("humanoid")
    np.testing.assert_allclose(q, np.tile([0, 0, 1.4, 1, *[0] * 20], (len(q), 1)), atol=1e-6)
    assert np.all(qd == 0) and np.all(goal[:, 2] == 1.25)
    assert_uniform(np.linalg.norm(goal[:, :2], axis=-1), 1.0, 5.0)
    assert_uniform(np.arctan2(goal[:, 1], goal[:, 0]), -np.pi, np.pi)


def slides_of(goal: np.ndarray) -> np.ndarray:
    """(K, 2) y and x slide that bring the pusher's object to a goal."""
    return goal[:, 1::-1] - np.array([-0.05, 0.45])


@pytest.mark.parametrize(
    ("name", "box"),
    [("pusher_easy", ((-0.55, -0.25), (-0.2, 0.2))), ("pusher_hard", ((-0.65, 0.35), (-0.55, 0.45)))],
)
def test_pusher_starts(name, box):
    q, qd, goal = starts(name)
    assert np.all(q[:, :7] == 0) and np.all(qd[:, 7:] == 0)
    assert_uniform(qd[:, :7], -0.005, 0.005)
    for slide, (low, high) in zip(slides_of(goal).T, box, strict=True):
        assert_uniform(slide, low - 1e-6, high + 1e-6)
    np.testing.assert_allclose(goal[:, 2], -0.275, atol=1e-6)
    thing = q[:, 7:]
    assert np.all((thing >= [-0.3, -0.2]) & (thing <= [0.0, 0.2]))
    assert np.linalg.norm(thing - slides_of(goal), axis=-1).min() >= 0.17 - 1e-6


def test_pusher_object_is_uniform_outside_the_circle():
    """For one goal: the share of draws in any part of the box is that of its area outside the circle."""
    env, goal = built("pusher_hard"), np.array([-0.1, 0.05])
    keys = jax.random.split(jax.random.key(0), 10_000)
    sample = functools.partial(env.sample_object, box=env.object_box, goal=jnp.array(goal))
    drawn = np.asarray(jax.jit(jax.vmap(lambda key: sample(key)))(keys))
    exact = np.random.default_rng(0).uniform([-0.3, -0.2], [0, 0.2], (100_000, 2))
    exact = exact[np.linalg.norm(exact - goal, axis=-1) >= 0.17]
    for axis in (0, 1):
        points = np.quantile(exact[:, axis], [0.1, 0.3, 0.5, 0.7, 0.9])
        shares = [np.mean(drawn[:, axis] < point) for point in points]
        np.testing.assert_allclose(shares, [0.1, 0.3, 0.5, 0.7, 0.9], atol=0.02)


def test_pusher_distance_holds_when_every_draw_is_too_close():
    """A circle that covers all of the box but its corners leaves the furthest corner."""
    env = make_env("pusher_easy")
    env.min_goal_distance = 0.2499
    goals = np.random.default_rng(0).uniform([-0.16, -0.01], [-0.14, 0.01], (2000, 2)).astype(np.float32)
    keys = jax.random.split(jax.random.key(0), len(goals))
    drawn = np.asarray(jax.jit(jax.vmap(lambda key, goal: env.sample_object(key, env.object_box, goal)))(keys, goals))
    assert np.linalg.norm(drawn - goals, axis=-1).min() >= 0.2499
    assert np.mean(np.abs(drawn[:, 1]) == np.float32(0.2)) > 0.5


def test_ant_random_start():
    q, qd, goal = starts("ant_random_start")
    np.testing.assert_allclose(np.linalg.norm(goal, axis=-1), 10.0, rtol=1e-6)
    offset = q[:, :2] - goal
    np.testing.assert_allclose(np.linalg.norm(offset, axis=-1), 10.0, rtol=1e-5)
    angles = [np.arctan2(each[:, 1], each[:, 0]) for each in (goal, offset)]
    for angle in angles:
        assert_uniform(angle, -np.pi, np.pi)
    assert_uniform((angles[1] - angles[0]) % (2 * np.pi), 0.0, 2 * np.pi)  # the one says nothing of the other
    assert_uniform(q[:, 2], 0.45 - 1e-6, 0.65 + 1e-6)
    np.testing.assert_allclose(qd.std(axis=0), 0.1, rtol=0.05)


# The pusher's relatives.


@SLOW
def test_pusher_reacher():
    env, step = built("pusher_reacher"), transitions("pusher_reacher")
    assert (env.state_dim, env.goal_dim, env.goal_dist, env.other_thresholds) == (17, 3, 0.1, {"success_hard": 0.05})
    poses = body_poses("pusher_reacher", step.after.q, step.after.qd)
    tips = [data.body("r_wrist_flex_link").xipos for data in poses]
    np.testing.assert_allclose(step.after.state, np.hstack([step.after.q, step.after.qd, tips]), atol=1e-5)
    dist = np.linalg.norm(step.after.state[:, 14:] - step.after.goal, axis=-1)
    np.testing.assert_allclose(step.dense, -dist, atol=1e-5)
    np.testing.assert_allclose(step.after.metrics["reward_dist"], -dist, atol=1e-5)
    q, qd, goal = starts("pusher_reacher")
    assert q.shape == (10_000, 7) and np.all(q == 0)
    assert_uniform(qd, -0.005, 0.005)
    assert_uniform(goal[:, 0], 0.25, 0.65 + 1e-6)
    assert_uniform(goal[:, 1], -0.35 - 1e-6, -0.05)
    np.testing.assert_allclose(goal[:, 2], -0.323)


def test_two_pusher_starts():
    q, qd, goal = starts("pusher2")
    assert np.all(q[:, :7] == 0) and np.all(qd[:, 7:] == 0)
    np.testing.assert_allclose(goal[:, [2, 5]], -0.275, atol=1e-6)
    np.testing.assert_array_equal(goal[:, 1], goal[:, 4])  # the goals share their y, as published
    for coordinate, low, high in ((1, -0.7, 0.3), (0, -0.15, 0.375), (3, 0.375, 0.9)):
        assert_uniform(goal[:, coordinate], low - 1e-6, high + 1e-6)
    for first, lows, highs in ((7, (-0.35, 0.25), (-0.05, 0.45)), (9, (-0.35, 0.45), (-0.05, 0.65))):
        slides = q[:, first : first + 2]
        assert np.all((slides >= np.float32(lows)) & (slides <= np.float32(highs)))
        goals = goal.reshape(-1, 2, 3)[:, (first - 7) // 2, 1::-1]
        assert np.linalg.norm(slides - goals, axis=-1).min() >= 0.17 - 1e-6


@SLOW
def test_two_pusher_state_rewards_and_success():
    env, step = built("pusher2"), transitions("pusher2")
    assert (env.state_dim, env.goal_indices, env.goal_dist) == (23, (10, 11, 12, 13, 14, 15), 0.1)
    state, q = step.after.state, step.after.q
    poses = body_poses("pusher2", q, step.after.qd)
    np.testing.assert_allclose(state[:, :7], q[:, :7], atol=1e-6)
    np.testing.assert_allclose(state[:, 7:10], [data.body("r_wrist_flex_link").xipos for data in poses], atol=1e-5)
    for first, slides in ((10, q[:, 8:6:-1]), (13, q[:, 10:8:-1])):
        np.testing.assert_allclose(state[:, first : first + 2], slides, atol=1e-6)
        np.testing.assert_allclose(state[:, first + 2], -0.275, atol=1e-6)
    np.testing.assert_allclose(state[:, 16:], step.after.qd[:, :7], atol=1e-6)
    things = state[:, 10:16].reshape(-1, 2, 3)
    distances = np.linalg.norm(things - step.after.goal.reshape(-1, 2, 3), axis=-1)
    np.testing.assert_allclose(step.after.metrics["dist"], distances.max(axis=-1), atol=1e-5)
    near = np.linalg.norm(things - state[:, None, 7:10], axis=-1).mean(axis=-1)
    expected = -distances.sum(axis=-1) - 0.1 * (step.action**2).sum(axis=-1) - 0.5 * near
    np.testing.assert_allclose(step.dense, expected, atol=1e-5)


def test_success_of_two_pushers_is_that_of_both():
    env = built("pusher2")
    state, goal = np.zeros((4, 23), np.float32), np.zeros((4, 6), np.float32)
    goal[:, [0, 3]] = [[0.09, 0.09], [0.09, 0.11], [0.11, 0.09], [0.11, 0.11]]
    np.testing.assert_allclose(env.goal_distance(state, goal), [0.09, 0.11, 0.11, 0.11], rtol=1e-6)
    for each, commanded, some in zip(state, goal, (1, 1, 1, 0), strict=True):
        after = types.SimpleNamespace(state=jnp.array(each), goal=jnp.array(commanded))
        assert bool(env.step_metrics(None, after, jnp.zeros(7))["success_easy"]) == some


def test_two_pusher_objects_are_those_of_the_pusher():
    model, single = compiled_model("pusher2", "generalized"), compiled_model("pusher_easy", "generalized")
    for name in ("object", "object2"):
        assert model.body(name).mass[0] == pytest.approx(single.body("object").mass[0])
        np.testing.assert_array_equal(model.body(name).pos, [0, 0, -0.275])
        joints = [joint for joint in range(model.njnt) if model.jnt_bodyid[joint] == model.body(name).id]
        np.testing.assert_array_equal(model.jnt_axis[joints], [[0, 1, 0], [1, 0, 0]])
    assert (model.nq, model.nu) == (11, 7)
