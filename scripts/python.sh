# Sourced by the loops, in the repository root: `python` is that of the active environment, or else that of .venv, which
# is set up if need be.
python=python
if [[ -z "${VIRTUAL_ENV:-}${CONDA_PREFIX:-}" ]]; then
    scripts/setup.sh
    python=.venv/bin/python
fi
