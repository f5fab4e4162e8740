#!/usr/bin/env bash
# Runs the tests, after setting up .venv if need be. Arguments go to pytest; -m "" adds the slow tests.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
scripts/setup.sh
exec .venv/bin/python -m pytest "$@"
