// attention_warp.cuh - what a warp of attention.cu does with a tile of queries and a tile of keys, and how these lie in shared
// memory; attention_hopper.cu uses what does not depend on the instruction. Knows nothing of sequences' places, work lists or stages.
//
// All loops over arrays are unrolled and all indices constant: everything here lives in registers. M counts 16 query rows, G
// 16 keys, D is the head size, ROW_BYTES that of a row in shared memory (more than 2 D where two heads lie side by side).
#pragma once
#include "numeric.cuh"

namespace attention {
constexpr int THREADS = 128, WARPS = 4, LANES = 32;
constexpr int GROUP = 16;       // keys that one m16n8k16 product of weights and values sums over
constexpr float MINUS_INFINITY = -__builtin_inff();
// The maximum of no scores: below every real one, finite so that -inf (masked) minus it is -inf and not NaN.
constexpr float NO_MAXIMUM = -1e30f;
constexpr float MAXIMUM_LAG = 8;  // so weights reach 2^8, and fp16 ends at 2^16

// ---- shared memory: rows of 64, 128 or 256 bytes, in 16-byte chunks ------------------------------------------------------
// Chunk c of row r lies at c ^ phase(r), so that eight rows that ldmatrix reads at once, or eight lanes that copy, are in
// eight different 16-byte columns of the 128-byte wide memory. Rows of 64 bytes: two share a line of it. The phase repeats
// after 8 rows, and tiles start at multiples of 1024 bytes: so + 16 ROW_BYTES moves an address 16 rows down, and chunk_pair
// moves it 2 k chunks to the right, whatever its row.
template <int ROW_BYTES> DEV saddr swizzled(int row, int chunk) {
  int phase = ROW_BYTES == 64 ? (row >> 1) & 3 : row & 7;
  return (saddr)(row * ROW_BYTES + ((chunk ^ phase) << 4));
}
DEV saddr chunk_pair(saddr lane_address, int k) { return (lane_address ^ (32 * (k % 4))) + 128 * (k / 4); }
// What a lane hands ldmatrix. Q as operand A and, transposed, V as operand B: matrices (rows 0-7, 8-15) x (chunks 0, 1)
// with rows varying first. K as operand B: chunks varying first.
template <int ROW_BYTES> DEV saddr row_major_lane(int lane) { return swizzled<ROW_BYTES>(lane & 15, lane >> 4); }
template <int ROW_BYTES> DEV saddr chunk_major_lane(int lane) {
  return swizzled<ROW_BYTES>((lane & 7) + ((lane >> 4) << 3), (lane >> 3) & 1);
}

// A thread copies always the same chunk of a row, of rows a multiple of 8 apart, so that their phase is the same.
template <int ROW_BYTES> struct CopyLane {
  static constexpr int CHUNKS = ROW_BYTES / 16, ROW_STEP = THREADS / CHUNKS;
  static_assert(ROW_STEP % 8 == 0, "phase");
  DEV_MEMBER int row() { return threadIdx.x / CHUNKS; }
  DEV_MEMBER int chunk() { return threadIdx.x % CHUNKS; }
  DEV_MEMBER saddr offset() { return swizzled<ROW_BYTES>(row(), chunk()); }
};
// Copies ROWS rows. `to` and `from` are the thread's own, in the first row; rows_left counts from there to the end of the
// sequence: what is beyond becomes zeros and is not read.
template <int ROW_BYTES, int ROWS> DEV void copy_rows(saddr to, const half_t* from, int stride, int rows_left) {
#pragma unroll
  for (int r = 0; r < ROWS; r += CopyLane<ROW_BYTES>::ROW_STEP)
    cp_async_16(to + r * ROW_BYTES, from + r * stride, r < rows_left);
}

// ---- one warp: M x 16 query rows against G x 16 keys ---------------------------------------------------------------------
// A lane holds of each 16x8 accumulator: rows lane / 4 and + 8, columns 2 (lane % 4) and + 1.
template <int D, int M> struct Queries { uint32_t fragment[M][D / 16][4]; };
template <int M, int G> struct Scores { float v[M][2 * G][4]; };
template <int D, int M> struct Output {
  float v[M][D / 8][4];
  float sum[M][4];  // of the weights, in every column
};

template <int D, int M, int ROW_BYTES> DEV void load_queries(Queries<D, M>& q, saddr lane_address) {
#pragma unroll
  for (int m = 0; m < M; m++)
#pragma unroll
    for (int k = 0; k < D / 16; k++) ldmatrix_x4(q.fragment[m][k], chunk_pair(lane_address, k) + m * 16 * ROW_BYTES);
}
template <int D, int M> DEV void clear(Output<D, M>& o) {
#pragma unroll
  for (int m = 0; m < M; m++)
#pragma unroll
    for (int i = 0; i < 4; i++) {
      o.sum[m][i] = 0;
#pragma unroll
      for (int j = 0; j < D / 8; j++) o.v[m][j][i] = 0;
    }
}
// s = Q K^T for the first `groups` groups, 0 for the others.
template <class T, int ROW_BYTES, int D, int M, int G>
DEV void multiply_keys(Scores<M, G>& s, const Queries<D, M>& q, saddr lane_address, int groups) {
#pragma unroll
  for (int g = 0; g < G; g++) {
#pragma unroll
    for (int m = 0; m < M; m++)
#pragma unroll
      for (int i = 0; i < 4; i++) s.v[m][2 * g][i] = s.v[m][2 * g + 1][i] = 0;
    if (g >= groups) continue;
#pragma unroll
    for (int k = 0; k < D / 16; k++) {
      uint32_t b[4];
      ldmatrix_x4(b, chunk_pair(lane_address, k) + g * GROUP * ROW_BYTES);
#pragma unroll
      for (int m = 0; m < M; m++) {
        T::mma(s.v[m][2 * g], q.fragment[m][k], b[0], b[1]);
        T::mma(s.v[m][2 * g + 1], q.fragment[m][k], b[2], b[3]);
      }
    }
  }
}
// `window` is where the lane finds the bias of its first key and query; it goes up with the key and down with the query. Eight
// keys on and eight queries on cancel, so a lane reads 2 values for each 8 keys.
template <int M, int G> DEV void add_bias(Scores<M, G>& s, saddr window) {
#pragma unroll
  for (int m = 0; m < M; m++)
#pragma unroll
    for (int e = 0; e < 2; e++) {
      float eight_before = ld_shared_f32(window + 4 * (e - 16 * m - 8));
#pragma unroll
      for (int j = 0; j < 2 * G; j++) {
        float here = ld_shared_f32(window + 4 * (e - 16 * m + 8 * j));
        s.v[m][j][e] += here;
        s.v[m][j][2 + e] += eight_before;
        eight_before = here;
      }
    }
}
// Scores of keys that a query does not see become -inf. `key` and `query` are the lane's first ones.
template <int M, int G> DEV void mask(Scores<M, G>& s, int key, int query, int reach, int tokens) {
#pragma unroll
  for (int m = 0; m < M; m++)
#pragma unroll
    for (int h = 0; h < 2; h++) {
      int low = query + 16 * m + 8 * h - reach, high = min(query + 16 * m + 8 * h + reach, tokens - 1);
#pragma unroll
      for (int j = 0; j < 2 * G; j++)
#pragma unroll
        for (int e = 0; e < 2; e++)
          if ((uint32_t)(key + 8 * j + e - low) > (uint32_t)(high - low)) s.v[m][j][2 * h + e] = MINUS_INFINITY;
    }
}
template <int M, int G> DEV float row_maximum(const Scores<M, G>& s, int m, int h) {
  float v = fmaxf(s.v[m][0][2 * h], s.v[m][0][2 * h + 1]);
#pragma unroll
  for (int j = 1; j < 2 * G; j++) v = fmaxf(v, fmaxf(s.v[m][j][2 * h], s.v[m][j][2 * h + 1]));
  return quad_max(v);
}
// Lets maxima follow the scores. If a maximum changes, `factor` is what sums with the old ones are to be multiplied by.
template <int M, int G> DEV bool follow_maxima(float (&maximum)[M][2], float (&factor)[M][2], const Scores<M, G>& s) {
  float seen[M][2];
  bool lags = false;
#pragma unroll
  for (int m = 0; m < M; m++)
#pragma unroll
    for (int h = 0; h < 2; h++) {
      seen[m][h] = row_maximum(s, m, h);
      lags = lags || seen[m][h] - maximum[m][h] > MAXIMUM_LAG;
    }
  if (!lags) return false;
#pragma unroll
  for (int m = 0; m < M; m++)
#pragma unroll
    for (int h = 0; h < 2; h++) {
      // each row by its own lag, though others made the branch be taken: its bits must not depend on them
      float next = seen[m][h] - maximum[m][h] > MAXIMUM_LAG ? seen[m][h] : maximum[m][h];
      factor[m][h] = ex2_approx(maximum[m][h] - next);
      maximum[m][h] = next;
    }
  return true;
}
template <int D, int M> DEV void rescale(Output<D, M>& o, const float (&factor)[M][2]) {
#pragma unroll
  for (int m = 0; m < M; m++)
#pragma unroll
    for (int h = 0; h < 2; h++) {
      o.sum[m][2 * h] *= factor[m][h];
#pragma unroll
      for (int j = 0; j < D / 8; j++) { o.v[m][j][2 * h] *= factor[m][h]; o.v[m][j][2 * h + 1] *= factor[m][h]; }
    }
}
// o += 2^(s - maximum) V, for the first `groups` groups. Accumulators of scores are operands A of the next product as they lie.
template <class T, int ROW_BYTES, int D, int M, int G>
DEV void multiply_values(Output<D, M>& o, const Scores<M, G>& s, const float (&maximum)[M][2], saddr lane_address, int groups) {
  const uint32_t ones = T::pack(1, 1);
#pragma unroll
  for (int g = 0; g < G; g++) {
    if (g >= groups) continue;
    uint32_t weights[M][4];
#pragma unroll
    for (int m = 0; m < M; m++) {
#pragma unroll
      for (int i = 0; i < 4; i++) {  // rows +0, +8 of keys 0-7, then of keys 8-15
        const float* pair = &s.v[m][2 * g + i / 2][i % 2 * 2];
        weights[m][i] = T::pack(ex2_approx(pair[0] - maximum[m][i % 2]), ex2_approx(pair[1] - maximum[m][i % 2]));
      }
      T::mma(o.sum[m], weights[m], ones, ones);
    }
#pragma unroll
    for (int j = 0; j < D / 16; j++) {
      uint32_t b[4];
      ldmatrix_x4_trans(b, chunk_pair(lane_address, j) + g * GROUP * ROW_BYTES);
#pragma unroll
      for (int m = 0; m < M; m++) {
        T::mma(o.v[m][2 * j], weights[m], b[0], b[1]);
        T::mma(o.v[m][2 * j + 1], weights[m], b[2], b[3]);
      }
    }
  }
}
// out = o / sum, by way of this warp's own rows of shared memory, so that they are stored 16 bytes a lane.
template <class T, int ROW_BYTES, int D, int M>
DEV void stage_output(const Output<D, M>& o, saddr rows, int lane, int chunk) {
#pragma unroll
  for (int m = 0; m < M; m++)
#pragma unroll
    for (int h = 0; h < 2; h++) {
      float scale = rcp_approx(o.sum[m][2 * h]);
      saddr row = rows + swizzled<ROW_BYTES>(16 * m + 8 * h + (lane >> 2), 0) + 4 * (lane & 3);
#pragma unroll
      for (int j = 0; j < D / 8; j++)
        st_shared_32(row ^ ((chunk + j) << 4), T::pack(o.v[m][j][2 * h] * scale, o.v[m][j][2 * h + 1] * scale));
    }
}
template <int ROW_BYTES, int ROWS>
DEV void store_rows(half_t* out, size_t stride, saddr rows, int lane, int valid_rows, int valid_chunks) {
  constexpr int CHUNKS = ROW_BYTES / 16, STEP = LANES / CHUNKS;
  const int chunk = lane % CHUNKS;
#pragma unroll
  for (int r = 0; r < ROWS; r += STEP) {
    int row = r + lane / CHUNKS;
    u128 v = ld_shared_128(rows + swizzled<ROW_BYTES>(row, chunk));
    if (row < valid_rows && chunk < valid_chunks) st_global_128(out + (size_t)row * stride + chunk * VECTOR, v);
  }
}
}  // namespace attention
