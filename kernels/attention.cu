// attention.cu - non-causal multi-head attention over packed sequences, scores never leaving registers; mma.sync, sm_80 and up.
//
//   out[i] = sum_j 2^s(i,j) v[j] / sum_j 2^s(i,j)      s(i,j) = q[i] . k[j] + bias[head][clamp(j - i, -radius, radius)]
//   over the j of i's own sequence, with a window only |j - i| <= window_half; for each head
//
// qkv    [total_tokens, 3 num_heads head_dim] 16-bit: q, k, v of all heads, each num_heads head_dim wide. q and bias arrive
//        multiplied by log2(e) (q by 1/sqrt(head_dim) too), so that the exponent is base 2.
// out    [total_tokens, num_heads head_dim] 16-bit.
// tiles  the work list, from the host: int4 {first row of the sequence, its tokens, first query of this tile, 0}; see below.
// bias   [num_heads, 2 bias_radius + 1] f32 or null. MPNet's and T5's buckets and ALiBi are all such lines.
// window_half: 0 or less means no window.
// Limits: head_dim 32, 64 or 128; a sequence has 1 to 2^30 tokens; pointers 16-byte aligned.
//
// Work list. It needs no order for correctness; the host sorts sequences by length, longest first (stable), so that the
// last blocks to start are small ones. An entry with 0 tokens is skipped: lists may be padded for a captured graph.
//   stream (any length): for each sequence, an entry at every QUERY_ROWS-th query. A block is one entry and one head.
//   short (1-64 tokens): for each sequence, an entry at every 16th query; a block is four entries ("slots") and
//     HEADS_PER_BLOCK heads. A sequence's entries stand side by side, in order, in one group of four.
// Launch: grid (entries / TILES_PER_BLOCK) ceil(num_heads / HEADS_PER_BLOCK), heads varying fastest; block and dynamic
// shared memory by the table at the end of this file, which is the only list of the kernels.
//
// Short path. A warp owns 16 query rows, all keys fit its registers, so the softmax has a single pass. Bound by memory: 8
// head_dim bytes a row and head against 4 tokens head_dim FLOPs, 32 FLOPs a byte at 64 tokens, where an A100 needs 200 and
// an H200 180 to be busy. A row is read in pieces of at least 128 bytes (head size 32: two heads a block). Waste: rounding to
// 16 rows. A block brings 24 KiB (head size 128: 48) in flight, and 4 to 9 blocks share a multiprocessor, which hides the
// latency without a pipeline inside the block. It ends at 64 tokens because 64 keys are 32 score registers a lane, and
// because a longer sequence has more than one block's rows, so that its keys would be read again. From there on the work
// grows with the square, the FLOPs bound it, and what matters is that a fragment of K or V from shared memory serves 32
// query rows instead of 16: the stream path.
// Stream path. FlashAttention-2's order: query rows stay, K and V pass by in tiles through two stages of cp.async, the
// softmax is online. 4 tokens^2 head_dim FLOPs and tokens^2 exponentials a head; 4 head_dim tokens^2 / QUERY_ROWS bytes from
// L2. At head size 32 the exponentials (16 a clock and multiprocessor) cost an A100 as much as the products, at 64 half.
//
// Numerics. Scores, maxima, sums and outputs are fp32. The weights 2^(s - max) are rounded to 16 bits for the product with
// V, and their sum is taken by the same tensor-core instruction from the same rounded weights (a column of ones beside
// V): then the weights that V meets add up to one exactly, their rounding errors are not a bias of the result, and rows of
// equal V come out unchanged. It costs 1 product in 5 to 17 and saves the shuffles, the unpacking and the adds.
// The maximum of the online softmax follows only when it lags by more than 8, so that outputs are rarely rescaled (as in
// FlashAttention-4): weights then reach 2^8, far from where fp16 ends, and the result is as exact.
// A row's bits depend on its sequence, the path and the head size only: not on its batch, its place or other heads.
// NaN and Inf stay in their sequence: rows beyond its end are zeros in shared memory, never a neighbour's. Within it they
// reach the output, as they should.
//
// Method: Dao, FlashAttention-2 (2023), section 3; lazy rescaling: FlashAttention-4 (2025).
#include "numeric.cuh"

namespace attention {
constexpr int THREADS = 128, WARPS = 4, LANES = 32;
constexpr int GROUP = 16;       // keys that one m16n8k16 product of weights and values sums over
constexpr int SLOTS = 4;        // entries of a short block, one a warp
constexpr int SLOT_ROWS = 16;
constexpr float MINUS_INFINITY = -__builtin_inff();
// The maximum of no scores: below every real one, finite so that -inf (masked) minus it is -inf and not NaN.
constexpr float NO_MAXIMUM = -1e30f;
constexpr float MAXIMUM_LAG = 8;

struct Problem {
  const half_t* qkv;
  half_t* out;
  const u128* tiles;
  int num_heads;
  const float* bias;
  int bias_radius, window_half;
};

struct Tile { int sequence_start, tokens, first_query; };
DEV Tile load_tile(const u128* entry) {
  u128 e = ld_global_nc_128(entry);
  return Tile{(int)e.x, (int)e.y, (int)e.z};
}
// How far a query sees: a window wider than the sequence is none.
DEV int reach_of(const Problem& p, int tokens) { return p.window_half > 0 ? min(p.window_half, tokens) : tokens; }

// ---- shared memory: rows of 64, 128 or 256 bytes, in 16-byte chunks ------------------------------------------------------
// Chunk c of row r lies at c ^ phase(r), so that eight rows that ldmatrix reads at once, or eight lanes that copy, are in
// eight different 16-byte columns of the 128-byte wide memory. Rows of 64 bytes: two share a line of it. The phase repeats
// after 8 rows, and tiles start at multiples of 1024 bytes: so + 16 ROW_BYTES moves an address 16 rows down, ^ 32 k moves it
// 2 k chunks to the right, for all k at once.
template <int ROW_BYTES> DEV saddr swizzled(int row, int chunk) {
  int phase = ROW_BYTES == 64 ? (row >> 1) & 3 : row & 7;
  return (saddr)(row * ROW_BYTES + ((chunk ^ phase) << 4));
}
DEV saddr chunk_pair(saddr lane_address, int k) { return (lane_address ^ (32 * (k % 4))) + 128 * (k / 4); }
// What a lane hands ldmatrix. Q as operand A and, transposed, V as operand B: matrices (rows 0-7, 8-15) x (chunks 0, 1)
// with rows varying first. K as operand B: chunks varying first.
template <int ROW_BYTES> DEV saddr row_major_lane(int lane) { return swizzled<ROW_BYTES>(lane & 15, lane >> 4); }
template <int ROW_BYTES> DEV saddr chunk_major_lane(int lane) { return swizzled<ROW_BYTES>((lane & 7) + ((lane >> 4) << 3), (lane >> 3) & 1); }

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
  for (int r = 0; r < ROWS; r += CopyLane<ROW_BYTES>::ROW_STEP) cp_async_16(to + r * ROW_BYTES, from + r * stride, r < rows_left);
}

// Copies a head's bias at COUNT distances from first_distance on. Clamped here, so that reading it is one plain load.
template <int COUNT> DEV void copy_bias(saddr to, const Problem& p, int head, int first_distance) {
  const float* middle = p.bias + (size_t)head * (size_t)(2 * p.bias_radius + 1) + p.bias_radius;
#pragma unroll
  for (int i = 0; i < COUNT; i += THREADS) {
    int at = i + threadIdx.x;
    if (COUNT % THREADS == 0 || at < COUNT) cp_async_4(to + 4 * at, middle + max(-p.bias_radius, min(p.bias_radius, first_distance + at)), true);
  }
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
template <class T, int ROW_BYTES, int D, int M, int G> DEV void multiply_keys(Scores<M, G>& s, const Queries<D, M>& q, saddr lane_address, int groups) {
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
// Lets maxima follow the scores, and scales what was summed with the old ones.
template <int D, int M, int G> DEV void follow_maxima(float (&maximum)[M][2], const Scores<M, G>& s, Output<D, M>& o) {
  float seen[M][2];
  bool lags = false;
#pragma unroll
  for (int m = 0; m < M; m++)
#pragma unroll
    for (int h = 0; h < 2; h++) {
      seen[m][h] = row_maximum(s, m, h);
      lags = lags || seen[m][h] - maximum[m][h] > MAXIMUM_LAG;
    }
  if (!lags) return;
#pragma unroll
  for (int m = 0; m < M; m++)
#pragma unroll
    for (int h = 0; h < 2; h++) {
      // each row by its own lag, though others made the branch be taken: its bits must not depend on them
      float next = seen[m][h] - maximum[m][h] > MAXIMUM_LAG ? seen[m][h] : maximum[m][h];
      float factor = ex2_approx(maximum[m][h] - next);
      maximum[m][h] = next;
      o.sum[m][2 * h] *= factor;
#pragma unroll
      for (int j = 0; j < D / 8; j++) { o.v[m][j][2 * h] *= factor; o.v[m][j][2 * h + 1] *= factor; }
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
// out = o / sum, through this warp's own rows of shared memory.
template <class T, int ROW_BYTES, int D, int M> DEV void stage_output(const Output<D, M>& o, saddr rows, int lane, int chunk) {
#pragma unroll
  for (int m = 0; m < M; m++)
#pragma unroll
    for (int h = 0; h < 2; h++) {
      float scale = rcp_approx(o.sum[m][2 * h]);
      saddr row = rows + swizzled<ROW_BYTES>(16 * m + 8 * h + (lane >> 2), 0) + 4 * (lane & 3);
#pragma unroll
      for (int j = 0; j < D / 8; j++) st_shared_32(row ^ ((chunk + j) << 4), T::pack(o.v[m][j][2 * h] * scale, o.v[m][j][2 * h + 1] * scale));
    }
}
template <int ROW_BYTES, int ROWS> DEV void store_rows(half_t* out, size_t stride, saddr rows, int lane, int valid_rows, int valid_chunks) {
  constexpr int CHUNKS = ROW_BYTES / 16, STEP = LANES / CHUNKS;
  const int chunk = lane % CHUNKS;
#pragma unroll
  for (int r = 0; r < ROWS; r += STEP) {
    int row = r + lane / CHUNKS;
    u128 v = ld_shared_128(rows + swizzled<ROW_BYTES>(row, chunk));
    if (row < valid_rows && chunk < valid_chunks) st_global_128(out + (size_t)row * stride + chunk * VECTOR, v);
  }
}

// ---- shapes of the blocks -------------------------------------------------------------------------------------------------
template <int D, int HEADS_> struct ShortShape {
  static constexpr int HEADS = HEADS_, ROW_BYTES = HEADS * D * 2, ROWS = SLOTS * SLOT_ROWS, PART = ROWS * ROW_BYTES;  // PART: of Q, K or V
  static constexpr int FARTHEST = ROWS - 1, DISTANCES = 2 * ROWS;  // of a key from a query: -63 to 63, and one to be even
  static constexpr int SHARED_BYTES = 3 * PART + HEADS * DISTANCES * 4;
};
template <int D, int QUERY_ROWS, int KEY_ROWS> struct StreamShape {
  static constexpr int ROW_BYTES = 2 * D, ROWS = QUERY_ROWS, KEYS = KEY_ROWS, PART = KEYS * ROW_BYTES;  // PART: of a tile of K or V
  static constexpr int M = ROWS / (16 * WARPS), WARP_ROWS = 16 * M, G = KEYS / GROUP;
  static constexpr int DISTANCES = ROWS + KEYS, BIAS_BYTES = (4 * DISTANCES + 1023) / 1024 * 1024;
  static constexpr int STAGE = 2 * PART + BIAS_BYTES, SHARED_BYTES = 2 * STAGE;
  static_assert(ROWS * ROW_BYTES <= 2 * PART, "queries come and outputs leave through a stage");
};
template <int D, int HEADS, int TILES, int QUERY_ROWS, int KEY_ROWS> constexpr int shared_bytes() {
  return TILES == SLOTS ? ShortShape<D, HEADS>::SHARED_BYTES : StreamShape<D, QUERY_ROWS, KEY_ROWS>::SHARED_BYTES;
}

// ---- 1 to 64 tokens -------------------------------------------------------------------------------------------------------
template <class T, int D, class S> DEV void short_block(uint8_t* shared, const Problem& p) {
  constexpr int ROW_BYTES = S::ROW_BYTES, PART = S::PART, HEADS = S::HEADS;
  using Lane = CopyLane<ROW_BYTES>;
  const int head_groups = (p.num_heads + HEADS - 1) / HEADS, item = blockIdx.x / head_groups;
  const int first_head = (blockIdx.x - item * head_groups) * HEADS, heads = min(HEADS, p.num_heads - first_head);
  const int warp = threadIdx.x / LANES, lane = threadIdx.x % LANES, hidden = p.num_heads * D;
  const saddr queries = smem_addr(shared), keys = queries + PART, values = keys + PART, biases = values + PART;
  const u128* entries = p.tiles + item * SLOTS;

  griddep_wait();
#pragma unroll
  for (int slot = 0; slot < SLOTS; slot++) {
    Tile t = load_tile(entries + slot);
    if (t.tokens == 0) continue;
    const int row = t.first_query + Lane::row(), rows_left = Lane::chunk() < heads * D / VECTOR ? t.tokens - row : 0;
    const half_t* from = p.qkv + (size_t)(t.sequence_start + row) * (size_t)(3 * hidden) + first_head * D + Lane::chunk() * VECTOR;
#pragma unroll
    for (int part = 0; part < 3; part++)
      copy_rows<ROW_BYTES, SLOT_ROWS>(queries + part * PART + slot * SLOT_ROWS * ROW_BYTES + Lane::offset(), from + part * hidden, 3 * hidden, rows_left);
  }
  if (p.bias)
#pragma unroll
    for (int h = 0; h < HEADS; h++)
      if (h < heads) copy_bias<S::DISTANCES>(biases + h * S::DISTANCES * 4, p, first_head + h, -S::FARTHEST);
  cp_async_commit();
  cp_async_wait<0>();
  sync_block();
  griddep_launch();

  const Tile t = load_tile(entries + warp);
  if (t.tokens == 0) return;
  const int reach = reach_of(p, t.tokens), groups = (t.tokens + GROUP - 1) / GROUP;
  const int query = t.first_query + (lane >> 2), key = 2 * (lane & 3);
  const saddr own_rows = queries + warp * SLOT_ROWS * ROW_BYTES;
  const saddr first_key_row = (warp * SLOT_ROWS - t.first_query) * ROW_BYTES;  // where the sequence begins in the block
#pragma unroll 1
  for (int h = 0; h < heads; h++) {
    const int head_bytes = h * D * 2;
    Queries<D, 1> q;
    load_queries<D, 1, ROW_BYTES>(q, (own_rows + row_major_lane<ROW_BYTES>(lane)) ^ head_bytes);
    Scores<1, SLOTS> s;
    multiply_keys<T, ROW_BYTES>(s, q, (keys + first_key_row + chunk_major_lane<ROW_BYTES>(lane)) ^ head_bytes, groups);
    if (p.bias) add_bias(s, biases + 4 * (h * S::DISTANCES + S::FARTHEST + key - query));
    if (t.tokens < SLOTS * GROUP || reach < t.tokens) mask(s, key, query, reach, t.tokens);
    float maximum[1][2];
#pragma unroll
    for (int i = 0; i < 2; i++) maximum[0][i] = fmaxf(NO_MAXIMUM, row_maximum(s, 0, i));
    Output<D, 1> o;
    clear(o);
    multiply_values<T, ROW_BYTES>(o, s, maximum, (values + first_key_row + row_major_lane<ROW_BYTES>(lane)) ^ head_bytes, groups);
    sync_warp();  // all lanes have their queries, which no other warp reads: the output takes their place
    stage_output<T, ROW_BYTES>(o, own_rows, lane, h * D / VECTOR);
  }
  sync_warp();
  store_rows<ROW_BYTES, SLOT_ROWS>(p.out + (size_t)(t.sequence_start + t.first_query) * (size_t)hidden + first_head * D, hidden, own_rows, lane,
                                   t.tokens - t.first_query, heads * D / VECTOR);
}

// ---- any length -------------------------------------------------------------------------------------------------------------
template <class T, int D, class S> DEV void stream_block(uint8_t* shared, const Problem& p) {
  constexpr int ROW_BYTES = S::ROW_BYTES, PART = S::PART, ROWS = S::ROWS, WARP_ROWS = S::WARP_ROWS, KEYS = S::KEYS, M = S::M, G = S::G;
  using Lane = CopyLane<ROW_BYTES>;
  const int item = blockIdx.x / p.num_heads, head = blockIdx.x - item * p.num_heads;
  const int warp = threadIdx.x / LANES, lane = threadIdx.x % LANES, hidden = p.num_heads * D;
  griddep_wait();
  const Tile t = load_tile(p.tiles + item);
  if (t.tokens == 0) return;
  const int reach = reach_of(p, t.tokens), last_token = t.tokens - 1, stride = 3 * hidden;
  // Tiles of keys that some query of the block sees.
  int first_key = max(0, t.first_query - reach) / KEYS * KEYS;
  const int end_key = min(last_token, t.first_query + ROWS - 1 + reach) + 1;

  saddr reading = smem_addr(shared), filling = reading + S::STAGE;
  // Where this thread's chunk of a row lies: 32-bit offsets within the sequence, since registers are short.
  const half_t* sequence = p.qkv + (size_t)t.sequence_start * (size_t)stride + head * D;
  const uint32_t own_chunk = Lane::row() * stride + Lane::chunk() * VECTOR;
  copy_rows<ROW_BYTES, ROWS>(filling + Lane::offset(), sequence + own_chunk + (uint32_t)t.first_query * stride, stride,
                             t.tokens - t.first_query - Lane::row());
  uint32_t next = own_chunk + (uint32_t)first_key * stride + hidden;  // the next tile of K; V is `hidden` on
  auto fill = [&](saddr stage, int key) {
    copy_rows<ROW_BYTES, KEYS>(stage + Lane::offset(), sequence + next, stride, t.tokens - key - Lane::row());
    copy_rows<ROW_BYTES, KEYS>(stage + PART + Lane::offset(), sequence + next + hidden, stride, t.tokens - key - Lane::row());
    if (p.bias) copy_bias<S::DISTANCES>(stage + 2 * PART, p, head, key - t.first_query - (ROWS - 1));
    cp_async_commit();
    next += KEYS * stride;
  };
  fill(reading, first_key);
  cp_async_wait<0>();
  sync_block();
  Queries<D, M> q;
  load_queries<D, M, ROW_BYTES>(q, filling + warp * WARP_ROWS * ROW_BYTES + row_major_lane<ROW_BYTES>(lane));
  sync_block();  // the stage that held the queries is filled next

  const int warp_query = t.first_query + warp * WARP_ROWS;
  Output<D, M> o;
  clear(o);
  float maximum[M][2];
#pragma unroll
  for (int m = 0; m < M; m++) maximum[m][0] = maximum[m][1] = NO_MAXIMUM;

#pragma unroll 1
  for (; first_key < end_key; first_key += KEYS) {
    if (first_key + KEYS < end_key) fill(filling, first_key + KEYS);
    const int last_key = first_key + KEYS - 1;
    // not if no row of this warp sees a key of the tile, or no row exists
    if (warp_query < t.tokens && last_key >= warp_query - reach && first_key <= warp_query + WARP_ROWS - 1 + reach) {
      Scores<M, G> s;
      multiply_keys<T, ROW_BYTES>(s, q, reading + chunk_major_lane<ROW_BYTES>(lane), G);
      const int query = warp_query + (lane >> 2), key = first_key + 2 * (lane & 3);
      if (p.bias) add_bias(s, reading + 2 * PART + 4 * (key - first_key - (query - t.first_query) + ROWS - 1));
      // unless every row sees every key
      if (last_key >= t.tokens || first_key < warp_query + WARP_ROWS - 1 - reach || last_key > warp_query + reach) mask(s, key, query, reach, t.tokens);
      follow_maxima(maximum, s, o);
      multiply_values<T, ROW_BYTES>(o, s, maximum, reading + PART + row_major_lane<ROW_BYTES>(lane), G);
    }
    cp_async_wait<0>();
    sync_block();  // the next tile is there, and no warp reads this one any more
    saddr swap = reading;
    reading = filling;
    filling = swap;
  }
  griddep_launch();
  const saddr own_rows = reading + warp * WARP_ROWS * ROW_BYTES;
  stage_output<T, ROW_BYTES>(o, own_rows, lane, 0);
  sync_warp();
  store_rows<ROW_BYTES, WARP_ROWS>(p.out + (size_t)(t.sequence_start + warp_query) * (size_t)hidden + head * D, hidden, own_rows, lane,
                                   t.tokens - warp_query, D / VECTOR);
}

template <class T, int D, int HEADS, int TILES, int QUERY_ROWS, int KEY_ROWS> DEV void block(uint8_t* shared, const Problem& p) {
  if constexpr (TILES == SLOTS) short_block<T, D, ShortShape<D, HEADS>>(shared, p);
  else stream_block<T, D, StreamShape<D, QUERY_ROWS, KEY_ROWS>>(shared, p);
}
}  // namespace attention

// ---- the kernels ----------------------------------------------------------------------------------------------------------
#define ATTENTION_KERNEL(name, T, head_dim, heads, tiles, query_rows, key_rows, min_blocks)                                   \
  KERNEL_MIN_BLOCKS(attention::THREADS, min_blocks, name, const half_t* qkv, half_t* out, const u128* tiles_list,             \
                    int num_heads, const float* bias, int bias_radius, int window_half) {                                     \
    SMEM_DYN(shared);                                                                                                         \
    attention::block<T, head_dim, heads, tiles, query_rows, key_rows>(                                                        \
        shared, attention::Problem{qkv, out, tiles_list, num_heads, bias, bias_radius, window_half});                         \
  }
#define ATTENTION_TILE(name, head_dim, heads, tiles, query_rows, key_rows, min_blocks, threads, block_bytes)                  \
  static_assert(attention::THREADS == threads, "the host reads this table");                                                  \
  static_assert(attention::shared_bytes<head_dim, heads, tiles, query_rows, key_rows>() == block_bytes, "and this") ;         \
  ATTENTION_KERNEL(name##_f16, F16, head_dim, heads, tiles, query_rows, key_rows, min_blocks)                                 \
  ATTENTION_KERNEL(name##_bf16, BF16, head_dim, heads, tiles, query_rows, key_rows, min_blocks)

// MIN_BLOCKS holds ptxas to the registers at which so many blocks share a multiprocessor: 168 at three, without a spill. At
// head size 64, 32 query rows a warp need 235, hence two.
#define ATTENTION_TILES(ATTENTION_TILE)                                              \
  ATTENTION_TILE(attention_short_d32, 32, 2, 4, 64, 64, 5, 128, 25600)               \
  ATTENTION_TILE(attention_short_d64, 64, 1, 4, 64, 64, 5, 128, 25088)               \
  ATTENTION_TILE(attention_short_d128, 128, 1, 4, 64, 64, 3, 128, 49664)             \
  ATTENTION_TILE(attention_stream_d32, 32, 1, 1, 128, 64, 3, 128, 18432)             \
  ATTENTION_TILE(attention_stream_d64, 64, 1, 1, 128, 64, 2, 128, 34816)             \
  ATTENTION_TILE(attention_stream_d128, 128, 1, 1, 64, 32, 3, 128, 34816)
ATTENTION_TILES(ATTENTION_TILE)
