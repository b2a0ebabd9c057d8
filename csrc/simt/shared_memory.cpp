#include "simt/shared_memory.h"

#include <sys/mman.h>

#include <new>

#include "simt/reports.h"
#include "simt/worker.h"

namespace simt {
namespace {

void* reserve(size_t bytes) {
  void* p = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (p == MAP_FAILED) throw std::bad_alloc();
  return p;
}

const char* verb(Kind kind) { return kind == Kind::load ? "read" : kind == Kind::store ? "write" : "atomic"; }

}  // namespace

SharedMemory::~SharedMemory() {
  if (dynamic_) munmap(dynamic_, kDynamicReserve);
  if (dynamic_cells_) munmap(dynamic_cells_, kDynamicReserve * sizeof(Cell));
  if (static_cells_) munmap(static_cells_, static_cells_bytes_);
}

void SharedMemory::prepare(size_t dynamic) {
  if (!dynamic_) dynamic_ = static_cast<unsigned char*>(reserve(kDynamicReserve));
  dynamic_bytes_ = dynamic;
  if (!kTrace) return;
  // Zeroed cells are "never touched"; epochs only grow, so cells need no clearing between blocks and launches.
  if (!dynamic_cells_) {
    dynamic_cells_ = static_cast<Cell*>(reserve(kDynamicReserve * sizeof(Cell)));
    clocks_.assign(size_t(kMaxThreads) * 32, 0);
  }
  const ThreadLocalBlock local = thread_local_block();
  if (local.data != static_ || local.bytes != static_bytes_) {
    if (static_cells_) munmap(static_cells_, static_cells_bytes_);
    static_ = local.data;
    static_bytes_ = local.bytes;
    static_cells_bytes_ = (static_bytes_ + 4) * sizeof(Cell);
    static_cells_ = static_cast<Cell*>(reserve(static_cells_bytes_));
  }
  touched_.assign(static_shared().size(), false);
  touched_bytes_ = 0;
}

void SharedMemory::start_block() { first_epoch_ = ++epoch_; }

void SharedMemory::meet(int warp, uint32_t mask) {
  uint32_t joined[32] = {};
  uint32_t* rows = &clocks_[size_t(warp) * 32 * 32];
  for (int l = 0; l < 32; ++l) {
    if (!(mask >> l & 1)) continue;
    uint32_t* row = rows + l * 32;
    ++row[l];
    for (int m = 0; m < 32; ++m) joined[m] = joined[m] < row[m] ? row[m] : joined[m];
  }
  for (int l = 0; l < 32; ++l)
    if (mask >> l & 1)
      for (int m = 0; m < 32; ++m) rows[l * 32 + m] = joined[m];
}

Cell* SharedMemory::cells(const void* p) {
  const size_t offset = uintptr_t(p) - uintptr_t(dynamic_);
  return offset < kDynamicReserve ? dynamic_cells_ + offset : static_cells_ + (uintptr_t(p) - uintptr_t(static_));
}

std::string SharedMemory::describe(const void* p) const {
  const size_t offset = uintptr_t(p) - uintptr_t(dynamic_);
  if (offset < kDynamicReserve) return "offset " + std::to_string(offset) + " of dynamic shared memory";
  const size_t where = uintptr_t(p) - uintptr_t(static_);
  if (const StaticShared* v = find_static_shared(where, 1))
    return "offset " + std::to_string(where - v->offset) + " of shared `" + v->name + "`";
  return "static shared memory";
}

bool SharedMemory::inside(Worker& w, const void* p, unsigned bytes, Kind kind, const void* pc) {
  const size_t offset = uintptr_t(p) - uintptr_t(dynamic_);
  if (offset < kDynamicReserve) {
    if (offset + bytes <= w.launch->dynamic_shared) return true;
    if (first_sight("out-of-bounds", pc))
      report("out-of-bounds", pc,
             std::string(verb(kind)) + " of " + std::to_string(bytes) + " bytes at offset " + std::to_string(offset) +
                 " of dynamic shared memory, which has " + std::to_string(w.launch->dynamic_shared) + " bytes");
    return false;
  }
  const auto& all = static_shared();
  if (all.empty()) return true;  // stripped module: only the block as a whole is known
  const size_t where = uintptr_t(p) - uintptr_t(static_);
  const StaticShared* v = &all[last_static_];
  if (v->red_zone || where < v->offset || where + bytes > v->offset + v->bytes) {
    v = find_static_shared(where, bytes);
    if (!v) {
      if (first_sight("out-of-bounds", pc)) {
        const StaticShared* nearest = nullptr;
        size_t distance = ~size_t(0);
        for (const StaticShared& s : all) {
          const size_t end = s.offset + s.bytes;
          const size_t d = where >= end ? where - end : s.offset > where ? s.offset - where : 0;
          if (!s.red_zone && d < distance) distance = d, nearest = &s;
        }
        report("out-of-bounds", pc,
               std::string(verb(kind)) + " of " + std::to_string(bytes) + " bytes " +
                   (where >= nearest->offset ? "past the end of" : "before") + " shared `" + nearest->name +
                   "`, which has " + std::to_string(nearest->bytes) + " bytes");
      }
      return false;
    }
    last_static_ = size_t(v - all.data());
  }
  if (!touched_[last_static_]) {
    touched_[last_static_] = true;
    touched_bytes_ += v->bytes;
  }
  return true;
}

void SharedMemory::check(Worker& w, Cell& c, const void* p, unsigned bytes, Kind kind, const void* pc) {
  const int me = w.index(w.current), warp = me / 32;
  const uint32_t my_bit = 1u << (me % 32);
  if (c.pending && first_sight("missing-async-wait", pc))
    report("missing-async-wait", pc,
           std::string(verb(kind)) + " of " + std::to_string(bytes) + " bytes at " + describe(p) +
               " while the cp.async of thread " + at(w.lanes[c.writer].thread) + " into it is in flight",
           pc_at(c.write_pc));
  if (kind != Kind::store && !c.pending && c.write_epoch < first_epoch_ && first_sight("uninitialised-read", pc))
    report("uninitialised-read", pc,
           std::string(verb(kind)) + " of " + std::to_string(bytes) + " bytes at " + describe(p) +
               ", which no thread of the block has written");

  const auto race = [&](const char* what, int other, uint32_t other_pc) {
    if (first_sight("shared-race", pc))
      report("shared-race", pc,
             std::string(verb(kind)) + " of " + std::to_string(bytes) + " bytes at " + describe(p) +
                 " is not ordered with the " + what + " of thread " + at(w.lanes[size_t(other)].thread),
             pc_at(other_pc));
  };
  if (c.write_epoch == epoch_ && c.writer != me && !(kind == Kind::atomic && c.atomic) && !c.pending &&
      !ordered(me, c.writer, c.write_clock))
    race(c.atomic ? "atomic" : "write", c.writer, c.write_pc);
  if (kind != Kind::load && c.read_epoch == epoch_) {
    if (c.read_warp != warp) {
      race("read", c.read_warp * 32 + __builtin_ctz(c.read_lanes), c.read_pc);
    } else {
      for (uint32_t others = c.read_lanes & ~my_bit; others; others &= others - 1) {
        const int other = warp * 32 + __builtin_ctz(others);
        if (!ordered(me, other, c.read_clock)) {
          race("read", other, c.read_pc);
          break;
        }
      }
    }
    if (c.other_reader != kNobody && c.other_reader / 32 != warp) race("read", c.other_reader, c.read_pc);
  }

  const uint32_t clock = clocks_[size_t(me) * 32 + size_t(me % 32)];
  if (kind == Kind::load) {
    if (c.read_epoch != epoch_) {
      c.other_reader = kNobody;
      c.read_lanes = my_bit;
    } else if (c.read_warp != warp) {
      c.other_reader = uint16_t(c.read_warp * 32 + __builtin_ctz(c.read_lanes));
      c.read_lanes = my_bit;
    } else {
      c.read_lanes = c.read_clock == clock ? c.read_lanes | my_bit : my_bit;
    }
    c.read_epoch = epoch_;
    c.read_clock = clock;
    c.read_pc = pc_offset(pc);
    c.read_warp = uint8_t(warp);
  } else {
    c.write_epoch = epoch_;
    c.write_clock = clock;
    c.write_pc = pc_offset(pc);
    c.writer = uint16_t(me);
    c.atomic = kind == Kind::atomic;
  }
}

bool SharedMemory::access(Worker& w, const void* p, unsigned bytes, Kind kind, const void* pc) {
  if (!inside(w, p, bytes, kind, pc)) return false;
  const uintptr_t begin = uintptr_t(p), end = begin + bytes;
  for (uintptr_t word = begin & ~uintptr_t(3); word < end; word += 4) {
    Cell* c = cells(reinterpret_cast<const void*>(word));
    const bool whole = word >= begin && word + 4 <= end;
    if (whole && !c->split) {
      check(w, *c, p, bytes, kind, pc);
      continue;
    }
    if (!c->split) {
      c->split = true;
      for (int b = 1; b < 4; ++b) c[b] = c[0];
    }
    for (uintptr_t b = 0; b < 4; ++b)
      if (word + b >= begin && word + b < end) check(w, c[b], p, bytes, kind, pc);
  }
  return true;
}

void SharedMemory::land(int thread, const void* p, unsigned bytes) {
  set_pending(p, bytes, false);
  Cell* c = cells(p);
  for (unsigned b = 0; b < bytes; ++b) {
    c[b].write_epoch = epoch_;
    c[b].write_clock = clocks_[size_t(thread) * 32 + size_t(thread % 32)];
    c[b].writer = uint16_t(thread);
  }
}

void SharedMemory::set_pending(const void* p, unsigned bytes, bool pending) {
  Cell* c = cells(p);
  for (unsigned b = 0; b < bytes; ++b) c[b].pending = pending;
}

}  // namespace simt
