"""Ant ball: the ant pushes a ball to a point."""

from xml.etree import ElementTree

import jax
import jax.numpy as jnp

from envs.ant import FEET, TORSO, Ant
from envs.physics import collide, extend_numeric, on_circle


class AntBall(Ant):
    """The ant and a ball of radius 0.5 m; the ball has to come within 0.5 m of the goal.

    | state | content | unit |
    |---|---|---|
    | 0-28 | the ant, as in `envs.ant.Ant` | m, rad, m/s, rad/s |
    | 29-30 | ball x, y | m |

    Action and early end as in `Ant`. Goal: ball x, y on the circle of radius 5 about the origin. Start: the ant's; the
    ball 1 m from the point a fifth of the way to the goal, and at least 0.8 m from the torso. The ball slides on the
    floor without turning; torso and feet push it.
    Source: JaxGCRL (https://arxiv.org/abs/2408.11052), brax's ant.
    """

    state_dim = 31
    goal_indices = (29, 30)
    goal_radius = 5.0
    objects = ("object",)
    clearance = 0.8

    def build_xml(self):
        root = super().build_xml()
        collide(root, (*TORSO, *FEET))
        extend_numeric(root, "init_qpos", "0 0")
        ball = ElementTree.SubElement(root.find("worldbody"), "body", name="object", pos="0 0 0.5")
        for axis, direction in (("x", "1 0 0"), ("y", "0 1 0")):
            # As far as the ball can be pushed in an episode: a limit of 10.3 m, as once published, is a wall unseen.
            joint = {"name": f"object_{axis}", "axis": direction, "range": "-100 100", "damping": "0"}
            ElementTree.SubElement(ball, "joint", joint, type="slide")
        # Two spheres in one place: the first has most of the mass, the second is what collides.
        ElementTree.SubElement(ball, "geom", type="sphere", size="0.5", density="1")
        shell = {"type": "sphere", "size": "0.5", "density": "0.1", "contype": "1", "name": "object"}
        ElementTree.SubElement(ball, "geom", shell)
        return root

    def place_ball(self, key: jax.Array, torso: jax.Array, goal: jax.Array) -> jax.Array:
        """(2,) a point 1 m from a fifth of the goal, uniform over the angles that leave the torso its clearance."""
        # |centre + (cos p, sin p)| >= clearance is an arc of p around the angle of the centre, seen from the torso.
        centre = 0.2 * goal - torso
        distance = jnp.linalg.norm(centre)
        half_arc = jnp.arccos(jnp.clip((self.clearance**2 - distance**2 - 1) / (2 * distance), -1.0, 1.0))
        angle = jnp.arctan2(centre[1], centre[0]) + half_arc * jax.random.uniform(key, minval=-1.0)
        # Sine and cosine of one angle, on the allowed arc only; as published the ball could start inside the ant.
        return 0.2 * goal + on_circle(1.0, angle)

    def sample_goal(self, key):
        start_key, _ = jax.random.split(key)
        return super().sample_goal(start_key)

    def sample_start(self, key, goal):
        start_key, ball_key = jax.random.split(key)
        q, qd = super().sample_start(start_key, goal)
        q = q.at[15:].set(self.place_ball(ball_key, q[:2], goal))
        return q, qd.at[14:].set(0.0)
