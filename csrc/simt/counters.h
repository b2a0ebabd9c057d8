// Traffic per warp request: lanes log their accesses, and the logs of a warp are merged when its lanes meet.
#pragma once
#include <array>
#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "simt/shared_memory.h"

namespace simt {

struct Traffic {
  uint64_t requests = 0, sectors = 0, bytes = 0, unique_bytes = 0;
  void add(const Traffic& o) {
    requests += o.requests, sectors += o.sectors, bytes += o.bytes, unique_bytes += o.unique_bytes;
  }
};

struct KernelCounters {
  uint64_t launches = 0, blocks = 0, threads = 0, barriers = 0, collectives = 0;
  Traffic global[3];  // by Kind; unique_bytes of an atomic count as stored
  uint64_t atomic_operations = 0;
  uint64_t shared_requests[3] = {}, shared_bytes[3] = {}, shared_waves = 0, shared_conflict_waves = 0;
  uint64_t static_shared = 0, dynamic_shared = 0;         // largest of all launches
  std::map<std::string, std::array<Traffic, 2>> buffers;  // load, store
  void add(const KernelCounters& o);
};

/// One access of one lane.
struct Access {
  uint64_t address;  // global: virtual address; shared: position
  uint32_t pc;
  uint8_t bytes;
  Kind kind;
  bool shared;
  uint8_t buffer;
};

/// The counters of one worker during one launch.
class LaunchCounters {
 public:
  explicit LaunchCounters(int warps);
  KernelCounters total;

  void log(int thread, const Access& a) { logs_[size_t(thread)].push_back(a); }
  bool full(int thread) const { return logs_[size_t(thread)].size() >= kLogLimit; }
  void flush(int warp);
  std::vector<std::array<Traffic, 2>> per_buffer;

 private:
  static constexpr size_t kLogLimit = size_t(1) << 16;
  struct Request {
    uint64_t address[32];
    int lanes[32];
    int count = 0;
  };
  void count(const Access& first, const Request& r);
  void count_shared(const Access& first, const Request& r);
  void flush_diverged(int warp);

  std::vector<std::vector<Access>> logs_;
};

/// Adds one launch to the counters of its kernel; read by Python.
void add_to_kernel(const std::string& kernel, const KernelCounters& c);
std::vector<std::pair<std::string, KernelCounters>> all_counters();
void reset_counters();

}  // namespace simt
