"""Checks of a configuration: every mistake becomes one sentence. Knows no command-line library."""

import difflib
import math
from collections.abc import Collection, Mapping
from typing import Any

from util import checkpoints
from util.errors import UserError
from util.runs import folders

# what a resumed run keeps
FIXED = ("method", "dataset", "fold", "setting", "protocol", "organs", "encoder", "stride", "seed", "stage")

# what other defaults are made with
MAKING = {"seed": int, "method": str, "dataset": str, "encoder": str, "protocol": str}

# options of earlier versions
RENAMED = {
    "test.match": "test.pairing",
    "train.checkpointing": "train.recompute",
    "episode.window": "episode.crop",
    "model.sampler": "model.first_centre",
    "model.test_window": "model.test_cell",
    "model.continuity": "model.continuity_weight",
    "model.smoothness": "model.smoothness_weight",
}
STATED = ("episode.size_of", "episode.runs")  # in the method's file
IMPLIED = ("exclude", "profile", "test.anchored", "test.support_index", "test.fold_order", "test.part_rule",
           "test.recorder", "episode.lost_labels")  # fmt: skip
GONE = {
    **dict.fromkeys(IMPLIED, "protocol=published does as the published code does"),
    **dict.fromkeys(STATED, "it is stated as `published = Bookkeeping(...)` in the method's file"),
}


def check_types(changed: Mapping[str, tuple[type, type]]) -> None:
    """Refuse values of another type than the default: key -> (expected, given). An int may stand for a float."""
    for key, (expected, given) in changed.items():
        if (expected, given) not in ((float, int), (tuple, list)):
            raise UserError(f"{key}: expects a value of type {expected.__name__}, got {given.__name__}")


def check_typed(typed: Mapping[str, Any], sections: Collection[str]) -> None:
    """Refuse what was typed if it would break the making of the configuration itself, before any default is known."""
    for key, value in typed.items():
        if key in sections and not isinstance(value, Mapping):
            kind = type(value).__name__
            raise UserError(f"{key}: expects a value of type dict, got {kind}; write {key}.NAME=VALUE")
        if isinstance(value, Mapping) and "" in value:
            raise UserError(f"{key}={value}: a key without a name; write {key}=VALUE or {key}.NAME=VALUE")
        if key.startswith("_"):
            raise UserError(f"{key}: no such key; print_config shows all")
    for key, kind in MAKING.items():
        if key in typed and type(typed[key]) is not kind:
            raise UserError(f"{key}: expects a value of type {kind.__name__}, got {type(typed[key]).__name__}")
    if not 0 <= typed.get("seed", 0) < 2**32:
        raise UserError(f"seed={typed['seed']}: a number from 0 to {2**32 - 1} is expected")


def check_numbers(options: Mapping, several: Mapping[str, int]) -> None:
    """Refuse numbers that are not finite, and lists that do not hold as many numbers as their key wants."""
    values = folders.flat(options)
    for key, count in several.items():
        value = values[key]
        if len(value) != count or not all(type(number) in (int, float) for number in value):
            raise UserError(f"{key}={value}: {count} numbers are expected, such as [{', '.join('1' * count)}]")
    for key, value in values.items():
        numbers = value if isinstance(value, list | tuple) else [value]
        if not all(math.isfinite(number) for number in numbers if isinstance(number, float)):
            raise UserError(f"{key}={value}: a finite number is expected")


def check_values(options: Mapping, choices: Mapping[str, tuple], minima: Mapping[str, int]) -> None:
    """Refuse words that are none of their key's choices and numbers below their key's minimum."""
    values = folders.flat(options)
    for key, words in choices.items():
        if values[key] not in words:
            raise UserError(f"{key}={values[key]}: choose one of {', '.join(map(str, words))}")
    for key, minimum in minima.items():
        if values[key] < minimum:
            raise UserError(f"{key}={values[key]}: must be at least {minimum}")


def check_effects(options: Mapping, typed: Collection[str], only_with: Mapping[str, tuple[str, Any]]) -> None:
    """Refuse a typed key that has an effect with another value of another key only: key -> (other key, value)."""
    values = folders.flat(options)
    for key in only_with.keys() & set(typed):
        other, value = only_with[key]
        if values[other] != value:
            raise UserError(f"{key}: has no effect with {other}={values[other]}, only with {other}={value}")


def unknown_key(key: str, options: Mapping) -> str:
    """What to say of a key that does not exist, with those that look like it."""
    if key in RENAMED:
        return f"{key}: is called {RENAMED[key]} now"
    if key in GONE:
        return f"{key}: is no option any more; {GONE[key]}"
    known = options.keys() | folders.flat(options).keys()
    close = [name for name in difflib.get_close_matches(key, known, n=2) if name != key]
    return f"{key}: no such key{'; did you mean ' + ' or '.join(close) + '?' if close else ''}; print_config shows all"


def with_resumed(updates: dict) -> dict:
    """Updates of a resumed run: the configuration it had, and what the command line says on top.

    Raises:
        UserError: there is no such checkpoint, or the command line changes what must stay.
    """
    if not updates.get("resume"):
        return updates
    saved = checkpoints.load_checkpoint(folders.find_checkpoint(updates["resume"], "resume"))["config"]
    for key in FIXED:
        if key in saved and updates.get(key, saved[key]) != saved[key]:
            raise UserError(
                f"{key}={updates[key]}: the resumed run has {key}={saved[key]}, which cannot change half-way"
            )
    own = {key: value for key, value in saved.items() if not key.startswith("_")}  # older runs kept these
    return _merged(own, updates)


def _merged(base: dict, updates: Mapping) -> dict:
    both = {
        key: _merged(base[key], value) if isinstance(value, Mapping) and isinstance(base.get(key), dict) else value
        for key, value in updates.items()
    }
    return {**base, **both}
