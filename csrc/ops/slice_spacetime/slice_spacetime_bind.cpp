#include "core/bind.h"
#include "ops/slice_spacetime/slice_spacetime.h"

namespace vk {
namespace {

void check_inputs(const Check& check, const Tensor& means, const Tensor& cholesky, const Tensor& times) {
  check.ndim(means, 2, "[N, 3]");
  check.dtype(means, {Dtype::f32, Dtype::f64});
  check.shape(means, {-1, 3});
  check.shape(cholesky, {means.size(0), 6});
  check.ndim(times, 1, "[T]");
  for (const Tensor* t : {&means, &cholesky, &times}) check.dtype(*t, {means.dtype()}), check.contiguous(*t);
}

void check_slices(const Check& check, const Tensor& means, const Tensor& times, const Tensor& means2d,
                  const Tensor& cholesky2d, const Tensor& weight) {
  const int64_t count = means.size(0), moments = times.size(0);
  check.shape(means2d, {moments, count, 2});
  check.shape(cholesky2d, {count, 3});
  check.shape(weight, {moments, count});
  for (const Tensor* t : {&means2d, &cholesky2d, &weight}) check.dtype(*t, {means.dtype()}), check.contiguous(*t);
}

SliceSpacetime forward_args(int device, const Tensor& means, const Tensor& cholesky, const Tensor& times,
                            const Tensor& means2d, const Tensor& cholesky2d, const Tensor& weight) {
  const Check check("slice_spacetime", device,
                    {{"means", &means},
                     {"cholesky", &cholesky},
                     {"times", &times},
                     {"means2d", &means2d},
                     {"cholesky2d", &cholesky2d},
                     {"weight", &weight}});
  check_inputs(check, means, cholesky, times);
  check_slices(check, means, times, means2d, cholesky2d, weight);
  for (const Tensor* t : {&means2d, &cholesky2d, &weight}) check.output(*t);
  return {means.data(),  cholesky.data(), times.data(),  means2d.data(),   cholesky2d.data(),
          weight.data(), means.size(0),   times.size(0), element_of(means)};
}

SliceSpacetimeBackward backward_args(int device, const Tensor& gm, const Tensor& gc, const Tensor& gw,
                                     const Tensor& means, const Tensor& cholesky, const Tensor& times,
                                     const Tensor& grad_means, const Tensor& grad_cholesky, const Tensor& grad_times,
                                     const Tensor& partial) {
  const Check check("slice_spacetime_backward", device,
                    {{"grad_means2d", &gm},
                     {"grad_cholesky2d", &gc},
                     {"grad_weight", &gw},
                     {"means", &means},
                     {"cholesky", &cholesky},
                     {"times", &times},
                     {"grad_means", &grad_means},
                     {"grad_cholesky", &grad_cholesky},
                     {"grad_times", &grad_times},
                     {"partial", &partial}});
  check_inputs(check, means, cholesky, times);
  check_slices(check, means, times, gm, gc, gw);
  check.shape(grad_means, {means.size(0), 3});
  check.shape(grad_cholesky, {means.size(0), 6});
  check.shape(grad_times, {times.size(0)});
  for (const Tensor* t : {&grad_means, &grad_cholesky, &grad_times}) check.dtype(*t, {means.dtype()}), check.output(*t);
  check.shape(partial, {(means.size(0) + kSliceBlock - 1) / kSliceBlock, times.size(0)});
  check.dtype(partial, {Dtype::f64});
  check.output(partial);
  return {gm.data(),         gc.data(),
          gw.data(),         means.data(),
          cholesky.data(),   times.data(),
          grad_means.data(), grad_cholesky.data(),
          grad_times.data(), partial.ptr<double>(),
          means.size(0),     times.size(0),
          element_of(means)};
}

#ifdef VK_BUILD_CPU
void forward_cpu(const Tensor& means, const Tensor& cholesky, const Tensor& times, const Tensor& means2d,
                 const Tensor& cholesky2d, const Tensor& weight) {
  const SliceSpacetime a = forward_args(kDLCPU, means, cholesky, times, means2d, cholesky2d, weight);
  VK_CPU_CALL(slice_spacetime, a);
}

void backward_cpu(const Tensor& gm, const Tensor& gc, const Tensor& gw, const Tensor& means, const Tensor& cholesky,
                  const Tensor& times, const Tensor& grad_means, const Tensor& grad_cholesky, const Tensor& grad_times,
                  const Tensor& partial) {
  const SliceSpacetimeBackward a =
      backward_args(kDLCPU, gm, gc, gw, means, cholesky, times, grad_means, grad_cholesky, grad_times, partial);
  VK_CPU_CALL(slice_spacetime_backward, a);
}
#endif

#ifdef VK_GPU
void forward_cuda(const Tensor& means, const Tensor& cholesky, const Tensor& times, const Tensor& means2d,
                  const Tensor& cholesky2d, const Tensor& weight) {
  const SliceSpacetime a = forward_args(kGpuDevice, means, cholesky, times, means2d, cholesky2d, weight);
  GpuLaunch launch("slice_spacetime", {{"means", &means, GpuLaunch::Buffer::in},
                                       {"cholesky", &cholesky, GpuLaunch::Buffer::in},
                                       {"times", &times, GpuLaunch::Buffer::in},
                                       {"means2d", &means2d, GpuLaunch::Buffer::out},
                                       {"cholesky2d", &cholesky2d, GpuLaunch::Buffer::out},
                                       {"weight", &weight, GpuLaunch::Buffer::out}});
  slice_spacetime_cuda(a, launch.stream());
  launch.finish();
}

void backward_cuda(const Tensor& gm, const Tensor& gc, const Tensor& gw, const Tensor& means, const Tensor& cholesky,
                   const Tensor& times, const Tensor& grad_means, const Tensor& grad_cholesky, const Tensor& grad_times,
                   const Tensor& partial) {
  const SliceSpacetimeBackward a =
      backward_args(kGpuDevice, gm, gc, gw, means, cholesky, times, grad_means, grad_cholesky, grad_times, partial);
  GpuLaunch launch("slice_spacetime_backward", {{"grad_means2d", &gm, GpuLaunch::Buffer::in},
                                                {"grad_cholesky2d", &gc, GpuLaunch::Buffer::in},
                                                {"grad_weight", &gw, GpuLaunch::Buffer::in},
                                                {"means", &means, GpuLaunch::Buffer::in},
                                                {"cholesky", &cholesky, GpuLaunch::Buffer::in},
                                                {"times", &times, GpuLaunch::Buffer::in},
                                                {"grad_means", &grad_means, GpuLaunch::Buffer::out},
                                                {"grad_cholesky", &grad_cholesky, GpuLaunch::Buffer::out},
                                                {"grad_times", &grad_times, GpuLaunch::Buffer::out},
                                                {"partial", &partial, GpuLaunch::Buffer::out}});
  slice_spacetime_backward_cuda(a, launch.stream());
  launch.finish();
}
#endif

}  // namespace

void register_slice_spacetime(py::module_& m) {
#ifdef VK_BUILD_CPU
  m.def("slice_spacetime_cpu", &forward_cpu);
  m.def("slice_spacetime_backward_cpu", &backward_cpu);
#endif
#ifdef VK_GPU
  m.def("slice_spacetime_cuda", &forward_cuda);
  m.def("slice_spacetime_backward_cuda", &backward_cuda);
#endif
}

}  // namespace vk
