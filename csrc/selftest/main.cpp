// Runs every registered test and says which instruction set was under test. With an argument (v2, v3, v4, base) it
// leaves quietly if that set is not the one in use: this machine lacks it.
#include <cstdio>

#include "core/dispatch.h"
#include "core/parallel.h"
#include "selftest.h"

namespace selftest {
namespace {

struct Test {
  const char* name;
  Body body;
};
std::vector<Test>& tests() {
  static std::vector<Test> all;
  return all;
}
int failures = 0;

}  // namespace

bool add(const char* name, Body body) {
  tests().push_back({name, body});
  return true;
}

void fail(const char* file, int line, const char* text) {
  if (++failures <= 5) std::printf("  %s:%d: expected %s\n", file, line, text);
}

}  // namespace selftest

int main(int argc, char** argv) {
  using namespace selftest;
  const char* isa = vk::isa_name(vk::isa());
  if (argc > 1 && std::strcmp(argv[1], isa)) {
    std::printf("selftest: skipped, this machine has no %s (best: %s)\n", argv[1], isa);
    return 0;
  }
  int failed = 0;
  for (const Test& t : tests()) {
    failures = 0;
    t.body();
    if (failures) std::printf("FAILED %s (%d checks)\n", t.name, failures);
    failed += failures > 0;
  }
  if (*VK_UNTESTED) std::printf("without a self-test:%s\n", VK_UNTESTED);
  std::printf("selftest isa=%s threads=%d: %d passed, %d failed\n", isa, vk::max_threads(),
              int(tests().size()) - failed, failed);
  return failed > 0;
}
