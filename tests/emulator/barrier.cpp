// barrier.cpp - block barriers, cluster barriers, mbarriers and words of global memory.
#include <string.h>
#include "core.h"

namespace emu {
// ---- bar.sync, bar.arrive ------------------------------------------------------------------------------------------------
static bool arrive_at(int id, int n, const char* what, Loc loc) {  // true: complete
  if (id < 0 || id > 15) fail("%s at %s:%d: barrier %d, there are 0 to 15", what, AT(loc), id);
  if (n <= 0 || n % 32) fail("%s at %s:%d: %d threads, which is not whole warps", what, AT(loc), n);
  Barrier& b = block->barriers[id];
  if (b.arrived == 0) { b.expected = n; b.loc = loc; }
  else if (b.expected != n) fail("%s at %s:%d: barrier %d for %d threads, %s:%d said %d", what, AT(loc), id, n, AT(b.loc), b.expected);
  release(&b);
  if (++b.arrived < n) return false;
  b.arrived = 0;
  for (int i = 0; i < block->n_warps; i++) { wake(block->warps[(size_t)i], b.waiting[i]); b.waiting[i] = 0; }
  return true;
}
static void sync_at(int id, int n, Loc loc) {
  if (!arrive_at(id, n, "barrier", loc)) {
    block->barriers[id].waiting[running->warp->index] |= 1u << running->lane;
    wait_in(Op::BAR, loc);
  }
  acquire(&block->barriers[id]);
}
void bar_sync(int id, int n, Loc loc) { sync_at(id, n, loc); }
void bar_arrive(int id, int n, Loc loc) { arrive_at(id, n, "bar.arrive", loc); }
void sync_block(Loc loc) { sync_at(0, (block->n + 31) / 32 * 32 == block->n ? block->n : -1, loc); }

// ---- words of global memory by which blocks that run at once wait for each other ---------------------------------------------
// A shuffled block may be left whenever it touches such a word.
static void may_be_left(Loc loc) {
  if (opt.order != SHUFFLE) return;
  wake(*running->warp, 1u << running->lane);
  wait_in(Op::WORD, loc);
}
void store_word(uint32_t* p, uint32_t value, bool releases, Loc loc) {
  check_global(p, sizeof *p, true, "st.release.global", loc);
  running->last_access = loc;
  if (releases) release(p);
  *p = value;
  auto& all = block->cluster->word_waiters;
  auto found = all.find(p);
  if (found != all.end()) {
    Unseen unseen;
    auto& waiters = found->second;
    for (size_t i = waiters.size(); i--;) {
      if ((int32_t)(value - waiters[i].value) < 0) continue;
      wake(*waiters[i].fiber->warp, 1u << waiters[i].fiber->lane);
      waiters.erase(waiters.begin() + (long)i);
    }
  }
  may_be_left(loc);
}
uint32_t load_word(const uint32_t* p, Loc loc) {
  check_global(p, sizeof *p, false, "ld.acquire.global", loc);
  running->last_access = loc;
  acquire(p);
  return *p;
}
void wait_for_word(const uint32_t* p, uint32_t value, bool acquires, Loc loc) {
  check_global(p, sizeof *p, false, "ld.acquire.global", loc);
  running->last_access = loc;
  if ((int32_t)(*p - value) >= 0) {
    may_be_left(loc);
  } else {
    {
      Unseen unseen;
      block->cluster->word_waiters[p].push_back({running, value});
    }
    wait_in(Op::WORD, loc);
  }
  if (acquires) acquire(p);
}

// ---- barrier.cluster: all threads of all blocks. Stricter than CUDA: threads that have exited count as missing. -----------------
uint32_t cluster_rank() { return (uint32_t)block->rank; }
Block& block_of_rank(uint32_t rank, const char* what, Loc loc) {
  Cluster& c = *block->cluster;
  if (rank >= c.blocks.size()) fail("%s at %s:%d: block %u of a cluster of %zu", what, AT(loc), rank, c.blocks.size());
  Block& b = *c.blocks[rank];
  if (!b.live) fail("%s at %s:%d: block %u of the cluster has ended, and its shared memory with it", what, AT(loc), rank);
  return b;
}
void cluster_arrive(bool releases, Loc loc) {
  Cluster& c = *block->cluster;
  Fiber& f = *running;
  if (f.cluster_arrivals != f.cluster_waits) fail("cluster_arrive at %s:%d: a second time, without a cluster_wait between", AT(loc));
  if (c.arrived == 0) c.loc = loc;
  else if (c.loc != loc) fail("cluster_arrive at %s:%d while others are in %s:%d", AT(loc), AT(c.loc));
  f.cluster_arrivals++;
  if (releases) release(&c);
  if (++c.arrived == c.n) {
    c.arrived = 0;
    c.barriers_passed++;
    for (Block* b : c.blocks)
      for (int i = 0; i < b->n_warps; i++) { wake(b->warps[(size_t)i], b->in_cluster_sync[i]); b->in_cluster_sync[i] = 0; }
  }
  may_be_left(loc);
}
void cluster_wait(bool acquires, Loc loc) {
  Cluster& c = *block->cluster;
  Fiber& f = *running;
  if (f.cluster_arrivals != ++f.cluster_waits) fail("cluster_wait at %s:%d without a cluster_arrive before", AT(loc));
  if (c.barriers_passed != f.cluster_waits) {
    block->in_cluster_sync[running->warp->index] |= 1u << running->lane;
    wait_in(Op::CLUSTER, loc);
  }
  if (acquires) acquire(&c);
}

// ---- mbarrier: its 64 bits lie in shared memory, where a kernel could overwrite them ----------------------------------------
struct Mbarrier { uint64_t pending : 20, count : 20; int64_t bytes : 23; uint64_t phase : 1; };
static_assert(sizeof(Mbarrier) == 8, "");
static Mbarrier& mbarrier_at(saddr a, const char* what, Loc loc) {
  Mbarrier* m = (Mbarrier*)shared_at(a, 8, 8, what, loc);
  if (!block->mbarriers.count(a)) fail("%s at %s:%d: the mbarrier at %d is not initialised", what, AT(loc), (int)a - (int)DYNAMIC_BASE);
  return *m;
}
static void check_phase(saddr a, Mbarrier& m) {
  if (m.pending || m.bytes) return;
  m.phase = !m.phase;
  m.pending = m.count;
  auto& waiters = block->mbar_waiters;
  Unseen unseen;
  for (size_t i = 0; i < waiters.size();) {
    if (waiters[i].first != a) { i++; continue; }
    wake(*waiters[i].second->warp, 1u << waiters[i].second->lane);
    waiters[i] = waiters.back();
    waiters.pop_back();
  }
}
void mbar_init(saddr a, uint32_t count, Loc loc) {
  Mbarrier* m = (Mbarrier*)shared_at(a, 8, 8, "mbarrier.init", loc);
  if (!count || count > 0xfffff) fail("mbarrier.init at %s:%d: count %u", AT(loc), count);
  Unseen unseen;
  block->mbarriers.insert(a);
  m->pending = m->count = count;
  m->bytes = 0;
  m->phase = 0;
}
void mbar_arrive(saddr a, uint32_t expected_bytes, Loc loc) {
  Mbarrier& m = mbarrier_at(a, "mbarrier.arrive", loc);
  if (m.pending == 0) fail("mbarrier.arrive at %s:%d: more arrivals than its count", AT(loc));
  release(&m);
  m.bytes += expected_bytes;
  m.pending--;
  check_phase(a, m);
}
void mbar_arrive_remote(saddr a, uint32_t rank, Loc loc) {
  OnBlock there(&block_of_rank(rank, "mbarrier.arrive", loc));
  mbar_arrive(a, 0, loc);
}
void check_mbarrier(saddr a, const char* what, Loc loc) { mbarrier_at(a, what, loc); }
void mbar_complete(saddr a, uint32_t bytes, Loc loc) {
  Mbarrier& m = mbarrier_at(a, "complete_tx", loc);
  m.bytes -= bytes;
  check_phase(a, m);
}
void mbar_wait(saddr a, uint32_t parity, Loc loc) {
  Mbarrier& m = mbarrier_at(a, "mbarrier.wait", loc);
  while (m.phase == (parity & 1)) {
    { Unseen unseen; block->mbar_waiters.push_back({a, running}); }
    wait_in(Op::MBAR_WAIT, loc);
  }
  acquire(&m);
  InTheNameOf tensor_core(block->tsan_wgmma);  // what TMA wrote is known to wgmma once a thread has waited for it
  acquire((uint8_t*)&m + 4);
}
}  // namespace emu
