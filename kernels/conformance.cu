// conformance.cu - one tiny kernel per wrapper of simt.cuh, so that the emulator can be held to the hardware.
//
// Formula     out = what the wrapper gives for `in`, all of it, in the order in which lanes hold it
// Arguments   in, out: 32-bit words, as many as tests/emulator/conformance/cases.h says
// Launch      one block of the kernel's own size; dynamic shared memory as cases.h says
// Not part of the shipped image. tests/kernels/conformance.cpp runs these in the emulator, tests/emulator/conformance/record
// on a GPU; the README there says how a record is made.
#include "simt.cuh"

// ---- numbers -----------------------------------------------------------------------------------------------------------
// 256 floats each
KERNEL(256, conformance_to_f16, const uint32_t* in, uint32_t* out) { out[threadIdx.x] = f2h(f32_from_bits(in[threadIdx.x])); }
KERNEL(256, conformance_to_bf16, const uint32_t* in, uint32_t* out) { out[threadIdx.x] = f2b(f32_from_bits(in[threadIdx.x])); }
KERNEL(128, conformance_pack, const uint32_t* in, uint32_t* out) {
  float lo = f32_from_bits(in[2 * threadIdx.x]), hi = f32_from_bits(in[2 * threadIdx.x + 1]);
  out[2 * threadIdx.x] = pack_h2(lo, hi);
  out[2 * threadIdx.x + 1] = pack_b2(lo, hi);
}
// 256 words of two halves
KERNEL(256, conformance_from_16, const uint32_t* in, uint32_t* out) {
  uint32_t p = in[threadIdx.x], *o = out + 4 * threadIdx.x;
  o[0] = f32_bits(h2lo(p));
  o[1] = f32_bits(h2hi(p));
  o[2] = f32_bits(b2f((half_t)p));
  o[3] = f32_bits(b2f((half_t)(p >> 16)));
}
// IEEE operations that kernels rely on being correctly rounded: division, square root, fused multiply-add
KERNEL(256, conformance_ieee, const uint32_t* in, uint32_t* out) {
  float a = f32_from_bits(in[threadIdx.x]), b = f32_from_bits(in[(threadIdx.x + 1) % 256]), c = f32_from_bits(in[(threadIdx.x + 2) % 256]);
  uint32_t* o = out + 4 * threadIdx.x;
  o[0] = f32_bits(a / b);
  o[1] = f32_bits(sqrtf(a));
  o[2] = f32_bits(1.0f / sqrtf(a));
  o[3] = f32_bits(fmaf(a, b, c));
}
KERNEL(256, conformance_ex2, const uint32_t* in, uint32_t* out) { out[threadIdx.x] = f32_bits(ex2_approx(f32_from_bits(in[threadIdx.x]))); }
KERNEL(256, conformance_rcp, const uint32_t* in, uint32_t* out) { out[threadIdx.x] = f32_bits(rcp_approx(f32_from_bits(in[threadIdx.x]))); }
KERNEL(256, conformance_rsqrt, const uint32_t* in, uint32_t* out) { out[threadIdx.x] = f32_bits(rsqrt_approx(f32_from_bits(in[threadIdx.x]))); }
KERNEL(256, conformance_tanh, const uint32_t* in, uint32_t* out) { out[threadIdx.x] = f32_bits(tanh_approx(f32_from_bits(in[threadIdx.x]))); }

// ---- warps and blocks ------------------------------------------------------------------------------------------------------
KERNEL(32, conformance_shfl, const uint32_t* in, uint32_t* out) {
  const uint32_t v = in[threadIdx.x];
  uint32_t* o = out + 16 * threadIdx.x;
  o[0] = shfl_xor(v, 1);
  o[1] = shfl_xor(v, 16);
  o[2] = shfl_xor(v, 21);
  o[3] = shfl_idx(v, 0);
  o[4] = shfl_idx(v, 31 - (int)threadIdx.x);
  o[5] = shfl_idx(v, 37);                    // taken modulo 32
  o[6] = shfl_up(v, 1);
  o[7] = shfl_up(v, 5);
  o[8] = shfl_down(v, 1);
  o[9] = shfl_down(v, 5);
  const uint32_t half = threadIdx.x < 16 ? 0x0000ffffu : 0xffff0000u;
  o[10] = f32_bits(shfl_xor_mask(half, f32_from_bits(v), 8));
  o[11] = f32_bits(shfl_idx_mask(half, f32_from_bits(v), threadIdx.x < 16 ? 3 : 19));
  o[12] = vote_ballot(v & 1);
  o[13] = f32_bits(warp_sum((float)(v & 1023)));
  o[14] = f32_bits(warp_max((float)(v & 1023)));
  o[15] = f32_bits(quad_sum((float)(v & 1023)) + quad_max((float)(v & 1023)));
}
// a producer warp and a consumer warp, by named barriers, four times through one slot a lane
KERNEL(64, conformance_barriers, const uint32_t* in, uint32_t* out) {
  SMEM_ARRAY(uint32_t, slot, 32);
  const int lane = threadIdx.x % 32;
  for (int i = 0; i < 4; i++) {
    if (threadIdx.x < 32) {
      if (i) bar_sync(2, 64);                // the slot is free
      slot[lane] = in[32 * i + lane];
      bar_arrive(1, 64);                     // the slot is full
    } else {
      bar_sync(1, 64);
      out[32 * i + lane] = slot[31 - lane];
      if (i < 3) bar_arrive(2, 64);
    }
  }
}
KERNEL(32, conformance_sync_warp, const uint32_t* in, uint32_t* out) {
  SMEM_ARRAY(uint32_t, slot, 32);
  slot[threadIdx.x] = in[threadIdx.x];
  sync_warp();
  uint32_t v = slot[31 - threadIdx.x];
  sync_warp();
  const uint32_t half = threadIdx.x < 16 ? 0x0000ffffu : 0xffff0000u;
  slot[threadIdx.x] = v;
  sync_warp_mask(half);
  out[threadIdx.x] = slot[threadIdx.x ^ 15];
}

// ---- memory ------------------------------------------------------------------------------------------------------------------
// 32 lanes copy 16 words each by every width; the copies come one after the other in out
KERNEL(32, conformance_global, const uint32_t* in, uint32_t* out) {
  const uint32_t* i = in + 16 * threadIdx.x;
  uint32_t* o = out + 16 * threadIdx.x;
  griddep_wait();
  st_global_128(o, ld_global_nc_128(i));
  st_global_128(o + 4, ld_global_128(i + 4));
  st_global_64(o + 8, ld_global_nc_64(i + 8));
  st_global_64(o + 10, ld_global_64(i + 10));
  for (int k = 12; k < 16; k++) st_global_32(o + k, ld_global_nc_32(i + k));
  griddep_launch();
}
// 512 bytes in shared memory: stored by one width, read back by another, from the mirrored lane
KERNEL(32, conformance_shared, const uint32_t* in, uint32_t* out) {
  SMEM_DYN(smem);
  const saddr base = smem_addr(smem), mine = base + threadIdx.x * 16, other = base + (31 - threadIdx.x) * 16;
  const uint32_t* i = in + 4 * threadIdx.x;
  uint32_t* o = out + 16 * threadIdx.x;
  st_shared_128(mine, u128{i[0], i[1], i[2], i[3]});
  sync_warp();
  for (int k = 0; k < 4; k++) o[k] = ld_shared_32(other + 4 * k);
  sync_warp();
  st_shared_64(mine, u64x{i[0], i[1]});
  st_shared_32(mine + 8, i[2]);
  st_shared_f32(mine + 12, f32_from_bits(i[3]));
  sync_warp();
  u128 v = ld_shared_128(other);
  u64x w = ld_shared_64(other + 8);
  o[4] = v.x; o[5] = v.y; o[6] = v.z; o[7] = v.w;
  o[8] = w.x; o[9] = w.y;
  sync_warp();
  for (int k = 0; k < 8; k++) st_shared_16(mine + 2 * k, (half_t)(i[k / 2] >> 16 * (1 - k % 2)));  // halves swapped
  sync_warp();
  for (int k = 0; k < 4; k++) o[10 + k] = ld_shared_32(other + 4 * k);
  o[14] = ld_shared_16(other + 2);
  o[15] = (base & 1023) + f32_bits(ld_shared_f32(other));  // dynamic shared memory begins at a multiple of 1024
}
// 16 and 4 bytes, wanted or not; two groups, of which the first is waited for first
KERNEL(32, conformance_cp_async, const uint32_t* in, uint32_t* out) {
  SMEM_DYN(smem);
  const saddr first = smem_addr(smem) + threadIdx.x * 16, second = first + 512;
  cp_async_16(first, in + 4 * threadIdx.x, threadIdx.x % 3 != 0);
  cp_async_commit();
  for (int k = 0; k < 4; k++) cp_async_4(second + 4 * k, in + 4 * threadIdx.x + k, (threadIdx.x + k) % 2 == 0);
  cp_async_commit();
  cp_async_wait<1>();
  for (int k = 0; k < 4; k++) out[8 * threadIdx.x + k] = ld_shared_32(first + 4 * k);
  cp_async_wait<0>();
  for (int k = 0; k < 4; k++) out[8 * threadIdx.x + 4 + k] = ld_shared_32(second + 4 * k);
}

// ---- 8x8 matrices ----------------------------------------------------------------------------------------------------------
// in: 32 rows of 16 bytes; lane l names row (5 l + 3) % 32
KERNEL(32, conformance_ldmatrix, const uint32_t* in, uint32_t* out) {
  SMEM_DYN(smem);
  const saddr base = smem_addr(smem), row = base + (5 * threadIdx.x + 3) % 32 * 16;
  st_shared_128(base + threadIdx.x * 16, ld_global_nc_128(in + 4 * threadIdx.x));
  sync_warp();
  uint32_t r[4], t[4], x[2], y[2], *o = out + 12 * threadIdx.x;
  ldmatrix_x4(r, row);
  ldmatrix_x4_trans(t, row);
  ldmatrix_x2(x, row);
  ldmatrix_x2_trans(y, row);
  for (int k = 0; k < 4; k++) { o[k] = r[k]; o[4 + k] = t[k]; }
  for (int k = 0; k < 2; k++) { o[8 + k] = x[k]; o[10 + k] = y[k]; }
}
// in: 4 words a lane; out: the 512 bytes as stored straight, then transposed. sm_90
KERNEL(32, conformance_stmatrix, const uint32_t* in, uint32_t* out) {
#if defined(HOST_EMULATION) || __CUDA_ARCH__ >= 900
  SMEM_DYN(smem);
  const saddr base = smem_addr(smem), row = base + (5 * threadIdx.x + 3) % 32 * 16;
  const uint32_t r[4] = {in[4 * threadIdx.x], in[4 * threadIdx.x + 1], in[4 * threadIdx.x + 2], in[4 * threadIdx.x + 3]};
  stmatrix_x4(row, r);
  sync_warp();
  for (int k = 0; k < 4; k++) out[4 * threadIdx.x + k] = ld_shared_32(base + threadIdx.x * 16 + 4 * k);
  sync_warp();
  stmatrix_x4_trans(row, r);
  sync_warp();
  for (int k = 0; k < 4; k++) out[128 + 4 * threadIdx.x + k] = ld_shared_32(base + threadIdx.x * 16 + 4 * k);
#endif
}
// in: a fragment of 4 words, b of 2, c of 4 a lane
DEV void load_fragments(const uint32_t* in, uint32_t (&a)[4], uint32_t (&b)[2], float (&c)[4]) {
  const uint32_t* i = in + 10 * threadIdx.x;
  for (int k = 0; k < 4; k++) { a[k] = i[k]; c[k] = f32_from_bits(i[6 + k]); }
  for (int k = 0; k < 2; k++) b[k] = i[4 + k];
}
KERNEL(32, conformance_mma_f16, const uint32_t* in, uint32_t* out) {
  uint32_t a[4], b[2];
  float c[4];
  load_fragments(in, a, b, c);
  mma_m16n8k16(c, a, b[0], b[1]);
  for (int k = 0; k < 4; k++) out[4 * threadIdx.x + k] = f32_bits(c[k]);
}
KERNEL(32, conformance_mma_bf16, const uint32_t* in, uint32_t* out) {
  uint32_t a[4], b[2];
  float c[4];
  load_fragments(in, a, b, c);
  mma_m16n8k16_bf16(c, a, b[0], b[1]);
  for (int k = 0; k < 4; k++) out[4 * threadIdx.x + k] = f32_bits(c[k]);
}
// the same on numbers whose sum is not exact: shows how the tensor core rounds
KERNEL(32, conformance_mma_rounding, const uint32_t* in, uint32_t* out) {
  uint32_t a[4], b[2];
  float c[4];
  load_fragments(in, a, b, c);
  mma_m16n8k16(c, a, b[0], b[1]);
  for (int k = 0; k < 4; k++) out[4 * threadIdx.x + k] = f32_bits(c[k]);
}

// ---- TMA, mbarrier, wgmma ----------------------------------------------------------------------------------------------------
// The tensor is `in`, 48 rows of 64 halves; a box of 64 x 64 from (8, -4), 128-byte swizzle: part of it lies outside. sm_90 and
// sm_100: for sm_120 the compiler of the image makes a call with a stack frame of it
KERNEL(128, conformance_tma, TMAP_PARAM(map), uint32_t* out) {
#if defined(HOST_EMULATION) || (__CUDA_ARCH__ >= 900 && __CUDA_ARCH__ < 1200)
  SMEM_DYN(smem);
  const saddr box = smem_addr(smem), full = box + 8192;
  if (threadIdx.x == 0) {
    mbar_init(full, 1);
    mbar_fence_init();
  }
  sync_block();
  if (threadIdx.x == 0) {
    mbar_arrive_expect_tx(full, 8192);
    tma_load_2d(box, &map, full, 8, -4);
  }
  mbar_wait(full, 0);
  for (int i = threadIdx.x; i < 2048; i += 128) out[i] = ld_shared_32(box + 4 * i);
#endif
}
// A box of 64 x 64 halves, `in` as it lies in shared memory, stored to two places of a tensor of 48 rows of 64: (-8, -4) and
// (56, -4), so that each element is written once and part of each box lies outside
KERNEL(128, conformance_tma_store, const uint32_t* in, TMAP_PARAM(map)) {
#if defined(HOST_EMULATION) || (__CUDA_ARCH__ >= 900 && __CUDA_ARCH__ < 1200)
  SMEM_DYN(smem);
  const saddr box = smem_addr(smem);
  for (int i = threadIdx.x; i < 2048; i += 128) st_shared_32(box + 4 * i, in[i]);
  fence_proxy_async();
  sync_block();
  if (threadIdx.x == 0) {
    tma_store_2d(&map, box, -8, -4);
    tma_store_2d(&map, box, 56, -4);
    tma_store_commit();
    tma_store_wait_read<0>();
  }
#endif
}
// a [64, 16], w [n, 16] halves, row-major in `in`; stored K-major with the 128-byte swizzle in rows of 64 halves. sm_90a
template <int N, class Multiply> DEV void wgmma_body(const uint32_t* in, uint32_t* out, Multiply multiply) {
#if defined(HOST_EMULATION) || defined(__CUDA_ARCH_FEAT_SM90_ALL)
  constexpr int REGISTERS = N / 2;
  SMEM_DYN(wgmma_smem);
  const saddr a = smem_addr(wgmma_smem), w = a + 8192;
  for (int i = threadIdx.x; i < (64 + N) * 8; i += 128) {
    int row = i / 8, word = i % 8, r = row < 64 ? row : row - 64;
    st_shared_32((row < 64 ? a : w) + r * 128 + ((word / 4) ^ (r & 7)) * 16 + word % 4 * 4, in[i]);
  }
  fence_proxy_async();
  sync_block();
  float d[REGISTERS];
  for (int i = 0; i < REGISTERS; i++) { d[i] = (float)i; wgmma_hold(d[i]); }
  wgmma_fence();
  multiply(d, wgmma_desc_sw128(a), wgmma_desc_sw128(w));
  wgmma_commit();
  wgmma_wait<0>();
  for (int i = 0; i < REGISTERS; i++) out[REGISTERS * threadIdx.x + i] = f32_bits(d[i]);
#endif
}
#if defined(HOST_EMULATION) || defined(__CUDA_ARCH_FEAT_SM90_ALL)
#define CONFORMANCE_WGMMA(name, n, wrapper)                                                                 \
  KERNEL(128, name, const uint32_t* in, uint32_t* out) {                                                    \
    wgmma_body<n>(in, out, [](float (&d)[n / 2], uint64_t a, uint64_t w) { wrapper(d, a, w, 1); });         \
  }
#else
#define CONFORMANCE_WGMMA(name, n, wrapper) KERNEL(128, name, const uint32_t* in, uint32_t* out) {}
#endif
CONFORMANCE_WGMMA(conformance_wgmma_n16, 16, wgmma_m64n16k16)
CONFORMANCE_WGMMA(conformance_wgmma_n32, 32, wgmma_m64n32k16)
CONFORMANCE_WGMMA(conformance_wgmma_n64, 64, wgmma_m64n64k16)
CONFORMANCE_WGMMA(conformance_wgmma_n128, 128, wgmma_m64n128k16)
CONFORMANCE_WGMMA(conformance_wgmma_n192, 192, wgmma_m64n192k16)
CONFORMANCE_WGMMA(conformance_wgmma_n256, 256, wgmma_m64n256k16)
CONFORMANCE_WGMMA(conformance_wgmma_n16_bf16, 16, wgmma_m64n16k16_bf16)
CONFORMANCE_WGMMA(conformance_wgmma_n32_bf16, 32, wgmma_m64n32k16_bf16)
CONFORMANCE_WGMMA(conformance_wgmma_n64_bf16, 64, wgmma_m64n64k16_bf16)
CONFORMANCE_WGMMA(conformance_wgmma_n128_bf16, 128, wgmma_m64n128k16_bf16)
CONFORMANCE_WGMMA(conformance_wgmma_n192_bf16, 192, wgmma_m64n192k16_bf16)
CONFORMANCE_WGMMA(conformance_wgmma_n256_bf16, 256, wgmma_m64n256k16_bf16)
// a [64, 16] halves from registers, b as w [n, 16] stored K-major, or as its transpose [16, n], in rows of 64 or 128 bytes with the
// swizzle of that width: of n columns, or of 16 with nothing behind them. sm_90a
template <int N, int ROW_BYTES, bool TRANSPOSED, class Multiply> DEV void wgmma_ra_body(const uint32_t* in, uint32_t* out, Multiply multiply) {
#if defined(HOST_EMULATION) || defined(__CUDA_ARCH_FEAT_SM90_ALL)
  constexpr int REGISTERS = N / 2;
  SMEM_DYN(wgmma_smem);
  const saddr b = smem_addr(wgmma_smem);
  for (int i = threadIdx.x; i < N * 16; i += 128) {
    const int n = i / 16, k = i % 16, row = TRANSPOSED ? k : n, byte = 2 * (TRANSPOSED ? n : k), phase = ROW_BYTES == 64 ? row >> 1 & 3 : row & 7;
    st_shared_16(b + row * ROW_BYTES + ((byte / 16) ^ phase) * 16 + byte % 16, (half_t)(in[(64 + n) * 8 + k / 2] >> 16 * (k % 2)));
  }
  fence_proxy_async();
  sync_block();
  const int row = threadIdx.x / 32 * 16 + threadIdx.x % 32 / 4, pair = threadIdx.x % 4;
  uint32_t a[4];
  for (int i = 0; i < 4; i++) { a[i] = in[(row + i % 2 * 8) * 8 + pair + i / 2 * 4]; wgmma_hold(a[i]); }
  float d[REGISTERS];
  for (int i = 0; i < REGISTERS; i++) { d[i] = (float)i; wgmma_hold(d[i]); }
  wgmma_fence();
  multiply(d, a, ROW_BYTES == 64 ? wgmma_desc_sw64(b) : wgmma_desc_sw128(b));
  wgmma_commit();
  wgmma_wait<0>();
  for (int i = 0; i < REGISTERS; i++) out[REGISTERS * threadIdx.x + i] = f32_bits(d[i]);
#endif
}
#if defined(HOST_EMULATION) || defined(__CUDA_ARCH_FEAT_SM90_ALL)
#define CONFORMANCE_WGMMA_RA(name, n, row_bytes, transposed, wrapper)                                                            \
  KERNEL(128, name, const uint32_t* in, uint32_t* out) {                                                                        \
    wgmma_ra_body<n, row_bytes, transposed>(in, out, [](float (&d)[n / 2], const uint32_t (&a)[4], uint64_t b) { wrapper<transposed>(d, a, b, 1); }); \
  }
#else
#define CONFORMANCE_WGMMA_RA(name, n, row_bytes, transposed, wrapper) KERNEL(128, name, const uint32_t* in, uint32_t* out) {}
#endif
CONFORMANCE_WGMMA_RA(conformance_wgmma_ra_n64, 64, 128, false, wgmma_m64n64k16_ra)
CONFORMANCE_WGMMA_RA(conformance_wgmma_ra_n64_sw64_bf16, 64, 64, false, wgmma_m64n64k16_ra_bf16)
CONFORMANCE_WGMMA_RA(conformance_wgmma_ra_n64_transposed, 64, 128, true, wgmma_m64n64k16_ra)
CONFORMANCE_WGMMA_RA(conformance_wgmma_ra_n64_transposed_bf16, 64, 128, true, wgmma_m64n64k16_ra_bf16)
CONFORMANCE_WGMMA_RA(conformance_wgmma_ra_n32_transposed, 32, 64, true, wgmma_m64n32k16_ra)
CONFORMANCE_WGMMA_RA(conformance_wgmma_ra_n32_transposed_bf16, 32, 64, true, wgmma_m64n32k16_ra_bf16)
