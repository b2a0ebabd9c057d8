// Warp collectives: the last lane to arrive does the work for all.
#include <cstring>

#include "simt/reports.h"
#include "simt/worker.h"

namespace simt {
namespace {

void report_collective(const Lane& lane, const std::string& text) {
  if (first_sight("collective", lane.pc)) report("collective", lane.pc, text);
}

uint32_t existing(const Warp& warp) { return warp.count == 32 ? ~0u : (1u << warp.count) - 1; }

uint32_t exited(const Worker& w, const Warp& warp) {
  uint32_t mask = 0;
  for (int l = 0; l < warp.count; ++l) mask |= uint32_t(w.lanes[size_t(warp.first + l)].state == State::done) << l;
  return mask;
}

void sync_only(Lane*, uint32_t) {}

struct Shuffled {
  Shuffle mode;
  int lane, width;
  unsigned bytes;
  const void* value;
};

void combine_shuffle(Lane* lanes, uint32_t mask) {
  for (int l = 0; l < 32; ++l) {
    if (!(mask >> l & 1)) continue;
    const auto& mine = *static_cast<const Shuffled*>(lanes[l].in);
    const int begin = l & ~(mine.width - 1), end = begin + mine.width;
    int source = l;
    switch (mine.mode) {
      case Shuffle::index: source = begin + (mine.lane & (mine.width - 1)); break;
      case Shuffle::up: source = l - mine.lane < begin ? l : l - mine.lane; break;
      case Shuffle::down: source = l + mine.lane >= end ? l : l + mine.lane; break;
      // Unlike the others, xor may read from the groups below.
      case Shuffle::exclusive_or: source = (l ^ mine.lane) >= end ? l : l ^ mine.lane; break;
    }
    if (mask >> source & 1) {
      std::memcpy(lanes[l].out, static_cast<const Shuffled*>(lanes[source].in)->value, mine.bytes);
      continue;
    }
    std::memset(lanes[l].out, 0xff, mine.bytes);
    if (lanes[l].mask >> source & 1)
      report_collective(lanes[l], "lane " + std::to_string(l) + " shuffles from lane " + std::to_string(source) +
                                      ", which its mask names but the block does not have");
  }
}

void combine_ballot(Lane* lanes, uint32_t mask) {
  uint32_t bits = 0;
  for (int l = 0; l < 32; ++l)
    if (mask >> l & 1) bits |= uint32_t(*static_cast<const bool*>(lanes[l].in)) << l;
  for (int l = 0; l < 32; ++l)
    if (mask >> l & 1) *static_cast<uint32_t*>(lanes[l].out) = bits;
}

}  // namespace

void run_collective(uint32_t mask, Combine combine, const void* in, void* out, Where where, const void* pc) {
  Worker* w = worker();
  poll_watchdog(w, pc);
  Lane* me = w->current;
  const int lane = w->index(me) % 32;
  Warp& warp = w->warp_of(w->index(me));
  me->pc = pc;
  me->where = where;
  me->mask = mask;
  me->in = in;
  me->out = out;
  me->spins = 0;
  if (!(mask >> lane & 1)) {
    report_collective(*me, "lane " + std::to_string(lane) + " is not in the mask it passes");
    abandon();
  }
  const void* key = std::bit_cast<const void*>(where);
  int i = 0;
  while (i < warp.open && !(warp.gatherings[i].where == key && warp.gatherings[i].mask == mask)) ++i;
  if (i == warp.open) warp.gatherings[warp.open++] = {mask, 0, combine, key};
  Gathering& g = warp.gatherings[i];
  g.arrived |= 1u << lane;
  me->state = State::in_collective;
  if (g.arrived == (mask & existing(warp))) {
    complete(*w, warp, i);
    me->state = State::ready;
    return;
  }
  w->current = nullptr;
  switch_context(&me->context, w->scheduler);
}

void complete(Worker& w, Warp& warp, int index) {
  const Gathering g = warp.gatherings[index];
  warp.gatherings[index] = warp.gatherings[--warp.open];
  Lane* lanes = &w.lanes[size_t(warp.first)];
  g.combine(lanes, g.arrived);
  for (int l = 0; l < warp.count; ++l)
    if (g.arrived >> l & 1) lanes[l].state = State::ready;
  w.counters->total.collectives++;
  if constexpr (kTrace) {
    w.shared.meet(warp.first / 32, g.arrived);
    if (g.arrived == existing(warp)) w.counters->flush(warp.first / 32);
  }
}

bool complete_at_stall(Worker& w) {
  bool any = false;
  for (Warp& warp : w.warps) {
    // __syncwarp waits for the lanes of its mask that have not exited.
    for (int i = 0; i < warp.open; ++i) {
      const Gathering& g = warp.gatherings[i];
      if (g.combine != sync_only || (g.mask & existing(warp) & ~exited(w, warp)) != g.arrived) continue;
      complete(w, warp, i--);
      any = true;
    }
    // Lanes that reach one __activemask while all others wait elsewhere are what it calls active.
    for (int first = 0; first < warp.count; ++first) {
      Lane* lanes = &w.lanes[size_t(warp.first)];
      if (lanes[first].state != State::in_active_mask) continue;
      uint32_t mask = 0;
      for (int l = first; l < warp.count; ++l)
        if (lanes[l].state == State::in_active_mask &&
            std::bit_cast<const void*>(lanes[l].where) == std::bit_cast<const void*>(lanes[first].where))
          mask |= 1u << l;
      for (int l = first; l < warp.count; ++l)
        if (mask >> l & 1) {
          lanes[l].mask = mask;
          lanes[l].state = State::ready;
        }
      any = true;
    }
  }
  return any;
}

void warp_sync(uint32_t mask, Where where) {
  run_collective(mask, sync_only, nullptr, nullptr, where, __builtin_return_address(0));
}

uint32_t ballot(uint32_t mask, bool value, Where where) {
  uint32_t out = 0;
  run_collective(mask, combine_ballot, &value, &out, where, __builtin_return_address(0));
  return out;
}

uint32_t active_mask(Where where) {
  Worker* w = worker();
  poll_watchdog(w, __builtin_return_address(0));
  Lane* me = w->current;
  me->pc = __builtin_return_address(0);
  me->where = where;
  me->state = State::in_active_mask;
  w->current = nullptr;
  switch_context(&me->context, w->scheduler);
  return me->mask;
}

void shuffle(uint32_t mask, Shuffle mode, int lane, int width, const void* in, void* out, unsigned bytes, Where where) {
  const Shuffled mine{mode, lane, width, bytes, in};
  run_collective(mask, combine_shuffle, &mine, out, where, __builtin_return_address(0));
}

}  // namespace simt
