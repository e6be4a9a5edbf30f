"""Supervoxels and superpixels: the pseudo-labels that self-supervised episodes are cut from."""
