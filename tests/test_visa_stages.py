"""VISA-FSS as a user trains it: registration, stage 1, stage 2, propagation; and what is refused on the way."""

import csv
import shutil

import pytest

import config
import models
import training
from supervoxels.folder import SliceParameters, generate
from tests.commands import refused, score, train
from util import checkpoints
from util.errors import UserError
from util.runs import earlier, folders

NAMES = {"registration": "registration_PHANTOM_fold0", "visa": "visa_PHANTOM_fold0"}


@pytest.fixture(scope="module")
def data(tiny, tmp_path_factory):
    """The tiny phantom with superpixels."""
    root = tmp_path_factory.mktemp("visa")
    (root / "PHANTOM").mkdir()
    for folder in (tiny / "PHANTOM").iterdir():
        (root / "PHANTOM" / folder.name).symlink_to(folder)
    images, superpixels = root / "PHANTOM/phantom_MR_normalized", root / "PHANTOM/superpixels_400"
    assert generate(images, superpixels, SliceParameters(threshold=50.0001), jobs=1) == {}
    return root


@pytest.fixture(scope="module")
def results(data, tmp_path_factory):
    """A folder of runs with a finished registration."""
    folder = tmp_path_factory.mktemp("runs")
    train("method=registration", "encoder=none", f"data_root={data}", f"runs={folder}", "episode.min_size=1")
    return folder


def run(results, method: str, number: int):
    return results / NAMES[method] / str(number)


def losses(folder) -> dict[str, str]:
    with (folder / "metrics.csv").open() as handle:
        return list(csv.DictReader(handle))[-1]


def test_registration_then_two_stages_then_propagation(data, results):
    places = (f"data_root={data}", f"runs={results}", "episode.min_size=1")
    train("method=visa", *places)
    train("method=visa", "stage=2", "train.steps=8", *places)
    first, second = (checkpoints.load_checkpoint(folders.latest_checkpoint(run(results, "visa", n))) for n in (1, 2))
    assert first["config"]["train"]["start"] == "" and second["config"]["train"]["start"] == "newest"
    assert first["config"]["train"]["learning_rate"] > 100 * second["config"]["train"]["learning_rate"]
    # so slow a second stage has hardly moved: it began with the first one's weights
    name = "encoder._blocks.10._depthwise_conv.weight"
    change = (first["model"][name] - second["model"][name]).abs().max()
    assert 0 <= change < 1e-3 * first["model"][name].abs().max()
    assert {"query", "align", "continuity"} <= losses(run(results, "visa", 2)).keys()
    assert "continuity" not in losses(run(results, "visa", 1))
    made = sorted(p.name for p in run(results, "registration", 1).glob("flows/*/*"))
    assert made == ["flows_5.npy", "flows_6.npy"]  # the training scans; nobody registered a test scan
    score("method=visa", *places)
    with (run(results, "visa", 3) / "scores.csv").open() as handle:
        rows = list(csv.DictReader(handle))
    assert {row["pairing"] for row in rows} == {"propagate"}
    assert {row["checkpoint"] for row in rows} == {str(folders.latest_checkpoint(run(results, "visa", 2)))}


def test_no_registration_yet(data, tmp_path, capsys):
    line = refused(capsys, train, "method=visa", f"data_root={data}", f"runs={tmp_path}")
    assert (
        f"python training.py with method=registration dataset=PHANTOM fold=0 setting=1 organs=all data_root={data}"
        in line
    )


def test_registration_of_another_fold(data, results, tmp_path, capsys, monkeypatch):
    """It has seen scans that this fold tests."""
    monkeypatch.setitem(config.FOLDS, "PHANTOM", [*config.FOLDS["PHANTOM"][:1], dict(support=5, query=[6, 1])])
    other = folders.latest_checkpoint(run(results, "registration", 1))
    places = (f"data_root={data}", f"runs={tmp_path}", f"episode.registration={other}")
    line = refused(capsys, train, "method=visa", "fold=1", *places)
    assert "trained on PHANTOM scans [5, 6]" in line and "this data set and fold" in line


def test_registration_that_saw_test_organs(data, results, tmp_path, capsys):
    other = folders.latest_checkpoint(run(results, "registration", 1))
    places = (f"data_root={data}", f"runs={tmp_path}", f"episode.registration={other}")
    line = refused(capsys, train, "method=visa", "setting=2", "organs=spleen", *places)
    assert "setting 2 removes" in line and str(other) in line


@pytest.mark.parametrize(
    ("trained", "wanted", "accepted"),
    [
        (dict(setting=2, organs="all"), dict(setting=2, organs="liver"), True),
        (dict(setting=2, organs="all"), dict(setting=1), True),
        (dict(setting=2, organs="liver"), dict(setting=2, organs="liver,spleen"), False),
        (dict(setting=2, protocol="published"), dict(setting=2), False),
        (dict(setting=2), dict(setting=2, protocol="published"), True),
        (dict(scans=dict(normalise="training")), dict(), False),
        (dict(scans=dict(normalise="training")), dict(scans=dict(normalise="published")), True),
        (dict(dataset="CHAOST2"), dict(), False),
    ],
)
def test_what_a_training_may_build_on(trained, wanted, accepted):
    common = dict(dataset="PHANTOM", setting=1, organs="all", protocol="strict", scans=dict(normalise="scan"))
    content = {"config": common | trained, "training_scans": [5, 6]}

    def check():
        dataset = config.DATASETS["PHANTOM"]
        earlier.require_same_fold(content, "file", common | wanted, [5, 6], dataset)

    if accepted:
        check()
    else:
        with pytest.raises(UserError):
            check()


def test_second_stage_without_a_first(data, results, tmp_path, capsys):
    places = (f"data_root={data}", f"runs={tmp_path}", f"episode.registration={run(results, 'registration', 1)}")
    line = refused(capsys, train, "method=visa", "stage=2", *places)
    assert "no finished training run" in line and "visa_PHANTOM_fold0" in line
    assert "training.py with method=visa stage=1 encoder=efficientnet_lite0 dataset=PHANTOM fold=0" in line


def test_registration_without_its_flows(data, results, tmp_path, capsys):
    """As an older version left it: the sentence names the command that makes them, and that command works."""
    shutil.copytree(run(results, "registration", 1), tmp_path / "1")
    shutil.rmtree(tmp_path / "1/flows")
    places = (f"data_root={data}", f"runs={tmp_path}", f"episode.registration={tmp_path / '1'}")
    line = refused(capsys, train, "method=visa", *places)
    words = line[line.index("training.py") :].split()
    assert words[1:3] == ["flows", "with"] and words[-1] == "episode.reach=1"
    training.experiment.run_commandline(words)
    made = sorted(file.name for file in tmp_path.glob("1/flows/step_000003_reach_1/*"))
    assert made == ["flows_5.npy", "flows_6.npy"]
    train("method=visa", "train.steps=1", *places)
    assert "its flows reach 1 slices, 3 are needed" in refused(
        capsys, train, "method=visa", "episode.carry=direct", *places
    )


def test_start_from_another_method(data, results, tmp_path, capsys):
    other = folders.latest_checkpoint(run(results, "registration", 1))
    line = refused(capsys, train, f"train.start={other}", f"data_root={data}", f"runs={tmp_path}")
    assert "a registration on none cannot be the start of method=adnet" in line


def test_a_stage_that_the_method_has_not(tmp_path, capsys):
    assert "stage=2: method=adnet has no such stage" in refused(capsys, train, "stage=2", f"runs={tmp_path}")


def test_the_registration_network_on_maps_of_another_stride(data, tmp_path, capsys):
    line = refused(capsys, train, "method=registration", f"data_root={data}", f"runs={tmp_path}")
    assert "stride 16: encoder=none" in line
    line = refused(capsys, train, "method=adnet", "encoder=none", f"data_root={data}", f"runs={tmp_path}")
    assert "encoder=none" in line and "stride (8,)" in line


def configuration(*updates: str) -> dict:
    changes = dict(update.split("=") for update in updates)
    typed = {key: int(value) if value.isdigit() else value for key, value in changes.items()}
    return training.experiment._create_run("print_config", config_updates={"method": "visa", **typed}).config


@pytest.mark.parametrize(
    ("updates", "expected"),
    [
        ((), dict(sampler="neighbouring", realistic=0.5, reach=3, queries="one", carry="chained")),
        (("stage=2",), dict(realistic=1.0, reach=2, queries="all", carry="chained")),
        (("protocol=published",), dict(realistic=0.0, carry="direct")),
        (("stage=2", "protocol=published"), dict(realistic=0.5, reach=2, queries="all", carry="direct")),
    ],
)
def test_protocols_are_the_rows_of_the_description(updates, expected):
    """The rows of [visa 11], for every stage."""
    assert expected.items() <= configuration(*updates)["episode"].items()
    found = configuration(*updates)
    code = "protocol=published" in updates
    assert (found["model"]["ramp"] == 1, found["model"]["background_weight"]) == ((True, 0.05) if code else (False, 1))
    assert found["train"]["steps"] == (4000 if "stage=2" in updates else 100_000)
    assert found["train"]["start"] == ("newest" if "stage=2" in updates else "")
    assert found["test"]["pairing"] == "propagate"
    ct = configuration(*updates, "dataset=SABS")
    assert ct["scans"]["normalise"] == ("published" if code else "training")
    assert models.method_class("visa").published.lost_labels == (2,)


@pytest.mark.parametrize(
    ("updates", "rates"),
    [((), {50_000: 3.64e-4, 99_999: 1.35e-4}), (("stage=2",), {0: 1e-5, 3999: 9.41e-6})],
)
def test_published_schedules(updates, rates):
    for step, rate in rates.items():
        assert training.learning_rate(step, configuration(*updates)["train"]) == pytest.approx(rate, rel=5e-3)


def test_visa_has_the_options_of_alpnet():
    extra = models.defaults("visa").keys() - models.defaults("alpnet").keys()
    assert extra == {"continuity_weight", "ramp"} and models.defaults("alpnet").keys() < models.defaults("visa").keys()
