#include <pybind11/stl.h>

#include <vector>

#include "core/bind.h"
#include "ops/newton_schulz/newton_schulz.h"

namespace vk {
namespace {

using Sizes = std::vector<int64_t>;

NewtonSchulz arguments(const Check& check, const Tensor& packed, const Tensor& out, const Sizes& rows,
                       const Sizes& cols, int64_t steps, double a, double b, double c, double eps) {
  check.ndim(packed, 1, "[total]");
  check.dtype(packed, {Dtype::f32});
  check.contiguous(packed);
  check.shape(out, {packed.size(0)});
  check.dtype(out, {Dtype::f32});
  check.output(out);
  check.require(rows.size() == cols.size(), "expected as many `rows` as `cols`.");
  check.require(steps >= 1 && eps > 0, "expected `steps` of 1 or more and a positive `eps`.");
  int64_t left = packed.size(0);
  for (size_t k = 0; k < rows.size(); ++k) {
    check.require(rows[k] >= 0 && cols[k] >= 0 && (cols[k] == 0 || rows[k] <= left / cols[k]),
                  "the matrices are larger than `packed`.");
    left -= rows[k] * cols[k];
  }
  check.require(left == 0, "`packed` is larger than its matrices.");
  return {packed.ptr<float>(),
          out.ptr<float>(),
          rows.data(),
          cols.data(),
          int64_t(rows.size()),
          steps,
          float(a),
          float(b),
          float(c),
          float(eps),
          nullptr};
}

#ifdef VK_BUILD_CPU
void run_cpu(const Tensor& packed, const Tensor& out, const Tensor& workspace, const Sizes& rows, const Sizes& cols,
             int64_t steps, double a, double b, double c, double eps) {
  const Check check("newton_schulz", kDLCPU, {{"packed", &packed}, {"out", &out}, {"workspace", &workspace}});
  const NewtonSchulz all = arguments(check, packed, out, rows, cols, steps, a, b, c, eps);
  VK_CPU_CALL(newton_schulz, all);
}
#endif

#ifdef VK_GPU
void run_cuda(const Tensor& packed, const Tensor& out, const Tensor& workspace, const Sizes& rows, const Sizes& cols,
              int64_t steps, double a, double b, double c, double eps) {
  const Check check("newton_schulz", kGpuDevice, {{"packed", &packed}, {"out", &out}, {"workspace", &workspace}});
  NewtonSchulz all = arguments(check, packed, out, rows, cols, steps, a, b, c, eps);
  int64_t floats = 0;
  for (size_t k = 0; k < rows.size(); ++k) floats += newton_schulz_workspace(rows[k], cols[k]);
  check.shape(workspace, {floats});
  check.dtype(workspace, {Dtype::f32});
  check.output(workspace);
  all.workspace = workspace.ptr<float>();
  using Buffer = GpuLaunch::Buffer;
  GpuLaunch launch(
      "newton_schulz",
      {{"packed", &packed, Buffer::in}, {"out", &out, Buffer::out}, {"workspace", &workspace, Buffer::out}});
  newton_schulz_cuda(all, launch.stream());
  launch.finish();
}
#endif

}  // namespace

void register_newton_schulz(py::module_& m) {
#ifdef VK_BUILD_CPU
  m.def("newton_schulz_cpu", &run_cpu);
#endif
#ifdef VK_GPU
  m.def("newton_schulz_cuda", &run_cuda);
#endif
}

}  // namespace vk
