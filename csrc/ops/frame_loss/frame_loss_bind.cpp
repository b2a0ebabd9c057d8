#include "core/bind.h"
#include "ops/frame_loss/frame_loss.h"

namespace vk {
namespace {

FrameLoss arguments(const Check& check, const Tensor& image, const Tensor& target, const Tensor& weight,
                    const Tensor& grad, const Tensor& scratch, double l1, double l2, double ssim) {
  check.ndim(image, 4, "[B, H, W, C]");
  check.dtype(image, {Dtype::f32});
  check.contiguous(image);
  const int64_t batch = image.size(0), height = image.size(1), width = image.size(2), channels = image.size(3);
  check.shape(target, {batch, height, width, channels});
  check.dtype(target, {Dtype::u8});
  check.contiguous(target);
  if (weight.defined()) {
    check.shape(weight, {batch, height, width});
    check.dtype(weight, {Dtype::f32});
    check.contiguous(weight);
  }
  if (grad.defined()) {
    check.shape(grad, {batch, height, width, channels});
    check.dtype(grad, {Dtype::f32});
    check.output(grad);
  }
  if (scratch.defined()) check.output(scratch);
  check.require(ssim == 0 || (height >= kSsimTaps && width >= kSsimTaps),
                "SSIM needs frames of at least 11 x 11 pixels.", "ssim=0");
  FrameLoss a{};
  a.image = image.ptr<float>();
  a.target = target.ptr<uint8_t>();
  a.weight = weight.defined() ? weight.ptr<float>() : nullptr;
  a.grad = grad.defined() ? grad.ptr<float>() : nullptr;
  a.scratch = scratch.defined() ? scratch.data() : nullptr;
  a.batch = batch, a.height = height, a.width = width, a.channels = channels;
  a.l1 = l1, a.l2 = l2, a.ssim = ssim;
  return a;
}

void scalar(const Check& check, const Tensor& t) {
  check.shape(t, {});
  check.dtype(t, {Dtype::f32});
}

FrameLoss forward_args(int device, const Tensor& image, const Tensor& target, const Tensor& weight, const Tensor& loss,
                       const Tensor& grad, const Tensor& scratch, double l1, double l2, double ssim) {
  const Check check("frame_loss", device,
                    {{"image", &image},
                     {"target", &target},
                     {"weight", &weight},
                     {"loss", &loss},
                     {"grad", &grad},
                     {"scratch", &scratch}});
  FrameLoss a = arguments(check, image, target, weight, grad, scratch, l1, l2, ssim);
  scalar(check, loss);
  check.output(loss);
  a.loss = loss.ptr<float>();
  return a;
}

FrameLoss backward_args(int device, const Tensor& grad_loss, const Tensor& image, const Tensor& target,
                        const Tensor& weight, const Tensor& grad, const Tensor& scratch, double l1, double l2,
                        double ssim) {
  const Check check("frame_loss_backward", device,
                    {{"grad_loss", &grad_loss},
                     {"image", &image},
                     {"target", &target},
                     {"weight", &weight},
                     {"grad", &grad},
                     {"scratch", &scratch}});
  FrameLoss a = arguments(check, image, target, weight, grad, scratch, l1, l2, ssim);
  scalar(check, grad_loss);
  a.grad_loss = grad_loss.ptr<float>();
  return a;
}

#ifdef VK_BUILD_CPU
void forward_cpu(const Tensor& image, const Tensor& target, const Tensor& weight, const Tensor& loss,
                 const Tensor& grad, const Tensor& scratch, double l1, double l2, double ssim) {
  const FrameLoss a = forward_args(kDLCPU, image, target, weight, loss, grad, scratch, l1, l2, ssim);
  VK_CPU_CALL(frame_loss, a);
}

void backward_cpu(const Tensor& grad_loss, const Tensor& image, const Tensor& target, const Tensor& weight,
                  const Tensor& grad, const Tensor& scratch, double l1, double l2, double ssim) {
  const FrameLoss a = backward_args(kDLCPU, grad_loss, image, target, weight, grad, scratch, l1, l2, ssim);
  VK_CPU_CALL(frame_loss, a);
}
#endif

#ifdef VK_GPU
void check_scratch(const char* op, const FrameLoss& a, const Tensor& scratch) {
  const int64_t wanted = frame_loss_scratch(a);
  if (wanted > 0 && (!scratch.defined() || scratch.span_bytes() < wanted || uintptr_t(scratch.data()) % 8 != 0))
    throw py::value_error(std::string(op) + ": expected scratch memory of " + std::to_string(wanted) + " bytes.");
  if (a.pixels() * a.channels >= int64_t(1) << 31)
    throw py::value_error(std::string(op) + ": too many numbers for one launch.");
}

void forward_cuda(const Tensor& image, const Tensor& target, const Tensor& weight, const Tensor& loss,
                  const Tensor& grad, const Tensor& scratch, double l1, double l2, double ssim) {
  const FrameLoss a = forward_args(kGpuDevice, image, target, weight, loss, grad, scratch, l1, l2, ssim);
  check_scratch("frame_loss", a, scratch);
  GpuLaunch launch("frame_loss", {{"image", &image, GpuLaunch::Buffer::in},
                                  {"target", &target, GpuLaunch::Buffer::in},
                                  {"weight", &weight, GpuLaunch::Buffer::in},
                                  {"loss", &loss, GpuLaunch::Buffer::out},
                                  {"grad", &grad, GpuLaunch::Buffer::out},
                                  {"scratch", &scratch, GpuLaunch::Buffer::out}});
  frame_loss_cuda(a, launch.stream());
  launch.finish();
}

void backward_cuda(const Tensor& grad_loss, const Tensor& image, const Tensor& target, const Tensor& weight,
                   const Tensor& grad, const Tensor& scratch, double l1, double l2, double ssim) {
  const FrameLoss a = backward_args(kGpuDevice, grad_loss, image, target, weight, grad, scratch, l1, l2, ssim);
  check_scratch("frame_loss_backward", a, scratch);
  GpuLaunch launch("frame_loss_backward", {{"grad_loss", &grad_loss, GpuLaunch::Buffer::in},
                                           {"image", &image, GpuLaunch::Buffer::in},
                                           {"target", &target, GpuLaunch::Buffer::in},
                                           {"weight", &weight, GpuLaunch::Buffer::in},
                                           {"grad", &grad, GpuLaunch::Buffer::out},
                                           {"scratch", &scratch, GpuLaunch::Buffer::out}});
  frame_loss_cuda(a, launch.stream());
  launch.finish();
}
#endif

}  // namespace

void register_frame_loss(py::module_& m) {
#ifdef VK_BUILD_CPU
  m.def("frame_loss_cpu", &forward_cpu);
  m.def("frame_loss_backward_cpu", &backward_cpu);
#endif
#ifdef VK_GPU
  m.def("frame_loss_cuda", &forward_cuda);
  m.def("frame_loss_backward_cuda", &backward_cuda);
#endif
}

}  // namespace vk
