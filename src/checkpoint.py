"""On disk: parameters as a plain .npz, and checkpoints of the whole state.

A checkpoint is a folder RUN_DIR/checkpoints/ENV_STEPS/ with `state/`, the arrays by name as Orbax writes them, and
`manifest.json`: format version, plain numbers, size and checksum of every file. No pickle anywhere.
"""

import errno
import json
import logging
import os
import shutil
import threading
import time
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from src.devices import fetch, place
from src.output import survives
from utils import ConfigError, replacing

PARAMS_FILE = "params.npz"
BEST_PARAMS_FILE = "best_params.npz"
FORMAT = 2
# What file systems answer that have no locks, or no fsync of folders.
NOT_OFFERED = {errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOLCK, errno.EINVAL}


def _named_leaves(tree: Any) -> dict[str, Any]:
    leaves, _ = jax.tree_util.tree_flatten_with_path(tree)
    return {jax.tree_util.keystr(path, simple=True, separator="/"): leaf for path, leaf in leaves}


def _learned(agent_state: Any) -> dict[str, Any]:
    """What acting and judging need: parameters and normaliser, not the optimiser."""
    return {"params": agent_state.params, "normalizer": agent_state.normalizer}


def learned_arrays(agent_state: Any) -> dict[str, np.ndarray]:
    """What a params.npz holds."""
    return _named_leaves(jax.device_get(_learned(agent_state)))


def save_params(path: Path, agent_state: Any) -> None:
    """Writes actor, critic, temperature and normaliser to `path`, whole or not at all."""
    with replacing(path) as temporary, temporary.open("wb") as file:
        np.savez(file, **learned_arrays(agent_state))


def load_params(path: Path, example: Any) -> Any:
    """Reads parameters into the structure of `example` (arrays or shapes).

    Raises:
      ConfigError: the file is missing, damaged, or of other shapes.
    """
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
            stored = dict(arrays)
    except Exception as error:  # numpy raises half a dozen kinds for a damaged archive
        raise ConfigError(f"{path} holds no readable parameters ({type(error).__name__}: {error})") from None
    expected = _named_leaves(_learned(example))
    for name, leaf in expected.items():
        if name not in stored or stored[name].shape != leaf.shape:
            found = stored[name].shape if name in stored else "nothing"
            raise ConfigError(f"{path}: {name} should have shape {leaf.shape}, found {found}")
    leaves = [jnp.asarray(stored[name], leaf.dtype) for name, leaf in expected.items()]
    learned = jax.tree.unflatten(jax.tree.structure(_learned(example)), leaves)
    return example.replace(**learned)


# Checkpoints. A tree becomes a flat dict of arrays by name, so that no type of ours or of a library is on disk.


def host_arrays(tree: Any) -> dict[str, np.ndarray]:
    """Copies of all leaves by name; random keys as their numbers. All processes of a run must call it together."""
    leaves = {name: jax.random.key_data(leaf) if _is_key(leaf) else leaf for name, leaf in _named_leaves(tree).items()}
    # A true copy: on the CPU `device_get` may hand out the memory that the next training step overwrites.
    return {name: np.array(fetch(leaf)) for name, leaf in leaves.items()}


def device_tree(arrays: dict[str, np.ndarray], example: Any) -> Any:
    """The tree of `example` (arrays or shapes) with the values of `arrays`, on the devices that `example` names; the
    inverse of `host_arrays`.

    Raises:
      ValueError: an array is missing or of another shape.
    """
    leaves = []
    for name, leaf in _named_leaves(example).items():
        plain = jax.eval_shape(jax.random.key_data, leaf) if _is_key(leaf) else leaf
        empty = np.zeros(plain.shape) if not plain.size else None  # is not stored
        found = arrays.get(name, empty)
        if found is None or found.shape != plain.shape:
            raise ValueError(
                f"{name} should have shape {plain.shape}, found {'nothing' if found is None else found.shape}"
            )
        value = place(np.asarray(found, plain.dtype), leaf.sharding)
        leaves.append(jax.random.wrap_key_data(value) if _is_key(leaf) else value)
    return jax.tree.unflatten(jax.tree.structure(example), leaves)


def _is_key(leaf: Any) -> bool:
    return jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def list_checkpoints(run_dir: Path) -> list[Path]:
    """The checkpoints of a run, oldest first; the names of unfinished ones begin with a dot."""
    return sorted(path for path in (run_dir / "checkpoints").glob("[!.]*") if path.is_dir())


def read_manifest(checkpoint: Path) -> dict[str, Any]:
    """What a checkpoint says of itself: `position`, `wandb_run_id`, `replay`, `files` and more.

    Raises:
      ConfigError: it is none of ours, or of a newer format; names the one before it.
    """
    try:
        manifest = json.loads((checkpoint / "manifest.json").read_text())
        version, _ = manifest["format"], (manifest["position"], manifest["files"].items(), manifest["replay"])
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise _unusable(checkpoint, f"no readable manifest.json ({type(error).__name__}: {error})") from None
    if version != FORMAT:
        raise _unusable(checkpoint, f"its format is {version}, this version of the code reads {FORMAT}")
    return manifest


def read_arrays(checkpoint: Path, manifest: dict[str, Any]) -> dict[str, np.ndarray]:
    """The arrays of a checkpoint, once every file has proved to be what was written.

    Raises:
      ConfigError: a file is missing or damaged; names the checkpoint before this one.
    """
    for name, (size, checksum) in manifest["files"].items():
        file = checkpoint / "state" / name
        if not file.is_file() or file.stat().st_size != size:
            found = f"{file.stat().st_size:,} bytes" if file.is_file() else "nothing"
            raise _unusable(checkpoint, f"state/{name} should have {size:,} bytes, found {found}")
        if _checksum(file) != checksum:
            raise _unusable(checkpoint, f"state/{name} is damaged")
    try:
        return _orbax().restore((checkpoint / "state").absolute())
    except Exception as error:  # a file that the manifest of another program lists
        raise _unusable(checkpoint, f"{type(error).__name__}: {error}") from None


def _orbax() -> Any:
    """Orbax for whole arrays that this process has: it must not wait for the other processes of a run, which have
    nothing to write."""
    import orbax.checkpoint as orbax

    logging.getLogger("absl").setLevel(logging.CRITICAL)  # what fails is raised; Orbax also logs it, with tracebacks
    alone = orbax.options.MultiprocessingOptions(
        primary_host=jax.process_index(),
        active_processes={jax.process_index()},
        barrier_sync_key_prefix=f"process{jax.process_index()}",
    )
    # Most of a checkpoint is floats of no pattern: to compress them takes three times as long and saves a tenth.
    handler = orbax.PyTreeCheckpointHandler(multiprocessing_options=alone, use_compression=False)
    return orbax.Checkpointer(handler, multiprocessing_options=alone)


def _unusable(checkpoint: Path, reason: str) -> ConfigError:
    before = [path for path in list_checkpoints(checkpoint.parent.parent) if path.name < checkpoint.name]
    offer = f"the one before it: --resume {before[-1]}" if before else "there is none before it"
    return ConfigError(f"checkpoint {checkpoint} cannot be used: {' '.join(reason.split())}; {offer}")


def _checksum(path: Path) -> int:
    checksum = 0
    with path.open("rb") as file:
        while block := file.read(1 << 24):
            checksum = zlib.crc32(block, checksum)
    return checksum


def write_checkpoint(run_dir: Path, arrays: dict[str, np.ndarray], manifest: dict[str, Any]) -> Path:
    """Writes a checkpoint, whole or not at all, under the next free name; returns its folder.

    Raises:
      Exception: whatever the disk or Orbax says.
    """
    name = f"{manifest['env_steps']:012d}"
    taken = {path.name for path in list_checkpoints(run_dir)}
    name = next(n for n in (name, *(f"{name}_{i:03d}" for i in range(2, 1000))) if n not in taken)
    folder = run_dir / "checkpoints"
    temporary = folder / f".{name}"
    shutil.rmtree(temporary, ignore_errors=True)
    try:
        temporary.mkdir(parents=True)
        stored = {key: array for key, array in arrays.items() if array.size}  # Orbax refuses empty arrays
        _orbax().save((temporary / "state").absolute(), stored)
        state_files = [path for path in sorted((temporary / "state").rglob("*")) if path.is_file()]
        files = {
            str(path.relative_to(temporary / "state")): [path.stat().st_size, _checksum(path)] for path in state_files
        }
        manifest = {"format": FORMAT, "jax": jax.__version__, **manifest, "files": files}
        (temporary / "manifest.json").write_text(json.dumps(manifest, indent=2) + "\n")
        for path in [*temporary.rglob("*"), temporary]:
            _sync(path)
        temporary.rename(folder / name)
        _sync(folder)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)  # half a checkpoint must not keep a full disk full
        raise
    return folder / name


def _sync(path: Path) -> None:
    """Waits until a file or a folder's list of names is on the disk, where the file system offers that."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in NOT_OFFERED:
            raise
    finally:
        os.close(descriptor)


class CheckpointWriter:
    """Writes checkpoints beside training, one at a time.

    Attributes:
      complete: whether the last one was written.
    """

    def __init__(self, announce: Callable[[str], None]):
        """`announce` receives the size, time and place of each checkpoint as a line."""
        self.announce = announce
        self.complete = True
        self._thread: threading.Thread | None = None

    def save(self, runs: dict[Path, tuple[dict[str, np.ndarray], dict[str, Any]]]) -> None:
        """Starts to write the arrays and the manifest of each run folder, after waiting for the checkpoint before."""
        self.wait()
        self._thread = threading.Thread(target=self._write, args=(runs,), name="checkpoint")
        self._thread.start()

    def wait(self) -> None:
        """Returns when no checkpoint is being written."""
        if self._thread is not None:
            self._thread.join()

    def _write(self, runs: dict[Path, tuple[dict[str, np.ndarray], dict[str, Any]]]) -> None:
        started = time.monotonic()
        written: list[Path] = []

        def write() -> None:
            for run_dir, (arrays, manifest) in runs.items():
                written.append(write_checkpoint(run_dir, arrays, manifest))

        self.complete = survives("checkpoint", write)
        if not self.complete:
            return
        # Seeds trained together resume at one env step: no old checkpoint is removed before all new ones are there.
        for new in written:
            for path in new.parent.iterdir():
                if path != new:
                    shutil.rmtree(path, ignore_errors=True)
        size = sum(array.nbytes for arrays, _ in runs.values() for array in arrays.values())
        seconds = time.monotonic() - started
        self.announce(f"checkpoint  {size / 2**20:,.1f} MiB in {seconds:.1f} s: {', '.join(map(str, written))}\n")
