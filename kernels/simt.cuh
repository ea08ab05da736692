// simt.cuh - the one header of wrappers that kernels are written against.
//   nvcc / nvrtc          -> simt_cuda.cuh : each wrapper is one PTX instruction
//   g++ -DHOST_EMULATION  -> simt_emu.h  : each wrapper is emulated, one fiber per CUDA thread (tests/emulator/README.md)
#pragma once
#if defined(HOST_EMULATION)
#include "../tests/emulator/simt_emu.h"
#else
#include "simt_cuda.cuh"
#endif

// ---- helpers written once, on top of the wrappers -------------------------------------------
// Sums and maxima in a fixed order: the same bits in every run.
DEV float warp_sum(float v LOC_PARAM) {
#pragma unroll
  for (int o = 16; o; o >>= 1) v += shfl_xor(v, o LOC_ARG);
  return v;
}
DEV float warp_max(float v LOC_PARAM) {
#pragma unroll
  for (int o = 16; o; o >>= 1) v = fmaxf(v, shfl_xor(v, o LOC_ARG));
  return v;
}
// over the four lanes that share a row of an mma accumulator
DEV float quad_max(float v LOC_PARAM) { v = fmaxf(v, shfl_xor(v, 1 LOC_ARG)); return fmaxf(v, shfl_xor(v, 2 LOC_ARG)); }
DEV float quad_sum(float v LOC_PARAM) { v += shfl_xor(v, 1 LOC_ARG); return v + shfl_xor(v, 2 LOC_ARG); }
// wgmma operand in shared memory: rows of 128 (64) bytes with the swizzle of that width, groups of 8 rows side by side. K-major;
// or transposed, of no more columns than a row has.
DEV uint64_t wgmma_desc_sw128(saddr a) {
  return (uint64_t)((a & 0x3FFFF) >> 4) | (uint64_t)1 << 16 | (uint64_t)(1024 >> 4) << 32 | (uint64_t)1 << 62;
}
DEV uint64_t wgmma_desc_sw64(saddr a) {
  return (uint64_t)((a & 0x3FFFF) >> 4) | (uint64_t)1 << 16 | (uint64_t)(512 >> 4) << 32 | (uint64_t)2 << 62;
}
