"""ALPNet against the published implementation: scores, prototypes and their choice, both losses, gradients."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from models.alpnet import SMALLEST_CELL, ALPNet
from models.parts import ops
from tests.parity.conftest import StubEncoder, compare_entries, compare_gradient, of_case
from util.errors import UserError

SCORES = dict(rtol=1e-4, atol=2e-5)  # scores reach 15: the README's margin for float32
FOREGROUND_MODE = {True: "gridconv+", False: "mask"}


def features(case: dict, recipe, ellipses: list) -> tuple[torch.Tensor, torch.Tensor]:
    """Support (1, S, C, h, w) and query (1, 1, C, h, w), drawn as the README says; they ask for gradients."""
    shape = (len(ellipses), case["C"], case["h"], case["w"])
    drawn, _ = recipe.blob(recipe.rng(case["seed"]), shape, ellipses, case["gain"], case["noise"])
    support, query = torch.from_numpy(drawn[None]).split([case["shots"], 1], dim=1)
    return support.clone().requires_grad_(), query.clone().requires_grad_()


def unit_masks(case: dict, recipe) -> torch.Tensor:
    """Masks (1, S, h, w) at feature resolution."""
    h, w = case["h"], case["w"]
    if case["soft_mask"]:
        drawn = [recipe.ellipse(8 * h, 8 * w, *(8 * np.array(ellipse))) for ellipse in case["mask_ellipses"]]
        masks = ops.resize(torch.from_numpy(np.stack(drawn))[None], (h, w), align_corners=False)
    else:
        masks = torch.from_numpy(np.stack([recipe.ellipse(h, w, *ellipse) for ellipse in case["mask_ellipses"]]))[None]
    masks = torch.zeros_like(masks) if case.get("zero_mask") else masks
    return 1 - masks if case["background"] else masks


def build(case: dict, training: bool, **options) -> ALPNet:
    options = dict(channels=case["C"], grid=case["grid"], test_cell=case["val_wsize"]) | options
    return ALPNet(StubEncoder((case["C"],), (8,)), **options).train(training)


def prototypes(method: ALPNet, case: dict, support: torch.Tensor, masks: torch.Tensor):
    """The prototypes of a unit case's mode: `gridconv` is the background's rule, the foreground's has the others."""
    rule = method.background_prototypes if case["mode"] == "gridconv" else method.foreground_prototypes
    return rule(support, masks)


def test_every_published_unit(golden, recipe):
    cases, arrays = golden("alpnet")
    units = [case for case in cases if case["name"].startswith("unit_")]
    assert len(units) == 13
    for case in units:
        name = case["name"]
        expected = of_case(arrays, name)
        support, query = features(case, recipe, case["feature_ellipses"])
        masks = unit_masks(case, recipe)
        method = build(case, not case["isval"], prototypes="mask" if case["mode"] == "mask" else "grid")
        found, takes_part = prototypes(method, case, support, masks)
        score = method.local_score(query, found, takes_part)
        np.testing.assert_allclose(score[0, 0].detach(), expected["score"], err_msg=name, **SCORES)

        if case["mode"] != "mask":
            similarities = method.similarities(query, found)[0, 0, takes_part[0]].detach()
            assert len(similarities) == expected["n_protos"], name
            np.testing.assert_array_equal(similarities.argmax(0), expected["assign"], err_msg=name)
            row = similarities[:64, case["h"] // 2]
            np.testing.assert_allclose(row, expected["sims_at_centre_row"], err_msg=name, **SCORES)

        score.square().mean().backward()
        compare_gradient(query.grad, expected["grad_q_norm_sum"])
        compare_gradient(support.grad, expected["grad_s_norm_sum"])
        compare_entries(query.grad, expected["grad_q_entries"], name=name)


def test_every_published_forward(golden, recipe):
    cases, arrays = golden("alpnet")
    forwards = [case for case in cases if case["name"].startswith("forward_")]
    assert len(forwards) == 7
    for case in forwards:
        name, size, stride = case["name"], (case["H"], case["W"]), case["stride"]
        expected = of_case(arrays, name)
        ellipses = [*case["support_ellipses"], case["query_ellipse"]]
        scale = np.array([case["h"], case["w"]] * 2) / np.array(size * 2)
        support, query = features(case, recipe, [scale * ellipse for ellipse in ellipses])
        drawn = torch.from_numpy(np.stack([recipe.ellipse(*size, *ellipse) for ellipse in ellipses]))[None]
        support_masks, query_masks = drawn.split([case["shots"], 1], dim=1)
        method = build(case, case["train"])
        output = method.match((support,), support_masks, (query,), query_masks)

        np.testing.assert_allclose(
            output.logits[0, 0, :, ::stride, ::stride].detach(), expected["logits"], err_msg=name, **SCORES
        )
        assert abs(output.masks.sum().item() - expected["n_fg_pixels"]) <= 3, name
        losses = {key: value.item() for key, value in output.losses.items()}
        assert losses["query"] == pytest.approx(expected["query_loss"].item(), rel=1e-4, abs=1e-5), name
        assert losses.get("align", 0.0) == pytest.approx(expected["align_loss"].item(), rel=1e-4, abs=1e-5), name
        assert output.loss.item() == pytest.approx(expected["total_loss"].item(), rel=1e-4, abs=1e-5), name

        output.loss.backward()
        compare_gradient(support.grad, expected["grad_support_norm_sum"])
        compare_gradient(query.grad, expected["grad_query_norm_sum"])
        compare_entries(torch.cat((support.grad, query.grad), 1), expected["grad_entries"], name=name)

        masks = ops.resize(support_masks, (case["h"], case["w"]), align_corners=False)
        assert F.avg_pool2d(masks, SMALLEST_CELL).max().item() == pytest.approx(
            expected["max_4x4_pooled_fg_mask"].item()
        )
        takes_part = method.foreground_prototypes(support, masks)[1]
        assert FOREGROUND_MODE[takes_part.sum().item() > 1] == case["fg_mode_expected"], name


def random_batch(side: int, foreground: list[tuple[int, int]], shots: int = 1) -> tuple[torch.Tensor, ...]:
    """Features of stride 8 and masks (rows below, rows from) of as many episodes; supports and queries alike."""
    generator = torch.Generator().manual_seed(0)
    maps = torch.randn(2, len(foreground), shots, 8, side // 8, side // 8, generator=generator)
    masks = torch.zeros(len(foreground), shots, side, side)
    for episode, (start, stop) in enumerate(foreground):
        masks[episode, :, start:stop] = 1
    return maps[0].requires_grad_(), masks, maps[1, :, :1].requires_grad_(), masks[:, :1]


def run(batch: tuple[torch.Tensor, ...], training: bool = True, **options):
    support, support_masks, query, query_masks = batch
    method = ALPNet(StubEncoder((8,), (8,)), channels=8, **options).train(training)
    return method, method.match((support,), support_masks, (query,), query_masks)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("part", [0, 1], ids=["nothing", "everything"])
def test_masks_of_nothing_and_of_everything_are_answered(training, part):
    """The published code stops where no background cell passes [alpnet D11]: here the masked average stands in."""
    batch = random_batch(256, [(0, 256 * part)])
    method, output = run(batch, training)
    output.loss.backward()
    assert output.logits.isfinite().all() and output.loss.isfinite()
    assert batch[0].grad.isfinite().all() and batch[2].grad.isfinite().all()
    assert not output.logits[:, :, 1 - part].any(), "the class without a pixel scores 0"

    masks = torch.full((1, 1, 32, 32), 0.9)  # background everywhere, nowhere enough of it
    found, takes_part = method.background_prototypes(batch[0], masks)
    assert takes_part.sum() == 1
    torch.testing.assert_close(found[takes_part], ops.weighted_average(batch[0], masks)[0])


def test_episodes_of_both_modes_share_a_batch():
    """Large, small and empty foregrounds: logits and alignment loss are those of the episodes one by one."""
    batch = random_batch(256, [(40, 200), (90, 100), (0, 0)], shots=2)
    _, together = run(batch)
    alone = [run(tuple(tensor[b : b + 1] for tensor in batch))[1] for b in range(3)]
    torch.testing.assert_close(together.logits, torch.cat([output.logits for output in alone]), **SCORES)
    torch.testing.assert_close(together.losses["align"], sum(output.losses["align"] for output in alone) / 3)


@pytest.mark.parametrize(("side", "cells"), [(32, 4), (200, 8), (256, 8), (320, 8), (376, 9)])
def test_the_training_grid_follows_the_image(side, cells):
    """Cells of size // grid features, as many as fit: about 8 x 8; in a smaller map every feature is a cell."""
    batch = random_batch(side, [(0, side // 2)])
    method, output = run(batch)
    assert output.logits.shape[-2:] == (side, side) and output.loss.isfinite()
    found, inside = method.cells(batch[0], torch.ones(1, 1, side // 8, side // 8), 0.95)
    assert found.shape[1] == cells**2 and inside.all()


def test_global_prototypes_are_a_cosine():
    """prototypes="mask" is PANet: scale times the cosine with each class's masked average."""
    batch = random_batch(256, [(40, 200)])
    _, output = run(batch, False, prototypes="mask")
    masks = ops.resize(batch[1], (32, 32), align_corners=False)
    for label, mask in enumerate((1 - masks, masks)):
        score = 20 * ops.cosine_map(batch[2], ops.weighted_average(batch[0], mask))
        torch.testing.assert_close(
            output.logits[:, :, label], ops.resize(score, (256, 256), align_corners=False), **SCORES
        )


def test_an_unknown_kind_of_prototypes_is_refused():
    with pytest.raises(UserError, match="grid, mask"):
        ALPNet(StubEncoder((8,), (8,)), prototypes="local")


def test_a_cell_must_hold_more_than_the_threshold_and_the_choice_between_modes_as_much():
    """[alpnet 8.2] Half a foreground everywhere at a threshold of a half: the grid's mode, in which no cell passes."""
    method = ALPNet(StubEncoder((8,), (8,)), channels=8, foreground_threshold=0.5, background_threshold=0.5).train()
    support, masks = torch.randn(1, 2, 8, 32, 32), torch.full((1, 2, 32, 32), 0.5)
    assert method.foreground_prototypes(support, masks)[1].sum() == 2  # the average of either shot
    assert method.background_prototypes(support, masks)[1].sum() == 1  # one for both


def test_the_weight_of_the_alignment_scales_that_loss_alone():
    batch = random_batch(64, [(8, 40)])
    one, half = (run(batch, align_weight=weight)[1].losses for weight in (1.0, 0.5))
    torch.testing.assert_close(half["align"], one["align"] / 2)
    torch.testing.assert_close(half["query"], one["query"])
