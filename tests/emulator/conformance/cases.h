// cases.h - the conformance kernels: how each is launched, what it is given, how exactly a record must be met. Plain C, for
// the recorder and for tests/kernels/conformance.cpp alike.
#pragma once
#include <math.h>
#include <stdint.h>
#include <string.h>

enum ConformanceInput {
  ANY_BITS,          // random words
  FLOATS,            // floats over the whole range, and the awkward ones
  EXPONENTS,         // floats in [-40, 40]
  POSITIVE,          // positive normal floats
  SMALL_F16,         // pairs of small whole numbers as f16: products and sums are exact
  SMALL_BF16,
  FRAGMENTS_F16,     // ten words a lane: a, b of small numbers, c whole floats
  FRAGMENTS_BF16,
  FRAGMENTS_RANDOM   // a, b random f16 in [-2, 2], c random floats
};
struct ConformanceCase {
  const char* kernel;
  int threads, shared_bytes, in_words, out_words;
  int least, most;   // architectures that have it
  enum ConformanceInput input;
  double tolerance;  // relative, against the hardware; 0: the same bits
  int floats;        // out holds floats: a NaN is equal to any other
  int tensor_map;    // 1: the first parameter is a tensor map of `in`, 2: the second is one of `out`
};
static const struct ConformanceCase conformance_cases[] = {
    {"conformance_to_f16", 256, 0, 256, 256, 80, 999, FLOATS, 0, 0, 0},
    {"conformance_to_bf16", 256, 0, 256, 256, 80, 999, FLOATS, 0, 0, 0},
    {"conformance_pack", 128, 0, 256, 256, 80, 999, FLOATS, 0, 0, 0},
    {"conformance_from_16", 256, 0, 256, 1024, 80, 999, ANY_BITS, 0, 1, 0},
    {"conformance_ieee", 256, 0, 256, 1024, 80, 999, FLOATS, 0, 1, 0},
    {"conformance_ex2", 256, 0, 256, 256, 80, 999, EXPONENTS, 0x1p-21, 1, 0},
    {"conformance_rcp", 256, 0, 256, 256, 80, 999, POSITIVE, 0x1p-22, 1, 0},
    {"conformance_rsqrt", 256, 0, 256, 256, 80, 999, POSITIVE, 0x1p-21, 1, 0},
    {"conformance_tanh", 256, 0, 256, 256, 80, 999, EXPONENTS, 0x1p-10, 1, 0},
    {"conformance_shfl", 32, 0, 32, 512, 80, 999, ANY_BITS, 0, 0, 0},
    {"conformance_barriers", 64, 0, 128, 128, 80, 999, ANY_BITS, 0, 0, 0},
    {"conformance_sync_warp", 32, 0, 32, 32, 80, 999, ANY_BITS, 0, 0, 0},
    {"conformance_global", 32, 0, 512, 512, 80, 999, ANY_BITS, 0, 0, 0},
    {"conformance_shared", 32, 512, 128, 512, 80, 999, ANY_BITS, 0, 0, 0},
    {"conformance_cp_async", 32, 1024, 128, 256, 80, 999, ANY_BITS, 0, 0, 0},
    {"conformance_ldmatrix", 32, 512, 128, 384, 80, 999, ANY_BITS, 0, 0, 0},
    {"conformance_stmatrix", 32, 512, 128, 256, 90, 999, ANY_BITS, 0, 0, 0},
    {"conformance_mma_f16", 32, 0, 320, 128, 80, 999, FRAGMENTS_F16, 0, 1, 0},
    {"conformance_mma_bf16", 32, 0, 320, 128, 80, 999, FRAGMENTS_BF16, 0, 1, 0},
    {"conformance_mma_rounding", 32, 0, 320, 128, 80, 999, FRAGMENTS_RANDOM, 1e-5, 1, 0},
    {"conformance_tma", 128, 8192 + 8, 1536, 2048, 90, 119, ANY_BITS, 0, 0, 1},
    {"conformance_tma_store", 128, 8192, 2048, 1536, 90, 119, ANY_BITS, 0, 0, 2},
    {"conformance_wgmma_n16", 128, 8192 + 2048, 640, 1024, 90, 90, SMALL_F16, 0, 1, 0},
    {"conformance_wgmma_n32", 128, 8192 + 4096, 768, 2048, 90, 90, SMALL_F16, 0, 1, 0},
    {"conformance_wgmma_n64", 128, 16384, 1024, 4096, 90, 90, SMALL_F16, 0, 1, 0},
    {"conformance_wgmma_n128", 128, 8192 + 16384, 1536, 8192, 90, 90, SMALL_F16, 0, 1, 0},
    {"conformance_wgmma_n192", 128, 8192 + 24576, 2048, 12288, 90, 90, SMALL_F16, 0, 1, 0},
    {"conformance_wgmma_n256", 128, 8192 + 32768, 2560, 16384, 90, 90, SMALL_F16, 0, 1, 0},
    {"conformance_wgmma_n16_bf16", 128, 8192 + 2048, 640, 1024, 90, 90, SMALL_BF16, 0, 1, 0},
    {"conformance_wgmma_n32_bf16", 128, 8192 + 4096, 768, 2048, 90, 90, SMALL_BF16, 0, 1, 0},
    {"conformance_wgmma_n64_bf16", 128, 8192 + 8192, 1024, 4096, 90, 90, SMALL_BF16, 0, 1, 0},
    {"conformance_wgmma_n128_bf16", 128, 8192 + 16384, 1536, 8192, 90, 90, SMALL_BF16, 0, 1, 0},
    {"conformance_wgmma_n192_bf16", 128, 8192 + 24576, 2048, 12288, 90, 90, SMALL_BF16, 0, 1, 0},
    {"conformance_wgmma_n256_bf16", 128, 8192 + 32768, 2560, 16384, 90, 90, SMALL_BF16, 0, 1, 0},
    {"conformance_wgmma_ra_n64", 128, 8192, 1024, 4096, 90, 90, SMALL_F16, 0, 1, 0},
    {"conformance_wgmma_ra_n64_sw64_bf16", 128, 4096, 1024, 4096, 90, 90, SMALL_BF16, 0, 1, 0},
    {"conformance_wgmma_ra_n64_transposed", 128, 2048, 1024, 4096, 90, 90, SMALL_F16, 0, 1, 0},
    {"conformance_wgmma_ra_n64_transposed_bf16", 128, 2048, 1024, 4096, 90, 90, SMALL_BF16, 0, 1, 0},
    {"conformance_wgmma_ra_n32_transposed", 128, 1024, 768, 2048, 90, 90, SMALL_F16, 0, 1, 0},
    {"conformance_wgmma_ra_n32_transposed_bf16", 128, 1024, 768, 2048, 90, 90, SMALL_BF16, 0, 1, 0},
};
enum { CONFORMANCE_CASES = sizeof conformance_cases / sizeof *conformance_cases };

// ---- inputs: the same on every machine ----------------------------------------------------------------------------------------
static inline uint32_t conformance_random(uint64_t* state) {  // splitmix64
  uint64_t z = (*state += 0x9E3779B97F4A7C15ull);
  z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9ull;
  z = (z ^ (z >> 27)) * 0x94D049BB133111EBull;
  return (uint32_t)((z ^ (z >> 31)) >> 32);
}
static inline uint32_t conformance_bits(float f) { uint32_t u; memcpy(&u, &f, 4); return u; }
static inline uint32_t conformance_small(uint64_t* state, int bf16) {  // a whole number from -8 to 8
  int v = (int)(conformance_random(state) % 17) - 8, e = 0;
  uint32_t sign = v < 0 ? 0x8000 : 0, m = (uint32_t)(v < 0 ? -v : v);
  if (!m) return sign;
  while (m >> (e + 1)) e++;
  return bf16 ? sign | (uint32_t)(127 + e) << 7 | (m << (7 - e) & 0x7f) : sign | (uint32_t)(15 + e) << 10 | (m << (10 - e) & 0x3ff);
}
static inline uint32_t conformance_f16(uint64_t* state) {  // in [-2, 2], all bits of the mantissa
  uint32_t r = conformance_random(state);
  return (r & 0x8000) | (10 + r % 6) << 10 | (r >> 16 & 0x3ff);
}
typedef uint32_t (*ConformanceHalf)(uint64_t* state);
static inline uint32_t conformance_small_f16(uint64_t* state) { return conformance_small(state, 0); }
static inline uint32_t conformance_small_bf16(uint64_t* state) { return conformance_small(state, 1); }
static inline uint32_t conformance_pair(ConformanceHalf half, uint64_t* state) {
  uint32_t low = half(state);
  return low | half(state) << 16;
}
static inline void conformance_fill(const struct ConformanceCase* c, uint32_t* in) {
  static const uint32_t awkward[] = {
      0x00000000, 0x80000000, 0x00000001, 0x807fffff, 0x00800000, 0x7f7fffff, 0xff7fffff, 0x7f800000, 0xff800000, 0x7fc00000, 0xffc00001, 0x7f800001,
      0x477fe000, 0x477fefff, 0x477ff000, 0xc77ff000, 0x38800000, 0x387fffff, 0x33800000, 0x33000000, 0x33000001, 0x3f800000, 0x3f801000, 0x3f803000,
      0x3f808000, 0x3f818000, 0x7f7f8000, 0x7f7f7fff};  // zeros, subnormals, limits, Inf, NaN; ties and limits of f16 and bf16
  enum { N_AWKWARD = sizeof awkward / sizeof *awkward };
  uint64_t s = 0;
  for (const char* p = c->kernel; *p; p++) s = s * 131 + (unsigned char)*p;
  for (int i = 0; i < c->in_words; i++) {
    uint32_t r = conformance_random(&s);
    switch (c->input) {
      case ANY_BITS: in[i] = r; break;
      case FLOATS: in[i] = i < N_AWKWARD ? awkward[i] : i % 2 ? r : (r & 0x807fffff) | (uint32_t)(112 + r % 31) << 23; break;
      case EXPONENTS: in[i] = conformance_bits(i < 17 ? (float)(i - 8) : (float)((double)r * 0x1p-32 * 80 - 40) * (i % 2 ? 1 : 0.0625f)); break;
      case POSITIVE: in[i] = i < 16 ? (uint32_t)(119 + i) << 23 : (r & 0x7fffff) | (uint32_t)(87 + r % 80) << 23; break;
      case SMALL_F16: in[i] = conformance_pair(conformance_small_f16, &s); break;
      case SMALL_BF16: in[i] = conformance_pair(conformance_small_bf16, &s); break;
      case FRAGMENTS_F16: in[i] = i % 10 < 6 ? conformance_pair(conformance_small_f16, &s) : conformance_bits((float)(int)(r % 2001) - 1000); break;
      case FRAGMENTS_BF16: in[i] = i % 10 < 6 ? conformance_pair(conformance_small_bf16, &s) : conformance_bits((float)(int)(r % 2001) - 1000); break;
      case FRAGMENTS_RANDOM: in[i] = i % 10 < 6 ? conformance_pair(conformance_f16, &s) : conformance_bits((float)((double)r * 0x1p-30 - 2)); break;
    }
  }
}
