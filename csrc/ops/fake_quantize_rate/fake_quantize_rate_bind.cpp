#include "core/bind.h"
#include "ops/fake_quantize_rate/fake_quantize_rate.h"

namespace vk {
namespace {

void matrix(const Check& check, const Tensor& t, const Tensor& like) {
  check.shape(t, {like.size(0), like.size(1)});
  check.dtype(t, {like.dtype()});
  check.contiguous(t);
}

void row(const Check& check, const Tensor& t, int64_t rows) {
  check.shape(t, {rows});
  check.dtype(t, {Dtype::f32});
  check.contiguous(t);
}

FakeQuantizeRate inputs(const Check& check, const Tensor& x, const Tensor& step, const Tensor& spread,
                        const Tensor& noise, const Tensor& sums, int64_t sum_count, bool round) {
  check.ndim(x, 2, "[C, N]");
  check.dtype(x, {Dtype::f32, Dtype::f16, Dtype::bf16});
  check.contiguous(x);
  row(check, step, x.size(0));
  row(check, spread, x.size(0));
  check.require(noise.defined() != round, "`noise` goes with the mode \"noise\" and with no other.");
  if (noise.defined()) {
    check.shape(noise, {x.size(0), x.size(1)});
    check.dtype(noise, {Dtype::f32});
    check.contiguous(noise);
  }
  FakeQuantizeRate a{};
  a.x = x.data();
  a.step = step.ptr<float>();
  a.spread = spread.ptr<float>();
  a.noise = round ? nullptr : noise.ptr<float>();
  a.sums = sums.ptr<double>();
  a.rows = x.size(0);
  a.count = x.size(1);
  a.element = element_of(x);
  check.shape(sums, {sum_count, a.rows, a.pieces()});
  check.dtype(sums, {Dtype::f64});
  check.output(sums);
  return a;
}

FakeQuantizeRate forward_args(int device, const Tensor& x, const Tensor& step, const Tensor& spread,
                              const Tensor& noise, const Tensor& value, const Tensor& bits, const Tensor& sums,
                              bool round) {
  const Check check("fake_quantize_rate", device,
                    {{"x", &x},
                     {"step", &step},
                     {"spread", &spread},
                     {"noise", &noise},
                     {"value", &value},
                     {"bits", &bits},
                     {"sums", &sums}});
  FakeQuantizeRate a = inputs(check, x, step, spread, noise, sums, 1, round);
  matrix(check, value, x);
  row(check, bits, x.size(0));
  check.output(value);
  check.output(bits);
  a.value = value.data();
  a.bits = bits.ptr<float>();
  return a;
}

FakeQuantizeRateBackward backward_args(int device, const Tensor& grad_value, const Tensor& grad_bits, const Tensor& x,
                                       const Tensor& step, const Tensor& spread, const Tensor& noise,
                                       const Tensor& grad_x, const Tensor& grad_step, const Tensor& grad_spread,
                                       const Tensor& sums, bool round) {
  const Check check("fake_quantize_rate_backward", device,
                    {{"grad_value", &grad_value},
                     {"grad_bits", &grad_bits},
                     {"x", &x},
                     {"step", &step},
                     {"spread", &spread},
                     {"noise", &noise},
                     {"grad_x", &grad_x},
                     {"grad_step", &grad_step},
                     {"grad_spread", &grad_spread},
                     {"sums", &sums}});
  FakeQuantizeRateBackward a{};
  a.in = inputs(check, x, step, spread, noise, sums, 2, round);
  matrix(check, grad_value, x);
  matrix(check, grad_x, x);
  check.output(grad_x);
  row(check, grad_bits, x.size(0));
  for (const Tensor* t : {&grad_step, &grad_spread}) {
    row(check, *t, x.size(0));
    check.output(*t);
  }
  a.grad_value = grad_value.data();
  a.grad_bits = grad_bits.ptr<float>();
  a.grad_x = grad_x.data();
  a.grad_step = grad_step.ptr<float>();
  a.grad_spread = grad_spread.ptr<float>();
  return a;
}

#ifdef VK_BUILD_CPU
void forward_cpu(const Tensor& x, const Tensor& step, const Tensor& spread, const Tensor& noise, const Tensor& value,
                 const Tensor& bits, const Tensor& sums, bool round) {
  const FakeQuantizeRate a = forward_args(kDLCPU, x, step, spread, noise, value, bits, sums, round);
  VK_CPU_CALL(fake_quantize_rate, a);
}

void backward_cpu(const Tensor& grad_value, const Tensor& grad_bits, const Tensor& x, const Tensor& step,
                  const Tensor& spread, const Tensor& noise, const Tensor& grad_x, const Tensor& grad_step,
                  const Tensor& grad_spread, const Tensor& sums, bool round) {
  const FakeQuantizeRateBackward a =
      backward_args(kDLCPU, grad_value, grad_bits, x, step, spread, noise, grad_x, grad_step, grad_spread, sums, round);
  VK_CPU_CALL(fake_quantize_rate_backward, a);
}
#endif

#ifdef VK_GPU
using Buffer = GpuLaunch::Buffer;

void forward_cuda(const Tensor& x, const Tensor& step, const Tensor& spread, const Tensor& noise, const Tensor& value,
                  const Tensor& bits, const Tensor& sums, bool round) {
  const FakeQuantizeRate a = forward_args(kGpuDevice, x, step, spread, noise, value, bits, sums, round);
  GpuLaunch launch("fake_quantize_rate", {{"x", &x, Buffer::in},
                                          {"step", &step, Buffer::in},
                                          {"spread", &spread, Buffer::in},
                                          {"noise", &noise, Buffer::in},
                                          {"value", &value, Buffer::out},
                                          {"bits", &bits, Buffer::out},
                                          {"sums", &sums, Buffer::out}});
  fake_quantize_rate_cuda(a, launch.stream());
  launch.finish();
}

void backward_cuda(const Tensor& grad_value, const Tensor& grad_bits, const Tensor& x, const Tensor& step,
                   const Tensor& spread, const Tensor& noise, const Tensor& grad_x, const Tensor& grad_step,
                   const Tensor& grad_spread, const Tensor& sums, bool round) {
  const FakeQuantizeRateBackward a = backward_args(kGpuDevice, grad_value, grad_bits, x, step, spread, noise, grad_x,
                                                   grad_step, grad_spread, sums, round);
  GpuLaunch launch("fake_quantize_rate_backward", {{"grad_value", &grad_value, Buffer::in},
                                                   {"grad_bits", &grad_bits, Buffer::in},
                                                   {"x", &x, Buffer::in},
                                                   {"step", &step, Buffer::in},
                                                   {"spread", &spread, Buffer::in},
                                                   {"noise", &noise, Buffer::in},
                                                   {"grad_x", &grad_x, Buffer::out},
                                                   {"grad_step", &grad_step, Buffer::out},
                                                   {"grad_spread", &grad_spread, Buffer::out},
                                                   {"sums", &sums, Buffer::out}});
  fake_quantize_rate_backward_cuda(a, launch.stream());
  launch.finish();
}
#endif

}  // namespace

void register_fake_quantize_rate(py::module_& m) {
#ifdef VK_BUILD_CPU
  m.def("fake_quantize_rate_cpu", &forward_cpu);
  m.def("fake_quantize_rate_backward_cpu", &backward_cpu);
#endif
#ifdef VK_GPU
  m.def("fake_quantize_rate_cuda", &forward_cuda);
  m.def("fake_quantize_rate_backward_cuda", &backward_cuda);
#endif
}

}  // namespace vk
