// bench.cpp - times the image's kernels at the shapes of encoders, by the driver API: bench [words] [seconds=N] [quick] [list]
//
// One line of JSON for each kernel and shape; `words` select those whose names have all of them. The first line is the
// device. A shape is launched on several sets of buffers in turn, together twice as large as the L2 cache ("cold_us"), and on
// one set over and over ("hot_us"). Launches are captured into a graph, so that the host is not measured; an event on both
// sides of each replay; the numbers are [first quartile, median, third quartile] of a launch over the replays, and contain the
// gap between two kernels of a graph, about a microsecond. `quick`: one replay of a few small shapes, to see that it runs.
#include "../../kernels/all.cu"
#undef threadIdx
#undef blockIdx
#undef blockDim
#undef gridDim
#include <math.h>
#include <stdarg.h>
#include <string.h>
#include <algorithm>
#include <functional>
#include <memory>
#include <string>
#include <tuple>
#include <vector>
#include "driver.h"

static Driver& driver() { return Driver::get(); }
static std::string tests_folder() {
  if (const char* moved = getenv("BERTHIER_TESTS")) return moved;
  std::string path = __FILE__;
  return path.substr(0, path.rfind('/')) + "/../../tests";
}
static unsigned ceil_div(long a, long b) { return (unsigned)((a + b - 1) / b); }

// ---- launches -----------------------------------------------------------------------------------------------------------
struct Launch {
  void* function;
  unsigned x, y, threads;
  size_t shared;
  std::vector<std::vector<uint8_t>> values;
  unsigned cluster = 1;  // of a kernel that leaves it to its launch
  void into(void* stream) const {
    std::vector<void*> pointers;
    for (auto& v : values) pointers.push_back((void*)v.data());
    driver().launch(function, x, y, 1, threads, shared, stream, pointers.data(), cluster);
  }
};
template <class... P, class... A>
static Launch make(void (*kernel)(P...), unsigned x, unsigned y, size_t shared, const A&... args) {
  const emu::Kernel* known = emu::find_kernel((void*)kernel);
  Launch l{driver().function(tests_folder(), known->name), x, y, (unsigned)known->threads, shared, {}};
  if (!l.function) throw DriverError(0, std::string("the image has no ") + known->name);
  driver().allow_shared(l.function, shared);
  std::tuple<std::remove_const_t<std::remove_reference_t<P>>...> values((P)args...);
  std::apply([&](auto&... v) { (l.values.emplace_back((uint8_t*)&v, (uint8_t*)&v + sizeof v), ...); }, values);
  return l;
}

// ---- memory: one arena, filled anew for each shape -------------------------------------------------------------------------
// 16-bit numbers between -1 and 1 in random order, as data of zeros would spare the GPU power and make it faster. Read as f32
// they are small finite numbers too.
class Arena {
 public:
  Arena(size_t bytes) : bytes_(bytes), start_(driver().allocate(bytes)), master_(driver().allocate(MASTER)) {
    std::vector<half_t> random(MASTER / 2);
    uint64_t state = 1;
    for (half_t& h : random) {
      state = state * 6364136223846793005ull + 1442695040888963407ull;
      h = F16::from_f32((float)(int64_t)state * 0x1p-63f);
    }
    driver().call("cuMemcpyHtoD_v2", master_, (const void*)random.data(), MASTER);
  }
  ~Arena() { driver().attempt("cuMemFree_v2", start_), driver().attempt("cuMemFree_v2", master_); }
  size_t bytes() const { return bytes_; }
  void clear() { used_ = 0; }
  void fill(size_t bytes) {
    for (size_t at = 0; at < bytes; at += MASTER) driver().call("cuMemcpyDtoD_v2", start_ + at, master_, std::min(MASTER, bytes - at));
  }
  template <class E> E* take(size_t n) {
    size_t at = used_;
    used_ += (n * sizeof(E) + 255) & ~(size_t)255;
    if (used_ > bytes_) throw DriverError(0, "the arena is full");
    return (E*)(start_ + at);
  }
  template <class E> const E* put(const std::vector<E>& values) {
    E* p = take<E>(values.size());
    driver().call("cuMemcpyHtoD_v2", (DevicePointer)p, (const void*)values.data(), values.size() * sizeof(E));
    return p;
  }
  size_t used() const { return used_; }

 private:
  static constexpr size_t MASTER = 32 << 20;
  size_t bytes_, used_ = 0;
  DevicePointer start_, master_;
};

// ---- what is measured --------------------------------------------------------------------------------------------------------
struct Shape {
  std::string name, json;   // json: the shape's own members
  double bytes, flops;      // what must be moved (each operand once) and computed
  size_t set_bytes;         // of one set of buffers, about
  bool quick;
  std::function<std::vector<Launch>(Arena&)> build;
  bool hopper = false;      // its kernel is for compute capability 9.0 only
};
static std::vector<Shape> shapes;

__attribute__((format(printf, 1, 2))) static std::string format(const char* pattern, ...) {
  char text[1024];
  va_list args;
  va_start(args, pattern);
  vsnprintf(text, sizeof text, pattern, args);
  va_end(args);
  return text;
}

struct Encoder { const char* name; int hidden, inner, heads; };
static const Encoder ENCODERS[] = {{"minilm", 384, 1536, 12}, {"base", 768, 3072, 12}, {"large", 1024, 4096, 16}};

typedef void (*GemmKernel)(const half_t*, const half_t*, half_t*, float*, int, int, int, Epilogue);
typedef void (*HopperKernel)(const TensorMap&, const TensorMap&, const TensorMap&, const TensorMap&, int, int, int, Epilogue);
typedef void (*FewRowsKernel)(const TensorMap&, const TensorMap&, half_t*, int, int, int, int, Epilogue);
struct Tile {
  const char* name;
  int m, n, k, splits, cluster, shared;
  GemmKernel kernel;  // one of these
  HopperKernel hopper = nullptr;
  FewRowsKernel few_rows = nullptr;
};
#define TILE(name, bm, bn, bk, stages, wm, wn, splits, threads, bytes) {#name, bm, bn, bk, splits, 1, bytes, name##_f16},
#define HOPPER(name, bm, bn, bk, stages, groups, cluster, threads, bytes) {#name, bm, bn, bk, 1, cluster, bytes, nullptr, name##_f16},
#define FEW_ROWS(name, bm, bn, bk, stages, splits, threads, bytes) {#name, bm, bn, bk, splits, 1, bytes, nullptr, nullptr, name##_f16},
static const Tile TILES[] = {HOPPER_TILES(HOPPER) SWAPPED_TILES(FEW_ROWS) GEMM_TILES(TILE)};

// In boxes of so many rows, and of 64 columns or 32 with the swizzle of that width.
static TensorMap tensor_map(const half_t* base, int rows, int columns, int box_rows, int box_columns = 64) {
  TensorMap map;
  const uint64_t dimensions[2] = {(uint64_t)columns, (uint64_t)rows}, stride[1] = {2 * (uint64_t)columns};
  const uint32_t box[2] = {(uint32_t)box_columns, (uint32_t)box_rows}, step[2] = {1, 1};
  driver().call("cuTensorMapEncodeTiled", (void*)&map, 6 /* f16 */, 2u, (void*)base, (const uint64_t*)dimensions, (const uint64_t*)stride, (const uint32_t*)box,
                (const uint32_t*)step, 0, box_columns == 64 ? 3 : 2 /* 128 or 64 bytes */, 2 /* L2: 128 bytes */, 0);
  return map;
}

static void add_gemm(const Encoder& e, const char* op, int m, int n, int k, bool residual, int activation) {
  for (const Tile& t : TILES)
    for (int splits : {1, 2, 4, 8}) {
      if (splits > t.splits || splits > (int)ceil_div(k, t.k) / 2 || (splits > 1 && m > 128)) continue;
      if (t.m > 2 * m && t.m > 16 && !(t.hopper && m == 16)) continue;  // mostly empty; in the quick run, to see that it runs
      if (m >= 2048 && (t.m <= 32 || t.few_rows)) continue;             // far behind, and slow to measure
      double bytes = 2.0 * ((double)m * k + (double)n * k + (double)m * n * (residual ? 2 : 1));
      Shape s;
      s.name = format("%s_f16 %s %s m=%d splits=%d", t.name, e.name, op, m, splits);
      s.json = format("\"kernel\": \"%s_f16\", \"encoder\": \"%s\", \"op\": \"%s\", \"m\": %d, \"n\": %d, \"k\": %d, \"splits\": %d", t.name, e.name, op, m, n, k, splits);
      s.bytes = bytes;
      s.flops = 2.0 * m * n * k;
      s.set_bytes = (size_t)bytes + (splits > 1 && t.kernel ? (size_t)splits * m * n * 4 : 0) + 4096 + (size_t)n * 4;
      s.quick = m == 16 && !strcmp(e.name, "minilm") && !strcmp(op, "qkv") && splits <= 2;
      s.hopper = !t.kernel;
      s.build = [=](Arena& arena) {
        Epilogue epilogue = {};
        half_t *a = arena.take<half_t>((size_t)m * k), *w = arena.take<half_t>((size_t)n * k), *c = arena.take<half_t>((size_t)m * n);
        epilogue.bias = arena.take<float>((size_t)n);
        if (residual) epilogue.residual = arena.take<half_t>((size_t)m * n);
        epilogue.activation = activation;
        if (t.hopper) {
          const TensorMap out = tensor_map(c, m, n, 16), added = residual ? tensor_map(epilogue.residual, m, n, 16) : out;
          const unsigned clusters = std::min(ceil_div(m, t.m * t.cluster) * ceil_div(n, t.n), (unsigned)(driver().attribute(Driver::MULTIPROCESSORS) / t.cluster));
          return std::vector<Launch>{make(t.hopper, clusters * (unsigned)t.cluster, 1, (size_t)t.shared, tensor_map(a, m, k, t.m), tensor_map(w, n, k, t.n / t.cluster), added, out, m, n, k, epilogue)};
        }
        if (t.few_rows) {
          std::vector<Launch> one = {make(t.few_rows, ceil_div(m, t.m) * ceil_div(n, t.n) * (unsigned)splits, 1, (size_t)t.shared, tensor_map(a, m, k, t.m), tensor_map(w, n, k, t.n), c, m, n, k, splits, epilogue)};
          one[0].cluster = (unsigned)splits;
          return one;
        }
        float* partials = splits > 1 ? arena.take<float>((size_t)splits * m * n) : nullptr;
        std::vector<Launch> all = {make(t.kernel, ceil_div(m, t.m) * ceil_div(n, t.n), (unsigned)splits, (size_t)t.shared, a, w, c, partials, m, n, k, epilogue)};
        if (splits > 1)
          all.push_back(make(splitk_reduce_f16, ceil_div((long)m * ceil_div(n, SEGMENT), REDUCE_THREADS / SEGMENT_LANES), 1, 0, partials, c, m, n, splits, epilogue));
        return all;
      };
      shapes.push_back(s);
    }
}

typedef void (*AttentionKernel)(const half_t*, half_t*, const u128*, int, const float*, int, int);
typedef void (*RingKernel)(const TensorMap&, half_t*, const u128*, int, int);
struct AttentionTile { const char* name; int head_dim, heads, tiles, queries, shared; AttentionKernel kernel; int pairs = 0; RingKernel ring = nullptr; };
#define ATTENTION(name, d, heads, tiles, queries, keys, min_blocks, threads, bytes) {#name, d, heads, tiles, queries, bytes, name##_f16},
#define RING(name, d, groups, pairs, threads, bytes) {#name, d, 1, 1, 64 * groups, bytes, nullptr, pairs, name##_f16},
static const AttentionTile ATTENTIONS[] = {ATTENTION_TILES(ATTENTION) RING_TILES(RING)};

static void add_attention(const Encoder& e, int tokens, int length) {
  for (const AttentionTile& t : ATTENTIONS) {
    if (t.head_dim != e.hidden / e.heads || (t.tiles > 1 && length > 64) || (t.tiles == 1 && length < 64)) continue;
    int sequences = tokens / length, rows = t.ring && length <= 64 * t.pairs ? length : t.queries / t.tiles;
    Shape s;
    s.name = format("%s_f16 %s attention tokens=%d length=%d", t.name, e.name, tokens, length);
    s.json = format("\"kernel\": \"%s_f16\", \"encoder\": \"%s\", \"op\": \"attention\", \"tokens\": %d, \"length\": %d, \"heads\": %d, \"head_dim\": %d", t.name, e.name, tokens,
                    length, e.heads, t.head_dim);
    s.bytes = 8.0 * tokens * e.hidden;
    s.flops = 4.0 * sequences * length * length * e.hidden;
    s.set_bytes = (size_t)s.bytes + (size_t)tokens * 2 + 4096;
    s.quick = tokens <= 256 && !strcmp(e.name, "minilm");
    s.hopper = t.ring != nullptr;
    s.build = [=](Arena& arena) {
      std::vector<u128> list;
      for (int i = 0; i < sequences; i++) {
        if (t.tiles > 1 && list.size() % 4 + ceil_div(length, 16) > 4)
          while (list.size() % 4) list.push_back(u128{0, 0, 0, 0});
        for (int q = 0; q < length; q += rows) list.push_back(u128{(unsigned)(i * length), (unsigned)length, (unsigned)q, (unsigned)std::min(rows, length - q)});
      }
      while (list.size() % t.tiles) list.push_back(u128{0, 0, 0, 0});
      half_t *qkv = arena.take<half_t>((size_t)tokens * 3 * e.hidden), *out = arena.take<half_t>((size_t)tokens * e.hidden);
      const u128* tiles = arena.put(list);
      if (t.ring) {
        const unsigned blocks = std::min((unsigned)list.size() * e.heads, (unsigned)driver().attribute(Driver::MULTIPROCESSORS));
        return std::vector<Launch>{make(t.ring, blocks, 1, (size_t)t.shared, tensor_map(qkv, tokens, 3 * e.hidden, 64, std::min(t.head_dim, 64)), out, tiles, (int)list.size(), e.heads)};
      }
      return std::vector<Launch>{make(t.kernel, (unsigned)list.size() / t.tiles * ceil_div(e.heads, t.heads), 1, (size_t)t.shared, qkv, out, tiles, e.heads, nullptr, 0, 0)};
    };
    shapes.push_back(s);
  }
}

static void add_rows(const Encoder& e, int tokens) {
  bool narrow = e.hidden <= 512;
  auto add = [&](const std::string& kernel, const char* op, double bytes, size_t set_bytes, std::function<std::vector<Launch>(Arena&)> build) {
    Shape s;
    s.name = format("%s_f16 %s %s tokens=%d", kernel.c_str(), e.name, op, tokens);
    s.json = format("\"kernel\": \"%s_f16\", \"encoder\": \"%s\", \"op\": \"%s\", \"tokens\": %d, \"hidden\": %d", kernel.c_str(), e.name, op, tokens, e.hidden);
    s.bytes = bytes;
    s.flops = 0;
    s.set_bytes = set_bytes;
    s.quick = tokens <= 256 && !strcmp(e.name, "minilm");
    s.build = build;
    shapes.push_back(s);
  };
  const int h = e.hidden, vocab = 30522;
  const size_t row = (size_t)h * 2, all = (size_t)tokens * row;
  add(narrow ? "embed_layernorm_h512" : "embed_layernorm_h1024", "embed", 2.0 * all + 12.0 * tokens, all + (size_t)(vocab + 514) * row + (size_t)tokens * 12 + 16384, [=](Arena& arena) {
    std::vector<int> ids, positions, types;
    for (int i = 0; i < tokens; i++) {
      ids.push_back((int)((uint64_t)(i + 1) * 2654435761u % vocab));
      positions.push_back(i % 128);
      types.push_back(0);
    }
    half_t *word = arena.take<half_t>((size_t)vocab * h), *position = arena.take<half_t>((size_t)512 * h), *type = arena.take<half_t>((size_t)2 * h);
    float *gamma = arena.take<float>((size_t)h), *beta = arena.take<float>((size_t)h);
    const int *i = arena.put(ids), *p = arena.put(positions), *t = arena.put(types);
    half_t* out = arena.take<half_t>((size_t)tokens * h);
    return std::vector<Launch>{make(narrow ? embed_layernorm_h512_f16 : embed_layernorm_h1024_f16, ceil_div(tokens, 4), 1, 0, word, position, type, i, p, t, gamma, beta, out, tokens, h, 1e-12f, (int)ROW_LAYERNORM)};
  });
  for (bool second : {true, false})
    add(narrow ? "residual_layernorm_h512" : "residual_layernorm_h1024", second ? "add_norm" : "norm", (second ? 3.0 : 2.0) * all, 3 * all + 16384, [=](Arena& arena) {
      half_t *x = arena.take<half_t>((size_t)tokens * h), *residual = arena.take<half_t>((size_t)tokens * h), *out = arena.take<half_t>((size_t)tokens * h);
      float *gamma = arena.take<float>((size_t)h), *beta = arena.take<float>((size_t)h);
      return std::vector<Launch>{make(narrow ? residual_layernorm_h512_f16 : residual_layernorm_h1024_f16, ceil_div(tokens, 4), 1, 0, x, second ? residual : nullptr, gamma, beta, out, tokens, h, 1, h, 1e-12f, (int)ROW_LAYERNORM)};
    });
  add("rotary", "rotary", 4.0 * all, 3 * all + (size_t)tokens * 4 + 512 * 4 * (size_t)(h / e.heads) + 16384, [=](Arena& arena) {
    std::vector<int> positions;
    for (int i = 0; i < tokens; i++) positions.push_back(i % 128);
    half_t* qkv = arena.take<half_t>((size_t)tokens * 3 * h);
    float* table = arena.take<float>((size_t)512 * (h / e.heads));
    return std::vector<Launch>{make(rotary_f16, ceil_div((long)tokens * h / 16, ROTARY_THREADS), 1, 0, qkv, arena.put(positions), table, tokens, h, h / e.heads)};
  });
  for (int length : {16, 128})
    if (length <= tokens) add("pool", length == 16 ? "pool_16" : "pool_128", (double)all + 4.0 * h * tokens / length, all + (size_t)h * 4 * (tokens / length) + (size_t)tokens + 16384, [=](Arena& arena) {
      const int sequences = tokens / length, columns = (int)ceil_div(h, POOL_COLUMNS) * POOL_COLUMNS;
      std::vector<int> cu;
      for (int i = 0; i <= sequences; i++) cu.push_back(i * length);
      half_t* x = arena.take<half_t>((size_t)tokens * h);
      const int* c = arena.put(cu);
      float* out = arena.take<float>((size_t)sequences * h);
      int* status = arena.take<int>((size_t)sequences);
      return std::vector<Launch>{make(pool_f16, (unsigned)sequences, 1, 16 * (size_t)columns, x, c, nullptr, (void*)out, status, h, columns, (int)POOL_MEAN, 1, 0, h, 0)};
    });
}

// What matters most first: the time may end before the list does.
static void add_all() {
  for (int m : {16384, 16, 2048, 64, 128, 512})
    for (const Encoder& e : ENCODERS) {
      add_gemm(e, "qkv", m, 3 * e.hidden, e.hidden, false, ACT_NONE);
      add_gemm(e, "proj", m, e.hidden, e.hidden, true, ACT_NONE);
      add_gemm(e, "up", m, e.inner, e.hidden, false, ACT_GELU);
      add_gemm(e, "down", m, e.hidden, e.inner, true, ACT_NONE);
      if (m == 16384)
        for (int length : {16, 32, 64, 128, 256, 512, 2048}) add_attention(e, m, length);
      if (m == 16384 || m == 16) add_rows(e, m);
      if (m == 16) add_attention(e, m, 16);
    }
}

// ---- measuring ---------------------------------------------------------------------------------------------------------------
struct Times { double q1, median, q3; };
static std::string json(const Times& t) { return format("[%.4g, %.4g, %.4g]", t.q1, t.median, t.q3); }

// Microseconds of one launch of a set, over `replays` replays of a graph that goes over all sets `rounds` times.
static Times measure(const std::vector<std::vector<Launch>>& sets, int rounds, int replays) {
  void *stream = nullptr, *graph = nullptr, *executable = nullptr, *before = nullptr, *after = nullptr;
  Driver& d = driver();
  d.call("cuStreamCreate", &stream, 1u);
  d.call("cuEventCreate", &before, 0u);
  d.call("cuEventCreate", &after, 0u);
  d.call("cuStreamBeginCapture_v2", stream, 2);
  for (int r = 0; r < rounds; r++)
    for (auto& set : sets)
      for (auto& launch : set) launch.into(stream);
  d.call("cuStreamEndCapture", stream, &graph);
  d.call("cuGraphInstantiateWithFlags", &executable, graph, 0ull);
  std::vector<double> us;
  for (int i = 0; i < replays + (replays > 1 ? 2 : 0); i++) {  // the first two warm up
    d.call("cuEventRecord", before, stream);
    d.call("cuGraphLaunch", executable, stream);
    d.call("cuEventRecord", after, stream);
    d.wait(stream, "graph");
    float ms = 0;
    d.call("cuEventElapsedTime", &ms, before, after);
    if (i >= 2 || replays == 1) us.push_back(1e3 * ms / (double)(rounds * (int)sets.size()));
  }
  d.call("cuGraphExecDestroy", executable);
  d.call("cuGraphDestroy", graph);
  d.call("cuEventDestroy_v2", before);
  d.call("cuEventDestroy_v2", after);
  d.call("cuStreamDestroy_v2", stream);
  std::sort(us.begin(), us.end());
  auto at = [&](double q) { return us[(size_t)std::min<double>((double)us.size() - 1, q * (double)us.size())]; };
  return {at(0.25), at(0.5), at(0.75)};
}

int main(int argc, char** argv) {
  setvbuf(stdout, nullptr, _IOLBF, 0);
  std::vector<std::string> words;
  double seconds = 1e9;
  bool quick = false, list = false;
  for (int i = 1; i < argc; i++) {
    std::string a = argv[i];
    if (a == "quick") quick = true;
    else if (a == "list") list = true;
    else if (a.rfind("seconds=", 0) == 0) seconds = atof(a.c_str() + 8);
    else words.push_back(a);
  }
  add_all();
  if (quick) { add_attention(ENCODERS[0], 64, 16); add_attention(ENCODERS[0], 128, 128); }
  std::vector<Shape> chosen;
  for (Shape& s : shapes) {
    bool wanted = !quick || s.quick;
    for (auto& w : words) wanted = wanted && s.name.find(w) != std::string::npos;
    if (wanted) chosen.push_back(s);
  }
  if (list) {
    for (Shape& s : chosen) printf("%s\n", s.name.c_str());
    return chosen.empty();
  }
  try {
    Driver& d = driver();
    const double start = Driver::now();
    const bool hopper = d.attribute(Driver::MAJOR) == 9;
    chosen.erase(std::remove_if(chosen.begin(), chosen.end(), [&](const Shape& s) { return s.hopper && !hopper; }), chosen.end());
    const size_t l2 = (size_t)d.attribute(Driver::L2_BYTES);
    printf("{\"device\": \"%s\", \"architecture\": %d, \"driver\": %d, \"multiprocessors\": %d, \"l2_bytes\": %zu, \"clock_khz\": %d}\n", d.name().c_str(),
           10 * d.attribute(Driver::MAJOR) + d.attribute(Driver::MINOR), d.version(), d.attribute(Driver::MULTIPROCESSORS), l2, d.attribute(Driver::CLOCK_KHZ));
    const size_t limit = (size_t)2 << 30;
    auto sets_of = [&](const Shape& s) {
      if (quick) return (size_t)2;
      size_t wanted = 2 * l2 / s.set_bytes + 2;
      return std::max<size_t>(2, std::min<size_t>({wanted, 64, limit / (s.set_bytes + (s.set_bytes >> 6))}));
    };
    size_t most = 0;
    for (Shape& s : chosen) most = std::max(most, sets_of(s) * (s.set_bytes + (s.set_bytes >> 6) + 65536));
    Arena arena(most);
    int measured = 0;
    for (Shape& s : chosen) {
      if (Driver::now() - start > seconds) {
        printf("{\"stopped\": \"%d of %zu shapes measured in %.0f s\"}\n", measured, chosen.size(), seconds);
        break;
      }
      try {
        const size_t n = sets_of(s);
        arena.clear();
        arena.fill(std::min(arena.bytes(), n * (s.set_bytes + (s.set_bytes >> 6) + 65536)));
        std::vector<std::vector<Launch>> sets;
        for (size_t i = 0; i < n; i++) sets.push_back(s.build(arena));
        d.call("cuCtxSynchronize");  // the fills are in another stream
        // long enough that the two events do not count: about a millisecond, guessed from a roof that no GPU has
        double guess_us = std::max(2.0, std::max(s.bytes / 5e6, s.flops / 1e9));
        int rounds = quick ? 1 : (int)std::max(1.0, std::min(50.0, 1000 / (guess_us * (double)n)));
        int hot_rounds = quick ? 1 : (int)std::max(4.0, std::min(200.0, 1000 / guess_us)), replays = quick ? 1 : 15;
        Times cold = measure(sets, rounds, replays), hot = measure({sets[0]}, hot_rounds, replays);
        printf("{%s, \"bytes\": %.0f, \"flops\": %.0f, \"sets\": %zu, \"cold_us\": %s, \"hot_us\": %s}\n", s.json.c_str(), s.bytes, s.flops, n, json(cold).c_str(), json(hot).c_str());
        measured++;
      } catch (DriverError& e) {
        printf("{%s, \"error\": \"%s\"}\n", s.json.c_str(), e.what());
        if (e.code >= 700 && e.code < 800) throw;  // the context is lost, and the arena with it
      }
    }
    return measured ? 0 : 1;
  } catch (DriverError& e) {
    printf("{\"error\": \"%s\"}\n", e.what());
    return 1;
  }
}
