// Launches: the workers, the order of blocks, what a launch may ask for, and the op around it.
#include "simt/launch.h"

#include <algorithm>
#include <atomic>
#include <cstring>
#include <mutex>
#include <numeric>
#include <random>
#include <stdexcept>
#include <thread>

#include "simt/global_memory.h"
#include "simt/reports.h"
#include "simt/worker.h"

namespace simt {
namespace {

constexpr size_t kMaxDynamicShared = 227 * 1024;  // the largest of all supported cards (sm_90, sm_100)

Settings settings;
std::vector<std::unique_ptr<Worker>> workers;
std::mutex op_mutex;  // one op at a time: the buffers are global
std::thread::id op_owner;
std::string op_name;
std::atomic<bool> launch_failed;  // of this op: later launches would only report what follows from it

void prepare(Worker& w, const Launch& launch) {
  w.launch = &launch;
  w.failed = false;
  w.stop = false;
  const int threads = int(launch.block.x * launch.block.y * launch.block.z);
  w.threads = threads;
  if (w.lanes.size() < size_t(threads)) w.lanes.resize(size_t(threads));
  w.warps.resize(size_t(threads + 31) / 32);
  for (int i = 0; i < threads; ++i) {
    const unsigned u = unsigned(i);
    w.lanes[size_t(i)].thread = {u % launch.block.x, u / launch.block.x % launch.block.y,
                                 u / launch.block.x / launch.block.y};
  }
  for (size_t i = 0; i < w.warps.size(); ++i) {
    w.warps[i].first = int(i) * 32;
    w.warps[i].count = std::min(32, threads - int(i) * 32);
  }
  w.warp_order.resize(w.warps.size());
  std::iota(w.warp_order.begin(), w.warp_order.end(), 0);
  w.lane_order.resize(32);
  std::iota(w.lane_order.begin(), w.lane_order.end(), 0);
  w.shared.prepare(launch.dynamic_shared);
  w.counters = std::make_unique<LaunchCounters>(int(w.warps.size()));
}

void work(Worker& w, const Launch& launch, std::atomic<uint64_t>& next, const std::vector<uint32_t>& order) {
  this_worker = &w;
  prepare(w, launch);
  watch(w, settings.timeout);
  const uint64_t blocks = uint64_t(launch.grid.x) * launch.grid.y * launch.grid.z;
  for (;;) {
    const uint64_t i = next.fetch_add(1, std::memory_order_relaxed);
    if (i >= blocks || launch_failed.load(std::memory_order_relaxed)) break;
    run_block(w, order.empty() ? i : order[i]);
    if (w.failed) launch_failed = true;
  }
  unwatch(w);
  this_worker = nullptr;
}

KernelCounters sum_up(Worker& w) {
  KernelCounters sum = w.counters->total;
  sum.static_shared = w.shared.static_bytes_touched();
  for (size_t i = 0; i < w.counters->per_buffer.size(); ++i)
    for (size_t k = 0; k < 2; ++k)
      if (w.counters->per_buffer[i][k].requests) sum.buffers[buffer_name(int(i))][k].add(w.counters->per_buffer[i][k]);
  return sum;
}

std::string text_of(const dim3& d) {
  return "(" + std::to_string(d.x) + ", " + std::to_string(d.y) + ", " + std::to_string(d.z) + ")";
}

bool valid(const Launch& l) {
  std::string why;
  const uint64_t threads = uint64_t(l.block.x) * l.block.y * l.block.z;
  if (!l.grid.x || !l.grid.y || !l.grid.z) why = "the grid is empty";
  if (l.grid.x > 0x7fffffffu || l.grid.y > 65535 || l.grid.z > 65535)
    why = "a grid has at most 2^31-1 x 65535 x 65535 blocks";
  if (!threads || threads > kMaxThreads || l.block.z > 64) why = "a block has 1 to 1024 threads, at most 64 in z";
  if (l.dynamic_shared > kMaxDynamicShared)
    why = std::to_string(l.dynamic_shared) + " bytes of dynamic shared memory are more than any card has (232448)";
  if (why.empty()) return true;
  Problem p;
  p.kind = "launch";
  p.text = "grid " + text_of(l.grid) + " block " + text_of(l.block) + ": " + why;
  p.kernel = l.kernel;
  add_problem(std::move(p));
  return false;
}

}  // namespace

void configure(const Settings& s) { settings = s; }

void begin_op(const char* op, const Range* ranges, int n) {
  if (op_owner != std::this_thread::get_id()) op_mutex.lock();
  op_owner = std::this_thread::get_id();
  op_name = op;
  clear_problems();
  launch_failed = false;
  set_buffers(ranges, n);
}

void end_op() {
  std::string text = take_report(op_name);
  clear_buffers();
  if (op_owner == std::this_thread::get_id()) {
    op_owner = {};
    op_mutex.unlock();
  }
  if (!text.empty()) throw std::runtime_error(text);
}

void launch(const char* kernel, dim3 grid, dim3 block, size_t dynamic_shared, Body body, const void* arguments,
            size_t argument_bytes) {
  const Launch launch{kernel, grid, block, dynamic_shared, body, arguments, argument_bytes, settings.seed};
  if (launch_failed || !valid(launch)) {
    launch_failed = true;
    return;
  }
  const uint64_t blocks = uint64_t(grid.x) * grid.y * grid.z;
  std::vector<uint32_t> order;
  if (settings.seed) {
    order.resize(blocks);
    std::iota(order.begin(), order.end(), 0u);
    std::mt19937_64 random(settings.seed);
    for (size_t i = order.size(); i > 1; --i) std::swap(order[i - 1], order[random() % i]);
  }
  if (kTrace) start_touching();
  const size_t n = size_t(std::min<uint64_t>(uint64_t(settings.threads), blocks));
  while (workers.size() < n) workers.push_back(std::make_unique<Worker>());
  arm_faults();
  std::atomic<uint64_t> next{0};
  std::vector<std::thread> others;
  for (size_t i = 1; i < n; ++i) others.emplace_back([&, i] { work(*workers[i], launch, next, order); });
  work(*workers[0], launch, next, order);
  for (std::thread& t : others) t.join();
  disarm_faults();

  KernelCounters sum;
  for (size_t i = 0; i < n; ++i) sum.add(sum_up(*workers[i]));
  sum.launches = 1;
  sum.blocks = blocks;
  sum.threads = blocks * block.x * block.y * block.z;
  sum.dynamic_shared = dynamic_shared;
  add_to_kernel(kernel, sum);
}

void memset_async(void* data, int value, size_t bytes) {
  if (!bytes || launch_failed) return;
  if (write_from_host(data, bytes)) {
    std::memset(data, value, bytes);
    return;
  }
  launch_failed = true;
  Problem p;
  p.kind = "out-of-bounds";
  p.text = "memset_async of " + std::to_string(bytes) + " bytes does not lie in a writable buffer";
  add_problem(std::move(p));
}

}  // namespace simt
