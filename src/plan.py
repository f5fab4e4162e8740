"""What a run will take, known before anything is compiled: memory on each device, the spread of seeds, the plan."""

import dataclasses
import re
from typing import Any, NamedTuple

import jax

from envs import make_env, own_backend
from envs.base import GoalEnv, Sizes
from src import devices
from src.algorithm import step_shapes
from src.algorithms import ALGORITHMS
from src.devices import DIVIDED_FLAGS, mesh_shape
from src.output import error_line
from utils import FAILURES, Config, ConfigError, Schedule, derive_schedule

# What of a device's memory a plan may take, and the flags that it mostly depends on.
_USABLE = 0.9
_MEMORY_FLAGS = ("max_replay_size", "num_envs", "batch_size")


class Costs(NamedTuple):
    """What a run's memory depends on besides its flags, in floats: the environment's sizes, one row of the replay, the
    parameters, and the agent with its optimiser."""

    sizes: Sizes
    row: int
    parameters: int
    agent: int


def measure(config: Config, env: GoalEnv) -> Costs:
    """The costs of one config and environment, from shapes alone."""
    algorithm = ALGORITHMS[config.algorithm].make(config, env)
    agent_state = jax.eval_shape(algorithm.init, jax.random.key(0))
    row = jax.eval_shape(algorithm.keep, step_shapes(env, 1))
    return Costs(env.sizes, _floats(row), _floats(agent_state.params), _floats(agent_state))


def _floats(tree: Any) -> int:
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree)) // 4


# Fitted to the memory analysis of compiled programs; the tests compare them. All are floats per thing named.
PER_INDEXED_ROW = 3  # while the ring is indexed
PER_ROW_OF_OTHERS = 0.25  # each of several devices is told which rows of all can be drawn
PER_DRAWN_PAIR = 12  # while the pairs of a training step are drawn
PER_KEPT_PAIR = 2  # while the learner uses them
PER_GRADIENT = 0.6  # of each parameter
SPARE_RESETS = 3  # states per env that the episodes which begin in an unroll need, and a working copy


def memory_plan(
    config: Config, schedule: Schedule, costs: Costs, mesh_shape: tuple[int, int] = (1, 1)
) -> dict[str, int]:
    """Estimated bytes of a run on each of its devices: replay, its index while sampling, and all else.

    Args:
      mesh_shape: groups of devices that the seeds are spread over, devices in a group.
    """
    groups, share = mesh_shape
    seeds, envs = config.num_seeds / groups, config.num_envs / share
    rows, pairs = schedule.replay_rows * envs, schedule.updates_per_training_step * config.batch_size
    # Indexing the ring, drawing from it, learning and collecting come one after the other: the largest counts.
    index = PER_INDEXED_ROW * rows + (PER_ROW_OF_OTHERS * rows * share if share > 1 else 0)
    drawing = rows + PER_DRAWN_PAIR * pairs
    activations = ALGORITHMS[config.algorithm].workspace(config, costs.sizes) / share
    learning = PER_KEPT_PAIR * pairs + PER_GRADIENT * costs.parameters + activations
    resets = config.unroll_length * config.action_repeat // config.episode_length + SPARE_RESETS
    peak = max(index, drawing, learning, resets * envs * costs.sizes.physics)
    collected = envs * (config.unroll_length * costs.row + costs.sizes.physics)
    return {
        "replay": round(4 * seeds * rows * costs.row),
        "index": round(4 * seeds * index),
        "rest": round(4 * seeds * (peak - index + costs.agent + collected)),
    }


def seeds_that_fit(config: Config, costs: Costs, num_devices: int, memory: int | None) -> int:
    """How many of the seeds to train together, in even batches that divide among the devices: as many as the plan fits
    into the devices' `memory`, all if that is unknown, the fewest if not even they fit."""

    def divides(size: int) -> bool:
        shares = [mesh_shape(seeds, num_devices)[1] for seeds in (size, config.num_seeds % size or size)]
        return not any(getattr(config, flag) % share for flag in DIVIDED_FLAGS for share in shares)

    def fits(size: int) -> bool:
        batch = dataclasses.replace(config, num_seeds=size)
        return memory is None or planned_bytes(batch, costs, num_devices) <= _USABLE * memory

    even = [-(-config.num_seeds // batches) for batches in range(1, config.num_seeds + 1)]
    candidates = [size for size in even if divides(size)] or even[:1]  # `make_mesh` says why none would do
    return next((size for size in candidates if fits(size)), candidates[-1])


def planned_bytes(config: Config, costs: Costs, num_devices: int) -> int:
    """The sum of `memory_plan` when the run is spread over so many devices."""
    shape = mesh_shape(config.num_seeds, num_devices)
    return sum(memory_plan(config, derive_schedule(config), costs, shape).values())


def smaller_plans(config: Config, costs: Costs, num_devices: int, memory: int | None) -> str:
    """What to lower, and to what, when `config` did not fit into the devices' `memory`: each offer alone is enough by
    the plan, which it brings to 90 % of the memory, or to 70 % of itself if it should have fitted already."""
    planned = planned_bytes(config, costs, num_devices)
    most = min(_USABLE * memory if memory else planned, 0.7 * planned)
    offers, flags = [], [flag for flag in _MEMORY_FLAGS if hasattr(config, flag)]
    for flag, lowered in (("seed_batch", "num_seeds"), *zip(flags, flags, strict=True)):
        for share in range(15, 0, -1):
            smaller = dataclasses.replace(config, **{lowered: getattr(config, lowered) * share // 16})
            if _is_legal(smaller) and planned_bytes(smaller, costs, num_devices) <= most:
                offers.append(f"--{flag} to {getattr(smaller, lowered)}")
                break
    offers = offers or [f"several of {', '.join(f'--{flag}' for flag in flags)}"]
    available = f" of the {_bytes(memory)} that a device has" if memory else ""
    return f"the plan takes {_bytes(planned)}{available}; lower {' or '.join(offers)}"


def out_of_memory(config: Config, error: Exception) -> str:
    """The line that says what to lower, and by how much, or how a physics engine failed; others are raised again."""
    if FAILURES:
        return error_line(error)
    if not isinstance(error, MemoryError) and not re.search("RESOURCE_EXHAUSTED|[Oo]ut of memory", str(error)):
        raise error
    costs = measure(config, make_env(config.env_name, config.backend))
    lower = smaller_plans(config, costs, devices.count(config), devices.memory_per_device())
    reason = next(iter(str(error).splitlines()), type(error).__name__)
    return f"error: out of memory; {lower} ({reason})"


def _is_legal(config: Config) -> bool:
    try:
        config.check()
    except ConfigError:
        return False
    return True


def describe_plan(config: Config, schedule: Schedule, costs: Costs, mesh_shape: tuple[int, int] = (1, 1)) -> str:
    """The plan of a run as aligned text: steps, updates, evaluations, memory."""
    sizes = costs.sizes
    memory = memory_plan(config, schedule, costs, mesh_shape)
    updates_per_env_step = schedule.updates_per_training_step / schedule.env_steps_per_training_step
    lengths = sorted(set(schedule.epoch_lengths))
    groups, share = mesh_shape
    each = " on each device" if groups * share > 1 else ""
    lines = {
        "env": f"{config.env_name}: state {sizes.state}, goal {sizes.goal}, action {sizes.action}",
        "env steps": f"{schedule.total_env_steps:,} in {config.num_envs:,} envs (asked for {config.num_timesteps:,})",
        "prefill": f"{schedule.prefill_env_steps:,} env steps, {schedule.prefill_steps} unrolls",
        "training steps": f"{schedule.training_steps:,} of {schedule.env_steps_per_training_step:,} env steps",
        "updates per training step": f"{schedule.updates_per_training_step:,} ({schedule.total_updates:,} in all)",
        "update to data ratio": f"1 update per {1 / updates_per_env_step:.1f} env steps",
        "epochs": f"{len(schedule.epoch_lengths)} of {' or '.join(map(str, lengths))} training steps",
        "evaluations": f"{len(schedule.eval_at)} of {config.num_eval_envs} episodes",
        "replay": f"{schedule.replay_rows:,} rows per env, {_bytes(memory['replay'])}{each}",
        "estimated peak memory": f"{_bytes(sum(memory.values()))}{each}",
    }
    if config.backend is not None:
        own = own_backend(config.env_name)
        lines["physics"] = config.backend + (f" instead of its own, {own}" if config.backend != own else "")
        lines["physics"] += ", compiled at every start" if config.backend == "mujoco" else ""
    if groups * share > 1:
        spread = f", {config.num_seeds // groups} of {config.num_seeds} seeds on each" if config.num_seeds > 1 else ""
        parts = f"{config.num_envs // share:,} envs and {config.batch_size // share:,} rows of a batch on each"
        lines["devices"] = f"{groups} x {share}{spread}; {parts}"
    if len(schedule.epoch_lengths) < config.num_evals - 1:
        lines["evaluations"] += f" (asked for {config.num_evals}; there are fewer training steps than that)"
    width = max(map(len, lines))
    return "\n".join(f"  {name:<{width}}  {text}" for name, text in lines.items())


def _bytes(count: float) -> str:
    return f"{count / 2**30:.2f} GiB" if count >= 2**30 else f"{count / 2**20:.1f} MiB"
