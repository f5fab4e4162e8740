#!/usr/bin/env python
"""Writes a trained policy for other projects: `python scripts/export.py RUN_DIR --out policy.npz`.

scripts/exported_policy.py, which needs NumPy alone, loads the file. The deterministic policy is exported, with network
and normaliser; of one that plans several actions (`--action_chunk`), the whole plan.
"""

import dataclasses
import sys
from pathlib import Path
from typing import Annotated

import jax
import jax.numpy as jnp
import numpy as np
import tyro

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # so that it runs from any directory

from envs.base import GoalEnv  # noqa: E402
from scripts.exported_policy import ACTIVATIONS, ExportedPolicy  # noqa: E402
from scripts.trained import PolicyConfig, load_or_refuse  # noqa: E402
from src.agent import AgentState, scales  # noqa: E402
from src.algorithm import policy_of  # noqa: E402
from src.networks import Layer  # noqa: E402
from src.output import run_command  # noqa: E402
from src.planning import Plan  # noqa: E402
from src.program import Program  # noqa: E402
from utils import FAILED, REFUSED, ConfigError, replacing  # noqa: E402

TRIED = 256  # observations for which an export is compared with the policy itself
MOST_DIFFERENCE = 1e-3  # far above what rounding comes to in deep networks


@dataclasses.dataclass(frozen=True)
class ExportConfig(PolicyConfig):
    """Writes a trained policy into a file that needs NumPy alone."""

    out: Annotated[str, tyro.conf.arg(metavar="FILE"), Path] = "policy.npz"
    """Where to write it."""


def check(config: ExportConfig) -> None:
    """Raises ConfigError for what cannot be carried out."""
    if Path(config.out).suffix != ".npz":
        raise ConfigError(f"--out {config.out} has another ending than .npz, e.g. {config.out}.npz")


def exported(program: Program, agent_state: AgentState) -> dict[str, np.ndarray]:
    """The arrays of an exported policy: scale of the observations, the layers, the last of them of actions.

    Raises:
      ConfigError: an actor of another form.
    """
    env, algorithm = program.env.env, program.algorithm
    memory = algorithm.init_memory(())
    if algorithm.actor is None or not (memory == () or isinstance(memory, Plan)):
        raise ConfigError(f"--algorithm {program.config.algorithm} has no policy that can be exported: no `actor`")
    plan_length = 1 if memory == () else len(memory.actions)
    params, plan_size = agent_state.params["actor"]["params"], plan_length * env.action_size
    head = params["Dense_0"]
    layers = algorithm.actor.trunk.layers(params["trunk"])
    layers.append(Layer(head["kernel"][:, :plan_size], head["bias"][:plan_size], None, None, "tanh"))
    strange = {layer.activation for layer in layers} - ACTIVATIONS.keys()
    if strange:
        raise ConfigError(f"scripts/exported_policy.py has no activation {', '.join(sorted(strange))}: add it there")
    arrays = {
        "plan_shape": (plan_length, env.action_size),
        "activation": [layer.activation for layer in layers],
        "skip": [layer.skip for layer in layers],
        **observation_scale(agent_state, env),
    }
    for number, layer in enumerate(layers):
        named = {name: getattr(layer, name) for name in ("kernel", "bias", "scale", "shift")}
        arrays |= {f"{number}/{name}": array for name, array in named.items() if array is not None}
    return {name: np.asarray(array) for name, array in arrays.items()}


def observation_scale(agent_state: AgentState, env: GoalEnv) -> dict[str, jax.Array]:
    """`mean` and `std` (obs_size,) of state and goal as the networks see them."""
    if agent_state.normalizer is None:
        return {"mean": jnp.zeros(env.obs_size), "std": jnp.ones(env.obs_size)}
    at = jnp.concatenate([jnp.arange(env.state_dim), jnp.array(env.goal_indices)])
    mean, std = scales(agent_state.normalizer)
    return {"mean": mean[at], "std": std[at]}


def largest_difference(program: Program, agent_state: AgentState, path: Path) -> float:
    """Between the actions, or plans, of the policy and of its export, for observations around those it has seen."""
    policy, other = policy_of(program.algorithm, agent_state, deterministic=True), ExportedPolicy(path)
    obs = jax.random.normal(jax.random.key(0), (TRIED, program.env.env.obs_size))
    obs = np.asarray(other.arrays["mean"] + other.arrays["std"] * obs)
    with jax.default_matmul_precision("highest"):  # some GPUs multiply with fewer digits
        action, memory = jax.jit(policy.act)(policy.init_memory((TRIED,)), obs, None)
    expected = action if memory == () else memory.actions
    return float(np.max(np.abs(other(obs) - expected)))


def main(args: list[str]) -> int:
    """Runs the command line; returns the exit status: 0 done, 1 the file could not be written, 2 refused."""
    loaded = load_or_refuse(ExportConfig, args, "export.py", check)
    if loaded is None:
        return REFUSED
    config, program, agent_state = loaded
    out = Path(config.out)
    try:
        arrays = exported(program, agent_state)
        with replacing(out) as temporary:
            with temporary.open("wb") as file:
                np.savez(file, **arrays)
            difference = largest_difference(program, agent_state, temporary)
            if not difference <= MOST_DIFFERENCE:
                raise ConfigError(f"the exported policy would differ from the run's by {difference:.1g}: not written")
    except ConfigError as error:
        print(f"error: {error}", file=sys.stderr)
        return REFUSED
    except OSError as error:
        print(f"error: {error}", file=sys.stderr)
        return FAILED
    print(f"written: {out}, which scripts/exported_policy.py loads; it differs from the policy by {difference:.0e}")
    return 0


if __name__ == "__main__":
    sys.exit(run_command(main))
