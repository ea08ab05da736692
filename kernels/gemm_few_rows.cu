// gemm_few_rows.cu - C = epilogue(A W^T) for few rows with wgmma, its operands swapped. For sm_90a only.
//
//   c[m, n or n/2] = epilogue(a[m, k] . w[n, k]^T)          steps of the epilogue: epilogue.cuh
//
// a [m, k], w [n, k], c, e: as for gemm.cu; a and w as tensor maps, as for gemm_hopper.cu, with boxes of
//   a  [64 columns, BLOCK_M rows], 128-byte swizzle
//   w  [64 columns, 64 rows], 128-byte swizzle
// Limits: as gemm.cu; 1 <= splits <= 8. Tails of m, n and k are zeros that TMA fills in, and what is not stored.
//
// Launch: grid ceil(m / BLOCK_M) ceil(n / 64) splits in clusters of `splits` blocks along x, by the launch attribute, as one kernel
// serves all of them; block and dynamic shared memory by the table at the end of this file, which is the only list of the tiles:
//   SWAPPED_TILE(name, BLOCK_M, BLOCK_N, BLOCK_K, STAGES, MAX_SPLITS, THREADS, DYNAMIC_SHARED_BYTES)
//
// How: wgmma has 64 rows on one side and 8 to 256 on the other. The weights' columns take the 64, the tokens the other, so that few
// tokens cost few clocks: c^T = W A^T. One thread loads 64 columns of a tile's w and a at a time into a ring of stages, of w as many
// as the ring has before the kernel in front has ended, as no kernel writes weights; a warpgroup multiplies.
// Split-K: each block of a cluster sums its share of k. Then each has a part of the tile's rows to finish, and adds the blocks' sums in
// their order, out of their shared memory. So a split product is one launch, and no sums go through L2.
// Sums pass through a slab [BLOCK_M, 64] in place of the ring, as rows of c are wanted and a lane has pairs of its columns.
//
// Bits: with splits = 1 each output is one chain of wgmma sums over k in order, as in gemm_hopper.cu, of the same products with their
// factors swapped; so the bits are those of its tiles as far as the tensor cores multiply alike in both orders, which is not
// documented, and which the tests compare on a GPU. With splits > 1 the chain is cut at multiples of 64 ceil(ceil(k / 64) / splits).
//
// What bounds it: the 2 n k bytes of w, from memory or L2; for one text latency: two round trips, and what a block has of k at some 64
// bytes a clock. A stage is 8 KiB of w; six to eight of them in flight are what a multiprocessor gets in the time of a round trip.
// Two blocks fit on a multiprocessor, so that the next launch's can load while this one ends.
// Method: swapped operands as vLLM's products in fp8 have them for small m (swap_ab); sums through distributed shared memory as in
// the CUDA C++ Programming Guide, "Distributed Shared Memory".
#include "gemm_tiles.cuh"
#include "hopper_ring.cuh"

#if defined(HOST_EMULATION) || !defined(__CUDA_ARCH__) || defined(__CUDA_ARCH_FEAT_SM90_ALL)
template <int N, int S> struct FewRowsShape {
  static constexpr int BLOCK_M = N, BLOCK_N = SEGMENT, BLOCK_K = 64, STAGES = S;
  static constexpr int CONSUMERS = 128, THREADS = CONSUMERS + 32;  // a warpgroup, and a warp that loads
  static constexpr int ROWS_PER_PASS = CONSUMERS / SEGMENT_LANES;  // of the epilogue
  static constexpr int W_BYTES = BLOCK_N * 128, STAGE_BYTES = W_BYTES + N * 128;
  using Stages = Ring<S, STAGE_BYTES>;
  static constexpr int RESIDUAL_AT = S * STAGE_BYTES, NORMS_AT = RESIDUAL_AT + N * SEGMENT * 2, BARRIER_AT = NORMS_AT + N * 8;
  static constexpr int SHARED_BYTES = BARRIER_AT + Stages::BARRIER_BYTES;
  static_assert(N * SLAB_ROW_BYTES <= S * STAGE_BYTES, "the slab uses the stages' memory");
};
constexpr int MOST_SPLITS = 8;  // blocks of a cluster, on every GPU that has clusters

struct FewRowsProduct {
  const TensorMap &a, &w;
  half_t* c;
  int m, n, k, splits;
};
// What a block has of a product: a tile, and of its k some stages.
struct FewRowsPart { int first_row, first_column, first_step, steps, rank; };
template <class S> DEV FewRowsPart part_of_block(const FewRowsProduct& x) {
  const TilePlace tile = place_of_block(blockIdx.x / x.splits, (x.m + S::BLOCK_M - 1) / S::BLOCK_M, (x.n + S::BLOCK_N - 1) / S::BLOCK_N);
  const int rank = x.splits == 1 ? 0 : (int)cluster_rank();
  const int all = (x.k + S::BLOCK_K - 1) / S::BLOCK_K, share = (all + x.splits - 1) / x.splits;
  return FewRowsPart{tile.row * S::BLOCK_M, tile.column * S::BLOCK_N, rank * share, max(0, min(share, all - rank * share)), rank};
}

// ---- loading, by one thread -------------------------------------------------------------------------------------------------------
template <class S> DEV void load_weights(const FewRowsProduct& x, const FewRowsPart& part, const typename S::Stages& ring, int step) {
  mbar_arrive_expect_tx(full_barrier(ring), S::STAGE_BYTES);
  tma_load_2d(stage_of(ring), &x.w, full_barrier(ring), (part.first_step + step) * S::BLOCK_K, part.first_column);
}
template <class S> DEV void load_rows(const FewRowsProduct& x, const FewRowsPart& part, const typename S::Stages& ring, int step) {
  tma_load_2d(stage_of(ring) + S::W_BYTES, &x.a, full_barrier(ring), (part.first_step + step) * S::BLOCK_K, part.first_row);
}
template <class S> DEV void load_stages(const FewRowsProduct& x, const FewRowsPart& part, typename S::Stages ring) {
  const int at_once = min(S::STAGES, part.steps);
#pragma unroll 1
  for (int step = 0; step < at_once; step++) {  // the stages' first round: their memory is free
    load_rows<S>(x, part, ring, step);
    advance(ring);
  }
#pragma unroll 1
  for (int step = at_once; step < part.steps; step++) {
    wait_until_empty(ring);
    load_weights<S>(x, part, ring, step);
    load_rows<S>(x, part, ring, step);
    advance(ring);
  }
  griddep_launch();
}

// ---- the sums ---------------------------------------------------------------------------------------------------------------------
template <class S> struct FewRowsSums { float v[S::BLOCK_M / 2]; };

template <class T, class S> DEV void multiply_part(FewRowsSums<S>& sums, typename S::Stages ring, int steps) {
  const bool first_lane = threadIdx.x % 32 == 0;
#pragma unroll
  for (int i = 0; i < S::BLOCK_M / 2; i++) sums.v[i] = 0;  // also what a block without a share of k adds
  saddr last = 0;
#pragma unroll 1
  for (int step = 0; step < steps; step++) {
    const saddr stage = stage_of(ring), empty = empty_barrier(ring);
    wait_until_full(ring);
    wgmma_fence();
#pragma unroll
    for (int i = 0; i < S::BLOCK_K / 16; i++)  // 16 columns on: 32 bytes, which the swizzle leaves a sum
      wgmma_m64<T, S::BLOCK_M>(sums.v, wgmma_desc_sw128(stage + 32 * i), wgmma_desc_sw128(stage + S::W_BYTES + 32 * i), step + i > 0);
    wgmma_commit();
    advance(ring);
    wgmma_wait<1>();  // of the stage before
    if (first_lane && step > 0) mbar_arrive(last);
    last = empty;
  }
  wgmma_wait<0>();
}

// ---- sums to rows -------------------------------------------------------------------------------------------------------------------
// Column c of row r of the slab lies at c ^ 8 (r / 2 % 4) ^ 4 (c / 32): then neither the words going in (4 pairs of rows x 8 banks)
// nor the quads coming out (8 lanes of a row, 8 columns apart) share a bank.
DEV saddr few_rows_slab_at(saddr slab, int row, int column) {
  return slab + row * SLAB_ROW_BYTES + (saddr)(column ^ ((row >> 1 & 3) << 3) ^ ((column & 32) >> 3)) * 4;
}
template <class S> DEV void store_columns(const FewRowsSums<S>& sums, saddr slab) {
  const int lane = threadIdx.x % 32, column = threadIdx.x / 32 * 16 + lane / 4, row = 2 * (lane % 4);
#pragma unroll
  for (int i = 0; i < S::BLOCK_M / 2; i++)  // as wgmma has them: rows 8 (i / 4) and the next, columns 8 apart
    st_shared_f32(few_rows_slab_at(slab, row + i / 4 * 8 + i % 2, column + i / 2 % 2 * 8), sums.v[i]);
}
// Eight columns of a row, of all blocks' sums in their order.
DEV void add_parts(saddr at, int splits, float (&v)[VECTOR]) {
  constexpr int BATCH = 4;  // loads in flight at once
#pragma unroll
  for (int i = 0; i < VECTOR; i++) v[i] = 0;
#pragma unroll 1
  for (int first = 0; first < splits; first += BATCH) {
    u128 part[BATCH][2];
#pragma unroll
    for (int s = 0; s < BATCH; s++)
#pragma unroll
      for (int half = 0; half < 2; half++) {
        part[s][half] = u128{0, 0, 0, 0};
        if (first + s < splits) part[s][half] = splits == 1 ? ld_shared_128(at ^ 16 * half) : ld_cluster_128(at ^ 16 * half, first + s);
      }
#pragma unroll
    for (int s = 0; s < BATCH; s++)
#pragma unroll
      for (int half = 0; half < 2; half++) {
        v[4 * half] += f32_from_bits(part[s][half].x);
        v[4 * half + 1] += f32_from_bits(part[s][half].y);
        v[4 * half + 2] += f32_from_bits(part[s][half].z);
        v[4 * half + 3] += f32_from_bits(part[s][half].w);
      }
  }
}

// ---- a block ------------------------------------------------------------------------------------------------------------------------
template <class T, class S> DEV void few_rows_block(uint8_t* memory, const FewRowsProduct& x, const Epilogue& e) {
  const saddr shared = smem_addr(memory);
  const FewRowsPart part = part_of_block<S>(x);
  const typename S::Stages stages = ring_at<typename S::Stages>(shared, shared + S::BARRIER_AT, 0);
  const int thread = threadIdx.x, rows = (S::BLOCK_M + x.splits - 1) / x.splits;  // that this block finishes
  const bool loads = thread == S::CONSUMERS, multiplies = thread < S::CONSUMERS;
  const int first_row = part.first_row + part.rank * rows, column = part.first_column + thread % SEGMENT_LANES * VECTOR;
  const int rows_here = min(min(rows, S::BLOCK_M - part.rank * rows), x.m - first_row);  // none: 0 or less
  const bool in_columns = column < x.n;

  if (loads) {
    init_ring(stages, S::CONSUMERS / 32);
    mbar_fence_init();
    typename S::Stages ring = stages;
#pragma unroll 1
    for (int step = 0; step < min(S::STAGES, part.steps); step++) {
      load_weights<S>(x, part, ring, step);
      advance(ring);
    }
  }
  EpilogueColumns columns;  // of what no kernel writes either
  load_columns(e, column, x.n, multiplies, columns);
  sync_block();
  griddep_wait();  // what came before has written a, residual and statistics, and read what is written here
  if (loads) load_stages<S>(x, part, stages);
  if (multiplies) {
    // A lane's residual goes to places that it alone reads.
    if (e.residual) {
#pragma unroll 1
      for (int i = thread / SEGMENT_LANES; i < rows; i += S::ROWS_PER_PASS)
        cp_async_16(shared + S::RESIDUAL_AT + (i * SEGMENT_LANES + thread % SEGMENT_LANES) * 16, e.residual + (size_t)(first_row + i) * (size_t)x.n + column,
                    i < rows_here && in_columns);
    }
    cp_async_commit();
    if (e.norm_target != NORM_NONE && thread < rows) {
      RowNorm norm = thread < rows_here ? row_norm(e, (size_t)(first_row + thread)) : RowNorm{0, 0};
      st_shared_64(shared + S::NORMS_AT + thread * 8, u64x{f32_bits(norm.mean), f32_bits(norm.rstd)});
    }
    FewRowsSums<S> sums;
    multiply_part<T, S>(sums, stages, part.steps);
    bar_sync(1, S::CONSUMERS);  // all warps have done with the stages, which the slab overwrites
    store_columns<S>(sums, shared);
  }
  sync_warp();
  if (x.splits == 1) sync_block();
  else cluster_sync();
  if (multiplies) {
    cp_async_wait<0>();
    const int in_pass = thread / SEGMENT_LANES;
#pragma unroll 1
    for (int pass = 0; pass < rows; pass += S::ROWS_PER_PASS) {
      const int i = pass + in_pass;
      const bool inside = i < rows_here && in_columns;
      float v[VECTOR] = {0, 0, 0, 0, 0, 0, 0, 0};
      u128 residual = u128{0, 0, 0, 0};
      RowNorm norm = RowNorm{0, 0};
      if (inside) {
        add_parts(few_rows_slab_at(shared, part.rank * rows + i, thread % SEGMENT_LANES * VECTOR), x.splits, v);
        if (e.residual) residual = ld_shared_128(shared + S::RESIDUAL_AT + (i * SEGMENT_LANES + thread % SEGMENT_LANES) * 16);
        if (e.norm_target != NORM_NONE) {
          const u64x stored = ld_shared_64(shared + S::NORMS_AT + i * 8);
          norm = RowNorm{f32_from_bits(stored.x), f32_from_bits(stored.y)};
        }
      }
      sync_warp();
      finish_row_to<T>(x.c, e, columns, v, norm, residual, EpiloguePlace{(size_t)(first_row + i), column, x.n, inside});
    }
  }
  if (x.splits > 1) {
    sync_warp();
    cluster_sync();  // others read this block's sums until here
  }
}

// ---- the tiles ------------------------------------------------------------------------------------------------------------------
#define FEW_ROWS_KERNEL(name, T, Shape)                                                                                           \
  KERNEL_CLUSTER_AT_LAUNCH(Shape::THREADS, name, TMAP_PARAM(a), TMAP_PARAM(w), half_t* c, int m, int n, int k, int splits, Epilogue e) { \
    SMEM_DYN(few_rows_shared);                                                                                                    \
    few_rows_block<T, Shape>(few_rows_shared, FewRowsProduct{a, w, c, m, n, k, splits}, e);                                       \
  }
#define SWAPPED_TILE(name, block_m, block_n, block_k, stages, max_splits, threads, shared_bytes)                                 \
  using name##_shape = FewRowsShape<block_m, stages>;                                                                             \
  static_assert(name##_shape::BLOCK_N == block_n && name##_shape::BLOCK_K == block_k && name##_shape::THREADS == threads &&       \
                name##_shape::SHARED_BYTES == shared_bytes && max_splits == MOST_SPLITS, "the host reads this table");            \
  FEW_ROWS_KERNEL(name##_f16, F16, name##_shape)                                                                                  \
  FEW_ROWS_KERNEL(name##_bf16, BF16, name##_shape)

// By the rows that there are; beyond 64 several row tiles, where 128x128 would leave multiprocessors without a tile. Registers a
// thread, in this order: 116, 92, 90; nothing spills.
#define SWAPPED_TILES(SWAPPED_TILE)                                            \
  SWAPPED_TILE(gemm_wgmma_64x64x64_s6, 64, 64, 64, 6, 8, 160, 107104)           \
  SWAPPED_TILE(gemm_wgmma_32x64x64_s8, 32, 64, 64, 8, 8, 160, 102784)           \
  SWAPPED_TILE(gemm_wgmma_16x64x64_s8, 16, 64, 64, 8, 8, 160, 84224)
SWAPPED_TILES(SWAPPED_TILE)
#endif
