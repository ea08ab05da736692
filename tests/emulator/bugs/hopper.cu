// TMA, mbarriers and wgmma: out [m, n] f32 = a [m, k] w [n, k]^T. One producer warpgroup, one consumer, tile 64 x 64 x 64, two
// stages, so that every barrier changes its phase several times.
constexpr int HOPPER_STAGES = 2, HOPPER_TILE = 64 * 128, HOPPER_STAGE = 2 * HOPPER_TILE;

KERNEL(256, bug_tma, TMAP_PARAM(map_a), TMAP_PARAM(map_w), float* out, int m, int n, int k) {
  SMEM_DYN(smem);
  const saddr base = smem_addr(smem), full = base + HOPPER_STAGES * HOPPER_STAGE, empty = full + HOPPER_STAGES * 8;
  const int steps = k / 64, m0 = blockIdx.y * 64, n0 = blockIdx.x * 64;
  if (threadIdx.x == 0) {
    for (int s = 0; s < HOPPER_STAGES; s++) {
      mbar_init(full + s * 8, 1);
      if (!planted("MBAR_NOT_INITIALISED")) mbar_init(empty + s * 8, 1);
    }
    mbar_fence_init();
  }
  sync_block();
  if (threadIdx.x < 128) {
    if (threadIdx.x) return;
    for (int step = 0; step < steps; step++) {
      int s = step % HOPPER_STAGES, phase = step / HOPPER_STAGES & 1;
      if (planted("MBAR_PARITY")) mbar_wait(empty + s * 8, phase);
      else if (!planted("NO_EMPTY_WAIT")) mbar_wait(empty + s * 8, phase ^ 1);
      mbar_arrive_expect_tx(full + s * 8, planted("EXPECT_TX_TOO_SMALL") ? HOPPER_TILE : HOPPER_STAGE);
      tma_load_2d(base + s * HOPPER_STAGE, &map_a, full + s * 8, step * 64, m0);
      tma_load_2d(base + s * HOPPER_STAGE + HOPPER_TILE, &map_w, full + s * 8, step * 64, n0);
    }
    return;
  }
  float d[32];
  for (int i = 0; i < 32; i++) d[i] = 0;
  const int t = threadIdx.x & 127, lane = t & 31;
  for (int step = 0; step < steps; step++) {
    int s = step % HOPPER_STAGES, phase = step / HOPPER_STAGES & 1;
    if (!planted("NO_FULL_WAIT")) mbar_wait(full + s * 8, phase);
    const saddr a = base + s * HOPPER_STAGE, w = a + HOPPER_TILE;
    if (!planted("NO_WGMMA_FENCE")) wgmma_fence();
    for (int kk = 0; kk < 4; kk++) wgmma_m64n64k16(d, wgmma_desc_sw128(a + kk * 32), wgmma_desc_sw128(w + kk * 32), 1);
    wgmma_commit();
    if (planted("NO_WGMMA_WAIT") && step + 1 == steps) break;
    if (planted("STAGE_FREED_EARLY") && t == 0) mbar_arrive(empty + s * 8);
    wgmma_wait<0>();
    if (!planted("STAGE_FREED_EARLY") && t == 0) mbar_arrive(empty + s * 8);
  }
  for (int j = 0; j < 8; j++)
    for (int q = 0; q < 4; q++) {
      int row = m0 + t / 32 * 16 + lane / 4 + q / 2 * 8, column = n0 + j * 8 + lane % 4 * 2 + q % 2;
      if (row < m) out[(size_t)row * n + column] = d[j * 4 + q];
    }
}
// operands written by ordinary stores: the tensor core sees them only after a proxy fence
KERNEL(128, bug_stores, const half_t* a, const half_t* w, float* out) {
  SMEM_DYN(smem);
  const saddr sa = smem_addr(smem), sw = sa + HOPPER_TILE;
  for (int i = threadIdx.x; i < 512; i += 128) {
    int row = i / 8, chunk = i % 8, at = row * 128 + (chunk ^ (row & 7)) * 16;
    st_shared_128(sa + at, ld_global_nc_128(a + i * 8));
    st_shared_128(sw + at, ld_global_nc_128(w + i * 8));
  }
  if (!planted("NO_PROXY_FENCE")) fence_proxy_async();
  sync_block();
  float d[32];
  for (int i = 0; i < 32; i++) d[i] = 0;
  wgmma_fence();
  for (int kk = 0; kk < 4; kk++) wgmma_m64n64k16(d, wgmma_desc_sw128(sa + kk * 32), wgmma_desc_sw128(sw + kk * 32), 1);
  wgmma_commit();
  wgmma_wait<0>();
  const int lane = threadIdx.x & 31, warp = threadIdx.x / 32;
  for (int j = 0; j < 8; j++)
    for (int q = 0; q < 4; q++) out[(warp * 16 + lane / 4 + q / 2 * 8) * 64 + j * 8 + lane % 4 * 2 + q % 2] = d[j * 4 + q];
}

// a in registers, w transposed: out [64, 2, 32] = a [64, 16 steps] w [16 steps, 64], w's halves of 32 columns as rows of 64 bytes
KERNEL(128, bug_registers, const half_t* a, TMAP_PARAM(map_w), float* out, int steps) {
  SMEM_DYN(smem);
  const saddr sw = smem_addr(smem), full = sw + 2 * 16 * steps * 64;
  if (threadIdx.x == 0) {
    mbar_init(full, 1);
    mbar_fence_init();
    mbar_arrive_expect_tx(full, 2 * 16 * steps * 64);
    for (int half = 0; half < 2; half++) tma_load_2d(sw + half * 16 * steps * 64, &map_w, full, half * 32, 0);
  }
  sync_block();
  mbar_wait(full, 0);
  const int lane = threadIdx.x & 31, row = threadIdx.x / 32 * 16 + lane / 4, k = 16 * steps;
  float d[2][16];
  for (int i = 0; i < 32; i++) d[i / 16][i % 16] = 0;
  uint32_t r[4] = {0, 0, 0, 0};
  for (int step = 0; step < steps; step++) {
    for (int i = 0; i < 4; i++) r[i] = ld_global_nc_32(a + (row + i % 2 * 8) * k + step * 16 + lane % 4 * 2 + (planted("A_COLUMNS_SWAPPED") ? 8 - i / 2 * 8 : i / 2 * 8));
    wgmma_fence();
    for (int half = 0; half < 2; half++) {
      const saddr w = sw + half * 16 * steps * 64 + step * 16 * 64;
      const uint64_t descriptor = planted("OTHER_ROW_WIDTH") ? wgmma_desc_sw128(w) : wgmma_desc_sw64(w);
      if (planted("NOT_TRANSPOSED")) wgmma_m64n32k16_ra<0>(d[half], r, descriptor, 1);
      else wgmma_m64n32k16_ra<1>(d[half], r, descriptor, 1);
    }
    wgmma_commit();
    if (planted("A_OVERWRITTEN")) r[0] = 0x3c003c00;  // while the product may still read it
    wgmma_wait<0>();
  }
  for (int half = 0; half < 2; half++)
    for (int i = 0; i < 16; i++) out[(row + i / 2 % 2 * 8) * 64 + half * 32 + i / 4 * 8 + lane % 4 * 2 + i % 2] = d[half][i];
}

// out [128, 64] = in by way of one box of 64 rows in shared memory, two times, by TMA stores
KERNEL(128, bug_tma_store, const half_t* in, TMAP_PARAM(map)) {
  SMEM_DYN(smem);
  const saddr box = smem_addr(smem);
  if (!planted("TMA_BEFORE_GRIDDEP_WAIT")) griddep_wait();
  for (int row = 0; row < 128; row += 64) {
    if (row && threadIdx.x == 0 && !planted("BOX_WRITTEN_EARLY")) tma_store_wait_read<0>();
    sync_block();
    for (int i = threadIdx.x; i < 512; i += 128) st_shared_128(box + i / 8 * 128 + (i % 8 ^ (i / 8 & 7)) * 16, ld_global_nc_128(in + row * 64 + i * 8));
    if (!planted("NO_FENCE_BEFORE_STORE")) fence_proxy_async();
    sync_block();
    if (threadIdx.x) continue;
    tma_store_2d(&map, box, 0, row);
    if (!planted("STORE_NOT_COMMITTED") || !row) tma_store_commit();
  }
  if (threadIdx.x == 0 && !planted("EXIT_BEFORE_STORE")) tma_store_wait_read<0>();
  if (planted("TMA_BEFORE_GRIDDEP_WAIT")) griddep_wait();
}

// out [2 blocks, rounds, 64, 64] = in [rounds, 64, 64]: each block of a cluster loads half of every round for both
KERNEL_CLUSTER(64, 2, bug_cluster, TMAP_PARAM(map), half_t* out, int rounds) {
  SMEM_DYN(smem);
  const saddr box = smem_addr(smem), full = box + HOPPER_TILE, empty = full + 8;
  const int rank = (int)cluster_rank();
  const bool for_itself = planted("FREED_FOR_ITSELF");  // nobody waits for the other block's readers
  if (threadIdx.x == 0) {
    mbar_init(full, 1);
    mbar_init(empty, for_itself ? 1 : 2);
    mbar_fence_init();
  }
  if (planted("NO_CLUSTER_SYNC")) sync_block();
  else cluster_sync();
  for (int round = 0; round < rounds; round++) {
    if (threadIdx.x == 0) {
      mbar_wait(empty, (round + 1) & 1);
      mbar_arrive_expect_tx(full, HOPPER_TILE);
      tma_load_2d_multicast(box + rank * HOPPER_TILE / 2, &map, full, 0, round * 64 + rank * 32, planted("ONE_RANK") ? 1 << rank : 3);
    }
    mbar_wait(full, round & 1);
    for (int i = threadIdx.x; i < 512; i += 64)
      st_global_128(out + ((rank * rounds + round) * 512 + i) * 8, ld_shared_128(box + i / 8 * 128 + (i % 8 ^ (i / 8 & 7)) * 16));
    sync_block();
    if (threadIdx.x < 2 && (!for_itself || (int)threadIdx.x == rank)) mbar_arrive_remote(empty, planted("ARRIVES_AT_ITSELF") ? (uint32_t)rank : threadIdx.x);
  }
  if (!planted("CLUSTER_LEFT_EARLY")) cluster_sync();
}

// out [blocks, 32] = in each row the sums of the rows of in [blocks, 32], in their order, out of all blocks' shared memory
KERNEL_CLUSTER_AT_LAUNCH(32, bug_cluster_sums, const float* in, float* out, int blocks) {
  SMEM_DYN(smem);
  const saddr mine = smem_addr(smem) + threadIdx.x % 8 * 16;
  const uint32_t rank = cluster_rank();
  if (threadIdx.x < 8) st_shared_128(mine, ld_global_nc_128(in + (rank * 8 + threadIdx.x) * 4));
  if (planted("PEERS_READ_EARLY")) sync_block();
  else cluster_sync();
  float sum[4] = {0, 0, 0, 0};
  for (int i = 0; i < blocks; i++) {
    const u128 v = ld_cluster_128(mine, planted("PEER_IS_ITSELF") ? rank : (uint32_t)i);
    sum[0] += f32_from_bits(v.x); sum[1] += f32_from_bits(v.y); sum[2] += f32_from_bits(v.z); sum[3] += f32_from_bits(v.w);
  }
  if (threadIdx.x < 8) st_global_128(out + (rank * 8 + threadIdx.x) * 4, u128{f32_bits(sum[0]), f32_bits(sum[1]), f32_bits(sum[2]), f32_bits(sum[3])});
  if (!planted("PEERS_LEFT_EARLY")) cluster_sync();
}

// out [64, 64] = two boxes of 32 rows: `fixed`, which nobody writes and which may be loaded before the launch in front has ended, and
// `map`, which that launch wrote
KERNEL(128, bug_tma_early, TMAP_PARAM(fixed), TMAP_PARAM(map), half_t* out) {
  SMEM_DYN(smem);
  const saddr box = smem_addr(smem), full = box + HOPPER_TILE;
  if (threadIdx.x == 0) {
    mbar_init(full, 1);
    mbar_fence_init();
    mbar_arrive_expect_tx(full, HOPPER_TILE);
    tma_load_2d(box, &fixed, full, 0, 0);
    if (planted("ROWS_LOADED_EARLY")) tma_load_2d(box + HOPPER_TILE / 2, &map, full, 0, 0);
  }
  sync_block();
  griddep_wait();
  if (threadIdx.x == 0 && !planted("ROWS_LOADED_EARLY")) tma_load_2d(box + HOPPER_TILE / 2, &map, full, 0, 0);
  mbar_wait(full, 0);
  for (int i = threadIdx.x; i < 512; i += 128) st_global_128(out + i * 8, ld_shared_128(box + i / 8 * 128 + (i % 8 ^ (i / 8 & 7)) * 16));
}

static std::vector<double> product(const Guarded<half_t>& a, const Guarded<half_t>& w, int m, int n, int k) {
  std::vector<double> x = widen16<F16>(a), y = widen16<F16>(w), ref((size_t)(m * n));
  for (int i = 0; i < m; i++)
    for (int j = 0; j < n; j++) {
      double s = 0;
      for (int e = 0; e < k; e++) s += x[(size_t)(i * k + e)] * y[(size_t)(j * k + e)];
      ref[(size_t)(i * n + j)] = s;
    }
  return ref;
}
static const int hopper_cases[] = {
    add_case("hopper/tma", [] {
      const int m = 100, n = 64, k = 320;
      Random random(case_seed);
      Guarded<half_t> a(random.normals16<F16>(m * k), "a"), w(random.normals16<F16>(n * k), "w");
      Guarded<float> out(m * n, "out");
      TensorMap map_a = tensor_map(a.data(), m, k, 64), map_w = tensor_map(w.data(), n, k, 64);
      launch(bug_tma, {1, 2}, {256}, HOPPER_STAGES * HOPPER_STAGE + HOPPER_STAGES * 16, std::ref(map_a), std::ref(map_w), out.data(), m, n, k);
      std::vector<double> ref = product(a, w, m, n, k);
      check_error("", widen32(out), ref, ref, f32_rounding(ref, 64));
    }),
    add_case("hopper/tma_store", [] {
      Random random(case_seed);
      Guarded<half_t> in(random.normals16<F16>(128 * 64), "in"), out(128 * 64, "out");
      TensorMap map = tensor_map(out.data(), 128, 64, 64);
      for (int i = 0; i < 2; i++) launch(bug_tma_store, {1}, {128}, HOPPER_TILE, in.data(), std::ref(map));
      std::vector<double> ref = widen16<F16>(in);
      check_error("", widen16<F16>(out), ref, ref, 0);
    }),
    add_case("hopper/cluster", [] {
      const int rounds = 4, n = rounds * 64 * 64;
      Random random(case_seed);
      Guarded<half_t> in(random.normals16<F16>(n), "in"), out(2 * n, "out");
      TensorMap map = tensor_map(in.data(), rounds * 64, 64, 32);
      launch(bug_cluster, {2}, {64}, HOPPER_TILE + 16, std::ref(map), out.data(), rounds);
      for (int i = 0; i < 2 * n; i++) EXPECT(out.data()[i] == in.data()[i % n], "element %d: got %04x, want %04x", i, out.data()[i], in.data()[i % n]);
    }),
    add_case("hopper/cluster_sums", [] {
      Random random(case_seed);
      for (int blocks : {2, 5}) {
        Guarded<float> in(random.normals(32 * (size_t)blocks), "in"), out(32 * (size_t)blocks, "out");
        launch_in_clusters(planted("CLUSTER_OF_ONE") ? 1 : blocks, bug_cluster_sums, {(unsigned)blocks}, {32}, 128, in.data(), out.data(), blocks);
        for (int i = 0; i < 32 * blocks; i++) {
          float want = 0;
          for (int b = 0; b < blocks; b++) want += in.data()[b * 32 + i % 32];
          EXPECT(out.data()[i] == want, "element %d: got %g, want %g", i, out.data()[i], want);
        }
      }
    }),
    add_case("hopper/tma_early", [] {
      Random random(case_seed);
      Guarded<half_t> fixed(random.normals16<F16>(32 * 64), "fixed"), in(random.normals16<F16>(32 * 64), "in"), between(64 * 64, "between"), out(64 * 64, "out");
      TensorMap map_fixed = tensor_map(fixed.data(), 32, 64, 32), map_in = tensor_map(in.data(), 32, 64, 32), map_between = tensor_map(between.data() + 32 * 64, 32, 64, 32);
      launch(bug_tma_early, {1}, {128}, HOPPER_TILE + 8, std::ref(map_fixed), std::ref(map_in), between.data());
      launch(bug_tma_early, {1}, {128}, HOPPER_TILE + 8, std::ref(map_fixed), std::ref(map_between), out.data());
      for (int i = 0; i < 32 * 64; i++)
        EXPECT(out.data()[i] == fixed.data()[i] && out.data()[32 * 64 + i] == in.data()[i], "element %d: got %04x and %04x", i, out.data()[i], out.data()[32 * 64 + i]);
    }),
    add_case("hopper/registers", [] {
      const int steps = 4, k = 16 * steps;
      Random random(case_seed);
      Guarded<half_t> a(random.normals16<F16>(64 * k), "a"), w(random.normals16<F16>(k * 64), "w");
      Guarded<float> out(64 * 64, "out");
      TensorMap map = tensor_map(w.data(), k, 64, k, 32);
      launch(bug_registers, {1}, {128}, 2 * k * 64 + 8, a.data(), std::ref(map), out.data(), steps);
      std::vector<half_t> transposed(64 * k);
      for (int i = 0; i < 64 * k; i++) transposed[(size_t)(i % 64 * k + i / 64)] = w.data()[i];
      std::vector<double> ref = product(a, Guarded<half_t>(transposed, "w transposed"), 64, 64, k);
      check_error("", widen32(out), ref, ref, f32_rounding(ref, 64));
    }),
    add_case("hopper/stores", [] {
      Random random(case_seed);
      Guarded<half_t> a(random.normals16<F16>(64 * 64), "a"), w(random.normals16<F16>(64 * 64), "w");
      Guarded<float> out(64 * 64, "out");
      launch(bug_stores, {1}, {128}, 2 * HOPPER_TILE, a.data(), w.data(), out.data());
      std::vector<double> ref = product(a, w, 64, 64, 64);
      check_error("", widen32(out), ref, ref, f32_rounding(ref, 64));
    }),
};
