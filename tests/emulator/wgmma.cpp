// wgmma.cpp - warpgroup matrix multiply: 16-bit operands in shared memory, K-major or (b) transposed, a also in registers; fp32
// accumulators. LATE: a product is made when the warpgroup waits for its group, of what a's registers hold then; its accumulators
// are NaN until then.
#include <math.h>
#include <string.h>
#include <memory>
#include "core.h"

namespace emu {
uint32_t swizzle(uint32_t address, uint32_t mode);

// The last of the warpgroup's 128 threads to come runs `fn` for all.
template <class Fn> static void warpgroup_all(Op op, Loc loc, Fn fn) {
  WarpGroup& g = *running->group;
  if (g.arrived == 0) { g.op = op; g.loc = loc; }
  else if (g.op != op || g.loc != loc)
    fail("divergent warpgroup: %s at %s:%d while others are in %s at %s:%d", name_of(op), AT(loc), name_of(g.op), AT(g.loc));
  release(&g);
  if (++g.arrived < 128) {
    g.waiting[running->id / 32 % 4] |= 1u << running->lane;
    wait_in(op, loc);
    return;
  }
  g.arrived = 0;
  fn(g);
  for (int i = 0; i < 4; i++) {
    Warp& w = block->warps[(size_t)(running->id / 128 * 4 + i)];
    wake(w, g.waiting[i]);
    g.waiting[i] = 0;
  }
}

// 16 halves of one row of a K-major operand: two chunks of 16 bytes, by the descriptor's strides and swizzle.
static void operand_row(uint64_t descriptor, int row, bool bf16, float* out, int step, Loc loc) {
  uint32_t start = (uint32_t)(descriptor & 0x3FFF) << 4, leading = (uint32_t)(descriptor >> 16 & 0x3FFF) << 4,
           stride = (uint32_t)(descriptor >> 32 & 0x3FFF) << 4, mode = (uint32_t)(descriptor >> 62);  // 1: 128, 2: 64, 3: 32 bytes
  for (uint32_t c = 0; c < 2; c++) {
    uint32_t a = mode == 0 ? start + (uint32_t)row / 8 * stride + (uint32_t)row % 8 * 16 + c * leading
                           : swizzle(start + (uint32_t)row / 8 * stride + (uint32_t)row % 8 * (256 >> mode) + c * 16, 4 - mode);
    uint8_t* p = shared_at(a, 16, 16, "wgmma operand", loc);
    announce_read(p, 16);
    for (uint32_t k = 0; k < 8; k++) {
      half_t h;
      memcpy(&h, p + 2 * k, 2);
      out[(c * 8 + k) * (uint32_t)step] = bf16 ? b2f(h) : h2f(h);
    }
  }
}
// 16 rows of n halves, each row 128, 64 or 32 bytes in groups of 8 rows: `stride` to the next group, `leading` to the columns that
// a row has no room for.
static void transposed_operand(uint64_t descriptor, int n, bool bf16, float (*out)[256], Loc loc) {
  const uint32_t start = (uint32_t)(descriptor & 0x3FFF) << 4, leading = (uint32_t)(descriptor >> 16 & 0x3FFF) << 4,
                 stride = (uint32_t)(descriptor >> 32 & 0x3FFF) << 4, mode = (uint32_t)(descriptor >> 62);
  if (mode == 0) fail("wgmma at %s:%d: a transposed operand without a swizzle is not emulated", AT(loc));
  const uint32_t chunks = 16u >> mode;       // of 16 bytes, of a row
  for (uint32_t k = 0; k < 16; k++)
    for (uint32_t c = 0; c < (uint32_t)n / 8; c++) {
      const uint32_t a = start + c / chunks * leading + c % chunks * 16 + k / 8 * stride + k % 8 * chunks * 16;
      uint8_t* p = shared_at(swizzle(a, 4 - mode), 16, 16, "wgmma operand", loc);
      announce_read(p, 16);
      half_t h[8];
      memcpy(h, p, 16);
      for (uint32_t i = 0; i < 8; i++) out[k][c * 8 + i] = bf16 ? b2f(h[i]) : h2f(h[i]);
    }
}
// Register i of thread t: rows t % 32 / 4 (+ 8 if i is odd) of its warp's 16, columns 2 (t % 4) and + 1 (+ 8 from i = 2 on).
static void register_operand(const std::vector<const uint32_t*>& registers, bool bf16, float (*out)[16]) {
  for (int t = 0; t < 128; t++)
    for (int i = 0; i < 4; i++)
      for (int e = 0; e < 2; e++) {
        const half_t h = (half_t)(registers[(size_t)t][i] >> 16 * e);
        out[t / 32 * 16 + t % 32 / 4 + i % 2 * 8][t % 4 * 2 + e + i / 2 * 8] = bf16 ? b2f(h) : h2f(h);
      }
}
// acc [128 threads][n / 2]
static void execute(WarpGroup& g, const PendingWgmma& p, float* acc) {
  struct Scratch { float A[64][16], B[16][256], C[64][256]; };
  static thread_local std::unique_ptr<Scratch> scratch;  // not in the thread's static storage: libcuda.so is loaded late
  if (!scratch) { Unseen unseen; scratch.reset(new Scratch); }
  auto &A = scratch->A;
  auto &B = scratch->B;
  auto &C = scratch->C;
  const int n = p.n, half = n / 2;
  InTheNameOf tensor_core(block->tsan_wgmma);
  acquire(&block->tsan_tma);                 // only fence.proxy.async makes ordinary stores visible here
  if (p.a_registers.empty())
    for (int r = 0; r < 64; r++) operand_row(p.a, r, p.bf16, A[r], 1, g.loc);
  else register_operand(p.a_registers, p.bf16, A);
  if (p.transposed_b) transposed_operand(p.b, n, p.bf16, B, g.loc);
  else
    for (int c = 0; c < n; c++) operand_row(p.b, c, p.bf16, &B[0][c], 256, g.loc);
  auto place = [&](int t, int i) -> float& { return C[t / 32 * 16 + t % 32 / 4 + (i >> 1 & 1) * 8][i / 4 * 8 + t % 4 * 2 + (i & 1)]; };
  for (int t = 0; t < 128; t++)
    for (int i = 0; i < half; i++) place(t, i) = p.scale_d ? acc[t * half + i] : 0;
  typedef float lanes __attribute__((vector_size(32)));  // most of a test's time is spent here
  for (int r = 0; r < 64; r++)
    for (int c = 0; c < n; c += 8) {
      lanes sum, b;
      memcpy(&sum, &C[r][c], sizeof sum);
      for (int k = 0; k < 16; k++) {
        memcpy(&b, &B[k][c], sizeof b);
        sum += A[r][k] * b;
      }
      memcpy(&C[r][c], &sum, sizeof sum);
    }
  for (int t = 0; t < 128; t++)
    for (int i = 0; i < half; i++) acc[t * half + i] = place(t, i);
  release(&g.finished);
}

void wgmma_fence(Loc loc) { warpgroup_all(Op::WGMMA_FENCE, loc, [](WarpGroup& g) { g.fenced = true; }); }
void wgmma_commit(Loc loc) { warpgroup_all(Op::WGMMA_COMMIT, loc, [](WarpGroup& g) { g.group++; }); }
void wgmma(float* d, int n, bool bf16, WgmmaOperands operands, int scale_d, Loc loc) {
  int t = running->id & 127;
  if (block->n < (running->id | 127) + 1) fail("wgmma at %s:%d: the warpgroup is not whole", AT(loc));
  running->group->d[t] = d;
  running->group->operands[t] = operands;
  warpgroup_all(Op::WGMMA, loc, [=](WarpGroup& g) {
    if (!g.fenced) fail("wgmma at %s:%d without a wgmma_fence since the accumulators were last readable", AT(loc));
    for (int i = 1; i < 128; i++)
      if (g.operands[i].a != operands.a || g.operands[i].b != operands.b) fail("wgmma at %s:%d: descriptors differ within the warpgroup", AT(loc));
    Accumulators* acc;
    {
      Unseen unseen;
      acc = &g.in_flight[g.d[0]];
      if (acc->values.empty()) {
        acc->n = n;
        acc->pending = 0;
        acc->values.resize((size_t)(128 * n / 2));
        for (int i = 0; i < 128; i++) {
          acc->registers[i] = g.d[i];
          for (int j = 0; j < n / 2; j++) {
            acc->values[(size_t)(i * n / 2 + j)] = g.d[i][j];
            if (opt.poison) g.d[i][j] = NAN;
          }
        }
      }
      acc->pending++;
      g.queue.push_back({operands.a, operands.b, n, scale_d, g.group, bf16, operands.transposed_b, g.d[0], {}});
      if (operands.a_registers)
        for (const WgmmaOperands& of : g.operands) g.queue.back().a_registers.push_back(of.a_registers);
    }
    if (opt.async == EAGER) { execute(g, g.queue.back(), acc->values.data()); g.queue.back().n = 0; }  // n 0: done
  });
}
void wgmma_wait(int n, Loc loc) {
  warpgroup_all(Op::WGMMA_WAIT, loc, [=](WarpGroup& g) {
    size_t done = 0;
    for (; done < g.queue.size() && g.queue[done].group < g.group - n; done++) {
      PendingWgmma& p = g.queue[done];
      Accumulators& acc = g.in_flight[p.key];
      if (p.n) execute(g, p, acc.values.data());
      if (--acc.pending == 0) {
        Unseen unseen;
        for (int i = 0; i < 128; i++)
          for (int j = 0; j < acc.n / 2; j++) acc.registers[i][j] = acc.values[(size_t)(i * acc.n / 2 + j)];
        g.in_flight.erase(p.key);
      }
    }
    Unseen unseen;
    g.queue.erase(g.queue.begin(), g.queue.begin() + (long)done);
    if (g.queue.empty()) g.fenced = false;
  });
  acquire(&running->group->finished);
}
}  // namespace emu
