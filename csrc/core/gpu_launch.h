// What surrounds a GPU kernel launch in a binding: device guard, stream, errors. Under VK_SIMT the same code runs
// the kernel in the emulator, which learns the buffers here and reports what it found in finish().
#pragma once
#if defined(VK_BUILD_CUDA) || defined(VK_SIMT)
#define VK_GPU 1
#include <initializer_list>
#include <string>
#include <vector>

#include "core/tensor_view.h"

#ifdef VK_SIMT
#include "simt/simt_runtime.h"
#else
#include <cuda_runtime_api.h>
#endif

namespace vk {

#ifdef VK_SIMT
constexpr int kGpuDevice = kDLCPU;  // the emulator reads host memory
#else
constexpr int kGpuDevice = kDLCUDA;
#endif

class GpuLaunch {
 public:
  struct Buffer {
    const char* name;
    const Tensor* tensor;
    enum Use { in, out, inout } use;
  };
  GpuLaunch(const char* op, std::initializer_list<Buffer> buffers) : GpuLaunch(op, std::vector<Buffer>(buffers)) {}
  GpuLaunch(const char* op, const std::vector<Buffer>& buffers) : op_(op) {
#ifdef VK_SIMT
    std::vector<::simt::Range> ranges;
    for (const Buffer& b : buffers)
      if (b.tensor->defined() && b.tensor->span_bytes() > 0)
        ranges.push_back(
            {b.tensor->data(), size_t(b.tensor->span_bytes()), b.use != Buffer::out, b.use != Buffer::in, b.name});
    ::simt::begin_op(op, ranges.data(), int(ranges.size()));
#else
    const Tensor* first = nullptr;
    for (const Buffer& b : buffers)
      if (b.tensor->defined() && !first) first = b.tensor;
    check(cudaGetDevice(&previous_));
    if (first && first->device_id() != previous_) check(cudaSetDevice(first->device_id()));
    stream_ = current_stream(first);
#endif
  }
  GpuLaunch(const GpuLaunch&) = delete;
  GpuLaunch& operator=(const GpuLaunch&) = delete;
  ~GpuLaunch() {
#ifdef VK_SIMT
    if (!finished_) try {
        ::simt::end_op();
      } catch (...) {
      }
#else
    int now = previous_;
    if (cudaGetDevice(&now) == cudaSuccess && now != previous_) cudaSetDevice(previous_);
#endif
  }

#ifdef VK_SIMT
  void* stream() const { return nullptr; }
#else
  cudaStream_t stream() const { return stream_; }
#endif

  void finish() {
    finished_ = true;
#ifdef VK_SIMT
    ::simt::end_op();
#else
    check(cudaGetLastError());
#endif
  }

 private:
#ifndef VK_SIMT
  static cudaStream_t current_stream(const Tensor* t) {
    if (!t) return nullptr;
    void* stream = nullptr;
    if (t->api() && t->api()->current_work_stream) {
      if (t->api()->current_work_stream(kDLCUDA, t->device_id(), &stream)) throw py::error_already_set();
    } else {
      py::object s = py::module_::import("torch").attr("cuda").attr("current_stream")(t->device_id());
      stream = reinterpret_cast<void*>(s.attr("cuda_stream").cast<uintptr_t>());
    }
    return static_cast<cudaStream_t>(stream);
  }
  void check(cudaError_t e) const {
    if (e == cudaSuccess) return;
    if (e == cudaErrorInsufficientDriver || e == cudaErrorNoDevice)
      throw std::runtime_error(std::string(op_) + ": no usable CUDA driver or device on this machine (" +
                               cudaGetErrorString(e) + ")");
    throw std::runtime_error(std::string(op_) + ": CUDA error " + cudaGetErrorName(e) + ": " + cudaGetErrorString(e));
  }
  int previous_ = 0;
  cudaStream_t stream_ = nullptr;
#endif
  const char* op_;
  bool finished_ = false;
};

}  // namespace vk
#endif
