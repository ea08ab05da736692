// memory.cpp - addresses: the block's shared window, and the device memory that tests and the driver register. Every
// access through a wrapper is checked for alignment and bounds.
#include <stdio.h>
#include <algorithm>
#include <mutex>
#include "core.h"

namespace emu {
// ---- shared memory -------------------------------------------------------------------------------------------------------
uint8_t* smem_dynamic() { return block->window + STATIC_BYTES; }
void* smem_static(const void* tag, size_t bytes, size_t align, Loc loc) {
  Block& b = *block;
  auto found = b.static_arrays.find(tag);
  if (found != b.static_arrays.end()) return found->second;
  if (align < 16) align = 16;
  size_t at = (b.static_bytes + align - 1) & ~(align - 1);
  if (at + bytes > STATIC_BYTES) fail("%s:%d: more than %zu bytes of static shared memory", AT(loc), STATIC_BYTES);
  b.static_bytes = at + bytes;
  if (b.static_bytes + b.smem_bytes > MAX_SMEM_BYTES) fail("%s:%d: %zu static + %zu dynamic bytes are more shared memory than any GPU has", AT(loc), b.static_bytes, b.smem_bytes);
  void* p = b.window + at;
  asan_unpoison(p, bytes);
  b.static_bytes += 16;                      // a gap, so that asan sees one array run into the next
  Unseen unseen;
  return b.static_arrays[tag] = p;
}
saddr smem_address(const void* p) {
  ptrdiff_t at = (const uint8_t*)p - block->window;
  if (at < 0 || at > (ptrdiff_t)(STATIC_BYTES + block->smem_bytes)) fail("smem_addr: not a shared-memory pointer");
  return (saddr)(at - (ptrdiff_t)STATIC_BYTES + DYNAMIC_BASE);
}
uint8_t* shared_at(saddr a, size_t bytes, size_t align, const char* what, Loc loc) {
  const int64_t at = (int64_t)a - DYNAMIC_BASE;
  if (a & (align - 1)) fail("%s at %s:%d: shared address %lld is not %zu-byte aligned", what, AT(loc), (long long)at, align);
  if (at + (int64_t)bytes > (int64_t)block->smem_bytes || at < -(int64_t)STATIC_BYTES ||
      (at < 0 && at + (int64_t)bytes > (int64_t)block->static_bytes - (int64_t)STATIC_BYTES))
    fail("%s at %s:%d: shared bytes %lld to %lld are out of bounds (%zu dynamic, %zu static)", what, AT(loc), (long long)at,
         (long long)at + (long long)bytes, block->smem_bytes, block->static_bytes);
  return block->window + STATIC_BYTES + at;
}
uint8_t* shared_access(saddr a, uint32_t bytes, Direction direction, Loc loc) {
  static const char* const names[2][5] = {{"ld.shared.16", "ld.shared.32", "ld.shared.64", "ld.shared.128", ""}, {"st.shared.16", "st.shared.32", "st.shared.64", "st.shared.128", ""}};
  const char* what = names[direction][__builtin_ctz(bytes) - 1];
  uint8_t* p = shared_at(a, bytes, bytes, what, loc);
  count_lane(what, a, bytes, loc);
  running->last_access = loc;
  return p;
}
// In the shared memory of a block of the cluster. Its banks are not counted: how they serve others is not documented.
uint8_t* cluster_access(saddr a, uint32_t rank, uint32_t bytes, Loc loc) {
  OnBlock there(&block_of_rank(rank, "ld.shared::cluster", loc));
  uint8_t* p = shared_at(a, bytes, bytes, "ld.shared::cluster", loc);
  running->last_access = loc;
  return p;
}

// ---- device memory ---------------------------------------------------------------------------------------------------------
// Who touched what is kept by pieces, as an arena is one allocation.
constexpr size_t PIECE = 256;
struct Piece { uint32_t written_by = 0, read_by = 0; };  // numbers of launches
struct Allocation {
  uintptr_t start; size_t bytes; std::string label; bool writable; std::vector<Piece> pieces; size_t margin; bool holds_addresses; uint64_t id;
  std::vector<uint32_t> once[2];             // by direction: of each word the launch that has touched it; empty where any may
};
static std::map<uintptr_t, Allocation>& allocations() { static std::map<uintptr_t, Allocation> m; return m; }
static std::mutex allocations_mutex;
static uint64_t allocations_version = 1;
void register_memory(const void* start, size_t bytes, const char* label, bool writable, size_t margin, bool holds_addresses) {
  std::lock_guard<std::mutex> lock(allocations_mutex);
  static uint64_t registrations = 0;
  allocations()[(uintptr_t)start] = {(uintptr_t)start, bytes, label, writable, std::vector<Piece>(bytes / PIECE + 2), margin, holds_addresses, ++registrations, {}};
  allocations_version++;
}
void allow_once(const void* start, Direction direction) {
  std::lock_guard<std::mutex> lock(allocations_mutex);
  Allocation& a = allocations().at((uintptr_t)start);
  a.once[direction].assign(a.bytes / 4, 0);
}
std::vector<Memory> registered_memory() {
  std::lock_guard<std::mutex> lock(allocations_mutex);
  std::vector<Memory> all;
  for (auto& [start, a] : allocations()) all.push_back({a.id, (uint8_t*)start, a.bytes, a.margin, a.writable, a.holds_addresses});
  return all;
}
void unregister_memory(const void* start) {
  std::lock_guard<std::mutex> lock(allocations_mutex);
  allocations().erase((uintptr_t)start);
  allocations_version++;
}
[[noreturn]] static void out_of_bounds(uintptr_t p, uint32_t bytes, const char* what, Loc loc) {
  auto& all = allocations();
  auto after = all.upper_bound(p);
  char text[200] = "";
  if (after != all.begin()) {
    const Allocation& a = std::prev(after)->second;
    if (p - (a.start + a.bytes) + bytes < 1 << 20) snprintf(text, sizeof text, ": %lld bytes behind the start of %s, which has %zu", (long long)(p - a.start), a.label.empty() ? "an allocation" : a.label.c_str(), a.bytes);
  }
  if (!*text && after != all.end() && after->first - p < 1 << 20)
    snprintf(text, sizeof text, ": %lld bytes before %s", (long long)(after->first - p), after->second.label.empty() ? "an allocation" : after->second.label.c_str());
  fail("%s at %s:%d: %u bytes outside of every allocation%s", what, AT(loc), bytes, *text ? text : p ? "" : " (null pointer)");
}
static void note_access(Allocation&, uintptr_t p, size_t bytes, bool write, const char* what, Loc);
void check_global(const void* pointer, size_t bytes, bool write, const char* what, Loc loc) {
  const uintptr_t p = (uintptr_t)pointer;
  static thread_local uint64_t version = 0;
  static thread_local Allocation* recent[4] = {};
  static thread_local int turn = 0;
  size_t align = bytes <= 16 ? bytes : 16;
  if (p & (align - 1)) fail("%s at %s:%d: global address %#zx is not %zu-byte aligned", what, AT(loc), (size_t)p, align);
  if (version != allocations_version) { version = allocations_version; std::fill(std::begin(recent), std::end(recent), nullptr); }
  Allocation* a = nullptr;
  for (Allocation* r : recent) if (r && p - r->start < r->bytes) { a = r; break; }
  if (!a) {
    auto& all = allocations();
    if (all.empty()) return;
    auto after = all.upper_bound(p);
    if (after != all.begin()) a = &std::prev(after)->second;
    if (!a || p - a->start >= a->bytes) out_of_bounds(p, (uint32_t)bytes, what, loc);
    recent[turn++ & 3] = a;
  }
  if (p - a->start + bytes > a->bytes) out_of_bounds(p, (uint32_t)bytes, what, loc);
  if (write && !a->writable) fail("%s at %s:%d: writes to the input %s", what, AT(loc), a->label.c_str());
  if (bytes <= 256) note_access(*a, p, bytes, write, what, loc);
}

// ---- programmatic dependent launch ------------------------------------------------------------------------------------------
static uint32_t launch_number = 0, ended = 0;  // this launch; the last one that is known to have ended
void begin_launch() {
  launch_number++;
  if (!opt.dependent) ended = launch_number - 1;
}
void launches_have_ended() { ended = launch_number; }
static void note_access(Allocation& a, uintptr_t p, size_t bytes, bool write, const char* what, Loc loc) {
  auto later = [](uint32_t& who) { uint32_t n = __atomic_load_n(&who, __ATOMIC_RELAXED); return n > ended && n < launch_number; };
  for (size_t i = (p - a.start) / PIECE; i <= (p - a.start + bytes - 1) / PIECE; i++) {
    Piece& piece = a.pieces[i];
    Fiber& f = *running;
    if (!f.waited && !f.early && (later(piece.written_by) || (write && later(piece.read_by)))) { f.early = what; f.early_at = loc; }
    __atomic_store_n(write ? &piece.written_by : &piece.read_by, launch_number, __ATOMIC_RELAXED);
  }
  auto& once = a.once[write ? WRITE : READ];
  for (size_t word = (p - a.start) / 4; !once.empty() && word < (p - a.start + bytes) / 4; word++)
    if (__atomic_exchange_n(&once[word], launch_number, __ATOMIC_RELAXED) == launch_number)
      fail("%s at %s:%d: word %zu of %s a second time", what, AT(loc), word, a.label.c_str());
}
void griddep_wait(Loc loc) {
  Fiber& f = *running;
  if (f.early) fail("%s at %s:%d touches what an earlier launch may still be at; griddep_wait comes at %s:%d", f.early, AT(f.early_at), AT(loc));
  f.waited = block->waited = true;
}
void global_access(const void* p, uint32_t bytes, Direction direction, Loc loc) {
  static const char* const names[2][3] = {{"ld.global.32", "ld.global.64", "ld.global.128"}, {"st.global.32", "st.global.64", "st.global.128"}};
  check_global(p, bytes, direction == WRITE, names[direction][__builtin_ctz(bytes) - 2], loc);
}

// ---- approximate functions -----------------------------------------------------------------------------------------------------
float approximately(float y, float x, float relative, bool exact) {
  if (exact || !opt.approximate || !(fabsf(y) <= 3e38f)) return y;
  uint32_t h = f32_bits(x) * 0x9E3779B1u;
  h = (h ^ h >> 15) * 0x85EBCA77u;
  float unit = (float)(int32_t)(h ^ h >> 13) * 0x1p-31f;  // in [-1, 1]
  return y + y * (unit * relative);
}
}  // namespace emu
