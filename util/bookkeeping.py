"""Habits of a method's published code that nobody types: a method states its own as `published = Bookkeeping(...)`."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Bookkeeping:
    """How the published code of a method draws pairs and counts results.

    Attributes:
        size_of: which slice of a pair `episode.min_size` is asked of, under both protocols: the "first" (ADNet) or the
            "larger" of the two (Q-Net family).
        consecutive: pairs lie within runs of consecutive slices, under both protocols; False pairs neighbours in the
            list of slices, even if the supervoxel is interrupted between them [adnet D7].
        lost_labels: protocol=published: synthetic queries lose their label unless the superpixel has number 1, by
            stage of the training [visa V2].
        support_index: protocol=published: position of the support among the test scans of the fold.
        fold_order: these scans in ascending order ("sorted"), or "circular" with the support last.
        part_rule: protocol=published: parts of equal numbers of slices ("chunks"), or thirds of the organ's "extent"
            (ALPNet), or these "unclamped" (VISA-FSS).
        recorder: protocol=published: "plain", or "alpnet", which shows precision and recall, and one 0/0 makes a mean
            NaN.
    """

    size_of: str = "first"
    consecutive: bool = False
    lost_labels: tuple[int, ...] = ()
    support_index: int = -1
    fold_order: str = "sorted"
    part_rule: str = "chunks"
    recorder: str = "plain"
