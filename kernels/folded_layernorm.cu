// folded_layernorm.cu - what a layernorm folded into matrix products (epilogue.cuh says how) leaves to do: the one at the end
// that no product follows.
//
// layernorm_from_stats:  out = (y - mean) rstd gamma + beta
//   y, out [m, n] 16-bit (may be the same), row_stats [m, ceil(n / 64), 2] f32 as the epilogue writes them, gamma, beta [n]
//   f32. n a multiple of 8. Grid ceil(m / 8), block 256: a warp a row. Bound by 4 m n bytes.
#include "epilogue.cuh"

constexpr int FROM_STATS_WARPS = 8;  // a block; one row each, so any small number does

template <class T>
DEV void layernorm_from_stats_row(const half_t* y, const float* row_stats, const float* gamma, const float* beta, half_t* out, int m, int n, float eps) {
  int row = blockIdx.x * FROM_STATS_WARPS + (threadIdx.x >> 5), lane = threadIdx.x & 31;
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

#define LAYERNORM_FROM_STATS(suffix, T)                                                                                        \
  KERNEL(32 * FROM_STATS_WARPS, layernorm_from_stats_##suffix, const half_t* y, const float* row_stats, const float* gamma,    \
         const float* beta, half_t* out, int m, int n, float eps) {                                                            \
    layernorm_from_stats_row<T>(y, row_stats, gamma, beta, out, m, n, eps);                                                    \
  }
LAYERNORM_FROM_STATS(f16, F16)
LAYERNORM_FROM_STATS(bf16, BF16)
