"""Half cheetah: a planar two-legged body runs to a line in front of it."""

from xml.etree import ElementTree

import jax
import jax.numpy as jnp
import mujoco

from envs.physics import Physics, PhysicsEnv, brax_asset


class HalfCheetah(PhysicsEnv):
    """brax's half cheetah; the torso has to come within 0.5 m of x = 5.

    | state | content | unit |
    |---|---|---|
    | 0 | root x | m |
    | 1 | root z, relative to 0.7 | m |
    | 2 | root pitch | rad |
    | 3-8 | back thigh, back shin, back foot, front thigh, front shin, front foot | rad |
    | 9-17 | velocities, order of 0-8 | m/s, rad/s |

    Action: torques, order of 3-8. Goal: root x = 5, always. Never ends early.
    Source: JaxGCRL (https://arxiv.org/abs/2408.11052), brax's half cheetah.
    """

    state_dim = 18
    action_size = 6
    goal_indices = (0,)
    goal_dist = 0.5
    other_thresholds = {"success_easy": 2.0}
    default_backend = "mjx"
    gear = (120.0, 90.0, 60.0, 120.0, 100.0, 100.0)
    # Every backend is honoured (upstream: mjx whatever the user asks for).
    physics = {
        "mjx": Physics(0.01, 5),
        "generalized": Physics(0.01, 5),
        "spring": Physics(0.003125, 16, gear=gear),
        "positional": Physics(0.003125, 16, gear=gear),
    }
    goal_x = 5.0

    def __init__(self, backend: str | None = None, use_dense_reward: bool = False):
        super().__init__(backend, use_dense_reward)
        self._torso = self.link("torso")

    def build_xml(self):
        root = brax_asset("half_cheetah")
        # The robot weighs 14 kg (upstream's 14 kg include its 0.6 kg target body). MuJoCo gives up the attribute that
        # says so, and complains of it in a log file; scaling the density is the same thing.
        total_mass = float(root.find("compiler").attrib.pop("settotalmass"))
        unscaled = mujoco.MjModel.from_xml_string(ElementTree.tostring(root, encoding="unicode"))
        root.find("default/geom").set("density", repr(1000 * total_mass / float(unscaled.body_mass.sum())))
        return root

    def sample_goal(self, key):
        return jnp.array([self.goal_x])

    def sample_start(self, key, goal):
        q_key, qd_key = jax.random.split(key)
        q = self.sys.init_q + jax.random.uniform(q_key, (9,), minval=-0.1, maxval=0.1)
        return q, 0.1 * jax.random.normal(qd_key, (9,))

    def observe(self, pipeline_state, action):
        return jnp.concatenate([pipeline_state.q, pipeline_state.qd])

    def step_metrics(self, before, after, action):
        x = after.pipeline_state.x.pos[self._torso, 0]
        x_velocity = (x - before.pipeline_state.x.pos[self._torso, 0]) / self.dt
        return {
            "x_position": x,
            "x_velocity": x_velocity,
            "reward_run": x_velocity,
            "reward_ctrl": -0.1 * jnp.sum(jnp.square(action)),
        }

    def dense_reward(self, before, after, action):
        """Closeness minus the control cost (upstream adds it)."""
        return after.metrics["reward_ctrl"] - after.metrics["dist"]
