"""Pusher: a seven-joint arm pushes a puck to a point of the table."""

import jax
import jax.numpy as jnp

from envs.physics import Physics, PhysicsEnv, brax_asset, find, remove_body
from utils import unknown

Box = tuple[tuple[float, float], tuple[float, float]]


class Pusher(PhysicsEnv):
    """brax's pusher (its goal body removed); the object has to come within 10 cm of the goal.

    | state | content | unit |
    |---|---|---|
    | 0-6 | shoulder pan, shoulder lift, upper arm roll, elbow flex, forearm roll, wrist flex, wrist roll | rad |
    | 7-9 | arm tip: centre of mass of the wrist's flex link, 0.1 m short of the fingers | m |
    | 10-12 | object position | m |
    | 13-19 | joint velocities, order of 0-6 | rad/s |

    Action: torques, order of 0-6; half of the motors' range. Goal: object x, y and the constant height of its plane,
    y and x uniform on one of `goal_boxes`, at least 0.17 m from the object's start. Never ends early.
    Source: JaxGCRL (https://arxiv.org/abs/2408.11052), brax's pusher.
    """

    state_dim = 20
    action_size = 7
    goal_indices = (10, 11, 12)
    goal_dist = 0.1
    other_thresholds = {"success_hard": 0.05}
    default_backend = "generalized"
    physics = {
        "generalized": Physics(0.01, 5),
        "mjx": Physics(0.01, 5),
        "spring": Physics(0.001, 50, gear=20.0),
        "positional": Physics(0.001, 50, gear=20.0),
    }
    # Where the object's slides are zero. The joints, and the boxes below, have y before x.
    slide_origin = (0.45, -0.05, -0.275)
    object_box: Box = ((-0.3, 0.0), (-0.2, 0.2))
    goal_boxes: dict[str, Box] = {
        "easy": ((-0.55, -0.25), (-0.2, 0.2)),
        "hard": ((-0.65, 0.35), (-0.55, 0.45)),
    }
    min_goal_distance = 0.17

    def __init__(self, goals: str, backend: str | None = None, use_dense_reward: bool = False):
        if goals not in self.goal_boxes:
            raise ValueError(unknown("goals", goals, self.goal_boxes, " of Pusher"))
        super().__init__(backend, use_dense_reward)
        self.goal_box = self.goal_boxes[goals]
        self._tip, self._object = self.link("r_wrist_flex_link"), self.link("object")

    def build_xml(self):
        root = brax_asset("pusher")
        remove_body(root, "goal")
        # brax 0.14 added a damping that only spring and positional feel; the benchmark's model has none.
        root.find("custom").remove(find(root, "numeric", "vel_damping"))
        return root

    def sample_goal(self, key):
        _, goal_key, _ = jax.random.split(key, 3)
        slides = uniform_in(goal_key, self.goal_box)
        # The goal lies in the object's plane (upstream: 0.048 m below, where no object can ever be).
        return jnp.array(self.slide_origin) + jnp.append(slides[::-1], 0.0)

    def sample_start(self, key, goal):
        qd_key, _, object_key = jax.random.split(key, 3)
        slides = (goal - jnp.array(self.slide_origin))[1::-1]
        q = jnp.zeros(9).at[7:].set(self.sample_object(object_key, slides))
        return q, jnp.zeros(9).at[:7].set(jax.random.uniform(qd_key, (7,), minval=-0.005, maxval=0.005))

    def sample_object(self, key: jax.Array, goal: jax.Array) -> jax.Array:
        """(2,) y and x slide of the object, uniform on its box outside the circle around the goal, given as slides too.

        The first of 32 draws that lies outside; should none (less than 1 in 10,000 starts), the corner of the box
        furthest from the goal, which is at least half a diagonal, 0.25 m, away. So the rule holds for every start
        (upstream scales the object's slides about the origin, which leaves up to 9 % of starts too close).
        """
        low, high = jnp.array(self.object_box).T
        draws = uniform_in(key, self.object_box, 32)
        corner = jnp.where(goal > (low + high) / 2, low, high)
        candidates = jnp.concatenate([draws, corner[None]])
        outside = jnp.linalg.norm(candidates - goal, axis=-1) >= self.min_goal_distance
        return candidates[jnp.argmax(outside)]

    def centre(self, pipeline_state, link: int) -> jax.Array:
        """(3,) the centre of mass of a link."""
        centre = self.sys.link.inertia.transform.take(link)
        return pipeline_state.x.take(link).do(centre).pos

    def observe(self, pipeline_state, action):
        tip, object_position = (self.centre(pipeline_state, link) for link in (self._tip, self._object))
        return jnp.concatenate([pipeline_state.q[:7], tip, object_position, pipeline_state.qd[:7]])

    def step_metrics(self, before, after, action):
        # Of the state after the step (upstream: before it).
        tip, object_position = after.state[7:10], after.state[10:13]
        return {
            "reward_near": -jnp.linalg.norm(object_position - tip),
            "reward_dist": -jnp.linalg.norm(object_position - after.goal),
            "reward_ctrl": -jnp.sum(jnp.square(action)),
        }

    def dense_reward(self, before, after, action):
        """Brings the object to the goal and the tip to the object, minus the control cost."""
        metrics = after.metrics
        return metrics["reward_dist"] + 0.1 * metrics["reward_ctrl"] + 0.5 * metrics["reward_near"]


def uniform_in(key: jax.Array, box: Box, *shape: int) -> jax.Array:
    """(*shape, 2) points uniform on a box."""
    low, high = jnp.array(box).T
    return jax.random.uniform(key, (*shape, 2), minval=low, maxval=high)
