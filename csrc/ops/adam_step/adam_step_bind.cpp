#include <algorithm>
#include <optional>
#include <vector>

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

/// Views of the tensors of a step, and what the kernels make of them.
struct Many {
  std::vector<Tensor> tensors;  // param, grad, mean, variance; param, ...
  std::vector<AdamStep> steps;

  AdamStepMany all() const { return {steps.data(), int64_t(steps.size())}; }
};

void refuse_overlap(const Many& many) {
  struct Span {
    const char *begin, *end;
    bool written;
    bool operator<(const Span& other) const { return begin < other.begin; }
  };
  std::vector<Span> spans;
  for (size_t i = 0; i < many.tensors.size(); ++i) {
    const char* begin = many.tensors[i].ptr<char>();
    if (many.tensors[i].numel() > 0) spans.push_back({begin, begin + many.tensors[i].span_bytes(), i % 4 != 1});
  }
  std::sort(spans.begin(), spans.end());
  for (size_t i = 1; i < spans.size(); ++i)
    if (spans[i].begin < spans[i - 1].end && (spans[i].written || spans[i - 1].written))
      throw py::value_error("adam_step_many: a tensor that is changed overlaps another one in memory.");
}

/// Nothing if a tensor is not contiguous float32, or they lie on several devices.
std::optional<Many> gathered(int device, const py::list& params, const py::list& grads, const py::list& means,
                             const py::list& variances, const py::list& settings) {
  const size_t count = params.size();
  if (grads.size() != count || means.size() != count || variances.size() != count || settings.size() != count)
    throw py::value_error("adam_step_many: expected lists of one length.");
  Many many;
  many.tensors.reserve(4 * count);
  const Tensor none;
  for (size_t k = 0; k < count; ++k) {
    for (const py::list* list : {&params, &grads, &means, &variances}) {
      Tensor& t = many.tensors.emplace_back();
      t.load((*list)[k].ptr());
      const Tensor& first = many.tensors.front();
      if (t.dtype() != Dtype::f32 || !t.is_contiguous() || t.device_type() != first.device_type() ||
          t.device_id() != first.device_id())
        return std::nullopt;
    }
    const auto s = settings[k].cast<py::tuple>();
    if (s.size() != 7) throw py::value_error("adam_step_many: expected seven settings per tensor.");
    const Tensor* t = &many.tensors[4 * k];
    many.steps.push_back(arguments(device, t[0], t[1], t[2], t[3], none, s[0].cast<double>(), s[1].cast<double>(),
                                   s[2].cast<double>(), s[3].cast<double>(), s[4].cast<double>(), s[5].cast<bool>(),
                                   s[6].cast<int64_t>()));
  }
  refuse_overlap(many);
  return many;
}

#ifdef VK_BUILD_CPU
bool many_cpu(const py::list& params, const py::list& grads, const py::list& means, const py::list& variances,
              const py::list& settings) {
  const auto many = gathered(kDLCPU, params, grads, means, variances, settings);
  if (many) VK_CPU_CALL(adam_step_many, many->all());
  return many.has_value();
}
#endif

#ifdef VK_GPU
bool many_cuda(const py::list& params, const py::list& grads, const py::list& means, const py::list& variances,
               const py::list& settings) {
  const auto many = gathered(kGpuDevice, params, grads, means, variances, settings);
  if (!many) return false;
  using Buffer = GpuLaunch::Buffer;
  constexpr const char* names[] = {"param", "grad", "exp_avg", "exp_avg_sq"};
  std::vector<Buffer> buffers;
  for (size_t i = 0; i < many->tensors.size(); ++i)
    buffers.push_back({names[i % 4], &many->tensors[i], i % 4 == 1 ? Buffer::in : Buffer::inout});
  GpuLaunch launch("adam_step_many", buffers);
  adam_step_many_cuda(many->all(), launch.stream());
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
