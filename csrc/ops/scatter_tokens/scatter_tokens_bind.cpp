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
                                    const Tensor& mask_token, const Tensor& position) {
  const Check check("scatter_tokens_backward", device,
                    {{"grad_out", &grad_out},
                     {"visible_index", &index},
                     {"grad_visible", &visible},
                     {"grad_mask_token", &mask_token},
                     {"grad_position", &position}});
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
  a.grad_out = grad_out.data();
  a.index = index.ptr<int32_t>();
  a.grad_visible = visible.data();
  a.grad_mask_token = mask_token.data();
  a.grad_position = with_position ? position.data() : nullptr;
  a.batch = grad_out.size(0);
  a.length = grad_out.size(1);
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
                  const Tensor& position) {
  ScatterTokensBackward a = backward_args(kDLCPU, grad_out, index, visible, mask_token, position);
  const std::unique_ptr<int32_t[]> sources(new int32_t[size_t(a.batch * a.length)]);
  const std::unique_ptr<double[]> partial(new double[size_t(a.tiles() * a.dim)]);
  a.sources = sources.get();
  a.partial = partial.get();
  VK_CPU_CALL(scatter_tokens_backward, a);
  refuse("scatter_tokens_backward", index, a.bad, a.length);
}
#endif

}  // namespace

void register_scatter_tokens(py::module_& m) {
#ifdef VK_BUILD_CPU
  m.def("scatter_tokens_cpu", &forward_cpu);
  m.def("scatter_tokens_backward_cpu", &backward_cpu);
#endif
}

}  // namespace vk
