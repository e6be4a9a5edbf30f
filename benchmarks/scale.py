"""What grows with the number of scans: `python benchmarks/scale.py [--scans 10 100 1000] [--shape 100 256 256]`.

Scans are cheap: one phantom is drawn, and every scan has other noise on its first slice. So all images and all maps are
files of their own on the disk; only labels and supervoxels are one file with many names (hard links), for the maps hold
a copy for every scan. Each number of scans has its own folder. With --prepared N, data.maps prepares N scans at most,
and the maps of further scans are copies of these under their own names, which costs a tenth.

Measured for each number: the first preparation (data.maps), then a training (ADNet, small encoder): seconds and
processor seconds until its first step, the largest memory of all its processes together (proportional set size: shared
pages count once), steps per second and processor seconds per step. Then steps that take turns, from the fewest scans
held in memory, from their maps, and from the maps of all. At last seconds per scan and memory of data.check and
predict.py on --checked scans.

Processor seconds are those of all processes and hardly depend on what else the machine does. The files stay in --work
for another call; remove the folder at the end.
"""

import argparse
import gzip
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import psutil

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import config
import models
import training as trainings
from data.phantom import phantom_scan
from dataloaders import maps
from dataloaders.scans import read_scan
from dataloaders.training_set import make_episodes, make_sampler
from supervoxels.folder import Parameters
from util.commands import parser
from util.dataset import from_file
from util.episode import Episode
from util.files import write_text
from util.runs.experiment import resolved
from util.runs.processes import Ranks, prepare_device
from util.tables import text_table
from util.volume import Volume, write_volume

ROOT, MIB = Path(__file__).resolve().parents[1], 1 << 20
CHANGED = 1  # slices of every scan with noise of their own


def write_scans(work: Path, name: str, count: int, shape: tuple[int, int, int], min_size: int) -> Path:
    """Scans 1 to `count` with labels and supervoxels, those that are there left; returns the data set's file."""
    home, base, depth = work / name, work / "base", shape[0]
    first = {kind: base / f"{kind}.nii.gz" for kind in ("label", "segments")}
    if not first["segments"].is_file():
        scan = phantom_scan(1, 1, shape[1], depth)
        write_volume(first["label"], scan.label, scan.geometry)
        write_volume(base / "image.nii", scan.image, scan.geometry)
        labels = Parameters(min_size).labels(Volume(scan.image, scan.geometry), 1)
        write_volume(first["segments"], labels, scan.geometry)
    content, size = (base / "image.nii").read_bytes(), int(np.prod(shape))
    begin, middle = len(content) - 2 * size, len(content) - 2 * size * (depth - CHANGED) // depth
    original, same = np.frombuffer(content[begin:middle], np.int16), gzip.compress(content[middle:], 1)
    for number in range(1, count + 1):
        image = base / f"image_{number}.nii.gz"
        if not image.is_file():
            own = original + (original > 0) * np.random.default_rng(number).integers(0, 20, original.size, np.int16)
            image.write_bytes(gzip.compress(content[:begin] + own.tobytes(), 1) + same)  # two members, one file
        for place, target in (
            (f"images/image_{number}", image),
            (f"images/label_{number}", first["label"]),
            (f"supervoxels_{min_size}/superpix-MIDDLE_{number}", first["segments"]),
        ):
            link = home / f"{place}.nii.gz"
            link.parent.mkdir(parents=True, exist_ok=True)
            if not link.exists():
                os.link(target, link)
    organs = {"liver": 1, "right kidney": 2, "left kidney": 3, "spleen": 4}
    about = {"images": "images", "modality": "MR", "supervoxel_size": min_size, "organs": organs}
    file = home / f"{name}.json"
    file.write_text(json.dumps({**about, "folds": [{"support": 1, "query": [2]}]}))
    return file


def copy_maps(file: Path, prepared: int, count: int, work: Path) -> None:
    """Give scans above `prepared` the maps of those up to it, as files and entries of their own."""
    dataset, _ = from_file(file)
    folder = maps.maps_folder(dataset, work, work / "maps")
    known = maps.Maps(folder, dataset, work, range(1, prepared + 1), "supervoxels")
    record = json.loads((folder / maps.RECORD).read_text("utf-8"))
    for number in range(1, count + 1):
        for kind in known.kinds:
            like = record["entries"][known._key(1 + (number - 1) % prepared, kind)]
            seen = maps._seen(maps.source_file(dataset, work, number, kind))
            entry = {**like, "source": {**like["source"], "stamp": seen}}
            if number > prepared:
                entry["arrays"] = {}
                for name, array in like["arrays"].items():
                    own = folder / f"{name.rsplit('_', 2)[0]}_{number}_{name.rsplit('_', 1)[1]}"
                    shutil.copyfile(folder / name, own)
                    entry["arrays"][own.name] = {**array, "stamp": maps._seen(own)}
            record["entries"][known._key(number, kind)] = entry
    write_text(folder / maps.RECORD, json.dumps(record))


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
        time.sleep(0.5)
    if process.returncode:
        raise SystemExit(process.stderr.read())
    wall = time.perf_counter() - began
    return {"wall": wall, "cpu": sum(spent.values()), "peak": peak / MIB, "events": events}


def keys(file: Path, options: argparse.Namespace) -> list[str]:
    """The words of a training after `with`."""
    return [
        "method=adnet", "encoder=efficientnet_lite0", f"dataset={file}", f"runs={options.work / 'runs'}",
        f"maps={options.work / 'maps'}", "threads=1", f"workers={options.workers}", f"train.steps={options.steps}",
        "train.log_every=1", "episode.min_size=50",
    ]  # fmt: skip


def training(file: Path, options: argparse.Namespace) -> dict:
    """A row: what a training of some steps takes."""
    folder = options.work / "runs" / f"adnet_{file.stem}_fold0"
    before = len(list(folder.glob("[0-9]*")))
    command = [sys.executable, "training.py", "with", *keys(file, options)]

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


def in_turns(fewest: Path, most: Path, options: argparse.Namespace) -> list[dict]:
    """Rows: steps from scans in memory, from their maps, and from the maps of many, which take turns in one process.

    Whatever else the machine does meets all alike.
    """
    trainers, spent = {}, {}
    for name, file in {"in memory": fewest, "maps": fewest, "maps of all": most}.items():
        run = resolved(keys(file, options), config)
        device, data = prepare_device(run), trainings.read_data(run)
        episodes = data.episodes
        if name == "in memory":
            dataset, habits = config.DATASETS[run["dataset"]], models.method_class(run["method"]).published
            scans = [
                read_scan(dataset, Path(run["data_root"]), number, labels=False, segments="supervoxels")
                for number in data.numbers
            ]
            episodes = make_episodes(run, scans, make_sampler(run["episode"], scans, habits, None))
        method = trainings.build_method(run, data)
        trainers[name] = trainings.Trainer(method, episodes, run, {}, None, device, Ranks())
        spent[name] = {"scans": len(data.numbers), "cut": [], "whole": [], "wall": []}
    for number in range(options.steps):
        for name in list(trainers)[number % 3 :] + list(trainers)[: number % 3]:
            trainer, wall, began = trainers[name], time.perf_counter(), time.process_time()
            episode = Episode.stack([trainer.episodes[number]])
            spent[name]["cut"].append(time.process_time() - began)
            spent[name]["wall"].append(time.perf_counter() - wall)
            trainer.train_step(episode)
            spent[name]["whole"].append(time.process_time() - began)
    usual = {name: float(np.median(of["whole"][2:])) for name, of in spent.items()}
    return [
        {
            "scans": of["scans"],
            "held": name,
            "CPU s/step": f"{usual[name]:.3f}",
            "of it in memory": f"{usual[name] / usual['in memory']:.3f}",
            "CPU ms/episode": f"{1000 * np.median(of['cut'][2:]):.1f}",
            "ms/episode": f"{1000 * np.mean(of['wall'][2:]):.1f}",
        }
        for name, of in spent.items()
    ]


def main() -> None:
    """Print the table."""
    command = parser(__doc__)
    command.add_argument("--work", type=Path, default=Path("scale"), help="folder for scans, maps and runs")
    command.add_argument("--scans", type=int, nargs="+", default=[10, 100, 1000])
    command.add_argument("--shape", type=int, nargs=3, default=[100, 256, 256], help="slices, rows, columns")
    command.add_argument("--min-size", type=int, default=5000, help="smallest supervoxel")
    command.add_argument("--steps", type=int, default=60)
    command.add_argument("--workers", type=int, default=2, help="processes that make episodes")
    command.add_argument("--prepared", type=int, metavar="N", help="scans that data.maps prepares, at most (all)")
    command.add_argument("--checked", type=int, default=10, help="scans that are checked and predicted")
    options = command.parse_args()
    options.work = options.work.resolve()
    options.work.mkdir(parents=True, exist_ok=True)
    rows, files = [], []
    for count in sorted(options.scans):
        began = time.process_time()
        prepared = min(count, options.prepared or count)
        about = (options.work, f"scale_{count}")
        file = write_scans(*about, prepared, tuple(options.shape), options.min_size)
        words = ["data.maps", file, "--maps", options.work / "maps", "--backend", "threading", "--jobs", "2"]
        print(f"{prepared} scans are there, {time.process_time() - began:.1f} CPU s", flush=True)
        first = measured([sys.executable, "-m", *map(str, words)])
        if prepared < count:
            write_scans(*about, count, tuple(options.shape), options.min_size)
            copy_maps(file, prepared, count, options.work)
            print(f"{count} scans are there, {time.process_time() - began:.1f} CPU s", flush=True)
        files.append(file)
        row = {"scans": count, "mapped": prepared, "CPU s": f"{first['cpu']:.1f}", "their MiB": f"{first['peak']:.0f}"}
        rows.append(row | training(file, options))
        print(text_table(rows), flush=True)
    print(text_table(in_turns(files[0], files[-1], options)), flush=True)
    if options.checked:
        checks(file, options)


def checks(file: Path, options: argparse.Namespace) -> None:
    """Print what data.check and predict.py take, for half of the scans and for all."""
    images, rows = file.parent / "images", []
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
            per_scan = {"CPU s/scan": f"{found['cpu'] / count:.2f}", "s/scan": f"{found['wall'] / count:.2f}"}
            rows.append({"command": name, "scans": count, **per_scan, "MiB": f"{found['peak']:.0f}"})
            print(text_table(rows), flush=True)


if __name__ == "__main__":
    main()
