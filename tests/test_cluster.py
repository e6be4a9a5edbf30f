"""A Dask cluster of two workers makes what one process makes: preparation, supervoxels, check, predictions, scores."""

import os

import pytest

import predict
from data import check, phantom_raw, sabs
from supervoxels import generate
from tests.commands import only_run, score, train
from util.parallel import Backend, each_scan

distributed = pytest.importorskip("distributed", reason="the optional package distributed is not installed")


@pytest.fixture(scope="module")
def cluster() -> list[str]:
    """The options that name a running cluster."""
    with distributed.LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=None) as running:
        yield ["--backend", "dask", "--scheduler", running.scheduler_address, "--jobs", "2"]


def files(folder) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def place(_: int) -> int:
    return os.getpid()


def test_the_cluster_is_where_the_work_is_done(cluster):
    scans = {number: (number,) for number in range(8)}
    places = {done.result for _, done in each_scan(place, scans, 2, backend=Backend("dask", cluster[3]), file=str)}
    assert 0 < len(places) <= 2 and os.getpid() not in places


def test_preparation_supervoxels_and_check(cluster, tmp_path, capsys):
    for index in range(2):
        phantom_raw.WRITERS["sabs"](tmp_path / "raw", 2, index, (20, 72, 72))
    printed = {}
    for name, how in {"alone": ["--jobs", "1"], "cluster": cluster}.items():
        out = tmp_path / name / "SABS"
        assert sabs.main([str(tmp_path / "raw"), str(out), "--size", "64", *how]) == 0
        images, supervoxels = str(out / "sabs_CT_normalized"), str(out / "supervoxels_5000")
        assert generate.main([images, supervoxels, "--min-size", "300", *how]) == 0
        capsys.readouterr()
        check.main(["SABS", "--data-root", str(tmp_path / name), *how])
        printed[name] = capsys.readouterr().out
    alone = {name: data.replace(b"/alone/", b"/cluster/") for name, data in files(tmp_path / "alone").items()}
    assert alone == files(tmp_path / "cluster") and len(alone) == 9
    assert printed["alone"] == printed["cluster"] and "2 scans" in printed["alone"]


def test_predictions(cluster, tiny, tmp_path, capsys):
    train(f"data_root={tiny}", f"runs={tmp_path / 'runs'}")
    scans = tiny / "PHANTOM/phantom_MR_normalized"
    call = ["--checkpoint", only_run(tmp_path / "runs"), "--threads", 1, "--query", scans]
    call += ["--support-image", scans / "image_4.nii.gz", "--support-label", scans / "label_4.nii.gz"]
    for name, how in {"alone": [], "cluster": cluster, "loky": ["--jobs", "2"]}.items():
        assert predict.main([str(word) for word in (*call, "--out", tmp_path / name, *how)]) == 0
        assert "6 scans: 6 segmented, 0 were there, 0 failed" in capsys.readouterr().out
    assert files(tmp_path / "alone") == files(tmp_path / "cluster") == files(tmp_path / "loky")


def test_scores(cluster, tiny, tmp_path):
    """All supports and an ensemble, so that every query has several tasks of several networks; pictures, too."""
    runs = tmp_path / "runs"
    train(f"data_root={tiny}", f"runs={runs}")
    common = [f"data_root={tiny}", f"runs={runs}", "threads=1", "test.supports=all", "test.save=True"]
    common += ["organs=upper"]
    common += [f"test.checkpoint={only_run(runs)}", f"test.ensemble=['{only_run(runs)}']"]
    dask = ["test.jobs=2", "test.backend=dask", f"test.scheduler={cluster[3]}"]
    for how in ([], ["test.jobs=2"], dask):
        score(*common, *how)
    alone, *others = (files(only_run(runs, number)) for number in (2, 3, 4))
    same = [name for name in alone if name not in ("run.json", "config.json")]
    assert len([name for name in same if name.endswith(".nii.gz")]) == 2 * 2 * 3 * 3 and "liver.png" in same
    for other in others:
        assert other.keys() == alone.keys() and all(other[name] == alone[name] for name in same)


def test_a_scheduler_without_dask_and_one_that_is_not_there_are_refused(tmp_path, capsys):
    call = [str(tmp_path), str(tmp_path / "out"), "--min-size", "5"]
    assert generate.main([*call, "--scheduler", "tcp://localhost:1"]) == 1
    assert "only --backend dask has one" in capsys.readouterr().err
