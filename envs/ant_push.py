"""Ant push: the ant shoves a box aside that blocks its way."""

from xml.etree import ElementTree

import jax
import jax.numpy as jnp

from envs.ant import TORSO, Ant
from envs.physics import Physics, extend_numeric, find

# x, y and half-sizes of what stands still, in metres. On a grid of 8 m they leave free the start (0, 0), the cells
# (8, 0) and (0, 8), the box's place (8, 8), and behind it the two goal pockets (16, 8) and (8, 16).
BLOCKS = (
    (-4, 20, 8, 8),
    (8, 24, 4, 4),
    (20, 20, 8, 8),
    (-8, 4, 4, 8),
    (24, 8, 4, 4),
    (20, -4, 8, 8),
    (0, -8, 12, 4),
)


class AntPush(Ant):
    """A heavier ant between walls; to reach a goal pocket it has to push a box out of the way.

    | state | content | unit |
    |---|---|---|
    | 0-28 | the ant, as in `envs.ant.Ant` | m, rad, m/s, rad/s |
    | 29-30 | box x, y | m |

    Action, threshold and early end as in `Ant`. Goal: torso x, y in the pocket (16, 8) or (8, 16), each with
    probability 1/2, plus U(0, 2) on both. Start: the ant's, 0.2 m higher; the box of 7.2 m around (8, 8), +-0.1 m.
    Source: JaxGCRL (https://arxiv.org/abs/2408.11052), brax's ant.
    """

    state_dim = 31
    objects = ("box",)
    # Only MJX keeps these contacts stable, so it is the default and the only choice.
    default_backend = "mjx"
    physics = {
        "mjx": Physics(
            0.01, 5, option={"solver": "Newton", "iterations": "4", "ls_iterations": "8"}, disable=("eulerdamp",)
        )
    }

    def build_xml(self):
        root = super().build_xml()
        root.find("default/geom").attrib.update(density="40", solimp="0.995 0.995 0.01")
        find(root, "geom", *TORSO).set("contype", "1")
        initial = find(root, "numeric", "init_qpos").get("data").split()
        initial[2] = "0.75"
        find(root, "numeric", "init_qpos").set("data", " ".join(initial))
        extend_numeric(root, "init_qpos", "0 0 0")
        world = root.find("worldbody")
        for x, y, half_x, half_y in BLOCKS:
            ElementTree.SubElement(
                world, "geom", type="box", conaffinity="1", pos=f"{x} {y} 2", size=f"{half_x} {half_y} 2"
            )
        box = ElementTree.SubElement(world, "body", name="box", pos="8 8 2")
        for axis, direction in (("x", "1 0 0"), ("y", "0 1 0"), ("z", "0 0 1")):
            joint = {"name": f"box_{axis}", "axis": direction, "limited": "false", "armature": "0", "damping": "0"}
            ElementTree.SubElement(box, "joint", joint, type="slide", margin="0.01")
        shape = {"type": "box", "size": "3.6 3.6 1.8", "mass": "0.0002", "contype": "1", "conaffinity": "1"}
        ElementTree.SubElement(box, "geom", shape)
        return root

    def sample_goal(self, key):
        _, pocket_key, offset_key = jax.random.split(key, 3)
        pocket = jax.random.choice(pocket_key, jnp.array([[16.0, 8.0], [8.0, 16.0]]))
        return pocket + jax.random.uniform(offset_key, (2,), maxval=2.0)

    def sample_start(self, key, goal):
        body_key, _, _ = jax.random.split(key, 3)
        q, qd = self.sample_body(body_key)
        # The box stands still on every axis; as published it drifted along x.
        return q, qd.at[14:].set(0.0)
