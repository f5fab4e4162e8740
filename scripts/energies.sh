#!/usr/bin/env bash
# The comparison of energies; arguments as in experiments.sh.   scripts/energies.sh --env_name ant
source "$(dirname "${BASH_SOURCE[0]}")/experiments.sh" energy_experiments "$@"

for energy in l2 l2_no_sqrt l1 dot cos mrn mrn_pot; do
    run "$energy" --energy_fn "$energy"
done
figure
