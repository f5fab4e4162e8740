"""Parameters on disk: a plain .npz that loads without pickle, and a policy that acts from it in two lines.

```
policy = load_policy("runs/crl/test/test_ant_s0_20260101-120000")
action = policy(obs)
```
"""

import functools
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np

from envs import make_env
from src import crl
from utils import ConfigError, read_config

PARAMS_FILE = "params.npz"


def _named_leaves(tree: Any) -> dict[str, Any]:
    leaves, _ = jax.tree_util.tree_flatten_with_path(tree)
    return {jax.tree_util.keystr(path, simple=True, separator="/"): leaf for path, leaf in leaves}


def _learned(agent_state: crl.AgentState) -> dict[str, Any]:
    """What acting and judging need: parameters and normaliser, not the optimiser."""
    return {"params": agent_state.params, "normalizer": agent_state.normalizer}


def save_params(path: Path, agent_state: crl.AgentState) -> None:
    """Writes actor, critic, temperature and normaliser to `path`, whole or not at all."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    with temporary.open("wb") as file:
        np.savez(file, **_named_leaves(jax.device_get(_learned(agent_state))))
    temporary.replace(path)


def load_params(path: Path, example: crl.AgentState) -> crl.AgentState:
    """Reads parameters into the structure of `example` (arrays or shapes).

    Raises:
      ConfigError: the file is missing, damaged, or of other shapes.
    """
    try:
        with np.load(path, allow_pickle=False) as file:
            stored = dict(file)
    except Exception as error:  # numpy raises half a dozen kinds for a damaged archive
        raise ConfigError(f"{path} holds no readable parameters ({type(error).__name__}: {error})") from None
    expected = _named_leaves(_learned(example))
    for name, leaf in expected.items():
        if name not in stored or stored[name].shape != leaf.shape:
            found = stored[name].shape if name in stored else "nothing"
            raise ConfigError(f"{path}: {name} should have shape {leaf.shape}, found {found}")
    learned = jax.tree.unflatten(jax.tree.structure(_learned(example)), [stored[name] for name in expected])
    return example.replace(**learned)


def load_policy(run_dir: str | Path, deterministic: bool = True) -> Callable[..., jax.Array]:
    """The trained policy of a run folder: `policy(obs, key=None)` maps (..., obs_size) to (..., action_size).

    A stochastic policy (`deterministic` off) needs a key at every call.

    Raises:
      ConfigError: the folder has no config or no parameters.
    """
    config = read_config(Path(run_dir))
    networks = crl.make_networks(config, make_env(config.env_name, config.backend))
    example = jax.eval_shape(functools.partial(crl.init, config, networks), jax.random.key(0))
    agent_state = load_params(Path(run_dir) / PARAMS_FILE, example)
    act = jax.jit(functools.partial(crl.act, networks, agent_state, deterministic=deterministic))

    def policy(obs: jax.Array, key: jax.Array | None = None) -> jax.Array:
        if key is None and not deterministic:
            raise ValueError("a stochastic policy needs a key: policy(obs, key)")
        return act(obs, key)

    return policy
