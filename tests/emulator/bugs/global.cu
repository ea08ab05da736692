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
// out[i] = in[i] + in[31 - i], of which each word may be read once, and written once
KERNEL(32, bug_once, const float* in, float* out, float* scratch) {
  const int i = (int)threadIdx.x;
  const uint32_t own = ld_global_nc_32(in + i);
  st_global_32(scratch + i, own);
  sync_warp();
  const uint32_t other = ld_global_nc_32((planted("READS_TWICE") ? in : scratch) + 31 - i);
  if (planted("WRITES_TWICE")) st_global_32(out + i, own);
  st_global_32(out + i, f32_bits(f32_from_bits(own) + f32_from_bits(other)));
}
// the second of two launches, of which the first may still be running: t = 2 t, in place
KERNEL(32, bug_dependent, float* t, const float* scale) {
  float factor = f32_from_bits(ld_global_nc_32(scale));  // nobody writes it: may be read early
  float* mine = t + threadIdx.x * 4;
  if (planted("STORE_BEFORE_GRIDDEP_WAIT")) st_global_32(mine, ld_global_nc_32(scale));
  u128 v{};
  if (planted("LOAD_BEFORE_GRIDDEP_WAIT")) v = ld_global_128(mine);
  if (!planted("NO_GRIDDEP_WAIT")) griddep_wait();
  if (!planted("LOAD_BEFORE_GRIDDEP_WAIT")) v = ld_global_128(mine);
  auto twice = [&](uint32_t bits) { return f32_bits(f32_from_bits(bits) * factor); };
  st_global_128(mine, u128{twice(v.x), twice(v.y), twice(v.z), twice(v.w)});
  griddep_launch();
}

static const int global_cases[] = {
    add_case("global/once", [] {
      std::vector<float> v(32);
      for (size_t i = 0; i < v.size(); i++) v[i] = (float)(i * i);
      Guarded<float> in(v, "in"), out(32, "out"), scratch(32, "scratch");
      in.read_once();
      out.write_once();
      for (int launches = 0; launches < 2; launches++) launch(bug_once, {1}, {32}, 0, in.data(), out.data(), scratch.data());
      for (size_t i = 0; i < 32; i++) EXPECT(out[i] == v[i] + v[31 - i], "got %g at %zu", out[i], i);
    }),
    add_case("global/dependent", [] {
      std::vector<float> v(128);
      for (size_t i = 0; i < v.size(); i++) v[i] = (float)i;
      Guarded<float> t(128, "t"), scale(std::vector<float>{2}, "scale"), in(v, "in");
      launch(bug_copy, {1}, {32}, 0, (float*)in.data(), t.data(), 128);
      emu::opt.must_wait = true;
      try { launch(bug_dependent, {1}, {32}, 0, t.data(), scale.data()); }
      catch (...) { emu::opt.must_wait = false; throw; }
      emu::opt.must_wait = false;
      if (!planted("STORE_BEFORE_GRIDDEP_WAIT"))
        for (size_t i = 0; i < 128; i++) EXPECT(t[i] == 2 * (float)i, "wrong at %zu", i);
    }),
    add_case("global/copy", [] {
      Random random(case_seed);
      const int n = 100;
      std::vector<float> v = random.normals(n);
      Guarded<float> in(v, "in"), out(n, "out");
      unsigned threads = planted("LAUNCH_BOUNDS") ? 64 : 32;
      launch(bug_copy, {1}, {threads}, 0, in.data(), out.data(), n);
      check_same_bits("out", out.data(), v.data(), sizeof(float) * n);
    }),
    add_case("global/double", [] {
      Random random(case_seed);
      const int n = 50;
      std::vector<float> v = random.normals(n);
      Guarded<float> in(v, "in"), out(n, "out");
      launch(bug_double, {2}, {32}, 0, in.data(), out.data(), n);
      for (int i = 0; i < n; i++) EXPECT(out[(size_t)i] == 2 * v[(size_t)i], "wrong at %d", i);
    }),
    add_case("global/row_sums", [] {
      Random random(case_seed);
      std::vector<float> v(320);
      for (float& x : v) x = (float)random.integer(1, 99);
      Guarded<float> in(v, "in"), out(10, "out");
      launch(bug_row_sums, {10}, {32}, 0, in.data(), out.data());
      for (int i = 0; i < 10; i++) EXPECT(out[(size_t)i] == sum_of(v, i * 32, 32), "row %d", i);
    }),
    add_case("global/optional", [] {
      Random random(case_seed);
      std::vector<float> v = random.normals(32);
      Guarded<float> in(v, "in"), out(32, "out");
      launch(bug_optional, {1}, {32}, 0, in.data(), nullptr, out.data());
      check_same_bits("out", out.data(), v.data(), 128);
    }),
};
