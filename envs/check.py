"""Checks an environment against the contract of `envs.base`: `python -m envs.check ant`, or `--all`.

`--table` prints the Markdown table of all environments that the README shows.
"""

import argparse
import contextlib
import functools
import sys
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from envs import ENVS, make_env
from envs.base import EnvState, GoalEnv
from envs.jax_platform import all_devices
from envs.physics import BACKENDS, PhysicsEnv
from envs.render import Renderer, Scene
from envs.wrappers import VectorEnv
from utils import Config, unknown

MOST = 2**24  # envs, and steps
# For short roll-outs, where compiling costs more than running: half the compile time, several times the run time.
QUICK_COMPILE = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}
# For MJX on a CPU, where XLA fuses each link of a chain into the next: an arm takes 26 ms per physics step, not 0.2.
UNFUSED = {"xla_disable_hlo_passes": "fusion"}


class Check(NamedTuple):
    """One thing that was looked at."""

    name: str
    passed: bool
    detail: str


class Trace(NamedTuple):
    """Random actions in N envs for T steps; every leaf is (T, N, ...), `pipeline_state` reduced to [pose, qd].

    `after` is the outcome of `action` before any restart, `dense` the shaped reward of the step.
    """

    before: EnvState
    action: jax.Array
    after: EnvState
    dense: jax.Array


def rollout(env: GoalEnv, num_envs: int, num_steps: int, episode_length: int, key: jax.Array) -> Trace:
    """Steps `num_envs` envs with uniform actions, restarting ended episodes as training does."""
    vector = VectorEnv(env, episode_length)
    pool_key, action_key = jax.random.split(key)
    pool = vector.reset(pool_key, num_envs + vector.pool_size(num_envs, num_steps))
    first = jax.tree.map(lambda leaf: leaf[:num_envs], pool)

    def slim(env_state: EnvState) -> EnvState:
        return env_state.replace(pipeline_state=[env.pose(env_state), getattr(env_state.pipeline_state, "qd", None)])

    def step(carry: tuple[EnvState, jax.Array], step_key: jax.Array):
        before, used = carry
        action = jax.random.uniform(step_key, (num_envs, env.action_size), minval=-1.0)
        after = vector.step(before, action)
        dense = jax.vmap(env.dense_reward)(before, after, action)
        return vector.restart(after, pool, used), Trace(slim(before), action, slim(after), dense)

    start, keys = (first, jnp.full((), num_envs, jnp.int32)), jax.random.split(action_key, num_steps)
    return jax.lax.scan(step, start, keys)[1]


# The checks.


def check_contract(env: GoalEnv) -> Check:
    """Sizes and indices against what reset and step return. Traces them only."""
    try:
        first = jax.eval_shape(env.reset, jax.random.key(0))
        after = jax.eval_shape(env.step, first, jax.ShapeDtypeStruct((env.action_size,), jnp.float32))
    except (TypeError, ValueError) as error:
        return Check("contract", False, " ".join(str(error).split())[:300])
    shapes = [jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), state) for state in (first, after)]
    rules = {
        f"state_dim is {env.state_dim}, the state {first.state.shape}": first.state.shape == (env.state_dim,),
        "reset and step return different types": shapes[0] == shapes[1],
        "a metric is no scalar": all(leaf.shape == () for leaf in after.metrics.values()),
        "the reward is no scalar": after.reward.shape == (),
        "a threshold is not positive": all(limit > 0 for limit in thresholds(env).values()),
    }
    broken = [problem for problem, holds in rules.items() if not holds]
    engine = env.backend or "no engine"
    sizes = f"obs {env.obs_size} = {env.state_dim} + {env.goal_dim}, action {env.action_size}, {engine}"
    return Check("contract", not broken, "; ".join(broken) or sizes)


def check_control_step(env: GoalEnv) -> Check:
    """One control step takes the same time on every backend, and the loaded model the backend's own time step."""
    if not isinstance(env, PhysicsEnv):
        return Check("control step", env.dt > 0, f"{env.dt:g} s")
    supported = env.supported()
    steps = {backend: physics.timestep * physics.n_frames for backend, physics in supported.items()}
    same = np.allclose([*steps.values()], env.dt, rtol=1e-6)
    loaded = np.isclose(float(env.sys.opt.timestep), supported[env.backend].timestep)
    return Check("control step", bool(same and loaded), ", ".join(f"{name} {dt:g} s" for name, dt in steps.items()))


def check_finite(trace: Trace) -> Check:
    """No NaN and no infinity anywhere in the roll-out."""
    bad = [
        f"{jax.tree_util.keystr(path)} at step {np.argwhere(~np.isfinite(leaf))[0][0]}"
        for path, leaf in jax.tree_util.tree_leaves_with_path(trace)
        if not np.all(np.isfinite(leaf))
    ]
    num_steps, num_envs = trace.dense.shape
    return Check("finite", not bad, "; ".join(bad[:3]) or f"{num_steps} random steps in {num_envs} envs")


def check_success(env: GoalEnv, trace: Trace) -> Check:
    """`dist` and the success flags, computed again from states, goals and `goal_indices`; reward is `success`."""
    state, goal = (np.asarray(x, np.float64) for x in (trace.after.state, trace.before.goal))
    dist = np.asarray(env.goal_norm(state[..., list(env.goal_indices)] - goal))
    metrics = trace.after.metrics
    wrong = [] if np.allclose(dist, metrics["dist"], rtol=1e-4, atol=1e-5) else ["dist"]
    for name, limit in thresholds(env).items():
        decided = np.abs(dist - limit) > 1e-4
        if np.any(((dist < limit) != (metrics[name] > 0)) & decided):
            wrong.append(name)
    if not np.array_equal(trace.after.reward, metrics["success"]):
        wrong.append("sparse reward")
    counts = ", ".join(f"{name} < {limit:g} in {np.mean(metrics[name]):.1%}" for name, limit in thresholds(env).items())
    return Check("success", not wrong, f"differs: {', '.join(wrong)}" if wrong else counts + " of the steps")


def check_episodes(trace: Trace, episode_length: int) -> Check:
    """Step counts, time limits and trajectory ids against the episodes' ends."""
    done = trace.after.done > 0
    count = np.zeros(done.shape, int)  # of the steps since the start
    for t in range(1, len(done)):
        count[t] = np.where(done[t - 1], 0, count[t - 1] + 1)
    limit = count + 1 >= episode_length
    truncated = trace.after.truncation > 0
    wrong = {
        "steps": trace.before.steps != count,
        "trajectory ids": trace.before.traj_id != np.cumsum(done, axis=0) - done,
        "time limit": limit & ~done,
        "truncation": truncated & ~limit,
    }
    broken = [name for name, where in wrong.items() if np.any(where)]
    summary = f"{done.sum()} ended, {(done & ~truncated).sum()} of them early"
    return Check("episodes", not broken, f"wrong: {', '.join(broken)}" if broken else summary)


def check_fresh(env: GoalEnv, trace: Trace) -> Check:
    """The goal stays through an episode, unless it is one that follows. Another start or goal comes next: it may be the
    same by chance, where there are few, but not in more than half of the episodes."""
    goal, obs, starts = np.asarray(trace.before.goal), np.asarray(trace.before.obs), np.asarray(trace.before.steps) == 0
    moved = not env.goal_moves and np.any((goal[1:] != goal[:-1]).any(axis=-1) & ~starts[1:])
    repeated = 0
    for number in range(goal.shape[1]):
        first = obs[starts[:, number], number]
        repeated += np.sum((first[1:] == first[:-1]).all(axis=-1))
    num_goals = len(np.unique(goal[starts], axis=0))
    detail = f"{num_goals} different goals in {starts.sum()} episodes"
    detail = f"{repeated} episodes began as the one before; {detail}" if repeated else detail
    passed = bool(not moved and repeated <= (starts.sum() - goal.shape[1]) / 2)
    return Check("fresh goals", passed, f"a goal moved; {detail}" if moved else detail)


def check_same(first: Trace, second: Trace) -> Check:
    """Two runs from one key give the same numbers."""
    pairs = zip(jax.tree.leaves(first), jax.tree.leaves(second), strict=True)
    furthest = max(float(np.max(np.abs(np.asarray(a, np.float64) - b))) for a, b in pairs)
    return Check("determinism", furthest == 0, f"largest difference of two runs {furthest:g}")


def check_picture(env: GoalEnv, trace: Trace) -> Check:
    """The first pose and its goal are drawn, as far as there is a model and an OpenGL to draw with."""
    poses, goals = np.asarray(trace.before.pipeline_state[0])[:, 0], np.asarray(trace.before.goal)[:, 0]
    if env.model_xml is None:
        return Check("picture", True, "not drawn: the environment has no model_xml")
    try:
        Scene(env).camera(poses[:1], goals[:1])
        with contextlib.closing(Renderer(env, 48, 64, shadows=False)) as renderer:
            colours = len(np.unique(renderer.render(poses[0], goals[0]).reshape(-1, 3), axis=0))
    except RuntimeError as error:
        return Check("picture", True, f"not drawn: {error}")
    except (TypeError, ValueError) as error:
        return Check("picture", False, " ".join(str(error).split())[:300])
    return Check("picture", colours > 1, f"drawn in {colours} colours, goal x, y, z: {goals[0][: env.goal_place_dim]}")


def thresholds(env: GoalEnv) -> dict[str, float]:
    """Success metric -> its threshold."""
    return {"success": env.goal_dist, **env.other_thresholds}


# Running them.


def check_env(
    env: GoalEnv, num_envs: int = 64, num_steps: int = 1000, compiler_options: dict[str, Any] | None = None
) -> tuple[list[Check], Trace | None]:
    """Runs every check on an env with sparse rewards; also returns the roll-out, unless the contract is broken.

    Episodes last a tenth of `num_steps`, so that every env is restarted often.
    """
    checks = [check_contract(env)]
    if not checks[0].passed:
        return checks, None
    episode_length = max(2, num_steps // 10)
    start = time.monotonic()
    program = jax.jit(functools.partial(rollout, env, num_envs, num_steps, episode_length))
    unfused = not compiler_options and (env.backend, jax.default_backend()) == ("mjx", "cpu")
    program = program.lower(jax.random.key(0)).compile(compiler_options=UNFUSED if unfused else compiler_options)
    compile_seconds = time.monotonic() - start

    def run() -> Trace:
        return jax.block_until_ready(program(jax.random.key(0)))

    first = jax.device_get(run())
    start = time.monotonic()
    second = run()
    speed = num_envs * num_steps / (time.monotonic() - start)
    checks += [
        check_control_step(env),
        check_finite(first),
        check_success(env, first),
        check_episodes(first, episode_length),
        check_fresh(env, first),
        check_same(first, jax.device_get(second)),
        check_picture(env, first),
        Check("speed", True, f"{speed:,.0f} steps/s with {num_envs} envs, compiled in {compile_seconds:.0f} s"),
    ]
    return checks, first


def table() -> str:
    """The Markdown table of the registry."""
    titles = ("name", "obs", "state", "goal indices", "action", "backend", "dt (s)", "success below (m)")
    rows = [(*titles, "others", "ends early", "episode length")]
    rows.append(("---",) * len(rows[0]))
    for name in ENVS:
        env = make_env(name)
        indices = ", ".join(map(str, env.goal_indices))
        sizes = (name, env.obs_size, env.state_dim, indices, env.action_size, env.backend or "-", f"{env.dt:g}")
        others = ", ".join(f"{metric} {limit:g}" for metric, limit in env.other_thresholds.items())
        early = "no" if type(env).terminated is GoalEnv.terminated else "yes"
        rows.append((*sizes, f"{env.goal_dist:g}", others or "-", early, Config.episode_length))
    return "\n".join("| " + " | ".join(map(str, row)) + " |" for row in rows)


def report(name: str, env: GoalEnv, check: Callable[[GoalEnv], tuple[list[Check], Any]]) -> bool:
    """Checks one env, printing a line per check; returns whether all passed."""
    checks, _ = check(env)
    for outcome in checks:
        print(f"{'PASS' if outcome.passed else 'FAIL'} {name} {outcome.name}: {outcome.detail}", flush=True)
    return all(outcome.passed for outcome in checks)


def main(args: list[str]) -> int:
    """Runs the command line; returns the exit status: 0 all passed, 1 a check failed, 2 bad input."""
    parser = argparse.ArgumentParser(prog="python -m envs.check", description=__doc__.splitlines()[0])
    parser.add_argument("name", nargs="?", help="environment to check")
    parser.add_argument("--all", action="store_true", help="check every environment of the registry")
    parser.add_argument("--table", action="store_true", help="print the Markdown table of all environments")
    parser.add_argument("--backend", help="physics backend; the environment's own if left out")
    parser.add_argument("--num_envs", type=int, default=64, help="environments in parallel (default: %(default)s)")
    parser.add_argument("--num_steps", type=int, default=1000, help="steps of each (default: %(default)s)")
    options = parser.parse_args(args)
    if options.table:
        print(table())
        return 0
    if options.all == bool(options.name):
        print("error: give one environment's name, or --all, or --table", file=sys.stderr)
        return 2
    if options.all and options.backend not in (None, *BACKENDS):
        print(f"error: {unknown('backend', options.backend, BACKENDS)}", file=sys.stderr)
        return 2
    if not all(2 <= number <= MOST for number in (options.num_envs, options.num_steps)):
        print(f"error: --num_envs and --num_steps are 2 to {MOST:,}", file=sys.stderr)
        return 2
    check = functools.partial(check_env, num_envs=options.num_envs, num_steps=options.num_steps)
    passed = True
    for name in ENVS if options.all else [options.name]:
        try:
            all_devices()
            env = make_env(name, options.backend)
        except ValueError as error:
            print(f"error: {error}", file=sys.stderr)
            if options.all and options.backend:
                continue  # to those that have this backend
            return 2
        passed &= report(name, env, check)
    return 0 if passed else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
