"""How commands start."""

import argparse
import getpass
import importlib
import os
import pwd
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT
from util.commands import guarded, parser, start


def unknown(identifier: int):
    raise KeyError(f"getpwuid(): uid not found: {identifier}")


def test_a_user_whom_the_system_does_not_know_has_a_name_and_a_home(monkeypatch):
    for name in ("HOME", "USER", "LOGNAME", "LNAME", "USERNAME"):
        monkeypatch.setenv(name, "")  # so that it is as before when the test ends
        monkeypatch.delenv(name)
    monkeypatch.setattr(pwd, "getpwuid", unknown)
    start()
    assert getpass.getuser().startswith("user") and Path.home().is_dir()


@pytest.mark.parametrize("variable", ["LC_ALL", "LANG"])
def test_names_in_any_language_work_where_the_locale_is_c(tmp_path, variable):
    places = {name: value for name, value in os.environ.items() if name not in ("LC_ALL", "LANG", "LC_CTYPE")}
    environment = {**places, variable: "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    program = "import sys; from util.commands import start; start(); print(sys.argv[1]); open(sys.argv[1], 'w').close()"
    call = [sys.executable, "-c", program, str(tmp_path / "Müller")]
    done = subprocess.run(call, cwd=ROOT, capture_output=True, env=environment)
    assert done.stdout.decode() == f"{tmp_path}/Müller\n" and (tmp_path / "Müller").exists()


PROGRAM = """
import sys
from util.commands import guarded, parser, start

def work():
    for number in range(9999):
        print("a line", number), print("another", file=sys.stderr)
    with open(sys.argv[1], "w") as file:
        file.write("done")
        print("not into this file", flush=True)
    return {}

start()
sys.exit(guarded(work))
"""


@pytest.mark.parametrize("reader", ["| head -n 1", "2>&1 | head -n 1", ">&- 2>&-", "> /dev/full 2>&1"])
def test_work_goes_on_where_nobody_reads_what_is_printed(tmp_path, reader):
    call = f"set -o pipefail; {sys.executable} -c '{PROGRAM}' {tmp_path}/made {reader}"
    assert subprocess.run(["bash", "-c", call], cwd=ROOT, capture_output=True).returncode == 0
    assert (tmp_path / "made").read_text("utf-8") == "done"


def test_what_nobody_foresaw_is_a_sentence_too(capsys, monkeypatch):
    def work():
        raise KeyError("nobody foresaw this")

    monkeypatch.delenv("FSMIS_TRACEBACK", raising=False)
    assert guarded(work) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line == "error: unexpected KeyError: 'nobody foresaw this' (FSMIS_TRACEBACK=1 shows where)"
    monkeypatch.setenv("FSMIS_TRACEBACK", "1")
    with pytest.raises(KeyError):
        guarded(work)


def test_help_tells_every_default_once():
    command = parser("What it does.")
    command.add_argument("--jobs", type=int, default=1, help="at once")
    command.add_argument("--rest", type=int, default=0, help="of them (default: none)")
    command.add_argument("--all", action="store_true", help="of them")
    command.add_argument("--out", help="folder")
    lines = [" ".join(line.split()) for line in command.format_help().splitlines() if " --" in line[:4]]
    assert lines == [
        "--jobs JOBS at once (default: 1)", "--rest REST of them (default: none)", "--all of them", "--out OUT folder"
    ]  # fmt: skip


COMMANDS = (
    "data.chaost2", "data.sabs", "data.cmr", "data.custom", "data.phantom", "data.phantom_raw", "data.check",
    "data.maps", "supervoxels.generate", "util.report.__main__", "util.shipped", "script.reproduce.__main__", "predict",
)  # fmt: skip


@pytest.mark.parametrize("command", COMMANDS)
def test_every_option_says_what_it_does_and_what_it_is_otherwise(command, monkeypatch):
    seen = []

    def parse_args(self, *_):
        seen.append(self)
        raise SystemExit

    for name in ("parse_args", "parse_intermixed_args"):
        monkeypatch.setattr(argparse.ArgumentParser, name, parse_args)
    with pytest.raises(SystemExit):
        importlib.import_module(command).main([])
    (built,) = seen
    told = built.formatter_class(command)
    for action in built._actions:
        assert action.help, f"{command} {action.dest}"
        if action.default not in (None, False, True, [], argparse.SUPPRESS):
            assert "default" in told._get_help_string(action), f"{command} {action.dest}"
