"""Parameters on disk."""

import functools
import zipfile

import jax
import numpy as np
import pytest
from conftest import ProbeEnv, tiny

from src import checkpoint
from src.agent import update_moments
from src.algorithms import crl
from utils import ConfigError, derive_schedule, write_record

STATE_DIM, GOAL_DIM = 2, 2
CONFIG = tiny(normalize_observations=True, use_c_target=True)


@functools.cache
def trained(config=CONFIG, seed=5):
    """An agent state that has seen something, without training."""
    agent_state = crl.init(config, crl.make_networks(config, ProbeEnv()), jax.random.key(seed))
    states = jax.random.normal(jax.random.key(seed + 1), (50, STATE_DIM)) * 3 + 1
    return agent_state.replace(normalizer=update_moments(agent_state.normalizer, states))


def example(config=CONFIG):
    return jax.eval_shape(functools.partial(crl.init, config, crl.make_networks(config, ProbeEnv())), jax.random.key(0))


@pytest.fixture
def run_dir(tmp_path):
    write_record(tmp_path, CONFIG, derive_schedule(CONFIG), ["cpu"], [tmp_path.name])
    checkpoint.save_params(tmp_path / checkpoint.PARAMS_FILE, trained())
    return tmp_path


def test_parameters_and_normaliser_survive(run_dir):
    loaded = checkpoint.load_params(run_dir / checkpoint.PARAMS_FILE, example())
    for field in ("params", "normalizer"):
        stored, expected = getattr(loaded, field), getattr(trained(), field)
        assert jax.tree.structure(stored) == jax.tree.structure(expected)
        for one, other in zip(jax.tree.leaves(stored), jax.tree.leaves(expected), strict=True):
            np.testing.assert_array_equal(one, other)
            assert one.dtype == other.dtype
    assert [path.name for path in run_dir.glob("*.npz")] == [checkpoint.PARAMS_FILE]
    assert not [path for path in run_dir.iterdir() if path.name.startswith(".")]


def test_anybody_can_read_the_file(run_dir):
    """Plain arrays under speaking names, no pickle: NumPy alone opens it."""
    with np.load(run_dir / checkpoint.PARAMS_FILE, allow_pickle=False) as file:
        arrays = dict(file)
    assert arrays["params/actor/params/trunk/Dense_0/kernel"].shape == (STATE_DIM + GOAL_DIM, 8)
    assert arrays["params/critic/g_encoder/params/Dense_0/kernel"].shape == (8, 4)
    assert arrays["params/log_alpha"].shape == arrays["params/critic/c_target"].shape == ()
    np.testing.assert_array_equal(arrays["normalizer/mean"], trained().normalizer.mean)
    assert all(array.dtype == np.float32 for array in arrays.values())
    assert not any("opt_state" in name for name in arrays)


def _remove(path):
    path.unlink()


def _empty(path):
    path.write_bytes(b"")


def _truncate(path):
    path.write_bytes(path.read_bytes()[:-100])


def _replace_by_text(path):
    path.write_text("not an archive")


def _flip_bits(path):
    with zipfile.ZipFile(path) as file:
        entry = max(file.infolist(), key=lambda entry: entry.file_size)
    data = bytearray(path.read_bytes())
    middle = entry.header_offset + 200 + entry.file_size // 2
    data[middle : middle + 8] = bytes(255 - byte for byte in data[middle : middle + 8])
    path.write_bytes(data)


def _pickle(path):
    np.savez(path, **{"params/log_alpha": np.array([{"a": 1}], dtype=object)})


@pytest.mark.parametrize("damage", [_remove, _empty, _truncate, _replace_by_text, _flip_bits, _pickle])
def test_damaged_files_are_refused_by_name(run_dir, damage):
    path = run_dir / checkpoint.PARAMS_FILE
    damage(path)
    with pytest.raises(ConfigError, match="params.npz holds no readable parameters"):
        checkpoint.load_params(path, example())


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"h_dim": 9}, r"kernel should have shape \(9, 4\), found \(8, 4\)"),
        ({"n_hidden": 3}, "Dense_2/.* should have shape .*, found nothing"),
        ({"use_ln": True}, "LayerNorm_0/.* found nothing"),
    ],
)
def test_parameters_of_another_network_are_refused(run_dir, changes, text):
    other = example(tiny(normalize_observations=True, use_c_target=True, **changes))
    with pytest.raises(ConfigError, match=text):
        checkpoint.load_params(run_dir / checkpoint.PARAMS_FILE, other)


def test_a_failed_save_leaves_the_file_before(run_dir, monkeypatch):
    path = run_dir / checkpoint.PARAMS_FILE
    before, names = path.read_bytes(), sorted(run_dir.iterdir())

    def fail(file, **arrays):
        file.write(b"half")
        raise OSError("disk full")

    monkeypatch.setattr(checkpoint.np, "savez", fail)
    with pytest.raises(OSError, match="disk full"):
        checkpoint.save_params(path, trained(seed=6))
    assert path.read_bytes() == before
    assert sorted(run_dir.iterdir()) == names
