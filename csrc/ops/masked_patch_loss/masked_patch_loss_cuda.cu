// Who owns what
//   tube kernel  one block of kThreads per masked tube
//     0 ahead      each thread asks for its first packs of pred, so that they fly during the statistics
//     1 stage      the tube's pixels go to shared memory as [pixel, channel]: bytes as bytes, floats as Real
//     2 moments    a thread visits only elements that keep their channel: its stride is a multiple of C. Byte sums
//                  are integers, so exact in any order; floats take two passes
//     3 maps       thread c makes the target map of channel c
//     4 sweep      thread i owns packs i, i + kThreads, ... of pred: difference, loss, gradient
//     5 partial    the block's sum of squares, one double per tube
//   scale kernel the gradient of a fused pass times an upstream gradient that only the device knows
//   sum kernel   one block adds the partial sums in a fixed order: same bits on every run
//
// A tube whose index lies outside the grid is never read: its loss and gradient are NaN.
#include "device/vk_device.cuh"
#include "device/vk_reduce.cuh"
#include "ops/masked_patch_loss/masked_patch_loss.h"

namespace vk {
namespace {

constexpr int kThreads = 128;
constexpr int kWarps = kThreads / 32;
constexpr int kSumThreads = 256;
constexpr int kMaxScaled = 32;  // channels whose normalisation can be undone; op.py refuses more

/// What a block needs, 32-bit inside a tube.
struct Tubes {
  const void* pred;
  const void* video;
  const int32_t* index;
  const void* grad_loss;
  double* partial;
  void* grad;
  int64_t stride_b, stride_t, stride_h, stride_w, stride_c;
  uint32_t count, length, grid_h, grid_w;
  int pt, ph, pw, channels, size;
  int load_bytes;  // width of the loads of a uint8 row: 16, 4, 1; 0: pixels one by one, any layout
  int visiting;    // threads that take part in the moments, a multiple of channels
  bool joint, scaled;
  Element video_element;
  double upstream;  // 2 / n
  double scale[kMaxScaled], shift[kMaxScaled];
};

/// The block's dynamic shared memory.
template <class Pixel, class Real>
struct Shared {
  Pixel* pixels;              // [size], padded to 16 bytes with zeros
  double *mean, *deviation;   // [C]
  double *scale, *shift;      // [C]
  Real *high, *low, *factor;  // [C]

  __host__ __device__ static size_t pixel_bytes(int size) { return (size_t(size) * sizeof(Pixel) + 15) / 16 * 16; }
  __host__ __device__ static size_t bytes(int size, int channels) {
    return pixel_bytes(size) + size_t(channels) * (4 * sizeof(double) + 3 * sizeof(Real));
  }
  __device__ Shared(unsigned char* memory, int size, int channels) : pixels(reinterpret_cast<Pixel*>(memory)) {
    mean = reinterpret_cast<double*>(memory + pixel_bytes(size));
    deviation = mean + channels;
    scale = deviation + channels;
    shift = scale + channels;
    high = reinterpret_cast<Real*>(shift + channels);
    low = high + channels;
    factor = low + channels;
  }
};

template <class V>
__device__ __forceinline__ void stage_rows(const Tubes& a, const uint8_t* tube, uint8_t* pixels) {
  const int vectors = a.pw * a.channels / int(sizeof(V)), all = a.pt * a.ph * vectors;
  for (int i = int(threadIdx.x); i < all; i += kThreads) {
    const int row = i / vectors, t = row / a.ph;
    const uint8_t* source = tube + t * a.stride_t + (row - t * a.ph) * a.stride_h;
    reinterpret_cast<V*>(pixels)[i] = reinterpret_cast<const V*>(source)[i - row * vectors];
  }
}

/// Any layout: lanes run along the channels if they are neighbours in memory, else along a row.
template <class X, class Pixel>
__device__ __forceinline__ void stage_any(const Tubes& a, const X* tube, Pixel* pixels) {
  for (int i = int(threadIdx.x); i < a.size; i += kThreads) {
    int x, c, row;
    if (a.stride_c == 1) {
      const int p = i / a.channels;
      c = i - p * a.channels;
      row = p / a.pw;
      x = p - row * a.pw;
    } else {
      const int p = i / a.pw;
      x = i - p * a.pw;
      row = p / a.channels;
      c = p - row * a.channels;
    }
    const int t = row / a.ph;
    const X value = tube[t * a.stride_t + (row - t * a.ph) * a.stride_h + x * a.stride_w + c * a.stride_c];
    if constexpr (sizeof(Pixel) == 1)
      pixels[(row * a.pw + x) * a.channels + c] = value;
    else
      pixels[(row * a.pw + x) * a.channels + c] = Pixel(to_float(value));
  }
}

__device__ __forceinline__ void stage(const Tubes& a, int64_t offset, uint8_t* pixels) {
  const uint8_t* tube = static_cast<const uint8_t*>(a.video) + offset;
  const int pad = a.size + int(threadIdx.x);
  if (pad < (a.size + 15) / 16 * 16) pixels[pad] = 0;
  if (a.load_bytes == 16)
    stage_rows<uint4>(a, tube, pixels);
  else if (a.load_bytes == 4)
    stage_rows<uint32_t>(a, tube, pixels);
  else if (a.load_bytes == 1)
    stage_rows<uint8_t>(a, tube, pixels);
  else
    stage_any(a, tube, pixels);
}
__device__ __forceinline__ void stage(const Tubes& a, int64_t offset, float* pixels) {
  switch (a.video_element) {
    case Element::f32: return stage_any(a, static_cast<const float*>(a.video) + offset, pixels);
    case Element::f16: return stage_any(a, static_cast<const f16*>(a.video) + offset, pixels);
    case Element::bf16: return stage_any(a, static_cast<const bf16*>(a.video) + offset, pixels);
    case Element::f64: return;  // refused in op.py: would need Real = double
  }
}
__device__ __forceinline__ void stage(const Tubes& a, int64_t offset, double* pixels) {
  switch (a.video_element) {
    case Element::f32: return stage_any(a, static_cast<const float*>(a.video) + offset, pixels);
    case Element::f16: return stage_any(a, static_cast<const f16*>(a.video) + offset, pixels);
    case Element::bf16: return stage_any(a, static_cast<const bf16*>(a.video) + offset, pixels);
    case Element::f64: return stage_any(a, static_cast<const double*>(a.video) + offset, pixels);
  }
}

/// One sum per warp, in warp order.
template <class Sum>
__device__ __forceinline__ Sum collect(const Sum* scratch) {
  Sum total = 0;
#pragma unroll
  for (int w = 0; w < kWarps; ++w) total += scratch[w];
  return total;
}

template <class Real>
__device__ __forceinline__ void moments(const Tubes& a, const Shared<uint8_t, Real>& s) {
  __shared__ uint32_t scratch[2 * kWarps];
  const int thread = int(threadIdx.x), words = (a.size + 3) / 4;
  uint32_t sum[4] = {}, square[4] = {};
  if (thread < a.visiting)
    for (int i = thread; i < words; i += a.visiting) {
      const uint32_t word = reinterpret_cast<const uint32_t*>(s.pixels)[i];
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        const uint32_t x = word >> (8 * j) & 0xffu;
        sum[j] += x;
        square[j] += x * x;
      }
    }
  const int64_t n = int64_t(a.size / a.channels);
  const int first = 4 * thread % a.channels;
  for (int c = 0; c < a.channels; ++c) {
    uint32_t own = 0, own_square = 0;
    for (int j = 0, channel = first; j < 4; ++j, channel = channel + 1 == a.channels ? 0 : channel + 1)
      if (channel == c) {
        own += sum[j];
        own_square += square[j];
      }
    own = warp_sum(own);
    own_square = warp_sum(own_square);
    if (thread % 32 == 0) {
      scratch[thread / 32] = own;
      scratch[kWarps + thread / 32] = own_square;
    }
    __syncthreads();
    if (thread == 0) {
      const int64_t total = collect(scratch), squares = collect(scratch + kWarps);
      s.mean[c] = double(total) / double(n);
      s.deviation[c] = double(n * squares - total * total) / double(n);
    }
    __syncthreads();
  }
}

template <class Real>
__device__ __forceinline__ void moments(const Tubes& a, const Shared<Real, Real>& s) {
  __shared__ double scratch[kWarps];
  const int thread = int(threadIdx.x), mine = thread % a.channels;
  const double n = double(a.size / a.channels);
  for (int pass = 0; pass < 2; ++pass) {
    const double centre = pass == 0 ? 0.0 : s.mean[mine];
    double sum = 0;
    if (thread < a.visiting)
      for (int i = thread; i < a.size; i += a.visiting) {
        const double d = double(s.pixels[i]) - centre;
        sum += pass == 0 ? d : d * d;
      }
    for (int c = 0; c < a.channels; ++c) {
      const double own = warp_sum(mine == c ? sum : 0.0);
      if (thread % 32 == 0) scratch[thread / 32] = own;
      __syncthreads();
      if (thread == 0) (pass == 0 ? s.mean : s.deviation)[c] = pass == 0 ? collect(scratch) / n : collect(scratch);
      __syncthreads();
    }
  }
}

template <class T, class Real>
__device__ __forceinline__ T round_to(Real x) {
  if constexpr (sizeof(T) == sizeof(Real))
    return x;
  else
    return from_float<T>(float(x));
}

template <class T, class Pixel, int kPack>
__global__ void __launch_bounds__(kThreads, sizeof(T) == 8 ? 4 : 6) masked_patch_loss_tube_kernel(Tubes a) {
  using Real = decltype(to_float(T{}));
  constexpr int kAhead = kPack == 4 ? 3 : 1;
  VK_DYN_SHARED(unsigned char, memory);
  const Shared<Pixel, Real> s(memory, a.size, a.channels);
  const int thread = int(threadIdx.x), packs = a.size / kPack;
  const int64_t tube = int64_t(blockIdx.x);
  const T* pred = static_cast<const T*>(a.pred) + tube * a.size;
  T* grad = static_cast<T*>(a.grad) + (a.grad ? tube * a.size : 0);

  const uint32_t n = uint32_t(a.index[tube]);
  if (n >= a.length) {
    const Real nan = Real(__int_as_float(0x7fc00000));
    if (a.grad)
      for (int i = thread; i < a.size; i += kThreads) grad[i] = round_to<T>(nan);
    if (a.partial && thread == 0) a.partial[tube] = double(nan);
    return;
  }

  Vec<T, kPack> ahead[kAhead] = {};
#pragma unroll
  for (int k = 0; k < kAhead; ++k) {
    const int i = thread + k * kThreads;
    if (i < packs) ahead[k] = load_vec<kPack>(pred + i * kPack);
  }

  const uint32_t line = n / a.grid_w, t = line / a.grid_h;
  stage(a,
        blockIdx.x / a.count * a.stride_b + t * a.pt * a.stride_t + (line - t * a.grid_h) * a.ph * a.stride_h +
            (n - line * a.grid_w) * a.pw * a.stride_w,
        s.pixels);
  for (int c = thread; c < a.channels; c += kThreads) {
    s.scale[c] = a.scaled ? a.scale[c] : 1.0;
    s.shift[c] = a.scaled ? a.shift[c] : 0.0;
  }
  __syncthreads();
  moments(a, s);
  for (int c = thread; c < a.channels; c += kThreads) {
    const TargetMap<Real> m = target_map<Real>(c, a.channels, a.size / a.channels, s.mean, s.deviation, s.scale,
                                               s.shift, a.joint, sizeof(Pixel) == 1);
    s.high[c] = m.high;
    s.low[c] = m.low;
    s.factor[c] = m.factor;
  }
  __syncthreads();

  Real up = Real(a.upstream);
  if (a.grad_loss) up = Real(a.upstream * double(*static_cast<const Real*>(a.grad_loss)));
  Real sum = 0;
  const auto sweep = [&](int i, const Vec<T, kPack>& p) {
    Vec<T, kPack> g;
    Vec<Pixel, kPack> x = load_vec<kPack>(s.pixels + i * kPack);
    int c = i * kPack % a.channels;
#pragma unroll
    for (int j = 0; j < kPack; ++j) {
      const Real d = to_float(p[j]) - ((Real(x[j]) - s.high[c]) - s.low[c]) * s.factor[c];
      sum += d * d;
      g[j] = round_to<T>(d * up);
      c = c + 1 == a.channels ? 0 : c + 1;
    }
    if (a.grad) store_vec<kPack>(grad + i * kPack, g);
  };
#pragma unroll
  for (int k = 0; k < kAhead; ++k) {
    const int i = thread + k * kThreads;
    if (i < packs) sweep(i, ahead[k]);
  }
  for (int i = thread + kAhead * kThreads; i < packs; i += kThreads) sweep(i, load_vec<kPack>(pred + i * kPack));

  if (a.partial) {
    __shared__ Real scratch[32];
    const Real total = block_sum(sum, scratch);
    if (thread == 0) a.partial[tube] = double(total);
  }
}

template <class Loss>
__global__ void __launch_bounds__(kSumThreads)
    masked_patch_loss_sum_kernel(const double* __restrict__ partial, int64_t tubes, double elements, Loss* loss) {
  __shared__ double scratch[32];
  double sum = 0;
  for (int64_t i = int64_t(threadIdx.x); i < tubes; i += kSumThreads) sum += partial[i];
  sum = block_sum(sum, scratch);
  if (threadIdx.x == 0) *loss = Loss(elements > 0 ? sum / elements : 0.0);
}

/// In place; a factor of 1, the usual case, costs one read of the factor.
template <class T, int kPack>
__global__ void __launch_bounds__(kSumThreads)
    masked_patch_loss_scale_kernel(T* grad, const decltype(to_float(T{}))* __restrict__ factor, int64_t packs) {
  const auto up = *factor;
  if (up == 1) return;
  const int64_t i = int64_t(blockIdx.x) * kSumThreads + threadIdx.x;
  if (i >= packs) return;
  Vec<T, kPack> g = load_vec<kPack>(grad + i * kPack);
#pragma unroll
  for (int j = 0; j < kPack; ++j) g[j] = round_to<T>(to_float(g[j]) * up);
  store_vec<kPack>(grad + i * kPack, g);
}

template <class T, class Pixel>
void launch_tubes(const Tubes& tubes, int64_t blocks, vk_stream_t stream) {
  using Real = decltype(to_float(T{}));
  constexpr int kPack = sizeof(T) == 8 ? 2 : 4;
  const size_t shared = Shared<Pixel, Real>::bytes(tubes.size, tubes.channels);
  const uintptr_t alignment = uintptr_t(tubes.pred) | uintptr_t(tubes.grad);
  if (tubes.size % kPack == 0 && alignment % (kPack * sizeof(T)) == 0)
    VK_LAUNCH((masked_patch_loss_tube_kernel<T, Pixel, kPack>), unsigned(blocks), kThreads, shared, stream, tubes);
  else
    VK_LAUNCH((masked_patch_loss_tube_kernel<T, Pixel, 1>), unsigned(blocks), kThreads, shared, stream, tubes);
}

template <class T>
void launch(const MaskedPatchLoss& a, const Tubes& tubes, vk_stream_t stream) {
  using Real = decltype(to_float(T{}));
  const int64_t blocks = a.batch * a.count;
  if (blocks > 0) {
    if (a.bytes)
      launch_tubes<T, uint8_t>(tubes, blocks, stream);
    else
      launch_tubes<T, Real>(tubes, blocks, stream);
  }
  if (a.loss)
    VK_LAUNCH((masked_patch_loss_sum_kernel<Real>), 1, kSumThreads, 0, stream, a.partial, blocks,
              double(blocks * a.pixels() * a.channels), static_cast<Real*>(a.loss));
}

template <class T, int kPack>
void launch_scale_packs(void* grad, const void* factor, int64_t n, vk_stream_t stream) {
  const int64_t packs = n / kPack, blocks = (packs + kSumThreads - 1) / kSumThreads;
  VK_LAUNCH((masked_patch_loss_scale_kernel<T, kPack>), unsigned(blocks), kSumThreads, 0, stream, static_cast<T*>(grad),
            static_cast<const decltype(to_float(T{}))*>(factor), packs);
}

template <class T>
void launch_scale(void* grad, const void* factor, int64_t n, vk_stream_t stream) {
  if (n == 0) return;
  if (n % kVecWidth<T> == 0 && uintptr_t(grad) % 16 == 0)
    launch_scale_packs<T, kVecWidth<T>>(grad, factor, n, stream);
  else
    launch_scale_packs<T, 1>(grad, factor, n, stream);
}

}  // namespace

void masked_patch_loss_scale_cuda(void* grad, const void* factor, int64_t n, Element element, void* stream_pointer) {
  const auto stream = static_cast<vk_stream_t>(stream_pointer);
  switch (element) {
    case Element::f32: return launch_scale<float>(grad, factor, n, stream);
    case Element::f64: return launch_scale<double>(grad, factor, n, stream);
    case Element::f16: return launch_scale<f16>(grad, factor, n, stream);
    case Element::bf16: return launch_scale<bf16>(grad, factor, n, stream);
  }
}

void masked_patch_loss_cuda(const MaskedPatchLoss& a, void* stream_pointer) {
  const auto stream = static_cast<vk_stream_t>(stream_pointer);
  Tubes t{};
  t.pred = a.pred;
  t.video = a.video;
  t.index = a.index;
  t.grad_loss = a.grad_loss;
  t.partial = a.partial;
  t.grad = a.grad;
  t.count = uint32_t(a.count);
  t.length = uint32_t(a.length());
  t.grid_h = uint32_t(a.grid_h);
  t.grid_w = uint32_t(a.grid_w);
  t.stride_b = a.stride_b;
  t.stride_t = a.stride_t;
  t.stride_h = a.stride_h;
  t.stride_w = a.stride_w;
  t.stride_c = a.stride_c;
  t.pt = int(a.pt);
  t.ph = int(a.ph);
  t.pw = int(a.pw);
  t.channels = int(a.channels);
  t.size = int(a.pixels() * a.channels);
  t.visiting = t.channels > 0 ? kThreads / t.channels * t.channels : kThreads;
  if (a.bytes && a.stride_c == 1 && a.stride_w == a.channels) {
    const uintptr_t all = uintptr_t(a.video) | uintptr_t(a.stride_b) | uintptr_t(a.stride_t) | uintptr_t(a.stride_h) |
                          uintptr_t(a.pw * a.channels);
    t.load_bytes = all % 16 == 0 ? 16 : all % 4 == 0 ? 4 : 1;
  }
  t.joint = a.joint;
  t.scaled = a.scale != nullptr;
  t.video_element = a.video_element;
  t.upstream = 2.0 / (double(a.batch * a.count) * double(t.size > 0 ? t.size : 1));
  if (t.scaled)
    for (int c = 0; c < t.channels; ++c) {
      t.scale[c] = a.scale[c];
      t.shift[c] = a.shift[c];
    }
  switch (a.pred_element) {
    case Element::f32: return launch<float>(a, t, stream);
    case Element::f64: return launch<double>(a, t, stream);
    case Element::f16: return launch<f16>(a, t, stream);
    case Element::bf16: return launch<bf16>(a, t, stream);
  }
}

}  // namespace vk
