// persistent_encoder.cu - the whole encoder of a small batch in one launch: from ids to vectors.
//
//   embeddings, layernorm -> [qkv -> attention -> projection + residual -> layernorm -> up, activation -> down + residual
//   -> layernorm] x layers -> layernorm, pooling, L2 norm
//
// Formulas: those of embed_layernorm.cu, epilogue.cuh (layernorms folded into the products), attention.cu (no bias, no window)
// and pool.cu. Blocks stay on their multiprocessors; between two phases they meet at a barrier (grid_barrier.cuh). A layer has five
// phases. While a block waits, the weights of its next product are on their way into shared memory: they depend on nothing.
//
// Arguments   model, batch: the structs below, by value; src/backend/cuda/device/persistent.rs mirrors them
// Limits      1 to 256 tokens, at most 256 sequences and tiles; hidden at most 1,024, intermediate at most 4,096, multiples of 8; head
//             size 32, 64, 128; products not gated; no pooling by the maximum; weights as epilogue.cuh wants them folded, of the first
//             layer's qkv not folded
// Launch      on the whole grid: cooperative, at most one block a multiprocessor and the same number at every launch on the same
//             `barrier`. Or, from sm_90 on, in clusters along x, one for each part of the batch, which know nothing of each other.
//             Block as in the table at the end, dynamic shared memory at least
//
// Products. A unit is 8 columns of the result over all of k, the n of an m16n8k16; a block computes a share of the units: it copies
// the weights of as many as its shared memory holds, and computes up to four of them side by side. Its 8 warps take every 8th piece
// of 32 of k each; their sums meet in shared memory and are added in the warps' order. Weights are copied by rows; a lane reads 16 bytes of a row and 16 of an
// activation's and takes the elements for k in the order in which they lie, the same order for both, so that neither needs ldmatrix.
// Activations come straight from L2, all of a k of 1,024 at once.
// Layernorms. Each block takes mean and spread of all rows from the rows themselves, where it needs them first (qkv, up),
// and has them still for the residual (projection, down). Statistics by segments of 64 columns, as gemm.cu keeps them, would have
// several blocks write into one segment.
//
// Bits: a row's depend on its own sequence only, not on the batch, the grid or which block is late; they are not those of the
// kernels that compute larger batches. No atomics, every sum in a fixed order.
// Teams. Blocks that meet at barriers are a team: the grid, or a cluster of up to 16 blocks, whose barrier is the hardware's and should
// take a quarter of the grid's. A cluster reads all weights for itself, from L2, so it is for small models.
// Bound by    the weights' bytes, each read once, and 5 barriers a layer; beyond some 32 tokens by activations, of which every
//             block reads all: 2 tokens k bytes a product and block
// Method      persistent "megakernels" for small batches: Spector et al. (Hazy Research), "Look Ma, No Bubbles", 2025
#include "attention_warp.cuh"
#include "embed_layernorm.cu"
#include "epilogue.cuh"
#include "grid_barrier.cuh"
#include "pool.cu"

// ---- arguments, mirrored by Rust --------------------------------------------------------------------------------------------
struct PersistentProduct {  // c [tokens, n] = epilogue(a [tokens, k] . w [n, k]^T); norm_stats and row_stats are null
  const half_t *a, *w;
  half_t* c;
  int32_t n, k;
  Epilogue epilogue;
  int32_t units_held;  // what the launch's shared memory holds, beside 32 KiB, of units of 16 (k rounded up to a multiple of 64) bytes
  int32_t reserved;
};
static_assert(sizeof(PersistentProduct) == 112, "Rust mirrors this layout, and it is read 16 bytes at a time");

struct PersistentModel {
  const half_t *word, *position, *type;       // tables of embeddings, as in embed_layernorm.cu
  const float *embeddings_gamma, *embeddings_beta;
  const PersistentProduct* products;          // [4 layers]: qkv, projection, up, down
  half_t *x, *qkv, *attended;                 // [256, hidden], [256, 3 hidden], [256, hidden]: the stream, and around attention. None
                                              // overlaps what a product writes: clusters are at different phases
  const float *final_gamma, *final_beta;      // of the last layer's second layernorm
  uint32_t* barrier;                          // [gridDim.x], zeros at first
  u128* tiles;                                // [256], and
  int *ends, *left_out;                       // [256] each: where the batch's tiles, cu_seqlens[1 ...] and left_out go, for all phases
  int32_t layers, hidden, num_heads, head_dim;
  float embeddings_eps, final_eps;
  int32_t pooling;                            // Pooling of pool.cu
  int32_t reserved;
};
static_assert(sizeof(PersistentModel) == 152, "Rust mirrors this layout");

struct PersistentPart { int32_t sequence, token, tile, reserved; };  // where it begins
constexpr int PERSISTENT_PARTS = 8;           // clusters of 16 that a GPU has room for
// What pointers lead to may lie in the host's memory: each word is read once, in the first phase, or written once.
struct PersistentBatch {
  const int *ids, *position_ids, *type_ids;   // [total_tokens]
  const int *cu_seqlens, *left_out;           // [batch + 1], the first one 0; [batch] or null, as in pool.cu
  const u128* tiles;                          // [tile_count] {first row of the sequence, its tokens, first query, queries}: an
                                              // entry at every 16th query; one of 0 tokens is skipped
  float* vectors;                             // [batch, hidden]
  int32_t normalize, parts, in_clusters;      // parts: one, on the whole grid, or as many as there are clusters
  int32_t reserved;
  PersistentPart begin[PERSISTENT_PARTS + 1];  // of each part, and where the batch ends. None is empty
};
static_assert(sizeof(PersistentBatch) == 216, "Rust mirrors this layout");

namespace persistent {
using attention::LANES;
constexpr int THREADS = 256, WARPS = THREADS / LANES;
constexpr int MOST_TOKENS = 256;
constexpr int UNIT = 8, MOST_UNITS = 4;        // columns of a unit; units side by side
constexpr int TILES = 2, PASS_ROWS = 16 * TILES;  // rows that a pass over k sums up
constexpr int PIECE = 32;                      // of k: four lanes of 16 bytes, two m16n8k16
constexpr int AHEAD = 2;                       // pieces of a warp whose activations are on their way beside as many that are multiplied:
                                               // 1,024 of k in a block, 32 KiB, which L2's latency needs half of. Four spill
// Whether a block's units of a k of 512 or less share the rows that its warps have read. Before sm_90 it would spill 12 bytes, and
// there are no clusters, whose blocks have the most units.
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ < 900
constexpr bool KEEPS_ROWS = false;
#else
constexpr bool KEEPS_ROWS = true;
#endif
constexpr int ROW_VECTORS = 4;                 // of a lane, for rows of up to 1,024
constexpr int NORM_ROWS = 2;                   // that a warp has on their way at once
constexpr int LEAST_WEIGHT_BYTES = 64 << 10;   // a unit of 4,096, four of 1,024, ten of 384
constexpr int SUM_BYTES = PASS_ROWS * MOST_UNITS * UNIT * 4;  // of a warp
constexpr int SHARED_BYTES = WARPS * SUM_BYTES + LEAST_WEIGHT_BYTES;  // at least
constexpr int QUERY_ROWS = 16;

// ---- which rows, with whom ------------------------------------------------------------------------------------------------------
struct Team {
  int blocks, rank;        // how many, and which one this is
  PersistentPart first, end;
  bool is_cluster;
};
DEV Team own_team(const PersistentBatch& b) {
  const int blocks = gridDim.x / b.parts, part = blockIdx.x / blocks;
  return Team{blocks, (int)blockIdx.x - part * blocks, b.begin[part], b.begin[part + 1], b.in_clusters != 0};
}

// ---- which columns ------------------------------------------------------------------------------------------------------------
struct Units { int first, end; };
DEV Units own_units(const PersistentProduct& p, const Team& team) {
  const int units = p.n / UNIT;
  return Units{team.rank * units / team.blocks, (team.rank + 1) * units / team.blocks};
}
// Bytes of a row of weights in shared memory: to whole lines, as the swizzle exchanges halves of a line.
DEV int weight_row_bytes(int k) { return (k + 63) / 64 * 128; }
DEV int first_units(const PersistentProduct& p, const Team& team) {
  const Units own = own_units(p, team);
  return min(p.units_held, own.end - own.first);
}

// ---- weights to shared memory ---------------------------------------------------------------------------------------------------
// Eight lanes that read at once are two rows and four chunks: of odd rows the halves of a line are exchanged, so that they meet
// in no bank.
DEV saddr weight_chunk(int row, int chunk) { return (saddr)((chunk ^ ((row & 1) << 2)) << 4); }

// Starts the copy of `count` units: of each unit a row a warp. What is multiplied beyond k is zeros.
DEV void fetch_weights(saddr weights, const PersistentProduct& p, int first_unit, int count) {
  static_assert(WARPS == UNIT, "a row a warp");
  const int thread = computed_here(threadIdx.x), warp = thread / LANES;
  const int row_bytes = weight_row_bytes(p.k), chunks = (p.k + PIECE - 1) / PIECE * (PIECE / VECTOR);
#pragma unroll 1
  for (int u = 0; u < count; u++) {
    const saddr to = weights + (u * UNIT + warp) * row_bytes;
    const half_t* from = p.w + (size_t)((first_unit + u) * UNIT + warp) * (size_t)p.k;
#pragma unroll 4
    for (int c = thread % LANES; c < chunks; c += LANES)
      cp_async_16(to + weight_chunk(warp, c), from + c * VECTOR, c * VECTOR < p.k);
  }
  cp_async_commit();
}

// ---- a pass: PASS_ROWS rows, `count` units, all of k ---------------------------------------------------------------------------------
struct Sums { float v[TILES][MOST_UNITS][4]; };
struct Pieces { u128 v[AHEAD][TILES][2]; };  // of a lane: chunk lane % 4 of rows lane / 4 and + 8 of each tile

// The warp's pieces from `first` of its own on.
DEV void load_pieces(Pieces& to, const PersistentProduct& p, int thread, int end_row, int first_row, int first) {
  const int lane = thread % LANES, warp = thread / LANES;
#pragma unroll
  for (int i = 0; i < AHEAD; i++) {
    const int column = ((first + i) * WARPS + warp) * PIECE + lane % 4 * VECTOR;
#pragma unroll
    for (int t = 0; t < TILES; t++)
#pragma unroll
      for (int h = 0; h < 2; h++) {
        const int row = first_row + 16 * t + 8 * h + lane / 4;
        to.v[i][t][h] = u128{0, 0, 0, 0};
        if (row < end_row && column < p.k) to.v[i][t][h] = ld_global_128(p.a + (size_t)row * (size_t)p.k + column);
      }
  }
}
template <class T>
DEV void multiply_pieces(Sums& sums, const Pieces& a, int thread, saddr weights, int row_bytes, int count, int first, int own_pieces, bool two_tiles) {
  const int lane = thread % LANES, warp = thread / LANES;
#pragma unroll
  for (int i = 0; i < AHEAD; i++) {
    if (first + i >= own_pieces) continue;
    const int chunk = ((first + i) * WARPS + warp) * (PIECE / VECTOR) + lane % 4;
    const saddr at = weights + lane / 4 * row_bytes + weight_chunk(lane / 4, chunk);
#pragma unroll
    for (int u = 0; u < MOST_UNITS; u++) {
      if (u >= count) continue;
      const u128 w = ld_shared_128(at + u * UNIT * row_bytes);
#pragma unroll
      for (int t = 0; t < TILES; t++) {
        if (t > 0 && !two_tiles) continue;
        const u128 low = a.v[i][t][0], high = a.v[i][t][1];
        const uint32_t first_half[4] = {low.x, high.x, low.y, high.y}, second_half[4] = {low.z, high.z, low.w, high.w};
        T::mma(sums.v[t][u], first_half, w.x, w.y);
        T::mma(sums.v[t][u], second_half, w.z, w.w);
      }
    }
  }
}
// `now`: all that the warp needs of the rows if it `has_rows`, which then stays for the next units.
template <class T>
DEV void sum_over_k(Sums& sums, Pieces& now, bool& has_rows, const PersistentProduct& p, int thread, saddr weights, int count, int end_row, int first_row) {
  const int warp = thread / LANES, row_bytes = weight_row_bytes(p.k);
  const int own_pieces = ((p.k + PIECE - 1) / PIECE - warp + WARPS - 1) / WARPS;
  const bool two_tiles = first_row + 16 < end_row;
#pragma unroll
  for (int t = 0; t < TILES; t++)
#pragma unroll
    for (int u = 0; u < MOST_UNITS; u++)
#pragma unroll
      for (int i = 0; i < 4; i++) sums.v[t][u][i] = 0;
  Pieces next;
  if (!has_rows) load_pieces(now, p, thread, end_row, first_row, 0);
  has_rows = KEEPS_ROWS && own_pieces <= AHEAD;
#pragma unroll 1
  for (int first = 0; first < own_pieces; first += AHEAD) {
    if (!has_rows) load_pieces(next, p, thread, end_row, first_row, first + AHEAD);  // beyond k: nothing
    multiply_pieces<T>(sums, now, thread, weights, row_bytes, count, first, own_pieces, two_tiles);
    if (!has_rows) now = next;
  }
}

// A warp's sums [PASS_ROWS, MOST_UNITS units]: unit u of row r lies at u ^ (r % 4), so that the pairs of four rows share no bank.
DEV saddr sum_at(int row, int unit) { return (saddr)(row * (MOST_UNITS * UNIT * 4) + ((unit ^ (row & 3)) << 5)); }
DEV void store_sums(const Sums& sums, saddr own_sums, int lane) {
#pragma unroll
  for (int t = 0; t < TILES; t++)
#pragma unroll
    for (int u = 0; u < MOST_UNITS; u++)
#pragma unroll
      for (int h = 0; h < 2; h++)
        st_shared_64(own_sums + sum_at(16 * t + 8 * h + lane / 4, u) + lane % 4 * 8, u64x{f32_bits(sums.v[t][u][2 * h]), f32_bits(sums.v[t][u][2 * h + 1])});
}
// Eight columns, added over the warps in their order. Of odd rows the second half comes first: eight lanes are two rows.
DEV void add_sums(saddr sums, int row, int unit, float (&v)[VECTOR]) {
  const bool odd = row & 1;
  const saddr at = sums + sum_at(row, unit) + (odd ? 16 : 0);
#pragma unroll
  for (int i = 0; i < VECTOR; i++) v[i] = 0;
#pragma unroll
  for (int w = 0; w < WARPS; w++) {
    const u128 a = ld_shared_128(at + w * SUM_BYTES), b = ld_shared_128((at ^ 16) + w * SUM_BYTES);
    const u128 low = odd ? b : a, high = odd ? a : b;
    v[0] += f32_from_bits(low.x); v[1] += f32_from_bits(low.y); v[2] += f32_from_bits(low.z); v[3] += f32_from_bits(low.w);
    v[4] += f32_from_bits(high.x); v[5] += f32_from_bits(high.y); v[6] += f32_from_bits(high.z); v[7] += f32_from_bits(high.w);
  }
}

// ---- a product --------------------------------------------------------------------------------------------------------------------
// The block's share. Its first weights are on their way; those of `next`, if there is one, begin theirs once no warp needs its own
// any more; whether they have comes back.
template <class T>
DEV bool product(const PersistentProduct& p, const Team& team, saddr weights, saddr sums, saddr norms, const PersistentProduct* next) {
  const Units own = own_units(p, team);
  const int step = p.units_held, end_row = team.end.token, row_bytes = weight_row_bytes(p.k);
  const int thread = computed_here(threadIdx.x);
  const int unit = thread % MOST_UNITS, row_of_pass = thread / MOST_UNITS;  // whose result this thread finishes
#pragma unroll 1
  for (int held = own.first; held < own.end; held += step) {
    const int end = min(held + step, own.end);
    cp_async_wait<0>();
    sync_block();
#pragma unroll 1
    for (int first_row = team.first.token; first_row < end_row; first_row += PASS_ROWS) {
      Pieces rows;
      bool has_rows = false;
#pragma unroll 1
      for (int first = held; first < end; first += MOST_UNITS) {
        const int count = min(MOST_UNITS, end - first), column = (first + unit) * UNIT;
        Sums own_sums;
        sum_over_k<T>(own_sums, rows, has_rows, p, thread, weights + (first - held) * UNIT * row_bytes, count, end_row, first_row);
        // What the epilogue needs is on its way while the sums meet; any earlier it would take the registers of those.
        Epilogue epilogue = p.epilogue;
        epilogue.row_stats = nullptr;  // for the compiler, which leaves out what these would need
        epilogue.gated = 0;
        const int row = first_row + row_of_pass;
        const bool finishes = row_of_pass < PASS_ROWS && row < end_row && unit < count;
        EpilogueColumns columns;
        load_columns(epilogue, column, p.n, finishes, columns);
        u128 residual = u128{0, 0, 0, 0};
        if (finishes && epilogue.residual) residual = ld_global_128(epilogue.residual + (size_t)row * (size_t)p.n + column);
        store_sums(own_sums, sums + thread / LANES * SUM_BYTES, thread % LANES);
        sync_block();
        // the last weights have been read: what is multiplied next takes their place, of this product or of the next one
        const bool all_read = first_row + PASS_ROWS >= end_row && first + MOST_UNITS >= end, last = all_read && end == own.end;
        const PersistentProduct* fetched = last ? next : &p;
        if (all_read && fetched) {
          const int first_unit = last ? own_units(*fetched, team).first : end;
          fetch_weights(weights, *fetched, first_unit, last ? first_units(*fetched, team) : min(step, own.end - end));
        }
        if (finishes) {
          RowNorm norm{0, 0};
          if (epilogue.norm_target != NORM_NONE) {
            const u64x stored = ld_shared_64(norms + 8 * row);  // bank conflicts: none; lanes without a column make visits of other rows one access
            norm = RowNorm{f32_from_bits(stored.x), f32_from_bits(stored.y)};
          }
          float v[VECTOR];
          add_sums(sums, row_of_pass, unit, v);
          finish_row_to<T>(p.c, epilogue, columns, v, norm, residual, EpiloguePlace{(size_t)row, column, p.n, true});
        }
        if (!last) sync_block();  // the sums are overwritten next
      }
    }
  }
  return next && own.first < own.end;
}

// ---- rows -----------------------------------------------------------------------------------------------------------------------
// Mean and 1 / spread of every row, into norms [256, 2] in shared memory. A warp a row, NORM_ROWS of them on their way.
template <class T> DEV void row_norms(const half_t* rows, int hidden, const Team& team, float eps, saddr norms) {
  const int warp = threadIdx.x / LANES, end_row = team.end.token;
#pragma unroll 1
  for (int first = team.first.token + warp; first < end_row; first += WARPS * NORM_ROWS) {
    u128 raw[NORM_ROWS][ROW_VECTORS];
#pragma unroll
    for (int i = 0; i < NORM_ROWS; i++) {
      const int row = first + i * WARPS;
      load_row<ROW_VECTORS, 1>(raw[i], row < end_row ? rows + (size_t)row * (size_t)hidden : nullptr, hidden);
    }
#pragma unroll
    for (int i = 0; i < NORM_ROWS; i++) {
      const int row = first + i * WARPS;
      if (row >= end_row) continue;
      float x[ROW_VECTORS][VECTOR] = {};
      add_row<T>(x, raw[i]);
      const RowScale s = centre<ROW_VECTORS, 1>(x, hidden, eps, ROW_LAYERNORM, nullptr);
      if (threadIdx.x % LANES == 0) st_shared_64(norms + 8 * row, u64x{f32_bits(s.mean + s.shift), f32_bits(s.scale)});
    }
  }
}
// ---- attention: a warp 16 queries of a head -----------------------------------------------------------------------------------------
template <int ROW_BYTES, int ROWS> DEV void copy_rows_by_warp(saddr to, const half_t* from, int stride, int rows_left, int lane) {
  constexpr int CHUNKS = ROW_BYTES / 16, STEP = LANES / CHUNKS;
  const int chunk = lane % CHUNKS;
#pragma unroll 4
  for (int r = lane / CHUNKS; r < ROWS; r += STEP)
    cp_async_16(to + attention::swizzled<ROW_BYTES>(r, chunk), from + r * stride + chunk * VECTOR, r < rows_left);
}
// queries: SUM_BYTES of shared memory of this warp's own; keys: twice as many
template <class T, int D> DEV void attend(const PersistentModel& m, const u128* entry, int head, saddr queries, saddr keys) {
  constexpr int ROW_BYTES = 2 * D, KEYS = SUM_BYTES / ROW_BYTES, G = KEYS / attention::GROUP;
  static_assert(QUERY_ROWS * ROW_BYTES <= SUM_BYTES && KEYS % attention::GROUP == 0 && 2 * WARPS * SUM_BYTES <= LEAST_WEIGHT_BYTES, "shared memory");
  const int lane = computed_here(threadIdx.x) % LANES, hidden = m.hidden, stride = 3 * hidden;
  const u128 tile = ld_global_128(entry);
  const int tokens = (int)tile.y, first_query = (int)tile.z;
  if (tokens == 0) return;
  const saddr values = keys + SUM_BYTES;
  const half_t* sequence = m.qkv + (size_t)tile.x * (size_t)stride + head * D;
  copy_rows_by_warp<ROW_BYTES, QUERY_ROWS>(queries, sequence + (size_t)first_query * (size_t)stride, stride, tokens - first_query, lane);
  attention::Queries<D, 1> q;
  attention::Output<D, 1> o;
  attention::clear(o);
  float maximum[1][2] = {{attention::NO_MAXIMUM, attention::NO_MAXIMUM}};
#pragma unroll 1
  for (int first_key = 0; first_key < tokens; first_key += KEYS) {
    const half_t* from = sequence + (size_t)first_key * (size_t)stride + hidden;
    sync_warp();  // all lanes have read the tile before
    copy_rows_by_warp<ROW_BYTES, KEYS>(keys, from, stride, tokens - first_key, lane);
    copy_rows_by_warp<ROW_BYTES, KEYS>(values, from + hidden, stride, tokens - first_key, lane);
    cp_async_commit();
    cp_async_wait<0>();
    sync_warp();
    if (first_key == 0) attention::load_queries<D, 1, ROW_BYTES>(q, queries + attention::row_major_lane<ROW_BYTES>(lane));
    const int groups = min(G, (tokens - first_key + attention::GROUP - 1) / attention::GROUP);
    attention::Scores<1, G> s;
    attention::multiply_keys<T, ROW_BYTES>(s, q, keys + attention::chunk_major_lane<ROW_BYTES>(lane), groups);
    if (first_key + KEYS > tokens) attention::mask(s, first_key + 2 * (lane & 3), first_query + (lane >> 2), tokens, tokens);
    float factor[1][2];
    if (attention::follow_maxima(maximum, factor, s)) attention::rescale(o, factor);
    attention::multiply_values<T, ROW_BYTES>(o, s, maximum, values + attention::row_major_lane<ROW_BYTES>(lane), groups);
  }
  sync_warp();
  attention::stage_output<T, ROW_BYTES>(o, queries, lane, 0);
  sync_warp();
  half_t* out = m.attended + (size_t)(tile.x + first_query) * (size_t)hidden + head * D;
  attention::store_rows<ROW_BYTES, QUERY_ROWS>(out, hidden, queries, lane, tokens - first_query, D / VECTOR);
  sync_warp();  // the next item's queries take their place
}
// Items are dealt to the blocks one by one, to a block's warps in turn.
template <class T> DEV void attention_phase(const PersistentModel& m, const Team& team, saddr weights, saddr sums) {
  const int warp = computed_here(threadIdx.x) / LANES, items = (team.end.tile - team.first.tile) * m.num_heads;
  const saddr queries = sums + warp * SUM_BYTES, keys = weights + 2 * warp * SUM_BYTES;
#pragma unroll 1
  for (int item = team.rank + warp * team.blocks; item < items; item += team.blocks * WARPS) {
    const u128* entry = m.tiles + team.first.tile + item / m.num_heads;
    const int head = item % m.num_heads;
    if (m.head_dim == 32) attend<T, 32>(m, entry, head, queries, keys);
    else if (m.head_dim == 64) attend<T, 64>(m, entry, head, queries, keys);
    else attend<T, 128>(m, entry, head, queries, keys);
  }
}

// ---- the ends of the network -------------------------------------------------------------------------------------------------------
// The rows of tokens, the whole block one. All that is read of the batch is on its way at once: from the host's memory it takes some
// microsecond. The last block, which has the fewest tokens, copies what the phases behind read.
template <class T> DEV void embed(const PersistentModel& m, const PersistentBatch& b, const Team& team, saddr own_ids) {
  static_assert(THREADS == MOST_TOKENS, "a token, a sequence, a tile a thread");
  SMEM_ARRAY(float, scratch, 2 * WARPS);
  auto affine = LaneAffine<1, WARPS>::early(RowAffine{m.embeddings_gamma, m.embeddings_beta}, m.hidden);
  const int i = threadIdx.x, token_of_thread = team.first.token + team.rank + i * team.blocks;
  const int tile_of_thread = team.first.tile + i, sequence_of_thread = team.first.sequence + i;
  const bool copies = team.rank == team.blocks - 1;
  const bool copies_tile = copies && tile_of_thread < team.end.tile, copies_sequence = copies && sequence_of_thread < team.end.sequence;
  const bool copies_left_out = copies_sequence && b.left_out;
  u128 ids = u128{0, 0, 0, 0}, tile = ids;
  uint32_t end = 0, left_out = 0;
  if (token_of_thread < team.end.token) {
    ids.x = ld_global_nc_32(b.ids + token_of_thread);
    if (m.position) ids.y = ld_global_nc_32(b.position_ids + token_of_thread);
    if (m.type) ids.z = ld_global_nc_32(b.type_ids + token_of_thread);
  }
  if (copies_tile) tile = ld_global_nc_128(b.tiles + tile_of_thread);
  if (copies_sequence) end = ld_global_nc_32(b.cu_seqlens + sequence_of_thread + 1);
  if (copies_left_out) left_out = ld_global_nc_32(b.left_out + sequence_of_thread);
  st_shared_128(own_ids + 16 * i, ids);
  if (copies_tile) st_global_128(m.tiles + tile_of_thread, tile);
  if (copies_sequence) st_global_32(m.ends + sequence_of_thread, end);
  if (copies_left_out) st_global_32(m.left_out + sequence_of_thread, left_out);
  sync_block();
#pragma unroll 1
  for (int token = team.first.token + team.rank, own = 0; token < team.end.token; token += team.blocks, own++) {
    const u128 row = ld_shared_128(own_ids + 16 * own);
    embed_row<T, 1, WARPS>(EmbeddingTables{m.word, m.position, m.type}, TokenIds{(int)row.x, (int)row.y, (int)row.z}, token, affine, m.x, m.hidden,
                           m.embeddings_eps, ROW_LAYERNORM, scratch, [] {});
  }
}
// The last layernorm is applied on the way into the sums of a pooling.
template <class T> DEV void pool(const PersistentModel& m, const PersistentBatch& b, const Team& team, saddr partial, saddr norms) {
  auto normalised_at = [&](int column) {
    float gamma[VECTOR], beta[VECTOR];
    load_affine(RowAffine{m.final_gamma, m.final_beta}, column, m.hidden, gamma, beta);
    return [=](int token, u128 raw, float (&v)[VECTOR]) {
      const u64x norm = ld_shared_64(norms + 8 * token);
      unpack8<T>(raw, v);
#pragma unroll
      for (int e = 0; e < VECTOR; e++) v[e] = fmaf((v[e] - f32_from_bits(norm.x)) * f32_from_bits(norm.y), gamma[e], beta[e]);
    };
  };
  const int columns = (m.hidden + POOL_COLUMNS - 1) / POOL_COLUMNS * POOL_COLUMNS;
#pragma unroll 1
  for (int sequence = team.first.sequence + team.rank; sequence < team.end.sequence; sequence += team.blocks) {
    const int start = sequence == team.first.sequence ? team.first.token : m.ends[sequence - 1];
    const PooledTokens t = pooled_tokens(start, m.ends[sequence], b.left_out ? m.left_out[sequence] : 0, m.pooling);
    pool_sequence<T, THREADS, false>(m.x, sequence, t, m.hidden, 0, columns, m.pooling, PoolOutput{b.vectors, b.normalize, 0, m.hidden, 0}, partial,
                                     normalised_at, [] {});
    sync_block();  // the next sequence's sums take their place
  }
}

// ---- the network ----------------------------------------------------------------------------------------------------------------------
template <class T> DEV void encoder(uint8_t* shared, const PersistentModel& m, const PersistentBatch& b) {
  SMEM_ARRAY(PersistentProduct, descriptions, 2);  // of this product and of the next one
  SMEM_ARRAY(float, row_statistics, 2 * MOST_TOKENS);
  const saddr sums = smem_addr(shared), weights = sums + WARPS * SUM_BYTES, norms = smem_addr(row_statistics);
  const int products = 4 * m.layers;
  const Team team = own_team(b);
  const bool attends = team.rank < (team.end.tile - team.first.tile) * m.num_heads;
  auto describe = [&](int i) {
    constexpr int CHUNKS = sizeof(PersistentProduct) / 16;
    if ((int)threadIdx.x < CHUNKS && i < products)
      st_shared_128(smem_addr(&descriptions[i & 1]) + 16 * threadIdx.x, ld_global_nc_128((const u128*)(m.products + i) + threadIdx.x));
  };

  griddep_wait();
  GridBarrier all = team.is_cluster ? cluster_barrier() : grid_barrier(m.barrier);
  describe(0);
  embed<T>(m, b, team, sums);
  bool fetched = false;  // whether the weights of the next product are on their way
#pragma unroll 1
  for (int phase = 0;; phase++) {
    const int in_layer = phase % 5, i = phase / 5 * 4 + in_layer - (in_layer > 0);  // i: this product, or the one behind attention
    const bool is_attention = in_layer == 1, is_end = i == products;
    const PersistentProduct& p = descriptions[i & 1];
    arrive_at(all);
    const bool is_done = is_end && team.rank >= team.end.sequence - team.first.sequence;
    if (is_done && !team.is_cluster) return;  // of a cluster, all wait
    if (!is_attention && !is_end) {
      if (!fetched) fetch_weights(weights, p, own_units(p, team).first, first_units(p, team));
      describe(i + 1);
    }
    wait_at(all);
    if (is_done) return;
    if (is_attention) {
      if (attends) attention_phase<T>(m, team, weights, sums);
      continue;
    }
    if (is_end || p.epilogue.norm_target == NORM_INPUT)
      row_norms<T>(is_end ? m.x : p.a, m.hidden, team, is_end ? m.final_eps : p.epilogue.norm_eps, norms);
    if (is_end) break;
    // attention's keys and values lie where weights do
    const bool fetches_next = i + 1 < products && !(in_layer == 0 && attends);
    fetched = product<T>(p, team, weights, sums, norms, fetches_next ? &descriptions[(i + 1) & 1] : nullptr);
  }
  sync_block();  // norms are there
  pool<T>(m, b, team, weights, norms);
}
}  // namespace persistent

// The table that the host reads: one line an instantiation, each makes <name>_f16 and <name>_bf16.
#define ENCODER_TILE(name, threads, shared_bytes)                                                                              \
  static_assert(persistent::THREADS == threads && persistent::SHARED_BYTES == shared_bytes, "the host reads this table");      \
  KERNEL_COOPERATIVE(threads, name##_f16, PersistentModel model, PersistentBatch batch) {                                      \
    SMEM_DYN(shared);                                                                                                          \
    persistent::encoder<F16>(shared, model, batch);                                                                            \
  }                                                                                                                            \
  KERNEL_COOPERATIVE(threads, name##_bf16, PersistentModel model, PersistentBatch batch) {                                     \
    SMEM_DYN(shared);                                                                                                          \
    persistent::encoder<BF16>(shared, model, batch);                                                                           \
  }
// One kernel for all head sizes: 99 KiB, all that a block has on an sm_86. Where there is more, weights take more.
#define ENCODER_TILES(ENCODER_TILE) \
  ENCODER_TILE(persistent_encoder, 256, 98304)
ENCODER_TILES(ENCODER_TILE)
