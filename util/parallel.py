"""Work on many scans side by side: a bar, failures as sentences, and no scan stops the others."""

from collections.abc import Callable, Hashable, Iterator, Mapping
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import joblib
from tqdm import tqdm

from util.errors import UserError

Name = TypeVar("Name", bound=Hashable)


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
) -> Iterator[tuple[Name, Done]]:
    """Call `work` for every scan; results come in the order of the scans.

    Args:
        work: what is called, in processes of their own if there are several jobs.
        scans: name or number of a scan -> arguments of `work`.
        jobs: scans at once; -1 = one per core.
        title: of the bar.
        file: arguments -> the file that a sentence names.
    """
    todo = {name: (work, arguments, str(file(*arguments))) for name, arguments in scans.items()}
    with tqdm(total=len(todo), desc=title or None, unit="scan", disable=None if todo else True) as bar:
        while todo:
            try:
                calls = [joblib.delayed(attempt)(*call) for call in todo.values()]
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
        return Done(failure=f"{call[-1]}: its process was killed, perhaps for want of memory; try again, fewer --jobs")


def attempt(work: Callable, arguments: tuple, file: str) -> Done:
    """Call it; a failure becomes a sentence that names the file.

    Libraries fail in many ways on damaged files, and what nobody foresaw must not cost the other scans either.
    """
    try:
        return Done(work(*arguments))
    except UserError as error:
        return Done(failure=str(error))
    except MemoryError:
        return Done(failure=f"{file}: not enough memory; run again with fewer --jobs")
    except Exception as error:
        return Done(failure=f"{file}: unexpected {type(error).__name__}: {error}")
