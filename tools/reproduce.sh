#!/bin/sh
# Run the study in params.yaml, JOBS stages at a time, one share of the cores each; then let DVC check the whole.
#
# Stages of one level do not wait for each other (seeds, methods), and a small model's training step has much that
# one thread does alone, so two jobs of one core finish sooner than two jobs of two cores in a row. `dvc repro` at
# the end runs whatever is left and is the only judge of what is up to date; on its own it does the same, in series.
set -eu
cd "$(dirname "$0")/.."
cores=$(getconf _NPROCESSORS_ONLN 2>/dev/null || echo 2)
jobs=${JOBS:-$([ "$cores" -lt 4 ] && echo "$cores" || echo 4)}
if [ -z "${JOBS:-}" ] && command -v nvidia-smi >/dev/null 2>&1 && nvidia-smi >/dev/null 2>&1; then jobs=1; fi # one card
study=$(sed -n 's/^study: *//p' params.yaml)
stages=$(dvc stage list --name-only)

level() { # level NAME...: all stages of these nouns, JOBS at a time; stops at the first failure
    pattern=$(echo "$*" | tr ' ' '|')
    echo "$stages" | grep -E "^($pattern)@$study(-|\$)" |
        OMP_NUM_THREADS=$((cores / jobs > 0 ? cores / jobs : 1)) xargs -P "$jobs" -I{} sh -c \
            'dvc --wait-for-lock repro --single-item "{}" || exit 255'
}

if [ "$jobs" -gt 1 ]; then
    dvc repro $(echo "$stages" | grep -E "^strip@$study-")
    level data
    level reward_model
    level human sft
    level lambda0 polychromic grpo hybrid
    level evaluation
fi
dvc repro "$@"
