// attention_hopper.cu - attention of attention.cu with Hopper's own instructions: TMA, mbarriers, wgmma, setmaxnreg. For sm_90a only.
//
//   out[i] = sum_j 2^s(i,j) v[j] / sum_j 2^s(i,j)      s(i,j) = q[i] . k[j]      for each head, over the j of i's own sequence
//
// qkv    [total_tokens, 3 num_heads head_dim], as for attention.cu, but as a tensor map made on the host: two dimensions of 16-bit
//        elements, columns first, boxes of [min(head_dim, 64) columns, 64 rows] with the swizzle of their width (64 or 128 bytes).
// out    [total_tokens, num_heads head_dim] 16-bit.
// tiles  the work list, int4 {first row of the sequence, its tokens, first query of this entry, its queries}. An entry of 0 tokens
//        is skipped.
// Limits: as attention.cu; neither bias nor window: sequences of models that have one take attention.cu.
//
// Work list, made by the host: the queries of a sequence in one entry, or cut at multiples of 64 into several. Keys and values stay
// in shared memory while an entry's queries pass, so an entry of more than GROUPS times 64 queries must be of a sequence that fits
// there: at most PAIRS times 64 tokens. Any order is right; the longest first leaves the shortest wait at the end. How it is cut
// changes no bit.
// Launch: grid any number of blocks, best as many as the GPU holds at once and no more than entries times heads; block and dynamic
// shared memory by the table at the end of this file, which is the only list of these kernels:
//   RING_TILE(name, HEAD_DIM, GROUPS, PAIRS, THREADS, DYNAMIC_SHARED_BYTES)
//
// How: the blocks stay and take every gridDim.x-th (entry, head), an item. In each block one warpgroup gives its registers away. One
// of its threads loads: tiles of 64 rows, queries into one ring, keys and values into another of PAIRS, as far ahead as there is
// room, so the next items' rows arrive while one is computed. GROUPS warpgroups compute, each every GROUPS-th tile of 64 queries of
// the block, counted over all its items: so none waits for another at an item's end. A warpgroup has its queries in registers
// (operand A), reads keys K-major and values transposed (operands B) from shared memory, and frees a tile of keys or values with
// its last tile of queries of the item. That is all there is to the two cases that the host tells apart:
//   an entry of few queries frees each tile at once, and keys and values stream by, for any length of the sequence
//   an entry of many keeps them: all of a head is read once
// Between S = Q K^T of a tile and O += P V of the one before, both in flight, the maximum and the exponentials are computed beside
// the second; other warpgroups' products fill what is left.
// A box that reaches beyond its sequence has rows of the next one. Their scores are masked; their values have to be zeros, as 0
// times NaN is NaN: a second warp of the loading warpgroup waits for such a tile and overwrites them before it is called full.
//
// Numerics: those of attention.cu's stream path, with tiles of 64 keys at every head size. Row sums are summed by mma.sync from the
// weights' own registers, whose layout as operand A is that of wgmma too.
// A row's bits depend on its sequence and the head size only.
//
// What bounds it: 4 tokens^2 head_dim FLOPs a head and tokens^2 exponentials, at 16 a clock and multiprocessor: 256 clocks a tile
// of 64 by 64 for these, beside 128 (head size 32), 256 (64), 512 (128) of the tensor cores. Up to some hundred tokens the 8 head_dim
// bytes a token and head. The numbers: docs/performance.md.
// Method: Shah et al., FlashAttention-3 (2024), sections 3.1 and 3.2: specialised warps, products and softmax overlapped.
#include "attention_warp.cuh"
#include "hopper_ring.cuh"

#if defined(HOST_EMULATION) || !defined(__CUDA_ARCH__) || defined(__CUDA_ARCH_FEAT_SM90_ALL)
namespace attention {
constexpr int TILE_ROWS = 64;  // queries or keys of a tile
template <int D, int GROUPS_, int PAIRS> struct RingShape {
  static constexpr int GROUPS = GROUPS_, BLOCK_THREADS = 128 * (1 + GROUPS);
  static constexpr int BOX_COLUMNS = D < 64 ? D : 64, BOXES = D / BOX_COLUMNS;  // a tile of wider heads is two boxes behind each other
  static constexpr int ROW_BYTES = 2 * BOX_COLUMNS, BOX_BYTES = TILE_ROWS * ROW_BYTES, TILE_BYTES = BOXES * BOX_BYTES;
  using Keys = Ring<PAIRS, TILE_BYTES>;
  using QueryTiles = Ring<2 * GROUPS, TILE_BYTES>;  // of each warpgroup the tile that it has, and the next
  static constexpr int VALUES_AT = PAIRS * TILE_BYTES, QUERIES_AT = 2 * VALUES_AT, BARRIERS_AT = QUERIES_AT + 2 * GROUPS * TILE_BYTES;
  static constexpr int VALUE_BARRIERS_AT = BARRIERS_AT + Keys::BARRIER_BYTES, QUERY_BARRIERS_AT = VALUE_BARRIERS_AT + Keys::BARRIER_BYTES;
  // One for each value tile that is to be cleared, in turn. There are never more of these in flight than pairs.
  static constexpr int LANDED = PAIRS, LANDED_AT = QUERY_BARRIERS_AT + QueryTiles::BARRIER_BYTES;
  static constexpr int SHARED_BYTES = LANDED_AT + 8 * LANDED;
  // Of the 128 (three warpgroups that compute) or 168 (two) a thread that fit at first, the loading one gives away what the others get.
  static constexpr int LOADER_REGISTERS = 40, GROUP_REGISTERS = GROUPS == 3 ? 152 : 232;
  static_assert(PAIRS >= 2, "the next keys are waited for while the values before are still in use");
  static_assert(BLOCK_THREADS * (GROUPS == 3 ? 128 : 168) >= 128 * LOADER_REGISTERS + 128 * GROUPS * GROUP_REGISTERS, "");
};
template <class S> DEV typename S::Keys keys_at(saddr shared) { return ring_at<typename S::Keys>(shared, shared + S::BARRIERS_AT, 0); }
template <class S> DEV typename S::Keys values_at(saddr shared) {
  return ring_at<typename S::Keys>(shared + S::VALUES_AT, shared + S::VALUE_BARRIERS_AT, 0);
}
template <class S> DEV typename S::QueryTiles queries_at(saddr shared, int tile) {
  return ring_at<typename S::QueryTiles>(shared + S::QUERIES_AT, shared + S::QUERY_BARRIERS_AT, tile);
}

struct RingProblem {
  const TensorMap& qkv;
  half_t* out;
  const u128* tiles;
  int entries, num_heads;
};
struct Item {
  int sequence_start, tokens, first_query, queries, head;
};
DEV int tiles_of(int rows) { return (rows + TILE_ROWS - 1) / TILE_ROWS; }
DEV int rows_of_last_tile(const Item& item) { return (item.tokens - 1) % TILE_ROWS + 1; }
DEV Item load_item(const RingProblem& p, int i) {
  const int entry = i / p.num_heads;
  const u128 e = ld_global_nc_128(p.tiles + entry);
  return Item{(int)e.x, (int)e.y, (int)e.z, (int)e.w, i - entry * p.num_heads};
}
// Calls f(item) for each of this block's. All roles of a block go through the same ones.
template <class F> DEV void each_item(const RingProblem& p, F f) {
  const int items = p.entries * p.num_heads;
  int i = blockIdx.x;
  Item next = i < items ? load_item(p, i) : Item{};
#pragma unroll 1
  while (i < items) {
    const Item item = next;
    i += gridDim.x;
    if (i < items) next = load_item(p, i);  // arrives while this one is worked on
    if (item.tokens) f(item);
  }
}

// ---- loading ----------------------------------------------------------------------------------------------------------------
template <int D, class S> DEV void load_items(const RingProblem& p, saddr shared) {
  typename S::Keys keys = keys_at<S>(shared), values = values_at<S>(shared);
  typename S::QueryTiles queries = queries_at<S>(shared, 0);
  const int hidden = p.num_heads * D;
  int cleared = 0;
  each_item(p, [&](const Item& item) {
    auto load = [&](saddr to, saddr barrier, int part, int row) {
      mbar_arrive_expect_tx(barrier, S::TILE_BYTES);
#pragma unroll
      for (int box = 0; box < S::BOXES; box++)
        tma_load_2d(to + box * S::BOX_BYTES, &p.qkv, barrier, part * hidden + item.head * D + box * S::BOX_COLUMNS, item.sequence_start + row);
    };
    const int query_tiles = tiles_of(item.queries), key_tiles = tiles_of(item.tokens);
    auto load_queries = [&](int first, int end) {
#pragma unroll 1
      for (int tile = first; tile < end; tile++, advance(queries)) {
        wait_until_empty(queries);
        load(stage_of(queries), full_barrier(queries), 0, item.first_query + tile * TILE_ROWS);
      }
    };
    // Those that each warpgroup begins with. The others behind the keys: their places become free when the first have seen these.
    load_queries(0, min(query_tiles, S::GROUPS));
#pragma unroll 1
    for (int tile = 0; tile < key_tiles; tile++) {
      wait_until_empty(keys);
      load(stage_of(keys), full_barrier(keys), 1, tile * TILE_ROWS);
      wait_until_empty(values);
      saddr barrier = full_barrier(values);
      if (tile + 1 == key_tiles && rows_of_last_tile(item) < TILE_ROWS) barrier = shared + S::LANDED_AT + 8 * (cleared++ % S::LANDED);
      load(stage_of(values), barrier, 2, tile * TILE_ROWS);
      advance(keys);
      advance(values);
    }
    load_queries(S::GROUPS, query_tiles);
  });
}
// By one warp: the rows of values behind a sequence's end become zeros, and the tile full.
template <class S> DEV void clear_tails(const RingProblem& p, saddr shared, int lane) {
  int tiles = 0, cleared = 0;  // of values so far, and of those the ones cleared
  each_item(p, [&](const Item& item) {
    tiles += tiles_of(item.tokens);
    const int rows = rows_of_last_tile(item);
    if (rows == TILE_ROWS) return;
    const typename S::Keys last = ring_at<typename S::Keys>(shared + S::VALUES_AT, shared + S::VALUE_BARRIERS_AT, tiles - 1);
    mbar_wait(shared + S::LANDED_AT + 8 * (cleared % S::LANDED), (uint32_t)(cleared / S::LANDED) & 1);
    cleared++;
#pragma unroll
    for (int box = 0; box < S::BOXES; box++)
#pragma unroll 1
      for (int at = rows * S::ROW_BYTES + lane * 16; at < S::BOX_BYTES; at += LANES * 16)
        st_shared_128(stage_of(last) + box * S::BOX_BYTES + at, u128{0, 0, 0, 0});  // bank conflicts: none, but lanes that skip the last turn are counted out of step
    fence_proxy_async();
    sync_warp();
    if (lane == 0) mbar_arrive(full_barrier(last));
  });
}

// ---- products -----------------------------------------------------------------------------------------------------------------
template <class T, int TRANSPOSED, int N> DEV void multiply(float (&d)[N / 2], const uint32_t (&a)[4], uint64_t b, int scale_d) {
  if constexpr (T::IS_BF16) {
    if constexpr (N == 32) wgmma_m64n32k16_ra_bf16<TRANSPOSED>(d, a, b, scale_d);
    else wgmma_m64n64k16_ra_bf16<TRANSPOSED>(d, a, b, scale_d);
  } else {
    if constexpr (N == 32) wgmma_m64n32k16_ra<TRANSPOSED>(d, a, b, scale_d);
    else wgmma_m64n64k16_ra<TRANSPOSED>(d, a, b, scale_d);
  }
}
template <class S> DEV uint64_t descriptor(saddr a) { return S::ROW_BYTES == 64 ? wgmma_desc_sw64(a) : wgmma_desc_sw128(a); }
// Registers of an accumulator lie as those of mma.sync for each 8 columns, so what works on these works on it.
template <int N> DEV float (&accumulator(float (*v)[4]))[N] { return *(float(*)[N])v; }
template <int N> DEV void hold(float (*v)[4]) {
#pragma unroll
  for (int j = 0; j < N / 4; j++)
#pragma unroll
    for (int i = 0; i < 4; i++) wgmma_hold(v[j][i]);
}

using KeyScores = Scores<1, TILE_ROWS / GROUP>;  // of a warp: 16 queries, 64 keys
struct Weights { uint32_t v[TILE_ROWS / GROUP][4]; };

template <class T, int D, class S> DEV void multiply_keys(KeyScores& s, const Queries<D, 1>& q, saddr tile) {
  wgmma_fence();
#pragma unroll
  for (int k = 0; k < D / 16; k++) {
    const int in_row = 32 * k;
    multiply<T, 0, TILE_ROWS>(accumulator<TILE_ROWS / 2>(s.v[0]), q.fragment[0][k],
                              descriptor<S>(tile + in_row / S::ROW_BYTES * S::BOX_BYTES + in_row % S::ROW_BYTES), k > 0);
  }
  wgmma_commit();
}
template <class T, int D, class S> DEV void multiply_values(Output<D, 1>& o, Weights& w, saddr tile) {
  hold<D / 2>(o.v[0]);
#pragma unroll
  for (int g = 0; g < TILE_ROWS / GROUP; g++)
#pragma unroll
    for (int i = 0; i < 4; i++) wgmma_hold(w.v[g][i]);
  wgmma_fence();
#pragma unroll
  for (int g = 0; g < TILE_ROWS / GROUP; g++)
#pragma unroll
    for (int box = 0; box < S::BOXES; box++)
      multiply<T, 1, S::BOX_COLUMNS>(accumulator<S::BOX_COLUMNS / 2>(o.v[0] + box * S::BOX_COLUMNS / 8), w.v[g],
                                     descriptor<S>(tile + box * S::BOX_BYTES + g * GROUP * S::ROW_BYTES), 1);
  wgmma_commit();
}

// ---- a tile of queries ----------------------------------------------------------------------------------------------------------
// What a warp has for itself.
struct RingWarp { int group, of_group, lane; };

template <class T, int D, class S>
DEV void attend_tile(const RingProblem& p, const Item& item, int query_tile, saddr shared, typename S::QueryTiles queries, typename S::Keys keys,
                     typename S::Keys values, bool last_use, const RingWarp& warp) {
  auto free = [&](const typename S::Keys& r) {
    if (last_use && warp.lane == 0) mbar_arrive(empty_barrier(r));
  };
  const int query = item.first_query + query_tile * TILE_ROWS + warp.of_group * 16 + warp.lane / 4, key_tiles = tiles_of(item.tokens);
  Queries<D, 1> q;
  wait_until_full(queries);
  const saddr query_lane = stage_of(queries) + warp.of_group * 16 * S::ROW_BYTES + row_major_lane<S::ROW_BYTES>(warp.lane);
#pragma unroll
  for (int k = 0; k < D / 16; k++) ldmatrix_x4(q.fragment[0][k], chunk_pair(query_lane, k % 4) + k / 4 * S::BOX_BYTES);

  KeyScores s;
  Output<D, 1> o;
  Weights w;
  clear(o);
#pragma unroll
  for (int j = 0; j < TILE_ROWS / 8; j++)
#pragma unroll
    for (int i = 0; i < 4; i++) s.v[0][j][i] = 0;  // overwritten; once, so that they are defined
  float maximum[1][2] = {{NO_MAXIMUM, NO_MAXIMUM}};
  const uint32_t ones = T::pack(1, 1);

  // What follows a product with a tile of keys. `multiplied`: waits for the product with the values before, if there is one, which
  // reads the weights before.
  auto weigh = [&](int tile, auto multiplied) {
    hold<TILE_ROWS / 2>(s.v[0]);
    free(keys);
    advance(keys);
    if (tile + 1 == key_tiles && rows_of_last_tile(item) < TILE_ROWS)
      mask(s, tile * TILE_ROWS + 2 * (warp.lane & 3), query, item.tokens, item.tokens);
    float factor[1][2] = {{1, 1}};
    const bool lags = follow_maxima(maximum, factor, s);
#pragma unroll
    for (int j = 0; j < TILE_ROWS / 8; j++)
#pragma unroll
      for (int i = 0; i < 4; i++) s.v[0][j][i] = ex2_approx(s.v[0][j][i] - maximum[0][i / 2]);
    // Here, because a loop between keeps the compiler from putting the exponentials behind the wait that they are to run beside.
    if (tile + 1 < key_tiles) wait_until_full(keys);
    multiplied();
    if (vote_ballot(lags)) rescale(o, factor);
#pragma unroll
    for (int g = 0; g < TILE_ROWS / GROUP; g++) {
#pragma unroll
      for (int i = 0; i < 4; i++) {  // rows +0, +8 of keys 0-7, then of keys 8-15
        const float* pair = &s.v[0][2 * g + i / 2][i % 2 * 2];
        w.v[g][i] = T::pack(pair[0], pair[1]);
      }
      T::mma(o.sum[0], w.v[g], ones, ones);
    }
  };
  auto values_multiplied = [&] {
    wgmma_wait<0>();
    hold<D / 2>(o.v[0]);
    free(values);
    advance(values);
  };
  wait_until_full(keys);
  multiply_keys<T, D, S>(s, q, stage_of(keys));
  wgmma_wait<0>();
  weigh(0, [] {});
#pragma unroll 1
  for (int tile = 1; tile < key_tiles; tile++) {
    multiply_keys<T, D, S>(s, q, stage_of(keys));
    wait_until_full(values);
    multiply_values<T, D, S>(o, w, stage_of(values));
    wgmma_wait<1>();
    weigh(tile, values_multiplied);
  }
  wait_until_full(values);
  multiply_values<T, D, S>(o, w, stage_of(values));
  values_multiplied();

  // The output leaves through the queries' place, 16 rows a warp. In two boxes these are not those that the warp has read itself.
  if constexpr (S::BOXES > 1) bar_sync(1 + warp.group, 128);
  else sync_warp();
  const saddr own_rows = stage_of(queries) + warp.of_group * 16 * (2 * D);
  stage_output<T, 2 * D>(o, own_rows, warp.lane, 0);
  sync_warp();
  const int first_row = item.first_query + query_tile * TILE_ROWS + warp.of_group * 16, hidden = p.num_heads * D;
  half_t* out = p.out + (size_t)(item.sequence_start + first_row) * (size_t)hidden + item.head * D;
  store_rows<2 * D, 16>(out, hidden, own_rows, warp.lane, item.tokens - first_row, D / VECTOR);
  fence_proxy_async();  // TMA writes there next
  sync_warp();
  if (warp.lane == 0) mbar_arrive(empty_barrier(queries));
}

template <class T, int D, class S> DEV void attend_items(const RingProblem& p, saddr shared, const RingWarp& warp) {
  typename S::Keys keys = keys_at<S>(shared), values = values_at<S>(shared);
  int tiles = 0;  // of queries, in the items before
  each_item(p, [&](const Item& item) {
    const int query_tiles = tiles_of(item.queries), key_tiles = tiles_of(item.tokens);
    int tile = (S::GROUPS + warp.group - tiles % S::GROUPS) % S::GROUPS;
    const bool idle = tile >= query_tiles;
#pragma unroll 1
    for (; tile < query_tiles; tile += S::GROUPS)
      attend_tile<T, D, S>(p, item, tile, shared, queries_at<S>(shared, tiles + tile), keys, values, tile + S::GROUPS >= query_tiles, warp);
#pragma unroll 1
    for (int k = 0; k < key_tiles; k++, advance(keys), advance(values)) {
      if (!idle) continue;
      // not before they are full: then the others may still be a round of the ring behind
      wait_until_full(keys);
      if (warp.lane == 0) mbar_arrive(empty_barrier(keys));
      wait_until_full(values);
      if (warp.lane == 0) mbar_arrive(empty_barrier(values));
    }
    tiles += query_tiles;
  });
}

template <class T, int D, class S> DEV void ring_block(uint8_t* memory, const RingProblem& p) {
  const saddr shared = smem_addr(memory);
  if (threadIdx.x == 0) {
    init_ring(keys_at<S>(shared), 4 * S::GROUPS);
    init_ring(values_at<S>(shared), 4 * S::GROUPS);
    init_ring(queries_at<S>(shared, 0), 4);
    for (int i = 0; i < S::LANDED; i++) mbar_init(shared + S::LANDED_AT + 8 * i, 1);
    mbar_fence_init();
  }
  sync_block();
  const int warp = shfl_idx(threadIdx.x / 32, 0), lane = threadIdx.x % 32;  // the compiler shall know that it is the warp's
  if (warp < 4) {
    setmaxnreg_dec<S::LOADER_REGISTERS>();
    if (warp == 0 && lane == 0) tma_prefetch(&p.qkv);
    griddep_wait();  // what came before has written queries, keys and values
    if (warp == 0 && lane == 0) {
      load_items<D, S>(p, shared);
      griddep_launch();
    }
    if (warp == 1) clear_tails<S>(p, shared, lane);
  } else {
    setmaxnreg_inc<S::GROUP_REGISTERS>();
    griddep_wait();  // what came before has read what is written here
    attend_items<T, D, S>(p, shared, RingWarp{warp / 4 - 1, warp % 4, lane});
  }
}
}  // namespace attention

// ---- the kernels ----------------------------------------------------------------------------------------------------------------
#define RING_KERNEL(name, T, Shape, head_dim)                                                                                        \
  KERNEL(Shape::BLOCK_THREADS, name, TMAP_PARAM(qkv), half_t* out, const u128* tiles_list, int entries, int num_heads) {            \
    SMEM_DYN(ring_shared);                                                                                                           \
    attention::ring_block<T, head_dim, Shape>(ring_shared, attention::RingProblem{qkv, out, tiles_list, entries, num_heads});        \
  }
#define RING_TILE(name, head_dim, groups, pairs, threads, block_bytes)                                                              \
  using name##_shape = attention::RingShape<head_dim, groups, pairs>;                                                               \
  static_assert(name##_shape::BLOCK_THREADS == threads && name##_shape::SHARED_BYTES == block_bytes && block_bytes <= 227 << 10,    \
                "the host reads this table");                                                                                       \
  RING_KERNEL(name##_f16, F16, name##_shape, head_dim)                                                                              \
  RING_KERNEL(name##_bf16, BF16, name##_shape, head_dim)

// Three warpgroups fit where 160 registers are enough: 16 (head size 32: 8) for queries, 32 (16) outputs, 32 scores, 16 weights. At
// head size 128 these are 144. Pairs: what 227 KiB have room for.
#define RING_TILES(RING_TILE)                            \
  RING_TILE(attention_wgmma_d32, 32, 3, 25, 512, 230472)  \
  RING_TILE(attention_wgmma_d64, 64, 3, 11, 512, 229912)  \
  RING_TILE(attention_wgmma_d128, 128, 2, 5, 384, 229640)
RING_TILES(RING_TILE)
#endif
