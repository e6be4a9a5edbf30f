"""Text tables for the terminal."""

from collections.abc import Mapping, Sequence
from typing import Any


def text_table(rows: Sequence[Mapping[str, Any]]) -> str:
    """One line per row under the names of its keys; numbers to the right, words to the left."""
    names = list(rows[0]) if rows else []
    cells = [[str(row[name]) for name in names] for row in rows]
    widths = [max(len(name), *(len(line[at]) for line in cells)) for at, name in enumerate(names)]
    left = [any(isinstance(row[name], str) for row in rows) and not _numbers(rows, name) for name in names]
    lines = [names, *cells]
    return "\n".join(
        "  ".join(
            f"{cell:<{width}}" if to_left else f"{cell:>{width}}"
            for cell, width, to_left in zip(line, widths, left, strict=True)
        ).rstrip()
        for line in lines
    )


def _numbers(rows: Sequence[Mapping[str, Any]], name: str) -> bool:
    """True for a column of numbers, whose last row may be a word such as "all"."""
    return all(isinstance(row[name], int | float) for row in rows[:-1]) and len(rows) > 1
