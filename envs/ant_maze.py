"""Ant mazes: the ant finds its way from the start cell to a goal cell."""

from envs.ant import FEET, INNER_LEGS, TORSO, Ant
from envs.maze import InMaze


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
