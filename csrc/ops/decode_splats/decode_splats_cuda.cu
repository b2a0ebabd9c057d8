// Who owns what
//   set up   one thread per Gaussian: its coefficients and its box in pixels, to scratch
//   draw     one block per tile of 16 x 16 pixels, one thread per pixel; in rounds of 256 Gaussians each thread looks
//            at one box, those that meet the tile are listed in shared memory in ascending order, and every thread
//            adds the listed ones to its pixel. No lists in global memory, no sort, no atomics.
//
// Every operation whose result reaches a pixel is an intrinsic that nvcc may not fuse.
#include "device/vk_device.cuh"
#include "ops/decode_splats/decode_splats.h"

namespace vk {
namespace {

constexpr int kTile = 16;
constexpr int kThreads = kTile * kTile;
constexpr int kWarps = kThreads / 32;

struct __align__(16) Splat {
  float mx, my, u1, u2;
  float k, color[4];
  int x0, x1, y0, y1;  // pixels, inclusive; x1 < x0: nothing to draw
  float unused[3];
};
static_assert(sizeof(Splat) == kDecodeRecordBytes);

__device__ __forceinline__ bool finite(float x) { return fabsf(x) <= 3.402823466e38f; }

__global__ void decode_splats_setup_kernel(const float* __restrict__ means, const float* __restrict__ cholesky,
                                           const float* __restrict__ colors, Splat* __restrict__ splats, int64_t count,
                                           int channels, int height, int width, float pixel_center) {
  const int64_t i = int64_t(blockIdx.x) * kThreads + threadIdx.x;
  if (i >= count) return;
  Splat s = {};
  s.x1 = -1;
  s.mx = means[2 * i], s.my = means[2 * i + 1];
  const float l11 = cholesky[3 * i], l21 = cholesky[3 * i + 1], l22 = cholesky[3 * i + 2];
  s.u1 = __fdiv_rn(kDecodeZeta, l11);
  s.u2 = __fdiv_rn(kDecodeZeta, l22);
  s.k = __fdiv_rn(__fmul_rn(l21, s.u1), l22);
  bool good = finite(s.mx) && finite(s.my) && finite(l11) && finite(l22) && finite(s.u1) && finite(s.u2) && finite(s.k);
  for (int c = 0; c < 4; ++c)
    if (c < channels) {
      s.color[c] = colors[i * channels + c];
      good = good && finite(s.color[c]);
    }
  if (good) {
    const PixelRange x = decode_pixel_range(s.mx, fabsf(l11) * kDecodeReach, pixel_center, width);
    const PixelRange y = decode_pixel_range(s.my, sqrtf(l21 * l21 + l22 * l22) * kDecodeReach, pixel_center, height);
    s.x0 = x.first, s.x1 = y.first <= y.last ? x.last : -1, s.y0 = y.first, s.y1 = y.last;
  }
  splats[i] = s;
}

template <int C>
__global__ void decode_splats_draw_kernel(const Splat* __restrict__ splats, const float* __restrict__ background,
                                          uint8_t* __restrict__ out, int64_t count, int height, int width,
                                          float pixel_center) {
  __shared__ int listed[kThreads];
  __shared__ int warp_total[kWarps];
  const int thread = int(threadIdx.x), lane = thread & 31, warp = thread >> 5;
  const int left = int(blockIdx.x) * kTile, top = int(blockIdx.y) * kTile;
  const int x = left + thread % kTile, y = top + thread / kTile;
  const float px = __fadd_rn(float(x), pixel_center), py = __fadd_rn(float(y), pixel_center);
  float acc[C];
#pragma unroll
  for (int c = 0; c < C; ++c) acc[c] = background[c];

  for (int64_t base = 0; base < count; base += kThreads) {
    bool meets = false;
    if (base + thread < count) {
      const Splat& s = splats[base + thread];
      meets = s.x0 <= s.x1 && s.x0 < left + kTile && s.x1 >= left && s.y0 < top + kTile && s.y1 >= top;
    }
    const uint32_t ballot = __ballot_sync(0xffffffffu, meets);
    if (lane == 0) warp_total[warp] = __popc(ballot);
    __syncthreads();
    int place = __popc(ballot & ((1u << lane) - 1)), total = 0;
#pragma unroll
    for (int w = 0; w < kWarps; ++w) {
      place += w < warp ? warp_total[w] : 0;
      total += warp_total[w];
    }
    if (meets) listed[place] = thread;
    __syncthreads();
    for (int n = 0; n < total; ++n) {
      const Splat& s = splats[base + listed[n]];
      const float dx = __fsub_rn(px, s.mx), dy = __fsub_rn(py, s.my);
      const float z1 = __fmul_rn(dx, s.u1);
      const float z2 = __fsub_rn(__fmul_rn(dy, s.u2), __fmul_rn(dx, s.k));
      const float t = __fadd_rn(__fmul_rn(z2, z2), __fadd_rn(__fmul_rn(z1, z1), kDecodeBeta));
      if (t <= kDecodeTau) {
        float q = __fadd_rn(__fmul_rn(t, t), kDecodeGamma);
#pragma unroll
        for (int step = 0; step < 5; ++step) q = __fmul_rn(q, q);
#pragma unroll
        for (int c = 0; c < C; ++c) acc[c] = __fadd_rn(acc[c], __fmul_rn(s.color[c], q));
      }
    }
    __syncthreads();  // the lists are free again
  }
  if (x >= width || y >= height) return;
#pragma unroll
  for (int c = 0; c < C; ++c) {
    float v = acc[c] > 0.0f ? acc[c] : 0.0f;  // NaN becomes zero
    v = v < 1.0f ? v : 1.0f;
    const float shifted = __fadd_rn(__fmul_rn(v, 255.0f), 8388608.0f);  // rounds to nearest even
    out[(int64_t(y) * width + x) * C + c] = uint8_t(__float_as_uint(shifted));
  }
}

template <int C>
void launch_draw(const DecodeSplats& a, vk_stream_t stream) {
  const dim3 grid(unsigned((a.width + kTile - 1) / kTile), unsigned((a.height + kTile - 1) / kTile));
  VK_LAUNCH((decode_splats_draw_kernel<C>), grid, kThreads, 0, stream, static_cast<const Splat*>(a.records),
            a.background, a.out, a.count, int(a.height), int(a.width), a.pixel_center);
}

}  // namespace

void decode_splats_cuda(const DecodeSplats& a, void* stream_pointer) {
  const auto stream = static_cast<vk_stream_t>(stream_pointer);
  if (a.height * a.width == 0) return;
  if (a.count > 0)
    VK_LAUNCH((decode_splats_setup_kernel), unsigned((a.count + kThreads - 1) / kThreads), kThreads, 0, stream, a.means,
              a.cholesky, a.colors, static_cast<Splat*>(a.records), a.count, int(a.channels), int(a.height),
              int(a.width), a.pixel_center);
  switch (a.channels) {
    case 1: return launch_draw<1>(a, stream);
    case 2: return launch_draw<2>(a, stream);
    case 3: return launch_draw<3>(a, stream);
    default: return launch_draw<4>(a, stream);
  }
}

}  // namespace vk
