"""Simple mazes: a point mass finds its way from the start cell to a goal cell; for what would take an ant hours."""

from xml.etree import ElementTree

import jax
import jax.numpy as jnp

from envs.ant import TORSO, Ant
from envs.base import GoalEnv
from envs.maze import InMaze, Part
from envs.physics import find, remove_body


class PointMass(Ant):
    """A ball of 0.25 m that floats 0.75 m above the ground, in the world of brax's ant, moved by forces.

    | state | content | unit |
    |---|---|---|
    | 0-1 | x, y | m |
    | 2-3 | velocity | m/s |

    Action: a fifth of the forces along x and y, in newtons. Goal: x, y as the ant's. Never ends early.
    """

    state_dim = 4
    action_size = 2
    terminated = GoalEnv.terminated

    def build_xml(self):
        root = super().build_xml()
        remove_body(root, "torso")
        root.find("custom").remove(find(root, "numeric", "init_qpos"))
        motors = root.find("actuator")
        motors.clear()
        body = ElementTree.SubElement(root.find("worldbody"), "body", name="torso", pos="0 0 0.75")
        ElementTree.SubElement(body, "geom", type="sphere", size="0.25", name=TORSO[0])
        for axis, direction in (("x", "1 0 0"), ("y", "0 1 0")):
            joint = {"name": axis, "axis": direction, "range": "-100 100", "armature": "1", "damping": "0"}
            ElementTree.SubElement(body, "joint", joint, type="slide")
            ElementTree.SubElement(motors, "motor", joint=axis, gear="5")
        return root

    def sample_body(self, key):
        q_key, qd_key = jax.random.split(key)
        return jax.random.uniform(q_key, (2,), minval=-0.1, maxval=0.1), 0.1 * jax.random.normal(qd_key, (2,))

    def observe(self, pipeline_state, action):
        return jnp.concatenate([pipeline_state.q, pipeline_state.qd])

    def dense_reward(self, before, after, action):
        """Closeness, plus one, minus the control cost."""
        return after.metrics["reward_survive"] + after.metrics["reward_ctrl"] - after.metrics["dist"]


class SimpleMaze(InMaze, PointMass):
    """The point mass in a maze of `layout` (`envs.maze.LAYOUTS`), with cells of 4 m and walls 2 m high.

    State and action as in `PointMass`, thresholds as in `Ant`. Goal: x, y at the centre of a cell G, uniform. Start: at
    rest but for noise of 0.1 m/s at the centre of a cell R. Never ends early.
    Source: JaxGCRL (https://arxiv.org/abs/2408.11052). As published, its reward is always dense.
    """

    parts = (Part("torso", TORSO),)
