"""ADNet 3D against the published implementation: probabilities, every loss, gradients."""

import numpy as np
import pytest
import torch

from models.adnet3d import ADNet3D
from models.parts import ops
from tests.parity.conftest import StubEncoder, compare_entries, compare_gradient, of_case

TOLERANCE = dict(rtol=1e-4, atol=1e-5)


def arrange(case: dict, recipe) -> tuple[torch.Tensor, ...]:
    """Features (S + 1, C, d, h, w) and masks of a case, drawn as its README says."""
    volume, small = (case["D"], case["H"], case["W"]), (case["d"], case["h"], case["w"])
    ellipsoids = [*case["support_ellipsoids"], case["query_ellipsoid"]]
    factors = np.tile(np.divide(small, volume), 2)
    features, _ = recipe.blob(
        recipe.rng(case["seed"]),
        (len(ellipsoids), case["C"], *small),
        [np.multiply(ellipsoid, factors) for ellipsoid in ellipsoids],
        case["gain"],
        case["noise"],
    )
    masks = np.stack([recipe.ellipsoid(*volume, *ellipsoid) for ellipsoid in ellipsoids])
    tensors = (features[:-1], masks[:-1], features[-1:], masks[-1:])
    return tuple(torch.from_numpy(array)[None] for array in tensors)


def test_every_published_case(golden, recipe):
    cases, arrays = golden("adnet3d")
    for case in cases:
        name = case["name"]
        expected = of_case(arrays, name)
        support, support_masks, query, query_masks = arrange(case, recipe)
        support.requires_grad_(), query.requires_grad_()
        encoder = StubEncoder((case["C"],), (8,))
        encoder.dims = 3
        method = ADNet3D(
            encoder,
            channels=case["C"],
            threshold=case["t"],
            background_weight=case["bg_wt"],
            threshold_weight=case["t_loss_scaler"],
        ).train(case["train"])
        output = method.match((support,), support_masks, (query,), query_masks)

        stride = case["stride"]
        np.testing.assert_allclose(
            output.probabilities[0, 0, :, ::stride, ::stride].detach(), expected["prob_fg"], err_msg=name, **TOLERANCE
        )
        assert abs(output.masks.sum().item() - expected["n_fg_voxels"]) <= 3, name
        small = method.pooling_masks(support_masks, support)
        np.testing.assert_array_equal(small[0].flatten(1).sum(1), expected["mask_nearest_count"], err_msg=name)
        prototype = ops.masked_average(support, small).mean(1)
        np.testing.assert_allclose(prototype.detach(), expected["prototype"], err_msg=name, **TOLERANCE)

        losses = {key: value.item() for key, value in output.losses.items()}
        for ours, theirs in (("query", "query_loss"), ("align", "align_loss"), ("threshold", "thresh_loss")):
            assert losses.get(ours, 0.0) == pytest.approx(expected[theirs].item(), rel=1e-4, abs=1e-5), name
        assert output.loss.item() == pytest.approx(expected["total_loss"].item(), rel=1e-4, abs=1e-5), name

        output.loss.backward()
        compare_gradient(support.grad, expected["grad_support_norm_sum"])
        compare_gradient(query.grad, expected["grad_query_norm_sum"])
        assert method.threshold.grad.item() == pytest.approx(expected["grad_t"].item(), rel=1e-4, abs=1e-5), name
        # the README grants the empty prediction a wider margin: its gradients are differences of clamped logs
        part = 5e-3 if name.startswith("empty_prediction") else 1e-4
        compare_entries(query.grad, expected["grad_query_entries"], part, name)


def test_nearest_rows_of_a_crop():
    """Spec 4.3: 215 -> 27 takes rows 0, 7, 15, 23, ..., which are floor(i * 215 / 27)."""
    rows = torch.arange(215.0)[:, None].expand(1, 1, 2, 215, 215)
    method = ADNet3D(StubEncoder((4,), (8,)), channels=4)
    picked = method.pooling_masks(rows, torch.zeros(1, 1, 4, 2, 27, 27))[0, 0, 0, :, 0]
    assert picked.tolist() == [i * 215 // 27 for i in range(27)] and picked[:4].tolist() == [0, 7, 15, 23]


@pytest.mark.parametrize("threshold", [-10.0, -7.0])
def test_empty_support_mask_gives_sigmoid_of_half_the_threshold(threshold):
    """Spec 14.1."""
    encoder = StubEncoder((4,), (8,))
    encoder.dims = 3
    method = ADNet3D(encoder, channels=4, threshold=threshold).eval()
    features = torch.randn(1, 1, 4, 3, 5, 5)
    output = method.match((features,), torch.zeros(1, 1, 3, 40, 40), (features,))
    torch.testing.assert_close(
        output.probabilities, torch.full((1, 1, 3, 40, 40), 1 / (1 + np.exp(-threshold / 2))).float()
    )
