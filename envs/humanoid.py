"""Humanoid: a two-legged body walks to a point around its start."""

import jax
import jax.numpy as jnp
from brax import actuator, math

from envs.physics import Physics, PhysicsEnv, brax_asset, on_circle, uniform_angle


class Humanoid(PhysicsEnv):
    """brax's humanoid; the torso has to come within 0.5 m (in space) of a goal 1 to 5 m away.

    | state | content | unit |
    |---|---|---|
    | 0-2 | torso x, y, z | m |
    | 3-6 | torso quaternion w, x, y, z | - |
    | 7-9 | abdomen z, y, x | rad |
    | 10-13, 14-17 | right, left: hip x, z, y and knee | rad |
    | 18-20, 21-23 | right, left: shoulder 1, 2 and elbow | rad |
    | 24-26, 27-29 | torso velocity (world frame), angular velocity (body frame) | m/s, rad/s |
    | 30-46 | joint velocities, order of 7-23 | rad/s |
    | 47-156 | 11 links x 10: inertia tensor by rows, about the body's centre of mass, world axes; mass | kg m^2, kg |
    | 157-222 | 11 links x 6: velocity of its centre of mass x its share of the mass; angular velocity | m/s, rad/s |
    | 223-228, 229-245 | zeros of the root, torques of the joints in the order of 7-23 | N m |

    Links: torso, lower waist, pelvis, right thigh and shin, left thigh and shin, right upper and lower arm, left upper
    and lower arm. No entry speaks of the goal (upstream's 268 hold the target's position, which hindsight relabelling
    does not touch).
    Action: torques, order of 7-23 but abdomen y before z. Goal: torso x, y, z, radius U(1, 5) and angle uniform about
    the origin, z = 1.25. Ends early when the torso's height leaves [1, 2] m.
    Source: JaxGCRL (https://arxiv.org/abs/2408.11052), brax's humanoid.
    """

    state_dim = 246
    action_size = 17
    goal_indices = (0, 1, 2)
    goal_dist = 0.5
    dwell = 32
    other_thresholds = {"success_easy": 2.0}
    default_backend = "spring"
    gear = (350.0,) * 11 + (100.0,) * 6
    physics = {
        "spring": Physics(0.0015, 10, gear=gear),
        "positional": Physics(0.0015, 10, gear=gear),
        "generalized": Physics(0.003, 5),
        "mjx": Physics(
            0.003, 5, option={"solver": "Newton", "iterations": "1", "ls_iterations": "4"}, disable=("eulerdamp",)
        ),
    }
    goal_radius = (1.0, 5.0)
    goal_height = 1.25

    def __init__(self, backend: str | None = None, use_dense_reward: bool = False):
        super().__init__(backend, use_dense_reward)
        self._torso = self.link("torso")
        inertia = self.sys.link.inertia
        self.link_mass, self.link_inertia = inertia.mass, inertia.i
        if self.backend in ("spring", "positional"):
            # What these engines simulate in place of the true numbers; here the true masses and unit inertias.
            self.link_mass = inertia.mass ** (1 - self.sys.spring_mass_scale)
            diagonal = jnp.diagonal(inertia.i, axis1=1, axis2=2) ** (1 - self.sys.spring_inertia_scale)
            self.link_inertia = jax.vmap(jnp.diag)(diagonal)

    def build_xml(self):
        # As in brax only the feet touch the floor. Upstream lets every part touch it, which changes nothing: while the
        # torso is above 1 m, where the episode ends, no other part can reach the floor.
        return brax_asset("humanoid")

    def sample_goal(self, key):
        radius_key, angle_key = jax.random.split(key)
        low, high = self.goal_radius
        target = on_circle(jax.random.uniform(radius_key, minval=low, maxval=high), uniform_angle(angle_key))
        return jnp.append(target, self.goal_height)

    def sample_start(self, key, goal):
        return self.sys.init_q, jnp.zeros(self.sys.qd_size())

    def control(self, action):
        """[-1, 1] stretched to the motors' range, -0.4 to 0.4."""
        low, high = self.sys.actuator.ctrl_range.T
        return low + (action + 1) / 2 * (high - low)

    def centre_of_mass(self, pipeline_state) -> jax.Array:
        """(3,) the centre of mass of the body."""
        centres = pipeline_state.x.vmap().do(self.sys.link.inertia.transform).pos
        return self.link_mass @ centres / jnp.sum(self.link_mass)

    def observe(self, pipeline_state, action):
        torques = actuator.to_tau(self.sys, self.control(action), pipeline_state.q, pipeline_state.qd)
        return jnp.concatenate(
            [
                pipeline_state.q,
                pipeline_state.qd,
                self.inertia_block(pipeline_state),
                self.velocity_block(pipeline_state),
                torques,
            ]
        )

    def inertia_block(self, pipeline_state) -> jax.Array:
        """(110,) every link's inertia tensor about the body's centre of mass, and mass."""
        centres = pipeline_state.x.vmap().do(self.sys.link.inertia.transform)
        rotation = jax.vmap(math.quat_to_3x3)(centres.rot)
        offset = centres.pos - self.centre_of_mass(pipeline_state)
        squared = jnp.sum(jnp.square(offset), axis=-1)[:, None, None] * jnp.eye(3)
        parallel_axis = squared - offset[:, :, None] * offset[:, None, :]
        tensor = rotation @ self.link_inertia @ rotation.mT + self.link_mass[:, None, None] * parallel_axis
        return jnp.concatenate([tensor.reshape(-1, 9), self.link_mass[:, None]], axis=-1).ravel()

    def velocity_block(self, pipeline_state) -> jax.Array:
        """(66,) every link's mass-weighted velocity and angular velocity."""
        centres = pipeline_state.x.vmap().do(self.sys.link.inertia.transform).pos
        motion = pipeline_state.xd
        velocity = motion.vel + jnp.cross(motion.ang, centres - pipeline_state.x.pos)
        share = self.link_mass / jnp.sum(self.link_mass)
        return jnp.concatenate([share[:, None] * velocity, motion.ang], axis=-1).ravel()

    def step_metrics(self, before, after, action):
        # Of the body alone (upstream: with a target body of 1 kg).
        centre = self.centre_of_mass(after.pipeline_state)
        velocity = (centre - self.centre_of_mass(before.pipeline_state)) / self.dt
        return {
            "forward_reward": 1.25 * velocity[0],
            "reward_linvel": 1.25 * velocity[0],
            "reward_quadctrl": -0.1 * jnp.sum(jnp.square(self.control(action))),
            "reward_alive": 5.0 * jnp.ones(()),
            "x_position": centre[0],
            "y_position": centre[1],
            "distance_from_origin": jnp.linalg.norm(centre),
            "x_velocity": velocity[0],
            "y_velocity": velocity[1],
        }

    def dense_reward(self, before, after, action):
        """Closeness plus five for staying up, minus the control cost."""
        return after.metrics["reward_alive"] + after.metrics["reward_quadctrl"] - after.metrics["dist"]

    def terminated(self, pipeline_state):
        height = pipeline_state.x.pos[self._torso, 2]
        return (height < 1.0) | (height > 2.0)
