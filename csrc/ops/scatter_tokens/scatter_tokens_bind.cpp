#include <memory>

#include "core/bind.h"
#include "ops/scatter_tokens/scatter_tokens.h"

namespace vk {
namespace {

void check_parameter(const Check& check, const Tensor& parameter, const Tensor& tokens) {
  const bool half = tokens.dtype() == Dtype::f16 || tokens.dtype() == Dtype::bf16;
  check.dtype(parameter, {tokens.dtype(), half ? Dtype::f32 : tokens.dtype()});
}

ScatterTokens forward_args(int device, const Tensor& visible, const Tensor& index, const Tensor& mask_token,
                           const Tensor& position, const Tensor& out) {
  const Check check("scatter_tokens", device,
                    {{"visible", &visible},
                     {"visible_index", &index},
                     {"mask_token", &mask_token},
                     {"position", &position},
                     {"out", &out}});
  check.ndim(visible, 3, "[B, K, D]");
  check.dtype(visible, {Dtype::f32, Dtype::f64, Dtype::f16, Dtype::bf16});
  check.contiguous(visible);
  check.shape(index, {visible.size(0), visible.size(1)});
  check.dtype(index, {Dtype::i32});
  check.contiguous(index);
  check.shape(mask_token, {visible.size(2)});
  check_parameter(check, mask_token, visible);
  check.contiguous(mask_token);
  check.shape(out, {visible.size(0), -1, visible.size(2)});
  check.dtype(out, {visible.dtype()});
  check.output(out);
  if (position.defined()) {
    check.shape(position, {out.size(1), visible.size(2)});
    check.dtype(position, {mask_token.dtype()});
    check.contiguous(position);
  }
  ScatterTokens a{};
  a.visible = visible.data();
  a.index = index.ptr<int32_t>();
  a.mask_token = mask_token.data();
  a.position = position.defined() ? position.data() : nullptr;
  a.out = out.data();
  a.batch = visible.size(0);
  a.length = out.size(1);
  a.count = visible.size(1);
  a.dim = visible.size(2);
  a.element = element_of(visible);
  a.parameter = element_of(mask_token);
  a.bad = -1;
  return a;
}

ScatterTokensBackward backward_args(int device, const Tensor& grad_out, const Tensor& index, const Tensor& visible,
                                    const Tensor& mask_token, const Tensor& position, const Tensor& partial) {
  const Check check("scatter_tokens_backward", device,
                    {{"grad_out", &grad_out},
                     {"visible_index", &index},
                     {"grad_visible", &visible},
                     {"grad_mask_token", &mask_token},
                     {"grad_position", &position},
                     {"partial", &partial}});
  check.ndim(grad_out, 3, "[B, N, D]");
  check.dtype(grad_out, {Dtype::f32, Dtype::f64, Dtype::f16, Dtype::bf16});
  check.contiguous(grad_out);
  check.shape(index, {grad_out.size(0), -1});
  check.dtype(index, {Dtype::i32});
  check.contiguous(index);
  check.shape(visible, {grad_out.size(0), index.size(1), grad_out.size(2)});
  check.dtype(visible, {grad_out.dtype()});
  check.output(visible);
  check.shape(mask_token, {grad_out.size(2)});
  check_parameter(check, mask_token, grad_out);
  check.output(mask_token);
  const bool with_position = position.size(0) > 0;
  check.shape(position, {with_position ? grad_out.size(1) : 0, grad_out.size(2)});
  check.dtype(position, {mask_token.dtype()});
  check.output(position);
  ScatterTokensBackward a{};
  a.length = grad_out.size(1);
  check.shape(partial, {a.tiles(), grad_out.size(2)});
  check.dtype(partial, {grad_out.dtype() == Dtype::f64 ? Dtype::f64 : Dtype::f32});
  check.output(partial);
  a.partial = partial.data();
  a.grad_out = grad_out.data();
  a.index = index.ptr<int32_t>();
  a.grad_visible = visible.data();
  a.grad_mask_token = mask_token.data();
  a.grad_position = with_position ? position.data() : nullptr;
  a.batch = grad_out.size(0);
  a.count = index.size(1);
  a.dim = grad_out.size(2);
  a.element = element_of(grad_out);
  a.parameter = element_of(mask_token);
  a.bad = -1;
  return a;
}

#ifdef VK_BUILD_CPU
void refuse(const char* op, const Tensor& index, int64_t bad, int64_t length) {
  if (bad < 0) return;
  const int64_t count = index.size(1), value = index.ptr<int32_t>()[bad];
  const bool outside = value < 0 || value >= length;
  throw py::value_error(std::string(op) + ": `visible_index`[" + std::to_string(bad / count) + ", " +
                        std::to_string(bad % count) + "] is " + std::to_string(value) +
                        (outside ? ", outside the " + std::to_string(length) + " tokens." : ", named before."));
}

void forward_cpu(const Tensor& visible, const Tensor& index, const Tensor& mask_token, const Tensor& position,
                 const Tensor& out) {
  ScatterTokens a = forward_args(kDLCPU, visible, index, mask_token, position, out);
  const std::unique_ptr<int32_t[]> sources(new int32_t[size_t(a.batch * a.length)]);
  a.sources = sources.get();
  VK_CPU_CALL(scatter_tokens, a);
  refuse("scatter_tokens", index, a.bad, a.length);
}

void backward_cpu(const Tensor& grad_out, const Tensor& index, const Tensor& visible, const Tensor& mask_token,
                  const Tensor& position, const Tensor& partial) {
  ScatterTokensBackward a = backward_args(kDLCPU, grad_out, index, visible, mask_token, position, partial);
  const std::unique_ptr<int32_t[]> sources(new int32_t[size_t(a.batch * a.length)]);
  a.sources = sources.get();
  VK_CPU_CALL(scatter_tokens_backward, a);
  refuse("scatter_tokens_backward", index, a.bad, a.length);
}
#endif

#ifdef VK_GPU
void check_sizes(const Tensor& index, int64_t batch, int64_t length, int64_t dim) {
  const int64_t limit = int64_t(1) << 31;
  if (batch * ((length + ScatterTokensBackward::kTile - 1) / ScatterTokensBackward::kTile) >= limit ||
      length >= limit || index.size(1) >= limit / 64 || dim >= limit / 64)
    throw py::value_error("scatter_tokens: too many tokens or features for one launch.");
}

void forward_cuda(const Tensor& visible, const Tensor& index, const Tensor& mask_token, const Tensor& position,
                  const Tensor& out) {
  const ScatterTokens a = forward_args(kGpuDevice, visible, index, mask_token, position, out);
  check_sizes(index, a.batch, a.length, a.dim);
  GpuLaunch launch("scatter_tokens", {{"visible", &visible, GpuLaunch::Buffer::in},
                                      {"visible_index", &index, GpuLaunch::Buffer::in},
                                      {"mask_token", &mask_token, GpuLaunch::Buffer::in},
                                      {"position", &position, GpuLaunch::Buffer::in},
                                      {"out", &out, GpuLaunch::Buffer::out}});
  scatter_tokens_cuda(a, launch.stream());
  launch.finish();
}

void backward_cuda(const Tensor& grad_out, const Tensor& index, const Tensor& visible, const Tensor& mask_token,
                   const Tensor& position, const Tensor& partial) {
  const ScatterTokensBackward a = backward_args(kGpuDevice, grad_out, index, visible, mask_token, position, partial);
  check_sizes(index, a.batch, a.length, a.dim);
  GpuLaunch launch("scatter_tokens_backward", {{"grad_out", &grad_out, GpuLaunch::Buffer::in},
                                               {"visible_index", &index, GpuLaunch::Buffer::in},
                                               {"grad_visible", &visible, GpuLaunch::Buffer::out},
                                               {"grad_mask_token", &mask_token, GpuLaunch::Buffer::out},
                                               {"grad_position", &position, GpuLaunch::Buffer::out},
                                               {"partial", &partial, GpuLaunch::Buffer::out}});
  scatter_tokens_backward_cuda(a, launch.stream());
  launch.finish();
}
#endif

}  // namespace

void register_scatter_tokens(py::module_& m) {
#ifdef VK_BUILD_CPU
  m.def("scatter_tokens_cpu", &forward_cpu);
  m.def("scatter_tokens_backward_cpu", &backward_cpu);
#endif
#ifdef VK_GPU
  m.def("scatter_tokens_cuda", &forward_cuda);
  m.def("scatter_tokens_backward_cuda", &backward_cuda);
#endif
}

}  // namespace vk
