#!/usr/bin/env bash
# All methods on one environment; arguments as in experiments.sh.   scripts/methods.sh --env_name ant_u_maze
source "$(dirname "${BASH_SOURCE[0]}")/experiments.sh" method_experiments "$@"
# Only what all methods have: each keeps its own defaults otherwise.
common=(--num_timesteps 10000000 --num_evals 50 --num_envs 512 --episode_length 1000 --log_wandb)

run crl
run crl_chunks --action_chunk 3
run crl_twin_critics --num_critics 2
for algorithm in srl chrono; do
    run "$algorithm" --algorithm "$algorithm"
done
figure
