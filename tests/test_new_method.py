"""Adding a method is one file: drop it into models/ and train it."""

import sys

import models
from tests.commands import train
from util import checkpoints
from util.runs import folders

SOURCE = '''"""Nearest prototype: the cosine to the masked average of the support, sharpened by one learned factor."""

import torch
from torch import nn

from models.parts import ops
from models.parts.base import FewShotMethod
from models.parts.losses import weighted_nll
from util.episode import Output


class NearestPrototype(FewShotMethod):
    """A query pixel is what its feature resembles more."""

    recipe = {"train": dict(steps=2)}

    def __init__(self, encoder: nn.Module, *, sharpness: float = 10.0) -> None:
        super().__init__(encoder)
        self.sharpness = nn.Parameter(torch.tensor(sharpness))

    def match(self, support_features, support_masks, query_features, query_masks=None) -> Output:
        both = (1 - support_masks, support_masks)
        prototypes = [ops.masked_average(support_features[-1], masks).mean(1, True) for masks in both]
        scores = torch.stack([self.sharpness * ops.cosine_map(query_features[-1], p) for p in prototypes], dim=2)
        logits = ops.resize(scores, support_masks.shape[-2:], align_corners=False).log_softmax(2)
        return Output(logits, {} if query_masks is None else {"query": weighted_nll(logits, query_masks, 0.1)})
'''


def test_a_method_is_one_file(tiny, tmp_path, monkeypatch):
    """The file appears in models/ (here: in a folder that models/ looks into), and everything else knows it."""
    (tmp_path / "nearest.py").write_text(SOURCE)
    monkeypatch.setattr(models, "__path__", [*models.__path__, str(tmp_path)])
    monkeypatch.delitem(sys.modules, "models.nearest", raising=False)
    assert "nearest" in models.names() and models.defaults("nearest") == {"sharpness": 10.0}
    train("method=nearest", "model.sharpness=5.0", f"data_root={tiny}", f"runs={tmp_path / 'runs'}", "train.steps=2")
    content = checkpoints.load_checkpoint(folders.latest_checkpoint(tmp_path / "runs/nearest_PHANTOM_fold0/1"))
    assert content["method"] == "nearest" and content["arguments"] == {"sharpness": 5.0}
    assert content["model"]["sharpness"] != 5.0  # it learned
