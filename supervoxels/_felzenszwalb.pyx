# cython: boundscheck=False, wraparound=False, initializedcheck=False
"""The fast exact kernel for Python: src/felzenszwalb.hpp on memory that NumPy owns, without the GIL."""

import numpy as np

from libc.stdint cimport int32_t, int64_t


cdef extern from "felzenszwalb.hpp" namespace "supervoxels" nogil:
    void felzenszwalb "supervoxels::segment"(
        const double* image, int64_t depth, int64_t height, int64_t width, const int32_t* offsets,
        const double* weights, double k, int64_t min_size, int threads, int32_t* result) except +


def segment(const double[:, :, ::1] image, const int32_t[:, ::1] offsets, const double[::1] weights, double k,
            int64_t min_size, int threads):
    """Label `image` `(D, H, W)`; `offsets` `(13, 3)` and `weights` `(13,)` are the table of [supervoxels 2.3].

    `k` is the scale over 255 [supervoxels 2.5]. Returns int32 labels `(D, H, W)`, numbered as in [supervoxels 2.7].
    Arguments are not checked here: `supervoxels.felzenszwalb` does that.

    Raises:
        MemoryError: up to 54 bytes per voxel are not to be had.
    """
    labels = np.empty((image.shape[0], image.shape[1], image.shape[2]), dtype=np.int32)
    cdef int32_t[:, :, ::1] result = labels
    with nogil:
        felzenszwalb(&image[0, 0, 0], image.shape[0], image.shape[1], image.shape[2], &offsets[0, 0], &weights[0], k,
                     min_size, threads, &result[0, 0, 0])
    return labels
