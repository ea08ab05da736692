// canary.cpp - launches that are wrong, to see that what looks for such things finds them: the guard bands, compute-sanitizer,
// the recovery after a lost context. Every case but the last must FAIL; gpu-check holds them to that.
#include "../../kernels/residual_layernorm.cu"
#include "../../tests/kernels/common.h"

static void run(const half_t* x, half_t* out, int rows) {
  launch(residual_layernorm_h512_f16, {(unsigned)(rows + 3) / 4}, {ROW_THREADS}, 0, x, (const half_t*)nullptr, (const float*)nullptr, (const float*)nullptr,
         out, rows, 384, 1, 384, 1e-12f, (int)ROW_LAYERNORM);
}
static const int registered = [] {
  add_case("a row behind the output", [] {
    Guarded<half_t> x(std::vector<half_t>(5 * 384, 0x3c00), "x"), out(4 * 384, "out");
    run(x.data(), out.data(), 5);
  });
  add_case("the output is an input", [] {
    Guarded<half_t> x(std::vector<half_t>(4 * 384, 0x3c00), "x");
    run(x.data(), (half_t*)x.data(), 4);
  });
  add_case("far outside of everything", [] {
    Guarded<half_t> x(std::vector<half_t>(4 * 384, 0x3c00), "x");
    run(x.data(), (half_t*)0x7ffff0000ull, 4);
  });
  return add_case("nothing wrong", [] {
    Guarded<half_t> x(std::vector<half_t>(4 * 384, 0x3c00), "x"), out(4 * 384, "out");
    run(x.data(), out.data(), 4);
    EXPECT(out[0] == 0 && out[4 * 384 - 1] == 0, "a row of ones, normalised, is not zeros");
  });
}();

int main(int argc, char** argv) { return run_cases(argc, argv); }
