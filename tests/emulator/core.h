// core.h - the emulator's own state: fibers, warps, warpgroups, the block that runs. Not for kernels or tests.
#pragma once
#include <map>
#include <random>
#include <set>
#include <vector>
#include "emulator.h"
#include "numbers.h"
#include "sanitizers.h"

typedef uint32_t saddr;

namespace emu {
// ---- the shared window: static arrays, then the dynamic part, at addresses like the GPU's ---------------------------------
constexpr size_t STATIC_BYTES = 16 << 10;    // what SMEM_ARRAY may take
constexpr saddr DYNAMIC_BASE = 16 << 10;     // address of dynamic byte 0; + 227 KB stays below the 256 KB of a wgmma descriptor
constexpr size_t MAX_SMEM_BYTES = 227 << 10; // a block's most on any GPU (sm_90)

extern __thread ThreadIndex* current __attribute__((tls_model("initial-exec")));

enum class Op : uint8_t {
  NONE, SHFL, VOTE, SYNC_WARP, MMA, LDMATRIX, STMATRIX, BAR, MBAR_WAIT, WGMMA, WGMMA_FENCE, WGMMA_COMMIT, WGMMA_WAIT,
  CLUSTER, WORD
};
const char* name_of(Op);
inline bool operator==(Loc a, Loc b) { return a.line == b.line && a.file == b.file; }
inline bool operator!=(Loc a, Loc b) { return !(a == b); }
const char* base_name(const char* path);
#define AT(loc) base_name((loc).file), (loc).line  // for "%s:%d"

// ---- asynchronous copies of one thread -------------------------------------------------------------------------------------
struct TmaStore { const TensorMap* map; saddr from; int c0, c1; bool read; std::vector<uint8_t> data; Loc loc; };  // read: data is it
struct Copy { uint8_t* to; const uint8_t* from; uint32_t bytes; bool read; Loc loc; };  // read false: zeros

struct Block;
struct Warp;
struct WarpGroup;
struct Fiber : ThreadIndex {
  void* stack_pointer;
  uint8_t* stack;
  int id, lane;
  Block* owner;
  Warp* warp;
  WarpGroup* group;
  bool done;
  Op waiting_in;                             // of a fiber that does not run: for the deadlock report
  Loc waiting_at;
  Loc last_access;                           // through a wrapper: for tsan's reports
  bool waited;                               // has called griddep_wait
  const char* early;                         // the first access that should have come after it, if there was one
  Loc early_at;
  uint32_t cluster_arrivals, cluster_waits;  // at the cluster's barrier
  const void* argument;                      // to the collective it waits in
  std::vector<Copy> copies;                  // cp.async not yet done, oldest first
  std::vector<size_t> group_ends;            // ends of committed groups in `copies`
  std::vector<TmaStore> stores;              // not yet in global memory, oldest first
  std::vector<size_t> store_group_ends;
  void* tsan;
};

// ---- a warp's collectives: each lane leaves its argument, the last to come does the work for all ----------------------------
struct Collective { uint32_t mask, arrived; Op op; Loc loc; };
struct BankCounter;
struct Warp {
  Block* owner = nullptr;
  int index = 0;
  Fiber* lanes = nullptr;                    // 32 of them, fewer in the last warp of an odd block
  uint32_t exists = 0, exited = 0, ready = 0;  // ready: may run, and is not running
  int n_pending = 0;
  Collective pending[32];                    // more than one only with partial masks
  uint8_t* rows[32];                         // of the last ldmatrix or stmatrix
  BankCounter* banks = nullptr;
};

// ---- a warpgroup's wgmma -----------------------------------------------------------------------------------------------------
// a_registers: each thread's, read when the product is made; empty where a is in shared memory
struct PendingWgmma { uint64_t a, b; int n, scale_d, group; bool bf16, transposed_b; float* key; std::vector<const uint32_t*> a_registers; };
struct Accumulators { std::vector<float> values; float* registers[128]; int n, pending; };  // what the threads' registers will hold
struct WarpGroup {
  int arrived = 0;
  Op op = Op::NONE;
  Loc loc{"", 0};
  float* d[128];
  WgmmaOperands operands[128];
  int group = 0;
  bool fenced = false;
  std::vector<PendingWgmma> queue;
  std::map<float*, Accumulators> in_flight;
  uint32_t waiting[4] = {};
  char finished = 0;                         // tsan: what the tensor core has done is known to who waited
};

struct Barrier { int arrived = 0, expected = 0; Loc loc{"", 0}; uint32_t waiting[32] = {}; };
struct TmaLoad { saddr to; const TensorMap* map; int c0, c1; saddr barrier; uint32_t ranks; Loc loc; };  // ranks: a bit for each block of the cluster that gets it

// Who waits for a word of global memory to count up to a value.
struct WordWaiter { Fiber* fiber; uint32_t value; };

// The blocks of a cluster run at once, by one scheduler: all of them, by rank. A block alone is a cluster of one, and so are all
// blocks of a cooperative launch.
struct Cluster { std::vector<Block*> blocks; int arrived = 0, n = 0; uint32_t barriers_passed = 0; Loc loc{"", 0}; void* host_stack_pointer = nullptr; std::map<const uint32_t*, std::vector<WordWaiter>> word_waiters; };

struct Block {
  Cluster* cluster = nullptr;
  int rank = 0;
  uint32_t in_cluster_sync[32] = {};         // lanes of each warp that wait in it
  int n = 0, live = 0, n_warps = 0;
  int at_warp = 0;                           // whose lanes run while they can
  uint32_t ready_warps = 0;
  size_t smem_bytes = 0, static_bytes = 0;
  uint8_t* window = nullptr;                 // STATIC_BYTES, then the dynamic part
  size_t window_bytes = 0;
  std::vector<Fiber> fibers;
  std::vector<Warp> warps;
  std::vector<WarpGroup> groups;
  Barrier barriers[16];
  std::map<const void*, void*> static_arrays;
  std::set<saddr> mbarriers;
  std::vector<std::pair<saddr, Fiber*>> mbar_waiters;
  std::vector<TmaLoad> tma_queue;
  const std::function<void()>* body = nullptr;
  bool failed = false;
  Error error;
  std::minstd_rand random;
  void *tsan_host = nullptr, *tsan_tma = nullptr, *tsan_store = nullptr, *tsan_wgmma = nullptr;
  bool waited = false;                       // a thread has called griddep_wait
  char started = 0, ended = 0, tma_issued = 0, tma_read = 0;  // tsan: addresses of order, not data
  ~Block();
};
extern __thread Block* block __attribute__((tls_model("initial-exec")));
extern __thread Fiber* running __attribute__((tls_model("initial-exec")));

// ---- fibers.cpp ------------------------------------------------------------------------------------------------------------
[[noreturn]] __attribute__((format(printf, 1, 2))) void fail(const char* format, ...);  // ends the launch
void wait_in(Op, Loc);                       // gives the processor away until someone wakes this lane
void wake(Warp&, uint32_t lanes);
struct OnBlock {                             // in this scope another block of the cluster is `block`
  explicit OnBlock(Block* b) : back_(block) { block = b; }
  ~OnBlock() { block = back_; }
  Block* back_;
};
Block& block_of_rank(uint32_t rank, const char* what, Loc);  // fails if there is none, or it has ended

// ---- memory.cpp ------------------------------------------------------------------------------------------------------------
uint8_t* shared_at(saddr, size_t bytes, size_t align, const char* what, Loc);
void check_global(const void*, size_t bytes, bool write, const char* what, Loc);
void begin_launch();                         // numbers it

// ---- banks.cpp -------------------------------------------------------------------------------------------------------------
void count_lane(const char* what, saddr, uint32_t bytes, Loc);                       // one lane of a warp-wide access
void count_matrices(const char* what, const saddr rows[32], int n_matrices, Loc);
BankCounter* new_bank_counter();
void finish_counting(Warp&);                 // at the end of a block

// ---- copies.cpp, tma.cpp, wgmma.cpp ------------------------------------------------------------------------------------------
bool copies_in_flight(const Fiber&);
void finish_stores(Fiber&);                  // at its end: fails if shared memory has not been read, writes what has
bool run_one_tma_load();                     // false: none is queued

// ---- collectives -------------------------------------------------------------------------------------------------------------
// `fn(warp)` runs once, when every lane of `mask` has come. Lanes that have exited may not be named: stricter than CUDA.
template <class Fn> void warp_all(Op op, uint32_t mask, Loc loc, const void* argument, Fn fn) {
  Fiber& f = *running;
  Warp& w = *f.warp;
  const uint32_t me = 1u << f.lane;
  mask &= w.exists;
  if (!(mask & me)) fail("%s at %s:%d: lane %d is not in its own mask %08x", name_of(op), AT(loc), f.lane, mask);
  if (mask & w.exited) fail("%s at %s:%d: lanes %08x have exited", name_of(op), AT(loc), mask & w.exited);
  Collective* c = nullptr;
  for (int i = 0; i < w.n_pending; i++) {
    Collective& p = w.pending[i];
    if (p.op == op && p.loc == loc && p.mask == mask) c = &p;
    else if (p.mask & me && p.arrived & mask)  // they wait for this lane, and it for them
      fail("divergent warp: lane %d at %s, %s:%d, mask %08x, while lanes %08x are at %s, %s:%d, mask %08x", f.lane, name_of(op), AT(loc),
           mask, p.arrived, name_of(p.op), AT(p.loc), p.mask);
  }
  if (!c) {
    c = &w.pending[w.n_pending++];
    *c = {mask, 0, op, loc};
  }
  f.argument = argument;
  c->arrived |= me;
  if (c->arrived != mask) { wait_in(op, loc); return; }
  *c = w.pending[--w.n_pending];
  fn(w);
  wake(w, mask & ~me);
}
template <class A> const A& argument_of(const Warp& w, int lane) { return *(const A*)w.lanes[lane].argument; }
}  // namespace emu
