"""How a command that works on many scans ends: failures as sentences, a truthful exit status."""

import argparse
import sys
from collections.abc import Callable, Mapping

from util.errors import UserError


def guarded(work: Callable[[], Mapping[int | str, str]]) -> int:
    """Run it, print every failure as a sentence, return the exit status.

    Args:
        work: returns what went wrong, number of a scan, or a name -> sentence; a UserError stops everything.

    Returns:
        0 if nothing failed, 1 after a failure, 130 after Ctrl-C.
    """
    try:
        failures = work()
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted; the files that are there are whole, run the same command to make the rest", file=sys.stderr)
        return 130
    for name, failure in failures.items():
        print(f"{f'scan {name}' if isinstance(name, int) else name} failed: {failure}", file=sys.stderr)
    return 1 if failures else 0


def named_label(text: str) -> tuple[str, int]:
    """`liver=1` as ("liver", 1), for a command line."""
    name, _, number = text.rpartition("=")
    if not name or not number.isdigit() or int(number) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a name with its label id, such as liver=1")
    return name, int(number)
