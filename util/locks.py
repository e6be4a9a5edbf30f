"""Locks of the system: it takes them from a process that ends, however it ends, so none is ever left behind."""

import contextlib
import os
import socket
import sys
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path

from util.errors import UserError

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

LOCK = ".lock"


class Lock:
    """A lock file that this process holds, alone or together with others that share it.

    Args:
        file: in a folder that is there; the name starts with a dot.
        shared: others may share it.
        wait: for its end, if somebody else has it; what it is, is said.
        quiet: it is not said, for the wait is short.

    Raises:
        UserError: somebody else has it, and nobody waits.
        OSError: the file cannot be written.
    """

    def __init__(self, file: Path, *, shared: bool = False, wait: bool = False, quiet: bool = False) -> None:
        self.file, self.shared, self.handle = file, shared, None
        while self.handle is None:
            self.handle = _locked(file, shared, wait, quiet)

    def __del__(self) -> None:
        if self.handle is not None:
            os.close(self.handle)

    def alone(self) -> bool:
        """Make a shared lock this process's own, if nobody else has it. `share` must follow, whatever the answer."""
        try:
            if fcntl:
                fcntl.flock(self.handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            return False
        return True

    def share(self) -> None:
        """Share the lock with others."""
        self.shared = True
        if fcntl:
            with contextlib.suppress(OSError):
                fcntl.flock(self.handle, fcntl.LOCK_SH)

    def release(self) -> None:
        """Give it back; the last one removes the file."""
        if not self.shared or self.alone():
            self.file.unlink(missing_ok=True)
        handle, self.handle = self.handle, None
        os.close(handle)


@contextlib.contextmanager
def claimed(folder: Path, *, name: str = LOCK, **how: bool) -> Iterator[Lock]:
    """Have a folder for this process, alone or as `how` says (see `Lock`); made if it is not there.

    Raises:
        UserError: another process has it and nobody waits, or the folder cannot be written.
    """
    if folder.exists() and not folder.is_dir():
        raise UserError(f"{folder}: is a file; name a folder to write to")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = Lock(folder / name, **how)
    except OSError as error:
        raise UserError(
            f"{folder}: cannot be written ({error.strerror}); check its permissions, or name another folder"
        ) from error
    try:
        yield lock
    finally:
        lock.release()


def _locked(file: Path, shared: bool, wait: bool, quiet: bool) -> int | None:
    """The open lock file, None where its last holder has just removed it."""
    handle = os.open(file, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        if fcntl:
            _take(handle, file, shared, wait, quiet)
        held = os.fstat(handle).st_ino == file.stat().st_ino
    except FileNotFoundError:
        held = False
    except BaseException:
        os.close(handle)
        raise
    if not held:
        os.close(handle)
        return None
    holder = f"process {os.getpid()} on {socket.gethostname()}, started {datetime.now():%d %B %H:%M:%S},"
    os.ftruncate(handle, 0)
    os.pwrite(handle, b"" if shared else holder.encode(), 0)
    return handle


def _take(handle: int, file: Path, shared: bool, wait: bool, quiet: bool) -> None:
    kind = fcntl.LOCK_SH if shared else fcntl.LOCK_EX
    try:
        fcntl.flock(handle, kind | fcntl.LOCK_NB)
    except BlockingIOError as error:
        holder = os.pread(handle, 500, 0).decode() or "another process"
        if not wait:
            raise UserError(
                f"{file.parent}: {holder} works there; wait for its end, or choose another folder"
            ) from error
        if not quiet:
            print(f"{file.parent}: {holder} works there; waiting for its end", file=sys.stderr)
        fcntl.flock(handle, kind)
    except OSError as error:  # some network drives know no locks
        print(f"warning: {file.parent}: {error.strerror}; do not start a second command there", file=sys.stderr)
