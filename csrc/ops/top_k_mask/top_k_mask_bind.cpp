#include "core/bind.h"
#include "ops/top_k_mask/top_k_mask.h"

namespace vk {
namespace {

TopKMask arguments(int device, const Tensor& scores, const Tensor& mask, const Tensor& scratch, int64_t count) {
  const Check check("top_k_mask", device, {{"scores", &scores}, {"mask", &mask}, {"scratch", &scratch}});
  check.ndim(scores, 1, "[N]");
  check.dtype(scores, {Dtype::f32, Dtype::f16, Dtype::bf16});
  check.contiguous(scores);
  check.shape(mask, {scores.size(0)});
  check.dtype(mask, {Dtype::u8});
  check.output(mask);
  check.require(count >= 0 && count <= scores.size(0), "expected `count` from 0 to N.");
  check.require(scores.size(0) < int64_t(1) << 31, "more scores than 32 bits can count.");
  TopKMask a{scores.data(), mask.ptr<uint8_t>(), nullptr, scores.size(0), count, element_of(scores)};
  if (scratch.defined()) {
    check.shape(scratch, {a.scratch_size()});
    check.dtype(scratch, {Dtype::i32});
    check.output(scratch);
    a.scratch = scratch.ptr<uint32_t>();
  }
  return a;
}

#ifdef VK_BUILD_CPU
void mask_cpu(const Tensor& scores, const Tensor& mask, const Tensor& scratch, int64_t count) {
  VK_CPU_CALL(top_k_mask, arguments(kDLCPU, scores, mask, scratch, count));
}
#endif

#ifdef VK_GPU
void mask_cuda(const Tensor& scores, const Tensor& mask, const Tensor& scratch, int64_t count) {
  const TopKMask a = arguments(kGpuDevice, scores, mask, scratch, count);
  GpuLaunch launch("top_k_mask", {{"scores", &scores, GpuLaunch::Buffer::in},
                                  {"mask", &mask, GpuLaunch::Buffer::out},
                                  {"scratch", &scratch, GpuLaunch::Buffer::out}});
  if (!a.scratch && a.length > 0) throw py::value_error("top_k_mask: the CUDA kernel needs `scratch`.");
  top_k_mask_cuda(a, launch.stream());
  launch.finish();
}
#endif

}  // namespace

void register_top_k_mask(py::module_& m) {
#ifdef VK_BUILD_CPU
  m.def("top_k_mask_cpu", &mask_cpu);
#endif
#ifdef VK_GPU
  m.def("top_k_mask_cuda", &mask_cuda);
#endif
}

}  // namespace vk
