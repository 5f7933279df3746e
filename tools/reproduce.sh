#!/bin/sh
# Run a study, JOBS stages at a time, one share of the cores each; then let DVC check the whole. Which one:
# STUDY_PRESET, STUDY_DATA and STUDY_NAME, or without a preset what params.yaml says. Every command below reads
# scratch/<study>/params.yaml: this run keeps its study to the end, while another is chosen or runs beside it.
#
# A small model's training step has much that one thread does alone, so two jobs of one core keep two cores busier
# than one job of two. make holds the order: a stage starts when those it reads from are done. `dvc repro` at the end
# runs whatever is left and is the only judge of what is up to date; on its own it does the same, in series.
#
# Where there are GPUs, as many stages run at a time, and each sees its own alone (tools/dvc_study.py). STUDY_PROCESSES:
# processes of one training, each with a GPU of its own. STUDY_RUNNER: a cluster's command in front of every stage.
set -eu
cd "$(dirname "$0")/.."
cores=$(getconf _NPROCESSORS_ONLN 2>/dev/null || echo 2)
processes=${STUDY_PROCESSES:-1}
for given in "JOBS=${STUDY_JOBS:-1}" "PROCESSES=$processes"; do
    case ${given#*=} in *[!0-9]* | 0*) echo "error: $given: give a number, 1 or more" >&2 && exit 2 ;; esac
done
gpus= slots=
if command -v nvidia-smi >/dev/null 2>&1 && nvidia-smi >/dev/null 2>&1; then
    gpus=${CUDA_VISIBLE_DEVICES-$(nvidia-smi --query-gpu=index --format=csv,noheader)}
fi
if [ -n "${STUDY_RUNNER:-}" ]; then
    jobs=16 # the cluster's queue decides how many of them run
elif [ -n "$gpus" ]; then # one group of GPUs a job, one GPU a process
    slots=$(echo "$gpus" | tr ',\n' '  ' | xargs -n "$processes" | awk -v p="$processes" 'NF == p' | tr ' ' ',')
    jobs=$(echo "$slots" | grep -c .) || { echo "error: PROCESSES=$processes: there are fewer GPUs" >&2 && exit 2; }
else
    jobs=$(((cores < 4 ? cores : 4) / processes))
fi
jobs=${STUDY_JOBS:-$((jobs > 0 ? jobs : 1))}
if [ -n "${STUDY_PRESET:-}" ]; then
    said=$(python -m polylib.study ${STUDY_DATA:+"--data=$STUDY_DATA"} ${STUDY_NAME:+"--name=$STUDY_NAME"} -- "$STUDY_PRESET")
else
    said=$(python -m polylib.study)
fi
printf '%s\n' "$said"
study=$(printf '%s\n' "$said" | sed -n 's/^params\.yaml: study \([^,]*\),.*/\1/p' | tail -n 1)
exec 9>"scratch/$study/lock" # held while this shell or a stage that it started lives, released however they end
python -c 'import fcntl; fcntl.flock(9, fcntl.LOCK_EX | fcntl.LOCK_NB)' 2>/dev/null || {
    echo "error: study $study is already running in this checkout; wait for it, or stop it first" >&2
    exit 2
}
# what a user can repair is one line of a stage's; the last thing said is that line, not what DVC and make say after it
export POLYLIB_FAULT="$PWD/scratch/$study/fault"
rm -f "$POLYLIB_FAULT"
trap 'status=$?; if [ "$status" -ne 0 ] && [ -f "$POLYLIB_FAULT" ]; then sort -u "$POLYLIB_FAULT" >&2; fi; exit "$status"' EXIT
frozen() { # dvc with the params of this study; a name holds letters, digits, _ and - alone
    python tools/dvc_study.py "scratch/$study/params.yaml" --wait-for-lock "$@"
}

rules() { # a rule for every stage of the study, and `all`
    for stage in $(frozen stage list --name-only | grep -E "@$study(-|\$)"); do
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
        printf '%s: %s\n\tpython tools/dvc_study.py %s --wait-for-lock repro --single-item %s\nall: %s\n.PHONY: %s\n' \
            "$stage" "$needs" "scratch/$study/params.yaml" "$stage" "$stage" "$stage"
    done
}

if [ "$jobs" -gt 1 ]; then
    frozen repro "settings@$study" "strip@$study"
    rules >"scratch/$study/stages.mk"
    threads=$((cores / jobs / processes > 0 ? cores / jobs / processes : 1))
    [ -z "${STUDY_RUNNER:-}" ] || threads= # the cores are another machine's
    env -u MAKEFLAGS -u MAKELEVEL ${threads:+OMP_NUM_THREADS=$threads} \
        "STUDY_SLOTS=$([ -z "$slots" ] || yes "$slots" | head -n "$jobs")" \
        make --no-print-directory -s -j "$jobs" -f "scratch/$study/stages.mk" all
fi
frozen repro "$@"
