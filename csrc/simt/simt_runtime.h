// What a binding tells the emulator around its kernel launches. Kernels include device/vk_device.cuh instead.
#pragma once
#include <cstddef>

namespace simt {

struct Range {
  const void* data;
  size_t bytes;
  bool initialised;  // false: reading a byte before a kernel wrote it is an error
  bool writable;     // false: a kernel that writes it is an error
  const char* name;
};

/// Registers the buffers that kernels may touch until end_op. Ranges may overlap (views of one tensor, in-place ops).
void begin_op(const char* op, const Range* ranges, int n);

/// Forgets the buffers. Throws std::runtime_error listing what the kernels did wrong, if anything.
void end_op();

}  // namespace simt
