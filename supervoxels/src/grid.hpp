// The voxels in memory: a padded copy of the image, its neighbours, and the cost of an edge [supervoxels 2.3].
#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <exception>
#include <limits>
#include <memory>
#include <system_error>
#include <thread>
#include <vector>

namespace supervoxels {

constexpr int kDirections = 13;
constexpr int kInPlane = 4;  // the first directions stay within the slice
constexpr int kBlock = 64;   // voxels that are looked at together
constexpr int32_t kShades = 1 << 28;  // shades are the image in whole numbers, 0 ... kShades
constexpr int32_t kPadding = 1 << 30; // the shade of the padding is minus that: farther away than any two voxels are
constexpr double kInfinity = std::numeric_limits<double>::infinity();

// Calls work(0) ... work(threads - 1), each in a thread of its own; an exception of any of them arrives here.
template <class Work>
void in_parallel(int threads, const Work& work) {
    std::vector<std::exception_ptr> failures(threads);
    auto guarded = [&](int thread) {
        try {
            work(thread);
        } catch (...) {
            failures[thread] = std::current_exception();
        }
    };
    std::vector<std::thread> running;
    running.reserve(threads);
    for (int thread = 1; thread < threads; ++thread) {
        try {
            running.emplace_back(guarded, thread);
        } catch (const std::system_error&) {  // the system gives no more threads: do its share here
            guarded(thread);
        }
    }
    guarded(0);
    for (auto& thread : running) thread.join();
    for (auto& failure : failures)
        if (failure) std::rethrow_exception(failure);
}

// Share `part` of `parts` of the numbers 0 ... count - 1: first and one past last.
inline std::pair<int64_t, int64_t> share(int64_t count, int part, int parts) {
    return {count * part / parts, count * (part + 1) / parts};
}

// An array whose memory is not touched before it is written.
template <class T>
class Buffer {
  public:
    explicit Buffer(int64_t size = 0) : data_(size ? new T[size] : nullptr) {}
    T* get() { return data_.get(); }
    const T* get() const { return data_.get(); }
    T& operator[](int64_t index) { return data_[index]; }
    const T& operator[](int64_t index) const { return data_[index]; }
    void release() { data_.reset(); }

  private:
    std::unique_ptr<T[]> data_;
};

// The image with one column, row and slice of padding, so that a neighbour is a constant step away and the step from a
// border voxel lands on padding. Padding is NaN in the image and far away in the shades, so its edges are never taken.
// Padded positions grow with raster positions, which lets them stand in for these where ties are broken.
//
// Shades are what the inner loop compares: an edge whose difference of shades is clearly outside of the costs that are
// looked for is not looked at in double. They never decide.
struct Grid {
    int64_t depth, height, width;
    int64_t row, slice;      // steps from a row, a slice, to the next
    int64_t first, last;     // padded positions of the voxels lie in [first, last)
    int64_t length;          // of every array below
    int64_t step[kDirections];
    double weight[kDirections];
    double zoom;             // shade = (image - its minimum) * zoom, rounded
    Buffer<double> image;
    Buffer<int32_t> shade;

    Grid(const double* values, int64_t depth, int64_t height, int64_t width, const int32_t* offsets,
         const double* weights, int threads)
        : depth(depth), height(height), width(width), row(width + 1), slice((height + 1) * (width + 1)), first(1),
          last(1 + depth * slice), length(last + slice + row + 2 + kBlock), image(length), shade(length) {
        for (int rank = 0; rank < kDirections; ++rank) {
            step[rank] = offsets[3 * rank] * slice + offsets[3 * rank + 1] * row + offsets[3 * rank + 2];
            weight[rank] = weights[rank];
        }
        copy(values, threads);
    }

    // The cost of the edge from `origin` in direction `rank`; this expression and no shorter one, to the last bit.
    double cost(int64_t origin, int rank) const {
        const double difference = image[origin] - image[origin + step[rank]];
        return std::sqrt(weight[rank] * (difference * difference));
    }

    int64_t position(int64_t z, int64_t y, int64_t x) const { return first + z * slice + y * row + x; }
    bool is_voxel(int64_t position) const { return image[position] == image[position]; }

  private:
    void copy(const double* values, int threads) {
        std::vector<double> lows(threads), highs(threads);
        in_parallel(threads, [&](int thread) {
            const auto range = share(depth * height * width, thread, threads);
            double low = values[range.first], high = low;
            for (int64_t i = range.first; i < range.second; ++i) {
                low = values[i] < low ? values[i] : low;
                high = values[i] > high ? values[i] : high;
            }
            lows[thread] = low;
            highs[thread] = high;
        });
        const double lowest = *std::min_element(lows.begin(), lows.end());
        const double spread = *std::max_element(highs.begin(), highs.end()) - lowest;
        // where squares underflow, costs no longer follow the shades: all shades equal, every edge is looked at
        zoom = spread > 1e-140 ? kShades / spread : 0;
        const double nan = std::numeric_limits<double>::quiet_NaN();
        auto pad = [&](int64_t from, int64_t to) {
            std::fill(image.get() + from, image.get() + to, nan);
            std::fill(shade.get() + from, shade.get() + to, -kPadding);
        };
        pad(0, first);
        pad(last, length);
        in_parallel(threads, [&](int thread) {
            const auto slices = share(depth, thread, threads);
            for (int64_t z = slices.first; z < slices.second; ++z) {
                for (int64_t y = 0; y < height; ++y) {
                    const double* source = values + (z * height + y) * width;
                    double* copied = image.get() + position(z, y, 0);
                    int32_t* shaded = shade.get() + position(z, y, 0);
                    for (int64_t x = 0; x < width; ++x) {
                        copied[x] = source[x];
                        shaded[x] = static_cast<int32_t>((source[x] - lowest) * zoom + 0.5);
                    }
                    pad(position(z, y, width), position(z, y + 1, 0));
                }
                pad(position(z, height, 0), position(z + 1, 0, 0));
            }
        });
    }
};

}  // namespace supervoxels
