"""How commands start."""

import getpass
import pwd
from pathlib import Path

from util.commands import start


def unknown(identifier: int):
    raise KeyError(f"getpwuid(): uid not found: {identifier}")


def test_a_user_whom_the_system_does_not_know_has_a_name_and_a_home(monkeypatch):
    for name in ("HOME", "USER", "LOGNAME", "LNAME", "USERNAME"):
        monkeypatch.setenv(name, "")  # so that it is as before when the test ends
        monkeypatch.delenv(name)
    monkeypatch.setattr(pwd, "getpwuid", unknown)
    start()
    assert getpass.getuser().startswith("user") and Path.home().is_dir()
