// The extension module: _C, or the emulator's _simt and _simt_trace from the same bindings.
#include <pybind11/pybind11.h>

#include "core/dispatch.h"
#include "core/gpu_launch.h"
#include "core/parallel.h"

namespace py = pybind11;

namespace vk {
#define VK_OP(name) void register_##name(py::module_& m);
#include "vk_ops.inc"
#undef VK_OP
#ifdef VK_SIMT
void register_simt(py::module_& m);
#endif
}  // namespace vk

#ifndef VK_SIMT
namespace {

py::dict build_info() {
  py::dict d;
  d["version"] = VK_VERSION;
  d["compiler"] = VK_COMPILER;
  d["isa"] = vk::isa_name(vk::isa());
  d["threads"] = vk::max_threads();
#ifdef _OPENMP
  d["openmp"] = true;
#else
  d["openmp"] = false;
#endif
#ifdef VK_BUILD_CUDA
  d["cuda"] = VK_CUDA_VERSION;
  d["cuda_archs"] = VK_CUDA_ARCHS;
#else
  d["cuda"] = py::none();
  d["cuda_archs"] = py::none();
#endif
  return d;
}

/// (number of devices, reason if there is none)
py::tuple device_count() {
#ifdef VK_BUILD_CUDA
  int n = 0;
  const cudaError_t e = cudaGetDeviceCount(&n);
  // The static runtime says "insufficient driver" where there is no driver at all.
  if (e == cudaErrorInsufficientDriver) return py::make_tuple(0, "no CUDA driver on this machine");
  if (e != cudaSuccess) return py::make_tuple(0, cudaGetErrorString(e));
  return py::make_tuple(n, n ? "" : "no CUDA device");
#else
  return py::make_tuple(0, "built without CUDA");
#endif
}

}  // namespace
#endif

PYBIND11_MODULE(VK_MODULE_NAME, m) {
#ifdef VK_SIMT
  vk::register_simt(m);
#else
  m.def("build_info", &build_info);
  m.def("device_count", &device_count);
#endif
#define VK_OP(name) vk::register_##name(m);
#include "vk_ops.inc"
#undef VK_OP
}
