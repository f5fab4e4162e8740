"""The model of the arm environments: a Franka Panda, a table, a cube, and bins; composed here, without an asset file.

Units are those of MuJoCo: m, kg, rad, N, s. Nothing collides but the pairs that are listed.
"""

from itertools import combinations
from typing import NamedTuple
from xml.etree.ElementTree import Element, SubElement

Numbers = tuple[float, ...]


class Link(NamedTuple):
    """A link as it hangs on the one before it, and the motor of the joint between them.

    Attributes:
      pos, quat: the frame; the joint turns about its z axis.
      mass, com, inertia: about the centre of mass, along the frame's axes: xx, yy, zz, xy, xz, yz.
      limits: of the joint; None turns without end.
      motor: g, k, d of the motor's force g * control + k * q + d * q', and the largest force.
      control: the range of the control.
      shapes: capsules to draw, each two ends and a radius.
    """

    pos: Numbers
    quat: Numbers
    mass: float
    com: Numbers
    inertia: Numbers
    limits: Numbers | None
    motor: Numbers
    control: Numbers
    shapes: tuple[Numbers, ...]


SHOULDER, ELBOW, WRIST = (4500, -4500, -450, 87), (2000, -3500, -350, 87), (1000, -2000, -200, 12)
ANY_ANGLE = (-2.8973, 2.8973)
LINKS = (
    Link(
        (0, 0, 0.333),
        (1, 0, 0, 0),
        4.970684,
        (0.003875, 0.002081, -0.04762),
        (0.70337, 0.70661, 0.0091170, -0.000139, 0.006772, 0.019169),
        None,
        SHOULDER,
        ANY_ANGLE,
        ((0, 0, -0.17, 0, 0, -0.06, 0.062),),
    ),
    Link(
        (0, 0, 0),
        (1, -1, 0, 0),
        0.646926,
        (-0.003141, -0.02872, 0.003495),
        (0.007962, 0.02811, 0.025995, -0.003925, 0.010254, 0.000704),
        (-1.7628, 1.7628),
        SHOULDER,
        (-1.7628, 1.7628),
        ((0, 0, -0.06, 0, 0, 0.06, 0.062), (0, -0.05, 0, 0, -0.17, 0, 0.058)),
    ),
    Link(
        (0, -0.316, 0),
        (1, 1, 0, 0),
        3.228604,
        (0.027518, 0.039252, -0.066502),
        (0.037242, 0.036155, 0.01083, -0.004761, -0.011396, -0.012805),
        None,
        ELBOW,
        ANY_ANGLE,
        ((0, 0, -0.1, 0, 0, -0.03, 0.056), (0, 0, -0.03, 0.0825, 0, 0, 0.05)),
    ),
    Link(
        (0.0825, 0, 0),
        (1, 1, 0, 0),
        3.587895,
        (-0.05317, 0.104419, 0.027454),
        (0.025853, 0.019552, 0.028323, 0.007796, -0.001332, 0.008641),
        (-3.0718, -0.0698),
        ELBOW,
        (-3.0718, -0.0698),
        ((0, 0, -0.05, 0, 0, 0.05, 0.055), (0, 0, 0, -0.0825, 0.09, 0, 0.05)),
    ),
    Link(
        (-0.0825, 0.384, 0),
        (1, -1, 0, 0),
        1.225946,
        (-0.011953, 0.041065, -0.038437),
        (0.035549, 0.029474, 0.008627, -0.002117, -0.004037, 0.000229),
        None,
        WRIST,
        ANY_ANGLE,
        (
            (0, 0, -0.28, 0, 0, -0.18, 0.055),
            (0, 0.05, -0.2, 0, 0.07, -0.03, 0.035),
            (0, 0, -0.02, 0, 0.04, -0.02, 0.05),
        ),
    ),
    Link(
        (0, 0, 0),
        (1, 1, 0, 0),
        1.666555,
        (0.060149, -0.014117, -0.010517),
        (0.001964, 0.004354, 0.005433, 0.000109, -0.001158, 0.000341),
        (-0.0175, 3.7525),
        WRIST,
        (-0.0175, 3.7525),
        ((0, 0, -0.05, 0, 0, 0.03, 0.05), (0, 0, 0, 0.088, -0.01, 0, 0.045)),
    ),
    Link(
        (0.088, 0, 0),
        (1, 1, 0, 0),
        0.735522,
        (0.010517, -0.004252, 0.061597),
        (0.012516, 0.010027, 0.004815, -0.000428, -0.001196, -0.000741),
        None,
        WRIST,
        ANY_ANGLE,
        ((0, 0, -0.01, 0, 0, 0.07, 0.045),),
    ),
)
BASE = ((-0.06, 0, 0.05, 0.02, 0, 0.05, 0.055), (0, 0, 0.06, 0, 0, 0.12, 0.065))  # capsules to draw

HAND_QUAT = (0.653281, 0.653281, -0.270598, -0.270598)
FINGERS = {"left_finger": (0.9238795, 0, 0, -0.3826834), "right_finger": (0.3826834, 0, 0, 0.9238795)}
FINGER_MASS, FINGER_INERTIA = 0.015, (2.375e-6, 2.375e-6, 7.5e-7)
FINGER_STIFFNESS, FINGER_DAMPING, FINGER_FORCE, FINGER_CONTROL = 500, 50, 500, 255
TIP, TIP_MASS = (0, 0.005, 0.07), 0.001  # of a finger, in its frame
CUBE_HALF = 0.03


class Bin(NamedTuple):
    """Four walls without a floor around a place of the table: its centre, and how far away the walls stand."""

    centre: tuple[float, float]
    reach: float


BIN_WALL_HALF_THICKNESS, BIN_HALF_HEIGHT = 0.005, 0.033


def words(numbers: Numbers) -> str:
    """Numbers as an attribute of XML."""
    return " ".join(f"{number:.10g}" for number in numbers)


def element(parent: Element, tag: str, **attributes: str | float | Numbers) -> Element:
    """A new element; attributes may be numbers."""
    texts = {
        name: value if isinstance(value, str) else words(value if isinstance(value, tuple) else (value,))
        for name, value in attributes.items()
    }
    return SubElement(parent, tag, texts)


def arm_model(fingers: bool, bins: tuple[Bin, ...], finger_range: float, tips: bool = False) -> Element:
    """The model of a task; q is the seven joints of the arm, with fingers the cube before and their slides after them.

    `finger_range` is how far each finger opens; its motor is as strong as it must be to get there. With `tips` each
    finger is a gram heavier, at its tip.
    """
    root = Element("mujoco", model="arm")
    element(root, "compiler", angle="radian")
    option = element(root, "option")
    if bins:
        option.set("impratio", "10")
    defaults = element(root, "default")
    element(defaults, "geom", contype="0", conaffinity="0")
    condim, solref, solimp = "3", (0.02, 1), (0.9, 0.95, 0.001, 0.5, 2)
    element(defaults, "pair", condim=condim, friction=(1, 1, 0.005, 0.0001, 0.0001), solref=solref, solimp=solimp)
    world = element(root, "worldbody")
    element(world, "geom", name="table", type="plane", pos=(0, 0.2, 0), size=(1, 1, 0.1))
    walls = [name for number, each in enumerate(bins) for name in add_bin(world, f"bin_{number}", each)]
    if fingers:
        body = element(world, "body", name="cube", pos=(0, 0.6, 0.07))
        element(body, "freejoint", name="cube")
        element(body, "geom", name="cube", type="box", size=(CUBE_HALF,) * 3, density=1000)
    hand = add_arm(root, world)
    if fingers:
        add_fingers(root, hand, finger_range, TIP_MASS if tips else 0)
    movers = ["hand", *FINGERS, "cube"] if fingers else ["hand"]
    touching = [("table", mover) for mover in movers]
    touching += [pair for pair in combinations(movers, 2) if "hand" not in pair or "cube" in pair]
    touching += [(mover, wall) for mover in movers for wall in walls]
    contact = element(root, "contact")
    for first, second in touching:
        element(contact, "pair", geom1=first, geom2=second)
    return root


def add_bin(world: Element, name: str, each: Bin) -> list[str]:
    """Puts a bin on the table; returns the names of its walls."""
    thin, half = BIN_WALL_HALF_THICKNESS, BIN_HALF_HEIGHT
    names = []
    for side, (x, y) in {"left": (-1, 0), "right": (1, 0), "front": (0, -1), "back": (0, 1)}.items():
        names.append(f"{name}_{side}")
        pos = (each.centre[0] + x * each.reach, each.centre[1] + y * each.reach, half)
        size = (thin, each.reach - thin, half) if x else (each.reach + thin, thin, half)
        element(world, "geom", name=names[-1], type="box", pos=pos, size=size)
    return names


def add_arm(root: Element, world: Element) -> Element:
    """Puts the arm and its motors into a model; returns the last link."""
    draw(world, BASE)
    motors, body = element(root, "actuator"), world
    for number, link in enumerate(LINKS, start=1):
        body = element(body, "body", name=f"link{number}", pos=link.pos, quat=link.quat)
        element(body, "inertial", pos=link.com, mass=link.mass, fullinertia=link.inertia)
        limits = {"limited": "true", "range": link.limits} if link.limits else {"limited": "false"}
        element(body, "joint", name=f"joint{number}", type="hinge", axis=(0, 0, 1), **limits)
        draw(body, link.shapes)
        add_motor(motors, f"joint{number}", link.motor, link.control)
    element(body, "geom", name="hand", type="capsule", size=(0.04, 0.06), pos=(0, 0, 0.142), quat=HAND_QUAT, mass=0)
    return body


def add_fingers(root: Element, hand: Element, finger_range: float, tip_mass: float) -> None:
    """Puts two fingers, which move together, and their motors on the last link."""
    mass, (_, y, z) = FINGER_MASS + tip_mass, TIP
    com = tuple(tip_mass / mass * place for place in TIP)
    reduced = FINGER_MASS * tip_mass / mass  # of finger and tip, whose distance is that of the tip
    turning = (y**2 + z**2, z**2, y**2)
    inertia = tuple(own + reduced * squared for own, squared in zip(FINGER_INERTIA, turning, strict=True))
    for name, quat in FINGERS.items():
        body = element(hand, "body", name=name, pos=(0, 0, 0.1654), quat=quat)
        element(body, "inertial", pos=com, mass=mass, fullinertia=(*inertia, 0, 0, -reduced * y * z))
        limits = {"limited": "true", "range": (0, finger_range)}
        element(body, "joint", name=name, type="slide", axis=(0, 1, 0), armature=0.1, damping=5, **limits)
        element(body, "geom", name=name, type="box", size=(0.015, 0.005, 0.04), pos=(0, 0.0055, 0.035))
        gain = FINGER_STIFFNESS * finger_range / FINGER_CONTROL
        motor = (gain, -FINGER_STIFFNESS, -FINGER_DAMPING, FINGER_FORCE)
        add_motor(root.find("actuator"), name, motor, (0, FINGER_CONTROL))
    together = {"solref": (0.005, 1), "solimp": (0.95, 0.99, 0.001)}
    joint1, joint2 = FINGERS
    element(element(root, "equality"), "joint", joint1=joint1, joint2=joint2, **together)


def add_motor(motors: Element, joint: str, motor: Numbers, control: Numbers) -> None:
    """A motor as in `Link.motor`."""
    gain, stiffness, damping, force = motor
    shape = {"gaintype": "fixed", "gainprm": gain, "biastype": "affine", "biasprm": (0, stiffness, damping)}
    limits = {"ctrllimited": "true", "ctrlrange": control, "forcelimited": "true", "forcerange": (-force, force)}
    element(motors, "general", name=joint, joint=joint, **shape, **limits)


def draw(body: Element, capsules: tuple[Numbers, ...]) -> None:
    """Capsules that are only seen."""
    for *ends, radius in capsules:
        element(body, "geom", type="capsule", fromto=tuple(ends), size=radius, mass=0)
