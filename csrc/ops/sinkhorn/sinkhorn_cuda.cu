// Who owns what
//   rows     one block per (piece of the rows, problem). It walks its rows; for each, its threads sweep the columns
//            (thread t owns t, t + kThreads, ...): maximum, sum, then every column's share is merged into that column's
//            running log-sum, which lies in shared memory (in the workspace where K is too large for it). A row is in
//            the first-level cache after its first sweep: one pass over the scores per iteration.
//   columns  one thread per column merges the pieces in order and moves log v.
//
// Everything is in base-2 logarithms and relative to running maxima: nothing overflows, whatever the scores are, and no
// decision needs the host. Log v is kept relative to a common `level`, or rows far apart would round it.
#include "device/vk_device.cuh"
#include "device/vk_reduce.cuh"
#include "ops/sinkhorn/sinkhorn.h"

namespace vk {
namespace {

constexpr int kThreads = 256;
constexpr int kSharedColumns = 6016;  // running maxima and sums in what a block gets without asking, 48 KiB
constexpr float kNothing = -1e30f;
constexpr float kLn2F = 0.693147181f;

struct Rows {
  const float* row_mass;
  float even_mass;
  const float* log_v;  // [B, K] base 2, or null: the start
  const float* level;  // what log_v is relative to, [B, level_stride]; null: 0
  float* top;          // [B, blocks, K], or null: no column sums
  float* sum;
  float *plan, *row_log, *row_lse;  // or null
  int64_t* label;
  int64_t rows, cols, blocks, log_stride, level_stride;
  float c;
  bool rows_to_one, look;  // look: the rows' own sums are wanted
};

/// (top, sum) += weight * 2^((x - top) * unit)
__device__ __forceinline__ void merge(float& top, float& sum, float x, float weight, float unit) {
  if (x <= kNothing) return;
  if (x > top) {
    sum = sum * exp2f((top - x) * unit) + weight;
    top = x;
  } else {
    sum += weight * exp2f((x - top) * unit);
  }
}

template <class T>
__global__ void sinkhorn_rows_kernel(const T* __restrict__ scores, Rows a) {
  __shared__ float scratch_m[32];
  __shared__ float scratch_t[32];
  __shared__ float scratch_s[32];
  __shared__ int32_t scratch_j[32];
  VK_DYN_SHARED(float, shared);
  const int64_t b = blockIdx.y, piece = blockIdx.x, cols = a.cols;
  float* top = a.top ? a.top + (b * a.blocks + piece) * cols : nullptr;
  float* sum = a.top ? a.sum + (b * a.blocks + piece) * cols : nullptr;
  const bool local = cols <= kSharedColumns;
  float *own_top = local ? shared : top, *own_sum = local ? shared + cols : sum;
  if (top)
    for (int64_t j = threadIdx.x; j < cols; j += kThreads) own_top[j] = kNothing, own_sum[j] = 0;
  const float* g = a.log_v ? a.log_v + b * cols : nullptr;
  const float level = a.level ? a.level[b * a.level_stride] : 0.0f;
  const int64_t begin = a.rows * piece / a.blocks, end = a.rows * (piece + 1) / a.blocks;
  for (int64_t i = begin; i < end; ++i) {
    const T* row = scores + (b * a.rows + i) * cols;
    const int64_t at = b * a.rows + i;
    const float mass = a.row_mass ? a.row_mass[at] : a.even_mass;
    float m = kNothing, best = kNothing, total = 0;
    if (a.look) {
      for (int64_t j = threadIdx.x; j < cols; j += kThreads) m = Max()(m, to_float(row[j]));
      m = block_max(m, kNothing, scratch_m);
      int32_t place = 0x7fffffff;
      for (int64_t j = threadIdx.x; j < cols; j += kThreads) {
        const float t = (to_float(row[j]) - m) * a.c + (g ? g[j] : 0.0f);
        if (t > best) best = t, place = int32_t(j);
      }
      const float mine = best;
      best = block_max(best, kNothing, scratch_t);
      if (a.label) {
        place = block_min(mine == best ? place : 0x7fffffff, 0x7fffffff, scratch_j);
        if (threadIdx.x == 0) a.label[at] = place < cols ? place : 0;
      }
      for (int64_t j = threadIdx.x; j < cols; j += kThreads)
        total += exp2f((to_float(row[j]) - m) * a.c + (g ? g[j] : 0.0f) - best);
      total = block_sum(total, scratch_s);
    }
    const bool reached = m > kNothing && best > kNothing;
    const float rest = best + log2f(total), log_mass = mass > 0 ? log2f(mass) : kNothing;
    if (threadIdx.x == 0 && a.look) {
      const float lse = m * a.c - level * a.c + rest;
      if (a.row_log) a.row_log[b * a.log_stride + i] = reached && mass > 0 ? (log_mass - lse) * kLn2F : -INFINITY;
      if (a.row_lse) a.row_lse[at] = !reached ? -INFINITY : g ? lse * kLn2F : m * a.c * kLn2F;
    }
    for (int64_t j = threadIdx.x; j < cols; j += kThreads) {
      const float s = to_float(row[j]);
      if (!g) {
        if (top && mass > 0) merge(own_top[j], own_sum[j], s, mass, a.c);
        continue;
      }
      const float share = (s - m) * a.c + g[j] - rest;  // log2 of the row's own softmax
      if (top && reached && mass > 0) merge(own_top[j], own_sum[j], share + log_mass, 1.0f, 1.0f);
      if (a.plan) a.plan[at * cols + j] = reached ? exp2f(share) * (a.rows_to_one ? 1.0f : mass) : 0.0f;
    }
    __syncthreads();  // the scratch is free again
  }
  if (top && local)
    for (int64_t j = threadIdx.x; j < cols; j += kThreads) top[j] = own_top[j], sum[j] = own_sum[j];
}

struct Columns {
  const float *top, *sum;  // [B, blocks, K]
  const float* col_mass;   // null: even_mass
  float even_mass;
  float* log_v;    // [B, K] base 2, moved in place; null: a step
  float* col_log;  // [B, slot, K]
  float* col_sum;  // a step's output
  float* level;    // [B, level_stride]
  int64_t cols, blocks, log_stride, level_stride;
  float c;
  bool first;
};

__global__ void sinkhorn_columns_kernel(Columns a) {
  const int64_t b = blockIdx.y, j = int64_t(blockIdx.x) * kThreads + threadIdx.x;
  if (j >= a.cols) return;
  const float *tops = a.top + b * a.blocks * a.cols, *sums = a.sum + b * a.blocks * a.cols;
  const float unit = a.first ? a.c : 1.0f;
  float top = kNothing, sum = 0, level = kNothing;
  for (int64_t q = 0; q < a.blocks; ++q) {
    merge(top, sum, tops[q * a.cols + j], sums[q * a.cols + j], unit);
    level = Max()(level, tops[q * a.cols]);
  }
  level = a.first && level > kNothing ? level : 0.0f;
  const bool reached = top > kNothing;
  const float total = reached ? (a.first ? (top - level) * a.c : top) + log2f(sum) : kNothing;
  if (a.col_sum) {
    a.col_sum[b * a.cols + j] = reached ? (total + level * a.c) * kLn2F : -INFINITY;
    return;
  }
  if (a.first && j == 0) a.level[b * a.level_stride] = level;
  if (!a.first) level = a.level[b * a.level_stride];
  const float mass = a.col_mass ? a.col_mass[b * a.cols + j] : a.even_mass;
  float v = kNothing;
  if (reached && mass > 0) v = log2f(mass) - total + (a.first ? 0.0f : a.log_v[b * a.cols + j]);
  a.log_v[b * a.cols + j] = v;
  if (a.col_log) a.col_log[b * a.log_stride + j] = v > kNothing ? (v - level * a.c) * kLn2F : -INFINITY;
}

/// log v as it is given: base 2, and kNothing for -inf.
__global__ void sinkhorn_given_kernel(const float* __restrict__ given, float* __restrict__ log_v, int64_t n) {
  const int64_t j = int64_t(blockIdx.x) * kThreads + threadIdx.x;
  if (j < n) log_v[j] = given[j] > kNothing ? given[j] * (1.0f / kLn2F) : kNothing;
}

__global__ void sinkhorn_fill_kernel(float* __restrict__ out, int64_t n) {
  const int64_t j = int64_t(blockIdx.x) * kThreads + threadIdx.x;
  if (j < n) out[j] = -INFINITY;
}

unsigned blocks_of(int64_t n) { return unsigned((n + kThreads - 1) / kThreads); }

void fill(float* out, int64_t n, vk_stream_t stream) {
  if (out && n > 0) VK_LAUNCH(sinkhorn_fill_kernel, blocks_of(n), kThreads, 0, stream, out, n);
}

struct Space {
  Space(float* workspace, int64_t batch, int64_t rows, int64_t cols)
      : blocks(rows < kSinkhornBlocks ? rows : kSinkhornBlocks),
        top(workspace),
        sum(top + batch * blocks * cols),
        log_v(sum + batch * blocks * cols),
        level(log_v + batch * cols) {}
  int64_t blocks;
  float *top, *sum, *log_v, *level;
};

template <class T>
void launch_rows(const void* scores, const Rows& r, int64_t batch, vk_stream_t stream) {
  const size_t shared = r.top && r.cols <= kSharedColumns ? size_t(2 * r.cols) * sizeof(float) : 0;
  VK_LAUNCH((sinkhorn_rows_kernel<T>), dim3(unsigned(r.blocks), unsigned(batch)), kThreads, shared, stream,
            static_cast<const T*>(scores), r);
}

void launch_rows(Element element, const void* scores, const Rows& r, int64_t batch, vk_stream_t stream) {
  switch (element) {
    case Element::f16: return launch_rows<f16>(scores, r, batch, stream);
    case Element::bf16: return launch_rows<bf16>(scores, r, batch, stream);
    default: return launch_rows<float>(scores, r, batch, stream);
  }
}

void launch_columns(const Columns& c, int64_t batch, vk_stream_t stream) {
  VK_LAUNCH(sinkhorn_columns_kernel, dim3(blocks_of(c.cols), unsigned(batch)), kThreads, 0, stream, c);
}

}  // namespace

void sinkhorn_cuda(const Sinkhorn& a, float* workspace, void* stream_pointer) {
  const auto stream = static_cast<vk_stream_t>(stream_pointer);
  const int64_t kept = a.history ? a.iterations : 1;
  if (a.batch * a.rows * a.cols == 0) {
    fill(a.row_log, a.batch * kept * a.rows, stream);
    fill(a.col_log, a.batch * kept * a.cols, stream);
    if (a.label && a.batch * a.rows > 0) memset_async(a.label, 0, size_t(a.batch * a.rows) * sizeof(int64_t), stream);
    return;
  }
  const Space w(workspace, a.batch, a.rows, a.cols);
  const float c = float(1.44269504088896340736 / double(a.epsilon));
  Rows r{};
  r.row_mass = a.row_mass;
  r.even_mass = 1.0f / float(a.rows);
  r.level_stride = 1;
  r.top = w.top;
  r.sum = w.sum;
  r.rows = a.rows;
  r.cols = a.cols;
  r.blocks = w.blocks;
  r.log_stride = kept * a.rows;
  r.c = c;
  r.rows_to_one = a.rows_to_one;
  Columns k{w.top,   w.sum,  a.col_mass, 1.0f / float(a.cols), w.log_v, nullptr, nullptr,
            w.level, a.cols, w.blocks,   kept * a.cols,        1,       c,       true};
  launch_rows(a.element, a.scores, r, a.batch, stream);
  r.log_v = w.log_v;
  r.level = w.level;
  r.look = true;
  for (int64_t t = 0; t < a.iterations; ++t) {
    const bool last = t + 1 == a.iterations, wanted = last || a.history;
    const int64_t slot = a.history ? t : 0;
    k.first = t == 0;
    k.col_log = wanted ? a.col_log + slot * a.cols : nullptr;
    launch_columns(k, a.batch, stream);
    r.row_log = wanted ? a.row_log + slot * a.rows : nullptr;
    if (last) {
      r.top = r.sum = nullptr;
      r.plan = a.plan;
      r.label = a.label;
    }
    launch_rows(a.element, a.scores, r, a.batch, stream);
  }
}

void sinkhorn_step_cuda(const SinkhornStep& a, float* workspace, void* stream_pointer) {
  const auto stream = static_cast<vk_stream_t>(stream_pointer);
  if (a.batch * a.rows * a.cols == 0) {
    fill(a.row_lse, a.batch * a.rows, stream);
    fill(a.col_sum, a.batch * a.cols, stream);
    if (a.batch * a.rows > 0) memset_async(a.label, 0, size_t(a.batch * a.rows) * sizeof(int64_t), stream);
    return;
  }
  const Space w(workspace, a.batch, a.rows, a.cols);
  Rows r{};
  r.row_mass = a.row_mass;
  r.even_mass = 1.0f;
  r.top = w.top;
  r.sum = w.sum;
  r.row_lse = a.row_lse;
  r.label = a.label;
  r.rows = a.rows;
  r.cols = a.cols;
  r.blocks = w.blocks;
  r.c = float(1.44269504088896340736 / double(a.epsilon));
  r.look = true;
  if (a.col_log) {
    VK_LAUNCH(sinkhorn_given_kernel, blocks_of(a.batch * a.cols), kThreads, 0, stream, a.col_log, w.log_v,
              a.batch * a.cols);
    r.log_v = w.log_v;
  }
  launch_rows(a.element, a.scores, r, a.batch, stream);
  Columns k{};
  k.top = w.top;
  k.sum = w.sum;
  k.col_sum = a.col_sum;
  k.cols = a.cols;
  k.blocks = w.blocks;
  k.c = r.c;
  k.first = !a.col_log;
  launch_columns(k, a.batch, stream);
}

}  // namespace vk
