// Shadow of one worker's shared memory: who last wrote and read each byte, and whether that is ordered before now.
#pragma once
#include <cstdint>
#include <string>
#include <vector>

namespace simt {

enum class Kind : uint8_t { load, store, atomic };

/// A word's four cells; while only whole words are accessed, the first stands for all of them.
struct Cell {
  uint32_t write_epoch, write_clock, write_pc;  // valid in this block if write_epoch >= the block's first epoch
  uint32_t read_epoch, read_clock, read_pc;
  uint32_t read_lanes;    // lanes of read_warp that read it in this epoch
  uint16_t writer;        // thread
  uint16_t other_reader;  // a reader of another warp in this epoch, or kNobody
  uint8_t read_warp;
  bool atomic, split, pending;
};

struct Worker;

class SharedMemory {
 public:
  ~SharedMemory();
  /// At the start of a launch: finds the thread-local block, makes room for `dynamic` bytes.
  void prepare(size_t dynamic);
  unsigned char* dynamic() const { return dynamic_; }

  bool contains(const void* p) const {
    return uintptr_t(p) - uintptr_t(dynamic_) < kDynamicReserve || uintptr_t(p) - uintptr_t(static_) < static_bytes_;
  }
  /// Offset for bank arithmetic: static and dynamic memory do not overlap in it.
  uint64_t position(const void* p) const {
    const uint64_t offset = uintptr_t(p) - uintptr_t(dynamic_);
    return offset < kDynamicReserve ? offset : kDynamicReserve + (uintptr_t(p) - uintptr_t(static_));
  }

  void start_block();
  void barrier() { ++epoch_; }
  /// Lanes `mask` of the warp have met: what each did before is ordered before what any does next.
  void meet(int warp, uint32_t mask);

  /// Checks and records an access of the running lane. False if it is out of bounds (already reported).
  bool access(Worker& w, const void* p, unsigned bytes, Kind kind, const void* pc);
  /// A cp.async into these bytes is in flight, or is not any more.
  void set_pending(const void* p, unsigned bytes, bool pending);
  /// The copy has landed: its bytes count as written now by the thread that waited for it.
  void land(int thread, const void* p, unsigned bytes);
  size_t static_bytes_touched() const { return touched_bytes_; }

 private:
  // Out of bounds has to land in shared memory's own address range to be told as such.
  static constexpr size_t kDynamicReserve = size_t(1) << 20;
  static constexpr uint16_t kNobody = 0xffff;

  Cell* cells(const void* p);
  void check(Worker& w, Cell& c, const void* p, unsigned bytes, Kind kind, const void* pc);
  bool ordered(int me, int other, uint32_t clock) const {
    return me / 32 == other / 32 && clocks_[size_t(me) * 32 + size_t(other % 32)] > clock;
  }
  bool inside(Worker& w, const void* p, unsigned bytes, Kind kind, const void* pc);
  std::string describe(const void* p) const;

  unsigned char* dynamic_ = nullptr;
  size_t dynamic_bytes_ = 0;
  unsigned char* static_ = nullptr;
  size_t static_bytes_ = 0;
  Cell* dynamic_cells_ = nullptr;
  Cell* static_cells_ = nullptr;
  size_t static_cells_bytes_ = 0;
  uint32_t epoch_ = 1, first_epoch_ = 1;  // an epoch ends at each block-wide barrier
  std::vector<uint32_t> clocks_;          // [thread][lane of its warp]: the latest meeting it knows of
  std::vector<bool> touched_;
  size_t touched_bytes_ = 0;
  size_t last_static_ = 0;
};

}  // namespace simt
