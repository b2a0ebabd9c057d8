// The emulator's own test kernels: python_tests/simt runs them in both modules, and nvcc compiles them, too.
#pragma once

namespace vk {

struct SelfTest {
  const char* name;
  /// x: input of n elements, y: output; what they hold and what `variant` does is the kernel's affair.
  void (*run)(const void* x, void* y, int n, int variant, void* stream);
  bool y_initialised;
};
extern const SelfTest kSelfTestBugs[], kSelfTestExact[];  // end with a null name

}  // namespace vk
