#include <new>

#include "core/bind.h"
#include "ops/decode_splats/decode_splats.h"

namespace vk {
namespace {

DecodeSplats arguments(int device, const Tensor& means, const Tensor& cholesky, const Tensor& colors,
                       const Tensor& background, const Tensor& out, const Tensor& records, double pixel_center) {
  const Check check("decode_splats", device,
                    {{"means", &means},
                     {"cholesky", &cholesky},
                     {"colors", &colors},
                     {"background", &background},
                     {"out", &out},
                     {"records", &records}});
  check.shape(means, {-1, 2});
  check.shape(cholesky, {means.size(0), 3});
  check.ndim(colors, 2, "[N, C]");
  check.shape(colors, {means.size(0), -1});
  check.require(colors.size(1) >= 1 && colors.size(1) <= 4, "expected `colors` of 1 to 4 channels.");
  check.shape(background, {colors.size(1)});
  for (const Tensor* t : {&means, &cholesky, &colors, &background}) {
    check.dtype(*t, {Dtype::f32});
    check.contiguous(*t);
  }
  check.ndim(out, 3, "[H, W, C]");
  check.shape(out, {-1, -1, colors.size(1)});
  check.dtype(out, {Dtype::u8});
  check.output(out);
  check.require(out.size(0) <= kDecodeSideLimit && out.size(1) <= kDecodeSideLimit,
                "expected an image of at most 65536 x 65536 pixels.");
  check.require(means.size(0) < int64_t(1) << 31, "expected fewer than 2^31 Gaussians.");
  return {means.ptr<float>(),  cholesky.ptr<float>(),
          colors.ptr<float>(), background.ptr<float>(),
          out.ptr<uint8_t>(),  nullptr,
          means.size(0),       colors.size(1),
          out.size(0),         out.size(1),
          float(pixel_center), false};
}

#ifdef VK_BUILD_CPU
void decode_cpu(const Tensor& means, const Tensor& cholesky, const Tensor& colors, const Tensor& background,
                const Tensor& out, const Tensor& records, double pixel_center) {
  DecodeSplats a = arguments(kDLCPU, means, cholesky, colors, background, out, records, pixel_center);
  {
    const py::gil_scoped_release release;  // the next frame's numbers are decoded meanwhile
    VK_CPU_CALL(decode_splats, a);
  }
  if (a.no_memory) throw std::bad_alloc();
}
#endif

#ifdef VK_GPU
void decode_cuda(const Tensor& means, const Tensor& cholesky, const Tensor& colors, const Tensor& background,
                 const Tensor& out, const Tensor& records, double pixel_center) {
  DecodeSplats a = arguments(kGpuDevice, means, cholesky, colors, background, out, records, pixel_center);
  const Check check("decode_splats", kGpuDevice, {{"records", &records}});
  check.shape(records, {means.size(0), kDecodeRecordBytes / 4});
  check.dtype(records, {Dtype::f32});
  check.output(records);
  a.records = records.data();
  GpuLaunch launch("decode_splats", {{"means", &means, GpuLaunch::Buffer::in},
                                     {"cholesky", &cholesky, GpuLaunch::Buffer::in},
                                     {"colors", &colors, GpuLaunch::Buffer::in},
                                     {"background", &background, GpuLaunch::Buffer::in},
                                     {"out", &out, GpuLaunch::Buffer::out},
                                     {"records", &records, GpuLaunch::Buffer::out}});
  decode_splats_cuda(a, launch.stream());
  launch.finish();
}
#endif

}  // namespace

void register_decode_splats(py::module_& m) {
#ifdef VK_BUILD_CPU
  m.def("decode_splats_cpu", &decode_cpu);
#endif
#ifdef VK_GPU
  m.def("decode_splats_cuda", &decode_cuda);
#endif
}

}  // namespace vk
