// Tests of kernels/attention.cu and kernels/attention_hopper.cu: all paths, head sizes and dtypes against f64 at ragged lengths, bias
// and window, what must not leak between sequences, what is promised about bits, real weights. The kernels come from their own tables.
#include "../../kernels/attention.cu"
#include "../../kernels/attention_hopper.cu"
#include "common.h"
#include <algorithm>
#include <numeric>

using AttentionKernel = void (*)(const half_t*, half_t*, const u128*, int, const float*, int, int);
using RingKernel = void (*)(const TensorMap&, half_t*, const u128*, int, int);
enum Path { SHORT, STREAM, RING };
struct Variant {
  const char* name;
  Path path;
  int head_dim, heads_per_block, tiles_per_block, query_rows, threads, shared_bytes;
  AttentionKernel f16, bf16;
  int pairs = 0;  // of key and value tiles that a ring has room for
  RingKernel ring_f16 = nullptr, ring_bf16 = nullptr;
  bool is_short() const { return path == SHORT; }
  int rows_per_entry() const { return query_rows / tiles_per_block; }
};
#define VARIANT(name, d, heads, tiles, queries, keys, min_blocks, threads, bytes) \
  {#name, tiles > 1 ? SHORT : STREAM, d, heads, tiles, queries, threads, bytes, name##_f16, name##_bf16},
#define RING_VARIANT(name, d, groups, pairs, threads, bytes) \
  {#name, RING, d, 1, 1, 64 * groups, threads, bytes, nullptr, nullptr, pairs, name##_f16, name##_bf16},
static const Variant VARIANTS[] = {ATTENTION_TILES(VARIANT) RING_TILES(RING_VARIANT)};
static const Variant& variant(Path path, int head_dim) {
  for (const Variant& v : VARIANTS)
    if (v.path == path && v.head_dim == head_dim) return v;
  FAIL("no such variant");
}

// ---- work lists, as the host builds them ------------------------------------------------------------------------------------
using WorkList = std::vector<u128>;
static std::vector<int> longest_first(const std::vector<int>& cu_seqlens) {
  std::vector<int> order(cu_seqlens.size() - 1);
  std::iota(order.begin(), order.end(), 0);
  std::stable_sort(order.begin(), order.end(), [&](int a, int b) { return cu_seqlens[a + 1] - cu_seqlens[a] > cu_seqlens[b + 1] - cu_seqlens[b]; });
  return order;
}
static void add_entries(WorkList& list, const std::vector<int>& cu_seqlens, int sequence, int rows_per_entry) {
  int start = cu_seqlens[sequence], tokens = cu_seqlens[sequence + 1] - start;
  for (int query = 0; query < tokens; query += rows_per_entry)
    list.push_back(u128{(uint32_t)start, (uint32_t)tokens, (uint32_t)query, (uint32_t)std::min(rows_per_entry, tokens - query)});
}
// Stream: an entry at every rows_per_entry-th query of each sequence.
static WorkList stream_list(const std::vector<int>& cu_seqlens, int rows_per_entry) {
  WorkList list;
  for (int s : longest_first(cu_seqlens)) add_entries(list, cu_seqlens, s, rows_per_entry);
  return list;
}
// Ring: a sequence that fits whole, or what lets its keys stream by.
static WorkList ring_list(const Variant& v, const std::vector<int>& cu_seqlens) {
  WorkList list;
  for (int s : longest_first(cu_seqlens)) {
    const int tokens = cu_seqlens[s + 1] - cu_seqlens[s];
    add_entries(list, cu_seqlens, s, tokens <= 64 * v.pairs ? std::max(64, tokens) : v.query_rows);
  }
  return list;
}
// Short: sequences of 4, 3, 2 and 1 slots into blocks of four. The longest first that still fits, until nothing does; what
// stays free becomes empty entries. With four sizes that needs the fewest blocks there can be.
static WorkList short_list(const std::vector<int>& cu_seqlens) {
  std::vector<int> waiting[5];
  std::vector<int> order = longest_first(cu_seqlens);
  std::reverse(order.begin(), order.end());  // taken from the back
  for (int s : order) waiting[(cu_seqlens[s + 1] - cu_seqlens[s] + 15) / 16].push_back(s);
  WorkList list;
  for (;;) {
    size_t before = list.size();
    for (int slots = 4, room = 4; slots >= 1; slots--)
      while (slots <= room && !waiting[slots].empty()) {
        add_entries(list, cu_seqlens, waiting[slots].back(), 16);
        waiting[slots].pop_back();
        room -= slots;
      }
    if (list.size() == before) return list;
    list.resize(before + 4, u128{0, 0, 0, 0});
  }
}
static WorkList work_list(const Variant& v, const std::vector<int>& cu_seqlens) {
  return v.path == SHORT ? short_list(cu_seqlens) : v.path == RING ? ring_list(v, cu_seqlens) : stream_list(cu_seqlens, v.rows_per_entry());
}

// ---- a problem, and its answers ---------------------------------------------------------------------------------------------
struct Problem {
  int heads, head_dim;
  std::vector<int> cu_seqlens;
  std::vector<half_t> qkv;       // [total_tokens, 3 heads head_dim]
  std::vector<float> bias = {};  // [heads, 2 radius + 1], or empty
  int radius = 0, window = 0;
  int hidden() const { return heads * head_dim; }
  int total_tokens() const { return cu_seqlens.back(); }
};
static std::vector<int> packed(const std::vector<int>& lengths) {
  std::vector<int> cu = {0};
  for (int n : lengths) cu.push_back(cu.back() + n);
  return cu;
}
constexpr float LOG2E = 1.44269504f;
// Scores of standard deviation `spread` (in log2 units), values of deviation 1.
template <class T> static Problem make_problem(Random& random, int heads, int head_dim, const std::vector<int>& lengths, float spread = 2) {
  Problem p{heads, head_dim, packed(lengths), {}};
  size_t rows = p.total_tokens(), hidden = p.hidden();
  for (size_t r = 0; r < rows; r++)
    for (size_t c = 0; c < 3 * hidden; c++) p.qkv.push_back(T::from_f32(random.normal(c < hidden ? spread / sqrtf((float)head_dim) : 1)));
  return p;
}
static void add_bias(Problem& p, Random& random, int radius, float deviation = 2) {
  p.radius = radius;
  p.bias = random.normals((size_t)p.heads * (2 * radius + 1), deviation);
}

// `most_blocks`: of a kernel whose blocks stay.
template <class T> static std::vector<half_t> run(const Variant& v, const Problem& p, WorkList list = {}, int most_blocks = 3) {
  if (list.empty()) list = work_list(v, p.cu_seqlens);
  EXPECT(list.size() % v.tiles_per_block == 0, "a work list of %zu entries", list.size());
  Guarded<half_t> qkv(p.qkv, "qkv"), out((size_t)p.total_tokens() * p.hidden(), "out");
  Guarded<u128> tiles(list, "tiles");
  Guarded<float> bias(p.bias.empty() ? std::vector<float>(1) : p.bias, "bias");
  if (v.path == RING) {
    TensorMap map = tensor_map(qkv.data(), p.total_tokens(), 3 * p.hidden(), 64, std::min(p.head_dim, 64));
    unsigned blocks = (unsigned)std::min((int)list.size() * p.heads, most_blocks);
    launch(std::is_same<T, F16>::value ? v.ring_f16 : v.ring_bf16, dim3e{blocks}, dim3e{(unsigned)v.threads}, v.shared_bytes, std::ref(map), out.data(),
           tiles.data(), (int)list.size(), p.heads);
    expect_no_bank_conflicts();
    return out.values();
  }
  unsigned blocks = (unsigned)(list.size() / v.tiles_per_block) * (unsigned)((p.heads + v.heads_per_block - 1) / v.heads_per_block);
  launch(std::is_same<T, F16>::value ? v.f16 : v.bf16, dim3e{blocks}, dim3e{(unsigned)v.threads}, v.shared_bytes, qkv.data(), out.data(),
         tiles.data(), p.heads, p.bias.empty() ? nullptr : bias.data(), p.radius, p.window);
  expect_no_bank_conflicts();
  return out.values();
}

// One query's answer in f64 and in the naive 16-bit way: fp32 arithmetic, weights and result stored in 16 bits. The naive
// scores stay in fp32: rounding them too would be the usual yardstick, but a three times blunter one.
template <class T> struct Oracle {
  const Problem& p;
  std::vector<double> wide;
  explicit Oracle(const Problem& problem) : p(problem), wide(widen16<T>(problem.qkv)) {}
  // scores += q . k, of `keys` keys
  REFERENCE static void dots(const double* q, const double* k, size_t stride, int keys, int d, double* scores, float* rough) {
    for (int key = 0; key < keys; key++, k += stride) {
      double s = 0;
      float r = 0;
      for (int i = 0; i < d; i++) s += q[i] * k[i];
      for (int i = 0; i < d; i++) r += (float)q[i] * (float)k[i];
      scores[key] += s;
      rough[key] += r;
    }
  }
  REFERENCE static void weighted(const double* scores, const float* rough, const double* v, size_t stride, int keys, int d, double* exact, float* rough_out) {
    for (int key = 0; key < keys; key++, v += stride) {
      for (int i = 0; i < d; i++) exact[i] += scores[key] * v[i];
      for (int i = 0; i < d; i++) rough_out[i] += rough[key] * (float)v[i];
    }
  }
  void answer(int start, int tokens, int query, int head, double* exact, double* naive) const {
    const int d = p.head_dim, hidden = p.hidden(), low = p.window > 0 ? std::max(0, query - p.window) : 0;
    const int high = p.window > 0 ? std::min(tokens - 1, query + p.window) : tokens - 1, keys = high - low + 1;
    const size_t stride = (size_t)3 * hidden;
    auto row = [&](int token, int part) { return &wide[(size_t)(start + token) * stride + (size_t)part * hidden + head * d]; };
    std::vector<double> scores(keys);
    std::vector<float> rough(keys), rough_out(d);
    if (!p.bias.empty())
      for (int key = low; key <= high; key++)
        scores[key - low] = rough[key - low] = p.bias[(size_t)head * (2 * p.radius + 1) + p.radius + std::max(-p.radius, std::min(p.radius, key - query))];
    dots(row(query, 0), row(low, 1), stride, keys, d, scores.data(), rough.data());
    const double top = *std::max_element(scores.begin(), scores.end());
    const float rough_top = *std::max_element(rough.begin(), rough.end());
    double sum = 0;
    float rough_sum = 0;
    for (double& s : scores) sum += s = exp2(s - top);
    for (float& r : rough) rough_sum += r = exp2f(r - rough_top);
    for (double& s : scores) s /= sum;
    for (float& r : rough) r = round16<T>(r / rough_sum);
    std::fill(exact, exact + d, 0);
    weighted(scores.data(), rough.data(), row(low, 2), stride, keys, d, exact, rough_out.data());
    for (int i = 0; i < d; i++) naive[i] = round16<T>(rough_out[i]);
  }
};
static void each_row(const WorkList& list, const std::function<void(int start, int tokens, int query)>& f) {
  for (const u128& e : list)
    for (int query = (int)e.z; query < (int)(e.z + e.w); query++) f((int)e.x, (int)e.y, query);
}
// Rows of the list against the reference; all other rows must be untouched.
template <class T> static void check(const char* what, const Variant& v, const Problem& p, WorkList list = {}) {
  if (list.empty()) list = work_list(v, p.cu_seqlens);
  std::vector<half_t> out = run<T>(v, p, list);
  Oracle<T> oracle(p);
  std::vector<double> got, exact, naive;
  std::vector<bool> written(out.size());
  const int d = p.head_dim;
  each_row(list, [&](int start, int tokens, int query) {
    for (int head = 0; head < p.heads; head++) {
      size_t at = (size_t)(start + query) * p.hidden() + head * d, n = exact.size();
      exact.resize(n + d);
      naive.resize(n + d);
      oracle.answer(start, tokens, query, head, &exact[n], &naive[n]);
      for (int i = 0; i < d; i++) {
        got.push_back(T::to_f32(out[at + i]));
        written[at + i] = true;
      }
    }
  });
  for (size_t i = 0; i < out.size(); i++) EXPECT(written[i] || out[i] == 0xFFFF, "row %zu, which is not in the list, was written", i / p.hidden());
  check_error(what, got, naive, exact, output_rounding<T>(exact));
}

// ---- the cases ------------------------------------------------------------------------------------------------------------
// All lengths of a path in one launch, so that every sequence has neighbours. Three heads: head size 32 takes two a block.
static const std::vector<int> SHORT_LENGTHS = {17, 1, 64, 15, 16, 63, 33, 48, 2, 49, 31, 32, 47, 8, 1};
static const std::vector<int> STREAM_LENGTHS = {65, 1, 127, 15, 16, 17, 63, 64, 128, 129, 31, 33};
static const std::vector<int>& lengths_of(const Variant& v) { return v.is_short() ? SHORT_LENGTHS : STREAM_LENGTHS; }

template <class T> static void ragged_case(const Variant& v, const char* kind) {
  Random random(case_seed);
  Problem p = make_problem<T>(random, 3, v.head_dim, lengths_of(v));
  if (strstr(kind, "bias")) add_bias(p, random, strchr(kind, '0') ? 0 : strchr(kind, '7') ? 7 : 200);
  if (const char* window = strstr(kind, "window=")) p.window = atoi(window + 7);
  check<T>("", v, p);
}
template <class T> static void lengths_case(const Variant& v, int heads, const std::vector<int>& lengths, int radius, int window) {
  Random random(case_seed);
  Problem p = make_problem<T>(random, heads, v.head_dim, lengths);
  if (radius) add_bias(p, random, radius);
  p.window = window;
  check<T>("", v, p);
}
// Some tiles of a long sequence only: the list decides what is computed.
template <class T> static void long_case(const Variant& v, int tokens, int window) {
  Random random(case_seed);
  Problem p = make_problem<T>(random, 1, v.head_dim, {5, tokens, 3});
  p.window = window;
  WorkList all = work_list(v, p.cu_seqlens), some;
  int of_long = (tokens + v.rows_per_entry() - 1) / v.rows_per_entry();
  for (int i : {0, of_long / 2, of_long - 1, of_long, of_long + 1}) some.push_back(all[i]);
  check<T>("", v, p, some);
}
// Logits of +-200 (log2 units): weights from 1 to far below the smallest fp16. And rising ones, tile after tile, where the
// maximum must be followed again and again; falling ones, where it must not.
template <class T> static void large_scores_case(const Variant& v, const char* kind) {
  Random random(case_seed);
  std::vector<int> lengths = lengths_of(v);
  if (!v.is_short()) lengths.push_back(300);
  Problem p = make_problem<T>(random, 2, v.head_dim, lengths, 60);
  const int hidden = p.hidden();
  if (strcmp(kind, "random")) {
    bool rising = !strcmp(kind, "rising");
    for (size_t s = 0; s + 1 < p.cu_seqlens.size(); s++)
      for (int start = p.cu_seqlens[s], tokens = p.cu_seqlens[s + 1] - start, t = 0; t < tokens; t++)
        for (int c = 0; c < 2 * hidden; c++) {
          float slope = 400.0f * (rising ? t : tokens - t) / tokens - 200, one = 1 / sqrtf((float)p.head_dim);
          p.qkv[(size_t)(start + t) * 3 * hidden + c] = T::from_f32(c < hidden ? one : slope * one * random.uniform(0.9f, 1.1f));
        }
  }
  check<T>("", v, p);
}
// All rows of V equal within a sequence: the weights sum to one whatever their rounding, so V comes out unchanged.
template <class T> static void equal_values_case(const Variant& v) {
  Random random(case_seed);
  Problem p = make_problem<T>(random, 2, v.head_dim, lengths_of(v), 4);
  const size_t hidden = p.hidden();
  for (size_t s = 0; s + 1 < p.cu_seqlens.size(); s++)
    for (int t = p.cu_seqlens[s] + 1; t < p.cu_seqlens[s + 1]; t++)
      std::copy_n(&p.qkv[p.cu_seqlens[s] * 3 * hidden + 2 * hidden], hidden, &p.qkv[t * 3 * hidden + 2 * hidden]);
  std::vector<half_t> out = run<T>(v, p);
  for (int t = 0; t < p.total_tokens(); t++)
    check_same_bits("a row of equal values", &out[t * hidden], &p.qkv[t * 3 * hidden + 2 * hidden], 2 * hidden);
}

// Bits: two runs; each sequence alone; the batch in another order, with other neighbours and empty entries in the list.
template <class T> static std::vector<half_t> rows_of(const Problem& p, const std::vector<half_t>& x, int columns, size_t sequence) {
  return std::vector<half_t>(x.begin() + (ptrdiff_t)p.cu_seqlens[sequence] * columns, x.begin() + (ptrdiff_t)p.cu_seqlens[sequence + 1] * columns);
}
template <class T> static void bits_case(const Variant& v, bool with_bias) {
  Random random(case_seed);
  Problem p = make_problem<T>(random, 3, v.head_dim, lengths_of(v), 8);
  if (with_bias) add_bias(p, random, 20);
  if (with_bias) p.window = 40;
  const int hidden = p.hidden();
  const size_t sequences = p.cu_seqlens.size() - 1;
  std::vector<half_t> out = run<T>(v, p), again = run<T>(v, p);
  check_same_bits("two runs", out.data(), again.data(), out.size() * 2);

  Problem turned = p;
  turned.cu_seqlens = {0};
  turned.qkv.clear();
  for (size_t s = sequences; s-- > 0;) {
    std::vector<half_t> rows = rows_of<T>(p, p.qkv, 3 * hidden, s), expected = rows_of<T>(p, out, hidden, s);
    Problem alone = p;
    alone.cu_seqlens = {0, (int)rows.size() / (3 * hidden)};
    alone.qkv = rows;
    check_same_bits("alone", run<T>(v, alone).data(), expected.data(), expected.size() * 2);
    turned.qkv.insert(turned.qkv.end(), rows.begin(), rows.end());
    turned.cu_seqlens.push_back(turned.cu_seqlens.back() + alone.total_tokens());
  }
  // single entries in reverse, so that in the short path too slots are other ones; empty entries between them
  WorkList list;
  for (size_t s = 0; s < sequences; s++) {
    WorkList one;
    if (v.is_short()) one.resize(((size_t)turned.cu_seqlens[s + 1] - turned.cu_seqlens[s] + 15) / 16 <= 2 ? s % 3 : 0, u128{0, 0, 0, 0});
    add_entries(one, turned.cu_seqlens, (int)s, v.rows_per_entry());  // of the ring: cut otherwise
    if (v.is_short()) one.resize(4, u128{0, 0, 0, 0});
    else one.push_back(u128{0, 0, 0, 0});
    list.insert(list.end(), one.begin(), one.end());
  }
  std::vector<half_t> other = run<T>(v, turned, list);
  for (size_t s = 0; s < sequences; s++) {
    std::vector<half_t> a = rows_of<T>(p, out, hidden, s), b = rows_of<T>(turned, other, hidden, sequences - 1 - s);
    check_same_bits("in another batch", a.data(), b.data(), a.size() * 2);
  }
}
// How a sequence's queries are cut, and how many blocks share the items, changes no bit.
template <class T> static void cuts_case(const Variant& v) {
  Random random(case_seed);
  Problem p = make_problem<T>(random, 2, v.head_dim, {300, 65, 128, 1, 190}, 8);
  std::vector<half_t> whole = run<T>(v, p);
  for (int rows : {64, 128, 192})
    for (int blocks : {1, 2, 7, 1000}) {
      WorkList list;
      for (size_t s = 0; s + 1 < p.cu_seqlens.size(); s++) {
        add_entries(list, p.cu_seqlens, (int)s, rows);
        if (s % 2) list.push_back(u128{0, 0, 0, 0});
      }
      std::vector<half_t> cut = run<T>(v, p, list, blocks);
      check_same_bits("cut and shared otherwise", cut.data(), whole.data(), whole.size() * 2);
    }
}
// Items of one tile of queries and as many of keys as fit: a warpgroup without a part of two in a row must not run ahead of the others
// by a round of the ring.
template <class T> static void idle_case(const Variant& v) {
  Random random(case_seed);
  Problem p = make_problem<T>(random, 1, v.head_dim, {64 * v.pairs - 7});
  WorkList list;
  add_entries(list, p.cu_seqlens, 0, 64);
  if (list.size() > 12) list.resize(12);
  check<T>("", v, p, list);
}
// NaN or Inf in every second sequence: the others keep their bits, and these show it in each row and head.
template <class T> static void poison_case(const Variant& v, float poison, int window) {
  Random random(case_seed);
  Problem p = make_problem<T>(random, 3, v.head_dim, lengths_of(v));
  p.window = window;
  std::vector<half_t> clean = run<T>(v, p);
  const int hidden = p.hidden();
  for (size_t parity = 0; parity < 2; parity++) {
    Problem q = p;
    for (size_t s = parity; s + 1 < p.cu_seqlens.size(); s += 2)
      std::fill(q.qkv.begin() + (ptrdiff_t)p.cu_seqlens[s] * 3 * hidden, q.qkv.begin() + (ptrdiff_t)p.cu_seqlens[s + 1] * 3 * hidden, T::from_f32(poison));
    std::vector<half_t> out = run<T>(v, q);
    for (size_t s = 0; s + 1 < p.cu_seqlens.size(); s++) {
      std::vector<half_t> a = rows_of<T>(p, clean, hidden, s), b = rows_of<T>(p, out, hidden, s);
      if (s % 2 != parity) check_same_bits("beside a poisoned sequence", a.data(), b.data(), a.size() * 2);
      else
        for (half_t h : b) EXPECT(!std::isfinite(T::to_f32(h)), "sequence %zu is %g throughout, its output is not", s, poison);
    }
  }
}
// One bad element: of a key, it must show in all rows of its sequence and head that see it; of a value, in its column.
template <class T> static void bad_element_case(const Variant& v) {
  Random random(case_seed);
  int tokens = v.is_short() ? 50 : 150, bad = tokens - 3;
  for (int part : {1, 2})
    for (float value : {(float)NAN, (float)INFINITY}) {
      Problem p = make_problem<T>(random, 2, v.head_dim, {tokens, 10});
      const int hidden = p.hidden();
      p.qkv[(size_t)bad * 3 * hidden + part * hidden + v.head_dim + 5] = T::from_f32(value);  // of head 1
      std::vector<half_t> out = run<T>(v, p);
      for (int t = 0; t < tokens + 10; t++)
        for (int c = 0; c < hidden; c++) {
          bool finite = std::isfinite(T::to_f32(out[(size_t)t * hidden + c]));
          bool reached = t < tokens && (part == 1 ? c >= v.head_dim : c == v.head_dim + 5);
          // an infinite score is -Inf for half of the queries: these do not see the key
          if (part == 1 && std::isinf(value) && reached) continue;
          EXPECT(finite != reached, "%g in part %d: row %d column %d", value, part, t, c);
        }
      int bad_rows = 0;
      for (int t = 0; t < tokens; t++) bad_rows += !std::isfinite(T::to_f32(out[(size_t)t * hidden + v.head_dim]));
      if (part == 1 && std::isinf(value)) EXPECT(bad_rows > tokens / 4, "Inf in a key shows in %d rows of %d", bad_rows, tokens);
    }
}

// Layer 0 of all-MiniLM on rows as its embedding layer makes them: q, k, v as its weights give them.
template <class T> static void real_weights_case(Path path) {
  constexpr int HIDDEN = 384, HEADS = 12, D = 32;
  Random random(case_seed);
  Weights& w = Weights::get();
  std::vector<int> lengths = path == SHORT ? std::vector<int>{12, 41, 64} : std::vector<int>{130, 70};
  Problem p{HEADS, D, packed(lengths), {}};
  Tensor words = w.tensor("embeddings.word_embeddings.weight"), positions = w.tensor("embeddings.position_embeddings.weight");
  Tensor types = w.tensor("embeddings.token_type_embeddings.weight");
  Tensor gamma = w.tensor("embeddings.LayerNorm.weight"), beta = w.tensor("embeddings.LayerNorm.bias");
  const char* names[] = {"query", "key", "value"};
  Tensor weight[3], bias[3];
  for (int part = 0; part < 3; part++) {
    weight[part] = w.tensor(format("encoder.layer.0.attention.self.%s.weight", names[part]));
    bias[part] = w.tensor(format("encoder.layer.0.attention.self.%s.bias", names[part]));
  }
  for (size_t s = 0; s < lengths.size(); s++)
    for (int t = 0; t < lengths[s]; t++) {
      int id = t == 0 ? 101 : t == lengths[s] - 1 ? 102 : random.integer(1996, 12000);  // [CLS] words [SEP]
      std::vector<float> x(HIDDEN);
      double mean = 0, square = 0;
      for (int c = 0; c < HIDDEN; c++) {
        x[c] = words.values[(size_t)id * HIDDEN + c] + positions.values[(size_t)t * HIDDEN + c] + types.values[c];
        mean += x[c] / HIDDEN;
      }
      for (int c = 0; c < HIDDEN; c++) square += (x[c] - mean) * (x[c] - mean) / HIDDEN;
      for (int c = 0; c < HIDDEN; c++) x[c] = (float)((x[c] - mean) / sqrt(square + 1e-12)) * gamma.values[c] + beta.values[c];
      for (int part = 0; part < 3; part++)
        for (int o = 0; o < HIDDEN; o++) {
          float y = bias[part].values[o];
          for (int c = 0; c < HIDDEN; c++) y += weight[part].values[(size_t)o * HIDDEN + c] * x[c];
          p.qkv.push_back(T::from_f32(part ? y : y * LOG2E / sqrtf(D)));
        }
    }
  check<T>("", variant(path, D), p);
}

// The lists themselves: every query once, blocks of the short path whole, and no more of them than needed.
static void work_list_case() {
  Random random(case_seed);
  for (int trial = 0; trial < 200; trial++) {
    std::vector<int> lengths(random.integer(1, 60));
    for (int& n : lengths) n = random.integer(1, trial % 2 ? 64 : 20);
    std::vector<int> cu = packed(lengths), seen(cu.back());
    WorkList list = short_list(cu);
    EXPECT(list.size() % 4 == 0, "%zu entries", list.size());
    for (size_t i = 0; i < list.size(); i++)
      if (list[i].y) EXPECT(list[i].z / 16 <= i % 4 && list[i - list[i].z / 16].x == list[i].x && i % 4 - list[i].z / 16 + (list[i].y + 15) / 16 <= 4, "entry %zu: its sequence is not whole", i);
    each_row(list, [&](int start, int, int query) { seen[start + query]++; });
    for (int n : seen) EXPECT(n == 1, "a query is %d times in the list", n);
    int slots[5] = {};
    for (int n : lengths) slots[(n + 15) / 16]++;
    // fours alone, threes with a one each, twos in pairs, the rest of the ones in the gaps
    int ones = std::max(0, slots[1] - slots[3] - slots[2] % 2 * 2);
    size_t blocks = slots[4] + slots[3] + (slots[2] + 1) / 2 + (ones + 3) / 4;
    EXPECT(list.size() == 4 * blocks, "%zu entries in the list, %zu blocks would do", list.size(), blocks);
  }
}

// ---- registration -----------------------------------------------------------------------------------------------------------
template <class T> static void add_cases_of(const Variant& v) {
  auto add = [&](const std::string& what, std::function<void()> body, Speed speed = SLOW) {
    add_case(format("%s_%s %s", v.name, Element<T>::name, what.c_str()), std::move(body), speed);
  };
  for (const char* kind : {"plain", "bias radius 0", "bias radius 7", "bias wide", "window=1", "window=5", "window=20", "window=64 bias wide", "window=100000"})
    if (v.path != RING || !strcmp(kind, "plain")) add(std::string("ragged ") + kind, [&v, kind] { ragged_case<T>(v, kind); }, !strcmp(kind, "plain") ? QUICK : SLOW);
  for (const char* kind : {"random", "rising", "falling"}) add(std::string("large scores ") + kind, [&v, kind] { large_scores_case<T>(v, kind); });
  add("equal values", [&v] { equal_values_case<T>(v); });
  add("bits", [&v] { bits_case<T>(v, false); });
  if (v.path != RING) add("bits bias window", [&v] { bits_case<T>(v, true); });
  add("NaN beside", [&v] { poison_case<T>(v, NAN, 0); });
  add("Inf beside", [&v] { poison_case<T>(v, INFINITY, v.path == RING ? 0 : 30); });
  add("bad element", [&v] { bad_element_case<T>(v); });
  if (v.is_short()) {
    std::vector<int> many;
    Random random(7);
    for (int i = 0; i < 60; i++) many.push_back(random.integer(1, 40));
    add("many sequences", [&v, many] { lengths_case<T>(v, 5, many, 0, 0); });
    add("12 heads", [&v] { lengths_case<T>(v, 12, {37, 64, 5}, 10, 0); });
    add("quick bias window", [&v] { lengths_case<T>(v, 3, {17, 64, 3, 1}, 9, 30); }, QUICK);
  } else if (v.path == RING) {
    add("511 512 513", [&v] { lengths_case<T>(v, 1, {511, 512, 513}, 0, 0); });
    add("around what fits", [&v] { lengths_case<T>(v, 1, {64 * v.pairs + 1, 64 * v.pairs, 64 * v.pairs - 1}, 0, 0); });
    add("one long among many short", [&v] { lengths_case<T>(v, 2, {3, 1, 20, 600, 7, 1, 64, 12, 33}, 0, 0); });
    add("12 heads", [&v] { lengths_case<T>(v, 12, {70, 90}, 0, 0); });
    add("2000", [&v] { long_case<T>(v, 2000, 0); });
    add("8192", [&v] { long_case<T>(v, 8192, 0); });
    add("cuts and blocks", [&v] { cuts_case<T>(v); });
    add("one tile an entry", [&v] { idle_case<T>(v); });
    add("more tiles than the ring has", [&v] { lengths_case<T>(v, 1, {65, 193, 130, 66, 64 * v.pairs, 129, 100}, 0, 0); }, QUICK);
  } else {
    add("511 512", [&v] { lengths_case<T>(v, 1, {511, 512}, 0, 0); });
    add("1025 bias", [&v] { lengths_case<T>(v, 1, {1025}, 128, 0); });
    add("1025 window", [&v] { lengths_case<T>(v, 1, {1025}, 0, 100); });
    // the first and last key of a tile are just out of reach of a warp's last and first query: the mask must not be left out
    add("window at tile edges", [&v] { lengths_case<T>(v, 1, {300}, 0, 126); });
    add("one long among many short", [&v] { lengths_case<T>(v, 2, {3, 1, 20, 600, 7, 1, 64, 12, 33}, 0, 0); });
    add("12 heads", [&v] { lengths_case<T>(v, 12, {70, 90}, 50, 0); });
    add("4096", [&v] { long_case<T>(v, 4096, 0); });
    add("8192 window", [&v] { long_case<T>(v, 8191, 128); });
    add("quick bias window", [&v] { lengths_case<T>(v, 1, {130, 3, 65}, 9, 40); }, QUICK);
  }
}
static int register_all() {
  add_case("work list", work_list_case, QUICK);
  for (const Variant& v : VARIANTS) {
    add_cases_of<F16>(v);
    add_cases_of<BF16>(v);
  }
  for (Path path : {SHORT, STREAM, RING}) {
    const char* name = path == SHORT ? "short" : path == STREAM ? "stream" : "ring";
    add_case(format("real weights %s f16", name), [path] { real_weights_case<F16>(path); });
    add_case(format("real weights %s bf16", name), [path] { real_weights_case<BF16>(path); });
  }
  // the whole of an 8,192-token sequence's keys, once
  add_case("attention_stream_d64_f16 8192", [] { long_case<F16>(variant(STREAM, 64), 8192, 0); });
  return 0;
}
static const int registered = register_all();

int main(int argc, char** argv) { return run_cases(argc, argv); }
