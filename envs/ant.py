"""Ant: a four-legged body walks to a point on a circle around its start."""

from typing import ClassVar

import jax
import jax.numpy as jnp

from envs.physics import Physics, PhysicsEnv, brax_asset, on_circle, uniform_angle

# Geoms by what they are, for environments that let more of them collide.
TORSO = ("torso_geom",)
INNER_LEGS = tuple(f"aux_{leg}_geom" for leg in (1, 2, 3, 4))  # the capsules that belong to the torso
FEET = tuple(f"{leg}_foot_geom" for leg in ("left", "right", "third", "fourth"))


class Ant(PhysicsEnv):
    """brax's ant; the torso has to come within 0.5 m of a goal 10 m away.

    | state | content | unit |
    |---|---|---|
    | 0-2 | torso x, y, z | m |
    | 3-6 | torso quaternion w, x, y, z | - |
    | 7-14 | hip and ankle angles of legs 1 to 4 | rad |
    | 15-17 | torso velocity, world frame | m/s |
    | 18-20 | torso angular velocity, body frame | rad/s |
    | 21-28 | joint velocities, order of 7-14 | rad/s |

    Action: torques of hip_4, ankle_4, hip_1, ankle_1, hip_2, ankle_2, hip_3, ankle_3. Goal: torso x, y on the circle of
    radius 10 about the origin. Ends early when the torso's height leaves [0.2, 1.0] m.
    Source: JaxGCRL (https://arxiv.org/abs/2408.11052), brax's ant.
    """

    state_dim = 29
    action_size = 8
    goal_indices = (0, 1)
    goal_dist = 0.5
    other_thresholds = {"success_easy": 2.0}
    default_backend = "spring"
    physics = {
        "spring": Physics(0.005, 10),
        "positional": Physics(0.005, 10, gear=200.0),
        "generalized": Physics(0.01, 5),
        "mjx": Physics(
            0.01, 5, option={"solver": "Newton", "iterations": "1", "ls_iterations": "4"}, disable=("eulerdamp",)
        ),
    }
    goal_radius = 10.0
    objects: ClassVar[tuple[str, ...]] = ()  # bodies that a subclass adds to the ant, a ball or a box: observed as x, y

    def __init__(self, backend: str | None = None, use_dense_reward: bool = False):
        super().__init__(backend, use_dense_reward)
        self._torso = self.link("torso")
        self._objects = [self.link(body) for body in self.objects]

    def build_xml(self):
        return brax_asset("ant")

    def sample_body(self, key: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Noisy joint positions and velocities of the whole model around its initial pose."""
        q_key, qd_key = jax.random.split(key)
        q = self.sys.init_q + jax.random.uniform(q_key, (self.sys.q_size(),), minval=-0.1, maxval=0.1)
        # The noise leaves the torso's quaternion off the unit sphere; the engines expect it on.
        q = q.at[3:7].divide(jnp.linalg.norm(q[3:7]))
        return q, 0.1 * jax.random.normal(qd_key, (self.sys.qd_size(),))

    def sample_goal(self, key):
        _, goal_key = jax.random.split(key)
        return on_circle(self.goal_radius, uniform_angle(goal_key))

    def sample_start(self, key, goal):
        body_key, _ = jax.random.split(key)
        return self.sample_body(body_key)

    def observe(self, pipeline_state, action):
        objects = [pipeline_state.x.pos[link, :2] for link in self._objects]
        return jnp.concatenate([pipeline_state.q[:15], pipeline_state.qd[:14], *objects])

    def step_metrics(self, before, after, action):
        torso = after.pipeline_state.x.pos[self._torso]
        velocity = (torso - before.pipeline_state.x.pos[self._torso]) / self.dt
        return {
            "reward_forward": velocity[0],
            "reward_survive": jnp.ones(()),
            "reward_ctrl": -0.5 * jnp.sum(jnp.square(action)),
            "reward_contact": jnp.zeros(()),
            "x_position": torso[0],
            "y_position": torso[1],
            "distance_from_origin": jnp.linalg.norm(torso),
            "x_velocity": velocity[0],
            "y_velocity": velocity[1],
            "forward_reward": velocity[0],
        }

    def dense_reward(self, before, after, action):
        """Ten times the speed of approach, plus one for staying up, minus the control cost."""
        approach = (self.goal_distance(before.state, before.goal) - after.metrics["dist"]) / self.dt
        return 10 * approach + after.metrics["reward_survive"] + after.metrics["reward_ctrl"]

    def terminated(self, pipeline_state):
        height = pipeline_state.x.pos[self._torso, 2]
        return (height < 0.2) | (height > 1.0)


class AntRandomStart(Ant):
    """The ant, which starts anywhere on the circle of radius 10 about its goal.

    State, action, threshold and early end as in `Ant`. Goal: torso x, y on the circle of radius 10 about the origin.
    Start: the ant's, its x and y exactly on the circle about the goal, the angle uniform.
    Source: JaxGCRL (https://arxiv.org/abs/2408.11052), brax's ant.
    """

    def sample_goal(self, key):
        ant_key, _ = jax.random.split(key)
        return super().sample_goal(ant_key)

    def sample_start(self, key, goal):
        ant_key, angle_key = jax.random.split(key)
        q, qd = super().sample_start(ant_key, goal)
        return q.at[:2].set(goal + on_circle(self.goal_radius, uniform_angle(angle_key))), qd
