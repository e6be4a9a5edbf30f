"""VISA-FSS against the published implementation: registration, warping, the loss of continuity, propagation."""

from dataclasses import dataclass

import numpy as np
import pytest
import torch

import models
from dataloaders.pairings import make_pairing
from dataloaders.protocols import make_tasks
from models.parts.encoders import Images
from models.registration import Registration, warp
from models.visa import continuity_loss
from tests.parity.conftest import compare_entries, compare_gradient, of_case
from util.dataset import Fold
from util.episode import Output
from util.evaluation.metrics import overlap
from util.evaluation.slices import SliceInference

IMAGES = dict(rtol=1e-4, atol=2e-4)


@pytest.fixture(scope="module", params=["reg0", "reg1"])
def pair(request, golden, recipe):
    """One golden pair: the case, its arrays, the network with its weights, source, target, extra flow."""
    cases, arrays = golden("visa")
    case = next(case for case in cases["registration"] if case["name"] == request.param)
    expected = of_case(arrays, request.param)
    generator = recipe.rng(case["seed"])
    weights = {name: torch.from_numpy(value) for name, value in recipe.params(generator, case["parameters"]).items()}
    network = Registration(Images())
    network.load_state_dict(weights, strict=True)
    shape, size = (case["batch"], 1, *case["size"]), case["size"]
    pattern = recipe.test_pattern(*size).astype(np.float32)
    source = pattern + recipe.draw(generator, shape, 0.2)
    target = np.roll(pattern, 3, axis=1) + recipe.draw(generator, shape, 0.2)
    given = recipe.draw(generator, (case["batch"], 2, *size), 3.0)
    mask = np.broadcast_to(recipe.ellipse(*size, *case["mask_ellipse"]), shape).copy()
    return case, expected, network.eval(), *map(torch.from_numpy, (source, target, given, mask))


@torch.no_grad()
def test_published_network(pair):
    case, expected, network, source, target, _, _ = pair
    assert sum(p.numel() for p in network.parameters()) == 107_442
    features = network.unet(torch.cat((source, target), 1))[:, :, ::16, ::16]
    np.testing.assert_allclose(features, expected["unet_features_stride"], rtol=1e-4, atol=1e-5)
    flow = network.flow(source, target)
    assert flow.abs().max().item() == pytest.approx(expected["flow_absmax"].item(), rel=1e-4)
    stride = case["stride"]
    np.testing.assert_allclose(flow[:, :, ::stride, ::stride], expected["flow"], rtol=1e-4, atol=5e-5)


@torch.no_grad()
@pytest.mark.parametrize("align_corners", [False, True])
def test_published_warps(pair, align_corners):
    case, expected, network, source, target, given, mask = pair
    kind, stride = f"align_corners_{align_corners}".lower(), case["stride"]
    flow = network.flow(source, target)
    for name, image, by in (("moved", source, flow), ("given_flow", source, given), ("warped_mask", mask, flow)):
        warped = warp(image, by, align_corners)
        np.testing.assert_allclose(warped[:, :, ::stride, ::stride], expected[f"{name}_{kind}"], err_msg=name, **IMAGES)
        if name == "warped_mask":
            counted = warped.round().sum().item()
            assert counted == pytest.approx(expected["warped_mask_rounded_count_false_true"][int(align_corners)], abs=3)
    if not align_corners:
        still = warp(source, torch.zeros_like(given), align_corners)[:, :, ::stride, ::stride]
        np.testing.assert_allclose(still, expected[f"zero_flow_{kind}"], **IMAGES)


@torch.no_grad()
def test_the_method_warps_the_mask_of_the_support(pair):
    """What `match` predicts in protocol=published is the published warped mask."""
    case, expected, network, source, target, _, mask = pair
    published = Registration(Images(), **models.recipe("registration", variants=["published"])["model"]).eval()
    published.load_state_dict(network.state_dict())
    output = published.match((source[:, None],), mask, (target[:, None],))
    found = output.probabilities[:, :, :: case["stride"], :: case["stride"]]
    np.testing.assert_allclose(found, expected["warped_mask_align_corners_false"], **IMAGES)


def test_published_continuity(golden, recipe):
    cases, arrays = golden("visa")
    for case in cases["continuity"]:
        n, height, width, name = case["n"], case["H"], case["W"], case["name"]
        logits = recipe.draw(recipe.rng(case["seed"]), (n, 2, height, width), 2.0)
        for j in range(n):
            ellipse = recipe.ellipse(height, width, 0.5 * height + j, 0.5 * width - j, 0.25 * height, 0.3 * width)
            logits[j, 1] += 4 * ellipse - 2
        logits = torch.from_numpy(logits)[None].requires_grad_()
        loss = continuity_loss(logits)
        loss.sum().backward()
        assert loss.item() == pytest.approx(arrays[f"{name}/loss"].item(), rel=1e-4, abs=1e-5)
        compare_gradient(logits.grad, arrays[f"{name}/grad_norm_sum"])
        compare_entries(logits.grad, arrays[f"{name}/grad_entries"])


@pytest.mark.parametrize("name", ["cont_identical", "cont_complement"])
def test_continuity_of_certain_masks(golden, recipe, name):
    sign = 60 * (2 * recipe.ellipse(16, 16, 8, 8, 4, 5) - 1)
    logits = torch.zeros(1, 4, 2, 16, 16)
    logits[0, :, 1] = torch.from_numpy(sign)
    if name == "cont_complement":
        logits[0, 1::2] *= -1
    expected = golden("visa")[1][f"{name}/loss"].item()
    assert continuity_loss(logits).item() == pytest.approx(expected, abs=1e-5)


class GreyValues(torch.nn.Module):
    """The toy segmenter of the golden walks: how near a pixel is to the mean grey of the support's foreground."""

    def encode(self, images):
        return (images,)

    def match(self, support_features, support_masks, query_features, query_masks=None):
        support, query = support_features[0][:, :, 0].double(), query_features[0][:, :, 0].double()
        inside, outside = support_masks.double(), 1 - support_masks.double()
        scores = [-(query - (support * mask).sum() / mask.sum()).abs() for mask in (outside, inside)]
        if not inside.any():
            scores[1] = torch.full_like(query, -1000)
        return Output(torch.stack(scores, 2))


@dataclass(frozen=True)
class Drawn:
    """A scan of the golden walks."""

    image: np.ndarray
    mask: np.ndarray

    def organ(self, identifier: int) -> np.ndarray:
        return self.mask


def walked_scans(case: dict, recipe) -> dict[int, Drawn]:
    """Support scan 0 (three annotated slices) and query scan 1."""
    height, width, first, last = case["H"], case["W"], case["z_first"], case["z_last"]
    generator = recipe.rng(case["seed"])
    noise = np.moveaxis(recipe.draw(generator, (height, width, case["Z"]), 0.35), -1, 0)
    mask = np.zeros_like(noise)
    for z in range(first, last + 1):
        radius = 3 + 4 * np.sin(np.pi * (z - first + 0.5) / (last - first + 1))
        mask[z] = recipe.ellipse(
            height, width, 11.5 + 0.15 * (z - first), 12.2 - 0.1 * (z - first), radius, 0.8 * radius
        )
    disc = recipe.ellipse(height, width, 11, 12, 5, 5)
    support = 2 * disc + recipe.draw(generator, (3, height, width), 0.35)
    return {0: Drawn(support, np.stack([disc] * 3).astype(bool)), 1: Drawn(2 * mask + noise, mask.astype(bool))}


@pytest.mark.parametrize("name", ["prop0", "prop1", "prop2", "prop3"])
def test_published_propagation(golden, recipe, name):
    """The order of the walk with its duplicate and its lost slices, every mask that was passed on, the Dice."""
    cases, arrays = golden("visa")
    case = next(case for case in cases["propagation"] if case["name"] == name)
    scans = walked_scans(case, recipe)
    pairing = make_pairing("propagate", part_rule="unclamped", anchored=False, whole_volume=False)
    labels = {0: np.ones((3, 24, 24)), 1: scans[1].mask.astype(int)}
    (task,) = make_tasks(Fold(0, (1,)), {"organ": 1}, labels.__getitem__, pairing)
    assert [group.support for group in task.groups] == [((0, 0),), ((0, 1),), ((0, 2),)]

    order = [group.pivot for group in task.groups] + [z for group in task.groups for z, _ in group.walk]
    assert order == arrays[f"{name}/vsps_visit_order"].tolist()
    assert sorted(order) == sorted(task.scored_slices)
    volume = SliceInference(GreyValues(), scans.__getitem__, torch.device("cpu")).probabilities(task)
    np.testing.assert_array_equal(volume > 0.5, arrays[f"{name}/vsps_pred"].astype(bool))
    previous = [(volume[before] > 0.5).sum() for group in task.groups for _, before in group.walk]
    assert [81] * 3 + previous == arrays[f"{name}/vsps_support_mask_sum_per_call"].tolist()
    visited = list(task.scored_slices)
    dice, _ = overlap(volume[visited] > 0.5, scans[1].mask[visited])
    assert dice == pytest.approx(arrays[f"{name}/vsps_dice"].item())


@pytest.mark.parametrize("name", ["prop0", "prop1", "prop2", "prop3"])
def test_ours_visits_every_slice_once(golden, recipe, name):
    case = next(case for case in golden("visa")[0]["propagation"] if case["name"] == name)
    labels = {0: np.ones((3, 24, 24)), 1: walked_scans(case, recipe)[1].mask.astype(int)}
    (task,) = make_tasks(Fold(0, (1,)), {"organ": 1}, labels.__getitem__, make_pairing("propagate"))
    walked = [group.pivot for group in task.groups] + [z for group in task.groups for z, _ in group.walk]
    assert sorted(walked) == list(range(case["Z"]))
