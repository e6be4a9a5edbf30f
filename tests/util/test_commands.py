"""How commands start."""

import getpass
import pwd
from pathlib import Path

import pytest

from util.commands import guarded, start


def unknown(identifier: int):
    raise KeyError(f"getpwuid(): uid not found: {identifier}")


def test_a_user_whom_the_system_does_not_know_has_a_name_and_a_home(monkeypatch):
    for name in ("HOME", "USER", "LOGNAME", "LNAME", "USERNAME"):
        monkeypatch.setenv(name, "")  # so that it is as before when the test ends
        monkeypatch.delenv(name)
    monkeypatch.setattr(pwd, "getpwuid", unknown)
    start()
    assert getpass.getuser().startswith("user") and Path.home().is_dir()


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
