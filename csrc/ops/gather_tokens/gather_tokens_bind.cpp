#include "core/bind.h"
#include "ops/gather_tokens/gather_tokens.h"

namespace vk {
namespace {

GatherTokens forward_args(int device, const Tensor& tokens, const Tensor& index, const Tensor& out) {
  const Check check("gather_tokens", device, {{"tokens", &tokens}, {"index", &index}, {"out", &out}});
  check.ndim(tokens, 3, "[B, N, D]");
  check.dtype(tokens, {Dtype::f32, Dtype::f64, Dtype::f16, Dtype::bf16});
  check.contiguous(tokens);
  check.shape(index, {tokens.size(0), -1});
  check.dtype(index, {Dtype::i32});
  check.contiguous(index);
  check.shape(out, {tokens.size(0), index.size(1), tokens.size(2)});
  check.dtype(out, {tokens.dtype()});
  check.output(out);
  return {tokens.data(),
          index.ptr<int32_t>(),
          out.data(),
          tokens.size(0),
          tokens.size(1),
          index.size(1),
          tokens.size(2) * tokens.itemsize(),
          -1};
}

GatherTokensBackward backward_args(int device, const Tensor& grad_out, const Tensor& index, const Tensor& grad) {
  const Check check("gather_tokens_backward", device, {{"grad_out", &grad_out}, {"index", &index}, {"grad", &grad}});
  check.ndim(grad_out, 3, "[B, K, D]");
  check.dtype(grad_out, {Dtype::f32, Dtype::f64, Dtype::f16, Dtype::bf16});
  check.contiguous(grad_out);
  check.shape(index, {grad_out.size(0), grad_out.size(1)});
  check.dtype(index, {Dtype::i32});
  check.contiguous(index);
  check.shape(grad, {grad_out.size(0), -1, grad_out.size(2)});
  check.dtype(grad, {grad_out.dtype()});
  check.output(grad);
  return {grad_out.data(), index.ptr<int32_t>(), grad.data(),          nullptr, grad.size(0), grad.size(1),
          index.size(1),   grad_out.size(2),     element_of(grad_out), -1};
}

#ifdef VK_BUILD_CPU
void refuse_outside(const char* op, const Tensor& index, int64_t bad, int64_t length) {
  if (bad < 0) return;
  const int64_t count = index.size(1);
  throw py::value_error(std::string(op) + ": `index`[" + std::to_string(bad / count) + ", " +
                        std::to_string(bad % count) + "] is " + std::to_string(index.ptr<int32_t>()[bad]) +
                        ", outside the " + std::to_string(length) + " tokens.");
}

void forward_cpu(const Tensor& tokens, const Tensor& index, const Tensor& out) {
  GatherTokens a = forward_args(kDLCPU, tokens, index, out);
  VK_CPU_CALL(gather_tokens, a);
  refuse_outside("gather_tokens", index, a.bad, a.length);
}

void backward_cpu(const Tensor& grad_out, const Tensor& index, const Tensor& grad) {
  GatherTokensBackward a = backward_args(kDLCPU, grad_out, index, grad);
  std::vector<int32_t> links(size_t(a.batch * (a.length + a.count)));
  a.scratch = links.data();
  VK_CPU_CALL(gather_tokens_backward, a);
  refuse_outside("gather_tokens_backward", index, a.bad, a.length);
}
#endif

#ifdef VK_GPU
void forward_cuda(const Tensor& tokens, const Tensor& index, const Tensor& out) {
  const GatherTokens a = forward_args(kGpuDevice, tokens, index, out);
  GpuLaunch launch("gather_tokens", {{"tokens", &tokens, GpuLaunch::Buffer::in},
                                     {"index", &index, GpuLaunch::Buffer::in},
                                     {"out", &out, GpuLaunch::Buffer::out}});
  gather_tokens_cuda(a, launch.stream());
  launch.finish();
}

void backward_cuda(const Tensor& grad_out, const Tensor& index, const Tensor& grad) {
  const GatherTokensBackward a = backward_args(kGpuDevice, grad_out, index, grad);
  GpuLaunch launch("gather_tokens_backward", {{"grad_out", &grad_out, GpuLaunch::Buffer::in},
                                              {"index", &index, GpuLaunch::Buffer::in},
                                              {"grad", &grad, GpuLaunch::Buffer::out}});
  gather_tokens_backward_cuda(a, launch.stream());
  launch.finish();
}
#endif

}  // namespace

void register_gather_tokens(py::module_& m) {
#ifdef VK_BUILD_CPU
  m.def("gather_tokens_cpu", &forward_cpu);
  m.def("gather_tokens_backward_cpu", &backward_cpu);
#endif
#ifdef VK_GPU
  m.def("gather_tokens_cuda", &forward_cuda);
  m.def("gather_tokens_backward_cuda", &backward_cuda);
#endif
}

}  // namespace vk
