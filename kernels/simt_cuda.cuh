// simt_cuda.cuh - the PTX side of simt.cuh: each wrapper is one instruction, named after it. sm_80 and up; TMA, mbarrier,
// stmatrix and programmatic launch from sm_90; wgmma and setmaxnreg on sm_90a only. Compiles under nvcc and nvrtc and needs
// no header of the toolkit. tests/emulator/simt_emu.h must offer the same names.
#pragma once
#ifdef __CUDACC_RTC__
typedef unsigned char uint8_t; typedef unsigned short uint16_t; typedef unsigned int uint32_t;
typedef unsigned long long uint64_t; typedef long long int64_t; typedef int int32_t;
#else
#include <stdint.h>
#endif
// Not static: names of internal linkage hold a hash of the source's folder, and the image must be the same from any.
#define DEV __device__ __forceinline__
#define DEV_MEMBER static __device__ __forceinline__
// A kernel, found by its name. `threads` is the block size it must be launched with; the second form also holds ptxas to
// a register count at which `min_blocks` blocks fit on a multiprocessor.
#define KERNEL(threads, name, ...) extern "C" __global__ void __launch_bounds__(threads, 1) name(__VA_ARGS__)
#define KERNEL_MIN_BLOCKS(threads, min_blocks, name, ...) extern "C" __global__ void __launch_bounds__(threads, min_blocks) name(__VA_ARGS__)
// All blocks of the launch run at once, which has to be a cooperative one.
#define KERNEL_COOPERATIVE(threads, name, ...) KERNEL(threads, name, __VA_ARGS__)
// Blocks along x that run at once and reach each other's shared memory. sm_90 and up.
#define KERNEL_CLUSTER(threads, blocks, name, ...) extern "C" __global__ void __cluster_dims__(blocks, 1, 1) __launch_bounds__(threads, 1) name(__VA_ARGS__)
// The same, where the launch says how many blocks: its attribute, and 1 without it.
#define KERNEL_CLUSTER_AT_LAUNCH(threads, name, ...) KERNEL(threads, name, __VA_ARGS__)
#define TMAP_PARAM(n) const __grid_constant__ TensorMap n
#define SMEM_DYN(p) extern __shared__ __align__(1024) uint8_t p[]
#define SMEM_ARRAY(T, name, n) __shared__ T name[n]
// A helper that calls wrappers takes LOC_PARAM as its last parameter and hands LOC_ARG on, so that the emulator names the
// helper's caller in its reports. Nothing on a GPU. The 0 forms are for empty parameter lists.
#define LOC_PARAM
#define LOC_ARG
#define LOC_PARAM0
#define LOC_ARG0

typedef uint32_t saddr;                                     // address in the shared window
typedef uint16_t half_t;                                    // raw bits of an fp16 or bf16
struct alignas(128) TensorMap { uint64_t opaque[16]; };
struct alignas(16) u128 { uint32_t x, y, z, w; };
struct alignas(8) u64x { uint32_t x, y; };

// ---- numbers ---------------------------------------------------------------------------------------------------------
DEV float h2f(half_t h) { float f; asm("cvt.f32.f16 %0, %1;" : "=f"(f) : "h"(h)); return f; }
DEV half_t f2h(float f) { half_t h; asm("cvt.rn.f16.f32 %0, %1;" : "=h"(h) : "f"(f)); return h; }
DEV uint32_t pack_h2(float lo, float hi) { uint32_t r; asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(r) : "f"(hi), "f"(lo)); return r; }
DEV float h2lo(uint32_t p) { return h2f((half_t)(p & 0xffff)); }
DEV float h2hi(uint32_t p) { return h2f((half_t)(p >> 16)); }
DEV float b2f(half_t h) { return __uint_as_float((uint32_t)h << 16); }
DEV half_t f2b(float f) { half_t h; asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(h) : "f"(f)); return h; }
DEV uint32_t pack_b2(float lo, float hi) { uint32_t r; asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(r) : "f"(hi), "f"(lo)); return r; }
DEV uint32_t f32_bits(float f) { return __float_as_uint(f); }
DEV float f32_from_bits(uint32_t u) { return __uint_as_float(u); }
DEV float ex2_approx(float x) { float y; asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x)); return y; }       // 2^x, 2 ulp
DEV float rcp_approx(float x) { float y; asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x)); return y; }       // 1 ulp
DEV float rsqrt_approx(float x) { float y; asm("rsqrt.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x)); return y; }   // 2^-22.9
DEV float tanh_approx(float x) { float y; asm("tanh.approx.f32 %0, %1;" : "=f"(y) : "f"(x)); return y; }         // 2^-11 relative

// What is computed from it is computed behind this place: what a long loop's phases have each for themselves does not take
// registers all the time.
DEV int computed_here(int v) { asm volatile("" : "+r"(v)); return v; }

// ---- warps and blocks ------------------------------------------------------------------------------------------------
#define FULL_MASK 0xffffffffu
DEV float shfl_xor(float v, int m) { return __shfl_xor_sync(FULL_MASK, v, m); }
DEV uint32_t shfl_xor(uint32_t v, int m) { return __shfl_xor_sync(FULL_MASK, v, m); }
DEV float shfl_idx(float v, int lane) { return __shfl_sync(FULL_MASK, v, lane); }
DEV uint32_t shfl_idx(uint32_t v, int lane) { return __shfl_sync(FULL_MASK, v, lane); }
DEV float shfl_up(float v, int delta) { return __shfl_up_sync(FULL_MASK, v, delta); }          // lanes below delta keep v
DEV uint32_t shfl_up(uint32_t v, int delta) { return __shfl_up_sync(FULL_MASK, v, delta); }
DEV float shfl_down(float v, int delta) { return __shfl_down_sync(FULL_MASK, v, delta); }      // the top delta lanes keep v
DEV uint32_t shfl_down(uint32_t v, int delta) { return __shfl_down_sync(FULL_MASK, v, delta); }
// the lanes of `mask` only; each of them must call, and may read from lanes of the mask only
DEV float shfl_xor_mask(uint32_t mask, float v, int m) { return __shfl_xor_sync(mask, v, m); }
DEV float shfl_idx_mask(uint32_t mask, float v, int lane) { return __shfl_sync(mask, v, lane); }
DEV uint32_t vote_ballot(bool p) { return __ballot_sync(FULL_MASK, p); }
DEV void sync_warp() { __syncwarp(); }
DEV void sync_warp_mask(uint32_t mask) { __syncwarp(mask); }
DEV void sync_block() { __syncthreads(); }
DEV void bar_sync(int id, int n) { asm volatile("bar.sync %0, %1;" ::"r"(id), "r"(n) : "memory"); }
DEV void bar_arrive(int id, int n) { asm volatile("bar.arrive %0, %1;" ::"r"(id), "r"(n) : "memory"); }

// ---- global memory: 16 bytes at 16-byte addresses --------------------------------------------------------------------
// nc: data that no thread writes while the kernel runs
DEV u128 ld_global_nc_128(const void* p) {
  u128 v; asm("ld.global.nc.v4.u32 {%0,%1,%2,%3}, [%4];" : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w) : "l"(p)); return v;
}
DEV u64x ld_global_nc_64(const void* p) { u64x v; asm("ld.global.nc.v2.u32 {%0,%1}, [%2];" : "=r"(v.x), "=r"(v.y) : "l"(p)); return v; }
DEV uint32_t ld_global_nc_32(const void* p) { uint32_t v; asm("ld.global.nc.u32 %0, [%1];" : "=r"(v) : "l"(p)); return v; }
DEV u128 ld_global_128(const void* p) {
  u128 v; asm volatile("ld.global.v4.u32 {%0,%1,%2,%3}, [%4];" : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w) : "l"(p) : "memory"); return v;
}
DEV u64x ld_global_64(const void* p) { u64x v; asm volatile("ld.global.v2.u32 {%0,%1}, [%2];" : "=r"(v.x), "=r"(v.y) : "l"(p) : "memory"); return v; }
DEV void st_global_128(void* p, u128 v) {
  asm volatile("st.global.v4.u32 [%0], {%1,%2,%3,%4};" ::"l"(p), "r"(v.x), "r"(v.y), "r"(v.z), "r"(v.w) : "memory");
}
DEV void st_global_64(void* p, u64x v) { asm volatile("st.global.v2.u32 [%0], {%1,%2};" ::"l"(p), "r"(v.x), "r"(v.y) : "memory"); }
DEV void st_global_32(void* p, uint32_t v) { asm volatile("st.global.u32 [%0], %1;" ::"l"(p), "r"(v) : "memory"); }

// ---- words of global memory by which blocks that run at once wait for each other ---------------------------------------
// What a thread has written, and what it knew of when it came from a barrier, is known to who acquires its word.
DEV void st_release_global(uint32_t* p, uint32_t v) { asm volatile("st.release.gpu.global.u32 [%0], %1;" ::"l"(p), "r"(v) : "memory"); }
DEV uint32_t ld_acquire_global(const uint32_t* p) {
  uint32_t v; asm volatile("ld.acquire.gpu.global.u32 %0, [%1];" : "=r"(v) : "l"(p) : "memory"); return v;
}
// Until the word, which counts up, is at v or beyond it.
DEV void wait_global(const uint32_t* p, uint32_t v) {
  while ((int32_t)(ld_acquire_global(p) - v) < 0) {}
}

// ---- shared memory ---------------------------------------------------------------------------------------------------
DEV saddr smem_addr(const void* p) { return (uint32_t)__cvta_generic_to_shared(p); }
DEV u128 ld_shared_128(saddr a) {
  u128 v; asm volatile("ld.shared.v4.u32 {%0,%1,%2,%3}, [%4];" : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w) : "r"(a) : "memory"); return v;
}
DEV u64x ld_shared_64(saddr a) { u64x v; asm volatile("ld.shared.v2.u32 {%0,%1}, [%2];" : "=r"(v.x), "=r"(v.y) : "r"(a) : "memory"); return v; }
DEV uint32_t ld_shared_32(saddr a) { uint32_t v; asm volatile("ld.shared.u32 %0, [%1];" : "=r"(v) : "r"(a) : "memory"); return v; }
DEV half_t ld_shared_16(saddr a) { half_t v; asm volatile("ld.shared.u16 %0, [%1];" : "=h"(v) : "r"(a) : "memory"); return v; }
DEV float ld_shared_f32(saddr a) { float v; asm volatile("ld.shared.f32 %0, [%1];" : "=f"(v) : "r"(a) : "memory"); return v; }
DEV void st_shared_128(saddr a, u128 v) {
  asm volatile("st.shared.v4.u32 [%0], {%1,%2,%3,%4};" ::"r"(a), "r"(v.x), "r"(v.y), "r"(v.z), "r"(v.w) : "memory");
}
DEV void st_shared_64(saddr a, u64x v) { asm volatile("st.shared.v2.u32 [%0], {%1,%2};" ::"r"(a), "r"(v.x), "r"(v.y) : "memory"); }
DEV void st_shared_32(saddr a, uint32_t v) { asm volatile("st.shared.u32 [%0], %1;" ::"r"(a), "r"(v) : "memory"); }
DEV void st_shared_16(saddr a, half_t v) { asm volatile("st.shared.u16 [%0], %1;" ::"r"(a), "h"(v) : "memory"); }
DEV void st_shared_f32(saddr a, float v) { asm volatile("st.shared.f32 [%0], %1;" ::"r"(a), "f"(v) : "memory"); }

// ---- 8x8 matrices ----------------------------------------------------------------------------------------------------
// Lane l hands the address of row l % 8 of matrix l / 8 (x2: lanes 0-15 count, the others' addresses must still be valid).
DEV void ldmatrix_x4(uint32_t (&r)[4], saddr a) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];" : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3]) : "r"(a) : "memory");
}
DEV void ldmatrix_x4_trans(uint32_t (&r)[4], saddr a) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];" : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3]) : "r"(a) : "memory");
}
DEV void ldmatrix_x2(uint32_t (&r)[2], saddr a) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x2.shared.b16 {%0,%1}, [%2];" : "=r"(r[0]), "=r"(r[1]) : "r"(a) : "memory");
}
DEV void ldmatrix_x2_trans(uint32_t (&r)[2], saddr a) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x2.trans.shared.b16 {%0,%1}, [%2];" : "=r"(r[0]), "=r"(r[1]) : "r"(a) : "memory");
}
DEV void mma_m16n8k16(float (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3},{%4,%5,%6,%7},{%8,%9},{%0,%1,%2,%3};"
               : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3]) : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}
DEV void mma_m16n8k16_bf16(float (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3},{%4,%5,%6,%7},{%8,%9},{%0,%1,%2,%3};"
               : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3]) : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

// ---- asynchronous copies ---------------------------------------------------------------------------------------------
DEV void cp_async_16(saddr d, const void* s, bool pred) {   // pred false: 16 zero bytes, and s is not read
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(d), "l"(s), "r"(pred ? 16 : 0) : "memory");
}
DEV void cp_async_4(saddr d, const void* s, bool pred) {    // pred false: 4 zero bytes
  asm volatile("cp.async.ca.shared.global [%0], [%1], 4, %2;" ::"r"(d), "l"(s), "r"(pred ? 4 : 0) : "memory");
}
DEV void cp_async_commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }
template <int N> DEV void cp_async_wait() { asm volatile("cp.async.wait_group %0;" ::"n"(N) : "memory"); }

// ---- programmatic dependent launch: nothing before sm_90 -----------------------------------------------------------------
#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 900
DEV void griddep_wait() { asm volatile("griddepcontrol.wait;" ::: "memory"); }
DEV void griddep_launch() { asm volatile("griddepcontrol.launch_dependents;" ::: "memory"); }
#else
DEV void griddep_wait() {}
DEV void griddep_launch() {}
#endif

// ---- sm_90 -------------------------------------------------------------------------------------------------------------
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ < 900
DEV void cluster_arrive() {}  // no launch has clusters there
DEV void cluster_wait() {}
#else
DEV void stmatrix_x4(saddr a, const uint32_t (&r)[4]) {
  asm volatile("stmatrix.sync.aligned.m8n8.x4.shared.b16 [%0], {%1,%2,%3,%4};" ::"r"(a), "r"(r[0]), "r"(r[1]), "r"(r[2]), "r"(r[3]) : "memory");
}
DEV void stmatrix_x4_trans(saddr a, const uint32_t (&r)[4]) {
  asm volatile("stmatrix.sync.aligned.m8n8.x4.trans.shared.b16 [%0], {%1,%2,%3,%4};" ::"r"(a), "r"(r[0]), "r"(r[1]), "r"(r[2]), "r"(r[3]) : "memory");
}
DEV void mbar_init(saddr b, uint32_t n) { asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(b), "r"(n) : "memory"); }
DEV void mbar_fence_init() { asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory"); }
DEV void mbar_arrive(saddr b) { asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(b) : "memory"); }
DEV void mbar_arrive_expect_tx(saddr b, uint32_t n) { asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(b), "r"(n) : "memory"); }
DEV void mbar_wait(saddr b, uint32_t parity) {
  asm volatile("{\n.reg .pred p;\nL_%=: mbarrier.try_wait.parity.shared::cta.b64 p, [%0], %1;\n@!p bra L_%=;\n}" ::"r"(b), "r"(parity) : "memory");
}
DEV void fence_proxy_async() { asm volatile("fence.proxy.async.shared::cta;" ::: "memory"); }
DEV void tma_prefetch(const TensorMap* m) { asm volatile("prefetch.tensormap [%0];" ::"l"(m) : "memory"); }
DEV void tma_load_2d(saddr d, const TensorMap* m, saddr bar, int c0, int c1) {
  asm volatile("cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1, {%3, %4}], [%2];"
               ::"r"(d), "l"(m), "r"(bar), "r"(c0), "r"(c1) : "memory");
}
// Clusters: the block's number in its own; a barrier of all threads of all blocks, which also orders their memory; an arrival at
// the mbarrier at the same address in another block; a box for every block of the mask `ranks`, at the same address in each,
// of which the mbarrier at the same address hears.
DEV uint32_t cluster_rank() { uint32_t r; asm volatile("mov.u32 %0, %%cluster_ctarank;" : "=r"(r)); return r; }
DEV void cluster_arrive() { asm volatile("barrier.cluster.arrive.release.aligned;" ::: "memory"); }
DEV void cluster_wait() { asm volatile("barrier.cluster.wait.acquire.aligned;" ::: "memory"); }
DEV void cluster_sync() {
  cluster_arrive();
  cluster_wait();
}
DEV void mbar_arrive_remote(saddr b, uint32_t rank) {
  asm volatile("{\n.reg .b32 there;\nmapa.shared::cluster.u32 there, %0, %1;\nmbarrier.arrive.release.cluster.shared::cluster.b64 _, [there];\n}" ::"r"(b), "r"(rank) : "memory");
}
DEV void tma_load_2d_multicast(saddr d, const TensorMap* m, saddr bar, int c0, int c1, uint32_t ranks) {
  asm volatile("cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes.multicast::cluster [%0], [%1, {%3, %4}], [%2], %5;"
               ::"r"(d), "l"(m), "r"(bar), "r"(c0), "r"(c1), "h"((uint16_t)ranks) : "memory");
}
// 16 bytes of another block's shared memory, or one's own, at the address that they have there.
DEV u128 ld_cluster_128(saddr a, uint32_t rank) {
  u128 v;
  asm volatile("{\n.reg .b32 there;\nmapa.shared::cluster.u32 there, %4, %5;\nld.shared::cluster.v4.u32 {%0,%1,%2,%3}, [there];\n}"
               : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w) : "r"(a), "r"(rank) : "memory");
  return v;
}
// A box from shared memory, behind fence_proxy_async; what lies outside of the tensor is not written. Groups as with cp.async,
// a thread's own: _read waits until shared memory may be written again, which must be before the block ends.
DEV void tma_store_2d(const TensorMap* m, saddr s, int c0, int c1) {
  asm volatile("cp.async.bulk.tensor.2d.global.shared::cta.bulk_group [%0, {%2, %3}], [%1];" ::"l"(m), "r"(s), "r"(c0), "r"(c1) : "memory");
}
DEV void tma_store_commit() { asm volatile("cp.async.bulk.commit_group;" ::: "memory"); }
template <int N> DEV void tma_store_wait_read() { asm volatile("cp.async.bulk.wait_group.read %0;" ::"n"(N) : "memory"); }
#endif

// ---- sm_90a ------------------------------------------------------------------------------------------------------------
#if defined(__CUDA_ARCH_FEAT_SM90_ALL) || !defined(__CUDA_ARCH__)
template <int N> DEV void setmaxnreg_inc() { asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(N)); }
template <int N> DEV void setmaxnreg_dec() { asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(N)); }
// Keeps what sets an accumulator or an operand before the fence, and what reads an accumulator behind the wait.
DEV void wgmma_hold(float& d) { asm volatile("" : "+f"(d)::"memory"); }
DEV void wgmma_hold(uint32_t& a) { asm volatile("" : "+r"(a)::"memory"); }
DEV void wgmma_fence() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }
DEV void wgmma_commit() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }
template <int N> DEV void wgmma_wait() { asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(N) : "memory"); }
#define W8(o) "+f"(d[o]), "+f"(d[o+1]), "+f"(d[o+2]), "+f"(d[o+3]), "+f"(d[o+4]), "+f"(d[o+5]), "+f"(d[o+6]), "+f"(d[o+7])
#define W32(o) W8(o), W8(o + 8), W8(o + 16), W8(o + 24)
#define W16(o) W8(o), W8(o + 8)
#define R8 "%0,%1,%2,%3,%4,%5,%6,%7"
#define R16 "%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15"
#define R32 \
  "%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15,%16,%17,%18,%19,%20,%21,%22,%23,%24,%25,%26,%27,%28,%29,%30,%31"
#define R64 \
  "%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15,%16,%17,%18,%19,%20,%21,%22,%23,%24,%25,%26,%27,%28,%29,%30,%31," \
  "%32,%33,%34,%35,%36,%37,%38,%39,%40,%41,%42,%43,%44,%45,%46,%47,%48,%49,%50,%51,%52,%53,%54,%55,%56,%57,%58,%59,%60,%61,%62,%63"
#define R96 \
  "%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15,%16,%17,%18,%19,%20,%21,%22,%23,%24,%25,%26,%27,%28,%29,%30,%31," \
  "%32,%33,%34,%35,%36,%37,%38,%39,%40,%41,%42,%43,%44,%45,%46,%47,%48,%49,%50,%51,%52,%53,%54,%55,%56,%57,%58,%59,%60,%61,%62,%63," \
  "%64,%65,%66,%67,%68,%69,%70,%71,%72,%73,%74,%75,%76,%77,%78,%79,%80,%81,%82,%83,%84,%85,%86,%87,%88,%89,%90,%91,%92,%93,%94,%95"
#define R128 \
  "%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15,%16,%17,%18,%19,%20,%21,%22,%23,%24,%25,%26,%27,%28,%29,%30,%31," \
  "%32,%33,%34,%35,%36,%37,%38,%39,%40,%41,%42,%43,%44,%45,%46,%47,%48,%49,%50,%51,%52,%53,%54,%55,%56,%57,%58,%59,%60,%61,%62,%63," \
  "%64,%65,%66,%67,%68,%69,%70,%71,%72,%73,%74,%75,%76,%77,%78,%79,%80,%81,%82,%83,%84,%85,%86,%87,%88,%89,%90,%91,%92,%93,%94,%95," \
  "%96,%97,%98,%99,%100,%101,%102,%103,%104,%105,%106,%107,%108,%109,%110,%111,%112,%113,%114,%115,%116,%117,%118,%119,%120,%121,%122,%123,%124,%125,%126,%127"
// d += a b^T: a [64, 16], b [n, 16] in shared memory, K-major; da, db, p: the operands behind d's registers
#define WGMMA(name, shape, type, registers, list, da_, db_, p_, ...)                                                              \
  DEV void name(float (&d)[registers], uint64_t da, uint64_t db, int scale_d) {                                                 \
    asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, " p_ ", 0;\n"                                                                 \
                 "wgmma.mma_async.sync.aligned." shape ".f32." type "." type " {" list "}, " da_ ", " db_ ", p, 1, 1, 0, 0;\n}"  \
                 : __VA_ARGS__ : "l"(da), "l"(db), "r"(scale_d));                                                               \
  }
WGMMA(wgmma_m64n16k16, "m64n16k16", "f16", 8, R8, "%8", "%9", "%10", W8(0))
WGMMA(wgmma_m64n16k16_bf16, "m64n16k16", "bf16", 8, R8, "%8", "%9", "%10", W8(0))
WGMMA(wgmma_m64n32k16, "m64n32k16", "f16", 16, R16, "%16", "%17", "%18", W16(0))
WGMMA(wgmma_m64n32k16_bf16, "m64n32k16", "bf16", 16, R16, "%16", "%17", "%18", W16(0))
WGMMA(wgmma_m64n64k16, "m64n64k16", "f16", 32, R32, "%32", "%33", "%34", W32(0))
WGMMA(wgmma_m64n64k16_bf16, "m64n64k16", "bf16", 32, R32, "%32", "%33", "%34", W32(0))
WGMMA(wgmma_m64n128k16, "m64n128k16", "f16", 64, R64, "%64", "%65", "%66", W32(0), W32(32))
WGMMA(wgmma_m64n128k16_bf16, "m64n128k16", "bf16", 64, R64, "%64", "%65", "%66", W32(0), W32(32))
WGMMA(wgmma_m64n192k16, "m64n192k16", "f16", 96, R96, "%96", "%97", "%98", W32(0), W32(32), W32(64))
WGMMA(wgmma_m64n192k16_bf16, "m64n192k16", "bf16", 96, R96, "%96", "%97", "%98", W32(0), W32(32), W32(64))
WGMMA(wgmma_m64n256k16, "m64n256k16", "f16", 128, R128, "%128", "%129", "%130", W32(0), W32(32), W32(64), W32(96))
WGMMA(wgmma_m64n256k16_bf16, "m64n256k16", "bf16", 128, R128, "%128", "%129", "%130", W32(0), W32(32), W32(64), W32(96))
#undef WGMMA
// d += a b^T with a in registers, four a thread as mma_m16n8k16 has them of each warp's 16 rows. b as above, or with
// TRANSPOSED b^T [16, n] in shared memory: its rows are the sum's, of 64 or 128 bytes with the swizzle of that width.
#define WGMMA_RA(name, shape, type, registers, list, a_, db_, p_, t_, ...)                                                         \
  template <int TRANSPOSED> DEV void name(float (&d)[registers], const uint32_t (&a)[4], uint64_t db, int scale_d) {              \
    asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, " p_ ", 0;\n"                                                                 \
                 "wgmma.mma_async.sync.aligned." shape ".f32." type "." type " {" list "}, {" a_ "}, " db_ ", p, 1, 1, " t_ ";\n}" \
                 : __VA_ARGS__ : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(db), "r"(scale_d), "n"(TRANSPOSED));             \
  }
WGMMA_RA(wgmma_m64n32k16_ra, "m64n32k16", "f16", 16, R16, "%16,%17,%18,%19", "%20", "%21", "%22", W16(0))
WGMMA_RA(wgmma_m64n32k16_ra_bf16, "m64n32k16", "bf16", 16, R16, "%16,%17,%18,%19", "%20", "%21", "%22", W16(0))
WGMMA_RA(wgmma_m64n64k16_ra, "m64n64k16", "f16", 32, R32, "%32,%33,%34,%35", "%36", "%37", "%38", W32(0))
WGMMA_RA(wgmma_m64n64k16_ra_bf16, "m64n64k16", "bf16", 32, R32, "%32,%33,%34,%35", "%36", "%37", "%38", W32(0))
#undef WGMMA_RA
#undef R8
#undef R16
#undef R32
#undef R64
#undef R96
#undef R128
#undef W32
#undef W16
#undef W8
#endif
