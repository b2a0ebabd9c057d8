// Screen in bf16 on the tensor cores, decide in fp32. With m the mean of the codes, x' = x - m and c' = c - m,
//
//   s(c) = |c'|^2/2 - x'.c'          l2: (distance - |x'|^2) / 2
//   s(c) = -m.c' - x'.c'             cosine, of normalised rows: x.m - similarity
//   s(c) = -x.c'                     ip: x.m - similarity
//
// is found from bf16 copies of x' and c', with a bound of its error from the norms of what the rounding took away.
// A code is evaluated in fp32 unless s(c) less its error says that it cannot be among the k nearest so far. Those
// nearest are kept by their fp32 values alone, so neither the screen nor the order of the codes shows in the result.
//
// Who owns what
//   inverse   cosine only: a warp owns a row, and finds 1 / its norm.
//   mean      a block owns 32 columns of the codes: their mean over at most kSample codes.
//   codes     a block owns a tile of kTileN codes, a warp every eighth of them: bf16 rows, and what bounds the tile.
//   points    a warp owns a point: its bf16 row, and what bounds its errors.
//   screen    a block owns kTileM points and walks over the tiles of codes, or over a part of them where there are few
//             points; both come through shared memory in steps
//             of kStep columns, kStages of them under way. A warp owns 32 x 64 scores in registers. Codes that the
//             screen cannot exclude become bits in shared memory; then a warp owns 16 points, evaluates their marked
//             codes, lanes along the columns, and keeps the k nearest of each point sorted in shared memory.
//   join      several parts: a warp owns a point, and joins what the parts have found.
// Nothing of size N x K is written. The only atomics set bits in shared memory.
#include <type_traits>

#include "device/vk_async.cuh"
#include "device/vk_device.cuh"
#include "device/vk_mma.cuh"
#include "device/vk_reduce.cuh"
#include "ops/nearest/nearest_prepare.cuh"

namespace vk {
namespace {

constexpr int kTileM = 64;
constexpr int kStages = 3;
constexpr int kThreads = 128;
constexpr int kRowBytes = kStep * 2;
constexpr int kStageBytes = (kTileM + kTileN) * kRowBytes;
constexpr int kMask = kTileN / 32;
constexpr int kNone = 0x7fffffff;
constexpr int64_t kEnoughBlocks = 512;
constexpr int64_t kAlignment = 256;  // of the parts of the scratch memory

/// The value of one code for one point, in all lanes; the only place where values come from.
template <class T>
__device__ __forceinline__ float evaluate(const T* __restrict__ x, const T* __restrict__ c, int64_t dim, Metric metric,
                                          float x_scale, float c_scale) {
  float sum = 0;
  for (int64_t d = threadIdx.x % 32; d < dim; d += 32) {
    const float a = to_float(x[d]), b = to_float(c[d]);
    if (metric == Metric::l2) {
      const float rest = a - b;
      sum += rest * rest;
    } else {
      sum += (a * x_scale) * (b * c_scale);
    }
  }
  return warp_sum(sum);
}

/// What the screen may compare with: no code whose s is above can reach `key` (distance, or -similarity) or less.
__device__ __forceinline__ float limit_of(float key, float offset, Metric metric, float error) {
  return metric == Metric::l2 ? 0.5f * (key - offset) + error * (key + offset)
                              : key + offset + error * (fabsf(key) + fabsf(offset));
}

/// Lanes hold an ascending list of (key, code); puts one more in its place, and the last one falls out.
__device__ __forceinline__ void put(float value, int next, float& key, int& code) {
  const int lane = threadIdx.x % 32;
  const bool after = value < key || (value == key && next < code);
  const uint32_t later = __ballot_sync(0xffffffffu, after);
  const float key_before = __shfl_up_sync(0xffffffffu, key, 1);
  const int code_before = __shfl_up_sync(0xffffffffu, code, 1);
  if (after) {
    const bool here = lane == 0 || !(later >> (lane - 1) & 1);
    key = here ? value : key_before;
    code = here ? next : code_before;
  }
}

template <class T>
struct Search {
  Rows<T> points, codes;
  int64_t* index;  // [B, N, k]
  float* value;    // [B, N, k]
  Scratch scratch;
  int64_t batch, dim;
  int k, parts;
  Metric metric;
  Candidates candidates;
  bool shared_codes;
};

template <class T>
__device__ __forceinline__ void write(const Search<T>& a, int64_t to, const Row& row, float key, int code) {
  const bool nan = row.norm < 0;
  a.index[to] = nan || code == kNone ? -1 : code;
  a.value[to] = nan ? not_a_number() : a.metric == Metric::l2 ? key : -key;
}

template <class T>
__global__ void __launch_bounds__(kThreads, 3) nearest_screen_kernel(Search<T> a) {
  __shared__ Row rows[kTileM];
  __shared__ float limits[kTileM];
  __shared__ uint32_t marks[kTileM][kMask];
  VK_DYN_SHARED(unsigned char, stages);
  float* keys = reinterpret_cast<float*>(stages + kStages * kStageBytes);  // [kTileM][k] ascending
  int32_t* found = reinterpret_cast<int32_t*>(keys + kTileM * a.k);        // [kTileM][k]

  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  const int64_t first = int64_t(blockIdx.x) * kTileM, b = blockIdx.y, bc = a.shared_codes ? 0 : b;
  const float error = sum_error(a.dim);
  const Scratch& scratch = a.scratch;
  const bf16* points = scratch.points + b * a.points.count * scratch.columns;
  const bf16* codes = scratch.codes + bc * scratch.tile_count * kTileN * scratch.columns;
  const float* head = scratch.head + bc * scratch.tile_count * kTileN;
  const Tile* tiles = scratch.tiles + bc * scratch.tile_count;

  if (threadIdx.x < kTileM) {
    const int64_t row = first + threadIdx.x;
    const Row r = row < a.points.count ? scratch.rows[b * a.points.count + row] : Row{0, 0, 0, -1};
    rows[threadIdx.x] = r;
    limits[threadIdx.x] = r.norm < 0 ? -infinity() : infinity();
#pragma unroll
    for (int w = 0; w < kMask; ++w) marks[threadIdx.x][w] = 0;
  }
  for (int i = threadIdx.x; i < kTileM * a.k; i += kThreads) {
    keys[i] = infinity();
    found[i] = kNone;
  }

  int tile_count = int(scratch.tile_count);
  if (a.candidates == Candidates::before) {  // the last point's candidates end before it
    const int64_t last = first + kTileM < a.points.count ? first + kTileM : a.points.count;
    tile_count = int((last - 1 + kTileN - 1) / kTileN);
  }
  const int part = blockIdx.z, first_tile = int(int64_t(tile_count) * part / a.parts);
  const int chunks = int(scratch.columns / kStep);
  const int steps = (int(int64_t(tile_count) * (part + 1) / a.parts) - first_tile) * chunks;

  // 16 bytes go to column (piece ^ row / 2 % 4) of their row: eight rows that ldmatrix reads lie in different banks.
  const auto place = [](int row, int piece) { return row * kRowBytes + ((piece ^ (row >> 1 & 3)) << 4); };
  const auto fetch = [&](int step) {
    if (step < steps) {
      unsigned char* stage = stages + step % kStages * kStageBytes;
      const int tile = step / chunks, column = (step - tile * chunks) * kStep;
#pragma unroll
      for (int i = 0; i < kTileM * 4 / kThreads; ++i) {
        const int row = int(threadIdx.x + i * kThreads) / 4, piece = int(threadIdx.x) % 4;
        const int64_t from = first + row < a.points.count ? first + row : first;
        cp_async16_zfill(stage + place(row, piece), points + from * scratch.columns + column + piece * 8,
                         first + row < a.points.count);
      }
#pragma unroll
      for (int i = 0; i < kTileN * 4 / kThreads; ++i) {
        const int row = int(threadIdx.x + i * kThreads) / 4, piece = int(threadIdx.x) % 4;
        cp_async16(stage + kTileM * kRowBytes + place(row, piece),
                   codes + (int64_t(first_tile + tile) * kTileN + row) * scratch.columns + column + piece * 8);
      }
    }
    cp_commit();
  };

  const int row0 = warp % 2 * 32, column0 = warp / 2 * 64;  // of this warp's scores
  const int g = lane / 4, t = lane % 4;
  float acc[2][8][4];
  for (int i = 0; i < kStages - 1; ++i) fetch(i);
  for (int step = 0; step < steps; ++step) {
    cp_wait<kStages - 2>();
    __syncthreads();  // everybody's copies have landed, and the oldest stage is no longer read
    fetch(step + kStages - 1);
    const int tile = first_tile + step / chunks, chunk = step % chunks;
    if (chunk == 0) {
#pragma unroll
      for (int m = 0; m < 2; ++m)
#pragma unroll
        for (int n = 0; n < 8; ++n)
#pragma unroll
          for (int i = 0; i < 4; ++i) acc[m][n][i] = 0;
    }
    const unsigned char* stage_a = stages + step % kStages * kStageBytes;
    const unsigned char* stage_b = stage_a + kTileM * kRowBytes;
#pragma unroll
    for (int half = 0; half < kStep / 16; ++half) {
      uint32_t fa[2][4];
#pragma unroll
      for (int m = 0; m < 2; ++m) ldmatrix_x4(fa[m], stage_a + place(row0 + m * 16 + lane % 16, half * 2 + lane / 16));
#pragma unroll
      for (int n = 0; n < 8; n += 2) {
        uint32_t fb[4];
        ldmatrix_x4(fb, stage_b + place(column0 + n * 8 + lane / 16 * 8 + lane % 8, half * 2 + lane / 8 % 2));
        const uint32_t low[2] = {fb[0], fb[1]}, high[2] = {fb[2], fb[3]};
#pragma unroll
        for (int m = 0; m < 2; ++m) {
          mma_m16n8k16_bf16(acc[m][n], fa[m], low, acc[m][n]);
          mma_m16n8k16_bf16(acc[m][n + 1], fa[m], high, acc[m][n + 1]);
        }
      }
    }
    if (chunk + 1 < chunks) continue;

    // The tile is complete: scores in place of products, inf where there is no candidate.
    const int base = tile * kTileN;
    const bool diagonal = a.candidates != Candidates::all && base < first + kTileM && base + kTileN > first;
#pragma unroll
    for (int n = 0; n < 8; ++n) {
      const int column = column0 + n * 8 + t * 2;
      const Vec<float, 2> h = load_vec<2>(head + base + column);
#pragma unroll
      for (int m = 0; m < 2; ++m)
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          acc[m][n][i] = h[i % 2] - acc[m][n][i];
          if (diagonal) {
            const int row = int(first) + row0 + m * 16 + i / 2 * 8 + g, code = base + column + i % 2;
            if (a.candidates == Candidates::before ? code >= row : code == row) acc[m][n][i] = infinity();
          }
        }
    }
    const Tile bound = tiles[tile];
    bool any = false;
#pragma unroll
    for (int slot = 0; slot < 4; ++slot) {
      const int m = slot / 2, i = slot % 2 * 2, r = row0 + m * 16 + slot % 2 * 8 + g;
      // At least k of the quad's 64 codes score `reach` or less: the least of all for k = 1, otherwise the greatest of
      // the least of 4, 8, 16 or 32 groups of them. A code that is not screened (NaN) does not count.
      float least[8];
#pragma unroll
      for (int n = 0; n < 8; ++n) least[n] = fminf(fminf(acc[m][n][i], acc[m][n][i + 1]), infinity());
#pragma unroll
      for (int n = 0, most = 16; n < 3; ++n, most /= 2)
        if (a.k <= most) {
#pragma unroll
          for (int o = 0; o < 8; ++o) least[o] = fminf(least[o], least[o ^ 1 << n]);
        }
      float reach = least[0];
#pragma unroll
      for (int n = 1; n < 8; ++n) reach = fmaxf(reach, least[n]);
#pragma unroll
      for (int step = 1; step < 4; step *= 2) {
        const float other = __shfl_xor_sync(0xffffffffu, reach, step);
        reach = a.k == 1 ? fminf(reach, other) : fmaxf(reach, other);
      }
      const Row row = rows[r];
      const float wide = row.residual * bound.length + row.rounded * bound.residual +
                         error * (row.rounded * (bound.length + bound.residual) + bound.head) + 1e-36f;
      // How far apart two values can be when s says the opposite, apart from the error of s itself.
      const float rounding = a.metric == Metric::l2 ? 4 * error * (row.offset + 2 * (fabsf(reach) + wide))
                                                    : 2 * error * row.norm * bound.norm;
      const float far = limits[r] + wide + (a.metric == Metric::l2 ? 0.0f : rounding);
      const float cut = fminf(far, reach + 2 * wide + rounding);
      const bool live = row.norm >= 0;
      uint32_t words[2] = {0, 0};
#pragma unroll
      for (int n = 0; n < 8; ++n)
#pragma unroll
        for (int e = 0; e < 2; ++e)
          if (live && !(acc[m][n][i + e] > cut) && acc[m][n][i + e] != infinity())
            words[n / 4] |= 1u << (n % 4 * 8 + t * 2 + e);
#pragma unroll
      for (int w = 0; w < 2; ++w)
        if (words[w]) {
          atomicOr(&marks[r][column0 / 32 + w], words[w]);
          any = true;
        }
    }
    if (!__syncthreads_or(any)) continue;

    // Lane 2i looks at the first half of the marks of this warp's point i, lane 2i + 1 at the second.
    uint32_t* mine = &marks[warp * 16 + lane / 2][lane % 2 * 2];
    const unsigned long long own = mine[0] | (unsigned long long)mine[1] << 32;
    mine[0] = mine[1] = 0;
    for (uint32_t busy = __ballot_sync(0xffffffffu, own != 0); busy; busy &= busy - 1) {
      const int source = __ffs(int(busy)) - 1, r = warp * 16 + source / 2;
      const int64_t row = b * a.points.count + first + r;
      const T* x = a.points.row(row);
      float key = lane < a.k ? keys[r * a.k + lane] : infinity();
      int code = lane < a.k ? found[r * a.k + lane] : kNone;
      for (unsigned long long bits = __shfl_sync(0xffffffffu, own, source); bits; bits &= bits - 1) {
        const int next = base + source % 2 * 64 + __ffsll((long long)bits) - 1;
        const int64_t c = bc * a.codes.count + next;
        const bool cosine = a.metric == Metric::cosine;
        float value = evaluate(x, a.codes.row(c), a.dim, a.metric, cosine ? scratch.inverse[row] : 1.0f,
                               cosine ? scratch.inverse[a.batch * a.points.count + c] : 1.0f);
        if (a.metric != Metric::l2) value = -value;
        put(value, next, key, code);
      }
      if (lane < a.k) {
        keys[r * a.k + lane] = key;
        found[r * a.k + lane] = code;
      }
      if (lane == a.k - 1) limits[r] = limit_of(key, rows[r].offset, a.metric, error);
    }
  }

  cp_wait<0>();
  __syncthreads();
  for (int i = threadIdx.x; i < kTileM * a.k; i += kThreads) {
    const int64_t row = first + i / a.k;
    if (row >= a.points.count) break;
    const int64_t to = (b * a.points.count + row) * a.parts + part;
    if (a.parts == 1) {
      write(a, to * a.k + i % a.k, rows[i / a.k], keys[i], found[i]);
    } else {
      scratch.keys[to * a.k + i % a.k] = keys[i];
      scratch.found[to * a.k + i % a.k] = found[i];
    }
  }
}

template <class T>
__global__ void nearest_join_kernel(Search<T> a) {
  const int64_t row = int64_t(blockIdx.x) * kPrepareWarps + threadIdx.x / 32;
  if (row >= a.batch * a.points.count) return;
  const int lane = threadIdx.x % 32;
  float key = infinity();
  int code = kNone;
  for (int part = 0; part < a.parts; ++part) {
    const int64_t from = (row * a.parts + part) * a.k;
    const float keys = lane < a.k ? a.scratch.keys[from + lane] : infinity();
    const int found = lane < a.k ? a.scratch.found[from + lane] : kNone;
    for (int i = 0; i < a.k; ++i) put(__shfl_sync(0xffffffffu, keys, i), __shfl_sync(0xffffffffu, found, i), key, code);
  }
  if (lane < a.k) write(a, row * a.k + lane, a.scratch.rows[row], key, code);
}

/// Few points are too little work for a card: several blocks then share their codes.
int64_t parts_of(const Nearest& a) {
  const int64_t blocks = (a.count + kTileM - 1) / kTileM * a.batch, tiles = (a.length + kTileN - 1) / kTileN;
  const int64_t most = blocks > 0 ? kEnoughBlocks / blocks : 1, parts = tiles / 2 < most ? tiles / 2 : most;
  return parts > 1 ? parts : 1;
}

/// Where everything lies in the scratch memory; scratch_bytes in op.py adds up the same.
Scratch lay_out(const Nearest& a, int64_t& bytes) {
  Scratch s{};
  s.tile_count = (a.length + kTileN - 1) / kTileN;
  s.columns = a.dim > 0 ? (a.dim + kStep - 1) / kStep * kStep : kStep;
  const int64_t rows = a.batch * a.count, padded = a.code_batch * s.tile_count * kTileN;
  bytes = 0;
  const auto take = [&](auto*& part, int64_t count) {
    using Part = std::remove_reference_t<decltype(*part)>;
    part = reinterpret_cast<Part*>(static_cast<char*>(a.scratch) + bytes);
    bytes += (count * int64_t(sizeof(Part)) + kAlignment - 1) / kAlignment * kAlignment;
  };
  take(s.points, rows * s.columns);
  take(s.codes, padded * s.columns);
  take(s.head, padded);
  take(s.rows, rows);
  take(s.tiles, a.code_batch * s.tile_count);
  take(s.mean, a.code_batch * a.dim);
  take(s.inverse, rows + a.code_batch * a.length);
  const int64_t several = parts_of(a) > 1 ? parts_of(a) * rows * a.k : 0;
  take(s.keys, several);
  take(s.found, several);
  return s;
}

template <class T>
void launch(const Nearest& a, vk_stream_t stream) {
  int64_t bytes;
  const Scratch scratch = lay_out(a, bytes);
  const Rows<T> points{static_cast<const T*>(a.points), a.count, a.point_batch_stride, a.point_stride};
  const Rows<T> codes{static_cast<const T*>(a.codes), a.length, a.code_batch_stride, a.code_stride};
  const int64_t rows = a.batch * a.count, code_rows = a.code_batch * a.length;
  const auto warps = [](int64_t count) { return unsigned((count + kPrepareWarps - 1) / kPrepareWarps); };
  constexpr int kPrepare = kPrepareWarps * 32;
  const bool shared_codes = a.code_batch == 1;
  float* const code_inverse = a.metric == Metric::cosine ? scratch.inverse + rows : nullptr;
  if (code_inverse) {
    VK_LAUNCH((nearest_inverse_kernel<T>), warps(rows), kPrepare, 0, stream, points, scratch.inverse, rows, a.dim);
    if (code_rows > 0)
      VK_LAUNCH((nearest_inverse_kernel<T>), warps(code_rows), kPrepare, 0, stream, codes, code_inverse, code_rows,
                a.dim);
  }
  if (a.dim > 0)
    VK_LAUNCH((nearest_mean_kernel<T>), dim3(unsigned((a.dim + 31) / 32), unsigned(a.code_batch)), kPrepare, 0, stream,
              codes, code_inverse, scratch.mean, a.dim);
  if (a.length > 0)
    VK_LAUNCH((nearest_codes_kernel<T>), dim3(unsigned(scratch.tile_count), unsigned(a.code_batch)), kPrepare, 0,
              stream, codes, code_inverse, scratch, a.metric, a.dim);
  VK_LAUNCH((nearest_points_kernel<T>), warps(rows), kPrepare, 0, stream, points, scratch, a.metric,
            a.screen != NearestScreen::none, rows, a.dim, shared_codes);
  const int parts = int(parts_of(a));
  const Search<T> search{points, codes, a.index, a.value,  scratch,      a.batch,
                         a.dim,  a.k,   parts,   a.metric, a.candidates, shared_codes};
  const dim3 grid(unsigned((a.count + kTileM - 1) / kTileM), unsigned(a.batch), unsigned(parts));
  VK_LAUNCH((nearest_screen_kernel<T>), grid, kThreads, size_t(kStages * kStageBytes + kTileM * a.k * 8), stream,
            search);
  if (parts > 1) VK_LAUNCH((nearest_join_kernel<T>), warps(rows), kPrepare, 0, stream, search);
}

}  // namespace

int64_t nearest_scratch_bytes(const Nearest& a) {
  int64_t bytes;
  lay_out(a, bytes);
  return bytes;
}

void nearest_cuda(const Nearest& a, void* stream_pointer) {
  const auto stream = static_cast<vk_stream_t>(stream_pointer);
  if (a.batch * a.count == 0) return;
  switch (a.element) {
    case Element::f32: return launch<float>(a, stream);
    case Element::f16: return launch<f16>(a, stream);
    case Element::bf16: return launch<bf16>(a, stream);
    case Element::f64: return;  // refused by the binding
  }
}

}  // namespace vk
