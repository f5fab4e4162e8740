#!/usr/bin/env bash
# The update-to-data ratio: 1 update per 32, 16, 8 and 4 env steps; arguments as in experiments.sh.
source "$(dirname "${BASH_SOURCE[0]}")/experiments.sh" utd_experiments "$@"

run utd_32 --multiplier_num_sgd_steps 1 --unroll_length 124
run utd_16 --multiplier_num_sgd_steps 1
run utd_8 --multiplier_num_sgd_steps 2
run utd_4 --multiplier_num_sgd_steps 4
figure
