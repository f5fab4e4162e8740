"""Mazes: layouts, starts and goals, and that three moving walls act like a box on every wall cell."""

import functools
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from rollouts import random_ants, roll, start_and_goal

from envs import ENVS, make_env, maze
from envs.ant import Ant
from envs.ant_ball import AntBall
from envs.ant_maze import AntBallMaze, AntMaze
from envs.maze import InMaze, read_layout

GOAL_CELLS = {"u_maze": 6, "u_maze_eval": 3, "big_maze": 25, "big_maze_eval": 10, "hardest_maze": 45}
WALL_CELLS = {"u_maze": 18, "u_maze_eval": 18, "big_maze": 38, "big_maze_eval": 38, "hardest_maze": 62}
LAYOUTS = {name: maze.LAYOUTS[name] for name in WALL_CELLS}
# Ants thrown at a wall; the first of the ants of every comparison.
THROWN = 8


def maze_env(layout: str, **options) -> AntMaze:
    return AntMaze(layout=layout, **options)


def starts_near_walls(env: AntMaze, count: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Moving ants all over the free cells, the first `THROWN` of them flying against the wall at x = 2."""
    free = np.argwhere(~env.walls)
    cells = env.cell_size * free[rng.integers(len(free), size=count)]
    q, qd = random_ants(env, rng, cells + rng.uniform(-1.95, 1.95, (count, 2)))
    q[:THROWN, :3] = (3.2, 4.0, 0.6)
    qd[:THROWN, :2] = (-5.0, 0.0)
    return q, qd


@functools.cache
def compare(layout: str, backend: str, count: int, steps: int) -> types.SimpleNamespace:
    """The same ants and actions among moving walls, full walls and no walls: q (steps, count, 15) each."""
    env, full_env = maze_env(layout, backend=backend), maze_env(layout, backend=backend, full_walls=True)
    rng = np.random.default_rng(0)
    q, qd = starts_near_walls(env, count, rng)
    actions = rng.uniform(-1, 1, (steps, count, 8))
    return compare_walls(env, full_env, q, qd, actions, moved=(0,))


def compare_walls(env, full_env, q, qd, actions, moved) -> types.SimpleNamespace:
    """The joint positions (steps, count, ...) among moving walls, full walls and no walls; `moved` are the x in q."""
    count = len(q)
    full = roll(full_env, q, qd, np.zeros((count, 2)), actions).pipeline_state.q
    # Twice in one program: in the maze, and beyond it, where there are no walls.
    shift = np.where(np.isin(np.arange(q.shape[1]), moved), 64.0, 0.0)
    twice = (np.concatenate([q, q + shift]), np.tile(qd, (2, 1)), np.zeros((2 * count, 2)), np.tile(actions, (1, 2, 1)))
    moving, free = np.split(np.array(roll(env, *twice).pipeline_state.q), 2, axis=1)
    return types.SimpleNamespace(moving=moving, full=np.array(full), free=free - shift)


def worst(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """(steps, count) the largest difference of an entry."""
    return np.abs(a - b).max(axis=-1)


def assert_same_physics(difference: np.ndarray) -> None:
    """Equal to float32, but for a few ants: where a contact just begins, float noise grows in either model alone too
    (started 2e-7 rad apart, or compiled for another batch, 1 ant in 60 is off by more than 1e-3 after 25 steps)."""
    assert np.quantile(difference[0], 0.98) < 1e-4
    assert np.median(difference[-1]) < 1e-4
    assert np.mean(difference[-1] < 1e-3) > 0.95


@pytest.mark.parametrize(
    ("layout", "count"), [("u_maze", 256), pytest.param("big_maze", 64, marks=pytest.mark.slow), ("hardest_maze", 24)]
)
def test_three_moving_walls_are_the_full_maze(layout, count):
    result = compare(layout, "spring", count, 25)
    assert_same_physics(worst(result.moving, result.full))


def test_the_compared_ants_touch_walls():
    result = compare("u_maze", "spring", 256, 25)
    difference = worst(result.full, result.free)
    assert np.mean(difference[-1] > 1e-2) > 0.5


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["mjx", "generalized", "positional"])
def test_three_moving_walls_are_the_full_maze_on_other_backends(backend):
    result = compare("u_maze", backend, 16, 3)
    assert_same_physics(worst(result.moving, result.full))
    assert worst(result.full, result.free)[-1].max() > 1e-2


def test_a_wall_stops_the_ant():
    """Thrown at 5 m/s from 1.2 m in front of a wall, whose face is at x = 2."""
    result = compare("u_maze", "spring", 256, 25)
    assert result.moving[:, :THROWN, 0].min() > 2.0
    assert np.median(result.free[-1, :THROWN, 0]) < 1.9


@pytest.mark.parametrize("layout", LAYOUTS)
def test_moving_walls_stand_on_every_wall_within_reach(layout):
    """All wall boxes that come within 1.99 m of the torso are there, and none where no wall is."""
    env, rng = maze_env(layout), np.random.default_rng(1)
    free = env.cell_size * np.argwhere(~env.walls)
    torso = free[rng.integers(len(free), size=500)] + rng.uniform(-2, 2, (500, 2))
    positions = np.array(jax.vmap(env.wall_positions)(jnp.array(torso)))
    walls = env.cell_size * np.argwhere(env.walls)
    for xy, placed in zip(torso, positions, strict=True):
        to_box = np.maximum(np.abs(walls - xy) - env.cell_size / 2, 0)
        near = {tuple(wall) for wall in walls[np.linalg.norm(to_box, axis=1) < 1.99]}
        standing = {tuple(wall) for wall in placed[placed[:, 2] > 0, :2]}
        assert near <= standing <= {tuple(wall) for wall in walls}
        assert set(placed[:, 2]) <= {1.0, -100.0}


def test_a_torso_inside_a_wall_has_that_wall_around_it():
    env = maze_env("u_maze")
    for torso in ((8.1, 4.2), (0.3, 7.9)):
        cell = 4 * np.round(np.array(torso) / 4)
        assert (cell == np.array(env.wall_positions(jnp.array(torso)))[:, :2]).all(axis=1).any()


def test_no_walls_beyond_the_layout():
    env = maze_env("u_maze")
    for torso in ((-30.0, 5.0), (60.0, 60.0), (5.0, 30.0)):
        assert (np.array(env.wall_positions(jnp.array(torso)))[:, 2] < 0).all()


@pytest.mark.parametrize("layout", LAYOUTS)
def test_full_maze_has_a_box_per_wall_cell(layout):
    model = maze_env(layout, full_walls=True).sys.mj_model
    boxes = model.geom_type == 6
    assert boxes.sum() == WALL_CELLS[layout]
    np.testing.assert_allclose(model.geom_size[boxes], np.tile([2.0, 2.0, 1.0], (WALL_CELLS[layout], 1)))
    cells = np.array([[cell == "1" for cell in row.split()] for row in LAYOUTS[layout].strip().splitlines()])
    np.testing.assert_allclose(model.geom_pos[boxes, :2], 4.0 * np.argwhere(cells))
    np.testing.assert_allclose(model.geom_pos[boxes, 2], 1.0)
    moving = maze_env(layout)
    assert (moving.sys.mj_model.geom_type == 6).sum() == 3
    assert moving.full_maze_xml() == maze_env(layout, full_walls=True).model_xml


def test_walls_touch_torso_inner_legs_and_feet():
    model = maze_env("u_maze").sys.mj_model
    touched = {
        model.geom(i).name for i in range(model.ngeom) if model.geom_conaffinity[i] and model.geom_type[i] in (2, 3)
    }
    feet = {f"{leg}_foot_geom" for leg in ("left", "right", "third", "fourth")}
    assert touched == {"torso_geom", *(f"aux_{i}_geom" for i in (1, 2, 3, 4)), *feet}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_starts_and_goals_are_the_marked_cells(layout):
    env = maze_env(layout)
    q, qd, goal = jax.jit(jax.vmap(start_and_goal(env)))(jax.random.split(jax.random.key(0), 4000))
    assert env.goals.shape == (GOAL_CELLS[layout], 2)
    np.testing.assert_array_equal(q[:, :2], np.full((4000, 2), 4.0))
    places, counts = np.unique(np.array(goal), axis=0, return_counts=True)
    rows = [row.split() for row in LAYOUTS[layout].strip().splitlines()]
    np.testing.assert_array_equal(
        places, [[4.0 * i, 4.0 * j] for i, r in enumerate(rows) for j, c in enumerate(r) if c == "G"]
    )
    # Uniform: no count further than five standard deviations from its mean.
    mean = 4000 / len(places)
    assert np.abs(counts - mean).max() < 5 * np.sqrt(mean)
    np.testing.assert_allclose(np.linalg.norm(q[:, 3:7], axis=1), 1.0, atol=1e-6)
    assert np.ptp(q[:, 2]) > 0.15 and np.array(qd).std() == pytest.approx(0.1, rel=0.05)


def test_every_start_cell_is_drawn(monkeypatch):
    monkeypatch.setitem(maze.LAYOUTS, "two_starts", "1 1 1 1\n 1 R G 1\n 1 R 1 1\n 1 1 1 1")
    q, _, goal = jax.vmap(start_and_goal(maze_env("two_starts")))(jax.random.split(jax.random.key(0), 200))
    places, counts = np.unique(np.array(q[:, :2]), axis=0, return_counts=True)
    np.testing.assert_array_equal(places, [[4.0, 4.0], [8.0, 4.0]])
    assert counts.min() > 60
    np.testing.assert_array_equal(goal, np.tile([4.0, 8.0], (200, 1)))


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ("1 1 1\n 1 R 1 1\n 1 G 1", "'bad' has rows of different lengths: \\[3, 4, 3\\]"),
        ("1 1 1\n 1 R 1\n 1 1 1", "'bad' has no goal: mark at least one cell G"),
        ("1 1 1\n 1 G 1\n 1 1 1", "'bad' has no start: mark at least one cell R"),
        ("1 1 1 1\n 1 R G x\n 1 1 1 1", "'bad' has \\['x'\\]: use 1 wall"),
    ],
)
def test_a_layout_that_is_no_maze_is_refused(monkeypatch, table, message):
    monkeypatch.setitem(maze.LAYOUTS, "bad", table)
    with pytest.raises(ValueError, match=f"^maze layout {message}") as error:
        maze_env("bad")
    assert "\n" not in str(error.value)


def test_an_unknown_layout_is_refused_with_the_nearest():
    with pytest.raises(ValueError, match="unknown maze layout 'u_mase': .*did you mean 'u_maze'"):
        read_layout("u_mase")


@pytest.mark.parametrize("layout", LAYOUTS)
def test_registered_with_the_published_sizes(layout):
    env = make_env(f"ant_{layout}")
    assert (env.state_dim, env.goal_dim, env.goal_indices, env.action_size) == (29, 2, (0, 1), 8)
    assert (env.backend, env.goal_dist, env.other_thresholds) == ("spring", 0.5, {"success_easy": 2.0})
    assert env.dt == pytest.approx(0.05)
    assert set(env.physics) == set(Ant.physics)
    assert ENVS[f"ant_{layout}"].keywords == {"layout": layout}


def test_observation_and_success_of_a_random_walk():
    """200 steps from the start cell, with goals so near the start that success comes and goes."""
    env, rng = make_env("ant_u_maze"), np.random.default_rng(2)
    q, qd = random_ants(env, rng, np.full((4, 2), 4.0))
    goal = 4.0 + rng.uniform(-0.6, 0.6, (4, 2))
    states = roll(env, q, qd, goal, rng.uniform(-1, 1, (200, 4, 8)))
    assert all(
        np.isfinite(np.array(leaf)).all() for leaf in jax.tree.leaves((states.obs, states.reward, states.metrics))
    )
    np.testing.assert_array_equal(states.obs[..., :15], states.pipeline_state.q)
    np.testing.assert_array_equal(states.obs[..., 15:29], states.pipeline_state.qd)
    np.testing.assert_array_equal(states.obs[..., 29:], np.broadcast_to(goal.astype(np.float32), (200, 4, 2)))
    torso = np.array(states.pipeline_state.x.pos)[:, :, 0]
    dist = np.linalg.norm(torso[..., :2] - goal, axis=-1)
    np.testing.assert_allclose(states.metrics["dist"], dist, atol=1e-5)
    np.testing.assert_array_equal(states.reward, dist < 0.5)
    assert 0 < np.mean(states.reward) < 1
    np.testing.assert_array_equal(states.metrics["success_easy"], dist < 2.0)
    np.testing.assert_array_equal(states.done, (torso[..., 2] < 0.2) | (torso[..., 2] > 1.0))


# With a ball.


def ball_maze(layout: str = "u_maze_ball", **options) -> AntBallMaze:
    return AntBallMaze(layout=layout, **options)


@functools.cache
def compare_with_ball(backend: str, count: int, steps: int) -> types.SimpleNamespace:
    """As `compare`, in the u_maze; half of the balls fly in the cell of their ant, half in another."""
    env, rng = ball_maze(backend=backend), np.random.default_rng(0)
    free = env.cell_size * np.argwhere(~env.walls)
    cells = free[rng.integers(len(free), size=(2, count))]
    cells[1, ::2] = cells[0, ::2]
    q, qd = random_ants(env, rng, cells[0] + rng.uniform(-1.9, 1.9, (count, 2)))
    q[:, 15:] = cells[1] + rng.uniform(-1.9, 1.9, (count, 2))
    qd[:, 14:] = rng.normal(0, 3, (count, 2))
    actions = rng.uniform(-1, 1, (steps, count, 8))
    return compare_walls(env, ball_maze(backend=backend, full_walls=True), q, qd, actions, moved=(0, 15))


@pytest.mark.parametrize(
    ("backend", "count", "steps"), [("spring", 32, 25), pytest.param("mjx", 16, 3, marks=pytest.mark.slow)]
)
def test_three_walls_each_for_ant_and_ball_are_the_full_maze(backend, count, steps):
    result = compare_with_ball(backend, count, steps)
    assert_same_physics(worst(result.moving, result.full))
    touched = np.abs(result.full - result.free)[-1] > 1e-2
    assert touched[:, :15].any(axis=1).mean() > 0.2 and touched[:, 15:].any(axis=1).mean() > 0.2


def test_walls_of_the_ball_stop_nothing_else():
    model = ball_maze().sys.mj_model
    walls = [model.geom(f"wall_{i}") for i in range(6)]
    stopped = [
        {model.geom(i).name for i in range(model.ngeom) if collides(model.geom(i), wall) and model.geom_type[i] != 6}
        for wall in walls
    ]
    feet = {f"{leg}_foot_geom" for leg in ("left", "right", "third", "fourth")}
    assert stopped == 3 * [{"torso_geom", "floor", *feet}] + 3 * [{"object"}]


def collides(a, b) -> bool:
    """Whether MuJoCo's filter lets two geoms touch."""
    return bool(a.contype[0] & b.conaffinity[0] or b.contype[0] & a.conaffinity[0])


@pytest.mark.parametrize(
    ("layout", "goals", "balls"),
    [("u_maze_ball", 5, [[4.0, 12.0]]), ("big_maze_ball", 20, [[12.0, 8.0], [12.0, 16.0]])],
)
def test_balls_start_at_the_marked_cells(layout, goals, balls):
    env = ball_maze(layout)
    q, qd, goal = jax.jit(jax.vmap(start_and_goal(env)))(jax.random.split(jax.random.key(0), 2000))
    np.testing.assert_array_equal(q[:, :2], np.full((2000, 2), 4.0))
    places, counts = np.unique(np.array(q[:, 15:]), axis=0, return_counts=True)
    np.testing.assert_array_equal(places, balls)
    assert counts.min() > 0.9 * 2000 / len(balls)
    assert len(np.unique(np.array(goal), axis=0)) == goals == len(env.goals)
    np.testing.assert_array_equal(qd[:, 14:], 0.0)


def test_ball_mazes_have_the_sizes_of_the_open_ground():
    for name in ("ant_ball_u_maze", "ant_ball_big_maze"):
        env = make_env(name)
        assert (env.state_dim, env.goal_dim, env.goal_indices, env.action_size) == (31, 2, (29, 30), 8)
        assert (env.backend, env.goal_dist, env.other_thresholds) == ("spring", 0.5, {"success_easy": 2.0})
        assert "ball" in ENVS[name].keywords["layout"]


def test_a_maze_without_a_ball_or_without_its_walls_is_refused():
    with pytest.raises(ValueError, match="^maze layout 'u_maze' has no ball: mark at least one cell B$"):
        ball_maze("u_maze")

    class Forgotten(InMaze, AntBall):
        touching = AntBallMaze.touching

    with pytest.raises(ValueError, match="^Forgotten has 2 bodies, but walls for 1 of them$"):
        Forgotten(layout="u_maze_ball")
