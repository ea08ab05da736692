// numeric.cuh - the 16-bit element types that kernels are templated on, activations, warp reductions.
// A kernel body is `template <class T> DEV void op_body(...)`, T = F16 or BF16; buffers are raw `half_t` bits.
#pragma once
#include "simt.cuh"

struct F16 {
  DEV_MEMBER float to_f32(half_t h) { return h2f(h); }
  DEV_MEMBER half_t from_f32(float f) { return f2h(f); }
  DEV_MEMBER float lo(uint32_t p) { return h2lo(p); }
  DEV_MEMBER float hi(uint32_t p) { return h2hi(p); }
  DEV_MEMBER uint32_t pack(float lo, float hi) { return pack_h2(lo, hi); }
  DEV_MEMBER void mma(float (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) { mma_m16n8k16(c, a, b0, b1); }
};
struct BF16 {
  DEV_MEMBER float to_f32(half_t h) { return b2f(h); }
  DEV_MEMBER half_t from_f32(float f) { return f2b(f); }
  DEV_MEMBER float lo(uint32_t p) { return b2f((half_t)(p & 0xffff)); }
  DEV_MEMBER float hi(uint32_t p) { return b2f((half_t)(p >> 16)); }
  DEV_MEMBER uint32_t pack(float lo, float hi) { return pack_b2(lo, hi); }
  DEV_MEMBER void mma(float (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) { mma_m16n8k16_bf16(c, a, b0, b1); }
};
