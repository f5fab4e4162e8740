#!/usr/bin/env bash
# Runs the tests, after setting up .venv if need be, one worker per core (eight at most).
#   scripts/test.sh              what runs by default, on two cores about 7 minutes, 20 with nothing compiled before
#   scripts/test.sh --fast       the files below: about 2 minutes, for while you edit
#   scripts/test.sh -m ""        the slow tests as well
#   scripts/test.sh -n 0 FILE    any arguments of pytest; -n 0 is one process, for a debugger
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

# What compiles little and starts few processes: flags, losses, networks, replay, goals, one training step, files.
fast=(
    check checkpoint chunks crl critics densities evaluator goals gen_distances hindsight imports insight losses
    networks plan policy replay_buffer seams statistics steps train utils wrappers
)

scripts/setup.sh
workers="$(.venv/bin/python -c 'from src.devices import num_cores; print(min(num_cores(), 8))')"
if [[ "${1-}" == --fast ]]; then
    shift
    fast=("${fast[@]/#/tests/test_}")
    set -- "${fast[@]/%/.py}" "$@"
fi
exec .venv/bin/python -m pytest -n "$workers" --dist loadfile "$@"
