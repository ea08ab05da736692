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
// residual recomputes it (4). The host makes W', colsum (of W' as rounded, so that a row's mean cancels) and b'. No pass over
// the activations is left, but error grows with |mean| / spread of a row, as 16-bit storage of y itself does;
// tests/kernels/gemm.cpp has the numbers.
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

// Nearly correctly rounded, without the slow paths of division and square root in every kernel.
DEV float reciprocal(float x) {
  float r = rcp_approx(x);
  return fmaf(r, fmaf(-x, r, 1.0f), r);
}
DEV float inverse_sqrt_newton(float x) {
  float r = rsqrt_approx(x);
  return fmaf(r, fmaf(-0.5f * x * r, r, 0.5f), r);
}

// Chan's formula for all segments at once, in order, around the first one's mean p:
//   mean = p + S1 / n,  M2 = S2 - S1^2 / n,  S1 = sum n_s (mean_s - p),  S2 = sum (M2_s + n_s (mean_s - p)^2)
// One pass, and safe: S1^2 / n is at most n / n_0 = ceil(columns / 64) times M2, as the first segment alone is as far from
// the mean; so at most four bits of M2 cancel for rows up to 1024, whatever the row's mean. Segments are read eight at a
// time, all in flight at once.
DEV RowNorm merge_row_stats(const float* stats, int columns, float eps) {  // stats: [ceil(columns / 64), 2]
  constexpr int BATCH = 8;
  float pivot = 0, s1 = 0, s2 = 0;
#pragma unroll 1
  for (int first = 0; first * SEGMENT < columns; first += BATCH) {
    u64x part[BATCH];
#pragma unroll
    for (int i = 0; i < BATCH; i++) {
      part[i] = u64x{0, 0};
      if ((first + i) * SEGMENT < columns) part[i] = ld_global_64(stats + 2 * (first + i));
    }
    if (first == 0) pivot = f32_from_bits(part[0].x);
#pragma unroll
    for (int i = 0; i < BATCH; i++) {
      float count = (float)max(0, min(SEGMENT, columns - (first + i) * SEGMENT)), off = f32_from_bits(part[i].x) - pivot;
      s1 = fmaf(count, off, s1);
      s2 = fmaf(count * off, off, s2 + f32_from_bits(part[i].y));
    }
  }
  float inverse = reciprocal((float)columns), shift = s1 * inverse;
  return RowNorm{pivot + shift, inverse_sqrt_newton(fmaf(fmaf(-s1, shift, s2), inverse, eps))};
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
template <class T> DEV void store_segment_stats(float* out, u128 stored, float inverse_count, bool inside, bool writes) {
  float v[VECTOR];
  unpack8<T>(stored, v);
  float mean = segment_sum(inside ? sum8(v) : 0.0f) * inverse_count;
#pragma unroll
  for (int i = 0; i < VECTOR; i++) {
    float off = v[i] - mean;
    v[i] = off * off;
  }
  float m2 = segment_sum(inside ? sum8(v) : 0.0f);
  if (writes) st_global_64(out, u64x{f32_bits(mean), f32_bits(m2)});
}

// ---- columns: what a lane needs for all rows ------------------------------------------------------------------------------
struct EpilogueColumns {
  float bias[VECTOR], scale[VECTOR], shift[VECTOR];
  float inverse_count;  // 1 / columns of the lane's segment: exactly 1/64 but in the last one
};

DEV void load_optional(const float* p, int column, bool wanted, float (&v)[VECTOR]) {
#pragma unroll
  for (int i = 0; i < VECTOR; i++) v[i] = 0;
  if (wanted) load8_f32_nc(p + column, v);
}
DEV void load_columns(const Epilogue& e, int column, int n, bool wanted, EpilogueColumns& c) {
  wanted = wanted && column < n;
  load_optional(e.bias, column, wanted && e.bias, c.bias);
  load_optional(e.norm_scale, column, wanted && e.norm_target != NORM_NONE, c.scale);
  load_optional(e.norm_shift, column, wanted && e.norm_target == NORM_RESIDUAL, c.shift);
  c.inverse_count = reciprocal((float)min(SEGMENT, n - column / SEGMENT * SEGMENT));
}

// ---- activations ------------------------------------------------------------------------------------------------------------
template <int A, int N> DEV void activate_all(float (&v)[N]) {
#pragma unroll
  for (int i = 0; i < N; i++) v[i] = activate<A>(v[i]);
}
// SiLU, quick GELU and tanh GELU are x sigmoid(x (c + d x^2)); as one, with c and d chosen here, they are a third of the
// code of three, to the bits of numeric.cuh's functions: d x^2 is not computed where there is none, as it may be 0 Inf.
constexpr float GELU_TANH_LINEAR = 2.30220820f, GELU_TANH_CUBIC = 0.10294324f;  // as in gelu_tanh
template <int N> DEV void activate_by_sigmoid(int activation, float (&v)[N]) {
  bool cubic = activation == ACT_GELU_TANH;
  float c = cubic ? GELU_TANH_LINEAR : activation == ACT_SILU ? LOG2_E : 1.702f * LOG2_E;
#pragma unroll
  for (int i = 0; i < N; i++) {
    float square = cubic ? v[i] * v[i] : 0.0f;
    v[i] *= sigmoid_base_2(v[i] * fmaf(square, GELU_TANH_CUBIC, c));
  }
}
template <int N> DEV void activate_by(int activation, float (&v)[N]) {
  switch (activation) {
    case ACT_NONE: break;
    case ACT_GELU: activate_all<ACT_GELU>(v); break;
    case ACT_RELU: activate_all<ACT_RELU>(v); break;
    case ACT_TANH:
      if (N == VECTOR) activate_all<ACT_TANH>(v);  // no gated form has it: refused on the host, and left out of the code
      break;
    default: activate_by_sigmoid(activation, v); break;
  }
}

// ---- eight columns of one row ---------------------------------------------------------------------------------------------
struct EpiloguePlace {
  size_t row;
  int column, n;  // column: the first of eight, of n
  bool inside;    // false: this lane only takes part in the shuffles
};

// activation(gate) * up: four outputs a lane. Two lanes put theirs together, so that stores stay 16 bytes wide.
template <class T, class Store> DEV void store_gated(const Epilogue& e, const float (&v)[VECTOR], EpiloguePlace at, Store store) {
  float gate[4] = {v[0], v[2], v[4], v[6]};
  activate_by(e.activation, gate);
  uint32_t low = T::pack(gate[0] * v[1], gate[1] * v[3]), high = T::pack(gate[2] * v[5], gate[3] * v[7]);
  uint32_t next_low = shfl_xor(low, 1), next_high = shfl_xor(high, 1);
  if ((at.column & VECTOR) == 0) store(u128{low, high, next_low, next_high});
}

// Finishes v and hands it to `store`: eight outputs, of a gated product in every second lane. All lanes of the warp call it,
// eight neighbours with the 64 columns of one row. `norm` is that row's, `residual` the lane's eight residual elements.
template <class T, class Store>
DEV void finish_row(const Epilogue& e, const EpilogueColumns& c, float (&v)[VECTOR], RowNorm norm, u128 residual, EpiloguePlace at, Store store) {
  if (e.norm_target == NORM_INPUT) {
#pragma unroll
    for (int i = 0; i < VECTOR; i++) v[i] = norm.rstd * fmaf(-norm.mean, c.scale[i], v[i]);
  }
#pragma unroll
  for (int i = 0; i < VECTOR; i++) v[i] += c.bias[i];
  if (e.gated) {
    store_gated<T>(e, v, at, store);
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
  store(stored);
  if (e.row_stats) {
    int segment = at.column / SEGMENT, segments = (at.n + SEGMENT - 1) / SEGMENT;
    float* stats = e.row_stats + (at.row * (size_t)segments + (size_t)segment) * 2;
    store_segment_stats<T>(stats, stored, c.inverse_count, at.inside, at.inside && at.column % SEGMENT == 0);
  }
}
// The same, into a row-major [m, n or n / 2].
template <class T>
DEV void finish_row_to(half_t* out, const Epilogue& e, const EpilogueColumns& c, float (&v)[VECTOR], RowNorm norm, u128 residual, EpiloguePlace at) {
  finish_row<T>(e, c, v, norm, residual, at, [&](u128 stored) {
    size_t place = at.row * (size_t)at.n + at.column;
    if (at.inside) st_global_128(out + (e.gated ? place / 2 : place), stored);
  });
}
