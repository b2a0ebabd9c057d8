// Who owns what: a thread one number of what a kernel writes, neighbours in memory beside each other in the warp.
//   forward        a number of a picture: reads two times, two rows, two columns of each level it is made of
//   shrink         a number of the frames' gradient: adds the pixels that have read its cell, in raster order
//   backward       a number of the grid's gradient: adds the frames that have read it, in the order of the batch
// Every sum has one order and one owner: no atomics.
#include "device/vk_device.cuh"
#include "ops/temporal_grid/temporal_grid.h"

namespace vk {
namespace {

constexpr int kThreads = 256;

__device__ __forceinline__ float blended(float low, float high, float share) {
  return share == 0 ? low : low * (1.0f - share) + high * share;
}
__device__ __forceinline__ float share_of(const Between& at, int64_t cell) {
  return (at.low == cell ? 1.0f - at.share : 0.0f) + (at.high == cell ? at.share : 0.0f);
}
__device__ __forceinline__ int64_t thread_index() { return int64_t(blockIdx.x) * kThreads + threadIdx.x; }

template <class T>
__global__ void __launch_bounds__(kThreads) temporal_grid_forward_kernel(TemporalGrid a, int64_t count) {
  const int64_t i = thread_index();
  if (i >= count) return;
  const int64_t width = a.width(), columns = a.width_cells * a.scale, rows = a.height * a.scale;
  const int64_t k = i % width, pixel = i / width;
  const Between x = in_space(pixel % columns, a.width_cells, a.scale);
  const Between y = in_space(pixel / columns % rows, a.height, a.scale);
  const double t = a.t[pixel / columns / rows];
  const int64_t begin = a.concat ? k / a.channels : 0, end = a.concat ? begin + 1 : a.levels;
  const T* level = static_cast<const T*>(a.grid) + (a.concat ? k % a.channels : k);
  const int64_t frame = a.height * a.width_cells * a.channels;
  for (int64_t l = 0; l < begin; ++l) level += a.lengths[l] * frame;
  float sum[2][2] = {};
  for (int64_t l = begin; l < end; ++l) {
    const Between when = in_time(t, a.lengths[l]);
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      const int64_t at = ((j / 2 ? y.high : y.low) * a.width_cells + (j % 2 ? x.high : x.low)) * a.channels;
      sum[j / 2][j % 2] +=
          blended(to_float(level[when.low * frame + at]), to_float(level[when.high * frame + at]), when.share);
    }
    level += a.lengths[l] * frame;
  }
  const float left = blended(sum[0][0], sum[1][0], y.share), right = blended(sum[0][1], sum[1][1], y.share);
  static_cast<T*>(const_cast<void*>(a.out))[i] = from_float<T>(blended(left, right, x.share));
}

template <class T>
__global__ void __launch_bounds__(kThreads) temporal_grid_shrink_kernel(TemporalGrid a, int64_t count) {
  const int64_t i = thread_index();
  if (i >= count) return;
  const int64_t width = a.width(), columns = a.width_cells * a.scale, rows = a.height * a.scale;
  const int64_t k = i % width, cell = i / width, cx = cell % a.width_cells, cy = cell / a.width_cells % a.height;
  const T* image = static_cast<const T*>(a.out) + cell / a.width_cells / a.height * rows * columns * width + k;
  const auto first = [&](int64_t c) { return c > 0 ? (c - 1) * a.scale + a.scale / 2 : 0; };
  float sum = 0;
  for (int64_t y = first(cy); y < (cy + 2) * a.scale && y < rows; ++y) {
    const float down = share_of(in_space(y, a.height, a.scale), cy);
    if (down == 0) continue;
    float across = 0;
    for (int64_t x = first(cx); x < (cx + 2) * a.scale && x < columns; ++x) {
      const float share = share_of(in_space(x, a.width_cells, a.scale), cx);
      if (share != 0) across += share * to_float(image[(y * columns + x) * width]);
    }
    sum += down * across;
  }
  a.frames[i] = sum;
}

template <class T>
__global__ void __launch_bounds__(kThreads) temporal_grid_backward_kernel(TemporalGrid a, int64_t count) {
  const int64_t i = thread_index();
  if (i >= count) return;
  const int64_t frame = a.height * a.width_cells * a.channels, cells = a.height * a.width_cells;
  const int64_t c = i % a.channels, cell = i % frame / a.channels;
  int64_t n = i / frame, level = 0;
  while (n >= a.lengths[level]) n -= a.lengths[level++];
  const float* from = a.frames + cell * a.width() + (a.concat ? level * a.channels : 0) + c;
  float sum = 0;
  for (int64_t b = 0; b < a.batch; ++b) {
    const float share = share_of(in_time(a.t[b], a.lengths[level]), n);
    if (share != 0) sum += share * from[b * cells * a.width()];
  }
  static_cast<T*>(const_cast<void*>(a.grid))[i] = from_float<T>(sum);
}

unsigned blocks_of(int64_t count) { return unsigned((count + kThreads - 1) / kThreads); }

template <class T>
void launch_forward(const TemporalGrid& a, vk_stream_t stream) {
  const int64_t count = a.batch * a.height * a.width_cells * a.scale * a.scale * a.width();
  if (count > 0) VK_LAUNCH((temporal_grid_forward_kernel<T>), blocks_of(count), kThreads, 0, stream, a, count);
}

template <class T>
void launch_backward(const TemporalGrid& a, vk_stream_t stream) {
  const int64_t frame = a.height * a.width_cells, pixels = a.batch * frame * a.width();
  const int64_t count = a.total() * frame * a.channels;
  if (pixels > 0) VK_LAUNCH((temporal_grid_shrink_kernel<T>), blocks_of(pixels), kThreads, 0, stream, a, pixels);
  if (count > 0) VK_LAUNCH((temporal_grid_backward_kernel<T>), blocks_of(count), kThreads, 0, stream, a, count);
}

}  // namespace

void temporal_grid_cuda(const TemporalGrid& a, void* stream_pointer) {
  const auto stream = static_cast<vk_stream_t>(stream_pointer);
  switch (a.element) {
    case Element::f16: return launch_forward<f16>(a, stream);
    case Element::bf16: return launch_forward<bf16>(a, stream);
    default: return launch_forward<float>(a, stream);
  }
}

void temporal_grid_backward_cuda(const TemporalGrid& a, void* stream_pointer) {
  const auto stream = static_cast<vk_stream_t>(stream_pointer);
  switch (a.element) {
    case Element::f16: return launch_backward<f16>(a, stream);
    case Element::bf16: return launch_backward<bf16>(a, stream);
    default: return launch_backward<float>(a, stream);
  }
}

}  // namespace vk
