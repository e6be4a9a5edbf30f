"""Curves where people look at them, beside metrics.csv: TensorBoard, Weights & Biases, MLflow (`log=tensorboard`).

One small class each, which `Curves` calls; a further one is a row of CURVES, too. None of their packages is a
requirement.
"""

import contextlib
import importlib.util
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from util.commands import warn
from util.episode import Episode
from util.errors import UserError
from util.pictures import grey, upright
from util.runs.folders import flat
from util.volume import Geometry

PICTURES = 20  # of a training
ANSWER, PREDICTION = (255, 200, 0), (0, 160, 255)


class _TensorBoard:
    """Event files in the run's folder: `tensorboard --logdir runs` shows all runs."""

    def __init__(self, folder: Path, kind: str, options: Mapping[str, Any]) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self.kind, self.writer = kind, SummaryWriter(str(folder))
        self.writer.add_text("options", "\n".join(f"    {key}: {value}" for key, value in flat(options).items()))

    def write(self, step: int, values: Mapping[str, float]) -> None:
        for name, value in values.items():
            self.writer.add_scalar(f"{self.kind}/{name}", value, step)

    def picture(self, step: int, name: str, image: np.ndarray) -> None:
        self.writer.add_image(name, image, step, dataformats="HWC")

    def close(self) -> None:
        self.writer.close()


class _WeightsAndBiases:
    """A run of the project `fsmis` (WANDB_PROJECT), named after its folder; WANDB_MODE=offline needs no account."""

    def __init__(self, folder: Path, kind: str, options: Mapping[str, Any]) -> None:
        import wandb

        self.module, name = wandb, "/".join(folder.parts[-2:])
        project = os.environ.get("WANDB_PROJECT", "fsmis")
        self.run = wandb.init(project=project, name=name, job_type=kind, dir=str(folder), config=dict(options))

    def write(self, step: int, values: Mapping[str, float]) -> None:
        self.run.log(dict(values), step=step)

    def picture(self, step: int, name: str, image: np.ndarray) -> None:
        self.run.log({name: self.module.Image(image)}, step=step)

    def close(self) -> None:
        self.run.finish()


class _MLflow:
    """A run of MLflow's current experiment, named after its folder; MLFLOW_TRACKING_URI says where."""

    def __init__(self, folder: Path, kind: str, options: Mapping[str, Any]) -> None:
        import mlflow

        self.module = mlflow
        mlflow.start_run(run_name="/".join(folder.parts[-2:]), tags={"kind": kind, "folder": str(folder)})
        mlflow.log_params({key: str(value)[:500] for key, value in flat(options).items()})

    def write(self, step: int, values: Mapping[str, float]) -> None:
        self.module.log_metrics(dict(values), step=step)

    def picture(self, step: int, name: str, image: np.ndarray) -> None:
        self.module.log_image(image, artifact_file=f"{name}_{step:06d}.png")

    def close(self) -> None:
        self.module.end_run()


# name of the package -> what is called as `Curves` is
CURVES = {"tensorboard": _TensorBoard, "wandb": _WeightsAndBiases, "mlflow": _MLflow}


class Curves:
    """Numbers and pictures of one run, shown by a service. It may fail: a run cannot begin without it, but goes on.

    Args:
        name: of the service in CURVES.
        folder, kind, options: of the run, as in `curves`.

    Raises:
        UserError: the service takes no run.
    """

    def __init__(self, name: str, folder: Path, kind: str, options: Mapping[str, Any]) -> None:
        self.name = name
        try:
            self.service = CURVES[name](folder, kind, options)
        except Exception as error:  # every service fails in its own ways
            raise UserError(f"log={name}: the run cannot be shown there: {_short(error)}") from error

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Add a point to every curve."""
        self._try("write", step, values)

    def picture(self, step: int, name: str, image: np.ndarray) -> None:
        """Show a picture `(H, W, 3)`, uint8."""
        self._try("picture", step, name, image)

    def close(self) -> None:
        """Write what is waiting."""
        self._try("close")

    def _try(self, call: str, *arguments: Any) -> None:
        try:
            if self.service:
                getattr(self.service, call)(*arguments)
        except Exception as error:
            warn([f"log={self.name}: {_short(error)}; from here on nothing goes there, metrics.csv has all"])
            self.service = None


def _short(error: Exception) -> str:
    return " ".join(str(error).split())[:300] or type(error).__name__


def chosen(text: str) -> list[str]:
    """The services that `log=` names, with commas between.

    Raises:
        UserError: there is no such service, or its package is not installed.
    """
    names = [name for name in text.replace(" ", "").split(",") if name]
    for name in names:
        if name not in CURVES:
            raise UserError(f"log={text}: unknown; choose of {', '.join(CURVES)}, or several with commas between")
        if importlib.util.find_spec(name) is None:
            raise UserError(f"log={name}: its package is not here; pip install {name}")
    return names


@contextlib.contextmanager
def curves(folder: Path | None, kind: str, options: Mapping[str, Any]) -> Iterator[list[Curves]]:
    """What shows the run in the services that `log=` names, closed at the end; none for a run without a folder.

    `kind` of the run is training or test.
    """
    with contextlib.ExitStack() as stack:
        yield [
            stack.enter_context(contextlib.closing(Curves(name, folder, kind, options)))
            for name in (chosen(options["log"]) if folder else ())
        ]


def episode_picture(episode: Episode, predicted: np.ndarray, geometry: Geometry) -> np.ndarray:
    """Support and query of the first task beside each other, uint8 `(H, 2W, 3)`, the front of the body up.

    Of volumes the largest slice is shown. Masks and answers are outlined in yellow, what is `predicted` `(B, Q, *)` in
    blue.
    """
    support = episode.support_images[0, 0, 0], episode.support_masks[0, 0] == 1
    query = episode.query_images[0, 0, 0], episode.query_masks[0, 0] == 1, predicted[0, 0]
    return np.hstack([_plane(geometry, *parts) for parts in (support, query)])


def _plane(geometry: Geometry, *parts: Any) -> np.ndarray:
    planes = [upright(np.asarray(part.float().cpu()), geometry) for part in parts]
    if planes[0].ndim == 3:
        largest = int(planes[1].sum((1, 2)).argmax())
        planes = [plane[largest] for plane in planes]
    picture = np.repeat(grey(planes[0])[..., None], 3, axis=2)
    for plane, colour in zip(planes[1:], (ANSWER, PREDICTION), strict=False):
        inside = np.ascontiguousarray(plane, np.uint8)
        picture[inside != cv2.erode(inside, np.ones((3, 3), np.uint8))] = colour
    return picture
