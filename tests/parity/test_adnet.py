"""ADNet 2D against the published implementation: probabilities, every loss, gradients."""

import numpy as np
import pytest
import torch

from models.adnet import ADNet
from models.parts import ops
from tests.parity.conftest import StubEncoder, compare_entries, compare_gradient, of_case
from util.episode import IGNORE

TOLERANCE = dict(rtol=1e-4, atol=1e-5)


def arrange(case: dict, recipe) -> tuple[torch.Tensor, ...]:
    """Features (S + Q, C, h, w) and masks of a case, drawn as its README says."""
    height, width, h, w = case["H"], case["W"], case["h"], case["w"]
    ellipses = case["support_ellipses"] + case["query_ellipses"]
    scaled = [(cy * h / height, cx * w / width, ry * h / height, rx * w / width) for cy, cx, ry, rx in ellipses]
    features, _ = recipe.blob(
        recipe.rng(case["seed"]), (len(ellipses), case["C"], h, w), scaled, case["gain"], case["noise"]
    )
    masks = np.stack([recipe.ellipse(height, width, *ellipse) for ellipse in ellipses])
    shots = case["shots"]
    support_masks, query_masks = masks[:shots], masks[shots:]
    if case["empty_support"]:
        support_masks = np.zeros_like(support_masks)
    for query, (y0, y1, x0, x1) in enumerate(case.get("ignore_box", [])):
        query_masks[query, y0:y1, x0:x1] = IGNORE
    return tuple(torch.from_numpy(a) for a in (features[:shots], support_masks, features[shots:], query_masks))


def run(case: dict, tensors: tuple[torch.Tensor, ...]):
    """One batch through the method: tensors with a leading axis of episodes."""
    support, support_masks, query, query_masks = tensors
    method = ADNet(
        StubEncoder((case["C"],), (8,)),
        channels=case["C"],
        threshold=case["t"],
        background_weight=case["bg_wt"],
        threshold_weight=case["t_loss_scaler"],
    ).train(case["train"])
    return method, method.match((support,), support_masks, (query,), query_masks)


def test_every_published_case(golden, recipe):
    cases, arrays = golden("adnet2d")
    for case in cases:
        if case["name"] == "batch2_composed":
            continue
        name = case["name"]
        expected = of_case(arrays, name)
        support, support_masks, query, query_masks = arrange(case, recipe)
        support.requires_grad_(), query.requires_grad_()
        method, output = run(case, tuple(t[None] for t in (support, support_masks, query, query_masks)))

        stride = case["stride"]
        np.testing.assert_allclose(
            output.probabilities[0, :, ::stride, ::stride].detach(), expected["prob_fg"], err_msg=name, **TOLERANCE
        )
        counts = output.masks[0].flatten(1).sum(1).numpy()
        assert np.abs(counts - expected["n_fg_pixels"]).max() <= 3, name
        prototype = ops.masked_average(support[None], support_masks[None]).mean(1)
        np.testing.assert_allclose(prototype.detach(), expected["prototype"], err_msg=name, **TOLERANCE)
        score = -20 * ops.cosine_map(query[None], prototype[:, None])
        np.testing.assert_allclose(score[0].detach(), expected["anomaly_score"], err_msg=name, **TOLERANCE)

        losses = {key: value.item() for key, value in output.losses.items()}
        assert losses["query"] == pytest.approx(expected["query_loss"].item(), rel=1e-4, abs=1e-5), name
        assert losses.get("align", 0.0) == pytest.approx(expected["align_loss"].item(), rel=1e-4, abs=1e-5), name
        assert losses["threshold"] == pytest.approx(expected["thresh_loss"].item(), rel=1e-4, abs=1e-5), name
        assert output.loss.item() == pytest.approx(expected["total_loss"].item(), rel=1e-4, abs=1e-5), name

        output.loss.backward()
        compare_gradient(support.grad, expected["grad_support_norm_sum"])
        compare_gradient(query.grad, expected["grad_query_norm_sum"])
        assert method.threshold.grad.item() == pytest.approx(expected["grad_t"].item(), rel=1e-4, abs=1e-5), name
        # the task's README grants the empty prediction a wider margin: its gradients are differences of clamped logs
        part = 5e-3 if name.startswith("empty_prediction") else 1e-4
        compare_entries(torch.cat((support.grad, query.grad)), expected["grad_entries"], part, name)


def test_two_episodes_in_one_batch(golden, recipe):
    cases, arrays = golden("adnet2d")
    first = next(case for case in cases if case["name"] == "one_shot_train")
    composed = next(case for case in cases if case["name"] == "batch2_composed")
    second = {**first, **composed["episodes"][1]}
    batch = tuple(torch.stack(pair) for pair in zip(arrange(first, recipe), arrange(second, recipe), strict=True))
    _, output = run(first, batch)

    expected = of_case(arrays, "batch2_composed")
    stride = first["stride"]
    np.testing.assert_allclose(
        output.probabilities[:, 0, ::stride, ::stride].detach(), expected["prob_fg"], **TOLERANCE
    )
    assert output.losses["query"].item() == pytest.approx(expected["query_loss"].item(), rel=1e-4, abs=1e-5)
    assert output.losses["align"].item() == pytest.approx(expected["align_loss"].item(), rel=1e-4, abs=1e-5)
    assert output.loss.item() == pytest.approx(expected["total_loss"].item(), rel=1e-4, abs=1e-5)
