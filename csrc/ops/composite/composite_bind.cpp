#include "core/bind.h"
#include "ops/composite/composite.h"

namespace vk {
namespace {

Composite forward_args(int device, const Tensor& values, const Tensor& alpha, const Tensor& out, const Tensor& weights,
                       const Tensor& transmittance) {
  const Check check("composite", device,
                    {{"values", &values},
                     {"alpha", &alpha},
                     {"out", &out},
                     {"weights", &weights},
                     {"transmittance", &transmittance}});
  check.ndim(values, 3, "[R, S, C]");
  check.dtype(values, {Dtype::f32, Dtype::f64});
  check.contiguous(values);
  const int64_t rays = values.size(0), samples = values.size(1), channels = values.size(2);
  check.shape(alpha, {rays, samples});
  check.contiguous(alpha);
  check.shape(out, {rays, channels});
  check.shape(weights, {rays, samples});
  check.shape(transmittance, {rays});
  for (const Tensor* t : {&alpha, &out, &weights, &transmittance}) check.dtype(*t, {values.dtype()});
  for (const Tensor* t : {&out, &weights, &transmittance}) check.output(*t);
  return {values.data(), alpha.data(), out.data(), weights.data(),    transmittance.data(),
          rays,          samples,      channels,   element_of(values)};
}

CompositeBackward backward_args(int device, const Tensor& grad_out, const Tensor& grad_weights,
                                const Tensor& grad_transmittance, const Tensor& values, const Tensor& alpha,
                                const Tensor& grad_values, const Tensor& grad_alpha) {
  const Check check("composite_backward", device,
                    {{"grad_out", &grad_out},
                     {"grad_weights", &grad_weights},
                     {"grad_transmittance", &grad_transmittance},
                     {"values", &values},
                     {"alpha", &alpha},
                     {"grad_values", &grad_values},
                     {"grad_alpha", &grad_alpha}});
  check.ndim(values, 3, "[R, S, C]");
  check.dtype(values, {Dtype::f32, Dtype::f64});
  check.contiguous(values);
  const int64_t rays = values.size(0), samples = values.size(1), channels = values.size(2);
  check.shape(alpha, {rays, samples});
  check.dtype(alpha, {values.dtype()});
  check.contiguous(alpha);
  if (grad_out.defined()) check.shape(grad_out, {rays, channels});
  if (grad_weights.defined()) check.shape(grad_weights, {rays, samples});
  if (grad_transmittance.defined()) check.shape(grad_transmittance, {rays});
  for (const Tensor* t : {&grad_out, &grad_weights, &grad_transmittance})
    if (t->defined()) {
      check.dtype(*t, {values.dtype()});
      check.contiguous(*t);
    }
  check.shape(grad_values, {rays, samples, channels});
  check.shape(grad_alpha, {rays, samples});
  for (const Tensor* t : {&grad_values, &grad_alpha}) {
    check.dtype(*t, {values.dtype()});
    check.output(*t);
  }
  const auto data = [](const Tensor& t) -> const void* { return t.defined() ? t.data() : nullptr; };
  return {data(grad_out), data(grad_weights), data(grad_transmittance), values.data(),
          alpha.data(),   grad_values.data(), grad_alpha.data(),        rays,
          samples,        channels,           element_of(values)};
}

#ifdef VK_BUILD_CPU
void forward_cpu(const Tensor& values, const Tensor& alpha, const Tensor& out, const Tensor& weights,
                 const Tensor& transmittance) {
  const Composite a = forward_args(kDLCPU, values, alpha, out, weights, transmittance);
  VK_CPU_CALL(composite, a);
}

void backward_cpu(const Tensor& grad_out, const Tensor& grad_weights, const Tensor& grad_transmittance,
                  const Tensor& values, const Tensor& alpha, const Tensor& grad_values, const Tensor& grad_alpha) {
  const CompositeBackward a =
      backward_args(kDLCPU, grad_out, grad_weights, grad_transmittance, values, alpha, grad_values, grad_alpha);
  VK_CPU_CALL(composite_backward, a);
}
#endif

#ifdef VK_GPU
void check_size(const char* op, int64_t rays) {
  if (rays >= int64_t(1) << 33) throw py::value_error(std::string(op) + ": too many rays for one launch.");
}

void forward_cuda(const Tensor& values, const Tensor& alpha, const Tensor& out, const Tensor& weights,
                  const Tensor& transmittance) {
  const Composite a = forward_args(kGpuDevice, values, alpha, out, weights, transmittance);
  check_size("composite", a.rays);
  GpuLaunch launch("composite", {{"values", &values, GpuLaunch::Buffer::in},
                                 {"alpha", &alpha, GpuLaunch::Buffer::in},
                                 {"out", &out, GpuLaunch::Buffer::out},
                                 {"weights", &weights, GpuLaunch::Buffer::out},
                                 {"transmittance", &transmittance, GpuLaunch::Buffer::out}});
  composite_cuda(a, launch.stream());
  launch.finish();
}

void backward_cuda(const Tensor& grad_out, const Tensor& grad_weights, const Tensor& grad_transmittance,
                   const Tensor& values, const Tensor& alpha, const Tensor& grad_values, const Tensor& grad_alpha) {
  const CompositeBackward a =
      backward_args(kGpuDevice, grad_out, grad_weights, grad_transmittance, values, alpha, grad_values, grad_alpha);
  check_size("composite_backward", a.rays);
  GpuLaunch launch("composite_backward", {{"values", &values, GpuLaunch::Buffer::in},
                                          {"alpha", &alpha, GpuLaunch::Buffer::in},
                                          {"grad_out", &grad_out, GpuLaunch::Buffer::in},
                                          {"grad_weights", &grad_weights, GpuLaunch::Buffer::in},
                                          {"grad_transmittance", &grad_transmittance, GpuLaunch::Buffer::in},
                                          {"grad_values", &grad_values, GpuLaunch::Buffer::out},
                                          {"grad_alpha", &grad_alpha, GpuLaunch::Buffer::out}});
  composite_backward_cuda(a, launch.stream());
  launch.finish();
}
#endif

}  // namespace

void register_composite(py::module_& m) {
#ifdef VK_BUILD_CPU
  m.def("composite_cpu", &forward_cpu);
  m.def("composite_backward_cpu", &backward_cpu);
#endif
#ifdef VK_GPU
  m.def("composite_cuda", &forward_cuda);
  m.def("composite_backward_cuda", &backward_cuda);
#endif
}

}  // namespace vk
