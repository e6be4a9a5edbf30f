#!/usr/bin/env bash
# All that a GPU is asked, in one command of at most 8 minutes: golden tests, speed, evaluation, training; one folder.
# usage: bash benchmarks/gpu.sh [--device cuda|cpu] [--small] [--minutes 8] [--out DIR]
#   WHEELS=DIR  wheels of requirements-dev.txt, if nothing can be downloaded (default ../wheels, if it is there)
#   DATA=DIR    holds CHAOST2/ (default ../shared/data); without it the phantom is made
#   TORCH_HOME  holds hub/checkpoints/ with the published weights; without them training starts from efficientnet_lite0
set -uo pipefail
cd "$(dirname "$0")/.."
device=cuda small=() minutes=8 out=gpu_$(date +%Y%m%d_%H%M%S)
while [[ $# -gt 0 ]]; do
    case $1 in
        --device) device=$2; shift 2 ;;
        --small) small=(--small); shift ;;
        --minutes) minutes=$2; shift 2 ;;
        --out) out=$2; shift 2 ;;
        *) sed -n '2,6p' "$0"; exit 2 ;;
    esac
done
mkdir -p "$out"
out=$(realpath "$out") begin=$SECONDS end=$((SECONDS + minutes * 60))
wheels=${WHEELS:-../wheels}
if [[ -d $wheels ]]; then export PIP_NO_INDEX=1 PIP_FIND_LINKS; PIP_FIND_LINKS=$(realpath "$wheels"); fi
python=.venv/bin/python

# stage NAME SECONDS COMMAND...: runs it for at most so long, or what is left; its output and status stay, others go on
grace=10 # seconds to end in, when asked to; then it is killed
stage() {
    local name=$1 limit=$2 left=$((end - SECONDS - grace)) start=$SECONDS; shift 2
    ((limit = limit < left ? limit : left))
    if ((limit < 5)); then echo "$name: no time left" | tee -a "$out/summary.txt"; return 1; fi
    # a training must keep its loaders until it has written its checkpoint, so it alone is asked to end
    local alone=(); [[ $name == train_* ]] && alone=(--foreground)
    timeout "${alone[@]}" -s TERM -k "$grace" "$limit" "$@" > "$out/$name.log" 2>&1 < /dev/null
    local status=$?
    echo "$name: status $status after $((SECONDS - start)) s (124: stopped after its $limit s)" | tee -a "$out/summary.txt"
    return $status
}

stage setup 240 bash script/setup.sh --dev || stage setup_without_tools 120 bash script/setup.sh \
    || { tail -n 5 "$out"/setup*.log; exit 1; }
stage machine 60 "$python" -m torch.utils.collect_env
stage device 60 "$python" -c "import sys, torch; print(torch.empty(1, device=sys.argv[1]).device)" "$device" \
    || { tail -n 1 "$out/device.log"; echo "no $device here; rehearse with --device cpu --small"; exit 1; }
data=${DATA:-../shared/data} dataset=CHAOST2
if [[ ! -d $data/CHAOST2 || ${#small[@]} -gt 0 ]]; then
    data=$out/data dataset=PHANTOM
    stage phantom 60 "$python" -m data.phantom "$data/PHANTOM" --scans 6 --size 64 --slices 16 --jobs 1
    stage supervoxels 60 "$python" -m supervoxels.generate "$data/PHANTOM/phantom_MR_normalized" \
        "$data/PHANTOM/supervoxels_5000" --min-size 300 --jobs 1
fi
golden=(tests/parity/test_{adnet,alpnet,qnet,rpt,pami,gmrd,visa}.py) seconds=150 encoder=resnet101 size=256
devices=(tests/models/test_devices.py)
if [[ ${#small[@]} -gt 0 ]]; then
    golden=(tests/parity/test_adnet.py) devices=(tests/models/test_devices.py -k adnet) seconds=90
    encoder=efficientnet_lite0 size=64
fi
# side by side, as most of their time goes into making inputs on the CPU
jobs=$(($(nproc) / 4))
# TF32 would differ from the golden numbers in the fourth digit
stage golden 90 env FSMIS_DEVICE="$device" NVIDIA_TF32_OVERRIDE=0 OMP_NUM_THREADS=2 \
    "$python" -m pytest -q -rs -n "$jobs" "${golden[@]}"
stage devices 60 "$python" -m pytest -q -rs "${devices[@]}"
stage speed $((seconds + 30)) "$python" -m benchmarks.gpu --out "$out" --device "$device" --encoder "$encoder" \
    --size "$size" --seconds "$seconds" --data "$data" --dataset "$dataset" "${small[@]}"
grep '^asked' "$out/speed.log" | tee -a "$out/summary.txt"

common=("dataset=$dataset" "data_root=$data" "runs=$out/runs" "device=$device")
[[ $dataset == PHANTOM ]] && common+=(episode.min_size=20)
trained=(encoder=efficientnet_lite0)
if [[ ${#small[@]} -eq 0 && -f ${TORCH_HOME:-$HOME/.cache/torch}/hub/checkpoints/deeplabv3_resnet101_coco-586e9e4e.pth ]]; then
    trained=(encoder=resnet101)
fi
# each training is asked to stop after its time, leaves a checkpoint, and is scored
share=2
for method in adnet alpnet; do
    left=$(((end - SECONDS) / share - 45)) share=1
    [[ ${#small[@]} -gt 0 && $left -gt 30 ]] && left=30
    options=("method=$method" "${common[@]}" "${trained[@]}")
    [[ $method == alpnet ]] && options+=(scans.segments=supervoxels)
    stage "train_$method" "$left" "$python" training.py with "${options[@]}" train.steps=1000000 train.save_every=1000000
    # asked to stop, it counts as interrupted, so it must be named
    stage "test_$method" 60 "$python" test.py with "${options[@]}" "test.checkpoint=$out/runs/${method}_${dataset}_fold0/1"
    [[ ${#small[@]} -gt 0 ]] && break
done
echo "$out: $((SECONDS - begin)) s in all" | tee -a "$out/summary.txt"
