#!/usr/bin/env bash
# All that only an NPU can show, for whoever has one (Atlas 800T A2 or another with 910B): one run, one archive to send
# back. Needs the driver, CANN and torch_npu (docs/ascend.md) and this checkout installed; no network.
#
#   source /usr/local/Ascend/ascend-toolkit/set_env.sh
#   tests/ascend/on_hardware.sh                        every stage, about an hour on one NPU
#   tests/ascend/on_hardware.sh operators training     these, in this order
#   tests/ascend/on_hardware.sh --dry-run              prints every command and runs none
#   RANKS=8 tests/ascend/on_hardware.sh ranks          a data-parallel world of this many NPUs; default 2
#   LIMIT=300 tests/ascend/on_hardware.sh operators    with this many seconds for each stage
#
# OUT (default ./out-npu) gets a log and the figures of every stage, and beside it OUT.tar.gz, the archive. A stage that
# fails or runs out of its time does not stop the others; the exit status is the number of stages that failed.

set -uo pipefail
cd "$(dirname "$0")/../.." || exit
ROOT=$PWD
OUT=${OUT:-out-npu}
RANKS=${RANKS:-2}
PYTHON=${PYTHON:-$(command -v python3)}
STAGES=(environment operators training ranks kernels block trace)

DRY=
wanted=()
for argument in "$@"; do
    case $argument in
        --dry-run) DRY=1 ;;
        -*) echo "there is no option $argument; see the head of $0" >&2; exit 2 ;;
        *)
            [[ " ${STAGES[*]} " == *" $argument "* ]] ||
                { echo "there is no stage $argument; choose from ${STAGES[*]}" >&2; exit 2; }
            wanted+=("$argument")
            ;;
    esac
done
[ ${#wanted[@]} -gt 0 ] || wanted=("${STAGES[@]}")

if [ -z "$DRY" ]; then
    mkdir -p "$OUT" || exit
    OUT=$(cd "$OUT" && pwd)
    PLACE=$(mktemp -d)
    trap 'rm -rf "$PLACE"' EXIT
    ln -s "$ROOT" "$PLACE/contentv"   # the checkout under its import name
    export PYTHONPATH="$PLACE${PYTHONPATH:+:$PYTHONPATH}"
fi
export PYTHONUNBUFFERED=1 USE_ASCEND_NPU=1 CONTENTV_DEVICE=npu

# Runs a command, or prints it. What fails marks its stage, and the next command runs all the same.
run() {
    if [ -n "$DRY" ]; then
        printf '%q ' "$@"
        printf '\n'
    else
        echo "+ $*"
        "$@" || broken=1
    fi
}

contentv() { run "$PYTHON" -m contentv.launchers.contentv "$@"; }

# The quickstart on its own data: before a -- where it runs, then the folder, then options.
train() {
    local before=()
    while [ "$1" != -- ]; do before+=("$1"); shift; done
    shift
    run "${before[@]}" -m contentv.launchers.contentv train quickstart --run.folder "$OUT/runs/$1" \
        --trainer.max-steps 20 --trainer.checkpoint-every 10 --trainer.log-every 1 "${@:2}"
}

environment() {
    run npu-smi info
    run npu-smi info -t topo
    run cat /usr/local/Ascend/driver/version.info
    # shellcheck disable=SC2016 - expanded where it runs
    run sh -c 'cat "${ASCEND_TOOLKIT_HOME:-/usr/local/Ascend/ascend-toolkit/latest}"/*/ascend_toolkit_install.info'
    run "$PYTHON" -m pip freeze
    run git log -1 --format=%H
    contentv doctor --run-folder "$OUT/runs"
}

# Every backend of every operation against its oracle, forward and each gradient; the oracle runs on the host.
operators() { run "$PYTHON" -m pytest tests/kernels -m "not slow" --tb=short -rfE -p no:cacheprovider; }

training() {
    [ -d data/quickstart ] || contentv data quickstart   # fetches clips: without a network bring data/quickstart along
    train "$PYTHON" -- one
    # The same with every operation in plain torch: losses agree to rounding.
    train "$PYTHON" -- reference --kernels.backend reference
    # Resumes from the checkpoint of step 10, on the host: a checkpoint goes from device to device.
    run cp -r "$OUT/runs/one" "$OUT/runs/on-cpu"
    run rm -rf "$OUT/runs/on-cpu/checkpoints/step-00000020"
    train env USE_ASCEND_NPU=0 CONTENTV_DEVICE=cpu "$PYTHON" -- on-cpu
}

ranks() {
    local launch=("$PYTHON" -m torch.distributed.run --standalone --nproc-per-node)
    train "${launch[@]}" "$RANKS" -- data
    train "${launch[@]}" 2 -- tensor --parallel.tensor 2
    train "${launch[@]}" 2 -- context --parallel.context 2
    train "${launch[@]}" 2 -- pipeline --parallel.pipeline 2
}

kernels() {
    # Where to rotate: inside attention (its case "rotated" against "joint queries") or with the norm before it (its case
    # "rotated" against "video unrotated"). docs/ascend.md has the rule.
    contentv bench kernels --op joint_attention --op qk_norm_rope --case "x125, rotated" --case "x125, joint queries" \
        --case "x125, video unrotated" --backend npu_triton --seconds 2 --out "$OUT/kernels-rotation.json"
    contentv bench kernels --shapes model --out "$OUT/kernels.json" --png "$OUT/roofline.png"
    contentv bench kernels --shapes odd --out "$OUT/kernels-odd.json"
}

block() {
    contentv bench block --json
    contentv bench block --json --kernels reference --latents 8 54 96
}

# msprof records what torch's profiler does not see of an NPU: kernels, queues, HCCL. One block forward and backward.
trace() {
    run msprof --output="$OUT/msprof" --ascendcl=on --task-time=on --aicpu=on --hccl=on --ai-core=on \
        "$PYTHON" -m contentv.launchers.contentv bench block --steps 3 --json
}

# Seconds that a stage may take; LIMIT overrides them all.
limit() {
    case $1 in
        environment | block) echo "${LIMIT:-300}" ;;
        *) echo "${LIMIT:-900}" ;;
    esac
}

failed=0
summary=()
for stage in "${wanted[@]}"; do
    echo "== $stage"
    if [ -n "$DRY" ]; then
        "$stage"
        continue
    fi
    started=$SECONDS
    # A process group of its own: at the limit everything that the stage started ends.
    (
        set -m
        ( broken=0; "$stage"; exit "$broken" ) > "$OUT/$stage.log" 2>&1 &
        job=$!
        ( sleep "$(limit "$stage")"; kill -TERM -- -$job; sleep 5; kill -KILL -- -$job ) 2> /dev/null &
        watch=$!
        wait $job
        status=$?
        kill -TERM -- -$watch 2> /dev/null
        exit $status
    ) 2> /dev/null  # the shell's own word on what it ended
    status=$?
    case $status in
        0) said=ok ;;
        143 | 137) said="out of time after $(limit "$stage") s" ;;
        *) said="failed ($status)" ;;
    esac
    [ $status -eq 0 ] || failed=$((failed + 1))
    tail -n 15 "$OUT/$stage.log" | cut -c1-220
    summary+=("$(printf '%-12s %-28s %4d s' "$stage" "$said" $((SECONDS - started)))")
done
[ -z "$DRY" ] || exit 0
printf '%s\n' "${summary[@]}" | tee "$OUT/summary.txt"
# Without the weights: logs, figures, metrics, traces.
tar -czf "$OUT.tar.gz" -C "$(dirname "$OUT")" --exclude='checkpoints' "$(basename "$OUT")" &&
    echo "send back $OUT.tar.gz"
exit $failed
