"""The methods: one file each, the file name is the method's name. Adding a method is adding its file."""

import importlib
import inspect
import pkgutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from models.parts import encoders
from models.parts.base import FewShotMethod
from util import checkpoints
from util.errors import UserError


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


def recipe(name: str, section: str, *variants: str) -> dict[str, Any]:
    """The paper's values for the options `train`, `scans`, `episode`, `test` or `model` of a method.

    Args:
        name: the method.
        section: of the options.
        variants: what applies of the recipe's variants, such as the data set; later ones win.
    """
    return _resolved(method_class(name).recipe, section, variants)


def _resolved(recipe: Mapping[str, Any], section: str, variants: tuple[str, ...]) -> dict[str, Any]:
    values = dict(recipe.get(section, {}))
    for variant in variants:
        if variant in recipe.get("variants", {}):
            values |= _resolved(recipe["variants"][variant], section, variants)
    return values


def require_variant(name: str, variant: str, asked: str) -> None:
    """Refuse a stage or profile that a method's recipe does not know.

    Raises:
        UserError: so `asked` would change nothing.
    """
    if variant not in method_class(name).recipe.get("variants", {}):
        raise UserError(f"{asked}: method={name} has no such variant")


def fitted(arguments: Mapping[str, Any], side: Callable[[], int]) -> dict[str, Any]:
    """The hyperparameters for images of one size: an `image_size` of 0 becomes their side, which is read only then."""
    return {**arguments, **({"image_size": side()} if arguments.get("image_size") == 0 else {})}


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


def restore(content: dict[str, Any], path: Path) -> FewShotMethod:
    """The method of a checkpoint, with its weights.

    Raises:
        UserError: the weights do not fit; `path` names the file.
    """
    method = build(
        content["method"], content["arguments"], encoder=content["encoder"], weights=None, stride=content["stride"]
    )
    checkpoints.load_weights(method, content, path)
    return method


def check_variants(config: Mapping) -> None:
    """Refuse a stage or a profile that the method does not have."""
    if config["stage"] != 1:
        require_variant(config["method"], f"stage {config['stage']}", f"stage={config['stage']}")
    if config["profile"] != "paper":
        require_variant(config["method"], config["profile"], f"profile={config['profile']}")


def last_stage(method: str) -> int:
    """The training that a method ends with: the highest `stage=` it has."""
    variants = method_class(method).recipe.get("variants", {})
    return max([1, *(int(name.split()[1]) for name in variants if name.startswith("stage "))])
