#include "core/bind.h"
#include "ops/conv_int8/conv_int8.h"

namespace vk {
namespace {

ConvInt8 arguments(int device, const Tensor& x, const Tensor& weight, const Tensor& bias, const Tensor& multiplier,
                   const Tensor& shift, const Tensor& table, const Tensor& out, int64_t zero_point, int64_t scale) {
  const Check check("conv_int8", device,
                    {{"x", &x},
                     {"weight", &weight},
                     {"bias", &bias},
                     {"multiplier", &multiplier},
                     {"shift", &shift},
                     {"table", &table},
                     {"out", &out}});
  check.ndim(x, 4, "[B, H, W, I]");
  check.dtype(x, {Dtype::u8});
  check.contiguous(x);
  check.ndim(weight, 4, "[O, kh, kw, I]");
  check.shape(weight, {-1, -1, -1, x.size(3)});
  check.dtype(weight, {Dtype::i8});
  check.contiguous(weight);
  check.require(x.size(3) > 0, "expected at least one channel.");
  check.require(weight.size(1) % 2 == 1 && weight.size(2) % 2 == 1, "expected odd kernel sizes.");
  check.require(scale >= 1 && weight.size(0) % (scale * scale) == 0, "expected O to be a multiple of scale^2.");
  check.require(zero_point >= 0 && zero_point <= 255, "expected `zero_point` to be a byte.");
  for (const Tensor* t : {&bias, &multiplier, &shift}) {
    check.shape(*t, {weight.size(0)});
    check.dtype(*t, {Dtype::i32});
    check.contiguous(*t);
  }
  check.shape(table, {256});
  check.dtype(table, {Dtype::u8});
  check.contiguous(table);
  const int64_t channels = weight.size(0) / (scale * scale);
  check.shape(out, {x.size(0), x.size(1) * scale, x.size(2) * scale, channels});
  check.dtype(out, {Dtype::u8});
  check.output(out);
  return {x.size(0),
          x.size(1),
          x.size(2),
          x.size(3),
          channels,
          weight.size(1),
          weight.size(2),
          scale,
          uint8_t(zero_point),
          static_cast<const uint8_t*>(x.data()),
          static_cast<const int8_t*>(weight.data()),
          static_cast<const int32_t*>(bias.data()),
          static_cast<const int32_t*>(multiplier.data()),
          static_cast<const int32_t*>(shift.data()),
          static_cast<const uint8_t*>(table.data()),
          static_cast<uint8_t*>(out.data())};
}

#ifdef VK_BUILD_CPU
void conv_int8_cpu(const Tensor& x, const Tensor& weight, const Tensor& bias, const Tensor& multiplier,
                   const Tensor& shift, const Tensor& table, const Tensor& out, int64_t zero_point, int64_t scale) {
  const ConvInt8 a = arguments(kDLCPU, x, weight, bias, multiplier, shift, table, out, zero_point, scale);
  VK_CPU_CALL(conv_int8, a);
}
#endif

#ifdef VK_GPU
void conv_int8_on_cuda(const Tensor& x, const Tensor& weight, const Tensor& bias, const Tensor& multiplier,
                       const Tensor& shift, const Tensor& table, const Tensor& out, int64_t zero_point, int64_t scale) {
  const ConvInt8 a = arguments(kGpuDevice, x, weight, bias, multiplier, shift, table, out, zero_point, scale);
  GpuLaunch launch("conv_int8", {{"x", &x, GpuLaunch::Buffer::in},
                                 {"weight", &weight, GpuLaunch::Buffer::in},
                                 {"bias", &bias, GpuLaunch::Buffer::in},
                                 {"multiplier", &multiplier, GpuLaunch::Buffer::in},
                                 {"shift", &shift, GpuLaunch::Buffer::in},
                                 {"table", &table, GpuLaunch::Buffer::in},
                                 {"out", &out, GpuLaunch::Buffer::out}});
  conv_int8_cuda(a, launch.stream());
  launch.finish();
}
#endif

}  // namespace

void register_conv_int8(py::module_& m) {
#ifdef VK_BUILD_CPU
  m.def("conv_int8_cpu", &conv_int8_cpu);
#endif
#ifdef VK_GPU
  m.def("conv_int8_cuda", &conv_int8_on_cuda);
#endif
}

}  // namespace vk
