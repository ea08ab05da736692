// warp.cpp - the warp's collectives: shuffles, votes, ldmatrix, stmatrix, mma.sync. Fragment layouts: PTX ISA, "Warp level
// matrix instructions". Collectives order execution, not memory: only sync_warp makes a lane's stores known to the others.
#include <stdio.h>
#include <string.h>
#include "core.h"

namespace emu {
struct ShuffleArgument { uint32_t value; int source; mutable uint32_t result; };

uint32_t shuffle(Shuffle kind, uint32_t mask, uint32_t value, int operand, Loc loc) {
  int lane = running->lane, source = kind == XOR ? lane ^ operand : kind == UP ? lane - operand : kind == DOWN ? lane + operand : operand;
  if (kind == IDX || kind == XOR) source &= 31;
  else if (source < 0 || source > 31) source = lane;  // out of the warp: a lane keeps its own
  uint32_t full = mask & running->warp->exists;
  if (!(full >> source & 1)) fail("shfl at %s:%d: lane %d reads lane %d, which is not in the mask %08x", AT(loc), lane, source, full);
  ShuffleArgument argument{value, source, 0};
  warp_all(Op::SHFL, mask, loc, &argument, [&](Warp& w) {
    for (uint32_t left = full; left; left &= left - 1) {
      const auto& a = argument_of<ShuffleArgument>(w, __builtin_ctz(left));
      a.result = argument_of<ShuffleArgument>(w, a.source).value;
    }
  });
  return argument.result;
}

struct VoteArgument { bool value; mutable uint32_t result; };
uint32_t vote_ballot(uint32_t mask, bool value, Loc loc) {
  VoteArgument argument{value, 0};
  warp_all(Op::VOTE, mask, loc, &argument, [&](Warp& w) {
    uint32_t votes = 0, lanes = mask & w.exists;
    for (uint32_t left = lanes; left; left &= left - 1) votes |= (uint32_t)argument_of<VoteArgument>(w, __builtin_ctz(left)).value << __builtin_ctz(left);
    for (uint32_t left = lanes; left; left &= left - 1) argument_of<VoteArgument>(w, __builtin_ctz(left)).result = votes;
  });
  return argument.result;
}

void sync_warp(uint32_t mask, Loc loc) {
  release(running->warp);
  warp_all(Op::SYNC_WARP, mask, loc, nullptr, [](Warp&) {});
  acquire(running->warp);
}

static void whole_warp(Op op, Loc loc) {
  if (running->warp->exists != ~0u) fail("%s at %s:%d: the warp has only %d lanes", name_of(op), AT(loc), __builtin_popcount(running->warp->exists));
}

// ---- ldmatrix, stmatrix: lane l names row l % 8 of matrix l / 8 and holds columns 2 (l % 4), + 1 of row l / 4 ----------------
static void exchange_rows(Op op, int n, saddr row, Loc loc) {
  whole_warp(op, loc);
  running->last_access = loc;
  uint8_t* p = shared_at(row, 16, 16, name_of(op), loc);  // of the lanes whose address is not used too: it must be one
  struct Row { uint8_t* p; saddr address; } argument{p, row};
  warp_all(op, ~0u, loc, &argument, [&](Warp& w) {
    saddr addresses[32];
    for (int l = 0; l < 32; l++) {
      const Row& r = argument_of<Row>(w, l);
      w.rows[l] = r.p;                       // stays until every lane comes to the warp's next collective
      addresses[l] = r.address;
    }
    count_matrices(name_of(op), addresses, n, loc);
  });
}
// Each lane moves its own part, so that tsan sees it as the reader or writer.
void ldmatrix(uint32_t* r, int n, saddr row, bool transposed, Loc loc) {
  exchange_rows(Op::LDMATRIX, n, row, loc);
  const int l = running->lane;
  for (int j = 0; j < n; j++) {
    uint8_t* const* rows = running->warp->rows + 8 * j;
    if (!transposed) {
      const uint8_t* p = rows[l / 4] + l % 4 * 4;
      announce_read(p, 4);
      memcpy(&r[j], p, 4);
    } else {
      uint16_t part[2];
      for (int e = 0; e < 2; e++) {
        const uint8_t* p = rows[l % 4 * 2 + e] + l / 4 * 2;
        announce_read(p, 2);
        memcpy(&part[e], p, 2);
      }
      r[j] = part[0] | (uint32_t)part[1] << 16;
    }
  }
}
void stmatrix(const uint32_t* r, int n, saddr row, bool transposed, Loc loc) {
  exchange_rows(Op::STMATRIX, n, row, loc);
  const int l = running->lane;
  for (int j = 0; j < n; j++) {
    uint8_t* const* rows = running->warp->rows + 8 * j;
    if (!transposed) {
      uint8_t* p = rows[l / 4] + l % 4 * 4;
      announce_write(p, 4);
      memcpy(p, &r[j], 4);
    } else {
      for (int e = 0; e < 2; e++) {
        uint16_t part = (uint16_t)(r[j] >> 16 * e);
        uint8_t* p = rows[l % 4 * 2 + e] + l / 4 * 2;
        announce_write(p, 2);
        memcpy(p, &part, 2);
      }
    }
  }
}

// ---- mma.sync m16n8k16: exact products, fp32 sums over k in ascending order ---------------------------------------------------
// The GPU's order and rounding of the sum are not documented; tests must not depend on them.
struct MmaArgument { float* c; const uint32_t* a; uint32_t b0, b1; bool bf16; };

static void widen(const uint32_t* packed, int n, bool bf16, float* out) {
  if (bf16) {
    for (int i = 0; i < n; i++) { out[2 * i] = f32_from_bits(packed[i] << 16); out[2 * i + 1] = f32_from_bits(packed[i] & 0xffff0000); }
    return;
  }
#ifdef __F16C__
  if (n == 4) { _mm256_storeu_ps(out, _mm256_cvtph_ps(_mm_loadu_si128((const __m128i*)packed))); return; }
  _mm_storeu_ps(out, _mm_cvtph_ps(_mm_loadl_epi64((const __m128i*)packed)));
#else
  for (int i = 0; i < n; i++) { out[2 * i] = h2f((half_t)packed[i]); out[2 * i + 1] = h2f((half_t)(packed[i] >> 16)); }
#endif
}
// c += a b, a [16][16], b [16][8]
static void multiply(float (&c)[16][8], const float (&a)[16][16], const float (&b)[16][8]) {
  typedef float row __attribute__((vector_size(32)));
  row rows[16];
  memcpy(rows, b, sizeof rows);
  for (int i = 0; i < 16; i++) {
    row sum;
    memcpy(&sum, c[i], sizeof sum);
    for (int k = 0; k < 16; k++) sum += a[i][k] * rows[k];
    memcpy(c[i], &sum, sizeof sum);
  }
}
void mma(float* c, const uint32_t* a, uint32_t b0, uint32_t b1, bool bf16, Loc loc) {
  whole_warp(Op::MMA, loc);
  MmaArgument argument{c, a, b0, b1, bf16};
  warp_all(Op::MMA, ~0u, loc, &argument, [](Warp& w) {
    alignas(32) float A[16][16], B[16][8], C[16][8];
    bool bf16 = argument_of<MmaArgument>(w, 0).bf16;
    for (int l = 0; l < 32; l++) {
      const auto& m = argument_of<MmaArgument>(w, l);
      const int g = l / 4, t = l % 4 * 2;
      const uint32_t packed_b[2] = {m.b0, m.b1};
      float x[8], y[4];
      widen(m.a, 4, bf16, x);
      widen(packed_b, 2, bf16, y);
      memcpy(&A[g][t], x, 8);
      memcpy(&A[g + 8][t], x + 2, 8);
      memcpy(&A[g][t + 8], x + 4, 8);
      memcpy(&A[g + 8][t + 8], x + 6, 8);
      B[t][g] = y[0]; B[t + 1][g] = y[1]; B[t + 8][g] = y[2]; B[t + 9][g] = y[3];
      memcpy(&C[g][t], m.c, 8);
      memcpy(&C[g + 8][t], m.c + 2, 8);
    }
    multiply(C, A, B);
    for (int l = 0; l < 32; l++) {
      const auto& m = argument_of<MmaArgument>(w, l);
      const int g = l / 4, t = l % 4 * 2;
      memcpy(m.c, &C[g][t], 8);
      memcpy(m.c + 2, &C[g + 8][t], 8);
    }
  });
}
}  // namespace emu
