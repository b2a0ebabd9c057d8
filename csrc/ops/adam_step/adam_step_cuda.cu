// Who owns what: a thread owns kPack numbers; every array is read and written once, in whole sectors.
// Of many tensors, up to kTable travel with the arguments of a launch; a block finds its own by counting blocks.
// With `visible`, a pack without a visible number ends after its mask, and a mixed one keeps what does not move.
#include "device/vk_device.cuh"
#include "ops/adam_step/adam_step.h"

namespace vk {
namespace {

constexpr int kThreads = 256;

struct SquareRoot {
  __device__ __forceinline__ float operator()(float x) const { return sqrtf(x); }
};

template <int kPack>
__global__ void __launch_bounds__(kThreads) adam_step_kernel(AdamStep a, AdamFactors factors, unsigned packs) {
  const unsigned pack = blockIdx.x * kThreads + threadIdx.x;
  if (pack >= packs) return;
  const unsigned i = pack * kPack;
  bool moves[kPack], any = false;
  unsigned row = a.visible ? i / unsigned(a.width) : 0, column = i - row * unsigned(a.width);
  bool visible = !a.visible || a.visible[row] != 0;
#pragma unroll
  for (int k = 0; k < kPack; ++k) {
    moves[k] = visible;
    any |= visible;
    if (a.visible && k + 1 < kPack && ++column == unsigned(a.width)) {
      column = 0;
      visible = a.visible[++row] != 0;
    }
  }
  if (!any) return;
  Vec<float, kPack> p = load_vec<kPack>(a.param + i), m = load_vec<kPack>(a.mean + i);
  Vec<float, kPack> v = load_vec<kPack>(a.variance + i);
  const Vec<float, kPack> g = load_vec<kPack>(a.grad + i);
#pragma unroll
  for (int k = 0; k < kPack; ++k) {
    float next_p = p[k], next_m = m[k], next_v = v[k];
    factors.move(next_p, g[k], next_m, next_v, SquareRoot());
    if (moves[k]) p[k] = next_p, m[k] = next_m, v[k] = next_v;
  }
  store_vec<kPack>(a.param + i, p);
  store_vec<kPack>(a.mean + i, m);
  store_vec<kPack>(a.variance + i, v);
}

template <int kPack>
void launch(const AdamStep& a, vk_stream_t stream) {
  const int64_t packs = a.numbers() / kPack;
  VK_LAUNCH((adam_step_kernel<kPack>), unsigned((packs + kThreads - 1) / kThreads), kThreads, 0, stream, a,
            AdamFactors(a), unsigned(packs));
}

constexpr int kTable = 48;
constexpr int kPerBlock = 4 * kThreads;

struct Tensors {
  struct Row {
    float* param;
    const float* grad;
    float *mean, *variance;
    int64_t count;
  } rows[kTable];
  AdamFactors factors[kTable];
  int32_t first[kTable + 1];  // block
};

__global__ void __launch_bounds__(kThreads) adam_step_many_kernel(const __grid_constant__ Tensors all) {
  int which = 0;
  while (int(blockIdx.x) >= all.first[which + 1]) ++which;
  const Tensors::Row& row = all.rows[which];
  const AdamFactors& factors = all.factors[which];
  const int64_t begin = int64_t(int(blockIdx.x) - all.first[which]) * kPerBlock;
#pragma unroll
  for (int k = 0; k < kPerBlock / kThreads; ++k) {
    const int64_t i = begin + k * kThreads + threadIdx.x;
    if (i >= row.count) return;
    float p = row.param[i], m = row.mean[i], v = row.variance[i];
    factors.move(p, row.grad[i], m, v, SquareRoot());
    row.param[i] = p;
    row.mean[i] = m;
    row.variance[i] = v;
  }
}

}  // namespace

void adam_step_many_cuda(const AdamStepMany& a, void* stream_pointer) {
  const auto stream = static_cast<vk_stream_t>(stream_pointer);
  Tensors all{};
  int count = 0;
  for (int64_t k = 0; k < a.count; ++k) {
    const AdamStep& t = a.tensors[k];
    if (t.numbers() > 0) {
      all.rows[count] = {t.param, t.grad, t.mean, t.variance, t.numbers()};
      all.factors[count] = AdamFactors(t);
      all.first[count + 1] = all.first[count] + int32_t((t.numbers() + kPerBlock - 1) / kPerBlock);
      ++count;
    }
    if (count == kTable || (k + 1 == a.count && count > 0)) {
      VK_LAUNCH(adam_step_many_kernel, unsigned(all.first[count]), kThreads, 0, stream, all);
      count = 0;
    }
  }
}

void adam_step_cuda(const AdamStep& a, void* stream_pointer) {
  const auto stream = static_cast<vk_stream_t>(stream_pointer);
  if (a.numbers() == 0) return;
  const uintptr_t alignment =
      uintptr_t(a.param) | uintptr_t(a.grad) | uintptr_t(a.mean) | uintptr_t(a.variance) | 4 * uintptr_t(a.numbers());
  alignment % 16 == 0 ? launch<4>(a, stream) : launch<1>(a, stream);
}

}  // namespace vk
