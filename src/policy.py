"""What a run has learned, loaded again: a policy in two lines, or program and agent for whoever looks closer.

```
policy = load_policy("runs/crl/test/test_ant_s0_20260101-120000")
action = policy(obs)
```

A policy that remembers something inside an episode, such as a plan of several actions, needs its memory; any takes one:

```
memory = policy.init_memory(obs.shape[:-1])
action, memory = policy(obs, memory)
```
"""

import dataclasses
import os
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from src.algorithm import policy_of
from src.algorithms import ALGORITHMS
from src.checkpoint import BEST_PARAMS_FILE, PARAMS_FILE, load_params
from src.command_line import read_whole
from src.program import Program, make_program, on_one_device
from utils import ConfigError, derive_schedule, read_config

PARAMS_FILES = {"last": PARAMS_FILE, "best": BEST_PARAMS_FILE}


def load_trained(
    run_dir: str | Path, params: str = "last", eval_env: str | None = None, eval_gen_distances: str = ""
) -> tuple[Program, Any]:
    """The program of a run folder and its agent state, what only learning needs left out.

    Args:
      params: which policy: a key of `PARAMS_FILES`, the env steps of one that `--keep_policies` kept, or a .npz file.
      eval_env, eval_gen_distances: the environment to evaluate on instead of the run's own, and its distances.

    Raises:
      ValueError: no run folder, no policy in it, or an environment that does not exist or does not fit.
    """
    config = read_config(Path(run_dir), ALGORITHMS)
    # One device is enough, and the run's sizes need not divide among those that happen to be here.
    config = dataclasses.replace(config, num_devices=1)
    if eval_env in (None, config.eval_env or config.env_name):
        eval_env, eval_gen_distances = config.eval_env, eval_gen_distances or config.eval_gen_distances
    config = dataclasses.replace(config, eval_env=eval_env, eval_gen_distances=eval_gen_distances)
    path = find_params(Path(run_dir), params)
    program = make_program(config, derive_schedule(config))
    agent_state = load_params(path, jax.eval_shape(program.algorithm.init, jax.random.key(0)))
    only_learning_needs = {field.name for field in dataclasses.fields(agent_state)} - {"params", "normalizer"}
    return on_one_device(program), agent_state.replace(**dict.fromkeys(only_learning_needs))


def find_params(run_dir: Path, params: str) -> Path:
    """The file that `params` names.

    Raises:
      ConfigError: there is none; the line lists what there is.
    """
    kept = sorted((run_dir / "policies").glob("*.npz"))
    if params in PARAMS_FILES:
        candidates = [run_dir / PARAMS_FILES[params]]
    else:
        env_steps = read_whole(params)
        candidates = [path for path in kept if env_steps == read_whole(path.stem)] if env_steps is not None else []
        candidates += [Path(os.path.expanduser(params)), run_dir / params]
    found = next((path for path in candidates if os.path.isfile(path)), None)
    if found is None:
        saved = [name for name, file in PARAMS_FILES.items() if (run_dir / file).is_file()]
        saved += [str(env_steps) for path in kept if (env_steps := read_whole(path.stem)) is not None]
        offer = f"there are {', '.join(saved)}" if saved else "the first evaluation leaves one"
        raise ConfigError(f"{run_dir} holds no policy {params!r}: {offer}")
    return found


class LoadedPolicy:
    """A trained policy: `policy(obs, key=None)`, or `policy(obs, memory, key=None)`, which any takes and which one that
    has a memory needs.

    Attributes:
      obs_size, action_size: lengths of the last axis of what goes in and out; leading axes are free.
      has_memory: whether the policy remembers something inside an episode.
    """

    def __init__(self, program: Program, agent_state: Any, deterministic: bool = True):
        env, policy = program.eval_env.env, policy_of(program.algorithm, agent_state, deterministic)
        self.deterministic = deterministic
        self.state_dim, self.goal_dim = env.state_dim, env.goal_dim
        self.obs_size, self.action_size = env.obs_size, env.action_size
        self.init_memory = policy.init_memory
        self.has_memory = bool(jax.tree.leaves(jax.eval_shape(lambda: policy.init_memory(()))))
        self._act = jax.jit(policy.act)

    def __call__(self, obs: jax.Array, memory: Any = None, key: jax.Array | None = None) -> Any:
        """(..., action_size) actions for observations (..., obs_size), and the next memory where one is given.

        Raises:
          ValueError: an observation of another size, no key for a stochastic policy, no memory where one is needed.
        """
        if not self.has_memory and jax.tree.leaves(memory):
            memory, key = None, memory  # policy(obs, key)
        if self.has_memory and memory is None:
            raise ValueError(
                "this policy plans several actions at once and needs its memory:\n"
                "memory = policy.init_memory(obs.shape[:-1])\n"
                "action, memory = policy(obs, memory)"
            )
        obs = jnp.asarray(obs)
        size = obs.shape[-1] if obs.ndim else 0
        if size != self.obs_size:
            raise ValueError(
                f"an observation has {self.obs_size} entries, {self.state_dim} of state and {self.goal_dim} of goal; "
                f"got {size}"
            )
        if key is None and not self.deterministic:
            raise ValueError("a stochastic policy needs a key: policy(obs, key=key)")
        action, next_memory = self._act(() if memory is None else memory, obs, key)
        return action if memory is None else (action, next_memory)


def load_policy(run_dir: str | Path, deterministic: bool = True, params: str = "last") -> LoadedPolicy:
    """The trained policy of a run folder; `params` as in `load_trained`. A stochastic policy (`deterministic` off)
    needs a key at every call.

    Raises:
      ConfigError: the folder has no config or no such parameters.
    """
    return LoadedPolicy(*load_trained(run_dir, params), deterministic)
