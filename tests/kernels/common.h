// What every kernel test shares: seeded random data, guarded buffers, 16-bit rounding, the error rule, real weights,
// cases and their command line. A test is
//
//   #include "../../kernels/pool.cu"
//   #include "common.h"
//   template <class T> static void mean_case(int rows) { ... launch(kernel, grid, block, smem, args...); check_error(...); }
//   static const int registered = add_case("pool_mean_f16 rows=17", [] { mean_case<F16>(17); }, QUICK);
//   int main(int argc, char** argv) { return run_cases(argc, argv); }
//
// Run: prog [words] [eager|late] [forward|reverse|shuffle] [seed=N] [nopoison] [list]
// `words` select the cases whose names contain all of them; the word `quick` selects the cases marked QUICK (what runs
// under ThreadSanitizer). One line a case; the exit code is 0 only if no case failed and at least one was selected.
#pragma once
#ifndef HOST_EMULATION
#error "compile with tests/kernels/build.sh"
#endif
#include <math.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>
#include <functional>
#include <map>
#include <string>
#include <tuple>
#include <vector>
#include "../../kernels/numeric.cuh"
#ifdef __SANITIZE_ADDRESS__
#include <sanitizer/asan_interface.h>
#endif

// ---- failing, skipping, noting ------------------------------------------------------------------------------------
struct CaseFailed { std::string why; };
struct CaseSkipped { std::string why; };

__attribute__((format(printf, 1, 2))) static inline std::string format(const char* pattern, ...) {
  char text[2048];
  va_list args;
  va_start(args, pattern);
  vsnprintf(text, sizeof text, pattern, args);
  va_end(args);
  return text;
}
#define FAIL(...) throw CaseFailed{format(__VA_ARGS__)}
#define SKIP(...) throw CaseSkipped{format(__VA_ARGS__)}
#define EXPECT(condition, ...) do { if (!(condition)) FAIL(__VA_ARGS__); } while (0)

// The folder tests/: where it was when this was compiled, or what BERTHIER_TESTS says.
static inline std::string tests_folder() {
  if (const char* moved = getenv("BERTHIER_TESTS")) return moved;
  std::string path = __FILE__;
  return path.substr(0, path.rfind('/')) + "/..";
}

static std::string case_notes;  // what the running case wants on its line
#define NOTE(...) (case_notes += "  " + format(__VA_ARGS__))

// ---- element types ------------------------------------------------------------------------------------------------
template <class T> struct Element;
template <> struct Element<F16> { static constexpr const char* name = "f16"; static constexpr double unit_roundoff = 1.0 / 2048; };
template <> struct Element<BF16> { static constexpr const char* name = "bf16"; static constexpr double unit_roundoff = 1.0 / 256; };

// A number as it comes back from 16-bit storage.
template <class T> static inline float round16(float x) { return T::to_f32(T::from_f32(x)); }

// The weights [n, k] of a product that its input's layernorm is folded into, as kernels/epilogue.cuh wants them.
template <class T> struct Folded {
  std::vector<half_t> w;
  std::vector<float> colsum, bias;
  Folded(const std::vector<float>& plain, const std::vector<float>& gamma, const std::vector<float>& beta, const std::vector<float>& plain_bias) {
    size_t k = gamma.size();
    for (size_t row = 0; row < plain_bias.size(); row++) {
      double sum = 0, shifted = plain_bias[row];
      for (size_t i = 0; i < k; i++) {
        float v = plain[row * k + i];
        w.push_back(T::from_f32(v * gamma[i]));
        sum += T::to_f32(w.back());
        shifted += (double)v * beta[i];
      }
      colsum.push_back((float)sum);
      bias.push_back((float)shifted);
    }
  }
};

// ---- random data: the same on every machine, by a case's own seed ---------------------------------------------------
class Random {
 public:
  explicit Random(uint64_t seed = 1) : state_(seed * 0x9E3779B97F4A7C15ull + 1) {}
  uint64_t bits() {  // splitmix64
    uint64_t z = (state_ += 0x9E3779B97F4A7C15ull);
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9ull;
    z = (z ^ (z >> 27)) * 0x94D049BB133111EBull;
    return z ^ (z >> 31);
  }
  double unit() { return (double)(bits() >> 11) * 0x1p-53; }  // [0, 1)
  float uniform(float low, float high) { return (float)(low + (high - low) * unit()); }
  int integer(int low, int high) { return low + (int)(bits() % (uint64_t)(high - low + 1)); }  // both ends included
  float normal(float deviation = 1, float mean = 0) {
    if (has_spare_) { has_spare_ = false; return mean + deviation * (float)spare_; }
    double radius = sqrt(-2 * log(1 - unit())), angle = 2 * M_PI * unit();
    spare_ = radius * sin(angle);
    has_spare_ = true;
    return mean + deviation * (float)(radius * cos(angle));
  }
  std::vector<float> normals(size_t n, float deviation = 1, float mean = 0) {
    std::vector<float> v(n);
    for (float& x : v) x = normal(deviation, mean);
    return v;
  }
  std::vector<float> uniforms(size_t n, float low, float high) {
    std::vector<float> v(n);
    for (float& x : v) x = uniform(low, high);
    return v;
  }
  template <class T> std::vector<half_t> normals16(size_t n, float deviation = 1, float mean = 0) {
    std::vector<half_t> v(n);
    for (half_t& x : v) x = T::from_f32(normal(deviation, mean));
    return v;
  }
  template <class T> std::vector<half_t> uniforms16(size_t n, float low, float high) {
    std::vector<half_t> v(n);
    for (half_t& x : v) x = T::from_f32(uniform(low, high));
    return v;
  }

 private:
  uint64_t state_;
  double spare_ = 0;
  bool has_spare_ = false;
};

// ---- guarded buffers: device memory of a test -----------------------------------------------------------------------
// 256-byte aligned like cudaMalloc's. An output starts as NaN (every byte 0xFF); an input must be unchanged after a
// launch. Bands on both sides must be unchanged too: launch() looks at every live buffer. Under asan the bands are
// poisoned, and the emulator's wrappers know the bounds of every buffer in every mode.
class GuardedBase {
 public:
  static constexpr size_t BAND = 16 << 10;  // bytes on each side: a tile's rows past the end fall into it
  GuardedBase(size_t bytes, size_t misalign) : bytes_(bytes) {
    size_t total = BAND + misalign + ((bytes + 255) & ~(size_t)255) + BAND;
    if (posix_memalign((void**)&block_, 256, total)) abort();
    total_ = total;
    start_ = block_ + BAND + misalign;
    seed_ = ++serial();
    for (size_t i = 0; i < BAND + misalign + 256 && i < total_; i++) block_[i] = band_byte(i);
    for (size_t i = BAND + misalign + bytes; i < total_; i++) block_[i] = band_byte(i);
    memset(start_, 0xFF, bytes_);
    shield(true);
    previous_ = live();
    if (previous_) previous_->next_ = this;
    live() = this;
  }
  ~GuardedBase() {
    emu::unregister_memory(start_);
    shield(false);
    if (previous_) previous_->next_ = next_;
    (next_ ? next_->previous_ : live()) = previous_;
    free(block_);
  }
  GuardedBase(const GuardedBase&) = delete;
  GuardedBase& operator=(const GuardedBase&) = delete;

  static void check_all() {
    for (GuardedBase* b = live(); b; b = b->previous_) b->check();
  }
  void check() {
    shield(false);
    uint8_t band[256];
    for (size_t i = 0; i < sizeof band; i++) band[i] = band_byte(i);  // which has a period of 128 bytes
    std::string damage;
    auto look = [&](size_t from, size_t to) {
      for (size_t i = from, n; i < to && damage.empty(); i += n) {
        n = to - i < 128 ? to - i : 128;
        if (!memcmp(block_ + i, band + i % 128, n)) continue;
        for (size_t e = i; e < i + n && damage.empty(); e++)
          if (block_[e] != band_byte(e))
            damage = format("guard band of %s overwritten at byte %td (buffer has %zu)", label(), block_ + e - start_, bytes_);
      }
    };
    look(0, (size_t)(start_ - block_));
    look((size_t)(start_ - block_) + bytes_, total_);
    shield(true);
    if (!damage.empty()) FAIL("%s", damage.c_str());
    if (is_input_ && bytes_ && memcmp(start_, copy_.data(), bytes_)) FAIL("input %s was changed by the kernel", label());
  }
  void name(const char* text) {
    name_ = text;
    emu::register_memory(start_, bytes_, label(), !is_input_, BAND);
  }
  // That an input holds addresses of other buffers, which on a GPU are others.
  void holds_addresses() { emu::register_memory(start_, bytes_, label(), false, BAND, true); }
  // That a kernel reads (writes) no word of it more than once: it stands for the host's memory.
  void read_once() { emu::allow_once(start_, emu::READ); }
  void write_once() { emu::allow_once(start_, emu::WRITE); }
  size_t bytes() const { return bytes_; }

 protected:
  // NaN in f16, bf16 and f32 alike, so that a read from a band shows in the result; different in each place and buffer, so
  // that a band copied into a band shows too.
  uint8_t band_byte(size_t i) const { return i & 1 ? 0x7F : (uint8_t)(0x81 | ((i >> 1) * 37 + seed_ * 11) << 1); }
  static uint32_t& serial() { static uint32_t n = 0; return n; }
  void keep_as_input() {
    is_input_ = true;
    copy_.assign(start_, start_ + bytes_);
    emu::register_memory(start_, bytes_, label(), false, BAND);
  }
  const char* label() const { return name_.empty() ? "a buffer" : name_.c_str(); }
  void shield(bool on) {
#ifdef __SANITIZE_ADDRESS__
    if (on) {
      ASAN_POISON_MEMORY_REGION(block_, start_ - block_);
      ASAN_POISON_MEMORY_REGION(start_ + bytes_, block_ + total_ - (start_ + bytes_));
    } else {
      ASAN_UNPOISON_MEMORY_REGION(block_, total_);
    }
#else
    (void)on;
#endif
  }
  static GuardedBase*& live() { static GuardedBase* last = nullptr; return last; }
  uint8_t *block_, *start_;
  size_t bytes_, total_;
  uint32_t seed_ = 0;
  bool is_input_ = false;
  std::vector<uint8_t> copy_;
  std::string name_;
  GuardedBase *previous_ = nullptr, *next_ = nullptr;
};

template <class E> class Guarded : public GuardedBase {
 public:
  // An output (or scratch) of n elements, all NaN. `misalign` bytes (a multiple of 16) move it off its 256-byte boundary.
  explicit Guarded(size_t n, const char* label = "", size_t misalign = 0) : GuardedBase(n * sizeof(E), misalign), n_(n) { name(label); }
  // An input: a copy of `values`, which kernels may only read.
  explicit Guarded(const std::vector<E>& values, const char* label = "", size_t misalign = 0) : Guarded(values.size(), label, misalign) {
    if (n_) memcpy(start_, values.data(), bytes_);
    keep_as_input();
  }
  E* data() { return (E*)start_; }
  const E* data() const { return (const E*)start_; }
  size_t size() const { return n_; }
  const E& operator[](size_t i) const { return data()[i]; }
  std::vector<E> values() const { return std::vector<E>(data(), data() + n_); }
  void refill_with_nan() { memset(start_, 0xFF, bytes_); }

 private:
  size_t n_;
};

// ---- launching ----------------------------------------------------------------------------------------------------
// Checks the block against the kernel's launch bounds, runs the kernel, checks every live guarded buffer. Emulator errors
// (deadlock, bad address, ...) fail the case with their text.
constexpr int KERNELS_OWN_CLUSTER = -2;  // 1 of a kernel that leaves it to its launch
template <class... P, class... A>
static void launch_in_clusters(int cluster, void (*kernel)(P...), dim3e grid, dim3e block, size_t smem_bytes, A... args) {
  const emu::Kernel* known = emu::find_kernel((void*)kernel);
  EXPECT(known, "the launched function is not a KERNEL");
  EXPECT((int)(block.x * block.y * block.z) == known->threads, "%s launched with %u threads, its bounds say %d", known->name,
         block.x * block.y * block.z, known->threads);
  EXPECT(smem_bytes <= 227 << 10, "%s: %zu bytes of shared memory are more than any GPU has", known->name, smem_bytes);
  std::tuple<std::remove_const_t<std::remove_reference_t<P>>...> values((P)args...);
  std::apply([&](auto&... value) {
    void* parameters[] = {(void*)&value..., nullptr};
    if (cluster == KERNELS_OWN_CLUSTER) cluster = known->cluster == emu::AT_LAUNCH ? 1 : known->cluster;
    if (grid.x && grid.y && grid.z) emu::launch(*known, grid, block, smem_bytes, parameters, cluster);
  }, values);
  GuardedBase::check_all();
}
template <class... P, class... A>
static void launch(void (*kernel)(P...), dim3e grid, dim3e block, size_t smem_bytes, A... args) {
  launch_in_clusters(KERNELS_OWN_CLUSTER, kernel, grid, block, smem_bytes, args...);
}

// No ldmatrix, cp.async or shared load/store (through the wrappers) of the case's launches so far took more passes than its bytes
// need, except on source lines that carry the comment `bank conflicts: <why they do not matter>`. An access that the case
// means to look at must have been made through a wrapper: `at_least` warp-wide accesses in all. A GPU counts nothing.
static inline void expect_no_bank_conflicts(long at_least = 1) {
  if (!emu::emulated()) return;
  std::string bad = emu::conflict_report();
  long seen = 0;
  for (auto& line : emu::conflicts()) seen += line.accesses;
  EXPECT(seen >= at_least, "only %ld counted accesses to shared memory", seen);
  EXPECT(bad.empty(), "bank conflicts: %s", bad.c_str());
}

// ---- references ------------------------------------------------------------------------------------------------------
// A loop that most of a test's time would go into: vectorised, sums in any order, and not under a sanitizer (only over
// plain pointers: of what is inlined a sanitizer stays).
#define REFERENCE __attribute__((optimize("O3,associative-math,no-signed-zeros,no-trapping-math"), no_sanitize("address", "thread", "undefined")))

// out [m, n] = a [m, k] . w [n, k]^T
template <class R, class W> REFERENCE static void product_into(const R* a, const W* w, R* out, size_t m, size_t n, size_t k) {
  for (size_t row = 0; row < m; row++)
    for (size_t j = 0; j < n; j += 4) {      // of the last columns some twice
      const R* x = a + row * k;
      const W *w0 = w + j * k, *w1 = w + (j + 1 < n ? j + 1 : j) * k, *w2 = w + (j + 2 < n ? j + 2 : j) * k, *w3 = w + (j + 3 < n ? j + 3 : j) * k;
      R sums[4] = {0, 0, 0, 0};
      for (size_t i = 0; i < k; i++) {
        sums[0] += x[i] * (R)w0[i];
        sums[1] += x[i] * (R)w1[i];
        sums[2] += x[i] * (R)w2[i];
        sums[3] += x[i] * (R)w3[i];
      }
      for (size_t c = j; c < n && c < j + 4; c++) out[row * n + c] = sums[c - j];
    }
}
// a [m, k] . w [n, k]^T, in the precision of R
template <class R, class W> static std::vector<R> product(const std::vector<R>& a, const std::vector<W>& w, size_t m, size_t n, size_t k) {
  std::vector<R> out(m * n);
  product_into(a.data(), w.data(), out.data(), m, n, k);
  return out;
}

// ---- the error rule -------------------------------------------------------------------------------------------------
template <class T> static std::vector<double> widen16(const half_t* p, size_t n) {
  std::vector<double> v(n);
  for (size_t i = 0; i < n; i++) v[i] = T::to_f32(p[i]);
  return v;
}
template <class T> static std::vector<double> widen16(const Guarded<half_t>& b) { return widen16<T>(b.data(), b.size()); }
template <class T> static std::vector<double> widen16(const std::vector<half_t>& b) { return widen16<T>(b.data(), b.size()); }
static inline std::vector<double> widen32(const float* p, size_t n) { return std::vector<double>(p, p + n); }
static inline std::vector<double> widen32(const Guarded<float>& b) { return widen32(b.data(), b.size()); }
static inline std::vector<double> widen32(const std::vector<float>& b) { return widen32(b.data(), b.size()); }

static inline double largest(const std::vector<double>& v) {
  double m = 0;
  for (double x : v) m = fmax(m, fabs(x));
  return m;
}
// max |got - ref|; infinite if one is not finite, or differs in being so.
static inline double max_error(const std::vector<double>& got, const std::vector<double>& ref, size_t* where = nullptr) {
  EXPECT(got.size() == ref.size(), "%zu values, reference has %zu", got.size(), ref.size());
  double worst = 0;
  for (size_t i = 0; i < ref.size(); i++) {
    double e = fabs(got[i] - ref[i]);
    if (std::isnan(e)) e = INFINITY;
    if (e > worst) { worst = e; if (where) *where = i; }
  }
  return worst;
}
static inline double rms_error(const std::vector<double>& got, const std::vector<double>& ref) {
  double s = 0;
  for (size_t i = 0; i < ref.size(); i++) s += (got[i] - ref[i]) * (got[i] - ref[i]);
  return ref.empty() ? 0 : sqrt(s / (double)ref.size());
}

// The rule of every kernel: max |got - ref| <= 2 max |naive - ref| + rounding, and the same for the root mean square, which
// notices a small error everywhere (a GELU that is tanh's). `ref` is computed in f64, `naive` with fp32 arithmetic and
// 16-bit storage between the same steps. `rounding` is absolute: say where it comes from, e.g. output_rounding<T>(ref).
static inline void check_error(const char* what, const std::vector<double>& got, const std::vector<double>& naive,
                               const std::vector<double>& ref, double rounding) {
  size_t at = 0;
  double e = max_error(got, ref, &at), n = max_error(naive, ref);
  double er = rms_error(got, ref), nr = rms_error(naive, ref);
  if (!*what) what = "result";
  EXPECT(std::isfinite(n), "%s: the naive version is not finite, so it cannot be the yardstick", what);
  EXPECT(e <= 2 * n + rounding, "%s: error %.3g > 2 x %.3g (naive) + %.3g; worst at %zu of %zu: got %.9g, reference %.9g", what, e, n,
         rounding, at, ref.size(), got[at], ref[at]);
  EXPECT(er <= 2 * nr + rounding, "%s: rms error %.3g > 2 x %.3g (naive) + %.3g", what, er, nr, rounding);
  NOTE("%s err %.2e naive %.2e", what, e, n);
}
// Half a unit in the last place of the largest value: what rounding a result to 16 bits can cost where the naive version
// happens to be lucky.
template <class T> static double output_rounding(const std::vector<double>& ref) { return Element<T>::unit_roundoff * largest(ref); }
// The same for f32 outputs: `ulps` units of 2^-24 of the largest value.
static inline double f32_rounding(const std::vector<double>& ref, double ulps) { return ulps * 0x1p-24 * largest(ref); }

// Equal to the bit: two runs, alone and in a batch.
static inline void check_same_bits(const char* what, const void* a, const void* b, size_t bytes) {
  const uint8_t *x = (const uint8_t*)a, *y = (const uint8_t*)b;
  for (size_t i = 0; i < bytes; i++) EXPECT(x[i] == y[i], "%s: bits differ at byte %zu of %zu", what, i, bytes);
}

// ---- tensor maps --------------------------------------------------------------------------------------------------------
// Of a row-major [rows, columns] of 16-bit elements; boxes of 64 columns with the 128-byte swizzle, of 32 with that of 64 bytes.
static inline TensorMap tensor_map(const half_t* base, int rows, int columns, int box_rows, int box_columns = 64) {
  TensorMap m{};
  m.magic = TENSOR_MAP_MAGIC;
  m.base = (uint64_t)base;
  m.dim[0] = (uint64_t)columns;
  m.dim[1] = (uint64_t)rows;
  m.stride = (uint64_t)columns * 2;
  m.box[0] = (uint32_t)box_columns;
  m.box[1] = (uint32_t)box_rows;
  m.element_bytes = 2;
  m.swizzle = box_columns == 64 ? 3 : 2;
  return m;
}

// ---- real weights -----------------------------------------------------------------------------------------------------
// Tensors of the safetensors file that BERTHIER_TEST_WEIGHTS names (all-MiniLM-L6-v2). A case without it is skipped.
struct Tensor { std::vector<int> shape; std::vector<float> values; };

class Weights {
 public:
  static Weights& get() { static Weights w; return w; }
  Tensor tensor(const std::string& name) {
    size_t at = header_.find("\"" + name + "\":");
    EXPECT(at != std::string::npos, "no tensor '%s' in the file of BERTHIER_TEST_WEIGHTS", name.c_str());
    std::string entry = header_.substr(at, header_.find('}', at) - at);
    Tensor t;
    size_t count = 1;
    for (long v : numbers(entry, "\"shape\"")) { t.shape.push_back((int)v); count *= (size_t)v; }
    std::vector<long> range = numbers(entry, "\"data_offsets\"");
    EXPECT(range.size() == 2, "%s: no data_offsets", name.c_str());
    bool half = entry.find("\"F16\"") != std::string::npos;
    EXPECT(half || entry.find("\"F32\"") != std::string::npos, "%s: neither F16 nor F32", name.c_str());
    EXPECT((size_t)(range[1] - range[0]) == count * (half ? 2 : 4), "%s: its bytes do not fit its shape", name.c_str());
    std::vector<uint8_t> raw((size_t)(range[1] - range[0]));
    EXPECT(!fseek(file_, 8 + (long)header_.size() + range[0], SEEK_SET) && fread(raw.data(), 1, raw.size(), file_) == raw.size(),
           "%s: file ends early", name.c_str());
    t.values.resize(count);
    for (size_t i = 0; i < count; i++) {
      if (half) { half_t h; memcpy(&h, &raw[2 * i], 2); t.values[i] = F16::to_f32(h); }
      else memcpy(&t.values[i], &raw[4 * i], 4);
    }
    return t;
  }
  // Whether the file is a copy in 16 bits, which is not quite the model that vectors in tests/fixtures are of.
  bool rounded() const { return header_.find("\"F16\"") != std::string::npos; }
  template <class T> std::vector<half_t> tensor16(const std::string& name) {
    Tensor t = tensor(name);
    std::vector<half_t> v(t.values.size());
    for (size_t i = 0; i < v.size(); i++) v[i] = T::from_f32(t.values[i]);
    return v;
  }

 private:
  Weights() {
    const char* path = getenv("BERTHIER_TEST_WEIGHTS");
    if (!path || !*path) SKIP("BERTHIER_TEST_WEIGHTS is not set");
    file_ = fopen(path, "rb");
    EXPECT(file_, "BERTHIER_TEST_WEIGHTS: cannot open %s", path);
    uint64_t n = 0;
    EXPECT(fread(&n, 8, 1, file_) == 1 && n < 100 << 20, "%s is not a safetensors file", path);
    header_.resize(n);
    EXPECT(fread(&header_[0], 1, n, file_) == n, "%s is cut short", path);
  }
  static std::vector<long> numbers(const std::string& entry, const char* key) {  // the list after `key`
    std::vector<long> v;
    size_t p = entry.find('[', entry.find(key)), e = entry.find(']', p);
    for (p++; p < e;) {
      char* end;
      v.push_back(strtol(entry.c_str() + p, &end, 10));
      if (end == entry.c_str() + p) { v.pop_back(); break; }
      p = (size_t)(end - entry.c_str()) + 1;
    }
    return v;
  }
  FILE* file_ = nullptr;
  std::string header_;
};

// ---- cases --------------------------------------------------------------------------------------------------------------
enum Speed { SLOW, QUICK };  // QUICK: also what runs under ThreadSanitizer, so at most a few seconds there
struct Case { std::string name; std::function<void()> body; Speed speed; };
static inline std::vector<Case>& all_cases() { static std::vector<Case> c; return c; }
static inline int add_case(std::string name, std::function<void()> body, Speed speed = SLOW) {
  all_cases().push_back({std::move(name), std::move(body), speed});
  return 0;
}
static uint64_t base_seed = 1;
static uint64_t case_seed = 1;  // of the running case: by its name, so that a filter does not change its data
static inline double cpu_ms() {
  timespec t;
  clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &t);
  return (double)t.tv_sec * 1e3 + (double)t.tv_nsec * 1e-6;
}

// A crash names its case. On a stack of its own, as it may be a fiber's that has run over.
static std::string running_case;
static inline void report_crash(int signal) {
  std::string text = "FAIL " + running_case + ": " + strsignal(signal) + "\n";
  if (write(1, text.data(), text.size()) < 0) {}
  _exit(1);
}
static inline void catch_crashes() {
#if !defined(__SANITIZE_ADDRESS__) && !defined(__SANITIZE_THREAD__)
  static char own_stack[64 << 10];
  stack_t stack = {};
  stack.ss_sp = own_stack;
  stack.ss_size = sizeof own_stack;
  sigaltstack(&stack, nullptr);
  struct sigaction action = {};
  action.sa_handler = report_crash;
  action.sa_flags = SA_ONSTACK;
  for (int s : {SIGSEGV, SIGBUS, SIGFPE, SIGILL, SIGABRT}) sigaction(s, &action, nullptr);
#endif
}

static inline int run_cases(int argc, char** argv) {
  std::vector<std::string> words;
  bool quick = false, list = false;
  for (int i = 1; i < argc; i++) {
    std::string a = argv[i];
    if (a == "eager") emu::opt.async = emu::EAGER;
    else if (a == "late") emu::opt.async = emu::LATE;
    else if (a == "forward") emu::opt.order = emu::FORWARD;
    else if (a == "reverse") emu::opt.order = emu::REVERSE;
    else if (a == "shuffle") emu::opt.order = emu::SHUFFLE;
    else if (a == "nopoison") emu::opt.poison = false;
    else if (a == "quick") quick = true;
    else if (a == "list") list = true;
    else if (a.rfind("seed=", 0) == 0) { base_seed = strtoull(a.c_str() + 5, nullptr, 10); emu::opt.seed = (unsigned)base_seed; }
    else if (a != "all") words.push_back(a);
  }
  catch_crashes();
  int ran = 0, failed = 0, skipped = 0;
  double start = cpu_ms();
  for (Case& c : all_cases()) {
    bool selected = !quick || c.speed == QUICK;
    for (auto& w : words) selected = selected && c.name.find(w) != std::string::npos;
    if (!selected) continue;
    ran++;
    if (list) { printf("%s%s\n", c.name.c_str(), c.speed == QUICK ? " (quick)" : ""); continue; }
    case_seed = base_seed;
    for (char ch : c.name) case_seed = (case_seed ^ (uint8_t)ch) * 0x100000001B3ull;
    running_case = c.name;
    case_notes.clear();
    emu::reset_conflicts();
    const char* verdict = "ok  ";
    std::string why;
    double t = cpu_ms();
    try { c.body(); }
    catch (CaseFailed& f) { verdict = "FAIL"; why = f.why; failed++; }
    catch (CaseSkipped& s) { verdict = "SKIP"; why = s.why; skipped++; }
    catch (emu::Unavailable& e) { verdict = "SKIP"; why = e.msg; skipped++; }
    catch (emu::Error& e) { verdict = "FAIL"; why = std::string(emu::emulated() ? "EMULATOR: " : "GPU: ") + e.msg; failed++; }
    printf("%s %s%s%s%s  %.0f ms\n", verdict, c.name.c_str(), case_notes.c_str(), why.empty() ? "" : ": ", why.c_str(), cpu_ms() - t);
    fflush(stdout);
  }
  if (!list) printf("%d cases, %d failed, %d skipped, %.1f s of CPU time\n", ran, failed, skipped, (cpu_ms() - start) * 1e-3);
  if (!ran) fprintf(stderr, "no case matches\n");
  return failed || !ran ? 1 : 0;
}
