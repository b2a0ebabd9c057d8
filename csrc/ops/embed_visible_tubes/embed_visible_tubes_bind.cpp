#include <pybind11/stl.h>

#include <vector>

#include "core/bind.h"
#include "ops/embed_visible_tubes/embed_visible_tubes.h"

namespace vk {
namespace {

using Sizes = std::vector<int64_t>;
using Levels = std::vector<double>;

VisibleTubes tubes_args(const Check& check, const Tensor& video, const Tensor& index, const Sizes& tube,
                        const Levels& mean, const Levels& std) {
  VisibleTubes v{};
  v.bytes = video.dtype() == Dtype::u8;
  check.ndim(video, 5, v.bytes ? "[B, T, H, W, C]" : "[B, C, T, H, W]");
  const int channel_axis = v.bytes ? 4 : 1, frame_axis = v.bytes ? 1 : 2;
  v.channels = video.size(channel_axis);
  check.require(v.channels >= 1 && v.channels <= kMaxChannels,
                "expected 1 to " + std::to_string(kMaxChannels) + " channels, got " + std::to_string(v.channels) + ".");
  check.require(tube.size() == 3 && int64_t(mean.size()) == v.channels && int64_t(std.size()) == v.channels,
                "expected three tube sizes and one mean and std per channel.");
  v.length = 1;
  for (int i = 0; i < 3; ++i) {
    const int64_t extent = video.size(frame_axis + i);
    check.require(tube[i] >= 1 && extent % tube[i] == 0, "the clip is not a whole number of tubes.");
    v.tube[i] = tube[i];
    v.grid[i] = extent / tube[i];
    v.length *= v.grid[i];
  }
  check.require(video.numel() == 0 || (video.stride(4) == 1 && (!v.bytes || video.stride(3) == v.channels)),
                "expected the pixels of each row of `video` to be dense.", "video.contiguous()");
  v.batch_stride = video.stride(0);
  v.channel_stride = v.bytes ? 1 : video.stride(1);
  v.frame_stride = video.stride(frame_axis);
  v.row_stride = video.stride(frame_axis + 1);
  check.shape(index, {video.size(0), -1});
  check.dtype(index, {Dtype::i32});
  check.contiguous(index);
  check.require(index.numel() < (int64_t(1) << 31) && v.length < (int64_t(1) << 31), "too many tubes.");
  v.video = video.data();
  v.index = index.ptr<int32_t>();
  v.count = index.size(1);
  v.rows = index.numel();
  for (int64_t c = 0; c < v.channels; ++c) {
    v.scale[c] = v.bytes ? 128 / (255 * std[c]) : 1 / std[c];
    v.ratio[c] = v.bytes ? (128 - 255 * mean[c]) / 128 : -mean[c];
  }
  return v;
}

void video_dtype(const Check& check, const Tensor& video, const Tensor& like) {
  check.dtype(like, {Dtype::f32, Dtype::f64, Dtype::f16, Dtype::bf16});
  check.dtype(video, {Dtype::u8, like.dtype()});
}

EmbedVisibleTubes forward_args(int device, const Tensor& video, const Tensor& weight, const Tensor& bias,
                               const Tensor& index, const Tensor& position, const Sizes& tube, const Levels& mean,
                               const Levels& std, const Tensor& columns, const Tensor& folded, const Tensor& out) {
  const Check check("embed_visible_tubes", device,
                    {{"video", &video},
                     {"weight", &weight},
                     {"bias", &bias},
                     {"visible_index", &index},
                     {"position", &position},
                     {"columns", &columns},
                     {"folded", &folded},
                     {"out", &out}});
  video_dtype(check, video, weight);
  EmbedVisibleTubes a{};
  a.tubes = tubes_args(check, video, index, tube, mean, std);
  a.dim = weight.size(0);
  check.shape(weight, {-1, a.tubes.channels, tube[0], tube[1], tube[2]});
  check.contiguous(weight);
  if (bias.defined()) {
    check.shape(bias, {a.dim});
    check.dtype(bias, {weight.dtype()});
    check.contiguous(bias);
    a.bias = bias.data();
  }
  if (position.defined()) {
    check.shape(position, {a.tubes.length, a.dim});
    check.dtype(position, {weight.dtype()});
    check.contiguous(position);
    a.position = position.data();
  }
  if (columns.defined()) {
    check.shape(columns, {a.tubes.rows, a.tubes.width()});
    check.dtype(columns, {weight.dtype()});
    check.output(columns);
    a.columns = columns.data();
  }
  if (folded.defined()) {
    check.shape(folded, {a.dim, a.tubes.width()});
    check.dtype(folded, {weight.dtype()});
    check.output(folded);
    a.folded = folded.data();
  }
  check.shape(out, {a.tubes.rows, a.dim});
  check.dtype(out, {weight.dtype()});
  check.output(out);
  a.weight = weight.data();
  a.out = out.data();
  a.element = element_of(weight);
  a.bad = -1;
  return a;
}

EmbedVisibleTubesBackward backward_args(int device, const Tensor& grad_out, const Tensor& video, const Tensor& index,
                                        const Sizes& tube, const Levels& mean, const Levels& std, const Tensor& columns,
                                        const Tensor& product, const Tensor& grad_weight, const Tensor& grad_bias,
                                        const Tensor& grad_position, const Tensor& sums) {
  const Check check("embed_visible_tubes_backward", device,
                    {{"grad_out", &grad_out},
                     {"video", &video},
                     {"visible_index", &index},
                     {"columns", &columns},
                     {"product", &product},
                     {"grad_weight", &grad_weight},
                     {"grad_bias", &grad_bias},
                     {"grad_position", &grad_position},
                     {"sums", &sums}});
  video_dtype(check, video, grad_out);
  EmbedVisibleTubesBackward a{};
  a.tubes = tubes_args(check, video, index, tube, mean, std);
  check.shape(grad_out, {a.tubes.rows, -1});
  check.contiguous(grad_out);
  a.dim = grad_out.size(1);
  if (columns.defined()) {
    check.shape(columns, {a.tubes.rows, a.tubes.width()});
    check.dtype(columns, {grad_out.dtype()});
    check.output(columns);
    a.columns = columns.data();
  }
  if (product.defined()) {
    check.shape(product, {a.dim, a.tubes.width()});
    check.dtype(product, {grad_out.dtype()});
    check.contiguous(product);
    check.shape(grad_weight, {a.dim, a.tubes.channels, tube[0], tube[1], tube[2]});
    check.dtype(grad_weight, {grad_out.dtype()});
    check.output(grad_weight);
    check.shape(grad_bias, {a.dim});
    check.dtype(grad_bias, {grad_out.dtype()});
    check.output(grad_bias);
    a.product = product.data();
    a.grad_weight = grad_weight.data();
    a.grad_bias = grad_bias.data();
    check.shape(sums, {a.dim});
    check.dtype(sums, {grad_out.dtype() == Dtype::f64 ? Dtype::f64 : Dtype::f32});
    check.output(sums);
    a.sums = sums.data();
  }
  if (grad_position.defined()) {
    check.shape(grad_position, {a.tubes.length, a.dim});
    check.dtype(grad_position, {grad_out.dtype()});
    check.output(grad_position);
    a.grad_position = grad_position.data();
  }
  a.grad_out = grad_out.data();
  a.element = element_of(grad_out);
  a.bad = -1;
  return a;
}

#ifdef VK_BUILD_CPU
void refuse_outside(const VisibleTubes& v, int64_t bad) {
  if (bad < 0) return;
  throw py::value_error("embed_visible_tubes: `visible_index`[" + std::to_string(bad / v.count) + ", " +
                        std::to_string(bad % v.count) + "] is " + std::to_string(v.index[bad]) + ", outside the " +
                        std::to_string(v.length) + " tubes.");
}

/// True if `out` is finished, false if the product is still missing.
bool forward_cpu(const Tensor& video, const Tensor& weight, const Tensor& bias, const Tensor& index,
                 const Tensor& position, const Sizes& tube, const Levels& mean, const Levels& std,
                 const Tensor& columns, const Tensor& folded, const Tensor& out) {
  EmbedVisibleTubes a =
      forward_args(kDLCPU, video, weight, bias, index, position, tube, mean, std, columns, folded, out);
  std::vector<double> scratch(static_cast<size_t>(a.dim));
  a.scratch = scratch.data();
  VK_CPU_CALL(embed_visible_tubes, a);
  refuse_outside(a.tubes, a.bad);
  return a.complete;
}

void backward_cpu(const Tensor& grad_out, const Tensor& video, const Tensor& index, const Sizes& tube,
                  const Levels& mean, const Levels& std, const Tensor& columns, const Tensor& product,
                  const Tensor& grad_weight, const Tensor& grad_bias, const Tensor& grad_position, const Tensor& sums) {
  EmbedVisibleTubesBackward a = backward_args(kDLCPU, grad_out, video, index, tube, mean, std, columns, product,
                                              grad_weight, grad_bias, grad_position, sums);
  std::vector<int32_t> links(a.grad_position ? size_t(a.tubes.length + a.tubes.rows) : 0);
  a.links = links.data();
  VK_CPU_CALL(embed_visible_tubes_backward, a);
  refuse_outside(a.tubes, a.bad);
}
#endif

#ifdef VK_GPU
bool forward_cuda(const Tensor& video, const Tensor& weight, const Tensor& bias, const Tensor& index,
                  const Tensor& position, const Sizes& tube, const Levels& mean, const Levels& std,
                  const Tensor& columns, const Tensor& folded, const Tensor& out) {
  const EmbedVisibleTubes a =
      forward_args(kGpuDevice, video, weight, bias, index, position, tube, mean, std, columns, folded, out);
  GpuLaunch launch("embed_visible_tubes", {{"video", &video, GpuLaunch::Buffer::in},
                                           {"weight", &weight, GpuLaunch::Buffer::in},
                                           {"bias", &bias, GpuLaunch::Buffer::in},
                                           {"visible_index", &index, GpuLaunch::Buffer::in},
                                           {"position", &position, GpuLaunch::Buffer::in},
                                           {"out", &out, GpuLaunch::Buffer::out}});
  embed_visible_tubes_cuda(a, launch.stream());
  launch.finish();
  return true;
}

void backward_cuda(const Tensor& grad_out, const Tensor& video, const Tensor& index, const Sizes& tube,
                   const Levels& mean, const Levels& std, const Tensor& columns, const Tensor& product,
                   const Tensor& grad_weight, const Tensor& grad_bias, const Tensor& grad_position,
                   const Tensor& sums) {
  const EmbedVisibleTubesBackward a = backward_args(kGpuDevice, grad_out, video, index, tube, mean, std, columns,
                                                    product, grad_weight, grad_bias, grad_position, sums);
  GpuLaunch launch("embed_visible_tubes_backward", {{"grad_out", &grad_out, GpuLaunch::Buffer::in},
                                                    {"video", &video, GpuLaunch::Buffer::in},
                                                    {"visible_index", &index, GpuLaunch::Buffer::in},
                                                    {"columns", &columns, GpuLaunch::Buffer::out},
                                                    {"product", &product, GpuLaunch::Buffer::in},
                                                    {"grad_weight", &grad_weight, GpuLaunch::Buffer::out},
                                                    {"grad_bias", &grad_bias, GpuLaunch::Buffer::out},
                                                    {"grad_position", &grad_position, GpuLaunch::Buffer::out},
                                                    {"sums", &sums, GpuLaunch::Buffer::inout}});
  embed_visible_tubes_backward_cuda(a, launch.stream());
  launch.finish();
}
#endif

}  // namespace

void register_embed_visible_tubes(py::module_& m) {
#ifdef VK_BUILD_CPU
  m.def("embed_visible_tubes_cpu", &forward_cpu);
  m.def("embed_visible_tubes_backward_cpu", &backward_cpu);
#endif
#ifdef VK_GPU
  m.def("embed_visible_tubes_cuda", &forward_cuda);
  m.def("embed_visible_tubes_backward_cuda", &backward_cuda);
#endif
}

}  // namespace vk
