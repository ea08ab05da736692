// Blocks that run at once and meet at a barrier of the whole grid (kernels/grid_barrier.cuh), written out so that each part can be
// wrong by itself.
#include "../../../kernels/grid_barrier.cuh"

constexpr int GRID_BLOCKS = 4, GRID_THREADS = 64, GRID_ROUNDS = 3;

DEV void grid_arrive(GridBarrier& b, int block) {
  if (!planted("GRID_ARRIVES_EARLY")) sync_block();  // the other warp may still be writing
  b.arrivals++;
  if (threadIdx.x == 0) emu::store_word(b.words + block, b.arrivals, !planted("GRID_NO_RELEASE"), emu::Loc::here());
}
DEV void grid_wait(const GridBarrier& b) {
  const uint32_t count = b.arrivals - (planted("GRID_LAST_GENERATION") ? 1 : 0);
  if (threadIdx.x < GRID_BLOCKS) emu::wait_for_word(b.words + threadIdx.x, count, !planted("GRID_NO_ACQUIRE"), emu::Loc::here());
  if (!planted("GRID_NO_SYNC_BEHIND")) sync_block();  // only some threads have waited
}
DEV void bug_cluster_arrive() { if (!planted("CLUSTER_WAITS_ALONE")) emu::cluster_arrive(!planted("CLUSTER_NO_RELEASE"), emu::Loc::here()); }
DEV void bug_cluster_wait() { if (!planted("CLUSTER_NO_WAIT")) emu::cluster_wait(!planted("CLUSTER_NO_ACQUIRE"), emu::Loc::here()); }
// Rounds of: each block writes its part of x [GRID_BLOCKS, GRID_THREADS] from what it makes of all parts. out: the sum of all at the
// end, by block 0, in the order of the blocks.
template <class A, class W> DEV void bug_rounds(int block, float* x, float* y, float* out, A arrive, W wait) {
  const int thread = (int)threadIdx.x;
  for (int round = 0; round < GRID_ROUNDS; round++) {
    float v = (float)(block * 10 + thread + round);
    float *to = round % 2 ? y : x, *from = round % 2 ? x : y;
    if (round)
      for (int other = 0; other < GRID_BLOCKS; other++) v += 0.25f * f32_from_bits(ld_global_128(from + (other * GRID_THREADS + thread / 4 * 4)).x);
    if (thread % 4 == 0) st_global_128(to + block * GRID_THREADS + thread, u128{f32_bits(v), f32_bits(v), f32_bits(v), f32_bits(v)});
    if (planted("GRID_NO_BARRIER") && round == 1) continue;
    arrive();
    wait();
  }
  if (block || thread) return;
  float sum = 0;
  for (int i = 0; i < GRID_BLOCKS; i++) sum += f32_from_bits(ld_global_128(x + i * GRID_THREADS).x) * 1.1f;
  st_global_32(out, f32_bits(sum));
}
KERNEL_COOPERATIVE(GRID_THREADS, bug_grid, float* x, float* y, float* out, uint32_t* words) {
  const int block = (int)blockIdx.x;
  if (planted("GRID_BLOCK_LOST") && block == 2) return;
  GridBarrier b = grid_barrier(words);
  if (planted("GRID_FROM_ZERO")) b.arrivals = 0;  // as if the words had been set back
  sync_block();
  bug_rounds(block, x, y, out, [&] { grid_arrive(b, block); }, [&] { grid_wait(b); });
}
// The same by the blocks of each of several clusters, whose barrier is the hardware's; x and y [clusters, GRID_BLOCKS, GRID_THREADS], out [clusters].
KERNEL_CLUSTER(GRID_THREADS, GRID_BLOCKS, bug_cluster_rounds, float* x, float* y, float* out) {
  if (planted("CLUSTER_BLOCK_LOST") && blockIdx.x == 2) return;
  const int cluster = (int)blockIdx.x / GRID_BLOCKS, first = cluster * GRID_BLOCKS * GRID_THREADS;
  // the first one's, with the values that it has there
  bug_rounds((int)cluster_rank(), x + (planted("CLUSTERS_MEET") ? 0 : first), y + first, out + cluster, bug_cluster_arrive, bug_cluster_wait);
}
// A sum over blocks, of parts so unlike that its order shows in its bits.
KERNEL_COOPERATIVE(32, bug_grid_sum, float* parts, float* out, uint32_t* words) {
  const int block = (int)blockIdx.x;
  if (threadIdx.x == 0) {
    st_global_32(parts + block, f32_bits(block % 2 ? 1e8f : -1e8f + (float)(block * 3)));
    st_release_global(words + block, 1);
  }
  if (block || threadIdx.x) return;
  float sum = 0;
  bool added[GRID_BLOCKS] = {};
  for (int n = 0; n < GRID_BLOCKS; n++) {
    int next = n;
    if (planted("GRID_SUM_IN_ARRIVAL_ORDER"))  // the first that is there and was not
      for (next = n == 0 ? 0 : -1; next < 0;) {
        for (int i = 0; i < GRID_BLOCKS && next < 0; i++)
          if (!added[i] && ld_acquire_global(words + i)) next = i;
        if (next < 0)
          for (int i = 0; i < GRID_BLOCKS; i++)
            if (!added[i]) { wait_global(words + i, 1); break; }
      }
    else wait_global(words + next, 1);
    added[next] = true;
    sum += f32_from_bits(ld_global_nc_32(parts + next));
  }
  st_global_32(out, f32_bits(sum));
}

static const int grid_cases[] = {
    add_case("grid/barrier", [] {
      Guarded<uint32_t> words(GRID_BLOCKS, "words");
      memset(words.data(), 0, words.bytes());
      float first = 0;
      for (int launches = 1; launches <= 3; launches++) {
        const unsigned teams = launches < 3 ? 1 : 2;  // the grid, or clusters
        Guarded<float> x(teams * GRID_BLOCKS * GRID_THREADS, "x"), y(x.size(), "y"), out(teams, "out");
        if (launches < 3) launch(bug_grid, {GRID_BLOCKS}, {GRID_THREADS}, 0, x.data(), y.data(), out.data(), words.data());
        else launch(bug_cluster_rounds, {teams * GRID_BLOCKS}, {GRID_THREADS}, 0, x.data(), y.data(), out.data());
        float v[GRID_ROUNDS][GRID_BLOCKS];
        for (int round = 0; round < GRID_ROUNDS; round++)
          for (int b = 0; b < GRID_BLOCKS; b++) {
            v[round][b] = (float)(b * 10 + round);
            for (int other = 0; round && other < GRID_BLOCKS; other++) v[round][b] += 0.25f * v[round - 1][other];
          }
        float sum = 0;
        for (float last : v[GRID_ROUNDS - 1]) sum += last * 1.1f;
        if (launches == 1) first = out[0];
        for (unsigned team = 0; team < teams; team++) {
          EXPECT(out[team] == sum, "got %g, wanted %g", out[team], sum);
          check_same_bits("another launch", &out[team], &first, 4);
        }
      }
    }),
    add_case("grid/sum", [] {
      const emu::Options before = emu::opt;
      std::vector<float> sums;
      emu::opt.order = emu::SHUFFLE;
      try {
        for (unsigned seed = 1; seed <= 100; seed++) {
          emu::opt.seed = seed;
          Guarded<uint32_t> words(GRID_BLOCKS, "words");
          memset(words.data(), 0, words.bytes());
          Guarded<float> parts(GRID_BLOCKS, "parts"), out(1, "out");
          launch(bug_grid_sum, {GRID_BLOCKS}, {32}, 0, parts.data(), out.data(), words.data());
          sums.push_back(out[0]);
        }
      } catch (...) { emu::opt = before; throw; }
      emu::opt = before;
      for (float sum : sums) EXPECT(!memcmp(&sum, &sums[0], 4), "an interleaving gives %g, another %g", sum, sums[0]);
    }),
};
