"""Humanoid mazes: the humanoid finds its way from the start cell to a goal cell."""

from envs.humanoid import Humanoid
from envs.maze import InMaze, Part

LEGS = tuple(
    part
    for side in ("right", "left")
    for part in (
        Part(f"{side}_thigh", (f"{side}_thigh1",)),
        Part(f"{side}_shin", (f"{side}_shin1", f"{side}_foot")),
    )
)
ARMS = tuple(
    part
    for side in ("right", "left")
    for part in (
        Part(f"{side}_upper_arm", (f"{side}_uarm1",)),
        Part(f"{side}_lower_arm", (f"{side}_larm", f"{side}_hand")),
    )
)


class HumanoidMaze(InMaze, Humanoid):
    """The humanoid in a maze of `layout` (`envs.maze.LAYOUTS`), with cells of 2 m and walls 1 m high.

    | state | content |
    |---|---|
    | 0-245 | the humanoid, as in `envs.humanoid.Humanoid` |

    Action, thresholds and early end as in `Humanoid`. Goal: torso x, y at the centre of a cell G, uniform, z = 1.25.
    Start: the humanoid's, above the centre of a cell R. Walls stop every part of the body.
    Source: JaxGCRL (https://arxiv.org/abs/2408.11052), brax's humanoid. As published, its reward is always dense.
    """

    cell_size = 2.0
    # A foot can be 1.31 m away from the torso, more than half a cell; no geom is 0.44 m away from its own link.
    parts = (
        Part("torso", ("torso1", "head", "uwaist")),
        Part("lwaist", ("lwaist",)),
        Part("pelvis", ("butt",)),
        *LEGS,
        *ARMS,
    )
    first_bit = 1  # the parts of the humanoid do not touch each other
    walls_per_part = 4  # arms, and a body that falls, reach over walls
