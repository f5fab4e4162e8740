"""MuJoCo's own engine: its C library on the cores of the host, called once per control step for all environments.

A step is a pure function of joint positions, velocities and control, the same for any number of threads: each
environment is stepped by itself, in float64, by a solver that starts cold and runs until it has converged.
"""

import atexit
import functools
import logging
from typing import Any
from xml.etree import ElementTree

import jax
import jax.numpy as jnp
import mujoco
import numpy as np
from brax import kinematics, math
from brax.base import Motion, State, System, Transform
from mujoco.rollout import Rollout

from envs.physics import load_system, num_cores
from utils import FAILURES

# A solver that runs until it has converged; MuJoCo's tolerance of 1e-8 saves nothing measurable and leaves q 1e-7 off
SOLVER = {"solver": "Newton", "iterations": "100", "ls_iterations": "50", "tolerance": "1e-10"}
# Metres, radians, and these per second: more is left only by an acceleration that MuJoCo warns of.
LARGEST = 1e5


def load(xml: str) -> System:
    """brax's System, whose `mj_model` is the one that is stepped: by `SOLVER`, and no state that blew up is reset in
    silence.

    Raises:
      ValueError: actuators with a state of their own, which positions and velocities do not hold.
    """
    mujoco.set_mju_user_warning(lambda text: None)  # would go to a file in the user's folder; NaN says it
    logging.getLogger("jax._src.callback").setLevel(logging.CRITICAL)  # repeats what is raised
    root = ElementTree.fromstring(xml)
    option = ElementTree.SubElement(root, "option", SOLVER)  # MuJoCo takes the last of several
    ElementTree.SubElement(option, "flag", {"autoreset": "disable"})
    system = load_system(ElementTree.tostring(root, encoding="unicode"))
    if num := system.mj_model.na:
        raise ValueError(f"the engine mujoco steps joints alone: this model has {num} states of actuators besides")
    return system


def init(sys: System, q: jax.Array, qd: jax.Array) -> State:
    """The pipeline state of joint positions and velocities."""
    x, _ = kinematics.forward(sys, q, jnp.zeros_like(qd))
    return State(q=q, qd=qd, x=x, xd=_motion(sys, q, qd, x), contact=None)


def _motion(sys: System, q: jax.Array, qd: jax.Array, x: Transform) -> Motion:
    """How the links at `x` move: as their poses do. What brax makes of `qd` is wrong for a link with several joints.

    Each link's motion in its parent comes first, then sums of these: of the derivative of a whole chain, XLA on a CPU
    computes every link again inside the next.
    """
    parents = np.array(sys.link_parents)
    apart = sys.replace(link_parents=(-1,) * len(parents))
    own, rate = jax.jvp(lambda q: kinematics.forward(apart, q, jnp.zeros_like(qd))[0], (q,), (_rates(sys, q, qd),))
    turning = 2 * jax.vmap(math.quat_mul)(rate.rot, jax.vmap(math.quat_inv)(own.rot))[:, 1:]
    hangs_on = np.eye(len(parents), dtype=np.float32)  # (links, links) 1 where one is part of the way to the other
    for link, parent in enumerate(parents):
        hangs_on[link] += hangs_on[parent] * (parent >= 0)
    base = (parents < 0)[:, None]
    to_world = jnp.where(base, np.eye(4, dtype=np.float32)[0], x.rot[parents])
    ang = jnp.matmul(hangs_on, jax.vmap(math.rotate)(turning, to_world), precision="highest")
    vel = jax.vmap(math.rotate)(rate.pos, to_world)
    vel += jnp.where(base, 0.0, jnp.cross(ang[parents], x.pos - x.pos[parents]))
    return Motion(vel=jnp.matmul(hangs_on, vel, precision="highest"), ang=ang)


def _rates(sys: System, q: jax.Array, qd: jax.Array) -> jax.Array:
    """(nq,) the change of q per second: that of a free joint's quaternion follows from the angular velocity in it."""
    rates, at, dof = [], 0, 0
    for joints in sys.link_types:
        if joints == "f":
            turned = math.quat_mul(q[at + 3 : at + 7], jnp.append(0.0, qd[dof + 3 : dof + 6]))
            rates += [qd[dof : dof + 3], turned / 2]
            at, dof = at + 7, dof + 6
        else:
            rates.append(qd[dof : dof + int(joints)])
            at, dof = at + int(joints), dof + int(joints)
    return jnp.concatenate(rates)


def step(sys: System, pipeline_state: State, control: jax.Array, n_frames: int) -> State:
    """The pipeline state `n_frames` steps of MuJoCo later; NaN where it warned of numbers that it cannot step."""
    q, qd = pipeline_state.q, pipeline_state.qd
    shapes = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), (q, qd))
    beside_others = bool(jax.sharding.get_abstract_mesh().manual_axes)
    advance = functools.partial(_advance, sys.mj_model, n_frames, beside_others)
    return init(sys, *jax.pure_callback(advance, shapes, q, qd, control, vmap_method="broadcast_all"))


class Worker:
    """What one call at a time steps a model with: threads, and MuJoCo's scratch memory for each of them."""

    def __init__(self, model: mujoco.MjModel):
        # Several devices call side by side, and share the cores.
        num_threads = max(num_cores() // jax.local_device_count(), 1)
        self.model = model
        self.data = [mujoco.MjData(model) for _ in range(num_threads)]
        self.rollout = Rollout(nthread=num_threads if num_threads > 1 else 0)

    def run(self, start: np.ndarray, control: np.ndarray) -> np.ndarray:
        """(N, states) the last of the states that `control` (N, T, nu) leads to from `start` (N, states)."""
        num, num_steps, _ = control.shape
        states = np.empty((num, num_steps, start.shape[1]))
        models = [self.model] * num
        self.rollout.rollout(models, self.data, start, control, nstep=num_steps, state=states, skip_checks=True)
        return states[:, -1]


@functools.lru_cache(maxsize=16)
def idle_workers(model: mujoco.MjModel) -> list[Worker]:
    """The workers of a model that nobody uses now; there are as many as there were ever calls at a time."""
    return []


atexit.register(idle_workers.cache_clear)  # threads end before Python does


def _advance(
    model: mujoco.MjModel, n_frames: int, beside_others: bool, *arguments: Any
) -> tuple[np.ndarray, np.ndarray]:
    """(..., nq), (..., nv) after `n_frames` steps from q (..., nq), qd (..., nv) under control (..., nu).

    An error is kept in `FAILURES`. Beside other devices, which would wait for this one for ever, NaN stands for it."""
    q, qd, control = (np.asarray(each) for each in arguments)
    try:
        after = _roll(model, n_frames, q, qd, control)
    except Exception as error:
        FAILURES.append(f"MuJoCo: {type(error).__name__}: {error}")
        if not beside_others:
            raise
        after = np.full((q[..., 0].size, q.shape[-1] + qd.shape[-1]), np.nan)
    new_q, new_qd = np.split(after, [q.shape[-1]], axis=1)
    return new_q.reshape(q.shape).astype(q.dtype), new_qd.reshape(qd.shape).astype(qd.dtype)


def _roll(model: mujoco.MjModel, n_frames: int, q: np.ndarray, qd: np.ndarray, control: np.ndarray) -> np.ndarray:
    """(N, nq + nv) what `_advance` returns, of all N environments."""
    num = q[..., 0].size
    start = np.concatenate([np.zeros((num, 1)), q.reshape(num, -1), qd.reshape(num, -1)], axis=1)
    control = np.repeat(control.reshape(num, 1, -1).astype(np.float64), n_frames, axis=1)
    idle = idle_workers(model)
    try:
        worker = idle.pop()
    except IndexError:
        worker = Worker(model)
    time, after = np.split(worker.run(start, control), [1], axis=1)
    idle.append(worker)
    # After a warning MuJoCo keeps still: its clock is behind, and a control that is no number would count as zero. One
    # in the last frame leaves the clock on time, but numbers that no body reaches.
    sound = np.isclose(time[:, 0], n_frames * model.opt.timestep) & np.isfinite(control).all(axis=(1, 2))
    sound &= (np.abs(after) < LARGEST).all(axis=1)
    after[~sound] = np.nan
    return after
