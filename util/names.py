"""Names that people give to organs and scans, as file names and as keys: different ones stay different."""

import re
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from pathlib import PureWindowsPath

from util.errors import UserError

RESERVED = ("all", "background", "mean")  # words of the command line and of tables
LONGEST = 100  # characters; file systems take 255 bytes, and a scan's name comes before it


def safe_names(names: Iterable[str]) -> dict[str, str]:
    """Every name with the file name (without ending) that stands for it.

    Raises:
        UserError: a name is empty, too long or reserved, or two would be one file on some file system.
    """
    files: dict[str, str] = {}
    for name in names:
        file = re.sub(r"[^\w.-]+", "_", unicodedata.normalize("NFC", name)).lstrip("._")
        if not re.search(r"\w", file.replace("_", "")) or len(name) > LONGEST or "\n" in name:
            raise UserError(f"{name!r}: is no name; letters or digits are needed, at most {LONGEST} characters")
        if name.strip().lower() in RESERVED or PureWindowsPath(file).is_reserved():
            raise UserError(f"{name!r}: is reserved, it means something else; choose another name")
        if mark := next((mark for mark in ",/\\" if mark in name), ""):
            raise UserError(f"{name!r}: has a {mark}, which stands between names or folders; choose another name")
        files[name] = file
    require_distinct(files)
    return files


def stretches(numbers: Iterable[int]) -> str:
    """Numbers of scans in a sentence, however many they are.

    Examples:
        >>> stretches([2, 3, 5, 8, 9, 10])
        '2, 3, 5, 8-10'
    """
    found: list[list[int]] = []
    for number in sorted(numbers):
        if found and number == found[-1][-1] + 1:
            found[-1].append(number)
        else:
            found.append([number])
    parts = (f"{one[0]}-{one[-1]}" if len(one) > 2 else ", ".join(map(str, one)) for one in found)
    return ", ".join(parts)


def require_distinct(files: Mapping[str, str], what: str = "names") -> None:
    """Refuse file names that are one on some file system: case and the way to write accents do not count.

    `files` are what has the name -> the file name; `what` they are, the message says.

    Raises:
        UserError: names both.
    """
    owners: dict[str, str] = {}
    for owner, file in files.items():
        key = unicodedata.normalize("NFKC", file).casefold()
        if key in owners:
            raise UserError(f"{owners[key]!r} and {owner!r}: as {what} both would be {file}; rename one")
        owners[key] = owner


def distinct_labels(pairs: Sequence[tuple[str, int]]) -> dict[str, int]:
    """Names with their label ids, as `--organs` gave them.

    Raises:
        UserError: a name or an id stands twice, or a name cannot be a file name.
    """
    for at in (0, 1):
        values = [pair[at] for pair in pairs]
        twice = next((pair for pair in pairs if values.count(pair[at]) > 1), None)
        if twice:
            both = " ".join(f"{name}={number}" for name, number in pairs if (name, number)[at] == twice[at])
            raise UserError(f"--organs {both}: one name stands for one label id; change one")
    for name, number in pairs:
        if re.fullmatch(r"label \d+", name) and name != f"label {number}":
            raise UserError(f"--organs {name}={number}: this is what label {name[6:]} is called; choose another name")
    safe_names(name for name, _ in pairs)
    return dict(pairs)
