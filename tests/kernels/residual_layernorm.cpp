// residual_layernorm.cu against f64.
#include "../../kernels/residual_layernorm.cu"
#include "layernorm_reference.h"

typedef void (*Kernel)(const half_t*, const half_t*, const float*, const float*, half_t*, int, int, int, int, float, int);
struct Variant { int widest, rows_a_block, threads; Kernel f16, bf16; };
static const Variant variants[] = {
    {512, 4, ROW_THREADS, residual_layernorm_h512_f16, residual_layernorm_h512_bf16},
    {1024, 4, ROW_THREADS, residual_layernorm_h1024_f16, residual_layernorm_h1024_bf16},
    {8192, 1, WIDE_ROW_THREADS, residual_layernorm_h8192_f16, residual_layernorm_h8192_bf16},
};
static const Variant& narrowest(int hidden) {
  for (auto& v : variants)
    if (hidden <= v.widest) return v;
  FAIL("no variant for hidden %d", hidden);
}
template <class T>
static void run(const Variant& v, const half_t* x, const half_t* residual, const float* gamma, const float* beta, half_t* out, int rows,
                int hidden, const NormSpec& s) {
  launch(std::is_same<T, F16>::value ? v.f16 : v.bf16, {(unsigned)((rows + v.rows_a_block - 1) / v.rows_a_block)}, {(unsigned)v.threads}, 0, x,
         residual, s.gamma ? gamma : nullptr, s.beta ? beta : nullptr, out, rows, hidden, 1, hidden, s.eps, (int)s.kind);
}

struct Inputs {
  std::vector<half_t> x, residual;
  std::vector<float> gamma, beta;
  template <class T> static Inputs make(int rows, int hidden, Random& r) {
    return {r.normals16<T>((size_t)rows * hidden, 1.5f, 0.3f), r.normals16<T>((size_t)rows * hidden, 1), r.normals(hidden, 0.3f, 1),
            r.normals(hidden, 0.2f)};
  }
};

template <class T> static void matches_reference(int rows, int hidden, NormSpec spec, bool with_residual, const Variant& v) {
  Random r(case_seed);
  Inputs in = Inputs::make<T>(rows, hidden, r);
  Guarded<half_t> x(in.x, "x", 16), residual(in.residual, "residual"), out((size_t)rows * hidden, "out", 32);
  Guarded<float> gamma(in.gamma, "gamma"), beta(in.beta, "beta", 16);
  const half_t* second = with_residual ? residual.data() : nullptr;
  run<T>(v, x.data(), second, gamma.data(), beta.data(), out.data(), rows, hidden, spec);
  std::vector<double> a = widen16<T>(x), b = widen16<T>(residual), got = widen16<T>(out);
  References ref = layernorm_references<T>({&a, with_residual ? &b : nullptr}, rows, in.gamma, in.beta, spec);
  check_error("", got, ref.naive, ref.exact, output_rounding<T>(ref.exact));
  check_one_rounding<T>(got, ref.exact, 3e-6);

  std::vector<half_t> first = out.values();
  out.refill_with_nan();
  run<T>(v, x.data(), second, gamma.data(), beta.data(), out.data(), rows, hidden, spec);
  check_same_bits("two runs", first.data(), out.data(), out.bytes());
  int row = rows / 2;  // the same row alone
  Guarded<half_t> alone(hidden, "one row");
  run<T>(v, x.data() + (size_t)row * hidden, second ? second + (size_t)row * hidden : nullptr, gamma.data(), beta.data(), alone.data(), 1,
         hidden, spec);
  check_same_bits("a row alone", alone.data(), &first[(size_t)row * hidden], alone.bytes());
}

// A warp's variants differ in how many registers they have, not in what they do.
static void variants_agree() {
  Random r(case_seed);
  for (int hidden : {8, 384, 512}) {
    Inputs in = Inputs::make<F16>(5, hidden, r);
    Guarded<half_t> x(in.x), residual(in.residual), a(5 * hidden), b(5 * hidden);
    Guarded<float> gamma(in.gamma), beta(in.beta);
    run<F16>(variants[0], x.data(), residual.data(), gamma.data(), beta.data(), a.data(), 5, hidden, {});
    run<F16>(variants[1], x.data(), residual.data(), gamma.data(), beta.data(), b.data(), 5, hidden, {});
    check_same_bits("variants", a.data(), b.data(), a.bytes());
  }
}

// Queries and keys beside their values: two norms in one launch, in place, with the bits of rows on their own.
template <class T> static void rows_side_by_side(int hidden) {
  Random r(case_seed);
  const int tokens = 7, stride = 3 * hidden;
  const Variant& v = narrowest(hidden);
  std::vector<half_t> qkv = r.normals16<T>((size_t)tokens * stride, 1.5f, 0.3f);
  Guarded<float> gamma(r.normals(2 * hidden, 0.3f, 1), "gamma"), beta(r.normals(2 * hidden, 0.2f), "beta");
  Guarded<half_t> place(qkv.size(), "qkv", 16);
  memcpy(place.data(), qkv.data(), place.bytes());
  launch(std::is_same<T, F16>::value ? v.f16 : v.bf16, {(unsigned)((2 * tokens + v.rows_a_block - 1) / v.rows_a_block)}, {(unsigned)v.threads}, 0,
         place.data(), (const half_t*)nullptr, gamma.data(), beta.data(), place.data(), 2 * tokens, hidden, 2, stride, 1e-5f, (int)ROW_LAYERNORM);
  for (int token = 0; token < tokens; token++)
    for (int part = 0; part < 3; part++) {
      const size_t at = (size_t)token * stride + part * hidden;
      std::vector<half_t> row(qkv.begin() + (long)at, qkv.begin() + (long)(at + hidden));
      Guarded<half_t> x(row, "a row"), out(hidden, "its norm");
      if (part == 2) {
        check_same_bits("values", &place[at], x.data(), x.bytes());
        continue;
      }
      run<T>(v, x.data(), nullptr, gamma.data() + part * hidden, beta.data() + part * hidden, out.data(), 1, hidden, {ROW_LAYERNORM, 1e-5f});
      check_same_bits("a row among others", &place[at], out.data(), out.bytes());
    }
}

static void writes_over_its_input() {
  Random r(case_seed);
  int rows = 9, hidden = 384;
  Inputs in = Inputs::make<F16>(rows, hidden, r);
  Guarded<half_t> x(in.x), residual(in.residual), out(in.x.size()), place(in.x.size());
  Guarded<float> gamma(in.gamma), beta(in.beta);
  run<F16>(variants[0], x.data(), residual.data(), gamma.data(), beta.data(), out.data(), rows, hidden, {});
  memcpy(place.data(), in.x.data(), place.bytes());
  run<F16>(variants[0], place.data(), residual.data(), gamma.data(), beta.data(), place.data(), rows, hidden, {});
  check_same_bits("over x", place.data(), out.data(), out.bytes());
  memcpy(place.data(), in.residual.data(), place.bytes());
  run<F16>(variants[0], x.data(), place.data(), gamma.data(), beta.data(), place.data(), rows, hidden, {});
  check_same_bits("over residual", place.data(), out.data(), out.bytes());
}

template <class T> static void a_bad_row_stays_alone(const Variant& v, RowNormKind kind) {
  Random r(case_seed);
  int rows = 9, hidden = 384;
  NormSpec spec{kind, 1e-12f};
  Inputs in = Inputs::make<T>(rows, hidden, r);
  Guarded<float> gamma(in.gamma), beta(in.beta);
  Guarded<half_t> residual(in.residual), good((size_t)rows * hidden), bad((size_t)rows * hidden);
  {
    Guarded<half_t> x(in.x);
    run<T>(v, x.data(), residual.data(), gamma.data(), beta.data(), good.data(), rows, hidden, spec);
  }
  in.x[1 * hidden + 7] = T::from_f32(NAN);
  in.x[4 * hidden + 383] = T::from_f32(INFINITY);
  in.x[6 * hidden + 100] = T::from_f32(-INFINITY);
  Guarded<half_t> x(in.x);
  run<T>(v, x.data(), residual.data(), gamma.data(), beta.data(), bad.data(), rows, hidden, spec);
  for (int row = 0; row < rows; row++) {
    bool was_bad = row == 1 || row == 4 || row == 6;
    int lost = 0;
    for (int c = 0; c < hidden; c++) lost += !std::isfinite(T::to_f32(bad[(size_t)row * hidden + c]));
    bool wholly = kind == ROW_LAYERNORM || row == 1;  // rms of an infinity: 1 / Inf = 0, so only Inf * 0 is NaN
    EXPECT(was_bad ? (wholly ? lost == hidden : lost > 0) : lost == 0, "row %d: %d values are not finite", row, lost);
    if (!was_bad) check_same_bits("a good row", &good[(size_t)row * hidden], &bad[(size_t)row * hidden], hidden * 2);
  }
}

// ---- why two passes, and why corrected --------------------------------------------------------------------------------------
// |error| of the normalised row, before it is rounded to 16 bits, of three ways in fp32 with the kernel's own order of sums
// in lanes; the kernel itself is then held to the first.
struct Ways { double corrected, two_pass, one_pass; };
static double lane_order_sum(const std::vector<float>& v) {  // eight by eight in lanes, a butterfly over 32 lanes
  std::vector<float> lanes(32, 0);
  for (size_t p = 0; p < v.size() / 8; p++) {
    const float(&e)[VECTOR] = *(const float(*)[VECTOR]) & v[p * 8];
    lanes[p % 32] += sum8(e);
  }
  for (int o = 16; o; o >>= 1)
    for (int i = 0; i < o; i++) lanes[i] += lanes[i + o];
  return lanes[0];
}
static Ways compare_ways(const std::vector<float>& row, const std::vector<double>& exact, float eps) {
  float n = (float)row.size(), mean = (float)lane_order_sum(row) / n;
  std::vector<float> squares(row.size()), off(row.size()), off_squares(row.size());
  for (size_t i = 0; i < row.size(); i++) { off[i] = row[i] - mean; squares[i] = row[i] * row[i]; off_squares[i] = off[i] * off[i]; }
  float shift = (float)lane_order_sum(off) / n, var2 = (float)lane_order_sum(off_squares) / n;
  float corrected = fmaxf(fmaf(-shift, shift, var2), 0), var1 = fmaxf((float)lane_order_sum(squares) / n - mean * mean, 0);
  Ways w{0, 0, 0};
  for (size_t i = 0; i < row.size(); i++) {
    w.corrected = fmax(w.corrected, fabs((off[i] - shift) / sqrtf(corrected + eps) - exact[i]));
    w.two_pass = fmax(w.two_pass, fabs(off[i] / sqrtf(var2 + eps) - exact[i]));
    w.one_pass = fmax(w.one_pass, fabs(off[i] / sqrtf(var1 + eps) - exact[i]));
  }
  return w;
}
// x carries the mean, the residual the spread, so that the fp32 sum has digits which 16 bits do not.
template <class T> static void difficult_rows(float mean, float spread, bool corrected_is_needed) {
  Random r(case_seed);
  int rows = 8, hidden = 384;
  NormSpec spec{ROW_LAYERNORM, 1e-12f, false, false};
  std::vector<half_t> xs(rows * hidden), rs(rows * hidden);
  for (int row = 0; row < rows; row++) {
    float level = mean * (1 + 0.37f * (float)row);
    for (int c = 0; c < hidden; c++) { xs[row * hidden + c] = T::from_f32(level); rs[row * hidden + c] = T::from_f32(r.normal(spread)); }
  }
  Guarded<half_t> x(xs), residual(rs), out(rows * hidden);
  std::vector<float> unit(hidden, 1), zero(hidden, 0);
  run<T>(variants[0], x.data(), residual.data(), nullptr, nullptr, out.data(), rows, hidden, spec);
  std::vector<double> a = widen16<T>(x), b = widen16<T>(residual), got = widen16<T>(out);
  // the kernel's input is the fp32 sum, so the exact answer is that of this sum: what is tested is the norm
  std::vector<double> sum(rows * hidden), exact(rows * hidden);
  Ways worst{0, 0, 0};
  for (int row = 0; row < rows; row++) {
    std::vector<float> values(hidden);
    for (int c = 0; c < hidden; c++) sum[row * hidden + c] = values[c] = (float)a[row * hidden + c] + (float)b[row * hidden + c];
    normalize_row<double>(&sum[row * hidden], unit, zero, spec, &exact[row * hidden]);
    Ways w = compare_ways(values, std::vector<double>(&exact[row * hidden], &exact[row * hidden] + hidden), spec.eps);
    worst = {fmax(worst.corrected, w.corrected), fmax(worst.two_pass, w.two_pass), fmax(worst.one_pass, w.one_pass)};
  }
  NOTE("before rounding: corrected %.1e, two passes %.1e, one pass %.1e", worst.corrected, worst.two_pass, worst.one_pass);
  check_one_rounding<T>(got, exact, 1e-5);
  EXPECT(worst.corrected <= 1e-5, "the corrected form is off by %.3g", worst.corrected);
  if (corrected_is_needed) EXPECT(worst.two_pass > 10 * worst.corrected, "the correction is not needed here any more: say why it stays");
}
template <class T> static void constant_rows() {  // nothing but beta may come out, whatever the constant and however small eps
  Random r(case_seed);
  int rows = 40, hidden = 384;
  std::vector<half_t> xs(rows * hidden), rs(rows * hidden);
  std::vector<float> beta = r.normals(hidden, 0.2f);
  for (int row = 0; row < rows; row++) {
    half_t a = T::from_f32(r.normal(row < 20 ? 1 : 300)), b = T::from_f32(r.normal(row % 2 ? 0.01f : 1));
    for (int c = 0; c < hidden; c++) { xs[row * hidden + c] = a; rs[row * hidden + c] = b; }
  }
  Guarded<half_t> x(xs), residual(rs), out(rows * hidden);
  Guarded<float> shift(beta);
  NormSpec spec{ROW_LAYERNORM, 1e-12f, false, true};
  run<T>(variants[0], x.data(), residual.data(), nullptr, shift.data(), out.data(), rows, hidden, spec);
  for (int i = 0; i < rows * hidden; i++)
    EXPECT(out[i] == T::from_f32(beta[i % hidden]), "row %d: %g instead of beta, %g", i / hidden, T::to_f32(out[i]), beta[i % hidden]);
}
static void sums_beyond_fp16_are_fine() {  // 65,504 + 65,504 fits the fp32 in which it is added
  int hidden = 64;
  std::vector<half_t> xs(hidden), rs(hidden);
  for (int c = 0; c < hidden; c++) xs[c] = rs[c] = F16::from_f32(c % 2 ? 65504 : -65504);
  Guarded<half_t> x(xs), residual(rs), out(hidden);
  run<F16>(variants[0], x.data(), residual.data(), nullptr, nullptr, out.data(), 1, hidden, {ROW_LAYERNORM, 1e-12f, false, false});
  for (int c = 0; c < hidden; c++) EXPECT(F16::to_f32(out[c]) == (c % 2 ? 1 : -1), "%g", F16::to_f32(out[c]));
}
template <class T> static void real_gamma_and_beta() {
  Random r(case_seed);
  int rows = 33, hidden = 384;
  Tensor g = Weights::get().tensor("encoder.layer.3.output.LayerNorm.weight"), b = Weights::get().tensor("encoder.layer.3.output.LayerNorm.bias");
  Tensor words = Weights::get().tensor("embeddings.word_embeddings.weight");
  std::vector<half_t> xs(rows * hidden), rs(rows * hidden);
  for (int row = 0; row < rows; row++)
    for (int c = 0; c < hidden; c++) {
      xs[row * hidden + c] = T::from_f32(30 * words.values[(size_t)(1000 + 37 * row) * hidden + c]);
      rs[row * hidden + c] = T::from_f32(r.normal(0.5f));
    }
  Guarded<half_t> x(xs), residual(rs), out(rows * hidden);
  Guarded<float> gamma(g.values), beta(b.values);
  run<T>(variants[0], x.data(), residual.data(), gamma.data(), beta.data(), out.data(), rows, hidden, {});
  std::vector<double> a = widen16<T>(x), second = widen16<T>(residual);
  References ref = layernorm_references<T>({&a, &second}, rows, g.values, b.values, {});
  check_error("", widen16<T>(out), ref.naive, ref.exact, output_rounding<T>(ref.exact));
  check_one_rounding<T>(widen16<T>(out), ref.exact, 3e-6);
}

template <class T> static void add_cases() {
  const char* t = Element<T>::name;
  for (int rows : {1, 3, 4, 5, 15, 16, 17, 63, 64, 65, 127, 128, 129, 511, 512})
    add_case(format("%s %d x 384", t, rows), [=] { matches_reference<T>(rows, 384, {}, true, variants[0]); }, rows == 5 ? QUICK : SLOW);
  for (int hidden : {8, 16, 120, 248, 256, 264, 504, 512, 520, 768, 1016, 1024, 1032, 2040, 2048, 2056, 4096, 8184, 8192})
    add_case(format("%s 7 x %d", t, hidden), [=] { matches_reference<T>(7, hidden, {}, true, narrowest(hidden)); }, hidden == 2056 ? QUICK : SLOW);
  add_case(format("%s 5 x 384 by the widest variant", t), [=] { matches_reference<T>(5, 384, {}, true, variants[2]); });
  add_case(format("%s no residual", t), [=] { matches_reference<T>(9, 384, {}, false, variants[0]); });
  add_case(format("%s eps 1e-5", t), [=] { matches_reference<T>(9, 768, {ROW_LAYERNORM, 1e-5f}, true, variants[1]); });
  add_case(format("%s no beta", t), [=] { matches_reference<T>(9, 768, {ROW_LAYERNORM, 1e-5f, true, false}, true, variants[1]); });
  add_case(format("%s no gamma, no beta", t), [=] { matches_reference<T>(9, 384, {ROW_LAYERNORM, 1e-5f, false, false}, true, variants[0]); });
  for (int hidden : {384, 2048, 4096})
    add_case(format("%s rms %d", t, hidden), [=] { matches_reference<T>(6, hidden, {ROW_RMSNORM, 1e-6f, true, false}, true, narrowest(hidden)); });
  for (int v : {0, 2})
    for (RowNormKind kind : {ROW_LAYERNORM, ROW_RMSNORM})
      add_case(format("%s a NaN or Inf row stays alone, variant %d, norm %d", t, variants[v].widest, kind),
               [=] { a_bad_row_stays_alone<T>(variants[v], kind); }, QUICK);
  for (int hidden : {8, 384, 1024, 1032}) add_case(format("%s queries and keys of %d", t, hidden), [=] { rows_side_by_side<T>(hidden); }, hidden == 384 ? QUICK : SLOW);
  add_case(format("%s difficult: mean 10 x spread", t), [] { difficult_rows<T>(10, 1, false); });
  add_case(format("%s difficult: mean 100 x spread", t), [] { difficult_rows<T>(100, 1, false); });
  add_case(format("%s difficult: mean 1,000 x spread", t), [] { difficult_rows<T>(1000, 1, false); });
  add_case(format("%s difficult: mean 10,000 x spread", t), [] { difficult_rows<T>(10000, 1, true); });
  add_case(format("%s constant rows", t), constant_rows<T>);
  add_case(format("%s real gamma and beta", t), real_gamma_and_beta<T>);
}

int main(int argc, char** argv) {
  add_cases<F16>();
  add_cases<BF16>();
  add_case("variants of a warp agree to the bit", variants_agree);
  add_case("the output may be an input", writes_over_its_input, QUICK);
  add_case("sums beyond fp16", sums_beyond_fp16_are_fine);
  return run_cases(argc, argv);
}
