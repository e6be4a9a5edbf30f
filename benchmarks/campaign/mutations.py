"""Changes that damage an input: bytes, numbers, JSON values. A generator decides them, so each can be made again."""

import json
import math
from collections.abc import Sequence
from typing import Any

import numpy as np

Random = np.random.Generator
WORDS = (
    "", " ", "0", "-1", "1e400", "nan", "inf", "../../x", "a/b", "äöü 雪", "\x00", "true", "[]", "x" * 300,
)  # fmt: skip
VALUES = (
    None, True, False, 0, 1, -1, 2**31, -(2**63), 2**70, 0.5, -0.0, 1e308, math.nan, math.inf, [], {}, [None], {"": ""},
)  # fmt: skip


def pick(random: Random, choices: Sequence[Any]) -> Any:
    """One of the choices, as it is (NumPy would turn it into an array's element)."""
    return choices[int(random.integers(len(choices)))]


def changed_bytes(content: bytes, random: Random) -> bytes:
    """Content with flipped bits, other bytes, a hole, a piece too many, or cut short."""
    content = bytearray(content)
    at, length = int(random.integers(len(content) + 1)), int(random.integers(1, 40))
    match pick(random, ("flip", "flip", "byte", "byte", "zeros", "cut", "cut", "insert", "repeat", "append", "empty")):
        case "flip":
            for place in random.integers(len(content), size=pick(random, (1, 1, 2, 5))):
                content[place] ^= 1 << int(random.integers(8))
        case "byte":
            content[min(at, len(content) - 1)] = pick(random, (0, 1, 127, 128, 255, int(random.integers(256))))
        case "zeros":
            content[at : at + length] = bytes(len(content[at : at + length]))
        case "cut":
            del content[at:]
        case "insert":
            content[at:at] = random.bytes(length)
        case "repeat":
            content[at:at] = content[at : at + length]
        case "append":
            content += random.bytes(length) if random.random() < 0.5 else bytes(length)
        case "empty":
            content.clear()
    return bytes(content)


def changed_number(value: float, random: Random) -> float:
    """Another number: near, far, of the other sign, or none."""
    factors = (-1, 0.5, 2, 1.02, 1 + 1e-6, 1000, 1e-3, 1e-6, 1e12)
    others = (0, 1, -1, 2, 3, 255, 256, 32767, -32768, 65535, 2**31 - 1, 1e30, math.nan, math.inf, -math.inf)
    return pick(random, [value * factor for factor in factors] + list(others))


def changed_text(text: str, random: Random) -> str:
    """Other text: a word, a number, or the same with one character changed."""
    if random.random() < 0.5 or not text:
        return pick(random, WORDS)
    at = int(random.integers(len(text)))
    return text[:at] + pick(random, (*"0-9.,;/\\\"' \t\n", "")) + text[at + 1 :]


def changed_value(value: Any, random: Random) -> Any:
    """A value of JSON that is wrong in kind, range or detail; containers change in one of their parts."""
    if isinstance(value, dict | list) and value and random.random() < 0.75:
        return _changed_part(value, random)
    if isinstance(value, str) and random.random() < 0.5:
        return changed_text(value, random)
    if isinstance(value, int | float) and not isinstance(value, bool) and random.random() < 0.5:
        number = changed_number(value, random)
        return int(number) if math.isfinite(number) and random.random() < 0.7 else number
    return pick(random, (*VALUES, *WORDS))


def _changed_part(value: dict | list, random: Random) -> dict | list:
    value = value.copy()
    key = pick(random, list(value) if isinstance(value, dict) else range(len(value)))
    match pick(random, ("change", "change", "change", "remove", "add")):
        case "change":
            value[key] = changed_value(value[key], random)
        case "remove":
            del value[key]
        case "add" if isinstance(value, dict):
            value[changed_text(key, random)] = value[key]
        case "add":
            value.append(changed_value(value[key], random))
    return value


def changed_json(text: str, random: Random) -> bytes:
    """A JSON file with another value in it, or with damaged bytes."""
    if random.random() < 0.3:
        return changed_bytes(text.encode(), random)
    content = json.loads(text)
    for _ in range(pick(random, (1, 1, 2))):
        content = changed_value(content, random)
    return json.dumps(content).encode()
