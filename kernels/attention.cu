// attention.cu - non-causal multi-head attention over packed sequences; scores never leave registers. mma.sync, sm_80 and up.
//
//   out[i] = sum_j 2^s(i,j) v[j] / sum_j 2^s(i,j)      s(i,j) = q[i] . k[j] + bias[head][clamp(j - i, -radius, radius)]
//   for each head, over the j of i's own sequence, with a window only those with |j - i| <= window_half
//
// qkv    [total_tokens, 3 num_heads head_dim] 16-bit: q, k, v of all heads, each num_heads head_dim wide. q and bias arrive
//        multiplied by log2(e) (q by 1/sqrt(head_dim) too): the exponent is base 2.
// out    [total_tokens, num_heads head_dim] 16-bit.
// tiles  the work list, int4 {first row of the sequence, its tokens, first query of this tile, its queries (not read here)}: see
//        below. It takes the place of cu_seqlens, and spares each block a second load that waits for the first.
// bias   [num_heads, 2 bias_radius + 1] f32, or null. MPNet's and T5's buckets and ALiBi are all such lines.
// window_half  0 or less: no window.
// Limits: head_dim 32, 64, 128; pointers 16-byte aligned; a sequence has 1 token or more, and no more than 2^31 elements of
// qkv; total_tokens < 2^31.
//
// Work list, made by the host. A list of sequences becomes one launch of either path, chosen by each sequence's length alone.
//   stream (any length): an entry at every QUERY_ROWS-th query of each sequence. A block: one entry, one head.
//   short (1 to 64 tokens): an entry at every 16th query. A block: four entries ("slots"), HEADS_PER_BLOCK heads. The entries
//     of a sequence stand side by side, in order, in one group of four.
// Any order is right. The host sorts sequences by length, longest first, so that the last blocks to start are brief. An entry
// of 0 tokens is skipped: that fills groups of four, and pads lists to the size that a captured graph was made for.
// Launch: grid (entries / TILES_PER_BLOCK) ceil(num_heads / HEADS_PER_BLOCK), heads varying fastest; block and dynamic
// shared memory as in the table at the end of this file, which is the only list of the kernels: one line an instantiation,
// beginning with `  ATTENTION_TILE(attention_`:
//   ATTENTION_TILE(name, HEAD_DIM, HEADS_PER_BLOCK, TILES_PER_BLOCK, QUERY_ROWS, KEY_ROWS, MIN_BLOCKS, THREADS,
//                  DYNAMIC_SHARED_BYTES)
// in plain numbers, QUERY_ROWS being a block's. Each makes <name>_f16 and <name>_bf16, all with the same parameters.
//
// Short path: a warp owns 16 query rows; their scores against all keys fit its registers, so the softmax has a single pass.
// Bound by memory: 8 head_dim bytes for each token and head and 4 tokens head_dim FLOPs, 32 FLOPs a byte at 64 tokens, where
// an A100 needs 200 and an H200 180 to be busy. So: rows are read in pieces of 128 bytes or more (head size 32: two heads a
// block), K and V once, and nothing is wasted but the rounding to 16 rows. A block has all its 24 KiB (head size 128: 48) in
// flight at once, and 2 to 6 blocks share a multiprocessor, which hides the latency without a pipeline inside the block.
// Stream path: FlashAttention-2's order. Query rows stay, K and V pass by in tiles through two stages of cp.async, the softmax
// is online. 4 tokens^2 head_dim FLOPs a head, which bound it from some hundred tokens on, and tokens^2 exponentials: at 16 a
// clock and multiprocessor they cost an A100 as much as the products at head size 32, half at 64. From L2 come 4 head_dim
// tokens^2 / QUERY_ROWS bytes a head.
// The border, 64 tokens: so many keys are 32 score registers a lane, and so many rows are one short block; a longer sequence
// would have to be read by two. Up to 128 tokens a stream block still holds all queries of a head (64 at head size 128), so K
// and V are read once there too, and each fragment of them serves 32 query rows instead of 16 (not at head size 128), which
// halves the reads of shared memory: with 16 they take an A100 as long as the products.
//
// Numerics. Scores, maxima, sums and outputs are fp32. The weights 2^(s - maximum) are rounded to 16 bits for the product with
// V, and their sum is taken by the same tensor cores from the same rounded weights (a column of ones beside V): so the
// weights that V meets add up to one, their rounding is no bias of the result, and equal rows of V come out unchanged. That
// costs one product in 9 (head size 32) to 33 (128) and saves the shuffles, conversions and additions of a sum by lanes.
// The online maximum follows only once it lags by more than 8, so that outputs are rarely rescaled (as in FlashAttention-4):
// weights then reach 2^8, far from where fp16 ends, and keep their relative precision.
// A row's bits depend on its sequence, the path and the head size only: not on its batch, its place or other heads.
// NaN and Inf stay in their sequence: rows beyond its end are zeros in shared memory, never a neighbour's. Within it they
// reach the outputs of all queries that see them; only a score of -Inf is taken for what it says, a weight of 0.
//
// Tried: the bias gathered from global memory instead of through shared memory (22 loads with 3 integer operations each in the
// main loop, up to 20 registers more). Not tried, for want of a GPU: a polynomial for some of the exponentials at head size 32.
//
// Method: Dao, FlashAttention-2 (2023), section 3; lazy rescaling: FlashAttention-4 (2025).
#include "attention_warp.cuh"

namespace attention {
constexpr int SLOTS = 4, SLOT_ROWS = 16;  // entries of a short block, one a warp

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

// Copies a head's bias at COUNT distances from first_distance on. Clamped here, so that reading it is one plain load.
template <int COUNT> DEV void copy_bias(saddr to, const Problem& p, int head, int first_distance) {
  const float* middle = p.bias + (size_t)head * (size_t)(2 * p.bias_radius + 1) + p.bias_radius;
#pragma unroll
  for (int i = 0; i < COUNT; i += THREADS) {
    int at = i + threadIdx.x, distance = max(-p.bias_radius, min(p.bias_radius, first_distance + at));
    if (COUNT % THREADS == 0 || at < COUNT) cp_async_4(to + 4 * at, middle + distance, true);
  }
}

// ---- shapes of the blocks -------------------------------------------------------------------------------------------------
template <int D, int HEADS_> struct ShortShape {
  static constexpr int HEADS = HEADS_, ROW_BYTES = HEADS * D * 2, ROWS = SLOTS * SLOT_ROWS;
  static constexpr int PART = ROWS * ROW_BYTES;  // bytes of Q, K or V
  static constexpr int FARTHEST = ROWS - 1, DISTANCES = 2 * ROWS;  // of a key from a query: -63 to 63, and one to be even
  static constexpr int SHARED_BYTES = 3 * PART + HEADS * DISTANCES * 4;
};
template <int D, int QUERY_ROWS, int KEY_ROWS> struct StreamShape {
  static constexpr int ROW_BYTES = 2 * D, ROWS = QUERY_ROWS, KEYS = KEY_ROWS;
  static constexpr int PART = KEYS * ROW_BYTES;  // bytes of a tile of K or V
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
    const int row = t.first_query + Lane::row(), column = first_head * D + Lane::chunk() * VECTOR;
    const int rows_left = Lane::chunk() < heads * D / VECTOR ? t.tokens - row : 0;  // none of a second head that there is not
    const half_t* from = p.qkv + (size_t)(t.sequence_start + row) * (size_t)(3 * hidden) + column;
    const saddr to = queries + slot * SLOT_ROWS * ROW_BYTES + Lane::offset();
#pragma unroll
    for (int part = 0; part < 3; part++)
      copy_rows<ROW_BYTES, SLOT_ROWS>(to + part * PART, from + part * hidden, 3 * hidden, rows_left);
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
  const saddr sequence = (warp * SLOT_ROWS - t.first_query) * ROW_BYTES;  // where its keys and values begin in the block
  const saddr key_lane = keys + sequence + chunk_major_lane<ROW_BYTES>(lane);
  const saddr value_lane = values + sequence + row_major_lane<ROW_BYTES>(lane);
#pragma unroll 1
  for (int h = 0; h < heads; h++) {
    const int head_bytes = h * D * 2;  // a second head lies 4 chunks to the right
    Queries<D, 1> q;
    load_queries<D, 1, ROW_BYTES>(q, (own_rows + row_major_lane<ROW_BYTES>(lane)) ^ head_bytes);
    Scores<1, SLOTS> s;
    multiply_keys<T, ROW_BYTES>(s, q, key_lane ^ head_bytes, groups);
    if (p.bias) add_bias(s, biases + 4 * (h * S::DISTANCES + S::FARTHEST + key - query));
    if (t.tokens < SLOTS * GROUP || reach < t.tokens) mask(s, key, query, reach, t.tokens);
    float maximum[1][2];
#pragma unroll
    for (int i = 0; i < 2; i++) maximum[0][i] = fmaxf(NO_MAXIMUM, row_maximum(s, 0, i));
    Output<D, 1> o;
    clear(o);
    multiply_values<T, ROW_BYTES>(o, s, maximum, value_lane ^ head_bytes, groups);
    sync_warp();  // all lanes have their queries, which no other warp reads: the output takes their place
    stage_output<T, ROW_BYTES>(o, own_rows, lane, h * D / VECTOR);
  }
  sync_warp();
  half_t* out = p.out + (size_t)(t.sequence_start + t.first_query) * (size_t)hidden + first_head * D;
  store_rows<ROW_BYTES, SLOT_ROWS>(out, hidden, own_rows, lane, t.tokens - t.first_query, heads * D / VECTOR);
}

// ---- any length -------------------------------------------------------------------------------------------------------------
template <class T, int D, class S> DEV void stream_block(uint8_t* shared, const Problem& p) {
  constexpr int ROW_BYTES = S::ROW_BYTES, PART = S::PART, ROWS = S::ROWS, WARP_ROWS = S::WARP_ROWS, KEYS = S::KEYS;
  constexpr int M = S::M, G = S::G;
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
  // Where this thread's chunk of a row lies. 32-bit offsets within the sequence: 64-bit ones made sm_100 and 120 spill.
  const half_t* sequence = p.qkv + (size_t)t.sequence_start * (size_t)stride + head * D;
  const uint32_t own_chunk = Lane::row() * stride + Lane::chunk() * VECTOR;
  // Queries come through the second stage, which the first tile leaves free.
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
  sync_block();  // all warps have theirs: that stage is filled next

  const int warp_query = t.first_query + warp * WARP_ROWS;
  Output<D, M> o;
  clear(o);
  float maximum[M][2];
#pragma unroll
  for (int m = 0; m < M; m++) maximum[m][0] = maximum[m][1] = NO_MAXIMUM;

#pragma unroll 1
  for (; first_key < end_key; first_key += KEYS) {
    if (first_key + KEYS < end_key) fill(filling, first_key + KEYS);
    const int last_key = first_key + KEYS - 1, last_query = warp_query + WARP_ROWS - 1;
    // not if no row of this warp sees a key of the tile, or no row exists
    if (warp_query < t.tokens && last_key >= warp_query - reach && first_key <= last_query + reach) {
      Scores<M, G> s;
      multiply_keys<T, ROW_BYTES>(s, q, reading + chunk_major_lane<ROW_BYTES>(lane), G);
      const int query = warp_query + (lane >> 2), key = first_key + 2 * (lane & 3);
      if (p.bias) add_bias(s, reading + 2 * PART + 4 * (key - first_key - (query - t.first_query) + ROWS - 1));
      const bool all_seen = last_key < t.tokens && first_key >= last_query - reach && last_key <= warp_query + reach;
      if (!all_seen) mask(s, key, query, reach, t.tokens);
      float factor[M][2];
      if (follow_maxima(maximum, factor, s)) rescale(o, factor);
      multiply_values<T, ROW_BYTES>(o, s, maximum, reading + PART + row_major_lane<ROW_BYTES>(lane), G);
    }
    cp_async_wait<0>();
    sync_block();  // the next tile is there, and no warp reads this one any more
    saddr swap = reading;
    reading = filling;
    filling = swap;
  }
  griddep_launch();
  // After the loop's last barrier both stages are free: outputs leave through one, each warp's through its own rows.
  const saddr own_rows = reading + warp * WARP_ROWS * ROW_BYTES;
  stage_output<T, ROW_BYTES>(o, own_rows, lane, 0);
  sync_warp();
  half_t* out = p.out + (size_t)(t.sequence_start + warp_query) * (size_t)hidden + head * D;
  store_rows<ROW_BYTES, WARP_ROWS>(out, hidden, own_rows, lane, t.tokens - warp_query, D / VECTOR);
}

template <class T, int D, int HEADS, int TILES, int QUERY_ROWS, int KEY_ROWS>
DEV void block(uint8_t* shared, const Problem& p) {
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
  static_assert(attention::shared_bytes<head_dim, heads, tiles, query_rows, key_rows>() == block_bytes, "and this");          \
  ATTENTION_KERNEL(name##_f16, F16, head_dim, heads, tiles, query_rows, key_rows, min_blocks)                                 \
  ATTENTION_KERNEL(name##_bf16, BF16, head_dim, heads, tiles, query_rows, key_rows, min_blocks)

// MIN_BLOCKS holds ptxas to the registers at which so many blocks share a multiprocessor: 168 for three, without a spill on
// any architecture. At head size 64, 32 query rows a warp need 235, hence two blocks; at 128 they spill 500 bytes of 255
// registers, hence 16 rows a warp.
#define ATTENTION_TILES(ATTENTION_TILE)                                              \
  ATTENTION_TILE(attention_short_d32, 32, 2, 4, 64, 64, 5, 128, 25600)               \
  ATTENTION_TILE(attention_short_d64, 64, 1, 4, 64, 64, 5, 128, 25088)               \
  ATTENTION_TILE(attention_short_d128, 128, 1, 4, 64, 64, 3, 128, 49664)             \
  ATTENTION_TILE(attention_stream_d32, 32, 1, 1, 128, 64, 3, 128, 18432)             \
  ATTENTION_TILE(attention_stream_d64, 64, 1, 1, 128, 64, 2, 128, 34816)             \
  ATTENTION_TILE(attention_stream_d128, 128, 1, 1, 64, 32, 3, 128, 34816)
ATTENTION_TILES(ATTENTION_TILE)
