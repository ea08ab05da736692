// residual_layernorm.cu - the norm after each half of an encoder layer.
//
// Formula     out = norm(x + residual), the sum in fp32, not rounded before the norm (rows.cuh: corrected two-pass). A row
//             whose statistics gemm's epilogue has left is finished by folded_layernorm.cu instead
// Arguments   x, residual, out [rows / parts, stride] 16 bit, whose first parts * hidden columns are as many rows side by side:
//             parts = 1 and stride = hidden for plain rows; 2 and 3 hidden for queries and keys beside their values, each row
//             over all heads. residual may be null; out may be x or residual itself, not a shifted view of them
//             gamma, beta [parts, hidden] f32, each may be null (ones, zeros); eps
//             norm: ROW_LAYERNORM or ROW_RMSNORM (RowNormKind)
// Limits      hidden, stride multiples of 8, hidden at most what the variant's name says; 16-byte aligned rows
// Launch      _h512, _h1024: grid ceil(rows / 4), 128 threads, a warp a row
//             _h8192: grid rows, 256 threads, a block a row. No dynamic shared memory
// Bound by    memory: 6 hidden bytes a row with a residual, 4 without
// Method      Chan, Golub, LeVeque, "Algorithms for computing the sample variance", 1983
#include "rows.cuh"

template <class T, int VECTORS, int WARPS>
DEV void residual_layernorm(const half_t* x, const half_t* residual, RowAffine affine, half_t* out, int rows, int hidden,
                            int parts, int stride, float eps, int norm) {
  SMEM_ARRAY(float, scratch, 2 * WARPS);
  int row = row_index<WARPS>();
  if (row >= rows) return;  // a whole warp, or nobody: no barrier is missed
  const int place = row / parts, part = (row - place * parts) * hidden;
  const size_t start = (size_t)place * stride + part;
  if (affine.gamma) affine.gamma += part;
  if (affine.beta) affine.beta += part;
  auto lane_affine = LaneAffine<VECTORS, WARPS>::early(affine, hidden);
  griddep_wait();
  u128 raw_x[VECTORS], raw_residual[VECTORS];
  load_row<VECTORS, WARPS>(raw_x, x + start, hidden);
  load_row<VECTORS, WARPS>(raw_residual, residual ? residual + start : nullptr, hidden);
  griddep_launch();
  float v[VECTORS][VECTOR] = {};
  add_row<T>(v, raw_x);
  add_row<T>(v, raw_residual);
  RowScale s = centre<VECTORS, WARPS>(v, hidden, eps, (RowNormKind)norm, scratch);
  store_scaled<T>(out + start, v, hidden, s, lane_affine);
}

#define RESIDUAL_LAYERNORM(name, threads, min_blocks, T, VECTORS, WARPS)                                             \
  KERNEL_MIN_BLOCKS(threads, min_blocks, name, const half_t* x, const half_t* residual, const float* gamma,         \
                    const float* beta, half_t* out, int rows, int hidden, int parts, int stride, float eps, int norm) { \
    residual_layernorm<T, VECTORS, WARPS>(x, residual, RowAffine{gamma, beta}, out, rows, hidden, parts, stride, eps, norm); \
  }
ROW_KERNEL_SIZES(RESIDUAL_LAYERNORM, residual_layernorm, f16, F16)
ROW_KERNEL_SIZES(RESIDUAL_LAYERNORM, residual_layernorm, bf16, BF16)
