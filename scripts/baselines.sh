#!/usr/bin/env bash
# Every algorithm, with and without hindsight; arguments as in experiments.sh.   scripts/baselines.sh --env_name ant
source "$(dirname "${BASH_SOURCE[0]}")/experiments.sh" baseline_experiments "$@"
# Only what all algorithms have: each keeps its own defaults otherwise.
common=(--num_timesteps 10000000 --num_evals 50 --num_envs 512 --episode_length 1000 --log_wandb)

run crl
for algorithm in sac td3; do
    run "$algorithm" --algorithm "$algorithm" --her_ratio 0
    run "${algorithm}_her" --algorithm "$algorithm" --her_ratio 0.8
done
run ppo --algorithm ppo
run gcsl --algorithm gcsl
figure
