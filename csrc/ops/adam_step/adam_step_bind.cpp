#include "core/bind.h"
#include "ops/adam_step/adam_step.h"

namespace vk {
namespace {

AdamStep arguments(int device, const Tensor& param, const Tensor& grad, const Tensor& exp_avg, const Tensor& exp_avg_sq,
                   const Tensor& visible, double lr, double beta1, double beta2, double eps, double weight_decay,
                   bool decoupled, int64_t step) {
  const Check check(
      "adam_step", device,
      {{"param", &param}, {"grad", &grad}, {"exp_avg", &exp_avg}, {"exp_avg_sq", &exp_avg_sq}, {"visible", &visible}});
  for (const Tensor* t : {&param, &grad, &exp_avg, &exp_avg_sq}) {
    check.dtype(*t, {Dtype::f32});
    check.contiguous(*t);
    check.require(t->numel() == param.numel(), "expected arrays of one size.");
  }
  for (const Tensor* t : {&param, &exp_avg, &exp_avg_sq}) check.output(*t);
  check.require(step >= 1, "`step` counts from 1.");
  AdamStep a{};
  a.param = param.ptr<float>();
  a.grad = grad.ptr<float>();
  a.mean = exp_avg.ptr<float>();
  a.variance = exp_avg_sq.ptr<float>();
  a.rows = 1;
  a.width = param.numel();
  if (visible.defined()) {
    check.require(param.ndim() > 0, "`visible` needs a `param` with rows.");
    check.shape(visible, {param.size(0)});
    check.dtype(visible, {Dtype::boolean});
    check.contiguous(visible);
    a.visible = visible.ptr<uint8_t>();
    a.rows = param.size(0);
    a.width = a.rows > 0 ? param.numel() / a.rows : 0;
  }
  a.lr = lr, a.beta1 = beta1, a.beta2 = beta2, a.eps = eps, a.decay = weight_decay;
  a.decoupled = decoupled;
  a.step = step;
  return a;
}

#ifdef VK_BUILD_CPU
void step_cpu(const Tensor& param, const Tensor& grad, const Tensor& exp_avg, const Tensor& exp_avg_sq,
              const Tensor& visible, double lr, double beta1, double beta2, double eps, double weight_decay,
              bool decoupled, int64_t step) {
  const AdamStep a = arguments(kDLCPU, param, grad, exp_avg, exp_avg_sq, visible, lr, beta1, beta2, eps, weight_decay,
                               decoupled, step);
  VK_CPU_CALL(adam_step, a);
}
#endif

#ifdef VK_GPU
void step_cuda(const Tensor& param, const Tensor& grad, const Tensor& exp_avg, const Tensor& exp_avg_sq,
               const Tensor& visible, double lr, double beta1, double beta2, double eps, double weight_decay,
               bool decoupled, int64_t step) {
  const AdamStep a = arguments(kGpuDevice, param, grad, exp_avg, exp_avg_sq, visible, lr, beta1, beta2, eps,
                               weight_decay, decoupled, step);
  if (a.numbers() >= int64_t(1) << 31) throw py::value_error("adam_step: too many numbers for one launch.");
  using Buffer = GpuLaunch::Buffer;
  GpuLaunch launch("adam_step", {{"param", &param, Buffer::inout},
                                 {"grad", &grad, Buffer::in},
                                 {"exp_avg", &exp_avg, Buffer::inout},
                                 {"exp_avg_sq", &exp_avg_sq, Buffer::inout},
                                 {"visible", &visible, Buffer::in}});
  adam_step_cuda(a, launch.stream());
  launch.finish();
}
#endif

}  // namespace

void register_adam_step(py::module_& m) {
#ifdef VK_BUILD_CPU
  m.def("adam_step_cpu", &step_cpu);
#endif
#ifdef VK_GPU
  m.def("adam_step_cuda", &step_cuda);
#endif
}

}  // namespace vk
