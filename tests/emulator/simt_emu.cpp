// Emulator core. Built WITHOUT -fsanitize=thread even in the tsan build: accesses made for a kernel are announced to
// tsan by hand, the emulator's own state is invisible to it.
#include "simt_emu.h"
#undef threadIdx
#undef blockIdx
#undef blockDim
#undef gridDim
#include <stdio.h>
#include <stdlib.h>
#include <stdarg.h>
#include <sys/mman.h>
#include <immintrin.h>
#include <vector>
#include <map>
#include <set>
#include <string>
#include <thread>
#include <atomic>
#include <mutex>
#include <random>
#include <algorithm>
#ifdef EMU_ASAN
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif
#ifdef EMU_VALGRIND
#include <valgrind/memcheck.h>
#endif
#ifdef EMU_TSAN
extern "C" { void* __tsan_get_current_fiber(); void* __tsan_create_fiber(unsigned); void __tsan_destroy_fiber(void*); void __tsan_switch_to_fiber(void*, unsigned);
void __tsan_acquire(void*); void __tsan_release(void*); void __tsan_read_range(void*, unsigned long); void __tsan_write_range(void*, unsigned long); void __tsan_set_fiber_name(void*, const char*); }
#define ACQ(p) __tsan_acquire((void*)(p))
#define REL(p) __tsan_release((void*)(p))
#define RD(p, n) __tsan_read_range((void*)(p), n)
#define WR(p, n) __tsan_write_range((void*)(p), n)
#else
#define ACQ(p)
#define REL(p)
#define RD(p, n)
#define WR(p, n)
#endif
#ifdef EMU_TSAN
extern "C" { void AnnotateIgnoreReadsBegin(const char*, int); void AnnotateIgnoreReadsEnd(const char*, int); void AnnotateIgnoreWritesBegin(const char*, int); void AnnotateIgnoreWritesEnd(const char*, int); }
struct IgnoreScope { IgnoreScope() { AnnotateIgnoreReadsBegin("", 0); AnnotateIgnoreWritesBegin("", 0); } ~IgnoreScope() { AnnotateIgnoreReadsEnd("", 0); AnnotateIgnoreWritesEnd("", 0); } };
#else
struct IgnoreScope { ~IgnoreScope() {} };
#endif
namespace emu {
Options opt; Stats stats;
__thread Tls* cur;
enum Kind { K_NONE, K_SHFL, K_BALLOT, K_SYNCWARP, K_MMA, K_LDM, K_WGMMA, K_WGFENCE, K_WGCOMMIT, K_WGWAIT };
static const char* kind_name[] = {"", "shfl", "ballot", "syncwarp", "mma.sync", "ldmatrix", "wgmma", "wgmma.fence", "wgmma.commit", "wgmma.wait"};
struct Copy { uint8_t* dst; const uint8_t* src; bool pred; };
struct Warp { uint64_t gen = 0; int n = 0, kind = 0, line = 0; const void* slot[32]; uint32_t u[32]; alignas(32) float f[16 * 8]; };
struct Pend { uint64_t da, db; int n, scale, group; float** d; };
struct Shadow { std::vector<float> v; float* d[128]; int n, refs; };
struct WG { uint64_t gen = 0; int n = 0, kind = 0, line = 0; float* d[128]; uint64_t da[128], db[128]; int group = 0; bool fenced = false;
  std::vector<Pend> q; std::map<float*, Shadow> sh; uint8_t async_ep[8]; };
struct Bar { uint64_t gen = 0; int n = 0, expect = 0, line = 0; };
struct Block;
struct Fiber : Tls { void* sp; uint8_t* stack; int id, lane; Warp* w; WG* g; Block* b; const volatile uint64_t* wp; uint64_t wv; bool done; const char* what; int line;
  std::vector<Copy> open; std::vector<std::vector<Copy>> groups; void* tsan; };
struct Op { uint8_t* dst; const TensorMap* m; int c0, c1; saddr bar; };
static const size_t STACK = 256 << 10, STATIC = 8192;
struct Block { int n = 0, live = 0, pos = 0; size_t smem = 0, st = 0; uint8_t* base = nullptr; std::vector<Fiber> f; std::vector<int> order; std::vector<Warp> w; std::vector<WG> g;
  Bar bar[16]; std::map<const void*, void*> tags; std::set<saddr> mbars; std::vector<Op> q, qrun; void* main_sp; const std::function<void()>* body; bool failed = false; Error err; std::mt19937 rng; void *tsan_main = nullptr, *tsan_async = nullptr, *tsan_wg = nullptr; };
static __thread Block* B;
static __thread Fiber* F;
#ifdef EMU_ASAN
static __thread const void* host_stack; static __thread size_t host_size; static __thread void* host_fake;
#endif

extern "C" void emu_swtch(void** save, void* load);
asm(".text\n.globl emu_swtch\n.type emu_swtch,@function\nemu_swtch:\n push %rbp\n push %rbx\n push %r12\n push %r13\n push %r14\n push %r15\n mov %rsp,(%rdi)\n mov %rsi,%rsp\n"
    " pop %r15\n pop %r14\n pop %r13\n pop %r12\n pop %rbx\n pop %rbp\n ret\n.size emu_swtch,.-emu_swtch\n");
static void to_fiber(void** save, Fiber* f) {
#ifdef EMU_ASAN
  bool from_host = F == nullptr;
#endif
  F = f; cur = f;
#ifdef EMU_TSAN
  __tsan_switch_to_fiber(f->tsan, 1);
#endif
#ifdef EMU_ASAN
  void* fake = nullptr; __sanitizer_start_switch_fiber(from_host ? &host_fake : &fake, f->stack, STACK);
#endif
  emu_swtch(save, f->sp);
#ifdef EMU_ASAN
  __sanitizer_finish_switch_fiber(from_host ? host_fake : fake, nullptr, nullptr);
#endif
}
static void to_main(void** save) {
#ifdef EMU_TSAN
  __tsan_switch_to_fiber(B->tsan_main, 1);
#endif
#ifdef EMU_ASAN
  __sanitizer_start_switch_fiber(nullptr, host_stack, host_size);
#endif
  emu_swtch(save, B->main_sp);
}
[[noreturn]] static void fail(const char* fmt, ...) {
  va_list a; va_start(a, fmt); int n = vsnprintf(B->err.msg, sizeof B->err.msg, fmt, a); va_end(a);
  if (F && n < (int)sizeof B->err.msg) snprintf(B->err.msg + n, sizeof B->err.msg - n, " [block %u,%u,%u thread %d]", F->bid.x, F->bid.y, F->bid.z, F->id);
  B->failed = true; void* dummy; to_main(&dummy); abort();
}
static void run_op(const Op& o); static void complete_tx(saddr b, uint32_t n);
static bool run_async() {
  if (B->q.empty()) return false;
  auto& q = B->qrun; { IgnoreScope ig; q = B->q; B->q.clear(); if (opt.order == REVERSE) std::reverse(q.begin(), q.end()); }
  for (auto& o : q) run_op(o);
  return true;
}
static Fiber* pick() {
  Block* b = B;
  for (;;) {
    int p = b->pos;
    for (int i = 0; i < b->n; i++) {
      if (++p >= b->n) p = 0;
      Fiber* f = &b->f[b->order[p]];
      if (f->done || (f->wp && *f->wp == f->wv)) continue;
      f->wp = nullptr; b->pos = p; return f;
    }
    if (!b->live) return nullptr;
    if (!run_async()) {
      std::string s; int shown = 0, last = -1;
      for (auto& f : b->f) if (!f.done && f.line != last && shown++ < 6) { char t[96]; snprintf(t, sizeof t, " thread %d in %s line %d;", f.id, f.what, f.line); s += t; last = f.line; }
      F = nullptr; fail("deadlock in block %u,%u:%s %d of %d threads have exited", b->f[0].bid.x, b->f[0].bid.y, s.c_str(), b->n - b->live, b->n);
    }
  }
}
static void yield() { Fiber* me = F; Fiber* f = pick(); if (f == me) return; to_fiber(&me->sp, f); }
static void wait_change(const volatile uint64_t* p, uint64_t v, const char* what, int line) { F->wp = p; F->wv = v; F->what = what; F->line = line; yield(); }
static void fiber_main() {
#ifdef EMU_ASAN
  { const void* b; size_t n; __sanitizer_finish_switch_fiber(nullptr, &b, &n); if (!host_stack) { host_stack = b; host_size = n; } }
#endif
  ACQ(&B->order);                                   // the host's writes before the launch
  (*B->body)();
  if (!F->open.empty() || [] { for (auto& g : F->groups) if (!g.empty()) return true; return false; }()) fail("thread exits with cp.async still in flight");
  REL(&B->live);
  F->done = true; B->live--;
  Fiber* me = F; Fiber* f = pick();
  if (f) to_fiber(&me->sp, f); else { void* d; to_main(&d); }
  abort();
}
static void run_block(dim3e bid, dim3e grid, dim3e bd, size_t smem, const std::function<void()>& body) {
  Block* b = B; int n = bd.x * bd.y * bd.z;
  if ((int)b->f.size() < n) {
    size_t old = b->f.size(); b->f.resize(n);
    for (size_t i = old; i < (size_t)n; i++) {
      b->f[i].stack = (uint8_t*)mmap(nullptr, STACK + 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0) ;
      mprotect(b->f[i].stack, 4096, PROT_NONE); b->f[i].stack += 4096;
#ifdef EMU_VALGRIND
      VALGRIND_STACK_REGISTER(b->f[i].stack, b->f[i].stack + STACK);
#endif
#ifdef EMU_TSAN
      b->f[i].tsan = __tsan_create_fiber(0); char nm[40]; snprintf(nm, 40, "CUDA thread %zu", i); __tsan_set_fiber_name(b->f[i].tsan, nm);
#endif
    }
  }
  int nw = (n + 31) / 32; b->w.assign(nw, Warp()); b->g.assign((n + 127) / 128, WG());
  for (auto& x : b->bar) x = Bar();
  b->n = b->live = n; b->tags.clear(); b->mbars.clear(); b->q.clear(); b->st = 0; b->body = &body; b->failed = false;
  if (b->base == nullptr || b->smem != smem) { free(b->base); b->smem = smem; b->base = (uint8_t*)aligned_alloc(1024, STATIC + ((smem + 1023) & ~1023ull)); }
#ifdef EMU_ASAN
  ASAN_UNPOISON_MEMORY_REGION(b->base, STATIC + ((smem + 1023) & ~1023ull));
#endif
  if (opt.poison) memset(b->base, 0xFF, STATIC + smem);   // NaN as fp16 and as fp32
#ifdef EMU_VALGRIND
  VALGRIND_MAKE_MEM_UNDEFINED(b->base, STATIC + smem);
#endif
#ifdef EMU_ASAN
  ASAN_POISON_MEMORY_REGION(b->base, STATIC); ASAN_POISON_MEMORY_REGION(b->base + STATIC + smem, ((smem + 1023) & ~1023ull) - smem);
#endif
  b->order.resize(n);
  for (int i = 0; i < n; i++) {
    b->order[i] = opt.order == REVERSE ? n - 1 - i : i;
    Fiber& f = b->f[i]; f.id = i; f.lane = i & 31; f.w = &b->w[i / 32]; f.g = &b->g[i / 128]; f.b = b; f.wp = nullptr; f.done = false; f.open.clear(); f.groups.clear();
    f.tid = {i % bd.x, i / bd.x % bd.y, i / (bd.x * bd.y)}; f.bid = bid; f.bdim = bd; f.gdim = grid;
    void** sp = (void**)(f.stack + STACK - 8); *sp = nullptr; *--sp = (void*)fiber_main; sp -= 6; f.sp = sp;
#ifdef EMU_ASAN
    __asan_unpoison_memory_region(f.stack, STACK);
#endif
  }
  if (opt.order == SHUFFLE) std::shuffle(b->order.begin(), b->order.end(), b->rng);
  b->pos = n - 1;
#ifdef EMU_TSAN
  b->tsan_main = __tsan_get_current_fiber(); if (!b->tsan_async) { b->tsan_async = __tsan_create_fiber(0); __tsan_set_fiber_name(b->tsan_async, "async proxy: TMA"); b->tsan_wg = __tsan_create_fiber(0); __tsan_set_fiber_name(b->tsan_wg, "async proxy: wgmma"); }
  REL(&b->order);
#endif
  to_fiber(&b->main_sp, pick()); F = nullptr; cur = nullptr;
  ACQ(&b->live);
  if (b->failed) throw b->err;
  if (!b->q.empty()) { snprintf(b->err.msg, sizeof b->err.msg, "block exits with TMA copies in flight"); throw b->err; }
  for (auto& g : b->g) if (!g.q.empty()) { snprintf(b->err.msg, sizeof b->err.msg, "block exits with wgmma in flight (no wgmma_wait)"); throw b->err; }
}
void launch(dim3e grid, dim3e block, size_t smem, const std::function<void()>& body) {
  uint64_t total = (uint64_t)grid.x * grid.y * grid.z; std::atomic<uint64_t> next{0}; std::mutex mu; bool bad = false; Error err;
  auto work = [&] {
    static thread_local Block* mine = nullptr;
    if (!mine) mine = new Block;
    B = mine; B->rng.seed(opt.seed);
    for (;;) {
      uint64_t i = next++; if (i >= total) break;
      if (opt.order == REVERSE) i = total - 1 - i;
      try { run_block({(unsigned)(i % grid.x), (unsigned)(i / grid.x % grid.y), (unsigned)(i / ((uint64_t)grid.x * grid.y))}, grid, block, smem, body); }
      catch (Error& e) { std::lock_guard<std::mutex> l(mu); bad = true; err = e; next = total; }
    }
  };
#ifdef EMU_TSAN
  int nt = 1;
#else
  int nt = opt.threads ? opt.threads : 1;
#endif
  if (nt == 1 || total == 1) work();
  else { std::vector<std::thread> t; for (int i = 0; i < nt; i++) t.emplace_back(work); for (auto& x : t) x.join(); }
  if (bad) throw err;
}
// ---- shared memory ----
uint8_t* smem_dyn() { return B->base + STATIC; }
void* smem_static(const void* tag, size_t n, size_t al) {
  auto it = B->tags.find(tag); if (it != B->tags.end()) return it->second;
  size_t o = (B->st + 31 + al) & ~(al > 16 ? al - 1 : 15); if (o + n > STATIC) fail("static shared memory over %zu bytes", STATIC);
  B->st = o + n; void* p = B->base + o;
#ifdef EMU_ASAN
  ASAN_UNPOISON_MEMORY_REGION(p, n);
#endif
  return B->tags[tag] = p;
}
saddr to_saddr(const void* p) { size_t o = (const uint8_t*)p - B->base; if (o > STATIC + B->smem) fail("not a shared-memory pointer"); return (saddr)(o - STATIC + 8192); }
static const saddr BASE = 8192;                      // dynamic window starts here, 1024-aligned
static uint8_t* at(saddr a, size_t n, size_t al, const char* what, int line) {
  if (a % al) fail("%s line %d: shared address %u not %zu-byte aligned", what, line, a - BASE, al);
  int64_t o = (int64_t)a - BASE;
  if (o < -(int64_t)STATIC || o + (int64_t)n > (int64_t)B->smem) fail("%s line %d: shared offset %lld + %zu out of bounds (%zu)", what, line, (long long)o, n, B->smem);
  return B->base + STATIC + o;
}
// ---- warp collectives: each lane leaves its argument; the last to come does the work for all ----
template <class Fn> static void warp_all(Kind k, int line, const void* arg, Fn fn) {
  Warp& w = *F->w;
  if (w.n == 0) { w.kind = k; w.line = line; }
  else if (w.kind != k || w.line != line) fail("divergent warp: lane %d at %s line %d while other lanes are at %s line %d", F->lane, kind_name[k], line, kind_name[w.kind], w.line);
  w.slot[F->lane] = arg;
  if (++w.n == 32) { fn(w); w.n = 0; w.gen++; }
  else wait_change(&w.gen, w.gen, kind_name[k], line);
}
void shfl(uint32_t& v, int src, int line) { uint32_t x = v; warp_all(K_SHFL, line, &x, [](Warp& w) { for (int i = 0; i < 32; i++) w.u[i] = *(const uint32_t*)w.slot[i]; }); v = F->w->u[src & 31]; }
uint32_t ballot(bool p, int line) { uint32_t x = p; warp_all(K_BALLOT, line, &x, [](Warp& w) { uint32_t m = 0; for (int i = 0; i < 32; i++) m |= *(const uint32_t*)w.slot[i] << i; w.u[0] = m; }); return F->w->u[0]; }
uint8_t* shared(saddr a, size_t n, size_t al, const char* what, int line, bool) { return at(a, n, al, what, line); }
void global(const void* p, size_t n, const char* what, int line) { if ((uintptr_t)p % n) fail("%s line %d: address not %zu-byte aligned", what, line, n); }
void sync_warp(int line) { REL(F->w); warp_all(K_SYNCWARP, line, nullptr, [](Warp&) {}); ACQ(F->w); }
struct MmaArg { float* c; const uint32_t* a; uint32_t b0, b1; bool bf16; };
void mma(float* c, const uint32_t* a, uint32_t b0, uint32_t b1, bool bf16, int line) {
  MmaArg m{c, a, b0, b1, bf16};
  warp_all(K_MMA, line, &m, [](Warp& w) {
    alignas(32) float A[16][16], Bk[16][8], C[16][8];
    for (int l = 0; l < 32; l++) {
      const MmaArg& m = *(const MmaArg*)w.slot[l]; int g = l >> 2, t = (l & 3) * 2;
      alignas(32) float x[8], y[4];
      if (m.bf16) {
        for (int i = 0; i < 4; i++) { x[2 * i] = b2f(m.a[i]); x[2 * i + 1] = b2f(m.a[i] >> 16); }
        y[0] = b2f(m.b0); y[1] = b2f(m.b0 >> 16); y[2] = b2f(m.b1); y[3] = b2f(m.b1 >> 16);
      } else {
#ifdef __F16C__
      _mm256_store_ps(x, _mm256_cvtph_ps(_mm_loadu_si128((const __m128i*)m.a)));
      _mm_store_ps(y, _mm_cvtph_ps(_mm_set_epi32(0, 0, m.b1, m.b0)));
#else
      for (int i = 0; i < 4; i++) { x[2 * i] = h2f_(m.a[i]); x[2 * i + 1] = h2f_(m.a[i] >> 16); }
      y[0] = h2f_(m.b0); y[1] = h2f_(m.b0 >> 16); y[2] = h2f_(m.b1); y[3] = h2f_(m.b1 >> 16);
#endif
      }
      A[g][t] = x[0]; A[g][t + 1] = x[1]; A[g + 8][t] = x[2]; A[g + 8][t + 1] = x[3];
      A[g][t + 8] = x[4]; A[g][t + 9] = x[5]; A[g + 8][t + 8] = x[6]; A[g + 8][t + 9] = x[7];
      Bk[t][g] = y[0]; Bk[t + 1][g] = y[1]; Bk[t + 8][g] = y[2]; Bk[t + 9][g] = y[3];
      C[g][t] = m.c[0]; C[g][t + 1] = m.c[1]; C[g + 8][t] = m.c[2]; C[g + 8][t + 1] = m.c[3];
    }
    for (int i = 0; i < 16; i++) for (int k = 0; k < 16; k++) for (int j = 0; j < 8; j++) C[i][j] += A[i][k] * Bk[k][j];
    for (int l = 0; l < 32; l++) { const MmaArg& m = *(const MmaArg*)w.slot[l]; int g = l >> 2, t = (l & 3) * 2; m.c[0] = C[g][t]; m.c[1] = C[g][t + 1]; m.c[2] = C[g + 8][t]; m.c[3] = C[g + 8][t + 1]; }
  });
}
void ldmatrix(uint32_t* r, saddr a, bool trans, int line) {
  at(a, 16, 16, "ldmatrix", line);
  warp_all(K_LDM, line, &a, [](Warp& w) {
    for (int i = 0; i < 32; i++) w.u[i] = *(const saddr*)w.slot[i];
    for (int j = 0; j < 4; j++) { unsigned m = 0; for (int i = 0; i < 8; i++) m |= 1u << (w.u[j * 8 + i] >> 4 & 7); stats.ldm++; stats.ldm_extra += 8 - __builtin_popcount(m); }
  });
  int l = F->lane; Warp& w = *F->w;                  // each lane reads its own part, so that tsan sees it as the reader
  for (int j = 0; j < 4; j++) {
    if (!trans) { uint8_t* p = at(w.u[j * 8 + (l >> 2)] + (l & 3) * 4, 4, 4, "ldmatrix", line); RD(p, 4); memcpy(&r[j], p, 4); }
    else { uint16_t h[2]; for (int e = 0; e < 2; e++) { uint8_t* p = at(w.u[j * 8 + (l & 3) * 2 + e] + (l >> 2) * 2, 2, 2, "ldmatrix", line); RD(p, 2); memcpy(&h[e], p, 2); } r[j] = h[0] | (uint32_t)h[1] << 16; }
  }
}
// ---- block barriers ----
void bar_sync(int id, int n, int line) {
  Bar& b = B->bar[id];
  if (b.n == 0) { b.expect = n; b.line = line; } else if (b.expect != n) fail("bar.sync %d line %d: %d threads expected, line %d said %d", id, line, n, b.line, b.expect);
  REL(&b);
  if (++b.n == n) { b.n = 0; b.gen++; } else wait_change(&b.gen, b.gen, "bar.sync", line);
  ACQ(&b);
}
void bar_arrive(int id, int n, int line) {
  Bar& b = B->bar[id]; if (b.n == 0) { b.expect = n; b.line = line; }
  REL(&b); if (++b.n == n) { b.n = 0; b.gen++; }
}
void sync_block(int line) { bar_sync(0, B->n, line); }
// ---- cp.async ----
static void do_copy(const Copy& c) {
  WR(c.dst, 16);
  if (c.pred) { RD(c.src, 16); memcpy(c.dst, c.src, 16); } else memset(c.dst, 0, 16);
}
void cp_async(saddr d, const void* s, bool pred, int line) {
  Copy c{at(d, 16, 16, "cp.async", line), (const uint8_t*)s, pred};
  if (pred && ((uintptr_t)s & 15)) fail("cp.async line %d: global address not 16-byte aligned", line);
  if (opt.async == EAGER) { do_copy(c); return; }
  if (opt.poison) { IgnoreScope ig; memset(c.dst, 0xFF, 16); } WR(c.dst, 16); IgnoreScope ig; F->open.push_back(c);
}
void cp_async_commit() { IgnoreScope ig; F->groups.push_back(std::move(F->open)); F->open.clear(); }
void cp_async_wait(int n) { auto& g = F->groups; while ((int)g.size() > n) { for (auto& c : g[0]) do_copy(c); IgnoreScope ig; g.erase(g.begin()); } }
#ifdef EMU_TSAN
struct AsyncScope { void* back; AsyncScope(void* f) { back = __tsan_get_current_fiber(); __tsan_switch_to_fiber(f, 1); } ~AsyncScope() { __tsan_switch_to_fiber(back, 1); } };
#else
struct AsyncScope { AsyncScope(void*) {} ~AsyncScope() {} };
#endif
// ---- mbarrier: 20 bits pending, 20 bits count, 21 bits tx, 1 bit phase ----
struct MB { uint64_t pend : 20, count : 20; int64_t tx : 23; uint64_t phase : 1; };
static_assert(sizeof(MB) == 8, "");
static MB* mb(saddr a, const char* what, int line = 0) { MB* m = (MB*)at(a, 8, 8, what, line); if (!B->mbars.count(a)) fail("%s line %d: mbarrier at %u is not initialised", what, line, a - BASE); return m; }
static void mb_check(MB* m) { if (m->pend == 0 && m->tx == 0) { m->phase = !m->phase; m->pend = m->count; } }
void mbar_init(saddr a, uint32_t n) { MB* m = (MB*)at(a, 8, 8, "mbarrier.init", 0); B->mbars.insert(a); m->pend = m->count = n; m->tx = 0; m->phase = 0; }
void mbar_arrive(saddr a, uint32_t tx) { MB* m = mb(a, "mbarrier.arrive"); if (m->pend == 0) fail("mbarrier.arrive: more arrivals than the count at %u", a - BASE); REL(m); m->tx += tx; m->pend--; mb_check(m); }
static void complete_tx(saddr a, uint32_t n) { MB* m = mb(a, "complete_tx"); m->tx -= n; mb_check(m); }
void mbar_wait(saddr a, uint32_t parity, int line) { MB* m = mb(a, "mbarrier.wait", line); while (m->phase == (parity & 1)) { uint64_t v; memcpy(&v, m, 8); wait_change((uint64_t*)m, v, "mbarrier.wait", line); }
  ACQ(m); AsyncScope s(B->tsan_wg); ACQ((uint8_t*)m + 4); }   // what TMA wrote is known to wgmma once a thread has waited for it
void fence_proxy_async() { REL(&B->tsan_async); }
// ---- TMA ----
static uint32_t sw(uint32_t a, uint32_t mode) { return mode == 3 ? a ^ (a >> 7 & 7) << 4 : mode == 2 ? a ^ (a >> 7 & 3) << 4 : mode == 1 ? a ^ (a >> 7 & 1) << 4 : a; }   // 3 = 128B, 2 = 64B, 1 = 32B
static void run_op(const Op& o) {
  const TensorMap& m = *o.m; uint32_t rowb = m.box[0] * m.esize; saddr d0 = (saddr)(o.dst - (B->base + STATIC)) + BASE;
  { AsyncScope s(B->tsan_async); ACQ(&B->q);
    for (uint32_t y = 0; y < m.box[1]; y++) for (uint32_t x = 0; x < rowb; x += 16) {
      uint8_t* p = at(sw(d0 + y * rowb + x, m.swizzle), 16, 16, "tma", 0); int64_t gy = o.c1 + (int64_t)y; WR(p, 16);
      for (uint32_t e = 0; e < 16; e += m.esize) {
        int64_t gx = o.c0 + (int64_t)(x + e) / m.esize;
        if (gy >= 0 && gx >= 0 && gy < (int64_t)m.dim[1] && gx < (int64_t)m.dim[0]) { const uint8_t* s = (const uint8_t*)m.base + gy * m.stride + gx * m.esize; RD(s, m.esize); memcpy(p + e, s, m.esize); }
        else memset(p + e, 0, m.esize);
      }
    }
    { uint8_t* m = at(o.bar, 8, 8, "tma", 0); REL(m); REL(m + 4); } }
  complete_tx(o.bar, rowb * m.box[1]);
}
void tma_load_2d(saddr d, const TensorMap* m, saddr bar, int c0, int c1, int line) {
  if (m->magic != 0x544d4150) fail("tma line %d: not a tensor map", line);
  Op o{at(d, (size_t)m->box[0] * m->box[1] * m->esize, m->swizzle == 3 ? 1024 : 128, "tma", line), m, c0, c1, bar}; mb(bar, "tma", line);
  REL(&B->q);                                        // what the issuing thread has seen (its wait on the empty barrier) orders the copy
  if (opt.async == EAGER) run_op(o);
  else { IgnoreScope ig; if (opt.poison) memset(o.dst, 0xFF, (size_t)m->box[0] * m->box[1] * m->esize); B->q.push_back(o); }
}
// ---- wgmma ----
static void wgmma_exec(WG& g, const Pend& p, float* acc) {   // acc [128][n/2]
  static thread_local float A[64][16], Bt[16][256], C[64][256]; int n = p.n;
  AsyncScope s(B->tsan_wg); ACQ(&B->tsan_async);   // only fence.proxy.async makes ordinary stores visible here
  auto row16 = [&](uint64_t desc, int row, float* out, int step) {    // K-major: 16 halves of one row = two 16-byte chunks
    uint32_t start = (desc & 0x3FFF) << 4, lbo = (desc >> 16 & 0x3FFF) << 4, sbo = (desc >> 32 & 0x3FFF) << 4, mode = desc >> 62;   // 1 = 128B, 2 = 64B, 3 = 32B, 0 none
    for (int c = 0; c < 2; c++) {
      uint32_t a = mode == 0 ? start + row / 8 * sbo + row % 8 * 16 + c * lbo : sw(start + row / 8 * sbo + row % 8 * (256 >> mode) + c * 16, 4 - mode);
      uint8_t* q = at(a, 16, 16, "wgmma operand", g.line); RD(q, 16);
      for (int k = 0; k < 8; k++) { uint16_t h; memcpy(&h, q + 2 * k, 2); out[(c * 8 + k) * step] = h2f(h); }
    }
  };
  for (int r = 0; r < 64; r++) row16(p.da, r, A[r], 1);
  for (int c = 0; c < n; c++) row16(p.db, c, &Bt[0][c], 256);
  for (int t = 0; t < 128; t++) for (int i = 0; i < n / 2; i++) C[(t >> 5) * 16 + (t & 31) / 4 + (i >> 1 & 1) * 8][i / 4 * 8 + (t & 3) * 2 + (i & 1)] = p.scale ? acc[t * (n / 2) + i] : 0;
  for (int r = 0; r < 64; r++) for (int k = 0; k < 16; k++) for (int c = 0; c < n; c++) C[r][c] += A[r][k] * Bt[k][c];
  for (int t = 0; t < 128; t++) for (int i = 0; i < n / 2; i++) acc[t * (n / 2) + i] = C[(t >> 5) * 16 + (t & 31) / 4 + (i >> 1 & 1) * 8][i / 4 * 8 + (t & 3) * 2 + (i & 1)];
  REL(&g.async_ep);
}
struct Nop { void operator()(WG&) const {} };
template <class Fn, class Fn2 = Nop> static void wg_all(Kind k, int line, Fn fn, Fn2 fn2 = Fn2()) {
  WG& g = *F->g;
  if (g.n == 0) { g.kind = k; g.line = line; }
  else if (g.kind != k || g.line != line) fail("divergent warpgroup: thread at %s line %d while others are at %s line %d", kind_name[k], line, kind_name[g.kind], g.line);
  REL(&g);
  if (++g.n == 128) { fn(g); fn2(g); g.n = 0; g.gen++; } else wait_change(&g.gen, g.gen, kind_name[k], line);
}
void wgmma_fence(int line) { wg_all(K_WGFENCE, line, [](WG& g) { g.fenced = true; }); }
void wgmma_commit(int line) { wg_all(K_WGCOMMIT, line, [](WG& g) { g.group++; }); }
void wgmma(float* d, int n, uint64_t da, uint64_t db, int scale, int line) {
  WG& gg = *F->g; int t = F->id & 127; gg.d[t] = d; gg.da[t] = da; gg.db[t] = db;
  wg_all(K_WGMMA, line, [=](WG& g) {
    if (!g.fenced) fail("wgmma line %d without a wgmma_fence since the accumulators were last readable", line);
    for (int i = 1; i < 128; i++) if (g.da[i] != g.da[0] || g.db[i] != g.db[0]) fail("wgmma line %d: descriptors differ within the warpgroup", line);
    IgnoreScope ig; Shadow& s = g.sh[g.d[0]];
    if (s.v.empty()) { s.n = n; s.refs = 0; s.v.resize(128 * n / 2); for (int i = 0; i < 128; i++) { s.d[i] = g.d[i]; for (int j = 0; j < n / 2; j++) { s.v[i * n / 2 + j] = g.d[i][j]; if (opt.poison) g.d[i][j] = NAN; } } }
    Pend p{da, db, n, scale, g.group, s.d};
    s.refs++; g.q.push_back(p);
  }, [](WG& g) { if (opt.async == EAGER) { Pend& p = g.q.back(); wgmma_exec(g, p, g.sh[p.d[0]].v.data()); p.n = 0; } });
}
void wgmma_wait(int n, int line) {
  wg_all(K_WGWAIT, line, [=](WG& g) {
    size_t i = 0;
    for (; i < g.q.size() && g.q[i].group < g.group - n; i++) {
      Pend& p = g.q[i]; Shadow& s = g.sh[p.d[0]];
      if (p.n) wgmma_exec(g, p, s.v.data());
      if (--s.refs == 0) { IgnoreScope ig; for (int a = 0; a < 128; a++) for (int j = 0; j < s.n / 2; j++) s.d[a][j] = s.v[a * s.n / 2 + j]; g.sh.erase(p.d[0]); }
    }
    IgnoreScope ig; g.q.erase(g.q.begin(), g.q.begin() + i); if (g.q.empty()) g.fenced = false;
  });
  ACQ(&F->g->async_ep);
}
// ---- the rest ----
float h2f_(half_t h) { _Float16 x; memcpy(&x, &h, 2); return (float)x; }
half_t f2h_(float f) { _Float16 x = (_Float16)f; half_t h; memcpy(&h, &x, 2); return h; }
static std::map<std::string, Kernel>& reg() { static std::map<std::string, Kernel> m; return m; }
void register_kernel(Kernel k) { reg()[k.name] = k; }
const Kernel* find_kernel(void* f) { for (auto& k : reg()) if (k.second.function == f) return &k.second; return nullptr; }
void register_memory(const void*, size_t) {}
void unregister_memory(const void*) {}
void reset_conflicts() { stats = Stats(); }
std::string conflict_report() { return stats.ldm_extra ? std::to_string(stats.ldm_extra) + " extra passes of ldmatrix" : ""; }
const Kernel* find_kernel(const char* n) { auto it = reg().find(n); return it == reg().end() ? nullptr : &it->second; }
}
