"""Folders of runs as test.py leaves them, without a network: predictions are shifted truths with their real scores."""

import json
from pathlib import Path

import numpy as np

from util.evaluation.metrics import overlap, volume_scores
from util.report.scores import write_scores
from util.volume import Geometry, write_volume

ORGANS = {"liver": 1, "left kidney": 3}
GEOMETRY = Geometry(spacing=(1.5, 1.5, 7.7), direction=(1, 0, 0, 0, -1, 0, 0, 0, 1))
SHAPE = (8, 40, 48)


def truth_of(scan: int, organ: str) -> np.ndarray:
    """A ball in a place of its own."""
    z, y, x = np.ogrid[tuple(slice(n) for n in SHAPE)]
    middle = (4, 14 + scan % 3, 30) if organ == "liver" else (3, 28, 12 + scan % 2)
    squares = ((z - middle[0]) * 3) ** 2 + (y - middle[1]) ** 2 + (x - middle[2]) ** 2
    return squares < (64 if organ == "liver" else 30)


def make_data(root: Path, scans: range) -> None:
    """image_N and label_N of every scan."""
    for scan in scans:
        label = sum(truth_of(scan, organ) * np.int16(number) for organ, number in ORGANS.items())
        image = np.random.default_rng(scan).normal(100, 10, SHAPE) + 60 * label
        write_volume(root / f"image_{scan}.nii.gz", image.astype(np.float32), GEOMETRY)
        write_volume(root / f"label_{scan}.nii.gz", label, GEOMETRY)


def make_run(
    folder: Path, data: Path, scans: range, shift: int, *, fold: int = 0, seed: int = 1, **columns: object
) -> Path:
    """One tested run; the predictions lie `shift` columns (one more for every third scan) beside the truth."""
    rows = []
    for organ in ORGANS:
        for scan in scans:
            truth = truth_of(scan, organ)
            prediction = np.roll(truth, shift + (scan % 3 == 0) + seed % 2, axis=2)
            shown = truth.any((1, 2))
            name = f"predictions/{organ.replace(' ', '_')}_{scan}.nii.gz"
            write_volume(folder / name, prediction.astype(np.uint8), GEOMETRY)
            dice, iou = overlap(prediction[shown], truth[shown])
            rows.append(
                {
                    **{"organ": organ, "scan": scan, "support": "0", "dice": dice, "iou": iou},
                    **volume_scores(prediction, truth, GEOMETRY.spacing[::-1]),
                    **{"method": "adnet", "encoder": "resnet101", "dataset": "PHANTOM", "setting": 1},
                    **{"fold": fold, "seed": seed, "protocol": "strict", "pairing": "parts", "shots": 1},
                    **{"shots_of": "slices", "supports": "fold", "checkpoint": "", "checkpoint_sha256": "0123456789ab"},
                    "prediction": name,
                    **columns,
                }
            )
    files = {s: {kind: str(data / f"{kind}_{s}.nii.gz") for kind in ("image", "label")} for s in scans}
    (folder / "scans.json").write_text(json.dumps({"organs": ORGANS, "scans": files}))
    write_scores(folder / "scores.csv", rows)
    return folder


def make_training(folder: Path, steps: int = 60) -> Path:
    """A training run with its metrics.csv; returns its checkpoint's path."""
    (folder / "checkpoints").mkdir(parents=True)
    lines = ["step,loss,query,align,t,predicted,gradient_norm,learning_rate,steps_per_second"]
    for step in range(10, steps + 1, 10):
        query = 1.5 / (1 + step / 20)
        lines.append(f"{step},{query + 0.3:.5f},{query:.5f},0.30000,{-10 + step / 60:.5f},0.05,2.5,0.001,5.0")
    (folder / "metrics.csv").write_text("\n".join(lines) + "\n")
    return folder / "checkpoints" / f"step_{steps}.pt"


def make_study(root: Path, methods: dict[str, int], folds: int = 2, seeds: int = 2) -> Path:
    """Runs of several methods (name -> shift) over folds of three scans and seeds; returns the folder of runs."""
    make_data(root / "data", range(1, 1 + 3 * folds))
    for method, shift in methods.items():
        for fold in range(folds):
            for seed in range(1, 1 + seeds):
                home = root / "runs" / f"{method}_PHANTOM_fold{fold}"
                checkpoint = make_training(home / f"{2 * seed - 1}")
                scans = range(1 + 3 * fold, 4 + 3 * fold)
                about = dict(method=method, checkpoint=str(checkpoint))
                make_run(home / f"{2 * seed}", root / "data", scans, shift, fold=fold, seed=seed, **about)
    return root / "runs"
