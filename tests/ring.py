"""A ring of rows that spell where they are from, and a plain list of what it should hold."""

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from src import replay_buffer

STATE_DIM, ACTION_SIZE = 3, 2
CAPACITY, NUM_ENVS, UNROLL = 12, 3, 4


@struct.dataclass
class Row:
    """A row of any algorithm."""

    state: jax.Array
    action: jax.Array
    traj_id: jax.Array


def empty_ring(capacity=CAPACITY, num_envs=NUM_ENVS):
    state, action = jnp.zeros((num_envs, STATE_DIM)), jnp.zeros((num_envs, ACTION_SIZE))
    return replay_buffer.init(capacity, Row(state, action, jnp.zeros(num_envs, jnp.int32)))


def make_rows(step, traj_id):
    """Rows whose state and action spell (env, step): `step` and `traj_id` are (T, N)."""
    step, traj_id = np.asarray(step, np.float32), np.asarray(traj_id, np.int32)
    env = np.broadcast_to(np.arange(step.shape[1], dtype=np.float32), step.shape)
    state = np.stack([env, step, traj_id], axis=-1)
    action = np.stack([-env, -step], axis=-1)
    return Row(jnp.asarray(state), jnp.asarray(action), jnp.asarray(traj_id))


insert = jax.jit(replay_buffer.insert)


class Recorder:
    """Inserts unrolls of random episodes, and keeps in plain lists what the ring should hold."""

    def __init__(self, mean_length, capacity=CAPACITY, num_envs=NUM_ENVS, seed=0):
        self.random = np.random.default_rng(seed)
        self.mean_length, self.capacity, self.num_envs = mean_length, capacity, num_envs
        self.buffer_state = empty_ring(capacity, num_envs)
        self.steps = 0
        self.traj = np.zeros(num_envs, np.int32)
        self.kept = []  # (step, traj_id of every env), the last `capacity` of them

    def add(self, unroll=UNROLL):
        new = []
        for _ in range(unroll):
            new.append((self.steps, self.traj.copy()))
            self.steps += 1
            self.traj += self.random.random(self.num_envs) < 1 / self.mean_length
        rows = make_rows([[step] * self.num_envs for step, _ in new], [traj for _, traj in new])
        self.buffer_state = insert(self.buffer_state, rows)
        self.kept = (self.kept + new)[-self.capacity :]

    def futures(self):
        """{(env, step): steps that follow in its trajectory} of every stored row, by looking at each later row."""
        found = {}
        for env in range(self.num_envs):
            for i, (step, traj) in enumerate(self.kept):
                later = [s for s, t in self.kept[i + 1 :] if t[env] == traj[env]]
                found[env, step] = len(later)
        return found
