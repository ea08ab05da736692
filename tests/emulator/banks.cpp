// banks.cpp - shared-memory passes by source line. 32 banks of 4 bytes. A warp's access is cut into groups of lanes that
// together move at most 128 bytes (32 lanes of up to 4 bytes, 16 of 8, 8 of 16); a group takes as many passes as the
// busiest bank has different words. ldmatrix and stmatrix take a group of 8 row addresses per matrix.
//
// Lanes come one at a time here, so the k-th visit of each lane to a line is taken as one warp-wide access: exact where
// lanes run the line equally often, an approximation where they do not.
#include <stdio.h>
#include <string.h>
#include <deque>
#include <mutex>
#include "core.h"

namespace emu {
struct Tally { const char* what; long accesses = 0, passes = 0, extra = 0; };
typedef std::map<std::pair<std::string, int>, std::map<std::string, Tally>> Table;
static Table& table() { static Table t; return t; }
static std::mutex table_mutex;

struct Access { uint32_t lanes = 0; saddr address[32]; };
struct Line {
  Loc loc;
  const char* what;
  uint32_t bytes;
  uint64_t visits[32] = {};
  uint64_t first = 0;                        // number of the oldest access in `open`
  std::deque<Access> open;
  long accesses = 0, passes = 0, extra = 0;
};
struct BankCounter { std::vector<Line> lines; };

static int passes_of_group(const saddr* words, int n) {  // different words of the busiest bank
  saddr seen[32][32];
  int count[32] = {}, most = 0;
  for (int i = 0; i < n; i++) {
    int bank = (int)(words[i] & 31), k = 0;
    while (k < count[bank] && seen[bank][k] != words[i]) k++;
    if (k == count[bank]) { seen[bank][count[bank]++] = words[i]; if (count[bank] > most) most = count[bank]; }
  }
  return most;
}
// The usual case at a glance: 8 rows of 16 bytes in 8 different places, 32 words in 32 banks.
static bool conflict_free(const saddr* address, uint32_t lanes, int first, int n, uint32_t bytes) {
  uint32_t taken = 0;
  for (int l = first; l < first + n; l++) {
    if (!(lanes >> l & 1)) continue;
    uint32_t place = 1u << (bytes == 16 ? address[l] / 16 % 8 : bytes == 8 ? address[l] / 8 % 16 : address[l] / 4 % 32);
    if (taken & place) return false;
    taken |= place;
  }
  return true;
}
static void finish(Line& line, const Access& access) {
  const int words_each = line.bytes <= 4 ? 1 : (int)line.bytes / 4, lanes_each = 32 / words_each;
  line.accesses++;
  for (int first = 0; first < 32; first += lanes_each) {
    if (!(access.lanes >> first & (lanes_each == 32 ? ~0u : (1u << lanes_each) - 1))) continue;
    line.passes++;
    if (conflict_free(access.address, access.lanes, first, lanes_each, line.bytes)) continue;
    saddr words[32];
    int n = 0;
    for (int l = first; l < first + lanes_each; l++)
      if (access.lanes >> l & 1)
        for (int i = 0; i < words_each; i++) words[n++] = access.address[l] / 4 + (saddr)i;
    int more = passes_of_group(words, n) - 1;
    line.passes += more;
    line.extra += more;
  }
}
BankCounter* new_bank_counter() { return new BankCounter; }
static Line& line_of(BankCounter& counter, const char* what, uint32_t bytes, Loc loc) {
  for (Line& l : counter.lines) if (l.loc == loc && l.what == what) return l;
  counter.lines.emplace_back();
  counter.lines.back().loc = loc;
  counter.lines.back().what = what;
  counter.lines.back().bytes = bytes;
  return counter.lines.back();
}
void count_lane(const char* what, saddr a, uint32_t bytes, Loc loc) {
  Unseen unseen;
  Line& line = line_of(*running->warp->banks, what, bytes, loc);
  const int lane = running->lane;
  size_t at = (size_t)(line.visits[lane]++ - line.first);
  if (at >= line.open.size()) line.open.resize(at + 1);
  Access& access = line.open[at];
  access.lanes |= 1u << lane;
  access.address[lane] = a;
  while (!line.open.empty() && line.open.front().lanes == running->warp->exists) {
    finish(line, line.open.front());
    line.open.pop_front();
    line.first++;
  }
}
void count_matrices(const char* what, const saddr rows[32], int n_matrices, Loc loc) {
  Unseen unseen;
  Line& line = line_of(*running->warp->banks, what, 16, loc);
  Access access;
  access.lanes = n_matrices == 4 ? ~0u : (1u << 8 * n_matrices) - 1;
  memcpy(access.address, rows, sizeof access.address);
  finish(line, access);
}
void finish_counting(Warp& w) {
  if (!w.banks) return;
  std::lock_guard<std::mutex> lock(table_mutex);
  for (Line& line : w.banks->lines) {
    for (Access& access : line.open) if (access.lanes) finish(line, access);
    Tally& t = table()[{line.loc.file, line.loc.line}][line.what];
    t.what = line.what;
    t.accesses += line.accesses;
    t.passes += line.passes;
    t.extra += line.extra;
  }
  delete w.banks;
  w.banks = nullptr;
}

// ---- reports -----------------------------------------------------------------------------------------------------------------
static bool excused(const std::string& file, int wanted) {  // `bank conflicts: why` on the line
  FILE* f = fopen(file.c_str(), "r");
  if (!f) return false;
  char text[2000];
  bool found = false;
  for (int line = 1; fgets(text, sizeof text, f); line++) {
    if (line < wanted) continue;
    found = strstr(text, "bank conflicts:") != nullptr;
    break;
  }
  fclose(f);
  return found;
}
void reset_conflicts() {
  std::lock_guard<std::mutex> lock(table_mutex);
  table().clear();
}
std::vector<LineConflicts> conflicts() {
  std::lock_guard<std::mutex> lock(table_mutex);
  std::vector<LineConflicts> v;
  for (auto& place : table())
    for (auto& kind : place.second) {
      const Tally& t = kind.second;
      v.push_back({place.first.first, place.first.second, t.what, t.accesses, t.passes, t.extra, t.extra && excused(place.first.first, place.first.second)});
    }
  return v;
}
std::string conflict_report() {
  std::string text;
  for (auto& c : conflicts()) {
    if (!c.extra || c.excused) continue;
    char line[200];
    snprintf(line, sizeof line, "%s%s:%d %s %ld passes, %ld too many, in %ld accesses", text.empty() ? "" : "; ", base_name(c.file.c_str()), c.line, c.what, c.passes, c.extra, c.accesses);
    text += line;
  }
  return text;
}
}  // namespace emu
