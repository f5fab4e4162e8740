"""Many devices and several processes: the numbers of one device, up to rounding, in processes of their own."""

import dataclasses
import functools
import os
import socket
import threading
from pathlib import Path

import durability
import jax
import numpy as np
import pytest
from conftest import ProbeEnv, registered, tiny
from durability import arguments, run_dirs, start_process

import training
from src import devices
from src.checkpoint import list_checkpoints, read_arrays, read_manifest
from src.output import read_rows
from src.plan import mesh_shape
from utils import ConfigError

# Sizes that divide among four devices; the moments of normalised observations are sums over all of them.
DIVISIBLE = tiny(num_envs=8, batch_size=8, num_eval_envs=8, normalize_observations=True)
# After 30 updates from the same start the largest difference seen was 5e-5; a part of a batch that is lost, or counted
# twice, makes one of 1e-2 and more.
TOLERANCE = 1e-3


def on_devices(config, count, *more):
    """Starts the training in a process that has `count` fake devices."""
    fake = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count={count}"
    return start_process(config, *more, env=os.environ | {"XLA_FLAGS": fake, "JAX_PLATFORMS": "cpu"})


def finish(process, status=0):
    output = process.communicate(timeout=480)[0]
    assert process.returncode == status, output
    return output


def results(config):
    """[(last row of metrics.csv, state of the last checkpoint)] of all seeds."""
    found = []
    for run_dir in run_dirs(Path(config.output_dir)):
        (checkpoint,) = list_checkpoints(run_dir)
        arrays = read_arrays(checkpoint, read_manifest(checkpoint))
        state = {name: array for name, array in arrays.items() if name.startswith("train_state/")}
        found.append((read_rows(run_dir / "metrics.csv", 10**9)[-1], state))
    return found


@pytest.fixture(scope="module")
def one_device(tmp_path_factory):
    """one_device(num_seeds) -> the results of the training that one device does; each is done once."""
    trained = {}

    def train(num_seeds):
        if num_seeds not in trained:
            folder = str(tmp_path_factory.mktemp("one_device"))
            config = dataclasses.replace(DIVISIBLE, num_seeds=num_seeds, output_dir=folder)
            with registered(probe=ProbeEnv):
                assert training.main(arguments(config)) == 0
            trained[num_seeds] = results(config)
        return trained[num_seeds]

    return train


def assert_close(found, expected):
    assert len(found) == len(expected)
    for (row, state), (expected_row, expected_state) in zip(found, expected, strict=True):
        for name in (name for name in expected_row if name.startswith("eval/episode")):
            assert float(row[name]) == pytest.approx(float(expected_row[name]), rel=TOLERANCE, abs=TOLERANCE), name
        assert state.keys() == expected_state.keys() and len(state) > 30
        for name, array in expected_state.items():
            tolerance = TOLERANCE if np.issubdtype(array.dtype, np.floating) else 0
            np.testing.assert_allclose(state[name], array, rtol=tolerance, atol=tolerance, err_msg=name)


# Several devices.


@pytest.mark.slow
def test_seeds_on_a_device_each_are_the_seeds_of_one_device(tmp_path, one_device):
    config = dataclasses.replace(DIVISIBLE, num_seeds=4, output_dir=str(tmp_path))
    output = finish(on_devices(config, 4))
    assert "4 x 1, 1 of 4 seeds on each" in output and "device      cpu x 4" in output
    assert_close(results(config), one_device(4))


@pytest.mark.slow
def test_a_seed_on_four_devices_is_that_of_one_device_resumed_or_not(tmp_path, one_device):
    """Half of it, then the rest from the checkpoint."""
    config = dataclasses.replace(DIVISIBLE, output_dir=str(tmp_path))
    output = finish(on_devices(dataclasses.replace(config, num_timesteps=120), 4))
    assert "1 x 4; 2 envs and 2 rows of a batch on each" in output
    assert "at 120 env steps" in finish(on_devices(config, 4, "--resume"))
    assert_close(results(config), one_device(1))


@pytest.mark.parametrize(
    ("changes", "count", "fragments"),
    [
        ({"num_envs": 6}, 4, ["--num_envs 6", "4 devices", "4 or 8 would", "--num_devices 2"]),
        ({"batch_size": 6}, 4, ["--batch_size 6", "4 or 8", "--num_devices 2"]),
        ({"num_eval_envs": 3}, 2, ["--num_eval_envs 3", "2 or 4", "--num_devices 1"]),
        ({"num_envs": 9, "num_seeds": 2}, 8, ["--num_envs 9", "4 devices of a seed", "2 groups", "--num_devices 2"]),
        ({"num_devices": 5}, 4, ["--num_devices 5", "there are 4"]),
    ],
)
def test_sizes_that_do_not_divide_are_refused_with_those_that_do(monkeypatch, changes, count, fragments):
    monkeypatch.setattr(devices.jax, "devices", lambda: jax.local_devices() * count)
    monkeypatch.setattr(devices.jax, "device_count", lambda: count)
    with pytest.raises(ConfigError) as refusal:
        devices.make_mesh(dataclasses.replace(DIVISIBLE, **changes))
    for fragment in fragments:
        assert fragment in str(refusal.value)


def test_a_last_batch_of_seeds_that_does_not_divide_is_refused_before_the_first_trains(monkeypatch):
    monkeypatch.setattr(devices.jax, "devices", lambda: jax.local_devices() * 3)
    monkeypatch.setattr(devices.jax, "device_count", lambda: 3)
    config = dataclasses.replace(DIVISIBLE, num_seeds=4, seed_batch=3)
    devices.make_mesh(dataclasses.replace(config, num_seeds=3))
    with pytest.raises(ConfigError, match="--num_envs 8"):
        training.seed_batches(config)


@pytest.mark.parametrize(
    ("num_seeds", "num_devices", "shape"),
    [(1, 1, (1, 1)), (1, 8, (1, 8)), (8, 4, (4, 1)), (2, 8, (2, 4)), (5, 4, (1, 4))],
)
def test_seeds_are_spread_first(num_seeds, num_devices, shape):
    assert mesh_shape(num_seeds, num_devices) == shape


@pytest.mark.parametrize(
    ("changes", "cores", "count"),
    [
        ({"num_seeds": 4}, 2, 2),
        ({"num_seeds": 4}, 64, 4),
        ({"num_seeds": 6}, 4, 3),
        ({"num_seeds": 8, "seed_batch": 2}, 4, 2),
        ({"num_seeds": 4, "seed_batch": 3}, 4, None),
        ({"num_seeds": 5}, 4, None),
        ({"num_seeds": 1}, 4, None),
        ({"num_seeds": 4, "num_devices": 1}, 4, None),
        ({"num_seeds": 4, "coordinator_address": "localhost:1"}, 4, None),
    ],
)
def test_seeds_get_cores_of_their_own_as_devices(monkeypatch, changes, cores, count):
    made = {}
    monkeypatch.delenv("XLA_FLAGS", raising=False)
    monkeypatch.setattr(devices, "num_cores", lambda: cores)
    monkeypatch.setattr(devices.jax.config, "update", made.__setitem__)
    devices.spread_over_cores(dataclasses.replace(DIVISIBLE, **changes))
    assert made == ({"jax_num_cpu_devices": count} if count else {})


def test_a_number_of_devices_that_the_user_has_set_stands():
    config = dataclasses.replace(DIVISIBLE, num_seeds=4)
    assert " of 4 seeds on each" not in finish(on_devices(config, 1, "--dry_run"))


@pytest.mark.skipif(devices.num_cores() < 2, reason="one core has no seeds to share out")
def test_two_seeds_are_on_two_cores_unasked(tmp_path):
    config = dataclasses.replace(DIVISIBLE, num_seeds=2, output_dir=str(tmp_path))
    quiet = {name: value for name, value in os.environ.items() if name != "XLA_FLAGS"}
    output = finish(start_process(config, "--dry_run", env=quiet | {"JAX_PLATFORMS": "cpu"}))
    assert "2 x 1, 1 of 2 seeds on each" in output


# Several processes.


@pytest.fixture
def address():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{free.getsockname()[1]}"


def start_two(config, address, *more):
    together = ("--coordinator_address", address, "--num_processes", "2", *more)
    return [on_devices(config, 1, *together, "--process_id", str(number)) for number in range(2)]


@pytest.mark.slow
@pytest.mark.parametrize("num_seeds", [1, 2])
def test_two_processes_give_the_numbers_of_one(tmp_path, address, one_device, num_seeds):
    """One seed split over both, or a seed in each, drawn too. The first process alone leaves anything."""
    several = num_seeds > 1
    config = dataclasses.replace(DIVISIBLE, num_seeds=num_seeds, output_dir=str(tmp_path))
    if several:
        config = dataclasses.replace(config, render=True, video_every=1)
    outputs = [finish(process) for process in start_two(config, address)]
    assert "success rate" in outputs[0] and "run folder" not in outputs[1]
    assert len(run_dirs(tmp_path)) == num_seeds
    for run_dir in run_dirs(tmp_path):
        assert len(list(run_dir.glob("*.png"))) == 3 * several
    assert_close(results(config), one_device(num_seeds))


# The training of the probe env, whose second process receives SIGTERM as its first steps are done.
SIGNAL_TO_THE_SECOND = """
import os, signal, sys
import probe_training
import jax, pytest
from conftest import ProbeEnv, registered
from durability import at_moment

def signal_to_the_second(recorder):
    if jax.process_index() == 1:
        os.kill(os.getpid(), signal.SIGTERM)

at_moment(pytest.MonkeyPatch(), 1, signal_to_the_second)
with registered(probe=ProbeEnv):
    sys.exit(probe_training.training.main(sys.argv[1:]))
"""


@pytest.mark.slow
def test_a_signal_to_one_of_two_processes_saves_and_ends_both(monkeypatch, tmp_path, address, one_device):
    """And both resume from there to the numbers of one device."""
    program = tmp_path / "program.py"
    program.write_text(SIGNAL_TO_THE_SECOND)
    config = dataclasses.replace(DIVISIBLE, output_dir=str(tmp_path / "runs"))
    with monkeypatch.context() as patch:
        patch.setattr(durability, "PROGRAM", str(program))
        patch.setenv("PYTHONPATH", str(Path(__file__).parent))
        first, second = start_two(config, address)
    assert "another process was interrupted: left at" in finish(first, training.INTERRUPTED)
    finish(second, training.INTERRUPTED)
    (run_dir,) = run_dirs(tmp_path / "runs")
    assert 0 < read_manifest(list_checkpoints(run_dir)[-1])["position"]["training_steps"] < 4
    first, second = start_two(config, address, "--resume")
    assert "resume      at " in finish(first)
    finish(second)
    assert_close(results(config), one_device(1))


def test_processes_that_see_different_checkpoints_are_refused(tmp_path, address):
    config = dataclasses.replace(DIVISIBLE, output_dir=str(tmp_path / "here"))
    other = dataclasses.replace(config, num_timesteps=200)
    together = ("--coordinator_address", address, "--num_processes", "2")
    processes = [on_devices(c, 1, *together, "--process_id", str(n)) for n, c in enumerate((config, other))]
    for process in processes:
        assert "another process refused, or has another command" in finish(process, training.REFUSED)


@pytest.mark.parametrize(
    ("host", "port", "reason"),
    [("127.0.0.1", 9, "refused"), ("nobody.invalid", 80, ".")],
)
def test_a_process_that_finds_no_first_process_is_refused_in_one_line(monkeypatch, host, port, reason):
    monkeypatch.setattr(devices, "find_coordinator", functools.partial(devices.find_coordinator, seconds=0.1))
    config = tiny(coordinator_address=f"{host}:{port}", num_processes=2, process_id=1)
    with pytest.raises(ConfigError, match=f"{host}:{port}: process 0 does not answer: .*{reason}") as refusal:
        devices.join(config)
    assert "\n" not in str(refusal.value)


def test_a_first_process_that_comes_late_is_waited_for():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        timer = threading.Timer(0.5, listener.listen)
        timer.start()
        devices.find_coordinator(f"127.0.0.1:{listener.getsockname()[1]}", seconds=60)
        timer.join()


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (RuntimeError("DEADLINE_EXCEEDED:\nnobody answers"), "RuntimeError: DEADLINE_EXCEEDED: nobody answers"),
        (ValueError("coordinator_address should be defined"), "ValueError: coordinator_address should be defined"),
        (KeyError("OMPI_COMM_WORLD_SIZE"), "KeyError: 'OMPI_COMM_WORLD_SIZE'"),  # a launcher's variables in part
    ],
)
def test_a_coordinator_that_is_not_there_is_refused_in_one_line(monkeypatch, error, said):
    def fail(**options):
        raise error

    monkeypatch.setattr(devices.jax.distributed, "initialize", fail)
    with pytest.raises(ConfigError, match=f"--coordinator_address auto: {said}"):
        devices.join(tiny(coordinator_address="auto"))
