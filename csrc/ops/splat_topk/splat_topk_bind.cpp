#include "core/bind.h"
#include "ops/splat_topk/splat_topk.h"

namespace vk {
namespace {

struct Inputs {
  const Tensor &means, &shapes, &colors, &opacities, &offsets;
};

/// What forward and backward share. `image`: the image or its gradient, which gives the sizes.
void fill(SplatTopk& a, const Check& check, const Inputs& in, const Tensor& image, double pixel_center, bool conic) {
  check.ndim(image, 4, "[B, H, W, C]");
  check.ndim(in.means, 2, "[N, 2]");
  const int64_t count = in.means.size(0), images = image.size(0), channels = image.size(3);
  check.shape(in.means, {count, 2});
  check.shape(in.shapes, {count, 3});
  check.shape(in.colors, {count, channels});
  if (in.opacities.defined()) check.shape(in.opacities, {count});
  for (const Tensor* t : {&in.means, &in.shapes, &in.colors, &in.opacities, &image}) {
    if (!t->defined()) continue;
    check.dtype(*t, {Dtype::f32});
    check.contiguous(*t);
  }
  check.require(count < (int64_t(1) << 31) && image.size(1) < (1 << 20) && image.size(2) < (1 << 20),
                "at most 2^31 - 1 Gaussians and 2^20 pixels along a side.");
  if (in.offsets.defined()) {
    check.shape(in.offsets, {images + 1});
    check.dtype(in.offsets, {Dtype::i64});
    check.contiguous(in.offsets);
    if (in.offsets.device_type() == kDLCPU) {
      const int64_t* edge = in.offsets.ptr<int64_t>();
      bool rising = edge[0] == 0 && edge[images] == count;
      for (int64_t i = 0; i < images; ++i) rising = rising && edge[i] <= edge[i + 1];
      check.require(rising, "expected `offsets` to rise from 0 to N.");
    }
  } else {
    check.require(images == 1, "expected one image where `offsets` is None.");
  }
  a.means = in.means.ptr<float>();
  a.shapes = in.shapes.ptr<float>();
  a.colors = in.colors.ptr<float>();
  a.opacities = in.opacities.defined() ? in.opacities.ptr<float>() : nullptr;
  a.offsets = in.offsets.defined() ? in.offsets.ptr<int64_t>() : nullptr;
  a.count = count;
  a.images = images;
  a.height = image.size(1);
  a.width = image.size(2);
  a.channels = channels;
  a.pixel_center = float(pixel_center);
  a.conic = conic;
}

/// K, from the index tensor.
void fill_top(SplatTopk& a, const Check& check, const Tensor& index) {
  check.ndim(index, 4, "[B, H, W, K]");
  a.top = index.size(3);
  check.shape(index, {a.images, a.height, a.width, a.top});
  check.dtype(index, {Dtype::i32});
  check.contiguous(index);
  check.require(a.top >= 1 && a.top <= kSplatTopkMost,
                "expected 1 to " + std::to_string(kSplatTopkMost) + " Gaussians a pixel.");
}

SplatTopkForward forward_args(int device, const Inputs& in, const Tensor& image, const Tensor& index,
                              const Tensor& scratch, double pixel_center, bool conic) {
  const Check check("splat_topk", device,
                    {{"means", &in.means},
                     {"shapes", &in.shapes},
                     {"colors", &in.colors},
                     {"opacities", &in.opacities},
                     {"offsets", &in.offsets},
                     {"image", &image},
                     {"index", &index},
                     {"scratch", &scratch}});
  SplatTopkForward a{};
  fill(a, check, in, image, pixel_center, conic);
  fill_top(a, check, index);
  for (const Tensor* t : {&image, &index, &scratch})
    if (t->defined()) check.output(*t);
  a.image = image.ptr<float>();
  a.index = index.ptr<int32_t>();
  a.scratch = scratch.defined() ? scratch.data() : nullptr;
  return a;
}

struct Gradients {
  const Tensor &means, &shapes, &colors, &opacities, &scratch;
};

SplatTopkBackward backward_args(int device, const Tensor& grad_image, const Tensor& index, const Inputs& in,
                                const Gradients& out, double pixel_center, bool conic) {
  const Check check("splat_topk_backward", device,
                    {{"grad_image", &grad_image},
                     {"index", &index},
                     {"means", &in.means},
                     {"shapes", &in.shapes},
                     {"colors", &in.colors},
                     {"opacities", &in.opacities},
                     {"offsets", &in.offsets},
                     {"grad_means", &out.means},
                     {"grad_shapes", &out.shapes},
                     {"grad_colors", &out.colors},
                     {"grad_opacities", &out.opacities},
                     {"scratch", &out.scratch}});
  SplatTopkBackward a{};
  fill(a, check, in, grad_image, pixel_center, conic);
  fill_top(a, check, index);
  check.shape(out.means, {a.count, 2});
  check.shape(out.shapes, {a.count, 3});
  check.shape(out.colors, {a.count, a.channels});
  if (out.opacities.defined()) check.shape(out.opacities, {a.count});
  for (const Tensor* t : {&out.means, &out.shapes, &out.colors, &out.opacities}) {
    if (!t->defined()) continue;
    check.dtype(*t, {Dtype::f32});
    check.output(*t);
  }
  if (out.scratch.defined()) check.output(out.scratch);
  a.grad_image = grad_image.ptr<float>();
  a.index = index.ptr<int32_t>();
  a.grad_means = out.means.ptr<float>();
  a.grad_shapes = out.shapes.ptr<float>();
  a.grad_colors = out.colors.ptr<float>();
  a.grad_opacities = out.opacities.defined() ? out.opacities.ptr<float>() : nullptr;
  a.scratch = out.scratch.defined() ? out.scratch.data() : nullptr;
  return a;
}

#ifdef VK_BUILD_CPU
void forward_cpu(const Tensor& means, const Tensor& shapes, const Tensor& colors, const Tensor& opacities,
                 const Tensor& offsets, const Tensor& image, const Tensor& index, const Tensor& scratch,
                 double pixel_center, bool conic) {
  VK_CPU_CALL(splat_topk, forward_args(kDLCPU, {means, shapes, colors, opacities, offsets}, image, index, scratch,
                                       pixel_center, conic));
}

void backward_cpu(const Tensor& grad_image, const Tensor& index, const Tensor& means, const Tensor& shapes,
                  const Tensor& colors, const Tensor& opacities, const Tensor& offsets, const Tensor& grad_means,
                  const Tensor& grad_shapes, const Tensor& grad_colors, const Tensor& grad_opacities,
                  const Tensor& scratch, double pixel_center, bool conic) {
  VK_CPU_CALL(splat_topk_backward,
              backward_args(kDLCPU, grad_image, index, {means, shapes, colors, opacities, offsets},
                            {grad_means, grad_shapes, grad_colors, grad_opacities, scratch}, pixel_center, conic));
}
#endif

#ifdef VK_GPU
/// The exact sums of the backward pass have room for 2^16 windows of 16x16 pixels an image.
void check_size(const char* op, const SplatTopk& a, const void* scratch) {
  const int64_t windows = ((a.height + 15) / 16) * ((a.width + 15) / 16);
  if (windows > (int64_t(1) << 16) || a.images * windows >= (int64_t(1) << 31) ||
      a.count * a.channels >= (int64_t(1) << 38))
    throw py::value_error(std::string(op) + ": too large for one launch; at most 2^24 pixels an image.");
  if (a.count > 0 && !scratch) throw py::value_error(std::string(op) + ": the CUDA kernel needs `scratch`.");
}

void forward_cuda(const Tensor& means, const Tensor& shapes, const Tensor& colors, const Tensor& opacities,
                  const Tensor& offsets, const Tensor& image, const Tensor& index, const Tensor& scratch,
                  double pixel_center, bool conic) {
  const SplatTopkForward a =
      forward_args(kGpuDevice, {means, shapes, colors, opacities, offsets}, image, index, scratch, pixel_center, conic);
  check_size("splat_topk", a, a.scratch);
  GpuLaunch launch("splat_topk", {{"means", &means, GpuLaunch::Buffer::in},
                                  {"shapes", &shapes, GpuLaunch::Buffer::in},
                                  {"colors", &colors, GpuLaunch::Buffer::in},
                                  {"opacities", &opacities, GpuLaunch::Buffer::in},
                                  {"offsets", &offsets, GpuLaunch::Buffer::in},
                                  {"image", &image, GpuLaunch::Buffer::out},
                                  {"index", &index, GpuLaunch::Buffer::out},
                                  {"scratch", &scratch, GpuLaunch::Buffer::out}});
  splat_topk_cuda(a, launch.stream());
  launch.finish();
}

void backward_cuda(const Tensor& grad_image, const Tensor& index, const Tensor& means, const Tensor& shapes,
                   const Tensor& colors, const Tensor& opacities, const Tensor& offsets, const Tensor& grad_means,
                   const Tensor& grad_shapes, const Tensor& grad_colors, const Tensor& grad_opacities,
                   const Tensor& scratch, double pixel_center, bool conic) {
  const SplatTopkBackward a =
      backward_args(kGpuDevice, grad_image, index, {means, shapes, colors, opacities, offsets},
                    {grad_means, grad_shapes, grad_colors, grad_opacities, scratch}, pixel_center, conic);
  check_size("splat_topk_backward", a, a.scratch);
  GpuLaunch launch("splat_topk_backward", {{"means", &means, GpuLaunch::Buffer::in},
                                           {"shapes", &shapes, GpuLaunch::Buffer::in},
                                           {"colors", &colors, GpuLaunch::Buffer::in},
                                           {"opacities", &opacities, GpuLaunch::Buffer::in},
                                           {"offsets", &offsets, GpuLaunch::Buffer::in},
                                           {"index", &index, GpuLaunch::Buffer::in},
                                           {"grad_image", &grad_image, GpuLaunch::Buffer::in},
                                           {"grad_means", &grad_means, GpuLaunch::Buffer::out},
                                           {"grad_shapes", &grad_shapes, GpuLaunch::Buffer::out},
                                           {"grad_colors", &grad_colors, GpuLaunch::Buffer::out},
                                           {"grad_opacities", &grad_opacities, GpuLaunch::Buffer::out},
                                           {"scratch", &scratch, GpuLaunch::Buffer::out}});
  splat_topk_backward_cuda(a, launch.stream());
  launch.finish();
}
#endif

}  // namespace

void register_splat_topk(py::module_& m) {
#ifdef VK_BUILD_CPU
  m.def("splat_topk_cpu", &forward_cpu);
  m.def("splat_topk_backward_cpu", &backward_cpu);
#endif
#ifdef VK_GPU
  m.def("splat_topk_cuda", &forward_cuda);
  m.def("splat_topk_backward_cuda", &backward_cuda);
#endif
}

}  // namespace vk
