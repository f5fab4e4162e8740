#!/usr/bin/env bash
# Trains an agent, after setting up .venv if need be. Paths among the flags are relative to the repository root.
#   scripts/train.sh                     a quick reacher
#   scripts/train.sh ENV [--flag ...]    any environment
#   scripts/train.sh --flag ...          whatever training.py understands, such as --help
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
scripts/setup.sh

case "${1-}" in
    "") set -- --env_name reacher --num_envs 256 --num_timesteps 650000 --num_evals 6 --exp_name quickstart ;;
    -*) ;;
    *) set -- --env_name "$@" ;;
esac
exec .venv/bin/python training.py "$@"
