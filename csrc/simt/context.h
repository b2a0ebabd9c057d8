// Fibers: a stack each, and a switch between them that saves only what the ABI asks for (~10 ns).
#pragma once
#include <cstddef>
#include <cstdint>

namespace simt {

constexpr size_t kStackBytes = size_t(128) << 10;
constexpr size_t kGuardBytes = size_t(64) << 10;  // a multiple of every page size in use
constexpr size_t kStackStride = kStackBytes + kGuardBytes;

/// Saves the running context to *from and continues `to`.
void switch_context(void** from, void* to);

/// A context that calls entry() (which must not return) on the stack that ends at `top`.
void* make_context(unsigned char* top, void (*entry)());

/// The program counter that a signal interrupted, or null.
const void* interrupted_pc(const void* signal_context);

/// Up to `count` stacks with guard pages, in one reservation so that one comparison tells "is on a stack".
class Stacks {
 public:
  explicit Stacks(int count);
  ~Stacks();
  Stacks(const Stacks&) = delete;
  Stacks& operator=(const Stacks&) = delete;
  /// Opens stack `i` at first use. Tops are staggered by cache lines, or equal frames would share one cache set.
  unsigned char* top(int i);
  bool contains(const void* p) const { return uintptr_t(p) - uintptr_t(base_) < size_; }
  int index(const void* p) const { return int((uintptr_t(p) - uintptr_t(base_)) / kStackStride); }

 private:
  unsigned char* base_;
  size_t size_;
  int open_ = 0;
};

/// Makes a signal handler's return continue in entry(), on the emptied stack of the fiber that was interrupted.
/// False: not supported here.
bool divert_signal(void* signal_context, Stacks& stacks, void (*entry)());

}  // namespace simt
