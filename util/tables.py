"""Tables: text for the terminal, CSV files. pandas takes half a second to load, so it is imported when it is needed."""

import csv
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from util.errors import UserError
from util.files import write_text

if TYPE_CHECKING:
    import pandas

    Rows = Sequence[Mapping[str, Any]] | pandas.DataFrame


def text_table(rows: "Rows") -> str:
    """One line per row under the names of its keys; words in the first column stand left, all else right."""
    import pandas

    table = pandas.DataFrame(rows)
    name = table.columns[0]
    if pandas.api.types.is_numeric_dtype(table[name]):
        return table.to_string(index=False)
    table.index = table.pop(name).astype(str).to_list()
    return table.rename_axis(columns=name).to_string()


def write_csv(file: Path, rows: "Rows", digits: int | None = None) -> None:
    """Write a CSV file, whole or not at all; not-a-number is an empty field, numbers get `digits` after the point.

    Raises:
        UserError: the file cannot be written.
    """
    import pandas

    form = None if digits is None else f"%.{digits}f"
    write_text(file, pandas.DataFrame(rows).to_csv(index=False, float_format=form))


def append_row(file: Path, row: Mapping[str, float]) -> None:
    """Append a row to a CSV file; the first row brings the header.

    Raises:
        UserError: the file cannot be written.
    """
    try:
        new = not file.exists()
        with file.open("a", newline="", encoding="utf-8", errors="surrogateescape") as handle:
            writer = csv.DictWriter(handle, fieldnames=list(row))
            if new:
                writer.writeheader()
            writer.writerow({k: f"{value:.6g}" if isinstance(value, float) else value for k, value in row.items()})
    except OSError as error:
        raise UserError(f"{file}: cannot be written ({error.strerror}); is the disk full?") from error


def read_csv(file: Path, *, growing: bool = False) -> list[dict[str, str]]:
    """Rows of a CSV file as text; of a growing one, which another program may be writing, those that are whole.

    Raises:
        UserError: the file is not there, is no text, or (unless it is growing) has a row that is not whole.
    """
    try:
        text = file.read_text(encoding="utf-8")
    except OSError as error:
        raise UserError(f"{file}: cannot be read ({error.strerror}); make it first") from error
    except UnicodeDecodeError as error:
        raise UserError(f"{file}: is not a text file; make it again") from error
    rows = list(csv.DictReader(io.StringIO(text, newline="")))
    whole = [None not in row and None not in row.values() for row in rows]
    if rows and not text.endswith("\n"):
        whole[-1] = False
    if growing:
        return [row for row, complete in zip(rows, whole, strict=True) if complete]
    if not all(whole):
        line = whole.index(False) + 2
        raise UserError(f"{file}: line {line} is not whole, the file was cut short or damaged; make it again")
    return rows
