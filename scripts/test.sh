#!/usr/bin/env bash
# Runs the tests, after setting up .venv if need be, one worker per core (eight at most).
#   scripts/test.sh              what runs by default
#   scripts/test.sh -m ""        the slow tests as well
#   scripts/test.sh -n 0 FILE    whatever pytest understands; -n 0 is one process, for a debugger
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
scripts/setup.sh
workers="$(.venv/bin/python -c 'from src.devices import num_cores; print(min(num_cores(), 8))')"
exec .venv/bin/python -m pytest -n "$workers" --dist loadfile "$@"
