#include "core/bind.h"
#include "ops/upsample_conv/upsample_conv.h"

namespace vk {
namespace {

UpsampleConvSizes sizes_of(const Check& check, const Tensor& x, const Tensor& weight, const Tensor& bias, int64_t scale,
                           int64_t activation) {
  check.ndim(x, 4, "[B, H, W, I]");
  check.dtype(x, {Dtype::f32, Dtype::f16, Dtype::bf16});
  check.contiguous(x);
  check.ndim(weight, 4, "[O, I, kh, kw]");
  check.shape(weight, {-1, x.size(3), -1, -1});
  check.dtype(weight, {x.dtype(), Dtype::f32});
  check.contiguous(weight);
  check.require(weight.size(2) % 2 == 1 && weight.size(3) % 2 == 1, "expected odd kernel sizes.");
  check.require(scale >= 1 && weight.size(0) % (scale * scale) == 0, "expected O to be a multiple of scale^2.");
  check.require(activation >= 0 && activation <= int64_t(Activation::relu), "no such activation.");
  if (bias.defined()) {
    check.shape(bias, {weight.size(0)});
    check.dtype(bias, {weight.dtype()});
    check.contiguous(bias);
  }
  return {x.size(0),
          x.size(1),
          x.size(2),
          x.size(3),
          weight.size(0) / (scale * scale),
          weight.size(2),
          weight.size(3),
          scale,
          Activation(activation),
          element_of(x),
          element_of(weight)};
}

void image(const Check& check, const Tensor& t, const UpsampleConvSizes& s, const Tensor& x) {
  check.shape(t, {s.batch, s.height * s.scale, s.width * s.scale, s.out});
  check.dtype(t, {x.dtype()});
}

void optional_output(const Check& check, const Tensor& t, const UpsampleConvSizes& s, const Tensor& x) {
  if (!t.defined()) return;
  image(check, t, s, x);
  check.output(t);
}

void* data_of(const Tensor& t) { return t.defined() ? t.data() : nullptr; }

/// The CUDA kernels' working memory; those of the CPU have their own.
void need_scratch(const Check& check, const Tensor& t, int64_t floats) {
  if (!t.defined()) return;
  check.dtype(t, {Dtype::f32});
  check.require(t.ndim() == 1 && t.size(0) >= floats, "`scratch` is too small.");
  check.output(t);
}

UpsampleConv forward_args(int device, const Tensor& x, const Tensor& weight, const Tensor& bias, const Tensor& out,
                          const Tensor& derivative, const Tensor& scratch, int64_t scale, int64_t activation) {
  const Check check("upsample_conv", device,
                    {{"x", &x},
                     {"weight", &weight},
                     {"bias", &bias},
                     {"out", &out},
                     {"derivative", &derivative},
                     {"scratch", &scratch}});
  const UpsampleConvSizes s = sizes_of(check, x, weight, bias, scale, activation);
  optional_output(check, out, s, x);
  optional_output(check, derivative, s, x);
  need_scratch(check, scratch, upsample_conv_scratch(s, false));
  return {s, x.data(), weight.data(), data_of(bias), data_of(out), data_of(derivative), data_of(scratch)};
}

/// `derive`: `derivative` is empty memory and first to be computed from x, weight and bias.
UpsampleConvBackward backward_args(int device, const Tensor& grad_out, const Tensor& x, const Tensor& weight,
                                   const Tensor& bias, const Tensor& derivative, bool derive, const Tensor& grad_x,
                                   const Tensor& grad_weight, const Tensor& grad_bias, const Tensor& scratch,
                                   int64_t scale, int64_t activation) {
  const Check check("upsample_conv_backward", device,
                    {{"grad_out", &grad_out},
                     {"x", &x},
                     {"weight", &weight},
                     {"bias", &bias},
                     {"derivative", &derivative},
                     {"grad_x", &grad_x},
                     {"grad_weight", &grad_weight},
                     {"grad_bias", &grad_bias},
                     {"scratch", &scratch}});
  const UpsampleConvSizes s = sizes_of(check, x, weight, bias, scale, activation);
  image(check, grad_out, s, x);
  check.contiguous(grad_out);
  check.require(derivative.defined() == (s.activation != Activation::none),
                "a derivative is needed exactly where there is an activation.");
  if (derivative.defined()) {
    image(check, derivative, s, x);
    check.contiguous(derivative);
    if (derive) check.output(derivative);
  }
  if (grad_x.defined()) {
    check.shape(grad_x, {s.batch, s.height, s.width, s.in});
    check.dtype(grad_x, {x.dtype()});
    check.output(grad_x);
  }
  check.shape(grad_weight, {weight.size(0), s.in, s.kh, s.kw});
  check.dtype(grad_weight, {weight.dtype()});
  check.output(grad_weight);
  check.shape(grad_bias, {weight.size(0)});
  check.dtype(grad_bias, {weight.dtype()});
  check.output(grad_bias);
  need_scratch(check, scratch, upsample_conv_scratch(s, true));
  return {s,
          grad_out.data(),
          data_of(derivative),
          x.data(),
          weight.data(),
          data_of(grad_x),
          grad_weight.data(),
          grad_bias.data(),
          data_of(scratch)};
}

UpsampleConvLoss loss_args(int device, const Tensor& x, const Tensor& weight, const Tensor& bias, const Tensor& target,
                           const Tensor& share, const Tensor& loss, const Tensor& grad_z, const Tensor& scratch,
                           int64_t scale, bool squash, double l1, double l2) {
  const Check check("upsample_conv_loss", device,
                    {{"x", &x},
                     {"weight", &weight},
                     {"bias", &bias},
                     {"target", &target},
                     {"share", &share},
                     {"loss", &loss},
                     {"grad_z", &grad_z},
                     {"scratch", &scratch}});
  const UpsampleConvSizes s = sizes_of(check, x, weight, bias, scale, int64_t(Activation::none));
  check.dtype(x, {Dtype::f32, Dtype::bf16});
  check.shape(target, {s.batch, -1, -1, s.out});
  check.dtype(target, {Dtype::u8});
  check.contiguous(target);
  check.require(target.size(1) <= s.height * s.scale && target.size(2) <= s.width * s.scale,
                "`target` is larger than the pictures.");
  if (share.defined()) {
    check.shape(share, {s.batch, target.size(1), target.size(2)});
    check.dtype(share, {Dtype::f32});
    check.contiguous(share);
  }
  check.shape(loss, {});
  check.dtype(loss, {Dtype::f32});
  check.output(loss);
  image(check, grad_z, s, x);
  check.output(grad_z);
  need_scratch(check, scratch, upsample_conv_loss_scratch(s));
  return {s,
          x.data(),
          weight.data(),
          data_of(bias),
          static_cast<const uint8_t*>(target.data()),
          static_cast<const float*>(data_of(share)),
          target.size(1),
          target.size(2),
          float(l1),
          float(l2),
          squash,
          static_cast<float*>(loss.data()),
          grad_z.data(),
          data_of(scratch)};
}

#ifdef VK_BUILD_CPU
void loss_cpu(const Tensor& x, const Tensor& weight, const Tensor& bias, const Tensor& target, const Tensor& share,
              const Tensor& loss, const Tensor& grad_z, const Tensor& scratch, int64_t scale, bool squash, double l1,
              double l2) {
  const UpsampleConvLoss a =
      loss_args(kDLCPU, x, weight, bias, target, share, loss, grad_z, scratch, scale, squash, l1, l2);
  VK_CPU_CALL(upsample_conv_loss, a);
}

void forward_cpu(const Tensor& x, const Tensor& weight, const Tensor& bias, const Tensor& out, const Tensor& derivative,
                 const Tensor& scratch, int64_t scale, int64_t activation) {
  const UpsampleConv a = forward_args(kDLCPU, x, weight, bias, out, derivative, scratch, scale, activation);
  VK_CPU_CALL(upsample_conv, a);
}

void backward_cpu(const Tensor& grad_out, const Tensor& x, const Tensor& weight, const Tensor& bias,
                  const Tensor& derivative, bool derive, const Tensor& grad_x, const Tensor& grad_weight,
                  const Tensor& grad_bias, const Tensor& scratch, int64_t scale, int64_t activation) {
  const UpsampleConvBackward a = backward_args(kDLCPU, grad_out, x, weight, bias, derivative, derive, grad_x,
                                               grad_weight, grad_bias, scratch, scale, activation);
  if (derive) {
    const UpsampleConv z{a.sizes, a.x, a.weight, data_of(bias), nullptr, derivative.data(), nullptr};
    VK_CPU_CALL(upsample_conv, z);
  }
  VK_CPU_CALL(upsample_conv_backward, a);
}
#endif

#ifdef VK_GPU
void loss_cuda(const Tensor& x, const Tensor& weight, const Tensor& bias, const Tensor& target, const Tensor& share,
               const Tensor& loss, const Tensor& grad_z, const Tensor& scratch, int64_t scale, bool squash, double l1,
               double l2) {
  const UpsampleConvLoss a =
      loss_args(kGpuDevice, x, weight, bias, target, share, loss, grad_z, scratch, scale, squash, l1, l2);
  GpuLaunch launch("upsample_conv_loss", {{"x", &x, GpuLaunch::Buffer::in},
                                          {"weight", &weight, GpuLaunch::Buffer::in},
                                          {"bias", &bias, GpuLaunch::Buffer::in},
                                          {"target", &target, GpuLaunch::Buffer::in},
                                          {"share", &share, GpuLaunch::Buffer::in},
                                          {"loss", &loss, GpuLaunch::Buffer::out},
                                          {"grad_z", &grad_z, GpuLaunch::Buffer::out},
                                          {"scratch", &scratch, GpuLaunch::Buffer::out}});
  upsample_conv_loss_cuda(a, launch.stream());
  launch.finish();
}

void forward_cuda(const Tensor& x, const Tensor& weight, const Tensor& bias, const Tensor& out,
                  const Tensor& derivative, const Tensor& scratch, int64_t scale, int64_t activation) {
  const UpsampleConv a = forward_args(kGpuDevice, x, weight, bias, out, derivative, scratch, scale, activation);
  GpuLaunch launch("upsample_conv", {{"x", &x, GpuLaunch::Buffer::in},
                                     {"weight", &weight, GpuLaunch::Buffer::in},
                                     {"bias", &bias, GpuLaunch::Buffer::in},
                                     {"out", &out, GpuLaunch::Buffer::out},
                                     {"derivative", &derivative, GpuLaunch::Buffer::out},
                                     {"scratch", &scratch, GpuLaunch::Buffer::out}});
  upsample_conv_cuda(a, launch.stream());
  launch.finish();
}

void backward_cuda(const Tensor& grad_out, const Tensor& x, const Tensor& weight, const Tensor& bias,
                   const Tensor& derivative, bool derive, const Tensor& grad_x, const Tensor& grad_weight,
                   const Tensor& grad_bias, const Tensor& scratch, int64_t scale, int64_t activation) {
  const UpsampleConvBackward a = backward_args(kGpuDevice, grad_out, x, weight, bias, derivative, derive, grad_x,
                                               grad_weight, grad_bias, scratch, scale, activation);
  GpuLaunch launch("upsample_conv_backward",
                   {{"grad_out", &grad_out, GpuLaunch::Buffer::in},
                    {"x", &x, GpuLaunch::Buffer::in},
                    {"weight", &weight, GpuLaunch::Buffer::in},
                    {"bias", &bias, GpuLaunch::Buffer::in},
                    {"derivative", &derivative, derive ? GpuLaunch::Buffer::out : GpuLaunch::Buffer::in},
                    {"grad_x", &grad_x, GpuLaunch::Buffer::out},
                    {"grad_weight", &grad_weight, GpuLaunch::Buffer::out},
                    {"grad_bias", &grad_bias, GpuLaunch::Buffer::out},
                    {"scratch", &scratch, GpuLaunch::Buffer::out}});
  if (derive) {
    const UpsampleConv z{a.sizes, a.x, a.weight, data_of(bias), nullptr, derivative.data(), a.scratch};
    upsample_conv_cuda(z, launch.stream());
  }
  upsample_conv_backward_cuda(a, launch.stream());
  launch.finish();
}
#endif

}  // namespace

void register_upsample_conv(py::module_& m) {
#ifdef VK_BUILD_CPU
  m.def("upsample_conv_cpu", &forward_cpu);
  m.def("upsample_conv_backward_cpu", &backward_cpu);
  m.def("upsample_conv_loss_cpu", &loss_cpu);
#endif
#ifdef VK_GPU
  m.def("upsample_conv_cuda", &forward_cuda);
  m.def("upsample_conv_backward_cuda", &backward_cuda);
  m.def("upsample_conv_loss_cuda", &loss_cuda);
#endif
}

}  // namespace vk
