#!/usr/bin/env bash
# The main job from end to end on the embedded phantom: scans, supervoxels, training, test, a table and a picture.
# usage: bash script/demo.sh [key=value ...]     such as train.steps=1000 (default: 700)
set -euo pipefail
if [[ "${1:-}" == -h || "${1:-}" == --help ]]; then sed -n '2,/^set/s/^# //p' "$0"; exit 0; fi
cd "$(dirname "$0")/.."
start=$SECONDS
bash script/setup.sh
python=.venv/bin/python

echo "== 1/5 synthetic abdomens"
$python -m data.phantom
echo "== 2/5 supervoxels"
$python -m supervoxels.generate PHANTOM --data-root data
echo "== 3/5 training Odds without a single annotation"
setting=(method=odds dataset=PHANTOM encoder=efficientnet_lite0)
$python training.py with "${setting[@]}" train.steps=700 "$@"
echo "== 4/5 segmenting four organs from ONE annotated scan, before and after training"
runs=runs/odds_PHANTOM_fold0
$python test.py with "${setting[@]}" test.checkpoint=untrained
untrained=$(ls -d $runs/[0-9]* | sort -V | tail -n 1)
$python test.py with "${setting[@]}" test.save=True
trained=$(ls -d $runs/[0-9]* | sort -V | tail -n 1)

echo
$python -m util.report untrained="$untrained" trained="$trained"
echo
$python -m util.report untrained="$untrained" trained="$trained" --out "$trained/report"
echo "== 5/5 segmenting a scan of one's own (here a phantom again) with predict.py"
scans=data/PHANTOM/phantom_MR_normalized
checkpoint=$(ls -d $runs/[0-9]*/checkpoints | sort -V | tail -n 1)
$python predict.py --checkpoint "${checkpoint%/checkpoints}" --support-image $scans/image_4.nii.gz \
    --support-label $scans/label_4.nii.gz --query $scans/image_1.nii.gz --out "$trained/predicted" --overwrite
echo
echo "in a browser: $trained/predicted/image_1.html, $trained/report/report.html"
echo "pictures: $trained/*.png, predictions: $trained/predictions/, $((SECONDS - start)) s in all"
