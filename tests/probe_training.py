"""training.py as a process of its own, on the probe env: `python tests/probe_training.py --env_name probe ...`."""

import sys
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parent.parent)]

from conftest import ProbeEnv, registered  # noqa: E402

import training  # noqa: E402

if __name__ == "__main__":
    with registered(probe=ProbeEnv):
        sys.exit(training.main(sys.argv[1:]))
