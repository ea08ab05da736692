// rotary.cu - rotary positions: queries and keys are turned in place, between their product and attention.
//
// Formula     of each head of a token at position p, for i < head_dim / 2, with c = table[p][i], s = table[p][head_dim / 2 + i]:
//             a = x[i] c - x[i + head_dim / 2] s,  b = x[i + head_dim / 2] c + x[i] s  take the places of the two; in fp32,
//             rounded once
// Arguments   qkv [total_tokens, 3 hidden] 16 bit: q, k, v of all heads; v is left alone
//             position_ids [total_tokens] int32
//             table [positions, head_dim] f32: of each position head_dim / 2 cosines, then as many sines
// Limits      head_dim a multiple of 16, hidden one of head_dim; positions inside the table: the host sees to it
// Launch      grid ceil(total_tokens hidden / 16 / 256), 256 threads, no shared memory. A thread has eight components and the
//             eight that they are turned with, of a query and of the key beside it: they share their angles
// Bound by    memory: 8 hidden bytes a token; the table comes from L2 (256 KiB for 1,024 positions of head size 64)
// Considered  in the epilogue of the product, with rows of q and k in an order that puts partners side by side: no launch and no
//             bytes more, but 4 bytes of table for each 2 that are stored, gathered by row, in the part of Hopper's products that
//             nothing hides, and registers of every product of every model. In the loads of attention: they are asynchronous
//             copies, and would be done again for each tile of queries.
// Method      Su et al., "RoFormer", 2021
#include "numeric.cuh"

constexpr int ROTARY_THREADS = 256;

template <class T> DEV void turn(half_t* low, half_t* high, u128 raw_low, u128 raw_high, const float (&c)[VECTOR], const float (&s)[VECTOR]) {
  float x[VECTOR], y[VECTOR], a[VECTOR], b[VECTOR];
  unpack8<T>(raw_low, x);
  unpack8<T>(raw_high, y);
#pragma unroll
  for (int i = 0; i < VECTOR; i++) {
    a[i] = fmaf(x[i], c[i], -(y[i] * s[i]));
    b[i] = fmaf(y[i], c[i], x[i] * s[i]);
  }
  store8<T>(low, a);
  store8<T>(high, b);
}

template <class T>
DEV void rotary(half_t* qkv, const int* position_ids, const float* table, int total_tokens, int hidden, int head_dim) {
  const int units = hidden / (2 * VECTOR), unit = blockIdx.x * ROTARY_THREADS + threadIdx.x, token = unit / units;
  if (token >= total_tokens) return;
  const int half = head_dim / 2, pair = (unit - token * units) * VECTOR;  // the first of eight components, counting those of one half of each head
  const int head = pair / half, i = pair - head * half;
  // before the wait: the host wrote both before the first kernel of the batch began
  const float* angles = table + (size_t)position_ids[token] * head_dim + i;
  float c[VECTOR], s[VECTOR];
  load8_f32_nc(angles, c);
  load8_f32_nc(angles + half, s);
  half_t* q = qkv + (size_t)token * (3 * hidden) + head * head_dim + i;
  half_t* k = q + hidden;
  griddep_wait();
  u128 q_low = ld_global_128(q), q_high = ld_global_128(q + half), k_low = ld_global_128(k), k_high = ld_global_128(k + half);
  griddep_launch();
  turn<T>(q, q + half, q_low, q_high, c, s);
  turn<T>(k, k + half, k_low, k_high, c, s);
}

#define ROTARY(name, T)                                                                                                         \
  KERNEL(ROTARY_THREADS, name, half_t* qkv, const int* position_ids, const float* table, int total_tokens, int hidden,         \
         int head_dim) {                                                                                                        \
    rotary<T>(qkv, position_ids, table, total_tokens, hidden, head_dim);                                                        \
  }
ROTARY(rotary_f16, F16)
ROTARY(rotary_bf16, BF16)
