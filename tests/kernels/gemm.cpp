// Tests of kernels/gemm.cu, gemm_hopper.cu, gemm_few_rows.cu, epilogue.cuh and folded_layernorm.cu: every tile and dtype against f64, at ragged sizes, with
// every epilogue, split-K, real weights, and what is promised about bits. The tiles come from the kernels' own table.
#include "../../kernels/gemm.cu"
#include "../../kernels/gemm_hopper.cu"
#include "../../kernels/gemm_few_rows.cu"
#include "../../kernels/folded_layernorm.cu"
#include "common.h"
#include <algorithm>
#include <memory>

using GemmKernel = void (*)(const half_t*, const half_t*, half_t*, float*, int, int, int, Epilogue);
using HopperKernel = void (*)(const TensorMap&, const TensorMap&, const TensorMap&, const TensorMap&, int, int, int, Epilogue);
using FewRowsKernel = void (*)(const TensorMap&, const TensorMap&, half_t*, int, int, int, int, Epilogue);
struct TileRow {
  const char* name;
  int block_m, block_n, block_k, max_splits, cluster, threads, shared_bytes;
  // one pair of these
  GemmKernel f16 = nullptr, bf16 = nullptr;
  HopperKernel hopper_f16 = nullptr, hopper_bf16 = nullptr;
  FewRowsKernel few_rows_f16 = nullptr, few_rows_bf16 = nullptr;
  bool is_wgmma() const { return !f16; }
};
#define TILE_ROW(name, bm, bn, bk, stages, wm, wn, splits, threads, bytes) {#name, bm, bn, bk, splits, 1, threads, bytes, name##_f16, name##_bf16},
#define HOPPER_ROW(name, bm, bn, bk, stages, groups, cluster, threads, bytes) {#name, bm, bn, bk, 1, cluster, threads, bytes, nullptr, nullptr, name##_f16, name##_bf16},
#define FEW_ROWS_ROW(name, bm, bn, bk, stages, splits, threads, bytes) {#name, bm, bn, bk, splits, 1, threads, bytes, nullptr, nullptr, nullptr, nullptr, name##_f16, name##_bf16},
static const TileRow TILES[] = {GEMM_TILES(TILE_ROW) HOPPER_TILES(HOPPER_ROW) SWAPPED_TILES(FEW_ROWS_ROW)};

template <class T> static GemmKernel kernel_of(const TileRow& t) { return std::is_same<T, F16>::value ? t.f16 : t.bf16; }
template <class T> static HopperKernel hopper_kernel_of(const TileRow& t) { return std::is_same<T, F16>::value ? t.hopper_f16 : t.hopper_bf16; }
template <class T> static FewRowsKernel few_rows_kernel_of(const TileRow& t) { return std::is_same<T, F16>::value ? t.few_rows_f16 : t.few_rows_bf16; }
template <class T> static auto reduce_kernel() { return std::is_same<T, F16>::value ? splitk_reduce_f16 : splitk_reduce_bf16; }
template <class T> static auto from_stats_kernel() { return std::is_same<T, F16>::value ? layernorm_from_stats_f16 : layernorm_from_stats_bf16; }
static unsigned ceil_div(int a, int b) { return (unsigned)((a + b - 1) / b); }

// ---- references -----------------------------------------------------------------------------------------------------
static std::vector<float> narrow(const std::vector<double>& v) { return std::vector<float>(v.begin(), v.end()); }
static std::vector<double> magnitudes(std::vector<double> v) {
  for (double& x : v) x = fabs(x);
  return v;
}
static double exact_activation(int kind, double x) {
  switch (kind) {
    case ACT_GELU: return 0.5 * x * erfc(-x * M_SQRT1_2);
    case ACT_GELU_TANH: return 0.5 * x * (1 + tanh(sqrt(2 / M_PI) * (x + 0.044715 * x * x * x)));
    case ACT_QUICK_GELU: return x / (1 + exp(-1.702 * x));
    case ACT_RELU: return x > 0 ? x : 0;
    case ACT_SILU: return x / (1 + exp(-x));
    case ACT_TANH: return tanh(x);
    default: return x;
  }
}
struct Moments { double mean, rstd; };
static Moments moments(const double* row, int n, double eps) {
  double mean = 0, m2 = 0;
  for (int i = 0; i < n; i++) mean += row[i] / n;
  for (int i = 0; i < n; i++) m2 += (row[i] - mean) * (row[i] - mean);
  return {mean, 1 / sqrt(m2 / n + eps)};
}
static std::vector<double> layernorm(const std::vector<double>& y, int m, int n, const std::vector<double>& gamma, const std::vector<double>& beta, double eps) {
  std::vector<double> out(y.size());
  for (int r = 0; r < m; r++) {
    Moments s = moments(&y[(size_t)r * n], n, eps);
    for (int c = 0; c < n; c++) out[(size_t)r * n + c] = (y[(size_t)r * n + c] - s.mean) * s.rstd * gamma[c] + beta[c];
  }
  return out;
}
// mean and M2 of every 64 columns: what a producer's epilogue writes
static std::vector<float> segment_stats(const std::vector<double>& y, int m, int n) {
  std::vector<float> stats;
  for (int r = 0; r < m; r++)
    for (int c = 0; c < n; c += SEGMENT) {
      int count = std::min(SEGMENT, n - c);
      double mean = 0, m2 = 0;
      for (int i = 0; i < count; i++) mean += y[(size_t)r * n + c + i] / count;
      for (int i = 0; i < count; i++) m2 += pow(y[(size_t)r * n + c + i] - mean, 2);
      stats.push_back((float)mean);
      stats.push_back((float)m2);
    }
  return stats;
}
template <class T> static std::vector<double> rounded(std::vector<double> v) {
  for (double& x : v) x = round16<T>((float)x);
  return v;
}

// ---- a product and its operands ---------------------------------------------------------------------------------------
constexpr float EPS = 1e-5f;
struct Spec { const char* name; int activation; bool gated, bias, residual, stats; NormTarget norm; };
static const Spec SPECS[] = {
    {"plain", ACT_NONE, false, false, false, false, NORM_NONE},
    {"bias", ACT_NONE, false, true, false, false, NORM_NONE},
    {"gelu", ACT_GELU, false, true, false, false, NORM_NONE},
    {"gelu_tanh", ACT_GELU_TANH, false, true, false, false, NORM_NONE},
    {"quick_gelu", ACT_QUICK_GELU, false, true, false, false, NORM_NONE},
    {"relu", ACT_RELU, false, true, false, false, NORM_NONE},
    {"silu", ACT_SILU, false, true, false, false, NORM_NONE},
    {"tanh", ACT_TANH, false, true, false, false, NORM_NONE},
    {"geglu", ACT_GELU, true, true, false, false, NORM_NONE},
    {"geglu_tanh", ACT_GELU_TANH, true, false, false, false, NORM_NONE},
    {"swiglu", ACT_SILU, true, false, false, false, NORM_NONE},
    {"reglu", ACT_RELU, true, true, false, false, NORM_NONE},
    {"residual", ACT_NONE, false, true, true, false, NORM_NONE},
    {"residual_stats", ACT_NONE, false, true, true, true, NORM_NONE},
    {"gelu_residual", ACT_GELU, false, true, true, false, NORM_NONE},
    {"stats", ACT_NONE, false, false, false, true, NORM_NONE},
    {"norm_input", ACT_NONE, false, true, false, false, NORM_INPUT},
    {"norm_input_gelu", ACT_GELU, false, true, false, false, NORM_INPUT},
    {"norm_input_swiglu", ACT_SILU, true, true, false, false, NORM_INPUT},
    {"norm_input_residual_stats", ACT_NONE, false, true, true, true, NORM_INPUT},
    {"norm_residual_stats", ACT_NONE, false, true, true, true, NORM_RESIDUAL},
};
static const Spec& spec(const char* name) {
  for (const Spec& s : SPECS)
    if (!strcmp(s.name, name)) return s;
  FAIL("no epilogue '%s'", name);
}

template <class T> struct Problem {
  int m, n, k;
  std::vector<half_t> a, w, residual;
  std::vector<float> bias, gamma, beta, colsum, a_stats, residual_stats;
  std::vector<double> sums, magnitude;  // a w^T, and |a| |w|^T, which scales fp32's error
  std::vector<float> sums32;            // the naive version's

  Problem(int m, int n, int k, uint64_t seed) : m(m), n(n), k(k) {
    Random random(seed);
    for (int row = 0; row < m; row++) {  // one row in four is so small that a layernorm's epsilon counts
      float scale = row % 4 ? 1 : 0.004f;
      for (int i = 0; i < k; i++) a.push_back(T::from_f32(random.normal(scale, scale / 4)));
      for (int i = 0; i < n; i++) residual.push_back(T::from_f32(random.normal(1.5f * scale, scale / 2)));
    }
    w = random.normals16<T>((size_t)n * k, 1 / sqrtf((float)k));
    bias = random.normals(n, 0.5f);
    gamma = random.uniforms(n, 0.5f, 1.5f);
    beta = random.normals(n, 0.2f);
    finish();
  }
  Problem(int m, int n, int k, std::vector<half_t> a_, std::vector<half_t> w_, std::vector<float> bias_) : m(m), n(n), k(k), a(a_), w(w_), bias(bias_) {
    gamma.assign(n, 1);
    beta.assign(n, 0);
    residual.assign((size_t)m * n, 0);
    finish();
  }
  void finish() {
    std::vector<double> wide_a = widen16<T>(a), wide_w = widen16<T>(w);
    sums = product(wide_a, wide_w, m, n, k);
    magnitude = product(magnitudes(wide_a), magnitudes(wide_w), m, n, k);
    sums32 = product(narrow(wide_a), narrow(wide_w), m, n, k);
    for (int c = 0; c < n; c++) {
      double s = 0;
      for (int i = 0; i < k; i++) s += wide_w[(size_t)c * k + i];
      colsum.push_back((float)s);
    }
    a_stats = segment_stats(wide_a, m, k);
    residual_stats = segment_stats(widen16<T>(residual), m, n);
  }
  int columns(const Spec& s) const { return s.gated ? n / 2 : n; }
};

// Expected outputs of the first `m` rows; `slack` is what fp32 sums, statistics and approximate exponentials may add to
// half a unit in the last place.
struct Expected { std::vector<double> exact, naive, slack; };

template <class T> static Expected expected(const Problem<T>& p, int m, const Spec& s) {
  std::vector<double> sums = p.sums, scale = p.magnitude, residual = widen16<T>(p.residual), residual_naive = residual;
  std::vector<float> naive_sums = p.sums32;
  std::vector<double> ones_k(p.k, 1), zeros_k(p.k, 0), gamma = widen32(p.gamma), beta = widen32(p.beta);
  if (s.norm == NORM_INPUT) {
    std::vector<double> x = layernorm(widen16<T>(p.a), p.m, p.k, ones_k, zeros_k, EPS), w = widen16<T>(p.w);
    sums = product(x, w, p.m, p.n, p.k);
    naive_sums = product(narrow(rounded<T>(x)), narrow(w), p.m, p.n, p.k);
    for (int r = 0; r < p.m; r++) {
      Moments row = moments(&widen16<T>(&p.a[(size_t)r * p.k], p.k)[0], p.k, EPS);
      for (int c = 0; c < p.n; c++) scale[(size_t)r * p.n + c] = row.rstd * (scale[(size_t)r * p.n + c] + fabs(row.mean * p.colsum[c]));
    }
  }
  if (s.norm == NORM_RESIDUAL) {
    residual = layernorm(residual, p.m, p.n, gamma, beta, EPS);
    residual_naive = rounded<T>(residual);
  }
  Expected e;
  auto store = [](double x) { return (double)round16<T>((float)x); };
  auto add_bias = [&](double x, int c) { return s.bias ? x + p.bias[c] : x; };
  const double f32 = 0x1p-24;
  for (int r = 0; r < m; r++)
    for (int c = 0; c < p.columns(s); c++) {
      size_t i = (size_t)r * p.n + c;
      double exact, naive, slack;
      if (s.gated) {
        size_t g = (size_t)r * p.n + 2 * c;
        double gate = add_bias(sums[g], 2 * c), up = add_bias(sums[g + 1], 2 * c + 1);
        exact = exact_activation(s.activation, gate) * up;
        naive = store(store(exact_activation(s.activation, store(add_bias(store(naive_sums[g]), 2 * c)))) * store(add_bias(store(naive_sums[g + 1]), 2 * c + 1)));
        slack = 16 * f32 * (scale[g] * fabs(up) * 1.2 + scale[g + 1] * fabs(gate)) + 1e-5 * fabs(exact);
      } else {
        double x = add_bias(sums[i], c);
        exact = exact_activation(s.activation, x);
        naive = store(naive_sums[i]);
        if (s.bias) naive = store(add_bias(naive, c));
        if (s.activation) naive = store(exact_activation(s.activation, naive));
        slack = 16 * f32 * (scale[i] + fabs(x)) * 1.2 + (s.activation ? 1e-5 * fabs(exact) : 0);
        if (s.residual) {
          exact += residual[i];
          naive = store(naive + residual_naive[i]);
          slack += 16 * f32 * fabs(residual[i]);
        }
      }
      e.exact.push_back(exact);
      e.naive.push_back(naive);
      e.slack.push_back(slack);
    }
  return e;
}

// Sharper than the project's rule, which also holds: every single element is rounded once, from a value that fp32 got right.
template <class T> static void check_elements(const std::vector<double>& got, const Expected& e) {
  const double least = std::is_same<T, F16>::value ? 0x1p-25 : 0x1p-134;  // half the spacing of subnormals
  for (size_t i = 0; i < got.size(); i++) {
    double error = fabs(got[i] - e.exact[i]), limit = Element<T>::unit_roundoff * (fabs(e.exact[i]) + e.slack[i]) + e.slack[i] + least;
    EXPECT(error <= limit, "element %zu is off by %.4g, one rounding explains %.4g: got %.9g, exact %.9g", i, error, limit, got[i], e.exact[i]);
  }
}

struct Result { std::vector<half_t> c; std::vector<float> stats; };

// The first m rows of a problem through one tile. `residual_in_place` puts the residual into the output first; `blocks`: of a
// kernel whose blocks take as many tiles as there are, or clusters of them.
template <class T>
static Result run(const TileRow& tile, const Problem<T>& p, int first, int m, const Spec& s, int splits = 1, bool residual_in_place = false, unsigned blocks = 0) {
  auto rows16 = [&](const std::vector<half_t>& v, int width) { return std::vector<half_t>(v.begin() + (size_t)first * width, v.begin() + (size_t)(first + m) * width); };
  auto rows32 = [&](const std::vector<float>& v, int width) { return std::vector<float>(v.begin() + (size_t)first * width, v.begin() + (size_t)(first + m) * width); };
  const int segments = (int)ceil_div(p.n, SEGMENT), norm_columns = s.norm == NORM_INPUT ? p.k : p.n;
  const int norm_width = 2 * (int)ceil_div(norm_columns, SEGMENT);
  Guarded<half_t> a(rows16(p.a, p.k), "a"), w(p.w, "w"), residual(s.residual ? rows16(p.residual, p.n) : std::vector<half_t>(), "residual");
  Guarded<half_t> c((size_t)m * p.columns(s), "c");
  Guarded<float> bias(p.bias, "bias"), scale(s.norm == NORM_INPUT ? p.colsum : p.gamma, "norm_scale"), shift(p.beta, "norm_shift");
  Guarded<float> norm_stats(s.norm == NORM_NONE ? std::vector<float>() : rows32(s.norm == NORM_INPUT ? p.a_stats : p.residual_stats, norm_width), "norm_stats");
  Guarded<float> row_stats(s.stats ? (size_t)m * segments * 2 : 0, "row_stats"), partials(splits > 1 ? (size_t)splits * m * p.n : 0, "partials");
  Epilogue e = {};
  if (s.bias) e.bias = bias.data();
  if (s.residual) e.residual = residual.data();
  if (residual_in_place) {
    memcpy(c.data(), residual.data(), c.bytes());
    e.residual = c.data();
  }
  if (s.stats) e.row_stats = row_stats.data();
  e.norm_target = s.norm;
  if (s.norm != NORM_NONE) {
    e.norm_stats = norm_stats.data();
    e.norm_scale = scale.data();
    e.norm_shift = s.norm == NORM_RESIDUAL ? shift.data() : nullptr;
    e.norm_eps = EPS;
    e.norm_columns = norm_columns;
  }
  e.activation = s.activation;
  e.gated = s.gated;
  const unsigned tiles = ceil_div(m, tile.block_m) * ceil_div(p.n, tile.block_n);
  if (HopperKernel kernel = hopper_kernel_of<T>(tile)) {
    const int out_columns = p.columns(s);
    TensorMap map_a = tensor_map(a.data(), m, p.k, tile.block_m), map_w = tensor_map(w.data(), p.n, p.k, tile.block_n / tile.cluster);
    TensorMap map_c = tensor_map(c.data(), m, out_columns, 16, s.gated ? 32 : 64), map_residual = s.residual ? tensor_map(e.residual, m, p.n, 16) : map_c;
    const unsigned in_turn = ceil_div(m, tile.cluster * tile.block_m) * ceil_div(p.n, tile.block_n);
    if (!blocks) blocks = 1 + ((unsigned)m * 7 + (unsigned)p.n / 8) % in_turn;  // some have several tiles
    launch(kernel, {blocks * (unsigned)tile.cluster}, {(unsigned)tile.threads}, (size_t)tile.shared_bytes, std::ref(map_a), std::ref(map_w), std::ref(map_residual), std::ref(map_c), m, p.n, p.k, e);
    expect_no_bank_conflicts();
    return {c.values(), row_stats.values()};
  }
  if (FewRowsKernel kernel = few_rows_kernel_of<T>(tile)) {
    TensorMap map_a = tensor_map(a.data(), m, p.k, tile.block_m), map_w = tensor_map(w.data(), p.n, p.k, tile.block_n);
    launch_in_clusters(splits, kernel, {tiles * (unsigned)splits}, {(unsigned)tile.threads}, (size_t)tile.shared_bytes, std::ref(map_a), std::ref(map_w), c.data(), m, p.n, p.k, splits, e);
    expect_no_bank_conflicts();
    return {c.values(), row_stats.values()};
  }
  dim3e grid = {tiles, (unsigned)splits};
  launch(kernel_of<T>(tile), grid, {(unsigned)tile.threads}, (size_t)tile.shared_bytes, a.data(), w.data(), splits > 1 ? (half_t*)nullptr : c.data(),
         splits > 1 ? partials.data() : (float*)nullptr, m, p.n, p.k, e);
  expect_no_bank_conflicts();
  if (splits > 1)
    launch(reduce_kernel<T>(), {ceil_div(m * segments, REDUCE_THREADS / SEGMENT_LANES)}, {REDUCE_THREADS}, 0, partials.data(), c.data(), m, p.n, splits, e);
  return {c.values(), row_stats.values()};
}

template <class T> static void check_stats(const Result& got, int m, int n) {
  std::vector<double> stored = widen16<T>(got.c);
  std::vector<float> want = segment_stats(stored, m, n);
  EXPECT(want.size() == got.stats.size(), "%zu statistics, not %zu", got.stats.size(), want.size());
  const double top = largest(stored);
  for (size_t i = 0; i < want.size(); i += 2) {
    EXPECT(fabs(got.stats[i] - want[i]) <= 4e-7 * top, "mean %zu of a segment: got %.9g, want %.9g", i / 2, got.stats[i], want[i]);
    EXPECT(fabs(got.stats[i + 1] - want[i + 1]) <= 2e-6 * want[i + 1] + 1e-12, "M2 %zu of a segment: got %.9g, want %.9g", i / 2, got.stats[i + 1], want[i + 1]);
  }
}
template <class T> static void check(const TileRow& tile, const Problem<T>& p, int m, const Spec& s, int splits = 1, bool in_place = false, unsigned blocks = 0) {
  Expected want = expected(p, m, s);
  Result got = run(tile, p, 0, m, s, splits, in_place, blocks);
  std::vector<double> wide = widen16<T>(got.c);
  check_error("", wide, want.naive, want.exact, output_rounding<T>(want.exact));
  check_elements<T>(wide, want);
  if (s.stats) check_stats<T>(got, m, p.n);
}
static void same(const char* what, const Result& a, const Result& b) {
  EXPECT(a.c.size() == b.c.size() && a.stats.size() == b.stats.size(), "%s: sizes differ", what);
  check_same_bits(what, a.c.data(), b.c.data(), a.c.size() * 2);
  check_same_bits(what, a.stats.data(), b.stats.data(), a.stats.size() * 4);
}

// ---- cases -------------------------------------------------------------------------------------------------------------
// All row counts around the tiles' edges; n and k with tails.
template <class T> static void ragged_rows(const TileRow& tile) {
  Problem<T> p(200, 136, 72, case_seed);
  for (int m : {1, 15, 16, 17, 63, 64, 65, 127, 128, 129, 200}) {
    case_notes.clear();
    check(tile, p, m, spec("bias"));
  }
}
template <class T> static void ragged_columns(const TileRow& tile) {
  for (int n : {8, 56, 64, 72, 120, 128, 136, 248, 256, 264})
    for (int k : {8, 24, 64}) {
      case_notes.clear();
      check(tile, Problem<T>(18, n, k, case_seed + n), 18, spec(n % 16 ? "residual_stats" : "norm_residual_stats"));
    }
}
template <class T> static void ragged_depth(const TileRow& tile) {
  for (int k : {8, 16, 24, 32, 40, 56, 64, 72, 96, 104, 128, 136, 160, 192, 200, 256, 264, 320}) {
    case_notes.clear();
    check(tile, Problem<T>(20, 64, k, case_seed + k), 20, spec("norm_input"));
  }
}
template <class T> static void epilogue_case(const TileRow& tile, const Spec& s) {
  Problem<T> p(77, 208, 104, case_seed);
  check(tile, p, 77, s);
  if (s.residual) same("residual in place", run(tile, p, 0, 77, s), run(tile, p, 0, 77, s, 1, true));
}
template <class T> static void split_case(const TileRow& tile) {
  for (int k : {8 * tile.block_k, 5 * tile.block_k - 8}) {
    Problem<T> p(67, 144, k, case_seed + k);
    for (int splits : {2, 3, 5})
      for (const char* s : {"plain", "gelu", "geglu", "norm_input", "norm_residual_stats"}) {
        case_notes.clear();
        for (int m : {1, 16, 67}) check(tile, p, m, spec(s), splits);
      }
    // more blocks than pieces to share: the last ones add zeros
    check(tile, p, 20, spec("bias"), 8);
    same("residual in place, split", run(tile, p, 0, 67, spec("residual_stats"), 3), run(tile, p, 0, 67, spec("residual_stats"), 3, true));
  }
}
// Two runs; a row alone, in another place and in a batch; every tile that multiplies with the same instruction: the same bits, as
// long as k is not split.
template <class T> static void bits_case(int n, int k, bool wgmma) {
  Problem<T> p(140, n, k, case_seed);
  std::vector<TileRow> tiles;
  for (const TileRow& t : TILES)
    if (t.is_wgmma() == wgmma) tiles.push_back(t);
  for (const char* name : {"gelu", "norm_input_residual_stats", "norm_residual_stats"}) {
    const Spec& s = spec(name);
    Result first = run(tiles[0], p, 0, p.m, s);
    same("two runs", first, run(tiles[0], p, 0, p.m, s));
    for (const TileRow& tile : tiles) {
      same(tile.name, first, run(tile, p, 0, p.m, s));
      for (int row : {0, 9, 139}) {
        Result alone = run(tile, p, row, 1, s);
        check_same_bits("a row alone", alone.c.data(), &first.c[(size_t)row * n], (size_t)n * 2);
        check_same_bits("statistics of a row alone", alone.stats.data(), first.stats.data() + (size_t)row * (first.stats.size() / p.m), alone.stats.size() * 4);
      }
      if (tile.max_splits == 1) continue;
      Result split = run(tile, p, 0, p.m, s, 3), alone = run(tile, p, 9, 1, s, 3);
      same("two runs, split", split, run(tile, p, 0, p.m, s, 3));
      check_same_bits("a row alone, split", alone.c.data(), &split.c[(size_t)9 * n], (size_t)n * 2);
    }
  }
}
// Blocks of one to all tiles of a result: the ring goes on from tile to tile, boxes are used again. 168: three stages, no multiple
// of the ring's; 40: one.
template <class T> static void blocks_case(const TileRow& tile) {
  for (int k : {168, 40}) {
    Problem<T> p(270, 400, k, case_seed + k);
    for (unsigned blocks : {1, 2, 5}) {
      if (k == 40 && blocks > 1) continue;
      case_notes.clear();
      check(tile, p, p.m, spec("norm_residual_stats"), 1, false, blocks);
      check(tile, p, p.m, spec("geglu"), 1, false, blocks);
    }
  }
}
// What cannot be represented is Inf or NaN in its place and nowhere else.
template <class T> static void overflow_case(const TileRow& tile) {
  Problem<T> p(40, 72, 40, case_seed);
  const float huge = std::is_same<T, F16>::value ? 60000.0f : 3e38f;
  for (int i = 0; i < p.k; i++) {
    p.a[(size_t)5 * p.k + i] = T::from_f32(huge);
    p.w[(size_t)7 * p.k + i] = T::from_f32(i < 2 ? 1.0f : 0.0f);
  }
  p.a[(size_t)20 * p.k + 39] = 0x7FFF;  // NaN
  for (const char* name : {"plain", "gelu", "relu", "silu", "residual_stats"}) {
    Result r = run(tile, p, 0, p.m, spec(name));
    std::vector<double> c = widen16<T>(r.c);
    EXPECT(std::isinf(c[(size_t)5 * p.n + 7]) || (strcmp(name, "plain") && std::isnan(c[(size_t)5 * p.n + 7])), "%s: an overflow was stored as %g", name, c[(size_t)5 * p.n + 7]);
    for (int row = 0; row < p.m; row++)
      for (int j = 0; j < p.n; j++) {
        double x = c[(size_t)row * p.n + j];
        if (row == 20) EXPECT(std::isnan(x), "%s: NaN in a row of a became %g", name, x);
        else if (row != 5) EXPECT(std::isfinite(x), "%s: row %d is not finite though its inputs are", name, row);
      }
    if (r.stats.size()) EXPECT(!std::isfinite(r.stats[5 * 4]) && std::isnan(r.stats[20 * 4]) && std::isfinite(r.stats[6 * 4]), "statistics hide what is not finite");
  }
}
template <class T> static void shape_case(const TileRow& tile, int m, int n, int k, const char* s, int splits) {
  Problem<T> p(m, n, k, case_seed);
  check(tile, p, m, spec(s), splits);
}

// ---- folded layernorm -----------------------------------------------------------------------------------------------------
// LN(y) W^T + b, y with rows of mean `ratio` times their spread. Both ways store y in 16 bits first; the reference has it
// in f64 as it was summed.
template <class T> static void folded_accuracy(float ratio, double also_allowed) {
  const int m = 64, n = 192, k = 384;
  Random random(case_seed);
  std::vector<double> y(m * k);
  for (int r = 0; r < m; r++) {
    float spread = expf(random.normal(0.5f)), mean = ratio * spread * (random.unit() < 0.5 ? -1 : 1);
    for (int i = 0; i < k; i++) y[r * k + i] = random.normal(spread, mean);
  }
  std::vector<float> w = random.normals((size_t)n * k, 0.05f), gamma = random.uniforms(k, 0.5f, 1.5f), beta = random.normals(k, 0.2f), bias = random.normals(n, 0.2f);
  std::vector<double> dw = widen32(w), exact = product(layernorm(y, m, k, widen32(gamma), widen32(beta), EPS), dw, m, n, k);
  std::vector<double> y16 = rounded<T>(y), x16 = rounded<T>(layernorm(y16, m, k, widen32(gamma), widen32(beta), EPS));
  std::vector<float> sums32 = product(narrow(x16), narrow(rounded<T>(dw)), m, n, k);
  std::vector<double> stored_ln;
  for (int i = 0; i < m * n; i++) {
    exact[i] += bias[i % n];
    stored_ln.push_back(round16<T>(sums32[i] + bias[i % n]));
  }
  Folded<T> f(w, gamma, beta, bias);
  std::vector<half_t> y_bits;
  for (double v : y16) y_bits.push_back(T::from_f32((float)v));
  Problem<T> p(m, n, k, y_bits, f.w, f.bias);
  EXPECT(max_error(widen32(p.colsum), widen32(f.colsum)) < 1e-5, "colsum");
  p.colsum = f.colsum;
  std::vector<double> got = widen16<T>(run(TILES[2], p, 0, m, spec("norm_input")).c);
  check_error("", got, stored_ln, exact, also_allowed);
  NOTE("rms folded %.2e stored %.2e", rms_error(got, exact), rms_error(stored_ln, exact));
}

// ---- real weights -----------------------------------------------------------------------------------------------------------
// One layer of all-MiniLM-L6-v2 without its attention, from embeddings of real tokens: O projection + residual, FFN, in the
// folded form, against f64 and against 16-bit storage of every step.
struct RealLayer {
  std::vector<float> wo, bo, w1, b1, w2, b2, g1, n1, g2, n2;
  static std::vector<float> get(const std::string& name) { return Weights::get().tensor(name).values; }
  explicit RealLayer(int layer) {
    std::string at = "encoder.layer." + std::to_string(layer) + ".";
    wo = get(at + "attention.output.dense.weight"); bo = get(at + "attention.output.dense.bias");
    g1 = get(at + "attention.output.LayerNorm.weight"); n1 = get(at + "attention.output.LayerNorm.bias");
    w1 = get(at + "intermediate.dense.weight"); b1 = get(at + "intermediate.dense.bias");
    w2 = get(at + "output.dense.weight"); b2 = get(at + "output.dense.bias");
    g2 = get(at + "output.LayerNorm.weight"); n2 = get(at + "output.LayerNorm.bias");
  }
};
constexpr int REAL_HIDDEN = 384, REAL_FFN = 1536;
// [rows, 384]: word + position + type, normalised: what enters the first layer
static std::vector<double> real_embeddings(int rows) {
  std::vector<float> words = RealLayer::get("embeddings.word_embeddings.weight"), places = RealLayer::get("embeddings.position_embeddings.weight"),
                     types = RealLayer::get("embeddings.token_type_embeddings.weight");
  std::vector<double> x;
  Random random(5);
  for (int r = 0; r < rows; r++) {
    int id = r == 0 ? 101 : r + 1 == rows ? 102 : random.integer(1000, 12000);
    for (int c = 0; c < REAL_HIDDEN; c++) x.push_back((double)words[(size_t)id * REAL_HIDDEN + c] + places[(size_t)r * REAL_HIDDEN + c] + types[c]);
  }
  return layernorm(x, rows, REAL_HIDDEN, widen32(RealLayer::get("embeddings.LayerNorm.weight")), widen32(RealLayer::get("embeddings.LayerNorm.bias")), 1e-12);
}
template <class T> static std::vector<half_t> bits16(const std::vector<double>& v) {
  std::vector<half_t> out;
  for (double x : v) out.push_back(T::from_f32((float)x));
  return out;
}
template <class T> static std::vector<half_t> bits16(const std::vector<float>& v) { return bits16<T>(widen32(v)); }

template <class T> static void real_products(const TileRow& tile) {
  const int m = 48, h = REAL_HIDDEN;
  std::vector<half_t> x = bits16<T>(real_embeddings(m));
  RealLayer l(0);
  std::string at = "encoder.layer.0.attention.self.";
  Problem<T> q(m, h, h, x, bits16<T>(RealLayer::get(at + "query.weight")), RealLayer::get(at + "query.bias"));
  check(tile, q, m, spec("bias"));
  Problem<T> o(m, h, h, x, bits16<T>(l.wo), l.bo);
  o.residual = x;
  check(tile, o, m, spec("residual_stats"));
  Problem<T> up(m, REAL_FFN, h, x, bits16<T>(l.w1), l.b1);
  check(tile, up, m, spec("gelu"));
}
// act16(acc) chain in either precision: `store` rounds to 16 bits or does nothing
template <class Store> static std::vector<double> real_chain(const std::vector<double>& x, const RealLayer& l, int m, Store store, bool exact) {
  const int h = REAL_HIDDEN, f = REAL_FFN;
  auto linear = [&](const std::vector<double>& in, const std::vector<float>& w, const std::vector<float>& bias, int n, int k) {
    std::vector<double> ww = widen32(w), out;
    for (double& v : ww) v = store(v);
    if (exact) out = product(in, ww, m, n, k);
    else out = widen32(product(narrow(in), narrow(ww), m, n, k));
    for (size_t i = 0; i < out.size(); i++) out[i] = store(out[i] + bias[i % n]);
    return out;
  };
  auto add = [&](std::vector<double> a, const std::vector<double>& b) {
    for (size_t i = 0; i < a.size(); i++) a[i] = store(a[i] + b[i]);
    return a;
  };
  auto norm = [&](const std::vector<double>& y, const std::vector<float>& g, const std::vector<float>& b) {
    std::vector<double> z = layernorm(y, m, h, widen32(g), widen32(b), 1e-12);
    for (double& v : z) v = store(v);
    return z;
  };
  std::vector<double> z = norm(add(linear(x, l.wo, l.bo, h, h), x), l.g1, l.n1), u = linear(z, l.w1, l.b1, f, h);
  for (double& v : u) v = store(exact_activation(ACT_GELU, v));
  return norm(add(linear(u, l.w2, l.b2, h, f), z), l.g2, l.n2);
}
template <class T> static void real_folded_layer(int layer, int tile_index) {
  const int m = 48, h = REAL_HIDDEN, f = REAL_FFN, segments = h / SEGMENT;
  const TileRow& tile = TILES[tile_index];
  RealLayer l(layer);
  std::vector<half_t> x_bits = bits16<T>(real_embeddings(m));
  std::vector<double> x = widen16<T>(x_bits);
  Folded<T> up(l.w1, l.g1, l.n1, l.b1);
  Guarded<half_t> gx(x_bits, "x"), wo(bits16<T>(l.wo), "wo"), w1(up.w, "w1"), w2(bits16<T>(l.w2), "w2"), y1(m * h, "y1"), u(m * f, "u"), y2(m * h, "y2"), out(m * h, "out");
  Guarded<float> bo(l.bo, "bo"), b1(up.bias, "b1"), b2(l.b2, "b2"), g1(l.g1, "g1"), n1(l.n1, "n1"), g2(l.g2, "g2"), n2(l.n2, "n2"), colsum(up.colsum, "colsum");
  Guarded<float> s1(m * segments * 2, "stats1"), s2(m * segments * 2, "stats2");
  auto gemm = [&](const half_t* a, const half_t* w, half_t* c, int n, int k, Epilogue e) {
    launch(kernel_of<T>(tile), {ceil_div(m, tile.block_m) * ceil_div(n, tile.block_n)}, {(unsigned)tile.threads}, (size_t)tile.shared_bytes, a, w, c, (float*)nullptr, m, n, k, e);
  };
  Epilogue e = {};
  e.bias = bo.data(); e.residual = gx.data(); e.row_stats = s1.data();
  gemm(gx.data(), wo.data(), y1.data(), h, h, e);
  e = {};
  e.bias = b1.data(); e.norm_stats = s1.data(); e.norm_scale = colsum.data(); e.norm_eps = 1e-12f; e.norm_columns = h; e.norm_target = NORM_INPUT; e.activation = ACT_GELU;
  gemm(y1.data(), w1.data(), u.data(), f, h, e);
  e = {};
  e.bias = b2.data(); e.residual = y1.data(); e.row_stats = s2.data();
  e.norm_stats = s1.data(); e.norm_scale = g1.data(); e.norm_shift = n1.data(); e.norm_eps = 1e-12f; e.norm_columns = h; e.norm_target = NORM_RESIDUAL;
  gemm(u.data(), w2.data(), y2.data(), h, f, e);
  launch(from_stats_kernel<T>(), {ceil_div(m, FROM_STATS_WARPS)}, {32 * FROM_STATS_WARPS}, 0, y2.data(), s2.data(), g2.data(), n2.data(), out.data(), m, h, 1e-12f);
  std::vector<double> exact = real_chain(x, l, m, [](double v) { return v; }, true);
  std::vector<double> naive = real_chain(x, l, m, [](double v) { return (double)round16<T>((float)v); }, false);
  std::vector<double> got = widen16<T>(out);
  check_error("", got, naive, exact, output_rounding<T>(exact));
  NOTE("rms folded %.2e stored %.2e", rms_error(got, exact), rms_error(naive, exact));
}
// `spread`: at 0.003, epsilon is as large as the variance
template <class T> static void from_stats_case(int m, int n, float spread) {
  Random random(case_seed);
  std::vector<half_t> y = random.normals16<T>((size_t)m * n, spread, spread / 2);
  std::vector<float> gamma = random.uniforms(n, 0.5f, 1.5f), beta = random.normals(n, 0.3f);
  Guarded<half_t> gy(y, "y"), out((size_t)m * n, "out");
  Guarded<float> stats(segment_stats(widen16<T>(y), m, n), "stats"), g(gamma, "gamma"), b(beta, "beta");
  launch(from_stats_kernel<T>(), {ceil_div(m, FROM_STATS_WARPS)}, {32 * FROM_STATS_WARPS}, 0, gy.data(), stats.data(), g.data(), b.data(), out.data(), m, n, EPS);
  std::vector<double> exact = layernorm(widen16<T>(y), m, n, widen32(gamma), widen32(beta), EPS);
  check_error("", widen16<T>(out), rounded<T>(exact), exact, output_rounding<T>(exact) * 0.01);
}

// ---- registration -----------------------------------------------------------------------------------------------------------
template <class T> static void register_all() {
  const std::string dtype = Element<T>::name;
  for (const TileRow& tile : TILES) {
    const TileRow* t = &tile;
    std::string name = std::string(tile.name) + "_" + dtype + " ";
    add_case(name + "ragged rows", [t] { ragged_rows<T>(*t); });
    add_case(name + "ragged columns", [t] { ragged_columns<T>(*t); });
    add_case(name + "ragged depth", [t] { ragged_depth<T>(*t); });
    for (const Spec& s : SPECS) {
      const Spec* sp = &s;
      bool quick = !strcmp(s.name, "geglu") || !strcmp(s.name, "residual_stats");
      add_case(name + "epilogue " + s.name, [t, sp] { epilogue_case<T>(*t, *sp); }, quick ? QUICK : SLOW);
    }
    add_case(name + "overflow", [t] { overflow_case<T>(*t); });
    add_case(name + "real products", [t] { real_products<T>(*t); });
    if (hopper_kernel_of<T>(tile)) add_case(name + "blocks", [t] { blocks_case<T>(*t); }, QUICK);
    if (tile.max_splits > 1) add_case(name + "split-K", [t] { split_case<T>(*t); });
    add_case(name + "quick", [t] {
      Problem<T> p(70, 72, 168, case_seed);
      check(*t, p, 70, spec("norm_residual_stats"), t->max_splits > 1 ? 2 : 1);
      if (t->max_splits > 1) check(*t, p, 70, spec("norm_input_gelu"));
    }, QUICK);
  }
  for (bool wgmma : {false, true}) {
    const std::string name = std::string("bits_") + (wgmma ? "wgmma_" : "mma_") + dtype;
    add_case(name + " n=200 k=168", [wgmma] { bits_case<T>(200, 168, wgmma); });
    add_case(name + " n=264 k=384", [wgmma] { bits_case<T>(264, 384, wgmma); });
  }
  for (int tile : {0, 2, 4, 7, 9}) {
    struct Shape { int m, n, k; const char* spec; };
    for (Shape x : {Shape{130, 1152, 384, "norm_input"}, Shape{130, 384, 384, "norm_residual_stats"}, Shape{65, 1536, 384, "gelu"}, Shape{65, 384, 1536, "residual_stats"},
                    Shape{33, 2304, 768, "bias"}, Shape{33, 3072, 768, "gelu"}, Shape{33, 768, 3072, "residual_stats"}}) {
      int splits = tile == 4 && x.k > 1024 ? 4 : 1;
      add_case(format("%s_%s model shape m=%d n=%d k=%d splits=%d", TILES[tile].name, dtype.c_str(), x.m, x.n, x.k, splits),
               [tile, x, splits] { shape_case<T>(TILES[tile], x.m, x.n, x.k, x.spec, splits); });
    }
  }
  add_case("gemm_256x128x32_s4_" + dtype + " model shape m=257 n=1152 k=384", [] { shape_case<T>(TILES[1], 257, 1152, 384, "norm_input", 1); });
  add_case("gemm_64x128x32_s4_" + dtype + " model shape m=65 n=1024 k=4096", [] { shape_case<T>(TILES[3], 65, 1024, 4096, "residual_stats", 1); });
  add_case("gemm_16x64x64_s4_" + dtype + " model shape m=16 n=4096 k=1024 splits=4", [] { shape_case<T>(TILES[6], 16, 4096, 1024, "gelu", 4); });
  add_case("gemm_32x64x64_s4_" + dtype + " model shape m=20 n=1024 k=4096 splits=16", [] { shape_case<T>(TILES[5], 20, 1024, 4096, "residual_stats", 16); });
  for (int tile : {11, 12, 13})
    for (int splits : {1, 8}) {
      const TileRow* t = &TILES[tile];
      add_case(format("%s_%s model shape m=%d n=1024 k=4096 splits=%d", t->name, dtype.c_str(), t->block_m, splits), [t, splits] { shape_case<T>(*t, t->block_m, 1024, 4096, "norm_residual_stats", splits); });
    }
  for (int n : {8, 64, 72, 384, 768, 1024}) add_case(format("layernorm_from_stats_%s n=%d", dtype.c_str(), n), [n] { from_stats_case<T>(19, n, 2); from_stats_case<T>(19, n, 0.003f); }, n == 72 ? QUICK : SLOW);
  for (float ratio : {0.0f, 1.0f, 10.0f, 100.0f}) add_case(format("folded_layernorm_%s accuracy, mean %g x spread", dtype.c_str(), ratio), [ratio] { folded_accuracy<T>(ratio, 0); });
  for (int layer : {0, 5})
    for (int tile : {0, 4}) add_case(format("folded_layernorm_%s real layer %d on %s", dtype.c_str(), layer, TILES[tile].name), [layer, tile] { real_folded_layer<T>(layer, tile); });
}
int main(int argc, char** argv) {
  register_all<F16>();
  register_all<BF16>();
  return run_cases(argc, argv);
}
