#include "core/bind.h"
#include "ops/flow_warp_aggregate/flow_warp_aggregate.h"

namespace vk {
namespace {

FlowWarp inputs(const Check& check, const Tensor& features, const Tensor& flows, const Tensor& logits,
                const Tensor& out) {
  check.ndim(features, 5, "[B, K, H, W, C]");
  check.dtype(features, {Dtype::f32, Dtype::f16, Dtype::bf16});
  check.contiguous(features);
  const int64_t batch = features.size(0), k = features.size(1), h = features.size(2), w = features.size(3);
  check.require(k >= 1 && k <= kMaxNeighbours, "expected 1 to " + std::to_string(kMaxNeighbours) + " neighbours.");
  check.require(h < 1 << 24 && w < 1 << 24, "expected pictures of less than 2^24 rows and columns.");
  check.shape(flows, {batch, k, 2, h, w});
  check.shape(logits, {batch, k, h, w});
  for (const Tensor* t : {&flows, &logits}) {
    check.dtype(*t, {Dtype::f32});
    check.contiguous(*t);
  }
  check.shape(out, {batch, h, w, features.size(4)});
  check.dtype(out, {features.dtype()});
  check.contiguous(out);
  return {features.data(),  flows.ptr<float>(),  logits.ptr<float>(), out.data(), batch, k, h, w,
          features.size(4), element_of(features)};
}

FlowWarp forward_args(int device, const Tensor& features, const Tensor& flows, const Tensor& logits,
                      const Tensor& out) {
  const Check check("flow_warp_aggregate", device,
                    {{"features", &features}, {"flows", &flows}, {"logits", &logits}, {"out", &out}});
  check.output(out);
  return inputs(check, features, flows, logits, out);
}

FlowWarpBackward backward_args(int device, const Tensor& grad, const Tensor& features, const Tensor& flows,
                               const Tensor& logits, const Tensor& by_features, const Tensor& by_flows,
                               const Tensor& by_logits, const Tensor& sums, const Tensor& magnitudes) {
  const Check check("flow_warp_aggregate_backward", device,
                    {{"grad", &grad},
                     {"features", &features},
                     {"flows", &flows},
                     {"logits", &logits},
                     {"by_features", &by_features},
                     {"by_flows", &by_flows},
                     {"by_logits", &by_logits},
                     {"sums", &sums},
                     {"magnitudes", &magnitudes}});
  FlowWarpBackward a{inputs(check, features, flows, logits, grad),
                     grad.data(),
                     by_features.defined() ? by_features.data() : nullptr,
                     by_flows.ptr<float>(),
                     by_logits.ptr<float>(),
                     nullptr,
                     nullptr};
  const FlowWarp& in = a.in;
  check.shape(by_flows, {in.batch, in.neighbours, 2, in.height, in.width});
  check.shape(by_logits, {in.batch, in.neighbours, in.height, in.width});
  for (const Tensor* t : {&by_flows, &by_logits}) check.dtype(*t, {Dtype::f32});
  for (const Tensor* t : {&by_flows, &by_logits}) check.output(*t);
  if (!by_features.defined()) return a;
  check.shape(by_features, {in.batch, in.neighbours, in.height, in.width, in.channels});
  check.dtype(by_features, {features.dtype()});
  check.output(by_features);
  if (sums.defined() && magnitudes.defined()) {
    check.shape(sums, {in.batch, in.neighbours, in.height, in.width, in.channels});
    check.dtype(sums, {Dtype::i64});
    check.output(sums);
    check.shape(magnitudes, {2, in.batch});
    check.dtype(magnitudes, {Dtype::i32});
    check.output(magnitudes);
    a.sums = sums.ptr<unsigned long long>();
    a.magnitudes = magnitudes.ptr<uint32_t>();
  }
  return a;
}

#ifdef VK_BUILD_CPU
void forward_cpu(const Tensor& features, const Tensor& flows, const Tensor& logits, const Tensor& out) {
  VK_CPU_CALL(flow_warp_aggregate, forward_args(kDLCPU, features, flows, logits, out));
}

void backward_cpu(const Tensor& grad, const Tensor& features, const Tensor& flows, const Tensor& logits,
                  const Tensor& by_features, const Tensor& by_flows, const Tensor& by_logits, const Tensor& sums,
                  const Tensor& magnitudes) {
  VK_CPU_CALL(flow_warp_aggregate_backward,
              backward_args(kDLCPU, grad, features, flows, logits, by_features, by_flows, by_logits, sums, magnitudes));
}
#endif

#ifdef VK_GPU
using Buffer = GpuLaunch::Buffer;

void forward_cuda(const Tensor& features, const Tensor& flows, const Tensor& logits, const Tensor& out) {
  const FlowWarp a = forward_args(kGpuDevice, features, flows, logits, out);
  GpuLaunch launch("flow_warp_aggregate", {{"features", &features, Buffer::in},
                                           {"flows", &flows, Buffer::in},
                                           {"logits", &logits, Buffer::in},
                                           {"out", &out, Buffer::out}});
  flow_warp_aggregate_cuda(a, launch.stream());
  launch.finish();
}

void backward_cuda(const Tensor& grad, const Tensor& features, const Tensor& flows, const Tensor& logits,
                   const Tensor& by_features, const Tensor& by_flows, const Tensor& by_logits, const Tensor& sums,
                   const Tensor& magnitudes) {
  const FlowWarpBackward a =
      backward_args(kGpuDevice, grad, features, flows, logits, by_features, by_flows, by_logits, sums, magnitudes);
  if (by_features.defined() && !(sums.defined() && magnitudes.defined()))
    throw py::value_error(
        "flow_warp_aggregate_backward: the CUDA kernel needs `sums` and `magnitudes` for `by_features`.");
  GpuLaunch launch("flow_warp_aggregate_backward", {{"grad", &grad, Buffer::in},
                                                    {"features", &features, Buffer::in},
                                                    {"flows", &flows, Buffer::in},
                                                    {"logits", &logits, Buffer::in},
                                                    {"by_features", &by_features, Buffer::out},
                                                    {"by_flows", &by_flows, Buffer::out},
                                                    {"by_logits", &by_logits, Buffer::out},
                                                    {"sums", &sums, Buffer::out},
                                                    {"magnitudes", &magnitudes, Buffer::out}});
  flow_warp_aggregate_backward_cuda(a, launch.stream());
  launch.finish();
}
#endif

}  // namespace

void register_flow_warp_aggregate(py::module_& m) {
#ifdef VK_BUILD_CPU
  m.def("flow_warp_aggregate_cpu", &forward_cpu);
  m.def("flow_warp_aggregate_backward_cpu", &backward_cpu);
#endif
#ifdef VK_GPU
  m.def("flow_warp_aggregate_cuda", &forward_cuda);
  m.def("flow_warp_aggregate_backward_cuda", &backward_cuda);
#endif
}

}  // namespace vk
