// hopper_ring.cuh - what the kernels for sm_90a share: a ring of stages in shared memory that TMA fills for warpgroups to read, and
// their multiplication by its number of columns.
//
// Two mbarriers a stage. full: the loader's one arrival and the stage's bytes. empty: each warp that has read the stage, as often
// as the kernel says when it initialises them. A barrier's phase is how often the ring has been gone round, by its last bit.
#pragma once
#include "simt.cuh"

#if defined(HOST_EMULATION) || !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 900
template <int N, int BYTES> struct Ring {
  static constexpr int STAGES = N, STAGE_BYTES = BYTES, BARRIER_BYTES = 16 * N;
  saddr stages, barriers;  // [N] full, [N] empty
  int stage;
  uint32_t phase;
};
// Where it is after `step` stages.
template <class R> DEV R ring_at(saddr stages, saddr barriers, int step) {
  return R{stages, barriers, step % R::STAGES, (uint32_t)(step / R::STAGES) & 1};
}
template <int N, int BYTES> DEV saddr stage_of(const Ring<N, BYTES>& r) { return r.stages + r.stage * BYTES; }
template <int N, int BYTES> DEV saddr full_barrier(const Ring<N, BYTES>& r) { return r.barriers + 8 * r.stage; }
template <int N, int BYTES> DEV saddr empty_barrier(const Ring<N, BYTES>& r) { return r.barriers + 8 * (N + r.stage); }
template <int N, int BYTES> DEV void advance(Ring<N, BYTES>& r) {
  if (++r.stage == N) {
    r.stage = 0;
    r.phase ^= 1;
  }
}
// Each step's memory is free at once in the first round.
template <int N, int BYTES> DEV void wait_until_empty(const Ring<N, BYTES>& r) { mbar_wait(empty_barrier(r), r.phase ^ 1); }
template <int N, int BYTES> DEV void wait_until_full(const Ring<N, BYTES>& r) { mbar_wait(full_barrier(r), r.phase); }
// By one thread, before anything is loaded. `readers`: arrivals that free a stage.
template <int N, int BYTES> DEV void init_ring(const Ring<N, BYTES>& r, int readers) {
  for (int i = 0; i < N; i++) {
    mbar_init(r.barriers + 8 * i, 1);
    mbar_init(r.barriers + 8 * (N + i), readers);
  }
}
#endif

#if defined(HOST_EMULATION) || !defined(__CUDA_ARCH__) || defined(__CUDA_ARCH_FEAT_SM90_ALL)
// d [64, N] += a [64, 16] . b [N, 16]^T, both in shared memory.
template <class T, int N> DEV void wgmma_m64(float (&d)[N / 2], uint64_t a, uint64_t b, int scale_d LOC_PARAM) {
  static_assert(N == 16 || N == 32 || N == 64 || N == 128 || N == 192 || N == 256, "what there are wrappers for");
  if constexpr (T::IS_BF16) {
    if constexpr (N == 16) wgmma_m64n16k16_bf16(d, a, b, scale_d LOC_ARG);
    if constexpr (N == 32) wgmma_m64n32k16_bf16(d, a, b, scale_d LOC_ARG);
    if constexpr (N == 64) wgmma_m64n64k16_bf16(d, a, b, scale_d LOC_ARG);
    if constexpr (N == 128) wgmma_m64n128k16_bf16(d, a, b, scale_d LOC_ARG);
    if constexpr (N == 192) wgmma_m64n192k16_bf16(d, a, b, scale_d LOC_ARG);
    if constexpr (N == 256) wgmma_m64n256k16_bf16(d, a, b, scale_d LOC_ARG);
  } else {
    if constexpr (N == 16) wgmma_m64n16k16(d, a, b, scale_d LOC_ARG);
    if constexpr (N == 32) wgmma_m64n32k16(d, a, b, scale_d LOC_ARG);
    if constexpr (N == 64) wgmma_m64n64k16(d, a, b, scale_d LOC_ARG);
    if constexpr (N == 128) wgmma_m64n128k16(d, a, b, scale_d LOC_ARG);
    if constexpr (N == 192) wgmma_m64n192k16(d, a, b, scale_d LOC_ARG);
    if constexpr (N == 256) wgmma_m64n256k16(d, a, b, scale_d LOC_ARG);
  }
}
#endif
