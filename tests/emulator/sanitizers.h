// sanitizers.h - what AddressSanitizer and ThreadSanitizer are told. Nothing in a plain build.
//
// Under tsan the emulator is compiled without instrumentation: its own state is invisible, and the accesses that it makes
// for a kernel are announced here, in the name of the fiber (or of the async proxy) that makes them.
#pragma once
#include <stddef.h>
#ifdef EMU_ASAN
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif
#ifdef EMU_TSAN
extern "C" {
void* __tsan_get_current_fiber();
void* __tsan_create_fiber(unsigned);
void __tsan_switch_to_fiber(void*, unsigned no_sync);
void __tsan_set_fiber_name(void*, const char*);
void __tsan_acquire(void*);
void __tsan_release(void*);
void __tsan_read_range(void*, unsigned long);
void __tsan_write_range(void*, unsigned long);
void AnnotateIgnoreReadsBegin(const char*, int);
void AnnotateIgnoreReadsEnd(const char*, int);
void AnnotateIgnoreWritesBegin(const char*, int);
void AnnotateIgnoreWritesEnd(const char*, int);
}
#endif

namespace emu {
#ifdef EMU_TSAN
inline void acquire(const void* p) { __tsan_acquire(const_cast<void*>(p)); }  // what was released at p happened before now
inline void release(const void* p) { __tsan_release(const_cast<void*>(p)); }
inline void announce_read(const void* p, size_t n) { __tsan_read_range(const_cast<void*>(p), n); }
inline void announce_write(const void* p, size_t n) { __tsan_write_range(const_cast<void*>(p), n); }
inline void* new_tsan_fiber(const char* name) {
  void* f = __tsan_create_fiber(0);
  __tsan_set_fiber_name(f, name);
  return f;
}
// malloc, free, memcpy and memset are seen by tsan from uninstrumented code too: not in this scope.
struct Unseen {
  Unseen() { AnnotateIgnoreReadsBegin("", 0); AnnotateIgnoreWritesBegin("", 0); }
  ~Unseen() { AnnotateIgnoreReadsEnd("", 0); AnnotateIgnoreWritesEnd("", 0); }
};
// Accesses in this scope are made by another agent than the running fiber: the copy engine, the tensor core.
struct InTheNameOf {
  explicit InTheNameOf(void* agent) : back_(__tsan_get_current_fiber()) { __tsan_switch_to_fiber(agent, 1); }
  ~InTheNameOf() { __tsan_switch_to_fiber(back_, 1); }
  void* back_;
};
#else
inline void acquire(const void*) {}
inline void release(const void*) {}
inline void announce_read(const void*, size_t) {}
inline void announce_write(const void*, size_t) {}
inline void* new_tsan_fiber(const char*) { return nullptr; }
struct Unseen { ~Unseen() {} };
struct InTheNameOf { explicit InTheNameOf(void*) {} ~InTheNameOf() {} };
#endif
inline void asan_poison(const void* p, size_t n) {
#ifdef EMU_ASAN
  ASAN_POISON_MEMORY_REGION(p, n);
#else
  (void)p; (void)n;
#endif
}
inline void asan_unpoison(const void* p, size_t n) {
#ifdef EMU_ASAN
  ASAN_UNPOISON_MEMORY_REGION(p, n);
#else
  (void)p; (void)n;
#endif
}
}  // namespace emu
