# cython: boundscheck=False, wraparound=False, initializedcheck=False
"""The fast exact kernel for Python: src/felzenszwalb.hpp on memory that NumPy owns, without the GIL."""

import numpy as np

from libc.stdint cimport int32_t, int64_t
from libcpp.vector cimport vector


cdef extern from "felzenszwalb.hpp" namespace "supervoxels" nogil:
    vector[vector[int32_t]] felzenszwalb "supervoxels::segment"(
        const double* image, int64_t depth, int64_t height, int64_t width, const int32_t* offsets,
        const double* weights, double k, vector[int64_t] min_sizes, int threads, int32_t* result) except +


def segment(const double[:, :, ::1] image, const int32_t[:, ::1] offsets, const double[::1] weights, double k,
            vector[int64_t] min_sizes, int threads):
    """Label `image` `(D, H, W)`; `offsets` `(13, 3)` and `weights` `(13,)` are the table of [supervoxels 2.3].

    `k` is the scale over 255 [supervoxels 2.5]. Returns int32 labels `(D, H, W)` for the smallest of the minimum
    sizes, numbered as in [supervoxels 2.7], and for each of `min_sizes` an int32 array: entry n is the label that
    label n has in the partition of that size. Arguments are not checked here: `supervoxels.felzenszwalb` does that.

    Raises:
        MemoryError: up to 54 bytes per voxel are not to be had.
    """
    labels = np.empty((image.shape[0], image.shape[1], image.shape[2]), dtype=np.int32)
    cdef int32_t[:, :, ::1] result = labels
    cdef vector[vector[int32_t]] numbers
    with nogil:
        numbers = felzenszwalb(&image[0, 0, 0], image.shape[0], image.shape[1], image.shape[2], &offsets[0, 0],
                               &weights[0], k, min_sizes, threads, &result[0, 0, 0])
    return labels, [np.array(<int32_t[:numbers[size].size()]> numbers[size].data()) for size in range(numbers.size())]


def renumber(const int32_t[:, :, ::1] labels, const int32_t[::1] numbers):
    """`numbers[labels]`, without the 64-bit copy of the labels that NumPy would make."""
    renumbered = np.empty((labels.shape[0], labels.shape[1], labels.shape[2]), dtype=np.int32)
    cdef int32_t[:, :, ::1] result = renumbered
    cdef const int32_t* source = &labels[0, 0, 0]
    cdef int32_t* target = &result[0, 0, 0]
    cdef int64_t voxel, voxels = labels.shape[0] * labels.shape[1] * labels.shape[2]
    with nogil:
        for voxel in range(voxels):
            target[voxel] = numbers[source[voxel]]
    return renumbered
