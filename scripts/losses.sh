#!/usr/bin/env bash
# The comparison of contrastive losses; arguments as in experiments.sh.   scripts/losses.sh --env_name ant
source "$(dirname "${BASH_SOURCE[0]}")/experiments.sh" contrastive_loss_experiments "$@"

for c_loss in binary infonce flatnce fb dp; do
    run "$c_loss" --contrastive_loss_fn "$c_loss"
done
figure
