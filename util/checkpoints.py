"""Checkpoints that rebuild their model: method, arguments, configuration, step, weights, optimiser, random states.

Plain tensors and plain values only: they are read with `weights_only=True`, so a file cannot run code.
"""

import functools
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from util.errors import UserError
from util.files import digest, whole_file

FORMAT = 1
# key -> what stands there
KINDS = {
    "format": int,
    "method": str,
    "arguments": dict,
    "encoder": str,
    "stride": int,
    "config": dict,
    "intensities": list | tuple | None,
    "training_scans": list,
    "step": int,
    "model": dict,
    "optimiser": dict,
    "scaler": dict,
    "random_states": list | dict,  # a dictionary in older versions
}
OPTIONAL = {"preparation"}  # checkpoints of older versions lack it; only predict.py asks for it
UNTRAINED = "untrained"


@dataclass(frozen=True)
class TrainedMethod:
    """A method with its weights, and how it came to them.

    Attributes:
        method: the network, in evaluation mode; None where only the name of its file travels to another process.
        options: of its training run.
        file: its checkpoint; None = untrained.
        mean_and_std: mean and standard deviation that normalised its scans, None = each scan's own.
        preparation: of its training scans, as plain values; None in checkpoints of older versions.
        step: updates it was trained with.
    """

    method: torch.nn.Module | None
    options: Mapping[str, Any]
    file: Path | None = None
    mean_and_std: tuple[float, float] | None = None
    preparation: Mapping[str, Any] | None = None
    step: int = 0

    @property
    def name(self) -> str:
        """Its file, or "untrained"."""
        return str(self.file or UNTRAINED)

    @functools.cached_property
    def sha256(self) -> str:
        """The first 12 digits of its file's SHA-256, enough to tell checkpoints apart; empty if untrained."""
        return digest(self.file)[:12] if self.file else ""


def save_checkpoint(path: Path, content: Mapping[str, Any]) -> None:
    """Write a checkpoint; it appears whole or not at all.

    Raises:
        UserError: the folder cannot be written or the disk is full.
    """
    content = {"format": FORMAT, **content}
    assert content.keys() - OPTIONAL == KINDS.keys(), content.keys() ^ KINDS.keys()
    with whole_file(path) as temporary:
        try:
            torch.save(content, temporary)
        except RuntimeError as error:  # torch's own writer reports a full disk so
            raise OSError(str(error).splitlines()[0]) from error


def load_checkpoint(path: Path) -> dict[str, Any]:
    """Read a checkpoint of this project, onto the CPU.

    Its checksums are compared: torch does not look at them, and a flipped bit would become another weight.

    Raises:
        UserError: the file is missing, damaged, holds code, or is a checkpoint of another program.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"{path}: no such checkpoint")
    try:
        if zipfile.ZipFile(path).testzip():
            raise ValueError("a checksum is wrong")
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises many kinds for foreign and damaged files; all mean the same to the user
        raise UserError(f"{path}: damaged, or holds more than plain tensors (it could run code); refused") from error
    if not isinstance(content, dict) or not content.keys() >= KINDS.keys():
        raise UserError(f"{path}: not a checkpoint of this program")
    if content["format"] != FORMAT:
        raise UserError(f"{path}: has checkpoint format {content['format']}, this program reads {FORMAT}")
    for key, kind in KINDS.items():
        if not isinstance(content[key], kind):
            raise UserError(f"{path}: not a checkpoint of this program, its {key} is a {type(content[key]).__name__}")
    return content


def load_weights(model: torch.nn.Module, content: Mapping[str, Any], path: Path) -> None:
    """Copy the weights of a checkpoint into the model it describes.

    Raises:
        UserError: names or shapes differ.
    """
    try:
        model.load_state_dict(content["model"], strict=True)
    except (RuntimeError, AttributeError, TypeError) as error:  # the last two: values that are no tensors
        raise UserError(
            f"{path}: its weights do not fit models/{content['method']}.py as it is now "
            f"({str(error).splitlines()[-1].strip()[:120]})"
        ) from error
