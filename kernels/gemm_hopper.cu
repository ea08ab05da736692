// gemm_hopper.cu - C = epilogue(A W^T) with Hopper's own instructions: wgmma, TMA, mbarriers, setmaxnreg. For sm_90a only.
//
//   c[m, n or n/2] = epilogue(a[m, k] . w[n, k]^T)          steps of the epilogue: epilogue.cuh
//
// a [m, k], w [n, k], residual [m, n], c: as for gemm.cu, but as tensor maps, made on the host (cuTensorMapEncodeTiled): two
// dimensions of 16-bit elements, columns first, and boxes of
//   a         [64 columns, 128 rows], 128-byte swizzle
//   w         [64 columns, BLOCK_N / CLUSTER rows], 128-byte swizzle
//   residual  [64 columns, 16 rows], 128-byte swizzle; any map where e.residual is null
//   c         [64 columns, 16 rows], 128-byte swizzle; gated: [32 columns, 16 rows], 64-byte swizzle
// e.residual says whether there is one; its address is not used. Residual and c may be the same memory.
// Limits: as gemm.cu; no split-K. Tails of m, n and k are zeros that TMA fills in, and what TMA does not store.
//
// Launch: grid any number of clusters, best as many as the GPU holds at once and no more than there are tiles (CLUSTER row tiles
// count as one); block and dynamic shared memory by the table at the end of this file, which is the only list of the tiles:
//   HOPPER_TILE(name, BLOCK_M, BLOCK_N, BLOCK_K, STAGES, GROUPS_OF_TILE, CLUSTER, THREADS, DYNAMIC_SHARED_BYTES)
//
// How: one warpgroup gives its registers away and has one thread that loads 64 columns of a tile's a and w at a time into a ring
// of stages; two warpgroups multiply and store. The blocks stay and take every gridDim.x-th tile, so the first stages of the
// next tile load while one is stored. GROUPS_OF_TILE says what the two do:
//   2, cooperative: each has 64 rows of every tile. The larger tile, so the least traffic from L2; but while both are in their
//      epilogues the tensor cores wait. For long k.
//   1, ping-pong: each has every second tile for itself, so that one multiplies while the other stores. They take turns at
//      multiplying, in the order in which the ring has their stages. For short k, and costly epilogues.
// CLUSTER blocks take row tiles below each other at the same time: each loads its part of the rows of w for all of them, so that L2
// is read once for all. A stage is loaded when all of them have freed it.
// A warp's epilogue: its 16 rows of 64 columns pass through a slab (gemm_tiles.cuh), are finished in the layout of epilogue.cuh, and
// go as a 16-bit box in shared memory to one TMA store. The residual comes in the same box, loaded while the tile multiplies.
//
// Bits: each output is one chain of wgmma sums over k in order, so a row's bits depend on neither its place nor its batch, and
// are those of gemm.cu as far as the two instructions sum 16 products alike, which is not documented.
//
// What bounds it: 2 m n k FLOPs; where k is short the epilogue; L2, which a stage of 128x128 asks for 24 KiB with a cluster of 2 and
// for 32 without, of which it gives about 30 in the time of the stage's products. The numbers: docs/performance.md.
// Method: the warp-specialised persistent kernels of CUTLASS (include/cutlass/gemm/kernel/sm90_gemm_tma_warpspecialized_*.hpp).
#include "gemm_tiles.cuh"
#include "hopper_ring.cuh"

#if defined(HOST_EMULATION) || !defined(__CUDA_ARCH__) || defined(__CUDA_ARCH_FEAT_SM90_ALL)
template <int N, int S, int GROUPS, int BLOCKS> struct HopperShape {
  static constexpr int BLOCK_M = 128, BLOCK_N = N, BLOCK_K = 64, STAGES = S, GROUPS_OF_TILE = GROUPS, CLUSTER = BLOCKS;
  static constexpr int THREADS = 3 * 128, CONSUMER_WARPS = 8;
  static constexpr int ROW_BLOCKS = 2 / GROUPS;                    // of 64 rows, of a consumer's part of a tile
  static constexpr int STEPS_OF_STAGE = BLOCK_K / 16;
  static constexpr int SEGMENTS = N / SEGMENT;
  static constexpr int ROW_BYTES = 2 * BLOCK_K;                    // 128: the swizzle's width
  static constexpr int A_BYTES = BLOCK_M * ROW_BYTES, STAGE_BYTES = (BLOCK_M + N) * ROW_BYTES;
  // Of each consumer warp: a box for each 16 rows of 64 columns that it stores, and a slab of 8 rows.
  static constexpr int BOX_BYTES = 16 * SEGMENT * 2, BOXES = ROW_BLOCKS * SEGMENTS, SLAB_ROWS = 8;
  static constexpr int BOX_AT = S * STAGE_BYTES, SLAB_AT = BOX_AT + CONSUMER_WARPS * BOXES * BOX_BYTES;
  using Stages = Ring<S, STAGE_BYTES>;
  static constexpr int BARRIER_AT = SLAB_AT + CONSUMER_WARPS * SLAB_ROWS * SLAB_ROW_BYTES;
  static constexpr int SHARED_BYTES = BARRIER_AT + Stages::BARRIER_BYTES + 8 * CONSUMER_WARPS;
};
// 168 registers a thread fit at first; what the loading warpgroup gives away the others get: 128 x 40 + 256 x 232 = 64 Ki less 1 Ki
constexpr int LOADER_REGISTERS = 40, CONSUMER_REGISTERS = 232;

struct HopperProduct {
  const TensorMap &a, &w, &residual, &c;
  int m, n, k;
};
// The tiles that this block computes: every gridDim.x-th, of a cluster the row tile of its own rank.
template <class S> struct TileSequence {
  int row_tiles, column_tiles, steps;  // row_tiles: of the cluster; steps: stages of a tile
  int first, stride, all;
  DEV_MEMBER TileSequence of(const HopperProduct& x) {
    const int row_tiles = (x.m + S::CLUSTER * S::BLOCK_M - 1) / (S::CLUSTER * S::BLOCK_M), column_tiles = (x.n + S::BLOCK_N - 1) / S::BLOCK_N;
    return TileSequence{row_tiles, column_tiles, (x.k + S::BLOCK_K - 1) / S::BLOCK_K,
                        (int)blockIdx.x / S::CLUSTER, (int)gridDim.x / S::CLUSTER, row_tiles * column_tiles};
  }
};
// The first row and column of a tile of the sequence. The last row tile of a cluster may lie below the matrix: then it multiplies
// zeros and stores nothing.
template <class S> DEV TilePlace corner_of(const TileSequence<S>& tiles, int tile, int rank) {
  const TilePlace at = place_of_block(tile, tiles.row_tiles, tiles.column_tiles);
  return TilePlace{(at.row * S::CLUSTER + rank) * S::BLOCK_M, at.column * S::BLOCK_N};
}
template <class S> DEV int rank_in_cluster() { return S::CLUSTER == 1 ? 0 : (int)cluster_rank(); }

// ---- loading --------------------------------------------------------------------------------------------------------------------
template <class S> DEV typename S::Stages stages_at(saddr shared, int step) { return ring_at<typename S::Stages>(shared, shared + S::BARRIER_AT, step); }

template <class S> DEV void load_tiles(const HopperProduct& x, saddr shared) {
  const TileSequence<S> tiles = TileSequence<S>::of(x);
  typename S::Stages ring = stages_at<S>(shared, 0);
  const int rank = rank_in_cluster<S>();
  constexpr int W_ROWS = S::BLOCK_N / S::CLUSTER;  // that this block loads
  griddep_wait();  // what came before has written a
#pragma unroll 1
  for (int tile = tiles.first; tile < tiles.all; tile += tiles.stride) {
    const TilePlace corner = corner_of<S>(tiles, tile, rank);
#pragma unroll 1
    for (int step = 0; step < tiles.steps; step++) {
      const saddr full = full_barrier(ring), stage = stage_of(ring);
      wait_until_empty(ring);
      mbar_arrive_expect_tx(full, S::STAGE_BYTES);
      tma_load_2d(stage, &x.a, full, step * S::BLOCK_K, corner.row);
      const saddr w = stage + S::A_BYTES + rank * W_ROWS * S::ROW_BYTES;
      if constexpr (S::CLUSTER == 1) tma_load_2d(w, &x.w, full, step * S::BLOCK_K, corner.column);
      else tma_load_2d_multicast(w, &x.w, full, step * S::BLOCK_K, corner.column + rank * W_ROWS, (1 << S::CLUSTER) - 1);
      advance(ring);
    }
  }
  griddep_launch();
}

// ---- the sums -------------------------------------------------------------------------------------------------------------------
template <class S> struct HopperSums { float v[S::ROW_BLOCKS][S::BLOCK_N / 2]; };

template <class T, class S> DEV void multiply_stage(HopperSums<S>& sums, saddr a, saddr w, bool first) {
  wgmma_fence();
#pragma unroll
  for (int step = 0; step < S::STEPS_OF_STAGE; step++)
#pragma unroll
    for (int i = 0; i < S::ROW_BLOCKS; i++)  // 16 columns on: 32 bytes, which the swizzle leaves a sum
      wgmma_m64<T, S::BLOCK_N>(sums.v[i], wgmma_desc_sw128(a + i * 64 * S::ROW_BYTES + step * 32), wgmma_desc_sw128(w + step * 32), !(first && step == 0));
  wgmma_commit();
}
// All of a tile's stages: one multiplies while the one before is waited for and freed. `meanwhile` runs beside the first,
// `all_issued` beside the last.
template <class T, class S, class F, class G>
DEV void multiply_tile(HopperSums<S>& sums, typename S::Stages ring, int steps, int first_row, F meanwhile, G all_issued) {
  const int lane = threadIdx.x % 32;
  auto free = [&](saddr empty) {
    if constexpr (S::CLUSTER == 1) {
      if (lane == 0) mbar_arrive(empty);
    } else {
      if (lane < S::CLUSTER) mbar_arrive_remote(empty, lane);
    }
  };
  saddr freed = 0;
  auto multiply = [&](bool first) {
    const saddr stage = stage_of(ring), empty = empty_barrier(ring);
    wait_until_full(ring);
    multiply_stage<T, S>(sums, stage + first_row * S::ROW_BYTES, stage + S::A_BYTES, first);
    advance(ring);
    return empty;
  };
  freed = multiply(true);
  meanwhile();
#pragma unroll 1
  for (int step = 1; step < steps; step++) {
    const saddr next = multiply(false);
    wgmma_wait<1>();
    free(freed);
    freed = next;
  }
  all_issued();
  wgmma_wait<0>();
  free(freed);
}

// ---- epilogue ---------------------------------------------------------------------------------------------------------------------
// What a warp has for itself.
struct WarpPlace {
  saddr boxes, slab, residual_full;
  int row;     // of the tile: its first; with two row blocks, the second's are 64 further on
  int lane;
};
template <class S> DEV WarpPlace warp_place(saddr shared, int consumer_warp) {
  return WarpPlace{shared + S::BOX_AT + consumer_warp * S::BOXES * S::BOX_BYTES, shared + S::SLAB_AT + consumer_warp * S::SLAB_ROWS * SLAB_ROW_BYTES,
                   shared + S::BARRIER_AT + S::Stages::BARRIER_BYTES + 8 * consumer_warp,
                   S::GROUPS_OF_TILE == 2 ? consumer_warp * 16 : consumer_warp % 4 * 16, (int)threadIdx.x % 32};
}
// The boxes are free once the stores of the tile before have read them; then the residual loads.
template <class S> DEV void load_residual(const HopperProduct& x, const Epilogue& e, const WarpPlace& warp, int first_row, int first_column) {
  if (warp.lane) return;
  tma_store_wait_read<0>();
  if (!e.residual) return;
  mbar_arrive_expect_tx(warp.residual_full, S::BOXES * S::BOX_BYTES);
#pragma unroll 1
  for (int box = 0; box < S::BOXES; box++)
    tma_load_2d(warp.boxes + box * S::BOX_BYTES, &x.residual, warp.residual_full, first_column + box % S::SEGMENTS * SEGMENT,
                first_row + warp.row + box / S::SEGMENTS * 64);
}
// Of the row whose number among the warp's is the lane's.
template <class S> DEV RowNorm load_norm(const HopperProduct& x, const Epilogue& e, const WarpPlace& warp, int first_row) {
  const int row = first_row + warp.row + warp.lane % 16 + warp.lane / 16 * 64;
  const bool wanted = e.norm_target != NORM_NONE && row < x.m && warp.lane < 16 * S::ROW_BLOCKS;
  return wanted ? row_norm(e, (size_t)row) : RowNorm{0, 0};
}
// Eight rows of 64 columns of a warp's sums. Registers cannot be indexed: every place is in the code once, of which one runs.
template <class S> DEV void store_to_slab(const HopperSums<S>& sums, int box, int half, const WarpPlace& warp) {
  const int row = warp.lane / 4;
  const saddr base = warp.slab + row * SLAB_ROW_BYTES + slab_swizzle(row, 2 * (warp.lane % 4));
#pragma unroll
  for (int b = 0; b < S::BOXES; b++)
#pragma unroll
    for (int h = 0; h < 2; h++) {
      if (b != box || h != half) continue;
      const float* v = &sums.v[b / S::SEGMENTS][b % S::SEGMENTS * SEGMENT / 2 + 2 * h];
#pragma unroll
      for (int j = 0; j < SEGMENT / 8; j++) st_shared_64(base ^ slab_swizzle(0, 8 * j), u64x{f32_bits(v[4 * j]), f32_bits(v[4 * j + 1])});
    }
}
// Where 16 bytes of a box lie: as TMA's swizzles have them, of 128 or 64 bytes.
DEV saddr box_chunk(saddr box, int row, int chunk, bool narrow) {
  return narrow ? box + row * 64 + ((chunk ^ (row >> 1 & 3)) << 4) : box + row * 128 + ((chunk ^ (row & 7)) << 4);
}

template <class T, class S>
DEV void store_tile_by_tma(const HopperSums<S>& sums, const HopperProduct& x, const Epilogue& e, const WarpPlace& warp, RowNorm norms, int first_row, int first_column) {
  const int lane_row = warp.lane / SEGMENT_LANES, chunk = warp.lane % SEGMENT_LANES;
#pragma unroll 1
  for (int box = 0; box < S::BOXES; box++) {
    const int segment = first_column + box % S::SEGMENTS * SEGMENT, column = segment + chunk * VECTOR;
    const int row_block = box / S::SEGMENTS, box_row = first_row + warp.row + row_block * 64;
    if (segment >= x.n || box_row >= x.m) continue;
    const saddr at = warp.boxes + box * S::BOX_BYTES;
    EpilogueColumns columns;
    load_columns(e, column, x.n, true, columns);
#pragma unroll 1
    for (int half = 0; half < 2; half++) {
      store_to_slab<S>(sums, box, half, warp);
      sync_warp();  // also behind lane 0's wait for the boxes, which are written from here on
#pragma unroll 1
      for (int slab_row = lane_row; slab_row < S::SLAB_ROWS; slab_row += 32 / SEGMENT_LANES) {
        const int row = half * S::SLAB_ROWS + slab_row;
        float v[VECTOR];
        load_slab(warp.slab, slab_row, chunk * VECTOR, v);
        u128 residual = u128{0, 0, 0, 0};
        if (e.residual) residual = ld_shared_128(box_chunk(at, row, chunk, false));
        RowNorm norm = RowNorm{0, 0};
        if (e.norm_target != NORM_NONE) norm = RowNorm{shfl_idx(norms.mean, row_block * 16 + row), shfl_idx(norms.rstd, row_block * 16 + row)};
        const bool inside = box_row + row < x.m && column < x.n;
        finish_row<T>(e, columns, v, norm, residual, EpiloguePlace{(size_t)(box_row + row), column, x.n, inside},
                      [&](u128 stored) { st_shared_128(box_chunk(at, row, e.gated ? chunk / 2 : chunk, e.gated), stored); });
      }
      sync_warp();
    }
    fence_proxy_async();
    sync_warp();
    if (warp.lane == 0) {
      tma_store_2d(&x.c, at, e.gated ? segment / 2 : segment, box_row);
      tma_store_commit();
    }
  }
}

template <class T, class S> DEV void multiply_tiles(const HopperProduct& x, const Epilogue& e, saddr shared, int consumer_warp) {
  const TileSequence<S> tiles = TileSequence<S>::of(x);
  const WarpPlace warp = warp_place<S>(shared, consumer_warp);
  const int group = consumer_warp / 4, rank = rank_in_cluster<S>();
  HopperSums<S> sums;
#pragma unroll
  for (int i = 0; i < S::ROW_BLOCKS; i++)
#pragma unroll
    for (int j = 0; j < S::BLOCK_N / 2; j++) sums.v[i][j] = 0;  // overwritten; once, so that they are defined
  griddep_wait();  // what came before has written residual and statistics, and read what is written here
  uint32_t residual_phase = 0;
#pragma unroll 1
  for (int turn = 0, tile = tiles.first; tile < tiles.all; turn++, tile += tiles.stride) {
    if (S::GROUPS_OF_TILE == 1 && turn % 2 != group) continue;
    const TilePlace corner = corner_of<S>(tiles, tile, rank);
    const int first_row = corner.row, first_column = corner.column;
    RowNorm norms;
    // Ping-pong: only when the other group has seen all its stages. Two rounds of the ring ahead, a barrier's phase would look as
    // if it were complete; and two groups that multiply at once only take each other's time.
    if (S::GROUPS_OF_TILE == 1 && turn) bar_sync(group ? 2 : 1, 256);
    multiply_tile<T, S>(sums, stages_at<S>(shared, turn * tiles.steps), tiles.steps, S::GROUPS_OF_TILE == 2 ? group * 64 : 0, [&] {
      load_residual<S>(x, e, warp, first_row, first_column);
      norms = load_norm<S>(x, e, warp, first_row);
    }, [&] {
      if (S::GROUPS_OF_TILE == 1 && tile + tiles.stride < tiles.all) bar_arrive(group ? 1 : 2, 256);
    });
    if (e.residual) {
      mbar_wait(warp.residual_full, residual_phase);
      residual_phase ^= 1;
    }
    store_tile_by_tma<T, S>(sums, x, e, warp, norms, first_row, first_column);
  }
  if (warp.lane == 0) tma_store_wait_read<0>();  // shared memory is another block's when this one has ended
}

template <class T, class S> DEV void hopper_block(uint8_t* memory, const HopperProduct& x, const Epilogue& e) {
  const saddr shared = smem_addr(memory);
  if (threadIdx.x == 0) {
    init_ring(stages_at<S>(shared, 0), 4 * S::GROUPS_OF_TILE * S::CLUSTER);  // a stage is empty when each warp of the cluster that multiplies has done so
    for (int i = 0; i < S::CONSUMER_WARPS; i++) mbar_init(warp_place<S>(shared, i).residual_full, 1);
    mbar_fence_init();
  }
  if constexpr (S::CLUSTER == 1) sync_block();
  else cluster_sync();  // others' copies may arrive here from now on
  const int warp = shfl_idx(threadIdx.x / 32, 0);  // the compiler shall know that it is the warp's
  if (warp < 4) {
    setmaxnreg_dec<LOADER_REGISTERS>();
    if (threadIdx.x == 0) {
      tma_prefetch(&x.a);
      tma_prefetch(&x.w);
      load_tiles<S>(x, shared);
    }
  } else {
    setmaxnreg_inc<CONSUMER_REGISTERS>();
    multiply_tiles<T, S>(x, e, shared, warp - 4);
  }
  if constexpr (S::CLUSTER > 1) {
    sync_warp();
    cluster_sync();  // others' copies and arrivals may come until they have ended too
  }
}

// ---- the tiles ------------------------------------------------------------------------------------------------------------------
#define HOPPER_PARAMETERS TMAP_PARAM(a), TMAP_PARAM(w), TMAP_PARAM(residual), TMAP_PARAM(c), int m, int n, int k, Epilogue e
#define HOPPER_BODY(T, Shape)                                                                                                     \
  {                                                                                                                               \
    SMEM_DYN(hopper_shared);                                                                                                      \
    hopper_block<T, Shape>(hopper_shared, HopperProduct{a, w, residual, c, m, n, k}, e);                                          \
  }
// without the attribute for a cluster of 1, so that the block is none
#define HOPPER_KERNEL_1(name, T, Shape) KERNEL(Shape::THREADS, name, HOPPER_PARAMETERS) HOPPER_BODY(T, Shape)
#define HOPPER_KERNEL_2(name, T, Shape) KERNEL_CLUSTER(Shape::THREADS, 2, name, HOPPER_PARAMETERS) HOPPER_BODY(T, Shape)
#define HOPPER_TILE(name, block_m, block_n, block_k, stages, groups_of_tile, cluster, threads, shared_bytes)                      \
  using name##_shape = HopperShape<block_n, stages, groups_of_tile, cluster>;                                                     \
  static_assert(name##_shape::BLOCK_M == block_m && name##_shape::BLOCK_K == block_k && name##_shape::THREADS == threads &&       \
                name##_shape::SHARED_BYTES == shared_bytes && shared_bytes <= 227 << 10, "the host reads this table");            \
  HOPPER_KERNEL_##cluster(name##_f16, F16, name##_shape)                                                                          \
  HOPPER_KERNEL_##cluster(name##_bf16, BF16, name##_shape)

// 128x256, 128x192: long k, the second where n is a multiple of 192 and not of 256 (384, 1152); 128x128: short k, costly epilogues,
// some hundred rows; without a cluster where a row tile too many would be a wave too many, and to see on a GPU what clusters give.
#define HOPPER_TILES(HOPPER_TILE)                                                \
  HOPPER_TILE(gemm_wgmma_128x256x64_s3_c2, 128, 256, 64, 3, 2, 2, 384, 229488)   \
  HOPPER_TILE(gemm_wgmma_128x192x64_s4_c2, 128, 192, 64, 4, 2, 2, 384, 229504)   \
  HOPPER_TILE(gemm_wgmma_128x128x64_s4_c2, 128, 128, 64, 4, 1, 2, 384, 213120)   \
  HOPPER_TILE(gemm_wgmma_128x128x64_s4, 128, 128, 64, 4, 1, 1, 384, 213120)
HOPPER_TILES(HOPPER_TILE)
#endif
