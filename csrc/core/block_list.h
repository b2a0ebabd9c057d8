// Several ellipses as one flat list of 4x4-pixel blocks. A loop over rows and spans would mispredict a branch at the
// end of every row, and wait again for the first exponential of the next; the list is one loop for a whole batch.
//
// The exponent of a block comes from two small tables, without the cross term that cancels in thin tilted ellipses:
//   log2(255 weight exp(-sigma)) = across[x] - (along[x] - down[y])^2
//   across = k1 dx^2 + log2(255 weight), along = sqrt(-kc) shear dx, down = sqrt(-kc) dy
// It is 0 at the edge of the support.
#pragma once
#include <cstddef>
#include <cstring>

#include "core/ellipse.h"

namespace vk {
namespace {

/// What is known of an ellipse in a window of 16 x 16 blocks.
struct BlockTables {
  alignas(64) float along[64];  // of each column of pixels
  float across[64];
  float dx[64];
  float down[16][16];  // of each row of blocks, lane by lane
  float color[16];     // the caller's
  int32_t left[16], right[16];
  uint32_t rows;  // bit r: row r of blocks is touched
  int32_t column0, begin;
  float top, root;
};

/// One block of an ellipse: where its numbers are.
struct BlockPlace {
  uint16_t ellipse;  // bytes from the first ellipse's tables
  uint16_t frame;    // floats from the window's first block
  uint16_t column;   // bytes to the block's four numbers in `along`, counted from the first ellipse
  uint16_t row;      // likewise in `down`, without the offset of `down`
};

/// Room for kEllipses in a frame with kFrame floats for each block.
template <int kEllipses, int kFrame>
class BlockList {
 public:
  static constexpr int kSide = 16;

  void clear() { count_ = ellipses_ = 0; }
  bool full() const { return ellipses_ == kEllipses; }
  int ellipses() const { return ellipses_; }
  float* new_color() { return tables_[ellipses_].color; }

  /// Takes in what `e` touches of block rows row0 .. row1 and columns column0 .. column1 of the image, at most 16 of
  /// each; the window begins at (row0, column0). No branch depends on the ellipse here: many may be under way at once.
  VK_INLINE void add(const Ellipse& e, int row0, int row1, int column0, int column1) {
    BlockTables& tables = tables_[ellipses_];
    I16 left, right;
    block_spans(e, row0, column0, column1, left, right);
    store(tables.left, left);
    store(tables.right, right);
    tables.rows = lanes_ge(right, left) & ((2u << (row1 - row0)) - 1);
    const float root = __builtin_sqrtf(-e.kc);
    const V16 tilt(root * e.shear), k1(e.k1), lift(-e.limit), x0(float(kBlock * column0) - e.x);
    for (int k = 0; k < 64; k += 16) {
      const V16 x = load(kPixels + k) + x0;
      store(tables.dx + k, x);
      store(tables.along + k, tilt * x);
      store(tables.across + k, madd(k1 * x, x, lift));
    }
    tables.top = root * (float(kBlock * row0) - e.y);
    tables.root = root;
    tables.column0 = column0;
    ++ellipses_;
  }

  /// Lists the blocks of what was taken in.
  void fill() {
    BlockPlace* to = places_;
    for (int i = 0; i < ellipses_; ++i) {
      BlockTables& tables = tables_[i];
      tables.begin = int(to - places_);
      const V16 lanes = madd(V16(tables.root), load(kLaneY), V16(tables.top));
      const float step = tables.root * kBlock;
      const uint64_t here = uint64_t(i) * sizeof(BlockTables);
      constexpr uint64_t kDown = uint64_t(64) << 48 | uint64_t(kSide * kFrame) << 16;
      const uint64_t origin = (here << 48 | here << 32 | here) - uint64_t(tables.column0) * kOver;
      for (uint32_t rows = tables.rows; rows; rows &= rows - 1) {
        const int r = __builtin_ctz(rows);
        store(tables.down[r], madd(V16(step), V16(float(r)), lanes));
        const uint64_t start = origin + uint64_t(r) * kDown + uint64_t(tables.left[r]) * kOver;
        for (int k = 0; k < 2; ++k) {
          const Eight eight = kNext + (start + uint64_t(8 * k) * kOver);
          std::memcpy(to + 8 * k, &eight, sizeof eight);
        }
        to += tables.right[r] - tables.left[r] + 1;
      }
    }
    count_ = int(to - places_);
  }

  /// f(place, t, 255 weight exp(-sigma) or 0 outside the support), t = sqrt(-kc) (shear dx - dy), for places
  /// [begin, end) of the list.
  template <class F>
  VK_INLINE void each(int begin, int end, F f) const {
    for (const BlockPlace *p = places_ + begin, *last = places_ + end; p != last; ++p) {
      const V16 t = spread_rows(at(p->column)) - load(at(p->row + offsetof(BlockTables, down)));
      const V16 across = spread_rows(at(p->column + offsetof(BlockTables, across)));
      f(*p, t, exp2_positive(across - t * t));
    }
  }
  template <class F>
  VK_INLINE void each(F f) const {
    each(0, count_, f);
  }
  const float* color(const BlockPlace& p) const { return at(p.ellipse + offsetof(BlockTables, color)); }
  V16 dx(const BlockPlace& p) const { return spread_rows(at(p.column + offsetof(BlockTables, dx))); }
  int begin(int i) const { return i < ellipses_ ? tables_[i].begin : count_; }
  /// The block's column and row in the window, of ellipse i.
  static size_t column(const BlockPlace& p, int i) { return (p.column - size_t(i) * sizeof(BlockTables)) / 16; }
  static size_t row(const BlockPlace& p, int i) { return (p.row - size_t(i) * sizeof(BlockTables)) / 64; }

 private:
  const float* at(size_t bytes) const {
    return reinterpret_cast<const float*>(reinterpret_cast<const char*>(tables_) + bytes);
  }

  typedef uint64_t Eight __attribute__((vector_size(64)));
  static constexpr uint64_t kOver = uint64_t(kFrame) << 16 | uint64_t(16) << 32;
  static constexpr Eight kNext = {0, kOver, 2 * kOver, 3 * kOver, 4 * kOver, 5 * kOver, 6 * kOver, 7 * kOver};
  alignas(64) static constexpr float kPixels[64] = {0,  1,  2,  3,  4,  5,  6,  7,  8,  9,  10, 11, 12, 13, 14, 15,
                                                    16, 17, 18, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 29, 30, 31,
                                                    32, 33, 34, 35, 36, 37, 38, 39, 40, 41, 42, 43, 44, 45, 46, 47,
                                                    48, 49, 50, 51, 52, 53, 54, 55, 56, 57, 58, 59, 60, 61, 62, 63};
  static_assert(kEllipses * sizeof(BlockTables) <= 65536 && kSide * kSide * kFrame <= 65536);

  BlockTables tables_[kEllipses];
  BlockPlace places_[kEllipses * kSide * kSide + 16];
  int count_ = 0, ellipses_ = 0;
};

}  // namespace
}  // namespace vk
