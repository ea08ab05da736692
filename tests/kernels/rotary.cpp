// rotary.cu against f64.
#include "../../kernels/rotary.cu"
#include "common.h"

struct Shape { int tokens, heads, head_dim; };

// As the host makes it: angles rounded to fp32, their cosines and sines from f64.
static std::vector<float> table_of(int positions, int head_dim, float base) {
  std::vector<float> table;
  for (int p = 0; p < positions; p++)
    for (int sines = 0; sines < 2; sines++)
      for (int i = 0; i < head_dim / 2; i++) {
        double angle = (float)p * (1.0f / powf(base, (float)(2 * i) / (float)head_dim));
        table.push_back((float)(sines ? sin(angle) : cos(angle)));
      }
  return table;
}
// qkv after the turn, in R; values stay.
template <class R> static std::vector<double> turned(const std::vector<double>& qkv, const std::vector<int>& positions, const std::vector<float>& table, Shape s) {
  std::vector<double> out = qkv;
  const int hidden = s.heads * s.head_dim, half = s.head_dim / 2;
  for (int token = 0; token < s.tokens; token++)
    for (int head = 0; head < 2 * s.heads; head++)
      for (int i = 0; i < half; i++) {
        const size_t at = (size_t)token * 3 * hidden + head * s.head_dim + i;
        R x = (R)qkv[at], y = (R)qkv[at + half], c = table[(size_t)positions[token] * s.head_dim + i], d = table[(size_t)positions[token] * s.head_dim + half + i];
        out[at] = x * c - y * d;
        out[at + half] = y * c + x * d;
      }
  return out;
}
template <class T> static void run(half_t* qkv, const int* positions, const float* table, Shape s) {
  const int hidden = s.heads * s.head_dim;
  launch(std::is_same<T, F16>::value ? rotary_f16 : rotary_bf16, {(unsigned)((s.tokens * hidden / 16 + ROTARY_THREADS - 1) / ROTARY_THREADS)}, {ROTARY_THREADS}, 0,
         qkv, positions, table, s.tokens, hidden, s.head_dim);
}

template <class T> static void matches_reference(Shape s, int positions, float base) {
  Random r(case_seed);
  const int hidden = s.heads * s.head_dim;
  const std::vector<half_t> before = r.normals16<T>((size_t)s.tokens * 3 * hidden, 1.5f);
  std::vector<int> place;
  for (int token = 0; token < s.tokens; token++) place.push_back(token == 0 ? positions - 1 : r.integer(0, positions - 1));
  const std::vector<float> angles = table_of(positions, s.head_dim, base);
  Guarded<half_t> qkv(before.size(), "qkv", 16);
  Guarded<int> position_ids(place, "position_ids");
  Guarded<float> table(angles, "table", 16);
  memcpy(qkv.data(), before.data(), qkv.bytes());
  run<T>(qkv.data(), position_ids.data(), table.data(), s);
  const std::vector<double> x = widen16<T>(before), exact = turned<double>(x, place, angles, s);
  std::vector<double> naive = turned<float>(x, place, angles, s);
  for (double& v : naive) v = round16<T>((float)v);
  check_error("", widen16<T>(qkv), naive, exact, output_rounding<T>(exact) * 0.01);
  for (int token = 0; token < s.tokens; token++) {
    const size_t values = ((size_t)token * 3 + 2) * hidden;
    check_same_bits("values", &qkv[values], &before[values], hidden * 2);
  }
  // a token alone has the bits that it has among others
  const int last = s.tokens - 1;
  Guarded<half_t> alone(3 * hidden, "one token");
  memcpy(alone.data(), &before[(size_t)last * 3 * hidden], alone.bytes());
  run<T>(alone.data(), position_ids.data() + last, table.data(), {1, s.heads, s.head_dim});
  check_same_bits("a token alone", alone.data(), &qkv[(size_t)last * 3 * hidden], alone.bytes());
}

// What counts: the score of a query and a key depends on how far they are apart, not on where.
template <class T> static void scores_depend_on_the_distance(int head_dim) {
  Random r(case_seed);
  const std::vector<half_t> query = r.normals16<T>(head_dim, 1), key = r.normals16<T>(head_dim, 1);
  Guarded<float> table(table_of(300, head_dim, 100), "table");
  const double of_zero = 1e9;
  double first = of_zero, largest_score = 0, off = 0;
  for (int at : {0, 1, 40, 250}) {
    Guarded<half_t> qkv(2 * 3 * head_dim, "qkv");
    memset(qkv.data(), 0, qkv.bytes());
    memcpy(qkv.data(), query.data(), head_dim * 2);                      // the first token's query
    memcpy(qkv.data() + 4 * head_dim, key.data(), head_dim * 2);         // the second token's key
    Guarded<int> positions(std::vector<int>{at, at + 37}, "position_ids");
    run<T>(qkv.data(), positions.data(), table.data(), {2, 1, head_dim});
    double score = 0;
    for (int i = 0; i < head_dim; i++) score += (double)T::to_f32(qkv[i]) * T::to_f32(qkv[4 * head_dim + i]);
    if (first == of_zero) first = score;
    off = fmax(off, fabs(score - first));
    largest_score = fmax(largest_score, fabs(score));
  }
  EXPECT(largest_score > 0.5, "a score of %g shows nothing", largest_score);
  EXPECT(off <= 4 * Element<T>::unit_roundoff * sqrt(head_dim), "the same distance gives scores %g apart", off);
}

template <class T> static void a_bad_token_stays_alone() {
  Random r(case_seed);
  const Shape s{5, 3, 32};
  const int row = 3 * s.heads * s.head_dim;
  std::vector<half_t> before = r.normals16<T>((size_t)s.tokens * row, 1);
  before[2 * row + 40] = T::from_f32(NAN);  // of the second head's first half
  Guarded<half_t> qkv(before.size(), "qkv");
  memcpy(qkv.data(), before.data(), qkv.bytes());
  Guarded<int> positions(std::vector<int>{0, 1, 2, 3, 4}, "position_ids");
  Guarded<float> table(table_of(5, 32, 100), "table");
  run<T>(qkv.data(), positions.data(), table.data(), s);
  for (int i = 0; i < s.tokens * row; i++) {
    const bool lost = i == 2 * row + 40 || i == 2 * row + 56;
    EXPECT(std::isnan(T::to_f32(qkv[i])) == lost, "component %d of token %d", i % row, i / row);
  }
}

template <class T> static void add_cases() {
  const char* t = Element<T>::name;
  for (int head_dim : {32, 64, 128})
    for (int heads : {1, 3})
      for (int tokens : {1, 2, 17}) add_case(format("%s %d tokens, %d heads of %d", t, tokens, heads, head_dim), [=] { matches_reference<T>({tokens, heads, head_dim}, 40, 1e4f); }, QUICK);
  add_case(format("%s 130 tokens, 12 heads of 64", t), [] { matches_reference<T>({130, 12, 64}, 130, 1e3f); });
  add_case(format("%s 33 tokens, 16 heads of 64, of 8,192 positions", t), [] { matches_reference<T>({33, 16, 64}, 8192, 160000); });
  for (int head_dim : {32, 64, 128}) add_case(format("%s scores by distance, head size %d", t, head_dim), [=] { scores_depend_on_the_distance<T>(head_dim); });
  add_case(format("%s a NaN stays with its partner", t), a_bad_token_stays_alone<T>, QUICK);
}

int main(int argc, char** argv) {
  add_cases<F16>();
  add_cases<BF16>();
  return run_cases(argc, argv);
}
