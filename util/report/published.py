"""Published numbers: published.json beside this file, where each has its source."""

import functools
import json
from collections.abc import Set
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Published:
    """A row of a published table.

    Attributes:
        method: our name of it, "" if it is none of ours.
        name: the paper's.
        dataset: our name.
        setting: 1 or 2.
        sources: keys of `source`.
        dice: organ, or "mean" -> percent; what is not known is not there.
    """

    method: str
    name: str
    dataset: str
    setting: int
    sources: list[str]
    dice: dict[str, float]


def rows(dataset: str, settings: Set[str]) -> list[Published]:
    """Rows of a data set in the given settings; in both where a setting is not known ("")."""
    found = [Published(**row) for row in content()["rows"] if row["dataset"] == dataset]
    return [row for row in found if str(row.setting) in settings or "" in settings]


@functools.cache
def content() -> dict:
    """`rows`; `sources`: where each was found, in words; `caveat`: why theirs and ours are not the same measurement."""
    return json.loads(Path(__file__).with_name("published.json").read_text(encoding="utf-8"))
