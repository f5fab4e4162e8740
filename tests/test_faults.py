"""Faults, each caused for real: what is kept, what is said, how the run ends."""

import contextlib
import dataclasses
import errno
import io
import json
import math
import os
import re
import resource
import shlex
import shutil
import signal
import socketserver
import stat
import subprocess
import sys
import threading
import time
from pathlib import Path

import durability
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import ProbeEnv, make_probe_program, registered, slow, tiny
from durability import arguments, at_moment, read_until, run_dirs, start_process
from hypothesis import given, settings
from hypothesis import strategies as st

import training
from envs import ENVS
from envs.wrappers import VectorEnv
from scripts import crash_test
from src import checkpoint, devices, output, process, run_folder
from src.algorithms.crl import CRLConfig
from src.checkpoint import CheckpointWriter, list_checkpoints, read_arrays, read_manifest, write_checkpoint
from src.command_line import parse_config
from src.loop import run
from src.losses import CONTRASTIVE_LOSSES, ENERGY_FNS
from src.networks import NETWORKS
from src.output import read_rows
from src.plan import describe_plan, measure, planned_bytes
from src.registries import REGISTRIES
from utils import FAILED, IN_USE, REFUSED, Choice, derive_schedule, fact, plain_type

pytestmark = pytest.mark.usefixtures("probe_registered", "compiled_once")


# The disk.


@pytest.fixture
def small_disk(tmp_path):
    """A disk of 1 MB, mounted for real."""
    place = tmp_path / "disk"
    place.mkdir()
    answer = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(place)], capture_output=True)
    if answer.returncode:
        pytest.skip(f"cannot mount a tmpfs: {answer.stderr.decode().strip()}")
    yield place
    subprocess.run(["umount", "-l", str(place)], check=True)


def fill(disk):
    with contextlib.suppress(OSError), (disk / "filler").open("wb", buffering=0) as file:
        while True:
            file.write(bytes(1024))


def test_a_disk_that_is_full_for_a_while_loses_nothing(monkeypatch, small_disk, capsys):
    at_moment(monkeypatch, 0, lambda recorder: fill(small_disk))
    at_moment(monkeypatch, 5, lambda recorder: (small_disk / "filler").unlink())
    assert training.main(arguments(tiny(output_dir=str(small_disk), num_evals=5))) in (0, 1)
    assert "training continues (OSError: [Errno 28]" in capsys.readouterr().err
    (run_dir,) = run_dirs(small_disk)
    assert len(read_rows(run_dir / "metrics.csv", 10**9)) == 5


def test_a_disk_that_stays_full_ends_in_status_1(monkeypatch, small_disk, capsys):
    at_moment(monkeypatch, 0, lambda recorder: fill(small_disk))
    assert training.main(arguments(tiny(output_dir=str(small_disk)))) == training.FAILED
    error = capsys.readouterr().err
    assert "not everything could be written" in error and "Traceback" not in error
    (run_dir,) = run_dirs(small_disk)
    assert [row["env_steps"] for row in read_rows(run_dir / "metrics.csv", 10**9)] == ["0"]
    assert [path.name for path in list_checkpoints(run_dir)] == ["000000000000"]


def test_a_disk_without_room_for_a_checkpoint_costs_a_line_each(tmp_path):
    """Orbax would log each failure with its tracebacks besides."""
    process = start_process(tiny(output_dir=str(tmp_path)))
    resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (4096, 4096))
    output = process.communicate(timeout=120)[0]
    assert process.returncode == FAILED
    assert output.count("warning: checkpoint failed, training continues") == 3 and "ERROR:absl" not in output
    (run_dir,) = run_dirs(tmp_path)
    assert len(read_rows(run_dir / "metrics.csv", 10**9)) == 3 and not list_checkpoints(run_dir)


def test_a_disk_that_turns_read_only_is_survived(monkeypatch, small_disk, capsys):
    def change(flag):
        return lambda recorder: subprocess.run(["chattr", "-R", flag, str(small_disk)], check=True)

    if subprocess.run(["chattr", "+i", str(small_disk)], capture_output=True).returncode:
        pytest.skip("cannot make a folder immutable here")
    change("-i")(None)
    at_moment(monkeypatch, 1, change("+i"))
    at_moment(monkeypatch, 4, change("-i"))
    status = training.main(arguments(tiny(output_dir=str(small_disk), num_evals=5)))
    change("-i")(None)
    assert status == 0
    assert "training continues (PermissionError" in capsys.readouterr().err
    (run_dir,) = run_dirs(small_disk)
    assert len(read_rows(run_dir / "metrics.csv", 10**9)) == 5


def test_a_folder_removed_during_the_run_is_made_again(monkeypatch, tmp_path, tiny_run):
    at_moment(monkeypatch, 1, lambda recorder: shutil.rmtree(recorder.runs[0].run_dir))
    assert training.main(arguments(tiny(output_dir=str(tmp_path)))) == 0
    (run_dir,) = (path.parent for path in tmp_path.glob("*/*/*/metrics.csv"))
    assert crash_test.timeless_rows(run_dir / "metrics.csv") == crash_test.timeless_rows(tiny_run / "metrics.csv")
    assert len(list_checkpoints(run_dir)) == 1


def test_two_processes_do_not_share_a_run_folder(tmp_path, capsys):
    config = tiny(output_dir=str(tmp_path), num_timesteps=10**9, num_evals=2)
    process = start_process(config)
    read_until(process, "checkpoint  ")
    try:
        assert training.main(arguments(config, "--resume")) == IN_USE
        error = capsys.readouterr().err
        assert error.count("\n") == 1 and "is being trained by another process" in error
    finally:
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=60)
    assert process.returncode == training.INTERRUPTED


def failing(number, only=lambda *args: True):
    """A call that fails as a file system does that does not offer it, or that is broken."""

    def fail(*args):
        if only(*args):
            raise OSError(number, os.strerror(number))

    return fail


@pytest.mark.parametrize("number", [errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOLCK, errno.EINVAL])
def test_a_disk_without_locks_costs_a_warning(monkeypatch, tmp_path, capsys, number):
    monkeypatch.setattr(run_folder.fcntl, "flock", failing(number))
    assert training.main(arguments(tiny(output_dir=str(tmp_path), num_evals=1))) == 0
    error = capsys.readouterr().err
    assert error.startswith("warning: no locks here (") and error.count("\n") == 1
    assert len(run_dirs(tmp_path)) == 1


def test_a_lock_that_fails_is_refused_and_leaves_no_folder(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(run_folder.fcntl, "flock", failing(errno.EIO))
    assert training.main(arguments(tiny(output_dir=str(tmp_path), num_seeds=2))) == REFUSED
    error = capsys.readouterr().err
    assert error.startswith("error: cannot lock") and error.count("\n") == 1
    assert not list(tmp_path.glob("*/*/*"))


def is_folder(descriptor):
    return stat.S_ISDIR(os.fstat(descriptor).st_mode)


@pytest.mark.parametrize(("number", "kept"), [(errno.EINVAL, True), (errno.ENOSYS, True), (errno.EIO, False)])
def test_folders_that_cannot_be_synchronised_keep_checkpoints(monkeypatch, tmp_path, capsys, number, kept):
    """Some network disks offer that for files alone; a broken disk is another matter."""
    monkeypatch.setattr(checkpoint.os, "fsync", failing(number, is_folder))
    assert training.main(arguments(tiny(output_dir=str(tmp_path), num_evals=1))) == (0 if kept else FAILED)
    assert ("warning: checkpoint failed" in capsys.readouterr().err) != kept
    (run_dir,) = run_dirs(tmp_path)
    assert len(list_checkpoints(run_dir)) == kept


# What is printed is no record.


@contextlib.contextmanager
def full_disk():
    with open("/dev/full", "w") as full:
        yield {"stdout": full, "stderr": full}, lambda process: None


@contextlib.contextmanager
def closed_pipe():
    """Its reader takes one line and leaves, as `head -1` does."""

    def read_one(process):
        assert process.stdout.readline()
        process.stdout.close()

    yield {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}, read_one


@contextlib.contextmanager
def lost_terminal():
    ours, theirs = os.openpty()

    def hang_up(process):
        os.read(ours, 1)
        os.close(ours)

    yield {"stdout": theirs, "stderr": theirs}, hang_up
    os.close(theirs)


@contextlib.contextmanager
def closed_from_the_start():
    yield {"shell": 'exec "$@" >&- 2>&-', "stdout": None, "stderr": None}, lambda process: None


@pytest.mark.parametrize("channel", [full_disk, closed_pipe, *map(slow, (lost_terminal, closed_from_the_start))])
@pytest.mark.parametrize(("changes", "status"), [({}, 0), slow({"critic_lr": 1e30}, FAILED)])
def test_who_reads_what_is_printed_changes_nothing(tmp_path, tiny_run, channel, changes, status):
    with channel() as (options, then):
        process = start_process(tiny(output_dir=str(tmp_path), **changes), **options)
        then(process)
        assert process.wait(timeout=120) == status
    (run_dir,) = run_dirs(tmp_path)
    assert (run_dir / "failure.json").exists() == bool(status)
    if not status:
        assert crash_test.compare(tiny_run, run_dir) == []
        assert [path.name for path in list_checkpoints(run_dir)] == ["000000000160"]


@pytest.mark.parametrize("program", ["training.py", slow("scripts/evaluate.py"), slow("scripts/benchmark.py")])
def test_help_for_a_reader_that_leaves(program):
    words = [sys.executable, str(Path(__file__).parents[1] / program), "--help"]
    for target in ("head -1", "cat > /dev/full"):
        script = f'set -o pipefail; {{ "$@"; echo "status $?" >&2; }} | {target}'
        answer = subprocess.run(["bash", "-c", script, "bash", *words], capture_output=True, text=True, timeout=120)
        errors = [line for line in answer.stderr.splitlines() if not line.startswith("cat: ")]
        assert errors == ["status 0"]


def test_letters_that_a_terminal_lacks_are_written_otherwise():
    written = io.BytesIO()
    stream = output._Tolerant(io.TextIOWrapper(written, encoding="ascii"))
    print("run folder  Übung", file=stream, flush=True)
    assert written.getvalue() == b"run folder  \\xdcbung\n"


def test_a_checkpoint_starts_before_an_evaluation_is_printed(monkeypatch, tmp_path):
    order = []

    def note(owner, name):
        original = getattr(owner, name)

        def noted(*args):
            order.append(name)
            return original(*args)

        monkeypatch.setattr(owner, name, noted)

    note(CheckpointWriter, "save")
    note(output.Progress, "evaluated")
    assert training.main(arguments(tiny(output_dir=str(tmp_path)))) == 0
    assert order == ["save", "evaluated"] * 3


# The machine: a user without a home, devices of another one.


@pytest.fixture
def cache_settings(monkeypatch):
    """What JAX is told of its cache."""
    told = {}
    monkeypatch.setattr(process.jax.config, "update", told.__setitem__)
    for name in ("JAX_COMPILATION_CACHE_DIR", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    return told


def no_home():
    raise RuntimeError("Could not determine home directory.")


@pytest.mark.parametrize(
    ("variables", "folder"),
    [
        ({"JAX_COMPILATION_CACHE_DIR": "cache"}, "cache"),
        ({"JAX_COMPILATION_CACHE_DIR": "cache", "XDG_CACHE_HOME": "other"}, "cache"),
        ({"JAX_COMPILATION_CACHE_DIR": "gs://bucket/cache"}, "gs://bucket/cache"),
        ({"XDG_CACHE_HOME": "other"}, "other/crl/jax"),
    ],
)
def test_a_home_is_asked_for_only_where_it_is_needed(monkeypatch, tmp_path, cache_settings, variables, folder):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(Path, "home", no_home)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert process.enable_compilation_cache() == folder
    assert cache_settings["jax_compilation_cache_dir"] == folder


def test_without_a_home_there_is_no_cache_and_one_line(monkeypatch, cache_settings, capsys):
    monkeypatch.setattr(Path, "home", no_home)
    assert process.enable_compilation_cache() == "off"
    assert "jax_compilation_cache_dir" not in cache_settings
    error = capsys.readouterr().err
    assert error.startswith("warning: no compilation cache: ") and error.count("\n") == 1


@pytest.mark.parametrize("home", ["/proc", "file", "/dev/null", "x" * 300, "loop"])
def test_a_home_that_cannot_be_written_costs_the_cache(monkeypatch, tmp_path, cache_settings, home, capsys):
    monkeypatch.chdir(tmp_path)
    Path("file").touch()
    Path("loop").symlink_to("loop")
    monkeypatch.setenv("HOME", home)
    assert process.enable_compilation_cache() == "off"
    assert cache_settings == {}
    error = capsys.readouterr().err
    assert error.startswith("warning: no compilation cache: ") and error.count("\n") == 1


@pytest.mark.slow
def test_a_user_without_a_home_trains(tmp_path):
    """In a container: a number that no name stands for, and no HOME."""
    user = ["unshare", "-U", "--map-user=12345", "env", "-u", "HOME"]
    if subprocess.run([*user, "true"], capture_output=True).returncode:
        pytest.skip("cannot become another user here")
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("JAX_COMP", "XDG_"))}
    words = [
        *user,
        sys.executable,
        durability.PROGRAM,
        *arguments(tiny(output_dir=str(tmp_path / "runs"), num_evals=1)),
    ]
    answer = subprocess.run(words, env=environment, capture_output=True, text=True, timeout=120)
    assert answer.returncode == 0, answer.stderr
    assert "compilation cache off" in answer.stdout and "Traceback" not in answer.stderr
    assert len(run_dirs(tmp_path / "runs")) == 1


@pytest.mark.parametrize("platforms", ["cuda", *map(slow, ("tpu", "nonsense"))])
def test_devices_of_another_machine_are_refused_in_one_line(tmp_path, platforms):
    environment = os.environ | {"JAX_PLATFORMS": platforms}
    process = start_process(tiny(output_dir=str(tmp_path / "runs")), "--dry_run", env=environment)
    *_, line = process.communicate(timeout=120)[0].splitlines()
    assert process.returncode == REFUSED
    assert line.startswith(f"error: JAX_PLATFORMS={platforms}: no such device here, unset it (")
    assert not (tmp_path / "runs").exists()


def test_a_check_of_an_env_on_devices_of_another_machine_is_refused_in_one_line():
    environment = os.environ | {"JAX_PLATFORMS": "cuda"}
    command = [sys.executable, "-m", "envs.check", "point"]
    root = Path(training.__file__).parent
    process = subprocess.run(command, env=environment, cwd=root, capture_output=True, text=True)
    assert process.returncode == REFUSED
    (line,) = process.stderr.splitlines()
    assert line.startswith("error: JAX_PLATFORMS=cuda: no such device here")


SETTINGS_OF_OTHERS = {
    "strict": {"JAX_NUMPY_DTYPE_PROMOTION": "strict", "JAX_NUMPY_RANK_PROMOTION": "raise"},
    "debugging": {"JAX_DEBUG_NANS": "1"},
    "optimised": {"PYTHONOPTIMIZE": "1"},
}


@pytest.mark.parametrize("name", ["strict", slow("debugging"), slow("optimised")])
def test_settings_for_other_programs_change_no_number(tmp_path, tiny_run, name):
    process = start_process(tiny(output_dir=str(tmp_path)), env=os.environ | SETTINGS_OF_OTHERS[name])
    output = process.communicate(timeout=300)[0]
    assert process.returncode == 0, output
    (run_dir,) = run_dirs(tmp_path)
    assert crash_test.timeless_rows(run_dir / "metrics.csv") == crash_test.timeless_rows(tiny_run / "metrics.csv")


@pytest.mark.slow
def test_a_flag_that_xla_does_not_know_is_named(tmp_path):
    """By XLA, which ends the process."""
    unknown = "--xla_no_flag_of_this_xla=true"
    process = start_process(tiny(output_dir=str(tmp_path)), env=os.environ | {"XLA_FLAGS": unknown})
    assert unknown in process.communicate(timeout=120)[0]
    assert process.returncode != 0 and not run_dirs(tmp_path)


# The clock.


@pytest.mark.parametrize("jump", [-4e7, 4e7])
def test_a_clock_that_jumps_changes_nothing(monkeypatch, tmp_path, tiny_run, jump):
    """By a year and more, either way, as Python tells the time; then a signal, and the run resumes."""
    config, now, now_ns = tiny(output_dir=str(tmp_path)), time.time, time.time_ns

    def jump_and_leave(recorder):
        monkeypatch.setattr(time, "time", lambda: now() + jump)
        monkeypatch.setattr(time, "time_ns", lambda: now_ns() + int(jump * 1e9))
        os.kill(os.getpid(), signal.SIGTERM)

    with monkeypatch.context() as patch:
        at_moment(patch, 3, jump_and_leave)
        assert training.main(arguments(config)) == training.INTERRUPTED
    assert training.main(arguments(config, "--resume")) == 0
    (run_dir,) = run_dirs(tmp_path)
    assert crash_test.timeless_rows(run_dir / "metrics.csv") == crash_test.timeless_rows(tiny_run / "metrics.csv")
    seconds = [float(row["training/walltime"]) for row in read_rows(run_dir / "metrics.csv", 10**9)[1:]]
    assert seconds == sorted(seconds) and seconds[0] > 0 and seconds[-1] < 1000


# Weights & Biases.


@pytest.fixture
def dropping_server():
    """A server that accepts connections and drops them."""
    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), socketserver.BaseRequestHandler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()
        thread.join()


@pytest.mark.slow
def test_wandb_out_of_reach_is_survived_offline(tmp_path, dropping_server):
    environment = os.environ | {"WANDB_BASE_URL": dropping_server, "WANDB_API_KEY": "0" * 40, "WANDB_INIT_TIMEOUT": "5"}
    environment.pop("WANDB_MODE", None)
    process = start_process(tiny(output_dir=str(tmp_path), log_wandb=True), env=environment)
    output = process.communicate(timeout=120)[0]
    assert process.returncode == 0, output
    assert "warning: W&B failed, training continues" in output and "Traceback" not in output
    assert "wandb sync" in output
    (data,) = tmp_path.glob("*/*/*/wandb/offline-run-*/*.wandb")
    assert data.stat().st_size > 1000


def kill_service(parent: int):
    """Kills the process of W&B that `parent` has started."""
    for status in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            pid, name, _, of = status.read_text().split()[:4]
            if int(of) == parent and "wandb" in name:
                os.kill(int(pid), signal.SIGKILL)


@pytest.mark.slow
def test_wandb_that_dies_in_the_middle_is_survived(tmp_path):
    config = tiny(output_dir=str(tmp_path), log_wandb=True, num_timesteps=20_000, num_evals=20)
    process = start_process(config, env=os.environ | {"WANDB_MODE": "offline", "WANDB_FINISH_TIMEOUT": "5"})
    output = read_until(process, "/ 20,000 env steps")
    kill_service(process.pid)
    output += process.communicate(timeout=120)[0]
    assert process.returncode == 0, output
    assert "warning: W&B failed, training continues" in output
    assert "wandb sync" in output


# Memory.


def test_too_little_memory_is_one_line(tmp_path):
    config = tiny(output_dir=str(tmp_path), num_envs=1, max_replay_size=10**9, batch_size=2)
    limit = 16 * 2**30
    process = start_process(config)
    resource.prlimit(process.pid, resource.RLIMIT_AS, (limit, limit))
    output = process.communicate(timeout=120)[0]
    assert process.returncode == training.FAILED, output
    assert re.search(
        r"error: out of memory; the plan takes \S+ GiB of the 16.00 GiB .* --max_replay_size to \d+", output
    )
    assert "Traceback" not in output


def test_memory_that_runs_out_is_answered_by_what_would_fit(monkeypatch, tmp_path, capsys):
    """On a device with half of what the plan takes; each offer alone brings the plan below it."""
    config = tiny(output_dir=str(tmp_path), num_envs=64, max_replay_size=2000, num_seeds=4, num_timesteps=10_000)
    planned = planned_bytes(config, measure(config, ProbeEnv()), 1)

    def fail(*args):
        monkeypatch.setattr(devices, "memory_per_device", lambda: planned // 2)
        raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 123 bytes.\nmore")

    monkeypatch.setattr(training, "run", fail)
    assert training.main(arguments(config)) == training.FAILED
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: out of memory; the plan takes ") and "allocating 123 bytes" in line
    offers = dict(re.findall(r"--(\w+) to (\d+)", line))
    assert {"seed_batch", "max_replay_size", "num_envs"} <= offers.keys()
    for flag, value in offers.items():
        smaller = dataclasses.replace(config, **{flag.replace("seed_batch", "num_seeds"): int(value)})
        assert 0 < planned_bytes(smaller, measure(smaller, ProbeEnv()), 1) <= 0.9 * (planned // 2)


# Numbers.


class Exploding(ProbeEnv):
    """Its physics blows up, for good, once the point is right of x = 0.5; nothing says that the episode has ended."""

    def step_pipeline(self, pipeline_state, action):
        pipeline_state = super().step_pipeline(pipeline_state, action)
        position = pipeline_state["position"]
        return pipeline_state | {"position": jnp.where(position[0] > 0.5, jnp.nan, position)}


def test_an_env_that_blows_up_ends_its_episode_and_counts_nothing():
    env = VectorEnv(Exploding(), episode_length=8, action_repeat=2)
    env_state = env.reset(jax.random.key(0), 2)
    position = jnp.array([[0.35, 0.0], [0.0, 0.0]])
    env_state = env_state.replace(
        pipeline_state=env_state.pipeline_state | {"position": position}, state=position, goal=position
    )
    env_state = env.step(env_state, jnp.array([[1.0, 0.0], [1.0, 0.0]]))
    np.testing.assert_array_equal(env.nonfinite(env_state), [True, False])
    np.testing.assert_array_equal(env_state.done, [1.0, 0.0])
    np.testing.assert_array_equal(env_state.truncation, [0.0, 0.0])
    np.testing.assert_array_equal(env_state.reward, [1.0, 1.0])  # of the env step before; goals are 0.2 wide
    np.testing.assert_allclose(env_state.metrics["x"], [0.45, 0.1 + 0.2], rtol=1e-6)


@pytest.mark.parametrize("seeds", [slow((0,)), (0, 1)])
def test_blown_up_envs_are_counted_and_pollute_nothing(seeds):
    """The count is that of trajectories that ended before their time, whatever the chunks."""
    program = make_probe_program(tiny(max_replay_size=200, num_evals=2), Exploding)
    counts = []
    for seconds_per_chunk in (1e-9, 1e9):
        *_, moment = run(program, seeds, lambda text: None, None, seconds_per_chunk)
        assert all(math.isfinite(value) for metrics in moment.metrics for value in metrics.values())
        rows = jax.device_get(moment.run_state.train_state.buffer_state.rows)
        assert np.isfinite(rows.state).all()
        counts.append([metrics["training/env_resets_nonfinite"] for metrics in moment.metrics])
    assert counts[0] == counts[1]
    traj_id = rows.traj_id if len(seeds) > 1 else rows.traj_id[None]
    for count, ids in zip(counts[0], traj_id, strict=True):
        ids = ids[:40]  # rows that were filled: 160 env steps in 4 envs
        running_out = sum(int(np.sum(np.unique(ids[:, env], return_counts=True)[1] == 8)) for env in range(4))
        assert count > 0
        assert abs(sum(ids[-1] + 1) - running_out - count) <= 4  # the last trajectory of each env is still running


def test_a_run_whose_envs_keep_blowing_up_stops(monkeypatch, tmp_path, capsys):
    monkeypatch.setitem(ENVS, "probe", Exploding)
    assert training.main(arguments(tiny(output_dir=str(tmp_path)))) == training.FAILED
    error = capsys.readouterr().err
    found = re.search(r"physics blew up (\d+) times in 100 env steps, most often \((\d+)\) in env (\d)", error)
    total, most, env = map(int, found.groups())
    assert total / 4 <= most <= total and env < 4
    (run_dir,) = run_dirs(tmp_path)
    failure = json.loads((run_dir / "failure.json").read_text())
    assert failure["quantity"] == "training/env_resets_nonfinite"


def poison(run_dir):
    """Puts a NaN into the parameters of a run's checkpoint."""
    (checkpoint,) = list_checkpoints(run_dir)
    manifest = read_manifest(checkpoint)
    arrays = read_arrays(checkpoint, manifest)
    arrays = {name: np.array(array) for name, array in arrays.items()}
    arrays["train_state/agent_state/params/log_alpha"][()] = np.nan
    shutil.rmtree(checkpoint)
    assert write_checkpoint(run_dir, arrays, manifest) == checkpoint


def test_numbers_gone_wrong_stop_their_own_seed_only_and_can_be_reproduced(tmp_path, capsys):
    config = tiny(output_dir=str(tmp_path), num_timesteps=80, num_seeds=2)
    assert training.main(arguments(config)) == 0
    healthy, sick = run_dirs(tmp_path)
    poison(sick)
    longer = dataclasses.replace(config, num_timesteps=160)
    capsys.readouterr()
    assert training.main(arguments(longer, "--resume")) == training.FAILED
    error = capsys.readouterr().err
    assert error.startswith("error: seed 1 stopped: training/") and error.count("\n") == 1
    assert [path.name for path in list_checkpoints(healthy)] == ["000000000160"]
    assert [path.name for path in list_checkpoints(sick)] == ["000000000080"]
    assert not (healthy / "failure.json").exists()
    failure = json.loads((sick / "failure.json").read_text())
    assert failure["value"] == "nan" and failure["env_steps"][0] == 80
    words = shlex.split(failure["reproduce"])
    assert words[:2] == ["python", "training.py"]
    assert training.main(words[2:]) == training.FAILED
    assert json.loads((sick / "failure.json").read_text())["quantity"] == failure["quantity"]
    finished = tiny(output_dir=str(tmp_path), num_timesteps=200, num_seeds=2)
    capsys.readouterr()
    assert training.main(arguments(finished, "--resume")) == 0
    assert "without the 1 seeds" in capsys.readouterr().out


# Inputs: random flags are refused in one line, or legal.

_NUMBERS = st.one_of(st.integers(-2, 40), st.sampled_from([10**3, 2**31 - 1, 2**31, 2**53, 10**18, 10**400]))
_FLOATS = st.one_of(st.floats(), st.sampled_from([0.0, 0.5, 0.99, 1.0, -1.0]))
_TEXTS = st.text(max_size=12)


def _values(field):
    """Any value of a flag's type, legal or not."""
    if "name" in field.name or fact(field, Choice):
        return st.one_of(st.just(field.default), _TEXTS)
    return {bool: st.booleans(), int: _NUMBERS, float: _FLOATS}.get(plain_type(field), _TEXTS).map(
        lambda value: value if field.name not in ("output_dir", "resume", "run_dir_file") else field.default
    )


_FIELDS = {field.name: field for field in dataclasses.fields(CRLConfig)}
_CHANGES = st.fixed_dictionaries({}, optional={name: _values(field) for name, field in _FIELDS.items()})


@given(changes=_CHANGES, base=st.sampled_from([CRLConfig(), tiny()]))
def test_random_flags_are_legal_or_refused_in_one_line(changes, base):
    with registered(probe=ProbeEnv):
        plan(dataclasses.replace(base, **changes), COSTS)


COSTS = measure(tiny(), ProbeEnv())


def plan(config, costs=None):
    """Everything between the command line and the first compilation; whether the config is legal. `costs` may be those
    of another config, where measuring each would take too long."""
    try:
        parsed = parse_config(arguments(config), REGISTRIES)
        schedule = derive_schedule(parsed)
        costs = costs or measure(parsed, ProbeEnv())
    except ValueError as error:
        assert "\n" not in str(error) and str(error)
        return False
    assert schedule.total_env_steps >= parsed.num_timesteps
    describe_plan(parsed, schedule, costs)
    return True


_SMALL = {
    "num_timesteps": st.integers(1, 200),
    "num_evals": st.integers(1, 3),
    "num_eval_envs": st.integers(1, 3),
    "num_envs": st.integers(1, 5),
    "num_seeds": st.integers(1, 2),
    "episode_length": st.integers(2, 9),
    "action_repeat": st.integers(1, 3),
    "unroll_length": st.integers(1, 6),
    "batch_size": st.integers(2, 8),
    "min_replay_size": st.integers(2, 12),
    "max_replay_size": st.integers(3, 20),
    "contrastive_loss_fn": st.sampled_from(sorted(CONTRASTIVE_LOSSES)),
    "energy_fn": st.sampled_from(sorted(ENERGY_FNS)),
    "network": st.sampled_from(sorted(NETWORKS)),
    "checkpoint_every": st.sampled_from([0.0, 1e-9]),
    "keep_policies": st.integers(0, 2),
    **{
        name: st.booleans()
        for name, field in _FIELDS.items()
        if plain_type(field) is bool and name not in ("log_wandb", "dry_run", "render")
    },
}


@pytest.mark.slow
@settings(max_examples=20)
@given(changes=st.fixed_dictionaries({}, optional=_SMALL))
def test_legal_flags_train(changes, tmp_path_factory):
    config = tiny(**changes, output_dir=str(tmp_path_factory.mktemp("runs")))
    with registered(probe=ProbeEnv):
        assert training.main(arguments(config)) == (0 if plan(config) else training.REFUSED)
