// Tensor-core tiles as plain functions: D = A * B + C for one warp, fp32 accumulators; int32 ones, which wrap, for
// bytes.
//
// Fragment layout (g = lane / 4, t = lane % 4; 16-bit types hold two consecutive k per register, low half first):
//   A 16x16 row-major:  a0 = A[g][2t..]    a1 = A[g+8][2t..]   a2 = A[g][2t+8..]   a3 = A[g+8][2t+8..]
//   B 16x8  col-major:  b0 = B[2t..][g]    b1 = B[2t+8..][g]
//   A 16x8 tf32:        a0 = A[g][t]       a1 = A[g+8][t]      a2 = A[g][t+4]      a3 = A[g+8][t+4]
//   B 8x8  tf32:        b0 = B[t][g]       b1 = B[t+4][g]
//   A 16x32 u8:         a0 = A[g][4t..]    a1 = A[g+8][4t..]   a2 = A[g][4t+16..]  a3 = A[g+8][4t+16..]  (four k each)
//   B 32x8  s8:         b0 = B[4t..][g]    b1 = B[4t+16..][g]  (so ldmatrix of rows of bytes serves these, too)
//   C, D 16x8:          c0 = C[g][2t]      c1 = C[g][2t+1]     c2 = C[g+8][2t]     c3 = C[g+8][2t+1]
//
// The emulator adds the products of one tile in ascending k in fp32; the hardware's order and rounding are its own.
#pragma once
#include "device/vk_device.cuh"

namespace vk {

/// Two 16-bit values as one register: `low` is the smaller k.
__device__ __forceinline__ uint32_t pack(bf16 low, bf16 high) { return uint32_t(low.bits) | uint32_t(high.bits) << 16; }
__device__ __forceinline__ uint32_t pack(f16 low, f16 high) { return uint32_t(low.bits) | uint32_t(high.bits) << 16; }

/// fp32 to the nearest tf32 (10 stored mantissa bits), ties away from zero, as its fp32 bits.
__device__ __forceinline__ uint32_t to_tf32(float x) {
#ifdef VK_SIMT
  const uint32_t u = bit_cast<uint32_t>(x);
  if ((u & 0x7f800000u) == 0x7f800000u) return u;
  return (u + 0x1000u) & 0xffffe000u;
#else
  uint32_t out;
  asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(out) : "f"(x));
  return out;
#endif
}

#ifdef VK_SIMT
#define VK_MMA(name, registers_k, types)                                                              \
  __device__ __forceinline__ void name(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2], \
                                       const float (&c)[4], VK_SIMT_HERE) {                           \
    ::simt::mma(::simt::Mma::registers_k##_##types, a, b, c, d, where);                               \
  }
VK_MMA(mma_m16n8k16_bf16, m16n8k16, bf16)
VK_MMA(mma_m16n8k16_f16, m16n8k16, f16)
VK_MMA(mma_m16n8k8_tf32, m16n8k8, tf32)

__device__ __forceinline__ void mma_m16n8k32_u8s8(int32_t (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2],
                                                  const int32_t (&c)[4], VK_SIMT_HERE) {
  ::simt::mma_u8s8(a, b, c, d, where);
}

/// Loads N 8x8 tiles of 16-bit values from shared memory. Lane 8i + r gives the address of row r of tile i (16 bytes,
/// 16-byte aligned); addresses of lanes >= 8N are ignored. Register i of lane l holds row l/4, columns 2(l%4)..+1 of
/// tile i; of its transpose in the _trans variants.
__device__ __forceinline__ void ldmatrix_x4(uint32_t (&out)[4], const void* row, VK_SIMT_HERE) {
  ::simt::ldmatrix(row, 4, false, out, where);
}
__device__ __forceinline__ void ldmatrix_x4_trans(uint32_t (&out)[4], const void* row, VK_SIMT_HERE) {
  ::simt::ldmatrix(row, 4, true, out, where);
}
__device__ __forceinline__ void ldmatrix_x2(uint32_t (&out)[2], const void* row, VK_SIMT_HERE) {
  ::simt::ldmatrix(row, 2, false, out, where);
}
__device__ __forceinline__ void ldmatrix_x2_trans(uint32_t (&out)[2], const void* row, VK_SIMT_HERE) {
  ::simt::ldmatrix(row, 2, true, out, where);
}
#else
#define VK_MMA(name, registers_k, types)                                                                              \
  __device__ __forceinline__ void name(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2],                 \
                                       const float (&c)[4]) {                                                         \
    asm volatile("mma.sync.aligned." registers_k ".row.col.f32." types "." types                                      \
                 ".f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%10,%11,%12,%13};"                                     \
                 : "=f"(d[0]), "=f"(d[1]), "=f"(d[2]), "=f"(d[3])                                                     \
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]), "f"(c[0]), "f"(c[1]), "f"(c[2]), \
                   "f"(c[3]));                                                                                        \
  }
VK_MMA(mma_m16n8k16_bf16, "m16n8k16", "bf16")
VK_MMA(mma_m16n8k16_f16, "m16n8k16", "f16")
VK_MMA(mma_m16n8k8_tf32, "m16n8k8", "tf32")

__device__ __forceinline__ void mma_m16n8k32_u8s8(int32_t (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2],
                                                  const int32_t (&c)[4]) {
  asm volatile(
      "mma.sync.aligned.m16n8k32.row.col.s32.u8.s8.s32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%10,%11,%12,%13};"
      : "=r"(d[0]), "=r"(d[1]), "=r"(d[2]), "=r"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]), "r"(c[0]), "r"(c[1]), "r"(c[2]), "r"(c[3]));
}

#define VK_LDMATRIX_X4(name, suffix)                                                       \
  __device__ __forceinline__ void name(uint32_t (&out)[4], const void* row) {              \
    const uint32_t address = uint32_t(__cvta_generic_to_shared(row));                      \
    asm volatile("ldmatrix.sync.aligned.m8n8.x4" suffix ".shared.b16 {%0,%1,%2,%3}, [%4];" \
                 : "=r"(out[0]), "=r"(out[1]), "=r"(out[2]), "=r"(out[3])                  \
                 : "r"(address)                                                            \
                 : "memory");                                                              \
  }
#define VK_LDMATRIX_X2(name, suffix)                                                 \
  __device__ __forceinline__ void name(uint32_t (&out)[2], const void* row) {        \
    const uint32_t address = uint32_t(__cvta_generic_to_shared(row));                \
    asm volatile("ldmatrix.sync.aligned.m8n8.x2" suffix ".shared.b16 {%0,%1}, [%2];" \
                 : "=r"(out[0]), "=r"(out[1])                                        \
                 : "r"(address)                                                      \
                 : "memory");                                                        \
  }
VK_LDMATRIX_X4(ldmatrix_x4, "")
VK_LDMATRIX_X4(ldmatrix_x4_trans, ".trans")
VK_LDMATRIX_X2(ldmatrix_x2, "")
VK_LDMATRIX_X2(ldmatrix_x2_trans, ".trans")
#undef VK_LDMATRIX_X4
#undef VK_LDMATRIX_X2
#endif
#undef VK_MMA

}  // namespace vk
