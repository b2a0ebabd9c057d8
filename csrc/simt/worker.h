// The state of one OS thread that runs blocks, shared by the rooms of the emulator. Not for kernels.
#pragma once
#include <cstdint>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "simt/api.h"
#include "simt/context.h"
#include "simt/counters.h"
#include "simt/shared_memory.h"

namespace simt {

#ifdef VK_SIMT_TRACE
constexpr bool kTrace = true;
#else
constexpr bool kTrace = false;
#endif

constexpr int kMaxThreads = 1024;

enum class State : uint8_t { fresh, ready, at_barrier, in_collective, in_active_mask, paused, done };

struct AsyncCopy {
  unsigned char* shared;
  const unsigned char* global;
  int bytes, source_bytes;
};

struct Lane {
  void* context = nullptr;  // where it continues
  uint3 thread{};
  State state = State::fresh;
  const void* pc = nullptr;  // the call in which it waits
  Where where;
  uint32_t mask = 0;         // of the collective
  const void* in = nullptr;  // what it brings to the collective
  void* out = nullptr;       // what it takes home
  int value = 0;             // its part of a reducing barrier
  unsigned spins = 0;        // atomics since it last waited
  std::vector<AsyncCopy> copies;
  std::vector<size_t> groups;  // sizes of the committed groups at the front of `copies`
};

/// Runs once, when all lanes of `mask` have arrived. lanes[l] is lane l of the warp.
using Combine = void (*)(Lane* lanes, uint32_t mask);

struct Gathering {
  uint32_t mask, arrived;
  Combine combine;
  const void* where;
};

struct Warp {
  int first = 0, count = 0;  // its lanes are lanes[first .. first + count)
  int started = 0;           // how far the start order is done
  int open = 0;              // gatherings that wait for lanes
  Gathering gatherings[32];
};

struct Launch {
  const char* kernel;
  dim3 grid, block;
  size_t dynamic_shared;
  Body body;
  const void* arguments;
  size_t argument_bytes;
  uint64_t seed;
};

struct Worker {
  // ---- what runs
  const Launch* launch = nullptr;
  Lane* current = nullptr;  // null while the scheduler runs
  uint3 block{};
  bool failed = false;         // the block was abandoned
  volatile bool stop = false;  // set by the watchdog, polled at every call into the emulator
  volatile uint64_t blocks_done = 0;
  uint64_t watched_block = 0;
  int watch_ticks = 0;

  // ---- fibers
  Stacks stacks{kMaxThreads};
  std::vector<void*> carriers;     // context of each stack while nobody runs on it
  std::vector<int> free_carriers;  // a carrier starts threads one after another until one of them waits
  void* scheduler = nullptr;
  int starting_carrier = 0;
  int current_warp = 0;
  std::vector<Lane> lanes;  // never resized during a launch
  std::vector<Warp> warps;
  std::vector<int> warp_order, lane_order;
  int threads = 0, live = 0;

  // ---- memory and counting
  SharedMemory shared;
  std::unique_ptr<LaunchCounters> counters;
  struct Fault {
    int signal = 0;
    const void* address = nullptr;
    const void* pc = nullptr;
  } fault;
  const void* call_pc = nullptr;  // the kernel's call into emulator code that may fault
  volatile bool busy = false;     // in a hook: not a moment to divert the fiber
  void* timer = nullptr;
  int timer_thread = 0;  // the OS thread that the timer signals

  int index(const Lane* lane) const { return int(lane - lanes.data()); }
  Warp& warp_of(int thread) { return warps[size_t(thread) / 32]; }
};

/// The worker of this OS thread, or null outside of a launch.
extern __thread Worker* this_worker;
inline Worker* worker() noexcept { return this_worker; }

/// Gives up the running block (and with it the launch). Only on a fiber.
[[noreturn]] void abandon();
[[noreturn]] void timed_out(const void* pc);
/// Arrives at a collective and waits for the other lanes of its mask.
void run_collective(uint32_t mask, Combine combine, const void* in, void* out, Where where, const void* pc);
/// Lets the other lanes go on before this one does.
void pause_lane();
/// Runs every started warp's share; used by launch.cpp.
void run_block(Worker& w, uint64_t block);

inline void poll_watchdog(Worker* w, const void* pc) {
  if (w->stop) [[unlikely]]
    timed_out(pc);
}

/// hooks.cpp: checks and logs an access of the running lane; abandons the block if it must not happen.
void access(const void* p, unsigned bytes, Kind kind, const void* pc);

/// collectives.cpp: completes a gathering whose absent lanes have all exited, answers __activemask. True if it did.
bool complete_at_stall(Worker& w);
void complete(Worker& w, Warp& warp, int gathering);

/// async.cpp: forgets copies that nobody waited for.
void drop_copies(Worker& w, Lane& lane);

/// faults.cpp
void arm_faults();
void disarm_faults();
void watch(Worker& w, double seconds);
void unwatch(Worker& w);

}  // namespace simt
