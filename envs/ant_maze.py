"""Ant mazes: the ant finds its way from the start cell to a goal cell, or takes a ball there."""

import jax
import jax.numpy as jnp

from envs.ant import FEET, INNER_LEGS, TORSO, Ant
from envs.ant_ball import AntBall
from envs.maze import Companion, InMaze


class AntMaze(InMaze, Ant):
    """The ant in a maze of `layout` (`envs.maze.LAYOUTS`), with cells of 4 m and walls 2 m high.

    | state | content | unit |
    |---|---|---|
    | 0-28 | the ant, as in `envs.ant.Ant` | m, rad, m/s, rad/s |

    Action, threshold and early end as in `Ant`. Goal: torso x, y at the centre of a cell G, uniform. Start: the ant's,
    with its torso above the centre of a cell R. Walls stop torso, inner legs and feet; outer legs pass through them.
    Source: JaxGCRL (https://arxiv.org/abs/2408.11052), brax's ant.
    """

    touching = (*TORSO, *INNER_LEGS, *FEET)


class AntBallMaze(InMaze, AntBall):
    """The ant and its ball in a maze of `layout`; the ball has to come within 0.5 m of the goal.

    | state | content | unit |
    |---|---|---|
    | 0-30 | the ant and the ball, as in `envs.ant_ball.AntBall` | m, rad, m/s, rad/s |

    Action, threshold and early end as in `AntBall`. Goal: ball x, y at the centre of a cell G, uniform. Start: the ant
    at the centre of a cell R, the ball at that of a cell B. Walls stop torso, feet and ball.
    Source: JaxGCRL (https://arxiv.org/abs/2408.11052), brax's ant. As published, its goal indices are one too low.
    """

    touching = (*TORSO, *FEET)
    companions = (Companion(body="object", geoms=("object",)),)

    def sample_goal(self, key):
        start_key, _ = jax.random.split(key)
        return super().sample_goal(start_key)

    def sample_start(self, key, goal):
        start_key, ball_key = jax.random.split(key)
        q, qd = super().sample_start(start_key, goal)
        return q.at[15:].set(jax.random.choice(ball_key, jnp.array(self.balls))), qd
