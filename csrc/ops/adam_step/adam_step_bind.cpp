#include <vector>

#include "core/bind.h"
#include "core/tensor_lists.h"
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

enum Column { kParam, kGrad, kMean, kVariance };

std::vector<AdamStep> many_steps(const TensorLists& lists, const py::list& settings) {
  if (settings.size() != lists.rows()) throw py::value_error("adam_step_many: expected settings for every tensor.");
  lists.check_outputs(kGrad);
  std::vector<AdamStep> steps(lists.rows());
  for (size_t k = 0; k < steps.size(); ++k) {
    const auto s = settings[k].cast<py::tuple>();
    if (s.size() != 7) throw py::value_error("adam_step_many: expected seven settings per tensor.");
    AdamStep& a = steps[k];
    a.param = lists.at(k, kParam).ptr<float>();
    a.grad = lists.at(k, kGrad).ptr<float>();
    a.mean = lists.at(k, kMean).ptr<float>();
    a.variance = lists.at(k, kVariance).ptr<float>();
    a.rows = 1;
    a.width = lists.at(k, kParam).numel();
    a.lr = s[0].cast<double>(), a.beta1 = s[1].cast<double>(), a.beta2 = s[2].cast<double>();
    a.eps = s[3].cast<double>(), a.decay = s[4].cast<double>();
    a.decoupled = s[5].cast<bool>();
    a.step = s[6].cast<int64_t>();
    if (a.step < 1) throw py::value_error("adam_step_many: steps count from 1.");
  }
  return steps;
}

#ifdef VK_BUILD_CPU
bool many_cpu(const py::list& params, const py::list& grads, const py::list& means, const py::list& variances,
              const py::list& settings) {
  const auto lists = TensorLists::plain("adam_step_many", kDLCPU, {&params, &grads, &means, &variances});
  if (!lists) return false;
  const std::vector<AdamStep> steps = many_steps(*lists, settings);
  VK_CPU_CALL(adam_step_many, AdamStepMany{steps.data(), int64_t(steps.size())});
  return true;
}
#endif

#ifdef VK_GPU
bool many_cuda(const py::list& params, const py::list& grads, const py::list& means, const py::list& variances,
               const py::list& settings) {
  const auto lists = TensorLists::plain("adam_step_many", kGpuDevice, {&params, &grads, &means, &variances});
  if (!lists) return false;
  const std::vector<AdamStep> steps = many_steps(*lists, settings);
  using Buffer = GpuLaunch::Buffer;
  constexpr const char* names[] = {"param", "grad", "exp_avg", "exp_avg_sq"};
  std::vector<Buffer> buffers;
  for (size_t k = 0; k < lists->rows(); ++k)
    for (size_t c = 0; c < lists->columns(); ++c)
      buffers.push_back({names[c], &lists->at(k, c), c == kGrad ? Buffer::in : Buffer::inout});
  GpuLaunch launch("adam_step_many", buffers);
  adam_step_many_cuda({steps.data(), int64_t(steps.size())}, launch.stream());
  launch.finish();
  return true;
}
#endif

}  // namespace

void register_adam_step(py::module_& m) {
#ifdef VK_BUILD_CPU
  m.def("adam_step_cpu", &step_cpu);
  m.def("adam_step_many_cpu", &many_cpu);
#endif
#ifdef VK_GPU
  m.def("adam_step_cuda", &step_cuda);
  m.def("adam_step_many_cuda", &many_cuda);
#endif
}

}  // namespace vk
