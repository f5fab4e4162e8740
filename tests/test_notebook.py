"""The notebook runs from its first cell to its last, in IPython, which executes its commands as a notebook does."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from drawing import needs_opengl

ROOT = Path(__file__).resolve().parents[1]
NOTEBOOK = json.loads((ROOT / "notebooks" / "quickstart.ipynb").read_text())
CELLS = ["".join(cell["source"]) for cell in NOTEBOOK["cells"] if cell["cell_type"] == "code"]
STEPS = "num_timesteps = 650_000"

# Cells arrive as JSON; a shell command that fails leaves its status in `_exit_code` and raises nothing.
RUN = """
import json, sys
from IPython.core.interactiveshell import InteractiveShell

shell = InteractiveShell.instance()
shown = []
shell.display_pub.publish = lambda data, *_, **__: shown.append(data)
for cell in json.load(sys.stdin):
    shell.run_cell(cell).raise_error()
    assert not shell.user_ns.get("_exit_code"), cell
kinds = [next(kind for kind in data if kind != "text/plain") for data in shown]
assert kinds == ["image/png", "text/html", "image/png"], kinds
assert "<video" in shown[1]["text/html"] and "data:video/mp4;base64," in shown[1]["text/html"]
"""


def test_the_notebook_is_stored_without_outputs():
    assert [cell["outputs"] for cell in NOTEBOOK["cells"] if cell["cell_type"] == "code"] == [[]] * len(CELLS)
    assert sum(STEPS in cell for cell in CELLS) == 1


@pytest.mark.slow
@needs_opengl
def test_the_notebook_trains_plots_and_shows_the_video(tmp_path):
    """In a copy of the repository whose .venv is this one, as short as the prefill allows."""
    clone = tmp_path / "crl"
    shutil.copytree(ROOT, clone, ignore=shutil.ignore_patterns(".git", ".venv", "runs", "__pycache__", ".*cache"))
    binaries = clone / ".venv" / "bin"
    binaries.mkdir(parents=True)
    (binaries / "python").write_text(f'#!/usr/bin/env bash\nexec {sys.executable} "$@"\n')
    (binaries / "python").chmod(0o755)
    # A stamp as setup.sh writes it, which finds nothing to install.
    lock = (clone / "requirements.lock").read_bytes()
    checksum = subprocess.run(["cksum"], input=lock, capture_output=True, check=True).stdout.decode().strip()
    (clone / ".venv" / "complete").write_text(f"{checksum}  {sys.executable}\n")
    cells = [cell.replace(STEPS, "num_timesteps = 270_000") for cell in CELLS]
    environment = os.environ | {"JAX_EXTRA": "", "IPYTHONDIR": str(tmp_path / "ipython")}
    process = subprocess.run(
        [sys.executable, "-c", RUN],
        input=json.dumps(cells),
        cwd=clone / "notebooks",
        env=environment,
        capture_output=True,
        text=True,
        timeout=900,
    )
    assert process.returncode == 0, process.stdout[-3000:] + process.stderr[-3000:]
    (run_dir,) = (clone / "runs" / "crl" / "test").iterdir()
    assert {"params.npz", "curve.png", "energy.png"} <= {path.name for path in run_dir.iterdir()}
