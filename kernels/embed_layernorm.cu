// embed_layernorm.cu - the first activations: three rows gathered, summed and normalised.
//
// Formula     out[t] = norm(word[id[t]] + position[pos[t]] + type[type_id[t]]), the sum from left to right in fp32, not
//             rounded before the norm (rows.cuh: corrected two-pass)
// Arguments   word [vocab, hidden], position [positions, hidden], type [types, hidden]: fp16, also where the rest is bf16;
//             position and type may be null
//             ids, position_ids, type_ids [total_tokens] int32 (the latter two unread where their table is null)
//             gamma, beta [hidden] f32, each may be null (ones, zeros); eps
//             norm: RowNormKind; ROW_AS_IT_IS stores the sum, gamma and beta unread
//             out [total_tokens, hidden] 16 bit
// Limits      hidden a multiple of 8, at most what the variant's name says; 16-byte aligned rows; ids inside the tables: the
//             host checks them, the kernel does not
// Launch      _h512, _h1024: grid ceil(total_tokens / 4), 128 threads, a warp a row
//             _h8192: grid total_tokens, 256 threads, a block a row. No dynamic shared memory
// Tables      in fp16 always: as many bytes as bf16 and eight times as fine, and what is rounded here is the same at each
//             place of a word, so that no average removes it. Their range is the host's care: the norm does not see a power of
//             two that the three tables and the root of eps have in common
// Bound by    memory: 2 hidden bytes written a token, and as much read from each table; the word rows come at random but
//             are whole 128-byte lines; position and type rows stay in L2
// Method      skip-layernorm as in TensorRT's and FasterTransformer's BERT; one launch instead of four
#pragma once
#include "rows.cuh"

struct EmbeddingTables { const half_t *word, *position, *type; };
struct TokenIds { int id, position, type; };  // rows of the tables

// A token's row, by the lanes that hold it. `loaded` is called when all it reads is on its way.
template <class T, int VECTORS, int WARPS, class F>
DEV void embed_row(const EmbeddingTables& tables, const TokenIds& ids, int token, LaneAffine<VECTORS, WARPS>& affine, half_t* out,
                   int hidden, float eps, int norm, float* scratch, F loaded) {
  u128 raw_word[VECTORS], raw_position[VECTORS], raw_type[VECTORS];
  load_row<VECTORS, WARPS>(raw_word, tables.word + (size_t)ids.id * hidden, hidden);
  load_row<VECTORS, WARPS>(raw_position, tables.position ? tables.position + (size_t)ids.position * hidden : nullptr, hidden);
  load_row<VECTORS, WARPS>(raw_type, tables.type ? tables.type + (size_t)ids.type * hidden : nullptr, hidden);
  loaded();
  float x[VECTORS][VECTOR] = {};
  add_row<F16>(x, raw_word);
  add_row<F16>(x, raw_position);
  add_row<F16>(x, raw_type);
  RowScale s{0, 1, 0};
  if (norm != ROW_AS_IT_IS) s = centre<VECTORS, WARPS>(x, hidden, eps, (RowNormKind)norm, scratch);
  store_scaled<T>(out + (size_t)token * hidden, x, hidden, s, affine);
}

template <class T, int VECTORS, int WARPS>
DEV void embed_layernorm(const EmbeddingTables& tables, const int* ids, const int* position_ids, const int* type_ids, RowAffine affine, half_t* out, int total_tokens, int hidden,
                         float eps, int norm) {
  SMEM_ARRAY(float, scratch, 2 * WARPS);
  int token = row_index<WARPS>();
  if (token >= total_tokens) return;  // a whole warp, or nobody: no barrier is missed
  if (norm == ROW_AS_IT_IS) affine = RowAffine{nullptr, nullptr};
  auto lane_affine = LaneAffine<VECTORS, WARPS>::early(affine, hidden);
  griddep_wait();
  const TokenIds own{ids[token], tables.position ? position_ids[token] : 0, tables.type ? type_ids[token] : 0};
  embed_row<T, VECTORS, WARPS>(tables, own, token, lane_affine, out, hidden, eps, norm, scratch, [] { griddep_launch(); });
}

#define EMBED_LAYERNORM(name, threads, min_blocks, T, VECTORS, WARPS)                                                   \
  KERNEL_MIN_BLOCKS(threads, min_blocks, name, const half_t* word, const half_t* position, const half_t* type,         \
                    const int* ids, const int* position_ids, const int* type_ids, const float* gamma, const float* beta, \
                    half_t* out, int total_tokens, int hidden, float eps, int norm) {                                   \
    embed_layernorm<T, VECTORS, WARPS>(EmbeddingTables{word, position, type}, ids, position_ids, type_ids,              \
                                       RowAffine{gamma, beta}, out, total_tokens, hidden, eps, norm);                   \
  }
ROW_KERNEL_SIZES(EMBED_LAYERNORM, embed_layernorm, f16, F16)
ROW_KERNEL_SIZES(EMBED_LAYERNORM, embed_layernorm, bf16, BF16)
