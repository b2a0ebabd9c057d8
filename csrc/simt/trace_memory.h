// Included by force before every traced kernel file: its calls of memcpy, memmove and memset, written or made by the
// compiler, go to hooks.cpp, because -fsanitize=thread does not instrument them. Other files keep the C library's.
#pragma once

extern "C" {
void* memcpy(void* to, const void* from, __SIZE_TYPE__ n) noexcept __asm__("vk_simt_memcpy");
void* memmove(void* to, const void* from, __SIZE_TYPE__ n) noexcept __asm__("vk_simt_memmove");
void* memset(void* to, int value, __SIZE_TYPE__ n) noexcept __asm__("vk_simt_memset");
}
