#include <pybind11/stl.h>

#include <vector>

#include "core/bind.h"
#include "ops/masked_patch_loss/masked_patch_loss.h"

namespace vk {
namespace {

using Numbers = std::vector<double>;

struct Tube {
  int64_t pt, ph, pw;
  bool joint;
  const Numbers &mean, &std;
};

MaskedPatchLoss arguments(const Check& check, const Tensor& pred, const Tensor& video, const Tensor& index,
                          const Tensor& grad, const Tube& tube) {
  check.ndim(pred, 3, "[B, Nm, D]");
  check.dtype(pred, {Dtype::f32, Dtype::f64, Dtype::f16, Dtype::bf16});
  check.contiguous(pred);
  check.ndim(video, 5, "[B, T, H, W, C] uint8 or [B, C, T, H, W] float");
  check.dtype(video, {Dtype::u8, Dtype::f32, Dtype::f64, Dtype::f16, Dtype::bf16});
  check.shape(index, {pred.size(0), pred.size(1)});
  check.dtype(index, {Dtype::i32});
  check.contiguous(index);
  const bool bytes = video.dtype() == Dtype::u8;
  const int t = bytes ? 1 : 2, c = bytes ? 4 : 1;  // axes
  check.require(video.size(0) == pred.size(0), "expected `pred` and `video` of one batch size.");
  check.require(tube.pt > 0 && tube.ph > 0 && tube.pw > 0 && video.size(t) % tube.pt == 0 &&
                    video.size(t + 1) % tube.ph == 0 && video.size(t + 2) % tube.pw == 0,
                "the tube does not divide the video.");
  check.require(pred.size(2) == tube.pt * tube.ph * tube.pw * video.size(c), "`pred` does not have a tube's pixels.");
  check.require(tube.mean.size() == tube.std.size() &&
                    (tube.mean.empty() || (!bytes && int64_t(tube.mean.size()) == video.size(c))),
                "expected `mean` and `std` empty, or one number per channel of a float video.");
  if (grad.defined()) {
    check.shape(grad, {pred.size(0), pred.size(1), pred.size(2)});
    check.dtype(grad, {pred.dtype()});
    check.output(grad, grad.data() == pred.data() ? &pred : nullptr);
  }
  MaskedPatchLoss a{};
  a.pred = pred.data();
  a.video = video.data();
  a.index = index.ptr<int32_t>();
  a.grad = grad.defined() ? grad.data() : nullptr;
  a.batch = pred.size(0);
  a.count = pred.size(1);
  a.grid_t = video.size(t) / tube.pt;
  a.grid_h = video.size(t + 1) / tube.ph;
  a.grid_w = video.size(t + 2) / tube.pw;
  a.pt = tube.pt;
  a.ph = tube.ph;
  a.pw = tube.pw;
  a.channels = video.size(c);
  a.stride_b = video.stride(0);
  a.stride_t = video.stride(t);
  a.stride_h = video.stride(t + 1);
  a.stride_w = video.stride(t + 2);
  a.stride_c = video.stride(c);
  a.shift = tube.mean.empty() ? nullptr : tube.mean.data();
  a.scale = tube.std.empty() ? nullptr : tube.std.data();
  a.joint = tube.joint;
  a.bytes = bytes;
  a.pred_element = element_of(pred);
  a.video_element = element_of(video);
  a.bad = -1;
  return a;
}

MaskedPatchLoss forward_args(int device, const Tensor& pred, const Tensor& video, const Tensor& index,
                             const Tensor& loss, const Tensor& partial, const Tensor& grad, const Tube& tube) {
  const Check check("masked_patch_loss", device,
                    {{"pred", &pred},
                     {"video", &video},
                     {"masked_index", &index},
                     {"loss", &loss},
                     {"partial", &partial},
                     {"grad", &grad}});
  MaskedPatchLoss a = arguments(check, pred, video, index, grad, tube);
  check.shape(loss, {});
  check.dtype(loss, {pred.dtype() == Dtype::f64 ? Dtype::f64 : Dtype::f32});
  check.output(loss);
  check.shape(partial, {pred.size(0), pred.size(1)});
  check.dtype(partial, {Dtype::f64});
  check.output(partial);
  a.loss = loss.data();
  a.partial = partial.ptr<double>();
  return a;
}

MaskedPatchLoss backward_args(int device, const Tensor& grad_loss, const Tensor& pred, const Tensor& video,
                              const Tensor& index, const Tensor& grad, const Tube& tube) {
  const Check check(
      "masked_patch_loss_backward", device,
      {{"grad_loss", &grad_loss}, {"pred", &pred}, {"video", &video}, {"masked_index", &index}, {"grad", &grad}});
  MaskedPatchLoss a = arguments(check, pred, video, index, grad, tube);
  check.shape(grad_loss, {});
  check.dtype(grad_loss, {pred.dtype() == Dtype::f64 ? Dtype::f64 : Dtype::f32});
  a.grad_loss = grad_loss.data();
  return a;
}

#ifdef VK_BUILD_CPU
void refuse_outside(const char* op, const MaskedPatchLoss& a) {
  if (a.bad < 0) return;
  throw py::value_error(std::string(op) + ": `masked_index`[" + std::to_string(a.bad / a.count) + ", " +
                        std::to_string(a.bad % a.count) + "] is " + std::to_string(a.index[a.bad]) + ", outside the " +
                        std::to_string(a.length()) + " tubes.");
}

void forward_cpu(const Tensor& pred, const Tensor& video, const Tensor& index, const Tensor& loss,
                 const Tensor& partial, const Tensor& grad, int64_t pt, int64_t ph, int64_t pw, bool joint,
                 const Numbers& mean, const Numbers& std) {
  MaskedPatchLoss a = forward_args(kDLCPU, pred, video, index, loss, partial, grad, {pt, ph, pw, joint, mean, std});
  VK_CPU_CALL(masked_patch_loss, a);
  refuse_outside("masked_patch_loss", a);
}

void backward_cpu(const Tensor& grad_loss, const Tensor& pred, const Tensor& video, const Tensor& index,
                  const Tensor& grad, int64_t pt, int64_t ph, int64_t pw, bool joint, const Numbers& mean,
                  const Numbers& std) {
  MaskedPatchLoss a = backward_args(kDLCPU, grad_loss, pred, video, index, grad, {pt, ph, pw, joint, mean, std});
  VK_CPU_CALL(masked_patch_loss, a);
  refuse_outside("masked_patch_loss_backward", a);
}
#endif

#ifdef VK_GPU
void forward_cuda(const Tensor& pred, const Tensor& video, const Tensor& index, const Tensor& loss,
                  const Tensor& partial, const Tensor& grad, int64_t pt, int64_t ph, int64_t pw, bool joint,
                  const Numbers& mean, const Numbers& std) {
  const MaskedPatchLoss a =
      forward_args(kGpuDevice, pred, video, index, loss, partial, grad, {pt, ph, pw, joint, mean, std});
  GpuLaunch launch("masked_patch_loss",
                   {{"pred", &pred, a.grad == a.pred ? GpuLaunch::Buffer::inout : GpuLaunch::Buffer::in},
                    {"video", &video, GpuLaunch::Buffer::in},
                    {"masked_index", &index, GpuLaunch::Buffer::in},
                    {"loss", &loss, GpuLaunch::Buffer::out},
                    {"partial", &partial, GpuLaunch::Buffer::out},
                    {"grad", &grad, GpuLaunch::Buffer::out}});
  masked_patch_loss_cuda(a, launch.stream());
  launch.finish();
}

void backward_cuda(const Tensor& grad_loss, const Tensor& pred, const Tensor& video, const Tensor& index,
                   const Tensor& grad, int64_t pt, int64_t ph, int64_t pw, bool joint, const Numbers& mean,
                   const Numbers& std) {
  const MaskedPatchLoss a =
      backward_args(kGpuDevice, grad_loss, pred, video, index, grad, {pt, ph, pw, joint, mean, std});
  GpuLaunch launch("masked_patch_loss_backward", {{"grad_loss", &grad_loss, GpuLaunch::Buffer::in},
                                                  {"pred", &pred, GpuLaunch::Buffer::in},
                                                  {"video", &video, GpuLaunch::Buffer::in},
                                                  {"masked_index", &index, GpuLaunch::Buffer::in},
                                                  {"grad", &grad, GpuLaunch::Buffer::out}});
  masked_patch_loss_cuda(a, launch.stream());
  launch.finish();
}

void scale_cuda(const Tensor& grad, const Tensor& factor) {
  const Check check("masked_patch_loss_scale", kGpuDevice, {{"grad", &grad}, {"factor", &factor}});
  check.dtype(grad, {Dtype::f32, Dtype::f64, Dtype::f16, Dtype::bf16});
  check.output(grad);
  check.shape(factor, {});
  check.dtype(factor, {grad.dtype() == Dtype::f64 ? Dtype::f64 : Dtype::f32});
  GpuLaunch launch("masked_patch_loss_scale",
                   {{"grad", &grad, GpuLaunch::Buffer::inout}, {"factor", &factor, GpuLaunch::Buffer::in}});
  masked_patch_loss_scale_cuda(grad.data(), factor.data(), grad.numel(), element_of(grad), launch.stream());
  launch.finish();
}
#endif

}  // namespace

void register_masked_patch_loss(py::module_& m) {
#ifdef VK_BUILD_CPU
  m.def("masked_patch_loss_cpu", &forward_cpu);
  m.def("masked_patch_loss_backward_cpu", &backward_cpu);
#endif
#ifdef VK_GPU
  m.def("masked_patch_loss_cuda", &forward_cuda);
  m.def("masked_patch_loss_backward_cuda", &backward_cuda);
  m.def("masked_patch_loss_scale_cuda", &scale_cuda);
#endif
}

}  // namespace vk
