"""Arms: the model against its published numbers and plain MuJoCo, starts, goals, and what the state says.

Legend: q, qd are joint positions and velocities; K poses.
"""

import functools
import types

import jax
import jax.numpy as jnp
import mujoco
import numpy as np
import pytest
from brax.base import Motion, Transform
from conftest import slow
from rollouts import start_and_goal

from envs import ENVS, make_env
from envs.arm import ArmBinpick, ArmGrasp, ArmPush, ArmReach
from envs.arm_model import LINKS

NAMES = [name for name in ENVS if name.startswith("arm_")]
HOME = [1.571, 0.742, 0, -1.571, 0, 3.054, 1.449]
# With action 0 the arm comes to rest there.
SETTLED = [1.571, 0.752, 0, -0.903, 0, 1.526, 0.724]


@functools.cache
def built(name: str):
    return make_env(name)


def model_of(env, **options) -> mujoco.MjModel:
    model = mujoco.MjModel.from_xml_string(env.model_xml)
    for name, value in options.items():
        setattr(model.opt, name, value)
    return model


def at_start(env, model: mujoco.MjModel) -> mujoco.MjData:
    data = mujoco.MjData(model)
    data.qpos, data.qvel = env.sample_start(jax.random.key(0), env.sample_goal(jax.random.key(0)))
    mujoco.mj_forward(model, data)
    return data


def pipeline_states(env, q: np.ndarray, qd: np.ndarray):
    """What `observe` reads of (K, nq) poses, by MuJoCo's own kinematics; and the MjData of each."""
    model = model_of(env)
    for positions, velocities in zip(q, qd, strict=True):
        data = mujoco.MjData(model)
        data.qpos, data.qvel = positions, velocities
        mujoco.mj_forward(model, data)
        velocity = np.zeros((model.nbody, 6))
        for body in range(model.nbody):
            mujoco.mj_objectVelocity(model, data, mujoco.mjtObj.mjOBJ_XBODY, body, velocity[body], 0)
        x = Transform(pos=jnp.array(data.xpos[1:]), rot=jnp.array(data.xquat[1:]))
        xd = Motion(ang=jnp.array(velocity[1:, :3]), vel=jnp.array(velocity[1:, 3:]))
        yield types.SimpleNamespace(q=jnp.array(data.qpos), qd=jnp.array(data.qvel), x=x, xd=xd), data, velocity


def random_poses(env, count: int = 20) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    q, qd = (np.array(leaf, np.float64) for leaf in env.sample_start(jax.random.key(0), jnp.zeros(env.goal_dim)))
    q, qd = np.tile(q, (count, 1)), rng.normal(size=(count, len(qd)))
    arm = slice(7, 14) if env.fingers else slice(0, 7)
    q[:, arm] += rng.uniform(-0.5, 0.5, (count, 7))
    if env.fingers:
        q[:, 14:] = rng.uniform(0, 0.08, (count, 1))
        q[:, :3] = rng.uniform((-0.3, 0.3, 0.03), (0.3, 0.8, 0.4), (count, 3))
    return q, qd


# The model.


@pytest.mark.parametrize("name", NAMES)
def test_sizes_are_those_of_the_second_published_version(name):
    sizes = {"arm_reach": (13, (7, 8, 9), 4), "arm_grasp": (23, tuple(range(16, 23)), 5)}
    env = built(name)
    assert (env.state_dim, env.goal_indices, env.action_size) == sizes.get(name, (17, (0, 1, 2), 5))
    others = {} if name == "arm_grasp" else {"success_easy": 0.3, "success_hard": 0.03}
    assert (env.goal_dist, env.other_thresholds) == (0.05 if name == "arm_grasp" else 0.1, others)
    assert (env.backend, env.dt) == ("mjx", pytest.approx(0.05))
    reach = name == "arm_reach"
    assert (env.sys.q_size(), env.sys.qd_size(), env.sys.act_size()) == ((7, 7, 7) if reach else (16, 15, 9))


@pytest.mark.parametrize("name", NAMES)
def test_arm_at_home(name):
    env = built(name)
    data = at_start(env, model_of(env))
    np.testing.assert_allclose(data.body("link7").xpos, (0, 0.678, 0.371), atol=5e-4)
    if env.fingers:
        np.testing.assert_allclose(data.body("left_finger").xpos, (0.031, 0.772, 0.232), atol=5e-4)
        np.testing.assert_allclose(data.body("right_finger").xpos, (-0.032, 0.808, 0.265), atol=5e-4)


@pytest.mark.parametrize("name", NAMES)
def test_arm_is_not_damped_and_weighs_what_it_should(name):
    model = model_of(built(name))
    assert model.body_mass[model.body("link1").id : model.body("link7").id + 1].sum() == pytest.approx(16.062132)
    arm = [model.joint(f"joint{number}").id for number in range(1, 8)]
    dofs = model.jnt_dofadr[arm]
    assert np.all(model.dof_armature[dofs] == 0) and np.all(model.dof_damping[dofs] == 0)
    np.testing.assert_array_equal(model.jnt_limited[arm], [0, 1, 0, 1, 0, 1, 0])
    assert (model.opt.timestep, model.opt.iterations, model.opt.ls_iterations) == (0.002, 6, 12)
    assert model.opt.integrator == mujoco.mjtIntegrator.mjINT_IMPLICITFAST
    assert model.opt.impratio == (10 if "binpick" in name else 1)
    if name != "arm_reach":
        fingers = [model.joint(f"{side}_finger").id for side in ("left", "right")]
        np.testing.assert_array_equal(model.jnt_range[fingers], [[0, 0.08]] * 2)
        np.testing.assert_array_equal(model.dof_armature[model.jnt_dofadr[fingers]], 0.1)
        np.testing.assert_array_equal(model.dof_damping[model.jnt_dofadr[fingers]], 5)
        assert model.body("cube").mass[0] == pytest.approx(0.216)


def test_inertia_of_every_link_is_about_its_centre_along_its_axes():
    """What MuJoCo makes of the tables, turned back."""
    model = model_of(built("arm_reach"))
    for number, link in enumerate(LINKS, start=1):
        body = model.body(f"link{number}")
        axes = np.zeros(9)
        mujoco.mju_quat2Mat(axes, body.iquat)
        axes = axes.reshape(3, 3)
        xx, yy, zz, xy, xz, yz = link.inertia
        tensor = axes @ np.diag(body.inertia) @ axes.T
        np.testing.assert_allclose(tensor, [[xx, xy, xz], [xy, yy, yz], [xz, yz, zz]], atol=2e-6)


def test_a_gram_at_the_tip_of_each_finger_that_grasps():
    light, heavy = (model_of(built(name)).body("left_finger") for name in ("arm_push_easy", "arm_grasp"))
    assert heavy.mass[0] - light.mass[0] == pytest.approx(0.001)
    np.testing.assert_allclose(heavy.ipos * heavy.mass[0], np.array([0, 0.005, 0.07]) * 0.001)
    np.testing.assert_allclose(light.inertia, (2.375e-6, 2.375e-6, 7.5e-7))
    # Both, about the finger's origin: those of the finger, and of a gram in its place.
    at_origin = heavy.inertia.sum() + 2 * heavy.mass[0] * np.sum(heavy.ipos**2)
    assert at_origin == pytest.approx(light.inertia.sum() + 2 * 0.001 * (0.005**2 + 0.07**2), rel=1e-6)


@pytest.mark.parametrize(
    ("name", "count"), [("arm_reach", 1), ("arm_grasp", 8), ("arm_push_hard", 8), ("arm_binpick_easy", 40)]
)
def test_pairs_that_collide(name, count):
    model = model_of(built(name))
    assert model.npair == count
    pairs = {
        frozenset((model.geom(a).name, model.geom(b).name))
        for a, b in zip(model.pair_geom1, model.pair_geom2, strict=True)
    }
    assert len(pairs) == count and frozenset(("table", "hand")) in pairs
    if count > 1:
        assert frozenset(("left_finger", "right_finger")) in pairs
        assert not any("hand" in pair and not pair & {"table", "cube"} and "bin" not in str(pair) for pair in pairs)
        for mover in ("hand", "left_finger", "right_finger"):
            assert frozenset((mover, "cube")) in pairs
    np.testing.assert_array_equal(model.pair_friction, np.tile([1, 1, 0.005, 0.0001, 0.0001], (count, 1)))
    np.testing.assert_array_equal(model.pair_solref, np.tile([0.02, 1], (count, 1)))
    np.testing.assert_array_equal(model.pair_solimp, np.tile([0.9, 0.95, 0.001, 0.5, 2], (count, 1)))
    assert np.all(model.pair_dim == 3) and not np.any(model.geom_contype | model.geom_conaffinity)


@pytest.mark.parametrize(
    ("name", "centre", "reach"), [("arm_binpick_easy", 0.17, 0.14), ("arm_binpick_hard", 0.3, 0.19)]
)
def test_bins_are_two_squares_of_walls(name, centre, reach):
    model = model_of(built(name))
    walls = np.array([i for i in range(model.ngeom) if model.geom(i).name.startswith("bin_")])
    assert len(walls) == 8
    low, high = model.geom_pos[walls] - model.geom_size[walls], model.geom_pos[walls] + model.geom_size[walls]
    np.testing.assert_allclose(low[:, 2], 0, atol=1e-12)
    np.testing.assert_allclose(high[:, 2], 0.066)
    for half, x in ((walls < walls[4], -centre), (walls >= walls[4], centre)):
        outer = reach + 0.005
        np.testing.assert_allclose(low[half].min(axis=0)[:2], (x - outer, 0.6 - outer))
        np.testing.assert_allclose(high[half].max(axis=0)[:2], (x + outer, 0.6 + outer))


# How it is moved.


def settle(env, action, model: mujoco.MjModel) -> mujoco.MjData:
    data = at_start(env, model)
    if env.fingers:
        data.qpos[:3] = 0.5, 0.2, 0.03  # the cube out of the way
    data.ctrl = env.control(jnp.array(action, jnp.float32))
    for _ in range(5000):
        mujoco.mj_step(model, data)
    return data


@pytest.mark.parametrize(("grip", "opening"), [(-1.0, 0.08), (1.0, 0.0)])
def test_where_the_arm_comes_to_rest(grip, opening):
    env = built("arm_push_easy")
    data = settle(env, [0, 0, 0, 0, grip], model_of(env))
    np.testing.assert_allclose(data.qpos[7:14], SETTLED, atol=1e-3)
    np.testing.assert_allclose(data.qpos[14:], opening, atol=1e-4)
    np.testing.assert_allclose(data.body("link7").xpos, (0, 0.753, 0.546), atol=1e-3)


def test_steady_angles_without_load():
    """Half or 0.571 of what joints 3 to 7 are told; the others get there."""
    env = built("arm_reach")
    model = model_of(env, gravity=(0, 0, 0))
    for action in ([0.5, -0.4, 0.3, -0.6], [-0.7, 0.2, -0.5, 0.9]):
        control = np.array(env.control(jnp.array(action)))
        np.testing.assert_allclose(control[[2, 4, 6]], [0, 0, 1.4487])
        share = np.array([1, 1, 4 / 7, 4 / 7, 0.5, 0.5, 0.5])
        np.testing.assert_allclose(settle(env, action, model).qpos, share * control, atol=1e-3)


def test_actions_span_the_targets():
    env = built("arm_push_easy")
    low, high = (np.array(env.control(jnp.full(5, sign))) for sign in (-1.0, 1.0))
    np.testing.assert_allclose(low, [0.3491, 0, 0, -3.0718, 0, 2.3562, 1.4487, 255, 255], atol=1e-6)
    np.testing.assert_allclose(high, [2.7925, 1.48353, 0, -0.0698, 0, 3.7525, 1.4487, 0, 0], atol=1e-6)


@pytest.mark.parametrize(("finger_range", "gain"), [(0.08, 0.15686), (0.05, 0.09804)])
def test_the_finger_range_is_an_argument(finger_range, gain):
    env = ArmPush("easy", finger_range=finger_range)
    model = model_of(env)
    assert model.actuator("left_finger").gainprm[0] == pytest.approx(gain, rel=1e-4)
    data = settle(env, [0, 0, 0, 0, -1], model)
    np.testing.assert_allclose(data.qpos[14:], finger_range, atol=1e-4)


class Tireless:
    """Mixin for an arm whose motors have no largest force."""

    def build_xml(self):
        root = super().build_xml()
        for motor in root.find("actuator"):
            motor.set("forcelimited", "false")
        return root


FAMILIES = {ArmReach: (), ArmGrasp: (), ArmPush: ("easy",), ArmBinpick: ("easy",)}


@pytest.mark.parametrize(
    ("family", "limited"),
    [(ArmReach, True), (ArmReach, False), slow(ArmGrasp, True), slow(ArmPush, False), slow(ArmBinpick, True)],
)
def test_500_physics_steps_are_those_of_plain_mujoco(family, limited):
    """From the same XML, while the cube falls and the fingers open: at rest, but for motors that are below their
    largest force; and across the room, by motors that have none.

    A motor at its largest force no longer damps in MuJoCo's integrator, but does in MJX's.
    """
    env = (family if limited else type("Free", (Tireless, family), {}))(*FAMILIES[family])
    action = jnp.array([0.01, 0.01, 0.008, 0.01, -1.0] if limited else [0.4, -0.3, 0.2, 0.5, -1.0])[: env.action_size]
    model = model_of(env, iterations=100, ls_iterations=50)
    start = settle(env, [0.0] * env.action_size, model).qpos if limited else at_start(env, model).qpos
    if env.fingers:
        start[:7] = 0.1, 0.6, 0.07, 1, 0, 0, 0
        start[14:] = 0.04
    data = mujoco.MjData(model)
    data.qpos, data.ctrl = start, env.control(action)

    def control_steps(q):
        def step(pipeline_state, _):
            pipeline_state = env.step_pipeline(pipeline_state, action)
            return pipeline_state, pipeline_state.q

        return jax.lax.scan(step, env.init_pipeline((q, jnp.zeros(model.nv))), length=20)[1]

    for q in np.array(jax.jit(control_steps)(jnp.array(start, jnp.float32))):
        for _ in range(25):
            mujoco.mj_step(model, data)
            assert np.all(np.abs(data.actuator_force) < model.actuator_forcerange[:, 1]) or not limited
        np.testing.assert_allclose(q, data.qpos, atol=2e-5)


# Starts and goals.


@functools.cache
def starts(name: str, count: int = 20_000):
    keys = jax.random.split(jax.random.key(7), count)
    return [np.asarray(leaf, np.float64) for leaf in jax.jit(jax.vmap(start_and_goal(built(name))))(keys)]


def assert_uniform(values: np.ndarray, low: float, high: float):
    assert low - 1e-6 <= values.min() and values.max() <= high + 1e-6
    quartiles = np.quantile((values - low) / (high - low), [0.25, 0.5, 0.75])
    np.testing.assert_allclose(quartiles, [0.25, 0.5, 0.75], atol=0.02)


@pytest.mark.parametrize("name", NAMES)
def test_the_arm_starts_at_home(name):
    q, qd, _ = starts(name)
    assert np.all(qd == 0)
    fingers = [] if name == "arm_reach" else [0.04, 0.04]
    np.testing.assert_allclose(
        q[:, 0 if name == "arm_reach" else 7 :], np.tile([*HOME, *fingers], (len(q), 1)), rtol=1e-6
    )


@pytest.mark.parametrize(
    ("name", "cube", "half", "goal", "goal_half"),
    [
        ("arm_push_easy", (-0.1, 0.6), 0.1, (0.1, 0.6), 0.1),
        ("arm_push_hard", (-0.25, 0.65), 0.25, (0.25, 0.65), 0.25),
        ("arm_binpick_easy", (-0.15, 0.6), 0.07, (0.17, 0.6), 0.005),
        ("arm_binpick_hard", (-0.3, 0.6), 0.15, (0.3, 0.6), 0.15),
    ],
)
def test_where_cubes_start_and_should_go(name, cube, half, goal, goal_half):
    q, _, goals = starts(name)
    for axis in (0, 1):
        assert_uniform(q[:, axis], cube[axis] - half, cube[axis] + half)
        assert_uniform(goals[:, axis], goal[axis] - goal_half, goal[axis] + goal_half)
    np.testing.assert_allclose(q[:, 2:7], np.tile([0.07, 1, 0, 0, 0], (len(q), 1)), rtol=1e-6)
    np.testing.assert_allclose(goals[:, 2], 0.03, rtol=1e-6)


@pytest.mark.parametrize(("name", "share"), [("arm_push_easy", 0.067), ("arm_push_hard", 0.005)])
def test_share_of_starts_in_success(name, share):
    """Once the cube has fallen to the table, where its goal is."""
    q, _, goal = starts(name)
    assert np.mean(np.linalg.norm(q[:, :2] - goal[:, :2], axis=1) < 0.1) == pytest.approx(
        share, abs=5 * np.sqrt(share / len(q))
    )


def test_reach_goals():
    _, _, goal = starts("arm_reach")
    for axis, (low, high) in enumerate(((-0.2, 0.2), (0.3, 0.7), (0.1, 0.5))):
        assert_uniform(goal[:, axis], low, high)


def test_grasp_goals_are_beside_the_cube():
    q, _, goal = starts("arm_grasp")
    assert_uniform(q[:, 0], -0.3, 0.3)
    assert_uniform(q[:, 1], 0.3, 0.9)
    aside = np.array([0.0375, 0, 0])
    np.testing.assert_allclose(goal[:, :3], q[:, :3] + aside, atol=1e-6)
    np.testing.assert_allclose(goal[:, 3:6], q[:, :3] - aside, atol=1e-6)
    np.testing.assert_allclose(goal[:, 6], 0.075, rtol=1e-6)


# The state.


@pytest.mark.parametrize("name", ["arm_reach", "arm_push_easy", "arm_binpick_hard", "arm_grasp"])
def test_state_is_what_the_table_says(name):
    env = built(name)
    hand = env.sys.mj_model.body("link7").id
    for pipeline_state, data, velocity in pipeline_states(env, *random_poses(env)):
        angles = data.qpos[7:14] if env.fingers else data.qpos
        expected = [angles, data.xpos[hand], velocity[hand, 3:]]
        if env.fingers:
            expected = [data.qpos[:3], *expected]
        if name == "arm_grasp":
            for side in ("left", "right"):
                finger = data.body(f"{side}_finger")
                expected.append(finger.xpos + finger.xmat.reshape(3, 3) @ [0, 0.005, 0.07])
            expected.append([data.qpos[14:].sum() + 0.01])  # each tip 5 mm from its finger's frame
        elif env.fingers:
            expected.append([data.qpos[14:].sum()])
        state = env.observe(pipeline_state, jnp.zeros(env.action_size))
        np.testing.assert_allclose(state, np.concatenate(expected), atol=1e-5)


def test_the_goal_of_grasping_follows_the_cube():
    env = built("arm_grasp")
    for pipeline_state, data, _ in pipeline_states(env, *random_poses(env, 3)):
        goal = env.follow(pipeline_state, jnp.zeros(7))
        np.testing.assert_allclose((goal[:3] + goal[3:6]) / 2, data.qpos[:3], atol=1e-6)
    for name in ("arm_reach", "arm_push_easy"):
        np.testing.assert_array_equal(built(name).follow(None, jnp.ones(3)), 1)


@pytest.mark.parametrize(
    ("middle", "opening", "success", "easy", "hard"),
    [
        (0.049, 0.0945, 1, 1, 0),
        (0.051, 0.075, 0, 1, 0),
        (0.0, 0.0555, 1, 1, 0),
        (0.0, 0.0545, 0, 1, 0),
        (0.019, 0.0795, 1, 1, 1),
        (0.019, 0.0805, 1, 1, 0),
        (0.149, 0.124, 0, 1, 0),
        (0.151, 0.075, 0, 0, 0),
        (0.0, 0.126, 0, 0, 0),
    ],
)
def test_grasp_succeeds_by_place_and_opening(middle, opening, success, easy, hard):
    env = built("arm_grasp")
    cube = jnp.array([0.1, 0.5, 0.03])
    goal = env.goal_of(cube)
    centre, half = cube + jnp.array([0, 0.6, 0.8]) * middle, jnp.array([0.0, 0.0, opening / 2])
    state = jnp.zeros(23).at[16:].set(jnp.concatenate([centre + half, centre - half, jnp.array([opening])]))
    assert bool(env.goal_distance(state, goal) < env.goal_dist) == success
    metrics = env.step_metrics(None, types.SimpleNamespace(state=state, goal=goal), jnp.zeros(5))
    assert [int(metrics[name]) for name in ("success_easy", "success_hard")] == [easy, hard]


# Refusals.


@pytest.mark.parametrize("backend", ["spring", "generalized", "positional"])
def test_backends_that_cannot_step_an_arm_are_refused(backend):
    with pytest.raises(ValueError, match=f"^unknown backend '{backend}' of ArmReach: choose from .*mjx"):
        ArmReach(backend)


def test_an_unknown_level_is_refused():
    with pytest.raises(
        ValueError, match="^unknown level 'eazy' of ArmPush: choose from easy, hard; did you mean 'easy'"
    ):
        ArmPush("eazy")
    assert ArmGrasp().goal_dim == 7


@pytest.mark.parametrize("build", [ArmReach, ArmGrasp, lambda **sizes: ArmPush("easy", **sizes)])
@pytest.mark.parametrize(("finger_range", "shown"), [(0.03, "0.03"), (0.0, "0"), (-0.08, "-0.08"), (np.nan, "nan")])
def test_fingers_that_start_further_open_than_they_can_be_are_refused(build, finger_range, shown):
    with pytest.raises(ValueError, match=f"^finger_range {shown} is below finger_start 0.04, .*: at least 0.04$"):
        build(finger_range=finger_range)


def test_fingers_may_start_wide_open():
    assert ArmGrasp(finger_range=0.04).finger_range == 0.04
