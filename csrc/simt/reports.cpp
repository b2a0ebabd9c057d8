#include "simt/reports.h"

#include <map>
#include <mutex>

#include "simt/worker.h"

namespace simt {
namespace {

constexpr size_t kMaxTold = 10;

std::mutex mutex;
std::vector<Problem> problems;
std::map<std::pair<std::string, const void*>, uint64_t> sightings;

std::string where_text(const std::vector<Frame>& frames, const void* pc) {
  if (!pc) return "";
  if (frames.empty()) {
    char text[96];
    snprintf(text, sizeof text, "module offset 0x%x (no line: addr2line or debug information is missing)",
             pc_offset(pc));
    return text;
  }
  std::string text = frames[0].file + ":" + std::to_string(frames[0].line);
  for (size_t i = 1; i < frames.size() && i < 4; ++i)
    text += (i == 1 ? " (called from " : ", ") + frames[i].file + ":" + std::to_string(frames[i].line);
  return frames.size() > 1 ? text + ")" : text;
}

}  // namespace

std::string at(const uint3& p) {
  return "(" + std::to_string(p.x) + ", " + std::to_string(p.y) + ", " + std::to_string(p.z) + ")";
}

bool first_sight(const char* kind, const void* pc) {
  std::lock_guard lock(mutex);
  return ++sightings[{kind, pc}] == 1;
}

void add_problem(Problem p) {
  std::lock_guard lock(mutex);
  problems.push_back(std::move(p));
}

void report(const char* kind, const void* pc, std::string text, const void* other_pc) {
  Problem p;
  p.kind = kind;
  p.text = std::move(text);
  p.pc = pc;
  p.other_pc = other_pc;
  if (const Worker* w = worker()) {
    p.kernel = w->launch->kernel;
    p.block = w->block;
    p.in_thread = w->current != nullptr;
    if (w->current) p.thread = w->current->thread;
  }
  add_problem(std::move(p));
}

void clear_problems() {
  std::lock_guard lock(mutex);
  problems.clear();
  sightings.clear();
}

std::string take_report(const std::string& op) {
  std::lock_guard lock(mutex);
  if (problems.empty()) return "";
  std::vector<const void*> pcs;
  for (const Problem& p : problems) pcs.insert(pcs.end(), {p.pc, p.other_pc});
  const auto frames = symbolise(pcs);
  std::string text = op + ": the SIMT emulator found " + std::to_string(problems.size()) +
                     (problems.size() == 1 ? " problem." : " problems.") + "\n";
  for (size_t i = 0; i < problems.size() && i < kMaxTold; ++i) {
    const Problem& p = problems[i];
    text += std::string("  [") + p.kind + "] " + p.text + "\n";
    if (!p.kernel.empty()) text += "    kernel : " + p.kernel + "\n";
    if (p.pc) text += "    line   : " + where_text(frames[2 * i], p.pc) + "\n";
    if (p.other_pc) text += "    against: " + where_text(frames[2 * i + 1], p.other_pc) + "\n";
    if (p.in_thread) text += "    where  : block " + at(p.block) + " thread " + at(p.thread) + "\n";
    const auto seen = sightings.find({p.kind, p.pc});
    if (seen != sightings.end() && seen->second > 1)
      text += "    seen   : " + std::to_string(seen->second) + " times\n";
  }
  if (problems.size() > kMaxTold) text += "  ... and " + std::to_string(problems.size() - kMaxTold) + " more\n";
  problems.clear();
  sightings.clear();
  return text + "HINT: csrc/simt/README.md explains each kind.";
}

}  // namespace simt
