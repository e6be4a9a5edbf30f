"""The contract's own checks."""

import pytest
import torch

from util.episode import Episode, Output


def episode(batch=1, shots=2, queries=3, depth=(), query_depth=()) -> Episode:
    return Episode(
        torch.rand(batch, shots, 1, *depth, 8, 8),
        torch.zeros(batch, shots, *depth, 8, 8),
        torch.rand(batch, queries, 1, *query_depth, 8, 8),
    )


def test_support_and_query_may_differ_in_number_and_depth():
    assert episode(depth=(4,), query_depth=(6,)).query_masks is None


def test_stack_joins_along_episodes():
    stacked = Episode.stack([episode(), episode(2)])
    assert stacked.support_images.shape == (3, 2, 1, 8, 8) and stacked.query_masks is None


@pytest.mark.parametrize(
    "change",
    [
        {"support_masks": torch.zeros(1, 2, 8, 9)},
        {"query_images": torch.rand(2, 3, 1, 8, 8)},
        {"query_masks": torch.zeros(1, 2, 8, 8)},
        {"support_images": torch.rand(1, 2, 8, 8)},
    ],
)
def test_shapes_that_do_not_belong_together_are_refused(change):
    given = episode()
    values = {"support_images": given.support_images, "support_masks": given.support_masks}
    with pytest.raises(ValueError, match="not an episode"):
        Episode(**{**values, "query_images": given.query_images, **change})


def test_ties_go_to_the_background():
    output = Output(torch.zeros(1, 1, 2, 2, 2))
    assert not output.masks.any() and (output.probabilities == 0.5).all()
