// Everything a <op>_bind.cpp needs: views, checks, launches, and the bridge from dtype to element type.
#pragma once
#include "core/check.h"
#include "core/dispatch.h"
#include "core/element.h"
#include "core/gpu_launch.h"
#include "core/tensor_view.h"

namespace vk {

inline Element element_of(const Tensor& t) {
  switch (t.dtype()) {
    case Dtype::f64: return Element::f64;
    case Dtype::f16: return Element::f16;
    case Dtype::bf16: return Element::bf16;
    default: return Element::f32;
  }
}

}  // namespace vk
