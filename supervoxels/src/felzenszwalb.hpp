// The fast exact segmentation: two passes of Kruskal's algorithm over edges that are looked for only when their turn
// comes. Labels equal those of a full sort [supervoxels 2.4] to [supervoxels 2.7], whatever the number of threads.
#pragma once

#include "components.hpp"
#include "edges.hpp"

namespace supervoxels {

constexpr int64_t kMostThreads = 256;  // more would only cost memory and time to start

class Segmentation {
  public:
    Segmentation(const double* image, int64_t depth, int64_t height, int64_t width, const int32_t* offsets,
                 const double* weights, double k, std::vector<int64_t> min_sizes, int threads)
        : threads_(static_cast<int>(std::min<int64_t>({threads, kMostThreads, depth * height}))), k_(k),
          min_sizes_(std::move(min_sizes)), largest_(*std::max_element(min_sizes_.begin(), min_sizes_.end())),
          grid_(image, depth, height, width, offsets, weights, threads_), label_(grid_.length),
          components_(grid_.length), links_(components_.links),
          stretch_(std::clamp<int64_t>(depth * height * width / 6, 4096, kLongestStretch)) {}

    // Label the finest partition, and return for every minimum size the numbers that its labels have there.
    std::vector<std::vector<int32_t>> run(int32_t* result) {
        start();
        grow_regions();
        merge_small();
        const int32_t count = number(result);
        std::vector<std::vector<int32_t>> numbers;
        for (int64_t min_size : min_sizes_)
            numbers.push_back(components_.coarser_numbers(label_, count, min_size));
        return numbers;
    }

  private:
    // ---- components -------------------------------------------------------------------------------------------------
    // label_[v] is what stood for the component of v when labels were last brought up to date, and ~that where the
    // component has the largest minimum size or more. All padding counts as one component of its own, at position 0.

    static int32_t root_of_label(int32_t label) { return label < 0 ? ~label : label; }

    void update_labels(bool mark_large) {
        in_parallel(threads_, [&](int thread) {
            const auto range = share(grid_.last - grid_.first, thread, threads_);
            for (int64_t voxel = grid_.first + range.first; voxel < grid_.first + range.second; ++voxel) {
                if (label_[voxel] < 0) continue;  // large components never merge with each other: settled
                const int32_t root = components_.find_only(label_[voxel]);
                label_[voxel] = mark_large && components_.size(root) >= largest_ ? ~root : root;
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
        } else {
            for (int64_t voxel = grid_.first; voxel < grid_.last; ++voxel) links_[voxel] = static_cast<int32_t>(voxel);
        }
        flatten();
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
        for (int64_t voxel = 0; voxel < grid_.length; ++voxel) {
            const int32_t root = !grid_.is_voxel(voxel) ? 0 : links_[voxel] == voxel ? static_cast<int32_t>(voxel)
                                                                                     : label_[links_[voxel]];
            label_[voxel] = root;
            links_[voxel] = root == voxel ? -1 : root;
            if (root != voxel) --links_[root];
        }
    }

    // Pass 1 [supervoxels 2.5]. No threshold ever exceeds 2 k: a component of two parts of at most n / 2 voxels has an
    // internal cost below the smaller part's threshold, and so on down to single voxels [supervoxels 3]. Float32
    // rounding may add a little, hence the 1e-4. Dearer edges need not be looked for.
    void grow_regions() {
        std::vector<double> internal;
        for_edges_in_order(2 * k_ * (1 + 1e-4), false, [&](const std::vector<Edge>& edges,
                                                           const std::vector<Meeting>& meetings) {
            if (internal.empty()) internal.resize(grid_.length);
            for (size_t i = 0; i < edges.size(); ++i) {
                const int32_t a = components_.find(meetings[i].a), b = components_.find(meetings[i].b);
                if (a == b) continue;
                const double cost = edges[i].cost;
                if (cost < std::min(threshold(a, internal[a]), threshold(b, internal[b])))
                    internal[components_.join(a, b, a, b)] = cost;
            }
            return true;
        });
    }

    float threshold(int32_t root, double internal) const {
        return static_cast<float>(internal + k_ / static_cast<double>(components_.size(root)));
    }

    // ---- pass 2 -----------------------------------------------------------------------------------------------------

    // Pass 2 [supervoxels 2.6] with the largest minimum size: the cheapest edges again, whatever they cost, until no
    // component is too small.
    void merge_small() {
        auto is_small = [&](int32_t root) { return components_.size(root) < largest_; };
        int64_t small = 0;
        for (int64_t voxel = grid_.first; voxel < grid_.last; ++voxel)
            small += grid_.is_voxel(voxel) && links_[voxel] < 0 && is_small(static_cast<int32_t>(voxel));
        const int64_t finest = *std::min_element(min_sizes_.begin(), min_sizes_.end());
        components_.list_pieces(std::max<int64_t>(finest, 1), grid_.length);
        if (small == 0) return;
        update_labels(true);
        for_edges_in_order(kInfinity, true, [&](const std::vector<Edge>& edges, const std::vector<Meeting>& meetings) {
            for (size_t i = 0; i < edges.size(); ++i) {
                const Meeting& soon = meetings[std::min(i + kAhead, edges.size() - 1)];
                prefetch(&links_[soon.a]);
                prefetch(&links_[soon.b]);
                const int32_t a = components_.find(meetings[i].a), b = components_.find(meetings[i].b);
                if (a == b || (!is_small(a) && !is_small(b))) continue;
                small -= is_small(a) + is_small(b);
                small += is_small(components_.join(a, b, edges[i].origin(), far_end(edges[i])));
            }
            return small > 0;
        });
    }

    // ---- edges in order ---------------------------------------------------------------------------------------------

    // An edge as a visit sees it: the components it joined when labels were last brought up to date. Looking these up
    // beforehand, on all threads, halves the time of the visits, which must go one after the other.
    struct Meeting {
        int32_t a, b;
    };

    // Hand every edge that can still matter and costs less than `limit` to `visit`, with what it meets, in order of
    // (cost, id), a sorted stretch at a time, until it returns false.
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
                if (!visit(edges, meetings)) return;
                update_labels(mark_large);
            }
        }
    }

    int64_t far_end(const Edge& edge) const { return edge.origin() + grid_.step[edge.rank()]; }

    void look_up(const std::vector<Edge>& edges, std::vector<Meeting>& meetings) const {
        meetings.resize(edges.size());
        in_parallel(threads_, [&](int thread) {
            const auto range = share(edges.size(), thread, threads_);
            for (int64_t i = range.first; i < range.second; ++i) {
                meetings[i] = {root_of_label(label_[edges[i].origin()]), root_of_label(label_[far_end(edges[i])])};
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

    // Number the components of the finest partition in raster order of their first voxel [supervoxels 2.7], and return
    // how many they are; label_ then holds the numbers of their roots.
    int32_t number(int32_t* result) {
        grid_.shade.release();
        grid_.image.release();
        std::fill(label_.get(), label_.get() + grid_.length, -1);
        int32_t count = 0;
        for (int64_t z = 0; z < grid_.depth; ++z)
            for (int64_t y = 0; y < grid_.height; ++y)
                for (int64_t x = 0; x < grid_.width; ++x) {
                    int32_t& number = label_[components_.piece_root(static_cast<int32_t>(grid_.position(z, y, x)))];
                    if (number < 0) number = count++;
                    *result++ = number;
                }
        return count;
    }

    int threads_;
    double k_;
    std::vector<int64_t> min_sizes_;
    int64_t largest_;
    Grid grid_;
    Buffer<int32_t> label_;
    Components components_;
    Buffer<int32_t>& links_;
    static constexpr int64_t kLongestStretch = 1 << 24;  // a stretch takes up to 120 bytes per edge
    static constexpr int64_t kRoom = 3;
    static constexpr size_t kAhead = 24;  // edges that memory is asked for ahead of a visit, which hides its latency
    int64_t stretch_;  // number of edges a stretch aims at; it is shortened where they are kRoom times as many
};

inline std::vector<std::vector<int32_t>> segment(const double* image, int64_t depth, int64_t height, int64_t width,
                                                 const int32_t* offsets, const double* weights, double k,
                                                 std::vector<int64_t> min_sizes, int threads, int32_t* result) {
    return Segmentation(image, depth, height, width, offsets, weights, k, std::move(min_sizes), threads).run(result);
}

}  // namespace supervoxels
