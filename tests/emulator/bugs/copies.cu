// A small GEMM with a ring of cp.async stages: out[m, n] (16-bit) = a [m, k] w [n, k]^T, tile 32 x 32, k in steps of 64, four
// warps of 16 x 16. Rows of 128 bytes, 16-byte chunk xor row % 8. m any, n and k multiples of the tile.
constexpr int RING = 3, RING_TILE = 32 * 128, RING_STAGE = 2 * RING_TILE;

DEV saddr ring_chunk(int row, int chunk) {
  if (planted("NO_SWIZZLE")) return (saddr)(row * 128 + chunk * 16);
  if (planted("SWIZZLE_OF_FOUR")) return (saddr)(row * 128 + (chunk ^ (row & 3)) * 16);
  return (saddr)(row * 128 + (chunk ^ (row & 7)) * 16);
}
template <class T> DEV void ring_body(const half_t* a, const half_t* w, half_t* out, int m, int n, int k) {
  SMEM_DYN(smem);
  const saddr base = smem_addr(smem);
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, wm = warp / 2 * 16, wn = warp % 2 * 16;
  const int m0 = blockIdx.y * 32, n0 = blockIdx.x * 32, steps = k / 64;
  auto load = [&](int step) {
    const saddr stage = base + step % RING * RING_STAGE;
    for (int i = threadIdx.x; i < 32 * 8; i += 128) {
      int row = i / 8, chunk = i % 8;        // eight lanes fill a row
      if (planted("COPY_BY_EIGHTS")) { row = i % 4 * 8 + i / 4 % 8; chunk = i / 32; }  // every fourth into one bank group
      bool in = m0 + row < m || planted("ROW_NOT_CLAMPED");
      const half_t* from = a + (size_t)(in ? m0 + row : 0) * k + step * 64 + chunk * 8;
      if (planted("COPY_MISALIGNED")) from += 4;
      cp_async_16(stage + ring_chunk(row, chunk), from, in);
      cp_async_16(stage + RING_TILE + ring_chunk(row, chunk), w + (size_t)(n0 + row) * k + step * 64 + chunk * 8, true);
    }
  };
  float acc[2][4] = {};
  for (int s = 0; s < RING - 1; s++) { if (s < steps) load(s); cp_async_commit(); }
  for (int step = 0; step < steps; step++) {
    if (planted("LOAD_BEFORE_BARRIER") && step + RING - 1 < steps) load(step + RING - 1);
    if (planted("WAIT_ONE_TOO_FEW")) cp_async_wait<RING - 1>();
    else cp_async_wait<RING - 2>();
    if (!planted("NO_SYNC_AFTER_WAIT")) sync_block();
    if (!planted("LOAD_BEFORE_BARRIER") && step + RING - 1 < steps) load(step + RING - 1);
    cp_async_commit();
    const saddr sa = base + step % RING * RING_STAGE, sw = sa + RING_TILE;
    for (int kk = 0; kk < 4; kk++) {
      uint32_t fa[4], fb[4];
      ldmatrix_x4(fa, sa + ring_chunk(wm + lane % 16, kk * 2 + lane / 16));
      ldmatrix_x4(fb, sw + ring_chunk(wn + lane % 8 + lane / 16 * 8, kk * 2 + lane / 8 % 2));
      if (planted("OTHER_TYPES_MMA")) {  // bf16's mma over fp16 bits
        mma_m16n8k16_bf16(acc[0], fa, fb[0], fb[1]);
        mma_m16n8k16_bf16(acc[1], fa, fb[2], fb[3]);
      } else if (planted("FRAGMENTS_SWAPPED")) {
        T::mma(acc[0], fa, fb[0], fb[2]);
        T::mma(acc[1], fa, fb[1], fb[3]);
      } else {
        T::mma(acc[0], fa, fb[0], fb[1]);
        T::mma(acc[1], fa, fb[2], fb[3]);
      }
    }
  }
  if (planted("EXIT_IN_FLIGHT")) cp_async_16(base, a, true);
  cp_async_wait<0>();
  for (int j = 0; j < 2; j++)
    for (int h = 0; h < 2; h++) {
      int row = m0 + wm + lane / 4 + h * 8, column = n0 + wn + j * 8 + lane % 4 * 2;
      float x = acc[j][h * 2], y = acc[j][h * 2 + 1];
      if (row < m || planted("STORE_PAST_END")) *(uint32_t*)(out + (size_t)row * n + column) = planted("OTHER_TYPES_STORE") ? pack_b2(x, y) : T::pack(x, y);
    }
}
KERNEL(128, bug_ring_f16, const half_t* a, const half_t* w, half_t* out, int m, int n, int k) { ring_body<F16>(a, w, out, m, n, k); }
KERNEL(128, bug_ring_bf16, const half_t* a, const half_t* w, half_t* out, int m, int n, int k) { ring_body<BF16>(a, w, out, m, n, k); }

template <class T> static void run_ring(void (*kernel)(const half_t*, const half_t*, half_t*, int, int, int)) {
  const int m = 45, n = 64, k = 320;
  Random random(case_seed);
  Guarded<half_t> a(random.normals16<T>(m * k), "a"), w(random.normals16<T>(n * k), "w"), out(m * n, "out");
  int rows = planted("LAST_ROWS_MISSED") ? m / 32 : (m + 31) / 32;
  launch(kernel, {n / 32, (unsigned)rows}, {128}, RING * RING_STAGE, a.data(), w.data(), out.data(), m, n, k);
  std::vector<double> x = widen16<T>(a), y = widen16<T>(w), ref(m * n);
  for (int i = 0; i < m; i++)
    for (int j = 0; j < n; j++) {
      double s = 0;
      for (int e = 0; e < k; e++) s += x[(size_t)(i * k + e)] * y[(size_t)(j * k + e)];
      ref[(size_t)(i * n + j)] = s;
    }
  std::vector<double> naive = ref;
  for (double& v : naive) v = round16<T>((float)v);
  check_error("", widen16<T>(out), naive, ref, output_rounding<T>(ref));
  expect_no_bank_conflicts(1);
}
static const int copies_cases[] = {
    add_case("copies/ring_f16", [] { run_ring<F16>(bug_ring_f16); }),
    add_case("copies/ring_bf16", [] { run_ring<BF16>(bug_ring_bf16); }),
};
