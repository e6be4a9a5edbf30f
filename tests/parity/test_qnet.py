"""Q-Net against the published implementation: probabilities, losses, gradients, refined prototypes."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from models.parts import ops
from models.qnet import QNet, fixed_part, reconstruction_gradient
from tests.parity.conftest import StubEncoder, compare_entries, compare_gradient, of_case

TOLERANCE = dict(rtol=1e-4, atol=1e-5)
TRAINING = ("train_a09", "train_a06", "train_empty_prediction")
EVALUATION = ("eval_no_refine", "eval_refine7_a09", "eval_refine7_a06", "eval_refine7_empty")


@pytest.fixture
def case(request, golden, recipe) -> dict:
    """One golden case: its settings, the method, the inputs and the expected numbers."""
    cases, arrays = golden("qnet")
    assert [known["name"] for known in cases] == [*TRAINING, *EVALUATION]
    case = next(known for known in cases if known["name"] == request.param)
    height, width = case["H"], case["W"]
    ellipses = [case["support_ellipse"], case["query_ellipse"]]
    generator, maps = recipe.rng(case["seed"]), []
    for side in (case["h0"], case["h1"]):
        scaled = [
            (cy * side / height, cx * side / width, ry * side / height, rx * side / width)
            for cy, cx, ry, rx in ellipses
        ]
        features, _ = recipe.blob(generator, (2, 512, side, side), scaled, case["gain"], case["noise"])
        maps.append(torch.from_numpy(features))
    support_mask, query_mask = (torch.from_numpy(recipe.ellipse(height, width, *e))[None, None] for e in ellipses)
    method = QNet(StubEncoder((512, 512), (4, 8)), fine_weight=case["alpha"], refinement_steps=case["n_iters"]).train(
        case["train"]
    )
    return case | {
        "method": method,
        "support": tuple(m[None, :1].clone().requires_grad_(case["train"]) for m in maps),
        "query": tuple(m[None, 1:].clone().requires_grad_(case["train"]) for m in maps),
        "thresholds": tuple(torch.tensor([[t]], requires_grad=case["train"]) for t in case["t"]),
        "support_mask": support_mask,
        "query_mask": query_mask,
        "expected": of_case(arrays, case["name"]),
    }


def run(case: dict):
    thresholds = case["thresholds"]
    support, query = (*case["support"], thresholds[0]), (*case["query"], thresholds[1])
    return case["method"].match(support, case["support_mask"], query, case["query_mask"].long())


@pytest.mark.parametrize("case", TRAINING + EVALUATION, indirect=True)
def test_probabilities(case):
    with torch.inference_mode(not case["train"]):
        output = run(case)
    expected, stride = case["expected"], case["stride"]
    np.testing.assert_allclose(
        output.probabilities[0, 0, ::stride, ::stride].detach(), expected["prob_fg"], **TOLERANCE
    )
    assert abs(output.masks.sum().item() - expected["n_fg_pixels"]) <= 3


@pytest.mark.parametrize("case", TRAINING, indirect=True)
def test_losses_and_gradients(case):
    output, expected = run(case), case["expected"]
    for name in ("query", "align"):
        wanted = expected[f"{name}_loss"].item()
        assert output.losses[name].item() == pytest.approx(wanted, rel=1e-4, abs=1e-5)
    assert output.loss.item() == pytest.approx(expected["total_loss"].item(), rel=1e-4, abs=1e-5)

    output.loss.backward()
    for scale in (0, 1):
        support, query = case["support"][scale].grad, case["query"][scale].grad
        compare_gradient(support, expected[f"grad_f{scale}_support_norm_sum"])
        compare_gradient(query, expected[f"grad_f{scale}_query_norm_sum"])
        part = 5e-3 if "empty_prediction" in case["name"] else 1e-4
        compare_entries(torch.cat((support, query)), expected[f"grad_f{scale}_entries"], part)
    assert case["thresholds"][0].grad is None  # the support's threshold is never used
    assert case["thresholds"][1].grad.item() == pytest.approx(expected["grad_t_support_query"][1], rel=1e-4, abs=1e-5)


@pytest.mark.parametrize("case", EVALUATION, indirect=True)
def test_prototypes_and_their_refinement(case):
    expected, threshold = case["expected"], case["thresholds"][1]
    for scale in (0, 1):
        support, query = case["support"][scale], case["query"][scale]
        prototype = ops.masked_average(support, case["support_mask"])
        np.testing.assert_allclose(prototype[0], expected[f"prototype{scale}"], **TOLERANCE)
        coarse = ops.foreground_probability(query, prototype, threshold)
        np.testing.assert_allclose(coarse[0, 0], expected[f"coarse_prob{scale}"], **TOLERANCE)
        if case["n_iters"]:
            with torch.inference_mode():
                refined = case["method"].refine(prototype, query, threshold)
            np.testing.assert_allclose(refined[0], expected[f"refined_prototype{scale}"], rtol=0, atol=1e-5)


@pytest.mark.parametrize("bce", ["published", "intended"])
def test_refinement_gradient_is_the_one_of_autograd(bce):
    """Also where channels of the prototype are the minimum and the maximum of the whole map."""
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(2, 3, 8, 6, 5, generator=generator, dtype=torch.float64)
    prototypes = torch.randn(2, 3, 8, generator=generator, dtype=torch.float64)
    prototypes[0, 1, 2], prototypes[1, 0, 5] = 9.0, -9.0
    foreground = torch.rand(2, 3, 6, 5, generator=generator) > 0.5
    foreground[1, 2] = False
    prototypes.requires_grad_()
    replaced = torch.where(foreground[:, :, None], prototypes[..., None, None], features)
    loss = 0.0
    for f, r in zip(features.flatten(0, 1), replaced.flatten(0, 1), strict=True):
        x = ((f - f.min()) / (f.max() - f.min())).sigmoid()
        y = ((r - r.min()) / (r.max() - r.min())).sigmoid()
        given, target = (x, y) if bce == "published" else (y, x)
        loss = loss + F.binary_cross_entropy(given, target)
    loss.backward()
    fixed = fixed_part(features, bce)
    ours = reconstruction_gradient(features, fixed, prototypes.detach(), foreground, bce)
    torch.testing.assert_close(ours, prototypes.grad, rtol=1e-9, atol=1e-14)
    assert not ours[1, 2].any()  # nothing predicted, nothing moves


def test_intended_refinement_reconstructs_better():
    """The published loss raises every channel; with the arguments in order the prototype approaches the foreground."""
    generator = torch.Generator().manual_seed(0)
    centre = torch.randn(16, generator=generator)
    features = 0.3 * torch.randn(1, 1, 16, 8, 8, generator=generator)
    features[..., 2:6, 2:6] += centre[:, None, None]
    prototype = (centre + 0.2 * torch.randn(16, generator=generator))[None, None]
    thresholds = torch.tensor([[-10.0]])

    def refined(bce: str) -> torch.Tensor:
        return QNet(StubEncoder((16, 16), (4, 8)), channels=16, refinement_bce=bce).refine(
            prototype, features, thresholds
        )

    target = features[0, 0, :, 2:6, 2:6].mean((-2, -1))
    assert (refined("intended") - target).norm() < (prototype - target).norm()
    assert (refined("published") - prototype).median().item() == pytest.approx(0.07, abs=1e-3)
