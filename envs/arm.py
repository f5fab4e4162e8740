"""Arms: a Franka Panda reaches, grasps, pushes a cube across a table, or carries it from one bin to another."""

from typing import ClassVar, NamedTuple

import jax
import jax.numpy as jnp
from brax.base import Transform

from envs.arm_model import FINGER_CONTROL, FINGERS, LINKS, TIP, Bin, arm_model
from envs.physics import Physics, PhysicsEnv
from utils import unknown


class Square(NamedTuple):
    """Where something is drawn, uniformly: a square of the table, by its centre and half its side."""

    centre: tuple[float, float]
    half: float

    def sample(self, key: jax.Array) -> jax.Array:
        """(2,) x, y."""
        return jnp.array(self.centre) + jax.random.uniform(key, (2,), minval=-self.half, maxval=self.half)


class Arm(PhysicsEnv):
    """What all arms share: the robot, how it is controlled, and where it starts.

    The first four actions are targets of the joints 1, 2, 4 and 6, from the low to the high end of `targets`; the
    motors of joints 3 to 7 stop short of theirs. The last, where there are fingers, closes them above 0 and else opens
    them. Start: at rest, the hand above the table.
    Source: JaxGCRL (https://arxiv.org/abs/2408.11052), the robot after Franka's Panda.

    Args:
      finger_range: how far a finger opens, in metres. Of the two published versions this is 0.08 in the second.

    Raises:
      ValueError: fingers that start further open than they can be.
    """

    goal_dist = 0.1
    other_thresholds = {"success_easy": 0.3, "success_hard": 0.03}
    default_backend = "mjx"
    physics = {
        "mjx": Physics(0.002, 25, option={"integrator": "implicitfast", "iterations": "6", "ls_iterations": "12"})
    }
    view = (150.0, -25.0)
    joints = (0, 1, 3, 5)
    targets = ((0.3491, 2.7925), (0.0, 1.48353), (-3.0718, -0.0698), (2.3562, 3.7525))
    fixed_targets = (0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 1.4487)
    home = (1.571, 0.742, 0.0, -1.571, 0.0, 3.054, 1.449)
    finger_start = 0.04
    cube_height = 0.07  # at its start, from where it falls to the table
    fingers, tips = True, False  # whether there are fingers; whether their tips are of a gram
    bins: tuple[Bin, ...] = ()

    def __init__(self, backend: str | None = None, use_dense_reward: bool = False, finger_range: float = 0.08):
        if not finger_range >= self.finger_start:
            raise ValueError(
                f"finger_range {finger_range:g} is below finger_start {self.finger_start:g}, how far (m) a finger is "
                f"open at the start: at least {self.finger_start:g}"
            )
        self.finger_range = finger_range
        super().__init__(backend, use_dense_reward)
        self._hand = self.link(f"link{len(LINKS)}")
        self._fingers = [self.link(name) for name in FINGERS] if self.fingers else []
        self._cube = self.link("cube") if self.fingers else None

    def build_xml(self):
        return arm_model(self.fingers, self.bins, self.finger_range, self.tips)

    def control(self, action):
        low, high = jnp.array(self.targets).T
        angles = low + (action[:4] + 1) / 2 * (high - low)
        control = jnp.array(self.fixed_targets).at[jnp.array(self.joints)].set(angles)
        return jnp.append(control, jnp.where(action[4] > 0, jnp.zeros(2), FINGER_CONTROL)) if self.fingers else control

    def start(self, cube: jax.Array) -> tuple[jax.Array, jax.Array]:
        """q and qd of the arm at home, with the cube at (2,) x, y."""
        place = jnp.append(cube, jnp.array([self.cube_height, 1.0, 0.0, 0.0, 0.0]))
        q = jnp.concatenate([place, jnp.array(self.home), jnp.full(2, self.finger_start)])
        return q, jnp.zeros(15)

    def hand(self, pipeline_state) -> jax.Array:
        """(6,) position and velocity of link 7, which is what the tasks mean by the end of the arm."""
        return jnp.concatenate([pipeline_state.x.pos[self._hand], pipeline_state.xd.vel[self._hand]])

    def step_metrics(self, before, after, action):
        return {}

    def dense_reward(self, before, after, action):
        """Closeness (none is published)."""
        return -after.metrics["dist"]


class ArmReach(Arm):
    """The arm without fingers; link 7 has to come within 10 cm of the goal.

    | state | content | unit |
    |---|---|---|
    | 0-6 | joint angles | rad |
    | 7-9 | position of link 7 | m |
    | 10-12 | its velocity | m/s |

    Goal: link 7's x, y, z, uniform on a box of 0.4 m around (0, 0.5, 0.3). Never ends early.
    """

    state_dim = 13
    action_size = 4
    goal_indices = (7, 8, 9)
    fingers = False
    goal_box = ((-0.2, 0.3, 0.1), (0.2, 0.7, 0.5))

    def sample_goal(self, key):
        low, high = jnp.array(self.goal_box)
        return jax.random.uniform(key, (3,), minval=low, maxval=high)

    def sample_start(self, key, goal):
        return jnp.array(self.home), jnp.zeros(7)

    def observe(self, pipeline_state, action):
        return jnp.concatenate([pipeline_state.q, self.hand(pipeline_state)])


class ArmPush(Arm):
    """The arm pushes a cube of 6 cm across the table; it has to come within 10 cm of the goal.

    | state | content | unit |
    |---|---|---|
    | 0-2 | cube position | m |
    | 3-9 | joint angles | rad |
    | 10-12, 13-15 | position and velocity of link 7 | m, m/s |
    | 16 | distance between the fingers | m |

    Goal: cube x, y, z, uniform on a square of `places`, z = 0.03. Start: the cube uniform on another. A cube may start
    in success (6.7 % of the easy starts). Never ends early.
    """

    state_dim = 17
    action_size = 5
    goal_indices = (0, 1, 2)
    goal_height = 0.03
    places: ClassVar[dict[str, tuple[Square, Square]]] = {  # of the cube's start, of the goal
        "easy": (Square((-0.1, 0.6), 0.1), Square((0.1, 0.6), 0.1)),
        "hard": (Square((-0.25, 0.65), 0.25), Square((0.25, 0.65), 0.25)),
    }

    def __init__(self, level: str, **options):
        if level not in self.places:
            raise ValueError(unknown("level", level, self.places, f" of {type(self).__name__}"))
        self.start_place, self.goal_place = self.places[level]
        super().__init__(**options)

    def sample_goal(self, key):
        _, goal_key = jax.random.split(key)
        return jnp.append(self.goal_place.sample(goal_key), self.goal_height)

    def sample_start(self, key, goal):
        cube_key, _ = jax.random.split(key)
        return self.start(self.start_place.sample(cube_key))

    def observe(self, pipeline_state, action):
        position = pipeline_state.x.pos
        left, right = (position[finger] for finger in self._fingers)
        opening = jnp.linalg.norm(left - right)
        angles = pipeline_state.q[7:14]
        return jnp.concatenate([position[self._cube], angles, self.hand(pipeline_state), opening[None]])


class ArmBinpick(ArmPush):
    """The arm carries the cube from one bin into another; it has to come within 10 cm of the goal.

    State, action, goal and end as in `ArmPush`; the bins' walls are 6.6 cm high.
    """

    places = {
        "easy": (Square((-0.15, 0.6), 0.07), Square((0.17, 0.6), 0.005)),
        "hard": (Square((-0.3, 0.6), 0.15), Square((0.3, 0.6), 0.15)),
    }
    bins_of = {
        "easy": (Bin((-0.17, 0.6), 0.14), Bin((0.17, 0.6), 0.14)),
        "hard": (Bin((-0.3, 0.6), 0.19), Bin((0.3, 0.6), 0.19)),
    }

    def __init__(self, level: str, **options):
        self.bins = self.bins_of.get(level, ())
        super().__init__(level, **options)


class ArmGrasp(Arm):
    """The arm takes hold of the cube: the point between its fingertips within 5 cm of the cube, 7.5 +-2 cm apart.

    | state | content | unit |
    |---|---|---|
    | 0-2 | cube position | m |
    | 3-9 | joint angles | rad |
    | 10-12, 13-15 | position and velocity of link 7 | m, m/s |
    | 16-18, 19-21 | left and right fingertip | m |
    | 22 | distance between the fingertips | m |

    Goal: both fingertips 3.75 cm beside the cube along x, and their distance; it follows the cube. The distance to the
    goal is that of the middle to the cube, or 2.5 times what the opening is off, whichever is larger; `success_easy`
    and `success_hard` are 15 +-5 cm and 2 +-0.5 cm. Start: the cube uniform on `cube_place`. Never ends early.
    """

    state_dim = 23
    action_size = 5
    goal_indices = (16, 17, 18, 19, 20, 21, 22)
    goal_dist = 0.05
    goal_place_dim = 6
    goal_needs_start = True
    other_thresholds = {}
    opening, opening_tolerance = 0.075, 0.02
    other_tolerances = {"success_easy": (0.15, 0.05), "success_hard": (0.02, 0.005)}
    cube_place = Square((0.0, 0.6), 0.3)
    tips = True

    def goal_of(self, cube: jax.Array) -> jax.Array:
        """(7,) the goal for a cube at (3,) x, y, z."""
        aside = jnp.array([self.opening / 2, 0.0, 0.0])
        return jnp.concatenate([cube + aside, cube - aside, jnp.array([self.opening])])

    def sample_goal(self, key):
        return self.goal_of(jnp.append(self.cube_place.sample(key), self.cube_height))

    def sample_start(self, key, goal):
        return self.start((goal[:2] + goal[3:5]) / 2)

    def follow(self, pipeline_state, goal):
        return self.goal_of(pipeline_state.x.pos[self._cube])

    def observe(self, pipeline_state, action):
        tip = Transform.create(pos=jnp.array(TIP))
        left, right = (pipeline_state.x.take(finger).do(tip).pos for finger in self._fingers)
        opening = jnp.linalg.norm(left - right)
        angles, cube = pipeline_state.q[7:14], pipeline_state.x.pos[self._cube]
        return jnp.concatenate([cube, angles, self.hand(pipeline_state), left, right, opening[None]])

    def errors(self, difference: jax.Array) -> tuple[jax.Array, jax.Array]:
        """(...), (...) how far the fingertips' middle and their distance are off, for a difference of goals."""
        middle = (difference[..., :3] + difference[..., 3:6]) / 2
        return jnp.linalg.norm(middle, axis=-1), jnp.abs(difference[..., 6])

    def goal_norm(self, difference):
        middle, opening = self.errors(difference)
        return jnp.maximum(middle, self.goal_dist / self.opening_tolerance * opening)

    def step_metrics(self, before, after, action):
        middle, opening = self.errors(after.state[jnp.array(self.goal_indices)] - after.goal)
        limits = self.other_tolerances.items()
        return {name: (middle < near) & (opening < off) for name, (near, off) in limits}
