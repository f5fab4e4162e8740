"""Point: a point in a square goes where it is told to. Needs no physics engine, and is learned in a minute."""

import jax
import jax.numpy as jnp

from envs.base import GoalEnv

# For pictures: a ball on two slides, and the square's border.
MODEL = """
<mujoco>
  <worldbody>
    <geom name="floor" type="plane" size="2 2 1"/>
    <geom type="box" size="0.05 1.1 0.05" pos="-1.05 0 0.05"/>
    <geom type="box" size="0.05 1.1 0.05" pos="1.05 0 0.05"/>
    <geom type="box" size="1 0.05 0.05" pos="0 -1.05 0.05"/>
    <geom type="box" size="1 0.05 0.05" pos="0 1.05 0.05"/>
    <body name="point" pos="0 0 0.1">
      <joint name="x" type="slide" axis="1 0 0"/>
      <joint name="y" type="slide" axis="0 1 0"/>
      <geom type="sphere" size="0.1" mass="1"/>
    </body>
  </worldbody>
  <actuator>
    <motor joint="x"/>
    <motor joint="y"/>
  </actuator>
</mujoco>
"""


class Point(GoalEnv):
    """A point in the square from -1 to 1; it has to come within 0.2 m of another point.

    | state | content | unit |
    |---|---|---|
    | 0-1 | x, y | m |

    Action: a tenth of it is the way that the point goes in a step, up to the square's border. Start and goal: uniform
    on the square. Never ends early.
    """

    state_dim = 2
    action_size = 2
    goal_indices = (0, 1)
    goal_dist = 0.2
    dt = 0.1
    model_xml = MODEL

    def sample_goal(self, key):
        _, goal_key = jax.random.split(key)
        return jax.random.uniform(goal_key, (2,), minval=-1.0)

    def sample_start(self, key, goal):
        start_key, _ = jax.random.split(key)
        return jax.random.uniform(start_key, (2,), minval=-1.0)

    def init_pipeline(self, start):
        return start

    def step_pipeline(self, pipeline_state, action):
        return jnp.clip(pipeline_state + 0.1 * action, -1.0, 1.0)

    def observe(self, pipeline_state, action):
        return pipeline_state

    def step_metrics(self, before, after, action):
        return {"x": after.state[0], "effort": jnp.sum(jnp.square(action))}

    def dense_reward(self, before, after, action):
        """Closeness."""
        return -after.metrics["dist"]

    def pose(self, env_state):
        return env_state.pipeline_state
