// gemm.cu - C = epilogue(A W^T) on tensor cores with mma.sync, for sm_80 and up.
//
//   c[m, n or n/2] = epilogue(a[m, k] . w[n, k]^T)          steps of the epilogue: epilogue.cuh
//
// a [m, k], w [n, k] (nn.Linear's own layout), c: 16-bit (F16 or BF16), row-major, contiguous; sums in fp32.
// Limits: m >= 1; n, k multiples of 8 (16 if gated); all pointers 16-byte aligned; m k and n k may exceed 2^31 elements.
// Anything else is refused on the host. Tails of m, n and k are filled with zeros on their way into shared memory.
//
// Launch: grid (ceil(m / BLOCK_M) ceil(n / BLOCK_N), splits), block `threads`, dynamic shared memory as in the table at the
// end of this file, which is the only list of the tiles: one line an instantiation, beginning with `  GEMM_TILE(gemm_`:
//   GEMM_TILE(name, BLOCK_M, BLOCK_N, BLOCK_K, STAGES, WARPS_M, WARPS_N, MAX_SPLITS, THREADS, DYNAMIC_SHARED_BYTES)
// in plain numbers, for the host's table to be made from or checked against. Each makes <name>_f16 and <name>_bf16.
// All tiles have the same parameters. Static shared memory: 8 BLOCK_M bytes more, rounded up to 1 KiB by the alignment of
// the stages; with the system's own 1 KiB, two blocks of 128x128 just fit in the 100 KiB of an sm_86.
// Split-K, where MAX_SPLITS > 1: with splits > 1, block row y sums its share of k into partials [splits, m, n] f32 and
// `splitk_reduce` adds these in order and applies the epilogue. splits <= ceil(k / BLOCK_K). `partials` is not read or
// written if splits is 1, `c` and the epilogue not used by a product that was split.
//
// Bits: each output is one chain of m16n8k16 sums over k in order, from +0, whatever the tile, so all tiles give the same
// bits for the same row with splits = 1, and statistics are kept per 64 columns for the same reason. The batch-invariant
// setting is therefore: any tile, never split-K. With splits > 1 the chain is cut at multiples of
// BLOCK_K ceil(ceil(k / BLOCK_K) / splits).
//
// What bounds it: 2 m n k FLOPs for large m; for m <= 64 the 2 n k bytes of w. A warp tile of 64x64 reads 4 KiB of shared
// memory for 64x64x16 multiply-adds: 32 clocks of an sm_80's port (128 B/clk) for 64 clocks of its tensor cores, and the
// copies into shared memory take another 12 (128x256) to 16 (128x128). Warp tiles of 64x32 would need 48 + 16 of 64.
//
// Method: multistage cp.async pipeline with ldmatrix and register double buffering, as in CUTLASS's sm_80 mainloop
// (include/cutlass/gemm/threadblock/mma_multistage.h); grouped block order as in Triton's matmul tutorial; XOR swizzle.
#include "gemm_tiles.cuh"

template <int M, int N, int K, int S, int WM, int WN> struct GemmShape {
  static constexpr int BLOCK_M = M, BLOCK_N = N, BLOCK_K = K, STAGES = S, WARPS_M = WM, WARPS_N = WN;
  static constexpr int THREADS = WM * WN * 32;
  static constexpr int WARP_M = M / WM, WARP_N = N / WN;
  static constexpr int MMA_M = WARP_M / 16, MMA_N = WARP_N / 8;    // m16n8k16 tiles of a warp
  static constexpr int K_STEPS = K / 16;
  static constexpr int ROW_BYTES = 2 * K, ROW_CHUNKS = K / VECTOR;  // a row of a stage, in 16-byte chunks
  static constexpr int A_BYTES = M * ROW_BYTES, STAGE_BYTES = (M + N) * ROW_BYTES;
  static constexpr int SHARED_BYTES = S * STAGE_BYTES;
  // Epilogue: the warps that share 64 columns and WARP_M rows form a team, with a slab of 16 rows of fp32 sums.
  static constexpr int TEAM_WARPS = SEGMENT / WARP_N, TEAM_THREADS = 32 * TEAM_WARPS, TEAMS = WM * WN / TEAM_WARPS;
  static constexpr int SLAB_BYTES = 16 * SLAB_ROW_BYTES;
  static constexpr int ROWS_PER_PASS = TEAM_THREADS / SEGMENT_LANES, PASSES = 16 / ROWS_PER_PASS;
  static constexpr int RESIDUAL_BYTES = TEAMS * WARP_M * SEGMENT * 2;
  static_assert(WARP_M % 16 == 0 && (WARP_N == 16 || WARP_N == 32 || WARP_N == 64) && N % SEGMENT == 0, "warps");
  static_assert(K == 32 || K == 64, "swizzle");
  static_assert(TEAMS * SLAB_BYTES + RESIDUAL_BYTES <= SHARED_BYTES, "the epilogue uses the stages' memory");
  static_assert(THREADS >= M, "one thread a row merges statistics");
};

// Chunk c of row r of a stage lies at chunk c ^ phase(r) of its row: eight rows that ldmatrix reads at once are in eight
// different 16-byte columns of the 128-byte wide memory. With rows of 64 bytes two rows share a line of it.
template <class S> DEV int chunk_phase(int row) { return S::ROW_CHUNKS == 8 ? row & 7 : (row >> 1) & 3; }

// ---- global to shared ---------------------------------------------------------------------------------------------------
// One thread's chunks of a [ROWS, BLOCK_K] piece of a row-major [rows, k] matrix: always the same column of chunks, rows
// ROW_STEP apart. That is a multiple of 8, so the swizzle's phase is the same in all of them.
struct PieceCursor {
  const half_t* source;  // this thread's first chunk of the next piece
  int rows_left;         // rows of the matrix from this thread's first row on
  int k_left;            // elements of the row from that chunk on
  saddr offset;          // of that chunk in a stage
};

template <class S> DEV PieceCursor piece_cursor(const half_t* matrix, int first_row, int rows, int k_begin, int k, int offset_in_stage) {
  int row = threadIdx.x / S::ROW_CHUNKS, chunk = threadIdx.x % S::ROW_CHUNKS, column = k_begin + chunk * VECTOR;
  return PieceCursor{matrix + (size_t)(first_row + row) * (size_t)k + column, rows - first_row - row, k - column,
                     (saddr)(offset_in_stage + row * S::ROW_BYTES + ((chunk ^ chunk_phase<S>(row)) << 4))};
}

// Copies the next piece into a stage. Chunks outside the matrix become zeros; their addresses are not read.
template <class S, int ROWS> DEV void copy_piece(PieceCursor& p, int k, saddr stage) {
  constexpr int ROW_STEP = S::THREADS / S::ROW_CHUNKS;
  static_assert(ROW_STEP % 8 == 0 && ROWS % ROW_STEP == 0, "the rows divide among the threads");
#pragma unroll
  for (int i = 0; i < ROWS / ROW_STEP; i++)
    cp_async_16(stage + p.offset + i * ROW_STEP * S::ROW_BYTES, p.source + (size_t)(i * ROW_STEP) * (size_t)k,
                i * ROW_STEP < p.rows_left && p.k_left > 0);
  p.source += S::BLOCK_K;
  p.k_left -= S::BLOCK_K;
}

// ---- shared to registers --------------------------------------------------------------------------------------------------
template <class S> struct Fragments { uint32_t a[S::MMA_M][4], b[S::MMA_N / 2][4]; };

// Where this lane reads in a stage for its warp's first 16 rows of each operand, step 0. Step s is at the same address with
// 32 s XORed in: a step is two chunks, and stages and rows are aligned to a row's bytes.
struct FragmentOffsets { saddr a, b; };

template <class S> DEV FragmentOffsets fragment_offsets(int warp_row, int warp_column) {
  int lane = threadIdx.x & 31;
  int a_row = warp_row * S::WARP_M + (lane & 15), a_chunk = lane >> 4;
  int b_row = warp_column * S::WARP_N + (lane & 7) + ((lane >> 4) << 3), b_chunk = (lane >> 3) & 1;
  return FragmentOffsets{(saddr)(a_row * S::ROW_BYTES + ((a_chunk ^ chunk_phase<S>(a_row)) << 4)),
                         (saddr)(S::A_BYTES + b_row * S::ROW_BYTES + ((b_chunk ^ chunk_phase<S>(b_row)) << 4))};
}
template <class S> DEV void load_fragments(Fragments<S>& f, FragmentOffsets at, saddr stage, int step) {
  saddr a = (stage + at.a) ^ (saddr)(32 * step), b = (stage + at.b) ^ (saddr)(32 * step);
#pragma unroll
  for (int i = 0; i < S::MMA_M; i++) ldmatrix_x4(f.a[i], a + i * 16 * S::ROW_BYTES);
#pragma unroll
  for (int j = 0; j < S::MMA_N / 2; j++) ldmatrix_x4(f.b[j], b + j * 16 * S::ROW_BYTES);
}

// ---- the sums -----------------------------------------------------------------------------------------------------------
template <class S> struct Sums { float v[S::MMA_M][S::MMA_N][4]; };

// Back and forth over the columns, so that neighbouring instructions share an operand.
template <class T, class S> DEV void multiply(Sums<S>& sums, const Fragments<S>& f) {
#pragma unroll
  for (int i = 0; i < S::MMA_M; i++)
#pragma unroll
    for (int jj = 0; jj < S::MMA_N; jj++) {
      int j = i & 1 ? S::MMA_N - 1 - jj : jj;
      T::mma(sums.v[i][j], f.a[i], f.b[j / 2][j % 2 * 2], f.b[j / 2][j % 2 * 2 + 1]);
    }
}

// Sums of `pieces` pieces of BLOCK_K columns. Step s + 1 of the fragments loads while step s multiplies; at the last step of
// a piece, waiting for the next one also tells that all warps have read the one before it, whose stage is filled next.
// `meanwhile` runs while the first pieces are on their way.
template <class T, class S, class F>
DEV void mainloop(Sums<S>& sums, PieceCursor a, PieceCursor w, int k, int pieces, FragmentOffsets at, saddr stages, F meanwhile) {
  auto next = [](saddr stage, saddr stages) { return stage + S::STAGE_BYTES == stages + S::SHARED_BYTES ? stages : stage + S::STAGE_BYTES; };
  auto fill = [&](saddr stage, bool wanted) {
    if (wanted) {
      copy_piece<S, S::BLOCK_N>(w, k, stage);
      copy_piece<S, S::BLOCK_M>(a, k, stage);
    }
    cp_async_commit();  // also an empty group: waiting counts groups
  };
#pragma unroll 1
  for (int s = 0; s < S::STAGES - 1; s++) fill(stages + s * S::STAGE_BYTES, s < pieces);
  meanwhile();
  saddr reading = stages, filling = stages + (S::STAGES - 1) * S::STAGE_BYTES;
  cp_async_wait<S::STAGES - 2>();
  sync_block();
  Fragments<S> f[2];
  load_fragments<S>(f[0], at, reading, 0);
#pragma unroll 1
  for (int piece = 0; piece < pieces; piece++) {
#pragma unroll
    for (int step = 0; step < S::K_STEPS; step++) {
      if (step == S::K_STEPS - 1) {
        cp_async_wait<S::STAGES - 2>();
        sync_block();
        reading = next(reading, stages);
      }
      // After the last piece this reads what is left in a stage, and nothing uses it: cheaper than a branch here.
      load_fragments<S>(f[(step + 1) % 2], at, reading, (step + 1) % S::K_STEPS);
      if (step == 0) {
        fill(filling, piece + S::STAGES - 1 < pieces);
        filling = next(filling, stages);
      }
      multiply<T, S>(sums, f[step % 2]);
    }
  }
  cp_async_wait<0>();
  sync_block();  // the epilogue writes where the fragments were read
}

// ---- epilogue: fragments to rows --------------------------------------------------------------------------------------------
// A lane's sums are pairs of columns scattered over rows; stores and residual loads want 16 bytes a lane and whole lines.
// So 16 rows at a time pass through shared memory as fp32, a slab of 64 columns, within a team of 1, 2 or 4 warps.
// All teams of a block have the same number of slabs, so a barrier of the block serves teams of several warps. (Named
// barriers for each team were tried: with computed ids a block takes all sixteen, and they save nothing for two teams.)
template <class S> DEV void team_sync() {
  if (S::TEAM_WARPS == 1) sync_warp();
  else sync_block();
}
template <class S> DEV void store_slab(const float (&sums)[S::MMA_N][4], saddr slab, int warp_in_team) {
  int lane = threadIdx.x & 31, row = lane >> 2;
  // the swizzle is linear over XOR, so the lane's part and each column's constant combine
  saddr base = slab + row * SLAB_ROW_BYTES + (slab_swizzle(row, 2 * (lane & 3)) ^ slab_swizzle(0, warp_in_team * S::WARP_N));
#pragma unroll
  for (int j = 0; j < S::MMA_N; j++) {
    saddr at = base ^ slab_swizzle(0, 8 * j);
    st_shared_64(at, u64x{f32_bits(sums[j][0]), f32_bits(sums[j][1])});
    st_shared_64(at + 8 * SLAB_ROW_BYTES, u64x{f32_bits(sums[j][2]), f32_bits(sums[j][3])});
  }
}
struct Matrices {
  const half_t *a, *w;
  half_t* c;
  float* partials;
  int m, n, k;
};

template <class T, class S>
DEV void store_tile(const Sums<S>& sums, const Matrices& x, const Epilogue& e, int first_row, int first_column, saddr shared, saddr norms) {
  const int warp = threadIdx.x >> 5, team = warp / S::TEAM_WARPS, warp_in_team = warp % S::TEAM_WARPS;
  const int lane = threadIdx.x % S::TEAM_THREADS, lane_row = lane / SEGMENT_LANES;
  const int team_row = warp / S::WARPS_N * S::WARP_M, team_column = team % (S::WARPS_N / S::TEAM_WARPS) * SEGMENT;
  const int slab_column = lane % SEGMENT_LANES * VECTOR, column = first_column + team_column + slab_column;
  const saddr slab = shared + team * S::SLAB_BYTES;
  const bool split = gridDim.y > 1, in_columns = column < x.n;

  // A lane's residual goes to places that it alone reads, so that waiting for its own copies is enough. All are in flight
  // at once: loaded row by row, their latency would cost as much as the product.
  const saddr residual = shared + S::TEAMS * S::SLAB_BYTES + (team * S::WARP_M * SEGMENT_LANES + lane) * 16;
  if (e.residual && !split) {
#pragma unroll 4
    for (int i = 0; i < S::MMA_M * S::PASSES; i++) {
      int row = first_row + team_row + i * S::ROWS_PER_PASS + lane_row;
      bool inside = row < x.m && in_columns;
      cp_async_16(residual + i * S::TEAM_THREADS * 16, e.residual + (size_t)row * (size_t)x.n + column, inside);
    }
  }
  cp_async_commit();
  EpilogueColumns columns;
  load_columns(e, column, x.n, !split, columns);

#pragma unroll 1  // once in the code: an activation of 8 columns in seven kinds is long
  for (int i = 0; i < S::MMA_M; i++) {
#pragma unroll
    for (int s = 0; s < S::MMA_M; s++)
      if (s == i) store_slab<S>(sums.v[s], slab, warp_in_team);  // registers cannot be indexed
    cp_async_wait<0>();
    team_sync<S>();
#pragma unroll 1
    for (int pass = 0; pass < S::PASSES; pass++) {
      int slab_row = pass * S::ROWS_PER_PASS + lane_row, tile_row = team_row + i * 16 + slab_row, row = first_row + tile_row;
      bool inside = row < x.m && in_columns;
      float v[VECTOR];
      load_slab(slab, slab_row, slab_column, v);
      if (split) {
        if (inside) store8_f32(x.partials + ((size_t)blockIdx.y * (size_t)x.m + (size_t)row) * (size_t)x.n + column, v);
        continue;
      }
      u128 r = u128{0, 0, 0, 0};
      if (e.residual) r = ld_shared_128(residual + (i * S::PASSES + pass) * S::TEAM_THREADS * 16);
      RowNorm norm = RowNorm{0, 0};
      if (e.norm_target != NORM_NONE) {
        u64x stored = ld_shared_64(norms + tile_row * 8);
        norm = RowNorm{f32_from_bits(stored.x), f32_from_bits(stored.y)};
      }
      finish_row_to<T>(x.c, e, columns, v, norm, r, EpiloguePlace{(size_t)row, column, x.n, inside});
    }
    team_sync<S>();
  }
}

// ---- a block ----------------------------------------------------------------------------------------------------------------
template <class T, class S> DEV void gemm_block(uint8_t* shared, float* norms, const Matrices& x, const Epilogue& e) {
  const TilePlace tile = place_of_block(blockIdx.x, (x.m + S::BLOCK_M - 1) / S::BLOCK_M, (x.n + S::BLOCK_N - 1) / S::BLOCK_N);
  const int first_row = tile.row * S::BLOCK_M, first_column = tile.column * S::BLOCK_N;
  const int all_pieces = (x.k + S::BLOCK_K - 1) / S::BLOCK_K, share = (all_pieces + gridDim.y - 1) / gridDim.y;
  const int first_piece = blockIdx.y * share, pieces = max(0, min(share, all_pieces - first_piece));
  const int warp = threadIdx.x >> 5;

  griddep_wait();  // launched with programmatic serialisation or not: what came before has written a, residual, statistics
  Sums<S> sums;
#pragma unroll
  for (int i = 0; i < S::MMA_M; i++)
#pragma unroll
    for (int j = 0; j < S::MMA_N; j++)
#pragma unroll
      for (int q = 0; q < 4; q++) sums.v[i][j][q] = 0;
  mainloop<T, S>(sums, piece_cursor<S>(x.a, first_row, x.m, first_piece * S::BLOCK_K, x.k, 0),
                 piece_cursor<S>(x.w, first_column, x.n, first_piece * S::BLOCK_K, x.k, S::A_BYTES), x.k, pieces,
                 fragment_offsets<S>(warp / S::WARPS_N, warp % S::WARPS_N), smem_addr(shared), [&] {
                   // barriers of the main loop lie between this and its use
                   if (e.norm_target == NORM_NONE || gridDim.y > 1 || (int)threadIdx.x >= S::BLOCK_M) return;
                   int row = first_row + threadIdx.x;
                   RowNorm norm = row < x.m ? row_norm(e, (size_t)row) : RowNorm{0, 0};
                   st_shared_64(smem_addr(norms + 2 * threadIdx.x), u64x{f32_bits(norm.mean), f32_bits(norm.rstd)});
                 });
  griddep_launch();
  store_tile<T, S>(sums, x, e, first_row, first_column, smem_addr(shared), smem_addr(norms));
}

// ---- the sums of a split product ----------------------------------------------------------------------------------------------
// c = epilogue(sum of partials [splits, m, n], in order). One lane eight columns, as in the tiles; bound by the bytes of
// partials, which L2 still holds: small blocks, so that a few rows spread over many multiprocessors. Grid
// ceil(m ceil(n / 64) / 8), block 64, no dynamic shared memory.
constexpr int REDUCE_THREADS = 64;
template <class T> DEV void splitk_reduce_block(const float* partials, half_t* c, int m, int n, int splits, const Epilogue& e) {
  const int segments = (n + SEGMENT - 1) / SEGMENT, unit = (blockIdx.x * REDUCE_THREADS + threadIdx.x) / SEGMENT_LANES;
  const int row = unit / segments, column = unit % segments * SEGMENT + threadIdx.x % SEGMENT_LANES * VECTOR;
  const bool inside = row < m && column < n;
  const size_t at = (size_t)row * (size_t)n + column;
  griddep_wait();
  float v[VECTOR] = {0, 0, 0, 0, 0, 0, 0, 0};
  u128 residual = u128{0, 0, 0, 0};
  if (inside) {
    for (int s = 0; s < splits; s++) {
      const float* p = partials + (size_t)s * (size_t)m * (size_t)n + at;
      u128 low = ld_global_128(p), high = ld_global_128(p + 4);
      v[0] += f32_from_bits(low.x); v[1] += f32_from_bits(low.y); v[2] += f32_from_bits(low.z); v[3] += f32_from_bits(low.w);
      v[4] += f32_from_bits(high.x); v[5] += f32_from_bits(high.y); v[6] += f32_from_bits(high.z); v[7] += f32_from_bits(high.w);
    }
    if (e.residual) residual = ld_global_128(e.residual + at);
  }
  EpilogueColumns columns;
  load_columns(e, column, n, row < m, columns);
  RowNorm norm = inside && e.norm_target != NORM_NONE ? row_norm(e, (size_t)row) : RowNorm{0, 0};
  finish_row_to<T>(c, e, columns, v, norm, residual, EpiloguePlace{(size_t)row, column, n, inside});
}
#define SPLITK_REDUCE(name, T)                                                                                      \
  KERNEL(REDUCE_THREADS, name, const float* partials, half_t* c, int m, int n, int splits, Epilogue e) {            \
    splitk_reduce_block<T>(partials, c, m, n, splits, e);                                                           \
  }
SPLITK_REDUCE(splitk_reduce_f16, F16)
SPLITK_REDUCE(splitk_reduce_bf16, BF16)

// ---- the tiles ------------------------------------------------------------------------------------------------------------------
#define GEMM_KERNEL(name, T, Shape)                                                                                               \
  KERNEL(Shape::THREADS, name, const half_t* a, const half_t* w, half_t* c, float* partials, int m, int n, int k, Epilogue e) {   \
    SMEM_DYN(shared);                                                                                                             \
    SMEM_ARRAY(float, norms, 2 * Shape::BLOCK_M);                                                                                 \
    gemm_block<T, Shape>(shared, norms, Matrices{a, w, c, partials, m, n, k}, e);                                                 \
  }
#define GEMM_TILE(name, block_m, block_n, block_k, stages, warps_m, warps_n, max_splits, threads, shared_bytes)                   \
  using name##_shape = GemmShape<block_m, block_n, block_k, stages, warps_m, warps_n>;                                            \
  static_assert(name##_shape::THREADS == threads && name##_shape::SHARED_BYTES == shared_bytes, "the host reads this table");     \
  GEMM_KERNEL(name##_f16, F16, name##_shape)                                                                                      \
  GEMM_KERNEL(name##_bf16, BF16, name##_shape)

// 128x256, 256x128: large m, one block of 8 warps a multiprocessor, for the least traffic from L2: 24 B/clk at an sm_80's
//   full rate, half of what its L2 gives. Four stages are 96 KiB, which every GPU since sm_86 has (99 KiB a block). The
//   first where n is a multiple of 256 (768, 1024 and up), the second for 384 and 1152.
// 128x128: large m where two blocks a multiprocessor, one in its epilogue while the other multiplies, gain more than larger
//   tiles: GPUs with 100 KiB of shared memory and a slower tensor core (sm_86, 89, 120), and short k.
// 64x128: some hundred rows, where 128x128 leaves multiprocessors without a block.
// 64x64, 32x64, 16x64: m <= 64, 32, 16. w is read once, as fast as memory gives it, so what counts is bytes in flight (24 to
//   36 KiB a block, of which two or more run side by side), blocks (split-K), and no time spent on multiplying zeros.
//   Rows of 128 bytes (BLOCK_K 64): fewer barriers, whole lines of w.
// Registers a thread, sm_80 to sm_120, in this order: 222-238 (128 are sums), 222-238, 226-238, 148-160, 112-123, 95-105,
// 61-66; splitk_reduce 79-87. Nothing spills.
#define GEMM_TILES(GEMM_TILE)                                                \
  GEMM_TILE(gemm_128x256x32_s4, 128, 256, 32, 4, 2, 4, 1, 256, 98304)        \
  GEMM_TILE(gemm_256x128x32_s4, 256, 128, 32, 4, 4, 2, 1, 256, 98304)        \
  GEMM_TILE(gemm_128x128x32_s3, 128, 128, 32, 3, 2, 2, 1, 128, 49152)        \
  GEMM_TILE(gemm_64x128x32_s4, 64, 128, 32, 4, 2, 2, 1, 128, 49152)          \
  GEMM_TILE(gemm_64x64x64_s3, 64, 64, 64, 3, 2, 2, 16, 128, 49152)           \
  GEMM_TILE(gemm_32x64x64_s4, 32, 64, 64, 4, 1, 4, 16, 128, 49152)           \
  GEMM_TILE(gemm_16x64x64_s4, 16, 64, 64, 4, 1, 4, 16, 128, 40960)
GEMM_TILES(GEMM_TILE)
