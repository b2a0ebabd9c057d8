// The emulator as seen by device/*.cuh. Everything here is called from kernel code, on a fiber's stack.
#pragma once
#include <array>
#include <bit>
#include <cstddef>
#include <cstdint>
#include <source_location>
#include <string_view>
#include <tuple>
#include <type_traits>
#include <utility>

struct uint3 {
  unsigned x, y, z;
};
struct dim3 {
  unsigned x, y, z;
  constexpr dim3(unsigned a = 1, unsigned b = 1, unsigned c = 1) : x(a), y(b), z(c) {}
};

namespace simt {

/// The source position of a synchronising call. Unlike its program counter, it survives duplicated and unrolled code.
using Where = std::source_location;

// By value, so that the traced build sees no load. Constant within one call of a kernel, which is the only place where
// the compiler may merge two calls.
[[gnu::const]] uint3 thread_index() noexcept;
[[gnu::const]] uint3 block_index() noexcept;
[[gnu::const]] dim3 block_dim() noexcept;
[[gnu::const]] dim3 grid_dim() noexcept;
[[gnu::const]] void* dynamic_shared() noexcept;

enum class Reduce : uint8_t { none, logical_or, logical_and, count };
void barrier(Where where);
int barrier_reduce(Reduce op, int value, Where where);

enum class Shuffle : uint8_t { index, up, down, exclusive_or };
void warp_sync(uint32_t mask, Where where);
uint32_t ballot(uint32_t mask, bool value, Where where);
uint32_t active_mask(Where where);
/// in, out: `bytes` each; the fetched value of a lane that takes no part is all ones.
void shuffle(uint32_t mask, Shuffle mode, int lane, int width, const void* in, void* out, unsigned bytes, Where where);

enum class Mma : uint8_t { m16n8k16_bf16, m16n8k16_f16, m16n8k8_tf32 };
void mma(Mma kind, const uint32_t* a, const uint32_t* b, const float* c, float* d, Where where);
void mma_u8s8(const uint32_t* a, const uint32_t* b, const int32_t* c, int32_t* d, Where where);
void ldmatrix(const void* row, int matrices, bool transposed, uint32_t* out, Where where);

void cp_async(void* shared, const void* global, int bytes, int source_bytes);
void cp_commit();
void cp_wait(int groups_in_flight);

enum class Atomic : uint8_t { add, min, max, exchange, bit_or, bit_and, bit_xor };
template <class T>
T atomic(Atomic op, T* address, T value);
template <class T>
T atomic_cas(T* address, T expected, T value);

[[noreturn]] void trap(const char* message);
void memset_async(void* data, int value, size_t bytes);

using Body = void (*)(const void* arguments);
void launch(const char* kernel, dim3 grid, dim3 block, size_t dynamic_shared, Body body, const void* arguments,
            size_t argument_bytes);

/// "vk::gather_kernel<float, 4>" from the compiler's own spelling of the template argument.
template <auto Kernel>
constexpr auto kernel_name() {
  constexpr std::string_view text = __PRETTY_FUNCTION__;
  constexpr size_t begin = text.find("Kernel = ") + 9;
  std::array<char, text.size() - begin> out{};  // without the closing bracket, with a final zero
  for (size_t i = 0; i + 1 < out.size(); ++i) out[i] = text[begin + i];
  return out;
}
template <auto Kernel>
inline constexpr auto kKernelName = kernel_name<Kernel>();

template <auto Kernel, class... Parameters, class... Arguments>
void launch_as(void (*)(Parameters...), dim3 grid, dim3 block, size_t dynamic_shared, Arguments&&... arguments) {
  using Tuple = std::tuple<std::remove_cv_t<Parameters>...>;
  const Tuple converted(static_cast<Parameters>(arguments)...);
  launch(
      kKernelName<Kernel>.data(), grid, block, dynamic_shared,
      [](const void* p) { std::apply(Kernel, *static_cast<const Tuple*>(p)); }, &converted, sizeof converted);
}

template <auto Kernel, class Stream, class... Arguments>
void launch_kernel(dim3 grid, dim3 block, size_t dynamic_shared, Stream, Arguments&&... arguments) {
  launch_as<Kernel>(Kernel, grid, block, dynamic_shared, std::forward<Arguments>(arguments)...);
}

}  // namespace simt
