"""Supervoxels: the pseudo-labels that self-supervised episodes are cut from."""

from supervoxels.segmentation import felzenszwalb, foreground_mask, partitions, rescale, supervoxels

__all__ = ["felzenszwalb", "foreground_mask", "partitions", "rescale", "supervoxels"]
