"""Ant mazes: the ant finds its way from a start cell to a goal cell, or takes a ball there."""

import jax
import jax.numpy as jnp
import numpy as np

from envs.ant import FEET, INNER_LEGS, TORSO, Ant
from envs.ant_ball import AntBall
from envs.maze import InMaze, Part, corridor


class AntMaze(InMaze, Ant):
    """The ant in a maze of `layout` (`envs.maze.LAYOUTS`), with cells of 4 m and walls 2 m high.

    | state | content | unit |
    |---|---|---|
    | 0-28 | the ant, as in `envs.ant.Ant` | m, rad, m/s, rad/s |

    Action, threshold and early end as in `Ant`. Goal: torso x, y at the centre of a cell G, uniform. Start: the ant's,
    with its torso above the centre of a cell R. Walls stop torso, inner legs and feet; outer legs pass through them.
    Source: JaxGCRL (https://arxiv.org/abs/2408.11052), brax's ant.
    """

    parts = (Part("torso", (*TORSO, *INNER_LEGS, *FEET)),)


class AntCorridor(AntMaze):
    """The ant in a maze of one corridor, from one of its cells to another further on; for ways longer than trained on.

    State, action, threshold and early end as in `AntMaze`. Start and goal: the centres of the cells i and i + d of the
    corridor that begins at R; d is uniform among `distances`, then i among all cells that have one d further on.

    Args:
      gen_distances: the ways, in cells, such as "1,3"; empty: 1 to the corridor's length.

    Raises:
      ValueError: a layout that is no corridor, or distances that it does not have.
    """

    goal_needs_start = True

    def __init__(self, layout: str, gen_distances: str = "", **options):
        path = corridor(layout)
        longest = len(path) - 1
        self.distances = np.array(read_distances(gen_distances, longest, layout) or range(1, longest + 1))
        self.places = self.cell_size * path
        super().__init__(layout, **options)

    def sample_ends(self, key: jax.Array) -> tuple[jax.Array, jax.Array]:
        """(2,), (2,) x, y of start and goal."""
        distance_key, start_key = jax.random.split(key)
        distance = jax.random.choice(distance_key, self.distances)
        start = jax.random.randint(start_key, (), 0, len(self.places) - distance)
        places = jnp.array(self.places)
        return places[start], places[start + distance]

    def sample_goal(self, key):
        maze_key, ends_key = jax.random.split(key)
        return super().sample_goal(maze_key).at[:2].set(self.sample_ends(ends_key)[1])

    def sample_start(self, key, goal):
        maze_key, ends_key = jax.random.split(key)
        q, qd = super().sample_start(maze_key, goal)
        return q.at[:2].set(self.sample_ends(ends_key)[0]), qd


def read_distances(text: str, longest: int, layout: str) -> list[int]:
    """The distances of "1,3"; none for an empty text.

    Raises:
      ValueError: no whole numbers, one that stands twice, or one that is not 1 to `longest`.
    """
    words = [word.strip() for word in text.split(",")] if text else []
    if not all(word.isdecimal() for word in words) or len({*map(int, words)}) < len(words):
        raise ValueError(f"gen_distances {text!r} are to be different numbers of cells with commas between, e.g. 1,3")
    for distance in map(int, words):
        if not 1 <= distance <= longest:
            raise ValueError(
                f"gen_distances {text!r}: {distance} is no way along the corridor of {layout}: 1 to {longest}"
            )
    return [*map(int, words)]


class AntBallMaze(InMaze, AntBall):
    """The ant and its ball in a maze of `layout`; the ball has to come within 0.5 m of the goal.

    | state | content | unit |
    |---|---|---|
    | 0-30 | the ant and the ball, as in `envs.ant_ball.AntBall` | m, rad, m/s, rad/s |

    Action, threshold and early end as in `AntBall`. Goal: ball x, y at the centre of a cell G, uniform. Start: the ant
    at the centre of a cell R, the ball at that of a cell B. Walls stop torso, feet and ball.
    Source: JaxGCRL (https://arxiv.org/abs/2408.11052), brax's ant. As published, its goal indices are one too low.
    """

    parts = (Part("torso", (*TORSO, *FEET)), Part("object", ("object",)))
    marks = "RGB"

    def sample_goal(self, key):
        start_key, _ = jax.random.split(key)
        return super().sample_goal(start_key)

    def sample_start(self, key, goal):
        start_key, ball_key = jax.random.split(key)
        q, qd = super().sample_start(start_key, goal)
        return q.at[15:].set(jax.random.choice(ball_key, jnp.array(self.balls))), qd
