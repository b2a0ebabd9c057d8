// Tile by tile, accumulators in L1; a register (or two, or four) is a block of 4 x 4 pixels.
//
//   set up   one record per Gaussian: coefficients, box in blocks, the ellipse's outline
//   bin      counting sort: each tile gets its Gaussians in ascending order, whatever the number of threads
//   draw     per tile and Gaussian: columns and rows get what depends on x or y only, the outline gives a list of
//            blocks, and one loop without branches adds to them
//   store    accumulators to bytes
//
// Compiled with -ffp-contract=off (cmake/cpu_kernels.cmake): the order and rounding of operations is a contract.
#include <cstdlib>
#include <cstring>

#include "core/parallel.h"
#include "ops/decode_splats/decode_splats.h"
#if defined(__SSE4_1__)
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"  // gcc 12, in its own intrinsics
#include <immintrin.h>
#endif

namespace vk::VK_ISA {
namespace {

#if defined(__AVX512BW__)
constexpr int kLanes = 16;
#elif defined(__AVX2__)
constexpr int kLanes = 8;
#else
constexpr int kLanes = 4;
#endif
constexpr int kParts = 16 / kLanes;   // registers of a block
constexpr int kCols = 16, kRows = 8;  // blocks of a tile: 64 x 32 pixels

typedef float Floats __attribute__((vector_size(4 * kLanes)));
typedef int32_t Ints __attribute__((vector_size(4 * kLanes)));
typedef uint8_t Bytes16 __attribute__((vector_size(16)));

Floats broadcast(float x) { return x - Floats{}; }

/// q * q where t <= limit, else 0; NaN is outside.
Floats square_inside(Floats q, Floats t, Floats limit) {
#if defined(__AVX512BW__)
  return (Floats)_mm512_maskz_mul_ps(_mm512_cmp_ps_mask((__m512)t, (__m512)limit, _CMP_LE_OQ), (__m512)q, (__m512)q);
#else
  return (Floats)((Ints)(q * q) & (t <= limit));
#endif
}

struct alignas(16) Record {
  float mx, my, u1, u2, k;
  float slope, half, ry2, xm, ys, margin;  // outline: x = mx + slope dy +- half sqrt(ry2 - dy^2); half < 0: none
  int16_t x0, x1, y0, y1;                  // box in blocks, inclusive; x1 < x0: nothing to draw
  float color[4];
};

struct Heap {
  void* p;
  explicit Heap(int64_t bytes) : p(std::malloc(size_t(bytes) + 1)) {}
  Heap(const Heap&) = delete;
  ~Heap() { std::free(p); }
};

// ---- set up

bool finite(float x) { return std::fabs(x) <= 3.402823466e38f; }

Record make_record(const DecodeSplats& a, int64_t i) {
  Record r{};
  r.x1 = -1;
  r.mx = a.means[2 * i], r.my = a.means[2 * i + 1];
  const float l11 = a.cholesky[3 * i], l21 = a.cholesky[3 * i + 1], l22 = a.cholesky[3 * i + 2];
  r.u1 = kDecodeZeta / l11;
  r.u2 = kDecodeZeta / l22;
  const float lu = l21 * r.u1;
  r.k = lu / l22;
  bool good = finite(r.mx) & finite(r.my) & finite(l11) & finite(l22) & finite(r.u1) & finite(r.u2) & finite(r.k);
  for (int64_t c = 0; c < a.channels; ++c) {
    r.color[c] = a.colors[a.channels * i + c];
    good = good & finite(r.color[c]);
  }
  if (!good) return r;

  // From here on nothing is exact, everything is generous.
  const float sxx = l11 * l11, syy = l21 * l21 + l22 * l22;
  const float reach_y = std::sqrt(syy) * kDecodeReach, reach_x = std::fabs(l11) * kDecodeReach;
  const PixelRange x = decode_pixel_range(r.mx, reach_x, a.pixel_center, a.width);
  const PixelRange y = decode_pixel_range(r.my, reach_y, a.pixel_center, a.height);
  if (x.last < x.first || y.last < y.first) return r;
  r.x0 = int16_t(x.first >> 2), r.x1 = int16_t(x.last >> 2), r.y0 = int16_t(y.first >> 2), r.y1 = int16_t(y.last >> 2);
  const float tilt = std::fabs(l21 / l22), far = std::fabs(r.mx) + std::fabs(r.my);
  r.half = -1;
  if (tilt < 1e4f && far < 1e5f && syy > 1e-4f && syy < 1e8f && sxx > 1e-4f && sxx < 1e8f) {
    const float ry = reach_y * (1 + 1e-5f + 3e-7f * (2 + tilt)) + 0.01f, inverse = 1 / syy;
    r.slope = l11 * l21 * inverse;
    r.half = std::fabs(l11 * l22) * inverse;
    r.ry2 = ry * ry;
    r.ys = (l11 < 0 ? -l21 : l21) * kDecodeReach;
    r.margin = 0.02f + 1e-5f * reach_x + std::fabs(r.slope) * (1e-3f + 1e-6f * (far + ry));
    r.xm = reach_x + r.margin;
  }
  return r;
}

// ---- bin

struct Grid {
  int64_t cols, rows;  // tiles
  int64_t tiles() const { return cols * rows; }
};

template <class F>
void for_tiles(const Record& r, const Grid& grid, F f) {
  if (r.x1 < r.x0) return;
  for (int64_t y = r.y0 / kRows; y <= r.y1 / kRows; ++y)
    for (int64_t x = r.x0 / kCols; x <= r.x1 / kCols; ++x) f(y * grid.cols + x);
}

// ---- draw

struct Tile {
  alignas(64) Floats pixels[kRows * kCols * 4 * kParts];  // [row][col][channel][part]
  alignas(64) Floats row_y[kRows][kParts], col_x[kCols][kParts], col_w[kCols][kParts];
  alignas(64) float px[kCols][16], py[kRows][16];  // pixel centres by block and lane
  alignas(16) uint8_t blocks[kRows * kCols + 16];  // row * kCols + col
  float low[kRows], high[kRows];
};

/// The blocks of tile columns c0..c1, rows r0..r1 that the outline may touch.
int list_blocks(Tile& t, const Record& r, int c0, int c1, int r0, int r1, float tile_x, float tile_y) {
  constexpr Bytes16 kIota = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
  const bool box = r.half < 0 || (c1 - c0) * (r1 - r0) <= 1;
  if (!box) {
    const float x = r.mx - tile_x, first = float(c0), last = float(c1);
    for (int j = 0; j < kRows; ++j) {
      const float d0 = tile_y + 4.0f * float(j) - r.my, d1 = d0 + 3.0f;
      // Rows beyond the ends of the ellipse get the value at its end: the box has cut them off but for a margin.
      const float s0 = std::sqrt(r.ry2 - d0 * d0 > 0 ? r.ry2 - d0 * d0 : 0.0f) * r.half;
      const float s1 = std::sqrt(r.ry2 - d1 * d1 > 0 ? r.ry2 - d1 * d1 : 0.0f) * r.half;
      const float m0 = r.slope * d0, m1 = r.slope * d1;
      float high = m0 + s0 > m1 + s1 ? m0 + s0 : m1 + s1;
      float low = m0 - s0 < m1 - s1 ? m0 - s0 : m1 - s1;
      high = d0 <= r.ys && r.ys <= d1 ? r.xm : high;
      low = d0 <= -r.ys && -r.ys <= d1 ? -r.xm : low;
      low = (x + low - r.margin) * 0.25f - 0.75f;  // a block from its fourth pixel on
      high = (x + high + r.margin) * 0.25f;
      low = low > first ? low : first;
      low = low < 17.0f ? low : 17.0f;
      high = high < last ? high : last;
      t.low[j] = low;
      t.high[j] = high > -1.0f ? high : -1.0f;
    }
  }
  int n = 0;
  for (int j = r0; j <= r1; ++j) {
    const int low = box ? c0 : int(std::ceil(t.low[j])), high = box ? c1 : int(std::floor(t.high[j]));
    const Bytes16 ids = kIota + uint8_t(j * kCols + low);
    std::memcpy(t.blocks + n, &ids, 16);
    n += high >= low ? high - low + 1 : 0;
  }
  return n;
}

template <int C>
void draw(Tile& t, const Record& r, int64_t tile_col, int64_t tile_row, float tile_x, float tile_y) {
  const int x0 = r.x0 - int(tile_col) * kCols, x1 = r.x1 - int(tile_col) * kCols;
  const int y0 = r.y0 - int(tile_row) * kRows, y1 = r.y1 - int(tile_row) * kRows;
  const int c0 = x0 > 0 ? x0 : 0, c1 = x1 < kCols - 1 ? x1 : kCols - 1;
  const int r0 = y0 > 0 ? y0 : 0, r1 = y1 < kRows - 1 ? y1 : kRows - 1;
  const int n = list_blocks(t, r, c0, c1, r0, r1, tile_x, tile_y);

  const Floats mx = broadcast(r.mx), my = broadcast(r.my), u1 = broadcast(r.u1), u2 = broadcast(r.u2);
  const Floats k = broadcast(r.k), beta = broadcast(kDecodeBeta);
  for (int c = c0; c <= c1; ++c)
    for (int p = 0; p < kParts; ++p) {
      Floats px;
      std::memcpy(&px, t.px[c] + p * kLanes, sizeof px);
      const Floats dx = px - mx, z1 = dx * u1, square = z1 * z1;
      t.col_x[c][p] = dx * k;
      t.col_w[c][p] = square + beta;
    }
  for (int j = r0; j <= r1; ++j)
    for (int p = 0; p < kParts; ++p) {
      Floats py;
      std::memcpy(&py, t.py[j] + p * kLanes, sizeof py);
      const Floats dy = py - my;
      t.row_y[j][p] = dy * u2;
    }

  const Floats gamma = broadcast(kDecodeGamma), tau = broadcast(kDecodeTau);
  Floats color[C];
  for (int c = 0; c < C; ++c) color[c] = broadcast(r.color[c]);
  for (int i = 0; i < n; ++i) {
    const int id = t.blocks[i];
    Floats* pixels = t.pixels + id * C * kParts;
    const Floats *y = t.row_y[id / kCols], *x = t.col_x[id % kCols], *w = t.col_w[id % kCols];
    for (int p = 0; p < kParts; ++p) {
      const Floats z2 = y[p] - x[p], s2 = z2 * z2, v = s2 + w[p], v2 = v * v;
      const Floats q = v2 + gamma, q2 = q * q, q4 = q2 * q2, q8 = q4 * q4, q16 = q8 * q8;
      const Floats g = square_inside(q16, v, tau);
      for (int c = 0; c < C; ++c) {
        const Floats part = color[c] * g;
        pixels[c * kParts + p] = pixels[c * kParts + p] + part;
      }
    }
  }
}

// ---- store

/// round(255 clamp(v, 0, 1)) as integers; NaN gives 0. Adding 2^23 rounds to nearest even.
Ints to_levels(Floats v) {
  const Floats zero = {}, one = zero + 1.0f;
  v = v > zero ? v : zero;
  v = v < one ? v : one;
  const Floats scaled = v * 255.0f;
  return (Ints)(scaled + 8388608.0f) & 255;
}

template <int C>
void store(const Tile& t, const DecodeSplats& a, int64_t tile_col, int64_t tile_row) {
  for (int j = 0; j < kRows; ++j) {
    const int64_t y = (tile_row * kRows + j) * 4;
    if (y >= a.height) return;
    for (int i = 0; i < kCols; ++i) {
      const int64_t x = (tile_col * kCols + i) * 4;
      if (x >= a.width) break;
      const Floats* pixels = t.pixels + (j * kCols + i) * C * kParts;
      alignas(64) uint32_t packed[16];  // a pixel's channels in one word
      for (int p = 0; p < kParts; ++p) {
        Ints word = to_levels(pixels[p]);
        for (int c = 1; c < C; ++c) word |= to_levels(pixels[c * kParts + p]) << (8 * c);
        std::memcpy(packed + p * kLanes, &word, sizeof word);
      }
      uint8_t* out = a.out + (y * a.width + x) * C;
      const int wide = a.width - x < 4 ? int(a.width - x) : 4, tall = a.height - y < 4 ? int(a.height - y) : 4;
#if defined(__SSSE3__)
      if (C == 3 && wide == 4) {
        const __m128i drop = _mm_setr_epi8(0, 1, 2, 4, 5, 6, 8, 9, 10, 12, 13, 14, -1, -1, -1, -1);
        for (int dy = 0; dy < tall; ++dy) {
          const __m128i row = _mm_shuffle_epi8(_mm_load_si128((const __m128i*)(packed + 4 * dy)), drop);
          std::memcpy(out + dy * a.width * 3, &row, 12);
        }
        continue;
      }
#endif
      for (int dy = 0; dy < tall; ++dy)
        for (int dx = 0; dx < wide; ++dx)
          for (int c = 0; c < C; ++c) out[(dy * a.width + dx) * C + c] = uint8_t(packed[4 * dy + dx] >> (8 * c));
    }
  }
}

template <int C>
void render_tile(Tile& t, const DecodeSplats& a, const Record* records, const int32_t* ids, int64_t n, int64_t tile_col,
                 int64_t tile_row) {
  for (int b = 0; b < kRows * kCols; ++b)
    for (int c = 0; c < C; ++c)
      for (int p = 0; p < kParts; ++p) t.pixels[(b * C + c) * kParts + p] = broadcast(a.background[c]);
  for (int b = 0; b < kCols; ++b)
    for (int lane = 0; lane < 16; ++lane) t.px[b][lane] = float((tile_col * kCols + b) * 4 + lane % 4) + a.pixel_center;
  for (int b = 0; b < kRows; ++b)
    for (int lane = 0; lane < 16; ++lane) t.py[b][lane] = float((tile_row * kRows + b) * 4 + lane / 4) + a.pixel_center;
  for (int64_t i = 0; i < n; ++i) draw<C>(t, records[ids[i]], tile_col, tile_row, t.px[0][0], t.py[0][0]);
  store<C>(t, a, tile_col, tile_row);
}

}  // namespace

void decode_splats(DecodeSplats& a) {
  if (a.height * a.width == 0) return;
  const Grid grid{(a.width + 4 * kCols - 1) / (4 * kCols), (a.height + 4 * kRows - 1) / (4 * kRows)};
  const int64_t chunks = a.count < 2048 ? 1 : max_threads(), tiles = grid.tiles();
  const Heap record_memory(a.count * int64_t(sizeof(Record)) + 64), counter_memory(chunks * tiles * 8 + tiles * 8 + 8);
  if (!record_memory.p || !counter_memory.p) {
    a.no_memory = true;
    return;
  }
  Record* records = reinterpret_cast<Record*>((uintptr_t(record_memory.p) + 63) / 64 * 64);
  int64_t* counts = static_cast<int64_t*>(counter_memory.p);  // [chunk][tile]
  int64_t* starts = counts + chunks * tiles;                  // [tile + 1]
  std::memset(counts, 0, size_t(chunks * tiles) * 8);
  const auto begin = [&](int64_t chunk) { return a.count * chunk / chunks; };
  parallel_for(chunks, 1, [&](int64_t k0, int64_t k1) {
    for (int64_t k = k0; k < k1; ++k)
      for (int64_t i = begin(k); i < begin(k + 1); ++i) {
        records[i] = make_record(a, i);
        for_tiles(records[i], grid, [&](int64_t tile) { ++counts[k * tiles + tile]; });
      }
  });
  int64_t total = 0;
  for (int64_t t = 0; t < tiles; ++t) {
    starts[t] = total;
    for (int64_t k = 0; k < chunks; ++k) {
      const int64_t n = counts[k * tiles + t];
      counts[k * tiles + t] = total;
      total += n;
    }
  }
  starts[tiles] = total;
  const Heap id_memory(total * 4);
  if (!id_memory.p) {
    a.no_memory = true;
    return;
  }
  int32_t* ids = static_cast<int32_t*>(id_memory.p);
  parallel_for(chunks, 1, [&](int64_t k0, int64_t k1) {
    for (int64_t k = k0; k < k1; ++k)
      for (int64_t i = begin(k); i < begin(k + 1); ++i)
        for_tiles(records[i], grid, [&](int64_t tile) { ids[counts[k * tiles + tile]++] = int32_t(i); });
  });
  // Tiles differ in work: threads take the next one from a shared counter.
  int64_t next = 0;
  parallel_for(tiles, 1, [&](int64_t, int64_t) {
    Tile tile;
    for (int64_t t; (t = __atomic_fetch_add(&next, 1, __ATOMIC_RELAXED)) < tiles;) {
      const int32_t* mine = ids + starts[t];
      const int64_t n = starts[t + 1] - starts[t], col = t % grid.cols, row = t / grid.cols;
      switch (a.channels) {
        case 1: render_tile<1>(tile, a, records, mine, n, col, row); break;
        case 2: render_tile<2>(tile, a, records, mine, n, col, row); break;
        case 3: render_tile<3>(tile, a, records, mine, n, col, row); break;
        default: render_tile<4>(tile, a, records, mine, n, col, row); break;
      }
    }
  });
}

}  // namespace vk::VK_ISA
