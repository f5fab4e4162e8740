"""What a run will take, known before anything is compiled: memory on each device, the spread of seeds, the plan."""

import dataclasses
import itertools
import math

from envs.base import Sizes
from src.losses import TABLES_OF_DIFFERENCES
from utils import Config, ConfigError, Schedule, derive_schedule

# What the devices of one seed share out evenly.
DIVIDED_FLAGS = ("num_envs", "batch_size", "num_eval_envs")

# What of a device's memory a plan may take, and the flags that it mostly depends on.
_USABLE = 0.9
_MEMORY_FLAGS = ("max_replay_size", "num_envs", "batch_size")


def memory_plan(
    config: Config, schedule: Schedule, sizes: Sizes, mesh_shape: tuple[int, int] = (1, 1)
) -> dict[str, int]:
    """Estimated bytes of a run on each of its devices: replay, its index while sampling, and all else.

    Args:
      mesh_shape: groups of devices that the seeds are spread over, devices in a group.
    """
    groups, share = mesh_shape
    seeds, envs, batch = config.num_seeds / groups, config.num_envs / share, config.batch_size / share
    rows, step = schedule.replay_rows * envs, sizes.state + sizes.action + 1
    parameters = parameter_count(config, sizes)
    # What follows was fitted to the memory analysis of compiled programs; the tests compare them. Indexing the ring,
    # drawing from it and learning come one after the other, so that the largest of them counts.
    pairs = schedule.updates_per_training_step * config.batch_size
    table = 10 + (config.repr_dim if config.energy_fn in TABLES_OF_DIFFERENCES else 0)
    activations = batch * (7 * config.h_dim * config.n_hidden + 6 * config.repr_dim + table * config.batch_size)
    index = 3 * rows + (rows * share / 4 if share > 1 else 0)  # each device is told which rows of all can be drawn
    # While it collects, a run holds states for the episodes that begin (`VectorEnv.pool_size`), and a working copy.
    pool = (config.unroll_length * config.action_repeat // config.episode_length + 3) * envs * sizes.physics
    peak = max(index, rows + 12 * pairs, 2 * pairs + 0.6 * parameters + activations, pool)
    return {
        "replay": round(4 * seeds * rows * step),
        "index": round(4 * seeds * index),
        "rest": round(
            4 * seeds * (peak - index + 3 * parameters + envs * (config.unroll_length * step + sizes.physics))
        ),
    }


def parameter_count(config: Config, sizes: Sizes) -> int:
    """Parameters of actor and encoders without the few that `use_ln` adds."""

    def weights(inputs: int, outputs: int) -> int:
        widths = [inputs, *[config.h_dim] * config.n_hidden, outputs]
        return sum(fan_in * fan_out + fan_out for fan_in, fan_out in itertools.pairwise(widths))

    encoders = weights(sizes.state + sizes.action, config.repr_dim) + weights(sizes.goal, config.repr_dim)
    return encoders + weights(sizes.state + sizes.goal, 2 * sizes.action)


def seeds_that_fit(config: Config, sizes: Sizes, num_devices: int, memory: int | None) -> int:
    """How many of the seeds to train together, in even batches that divide among the devices: as many as the plan fits
    into the devices' `memory`, all if that is unknown, the fewest if not even they fit."""

    def divides(size: int) -> bool:
        shares = [mesh_shape(seeds, num_devices)[1] for seeds in (size, config.num_seeds % size or size)]
        return not any(getattr(config, flag) % share for flag in DIVIDED_FLAGS for share in shares)

    def fits(size: int) -> bool:
        batch = dataclasses.replace(config, num_seeds=size)
        return memory is None or planned_bytes(batch, sizes, num_devices) <= _USABLE * memory

    even = [-(-config.num_seeds // batches) for batches in range(1, config.num_seeds + 1)]
    candidates = [size for size in even if divides(size)] or even[:1]  # `make_mesh` says why none would do
    return next((size for size in candidates if fits(size)), candidates[-1])


def planned_bytes(config: Config, sizes: Sizes, num_devices: int) -> int:
    """The sum of `memory_plan` when the run is spread over so many devices."""
    shape = mesh_shape(config.num_seeds, num_devices)
    return sum(memory_plan(config, derive_schedule(config), sizes, shape).values())


def mesh_shape(num_seeds: int, num_devices: int) -> tuple[int, int]:
    """Groups of devices that the seeds are spread over, and devices in a group, which share the envs of each seed."""
    groups = math.gcd(num_seeds, num_devices)
    return groups, num_devices // groups


def smaller_plans(config: Config, sizes: Sizes, num_devices: int, memory: int | None) -> str:
    """What to lower, and to what, when `config` did not fit into the devices' `memory`: each offer alone is enough by
    the plan, which it brings to 90 % of the memory, or to 70 % of itself if it should have fitted already."""
    planned = planned_bytes(config, sizes, num_devices)
    most = min(_USABLE * memory if memory else planned, 0.7 * planned)
    offers = []
    for flag, lowered in (("seed_batch", "num_seeds"), *zip(_MEMORY_FLAGS, _MEMORY_FLAGS, strict=True)):
        for share in range(15, 0, -1):
            smaller = dataclasses.replace(config, **{lowered: getattr(config, lowered) * share // 16})
            if _is_legal(smaller) and planned_bytes(smaller, sizes, num_devices) <= most:
                offers.append(f"--{flag} to {getattr(smaller, lowered)}")
                break
    offers = offers or [f"several of {', '.join(f'--{flag}' for flag in _MEMORY_FLAGS)}"]
    available = f" of the {_bytes(memory)} that a device has" if memory else ""
    return f"the plan takes {_bytes(planned)}{available}; lower {' or '.join(offers)}"


def _is_legal(config: Config) -> bool:
    try:
        config.check()
    except ConfigError:
        return False
    return True


def describe_plan(config: Config, schedule: Schedule, sizes: Sizes, mesh_shape: tuple[int, int] = (1, 1)) -> str:
    """The plan of a run as aligned text: steps, updates, evaluations, memory."""
    memory = memory_plan(config, schedule, sizes, mesh_shape)
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
