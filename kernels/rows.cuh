// rows.cuh - a row of activations held in the registers of one warp (or of one block), and its normalisation.
// Included by embed_layernorm.cu and residual_layernorm.cu, which differ in where the row comes from.
//
// Lane r of the row's WARPS * 32 lanes holds vectors r, r + 32 WARPS, r + 64 WARPS, ... of eight elements, so that
// neighbouring lanes touch neighbouring 16 bytes. A row is read once and written once; both passes over it are in registers.
#pragma once
#include "numeric.cuh"

enum RowNormKind {
  ROW_AS_IT_IS,
  ROW_LAYERNORM,  // (x - mean) / sqrt(variance + eps) * gamma + beta
  ROW_RMSNORM,    // x / sqrt(mean of squares + eps) * gamma + beta
};
struct RowAffine { const float *gamma, *beta; };  // [hidden] each; null: ones, zeros
struct RowScale { float shift, scale, mean; };    // y = (x - shift) * scale; mean: what was taken out of x before

// Rows a block of ROW_THREADS works on: one a warp, or one for all of its warps.
constexpr int ROW_THREADS = 128;               // four rows a block: 32 tokens are still on eight multiprocessors
constexpr int WIDE_ROW_THREADS = 256;          // 8,192 columns in 32 registers a thread

template <int WARPS> DEV int row_index() { return WARPS == 1 ? blockIdx.x * (ROW_THREADS / 32) + (threadIdx.x >> 5) : blockIdx.x; }
template <int WARPS> DEV int row_lane() { return WARPS == 1 ? threadIdx.x & 31 : threadIdx.x; }
template <int WARPS> DEV int row_column(int vector) { return (row_lane<WARPS>() + vector * 32 * WARPS) * VECTOR; }

// A lane's vectors of a row as they lie in memory, zeros beyond the row or if there is none. Load every row that is needed
// before the first use of one, so that all loads are in flight together.
template <int VECTORS, int WARPS> DEV void load_row(u128 (&raw)[VECTORS], const half_t* row, int hidden LOC_PARAM) {
#pragma unroll
  for (int i = 0; i < VECTORS; i++) {
    bool wanted = (row != nullptr) & (row_column<WARPS>(i) < hidden);  // & for one predicate instead of two branches
    raw[i] = u128{0, 0, 0, 0};
    if (wanted) raw[i] = ld_global_128(row + row_column<WARPS>(i) LOC_ARG);
  }
}
template <class T, int VECTORS> DEV void add_row(float (&x)[VECTORS][VECTOR], const u128 (&raw)[VECTORS]) {
#pragma unroll
  for (int i = 0; i < VECTORS; i++) {
    float v[VECTOR];
    unpack8<T>(raw[i], v);
#pragma unroll
    for (int e = 0; e < VECTOR; e++) x[i][e] += v[e];
  }
}

// Sums of two values over the row's lanes, the same bits in each. `scratch` [2 * WARPS] is shared memory, unused by one warp.
template <int WARPS> DEV void row_sums(float& a, float& b, float* scratch) {
  a = warp_sum(a);
  b = warp_sum(b);
  if constexpr (WARPS > 1) {
    int warp = threadIdx.x >> 5;
    sync_block();  // the last call's values have been read
    if ((threadIdx.x & 31) == 0) { scratch[2 * warp] = a; scratch[2 * warp + 1] = b; }
    sync_block();
    a = b = 0;
#pragma unroll
    for (int w = 0; w < WARPS; w++) { a += scratch[2 * w]; b += scratch[2 * w + 1]; }
  }
}

// The corrected two-pass algorithm (Chan, Golub, LeVeque 1983): subtract the mean, then take the sum of what is left, which
// would be 0 but for the rounding of the mean, out of the variance and out of the row. On return x holds x - rounded mean.
// Lost: sum of squares minus square of sum, off by 3e-2 of a normalised row at |mean| = 100 spreads and by anything at 1,000;
// plain two passes, off by 3.5e-4 there (0.7 half ulps of fp16) and, in a constant row with eps = 1e-12, by the rounding of the
// mean times 10^6. The corrected form stays at 4e-7 (residual_layernorm.cpp) for one more butterfly beside another.
template <int VECTORS, int WARPS>
DEV RowScale centre(float (&x)[VECTORS][VECTOR], int hidden, float eps, RowNormKind norm, float* scratch) {
  float sum = 0, squares = 0, left = 0, mean = 0;
  if (norm == ROW_LAYERNORM) {
#pragma unroll
    for (int i = 0; i < VECTORS; i++) sum += sum8(x[i]);  // vectors beyond the row are zeros
    row_sums<WARPS>(sum, squares, scratch);
    mean = sum / (float)hidden;
#pragma unroll
    for (int i = 0; i < VECTORS; i++)
      if (row_column<WARPS>(i) < hidden) {
#pragma unroll
        for (int e = 0; e < VECTOR; e++) x[i][e] -= mean;
        left += sum8(x[i]);
      }
  }
#pragma unroll
  for (int i = 0; i < VECTORS; i++) squares += sum_of_squares8(x[i]);
  row_sums<WARPS>(squares, left, scratch);
  float shift = left / (float)hidden;
  float variance = fmaf(-shift, shift, squares / (float)hidden);
  return RowScale{shift, inverse_sqrt((variance < 0 ? 0.0f : variance) + eps), mean};  // not fmaxf: a NaN must stay
}

// Eight values of gamma and beta at column c; ones and zeros where there is no such vector or no such column.
DEV void load_affine(RowAffine affine, int c, int hidden, float (&gamma)[VECTOR], float (&beta)[VECTOR] LOC_PARAM) {
  bool has_gamma = (affine.gamma != nullptr) & (c < hidden), has_beta = (affine.beta != nullptr) & (c < hidden);
#pragma unroll
  for (int e = 0; e < VECTOR; e++) { gamma[e] = 1; beta[e] = 0; }
  if (has_gamma) load8_f32_nc(affine.gamma + c, gamma LOC_ARG);
  if (has_beta) load8_f32_nc(affine.beta + c, beta LOC_ARG);
}

// gamma and beta of a row's lane. Made before the row is loaded, so that they are under way together.
template <int VECTORS, int WARPS> struct LaneAffine {
  float gamma[VECTORS][VECTOR], beta[VECTORS][VECTOR];
  DEV_MEMBER LaneAffine early(RowAffine affine, int hidden) {
    LaneAffine a;
#pragma unroll
    for (int i = 0; i < VECTORS; i++) load_affine(affine, row_column<WARPS>(i), hidden, a.gamma[i], a.beta[i]);
    return a;
  }
};

// out = (x - shift) * scale * gamma + beta
template <class T, int VECTORS, int WARPS>
DEV void store_scaled(half_t* out, float (&x)[VECTORS][VECTOR], int hidden, RowScale s, LaneAffine<VECTORS, WARPS>& a LOC_PARAM) {
#pragma unroll
  for (int i = 0; i < VECTORS; i++) {
    int c = row_column<WARPS>(i);
    if (c >= hidden) continue;
#pragma unroll
    for (int e = 0; e < VECTOR; e++) x[i][e] = fmaf((x[i][e] - s.shift) * s.scale, a.gamma[i][e], a.beta[i][e]);
    store8<T>(out + c, x[i] LOC_ARG);
  }
}

// The variants of a kernel of rows, by the widest row they take: MAKE(name, threads, min_blocks, T, VECTORS, WARPS). ptxas is
// held to registers for 20, 12 and 8 warps a multiprocessor, each with 1 to 4 KiB of loads under way, which is more than
// enough for the memory; for the next step up it spills on sm_120.
#define ROW_KERNEL_SIZES(MAKE, op, suffix, T)          \
  MAKE(op##_h512_##suffix, ROW_THREADS, 5, T, 2, 1)    \
  MAKE(op##_h1024_##suffix, ROW_THREADS, 3, T, 4, 1)   \
  MAKE(op##_h8192_##suffix, WIDE_ROW_THREADS, 1, T, 4, WIDE_ROW_THREADS / 32)
