// Who owns what
//   prepare   a block per matrix: its norm, then X_0, with no more rows than columns
//   multiply  a block of 16 x 16 threads per tile of 64 x 64 elements of one product of one matrix; a thread has the
//             4 x 4 elements (y + 16 i, x + 16 j). Both factors pass through shared memory, 16 deep at a time. Of a
//             symmetric product only tiles on and above the diagonal are computed, and stored twice.
// A launch serves up to kTable matrices, whose places travel with its arguments; which one a block belongs to is found
// by counting tiles.
#include "device/vk_device.cuh"
#include "device/vk_reduce.cuh"
#include "ops/newton_schulz/newton_schulz.h"

namespace vk {
namespace {

constexpr int kThreads = 256;
constexpr int kSide = 64, kDeep = 16, kOwn = 4;
constexpr int kTable = 32;

struct Matrix {
  int64_t at;         // in x and out
  int64_t workspace;  // X_0 [m, n], then gram, polynomial B, P, spare, spare: [m, m] each
  int32_t rows, cols;

  __host__ __device__ int32_t m() const { return rows < cols ? rows : cols; }
  __host__ __device__ int32_t n() const { return rows < cols ? cols : rows; }
  __host__ __device__ int64_t square(int k) const { return workspace + int64_t(m()) * n() + k * int64_t(m()) * m(); }
};

struct Table {
  Matrix matrix[kTable];
  int32_t first[kTable + 1];  // tile
  int count;
};

enum class Kind {
  gram,        // c = X_0 X_0^T
  polynomial,  // c = first I + second left + third left right
  symmetric,   // c = left right
  out          // out = left X_0
};

struct Step {
  Kind kind;
  int left, right, c;  // squares
  float first, second, third;
};

__global__ void __launch_bounds__(kThreads)
    newton_schulz_prepare_kernel(Table table, const float* x, float* workspace, float eps) {
  __shared__ double scratch[32];
  const Matrix matrix = table.matrix[blockIdx.x];
  const int64_t size = int64_t(matrix.rows) * matrix.cols;
  const float* from = x + matrix.at;
  float* to = workspace + matrix.workspace;
  double total = 0;
  for (int64_t i = threadIdx.x; i < size; i += kThreads) total += double(from[i]) * double(from[i]);
  total = sqrt(block_sum(total, scratch));
  const float scale = float(1 / (total > double(eps) || total != total ? total : double(eps)));
  const bool tall = matrix.rows > matrix.cols;
  for (int64_t i = threadIdx.x; i < size; i += kThreads) {
    const int64_t row = i / matrix.cols, column = i - row * matrix.cols;
    to[tall ? column * matrix.rows + row : i] = from[i] * scale;
  }
}

__global__ void __launch_bounds__(kThreads)
    newton_schulz_multiply_kernel(Table table, Step step, float* workspace, float* out) {
  __shared__ float left_tile[kDeep][kSide + 1];
  __shared__ float right_tile[kDeep][kSide + 1];
  int which = 0;
  while (int(blockIdx.x) >= table.first[which + 1]) ++which;
  const Matrix matrix = table.matrix[which];
  const int32_t m = matrix.m(), n = matrix.n();
  const int32_t columns = step.kind == Kind::out ? n : m, depth = step.kind == Kind::gram ? n : m;
  const int32_t across = (columns + kSide - 1) / kSide, tile = int(blockIdx.x) - table.first[which];
  const int32_t tile_y = tile / across, tile_x = tile - tile_y * across;
  if (step.kind != Kind::out && tile_y > tile_x) return;
  const int32_t i0 = tile_y * kSide, j0 = tile_x * kSide;
  const float* x0 = workspace + matrix.workspace;
  const float* left = step.kind == Kind::gram ? x0 : workspace + matrix.square(step.left);
  const float* right = step.kind == Kind::gram || step.kind == Kind::out ? x0 : workspace + matrix.square(step.right);
  const int32_t right_stride = step.kind == Kind::gram || step.kind == Kind::out ? n : m;
  const int tx = int(threadIdx.x) % 16, ty = int(threadIdx.x) / 16;
  float sums[kOwn][kOwn] = {};
  for (int32_t k0 = 0; k0 < depth; k0 += kDeep) {
    for (int e = int(threadIdx.x); e < kSide * kDeep; e += kThreads) {
      const int k = e % kDeep, i = e / kDeep;
      const bool inside = i0 + i < m && k0 + k < depth;
      left_tile[k][i] = inside ? left[int64_t(i0 + i) * depth + k0 + k] : 0.0f;
      if (step.kind == Kind::gram) {
        const bool there = j0 + i < m && k0 + k < depth;
        right_tile[k][i] = there ? right[int64_t(j0 + i) * right_stride + k0 + k] : 0.0f;
      } else {
        const int deep = e / kSide, j = e % kSide;
        const bool there = j0 + j < columns && k0 + deep < depth;
        right_tile[deep][j] = there ? right[int64_t(k0 + deep) * right_stride + j0 + j] : 0.0f;
      }
    }
    __syncthreads();
#pragma unroll
    for (int k = 0; k < kDeep; ++k) {
      float a[kOwn], b[kOwn];
#pragma unroll
      for (int i = 0; i < kOwn; ++i) a[i] = left_tile[k][ty + 16 * i], b[i] = right_tile[k][tx + 16 * i];
#pragma unroll
      for (int i = 0; i < kOwn; ++i)
#pragma unroll
        for (int j = 0; j < kOwn; ++j) sums[i][j] += a[i] * b[j];
    }
    __syncthreads();
  }
  const bool tall = matrix.rows > matrix.cols;
#pragma unroll
  for (int a = 0; a < kOwn; ++a)
#pragma unroll
    for (int b = 0; b < kOwn; ++b) {
      const int32_t i = i0 + ty + 16 * a, j = j0 + tx + 16 * b;
      if (i >= m || j >= columns) continue;
      float value = sums[a][b];
      if (step.kind == Kind::out) {
        out[matrix.at + (tall ? int64_t(j) * m + i : int64_t(i) * n + j)] = value;
        continue;
      }
      if (i > j) continue;  // in the tiles on the diagonal: its mirror stores it
      float* c = workspace + matrix.square(step.c);
      if (step.kind == Kind::polynomial)
        value = step.third * value + step.second * left[int64_t(i) * m + j] + (i == j ? step.first : 0.0f);
      c[int64_t(i) * m + j] = value;
      if (i != j) c[int64_t(j) * m + i] = value;
    }
}

void multiply(Table table, const Step& step, const NewtonSchulz& a, vk_stream_t stream) {
  table.first[0] = 0;
  for (int k = 0; k < table.count; ++k) {
    const int64_t columns = step.kind == Kind::out ? table.matrix[k].n() : table.matrix[k].m();
    const int64_t tiles = ((columns + kSide - 1) / kSide) * ((table.matrix[k].m() + kSide - 1) / kSide);
    table.first[k + 1] = table.first[k] + int32_t(tiles);
  }
  VK_LAUNCH(newton_schulz_multiply_kernel, unsigned(table.first[table.count]), kThreads, 0, stream, table, step,
            a.workspace, a.out);
}

void some(const Table& table, const NewtonSchulz& a, vk_stream_t stream) {
  VK_LAUNCH(newton_schulz_prepare_kernel, unsigned(table.count), kThreads, 0, stream, table, a.x, a.workspace, a.eps);
  enum { kGram, kB, kP, kNext, kHalf };
  multiply(table, {Kind::gram, 0, 0, kGram, 0, 0, 0}, a, stream);
  int p = kP, next = kNext, gram = kGram, spare = kHalf;
  for (int64_t step = 0; step < a.steps; ++step) {
    const bool start = step == 0;
    const int b = start ? p : kB;
    multiply(table, {Kind::polynomial, gram, gram, b, a.a, a.b, a.c}, a, stream);
    if (!start) multiply(table, {Kind::symmetric, b, p, next, 0, 0, 0}, a, stream);
    if (step + 1 < a.steps) {
      multiply(table, {Kind::symmetric, b, gram, spare, 0, 0, 0}, a, stream);
      multiply(table, {Kind::symmetric, spare, b, gram, 0, 0, 0}, a, stream);
    }
    if (!start) {
      const int kept = p;
      p = next;
      next = kept;
    }
  }
  multiply(table, {Kind::out, p, 0, 0, 0, 0, 0}, a, stream);
}

}  // namespace

void newton_schulz_cuda(const NewtonSchulz& a, void* stream_pointer) {
  const auto stream = static_cast<vk_stream_t>(stream_pointer);
  Table table{};
  int64_t at = 0, workspace = 0;
  for (int64_t k = 0; k < a.count; ++k) {
    if (a.rows[k] * a.cols[k] > 0)
      table.matrix[table.count++] = {at, workspace, int32_t(a.rows[k]), int32_t(a.cols[k])};
    at += a.rows[k] * a.cols[k];
    workspace += newton_schulz_workspace(a.rows[k], a.cols[k]);
    if (table.count == kTable || (k + 1 == a.count && table.count > 0)) {
      some(table, a, stream);
      table.count = 0;
    }
  }
}

}  // namespace vk
