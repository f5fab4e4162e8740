"""training.py as a process of its own, on the probe env: `python tests/probe_training.py --env_name probe ...`."""

import sys
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parent.parent)]

from conftest import ProbeEnv, registered  # noqa: E402

import training  # noqa: E402


def drawn_probe(**options):
    """The same, able to be drawn; MuJoCo and its OpenGL are asked for only here."""
    from drawing import DrawnProbe

    return DrawnProbe(**options)


if __name__ == "__main__":
    with registered(probe=ProbeEnv, drawn_probe=drawn_probe):
        sys.exit(training.main(sys.argv[1:]))
