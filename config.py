"""What a user edits: data sets, folds, and every option of the command line with its default.

`python training.py print_config` shows what would run; `python training.py with method=adnet dataset=CHAOST2 fold=1
train.steps=1000` changes values.
"""

from collections.abc import Collection, Mapping

import models
from models.parts import encoders
from util.dataset import Dataset
from util.errors import UserError
from util.runs import checks, curves

ABDOMEN = {"upper": ("liver", "spleen"), "lower": ("right kidney", "left kidney")}
# Folders are below `data_root`. Organs are the tested ones: name -> id in the label files.
DATASETS = {
    "CHAOST2": Dataset(
        images="CHAOST2/chaos_MR_T2_normalized",
        supervoxel_size=5000,
        modality="MR",
        organs={"liver": 1, "right kidney": 2, "left kidney": 3, "spleen": 4},
        groups=ABDOMEN,
    ),
    "SABS": Dataset(
        images="SABS/sabs_CT_normalized",
        supervoxel_size=5000,
        modality="CT",
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
        groups=ABDOMEN,
        size=256,
    ),
    "CMR": Dataset(
        images="CMR/cmr_MR_normalized",
        supervoxel_size=1000,
        modality="MR",
        organs={"LV myocardium": 200, "LV blood pool": 500, "right ventricle": 600},
    ),
    "PHANTOM": Dataset(
        images="PHANTOM/phantom_MR_normalized",
        supervoxel_size=5000,
        modality="MR",
        organs={"liver": 1, "right kidney": 2, "left kidney": 3, "spleen": 4},
        groups=ABDOMEN,
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
    "protocol": ("strict", "published"),
    "stage": (1, 2),
    "scans.normalise": ("scan", "training", "published"),
    "scans.segments": ("supervoxels", "superpixels"),
    "episode.sampler": ("neighbours", "slice", "neighbouring", "crops"),
    "episode.queries": ("one", "all"),
    "episode.carry": ("chained", "direct", "none"),
    "episode.augment": ("one", "both"),
    "episode.warp": ("affine", "published"),
    "test.pairing": ("parts", "whole", "volume", "position", "similar", "propagate"),
    "test.shots_of": ("slices", "scans"),
    "test.supports": ("fold", "all"),
    "test.backend": ("loky", "dask"),
    "train.optimiser": ("sgd", "adam"),
    **dict.fromkeys(("train.precision", "test.precision"), ("float32", "tf32", "bfloat16", "float16")),
}
SECTIONS = models.SECTIONS
SEVERAL = {"episode.gamma": 2, "episode.zoom": 2, "episode.crop": 3, "test.patch": 3}  # so many numbers
MINIMA = {
    **dict.fromkeys(("train.steps", "train.batch_size", "train.save_every", "train.log_every"), 1),
    **dict.fromkeys(("episode.min_size", "episode.reach", "test.parts", "test.shots", "test.batch_size"), 1),
    **dict.fromkeys(("train.decay_every", "episode.realistic", "test.memory_gb", "test.jobs"), 0),
    **dict.fromkeys(("seed", "threads", "workers"), 0),
}
# keys that have an effect with one value of another key only
ONLY_WITH = {
    **dict.fromkeys(("episode.crop", "episode.shift_slices", "episode.warp"), ("episode.sampler", "crops")),
    **dict.fromkeys(
        ("episode.realistic", "episode.reach", "episode.queries", "episode.carry", "episode.registration"),
        ("episode.sampler", "neighbouring"),
    ),
    "test.pool": ("test.supports", "all"),
    "test.scheduler": ("test.backend", "dask"),
}


def options():
    """Every option; the method's own keys and schedule come from its file in models/."""
    # what is trained and tested
    method = "adnet"  # a file in models/
    dataset = "CHAOST2"  # a row of DATASETS, or a file such as data/MINE/MINE.json
    data_root = "data"  # folder that holds CHAOST2/, SABS/, CMR/, PHANTOM/
    fold = 0  # a line of FOLDS[dataset]
    setting = 1  # 2: training slices that show test organs are removed
    organs = "all"  # tested, and removed in setting 2: a group (upper, lower) or "liver,spleen"
    protocol = "strict"  # strict | published: as the published code does it, see models/spec/README.md
    stage = 1  # 2: the second training of a method that has one (visa)

    # the encoder
    encoder = models.method_class(method).default_encoder  # resnet101 | resnet50 | resnet18 | efficientnet_lite0 | none
    # for volumes resnext101_3d | resnext14_3d, or any other slice by slice
    weights = encoders.entry(encoder).weights  # none | imagenet | coco, or a file
    stride = models.output_stride(method, encoder)  # output stride of its deepest map; 0 = as in the method's paper

    # the method's own keys: the arguments of its constructor
    _modality = DATASETS[dataset].modality if dataset in DATASETS else ""  # an unknown name is refused by `check`
    _variants = (dataset, _modality, encoder, f"stage {stage}", protocol)
    _recipe = models.recipe(method, _variants)
    model = {**models.defaults(method), **_recipe["model"]}

    train = {
        # length
        "steps": 1000,
        "batch_size": 1,  # episodes per step (and per process)
        "start": "",  # weights to begin with: a checkpoint, a run of the same fold, or newest (its first stage)
        # optimiser
        "optimiser": "sgd",  # sgd | adam
        "learning_rate": 1e-3,
        "momentum": 0.9,  # adam: of the mean of the gradients
        "weight_decay": 5e-4,
        "decay": 0.95,  # the learning rate is multiplied by this ...
        "decay_every": 1000,  # ... after so many steps; 0 = ten times in all
        # the network
        "frozen_norm": False,  # batch norms of the encoder keep their pretrained statistics
        "precision": "float32",  # float32 | tf32 | bfloat16 | float16, mixed precision on a GPU
        "compile": False,  # torch.compile the step: minutes to begin with, then faster, most of all on a GPU
        "recompute": False,  # blocks of the encoder run twice to save memory
        # record
        "save_every": 1000,  # steps between checkpoints
        "log_every": 10,  # steps between rows of metrics.csv
        **encoders.entry(encoder).training,
        **_recipe["train"],
    }
    scans = {
        "normalise": "scan",  # scan | training | published: whose mean and deviation make the z-score
        "segments": "supervoxels",  # supervoxels | superpixels (2D, of every slice)
        **_recipe["scans"],
    }
    episode = {
        # which slices make a task
        "sampler": "neighbours",  # neighbours | slice (alpnet) | neighbouring (visa) | crops (3D)
        "min_size": 200,  # smallest segment in pixels; in voxels for crops
        # augmentation
        "augment": "one",  # one | both: the change is made to one of the two images, or to both
        "gamma": [0.5, 1.5],
        "rotation": 5.0,  # degrees, either way
        "shift": 5.0,  # pixels, either way
        "shear": 5.0,  # degrees, either way
        "zoom": [0.9, 1.2],
        "elastic": 10.0,  # strength of the elastic displacement; 0 = none
        "bias_field": 0.0,  # largest coefficient of a smooth factor; 0 = none
        "noise": 0.0,  # largest deviation, in those of the scan; 0 = none
        "on_device": False,  # slices are changed where the network is: on a GPU fewer workers feed it
        # only sampler=crops
        "crop": [10, 215, 215],  # slices, rows, columns
        "shift_slices": 1.0,  # slices, either way
        "warp": "affine",  # affine | published: tilted through the slices
        # only sampler=neighbouring
        "realistic": 0.5,  # share of tasks between neighbouring slices; 0: all on one slice, 1: none
        "reach": 3,  # farthest neighbour, in slices
        "queries": "one",  # one | all: neighbours within reach
        "carry": "chained",  # chained | direct | none: superpixels follow all flows between, one flow, or get no label
        "registration": "newest",  # whose flows: newest, a checkpoint, or a run of this fold
        **_recipe["episode"],
    }
    test = {
        # what is tested
        "checkpoint": "newest",  # newest | untrained, a checkpoint, or a run's folder
        "ensemble": [],  # further checkpoints or runs, of any method, whose probabilities are averaged with it
        # which slices meet (dataloaders/pairings.py)
        "pairing": "parts",  # parts | whole | propagate | volume | position | similar
        "parts": 3,  # parts of the organ, each with its own annotated slices
        "shots": 1,  # annotated slices per part, or annotated scans
        "shots_of": "slices",  # slices | scans
        "supports": "fold",  # fold | all: the fold's support, or every tested scan in turn
        "pool": False,  # supports=all: average the probabilities over the supports
        "vote": True,  # supervoxels vote on every answer: scored beside it, as voted_* in scores.csv
        # speed and memory
        "precision": "float32",  # as train.precision
        "batch_size": 8,  # slices at once
        "patch": [0, 0, 0],  # volumes: slices, rows, columns encoded at once; 0 = all
        "memory_gb": 0.0,  # volumes: patches so small that the encoder needs no more; 0 = no bound
        "jobs": 1,  # query scans at once, each in a process; 0 = as many as cores
        "backend": "loky",  # loky | dask (pip install distributed)
        "scheduler": "",  # dask: a running cluster that sees the same folders, tcp://host:8786; "": this machine
        # record
        "save": False,  # one picture per organ, of at most twelve scans
        **_recipe["test"],
    }
    seed = 2021  # it and the number of an episode decide everything random

    # the machine
    device = "auto"  # cpu, cuda, cuda:1
    threads = 0  # CPU threads of the network; 0 = as many as cores
    workers = 1  # processes that make episodes; 0 = in the training process
    runs = "runs"  # results go to runs/<method>_<dataset>_fold<k>/<id>/
    maps = ""  # training scans as memory maps go there, made once (data/maps.py); "": to runs/maps
    log = ""  # tensorboard, wandb, mlflow: curves beside metrics.csv; several with commas between
    resume = ""  # newest, a checkpoint, or a run: go on where it stopped, with its configuration


def check(config: Mapping, typed: Collection[str]) -> None:
    """Refuse a configuration that makes no sense, with one sentence.

    Args:
        config: all values.
        typed: keys that a user changed.

    Raises:
        UserError: a word is none of its key's choices, a number is too small, a key that was typed has no effect, the
            method has no such stage, the package that `log` names is not installed.
    """
    checks.check_numbers(config, SEVERAL)
    checks.check_values(config, CHOICES, MINIMA)
    checks.check_effects(config, typed, ONLY_WITH)
    DATASETS[config["dataset"]].chosen(config["organs"])
    curves.chosen(config["log"])
    if config["stage"] > models.last_stage(config["method"]):
        raise UserError(f"stage={config['stage']}: method={config['method']} has no such stage")
    if config["train"]["compile"] and config["train"]["recompute"]:
        raise UserError("train.compile: blocks that run twice (train.recompute) cannot be compiled; choose one of both")
