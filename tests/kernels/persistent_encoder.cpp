// The encoder in one launch: random models of odd sizes and all-MiniLM-L6-v2, from ids to vectors, against a plain forward in f64;
// and bits, which are the same however the blocks are interleaved, however many there are, and whatever else is in the batch.
#include "../../kernels/persistent_encoder.cu"
#include "common.h"
#include <algorithm>
#include <memory>

typedef std::vector<std::vector<int>> Ids;
constexpr float EPS = 1e-12f;

struct Size {
  int hidden, heads, inner, layers;
  int pooling = POOL_MEAN, activation = ACT_GELU, normalize = 1;
};
constexpr int VOCABULARY = 97, TYPES = 2;

// ---- a model, and its plain forward ---------------------------------------------------------------------------------------
struct PlainLayer { std::vector<float> w[6], b[6], gamma[2], beta[2]; };  // query, key, value, projection, up, down
struct PlainModel {
  Size size;
  std::vector<float> word, position, type, gamma, beta;
  std::vector<PlainLayer> layers;

  static PlainModel random(Size size, uint64_t seed) {
    Random r(seed);
    PlainModel m{size, {}, {}, {}, {}, {}, {}};
    const size_t h = size.hidden;
    auto norm = [&](std::vector<float>& gamma, std::vector<float>& beta) { gamma = r.normals(h, 0.1f, 1); beta = r.normals(h, 0.1f); };
    m.word = r.normals(VOCABULARY * h);
    m.position = r.normals(persistent::MOST_TOKENS * h, 0.3f);
    m.type = r.normals(TYPES * h, 0.3f);
    norm(m.gamma, m.beta);
    for (int l = 0; l < size.layers; l++) {
      PlainLayer p;
      for (int i = 0; i < 6; i++) {
        size_t n = i == 4 ? size.inner : h, k = i == 5 ? size.inner : h;
        p.w[i] = r.normals(n * k, 1 / sqrtf((float)k));
        p.b[i] = r.normals(n, 0.1f);
      }
      for (int i : {0, 1}) norm(p.gamma[i], p.beta[i]);
      m.layers.push_back(p);
    }
    return m;
  }
  static const PlainModel& minilm() {
    static std::unique_ptr<PlainModel> model;  // not a static PlainModel: reading it may throw SKIP, more than once
    if (model) return *model;
    auto& file = Weights::get();
    auto tensor = [&](const std::string& name) { return file.tensor(name).values; };
    PlainModel m{{384, 12, 1536, 6}, tensor("embeddings.word_embeddings.weight"), tensor("embeddings.position_embeddings.weight"),
                 tensor("embeddings.token_type_embeddings.weight"), tensor("embeddings.LayerNorm.weight"), tensor("embeddings.LayerNorm.bias"), {}};
    const char* const names[6] = {"attention.self.query", "attention.self.key", "attention.self.value", "attention.output.dense", "intermediate.dense", "output.dense"};
    for (int l = 0; l < m.size.layers; l++) {
      const std::string at = format("encoder.layer.%d.", l);
      PlainLayer p;
      for (int i = 0; i < 6; i++) { p.w[i] = tensor(at + names[i] + ".weight"); p.b[i] = tensor(at + names[i] + ".bias"); }
      for (int i : {0, 1}) {
        const std::string norm = at + (i ? "output" : "attention.output") + ".LayerNorm.";
        p.gamma[i] = tensor(norm + "weight");
        p.beta[i] = tensor(norm + "bias");
      }
      m.layers.push_back(p);
    }
    model.reset(new PlainModel(m));
    return *model;
  }

  // `left_out`: of each sequence, tokens at its start that the pooling leaves out; empty: none
  std::vector<std::vector<double>> forward(const Ids& batch, const std::vector<int>& left_out) const {
    std::vector<std::vector<double>> vectors;
    for (size_t s = 0; s < batch.size(); s++) vectors.push_back(vector_of(batch[s], left_out.empty() ? 0 : (size_t)left_out[s]));
    return vectors;
  }

 private:
  typedef std::vector<double> Rows;
  Rows linear(const Rows& x, const PlainLayer& p, int i) const {
    const size_t n = p.b[i].size(), k = p.w[i].size() / n;
    Rows out = product(x, p.w[i], x.size() / k, n, k);
    for (size_t c = 0; c < out.size(); c++) out[c] += p.b[i][c % n];
    return out;
  }
  void layernorm(Rows& x, const std::vector<float>& gamma, const std::vector<float>& beta) const {
    const size_t h = gamma.size();
    for (size_t r = 0; r < x.size(); r += h) {
      double mean = 0, squares = 0;
      for (size_t c = 0; c < h; c++) mean += x[r + c] / (double)h;
      for (size_t c = 0; c < h; c++) squares += (x[r + c] - mean) * (x[r + c] - mean);
      for (size_t c = 0; c < h; c++) x[r + c] = (x[r + c] - mean) / sqrt(squares / (double)h + EPS) * gamma[c] + beta[c];
    }
  }
  static double activated(double x, int activation) {
    return activation == ACT_GELU ? 0.5 * x * erfc(-x * M_SQRT1_2) : activation == ACT_RELU ? fmax(x, 0) : x / (1 + exp(-x));
  }
  std::vector<double> vector_of(const std::vector<int>& ids, size_t left_out) const {
    const size_t h = size.hidden, n = ids.size(), d = h / size.heads;
    Rows x;
    for (size_t t = 0; t < n; t++)
      for (size_t c = 0; c < h; c++) x.push_back((double)word[ids[t] * h + c] + position[t * h + c] + type[c]);
    layernorm(x, gamma, beta);
    for (auto& p : layers) {
      Rows q = linear(x, p, 0), k = linear(x, p, 1), v = linear(x, p, 2), context(n * h);
      for (size_t at = 0; at < h; at += d)
        for (size_t i = 0; i < n; i++) {
          std::vector<double> s(n);
          double top = -INFINITY, sum = 0;
          for (size_t j = 0; j < n; j++) {
            for (size_t c = at; c < at + d; c++) s[j] += q[i * h + c] * k[j * h + c] / sqrt((double)d);
            top = fmax(top, s[j]);
          }
          for (double& w : s) sum += w = exp(w - top);
          for (size_t j = 0; j < n; j++)
            for (size_t c = at; c < at + d; c++) context[i * h + c] += s[j] / sum * v[j * h + c];
        }
      Rows y = linear(context, p, 3);
      for (size_t i = 0; i < y.size(); i++) y[i] += x[i];
      layernorm(y, p.gamma[0], p.beta[0]);
      Rows inner = linear(y, p, 4);
      for (double& u : inner) u = activated(u, size.activation);
      x = linear(inner, p, 5);
      for (size_t i = 0; i < x.size(); i++) x[i] += y[i];
      layernorm(x, p.gamma[1], p.beta[1]);
    }
    std::vector<double> pooled(h);
    const size_t end = size.pooling == POOL_CLS ? left_out + 1 : n;
    for (size_t t = left_out; t < end; t++)
      for (size_t c = 0; c < h; c++) pooled[c] += x[t * h + c] / (double)(end - left_out);
    double squares = 0;
    for (double v : pooled) squares += v * v;
    if (size.normalize)
      for (double& v : pooled) v /= sqrt(squares);
    return pooled;
  }
};

// ---- the model on the device ------------------------------------------------------------------------------------------------
// On a team: `clusters` of so many blocks, or the grid.
struct Teams {
  int blocks, clusters;
  Teams(int blocks, int clusters = 0) : blocks(blocks), clusters(clusters) {}
  std::string text() const { return clusters ? format("%d clusters of %d", clusters, blocks) : format("%d blocks", blocks); }
};
template <class T> class Encoder {
 public:
  Encoder(const PlainModel& m, Teams teams) : size_(m.size), teams_(teams) {
    const size_t rows = persistent::MOST_TOKENS, h = m.size.hidden;
    x_.reset(new Guarded<half_t>(rows * h, "x"));
    y_.reset(new Guarded<half_t>(rows * h, "y"));
    z_.reset(new Guarded<half_t>(rows * h, "attended"));
    qkv_.reset(new Guarded<half_t>(rows * 3 * h, "qkv"));
    wide_.reset(new Guarded<half_t>(rows * (size_t)m.size.inner, "wide"));
    barrier_.reset(new Guarded<uint32_t>(teams.blocks, "barrier"));
    memset(barrier_->data(), 0, barrier_->bytes());
    std::vector<PersistentProduct> products;
    const PlainLayer* below = nullptr;
    for (auto& p : m.layers) {
      std::vector<float> qkv, bias;
      for (int part = 0; part < 3; part++) {
        float scale = part == 0 ? LOG2_E / sqrtf((float)(m.size.hidden / m.size.heads)) : 1;
        for (float v : p.w[part]) qkv.push_back(v * scale);
        for (float v : p.b[part]) bias.push_back(v * scale);
      }
      auto from = [](const PlainLayer* layer, int i) { return Norm{layer ? &layer->gamma[i] : nullptr, layer ? &layer->beta[i] : nullptr}; };
      products.push_back(product(qkv, bias, *x_, *qkv_, from(below, 1), nullptr, {}));
      products.push_back(product(p.w[3], p.b[3], *z_, *y_, {}, x_.get(), from(below, 1)));
      products.push_back(product(p.w[4], p.b[4], *y_, *wide_, from(&p, 0), nullptr, {}));
      products.back().epilogue.activation = m.size.activation;
      products.push_back(product(p.w[5], p.b[5], *wide_, *x_, {}, y_.get(), from(&p, 0)));
      below = &p;
    }
    products_.reset(new Guarded<PersistentProduct>(products, "products"));
    products_->holds_addresses();
    model_ = PersistentModel{to16(m.word), to16(m.position), to16(m.type), to32(m.gamma), to32(m.beta), products_->data(), x_->data(), qkv_->data(),
                             z_->data(), to32(below->gamma[1]), to32(below->beta[1]), barrier_->data(), tiles_.data(), ends_.data(),
                             left_out_.data(), m.size.layers, m.size.hidden, m.size.heads,
                             m.size.hidden / m.size.heads, EPS, EPS, m.size.pooling, 0};
  }

  std::vector<float> forward(const Ids& batch, const std::vector<int>& left_out = {}) {
    std::vector<int> ids, positions, types, cu{0};
    std::vector<u128> tiles{u128{0, 0, 0, 0}};  // one to skip
    // each cluster has as many sequences
    const int sequences = (int)batch.size(), parts = std::max(1, std::min(teams_.clusters, sequences));
    PersistentBatch b{};
    for (auto& sequence : batch) {
      const int part = (int)cu.size() - 1;
      for (int i = 1; i < parts; i++)
        if (part == i * sequences / parts) b.begin[i] = PersistentPart{part, (int)ids.size(), (int)tiles.size(), 0};
      unsigned start = (unsigned)cu.back(), tokens = (unsigned)sequence.size();
      for (unsigned t = 0; t < tokens; t++) { ids.push_back(sequence[t]); positions.push_back((int)t); types.push_back(0); }
      for (unsigned q = 0; q < tokens; q += 16) tiles.push_back(u128{start, tokens, q, 0});
      cu.push_back((int)ids.size());
    }
    Guarded<int> ids_d(ids, "ids"), positions_d(positions, "position_ids"), types_d(types, "type_ids"), cu_d(cu, "cu_seqlens");
    Guarded<int> left_out_d(left_out, "left_out");
    Guarded<u128> tiles_d(tiles, "tiles");
    for (GuardedBase* given : std::initializer_list<GuardedBase*>{&ids_d, &positions_d, &types_d, &cu_d, &left_out_d, &tiles_d}) given->read_once();
    Guarded<float> vectors(batch.size() * size_.hidden, "vectors");
    b.begin[parts] = PersistentPart{sequences, (int)ids.size(), (int)tiles.size(), 0};
    b.ids = ids_d.data(); b.position_ids = positions_d.data(); b.type_ids = types_d.data(); b.cu_seqlens = cu_d.data();
    b.left_out = left_out.empty() ? nullptr : left_out_d.data();
    b.tiles = tiles_d.data();
    b.vectors = vectors.data();
    b.normalize = size_.normalize;
    b.parts = parts;
    b.in_clusters = teams_.clusters > 0;
    for (auto* buffer : {x_.get(), y_.get(), z_.get(), qkv_.get(), wide_.get()}) buffer->refill_with_nan();  // nothing is left from before
    vectors.write_once();
    launch_in_clusters(teams_.clusters ? teams_.blocks : KERNELS_OWN_CLUSTER, std::is_same<T, F16>::value ? persistent_encoder_f16 : persistent_encoder_bf16,
                       {(unsigned)(parts * teams_.blocks)}, {persistent::THREADS}, (size_t)(persistent::WARPS * persistent::SUM_BYTES + weight_bytes()), model_, b);
    launches_ += !teams_.clusters;
    // the embeddings, five phases a layer; a launch on these words begins where the one before has ended
    for (int i = 0; i < teams_.blocks; i++)
      EXPECT((*barrier_)[i] == (uint32_t)(launches_ * (1 + 5 * size_.layers)), "block %d has arrived %u times", i, (*barrier_)[i]);
    return vectors.values();
  }

 private:
  // more where clusters are
  int weight_bytes() const { return teams_.clusters ? 96 << 10 : persistent::LEAST_WEIGHT_BYTES; }
  struct Norm { const std::vector<float>*gamma = nullptr, *beta = nullptr; };
  const half_t* keep16(const std::vector<half_t>& v) {
    halves_.emplace_back(new Guarded<half_t>(v, "a weight"));
    return halves_.back()->data();
  }
  const half_t* to16(const std::vector<float>& v) {  // tables are fp16
    std::vector<half_t> h(v.size());
    for (size_t i = 0; i < v.size(); i++) h[i] = F16::from_f32(v[i]);
    return keep16(h);
  }
  const float* to32(const std::vector<float>& v) {
    floats_.emplace_back(new Guarded<float>(v, "a vector"));
    return floats_.back()->data();
  }
  PersistentProduct product(const std::vector<float>& w, const std::vector<float>& bias, const Guarded<half_t>& a, Guarded<half_t>& c, Norm input,
                            const Guarded<half_t>* residual, Norm of_residual) {
    PersistentProduct p{};
    p.a = a.data();
    p.c = c.data();
    p.n = (int)bias.size();
    p.k = (int)(w.size() / bias.size());
    p.units_held = weight_bytes() / (16 * ((p.k + 63) / 64 * 64));
    Epilogue& e = p.epilogue;
    e.norm_eps = EPS;
    e.norm_columns = size_.hidden;
    if (input.gamma) {
      Folded<T> folded(w, *input.gamma, *input.beta, bias);
      p.w = keep16(folded.w);
      e.bias = to32(folded.bias);
      e.norm_target = NORM_INPUT;
      e.norm_scale = to32(folded.colsum);
    } else {
      std::vector<half_t> h;
      for (float v : w) h.push_back(T::from_f32(v));
      p.w = keep16(h);
      e.bias = to32(bias);
    }
    if (residual) e.residual = residual->data();
    if (of_residual.gamma) {
      e.norm_target = NORM_RESIDUAL;
      e.norm_scale = to32(*of_residual.gamma);
      e.norm_shift = to32(*of_residual.beta);
    }
    return p;
  }

  Size size_;
  Teams teams_;
  int launches_ = 0;  // of the grid
  std::unique_ptr<Guarded<half_t>> x_, y_, z_, qkv_, wide_;
  std::unique_ptr<Guarded<uint32_t>> barrier_;
  Guarded<u128> tiles_{persistent::MOST_TOKENS, "the kernel's tiles"};
  Guarded<int> ends_{persistent::MOST_TOKENS, "the kernel's ends"}, left_out_{persistent::MOST_TOKENS, "the kernel's left_out"};
  std::unique_ptr<Guarded<PersistentProduct>> products_;
  std::vector<std::unique_ptr<Guarded<half_t>>> halves_;
  std::vector<std::unique_ptr<Guarded<float>>> floats_;
  PersistentModel model_;
};

// ---- cases ------------------------------------------------------------------------------------------------------------------
static Ids sequences(const std::vector<int>& lengths, int vocabulary = VOCABULARY) {
  Random r(case_seed);
  Ids batch;
  for (int n : lengths) {
    batch.emplace_back();
    for (int t = 0; t < n; t++) batch.back().push_back(r.integer(0, vocabulary - 1));
  }
  return batch;
}
static double angle(const float* a, const std::vector<double>& b) {  // 1 - cosine
  double dot = 0, aa = 0, bb = 0;
  for (size_t c = 0; c < b.size(); c++) { dot += (double)a[c] * b[c]; aa += (double)a[c] * a[c]; bb += b[c] * b[c]; }
  return 1 - dot / sqrt(aa * bb);
}
template <class T> static void check_vectors(const PlainModel& m, const Ids& batch, const std::vector<float>& got, const std::vector<int>& left_out = {}) {
  const auto want = m.forward(batch, left_out);
  const double bar = std::is_same<T, F16>::value ? 1e-5 : 1e-4;
  double worst = 0;
  for (size_t s = 0; s < batch.size(); s++) {
    const float* v = &got[s * m.size.hidden];
    const double off = angle(v, want[s]);
    EXPECT(off <= bar, "sequence %zu of %zu tokens: 1 - cosine is %.3g", s, batch[s].size(), off);
    double length = 0, wanted = 0;
    for (int c = 0; c < m.size.hidden; c++) { length += (double)v[c] * v[c]; wanted += want[s][c] * want[s][c]; }
    EXPECT(fabs(sqrt(length / wanted) - 1) <= 100 * bar, "sequence %zu: length %g, reference %g", s, sqrt(length), sqrt(wanted));
    worst = fmax(worst, off);
  }
  NOTE("1 - cosine %.1e", worst);
}
template <class T> static void matches(Size size, const std::vector<int>& lengths, Teams teams) {
  const PlainModel m = PlainModel::random(size, case_seed);
  const Ids batch = sequences(lengths);
  Encoder<T> encoder(m, teams);
  check_vectors<T>(m, batch, encoder.forward(batch));
  expect_no_bank_conflicts(std::max(1, teams.clusters) * teams.blocks);
}
template <class T> static void leaves_out(Size size, const std::vector<int>& lengths, const std::vector<int>& left_out, Teams teams) {
  const PlainModel m = PlainModel::random(size, case_seed);
  const Ids batch = sequences(lengths);
  Encoder<T> encoder(m, teams);
  check_vectors<T>(m, batch, encoder.forward(batch, left_out), left_out);
}
// Several batches one after another, of which the last is the first again.
template <class T> static void launches_follow_each_other(Size size, Teams teams) {
  const PlainModel m = PlainModel::random(size, case_seed);
  Encoder<T> encoder(m, teams);
  const Ids first = sequences({9, 3}), other = sequences({40});
  const std::vector<float> vectors = encoder.forward(first);
  check_vectors<T>(m, other, encoder.forward(other));
  check_same_bits("the first batch again", encoder.forward(first).data(), vectors.data(), vectors.size() * 4);
}
// On any number of blocks, of the grid or of clusters, and alone or beside others.
template <class T> static void bits_depend_on_the_sequence_alone(Size size) {
  const PlainModel m = PlainModel::random(size, case_seed);
  const Ids batch = sequences({18, 1, 35});
  const std::vector<float> vectors = Encoder<T>(m, 1).forward(batch);
  for (Teams teams : {Teams(2), Teams(5), Teams(13), Teams(16, 1), Teams(3, 2), Teams(5, 8)}) check_same_bits(teams.text().c_str(), Encoder<T>(m, teams).forward(batch).data(), vectors.data(), vectors.size() * 4);
  Encoder<T> encoder(m, 3);
  for (size_t s = 0; s < batch.size(); s++)
    check_same_bits("alone", encoder.forward({batch[s]}).data(), &vectors[s * size.hidden], (size_t)size.hidden * 4);
}
// Blocks, warps and lanes in a hundred orders, left wherever they touch a word of the barrier.
template <class T> static void bits_are_stable_over_interleavings(Size size, Teams teams) {
  if (!emu::emulated()) SKIP("a GPU is not told in which order to run");
  const PlainModel m = PlainModel::random(size, case_seed);
  const Ids batch = sequences({7, 20});
  Encoder<T> encoder(m, teams);
  const std::vector<float> vectors = encoder.forward(batch);
  const emu::Options before = emu::opt;
  emu::opt.order = emu::SHUFFLE;
  try {
    for (unsigned seed = 1; seed <= 100; seed++) {
      emu::opt.seed = seed;
      check_same_bits(format("interleaving %u", seed).c_str(), encoder.forward(batch).data(), vectors.data(), vectors.size() * 4);
    }
  } catch (...) { emu::opt = before; throw; }
  emu::opt = before;
}
template <class T> static void minilm(const std::vector<int>& lengths, Teams teams) {
  const PlainModel& m = PlainModel::minilm();
  const Ids batch = sequences(lengths, 30000);
  check_vectors<T>(m, batch, Encoder<T>(m, teams).forward(batch));
}

template <class T> static void add_cases() {
  const char* t = Element<T>::name;
  const Size odd[] = {{64, 2, 96, 2}, {96, 3, 328, 2, POOL_CLS, ACT_RELU}, {64, 1, 40, 2, POOL_MEAN, ACT_SILU, 0}, {192, 3, 136, 1}, {128, 1, 264, 2}, {256, 2, 72, 1, POOL_CLS}};
  for (const Size& s : odd)
    for (const std::vector<int>& lengths : std::vector<std::vector<int>>{{1}, {16}, {17, 2}, {5, 33, 1, 40}, {130, 70}})
      for (Teams teams : {Teams(1), Teams(5), Teams(4, 2)}) {
        std::string text;
        for (int n : lengths) text += format(" %d", n);
        add_case(format("%s hidden %d heads %d inner %d, tokens%s, %s", t, s.hidden, s.heads, s.inner, text.c_str(), teams.text().c_str()),
                 [=] { matches<T>(s, lengths, teams); }, teams.blocks > 1 && lengths.size() == 2 && lengths[0] == 17 ? QUICK : SLOW);
      }
  add_case(format("%s 256 tokens", t), [] { matches<T>({64, 2, 96, 1}, {256}, 7); });
  add_case(format("%s widest rows", t), [] { matches<T>({1024, 16, 4096, 1}, {11}, 12); });
  add_case(format("%s eight clusters of sixteen", t), [] { matches<T>({64, 2, 96, 1}, {9, 32, 1, 17, 30, 5, 16, 40, 3}, {16, 8}); });
  add_case(format("%s more blocks than columns", t), [] { matches<T>({64, 2, 96, 1}, {6}, 40); });
  for (Pooling pooling : {POOL_MEAN, POOL_CLS})
    add_case(format("%s tokens left out, pooling %d", t, pooling), [=] { leaves_out<T>({64, 2, 96, 1, pooling}, {5, 19, 2, 30}, {2, 3, 1, 0}, Teams(3, pooling == POOL_CLS ? 0 : 2)); });
  add_case(format("%s as many sequences as tokens", t), [] { matches<T>({64, 2, 40, 1}, std::vector<int>(255, 1), 3); });
  add_case(format("%s launches follow each other", t), [] { launches_follow_each_other<T>({64, 2, 96, 2}, 4); }, QUICK);
  add_case(format("%s launches in clusters follow each other", t), [] { launches_follow_each_other<T>({64, 2, 96, 2}, {4, 2}); }, QUICK);
  add_case(format("%s bits depend on the sequence alone", t), [] { bits_depend_on_the_sequence_alone<T>({64, 2, 96, 2}); });
  add_case(format("%s bits are stable over interleavings", t), [] { bits_are_stable_over_interleavings<T>({64, 2, 40, 1}, 5); });
  add_case(format("%s bits are stable over interleavings of clusters", t), [] { bits_are_stable_over_interleavings<T>({64, 2, 40, 1}, {4, 2}); });
  add_case(format("%s all-MiniLM-L6-v2", t), [] { minilm<T>({24, 9}, 48); });
  add_case(format("%s all-MiniLM-L6-v2 in clusters", t), [] { minilm<T>({24, 9}, {16, 2}); });
}

int main(int argc, char** argv) {
  add_cases<F16>();
  add_cases<BF16>();
  return run_cases(argc, argv);
}
