// Kernels whose results and counters are known exactly: shuffles, votes, atomics, reductions, tensor-core tiles,
// asynchronous copies, access patterns.
#include "device/vk_async.cuh"
#include "device/vk_device.cuh"
#include "device/vk_mma.cuh"
#include "device/vk_reduce.cuh"
#include "simt/selftest.h"

namespace vk {
namespace {

constexpr int kThreads = 128;

// ---- access patterns: what a warp request costs
template <int Stride>
__global__ void copy_stride_kernel(const float* x, float* y) {
  const int i = blockIdx.x * blockDim.x + threadIdx.x;
  y[i] = x[i * Stride];
}

__global__ void copy_vec4_kernel(const float4* x, float4* y) {
  const int i = blockIdx.x * blockDim.x + threadIdx.x;
  float4 v = x[i];
  v.x += 1;
  y[i] = v;
}

template <class T>
__global__ void copy_vec_kernel(const T* x, T* y) {
  constexpr int N = kVecWidth<T>;
  const int i = (blockIdx.x * blockDim.x + threadIdx.x) * N;
  Vec<T, N> v = load_vec<N>(x + i);
  v[0] = v[N - 1];
  store_vec(y + i, v);
}

// Every thread reads the same 64 floats: many requests, few bytes.
__global__ void reread_kernel(const float* x, float* y) {
  const int i = blockIdx.x * blockDim.x + threadIdx.x;
  float sum = 0;
  for (int k = 0; k < 64; ++k) sum += x[k];
  y[i] = sum;
}

// A transpose through shared memory: rows of 32 + Pad floats.
template <int Pad>
__global__ void bank_kernel(const float* x, float* y) {
  __shared__ float tile[32][32 + Pad];
  const int t = threadIdx.x;
  for (int r = 0; r < 32; ++r) tile[r][t] = x[r * 32 + t];
  __syncwarp();
  for (int r = 0; r < 32; ++r) y[r * 32 + t] = tile[t][r];
}

// Odd lanes take another path, so lanes log different accesses.
__global__ void diverged_kernel(const float* x, float* y) {
  const int i = blockIdx.x * blockDim.x + threadIdx.x;
  float v = 0;
  if (i % 2)
    for (int k = 0; k < i % 4; ++k) v += x[i ^ k];
  y[i] = v;
}

// ---- synchronisation and collectives
__global__ void shuffle_kernel(const int* x, int* y) {
  const int t = threadIdx.x;
  const int v = x[t];
  y[0 * 32 + t] = __shfl_sync(0xffffffffu, v, (t * 7) % 32);
  y[1 * 32 + t] = __shfl_up_sync(0xffffffffu, v, 3);
  y[2 * 32 + t] = __shfl_down_sync(0xffffffffu, v, 5);
  y[3 * 32 + t] = __shfl_xor_sync(0xffffffffu, v, 9);
  y[4 * 32 + t] = __shfl_sync(0xffffffffu, v, 2, 8);
  y[5 * 32 + t] = __shfl_up_sync(0xffffffffu, v, 3, 8);
  y[6 * 32 + t] = __shfl_down_sync(0xffffffffu, v, 3, 8);
  y[7 * 32 + t] = __shfl_xor_sync(0xffffffffu, v, 3, 4);
  y[8 * 32 + t] = int(__shfl_sync(0xffffffffu, double(v), 31));
}

__global__ void vote_kernel(const int* x, int* y) {
  const int t = threadIdx.x;
  y[0 * 32 + t] = int(__ballot_sync(0xffffffffu, x[t] & 1));
  y[1 * 32 + t] = __any_sync(0xffffffffu, x[t] == 5) + 10 * __any_sync(0xffffffffu, x[t] < 0);
  y[2 * 32 + t] = __all_sync(0xffffffffu, x[t] >= 0) + 10 * __all_sync(0xffffffffu, x[t] == 5);
  int active = 0;
  if (t % 3 == 0) {
    const unsigned mask = __activemask();
    active = __popc(mask);
    active += 100 * __shfl_sync(mask, x[t], 3);
  }
  y[3 * 32 + t] = active;
}

__global__ void barrier_reduce_kernel(const int* x, int* y) {
  const int t = threadIdx.x;
  y[t] = __syncthreads_count(x[t] & 1) + 1000 * __syncthreads_or(x[t] == 5) + 10000 * __syncthreads_and(x[t] >= 0) +
         100000 * __syncthreads_and(x[t] & 1);
}

__global__ void atomic_kernel(const int* x, int* y) {
  __shared__ int sum;
  __shared__ unsigned seen;
  const int t = threadIdx.x, v = x[blockIdx.x * kThreads + t];
  if (t == 0) sum = 0, seen = 0;
  __syncthreads();
  atomicAdd(&sum, v);
  atomicOr(&seen, 1u << (v & 31));
  __syncthreads();
  if (t == 0) {
    atomicAdd(&y[0], sum);
    atomicOr(reinterpret_cast<unsigned*>(&y[1]), seen);
  }
  atomicMax(&y[2], v);
  atomicMin(&y[3], v);
  atomicAdd(reinterpret_cast<unsigned long long*>(&y[4]), (unsigned long long)(v));
  atomicAdd(reinterpret_cast<float*>(&y[6]), float(v));
  for (int old = y[7], assumed = old - 1; old != assumed;) {  // y[7] += 2, by hand
    assumed = old;
    old = atomicCAS(&y[7], assumed, assumed + 2);
  }
  if (v == 17) atomicExch(&y[8], v);
  atomicAnd(&y[9], ~(1 << (v & 7)));
  atomicXor(&y[10], v);
}

__global__ void reduce_kernel(const float* x, float* y) {
  __shared__ float scratch[32];
  const int t = threadIdx.x;
  const float v = x[blockIdx.x * kThreads + t];
  const float sum = block_sum(v, scratch);
  __syncthreads();
  const float high = block_max(v, -1e30f, scratch);
  __syncthreads();
  const float low = block_min(v, 1e30f, scratch);
  float* out = y + blockIdx.x * 4 * kThreads + 4 * t;
  out[0] = sum;
  out[1] = high;
  out[2] = low;
  out[3] = warp_scan(v) + 1000 * warp_sum<8>(1.0f);
}

// The order of the additions is the order in which blocks arrive: what a deterministic kernel may not do.
__global__ void racy_sum_kernel(const float* x, float* y) { atomicAdd(y, x[blockIdx.x * kThreads + threadIdx.x]); }

// Counts the positive elements into y[0], which the launcher clears first.
__global__ void count_kernel(const int* x, int* y) {
  if (x[blockIdx.x * kThreads + threadIdx.x] > 0) atomicAdd(y, 1);
}

// Sums each block in a fixed order, through a double-buffered asynchronous pipeline.
__global__ void pipeline_kernel(const float* x, float* y, int tiles) {
  __shared__ __align__(16) float buffer[2][4 * kThreads];
  __shared__ float scratch[32];
  const int t = threadIdx.x;
  const float* mine = x + size_t(blockIdx.x) * tiles * 4 * kThreads;
  cp_async16(&buffer[0][4 * t], mine + 4 * t);
  cp_commit();
  float sum = 0;
  for (int k = 0; k < tiles; ++k) {
    // Past the end the copy writes zeros and reads nothing.
    const bool more = k + 1 < tiles;
    cp_async16_zfill(&buffer[(k + 1) % 2][4 * t], more ? mine + (k + 1) * 4 * kThreads + 4 * t : mine, more);
    cp_commit();
    cp_wait<1>();
    __syncthreads();
    for (int i = 0; i < 4; ++i) sum += buffer[k % 2][(i * kThreads + t + 1) % (4 * kThreads)];
    __syncthreads();
  }
  sum = block_sum(sum, scratch);
  if (t == 0) y[blockIdx.x] = sum;
}

__global__ void dynamic_shared_kernel(const float* x, float* y, int n) {
  VK_DYN_SHARED(float, s);
  for (int i = threadIdx.x; i < n; i += blockDim.x) s[i] = x[i];
  __syncthreads();
  for (int i = threadIdx.x; i < n; i += blockDim.x) y[i] = s[n - 1 - i];
}

__global__ void index_kernel(const int*, int* y) {
  const int thread = threadIdx.x + blockDim.x * (threadIdx.y + blockDim.y * threadIdx.z);
  const int block = blockIdx.x + gridDim.x * (blockIdx.y + gridDim.y * blockIdx.z);
  y[block * int(blockDim.x * blockDim.y * blockDim.z) + thread] = int(threadIdx.x) + 10 * int(threadIdx.y) +
                                                                  100 * int(threadIdx.z) + 1000 * int(blockIdx.x) +
                                                                  10000 * int(blockIdx.y) + 100000 * int(blockIdx.z);
}

__constant__ int kTable[4] = {3, 1, 4, 1};

__global__ void intrinsics_kernel(const int* x, int* y) {
  const int a = x[0], b = x[1];
  int* out = y;
  if (threadIdx.x) return;
  *out++ = __popc(unsigned(a));
  *out++ = __ffs(a);
  *out++ = __clz(a);
  *out++ = int(__brev(unsigned(a)));
  *out++ = int(__byte_perm(unsigned(a), unsigned(b), 0x7a10u));
  *out++ = __dp4a(a, b, 7);
  *out++ = int(__dp4a(unsigned(a), unsigned(b), 7u));
  *out++ = int(__umulhi(unsigned(a), unsigned(b)));
  *out++ = __mulhi(a, b);
  *out++ = int(__funnelshift_l(unsigned(a), unsigned(b), 12));
  *out++ = __float_as_int(rsqrtf(__int2float_rn(16)));
  *out++ = min(a, b);
  *out++ = max(a, b);
  *out++ = kTable[b & 3];
  *out++ = __float2int_rn(2.5f);
  *out++ = int(__ldg(x + 1));
  *out++ = __float_as_int(fmaxf(__expf(0.0f), __logf(1.0f)));
}

// ---- tensor cores. One warp; A row-major 16 x K, B column-major (8 columns of K), C 16 x 8 after them in `x`.
template <int Kind>
__global__ void mma_kernel(const void* x, float* y) {
  const int l = threadIdx.x, g = l / 4, t = l % 4;
  uint32_t a[4], b[2];
  float d[4];
  const float* c_matrix;
  if constexpr (Kind == 2) {
    const auto* A = static_cast<const float*>(x);
    const float* B = A + 16 * 8;
    c_matrix = B + 8 * 8;
    for (int i = 0; i < 4; ++i) a[i] = to_tf32(A[(g + i % 2 * 8) * 8 + t + i / 2 * 4]);
    for (int i = 0; i < 2; ++i) b[i] = to_tf32(B[g * 8 + t + i * 4]);
  } else {
    const auto* A = static_cast<const uint32_t*>(x);
    const uint32_t* B = A + 16 * 8;
    c_matrix = reinterpret_cast<const float*>(B + 8 * 8);
    for (int i = 0; i < 4; ++i) a[i] = A[(g + i % 2 * 8) * 8 + t + i / 2 * 4];
    for (int i = 0; i < 2; ++i) b[i] = B[g * 8 + t + i * 4];
  }
  const float c[4] = {c_matrix[g * 8 + 2 * t], c_matrix[g * 8 + 2 * t + 1], c_matrix[(g + 8) * 8 + 2 * t],
                      c_matrix[(g + 8) * 8 + 2 * t + 1]};
  if constexpr (Kind == 0) mma_m16n8k16_bf16(d, a, b, c);
  if constexpr (Kind == 1) mma_m16n8k16_f16(d, a, b, c);
  if constexpr (Kind == 2) mma_m16n8k8_tf32(d, a, b, c);
  y[g * 8 + 2 * t] = d[0];
  y[g * 8 + 2 * t + 1] = d[1];
  y[(g + 8) * 8 + 2 * t] = d[2];
  y[(g + 8) * 8 + 2 * t + 1] = d[3];
}

// Bytes: A row-major 16 x 32 unsigned, B column-major (8 columns of 32) signed, C 16 x 8 after them.
__global__ void mma_bytes_kernel(const void* x, int32_t* y) {
  const int l = threadIdx.x, g = l / 4, t = l % 4;
  const auto* A = static_cast<const uint32_t*>(x);
  const uint32_t* B = A + 16 * 8;
  const int32_t* C = reinterpret_cast<const int32_t*>(B + 8 * 8);
  uint32_t a[4], b[2];
  int32_t d[4];
  for (int i = 0; i < 4; ++i) a[i] = A[(g + i % 2 * 8) * 8 + t + i / 2 * 4];
  for (int i = 0; i < 2; ++i) b[i] = B[g * 8 + t + i * 4];
  for (int i = 0; i < 4; ++i) d[i] = C[(g + i / 2 * 8) * 8 + 2 * t + i % 2];
  mma_m16n8k32_u8s8(d, a, b, d);
  for (int i = 0; i < 4; ++i) y[(g + i / 2 * 8) * 8 + 2 * t + i % 2] = d[i];
}

// The 16-bit product with fragments loaded by ldmatrix: A 16x16 row-major, B 16x8 row-major (hence transposed).
__global__ void ldmatrix_kernel(const uint16_t* x, float* y) {
  __shared__ __align__(16) uint16_t tile_a[16][16 + 8];  // padded: eight rows fall into different banks
  __shared__ __align__(16) uint16_t tile_b[16][8];
  const int l = threadIdx.x, g = l / 4, t = l % 4;
  for (int i = l; i < 16 * 16; i += 32) tile_a[i / 16][i % 16] = x[i];
  for (int i = l; i < 16 * 8; i += 32) tile_b[i / 8][i % 8] = x[16 * 16 + i];
  __syncwarp();
  uint32_t a[4], b[2];
  ldmatrix_x4(a, &tile_a[l % 16][l / 16 * 8]);
  ldmatrix_x2_trans(b, &tile_b[l % 16][0]);
  const float zero[4] = {0, 0, 0, 0};
  float d[4];
  mma_m16n8k16_f16(d, a, b, zero);
  y[g * 8 + 2 * t] = d[0];
  y[g * 8 + 2 * t + 1] = d[1];
  y[(g + 8) * 8 + 2 * t] = d[2];
  y[(g + 8) * 8 + 2 * t + 1] = d[3];
}

// Raw registers of ldmatrix_x4 (variant 0), x4_trans (1), x2 (2), x2_trans (3) over 32 rows of 8.
template <int Variant>
__global__ void ldmatrix_raw_kernel(const uint16_t* x, uint32_t* y) {
  __shared__ __align__(16) uint16_t rows[32][8];
  const int l = threadIdx.x;
  for (int i = 0; i < 8; ++i) rows[l][i] = x[l * 8 + i];
  __syncwarp();
  uint32_t four[4] = {0, 0, 0, 0}, two[2] = {0, 0};
  if constexpr (Variant == 0) ldmatrix_x4(four, rows[l]);
  if constexpr (Variant == 1) ldmatrix_x4_trans(four, rows[l]);
  if constexpr (Variant == 2) ldmatrix_x2(two, rows[l]);
  if constexpr (Variant == 3) ldmatrix_x2_trans(two, rows[l]);
  for (int i = 0; i < 4; ++i) y[l * 4 + i] = Variant < 2 ? four[i] : i < 2 ? two[i] : 0;
}

#define VK_RUN(name, kernel, grid, block, shared, X, Y, ...)                            \
  void run_##name(const void* px, void* py, int n, int variant, void* stream_pointer) { \
    const auto stream = static_cast<vk_stream_t>(stream_pointer);                       \
    (void)n, (void)variant;                                                             \
    VK_LAUNCH(kernel, grid, block, shared, stream, static_cast<const X*>(px),           \
              static_cast<Y*>(py) __VA_OPT__(, ) __VA_ARGS__);                          \
  }
VK_RUN(copy_stride1, copy_stride_kernel<1>, n / kThreads, kThreads, 0, float, float)
VK_RUN(copy_stride2, copy_stride_kernel<2>, n / 2 / kThreads, kThreads, 0, float, float)
VK_RUN(copy_stride4, copy_stride_kernel<4>, n / 4 / kThreads, kThreads, 0, float, float)
VK_RUN(copy_stride8, copy_stride_kernel<8>, n / 8 / kThreads, kThreads, 0, float, float)
VK_RUN(copy_vec4, copy_vec4_kernel, n / 4 / kThreads, kThreads, 0, float4, float4)
VK_RUN(copy_vec_f16, copy_vec_kernel<uint16_t>, n / 8 / kThreads, kThreads, 0, uint16_t, uint16_t)
VK_RUN(reread, reread_kernel, 4, kThreads, 0, float, float)
VK_RUN(bank_conflict, bank_kernel<0>, 1, 32, 0, float, float)
VK_RUN(bank_padded, bank_kernel<1>, 1, 32, 0, float, float)
VK_RUN(diverged, diverged_kernel, n / kThreads, kThreads, 0, float, float)
VK_RUN(shuffle, shuffle_kernel, 1, 32, 0, int, int)
VK_RUN(vote, vote_kernel, 1, 32, 0, int, int)
VK_RUN(barrier_reduce, barrier_reduce_kernel, 1, kThreads, 0, int, int)
VK_RUN(atomic, atomic_kernel, n / kThreads, kThreads, 0, int, int)
VK_RUN(reduce, reduce_kernel, n / kThreads, kThreads, 0, float, float)
VK_RUN(racy_sum, racy_sum_kernel, n / kThreads, kThreads, 0, float, float)
VK_RUN(pipeline, pipeline_kernel, n / (variant * 4 * kThreads), kThreads, 0, float, float, variant)
VK_RUN(dynamic_shared, dynamic_shared_kernel, 1, 96, size_t(n) * sizeof(float), float, float, n)
VK_RUN(index, index_kernel, dim3(3, 2, 2), dim3(5, 3, 2), 0, int, int)
VK_RUN(intrinsics, intrinsics_kernel, 1, 32, 0, int, int)
VK_RUN(mma_bf16, mma_kernel<0>, 1, 32, 0, void, float)
VK_RUN(mma_f16, mma_kernel<1>, 1, 32, 0, void, float)
VK_RUN(mma_tf32, mma_kernel<2>, 1, 32, 0, void, float)
VK_RUN(mma_bytes, mma_bytes_kernel, 1, 32, 0, void, int32_t)
VK_RUN(ldmatrix, ldmatrix_kernel, 1, 32, 0, uint16_t, float)
VK_RUN(ldmatrix_x4, ldmatrix_raw_kernel<0>, 1, 32, 0, uint16_t, uint32_t)
VK_RUN(ldmatrix_x4_trans, ldmatrix_raw_kernel<1>, 1, 32, 0, uint16_t, uint32_t)
VK_RUN(ldmatrix_x2, ldmatrix_raw_kernel<2>, 1, 32, 0, uint16_t, uint32_t)
VK_RUN(ldmatrix_x2_trans, ldmatrix_raw_kernel<3>, 1, 32, 0, uint16_t, uint32_t)
#undef VK_RUN

// variant 1 clears too much.
void run_count(const void* x, void* y, int n, int variant, void* stream_pointer) {
  const auto stream = static_cast<vk_stream_t>(stream_pointer);
  memset_async(y, 0, sizeof(int) * size_t(variant ? 2 : 1), stream);
  VK_LAUNCH(count_kernel, n / kThreads, kThreads, 0, stream, static_cast<const int*>(x), static_cast<int*>(y));
}

}  // namespace

#define VK_TEST(name) {#name, run_##name, false}
#define VK_TEST_INOUT(name) {#name, run_##name, true}
const SelfTest kSelfTestExact[] = {
    VK_TEST(copy_stride1),   VK_TEST(copy_stride2),      VK_TEST(copy_stride4),    VK_TEST(copy_stride8),
    VK_TEST(copy_vec4),      VK_TEST(copy_vec_f16),      VK_TEST(reread),          VK_TEST(bank_conflict),
    VK_TEST(bank_padded),    VK_TEST(diverged),          VK_TEST(shuffle),         VK_TEST(vote),
    VK_TEST(barrier_reduce), VK_TEST_INOUT(atomic),      VK_TEST(reduce),          VK_TEST(count),
    VK_TEST_INOUT(racy_sum), VK_TEST(pipeline),          VK_TEST(dynamic_shared),  VK_TEST(index),
    VK_TEST(intrinsics),     VK_TEST(mma_bf16),          VK_TEST(mma_f16),         VK_TEST(mma_tf32),
    VK_TEST(mma_bytes),      VK_TEST(ldmatrix),          VK_TEST(ldmatrix_x4),     VK_TEST(ldmatrix_x4_trans),
    VK_TEST(ldmatrix_x2),    VK_TEST(ldmatrix_x2_trans), {nullptr, nullptr, false}};
#undef VK_TEST
#undef VK_TEST_INOUT

}  // namespace vk
