"""Mazes: layouts as tables, and the mixin that puts any body into one.

The physics holds a few walls per moving part, however large the maze. A part that reaches less than half a cell can
touch only the cell it is in and that cell's neighbours on the side where it is: one in x, one in y, one on the
diagonal. Before each control step boxes are put on those of them that are walls, so that the contacts are those of a
box on every wall cell.
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
# cell size. A layout with a cell g is two: g is a goal there, and free in NAME_eval. A new maze is a table here.
TABLES = {
    "u_maze": """
        1 1 1 1 1
        1 R g g 1
        1 1 1 g 1
        1 G G G 1
        1 1 1 1 1
    """,
    "u2_maze": """
        1 1 1 1 1 1
        1 R g g g 1
        1 1 1 1 g 1
        1 G G G G 1
        1 1 1 1 1 1
    """,
    "u3_maze": """
        1 1 1 1 1 1 1
        1 R g g g g 1
        1 1 1 1 1 g 1
        1 G G G G G 1
        1 1 1 1 1 1 1
    """,
    "u4_maze": """
        1 1 1 1 1
        1 g g g 1
        1 R 1 g 1
        1 1 1 g 1
        1 G 1 g 1
        1 G G G 1
        1 1 1 1 1
    """,
    "u5_maze": """
        1 1 1 1 1 1 1 1
        1 g g g g g g 1
        1 R 1 1 1 1 g 1
        1 1 1 1 1 1 g 1
        1 G 1 1 1 1 G 1
        1 G G G G G G 1
        1 1 1 1 1 1 1 1
    """,
    "u6_maze": """
        1 1 1 1 1 1 1
        1 g g g g g 1
        1 R 1 1 1 g 1
        1 1 1 1 1 g 1
        1 G 1 1 1 G 1
        1 G G G G G 1
        1 1 1 1 1 1 1
    """,
    "u7_maze": """
        1 1 1 1 1 1
        1 g g g g 1
        1 R 1 1 g 1
        1 1 1 1 g 1
        1 G 1 1 G 1
        1 G G G G 1
        1 1 1 1 1 1
    """,
    "big_maze": """
        1 1 1 1 1 1 1 1
        1 R g 1 1 G G 1
        1 g g 1 g G G 1
        1 1 g g g 1 1 1
        1 g g 1 g g g 1
        1 g 1 G g 1 G 1
        1 g G G 1 G G 1
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
LAYOUTS = {name: table.replace("g", "G") for name, table in TABLES.items()}
LAYOUTS |= {f"{name}_eval": table.replace("g", "0") for name, table in TABLES.items() if "g" in table}

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


def corridor(layout: str) -> np.ndarray:
    """(cells, 2) rows and columns of all free cells of a layout, in order, from its cell R to the other end.

    Raises:
      ValueError: the free cells are no corridor that begins at the one cell R.
    """
    cells = read_layout(layout)
    path = np.argwhere(cells == "R").tolist()
    free = np.argwhere(cells != "1").tolist()
    following = path
    while len(following) == 1:
        row, column = path[-1]
        around = [[row - 1, column], [row + 1, column], [row, column - 1], [row, column + 1]]
        following = [cell for cell in around if cell in free and cell not in path]
        path = path + following
    if len(path) != len(free) or following:
        raise ValueError(f"maze layout {layout!r} is no corridor: its free cells must be one way that begins at R")
    return np.array(path)


class Part(NamedTuple):
    """What walls stop: geoms that are less than half a cell away from the origin of a body at any time."""

    body: str
    geoms: tuple[str, ...]


class InMaze:
    """Mixin that puts a body into a maze: `class AntMaze(InMaze, Ant)`.

    The body's x and y come first in q, and in the goal. Start and goal are drawn among the R and G cells, uniformly and
    exactly at their centres; all else of the start is the body's own.

    Attributes:
      cell_size: in metres; walls are half as high.
      parts: what walls stop. Each part has walls of its own, which stop nothing else: a bit of contype per part.
      first_bit: the bit of the first part. A robot whose feet have contype 1, as those of brax, touches with them its
        own geoms of a part with bit 0.
      walls_per_part: 3, or 4 where a part may be above a wall: it can touch that wall, too, and all neighbours.
      marks: the marks that a layout must have.

    Raises:
      ValueError: a layout that does not exist or makes no maze, or a body that no walls would stop.
    """

    cell_size = 4.0
    parts: tuple[Part, ...]
    first_bit = 0
    walls_per_part = 3
    marks = "RG"

    def __init__(self, layout: str, full_walls: bool = False, **options):
        """`full_walls` puts a box on every wall cell instead: the same physics, slower; for tests and pictures."""
        cells = read_layout(layout, self.marks)
        self.layout = layout
        self._full_walls = full_walls
        self.wall_height = self.cell_size / 2
        self.walls = cells == "1"
        self.starts, self.goals, self.balls = (self.cell_size * np.argwhere(cells == mark) for mark in MARKS)
        super().__init__(**options)
        self._links = np.array([self.link(part.body) for part in self.parts])
        roots = {name for name, parent in zip(self.sys.link_names, self.sys.link_parents, strict=True) if parent == -1}
        forgotten = roots - {part.body for part in self.parts}
        if forgotten:
            raise ValueError(f"{type(self).__name__} has no walls for {', '.join(sorted(forgotten))}")
        if not self.full_walls:
            names = [f"wall_{i}" for i in range(self.walls_per_part * len(self.parts))]
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
        find(root, "geom", "floor").set("size", "100 100 40")  # of the drawing; the plane itself has no end
        half = self.wall_height / 2
        bits = [1 << (self.first_bit + number) for number in range(len(self.parts))]
        for bit, part in zip(bits, self.parts, strict=True):
            collide(root, part.geoms, bit)
        if full_walls:
            boxes = [(x, y, half, sum(bits)) for x, y in self.cell_size * np.argwhere(self.walls)]
        else:
            boxes = [(0, 0, BELOW_GROUND, bit) for bit in bits for _ in range(self.walls_per_part)]
        for i, (x, y, z, contype) in enumerate(boxes):
            box = {"type": "box", "contype": f"{contype}", "conaffinity": "0", "name": f"wall_{i}"}
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
        """(`walls_per_part`, 3) where the moving walls belong for a body at (2,) x, y."""
        own = jnp.round(body / self.cell_size).astype(int)
        x_side, y_side = jnp.where(body >= own * self.cell_size, 1, -1)
        cells = own + jnp.array([[x_side, 0], [0, y_side], [x_side, y_side], [0, 0]])
        if self.walls_per_part == 3:
            # A body pressed into a wall so hard that its centre is in it must still be pushed out.
            cells = cells[:3].at[2].set(jnp.where(self.is_wall(own), own, cells[2]))
        height = jnp.where(self.is_wall(cells), self.wall_height / 2, BELOW_GROUND)
        return jnp.column_stack([cells * self.cell_size, height])

    def step_system(self, pipeline_state):
        if self.full_walls:
            return self.sys
        positions = jax.vmap(self.wall_positions)(pipeline_state.x.pos[self._links, :2]).reshape(-1, 3)
        return self.sys.replace(geom_pos=self.sys.geom_pos.at[self._wall_geoms].set(positions))
