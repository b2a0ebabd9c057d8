// Runs the threads of one block. A carrier stack starts threads one after another, so a kernel that never waits costs
// no switch per thread; a thread that waits keeps its carrier, and another carrier starts the rest.
#include <algorithm>
#include <cstdlib>
#include <exception>
#include <string>

#include "simt/reports.h"
#include "simt/worker.h"

namespace simt {
namespace {

void back_to_scheduler(Worker* w, void** context) {
  w->current = nullptr;
  switch_context(context, w->scheduler);
}

void carry() {
  Worker* w = worker();
  const int carrier = w->starting_carrier;
  for (;;) {
    // A thread may have waited and come back: what is left to start belongs to the warp that runs now.
    for (;;) {
      Warp& warp = w->warps[size_t(w->current_warp)];
      if (warp.started >= 32) break;
      const int o = w->lane_order[size_t(warp.started++)];
      if (o >= warp.count) continue;
      w->current = &w->lanes[size_t(warp.first + o)];
      try {
        w->launch->body(w->launch->arguments);
      } catch (const std::exception& e) {
        report("exception", nullptr, std::string("a C++ exception left the kernel: ") + e.what());
        abandon();
      } catch (...) {
        report("exception", nullptr, "a C++ exception left the kernel");
        abandon();
      }
      w->current->state = State::done;
      w->current = nullptr;
      --w->live;
    }
    w->free_carriers.push_back(carrier);
    back_to_scheduler(w, &w->carriers[size_t(carrier)]);
  }
}

void resume(Worker& w, void* context) { switch_context(&w.scheduler, context); }

void start_carrier(Worker& w) {
  if (w.free_carriers.empty()) {
    const int i = int(w.carriers.size());
    w.carriers.push_back(make_context(w.stacks.top(i), carry));
    w.free_carriers.push_back(i);
  }
  w.starting_carrier = w.free_carriers.back();
  w.free_carriers.pop_back();
  resume(w, w.carriers[size_t(w.starting_carrier)]);
}

/// Runs the lanes of a warp until all of them wait or are done.
bool run_warp(Worker& w, int index) {
  Warp& warp = w.warps[size_t(index)];
  w.current_warp = index;
  bool any = false;
  for (bool ran = true; ran;) {
    ran = false;
    while (warp.started < 32) {
      ran = true;
      start_carrier(w);
      if (w.failed) return true;
    }
    for (const int o : w.lane_order) {
      if (o >= warp.count) continue;
      Lane& lane = w.lanes[size_t(warp.first + o)];
      if (lane.state != State::ready) continue;
      ran = true;
      w.current = &lane;
      resume(w, lane.context);
      if (w.failed) return true;
    }
    any = any || ran;
  }
  return any;
}

void flush_counters(Worker& w) {
  if constexpr (kTrace)
    for (size_t i = 0; i < w.warps.size(); ++i) w.counters->flush(int(i));
}

int reduce(const Worker& w, Reduce op) {
  int all = 1, any = 0, count = 0;
  for (int i = 0; i < w.threads; ++i) {
    const bool v = w.lanes[size_t(i)].value != 0;
    all &= v, any |= v, count += v;
  }
  return op == Reduce::logical_and ? all : op == Reduce::logical_or ? any : count;
}

void release_barrier(Worker& w) {
  Reduce op = Reduce(w.lanes[0].mask);
  const int result = op == Reduce::none ? 0 : reduce(w, op);
  for (int i = 0; i < w.threads; ++i) {
    w.lanes[size_t(i)].state = State::ready;
    w.lanes[size_t(i)].value = result;
  }
  w.counters->total.barriers++;
  if constexpr (kTrace) {
    w.shared.barrier();
    flush_counters(w);
  }
}

const char* waiting_for(State s) {
  return s == State::at_barrier      ? "waits at __syncthreads"
         : s == State::in_collective ? "waits in a warp collective"
         : s == State::done          ? "has exited"
                                     : "waits";
}

std::string position(const Where& where) {
  const std::string file = where.file_name();
  return file.substr(file.rfind('/') + 1) + ":" + std::to_string(where.line());
}

/// Nobody can go on. Tells the first lane that waits and the first that it waits for.
void report_stuck(Worker& w) {
  for (int i = 0; i < w.threads; ++i) {
    Lane& lane = w.lanes[size_t(i)];
    if (lane.state != State::in_collective) continue;
    Warp& warp = w.warp_of(i);
    for (int l = 0; l < warp.count; ++l) {
      Lane& other = w.lanes[size_t(warp.first + l)];
      if (!(lane.mask >> l & 1)) continue;
      const bool together = other.state == State::in_collective && other.mask == lane.mask &&
                            position(other.where) == position(lane.where);
      if (together) continue;
      w.current = &lane;
      std::string text =
          "the warp collective's mask names lane " + std::to_string(l) + ", which " + waiting_for(other.state);
      if (other.state != State::done) text += " (" + position(other.where) + ")";
      if (other.state == State::in_collective && other.mask != lane.mask) text += " with another mask";
      if (first_sight("collective", lane.pc))
        report("collective", lane.pc, text, other.state == State::done ? nullptr : other.pc);
      return;
    }
  }
  Lane* first = nullptr;
  int waiting = 0, exited = 0;
  for (int i = 0; i < w.threads; ++i) {
    Lane& lane = w.lanes[size_t(i)];
    if (lane.state == State::done) ++exited;
    if (lane.state != State::at_barrier) continue;
    if (!first) first = &lane;
    ++waiting;
  }
  for (int i = 0; first && i < w.threads; ++i) {
    Lane& other = w.lanes[size_t(i)];
    if (other.state == State::at_barrier && position(other.where) == position(first->where) &&
        other.where.column() == first->where.column())
      continue;
    w.current = first;
    std::string text = std::to_string(waiting) + " of " + std::to_string(w.threads) + " threads wait at a barrier, " +
                       std::to_string(exited) + " have exited; thread " + at(other.thread) + " " +
                       waiting_for(other.state);
    if (other.state != State::done) text += " (" + position(other.where) + ")";
    if (first_sight("divergent-barrier", first->pc))
      report("divergent-barrier", first->pc, text, other.state == State::done ? nullptr : other.pc);
    return;
  }
}

bool same_barrier(const Lane& a, const Lane& b) {
  return a.where.line() == b.where.line() && a.where.column() == b.where.column() &&
         std::string_view(a.where.file_name()) == b.where.file_name();
}

bool resolve_stall(Worker& w) {
  bool any = false;
  for (int i = 0; i < w.threads; ++i)
    if (w.lanes[size_t(i)].state == State::paused) {
      w.lanes[size_t(i)].state = State::ready;
      any = true;
    }
  if (any) {
    flush_counters(w);
    return true;
  }
  if (complete_at_stall(w)) return true;
  bool together = w.live == w.threads;
  for (int i = 0; together && i < w.threads; ++i)
    together = w.lanes[size_t(i)].state == State::at_barrier && same_barrier(w.lanes[size_t(i)], w.lanes[0]);
  if (together) {
    release_barrier(w);
    return true;
  }
  report_stuck(w);
  w.current = nullptr;
  w.failed = true;
  return false;
}

uint64_t mix(uint64_t x) {
  x += 0x9e3779b97f4a7c15u;
  x = (x ^ x >> 30) * 0xbf58476d1ce4e5b9u;
  x = (x ^ x >> 27) * 0x94d049bb133111ebu;
  return x ^ x >> 31;
}

void shuffle_order(std::vector<int>& order, uint64_t seed) {
  for (size_t i = order.size(); i > 1; --i) {
    seed = mix(seed);
    std::swap(order[i - 1], order[seed % i]);
  }
}

}  // namespace

__thread Worker* this_worker = nullptr;

uint3 thread_index() noexcept { return this_worker->current->thread; }
uint3 block_index() noexcept { return this_worker->block; }
dim3 block_dim() noexcept { return this_worker->launch->block; }
dim3 grid_dim() noexcept { return this_worker->launch->grid; }
void* dynamic_shared() noexcept { return this_worker->shared.dynamic(); }

void abandon() {
  Worker* w = worker();
  w->failed = true;
  void* nobody;
  back_to_scheduler(w, &nobody);
  __builtin_unreachable();
}

void timed_out(const void* pc) {
  if (first_sight("timeout", pc))
    report("timeout", pc, "the block did not end in time; does this thread wait for ever?");
  abandon();
}

void trap(const char* message) {
  const void* pc = __builtin_return_address(0);
  if (!worker() || !worker()->current) std::abort();
  if (first_sight("trap", pc)) report("trap", pc, message);
  abandon();
}

static void wait_as(State state) {
  Worker* w = worker();
  Lane* me = w->current;
  me->state = state;
  me->spins = 0;
  back_to_scheduler(w, &me->context);
}

void pause_lane() { wait_as(State::paused); }

int barrier_reduce(Reduce op, int value, Where where) {
  Worker* w = worker();
  const void* pc = __builtin_return_address(0);
  poll_watchdog(w, pc);
  Lane* me = w->current;
  me->pc = pc;
  me->where = where;
  me->value = value;
  me->mask = uint32_t(op);
  wait_as(State::at_barrier);
  return me->value;
}

void barrier(Where where) {
  Worker* w = worker();
  const void* pc = __builtin_return_address(0);
  poll_watchdog(w, pc);
  Lane* me = w->current;
  me->pc = pc;
  me->where = where;
  me->mask = uint32_t(Reduce::none);
  wait_as(State::at_barrier);
}

void run_block(Worker& w, uint64_t index) {
  const Launch& launch = *w.launch;
  const dim3 g = launch.grid;
  w.block = {unsigned(index % g.x), unsigned(index / g.x % g.y), unsigned(index / g.x / g.y)};
  w.live = w.threads;
  for (int i = 0; i < w.threads; ++i) {
    w.lanes[size_t(i)].state = State::fresh;
    w.lanes[size_t(i)].spins = 0;
  }
  for (Warp& warp : w.warps) warp.started = warp.open = 0;
  if (launch.seed) {
    shuffle_order(w.warp_order, launch.seed + index);
    shuffle_order(w.lane_order, launch.seed * 31 + index);
  }
  if constexpr (kTrace) w.shared.start_block();

  while (w.live && !w.failed) {
    bool ran = false;
    for (const int warp : w.warp_order) {
      ran = run_warp(w, warp) || ran;
      if (w.failed) break;
    }
    if (w.failed || !w.live) break;
    if (w.stop) {
      report_stuck(w);
      report("timeout", nullptr, "the block did not end in time");
      w.failed = true;
    } else if (!ran) {
      resolve_stall(w);
    }
  }
  for (int i = 0; i < w.threads; ++i)
    if (!w.lanes[size_t(i)].copies.empty()) drop_copies(w, w.lanes[size_t(i)]);
  if (w.failed) {
    // Whoever still sits on a carrier never runs again.
    w.carriers.clear();
    w.free_carriers.clear();
    w.current = nullptr;
    return;
  }
  flush_counters(w);
  w.blocks_done = w.blocks_done + 1;
}

}  // namespace simt
