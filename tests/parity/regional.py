"""The golden cases of the two regional methods, PAMI and RPT, have one form: draw a case, run it, compare."""

import json

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from models.parts import ops
from models.parts.base import FewShotMethod
from models.parts.regions import region_means
from tests.conftest import SHARED
from tests.parity.conftest import compare_entries, of_case
from util.episode import Output

SIDE = 256  # pixels
CHANNELS = 512
TRANSFORMER = {  # parameters: published name -> ours
    "MHA.w_qs": "transformer.attention.queries",
    "MHA.w_ks": "transformer.attention.keys",
    "MHA.w_vs": "transformer.attention.values",
    "MHA.fc": "transformer.attention.output",
    "MHA.layer_norm": "transformer.attention.norm",
    "MLP.mlp": "transformer.mlp",
    "MLP.norm": "transformer.norm",
    "layer_norm": "norm",
}


def case_names(topic: str) -> list[str]:
    """Names of the golden cases; where these are absent one name, whose test then skips."""
    file = SHARED / "parity" / topic / "cases.json"
    return [case["name"] for case in json.loads(file.read_text("utf-8"))["cases"]] if file.is_file() else ["absent"]


class GoldenCase:
    """Inputs of a case, drawn as its README says, and the numbers that the published code gave for them.

    `maps` holds a tensor (support and query, 1, 1, C, h, w) for every scale, `thresholds` is (support and query, 1, 1).
    """

    def __init__(self, topic: str, name: str, sides: tuple[int, ...], golden, recipe) -> None:
        self.name = name
        table, arrays = golden(topic)
        self.case = next(case for case in table["cases"] if case["name"] == name)
        self.expected = of_case(arrays, name)
        self.weights = recipe.params(recipe.rng(self.case["weight_seed"]), table["parameters"])
        ellipses = [self.case["support_ellipse"], self.case["query_ellipse"]]
        generator = recipe.rng(self.case["seed"])
        self.maps = []
        for side in sides:
            scaled = [[value * side / SIDE for value in ellipse] for ellipse in ellipses]
            shape = (2, CHANNELS, side, side)
            drawn, _ = recipe.blob(generator, shape, scaled, self.case["gain"], self.case["noise"])
            self.maps.append(torch.from_numpy(drawn)[:, None, None].requires_grad_())
        self.thresholds = torch.tensor(self.case["t"])[:, None, None].requires_grad_()
        self.support_masks, self.query_masks = (
            torch.from_numpy(recipe.ellipse(SIDE, SIDE, *ellipse))[None, None] for ellipse in ellipses
        )

    def prepare(self, method: FewShotMethod, names: dict[str, str]) -> dict[str, nn.Parameter]:
        """Set mode, sampler and weights of the method -> the parameters of its block by their published names."""
        method.train(self.case["train"])
        for total in self.case.get("burn_draws", []):
            method.regions.generator.choice(total)
        ours, published = dict(method.block.named_parameters()), {}
        for name, weight in self.weights.items():
            stem, _, kind = name.rpartition(".")
            prefix = next((p for p in names if stem == p or stem.startswith(p + ".")), None)
            if prefix is not None:
                published[name] = ours.pop(f"{names[prefix]}{stem.removeprefix(prefix)}.{kind}")
                published[name].data = torch.from_numpy(weight)
        assert not ours, f"without a published name: {list(ours)}"
        return published

    def convert(self, method: FewShotMethod, change) -> None:
        """Apply `change` to the drawn features, and take method and inputs to the precision it gives."""
        self.maps = [change(maps.detach()).requires_grad_() for maps in self.maps]
        dtype = self.maps[0].dtype
        self.thresholds = self.thresholds.detach().to(dtype).requires_grad_()
        self.support_masks = self.support_masks.to(dtype)
        method.to(dtype)

    def compare(self, quantity: str, ours: Tensor, rtol: float = 1e-4, atol: float = 1e-5) -> None:
        """Against the stored array; axes of length one do not count."""
        expected = self.expected[quantity].squeeze()
        np.testing.assert_allclose(ours.detach().squeeze(), expected, rtol=rtol, atol=atol, err_msg=quantity)

    @torch.no_grad()
    def compare_block(self, method: FewShotMethod) -> None:
        """Regions at every scale; at the first the coarse steps and one pass through the block."""
        regional = []
        for scale, (support, _) in enumerate(self.maps):
            regions = method.regions.region_map(self.support_masks, support.shape[-2:])
            np.testing.assert_array_equal(regions[0, 0], self.expected[f"region_map{scale}"])
            sizes = regions[regions >= 0].bincount(minlength=method.regions.count)
            np.testing.assert_array_equal(sizes, self.expected[f"region_sizes{scale}"])
            regional.append(region_means(support, regions, method.regions.count))
            self.compare(f"region_prototypes{scale}_stride", regional[scale][..., ::8])
        support, query = self.maps[0]
        prototype = ops.masked_average(support, self.support_masks)
        self.compare("global_prototype", prototype)
        coarse = ops.foreground_probability(query, prototype, self.thresholds[1])
        self.compare("coarse_prob64", coarse[..., ::2, ::2])
        own = ops.weighted_average(query, coarse)
        self.compare("coarse_query_prototype", own)
        self.compare("block_once_stride", method.block(regional[0], own[:, :, None])[..., ::8], atol=5e-5)

    def match(self, method: FewShotMethod) -> Output:
        """The whole method."""
        support, query = ((*(maps[i] for maps in self.maps), self.thresholds[i]) for i in (0, 1))
        return method.match(support, self.support_masks, query, self.query_masks)

    def compare_output(self, output: Output, losses: dict[str, tuple[str, float, float]]) -> None:
        """Probabilities, area, losses and their sum. `losses`: our name -> (published name, weight, rtol)."""
        self.compare("prob_fg", output.probabilities[..., ::4, ::4])
        assert abs(output.masks.sum().item() - self.expected["n_fg_pixels"].item()) <= 3
        assert output.losses.keys() <= losses.keys()
        for name, (published, weight, rtol) in losses.items():
            ours = output.losses.get(name, torch.tensor(0.0)) / weight  # what has no loss is zero when published
            self.compare(f"{published}_loss", ours, rtol=rtol, atol=1e-6)
        self.compare("total_loss", output.loss)

    def compare_gradients(self, output: Output, published: dict[str, nn.Parameter], *, sums: float = 1e-3) -> None:
        """Gradients of the total loss: features, thresholds, every parameter of the block.

        `sums` is the error of a sum as a part of the norm.
        """
        output.loss.backward()
        for role, gradient in zip(("support", "query"), self.maps[0].grad.double(), strict=True):
            norm, total = self.expected[f"grad_{role}_norm_sum"]
            assert gradient.norm().item() == pytest.approx(norm, rel=1e-4), role
            assert gradient.sum().item() == pytest.approx(total, abs=sums * norm), role
        part = 5e-3 if "empty_prediction" in self.name else 1e-4
        compare_entries(self.maps[0].grad, self.expected["grad_entries"], part)
        self.compare("grad_t_support_query", self.thresholds.grad)
        norms = {key.removeprefix("gradnorm/"): n for key, n in self.expected.items() if key.startswith("gradnorm/")}
        assert norms.keys() == published.keys()
        for name, norm in norms.items():
            assert published[name].grad.norm().item() == pytest.approx(norm.item(), rel=1e-3), name
