#include "core/scratch.h"

#include <cstdlib>
#include <mutex>
#include <new>
#include <vector>
#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace vk {
namespace {

struct Header {
  size_t bytes;  // of the whole block, this header's 64 bytes included
};
constexpr size_t kHeader = 64, kIdleLimit = size_t(256) << 20, kHugePage = size_t(2) << 20;

std::mutex mutex;
std::vector<void*> idle;  // whole blocks
size_t idle_bytes = 0;

}  // namespace

void* scratch_take(size_t bytes) {
  size_t wanted = 4096;
  while (wanted < bytes + kHeader) wanted += wanted / 4 / 64 * 64 + 64;  // size classes 25% apart
  {
    const std::lock_guard<std::mutex> lock(mutex);
    for (size_t i = idle.size(); i-- > 0;) {
      void* block = idle[i];
      if (static_cast<Header*>(block)->bytes != wanted) continue;
      idle.erase(idle.begin() + long(i));
      idle_bytes -= wanted;
      return static_cast<char*>(block) + kHeader;
    }
  }
  const size_t alignment = wanted >= kHugePage ? kHugePage : 64;
  void* block = std::aligned_alloc(alignment, (wanted + alignment - 1) / alignment * alignment);
  if (!block) throw std::bad_alloc();
#if defined(__linux__)
  if (alignment == kHugePage) madvise(block, wanted, MADV_HUGEPAGE);
#endif
  static_cast<Header*>(block)->bytes = wanted;
  return static_cast<char*>(block) + kHeader;
}

void scratch_give(void* data) {
  if (!data) return;
  void* block = static_cast<char*>(data) - kHeader;
  const size_t bytes = static_cast<Header*>(block)->bytes;
  {
    const std::lock_guard<std::mutex> lock(mutex);
    if (idle_bytes + bytes <= kIdleLimit) {
      idle.push_back(block);
      idle_bytes += bytes;
      return;
    }
  }
  std::free(block);
}

}  // namespace vk
