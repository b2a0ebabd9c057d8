#include "core/bind.h"
#include "ops/splat_alpha/splat_alpha.h"

namespace vk {
namespace {

struct Inputs {
  const Tensor &means, &shapes, &colors, &opacities, &background, &offsets;
};

/// What forward and backward share. `image`: the image or its gradient, which gives the sizes.
void fill(SplatAlpha& a, const Check& check, const Inputs& in, const Tensor& image, double pixel_center, bool conic) {
  check.ndim(image, 4, "[B, H, W, C]");
  check.ndim(in.means, 2, "[N, 2]");
  const int64_t count = in.means.size(0), images = image.size(0), channels = image.size(3);
  check.shape(in.means, {count, 2});
  check.shape(in.shapes, {count, 3});
  check.shape(in.colors, {count, channels});
  check.shape(in.opacities, {count});
  a.background_rows = 0;
  if (in.background.defined()) {
    check.ndim(in.background, 2, "[1 or B, C]");
    a.background_rows = in.background.size(0);
    check.require(a.background_rows == 1 || a.background_rows == images, "expected one background, or one per image.");
    check.shape(in.background, {a.background_rows, channels});
  }
  for (const Tensor* t : {&in.means, &in.shapes, &in.colors, &in.opacities, &in.background, &image}) {
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
  a.opacities = in.opacities.ptr<float>();
  a.background = in.background.defined() ? in.background.ptr<float>() : nullptr;
  a.offsets = in.offsets.defined() ? in.offsets.ptr<int64_t>() : nullptr;
  a.count = count;
  a.images = images;
  a.height = image.size(1);
  a.width = image.size(2);
  a.channels = channels;
  a.pixel_center = float(pixel_center);
  a.conic = conic;
}

SplatAlphaForward forward_args(int device, const Inputs& in, const Tensor& depths, const Tensor& image,
                               const Tensor& alpha, const Tensor& order, const Tensor& scratch, double pixel_center,
                               bool conic) {
  const Check check("splat_alpha", device,
                    {{"means", &in.means},
                     {"shapes", &in.shapes},
                     {"colors", &in.colors},
                     {"opacities", &in.opacities},
                     {"depths", &depths},
                     {"background", &in.background},
                     {"offsets", &in.offsets},
                     {"image", &image},
                     {"alpha", &alpha},
                     {"order", &order},
                     {"scratch", &scratch}});
  SplatAlphaForward a{};
  fill(a, check, in, image, pixel_center, conic);
  check.shape(depths, {a.count});
  check.dtype(depths, {Dtype::f32});
  check.contiguous(depths);
  check.shape(alpha, {a.images, a.height, a.width});
  check.dtype(alpha, {Dtype::f32});
  check.shape(order, {a.count});
  check.dtype(order, {Dtype::i32});
  for (const Tensor* t : {&image, &alpha, &order, &scratch})
    if (t->defined()) check.output(*t);
  a.depths = depths.ptr<float>();
  a.image = image.ptr<float>();
  a.alpha = alpha.ptr<float>();
  a.order = order.ptr<int32_t>();
  a.scratch = scratch.defined() ? scratch.data() : nullptr;
  return a;
}

struct Given {
  const Tensor &grad_image, &grad_alpha, &image, &alpha, &order;
};
struct Gradients {
  const Tensor &means, &shapes, &colors, &opacities, &background, &absgrad, &scratch;
};

SplatAlphaBackward backward_args(int device, const Given& given, const Inputs& in, const Gradients& out,
                                 double pixel_center, bool conic) {
  const Check check("splat_alpha_backward", device,
                    {{"grad_image", &given.grad_image},
                     {"grad_alpha", &given.grad_alpha},
                     {"image", &given.image},
                     {"alpha", &given.alpha},
                     {"order", &given.order},
                     {"means", &in.means},
                     {"shapes", &in.shapes},
                     {"colors", &in.colors},
                     {"opacities", &in.opacities},
                     {"background", &in.background},
                     {"offsets", &in.offsets},
                     {"grad_means", &out.means},
                     {"grad_shapes", &out.shapes},
                     {"grad_colors", &out.colors},
                     {"grad_opacities", &out.opacities},
                     {"grad_background", &out.background},
                     {"absgrad", &out.absgrad},
                     {"scratch", &out.scratch}});
  SplatAlphaBackward a{};
  fill(a, check, in, given.grad_image, pixel_center, conic);
  check.shape(given.image, {a.images, a.height, a.width, a.channels});
  for (const Tensor* t : {&given.alpha, &given.grad_alpha})
    if (t->defined()) check.shape(*t, {a.images, a.height, a.width});
  for (const Tensor* t : {&given.image, &given.alpha, &given.grad_alpha}) {
    if (!t->defined()) continue;
    check.dtype(*t, {Dtype::f32});
    check.contiguous(*t);
  }
  check.shape(given.order, {a.count});
  check.dtype(given.order, {Dtype::i32});
  check.contiguous(given.order);
  if (given.order.device_type() == kDLCPU) {
    const int32_t* order = given.order.ptr<int32_t>();
    bool inside = true;
    for (int64_t i = 0; i < a.count; ++i) inside = inside && uint32_t(order[i]) < uint64_t(a.count);
    check.require(inside, "expected `order` to hold rows of `means`.");
  }
  check.shape(out.means, {a.count, 2});
  check.shape(out.shapes, {a.count, 3});
  check.shape(out.colors, {a.count, a.channels});
  check.shape(out.opacities, {a.count});
  if (out.background.defined()) check.shape(out.background, {a.background_rows, a.channels});
  if (out.absgrad.defined()) check.shape(out.absgrad, {a.count, 2});
  for (const Tensor* t : {&out.means, &out.shapes, &out.colors, &out.opacities, &out.background, &out.absgrad}) {
    if (!t->defined()) continue;
    check.dtype(*t, {Dtype::f32});
    check.output(*t);
  }
  if (out.scratch.defined()) check.output(out.scratch);
  const auto floats = [](const Tensor& t) { return t.defined() ? t.ptr<float>() : nullptr; };
  a.grad_image = floats(given.grad_image);
  a.grad_alpha = floats(given.grad_alpha);
  a.image = floats(given.image);
  a.alpha = floats(given.alpha);
  a.order = given.order.ptr<int32_t>();
  a.grad_means = floats(out.means);
  a.grad_shapes = floats(out.shapes);
  a.grad_colors = floats(out.colors);
  a.grad_opacities = floats(out.opacities);
  a.grad_background = floats(out.background);
  a.absgrad = floats(out.absgrad);
  a.scratch = out.scratch.defined() ? out.scratch.data() : nullptr;
  return a;
}

#ifdef VK_BUILD_CPU
void forward_cpu(const Tensor& means, const Tensor& shapes, const Tensor& colors, const Tensor& opacities,
                 const Tensor& depths, const Tensor& background, const Tensor& offsets, const Tensor& image,
                 const Tensor& alpha, const Tensor& order, const Tensor& scratch, double pixel_center, bool conic) {
  VK_CPU_CALL(splat_alpha, forward_args(kDLCPU, {means, shapes, colors, opacities, background, offsets}, depths, image,
                                        alpha, order, scratch, pixel_center, conic));
}

void backward_cpu(const Tensor& grad_image, const Tensor& grad_alpha, const Tensor& image, const Tensor& alpha,
                  const Tensor& order, const Tensor& means, const Tensor& shapes, const Tensor& colors,
                  const Tensor& opacities, const Tensor& background, const Tensor& offsets, const Tensor& grad_means,
                  const Tensor& grad_shapes, const Tensor& grad_colors, const Tensor& grad_opacities,
                  const Tensor& grad_background, const Tensor& absgrad, const Tensor& scratch, double pixel_center,
                  bool conic) {
  VK_CPU_CALL(splat_alpha_backward,
              backward_args(kDLCPU, {grad_image, grad_alpha, image, alpha, order},
                            {means, shapes, colors, opacities, background, offsets},
                            {grad_means, grad_shapes, grad_colors, grad_opacities, grad_background, absgrad, scratch},
                            pixel_center, conic));
}
#endif

#ifdef VK_GPU
/// The exact sums of the backward pass have room for 2^16 windows of 32x32 pixels an image.
void check_size(const char* op, const SplatAlpha& a, const void* scratch) {
  const int64_t windows = ((a.height + 31) / 32) * ((a.width + 31) / 32);
  if (windows > (int64_t(1) << 16) || a.images * windows >= (int64_t(1) << 31) ||
      a.count * a.channels >= (int64_t(1) << 38))
    throw py::value_error(std::string(op) + ": too large for one launch; at most 2^26 pixels an image.");
  if (a.count > 0 && !scratch) throw py::value_error(std::string(op) + ": the CUDA kernel needs `scratch`.");
}

void forward_cuda(const Tensor& means, const Tensor& shapes, const Tensor& colors, const Tensor& opacities,
                  const Tensor& depths, const Tensor& background, const Tensor& offsets, const Tensor& image,
                  const Tensor& alpha, const Tensor& order, const Tensor& scratch, double pixel_center, bool conic) {
  const SplatAlphaForward a = forward_args(kGpuDevice, {means, shapes, colors, opacities, background, offsets}, depths,
                                           image, alpha, order, scratch, pixel_center, conic);
  check_size("splat_alpha", a, a.scratch);
  GpuLaunch launch("splat_alpha", {{"means", &means, GpuLaunch::Buffer::in},
                                   {"shapes", &shapes, GpuLaunch::Buffer::in},
                                   {"colors", &colors, GpuLaunch::Buffer::in},
                                   {"opacities", &opacities, GpuLaunch::Buffer::in},
                                   {"background", &background, GpuLaunch::Buffer::in},
                                   {"offsets", &offsets, GpuLaunch::Buffer::in},
                                   {"order", &order, GpuLaunch::Buffer::in},
                                   {"image", &image, GpuLaunch::Buffer::out},
                                   {"alpha", &alpha, GpuLaunch::Buffer::out},
                                   {"scratch", &scratch, GpuLaunch::Buffer::out}});
  splat_alpha_cuda(a, launch.stream());
  launch.finish();
}

void backward_cuda(const Tensor& grad_image, const Tensor& grad_alpha, const Tensor& image, const Tensor& alpha,
                   const Tensor& order, const Tensor& means, const Tensor& shapes, const Tensor& colors,
                   const Tensor& opacities, const Tensor& background, const Tensor& offsets, const Tensor& grad_means,
                   const Tensor& grad_shapes, const Tensor& grad_colors, const Tensor& grad_opacities,
                   const Tensor& grad_background, const Tensor& absgrad, const Tensor& scratch, double pixel_center,
                   bool conic) {
  const SplatAlphaBackward a = backward_args(
      kGpuDevice, {grad_image, grad_alpha, image, alpha, order},
      {means, shapes, colors, opacities, background, offsets},
      {grad_means, grad_shapes, grad_colors, grad_opacities, grad_background, absgrad, scratch}, pixel_center, conic);
  check_size("splat_alpha_backward", a, a.scratch);
  GpuLaunch launch("splat_alpha_backward", {{"means", &means, GpuLaunch::Buffer::in},
                                            {"shapes", &shapes, GpuLaunch::Buffer::in},
                                            {"colors", &colors, GpuLaunch::Buffer::in},
                                            {"opacities", &opacities, GpuLaunch::Buffer::in},
                                            {"offsets", &offsets, GpuLaunch::Buffer::in},
                                            {"order", &order, GpuLaunch::Buffer::in},
                                            {"image", &image, GpuLaunch::Buffer::in},
                                            {"alpha", &alpha, GpuLaunch::Buffer::in},
                                            {"grad_image", &grad_image, GpuLaunch::Buffer::in},
                                            {"grad_alpha", &grad_alpha, GpuLaunch::Buffer::in},
                                            {"grad_means", &grad_means, GpuLaunch::Buffer::out},
                                            {"grad_shapes", &grad_shapes, GpuLaunch::Buffer::out},
                                            {"grad_colors", &grad_colors, GpuLaunch::Buffer::out},
                                            {"grad_opacities", &grad_opacities, GpuLaunch::Buffer::out},
                                            {"grad_background", &grad_background, GpuLaunch::Buffer::out},
                                            {"absgrad", &absgrad, GpuLaunch::Buffer::out},
                                            {"scratch", &scratch, GpuLaunch::Buffer::out}});
  splat_alpha_backward_cuda(a, launch.stream());
  launch.finish();
}
#endif

}  // namespace

void register_splat_alpha(py::module_& m) {
#ifdef VK_BUILD_CPU
  m.def("splat_alpha_cpu", &forward_cpu);
  m.def("splat_alpha_backward_cpu", &backward_cpu);
#endif
#ifdef VK_GPU
  m.def("splat_alpha_cuda", &forward_cuda);
  m.def("splat_alpha_backward_cuda", &backward_cuda);
#endif
}

}  // namespace vk
