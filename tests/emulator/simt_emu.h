// Host side of simt.h: one fiber per CUDA thread, blocks one at a time per OS thread. Bodies in simt_emu.cpp.
#pragma once
#include <stdint.h>
#include <stddef.h>
#include <string.h>
#include <math.h>
#include <string>
#include <functional>
#include <utility>
#include <type_traits>
#define DEV static inline
#define DEV_MEMBER static inline
typedef uint32_t saddr;                 // shared-memory address: 1024 + offset in the block's window
typedef uint16_t half_t;
struct alignas(16) u128 { uint32_t x, y, z, w; };
struct alignas(8) u64x { uint32_t x, y; };
struct dim3e { unsigned x = 1, y = 1, z = 1; };
struct alignas(64) TensorMap {          // what the fake cuTensorMapEncodeTiled writes (128 bytes, like the real one)
  uint64_t magic, base, dim[2], stride; uint32_t box[2], esize, swizzle; uint64_t pad[8];
};
static_assert(sizeof(TensorMap) == 128, "");

namespace emu {
enum Async { EAGER, LATE };             // when asynchronous copies and wgmma take effect: at issue / as late as allowed
enum Order { FORWARD, REVERSE, SHUFFLE };
struct Options { Async async = LATE; Order order = FORWARD; bool poison = true; unsigned seed = 1; int threads = 0; bool valgrind = false; };
struct Stats { long ldm = 0, ldm_extra = 0; }; extern Stats stats;      // 8x8 matrices loaded; extra shared-memory passes (bank conflicts)
extern Options opt;
struct Fiber; struct Tls { dim3e tid, bid, bdim, gdim; };
extern __thread Tls* cur;               // indices of the running fiber
struct Error { char msg[1024]; };       // thrown from launch()
void launch(dim3e grid, dim3e block, size_t smem, const std::function<void()>& body);
uint8_t* smem_dyn(); void* smem_static(const void* tag, size_t n, size_t align); saddr to_saddr(const void*);
struct Loc { const char* file; int line; static constexpr Loc here(const char* f = __builtin_FILE(), int l = __builtin_LINE()) { return {f, l}; } };
uint8_t* shared(saddr a, size_t n, size_t align, const char* what, int line, bool write);   // checked access to shared memory
void global(const void* p, size_t n, const char* what, int line);                           // checked address of a global access
uint32_t ballot(bool p, int line); void bar_arrive(int id, int n, int line);
void shfl(uint32_t& v, int src, int line); void sync_block(int line); void sync_warp(int line); void bar_sync(int id, int n, int line);
void mma(float* c, const uint32_t* a, uint32_t b0, uint32_t b1, bool bf16, int line);
void ldmatrix(uint32_t* r, saddr a, bool trans, int line);
void cp_async(saddr d, const void* s, bool pred, int line); void cp_async_commit(); void cp_async_wait(int n);
void mbar_init(saddr b, uint32_t n); void mbar_arrive(saddr b, uint32_t tx); void mbar_wait(saddr b, uint32_t parity, int line);
void tma_load_2d(saddr d, const TensorMap* m, saddr bar, int c0, int c1, int line);
void wgmma(float* d, int n, uint64_t da, uint64_t db, int scale, int line); void wgmma_fence(int line); void wgmma_commit(int line); void wgmma_wait(int n, int line);
void fence_proxy_async();
float h2f_(half_t); half_t f2h_(float);
// kernel launch from a void*[] of parameter pointers, as cuLaunchKernel gets them
template <class... A, size_t... I> void call_(void (*f)(A...), void** p, std::index_sequence<I...>) { f(*(std::remove_const_t<std::remove_reference_t<A>>*)p[I]...); }
template <class... A> void call(void (*f)(A...), void** p) { call_(f, p, std::index_sequence_for<A...>()); }
template <class... A> constexpr int nargs_(void (*)(A...)) { return sizeof...(A); }
template <class... A> const size_t* sizes_(void (*)(A...)) { static const size_t s[] = {sizeof(std::remove_reference_t<A>)..., 0}; return s; }
struct Kernel { const char* name; void* function; void (*invoke)(void**); int threads, nargs; const size_t* sizes; };
void register_kernel(Kernel); const Kernel* find_kernel(const char*); const Kernel* find_kernel(void* function);
void register_memory(const void* p, size_t n); void unregister_memory(const void* p);   // device allocations that a test owns
void reset_conflicts(); std::string conflict_report();                                  // empty if no line conflicts
struct Reg { Reg(Kernel k) { register_kernel(k); } };
}
// extern "C" body + registration by name (what cuModuleGetFunction finds)
#define KERNEL(nthreads, name, ...) extern "C" void name(__VA_ARGS__); \
  static emu::Reg reg_##name({#name, (void*)name, [](void** p) { emu::call(name, p); }, nthreads, emu::nargs_(name), emu::sizes_(name)}); extern "C" void name(__VA_ARGS__)
#define KERNEL_MIN_BLOCKS(nthreads, min_blocks, name, ...) KERNEL(nthreads, name, __VA_ARGS__)
#define TMAP_PARAM(n) const TensorMap& n
#define SMEM_DYN(p) uint8_t* p = emu::smem_dyn()
#define SMEM_ARRAY(T, name, n) static char tag_##name; T* name = (T*)emu::smem_static(&tag_##name, sizeof(T) * (n), alignof(T))
#define threadIdx (emu::cur->tid)
#define blockIdx (emu::cur->bid)
#define blockDim (emu::cur->bdim)
#define gridDim (emu::cur->gdim)
#define LN emu::Loc loc_ = emu::Loc::here()
#define LOC_PARAM , emu::Loc loc_ = emu::Loc::here()
#define LOC_ARG , loc_
#define LOC_PARAM0 emu::Loc loc_ = emu::Loc::here()
#define LOC_ARG0 loc_
#define FULL_MASK 0xffffffffu
DEV float flush_subnormal(float x) { return fabsf(x) < 0x1p-126f ? copysignf(0.0f, x) : x; }
DEV float ex2_approx(float x) { return flush_subnormal(exp2f(flush_subnormal(x))); }   // GPU: relative error up to 2^-22
DEV float rcp_approx(float x) { return flush_subnormal(1.0f / flush_subnormal(x)); }   // GPU: up to 1 ulp
DEV float rsqrtf(float x) { return 1.0f / sqrtf(x); }
DEV saddr smem_addr(const void* p) { return emu::to_saddr(p); }
#ifdef __F16C__
DEV float h2f(half_t h) { return __builtin_ia32_vcvtph2ps((__attribute__((vector_size(16))) short){(short)h})[0]; }
DEV half_t f2h(float f) { return (half_t)__builtin_ia32_vcvtps2ph((__attribute__((vector_size(16))) float){f}, 0)[0]; }
#else
DEV float h2f(half_t h) { return emu::h2f_(h); }
DEV half_t f2h(float f) { return emu::f2h_(f); }
#endif
DEV uint32_t pack_h2(float lo, float hi) { return f2h(lo) | (uint32_t)f2h(hi) << 16; }
DEV float h2lo(uint32_t p) { return h2f((half_t)p); }
DEV float h2hi(uint32_t p) { return h2f((half_t)(p >> 16)); }
DEV float b2f(half_t h) { uint32_t u = (uint32_t)h << 16; float f; memcpy(&f, &u, 4); return f; }
DEV half_t f2b(float f) { uint32_t u; memcpy(&u, &f, 4); if ((u & 0x7fffffff) > 0x7f800000) return 0x7fff; return (half_t)((u + 0x7fff + (u >> 16 & 1)) >> 16); }
DEV uint32_t pack_b2(float lo, float hi) { return f2b(lo) | (uint32_t)f2b(hi) << 16; }
DEV uint32_t shfl_(uint32_t v, int src, int line) { emu::shfl(v, src, line); return v; }
DEV uint32_t f32_bits(float f) { uint32_t u; memcpy(&u, &f, 4); return u; }
DEV float f32_from_bits(uint32_t u) { float f; memcpy(&f, &u, 4); return f; }
DEV int lane_() { return threadIdx.x & 31; }
DEV uint32_t shfl_idx(uint32_t v, int lane, LN) { return shfl_(v, lane & 31, loc_.line); }
DEV uint32_t shfl_xor(uint32_t v, int m, LN) { return shfl_(v, lane_() ^ m, loc_.line); }
DEV uint32_t shfl_up(uint32_t v, int d, LN) { return shfl_(v, lane_() < d ? lane_() : lane_() - d, loc_.line); }
DEV uint32_t shfl_down(uint32_t v, int d, LN) { return shfl_(v, lane_() + d > 31 ? lane_() : lane_() + d, loc_.line); }
DEV float shfl_idx(float v, int lane, LN) { return f32_from_bits(shfl_idx(f32_bits(v), lane, loc_)); }
DEV float shfl_xor(float v, int m, LN) { return f32_from_bits(shfl_xor(f32_bits(v), m, loc_)); }
DEV float shfl_up(float v, int d, LN) { return f32_from_bits(shfl_up(f32_bits(v), d, loc_)); }
DEV float shfl_down(float v, int d, LN) { return f32_from_bits(shfl_down(f32_bits(v), d, loc_)); }
DEV uint32_t vote_ballot(bool p, LN) { return emu::ballot(p, loc_.line); }
DEV void bar_arrive(int id, int n, LN) { emu::bar_arrive(id, n, loc_.line); }
DEV float rsqrt_approx(float x) { return 1.0f / sqrtf(x); }
DEV float tanh_approx(float x) { return tanhf(x); }
template <class V> DEV V ld_shared_(saddr a, int line) { V v; memcpy(&v, emu::shared(a, sizeof v, sizeof v, "ld.shared", line, false), sizeof v); return v; }
template <class V> DEV void st_shared_(saddr a, V v, int line) { memcpy(emu::shared(a, sizeof v, sizeof v, "st.shared", line, true), &v, sizeof v); }
DEV u128 ld_shared_128(saddr a, LN) { return ld_shared_<u128>(a, loc_.line); }
DEV u64x ld_shared_64(saddr a, LN) { return ld_shared_<u64x>(a, loc_.line); }
DEV uint32_t ld_shared_32(saddr a, LN) { return ld_shared_<uint32_t>(a, loc_.line); }
DEV half_t ld_shared_16(saddr a, LN) { return ld_shared_<half_t>(a, loc_.line); }
DEV float ld_shared_f32(saddr a, LN) { return ld_shared_<float>(a, loc_.line); }
DEV void st_shared_128(saddr a, u128 v, LN) { st_shared_(a, v, loc_.line); }
DEV void st_shared_64(saddr a, u64x v, LN) { st_shared_(a, v, loc_.line); }
DEV void st_shared_32(saddr a, uint32_t v, LN) { st_shared_(a, v, loc_.line); }
DEV void st_shared_16(saddr a, half_t v, LN) { st_shared_(a, v, loc_.line); }
DEV void st_shared_f32(saddr a, float v, LN) { st_shared_(a, v, loc_.line); }
template <class V> DEV V ld_global_(const void* p, int line) { emu::global(p, sizeof(V), "ld.global", line); return *(const V*)p; }
template <class V> DEV void st_global_(void* p, V v, int line) { emu::global(p, sizeof(V), "st.global", line); *(V*)p = v; }
DEV u128 ld_global_nc_128(const void* p, LN) { return ld_global_<u128>(p, loc_.line); }
DEV u64x ld_global_nc_64(const void* p, LN) { return ld_global_<u64x>(p, loc_.line); }
DEV uint32_t ld_global_nc_32(const void* p, LN) { return ld_global_<uint32_t>(p, loc_.line); }
DEV u128 ld_global_128(const void* p, LN) { return ld_global_<u128>(p, loc_.line); }
DEV u64x ld_global_64(const void* p, LN) { return ld_global_<u64x>(p, loc_.line); }
DEV void st_global_128(void* p, u128 v, LN) { st_global_(p, v, loc_.line); }
DEV void st_global_64(void* p, u64x v, LN) { st_global_(p, v, loc_.line); }
DEV void st_global_32(void* p, uint32_t v, LN) { st_global_(p, v, loc_.line); }
DEV void griddep_wait() {}
DEV void griddep_launch() {}
DEV int min(int a, int b) { return a < b ? a : b; }
DEV int max(int a, int b) { return a > b ? a : b; }
DEV void sync_block(LN) { emu::sync_block(loc_.line); }
DEV void sync_warp(LN) { emu::sync_warp(loc_.line); }
DEV void bar_sync(int id, int n, LN) { emu::bar_sync(id, n, loc_.line); }
DEV void mma_m16n8k16(float (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1, LN) { emu::mma(c, a, b0, b1, false, loc_.line); }
DEV void mma_m16n8k16_bf16(float (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1, LN) { emu::mma(c, a, b0, b1, true, loc_.line); }
DEV void ldmatrix_x4(uint32_t (&r)[4], saddr a, LN) { emu::ldmatrix(r, a, false, loc_.line); }
DEV void ldmatrix_x4_trans(uint32_t (&r)[4], saddr a, LN) { emu::ldmatrix(r, a, true, loc_.line); }
DEV void cp_async_16(saddr d, const void* s, bool pred, LN) { emu::cp_async(d, s, pred, loc_.line); }
DEV void cp_async_commit() { emu::cp_async_commit(); }
template <int N> DEV void cp_async_wait() { emu::cp_async_wait(N); }
DEV void mbar_init(saddr b, uint32_t n) { emu::mbar_init(b, n); }
DEV void mbar_fence_init() {}
DEV void mbar_arrive(saddr b) { emu::mbar_arrive(b, 0); }
DEV void mbar_arrive_expect_tx(saddr b, uint32_t n) { emu::mbar_arrive(b, n); }
DEV void mbar_wait(saddr b, uint32_t parity, LN) { emu::mbar_wait(b, parity, loc_.line); }
DEV void fence_proxy_async() { emu::fence_proxy_async(); }
DEV void tma_prefetch(const TensorMap*) {}
DEV void tma_load_2d(saddr d, const TensorMap* m, saddr bar, int c0, int c1, LN) { emu::tma_load_2d(d, m, bar, c0, c1, loc_.line); }
template <int N> DEV void setmaxnreg_inc() { static_assert(N % 8 == 0 && N >= 24 && N <= 256, ""); }
template <int N> DEV void setmaxnreg_dec() { static_assert(N % 8 == 0 && N >= 24 && N <= 256, ""); }
DEV void wgmma_fence(LN) { emu::wgmma_fence(loc_.line); }
DEV void wgmma_commit(LN) { emu::wgmma_commit(loc_.line); }
template <int N> DEV void wgmma_wait(LN) { emu::wgmma_wait(N, loc_.line); }
DEV void wgmma_m64n64k16(float (&d)[32], uint64_t a, uint64_t b, int s, LN) { emu::wgmma(d, 64, a, b, s, loc_.line); }
DEV void wgmma_m64n128k16(float (&d)[64], uint64_t a, uint64_t b, int s, LN) { emu::wgmma(d, 128, a, b, s, loc_.line); }
#undef LN
