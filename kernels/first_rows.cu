// first_rows.cu - the first token's rows of each sequence, below each other: what the last layer goes on with behind its attention
// where nothing else is pooled.
//
// Formula     x_out[s] = x[cu_seqlens[s]], and likewise for y and row_stats; zeros for a sequence without tokens, which fills a
//             batch up to the size of a captured graph
// Arguments   x, y [total_tokens, hidden] 16 bit; row_stats [total_tokens, ceil(hidden / 64), 2] f32 (epilogue.cuh), may be null
//             cu_seqlens [batch + 1] int32
//             x_out, y_out [batch, hidden], stats_out [batch, ceil(hidden / 64), 2]: none of them within what is read
// Limits      hidden a multiple of 8; rows 16-byte aligned
// Launch      grid (batch, ceil(hidden / 1024)), 128 threads, no shared memory; a thread has eight columns, and perhaps a
//             segment's statistics
// Bound by    latency: 8 hidden bytes a sequence
#include "epilogue.cuh"

constexpr int FIRST_ROWS_THREADS = 128, FIRST_ROWS_COLUMNS = FIRST_ROWS_THREADS * VECTOR;  // of a block

DEV void first_rows(const half_t* x, const half_t* y, const float* row_stats, const int* cu_seqlens, half_t* x_out, half_t* y_out,
                    float* stats_out, int hidden) {
  const int sequence = blockIdx.x, column = (blockIdx.y * FIRST_ROWS_THREADS + threadIdx.x) * VECTOR;
  if (column >= hidden) return;
  griddep_wait();
  const int first = cu_seqlens[sequence];
  const bool empty = first == cu_seqlens[sequence + 1];
  const size_t row = empty ? 0 : first;  // where `first` may be the end of the batch; row 0 is read, and not used
  const size_t from = row * (size_t)hidden + column, to = (size_t)sequence * (size_t)hidden + column;
  const u128 of_x = ld_global_128(x + from), of_y = ld_global_128(y + from), zeros = u128{0, 0, 0, 0};
  st_global_128(x_out + to, empty ? zeros : of_x);
  st_global_128(y_out + to, empty ? zeros : of_y);
  const int segments = (hidden + SEGMENT - 1) / SEGMENT, segment = column / VECTOR;  // fewer than a row has threads
  if (row_stats && segment < segments) {
    const u64x stats = ld_global_64(row_stats + 2 * (row * (size_t)segments + segment));
    st_global_64(stats_out + 2 * ((size_t)sequence * (size_t)segments + segment), empty ? u64x{0, 0} : stats);
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
