// launch.cpp - the kernel tests on a GPU: a second implementation of tests/emulator/launch.cpp. Linked before the emulator's
// archive (tests/kernels/build.sh gpu), it takes the place of the first, and the tests' launches run the kernels of
// kernels/prebuilt/ by the driver API.
//
// A test's buffers stay where they are, in host memory: before a launch all that are registered are copied to the device with
// the guard bands around them, afterwards back, so that check_all() finds a stray write. Pointers among the parameters, in
// structs too and in buffers that are said to hold addresses, are replaced by the device's. Inputs travel to the device once. With BERTHIER_GPU_EXACT=1 (for
// compute-sanitizer) an allocation has the buffer's own size and no bands, so that one byte beyond it is an error.
#include <string.h>
#include <map>
#include <set>
#include <vector>
#include "../../tests/emulator/emulator.h"
#include "driver.h"

namespace emu {
namespace {
struct Mirror {
  DevicePointer allocation;
  uint8_t* host;         // what is copied: the buffer, with its bands or without
  size_t bytes, shift;   // shift: from the allocation to where `host` is, to keep the host's place within 256 bytes
  bool uploaded;
};
std::map<uint64_t, Mirror> mirrors;  // by the registration's id
bool exact() {
  const char* text = getenv("BERTHIER_GPU_EXACT");
  return text && *text == '1';
}
std::string tests_folder() {
  if (const char* moved = getenv("BERTHIER_TESTS")) return moved;
  std::string path = __FILE__;
  return path.substr(0, path.rfind('/')) + "/../../tests";
}

// The device's address of a host address inside a buffer or its bands; 0 if it is none.
DevicePointer on_device(const std::vector<Memory>& memory, uint64_t p) {
  for (const Memory& m : memory)
    if (p - (uint64_t)(m.start - m.margin) <= m.bytes + 2 * m.margin) {
      const Mirror& mirror = mirrors.at(m.id);
      return mirror.allocation + mirror.shift + (p - (uint64_t)mirror.host);
    }
  return 0;
}
std::vector<uint8_t> translate(Driver& driver, const std::vector<Memory>& memory, const uint8_t* parameter, size_t bytes) {
  std::vector<uint8_t> out(parameter, parameter + bytes);
  for (size_t i = 0; i + 8 <= bytes; i += 8) {
    uint64_t word;
    memcpy(&word, &out[i], 8);
    if (DevicePointer p = on_device(memory, word)) memcpy(&out[i], &p, 8);
  }
  if (bytes != sizeof(TensorMap)) return out;
  TensorMap map;
  memcpy(&map, out.data(), sizeof map);
  if (map.magic != TENSOR_MAP_MAGIC) return out;
  // what tests write in the stand-in's form, in the driver's
  alignas(128) uint8_t encoded[sizeof(TensorMap)];
  uint64_t dimensions[2] = {map.dim[0], map.dim[1]}, stride[1] = {map.stride};
  uint32_t box[2] = {map.box[0], map.box[1]}, step[2] = {1, 1};
  driver.call("cuTensorMapEncodeTiled", (void*)encoded, 6 /* f16 */, 2u, (void*)map.base, (const uint64_t*)dimensions, (const uint64_t*)stride,
              (const uint32_t*)box, (const uint32_t*)step, 0, (int)map.swizzle, 0, 0);
  memcpy(out.data(), encoded, sizeof encoded);
  return out;
}
void upload(Driver& driver, const std::vector<Memory>& memory) {
  std::map<uint64_t, Mirror> kept;
  for (const Memory& m : memory) {
    auto found = mirrors.find(m.id);
    if (found == mirrors.end()) continue;
    kept.insert(*found);
    mirrors.erase(found);
  }
  for (auto& gone : mirrors) driver.call("cuMemFree_v2", gone.second.allocation);
  mirrors.swap(kept);
  for (const Memory& m : memory) {
    auto found = mirrors.find(m.id);
    if (found == mirrors.end()) {
      size_t margin = exact() ? 0 : m.margin, shift = (uintptr_t)(m.start - margin) % 256, bytes = m.bytes + 2 * margin;
      Mirror mirror{driver.allocate(shift + bytes), m.start - margin, bytes, shift, false};
      found = mirrors.emplace(m.id, mirror).first;
    }
    Mirror& mirror = found->second;
    if (mirror.bytes && (m.writable || !mirror.uploaded))
      driver.call("cuMemcpyHtoD_v2", mirror.allocation + mirror.shift, (const void*)mirror.host, mirror.bytes);
    mirror.uploaded = true;
  }
  for (const Memory& m : memory) {  // now that all are there, those that hold each other's addresses
    if (!m.holds_addresses) continue;
    std::vector<uint8_t> words = translate(driver, memory, m.start, m.bytes);
    driver.call("cuMemcpyHtoD_v2", mirrors.at(m.id).allocation + mirrors.at(m.id).shift + (size_t)(m.start - mirrors.at(m.id).host), (const void*)words.data(), m.bytes);
  }
}
void download(Driver& driver, const std::vector<Memory>& memory) {
  std::set<uint64_t> kept;  // those of addresses are the device's there
  for (const Memory& m : memory)
    if (m.holds_addresses) kept.insert(m.id);
  for (auto& [id, m] : mirrors)
    if (m.bytes && !kept.count(id)) driver.call("cuMemcpyDtoH_v2", (void*)m.host, m.allocation + m.shift, m.bytes);
}
}  // namespace

bool emulated() { return false; }

void launch(const Kernel& kernel, dim3e grid, dim3e block, size_t smem_bytes, void** parameters, int cluster) {
  Error error;
  bool lost = false;  // what a kernel does wrong, its context does not survive
  try {
    Driver& driver = Driver::get();
    void* function = driver.function(tests_folder(), kernel.name);
    if (!function) {
      Unavailable u;
      snprintf(u.msg, sizeof u.msg, "the image has no %s for %s", kernel.name, driver.name().c_str());
      throw u;
    }
    std::vector<Memory> memory = registered_memory();
    upload(driver, memory);
    std::vector<std::vector<uint8_t>> values;
    std::vector<void*> pointers;
    for (int i = 0; i < kernel.n_parameters; i++) values.push_back(translate(driver, memory, (const uint8_t*)parameters[i], kernel.parameter_bytes[i]));
    for (auto& v : values) pointers.push_back(v.data());
    driver.allow_shared(function, smem_bytes);
    if (cluster == WHOLE_GRID) driver.launch_cooperative(function, grid.x, block.x, smem_bytes, nullptr, pointers.data());
    // a size that the kernel was compiled with is not said again
    else driver.launch(function, grid.x, grid.y, grid.z, block.x * block.y * block.z, smem_bytes, nullptr, pointers.data(), kernel.cluster > 1 ? 1 : (unsigned)cluster);
    lost = true;
    driver.wait(nullptr, kernel.name);
    lost = false;
    download(driver, memory);
    return;
  } catch (DriverError& e) {
    snprintf(error.msg, sizeof error.msg, "%s: %s", kernel.name, e.what());
  }
  if (lost) {
    mirrors.clear();
    try { Driver::get().reset(); } catch (DriverError&) {}
  }
  throw error;
}
}  // namespace emu
