"""Folds, support slices, chunks and metrics of the published protocols: integer tables, compared exactly."""

import numpy as np
import pytest

import config
from dataloaders import pairings, protocols
from util.dataset import Fold, choose_fold
from util.errors import UserError
from util.evaluation.metrics import Masks, overlap, slice_scores
from util.report.scores import overall_mean


@pytest.fixture(scope="module")
def cases(golden):
    return golden("protocol")


@pytest.mark.parametrize("parts", [1, 2, 3, 4, 5])
def test_support_slices_and_chunks(cases, parts):
    _, arrays = cases
    for row, count in enumerate(arrays["extent_values"]):
        assert pairings.support_indices(int(count), parts) == arrays[f"support_index/n{parts}"][row].tolist()
        assert pairings.chunk_borders(int(count), parts) == arrays[f"chunk_borders/n{parts}"][row].tolist()


@pytest.mark.parametrize("parts", [1, 3, 5])
def test_alpnet_parts(cases, parts):
    facts, arrays = cases
    first, margin = facts["alpnet_part_assign"]["z_min"], facts["alpnet_part_assign"]["margin"]
    for row, count in enumerate(arrays["extent_values"]):
        assert pairings.support_indices(int(count), parts) == arrays[f"alpnet_support_element/n{parts}"][row].tolist()
        last = first + int(count) - 1
        assigned = pairings.assign_extent(first, last, last + margin + 1, parts)[first - margin :]
        expected = arrays[f"alpnet_part_assign/n{parts}"][row]
        assert assigned.tolist() == expected[expected >= 0].tolist()


@pytest.mark.parametrize("dataset", ["CHAOST2", "SABS", "CMR"])
def test_published_folds(cases, dataset):
    facts, _ = cases
    for index, expected in facts["folds_adnet_lineage"][dataset].items():
        fold = choose_fold(config.FOLDS, dataset, int(index))
        assert sorted(fold.tested) == expected["test_ids"]
        everything = sorted(expected["test_ids"] + expected["train_ids"])
        assert fold.training(everything) == expected["train_ids"]
        adnet = protocols.published_fold(fold, -1)
        assert (adnet.support, list(adnet.query)) == (expected["support_adnet_last"], expected["queries_adnet"])
        third = protocols.published_fold(fold, 2)
        assert (third.support, list(third.query)) == (expected["support_supp_idx_2"], expected["queries_supp_idx_2"])


@pytest.mark.parametrize("dataset", ["CHAOST2", "SABS"])
def test_strict_folds_are_alpnets_circular_ones(cases, dataset):
    facts, _ = cases
    for index, expected in facts["folds_alpnet_lineage"][dataset].items():
        fold = choose_fold(config.FOLDS, dataset, int(index))
        assert [*fold.query, fold.support] == expected["test_ids"]
        assert fold.training(sorted(expected["test_ids"] + expected["train_ids"])) == expected["train_ids"]
        assert protocols.published_fold(fold, -1, "circular") == fold
        assert [fold.support] == expected["support"]


def test_a_support_is_counted_from_either_end_of_the_test_scans():
    fold = Fold(8, (1, 5))
    assert [protocols.published_fold(fold, index).support for index in (0, 2, -1, -3)] == [1, 8, 8, 1]
    for index in (3, -4):
        with pytest.raises(UserError, match=f"no test scan number {index}"):
            protocols.published_fold(fold, index)


@pytest.mark.parametrize("dataset", sorted(config.FOLDS))
def test_strict_folds_query_every_scan_once(dataset):
    folds = [choose_fold(config.FOLDS, dataset, index) for index in range(len(config.FOLDS[dataset]))]
    queries = [scan for fold in folds for scan in fold.query]
    assert len(queries) == len(set(queries))
    assert {fold.support for fold in folds} <= set(queries)


@pytest.mark.parametrize("dataset", ["CHAOST2", "SABS"])
def test_setting_2_leaves_the_classes_of_alpnets_label_groups(cases, dataset):
    """The published label sets name what training may see: all organs but those that are tested."""
    published, known = cases[0]["alpnet_label_groups"][dataset], config.DATASETS[dataset]
    everything = set(known.chosen("all").values())
    assert everything == set(published["pa_all"])
    seen = {group: everything - set(known.chosen(group).values()) for group in known.groups}
    assert seen == {"lower": set(published["0"]), "upper": set(published["1"])}


def test_dice_and_iou(cases):
    _, arrays = cases
    for index, (dice, iou) in enumerate(zip(arrays["dice/patient_dice"], arrays["dice/patient_iou"], strict=True)):
        prediction, label = arrays[f"dice/pred{index}"] == 1, arrays[f"dice/label{index}"] == 1
        np.testing.assert_allclose(overlap(prediction, label), (dice, iou), rtol=1e-6)


def test_counts_and_overlap_of_all_volumes_together(cases):
    _, arrays = cases
    number = len(arrays["dice/patient_dice"])
    prediction, label = (
        np.concatenate([arrays[f"dice/{name}{index}"] == 1 for index in range(number)]) for name in ("pred", "label")
    )
    masks = Masks(prediction, label)
    neither = label.size - masks.found - masks.present + masks.hits
    counts = [masks.hits, neither, masks.found - masks.hits, masks.present - masks.hits]
    assert counts == arrays["dice/counts_TP_TN_FP_FN"].tolist()
    pooled = arrays["dice/pooled_dice"], arrays["dice/pooled_iou"]
    np.testing.assert_allclose(overlap(prediction, label), pooled, rtol=1e-6)


def test_alpnets_recorder(cases):
    """The raw scores of every scan, and a mean that is NaN as soon as one scan is 0/0."""
    _, arrays = cases
    rows = []
    for index in range(len(arrays["alpnet_metric/raw_dice"])):
        prediction, label = arrays[f"dice/pred{index}"] == 1, arrays[f"dice/label{index}"] == 1
        scores = slice_scores(prediction, label)
        row = {"dice": scores["dice"], "precision": scores["precision_slices"], "recall": scores["recall_slices"]}
        for name, value in row.items():
            np.testing.assert_allclose(value, arrays[f"alpnet_metric/raw_{name}"][index, 0], rtol=1e-6, err_msg=name)
        rows.append({"organ": "1", **row})
    (expected,) = arrays["alpnet_metric/class_dice_mean"]
    assert np.isnan(expected) and np.isnan(arrays["alpnet_metric/mean_dice"])
    assert np.isnan(overall_mean(rows, recorder="alpnet"))
    defined = [row for row in rows if not np.isnan(row["dice"])]
    assert overall_mean(defined, recorder="alpnet") == pytest.approx(np.nanmean(arrays["dice/patient_dice"]))
