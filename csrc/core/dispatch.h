// One CPU source, one object per instruction set, the best one chosen at run time.
//
//   <op>.h        VK_CPU_KERNEL(gather_tokens, (const GatherTokens& a))     declares vk::v2::, vk::v3::, vk::v4::
//   <op>_cpu.cpp  namespace vk::VK_ISA { void gather_tokens(const GatherTokens& a) { ... } }
//   <op>_bind.cpp VK_CPU_CALL(gather_tokens, args);
//
// Everything else in a <op>_cpu.cpp lives in an anonymous namespace: an inline function shared between the
// objects could be merged by the linker into its AVX-512 copy and then run on a machine without it.
#pragma once

namespace vk {

enum class Isa : int { base = 0, v2 = 2, v3 = 3, v4 = 4 };

/// The best set that this processor has, lowered by VIDKERNELS_ISA=v2|v3|v4 if that is set. Fixed at first use.
Isa isa();
const char* isa_name(Isa);

}  // namespace vk

#if defined(__x86_64__) || defined(_M_X64)
#define VK_CPU_KERNEL(name, params) \
  namespace v2 {                    \
  void name params;                 \
  }                                 \
  namespace v3 {                    \
  void name params;                 \
  }                                 \
  namespace v4 {                    \
  void name params;                 \
  }
#define VK_CPU_CALL(name, ...)                                  \
  (::vk::isa() == ::vk::Isa::v4   ? ::vk::v4::name(__VA_ARGS__) \
   : ::vk::isa() == ::vk::Isa::v3 ? ::vk::v3::name(__VA_ARGS__) \
                                  : ::vk::v2::name(__VA_ARGS__))
#else
#define VK_CPU_KERNEL(name, params) \
  namespace base {                  \
  void name params;                 \
  }
#define VK_CPU_CALL(name, ...) ::vk::base::name(__VA_ARGS__)
#endif
