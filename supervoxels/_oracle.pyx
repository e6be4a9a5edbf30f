# cython: boundscheck=False, wraparound=False, cdivision=True, initializedcheck=False
"""Kruskal's algorithm as described: all edges listed and sorted, two passes [supervoxels 3.2] [supervoxels 3.3].

Slow (seconds for a scan) and hungry (about 300 bytes per voxel), but every line is a sentence of the description: the
fast kernel is tested against this one. It is also the only one that can visit ties in the order of the published files.
"""

import numpy as np

from libc.math cimport sqrt
from libc.stdint cimport int32_t, int64_t, uint32_t, uint64_t

cdef enum:
    DIRECTIONS = 13
    DIGIT_BITS = 11  # six passes of 11 bits cover the 64 bits of a cost, and 2048 counters stay in the first cache
    DIGITS = 2048
    INSERTION_LENGTH = 15  # NumPy's introsort leaves stretches this short to insertion sort


def segment(const double[:, :, ::1] image, const int32_t[:, ::1] offsets, const double[::1] weights, double k,
            int64_t min_size, bint published):
    """Label `image` `(D, H, W)`; `offsets` `(13, 3)` and `weights` `(13,)` are the table of [supervoxels 2.3].

    `k` is the scale over 255 [supervoxels 2.5]. With `published` ties are visited as NumPy's scalar introsort leaves them
    [supervoxels 3.3], otherwise in the stable order [supervoxels 2.4]. Returns int32 labels `(D, H, W)`, numbered as in
    [supervoxels 2.7].
    """
    cdef int64_t voxels = image.size, edges = count_edges(image, offsets)
    costs = np.empty(edges, dtype=np.float64)
    codes = np.empty(edges, dtype=np.uint32)
    parent = np.arange(voxels, dtype=np.int32)
    size = np.ones(voxels, dtype=np.int32)
    labels = np.empty(voxels, dtype=np.int32)
    cdef double[::1] cost = costs
    cdef uint32_t[::1] code = codes
    cdef int32_t[::1] parents = parent, sizes = size, label = labels
    cdef double[::1] internal
    cdef int64_t[::1] steps = np.array(
        [(dz * image.shape[1] + dy) * image.shape[2] + dx for dz, dy, dx in np.asarray(offsets)], dtype=np.int64)
    with nogil:
        list_edges(image, offsets, weights, cost, code)
    if published:
        costs, codes = introsorted(costs, codes)
    else:
        radix_sort(costs, codes)
    cost, code = costs, codes
    internal = np.zeros(voxels, dtype=np.float64)
    with nogil:
        grow_regions(cost, code, steps, voxels, k, parents, sizes, internal)
        merge_small(code, steps, voxels, min_size, parents, sizes)
        number_components(parents, label)
    return labels.reshape(image.shape[0], image.shape[1], image.shape[2])


cdef int64_t count_edges(const double[:, :, ::1] image, const int32_t[:, ::1] offsets) noexcept:
    cdef int64_t total = 0, across
    cdef int rank, axis
    for rank in range(DIRECTIONS):
        across = 1
        for axis in range(3):
            across *= max(0, image.shape[axis] - abs(offsets[rank, axis]))
        total += across
    return total


cdef void list_edges(const double[:, :, ::1] image, const int32_t[:, ::1] offsets, const double[::1] weights,
                     double[::1] cost, uint32_t[::1] code) noexcept nogil:
    """Every edge once, in the order of its id: direction by direction, each in raster order [supervoxels 2.4]."""
    cdef int64_t depth = image.shape[0], height = image.shape[1], width = image.shape[2], edge = 0
    cdef int64_t z, y, x, dz, dy, dx
    cdef int rank
    cdef double difference
    for rank in range(DIRECTIONS):
        dz, dy, dx = offsets[rank, 0], offsets[rank, 1], offsets[rank, 2]
        for z in range(depth - dz):
            for y in range(max(0, -dy), height - max(0, dy)):
                for x in range(max(0, -dx), width - max(0, dx)):
                    difference = image[z, y, x] - image[z + dz, y + dy, x + dx]
                    cost[edge] = sqrt(weights[rank] * (difference * difference))
                    code[edge] = <uint32_t>(rank * depth * height * width + (z * height + y) * width + x)
                    edge += 1


def radix_sort(costs, codes):
    """Sort both arrays by cost, in place and stably: edges of equal cost keep the order of their ids."""
    cdef int64_t edges = costs.size
    other_costs, other_codes = np.empty_like(costs), np.empty_like(codes)
    cdef uint64_t[::1] key = costs.view(np.uint64), other_key = other_costs.view(np.uint64)
    cdef uint32_t[::1] code = codes, other_code = other_codes
    cdef int digit
    # costs are never negative, and the bits of non-negative doubles sort as the doubles do; the number of passes is
    # even, so the result ends in the arrays it came from
    with nogil:
        for digit in range(3):
            radix_pass(key, code, other_key, other_code, edges, 2 * digit * DIGIT_BITS)
            radix_pass(other_key, other_code, key, code, edges, (2 * digit + 1) * DIGIT_BITS)


cdef void radix_pass(uint64_t[::1] key, uint32_t[::1] code, uint64_t[::1] to_key, uint32_t[::1] to_code,
                     int64_t edges, int shift) noexcept nogil:
    cdef int64_t[DIGITS] place
    cdef int64_t edge, before = 0, here
    cdef int digit
    for digit in range(DIGITS):
        place[digit] = 0
    for edge in range(edges):
        place[(key[edge] >> shift) & (DIGITS - 1)] += 1
    for digit in range(DIGITS):
        here = place[digit]
        place[digit] = before
        before += here
    for edge in range(edges):
        digit = (key[edge] >> shift) & (DIGITS - 1)
        to_key[place[digit]] = key[edge]
        to_code[place[digit]] = code[edge]
        place[digit] += 1


def introsorted(costs, codes):
    """Copies of both arrays sorted by cost, ties left as NumPy's scalar introsort of the indices leaves them (3.3)."""
    order = np.arange(costs.size, dtype=np.uint32)
    cdef const double[::1] cost = costs
    cdef uint32_t[::1] index = order
    cdef bint finished
    if costs.size:
        with nogil:
            finished = introsort(&cost[0], &index[0], index.shape[0])
        if not finished:
            raise ValueError("this image drives NumPy's sort to its depth limit, where the published order is not "
                             "reproduced; use order='stable'")
    return costs[order], codes[order]


cdef inline void swap(uint32_t* index, int64_t a, int64_t b) noexcept nogil:
    cdef uint32_t kept = index[a]
    index[a] = index[b]
    index[b] = kept


cdef bint introsort(const double* cost, uint32_t* index, int64_t length) noexcept nogil:
    """Quicksort of indices as [supervoxels 3.3] fixes it. False if the depth limit is met (never seen on a scan)."""
    cdef int64_t[128] waiting_first, waiting_last
    cdef int[128] waiting_depth
    cdef int waiting = 0, depth = 0
    cdef int64_t first = 0, last = length - 1, middle
    while length >> (depth + 1):
        depth += 1
    depth *= 2
    while True:
        if depth < 0:
            return False
        while last - first > INSERTION_LENGTH:
            middle = partition(cost, index, first, last)
            depth -= 1
            waiting_depth[waiting] = depth
            # the longer part waits, so that the stack stays short
            if middle - first < last - middle:
                waiting_first[waiting], waiting_last[waiting] = middle + 1, last
                last = middle - 1
            else:
                waiting_first[waiting], waiting_last[waiting] = first, middle - 1
                first = middle + 1
            waiting += 1
        insertion_sort(cost, index, first, last)
        if waiting == 0:
            return True
        waiting -= 1
        first, last, depth = waiting_first[waiting], waiting_last[waiting], waiting_depth[waiting]


cdef int64_t partition(const double* cost, uint32_t* index, int64_t first, int64_t last) noexcept nogil:
    """Median of three, Hoare scans that stop on equals; returns where the pivot ends up."""
    cdef int64_t middle = first + ((last - first) >> 1), left = first, right = last - 1
    cdef double pivot
    if cost[index[middle]] < cost[index[first]]:
        swap(index, middle, first)
    if cost[index[last]] < cost[index[middle]]:
        swap(index, last, middle)
    if cost[index[middle]] < cost[index[first]]:
        swap(index, middle, first)
    pivot = cost[index[middle]]
    swap(index, middle, right)
    while True:
        left += 1
        while cost[index[left]] < pivot:
            left += 1
        right -= 1
        while pivot < cost[index[right]]:
            right -= 1
        if left >= right:
            break
        swap(index, left, right)
    swap(index, left, last - 1)
    return left


cdef void insertion_sort(const double* cost, uint32_t* index, int64_t first, int64_t last) noexcept nogil:
    cdef int64_t place, hole
    cdef uint32_t moving
    for place in range(first + 1, last + 1):
        moving = index[place]
        hole = place
        while hole > first and cost[moving] < cost[index[hole - 1]]:
            index[hole] = index[hole - 1]
            hole -= 1
        index[hole] = moving


cdef inline int32_t find(int32_t[::1] parents, int32_t voxel) noexcept nogil:
    while parents[voxel] != voxel:
        parents[voxel] = parents[parents[voxel]]  # path halving
        voxel = parents[voxel]
    return voxel


cdef inline int32_t join(int32_t[::1] parents, int32_t[::1] sizes, int32_t a, int32_t b) noexcept nogil:
    """Unite the roots `a` and `b`; the smaller index becomes the root, which the labels rank [supervoxels 2.7]."""
    cdef int32_t root = min(a, b), child = max(a, b)
    parents[child] = root
    sizes[root] += sizes[child]
    return root


cdef void grow_regions(double[::1] cost, uint32_t[::1] code, int64_t[::1] steps, int64_t voxels, double k,
                       int32_t[::1] parents, int32_t[::1] sizes, double[::1] internal) noexcept nogil:
    """Pass 1 [supervoxels 2.5]. The sum is made in double and rounded to float32, as the published code does."""
    cdef int64_t edge, origin
    cdef int32_t a, b
    for edge in range(code.shape[0]):
        origin = code[edge] % voxels
        a = find(parents, <int32_t>origin)
        b = find(parents, <int32_t>(origin + steps[code[edge] // voxels]))
        if a == b:
            continue
        if cost[edge] < min(<float>(internal[a] + k / sizes[a]), <float>(internal[b] + k / sizes[b])):
            internal[join(parents, sizes, a, b)] = cost[edge]


cdef void merge_small(uint32_t[::1] code, int64_t[::1] steps, int64_t voxels, int64_t min_size,
                      int32_t[::1] parents, int32_t[::1] sizes) noexcept nogil:
    """Pass 2 [supervoxels 2.6]: from the cheapest edge again, whatever it costs, while one side is too small."""
    cdef int64_t edge, origin
    cdef int32_t a, b
    for edge in range(code.shape[0]):
        origin = code[edge] % voxels
        a = find(parents, <int32_t>origin)
        b = find(parents, <int32_t>(origin + steps[code[edge] // voxels]))
        if a != b and (sizes[a] < min_size or sizes[b] < min_size):
            join(parents, sizes, a, b)


cdef void number_components(int32_t[::1] parents, int32_t[::1] label) noexcept nogil:
    """A root is the smallest index of its component, so roots are numbered in raster order [supervoxels 2.7]."""
    cdef int64_t voxel
    cdef int32_t root, count = 0
    for voxel in range(parents.shape[0]):
        root = find(parents, <int32_t>voxel)
        if root == voxel:
            label[voxel] = count
            count += 1
        else:
            label[voxel] = label[root]
