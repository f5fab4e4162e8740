"""N environments side by side: vectorised steps, the episode's end, trajectory ids, fresh starts and goals."""

from typing import Any

import jax
import jax.numpy as jnp

from envs.base import EnvState, GoalEnv


def choose(which: jax.Array, new: Any, old: Any) -> Any:
    """Leaf by leaf (N, ...) of two trees, `new` where `which` (N,) is true, else `old`."""

    def select(new, old):
        return jnp.where(which.reshape(which.shape + (1,) * (old.ndim - which.ndim)), new, old)

    return jax.tree.map(select, new, old)


class VectorEnv:
    """Steps N copies of a `GoalEnv` in parallel; every leaf of its `EnvState` has a leading axis N.

    An episode ends when the env terminates or after `episode_length` env steps. Rewards and metrics of one `step` are
    sums over its `action_repeat` env steps.
    """

    def __init__(
        self,
        env: GoalEnv,
        episode_length: int,
        action_repeat: int = 1,
        sharding: jax.sharding.NamedSharding | None = None,
    ):
        """`sharding` says which devices the episodes begin on; None leaves it to JAX."""
        self.env = env
        self.episode_length = episode_length
        self.action_repeat = action_repeat
        self.sharding = sharding

    def reset(self, key: jax.Array, num_envs: int, goals: jax.Array | None = None) -> EnvState:
        """N new episodes, each with its own start and goal; towards `goals` (N, goal_dim) if they are given."""
        env_state = jax.vmap(self.env.reset)(jax.random.split(key, num_envs), goals)
        return jax.lax.with_sharding_constraint(env_state, self.sharding) if self.sharding else env_state

    def step(self, env_state: EnvState, action: jax.Array) -> EnvState:
        """Applies an (N, action_size) action `action_repeat` times, or until the episode ends; restarts nothing.

        An env whose physics blew up has ended too, with nothing of that env step counted; `nonfinite` tells which.
        """

        step_each = jax.vmap(self.env.step)
        if self.sharding and self.sharding.mesh.size > 1:
            # Each device steps its own: an engine outside of JAX would be handed all of them on the first device.
            own = {"in_specs": self.sharding.spec, "out_specs": self.sharding.spec, "check_vma": False}
            step_each = jax.shard_map(step_each, mesh=self.sharding.mesh, **own)

        def repeat(total: EnvState, _):
            stepped = step_each(total, action)
            running = (total.done == 0) & (total.steps < self.episode_length)
            blown_up = running & self.nonfinite(stepped)

            def add(old, new):  # `where`, not a product: what is left out may be NaN
                return old + jnp.where(running & ~blown_up, new, 0.0)

            return stepped.replace(
                state=jnp.where(running[:, None], stepped.state, total.state),
                reward=add(total.reward, stepped.reward),
                metrics=jax.tree.map(add, total.metrics, stepped.metrics),
                done=jnp.where(running, jnp.where(blown_up, 1.0, stepped.done), total.done),
                steps=total.steps + running,
            ), None

        zero = jax.tree.map(jnp.zeros_like, (env_state.reward, env_state.done, env_state.metrics))
        start = env_state.replace(reward=zero[0], done=zero[1], metrics=zero[2])
        stepped, _ = jax.lax.scan(repeat, start, length=self.action_repeat)
        truncation = jnp.where(stepped.steps >= self.episode_length, 1.0 - stepped.done, 0.0)
        return stepped.replace(truncation=truncation, done=stepped.done + truncation)

    def nonfinite(self, env_state: EnvState) -> jax.Array:
        """(N,) whether the state is no longer made of finite numbers."""
        return ~jnp.all(jnp.isfinite(env_state.state), axis=-1)

    def pool_size(self, num_envs: int, unroll_length: int) -> int:
        """How many reset states to hold ready for `unroll_length` steps of N envs.

        Enough for every time limit in the unroll and one early end per env on top. If more episodes end, the pool is
        reused from the start: such a start was drawn fresh too, but for another env.
        """
        limits = unroll_length * self.action_repeat // self.episode_length + 1
        return max(num_envs * (limits + 1), min(unroll_length, 64))

    def restart(self, env_state: EnvState, pool: EnvState, used: jax.Array) -> tuple[EnvState, jax.Array]:
        """Begins a new episode where one has ended, from the next unused states of `pool`.

        One pool of P reset states serves a whole unroll, so that fresh starts and goals cost a fraction
        P / (N * unroll_length) of a reset per step. Returns the env state and the count of pool states used so far.
        """
        ended = env_state.done > 0
        pool_size = pool.done.shape[0]
        drawn = used + jnp.cumsum(ended, dtype=jnp.int32) - 1
        slot = (drawn + drawn // pool_size) % pool_size  # each round is shifted by one, away from the same envs
        fresh = jax.tree.map(lambda leaf: leaf[slot], pool)
        return self.begin(env_state, fresh), used + jnp.sum(ended, dtype=jnp.int32)

    def begin(self, env_state: EnvState, fresh: EnvState) -> EnvState:
        """Replaces the envs whose episode has ended by those of `fresh`, counting the new trajectory."""
        return choose(env_state.done > 0, fresh.replace(traj_id=env_state.traj_id + 1), env_state)
