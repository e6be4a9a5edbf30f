"""Shared places of the tests."""

import os
import shutil
import subprocess
import sys
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


@pytest.fixture(scope="session")
def tiny(tmp_path_factory) -> Path:
    """A data root with a tiny PHANTOM: 6 scans of 16 x 64 x 64 with supervoxels; fold 0 trains on scans 5 and 6."""
    root = tmp_path_factory.mktemp("data")
    images, supervoxels = root / "PHANTOM/phantom_MR_normalized", root / "PHANTOM/supervoxels_5000"
    commands = (
        ["data.phantom", root / "PHANTOM", "--scans", 6, "--size", 64, "--slices", 16, "--jobs", 1],
        ["supervoxels.generate", images, supervoxels, "--min-size", 300, "--jobs", 1],
    )
    for command in commands:
        subprocess.run([sys.executable, "-m", *map(str, command)], cwd=ROOT, check=True, capture_output=True)
    return root


@pytest.fixture
def broken(tiny, tmp_path) -> Path:
    """A copy of the tiny data root that a test may damage."""
    return Path(shutil.copytree(tiny, tmp_path / "data"))
