#include "core/bind.h"
#include "ops/spectral_multiply/spectral_multiply.h"

namespace vk {
namespace {

Spectrum spectrum(const Check& check, const Tensor& t) {
  check.ndim(t, 5, "[B, channels, rows, columns, 2]");
  check.require(t.size(4) == 2 && (t.stride(4) == 1 || t.numel() == 0), "expected a complex number's parts in a row.");
  return {t.data(), t.size(1), t.size(2), t.size(3), t.stride(0), t.stride(1), t.stride(2), t.stride(3)};
}

void input(const Check& check, const Tensor& t, const Tensor& x) {
  check.dtype(t, {x.dtype()});
  check.contiguous(t);
}

SpectralMultiply arguments(const Check& check, const Tensor& x, const Tensor& weight, const Tensor& mask,
                           const Tensor& out) {
  check.dtype(x, {Dtype::f32, Dtype::f16, Dtype::bf16});
  SpectralMultiply a{};
  a.x = spectrum(check, x);
  check.ndim(weight, 5, "[R, C, I, O, 2]");
  check.shape(weight, {-1, -1, x.size(1), -1, 2});
  input(check, weight, x);
  a.out = spectrum(check, out);
  check.shape(out, {x.size(0), weight.size(3), -1, -1, 2});
  check.dtype(out, {x.dtype()});
  a.rows = weight.size(0), a.columns = weight.size(1);
  check.require(a.rows <= x.size(2) && a.rows <= out.size(2) && a.columns <= x.size(3) && a.columns <= out.size(3),
                "expected `weight` of no more rows and columns than both spectra have.");
  a.batch = x.size(0), a.in = x.size(1), a.channels = weight.size(3);
  a.weight = weight.data(), a.element = element_of(x);
  if (mask.defined()) {
    check.shape(mask, {a.rows, a.columns, a.in, a.channels, 2});
    check.dtype(mask, {Dtype::boolean, Dtype::u8});
    check.contiguous(mask);
    a.mask = mask.ptr<uint8_t>();
  }
  return a;
}

SpectralMultiply forward_args(int device, const Tensor& x, const Tensor& weight, const Tensor& mask,
                              const Tensor& out) {
  const Check check("spectral_multiply", device, {{"x", &x}, {"weight", &weight}, {"mask", &mask}, {"out", &out}});
  check.output(out);
  return arguments(check, x, weight, mask, out);
}

SpectralMultiply backward_args(int device, const Tensor& grad, const Tensor& x, const Tensor& weight,
                               const Tensor& mask, const Tensor& grad_x, const Tensor& grad_weight,
                               const Tensor& scratch) {
  const Check check("spectral_multiply_backward", device,
                    {{"grad", &grad},
                     {"x", &x},
                     {"weight", &weight},
                     {"mask", &mask},
                     {"grad_x", &grad_x},
                     {"grad_weight", &grad_weight},
                     {"scratch", &scratch}});
  SpectralMultiply a = arguments(check, x, weight, mask, grad);
  check.shape(grad_x, {a.batch, a.in, a.x.rows, a.x.columns, 2});
  check.shape(grad_weight, {a.rows, a.columns, a.in, a.channels, 2});
  for (const Tensor* t : {&grad_x, &grad_weight}) {
    check.dtype(*t, {x.dtype()});
    check.output(*t);
  }
  a.grad_x = grad_x.data(), a.grad_weight = grad_weight.data();
  if (scratch.defined()) {
    check.shape(scratch, {a.rows, a.columns, a.batch, a.channels, 2});
    check.dtype(scratch, {Dtype::f32});
    check.output(scratch);
    a.scratch = scratch.ptr<float>();
  }
  return a;
}

#ifdef VK_BUILD_CPU
void forward_cpu(const Tensor& x, const Tensor& weight, const Tensor& mask, const Tensor& out) {
  VK_CPU_CALL(spectral_multiply, forward_args(kDLCPU, x, weight, mask, out));
}

void backward_cpu(const Tensor& grad, const Tensor& x, const Tensor& weight, const Tensor& mask, const Tensor& grad_x,
                  const Tensor& grad_weight, const Tensor& scratch) {
  VK_CPU_CALL(spectral_multiply_backward, backward_args(kDLCPU, grad, x, weight, mask, grad_x, grad_weight, scratch));
}
#endif

#ifdef VK_GPU
using Buffer = GpuLaunch::Buffer;

void forward_cuda(const Tensor& x, const Tensor& weight, const Tensor& mask, const Tensor& out) {
  const SpectralMultiply a = forward_args(kGpuDevice, x, weight, mask, out);
  GpuLaunch launch("spectral_multiply", {{"x", &x, Buffer::in},
                                         {"weight", &weight, Buffer::in},
                                         {"mask", &mask, Buffer::in},
                                         {"out", &out, Buffer::out}});
  spectral_multiply_cuda(a, launch.stream());
  launch.finish();
}

void backward_cuda(const Tensor& grad, const Tensor& x, const Tensor& weight, const Tensor& mask, const Tensor& grad_x,
                   const Tensor& grad_weight, const Tensor& scratch) {
  const SpectralMultiply a = backward_args(kGpuDevice, grad, x, weight, mask, grad_x, grad_weight, scratch);
  if (!scratch.defined()) throw py::value_error("spectral_multiply_backward: the CUDA kernel needs `scratch`.");
  GpuLaunch launch("spectral_multiply_backward", {{"grad", &grad, Buffer::in},
                                                  {"x", &x, Buffer::in},
                                                  {"weight", &weight, Buffer::in},
                                                  {"mask", &mask, Buffer::in},
                                                  {"grad_x", &grad_x, Buffer::out},
                                                  {"grad_weight", &grad_weight, Buffer::out},
                                                  {"scratch", &scratch, Buffer::out}});
  spectral_multiply_backward_cuda(a, launch.stream());
  launch.finish();
}
#endif

}  // namespace

void register_spectral_multiply(py::module_& m) {
#ifdef VK_BUILD_CPU
  m.def("spectral_multiply_cpu", &forward_cpu);
  m.def("spectral_multiply_backward_cpu", &backward_cpu);
#endif
#ifdef VK_GPU
  m.def("spectral_multiply_cuda", &forward_cuda);
  m.def("spectral_multiply_backward_cuda", &backward_cuda);
#endif
}

}  // namespace vk
