// emulator.h - the host's side: launching, options, the registry of kernels, device memory, bank conflicts.
// Tests and the stand-in driver use this; kernels see simt_emu.h. README.md says what is emulated and what is not.
// Tests launch by `launch(Kernel, ...)`, of which there is a second implementation, which runs the image's kernel of that
// name on a GPU: tools/gpu-check/launch.cpp.
#pragma once
#include <stddef.h>
#include <stdint.h>
#include <functional>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

struct dim3e { unsigned x = 1, y = 1, z = 1; };
// What the stand-in cuTensorMapEncodeTiled writes; as large as the real one.
struct alignas(128) TensorMap {
  uint64_t magic, base, dim[2], stride;  // stride in bytes between rows
  uint32_t box[2], element_bytes, swizzle;  // swizzle: 0 none, 1 32, 2 64, 3 128 bytes
  uint64_t unused[8];
};
static_assert(sizeof(TensorMap) == 128, "");
constexpr uint64_t TENSOR_MAP_MAGIC = 0x544d4150;

namespace emu {
enum Direction { READ, WRITE };
enum Shuffle { XOR, IDX, UP, DOWN };
struct WgmmaOperands { uint64_t a; const uint32_t* a_registers; uint64_t b; bool transposed_b; };  // a by its descriptor, or in registers
struct ThreadIndex { dim3e tid, bid, bdim, gdim; };  // threadIdx, blockIdx, blockDim, gridDim

// ---- options ---------------------------------------------------------------------------------------------------------
enum Async { EAGER, LATE };              // asynchronous work takes effect when issued / as late as the memory model allows
enum Order { FORWARD, REVERSE, SHUFFLE };  // in which order blocks, warps and lanes run
struct Options {
  Async async = LATE;
  Order order = FORWARD;
  bool poison = true;        // shared memory, and what a copy in flight will overwrite, holds NaN
  // The launch may begin before the ones before it have ended (programmatic dependent launch): memory that they wrote, or
  // read where this one writes, may be touched only after griddep_wait. Looked at in kernels that call it.
  bool dependent = true;
  bool must_wait = false;    // every block of a dependent launch has to call griddep_wait
  bool approximate = true;   // ex2, rcp, rsqrt and tanh err as much as the PTX ISA lets them
  unsigned seed = 1;         // of SHUFFLE
  int threads = 1;           // blocks that run at once (not under tsan)
};
extern Options opt;

// ---- errors ------------------------------------------------------------------------------------------------------------
struct Error { char msg[2048]; };        // thrown by launch()
struct Unavailable { char msg[256]; };   // thrown by launch(Kernel): this device or image does not have the kernel
struct Loc {                             // a place in a kernel's source
  const char* file;
  int line;
  static constexpr Loc here(const char* f = __builtin_FILE(), int l = __builtin_LINE()) { return {f, l}; }
};

// ---- launching -----------------------------------------------------------------------------------------------------------
// Runs `body` once for each thread. `cluster`: blocks along x that run at once and reach each other's shared memory; WHOLE_GRID: all
// blocks run at once (a cooperative launch). Throws Error.
constexpr int WHOLE_GRID = 0, AT_LAUNCH = -1;  // AT_LAUNCH: of a kernel, as many as its launch says
void launch(dim3e grid, dim3e block, size_t smem_bytes, const std::function<void()>& body, int cluster = 1);

struct Kernel {
  const char* name;
  void* function;
  void (*invoke)(void** parameters);     // as cuLaunchKernel gets them
  int threads, min_blocks, n_parameters;
  const size_t *parameter_bytes, *parameter_align;
  const bool* parameter_is_pointer;
  int cluster;                           // its blocks, 1 if it has none, WHOLE_GRID if it is launched cooperatively, or AT_LAUNCH
};
// launch.cpp: runs a kernel with its parameters as cuLaunchKernel gets them, in clusters of so many blocks. Throws Error.
void launch(const Kernel&, dim3e grid, dim3e block, size_t smem_bytes, void** parameters, int cluster);
bool emulated();                         // or is launch(Kernel) a GPU's, where nobody counts bank conflicts?
void register_kernel(Kernel);
const Kernel* find_kernel(const char* name);
const Kernel* find_kernel(void* function);
std::vector<const Kernel*> all_kernels();

// ---- device memory ---------------------------------------------------------------------------------------------------------
// Once anything is registered, the wrappers' global accesses must fall inside a registered allocation, and must not write
// where `writable` is false. Registering a start again replaces it. `margin` bytes on both sides are the owner's too: what a
// GPU's launch copies there and back with the allocation, so that the owner can look whether they changed.
// `holds_addresses`: of other allocations, in words of 8 bytes.
void register_memory(const void* start, size_t bytes, const char* label = "", bool writable = true, size_t margin = 0, bool holds_addresses = false);
void unregister_memory(const void* start);
// Of a registered start: no word may be touched in this way twice in a launch. Seen in accesses through wrappers.
void allow_once(const void* start, Direction);
struct Memory { uint64_t id; uint8_t* start; size_t bytes, margin; bool writable, holds_addresses; };  // id: of the registration
std::vector<Memory> registered_memory();
void launches_have_ended();              // the host has waited for all launches so far

// ---- bank conflicts ----------------------------------------------------------------------------------------------------------
struct LineConflicts {
  std::string file;
  int line;
  const char* what;                      // "ldmatrix", "cp.async", "st.shared.128", ...
  long accesses, passes, extra;          // warp-wide accesses; shared-memory passes; passes beyond what the bytes need
  bool excused;                          // the source line carries `bank conflicts: <reason>`
};
void reset_conflicts();
std::vector<LineConflicts> conflicts();  // every line with accesses since the reset
std::string conflict_report();           // the lines with extra passes that are not excused; empty if there are none

// ---- used by KERNEL ------------------------------------------------------------------------------------------------------------
template <class... A, size_t... I> void call_with(void (*f)(A...), void** p, std::index_sequence<I...>) {
  (void)p;
  f(*(std::remove_const_t<std::remove_reference_t<A>>*)p[I]...);
}
template <class... A> void call(void (*f)(A...), void** p) { call_with(f, p, std::index_sequence_for<A...>()); }
template <class... A> constexpr int count_parameters(void (*)(A...)) { return sizeof...(A); }
template <class... A> const size_t* parameter_sizes(void (*)(A...)) {
  static const size_t bytes[] = {sizeof(std::remove_reference_t<A>)..., 0};
  return bytes;
}
template <class... A> const size_t* parameter_alignments(void (*)(A...)) {
  static const size_t bytes[] = {alignof(std::remove_reference_t<A>)..., 1};
  return bytes;
}
template <class... A> const bool* parameter_pointers(void (*)(A...)) {
  static const bool pointers[] = {std::is_pointer<A>::value..., false};
  return pointers;
}
struct Registration { explicit Registration(Kernel k) { register_kernel(k); } };
}  // namespace emu
