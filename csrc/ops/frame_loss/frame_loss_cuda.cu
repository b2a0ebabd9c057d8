// Who owns what
//   weight kernel  a warp per row: the sums of its weights, of all pixels and of the centres of windows
//   total kernel   one block adds these
//   window kernel  a block walks down a strip of a frame (ssim != 0). Its numbers, pixels x channels as they lie in
//                  memory, are the threads' columns; only the strip's edges and the band's ends are looked at twice.
//       for every row v
//     1 stage      thread i writes y, d, x^2 + y^2 and d^2 of number i to shared memory, i < kReach of i + kThreads
//                  as well; the next row is already on its way
//     2 window     blurs them along the row and adds the result to the ten windows above that are still open, in
//                  registers: window row v - 10 is complete. Its loss, and its gradient maps to shared memory
//     3 pixel      blurs the maps along the row and adds them to the ten rows of pixels that are still open: pixel
//                  row v - 10 is complete, and its gradient is written
//   point kernel   the same without windows (ssim == 0): threads own packs of numbers
//   loss kernel    one block adds the blocks' sums
// All sums have one order: same bits on every run.
//
// A pixel lies in windows that begin up to 10 pixels to its left: with gradients, a strip begins earlier with its
// windows. More than four channels go in groups of up to four.
#include "device/vk_device.cuh"
#include "device/vk_reduce.cuh"
#include "ops/frame_loss/frame_loss.h"

namespace vk {
namespace {

constexpr int kThreads = 512;
constexpr int kPointThreads = 256, kPointNumbers = 8192;
constexpr int kSumThreads = 256, kSumWarps = kSumThreads / 32;
constexpr int kMaxBand = 128, kMinBand = 32, kEnoughBlocks = 64;
constexpr int kMaps = 4, kGradients = 3, kPartials = 3;

struct Frames {
  const float* image;
  const uint8_t* target;
  const float* weight;
  const float* grad_loss;
  float* grad;
  double* partial;       // [blocks, 3]: sums of |d|, d^2 and 1 - S; null: only the gradient is wanted
  const double* totals;  // [2] sums of the weights of pixels and of windows, with `weight`
  int height, width, channels;
  int band, bands, strip, strips, groups;
  double pixels, windows;  // how many there are
  double l1, l2, ssim;
};

__device__ __forceinline__ double inverse(double x) { return x > 0 ? 1 / x : 0.0; }
__device__ __forceinline__ double pixel_share(const Frames& a) {
  return inverse((a.weight ? a.totals[0] : a.pixels) * a.channels);
}
__device__ __forceinline__ double window_share(const Frames& a) {
  return inverse((a.weight ? a.totals[1] : a.windows) * a.channels);
}

/// Factors of the gradient's terms.
struct Scales {
  float l1, l2, ssim;
  __device__ explicit Scales(const Frames& a) {
    const double up = a.grad_loss ? double(*a.grad_loss) : 1.0;
    l1 = float(up * a.l1 * pixel_share(a));
    l2 = float(up * a.l2 * 2 * pixel_share(a));
    ssim = a.ssim != 0 ? float(up * a.ssim * window_share(a)) : 0.0f;
  }
  __device__ float of_difference(float d) const { return l1 * (d > 0 ? 1.0f : d < 0 ? -1.0f : 0.0f) + l2 * d; }
};

__device__ __forceinline__ float difference(float x, uint8_t target) { return x - float(target) / 255.0f; }

__device__ __forceinline__ void store_partials(const Frames& a, float absolute, float square, float unlike) {
  __shared__ double scratch[kPartials][32];
  const float own[kPartials] = {absolute, square, unlike};
#pragma unroll
  for (int k = 0; k < kPartials; ++k) {
    const double sum = block_sum(double(own[k]), scratch[k]);
    if (threadIdx.x == 0) a.partial[int64_t(blockIdx.x) * kPartials + k] = sum;
  }
}

/// A strip that takes gradients begins with the windows of so many numbers to its left, in whole warps: their accesses
/// stay aligned.
constexpr int lead(int group) { return (kSsimReach * group + 31) / 32 * 32; }

/// Where a number of a strip lies in its frame.
template <int kGroup>
struct Column {
  int pixel, offset;
  bool inside;
  __device__ Column(const Frames& a, int number, int first_channel) {
    pixel = number / kGroup;
    const int channel = first_channel + number - pixel * kGroup;
    offset = pixel * a.channels + channel;
    inside = number >= 0 && pixel < a.width && channel < a.channels;
  }
};

/// Sum over k of tap k * row[k * kStep].
template <int kStep>
__device__ __forceinline__ float blur(const float* row) {
  float even = row[0] * ssim_tap(0), odd = row[kStep] * ssim_tap(1);
#pragma unroll
  for (int k = 2; k < kSsimTaps; k += 2) {
    even += row[k * kStep] * ssim_tap(k);
    if (k + 1 < kSsimTaps) odd += row[(k + 1) * kStep] * ssim_tap(k + 1);
  }
  return even + odd;
}

/// Adds a row to ten open sums and closes the oldest.
__device__ __forceinline__ float close(float (&open)[kSsimReach], float value) {
  const float closed = open[0] + value * ssim_tap(kSsimReach);
#pragma unroll
  for (int k = 1; k < kSsimReach; ++k) open[k - 1] = open[k] + value * ssim_tap(kSsimReach - k);
  open[kSsimReach - 1] = value * ssim_tap(0);
  return closed;
}

template <int kGroup, bool kGrad>
__global__ void __launch_bounds__(kThreads) frame_loss_window_kernel(Frames a) {
  constexpr int kReach = kSsimReach * kGroup, kLead = kGrad ? lead(kGroup) : 0;
  __shared__ float staged[kMaps][kThreads + kReach];
  __shared__ float maps[kGrad ? kGradients : 1][kGrad ? kThreads : 1];
  __shared__ float image_ring[kGrad ? kSsimTaps : 1][kGrad ? kThreads : 1];
  __shared__ uint8_t target_ring[kGrad ? kSsimTaps : 1][kGrad ? kThreads : 1];

  const int thread = int(threadIdx.x);
  unsigned block = blockIdx.x;
  const int group = int(block % a.groups);
  block /= a.groups;
  const int strip = int(block % a.strips);
  block /= a.strips;
  const int band = int(block % a.bands);
  const int64_t frame = block / a.bands;
  const int64_t first_pixel = frame * a.height * a.width;
  const float* image = a.image + first_pixel * a.channels;
  const uint8_t* target = a.target + first_pixel * a.channels;
  const float* weight = a.weight + (a.weight ? first_pixel : 0);
  float* grad = a.grad + (kGrad ? first_pixel * a.channels : 0);

  const int number = strip * a.strip - kLead + thread, row_size = a.width * a.channels;
  const Column<kGroup> own(a, number, group * kGroup), extra(a, number + kThreads, group * kGroup);
  const bool counted = own.inside && thread >= kLead && thread < kLead + a.strip;
  const bool window = own.inside && own.pixel < a.width - kSsimReach;
  const int columns = kLead + a.strip + kReach;
  const bool has_own = own.inside && thread < columns;
  const bool has_extra = extra.inside && thread < kReach && kThreads + thread < columns;
  const int r0 = band * a.band, r1 = min(a.height, r0 + a.band);
  const int first = max(0, r0 - (kGrad ? kSsimReach : 0)), read_end = min(a.height, r1 + kSsimReach);
  const Scales scales(a);

  float open[kMaps][kSsimReach] = {}, open_maps[kGradients][kSsimReach] = {};
  float absolute = 0, square = 0, unlike = 0;
  float next_x = 0, next_extra_x = 0;
  uint8_t next_t = 0, next_extra_t = 0;
  const auto fetch = [&](int row) {
    if (has_own) next_x = image[row * row_size + own.offset], next_t = target[row * row_size + own.offset];
    if (has_extra)
      next_extra_x = image[row * row_size + extra.offset], next_extra_t = target[row * row_size + extra.offset];
  };
  const auto stage = [&](int at, float x, uint8_t t) {
    const float d = difference(x, t), y = float(t) / 255.0f - 0.5f, from_half = x - 0.5f;
    staged[0][at] = y;
    staged[1][at] = d;
    staged[2][at] = from_half * from_half + y * y;
    staged[3][at] = d * d;
    return d;
  };
  int slot = 0;  // of row v in the rings, then of row v - 10
  fetch(first);
  for (int v = first; v < r1 + kSsimReach; ++v) {
    const int w = v - kSsimReach;
    if (v < read_end) {
      const float d = stage(thread, next_x, next_t);
      if (thread < kReach) stage(kThreads + thread, next_extra_x, next_extra_t);
      if (a.partial && counted && v >= r0 && v < r1) {
        const float share = a.weight ? weight[v * a.width + own.pixel] : 1.0f;
        absolute += fabsf(d) * share;
        square += d * d * share;
      }
    }
    if constexpr (kGrad) {  // a thread's ring is its own
      image_ring[slot][thread] = next_x;
      target_ring[slot][thread] = next_t;
      slot = slot + 1 == kSsimTaps ? 0 : slot + 1;
    }
    __syncthreads();
    if (v + 1 < read_end) fetch(v + 1);

    float g[kGradients] = {};
    if (v < read_end) {
      float map[kMaps];
#pragma unroll
      for (int m = 0; m < kMaps; ++m) map[m] = close(open[m], blur<kGroup>(staged[m] + thread));
      if (w >= first && window) {
        const float share = a.weight ? weight[(w + kSsimReach / 2) * a.width + own.pixel + kSsimReach / 2] : 1.0f;
        const float one_less = ssim_unlike<kGrad>(map[0], map[1], map[2], map[3], g);
        if (counted && w >= r0) unlike += one_less * share;
#pragma unroll
        for (int k = 0; k < kGradients; ++k) g[k] *= share;
      }
    }
    if constexpr (kGrad)
      for (int k = 0; k < kGradients; ++k) maps[k][thread] = g[k];
    __syncthreads();

    if constexpr (kGrad) {
      if (w < first || !counted) continue;
      float back[kGradients];
#pragma unroll
      for (int k = 0; k < kGradients; ++k) back[k] = close(open_maps[k], blur<kGroup>(maps[k] + thread - kReach));
      if (w >= r0) {
        const float x = image_ring[slot][thread], d = difference(x, target_ring[slot][thread]);
        const float share = a.weight ? weight[w * a.width + own.pixel] : 1.0f;
        grad[w * row_size + own.offset] =
            share * scales.of_difference(d) + scales.ssim * (back[0] + back[1] * d + back[2] * (x - 0.5f));
      }
    }
  }
  if (a.partial) store_partials(a, absolute, square, unlike);
}

template <int kPack>
__global__ void __launch_bounds__(kPointThreads) frame_loss_point_kernel(Frames a, int numbers) {
  const int begin = int(blockIdx.x) * kPointNumbers;
  const Scales scales(a);
  float absolute = 0, square = 0;
#pragma unroll 4
  for (int k = 0; k < kPointNumbers / kPointThreads / kPack; ++k) {
    const int i = begin + (k * kPointThreads + int(threadIdx.x)) * kPack;
    if (i >= numbers) break;
    const Vec<float, kPack> x = load_vec<kPack>(a.image + i);
    const Vec<uint8_t, kPack> t = load_vec<kPack>(a.target + i);
    Vec<float, kPack> g;
#pragma unroll
    for (int j = 0; j < kPack; ++j) {
      const float d = difference(x[j], t[j]), share = a.weight ? a.weight[(i + j) / a.channels] : 1.0f;
      absolute += fabsf(d) * share;
      square += d * d * share;
      g[j] = share * scales.of_difference(d);
    }
    if (a.grad) store_vec<kPack>(a.grad + i, g);
  }
  if (a.partial) store_partials(a, absolute, square, 0.0f);
}

__global__ void __launch_bounds__(kSumThreads)
    frame_loss_weight_kernel(const float* weight, int64_t rows, int height, int width, double* of_row) {
  const int64_t row = int64_t(blockIdx.x) * kSumWarps + threadIdx.x / 32;
  const int lane = int(threadIdx.x) % 32, margin = kSsimReach / 2;
  if (row >= rows) return;  // whole warps
  double all = 0, centres = 0;
  for (int x = lane; x < width; x += 32) {
    const double w = weight[row * width + x];
    all += w;
    if (x >= margin && x < width - margin) centres += w;
  }
  all = warp_sum(all);
  centres = warp_sum(centres);
  const int y = int(row % height);
  if (lane == 0) {
    of_row[2 * row] = all;
    of_row[2 * row + 1] = y >= margin && y < height - margin ? centres : 0.0;
  }
}

__global__ void __launch_bounds__(kSumThreads)
    frame_loss_total_kernel(const double* of_row, int64_t rows, double* totals) {
  __shared__ double scratch[2][32];
  double sum[2] = {};
  for (int64_t i = int64_t(threadIdx.x); i < rows; i += kSumThreads)
    for (int k = 0; k < 2; ++k) sum[k] += of_row[2 * i + k];
  for (int k = 0; k < 2; ++k) {
    const double total = block_sum(sum[k], scratch[k]);
    if (threadIdx.x == 0) totals[k] = total;
  }
}

__global__ void __launch_bounds__(kSumThreads) frame_loss_loss_kernel(Frames a, int64_t blocks, float* loss) {
  __shared__ double scratch[kPartials][32];
  double sum[kPartials] = {};
  for (int64_t i = int64_t(threadIdx.x); i < blocks; i += kSumThreads)
    for (int k = 0; k < kPartials; ++k) sum[k] += a.partial[i * kPartials + k];
  for (int k = 0; k < kPartials; ++k) sum[k] = block_sum(sum[k], scratch[k]);
  if (threadIdx.x != 0) return;
  // A term that is not asked for must not bring in its NaN or infinity.
  double total = 0;
  if (a.l1 != 0) total += a.l1 * sum[0] * pixel_share(a);
  if (a.l2 != 0) total += a.l2 * sum[1] * pixel_share(a);
  if (a.ssim != 0) total += a.ssim * sum[2] * window_share(a);
  *loss = float(total);
}

int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

/// How a call is cut into blocks.
struct Cut {
  int64_t group = 1, groups = 1, strip = 0, strips = 0, band = kMaxBand, bands = 0, blocks = 0;
  explicit Cut(const FrameLoss& a) {
    const int64_t numbers = a.pixels() * a.channels;
    if (numbers == 0) return;
    if (a.ssim == 0) {
      blocks = ceil_div(numbers, kPointNumbers);
      return;
    }
    groups = ceil_div(a.channels, 4);
    group = ceil_div(a.channels, groups);
    const int64_t most = kThreads - (a.grad ? lead(int(group)) : 0);
    strips = ceil_div(a.width * group, most);
    strip = ceil_div(ceil_div(a.width * group, strips), 32) * 32;  // whole sectors
    // A small picture is cut into shorter bands, so that it keeps a card busy.
    while (band > kMinBand && a.batch * groups * strips * ceil_div(a.height, band) < kEnoughBlocks) band /= 2;
    bands = ceil_div(a.height, band);
    blocks = a.batch * groups * strips * bands;
  }
};

template <int kGroup>
void launch_windows(const Frames& a, int64_t blocks, vk_stream_t stream) {
  if (a.grad)
    VK_LAUNCH((frame_loss_window_kernel<kGroup, true>), unsigned(blocks), kThreads, 0, stream, a);
  else
    VK_LAUNCH((frame_loss_window_kernel<kGroup, false>), unsigned(blocks), kThreads, 0, stream, a);
}

}  // namespace

int64_t frame_loss_scratch(const FrameLoss& a) {
  return 8 * (kPartials * Cut(a).blocks + (a.weight ? 2 + 2 * a.batch * a.height : 0));
}

void frame_loss_cuda(const FrameLoss& a, void* stream_pointer) {
  const auto stream = static_cast<vk_stream_t>(stream_pointer);
  const Cut cut(a);
  double* totals = static_cast<double*>(a.scratch);
  double* of_row = totals + 2;
  const int64_t rows = a.batch * a.height;
  Frames f{};
  f.image = a.image, f.target = a.target, f.weight = a.weight, f.grad_loss = a.grad_loss, f.grad = a.grad;
  f.totals = totals;
  f.partial = !a.loss ? nullptr : a.weight ? of_row + 2 * rows : static_cast<double*>(a.scratch);
  f.height = int(a.height), f.width = int(a.width), f.channels = int(a.channels);
  f.band = int(cut.band), f.bands = int(cut.bands), f.strip = int(cut.strip), f.strips = int(cut.strips);
  f.groups = int(cut.groups);
  f.pixels = double(a.pixels()), f.windows = a.ssim != 0 ? double(a.windows()) : 0.0;
  f.l1 = a.l1, f.l2 = a.l2, f.ssim = a.ssim;

  if (cut.blocks > 0) {
    if (a.weight) {
      VK_LAUNCH(frame_loss_weight_kernel, unsigned(ceil_div(rows, kSumWarps)), kSumThreads, 0, stream, a.weight, rows,
                f.height, f.width, of_row);
      VK_LAUNCH(frame_loss_total_kernel, 1, kSumThreads, 0, stream, of_row, rows, totals);
    }
    if (a.ssim == 0) {
      const int numbers = int(a.pixels() * a.channels);
      const uintptr_t alignment = uintptr_t(a.image) | uintptr_t(a.grad) | 4 * uintptr_t(a.target);
      if (numbers % 4 == 0 && alignment % 16 == 0)
        VK_LAUNCH((frame_loss_point_kernel<4>), unsigned(cut.blocks), kPointThreads, 0, stream, f, numbers);
      else
        VK_LAUNCH((frame_loss_point_kernel<1>), unsigned(cut.blocks), kPointThreads, 0, stream, f, numbers);
    } else {
      switch (cut.group) {
        case 1: launch_windows<1>(f, cut.blocks, stream); break;
        case 2: launch_windows<2>(f, cut.blocks, stream); break;
        case 3: launch_windows<3>(f, cut.blocks, stream); break;
        default: launch_windows<4>(f, cut.blocks, stream); break;
      }
    }
  }
  if (!a.loss) return;
  if (cut.blocks == 0) f.weight = nullptr;  // its total was not made
  VK_LAUNCH(frame_loss_loss_kernel, 1, kSumThreads, 0, stream, f, cut.blocks, a.loss);
}

}  // namespace vk
