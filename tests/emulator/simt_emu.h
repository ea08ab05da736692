// simt_emu.h - what a kernel sees under g++: the names of kernels/simt_cuda.cuh, emulated. Each wrapper hands the place of
// its call on, so that every report names a file and a line. Bodies are in warp.cpp, barrier.cpp, copies.cpp, wgmma.cpp,
// memory.cpp.
#pragma once
#include <math.h>
#include <stdint.h>
#include <string.h>
#include "emulator.h"
#include "numbers.h"
#define DEV static inline
#define DEV_MEMBER static inline
typedef uint32_t saddr;                  // address in the block's shared window
struct alignas(16) u128 { uint32_t x, y, z, w; };
struct alignas(8) u64x { uint32_t x, y; };

namespace emu {
extern __thread ThreadIndex* current __attribute__((tls_model("initial-exec")));  // of the running fiber

uint8_t* smem_dynamic();
void* smem_static(const void* tag, size_t bytes, size_t align, Loc);
saddr smem_address(const void*);
uint8_t* shared_access(saddr, uint32_t bytes, Direction, Loc);       // checked and counted
void global_access(const void*, uint32_t bytes, Direction, Loc);     // checked

uint32_t shuffle(Shuffle, uint32_t mask, uint32_t value, int operand, Loc);
uint32_t vote_ballot(uint32_t mask, bool, Loc);
void sync_warp(uint32_t mask, Loc);
void sync_block(Loc);
void bar_sync(int id, int n, Loc);
void bar_arrive(int id, int n, Loc);
void mma(float* c, const uint32_t* a, uint32_t b0, uint32_t b1, bool bf16, Loc);
void ldmatrix(uint32_t* r, int n, saddr, bool transposed, Loc);
void stmatrix(const uint32_t* r, int n, saddr, bool transposed, Loc);
void cp_async(saddr, const void*, uint32_t bytes, bool read, Loc);
void griddep_wait(Loc);
void cp_async_commit();
void cp_async_wait(int n);
void mbar_init(saddr, uint32_t count, Loc);
void mbar_arrive(saddr, uint32_t expected_bytes, Loc);
void mbar_wait(saddr, uint32_t parity, Loc);
void mbar_arrive_remote(saddr, uint32_t rank, Loc);
uint32_t cluster_rank();
void cluster_arrive(bool release, Loc);
void cluster_wait(bool acquire, Loc);
uint8_t* cluster_access(saddr, uint32_t rank, uint32_t bytes, Loc);  // checked
void store_word(uint32_t*, uint32_t value, bool release, Loc);
uint32_t load_word(const uint32_t*, Loc);
void wait_for_word(const uint32_t*, uint32_t value, bool acquire, Loc);
void fence_proxy_async();
void tma_load_2d(saddr, const TensorMap*, saddr barrier, int c0, int c1, Loc);
void tma_load_2d_multicast(saddr, const TensorMap*, saddr barrier, int c0, int c1, uint32_t ranks, Loc);
void tma_store_2d(const TensorMap*, saddr, int c0, int c1, Loc);
void tma_store_commit();
void tma_store_wait_read(int n);
void wgmma(float* d, int n, bool bf16, WgmmaOperands, int scale_d, Loc);
void wgmma_fence(Loc);
void wgmma_commit(Loc);
void wgmma_wait(int n, Loc);
// y = f(x) off by up to `relative`, by a hash of x: the same in every run, zero where `exact`
float approximately(float y, float x, float relative, bool exact);
}  // namespace emu

// A kernel: an extern "C" function, found by its name as cuModuleGetFunction finds it.
#define KERNEL(nthreads, name, ...) EMU_KERNEL(nthreads, 1, 1, name, __VA_ARGS__)
#define KERNEL_MIN_BLOCKS(nthreads, min_blocks, name, ...) EMU_KERNEL(nthreads, min_blocks, 1, name, __VA_ARGS__)
#define KERNEL_COOPERATIVE(nthreads, name, ...) EMU_KERNEL(nthreads, 1, emu::WHOLE_GRID, name, __VA_ARGS__)
#define KERNEL_CLUSTER(nthreads, blocks, name, ...) EMU_KERNEL(nthreads, 1, blocks, name, __VA_ARGS__)
#define KERNEL_CLUSTER_AT_LAUNCH(nthreads, name, ...) EMU_KERNEL(nthreads, 1, emu::AT_LAUNCH, name, __VA_ARGS__)
#define EMU_KERNEL(nthreads, min_blocks, cluster, name, ...)                                                                \
  extern "C" void name(__VA_ARGS__);                                                                                        \
  static emu::Registration registration_##name({#name, (void*)name, [](void** p) { emu::call(name, p); }, nthreads,         \
                                                min_blocks, emu::count_parameters(name), emu::parameter_sizes(name),        \
                                                emu::parameter_alignments(name), emu::parameter_pointers(name), cluster});  \
  extern "C" void name(__VA_ARGS__)
#define TMAP_PARAM(n) const TensorMap& n
#define SMEM_DYN(p) uint8_t* p = emu::smem_dynamic()
#define SMEM_ARRAY(T, name, n) static char tag_##name; T* name = (T*)emu::smem_static(&tag_##name, sizeof(T) * (n), alignof(T), emu::Loc::here())
#define threadIdx (emu::current->tid)
#define blockIdx (emu::current->bid)
#define blockDim (emu::current->bdim)
#define gridDim (emu::current->gdim)
#define LOC_PARAM0 emu::Loc loc_ = emu::Loc::here()
#define LOC_PARAM , LOC_PARAM0
#define LOC_ARG0 loc_
#define LOC_ARG , loc_
#define FULL_MASK 0xffffffffu

// ---- numbers ---------------------------------------------------------------------------------------------------------
DEV uint32_t pack_h2(float lo, float hi) { return f2h(lo) | (uint32_t)f2h(hi) << 16; }
DEV float h2lo(uint32_t p) { return h2f((half_t)p); }
DEV float h2hi(uint32_t p) { return h2f((half_t)(p >> 16)); }
DEV uint32_t pack_b2(float lo, float hi) { return f2b(lo) | (uint32_t)f2b(hi) << 16; }
DEV float flush_subnormal(float x) { return fabsf(x) < 0x1p-126f ? copysignf(0.0f, x) : x; }  // .ftz
DEV bool is_power_of_two(float x) { return (f32_bits(x) & 0x7fffff) == 0; }
// Errors by the PTX ISA's tables. Powers of two come out exact, on GPUs too as far as is known.
DEV float ex2_approx(float x) {
  x = flush_subnormal(x);
  return flush_subnormal(emu::approximately(exp2f(x), x, 0x1p-22f, x == floorf(x)));
}
DEV float rcp_approx(float x) {
  x = flush_subnormal(x);
  return flush_subnormal(emu::approximately(1.0f / x, x, 0x1p-23f, is_power_of_two(x)));
}
DEV float rsqrt_approx(float x) {
  x = flush_subnormal(x);
  return emu::approximately(1.0f / sqrtf(x), x, 0x1.1p-23f, is_power_of_two(x));
}
DEV float tanh_approx(float x) { return fmaxf(-1.0f, fminf(1.0f, emu::approximately(tanhf(x), x, 0x1p-11f, x == 0))); }
DEV float rsqrtf(float x) { return 1.0f / sqrtf(x); }
DEV int computed_here(int v) { return v; }
DEV int min(int a, int b) { return a < b ? a : b; }
DEV int max(int a, int b) { return a > b ? a : b; }

// ---- warps and blocks ------------------------------------------------------------------------------------------------
#define EMU_SHUFFLE(name, kind)                                                                                                \
  DEV uint32_t name(uint32_t v, int x LOC_PARAM) { return emu::shuffle(emu::kind, FULL_MASK, v, x, loc_); }                  \
  DEV float name(float v, int x LOC_PARAM) { return f32_from_bits(emu::shuffle(emu::kind, FULL_MASK, f32_bits(v), x, loc_)); }
EMU_SHUFFLE(shfl_xor, XOR)
EMU_SHUFFLE(shfl_idx, IDX)
EMU_SHUFFLE(shfl_up, UP)
EMU_SHUFFLE(shfl_down, DOWN)
#undef EMU_SHUFFLE
DEV float shfl_xor_mask(uint32_t mask, float v, int m LOC_PARAM) { return f32_from_bits(emu::shuffle(emu::XOR, mask, f32_bits(v), m, loc_)); }
DEV float shfl_idx_mask(uint32_t mask, float v, int lane LOC_PARAM) { return f32_from_bits(emu::shuffle(emu::IDX, mask, f32_bits(v), lane, loc_)); }
DEV uint32_t vote_ballot(bool p LOC_PARAM) { return emu::vote_ballot(FULL_MASK, p, loc_); }
DEV void sync_warp(LOC_PARAM0) { emu::sync_warp(FULL_MASK, loc_); }
DEV void sync_warp_mask(uint32_t mask LOC_PARAM) { emu::sync_warp(mask, loc_); }
DEV void sync_block(LOC_PARAM0) { emu::sync_block(loc_); }
DEV void bar_sync(int id, int n LOC_PARAM) { emu::bar_sync(id, n, loc_); }
DEV void bar_arrive(int id, int n LOC_PARAM) { emu::bar_arrive(id, n, loc_); }

// ---- global memory -----------------------------------------------------------------------------------------------------
// The access itself is made here, in the kernel's translation unit, where asan and tsan see it.
template <class V> DEV V ld_global_as(const void* p, emu::Loc loc) {
  emu::global_access(p, sizeof(V), emu::READ, loc);
  return *(const V*)p;
}
template <class V> DEV void st_global_as(void* p, V v, emu::Loc loc) {
  emu::global_access(p, sizeof(V), emu::WRITE, loc);
  *(V*)p = v;
}
DEV u128 ld_global_nc_128(const void* p LOC_PARAM) { return ld_global_as<u128>(p, loc_); }
DEV u64x ld_global_nc_64(const void* p LOC_PARAM) { return ld_global_as<u64x>(p, loc_); }
DEV uint32_t ld_global_nc_32(const void* p LOC_PARAM) { return ld_global_as<uint32_t>(p, loc_); }
DEV u128 ld_global_128(const void* p LOC_PARAM) { return ld_global_as<u128>(p, loc_); }
DEV u64x ld_global_64(const void* p LOC_PARAM) { return ld_global_as<u64x>(p, loc_); }
DEV void st_global_128(void* p, u128 v LOC_PARAM) { st_global_as(p, v, loc_); }
DEV void st_global_64(void* p, u64x v LOC_PARAM) { st_global_as(p, v, loc_); }
DEV void st_global_32(void* p, uint32_t v LOC_PARAM) { st_global_as(p, v, loc_); }

// ---- words of global memory by which blocks that run at once wait for each other ------------------------------------------
DEV void st_release_global(uint32_t* p, uint32_t v LOC_PARAM) { emu::store_word(p, v, true, loc_); }
DEV uint32_t ld_acquire_global(const uint32_t* p LOC_PARAM) { return emu::load_word(p, loc_); }
DEV void wait_global(const uint32_t* p, uint32_t v LOC_PARAM) { emu::wait_for_word(p, v, true, loc_); }

// ---- shared memory -----------------------------------------------------------------------------------------------------
DEV saddr smem_addr(const void* p) { return emu::smem_address(p); }
template <class V> DEV V ld_shared_as(saddr a, emu::Loc loc) { return *(const V*)emu::shared_access(a, sizeof(V), emu::READ, loc); }
template <class V> DEV void st_shared_as(saddr a, V v, emu::Loc loc) { *(V*)emu::shared_access(a, sizeof(V), emu::WRITE, loc) = v; }
DEV u128 ld_shared_128(saddr a LOC_PARAM) { return ld_shared_as<u128>(a, loc_); }
DEV u64x ld_shared_64(saddr a LOC_PARAM) { return ld_shared_as<u64x>(a, loc_); }
DEV uint32_t ld_shared_32(saddr a LOC_PARAM) { return ld_shared_as<uint32_t>(a, loc_); }
DEV half_t ld_shared_16(saddr a LOC_PARAM) { return ld_shared_as<half_t>(a, loc_); }
DEV float ld_shared_f32(saddr a LOC_PARAM) { return ld_shared_as<float>(a, loc_); }
DEV void st_shared_128(saddr a, u128 v LOC_PARAM) { st_shared_as(a, v, loc_); }
DEV void st_shared_64(saddr a, u64x v LOC_PARAM) { st_shared_as(a, v, loc_); }
DEV void st_shared_32(saddr a, uint32_t v LOC_PARAM) { st_shared_as(a, v, loc_); }
DEV void st_shared_16(saddr a, half_t v LOC_PARAM) { st_shared_as(a, v, loc_); }
DEV void st_shared_f32(saddr a, float v LOC_PARAM) { st_shared_as(a, v, loc_); }

// ---- 8x8 matrices ------------------------------------------------------------------------------------------------------
DEV void ldmatrix_x4(uint32_t (&r)[4], saddr a LOC_PARAM) { emu::ldmatrix(r, 4, a, false, loc_); }
DEV void ldmatrix_x4_trans(uint32_t (&r)[4], saddr a LOC_PARAM) { emu::ldmatrix(r, 4, a, true, loc_); }
DEV void ldmatrix_x2(uint32_t (&r)[2], saddr a LOC_PARAM) { emu::ldmatrix(r, 2, a, false, loc_); }
DEV void ldmatrix_x2_trans(uint32_t (&r)[2], saddr a LOC_PARAM) { emu::ldmatrix(r, 2, a, true, loc_); }
DEV void stmatrix_x4(saddr a, const uint32_t (&r)[4] LOC_PARAM) { emu::stmatrix(r, 4, a, false, loc_); }
DEV void stmatrix_x4_trans(saddr a, const uint32_t (&r)[4] LOC_PARAM) { emu::stmatrix(r, 4, a, true, loc_); }
DEV void mma_m16n8k16(float (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1 LOC_PARAM) { emu::mma(c, a, b0, b1, false, loc_); }
DEV void mma_m16n8k16_bf16(float (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1 LOC_PARAM) { emu::mma(c, a, b0, b1, true, loc_); }

// ---- asynchronous copies -------------------------------------------------------------------------------------------------
DEV void cp_async_16(saddr d, const void* s, bool pred LOC_PARAM) { emu::cp_async(d, s, 16, pred, loc_); }
DEV void cp_async_4(saddr d, const void* s, bool pred LOC_PARAM) { emu::cp_async(d, s, 4, pred, loc_); }
DEV void cp_async_commit() { emu::cp_async_commit(); }
template <int N> DEV void cp_async_wait() { emu::cp_async_wait(N); }

// ---- programmatic dependent launch: kernels run one after the other here, but what is touched too early is known ----------------
DEV void griddep_wait(LOC_PARAM0) { emu::griddep_wait(loc_); }
DEV void griddep_launch() {}

// ---- sm_90 -----------------------------------------------------------------------------------------------------------------
DEV void mbar_init(saddr b, uint32_t n LOC_PARAM) { emu::mbar_init(b, n, loc_); }
DEV void mbar_fence_init() {}
DEV void mbar_arrive(saddr b LOC_PARAM) { emu::mbar_arrive(b, 0, loc_); }
DEV void mbar_arrive_expect_tx(saddr b, uint32_t n LOC_PARAM) { emu::mbar_arrive(b, n, loc_); }
DEV void mbar_wait(saddr b, uint32_t parity LOC_PARAM) { emu::mbar_wait(b, parity, loc_); }
DEV uint32_t cluster_rank() { return emu::cluster_rank(); }
DEV void cluster_arrive(LOC_PARAM0) { emu::cluster_arrive(true, loc_); }
DEV void cluster_wait(LOC_PARAM0) { emu::cluster_wait(true, loc_); }
DEV void cluster_sync(LOC_PARAM0) { cluster_arrive(loc_); cluster_wait(loc_); }
DEV u128 ld_cluster_128(saddr a, uint32_t rank LOC_PARAM) { return *(const u128*)emu::cluster_access(a, rank, sizeof(u128), loc_); }
DEV void mbar_arrive_remote(saddr b, uint32_t rank LOC_PARAM) { emu::mbar_arrive_remote(b, rank, loc_); }
DEV void tma_load_2d_multicast(saddr d, const TensorMap* m, saddr bar, int c0, int c1, uint32_t ranks LOC_PARAM) {
  emu::tma_load_2d_multicast(d, m, bar, c0, c1, ranks, loc_);
}
DEV void fence_proxy_async() { emu::fence_proxy_async(); }
DEV void tma_prefetch(const TensorMap*) {}
DEV void tma_load_2d(saddr d, const TensorMap* m, saddr bar, int c0, int c1 LOC_PARAM) { emu::tma_load_2d(d, m, bar, c0, c1, loc_); }
DEV void tma_store_2d(const TensorMap* m, saddr s, int c0, int c1 LOC_PARAM) { emu::tma_store_2d(m, s, c0, c1, loc_); }
DEV void tma_store_commit() { emu::tma_store_commit(); }
template <int N> DEV void tma_store_wait_read() { emu::tma_store_wait_read(N); }

// ---- sm_90a ----------------------------------------------------------------------------------------------------------------
template <int N> DEV void setmaxnreg_inc() { static_assert(N % 8 == 0 && N >= 24 && N <= 256, ""); }
template <int N> DEV void setmaxnreg_dec() { static_assert(N % 8 == 0 && N >= 24 && N <= 256, ""); }
DEV void wgmma_hold(float&) {}
DEV void wgmma_hold(uint32_t&) {}
DEV void wgmma_fence(LOC_PARAM0) { emu::wgmma_fence(loc_); }
DEV void wgmma_commit(LOC_PARAM0) { emu::wgmma_commit(loc_); }
template <int N> DEV void wgmma_wait(LOC_PARAM0) { emu::wgmma_wait(N, loc_); }
#define EMU_WGMMA(name, n, bf16) \
  DEV void name(float (&d)[n / 2], uint64_t a, uint64_t b, int scale_d LOC_PARAM) { emu::wgmma(d, n, bf16, {a, nullptr, b, false}, scale_d, loc_); }
EMU_WGMMA(wgmma_m64n16k16, 16, false)
EMU_WGMMA(wgmma_m64n16k16_bf16, 16, true)
EMU_WGMMA(wgmma_m64n32k16, 32, false)
EMU_WGMMA(wgmma_m64n32k16_bf16, 32, true)
EMU_WGMMA(wgmma_m64n64k16, 64, false)
EMU_WGMMA(wgmma_m64n64k16_bf16, 64, true)
EMU_WGMMA(wgmma_m64n128k16, 128, false)
EMU_WGMMA(wgmma_m64n128k16_bf16, 128, true)
EMU_WGMMA(wgmma_m64n192k16, 192, false)
EMU_WGMMA(wgmma_m64n192k16_bf16, 192, true)
EMU_WGMMA(wgmma_m64n256k16, 256, false)
EMU_WGMMA(wgmma_m64n256k16_bf16, 256, true)
#undef EMU_WGMMA
#define EMU_WGMMA_RA(name, n, bf16)                                                                                               \
  template <int TRANSPOSED> DEV void name(float (&d)[n / 2], const uint32_t (&a)[4], uint64_t b, int scale_d LOC_PARAM) {       \
    emu::wgmma(d, n, bf16, {0, a, b, TRANSPOSED != 0}, scale_d, loc_);                                                          \
  }
EMU_WGMMA_RA(wgmma_m64n32k16_ra, 32, false)
EMU_WGMMA_RA(wgmma_m64n32k16_ra_bf16, 32, true)
EMU_WGMMA_RA(wgmma_m64n64k16_ra, 64, false)
EMU_WGMMA_RA(wgmma_m64n64k16_ra_bf16, 64, true)
#undef EMU_WGMMA_RA
