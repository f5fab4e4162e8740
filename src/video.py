"""Videos of a policy: whole episodes rolled out on the device, drawn by MuJoCo, written as MP4 and GIF."""

import contextlib
import functools
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

import imageio_ffmpeg
import jax
import mediapy
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from envs.render import Renderer
from src.algorithm import policy_of
from src.evaluator import Episodes, run_episodes
from src.program import Program, key_beside

SHOWN = ("best", "random", "worst")
NUM_EPISODES = 32  # to choose the shown ones from
HEIGHT, WIDTH, CAPTION = 288, 384, 24
FPS = 20
SECONDS = 10.0  # longer episodes are shown faster than they are


class Recording(NamedTuple):
    """Whole episodes as NumPy arrays.

    Attributes:
      episodes: what they came to.
      poses, goals: (T, N, nq) joint positions and (T, N, goal_dim) commanded goals after each action; an ended episode
        keeps its last pose, or its last finite one if its physics blew up, and the goal of that moment.
    """

    episodes: Episodes
    poses: np.ndarray
    goals: np.ndarray


@functools.partial(jax.jit, static_argnums=(0, 1))
def _roll_out(program: Program, num_episodes: int, agent_state: Any, key: jax.Array) -> Recording:
    env = program.eval_env
    policy = policy_of(program.algorithm, agent_state, program.config.deterministic_eval)
    episodes, seen = run_episodes(env, policy, num_episodes, key, lambda state: (env.env.pose(state), state.goal))
    return Recording(episodes, *seen)


def record(program: Program, agent_state: Any, num_episodes: int = NUM_EPISODES) -> Recording:
    """Runs the first episodes of the program's evaluation, acting as the evaluation does."""
    key = key_beside(program.config.seed, "video")
    roll_out = _roll_out(program, num_episodes, agent_state.replace(opt_state=None), key)
    episodes, poses, goals = jax.device_get(roll_out)
    num_actions = -(-episodes.length // program.config.action_repeat).astype(int)
    action = np.arange(len(poses))[:, None]
    is_pose = (action < num_actions) & np.isfinite(poses).all(axis=-1)
    rows = np.maximum.accumulate(np.where(is_pose, action, 0))
    return Recording(episodes, *(seen[rows, np.arange(num_episodes)] for seen in (poses, goals)))


def choose(time_near_goal: np.ndarray, seed: int) -> dict[str, int]:
    """The episodes to show by name: most and least time near the goal, and one drawn from the others."""
    best, worst = int(np.argmax(time_near_goal)), int(np.argmin(time_near_goal))
    others = [i for i in range(len(time_near_goal)) if i not in (best, worst)] or [best]
    return {"best": best, "random": int(np.random.default_rng(seed).choice(others)), "worst": worst}


def film(
    program: Program, recording: Recording, shown: tuple[str, ...] = SHOWN, seconds: float = SECONDS
) -> np.ndarray:
    """(F, H, W, 3) uint8 frames, `FPS` a second: the shown episodes side by side, each under its caption.

    Raises:
      RuntimeError: no OpenGL library; the text says what to install.
    """
    config, env, episodes = program.config, program.eval_env.env, recording.episodes
    full_seconds = env.dt * config.action_repeat * len(recording.poses)
    speed = max(full_seconds / seconds, 1.0)
    rows = np.linspace(0, len(recording.poses) - 1, max(round(full_seconds / speed * FPS), 2)).round().astype(int)
    chosen = choose(episodes.totals["success"], config.seed)
    panels = []
    with contextlib.closing(Renderer(env, HEIGHT, WIDTH, shadows=False)) as renderer:
        for name in shown:
            at = chosen[name]
            near, length = episodes.totals["success"][at], episodes.length[at]
            caption = f"{name}: near goal {near:,.0f} of {length:,.0f} steps" + (f", {speed:.1f}x" if speed > 1 else "")
            pictures = draw_episode(renderer, recording.poses[rows, at], recording.goals[rows, at])
            panels.append(under_caption(pictures, caption))
    return np.concatenate(panels, axis=2)


def draw_episode(renderer: Renderer, poses: np.ndarray, goals: np.ndarray) -> np.ndarray:
    """(F, H, W, 3) pictures of poses (F, nq) and goals (F, goal_dim) from a camera that sees them all."""
    camera = renderer.camera(poses, goals)
    return np.stack([renderer.render(q, goal, camera) for q, goal in zip(poses, goals, strict=True)])


def under_caption(pictures: np.ndarray, caption: str) -> np.ndarray:
    """The pictures (F, H, W, 3) with a line of text above them."""
    count, _, width, _ = pictures.shape
    line = Image.new("RGB", (width, CAPTION), "white")
    font = ImageFont.load_default(CAPTION * 0.6)
    ImageDraw.Draw(line).text((width / 2, CAPTION / 2), caption, fill="black", anchor="mm", font=font)
    return np.concatenate([np.broadcast_to(np.array(line), (count, CAPTION, width, 3)), pictures], axis=1)


def write_film(stem: Path, frames: np.ndarray) -> list[Path]:
    """Writes STEM.mp4, and STEM.gif with half the frames, each whole or not at all; returns both paths."""
    mediapy.set_ffmpeg(imageio_ffmpeg.get_ffmpeg_exe())  # the one that pip brought; the system may have none
    stem.parent.mkdir(parents=True, exist_ok=True)
    paths = [stem.with_name(f"{stem.name}.{ending}") for ending in ("mp4", "gif")]
    _write_whole(paths[0], frames, fps=FPS)
    _write_whole(paths[1], frames[::2], fps=FPS / 2, codec="gif")
    return paths


def _write_whole(path: Path, frames: np.ndarray, **options: Any) -> None:
    # Beside its place under its own name, as ffmpeg takes the format from the ending.
    with tempfile.TemporaryDirectory(prefix=".", dir=path.parent) as folder:
        mediapy.write_video(Path(folder) / path.name, frames, **options)
        (Path(folder) / path.name).replace(path)
