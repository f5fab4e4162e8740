"""The registry of environments: `ENVS` maps a name to a constructor, `make_env` builds one."""

from collections.abc import Callable
from functools import partial

from envs import opengl  # noqa: F401  before all that imports MuJoCo
from envs.ant import Ant, AntRandomStart
from envs.ant_ball import AntBall
from envs.ant_maze import AntBallMaze, AntCorridor, AntMaze
from envs.ant_push import AntPush
from envs.arm import ArmBinpick, ArmGrasp, ArmPush, ArmReach
from envs.base import GoalEnv
from envs.half_cheetah import HalfCheetah
from envs.humanoid import Humanoid
from envs.humanoid_maze import HumanoidMaze
from envs.maze import LAYOUTS
from envs.point import Point
from envs.pusher import Pusher, PusherReacher, TwoPusher
from envs.reacher import Reacher
from envs.simple_maze import SimpleMaze
from utils import unknown

# The layouts that there are for every body.
PUBLISHED = ("u_maze", "u_maze_eval", "big_maze", "big_maze_eval", "hardest_maze")
CORRIDORS = ("u_maze", "u2_maze", "u3_maze", "u4_maze", "u5_maze")

ENVS: dict[str, Callable[..., GoalEnv]] = {
    "point": Point,
    "reacher": Reacher,
    "cheetah": HalfCheetah,
    "pusher_easy": partial(Pusher, goals="easy"),
    "pusher_hard": partial(Pusher, goals="hard"),
    "pusher_reacher": PusherReacher,
    "pusher2": TwoPusher,
    "ant": Ant,
    "ant_random_start": AntRandomStart,
    "humanoid": Humanoid,
    "ant_ball": AntBall,
    "ant_push": AntPush,
    **{f"ant_{layout}": partial(AntMaze, layout=layout) for layout, table in LAYOUTS.items() if "B" not in table},
    **{f"ant_{layout}_gen": partial(AntCorridor, layout=layout) for layout in CORRIDORS},
    "ant_ball_u_maze": partial(AntBallMaze, layout="u_maze_ball"),
    "ant_ball_big_maze": partial(AntBallMaze, layout="big_maze_ball"),
    **{f"humanoid_{layout}": partial(HumanoidMaze, layout=layout) for layout in PUBLISHED},
    **{f"simple_{layout}": partial(SimpleMaze, layout=layout) for layout in PUBLISHED},
    "arm_reach": ArmReach,
    "arm_grasp": ArmGrasp,
    "arm_push_easy": partial(ArmPush, level="easy"),
    "arm_push_hard": partial(ArmPush, level="hard"),
    "arm_binpick_easy": partial(ArmBinpick, level="easy"),
    "arm_binpick_hard": partial(ArmBinpick, level="hard"),
}


def family(name: str) -> type[GoalEnv]:
    """The class of an environment, of which its constructor may be a variant."""
    return getattr(ENVS[name], "func", ENVS[name])


def own_backend(name: str) -> str | None:
    """The backend that an environment has when the user names none; None if no engine steps it."""
    return getattr(family(name), "default_backend", None)


def quicker_backend(name: str, platform: str) -> str | None:
    """The backend that steps an environment's own model much faster on this platform ("cpu", "gpu", ...) than its own
    does: MuJoCo's own engine in place of MJX, which is made for accelerators. None: there is none."""
    return "mujoco" if (own_backend(name), platform) == ("mjx", "cpu") else None


def make_env(name: str, backend: str | None = None, use_dense_reward: bool = False, gen_distances: str = "") -> GoalEnv:
    """Builds the environment `name` on a physics backend (None: the environment's own, if it has any).

    `gen_distances` are those of the mazes NAME_gen, as in `envs.ant_maze.AntCorridor`.

    Raises:
      ValueError: unknown name, a backend that the environment does not support, or distances that it does not have.
    """
    if name not in ENVS:
        raise ValueError(unknown("env", name, ENVS))
    options = {"gen_distances": gen_distances} if gen_distances else {}
    if options and family(name) is not AntCorridor:
        corridors = ", ".join(f"ant_{layout}_gen" for layout in CORRIDORS)
        raise ValueError(f"gen_distances {gen_distances!r} are for {corridors}; {name} has none")
    return ENVS[name](backend=backend, use_dense_reward=use_dense_reward, **options)
