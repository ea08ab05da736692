// numeric.cuh - element types, 16-byte rows, row statistics and activations: what every kernel computes with.
//
// A kernel body is `template <class T> DEV void op_body(...)`, T = F16 or BF16; buffers hold raw 16-bit `half_t`.
// All arithmetic is fp32. Conversions to 16 bits round to nearest even and do not saturate: an overflow becomes Inf, so
// that it is found and reported.
//
// What the GPU and the emulator agree on, to the bit: loads, stores, conversions, +, *, fmaf, / and sqrtf (IEEE, nvcc's
// default), shuffles, comparisons. A product that feeds a sum is written as fmaf here, so nvcc has nothing left to
// contract and g++ is built with -ffp-contract=off. What differs: `ex2_approx` (relative error up to 2^-22) and `rcp_approx`
// (2^-23), which the emulator replaces by values that are off by as much, hence all activations but ReLU. Neither 1/sqrtf(x)
// nor division is replaced by its approximation: once a row they cost nothing.
#pragma once
#include "simt.cuh"

// ---- element types --------------------------------------------------------------------------------------------------
struct F16 {
  static constexpr bool IS_BF16 = false;
  DEV_MEMBER float to_f32(half_t h) { return h2f(h); }
  DEV_MEMBER half_t from_f32(float f) { return f2h(f); }
  DEV_MEMBER float lo(uint32_t p) { return h2lo(p); }
  DEV_MEMBER float hi(uint32_t p) { return h2hi(p); }
  DEV_MEMBER uint32_t pack(float lo, float hi) { return pack_h2(lo, hi); }
  DEV_MEMBER void mma(float (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1 LOC_PARAM) { mma_m16n8k16(c, a, b0, b1 LOC_ARG); }
};
struct BF16 {
  static constexpr bool IS_BF16 = true;
  DEV_MEMBER float to_f32(half_t h) { return b2f(h); }
  DEV_MEMBER half_t from_f32(float f) { return f2b(f); }
  DEV_MEMBER float lo(uint32_t p) { return b2f((half_t)(p & 0xffff)); }
  DEV_MEMBER float hi(uint32_t p) { return b2f((half_t)(p >> 16)); }
  DEV_MEMBER uint32_t pack(float lo, float hi) { return pack_b2(lo, hi); }
  DEV_MEMBER void mma(float (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1 LOC_PARAM) { mma_m16n8k16_bf16(c, a, b0, b1 LOC_ARG); }
};

// ---- 16 bytes of a row: eight elements ----------------------------------------------------------------------------------
// One access of 16 bytes a lane is what fills a 128-byte line with eight lanes; every row size is a multiple of 8.
constexpr int VECTOR = 8;

template <class T> DEV void unpack8(u128 raw, float (&v)[VECTOR]) {
  v[0] = T::lo(raw.x); v[1] = T::hi(raw.x); v[2] = T::lo(raw.y); v[3] = T::hi(raw.y);
  v[4] = T::lo(raw.z); v[5] = T::hi(raw.z); v[6] = T::lo(raw.w); v[7] = T::hi(raw.w);
}
template <class T> DEV u128 pack8(const float (&v)[VECTOR]) {
  return u128{T::pack(v[0], v[1]), T::pack(v[2], v[3]), T::pack(v[4], v[5]), T::pack(v[6], v[7])};
}
// Eight elements of a 16-bit row: of one that a thread of this kernel may write (load8), of one that none does (load8_nc).
template <class T> DEV void load8(const half_t* p, float (&v)[VECTOR] LOC_PARAM) { unpack8<T>(ld_global_128(p LOC_ARG), v); }
template <class T> DEV void load8_nc(const half_t* p, float (&v)[VECTOR] LOC_PARAM) { unpack8<T>(ld_global_nc_128(p LOC_ARG), v); }
template <class T> DEV void store8(half_t* p, const float (&v)[VECTOR] LOC_PARAM) { st_global_128(p, pack8<T>(v) LOC_ARG); }

// Eight elements of an f32 vector (gamma, beta, bias): two accesses.
DEV u128 f32_quad(float a, float b, float c, float d) { return u128{f32_bits(a), f32_bits(b), f32_bits(c), f32_bits(d)}; }
DEV void load8_f32_nc(const float* p, float (&v)[VECTOR] LOC_PARAM) {
  u128 a = ld_global_nc_128(p LOC_ARG), b = ld_global_nc_128(p + 4 LOC_ARG);
  v[0] = f32_from_bits(a.x); v[1] = f32_from_bits(a.y); v[2] = f32_from_bits(a.z); v[3] = f32_from_bits(a.w);
  v[4] = f32_from_bits(b.x); v[5] = f32_from_bits(b.y); v[6] = f32_from_bits(b.z); v[7] = f32_from_bits(b.w);
}
DEV void store8_f32(float* p, const float (&v)[VECTOR] LOC_PARAM) {
  st_global_128(p, f32_quad(v[0], v[1], v[2], v[3]) LOC_ARG);
  st_global_128(p + 4, f32_quad(v[4], v[5], v[6], v[7]) LOC_ARG);
}
// Pairwise, so that a lane's rounding error grows with the logarithm of what it adds.
DEV float sum8(const float (&v)[VECTOR]) {
  return ((v[0] + v[1]) + (v[2] + v[3])) + ((v[4] + v[5]) + (v[6] + v[7]));
}
DEV float sum_of_squares8(const float (&v)[VECTOR]) {
  float a = fmaf(v[0], v[0], v[1] * v[1]), b = fmaf(v[2], v[2], v[3] * v[3]);
  float c = fmaf(v[4], v[4], v[5] * v[5]), d = fmaf(v[6], v[6], v[7] * v[7]);
  return (a + b) + (c + d);
}

// ---- reductions -------------------------------------------------------------------------------------------------------
// warp_sum and warp_max are in simt.cuh: butterflies, whose order depends on nothing but the lane, so every lane ends
// with the same bits.
DEV float inverse_sqrt(float x) { return 1.0f / sqrtf(x); }
// fmaxf drops a NaN; this keeps it, and turns an infinite operand into NaN, so that neither can hide. 0 * v is 0 for
// finite v and NaN otherwise.
DEV float max_keeping_nan(float a, float b) { return fmaf(a, 0.0f, fmaf(b, 0.0f, fmaxf(a, b))); }
DEV bool is_finite(float v) { return fabsf(v) <= 3.402823466e38f; }

// ---- activations --------------------------------------------------------------------------------------------------------
// Errors are of the fp32 result, before it is rounded to 16 bits, measured over all magnitudes (tests/kernels/numeric.cpp):
// half a unit in the last place of fp16 is at least 2.4e-4 of the value, of bf16 2.0e-3.
// NaN and Inf give NaN or Inf, never a number.
enum Activation { ACT_NONE, ACT_GELU, ACT_GELU_TANH, ACT_QUICK_GELU, ACT_RELU, ACT_SILU, ACT_TANH };

constexpr float LOG2_E = 1.4426950408889634f;

// 1 / (1 + 2^-z)
DEV float sigmoid_base_2(float z) { return rcp_approx(1.0f + ex2_approx(-z)); }

// x Phi(x) = max(x, 0) - |x| Phi(-|x|), with Phi(-a) = 2^P(a): log2 Phi(-a) is smooth, so a polynomial of degree 7, fitted
// minimax on [0, 6.5] to the tolerance of a 16-bit result, does it with one exponential and no cancellation: the tail of
// negative x keeps its relative accuracy. P falls for ever, so nothing needs clamping. Error: <= 7e-6 of the value for
// x > -4.2 (0.016 of half an fp16 ulp), 2e-5 down to -6.5, below that less than 4e-15 absolute.
// Lost: degree 5 is off by 0.3 half ulps of fp16; tanh.approx (2^-11) by a whole one; Abramowitz & Stegun 7.1.26 needs a
// reciprocal more and cancels.
DEV float gelu_erf(float x) {
  float a = fabsf(x);
  float p = fmaf(-1.79856227e-06f, a, 6.09465387e-05f);
  p = fmaf(p, a, -0.000926086388f);
  p = fmaf(p, a, 0.00849355478f);
  p = fmaf(p, a, -0.0539376028f);
  p = fmaf(p, a, -0.458479792f);
  p = fmaf(p, a, -1.15124786f);
  p = fmaf(p, a, -0.999995232f);
  return fmaf(-a, ex2_approx(p), fmaxf(x, 0.0f));
}
// 0.5 x (1 + tanh(u)) = x sigmoid(2u), u = sqrt(2/pi) (x + 0.044715 x^3), as x / (1 + 2^(-2 u log2 e)). Error <= 1e-5 of
// the value down to values of 1e-30.
DEV float gelu_tanh(float x) {
  float z = x * fmaf(x * x, 0.10294324f, 2.30220820f);  // 2 sqrt(2/pi) log2(e) times 0.044715 and 1
  return x * sigmoid_base_2(z);
}
// x sigmoid(1.702 x). Error <= 1e-5 of the value down to values of 1e-30.
DEV float quick_gelu(float x) { return x * sigmoid_base_2(x * (1.702f * LOG2_E)); }
// x sigmoid(x). Error <= 1e-5 of the value down to values of 1e-30.
DEV float silu(float x) { return x * sigmoid_base_2(x * LOG2_E); }
// Exact for finite x.
DEV float relu(float x) { return fmaf(x, 0.0f, fmaxf(x, 0.0f)); }
// 1 - 2 / (1 + 2^(2 |x| log2 e)), and below 1/4, where that cancels, x (1 - x^2/3 + 2x^4/15 - 17x^6/315). Error <= 1e-6 of
// the value.
DEV float tanh_of(float x) {
  float a = fabsf(x), s = x * x;
  float series = fmaf(fmaf(fmaf(s, -17.0f / 315, 2.0f / 15), s, -1.0f / 3), s * a, a);
  float saturating = fmaf(-2.0f, rcp_approx(1.0f + ex2_approx(a * (2 * LOG2_E))), 1.0f);
  float magnitude = a < 0.25f ? series : saturating;
  return fmaf(x, 0.0f, x < 0 ? -magnitude : magnitude);
}

template <int A> DEV float activate(float x) {
  switch (A) {
    case ACT_GELU: return gelu_erf(x);
    case ACT_GELU_TANH: return gelu_tanh(x);
    case ACT_QUICK_GELU: return quick_gelu(x);
    case ACT_RELU: return relu(x);
    case ACT_SILU: return silu(x);
    case ACT_TANH: return tanh_of(x);
    default: return x;
  }
}
