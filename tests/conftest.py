"""Shared places of the tests."""

import os
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
SHARED = Path(os.environ.get("FSMIS_SHARED", ROOT.parent / "shared"))


@pytest.fixture(scope="session")
def parity() -> Path:
    """Folder of the golden numbers (set FSMIS_SHARED to the folder that holds parity/ and data/)."""
    return _shared("parity")


@pytest.fixture(scope="session")
def chaost2() -> Path:
    """Folder of the real CHAOST2 scans."""
    return _shared("data") / "CHAOST2"


def _shared(name: str) -> Path:
    folder = SHARED / name
    if not folder.is_dir():
        pytest.skip(f"{folder} is not here; set FSMIS_SHARED to the folder that holds {name}/")
    return folder
