#!/usr/bin/env python
"""Draws all environments with their goals into one labelled picture: `python scripts/gallery.py`."""

import argparse
import functools
import os
import sys
from pathlib import Path

import jax
import numpy as np
from PIL import Image, ImageDraw, ImageFont

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # so that it runs from any directory

from envs import ENVS, make_env  # noqa: E402
from envs.base import GoalEnv  # noqa: E402
from envs.render import render  # noqa: E402

HEIGHT, WIDTH, LABEL = 300, 400, 28


def draw_all() -> list[Image.Image]:
    """A picture of the start of an episode for every environment, but for those that only have other goals.

    Raises:
      RuntimeError: nothing to draw with.
    """
    tiles = []
    for name in ENVS:
        if name.endswith(("_eval", "_gen")):
            continue
        env = make_env(name)
        q, goal = jax.jit(functools.partial(start, env))(jax.random.key(0))
        tiles.append(tile(name, render(env, np.asarray(q), np.asarray(goal))))
    return tiles


def start(env: GoalEnv, key: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Joint positions and goal at the start of an episode; compiled, no physics is left of it."""
    env_state = env.reset(key)
    return env.pose(env_state), env_state.goal


def tile(name: str, pixels: np.ndarray) -> Image.Image:
    """A picture under its name."""
    picture = Image.new("RGB", (WIDTH, LABEL + HEIGHT), "white")
    picture.paste(Image.fromarray(pixels).resize((WIDTH, HEIGHT)), (0, LABEL))
    middle = (WIDTH / 2, LABEL / 2)
    ImageDraw.Draw(picture).text(middle, name, fill="black", anchor="mm", font=ImageFont.load_default(18))
    return picture


def grid(tiles: list[Image.Image], columns: int) -> Image.Image:
    """The tiles in rows."""
    rows = -(-len(tiles) // columns)
    width, height = tiles[0].size
    picture = Image.new("RGB", (columns * width, rows * height), "white")
    for i, one in enumerate(tiles):
        picture.paste(one, (i % columns * width, i // columns * height))
    return picture


def user_path(text: str) -> Path:
    """A path, a leading ~ as the user's home, which shells leave as it is after `=`."""
    return Path(os.path.expanduser(text))


def main(args: list[str]) -> int:
    """Runs the command line; returns the exit status: 0 done, 1 nothing to draw with."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=user_path, default=ROOT / "imgs" / "grid.png", help="default: imgs/grid.png")
    parser.add_argument("--columns", type=int, default=4, help="pictures in a row (default: %(default)s)")
    options = parser.parse_args(args)
    try:
        tiles = draw_all()
    except RuntimeError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    options.output.parent.mkdir(parents=True, exist_ok=True)
    # A palette of 256 colours keeps the file small enough for a repository.
    grid(tiles, options.columns).quantize(256).save(options.output, optimize=True)
    print(options.output)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
