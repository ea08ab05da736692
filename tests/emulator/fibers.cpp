// fibers.cpp - one fiber per CUDA thread; a warp runs until none of its lanes can, then the next warp. So warps drift as
// far apart as barriers let them, which is what shows a missing barrier.
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <algorithm>
#include <atomic>
#include <memory>
#include <mutex>
#include <thread>
#include "core.h"

namespace emu {
Options opt;
__thread ThreadIndex* current;
__thread Block* block;
__thread Fiber* running;

const char* name_of(Op op) {
  static const char* const names[] = {"",        "shfl",          "vote",  "sync_warp",   "mma.sync",     "ldmatrix",  "stmatrix",
                                      "barrier", "mbarrier.wait", "wgmma", "wgmma_fence", "wgmma_commit", "wgmma_wait",
                                      "cluster_wait", "wait_global"};
  return names[(int)op];
}
const char* base_name(const char* path) {
  const char* slash = strrchr(path, '/');
  return slash ? slash + 1 : path;
}

// ---- switching -----------------------------------------------------------------------------------------------------------
constexpr size_t STACK_BYTES = 256 << 10;

// Saves the callee-saved registers on the old stack and takes them from the new one.
extern "C" void emu_switch_stacks(void** save, void* load);
#if defined(__x86_64__)
asm(R"(
.text
.globl emu_switch_stacks
.hidden emu_switch_stacks
.type emu_switch_stacks,@function
emu_switch_stacks:
  push %rbp
  push %rbx
  push %r12
  push %r13
  push %r14
  push %r15
  mov %rsp,(%rdi)
  mov %rsi,%rsp
  pop %r15
  pop %r14
  pop %r13
  pop %r12
  pop %rbx
  pop %rbp
  ret
.size emu_switch_stacks,.-emu_switch_stacks
)");
static void* first_frame(uint8_t* top, void (*entry)()) {
  void** sp = (void**)(top - 8);             // as after a call: 8 below a multiple of 16
  *sp = nullptr;
  *--sp = (void*)entry;
  return sp - 6;
}
#elif defined(__aarch64__)
asm(R"(
.text
.globl emu_switch_stacks
.hidden emu_switch_stacks
.type emu_switch_stacks,@function
emu_switch_stacks:
  sub sp, sp, #160
  stp x19, x20, [sp, #0]
  stp x21, x22, [sp, #16]
  stp x23, x24, [sp, #32]
  stp x25, x26, [sp, #48]
  stp x27, x28, [sp, #64]
  stp x29, x30, [sp, #80]
  stp d8, d9, [sp, #96]
  stp d10, d11, [sp, #112]
  stp d12, d13, [sp, #128]
  stp d14, d15, [sp, #144]
  mov x9, sp
  str x9, [x0]
  mov sp, x1
  ldp x19, x20, [sp, #0]
  ldp x21, x22, [sp, #16]
  ldp x23, x24, [sp, #32]
  ldp x25, x26, [sp, #48]
  ldp x27, x28, [sp, #64]
  ldp x29, x30, [sp, #80]
  ldp d8, d9, [sp, #96]
  ldp d10, d11, [sp, #112]
  ldp d12, d13, [sp, #128]
  ldp d14, d15, [sp, #144]
  add sp, sp, #160
  ret
.size emu_switch_stacks,.-emu_switch_stacks
)");
static void* first_frame(uint8_t* top, void (*entry)()) {
  uint64_t* sp = (uint64_t*)(top - 160);
  memset(sp, 0, 160);
  sp[11] = (uint64_t)entry;                  // x30
  return sp;
}
#else
#error "fibers.cpp: no stack switch for this processor"
#endif

#ifdef EMU_ASAN
static __thread const void* host_stack;
static __thread size_t host_stack_bytes;
static __thread void* host_fake_stack;
#endif
static void switch_to_fiber(void** save, Fiber* f) {
#ifdef EMU_ASAN
  bool from_host = running == nullptr;
#endif
  running = f;
  current = f;
  block = f->owner;
#ifdef EMU_TSAN
  __tsan_switch_to_fiber(f->tsan, 1);
#endif
#ifdef EMU_ASAN
  void* fake_stack = nullptr;
  __sanitizer_start_switch_fiber(from_host ? &host_fake_stack : &fake_stack, f->stack, STACK_BYTES);
#endif
  emu_switch_stacks(save, f->stack_pointer);
#ifdef EMU_ASAN
  __sanitizer_finish_switch_fiber(from_host ? host_fake_stack : fake_stack, nullptr, nullptr);
#endif
}
static void switch_to_host(void** save) {
#ifdef EMU_TSAN
  __tsan_switch_to_fiber(block->tsan_host, 1);
#endif
#ifdef EMU_ASAN
  __sanitizer_start_switch_fiber(nullptr, host_stack, host_stack_bytes);
#endif
  emu_switch_stacks(save, block->cluster->host_stack_pointer);
}

// The host frees what the abandoned fibers have used: it must count as later than they.
static void know_all_fibers() {
#ifdef EMU_TSAN
  void* self = __tsan_get_current_fiber();
  for (Block* b : block->cluster->blocks)
    for (int i = 0; i < b->n; i++) {
      __tsan_switch_to_fiber(b->fibers[(size_t)i].tsan, 1);
      release(&b->ended);
    }
  __tsan_switch_to_fiber(self, 1);
#endif
}
void fail(const char* format, ...) {
  char* text = block->error.msg;
  constexpr size_t room = sizeof block->error.msg;
  va_list args;
  va_start(args, format);
  size_t n = (size_t)vsnprintf(text, room, format, args);
  va_end(args);
  if (running && n < room) {
    const dim3e& b = running->bid;
    snprintf(text + n, room - n, " [block %u,%u,%u thread %d]", b.x, b.y, b.z, running->id);
  }
  block->failed = true;
  know_all_fibers();
  void* abandoned;
  switch_to_host(&abandoned);                // the other fibers' stacks are simply used again
  abort();
}

// ---- scheduling ------------------------------------------------------------------------------------------------------------
static int pick_bit(uint32_t bits) {         // forward: the lowest
  if (opt.order == FORWARD) return __builtin_ctz(bits);
  if (opt.order == REVERSE) return 31 - __builtin_clz(bits);
  for (int skip = (int)(block->random() % (unsigned)__builtin_popcount(bits)); skip; skip--) bits &= bits - 1;
  return __builtin_ctz(bits);
}
static int next_warp(uint32_t ready, int after) {  // the next one around the circle
  uint32_t ahead = 0;
  if (opt.order == FORWARD) ahead = after == 31 ? 0 : ready & ~0u << (after + 1);
  if (opt.order == REVERSE) ahead = ready & ((1u << after) - 1);
  return pick_bit(ahead ? ahead : ready);
}
void wake(Warp& w, uint32_t lanes) {
  if (!lanes) return;
  w.ready |= lanes;
  w.owner->ready_warps |= 1u << w.index;
}

[[noreturn]] static void report_deadlock() {
  std::string text;
  for (Block* other : block->cluster->blocks)  // of a cluster, the first that waits
    if (other->live) { block = other; break; }
  Block& b = *block;
  for (int i = 0, shown = 0; i < b.n && shown < 8;) {
    Fiber& f = b.fibers[i];
    int j = i + 1;
    while (j < b.n && b.fibers[j].done == f.done && (f.done || (b.fibers[j].waiting_in == f.waiting_in && b.fibers[j].waiting_at == f.waiting_at))) j++;
    char line[200];
    if (f.done) snprintf(line, sizeof line, " threads %d-%d have exited;", i, j - 1);
    else snprintf(line, sizeof line, " threads %d-%d wait in %s at %s:%d;", i, j - 1, name_of(f.waiting_in), AT(f.waiting_at));
    text += line;
    shown++;
    i = j;
  }
  dim3e bid = b.fibers[0].bid;
  running = nullptr;
  fail("deadlock in block %u,%u,%u:%s %d of %d threads are left", bid.x, bid.y, bid.z, text.c_str(), b.live, b.n);
}
// Another block of the cluster with warps that are ready, the next one around the circle; null if there is none.
static Block* next_ready_block() {
  auto& all = block->cluster->blocks;
  const size_t n = all.size(), step = opt.order == REVERSE ? n - 1 : 1;
  for (size_t i = 1, at = (size_t)block->rank; i < n; i++) {
    at = (at + step) % n;
    if (all[at]->ready_warps) return all[at];
  }
  return nullptr;
}
static bool run_one_tma_load_of_cluster() {
  for (Block* b : block->cluster->blocks) {
    OnBlock there(b);
    if (run_one_tma_load()) return true;
  }
  return false;
}
static bool all_have_exited() {
  for (Block* b : block->cluster->blocks)
    if (b->live) return false;
  return true;
}
static Fiber* pick() {                       // null: every thread has exited
  for (;;) {
    Block& b = *block;
    // a shuffled block now and then leaves a warp that could go on
    bool stay = b.warps[b.at_warp].ready && (opt.order != SHUFFLE || b.random() % 4);
    if (!stay) {
      const bool leave = b.cluster->blocks.size() > 1 && opt.order == SHUFFLE && b.random() % 4 == 0;
      Block* other = leave || !b.ready_warps ? next_ready_block() : nullptr;
      if (other) { block = other; continue; }
      if (!b.ready_warps) {
        if (all_have_exited()) return nullptr;
        if (!run_one_tma_load_of_cluster()) report_deadlock();
        continue;
      }
      b.at_warp = next_warp(b.ready_warps, b.at_warp);
    }
    Warp& w = b.warps[b.at_warp];
    int lane = pick_bit(w.ready);
    w.ready &= ~(1u << lane);
    if (!w.ready) b.ready_warps &= ~(1u << w.index);
    return &w.lanes[lane];
  }
}
void wait_in(Op op, Loc loc) {
  Fiber* me = running;
  me->waiting_in = op;
  me->waiting_at = loc;
  Fiber* next = pick();
  if (next != me) switch_to_fiber(&me->stack_pointer, next);
}

static void fiber_main() {
#ifdef EMU_ASAN
  {
    const void* bottom;
    size_t bytes;
    __sanitizer_finish_switch_fiber(nullptr, &bottom, &bytes);
    if (!host_stack) { host_stack = bottom; host_stack_bytes = bytes; }  // the first switch comes from the host
  }
#endif
  acquire(&block->started);
  (*block->body)();
  Fiber* me = running;
  if (copies_in_flight(*me)) fail("thread exits with cp.async still in flight");
  finish_stores(*me);
  release(&block->ended);
  me->done = true;
  me->warp->exited |= 1u << me->lane;
  block->live--;
  void* never;
  if (Fiber* next = pick()) switch_to_fiber(&never, next);
  else switch_to_host(&never);
  abort();
}

// ---- blocks ------------------------------------------------------------------------------------------------------------------
static void make_fibers(Block& b, int n) {
  Unseen unseen;
  size_t old = b.fibers.size();
  if (old >= (size_t)n) return;
  b.fibers.resize((size_t)n);
  for (size_t i = old; i < (size_t)n; i++) {
    constexpr size_t guard = 4096;
    void* p = mmap(nullptr, STACK_BYTES + guard, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (p == MAP_FAILED || mprotect(p, guard, PROT_NONE)) { perror("emulator: fiber stacks"); abort(); }
    b.fibers[i].stack = (uint8_t*)p + guard;
    char name[40];
    snprintf(name, sizeof name, "CUDA thread %zu", i);
    b.fibers[i].tsan = new_tsan_fiber(name);
  }
}
// Fresh for each block: poisoned, and (tsan) without the memory of the last block's accesses.
static void make_window(Block& b, size_t smem_bytes) {
  size_t bytes = STATIC_BYTES + ((smem_bytes + 4095) & ~(size_t)4095);
#ifdef EMU_TSAN
  constexpr bool renew = true;
#else
  constexpr bool renew = false;
#endif
  if (renew || bytes != b.window_bytes) {
    if (b.window) munmap(b.window, b.window_bytes);
    void* p = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (p == MAP_FAILED) { perror("emulator: shared memory"); abort(); }
    b.window = (uint8_t*)p;
    b.window_bytes = bytes;
  }
  b.smem_bytes = smem_bytes;
  asan_unpoison(b.window, bytes);
  { Unseen unseen; memset(b.window, opt.poison ? 0xFF : 0, STATIC_BYTES + smem_bytes); }  // 0xFF...: NaN as f16, bf16 and f32
  asan_poison(b.window, STATIC_BYTES);
  asan_poison(b.window + STATIC_BYTES + smem_bytes, bytes - STATIC_BYTES - smem_bytes);
}
Block::~Block() {
  constexpr size_t guard = 4096;
  for (Fiber& f : fibers) munmap(f.stack - guard, STACK_BYTES + guard);
  if (window) { asan_unpoison(window, window_bytes); munmap(window, window_bytes); }
}

static void prepare_block(Block& b, dim3e bid, dim3e grid, dim3e dim, size_t smem_bytes, const std::function<void()>& body) {
  Unseen unseen;
  int n = (int)(dim.x * dim.y * dim.z);
  make_fibers(b, n);
  make_window(b, smem_bytes);
  b.n = b.live = n;
  b.n_warps = (n + 31) / 32;
  b.warps.assign((size_t)b.n_warps, Warp());
  b.groups.assign((size_t)(n + 127) / 128, WarpGroup());
  std::fill(std::begin(b.barriers), std::end(b.barriers), Barrier());
  b.static_arrays.clear();
  b.mbarriers.clear();
  b.mbar_waiters.clear();
  b.tma_queue.clear();
  b.static_bytes = 0;
  b.body = &body;
  std::fill(std::begin(b.in_cluster_sync), std::end(b.in_cluster_sync), 0u);
  b.failed = b.waited = false;
  b.ready_warps = 0;
  for (int i = 0; i < n; i++) {
    Fiber& f = b.fibers[(size_t)i];
    Warp& w = b.warps[(size_t)i / 32];
    f.id = i;
    f.lane = i & 31;
    f.owner = w.owner = &b;
    f.warp = &w;
    f.group = &b.groups[(size_t)i / 128];
    f.done = false;
    f.last_access = Loc{nullptr, 0};
    f.waited = false;
    f.cluster_arrivals = f.cluster_waits = 0;
    f.early = nullptr;
    f.copies.clear();
    f.group_ends.clear();
    f.stores.clear();
    f.store_group_ends.clear();
    f.tid = {(unsigned)i % dim.x, (unsigned)i / dim.x % dim.y, (unsigned)i / (dim.x * dim.y)};
    f.bid = bid;
    f.bdim = dim;
    f.gdim = grid;
    asan_unpoison(f.stack, STACK_BYTES);
    f.stack_pointer = first_frame(f.stack + STACK_BYTES, fiber_main);
    w.index = i / 32;
    if (f.lane == 0) { w.lanes = &f; w.banks = new_bank_counter(); }
    w.exists |= 1u << f.lane;
    wake(w, 1u << f.lane);
  }
  b.at_warp = opt.order == REVERSE ? b.n_warps - 1 : opt.order == SHUFFLE ? pick_bit(b.ready_warps) : 0;
}
// `first` numbers the first of them among the blocks of a launch
static void run_cluster(const std::vector<Block*>& blocks, uint64_t first, dim3e grid, dim3e dim, size_t smem_bytes, const std::function<void()>& body) {
  Cluster cluster;
  {
    Unseen unseen;
    cluster.blocks = blocks;
    cluster.n = (int)(blocks.size() * dim.x * dim.y * dim.z);
  }
  for (size_t i = 0; i < blocks.size(); i++) {
    Block& b = *blocks[i];
    const uint64_t id = first + i;
    dim3e bid{(unsigned)(id % grid.x), (unsigned)(id / grid.x % grid.y), (unsigned)(id / ((uint64_t)grid.x * grid.y))};
    block = &b;
    b.cluster = &cluster;
    b.rank = (int)i;
    b.random.seed(opt.seed * 7919 + (unsigned)id);
    prepare_block(b, bid, grid, dim, smem_bytes, body);
#ifdef EMU_TSAN
    b.tsan_host = __tsan_get_current_fiber();
    if (!b.tsan_tma) { b.tsan_tma = new_tsan_fiber("copy engine (TMA)"); b.tsan_store = new_tsan_fiber("copy engine (TMA stores)"); b.tsan_wgmma = new_tsan_fiber("tensor core (wgmma)"); }
#endif
    release(&b.started);
  }
  block = opt.order == REVERSE ? blocks.back() : blocks.front();
  switch_to_fiber(&cluster.host_stack_pointer, pick());
  running = nullptr;
  current = nullptr;
  Unseen unseen;
  for (Block* b : blocks) {
    block = b;
    for (Warp& w : b->warps) finish_counting(w);
  }
  for (Block* b : blocks)
    if (b->failed) throw b->error;
  for (Block* b : blocks) {
    Error e;
    e.msg[0] = 0;
    if (!b->tma_queue.empty()) snprintf(e.msg, sizeof e.msg, "block exits with TMA copies in flight, from %s:%d", AT(b->tma_queue[0].loc));
    else if (opt.must_wait && !b->waited)
      snprintf(e.msg, sizeof e.msg, "a dependent launch whose block never calls griddep_wait: the launch after it could begin before the one before it has ended");
    else
      for (WarpGroup& g : b->groups)
        if (!g.queue.empty()) snprintf(e.msg, sizeof e.msg, "block exits with wgmma in flight (no wgmma_wait)");
    if (e.msg[0]) throw e;
  }
}

// Under tsan two sets of fibers take turns, and the host learns what the blocks did at the end of the launch only: so a
// block is ordered with neither of its neighbours, and two blocks that touch the same global memory are a race.
#ifdef EMU_TSAN
constexpr uint64_t BLOCK_SETS = 2;
#else
constexpr uint64_t BLOCK_SETS = 1;
#endif
constexpr uint64_t MOST_BLOCKS_AT_ONCE = 256;  // each thread of them has a stack
// Blocks are kept from launch to launch: their fibers' stacks are what costs.
static std::mutex idle_mutex;
static std::vector<std::unique_ptr<Block>>& idle_blocks() { static std::vector<std::unique_ptr<Block>> v; return v; }
struct BorrowedBlocks {
  std::vector<std::unique_ptr<Block>> blocks;
  explicit BorrowedBlocks(size_t n) {
    Unseen unseen;
    std::lock_guard<std::mutex> lock(idle_mutex);
    for (size_t i = 0; i < n; i++) {
      if (idle_blocks().empty()) { blocks.emplace_back(new Block); continue; }
      blocks.push_back(std::move(idle_blocks().back()));
      idle_blocks().pop_back();
    }
  }
  ~BorrowedBlocks() {
    Unseen unseen;
    std::lock_guard<std::mutex> lock(idle_mutex);
    for (auto& b : blocks) idle_blocks().push_back(std::move(b));
  }
};
void launch(dim3e grid, dim3e dim, size_t smem_bytes, const std::function<void()>& body, int cluster) {
  auto refuse = [](const char* why) { Error e; snprintf(e.msg, sizeof e.msg, "launch: %s", why); throw e; };
  uint64_t total = (uint64_t)grid.x * grid.y * grid.z, n = (uint64_t)dim.x * dim.y * dim.z;
  if (!total || grid.x > 0x7fffffff || grid.y > 65535 || grid.z > 65535) refuse("grid is empty or above 2^31-1 x 65535 x 65535");
  if (!n || n > 1024 || dim.z > 64) refuse("block is empty or above 1024 threads");
  if (smem_bytes > MAX_SMEM_BYTES) refuse("more dynamic shared memory than any GPU has");
  if (cluster == WHOLE_GRID) {
    if (total > MOST_BLOCKS_AT_ONCE) refuse("more blocks than run at once on any GPU");
    cluster = (int)total;
  } else if (cluster < 1 || cluster > 16 || grid.x % (unsigned)cluster) {
    refuse("the grid is not whole clusters of at most 16 blocks");
  }
  total /= (uint64_t)cluster;                // counts clusters from here on
  begin_launch();
  std::atomic<uint64_t> next{0};
  std::mutex mutex;
  bool failed = false;
  Error error;
  auto work = [&] {
    const size_t sets = (size_t)std::min<uint64_t>(BLOCK_SETS, total);
    BorrowedBlocks borrowed(sets * (size_t)cluster);
    std::vector<Block*> blocks((size_t)cluster);
    for (uint64_t i; (i = next++) < total;) {
      uint64_t id = opt.order == REVERSE ? total - 1 - i : i;
      for (size_t rank = 0; rank < blocks.size(); rank++) blocks[rank] = borrowed.blocks[i % sets * blocks.size() + rank].get();
      try { run_cluster(blocks, id * (uint64_t)cluster, grid, dim, smem_bytes, body); }
      catch (Error& e) { std::lock_guard<std::mutex> lock(mutex); failed = true; error = e; next = total; }
    }
    for (auto& b : borrowed.blocks) acquire(&b->ended);
  };
#ifdef EMU_TSAN
  int n_threads = 1;
#else
  int n_threads = (int)std::min<uint64_t>((uint64_t)opt.threads, total);
#endif
  if (n_threads <= 1) {
    work();
  } else {
    std::vector<std::thread> threads;
    for (int i = 0; i < n_threads; i++) threads.emplace_back(work);
    for (auto& t : threads) t.join();
  }
  if (failed) throw error;
}

// ---- kernels by name -----------------------------------------------------------------------------------------------------------
static std::map<std::string, Kernel>& registry() { static std::map<std::string, Kernel> r; return r; }
void register_kernel(Kernel k) { registry()[k.name] = k; }
const Kernel* find_kernel(const char* name) {
  auto found = registry().find(name);
  return found == registry().end() ? nullptr : &found->second;
}
const Kernel* find_kernel(void* function) {
  for (auto& k : registry()) if (k.second.function == function) return &k.second;
  return nullptr;
}
std::vector<const Kernel*> all_kernels() {
  std::vector<const Kernel*> v;
  for (auto& k : registry()) v.push_back(&k.second);
  return v;
}
}  // namespace emu

// A run that a sanitizer's environment variable does not change is enough for the tests.
#ifdef EMU_ASAN
extern "C" const char* __asan_default_options() { return "detect_leaks=0:detect_stack_use_after_return=0"; }
extern "C" const char* __ubsan_default_options() { return "print_stacktrace=1"; }
#endif
#ifdef EMU_TSAN
extern "C" const char* __tsan_default_options() { return "halt_on_error=1:history_size=2:atexit_sleep_ms=0"; }
// The emulator has no frames in tsan's stacks, so a report about a copy or an ldmatrix would not name the kernel's line.
extern "C" void __tsan_on_report(void*) {
  if (!emu::running) return;
  const emu::Fiber& f = *emu::running;
  fprintf(stderr, "EMULATOR: race seen by CUDA thread %d of block %u,%u,%u; its last access through a wrapper was at %s:%d\n", f.id, f.bid.x, f.bid.y,
          f.bid.z, f.last_access.file ? emu::base_name(f.last_access.file) : "none", f.last_access.line);
}
#endif
