// tma.cpp - cp.async.bulk.tensor (2-d loads). LATE: a load is made when no thread of the block can run without it. Its
// writes belong to the copy engine: ordered after what the issuing thread had seen, known to those who wait for the mbarrier.
#include <string.h>
#include "core.h"

namespace emu {
void mbar_complete(saddr, uint32_t bytes, Loc);
static uint32_t bytes_of(const TensorMap& m) { return m.box[0] * m.box[1] * m.element_bytes; }

uint32_t swizzle(uint32_t address, uint32_t mode) {  // xor the 16-byte chunk with the row's number in the pattern
  return mode == 3 ? address ^ (address >> 7 & 7) << 4 : mode == 2 ? address ^ (address >> 7 & 3) << 4 : mode == 1 ? address ^ (address >> 7 & 1) << 4 : address;
}

static void load(const TmaLoad& t) {
  const TensorMap& m = *t.map;
  const uint32_t row_bytes = m.box[0] * m.element_bytes;
  const saddr to = (saddr)(t.to - (block->window + STATIC_BYTES)) + DYNAMIC_BASE;
  uint8_t* barrier = shared_at(t.barrier, 8, 8, "tma", t.loc);
  {
    InTheNameOf engine(block->tsan_tma);
    acquire(&block->tma_issued);
    for (uint32_t y = 0; y < m.box[1]; y++) {
      const int64_t gy = t.c1 + (int64_t)y;
      for (uint32_t x = 0; x < row_bytes; x += 16) {
        uint8_t* p = shared_at(swizzle(to + y * row_bytes + x, m.swizzle), 16, 16, "tma", t.loc);
        announce_write(p, 16);
        for (uint32_t e = 0; e < 16; e += m.element_bytes) {
          const int64_t gx = t.c0 + (int64_t)((x + e) / m.element_bytes);
          uint16_t value = 0;                // outside of the tensor: zeros
          if (gy >= 0 && gx >= 0 && gy < (int64_t)m.dim[1] && gx < (int64_t)m.dim[0]) {
            const uint8_t* s = (const uint8_t*)m.base + gy * (int64_t)m.stride + gx * m.element_bytes;
            announce_read(s, 2);
            memcpy(&value, s, 2);
          }
          memcpy(p + e, &value, 2);
        }
      }
    }
    release(barrier);
    release(barrier + 4);
  }
  mbar_complete(t.barrier, bytes_of(m), t.loc);
}

void tma_load_2d(saddr to, const TensorMap* m, saddr barrier, int c0, int c1, Loc loc) {
  if (m->magic != TENSOR_MAP_MAGIC) fail("tma at %s:%d: not a tensor map", AT(loc));
  if (m->element_bytes != 2) fail("tma at %s:%d: %u-byte elements are not emulated", AT(loc), m->element_bytes);
  TmaLoad t{shared_at(to, bytes_of(*m), m->swizzle == 3 ? 1024 : 128, "tma", loc), m, c0, c1, barrier, loc};
  if (m->dim[0] && m->dim[1]) check_global((const void*)m->base, (uint32_t)((m->dim[1] - 1) * m->stride + m->dim[0] * 2), false, "tma", loc);
  shared_at(barrier, 8, 8, "tma", loc);
  release(&block->tma_issued);
  if (opt.async == EAGER) { load(t); return; }
  Unseen unseen;
  if (opt.poison) memset(t.to, 0xFF, bytes_of(*m));
  block->tma_queue.push_back(t);
}
void fence_proxy_async() { release(&block->tsan_tma); }  // this thread's stores are known to the copy engine and the tensor core
bool run_one_tma_load() {
  auto& q = block->tma_queue;
  if (q.empty()) return false;
  TmaLoad t;
  {
    Unseen unseen;
    auto it = opt.order == REVERSE ? q.end() - 1 : opt.order == SHUFFLE ? q.begin() + (long)(block->random() % q.size()) : q.begin();
    t = *it;
    q.erase(it);
  }
  load(t);
  return true;
}
}  // namespace emu
