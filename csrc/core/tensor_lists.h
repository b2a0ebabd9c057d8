// Lists of tensors as arguments: columns of one length, a row for every parameter of an optimiser.
#pragma once
#include <algorithm>
#include <initializer_list>
#include <optional>
#include <string>
#include <vector>

#include "core/tensor_view.h"

namespace vk {

class TensorLists {
 public:
  /// The views; nothing if a tensor is not contiguous float32 on a device of `device_type`, or they lie on several.
  static std::optional<TensorLists> plain(const char* op, int device_type,
                                          std::initializer_list<const py::list*> columns) {
    TensorLists lists;
    lists.op_ = op;
    lists.columns_ = columns.size();
    lists.rows_ = (*columns.begin())->size();
    for (const py::list* column : columns)
      if (column->size() != lists.rows_) throw py::value_error(std::string(op) + ": expected lists of one length.");
    lists.tensors_.reserve(lists.rows_ * lists.columns_);
    for (size_t row = 0; row < lists.rows_; ++row) {
      for (const py::list* column : columns) {
        Tensor& t = lists.tensors_.emplace_back();
        t.load((*column)[row].ptr());
        const Tensor& first = lists.tensors_.front();
        if (t.dtype() != Dtype::f32 || !t.is_contiguous() || t.device_type() != device_type ||
            t.device_id() != first.device_id())
          return std::nullopt;
        if (t.numel() != lists.at(row, 0).numel())
          throw py::value_error(std::string(op) + ": expected the tensors of a parameter to be of one size.");
      }
    }
    return lists;
  }

  size_t rows() const { return rows_; }
  size_t columns() const { return columns_; }
  const Tensor& at(size_t row, size_t column) const { return tensors_[row * columns_ + column]; }

  /// What is changed (every column but `read`) can be written to, and shares no byte with another tensor.
  void check_outputs(size_t read) const {
    struct Span {
      const char *begin, *end;
      bool written;
    };
    std::vector<Span> spans;
    for (size_t i = 0; i < tensors_.size(); ++i) {
      const Tensor& t = tensors_[i];
      const bool written = i % columns_ != read;
      if (written && t.read_only()) throw py::value_error(op_ + ": a tensor that is changed is read-only.");
      if (t.numel() > 0) spans.push_back({t.ptr<char>(), t.ptr<char>() + t.span_bytes(), written});
    }
    std::sort(spans.begin(), spans.end(), [](const Span& a, const Span& b) { return a.begin < b.begin; });
    for (size_t i = 1; i < spans.size(); ++i)
      if (spans[i].begin < spans[i - 1].end && (spans[i].written || spans[i - 1].written))
        throw py::value_error(op_ + ": a tensor that is changed overlaps another one in memory.");
  }

 private:
  std::string op_;
  std::vector<Tensor> tensors_;
  size_t rows_ = 0, columns_ = 0;
};

}  // namespace vk
