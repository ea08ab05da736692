// Block barriers and shared memory.

// out[0] = sum of 128 values: a partial sum a warp, then all of them
KERNEL(128, bug_block_sum, const float* in, float* out) {
  SMEM_ARRAY(float, partial, 4);
  const int warp = threadIdx.x / 32;
  float s = warp_sum(in[threadIdx.x]);
  if (planted("STATIC_ARRAY_OVERRUN")) partial[warp + 1] = s;
  if (threadIdx.x % 32 == 0 && !(planted("SHARED_NEVER_WRITTEN") && warp == 2)) partial[warp] = s;
  if (planted("BARRIER_IN_BRANCH")) {
    if (warp != 3) sync_block();
  } else if (planted("BARRIER_COUNT")) {
    bar_sync(1, warp == 3 ? 96 : 128);
  } else if (!planted("NO_SYNC_BLOCK")) {
    sync_block();
  }
  if (threadIdx.x == 0) out[0] = partial[0] + partial[1] + partial[2] + partial[3];
}
// The last warp adds what the first ones left: the order that a forward schedule happens to keep without a barrier.
KERNEL(128, bug_late_reader, const float* in, float* out) {
  SMEM_ARRAY(float, partial, 4);
  float s = warp_sum(in[threadIdx.x]);
  if (threadIdx.x % 32 == 0) partial[threadIdx.x / 32] = s;
  if (!planted("NO_SYNC_LATE_READER")) sync_block();
  if (threadIdx.x == 127) out[0] = partial[0] + partial[1] + partial[2] + partial[3];
}
// producer (warp 0) and consumers through named barriers
KERNEL(128, bug_named, const float* in, float* out) {
  SMEM_ARRAY(float, sum, 1);
  if (threadIdx.x < 32) {
    float s = in[threadIdx.x] + in[threadIdx.x + 32] + in[threadIdx.x + 64] + in[threadIdx.x + 96];
    s = warp_sum(s);
    if (threadIdx.x == 0) sum[0] = s;
    if (planted("ARRIVE_TOO_EARLY") && threadIdx.x == 0) sum[0] = NAN;
    bar_arrive(1, 128);
    if (planted("ARRIVE_TOO_EARLY") && threadIdx.x == 0) sum[0] = s;
  } else {
    bar_sync(planted("OTHER_BARRIER") ? 2 : 1, 128);
    if (threadIdx.x == 127) out[0] = sum[0];
  }
}
// a reversed copy through dynamic shared memory with the 16-byte wrappers: out[n - 1 - i] = in[i], 128 chunks
KERNEL(128, bug_chunks, const float* in, float* out) {
  SMEM_DYN(smem);
  const saddr base = smem_addr(smem);
  saddr to = base + threadIdx.x * 16;
  if (planted("SHARED_MISALIGNED")) to += 8;
  if (planted("SHARED_OUT_OF_BOUNDS") && threadIdx.x == 127) to += 16;
  st_shared_128(to, ld_global_nc_128(in + threadIdx.x * 4));
  sync_block();
  st_global_128(out + threadIdx.x * 4, ld_shared_128(base + (127 - threadIdx.x) * 16));
}
// transpose of a 32x32 tile of f32: rows 33 words apart, so that a column lies in 32 banks
KERNEL(32, bug_transpose, const float* in, float* out) {
  SMEM_DYN(smem);
  const int pitch = planted("STORES_IN_ONE_BANK") ? 32 : 33;
  const saddr tile = smem_addr(smem);
  for (int r = 0; r < 32; r++) st_shared_f32(tile + (saddr)(threadIdx.x * pitch + r) * 4, in[r * 32 + threadIdx.x]);
  sync_warp();
  for (int r = 0; r < 32; r++) out[r * 32 + threadIdx.x] = ld_shared_f32(tile + (saddr)(r * pitch + threadIdx.x) * 4);
}

static void run_block_sum(void (*kernel)(const float*, float*)) {
  Random random(case_seed);
  std::vector<float> v(128);
  for (float& x : v) x = (float)random.integer(1, 99);
  Guarded<float> in(v, "in"), out(1, "out");
  launch(kernel, {1}, {128}, 0, in.data(), out.data());
  EXPECT(out[0] == sum_of(v, 0, 128), "got %g, expected %g", out[0], sum_of(v, 0, 128));
}
static const int block_cases[] = {
    add_case("block/sum", [] { run_block_sum(bug_block_sum); }),
    add_case("block/late_reader", [] { run_block_sum(bug_late_reader); }),
    add_case("block/named", [] { run_block_sum(bug_named); }),
    add_case("block/chunks", [] {
      Random random(case_seed);
      std::vector<float> v = random.normals(512);
      Guarded<float> in(v, "in"), out(512, "out");
      launch(bug_chunks, {1}, {128}, 128 * 16, in.data(), out.data());
      for (size_t i = 0; i < 512; i++) EXPECT(out[i] == v[(127 - i / 4) * 4 + i % 4], "wrong at %zu", i);
    }),
    add_case("block/transpose", [] {
      Random random(case_seed);
      std::vector<float> v = random.normals(1024);
      Guarded<float> in(v, "in"), out(1024, "out");
      launch(bug_transpose, {1}, {32}, 33 * 32 * 4, in.data(), out.data());
      for (size_t i = 0; i < 1024; i++) EXPECT(out[i] == v[i % 32 * 32 + i / 32], "wrong at %zu", i);
      expect_no_bank_conflicts(64);
    }),
};
