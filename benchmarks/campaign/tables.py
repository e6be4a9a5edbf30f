"""Small files of the product: pictures, checkpoints, data sets, options, scores, records of folders.

The witnesses are Pillow, zipfile, json, csv, and plain arithmetic.
"""

import csv
import hashlib
import io
import json
import math
import zipfile
from ast import literal_eval
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

import config
import models
from benchmarks.campaign.mutations import Random, changed_bytes, changed_json, changed_text, changed_value, pick
from benchmarks.campaign.trials import Kind, NoWitness
from data.phantom_raw import write_series
from dataloaders.raw.preparation import Plan
from dataloaders.raw.regrid import Preparation
from dataloaders.raw.sources import Source, read_source
from predict import preparation_of
from util.checkpoints import KINDS, load_checkpoint, save_checkpoint
from util.dataset import Dataset, choose_fold, from_file
from util.errors import UserError
from util.manifest import Job, open_manifest
from util.report.scores import organ_table, overall_mean, read_scores
from util.runs.experiment import resolved
from util.volume import Geometry

IDS = {0: 0, 63: 1, 126: 2, 252: 4}


class Pictures(Kind):
    """A DICOM series with a label picture for every slice, of which one is damaged; Pillow is the witness."""

    name, share = "png", 1.0

    def write(self, folder: Path, random: Random) -> None:
        """Two slices, two pictures."""
        write_series(folder / "slices", ["a", "b"], random.integers(0, 900, (2, 8, 10)), Geometry(), "1.2.3")
        (folder / "labels").mkdir()
        for name in "ab":
            values = np.repeat(random.choice(list(IDS), (2, 5)), 4, axis=0).repeat(2, axis=1).astype(np.uint8)
            Image.fromarray(values).save(folder / f"labels/{name}.png")

    def damage(self, folder: Path, random: Random) -> None:
        """Change bytes of a picture, or write another kind of picture."""
        file = folder / f"labels/{pick(random, 'ab')}.png"
        picture, how = Image.open(io.BytesIO(file.read_bytes())), random.random()
        if how < 0.7:
            file.write_bytes(changed_bytes(file.read_bytes(), random))
        elif how < 0.9:
            picture.convert(pick(random, ("RGB", "RGBA", "1", "P", "I;16", "LA"))).save(file)
        else:
            picture.save(file, format=pick(random, ("JPEG", "BMP", "TIFF", "GIF")))

    def read(self, folder: Path) -> np.ndarray:
        """As data.chaost2 does."""
        files = (tuple(sorted((folder / name).iterdir())) for name in ("slices", "labels"))
        return read_source(Source(*files), IDS, False)[1].array

    def contradiction(self, folder: Path, result: np.ndarray) -> str:
        """Whether every pixel has its id."""
        for name, plane in zip("ab", result, strict=True):
            try:
                picture = np.asarray(Image.open(folder / f"labels/{name}.png").convert("L"))
            except Exception as error:
                raise NoWitness(f"Pillow: {error}") from error
            if not np.array_equal(np.vectorize(lambda value: IDS.get(value, -1))(picture), plane):
                return f"Pillow: other values in {name}.png"
        return ""


class Checkpoints(Kind):
    """A checkpoint with damaged bytes or other content."""

    name, share = "checkpoint", 1.0

    def __init__(self) -> None:
        torch.manual_seed(0)
        method = models.build("registration", models.defaults("registration"), encoder="none")
        preparation = Preparation(Plan(size=64), (1.0, 1.0, 1.0), True).as_plain()
        self.content = {
            "method": "registration", "arguments": models.defaults("registration"), "encoder": "none",
            "stride": 0, "config": resolved(["method=registration", "dataset=PHANTOM"], config), "intensities": None,
            "training_scans": [5, 6], "step": 3, "model": method.state_dict(), "optimiser": {}, "scaler": {},
            "random_states": [{"cpu": torch.get_rng_state()}], "preparation": preparation,
        }  # fmt: skip

    def write(self, folder: Path, random: Random) -> None:
        """The same for all."""
        self.now = {"format": 1, **self.content}
        save_checkpoint(folder / "step_000003.pt", self.content)

    def damage(self, folder: Path, random: Random) -> None:
        """Change bytes, or values."""
        file = folder / "step_000003.pt"
        if random.random() < 0.5:
            file.write_bytes(changed_bytes(file.read_bytes(), random))
            return
        key = pick(random, sorted(self.now))
        if key == "model":
            weights = dict(self.now["model"])
            name = pick(random, sorted(weights))
            weights[name] = pick(random, (weights[name][:1], weights[name].double(), None, 3, torch.zeros(0)))
            self.now["model"] = weights
        else:
            self.now[key] = changed_value(self.now[key], random)
        torch.save(self.now, file)

    def read(self, folder: Path) -> dict:
        """As predict.py does: content, method, preparation."""
        file = folder / "step_000003.pt"
        content = load_checkpoint(file)
        if content["format"] == 1:
            preparation_of(models.restore(content, file))
        return content

    def contradiction(self, folder: Path, result: dict) -> str:
        """Whether the content is what was written."""
        file = folder / "step_000003.pt"
        if not zipfile.is_zipfile(file) or zipfile.ZipFile(file).testzip():
            return "zipfile: a checksum is wrong"
        if result.keys() != self.now.keys():
            return f"other keys: {result.keys() ^ self.now.keys()}"
        return next((f"{key} is another" for key in KINDS if not _same(result[key], self.now[key])), "")


def _same(one: Any, other: Any) -> bool:
    if isinstance(one, torch.Tensor):
        return isinstance(other, torch.Tensor) and torch.equal(one, other)
    if isinstance(one, dict):
        return isinstance(other, dict) and one.keys() == other.keys() and all(_same(one[k], other[k]) for k in one)
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(_same, one, other))
    return one == other or (one != one and other != other)


class DataSets(Kind):
    """The JSON file of a data set of one's own; json is the witness."""

    name, share = "dataset", 1.5

    def write(self, folder: Path, random: Random) -> None:
        """All keys."""
        content = {
            "images": "mine_normalized", "modality": pick(random, ("MR", "CT")), "supervoxel_size": 5000,
            "organs": {"liver": 1, "spleen": 4}, "others": {"aorta": 8}, "groups": {"upper": ["liver", "spleen"]},
            "size": pick(random, (None, 256)), "supervoxels": "supervoxels_5000", "superpixels": "superpixels_400",
            "folds": [{"support": 2, "query": [1]}, {"support": 1, "query": [2, 3]}],
        }  # fmt: skip
        (folder / "MINE.json").write_text(json.dumps(content))

    def damage(self, folder: Path, random: Random) -> None:
        """Change bytes or values."""
        file = folder / "MINE.json"
        file.write_bytes(changed_json(file.read_text("utf-8"), random))

    def read(self, folder: Path) -> tuple[Dataset, list]:
        """As all commands do, with every fold and group."""
        file = folder / "MINE.json"
        try:
            dataset, folds = from_file(file)
            for index in range(len(folds)):
                choose_fold({str(file): folds}, str(file), index)
            for names in ("all", *dataset.groups):
                dataset.chosen(names)
            dataset.segment_file(folder, 1)
        except UserError as error:
            if str(file) not in str(error) and str(error).startswith("organs="):
                raise UserError(f"{file}: {error}") from error  # of a group: the command line names the data set
            raise
        return dataset, folds

    def contradiction(self, folder: Path, result: tuple[Dataset, list]) -> str:
        """Whether all values are those of the file, and make sense."""
        content = json.loads((folder / "MINE.json").read_text("utf-8"))
        dataset, folds = result
        if folds != content["folds"]:
            return "json: other folds"
        for field in fields(Dataset):
            value = content.get(field.name)
            if field.name in ("images", "supervoxels", "superpixels"):
                place = str(folder.resolve() / value) if value is not None else ""
                if getattr(dataset, field.name) != place:
                    return f"json: other {field.name}"
            elif field.name in content and getattr(dataset, field.name) != value:
                return f"json: other {field.name}"
        ids = [*dataset.organs.values(), *dataset.others.values()]
        if len(set(ids)) < len(ids) or any(not 0 < number < 2**15 for number in ids):
            return f"silent: label ids {ids}"
        if dataset.supervoxel_size < 1 or (dataset.size is not None and dataset.size < 1):
            return f"silent: supervoxel_size {dataset.supervoxel_size}, size {dataset.size}"
        return ""


class Options(Kind):
    """KEY=VALUE on the command line; Python's own literals are the witness."""

    name, share, names_file = "options", 0.7, False

    def __init__(self) -> None:
        values = resolved(["method=adnet", "dataset=PHANTOM"], config)
        self.known: dict[str, Any] = {}
        for key, value in values.items():
            inner = {f"{key}.{name}": own for name, own in value.items()} if isinstance(value, dict) else {}
            self.known |= {key: value, **inner} if key[0] != "_" else {}

    def write(self, folder: Path, random: Random) -> None:
        """A value as it is."""
        key = pick(random, sorted(key for key in self.known if key != "resume"))
        (folder / "updates.txt").write_text(f"{key}={self.known[key]}", "utf-8")

    def damage(self, folder: Path, random: Random) -> None:
        """Another key or value."""
        file = folder / "updates.txt"
        key, _, _ = file.read_text("utf-8").partition("=")
        if random.random() < 0.2:
            text = changed_text(file.read_text("utf-8"), random)
        else:
            value = changed_value(self.known[key], random)
            text = f"{key}={value if isinstance(value, str) else repr(value)}"
        file.write_text(text, "utf-8")

    def read(self, folder: Path) -> dict:
        """As training.py does."""
        text = (folder / "updates.txt").read_text("utf-8")
        return resolved(["dataset=PHANTOM", text] if not text.startswith("dataset=") else [text], config)

    def contradiction(self, folder: Path, result: dict) -> str:
        """Whether the value is the one that was typed, of the kind that the default has."""
        key, _, text = (folder / "updates.txt").read_text("utf-8").strip().partition("=")
        if not key:
            return ""
        try:
            value = literal_eval(text)
        except (ValueError, SyntaxError, MemoryError, RecursionError):
            value = text
        found: Any = result
        for part in key.split("."):
            if not isinstance(found, dict) or part not in found:
                return f"{key} is not in the configuration"
            found = found[part]
        if isinstance(found, dict) and isinstance(value, dict):  # what was not typed keeps its default
            found = {name: own for name, own in found.items() if name in value}
        if not _same(found, list(value) if isinstance(value, tuple) else value) and str(found).strip() != text.strip():
            return f"{key} is {found!r}"
        default = self.known.get(key)
        if isinstance(default, float) and not math.isfinite(found):
            return f"silent: {key} is {found!r}"
        if isinstance(default, list) and (len(found) != len(default) or not all(map(_is_number, found))) and default:
            return f"silent: {key} is {found!r}"
        return ""


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


class Scores(Kind):
    """A scores.csv; csv and plain arithmetic are the witnesses."""

    name, share = "scores", 1.0

    def write(self, folder: Path, random: Random) -> None:
        """Two organs, three scans; one score is no number."""
        rows = [f"{organ},{scan},0,2021,4,{random.random():.6f},{random.random():.6f}" for organ in ("liver", "spleen")
                for scan in (1, 2, 3)]  # fmt: skip
        rows[2] = "liver,3,0,2021,4,,"
        lines = ["organ,scan,fold,seed,support,dice,dice_volume", *rows]
        (folder / "scores.csv").write_bytes("".join(line + "\n" for line in lines).encode())

    def damage(self, folder: Path, random: Random) -> None:
        """Change bytes or a field."""
        file = folder / "scores.csv"
        if random.random() < 0.6:
            file.write_bytes(changed_bytes(file.read_bytes(), random))
            return
        rows = list(csv.reader(io.StringIO(file.read_text("utf-8"))))
        row = pick(random, rows)
        at = int(random.integers(len(row)))
        row[at : at + 1] = pick(random, ([], [row[at], row[at]], [changed_text(row[at], random)]))
        with file.open("w", encoding="utf-8", newline="") as handle:
            csv.writer(handle, lineterminator="\n").writerows(rows)

    def read(self, folder: Path) -> tuple[list[dict[str, str]], float, str]:
        """As the report does: rows, their mean, their table."""
        rows = read_scores(folder / "scores.csv")
        return rows, overall_mean(rows), organ_table({"this": rows})

    def contradiction(self, folder: Path, result: tuple[list[dict[str, str]], float, str]) -> str:
        """Whether the rows are those of the file, whole, and the mean is theirs."""
        rows, mean, _ = result
        text = (folder / "scores.csv").read_bytes().decode("utf-8")
        if not text.endswith(("\n", "\r")):
            return "silent: the last line has no end"
        known = list(csv.DictReader(io.StringIO(text, newline="")))
        if rows != known:
            return "csv: other rows"
        if any(None in row or None in row.values() for row in rows):
            return "silent: a row is not whole"
        organs: dict[str, list[float]] = {}
        for row in rows:
            organs.setdefault(row["organ"], []).extend([float(row["dice"])] if row["dice"] else [])
        means = [np.mean(found) for found in organs.values() if found and not np.isnan(found).all()]
        expected = float(np.mean(means)) if means else math.nan
        if not np.isclose(mean, expected, equal_nan=True):
            return f"arithmetic: the mean is {expected}, read as {mean}"
        if any(not 0 <= value <= 1 for found in organs.values() for value in found if not math.isnan(value)):
            return "silent: a Dice outside of 0 to 1"
        return ""


class Records(Kind):
    """The record of a folder that predict.py filled; hashlib is the witness."""

    name, share = "record", 1.0
    FACTS = {"settings": {"pairing": "similar", "parts": 3, "organs": {"1": "liver"}}}

    def write(self, folder: Path, random: Random) -> None:
        """Two scans, done."""
        (folder / "raw").mkdir()
        scans = {}
        for name in ("scan_1", "scan_2"):
            for file in (folder / f"raw/{name}.nii.gz", folder / f"out/{name}.nii.gz"):
                file.parent.mkdir(exist_ok=True)
                file.write_bytes(random.bytes(20))
            job = self.jobs(folder)[name]
            scans[name] = job.record(job.digests(), millilitres={"liver": 12.5})
        (folder / "out/predictions.json").write_text(json.dumps({**self.FACTS, "scans": scans}, indent=1) + "\n")

    def jobs(self, folder: Path) -> dict[str, Job]:
        """What is to be made."""
        out, raw = folder / "out", folder / "raw"
        return {
            name: Job(raw, (raw / f"{name}.nii.gz",), out, (out / f"{name}.nii.gz",)) for name in ("scan_1", "scan_2")
        }

    def damage(self, folder: Path, random: Random) -> None:
        """Change the record, or a file it speaks of."""
        file = folder / "out/predictions.json"
        if random.random() < 0.8:
            file.write_bytes(changed_json(file.read_text("utf-8"), random))
        else:
            other = folder / pick(random, ("raw", "out")) / f"{pick(random, ('scan_1', 'scan_2'))}.nii.gz"
            other.write_bytes(changed_bytes(other.read_bytes(), random))

    def read(self, folder: Path) -> set[str]:
        """The scans that predict.py would not make again."""
        jobs, record = self.jobs(folder), folder / "out/predictions.json"
        existing = [file for job in jobs.values() for file in job.outputs]
        with open_manifest(record, self.FACTS, jobs, existing=existing, overwrite=False) as manifest:
            return {name for name, job in jobs.items() if job.is_done(manifest.scans.get(name), job.digests())}

    def contradiction(self, folder: Path, result: set[str]) -> str:
        """Whether each of them has sources and results of the digests on record, and nothing on record is lost."""
        content = json.loads((folder / "out/predictions.json").read_text("utf-8"))
        for name in result:
            record = content["scans"][name]
            for kind, below in (("sources", "raw"), ("outputs", "out")):
                own = hashlib.sha256((folder / below / f"{name}.nii.gz").read_bytes()).hexdigest()
                if record[kind] != {f"{name}.nii.gz": own}:
                    return f"hashlib: {name} counts as done, its {kind} are others"
        return ""
