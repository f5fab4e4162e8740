"""The registry of environments: `ENVS` maps a name to a constructor, `make_env` builds one."""

from collections.abc import Callable
from functools import partial

from envs import opengl  # noqa: F401  before all that imports MuJoCo
from envs.ant import Ant
from envs.ant_ball import AntBall
from envs.ant_maze import AntBallMaze, AntMaze
from envs.ant_push import AntPush
from envs.base import GoalEnv
from envs.half_cheetah import HalfCheetah
from envs.humanoid import Humanoid
from envs.point import Point
from envs.pusher import Pusher
from envs.reacher import Reacher
from utils import unknown

ENVS: dict[str, Callable[..., GoalEnv]] = {
    "point": Point,
    "reacher": Reacher,
    "cheetah": HalfCheetah,
    "pusher_easy": partial(Pusher, goals="easy"),
    "pusher_hard": partial(Pusher, goals="hard"),
    "ant": Ant,
    "humanoid": Humanoid,
    "ant_ball": AntBall,
    "ant_push": AntPush,
    "ant_u_maze": partial(AntMaze, layout="u_maze"),
    "ant_u_maze_eval": partial(AntMaze, layout="u_maze_eval"),
    "ant_big_maze": partial(AntMaze, layout="big_maze"),
    "ant_big_maze_eval": partial(AntMaze, layout="big_maze_eval"),
    "ant_hardest_maze": partial(AntMaze, layout="hardest_maze"),
    "ant_ball_u_maze": partial(AntBallMaze, layout="u_maze_ball"),
    "ant_ball_big_maze": partial(AntBallMaze, layout="big_maze_ball"),
}


def make_env(name: str, backend: str | None = None, use_dense_reward: bool = False) -> GoalEnv:
    """Builds the environment `name` on a physics backend (None: the environment's own, if it has any).

    Raises:
      ValueError: unknown name, or a backend that the environment does not support.
    """
    if name not in ENVS:
        raise ValueError(unknown("env", name, ENVS))
    return ENVS[name](backend=backend, use_dense_reward=use_dense_reward)
