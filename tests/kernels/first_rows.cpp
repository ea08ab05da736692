// first_rows.cu: copies, so to the bit.
#include "../../kernels/first_rows.cu"
#include "common.h"

// NaN and all other patterns are copied as they are. A length of 0: a sequence that fills up, last of all.
static void copies(std::vector<int> lengths, int hidden, bool with_stats) {
  Random r(case_seed);
  const int batch = (int)lengths.size(), segments = (hidden + SEGMENT - 1) / SEGMENT;
  std::vector<int> cu = {0};
  for (int n : lengths) cu.push_back(cu.back() + n);
  const int tokens = cu.back();
  auto pattern = [&](size_t n) {
    std::vector<half_t> v(n);
    for (half_t& x : v) x = (half_t)r.bits();
    return v;
  };
  Guarded<half_t> x(pattern((size_t)tokens * hidden), "x", 16), y(pattern((size_t)tokens * hidden), "y");
  Guarded<float> stats(r.normals((size_t)tokens * segments * 2), "row_stats");
  Guarded<int> cu_seqlens(cu, "cu_seqlens");
  Guarded<half_t> x_out((size_t)batch * hidden, "x_out"), y_out((size_t)batch * hidden, "y_out", 16);
  Guarded<float> stats_out((size_t)batch * segments * 2, "stats_out");
  const unsigned turns = (unsigned)(hidden + FIRST_ROWS_COLUMNS - 1) / FIRST_ROWS_COLUMNS;
  launch(first_rows_f16, {(unsigned)batch, turns}, {FIRST_ROWS_THREADS}, 0, x.data(), y.data(), with_stats ? stats.data() : nullptr, cu_seqlens.data(),
         x_out.data(), y_out.data(), stats_out.data(), hidden);
  const std::vector<half_t> zeros(hidden, 0);
  const std::vector<float> no_stats(2 * segments, 0);
  for (int s = 0; s < batch; s++) {
    const size_t from = (size_t)cu[s] * hidden;
    check_same_bits("x", &x_out[(size_t)s * hidden], lengths[s] ? &x[from] : zeros.data(), hidden * 2);
    check_same_bits("y", &y_out[(size_t)s * hidden], lengths[s] ? &y[from] : zeros.data(), hidden * 2);
    if (with_stats)
      check_same_bits("statistics", &stats_out[(size_t)s * segments * 2], lengths[s] ? &stats[(size_t)cu[s] * segments * 2] : no_stats.data(), segments * 8);
  }
  if (!with_stats) EXPECT(std::isnan(stats_out[0]), "statistics were written though there are none");
}

int main(int argc, char** argv) {
  for (int hidden : {8, 64, 72, 384, 768, 1024, 1032, 8192}) add_case(format("first rows of %d", hidden), [=] { copies({3, 1, 20, 2}, hidden, true); }, QUICK);
  add_case("one sequence of one token", [] { copies({1}, 384, true); });
  add_case("sequences that fill up", [] { copies({5, 1, 0, 0}, 192, true); }, QUICK);
  add_case("no statistics", [] { copies({2, 7}, 384, false); }, QUICK);
  return run_cases(argc, argv);
}
