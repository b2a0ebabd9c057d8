#include "simt/context.h"

#include <signal.h>
#include <sys/mman.h>
#include <ucontext.h>

#include <new>

namespace simt {

#if defined(__x86_64__)

extern "C" __attribute__((visibility("hidden"))) void vk_simt_switch(void** from, void* to);
asm(R"(
.text
.hidden vk_simt_switch
.globl vk_simt_switch
.type vk_simt_switch, @function
vk_simt_switch:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
.size vk_simt_switch, .-vk_simt_switch
)");

void switch_context(void** from, void* to) { vk_simt_switch(from, to); }

void* make_context(unsigned char* top, void (*entry)()) {
  void** sp = reinterpret_cast<void**>(uintptr_t(top) & ~uintptr_t(15));
  *--sp = nullptr;  // where a return address would be: entry starts with the ABI's alignment
  *--sp = reinterpret_cast<void*>(entry);
  for (int saved = 0; saved < 6; ++saved) *--sp = nullptr;
  return sp;
}

bool divert_signal(void* signal_context, Stacks& stacks, void (*entry)()) {
  auto& registers = static_cast<ucontext_t*>(signal_context)->uc_mcontext.gregs;
  const auto* sp = reinterpret_cast<const void*>(registers[REG_RSP]);
  if (!stacks.contains(sp)) return false;
  const unsigned char* top = stacks.top(stacks.index(sp));
  registers[REG_RSP] = greg_t((uintptr_t(top) & ~uintptr_t(15)) - 8);
  registers[REG_RIP] = greg_t(reinterpret_cast<uintptr_t>(entry));
  registers[REG_EFL] &= ~greg_t(0x400);  // direction flag
  return true;
}

const void* interrupted_pc(const void* signal_context) {
  return reinterpret_cast<const void*>(static_cast<const ucontext_t*>(signal_context)->uc_mcontext.gregs[REG_RIP]);
}

#elif defined(__aarch64__)

extern "C" __attribute__((visibility("hidden"))) void vk_simt_switch(void** from, void* to);
asm(R"(
.text
.hidden vk_simt_switch
.globl vk_simt_switch
.type vk_simt_switch, %function
vk_simt_switch:
  sub sp, sp, #160
  stp x19, x20, [sp, #0]
  stp x21, x22, [sp, #16]
  stp x23, x24, [sp, #32]
  stp x25, x26, [sp, #48]
  stp x27, x28, [sp, #64]
  stp x29, x30, [sp, #80]
  stp d8, d9, [sp, #96]
  stp d10, d11, [sp, #112]
  stp d12, d13, [sp, #128]
  stp d14, d15, [sp, #144]
  mov x9, sp
  str x9, [x0]
  mov sp, x1
  ldp x19, x20, [sp, #0]
  ldp x21, x22, [sp, #16]
  ldp x23, x24, [sp, #32]
  ldp x25, x26, [sp, #48]
  ldp x27, x28, [sp, #64]
  ldp x29, x30, [sp, #80]
  ldp d8, d9, [sp, #96]
  ldp d10, d11, [sp, #112]
  ldp d12, d13, [sp, #128]
  ldp d14, d15, [sp, #144]
  add sp, sp, #160
  ret
.size vk_simt_switch, .-vk_simt_switch
)");

void switch_context(void** from, void* to) { vk_simt_switch(from, to); }

void* make_context(unsigned char* top, void (*entry)()) {
  auto* frame = reinterpret_cast<uint64_t*>((uintptr_t(top) & ~uintptr_t(15)) - 160);
  for (int i = 0; i < 20; ++i) frame[i] = 0;
  frame[11] = reinterpret_cast<uint64_t>(entry);  // x30
  return frame;
}

bool divert_signal(void* signal_context, Stacks& stacks, void (*entry)()) {
  auto& machine = static_cast<ucontext_t*>(signal_context)->uc_mcontext;
  const auto* sp = reinterpret_cast<const void*>(machine.sp);
  if (!stacks.contains(sp)) return false;
  machine.sp = uintptr_t(stacks.top(stacks.index(sp))) & ~uintptr_t(15);
  machine.pc = reinterpret_cast<uintptr_t>(entry);
  machine.regs[29] = machine.regs[30] = 0;
  return true;
}

const void* interrupted_pc(const void* signal_context) {
  return reinterpret_cast<const void*>(static_cast<const ucontext_t*>(signal_context)->uc_mcontext.pc);
}

#else  // any other POSIX machine: slower (a system call per switch), and faults cannot be diverted

void switch_context(void** from, void* to) {
  ucontext_t here;  // lives on the suspended stack until it is resumed
  *from = &here;
  swapcontext(&here, static_cast<ucontext_t*>(to));
}

void* make_context(unsigned char* top, void (*entry)()) {
  auto* context = reinterpret_cast<ucontext_t*>((uintptr_t(top) - sizeof(ucontext_t)) & ~uintptr_t(63));
  getcontext(context);
  unsigned char* bottom = top - kStackBytes + 64 * 64;  // tops are staggered by less than this
  context->uc_stack.ss_sp = bottom;
  context->uc_stack.ss_size = size_t(reinterpret_cast<unsigned char*>(context) - bottom);
  context->uc_link = nullptr;
  makecontext(context, entry, 0);
  return context;
}

bool divert_signal(void*, Stacks&, void (*)()) { return false; }
const void* interrupted_pc(const void*) { return nullptr; }

#endif

Stacks::Stacks(int count) : size_(size_t(count) * kStackStride) {
  void* p = mmap(nullptr, size_, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (p == MAP_FAILED) throw std::bad_alloc();
  base_ = static_cast<unsigned char*>(p);
}

Stacks::~Stacks() { munmap(base_, size_); }

unsigned char* Stacks::top(int i) {
  for (; open_ <= i; ++open_)
    if (mprotect(base_ + size_t(open_) * kStackStride + kGuardBytes, kStackBytes, PROT_READ | PROT_WRITE) != 0)
      throw std::bad_alloc();
  return base_ + size_t(i + 1) * kStackStride - size_t(i % 64) * 64;
}

}  // namespace simt
