"""Checkpoints that rebuild their model: method, arguments, configuration, step, weights, optimiser, random states.

Plain tensors and plain values only: they are read with `weights_only=True`, so a file cannot run code.
"""

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from util.dataset import Dataset
from util.errors import UserError
from util.files import whole_file

FORMAT = 1
KEYS = {
    "format",
    "method",
    "arguments",
    "encoder",
    "stride",
    "config",
    "intensities",
    "training_scans",
    "step",
    "model",
    "optimiser",
    "scaler",
    "random_states",
}
OPTIONAL = {"preparation"}  # checkpoints of older versions lack it; only predict.py asks for it


def save_checkpoint(path: Path, content: Mapping[str, Any]) -> None:
    """Write a checkpoint; it appears whole or not at all.

    Raises:
        UserError: the folder cannot be written or the disk is full.
    """
    content = {"format": FORMAT, **content}
    assert content.keys() - OPTIONAL == KEYS, content.keys() ^ KEYS
    with whole_file(path) as temporary:
        try:
            torch.save(content, temporary)
        except RuntimeError as error:  # torch's own writer reports a full disk so
            raise OSError(str(error).splitlines()[0]) from error


def load_checkpoint(path: Path) -> dict[str, Any]:
    """Read a checkpoint of this project, onto the CPU.

    Raises:
        UserError: the file is missing, damaged, holds code, or is a checkpoint of another program.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"{path}: no such checkpoint")
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises many kinds for foreign and damaged files; all mean the same to the user
        raise UserError(f"{path}: damaged, or holds more than plain tensors (it could run code); refused") from error
    if not isinstance(content, dict) or not content.keys() >= KEYS:
        raise UserError(f"{path}: not a checkpoint of this program")
    if content["format"] != FORMAT:
        raise UserError(f"{path}: has checkpoint format {content['format']}, this program reads {FORMAT}")
    return content


def load_weights(model: torch.nn.Module, content: Mapping[str, Any], path: Path) -> None:
    """Copy the weights of a checkpoint into the model it describes.

    Raises:
        UserError: names or shapes differ.
    """
    try:
        model.load_state_dict(content["model"], strict=True)
    except RuntimeError as error:
        raise UserError(
            f"{path}: its weights do not fit models/{content['method']}.py as it is now "
            f"({str(error).splitlines()[1].strip()[:120]})"
        ) from error


def fingerprint(path: Path) -> str:
    """The first 12 digits of a file's SHA-256: enough to tell checkpoints apart."""
    with open(path, "rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()[:12]


def require_same_fold(
    content: Mapping[str, Any], path: Path, config: Mapping[str, Any], numbers: list[int], dataset: Dataset
) -> None:
    """Refuse to build on a checkpoint that was trained on other scans, or on slices that this run must not see.

    Args:
        content: of the checkpoint; `path`: its file.
        config: of this run.
        numbers: of the scans it trains on.
        dataset: of this run.

    Raises:
        UserError: naming what differs.
    """
    theirs = content["config"]
    if theirs["dataset"] != config["dataset"] or content["training_scans"] != numbers:
        raise UserError(
            f"{path}: was trained on {theirs['dataset']} scans {content['training_scans']}, this run trains on "
            f"{config['dataset']} scans {numbers}; name a checkpoint of this data set and fold"
        )
    organs = dataset.chosen
    kept_back = organs(theirs.get("organs", "all")) if theirs["setting"] == 2 else {}
    if config["protocol"] == "strict" and theirs["protocol"] == "published":
        kept_back = {}  # slices with some of the organs trained it
    if config["setting"] == 2 and not organs(config["organs"]).keys() <= kept_back.keys():
        raise UserError(
            f"{path}: was trained in setting {theirs['setting']} and has seen slices that setting 2 removes "
            f"(organs={config['organs']} protocol={config['protocol']}); train it with the same setting and organs"
        )
    if (theirs["scans"]["normalise"] == "scan") != (config["scans"]["normalise"] == "scan"):
        raise UserError(
            f"{path}: saw intensities with scans.normalise={theirs['scans']['normalise']}, this run has "
            f"scans.normalise={config['scans']['normalise']}; both must have the same"
        )
