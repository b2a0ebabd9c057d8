#include <pybind11/stl.h>

#include <algorithm>
#include <vector>

#include "core/bind.h"
#include "ops/splat_fit/splat_fit.h"

namespace vk {
namespace {

#ifdef VK_BUILD_CPU
void fit_cpu(const Tensor& current, const Tensor& previous, const Tensor& mean, const Tensor& variance,
             const Tensor& frames, const Tensor& alpha, const Tensor& order, const Tensor& pace, const Tensor& error,
             const std::vector<double>& rate, const std::vector<double>& quantum, const std::vector<double>& shrink,
             double least, double beta1, double beta2, int64_t mean_steps, int64_t variance_steps) {
  const Check check("splat_fit", kDLCPU,
                    {{"current", &current},
                     {"previous", &previous},
                     {"mean", &mean},
                     {"variance", &variance},
                     {"frames", &frames},
                     {"alpha", &alpha},
                     {"order", &order},
                     {"pace", &pace},
                     {"error", &error}});
  check.ndim(current, 2, "[N, 8]");
  const int64_t count = current.size(0);
  for (const Tensor* t : {&current, &previous, &mean, &variance}) {
    if (!t->defined()) continue;
    check.shape(*t, {count, kFitAttributes});
    check.dtype(*t, {Dtype::f32});
    check.contiguous(*t);
  }
  for (const Tensor* t : {&current, &mean, &variance, &error}) check.output(*t);
  check.ndim(frames, 4, "[F, H, W, 3]");
  check.shape(frames, {-1, -1, -1, 3});
  check.dtype(frames, {Dtype::u8});
  check.shape(alpha, {frames.size(0)});
  check.dtype(alpha, {Dtype::f32});
  check.ndim(order, 1, "[S]");
  check.dtype(order, {Dtype::i32});
  check.shape(pace, {order.size(0)});
  check.dtype(pace, {Dtype::f32});
  check.shape(error, {order.size(0)});
  check.dtype(error, {Dtype::f64});
  for (const Tensor* t : {&frames, &alpha, &order, &pace}) check.contiguous(*t);
  check.require(rate.size() == kFitAttributes && quantum.size() == kFitAttributes && shrink.size() == kFitAttributes,
                "expected 8 rates, quanta and shrinkages.");
  check.require(count < (int64_t(1) << 31) && frames.size(1) < (1 << 20) && frames.size(2) < (1 << 20),
                "at most 2^31 - 1 Gaussians and 2^20 pixels along a side.");
  for (int64_t s = 0; s < order.size(0); ++s)
    check.require(uint32_t(order.ptr<int32_t>()[s]) < uint64_t(frames.size(0)),
                  "`order` names a frame that is not there.");
  SplatFit a{};
  a.current = current.ptr<float>();
  a.previous = previous.defined() ? previous.ptr<float>() : nullptr;
  a.mean = mean.ptr<float>();
  a.variance = variance.ptr<float>();
  a.frames = frames.ptr<uint8_t>();
  a.alpha = alpha.ptr<float>();
  a.order = order.ptr<int32_t>();
  a.pace = pace.ptr<float>();
  a.error = error.ptr<double>();
  for (int k = 0; k < kFitAttributes; ++k) {
    a.rate[k] = float(rate[size_t(k)]);
    a.quantum[k] = float(quantum[size_t(k)]);
    a.shrink[k] = float(shrink[size_t(k)]);
  }
  a.least = float(least);
  a.beta1 = float(beta1);
  a.beta2 = float(beta2);
  a.count = count;
  a.frame_count = frames.size(0);
  a.height = frames.size(1);
  a.width = frames.size(2);
  a.steps = order.size(0);
  a.mean_steps = mean_steps;
  a.variance_steps = variance_steps;
  const py::gil_scoped_release release;
  VK_CPU_CALL(splat_fit, a);
}
#endif

}  // namespace

void register_splat_fit([[maybe_unused]] py::module_& m) {
#ifdef VK_BUILD_CPU
  m.def("splat_fit_cpu", &fit_cpu);
#endif
}

}  // namespace vk
