"""Scores equal an independent library's on random and degenerate masks; empty masks follow one rule."""

import math
import time
import warnings

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from util.evaluation.metrics import METRICS, overlap, volume_scores

with warnings.catch_warnings():
    warnings.simplefilter("ignore", DeprecationWarning)
    import surface_distance

SHAPE = (5, 9, 8)
SPACING = (7.7, 1.51, 1.2)
VOLUME_SCORES = tuple(name for name, metric in METRICS.items() if metric.whole)


def surface_scores(prediction: np.ndarray, truth: np.ndarray, spacing) -> dict[str, float]:
    scores = volume_scores(prediction, truth, spacing)
    return {name: scores[name] for name in ("hd95", "assd", "nsd_2mm", "nsd_4mm")}


def reference(prediction: np.ndarray, truth: np.ndarray, spacing) -> dict[str, float]:
    """The same scores by the library of the paper that defined them."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        found = surface_distance.compute_surface_distances(truth, prediction, spacing)
    areas = np.concatenate([found["surfel_areas_gt"], found["surfel_areas_pred"]])
    distances = np.concatenate([found["distances_gt_to_pred"], found["distances_pred_to_gt"]])
    return {
        "hd95": surface_distance.compute_robust_hausdorff(found, 95),
        "assd": (distances * areas).sum() / areas.sum(),
        "nsd_2mm": surface_distance.compute_surface_dice_at_tolerance(found, 2),
        "nsd_4mm": surface_distance.compute_surface_dice_at_tolerance(found, 4),
    }


def box(*bounds: tuple[int, int]) -> np.ndarray:
    mask = np.zeros(SHAPE, dtype=bool)
    mask[tuple(slice(*bound) for bound in bounds)] = True
    return mask


DEGENERATE = {
    "one voxel": box((2, 3), (4, 5), (3, 4)),
    "a corner": box((0, 1), (0, 1), (0, 1)),
    "the other corner": box((4, 5), (8, 9), (7, 8)),
    "one slice": box((3, 4), (1, 8), (2, 7)),
    "a line": box((0, 5), (4, 5), (4, 5)),
    "touching every border": box((0, 5), (0, 9), (3, 5)),
    "full": box((0, 5), (0, 9), (0, 8)),
    "full but one voxel": box((0, 5), (0, 9), (0, 8)) & ~box((2, 3), (4, 5), (4, 5)),
}


@pytest.mark.parametrize("truth", DEGENERATE)
@pytest.mark.parametrize("prediction", DEGENERATE)
def test_surface_scores_of_degenerate_masks_equal_the_reference(prediction, truth):
    masks = DEGENERATE[prediction], DEGENERATE[truth]
    assert surface_scores(*masks, SPACING) == pytest.approx(reference(*masks, SPACING), rel=1e-5)


@settings(max_examples=80, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    shape=st.tuples(*[st.integers(1, 8)] * 3),
    density=st.sampled_from([0.05, 0.3, 0.7]),
    spacing=st.tuples(*[st.floats(0.3, 9.0)] * 3),
)
def test_surface_scores_of_random_masks_equal_the_reference(seed, shape, density, spacing):
    random = np.random.default_rng(seed)
    masks = random.random((2, *shape)) < density
    if masks[0].any() and masks[1].any():
        found, expected = surface_scores(*masks, spacing), reference(*masks, spacing)
        # a percentile may fall on either of two neighbours where the area up to there is 0.95 to the last digit
        assert found.pop("hd95") == pytest.approx(expected.pop("hd95"), rel=1e-5) or _on_the_edge(*masks, spacing)
        assert found == pytest.approx(expected, rel=1e-5)


def _on_the_edge(prediction, truth, spacing) -> bool:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        found = surface_distance.compute_surface_distances(truth, prediction, spacing)
    covered = [np.cumsum(found[f"surfel_areas_{side}"]) for side in ("gt", "pred")]
    return any(np.abs(areas / areas[-1] - 0.95).min() < 1e-5 for areas in covered)


def test_distances_are_in_millimetres_along_every_axis():
    """Two voxels, three steps apart: their corners are two or three steps from the nearest corner of the other."""
    for axis, step in enumerate(SPACING):
        masks = np.zeros((2, 6, 6, 6), dtype=bool)
        masks[0, 1, 1, 1] = True
        masks[1][tuple(4 if other == axis else 1 for other in range(3))] = True
        scores = surface_scores(*masks, SPACING)
        assert scores["hd95"] == pytest.approx(3 * step) and scores["assd"] == pytest.approx(2.5 * step)


def test_overlap_counts_by_hand():
    prediction, truth = box((1, 3), (0, 4), (0, 4)), box((1, 3), (0, 4), (2, 5))
    scores = volume_scores(prediction, truth, SPACING)  # 32 voxels, 24 voxels, 16 in both
    assert scores["dice_volume"] == pytest.approx(2 * 16 / 56) == overlap(prediction, truth)[0]
    assert scores["iou_volume"] == pytest.approx(16 / 40)
    assert scores["precision"] == pytest.approx(16 / 32) and scores["recall"] == pytest.approx(16 / 24)
    assert scores["volume_error"] == pytest.approx(32 / 24 - 1)
    assert tuple(scores) == VOLUME_SCORES


def test_perfect_prediction():
    truth = box((1, 3), (2, 6), (1, 4))
    best = dict.fromkeys(VOLUME_SCORES, 1.0) | {"volume_error": 0.0, "hd95": 0.0, "assd": 0.0}
    assert volume_scores(truth, truth, SPACING) == pytest.approx(best)


def test_two_empty_masks_are_not_scored():
    empty = np.zeros(SHAPE, dtype=bool)
    scores = volume_scores(empty, empty, SPACING)
    assert tuple(scores) == VOLUME_SCORES and all(math.isnan(value) for value in scores.values())


def test_one_empty_mask_is_as_wrong_as_can_be():
    empty, organ = np.zeros(SHAPE, dtype=bool), box((1, 3), (2, 6), (1, 4))
    diagonal = math.sqrt(sum((n * mm) ** 2 for n, mm in zip(SHAPE, SPACING, strict=True)))
    worst = dict.fromkeys(VOLUME_SCORES, 0.0) | {"hd95": diagonal, "assd": diagonal}
    assert volume_scores(empty, organ, SPACING) == pytest.approx(worst | {"volume_error": -1.0})
    invented = volume_scores(organ, empty, SPACING)
    assert math.isnan(invented.pop("volume_error"))
    assert invented == pytest.approx({name: value for name, value in worst.items() if name != "volume_error"})
    # nothing that is found can be further away
    corners = surface_scores(DEGENERATE["a corner"], DEGENERATE["the other corner"], SPACING)
    assert max(corners["hd95"], corners["assd"]) < diagonal


def test_masks_of_two_shapes_are_refused():
    with pytest.raises(ValueError, match="differ in shape"):
        volume_scores(np.ones((2, 3, 4), dtype=bool), np.ones((2, 3, 5), dtype=bool), SPACING)


def test_four_organs_of_four_scans_take_seconds():
    z, y, x = np.ogrid[:36, :256, :256]
    centre = ((z - 18) * 7.7) ** 2 + ((y - 120) * 1.5) ** 2
    truth, prediction = (centre + ((x - at) * 1.5) ** 2 < 50**2 for at in (100, 104))
    start = time.process_time()
    for _ in range(4):
        surface_scores(prediction, truth, (7.7, 1.5, 1.5))
    assert time.process_time() - start < 4  # a quarter of them; 0.2 s here


def test_a_surface_exactly_at_the_tolerance_is_within_it():
    truth = np.zeros((8, 8, 12), bool)
    truth[2:6, 2:6, 2:6] = True
    scores = volume_scores(np.roll(truth, 2, axis=2), truth, (1.0, 1.0, 1.0))
    assert scores["nsd_2mm"] == 1 and scores["hd95"] == 2
