// Who owns what (tile = 32 tokens; W = elements of a 16-byte access, or 1 where rows are odd)
//   forward   block (sample, tile): notes in shared memory which visible row lands on each token, then warp w writes
//   the
//             tokens w, w+8, ... of the tile; lanes side by side along D
//   backward  block (tile, 32 * W columns): warp w owns the same tokens, a lane W columns. For 32 samples at a time the
//             block notes the rows again, then every element of grad_out is read once and goes to the visible row or to
//             the mask token's sum, and to the position's sum, all in registers in ascending order of samples. The
//             eight warps' mask sums meet in shared memory and make one row of `partial` per tile;
//   finish    adds the rows of `partial`: warp w takes tiles w, w+8, ..., then the warps are added. No float atomics.
#include "device/vk_device.cuh"
#include "ops/scatter_tokens/scatter_tokens.h"

namespace vk {
namespace {

constexpr int kThreads = 256;
constexpr int kWarps = kThreads / 32;
constexpr int kTile = ScatterTokensBackward::kTile;
constexpr int kOwn = kTile / kWarps;  // tokens of a warp
constexpr int kSamples = 32;
constexpr int32_t kNone = 0x7fffffff;

template <class T>
using Wide = decltype(to_float(T{}));

template <class T>
__device__ __forceinline__ T narrow(Wide<T> value) {
  return from_float<T>(value);
}
template <>
__device__ __forceinline__ double narrow<double>(double value) {
  return value;
}

/// W elements in accesses of at most 16 bytes.
template <class T, int W>
struct Pack {
  static constexpr int kPiece = W < kVecWidth<T> ? W : kVecWidth<T>;
  Vec<T, kPiece> pieces[W / kPiece];
  __device__ __forceinline__ void load(const T* p) {
#pragma unroll
    for (int i = 0; i < W / kPiece; ++i) pieces[i] = load_vec<kPiece>(p + i * kPiece);
  }
  __device__ __forceinline__ void store(T* p) const {
#pragma unroll
    for (int i = 0; i < W / kPiece; ++i) store_vec<kPiece>(p + i * kPiece, pieces[i]);
  }
  __device__ __forceinline__ Wide<T> get(int i) const { return to_float(pieces[i / kPiece][i % kPiece]); }
  __device__ __forceinline__ void set(int i, Wide<T> value) { pieces[i / kPiece][i % kPiece] = narrow<T>(value); }
};

template <class T, class P, int W>
__global__ void __launch_bounds__(kThreads)
    scatter_tokens_forward_kernel(const T* __restrict__ visible, const int32_t* __restrict__ index,
                                  const P* __restrict__ mask_token, const P* __restrict__ position, T* __restrict__ out,
                                  int32_t batch, int32_t length, int32_t count, int32_t dim) {
  __shared__ int32_t source[kTile];
  const int lane = int(threadIdx.x) & 31, warp = int(threadIdx.x) >> 5;
  const int64_t b = blockIdx.x % uint32_t(batch);  // samples side by side share the tile's position in L2
  const int32_t n0 = int32_t(blockIdx.x / uint32_t(batch)) * kTile;
  if (threadIdx.x < kTile) source[threadIdx.x] = kNone;
  __syncthreads();
  for (int32_t k = int32_t(threadIdx.x); k < count; k += kThreads) {
    const int32_t n = index[b * count + k];
    if (n >= n0 && n - n0 < kTile) atomicMin(&source[n - n0], k);
  }
  __syncthreads();
  for (int32_t i = warp; i < kTile && n0 + i < length; i += kWarps) {
    const int32_t k = source[i];
    const T* row = visible + (b * count + (k == kNone ? 0 : k)) * dim;
    T* to = out + (b * length + n0 + i) * dim;
    for (int32_t d = lane * W; d < dim; d += 32 * W) {
      Wide<T> value[W];
      if (k == kNone) {
        Pack<P, W> token;
        token.load(mask_token + d);
#pragma unroll
        for (int j = 0; j < W; ++j) value[j] = token.get(j);
      } else {
        Pack<T, W> token;
        token.load(row + d);
#pragma unroll
        for (int j = 0; j < W; ++j) value[j] = token.get(j);
      }
      if (position) {
        Pack<P, W> add;
        add.load(position + int64_t(n0 + i) * dim + d);
#pragma unroll
        for (int j = 0; j < W; ++j) value[j] += add.get(j);
      }
      Pack<T, W> result;
#pragma unroll
      for (int j = 0; j < W; ++j) result.set(j, value[j]);
      result.store(to + d);
    }
  }
}

template <class T, class P, int W>
__global__ void __launch_bounds__(kThreads, 3)  // 3: without it ptxas spills to fit one block more
    scatter_tokens_backward_kernel(const T* __restrict__ grad_out, const int32_t* __restrict__ index,
                                   T* __restrict__ grad_visible, P* __restrict__ grad_position,
                                   Wide<T>* __restrict__ partial, int32_t batch, int32_t length, int32_t count,
                                   int32_t dim) {
  __shared__ int32_t source[kSamples][kTile];
  __shared__ __align__(16) Wide<T> sums[kWarps][32 * W];
  const int thread = int(threadIdx.x), lane = thread & 31, warp = thread >> 5;
  const int32_t n0 = int32_t(blockIdx.x) * kTile, first = int32_t(blockIdx.y) * 32 * W, d = first + lane * W;
  Wide<T> masked[W] = {}, over_batch[kOwn][W] = {};
  for (int32_t b0 = 0; b0 < batch; b0 += kSamples) {
    const int32_t samples = min(kSamples, batch - b0);
    __syncthreads();
    for (int i = thread; i < kSamples * kTile; i += kThreads) source[i / kTile][i % kTile] = kNone;
    __syncthreads();
    const int32_t* rows = index + int64_t(b0) * count;
    for (int32_t e = thread; e < samples * count; e += kThreads) {
      const uint32_t n = uint32_t(rows[e] - n0);
      if (n < kTile) atomicMin(&source[e / count][n], e % count);
    }
    __syncthreads();
    // Rows that the forward pass left out have no effect: an index outside (the first tile's blocks look after
    // those), or all but the first of equal ones.
    for (int32_t e = thread; e < samples * count; e += kThreads) {
      const uint32_t n = uint32_t(rows[e] - n0);
      const bool outside = n0 == 0 && n >= uint32_t(length);
      const bool later = n < kTile && source[e / count][n % kTile] != e % count;
      const int32_t end = outside || later ? min(dim, first + 32 * W) : 0;
      for (int32_t j = first; j < end; ++j) grad_visible[(int64_t(b0) * count + e) * dim + j] = narrow<T>(0);
    }
    if (d < dim) {
#pragma unroll
      for (int i = 0; i < kOwn; ++i) {
        const int32_t n = n0 + warp + i * kWarps;
        const int32_t end = n < length ? samples : 0;
#pragma unroll 2
        for (int32_t b = 0; b < end; ++b) {
          const int32_t k = source[b][n - n0];
          Pack<T, W> grad;
          grad.load(grad_out + (int64_t(b0 + b) * length + n) * dim + d);
          if (k != kNone) grad.store(grad_visible + (int64_t(b0 + b) * count + k) * dim + d);
#pragma unroll
          for (int j = 0; j < W; ++j) {
            const Wide<T> g = grad.get(j);
            over_batch[i][j] += g;
            masked[j] += k == kNone ? g : Wide<T>(0);
          }
        }
      }
    }
  }
  if (grad_position && d < dim) {
#pragma unroll
    for (int i = 0; i < kOwn; ++i) {
      const int32_t n = n0 + warp + i * kWarps;
      if (n >= length) break;
      Pack<P, W> result;
#pragma unroll
      for (int j = 0; j < W; ++j) result.set(j, over_batch[i][j]);
      result.store(grad_position + int64_t(n) * dim + d);
    }
  }
  Pack<Wide<T>, W> mine;
#pragma unroll
  for (int j = 0; j < W; ++j) mine.set(j, masked[j]);
  // Two 16-byte stores a lane would meet in the banks: every other four lanes swap their pieces.
  const auto slot = [](int column) { return sizeof(mine) > 16 ? column ^ (column >> 3 & 4) : column; };
  constexpr int kPiece = Pack<Wide<T>, W>::kPiece;
#pragma unroll
  for (int i = 0; i < W / kPiece; ++i) store_vec<kPiece>(&sums[warp][slot(lane * W + i * kPiece)], mine.pieces[i]);
  __syncthreads();
  if (thread < 32 * W && first + thread < dim) {
    Wide<T> sum = 0;
#pragma unroll
    for (int w = 0; w < kWarps; ++w) sum += sums[w][slot(thread)];
    partial[int64_t(blockIdx.x) * dim + first + thread] = sum;
  }
}

template <class S, class P>
__global__ void __launch_bounds__(kThreads)
    scatter_tokens_finish_kernel(const S* __restrict__ partial, P* __restrict__ grad_mask_token, int32_t tiles,
                                 int32_t dim) {
  __shared__ S sums[kWarps][32];
  const int lane = int(threadIdx.x) & 31, warp = int(threadIdx.x) >> 5;
  const int32_t d = int32_t(blockIdx.x) * 32 + lane;
  S sum = 0;
  if (d < dim)
    for (int32_t t = warp; t < tiles; t += kWarps) sum += partial[int64_t(t) * dim + d];
  sums[warp][lane] = sum;
  __syncthreads();
  if (warp == 0 && d < dim) {
    S total = 0;
#pragma unroll
    for (int w = 0; w < kWarps; ++w) total += sums[w][lane];
    grad_mask_token[d] = narrow<P>(total);
  }
}

bool aligned(std::initializer_list<const void*> pointers) {
  uintptr_t bits = 0;
  for (const void* p : pointers) bits |= uintptr_t(p);
  return bits % 16 == 0;
}

template <class T, class P, int W>
void launch_forward(const ScatterTokens& a, vk_stream_t stream) {
  const int64_t tiles = (a.length + kTile - 1) / kTile;
  VK_LAUNCH((scatter_tokens_forward_kernel<T, P, W>), unsigned(tiles * a.batch), kThreads, 0, stream,
            static_cast<const T*>(a.visible), a.index, static_cast<const P*>(a.mask_token),
            static_cast<const P*>(a.position), static_cast<T*>(a.out), int32_t(a.batch), int32_t(a.length),
            int32_t(a.count), int32_t(a.dim));
}

template <class T, class P>
void forward(const ScatterTokens& a, vk_stream_t stream) {
  if (a.dim % kVecWidth<T> == 0 && aligned({a.visible, a.mask_token, a.position, a.out}))
    launch_forward<T, P, kVecWidth<T>>(a, stream);
  else
    launch_forward<T, P, 1>(a, stream);
}

template <class T, class P, int W>
void launch_backward(const ScatterTokensBackward& a, vk_stream_t stream) {
  using S = Wide<T>;
  if (a.tiles() > 0)
    VK_LAUNCH((scatter_tokens_backward_kernel<T, P, W>),
              dim3(unsigned(a.tiles()), unsigned((a.dim + 32 * W - 1) / (32 * W))), kThreads, 0, stream,
              static_cast<const T*>(a.grad_out), a.index, static_cast<T*>(a.grad_visible),
              static_cast<P*>(a.grad_position), static_cast<S*>(a.partial), int32_t(a.batch), int32_t(a.length),
              int32_t(a.count), int32_t(a.dim));
  VK_LAUNCH((scatter_tokens_finish_kernel<S, P>), unsigned((a.dim + 31) / 32), kThreads, 0, stream,
            static_cast<const S*>(a.partial), static_cast<P*>(a.grad_mask_token), int32_t(a.tiles()), int32_t(a.dim));
}

template <class T, class P>
void backward(const ScatterTokensBackward& a, vk_stream_t stream) {
  if (a.dim % kVecWidth<T> == 0 && aligned({a.grad_out, a.grad_visible, a.grad_position}))
    launch_backward<T, P, kVecWidth<T>>(a, stream);
  else
    launch_backward<T, P, 1>(a, stream);
}

}  // namespace

void scatter_tokens_cuda(const ScatterTokens& a, void* stream_pointer) {
  const auto stream = static_cast<vk_stream_t>(stream_pointer);
  if (a.batch * a.length * a.dim == 0) return;
  const bool wide = a.parameter == Element::f32;
  switch (a.element) {
    case Element::f32: return forward<float, float>(a, stream);
    case Element::f64: return forward<double, double>(a, stream);
    case Element::f16: return wide ? forward<f16, float>(a, stream) : forward<f16, f16>(a, stream);
    case Element::bf16: return wide ? forward<bf16, float>(a, stream) : forward<bf16, bf16>(a, stream);
  }
}

void scatter_tokens_backward_cuda(const ScatterTokensBackward& a, void* stream_pointer) {
  const auto stream = static_cast<vk_stream_t>(stream_pointer);
  if (a.dim == 0) return;
  const bool wide = a.parameter == Element::f32;
  switch (a.element) {
    case Element::f32: return backward<float, float>(a, stream);
    case Element::f64: return backward<double, double>(a, stream);
    case Element::f16: return wide ? backward<f16, float>(a, stream) : backward<f16, f16>(a, stream);
    case Element::bf16: return wide ? backward<bf16, float>(a, stream) : backward<bf16, bf16>(a, stream);
  }
}

}  // namespace vk
