"""Shared places of the tests."""

import contextlib
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from data.phantom import write_scans
from supervoxels.folder import Parameters, generate

ROOT = Path(__file__).resolve().parents[1]
SHARED = Path(os.environ.get("FSMIS_SHARED", ROOT.parent / "shared"))
# begun first, so that no process of check.sh works on one of them when the others have nothing left to do
SLOWEST = (
    "parity/test_gmrd", "script/test_reproduce", "test_training", "models/test_contract", "supervoxels/test_generate",
    "data/test_converters", "test_library", "test_predict", "test_cluster", "script/test_scripts", "test_faults",
    "util/test_step", "util/report/test_page", "data/test_check", "test_volumes", "models/test_encoders",
    "test_visa_stages",
)  # fmt: skip


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put the slowest files in front; within a file nothing moves."""
    places = {ROOT / f"tests/{name}.py": place for place, name in enumerate(SLOWEST)}
    items.sort(key=lambda item: places.get(item.path, len(places)))


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
    assert write_scans(root / "PHANTOM", scans=6, seed=1, size=64, slices=16, jobs=1) == {}
    assert generate(images, supervoxels, Parameters(min_size=300), jobs=1) == {}
    return root


@contextlib.contextmanager
def unwritable(folder: Path) -> Iterator[None]:
    """A folder that nobody can write to, not even the administrator, whom permissions do not hold."""
    if os.geteuid():
        mode = folder.stat().st_mode
        folder.chmod(0o555)
        yield
        folder.chmod(mode)
        return
    for step in (["--bind", folder, folder], ["-o", "remount,bind,ro", folder]):
        if subprocess.run(["mount", *step], capture_output=True).returncode:
            pytest.skip("this machine does not allow to mount a folder")
    try:
        yield
    finally:
        subprocess.run(["umount", "--lazy", folder], check=True)


@pytest.fixture
def broken(tiny, tmp_path) -> Path:
    """A copy of the tiny data root that a test may damage."""
    return Path(shutil.copytree(tiny, tmp_path / "data"))
