"""The static parts of a run: config, schedule, environments, algorithm, devices."""

import functools
import zlib
from typing import NamedTuple

import jax

from envs import make_env
from envs.wrappers import VectorEnv
from src import devices
from src.algorithm import Algorithm
from src.algorithms import ALGORITHMS
from src.devices import ENV_AXIS
from utils import Config, Schedule


class Program(NamedTuple):
    """The static parts of a run, shared by all its jitted functions."""

    config: Config
    schedule: Schedule
    env: VectorEnv
    eval_env: VectorEnv
    algorithm: Algorithm
    mesh: jax.sharding.Mesh


def make_program(config: Config, schedule: Schedule) -> Program:
    """Builds environments and algorithm.

    Raises:
      ValueError: unknown env or backend, distances that an env does not have, an `eval_env` whose sizes differ from
        the training env's, a goal proposal for goals that cannot be chosen, or sizes that do not divide among the
        devices.
    """
    env = eval_env = make_env(config.env_name, config.backend, config.use_dense_reward, config.gen_distances)
    if config.eval_env not in (None, config.env_name) or config.eval_gen_distances:
        name = config.eval_env or config.env_name
        eval_env = make_env(name, config.backend, config.use_dense_reward, config.eval_gen_distances)
    sizes = [(e.state_dim, tuple(e.goal_indices), e.action_size) for e in (env, eval_env)]
    if sizes[0] != sizes[1]:
        raise ValueError(
            f"eval_env {config.eval_env} does not fit env_name {config.env_name}: "
            f"state, goal indices and action are {sizes[1]}, need {sizes[0]}"
        )
    if config.goal_proposal != Config.goal_proposal and env.goal_needs_start:
        raise ValueError(
            f"--goal_proposal {config.goal_proposal}: a goal of {config.env_name} belongs to the start that is drawn "
            f"with it, no other can be proposed: --goal_proposal {Config.goal_proposal}"
        )
    mesh = devices.make_mesh(config)
    vector = functools.partial(
        VectorEnv,
        episode_length=config.episode_length,
        action_repeat=config.action_repeat,
        sharding=devices.sharding(mesh, ENV_AXIS),
    )
    algorithm = ALGORITHMS[config.algorithm].make(config, env)
    return Program(config, schedule, vector(env), vector(eval_env), algorithm, mesh)


def on_one_device(program: Program) -> Program:
    """The same program with its evaluation on one device of this process: for what is drawn or measured besides."""
    env = program.eval_env
    return program._replace(eval_env=VectorEnv(env.env, env.episode_length, env.action_repeat))


def key_beside(seed: int, purpose: str) -> jax.Array:
    """The random key of what is drawn or measured besides, which shares nothing with the keys of the run of `seed`."""
    return jax.random.fold_in(jax.random.key(seed), zlib.crc32(purpose.encode()))
