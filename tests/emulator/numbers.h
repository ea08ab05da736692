// numbers.h - 16-bit conversions as the GPU's cvt does them: round to nearest even, no saturation.
#pragma once
#include <math.h>
#include <stdint.h>
#include <string.h>
#ifdef __F16C__
#include <immintrin.h>
#endif
typedef uint16_t half_t;                 // raw bits of an fp16 or bf16

static inline uint32_t f32_bits(float f) { uint32_t u; memcpy(&u, &f, 4); return u; }
static inline float f32_from_bits(uint32_t u) { float f; memcpy(&f, &u, 4); return f; }
#ifdef __F16C__
static inline float h2f(half_t h) { return _cvtsh_ss(h); }
static inline half_t f2h(float f) { return f != f ? 0x7fff : _cvtss_sh(f, 0); }  // PTX: the canonical NaN
#else
static inline float h2f(half_t h) { _Float16 x; memcpy(&x, &h, 2); return (float)x; }
static inline half_t f2h(float f) { _Float16 x = (_Float16)f; half_t h; memcpy(&h, &x, 2); return f != f ? 0x7fff : h; }
#endif
static inline float b2f(half_t h) { return f32_from_bits((uint32_t)h << 16); }
static inline half_t f2b(float f) {
  uint32_t u = f32_bits(f);
  if ((u & 0x7fffffff) > 0x7f800000) return 0x7fff;  // PTX: the canonical NaN
  return (half_t)((u + 0x7fff + (u >> 16 & 1)) >> 16);
}
