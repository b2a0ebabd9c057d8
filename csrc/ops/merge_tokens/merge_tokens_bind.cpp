#include "core/bind.h"
#include "ops/merge_tokens/merge_tokens.h"

namespace vk {
namespace {

void check_sizes(const Check& check, const Tensor& rows, const Tensor& size, const Tensor& total) {
  const Dtype wide = rows.dtype() == Dtype::f64 ? Dtype::f64 : Dtype::f32;
  for (const Tensor* t : {&size, &total})
    if (t->defined()) check.dtype(*t, {wide});
}

MergeTokens forward_args(int device, const Tensor& tokens, const Tensor& source, const Tensor& size,
                         const Tensor& merged, const Tensor& total) {
  const Check check(
      "merge_tokens", device,
      {{"tokens", &tokens}, {"source", &source}, {"size", &size}, {"merged", &merged}, {"total", &total}});
  check.ndim(tokens, 3, "[B, N, D]");
  check.dtype(tokens, {Dtype::f32, Dtype::f64, Dtype::f16, Dtype::bf16});
  check.contiguous(tokens);
  check.shape(source, {tokens.size(0), tokens.size(1)});
  check.dtype(source, {Dtype::i32});
  check.contiguous(source);
  if (size.defined()) {
    check.shape(size, {tokens.size(0), tokens.size(1)});
    check.contiguous(size);
  }
  check.shape(merged, {tokens.size(0), -1, tokens.size(2)});
  check.dtype(merged, {tokens.dtype()});
  check.output(merged);
  check.shape(total, {tokens.size(0), merged.size(1)});
  check.output(total);
  check_sizes(check, tokens, size, total);
  return {tokens.data(),
          source.ptr<int32_t>(),
          size.defined() ? size.data() : nullptr,
          merged.data(),
          total.data(),
          tokens.size(0),
          tokens.size(1),
          merged.size(1),
          tokens.size(2),
          element_of(tokens),
          -1};
}

MergeTokensBackward backward_args(int device, const Tensor& grad_merged, const Tensor& source, const Tensor& size,
                                  const Tensor& total, const Tensor& grad) {
  const Check check(
      "merge_tokens_backward", device,
      {{"grad_merged", &grad_merged}, {"source", &source}, {"size", &size}, {"total", &total}, {"grad", &grad}});
  check.ndim(grad_merged, 3, "[B, M, D]");
  check.dtype(grad_merged, {Dtype::f32, Dtype::f64, Dtype::f16, Dtype::bf16});
  check.contiguous(grad_merged);
  check.shape(source, {grad_merged.size(0), -1});
  check.dtype(source, {Dtype::i32});
  check.contiguous(source);
  if (size.defined()) {
    check.shape(size, {source.size(0), source.size(1)});
    check.contiguous(size);
  }
  check.shape(total, {grad_merged.size(0), grad_merged.size(1)});
  check.contiguous(total);
  check.shape(grad, {source.size(0), source.size(1), grad_merged.size(2)});
  check.dtype(grad, {grad_merged.dtype()});
  check.output(grad);
  check_sizes(check, grad_merged, size, total);
  return {grad_merged.data(),
          source.ptr<int32_t>(),
          size.defined() ? size.data() : nullptr,
          total.data(),
          grad.data(),
          source.size(0),
          source.size(1),
          grad_merged.size(1),
          grad_merged.size(2),
          element_of(grad_merged),
          -1};
}

#ifdef VK_BUILD_CPU
void refuse_outside(const char* op, const Tensor& source, int64_t bad, int64_t count) {
  if (bad < 0) return;
  const int64_t length = source.size(1);
  throw py::value_error(std::string(op) + ": `source`[" + std::to_string(bad / length) + ", " +
                        std::to_string(bad % length) + "] is " + std::to_string(source.ptr<int32_t>()[bad]) +
                        ", outside the " + std::to_string(count) + " places.");
}

void forward_cpu(const Tensor& tokens, const Tensor& source, const Tensor& size, const Tensor& merged,
                 const Tensor& total) {
  MergeTokens a = forward_args(kDLCPU, tokens, source, size, merged, total);
  VK_CPU_CALL(merge_tokens, a);
  refuse_outside("merge_tokens", source, a.bad, a.count);
}

void backward_cpu(const Tensor& grad_merged, const Tensor& source, const Tensor& size, const Tensor& total,
                  const Tensor& grad) {
  MergeTokensBackward a = backward_args(kDLCPU, grad_merged, source, size, total, grad);
  VK_CPU_CALL(merge_tokens_backward, a);
  refuse_outside("merge_tokens_backward", source, a.bad, a.count);
}
#endif

#ifdef VK_GPU
void forward_cuda(const Tensor& tokens, const Tensor& source, const Tensor& size, const Tensor& merged,
                  const Tensor& total) {
  const MergeTokens a = forward_args(kGpuDevice, tokens, source, size, merged, total);
  GpuLaunch launch("merge_tokens", {{"tokens", &tokens, GpuLaunch::Buffer::in},
                                    {"source", &source, GpuLaunch::Buffer::in},
                                    {"size", &size, GpuLaunch::Buffer::in},
                                    {"merged", &merged, GpuLaunch::Buffer::out},
                                    {"total", &total, GpuLaunch::Buffer::out}});
  merge_tokens_cuda(a, launch.stream());
  launch.finish();
}

void backward_cuda(const Tensor& grad_merged, const Tensor& source, const Tensor& size, const Tensor& total,
                   const Tensor& grad) {
  const MergeTokensBackward a = backward_args(kGpuDevice, grad_merged, source, size, total, grad);
  GpuLaunch launch("merge_tokens_backward", {{"grad_merged", &grad_merged, GpuLaunch::Buffer::in},
                                             {"source", &source, GpuLaunch::Buffer::in},
                                             {"size", &size, GpuLaunch::Buffer::in},
                                             {"total", &total, GpuLaunch::Buffer::in},
                                             {"grad", &grad, GpuLaunch::Buffer::out}});
  merge_tokens_backward_cuda(a, launch.stream());
  launch.finish();
}
#endif

}  // namespace

void register_merge_tokens(py::module_& m) {
#ifdef VK_BUILD_CPU
  m.def("merge_tokens_cpu", &forward_cpu);
  m.def("merge_tokens_backward_cpu", &backward_cpu);
#endif
#ifdef VK_GPU
  m.def("merge_tokens_cuda", &forward_cuda);
  m.def("merge_tokens_backward_cuda", &backward_cuda);
#endif
}

}  // namespace vk
