// The components that Kruskal's algorithm joins, for several minimum sizes at once.
//
// A component below a minimum size is never refused an edge. So it is the same component for every larger minimum size,
// and a merge takes place for exactly those minimum sizes that exceed the size of its smaller side. One walk with the
// largest of them therefore serves all: it notes every merge with the size of its smaller side, and the partition of
// minimum size m is what the merges with a smaller side below m join. Partitions are nested.
//
// Merges below the smallest minimum size, `finest`, are common to all and too many to be noted. They join voxels to
// pieces. Pieces of `finest` voxels or more are few: they are listed, and joined to components in a forest of their own.
#pragma once

#include <numeric>

#include "grid.hpp"

namespace supervoxels {

class Components {
  public:
    explicit Components(int64_t length) : links(length) {}

    // The voxel above a voxel in the tree of its piece. At a root it is minus the number of voxels while these are
    // fewer than `finest`, and from then on minus (`finest` + the place in the list of pieces).
    Buffer<int32_t> links;

    // The voxel that stands for the component of `voxel`.
    int32_t find(int32_t voxel) {
        const int32_t root = piece_root(voxel);
        return is_listed(root) ? pieces_[top(place(root))].root : root;
    }

    // The same, for several threads at once: nothing is shortened on the way.
    int32_t find_only(int32_t voxel) const {
        while (links[voxel] >= 0) voxel = links[voxel];
        if (!is_listed(voxel)) return voxel;
        int32_t piece = place(voxel);
        while (pieces_[piece].link >= 0) piece = pieces_[piece].link;
        return pieces_[piece].root;
    }

    // Number of voxels of the component that `root` stands for.
    int64_t size(int32_t root) const { return -int64_t{is_listed(root) ? pieces_[place(root)].link : links[root]}; }

    // Join the components that `a` and `b` stand for over an edge between the voxel `end_a` of a and `end_b` of b;
    // returns what stands for both. The larger keeps its root, so trees stay shallow and a large component keeps its
    // root for good.
    int32_t join(int32_t a, int32_t b, int64_t end_a, int64_t end_b) {
        if (size(a) > size(b)) return join(b, a, end_b, end_a);
        if (is_listed(a)) {
            note_merge(a, end_a, end_b);
            pieces_[place(b)].link += pieces_[place(a)].link;
            pieces_[place(a)].link = place(b);
        } else if (is_listed(b)) {  // the piece at that end, which need not be the one that stands for the component
            pieces_[place(b)].link += links[a];
            links[a] = piece_root(static_cast<int32_t>(end_b));
        } else {
            links[b] += links[a];
            links[a] = b;
            if (links[b] <= -finest_) list(b);
        }
        return b;
    }

    // From now on keep the pieces of `finest` voxels or more apart.
    void list_pieces(int64_t finest, int64_t length) {
        finest_ = static_cast<int32_t>(finest);
        for (int64_t voxel = 0; voxel < length; ++voxel)
            if (links[voxel] <= -finest_) list(static_cast<int32_t>(voxel));
    }

    // The root of the piece of a voxel. Every piece is a component of the finest partition.
    int32_t piece_root(int32_t voxel) {
        while (links[voxel] >= 0) {
            const int32_t above = links[voxel];
            if (links[above] >= 0) links[voxel] = links[above];  // path halving
            voxel = above;
        }
        return voxel;
    }

    // From the numbers 0 ... count - 1 of the pieces in the finest partition, by root, to the numbers of their
    // components in the partition of `min_size`. Both are in raster order of the first voxel.
    std::vector<int32_t> coarser_numbers(const Buffer<int32_t>& number_of_root, int32_t count, int64_t min_size) const {
        std::vector<int32_t> above(count), result(count);  // the smaller number is above the larger
        std::iota(above.begin(), above.end(), 0);
        auto first = [&](int32_t piece) {
            int32_t number = number_of_root[pieces_[piece].root];
            while (above[number] != number) number = above[number] = above[above[number]];
            return number;
        };
        for (const Merge& merge : merges_)
            if (merge.smaller < min_size) {
                const int32_t a = first(merge.a), b = first(merge.b);
                above[std::max(a, b)] = std::min(a, b);
            }
        int32_t components = 0;
        for (int32_t number = 0; number < count; ++number)
            result[number] = above[number] == number ? components++ : result[above[number]];
        return result;
    }

  private:
    struct Piece {
        int32_t link;  // as `links`: the piece above in the tree of its component, or minus the component's voxels
        int32_t root;
    };
    struct Merge {
        int32_t a, b, smaller;  // two pieces, and the voxels of the smaller side
    };

    bool is_listed(int32_t root) const { return links[root] <= -finest_; }
    int32_t place(int32_t root) const { return -(links[root] + finest_); }

    void list(int32_t root) {
        pieces_.push_back({links[root], root});
        links[root] = -finest_ - static_cast<int32_t>(pieces_.size() - 1);
    }

    int32_t top(int32_t piece) {
        while (pieces_[piece].link >= 0) {
            const int32_t above = pieces_[piece].link;
            if (pieces_[above].link >= 0) pieces_[piece].link = pieces_[above].link;
            piece = above;
        }
        return piece;
    }

    void note_merge(int32_t smaller, int64_t end_a, int64_t end_b) {
        const int32_t a = piece_root(static_cast<int32_t>(end_a)), b = piece_root(static_cast<int32_t>(end_b));
        merges_.push_back({place(a), place(b), static_cast<int32_t>(size(smaller))});
    }

    int32_t finest_ = std::numeric_limits<int32_t>::max();  // nothing is listed
    std::vector<Piece> pieces_;
    std::vector<Merge> merges_;
};

}  // namespace supervoxels
