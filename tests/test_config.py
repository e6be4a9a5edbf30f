"""The command line's mistakes are errors in one sentence."""

import pytest

import config
import models
from tests.commands import refused, train
from tests.options import defaults
from util.dataset import choose_fold
from util.errors import UserError
from util.runs.experiment import plain, resolved


@pytest.mark.parametrize(
    ("update", "expected"),
    [
        ("trian.steps=3", "trian.steps: no such key"),
        ("train.stepz=3", "did you mean train.steps"),
        ("model.chanels=3", "did you mean model.channels"),
        ("train.steps=many", "train.steps: expects a value of type int, got str"),
        ("train.steps=2.5", "train.steps: expects a value of type int, got float"),
        ("train.steps=True", "train.steps: expects a value of type int, got bool"),
        ("fold=first", "fold: expects a value of type int"),
        ("model=5", "model: expects a value of type dict"),
        ("train=5", "train: expects a value of type dict, got int; write train.NAME=VALUE"),
        ("seed=[]", "seed: expects a value of type int, got list"),
        ("seed=-1", "seed=-1: a number from 0 to 4294967295 is expected"),
        ("dataset=[]", "dataset: expects a value of type str, got list"),
        ("runs={'': ''}", "runs={'': ''}: a key without a name"),
        ("_recipe=5", "_recipe: no such key"),
        ("episode.gamma=[0.5,'much']", "episode.gamma=[0.5, 'much']: 2 numbers are expected"),
        ("train.learning_rate=float('nan')", "train.learning_rate"),
        ("train.learning_rate=1e999", "train.learning_rate=inf: a finite number is expected"),
        ("method=nonsense", "method=nonsense: unknown; choose one of"),
        ("encoder=vgg", "encoder=vgg: unknown; choose one of"),
        ("dataset=NOWHERE", "dataset=NOWHERE: choose one of"),
        ("protocol=easy", "protocol=easy: choose one of strict, published"),
        ("test.match=parts", "test.match: is called test.pairing now"),
        ("exclude=all", "exclude: is no option any more; protocol=published does"),
        ("episode.crop=[4,32,32]", "episode.crop: has no effect with episode.sampler=neighbours, only with"),
        ("test.pool=True", "test.pool: has no effect with test.supports=fold"),
        ("setting=3", "setting=3: choose one of 1, 2"),
        ("test.pairing=best", "test.pairing=best: choose one of"),
        ("fold=99", "fold=99: FOLDS['PHANTOM'] in config.py has folds 0 to 3"),
        ("fold=-1", "fold=-1: FOLDS['PHANTOM']"),
        ("weights=nowhere.pth", "weights=nowhere.pth: no such file"),
        ("weights=coco", "there are no coco weights for efficientnet_lite0"),
        ("train.steps=0", "train.steps=0: must be at least 1"),
        ("train.batch_size=-1", "train.batch_size=-1: must be at least 1"),
        ("workers=-1", "workers=-1: must be at least 0"),
        ("stride=5", "stride"),
    ],
)
def test_mistakes(tiny, tmp_path, capsys, update, expected):
    line = refused(capsys, train, f"data_root={tiny}", f"runs={tmp_path}", update)
    assert expected in line


def test_what_methods_with_two_maps_take_on_a_small_encoder():
    """And that on a ResNet everything is the paper's."""
    common = {"threshold_head": "steady", "small_organs": "repeat"}
    own = {
        "rpt": {"mse_weight": 0.1 / 16},
        "pami": {"mse_weight": 1 / 16, "transformer_gain": 0.1},
        "gmrd": {"start": "averages"},
    }
    for name in ("qnet", "rpt", "pami", "gmrd"):
        paper, small = (
            resolved([f"method={name}", f"encoder={e}"], config) for e in ("resnet101", "efficientnet_lite0")
        )
        assert paper["model"] == plain(models.defaults(name))
        assert paper["train"] == paper["train"] | models.recipe(name)["train"]
        assert (paper["stride"], small["stride"]) == (0, 32)
        assert small["train"]["frozen_norm"] and not paper["train"]["frozen_norm"]
        known = {key: common[key] for key in common.keys() & paper["model"].keys()}
        assert small["model"] == paper["model"] | known | own.get(name, {})
    assert resolved(["method=adnet", "encoder=efficientnet_lite0"], config)["stride"] == 16


def test_print_config_shows_what_would_run_and_writes_nothing(tmp_path, capsys, monkeypatch):
    import training

    monkeypatch.chdir(tmp_path)
    training.experiment.run_commandline(["training.py", "print_config", "with", "dataset=CMR", "train.steps=7"])
    printed = capsys.readouterr().out
    assert "threshold_weight" in printed and "steps = " in printed and list(tmp_path.iterdir()) == []
    assert "_recipe" not in printed and "_variants" not in printed  # what only the making of the options needs


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        (dict(support=1, query=[1, 2]), "cannot be support and query at once"),
        (dict(support=1, query=[2, 2]), "no query stands twice"),
        (dict(support=1, query=[]), "a list of at least one"),
        (dict(support=[1], query=[2]), "support is one scan number"),
        (dict(support=1), r"write dict\(support=8"),
        (dict(support=1, query=[2], train=[3]), r"write dict\(support=8"),
    ],
)
def test_malformed_folds(line, expected):
    with pytest.raises(UserError, match=expected):
        choose_fold({"SET": [line]}, "SET", 0)


def test_a_new_fold_is_one_line():
    fold = choose_fold({"SET": [dict(support=4, query=[2, 9])]}, "SET", 0)
    assert fold.training([1, 2, 3, 4, 9]) == [1, 3]


def test_every_method_has_a_printable_configuration():
    for method in models.names():
        assert defaults("model", method=method) == plain(models.defaults(method))
