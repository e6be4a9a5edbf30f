// The fast exact segmentation: two passes of Kruskal's algorithm over edges that are looked for only when their turn
// comes. Labels equal those of a full sort [supervoxels 2.4] to [supervoxels 2.7], whatever the number of threads.
#pragma once

#include "edges.hpp"

namespace supervoxels {

constexpr int64_t kMostThreads = 256;  // more would only cost memory and time to start

class Segmentation {
  public:
    Segmentation(const double* image, int64_t depth, int64_t height, int64_t width, const int32_t* offsets,
                 const double* weights, double k, int64_t min_size, int threads)
        : threads_(static_cast<int>(std::min<int64_t>({threads, kMostThreads, depth * height}))), k_(k),
          min_size_(min_size), grid_(image, depth, height, width, offsets, weights, threads_), label_(grid_.length),
          links_(grid_.length), stretch_(std::max<int64_t>(4096, depth * height * width / 6)) {}

    void run(int32_t* result) {
        start();
        grow_regions();
        merge_small();
        number(result);
    }

  private:
    // ---- components -------------------------------------------------------------------------------------------------
    // links_[v] is the voxel above v in its tree; at a root it is minus the number of voxels. label_[v] is the root
    // that v had when labels were last brought up to date, and ~root where that component has min_size voxels or
    // more. All padding counts as one component of its own, at position 0.

    int64_t size(int32_t root) const { return -static_cast<int64_t>(links_[root]); }
    static int32_t root_of_label(int32_t label) { return label < 0 ? ~label : label; }

    int32_t find(int32_t voxel) {
        while (links_[voxel] >= 0) {
            const int32_t above = links_[voxel];
            if (links_[above] >= 0) links_[voxel] = links_[above];  // path halving
            voxel = above;
        }
        return voxel;
    }

    // The larger component keeps its root, so trees stay shallow and a component that is large keeps its label for
    // good.
    int32_t join(int32_t a, int32_t b) {
        const int32_t voxels_a = links_[a], voxels_b = links_[b];
        const int32_t root = voxels_a <= voxels_b ? a : b, child = voxels_a <= voxels_b ? b : a;
        links_[child] = root;
        links_[root] = voxels_a + voxels_b;
        return root;
    }

    void update_labels(bool mark_large) {
        in_parallel(threads_, [&](int thread) {
            const auto range = share(grid_.last - grid_.first, thread, threads_);
            for (int64_t voxel = grid_.first + range.first; voxel < grid_.first + range.second; ++voxel) {
                int32_t root = label_[voxel];
                if (root < 0) continue;  // large components never merge with each other: settled
                while (links_[root] >= 0) root = links_[root];
                label_[voxel] = mark_large && size(root) >= min_size_ ? ~root : root;
            }
        });
    }

    // ---- pass 1 -----------------------------------------------------------------------------------------------------

    // Components before the first edge of positive cost. Edges between equal values cost nothing and come first,
    // and pass 1 takes them all as long as the threshold k / size of [supervoxels 2.5] is positive even for the whole
    // volume: their order is irrelevant, and the components are the connected regions of equal value.
    void start() {
        const double voxels = static_cast<double>(grid_.depth * grid_.height * grid_.width);
        if (static_cast<float>(k_ / voxels) > 0) {
            join_equal_values();
            flatten();
        } else {
            for (int64_t voxel = 0; voxel < grid_.length; ++voxel) {
                label_[voxel] = grid_.is_voxel(voxel) ? static_cast<int32_t>(voxel) : 0;
                links_[voxel] = -1;
            }
        }
    }

    void join_equal_values() {
        // here links_ is a forest of its own kind: the smaller position is above the larger, a root is above itself
        in_parallel(threads_, [&](int thread) {
            const auto slices = share(grid_.depth, thread, threads_);
            if (slices.first == slices.second) return;
            const int64_t begin = grid_.position(slices.first, 0, 0), end = grid_.position(slices.second, 0, 0);
            for (int64_t voxel = begin; voxel < end; ++voxel) {
                const bool left = grid_.image[voxel] == grid_.image[voxel - 1];
                links_[voxel] = left ? links_[voxel - 1] : static_cast<int32_t>(voxel);
            }
            join_equal_rows(begin, end, 0, 1);
            join_equal_rows(begin, end - grid_.slice, 1, 4);
        });
        for (int thread = 0; thread + 1 < threads_; ++thread) {  // now across the gaps between two threads' slices
            const auto slices = share(grid_.depth, thread, threads_);
            if (slices.first == slices.second || slices.second == grid_.depth) continue;
            join_equal_rows(grid_.position(slices.second - 1, 0, 0), grid_.position(slices.second, 0, 0), 1, 4);
        }
    }

    // Join each voxel of [begin, end) with its equals in the following rows: row 0 is the next one in the slice,
    // rows 1 to 3 are those of the next slice.
    void join_equal_rows(int64_t begin, int64_t end, int first_row, int last_row) {
        const int64_t rows[4] = {grid_.row, grid_.slice - grid_.row, grid_.slice, grid_.slice + grid_.row};
        int64_t hits[kBlock];
        for (int64_t block = begin; block < end; block += kBlock) {
            look_for_equals(grid_.image.get() + block, rows, first_row, last_row, hits);
            const int64_t voxels = std::min<int64_t>(kBlock, end - block);
            for (int64_t i = 0; i < voxels; ++i)
                for (uint32_t bits = static_cast<uint32_t>(hits[i]); bits; bits &= bits - 1) {
                    const int bit = lowest_bit(bits);
                    join_by_position(block + i, block + i + rows[bit / 3] + bit % 3 - 1);
                }
        }
    }

    void join_by_position(int64_t a, int64_t b) {
        auto top = [&](int64_t position) {
            int32_t voxel = static_cast<int32_t>(position);
            while (links_[voxel] != voxel) voxel = links_[voxel] = links_[links_[voxel]];
            return voxel;
        };
        const int32_t root_a = top(a), root_b = top(b);
        links_[std::max(root_a, root_b)] = std::min(root_a, root_b);
    }

    // From the forest of positions to labels and sizes. What is above a voxel comes before it, so one sweep does it.
    void flatten() {
        for (int64_t voxel = 0; voxel < grid_.length; ++voxel)
            label_[voxel] = !grid_.is_voxel(voxel) ? 0 : links_[voxel] == voxel ? static_cast<int32_t>(voxel)
                                                                                : label_[links_[voxel]];
        std::fill(links_.get(), links_.get() + grid_.length, 0);
        for (int64_t voxel = 0; voxel < grid_.length; ++voxel) --links_[label_[voxel]];
    }

    // Pass 1 [supervoxels 2.5]. No threshold ever exceeds 2 k: a component of two parts of at most n / 2 voxels has an
    // internal cost below the smaller part's threshold, and so on down to single voxels [supervoxels 3]. Float32
    // rounding may add a little, hence the 1e-4. Dearer edges need not be looked for.
    void grow_regions() {
        std::vector<double> internal;
        for_edges_in_order(2 * k_ * (1 + 1e-4), false, [&](const std::vector<Meeting>& meetings) {
            if (internal.empty()) internal.resize(grid_.length);
            for (const Meeting& meeting : meetings) {
                const int32_t a = find(meeting.a), b = find(meeting.b);
                if (a == b) continue;
                const float threshold_a = static_cast<float>(internal[a] + k_ / static_cast<double>(size(a)));
                const float threshold_b = static_cast<float>(internal[b] + k_ / static_cast<double>(size(b)));
                if (meeting.cost < std::min(threshold_a, threshold_b)) internal[join(a, b)] = meeting.cost;
            }
            return true;
        });
    }

    // ---- pass 2 -----------------------------------------------------------------------------------------------------

    // Pass 2 [supervoxels 2.6]: the cheapest edges again, whatever they cost, until no component is too small.
    void merge_small() {
        int64_t small = 0;
        for (int64_t voxel = grid_.first; voxel < grid_.last; ++voxel)
            small += grid_.is_voxel(voxel) && root_of_label(label_[voxel]) == voxel && size(voxel) < min_size_;
        if (small == 0) return;
        update_labels(true);
        for_edges_in_order(kInfinity, true, [&](const std::vector<Meeting>& meetings) {
            for (const Meeting& meeting : meetings) {
                const int32_t a = find(meeting.a), b = find(meeting.b);
                if (a == b || (size(a) >= min_size_ && size(b) >= min_size_)) continue;
                small -= (size(a) < min_size_) + (size(b) < min_size_);
                small += size(join(a, b)) < min_size_;
            }
            return small > 0;
        });
    }

    // ---- edges in order ---------------------------------------------------------------------------------------------

    // An edge as a visit sees it: the components it joined when labels were last brought up to date. Looking these up
    // beforehand, on all threads, halves the time of the visits, which must go one after the other.
    struct Meeting {
        double cost;
        int32_t a, b;
    };

    // Hand every edge that can still matter and costs less than `limit` to `visit`, in order of (cost, id), a sorted
    // stretch at a time, until it returns false.
    template <class Visit>
    void for_edges_in_order(double limit, bool mark_large, const Visit& visit) {
        // the cheapest edge that a block of 64 voxels may still have, in shades: blocks that have none are passed over
        const int64_t blocks = (grid_.last - grid_.first + kBlock - 1) / kBlock;
        std::vector<double> cheapest(blocks, -kInfinity);
        std::vector<Edge> edges, spare;
        std::vector<Meeting> meetings;
        const Edge end{limit, 0};
        Edge low{0, 0};
        while (low < end) {
            std::vector<int64_t> open;
            const double limit_shade = limit == kInfinity ? std::numeric_limits<double>::max() : limit * grid_.zoom;
            for (int64_t block = 0; block < blocks; ++block)
                if (cheapest[block] <= limit_shade) open.push_back(block);
            if (open.empty()) return;
            std::vector<Collector> parts = collect(low, choose_end(open, low, end), open, cheapest);
            low = parts[0].high;
            sort_edges(parts, edges, spare);
            if (!edges.empty()) {
                look_up(edges, meetings);
                if (!visit(meetings)) return;
                update_labels(mark_large);
            }
        }
    }

    void look_up(const std::vector<Edge>& edges, std::vector<Meeting>& meetings) const {
        meetings.resize(edges.size());
        in_parallel(threads_, [&](int thread) {
            const auto range = share(edges.size(), thread, threads_);
            for (int64_t i = range.first; i < range.second; ++i) {
                const int64_t origin = edges[i].origin(), other = origin + grid_.step[edges[i].rank()];
                meetings[i] = {edges[i].cost, root_of_label(label_[origin]), root_of_label(label_[other])};
            }
        });
    }

    // Where the next stretch should end so that it has the number of edges aimed at: a guess from a sample of
    // blocks. Any end beyond `low` is right. A short stretch means that more edges are settled before they are
    // looked for, a long one that the image is swept fewer times.
    Edge choose_end(const std::vector<int64_t>& open, Edge low, Edge end) const {
        constexpr int64_t kSample = 160;
        const int64_t sampled = std::min<int64_t>(kSample, open.size());
        const ShadeBounds all(grid_, low.cost, end.cost);
        Collector sample(low, end, sampled * kBlock * kDirections);
        for (int64_t i = 0; i < sampled; ++i) {
            int32_t hits[kBlock];
            look_at(open[i * open.size() / sampled], all, hits);
            add_hits(open[i * open.size() / sampled], hits, sample);
        }
        const double expected = static_cast<double>(sample.edges.size()) * open.size() / sampled;
        const double part = stretch_ / std::max(expected, 1.0);
        if (part >= 1) return end;
        const auto middle = sample.edges.begin() + static_cast<int64_t>(part * sample.edges.size());
        std::nth_element(sample.edges.begin(), middle, sample.edges.end());
        // Whole numbers on a 0..255 range tie up to the last bits: the end had better not cut through such a group.
        const Edge rounded{middle->cost * (1 + 1e-7), 0};
        return std::min(low < rounded ? rounded : end, end);
    }

    // Collect all open edges from `low` up to the end that all collectors have afterwards: `high`, unless they are
    // too many.
    std::vector<Collector> collect(Edge low, Edge high, const std::vector<int64_t>& open,
                                   std::vector<double>& cheapest) {
        const ShadeBounds bounds(grid_, low.cost, high.cost);
        const double reach = high.cost == kInfinity ? kInfinity : high.cost * grid_.zoom;
        std::vector<Collector> parts(threads_, Collector(low, high, kRoom * stretch_ / threads_));
        in_parallel(threads_, [&](int thread) {
            const auto range = share(open.size(), thread, threads_);
            for (int64_t i = range.first; i < range.second; ++i) {
                if (cheapest[open[i]] > reach) continue;
                int32_t hits[kBlock];
                cheapest[open[i]] = look_at(open[i], bounds, hits);
                add_hits(open[i], hits, parts[thread]);
            }
        });
        Edge reached = high;
        for (const Collector& part : parts) reached = std::min(reached, part.high);
        for (Collector& part : parts)
            if (reached < part.high) part.lower(reached);
        if (reached < high)  // edges from there on were dropped again, in whichever block
            for (int64_t block : open)
                cheapest[block] = std::min(cheapest[block], reached.cost * grid_.zoom * (1 - 1e-9));
        return parts;
    }

    double look_at(int64_t block, const ShadeBounds& bounds, int32_t* hits) const {
        const int64_t begin = grid_.first + block * kBlock;
        return look(grid_.shade.get() + begin, label_.get() + begin, grid_.step, bounds, hits);
    }

    // In three steps without branches between them, which lets the processor overlap the square roots.
    void add_hits(int64_t block, const int32_t* hits, Collector& collector) const {
        const int64_t begin = grid_.first + block * kBlock;
        Edge found[kBlock * kDirections];
        int count = 0;
        for (int i = 0; i < kBlock; ++i)
            for (uint32_t bits = static_cast<uint32_t>(hits[i]); bits; bits &= bits - 1)
                found[count++].id = edge_id(begin + i, lowest_bit(bits));
        for (int i = 0; i < count; ++i) found[i].cost = grid_.cost(found[i].origin(), found[i].rank());
        collector.add(found, count);
    }

    // ---- result -----------------------------------------------------------------------------------------------------

    // Number the components in raster order of their first voxel [supervoxels 2.7].
    void number(int32_t* result) {
        grid_.shade.release();
        std::vector<int32_t> numbers(grid_.length, -1);
        int32_t count = 0;
        for (int64_t z = 0; z < grid_.depth; ++z)
            for (int64_t y = 0; y < grid_.height; ++y)
                for (int64_t x = 0; x < grid_.width; ++x) {
                    int32_t& number = numbers[find(root_of_label(label_[grid_.position(z, y, x)]))];
                    if (number < 0) number = count++;
                    *result++ = number;
                }
    }

    int threads_;
    double k_;
    int64_t min_size_;
    Grid grid_;
    Buffer<int32_t> label_, links_;
    static constexpr int64_t kRoom = 3;
    int64_t stretch_;  // number of edges a stretch aims at; it is shortened where they are kRoom times as many
};

inline void segment(const double* image, int64_t depth, int64_t height, int64_t width, const int32_t* offsets,
                    const double* weights, double k, int64_t min_size, int threads, int32_t* result) {
    Segmentation(image, depth, height, width, offsets, weights, k, min_size, threads).run(result);
}

}  // namespace supervoxels
