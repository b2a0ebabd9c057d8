// One block per selection (sample b, group g).
//   1  fill       the scores of all candidates, four per Philox call, into shared memory
//   2  threshold  bisection on the 32-bit score: every thread counts its candidates up to `middle`, one block sum per
//                 step, until the count is exact or the interval is one score (then ties are cut by position)
//   3  emit       256 positions at a time: two ballots and eight warp totals give every thread the number of masked
//                 positions before its own, which is its place in one list or the other; written for every frame
// Fields too long for shared memory compute each score again where it is needed: slower, the same result.
#include "device/vk_device.cuh"
#include "device/vk_reduce.cuh"
#include "ops/token_mask/token_mask.h"

namespace vk {
namespace {

constexpr int kThreads = 256;
constexpr int kWarps = kThreads / 32;
constexpr int64_t kMaxStored = 24 * 1024;  // 96 KiB of scores: every architecture has that much

struct Rectangle {
  int32_t top, left, height, width;
};

/// The score of position p in this block's selection.
template <MaskKind kKind>
struct Field {
  const TokenMask& a;
  uint32_t sample, group, phase;
  PhiloxKey key;
  const Rectangle* rectangles;  // shared memory

  __device__ __forceinline__ uint32_t shape(uint32_t word, int32_t p) const {
    if (kKind == MaskKind::running_cell) {
      const uint32_t y = uint32_t(p) / uint32_t(a.width), x = uint32_t(p) % uint32_t(a.width);
      return ((running_cell_place(y, x, a.height, a.width) + group + phase) & 3) << 30 | word >> 2;
    }
    if (kKind == MaskKind::block) {
      const int32_t y = p / a.width, x = p % a.width;
      bool inside = false;
      for (int32_t j = 0; j < a.blocks; ++j) {
        const Rectangle r = rectangles[j];
        inside |= (uint32_t(y - r.top) < uint32_t(r.height)) & (uint32_t(x - r.left) < uint32_t(r.width));
      }
      return word >> 1 | (inside ? 0u : 0x80000000u);
    }
    return word;
  }
  __device__ __forceinline__ PhiloxWords words(int32_t call) const {
    return philox4x32(uint32_t(call), group, sample, kCells, key);
  }
  __device__ __forceinline__ uint32_t operator()(int32_t p) const {
    if (kKind == MaskKind::scores)
      return score_key(a.scores[(int64_t(sample) * a.groups + group) * a.length + p], a.largest);
    const PhiloxWords w = words(p / 4);
    return shape(p % 4 == 0 ? w.w0 : p % 4 == 1 ? w.w1 : p % 4 == 2 ? w.w2 : w.w3, p);
  }
};

__device__ __forceinline__ Rectangle rectangle(const TokenMask& a, uint32_t draw, uint32_t sample, PhiloxKey key) {
  const PhiloxWords w = philox4x32(draw, 0, sample, kSample, key);
  const uint32_t size = philox_below(w.w0, uint32_t(a.block_sizes));
  const int32_t h = a.sizes[2 * size], wide = a.sizes[2 * size + 1];
  const int32_t top = int32_t(philox_below(w.w1, uint32_t(a.height - h + 1)));
  const int32_t left = int32_t(philox_below(w.w2, uint32_t(a.width - wide + 1)));
  return {top, left, h, wide};
}

template <MaskKind kKind, bool kStored>
__global__ void __launch_bounds__(kThreads) token_mask_kernel(const TokenMask a) {
  VK_DYN_SHARED(uint32_t, stored);
  __shared__ Rectangle rectangles[kMaxBlocks];
  __shared__ int32_t totals[2][kWarps];  // two, so that one barrier per step is enough
  __shared__ uint32_t shared_phase;
  const int thread = int(threadIdx.x), lane = thread & 31, warp = thread >> 5;
  const int64_t sample = blockIdx.x / a.groups;
  const int32_t group = int32_t(blockIdx.x % a.groups), length = int32_t(a.length);
  const PhiloxKey key = kKind == MaskKind::scores ? PhiloxKey{0, 0} : philox_key(*a.seed);
  if (kKind == MaskKind::block)
    for (int32_t j = thread; j < a.blocks; j += kThreads) rectangles[j] = rectangle(a, j, uint32_t(sample), key);
  if (thread == 0)
    shared_phase = kKind == MaskKind::running_cell ? philox4x32(0, 0, uint32_t(sample), kSample, key).w0 : 0;
  __syncthreads();
  const Field<kKind> field{a, uint32_t(sample), uint32_t(group), shared_phase, key, rectangles};

  if (kStored) {
    if (kKind == MaskKind::scores) {
      for (int32_t p = thread; p < length; p += kThreads) stored[p] = field(p);
    } else {
      for (int32_t call = thread; call < (length + 3) / 4; call += kThreads) {
        const PhiloxWords w = field.words(call);
        const int32_t p = 4 * call;
        Vec<uint32_t, 4> four;
        four[0] = field.shape(w.w0, p);
        four[1] = field.shape(w.w1, p + 1);
        four[2] = field.shape(w.w2, p + 2);
        four[3] = field.shape(w.w3, p + 3);
        store_vec<4>(stored + p, four);
      }
    }
    __syncthreads();
  }
  const auto score = [&](int32_t p) { return kStored ? stored[p] : field(p); };
  int step = 0;
  const auto sum_over_block = [&](int32_t mine) {
    int32_t* to = totals[step++ & 1];
    mine = warp_sum(mine);
    if (lane == 0) to[warp] = mine;
    __syncthreads();
    int32_t sum = 0;
#pragma unroll
    for (int w = 0; w < kWarps; ++w) sum += to[w];
    return sum;
  };

  int32_t count = int32_t(a.high);
  if (a.counts) count = min(max(a.counts[sample], int32_t(a.low)), count);
  // Masked: scores below `low`, and the first `ties` of those equal to it.
  uint32_t low = 0, high = 0xffffffffu;
  int32_t below = 0;
  while (count > 0 && low < high) {
    const uint32_t middle = low + (high - low) / 2;
    int32_t mine = 0;
    for (int32_t p = thread; p < length; p += kThreads) mine += score(p) <= middle;
    const int32_t n = sum_over_block(mine);
    if (n == count) {
      low = high = middle + 1;  // middle < high, so this cannot wrap
      below = n;
    } else if (n < count) {
      low = middle + 1;
      below = n;
    } else {
      high = middle;
    }
  }
  const int32_t ties = count - below, rest = length - count;

  const int64_t times = a.groups * a.repeat, visible_width = times * (a.length - a.low), masked_width = times * a.high;
  int32_t *visible = a.visible + sample * visible_width, *masked = a.masked + sample * masked_width;
  int32_t less_before = 0, ties_before = 0;  // in earlier chunks
  for (int32_t base = 0; base < length; base += kThreads) {
    const int32_t p = base + thread;
    const bool inside = p < length;
    const uint32_t s = inside ? score(p) : 0;
    const bool less = inside && s < low, tie = inside && s == low && ties > 0;
    const uint32_t lesser = __ballot_sync(0xffffffffu, less), equal = __ballot_sync(0xffffffffu, tie);
    int32_t* to = totals[step++ & 1];
    if (lane == 0) to[warp] = __popc(lesser) | __popc(equal) << 16;
    __syncthreads();
    int32_t before = 0, all = 0;
#pragma unroll
    for (int w = 0; w < kWarps; ++w) {
      const int32_t n = to[w];
      before += w < warp ? n : 0;
      all += n;
    }
    const uint32_t lower_lanes = (1u << lane) - 1;
    const int32_t my_less = less_before + (before & 0xffff) + __popc(lesser & lower_lanes);
    const int32_t my_ties = ties_before + (before >> 16) + __popc(equal & lower_lanes);
    const bool hide = less || (tie && my_ties < ties);
    const int32_t hidden = my_less + min(my_ties, ties);
    less_before += all & 0xffff;
    ties_before += all >> 16;
    if (inside) {
      int32_t* target =
          hide ? masked + group * int64_t(count) + hidden : visible + group * int64_t(rest) + (p - hidden);
      const int32_t pitch = hide ? count : rest;
      for (int32_t r = 0; r < int32_t(a.repeat); ++r) target[int64_t(r) * pitch] = (group + r) * length + p;
    }
  }
  if (group == 0) {
    for (int64_t i = times * rest + thread; i < visible_width; i += kThreads) visible[i] = -1;
    for (int64_t i = times * count + thread; i < masked_width; i += kThreads) masked[i] = -1;
  }
}

template <MaskKind kKind>
void launch(const TokenMask& a, vk_stream_t stream) {
  const dim3 grid(unsigned(a.batch * a.groups));
  if (a.length <= kMaxStored)
    VK_LAUNCH((token_mask_kernel<kKind, true>), grid, kThreads, size_t((a.length + 3) / 4 * 16), stream, a);
  else
    VK_LAUNCH((token_mask_kernel<kKind, false>), grid, kThreads, 0, stream, a);
}

}  // namespace

void token_mask_cuda(const TokenMask& a, void* stream_pointer) {
  const auto stream = static_cast<vk_stream_t>(stream_pointer);
  if (a.batch == 0) return;
  switch (a.kind) {
    case MaskKind::tube:
    case MaskKind::random: return launch<MaskKind::random>(a, stream);
    case MaskKind::running_cell: return launch<MaskKind::running_cell>(a, stream);
    case MaskKind::block: return launch<MaskKind::block>(a, stream);
    case MaskKind::scores: return launch<MaskKind::scores>(a, stream);
  }
}

}  // namespace vk
