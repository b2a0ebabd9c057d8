// The floating element types that kernels are instantiated for, without torch and without Python.
#pragma once
#include <cstdint>

namespace vk {
enum class Element : uint8_t { f32, f64, f16, bf16 };
}
