#include "core/bind.h"
#include "ops/conv_int8/conv_int8.h"

namespace vk {
namespace {

/// The numbers of one layer.
struct Numbers {
  const Tensor &weight, &bias, &multiplier, &shift, &table;
  int64_t zero_point, scale;
};

/// A layer for images of these sizes; x and result are for the caller to fill in.
ConvInt8 layer_of(const Check& check, const Numbers& n, int64_t batch, int64_t height, int64_t width, int64_t in) {
  check.require(in > 0, "expected at least one channel.");
  check.ndim(n.weight, 4, "[O, kh, kw, I]");
  check.shape(n.weight, {-1, -1, -1, in});
  check.dtype(n.weight, {Dtype::i8});
  check.contiguous(n.weight);
  const int64_t filters = n.weight.size(0), scale = n.scale;
  check.require(n.weight.size(1) % 2 == 1 && n.weight.size(2) % 2 == 1, "expected odd kernel sizes.");
  check.require(scale >= 1 && filters % (scale * scale) == 0, "expected O to be a multiple of scale^2.");
  check.require(n.zero_point >= 0 && n.zero_point <= 255, "expected zero points to be bytes.");
  for (const Tensor* t : {&n.bias, &n.multiplier, &n.shift}) {
    check.shape(*t, {filters});
    check.dtype(*t, {Dtype::i32});
    check.contiguous(*t);
  }
  check.shape(n.table, {256});
  check.dtype(n.table, {Dtype::u8});
  check.contiguous(n.table);
  return {batch,
          height,
          width,
          in,
          filters / (scale * scale),
          n.weight.size(1),
          n.weight.size(2),
          scale,
          uint8_t(n.zero_point),
          nullptr,
          static_cast<const int8_t*>(n.weight.data()),
          static_cast<const int32_t*>(n.bias.data()),
          static_cast<const int32_t*>(n.multiplier.data()),
          static_cast<const int32_t*>(n.shift.data()),
          static_cast<const uint8_t*>(n.table.data()),
          nullptr};
}

ConvInt8 first_layer(const Check& check, const Tensor& x, const Numbers& n) {
  check.ndim(x, 4, "[B, H, W, I]");
  check.dtype(x, {Dtype::u8});
  check.contiguous(x);
  ConvInt8 a = layer_of(check, n, x.size(0), x.size(1), x.size(2), x.size(3));
  a.x = static_cast<const uint8_t*>(x.data());
  return a;
}

uint8_t* result_of(const Check& check, const ConvInt8& a, const Tensor& out) {
  check.shape(out, {a.batch, a.height * a.scale, a.width * a.scale, a.out});
  check.dtype(out, {Dtype::u8});
  check.output(out);
  return static_cast<uint8_t*>(out.data());
}

ConvInt8 conv_args(int device, const Tensor& x, const Numbers& n, const Tensor& out) {
  const Check check("conv_int8", device,
                    {{"x", &x},
                     {"weight", &n.weight},
                     {"bias", &n.bias},
                     {"multiplier", &n.multiplier},
                     {"shift", &n.shift},
                     {"table", &n.table},
                     {"out", &out}});
  ConvInt8 a = first_layer(check, x, n);
  a.result = result_of(check, a, out);
  return a;
}

struct Tail {
  ConvInt8 first, head;
};

/// `between`: what the first layer draws, where the kernels need a place for it.
Tail tail_args(int device, const Tensor& x, const Numbers& n, const Numbers& m, const Tensor& between,
               const Tensor& out) {
  const Check check("decode_tail", device,
                    {{"x", &x},
                     {"weight", &n.weight},
                     {"bias", &n.bias},
                     {"multiplier", &n.multiplier},
                     {"shift", &n.shift},
                     {"table", &n.table},
                     {"head_weight", &m.weight},
                     {"head_bias", &m.bias},
                     {"head_multiplier", &m.multiplier},
                     {"head_shift", &m.shift},
                     {"head_table", &m.table},
                     {"between", &between},
                     {"out", &out}});
  ConvInt8 a = first_layer(check, x, n);
  ConvInt8 b = layer_of(check, m, a.batch, a.height * a.scale, a.width * a.scale, a.out);
  if (between.defined()) b.x = a.result = result_of(check, a, between);
  b.result = result_of(check, b, out);
  return {a, b};
}

#ifdef VK_BUILD_CPU
void conv_on_cpu(const Tensor& x, const Tensor& weight, const Tensor& bias, const Tensor& multiplier,
                 const Tensor& shift, const Tensor& table, const Tensor& out, int64_t zero_point, int64_t scale) {
  const ConvInt8 a = conv_args(kDLCPU, x, {weight, bias, multiplier, shift, table, zero_point, scale}, out);
  VK_CPU_CALL(conv_int8, a);
}

void tail_on_cpu(const Tensor& x, const Tensor& weight, const Tensor& bias, const Tensor& multiplier,
                 const Tensor& shift, const Tensor& table, const Tensor& head_weight, const Tensor& head_bias,
                 const Tensor& head_multiplier, const Tensor& head_shift, const Tensor& head_table,
                 const Tensor& between, const Tensor& out, int64_t zero_point, int64_t scale, int64_t head_zero_point,
                 int64_t head_scale) {
  const Tail a = tail_args(
      kDLCPU, x, {weight, bias, multiplier, shift, table, zero_point, scale},
      {head_weight, head_bias, head_multiplier, head_shift, head_table, head_zero_point, head_scale}, between, out);
  VK_CPU_CALL(decode_tail, a.first, a.head);
}
#endif

#ifdef VK_GPU
using Buffer = GpuLaunch::Buffer;

void conv_on_cuda(const Tensor& x, const Tensor& weight, const Tensor& bias, const Tensor& multiplier,
                  const Tensor& shift, const Tensor& table, const Tensor& out, int64_t zero_point, int64_t scale) {
  const ConvInt8 a = conv_args(kGpuDevice, x, {weight, bias, multiplier, shift, table, zero_point, scale}, out);
  GpuLaunch launch("conv_int8", {{"x", &x, Buffer::in},
                                 {"weight", &weight, Buffer::in},
                                 {"bias", &bias, Buffer::in},
                                 {"multiplier", &multiplier, Buffer::in},
                                 {"shift", &shift, Buffer::in},
                                 {"table", &table, Buffer::in},
                                 {"out", &out, Buffer::out}});
  conv_int8_cuda(a, launch.stream());
  launch.finish();
}

void tail_on_cuda(const Tensor& x, const Tensor& weight, const Tensor& bias, const Tensor& multiplier,
                  const Tensor& shift, const Tensor& table, const Tensor& head_weight, const Tensor& head_bias,
                  const Tensor& head_multiplier, const Tensor& head_shift, const Tensor& head_table,
                  const Tensor& between, const Tensor& out, int64_t zero_point, int64_t scale, int64_t head_zero_point,
                  int64_t head_scale) {
  const Tail a = tail_args(
      kGpuDevice, x, {weight, bias, multiplier, shift, table, zero_point, scale},
      {head_weight, head_bias, head_multiplier, head_shift, head_table, head_zero_point, head_scale}, between, out);
  GpuLaunch launch("decode_tail", {{"x", &x, Buffer::in},
                                   {"weight", &weight, Buffer::in},
                                   {"bias", &bias, Buffer::in},
                                   {"multiplier", &multiplier, Buffer::in},
                                   {"shift", &shift, Buffer::in},
                                   {"table", &table, Buffer::in},
                                   {"head_weight", &head_weight, Buffer::in},
                                   {"head_bias", &head_bias, Buffer::in},
                                   {"head_multiplier", &head_multiplier, Buffer::in},
                                   {"head_shift", &head_shift, Buffer::in},
                                   {"head_table", &head_table, Buffer::in},
                                   {"between", &between, Buffer::out},
                                   {"out", &out, Buffer::out}});
  conv_int8_cuda(a.first, launch.stream());
  conv_int8_cuda(a.head, launch.stream());
  launch.finish();
}
#endif

}  // namespace

void register_conv_int8(py::module_& m) {
#ifdef VK_BUILD_CPU
  m.def("conv_int8_cpu", &conv_on_cpu);
  m.def("decode_tail_cpu", &tail_on_cpu);
#endif
#ifdef VK_GPU
  m.def("conv_int8_cuda", &conv_on_cuda);
  m.def("decode_tail_cuda", &tail_on_cuda);
#endif
}

}  // namespace vk
