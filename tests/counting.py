"""An algorithm that no other file knows: it learns nothing, keeps every step, and counts what happens to it."""

import functools

import jax
import jax.numpy as jnp

from src import replay_buffer
from src.agent import AgentState
from src.algorithm import Algorithm


def make(config, env):
    """Counts updates, rows and actions; the latter are its memory of an episode. Deterministic, it walks in a circle
    of so many radians; otherwise at random."""
    draws = config.updates_per_training_step(), config.batch_size

    def init(key):
        del key
        params = {name: jnp.zeros(()) for name in ("updates", "observed", "sum")}
        return AgentState(params=params, opt_state=(), normalizer=None)

    def act(agent_state, memory, obs, key, deterministic=False):
        del agent_state
        if deterministic:
            angle = memory.astype(float)
            return jnp.stack([jnp.cos(angle), jnp.sin(angle)], axis=-1), memory + 1
        return jax.random.uniform(key, (*obs.shape[:-1], env.action_size), minval=-1.0), memory + 1

    def absorb(agent_state, rows):
        params = agent_state.params
        seen = {"observed": params["observed"] + rows.traj_id.size, "sum": params["sum"] + jnp.sum(rows.state)}
        return agent_state.replace(params=params | seen)

    def draw(agent_state, buffer_state, index, key):
        del agent_state, buffer_state
        return replay_buffer.sample_rows(key, index, draws)

    def update(agent_state, batch, key):
        del batch
        updates = agent_state.params["updates"] + 1
        metrics = {"number": updates, "draw": jax.random.uniform(key)}
        return agent_state.replace(params=agent_state.params | {"updates": updates}), metrics

    return Algorithm(
        init=init,
        init_memory=functools.partial(jnp.zeros, dtype=jnp.int32),
        act=act,
        keep=lambda step: step,
        absorb=absorb,
        index=functools.partial(replay_buffer.index_futures, least=0),
        draw=draw,
        gather=lambda rows, index, pick: replay_buffer.take(rows, pick),
        update=update,
        drawable=lambda index: index.rank[-1],
    )
