"""A trained policy at play: one environment, one action at a time, with goals that a person may change."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from envs.base import EnvState
from src.algorithm import policy_of
from src.program import Program, key_beside


class Player:
    """An environment in which the policy acts. A new episode begins when one has ended.

    Attributes:
      q: (nq,) joint positions now.
      goal: (goal_dim,) the commanded goal.
      steps, near: env steps since the goal was commanded, and how many of them were near it.
      seconds_per_action: in the environment's time.
    """

    def __init__(self, program: Program, agent_state: Any, seed: int = 0):
        """Compiles; takes as long as that."""
        config, env = program.config, program.eval_env
        self.env = env.env
        self.seconds_per_action = self.env.dt * config.action_repeat
        self.env_steps_per_action = config.action_repeat
        self._agent_state = agent_state
        self._init_memory = functools.partial(program.algorithm.init_memory, (1,))
        self._key = key_beside(seed, "play")

        def step(agent_state: Any, memory: Any, env_state: EnvState, key: jax.Array) -> tuple[EnvState, Any]:
            policy = policy_of(program.algorithm, agent_state, config.deterministic_eval)
            action, memory = policy.act(memory, env_state.obs, key)
            return env.step(env_state, action), memory

        self._begin = jax.jit(functools.partial(env.reset, num_envs=1))
        self._step = jax.jit(step)
        self._draw_goal = jax.jit(lambda key: self.env.sample_goal(key))
        # Everything is compiled before a person watches.
        self.new_episode()
        self.act()
        self.new_goal()
        self.new_episode()

    def _next_key(self) -> jax.Array:
        self._key, key = jax.random.split(self._key)
        return key

    @property
    def q(self) -> np.ndarray:
        return np.asarray(self.env.pose(self._env_state)[0])

    @property
    def goal(self) -> np.ndarray:
        return np.asarray(self._env_state.goal[0])

    def new_episode(self) -> None:
        """Draws a new start and goal."""
        self._env_state, self._memory = self._begin(self._next_key()), self._init_memory()
        self.near = self.steps = 0

    def new_goal(self, goal: np.ndarray | None = None) -> None:
        """Commands another goal, drawn as an episode's if none is given; the body continues from where it is, and the
        policy forgets what it had planned for the goal before. Where the goal follows something, an episode begins."""
        if self.env.goal_moves:
            return self.new_episode()
        goal = self._draw_goal(self._next_key()) if goal is None else goal
        self._env_state = self._env_state.replace(goal=jnp.asarray(goal, jnp.float32)[None])
        self._memory = self._init_memory()
        self.near = self.steps = 0

    def act(self) -> None:
        """One action of the policy."""
        if self._env_state.done[0] > 0:
            self.new_episode()
        self._env_state, self._memory = self._step(self._agent_state, self._memory, self._env_state, self._next_key())
        self.near += int(self._env_state.metrics["success"][0])
        self.steps += self.env_steps_per_action
