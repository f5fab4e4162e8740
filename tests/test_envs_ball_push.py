"""Ant ball and ant push: models, starts and goals, and what the objects do when the ant hits them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from rollouts import random_ants, roll, start_and_goal

from envs import make_env
from envs.ant_push import BLOCKS


@pytest.fixture(scope="module")
def ball():
    return make_env("ant_ball")


@pytest.fixture(scope="module")
def push():
    return make_env("ant_push")


def starts(env, count: int):
    keys = jax.random.split(jax.random.key(0), count)
    return tuple(np.array(leaf) for leaf in jax.jit(jax.vmap(start_and_goal(env)))(keys))


def touched_geoms(model, contype: int, conaffinity: int) -> set[str]:
    return {
        model.geom(i).name
        for i in range(model.ngeom)
        if (model.geom_contype[i], model.geom_conaffinity[i]) == (contype, conaffinity) and model.geom_type[i] != 6
    }


FEET = {f"{leg}_foot_geom" for leg in ("left", "right", "third", "fourth")}


@pytest.mark.parametrize(
    ("name", "indices", "backend"), [("ant_ball", (29, 30), "spring"), ("ant_push", (0, 1), "mjx")]
)
def test_registered_with_the_published_sizes(name, indices, backend):
    env = make_env(name)
    assert (env.state_dim, env.goal_dim, env.goal_indices, env.action_size) == (31, 2, indices, 8)
    assert (env.backend, env.goal_dist, env.other_thresholds) == (backend, 0.5, {"success_easy": 2.0})
    assert env.dt == pytest.approx(0.05)


# Ball.


def test_ball_model(ball):
    model = ball.sys.mj_model
    assert (ball.sys.q_size(), ball.sys.qd_size()) == (17, 16)
    assert touched_geoms(model, 0, 1) == {"torso_geom", "floor"}
    assert touched_geoms(model, 1, 1) == FEET
    assert touched_geoms(model, 1, 0) == {"object"}
    assert model.body("object").mass[0] == pytest.approx(0.576, abs=1e-3)
    assert model.body_mass.sum() == pytest.approx(0.9109 + 0.576, abs=1e-3)
    np.testing.assert_array_equal(model.jnt_range[-2:], [[-100, 100]] * 2)
    np.testing.assert_array_equal(model.dof_armature[-2:], 1.0)
    np.testing.assert_array_equal(model.dof_damping[-2:], 0.0)


def test_ball_starts_clear_of_the_torso_and_on_its_way_to_the_goal(ball):
    q, qd, goal = starts(ball, 4000)
    torso, placed = q[:, :2], q[:, 15:]
    np.testing.assert_allclose(np.linalg.norm(goal, axis=1), 5.0, atol=1e-5)
    assert np.linalg.norm(placed - torso, axis=1).min() > 0.8 - 1e-5
    np.testing.assert_allclose(np.linalg.norm(placed - 0.2 * goal, axis=1), 1.0, atol=1e-5)
    np.testing.assert_array_equal(qd[:, 14:], 0.0)
    assert np.abs(torso).max() < 0.1 + 1e-6 and np.ptp(torso) > 0.19
    np.testing.assert_allclose(np.linalg.norm(q[:, 3:7], axis=1), 1.0, atol=1e-6)


def test_ball_angle_is_uniform_over_all_that_is_allowed(ball):
    """For one goal and a torso at the origin: the angles against those that rejection would leave."""
    goal = jnp.array([5.0, 0.0])
    placed = jax.vmap(lambda key: ball.place_ball(key, jnp.zeros(2), goal))(jax.random.split(jax.random.key(1), 4000))
    offset = np.array(placed) - 0.2 * np.array(goal)
    angles = np.arctan2(offset[:, 1], offset[:, 0])
    grid = np.linspace(-np.pi, np.pi, 100_001)
    allowed = grid[np.hypot(1 + np.cos(grid), np.sin(grid)) >= 0.8]
    quantiles = np.linspace(0.02, 0.98, 25)
    np.testing.assert_allclose(np.quantile(angles, quantiles), np.quantile(allowed, quantiles), atol=0.15)
    assert len(allowed) / len(grid) == pytest.approx(np.arccos(-0.68) / np.pi, abs=1e-3)


@pytest.fixture(scope="module")
def ball_walk(ball):
    """200 random steps of 4 ants, goals within 0.6 m of the ball; the first ant is thrown at its ball."""
    rng = np.random.default_rng(0)
    q, qd = random_ants(ball, rng, np.zeros((4, 2)))
    q[:, 15:] = [[1.6, 0.0], [-1.5, 0.5], [1.0, 1.5], [0.0, -1.4]]
    q[0, :7] = (0, 0, 0.55, 1, 0, 0, 0)
    qd[0, :6] = (5, 0, 0, 0, 0, 0)
    goal = q[:, 15:] + [[0.6, 0.0], [0.45, 0.0], [0.0, 0.55], [0.3, 0.3]]
    return goal, roll(ball, q, qd, goal, rng.uniform(-1, 1, (200, 4, 8)))


def test_ball_observation_and_success(ball_walk):
    goal, states = ball_walk
    assert all(np.isfinite(np.array(x)).all() for x in jax.tree.leaves((states.obs, states.reward, states.metrics)))
    q, qd, x = (
        np.array(leaf) for leaf in (states.pipeline_state.q, states.pipeline_state.qd, states.pipeline_state.x.pos)
    )
    np.testing.assert_array_equal(states.obs[..., :15], q[..., :15])
    np.testing.assert_array_equal(states.obs[..., 15:29], qd[..., :14])
    np.testing.assert_array_equal(states.obs[..., 29:31], x[:, :, -1, :2])
    np.testing.assert_allclose(states.obs[..., 29:31], q[..., 15:17], atol=1e-4)
    np.testing.assert_array_equal(states.obs[..., 31:], np.broadcast_to(goal.astype(np.float32), (200, 4, 2)))
    dist = np.linalg.norm(x[:, :, -1, :2] - goal, axis=-1)
    np.testing.assert_allclose(states.metrics["dist"], dist, atol=1e-5)
    np.testing.assert_array_equal(states.reward, dist < 0.5)
    assert 0 < np.mean(states.reward) < 1
    np.testing.assert_array_equal(states.metrics["success_easy"], dist < 2.0)
    np.testing.assert_array_equal(states.metrics["reward_forward"], states.metrics["x_velocity"])
    assert np.ptp(states.metrics["reward_forward"]) > 0


def test_the_ant_pushes_the_ball(ball_walk):
    _, states = ball_walk
    x = np.array(states.pipeline_state.x.pos)[:, 0, -1]
    assert x[-1, 0] > 1.8
    np.testing.assert_allclose(x[:, 2], 0.5, atol=0.05)  # it slides, it does not jump


# Push.


def test_push_model(push):
    model = push.sys.mj_model
    assert (push.sys.q_size(), push.sys.qd_size()) == (18, 17)
    assert push.sys.init_q[2] == 0.75
    assert touched_geoms(model, 1, 0) == {"torso_geom", *FEET}
    assert touched_geoms(model, 0, 1) == {"floor"}
    assert model.body_mass.sum() == pytest.approx(7.287, abs=2e-3)
    assert model.body("box").mass[0] == pytest.approx(0.0002)
    boxes = model.geom_type == 6
    assert boxes.sum() == len(BLOCKS) + 1
    np.testing.assert_allclose(model.geom_solimp[:, :3], np.tile([0.995, 0.995, 0.01], (model.ngeom, 1)))
    np.testing.assert_array_equal(model.dof_armature[-3:], 0.0)
    assert (model.opt.iterations, model.opt.ls_iterations) == (4, 8)


def test_push_takes_mjx_only(push):
    assert push.backend == "mjx"
    for backend in ("spring", "generalized", "positional"):
        with pytest.raises(ValueError, match="mjx"):
            make_env("ant_push", backend)


def test_push_starts_and_goals(push):
    q, qd, goal = starts(push, 4000)
    np.testing.assert_array_equal(qd[:, 14:], 0.0)
    assert np.array(qd[:, :14]).std() == pytest.approx(0.1, rel=0.05)
    assert np.abs(q[:, [0, 1, 15, 16, 17]]).max() < 0.1 + 1e-6 and (np.ptp(q[:, 15:], axis=0) > 0.19).all()
    assert 0.65 <= q[:, 2].min() < 0.66 and 0.84 < q[:, 2].max() <= 0.85
    first = goal[:, 0] > 12
    assert first.mean() == pytest.approx(0.5, abs=0.05)
    for pocket, chosen in (((16, 8), first), ((8, 16), ~first)):
        offset = goal[chosen] - pocket
        assert offset.min() >= 0 and offset.max() <= 2
        np.testing.assert_allclose(offset.mean(axis=0), 1.0, atol=0.1)
        np.testing.assert_allclose(offset.std(axis=0), 2 / np.sqrt(12), atol=0.05)
        assert abs(np.corrcoef(offset.T)[0, 1]) < 0.1


def test_push_places_are_free():
    """Start, box and both pockets, each a cell of 8 m, overlap no block; the neighbouring cells do."""
    for x, y, half_x, half_y in BLOCKS:
        for cell in ((0, 0), (8, 0), (0, 8), (8, 8), (16, 8), (8, 16)):
            assert abs(x - cell[0]) >= half_x + 4 or abs(y - cell[1]) >= half_y + 4
    for cell in ((-8, 0), (0, -8), (16, 0), (0, 16), (16, 16), (24, 8), (8, 24)):
        assert any(abs(x - cell[0]) < half_x and abs(y - cell[1]) < half_y for x, y, half_x, half_y in BLOCKS)


@pytest.fixture(scope="module")
def push_walk(push):
    """200 random steps of 4 ants, one thrown at the box and one at a block, goals within 0.6 m of the starts."""
    rng = np.random.default_rng(0)
    xy = np.array([[3.0, 8.0], [-2.5, 4.0], [0.0, 0.0], [8.0, 0.0]])
    q, qd = random_ants(push, rng, xy)
    q[:, 15:] = [0.0, 0.0, -0.19]  # the box near the ground, where it comes to rest after its drop
    qd[0, :2], qd[1, :2] = (6.0, 0.0), (-6.0, 0.0)
    goal = xy + [[0.6, 0.0], [0.45, 0.0], [0.0, 0.55], [0.3, 0.3]]
    return goal, roll(push, q, qd, goal, rng.uniform(-1, 1, (200, 4, 8)))


@pytest.mark.slow
def test_push_observation_and_success(push_walk):
    goal, states = push_walk
    assert all(np.isfinite(np.array(x)).all() for x in jax.tree.leaves((states.obs, states.reward, states.metrics)))
    q, qd, x = (
        np.array(leaf) for leaf in (states.pipeline_state.q, states.pipeline_state.qd, states.pipeline_state.x.pos)
    )
    np.testing.assert_array_equal(states.obs[..., :15], q[..., :15])
    np.testing.assert_array_equal(states.obs[..., 15:29], qd[..., :14])
    # MJX's body positions are those before the last integration of 0.01 s.
    np.testing.assert_allclose(states.obs[..., 29:31], x[:, :, -1, :2])
    np.testing.assert_array_equal(states.obs[..., 31:], np.broadcast_to(goal.astype(np.float32), (200, 4, 2)))
    dist = np.linalg.norm(q[..., :2] - goal, axis=-1)
    np.testing.assert_allclose(states.metrics["dist"], dist, atol=1e-5)
    np.testing.assert_array_equal(states.reward, dist < 0.5)
    assert 0 < np.mean(states.reward) < 1


@pytest.mark.slow
def test_the_ant_pushes_the_box_and_not_the_blocks(push_walk):
    _, states = push_walk
    q = np.array(states.pipeline_state.q)
    assert q[-1, 0, 15] > 0.2
    assert q[:, 1, 0].min() > -4.0
