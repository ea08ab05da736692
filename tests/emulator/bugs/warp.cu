// Warp collectives: shuffles, masks, sync_warp.

// out[i] = sum of the warp's values; block of 32
KERNEL(32, bug_warp_sum, const float* in, float* out) {
  float v = in[threadIdx.x], s = v;
  if (planted("SHUFFLE_IN_BRANCH")) {
    if (threadIdx.x < 16) s = warp_sum(v);
    else s = shfl_xor(v, 1);
  } else if (planted("LANES_LEFT_EARLY")) {
    if (threadIdx.x >= 24) return;
    s = warp_sum(v);
  } else {
    s = warp_sum(v);
  }
  out[threadIdx.x] = s;
}
// out[i] = sum over the half-warp of i
KERNEL(32, bug_half_sums, const float* in, float* out) {
  const uint32_t half = threadIdx.x < 16 ? 0x0000ffffu : 0xffff0000u;
  float s = in[threadIdx.x];
  for (int o = planted("SHUFFLE_ACROSS_MASK") ? 16 : 8; o; o >>= 1) s += shfl_xor_mask(half, s, o);
  if (planted("OTHER_HALFS_MASK")) s += shfl_xor_mask(~half, s, 1);
  out[threadIdx.x] = s;
}
// the half-warps take turns: each only names itself
KERNEL(32, bug_one_half, const float* in, float* out) {
  float s = in[threadIdx.x];
  if (threadIdx.x < 16) s += planted("FULL_MASK_IN_BRANCH") ? shfl_xor(s, 1) : shfl_xor_mask(0x0000ffffu, s, 1);
  out[threadIdx.x] = s;
}
// out[i] = in[next lane], through shared memory
KERNEL(32, bug_neighbour, const float* in, float* out) {
  SMEM_ARRAY(float, slot, 32);
  slot[threadIdx.x] = in[threadIdx.x];
  if (!planted("NO_SYNC_WARP")) sync_warp();
  out[threadIdx.x] = slot[(threadIdx.x + 1) % 32];
}
// the same with the previous lane, which has already stored when lanes run in ascending order
KERNEL(32, bug_previous, const float* in, float* out) {
  SMEM_ARRAY(float, slot, 32);
  slot[threadIdx.x] = in[threadIdx.x];
  if (!planted("NO_SYNC_WARP_BEHIND")) sync_warp();
  out[threadIdx.x] = slot[threadIdx.x ? threadIdx.x - 1 : 0];
}

static void run_warp_kernel(void (*kernel)(const float*, float*), float (*expected)(const std::vector<float>&, int)) {
  Random random(case_seed);
  std::vector<float> v(32);
  for (float& x : v) x = (float)random.integer(1, 99);
  Guarded<float> in(v, "in"), out(32, "out");
  launch(kernel, {1}, {32}, 0, in.data(), out.data());
  for (int i = 0; i < 32; i++) EXPECT(out[(size_t)i] == expected(v, i), "lane %d: got %g, expected %g", i, out[(size_t)i], expected(v, i));
}
static float sum_of(const std::vector<float>& v, int from, int n) {
  float s = 0;
  for (int i = from; i < from + n; i++) s += v[(size_t)i];
  return s;
}
static const int warp_cases[] = {
    add_case("warp/sum", [] { run_warp_kernel(bug_warp_sum, [](const std::vector<float>& v, int) { return sum_of(v, 0, 32); }); }),
    add_case("warp/half_sums", [] { run_warp_kernel(bug_half_sums, [](const std::vector<float>& v, int i) { return sum_of(v, i / 16 * 16, 16); }); }),
    add_case("warp/one_half", [] { run_warp_kernel(bug_one_half, [](const std::vector<float>& v, int i) { return v[(size_t)i] + (i < 16 ? v[(size_t)i ^ 1] : 0); }); }),
    add_case("warp/neighbour", [] { run_warp_kernel(bug_neighbour, [](const std::vector<float>& v, int i) { return v[((size_t)i + 1) % 32]; }); }),
    add_case("warp/previous", [] { run_warp_kernel(bug_previous, [](const std::vector<float>& v, int i) { return v[i ? (size_t)i - 1 : 0]; }); }),
};
