#!/usr/bin/env bash
# Width, depth and LayerNorm; arguments as in experiments.sh.   scripts/networks.sh --env_name ant
source "$(dirname "${BASH_SOURCE[0]}")/experiments.sh" network_experiments "$@"

for width in 256 512 1024; do
    for depth in 2 3 4; do
        for norm in no_use_ln use_ln; do
            run "${width}x${depth}_$norm" --h_dim "$width" --n_hidden "$depth" "--$norm"
        done
    done
done
figure
