"""What a user edits: data sets, folds, and every option of the command line with its default.

`python training.py print_config` shows what would run; `python training.py with method=adnet dataset=CHAOST2 fold=1
train.steps=1000` changes values. Below the line at the end of the options stands the little that Sacred needs.
"""

import json
import os
import signal
import sys
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path

warnings.filterwarnings("ignore", message="pkg_resources is deprecated")  # Sacred 0.8 needs it; setuptools is pinned

import torch
from sacred import SETTINGS, Experiment
from sacred.arg_parser import get_config_updates
from sacred.observers import FileStorageObserver
from sacred.utils import ConfigAddedError, SacredError, SacredInterrupt

import models
from models.parts import encoders
from util import settings
from util.dataset import Dataset, from_file
from util.errors import UserError
from util.processes import held_signals

# Folders are below `data_root`. Organs are the tested ones: name -> id in the label files.
DATASETS = {
    "CHAOST2": Dataset(
        images="CHAOST2/chaos_MR_T2_normalized",
        supervoxels="CHAOST2/supervoxels_5000",
        supervoxel_size=5000,
        superpixels="CHAOST2/superpixels_400",
        patient_threshold=50.0001,
        organs={"liver": 1, "right kidney": 2, "left kidney": 3, "spleen": 4},
        groups={"upper": ("liver", "spleen"), "lower": ("right kidney", "left kidney")},
    ),
    "SABS": Dataset(
        images="SABS/sabs_CT_normalized",
        supervoxels="SABS/supervoxels_5000",
        supervoxel_size=5000,
        superpixels="SABS/superpixels_400",
        patient_threshold=1e-4,
        organs={"spleen": 1, "right kidney": 2, "left kidney": 3, "liver": 6},
        others={
            "gallbladder": 4,
            "oesophagus": 5,
            "stomach": 7,
            "aorta": 8,
            "inferior vena cava": 9,
            "portal and splenic vein": 10,
            "pancreas": 11,
            "right adrenal gland": 12,
            "left adrenal gland": 13,
        },
        groups={"upper": ("liver", "spleen"), "lower": ("right kidney", "left kidney")},
        size=256,
    ),
    "CMR": Dataset(
        images="CMR/cmr_MR_normalized",
        supervoxels="CMR/supervoxels_1000",
        supervoxel_size=1000,
        superpixels="CMR/superpixels_400",
        patient_threshold=50.0001,
        organs={"LV myocardium": 200, "LV blood pool": 500, "right ventricle": 600},
    ),
    "PHANTOM": Dataset(
        images="PHANTOM/phantom_MR_normalized",
        supervoxels="PHANTOM/supervoxels_5000",
        supervoxel_size=5000,
        superpixels="PHANTOM/superpixels_400",
        patient_threshold=50.0001,
        organs={"liver": 1, "right kidney": 2, "left kidney": 3, "spleen": 4},
        groups={"upper": ("liver", "spleen"), "lower": ("right kidney", "left kidney")},
    ),
}

# A fold is one line: the annotated scan, and the scans to segment. All other scans train. Every scan is a query once.
FOLDS = {
    "CHAOST2": [
        dict(support=8, query=[1, 2, 3, 5]),
        dict(support=19, query=[8, 10, 13, 15]),
        dict(support=31, query=[19, 20, 21, 22]),
        dict(support=36, query=[31, 32, 33, 34]),
        dict(support=1, query=[36, 37, 38, 39]),
    ],
    "SABS": [
        dict(support=6, query=[0, 1, 2, 3, 4, 5]),
        dict(support=12, query=[6, 7, 8, 9, 10, 11]),
        dict(support=18, query=[12, 13, 14, 15, 16, 17]),
        dict(support=24, query=[18, 19, 20, 21, 22, 23]),
        dict(support=0, query=[24, 25, 26, 27, 28, 29]),
    ],
    "CMR": [
        dict(support=8, query=[1, 2, 3, 4, 5, 6, 7]),
        dict(support=15, query=[8, 9, 10, 11, 12, 13, 14]),
        dict(support=22, query=[15, 16, 17, 18, 19, 20, 21]),
        dict(support=29, query=[22, 23, 24, 25, 26, 27, 28]),
        dict(support=1, query=[29, 30, 31, 32, 33, 34, 35]),
    ],
    "PHANTOM": [
        dict(support=4, query=[1, 2, 3]),
        dict(support=7, query=[4, 5, 6]),
        dict(support=10, query=[7, 8, 9]),
        dict(support=1, query=[10, 11, 12]),
    ],
}

CHOICES = {
    "dataset": DATASETS,
    "setting": (1, 2),
    "exclude": ("any", "all"),
    "protocol": ("strict", "legacy"),
    "profile": ("paper", "code"),
    "stage": (1, 2),
    "scans.normalise": ("scan", "training", "fold"),
    "scans.segments": ("supervoxels", "superpixels"),
    "episode.sampler": ("neighbours", "slice", "realistic", "windows"),
    "episode.queries": ("one", "all"),
    "episode.carry": ("chained", "direct", "none"),
    "episode.size_of": ("first", "larger"),
    "episode.augment": ("one", "both"),
    "episode.warp": ("affine", "column_slice"),
    "test.match": ("parts", "whole", "volume", "position", "similar", "propagate"),
    "test.shots_of": ("slices", "scans"),
    "test.supports": ("fold", "all"),
    "test.part_rule": ("chunks", "extent", "unclamped"),
    "test.fold_order": ("sorted", "circular"),
    "test.recorder": ("plain", "alpnet"),
    "train.optimiser": ("sgd", "adam"),
    "train.precision": ("float32", "bfloat16", "float16"),
}
MINIMA = {
    "train.steps": 1,
    "train.batch_size": 1,
    "train.decay_every": 0,
    "train.save_every": 1,
    "train.log_every": 1,
    "episode.min_size": 1,
    "episode.reach": 1,
    "episode.realistic": 0,
    "test.parts": 1,
    "test.shots": 1,
    "test.batch_size": 1,
    "test.memory_gb": 0,
    "seed": 0,
    "threads": 0,
    "workers": 0,
}


def options():
    """Every option; the method's own keys and schedule come from its file in models/."""
    method = "adnet"  # a file in models/
    dataset = "CHAOST2"  # a row of DATASETS, or a file (data/MINE/MINE.json)
    fold = 0  # a line of FOLDS[dataset]
    setting = 1  # 2: training slices that show test organs are removed
    organs = "all"  # what is tested, and removed in setting 2: a group (upper, lower) or "liver,spleen"
    exclude = "any"  # setting 2 removes slices with any test organ; "all": only slices with every one, as published
    protocol = "strict"  # "legacy": the published book-keeping
    data_root = "data"  # folder that holds CHAOST2/, SABS/, CMR/, PHANTOM/
    stage = 1  # 2: the second training of a method that has one (visa)
    profile = "paper"  # "code": what a method's published code does, where the two differ and the method offers both
    encoder = models.method_class(method).default_encoder  # resnet101, resnet50, resnet18, efficientnet_lite0, none;
    # for volumes: resnext101_3d, the small resnext14_3d, or any of the others slice by slice
    weights = encoders.entry(encoder).weights  # none, imagenet, coco, or a file
    stride = encoders.entry(encoder).stride  # output stride of its deepest map; 0 = as the method's paper has it
    _variants = (dataset, f"stage {stage}", profile)
    model = {**models.defaults(method), **models.recipe(method, "model", *_variants)}  # the method's own keys
    train = {
        "steps": 1000,
        "batch_size": 1,  # episodes a step (and a process)
        "learning_rate": 1e-3,
        "optimiser": "sgd",  # or adam
        "momentum": 0.9,  # adam: of the gradients' mean
        "weight_decay": 5e-4,
        "decay": 0.95,  # the learning rate is multiplied by this ...
        "decay_every": 1000,  # ... every so many steps; 0 = ten times in all
        "precision": "float32",  # bfloat16, float16: mixed precision on a GPU
        "checkpointing": False,  # blocks of the encoder run twice to save memory (volumes on a small GPU)
        "frozen_norm": False,  # batch norms of the encoder keep their pretrained statistics (the papers train them)
        "save_every": 1000,  # steps between checkpoints
        "log_every": 10,  # steps between rows of metrics.csv
        "start": "",  # weights to begin with: a run of the same fold, a checkpoint, or the "newest" first stage
        **encoders.entry(encoder).training,
        **models.recipe(method, "train", *_variants),
    }
    scans = {
        "normalise": "scan",  # z-score by the scan's own statistics, or by those of all training scans (ALPNet on CT);
        # "fold": by the training scans in training, by the tested ones in testing (VISA-FSS's code on CT)
        "segments": "supervoxels",  # pseudo-labels: 3D supervoxels, or 2D superpixels of every slice
        **models.recipe(method, "scans", *_variants),
    }
    episode = {
        "sampler": "neighbours",  # support and query: neighbouring slices; one "slice" seen twice (ALPNet); "realistic"
        # (visa); "windows" of a volume
        "min_size": 200,  # smallest segment area in pixels; a window holds more voxels of it
        "window": [10, 215, 215],  # windows: slices, rows, columns
        "size_of": "first",  # neighbours: which slice min_size is asked of: first, or the larger of the two
        "runs": False,  # neighbours: pair slices only within runs of consecutive ones
        "augment": "one",  # gamma and warp each change one of the two images, or both by themselves (ALPNet)
        "gamma": [0.5, 1.5],
        "rotation": 5.0,  # degrees, either way
        "shift": 5.0,  # pixels, either way
        "shift_slices": 1.0,  # windows
        "shear": 5.0,  # degrees, either way
        "zoom": [0.9, 1.2],
        "elastic": 10.0,
        "warp": "affine",  # windows: in 3D; "column_slice": as published, tilted through the slices
        "realistic": 0.5,  # realistic: share of tasks between neighbouring slices; 0: all on one slice, 1: none
        "reach": 3,  # realistic: the farthest neighbour, in slices
        "queries": "one",  # realistic: one neighbour within reach, or "all" of them at once
        "carry": "chained",  # realistic: superpixels go along all flows between, or "direct", or "none": unlabelled
        "registration": "newest",  # realistic: whose flows: a checkpoint, or the newest registration run of this fold
        "lost_labels": False,  # realistic: published defect: synthetic queries lose their label (all but superpixel 1)
        **models.recipe(method, "episode", *_variants),
    }
    test = {
        "checkpoint": "newest",  # a file; "newest" finished run of this method, data set, fold; "untrained"
        "ensemble": [],  # further checkpoints (of any method) whose probabilities are averaged with it
        "match": "parts",  # organ extent in parts, one support slice each (EP1); whole: one slice for all (EP2);
        "parts": 3,  # propagate, volume, position, similar: see Matching in dataloaders/protocols.py
        "anchored": True,  # propagate: walks are held to what the annotated slices say; False, legacy: as published
        "shots": 1,  # annotated slices a part, or annotated scans ...
        "shots_of": "slices",  # ... which of the two: slices, scans
        "supports": "fold",  # the fold's support scan; "all": every tested scan supports the others in turn
        "pool": False,  # supports=all: average the probabilities over the supports instead of scoring each
        "support_index": -1,  # protocol=legacy: position of the support among the test scans of the fold
        "fold_order": "sorted",  # protocol=legacy: these in ascending order, or "circular" with the support last
        "part_rule": "chunks",  # protocol=legacy: parts of equal numbers of slices, or of equal "extent" (ALPNet),
        # or these "unclamped" (VISA-FSS)
        "recorder": "plain",  # protocol=legacy: "alpnet" shows precision and recall, and one 0/0 makes a mean NaN
        "batch_size": 8,  # slices at once
        "patch": [0, 0, 0],  # volumes: slices, rows, columns encoded at once; 0 = all
        "memory_gb": 0.0,  # volumes: patches are made so small that the encoder needs no more than this; 0 = no bound
        "save": False,  # one picture an organ
        **models.recipe(method, "test", *_variants),
    }
    seed = 2021  # with an episode's number it decides everything random
    device = "auto"  # cpu, cuda, cuda:1
    threads = 0  # CPU threads of the network; 0 = as many as cores
    workers = 1  # processes that cut and augment episodes; 0 = in the training process
    runs = "runs"  # results go to runs/<method>_<dataset>_fold<k>/<id>/
    resume = ""  # a run's folder: go on where it stopped, with its configuration


# ------------------------------------------------------------------------------------------------ Sacred, at the edge

SETTINGS.CAPTURE_MODE = "no"  # capturing file descriptors fights with progress bars and worker processes
SETTINGS.CONFIG.READ_ONLY_CONFIG = False


class _Error(SacredError):
    """Printed as one line: Sacred shows the class's name before the message, so the class is named `error`."""

    def __init__(self, message: str) -> None:
        super().__init__(message, print_traceback=False, filter_traceback="never")


_Error.__name__, _Error.__qualname__, _Error.__module__ = "error", "error", "builtins"


class Interrupted(SacredInterrupt):
    """Ctrl-C or SIGTERM, after a checkpoint was written: the run's status says INTERRUPTED."""

    STATUS = "INTERRUPTED"


class CommandLine(Experiment):
    """A Sacred experiment whose mistakes are errors in one sentence and whose interruptions leave quietly."""

    def __init__(self, name: str) -> None:
        super().__init__(name, save_git_info=False)
        self.config(options)
        self.config_hook(lambda config, command_name, logger: self._observe(config, command_name))

    def _create_run(self, *args, **kwargs):
        run = super()._create_run(*args, **kwargs)
        settings.check_types(run.config_modifications.typechanged)
        settings.check_values(run.config, CHOICES, MINIMA)
        DATASETS[run.config["dataset"]].chosen(run.config["organs"])
        check_variants(run.config)
        run._final_call = run._safe_call  # an observer that fails at the end (disk full) is a line, not a traceback
        run._start_heartbeat = held_signals()(run._start_heartbeat)  # a thread half started cannot be stopped
        return run

    def run(self, command_name=None, config_updates=None, *args, **kwargs):
        """Run a command; everything a user can put right is raised as one line."""
        # without this, SIGTERM (Slurm's time limit) kills at once and the run stays RUNNING for ever
        signal.signal(signal.SIGTERM, signal.default_int_handler)
        try:
            config_updates = with_dataset_file(settings.with_resumed(config_updates or {}))
            return super().run(command_name, config_updates, *args, **kwargs)
        except ConfigAddedError as error:
            raise _Error(settings.unknown_key(*error.__conflicting_configs__, error.__config__)) from error
        except UserError as error:
            raise _Error(str(error)) from error
        except (Interrupted, KeyboardInterrupt) as error:
            print(f"interrupted: {str(error) or 'nothing more is written'}", file=sys.stderr)
            sys.exit(130)

    def _observe(self, config: dict, command: str) -> None:
        """One numbered folder a run; under torchrun only the first process writes."""
        if command == self.default_command and int(os.environ.get("RANK", 0)) == 0:
            folder = run_folder(config)
            settings.require_writable(folder)
            self.observers[:] = [FileStorageObserver(folder, copy_sources=False)]


def with_dataset_file(updates: dict) -> dict:
    """A data set that is named by its file becomes a row of DATASETS and FOLDS under the file's full path.

    Raises:
        UserError: the file cannot be read, or does not describe a data set.
    """
    name = updates.get("dataset")
    if not isinstance(name, str) or not name.endswith(".json"):
        return updates
    path = str(Path(name).resolve())
    DATASETS[path], FOLDS[path] = from_file(path)
    return {**updates, "dataset": path}


def resolved(updates: Sequence[str]) -> dict:
    """The whole configuration that `with KEY=VALUE ...` would run with, as plain values.

    Raises:
        UserError: as the programs themselves would.
    """
    values, words = get_config_updates(list(updates))
    if words:
        raise UserError(f"{words[0]}: write key=value, such as train.steps=2000")
    try:
        return plain(CommandLine("resolved")._create_run("print_config", with_dataset_file(values)).config)
    except ConfigAddedError as error:
        raise UserError(settings.unknown_key(*error.__conflicting_configs__, error.__config__)) from error


def last_stage(method: str) -> int:
    """The training that a method ends with: the highest `stage=` it has."""
    variants = models.method_class(method).recipe.get("variants", {})
    return max(stage for stage in CHOICES["stage"] if stage == 1 or f"stage {stage}" in variants)


def run_folder(config: Mapping) -> Path:
    """Folder of the runs of a method on a fold; a data set's file gives its stem."""
    return Path(config["runs"]) / f"{config['method']}_{Path(config['dataset']).stem}_fold{config['fold']}"


def check_variants(config: Mapping) -> None:
    """Refuse a stage or a profile that the method does not have."""
    if config["stage"] != 1:
        models.require_variant(config["method"], f"stage {config['stage']}", f"stage={config['stage']}")
    if config["profile"] != "paper":
        models.require_variant(config["method"], config["profile"], f"profile={config['profile']}")


def plain(config: Mapping) -> dict:
    """The configuration as plain dictionaries, lists and values."""
    return json.loads(json.dumps(config))


def prepare_device(config: dict) -> torch.device:
    """The device of the configuration; also sets the number of CPU threads.

    Raises:
        UserError: the device is unknown or not there.
    """
    if config["threads"]:
        torch.set_num_threads(config["threads"])
    name = config["device"]
    if name == "auto":
        name = f"cuda:{os.environ.get('LOCAL_RANK', 0)}" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise UserError(f"device={name}: not available here ({str(error).splitlines()[0]}); try device=cpu") from error
    return device
