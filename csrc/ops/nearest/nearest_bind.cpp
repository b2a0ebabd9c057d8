#include "core/bind.h"
#include "ops/nearest/nearest.h"

namespace vk {
namespace {

Nearest nearest_args(int device, const Tensor& points, const Tensor& codes, const Tensor& index, const Tensor& value,
                     const Tensor& scratch, int metric, int candidates, bool screen) {
  const Check check(
      "nearest", device,
      {{"points", &points}, {"codes", &codes}, {"index", &index}, {"value", &value}, {"scratch", &scratch}});
  check.ndim(points, 3, "[B, N, D]");
  check.dtype(points, {Dtype::f32, Dtype::f16, Dtype::bf16});
  check.shape(codes, {-1, -1, points.size(2)});
  check.dtype(codes, {points.dtype()});
  check.require(codes.size(0) == 1 || codes.size(0) == points.size(0),
                "expected `codes` of batch 1 or of the batch of `points`.");
  for (const Tensor* t : {&points, &codes})
    check.require(t->size(2) <= 1 || t->stride(2) == 1 || t->numel() == 0, "expected every row in one piece.",
                  "pass a contiguous tensor");
  check.shape(index, {points.size(0), points.size(1), -1});
  check.dtype(index, {Dtype::i64});
  check.shape(value, {points.size(0), points.size(1), index.size(2)});
  check.dtype(value, {Dtype::f32});
  check.output(index);
  check.output(value);
  const int64_t k = index.size(2);
  check.require(k >= 1 && k <= kNearestMost, "expected k between 1 and " + std::to_string(kNearestMost) + ".");
  check.require(metric >= 0 && metric <= 2 && candidates >= 0 && candidates <= 2, "unknown metric or candidates.");
  check.require(candidates == 0 || codes.size(1) == points.size(1), "these candidates need as many codes as points.");
  Nearest a{};
  a.points = points.data();
  a.codes = codes.data();
  a.index = index.ptr<int64_t>();
  a.value = value.ptr<float>();
  if (scratch.defined()) {
    check.output(scratch);
    a.scratch = scratch.data();
    a.scratch_bytes = scratch.span_bytes();
  }
  a.batch = points.size(0), a.count = points.size(1), a.dim = points.size(2);
  a.code_batch = codes.size(0), a.length = codes.size(1);
  a.point_batch_stride = points.stride(0), a.point_stride = points.stride(1);
  a.code_batch_stride = codes.stride(0), a.code_stride = codes.stride(1);
  a.k = int(k);
  a.metric = NearestMetric(metric);
  a.candidates = NearestCandidates(candidates);
  a.screen = screen ? NearestScreen::best : NearestScreen::none;
  a.element = element_of(points);
  return a;
}

#ifdef VK_BUILD_CPU
void nearest_on_cpu(const Tensor& points, const Tensor& codes, const Tensor& index, const Tensor& value,
                    const Tensor& scratch, int metric, int candidates, bool screen) {
  const Nearest a = nearest_args(kDLCPU, points, codes, index, value, scratch, metric, candidates, screen);
  VK_CPU_CALL(nearest, a);
}
#endif

#if defined(VK_GPU) && __has_include("ops/nearest/nearest_cuda.cu")
void nearest_on_gpu(const Tensor& points, const Tensor& codes, const Tensor& index, const Tensor& value,
                    const Tensor& scratch, int metric, int candidates, bool screen) {
  const Nearest a = nearest_args(kGpuDevice, points, codes, index, value, scratch, metric, candidates, screen);
  GpuLaunch launch("nearest", {{"points", &points, GpuLaunch::Buffer::in},
                               {"codes", &codes, GpuLaunch::Buffer::in},
                               {"index", &index, GpuLaunch::Buffer::out},
                               {"value", &value, GpuLaunch::Buffer::out},
                               {"scratch", &scratch, GpuLaunch::Buffer::inout}});
  nearest_cuda(a, launch.stream());
  launch.finish();
}
#endif

}  // namespace

void register_nearest(py::module_& m) {
#ifdef VK_BUILD_CPU
  m.def("nearest_cpu", &nearest_on_cpu);
#endif
#if defined(VK_GPU) && __has_include("ops/nearest/nearest_cuda.cu")
  m.def("nearest_cuda", &nearest_on_gpu);
#endif
}

}  // namespace vk
