// Finding and sorting the next cheapest edges.
//
// Kruskal's algorithm wants all 13 N edges in order of (cost, id). Most of them never matter: when their turn comes
// both ends lie in one component already. So edges are not listed at all; they are looked for when their turn
// comes, a stretch of costs at a time, and only those that can still matter by then are collected and sorted
// ("filter Kruskal", Osipov, Sanders and Singler, ALENEX 2009). The order of what remains is the order of the full
// list.
#pragma once

#include <cstring>

#include "grid.hpp"

#ifdef _MSC_VER
#include <intrin.h>
#endif

// Where the compiler can, the inner loop is compiled for several processors and the right one is taken at run time. It
// only decides which edges are looked at exactly, so labels do not depend on it.
#if defined(__GNUC__) && !defined(__clang__) && defined(__x86_64__) && defined(__linux__)
#define SUPERVOXELS_CLONES __attribute__((target_clones("avx512f", "avx2", "default")))
#else
#define SUPERVOXELS_CLONES
#endif

namespace supervoxels {

// An edge's id is its rank (direction), then its origin: the order in which ties are visited [supervoxels 2.4].
struct Edge {
    double cost;
    uint64_t id;
    int rank() const { return static_cast<int>(id >> 32); }
    int64_t origin() const { return static_cast<int64_t>(id & 0xffffffffu); }
};

inline bool operator<(const Edge& a, const Edge& b) { return (a.cost < b.cost) | ((a.cost == b.cost) & (a.id < b.id)); }

inline uint64_t edge_id(int64_t origin, int rank) {
    return static_cast<uint64_t>(rank) << 32 | static_cast<uint64_t>(origin);
}

inline int lowest_bit(uint32_t bits) {
#ifdef _MSC_VER
    unsigned long index;
    _BitScanForward(&index, bits);
    return static_cast<int>(index);
#else
    return __builtin_ctz(bits);
#endif
}

// Ask for memory that is needed soon.
inline void prefetch(const void* address) {
#ifdef _MSC_VER
    _mm_prefetch(static_cast<const char*>(address), _MM_HINT_T0);
#else
    __builtin_prefetch(address);
#endif
}

// Look for equal values in the rows after those of 64 voxels: bit 3 r + 1 + dx of hits[i] is set where voxel i is
// to be joined with the neighbour dx = -1, 0, 1 to the side in row r. Runs of equals within a row are joined
// already, which makes most of these edges redundant: an equal diagonal neighbour needs no edge beside an equal
// straight one, and none to the left (nor the straight one) if the voxel's own left neighbour is equal, because
// that one has joined them.
SUPERVOXELS_CLONES
inline void look_for_equals(const double* image, const int64_t* rows, int first_row, int last_row, int64_t* hits) {
    int64_t hit[kBlock], first[kBlock];
    for (int i = 0; i < kBlock; ++i) {
        hit[i] = 0;
        first[i] = image[i] == image[i - 1] ? 0 : -1;
    }
    for (int r = first_row; r < last_row; ++r) {
        const double* below = image + rows[r];
        const int64_t left = int64_t{1} << 3 * r, straight = left << 1, right = left << 2;
        for (int i = 0; i < kBlock; ++i) {
            const double value = image[i];
            const int64_t is_straight = value == below[i] ? -1 : 0;
            const int64_t to_left = (value == below[i - 1] ? left : 0) & first[i] & ~is_straight;
            const int64_t to_right = (value == below[i + 1] ? right : 0) & ~is_straight;
            hit[i] |= to_left | to_right | (is_straight & first[i] & straight);
        }
    }
    for (int i = 0; i < kBlock; ++i) hits[i] = hit[i];
}

// What the inner loop compares differences of shades with, for each direction. Two rounded shades are off by at most 1
// together; the slack of 2 covers the rounding of the bounds as well.
struct ShadeBounds {
    static constexpr int32_t kSlack = 2;
    int32_t low[kDirections];     // below: certainly cheaper than the stretch
    int32_t high[kDirections];    // above: certainly dearer than the stretch
    int32_t beyond[kDirections];  // from here on: perhaps dearer than the stretch
    double scale_in_plane = 1, scale_across = kInfinity;  // smallest factor from a difference of shades to a cost

    ShadeBounds(const Grid& grid, double low_cost, double high_cost) {
        for (int rank = 0; rank < kDirections; ++rank) {
            const double root = std::sqrt(grid.weight[rank]);
            // without shades (zoom 0) infinity * 0 is to stay infinite
            const double scaled = high_cost == kInfinity ? kInfinity : high_cost * grid.zoom / root;
            low[rank] = clamped(low_cost * grid.zoom / root) - kSlack;
            high[rank] = clamped(scaled) + kSlack;
            beyond[rank] = clamped(scaled) - kSlack;
            if (rank >= kInPlane) scale_across = std::min(scale_across, root);
        }
    }

    // A lower bound of cost * zoom for differences of shades that are at least these two.
    double least(int32_t in_plane, int32_t across) const {
        return std::min((in_plane - kSlack) * scale_in_plane, (across - kSlack) * scale_across);
    }

  private:
    static int32_t clamped(double shades) { return static_cast<int32_t>(std::min<double>(shades, 2 * kShades)); }
};

// Look at the 13 edges of 64 voxels: bit `rank` of hits[i] is set where that edge may lie in the stretch and its
// ends are not known to be settled. Returns a lower bound of cost * zoom for the unsettled edges that may lie
// beyond it.
//
// Settled: both ends in one component, or both in components of at least min_size voxels (their labels are
// negative). Neither ever changes back, so such an edge can be dropped for good; a label that is out of date only
// costs time.
SUPERVOXELS_CLONES
inline double look(const int32_t* shade, const int32_t* label, const int64_t* step, const ShadeBounds& bounds,
                   int32_t* hits) {
    int32_t hit[kBlock];  // local, so that the compiler sees that they overlap nothing, and uses vectors
    int32_t nearest[2][kBlock];
    for (int i = 0; i < kBlock; ++i) {
        hit[i] = 0;
        nearest[0][i] = nearest[1][i] = kPadding;
    }
    for (int rank = 0; rank < kDirections; ++rank) {
        const int32_t* other_shade = shade + step[rank];
        const int32_t* other_label = label + step[rank];
        const int32_t low = bounds.low[rank], high = bounds.high[rank], beyond = bounds.beyond[rank];
        const int32_t bit = 1 << rank;
        int32_t* near = nearest[rank < kInPlane ? 0 : 1];
        for (int i = 0; i < kBlock; ++i) {  // whole numbers and no branches: this becomes vector code on any processor
            const int32_t change = shade[i] - other_shade[i];
            const int32_t difference = change < 0 ? -change : change;
            const int32_t open = (label[i] != other_label[i] ? -1 : 0) & ~((label[i] & other_label[i]) >> 31);
            const int32_t within = (difference >= low ? open : 0) & (difference <= high ? bit : 0);
            const int32_t later = (difference >= beyond ? open : 0) ? difference : kPadding;
            hit[i] |= within;
            near[i] = later < near[i] ? later : near[i];
        }
    }
    int32_t in_plane = kPadding, across = kPadding;
    for (int i = 0; i < kBlock; ++i) {
        hits[i] = hit[i];
        in_plane = std::min(in_plane, nearest[0][i]);
        across = std::min(across, nearest[1][i]);
    }
    // only edges into the padding, which are as far away as that, are left: none
    return std::min(in_plane, across) >= kPadding - kShades ? kInfinity : bounds.least(in_plane, across);
}

// Collects edges up to a capacity. When it is full it keeps about the cheaper half and lowers its own upper end, so
// that what it holds is always *every* open edge seen from `low` up to `high`.
class Collector {
  public:
    Collector(Edge low, Edge high, size_t capacity) : low(low), high(high), capacity_(std::max<size_t>(capacity, 64)) {}

    void add(const Edge* found, int count) {
        const size_t filled = edges.size();
        edges.resize(filled + count);
        size_t end = filled;
        for (int i = 0; i < count; ++i) {
            edges[end] = found[i];
            end += !(found[i] < low) & (found[i] < high);
        }
        edges.resize(end);
        if (end > capacity_) halve();
    }

    // Drop what lies at or above `bound`.
    void lower(Edge bound) {
        high = bound;
        edges.erase(std::remove_if(edges.begin(), edges.end(), [&](const Edge& edge) { return !(edge < bound); }),
                    edges.end());
    }

    Edge low, high;
    std::vector<Edge> edges;

  private:
    // The middle of a sample is near enough: any end is right that leaves some edges and drops some.
    void halve() {
        std::vector<Edge> sample;
        for (size_t i = 0; i < edges.size(); i += edges.size() / 512 + 1) sample.push_back(edges[i]);
        const auto middle = sample.begin() + sample.size() / 2;
        std::nth_element(sample.begin(), middle, sample.end());
        lower(*middle);
    }
    size_t capacity_;
};

// Put the edges of all collectors into `edges`, sorted by (cost, id); the collectors are empty afterwards. They
// hold raster order, so a stable pass over the ranks puts edges in the order of their ids, and stable passes over
// the digits of the cost do the rest. Costs are never negative, and the bits of non-negative doubles sort as the
// doubles do.
inline void sort_edges(std::vector<Collector>& parts, std::vector<Edge>& edges, std::vector<Edge>& spare) {
    constexpr int kDigitBits = 11, kDigits = 1 << kDigitBits;
    const int threads = static_cast<int>(parts.size());
    size_t count = 0;
    uint64_t varying = 0;
    auto bits = [](const Edge& edge) {
        uint64_t result;
        std::memcpy(&result, &edge.cost, sizeof result);
        return result;
    };
    const uint64_t first = parts[0].edges.empty() ? 0 : bits(parts[0].edges[0]);
    for (const Collector& part : parts) {
        count += part.edges.size();
        for (const Edge& edge : part.edges) varying |= bits(edge) ^ first;
    }
    edges.resize(count);
    spare.resize(count);
    std::vector<std::vector<int64_t>> places(threads, std::vector<int64_t>(kDigits));
    // every thread moves its own part of the source; an earlier part goes before a later one, so the sort is stable
    auto pass = [&](auto source_of, std::vector<Edge>& target, auto digit_of) {
        in_parallel(threads, [&](int thread) {
            int64_t* place = places[thread].data();
            std::fill(place, place + kDigits, 0);
            const auto source = source_of(thread);
            for (const Edge* edge = source.first; edge < source.second; ++edge) ++place[digit_of(*edge)];
        });
        int64_t before = 0;
        for (int digit = 0; digit < kDigits; ++digit)
            for (auto& place : places) {
                const int64_t here = place[digit];
                place[digit] = before;
                before += here;
            }
        in_parallel(threads, [&](int thread) {
            int64_t* place = places[thread].data();
            Edge* sorted = target.data();
            const auto source = source_of(thread);
            for (const Edge* edge = source.first; edge < source.second; ++edge)
                sorted[place[digit_of(*edge)]++] = *edge;
        });
    };
    pass([&](int thread) {
        const std::vector<Edge>& part = parts[thread].edges;
        return std::make_pair(part.data(), part.data() + part.size());
    }, edges, [](const Edge& edge) { return edge.rank(); });
    for (Collector& part : parts) part.edges = std::vector<Edge>();
    if (count < kDigits) {  // too few to fill the counters
        std::sort(edges.begin(), edges.end());
        return;
    }
    for (int shift = 0; shift < 64; shift += kDigitBits) {
        if (!(varying >> shift & (kDigits - 1))) continue;  // a digit that all share orders nothing
        pass([&](int thread) {
            const auto range = share(count, thread, threads);
            return std::make_pair(edges.data() + range.first, edges.data() + range.second);
        }, spare, [&](const Edge& edge) { return bits(edge) >> shift & (kDigits - 1); });
        edges.swap(spare);
    }
}

}  // namespace supervoxels
