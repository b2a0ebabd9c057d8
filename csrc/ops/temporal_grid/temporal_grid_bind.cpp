#include <pybind11/stl.h>

#include "core/bind.h"
#include "ops/temporal_grid/temporal_grid.h"

namespace vk {
namespace {

using Lengths = std::vector<int64_t>;

TemporalGrid arguments(const Check& check, const Tensor& grid, const Tensor& t, const Tensor& out,
                       const Lengths& lengths, int64_t scale, bool concat) {
  check.ndim(grid, 4, "[N, h, w, C]");
  check.dtype(grid, {Dtype::f32, Dtype::f16, Dtype::bf16});
  check.contiguous(grid);
  check.ndim(t, 1, "[B]");
  check.dtype(t, {Dtype::f64});
  check.contiguous(t);
  check.require(!lengths.empty() && lengths.size() <= size_t(kMaxLevels),
                "expected 1 to " + std::to_string(kMaxLevels) + " levels.");
  check.require(scale >= 1, "expected a scale of 1 or more.");
  TemporalGrid a{grid.data(),  t.ptr<double>(), out.data(),      nullptr, t.size(0),
                 grid.size(1), grid.size(2),    grid.size(3),    scale,   int64_t(lengths.size()),
                 {},           concat,          element_of(grid)};
  for (size_t l = 0; l < lengths.size(); ++l) {
    check.require(lengths[l] >= 1, "expected levels of one frame or more.");
    a.lengths[l] = lengths[l];
  }
  check.require(a.total() == grid.size(0), "expected `lengths` to add up to the frames of `grid`.");
  check.shape(out, {a.batch, a.height * scale, a.width_cells * scale, a.width()});
  check.dtype(out, {grid.dtype()});
  check.contiguous(out);
  return a;
}

TemporalGrid forward_args(int device, const Tensor& grid, const Tensor& t, const Tensor& out, const Lengths& lengths,
                          int64_t scale, bool concat) {
  const Check check("temporal_grid", device, {{"grid", &grid}, {"t", &t}, {"out", &out}});
  check.output(out);
  return arguments(check, grid, t, out, lengths, scale, concat);
}

TemporalGrid backward_args(int device, const Tensor& grad, const Tensor& t, const Tensor& grid, const Tensor& frames,
                           const Lengths& lengths, int64_t scale, bool concat) {
  const Check check("temporal_grid_backward", device,
                    {{"grad", &grad}, {"t", &t}, {"grid", &grid}, {"frames", &frames}});
  check.output(grid);
  TemporalGrid a = arguments(check, grid, t, grad, lengths, scale, concat);
  if (frames.defined()) {
    check.shape(frames, {a.batch, a.height, a.width_cells, a.width()});
    check.dtype(frames, {Dtype::f32});
    check.output(frames);
    a.frames = frames.ptr<float>();
  }
  return a;
}

#ifdef VK_BUILD_CPU
void forward_cpu(const Tensor& grid, const Tensor& t, const Tensor& out, const Lengths& lengths, int64_t scale,
                 bool concat) {
  VK_CPU_CALL(temporal_grid, forward_args(kDLCPU, grid, t, out, lengths, scale, concat));
}

void backward_cpu(const Tensor& grad, const Tensor& t, const Tensor& grid, const Tensor& frames, const Lengths& lengths,
                  int64_t scale, bool concat) {
  VK_CPU_CALL(temporal_grid_backward, backward_args(kDLCPU, grad, t, grid, frames, lengths, scale, concat));
}
#endif

#ifdef VK_GPU
using Buffer = GpuLaunch::Buffer;

void forward_cuda(const Tensor& grid, const Tensor& t, const Tensor& out, const Lengths& lengths, int64_t scale,
                  bool concat) {
  const TemporalGrid a = forward_args(kGpuDevice, grid, t, out, lengths, scale, concat);
  GpuLaunch launch("temporal_grid", {{"grid", &grid, Buffer::in}, {"t", &t, Buffer::in}, {"out", &out, Buffer::out}});
  temporal_grid_cuda(a, launch.stream());
  launch.finish();
}

void backward_cuda(const Tensor& grad, const Tensor& t, const Tensor& grid, const Tensor& frames,
                   const Lengths& lengths, int64_t scale, bool concat) {
  const TemporalGrid a = backward_args(kGpuDevice, grad, t, grid, frames, lengths, scale, concat);
  if (!frames.defined()) throw py::value_error("temporal_grid_backward: the CUDA kernel needs `frames`.");
  GpuLaunch launch("temporal_grid_backward", {{"grad", &grad, Buffer::in},
                                              {"t", &t, Buffer::in},
                                              {"grid", &grid, Buffer::out},
                                              {"frames", &frames, Buffer::out}});
  temporal_grid_backward_cuda(a, launch.stream());
  launch.finish();
}
#endif

}  // namespace

void register_temporal_grid(py::module_& m) {
#ifdef VK_BUILD_CPU
  m.def("temporal_grid_cpu", &forward_cpu);
  m.def("temporal_grid_backward_cpu", &backward_cpu);
#endif
#ifdef VK_GPU
  m.def("temporal_grid_cuda", &forward_cuda);
  m.def("temporal_grid_backward_cuda", &backward_cuda);
#endif
}

}  // namespace vk
