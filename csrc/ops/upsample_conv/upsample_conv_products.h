// The inner loops of upsample_conv. A strip of pixels lies in memory with its borders, so that the kw pixels that one
// tap row of a position sees are one run of numbers, the next position's run starts one pixel further, and a strip of
// several image rows is one long sequence of positions (those on a border are computed and dropped).
//
//   forward   z[m][n]  = bias[n] + sum over runs r, k of strip[m pixel + offset[r] + k] * weights[r][k][n]
//   weights   dw[k][n] += sum over positions p of strip[p pixel + k] * dz[p][n]
//
// Three units do the sums: fma (float32), dot (pairs of bf16, AVX-512) and tiles (AMX, 16 x 16 sums at once).
// Numbers come in words of 32 bits: one float, or two bf16. Weights come in columns of 16: [tile][run][word][16].
#pragma once
#include "ops/upsample_conv/upsample_conv_lanes.h"
#if defined(VK_UPCONV_BF16)
#include <sys/syscall.h>
#include <unistd.h>
#define VK_AMX __attribute__((target("amx-tile,amx-bf16")))
#endif

namespace vk::VK_ISA {
namespace {

enum class Unit : uint8_t { fma, dot, tiles };

/// The best unit of this machine for bf16 numbers.
inline Unit find_unit([[maybe_unused]] bool without_tiles) {
#if defined(VK_UPCONV_BF16)
  unsigned a = 7, b = 0, c = 0, d = 0;
  __asm__("cpuid" : "+a"(a), "=b"(b), "+c"(c), "=d"(d));
  // The tiles' registers need a permission of the process (ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA).
  if (!without_tiles && (d >> 22 & 1) && (d >> 24 & 1) && syscall(SYS_arch_prctl, 0x1023, 18) == 0) return Unit::tiles;
  __builtin_cpu_init();
  if (__builtin_cpu_supports("avx512bf16")) return Unit::dot;
#endif
  return Unit::fma;
}

/// How a run is read: in `chunks` pieces of `words` words, the last of which may begin inside the one before it.
struct Runs {
  int64_t run, chunks, words;  // run: words of a whole run
  Runs(Unit unit, int64_t run_words) : run(run_words) {
    chunks = unit == Unit::tiles ? (run + 15) / 16 : 1;
    words = (run + chunks - 1) / chunks;
  }
  int64_t at(int64_t chunk) const { return chunk * words < run - words ? chunk * words : run - words; }
  int64_t padded() const { return chunks * words; }
};

constexpr int64_t kSumWords = 512, kSumSteps = 1024;  // that one float32 sum takes in before it is added to a total

/// One product of a strip with `tiles` tiles of weights; `columns` of their 16 * tiles columns are wanted.
struct Product {
  Runs runs;
  int64_t rows, pixel;    // runs per position; bytes from a position to the next
  const int64_t* offset;  // [rows] bytes
  int64_t tiles, columns;
  int64_t tile_words() const { return rows * runs.padded() * 16; }
  /// Runs that one float32 sum takes in before it is added to a total: short sums stay exact.
  int64_t rows_of_sum() const { return runs.words < kSumWords ? kSumWords / runs.words : 1; }
};

template <int MP, int NV>
struct Sums {
  V16 v[MP][NV];
};

#if defined(__AVX512F__)
constexpr int kColumnTiles = 2, kPositions = 12, kPositionsOfOne = 20;
#elif defined(__AVX2__) || defined(__aarch64__)
constexpr int kColumnTiles = 1, kPositions = 5, kPositionsOfOne = 5;
#else
constexpr int kColumnTiles = 1, kPositions = 2, kPositionsOfOne = 2;
#endif

#define VK_UNROLL _Pragma("GCC unroll 32")

/// sums[m][v] += word(q + m * q_step + k * q_stride) * w[k * w_stride + v * w_step]: bytes, k below n.
template <int MP, int NV>
VK_INLINE void add_fma(const char* q, int64_t q_step, int64_t q_stride, const char* w, int64_t w_step, int64_t w_stride,
                       int64_t n, Sums<MP, NV>& s) {
  for (int64_t k = 0; k < n; ++k) {
    V16 x[NV];
    VK_UNROLL for (int v = 0; v < NV; ++v) x[v] = load(reinterpret_cast<const float*>(w + k * w_stride + v * w_step));
    VK_UNROLL for (int m = 0; m < MP; ++m) {
      float f;
      std::memcpy(&f, q + m * q_step + k * q_stride, 4);
      const V16 b(f);
      VK_UNROLL for (int v = 0; v < NV; ++v) s.v[m][v] = madd(b, x[v], s.v[m][v]);
    }
  }
}

#if defined(VK_UPCONV_BF16)
template <int MP, int NV>
__attribute__((target("avx512bf16"),
               always_inline)) inline void add_dot(const char* q, int64_t q_step, int64_t q_stride, const char* w,
                                                   int64_t w_step, int64_t w_stride, int64_t n, Sums<MP, NV>& s) {
  for (int64_t k = 0; k < n; ++k) {
    __m512bh x[NV];
    VK_UNROLL for (int v = 0; v < NV; ++v) x[v] = (__m512bh)_mm512_loadu_si512(w + k * w_stride + v * w_step);
    VK_UNROLL for (int m = 0; m < MP; ++m) {
      int word;
      std::memcpy(&word, q + m * q_step + k * q_stride, 4);
      const __m512bh b = (__m512bh)_mm512_set1_epi32(word);
      VK_UNROLL for (int v = 0; v < NV; ++v) s.v[m][v].p[0] = (PartF)_mm512_dpbf16_ps((__m512)s.v[m][v].p[0], b, x[v]);
    }
  }
}
#endif

/// MP positions against NV tiles, from tile t on.
#define VK_POSITIONS(name, add, attribute)                                                                     \
  template <int MP, int NV>                                                                                    \
  attribute inline void name(const Product& p, const char* base, const uint32_t* weights, const float* bias,   \
                             int64_t t, float* z) {                                                            \
    const int64_t step = p.tile_words() * 4, group = p.rows_of_sum();                                          \
    const char* w = reinterpret_cast<const char*>(weights) + t * step;                                         \
    float total[MP * NV * 16];                                                                                 \
    for (int64_t r0 = 0; r0 < p.rows; r0 += group) {                                                           \
      const int64_t r1 = r0 + group < p.rows ? r0 + group : p.rows;                                            \
      Sums<MP, NV> s;                                                                                          \
      VK_UNROLL for (int m = 0; m < MP; ++m) VK_UNROLL for (int v = 0; v < NV; ++v) s.v[m][v] =                \
          bias && r0 == 0 ? load(bias + (t + v) * 16) : V16(0.0f);                                             \
      for (int64_t r = r0; r < r1; ++r, w += p.runs.words * 64)                                                \
        add(base + p.offset[r], p.pixel, 4, w, step, 64, p.runs.words, s);                                     \
      VK_UNROLL for (int m = 0; m < MP; ++m) VK_UNROLL for (int v = 0; v < NV; ++v) {                          \
        float* sum = total + (m * NV + v) * 16;                                                                \
        const V16 all = r0 > 0 ? load(sum) + s.v[m][v] : s.v[m][v];                                            \
        store(r1 < p.rows ? sum : z + m * p.columns + (t + v) * 16, all);                                      \
      }                                                                                                        \
    }                                                                                                          \
  }                                                                                                            \
  template <int MP, int NV>                                                                                    \
  attribute inline void name##_all(const Product& p, const char* base, int64_t n, const uint32_t* weights,     \
                                   const float* bias, int64_t t, float* z) {                                   \
    int64_t m = 0;                                                                                             \
    for (; m + MP <= n; m += MP) name<MP, NV>(p, base + m * p.pixel, weights, bias, t, z + m * p.columns);     \
    if constexpr (MP > 4)                                                                                      \
      for (; m + 4 <= n; m += 4) name<4, NV>(p, base + m * p.pixel, weights, bias, t, z + m * p.columns);      \
    for (; m < n; ++m) name<1, NV>(p, base + m * p.pixel, weights, bias, t, z + m * p.columns);                \
  }                                                                                                            \
  /* The last tile's surplus columns land on the next position's first ones: tiles go down, positions up. */   \
  attribute inline void name##_product(const Product& p, const char* base, int64_t n, const uint32_t* weights, \
                                       const float* bias, float* z) {                                          \
    int64_t t = p.tiles;                                                                                       \
    if (t % kColumnTiles) name##_all<kPositionsOfOne, 1>(p, base, n, weights, bias, --t, z);                   \
    while (t > 0) name##_all<kPositions, kColumnTiles>(p, base, n, weights, bias, t -= kColumnTiles, z);       \
  }

/// sums[k][n] (rows of `stride` floats) += strip words k .. of every step times dz; `fresh` sums start at zero.
#define VK_GRADIENT(name, add, attribute)                                                                            \
  template <int KM, int NV>                                                                                          \
  attribute inline void name(const char* q, int64_t q_stride, const char* dz, int64_t stride, int64_t steps,         \
                             bool fresh, float* sums) {                                                              \
    for (int64_t k = 0; k < steps; k += kSumSteps) {                                                                 \
      Sums<KM, NV> s;                                                                                                \
      VK_UNROLL for (int m = 0; m < KM; ++m) VK_UNROLL for (int v = 0; v < NV; ++v) s.v[m][v] = V16(0.0f);           \
      const int64_t n = steps - k < kSumSteps ? steps - k : kSumSteps;                                               \
      add(q + k * q_stride, 4, q_stride, dz + k * stride * 4, 64, stride * 4, n, s);                                 \
      VK_UNROLL for (int m = 0; m < KM; ++m) VK_UNROLL for (int v = 0; v < NV; ++v) {                                \
        float* at = sums + m * stride + v * 16;                                                                      \
        store(at, fresh && k == 0 ? s.v[m][v] : load(at) + s.v[m][v]);                                               \
      }                                                                                                              \
    }                                                                                                                \
  }                                                                                                                  \
  template <int KM, int NV>                                                                                          \
  attribute inline void name##_all(const char* q, int64_t q_stride, int64_t words, const char* dz, int64_t stride,   \
                                   int64_t steps, bool fresh, float* sums) {                                         \
    int64_t k = 0;                                                                                                   \
    for (; k + KM <= words; k += KM) name<KM, NV>(q + k * 4, q_stride, dz, stride, steps, fresh, sums + k * stride); \
    if constexpr (KM > 4)                                                                                            \
      for (; k + 4 <= words; k += 4) name<4, NV>(q + k * 4, q_stride, dz, stride, steps, fresh, sums + k * stride);  \
    for (; k < words; ++k) name<1, NV>(q + k * 4, q_stride, dz, stride, steps, fresh, sums + k * stride);            \
  }                                                                                                                  \
  attribute inline void name##_run(const char* q, int64_t q_stride, int64_t words, const char* dz, int64_t stride,   \
                                   int64_t steps, bool fresh, float* sums) {                                         \
    int64_t n = 0;                                                                                                   \
    for (; n + 16 * kColumnTiles <= stride; n += 16 * kColumnTiles)                                                  \
      name##_all<kPositions, kColumnTiles>(q, q_stride, words, dz + n * 4, stride, steps, fresh, sums + n);          \
    for (; n < stride; n += 16)                                                                                      \
      name##_all<kPositionsOfOne, 1>(q, q_stride, words, dz + n * 4, stride, steps, fresh, sums + n);                \
  }

VK_POSITIONS(fma, add_fma, )
VK_GRADIENT(gradient_fma, add_fma, )

#if defined(VK_UPCONV_BF16)
VK_POSITIONS(dot, add_dot, VK_DOT)
VK_GRADIENT(gradient_dot, add_dot, VK_DOT)

/// Tiles 0..3 hold sums of 16 x columns, 4 and 5 the left factor (rows x words), 6 and 7 the right (words x columns).
VK_AMX inline void tiles_begin(int64_t rows, int64_t words, int64_t columns) {
  alignas(64) uint8_t config[64] = {1};
  for (int t = 0; t < 8; ++t) {
    config[16 + 2 * t] = uint8_t(4 * (t == 4 || t == 5 ? words : columns));
    config[48 + t] = uint8_t(t < 6 ? rows : words);
  }
  __asm__ volatile("" : : "r"(config) : "memory");  // gcc's intrinsic tells of the first eight bytes only
  _tile_loadconfig(config);
}
VK_AMX inline void tiles_end() { _tile_release(); }

template <int M, int N>
VK_AMX inline void tiles_block(const Product& p, const char* base, const uint32_t* weights, const float* bias,
                               float* z) {
  if (bias) {
    _tile_loadd(0, bias, 0);
    if constexpr (N > 1) _tile_loadd(1, bias + 16, 0);
    if constexpr (M > 1) _tile_loadd(2, bias, 0);
    if constexpr (M > 1 && N > 1) _tile_loadd(3, bias + 16, 0);
  } else {
    _tile_zero(0);
    if constexpr (N > 1) _tile_zero(1);
    if constexpr (M > 1) _tile_zero(2);
    if constexpr (M > 1 && N > 1) _tile_zero(3);
  }
  const int64_t piece = p.runs.words * 16, other = p.tile_words();
  const uint32_t* w = weights;
  for (int64_t r = 0; r < p.rows; ++r)
    for (int64_t c = 0; c < p.runs.chunks; ++c, w += piece) {
      const char* q = base + p.offset[r] + p.runs.at(c) * 4;
      _tile_loadd(4, q, p.pixel);
      _tile_loadd(6, w, 64);
      _tile_dpbf16ps(0, 4, 6);
      if constexpr (N > 1) {
        _tile_loadd(7, w + other, 64);
        _tile_dpbf16ps(1, 4, 7);
      }
      if constexpr (M > 1) {
        _tile_loadd(5, q + 16 * p.pixel, p.pixel);
        _tile_dpbf16ps(2, 5, 6);
        if constexpr (N > 1) _tile_dpbf16ps(3, 5, 7);
      }
    }
  const int64_t stride = p.columns * 4;  // surplus columns land on the next row, which is stored after them
  if constexpr (N > 1) _tile_stored(1, z + 16, stride);
  _tile_stored(0, z, stride);
  if constexpr (M > 1 && N > 1) _tile_stored(3, z + 16 * p.columns + 16, stride);
  if constexpr (M > 1) _tile_stored(2, z + 16 * p.columns, stride);
}

/// Writes whole blocks of 16 positions, whatever n is.
template <int N>
VK_AMX inline void tiles_all(const Product& p, const char* base, int64_t n, const uint32_t* weights, const float* bias,
                             int64_t t, float* z) {
  const uint32_t* w = weights + t * p.tile_words();
  const float* b = bias ? bias + t * 16 : nullptr;
  int64_t m = 0;
  for (; m + 16 < n; m += 32) tiles_block<2, N>(p, base + m * p.pixel, w, b, z + m * p.columns + t * 16);
  if (m < n) tiles_block<1, N>(p, base + m * p.pixel, w, b, z + m * p.columns + t * 16);
}

VK_AMX inline void tiles_product(const Product& p, const char* base, int64_t n, const uint32_t* weights,
                                 const float* bias, float* z) {
  int64_t t = p.tiles;
  if (t % 2) tiles_all<1>(p, base, n, weights, bias, --t, z);
  while (t > 0) tiles_all<2>(p, base, n, weights, bias, t -= 2, z);
}

/// The strip as planes of channels, for the weight gradient. A unit is `rows` planes seen by one tap of a row: unit u
/// belongs to tap u / groups and begins with plane u % groups * rows.
struct Planes {
  const char* data;
  int64_t plane, rows, groups;  // plane: bytes
  VK_INLINE const char* unit(int64_t u) const { return data + u / groups * 2 + u % groups * rows * plane; }
};

/// sums[u][row][n] += planes[row][p + tap] dz[p][n] for M units from u on and N tiles of columns.
template <int M, int N>
VK_AMX inline void gradient_block(const Planes& p, int64_t u, const char* dz, int64_t stride, int64_t steps, bool fresh,
                                  float* sums) {
  static_assert((M == 2 && N == 2) || (M <= 3 && N == 1) || (M == 1 && N == 2));
  const int64_t bytes = stride * 4, unit = p.rows * stride;
  sums += u * unit;
  if (fresh) {
    _tile_zero(0);
    if constexpr (N > 1 || M > 1) _tile_zero(1);
    if constexpr (M * N > 2) _tile_zero(2);
    if constexpr (M * N > 3) _tile_zero(3);
  } else {
    _tile_loadd(0, sums, bytes);
    if constexpr (N > 1) _tile_loadd(1, sums + 16, bytes);
    if constexpr (N == 1 && M > 1) _tile_loadd(1, sums + unit, bytes);
    if constexpr (N > 1 && M > 1) _tile_loadd(2, sums + unit, bytes);
    if constexpr (N > 1 && M > 1) _tile_loadd(3, sums + unit + 16, bytes);
    if constexpr (N == 1 && M > 2) _tile_loadd(2, sums + 2 * unit, bytes);
  }
  const char *q0 = p.unit(u), *q1 = p.unit(u + 1), *q2 = p.unit(u + 2);
  for (int64_t k = 0; k < steps; k += 16, dz += 16 * bytes) {
    const int64_t at = k * 4;
    _tile_loadd(6, dz, bytes);
    _tile_loadd(4, q0 + at, p.plane);
    _tile_dpbf16ps(0, 4, 6);
    if constexpr (N > 1) {
      _tile_loadd(7, dz + 64, bytes);
      _tile_dpbf16ps(1, 4, 7);
    }
    if constexpr (M > 1) {
      _tile_loadd(5, q1 + at, p.plane);
      if constexpr (N > 1) {
        _tile_dpbf16ps(2, 5, 6);
        _tile_dpbf16ps(3, 5, 7);
      } else {
        _tile_dpbf16ps(1, 5, 6);
      }
    }
    if constexpr (N == 1 && M > 2) {
      _tile_loadd(4, q2 + at, p.plane);
      _tile_dpbf16ps(2, 4, 6);
    }
  }
  _tile_stored(0, sums, bytes);
  if constexpr (N > 1) _tile_stored(1, sums + 16, bytes);
  if constexpr (N == 1 && M > 1) _tile_stored(1, sums + unit, bytes);
  if constexpr (N > 1 && M > 1) _tile_stored(2, sums + unit, bytes);
  if constexpr (N > 1 && M > 1) _tile_stored(3, sums + unit + 16, bytes);
  if constexpr (N == 1 && M > 2) _tile_stored(2, sums + 2 * unit, bytes);
}

/// All units of one row of taps against all columns.
VK_AMX inline void gradient_tiles_run(const Planes& p, int64_t units, const char* dz, int64_t stride, int64_t steps,
                                      bool fresh, float* sums) {
  int64_t n = 0;
  for (; n + 32 <= stride; n += 32) {
    int64_t u = 0;
    for (; u + 2 <= units; u += 2) gradient_block<2, 2>(p, u, dz + n * 4, stride, steps, fresh, sums + n);
    if (u < units) gradient_block<1, 2>(p, u, dz + n * 4, stride, steps, fresh, sums + n);
  }
  if (n == stride) return;
  int64_t u = 0;
  for (; u + 3 <= units; u += 3) gradient_block<3, 1>(p, u, dz + n * 4, stride, steps, fresh, sums + n);
  for (; u < units; ++u) gradient_block<1, 1>(p, u, dz + n * 4, stride, steps, fresh, sums + n);
}
#endif

}  // namespace
}  // namespace vk::VK_ISA
