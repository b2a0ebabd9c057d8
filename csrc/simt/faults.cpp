// A kernel that crashes or never ends must not take Python with it: signals that a fiber raises end its block instead.
#include <signal.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include <cstring>
#include <mutex>
#include <stdexcept>

#include "simt/reports.h"
#include "simt/worker.h"

#ifndef sigev_notify_thread_id
#define sigev_notify_thread_id _sigev_un._tid
#endif

namespace simt {
namespace {

constexpr int kSignals[] = {SIGSEGV, SIGBUS, SIGFPE, SIGILL};
constexpr size_t kHandlerStack = size_t(64) << 10;
struct sigaction previous[4];

int watch_signal() { return SIGRTMIN + 6; }

/// On the dead fiber's stack, after the handler has returned.
void landed() {
  Worker* w = worker();
  const Worker::Fault fault = w->fault;
  const void* pc = w->call_pc ? w->call_pc : static_cast<const char*>(fault.pc) + 1;
  w->call_pc = nullptr;
  w->busy = false;
  if (fault.signal == watch_signal()) timed_out(pc);
  const uintptr_t offset = reinterpret_cast<uintptr_t>(fault.address);
  const bool on_stack = w->stacks.contains(fault.address) && fault.signal == SIGSEGV;
  std::string text;
  if (on_stack)
    text = "the thread needs more than " + std::to_string(kStackBytes / 1024) + " KiB of stack (endless recursion?)";
  else if (fault.signal == SIGFPE)
    text = "integer division by zero or overflow";
  else if (fault.signal == SIGILL)
    text = "illegal instruction (a trap)";
  else {
    char address[32];
    snprintf(address, sizeof address, "0x%zx", size_t(offset));
    text = std::string("crash at address ") + address + ": outside of all memory, or a misaligned vector access" +
           (kTrace ? "" : "; the traced build tells more");
  }
  if (first_sight("crash", pc)) report("crash", pc, text);
  abandon();
}

bool divert(Worker* w, int signal, const void* address, void* context) {
  w->fault = {signal, address, interrupted_pc(context)};
  return divert_signal(context, w->stacks, landed);
}

void on_crash(int signal, siginfo_t* info, void* context) {
  Worker* w = worker();
  if (w && w->current && divert(w, signal, info->si_addr, context)) return;
  for (size_t i = 0; i < 4; ++i)  // not a kernel's: raise it again for whoever was there before
    if (kSignals[i] == signal) sigaction(signal, &previous[i], nullptr);
}

void on_watch(int signal, siginfo_t*, void* context) {
  Worker* w = worker();
  if (!w) return;
  if (w->watched_block != w->blocks_done) {
    w->watched_block = w->blocks_done;
    w->watch_ticks = 0;
    return;
  }
  if (++w->watch_ticks < 4) return;
  // First ask: every call into the emulator looks at `stop`. A loop that calls nothing is diverted on the next tick.
  if (!w->stop) {
    w->stop = true;
    return;
  }
  if (w->current && !w->busy && !w->call_pc && in_module_code(interrupted_pc(context)))
    divert(w, signal, nullptr, context);
}

struct HandlerStack {
  HandlerStack() : memory(new char[kHandlerStack]) {}
  ~HandlerStack() {
    stack_t off{};
    off.ss_flags = SS_DISABLE;
    stack_t now{};
    sigaltstack(nullptr, &now);
    if (now.ss_sp == memory) sigaltstack(&off, nullptr);
    delete[] memory;
  }
  char* memory;
};

}  // namespace

void arm_faults() {
  struct sigaction action{};
  action.sa_sigaction = on_crash;
  action.sa_flags = SA_SIGINFO | SA_ONSTACK | SA_NODEFER;
  for (size_t i = 0; i < 4; ++i) sigaction(kSignals[i], &action, &previous[i]);
  action.sa_sigaction = on_watch;
  action.sa_flags = SA_SIGINFO | SA_ONSTACK | SA_RESTART;
  sigaction(watch_signal(), &action, nullptr);
}

void disarm_faults() {
  for (size_t i = 0; i < 4; ++i) sigaction(kSignals[i], &previous[i], nullptr);
}

void watch(Worker& w, double seconds) {
  static thread_local HandlerStack handler;
  stack_t now{};
  sigaltstack(nullptr, &now);
  if (now.ss_flags & SS_DISABLE) {
    stack_t mine{};
    mine.ss_sp = handler.memory;
    mine.ss_size = kHandlerStack;
    sigaltstack(&mine, nullptr);
  }
  w.watched_block = w.blocks_done;
  w.watch_ticks = 0;
  const auto tid = int(syscall(SYS_gettid));
  if (w.timer_thread != tid) {
    sigevent event{};
    event.sigev_notify = SIGEV_THREAD_ID;
    event.sigev_signo = watch_signal();
    event.sigev_notify_thread_id = tid;
    if (w.timer_thread) timer_delete(static_cast<timer_t>(w.timer));
    timer_t timer;
    if (timer_create(CLOCK_MONOTONIC, &event, &timer) != 0) return;
    w.timer = timer;
    w.timer_thread = tid;
  }
  const double tick = seconds / 4;
  itimerspec spec{};
  spec.it_value.tv_sec = spec.it_interval.tv_sec = time_t(tick);
  spec.it_value.tv_nsec = spec.it_interval.tv_nsec = long((tick - double(time_t(tick))) * 1e9);
  timer_settime(static_cast<timer_t>(w.timer), 0, &spec, nullptr);
}

void unwatch(Worker& w) {
  if (w.timer_thread) {
    const itimerspec off{};
    timer_settime(static_cast<timer_t>(w.timer), 0, &off, nullptr);
  }
}

}  // namespace simt
