"""Pusher: a seven-joint arm pushes one puck or two to points of the table, or only brings its tip to a point."""

import copy

import jax
import jax.numpy as jnp

from envs.physics import Physics, PhysicsEnv, brax_asset, find, remove_body
from utils import unknown

Box = tuple[tuple[float, float], tuple[float, float]]


class PusherArm(PhysicsEnv):
    """What all pushers share: brax's arm without the body of its goal."""

    action_size = 7
    goal_dist = 0.1
    default_backend = "generalized"
    physics = {
        "generalized": Physics(0.01, 5),
        "mjx": Physics(0.01, 5),
        "spring": Physics(0.001, 50, gear=20.0),
        "positional": Physics(0.001, 50, gear=20.0),
    }
    # Where the slides of object and goal are zero. The joints, and all boxes, have y before x.
    slide_origin = (0.45, -0.05, -0.275)
    min_goal_distance = 0.17

    def __init__(self, backend: str | None = None, use_dense_reward: bool = False):
        super().__init__(backend, use_dense_reward)
        self._tip = self.link("r_wrist_flex_link")

    def build_xml(self):
        root = brax_asset("pusher")
        remove_body(root, "goal")
        # brax 0.14 added a damping that only spring and positional feel; the benchmark's model has none.
        root.find("custom").remove(find(root, "numeric", "vel_damping"))
        return root

    def start(self, key: jax.Array, slides: jax.Array) -> tuple[jax.Array, jax.Array]:
        """q and qd of the arm at rest but for noise, and of objects at `slides`."""
        speeds = jax.random.uniform(key, (7,), minval=-0.005, maxval=0.005)
        return jnp.append(jnp.zeros(7), slides), jnp.append(speeds, jnp.zeros_like(slides))

    def place(self, slides: jax.Array) -> jax.Array:
        """(3,) x, y, z at (2,) slides."""
        return jnp.array(self.slide_origin) + jnp.append(slides[::-1], 0.0)

    def slides(self, place: jax.Array) -> jax.Array:
        """(2,) slides of a place (3,)."""
        return (place - jnp.array(self.slide_origin))[1::-1]

    def sample_object(self, key: jax.Array, box: Box, goal: jax.Array) -> jax.Array:
        """(2,) y and x slide of an object, uniform on its box outside the circle around the goal, given as slides too.

        The first of 32 draws that lies outside; should none (less than 1 in 10,000 starts), the corner of the box
        furthest from the goal, which is at least half a diagonal, 0.18 m, away. So the rule holds for every start
        (upstream scales the object's slides about the origin, which leaves up to 9 % of starts too close).
        """
        low, high = jnp.array(box).T
        draws = uniform_in(key, box, 32)
        corner = jnp.where(goal > (low + high) / 2, low, high)
        candidates = jnp.concatenate([draws, corner[None]])
        outside = jnp.linalg.norm(candidates - goal, axis=-1) >= self.min_goal_distance
        return candidates[jnp.argmax(outside)]

    def centre(self, pipeline_state, link: int) -> jax.Array:
        """(3,) the centre of mass of a link."""
        centre = self.sys.link.inertia.transform.take(link)
        return pipeline_state.x.take(link).do(centre).pos


class Pusher(PusherArm):
    """brax's pusher; the object has to come within 10 cm of the goal.

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
    goal_indices = (10, 11, 12)
    other_thresholds = {"success_hard": 0.05}
    object_box: Box = ((-0.3, 0.0), (-0.2, 0.2))
    goal_boxes: dict[str, Box] = {
        "easy": ((-0.55, -0.25), (-0.2, 0.2)),
        "hard": ((-0.65, 0.35), (-0.55, 0.45)),
    }

    def __init__(self, goals: str, backend: str | None = None, use_dense_reward: bool = False):
        if goals not in self.goal_boxes:
            raise ValueError(unknown("goals", goals, self.goal_boxes, " of Pusher"))
        super().__init__(backend, use_dense_reward)
        self.goal_box = self.goal_boxes[goals]
        self._object = self.link("object")

    def sample_goal(self, key):
        _, goal_key, _ = jax.random.split(key, 3)
        # The goal lies in the object's plane (upstream: 0.048 m below, where no object can ever be).
        return self.place(uniform_in(goal_key, self.goal_box))

    def sample_start(self, key, goal):
        qd_key, _, object_key = jax.random.split(key, 3)
        return self.start(qd_key, self.sample_object(object_key, self.object_box, self.slides(goal)))

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


class PusherReacher(PusherArm):
    """The pusher's arm without an object; its tip has to come within 10 cm of the goal.

    | state | content | unit |
    |---|---|---|
    | 0-6 | joint angles, as in `Pusher` | rad |
    | 7-13 | joint velocities, order of 0-6 | rad/s |
    | 14-16 | arm tip, as in `Pusher` | m |

    Action as in `Pusher`. Goal: tip x, y, z, y and x uniform on `goal_box`, z = -0.323. Never ends early.
    Source: JaxGCRL (https://arxiv.org/abs/2408.11052), brax's pusher; there the object lies out of the arm's reach, and
    the reward is always dense.
    """

    state_dim = 17
    goal_indices = (14, 15, 16)
    other_thresholds = {"success_hard": 0.05}
    slide_origin = (0.45, -0.05, -0.323)
    goal_box: Box = ((-0.3, 0.0), (-0.2, 0.2))

    def build_xml(self):
        root = super().build_xml()
        remove_body(root, "object")
        return root

    def sample_goal(self, key):
        _, goal_key = jax.random.split(key)
        return self.place(uniform_in(goal_key, self.goal_box))

    def sample_start(self, key, goal):
        qd_key, _ = jax.random.split(key)
        return self.start(qd_key, jnp.zeros(0))

    def observe(self, pipeline_state, action):
        return jnp.concatenate([pipeline_state.q, pipeline_state.qd, self.centre(pipeline_state, self._tip)])

    def step_metrics(self, before, after, action):
        dist = self.goal_distance(after.state, after.goal)
        return {"reward_dist": -dist, "reward_ctrl": -jnp.sum(jnp.square(action))}

    def dense_reward(self, before, after, action):
        """Closeness."""
        return -after.metrics["dist"]


class TwoPusher(PusherArm):
    """The pusher with two objects; each has to come within 10 cm of a goal of its own.

    | state | content | unit |
    |---|---|---|
    | 0-6 | joint angles, as in `Pusher` | rad |
    | 7-9 | arm tip, as in `Pusher` | m |
    | 10-12, 13-15 | positions of the two objects | m |
    | 16-22 | joint velocities, order of 0-6 | rad/s |

    Action as in `Pusher`. Goal: both objects' x, y, z; the larger of their two distances counts. The first slide is the
    same for both goals, the second uniform on a box for each; no object starts within 0.17 m of its goal.
    `success_easy`: one object is within 10 cm (upstream: how many are). Never ends early.
    Source: JaxGCRL (https://arxiv.org/abs/2408.11052), brax's pusher; there the reward is always dense.
    """

    state_dim = 23
    goal_indices = (10, 11, 12, 13, 14, 15)
    objects = ("object", "object2")
    slide_origin = (0.0, 0.0, -0.275)
    object_boxes: tuple[Box, Box] = (((-0.35, -0.05), (0.25, 0.45)), ((-0.35, -0.05), (0.45, 0.65)))
    goal_boxes: tuple[Box, Box] = (((-0.7, 0.3), (-0.15, 0.375)), ((-0.7, 0.3), (0.375, 0.9)))

    def __init__(self, backend: str | None = None, use_dense_reward: bool = False):
        super().__init__(backend, use_dense_reward)
        self._objects = [self.link(name) for name in self.objects]

    def build_xml(self):
        root = super().build_xml()
        first = find(root, "body", "object")
        first.set("pos", " ".join(map(str, self.slide_origin)))
        second = copy.deepcopy(first)
        for element in second.iter():
            if element.get("name"):
                element.set("name", f"{element.get('name')}2")
        root.find("worldbody").append(second)
        return root

    def sample_goal(self, key):
        _, _, *goal_keys = jax.random.split(key, 4)
        slides = jnp.stack([uniform_in(*each) for each in zip(goal_keys, self.goal_boxes, strict=True)])
        return jax.vmap(self.place)(slides.at[1, 0].set(slides[0, 0])).ravel()

    def sample_start(self, key, goal):
        qd_key, object_key, *_ = jax.random.split(key, 4)
        keys, goals = jax.random.split(object_key), jax.vmap(self.slides)(goal.reshape(2, 3))
        slides = [self.sample_object(*each) for each in zip(keys, self.object_boxes, goals, strict=True)]
        return self.start(qd_key, jnp.concatenate(slides))

    def observe(self, pipeline_state, action):
        places = [self.centre(pipeline_state, link) for link in (self._tip, *self._objects)]
        return jnp.concatenate([pipeline_state.q[:7], *places, pipeline_state.qd[:7]])

    def goal_norm(self, difference):
        return jnp.linalg.norm(difference.reshape(*difference.shape[:-1], 2, 3), axis=-1).max(axis=-1)

    def step_metrics(self, before, after, action):
        objects, goals = after.state[10:16].reshape(2, 3), after.goal.reshape(2, 3)
        distances = jnp.linalg.norm(objects - goals, axis=-1)
        return {
            "success_easy": jnp.any(distances < self.goal_dist),
            "reward_near": -jnp.mean(jnp.linalg.norm(objects - after.state[7:10], axis=-1)),
            "reward_dist": -jnp.sum(distances),
            "reward_ctrl": -jnp.sum(jnp.square(action)),
        }

    dense_reward = Pusher.dense_reward


def uniform_in(key: jax.Array, box: Box, *shape: int) -> jax.Array:
    """(*shape, 2) points uniform on a box."""
    low, high = jnp.array(box).T
    return jax.random.uniform(key, (*shape, 2), minval=low, maxval=high)
