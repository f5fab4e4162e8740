"""`scripts/setup.sh`, with an interpreter that installs nothing."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
# Answers the probe as Python does, and takes half a second to make an environment whose pip does nothing.
INTERPRETER = f"""#!/bin/sh
[ "$1" = -c ] && exec {sys.executable} "$@"
echo begins >>installations
sleep 0.5
mkdir -p .venv/bin
printf '#!/bin/sh\\n' >.venv/bin/python
chmod +x .venv/bin/python
echo ends >>installations
"""


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    (tmp_path / "scripts").mkdir()
    for name in ("scripts/setup.sh", "requirements.lock"):
        shutil.copy(ROOT / name, tmp_path / name)
    (tmp_path / "python").write_text(INTERPRETER)
    (tmp_path / "python").chmod(0o755)
    return tmp_path


def start(checkout: Path) -> subprocess.Popen:
    environment = os.environ | {"PYTHON": str(checkout / "python"), "JAX_EXTRA": ""}
    return subprocess.Popen([checkout / "scripts" / "setup.sh"], env=environment)


@pytest.mark.skipif(shutil.which("flock") is None, reason="this system has no flock")
def test_jobs_that_start_together_install_once(checkout):
    jobs = [start(checkout) for _ in range(3)]
    assert [job.wait(60) for job in jobs] == [0, 0, 0]
    assert (checkout / "installations").read_text().split() == ["begins", "ends"]


def test_a_changed_lock_installs_afresh_and_the_same_one_does_not(checkout):
    for line, installations in (("", 1), ("", 1), ("# changed\n", 2), ("", 2)):
        with (checkout / "requirements.lock").open("a") as lock:
            lock.write(line)
        assert start(checkout).wait(60) == 0
        assert (checkout / "installations").read_text().split() == ["begins", "ends"] * installations
