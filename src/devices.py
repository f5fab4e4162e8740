"""Many devices: which of them holds what, and what the processes of a run on several hosts tell each other.

The devices form a mesh of two axes: `SEED_AXIS`, over which the seeds are spread, and `ENV_AXIS`, over which the
environments, the replay's columns and the batch of each seed are split. Parameters are whole on every device of their
seed. All of it is said by the shardings of a few arrays; the program is the same on one device and on many.
"""

import contextlib
import functools
import math
import os
import re
import resource
import socket
import time
import zlib
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from envs.jax_platform import all_devices
from envs.physics import num_cores
from utils import AUTO, Config, ConfigError

SEED_AXIS, ENV_AXIS = "seeds", "envs"
# What the devices of one seed share out evenly.
DIVIDED_FLAGS = ("num_envs", "batch_size", "num_eval_envs")
# Arrays that several processes hold are collected in pieces of this size, so that none needs the whole on its device.
_PIECE_BYTES = 64 * 2**20


def count(config: Config) -> int:
    """How many devices a run uses."""
    return config.num_devices or jax.device_count()


def spread_over_cores(config: Config) -> None:
    """Makes each of several cores a device of its own, if the seeds run on a CPU: as many as divide them evenly.

    JAX by itself makes one device of all cores, whose threads gain little inside operations of a learner's size. Left
    as it is where the user has said how many devices there are, and in a process that has already used JAX.
    """
    counted = "xla_force_host_platform_device_count" in os.environ.get("XLA_FLAGS", "")
    if counted or jax.config.jax_num_cpu_devices > 0 or config.num_devices or config.coordinator_address:
        return
    together = math.gcd(config.num_seeds, config.seed_batch)  # a --seed_batch of 0 leaves all seeds
    count = max(n for n in range(1, min(together, num_cores()) + 1) if together % n == 0)
    if count > 1:
        with contextlib.suppress(RuntimeError):  # JAX is in use
            jax.config.update("jax_num_cpu_devices", count)


def mesh_shape(num_seeds: int, num_devices: int) -> tuple[int, int]:
    """Groups of devices that the seeds are spread over, and devices in a group, which share the envs of each seed."""
    groups = math.gcd(num_seeds, num_devices)
    return groups, num_devices // groups


def make_mesh(config: Config) -> Mesh:
    """The devices of a run.

    Raises:
      ConfigError: there are fewer devices than asked for, or the sizes of the run do not divide among them.
    """
    devices, num_devices = all_devices(), count(config)
    if num_devices > len(devices):
        raise ConfigError(f"--num_devices {num_devices}: there are {len(devices)}")
    if num_devices < len(devices) and jax.process_count() > 1:
        raise ConfigError(f"--num_devices {num_devices}: several processes use all of their {len(devices)} devices")
    for flag in DIVIDED_FLAGS:
        _require_divisible(config, flag, num_devices)
    shape = mesh_shape(config.num_seeds, num_devices)
    return Mesh(np.array(devices[:num_devices]).reshape(shape), (SEED_AXIS, ENV_AXIS))


def _require_divisible(config: Config, flag: str, num_devices: int) -> None:
    size, (groups, share) = getattr(config, flag), mesh_shape(config.num_seeds, num_devices)
    if size % share == 0:
        return
    legal = [n for n in (size // share * share, -(-size // share) * share) if n]
    divisor = math.gcd(*(getattr(config, each) for each in DIVIDED_FLAGS))
    fewer = max(n for n in range(1, num_devices) if divisor % mesh_shape(config.num_seeds, n)[1] == 0)
    spread = f" ({groups} groups of devices for {config.num_seeds} seeds)" if groups > 1 else ""
    raise ConfigError(
        f"--{flag} {size} does not divide among the {share} devices of a seed{spread}: "
        f"{' or '.join(map(str, legal))} would, or --num_devices {fewer}"
    )


def sharding(mesh: Mesh, *axes: str | None) -> NamedSharding:
    """Splits the leading axes of an array over the named axes of the mesh; the rest is whole on every device."""
    return NamedSharding(mesh, PartitionSpec(*axes))


def place(array: np.ndarray, where: NamedSharding | None) -> jax.Array:
    """Copies an array that every process has to the devices; each holds its own part only."""
    if where is None:
        return jnp.array(array)
    return jax.make_array_from_callback(array.shape, where, lambda index: jnp.array(array[index]))


def zeros_like(tree: Any) -> Any:
    """Zeros of the same shapes, on the same devices."""
    return jax.tree.map(lambda leaf: place(np.zeros(leaf.shape, leaf.dtype), leaf.sharding), tree)


def fetch(tree: Any) -> Any:
    """All of `tree` as NumPy arrays. With several processes, all must call it at the same moment."""
    return jax.device_get(jax.tree.map(lambda leaf: leaf if _is_readable(leaf) else _collect(leaf), tree))


def _is_readable(leaf: Any) -> bool:
    return not isinstance(leaf, jax.Array) or leaf.is_fully_addressable or leaf.is_fully_replicated


def _collect(leaf: jax.Array) -> np.ndarray:
    """An array that other processes hold parts of."""
    spec = leaf.sharding.spec
    unsplit = [axis for axis in range(leaf.ndim) if axis >= len(spec) or spec[axis] is None]
    axis = max(unsplit, key=lambda axis: leaf.shape[axis], default=0)
    length = leaf.shape[axis]
    step = min(length, max(1, _PIECE_BYTES * length // max(leaf.nbytes, 1))) if unsplit else length
    cut = _replicated_slice(leaf.sharding.mesh, step, axis)
    collected = np.empty(leaf.shape, leaf.dtype)
    for start in range(0, length, max(step, 1)):
        start = min(start, length - step)
        collected[(slice(None),) * axis + (slice(start, start + step),)] = cut(leaf, np.int32(start))
    return collected


@functools.cache
def _replicated_slice(mesh: Mesh, length: int, axis: int) -> Callable[[jax.Array, np.int32], jax.Array]:
    cut = functools.partial(jax.lax.dynamic_slice_in_dim, slice_size=length, axis=axis)
    return jax.jit(cut, out_shardings=sharding(mesh))


# Several processes.


def join(config: Config) -> None:
    """Meets the other processes of a run on several hosts, before anything else asks JAX for its devices.

    Raises:
      ConfigError: they cannot be found, or the flags do not say where, or JAX finds no device.
    """
    _require_processes(config)
    if config.coordinator_address is not None:
        _meet(config, config.coordinator_address)
    all_devices()


def _meet(config: Config, address: str) -> None:
    """Joins the run whose first process is at `address`."""
    explicit = (
        {}
        if address == AUTO
        else {"coordinator_address": address, "num_processes": config.num_processes, "process_id": config.process_id}
    )
    if explicit and config.process_id:
        find_coordinator(address)
    jax.config.update("jax_enable_preemption_service", False)  # it would take SIGTERM for itself
    try:
        jax.distributed.initialize(**explicit)
    except Exception as error:  # also the KeyError of a launcher that has set half of its variables
        said = " ".join(str(error).split())[:300]
        raise ConfigError(f"--coordinator_address {address}: {type(error).__name__}: {said}") from None


def _require_processes(config: Config) -> None:
    """Raises ConfigError for flags of several processes that do not fit together."""
    if config.coordinator_address in (None, AUTO) and (config.num_processes > 1 or config.process_id):
        raise ConfigError(
            f"--num_processes {config.num_processes} and --process_id {config.process_id} need --coordinator_address "
            f"HOST:PORT, not {config.coordinator_address}"
        )
    if config.process_id >= config.num_processes:
        raise ConfigError(
            f"--process_id {config.process_id} is out of range: with --num_processes {config.num_processes} at most "
            f"{config.num_processes - 1}"
        )
    if config.coordinator_address not in (None, AUTO):
        address = re.fullmatch(r".+:(\d+)", config.coordinator_address)
        if address is None or int(address[1]) > 65535:
            raise ConfigError(
                f"--coordinator_address {config.coordinator_address!r} is neither HOST:PORT (a port up to 65535) nor "
                f"{AUTO}"
            )


def find_coordinator(address: str, seconds: float = 300.0) -> None:
    """Waits until process 0 listens at HOST:PORT. JAX would end the program if nobody ever does.

    Raises:
      ConfigError: there is no such host, or nobody has answered after so many seconds.
    """
    host, _, port = address.rpartition(":")
    deadline = time.monotonic() + seconds
    while True:
        try:
            socket.create_connection((host.strip("[]"), int(port)), timeout=5).close()
            return
        except OSError as error:
            if isinstance(error, socket.gaierror) or time.monotonic() > deadline:
                raise ConfigError(f"--coordinator_address {address}: process 0 does not answer: {error}") from None
        time.sleep(0.2)


def is_first_process() -> bool:
    """Whether this is the process that logs and saves."""
    return jax.process_index() == 0


def of_first_process(value: float) -> float:
    """The value that the first process has: for what depends on its clock."""
    return value if jax.process_count() == 1 else float(multihost_utils.broadcast_one_to_all(np.float32(value)))


def in_any_process(*flags: bool) -> tuple[bool, ...]:
    """Which of the flags are set in one process at least."""
    if jax.process_count() == 1:
        return flags
    return tuple(bool(flag) for flag in multihost_utils.process_allgather(np.array(flags)).any(axis=0))


def same_in_all_processes(text: str) -> bool:
    """Whether all processes call this with one and the same text."""
    if jax.process_count() == 1:
        return True
    checksums = multihost_utils.process_allgather(np.uint32(zlib.crc32(text.encode())))
    return len(set(checksums.tolist())) == 1


def memory_per_device() -> int | None:
    """Bytes that the first device offers a program; on the CPU its share of the machine's memory. None if unknown."""
    device = jax.local_devices()[0]
    if device.platform == "cpu":
        machine = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        allowed, _ = resource.getrlimit(resource.RLIMIT_AS)
        return min([machine, *([allowed] if allowed > 0 else [])]) // jax.local_device_count()
    return (device.memory_stats() or {}).get("bytes_limit")
