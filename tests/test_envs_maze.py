"""Mazes: layouts, starts and goals, and that three moving walls act like a box on every wall cell."""

import functools
import types

import jax
import jax.numpy as jnp
import mujoco
import numpy as np
import pytest
from conftest import slow
from rollouts import random_ants, random_humanoids, roll, start_and_goal

from envs import ENVS, make_env, maze
from envs.ant import Ant
from envs.ant_ball import AntBall
from envs.ant_maze import AntBallMaze, AntCorridor, AntMaze
from envs.humanoid_maze import HumanoidMaze
from envs.maze import InMaze, corridor, read_layout

# Goals in training and in NAME_eval (None: there is none), and walls.
CELLS = {
    "u_maze": (6, 3, 18),
    "u2_maze": (8, 4, 21),
    "u3_maze": (10, 5, 24),
    "u4_maze": (10, 4, 24),
    "u5_maze": (16, 8, 39),
    "u6_maze": (14, 7, 34),
    "u7_maze": (12, 6, 29),
    "big_maze": (25, 10, 38),
    "hardest_maze": (45, None, 62),
}
GOAL_CELLS = {name: goals for name, (goals, _, _) in CELLS.items()}
GOAL_CELLS |= {f"{name}_eval": goals for name, (_, goals, _) in CELLS.items() if goals}
WALL_CELLS = {name: CELLS[name.removesuffix("_eval")][2] for name in GOAL_CELLS}
LAYOUTS = {name: maze.LAYOUTS[name] for name in GOAL_CELLS}
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
    goals = np.zeros((count, env.goal_dim))
    full = roll(full_env, q, qd, goals, actions).pipeline_state.q
    # Twice in one program: in the maze, and beyond it, where there are no walls.
    shift = np.where(np.isin(np.arange(q.shape[1]), moved), 64.0, 0.0)
    twice = (np.concatenate([q, q + shift]), np.tile(qd, (2, 1)), np.tile(goals, (2, 1)), np.tile(actions, (1, 2, 1)))
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


@pytest.mark.parametrize(("layout", "count"), [("u_maze", 64), slow("hardest_maze", 24)])
def test_three_moving_walls_are_the_full_maze(layout, count):
    result = compare(layout, "spring", count, 25)
    assert_same_physics(worst(result.moving, result.full))


def test_the_compared_ants_touch_walls():
    result = compare("u_maze", "spring", 64, 25)
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
    result = compare("u_maze", "spring", 64, 25)
    assert result.moving[:, :THROWN, 0].min() > 2.0
    assert np.median(result.free[-1, :THROWN, 0]) < 1.9


@pytest.mark.parametrize(
    ("env_class", "layout"),
    [*((AntMaze, layout) for layout in LAYOUTS), (HumanoidMaze, "u_maze"), (HumanoidMaze, "big_maze")],
)
def test_moving_walls_stand_on_every_wall_within_reach(env_class, layout):
    """All wall boxes that come within half a cell, but for a cm, of a part are there, and none where no wall is."""
    env, rng = env_class(layout), np.random.default_rng(1)
    # The humanoid's parts may be above walls, too.
    cells = env.cell_size * np.argwhere(~env.walls if env_class is AntMaze else np.ones_like(env.walls))
    half = env.cell_size / 2
    body = cells[rng.integers(len(cells), size=500)] + rng.uniform(-half, half, (500, 2))
    positions = np.array(jax.vmap(env.wall_positions)(jnp.array(body)))
    walls = env.cell_size * np.argwhere(env.walls)
    for xy, placed in zip(body, positions, strict=True):
        to_box = np.maximum(np.abs(walls - xy) - half, 0)
        near = {tuple(wall) for wall in walls[np.linalg.norm(to_box, axis=1) < half - 0.01]}
        standing = {tuple(wall) for wall in placed[placed[:, 2] > 0, :2]}
        assert near <= standing <= {tuple(wall) for wall in walls}
        assert set(placed[:, 2]) <= {half / 2, -100.0}


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
    np.testing.assert_array_equal(q[:, :2], np.tile(env.starts, (4000, 1)))
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


def test_layouts_are_those_of_the_mazes_they_name():
    """Every mark has its table; an evaluation asks for some of the goals of training, from the same start."""
    assert set(maze.LAYOUTS) == {*GOAL_CELLS, "u_maze_ball", "big_maze_ball"}
    for name in GOAL_CELLS:
        cells, training = read_layout(name), read_layout(name.removesuffix("_eval"))
        assert np.all(training[cells == "G"] == "G")
        for mark in "1R":
            np.testing.assert_array_equal(cells == mark, training == mark)
        assert np.argwhere(cells == "R").tolist() == [[2, 1] if name[:2] in ("u4", "u5", "u6", "u7") else [1, 1]]


@pytest.mark.parametrize(
    ("layout", "goals"),
    [
        ("u2_maze_eval", [(3, 1), (3, 2), (3, 3), (3, 4)]),
        ("u3_maze_eval", [(3, 1), (3, 2), (3, 3), (3, 4), (3, 5)]),
        ("u4_maze_eval", [(4, 1), (5, 1), (5, 2), (5, 3)]),
        ("u5_maze_eval", [(4, 1), (4, 6), *((5, column) for column in range(1, 7))]),
        ("u6_maze_eval", [(4, 1), (4, 5), *((5, column) for column in range(1, 6))]),
        ("u7_maze_eval", [(4, 1), (4, 4), *((5, column) for column in range(1, 5))]),
        ("u_maze_eval", [(3, 1), (3, 2), (3, 3)]),
        ("big_maze_eval", [(1, 5), (1, 6), (2, 5), (2, 6), (5, 3), (5, 6), (6, 2), (6, 3), (6, 5), (6, 6)]),
    ],
)
def test_goals_of_evaluation(layout, goals):
    assert [tuple(cell) for cell in np.argwhere(read_layout(layout) == "G")] == goals


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


@pytest.mark.slow
@pytest.mark.parametrize(("backend", "count", "steps"), [("spring", 32, 25), ("mjx", 16, 3)])
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
        parts = AntBallMaze.parts[:1]

    with pytest.raises(ValueError, match="^Forgotten has no walls for object$"):
        Forgotten(layout="u_maze_ball")


# Of the humanoid.


@functools.cache
def compare_humanoids(layout: str, backend: str, count: int, steps: int) -> types.SimpleNamespace:
    """As `compare`, of humanoids in any pose, above walls too."""
    env, full_env = (HumanoidMaze(layout, full_walls, backend=backend) for full_walls in (False, True))
    rng = np.random.default_rng(0)
    free = env.cell_size * np.argwhere(~env.walls)
    xy = free[rng.integers(len(free), size=count)] + rng.uniform(-1.2, 1.2, (count, 2))
    q, qd = random_humanoids(env, rng, xy)
    actions = rng.uniform(-1, 1, (steps, count, env.action_size))
    return compare_walls(env, full_env, q, qd, actions, moved=(0,))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("layout", "backend", "count", "steps"),
    [("u_maze", "spring", 64, 10), ("u_maze", "mjx", 16, 3)],
)
def test_four_walls_per_link_of_the_humanoid_are_the_full_maze(layout, backend, count, steps):
    result = compare_humanoids(layout, backend, count, steps)
    errors = worst(result.moving, result.full)
    assert np.mean(errors[0] < 1e-3) >= 0.98 and np.median(errors[-1]) < 1e-3
    assert np.mean(errors[-1] < 1e-2) >= 0.95
    assert np.mean(worst(result.full, result.free)[-1] > 1e-2) > 0.2


@pytest.mark.parametrize("env_class", [HumanoidMaze, AntMaze])
def test_walls_belong_to_what_is_less_than_half_a_cell_away(env_class):
    """In random poses no geom is further from the origin of its part's body; the humanoid's feet are from its torso."""
    env, rng = env_class("u_maze"), np.random.default_rng(0)
    q, _ = {HumanoidMaze: random_humanoids, AntMaze: random_ants}[env_class](env, rng, np.zeros((300, 2)))
    model = env.sys.mj_model
    data, furthest, from_torso = mujoco.MjData(model), 0.0, 0.0
    for pose in q:
        data.qpos = pose
        mujoco.mj_kinematics(model, data)
        for part in env.parts:
            for geom in part.geoms:
                reach = model.geom(geom).rbound[0]
                for body in (part.body, "torso"):
                    away = np.linalg.norm((data.geom(geom).xpos - data.body(body).xpos)[:2]) + reach
                    furthest, from_torso = max(furthest, away * (body == part.body)), max(from_torso, away)
    assert furthest < env.cell_size / 2 - 0.1
    assert (from_torso < env.cell_size / 2) == (env_class is AntMaze)


def test_walls_stop_every_part_of_the_humanoid_and_nothing_else():
    model = HumanoidMaze("u_maze").sys.mj_model
    robot = {model.geom(i).name for i in range(model.ngeom) if model.geom_bodyid[i]}
    pairs = [
        {model.geom(i).name, model.geom(k).name}
        for i in range(model.ngeom)
        for k in range(i)
        if collides(model.geom(i), model.geom(k)) and model.geom_bodyid[i] + model.geom_bodyid[k]
    ]
    for geom in robot:
        walls = [pair for pair in pairs if geom in pair and any(name.startswith("wall_") for name in pair)]
        assert len(walls) == 4
    others = [pair for pair in pairs if not any(name.startswith("wall_") for name in pair)]
    assert sorted(map(sorted, others)) == [["floor", "left_foot"], ["floor", "right_foot"]]


def test_humanoid_starts_and_goals_are_the_marked_cells():
    env = make_env("humanoid_big_maze_eval")
    assert (env.cell_size, env.wall_height, len(env.goals)) == (2.0, 1.0, 10)
    q, qd, goal = jax.jit(jax.vmap(start_and_goal(env)))(jax.random.split(jax.random.key(0), 1000))
    np.testing.assert_allclose(q, np.tile([2, 2, 1.4, 1, *[0] * 20], (1000, 1)), atol=1e-6)
    np.testing.assert_array_equal(qd, 0)
    np.testing.assert_array_equal(np.unique(np.array(goal), axis=0)[:, 2], 1.25)
    cells = np.argwhere(read_layout("big_maze_eval") == "G")
    np.testing.assert_array_equal(np.unique(np.array(goal), axis=0)[:, :2], 2.0 * cells)


# Of the point mass.


def test_simple_mazes_have_the_published_sizes():
    for layout in ("u_maze", "u_maze_eval", "big_maze", "big_maze_eval", "hardest_maze"):
        env = make_env(f"simple_{layout}")
        assert (env.state_dim, env.goal_indices, env.action_size) == (4, (0, 1), 2)
        assert (env.backend, env.goal_dist, env.other_thresholds) == ("spring", 0.5, {"success_easy": 2.0})
        assert (env.dt, len(env.goals)) == (pytest.approx(0.05), GOAL_CELLS[layout])
        assert ENVS[f"simple_{layout}"].keywords == {"layout": layout}


def test_point_mass_model():
    model = make_env("simple_u_maze").sys.mj_model
    assert (model.nq, model.nu, model.body("torso").mass[0]) == (2, 2, pytest.approx(0.327, abs=1e-3))
    np.testing.assert_array_equal(model.body("torso").pos, [0, 0, 0.75])
    np.testing.assert_array_equal(model.dof_armature, 1)
    np.testing.assert_array_equal(model.dof_damping, 0)
    np.testing.assert_array_equal(model.actuator_gear[:, 0], 5)
    assert not model.actuator_ctrllimited.any()
    np.testing.assert_array_equal(model.jnt_range, [[-100, 100]] * 2)


def test_point_mass_moves_by_its_forces_and_stops_at_walls():
    """The spring engine counts with a mass of 1; from (4, 4) the wall beside is at x = 2."""
    env = make_env("simple_u_maze")
    q = np.array([[4.0, 4.0], [12.0, 4.0]])
    actions = np.tile([[[-1.0, 0.0], [0.0, 0.5]]], (60, 1, 1))
    states = roll(env, q, np.zeros((2, 2)), np.full((2, 2), 4.0), actions)
    np.testing.assert_array_equal(states.obs[..., :2], states.pipeline_state.q)
    np.testing.assert_array_equal(states.obs[..., 2:4], states.pipeline_state.qd)
    speed = 2.5 * 0.05 * np.arange(1, 21)
    np.testing.assert_allclose(states.obs[:20, 1, 3], speed, rtol=0.02)
    assert states.obs[:, 0, 0].min() > 2.2 and states.obs[-1, 0, 0] < 2.4
    assert not np.any(states.done)
    dist = np.linalg.norm(np.array(states.obs[..., :2]) - 4.0, axis=-1)
    np.testing.assert_array_equal(states.reward, dist < 0.5)
    dense = jax.vmap(env.dense_reward)(states, states, jnp.array(actions[0])[None].repeat(60, 0).reshape(60, 2, 2))
    control = 0.5 * np.sum(actions**2, axis=-1)
    np.testing.assert_allclose(dense, -dist + 1 - control, atol=1e-4)


def test_point_mass_starts_at_the_start():
    env = make_env("simple_big_maze")
    q, qd, goal = jax.jit(jax.vmap(start_and_goal(env)))(jax.random.split(jax.random.key(0), 2000))
    np.testing.assert_array_equal(q, np.full((2000, 2), 4.0))
    assert np.array(qd).std() == pytest.approx(0.1, rel=0.05)
    assert len(np.unique(np.array(goal), axis=0)) == 25


# Corridors.

CORRIDORS = {
    "u_maze": [(1, 1), (1, 2), (1, 3), (2, 3), (3, 3), (3, 2), (3, 1)],
    "u4_maze": [(2, 1), (1, 1), (1, 2), (1, 3), (2, 3), (3, 3), (4, 3), (5, 3), (5, 2), (5, 1), (4, 1)],
}
LENGTHS = {"u_maze": 6, "u2_maze": 8, "u3_maze": 10, "u4_maze": 10, "u5_maze": 16}


def test_a_corridor_is_all_free_cells_in_order():
    for layout, cells in CORRIDORS.items():
        assert [tuple(cell) for cell in corridor(layout)] == cells
    for layout, length in LENGTHS.items():
        path = corridor(layout)
        assert len(path) == length + 1
        np.testing.assert_array_equal(np.abs(np.diff(path, axis=0)).sum(axis=1), 1)


@pytest.mark.parametrize("layout", ["big_maze", "hardest_maze", "loop", "two_starts", "middle", "island"])
def test_what_is_no_corridor_is_refused(monkeypatch, layout):
    walled = {
        "loop": "1 1 1 1 1\n 1 R G G 1\n 1 G 1 G 1\n 1 G G G 1\n 1 1 1 1 1",
        "two_starts": "1 1 1 1 1\n 1 R G R 1\n 1 1 1 1 1",
        "middle": "1 1 1 1 1\n 1 G R G 1\n 1 1 1 1 1",
        "island": "1 1 1 1 1 1\n 1 R G 1 G 1\n 1 1 1 1 1 1",
    }
    for name, table in walled.items():
        monkeypatch.setitem(maze.LAYOUTS, name, table)
    with pytest.raises(ValueError, match=f"^maze layout '{layout}' is no corridor: its free cells must be one way"):
        corridor(layout)


@pytest.mark.parametrize(("distances", "expected"), [("1,3", {1, 3}), ("", set(range(1, 11))), ("10", {10})])
def test_pairs_along_a_corridor(distances, expected):
    """Each distance equally likely, then each pair of it; both ends at the centres of cells, the goal further on."""
    env = AntCorridor("u4_maze", distances)
    q, qd, goal = jax.jit(jax.vmap(start_and_goal(env)))(jax.random.split(jax.random.key(0), 4000))
    number = {tuple(4.0 * np.array(cell)): i for i, cell in enumerate(CORRIDORS["u4_maze"])}
    pairs = np.array(
        [(number[tuple(a)], number[tuple(b)]) for a, b in zip(np.array(q[:, :2]), np.array(goal), strict=True)]
    )
    ways = pairs[:, 1] - pairs[:, 0]
    assert set(ways) == expected
    for way in expected:
        begun = pairs[ways == way, 0]
        mean = 4000 / len(expected)
        assert abs(len(begun) - mean) < 5 * np.sqrt(mean) or len(expected) == 1
        _, counts = np.unique(begun, return_counts=True)
        assert len(counts) == 11 - way
        assert np.abs(counts - len(begun) / len(counts)).max() < 5 * np.sqrt(len(begun) / len(counts))
    np.testing.assert_allclose(np.linalg.norm(q[:, 3:7], axis=1), 1.0, atol=1e-6)
    assert np.ptp(q[:, 2]) > 0.15 and np.array(qd).std() == pytest.approx(0.1, rel=0.05)


def test_a_commanded_goal_leaves_the_start_of_the_corridor():
    env, key = AntCorridor("u_maze", "2"), jax.random.key(1)
    own, other = env.reset(key), env.reset(key, jnp.array([12.0, 4.0]))
    np.testing.assert_array_equal(own.state, other.state)
    np.testing.assert_array_equal(other.goal, [12.0, 4.0])


@pytest.mark.parametrize(
    ("name", "distances", "message"),
    [
        ("ant_u4_maze_gen", "1,11", "gen_distances '1,11': 11 is no way along the corridor of u4_maze: 1 to 10"),
        ("ant_u_maze_gen", "0", "gen_distances '0': 0 is no way along the corridor of u_maze: 1 to 6"),
        ("ant_u_maze_gen", "1,,2", "gen_distances '1,,2' are to be different numbers"),
        ("ant_u_maze_gen", "1.5", "gen_distances '1.5' are to be different numbers"),
        ("ant_u_maze_gen", "2,2", "gen_distances '2,2' are to be different numbers"),
        ("ant_u_maze_gen", "-1", "gen_distances '-1' are to be different numbers"),
        ("ant_u_maze", "1", "gen_distances '1' are for ant_u_maze_gen, .*ant_u5_maze_gen; ant_u_maze has none"),
        ("reacher", "1", "gen_distances '1' are for ant_u_maze_gen, .*; reacher has none"),
    ],
)
def test_distances_that_there_are_not_are_refused(name, distances, message):
    with pytest.raises(ValueError, match=f"^{message}") as error:
        make_env(name, gen_distances=distances)
    assert "\n" not in str(error.value)
