"""Training as a user runs it: checkpoints, resume, stops, bad input."""

import csv
import json
import os
import shutil
import signal
import socket
import subprocess
import time
from pathlib import Path

import numpy as np
import pytest
import torch

import training
from data import maps as maps_command
from tests.commands import at_once, only_run, refused, resume, score, start, train
from tests.conftest import unwritable
from util import checkpoints
from util.runs import folders
from util.volume import read_volume, write_volume


def weights(run) -> dict[str, torch.Tensor]:
    content = checkpoints.load_checkpoint(folders.latest_checkpoint(run))
    return {"step": torch.tensor(content["step"]), **content["model"], **momentum(content)}


def momentum(content: dict) -> dict[str, torch.Tensor]:
    return {f"momentum {k}": v["momentum_buffer"] for k, v in content["optimiser"]["state"].items()}


def assert_same(one: dict, other: dict) -> None:
    assert one.keys() == other.keys()
    assert [name for name in one if not torch.equal(one[name], other[name])] == []


def wait_for(condition, process: subprocess.Popen) -> None:
    def happened() -> bool:
        assert condition() or process.poll() is None, process.stdout.read()
        return condition()

    until(happened, 120)


def until(condition, seconds: float) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "took too long"
        time.sleep(0.02)


def test_metrics_show_the_predicted_threshold(tiny, tmp_path):
    train("method=qnet", f"data_root={tiny}", f"runs={tmp_path}", "train.log_every=1", "train.steps=2")
    with (tmp_path / "qnet_PHANTOM_fold0/1/metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [float(row["loss"]) for row in rows] == pytest.approx(
        [float(row["query"]) + float(row["align"]) for row in rows], rel=1e-4
    )
    assert all(-20 < float(row["t"]) < 20 for row in rows)
    assert all(0 <= float(row["predicted"]) <= 1 and float(row["gradient_norm"]) > 0 for row in rows)


def test_layers_over_pixels_take_their_size_from_the_scans(tiny, tmp_path):
    small = ("method=gmrd", "model.foreground_descriptors=5", "model.background_descriptors=7")
    train(*small, f"data_root={tiny}", f"runs={tmp_path}", "train.steps=1")
    run = tmp_path / "gmrd_PHANTOM_fold0/1"
    side = read_volume(tiny / "PHANTOM/phantom_MR_normalized/image_1.nii.gz").array.shape[-1]
    content = checkpoints.load_checkpoint(folders.latest_checkpoint(run))
    assert content["arguments"]["image_size"] == side != 256
    assert content["model"]["foreground.spread.weight"].shape == (5, side**2)
    for checkpoint in ("newest", "untrained"):
        score(*small, f"data_root={tiny}", f"runs={tmp_path}", f"test.checkpoint={checkpoint}")


@pytest.mark.parametrize(
    ("method", "rates"),
    [
        ("adnet", {0: 1e-3, 999: 1e-3, 1000: 9.5e-4, 49_999: 8.10e-5}),  # [adnet 6]
        ("alpnet", {1000: 9.5e-4, 50_000: 7.69e-5, 99_000: 6.23e-6}),  # [alpnet 16.5]
        ("qnet", {29_999: 1e-3 * 0.98**29}),  # [training 2]
        ("gmrd", {35_999: 1e-3 * 0.98**11}),
        ("pami", {47_999: 1e-3 * 0.98**15}),
        ("rpt", {39_999: 1e-3 * 0.98**7}),
    ],
)
def test_published_schedules(method, rates):
    run = training.experiment._create_run("print_config", config_updates={"method": method})
    for step, rate in rates.items():
        assert training.learning_rate(step, run.config["train"]) == pytest.approx(rate, rel=1e-3)


def test_ten_decays_in_all():
    options = {"steps": 50, "decay": 0.5, "decay_every": 0, "learning_rate": 1.0}
    assert [training.learning_rate(step, options) for step in (0, 4, 5, 49)] == [1, 1, 0.5, 0.5**9]


@pytest.fixture(scope="module")
def straight(tiny, tmp_path_factory):
    """A run of 40 steps that nobody disturbed."""
    folder = tmp_path_factory.mktemp("straight")
    train(f"data_root={tiny}", f"runs={folder}", "train.steps=40", "train.save_every=20")
    return only_run(folder)


def test_a_run_leaves_what_it_should(straight):
    assert [p.name for p in sorted((straight / "checkpoints").iterdir())] == ["step_000020.pt", "step_000040.pt"]
    rows = list(csv.DictReader((straight / "metrics.csv").open()))
    assert [row["step"] for row in rows] == ["10", "20", "30", "40"]
    assert {"loss", "query", "align", "threshold", "learning_rate", "steps_per_second"} <= rows[0].keys()
    assert all(0 < float(row["query"]) < 5 for row in rows)
    assert folders.status(straight) == "COMPLETED"
    content = checkpoints.load_checkpoint(straight / "checkpoints/step_000040.pt")
    assert content["method"] == "adnet" and content["training_scans"] == [5, 6]
    assert content["config"]["train"]["steps"] == 40


@pytest.mark.parametrize("workers", [0, 2])
def test_killed_and_resumed_equals_straight(tiny, tmp_path, straight, workers):
    """SIGKILL after the checkpoint of step 20; the resumed run ends bit for bit where the straight one did."""
    steps = (f"data_root={tiny}", f"runs={tmp_path}", "train.steps=40", "train.save_every=20")
    process = start("training.py", *steps, f"workers={workers}", "train.log_every=1")
    wait_for((only_run(tmp_path) / "checkpoints/step_000020.pt").exists, process)
    loaders = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text("utf-8").split()
    process.kill()
    process.wait()
    assert len(loaders) == workers
    until(lambda: not any(Path(f"/proc/{loader}").exists() for loader in loaders), 30)  # they go with it
    (only_run(tmp_path) / "checkpoints/step_000040.pt").unlink(missing_ok=True)  # where the kill came too late
    resume(only_run(tmp_path), f"workers={workers}")
    assert_same(weights(only_run(tmp_path, 2)), weights(straight))
    assert json.loads((only_run(tmp_path, 2) / "run.json").read_text("utf-8"))["status"] == "COMPLETED"


@pytest.mark.parametrize("sent", [signal.SIGTERM, signal.SIGINT])
def test_a_stopped_run_says_so_and_goes_on(tiny, tmp_path, straight, sent):
    """SIGTERM (Slurm) and Ctrl-C leave a checkpoint of the very step, a truthful status, and no traceback."""
    process = start("training.py", f"data_root={tiny}", f"runs={tmp_path}", "train.steps=40", "train.log_every=1")
    wait_for((only_run(tmp_path) / "metrics.csv").exists, process)
    process.send_signal(sent)
    printed, _ = process.communicate(timeout=60)
    assert process.returncode == 130 and "Traceback" not in printed
    assert f"resume={only_run(tmp_path)}" in printed
    assert folders.status(only_run(tmp_path)) == "INTERRUPTED"
    stopped_at = weights(only_run(tmp_path))["step"].item()
    assert 0 < stopped_at < 40
    resume(only_run(tmp_path))
    assert_same(weights(only_run(tmp_path, 2)), weights(straight))


def as_rank(rank: int, port: int, command, updates: tuple[str, ...], dies_at: int) -> None:
    """A command in one of two processes that train together, as torchrun would start them; rank 1 is killed before
    update `dies_at`."""
    places = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": 2, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    os.environ |= {name: str(value) for name, value in places.items()}
    update = training.Trainer.train_step

    def dying(trainer: training.Trainer, *arguments):
        if (rank, trainer.step) == (1, dies_at):
            os.kill(os.getpid(), signal.SIGKILL)
        return update(trainer, *arguments)

    training.Trainer.train_step = dying
    command(*updates)


def two_processes(command, *updates: str, dies_at: int = -1) -> list[int]:
    """Exit statuses of a command's two ranks."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    return at_once(*((as_rank, rank, port, command, updates, dies_at) for rank in range(2)))


def test_two_processes_of_which_one_is_killed_go_on_as_they_were(tiny, tmp_path, capsys):
    """One run folder, gradients averaged, and each its own dropout, after a resume as before it."""
    options = ("method=rpt", "model.regions=8", f"data_root={tiny}", "train.steps=22", "train.save_every=20")
    whole, killed, on = (tmp_path / name for name in ("whole", "killed", "on"))
    assert two_processes(train, *options, f"runs={whole}") == [0, 0]
    assert [path.name for path in (whole / "rpt_PHANTOM_fold0").iterdir()] == ["1"]
    begun = time.monotonic()
    assert two_processes(train, *options, f"runs={killed}", dies_at=20) == [1, -signal.SIGKILL]
    assert time.monotonic() - begun < 120  # the other ends, too: it does not wait for its half of a gradient
    half = folders.latest_checkpoint(killed / "rpt_PHANTOM_fold0/1")
    first, second = (state["cpu"] for state in checkpoints.load_checkpoint(half)["random_states"])
    assert half.stem == "step_000020" and not torch.equal(first, second)
    assert "torchrun --nproc-per-node=2" in refused(capsys, resume, half, f"runs={on}")  # with one process
    assert two_processes(resume, str(half), f"runs={on}") == [0, 0]
    (resumed,) = (path for path in on.glob("rpt_PHANTOM_fold0/*") if list(path.glob("checkpoints/*")))
    assert_same(weights(resumed), weights(whole / "rpt_PHANTOM_fold0/1"))


def test_setting_2_removes_slices(tiny, tmp_path, caplog):
    with caplog.at_level("INFO"):
        train(f"data_root={tiny}", f"runs={tmp_path}", "train.steps=1", "setting=2", "protocol=published")
    assert "setting 2, published" in caplog.text


# ------------------------------------------------------------------------------------------------------- bad input


def image(root, number: int = 5, kind: str = "image"):
    return root / f"PHANTOM/phantom_MR_normalized/{kind}_{number}.nii.gz"


def test_truncated_scan(broken, tmp_path, capsys):
    file = image(broken)
    file.write_bytes(file.read_bytes()[:-2000])
    line = refused(capsys, train, f"data_root={broken}", f"runs={tmp_path}")
    assert str(file) in line and "cut short" in line


def test_shapes_differ(broken, tmp_path, capsys):
    file = image(broken, kind="label")
    label = read_volume(file)
    write_volume(file, label.array[:-1], label.geometry)
    line = refused(capsys, train, f"data_root={broken}", f"runs={tmp_path}", "setting=2")
    assert str(file) in line and "(15, 64, 64)" in line and "(16, 64, 64)" in line


def test_nan_voxels(broken, tmp_path, capsys):
    file = image(broken)
    scan = read_volume(file)
    array = scan.array.astype(np.float32)
    array[3, 4, 5] = np.nan
    write_volume(file, array, scan.geometry)
    assert (
        str(file) in (line := refused(capsys, train, f"data_root={broken}", f"runs={tmp_path}")) and "1 voxel" in line
    )


def test_constant_scan(broken, tmp_path, capsys):
    scan = read_volume(image(broken))
    write_volume(image(broken), np.full_like(scan.array, 7), scan.geometry)
    assert "every voxel" in refused(capsys, train, f"data_root={broken}", f"runs={tmp_path}")


def test_a_fold_names_a_missing_scan(broken, tmp_path, capsys):
    image(broken, 3).unlink()
    line = refused(capsys, train, f"data_root={broken}", f"runs={tmp_path}")
    assert "[3]" in line and "image_3.nii.gz" in line and "FOLDS" in line


def test_missing_supervoxels_are_made_but_not_among_others(broken, tmp_path, capsys):
    """Those of the fixture have another size than the data set's, which must not mix with it."""
    folder = broken / "PHANTOM/supervoxels_5000"
    (folder / "superpix-MIDDLE_5.nii.gz").unlink()
    line = refused(capsys, train, f"data_root={broken}", f"runs={tmp_path}")
    assert f"{folder}/parameters.json: what is there was made with other parameters (min_size 300" in line
    shutil.rmtree(folder)
    train(f"data_root={broken}", f"runs={tmp_path}")
    assert f"{folder}: no supervoxels of 2 scans yet, making them" in capsys.readouterr().err
    assert len(list(folder.glob("superpix-MIDDLE_*.nii.gz"))) == 6
    assert json.loads((folder / "parameters.json").read_text("utf-8"))["min_size"] == 5000


def test_two_trainings_at_once_have_a_run_each_and_the_same_scans(broken, tmp_path):
    shutil.rmtree(broken / "PHANTOM/supervoxels_5000")
    both = [start("training.py", f"data_root={broken}", f"runs={tmp_path / 'runs'}", "train.steps=2") for _ in range(2)]
    printed = [process.communicate(timeout=240)[0] for process in both]
    assert [process.returncode for process in both] == [0, 0], printed
    assert_same(*(weights(only_run(tmp_path / "runs", number)) for number in (1, 2)))
    assert {path.name for path in (tmp_path / "runs").iterdir()} == {"adnet_PHANTOM_fold0", "maps"}
    assert len(list((tmp_path / "runs/maps").glob("PHANTOM_*/*.npy"))) == 6


def test_scans_that_lie_where_nothing_can_be_written_get_their_supervoxels_below_runs(broken, tmp_path):
    """Two trainings at once share one making; a third, and one whose scans can be written to, see the same."""
    shutil.rmtree(broken / "PHANTOM/supervoxels_5000")
    keys = (f"data_root={broken}", f"runs={tmp_path / 'runs'}", "train.steps=2")
    with unwritable(broken / "PHANTOM"):
        both = [start("training.py", *keys) for _ in range(2)]
        printed = [process.communicate(timeout=240)[0] for process in both]
        assert [process.returncode for process in both] == [0, 0], printed
        train(*keys)
    assert not (broken / "PHANTOM/supervoxels_5000").exists()
    (made,) = tmp_path.glob("runs/maps/PHANTOM_*/supervoxels_5000")
    assert len(list(made.glob("superpix-MIDDLE_*.nii.gz"))) == 6
    said = f"no supervoxels of 2 scans yet, making them in {made.resolve()}, for nothing can be written there"
    assert any(said in text for text in printed) and "".join(printed).count("supervoxels: 100%") <= 1
    assert maps_command.main(["PHANTOM", "--data-root", str(broken), "--maps", str(made.parents[1]), "--remove"]) == 0
    assert not made.parent.exists()
    train(f"data_root={broken}", f"runs={tmp_path / 'beside'}", "train.steps=2")
    beside = weights(only_run(tmp_path / "beside"))
    for number in (1, 2, 3):
        assert_same(weights(only_run(tmp_path / "runs", number)), beside)


def test_maps_that_can_be_written_nowhere(tiny, tmp_path, capsys):
    (tmp_path / "maps").mkdir()
    with unwritable(tmp_path / "maps"):
        line = refused(capsys, train, f"data_root={tiny}", f"runs={tmp_path / 'runs'}", f"maps={tmp_path / 'maps'}")
    assert "cannot be written" in line and "name another folder" in line and str(tmp_path / "maps") in line


def test_no_data_at_all(tmp_path, capsys):
    assert "data_root" in refused(capsys, train, f"data_root={tmp_path}", f"runs={tmp_path}")


def test_supervoxels_too_small(tiny, tmp_path, capsys):
    line = refused(capsys, train, f"data_root={tiny}", f"runs={tmp_path}", "episode.min_size=4000")
    assert "episode.min_size=4000" in line


def test_loss_becomes_nan(tiny, tmp_path, capsys):
    """The run stops, says so, and keeps the checkpoint from before."""
    updates = (f"data_root={tiny}", f"runs={tmp_path}", "train.steps=30", "train.save_every=1")
    line = refused(capsys, train, *updates, "train.learning_rate=1e30")
    assert "NaN or infinite" in line and "train.learning_rate" in line
    assert folders.status(only_run(tmp_path)) == "FAILED"
    for parameter in weights(only_run(tmp_path)).values():
        assert parameter.isfinite().all()


def test_resume_of_nothing(tmp_path, capsys):
    assert "no checkpoint" in refused(capsys, resume, tmp_path)


def test_the_newest_run_is_resumed(capsys, straight):
    line = refused(capsys, resume, "newest", "dataset=PHANTOM", f"runs={straight.parents[1]}")
    assert f"{straight}/checkpoints/step_000040.pt: has 40 steps already" in line
    line = refused(capsys, resume, "newest", "dataset=PHANTOM", "fold=1", f"runs={straight.parents[1]}")
    assert "adnet_PHANTOM_fold1: no such checkpoint" in line


def test_resume_that_does_not_fit(tmp_path, capsys, straight):
    """Another encoder, another fold, nothing left to do: each is refused."""
    updates = (f"runs={tmp_path}", "train.steps=50")
    assert "encoder=efficientnet_lite0" in refused(capsys, resume, straight, "encoder=resnet18", *updates)
    assert "fold=0" in refused(capsys, resume, straight, "fold=1", *updates)
    assert "train.steps" in refused(capsys, resume, straight, f"runs={tmp_path}")


def test_results_cannot_be_written(tiny, tmp_path, capsys):
    (tmp_path / "file").write_text("not a folder")
    line = refused(capsys, train, f"data_root={tiny}", f"runs={tmp_path / 'file'}")
    assert "cannot be written" in line and "runs=" in line


@pytest.mark.skipif(os.geteuid() != 0, reason="a full disk is made by mounting a small one, which needs root")
def test_disk_full(tiny, tmp_path, capsys):
    """The checkpoint that does not fit leaves no half file, and the run says what happened."""
    mounted = tmp_path / "small"
    mounted.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=3m", "tmpfs", mounted], capture_output=True).returncode:
        pytest.skip("this machine does not allow to mount a small disk")
    try:
        line = refused(capsys, train, f"data_root={tiny}", f"runs={mounted}", "train.steps=2")
        assert "the disk is not full" in line and "step_000002.pt" in line
        assert list((only_run(mounted) / "checkpoints").iterdir()) == []
    finally:
        subprocess.run(["umount", "--lazy", mounted], check=True)


def test_device_that_is_not_there(tiny, tmp_path, capsys):
    line = refused(capsys, train, f"data_root={tiny}", f"runs={tmp_path}", "device=cuda:77")
    assert "device=cpu" in line
