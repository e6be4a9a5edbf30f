"""Installed in an environment of its own, everything lies below `fsmis`, and five lines segment a volume."""

import os
import shutil
import subprocess
import sys
import sysconfig
import time
import venv
import zipfile
from pathlib import Path

import pytest

from setup import under_one_name
from tests.conftest import ROOT

FOREIGN = ("config", "data", "dataloaders", "models", "predict", "supervoxels", "test", "training", "util")
FIVE_LINES = """
scan, annotated, label = map(read_volume, sys.argv[1:4])
pieces = supervoxels.supervoxels(scan.array, spacing=scan.geometry.spacing[::-1], min_size=300)
method = models.build("adnet", models.defaults("adnet"), encoder="efficientnet_lite0")
labels = predict.segment_volume(scan, annotated, label, method)
print(pieces.max(), labels.shape, np.unique(labels), models.names())
"""
IMPORTS = """
import sys
import numpy as np
from fsmis import models, predict, supervoxels
from fsmis.util.volume import read_volume
"""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """A wheel of what git would commit; the extension is the one that is compiled here already, as it looks newer than
    the C++ that Cython writes now."""
    source, out = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheel")
    listed = subprocess.check_output(["git", "ls-files", "-co", "--exclude-standard"], cwd=ROOT, encoding="utf-8")
    for name in listed.split():
        if not name.startswith(("tests/", "docs/", "benchmarks/")) and (ROOT / name).is_file():
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, source / name)
    built = source / f"build/lib.{sysconfig.get_platform()}-{sys.implementation.cache_tag}/fsmis/supervoxels"
    built.mkdir(parents=True)
    for file in (ROOT / "supervoxels").glob("*.so"):
        copy = shutil.copy(file, built)
        os.utime(copy, (time.time() + 3600,) * 2)
    command = [sys.executable, "-m", "pip", "wheel", ".", "--no-deps", "--no-build-isolation", "-q", "-w", str(out)]
    done = subprocess.run(command, cwd=source, capture_output=True, encoding="utf-8")
    assert done.returncode == 0, done.stderr
    return next(out.glob("fsmis-*.whl"))


@pytest.fixture(scope="module")
def python(wheel, tmp_path_factory):
    """The interpreter of a fresh environment that holds the wheel, and borrows its requirements from this one."""
    home = tmp_path_factory.mktemp("environment")
    venv.create(home, with_pip=False)
    (packages,) = home.glob("lib/python*/site-packages")
    zipfile.ZipFile(wheel).extractall(packages)
    (packages / "borrowed.pth").write_text(sysconfig.get_path("purelib"))
    return home / "bin/python"


def test_a_wheel_holds_one_package_with_all_it_needs(wheel):
    names = zipfile.ZipFile(wheel).namelist()
    assert {name.split("/")[0] for name in names} == {"fsmis", wheel.name.rsplit("-", 3)[0] + ".dist-info"}
    for needed in ("util/report/page.html", "util/report/viewer.js", "models/spec/adnet.md", "config.py"):
        assert f"fsmis/{needed}" in names
    assert any(name.startswith("fsmis/supervoxels/_felzenszwalb.") for name in names)
    assert "fsmis/setup.py" not in names


def test_five_lines_segment_a_volume_beside_modules_of_the_same_names(python, tiny, tmp_path):
    for name in FOREIGN:
        (tmp_path / f"{name}.py").write_text("raise ImportError('somebody else imported me')\n")
    (tmp_path / "five_lines.py").write_text(IMPORTS + FIVE_LINES)
    images = tiny / "PHANTOM/phantom_MR_normalized"
    files = [str(images / f"{name}.nii.gz") for name in ("image_1", "image_4", "label_4")]
    done = subprocess.run([python, "five_lines.py", *files], cwd=tmp_path, capture_output=True, encoding="utf-8")
    assert done.returncode == 0, done.stderr
    assert "(16, 64, 64)" in done.stdout and "'adnet'" in done.stdout
    assert int(done.stdout.split()[0]) > 10


def test_commands_of_the_library_name_themselves(python, tmp_path):
    done = subprocess.run(
        [python, "-m", "fsmis.data.check", "--help"], cwd=tmp_path, capture_output=True, encoding="utf-8", check=True
    )
    assert "--data-root" in done.stdout and "(default: data)" in done.stdout
    source = python.parent.parent / "lib"
    (training,) = source.glob("python*/site-packages/fsmis/training.py")
    assert "`python -m fsmis.training with" in training.read_text("utf-8")


def test_only_imports_and_commands_are_rewritten():
    text = '"""python -m data.check, python test.py."""\nimport config\nfrom util import errors\nimport utility\n'
    expected = (
        '"""python -m fsmis.data.check, python -m fsmis.test."""\nfrom fsmis import config\n'
        "from fsmis.util import errors\nimport utility\n"
    )
    assert under_one_name(text + 'x = "util"\n') == expected + 'x = "util"\n'
    with pytest.raises(ValueError, match="one plain import"):
        under_one_name("import util.errors\n")
    for file in (path for name in ("models", "dataloaders", "data", "util") for path in (ROOT / name).rglob("*.py")):
        compile(under_one_name(Path(file).read_text("utf-8")), str(file), "exec")
