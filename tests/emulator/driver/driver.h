// driver.h - what the parts of the stand-in driver share. README.md in this folder's parent says what it is for.
#pragma once
#include <stddef.h>
#include <stdint.h>
#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <set>
#include <string>
#include <vector>
#include "../emulator.h"

typedef int CUresult;
typedef uint64_t CUdeviceptr;
enum : CUresult {
  SUCCESS = 0, INVALID_VALUE = 1, OUT_OF_MEMORY = 2, NOT_INITIALIZED = 3, NO_DEVICE = 100, INVALID_DEVICE = 101, INVALID_IMAGE = 200,
  INVALID_CONTEXT = 201, NO_BINARY_FOR_GPU = 209, UNSUPPORTED_PTX_VERSION = 222, FILE_NOT_FOUND = 301, INVALID_HANDLE = 400, NOT_FOUND = 500,
  NOT_READY = 600, ILLEGAL_ADDRESS = 700, LAUNCH_OUT_OF_RESOURCES = 701, LAUNCH_FAILED = 719, COOPERATIVE_LAUNCH_TOO_LARGE = 720, NOT_SUPPORTED = 801, INVALID_CLUSTER_SIZE = 912,
  CAPTURE_UNSUPPORTED = 900, CAPTURE_INVALIDATED = 901, CAPTURE_UNMATCHED = 903, CAPTURE_UNJOINED = 904, CAPTURED_EVENT = 907, UNKNOWN = 999
};
#define API extern "C" __attribute__((visibility("default"))) CUresult

struct Context;
struct Event;

// ---- settings: BERTHIER_EMU_*, read when cuInit is called ------------------------------------------------------------------
struct Settings {
  int devices, multiprocessors, driver_version;
  std::vector<int> architectures;            // of each device, the last one again for the rest
  size_t memory_bytes;
  bool late;                                 // streams run when the host waits for them
  long active_clusters;                      // that a GPU holds at once of any kernel; -1: by its multiprocessors, -2: it does not say
  bool maps_host_memory;                     // whether kernels reach pinned memory
  bool computes;                             // kernels run; else a launch is all there is of them
  double kernel_us, copy_us;                 // what each takes by the device's clock; both 0: the clock is the host's
  int most_cluster;                          // blocks of a cluster, beyond the 8 that every GPU of compute capability 9.0 has
  bool refuse_together;                      // launches of kernels whose blocks all wait for each other are refused, whatever fits
  long fail_launch, fail_allocation, lose_device, hang_device;  // the number of the launch or allocation that goes wrong; 0: none
  std::string trace, calls;                  // files to append what ran to, and what the host called
};
extern Settings settings;

// ---- devices and contexts --------------------------------------------------------------------------------------------------
struct Stream;
struct Device {
  int ordinal = 0, architecture = 0;
  size_t used_bytes = 0;
  double clock_us = 0;
  Context* primary = nullptr;
  int retained = 0;
};
struct Context {
  Device* device;
  CUresult broken = SUCCESS;                 // after a kernel failed, every call says so
  std::set<Stream*> streams;
  Stream* null_stream;
  bool hung = false;                         // a kernel never ends: nothing behind it runs, and who waits does so for ever
};
// What differs between architectures. Sources: CUDA programming guide, "Compute capabilities".
struct Limits { int shared_per_block, shared_per_sm, threads_per_sm, blocks_per_sm; };
Limits limits_of(int architecture);

// ---- streams, events, graphs ---------------------------------------------------------------------------------------------------
typedef std::function<CUresult()> Work;
struct Capture;
struct Stream {
  Context* context;
  bool blocking;                             // orders with the null stream
  std::deque<Work> queue;
  uint64_t issued = 0, done = 0;
  Capture* capture = nullptr;
  std::set<int> frontier;                    // captured nodes that the next one follows
};
// Puts work into a stream, or into the graph that it captures. Under `eager` it runs at once.
CUresult enqueue(Stream* stream, const char* what, Work work);
CUresult run_stream(Stream* stream);         // to its end
CUresult run_context(Context* context);
bool capturing_here();                       // this thread captures: calls that synchronise or allocate would be wrong
CUresult forbid_in_capture(const char* call);

// ---- memory ----------------------------------------------------------------------------------------------------------------------
bool is_pinned(const void* p);
bool on_device(const Device* device, CUdeviceptr p);  // in an allocation of this device, or in pinned host memory
void release_all(Device* device);

// ---- calls -----------------------------------------------------------------------------------------------------------------------
extern std::recursive_mutex big_lock;        // the driver is one monitor; kernels run inside
extern thread_local Context* current_context;
CUresult check_context();                    // initialised, a context is current, nothing broke
Stream* stream_of(void* handle);             // null: the context's null stream
__attribute__((format(printf, 1, 2))) void say(const char* format, ...);    // on stderr
__attribute__((format(printf, 1, 2))) void trace(const char* format, ...);  // into BERTHIER_EMU_TRACE
void called(const char* name);               // into BERTHIER_EMU_CALLS
CUresult break_context(Context* context, CUresult why);
bool count_down(long& left);                 // true when it reaches its number
// Every call that needs a context starts so.
#define ENTER() ENTER_AS(__func__)
#define ENTER_AS(name)                                   \
  std::lock_guard<std::recursive_mutex> lock(big_lock);  \
  called(name);                                          \
  if (CUresult bad_ = check_context()) return bad_
