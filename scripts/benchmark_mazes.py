"""Times the mazes on this machine: three moving walls against a box on every wall cell.

    python scripts/benchmark_mazes.py
    python scripts/benchmark_mazes.py --layouts u_maze hardest_maze --num-envs 256 --repeats 5

Env steps per second of random actions, over all envs: medians over rounds in which both take turns, so that their ratio
can be trusted further than the speeds themselves. The plain ant, which meets no walls, is there to compare.
"""

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import jax

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # so that it runs from any directory

from envs.ant import Ant
from envs.ant_maze import AntMaze
from envs.base import GoalEnv
from envs.maze import LAYOUTS
from envs.wrappers import VectorEnv
from src.process import enable_compilation_cache


def build(env: GoalEnv, num_envs: int, steps: int, clock: Callable[[], float]) -> Callable[[], float]:
    """A call that takes `steps` random steps in `num_envs` envs and returns env steps per second of `clock`."""
    vector = VectorEnv(env, episode_length=1000)

    def walk(env_state, key):
        def step(env_state, key):
            action = jax.random.uniform(key, (num_envs, env.action_size), minval=-1.0)
            return vector.step(env_state, action), None

        return jax.lax.scan(step, env_state, jax.random.split(key, steps))[0].obs

    env_state = jax.jit(vector.reset, static_argnums=1)(jax.random.key(0), num_envs)
    compiled = jax.jit(walk).lower(env_state, jax.random.key(1)).compile()

    def timed() -> float:
        start = clock()
        jax.block_until_ready(compiled(env_state, jax.random.key(1)))
        return num_envs * steps / (clock() - start)

    return timed


def main(args: list[str]) -> None:
    """Measures and prints a Markdown table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layouts", nargs="+", choices=LAYOUTS, default=["u_maze", "big_maze", "hardest_maze"])
    parser.add_argument("--backend", choices=AntMaze.physics, default=AntMaze.default_backend)
    parser.add_argument("--num-envs", type=int, default=256)
    parser.add_argument("--steps", type=int, default=4, help="control steps per timed call")
    parser.add_argument("--repeats", type=int, default=5, help="rounds that count")
    parser.add_argument("--cpu-time", action="store_true", help="per second of CPU time, for a machine that is shared")
    options = parser.parse_args(args)
    if min(options.num_envs, options.steps, options.repeats) < 1:
        parser.error("--num-envs, --steps and --repeats are at least 1")
    enable_compilation_cache()

    clock = time.process_time if options.cpu_time else time.perf_counter
    sizes = (options.num_envs, options.steps, clock)
    walks = {("ant", False): build(Ant(backend=options.backend), *sizes)}
    for layout in options.layouts:
        for full in (False, True):
            print(f"compiling {layout}, {'full' if full else 'moving'} walls ...", file=sys.stderr)
            walks[layout, full] = build(AntMaze(layout=layout, full_walls=full, backend=options.backend), *sizes)
    rounds = [{name: walk() for name, walk in walks.items()} for _ in range(options.repeats + 1)][1:]
    speed = {name: statistics.median(one[name] for one in rounds) for name in walks}
    unit = "second of CPU time" if options.cpu_time else "second"
    print(f"\n{jax.devices()[0].device_kind}, {options.backend}, {options.num_envs} envs, env steps per {unit}\n")
    print("| maze | three moving walls | a box a wall cell | ratio |\n|---|---|---|---|")
    for layout in options.layouts:
        moving, full = speed[layout, False], speed[layout, True]
        ratio = statistics.median(one[layout, False] / one[layout, True] for one in rounds)
        print(f"| {layout} | {moving:.0f} | {full:.0f} | {ratio:.1f} |")
    print(f"| none (ant) | {speed['ant', False]:.0f} | | |")


if __name__ == "__main__":
    main(sys.argv[1:])
