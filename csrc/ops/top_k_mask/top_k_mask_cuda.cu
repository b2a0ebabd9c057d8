// Who owns what: a block the kMaskChunk scores of its chunk, in every kernel; of them a warp 512 in a row.
//
//   digit d  every block finds, from the histogram of the digit before, the bin that holds the last score to be taken
//            (block 0 notes it: prefix and rank inside), then adds its scores with that prefix to the next histogram
//   ties     the same for the last digit, then each block counts its scores that equal the threshold
//   write    a block adds up the ties before it, a warp those before it: of equal scores the first ones are marked
//
// Histograms are sums of integers: atomics on them give the same bits in any order.
#include "device/vk_device.cuh"
#include "device/vk_reduce.cuh"
#include "ops/top_k_mask/top_k_mask.h"

namespace vk {
namespace {

constexpr int kThreads = 256;
constexpr int kWarps = kThreads / 32;
constexpr int kOfWarp = kMaskChunk / kWarps;
static_assert(kMaskBins == kThreads, "a thread owns a bin");

/// The scratch as histograms [4][256], then {prefix, rank} before each digit and after the last, then ties [chunks].
struct Room {
  uint32_t *histograms, *states, *ties;
  explicit __device__ Room(uint32_t* scratch)
      : histograms(scratch), states(scratch + kMaskDigits * kMaskBins), ties(states + 2 * (kMaskDigits + 1)) {}
};

/// The keys' first `digit` digits and the rank, among the keys that begin so, of the last one to be taken.
__device__ uint2 select_prefix(const Room& room, int digit, uint32_t count) {
  __shared__ uint32_t sums[kWarps];
  __shared__ uint32_t found[2];
  if (digit == 0) return {0, count};
  const int thread = int(threadIdx.x), warp = thread / 32, bin = kMaskBins - 1 - thread;
  const uint32_t prefix = digit > 1 ? room.states[2 * (digit - 1)] : 0;
  const uint32_t rank = digit > 1 ? room.states[2 * (digit - 1) + 1] : count;
  const uint32_t mine = room.histograms[(digit - 1) * kMaskBins + bin], upto = warp_scan(mine);
  if (thread % 32 == 31) sums[warp] = upto;
  __syncthreads();
  uint32_t before = upto - mine;
  for (int w = 0; w < warp; ++w) before += sums[w];
  if (before < rank && rank <= before + mine) {  // of one thread
    found[0] = prefix << 8 | uint32_t(bin);
    found[1] = rank - before;
  }
  __syncthreads();
  const uint2 state{found[0], found[1]};
  if (blockIdx.x == 0 && thread == 0) {
    room.states[2 * digit] = state.x;
    room.states[2 * digit + 1] = state.y;
  }
  return state;
}

template <class T>
__global__ void __launch_bounds__(kThreads) top_k_mask_digit_kernel(const T* __restrict__ scores, uint32_t* scratch,
                                                                    int64_t length, uint32_t count, int digit) {
  __shared__ uint32_t histogram[kMaskBins];
  const Room room(scratch);
  histogram[threadIdx.x] = 0;
  const uint2 state = select_prefix(room, digit, count);
  __syncthreads();
  const int shift = 8 * (kMaskDigits - 1 - digit);
  const int64_t begin = int64_t(blockIdx.x) * kMaskChunk;
  for (int i = int(threadIdx.x); i < kMaskChunk && begin + i < length; i += kThreads) {
    const uint32_t key = mask_key(to_float(scores[begin + i]));
    if (digit == 0 || key >> (shift + 8) == state.x) atomicAdd(&histogram[key >> shift & 255u], 1u);
  }
  __syncthreads();
  const uint32_t mine = histogram[threadIdx.x];
  if (mine) atomicAdd(&room.histograms[digit * kMaskBins + int(threadIdx.x)], mine);
}

template <class T>
__global__ void __launch_bounds__(kThreads)
    top_k_mask_ties_kernel(const T* __restrict__ scores, uint32_t* scratch, int64_t length, uint32_t count) {
  __shared__ int sums[32];
  const Room room(scratch);
  const uint2 state = select_prefix(room, kMaskDigits, count);
  const int64_t begin = int64_t(blockIdx.x) * kMaskChunk;
  int ties = 0;
  for (int i = int(threadIdx.x); i < kMaskChunk && begin + i < length; i += kThreads)
    ties += mask_key(to_float(scores[begin + i])) == state.x;
  ties = block_sum(ties, sums);
  if (threadIdx.x == 0) room.ties[blockIdx.x] = uint32_t(ties);
}

template <class T>
__global__ void __launch_bounds__(kThreads)
    top_k_mask_write_kernel(const T* __restrict__ scores, uint8_t* __restrict__ mask, uint32_t* scratch,
                            int64_t length) {
  __shared__ uint32_t sums[32];
  __shared__ uint32_t of_warp[kWarps];
  const Room room(scratch);
  const uint32_t threshold = room.states[2 * kMaskDigits], places = room.states[2 * kMaskDigits + 1];
  const int lane = int(threadIdx.x) & 31, warp = int(threadIdx.x) >> 5;
  uint32_t rank = 0;  // ties before
  for (unsigned b = threadIdx.x; b < blockIdx.x; b += kThreads) rank += room.ties[b];
  rank = block_sum(rank, sums);
  const int64_t begin = int64_t(blockIdx.x) * kMaskChunk + warp * kOfWarp;
  uint32_t mine = 0;
  for (int i = lane; i < kOfWarp && begin + i < length; i += 32)
    mine += mask_key(to_float(scores[begin + i])) == threshold;
  mine = warp_sum(mine);
  if (lane == 0) of_warp[warp] = mine;
  __syncthreads();
  for (int w = 0; w < warp; ++w) rank += of_warp[w];
  for (int i = lane; i - lane < kOfWarp; i += 32) {
    const bool inside = begin + i < length;
    const uint32_t key = inside ? mask_key(to_float(scores[begin + i])) : 0;
    const unsigned tied = __ballot_sync(0xffffffffu, inside && key == threshold);
    const uint32_t before = rank + uint32_t(__popc(tied & ((1u << lane) - 1)));
    if (inside) mask[begin + i] = key > threshold || (key == threshold && before < places);
    rank += uint32_t(__popc(tied));
  }
}

template <class T>
void launch(const TopKMask& a, vk_stream_t stream) {
  const T* scores = static_cast<const T*>(a.scores);
  const unsigned blocks = unsigned(a.chunks());
  const uint32_t count = uint32_t(a.count);
  memset_async(a.scratch, 0, kMaskDigits * kMaskBins * sizeof(uint32_t), stream);
  for (int digit = 0; digit < kMaskDigits; ++digit)
    VK_LAUNCH((top_k_mask_digit_kernel<T>), blocks, kThreads, 0, stream, scores, a.scratch, a.length, count, digit);
  VK_LAUNCH((top_k_mask_ties_kernel<T>), blocks, kThreads, 0, stream, scores, a.scratch, a.length, count);
  VK_LAUNCH((top_k_mask_write_kernel<T>), blocks, kThreads, 0, stream, scores, a.mask, a.scratch, a.length);
}

}  // namespace

void top_k_mask_cuda(const TopKMask& a, void* stream_pointer) {
  const auto stream = static_cast<vk_stream_t>(stream_pointer);
  if (a.length == 0) return;
  if (a.count <= 0 || a.count >= a.length) return memset_async(a.mask, a.count > 0, size_t(a.length), stream);
  switch (a.element) {
    case Element::f16: return launch<f16>(a, stream);
    case Element::bf16: return launch<bf16>(a, stream);
    default: return launch<float>(a, stream);
  }
}

}  // namespace vk
