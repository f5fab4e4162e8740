"""MuJoCo's choice of OpenGL, made before its first import: a value that it cannot use costs pictures, not the run."""

import ctypes
import ctypes.util
import os
import platform
import sys

# What MuJoCo knows everywhere and on each system; with any other value it cannot be imported.
SWITCHES = ("enable", "enabled", "on", "true", "1", "disable", "disabled", "off", "false", "0", "")
LIBRARIES = {"Linux": ("egl", "osmesa", "glfw", "glx"), "Darwin": ("cgl", "glfw"), "Windows": ("wgl", "glfw")}
# Nor where the shared library of one of these is missing.
SHARED = {"egl": "EGL", "osmesa": "OSMesa"}


def usable_opengl(chosen: str) -> str:
    """`chosen`, a value of `MUJOCO_GL`, if MuJoCo can be imported with it here; else "disabled", after one warning."""
    name = chosen.lower().strip()
    libraries = LIBRARIES.get(platform.system(), ("glfw",))
    if name not in (*SWITCHES, *libraries):
        problem = f"is none that MuJoCo has on {platform.system()}: use {', '.join(libraries)} or disabled"
    elif name in SHARED and not _loads(SHARED[name]):
        problem = f"needs lib{SHARED[name]}, which is missing"
    else:
        return chosen
    print(f"warning: nothing can be drawn, MUJOCO_GL={chosen} {problem}", file=sys.stderr)
    return "disabled"


def _loads(library: str) -> bool:
    try:
        ctypes.CDLL(ctypes.util.find_library(library) or f"lib{library}.so")
    except OSError:
        return False
    return True


if "MUJOCO_GL" in os.environ:
    os.environ["MUJOCO_GL"] = usable_opengl(os.environ["MUJOCO_GL"])
