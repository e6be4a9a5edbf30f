"""Files appear whole or not at all."""

import contextlib
import hashlib
import os
import secrets
from collections.abc import Iterator
from pathlib import Path

from util.errors import UserError

TEMPORARY = r"\.[0-9a-f]{8}\..+"  # names of files that are not whole yet


@contextlib.contextmanager
def whole_file(path: str | Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`; rename it to `path` when the block ends without an error.

    The temporary name starts with a dot and keeps the ending (writers choose their format by it). The content is
    flushed to disk before the rename: a crash or a full disk never leaves half a file under the final name.

    Raises:
        UserError: the folder cannot be made or written, or the disk is full.
    """
    path = Path(path)
    temporary = path.with_name(f".{secrets.token_hex(4)}.{path.name}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        with open(temporary, "rb+") as handle:
            os.fsync(handle.fileno())
        os.replace(temporary, path)
    except OSError as error:
        raise UserError(
            f"{path}: cannot be written ({error.strerror or error}); "
            "check that the folder is writable and the disk is not full"
        ) from error
    finally:
        with contextlib.suppress(OSError):  # the folder itself may be what is wrong
            temporary.unlink(missing_ok=True)


def hindrance(folder: Path) -> str:
    """Why nothing can be written to a folder, which is made if it is not there; "" if something can."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe = folder / f".probe_{os.getpid()}"
        probe.write_bytes(b"x" * 4096)
        probe.unlink()
    except OSError as error:
        return error.strerror or str(error)
    return ""


def write_text(path: str | Path, text: str) -> None:
    """Write a text file, UTF-8; names that the file system holds in another encoding keep their bytes.

    Raises:
        UserError: as `whole_file`.
    """
    with whole_file(path) as temporary:
        temporary.write_text(text, encoding="utf-8", errors="surrogateescape")


def utf8_name(path: str | Path) -> str:
    """A path for ITK, which ends the whole process at names that are no UTF-8.

    Raises:
        UserError: it is such a name.
    """
    try:
        str(path).encode()
    except UnicodeEncodeError as error:
        raise UserError(f"{path}: the name is not UTF-8 text; rename it, folders too") from error
    return str(path)


def digest(file: Path) -> str:
    """SHA-256 of a file.

    Raises:
        UserError: it cannot be read.
    """
    try:
        with open(file, "rb") as handle:
            return hashlib.file_digest(handle, "sha256").hexdigest()
    except OSError as error:
        raise UserError(f"{file}: cannot be read ({error.strerror})") from error
