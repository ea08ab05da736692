// folded_layernorm.cu - the two small kernels that a layernorm folded into matrix products needs (epilogue.cuh says how it
// is folded): its weights, once at load, and the one layernorm at the end that no product follows.
//
// fold_layernorm:        w_folded[n, k] = round(gamma[k] w[n, k])     16-bit
//                        colsum[n] = sum_k w_folded[n, k]             f32: of the rounded values, so that a row's mean cancels
//                        bias_folded[n] = bias[n] + sum_k beta[k] w[n, k]
//   w [n, k] f32 as in the checkpoint (rounded once, after gamma), gamma, beta [k] f32, bias [n] f32 or null.
//   k a multiple of 8, pointers 16-byte aligned. Grid ceil(n / 8), block 256: a warp a row. Bound by reading w; once a load.
// layernorm_from_stats:  out = (y - mean) rstd gamma + beta
//   y, out [m, n] 16-bit (may be the same), row_stats [m, ceil(n / 64), 2] f32 as the epilogue writes them, gamma, beta [n]
//   f32. n a multiple of 8. Grid ceil(m / 8), block 256: a warp a row. Bound by 4 m n bytes.
#include "epilogue.cuh"

constexpr int FOLD_WARPS = 8;  // a block; one row each, so any small number does

template <class T>
DEV void fold_layernorm_row(const float* w, const float* gamma, const float* beta, const float* bias, half_t* w_folded, float* colsum,
                            float* bias_folded, int n, int k) {
  int row = blockIdx.x * FOLD_WARPS + (threadIdx.x >> 5), lane = threadIdx.x & 31;
  if (row >= n) return;
  const size_t start = (size_t)row * (size_t)k;
  float sum = 0, shift = 0;
  for (int column = lane * VECTOR; column < k; column += 32 * VECTOR) {
    float x[VECTOR], g[VECTOR], b[VECTOR];
    load8_f32_nc(w + start + column, x);
    load8_f32_nc(gamma + column, g);
    load8_f32_nc(beta + column, b);
#pragma unroll
    for (int i = 0; i < VECTOR; i++) {
      b[i] *= x[i];
      g[i] *= x[i];
    }
    u128 stored = pack8<T>(g);
    st_global_128(w_folded + start + column, stored);
    unpack8<T>(stored, g);
    sum += sum8(g);
    shift += sum8(b);
  }
  sum = warp_sum(sum);
  shift = warp_sum(shift);
  if (lane == 0) {
    colsum[row] = sum;
    bias_folded[row] = bias ? bias[row] + shift : shift;
  }
}

template <class T>
DEV void layernorm_from_stats_row(const half_t* y, const float* row_stats, const float* gamma, const float* beta, half_t* out, int m, int n, float eps) {
  int row = blockIdx.x * FOLD_WARPS + (threadIdx.x >> 5), lane = threadIdx.x & 31;
  if (row >= m) return;
  griddep_wait();
  const size_t start = (size_t)row * (size_t)n;
  RowNorm norm = merge_row_stats(row_stats + (size_t)row * (size_t)(2 * ((n + SEGMENT - 1) / SEGMENT)), n, eps);
  for (int column = lane * VECTOR; column < n; column += 32 * VECTOR) {
    float v[VECTOR], g[VECTOR], b[VECTOR];
    load8<T>(y + start + column, v);
    load8_f32_nc(gamma + column, g);
    load8_f32_nc(beta + column, b);
#pragma unroll
    for (int i = 0; i < VECTOR; i++) v[i] = fmaf((v[i] - norm.mean) * norm.rstd, g[i], b[i]);
    store8<T>(out + start + column, v);
  }
}

#define FOLDED_LAYERNORM(suffix, T)                                                                                               \
  KERNEL(32 * FOLD_WARPS, fold_layernorm_##suffix, const float* w, const float* gamma, const float* beta, const float* bias,      \
         half_t* w_folded, float* colsum, float* bias_folded, int n, int k) {                                                     \
    fold_layernorm_row<T>(w, gamma, beta, bias, w_folded, colsum, bias_folded, n, k);                                             \
  }                                                                                                                               \
  KERNEL(32 * FOLD_WARPS, layernorm_from_stats_##suffix, const half_t* y, const float* row_stats, const float* gamma,             \
         const float* beta, half_t* out, int m, int n, float eps) {                                                               \
    layernorm_from_stats_row<T>(y, row_stats, gamma, beta, out, m, n, eps);                                                       \
  }
FOLDED_LAYERNORM(f16, F16)
FOLDED_LAYERNORM(bf16, BF16)
