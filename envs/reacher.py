"""Reacher: a planar two-link arm puts its fingertip on a point."""

import jax
import jax.numpy as jnp
from brax.base import Transform

from envs.physics import Physics, PhysicsEnv, brax_asset, on_circle, remove_body, set_numeric, uniform_angle


class Reacher(PhysicsEnv):
    """The arm of brax's reacher (its target body removed); the fingertip has to be within 5 cm of the goal.

    | state | content | unit |
    |---|---|---|
    | 0-1, 2-3 | cosine, sine of the two joint angles | - |
    | 4-6 | fingertip position | m |
    | 7-9 | fingertip velocity (offset not rotated to the world frame, as in brax) | m/s |

    Goal: x, y, z of the fingertip, radius U(0, 0.2) and angle uniform, z = 0.01. Never ends early.
    Source: JaxGCRL (https://arxiv.org/abs/2408.11052), brax's reacher.
    """

    state_dim = 10
    action_size = 2
    goal_indices = (4, 5, 6)
    goal_dist = 0.05
    default_backend = "generalized"
    physics = {
        "generalized": Physics(0.01, 2),
        "mjx": Physics(0.01, 2),
        "spring": Physics(0.005, 4, gear=25.0),
        "positional": Physics(0.005, 4, gear=25.0),
    }

    def __init__(self, backend: str | None = None, use_dense_reward: bool = False):
        super().__init__(backend, use_dense_reward)
        self._forearm = self.link("body1")

    def build_xml(self):
        root = brax_asset("reacher")
        remove_body(root, "target")
        # One value per body, or per joint; the last belonged to the target.
        set_numeric(root, "init_qpos", "0 0")
        set_numeric(root, "constraint_stiffness", "1000 1000")
        set_numeric(root, "constraint_vel_damping", "3 3")
        return root

    def sample_goal(self, key):
        _, _, radius_key, angle_key = jax.random.split(key, 4)
        target = on_circle(jax.random.uniform(radius_key, maxval=0.2), uniform_angle(angle_key))
        return jnp.append(target, 0.01)

    def sample_start(self, key, goal):
        q_key, qd_key, _, _ = jax.random.split(key, 4)
        q = self.sys.init_q + jax.random.uniform(q_key, (2,), minval=-0.1, maxval=0.1)
        qd = jax.random.uniform(qd_key, (2,), minval=-0.005, maxval=0.005)
        return q, qd

    def observe(self, pipeline_state, action):
        tip = Transform.create(pos=jnp.array([0.11, 0.0, 0.0]))
        position = pipeline_state.x.take(self._forearm).do(tip).pos
        velocity = tip.do(pipeline_state.xd.take(self._forearm)).vel
        angles = pipeline_state.q[:2]
        return jnp.concatenate([jnp.cos(angles), jnp.sin(angles), position, velocity])

    def step_metrics(self, before, after, action):
        dist = self.goal_distance(after.state, after.goal)
        return {"reward_dist": -dist, "reward_ctrl": -jnp.sum(jnp.square(action))}

    def dense_reward(self, before, after, action):
        """Closeness."""
        return -after.metrics["dist"]
