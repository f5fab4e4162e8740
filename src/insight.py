"""Pictures of what a run has learned: the critic's energy over the goal plane, the goals it reaches, its training.

Each is a file of the run folder. The first two need goals that begin with x, y.
"""

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import EngFormatter

from envs.base import GoalEnv
from envs.render import wall_boxes
from src.evaluator import Episodes
from src.output import read_rows, survives
from src.program import Program
from utils import Config, replacing

Records = list[dict[str, str]]

GRID = 81  # goals along each side of the plane
# Okabe and Ito's blue and vermilion, and Cividis: told apart with any colour vision.
BLUE, VERMILION, COLOUR_MAP = "#0072B2", "#D55E00", "cividis"
STYLE = {"font.size": 9, "axes.titlesize": 9, "legend.frameon": False, "lines.linewidth": 1.5}


def draw_all(
    run_dir: Path, program: Program, agent_state: Any, episodes: Episodes, suffix: str = ""
) -> tuple[list[Path], bool]:
    """Writes every picture that the run has the data for into its folder, as NAME + `suffix` + .png; returns their
    paths, and whether all worked: what cannot be drawn costs one warning."""
    rows = read_rows(run_dir / "metrics.csv", 2**63)
    paths = []

    def draw(name: str) -> None:
        path = run_dir / f"{name}{suffix}.png"
        with matplotlib.rc_context(STYLE):
            figure = PICTURES[name](program, agent_state, episodes, rows)
            if figure is not None:
                with replacing(path) as temporary:  # a full disk leaves no half of a picture
                    figure.savefig(temporary, format="png", dpi=150)
                paths.append(path)

    worked = [survives(f"picture {name}", functools.partial(draw, name), "the others are drawn") for name in PICTURES]
    return paths, all(worked)


# The goal plane.


def energy_picture(program: Program, agent_state: Any, episodes: Episodes, rows: Records) -> Figure | None:
    """The energy of every goal of the plane at start and end of an episode: the one with the longest way to a goal at
    which it stayed."""
    del rows
    env = program.eval_env.env
    if min(env.goal_dim, env.goal_place_dim) < 2 or program.algorithm.energy is None:
        return None
    ends = ((episodes.start, episodes.goal), (episodes.last, episodes.last_goal))
    way, left = (np.asarray(env.goal_distance(*end)) for end in ends)
    shown = int(np.argmax(np.where(left < env.goal_dist, way, -left)))
    ends = [(state[shown], goal[shown]) for state, goal in ends]
    low, high = plane(env, episodes)
    x, y = (np.linspace(low[axis], high[axis], GRID) for axis in (0, 1))
    energies = [energy_of_goals(program, agent_state, *end, x, y) for end in ends]
    # The corners, where no goal lies, would take most of the scale.
    least, most = np.quantile(energies, 0.1), np.max(energies)
    figure = Figure(figsize=(8.6, 4), layout="constrained")
    both = figure.subplots(1, 2, sharey=True)
    for title, (state, goal), energy, axes in zip(("start", "end"), ends, energies, both, strict=True):
        colours = axes.pcolormesh(x, y, energy, cmap=COLOUR_MAP, vmin=least, vmax=most, rasterized=True)
        axes.plot(*achieved(env, state), "o", color="white", markeredgecolor="black", label="achieved now")
        axes.plot(*goal[:2], "*", color=VERMILION, markeredgecolor="black", markersize=11, label="commanded goal")
        finish_plane(axes, env, low, high, f"at the {title} of an episode")
    figure.colorbar(colours, ax=both, extend="min", label="energy f(s, π(s, g), g)")
    figure.legend(*axes.get_legend_handles_labels(), loc="outside lower center", ncols=2)
    figure.suptitle(f"{name_of_eval_env(program.config)}: energy of the critic over goals g")
    return figure


def energy_of_goals(
    program: Program, agent_state: Any, state: np.ndarray, goal: np.ndarray, x: np.ndarray, y: np.ndarray
) -> np.ndarray:
    """(len(y), len(x)) energies in one state of the goals at x, y, each after the action that the policy would take for
    it; further entries of the goal as in `goal`."""
    env = program.eval_env.env
    plane_x, plane_y = np.meshgrid(x, y)
    goals = jnp.broadcast_to(goal, (*plane_x.shape, env.goal_dim)).at[..., :2].set(np.stack([plane_x, plane_y], -1))
    states = jnp.broadcast_to(state, (*plane_x.shape, env.state_dim))
    return np.asarray(_energies(program, agent_state.replace(opt_state=None), states, goals))


@functools.partial(jax.jit, static_argnums=0)
def _energies(program: Program, agent_state: Any, states: jax.Array, goals: jax.Array) -> jax.Array:
    algorithm = program.algorithm
    return algorithm.energy(agent_state, states, algorithm.propose(agent_state, states, goals), goals)


def goals_picture(program: Program, agent_state: Any, episodes: Episodes, rows: Records) -> Figure | None:
    """Which goals are reached, and for how long."""
    del agent_state, rows
    env = program.eval_env.env
    if min(env.goal_dim, env.goal_place_dim) < 2:
        return None
    near, goals = episodes.totals["success"], episodes.last_goal[:, :2]
    reached, ended = near > 0, achieved(env, episodes.last)
    figure = Figure(figsize=(5.2, 4.4), layout="constrained")
    axes = figure.subplots()
    for goal, end in zip(goals[~reached], ended[~reached], strict=True):
        axes.plot(*np.stack([goal, end], axis=1), color=VERMILION, linewidth=0.5, alpha=0.5, zorder=1)
    axes.scatter(*goals[~reached].T, marker="x", s=22, color=VERMILION, label="missed; line to its end", zorder=2)
    longest = program.config.episode_length
    colours = axes.scatter(
        *goals[reached].T, c=near[reached], cmap=COLOUR_MAP, vmin=0, vmax=longest, s=18, label="reached", zorder=3
    )
    figure.colorbar(colours, ax=axes, label="time near goal (env steps)")
    axes.plot(*achieved(env, episodes.start).T, ".", color="#777777", markersize=3, label="start", zorder=1)
    finish_plane(axes, env, *plane(env, episodes), "")
    figure.legend(loc="outside lower center", ncols=3)
    axes.set_title(f"{name_of_eval_env(program.config)}: {reached.sum():,} of {len(reached):,} goals reached")
    return figure


def name_of_eval_env(config: Config) -> str:
    """The env that starts, goals and walls are of."""
    return config.eval_env or config.env_name


def achieved(env: GoalEnv, state: np.ndarray) -> np.ndarray:
    """(..., 2) x, y of the goal that states (..., state_dim) have achieved."""
    return state[..., list(env.goal_indices)][..., :2]


def plane(env: GoalEnv, episodes: Episodes) -> tuple[np.ndarray, np.ndarray]:
    """(2,) lowest and highest x, y of all that was commanded and reached, and a margin."""
    goals, states = (episodes.goal, episodes.last_goal), (episodes.start, episodes.last)
    points = np.concatenate([*(goal[:, :2] for goal in goals), *(achieved(env, state) for state in states)])
    low, high = points.min(axis=0), points.max(axis=0)
    margin = 0.1 * (high - low).max() + env.goal_dist
    return low - margin, high + margin


def finish_plane(axes: Axes, env: GoalEnv, low: np.ndarray, high: np.ndarray, title: str) -> None:
    """Walls, limits and labels."""
    for x, y, half_x, half_y in wall_boxes(env):
        corner = (x - half_x, y - half_y)
        axes.add_patch(Rectangle(corner, 2 * half_x, 2 * half_y, facecolor="#BBBBBB", edgecolor="white", zorder=1.5))
    axes.set(xlim=(low[0], high[0]), ylim=(low[1], high[1]), aspect="equal", xlabel="goal x (m)", ylabel="goal y (m)")
    axes.set_title(title)


# Training.


def critic_picture(program: Program, agent_state: Any, episodes: Episodes, rows: Records) -> Figure | None:
    """Logits of positives and negatives, and the norms of both representations, over training."""
    del agent_state, episodes
    rows = [row for row in rows if "training/logits_pos" in row]
    if not rows:
        return None
    figure = Figure(figsize=(8.6, 3.2), layout="constrained")
    logits, norms = figure.subplots(1, 2)
    env_steps = column(rows, "env_steps")
    positive, negative = column(rows, "training/logits_pos"), column(rows, "training/logits_neg")
    logits.fill_between(env_steps, negative, positive, color="#DDDDDD", label="gap")
    logits.plot(env_steps, positive, ".-", color=BLUE, label="positives")
    logits.plot(env_steps, negative, ".--", color=VERMILION, label="negatives")
    logits.set(ylabel="mean logit", title=f"logit gap, at the end {positive[-1] - negative[-1]:.3g}")
    for name, colour, line, label in (("sa", BLUE, ".-", "φ(s, a)"), ("g", VERMILION, ".--", "ψ(g)")):
        mean, std = column(rows, f"training/{name}_repr_mean"), column(rows, f"training/{name}_repr_std")
        norms.fill_between(env_steps, mean - std, mean + std, color=colour, alpha=0.2, linewidth=0)
        norms.plot(env_steps, mean, line, color=colour, label=label)
    norms.set(ylabel="norm, mean ± std over a batch", title="representations")
    for axes in (logits, norms):
        axes.set_xlabel("env steps")
        axes.xaxis.set_major_formatter(EngFormatter(sep=""))
        axes.legend()
    figure.suptitle(f"{program.config.env_name}: the critic over training")
    return figure


def column(rows: Records, name: str) -> np.ndarray:
    """(T,) a column of metrics.csv."""
    return np.array([float(row[name]) for row in rows])


PICTURES: dict[str, Callable[[Program, Any, Episodes, Records], Figure | None]] = {
    "energy": energy_picture,
    "reached_goals": goals_picture,
    "critic": critic_picture,
}
