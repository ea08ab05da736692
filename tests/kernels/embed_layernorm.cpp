// embed_layernorm.cu against f64.
#include "../../kernels/embed_layernorm.cu"
#include "layernorm_reference.h"

typedef void (*Kernel)(const half_t*, const half_t*, const half_t*, const int*, const int*, const int*, const float*, const float*, half_t*, int,
                       int, float, int);
struct Variant { int widest, rows_a_block, threads; Kernel f16, bf16; };
static const Variant variants[] = {
    {512, 4, ROW_THREADS, embed_layernorm_h512_f16, embed_layernorm_h512_bf16},
    {1024, 4, ROW_THREADS, embed_layernorm_h1024_f16, embed_layernorm_h1024_bf16},
    {8192, 1, WIDE_ROW_THREADS, embed_layernorm_h8192_f16, embed_layernorm_h8192_bf16},
};
static const Variant& narrowest(int hidden) {
  for (auto& v : variants)
    if (hidden <= v.widest) return v;
  FAIL("no variant for hidden %d", hidden);
}

struct Tables { std::vector<half_t> word, position, type; std::vector<float> gamma, beta; int hidden; };
struct Tokens { std::vector<int> ids, positions, types; };

// fp16, whatever the element type of the output.
static Tables random_tables(int hidden, int vocab, int positions, Random& r) {
  return {r.normals16<F16>((size_t)vocab * hidden, 0.05f), r.normals16<F16>((size_t)positions * hidden, 0.03f), r.normals16<F16>(2 * hidden, 0.03f),
          r.normals(hidden, 0.3f, 1), r.normals(hidden, 0.2f), hidden};
}
// The first and the last row of every table among them.
static Tokens random_tokens(int n, int vocab, int positions, Random& r) {
  Tokens t;
  for (int i = 0; i < n; i++) {
    t.ids.push_back(i == 0 ? vocab - 1 : i == 1 ? 0 : r.integer(0, vocab - 1));
    t.positions.push_back(i == 0 ? positions - 1 : i % positions);
    t.types.push_back(i & 1);
  }
  return t;
}
static std::vector<double> gather(const std::vector<double>& table, const std::vector<int>& rows, int hidden) {
  std::vector<double> out;
  for (int row : rows) out.insert(out.end(), table.begin() + (long)row * hidden, table.begin() + (long)(row + 1) * hidden);
  return out;
}

struct Which { bool position = true, type = true; };
template <class T> static void matches_reference(const Tables& tables, const Tokens& tokens, NormSpec spec, Which which, const Variant& v) {
  int hidden = tables.hidden, n = (int)tokens.ids.size();
  Guarded<half_t> word(tables.word, "word"), position(tables.position, "position", 16), type(tables.type, "type"), out((size_t)n * hidden, "out", 32);
  Guarded<int> ids(tokens.ids, "ids"), positions(tokens.positions, "position_ids"), types(tokens.types, "type_ids");
  Guarded<float> gamma(tables.gamma, "gamma"), beta(tables.beta, "beta");
  Kernel kernel = std::is_same<T, F16>::value ? v.f16 : v.bf16;
  auto run = [&](int first, int count, half_t* to) {
    launch(kernel, {(unsigned)((count + v.rows_a_block - 1) / v.rows_a_block)}, {(unsigned)v.threads}, 0, word.data(),
           which.position ? position.data() : nullptr, which.type ? type.data() : nullptr, ids.data() + first,
           which.position ? positions.data() + first : nullptr, which.type ? types.data() + first : nullptr, spec.gamma ? gamma.data() : nullptr,
           spec.beta ? beta.data() : nullptr, to, count, hidden, spec.eps, (int)spec.kind);
  };
  run(0, n, out.data());
  std::vector<double> a = gather(widen16<F16>(tables.word), tokens.ids, hidden), b = gather(widen16<F16>(tables.position), tokens.positions, hidden),
                      c = gather(widen16<F16>(tables.type), tokens.types, hidden), got = widen16<T>(out);
  References ref =
      layernorm_references<T>({&a, which.position ? &b : nullptr, which.type ? &c : nullptr}, n, tables.gamma, tables.beta, spec);
  check_error("", got, ref.naive, ref.exact, output_rounding<T>(ref.exact));
  check_one_rounding<T>(got, ref.exact, 3e-6);

  std::vector<half_t> first = out.values();
  out.refill_with_nan();
  run(0, n, out.data());
  check_same_bits("two runs", first.data(), out.data(), out.bytes());
  Guarded<half_t> alone(hidden, "one token");
  run(n / 2, 1, alone.data());
  check_same_bits("a token alone", alone.data(), &first[(size_t)(n / 2) * hidden], alone.bytes());
}
template <class T> static void random_case(int n, int hidden, NormSpec spec, Which which, const Variant& v) {
  Random r(case_seed);
  Tables tables = random_tables(hidden, 97, 40, r);
  matches_reference<T>(tables, random_tokens(n, 97, 40, r), spec, which, v);
}
template <class T> static void real_tables() {
  auto& w = Weights::get();
  Tables t{w.tensor16<F16>("embeddings.word_embeddings.weight"), w.tensor16<F16>("embeddings.position_embeddings.weight"),
           w.tensor16<F16>("embeddings.token_type_embeddings.weight"), w.tensor("embeddings.LayerNorm.weight").values,
           w.tensor("embeddings.LayerNorm.bias").values, 384};
  Random r(case_seed);
  matches_reference<T>(t, random_tokens(129, 30522, 512, r), {}, {}, variants[0]);
}

template <class T> static void add_cases() {
  const char* t = Element<T>::name;
  for (int n : {1, 3, 4, 5, 15, 16, 17, 63, 64, 65, 127, 128, 129, 511, 512})
    add_case(format("%s %d x 384", t, n), [=] { random_case<T>(n, 384, {}, {}, variants[0]); }, n == 5 ? QUICK : SLOW);
  for (int hidden : {8, 16, 248, 256, 264, 512, 520, 768, 1024, 1032, 2048, 2056, 4096, 8184, 8192})
    add_case(format("%s 7 x %d", t, hidden), [=] { random_case<T>(7, hidden, {}, {}, narrowest(hidden)); }, hidden == 2056 ? QUICK : SLOW);
  add_case(format("%s by a wider variant", t), [=] { random_case<T>(6, 384, {}, {}, variants[2]); });
  add_case(format("%s no types", t), [=] { random_case<T>(9, 384, {ROW_LAYERNORM, 1e-5f}, {true, false}, variants[0]); }, QUICK);
  add_case(format("%s no positions, no types, rms, no beta", t), [=] { random_case<T>(9, 768, {ROW_RMSNORM, 1e-6f, true, false}, {false, false}, variants[1]); });
  add_case(format("%s no gamma", t), [=] { random_case<T>(9, 768, {ROW_LAYERNORM, 1e-5f, false, true}, {}, variants[1]); });
  for (int hidden : {384, 1536, 3072})
    add_case(format("%s the sum alone, %d", t, hidden), [=] { random_case<T>(5, hidden, {ROW_AS_IT_IS}, {}, narrowest(hidden)); });
  add_case(format("%s real tables", t), real_tables<T>);
}

int main(int argc, char** argv) {
  add_cases<F16>();
  add_cases<BF16>();
  return run_cases(argc, argv);
}
