"""Setting 2 in numbers: which training slices show test organs, and which rule removes them (training_protocol 7)."""

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np


def excluded_slices(label: np.ndarray, organs: Iterable[int], published: bool = False) -> np.ndarray:
    """Slices `(D,)` that setting 2 removes: those with any of the organs; as published, only those with all of them."""
    shown = np.stack([(label == organ).any((1, 2)) for organ in organs])
    return shown.all(0) if published else shown.any(0)


def removal_table(labels: Mapping[int, np.ndarray], organs: Mapping[str, int], published: bool) -> list[dict[str, Any]]:
    """Slices that setting 2 removes from labels `(D, H, W)` by scan number: one row per scan and one for all.

    Columns: scan, slices, slices that show each organ, removed, leaking (kept although they show a test organ).
    """
    rows = []
    for number, label in labels.items():
        shown = {name: (label == identifier).any((1, 2)) for name, identifier in organs.items()}
        removed = excluded_slices(label, organs.values(), published)
        leaking = excluded_slices(label, organs.values()) & ~removed
        counts = {"slices": np.ones(len(label), bool), **shown, "removed": removed, "leaking": leaking}
        rows.append({"scan": number, **{name: int(mask.sum()) for name, mask in counts.items()}})
    total = {name: sum(row[name] for row in rows) for name in rows[0] if name != "scan"}
    return [*rows, {"scan": "all", **total}]
