"""The methods: one file each, the file name is the method's name. Adding a method is adding its file."""

import functools
import importlib
import inspect
import pkgutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from models.parts import encoders
from models.parts.base import FewShotMethod
from util.checkpoints import TrainedMethod, load_checkpoint, load_weights
from util.errors import UserError

SECTIONS = ("train", "scans", "episode", "test", "model")


def names() -> list[str]:
    """Names of all methods: the modules of this package."""
    return sorted(module.name for module in pkgutil.iter_modules(__path__) if not module.ispkg)


def method_class(name: str) -> type[FewShotMethod]:
    """The one subclass of FewShotMethod that `models/<name>.py` defines.

    Raises:
        UserError: there is no such method, or its file defines none or several.
    """
    if name not in names():
        raise UserError(f"method={name}: unknown; choose one of {', '.join(names())}")
    module = importlib.import_module(f"{__name__}.{name}")
    classes = [value for _, value in inspect.getmembers(module, inspect.isclass) if value.__module__ == module.__name__]
    own = [value for value in classes if issubclass(value, FewShotMethod)]
    if len(own) != 1:
        raise UserError(f"models/{name}.py defines {len(own)} methods; one file holds one subclass of FewShotMethod")
    return own[0]


def defaults(name: str) -> dict[str, Any]:
    """Hyperparameters of a method: the keyword-only arguments of its constructor with their default values.

    A method that extends another takes the rest of its arguments as `**name`.
    """
    values: dict[str, Any] = {}
    for owner in method_class(name).__mro__:
        parameters = inspect.signature(owner.__init__).parameters.values()
        values = {p.name: p.default for p in parameters if p.kind is p.KEYWORD_ONLY} | values
        if not any(p.kind is p.VAR_KEYWORD for p in parameters):
            break
    return values


def recipe(name: str, variants: Sequence[str] = ()) -> dict[str, dict[str, Any]]:
    """The paper's values of a method for the options: section (train, scans, episode, test, model) -> key -> value.

    `variants` names what applies of the recipe's variants, such as the modality or the protocol; later ones win.
    """
    values = {section: {} for section in SECTIONS}
    for part in _parts(method_class(name).recipe, variants):
        for section in SECTIONS:
            values[section] |= part.get(section, {})
    return values


def output_stride(name: str, encoder: str) -> int:
    """The output stride of the deepest map that an encoder prefers for a method; 0 = as in its paper."""
    return encoders.entry(encoder).strides.get(len(method_class(name).encoder_strides), 0)


def _parts(recipe: Mapping[str, Any], variants: Sequence[str]) -> Iterator[Mapping[str, Any]]:
    """The recipe, then what applies of its variants, which are recipes again."""
    yield recipe
    special = recipe.get("variants", {})
    for variant in (variant for variant in variants if variant in special):
        yield from _parts(special[variant], variants)


def last_stage(name: str) -> int:
    """The training that a method ends with: the highest `stage=` it has."""
    stages = [variant for variant in method_class(name).recipe.get("variants", {}) if variant.startswith("stage ")]
    return max([1, *(int(variant.split()[1]) for variant in stages)])


def fitted(arguments: Mapping[str, Any], side: int) -> dict[str, Any]:
    """The hyperparameters for images of one size: an `image_size` of 0 becomes their side in pixels."""
    return dict(arguments) | ({"image_size": side} if arguments.get("image_size") == 0 else {})


def build(
    name: str, arguments: dict[str, Any], *, encoder: str, weights: str | None = "none", stride: int = 0
) -> FewShotMethod:
    """Make a method with its hyperparameters on its encoder.

    Args:
        weights: pretrained weights of the encoder, see `encoders.build`.
        stride: output stride of the deepest map; 0 = as the paper has it. Shallower maps follow in proportion.
    """
    method = method_class(name)
    strides = method.encoder_strides
    strides = tuple(s * (stride or strides[-1]) // strides[-1] for s in strides)
    return method(encoders.build(encoder, strides, weights, method.dims), **arguments)


@functools.lru_cache(maxsize=8)
def read(path: Path, changed: int) -> FewShotMethod:
    """The method of a checkpoint in evaluation mode; a process reads a file once, unless it has `changed` since.

    Raises:
        UserError: as `load_checkpoint` and `restore`.
    """
    return restore(load_checkpoint(path), path).method


def restore(content: Mapping[str, Any], path: Path) -> TrainedMethod:
    """The method of a checkpoint with its weights, from the content that `load_checkpoint` reads.

    Raises:
        UserError: its arguments or its weights do not fit the method as it is now.
    """
    try:
        method = build(
            content["method"], content["arguments"], encoder=content["encoder"], weights=None, stride=content["stride"]
        )
    except UserError as error:
        raise UserError(f"{path}: {error}") from error
    except Exception as error:  # arguments of an older version fail in many ways
        raise UserError(
            f"{path}: its arguments do not fit models/{content['method']}.py as it is now "
            f"({type(error).__name__}: {error}); train again"
        ) from error
    load_weights(method, content, path)
    known = {"preparation": content.get("preparation"), "step": content["step"]}
    return TrainedMethod(method.eval(), content["config"], path, content["intensities"], **known)
