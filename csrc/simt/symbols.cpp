// This module's own debug information: program counters to lines (by addr2line, only when there is something to tell)
// and the static shared variables (from the ELF symbol table).
#include <cxxabi.h>
#include <dlfcn.h>
#include <elf.h>
#include <link.h>
#include <spawn.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <iterator>

#include "simt/reports.h"
#include "simt/worker.h"

namespace simt {
namespace {

struct Module {
  uintptr_t base = 0, end = 0, code_begin = 0, code_end = 0;
  std::string path;
};

struct Lookup {
  uintptr_t inside;
  Module* module;
  ThreadLocalBlock* block;
};

int visit(dl_phdr_info* info, size_t, void* data) {
  auto* lookup = static_cast<Lookup*>(data);
  bool mine = false;
  uintptr_t end = 0, code_begin = 0, code_end = 0;
  for (int i = 0; i < info->dlpi_phnum; ++i) {
    const auto& segment = info->dlpi_phdr[i];
    if (segment.p_type != PT_LOAD) continue;
    const uintptr_t begin = info->dlpi_addr + segment.p_vaddr;
    mine = mine || (lookup->inside >= begin && lookup->inside < begin + segment.p_memsz);
    end = std::max(end, begin + uintptr_t(segment.p_memsz));
    if (segment.p_flags & PF_X) code_begin = begin, code_end = begin + segment.p_memsz;
  }
  if (!mine) return 0;
  if (lookup->module) *lookup->module = {info->dlpi_addr, end, code_begin, code_end, info->dlpi_name};
  if (lookup->block)
    for (int i = 0; i < info->dlpi_phnum; ++i)
      if (info->dlpi_phdr[i].p_type == PT_TLS && info->dlpi_tls_data)
        *lookup->block = {static_cast<unsigned char*>(info->dlpi_tls_data), info->dlpi_phdr[i].p_memsz};
  return 1;
}

const Module& module() {
  static const Module m = [] {
    Module out;
    Lookup lookup{reinterpret_cast<uintptr_t>(&visit), &out, nullptr};
    dl_iterate_phdr(visit, &lookup);
    return out;
  }();
  return m;
}

std::string demangled_variable(const char* symbol) {
  int status = 0;
  char* text = abi::__cxa_demangle(symbol, nullptr, nullptr, &status);
  std::string name = status == 0 && text ? text : symbol;
  std::free(text);
  const size_t colons = name.rfind("::");
  return colons == std::string::npos ? name : name.substr(colons + 2);
}

std::vector<StaticShared> read_symbols() {
  std::vector<StaticShared> out;
  std::ifstream file(module().path, std::ios::binary);
  const std::vector<char> bytes((std::istreambuf_iterator<char>(file)), {});
  if (bytes.size() < sizeof(ElfW(Ehdr)) || std::memcmp(bytes.data(), ELFMAG, SELFMAG) != 0) return out;
  const auto* header = reinterpret_cast<const ElfW(Ehdr)*>(bytes.data());
  const auto* sections = reinterpret_cast<const ElfW(Shdr)*>(bytes.data() + header->e_shoff);
  for (int i = 0; i < header->e_shnum; ++i) {
    if (sections[i].sh_type != SHT_SYMTAB) continue;
    const char* names = bytes.data() + sections[sections[i].sh_link].sh_offset;
    const auto* symbols = reinterpret_cast<const ElfW(Sym)*>(bytes.data() + sections[i].sh_offset);
    for (size_t s = 0; s < sections[i].sh_size / sizeof(ElfW(Sym)); ++s) {
      if ((symbols[s].st_info & 0xf) != STT_TLS || symbols[s].st_size == 0) continue;
      const char* name = names + symbols[s].st_name;
      out.push_back({size_t(symbols[s].st_value), size_t(symbols[s].st_size), demangled_variable(name),
                     std::strstr(name, "vk_simt_redzone_") != nullptr});
    }
  }
  std::sort(out.begin(), out.end(), [](const auto& a, const auto& b) { return a.offset < b.offset; });
  return out;
}

/// Frames of the intrinsics' own wrappers tell nobody anything.
bool is_wrapper(const std::string& file) {
  for (const char* name : {"/device_emulation.h", "/vk_async.cuh", "/vk_mma.cuh"})
    if (file.ends_with(name)) return true;
  return false;
}

/// Runs addr2line and returns what it printed; "" if it is not there.
std::string run_addr2line(const std::vector<std::string>& addresses) {
  std::vector<std::string> words{"addr2line", "-e", module().path, "-f", "-C", "-i", "-a"};
  words.insert(words.end(), addresses.begin(), addresses.end());
  std::vector<char*> argv;
  for (std::string& word : words) argv.push_back(word.data());
  argv.push_back(nullptr);
  int ends[2];
  if (pipe(ends) != 0) return "";
  posix_spawn_file_actions_t actions;
  posix_spawn_file_actions_init(&actions);
  posix_spawn_file_actions_adddup2(&actions, ends[1], 1);
  posix_spawn_file_actions_addclose(&actions, ends[0]);
  posix_spawn_file_actions_addopen(&actions, 2, "/dev/null", 1, 0);
  pid_t child = 0;
  const int failed = posix_spawnp(&child, "addr2line", &actions, nullptr, argv.data(), environ);
  posix_spawn_file_actions_destroy(&actions);
  close(ends[1]);
  std::string text;
  char buffer[4096];
  for (ssize_t n; !failed && (n = read(ends[0], buffer, sizeof buffer)) > 0;) text.append(buffer, size_t(n));
  close(ends[0]);
  if (!failed) waitpid(child, nullptr, 0);
  return text;
}

std::string short_path(const std::string& path) {
  const size_t csrc = path.rfind("/csrc/");
  return csrc == std::string::npos ? path : path.substr(csrc + 1);
}

}  // namespace

uint32_t pc_offset(const void* pc) { return uint32_t(reinterpret_cast<uintptr_t>(pc) - module().base); }
const void* pc_at(uint32_t offset) { return reinterpret_cast<const void*>(module().base + offset); }
bool in_module(const void* p) {
  const auto a = reinterpret_cast<uintptr_t>(p);
  return a >= module().base && a < module().end;
}
bool in_module_code(const void* p) {
  const auto a = reinterpret_cast<uintptr_t>(p);
  return a >= module().code_begin && a < module().code_end;
}

std::vector<std::vector<Frame>> symbolise(const std::vector<const void*>& pcs) {
  std::vector<std::vector<Frame>> out(pcs.size());
  std::vector<std::string> addresses;
  std::vector<size_t> owners;
  for (size_t i = 0; i < pcs.size(); ++i) {
    if (!pcs[i] || !in_module(pcs[i])) continue;
    char text[32];
    snprintf(text, sizeof text, "0x%x", pc_offset(pcs[i]) - 1);  // the call, not what follows it
    addresses.push_back(text);
    owners.push_back(i);
  }
  if (addresses.empty()) return out;
  const std::string text = run_addr2line(addresses);
  size_t answer = size_t(-1), begin = 0;
  std::string function;
  bool expect_function = true;
  while (begin < text.size()) {
    const size_t end = text.find('\n', begin);
    std::string line = text.substr(begin, end - begin);
    begin = end == std::string::npos ? text.size() : end + 1;
    if (line.rfind("0x", 0) == 0 && line.find(':') == std::string::npos) {
      ++answer;
      expect_function = true;
      continue;
    }
    if (expect_function) {
      function = line;
    } else if (answer < owners.size() && line.rfind("??", 0) != 0) {
      const size_t colon = line.rfind(':');
      const std::string file = line.substr(0, colon);
      const int number = std::atoi(line.c_str() + colon + 1);
      if (number > 0 && !is_wrapper(file)) out[owners[answer]].push_back({function, short_path(file), number});
    }
    expect_function = !expect_function;
  }
  return out;
}

const std::vector<StaticShared>& static_shared() {
  static const std::vector<StaticShared> all = read_symbols();
  return all;
}

const StaticShared* find_static_shared(size_t offset, size_t bytes) {
  const auto& all = static_shared();
  auto after =
      std::upper_bound(all.begin(), all.end(), offset, [](size_t o, const StaticShared& s) { return o < s.offset; });
  if (after == all.begin()) return nullptr;
  const StaticShared& s = *--after;
  return !s.red_zone && offset + bytes <= s.offset + s.bytes ? &s : nullptr;
}

ThreadLocalBlock thread_local_block() {
  ThreadLocalBlock block;
  if (!worker()) return block;  // reading it also makes the C library allocate the block for this thread
  Lookup lookup{reinterpret_cast<uintptr_t>(&visit), nullptr, &block};
  dl_iterate_phdr(visit, &lookup);
  return block;
}

}  // namespace simt
