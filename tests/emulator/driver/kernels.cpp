// kernels.cpp - modules, functions, launches. A module is any image that has code for the device; its kernels are those of
// kernels/all.cu and kernels/conformance.cu, compiled into this library. Registers and static shared memory are those of the committed image's manifest.
#include "../../../kernels/all.cu"
#include "../../../kernels/conformance.cu"
#undef threadIdx
#undef blockIdx
#undef blockDim
#undef gridDim
#include <stdio.h>
#include <stdlib.h>
#include <fstream>
#include <sstream>
#include "driver.h"

static const char* const manifest =
#include "manifest.inc"
    ;

// ---- modules -----------------------------------------------------------------------------------------------------------------
struct Module { int architecture; };         // of the code taken; 0: PTX, compiled for the device
struct FatbinHeader { uint32_t magic; uint16_t version, header_bytes; uint64_t bytes; };
struct FatbinEntry { uint16_t kind, version; uint32_t header_bytes; uint64_t bytes; uint32_t compressed, reserved; uint16_t minor, major; uint32_t architecture; };

static CUresult choose_code(const uint8_t* image, int device, int* chosen) {
  uint32_t magic;
  memcpy(&magic, image, 4);
  if (magic == 0x466243b1) {                 // the wrapper that nvcc puts into objects
    memcpy(&image, image + 8, sizeof image);
    memcpy(&magic, image, 4);
  }
  if (magic == 0x464c457f) { *chosen = device; return SUCCESS; }  // a cubin: taken at its word
  if (magic != 0xba55ed50) {
    bool ptx = !memcmp(image, "//", 2) || !memcmp(image, ".version", 8);
    *chosen = 0;
    return ptx ? SUCCESS : INVALID_IMAGE;
  }
  FatbinHeader header;
  memcpy(&header, image, sizeof header);
  int best = -1, best_ptx = -1;
  for (const uint8_t *p = image + header.header_bytes, *end = p + header.bytes; p < end;) {
    FatbinEntry e;
    memcpy(&e, p, sizeof e);
    int arch = (int)e.architecture;
    if (e.kind == 2 && arch / 10 == device / 10 && arch <= device) best = std::max(best, arch);
    if (e.kind == 1 && arch <= device) best_ptx = std::max(best_ptx, arch);
    p += e.header_bytes + e.bytes;
  }
  if (best < 0 && best_ptx < 0) return NO_BINARY_FOR_GPU;
  *chosen = best < 0 ? 0 : best;
  return SUCCESS;
}
API cuModuleLoadData(Module** module, const void* image) {
  ENTER();
  if (!image) return INVALID_VALUE;
  if (settings.driver_version < 12000) return UNSUPPORTED_PTX_VERSION;
  int chosen;
  if (CUresult r = choose_code((const uint8_t*)image, current_context->device->architecture, &chosen)) return r;
  *module = new Module{chosen};
  return SUCCESS;
}
API cuModuleLoadDataEx(Module** module, const void* image, unsigned, void*, void*) { return cuModuleLoadData(module, image); }
API cuModuleLoad(Module** module, const char* path) {
  std::ifstream file(path, std::ios::binary);
  std::stringstream bytes;
  if (!file) return FILE_NOT_FOUND;
  bytes << file.rdbuf();
  return cuModuleLoadData(module, bytes.str().data());
}
API cuModuleUnload(Module* module) { delete module; return SUCCESS; }
API cuModuleGetGlobal_v2(CUdeviceptr*, size_t*, Module*, const char*) { return NOT_FOUND; }

// ---- functions -----------------------------------------------------------------------------------------------------------------
struct Function { const emu::Kernel* kernel; int registers, static_shared, local, max_dynamic; bool large_clusters; };

// "name": {..., "sm_90a": [registers, static shared, stack, local, spills], ...}
static void read_manifest(Function& f, int architecture) {
  const char* at = strstr(manifest, (std::string("\"") + f.kernel->name + "\":").c_str());
  int best = 0;
  for (const char* end = at ? strchr(at, '}') : nullptr; end && (at = strstr(at, "\"sm_")) && at < end; at += 4) {
    int arch = atoi(at + 4), v[4];
    if (arch / 10 != architecture / 10 || arch > architecture || arch < best) continue;
    if (sscanf(strchr(at, '[') + 1, "%d, %d, %d, %d", v, v + 1, v + 2, v + 3) != 4) continue;
    best = arch;
    f.registers = v[0];
    f.static_shared = v[1];
    f.local = v[3];
  }
}
// Whether the image has this kernel for the architecture whose code was taken (PTX is of compute_80); yes if the manifest does
// not know it.
static bool in_image(const char* name, int architecture) {
  const char *at = strstr(manifest, (std::string("\"") + name + "\":").c_str()), *end = at ? strchr(at, '}') : nullptr;
  if (!end) return true;
  for (; (at = strstr(at, "\"sm_")) && at < end; at += 4)
    if (atoi(at + 4) == (architecture ? architecture : 80)) return true;
  return false;
}
API cuModuleGetFunction(Function** function, Module* module, const char* name) {
  ENTER();
  const emu::Kernel* kernel = emu::find_kernel(name);
  if (!module || !kernel || !in_image(name, module->architecture)) { say("no kernel '%s' in kernels/all.cu", name); return NOT_FOUND; }
  // what launch bounds allow, where the manifest does not know the kernel
  int bound = 65536 / (kernel->threads * kernel->min_blocks) / 8 * 8;
  *function = new Function{kernel, std::min(bound, 255), 0, 0, 48 << 10, false};
  read_manifest(**function, module->architecture ? module->architecture : current_context->device->architecture);
  return SUCCESS;
}
API cuFuncGetName(const char** name, Function* f) { *name = f->kernel->name; return SUCCESS; }
API cuFuncGetParamInfo(Function* f, size_t index, size_t* offset, size_t* bytes) {
  if (index >= (size_t)f->kernel->n_parameters) return INVALID_VALUE;
  *offset = 0;
  for (size_t i = 0; i <= index; i++) {
    size_t n = f->kernel->parameter_bytes[i], align = f->kernel->parameter_align[i];
    *offset = (*offset + align - 1) / align * align;
    if (i < index) *offset += n;
  }
  if (bytes) *bytes = f->kernel->parameter_bytes[index];
  return SUCCESS;
}
API cuFuncSetAttribute(Function* f, int attribute, int value) {
  ENTER();
  if (attribute == 8) {                      // most dynamic shared memory
    if (value < 0 || value + f->static_shared > limits_of(current_context->device->architecture).shared_per_block) return INVALID_VALUE;
    f->max_dynamic = value;
  }
  if (attribute == 14) f->large_clusters = value != 0;  // more than 8 blocks
  return SUCCESS;
}
API cuFuncGetAttribute(int* value, int attribute, Function* f) {
  ENTER();
  int arch = current_context->device->architecture;
  switch (attribute) {
    case 0: *value = f->kernel->threads; break;
    case 1: *value = f->static_shared; break;
    case 3: *value = f->local; break;
    case 4: *value = f->registers; break;
    case 5: case 6: *value = arch; break;
    case 8: *value = f->max_dynamic; break;
    default: *value = 0;
  }
  return SUCCESS;
}
API cuFuncSetCacheConfig(Function*, int) { return SUCCESS; }

// ---- occupancy -------------------------------------------------------------------------------------------------------------------
static int blocks_per_sm(const Function* f, int threads, size_t dynamic, int architecture) {
  Limits l = limits_of(architecture);
  // registers go to whole warps by 256, to warps in fours; shared memory goes by 128 bytes, and 1 KB a block is the driver's
  int warps = (threads + 31) / 32, registers = std::max(256, (f->registers * 32 + 255) / 256 * 256);
  int shared = ((int)dynamic + f->static_shared + 1024 + 127) / 128 * 128;
  int blocks = std::min(l.blocks_per_sm, l.threads_per_sm / (warps * 32));
  return std::min(std::min(blocks, 65536 / registers / 4 * 4 / warps), l.shared_per_sm / shared);
}
API cuOccupancyMaxActiveBlocksPerMultiprocessor(int* blocks, Function* f, int threads, size_t dynamic) {
  ENTER();
  if (threads <= 0) return INVALID_VALUE;
  *blocks = threads > f->kernel->threads ? 0 : blocks_per_sm(f, threads, dynamic, current_context->device->architecture);
  return SUCCESS;
}
API cuOccupancyMaxActiveBlocksPerMultiprocessorWithFlags(int* blocks, Function* f, int threads, size_t dynamic, unsigned) { return cuOccupancyMaxActiveBlocksPerMultiprocessor(blocks, f, threads, dynamic); }
API cuOccupancyMaxPotentialBlockSize(int* grid, int* block, Function* f, void*, size_t dynamic, int) {
  ENTER();
  *block = f->kernel->threads;
  *grid = settings.multiprocessors * blocks_per_sm(f, *block, dynamic, current_context->device->architecture);
  return SUCCESS;
}
API cuOccupancyMaxPotentialBlockSizeWithFlags(int* grid, int* block, Function* f, void* size, size_t dynamic, int limit, unsigned) { return cuOccupancyMaxPotentialBlockSize(grid, block, f, size, dynamic, limit); }
API cuOccupancyAvailableDynamicSMemPerBlock(size_t* bytes, Function* f, int blocks, int) {
  ENTER();
  if (blocks <= 0) return INVALID_VALUE;
  Limits l = limits_of(current_context->device->architecture);
  int each = l.shared_per_sm / blocks - 1024 - f->static_shared;
  *bytes = (size_t)std::max(0, std::min(each, l.shared_per_block - f->static_shared));
  return SUCCESS;
}
struct LaunchAttribute { int id; char pad[4]; union { char bytes[64]; unsigned cluster[3]; int flag; } value; };
struct LaunchConfig { unsigned grid[3], block[3], shared; void* stream; LaunchAttribute* attributes; unsigned n; };
// Blocks of a cluster, along x, as the launch says; 0: it does not; NONE_SUCH: along y or z, which is not emulated.
constexpr unsigned NONE_SUCH = ~0u;
static unsigned cluster_of(const LaunchConfig* c) {
  for (unsigned i = 0; i < c->n; i++) {
    const LaunchAttribute& a = c->attributes[i];
    if (a.id == 4) return a.value.cluster[0] && a.value.cluster[1] == 1 && a.value.cluster[2] == 1 ? a.value.cluster[0] : NONE_SUCH;
  }
  return 0;
}
// Whether the GPU has clusters of so many blocks, whatever else is on it.
static bool has_cluster(const Function* f, unsigned size) {
  return current_context->device->architecture >= 90 && (size <= 8 || (f->large_clusters && (int)size <= settings.most_cluster));
}
// How many run at once. A cluster is on multiprocessors of one group, of which each has 16 here and the last what is left.
static int active_clusters(const Function* f, int threads, size_t dynamic, unsigned size) {
  if (!has_cluster(f, size)) return 0;
  if (settings.active_clusters >= 0) return (int)settings.active_clusters;
  const int blocks = blocks_per_sm(f, threads, dynamic, current_context->device->architecture), all = settings.multiprocessors;
  return all / 16 * (16 * blocks / (int)size) + all % 16 * blocks / (int)size;
}
API cuOccupancyMaxActiveClusters(int* clusters, Function* f, const LaunchConfig* c) {
  ENTER();
  const unsigned said = cluster_of(c), own = (unsigned)std::max(1, f->kernel->cluster), size = said ? said : own;
  if (said == NONE_SUCH || (own > 1 && size != own) || c->grid[0] % size) return INVALID_VALUE;
  if (current_context->device->architecture < 90 || settings.active_clusters == -2) return NOT_SUPPORTED;
  if (!has_cluster(f, size)) return INVALID_CLUSTER_SIZE;
  *clusters = active_clusters(f, (int)(c->block[0] * c->block[1] * c->block[2]), c->shared, size);
  return SUCCESS;
}
API cuOccupancyMaxPotentialClusterSize(int*, Function*, const void*) { return NOT_SUPPORTED; }

// ---- launching -----------------------------------------------------------------------------------------------------------------------
struct Launch { Function* function; Context* context; dim3e grid, block; unsigned shared; bool dependent; int cluster; std::vector<std::vector<uint8_t>> parameters; };

static CUresult run(const Launch& l) {
  const std::string clusters = l.cluster > 1 ? " cluster " + std::to_string(l.cluster) : "";
  trace("%s grid %u,%u,%u block %u shared %u%s%s", l.function->kernel->name, l.grid.x, l.grid.y, l.grid.z, l.block.x * l.block.y * l.block.z, l.shared,
        clusters.c_str(), l.dependent ? " early" : "");
  if (count_down(settings.fail_launch)) { say("BERTHIER_EMU_FAIL_LAUNCH: %s fails", l.function->kernel->name); return LAUNCH_FAILED; }
  if (count_down(settings.lose_device)) { say("BERTHIER_EMU_LOSE_DEVICE: device %d is lost", l.context->device->ordinal); return UNKNOWN; }
  if (count_down(settings.hang_device)) {
    say("BERTHIER_EMU_HANG_DEVICE: %s does not end", l.function->kernel->name);
    l.context->hung = true;
    return NOT_READY;
  }
  l.context->device->clock_us += settings.kernel_us;
  if (!settings.computes) return SUCCESS;
  const emu::Kernel& k = *l.function->kernel;
  std::vector<void*> pointers;
  for (int i = 0; i < k.n_parameters; i++) {
    const auto& bytes = l.parameters[(size_t)i];
    pointers.push_back((void*)bytes.data());
    CUdeviceptr p;
    if (!k.parameter_is_pointer[i]) continue;
    memcpy(&p, bytes.data(), sizeof p);
    if (p && !on_device(l.context->device, p)) {
      say("%s: parameter %d, %#llx, points to no memory of device %d", k.name, i, (unsigned long long)p, l.context->device->ordinal);
      return ILLEGAL_ADDRESS;
    }
  }
  emu::opt.dependent = emu::opt.must_wait = l.dependent;
  try {
    emu::launch(l.grid, l.block, l.shared, [&] { k.invoke(pointers.data()); }, l.cluster);
  } catch (emu::Error& e) {
    say("%s: %s", k.name, e.msg);
    bool address = strstr(e.msg, "outside of every allocation") != nullptr;
    return address ? ILLEGAL_ADDRESS : strstr(e.msg, "aligned") ? 716 : LAUNCH_FAILED;
  }
  return SUCCESS;
}
// `said`: blocks of a cluster, as the launch says; 0: it does not.
static CUresult launch(Function* f, dim3e grid, dim3e block, unsigned shared, void* stream, void** parameters, void** extra, bool dependent, bool cooperative, unsigned said) {
  const emu::Kernel& k = *f->kernel;
  const int arch = current_context->device->architecture, threads = (int)(block.x * block.y * block.z);
  auto refuse = [&](const char* why) { say("%s: %s", k.name, why); return (CUresult)INVALID_VALUE; };
  if (extra) return refuse("parameters through `extra` are not emulated");
  if (!parameters && k.n_parameters) return refuse("no parameters");
  if (!grid.x || !grid.y || !grid.z || grid.x > 0x7fffffff || grid.y > 65535 || grid.z > 65535) return refuse("grid out of range");
  if (!threads || threads > 1024 || block.z > 64) return refuse("block out of range");
  if (threads != k.threads) { say("%s: launched with %d threads, written for %d", k.name, threads, k.threads); return INVALID_VALUE; }
  const bool together = k.cluster == emu::WHOLE_GRID;  // on the grid, or in clusters instead
  if (said && k.cluster >= 1 && (int)said != k.cluster) return refuse("clusters of another size than the kernel's own");
  const int cluster = said ? (int)said : k.cluster == emu::AT_LAUNCH ? 1 : k.cluster;
  if (cluster > 1 && arch < 90) return NOT_SUPPORTED;
  if (cluster == emu::WHOLE_GRID ? !cooperative : grid.x % (unsigned)cluster) return refuse("the grid is not whole clusters, or not launched cooperatively");
  if (settings.refuse_together && together) return said ? INVALID_CLUSTER_SIZE : COOPERATIVE_LAUNCH_TOO_LARGE;
  if ((int)shared > f->max_dynamic) { say("%s: %u bytes of shared memory, its attribute allows %d", k.name, shared, f->max_dynamic); return INVALID_VALUE; }
  const int fit = blocks_per_sm(f, threads, shared, arch);
  if (!fit) return LAUNCH_OUT_OF_RESOURCES;
  if (cluster > 1 && !active_clusters(f, threads, shared, (unsigned)cluster)) return INVALID_CLUSTER_SIZE;
  if (cooperative && grid.x * grid.y * grid.z > (unsigned)(fit * settings.multiprocessors)) return COOPERATIVE_LAUNCH_TOO_LARGE;
  auto l = std::make_shared<Launch>(Launch{f, current_context, grid, block, shared, dependent, cluster, {}});
  for (int i = 0; i < k.n_parameters; i++) {  // copied at the call, as the driver does
    if (!parameters[i]) { say("%s: parameter %d of %d is missing", k.name, i, k.n_parameters); return INVALID_VALUE; }
    l->parameters.emplace_back((uint8_t*)parameters[i], (uint8_t*)parameters[i] + k.parameter_bytes[i]);
  }
  return enqueue(stream_of(stream), k.name, [l] { return run(*l); });
}
API cuLaunchKernel(Function* f, unsigned gx, unsigned gy, unsigned gz, unsigned bx, unsigned by, unsigned bz, unsigned shared, void* stream, void** parameters, void** extra) {
  ENTER();
  return launch(f, {gx, gy, gz}, {bx, by, bz}, shared, stream, parameters, extra, false, false, 0);
}
API cuLaunchKernelEx(const LaunchConfig* c, Function* f, void** parameters, void** extra) {
  ENTER();
  bool dependent = false, cooperative = false;
  const unsigned cluster = cluster_of(c);
  if (cluster == NONE_SUCH) { say("%s: clusters along y or z are not emulated", f->kernel->name); return NOT_SUPPORTED; }
  for (unsigned i = 0; i < c->n; i++) {
    const LaunchAttribute& a = c->attributes[i];
    if (a.id == 2) cooperative = a.value.flag != 0;
    if (a.id == 6 && a.value.flag) {         // programmatic dependent launch
      if (current_context->device->architecture < 90) return NOT_SUPPORTED;
      dependent = true;
    }
  }
  return launch(f, {c->grid[0], c->grid[1], c->grid[2]}, {c->block[0], c->block[1], c->block[2]}, c->shared, c->stream, parameters, extra, dependent, cooperative, cluster);
}
API cuLaunchCooperativeKernel(Function* f, unsigned gx, unsigned gy, unsigned gz, unsigned bx, unsigned by, unsigned bz, unsigned shared, void* stream, void** parameters) {
  ENTER();
  return launch(f, {gx, gy, gz}, {bx, by, bz}, shared, stream, parameters, nullptr, false, true, 0);
}

// ---- tensor maps: two dimensions of 16-bit elements ------------------------------------------------------------------------------------
API cuTensorMapEncodeTiled(TensorMap* map, int type, unsigned rank, void* base, const uint64_t* dim, const uint64_t* stride, const uint32_t* box, const uint32_t* step, int interleave, int swizzle, int, int) {
  ENTER();
  static const uint32_t span[] = {0, 32, 64, 128};
  if ((uint64_t)map & 127 || (uint64_t)base & 15 || rank != 2 || interleave || stride[0] % 16 || step[0] != 1 || step[1] != 1) return INVALID_VALUE;
  if (type != 6 && type != 9) { say("tensor maps of type %d are not emulated (6: f16, 9: bf16)", type); return NOT_SUPPORTED; }
  if (!box[0] || !box[1] || box[0] > 256 || box[1] > 256 || box[0] * 2 % 16 || swizzle < 0 || swizzle > 3 || (swizzle && box[0] * 2 > span[swizzle])) return INVALID_VALUE;
  *map = TensorMap{TENSOR_MAP_MAGIC, (uint64_t)base, {dim[0], dim[1]}, stride[0], {box[0], box[1]}, 2, (uint32_t)swizzle, {}};
  return SUCCESS;
}
