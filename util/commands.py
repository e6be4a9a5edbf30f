"""What commands have in common: how they start, their help, how they end (failures as sentences, a truthful status)."""

import argparse
import getpass
import io
import os
import sys
import tempfile
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

from tqdm import tqdm

from util.errors import UserError
from util.parallel import BACKENDS, Backend


def start() -> None:
    """Make names and texts in any language work, whatever the locale is.

    Under LC_ALL=C Python knows no letter but ASCII, and ITK aborts on a file name that has one: the program is started
    again in UTF-8 mode. Under other locales a letter that cannot be printed is written as an escape. Work goes on where
    nobody reads what is printed (`| head`, `>&-`, a full disk). A user whom the system does not know gets a name.
    """
    if sys.getfilesystemencoding() == "ascii" and os.environ.get("PYTHONUTF8") != "1":
        os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], {**os.environ, "PYTHONUTF8": "1"})
    while (free := os.open(os.devnull, os.O_RDWR)) <= 2:  # closed: else libraries would print into the next file
        pass
    os.close(free)
    for number, name in ((1, "stdout"), (2, "stderr")):
        stream = getattr(sys, name)
        if stream is getattr(sys, f"__{name}__"):  # and nobody looks at what is printed, as tests do
            encoding = stream.encoding if stream else "utf-8"
            buffer = io.BufferedWriter(_Unread(number, "w", closefd=False))
            setattr(sys, name, io.TextIOWrapper(buffer, encoding, "backslashreplace", line_buffering=True))
    be_somebody()


class _Unread(io.FileIO):
    """A stream whose reader may go away."""

    def write(self, data: bytes) -> int | None:
        try:
            return super().write(data)
        except OSError:
            return len(data)


def be_somebody() -> None:
    """A name and a home for a user whom the system does not know, as in containers: torch and others ask for them."""
    try:
        getpass.getuser(), Path.home()
    except (KeyError, OSError, RuntimeError):
        os.environ.setdefault("LOGNAME", f"user{os.getuid()}")
        os.environ.setdefault("HOME", tempfile.gettempdir())


def parser(doc: str, prog: str | None = None) -> argparse.ArgumentParser:
    """The parser of a command; its help is the module's docstring: first paragraph, options, the rest."""
    start()
    about, _, examples = doc.partition("\n\n")
    return argparse.ArgumentParser(prog=prog, description=about, epilog=examples, formatter_class=Help)


class Help(argparse.RawDescriptionHelpFormatter):
    """The text of an option ends with its default, unless that is nothing or is told already."""

    def _get_help_string(self, action: argparse.Action) -> str:
        text, value = action.help or "", action.default
        told = "default" in text or value is None or isinstance(value, bool) or value in ("", [], argparse.SUPPRESS)
        return text if told or not action.option_strings else f"{text} (default: %(default)s)".lstrip()


def guarded(work: Callable[[], Mapping[int | str, str] | int]) -> int:
    """Run it, print every failure as a sentence, return the exit status: 0, 1 after any failure, 130 after Ctrl-C.

    `work` returns what went wrong, number of a scan, or a name -> sentence, or how many sentences it has printed
    itself; a UserError stops everything.
    """
    try:
        failures = work()
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted; the files that are there are whole, run the same command to make the rest", file=sys.stderr)
        return 130
    except Exception as error:  # nobody foresaw it
        if os.environ.get("FSMIS_TRACEBACK"):
            raise
        why = str(error).strip().splitlines()[:1] or ["no more is known"]
        print(f"error: unexpected {type(error).__name__}: {why[0]} (FSMIS_TRACEBACK=1 shows where)", file=sys.stderr)
        return 1
    for name, failure in failures.items() if isinstance(failures, Mapping) else ():
        print(f"{f'scan {name}' if isinstance(name, int) else name} failed: {failure}", file=sys.stderr)
    return 1 if failures else 0


def at_least(least: int) -> Callable[[str], int]:
    """Reads a whole number that is not smaller, for a command line."""

    def whole_number(text: str) -> int:
        number = int(text)
        if number < least:
            raise argparse.ArgumentTypeError(f"{text} is not a whole number, {least} or larger")
        return number

    return whole_number


positive = at_least(1)


def jobs(text: str) -> int:
    """Reads how many scans are worked on at once; -1 takes one per core."""
    if int(text) == 0:
        raise argparse.ArgumentTypeError("0 jobs can do nothing; -1 takes one per core")
    return int(text)


def add_backend(add: Callable) -> None:
    """Give a command the options that say who works, `add` being its `add_argument`; `backend_of` reads them."""
    help_text = "processes, threads, or Dask (pip install distributed; default: loky)"
    add("--backend", choices=BACKENDS, default="loky", help=help_text)
    help_text = "with dask: a running cluster that sees the same folders, as tcp://host:8786 (default: this machine)"
    add("--scheduler", metavar="ADDRESS", help=help_text)


def backend_of(options: argparse.Namespace) -> Backend:
    """Who works, as the command line says.

    Raises:
        UserError: a scheduler without Dask.
    """
    if options.scheduler and options.backend != "dask":
        raise UserError(f"--scheduler {options.scheduler}: only --backend dask has one")
    return Backend(options.backend, options.scheduler)


def warn(sentences: Iterable[str]) -> None:
    """Print what is done in spite of a doubt, beside any progress bar."""
    for sentence in sentences:
        tqdm.write(f"warning: {sentence}", file=sys.stderr)


def named_label(text: str) -> tuple[str, int]:
    """`liver=1` as ("liver", 1), for a command line."""
    name, _, number = text.rpartition("=")
    if not name or not number.isdigit() or int(number) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a name with its label id, such as liver=1")
    return name, int(number)
