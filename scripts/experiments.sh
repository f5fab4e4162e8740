#!/usr/bin/env bash
# Shared by the loops over settings (losses.sh, energies.sh, ...), which source it with their group and their arguments.
#   run EXP_NAME [--flag ...]   trains a run of every seed; finished runs are skipped, interrupted ones resume
#   figure                      draws the group's curves, and leaves with 1 if a run went wrong
# The loop's own arguments go to every run, after its flags, and so override them. Paths are relative to the repository
# root. SEEDS="1 2 3" chooses the seeds; SEEDS=1 and --num_seeds 5 trains seeds 1 to 5 in one program.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
source scripts/python.sh

group="$1"
everywhere=("${@:2}")
common=(
    --num_timesteps 10000000 --num_evals 50 --batch_size 256 --num_envs 512 --discounting 0.99 --action_repeat 1
    --episode_length 1000 --unroll_length 62 --min_replay_size 1000 --max_replay_size 10000
    --energy_fn l2 --multiplier_num_sgd_steps 1 --log_wandb
)
failed=()

run() {
    local exp_name="$1" seed status
    shift
    for seed in ${SEEDS:-1 2 3 4 5}; do
        status=0
        "$python" training.py --resume --project_name crl --group_name "$group" --exp_name "$exp_name" --seed "$seed" \
            "${common[@]}" "$@" "${everywhere[@]}" || status=$?
        case "$status" in
            0) ;;
            1) failed+=("$exp_name, seed $seed") ;; # such as a loss that diverged: the others still count
            *) exit "$status" ;;
        esac
    done
}

# The value of a flag among the loop's own arguments, or else $2.
given() {
    local value="$2" word previous=""
    for word in "${everywhere[@]}"; do
        [[ "$previous" == "--$1" ]] && value="$word"
        [[ "$word" == "--$1="* ]] && value="${word#*=}"
        previous="$word"
    done
    echo "$value"
}

figure() {
    local folder
    folder="$(given output_dir runs)/$(given project_name crl)/$(given group_name "$group")"
    "$python" scripts/plot.py "$folder" --metric eval/episode_success_any --metric eval/episode_success \
        --out "$folder/$(basename "$0" .sh)"
    if ((${#failed[@]})); then
        printf 'went wrong: %s\n' "${failed[@]}" >&2
        exit 1
    fi
}
