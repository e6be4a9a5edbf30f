// Finding and sorting the next cheapest edges.
//
// Kruskal's algorithm wants all 13 N edges in order of (cost, id). Most of them never matter: when their turn comes both
// ends lie in one component already. So edges are not listed at all; they are looked for when their turn comes, a
// stretch of costs at a time, and only those that can still matter by then are collected and sorted ("filter Kruskal",
// Osipov, Sanders and Singler, ALENEX 2009). The order of what remains is the order of the full list.
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

// An edge's id is its rank (direction) before its origin, which is the order in which ties are visited (spec 2.4).
struct Edge {
    double cost;
    uint64_t id;
    int rank() const { return static_cast<int>(id >> 32); }
    int64_t origin() const { return static_cast<int64_t>(id & 0xffffffffu); }
};

inline bool operator<(const Edge& a, const Edge& b) { return a.cost != b.cost ? a.cost < b.cost : a.id < b.id; }

inline Edge make_edge(const Grid& grid, int64_t origin, int rank) {
    return {grid.cost(origin, rank), static_cast<uint64_t>(rank) << 32 | static_cast<uint64_t>(origin)};
}

constexpr double kInfinity = std::numeric_limits<double>::infinity();

inline int lowest_bit(uint32_t bits) {
#ifdef _MSC_VER
    unsigned long index;
    _BitScanForward(&index, bits);
    return static_cast<int>(index);
#else
    return __builtin_ctz(bits);
#endif
}

// What the inner loop compares differences of shades with, for each direction. Shades are rounded to float: two of them
// are off by less than 3e-5 together, and `kSlack` covers that and the rounding of the bounds themselves.
constexpr double kSlack = 1e-4;

struct ShadeBounds {
    float low[kDirections];    // certainly cheaper than the stretch
    float high[kDirections];   // certainly dearer than the stretch
    float beyond[kDirections]; // perhaps dearer than the stretch
    float scale[kDirections];  // from a difference of shades to a cost

    ShadeBounds(const Grid& grid, double low_cost, double high_cost) {
        for (int rank = 0; rank < kDirections; ++rank) {
            const double root = std::sqrt(grid.weight[rank]);
            scale[rank] = static_cast<float>(root);
            low[rank] = static_cast<float>(low_cost * grid.zoom / root - kSlack);
            // without shades (zoom 0) infinity * 0 is to stay infinite
            const double scaled = high_cost == kInfinity ? kInfinity : high_cost * grid.zoom / root;
            high[rank] = static_cast<float>(scaled + kSlack);
            beyond[rank] = static_cast<float>(scaled - kSlack);
        }
    }
};

// Look at the 13 edges of 64 voxels: bit `rank` of hits[i] is set where that edge may lie in the stretch and its ends are
// not known to be settled. Returns the smallest cost (in shades) of the unsettled edges that may lie beyond it.
//
// Settled: both ends in one component, or both in components of at least min_size voxels (their labels are negative).
// Neither ever changes back, so such an edge can be dropped for good; a label that is out of date only costs time.
SUPERVOXELS_CLONES
inline float look(const float* shade, const int32_t* label, const int64_t* step, const ShadeBounds& bounds,
                  uint32_t* hits) {
    const float infinity = std::numeric_limits<float>::infinity();
    float nearest[kBlock];
    for (int i = 0; i < kBlock; ++i) {
        hits[i] = 0;
        nearest[i] = infinity;
    }
    for (int rank = 0; rank < kDirections; ++rank) {
        const float* other_shade = shade + step[rank];
        const int32_t* other_label = label + step[rank];
        const float low = bounds.low[rank], high = bounds.high[rank], beyond = bounds.beyond[rank];
        const float scale = bounds.scale[rank];
        const uint32_t bit = 1u << rank;
        for (int i = 0; i < kBlock; ++i) {
            const float difference = std::fabs(shade[i] - other_shade[i]);
            const bool open = (label[i] != other_label[i]) & ((label[i] & other_label[i]) >= 0);
            const bool hit = open & (difference >= low) & (difference <= high);
            const float later = (open & (difference >= beyond)) ? difference * scale : infinity;
            hits[i] |= hit ? bit : 0;
            nearest[i] = later < nearest[i] ? later : nearest[i];
        }
    }
    float smallest = infinity;
    for (int i = 0; i < kBlock; ++i) smallest = nearest[i] < smallest ? nearest[i] : smallest;
    return smallest;
}

// Collects edges up to a capacity. When it is full it keeps the cheaper half and lowers its own upper end, so that what it
// holds is always *every* open edge seen from `low` up to `high`.
class Collector {
  public:
    Collector(Edge low, Edge high, size_t capacity) : low(low), high(high), capacity_(std::max<size_t>(capacity, 64)) {}

    void add(const Edge& edge) {
        if (edge < low || !(edge < high)) return;
        if (edges.size() == capacity_) {
            halve();
            if (!(edge < high)) return;
        }
        edges.push_back(edge);
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
    void halve() {
        std::vector<Edge> ordered(edges);  // a copy: the edges themselves stay in raster order
        std::nth_element(ordered.begin(), ordered.begin() + ordered.size() / 2, ordered.end());
        lower(ordered[ordered.size() / 2]);
    }
    size_t capacity_;
};

// Sort by (cost, id). The edges come in raster order, so a stable pass over the ranks puts them in the order of their
// ids, and stable passes over the digits of the cost do the rest. Costs are never negative, and the bits of non-negative
// doubles sort as the doubles do.
inline void sort_edges(std::vector<Edge>& edges, std::vector<Edge>& spare) {
    constexpr int kDigitBits = 11, kDigits = 1 << kDigitBits;
    if (edges.size() < kDigits) {  // too few to fill the counters
        std::sort(edges.begin(), edges.end());
        return;
    }
    spare.resize(edges.size());
    auto bits = [](const Edge& edge) {
        uint64_t result;
        std::memcpy(&result, &edge.cost, sizeof result);
        return result;
    };
    auto pass = [&](auto digit_of) {
        int64_t place[kDigits] = {};
        for (const Edge& edge : edges) ++place[digit_of(edge)];
        int64_t before = 0;
        for (int64_t& here : place) {
            const int64_t count = here;
            here = before;
            before += count;
        }
        for (const Edge& edge : edges) spare[place[digit_of(edge)]++] = edge;
        edges.swap(spare);
    };
    uint64_t varying = 0;
    for (const Edge& edge : edges) varying |= bits(edge) ^ bits(edges.front());
    pass([](const Edge& edge) { return edge.rank(); });
    for (int shift = 0; shift < 64; shift += kDigitBits)
        if (varying >> shift & (kDigits - 1))  // a digit that all share orders nothing
            pass([&](const Edge& edge) { return bits(edge) >> shift & (kDigits - 1); });
}

}  // namespace supervoxels
