"""Mazes: layouts as tables, and the mixin that puts any body into one.

The physics holds three walls per body, however large the maze. A body that reaches less than half a cell can touch only
its own cell's neighbours on the side where it stands: one in x, one in y, one on the diagonal. Before each control step
three boxes are put on those of them that are walls, so that the contacts are those of a box on every wall cell.
"""

from typing import NamedTuple
from xml.etree import ElementTree

import jax
import jax.numpy as jnp
import numpy as np

from envs.physics import apply_physics, collide, find
from utils import unknown

MARKS = {"R": "start", "G": "goal", "B": "ball"}
# 1 is a wall, 0 is free, and so is a cell with a mark. Row i, column j is the cell centred at x = i, y = j times the
# cell size. A new maze is a table here and a line in the registry.
LAYOUTS = {
    "u_maze": """
        1 1 1 1 1
        1 R G G 1
        1 1 1 G 1
        1 G G G 1
        1 1 1 1 1
    """,
    "u_maze_eval": """
        1 1 1 1 1
        1 R 0 0 1
        1 1 1 0 1
        1 G G G 1
        1 1 1 1 1
    """,
    "big_maze": """
        1 1 1 1 1 1 1 1
        1 R G 1 1 G G 1
        1 G G 1 G G G 1
        1 1 G G G 1 1 1
        1 G G 1 G G G 1
        1 G 1 G G 1 G 1
        1 G G G 1 G G 1
        1 1 1 1 1 1 1 1
    """,
    "big_maze_eval": """
        1 1 1 1 1 1 1 1
        1 R 0 1 1 G G 1
        1 0 0 1 0 G G 1
        1 1 0 0 0 1 1 1
        1 0 0 1 0 0 0 1
        1 0 1 G 0 1 G 1
        1 0 G G 1 G G 1
        1 1 1 1 1 1 1 1
    """,
    "hardest_maze": """
        1 1 1 1 1 1 1 1 1 1 1 1
        1 R G G G 1 G G G G G 1
        1 G 1 1 G 1 G 1 G 1 G 1
        1 G G G G G G 1 G G G 1
        1 G 1 1 1 1 G 1 1 1 G 1
        1 G G 1 G 1 G G G G G 1
        1 1 G 1 G 1 G 1 G 1 1 1
        1 G G 1 G G G 1 G G G 1
        1 1 1 1 1 1 1 1 1 1 1 1
    """,
    "u_maze_ball": """
        1 1 1 1 1
        1 R G B 1
        1 1 1 G 1
        1 G G G 1
        1 1 1 1 1
    """,
    "big_maze_ball": """
        1 1 1 1 1 1 1 1
        1 R 0 1 1 G G 1
        1 0 0 1 G G G 1
        1 1 B G B 1 1 1
        1 G G 1 G G G 1
        1 G 1 G G 1 G 1
        1 G G G 1 G G 1
        1 1 1 1 1 1 1 1
    """,
}

WALLS_PER_BODY = 3
# Where a wall that is not needed waits: out of reach of whatever stands on the ground.
BELOW_GROUND = -100.0


def read_layout(name: str, needed: str = "RG") -> np.ndarray:
    """(rows, columns) the characters of a layout.

    Raises:
      ValueError: no such layout, or one that is no rectangle, has other characters or none of one that is `needed`.
    """
    if name not in LAYOUTS:
        raise ValueError(unknown("maze layout", name, LAYOUTS))
    rows = [line.split() for line in LAYOUTS[name].strip().splitlines()]
    widths = [len(row) for row in rows]
    if len(set(widths)) > 1:
        raise ValueError(f"maze layout {name!r} has rows of different lengths: {widths}")
    cells = {cell for row in rows for cell in row}
    strange = sorted(cells - {"1", "0", *MARKS})
    if strange:
        marks = ", ".join(f"{cell} {meaning}" for cell, meaning in MARKS.items())
        raise ValueError(f"maze layout {name!r} has {strange}: use 1 wall, 0 free, {marks}")
    for cell in needed:
        if cell not in cells:
            raise ValueError(f"maze layout {name!r} has no {MARKS[cell]}: mark at least one cell {cell}")
    return np.array(rows)


class Companion(NamedTuple):
    """What moves in a maze besides the robot: its body, and its geoms that walls stop."""

    body: str
    geoms: tuple[str, ...]


class InMaze:
    """Mixin that puts a body into a maze: `class AntMaze(InMaze, Ant)`.

    The body's free joint comes first in q; the goal begins with x, y. Start and goal are drawn among the R and G cells,
    uniformly and exactly at their centres; all else of the start is the body's own.

    Attributes:
      root: the body that has the free joint.
      cell_size, wall_height: in metres.
      touching: the geoms that walls stop; less than half a cell away from their body's centre at any time.
      companions: all else that moves on its own, such as a ball. Each has walls of its own, which stop nothing else.

    Raises:
      ValueError: a layout that does not exist or makes no maze, or a body that no walls would stop.
    """

    root = "torso"
    cell_size = 4.0
    wall_height = 2.0
    touching: tuple[str, ...]
    companions: tuple[Companion, ...] = ()

    def __init__(self, layout: str, full_walls: bool = False, **options):
        """`full_walls` puts a box on every wall cell instead: the same physics, slower; for tests and pictures."""
        cells = read_layout(layout, "RGB" if self.companions else "RG")
        self.layout = layout
        self._full_walls = full_walls
        self.walls = cells == "1"
        self.starts, self.goals, self.balls = (self.cell_size * np.argwhere(cells == mark) for mark in MARKS)
        super().__init__(**options)
        self._links = [self.link(body) for body in (self.root, *(companion.body for companion in self.companions))]
        bodies = self.sys.link_parents.count(-1)
        if bodies != len(self._links):
            raise ValueError(f"{type(self).__name__} has {bodies} bodies, but walls for {len(self._links)} of them")
        if not self.full_walls:
            names = [f"wall_{i}" for i in range(WALLS_PER_BODY * bodies)]
            self._wall_geoms = np.array([self.sys.mj_model.geom(name).id for name in names])

    @property
    def full_walls(self) -> bool:
        """Whether there is a box on every wall cell: on engines that do not mind, always."""
        return self._full_walls or self.engine.culls

    def build_xml(self):
        return self._walled(self.full_walls)

    def full_maze_xml(self) -> str:
        """The model with a box on every wall cell, for pictures; its q and qd are those of this environment."""
        return apply_physics(self._walled(full_walls=True), self._physics)

    def _walled(self, full_walls: bool) -> ElementTree.Element:
        root = super().build_xml()
        collide(root, self.touching)
        find(root, "geom", "floor").set("size", "100 100 40")  # of the drawing; the plane itself has no end
        half = self.wall_height / 2
        if full_walls:
            boxes = [(x, y, half, 1, 1) for x, y in self.cell_size * np.argwhere(self.walls)]
        else:
            # Where the walls of two bodies stand in one place, each must feel only its own: a bit of contype per body.
            boxes = [(0, 0, BELOW_GROUND, 1, 0 if self.companions else 1)] * WALLS_PER_BODY
            for bit, companion in enumerate(self.companions, start=1):
                collide(root, companion.geoms, 1 << bit)
                boxes += [(0, 0, BELOW_GROUND, 1 << bit, 0)] * WALLS_PER_BODY
        for i, (x, y, z, contype, conaffinity) in enumerate(boxes):
            box = {"type": "box", "contype": f"{contype}", "conaffinity": f"{conaffinity}", "name": f"wall_{i}"}
            box["pos"] = f"{x} {y} {z}"
            box["size"] = f"{self.cell_size / 2} {self.cell_size / 2} {half}"
            ElementTree.SubElement(root.find("worldbody"), "geom", box)
        return root

    def sample_goal(self, key):
        body_key, _, goal_key = jax.random.split(key, 3)
        goal = super().sample_goal(body_key)
        return goal.at[:2].set(jax.random.choice(goal_key, jnp.array(self.goals)))

    def sample_start(self, key, goal):
        body_key, start_key, _ = jax.random.split(key, 3)
        q, qd = super().sample_start(body_key, goal)
        return q.at[:2].set(jax.random.choice(start_key, jnp.array(self.starts))), qd

    def is_wall(self, cells: jax.Array) -> jax.Array:
        """(...) whether cells (..., 2), rows and columns, are walls; beyond the layout there are none."""
        walls = jnp.pad(jnp.array(self.walls), 1)
        row, column = jnp.moveaxis(jnp.clip(cells + 1, 0, jnp.array(walls.shape) - 1), -1, 0)
        return walls[row, column]

    def wall_positions(self, body: jax.Array) -> jax.Array:
        """(`WALLS_PER_BODY`, 3) where the moving walls belong for a body at (2,) x, y."""
        own = jnp.round(body / self.cell_size).astype(int)
        x_side, y_side = jnp.where(body >= own * self.cell_size, 1, -1)
        cells = own + jnp.array([[x_side, 0], [0, y_side], [x_side, y_side]])
        # A body pressed into a wall so hard that its centre is in it must still be pushed out.
        cells = cells.at[2].set(jnp.where(self.is_wall(own), own, cells[2]))
        height = jnp.where(self.is_wall(cells), self.wall_height / 2, BELOW_GROUND)
        return jnp.column_stack([cells * self.cell_size, height])

    def step_system(self, pipeline_state):
        if self.full_walls:
            return self.sys
        positions = jnp.concatenate([self.wall_positions(pipeline_state.x.pos[link, :2]) for link in self._links])
        return self.sys.replace(geom_pos=self.sys.geom_pos.at[self._wall_geoms].set(positions))
