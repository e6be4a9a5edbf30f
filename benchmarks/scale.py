"""What grows with the number of scans: `python benchmarks/scale.py [--scans 10 100 1000] [--shape 100 256 256]`.

One phantom, changed a little for every scan, is written once; so the scans are cheap to make and differ in every byte.
Measured for each number: the first preparation (data.maps), then a training (ADNet, small encoder): seconds and
processor seconds until its first step, the largest memory of all its processes together (proportional set size: shared
pages count once), steps per second and processor seconds per step. Then seconds per scan and memory of data.check and
predict.py on --checked scans. --in-memory also measures how long episodes take from scans in memory and from maps.

Processor seconds are those of all processes and do not depend on what else the machine does. The files stay in --work
for another call; remove the folder at the end.
"""

import argparse
import gzip
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import psutil

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from data.phantom import phantom_scan
from dataloaders.episodes import TrainingEpisodes
from dataloaders.maps import Maps, maps_folder
from dataloaders.samplers import NeighboursSampler
from dataloaders.scans import read_scan
from supervoxels.folder import Parameters
from util.dataset import from_file
from util.tables import text_table
from util.volume import Volume, write_volume

ROOT, MIB = Path(__file__).resolve().parents[1], 1 << 20
EPISODE = dict(augment="one", gamma=(0.5, 1.5), rotation=5.0, shift=5.0, shear=5.0, zoom=(0.9, 1.2), elastic=10.0,
               bias_field=0.0, noise=0.0)  # fmt: skip


def write_scans(home: Path, count: int, shape: tuple[int, int, int], min_size: int) -> Path:
    """Scans 1 to `count` with labels and supervoxels, those that are there left; returns the data set's file."""
    images, segments = home / "scale_normalized", home / f"supervoxels_{min_size}"
    depth, side, _ = shape
    base, first = home / "base", segments / "superpix-MIDDLE_1.nii.gz"
    if not first.is_file():
        scan = phantom_scan(1, 1, side, depth)
        write_volume(base / "label.nii.gz", scan.label, scan.geometry)
        write_volume(base / "image.nii", scan.image, scan.geometry)
        labels = Parameters(min_size).labels(Volume(scan.image, scan.geometry), 1)
        write_volume(first, labels, scan.geometry)
    content = bytearray((base / "image.nii").read_bytes())
    voxels = np.frombuffer(content, np.int16, int(np.prod(shape)), len(content) - 2 * int(np.prod(shape)))
    original = voxels.copy()
    images.mkdir(exist_ok=True)
    for number in range(1, count + 1):
        image = images / f"image_{number}.nii.gz"
        if not image.is_file():
            voxels[:] = original + (original > 0) * np.int16(number % 97) + (np.arange(len(voxels)) % 1009 == number)
            image.write_bytes(gzip.compress(bytes(content), 1))
        for link, target in (
            (images / f"label_{number}.nii.gz", base / "label.nii.gz"),
            (segments / f"superpix-MIDDLE_{number}.nii.gz", first),
        ):
            if not link.exists():
                os.link(target, link)
    organs = {"liver": 1, "right kidney": 2, "left kidney": 3, "spleen": 4}
    about = {"images": images.name, "modality": "MR", "supervoxel_size": min_size, "organs": organs}
    file = home / f"scale_{count}.json"
    file.write_text(json.dumps({**about, "folds": [{"support": 1, "query": [2]}]}))
    return file


def measured(command: list, done: Callable[[], object] = lambda: None) -> dict:
    """Run it; wall and processor seconds, largest memory of all its processes, and when `done` changed.

    `events` are (wall seconds, processor seconds, value) of every new value of `done`.
    """
    began, value, peak, spent, events = time.perf_counter(), None, 0, {}, []
    with open(os.devnull, "w") as nowhere:
        process = subprocess.Popen(command, cwd=ROOT, stdout=nowhere, stderr=subprocess.PIPE, encoding="utf-8")
    family = psutil.Process(process.pid)
    while process.poll() is None:
        total = 0
        try:
            for member in [family, *family.children(recursive=True)]:
                total += member.memory_full_info().pss
                times = member.cpu_times()
                spent[member.pid] = times.user + times.system
        except psutil.Error:
            continue  # it has just ended
        peak = max(peak, total)
        if (new := done()) != value:
            value = new
            events.append((time.perf_counter() - began, sum(spent.values()), new))
        time.sleep(0.2)
    if process.returncode:
        raise SystemExit(process.stderr.read())
    wall = time.perf_counter() - began
    return {"wall": wall, "cpu": sum(spent.values()), "peak": peak / MIB, "events": events}


def training(file: Path, options: argparse.Namespace, runs: Path) -> dict:
    """A row: what a training of some steps takes."""
    folder = runs / f"adnet_{file.stem}_fold0"
    before = len(list(folder.glob("[0-9]*")))
    keys = {
        "method": "adnet",
        "encoder": "efficientnet_lite0",
        "dataset": file,
        "runs": runs,
        "maps": options.work / "maps",
        "threads": 1,
        "workers": options.workers,
        "train.steps": options.steps,
        "train.log_every": 1,
        "episode.min_size": 50,
    }
    command = [sys.executable, "training.py", "with", *(f"{key}={value}" for key, value in keys.items())]

    def steps() -> int:
        metrics = folder / str(before + 1) / "metrics.csv"
        return len(metrics.read_text("utf-8").splitlines()) - 1 if metrics.is_file() else 0

    found = measured(command, steps)
    events = [event for event in found["events"] if event[2] > 0]
    first, last = events[0], events[-1]
    many = max(last[2] - first[2], 1)
    return {
        "s to step 1": f"{first[0]:.1f}",
        "its CPU s": f"{first[1]:.1f}",
        "steps/s": f"{many / max(last[0] - first[0], 1e-9):.2f}",
        "CPU s/step": f"{(last[1] - first[1]) / many:.2f}",
        "MiB": f"{found['peak']:.0f}",
    }


def episodes(file: Path, count: int, options: argparse.Namespace) -> list[dict]:
    """Rows: processor milliseconds of an episode from scans in memory and from maps."""
    dataset, _ = from_file(file)
    numbers = list(range(3, count + 1))
    mapped = Maps(maps_folder(dataset, options.work, options.work / "maps"), dataset, options.work, numbers,
                  "supervoxels")  # fmt: skip
    memory = [read_scan(dataset, options.work, number, labels=False, segments="supervoxels") for number in numbers]
    rows = []
    for name, scans in {"in memory": memory, "maps": mapped.scans()}.items():
        made = TrainingEpisodes(scans, NeighboursSampler((scan.areas for scan in scans), min_size=50), EPISODE, 1)
        began = time.process_time()
        for number in range(100):
            made[number]
        rows.append({"scans": name, "CPU ms per episode": f"{10 * (time.process_time() - began):.1f}"})
    return rows


def main() -> None:
    """Print the table."""
    command = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    command.add_argument("--work", type=Path, default=Path("scale"), help="folder for scans, maps and runs (scale)")
    command.add_argument("--scans", type=int, nargs="+", default=[10, 100, 1000])
    command.add_argument("--shape", type=int, nargs=3, default=[100, 256, 256], help="slices, rows, columns")
    command.add_argument("--min-size", type=int, default=5000, help="smallest supervoxel")
    command.add_argument("--steps", type=int, default=40)
    command.add_argument("--workers", type=int, default=2, help="processes that make episodes")
    command.add_argument("--checked", type=int, default=10, help="scans that are checked and predicted")
    command.add_argument("--in-memory", action="store_true", help="compare episodes of the smallest number")
    options = command.parse_args()
    options.work = options.work.resolve()
    options.work.mkdir(parents=True, exist_ok=True)
    rows = []
    for count in sorted(options.scans):
        began = time.process_time()
        file = write_scans(options.work, count, tuple(options.shape), options.min_size)
        print(f"{count} scans are there, {time.process_time() - began:.1f} CPU s", flush=True)
        maps = ["data.maps", file, "--maps", options.work / "maps", "--backend", "threading", "--jobs", "2"]
        first = measured([sys.executable, "-m", *map(str, maps)])
        row = {"scans": count, "new maps, CPU s": f"{first['cpu']:.1f}", "maps MiB": f"{first['peak']:.0f}"}
        rows.append(row | training(file, options, options.work / "runs"))
        print(text_table(rows), flush=True)
        if options.in_memory and count == min(options.scans):
            print(text_table(episodes(file, count, options)), flush=True)
    if options.checked:
        checks(file, options)


def checks(file: Path, options: argparse.Namespace) -> None:
    """Print what data.check and predict.py take, for half of the scans and for all."""
    images, rows = options.work / "scale_normalized", []
    run = max((options.work / "runs").glob("adnet_scale_*_fold0/*/checkpoints/*.pt"), key=os.path.getmtime)
    given = ["--support-image", images / "image_1.nii.gz", "--support-label", images / "label_1.nii.gz"]
    for count in (max(options.checked // 2, 1), options.checked):
        some = options.work / f"some_{count}"
        (some / images.name).mkdir(parents=True, exist_ok=True)
        for number in range(1, count + 1):
            for kind in ("image", "label"):
                link = some / images.name / f"{kind}_{number}.nii.gz"
                if not link.exists():
                    os.link(images / link.name, link)
        (some / file.name).write_text(file.read_text("utf-8"))
        queries = [some / images.name / f"image_{number}.nii.gz" for number in range(1, count + 1)]
        out = ["--out", some / "out", "--threads", 1, "--overwrite"]
        for name, call in {
            "data.check": ["-m", "data.check", some / file.name, "--jobs", 1],
            "predict.py": ["predict.py", "--checkpoint", run, *given, "--query", *queries, *out],
        }.items():
            found = measured(["bash", "-c", '"$@" || true', "_", sys.executable, *map(str, call)])
            rows.append(
                {
                    "command": name,
                    "scans": count,
                    "CPU s/scan": f"{found['cpu'] / count:.2f}",
                    "s/scan": f"{found['wall'] / count:.2f}",
                    "MiB": f"{found['peak']:.0f}",
                }
            )
            print(text_table(rows), flush=True)


if __name__ == "__main__":
    main()
