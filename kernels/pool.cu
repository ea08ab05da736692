// pool.cu - token vectors to sentence vectors, one launch for the batch; and the normalisation of finished vectors.
//
// Formula     over the n - s tokens of a sequence that are left when its first s are left out:
//             mean sum x / (n - s) · mean_sqrt_len sum x / sqrt(n - s) · max · cls: the first · last: the last
//             weighted_mean sum w x / sum w, w = 1 for the sequence's first token, 2 for the next, ... (left out or not,
//             as sentence-transformers counts). A sequence with no token left gives zeros.
//             then, if `normalize`, y / max(|y|, 1e-12)
// Arguments   x [total_tokens, hidden] 16 bit; cu_seqlens [batch + 1] int32; left_out [batch] int32, may be null (s = 0)
//             out [batch, out_stride], f32, or 16 bit if `half_out`; written: columns out_column ... + hidden of each row, so
//             that several modes stand side by side (then normalize = 0, and l2_normalize follows)
//             status [batch, gridDim.y] int32, may be null: how many of the values written are NaN or Inf, 0 in a good row;
//             all of them where the norm does not fit fp32
// Limits      hidden, out_stride, out_column multiples of 8; at most 16,384 tokens a sequence; block_columns a multiple of 128
//             (POOL_COLUMNS), at most 2,048; normalize only with one block a sequence (block_columns >= hidden)
// Launch      grid (batch, ceil(hidden / block_columns)), 384 threads, 16 block_columns bytes of dynamic shared memory.
//             l2_normalize: grid ceil(rows / 4), 128 threads, a warp a row
// Bound by    memory: 2 hidden bytes a token; at a few short sequences by latency: one round of loads, one barrier, the norm
// Method      Eight partial sums a column, token t - s in part (t - s) mod 8, merged in a fixed order: the bits depend on the
//             sequence alone, neither on the batch nor on how columns are dealt to blocks. fp32 throughout: fp16 prefix sums
//             over the batch are known to lose 0.2-0.3 points of STS. Segments as in sentence-transformers' Pooling
#pragma once
#include "numeric.cuh"

enum Pooling { POOL_MEAN, POOL_CLS, POOL_MAX, POOL_MEAN_SQRT_LEN, POOL_WEIGHTED_MEAN, POOL_LAST };

constexpr int POOL_THREADS = 384;     // at hidden 384 each warp has one part of one group of columns; 768: two
constexpr int POOL_COLUMNS = 128;          // a group: 16 lanes of 16 bytes, two whole lines; divides 384, 768 and 1,024
constexpr int POOL_PARTS = 8;              // partial sums a column; two of them in a warp, one in each of its halves
constexpr int POOL_LOADS = 4;          // loads a lane issues at once: 24 KiB a block, 32 tokens in one round
constexpr float POOL_LOWEST = -3.402823466e38f;

struct PooledTokens { int first, begin, end; };  // of the sequence; of what is pooled

DEV PooledTokens pooled_tokens(int first, int end, int left_out, int mode) {
  PooledTokens t{first, first + left_out, end};
  if (t.begin >= t.end) t.begin = t.end;
  else if (mode == POOL_CLS) t.end = t.begin + 1;
  else if (mode == POOL_LAST) t.begin = t.end - 1;
  return t;
}
DEV float pool_divisor(PooledTokens t, int mode) {
  int count = t.end - t.begin, skipped = t.begin - t.first, length = t.end - t.first;
  if (count == 0) return 1;
  if (mode == POOL_MEAN_SQRT_LEN) return sqrtf((float)count);
  if (mode == POOL_WEIGHTED_MEAN) return (float)((length * (length + 1) - skipped * (skipped + 1)) / 2);
  return (float)count;
}

// One part of eight columns: tokens begin + part, begin + part + 8, ... in that order, however many loads are in flight.
// `values(token, raw, v)` makes of what lies there what is pooled.
template <bool MAX, class V>
DEV void pool_part(const half_t* column, int hidden, PooledTokens t, int part, bool weighted, float (&acc)[VECTOR], V values) {
#pragma unroll
  for (int e = 0; e < VECTOR; e++) acc[e] = MAX ? POOL_LOWEST : 0.0f;
  for (int token = t.begin + part; token < t.end; token += POOL_PARTS * POOL_LOADS) {
    u128 raw[POOL_LOADS];
#pragma unroll
    for (int u = 0; u < POOL_LOADS; u++)
      if (token + u * POOL_PARTS < t.end) raw[u] = ld_global_128(column + (size_t)(token + u * POOL_PARTS) * hidden);
#pragma unroll
    for (int u = 0; u < POOL_LOADS; u++)
      if (token + u * POOL_PARTS < t.end) {
        float v[VECTOR], weight = weighted ? (float)(token + u * POOL_PARTS - t.first + 1) : 1.0f;
        values(token + u * POOL_PARTS, raw[u], v);
#pragma unroll
        for (int e = 0; e < VECTOR; e++) acc[e] = MAX ? max_keeping_nan(acc[e], v[e]) : fmaf(weight, v[e], acc[e]);
      }
  }
}
template <bool MAX> DEV float pool_join(float a, float b) { return MAX ? max_keeping_nan(a, b) : a + b; }

// Parts 2p and 2p + 1, joined, go to partial [POOL_PARTS / 2, block_columns] row p. `values_at(column)`: see pool_part.
template <bool MAX, int THREADS, class V>
DEV void pool_columns(const half_t* x, int hidden, int first_column, int block_columns, PooledTokens t, bool weighted, saddr partial, V values_at) {
  int lane = threadIdx.x & 31, half = lane >> 4;
  for (int item = threadIdx.x >> 5; item < POOL_PARTS / 2 * (block_columns / POOL_COLUMNS); item += THREADS / 32) {
    int pair = item % (POOL_PARTS / 2), local = item / (POOL_PARTS / 2) * POOL_COLUMNS + (lane & 15) * VECTOR;
    float acc[VECTOR] = {};
    bool inside = first_column + local < hidden;
    if (inside) pool_part<MAX>(x + first_column + local, hidden, t, 2 * pair + half, weighted, acc, values_at(first_column + local));
#pragma unroll
    for (int e = 0; e < VECTOR; e++) acc[e] = pool_join<MAX>(acc[e], shfl_xor(acc[e], 16));
    if (inside) {  // each half of the warp stores four of each lane's eight columns: which, so that no two lanes meet in a bank
      int high = half ^ (lane >> 2 & 1);
      u128 quad = high ? f32_quad(acc[4], acc[5], acc[6], acc[7]) : f32_quad(acc[0], acc[1], acc[2], acc[3]);
      st_shared_128(partial + (pair * block_columns + local + 4 * high) * sizeof(float), quad);
    }
  }
}

DEV void unpack_quad(u128 q, float (&v)[4]) {
  v[0] = f32_from_bits(q.x); v[1] = f32_from_bits(q.y); v[2] = f32_from_bits(q.z); v[3] = f32_from_bits(q.w);
}
// Joins the four rows of partial into the first one, and divides.
template <bool MAX, int THREADS> DEV void join_pool_parts(saddr partial, int columns, int block_columns, float divide_by) {
  for (int c = threadIdx.x * 4; c < columns; c += THREADS * 4) {
    float v[POOL_PARTS / 2][4];
#pragma unroll
    for (int p = 0; p < POOL_PARTS / 2; p++) unpack_quad(ld_shared_128(partial + (p * block_columns + c) * sizeof(float)), v[p]);
#pragma unroll
    for (int e = 0; e < 4; e++) v[0][e] = pool_join<MAX>(pool_join<MAX>(v[0][e], v[1][e]), pool_join<MAX>(v[2][e], v[3][e])) / divide_by;
    st_shared_128(partial + c * sizeof(float), f32_quad(v[0][0], v[0][1], v[0][2], v[0][3]));
  }
}

// What a warp finds out about a finished row of f32: the divisor of the normalisation (1 without) and how many values are not
// finite, as they will be stored. `load(c)` gives columns c ... c + 3. Every warp of a block does the same, so that none waits.
struct RowFacts { float norm; int bad; };
template <class T, class Load> DEV RowFacts inspect_row(int columns, bool normalize, bool half_out, Load load) {
  float squares = 0, bad = 0;
  for (int c = (threadIdx.x & 31) * 4; c < columns; c += 128) {
    float v[4];
    unpack_quad(load(c), v);
#pragma unroll
    for (int e = 0; e < 4; e++) {
      squares = fmaf(v[e], v[e], squares);
      bad += is_finite(half_out && !normalize ? T::to_f32(T::from_f32(v[e])) : v[e]) ? 0.0f : 1.0f;
    }
  }
  squares = warp_sum(squares);
  bad = warp_sum(bad);
  if (!normalize) return RowFacts{1, (int)bad};
  if (!is_finite(squares)) return RowFacts{squares - squares, columns};  // NaN: the whole row is lost
  return RowFacts{fmaxf(sqrtf(squares), 1e-12f), 0};
}
template <class T> DEV void store_pooled(void* out, size_t at, bool half_out, const float (&v)[4]) {
  if (half_out) st_global_64((half_t*)out + at, u64x{T::pack(v[0], v[1]), T::pack(v[2], v[3])});
  else st_global_128((float*)out + at, f32_quad(v[0], v[1], v[2], v[3]));
}

struct PoolOutput { void* vectors; int normalize, half, stride, column; };  // as in the kernel's arguments

// `columns` of them from first_column on, of one sequence, by the whole block; partial: shared memory for 4 block_columns floats.
// `values_at`: see pool_part; `loaded` is called when all of x has been read. The number of values that are not finite comes back.
template <class T, int THREADS, bool HAS_MAX, class V, class F>
DEV int pool_sequence(const half_t* x, int sequence, PooledTokens t, int hidden, int first_column, int block_columns, int mode,
                      const PoolOutput& out, saddr partial, V values_at, F loaded) {
  int columns = hidden - first_column < block_columns ? hidden - first_column : block_columns;
  float divide_by = pool_divisor(t, mode);
  bool max = HAS_MAX && mode == POOL_MAX && t.begin < t.end;  // the maximum of nothing: 0, as the sum of nothing
  if (max) pool_columns<true, THREADS>(x, hidden, first_column, block_columns, t, false, partial, values_at);
  else pool_columns<false, THREADS>(x, hidden, first_column, block_columns, t, mode == POOL_WEIGHTED_MEAN, partial, values_at);
  loaded();
  sync_block();
  if (max) join_pool_parts<true, THREADS>(partial, columns, block_columns, 1.0f);
  else join_pool_parts<false, THREADS>(partial, columns, block_columns, divide_by);
  sync_block();

  auto load = [&](int c) { return ld_shared_128(partial + c * sizeof(float)); };
  RowFacts facts = inspect_row<T>(columns, out.normalize, out.half, load);
  size_t start = (size_t)sequence * out.stride + out.column + first_column;
  for (int c = threadIdx.x * 4; c < columns; c += THREADS * 4) {
    float v[4];
    unpack_quad(load(c), v);
#pragma unroll
    for (int e = 0; e < 4; e++) v[e] = v[e] / facts.norm;
    store_pooled<T>(out.vectors, start + c, out.half, v);
  }
  return facts.bad;
}

template <class T>
DEV void pool(const half_t* x, const int* cu_seqlens, const int* left_out, int* status, int hidden, int block_columns, int mode,
              const PoolOutput& out) {
  SMEM_DYN(pool_shared);
  griddep_wait();
  const int sequence = blockIdx.x;
  PooledTokens t = pooled_tokens(cu_seqlens[sequence], cu_seqlens[sequence + 1], left_out ? left_out[sequence] : 0, mode);
  auto as_they_are = [](int) { return [](int, u128 raw, float (&v)[VECTOR]) { unpack8<T>(raw, v); }; };
  int bad = pool_sequence<T, POOL_THREADS, true>(x, sequence, t, hidden, blockIdx.y * block_columns, block_columns, mode, out,
                                                 smem_addr(pool_shared), as_they_are, [] { griddep_launch(); });
  if (status && threadIdx.x == 0) status[blockIdx.x * gridDim.y + blockIdx.y] = bad;
}

// y / max(|y|, 1e-12) of finished rows. y [rows, y_stride] f32, the first `columns` of each; out [rows, out_stride] f32 or, if
// half_out, 16 bit; out may be y. status [rows] int32, may be null, as above. columns and strides multiples of 4.
template <class T>
DEV void l2_normalize(const float* y, void* out, int* status, int rows, int columns, int y_stride, int out_stride, int half_out) {
  int row = blockIdx.x * 4 + (threadIdx.x >> 5), lane = threadIdx.x & 31;
  if (row >= rows) return;
  griddep_wait();
  const float* y_row = y + (size_t)row * y_stride;
  auto load = [&](int c) { return ld_global_128(y_row + c); };
  RowFacts facts = inspect_row<T>(columns, true, half_out, load);
  for (int c = lane * 4; c < columns; c += 128) {
    float v[4];
    unpack_quad(load(c), v);
#pragma unroll
    for (int e = 0; e < 4; e++) v[e] = v[e] / facts.norm;
    store_pooled<T>(out, (size_t)row * out_stride + c, half_out, v);
  }
  if (status && lane == 0) status[row] = facts.bad;
}

#define POOL(suffix, T)                                                                                                        \
  KERNEL(POOL_THREADS, pool_##suffix, const half_t* x, const int* cu_seqlens, const int* left_out, void* out, int* status,      \
         int hidden, int block_columns, int mode, int normalize, int half_out, int out_stride, int out_column) {                \
    pool<T>(x, cu_seqlens, left_out, status, hidden, block_columns, mode, PoolOutput{out, normalize, half_out, out_stride, out_column}); \
  }                                                                                                                             \
  KERNEL(128, l2_normalize_##suffix, const float* y, void* out, int* status, int rows, int columns, int y_stride, int out_stride, \
         int half_out) {                                                                                                        \
    l2_normalize<T>(y, out, status, rows, columns, y_stride, out_stride, half_out);                                             \
  }
POOL(f16, F16)
POOL(bf16, BF16)
