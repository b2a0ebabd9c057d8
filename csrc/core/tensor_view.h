// A borrowed view of any DLPack tensor (torch, numpy, JAX, CuPy), and the pybind11 caster that makes it.
//
//   torch >= 2.10   type attribute __dlpack_c_exchange_api__ : a C function table, ~80 ns a tensor
//   anything else   __dlpack__() capsule, versioned or not   : ~2 us a tensor
//
// The view lives for one call. None becomes an undefined view. Refused here, before any kernel can read them:
// tensors without storage (fake, meta, functional), a set negative bit, a pending conjugation.
#pragma once
#include <pybind11/pybind11.h>

#include <cstdint>
#include <string>
#include <utility>

#include "core/dlpack_abi.h"
#include "core/half.h"

namespace vk {
namespace py = pybind11;

enum class Dtype : uint8_t { f32, f64, f16, bf16, u8, i8, i16, i32, i64, boolean, other };

inline const char* dtype_name(Dtype d) {
  constexpr const char* names[] = {"float32", "float64", "float16", "bfloat16",           "uint8", "int8", "int16",
                                   "int32",   "int64",   "bool",    "an unsupported type"};
  return names[int(d)];
}

inline Dtype dtype_of(DLDataType t) {
  if (t.lanes != 1) return Dtype::other;
  switch (t.code << 8 | t.bits) {
    case kDLFloat << 8 | 32: return Dtype::f32;
    case kDLFloat << 8 | 64: return Dtype::f64;
    case kDLFloat << 8 | 16: return Dtype::f16;
    case kDLBfloat << 8 | 16: return Dtype::bf16;
    case kDLUInt << 8 | 8: return Dtype::u8;
    case kDLInt << 8 | 8: return Dtype::i8;
    case kDLInt << 8 | 16: return Dtype::i16;
    case kDLInt << 8 | 32: return Dtype::i32;
    case kDLInt << 8 | 64: return Dtype::i64;
    case kDLBool << 8 | 8: return Dtype::boolean;
    default: return Dtype::other;
  }
}

class Tensor {
 public:
  Tensor() = default;
  Tensor(const Tensor&) = delete;
  Tensor& operator=(const Tensor&) = delete;
  Tensor(Tensor&& o) noexcept { *this = std::move(o); }
  Tensor& operator=(Tensor&& o) noexcept {
    std::swap(t_, o.t_);
    std::swap(dtype_, o.dtype_);
    std::swap(read_only_, o.read_only_);
    std::swap(owner_, o.owner_);
    std::swap(release_, o.release_);
    std::swap(api_, o.api_);
    return *this;
  }
  ~Tensor() {
    if (release_) release_(owner_);
  }

  bool defined() const { return dtype_ != Dtype::other || t_.ndim >= 0; }
  int ndim() const { return t_.ndim; }
  int64_t size(int i) const { return t_.shape[i < 0 ? i + t_.ndim : i]; }
  int64_t stride(int i) const {
    if (i < 0) i += t_.ndim;
    if (t_.strides) return t_.strides[i];
    int64_t s = 1;
    for (int k = t_.ndim - 1; k > i; --k) s *= t_.shape[k];
    return s;
  }
  int64_t numel() const {
    int64_t n = 1;
    for (int i = 0; i < t_.ndim; ++i) n *= t_.shape[i];
    return n;
  }
  Dtype dtype() const { return dtype_; }
  int itemsize() const { return (t_.dtype.bits + 7) / 8; }
  int device_type() const { return t_.device.device_type; }
  int device_id() const { return t_.device.device_id; }
  bool read_only() const { return read_only_; }
  const DLPackExchangeAPI* api() const { return api_; }

  bool is_contiguous() const {
    if (!t_.strides) return true;
    int64_t expected = 1;
    for (int i = t_.ndim - 1; i >= 0; --i) {
      if (t_.shape[i] != 1 && t_.strides[i] != expected) return numel() == 0;
      expected *= t_.shape[i];
    }
    return true;
  }
  /// Bytes from the first to behind the last element (0 for an empty tensor).
  int64_t span_bytes() const {
    int64_t last = 0;
    for (int i = 0; i < t_.ndim; ++i) {
      if (t_.shape[i] == 0) return 0;
      last += (t_.shape[i] - 1) * stride(i);
    }
    return (last + 1) * itemsize();
  }
  void* data() const { return static_cast<char*>(t_.data) + t_.byte_offset; }
  template <class T>
  T* ptr() const {
    return static_cast<T*>(data());
  }

  std::string shape_text() const {
    std::string s = "[";
    for (int i = 0; i < t_.ndim; ++i) {
      if (i) s += ", ";
      s += std::to_string(t_.shape[i]);
    }
    return s += "]";
  }
  std::string device_text() const {
    if (device_type() == kDLCPU) return "cpu";
    if (device_type() == kDLCUDA) return "cuda:" + std::to_string(device_id());
    return "device type " + std::to_string(device_type());
  }

  void load(PyObject* object);  // throws pybind11 errors

 private:
  void load_fast(PyObject* object, const DLPackExchangeAPI* api);
  void load_capsule(PyObject* object);

  DLTensor t_{nullptr, {0, 0}, -1, {0, 0, 0}, nullptr, nullptr, 0};
  Dtype dtype_ = Dtype::other;
  bool read_only_ = false;
  void* owner_ = nullptr;
  void (*release_)(void*) = nullptr;
  const DLPackExchangeAPI* api_ = nullptr;
};

}  // namespace vk

namespace pybind11::detail {
template <>
struct type_caster<vk::Tensor> {
  static constexpr auto name = const_name("Tensor");
  template <class>
  using cast_op_type = vk::Tensor&;
  operator vk::Tensor&() { return value; }
  bool load(handle source, bool) {
    if (!source.is_none()) value.load(source.ptr());
    return true;
  }
  vk::Tensor value;
};
}  // namespace pybind11::detail
