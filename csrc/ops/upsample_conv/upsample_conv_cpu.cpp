// Forward: a thread copies a strip of x with its borders, multiplies it block by block, and activates the sums while
// they are in its cache. Backward: a strip of dz = grad_out * derivative serves three purposes: the same product gives
// grad_x, its words against the strip of x give grad_weight, their sum grad_bias.
//
//   strip of x    [row][position][in]                       numbers: float, or bf16 for the units that take it
//   strip of dz   [dy][row][position][s C]
//   words of dz   [position (pair)][(dy, dx, c)]            positions on a border are zeros
//   sums          [chunk][ky][kx][in][(dy, dx, c)] float32; chunks are fixed by the sizes, whoever adds them
#include "core/parallel.h"
#include "ops/upsample_conv/upsample_conv_strips.h"

namespace vk::VK_ISA {
namespace {

constexpr int64_t kChunks = 16;                     // parts of the sum over pixels that have sums of their own
constexpr int64_t kChunkFloats = int64_t(1) << 23;  // that all of them together may take

void multiply([[maybe_unused]] Unit unit, const Product& p, const char* base, int64_t n, const uint32_t* weights,
              const float* bias, float* z) {
#if defined(VK_UPCONV_BF16)
  if (unit == Unit::tiles) return tiles_product(p, base, n, weights, bias, z);
  if (unit == Unit::dot) return dot_product(p, base, n, weights, bias, z);
#endif
  fma_product(p, base, n, weights, bias, z);
}

void begin([[maybe_unused]] Unit unit, [[maybe_unused]] int64_t rows, [[maybe_unused]] int64_t words,
           [[maybe_unused]] int64_t columns) {
#if defined(VK_UPCONV_BF16)
  if (unit == Unit::tiles) tiles_begin(rows, words, columns);
#endif
}
void end([[maybe_unused]] Unit unit) {
#if defined(VK_UPCONV_BF16)
  if (unit == Unit::tiles) tiles_end();
#endif
}

/// Calls f(strip, image row of the output, first number in it, z, n) for pieces of rows, one strip from one thread.
template <class T, class W, class F>
void convolve(const Plan& p, const void* x0, const void* weight, const void* bias0, F f) {
  const UpsampleConvSizes& s = p.s;
  const Unit unit = p.unit;
  const Runs runs(unit, s.kw * p.in / p.per_word);
  const int64_t tiles = ceil_div(p.row_out, 16);
  Scratch<int64_t> offset(size_t(s.kh));
  for (int64_t ky = 0; ky < s.kh; ++ky) offset[size_t(ky)] = ky * p.pitch * p.in * p.size;
  const Product product{runs, s.kh, p.in * p.size, offset.data(), tiles, p.row_out};
  Scratch<uint32_t> weights(size_t(s.scale * tiles * product.tile_words()));
  Scratch<float> bias(size_t(s.scale * tiles * 16));
  pack_forward<T>(p, runs, static_cast<const W*>(weight), weights.data());
  for (int64_t i = 0; i < s.scale * tiles * 16; ++i) {
    const int64_t dy = i / (tiles * 16), j = i % (tiles * 16);
    bias[size_t(i)] = bias0 && j < p.row_out ? to_float(static_cast<const W*>(bias0)[filter_of(s, dy, j)]) : 0.0f;
  }
  parallel_for(s.batch * p.strips, 1, [&](int64_t i0, int64_t i1) {
    Scratch<char> strip(size_t(p.strip_numbers(p.in) * p.size));
    Scratch<float> z(size_t((kBlock + 16) * p.row_out + 64));
    begin(unit, 16, runs.words, p.row_out < 16 ? p.row_out : 16);
    for (int64_t i = i0; i < i1; ++i) {
      const int64_t b = i / p.strips, first = i % p.strips * p.rows, height = p.strip_height(i % p.strips);
      const T* x = static_cast<const T*>(x0) + b * s.height * s.width * s.in;
      if (unit == Unit::fma)
        fill_strip<float, T>(p, x, nullptr, first, height, s.width * s.in, s.in, p.in,
                             reinterpret_cast<float*>(strip.data()));
      else
        fill_strip<bf16, T>(p, x, nullptr, first, height, s.width * s.in, s.in, p.in,
                            reinterpret_cast<bf16*>(strip.data()));
      const int64_t positions = p.positions(i % p.strips);
      for (int64_t m0 = 0; m0 < positions; m0 += kBlock) {
        const int64_t n = positions - m0 < kBlock ? positions - m0 : kBlock;
        for (int64_t dy = 0; dy < s.scale; ++dy) {
          multiply(unit, product, strip.data() + m0 * product.pixel, n,
                   weights.data() + dy * tiles * product.tile_words(), bias.data() + dy * tiles * 16, z.data());
          each_segment(p, m0, n, [&](int64_t y, int64_t px, int64_t at, int64_t count) {
            const int64_t row = (b * s.height + first + y) * s.scale + dy;
            f(i, row, px * p.row_out, z.data() + at * p.row_out, count * p.row_out);
          });
        }
      }
    }
    end(unit);
  });
}

template <class T, class W>
void forward(const UpsampleConv& a, Unit unit) {
  const Plan p(a.sizes, unit);
  convolve<T, W>(p, a.x, a.weight, a.bias, [&](int64_t, int64_t row, int64_t at, const float* z, int64_t n) {
    const int64_t to = row * a.sizes.width * p.row_out + at;
    T *out = a.out ? static_cast<T*>(a.out) + to : nullptr,
      *derivative = a.derivative ? static_cast<T*>(a.derivative) + to : nullptr;
#if defined(VK_UPCONV_BF16)
    if (unit != Unit::fma) return activate_by_hardware(a.sizes.activation, z, n, out, derivative);
#endif
    activate(a.sizes.activation, z, n, out, derivative);
  });
}

// ---- loss

typedef uint8_t PartB __attribute__((vector_size(kPartLanes)));

struct Differ {
  const V16 l1, l2, twice;
  explicit Differ(const UpsampleConvLoss& a) : l1(a.l1), l2(a.l2), twice(2 * a.l2) {}

  /// Sixteen numbers of the loss from z, which becomes the gradient.
  template <bool kSquash>
  VK_INLINE V16 loss(const uint8_t* target, const V16& share, V16& z) const {
    V16 t;
    VK_EACH_PART {
      PartB bytes;
      std::memcpy(&bytes, target + i * kPartLanes, sizeof bytes);
      t.p[i] = __builtin_convertvector(__builtin_convertvector(bytes, PartI), PartF);
    }
    V16 slope = share;
    if constexpr (kSquash) {
      const V16 e = exp2(min(V16(60.0f), max(V16(-60.0f), z * V16(-2.88539008f))));  // exp(-2 z)
      const V16 picture = V16(1.0f) / (V16(1.0f) + e);
      slope = slope * (V16(2.0f) * picture * picture * e);
      VK_EACH_PART z.p[i] = z.p[i] == z.p[i] ? picture.p[i] : z.p[i];
    }
    const V16 d = madd(t, V16(-1.0f / 255), z), size = absolute(d);
    V16 sign;
    const PartF one = spread(1.0f);
    VK_EACH_PART sign.p[i] = (PartF)(((PartI)one & (d.p[i] > 0.0f)) | ((PartI)(-one) & (d.p[i] < 0.0f)));
    z = slope * madd(d, twice, sign * l1);
    return share * madd(d * d, l2, size * l1);
  }

  /// n numbers of a row from `first` on; `share` of each pixel of the row, or null for `even`.
  template <bool kSquash>
  V16 run(const uint8_t* target, const float* share, int64_t first, int64_t channels, const V16& even, float* z,
          int64_t n) const {
    V16 sum(0.0f), each = even;
    for (int64_t i = 0; i < n; i += 16) {
      const int64_t count = n - i < 16 ? n - i : 16;
      if (share) {
        float lane[16] = {};
        for (int64_t k = 0; k < count; ++k) lane[k] = share[(first + i + k) / channels];
        each = load(lane);
      }
      if (count == 16) {
        V16 v = load(z + i);
        sum = sum + loss<kSquash>(target + i, each, v);
        store(z + i, v);
      } else {
        uint8_t bytes[16] = {};
        std::memcpy(bytes, target + i, size_t(count));
        V16 v = load_some(z + i, count), part = loss<kSquash>(bytes, each, v);
        sum = sum + load_some(reinterpret_cast<const float*>(&part), count);
        store_some(z + i, v, count);
      }
    }
    return sum;
  }
};

template <class T, class W>
void loss(const UpsampleConvLoss& a, Unit unit) {
  const UpsampleConvSizes& s = a.sizes;
  const Plan p(s, unit);
  Scratch<double> sums(size_t(s.batch * p.strips + 1));
  std::memset(sums.data(), 0, sums.size() * sizeof(double));
  const int64_t width = s.width * p.row_out, seen = a.columns * s.out, rows = s.height * s.scale;
  const V16 even(a.even());
  const Differ differ(a);
  convolve<T, W>(p, a.x, a.weight, a.bias, [&](int64_t strip, int64_t row, int64_t at, float* z, int64_t n) {
    T* to = static_cast<T*>(a.grad_z) + row * width + at;
    const int64_t b = row / rows, y = row - b * rows, left = y < a.rows ? seen - at : 0;
    const int64_t there = left < 0 ? 0 : left < n ? left : n, from = (b * a.rows + y) * a.columns;
    const uint8_t* target = a.target + from * s.out + at;
    const float* share = a.share ? a.share + from : nullptr;
    const V16 sum = a.squash ? differ.run<true>(target, share, at, s.out, even, z, there)
                             : differ.run<false>(target, share, at, s.out, even, z, there);
    if (there < n) std::memset(z + there, 0, size_t(n - there) * sizeof(float));
    copy_numbers<T, float>(unit, z, nullptr, to, n);
    sums[size_t(strip)] += double(vk::sum(sum));
  });
  double total = 0;
  for (int64_t i = 0; i < s.batch * p.strips; ++i) total += sums[size_t(i)];
  *a.loss = float(total);
}

// ---- backward

/// dz words: one row of `columns` words per step, as the unit takes them. Returns the steps.
int64_t spread_words(const Plan& p, const char* strip, int64_t plane, int64_t positions, int64_t columns,
                     uint32_t* words) {
  const int64_t origin = p.s.kh / 2 * p.pitch + p.s.kw / 2;
  if (p.unit == Unit::fma) {
    const float* dz = reinterpret_cast<const float*>(strip);
    for (int64_t m = 0; m < positions; ++m)
      for (int64_t dy = 0; dy < p.s.scale; ++dy)
        std::memcpy(words + m * columns + dy * p.row_out, dz + dy * plane + (origin + m) * p.row_in,
                    size_t(p.row_out) * 4);
    return positions;
  }
  const uint16_t* dz = reinterpret_cast<const uint16_t*>(strip);
  const int64_t steps = p.unit == Unit::tiles ? ceil_div(positions, 32) * 16 : ceil_div(positions, 2);
  for (int64_t k = 0; k < steps; ++k) {
    uint32_t* row = words + k * columns;
    if (2 * k >= positions) {  // up to whole tiles
      std::memset(row, 0, size_t(columns) * 4);
      continue;
    }
    const bool second = 2 * k + 1 < positions;
    for (int64_t dy = 0; dy < p.s.scale; ++dy, row += p.row_out) {
      const uint16_t *low = dz + dy * plane + (origin + 2 * k) * p.row_in, *high = low + p.row_in;
      for (int64_t j = 0; j < p.row_out; j += 16) {  // what goes too far is written again by the next row
        I16 word;
        VK_EACH_PART {
          PartH a, b{};
          std::memcpy(&a, low + j + i * kPartLanes, sizeof a);
          if (second) std::memcpy(&b, high + j + i * kPartLanes, sizeof b);
          word.p[i] = __builtin_convertvector(a, PartI) | __builtin_convertvector(b, PartI) << 16;
        }
        std::memcpy(row + j, &word, sizeof word);
      }
    }
  }
  return steps;
}

/// sum[n] += the numbers of column n.
void add_columns(Unit unit, const uint32_t* words, int64_t steps, int64_t columns, float* sum) {
  constexpr int64_t kPiece = 128;
  for (int64_t n = 0; n < columns; n += 16) {
    V16 total = load(sum + n);
    for (int64_t k0 = 0; k0 < steps; k0 += kPiece) {
      const int64_t k1 = steps - k0 < kPiece ? steps : k0 + kPiece;
      V16 a(0.0f), b(0.0f);
      for (int64_t k = k0; k < k1; ++k) {
        I16 w;
        std::memcpy(&w, words + k * columns + n, sizeof w);
        VK_EACH_PART {
          a.p[i] += unit == Unit::fma ? (PartF)w.p[i] : (PartF)(w.p[i] << 16);
          b.p[i] += unit == Unit::fma ? PartF{} : (PartF)(w.p[i] & int32_t(0xffff0000u));
        }
      }
      total = total + (a + b);
    }
    store(sum + n, total);
  }
}

/// The strip of x as the unit wants it on the left of the weight gradient.
struct Left {
  int64_t groups, rows, plane;  // tiles: groups of `rows` planes of `plane` numbers
  int64_t channels;             // rows of sums per tap
  int64_t words;                // of 32 bits, all of it
  Left(const Plan& p) {
    groups = ceil_div(p.s.in, 16);
    rows = ceil_div(p.s.in, groups);
    const int64_t positions = p.strip_rows() * p.pitch;
    plane = ceil_div(positions + 64, 32) * 32;
    plane += plane % 128 ? 0 : 32;  // not a multiple of what falls into one set of the cache
    channels = p.unit == Unit::tiles ? groups * rows : p.in;
    words = p.unit == Unit::tiles ? channels * plane / 2 : p.unit == Unit::dot ? positions * p.in + 64 : 0;
  }
};

/// Two channels in each of kWords words, from channel c0 on.
template <int kWords>
void spread_planes(const Plan& p, const Left& left, const uint16_t* x, int64_t positions, int64_t c0,
                   uint16_t* planes) {
  const int64_t n = left.channels - c0 < 2 * kWords ? left.channels - c0 : 2 * kWords;
  for (int64_t m = 0; m < positions; m += 16) {
    V16 r[kWords];
    gather_words<kWords>(reinterpret_cast<const float*>(x + m * p.in + c0), p.in / 2, r);
    for (int64_t c = 0; c < n; ++c) {
      I16 word;
      std::memcpy(&word, &r[c / 2], sizeof word);
      PartH half[kParts];
      VK_EACH_PART half[i] = __builtin_convertvector(c % 2 ? word.p[i] >> 16 : word.p[i], PartH);
      std::memcpy(planes + (c0 + c) * left.plane + m, half, sizeof half);
    }
  }
  for (int64_t c = c0; c < c0 + n; ++c)
    std::memset(planes + c * left.plane + positions, 0, size_t(left.plane - positions) * 2);
}

void spread_left(const Plan& p, const Left& left, const char* strip, int64_t height, uint32_t* to) {
  const int64_t positions = (height + p.s.kh - 1) * p.pitch;
  const uint16_t* x = reinterpret_cast<const uint16_t*>(strip);
  if (p.unit == Unit::dot) {
    for (int64_t e = 0; e < positions * p.in; ++e) to[e] = x[e] | uint32_t(x[e + p.in]) << 16;
  } else if (p.unit == Unit::tiles) {
    uint16_t* planes = reinterpret_cast<uint16_t*>(to);
    for (int64_t c0 = 0; c0 < left.channels;) {
      const int64_t n = left.channels - c0;
      if (n > 16)
        spread_planes<16>(p, left, x, positions, c0, planes), c0 += 32;
      else if (n > 8)
        spread_planes<8>(p, left, x, positions, c0, planes), c0 += 16;
      else
        spread_planes<4>(p, left, x, positions, c0, planes), c0 += 8;
    }
  }
}

/// sums[ky][kx][channel][columns] of one strip.
void multiply_left(const Plan& p, const Left& left, const char* strip, [[maybe_unused]] const uint32_t* spread,
                   const uint32_t* words, int64_t steps, int64_t columns, bool fresh, float* sums) {
  const char* dz = reinterpret_cast<const char*>(words);
  const int64_t taps = p.s.kw * left.channels * columns;
  for (int64_t ky = 0; ky < p.s.kh; ++ky, sums += taps) {
#if defined(VK_UPCONV_BF16)
    if (p.unit == Unit::tiles) {
      const Planes planes{reinterpret_cast<const char*>(spread) + ky * p.pitch * 2, left.plane * 2, left.rows,
                          left.groups};
      gradient_tiles_run(planes, p.s.kw * left.groups, dz, columns, steps, fresh, sums);
      continue;
    }
    if (p.unit == Unit::dot) {
      gradient_dot_run(reinterpret_cast<const char*>(spread + ky * p.pitch * p.in), 2 * p.in * 4, p.s.kw * p.in, dz,
                       columns, steps, fresh, sums);
      continue;
    }
#endif
    gradient_fma_run(strip + ky * p.pitch * p.in * 4, p.in * 4, p.s.kw * p.in, dz, columns, steps, fresh, sums);
  }
}

/// Adds the chunks in their order and puts the sums where the weights lie.
template <class W>
void finish(const UpsampleConvBackward& a, const Plan& p, const Left& left, const float* sums, const float* bias_sums,
            int64_t chunks, int64_t chunk_floats, int64_t columns) {
  const UpsampleConvSizes& s = p.s;
  const int64_t taps = s.kh * s.kw, filter = s.in * taps, used = s.scale * p.row_out;
  parallel_for(columns / 16, 1 + 4096 / (16 * filter), [&](int64_t n0, int64_t n1) {
    Scratch<W> lanes(size_t(16 * filter + 16));
    for (int64_t n = n0 * 16; n < n1 * 16; n += 16) {
      for (int64_t k = 0; k < filter; k += 16) {
        V16 r[16];
        for (int64_t l = 0; l < 16; ++l) {
          const int64_t at = k + l < filter ? k + l : k, c = at / taps, t = at - c * taps;
          const float* from = sums + (t * left.channels + c) * columns + n;
          r[l] = load(from);
          for (int64_t i = 1; i < chunks; ++i) r[l] = r[l] + load(from + i * chunk_floats);
        }
        transpose16(r);
        const int64_t whole = filter - k < 16 ? filter - k : 16;
        for (int64_t l = 0; l < 16; ++l) store_some(lanes.data() + l * filter + k, r[l], whole);
      }
      float lane[16];
      V16 sum = load(bias_sums + n);
      for (int64_t i = 1; i < chunks; ++i) sum = sum + load(bias_sums + i * columns + n);
      store(lane, sum);
      for (int64_t l = 0; l < 16 && n + l < used; ++l) {
        const int64_t o = filter_of(s, (n + l) / p.row_out, (n + l) % p.row_out);
        std::memcpy(static_cast<W*>(a.grad_weight) + o * filter, lanes.data() + l * filter, size_t(filter) * sizeof(W));
        static_cast<W*>(a.grad_bias)[o] = from_float<W>(lane[l]);
      }
    }
  });
}

template <class Number, class T, class W>
void backward(const UpsampleConvBackward& a, Unit unit) {
  const UpsampleConvSizes& s = a.sizes;
  const Plan p(s, unit);
  const Left left(p);
  const Runs runs(unit, s.kw * p.row_in / p.per_word);
  const int64_t plane = p.strip_rows() * p.pitch * p.row_in;  // of one dy
  const int64_t tiles = ceil_div(s.in, 16), rows = s.kh * s.scale;
  Scratch<int64_t> offset(static_cast<size_t>(rows));
  for (int64_t r = 0; r < rows; ++r)
    offset[size_t(r)] = (r % s.scale * plane + r / s.scale * p.pitch * p.row_in) * p.size;
  const Product product{runs, rows, p.row_in * p.size, offset.data(), tiles, s.in};
  Scratch<uint32_t> weights(size_t(a.grad_x ? tiles * product.tile_words() : 0));
  if (a.grad_x) pack_backward<T>(p, runs, static_cast<const W*>(a.weight), weights.data());

  const int64_t total = s.batch * p.strips, columns = ceil_div(s.scale * p.row_out, 16) * 16;
  const int64_t chunk_floats = s.kh * s.kw * left.channels * columns;
  int64_t chunks = total == 0 ? 1 : total < kChunks ? total : kChunks;
  if (chunks * chunk_floats > kChunkFloats) chunks = kChunkFloats / chunk_floats > 1 ? kChunkFloats / chunk_floats : 1;
  Scratch<float> sums(size_t(chunks * chunk_floats)), bias_sums(size_t(chunks * columns));
  std::memset(bias_sums.data(), 0, bias_sums.size() * 4);
  if (total == 0) std::memset(sums.data(), 0, sums.size() * 4);

  parallel_for(total == 0 ? 0 : chunks, 1, [&](int64_t c0, int64_t c1) {
    Scratch<Number> x_strip(size_t(p.strip_numbers(p.in)));
    Scratch<Number> dz(size_t(plane * (s.scale - 1) + p.strip_numbers(p.row_in)));
    Scratch<uint32_t> words(size_t((p.rows * p.pitch + 64) * columns));
    Scratch<uint32_t> spread(static_cast<size_t>(left.words));
    Scratch<float> z(size_t((kBlock + 16) * s.in + 64));
    for (int64_t chunk = c0; chunk < c1; ++chunk) {
      const int64_t begin_strip = total * chunk / chunks, end_strip = total * (chunk + 1) / chunks;
      for (int64_t i = begin_strip; i < end_strip; ++i) {
        const int64_t b = i / p.strips, first = i % p.strips * p.rows, height = p.strip_height(i % p.strips);
        const int64_t positions = p.positions(i % p.strips), row_numbers = s.width * p.row_out;
        for (int64_t dy = 0; dy < s.scale; ++dy) {
          const int64_t from = (b * s.height * s.scale + dy) * row_numbers;
          const T* derivative = static_cast<const T*>(a.derivative);
          fill_strip<Number, T>(p, static_cast<const T*>(a.grad_out) + from, derivative ? derivative + from : nullptr,
                                first, height, s.scale * row_numbers, p.row_out, p.row_in, dz.data() + dy * plane);
        }
        const char* strip = reinterpret_cast<const char*>(dz.data());
        if (a.grad_x) {
          begin(unit, 16, runs.words, s.in < 16 ? s.in : 16);
          for (int64_t m0 = 0; m0 < positions; m0 += kBlock) {
            const int64_t n = positions - m0 < kBlock ? positions - m0 : kBlock;
            multiply(unit, product, strip + m0 * product.pixel, n, weights.data(), nullptr, z.data());
            each_segment(p, m0, n, [&](int64_t y, int64_t px, int64_t at, int64_t count) {
              const int64_t to = ((b * s.height + first + y) * s.width + px) * s.in;
              copy_numbers<T, float>(unit, z.data() + at * s.in, nullptr, static_cast<T*>(a.grad_x) + to, count * s.in);
            });
          }
        }
        fill_strip<Number, T>(p, static_cast<const T*>(a.x) + b * s.height * s.width * s.in, nullptr, first, height,
                              s.width * s.in, s.in, p.in, x_strip.data());
        const int64_t steps = spread_words(p, strip, plane, positions, columns, words.data());
        add_columns(unit, words.data(), steps, columns, bias_sums.data() + chunk * columns);
        spread_left(p, left, reinterpret_cast<const char*>(x_strip.data()), height, spread.data());
        begin(unit, left.rows, 16, 16);
        multiply_left(p, left, reinterpret_cast<const char*>(x_strip.data()), spread.data(), words.data(), steps,
                      columns, i == begin_strip, sums.data() + chunk * chunk_floats);
      }
    }
    end(unit);
  });
  finish<W>(a, p, left, sums.data(), bias_sums.data(), chunks, chunk_floats, columns);
}

Unit unit_of(const UpsampleConvSizes& s) {
  static const Unit best = find_unit(false), second = find_unit(true);
  return s.element != Element::bf16 ? Unit::fma : s.without_tiles ? second : best;
}

template <class T, class W>
void backward(const UpsampleConvBackward& a, Unit unit) {
  if constexpr (std::is_same_v<T, bf16>)
    if (unit != Unit::fma) return backward<bf16, T, W>(a, unit);
  backward<float, T, W>(a, Unit::fma);
}

/// Calls f with two numbers of the types of images and weights.
template <class F>
void with_types(const UpsampleConvSizes& s, F f) {
  const bool fine = s.weight_element == Element::f32;
  switch (s.element) {
    case Element::f16: return fine ? f(f16{}, float{}) : f(f16{}, f16{});
    case Element::bf16: return fine ? f(bf16{}, float{}) : f(bf16{}, bf16{});
    default: return f(float{}, float{});
  }
}

}  // namespace

void upsample_conv(const UpsampleConv& a) {
  if (a.sizes.batch * a.sizes.height * a.sizes.width == 0) return;
  with_types(a.sizes, [&]<class T, class W>(T, W) { forward<T, W>(a, unit_of(a.sizes)); });
}

void upsample_conv_loss(const UpsampleConvLoss& a) {
  *a.loss = 0;
  if (a.sizes.batch * a.sizes.height * a.sizes.width == 0) return;
  with_types(a.sizes, [&]<class T, class W>(T, W) { loss<T, W>(a, unit_of(a.sizes)); });
}

void upsample_conv_backward(const UpsampleConvBackward& a) {
  with_types(a.sizes, [&]<class T, class W>(T, W) { backward<T, W>(a, unit_of(a.sizes)); });
}

}  // namespace vk::VK_ISA
