// numeric.cuh: activations against f64 with the errors that its comments promise; conversions, vectors, reductions.
#include "common.h"

// ---- activations ----------------------------------------------------------------------------------------------------
static double gelu_f64(double x) { return 0.5 * x * erfc(-x * M_SQRT1_2); }
static double gelu_tanh_f64(double x) { return x / (1 + exp(-2 * sqrt(2 / M_PI) * (x + 0.044715 * x * x * x))); }
static double quick_gelu_f64(double x) { return x / (1 + exp(-1.702 * x)); }
static double silu_f64(double x) { return x / (1 + exp(-x)); }
static double relu_f64(double x) { return x < 0 ? 0 : x; }
static double tanh_f64(double x) { return tanh(x); }

// Half a unit in the last place of a 16-bit number of this size.
template <class T> static double half_ulp(double y) {
  int least = Element<T>::unit_roundoff == 1.0 / 2048 ? -14 : -126, exponent = 0;
  frexp(y, &exponent);
  exponent = exponent - 1 < least || y == 0 ? least : exponent - 1;
  return ldexp(Element<T>::unit_roundoff, exponent);
}
// 400,000 fp32 values: every fp16 and, between them, every magnitude from 2^-30 to `largest`, both signs.
static const std::vector<float>& all_magnitudes() {
  static std::vector<float> v = [] {
    std::vector<float> x;
    for (uint32_t h = 0; h < 65536; h++)
      if ((h & 0x7c00) != 0x7c00) x.push_back(F16::to_f32((half_t)h));
    Random r(3);
    for (int i = 0; i < 340000; i++) {
      float m = (float)ldexp(1 + r.unit(), r.integer(-30, 4));
      x.push_back(i & 1 ? m : -m);
    }
    return x;
  }();
  return v;
}
struct Promise {
  const char* name;
  float (*ours)(float);
  double (*exact)(double);
  double relative, where_above;     // |error| <= relative |y| where |y| >= where_above, else <= relative where_above
  double f16_half_ulps;             // |error| in half ulps of the stored result, everywhere
};
static const Promise promises[] = {
    {"gelu_erf", gelu_erf, gelu_f64, 7e-6, 5.7e-5, 0.02},
    {"gelu_tanh", gelu_tanh, gelu_tanh_f64, 1e-5, 1e-30, 0.005},
    {"quick_gelu", quick_gelu, quick_gelu_f64, 1e-5, 1e-30, 0.005},
    {"silu", silu, silu_f64, 1e-5, 1e-30, 0.005},
    {"relu", relu, relu_f64, 0, 1, 0},
    {"tanh", tanh_of, tanh_f64, 1e-6, 1e-30, 0.004},
};
static void activation_keeps_its_promise(const Promise& p) {
  double relative = 0, f16 = 0;
  for (float x : all_magnitudes()) {
    double y = p.exact(x), e = fabs((double)p.ours(x) - y);
    EXPECT(e <= p.relative * fmax(fabs(y), p.where_above), "%s(%.9g) = %.9g, exact %.9g: error %.3g", p.name, x, p.ours(x), y, e);
    relative = fmax(relative, e / fmax(fabs(y), fmax(p.where_above, 1e-300)));
    f16 = fmax(f16, e / half_ulp<F16>(y));
  }
  NOTE("relative %.1e, %.4f of half an fp16 ulp", relative, f16);
  EXPECT(f16 <= p.f16_half_ulps, "%s: %.4f half ulps of fp16, promised %.4f", p.name, f16, p.f16_half_ulps);
}
static void gelu_erf_tail() {
  double worst = 0, bf16 = 0, beyond = 0;
  for (float x : all_magnitudes()) {
    if (x > -4) continue;
    double y = gelu_f64(x), e = fabs((double)gelu_erf(x) - y);
    if (x >= -6.5f) { worst = fmax(worst, e / fabs(y)); bf16 = fmax(bf16, e / half_ulp<BF16>(y)); }
    else beyond = fmax(beyond, e);
  }
  NOTE("relative %.1e and %.4f of half a bf16 ulp down to -6.5, absolute %.1e below", worst, bf16, beyond);
  EXPECT(worst <= 2e-5 && bf16 <= 0.01 && beyond <= 4e-15, "the tail is less accurate than promised");
}
static void nothing_finite_from_what_is_not() {
  const float bad[] = {NAN, -NAN, INFINITY, -INFINITY};
  for (auto& p : promises)
    for (float x : bad) EXPECT(!std::isfinite(p.ours(x)), "%s(%g) = %g", p.name, x, p.ours(x));
  for (float x : {-1e38f, -1e20f, -3e9f, -1e5f}) {
    EXPECT(gelu_erf(x) == 0 && gelu_tanh(x) == 0 && quick_gelu(x) == 0 && silu(x) == 0, "an activation of %g is not 0", x);
    EXPECT(gelu_erf(-x) == -x && gelu_tanh(-x) == -x && quick_gelu(-x) == -x && silu(-x) == -x, "an activation of %g is not itself", -x);
  }
}
static void activate_dispatches() {
  for (float x : {-3.0f, -0.5f, 0.25f, 2.0f}) {
    EXPECT(activate<ACT_NONE>(x) == x && activate<ACT_GELU>(x) == gelu_erf(x) && activate<ACT_GELU_TANH>(x) == gelu_tanh(x), "gelu");
    EXPECT(activate<ACT_QUICK_GELU>(x) == quick_gelu(x) && activate<ACT_RELU>(x) == relu(x), "quick_gelu, relu");
    EXPECT(activate<ACT_SILU>(x) == silu(x) && activate<ACT_TANH>(x) == tanh_of(x), "silu, tanh");
  }
}

// ---- vectors and reductions --------------------------------------------------------------------------------------------
KERNEL(32, copy_rows_f16, const half_t* x, half_t* y, const float* f, float* g) {
  float v[VECTOR];
  load8_nc<F16>(x + threadIdx.x * VECTOR, v);
  store8<F16>(y + threadIdx.x * VECTOR, v);
  load8_f32_nc(f + threadIdx.x * VECTOR, v);
  store8_f32(g + threadIdx.x * VECTOR, v);
}
KERNEL(32, copy_rows_bf16, const half_t* x, half_t* y, const float* f, float* g) {
  float v[VECTOR];
  load8<BF16>(x + threadIdx.x * VECTOR, v);
  store8<BF16>(y + threadIdx.x * VECTOR, v);
  g[threadIdx.x] = sum8(v);
  g[32 + threadIdx.x] = warp_sum(f[threadIdx.x]);
  g[64 + threadIdx.x] = warp_max(f[threadIdx.x]);
}
template <class T> static void vectors_are_copied_exactly() {
  std::vector<half_t> x(256);
  Random r(case_seed);
  for (auto& h : x) do h = (half_t)r.bits(); while (std::isnan(T::to_f32(h)));
  std::vector<float> f = r.normals(256, 10);
  Guarded<half_t> in(x, "x"), out(256, "y");
  Guarded<float> fin(f, "f"), fout(256, "g");
  bool first = std::is_same<T, F16>::value;
  launch(first ? copy_rows_f16 : copy_rows_bf16, {1}, {32}, 0, in.data(), out.data(), fin.data(), fout.data());
  check_same_bits("16-bit row", x.data(), out.data(), 512);
  if (first) { check_same_bits("f32 vector", f.data(), fout.data(), 1024); return; }
  double sum = 0, magnitude = 0;
  float top = f[0];
  for (int i = 0; i < 32; i++) { sum += f[i]; magnitude += fabs(f[i]); top = fmaxf(top, f[i]); }
  for (int i = 0; i < 32; i++) {
    EXPECT(fabs(fout[32 + i] - sum) <= 5 * 0x1p-24 * magnitude && fout[32 + i] == fout[32], "warp_sum, lane %d", i);
    EXPECT(fout[64 + i] == top, "warp_max, lane %d", i);
  }
}
static void maximum_keeps_what_is_not_finite() {
  EXPECT(max_keeping_nan(1, 2) == 2 && max_keeping_nan(-3.402823466e38f, -5) == -5, "the maximum");
  for (float bad : {NAN, INFINITY, -INFINITY})
    EXPECT(std::isnan(max_keeping_nan(bad, 1)) && std::isnan(max_keeping_nan(1, bad)), "%g is lost", bad);
  EXPECT(is_finite(3.402823466e38f) && is_finite(-1) && !is_finite(NAN) && !is_finite(-INFINITY) && !is_finite(INFINITY), "is_finite");
}
static void conversions_round_to_even_and_overflow_to_infinity() {
  EXPECT(F16::from_f32(65519.996f) == 0x7bff && F16::from_f32(65520.0f) == 0x7c00 && F16::from_f32(-1e9f) == 0xfc00, "fp16 overflow");
  EXPECT(BF16::from_f32(3.4e38f) == 0x7f80 && BF16::from_f32(3.38e38f) == 0x7f7e, "bf16 overflow");
  EXPECT(F16::from_f32(1 + 0x1p-11f) == 0x3c00 && F16::from_f32(1 + 0x3p-11f) == 0x3c02, "fp16 ties");
  EXPECT(BF16::from_f32(1 + 0x1p-8f) == 0x3f80 && BF16::from_f32(1 + 0x3p-8f) == 0x3f82, "bf16 ties");
  EXPECT(F16::pack(1, 2) == 0x40003c00 && BF16::pack(1, 2) == 0x40003f80 && BF16::hi(0x40003f80) == 2 && F16::lo(0x40003c00) == 1, "pack");
  EXPECT(std::isnan(F16::to_f32(F16::from_f32(NAN))) && std::isnan(BF16::to_f32(BF16::from_f32(NAN))), "NaN");
}

int main(int argc, char** argv) {
  for (auto& p : promises) add_case(format("%s is as accurate as promised", p.name), [&p] { activation_keeps_its_promise(p); });
  add_case("gelu_erf in its tail", gelu_erf_tail);
  add_case("activations of NaN, Inf and huge values", nothing_finite_from_what_is_not, QUICK);
  add_case("activate dispatches", activate_dispatches, QUICK);
  add_case("vectors f16", vectors_are_copied_exactly<F16>, QUICK);
  add_case("vectors bf16", vectors_are_copied_exactly<BF16>, QUICK);
  add_case("max_keeping_nan, is_finite", maximum_keeps_what_is_not_finite, QUICK);
  add_case("conversions", conversions_round_to_even_and_overflow_to_infinity, QUICK);
  return run_cases(argc, argv);
}
