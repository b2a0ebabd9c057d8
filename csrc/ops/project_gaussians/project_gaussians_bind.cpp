#include "core/bind.h"
#include "ops/project_gaussians/project_gaussians.h"

namespace vk {
namespace {

void check_inputs(const Check& check, const Tensor& means, const Tensor& shapes, const Tensor& scales,
                  const Tensor& viewmats, const Tensor& Ks) {
  check.ndim(means, 3, "[B, N, 3]");
  check.dtype(means, {Dtype::f32, Dtype::f64});
  check.ndim(viewmats, 4, "[B, C, 4, 4]");
  const int64_t batch = means.size(0), count = means.size(1), views = viewmats.size(1);
  check.shape(means, {-1, -1, 3});
  check.shape(shapes, {batch, count, scales.defined() ? 4 : 6});
  if (scales.defined()) check.shape(scales, {batch, count, 3});
  check.shape(viewmats, {batch, views, 4, 4});
  check.shape(Ks, {batch, views, 3, 3});
  for (const Tensor* t : {&means, &shapes, &scales, &viewmats, &Ks})
    if (t->defined()) check.dtype(*t, {means.dtype()}), check.contiguous(*t);
}

void check_pairs(const Check& check, const Tensor& t, const Tensor& means, const Tensor& viewmats, int64_t width,
                 bool output) {
  const int64_t batch = means.size(0), count = means.size(1), views = viewmats.size(1);
  if (width)
    check.shape(t, {batch, views, count, width});
  else
    check.shape(t, {batch, views, count});
  check.dtype(t, {means.dtype()});
  check.contiguous(t);
  if (output) check.output(t);
}

ProjectGaussians forward_args(int device, const Tensor& means, const Tensor& shapes, const Tensor& scales,
                              const Tensor& viewmats, const Tensor& Ks, const Tensor& means2d, const Tensor& conics,
                              const Tensor& depths, const Tensor& extents, const Tensor& compensations, double width,
                              double height, double eps2d, double near_plane, double far_plane, double radius_clip,
                              bool ortho) {
  const Check check("project_gaussians", device,
                    {{"means", &means},
                     {"shapes", &shapes},
                     {"scales", &scales},
                     {"viewmats", &viewmats},
                     {"Ks", &Ks},
                     {"means2d", &means2d},
                     {"conics", &conics},
                     {"depths", &depths},
                     {"extents", &extents},
                     {"compensations", &compensations}});
  check_inputs(check, means, shapes, scales, viewmats, Ks);
  check_pairs(check, means2d, means, viewmats, 2, true);
  check_pairs(check, conics, means, viewmats, 3, true);
  check_pairs(check, depths, means, viewmats, 0, true);
  check_pairs(check, extents, means, viewmats, 2, true);
  check_pairs(check, compensations, means, viewmats, 0, true);
  return {means.data(),
          shapes.data(),
          scales.defined() ? scales.data() : nullptr,
          viewmats.data(),
          Ks.data(),
          means2d.data(),
          conics.data(),
          depths.data(),
          extents.data(),
          compensations.data(),
          means.size(0),
          means.size(1),
          viewmats.size(1),
          width,
          height,
          eps2d,
          near_plane,
          far_plane,
          radius_clip,
          ortho,
          element_of(means)};
}

ProjectGaussiansBackward backward_args(int device, const Tensor& gm, const Tensor& gc, const Tensor& gd,
                                       const Tensor& ge, const Tensor& gk, const Tensor& means, const Tensor& shapes,
                                       const Tensor& scales, const Tensor& viewmats, const Tensor& Ks,
                                       const Tensor& extents, const Tensor& grad_means, const Tensor& grad_shapes,
                                       const Tensor& grad_scales, const Tensor& grad_viewmats, const Tensor& grad_Ks,
                                       const Tensor& partial, double width, double height, double eps2d, bool ortho) {
  const Check check("project_gaussians_backward", device,
                    {{"grad_means2d", &gm},
                     {"grad_conics", &gc},
                     {"grad_depths", &gd},
                     {"grad_extents", &ge},
                     {"grad_compensations", &gk},
                     {"means", &means},
                     {"shapes", &shapes},
                     {"scales", &scales},
                     {"viewmats", &viewmats},
                     {"Ks", &Ks},
                     {"extents", &extents},
                     {"grad_means", &grad_means},
                     {"grad_shapes", &grad_shapes},
                     {"grad_scales", &grad_scales},
                     {"grad_viewmats", &grad_viewmats},
                     {"grad_Ks", &grad_Ks}});
  check_inputs(check, means, shapes, scales, viewmats, Ks);
  check_pairs(check, gm, means, viewmats, 2, false);
  check_pairs(check, gc, means, viewmats, 3, false);
  check_pairs(check, gd, means, viewmats, 0, false);
  check_pairs(check, ge, means, viewmats, 2, false);
  check_pairs(check, gk, means, viewmats, 0, false);
  check_pairs(check, extents, means, viewmats, 2, false);
  const int64_t batch = means.size(0), count = means.size(1), views = viewmats.size(1);
  check.shape(grad_means, {batch, count, 3});
  check.shape(grad_shapes, {batch, count, shapes.size(2)});
  if (scales.defined()) check.shape(grad_scales, {batch, count, 3});
  check.shape(grad_viewmats, {batch, views, 4, 4});
  check.shape(grad_Ks, {batch, views, 3, 3});
  for (const Tensor* t : {&grad_means, &grad_shapes, &grad_scales, &grad_viewmats, &grad_Ks})
    check.dtype(*t, {means.dtype()}), check.output(*t);
  const int64_t blocks = (count + kProjectBlock - 1) / kProjectBlock;
  const bool cameras = partial.ndim() == 4 && partial.size(1) > 0;
  check.require(partial.dtype() == Dtype::f64 && partial.is_contiguous() &&
                    (!cameras || partial.numel() == batch * blocks * views * kProjectCamera),
                "expected scratch memory `partial` of shape [B, blocks, C, 16], float64.");
  return {gm.data(),
          gc.data(),
          gd.data(),
          ge.data(),
          gk.data(),
          means.data(),
          shapes.data(),
          scales.defined() ? scales.data() : nullptr,
          viewmats.data(),
          Ks.data(),
          extents.data(),
          grad_means.data(),
          grad_shapes.data(),
          grad_scales.data(),
          grad_viewmats.data(),
          grad_Ks.data(),
          cameras ? partial.ptr<double>() : nullptr,
          batch,
          count,
          views,
          width,
          height,
          eps2d,
          ortho,
          element_of(means)};
}

#ifdef VK_BUILD_CPU
void forward_cpu(const Tensor& means, const Tensor& shapes, const Tensor& scales, const Tensor& viewmats,
                 const Tensor& Ks, const Tensor& means2d, const Tensor& conics, const Tensor& depths,
                 const Tensor& extents, const Tensor& compensations, double width, double height, double eps2d,
                 double near_plane, double far_plane, double radius_clip, bool ortho) {
  const ProjectGaussians a =
      forward_args(kDLCPU, means, shapes, scales, viewmats, Ks, means2d, conics, depths, extents, compensations, width,
                   height, eps2d, near_plane, far_plane, radius_clip, ortho);
  VK_CPU_CALL(project_gaussians, a);
}

void backward_cpu(const Tensor& gm, const Tensor& gc, const Tensor& gd, const Tensor& ge, const Tensor& gk,
                  const Tensor& means, const Tensor& shapes, const Tensor& scales, const Tensor& viewmats,
                  const Tensor& Ks, const Tensor& extents, const Tensor& grad_means, const Tensor& grad_shapes,
                  const Tensor& grad_scales, const Tensor& grad_viewmats, const Tensor& grad_Ks, const Tensor& partial,
                  double width, double height, double eps2d, bool ortho) {
  const ProjectGaussiansBackward a =
      backward_args(kDLCPU, gm, gc, gd, ge, gk, means, shapes, scales, viewmats, Ks, extents, grad_means, grad_shapes,
                    grad_scales, grad_viewmats, grad_Ks, partial, width, height, eps2d, ortho);
  VK_CPU_CALL(project_gaussians_backward, a);
}
#endif

#ifdef VK_GPU
void forward_cuda(const Tensor& means, const Tensor& shapes, const Tensor& scales, const Tensor& viewmats,
                  const Tensor& Ks, const Tensor& means2d, const Tensor& conics, const Tensor& depths,
                  const Tensor& extents, const Tensor& compensations, double width, double height, double eps2d,
                  double near_plane, double far_plane, double radius_clip, bool ortho) {
  const ProjectGaussians a =
      forward_args(kGpuDevice, means, shapes, scales, viewmats, Ks, means2d, conics, depths, extents, compensations,
                   width, height, eps2d, near_plane, far_plane, radius_clip, ortho);
  GpuLaunch launch("project_gaussians", {{"means", &means, GpuLaunch::Buffer::in},
                                         {"shapes", &shapes, GpuLaunch::Buffer::in},
                                         {"scales", &scales, GpuLaunch::Buffer::in},
                                         {"viewmats", &viewmats, GpuLaunch::Buffer::in},
                                         {"Ks", &Ks, GpuLaunch::Buffer::in},
                                         {"means2d", &means2d, GpuLaunch::Buffer::out},
                                         {"conics", &conics, GpuLaunch::Buffer::out},
                                         {"depths", &depths, GpuLaunch::Buffer::out},
                                         {"extents", &extents, GpuLaunch::Buffer::out},
                                         {"compensations", &compensations, GpuLaunch::Buffer::out}});
  project_gaussians_cuda(a, launch.stream());
  launch.finish();
}

void backward_cuda(const Tensor& gm, const Tensor& gc, const Tensor& gd, const Tensor& ge, const Tensor& gk,
                   const Tensor& means, const Tensor& shapes, const Tensor& scales, const Tensor& viewmats,
                   const Tensor& Ks, const Tensor& extents, const Tensor& grad_means, const Tensor& grad_shapes,
                   const Tensor& grad_scales, const Tensor& grad_viewmats, const Tensor& grad_Ks, const Tensor& partial,
                   double width, double height, double eps2d, bool ortho) {
  const ProjectGaussiansBackward a =
      backward_args(kGpuDevice, gm, gc, gd, ge, gk, means, shapes, scales, viewmats, Ks, extents, grad_means,
                    grad_shapes, grad_scales, grad_viewmats, grad_Ks, partial, width, height, eps2d, ortho);
  GpuLaunch launch("project_gaussians_backward", {{"grad_means2d", &gm, GpuLaunch::Buffer::in},
                                                  {"grad_conics", &gc, GpuLaunch::Buffer::in},
                                                  {"grad_depths", &gd, GpuLaunch::Buffer::in},
                                                  {"grad_extents", &ge, GpuLaunch::Buffer::in},
                                                  {"grad_compensations", &gk, GpuLaunch::Buffer::in},
                                                  {"means", &means, GpuLaunch::Buffer::in},
                                                  {"shapes", &shapes, GpuLaunch::Buffer::in},
                                                  {"scales", &scales, GpuLaunch::Buffer::in},
                                                  {"viewmats", &viewmats, GpuLaunch::Buffer::in},
                                                  {"Ks", &Ks, GpuLaunch::Buffer::in},
                                                  {"extents", &extents, GpuLaunch::Buffer::in},
                                                  {"grad_means", &grad_means, GpuLaunch::Buffer::out},
                                                  {"grad_shapes", &grad_shapes, GpuLaunch::Buffer::out},
                                                  {"grad_scales", &grad_scales, GpuLaunch::Buffer::out},
                                                  {"grad_viewmats", &grad_viewmats, GpuLaunch::Buffer::inout},
                                                  {"grad_Ks", &grad_Ks, GpuLaunch::Buffer::inout},
                                                  {"partial", &partial, GpuLaunch::Buffer::out}});
  project_gaussians_backward_cuda(a, launch.stream());
  launch.finish();
}
#endif

}  // namespace

void register_project_gaussians(py::module_& m) {
#ifdef VK_BUILD_CPU
  m.def("project_gaussians_cpu", &forward_cpu);
  m.def("project_gaussians_backward_cpu", &backward_cpu);
#endif
#ifdef VK_GPU
  m.def("project_gaussians_cuda", &forward_cuda);
  m.def("project_gaussians_backward_cuda", &backward_cuda);
#endif
}

}  // namespace vk
