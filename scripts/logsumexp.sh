#!/usr/bin/env bash
# How much the penalty on the logsumexp matters; arguments as in experiments.sh.   scripts/logsumexp.sh --env_name ant
source "$(dirname "${BASH_SOURCE[0]}")/experiments.sh" logsumexp_experiments "$@"

for penalty in 0 0.01 0.1 1; do
    run "penalty_$penalty" --logsumexp_penalty "$penalty"
done
figure
