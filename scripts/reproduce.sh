#!/usr/bin/env bash
# Trains the settings of scripts/settings.yml, then writes results/table.md and its figure. Interrupted runs resume,
# finished ones are skipped. Sets up .venv if need be; paths are relative to the repository root.
#   scripts/reproduce.sh                     every row
#   scripts/reproduce.sh ant reacher         the rows of some environments, or rows by name
#   scripts/reproduce.sh --dry_run           what would run; --help shows the other flags
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
source scripts/python.sh
exec "$python" scripts/reproduce.py "$@"
