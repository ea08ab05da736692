// allocations.cpp - device memory is host memory, each allocation between two pages that nobody may touch. A copy from pageable
// memory takes its bytes at the call; one from or to pinned memory happens when its stream runs, and until then a pinned
// destination holds 0xFF.
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include "driver.h"

struct Allocation { size_t bytes, mapped; void* base; Device* device; };  // device null: pinned host memory
static std::map<uint64_t, Allocation> allocations;

static const Allocation* find(uint64_t p) {
  auto after = allocations.upper_bound(p);
  if (after == allocations.begin()) return nullptr;
  --after;
  return p < after->first + std::max<size_t>(after->second.bytes, 1) ? &after->second : nullptr;
}
static bool inside(uint64_t p, size_t n) {
  auto after = allocations.upper_bound(p);
  return after != allocations.begin() && (--after, p + n <= after->first + after->second.bytes);
}
bool is_pinned(const void* p) { const Allocation* a = find((uint64_t)p); return a && !a->device; }
bool on_device(const Device* device, CUdeviceptr p) { const Allocation* a = find(p); return a && (a->device ? a->device == device : settings.maps_host_memory); }

// ---- allocating ----------------------------------------------------------------------------------------------------------------
static CUresult allocate(uint64_t* p, size_t bytes, Device* device) {
  if (!bytes) return INVALID_VALUE;
  // the driver's granularity for small allocations
  size_t counted = (bytes + 511) & ~(size_t)511;
  if (device && (count_down(settings.fail_allocation) || device->used_bytes + counted > settings.memory_bytes)) return OUT_OF_MEMORY;
  constexpr size_t page = 4096;
  size_t body = (bytes + page - 1) & ~(page - 1), mapped = body + 2 * page;
  void* base = mmap(nullptr, mapped, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (base == MAP_FAILED) return OUT_OF_MEMORY;
  mprotect((uint8_t*)base + page, body, PROT_READ | PROT_WRITE);
  // as near to the page behind as 256-byte alignment lets it
  uint8_t* start = (uint8_t*)base + page + ((body - bytes) & ~(size_t)255);
  memset((uint8_t*)base + page, settings.computes ? 0xFF : 0, body);  // NaN, where a kernel should have written
  allocations[(uint64_t)start] = {bytes, mapped, base, device};
  if (device || settings.maps_host_memory) emu::register_memory(start, bytes, device ? "a device allocation" : "pinned host memory");
  if (device) device->used_bytes += counted;
  *p = (uint64_t)start;
  return SUCCESS;
}
static CUresult release(uint64_t p, bool of_device) {
  auto found = allocations.find(p);
  if (found == allocations.end() || of_device != (found->second.device != nullptr)) return INVALID_VALUE;
  Allocation a = found->second;
  if (a.device || settings.maps_host_memory) emu::unregister_memory((void*)p);
  if (a.device) a.device->used_bytes -= (a.bytes + 511) & ~(size_t)511;
  munmap(a.base, a.mapped);
  allocations.erase(found);
  return SUCCESS;
}
void release_all(Device* device) {
  std::vector<uint64_t> mine;
  for (auto& a : allocations) if (a.second.device == device) mine.push_back(a.first);
  for (uint64_t p : mine) release(p, true);
}
API cuMemAlloc_v2(CUdeviceptr* p, size_t bytes) {
  ENTER();
  if (CUresult r = forbid_in_capture("cuMemAlloc")) return r;
  return allocate(p, bytes, current_context->device);
}
API cuMemAllocAsync(CUdeviceptr* p, size_t bytes, void*) {
  ENTER();
  if (CUresult r = forbid_in_capture("cuMemAllocAsync (memory nodes are not emulated)")) return r;
  return allocate(p, bytes, current_context->device);
}
API cuMemAllocFromPoolAsync(CUdeviceptr* p, size_t bytes, void*, void* stream) { return cuMemAllocAsync(p, bytes, stream); }
API cuMemFree_v2(CUdeviceptr p) {
  ENTER();
  if (!p) return SUCCESS;
  if (CUresult r = forbid_in_capture("cuMemFree")) return r;
  if (CUresult r = run_context(current_context)) return r;
  return release(p, true);
}
API cuMemFreeAsync(CUdeviceptr p, void* handle) {
  ENTER();
  if (!p) return SUCCESS;
  if (CUresult r = forbid_in_capture("cuMemFreeAsync (memory nodes are not emulated)")) return r;
  const Allocation* a = find(p);
  if (!a || !a->device || !allocations.count(p)) return INVALID_VALUE;
  return enqueue(stream_of(handle), "free", [p] { return release(p, true); });
}
API cuMemHostAlloc(void** p, size_t bytes, unsigned flags) {
  ENTER();
  if (CUresult r = allocate((uint64_t*)p, bytes, nullptr)) return r;
  if (flags & 2 && settings.maps_host_memory)  // mapped: each access of a kernel goes over the bus
    for (emu::Direction direction : {emu::READ, emu::WRITE}) emu::allow_once(*p, direction);
  return SUCCESS;
}
API cuMemFreeHost(void* p) {
  ENTER();
  if (CUresult r = run_context(current_context)) return r;
  return release((uint64_t)p, false);
}
API cuMemHostGetDevicePointer_v2(CUdeviceptr* p, void* host, unsigned flags) {  // unified addresses: the same
  ENTER();
  if (flags || !is_pinned(host) || !settings.maps_host_memory) return INVALID_VALUE;
  *p = (CUdeviceptr)host;
  return SUCCESS;
}
API cuMemHostGetFlags(unsigned* flags, void* p) { *flags = 0; return is_pinned(p) ? SUCCESS : INVALID_VALUE; }
API cuMemAllocManaged(CUdeviceptr*, size_t, unsigned) { return NOT_SUPPORTED; }
struct Location { int type, id; };
API cuMemAdvise_v2(CUdeviceptr, size_t, int, Location) { return NOT_SUPPORTED; }
API cuMemPrefetchAsync_v2(CUdeviceptr, size_t, Location, unsigned, void*) { return NOT_SUPPORTED; }
API cuPointerGetAttribute(void* data, int attribute, CUdeviceptr p) {
  std::lock_guard<std::recursive_mutex> lock(big_lock);
  const Allocation* a = find(p);
  if (!a) return INVALID_VALUE;
  if (attribute == 2) *(unsigned*)data = a->device ? 2 : 1;           // memory type
  else if (attribute == 9) *(int*)data = a->device ? a->device->ordinal : 0;  // ordinal
  else return NOT_SUPPORTED;
  return SUCCESS;
}

// ---- pools: one per device, which keeps nothing ----------------------------------------------------------------------------------
static int default_pool;
API cuDeviceGetDefaultMemPool(void** pool, int) { *pool = &default_pool; return SUCCESS; }
API cuDeviceGetMemPool(void** pool, int) { *pool = &default_pool; return SUCCESS; }
API cuDeviceSetMemPool(int, void*) { return SUCCESS; }
API cuMemPoolCreate(void**, const void*) { return NOT_SUPPORTED; }
API cuMemPoolDestroy(void*) { return NOT_SUPPORTED; }
API cuMemPoolTrimTo(void*, size_t) { return SUCCESS; }
API cuMemPoolSetAttribute(void*, int, void*) { return SUCCESS; }
API cuMemPoolGetAttribute(void*, int attribute, void* value) {
  ENTER();
  if (attribute <= 3) *(int*)value = 0;
  else *(uint64_t*)value = attribute == 4 ? 0 : current_context->device->used_bytes;
  return SUCCESS;
}

// ---- copying ----------------------------------------------------------------------------------------------------------------------
static CUresult check_range(const char* call, CUdeviceptr p, size_t bytes) {
  if (!bytes || inside(p, bytes)) return SUCCESS;
  say("%s: %zu bytes at %#llx are not inside an allocation", call, bytes, (unsigned long long)p);
  return INVALID_VALUE;
}
static CUresult copy(Device* device, void* to, const void* from, size_t bytes) {
  device->clock_us += settings.copy_us;
  emu::launches_have_ended();                // only a kernel right behind a kernel may begin early
  memmove(to, from, bytes);
  return SUCCESS;
}

static CUresult to_device(CUdeviceptr to, const void* from, size_t bytes, Stream* stream) {
  if (CUresult r = check_range("copy to the device", to, bytes)) return r;
  if (!bytes) return SUCCESS;
  if (stream->capture || is_pinned(from)) return enqueue(stream, "copy to device", [=] { return copy(stream->context->device, (void*)to, from, bytes); });
  auto staged = std::make_shared<std::vector<uint8_t>>((const uint8_t*)from, (const uint8_t*)from + bytes);
  return enqueue(stream, "copy to device", [=] { return copy(stream->context->device, (void*)to, staged->data(), bytes); });
}
static CUresult to_host(void* to, CUdeviceptr from, size_t bytes, Stream* stream) {
  if (CUresult r = check_range("copy from the device", from, bytes)) return r;
  if (!bytes) return SUCCESS;
  if (!stream->capture && is_pinned(to)) {
    if (settings.late) memset(to, 0xFF, bytes);
    return enqueue(stream, "copy to host", [=] { return copy(stream->context->device, to, (const void*)from, bytes); });
  }
  if (CUresult r = enqueue(stream, "copy to host", [=] { return copy(stream->context->device, to, (const void*)from, bytes); })) return r;
  return stream->capture ? SUCCESS : run_stream(stream);
}
API cuMemcpyHtoDAsync_v2(CUdeviceptr to, const void* from, size_t bytes, void* stream) { ENTER(); return to_device(to, from, bytes, stream_of(stream)); }
API cuMemcpyDtoHAsync_v2(void* to, CUdeviceptr from, size_t bytes, void* stream) { ENTER(); return to_host(to, from, bytes, stream_of(stream)); }
API cuMemcpyDtoDAsync_v2(CUdeviceptr to, CUdeviceptr from, size_t bytes, void* stream) {
  ENTER();
  if (CUresult r = check_range("copy on the device", to, bytes)) return r;
  if (CUresult r = check_range("copy on the device", from, bytes)) return r;
  if (!bytes) return SUCCESS;
  Device* device = current_context->device;
  return enqueue(stream_of(stream), "copy on device", [=] { return copy(device, (void*)to, (const void*)from, bytes); });
}
API cuMemcpyPeerAsync(CUdeviceptr to, void*, CUdeviceptr from, void*, size_t bytes, void* stream) { return cuMemcpyDtoDAsync_v2(to, from, bytes, stream); }
static CUresult now(const char* call, CUresult queued) {
  if (queued) return queued;
  if (CUresult r = forbid_in_capture(call)) return r;
  return run_stream(current_context->null_stream);
}
API cuMemcpyHtoD_v2(CUdeviceptr to, const void* from, size_t bytes) { ENTER(); return now("cuMemcpyHtoD", to_device(to, from, bytes, current_context->null_stream)); }
API cuMemcpyDtoH_v2(void* to, CUdeviceptr from, size_t bytes) { ENTER(); return now("cuMemcpyDtoH", to_host(to, from, bytes, current_context->null_stream)); }
API cuMemcpyDtoD_v2(CUdeviceptr to, CUdeviceptr from, size_t bytes) { return now("cuMemcpyDtoD", cuMemcpyDtoDAsync_v2(to, from, bytes, nullptr)); }

template <class V> static CUresult fill(const char* call, CUdeviceptr p, V value, size_t n, void* stream) {
  ENTER_AS(call);
  if (p % sizeof(V)) return INVALID_VALUE;
  if (CUresult r = check_range("memset", p, n * sizeof(V))) return r;
  if (!n) return SUCCESS;
  return enqueue(stream_of(stream), "memset", [=] { emu::launches_have_ended(); for (size_t i = 0; i < n; i++) ((V*)p)[i] = value; return (CUresult)SUCCESS; });
}
API cuMemsetD8Async(CUdeviceptr p, unsigned char v, size_t n, void* stream) { return fill(__func__, p, v, n, stream); }
API cuMemsetD16Async(CUdeviceptr p, unsigned short v, size_t n, void* stream) { return fill(__func__, p, v, n, stream); }
API cuMemsetD32Async(CUdeviceptr p, unsigned v, size_t n, void* stream) { return fill(__func__, p, v, n, stream); }
API cuMemsetD8_v2(CUdeviceptr p, unsigned char v, size_t n) { return fill(__func__, p, v, n, nullptr); }
API cuMemsetD32_v2(CUdeviceptr p, unsigned v, size_t n) { return fill(__func__, p, v, n, nullptr); }
