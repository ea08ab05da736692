// tma.cpp - cp.async.bulk.tensor, 2-d. LATE: a load is made when no thread of the block can run without it, a store reads
// shared memory when its thread waits for that and writes global memory when the thread ends. Loads' writes belong to the copy
// engine: ordered after what the issuing thread had seen, known to those who wait for the mbarrier. Stores see of shared
// memory what a fence.proxy.async has made known.
#include <string.h>
#include <algorithm>
#include "core.h"

namespace emu {
void mbar_complete(saddr, uint32_t bytes, Loc);
void check_mbarrier(saddr, const char* what, Loc);
static uint32_t row_bytes(const TensorMap& m) { return m.box[0] * m.element_bytes; }
static uint32_t bytes_of(const TensorMap& m) { return m.box[1] * row_bytes(m); }
static uint32_t alignment_of(const TensorMap& m) { return m.swizzle ? 128u << m.swizzle : 128; }  // the swizzle's pattern repeats

uint32_t swizzle(uint32_t address, uint32_t mode) {  // xor the 16-byte chunk with the row's number in the pattern
  return mode == 3 ? address ^ (address >> 7 & 7) << 4 : mode == 2 ? address ^ (address >> 7 & 3) << 4 : mode == 1 ? address ^ (address >> 7 & 1) << 4 : address;
}

// Calls f(bytes from the box's start, global address, bytes) for every piece of 16 bytes of the box: the bytes inside of the
// tensor, if there are any.
template <class F> static void for_each_piece(const TensorMap& m, int c0, int c1, F f) {
  for (uint32_t y = 0; y < m.box[1]; y++) {
    const int64_t gy = c1 + (int64_t)y;
    for (uint32_t x = 0; x < row_bytes(m); x += 16) {
      const int64_t start = (int64_t)c0 * m.element_bytes + x, end = std::min<int64_t>(start + 16, (int64_t)m.dim[0] * m.element_bytes);
      const int64_t from = std::max<int64_t>(start, 0);
      const bool inside = gy >= 0 && gy < (int64_t)m.dim[1] && from < end;
      f(y * row_bytes(m) + x, (uint8_t*)m.base + gy * (int64_t)m.stride + from, inside ? (uint32_t)(from - start) : 0u, inside ? (uint32_t)(end - from) : 0u);
    }
  }
}
static void check_box(const TensorMap* m, saddr at, int c0, int c1, bool write, const char* what, Loc loc) {
  if (m->magic != TENSOR_MAP_MAGIC) fail("%s at %s:%d: not a tensor map", what, AT(loc));
  if (m->element_bytes != 2) fail("%s at %s:%d: %u-byte elements are not emulated", what, AT(loc), m->element_bytes);
  shared_at(at, bytes_of(*m), alignment_of(*m), what, loc);
  // what is outside of an allocation is found in any case, who touched it before by rows
  if (m->dim[0] && m->dim[1]) check_global((const void*)m->base, (uint32_t)((m->dim[1] - 1) * m->stride + m->dim[0] * 2), write, what, loc);
  const int64_t first = std::max(c0, 0), columns = std::min<int64_t>(c0 + (int64_t)m->box[0], (int64_t)m->dim[0]) - first;
  for (int64_t y = std::max(c1, 0); columns > 0 && y < std::min<int64_t>(c1 + (int64_t)m->box[1], (int64_t)m->dim[1]); y++)
    check_global((const uint8_t*)m->base + y * (int64_t)m->stride + first * 2, (size_t)columns * 2, write, what, loc);
}

// ---- loads -----------------------------------------------------------------------------------------------------------------
// Into the shared memory of each block of `ranks`, at the same place, each of whose mbarriers hears of it.
template <class F> static void for_each_target(const TmaLoad& t, F f) {
  for (uint32_t rank = 0; t.ranks >> rank; rank++) {
    if (!(t.ranks >> rank & 1)) continue;
    OnBlock there(&block_of_rank(rank, "tma", t.loc));
    f();
  }
}
static void load(const TmaLoad& t) {
  const TensorMap& m = *t.map;
  Block* issuer = block;
  for_each_target(t, [&] {
    uint8_t* barrier = shared_at(t.barrier, 8, 8, "tma", t.loc);
    {
      InTheNameOf engine(issuer->tsan_tma);
      acquire(&issuer->tma_issued);
      for_each_piece(m, t.c0, t.c1, [&](uint32_t at, const uint8_t* from, uint32_t skip, uint32_t bytes) {
        uint8_t* p = shared_at(swizzle(t.to + at, m.swizzle), 16, 16, "tma", t.loc);
        announce_write(p, 16);
        if (bytes) announce_read(from, bytes);
        Unseen unseen;
        memset(p, 0, 16);                    // outside of the tensor: zeros
        memcpy(p + skip, from, bytes);
      });
      release(barrier);
      release(barrier + 4);
    }
    mbar_complete(t.barrier, bytes_of(m), t.loc);
  });
}
void tma_load_2d_multicast(saddr to, const TensorMap* m, saddr barrier, int c0, int c1, uint32_t ranks, Loc loc) {
  TmaLoad t{to, m, c0, c1, barrier, ranks, loc};
  for_each_target(t, [&] {
    check_box(m, to, c0, c1, false, "tma", loc);
    check_mbarrier(barrier, "tma", loc);     // it may complete at once
  });
  release(&block->tma_issued);
  if (opt.async == EAGER) { load(t); return; }
  if (opt.poison)
    for_each_target(t, [&] {
      uint8_t* p = shared_at(to, bytes_of(*m), 16, "tma", loc);
      Unseen unseen;
      memset(p, 0xFF, bytes_of(*m));
    });
  Unseen unseen;
  block->tma_queue.push_back(t);
}
void tma_load_2d(saddr to, const TensorMap* m, saddr barrier, int c0, int c1, Loc loc) {
  tma_load_2d_multicast(to, m, barrier, c0, c1, 1u << block->rank, loc);
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

// ---- stores ----------------------------------------------------------------------------------------------------------------
static void read(TmaStore& t) {
  t.read = true;
  { Unseen unseen; t.data.resize(bytes_of(*t.map)); }
  InTheNameOf engine(block->tsan_store);
  acquire(&block->tsan_tma);                 // only fence.proxy.async makes ordinary stores visible here
  for (uint32_t at = 0; at < t.data.size(); at += 16) {
    const uint8_t* p = shared_at(swizzle(t.from + at, t.map->swizzle), 16, 16, "tma store", t.loc);
    announce_read(p, 16);
    Unseen unseen;
    memcpy(&t.data[at], p, 16);
  }
  release(&block->tma_read);
}
static void write(const TmaStore& t) {
  InTheNameOf engine(block->tsan_store);
  for_each_piece(*t.map, t.c0, t.c1, [&](uint32_t at, uint8_t* to, uint32_t skip, uint32_t bytes) {
    if (!bytes) return;
    announce_write(to, bytes);
    Unseen unseen;
    memcpy(to, &t.data[at + skip], bytes);
  });
  release(&block->ended);
}
void tma_store_2d(const TensorMap* m, saddr from, int c0, int c1, Loc loc) {
  check_box(m, from, c0, c1, true, "tma store", loc);
  Unseen unseen;
  running->stores.push_back({m, from, c0, c1, false, {}, loc});
  if (opt.async == EAGER) { read(running->stores.back()); write(running->stores.back()); }
}
void tma_store_commit() {
  Unseen unseen;
  running->store_group_ends.push_back(running->stores.size());
}
void tma_store_wait_read(int n) {            // all but the newest n groups
  Fiber& f = *running;
  if ((int)f.store_group_ends.size() > n) {
    const size_t end = f.store_group_ends[f.store_group_ends.size() - (size_t)n - 1];
    for (size_t i = 0; i < end; i++)
      if (!f.stores[i].read) read(f.stores[i]);
  }
  acquire(&block->tma_read);
}
void finish_stores(Fiber& f) {
  for (TmaStore& t : f.stores) {
    if (!t.read) fail("thread exits while a TMA store from %s:%d may still read shared memory (no tma_store_wait_read)", AT(t.loc));
    if (opt.async != EAGER) write(t);
  }
}
}  // namespace emu
