"""The one place that knows Sacred: a program's command line, its configuration, its numbered run folder."""

import json
import os
import signal
import sys
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import ModuleType

warnings.filterwarnings("ignore", message="pkg_resources is deprecated")  # Sacred 0.8 needs it; setuptools is pinned

from sacred import SETTINGS, Experiment
from sacred.arg_parser import get_config_updates
from sacred.observers import FileStorageObserver
from sacred.utils import ConfigAddedError, SacredError, SacredInterrupt

from util.commands import start
from util.dataset import from_file
from util.errors import UserError
from util.runs import checks
from util.runs.folders import latest_checkpoint, numbered, run_folder
from util.runs.processes import held_signals

SETTINGS.CAPTURE_MODE = "no"  # capturing file descriptors fights with progress bars and worker processes
SETTINGS.CONFIG.READ_ONLY_CONFIG = False


class _Error(SacredError):
    """Printed as one line: Sacred shows the class's name before the message, so the class is named `error`."""

    def __init__(self, message: str) -> None:
        super().__init__(message, print_traceback=False, filter_traceback="never")


_Error.__name__, _Error.__qualname__, _Error.__module__ = "error", "error", "builtins"


class Interrupted(SacredInterrupt):
    """Ctrl-C or SIGTERM, after a checkpoint was written: the run's status says INTERRUPTED."""

    STATUS = "INTERRUPTED"


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

    def _create_run(self, command_name=None, config_updates=None, *args, **kwargs):
        checks.check_typed(config_updates or {}, self.tables.SECTIONS)
        run = super()._create_run(command_name, config_updates, *args, **kwargs)
        checks.check_types(run.config_modifications.typechanged)
        self.tables.check(run.config, run.config_modifications.modified)
        run._final_call = run._safe_call  # an observer that fails at the end (disk full) is a line, not a traceback
        run._start_heartbeat = held_signals()(run._start_heartbeat)  # a thread half started cannot be stopped
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
            config_updates = checks.with_resumed(self._with_newest(config_updates or {}))
            config_updates = with_dataset_file(config_updates, self.tables)
            return super().run(command_name, config_updates, *args, **kwargs)
        except ConfigAddedError as error:
            raise _Error(checks.unknown_key(*error.__conflicting_configs__, error.__config__)) from error
        except UserError as error:
            raise _Error(str(error)) from error
        except (Interrupted, KeyboardInterrupt) as error:
            print(f"interrupted: {str(error) or 'nothing more is written'}", file=sys.stderr)
            sys.exit(130)

    def _with_newest(self, updates: dict) -> dict:
        """`resume=newest` as the newest run of this method, data set and fold that left a checkpoint."""
        if updates.get("resume") != "newest":
            return updates
        updates = with_dataset_file({**updates, "resume": ""}, self.tables)
        folder = run_folder(self._create_run("print_config", updates).config)
        return {**updates, "resume": str(next(filter(latest_checkpoint, numbered(folder)), folder))}

    def _observe(self, options: dict, command: str) -> None:
        """One numbered folder per run; under torchrun only the first process writes."""
        if command == self.default_command and int(os.environ.get("RANK", 0)) == 0:
            folder = run_folder(options)
            checks.require_writable(folder)
            self.observers[:] = [FileStorageObserver(folder, copy_sources=False)]


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
    try:
        return plain(
            CommandLine("resolved", tables)._create_run("print_config", with_dataset_file(values, tables)).config
        )
    except ConfigAddedError as error:
        raise UserError(checks.unknown_key(*error.__conflicting_configs__, error.__config__)) from error


def plain(options: Mapping) -> dict:
    """The configuration as plain dictionaries, lists and values, without what its making left behind (`_recipe`)."""
    return {key: value for key, value in json.loads(json.dumps(options)).items() if not key.startswith("_")}
