// copies.cpp - cp.async. LATE: a copy is made when its thread waits for its group, and its destination is NaN until then;
// EAGER: at once. The PTX ISA lets it happen anywhere between.
#include <string.h>
#include "core.h"

namespace emu {
static void make(const Copy& c) {
  running->last_access = c.loc;
  announce_write(c.to, c.bytes);
  if (c.read) announce_read(c.from, c.bytes);
  static const uint8_t zeros[16] = {};
  const uint8_t* from = c.read ? c.from : zeros;
  if (c.bytes == 16) memcpy(c.to, from, 16);  // constant sizes: inlined, so not seen by tsan
  else memcpy(c.to, from, 4);
}
void cp_async(saddr to, const void* from, uint32_t bytes, bool read, Loc loc) {
  Copy c{shared_at(to, bytes, bytes, "cp.async", loc), (const uint8_t*)from, bytes, read, loc};
  count_lane(bytes == 16 ? "cp.async.16" : "cp.async.4", to, bytes, loc);
  if (read) check_global(from, bytes, false, "cp.async", loc);
  if (opt.async == EAGER) { make(c); return; }
  running->last_access = loc;
  announce_write(c.to, bytes);
  if (opt.poison) {
    if (bytes == 16) memset(c.to, 0xFF, 16);
    else memset(c.to, 0xFF, 4);
  }
  Unseen unseen;
  running->copies.push_back(c);
}
void cp_async_commit() {
  Unseen unseen;
  running->group_ends.push_back(running->copies.size());
}
void cp_async_wait(int n) {  // all but the newest n groups
  Fiber& f = *running;
  if ((int)f.group_ends.size() <= n) return;
  size_t groups = f.group_ends.size() - (size_t)n, end = f.group_ends[groups - 1];
  for (size_t i = 0; i < end; i++) make(f.copies[i]);
  Unseen unseen;
  f.copies.erase(f.copies.begin(), f.copies.begin() + (long)end);
  f.group_ends.erase(f.group_ends.begin(), f.group_ends.begin() + (long)groups);
  for (size_t& e : f.group_ends) e -= end;
}
bool copies_in_flight(const Fiber& f) { return !f.copies.empty(); }
}  // namespace emu
