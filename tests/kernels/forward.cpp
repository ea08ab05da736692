// The whole encoder: all-MiniLM-L6-v2's own weights through our kernels, from ids to sentence vectors, against a plain forward
// in f64, against sentence-transformers' vectors (tests/fixtures/minilm), and against a naive forward that stores 16 bits
// between the same steps. Launches are those that a backend makes; see Encoder::forward.
#include "../../kernels/all.cu"
#include "common.h"
#include <algorithm>
#include <memory>

constexpr int HIDDEN = 384, INTERMEDIATE = 1536, HEADS = 12, HEAD_DIM = 32, LAYERS = 6;
constexpr float EPS = 1e-12f;
typedef std::vector<std::vector<int>> Ids;

static unsigned ceil_div(int a, int b) { return (unsigned)((a + b - 1) / b); }

// ---- ids and vectors of the fixtures -----------------------------------------------------------------------------------
struct Golden { Ids ids; std::vector<std::vector<float>> vectors; };
static Golden golden_rows(const std::vector<std::string>& names) {
  std::string folder = tests_folder() + "/fixtures/minilm/";
  FILE* json = fopen((folder + "golden.json").c_str(), "rb");
  FILE* f32 = fopen((folder + "golden.f32").c_str(), "rb");
  EXPECT(json && f32, "cannot open %sgolden.json and .f32", folder.c_str());
  Golden g{Ids(names.size()), std::vector<std::vector<float>>(names.size())};
  std::string line;
  int row = -1;
  for (int c; (c = fgetc(json)) != EOF;) {
    if (c != '\n') { line += (char)c; continue; }
    if (line.find("{\"name\": ") != std::string::npos) row++;
    for (size_t i = 0; i < names.size(); i++) {
      if (line.find("{\"name\": \"" + names[i] + "\",") == std::string::npos) continue;
      const char* p = line.c_str() + line.rfind("\"ids\": [") + 7;
      for (char* end; *p != ']'; p = end) g.ids[i].push_back((int)strtol(p + 1, &end, 10));
      g.vectors[i].resize(HIDDEN);
      EXPECT(!fseek(f32, (long)row * HIDDEN * 4, SEEK_SET) && fread(g.vectors[i].data(), 4, HIDDEN, f32) == HIDDEN, "golden.f32 ends early");
    }
    line.clear();
  }
  fclose(json);
  fclose(f32);
  for (size_t i = 0; i < names.size(); i++) EXPECT(!g.ids[i].empty(), "no row '%s'", names[i].c_str());
  return g;
}
// 2, 3, 14, 15, 18, 51, 52 and 65 tokens: both paths of attention, lengths just over a multiple of 16.
static const std::vector<std::string> mixed = {"sentence 2", "empty", "code", "chinese", "superscripts", "10,000 letters", "sentence 57", "100-letter word"};

// ---- the plain forward: formulas as written --------------------------------------------------------------------------------
// Real: what is computed in. `store` rounds whatever is kept between two steps (identity, or to 16 bits); weights too.
struct PlainLayer { std::vector<float> w[6], b[6], gamma[2], beta[2]; };  // query, key, value, attention output, inner, output
static const char* const MATRICES[6] = {"attention.self.query", "attention.self.key", "attention.self.value",
                                        "attention.output.dense", "intermediate.dense", "output.dense"};
struct PlainModel {
  std::vector<float> word, position, type, gamma, beta;
  std::vector<PlainLayer> layers;
  static const PlainModel& get() {
    static std::unique_ptr<PlainModel> model;  // not a static PlainModel: reading it may throw SKIP, more than once
    if (!model) model.reset(new PlainModel);
    return *model;
  }

 private:
  PlainModel() {
    auto& file = Weights::get();
    auto tensor = [&](const std::string& name) { return file.tensor(name).values; };
    word = tensor("embeddings.word_embeddings.weight");
    position = tensor("embeddings.position_embeddings.weight");
    type = tensor("embeddings.token_type_embeddings.weight");
    gamma = tensor("embeddings.LayerNorm.weight");
    beta = tensor("embeddings.LayerNorm.bias");
    for (int l = 0; l < LAYERS; l++) {
      std::string at = format("encoder.layer.%d.", l);
      PlainLayer p;
      for (int m = 0; m < 6; m++) { p.w[m] = tensor(at + MATRICES[m] + ".weight"); p.b[m] = tensor(at + MATRICES[m] + ".bias"); }
      p.gamma[0] = tensor(at + "attention.output.LayerNorm.weight");
      p.beta[0] = tensor(at + "attention.output.LayerNorm.bias");
      p.gamma[1] = tensor(at + "output.LayerNorm.weight");
      p.beta[1] = tensor(at + "output.LayerNorm.bias");
      layers.push_back(p);
    }
  }
};

template <class Real, class Store> class Plain {
 public:
  Plain(const PlainModel& model, int layers, Store store) : model_(model), layers_(layers), store_(store) {}
  std::vector<std::vector<double>> forward(const Ids& batch) {  // one normalised vector a sequence
    std::vector<Real> x;
    for (auto& ids : batch)
      for (size_t t = 0; t < ids.size(); t++)
        for (int c = 0; c < HIDDEN; c++)
          x.push_back((Real)store_(model_.word[(size_t)ids[t] * HIDDEN + c]) + (Real)store_(model_.position[t * HIDDEN + c]) +
                      (Real)store_(model_.type[c]));
    keep(x);
    layernorm(x, model_.gamma, model_.beta);
    for (int l = 0; l < layers_; l++) {
      const PlainLayer& p = model_.layers[l];
      std::vector<Real> q = linear(x, p, 0), k = linear(x, p, 1), v = linear(x, p, 2), context = attention(batch, q, k, v);
      std::vector<Real> y = linear(context, p, 3);
      add(y, x);
      layernorm(y, p.gamma[0], p.beta[0]);
      std::vector<Real> inner = linear(y, p, 4, true);
      x = linear(inner, p, 5);
      add(x, y);
      layernorm(x, p.gamma[1], p.beta[1]);
    }
    std::vector<std::vector<double>> vectors;
    size_t at = 0;
    for (auto& ids : batch) {
      std::vector<double> mean(HIDDEN, 0);
      double squares = 0;
      for (size_t t = 0; t < ids.size(); t++, at += HIDDEN)
        for (int c = 0; c < HIDDEN; c++) mean[c] += (double)x[at + c] / (double)ids.size();
      for (double m : mean) squares += m * m;
      for (double& m : mean) m /= sqrt(squares);
      vectors.push_back(mean);
    }
    return vectors;
  }

 private:
  void keep(std::vector<Real>& x) { for (Real& v : x) v = store_(v); }
  void add(std::vector<Real>& x, const std::vector<Real>& y) {
    for (size_t i = 0; i < x.size(); i++) x[i] = store_(x[i] + y[i]);
  }
  std::vector<Real> linear(const std::vector<Real>& x, const PlainLayer& p, int matrix, bool gelu = false) {
    size_t n = p.b[matrix].size(), k = p.w[matrix].size() / n;
    std::vector<Real> w(p.w[matrix].size());
    for (size_t i = 0; i < w.size(); i++) w[i] = store_(p.w[matrix][i]);
    std::vector<Real> out = product(x, w, x.size() / k, n, k);
    for (size_t i = 0; i < out.size(); i++) out[i] += (Real)p.b[matrix][i % n];
    keep(out);
    if (gelu)
      for (Real& v : out) v = store_(v * (Real)0.5 * (Real)erfc(-(double)v * M_SQRT1_2));
    return out;
  }
  std::vector<Real> attention(const Ids& batch, const std::vector<Real>& q, const std::vector<Real>& k, const std::vector<Real>& v) {
    std::vector<Real> out(q.size());
    size_t first = 0;
    for (auto& ids : batch) {
      size_t n = ids.size();
      for (size_t head = 0; head < HEADS; head++)
        for (size_t i = 0; i < n; i++) {
          auto at = [&](size_t token) { return (first + token) * HIDDEN + head * HEAD_DIM; };
          std::vector<Real> p(n);
          Real top = -INFINITY, sum = 0;
          for (size_t j = 0; j < n; j++) {
            Real s = 0;
            for (size_t c = 0; c < HEAD_DIM; c++) s += q[at(i) + c] * k[at(j) + c];
            p[j] = store_(s / std::sqrt((Real)HEAD_DIM));
            top = std::max(top, p[j]);
          }
          for (Real& w : p) { w = std::exp(w - top); sum += w; }
          for (Real& w : p) w = store_(w / sum);
          for (size_t j = 0; j < n; j++)
            for (size_t c = 0; c < HEAD_DIM; c++) out[at(i) + c] += p[j] * v[at(j) + c];
        }
      first += n;
    }
    keep(out);
    return out;
  }
  void layernorm(std::vector<Real>& x, const std::vector<float>& gamma, const std::vector<float>& beta) {
    for (size_t r = 0; r < x.size(); r += HIDDEN) {
      Real mean = 0, squares = 0;
      for (int c = 0; c < HIDDEN; c++) mean += x[r + c] / HIDDEN;
      for (int c = 0; c < HIDDEN; c++) squares += (x[r + c] - mean) * (x[r + c] - mean);
      Real scale = 1 / std::sqrt(squares / HIDDEN + (Real)EPS);
      for (int c = 0; c < HIDDEN; c++) x[r + c] = store_((x[r + c] - mean) * scale * (Real)gamma[c] + (Real)beta[c]);
    }
  }
  const PlainModel& model_;
  int layers_;
  Store store_;
};
static std::vector<std::vector<double>> exact_vectors(const Ids& batch, int layers) {
  auto store = [](double v) { return v; };
  return Plain<double, decltype(store)>(PlainModel::get(), layers, store).forward(batch);
}
template <class T> static std::vector<std::vector<double>> naive_vectors(const Ids& batch, int layers) {
  auto store = [](float v) { return round16<T>(v); };
  return Plain<float, decltype(store)>(PlainModel::get(), layers, store).forward(batch);
}
// Computed once for all cases.
static const std::vector<std::vector<double>>& exact_mixed() {
  static std::vector<std::vector<double>> v;
  if (v.empty()) v = exact_vectors(golden_rows(mixed).ids, LAYERS);
  return v;
}
// 1 - cosine of unit vectors, without cancellation.
static double angle(const std::vector<double>& a, const std::vector<double>& b) {
  double s = 0, squares = 0;
  for (size_t c = 0; c < a.size(); c++) { s += (a[c] - b[c]) * (a[c] - b[c]); squares += a[c] * a[c]; }
  EXPECT(fabs(squares - 1) < 1e-5, "a vector of length %g", sqrt(squares));
  return s / 2;
}
static double worst_angle(const std::vector<std::vector<double>>& a, const std::vector<std::vector<double>>& b) {
  double worst = 0;
  for (size_t i = 0; i < a.size(); i++) worst = fmax(worst, angle(a[i], b[i]));
  return worst;
}

// ---- the encoder in our kernels -----------------------------------------------------------------------------------------------
enum Form {
  ADD_IN_GEMM,   // the product's epilogue adds the residual; its sum is stored in 16 bits, then normalised
  ADD_IN_NORM,   // the product stands alone; residual_layernorm adds
  FOLDED,        // layernorms folded into the products on both of their sides
};
typedef void (*Gemm)(const half_t*, const half_t*, half_t*, float*, int, int, int, Epilogue);
struct Tile { int block_m, block_n, threads, shared_bytes; Gemm f16, bf16; };
#define TILE_ROW(name, bm, bn, bk, stages, wm, wn, splits, threads, bytes) {bm, bn, threads, bytes, name##_f16, name##_bf16},
static const Tile TILES[] = {GEMM_TILES(TILE_ROW)};
static const Tile& tile_of(int rows) {  // the smallest that holds so many rows
  const Tile* best = &TILES[0];
  for (const Tile& t : TILES)
    if (t.block_m >= rows && (t.block_m < best->block_m || best->block_m < rows)) best = &t;
  return *best;
}
struct Setting {
  Form form = ADD_IN_GEMM;
  int tile_rows = 64;  // which tile
  int splits = 1;      // of k
};

template <class T> struct DeviceMatrix {
  std::unique_ptr<Guarded<half_t>> w;
  std::unique_ptr<Guarded<float>> bias, colsum;  // colsum: of a folded one
  int n, k;
};
template <class T> struct DeviceLayer { DeviceMatrix<T> qkv, attention_output, inner, output; std::unique_ptr<Guarded<float>> gamma[2], beta[2]; };

template <class T> class Encoder {
 public:
  explicit Encoder(Setting setting, int layers = LAYERS) : setting_(setting), tile_(&tile_of(setting.tile_rows)) {
    const PlainModel& m = PlainModel::get();
    word_ = to16<F16>(m.word);
    position_ = to16<F16>(m.position);
    type_ = to16<F16>(m.type);
    gamma_ = to32(m.gamma);
    beta_ = to32(m.beta);
    for (int l = 0; l < layers; l++) {
      const PlainLayer& p = m.layers[l];
      // the layernorm before: of the layer below; there is none to fold into the first layer
      bool fold = setting.form == FOLDED;
      const PlainLayer* below = fold && l ? &m.layers[l - 1] : nullptr;
      DeviceLayer<T> d;
      std::vector<float> qkv, bias;
      for (int part = 0; part < 3; part++) {
        float scale = part == 0 ? LOG2_E / sqrtf(HEAD_DIM) : 1;  // the softmax is in base 2
        for (float v : p.w[part]) qkv.push_back(v * scale);
        for (float v : p.b[part]) bias.push_back(v * scale);
      }
      d.qkv = matrix(qkv, bias, below ? &below->gamma[1] : nullptr, below ? &below->beta[1] : nullptr);
      d.attention_output = matrix(p.w[3], p.b[3], nullptr, nullptr);
      d.inner = matrix(p.w[4], p.b[4], fold ? &p.gamma[0] : nullptr, fold ? &p.beta[0] : nullptr);
      d.output = matrix(p.w[5], p.b[5], nullptr, nullptr);
      for (int i : {0, 1}) { d.gamma[i] = to32(p.gamma[i]); d.beta[i] = to32(p.beta[i]); }
      layers_.push_back(std::move(d));
    }
  }
  void use_tile(int rows) { tile_ = &tile_of(rows); }
  void spoil_word(int id) {  // its embedding becomes NaN
    std::vector<half_t> table = word_->values();
    for (int c = 0; c < HIDDEN; c++) table[(size_t)id * HIDDEN + c] = F16::from_f32(NAN);
    word_.reset(new Guarded<half_t>(table, "word embeddings"));
  }

  struct Result { std::vector<float> vectors; std::vector<int> status; };
  Result forward(const Ids& batch) {
    std::vector<int> ids, positions, types, cu{0};
    for (auto& sequence : batch) {
      for (size_t t = 0; t < sequence.size(); t++) { ids.push_back(sequence[t]); positions.push_back((int)t); types.push_back(0); }
      cu.push_back((int)ids.size());
    }
    rows_ = (int)ids.size();
    Guarded<int> ids_d(ids, "ids"), positions_d(positions, "position_ids"), types_d(types, "type_ids"), cu_d(cu, "cu_seqlens");
    size_t n = (size_t)rows_ * HIDDEN;
    Guarded<half_t> x(n, "x"), y(n, "y"), z(n, "z"), context(n, "context"), qkv(3 * n, "qkv"), inner(4 * n, "inner");
    Guarded<float> x_stats(2 * (size_t)rows_ * (HIDDEN / SEGMENT), "x_stats"), y_stats(x_stats.size(), "y_stats");

    launch(pick(embed_layernorm_h512_f16, embed_layernorm_h512_bf16), {ceil_div(rows_, 4)}, {ROW_THREADS}, 0, word_->data(), position_->data(),
           type_->data(), ids_d.data(), positions_d.data(), types_d.data(), gamma_->data(), beta_->data(), x.data(), rows_, HIDDEN, EPS,
           (int)ROW_LAYERNORM);
    bool raw = false;  // x holds sums that are yet to be normalised by the layer below
    for (size_t l = 0; l < layers_.size(); l++) {
      DeviceLayer<T>&d = layers_[l], *below = l ? &layers_[l - 1] : nullptr;
      multiply(x, d.qkv, qkv, raw ? folded_input(d.qkv, x_stats) : Epilogue{});
      attention(qkv, context, cu);
      if (setting_.form == FOLDED) {
        Epilogue add = raw ? normalised_residual(x, x_stats, *below->gamma[1], *below->beta[1]) : plain_residual(x);
        add.row_stats = y_stats.data();
        multiply(context, d.attention_output, y, add);
        Epilogue gelu = folded_input(d.inner, y_stats);
        gelu.activation = ACT_GELU;
        multiply(y, d.inner, inner, gelu);
        add = normalised_residual(y, y_stats, *d.gamma[0], *d.beta[0]);
        add.row_stats = x_stats.data();
        multiply(inner, d.output, x, add);
        raw = true;
      } else {
        Epilogue gelu{};
        gelu.activation = ACT_GELU;
        bool in_gemm = setting_.form == ADD_IN_GEMM;
        multiply(context, d.attention_output, y, in_gemm ? plain_residual(x) : Epilogue{});
        normalize(y, in_gemm ? nullptr : x.data(), *d.gamma[0], *d.beta[0], z);
        multiply(z, d.inner, inner, gelu);
        multiply(inner, d.output, y, in_gemm ? plain_residual(z) : Epilogue{});
        normalize(y, in_gemm ? nullptr : z.data(), *d.gamma[1], *d.beta[1], x);
      }
    }
    if (raw) {
      DeviceLayer<T>& last = layers_.back();
      launch(pick(layernorm_from_stats_f16, layernorm_from_stats_bf16), {ceil_div(rows_, FROM_STATS_WARPS)}, {32 * FROM_STATS_WARPS}, 0, x.data(), x_stats.data(),
             last.gamma[1]->data(), last.beta[1]->data(), x.data(), rows_, HIDDEN, EPS);
    }
    unsigned sequences = (unsigned)batch.size();
    Guarded<float> out(sequences * HIDDEN, "out");
    Guarded<int> status(sequences, "status");
    launch(pick(pool_f16, pool_bf16), {sequences, 1}, {POOL_THREADS}, 16 * HIDDEN, x.data(), cu_d.data(), nullptr, out.data(), status.data(), HIDDEN,
           HIDDEN, (int)POOL_MEAN, 1, 0, HIDDEN, 0);
    return {out.values(), status.values()};
  }

 private:
  template <class K> static K* pick(K* f16, K* bf16) { return std::is_same<T, F16>::value ? f16 : bf16; }
  template <class Stored = T> static std::unique_ptr<Guarded<half_t>> to16(const std::vector<float>& v) {
    std::vector<half_t> h(v.size());
    for (size_t i = 0; i < v.size(); i++) h[i] = Stored::from_f32(v[i]);
    return std::unique_ptr<Guarded<half_t>>(new Guarded<half_t>(h, "a weight"));
  }
  static std::unique_ptr<Guarded<float>> to32(const std::vector<float>& v) { return std::unique_ptr<Guarded<float>>(new Guarded<float>(v, "a vector")); }

  DeviceMatrix<T> matrix(const std::vector<float>& w, const std::vector<float>& bias, const std::vector<float>* gamma, const std::vector<float>* beta) {
    int n = (int)bias.size(), k = (int)(w.size() / bias.size());
    if (!gamma) return {to16(w), to32(bias), nullptr, n, k};
    Folded<T> folded(w, *gamma, *beta, bias);
    return {std::unique_ptr<Guarded<half_t>>(new Guarded<half_t>(folded.w, "w_folded")), to32(folded.bias), to32(folded.colsum), n, k};
  }
  static Epilogue plain_residual(const Guarded<half_t>& residual) {
    Epilogue e{};
    e.residual = residual.data();
    return e;
  }
  static Epilogue normalised_residual(const Guarded<half_t>& residual, const Guarded<float>& stats, const Guarded<float>& gamma, const Guarded<float>& beta) {
    Epilogue e = plain_residual(residual);
    e.norm_target = NORM_RESIDUAL;
    e.norm_stats = stats.data();
    e.norm_scale = gamma.data();
    e.norm_shift = beta.data();
    e.norm_eps = EPS;
    e.norm_columns = HIDDEN;
    return e;
  }
  static Epilogue folded_input(const DeviceMatrix<T>& m, const Guarded<float>& stats) {
    Epilogue e{};
    e.norm_target = NORM_INPUT;
    e.norm_stats = stats.data();
    e.norm_scale = m.colsum->data();
    e.norm_eps = EPS;
    e.norm_columns = m.k;
    return e;
  }
  void multiply(const Guarded<half_t>& a, const DeviceMatrix<T>& m, Guarded<half_t>& c, Epilogue e) {
    e.bias = m.bias->data();
    int splits = setting_.splits;
    Guarded<float> partials(splits > 1 ? (size_t)splits * rows_ * m.n : 0, "partials");
    launch(pick(tile_->f16, tile_->bf16), {ceil_div(rows_, tile_->block_m) * ceil_div(m.n, tile_->block_n), (unsigned)splits}, {(unsigned)tile_->threads},
           (size_t)tile_->shared_bytes, a.data(), m.w->data(), c.data(), partials.data(), rows_, m.n, m.k, e);
    if (splits > 1)
      launch(pick(splitk_reduce_f16, splitk_reduce_bf16), {ceil_div(rows_ * (int)ceil_div(m.n, SEGMENT) * SEGMENT_LANES, REDUCE_THREADS)},
             {REDUCE_THREADS}, 0, partials.data(), c.data(), rows_, m.n, splits, e);
  }
  void normalize(const Guarded<half_t>& x, const half_t* residual, const Guarded<float>& gamma, const Guarded<float>& beta, Guarded<half_t>& out) {
    launch(pick(residual_layernorm_h512_f16, residual_layernorm_h512_bf16), {ceil_div(rows_, 4)}, {ROW_THREADS}, 0, x.data(), residual, gamma.data(),
           beta.data(), out.data(), rows_, HIDDEN, 1, HIDDEN, EPS, (int)ROW_LAYERNORM);
  }
  // Up to 64 tokens by the short kernel, the rest by the streaming one: by length alone, so that the batch does not matter.
  void attention(const Guarded<half_t>& qkv, Guarded<half_t>& context, const std::vector<int>& cu) {
    std::vector<u128> brief, stream;
    for (size_t s = 0; s + 1 < cu.size(); s++) {
      unsigned start = (unsigned)cu[s], tokens = (unsigned)(cu[s + 1] - cu[s]);
      bool fits = tokens <= 64;
      if (fits && brief.size() % 4 + ceil_div((int)tokens, 16) > 4)
        while (brief.size() % 4) brief.push_back(u128{0, 0, 0, 0});
      for (unsigned q = 0; q < tokens; q += fits ? 16 : 128) (fits ? brief : stream).push_back(u128{start, tokens, q, 0});
    }
    while (brief.size() % 4) brief.push_back(u128{0, 0, 0, 0});
    Guarded<u128> brief_d(brief, "short list"), stream_d(stream, "stream list");
    const float* no_bias = nullptr;
    launch(pick(attention_short_d32_f16, attention_short_d32_bf16), {(unsigned)brief.size() / 4 * (HEADS / 2)}, {128},
           attention::shared_bytes<32, 2, 4, 64, 64>(), qkv.data(), context.data(), brief_d.data(), HEADS, no_bias, 0, 0);
    launch(pick(attention_stream_d32_f16, attention_stream_d32_bf16), {(unsigned)stream.size() * HEADS}, {128},
           attention::shared_bytes<32, 1, 1, 128, 64>(), qkv.data(), context.data(), stream_d.data(), HEADS, no_bias, 0, 0);
  }

  Setting setting_;
  const Tile* tile_;
  int rows_ = 0;
  std::unique_ptr<Guarded<half_t>> word_, position_, type_;
  std::unique_ptr<Guarded<float>> gamma_, beta_;
  std::vector<DeviceLayer<T>> layers_;
};

static std::vector<std::vector<double>> rows_of(const std::vector<float>& v) {
  std::vector<std::vector<double>> rows;
  for (size_t i = 0; i < v.size(); i += HIDDEN) rows.emplace_back(v.begin() + (long)i, v.begin() + (long)i + HIDDEN);
  return rows;
}

// ---- cases ----------------------------------------------------------------------------------------------------------------------
static void plain_is_sentence_transformers() {
  if (Weights::get().rounded()) SKIP("the weights are a copy in 16 bits");
  Golden g = golden_rows(mixed);
  double worst = 0;
  for (size_t i = 0; i < mixed.size(); i++)
    for (int c = 0; c < HIDDEN; c++) worst = fmax(worst, fabs(exact_mixed()[i][c] - g.vectors[i][c]));
  NOTE("a component differs by up to %.1e", worst);
  EXPECT(worst <= 5e-6, "a component differs by %.3g", worst);
}

template <class T> static constexpr double allowed_angle = std::is_same<T, F16>::value ? 1e-5 : 1e-4;  // 1 - cosine

template <class T> static void vectors_are_right(Setting setting) {
  Ids batch = golden_rows(mixed).ids;
  Encoder<T> encoder(setting);
  auto result = encoder.forward(batch);
  for (size_t s = 0; s < batch.size(); s++) EXPECT(result.status[s] == 0, "status[%zu] is %d", s, result.status[s]);
  double ours = worst_angle(rows_of(result.vectors), exact_mixed());
  static double naive = worst_angle(naive_vectors<T>(batch, LAYERS), exact_mixed());
  NOTE("1 - cosine %.1e, naive %.1e", ours, naive);
  EXPECT(ours <= allowed_angle<T>, "1 - cosine is %.3g", ours);
  // errors are to stay within twice the naive ones, hence squares of errors within four times
  EXPECT(ours <= 4 * naive + 1e-9, "1 - cosine is %.3g, of a naive 16-bit forward %.3g", ours, naive);
}

// Three layers: what depends on the batch would show in the first.
template <class T> static void batched_is_alone(Form form) {
  Ids batch = golden_rows(mixed).ids;
  Encoder<T> encoder({form, 64, 1}, 3);
  auto together = encoder.forward(batch);
  encoder.use_tile(128);  // the setting promises the same bits whichever tile a batch gets
  auto other_tile = encoder.forward(batch);
  check_same_bits("another tile", together.vectors.data(), other_tile.vectors.data(), together.vectors.size() * 4);
  for (size_t s = 0; s < batch.size(); s++) {
    encoder.use_tile(batch[s].size() <= 16 ? 16 : 64);
    auto alone = encoder.forward({batch[s]});
    check_same_bits(mixed[s].c_str(), alone.vectors.data(), &together.vectors[s * HIDDEN], HIDDEN * 4);
  }
  std::reverse(batch.begin(), batch.end());
  auto reversed = encoder.forward(batch);
  for (size_t s = 0; s < batch.size(); s++)
    check_same_bits("in reverse", &reversed.vectors[s * HIDDEN], &together.vectors[(batch.size() - 1 - s) * HIDDEN], HIDDEN * 4);
}

// One sentence at a time, products split over k: other bits, the same vector.
template <class T> static void split_products_are_right() {
  Ids batch = golden_rows(mixed).ids;
  Encoder<T> encoder({ADD_IN_GEMM, 16, 4});
  for (size_t s : {0, 4}) {
    std::vector<double> v = rows_of(encoder.forward({batch[s]}).vectors)[0];
    double off = angle(v, exact_mixed()[s]);
    NOTE("1 - cosine %.1e", off);
    EXPECT(off <= allowed_angle<T>, "1 - cosine is %.3g", off);
  }
}

// A token whose embedding is not a number: its sequence is reported, no other changes by a bit.
template <class T> static void a_bad_token_spoils_its_sequence_alone(Form form) {
  Ids batch = golden_rows(mixed).ids;
  batch.resize(4);  // 14, 2, 65 and 18 tokens
  const int unused = 10;  // [unused9]: in none of them
  auto ids = batch;
  ids[2][40] = unused;
  ids[0][3] = unused;
  Encoder<T> encoder({form, 64, 1}, 2);
  auto good = encoder.forward(batch);
  encoder.spoil_word(unused);
  auto bad = encoder.forward(ids);
  for (size_t s = 0; s < 4; s++) {
    bool spoilt = s == 0 || s == 2;
    EXPECT(good.status[s] == 0 && bad.status[s] == (spoilt ? HIDDEN : 0), "sequence %zu: status %d", s, bad.status[s]);
    if (!spoilt) check_same_bits("a good sequence", &good.vectors[s * HIDDEN], &bad.vectors[s * HIDDEN], HIDDEN * 4);
  }
}

// One layer, few tokens: what ThreadSanitizer can afford.
template <class T> static void one_layer(Form form) {
  Ids batch = {{101, 7592, 2088, 999, 102}, {101, 102}};
  Encoder<T> encoder({form, 16, 1}, 1);
  auto result = encoder.forward(batch);
  double off = worst_angle(rows_of(result.vectors), exact_vectors(batch, 1));
  NOTE("1 - cosine %.1e", off);
  EXPECT(off <= allowed_angle<T>, "1 - cosine is %.3g", off);
}

template <class T> static void add_cases() {
  const char *t = Element<T>::name, *forms[] = {"added in the product", "added in the norm", "folded"};
  for (Form form : {ADD_IN_GEMM, ADD_IN_NORM, FOLDED}) {
    add_case(format("%s vectors, %s", t, forms[form]), [=] { vectors_are_right<T>({form, 64, 1}); });
    add_case(format("%s one layer, %s", t, forms[form]), [=] { one_layer<T>(form); }, QUICK);
    add_case(format("%s a bad token, %s", t, forms[form]), [=] { a_bad_token_spoils_its_sequence_alone<T>(form); });
  }
  add_case(format("%s split products", t), split_products_are_right<T>);
}

int main(int argc, char** argv) {
  add_case("the plain forward is sentence-transformers'", plain_is_sentence_transformers);
  add_cases<F16>();
  add_cases<BF16>();
  add_case("f16 batched is alone, added in the product", [] { batched_is_alone<F16>(ADD_IN_GEMM); });
  add_case("f16 batched is alone, folded", [] { batched_is_alone<F16>(FOLDED); });
  add_case("bf16 batched is alone, added in the norm", [] { batched_is_alone<BF16>(ADD_IN_NORM); });
  return run_cases(argc, argv);
}
