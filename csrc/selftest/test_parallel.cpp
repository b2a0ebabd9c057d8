#include <atomic>

#include "core/parallel.h"
#include "selftest.h"

VK_SELFTEST(parallel_for_visits_every_item_once) {
  for (int64_t n : {0, 1, 2, 7, 1000, 4099}) {
    for (int64_t grain : {1, 3, 64, 100000}) {
      std::vector<std::atomic<int>> visits(static_cast<size_t>(n));
      vk::parallel_for(n, grain, [&](int64_t begin, int64_t end) {
        for (int64_t i = begin; i < end; ++i) ++visits[size_t(i)];
      });
      for (const auto& v : visits) VK_EXPECT(v == 1);
    }
  }
}

VK_SELFTEST(parallel_for_inside_a_region_stays_serial) {
  std::atomic<int> calls{0};
  vk::parallel_for(2, 1, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) vk::parallel_for(64, 1, [&](int64_t b, int64_t e) { calls += int(e - b); });
  });
  VK_EXPECT(calls == 128);
}
