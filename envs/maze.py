"""Mazes: layouts as tables, and the mixin that puts any body into one.

The physics holds three walls, however large the maze. A body that reaches less than half a cell can touch only its own
cell's neighbours on the side where it stands: one in x, one in y, one on the diagonal. Before each control step three
boxes are put on those of them that are walls, so that the contacts are those of a box on every wall cell.
"""

from xml.etree import ElementTree

import jax
import jax.numpy as jnp
import numpy as np

from envs.base import apply_physics, collide, find, unknown

# 1 wall, 0 free, R start, G goal (free too). Row i, column j is the cell centred at x = i, y = j times the cell size.
# A new maze is a table here and a line in the registry.
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
}

MOVING_WALLS = 3
# Where a wall that is not needed waits: out of reach of whatever stands on the ground.
BELOW_GROUND = -100.0


def read_layout(name: str) -> np.ndarray:
    """(rows, columns) the characters of a layout.

    Raises:
      ValueError: no such layout, or one that is no rectangle, has other characters, no start or no goal.
    """
    if name not in LAYOUTS:
        raise ValueError(unknown("maze layout", name, LAYOUTS))
    rows = [line.split() for line in LAYOUTS[name].strip().splitlines()]
    widths = [len(row) for row in rows]
    if len(set(widths)) > 1:
        raise ValueError(f"maze layout {name!r} has rows of different lengths: {widths}")
    cells = {cell for row in rows for cell in row}
    if cells - set("10RG"):
        raise ValueError(f"maze layout {name!r} has {sorted(cells - set('10RG'))}: use 1 wall, 0 free, R start, G goal")
    for cell, meaning in (("R", "start"), ("G", "goal")):
        if cell not in cells:
            raise ValueError(f"maze layout {name!r} has no {meaning}: mark at least one cell {cell}")
    return np.array(rows)


class InMaze:
    """Mixin that puts a body into a maze: `class AntMaze(InMaze, Ant)`.

    The body's free joint comes first in q and its torso is link 0; the goal begins with x, y. Start and goal are drawn
    among the R and G cells, uniformly and exactly at their centres; all else of the start is the body's own.

    Attributes:
      cell_size, wall_height: in metres.
      touching: the geoms that walls stop; less than half a cell away from the torso's centre at any time.

    Raises:
      ValueError: a layout that does not exist or makes no maze.
    """

    cell_size = 4.0
    wall_height = 2.0
    touching: tuple[str, ...]

    def __init__(self, layout: str, full_walls: bool = False, **options):
        """`full_walls` puts a box on every wall cell instead: the same physics, slower; for tests and pictures."""
        cells = read_layout(layout)
        self.layout = layout
        self.full_walls = full_walls
        self.walls = cells == "1"
        self.starts, self.goals = (self.cell_size * np.argwhere(cells == mark) for mark in "RG")
        super().__init__(**options)
        if not full_walls:
            self._wall_geoms = np.array([self.sys.mj_model.geom(f"wall_{i}").id for i in range(MOVING_WALLS)])

    def build_xml(self):
        return self._walled(self.full_walls)

    def full_maze_xml(self) -> str:
        """The model with a box on every wall cell, for pictures; its q and qd are those of this environment."""
        return apply_physics(self._walled(full_walls=True), self._physics)

    def _walled(self, full_walls: bool) -> ElementTree.Element:
        root = super().build_xml()
        collide(root, self.touching)
        find(root, "geom", "floor").set("size", "100 100 40")  # of the drawing; the plane itself has no end
        centres = self.cell_size * np.argwhere(self.walls) if full_walls else np.zeros((MOVING_WALLS, 2))
        half = self.wall_height / 2
        for i, (x, y) in enumerate(centres):
            box = {"type": "box", "contype": "1", "conaffinity": "1", "name": f"wall_{i}"}
            box["pos"] = f"{x} {y} {half if full_walls else BELOW_GROUND}"
            box["size"] = f"{self.cell_size / 2} {self.cell_size / 2} {half}"
            ElementTree.SubElement(root.find("worldbody"), "geom", box)
        return root

    def sample_start(self, key):
        body_key, start_key, goal_key = jax.random.split(key, 3)
        q, qd, goal = super().sample_start(body_key)
        start = jax.random.choice(start_key, jnp.array(self.starts))
        return q.at[:2].set(start), qd, goal.at[:2].set(jax.random.choice(goal_key, jnp.array(self.goals)))

    def is_wall(self, cells: jax.Array) -> jax.Array:
        """(...) whether cells (..., 2), rows and columns, are walls; beyond the layout there are none."""
        walls = jnp.pad(jnp.array(self.walls), 1)
        row, column = jnp.moveaxis(jnp.clip(cells + 1, 0, jnp.array(walls.shape) - 1), -1, 0)
        return walls[row, column]

    def wall_positions(self, torso: jax.Array) -> jax.Array:
        """(MOVING_WALLS, 3) where the moving walls belong for a torso at (2,) x, y."""
        own = jnp.round(torso / self.cell_size).astype(int)
        x_side, y_side = jnp.where(torso >= own * self.cell_size, 1, -1)
        cells = own + jnp.array([[x_side, 0], [0, y_side], [x_side, y_side]])
        # A torso pressed into a wall so hard that its centre is in it must still be pushed out.
        cells = cells.at[2].set(jnp.where(self.is_wall(own), own, cells[2]))
        height = jnp.where(self.is_wall(cells), self.wall_height / 2, BELOW_GROUND)
        return jnp.column_stack([cells * self.cell_size, height])

    def step_system(self, pipeline_state):
        if self.full_walls:
            return self.sys
        positions = self.wall_positions(pipeline_state.x.pos[0, :2])
        return self.sys.replace(geom_pos=self.sys.geom_pos.at[self._wall_geoms].set(positions))
