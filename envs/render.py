"""Pictures of an environment with its goal, drawn by MuJoCo without a screen."""

import importlib
import os
import platform
from xml.etree import ElementTree

import mujoco
import numpy as np

from envs.base import GoalEnv

GOAL, ROBOT, THING, WALL = "0.1 0.7 0.2 0.6", (0.9, 0.45, 0.1, 1), (0.2, 0.4, 0.85, 1), (0.72, 0.74, 0.78, 1)
NO_OPENGL = "no OpenGL to draw with: install libegl1, or libosmesa6 and set MUJOCO_GL=osmesa"


class Scene:
    """One environment as MuJoCo draws it: the robot orange, what it may move blue, walls grey, the goal green.

    The goal is a ball as large as the region of success, at the place that the goal's first entries name as far as
    `goal_place_dim` and its length go; without z the ball rests on the ground, and without a place there is none to be
    seen. It is the body `commanded_goal`, the model's last mocap body.

    Raises:
      ValueError: the environment has no model to draw.
    """

    def __init__(self, env: GoalEnv, height: int = 480, width: int = 640):
        self.env = env
        self.model = mujoco.MjModel.from_xml_string(scene_xml(env, height, width))
        self.data = mujoco.MjData(self.model)
        self.walled = paint(self.model)

    def pose(self, q: np.ndarray, goal: np.ndarray) -> None:
        """Puts joint positions `q` and the goal where they belong."""
        self.data.qpos[:] = q
        self.data.mocap_pos[-1] = np.append(np.zeros(2), self.env.goal_dist)
        place = goal[: min(self.env.goal_place_dim, 3)]
        self.data.mocap_pos[-1, : len(place)] = place
        mujoco.mj_kinematics(self.model, self.data)

    def forward(self) -> None:
        """Computes all else of the pose that a viewer may ask for."""
        mujoco.mj_forward(self.model, self.data)

    def camera(self, poses: np.ndarray, goals: np.ndarray) -> mujoco.MjvCamera:
        """A camera that sees the model in all of the poses (K, nq) and all goals, (K, goal_dim) or the one of all."""
        goals = np.broadcast_to(goals, (len(poses), np.shape(goals)[-1]))
        corners = np.concatenate([self._corners(q, goal) for q, goal in zip(poses, goals, strict=True)])
        low, high = corners.min(axis=0), corners.max(axis=0)
        camera = mujoco.MjvCamera()
        camera.lookat = (low + high) / 2
        radius = np.linalg.norm(high - low) / 2
        # The box's diagonal overstates what is seen of it, hence the factor.
        camera.distance = 0.8 * radius / np.sin(np.deg2rad(self.model.vis.global_.fovy) / 2)
        # Looking along y, x to the right; from so far above that neither walls nor the pusher's arm hide much.
        camera.azimuth, camera.elevation = 90, -65 if self.walled else -50
        return camera

    def _corners(self, q: np.ndarray, goal: np.ndarray) -> np.ndarray:
        """(2 * geoms, 3) lowest and highest corners of the boxes around everything but planes."""
        self.pose(q, goal)
        shown = self.model.geom_type != mujoco.mjtGeom.mjGEOM_PLANE
        axes = self.data.geom_xmat[shown].reshape(-1, 3, 3)
        middle, half = np.split(self.model.geom_aabb[shown], 2, axis=1)
        centre = self.data.geom_xpos[shown] + np.einsum("gij,gj->gi", axes, middle)
        reach = np.einsum("gij,gj->gi", np.abs(axes), half)
        return np.concatenate([centre - reach, centre + reach])


class Renderer(Scene):
    """Draws a scene into arrays. Without `shadows` a picture takes a sixth of the time where a CPU draws it.

    Raises:
      RuntimeError: no OpenGL library that draws without a screen; the text says what to install.
    """

    def __init__(self, env: GoalEnv, height: int = 480, width: int = 640, shadows: bool = True):
        super().__init__(env, height, width)
        if not shadows:
            self.model.vis.quality.shadowsize = 0
        self.renderer = open_renderer(self.model, height, width)

    def render(self, q: np.ndarray, goal: np.ndarray, camera: mujoco.MjvCamera | None = None) -> np.ndarray:
        """(H, W, 3) uint8 picture of joint positions `q` and a goal; by default all of both is seen."""
        camera = camera or self.camera(np.asarray(q)[None], goal)
        self.pose(q, goal)
        self.renderer.update_scene(self.data, camera)
        return self.renderer.render()

    def close(self) -> None:
        """Gives the OpenGL context back."""
        self.renderer.close()


def render(env: GoalEnv, q: np.ndarray, goal: np.ndarray) -> np.ndarray:
    """(H, W, 3) uint8 one picture; for more of them keep a `Renderer`."""
    return Renderer(env).render(q, goal)


def scene_xml(env: GoalEnv, height: int, width: int) -> str:
    """The model of an environment for pictures: a goal, a plain background, one light, all walls of a maze."""
    if env.model_xml is None:
        raise ValueError(f"{type(env).__name__} cannot be drawn: it has no model_xml")
    full_model = getattr(env, "full_maze_xml", lambda: env.model_xml)
    root = ElementTree.fromstring(full_model())
    world = root.find("worldbody")
    for parent, tag in ((world, "light"), (root, "asset")):
        for element in parent.findall(tag):
            parent.remove(element)
    for geom in root.iter("geom"):
        geom.attrib.pop("material", None)
    asset = ElementTree.SubElement(root, "asset")
    white = {"type": "skybox", "builtin": "flat", "rgb1": "1 1 1", "rgb2": "1 1 1", "width": "16", "height": "16"}
    squares = {"type": "2d", "builtin": "checker", "rgb1": "0.93 0.93 0.93", "rgb2": "0.88 0.88 0.88"}
    ElementTree.SubElement(asset, "texture", {"name": "white", **white})
    ElementTree.SubElement(asset, "texture", {"name": "squares", "width": "256", "height": "256", **squares})
    repeat = {"texuniform": "true", "texrepeat": "0.5 0.5"}
    ElementTree.SubElement(asset, "material", {"name": "ground", "texture": "squares", **repeat})
    shade = {"directional": "true", "pos": "0 0 10", "dir": "0.3 0.4 -1", "diffuse": "0.5 0.5 0.5"}
    ElementTree.SubElement(world, "light", shade)
    goal = ElementTree.SubElement(world, "body", {"name": "commanded_goal", "mocap": "true"})
    ball = {"type": "sphere", "size": repr(env.goal_dist), "contype": "0", "conaffinity": "0"}
    ElementTree.SubElement(goal, "geom", ball, rgba=GOAL if env.goal_place_dim else "0 0 0 0")
    visual = ElementTree.SubElement(root, "visual")
    ElementTree.SubElement(visual, "global", {"offheight": str(height), "offwidth": str(width)})
    ElementTree.SubElement(visual, "headlight", {"ambient": "0.55 0.55 0.55", "diffuse": "0.3 0.3 0.3"})
    return ElementTree.tostring(root, encoding="unicode")


def wall_boxes(env: GoalEnv) -> np.ndarray:
    """(K, 4) x, y and their half-sizes of the boxes that stand still, in metres; none without a model."""
    if env.model_xml is None:
        return np.zeros((0, 4))
    model = Scene(env).model
    fixed = (model.geom_bodyid == 0) & (model.geom_type == mujoco.mjtGeom.mjGEOM_BOX)
    return np.column_stack([model.geom_pos[fixed, :2], model.geom_size[fixed, :2]])


def paint(model: mujoco.MjModel) -> bool:
    """Colours the geoms by what they are; returns whether there are walls."""
    robots = model.body_rootid[model.jnt_bodyid[model.actuator_trnid[:, 0]]]
    body = model.geom_bodyid
    plane = model.geom_type == mujoco.mjtGeom.mjGEOM_PLANE
    goal = model.body_mocapid[body] >= 0
    fixed = (body == 0) & ~plane
    robot = np.isin(model.body_rootid[body], robots)
    visible = model.geom_rgba[:, 3] > 0
    for which, colour in ((robot, ROBOT), (~robot & ~fixed, THING), (fixed, WALL)):
        model.geom_rgba[which & visible & ~plane & ~goal] = colour
    model.geom_rgba[plane] = 1
    model.geom_size[plane, :2] = 0  # drawn without an end
    model.geom_matid[plane] = model.material("ground").id
    return bool(np.any(fixed & (model.geom_type == mujoco.mjtGeom.mjGEOM_BOX)))


def open_renderer(model: mujoco.MjModel, height: int, width: int) -> mujoco.Renderer:
    """MuJoCo's renderer, without a screen; `MUJOCO_GL` (egl, osmesa, glfw) chooses another OpenGL than EGL."""
    try:
        if platform.system() == "Linux" and not os.environ.get("MUJOCO_GL"):
            # MuJoCo has read the variable at its import, and chosen a library that needs a screen.
            os.environ["MUJOCO_GL"] = "egl"
            importlib.reload(mujoco.rendering.classic.gl_context)
        return mujoco.Renderer(model, height, width)
    except Exception as error:  # of many types: whatever the missing library's loader stumbles over
        raise RuntimeError(f"{NO_OPENGL} ({error})") from error
