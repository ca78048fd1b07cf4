#!/usr/bin/env bash
# All that only a GPU can show, in one go on a bare machine (an H200, an H100, an A100): Python with torch and triton,
# nvcc for csrc/cuda; no network, nothing of ours installed.
#
#   tests/benchmarks/h200.sh                          every stage, about 15 minutes
#   tests/benchmarks/h200.sh build correctness kernels    these, in this order
#   LIMIT=60 tests/benchmarks/h200.sh sanitize            with this many seconds for each
#
# OUT (default ./out) is where h200.log and the figures go. A stage that fails or runs out of its time does not stop the
# others; the summary at the end names it, and the exit status is the number of stages that failed. What a machine
# lacks can come as wheels: WHEELS=folder.

set -uo pipefail
cd "$(dirname "$0")/../.."
ROOT=$PWD
OUT=${OUT:-out}
mkdir -p "$OUT"
OUT=$(cd "$OUT" && pwd)
LOG=$OUT/h200.log
: > "$LOG"
STAGES=(environment build correctness sanitize triton attention kernels block)
PYTHON=${PYTHON:-$(command -v python3)}

PLACE=$(mktemp -d)
trap 'rm -rf "$PLACE"' EXIT
mkdir "$PLACE/site"
ln -s "$ROOT" "$PLACE/contentv"   # the checkout under its import name
export PYTHONPATH="$PLACE:$PLACE/site${PYTHONPATH:+:$PYTHONPATH}"
export PYTHONUNBUFFERED=1 CONTENTV_DEVICE=cuda
if [ -n "${WHEELS:-}" ]; then
    "$PYTHON" -m pip install --quiet --no-index --no-deps --no-compile --target "$PLACE/site" "$WHEELS"/*.whl || exit
fi

contentv() { "$PYTHON" -m contentv.launchers.contentv "$@"; }

environment() {
    nvidia-smi --query-gpu=name,driver_version,memory.total,clocks.sm,clocks.mem --format=csv
    nvcc --version | tail -2
    "$PYTHON" tests/benchmarks/device_roof.py
}

build() { CONTENTV_CUDA=1 "$PYTHON" csrc/build_cuda.py; }

# Most of it is compiling, which several processes share where pytest-xdist is there.
correctness() {
    local several=()
    "$PYTHON" -c "import xdist" 2> /dev/null && several=(-n "$(( $(nproc) < 12 ? $(nproc) : 12 ))")
    "$PYTHON" -m pytest tests/kernels -m "not slow" "${several[@]}" --maxfail=60 --tb=short -rfE -p no:cacheprovider
}

# Small cases only: memcheck is some 10 to 50 times slower, racecheck more. Without torch's cache of memory an access
# behind a tensor's end leaves its allocation, and is seen.
sanitize() {
    export PYTORCH_NO_CUDA_MEMORY_CACHING=1
    local tests=tests/kernels/test_csrc_cuda.py status=0
    for tool in memcheck racecheck; do
        compute-sanitizer --tool "$tool" --error-exitcode 9 --print-limit 5 --target-processes all \
            "$PYTHON" -m pytest "$tests" -k "device and (sum_of_squares or references or holds)" --tb=short \
            -p no:cacheprovider || status=1
    done
    compute-sanitizer --tool memcheck --error-exitcode 9 --print-limit 5 --target-processes all \
        "$PYTHON" tests/benchmarks/touch_kernels.py || status=1
    return $status
}

triton() { "$PYTHON" tests/benchmarks/sweep_triton.py --out "$OUT/triton.json"; }

attention() { "$PYTHON" tests/benchmarks/sweep_attention.py --out "$OUT/attention.json"; }

kernels() {
    local status=0 token_ops=()
    for op in qk_norm_rope modulated_norm gated_residual gated_residual_norm mlp_gelu flow_noise flow_loss; do
        token_ops+=(--op "$op")
    done
    contentv bench kernels --op joint_attention --case "x125, joint" --out "$OUT/kernels-attention.json" \
        --backend gpu_triton --backend sdpa_cudnn --backend sdpa_flash --backend flash_attn || status=1
    contentv bench kernels --op gradient_norm --op adamw --out "$OUT/kernels-optimizer.json" || status=1
    "$PYTHON" tests/benchmarks/reproducible_attention.py || status=1
    contentv bench kernels "${token_ops[@]}" --case x125 --out "$OUT/kernels-tokens.json" || status=1
    return $status
}

block() {
    contentv bench block --profile --json | tee "$OUT/block.json" &&
        contentv bench block --profile --repeatable False --json | tee "$OUT/block-fastest.json"
}

# Seconds that a stage may take; LIMIT overrides them all.
limit() {
    case $1 in
        environment) echo "${LIMIT:-60}" ;;
        build | block) echo "${LIMIT:-120}" ;;
        correctness) echo "${LIMIT:-300}" ;;
        sanitize) echo "${LIMIT:-180}" ;;
        triton | attention | kernels) echo "${LIMIT:-240}" ;;
    esac
}

wanted=("$@")
[ ${#wanted[@]} -eq 0 ] && wanted=("${STAGES[@]}")
for stage in "${wanted[@]}"; do
    [ -n "$(limit "$stage")" ] || { echo "there is no stage $stage; choose from ${STAGES[*]}" >&2; exit 2; }
done

summary=() failed=0
for stage in "${wanted[@]}"; do
    echo "== $stage" | tee -a "$LOG"
    started=$SECONDS
    # A process group of its own: at the limit everything that the stage started ends.
    (
        set -m
        "$stage" >> "$LOG" 2>&1 &
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
    sed "1,$(grep -n "^== $stage\$" "$LOG" | tail -n 1 | cut -d: -f1)d" "$LOG" | tail -n 25 | cut -c1-220
    summary+=("$(printf '%-12s %-28s %4d s' "$stage" "$said" $((SECONDS - started)))")
done
echo "== summary"
printf '%s\n' "${summary[@]}"
exit $failed
