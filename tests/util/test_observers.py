"""Users' own Sacred observers and curve writers beside the run's folder, whatever they are and in whatever order."""

import json
import multiprocessing
import os
import pwd
import shutil
import socket
import sqlite3
import subprocess
import sys
import tempfile
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

import test as testing
import training
from tests.commands import SMALL, only_run, refused, train
from util.episode import Episode
from util.runs import curves, folders
from util.runs.experiment import CommandLine
from util.volume import Geometry

STARTS = 10


@pytest.fixture(scope="module")
def s3():
    """`s3://BUCKET/FOLDER` on a server of this test's own, which speaks Amazon's language over HTTP."""
    for package in ("boto3", "moto"):
        pytest.importorskip(package, reason=f"{package} is not installed (pip install boto3 'moto[server]')")
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    names = ("AWS_ENDPOINT_URL", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_DEFAULT_REGION")
    with pytest.MonkeyPatch.context() as patch:
        for name, value in zip(names, (f"http://{host}:{port}", "tester", "secret", "eu-west-1"), strict=True):
            patch.setenv(name, value)
        yield "s3://sacred/runs"
    server.stop()


def s3_objects() -> dict[str, dict]:
    """Name -> content of the JSON files in the bucket."""
    import boto3

    objects = boto3.resource("s3").Bucket("sacred").objects.all()
    return {one.key: json.load(one.get()["Body"]) for one in objects if one.key.endswith(".json")}


@pytest.fixture(scope="module")
def mongo():
    """A database in memory behind the names of MongoDB's client; no MongoDB server is in Debian or on PyPI."""
    for package in ("pymongo", "mongomock"):
        pytest.importorskip(package, reason=f"{package} is not installed (pip install pymongo mongomock)")
    import mongomock.gridfs

    mongomock.gridfs.enable_gridfs_integration()
    client = mongomock.MongoClient()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("pymongo.MongoClient", lambda *_, **__: client)
        yield client


@pytest.mark.parametrize("store", ["mongo", "s3"])
def test_trainings_and_tests_end_well_in_stores_elsewhere(store, tiny, tmp_path, request):
    place = request.getfixturevalue(store)
    option = ("-m", "127.0.0.1:27017:sacred") if store == "mongo" else ("-S", place)
    common = ("with", *SMALL, f"data_root={tiny}", f"runs={tmp_path / 'runs'}")
    training.experiment.run_commandline(["training.py", *option, *common])
    testing.experiment.run_commandline(["test.py", *option, *common])
    trained, tested = only_run(tmp_path / "runs"), only_run(tmp_path / "runs", 2)
    assert (trained / "checkpoints/step_000003.pt").is_file() and (tested / "scores.csv").is_file()
    if store == "mongo":
        rows = list(place["sacred"]["runs"].find().sort("_id"))
        names = [name for row in rows for name, _ in row["experiment"]["sources"]]
        assert [row["_id"] for row in rows] == [1, 2] and names == ["training.py", "test.py"]
    else:
        rows = [s3_objects()[f"runs/{number}/run.json"] for number in (1, 2)]
    results = [json.loads((run / "run.json").read_text("utf-8"))["result"] for run in (trained, tested)]
    assert [row["status"] for row in rows] == ["COMPLETED"] * 2
    assert [row["result"] for row in rows] == pytest.approx(results)


def test_ten_runs_at_once_in_s3(s3, tmp_path):
    start_at_once("-S", "s3://sacred/many", "with", f"runs={tmp_path / 'runs'}")
    status = {key: one["status"] for key, one in s3_objects().items() if key.startswith("many") and "run.json" in key}
    assert status == {f"many/{number + 1}/run.json": "COMPLETED" for number in range(STARTS)}


def test_a_typed_number_does_not_keep_mongodb_from_counting(mongo, tmp_path):
    for words in (("--id", 7), ()):
        run_with("-m", "127.0.0.1:27017:typed", *words, "with", f"runs={tmp_path}")
    assert [row["_id"] for row in mongo["typed"]["runs"].find().sort("_id")] == [7, 8]


@pytest.fixture(scope="module")
def stores(tiny, tmp_path_factory):
    """A training and a test with every observer that needs no server; the second folder is in use already."""
    for package in ("sqlalchemy", "tinydb", "tinydb_serialization", "hashfs", "tensorboard"):
        pytest.importorskip(package, reason=f"{package} is not installed (requirements-dev.txt)")
    root = tmp_path_factory.mktemp("stores")
    (root / "second/1").mkdir(parents=True)
    common = (*SMALL, f"data_root={tiny}", f"runs={root / 'runs'}", "train.log_every=1", "log=tensorboard")
    for name, experiment in (("training.py", training.experiment), ("test.py", testing.experiment)):
        added = ["-s", f"sqlite:///{root / 'runs.db'}", "-t", root / "tiny", "-F", root / "second"]
        experiment.run_commandline([name, *map(str, added), "with", *common])
    return root


def test_the_run_folder_is_where_it_always_is(stores):
    trained, tested = only_run(stores / "runs"), only_run(stores / "runs", 2)
    assert (trained / "checkpoints/step_000003.pt").is_file() and (trained / "metrics.csv").is_file()
    assert (tested / "scores.csv").is_file()
    assert [folders.program(run) for run in (trained, tested)] == ["training", "test"]
    assert folders.status(trained) == folders.status(tested) == "COMPLETED"


def test_every_observer_has_both_runs_under_its_own_numbers(stores):
    with sqlite3.connect(stores / "runs.db") as store:
        rows = store.execute("select status, result from run order by id").fetchall()
    assert [row[0] for row in rows] == ["COMPLETED"] * 2
    results = [json.loads((only_run(stores / "runs", at) / "run.json").read_text("utf-8"))["result"] for at in (1, 2)]
    assert [row[1] for row in rows] == pytest.approx(results)
    assert {path.name for path in (stores / "second").iterdir()} >= {"1", "2", "3"}  # 1 was taken
    assert not list((stores / "second/1").iterdir()) and folders.status(stores / "second/3") == "COMPLETED"
    written = json.loads((stores / "tiny/metadata.json").read_text("utf-8"))["runs"].values()
    assert [run["status"] for run in written] == ["COMPLETED"] * 2


def test_tensorboard_shows_the_rows_of_metrics_csv_pictures_and_the_scores(stores):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    trained, tested = (EventAccumulator(str(only_run(stores / "runs", number))).Reload() for number in (1, 2))
    columns = (only_run(stores / "runs") / "metrics.csv").read_text("utf-8").splitlines()
    assert {f"training/{name}" for name in columns[0].split(",")[1:]} == set(trained.Tags()["scalars"])
    shown = [event.value for event in trained.Scalars("training/loss")]
    assert shown == pytest.approx([float(line.split(",")[1]) for line in columns[1:]], rel=1e-4)
    pictures = trained.Images("episode")
    assert [picture.step for picture in pictures] == [1, 2, 3] and pictures[0].width == 2 * pictures[0].height
    assert {"test/dice/liver", "test/voted_dice_volume/right kidney"} <= set(tested.Tags()["scalars"])
    assert [event.step for event in tested.Scalars("test/dice/liver")] == [3]  # where the curves of the training end


@pytest.mark.parametrize(("rows", "top"), [(1, True), (-1, False)])
def test_pictures_of_episodes_show_the_front_up(rows, top):
    images, masks = torch.zeros(1, 1, 1, 12, 16), torch.zeros(1, 1, 12, 16, dtype=torch.int64)
    masks[..., 1:5, 3:9] = 1  # in the first rows: the front of the body if rows run to its back
    geometry = Geometry((1.0, 1.0, 1.0), direction=(1, 0, 0, 0, rows, 0, 0, 0, 1))
    picture = curves.episode_picture(Episode(images, masks, images, masks), masks == 1, geometry)
    outlined = picture.any((1, 2))
    assert picture.shape == (12, 32, 3) and outlined[:6].any() == top and outlined[6:].any() != top


@pytest.mark.parametrize("log", ["wandb", "mlflow"])
def test_other_services_get_the_same_offline(log, tiny, tmp_path, monkeypatch, capsys):
    pytest.importorskip(log, reason=f"{log} is not installed; it is no requirement")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path / 'mlflow.db'}")
    monkeypatch.chdir(tmp_path)
    training.experiment.run_commandline(
        ["training.py", "with", *SMALL, f"data_root={tiny}", f"runs={tmp_path / 'runs'}", f"log={log}"]
    )
    assert "warning: log=" not in capsys.readouterr().err and list(tmp_path.rglob("episode_*.png"))
    if log == "wandb":
        assert list(only_run(tmp_path / "runs").glob("wandb/offline-run-*/*.wandb"))
    else:
        import mlflow

        (run,) = mlflow.search_runs(output_format="list")
        assert {"loss", "learning_rate"} <= run.data.metrics.keys() and run.data.params["method"] == "adnet"


def test_a_writer_that_cannot_be_had_is_said_before_anything_starts(tmp_path, capsys, monkeypatch):
    def train(*updates: str) -> None:
        training.experiment.run_commandline(["training.py", "with", f"runs={tmp_path}", *updates])

    assert "choose of tensorboard, wandb, mlflow" in refused(capsys, train, "log=tensorbord")
    monkeypatch.setitem(curves.CURVES, "no_such_package", None)
    assert "pip install no_such_package" in refused(capsys, train, "log='tensorboard, no_such_package'")


def test_a_service_that_fails_on_the_way_costs_its_curves_and_not_the_training(tiny, tmp_path, capsys, monkeypatch):
    class Failing:
        def __init__(self, *_):
            assert not refusing, "no account"

        def write(self, step, values):
            raise ConnectionError("gone")

        def picture(self, *_):
            pytest.fail("it was asked again")

    refusing = []
    monkeypatch.setitem(curves.CURVES, "tensorboard", Failing)
    common = (f"data_root={tiny}", "log=tensorboard", "train.log_every=1")
    train(*common, f"runs={tmp_path / 'a'}")
    told = capsys.readouterr().err
    assert told.count("warning: log=tensorboard: gone; ") == 1
    assert folders.status(only_run(tmp_path / "a")) == "COMPLETED"
    refusing.append(True)
    assert "log=tensorboard: the run cannot be shown there: no account" in refused(
        capsys, train, *common, f"runs={tmp_path / 'b'}"
    )


# ------------------------------------------------------------------------------------------------ many starts at once


def options():
    method, dataset, fold, seed = "adnet", "PHANTOM", 0, 1  # noqa: F841
    runs, resume = "runs", ""  # noqa: F841


def program() -> CommandLine:
    """One that trains nothing."""
    tables = SimpleNamespace(options=options, check=lambda *_: None, SECTIONS=(), DATASETS={}, FOLDS={})
    made = CommandLine("training", tables)
    made.main(lambda _run: 1.0)
    return made


def run_with(*words: object) -> None:
    program().run_commandline(["training.py", *map(str, words)])


def begin(barrier, words: list[str]) -> None:
    """One of many processes that start a run at the same moment."""
    made = program()
    barrier.wait(60)
    made.run_commandline(words)


def start_at_once(*words: object) -> None:
    context = multiprocessing.get_context("fork")  # what is imported need not be imported ten times
    barrier = context.Barrier(STARTS)
    arguments = (barrier, ["training.py", *map(str, words)])
    processes = [context.Process(target=begin, args=arguments) for _ in range(STARTS)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(120)
    assert [process.exitcode for process in processes] == [0] * STARTS


def test_ten_runs_that_start_at_once_have_numbers_of_their_own(tmp_path):
    for package in ("sqlalchemy", "tinydb", "tinydb_serialization", "hashfs"):
        pytest.importorskip(package, reason=f"{package} is not installed (requirements-dev.txt)")
    added = ("-F", tmp_path / "second", "-s", f"sqlite:///{tmp_path / 'runs.db'}", "-t", tmp_path / "tiny")
    start_at_once(*added, "with", f"runs={tmp_path / 'runs'}")
    numbers = {str(number + 1) for number in range(STARTS)}
    assert {run.name for run in folders.numbered(only_run(tmp_path / "runs").parent)} == numbers
    assert {run.name for run in folders.numbered(tmp_path / "second")} == numbers
    with sqlite3.connect(tmp_path / "runs.db") as store:
        rows = store.execute("select run_id, status from run").fetchall()
    assert len({row[0] for row in rows}) == STARTS and {row[1] for row in rows} == {"COMPLETED"}
    written = json.loads((tmp_path / "tiny/metadata.json").read_text("utf-8"))["runs"].values()
    assert len({run["_id"] for run in written}) == STARTS and {run["status"] for run in written} == {"COMPLETED"}


def postgres_tool(name: str) -> str | None:
    found = shutil.which(name) or next(iter(sorted(Path("/usr/lib/postgresql").glob(f"*/bin/{name}"))), None)
    return str(Path(found).resolve()) if found else None


@pytest.fixture
def postgres():
    """The URL of a PostgreSQL of this test's own, on a free port of this machine."""
    for package in ("sqlalchemy", "psycopg2"):
        pytest.importorskip(package, reason=f"{package} is not installed (requirements-dev.txt)")
    initdb, control = postgres_tool("initdb"), postgres_tool("pg_ctl")
    if not (initdb and control):
        pytest.skip("no PostgreSQL on this machine (apt-get install postgresql)")
    home, user = Path(tempfile.mkdtemp()), []
    if os.geteuid() == 0:  # it refuses to run as root
        try:
            owner = pwd.getpwnam("postgres")
        except KeyError:
            pytest.skip("PostgreSQL does not run as root, and there is no user postgres")
        os.chown(home, owner.pw_uid, owner.pw_gid)
        user = ["runuser", "-u", "postgres", "--"]
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    store = home / "store"
    subprocess.run(
        [*user, initdb, "-D", store, "-U", "tester", "-A", "trust", "--no-sync"],
        check=True, capture_output=True, cwd=home,
    )  # fmt: skip
    settings = f"-p {port} -c listen_addresses=127.0.0.1 -c unix_socket_directories={home} -c fsync=off"
    command = [*user, control, "-D", store, "-w", "-l", home / "log"]
    subprocess.run([*command, "-o", settings, "start"], check=True, stdout=subprocess.DEVNULL, cwd=home)
    yield f"postgresql://tester@127.0.0.1:{port}/postgres"
    subprocess.run([*command, "-m", "immediate", "stop"], check=True, stdout=subprocess.DEVNULL, cwd=home)
    shutil.rmtree(home)


def test_ten_runs_at_once_in_postgresql(tmp_path, postgres):
    import psycopg2

    start_at_once("-s", postgres.replace("://", "+psycopg2://"), "with", f"runs={tmp_path / 'runs'}")
    with psycopg2.connect(postgres) as store, store.cursor() as cursor:
        cursor.execute("select run_id, status, result from run")
        rows = cursor.fetchall()
    assert len({row[0] for row in rows}) == STARTS and {row[1:] for row in rows} == {("COMPLETED", 1.0)}
    assert len(folders.numbered(only_run(tmp_path / "runs").parent)) == STARTS


# ---------------------------------------------------------------------------------------------------------- bad input


def test_a_store_that_cannot_be_reached_is_one_sentence(tmp_path, capsys, caplog, monkeypatch):
    pytest.importorskip("sqlalchemy", reason="sqlalchemy is not installed (requirements-dev.txt)")
    monkeypatch.setattr("util.runs.experiment.ATTEMPTS", 2)
    words = ("-s", f"sqlite:///{tmp_path}/no/folder/runs.db", "with", f"runs={tmp_path}")
    with caplog.at_level("WARNING"):
        assert "SqlObserver cannot write the run down: " in refused(capsys, run_with, *words)
    assert folders.status(only_run(tmp_path)) == "FAILED"
    assert "observer" not in caplog.text  # what has not begun is not told of an end


@pytest.mark.parametrize(
    ("flag", "value", "package"),
    [
        ("--sql", "nonsense", "sqlalchemy"),
        ("--tiny_db", "FILE/folder", "tinydb"),
        ("--mongo_db", "not a name", "pymongo"),
        ("--s3", "bucket", "boto3"),
        ("--beat-interval", "often", "sacred"),
    ],
)
def test_what_an_option_cannot_mean_is_one_sentence(flag, value, package, tmp_path, capsys):
    pytest.importorskip(package, reason=f"{package} is not installed")
    (tmp_path / "file").touch()
    words = (f"{flag}={value.replace('FILE', str(tmp_path / 'file'))}", "with", f"runs={tmp_path}")
    line = refused(capsys, run_with, *words)
    assert line.replace("_", "-").startswith(f"error: {flag}: ".replace("_", "-")) and "--help" in line


def test_help_is_about_the_program_and_tells_how_to_see_the_defaults(capsys, monkeypatch):
    for module in (training, testing):
        monkeypatch.setattr(sys, "argv", [module.__file__])
        with pytest.raises(SystemExit):
            module.experiment.run_commandline([module.__file__, "--help"])
        told = capsys.readouterr().out
        assert module.__doc__ in told
        assert "print_config shows every option with its default" in told and "../" not in told


def test_a_store_whose_package_is_not_there(tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "sqlalchemy.orm", None)
    monkeypatch.setitem(sys.modules, "sqlalchemy", None)
    line = refused(capsys, run_with, "-s", "sqlite://", "with", f"runs={tmp_path}")
    assert "pip install sqlalchemy" in line


def test_a_number_that_is_taken(tmp_path, capsys):
    run_with("--id", 7, "with", f"runs={tmp_path}")
    assert folders.status(only_run(tmp_path, 7)) == "COMPLETED"
    assert "--id=7: " in refused(capsys, run_with, "--id", 7, "with", f"runs={tmp_path}")
    assert folders.status(only_run(tmp_path, 7)) == "COMPLETED"
