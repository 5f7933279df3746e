#!/bin/sh
# Run the study in params.yaml, JOBS stages at a time, one share of the cores each; then let DVC check the whole.
#
# A small model's training step has much that one thread does alone, so two jobs of one core keep two cores busier
# than one job of two. make holds the order: a stage starts when those it reads from are done. `dvc repro` at the end
# runs whatever is left and is the only judge of what is up to date; on its own it does the same, in series.
set -eu
cd "$(dirname "$0")/.."
cores=$(getconf _NPROCESSORS_ONLN 2>/dev/null || echo 2)
jobs=${JOBS:-$([ "$cores" -lt 4 ] && echo "$cores" || echo 4)}
if [ -z "${JOBS:-}" ] && command -v nvidia-smi >/dev/null 2>&1 && nvidia-smi >/dev/null 2>&1; then jobs=1; fi # one card
study=$(sed -n 's/^study: *//p' params.yaml)

rules() { # a rule for every stage of the study, and `all`
    for stage in $(dvc stage list --name-only | grep -E "@$study(-|\$)"); do
        seed=${stage##*-}
        case $stage in
        settings@* | strip@* | paper_figures@* | diagnostics@*) continue ;;
        data@*) needs="" ;;
        sft@* | reward_model@*) needs="data@$study" ;;
        human@*) needs="reward_model@$study" ;;
        evaluation@*)
            cell=${stage#evaluation@"$study"-}
            needs="reward_model@$study ${cell%-*}@$study-$seed" ;;
        *) needs="reward_model@$study sft@$study-$seed" ;;
        esac
        printf '%s: %s\n\tdvc --wait-for-lock repro --single-item %s\nall: %s\n.PHONY: %s\n' \
            "$stage" "$needs" "$stage" "$stage" "$stage"
    done
}

if [ "$jobs" -gt 1 ]; then
    dvc repro "settings@$study" "strip@$study"
    mkdir -p scratch
    rules >scratch/stages.mk
    OMP_NUM_THREADS=$((cores / jobs > 0 ? cores / jobs : 1)) \
        env -u MAKEFLAGS -u MAKELEVEL make --no-print-directory -s -j "$jobs" -f scratch/stages.mk all
fi
dvc repro "$@"
