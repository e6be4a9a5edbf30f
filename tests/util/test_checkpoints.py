"""Checkpoints are plain tensors: code, other programs' files and damage are refused in a sentence."""

import pickle

import pytest
import torch

from util import checkpoints
from util.errors import UserError


class Code:
    """Runs a command when unpickled: what a malicious checkpoint does."""

    def __init__(self, witness):
        self.witness = str(witness)

    def __reduce__(self):
        return (exec, (f"open({self.witness!r}, 'w').close()",))


def content() -> dict:
    return {
        "method": "adnet",
        "arguments": {"channels": 4},
        "encoder": "resnet18",
        "stride": 0,
        "config": {"seed": 1},
        "intensities": None,
        "training_scans": [1, 2],
        "step": 3,
        "model": {"weight": torch.ones(2)},
        "optimiser": {},
        "scaler": {},
        "random_states": {"cpu": torch.get_rng_state()},
    }


def test_round_trip(tmp_path):
    checkpoints.save_checkpoint(tmp_path / "a.pt", content())
    back = checkpoints.load_checkpoint(tmp_path / "a.pt")
    assert back["step"] == 3 and torch.equal(back["model"]["weight"], torch.ones(2))
    assert [p.name for p in tmp_path.iterdir()] == ["a.pt"]


def test_code_is_refused_and_does_not_run(tmp_path):
    for name, write in (("a.pt", torch.save), ("b.pt", lambda value, file: file.write_bytes(pickle.dumps(value)))):
        write({**content(), "format": 1, "model": Code(tmp_path / "witness")}, tmp_path / name)
        with pytest.raises(UserError, match="refused"):
            checkpoints.load_checkpoint(tmp_path / name)
    assert not (tmp_path / "witness").exists()


def test_a_flipped_bit_is_refused_and_becomes_no_weight(tmp_path):
    checkpoints.save_checkpoint(tmp_path / "a.pt", content())
    whole = (tmp_path / "a.pt").read_bytes()
    at = whole.index(torch.ones(2).numpy().tobytes())
    (tmp_path / "a.pt").write_bytes(whole[:at] + b"\x01" + whole[at + 1 :])
    with pytest.raises(UserError, match=r"a\.pt: damaged"):
        checkpoints.load_checkpoint(tmp_path / "a.pt")


@pytest.mark.parametrize("key", ["model", "config", "random_states", "training_scans"])
def test_content_of_another_kind_is_refused(tmp_path, key):
    torch.save({**content(), "format": 1, key: 3}, tmp_path / "a.pt")
    with pytest.raises(UserError, match=f"not a checkpoint of this program, its {key} is a int"):
        checkpoints.load_checkpoint(tmp_path / "a.pt")


@pytest.mark.parametrize("cut", [10, 500])
def test_damage_is_refused(tmp_path, cut):
    checkpoints.save_checkpoint(tmp_path / "a.pt", content())
    (tmp_path / "a.pt").write_bytes((tmp_path / "a.pt").read_bytes()[:-cut])
    with pytest.raises(UserError, match="damaged"):
        checkpoints.load_checkpoint(tmp_path / "a.pt")


def test_another_programs_file_is_refused(tmp_path):
    torch.save({"state_dict": {"weight": torch.ones(1)}}, tmp_path / "a.pt")
    with pytest.raises(UserError, match="not a checkpoint of this program"):
        checkpoints.load_checkpoint(tmp_path / "a.pt")
    with pytest.raises(UserError, match="no such checkpoint"):
        checkpoints.load_checkpoint(tmp_path / "b.pt")


def test_another_format_is_refused(tmp_path):
    torch.save({**content(), "format": 99}, tmp_path / "a.pt")
    with pytest.raises(UserError, match="format 99"):
        checkpoints.load_checkpoint(tmp_path / "a.pt")


def test_weights_that_do_not_fit(tmp_path):
    with pytest.raises(UserError, match="do not fit"):
        checkpoints.load_weights(torch.nn.Linear(2, 2), content(), tmp_path / "a.pt")
