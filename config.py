"""What a user edits: data sets, folds, and every option of the command line with its default.

`python training.py print_config` shows what would run; `python training.py with method=adnet dataset=CHAOST2 fold=1
train.steps=1000` changes values.
"""

from collections.abc import Mapping

import models
from models.parts import encoders
from util.dataset import Dataset
from util.runs import checks

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


def check(config: Mapping) -> None:
    """Refuse a configuration that makes no sense, with one sentence.

    Raises:
        UserError: a word is none of its key's choices, a number is too small, the method has no such stage or profile.
    """
    checks.check_values(config, CHOICES, MINIMA)
    DATASETS[config["dataset"]].chosen(config["organs"])
    models.check_variants(config)
