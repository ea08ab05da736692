// pool.cu against f64.
#include "../../kernels/pool.cu"
#include "common.h"
#include <numeric>

template <class T> static constexpr bool is_f16 = std::is_same<T, F16>::value;

struct Batch {
  std::vector<int> cu_seqlens{0}, left_out;
  explicit Batch(const std::vector<int>& lengths) {
    for (int n : lengths) cu_seqlens.push_back(cu_seqlens.back() + n);
  }
  int size() const { return (int)cu_seqlens.size() - 1; }
  int total() const { return cu_seqlens.back(); }
  int length(int s) const { return cu_seqlens[s + 1] - cu_seqlens[s]; }
};
struct Request {
  int mode = POOL_MEAN;
  bool normalize = true, half_out = false;
  int block_columns = 0;  // 0: all of them in one block, rounded up
  int out_stride = 0, out_column = 0;
};
static int blocks_of(int hidden, const Request& q) { return q.block_columns ? (hidden + q.block_columns - 1) / q.block_columns : 1; }

template <class T>
static void run(const Request& q, const half_t* x, const int* cu_seqlens, const int* left_out, void* out, int* status, int batch, int hidden) {
  int columns = q.block_columns ? q.block_columns : (hidden + POOL_COLUMNS - 1) / POOL_COLUMNS * POOL_COLUMNS;
  launch(is_f16<T> ? pool_f16 : pool_bf16, {(unsigned)batch, (unsigned)blocks_of(hidden, q)}, {POOL_THREADS}, 16 * (size_t)columns, x, cu_seqlens,
         left_out, out, status, hidden, columns, q.mode, (int)q.normalize, (int)q.half_out, q.out_stride ? q.out_stride : hidden, q.out_column);
}

// The formula in f64; and how far fp32 sums of so many terms may be off (magnitude: the sum of |terms| over the divisor).
struct Pooled { std::vector<double> value, magnitude; };
static Pooled pool_f64(const std::vector<double>& x, int hidden, int first, int end, int skipped, int mode) {
  Pooled p{std::vector<double>(hidden, 0), std::vector<double>(hidden, 0)};
  int begin = first + skipped, n = end - begin;
  if (n <= 0) return p;
  if (mode == POOL_CLS) end = begin + 1;
  if (mode == POOL_LAST) begin = end - 1;
  double weights = 0;
  for (int t = begin; t < end; t++) weights += mode == POOL_WEIGHTED_MEAN ? t - first + 1 : mode == POOL_MAX ? 0 : 1;
  double divide_by = mode == POOL_MAX ? 1 : mode == POOL_MEAN_SQRT_LEN ? sqrt((double)n) : weights;
  for (int c = 0; c < hidden; c++) {
    double sum = mode == POOL_MAX ? -INFINITY : 0, magnitude = 0;
    for (int t = begin; t < end; t++) {
      double v = x[(size_t)t * hidden + c], w = mode == POOL_WEIGHTED_MEAN ? t - first + 1 : 1;
      sum = mode == POOL_MAX ? fmax(sum, v) : sum + w * v;
      magnitude += fabs(w * v);
    }
    p.value[c] = sum / divide_by;
    p.magnitude[c] = mode == POOL_MAX ? fabs(sum) : magnitude / divide_by;
  }
  return p;
}
static double l2(const std::vector<double>& v) {
  double s = 0;
  for (double x : v) s += x * x;
  return sqrt(s);
}

// Every mode against f64, alone, in slices of columns, twice.
template <class T>
static void matches_reference(const std::vector<int>& lengths, int hidden, Request q, bool with_left_out = false) {
  Random r(case_seed);
  Batch b(lengths);
  std::vector<int> left(b.size(), 0);
  if (with_left_out)
    for (int s = 0; s < b.size(); s++) left[s] = s % 3 == 2 ? b.length(s) - 1 : std::min(s + 1, b.length(s) - 1);
  std::vector<half_t> values = r.normals16<T>((size_t)b.total() * hidden, 0.5f, 0.1f);
  Guarded<half_t> x(values, "x", 16);
  Guarded<int> cu(b.cu_seqlens, "cu_seqlens"), left_out(left, "left_out"), status((size_t)b.size() * blocks_of(hidden, q), "status");
  Guarded<float> out((size_t)b.size() * hidden, "out", 32);
  const int* skip = with_left_out ? left_out.data() : nullptr;
  run<T>(q, x.data(), cu.data(), skip, out.data(), status.data(), b.size(), hidden);

  std::vector<double> wide = widen16<T>(values), got = widen32(out), exact, naive;
  for (int s = 0; s < b.size(); s++) {
    Pooled p = pool_f64(wide, hidden, b.cu_seqlens[s], b.cu_seqlens[s + 1], left[s], q.mode);
    double norm = q.normalize ? fmax(l2(p.value), 1e-12) : 1, naive_squares = 0;
    std::vector<float> rounded(hidden);
    for (int c = 0; c < hidden; c++) { rounded[c] = round16<T>((float)p.value[c]); naive_squares += (double)rounded[c] * rounded[c]; }
    double naive_norm = q.normalize ? sqrt(naive_squares) : 1;
    // fp32: n / 8 terms one after the other, three joins, a division; the norm adds its own few roundings
    double terms = (b.length(s) + 7) / 8 + 4 + (q.normalize ? 4 : 0), tolerance = terms * 0x1p-24;
    for (int c = 0; c < hidden; c++) {
      double want = p.value[c] / norm, allowed = (p.magnitude[c] / norm + (q.normalize ? fabs(want) : 0)) * tolerance + 1e-45;
      double off = fabs(got[(size_t)s * hidden + c] - want);
      EXPECT(off <= allowed, "sequence %d of %d tokens, column %d: got %.9g, exact %.9g: off by %.3g, allowed %.3g", s, b.length(s), c,
             got[(size_t)s * hidden + c], want, off, allowed);
      exact.push_back(want);
      naive.push_back(rounded[c] / naive_norm);
    }
  }
  check_error("", got, naive, exact, f32_rounding(exact, 4));
  expect_no_bank_conflicts();
  for (size_t i = 0; i < status.size(); i++) EXPECT(status[i] == 0, "status[%zu] is %d", i, status[i]);

  Guarded<float> again(out.size());
  run<T>(q, x.data(), cu.data(), skip, again.data(), nullptr, b.size(), hidden);
  check_same_bits("two runs", out.data(), again.data(), out.bytes());
  Guarded<float> alone(hidden);
  for (int s : {0, b.size() / 2, b.size() - 1}) {
    Guarded<int> only(std::vector<int>{0, b.length(s)});
    run<T>(q, x.data() + (size_t)b.cu_seqlens[s] * hidden, only.data(), with_left_out ? left_out.data() + s : nullptr, alone.data(), nullptr, 1, hidden);
    check_same_bits("a sequence alone", alone.data(), out.data() + (size_t)s * hidden, alone.bytes());
  }
  if (!q.normalize)
    for (int columns : {128, 256, 640}) {
      Request sliced = q;
      sliced.block_columns = columns;
      Guarded<float> slices(out.size());
      run<T>(sliced, x.data(), cu.data(), skip, slices.data(), nullptr, b.size(), hidden);
      check_same_bits("slices of columns", slices.data(), out.data(), out.bytes());
    }
}

// Modes side by side, each written to its columns, then normalised as one vector.
template <class T> static void modes_stand_side_by_side(bool half_out) {
  Random r(case_seed);
  const int hidden = 384, modes[] = {POOL_CLS, POOL_MEAN, POOL_MAX}, dim = 3 * hidden, stride = dim + 8;
  Batch b({5, 1, 40});
  std::vector<half_t> values = r.normals16<T>((size_t)b.total() * hidden);
  Guarded<half_t> x(values), final16((size_t)3 * dim);
  Guarded<int> cu(b.cu_seqlens), status(3);
  Guarded<float> pooled((size_t)3 * stride, "pooled"), final32((size_t)3 * dim);
  for (int m = 0; m < 3; m++) {
    Request q{modes[m], false};
    q.out_stride = stride;
    q.out_column = m * hidden;
    run<T>(q, x.data(), cu.data(), nullptr, pooled.data(), nullptr, 3, hidden);
  }
  for (int s = 0; s < 3; s++)
    for (int c = dim; c < stride; c++) EXPECT(std::isnan(pooled[(size_t)s * stride + c]), "a column beyond the modes was written");
  void* out = half_out ? (void*)final16.data() : (void*)final32.data();
  launch(is_f16<T> ? l2_normalize_f16 : l2_normalize_bf16, {1}, {128}, 0, pooled.data(), out, status.data(), 3, dim, stride, dim, (int)half_out);
  std::vector<double> wide = widen16<T>(values), exact, naive;
  for (int s = 0; s < 3; s++) {
    std::vector<double> row;
    for (int m : modes) {
      Pooled p = pool_f64(wide, hidden, b.cu_seqlens[s], b.cu_seqlens[s + 1], 0, m);
      row.insert(row.end(), p.value.begin(), p.value.end());
    }
    double norm = l2(row);
    for (double v : row) { exact.push_back(v / norm); naive.push_back(round16<T>((float)(v / norm))); }
    EXPECT(status[s] == 0, "status");
  }
  std::vector<double> got = half_out ? widen16<T>(final16) : widen32(final32);
  check_error("", got, naive, exact, f32_rounding(exact, 2));
  if (!half_out) EXPECT(max_error(got, exact) <= 16 * 0x1p-24, "f32 output off by %.3g", max_error(got, exact));
}

// One block per sequence with the norm, and pool then l2_normalize, are the same function of the same sums.
template <class T> static void both_normalisations_agree() {
  Random r(case_seed);
  for (int hidden : {8, 384, 1000}) {
    Batch b({3, 17});
    Guarded<half_t> x(r.normals16<T>((size_t)b.total() * hidden));
    Guarded<int> cu(b.cu_seqlens);
    Guarded<float> fused(2 * hidden), pooled(2 * hidden);
    run<T>({POOL_MEAN, true}, x.data(), cu.data(), nullptr, fused.data(), nullptr, 2, hidden);
    run<T>({POOL_MEAN, false}, x.data(), cu.data(), nullptr, pooled.data(), nullptr, 2, hidden);
    launch(is_f16<T> ? l2_normalize_f16 : l2_normalize_bf16, {1}, {128}, 0, pooled.data(), pooled.data(), nullptr, 2, hidden, hidden, hidden, 0);
    check_same_bits("fused and separate", fused.data(), pooled.data(), fused.bytes());
  }
}

// A NaN or an infinity anywhere in what is pooled is counted in its sequence's status, and changes no other sequence.
template <class T> static void bad_rows_are_named(int mode, bool normalize) {
  Random r(case_seed);
  const int hidden = 384;
  Batch b({1, 9, 33, 2, 70, 5});
  std::vector<half_t> values = r.normals16<T>((size_t)b.total() * hidden);
  Guarded<int> cu(b.cu_seqlens), status(6, "status"), clean_status(6);
  Guarded<float> clean(6 * hidden), out(6 * hidden);
  Request q{mode, normalize};
  {
    Guarded<half_t> x(values);
    run<T>(q, x.data(), cu.data(), nullptr, clean.data(), clean_status.data(), 6, hidden);
  }
  auto spoil = [&](int sequence, int token, int column, float v) {
    values[(size_t)(b.cu_seqlens[sequence] + token) * hidden + column] = T::from_f32(v);
  };
  bool first_only = mode == POOL_CLS, last_only = mode == POOL_LAST;
  spoil(1, first_only ? 0 : 8, 3, NAN);
  spoil(2, last_only ? 32 : 0, 380, INFINITY);
  spoil(4, first_only ? 0 : 69, 0, -INFINITY);
  if (!first_only && !last_only) { spoil(4, 13, 0, INFINITY); spoil(4, 13, 200, -INFINITY); }
  Guarded<half_t> x(values);
  run<T>(q, x.data(), cu.data(), nullptr, out.data(), status.data(), 6, hidden);
  for (int s = 0; s < 6; s++) {
    bool spoilt = s == 1 || s == 2 || s == 4;
    int lost = 0;
    for (int c = 0; c < hidden; c++) lost += !std::isfinite(out[s * hidden + c]);
    EXPECT(clean_status[s] == 0, "a clean sequence has status %d", clean_status[s]);
    EXPECT(status[s] == lost, "sequence %d: status %d, %d values are not finite", s, status[s], lost);
    EXPECT((lost > 0) == spoilt, "sequence %d: %d values are not finite", s, lost);
    if (spoilt && normalize) EXPECT(lost == hidden, "sequence %d: %d values of a normalised row are still numbers", s, hidden - lost);
    if (!spoilt) check_same_bits("a good sequence", &out[s * hidden], &clean[s * hidden], hidden * 4);
  }
}
// What does not fit: a 16-bit result beyond fp16, a norm beyond fp32.
static void overflow_is_reported() {
  const int hidden = 128, n = 16;
  Guarded<half_t> x(std::vector<half_t>(n * hidden, F16::from_f32(60000))), out(hidden);
  Guarded<int> cu(std::vector<int>{0, n}), status(1);
  Guarded<float> out32(hidden);
  run<F16>({POOL_MEAN_SQRT_LEN, false, true}, x.data(), cu.data(), nullptr, out.data(), status.data(), 1, hidden);
  EXPECT(status[0] == hidden && out[5] == 0x7c00, "fp16 overflow: status %d, value %04x", status[0], out[5]);
  run<F16>({POOL_MEAN_SQRT_LEN, false}, x.data(), cu.data(), nullptr, out32.data(), status.data(), 1, hidden);
  EXPECT(status[0] == 0 && out32[5] == 240000 - 240000 % 32 && fabsf(out32[5] - 240000) < 200, "f32: status %d, value %g", status[0], out32[5]);
  Guarded<half_t> huge(std::vector<half_t>(n * hidden, BF16::from_f32(1e30f)));
  run<BF16>({POOL_MEAN, true}, huge.data(), cu.data(), nullptr, out32.data(), status.data(), 1, hidden);
  EXPECT(status[0] == hidden && std::isnan(out32[0]) && std::isnan(out32[hidden - 1]), "norm beyond fp32: status %d, value %g", status[0], out32[0]);
}
static void nothing_left_gives_zeros() {
  Random r(case_seed);
  const int hidden = 136;
  Batch b({4, 7, 3});
  Guarded<half_t> x(r.normals16<F16>((size_t)b.total() * hidden));
  Guarded<int> cu(b.cu_seqlens), left(std::vector<int>{4, 2, 100}), status(3);
  for (int mode = POOL_MEAN; mode <= POOL_LAST; mode++)
    for (bool normalize : {false, true}) {
      Guarded<float> out(3 * hidden);
      run<F16>({mode, normalize}, x.data(), cu.data(), left.data(), out.data(), status.data(), 3, hidden);
      for (int s : {0, 2})
        for (int c = 0; c < hidden; c++) EXPECT(out[s * hidden + c] == 0 && status[s] == 0, "mode %d: %g", mode, out[s * hidden + c]);
      EXPECT(out[hidden] != 0, "mode %d: a sequence with tokens left is zeros", mode);
    }
}
static void tiny_vectors_are_divided_by_the_floor() {  // |x| below 1e-12: as in torch.nn.functional.normalize
  const int hidden = 8;
  Guarded<half_t> x(std::vector<half_t>(hidden, BF16::from_f32(0x1p-60f)));
  Guarded<int> cu(std::vector<int>{0, 1});
  Guarded<float> out(hidden);
  run<BF16>({POOL_MEAN, true}, x.data(), cu.data(), nullptr, out.data(), nullptr, 1, hidden);
  EXPECT(out[0] == 0x1p-60f / 1e-12f, "%g", out[0]);
}
// cls with 16-bit output: the first rows, bit for bit.
template <class T> static void first_rows_are_gathered() {
  Random r(case_seed);
  const int hidden = 768;
  Batch b({3, 1, 20, 2});
  std::vector<half_t> values = r.normals16<T>((size_t)b.total() * hidden);
  Guarded<half_t> x(values), out(4 * hidden);
  Guarded<int> cu(b.cu_seqlens);
  run<T>({POOL_CLS, false, true}, x.data(), cu.data(), nullptr, out.data(), nullptr, 4, hidden);
  for (int s = 0; s < 4; s++) check_same_bits("first row", &out[s * hidden], &values[(size_t)b.cu_seqlens[s] * hidden], hidden * 2);
}

template <class T> static void add_cases() {
  const std::vector<int> ragged = {1, 15, 16, 17, 7, 8, 9, 31, 32, 33, 63, 64, 65, 127, 128, 129, 511, 512}, few = {5, 1, 40};
  std::vector<int> long_among_short(40, 3);
  long_among_short[17] = 2000;
  const char *t = Element<T>::name, *names[] = {"mean", "cls", "max", "mean_sqrt_len", "weighted_mean", "last"};
  for (int mode = POOL_MEAN; mode <= POOL_LAST; mode++) {
    for (bool normalize : {false, true}) {
      const char* n = normalize ? " normalised" : "";
      add_case(format("%s %s%s, ragged, 384", t, names[mode], n), [=] { matches_reference<T>(ragged, 384, {mode, normalize}); });
      add_case(format("%s %s%s, one long among many short, 384", t, names[mode], n), [=] { matches_reference<T>(long_among_short, 384, {mode, normalize}); });
      add_case(format("%s %s%s, leading tokens left out", t, names[mode], n), [=] { matches_reference<T>({6, 20, 33, 2, 70, 5}, 384, {mode, normalize}, true); });
      add_case(format("%s %s%s, a bad row is named", t, names[mode], n), [=] { bad_rows_are_named<T>(mode, normalize); }, normalize ? QUICK : SLOW);
    }
    for (int hidden : {8, 120, 128, 136, 768, 1024, 1032, 2048})
      add_case(format("%s %s, %d", t, names[mode], hidden), [=] { matches_reference<T>(few, hidden, {mode, true}); }, hidden == 136 ? QUICK : SLOW);
    add_case(format("%s %s, 4096 in slices", t, names[mode]), [=] { Request q{mode, false}; q.block_columns = 1024; matches_reference<T>(few, 4096, q); });
  }
  add_case(format("%s mean of 16384 tokens", t), [=] { matches_reference<T>({16384}, 384, {POOL_MEAN, false}); });
  add_case(format("%s weighted mean of 16384 tokens", t), [=] { matches_reference<T>({16384}, 128, {POOL_WEIGHTED_MEAN, true}); });
  add_case(format("%s modes side by side", t), [] { modes_stand_side_by_side<T>(false); }, QUICK);
  add_case(format("%s modes side by side, 16-bit result", t), [] { modes_stand_side_by_side<T>(true); });
  add_case(format("%s fused and separate normalisation", t), both_normalisations_agree<T>);
  add_case(format("%s first rows gathered", t), first_rows_are_gathered<T>);
}

int main(int argc, char** argv) {
  add_cases<F16>();
  add_cases<BF16>();
  add_case("overflow is reported", overflow_is_reported);
  add_case("no token left", nothing_left_gives_zeros, QUICK);
  add_case("norms below 1e-12", tiny_vectors_are_divided_by_the_floor);
  return run_cases(argc, argv);
}
