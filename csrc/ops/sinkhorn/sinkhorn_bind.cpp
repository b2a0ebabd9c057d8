#include <cmath>

#include "core/bind.h"
#include "ops/sinkhorn/sinkhorn.h"

namespace vk {
namespace {

void check_scores(const Check& check, const Tensor& scores, const Tensor& row_mass, const Tensor& columns,
                  double epsilon) {
  check.ndim(scores, 3, "[B, N, K]");
  check.dtype(scores, {Dtype::f32, Dtype::f16, Dtype::bf16});
  check.contiguous(scores);
  check.require(epsilon > 0 && std::isfinite(epsilon), "expected a positive `epsilon`.");
  if (row_mass.defined()) check.shape(row_mass, {scores.size(0), scores.size(1)});
  if (columns.defined()) check.shape(columns, {scores.size(0), scores.size(2)});
  for (const Tensor* t : {&row_mass, &columns})
    if (t->defined()) check.dtype(*t, {Dtype::f32}), check.contiguous(*t);
}

void check_output(const Check& check, const Tensor& t, std::initializer_list<int64_t> sizes, Dtype dtype) {
  check.shape(t, sizes);
  check.dtype(t, {dtype});
  check.output(t);
}

const float* floats(const Tensor& t) { return t.defined() ? t.ptr<float>() : nullptr; }

Sinkhorn whole_args(const Check& check, const Tensor& scores, const Tensor& row_mass, const Tensor& col_mass,
                    const Tensor& row_log, const Tensor& col_log, double epsilon, int64_t iterations) {
  check_scores(check, scores, row_mass, col_mass, epsilon);
  check.require(iterations >= 1, "expected at least one iteration.");
  Sinkhorn a{};
  a.scores = scores.data();
  a.row_mass = floats(row_mass);
  a.col_mass = floats(col_mass);
  a.row_log = row_log.ptr<float>();
  a.col_log = col_log.ptr<float>();
  a.batch = scores.size(0);
  a.rows = scores.size(1);
  a.cols = scores.size(2);
  a.iterations = iterations;
  a.epsilon = float(epsilon);
  a.element = element_of(scores);
  return a;
}

Sinkhorn plan_args(int device, const Tensor& scores, const Tensor& row_mass, const Tensor& col_mass, const Tensor& plan,
                   const Tensor& row_log, const Tensor& col_log, const Tensor& workspace, double epsilon,
                   int64_t iterations, bool rows_to_one) {
  const Check check("sinkhorn", device,
                    {{"scores", &scores},
                     {"row_mass", &row_mass},
                     {"col_mass", &col_mass},
                     {"plan", &plan},
                     {"row_log", &row_log},
                     {"col_log", &col_log},
                     {"workspace", &workspace}});
  Sinkhorn a = whole_args(check, scores, row_mass, col_mass, row_log, col_log, epsilon, iterations);
  check_output(check, plan, {a.batch, a.rows, a.cols}, Dtype::f32);
  check_output(check, row_log, {a.batch, iterations, a.rows}, Dtype::f32);
  check_output(check, col_log, {a.batch, iterations, a.cols}, Dtype::f32);
  a.plan = plan.ptr<float>();
  a.rows_to_one = rows_to_one;
  a.history = true;
  return a;
}

Sinkhorn scales_args(int device, const Tensor& scores, const Tensor& row_mass, const Tensor& col_mass,
                     const Tensor& row_log, const Tensor& col_log, const Tensor& label, const Tensor& workspace,
                     double epsilon, int64_t iterations) {
  const Check check("sinkhorn_scales", device,
                    {{"scores", &scores},
                     {"row_mass", &row_mass},
                     {"col_mass", &col_mass},
                     {"row_log", &row_log},
                     {"col_log", &col_log},
                     {"label", &label},
                     {"workspace", &workspace}});
  Sinkhorn a = whole_args(check, scores, row_mass, col_mass, row_log, col_log, epsilon, iterations);
  check_output(check, row_log, {a.batch, a.rows}, Dtype::f32);
  check_output(check, col_log, {a.batch, a.cols}, Dtype::f32);
  check_output(check, label, {a.batch, a.rows}, Dtype::i64);
  a.label = label.ptr<int64_t>();
  return a;
}

SinkhornStep step_args(int device, const Tensor& scores, const Tensor& row_mass, const Tensor& col_log,
                       const Tensor& row_lse, const Tensor& col_sum, const Tensor& label, const Tensor& workspace,
                       double epsilon) {
  const Check check("sinkhorn_step", device,
                    {{"scores", &scores},
                     {"row_mass", &row_mass},
                     {"col_log", &col_log},
                     {"row_lse", &row_lse},
                     {"col_sum", &col_sum},
                     {"label", &label},
                     {"workspace", &workspace}});
  check_scores(check, scores, row_mass, col_log, epsilon);
  const int64_t batch = scores.size(0), rows = scores.size(1), cols = scores.size(2);
  check_output(check, row_lse, {batch, rows}, Dtype::f32);
  check_output(check, col_sum, {batch, cols}, Dtype::f32);
  check_output(check, label, {batch, rows}, Dtype::i64);
  return {scores.data(),
          floats(row_mass),
          floats(col_log),
          row_lse.ptr<float>(),
          col_sum.ptr<float>(),
          label.ptr<int64_t>(),
          batch,
          rows,
          cols,
          float(epsilon),
          element_of(scores),
          -1};
}

#ifdef VK_BUILD_CPU
void refuse_bad(const char* op, int64_t bad, int64_t rows) {
  if (bad < 0) return;
  throw py::value_error(std::string(op) + ": `scores`[" + std::to_string(bad / rows) + ", " +
                        std::to_string(bad % rows) + "] holds NaN or +inf.");
}

void plan_cpu(const Tensor& scores, const Tensor& row_mass, const Tensor& col_mass, const Tensor& plan,
              const Tensor& row_log, const Tensor& col_log, const Tensor& workspace, double epsilon, int64_t iterations,
              bool rows_to_one) {
  Sinkhorn a = plan_args(kDLCPU, scores, row_mass, col_mass, plan, row_log, col_log, workspace, epsilon, iterations,
                         rows_to_one);
  VK_CPU_CALL(sinkhorn, a);
  refuse_bad("sinkhorn", a.bad, a.rows);
}

void scales_cpu(const Tensor& scores, const Tensor& row_mass, const Tensor& col_mass, const Tensor& row_log,
                const Tensor& col_log, const Tensor& label, const Tensor& workspace, double epsilon,
                int64_t iterations) {
  Sinkhorn a = scales_args(kDLCPU, scores, row_mass, col_mass, row_log, col_log, label, workspace, epsilon, iterations);
  VK_CPU_CALL(sinkhorn, a);
  refuse_bad("sinkhorn_scales", a.bad, a.rows);
}

void step_cpu(const Tensor& scores, const Tensor& row_mass, const Tensor& col_log, const Tensor& row_lse,
              const Tensor& col_sum, const Tensor& label, const Tensor& workspace, double epsilon) {
  SinkhornStep a = step_args(kDLCPU, scores, row_mass, col_log, row_lse, col_sum, label, workspace, epsilon);
  VK_CPU_CALL(sinkhorn_step, a);
  refuse_bad("sinkhorn_step", a.bad, a.rows);
}
#endif

#ifdef VK_GPU
using Use = GpuLaunch::Buffer;

float* checked_workspace(const char* op, const Tensor& workspace, int64_t batch, int64_t rows, int64_t cols) {
  const Check check(op, kGpuDevice, {{"workspace", &workspace}});
  check_output(check, workspace, {sinkhorn_workspace(batch, rows, cols)}, Dtype::f32);
  return workspace.ptr<float>();
}

void plan_cuda(const Tensor& scores, const Tensor& row_mass, const Tensor& col_mass, const Tensor& plan,
               const Tensor& row_log, const Tensor& col_log, const Tensor& workspace, double epsilon,
               int64_t iterations, bool rows_to_one) {
  const Sinkhorn a = plan_args(kGpuDevice, scores, row_mass, col_mass, plan, row_log, col_log, workspace, epsilon,
                               iterations, rows_to_one);
  float* space = checked_workspace("sinkhorn", workspace, a.batch, a.rows, a.cols);
  GpuLaunch launch("sinkhorn", {{"scores", &scores, Use::in},
                                {"row_mass", &row_mass, Use::in},
                                {"col_mass", &col_mass, Use::in},
                                {"plan", &plan, Use::out},
                                {"row_log", &row_log, Use::out},
                                {"col_log", &col_log, Use::out},
                                {"workspace", &workspace, Use::out}});
  sinkhorn_cuda(a, space, launch.stream());
  launch.finish();
}

void scales_cuda(const Tensor& scores, const Tensor& row_mass, const Tensor& col_mass, const Tensor& row_log,
                 const Tensor& col_log, const Tensor& label, const Tensor& workspace, double epsilon,
                 int64_t iterations) {
  const Sinkhorn a =
      scales_args(kGpuDevice, scores, row_mass, col_mass, row_log, col_log, label, workspace, epsilon, iterations);
  float* space = checked_workspace("sinkhorn_scales", workspace, a.batch, a.rows, a.cols);
  GpuLaunch launch("sinkhorn_scales", {{"scores", &scores, Use::in},
                                       {"row_mass", &row_mass, Use::in},
                                       {"col_mass", &col_mass, Use::in},
                                       {"row_log", &row_log, Use::out},
                                       {"col_log", &col_log, Use::out},
                                       {"label", &label, Use::out},
                                       {"workspace", &workspace, Use::out}});
  sinkhorn_cuda(a, space, launch.stream());
  launch.finish();
}

void step_cuda(const Tensor& scores, const Tensor& row_mass, const Tensor& col_log, const Tensor& row_lse,
               const Tensor& col_sum, const Tensor& label, const Tensor& workspace, double epsilon) {
  const SinkhornStep a = step_args(kGpuDevice, scores, row_mass, col_log, row_lse, col_sum, label, workspace, epsilon);
  float* space = checked_workspace("sinkhorn_step", workspace, a.batch, a.rows, a.cols);
  GpuLaunch launch("sinkhorn_step", {{"scores", &scores, Use::in},
                                     {"row_mass", &row_mass, Use::in},
                                     {"col_log", &col_log, Use::in},
                                     {"row_lse", &row_lse, Use::out},
                                     {"col_sum", &col_sum, Use::out},
                                     {"label", &label, Use::out},
                                     {"workspace", &workspace, Use::out}});
  sinkhorn_step_cuda(a, space, launch.stream());
  launch.finish();
}
#endif

}  // namespace

void register_sinkhorn(py::module_& m) {
#ifdef VK_BUILD_CPU
  m.def("sinkhorn_cpu", &plan_cpu);
  m.def("sinkhorn_scales_cpu", &scales_cpu);
  m.def("sinkhorn_step_cpu", &step_cpu);
#endif
#ifdef VK_GPU
  m.def("sinkhorn_cuda", &plan_cuda);
  m.def("sinkhorn_scales_cuda", &scales_cuda);
  m.def("sinkhorn_step_cuda", &step_cuda);
  m.def("sinkhorn_workspace", &sinkhorn_workspace);
#endif
}

}  // namespace vk
