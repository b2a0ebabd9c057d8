// Working memory of a kernel call. Fresh pages cost more than most kernels do with them, so blocks go back to a small
// free list instead of to the system. Contents are undefined.
#pragma once
#include <cstddef>

namespace vk {

/// 64-byte aligned; never null for bytes > 0 (throws std::bad_alloc).
void* scratch_take(size_t bytes);
void scratch_give(void* block);

template <class T>
class Scratch {
 public:
  explicit Scratch(size_t count) : size_(count), data_(static_cast<T*>(scratch_take(count * sizeof(T) + 64))) {}
  Scratch(const Scratch&) = delete;
  Scratch& operator=(const Scratch&) = delete;
  ~Scratch() { scratch_give(data_); }
  T* data() const { return data_; }
  size_t size() const { return size_; }
  T& operator[](size_t i) const { return data_[i]; }

 private:
  size_t size_;
  T* data_;
};

}  // namespace vk
