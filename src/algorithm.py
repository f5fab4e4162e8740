"""What the loop and an algorithm say to each other. The loop (src/train.py) does not know which algorithm runs.

The flow of a training step: collect -> insert -> index -> draw -> gather -> update. What a row, a pick and a batch are
is the algorithm's business. Shapes: T steps of an unroll, N envs, B batch, U updates per training step.
"""

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Annotated, Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax import struct

from envs.base import GoalEnv
from utils import Config, ConfigError, Range, derive_schedule


@struct.dataclass
class Step:
    """What happened in one step of N envs: all that an algorithm can keep. XLA drops what nobody keeps.

    Attributes:
      state, goal, action: (N, ...) before the step, and what was done.
      next_state: (N, state_dim) after the step, before any restart; `state` again where the physics blew up.
      reward: (N,) of the step.
      terminated: (N,) bool, the episode ended for another reason than its time limit.
      truncated: (N,) bool, the time limit ended it.
      blown_up: (N,) bool, the physics ended it; not to be learned from.
      traj_id: (N,) the trajectory that `state` belongs to.
    """

    state: jax.Array
    goal: jax.Array
    action: jax.Array
    next_state: jax.Array
    reward: jax.Array
    terminated: jax.Array
    truncated: jax.Array
    blown_up: jax.Array
    traj_id: jax.Array


def step_shapes(env: GoalEnv, num_envs: int) -> Step:
    """The shapes of a `Step` of N envs."""

    def shape(*size: int, dtype: Any = jnp.float32) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct((num_envs, *size), dtype)

    state, flag = shape(env.state_dim), shape(dtype=bool)
    return Step(
        state=state,
        goal=shape(env.goal_dim),
        action=shape(env.action_size),
        next_state=state,
        reward=shape(),
        terminated=flag,
        truncated=flag,
        blown_up=flag,
        traj_id=shape(dtype=jnp.int32),
    )


class Algorithm(NamedTuple):
    """An algorithm bound to one config and environment, as pure functions.

    Attributes:
      init: key -> agent state, a dataclass with `params` (what params.npz holds), `opt_state` and `normalizer`.
      init_memory: batch shape -> what the policy remembers inside an episode; () for most.
      act: agent state, memory, obs, key, deterministic=False -> action, memory.
      keep: `Step` -> the row of the replay, a dataclass with a field `traj_id`.
      absorb: agent state, rows (T, N, ...) just collected -> agent state; for statistics of the data.
      index: buffer state -> what is worked out once per training step; () for none.
      draw: agent state, buffer state, index, key -> picks, leading axis U. On-policy methods compute advantages here.
      gather: rows of the replay, index, one pick -> batch, leading axis B. Relabelling happens here.
      update: agent state, batch, key -> agent state, metrics as () floats.
      energy: agent state, state, action, goal -> (...), for pictures, `action` as `propose` gives it. None draws none.
      propose: agent state, state, goal -> what `energy` judges, the deterministic action. Needed with `energy`.
      explore: as `act`, without its last argument: how to act in training, where that differs from sampling.
      drawable: index -> () how many rows can be drawn; None where every row can.
      actor: the network of `params["actor"]`, a trunk and a linear layer whose first numbers after a tanh are the
        deterministic action or plan, for state and goal as `agent.normalize` scales them. Needed by scripts/export.py.
    """

    init: Callable[..., Any]
    init_memory: Callable[[tuple[int, ...]], Any]
    act: Callable[..., tuple[jax.Array, Any]]
    keep: Callable[[Step], Any]
    absorb: Callable[..., Any]
    index: Callable[..., Any]
    draw: Callable[..., Any]
    gather: Callable[..., Any]
    update: Callable[..., tuple[Any, dict[str, jax.Array]]]
    energy: Callable[..., jax.Array] | None = None
    propose: Callable[..., jax.Array] | None = None
    explore: Callable[..., tuple[jax.Array, Any]] | None = None
    drawable: Callable[[Any], jax.Array] | None = None
    actor: nn.Module | None = None


class Method(NamedTuple):
    """An entry of the registry of algorithms.

    Attributes:
      config: the flags, a subclass of `Config`.
      make: config, env -> `Algorithm`.
      workspace: config, `Sizes` -> floats that one update needs on one device beyond parameters and rows.
    """

    config: type[Config]
    make: Callable[[Config, GoalEnv], Algorithm]
    workspace: Callable[[Config, Any], float]


@dataclasses.dataclass(frozen=True)
class OffPolicyConfig(Config):
    """The flags of the algorithms that learn from a replay of many unrolls."""

    multiplier_num_sgd_steps: Annotated[float, Range(0, 2**31 - 1, open=True, example=0.4)] = 1.0
    """Scales the updates per training step, num_envs * (episode_length - 1) / batch_size."""
    min_replay_size: Annotated[int, Range(2)] = 1000
    """Rows per env to collect before learning starts."""
    max_replay_size: Annotated[int, Range(3)] = 10_000
    """Rows per env that the replay holds (rounded up to a multiple of unroll_length)."""
    discounting: Annotated[float, Range(0, 1, open=True, example=0.99)] = 0.99
    """Goals lie k steps ahead with probability proportional to discounting^k; inside (0, 1)."""

    def updates_per_training_step(self) -> int:
        updates = self.multiplier_num_sgd_steps * self.num_envs * (self.episode_length - 1) / self.batch_size
        return max(1, round(updates))

    def prefill_steps(self) -> int:
        return -(-self.min_replay_size // self.unroll_length)

    def replay_rows(self) -> int:
        return -(-self.max_replay_size // self.unroll_length) * self.unroll_length

    def check(self) -> None:
        super().check()
        if self.min_replay_size > self.max_replay_size:
            raise ConfigError(
                f"--min_replay_size {self.min_replay_size} is above --max_replay_size {self.max_replay_size}: at most "
                f"{self.max_replay_size}"
            )
        if self.unroll_length > self.max_replay_size:
            raise ConfigError(
                f"--unroll_length {self.unroll_length} is longer than the replay, --max_replay_size "
                f"{self.max_replay_size}: at most {self.max_replay_size}"
            )
        self._check_batch()
        self._check_ring()
        prefill = derive_schedule(self).prefill_env_steps
        if self.num_timesteps < prefill:
            raise ConfigError(
                f"--num_timesteps {self.num_timesteps} is below the prefill of {prefill} env steps (min_replay_size "
                f"{self.min_replay_size} rows in {self.num_envs} envs, in unrolls of {self.unroll_length}): at least "
                f"{prefill}, or a smaller --min_replay_size"
            )

    def _check_batch(self) -> None:
        per_env = self.multiplier_num_sgd_steps * (self.episode_length - 1)
        collected, drawn = self.num_envs * self.unroll_length, int(self.num_envs * per_env)
        most = min(collected, drawn)
        if self.batch_size > most:
            envs = math.ceil(2 / min(self.unroll_length, per_env))
            raise ConfigError(
                f"--batch_size {self.batch_size} is larger than a training step's data: num_envs {self.num_envs} * "
                f"unroll_length {self.unroll_length} = {collected} rows, multiplier_num_sgd_steps * num_envs * "
                f"(episode_length - 1) = {drawn} to draw; "
                + (f"at most {most}" if most > 1 else f"raise --num_envs to {envs}")
            )

    def _check_ring(self) -> None:
        # The ring's time index counts to twice its length, hence the 2.
        if max(self.num_envs, 2) * (self.max_replay_size + self.unroll_length) >= 2**31:
            rows = 2**31 // max(self.num_envs, 2) - self.unroll_length - 1
            fits = f"--max_replay_size {rows}" if rows >= max(self.min_replay_size, self.unroll_length, 3) else ""
            envs = (2**31 - 1) // (self.max_replay_size + self.unroll_length)
            raise ConfigError(
                f"--num_envs {self.num_envs} * --max_replay_size {self.max_replay_size} rows are too many to number "
                f"with 31 bits: at most {fits or f'--num_envs {envs}'}"
            )


class Policy(NamedTuple):
    """An algorithm that acts with fixed parameters: `init_memory(batch shape)`, `act(memory, obs, key)`."""

    init_memory: Callable[[tuple[int, ...]], Any]
    act: Callable[[Any, jax.Array, jax.Array], tuple[jax.Array, Any]]


def policy_of(algorithm: Algorithm, agent_state: Any, deterministic: bool) -> Policy:
    """The policy of an agent state."""
    return Policy(algorithm.init_memory, functools.partial(algorithm.act, agent_state, deterministic=deterministic))
