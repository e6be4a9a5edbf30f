"""The one place that knows Sacred: a program's command line, its configuration, its numbered run folder.

Users' own observers (`-F`, `-s`, `-t`, `-m`, `-S`) get every run beside that folder, each under a number of its own.
"""

import copy
import functools
import itertools
import json
import os
import random
import signal
import sys
import time
import traceback
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

warnings.filterwarnings("ignore", message="pkg_resources is deprecated")  # Sacred 0.8 needs it; setuptools is pinned
warnings.filterwarnings("ignore", message="The ``declarative_base", module="sacred")  # it works with SQLAlchemy 2
warnings.filterwarnings("ignore", message="Object of type <", module="sacred")  # ... though it says this of new rows

from sacred import SETTINGS, Experiment
from sacred.arg_parser import get_config_updates
from sacred.dependencies import gather_sources_and_dependencies
from sacred.observers import (
    FileStorageObserver,
    MongoObserver,
    RunObserver,
    S3Observer,
    SqlObserver,
    TinyDbObserver,
)
from sacred.run import Run
from sacred.utils import ConfigAddedError, SacredError, SacredInterrupt

from util.commands import start
from util.dataset import from_file
from util.errors import UserError
from util.files import hindrance
from util.locks import claimed
from util.runs import checks
from util.runs.folders import latest_checkpoint, numbered, run_folder
from util.runs.processes import held_signals

SETTINGS.CAPTURE_MODE = "no"  # capturing file descriptors fights with progress bars and worker processes
SETTINGS.CONFIG.READ_ONLY_CONFIG = False
SETTINGS.DISCOVER_SOURCES = "none"  # the program alone: TinyDB opens every source of every run at once
ATTEMPTS = 20

# what observers import when they are asked for -> what is installed then
OBSERVER_PACKAGES = {
    "sqlalchemy": "sqlalchemy",
    **dict.fromkeys(("tinydb", "tinydb_serialization", "hashfs"), "tinydb tinydb-serialization hashfs"),
    **dict.fromkeys(("pymongo", "gridfs", "bson"), "pymongo"),
    **{"psycopg": "psycopg[binary]", "psycopg2": "psycopg2-binary", "MySQLdb": "mysqlclient", "pymysql": "pymysql"},
    "boto3": "boto3",
    "google": "google-cloud-storage",
}


class _Error(SacredError):
    """Printed as one line: Sacred shows the class's name before the message, so the class is named `error`."""

    def __init__(self, message: str) -> None:
        super().__init__(message, print_traceback=False, filter_traceback="never")


_Error.__name__, _Error.__qualname__, _Error.__module__ = "error", "error", "builtins"


class Interrupted(SacredInterrupt):
    """Ctrl-C or SIGTERM, after a checkpoint was written: the run's status says INTERRUPTED."""

    STATUS = "INTERRUPTED"


class RunFolder(FileStorageObserver):
    """The run's numbered folder, with run.json, config.json and all that the programs write."""

    def __init__(self, base: Path) -> None:
        super().__init__(base, copy_sources=False, priority=1000)  # it starts first: its number is the run's


def folder_of(run: Run) -> Path | None:
    """The folder of a run; None if it has none: with `-u`, and in all processes of a group but the first."""
    return next((Path(observer.dir) for observer in run.observers if isinstance(observer, RunFolder)), None)


class CommandLine(Experiment):
    """A Sacred experiment whose mistakes are errors in one sentence and whose interruptions leave quietly.

    Args:
        name: of the program.
        tables: the module config.py, with DATASETS, FOLDS, `options` and `check`; given, for util/ imports nothing
            from above.
    """

    def __init__(self, name: str, tables: ModuleType) -> None:
        super().__init__(name, save_git_info=False)
        self.tables = tables
        self.config(tables.options)
        self.config_hook(lambda config, command_name, logger: self._observe(config, command_name))

    def main(self, function: Callable) -> Callable:
        """The program's command: `--help` and observers tell of its module, not of this one."""
        program = vars(sys.modules[function.__module__])
        self.doc = f"{program['__doc__']}\n\nThe command print_config shows every option with its default."
        self.base_dir = str(Path(program["__file__"]).resolve().parent)
        self.mainfile, self.sources, self.dependencies = gather_sources_and_dependencies(program, False, self.base_dir)
        return super().main(function)

    def _create_run(self, command_name=None, config_updates=None, *args, **kwargs):
        checks.check_typed(config_updates or {}, self.tables.SECTIONS)
        updates = with_dataset_file(config_updates or {}, self.tables)
        try:
            run = super()._create_run(command_name, updates, *args, **kwargs)
        except ConfigAddedError as error:
            raise UserError(checks.unknown_key(*error.__conflicting_configs__, error.__config__)) from error
        except ModuleNotFoundError as error:
            package = OBSERVER_PACKAGES.get((error.name or "").split(".")[0])
            if package is None:
                raise
            raise UserError(f"this observer needs a package that is not here: pip install {package}") from error
        except Exception as error:  # every store fails in its own ways
            flag = _refused_option(error)
            if flag is None:
                raise
            raise UserError(f"{flag}: cannot be followed ({_short(error)}); --help shows its form") from error
        checks.check_types(run.config_modifications.typechanged)
        self.tables.check(run.config, run.config_modifications.modified)
        for key in [key for key in run.config if key.startswith("_")]:
            del run.config[key]  # what its making left behind
        if not _is_first():
            run.observers = []
        for observer in run.observers:
            observer.started_event = functools.partial(_start, observer, run)
            if isinstance(observer, TinyDbObserver):
                observer.save = functools.partial(_save_alone, observer)
        run._final_call = run._safe_call  # an observer that fails at the end (disk full) is a line, not a traceback
        for name in ("_emit_started", "_start_heartbeat"):  # what has half begun is not told of the end
            setattr(run, name, held_signals()(getattr(run, name)))
        return run

    def run_commandline(self, argv=None):
        """Run what the command line says."""
        start()
        return super().run_commandline(argv)

    def run(self, command_name=None, config_updates=None, *args, **kwargs):
        """Run a command; everything a user can put right is raised as one line."""
        # without this, SIGTERM (Slurm's time limit) kills at once and the run stays RUNNING for ever
        signal.signal(signal.SIGTERM, signal.default_int_handler)
        try:
            # first, for an earlier run knows the full path of its data set's file
            updates = with_dataset_file(config_updates or {}, self.tables)
            updates = checks.with_resumed(self._with_newest(updates))
            return super().run(command_name, updates, *args, **kwargs)
        except UserError as error:
            raise _Error(str(error)) from error
        except (Interrupted, KeyboardInterrupt) as error:
            print(f"interrupted: {str(error) or 'nothing more is written'}", file=sys.stderr)
            sys.exit(130)

    def _with_newest(self, updates: dict) -> dict:
        """`resume=newest` as the newest run of this method, data set and fold that left a checkpoint."""
        if updates.get("resume") != "newest":
            return updates
        folder = run_folder(self._create_run("print_config", {**updates, "resume": ""}).config)
        return {**updates, "resume": str(next(filter(latest_checkpoint, numbered(folder)), folder))}

    def _observe(self, options: dict, command: str) -> None:
        """One numbered folder per run; under torchrun only the first process writes."""
        if command == self.default_command and _is_first():
            folder = run_folder(options)
            if why := hindrance(folder):  # before hours of work are spent
                raise UserError(
                    f"{folder}: results cannot be written there ({why}); choose another folder with runs=..."
                )
            others = [observer for observer in self.observers if not isinstance(observer, RunFolder)]
            self.observers[:] = [RunFolder(folder), *others]


def _is_first() -> bool:
    """True unless torchrun started this process as another than the first."""
    return int(os.environ.get("RANK", 0)) == 0


def _refused_option(error: Exception) -> str | None:
    """The option of Sacred (`--sql`) that could not be followed, if that is what the error is about."""
    for frame, _ in traceback.walk_tb(error.__traceback__):
        module, name = frame.f_globals.get("__name__", ""), frame.f_code.co_name
        if module.startswith("sacred.") and name.endswith("_option"):
            return f"--{name.removesuffix('_option')}"
    return None


def _short(error: Exception) -> str:
    return " ".join(str(error).split())[:200] or "no more is known"


def _start(observer: RunObserver, run: Run, **facts: Any) -> str | int | None:
    """Let an observer begin a run, under a number of its own unless `--id` was typed.

    Sacred gives all observers the number that the first of them chose, which in another store may be taken, and the
    facts as the ones before changed them.

    Raises:
        UserError: the observer cannot write the run down.
    """
    try:
        return _started(observer, run.meta_info["options"].get("--id"), facts)
    except BaseException:  # neither this one nor those behind it have begun, so none is told of the end
        run.observers = list(itertools.takewhile(lambda other: other is not observer, run.observers))
        raise


def _started(observer: RunObserver, number: str | None, facts: dict) -> str | int | None:
    """Begin; SQL stores choose numbers without a lock and make their tables at the first run: who is late, retries."""
    if isinstance(observer, MongoObserver) and (number or "").isdigit():
        number = int(number)  # it counts on from the largest, and to it every text is larger than every number
    for left in reversed(range(ATTEMPTS)):
        try:
            own = _number_in_s3(observer) if isinstance(observer, S3Observer) and number is None else number
            return type(observer).started_event(observer, **copy.deepcopy(facts | {"_id": own}))
        except Exception as error:  # every store fails in its own ways
            if isinstance(error, FileExistsError) and number is not None:
                there = error.filename or "this number"
                raise UserError(f"--id={number}: {there} is there; leave the option out") from error
            late = isinstance(error, FileExistsError) or "BucketAlready" in str(error)
            if not left or not (late or isinstance(observer, SqlObserver)):
                raise UserError(f"{type(observer).__name__} cannot write the run down: {_short(error)}") from error
            if isinstance(observer, SqlObserver):
                observer.session.rollback()
            time.sleep(random.uniform(0, 0.3))
    return None


def _number_in_s3(observer: S3Observer) -> int:
    """A number that no other run has: an object of its name is written only where there is none."""
    for number in itertools.count(observer._determine_run_dir(None)):  # makes the bucket, too
        try:
            observer.s3.Object(observer.bucket, f"{observer.basedir}/_numbers/{number}").put(IfNoneMatch="*")
            return number
        except observer.s3.meta.client.exceptions.ClientError as error:
            if error.response["Error"]["Code"] not in ("PreconditionFailed", "ConditionalRequestConflict"):
                raise


def _save_alone(observer: TinyDbObserver) -> None:
    """One process at a time: TinyDB reads its file, changes it and writes it whole."""
    with claimed(Path(observer.root), wait=True, quiet=True):
        type(observer).save(observer)


def with_dataset_file(updates: dict, tables: ModuleType) -> dict:
    """A data set that is named by its file becomes a row of DATASETS and FOLDS under the file's full path.

    Raises:
        UserError: the file cannot be read, or does not describe a data set.
    """
    name = updates.get("dataset")
    if not isinstance(name, str) or not name.endswith(".json"):
        return updates
    path = str(Path(name).resolve())
    tables.DATASETS[path], tables.FOLDS[path] = from_file(path)
    return {**updates, "dataset": path}


def resolved(updates: Sequence[str], tables: ModuleType) -> dict:
    """The whole configuration that `with KEY=VALUE ...` would run with, as plain values.

    Raises:
        UserError: as the programs themselves would.
    """
    values, words = get_config_updates(list(updates))
    if words:
        raise UserError(f"{words[0]}: write key=value, such as train.steps=2000")
    return plain(CommandLine("resolved", tables)._create_run("print_config", values).config)


def plain(options: Mapping) -> dict:
    """The configuration as plain dictionaries, lists and values."""
    return json.loads(json.dumps(options))
