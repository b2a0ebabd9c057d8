#include "core/bind.h"
#include "ops/splat_sum/splat_sum.h"

namespace vk {
namespace {

/// What forward and backward share. `image`: the image or its gradient, which gives the sizes.
void inputs(SplatSum& a, const Check& check, const Tensor& means, const Tensor& shapes, const Tensor& colors,
            const Tensor& opacities, const Tensor& background, const Tensor& offsets, const Tensor& image,
            double pixel_center, bool conic) {
  check.ndim(image, 4, "[B, H, W, C]");
  check.ndim(means, 2, "[N, 2]");
  const int64_t count = means.size(0), images = image.size(0), channels = image.size(3);
  check.shape(means, {count, 2});
  check.shape(shapes, {count, 3});
  check.shape(colors, {count, channels});
  if (opacities.defined()) check.shape(opacities, {count});
  a.background_rows = 0;
  if (background.defined()) {
    check.ndim(background, 2, "[1 or B, C]");
    a.background_rows = background.size(0);
    check.require(a.background_rows == 1 || a.background_rows == images, "expected one background, or one per image.");
    check.shape(background, {a.background_rows, channels});
  }
  for (const Tensor* t : {&means, &shapes, &colors, &opacities, &background, &image}) {
    if (!t->defined()) continue;
    check.dtype(*t, {Dtype::f32});
    check.contiguous(*t);
  }
  if (offsets.defined()) {
    check.shape(offsets, {images + 1});
    check.dtype(offsets, {Dtype::i64});
    check.contiguous(offsets);
  } else {
    check.require(images == 1, "expected one image where `offsets` is None.");
  }
  check.require(count < (int64_t(1) << 31) && image.size(1) < (1 << 20) && image.size(2) < (1 << 20),
                "at most 2^31 - 1 Gaussians and 2^20 pixels along a side.");
  a.means = means.ptr<float>();
  a.shapes = shapes.ptr<float>();
  a.colors = colors.ptr<float>();
  a.opacities = opacities.defined() ? opacities.ptr<float>() : nullptr;
  a.background = background.defined() ? background.ptr<float>() : nullptr;
  a.offsets = offsets.defined() ? offsets.ptr<int64_t>() : nullptr;
  a.count = count;
  a.images = images;
  a.height = image.size(1);
  a.width = image.size(2);
  a.channels = channels;
  a.pixel_center = float(pixel_center);
  a.conic = conic;
}

#ifdef VK_BUILD_CPU
void check_offsets(const Check& check, const SplatSum& a) {
  if (!a.offsets) return;
  bool rising = a.offsets[0] == 0 && a.offsets[a.images] == a.count;
  for (int64_t i = 0; i < a.images; ++i) rising = rising && a.offsets[i] <= a.offsets[i + 1];
  check.require(rising, "expected `offsets` to rise from 0 to N.");
}
#endif

SplatSumForward forward_args(int device, const Tensor& means, const Tensor& shapes, const Tensor& colors,
                             const Tensor& opacities, const Tensor& background, const Tensor& offsets,
                             const Tensor& image, const Tensor& scratch, double pixel_center, bool conic) {
  const Check check("splat_sum", device,
                    {{"means", &means},
                     {"shapes", &shapes},
                     {"colors", &colors},
                     {"opacities", &opacities},
                     {"background", &background},
                     {"offsets", &offsets},
                     {"image", &image},
                     {"scratch", &scratch}});
  SplatSumForward a{};
  inputs(a, check, means, shapes, colors, opacities, background, offsets, image, pixel_center, conic);
  check.output(image);
  if (scratch.defined()) check.output(scratch);
  a.image = image.ptr<float>();
  a.scratch = scratch.defined() ? scratch.data() : nullptr;
#ifdef VK_BUILD_CPU
  if (device == kDLCPU) check_offsets(check, a);
#endif
  return a;
}

SplatSumBackward backward_args(int device, const Tensor& grad_image, const Tensor& means, const Tensor& shapes,
                               const Tensor& colors, const Tensor& opacities, const Tensor& background,
                               const Tensor& offsets, const Tensor& grad_means, const Tensor& grad_shapes,
                               const Tensor& grad_colors, const Tensor& grad_opacities, const Tensor& grad_background,
                               const Tensor& scratch, double pixel_center, bool conic) {
  const Check check("splat_sum_backward", device,
                    {{"grad_image", &grad_image},
                     {"means", &means},
                     {"shapes", &shapes},
                     {"colors", &colors},
                     {"opacities", &opacities},
                     {"background", &background},
                     {"offsets", &offsets},
                     {"grad_means", &grad_means},
                     {"grad_shapes", &grad_shapes},
                     {"grad_colors", &grad_colors},
                     {"grad_opacities", &grad_opacities},
                     {"grad_background", &grad_background},
                     {"scratch", &scratch}});
  SplatSumBackward a{};
  inputs(a, check, means, shapes, colors, opacities, background, offsets, grad_image, pixel_center, conic);
  check.shape(grad_means, {a.count, 2});
  check.shape(grad_shapes, {a.count, 3});
  check.shape(grad_colors, {a.count, a.channels});
  if (grad_opacities.defined()) check.shape(grad_opacities, {a.count});
  if (grad_background.defined()) check.shape(grad_background, {a.background_rows, a.channels});
  for (const Tensor* t : {&grad_means, &grad_shapes, &grad_colors, &grad_opacities, &grad_background}) {
    if (!t->defined()) continue;
    check.dtype(*t, {Dtype::f32});
    check.output(*t);
  }
  if (scratch.defined()) check.output(scratch);
  a.grad_image = grad_image.ptr<float>();
  a.grad_means = grad_means.ptr<float>();
  a.grad_shapes = grad_shapes.ptr<float>();
  a.grad_colors = grad_colors.ptr<float>();
  a.grad_opacities = grad_opacities.defined() ? grad_opacities.ptr<float>() : nullptr;
  a.grad_background = grad_background.defined() ? grad_background.ptr<float>() : nullptr;
  a.scratch = scratch.defined() ? scratch.data() : nullptr;
#ifdef VK_BUILD_CPU
  if (device == kDLCPU) check_offsets(check, a);
#endif
  return a;
}

#ifdef VK_BUILD_CPU
void forward_cpu(const Tensor& means, const Tensor& shapes, const Tensor& colors, const Tensor& opacities,
                 const Tensor& background, const Tensor& offsets, const Tensor& image, const Tensor& scratch,
                 double pixel_center, bool conic) {
  VK_CPU_CALL(splat_sum, forward_args(kDLCPU, means, shapes, colors, opacities, background, offsets, image, scratch,
                                      pixel_center, conic));
}

void backward_cpu(const Tensor& grad_image, const Tensor& means, const Tensor& shapes, const Tensor& colors,
                  const Tensor& opacities, const Tensor& background, const Tensor& offsets, const Tensor& grad_means,
                  const Tensor& grad_shapes, const Tensor& grad_colors, const Tensor& grad_opacities,
                  const Tensor& grad_background, const Tensor& scratch, double pixel_center, bool conic) {
  VK_CPU_CALL(splat_sum_backward,
              backward_args(kDLCPU, grad_image, means, shapes, colors, opacities, background, offsets, grad_means,
                            grad_shapes, grad_colors, grad_opacities, grad_background, scratch, pixel_center, conic));
}
#endif

#ifdef VK_GPU
using Buffer = GpuLaunch::Buffer;

int64_t bytes_of(const Tensor& t) { return t.defined() ? t.span_bytes() : 0; }

void forward_cuda(const Tensor& means, const Tensor& shapes, const Tensor& colors, const Tensor& opacities,
                  const Tensor& background, const Tensor& offsets, const Tensor& image, const Tensor& scratch,
                  double pixel_center, bool conic) {
  const SplatSumForward a = forward_args(kGpuDevice, means, shapes, colors, opacities, background, offsets, image,
                                         scratch, pixel_center, conic);
  if (a.images * a.height * a.width >= int64_t(1) << 36)
    throw py::value_error("splat_sum: too many pixels for one launch.");
  if (bytes_of(scratch) < splat_sum_scratch_bytes(a.count, a.images, a.height, a.width))
    throw py::value_error("splat_sum: `scratch` is too small.");
  GpuLaunch launch("splat_sum", {{"means", &means, Buffer::in},
                                 {"shapes", &shapes, Buffer::in},
                                 {"colors", &colors, Buffer::in},
                                 {"opacities", &opacities, Buffer::in},
                                 {"background", &background, Buffer::in},
                                 {"offsets", &offsets, Buffer::in},
                                 {"image", &image, Buffer::out},
                                 {"scratch", &scratch, Buffer::out}});
  splat_sum_cuda(a, launch.stream());
  launch.finish();
}

void backward_cuda(const Tensor& grad_image, const Tensor& means, const Tensor& shapes, const Tensor& colors,
                   const Tensor& opacities, const Tensor& background, const Tensor& offsets, const Tensor& grad_means,
                   const Tensor& grad_shapes, const Tensor& grad_colors, const Tensor& grad_opacities,
                   const Tensor& grad_background, const Tensor& scratch, double pixel_center, bool conic) {
  const SplatSumBackward a =
      backward_args(kGpuDevice, grad_image, means, shapes, colors, opacities, background, offsets, grad_means,
                    grad_shapes, grad_colors, grad_opacities, grad_background, scratch, pixel_center, conic);
  if (a.grad_background && bytes_of(scratch) < splat_sum_backward_scratch_bytes(a.images, a.channels))
    throw py::value_error("splat_sum_backward: `scratch` is too small.");
  GpuLaunch launch("splat_sum_backward", {{"grad_image", &grad_image, Buffer::in},
                                          {"means", &means, Buffer::in},
                                          {"shapes", &shapes, Buffer::in},
                                          {"colors", &colors, Buffer::in},
                                          {"opacities", &opacities, Buffer::in},
                                          {"background", &background, Buffer::in},
                                          {"offsets", &offsets, Buffer::in},
                                          {"grad_means", &grad_means, Buffer::out},
                                          {"grad_shapes", &grad_shapes, Buffer::out},
                                          {"grad_colors", &grad_colors, Buffer::out},
                                          {"grad_opacities", &grad_opacities, Buffer::out},
                                          {"grad_background", &grad_background, Buffer::out},
                                          {"scratch", &scratch, Buffer::out}});
  splat_sum_backward_cuda(a, launch.stream());
  launch.finish();
}
#endif

}  // namespace

void register_splat_sum(py::module_& m) {
#ifdef VK_BUILD_CPU
  m.def("splat_sum_cpu", &forward_cpu);
  m.def("splat_sum_backward_cpu", &backward_cpu);
#endif
#ifdef VK_GPU
  m.def("splat_sum_cuda", &forward_cuda);
  m.def("splat_sum_backward_cuda", &backward_cuda);
#endif
}

}  // namespace vk
