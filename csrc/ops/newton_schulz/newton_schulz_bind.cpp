#include <pybind11/stl.h>

#include <tuple>
#include <utility>
#include <vector>

#include "core/bind.h"
#include "core/tensor_lists.h"
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

#ifdef VK_BUILD_CPU
/// shapes: (rows, cols) and settings: (mu, nesterov, keep, rate) of each. False, and nothing done, for tensors that are
/// not contiguous float32 on the CPU.
bool muon_cpu(const py::list& params, const py::list& grads, const py::list& momenta, const py::list& shapes,
              const py::list& settings, int64_t steps, double a, double b, double c, double eps) {
  const auto lists = TensorLists::plain("muon_step", kDLCPU, {&params, &grads, &momenta});
  if (!lists) return false;
  lists->check_outputs(1);
  if (shapes.size() != lists->rows() || settings.size() != lists->rows() || steps < 1 || !(eps > 0))
    throw py::value_error("muon_step: expected a shape and settings for every tensor, `steps` and `eps` above 0.");
  std::vector<MuonMatrix> matrices;
  for (size_t k = 0; k < lists->rows(); ++k) {
    const auto shape = shapes[k].cast<std::pair<int64_t, int64_t>>();
    const auto s = settings[k].cast<std::tuple<double, bool, double, double>>();
    if (shape.first * shape.second != lists->at(k, 0).numel())
      throw py::value_error("muon_step: a shape does not fit its tensor.");
    matrices.push_back({lists->at(k, 0).ptr<float>(), lists->at(k, 1).ptr<float>(), lists->at(k, 2).ptr<float>(),
                        shape.first, shape.second, float(std::get<0>(s)), float(std::get<2>(s)), float(std::get<3>(s)),
                        std::get<1>(s)});
  }
  VK_CPU_CALL(muon_step,
              MuonStep{matrices.data(), int64_t(matrices.size()), steps, float(a), float(b), float(c), float(eps)});
  return true;
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
  m.def("muon_step_cpu", &muon_cpu);
#endif
#ifdef VK_GPU
  m.def("newton_schulz_cuda", &run_cuda);
#endif
}

}  // namespace vk
