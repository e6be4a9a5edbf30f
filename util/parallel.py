"""Work on many scans side by side: a bar, failures as sentences, and no scan stops the others."""

import contextlib
import threading
from collections.abc import Callable, Hashable, Iterator, Mapping
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import joblib
from tqdm import tqdm

from util.errors import UserError

Name = TypeVar("Name", bound=Hashable)
BACKENDS = ("loky", "threading", "dask")


@dataclass(frozen=True)
class Backend:
    """Who works on the scans.

    Attributes:
        name: "loky" (processes of this machine), "threading", or "dask", a cluster that sees the same folders.
        scheduler: address of the cluster; None starts one on this machine.
    """

    name: str = "loky"
    scheduler: str | None = None

    @contextlib.contextmanager
    def workers(self, jobs: int) -> Iterator[Callable[[Callable], Callable]]:
        """Make joblib use it within the block. Yields what a call must be wrapped in.

        Raises:
            UserError: Dask is not installed, or the cluster cannot be reached.
        """
        if self.name == "dask":
            with dask_client(jobs, self.scheduler) as client, joblib.parallel_config(backend="dask", client=client):
                yield lambda work: work
            return
        with joblib.parallel_config(backend=self.name):
            if self.name == "loky":
                yield lambda work: work
                return
            count = joblib.effective_n_jobs(jobs)
            places = threading.Semaphore(count)

            def in_a_place(work: Callable) -> Callable:
                def call(*arguments):
                    with places:
                        return work(*arguments)

                return call

            try:
                yield in_a_place
            except KeyboardInterrupt:
                # Python must not end while a thread is inside a kernel or a writer: let them finish, no other begin
                for _ in range(count):
                    places.acquire()
                raise


def dask_client(jobs: int, scheduler: str | None):
    """A client of the cluster at `scheduler`, or of a new one with `jobs` processes on this machine.

    Raises:
        UserError: Dask is not installed, or the cluster cannot be reached.
    """
    try:
        from distributed import Client
    except ImportError as error:
        raise UserError("--backend dask needs Dask: pip install distributed") from error
    if scheduler is None:
        return Client(n_workers=joblib.effective_n_jobs(jobs), threads_per_worker=1, dashboard_address=None)
    try:
        return Client(scheduler, timeout=30)
    except (OSError, ValueError) as error:
        raise UserError(f"--scheduler {scheduler}: cannot be reached ({error})") from error


PROCESSES = Backend()


class Done(NamedTuple):
    """What became of a scan: the result, or why there is none, in a sentence."""

    result: Any = None
    failure: str = ""


def each_scan(
    work: Callable,
    scans: Mapping[Name, tuple],
    jobs: int,
    title: str = "",
    file: Callable[..., Path] = lambda first, *rest: first,
    backend: Backend = PROCESSES,
    silent: bool = False,
) -> Iterator[tuple[Name, Done]]:
    """Call `work` for every scan; results come in the order of the scans.

    Args:
        work: what is called, in processes of their own if there are several jobs; on a cluster it must be importable.
        scans: name or number of a scan -> arguments of `work`.
        jobs: scans at once; -1 = one per core.
        title: of the bar.
        file: arguments -> the file that a sentence names.
        backend: who does it.
        silent: without a bar.

    Raises:
        UserError: there is no such backend here.
    """
    todo = {name: (work, arguments, str(file(*arguments))) for name, arguments in scans.items()}
    bar = tqdm(total=len(todo), desc=title or None, unit="scan", disable=None if todo and not silent else True)
    with bar, backend.workers(jobs) if todo else contextlib.nullcontext() as placed:
        while todo:
            try:
                calls = [joblib.delayed(placed(attempt))(*call) for call in todo.values()]
                results = joblib.Parallel(n_jobs=min(jobs, len(todo)), return_as="generator")(calls)
                for name, done in zip(list(todo), results, strict=True):
                    yield name, done
                    del todo[name]
                    bar.update()
            except BrokenProcessPool:
                # nobody knows which one it was: the next is tried alone, in a process that it may take down, too
                name = next(iter(todo))
                yield name, _alone(*todo.pop(name))
                bar.update()


def _alone(*call: Any) -> Done:
    try:
        # two jobs, since one would be this very process
        return joblib.Parallel(n_jobs=2)([joblib.delayed(attempt)(*call)])[0]
    except BrokenProcessPool:
        return Done(
            failure=f"{call[-1]}: its process was killed, perhaps for want of memory; try again with fewer at once"
        )


def attempt(work: Callable, arguments: tuple, file: str) -> Done:
    """Call it; a failure becomes a sentence that names the file.

    Libraries fail in many ways on damaged files, and what nobody foresaw must not cost the other scans either.
    """
    try:
        return Done(work(*arguments))
    except UserError as error:
        return Done(failure=str(error))
    except MemoryError:
        return Done(failure=f"{file}: not enough memory; run again with fewer at once")
    except Exception as error:
        return Done(failure=f"{file}: unexpected {type(error).__name__}: {error}")
