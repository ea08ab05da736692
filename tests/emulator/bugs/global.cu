// Global memory: bounds, alignment, inputs, blocks that meet.

// out[i] = in[i] in chunks of 16 bytes, n a multiple of 4
KERNEL(32, bug_copy, float* in, float* out, int n) {
  int i = (int)(blockIdx.x * 32 + threadIdx.x) * 4;
  if (i > n) return;
  u128 v{};
  if (i < n || planted("LOAD_PAST_END")) v = ld_global_nc_128(in + (planted("LOAD_MISALIGNED") ? i ^ 1 : i));
  if (i < n || planted("STORE_PAST_END_128")) st_global_128(out + i, v);
  if (i < n && planted("WRITES_INPUT")) st_global_32(in + i, v.x);
}
// out[i] = 2 in[i] in plain C++, which the emulator does not see
KERNEL(32, bug_double, float* in, float* out, int n) {
  int i = (int)(blockIdx.x * 32 + threadIdx.x);
  if (i >= n && !(planted("PLAIN_STORE_PAST_END") && i == n)) return;
  float v = i < n ? 2 * in[i] : 0;
  if (planted("PLAIN_LOAD_PAST_END")) v += 0 * in[i + 1];  // "masked" by a product, as padding often is
  if (planted("PLAIN_LOAD_MISALIGNED")) v = 2 * ((const u128*)(in + 1))->x;
  out[i] = v;
  if (planted("PLAIN_WRITE_TO_INPUT")) in[i] = v;
}
// out[row] = sum of row, a block a row
KERNEL(32, bug_row_sums, const float* in, float* out) {
  float s = warp_sum(in[blockIdx.x * 32 + threadIdx.x]);
  int row = (int)blockIdx.x;
  if (threadIdx.x == 0) {
    out[row] = s;
    if (planted("BLOCKS_MEET") && row) out[row - 1] += 0;  // the neighbour's element, with the value it has
  }
}
// through `nothing`, which a kernel with an optional argument may not touch
KERNEL(32, bug_optional, const float* in, const float* nothing, float* out) {
  float v = in[threadIdx.x];
  if (nothing || planted("NULL_POINTER")) v += f32_from_bits(ld_global_nc_32(nothing + threadIdx.x));
  out[threadIdx.x] = v;
}

static const int global_cases[] = {
    add_case("copy", [] {
      Random random(case_seed);
      const int n = 100;
      std::vector<float> v = random.normals(n);
      Guarded<float> in(v, "in"), out(n, "out");
      unsigned threads = planted("LAUNCH_BOUNDS") ? 64 : 32;
      launch(bug_copy, {1}, {threads}, 0, in.data(), out.data(), n);
      check_same_bits("out", out.data(), v.data(), sizeof(float) * n);
    }),
    add_case("double", [] {
      Random random(case_seed);
      const int n = 50;
      std::vector<float> v = random.normals(n);
      Guarded<float> in(v, "in"), out(n, "out");
      launch(bug_double, {2}, {32}, 0, in.data(), out.data(), n);
      for (int i = 0; i < n; i++) EXPECT(out[(size_t)i] == 2 * v[(size_t)i], "wrong at %d", i);
    }),
    add_case("row_sums", [] {
      Random random(case_seed);
      std::vector<float> v(320);
      for (float& x : v) x = (float)random.integer(1, 99);
      Guarded<float> in(v, "in"), out(10, "out");
      launch(bug_row_sums, {10}, {32}, 0, in.data(), out.data());
      for (int i = 0; i < 10; i++) EXPECT(out[(size_t)i] == sum_of(v, i * 32, 32), "row %d", i);
    }),
    add_case("optional", [] {
      Random random(case_seed);
      std::vector<float> v = random.normals(32);
      Guarded<float> in(v, "in"), out(32, "out");
      launch(bug_optional, {1}, {32}, 0, in.data(), nullptr, out.data());
      check_same_bits("out", out.data(), v.data(), 128);
    }),
};
