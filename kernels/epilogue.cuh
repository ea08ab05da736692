// epilogue.cuh - what happens to the sums of a matrix product before they are stored: shared by every tile of gemm.cu and
// by the reduction of its split-K form.
//
// For row r and column c, acc = sum over k of A[r, k] W[c, k], in this order:
//   1. NORM_INPUT:  v = rstd[r] (acc - mean[r] norm_scale[c])        A held raw sums y, W was gamma (.) W; see below
//      otherwise    v = acc
//   2. v += bias[c]
//   3. v = activation(v), or gated: v = activation(v[2 j]) v[2 j + 1], output column j
//   4. NORM_RESIDUAL: v += (residual[r, c] - mean[r]) rstd[r] norm_scale[c] + norm_shift[c]
//      otherwise      v += residual[r, c]
//   5. round to 16 bits (to nearest even; overflow gives Inf), store
//   6. row_stats: mean and M2 = sum (v - mean)^2 of the values as stored
// Each step is optional. All of it is chosen at run time: the branches are uniform over the grid, and the fatbin holds one
// epilogue a tile instead of fifty.
//
// LayerNorm folded into the products on both of its sides (gpu-kernels design, "LayerNorm, folded by algebra"):
//   LN(y) W^T + b = rstd (y (gamma (.) W)^T - mean colsum) + b', colsum[n] = sum_k gamma[k] W[n, k], b' = b + W beta.
// The producer of y stores raw sums and their statistics (6), the next product reads raw y (1), and what uses LN(y) as its
// residual recomputes it (4). `fold_layernorm` makes W', colsum and b'. No pass over the activations is left, but error
// grows with |mean| / spread of a row, as 16-bit storage of y itself does; tests/kernels/gemm.cpp has the numbers.
//
// Statistics are kept for every 64 columns, whatever tile computed them, so they are the same bits for every tile:
// row_stats is [m, ceil(n / 64), 2] f32. Merging groups by Chan, Golub and LeVeque, "Updating formulae and a pairwise
// algorithm for computing sample variances", 1979; never by a sum of squares, which cancels.
#pragma once
#include "numeric.cuh"

enum NormTarget { NORM_NONE = 0, NORM_INPUT = 1, NORM_RESIDUAL = 2 };

// Passed by value. src/backend/cuda mirrors it with #[repr(C)]: 72 bytes, 8-aligned, offsets as written.
struct Epilogue {
  const float* bias;        //  0: [n], or null
  const half_t* residual;   //  8: [m, n], or null. May be the output itself: a lane reads what it will overwrite.
  float* row_stats;         // 16: [m, ceil(n / 64), 2], or null. Not with gated.
  const float* norm_stats;  // 24: [m, ceil(norm_columns / 64), 2] of the rows to normalise; read if norm_target
  const float* norm_scale;  // 32: [n]: colsum (NORM_INPUT), gamma (NORM_RESIDUAL)
  const float* norm_shift;  // 40: [n]: beta (NORM_RESIDUAL)
  float norm_eps;           // 48: added to the variance
  int32_t norm_columns;     // 52: width of the rows to normalise: k (NORM_INPUT), n (NORM_RESIDUAL)
  int32_t norm_target;      // 56: NormTarget. One layernorm a product: no encoder needs both.
  int32_t activation;       // 60: Activation (numeric.cuh)
  int32_t gated;            // 64: 1: rows of W are gate, up, gate, up, ...; the output is [m, n / 2], n a multiple of 16,
                            //     without residual
  int32_t reserved;         // 68: 0
};
static_assert(sizeof(Epilogue) == 72, "Rust mirrors this layout");

// Eight lanes with eight columns each own 64 columns of a row: stores of 128 bytes a row (eight 16-byte accesses), and
// statistics that stay within three shuffles.
constexpr int SEGMENT = 64;
constexpr int SEGMENT_LANES = SEGMENT / VECTOR;

// ---- statistics of a row, from its segments ---------------------------------------------------------------------------
struct RowNorm { float mean, rstd; };

// Chan's formula for all groups at once: mean = sum n_s mean_s / n, M2 = sum (M2_s + n_s (mean_s - mean)^2), in order.
DEV RowNorm merge_row_stats(const float* stats, int columns, float eps) {  // stats: [ceil(columns / 64), 2]
  int segments = (columns + SEGMENT - 1) / SEGMENT;
  float last = (float)(columns - (segments - 1) * SEGMENT), inverse = 1.0f / (float)columns, sum = 0, m2 = 0;
  for (int s = 0; s < segments; s++) sum = fmaf(s + 1 < segments ? (float)SEGMENT : last, f32_from_bits(ld_global_64(stats + 2 * s).x), sum);
  float mean = sum * inverse;
  for (int s = 0; s < segments; s++) {
    u64x part = ld_global_64(stats + 2 * s);
    float off = f32_from_bits(part.x) - mean;
    m2 += fmaf((s + 1 < segments ? (float)SEGMENT : last) * off, off, f32_from_bits(part.y));
  }
  return RowNorm{mean, 1.0f / sqrtf(fmaf(m2, inverse, eps))};
}
DEV RowNorm row_norm(const Epilogue& e, size_t row) {
  int segments = (e.norm_columns + SEGMENT - 1) / SEGMENT;
  return merge_row_stats(e.norm_stats + row * (size_t)(2 * segments), e.norm_columns, e.norm_eps);
}

DEV float segment_sum(float v) {
  v += shfl_xor(v, 1);
  v += shfl_xor(v, 2);
  return v + shfl_xor(v, 4);
}
// Two passes over values in registers; called by all lanes, `inside` says which of them hold columns of the matrix.
template <class T> DEV void store_segment_stats(float* out, u128 stored, bool inside, int columns, bool writes) {
  float v[VECTOR];
  unpack8<T>(stored, v);
  float mean = segment_sum(inside ? sum8(v) : 0.0f) / (float)columns;
#pragma unroll
  for (int i = 0; i < VECTOR; i++) {
    float off = v[i] - mean;
    v[i] = off * off;
  }
  float m2 = segment_sum(inside ? sum8(v) : 0.0f);
  if (writes) st_global_64(out, u64x{f32_bits(mean), f32_bits(m2)});
}

// ---- columns: what a lane needs for all rows ------------------------------------------------------------------------------
struct EpilogueColumns { float bias[VECTOR], scale[VECTOR], shift[VECTOR]; };

DEV void load_optional(const float* p, int column, bool wanted, float (&v)[VECTOR]) {
  if (wanted) load8_f32_nc(p + column, v);
  else {
#pragma unroll
    for (int i = 0; i < VECTOR; i++) v[i] = 0;
  }
}
DEV void load_columns(const Epilogue& e, int column, bool inside, EpilogueColumns& c) {
  load_optional(e.bias, column, inside && e.bias, c.bias);
  load_optional(e.norm_scale, column, inside && e.norm_target != NORM_NONE, c.scale);
  load_optional(e.norm_shift, column, inside && e.norm_target == NORM_RESIDUAL, c.shift);
}

// ---- activations ------------------------------------------------------------------------------------------------------------
template <int A, int N> DEV void activate_all(float (&v)[N]) {
#pragma unroll
  for (int i = 0; i < N; i++) v[i] = activate<A>(v[i]);
}
template <int N> DEV void activate_by(int activation, float (&v)[N]) {
  switch (activation) {
    case ACT_GELU: activate_all<ACT_GELU>(v); break;
    case ACT_GELU_TANH: activate_all<ACT_GELU_TANH>(v); break;
    case ACT_QUICK_GELU: activate_all<ACT_QUICK_GELU>(v); break;
    case ACT_RELU: activate_all<ACT_RELU>(v); break;
    case ACT_SILU: activate_all<ACT_SILU>(v); break;
    case ACT_TANH: activate_all<ACT_TANH>(v); break;
    default: break;
  }
}

// ---- eight columns of one row ---------------------------------------------------------------------------------------------
struct EpiloguePlace {
  size_t row;
  int column, n;  // column: the first of eight, of n
  bool inside;    // false: this lane only takes part in the shuffles
};

// activation(gate) * up: four outputs a lane. Two lanes put theirs together, so that stores stay 16 bytes wide.
template <class T> DEV void store_gated(const Epilogue& e, const float (&v)[VECTOR], half_t* out, EpiloguePlace at) {
  float gate[4] = {v[0], v[2], v[4], v[6]};
  activate_by(e.activation, gate);
  uint32_t low = T::pack(gate[0] * v[1], gate[1] * v[3]), high = T::pack(gate[2] * v[5], gate[3] * v[7]);
  uint32_t next_low = shfl_xor(low, 1), next_high = shfl_xor(high, 1);
  bool first = (at.column & VECTOR) == 0;
  if (at.inside && first) st_global_128(out + at.row * (size_t)(at.n / 2) + at.column / 2, u128{low, high, next_low, next_high});
}

// Finishes and stores v. All lanes of the warp call it, eight neighbours with the 64 columns of one row. `norm` is that
// row's, `residual` the lane's eight residual elements.
template <class T>
DEV void finish_row(const Epilogue& e, const EpilogueColumns& c, float (&v)[VECTOR], RowNorm norm, u128 residual, half_t* out, EpiloguePlace at) {
  if (e.norm_target == NORM_INPUT) {
#pragma unroll
    for (int i = 0; i < VECTOR; i++) v[i] = norm.rstd * fmaf(-norm.mean, c.scale[i], v[i]);
  }
#pragma unroll
  for (int i = 0; i < VECTOR; i++) v[i] += c.bias[i];
  if (e.gated) {
    store_gated<T>(e, v, out, at);
    return;
  }
  activate_by(e.activation, v);
  if (e.residual) {
    float r[VECTOR];
    unpack8<T>(residual, r);
    if (e.norm_target == NORM_RESIDUAL) {
#pragma unroll
      for (int i = 0; i < VECTOR; i++) r[i] = fmaf((r[i] - norm.mean) * norm.rstd, c.scale[i], c.shift[i]);
    }
#pragma unroll
    for (int i = 0; i < VECTOR; i++) v[i] += r[i];
  }
  u128 stored = pack8<T>(v);
  if (at.inside) st_global_128(out + at.row * (size_t)at.n + at.column, stored);
  if (e.row_stats) {
    int segment = at.column / SEGMENT, segments = (at.n + SEGMENT - 1) / SEGMENT;
    float* stats = e.row_stats + (at.row * (size_t)segments + (size_t)segment) * 2;
    store_segment_stats<T>(stats, stored, at.inside, min(SEGMENT, at.n - segment * SEGMENT), at.inside && at.column % SEGMENT == 0);
  }
}
