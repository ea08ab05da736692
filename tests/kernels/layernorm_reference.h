// What embed_layernorm.cpp and residual_layernorm.cpp share: layernorm in f64, in the naive 16-bit way, and the strict check.
#pragma once
#include "../../kernels/rows.cuh"
#include "common.h"

struct NormSpec {
  RowNormKind kind = ROW_LAYERNORM;
  float eps = 1e-12f;
  bool gamma = true, beta = true;
};

// One row. `sum` holds the row to be normalised.
template <class Real>
static void normalize_row(const Real* sum, const std::vector<float>& gamma, const std::vector<float>& beta, const NormSpec& spec, Real* out) {
  size_t h = gamma.size();
  Real mean = 0, squares = 0;
  if (spec.kind == ROW_LAYERNORM) {
    for (size_t c = 0; c < h; c++) mean += sum[c];
    mean /= (Real)h;
  }
  for (size_t c = 0; c < h; c++) squares += (sum[c] - mean) * (sum[c] - mean);
  Real scale = spec.kind == ROW_AS_IT_IS ? (Real)1 : 1 / std::sqrt(squares / (Real)h + (Real)spec.eps);
  bool affine = spec.kind != ROW_AS_IT_IS;
  for (size_t c = 0; c < h; c++)
    out[c] = (sum[c] - mean) * scale * (affine && spec.gamma ? gamma[c] : 1) + (affine && spec.beta ? beta[c] : 0);
}

struct References { std::vector<double> exact, naive; };

// addends: rows to be added, in order, as 16-bit values [rows * h]; null ones are left out. Naive: the sum is stored in 16 bits
// before it is normalised in fp32, and the result is.
template <class T>
static References layernorm_references(const std::vector<const std::vector<double>*>& addends, int rows, const std::vector<float>& gamma,
                                       const std::vector<float>& beta, const NormSpec& spec) {
  size_t h = gamma.size();
  References r{std::vector<double>(rows * h), std::vector<double>(rows * h)};
  std::vector<double> sum(h);
  std::vector<float> sum16(h), out(h);
  for (int row = 0; row < rows; row++) {
    std::fill(sum.begin(), sum.end(), 0.0);
    std::fill(sum16.begin(), sum16.end(), 0.0f);
    for (auto* a : addends)
      for (size_t c = 0; a && c < h; c++) {
        sum[c] += (*a)[row * h + c];
        sum16[c] = round16<T>(sum16[c] + (float)(*a)[row * h + c]);
      }
    normalize_row<double>(sum.data(), gamma, beta, spec, &r.exact[row * h]);
    normalize_row<float>(sum16.data(), gamma, beta, spec, out.data());
    for (size_t c = 0; c < h; c++) r.naive[row * h + c] = round16<T>(out[c]);
  }
  return r;
}

// The kernels do better than the rule asks: fp32 until the one rounding of the result. So each value must lie within half a
// unit of its own last place, but for `slack` (the fp32 part, relative to the size of the normalised row).
template <class T> static void check_one_rounding(const std::vector<double>& got, const std::vector<double>& exact, double slack) {
  for (size_t i = 0; i < exact.size(); i++) {
    double half_ulp = Element<T>::unit_roundoff * pow(2, floor(log2(fmax(fabs(exact[i]), 6.2e-5))));
    EXPECT(fabs(got[i] - exact[i]) <= half_ulp + slack, "value %zu: got %.9g, exact %.9g: off by %.3g, half an ulp is %.3g", i, got[i],
           exact[i], fabs(got[i] - exact[i]), half_ulp);
  }
}
