// Argument checks of the binding layer. A failed check throws ValueError/TypeError with every argument listed:
//
//   gather_tokens: expected `index` of dtype int32, got int64.
//     tokens : shape=[2, 196, 64] dtype=float32 device=cpu
//     index  : shape=[2, 16] dtype=int64 device=cpu
//   HINT: index.to(torch.int32)
//
// The public Python functions give friendlier checks first; these are the wall in front of the kernels.
#pragma once
#include <algorithm>
#include <initializer_list>
#include <string>

#include "core/tensor_view.h"

namespace vk {

class Check {
 public:
  struct Named {
    const char* name;
    const Tensor* tensor;
  };
  /// All defined tensors must lie on one device of `device_type`.
  Check(const char* op, int device_type, std::initializer_list<Named> tensors) : op_(op) {
    for (const Named& n : tensors) tensors_[count_++] = n;
    const Tensor* first = nullptr;
    for (const Named& n : tensors) {
      if (!n.tensor->defined()) continue;
      if (n.tensor->device_type() != device_type || (first && first->device_id() != n.tensor->device_id()))
        fail("expected `" + std::string(n.name) + "` on " + (device_type == kDLCPU ? "the CPU" : "one CUDA device") +
             ", got " + n.tensor->device_text() + ".");
      if (!first) first = n.tensor;
    }
  }

  void ndim(const Tensor& t, int n, const char* axes) const {
    if (t.ndim() != n) fail("expected `" + name(t) + "` of shape " + axes + ", got " + t.shape_text() + ".");
  }
  /// -1 accepts any size.
  void shape(const Tensor& t, std::initializer_list<int64_t> sizes) const {
    bool same = t.ndim() == int(sizes.size());
    int i = 0;
    for (int64_t s : sizes) same = same && (s < 0 || t.size(i) == s), ++i;
    if (same) return;
    std::string text = "[";
    for (int64_t s : sizes) {
      if (text.size() > 1) text += ", ";
      text += s < 0 ? std::string("*") : std::to_string(s);
    }
    fail("expected `" + name(t) + "` of shape " + text + "], got " + t.shape_text() + ".");
  }
  void dtype(const Tensor& t, std::initializer_list<Dtype> allowed) const {
    std::string text;
    for (Dtype d : allowed) {
      if (t.dtype() == d) return;
      text += (text.empty() ? "" : " or ") + std::string(dtype_name(d));
    }
    fail("expected `" + name(t) + "` of dtype " + text + ", got " + dtype_name(t.dtype()) + ".");
  }
  void contiguous(const Tensor& t) const {
    if (!t.is_contiguous()) fail("expected `" + name(t) + "` to be contiguous.", name(t) + ".contiguous()");
  }
  /// A kernel output: writable, contiguous, sharing no byte with any other argument.
  void output(const Tensor& t, const Tensor* may_alias = nullptr) const {
    if (t.read_only()) fail("`" + name(t) + "` is read-only, but the kernel writes to it.", "pass a writable copy");
    contiguous(t);
    const char *a = t.ptr<char>(), *b = a + t.span_bytes();
    if (a == b) return;
    for (int i = 0; i < count_; ++i) {
      const Tensor* o = tensors_[i].tensor;
      if (o == &t || o == may_alias || !o->defined()) continue;
      const char *c = o->ptr<char>(), *d = c + o->span_bytes();
      if (c < d && a < d && c < b)
        fail("`" + name(t) + "` overlaps `" + tensors_[i].name + "` in memory.", "pass a buffer of its own");
    }
  }
  void require(bool condition, const std::string& message, const std::string& hint = "") const {
    if (!condition) fail(message, hint);
  }

  [[noreturn]] void fail(const std::string& message, const std::string& hint = "") const {
    size_t width = 0;
    for (int i = 0; i < count_; ++i) width = std::max(width, std::string(tensors_[i].name).size());
    std::string text = std::string(op_) + ": " + message;
    for (int i = 0; i < count_; ++i) {
      const Tensor& t = *tensors_[i].tensor;
      std::string label = tensors_[i].name;
      label.resize(width, ' ');
      text += "\n  " + label + " : ";
      text += t.defined() ? "shape=" + t.shape_text() + " dtype=" + dtype_name(t.dtype()) + " device=" + t.device_text()
                          : std::string("None");
    }
    if (!hint.empty()) text += "\nHINT: " + hint;
    throw py::value_error(text);
  }

 private:
  std::string name(const Tensor& t) const {
    for (int i = 0; i < count_; ++i)
      if (tensors_[i].tensor == &t) return tensors_[i].name;
    return "?";
  }
  static constexpr int kMaxTensors = 24;
  const char* op_;
  Named tensors_[kMaxTensors];
  int count_ = 0;
};

}  // namespace vk
