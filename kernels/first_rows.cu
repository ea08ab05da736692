// first_rows.cu - the first token's rows of each sequence, below each other: what the last layer goes on with behind its attention
// where nothing else is pooled.
//
// Formula     x_out[s] = x[cu_seqlens[s]], and likewise for y and row_stats; zeros for a sequence without tokens, which fills a
//             batch up to the size of a captured graph
// Arguments   x, y [total_tokens, hidden] 16 bit; row_stats [total_tokens, ceil(hidden / 64), 2] f32 (epilogue.cuh), may be null
//             cu_seqlens [batch + 1] int32
//             x_out, y_out [batch, hidden], stats_out [batch, ceil(hidden / 64), 2]: none of them within what is read
// Limits      hidden a multiple of 8; rows 16-byte aligned
// Launch      grid batch, 128 threads, no shared memory
// Bound by    latency: 8 hidden bytes a sequence
#include "epilogue.cuh"

constexpr int FIRST_ROWS_THREADS = 128;  // 1,024 columns at once

DEV void first_rows(const half_t* x, const half_t* y, const float* row_stats, const int* cu_seqlens, half_t* x_out, half_t* y_out,
                    float* stats_out, int hidden) {
  const int sequence = blockIdx.x, segments = (hidden + SEGMENT - 1) / SEGMENT;
  griddep_wait();
  const int first = cu_seqlens[sequence];
  const bool empty = first == cu_seqlens[sequence + 1];  // `first` may be the end of the batch, where no row is
  const size_t from = (size_t)first * hidden, to = (size_t)sequence * hidden;
#pragma unroll 1  // as a rule there is one turn
  for (int column = threadIdx.x * VECTOR; column < hidden; column += FIRST_ROWS_THREADS * VECTOR) {
    u128 of_x = u128{0, 0, 0, 0}, of_y = of_x;
    if (!empty) {
      of_x = ld_global_128(x + from + column);
      of_y = ld_global_128(y + from + column);
    }
    st_global_128(x_out + to + column, of_x);
    st_global_128(y_out + to + column, of_y);
  }
  if (!row_stats) return;
#pragma unroll 1
  for (int segment = threadIdx.x; segment < segments; segment += FIRST_ROWS_THREADS) {
    u64x stats = u64x{0, 0};
    if (!empty) stats = ld_global_64(row_stats + ((size_t)first * segments + segment) * 2);
    st_global_64(stats_out + ((size_t)sequence * segments + segment) * 2, stats);
  }
}

// The same for either element, as every kernel is found by its name and element.
#define FIRST_ROWS(name)                                                                                                        \
  KERNEL(FIRST_ROWS_THREADS, name, const half_t* x, const half_t* y, const float* row_stats, const int* cu_seqlens,             \
         half_t* x_out, half_t* y_out, float* stats_out, int hidden) {                                                          \
    first_rows(x, y, row_stats, cu_seqlens, x_out, y_out, stats_out, hidden);                                                   \
  }
FIRST_ROWS(first_rows_f16)
FIRST_ROWS(first_rows_bf16)
