// devices.cpp - settings, devices, contexts, error names.
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <thread>
#include "driver.h"

Settings settings;
std::recursive_mutex big_lock;
thread_local Context* current_context;
static std::vector<Device> devices;
static bool initialised;

// ---- settings --------------------------------------------------------------------------------------------------------------
static long number(const char* name, long otherwise) {
  const char* text = getenv(name);
  return text && *text ? strtol(text, nullptr, 10) : otherwise;
}
static bool is(const char* name, const char* value) {
  const char* text = getenv(name);
  return text && !strcmp(text, value);
}
static void read_settings() {
  settings.devices = (int)number("BERTHIER_EMU_DEVICES", 1);
  settings.multiprocessors = (int)number("BERTHIER_EMU_MULTIPROCESSORS", 132);
  settings.driver_version = (int)number("BERTHIER_EMU_DRIVER_VERSION", 13000);
  settings.memory_bytes = (size_t)number("BERTHIER_EMU_MEMORY_BYTES", 2L << 30);
  settings.late = !is("BERTHIER_EMU_STREAMS", "eager");
  settings.active_clusters = number("BERTHIER_EMU_ACTIVE_CLUSTERS", -1);
  settings.maps_host_memory = !is("BERTHIER_EMU_MAPS_HOST_MEMORY", "0");
  settings.computes = !is("BERTHIER_EMU_COMPUTES", "0");
  settings.kernel_us = (double)number("BERTHIER_EMU_KERNEL_US", 0);
  settings.copy_us = (double)number("BERTHIER_EMU_COPY_US", 0);
  settings.most_cluster = (int)number("BERTHIER_EMU_MOST_CLUSTER", 16);
  settings.refuse_together = number("BERTHIER_EMU_REFUSE_TOGETHER", 0) != 0;
  settings.fail_launch = number("BERTHIER_EMU_FAIL_LAUNCH", 0);
  settings.fail_allocation = number("BERTHIER_EMU_FAIL_ALLOCATION", 0);
  settings.lose_device = number("BERTHIER_EMU_LOSE_DEVICE", 0);
  settings.hang_device = number("BERTHIER_EMU_HANG_DEVICE", 0);
  settings.trace = getenv("BERTHIER_EMU_TRACE") ? getenv("BERTHIER_EMU_TRACE") : "";
  settings.calls = getenv("BERTHIER_EMU_CALLS") ? getenv("BERTHIER_EMU_CALLS") : "";
  settings.architectures.clear();
  for (const char* p = getenv("BERTHIER_EMU_ARCH") ? getenv("BERTHIER_EMU_ARCH") : "90"; *p;) {
    char* end;
    settings.architectures.push_back((int)strtol(p, &end, 10));
    p = *end == ',' ? end + 1 : "";
  }
  emu::opt.async = is("BERTHIER_EMU_ASYNC", "eager") ? emu::EAGER : emu::LATE;
  emu::opt.order = is("BERTHIER_EMU_ORDER", "reverse") ? emu::REVERSE : is("BERTHIER_EMU_ORDER", "shuffle") ? emu::SHUFFLE : emu::FORWARD;
  emu::opt.threads = (int)number("BERTHIER_EMU_THREADS", (long)std::thread::hardware_concurrency());
}
Limits limits_of(int architecture) {
  switch (architecture) {
    case 80: return {163 << 10, 164 << 10, 2048, 32};
    case 86: return {99 << 10, 100 << 10, 1536, 16};
    case 89: return {99 << 10, 100 << 10, 1536, 24};
    case 90: case 100: case 103: return {227 << 10, 228 << 10, 2048, 32};
    case 120: case 121: return {99 << 10, 100 << 10, 1536, 24};
    default: return {64 << 10, 64 << 10, 1024, 16};  // sm_75
  }
}

// ---- reports ------------------------------------------------------------------------------------------------------------------
void say(const char* format, ...) {
  va_list args;
  va_start(args, format);
  fprintf(stderr, "stand-in driver: ");
  vfprintf(stderr, format, args);
  fprintf(stderr, "\n");
  va_end(args);
}
static void append_line(const std::string& file, const char* line) {
  FILE* f = fopen(file.c_str(), "a");
  if (!f) return;
  fprintf(f, "%s\n", line);
  fclose(f);
}
void trace(const char* format, ...) {
  if (settings.trace.empty()) return;
  char line[256];
  va_list args;
  va_start(args, format);
  vsnprintf(line, sizeof line, format, args);
  va_end(args);
  append_line(settings.trace, line);
}
void called(const char* name) { if (!settings.calls.empty()) append_line(settings.calls, name); }
struct ErrorText { CUresult code; const char *name, *text; };
static const ErrorText error_texts[] = {
    {SUCCESS, "CUDA_SUCCESS", "no error"},
    {INVALID_VALUE, "CUDA_ERROR_INVALID_VALUE", "invalid argument"},
    {OUT_OF_MEMORY, "CUDA_ERROR_OUT_OF_MEMORY", "out of memory"},
    {NOT_INITIALIZED, "CUDA_ERROR_NOT_INITIALIZED", "initialization error"},
    {NO_DEVICE, "CUDA_ERROR_NO_DEVICE", "no CUDA-capable device is detected"},
    {INVALID_DEVICE, "CUDA_ERROR_INVALID_DEVICE", "invalid device ordinal"},
    {INVALID_IMAGE, "CUDA_ERROR_INVALID_IMAGE", "device kernel image is invalid"},
    {INVALID_CONTEXT, "CUDA_ERROR_INVALID_CONTEXT", "invalid device context"},
    {NO_BINARY_FOR_GPU, "CUDA_ERROR_NO_BINARY_FOR_GPU", "no kernel image is available for execution on the device"},
    {UNSUPPORTED_PTX_VERSION, "CUDA_ERROR_UNSUPPORTED_PTX_VERSION", "the provided PTX was compiled with an unsupported toolchain."},
    {FILE_NOT_FOUND, "CUDA_ERROR_FILE_NOT_FOUND", "file not found"},
    {INVALID_HANDLE, "CUDA_ERROR_INVALID_HANDLE", "invalid resource handle"},
    {NOT_FOUND, "CUDA_ERROR_NOT_FOUND", "named symbol not found"},
    {NOT_READY, "CUDA_ERROR_NOT_READY", "device not ready"},
    {ILLEGAL_ADDRESS, "CUDA_ERROR_ILLEGAL_ADDRESS", "an illegal memory access was encountered"},
    {LAUNCH_OUT_OF_RESOURCES, "CUDA_ERROR_LAUNCH_OUT_OF_RESOURCES", "too many resources requested for launch"},
    {LAUNCH_FAILED, "CUDA_ERROR_LAUNCH_FAILED", "unspecified launch failure"},
    {INVALID_CLUSTER_SIZE, "CUDA_ERROR_INVALID_CLUSTER_SIZE", "invalid cluster size"},
    {NOT_SUPPORTED, "CUDA_ERROR_NOT_SUPPORTED", "operation not supported"},
    {CAPTURE_UNSUPPORTED, "CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED", "operation not permitted when stream is capturing"},
    {CAPTURE_INVALIDATED, "CUDA_ERROR_STREAM_CAPTURE_INVALIDATED", "operation failed due to a previous error during capture"},
    {CAPTURE_UNMATCHED, "CUDA_ERROR_STREAM_CAPTURE_UNMATCHED", "capture was not initiated in this stream"},
    {CAPTURE_UNJOINED, "CUDA_ERROR_STREAM_CAPTURE_UNJOINED", "capturing stream has unjoined work"},
    {CAPTURED_EVENT, "CUDA_ERROR_CAPTURED_EVENT", "operation not permitted on an event last recorded in a capturing stream"},
    {UNKNOWN, "CUDA_ERROR_UNKNOWN", "unknown error"},
};
static const ErrorText* error_text(CUresult code) {
  for (auto& e : error_texts) if (e.code == code) return &e;
  return nullptr;
}
API cuGetErrorName(CUresult code, const char** name) {
  const ErrorText* e = error_text(code);
  *name = e ? e->name : nullptr;
  return e ? SUCCESS : INVALID_VALUE;
}
API cuGetErrorString(CUresult code, const char** text) {
  const ErrorText* e = error_text(code);
  *text = e ? e->text : nullptr;
  return e ? SUCCESS : INVALID_VALUE;
}

// ---- initialisation, devices ----------------------------------------------------------------------------------------------------
API cuInit(unsigned flags) {
  std::lock_guard<std::recursive_mutex> lock(big_lock);
  if (flags) return INVALID_VALUE;
  if (!initialised) {
    read_settings();
    devices.resize((size_t)settings.devices);
    for (int i = 0; i < settings.devices; i++) {
      devices[(size_t)i].ordinal = i;
      devices[(size_t)i].architecture = settings.architectures[std::min((size_t)i, settings.architectures.size() - 1)];
    }
  }
  if (devices.empty()) return NO_DEVICE;
  initialised = true;
  return SUCCESS;
}
API cuDriverGetVersion(int* version) {       // works without cuInit
  if (!initialised) read_settings();
  *version = settings.driver_version;
  return SUCCESS;
}
static Device* device_at(int ordinal) { return ordinal >= 0 && ordinal < (int)devices.size() ? &devices[(size_t)ordinal] : nullptr; }
#define DEVICE(ordinal)                                 \
  std::lock_guard<std::recursive_mutex> lock(big_lock); \
  if (!initialised) return NOT_INITIALIZED;             \
  Device* device = device_at(ordinal);                  \
  if (!device) return INVALID_DEVICE
API cuDeviceGetCount(int* count) {
  if (!initialised) return NOT_INITIALIZED;
  *count = (int)devices.size();
  return SUCCESS;
}
API cuDeviceGet(int* handle, int ordinal) { DEVICE(ordinal); *handle = ordinal; return SUCCESS; }
API cuDeviceGetName(char* name, int bytes, int ordinal) {
  DEVICE(ordinal);
  snprintf(name, (size_t)bytes, "Emulated GPU (sm_%d)", device->architecture);
  return SUCCESS;
}
API cuDeviceGetUuid_v2(unsigned char* uuid, int ordinal) {
  DEVICE(ordinal);
  memset(uuid, 0xEE, 16);
  uuid[15] = (unsigned char)ordinal;
  return SUCCESS;
}
API cuDeviceGetUuid(unsigned char* uuid, int ordinal) { return cuDeviceGetUuid_v2(uuid, ordinal); }
API cuDeviceTotalMem_v2(size_t* bytes, int ordinal) { DEVICE(ordinal); *bytes = settings.memory_bytes; return SUCCESS; }
API cuDeviceGetAttribute(int* value, int attribute, int ordinal) {
  DEVICE(ordinal);
  Limits l = limits_of(device->architecture);
  const std::map<int, int> values = {
      {1, 1024}, {2, 1024}, {3, 1024}, {4, 64},                     // threads a block, block dimensions
      {5, 0x7fffffff}, {6, 65535}, {7, 65535},                      // grid dimensions
      {8, 48 << 10}, {9, 64 << 10}, {10, 32}, {12, 65536},          // shared memory, constants, warp, registers a block
      {13, 1700000}, {15, 1}, {16, settings.multiprocessors}, {19, settings.maps_host_memory}, {31, 1}, {33, 1 + ordinal}, {36, 2600000}, {37, 5120}, {38, 50 << 20},
      {39, l.threads_per_sm}, {40, 2}, {41, 1},                     // threads an SM, copy engines, unified addresses
      {75, device->architecture / 10}, {76, device->architecture % 10}, {78, 1},
      {81, l.shared_per_sm}, {82, 65536}, {95, 1}, {97, l.shared_per_block}, {106, l.blocks_per_sm}, {111, 1024}, {115, 1},
      {120, device->architecture >= 90}, {127, device->architecture >= 90},  // clusters, tensor maps
  };
  auto found = values.find(attribute);
  *value = found == values.end() ? 0 : found->second;
  return attribute > 0 ? SUCCESS : INVALID_VALUE;
}
API cuDeviceCanAccessPeer(int* can, int, int) { *can = 0; return SUCCESS; }

// ---- contexts ---------------------------------------------------------------------------------------------------------------------
static Context* new_context(Device* device) {
  auto* c = new Context{device, SUCCESS, {}, nullptr};
  c->null_stream = new Stream{c, true, {}, 0, 0, nullptr, {}};
  c->streams.insert(c->null_stream);
  return c;
}
API cuDevicePrimaryCtxRetain(Context** context, int ordinal) {
  DEVICE(ordinal);
  if (!device->primary) device->primary = new_context(device);
  device->retained++;
  *context = device->primary;
  return SUCCESS;
}
API cuDevicePrimaryCtxRelease_v2(int ordinal) {
  DEVICE(ordinal);
  if (!device->retained) return INVALID_CONTEXT;
  if (--device->retained == 0) {
    run_context(device->primary);
    release_all(device);
    device->primary = nullptr;               // not freed: handles to it may be left, as with the real one
  }
  return SUCCESS;
}
API cuDevicePrimaryCtxReset_v2(int ordinal) {
  DEVICE(ordinal);
  release_all(device);
  if (device->primary) device->primary->broken = SUCCESS;
  return SUCCESS;
}
API cuCtxSetCurrent(Context* context) { called(__func__); if (!initialised) return NOT_INITIALIZED; current_context = context; return SUCCESS; }
API cuCtxGetCurrent(Context** context) { called(__func__); if (!initialised) return NOT_INITIALIZED; *context = current_context; return SUCCESS; }
API cuCtxGetDevice(int* ordinal) { ENTER(); *ordinal = current_context->device->ordinal; return SUCCESS; }
API cuCtxSynchronize() {
  ENTER();
  if (CUresult r = forbid_in_capture("cuCtxSynchronize")) return r;
  return run_context(current_context);
}
API cuCtxCreate_v4(Context** context, void*, unsigned, int ordinal) { DEVICE(ordinal); current_context = *context = new_context(device); return SUCCESS; }
API cuCtxDestroy_v2(Context* context) { std::lock_guard<std::recursive_mutex> lock(big_lock); run_context(context); if (current_context == context) current_context = nullptr; return SUCCESS; }
API cuCtxGetStreamPriorityRange(int* least, int* greatest) { *least = 0; *greatest = -5; return SUCCESS; }
API cuCtxSetFlags(unsigned) { return SUCCESS; }
API cuCtxSetLimit(int, size_t) { return SUCCESS; }
API cuCtxGetLimit(size_t* value, int) { *value = 0; return SUCCESS; }
API cuCtxSetCacheConfig(int) { return SUCCESS; }
API cuCtxGetCacheConfig(int* config) { *config = 0; return SUCCESS; }
API cuMemGetInfo_v2(size_t* free_bytes, size_t* total) {
  ENTER();
  *total = settings.memory_bytes;
  *free_bytes = settings.memory_bytes - current_context->device->used_bytes;
  return SUCCESS;
}
// What cudarc can ask for and Berthier does not: a missing symbol would be a panic.
API cuCtxCreate_v3(Context** context, void*, int, unsigned flags, int ordinal) { return cuCtxCreate_v4(context, nullptr, flags, ordinal); }
API cuImportExternalMemory(void*, const void*) { return NOT_SUPPORTED; }
API cuDestroyExternalMemory(void*) { return NOT_SUPPORTED; }
API cuExternalMemoryGetMappedBuffer(void*, void*, const void*) { return NOT_SUPPORTED; }
API cuProfilerStart() { return SUCCESS; }
API cuProfilerStop() { return SUCCESS; }

CUresult check_context() {
  if (!initialised) return NOT_INITIALIZED;
  if (!current_context) return INVALID_CONTEXT;
  return current_context->broken;
}
CUresult break_context(Context* context, CUresult why) {
  if (!context->broken) context->broken = why;
  return why;
}
bool count_down(long& left) { return left > 0 && --left == 0; }
