// The wrappers in the emulator: each conformance kernel against what the PTX ISA says, written down here a second time and in
// another way, and against the record of a real GPU where tests/emulator/conformance/ has one.
#include "../../kernels/conformance.cu"
#include "../emulator/conformance/cases.h"
#include "common.h"

typedef std::vector<uint32_t> Words;
typedef std::function<uint32_t(const Words& in, size_t at)> Expected;  // the word of `out` at `at`

// ---- running -------------------------------------------------------------------------------------------------------------
static Words run_conformance(const ConformanceCase& c, Words& in) {
  const emu::Kernel* kernel = emu::find_kernel(c.kernel);
  EXPECT(kernel, "no such kernel");
  EXPECT(kernel->threads == c.threads, "cases.h says %d threads, the kernel %d", c.threads, kernel->threads);
  in.resize((size_t)c.in_words);
  conformance_fill(&c, in.data());
  Guarded<uint32_t> input(in, "in"), out((size_t)c.out_words, "out");
  const bool of_out = c.tensor_map == 2;
  TensorMap map = tensor_map((const half_t*)(of_out ? out.data() : input.data()), (of_out ? c.out_words : c.in_words) / 32, 64, 64);
  uint32_t* pointers[2] = {input.data(), out.data()};
  void* parameters[2] = {&pointers[0], &pointers[1]};
  if (c.tensor_map) parameters[of_out] = &map;
  emu::launch(*kernel, {1}, {(unsigned)c.threads}, (size_t)c.shared_bytes, parameters, kernel->cluster);
  GuardedBase::check_all();
  return out.values();
}
static bool is_nan(uint32_t bits) { return (bits & 0x7fffffff) > 0x7f800000; }
static bool is_equal(const ConformanceCase& c, uint32_t got, uint32_t want, double relative) {
  if (got == want || (c.floats && is_nan(got) && is_nan(want))) return true;
  double g = f32_from_bits(got), w = f32_from_bits(want);
  return relative > 0 && std::isfinite(g) && std::isfinite(w) && fabs(g - w) <= relative * fmax(fabs(g), fabs(w)) + 0x1p-126;
}
// A record: text, # lines with the device and how it was made, then the words of `out` in hexadecimal.
static void check_record(const ConformanceCase& c, const Words& out) {
  const char* folder = getenv("BERTHIER_CONFORMANCE_RECORDS");
  FILE* f = fopen(((folder ? folder : tests_folder() + "/emulator/conformance") + "/" + c.kernel + ".txt").c_str(), "r");
  if (!f) { NOTE("no record of a GPU"); return; }
  char line[1000], device[1000] = "";
  Words recorded;
  while (fgets(line, sizeof line, f)) {
    if (line[0] == '#') { sscanf(line, "# device: %999[^\n]", device); continue; }
    for (char *p = line, *end; ; p = end) {
      uint32_t word = (uint32_t)strtoul(p, &end, 16);
      if (end == p) break;
      recorded.push_back(word);
    }
  }
  fclose(f);
  EXPECT(recorded.size() == out.size(), "the record has %zu words, the kernel %zu", recorded.size(), out.size());
  for (size_t i = 0; i < out.size(); i++)
    EXPECT(is_equal(c, out[i], recorded[i], c.tolerance), "word %zu: emulator %08x, %s %08x", i, out[i], device, recorded[i]);
  NOTE("equal to %s", device);
}

// ---- what the PTX ISA says ---------------------------------------------------------------------------------------------------
static float f(uint32_t bits) { return f32_from_bits(bits); }
// Nearest even by exact arithmetic: the grid of the target around |x|, in f64. `bits` mantissa bits, exponents from `low` to `high`.
static double rounded(double x, int bits, int low, int high) {
  if (x == 0 || !std::isfinite(x)) return x;
  int e = std::max(ilogb(x), low);
  double unit = ldexp(1, e - bits), y = nearbyint(x / unit) * unit;
  return fabs(y) >= ldexp(1, high + 1) ? copysign(INFINITY, x) : y;
}
static uint32_t to_16(float x, int mantissa, int bias) {  // bits of f16 (10, 15) or bf16 (7, 127)
  if (std::isnan(x)) return 0x7fff;
  const int exponents = mantissa == 10 ? 31 : 255;
  double y = fabs(rounded(x, mantissa, 1 - bias, exponents - 1 - bias));
  uint32_t sign = std::signbit(x) ? 0x8000 : 0;
  if (std::isinf(y)) return sign | (uint32_t)exponents << mantissa;
  if (y == 0) return sign;
  int e = std::max(ilogb(y), 1 - bias);
  uint32_t m = (uint32_t)ldexp(y, mantissa - e);  // with the hidden bit, if it is normal
  return sign | (((uint32_t)(e + bias - 1) << mantissa) + m);
}
static double from_16(uint32_t h, int mantissa, int bias) {
  int exponents = mantissa == 10 ? 31 : 255, e = (int)(h >> mantissa) & exponents, m = (int)h & ((1 << mantissa) - 1);
  double v = e == exponents ? (m ? NAN : INFINITY) : e ? ldexp((1 << mantissa) + m, e - bias - mantissa) : ldexp(m, 1 - bias - mantissa);
  return h & 0x8000 ? -v : v;
}
static double from_f16(uint32_t h) { return from_16(h & 0xffff, 10, 15); }
static double from_bf16(uint32_t h) { return from_16(h & 0xffff, 7, 127); }
static uint32_t half_of(const Words& w, size_t i) { return w[i / 2] >> 16 * (i % 2) & 0xffff; }
static uint32_t pair(uint32_t low, uint32_t high) { return low | high << 16; }

// Element (row, column) of the matrices of ldmatrix: matrix j is rows named by lanes 8 j to 8 j + 7, lane l naming 5 l + 3.
static uint32_t matrix_element(const Words& in, int matrix, int row, int column) {
  size_t named = (size_t)((5 * (8 * matrix + row) + 3) % 32);
  return half_of(in, named * 8 + (size_t)column);
}
static uint32_t ldmatrix_word(const Words& in, size_t at) {
  const int lane = (int)at / 12, k = (int)at % 12, matrix = k < 8 ? k % 4 : (k - 8) % 2, row = lane / 4, column = lane % 4 * 2;
  const bool transposed = (k >= 4 && k < 8) || k >= 10;
  return transposed ? pair(matrix_element(in, matrix, column, row), matrix_element(in, matrix, column + 1, row))
                    : pair(matrix_element(in, matrix, row, column), matrix_element(in, matrix, row, column + 1));
}
static uint32_t stmatrix_word(const Words& in, size_t at) {
  const bool transposed = at >= 128;
  Words memory(128);
  for (int lane = 0; lane < 32; lane++)
    for (int j = 0; j < 4; j++)
      for (int e = 0; e < 2; e++) {
        int row = lane / 4, column = lane % 4 * 2 + e;
        if (transposed) std::swap(row, column);
        size_t i = (size_t)((5 * (8 * j + row) + 3) % 32 * 8 + column);
        uint32_t value = in[(size_t)(4 * lane + j)] >> 16 * e & 0xffff;
        memory[i / 2] = (memory[i / 2] & ~(0xffffu << 16 * (i % 2))) | value << 16 * (i % 2);
      }
  return memory[at % 128];
}
// mma: PTX ISA, "Matrix fragments for mma.m16n8k16": where element (row, k) of a, (k, column) of b and (row, column) of c lie.
static double mma_element(const Words& in, int row, int column, double (*from)(uint32_t)) {
  auto word = [&](int lane, int i) { return in[(size_t)(10 * lane + i)]; };
  double sum = f(word(row % 8 * 4 + column / 2, 6 + row / 8 * 2 + column % 2));
  for (int k = 0; k < 16; k++) {
    int lane_a = row % 8 * 4 + k % 8 / 2, lane_b = column * 4 + k % 8 / 2;
    sum += from(word(lane_a, row / 8 + k / 8 * 2) >> 16 * (k % 2)) * from(word(lane_b, 4 + k / 8) >> 16 * (k % 2));
  }
  return sum;
}
static uint32_t mma_word(const Words& in, size_t at, double (*from)(uint32_t)) {
  int lane = (int)at / 4, i = (int)at % 4;
  return conformance_bits((float)mma_element(in, lane / 4 + i / 2 * 8, lane % 4 * 2 + i % 2, from));
}
// wgmma m64nNk16: register i of thread t is row 16 (t / 32) + t % 32 / 4 + 8 (i / 2 % 2), column 8 (i / 4) + 2 (t % 4) + i % 2.
static uint32_t wgmma_word(const Words& in, size_t at, int n, double (*from)(uint32_t) = from_f16) {
  int registers = n / 2, t = (int)at / registers, i = (int)at % registers, row = t / 32 * 16 + t % 32 / 4 + i / 2 % 2 * 8, column = i / 4 * 8 + t % 4 * 2 + i % 2;
  double sum = i;
  for (int k = 0; k < 16; k++) sum += from(half_of(in, (size_t)(row * 16 + k))) * from(half_of(in, (size_t)((64 + column) * 16 + k)));
  return conformance_bits((float)sum);
}
// The box's row y, column x is tensor row y - 4, column x + 8, zero outside; its 16-byte chunk lies at chunk xor row % 8.
static uint32_t tma_word(const Words& in, size_t at) {
  int y = (int)at / 32, chunk = (int)at % 32 / 4 ^ (y & 7), x = chunk * 8 + (int)at % 4 * 2, row = y - 4, column = x + 8;
  auto element = [&](int c) { return row >= 0 && row < 48 && c < 64 ? half_of(in, (size_t)(row * 64 + c)) : 0u; };
  return pair(element(column), element(column + 1));
}
// Row r, column c comes from the box's row r + 4 and column c + 8, the last eight columns from its first.
static uint32_t tma_store_word(const Words& in, size_t at) {
  int y = (int)at / 32 + 4, column = (int)at % 32 * 2, x = column < 56 ? column + 8 : column - 56;
  return in[(size_t)(y * 32 + (x / 8 ^ (y & 7)) * 4 + x % 8 / 2)];
}
static uint32_t shfl_word(const Words& in, size_t at) {
  const int l = (int)at / 16;
  auto v = [&](int lane) { return in[(size_t)lane]; };
  auto small = [&](int lane) { return (float)(v(lane) & 1023); };
  float sum = 0, most = 0, quad = 0, quad_most = 0;
  uint32_t votes = 0;
  for (int i = 0; i < 32; i++) {
    sum += small(i);
    most = fmaxf(most, small(i));
    votes |= (v(i) & 1) << i;
    if (i / 4 == l / 4) { quad += small(i); quad_most = fmaxf(quad_most, small(i)); }
  }
  const uint32_t words[16] = {v(l ^ 1), v(l ^ 16), v(l ^ 21), v(0), v(31 - l), v(5), v(l < 1 ? l : l - 1), v(l < 5 ? l : l - 5), v(l > 30 ? l : l + 1),
                              v(l > 26 ? l : l + 5), v(l ^ 8), v(l < 16 ? 3 : 19), votes, conformance_bits(sum), conformance_bits(most), conformance_bits(quad + quad_most)};
  return words[at % 16];
}
static uint32_t shared_word(const Words& in, size_t at) {
  const size_t l = 31 - at / 16, k = at % 16;
  if (k < 8) return in[4 * l + k % 4];
  if (k < 10) return in[4 * l + k - 6];
  auto swapped = [&](size_t i) { return in[4 * l + i] >> 16 | in[4 * l + i] << 16; };
  return k < 14 ? swapped(k - 10) : k == 14 ? swapped(0) >> 16 : swapped(0);
}
static uint32_t cp_async_word(const Words& in, size_t at) {
  size_t l = at / 8, k = at % 4;
  bool wanted = at % 8 < 4 ? l % 3 != 0 : (l + k) % 2 == 0;
  return wanted ? in[4 * l + k] : 0;
}

struct Rule { const char* kernel; double tolerance; Expected expected; };  // tolerance: the ISA's bound and the rounding of the result
static const Rule rules[] = {
    {"conformance_to_f16", 0, [](const Words& in, size_t i) { return to_16(f(in[i]), 10, 15); }},
    {"conformance_to_bf16", 0, [](const Words& in, size_t i) { return to_16(f(in[i]), 7, 127); }},
    {"conformance_pack", 0, [](const Words& in, size_t i) { int m = i % 2 ? 7 : 10, b = i % 2 ? 127 : 15; return pair(to_16(f(in[i / 2 * 2]), m, b), to_16(f(in[i / 2 * 2 + 1]), m, b)); }},
    {"conformance_from_16", 0, [](const Words& in, size_t i) { uint32_t h = in[i / 4] >> 16 * (i % 2); return conformance_bits((float)(i % 4 < 2 ? from_f16(h) : from_bf16(h))); }},
    {"conformance_ieee", 0, [](const Words& in, size_t i) {
       double a = f(in[i / 4]), b = f(in[(i / 4 + 1) % 256]), c = f(in[(i / 4 + 2) % 256]);
       float root = (float)sqrt(a);           // rounding f64's result again gives the right one for division and root
       switch (i % 4) { case 0: return conformance_bits((float)(a / b)); case 1: return conformance_bits(root); case 2: return conformance_bits((float)(1.0 / root)); }
       return conformance_bits(__builtin_fmaf((float)a, (float)b, (float)c)); }},
    {"conformance_ex2", 0x1.4p-22, [](const Words& in, size_t i) { return conformance_bits((float)exp2(f(in[i]))); }},
    {"conformance_rcp", 0x1p-22, [](const Words& in, size_t i) { return conformance_bits((float)(1.0 / f(in[i]))); }},
    {"conformance_rsqrt", 0x1p-22, [](const Words& in, size_t i) { return conformance_bits((float)(1 / sqrt((double)f(in[i])))); }},
    {"conformance_tanh", 0x1p-10, [](const Words& in, size_t i) { return conformance_bits((float)tanh(f(in[i]))); }},
    {"conformance_shfl", 0, shfl_word},
    {"conformance_barriers", 0, [](const Words& in, size_t i) { return in[i / 32 * 32 + 31 - i % 32]; }},
    {"conformance_sync_warp", 0, [](const Words& in, size_t i) { return in[31 - (i ^ 15)]; }},
    {"conformance_global", 0, [](const Words& in, size_t i) { return in[i]; }},
    {"conformance_shared", 0, shared_word},
    {"conformance_cp_async", 0, cp_async_word},
    {"conformance_ldmatrix", 0, ldmatrix_word},
    {"conformance_stmatrix", 0, stmatrix_word},
    {"conformance_mma_f16", 0, [](const Words& in, size_t i) { return mma_word(in, i, from_f16); }},
    {"conformance_mma_bf16", 0, [](const Words& in, size_t i) { return mma_word(in, i, from_bf16); }},
    {"conformance_mma_rounding", 1e-5, [](const Words& in, size_t i) { return mma_word(in, i, from_f16); }},
    {"conformance_tma", 0, tma_word},
    {"conformance_tma_store", 0, tma_store_word},
    {"conformance_wgmma_n16", 0, [](const Words& in, size_t i) { return wgmma_word(in, i, 16); }},
    {"conformance_wgmma_n32", 0, [](const Words& in, size_t i) { return wgmma_word(in, i, 32); }},
    {"conformance_wgmma_n64", 0, [](const Words& in, size_t i) { return wgmma_word(in, i, 64); }},
    {"conformance_wgmma_n128", 0, [](const Words& in, size_t i) { return wgmma_word(in, i, 128); }},
    {"conformance_wgmma_n192", 0, [](const Words& in, size_t i) { return wgmma_word(in, i, 192); }},
    {"conformance_wgmma_n256", 0, [](const Words& in, size_t i) { return wgmma_word(in, i, 256); }},
    {"conformance_wgmma_n16_bf16", 0, [](const Words& in, size_t i) { return wgmma_word(in, i, 16, from_bf16); }},
    {"conformance_wgmma_n32_bf16", 0, [](const Words& in, size_t i) { return wgmma_word(in, i, 32, from_bf16); }},
    {"conformance_wgmma_n64_bf16", 0, [](const Words& in, size_t i) { return wgmma_word(in, i, 64, from_bf16); }},
    {"conformance_wgmma_n128_bf16", 0, [](const Words& in, size_t i) { return wgmma_word(in, i, 128, from_bf16); }},
    {"conformance_wgmma_n192_bf16", 0, [](const Words& in, size_t i) { return wgmma_word(in, i, 192, from_bf16); }},
    {"conformance_wgmma_n256_bf16", 0, [](const Words& in, size_t i) { return wgmma_word(in, i, 256, from_bf16); }},
    {"conformance_wgmma_ra_n64", 0, [](const Words& in, size_t i) { return wgmma_word(in, i, 64); }},
    {"conformance_wgmma_ra_n64_sw64_bf16", 0, [](const Words& in, size_t i) { return wgmma_word(in, i, 64, from_bf16); }},
    {"conformance_wgmma_ra_n64_transposed", 0, [](const Words& in, size_t i) { return wgmma_word(in, i, 64); }},
    {"conformance_wgmma_ra_n64_transposed_bf16", 0, [](const Words& in, size_t i) { return wgmma_word(in, i, 64, from_bf16); }},
    {"conformance_wgmma_ra_n32_transposed", 0, [](const Words& in, size_t i) { return wgmma_word(in, i, 32); }},
    {"conformance_wgmma_ra_n32_transposed_bf16", 0, [](const Words& in, size_t i) { return wgmma_word(in, i, 32, from_bf16); }},
};

static void conformance_case(const ConformanceCase& c) {
  const Rule* rule = nullptr;
  for (const Rule& r : rules) if (!strcmp(r.kernel, c.kernel)) rule = &r;
  EXPECT(rule, "no rule here");
  Words in, out = run_conformance(c, in);
  for (size_t i = 0; i < out.size(); i++) {
    uint32_t want = rule->expected(in, i);
    EXPECT(is_equal(c, out[i], want, rule->tolerance), "word %zu: %08x (%g), by the ISA %08x (%g)", i, out[i], f(out[i]), want, f(want));
  }
  check_record(c, out);
}
static const int registered = [] {
  for (const ConformanceCase& c : conformance_cases) add_case(c.kernel, [&c] { conformance_case(c); }, QUICK);
  return add_case("every kernel is a case", [] {
    for (const emu::Kernel* k : emu::all_kernels()) {
      bool known = false;
      for (const ConformanceCase& c : conformance_cases) known |= !strcmp(c.kernel, k->name);
      EXPECT(known, "%s is not in cases.h", k->name);
    }
  }, QUICK);
}();

int main(int argc, char** argv) { return run_cases(argc, argv); }
