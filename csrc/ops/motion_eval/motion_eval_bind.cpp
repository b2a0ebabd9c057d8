#include "core/bind.h"
#include "ops/motion_eval/motion_eval.h"

namespace vk {
namespace {

void check_tables(const Check& check, const Tensor& coefficients, const Tensor& value, const Tensor& first) {
  check.ndim(coefficients, 3, "[N, K, D]");
  check.dtype(coefficients, {Dtype::f32, Dtype::f64});
  check.contiguous(coefficients);
  check.ndim(value, 2, "[T, width]");
  check.dtype(value, {coefficients.dtype()});
  check.contiguous(value);
  check.shape(first, {value.size(0)});
  check.dtype(first, {Dtype::i32});
  check.contiguous(first);
  const int64_t terms = coefficients.size(1), width = value.size(1);
  check.require(width == kMotionDense ? terms == width : width == kMotionSpline && terms >= width,
                "expected a table of 12 columns for 12 coefficients, or of 4 for 4 or more.");
}

/// The CPU kernel trusts the table that our own reference made; here it is looked at once.
void check_first(const Check& check, const Tensor& coefficients, const Tensor& value, const Tensor& first) {
  for (int64_t t = 0; t < first.size(0); ++t) {
    const int64_t k = first.ptr<int32_t>()[t];
    check.require(k >= 0 && k + value.size(1) <= coefficients.size(1), "`first` points outside the coefficients.");
  }
}

MotionEval forward_args(int device, const Tensor& coefficients, const Tensor& value, const Tensor& first,
                        const Tensor& out) {
  const Check check("motion_eval", device,
                    {{"coefficients", &coefficients}, {"value", &value}, {"first", &first}, {"out", &out}});
  check_tables(check, coefficients, value, first);
  if (device == kDLCPU) check_first(check, coefficients, value, first);
  const int64_t count = coefficients.size(0), dim = coefficients.size(2), moments = value.size(0);
  check.shape(out, {moments, count, dim});
  check.dtype(out, {coefficients.dtype()});
  check.output(out);
  return {coefficients.data(),
          value.data(),
          first.ptr<int32_t>(),
          out.data(),
          count,
          coefficients.size(1),
          dim,
          moments,
          value.size(1),
          element_of(coefficients)};
}

MotionEvalBackward backward_args(int device, const Tensor& grad_out, const Tensor& coefficients, const Tensor& value,
                                 const Tensor& slope, const Tensor& first, const Tensor& grad, const Tensor& grad_times,
                                 const Tensor& partial) {
  const Check check("motion_eval_backward", device,
                    {{"grad_out", &grad_out},
                     {"coefficients", &coefficients},
                     {"value", &value},
                     {"slope", &slope},
                     {"first", &first},
                     {"grad", &grad},
                     {"grad_times", &grad_times},
                     {"partial", &partial}});
  check_tables(check, coefficients, value, first);
  if (device == kDLCPU) check_first(check, coefficients, value, first);
  const int64_t count = coefficients.size(0), terms = coefficients.size(1), dim = coefficients.size(2);
  const int64_t moments = value.size(0);
  check.shape(slope, {moments, value.size(1)});
  check.shape(grad_out, {moments, count, dim});
  for (const Tensor* t : {&slope, &grad_out}) check.dtype(*t, {coefficients.dtype()}), check.contiguous(*t);
  check.shape(grad, {count, terms, dim});
  check.dtype(grad, {coefficients.dtype()});
  check.output(grad);
  if (grad_times.defined()) {
    check.shape(grad_times, {moments});
    check.dtype(grad_times, {coefficients.dtype()});
    check.output(grad_times);
    check.shape(partial, {(count + kMotionBlock - 1) / kMotionBlock, moments});
    check.dtype(partial, {Dtype::f64});
    check.output(partial);
  }
  return {grad_out.data(),
          coefficients.data(),
          value.data(),
          slope.data(),
          first.ptr<int32_t>(),
          grad.data(),
          grad_times.defined() ? grad_times.data() : nullptr,
          grad_times.defined() ? partial.ptr<double>() : nullptr,
          count,
          terms,
          dim,
          moments,
          value.size(1),
          element_of(coefficients)};
}

#ifdef VK_BUILD_CPU
void forward_cpu(const Tensor& coefficients, const Tensor& value, const Tensor& first, const Tensor& out) {
  const MotionEval a = forward_args(kDLCPU, coefficients, value, first, out);
  VK_CPU_CALL(motion_eval, a);
}

void backward_cpu(const Tensor& grad_out, const Tensor& coefficients, const Tensor& value, const Tensor& slope,
                  const Tensor& first, const Tensor& grad, const Tensor& grad_times, const Tensor& partial) {
  const MotionEvalBackward a =
      backward_args(kDLCPU, grad_out, coefficients, value, slope, first, grad, grad_times, partial);
  VK_CPU_CALL(motion_eval_backward, a);
}
#endif

#ifdef VK_GPU
void forward_cuda(const Tensor& coefficients, const Tensor& value, const Tensor& first, const Tensor& out) {
  const MotionEval a = forward_args(kGpuDevice, coefficients, value, first, out);
  GpuLaunch launch("motion_eval", {{"coefficients", &coefficients, GpuLaunch::Buffer::in},
                                   {"value", &value, GpuLaunch::Buffer::in},
                                   {"first", &first, GpuLaunch::Buffer::in},
                                   {"out", &out, GpuLaunch::Buffer::out}});
  motion_eval_cuda(a, launch.stream());
  launch.finish();
}

void backward_cuda(const Tensor& grad_out, const Tensor& coefficients, const Tensor& value, const Tensor& slope,
                   const Tensor& first, const Tensor& grad, const Tensor& grad_times, const Tensor& partial) {
  const MotionEvalBackward a =
      backward_args(kGpuDevice, grad_out, coefficients, value, slope, first, grad, grad_times, partial);
  GpuLaunch launch("motion_eval_backward", {{"grad_out", &grad_out, GpuLaunch::Buffer::in},
                                            {"coefficients", &coefficients, GpuLaunch::Buffer::in},
                                            {"value", &value, GpuLaunch::Buffer::in},
                                            {"slope", &slope, GpuLaunch::Buffer::in},
                                            {"first", &first, GpuLaunch::Buffer::in},
                                            {"grad", &grad, GpuLaunch::Buffer::out},
                                            {"grad_times", &grad_times, GpuLaunch::Buffer::out},
                                            {"partial", &partial, GpuLaunch::Buffer::out}});
  motion_eval_backward_cuda(a, launch.stream());
  launch.finish();
}
#endif

}  // namespace

void register_motion_eval(py::module_& m) {
#ifdef VK_BUILD_CPU
  m.def("motion_eval_cpu", &forward_cpu);
  m.def("motion_eval_backward_cpu", &backward_cpu);
#endif
#ifdef VK_GPU
  m.def("motion_eval_cuda", &forward_cuda);
  m.def("motion_eval_backward_cuda", &backward_cuda);
#endif
}

}  // namespace vk
