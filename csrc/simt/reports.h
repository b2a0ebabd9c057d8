// What went wrong, collected during an op and told once, with source lines.
#pragma once
#include <string>
#include <vector>

#include "simt/api.h"

namespace simt {

struct Problem {
  const char* kind = "";  // "shared-race", "out-of-bounds", ...: the table in README.md
  std::string text;
  const void* pc = nullptr;        // where it happened
  const void* other_pc = nullptr;  // the access it conflicts with
  std::string kernel;
  uint3 block{}, thread{};
  bool in_thread = false;  // block and thread are known
};

/// Counts the problem and says whether (kind, pc) is new, so that only then its text has to be made.
bool first_sight(const char* kind, const void* pc);

/// Adds a problem; kernel, block and thread come from the running lane.
void report(const char* kind, const void* pc, std::string text, const void* other_pc = nullptr);

/// Adds a problem of no particular thread.
void add_problem(Problem p);

void clear_problems();
/// The text of all problems, or "" if there are none; forgets them.
std::string take_report(const std::string& op);

std::string at(const uint3& p);  // "(1, 0, 0)"

// ---- symbols.cpp: program counters and static shared variables of this module
struct Frame {
  std::string function, file;
  int line = 0;
};
/// One list of frames per address, innermost first; empty where debug information or addr2line is missing.
std::vector<std::vector<Frame>> symbolise(const std::vector<const void*>& pcs);

uint32_t pc_offset(const void* pc);  // from the module's base: 32 bits are enough to store
const void* pc_at(uint32_t offset);
bool in_module(const void* p);
bool in_module_code(const void* p);

struct StaticShared {
  size_t offset, bytes;  // in the module's thread-local block
  std::string name;      // demangled, the variable only
  bool red_zone;
};
const std::vector<StaticShared>& static_shared();
/// The variable that holds [offset, offset + bytes), or null.
const StaticShared* find_static_shared(size_t offset, size_t bytes);

struct ThreadLocalBlock {
  unsigned char* data = nullptr;
  size_t bytes = 0;
};
/// This OS thread's copy of the module's thread-local variables.
ThreadLocalBlock thread_local_block();

}  // namespace simt
