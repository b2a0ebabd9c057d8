#include "simt/counters.h"

#include <algorithm>
#include <mutex>

#include "simt/global_memory.h"

namespace simt {
namespace {

std::mutex totals_mutex;
std::vector<std::pair<std::string, KernelCounters>> totals;  // in order of first launch

/// Distinct values of a short list that is mostly ascending.
struct Distinct {
  uint64_t values[160];  // 32 lanes x 16 bytes touch at most 64 sectors or 128 words
  int count = 0;
  bool insert(uint64_t v) {
    if (count && values[count - 1] == v) return false;
    if (!count || v > values[count - 1]) {
      values[count++] = v;
      return true;
    }
    uint64_t* p = std::lower_bound(values, values + count, v);
    if (*p == v) return false;
    std::copy_backward(p, values + count, values + count + 1);
    *p = v;
    ++count;
    return true;
  }
};

}  // namespace

void KernelCounters::add(const KernelCounters& o) {
  launches += o.launches, blocks += o.blocks, threads += o.threads;
  barriers += o.barriers, collectives += o.collectives, atomic_operations += o.atomic_operations;
  for (int k = 0; k < 3; ++k) {
    global[k].add(o.global[k]);
    shared_requests[k] += o.shared_requests[k];
    shared_bytes[k] += o.shared_bytes[k];
  }
  shared_waves += o.shared_waves;
  shared_conflict_waves += o.shared_conflict_waves;
  static_shared = std::max(static_shared, o.static_shared);
  dynamic_shared = std::max(dynamic_shared, o.dynamic_shared);
  for (const auto& [name, traffic] : o.buffers)
    for (int k = 0; k < 2; ++k) buffers[name][size_t(k)].add(traffic[size_t(k)]);
}

LaunchCounters::LaunchCounters(int warps) : per_buffer(size_t(buffer_count())), logs_(size_t(warps) * 32) {}

void LaunchCounters::count_shared(const Access& first, const Request& r) {
  // An access wider than a bank is served in groups of lanes that together ask for at most 128 bytes.
  const int group_lanes = first.bytes <= 4 ? 32 : 128 / first.bytes;
  for (int begin = 0; begin < r.count;) {
    const int group = r.lanes[begin] / group_lanes;
    Distinct words;
    int end = begin;
    for (; end < r.count && r.lanes[end] / group_lanes == group; ++end)
      for (unsigned b = 0; b < first.bytes; b += 4) words.insert((r.address[end] + b) / 4);
    int per_bank[32] = {}, waves = 1;
    for (int i = 0; i < words.count; ++i) waves = std::max(waves, ++per_bank[words.values[i] % 32]);
    total.shared_waves += uint64_t(waves);
    total.shared_conflict_waves += uint64_t(waves - 1);
    begin = end;
  }
  total.shared_requests[size_t(first.kind)]++;
  total.shared_bytes[size_t(first.kind)] += uint64_t(r.count) * first.bytes;
}

void LaunchCounters::count(const Access& first, const Request& r) {
  if (first.shared) return count_shared(first, r);
  Distinct sectors;
  for (int i = 0; i < r.count; ++i) {
    const uint64_t last = (r.address[i] + first.bytes - 1) / 32;
    for (uint64_t s = r.address[i] / 32; s <= last; ++s) sectors.insert(s);
  }
  Traffic traffic{1, uint64_t(sectors.count), uint64_t(r.count) * first.bytes, 0};
  for (int i = 0; i < sectors.count; ++i)
    traffic.unique_bytes += 32 * touch_sector(first.buffer, sectors.values[i], first.kind != Kind::load);
  total.global[size_t(first.kind)].add(traffic);
  per_buffer[first.buffer][first.kind != Kind::load].add(traffic);
}

void LaunchCounters::flush(int warp) {
  std::vector<Access>* logs = &logs_[size_t(warp) * 32];
  size_t length = 0;
  for (int l = 0; l < 32; ++l) length = std::max(length, logs[l].size());
  if (!length) return;
  // Usual: every lane that did anything did the same things in the same order.
  int lanes[32], n = 0;
  bool alike = true;
  for (int l = 0; l < 32; ++l)
    if (!logs[l].empty()) {
      lanes[n++] = l;
      alike = alike && logs[l].size() == length;
    }
  for (size_t i = 0; alike && i < length; ++i) {
    const Access& first = logs[lanes[0]][i];
    for (int k = 1; k < n; ++k) {
      const Access& a = logs[lanes[k]][i];
      alike =
          alike && a.pc == first.pc && a.bytes == first.bytes && a.shared == first.shared && a.buffer == first.buffer;
    }
  }
  if (!alike) return flush_diverged(warp);
  Request r;
  r.count = n;
  std::copy(lanes, lanes + n, r.lanes);
  for (size_t i = 0; i < length; ++i) {
    for (int k = 0; k < n; ++k) r.address[k] = logs[lanes[k]][i].address;
    count(logs[lanes[0]][i], r);
  }
  for (int l = 0; l < 32; ++l) logs[l].clear();
}

void LaunchCounters::flush_diverged(int warp) {
  // Lanes took different paths: the k-th time that a lane comes by an instruction belongs to the other lanes' k-th.
  struct Entry {
    uint64_t key;
    uint32_t turn;
    int lane;
    const Access* access;
  };
  std::vector<Access>* logs = &logs_[size_t(warp) * 32];
  std::vector<Entry> entries;
  for (int l = 0; l < 32; ++l)
    for (const Access& a : logs[l])
      entries.push_back(
          {uint64_t(a.pc) << 24 | uint64_t(a.bytes) << 16 | uint64_t(a.shared) << 8 | a.buffer, 0, l, &a});
  std::stable_sort(entries.begin(), entries.end(),
                   [](const Entry& a, const Entry& b) { return a.key != b.key ? a.key < b.key : a.lane < b.lane; });
  for (size_t i = 1; i < entries.size(); ++i)
    if (entries[i].key == entries[i - 1].key && entries[i].lane == entries[i - 1].lane)
      entries[i].turn = entries[i - 1].turn + 1;
  std::sort(entries.begin(), entries.end(), [](const Entry& a, const Entry& b) {
    return a.key != b.key ? a.key < b.key : a.turn != b.turn ? a.turn < b.turn : a.lane < b.lane;
  });
  for (size_t i = 0; i < entries.size();) {
    Request r;
    size_t end = i;
    for (; end < entries.size() && entries[end].key == entries[i].key && entries[end].turn == entries[i].turn; ++end) {
      r.address[r.count] = entries[end].access->address;
      r.lanes[r.count++] = entries[end].lane;
    }
    count(*entries[i].access, r);
    i = end;
  }
  for (int l = 0; l < 32; ++l) logs[l].clear();
}

void add_to_kernel(const std::string& kernel, const KernelCounters& c) {
  std::lock_guard lock(totals_mutex);
  for (auto& [name, sum] : totals)
    if (name == kernel) return sum.add(c);
  totals.emplace_back(kernel, c);
}

std::vector<std::pair<std::string, KernelCounters>> all_counters() {
  std::lock_guard lock(totals_mutex);
  return totals;
}

void reset_counters() {
  std::lock_guard lock(totals_mutex);
  totals.clear();
}

}  // namespace simt
