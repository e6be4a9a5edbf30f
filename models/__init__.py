"""The methods: one file each, the file name is the method's name. Adding a method is adding its file."""

import importlib
import inspect
import pkgutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from models.parts import encoders
from models.parts.base import FewShotMethod
from util.checkpoints import TrainedMethod, load_weights
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
    found = [
        value
        for value in vars(module).values()
        if inspect.isclass(value) and issubclass(value, FewShotMethod) and value.__module__ == module.__name__
    ]
    if len(found) != 1:
        raise UserError(f"models/{name}.py defines {len(found)} methods; one file holds one subclass of FewShotMethod")
    return found[0]


def defaults(name: str) -> dict[str, Any]:
    """Hyperparameters of a method: the keyword-only arguments of its constructor with their default values.

    A method that extends another takes the rest of its arguments as `**name`.
    """
    found: dict[str, Any] = {}
    for owner in method_class(name).__mro__:
        parameters = inspect.signature(owner.__init__).parameters.values()
        own = {p.name: p.default for p in parameters if p.kind is inspect.Parameter.KEYWORD_ONLY}
        found = own | found
        if not any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters):
            break
    return found


def recipe(name: str, *, variants: Sequence[str] = ()) -> dict[str, dict[str, Any]]:
    """The paper's values of a method for the options: section (train, scans, episode, test, model) -> key -> value.

    Args:
        name: the method.
        variants: what applies of the recipe's variants, such as the modality or the protocol; later ones win.
    """
    found = {section: {} for section in SECTIONS}
    _apply(found, method_class(name).recipe, variants)
    return found


def _apply(found: dict[str, dict], recipe: Mapping[str, Any], variants: Sequence[str]) -> None:
    for section in SECTIONS:
        found[section] |= recipe.get(section, {})
    for variant in variants:
        if variant in recipe.get("variants", {}):
            _apply(found, recipe["variants"][variant], variants)


def require_stage(name: str, stage: int) -> None:
    """Refuse a second stage for a method that has one only.

    Raises:
        UserError: so `stage` would change nothing.
    """
    if stage > last_stage(name):
        raise UserError(f"stage={stage}: method={name} has no such stage")


def last_stage(name: str) -> int:
    """The training that a method ends with: the highest `stage=` it has."""
    stages = [variant for variant in method_class(name).recipe.get("variants", {}) if variant.startswith("stage ")]
    return max([1, *(int(variant.split()[1]) for variant in stages)])


def fitted(arguments: Mapping[str, Any], side: int) -> dict[str, Any]:
    """The hyperparameters for images of one size: an `image_size` of 0 becomes their side in pixels."""
    arguments = dict(arguments)
    if arguments.get("image_size") == 0:
        arguments["image_size"] = side
    return arguments


def build(
    name: str, arguments: dict[str, Any], *, encoder: str, weights: str | None = "none", stride: int = 0
) -> FewShotMethod:
    """Make a method on its encoder.

    Args:
        name: the method.
        arguments: its hyperparameters.
        encoder: name of the encoder.
        weights: pretrained weights of the encoder, see `encoders.build`.
        stride: output stride of the deepest map; 0 = as the paper has it. Shallower maps follow in proportion.
    """
    method = method_class(name)
    strides = method.encoder_strides
    if stride:
        strides = tuple(s * stride // strides[-1] for s in strides)
    return method(encoders.build(encoder, strides, weights, method.dims), **arguments)


def restore(content: Mapping[str, Any], path: Path) -> TrainedMethod:
    """The method of a checkpoint, with its weights.

    Args:
        content: of the checkpoint, as `load_checkpoint` reads it.
        path: its file.

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
    return TrainedMethod(
        method.eval(), content["config"], path, content["intensities"], preparation=content.get("preparation")
    )
