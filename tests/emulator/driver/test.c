// Proves that the stand-in driver loads by name and behaves: each scenario is a process of its own with its own settings.
// `test IMAGE`: IMAGE is kernels/prebuilt/berthier.fatbin. The kernel is residual_layernorm_h512_f16 on 3 rows of 8.
#include <dlfcn.h>
#include <math.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

typedef uint64_t ptr;
static void *library, *image;
#define CALL(name, ...) ((int (*)())dlsym(library, #name))(__VA_ARGS__)
#define IS(expected, name, ...)                                                                                     \
  do {                                                                                                              \
    if (!dlsym(library, #name)) { printf("line %d: no symbol %s\n", __LINE__, #name); exit(1); }                    \
    int got_ = CALL(name, __VA_ARGS__);                                                                             \
    if (got_ != (expected)) { printf("line %d: %s is %d, expected %d\n", __LINE__, #name, got_, expected); exit(1); } \
  } while (0)
#define OK(name, ...) IS(0, name, __VA_ARGS__)
#define EXPECT(condition) do { if (!(condition)) { printf("line %d: not so: %s\n", __LINE__, #condition); exit(1); } } while (0)

enum { ROWS = 3, HIDDEN = 8, N = ROWS * HIDDEN };
static const uint16_t input[N] = {0x3c00, 0x4000, 0x4200, 0x4400, 0x4500, 0x4600, 0x4700, 0x4800, 0, 0, 0, 0x3c00, 0, 0, 0, 0,
                                  0x3c00, 0xbc00, 0x3c00, 0xbc00, 0x3c00, 0xbc00, 0x3c00, 0xbc00};
static float value(uint16_t h) {
  int e = h >> 10 & 31, m = h & 1023;
  float v = e == 31 ? NAN : e ? ldexpf(1024 + m, e - 25) : ldexpf(m, -24);
  return h >> 15 ? -v : v;
}
static int right(const uint16_t* out) {
  for (int r = 0; r < ROWS; r++) {
    float mean = 0, square = 0;
    for (int i = 0; i < HIDDEN; i++) mean += value(input[r * HIDDEN + i]) / HIDDEN;
    for (int i = 0; i < HIDDEN; i++) square += powf(value(input[r * HIDDEN + i]) - mean, 2) / HIDDEN;
    for (int i = 0; i < HIDDEN; i++)
      if (!(fabsf(value(out[r * HIDDEN + i]) - (value(input[r * HIDDEN + i]) - mean) / sqrtf(square + 1e-5f)) < 2e-3f)) return 0;
  }
  return 1;
}

// ---- a session up to the launch ----------------------------------------------------------------------------------------------
static void *context, *stream, *module, *function;
static ptr x, out;
static void open_device(int ordinal) {
  OK(cuInit, 0);
  int device;
  OK(cuDeviceGet, &device, ordinal);
  OK(cuDevicePrimaryCtxRetain, &context, device);
  OK(cuCtxSetCurrent, context);
  OK(cuStreamCreate, &stream, 1);
}
static void load(void) {
  OK(cuModuleLoadData, &module, image);
  OK(cuModuleGetFunction, &function, module, "residual_layernorm_h512_f16");
}
static void prepare(void) {
  open_device(0);
  load();
  OK(cuMemAllocAsync, &x, (size_t)(N * 2), stream);
  OK(cuMemAllocAsync, &out, (size_t)(N * 2), stream);
  OK(cuMemcpyHtoDAsync_v2, x, input, (size_t)(N * 2), stream);
}
static int launch_with(unsigned threads, unsigned shared, ptr from, ptr to) {
  ptr none = 0;
  int rows = ROWS, hidden = HIDDEN, parts = 1, norm = 1;  // ROW_LAYERNORM
  float eps = 1e-5f;
  void* parameters[] = {&from, &none, &none, &none, &to, &rows, &hidden, &parts, &hidden, &eps, &norm};
  return CALL(cuLaunchKernel, function, 1, 1, 1, threads, 1, 1, shared, stream, parameters, NULL);
}
static int launch(void) { return launch_with(128, 0, x, out); }

// ---- scenarios -----------------------------------------------------------------------------------------------------------------
static void run_a_kernel(void) {
  prepare();
  int v;
  const char* name;
  OK(cuDriverGetVersion, &v);
  EXPECT(v == 13000);
  OK(cuFuncGetAttribute, &v, 0, function);
  EXPECT(v == 128);
  OK(cuFuncGetAttribute, &v, 4, function);
  EXPECT(v > 16 && v <= 255);
  OK(cuOccupancyMaxActiveBlocksPerMultiprocessor, &v, function, 128, (size_t)0);
  EXPECT(v >= 1 && v <= 16);
  OK(cuGetErrorName, 719, &name);
  EXPECT(!strcmp(name, "CUDA_ERROR_LAUNCH_FAILED"));
  size_t offset, bytes, free_bytes, total;
  OK(cuFuncGetParamInfo, function, (size_t)9, &offset, &bytes);
  EXPECT(offset == 56 && bytes == 4);
  IS(1, cuFuncGetParamInfo, function, (size_t)11, &offset, &bytes);
  OK(cuMemGetInfo_v2, &free_bytes, &total);
  EXPECT(total - free_bytes == 1024);
  uint16_t got[N];
  EXPECT(launch() == 0);
  OK(cuMemcpyDtoHAsync_v2, got, out, sizeof got, stream);  // into pageable memory: waits
  EXPECT(right(got));
  OK(cuMemFreeAsync, x, stream);
  OK(cuMemFreeAsync, out, stream);
  OK(cuStreamSynchronize, stream);
  OK(cuMemGetInfo_v2, &free_bytes, &total);
  EXPECT(total == free_bytes);
  OK(cuModuleUnload, module);
  OK(cuStreamDestroy_v2, stream);
  OK(cuDevicePrimaryCtxRelease_v2, 0);
}
static void host_forgets_to_wait(void) {     // pinned memory is written when somebody waits, not before
  prepare();
  uint16_t* pinned;
  OK(cuMemHostAlloc, &pinned, (size_t)(N * 2), 0);
  EXPECT(launch() == 0);
  OK(cuMemcpyDtoHAsync_v2, pinned, out, (size_t)(N * 2), stream);
  EXPECT(pinned[0] == 0xFFFF);
  void* event;
  OK(cuEventCreate, &event, 2);
  OK(cuEventRecord, event, stream);
  OK(cuEventSynchronize, event);
  EXPECT(right(pinned));
  OK(cuMemFreeHost, pinned);
}
static void streams_do_not_wait_by_themselves(void) {
  prepare();
  OK(cuStreamSynchronize, stream);
  void *other, *event;
  uint16_t got[N];
  OK(cuStreamCreate, &other, 1);
  EXPECT(launch() == 0);
  OK(cuMemcpyDtoHAsync_v2, got, out, sizeof got, other);   // no event: too early
  EXPECT(got[0] == 0xFFFF);
  OK(cuEventCreate, &event, 0);
  OK(cuEventRecord, event, stream);
  OK(cuStreamWaitEvent, other, event, 0);
  OK(cuMemcpyDtoHAsync_v2, got, out, sizeof got, other);
  EXPECT(right(got));
  float ms;
  OK(cuEventElapsedTime_v2, &ms, event, event);
  EXPECT(ms == 0);
}
static void graph(void) {
  prepare();
  OK(cuStreamSynchronize, stream);
  OK(cuMemsetD8Async, out, 0, (size_t)(N * 2), stream);
  OK(cuStreamBeginCapture_v2, stream, 1);
  int status;
  OK(cuStreamIsCapturing, stream, &status);
  EXPECT(status == 1);
  void *fork_event, *join_event, *side, *main_stream = stream;
  OK(cuEventCreate, &fork_event, 2);
  OK(cuEventCreate, &join_event, 2);
  OK(cuStreamCreate, &side, 1);
  OK(cuEventRecord, fork_event, stream);
  OK(cuStreamWaitEvent, side, fork_event, 0);
  stream = side;
  EXPECT(launch() == 0);
  stream = main_stream;
  OK(cuEventRecord, join_event, side);
  OK(cuStreamWaitEvent, stream, join_event, 0);
  void *captured, *executable;
  OK(cuStreamEndCapture, stream, &captured);
  OK(cuGraphInstantiateWithFlags, &executable, captured, 0ull);
  OK(cuGraphDestroy, captured);
  OK(cuGraphUpload, executable, stream);
  uint16_t got[N];
  OK(cuMemcpyDtoHAsync_v2, got, out, sizeof got, stream);
  EXPECT(got[0] == 0);                       // captured, not run
  for (int i = 0; i < 2; i++) {
    OK(cuMemsetD8Async, out, 0, (size_t)(N * 2), stream);
    OK(cuGraphLaunch, executable, stream);
    OK(cuMemcpyDtoHAsync_v2, got, out, sizeof got, stream);
    EXPECT(right(got));
  }
  OK(cuGraphExecDestroy, executable);
}
static void capture_mistakes(void) {
  prepare();
  OK(cuStreamSynchronize, stream);
  void *captured, *side, *event;
  ptr p;
  OK(cuStreamBeginCapture_v2, stream, 1);
  IS(900, cuMemAlloc_v2, &p, (size_t)64);
  IS(901, cuStreamEndCapture, stream, &captured);
  OK(cuStreamBeginCapture_v2, stream, 1);
  IS(900, cuStreamSynchronize, stream);
  IS(901, cuStreamEndCapture, stream, &captured);
  OK(cuStreamCreate, &side, 1);
  OK(cuEventCreate, &event, 2);
  OK(cuStreamBeginCapture_v2, stream, 1);
  OK(cuEventRecord, event, stream);
  OK(cuStreamWaitEvent, side, event, 0);
  OK(cuMemsetD8Async, out, 0, (size_t)(N * 2), side);
  IS(904, cuStreamEndCapture, stream, &captured);  // nobody waits for the side stream
  EXPECT(launch() == 0);                     // the streams are usable again
  OK(cuStreamSynchronize, stream);
}
static void wrong_launches(void) {
  prepare();
  EXPECT(launch_with(64, 0, x, out) == 1);   // not its launch bounds
  EXPECT(launch_with(128, 64 << 10, x, out) == 1);  // more than 48 KB without the attribute
  OK(cuFuncSetAttribute, function, 8, 64 << 10);
  EXPECT(launch_with(128, 64 << 10, x, out) == 0);
  IS(1, cuFuncSetAttribute, function, 8, 300 << 10);
  void* nothing;
  IS(500, cuModuleGetFunction, &nothing, module, "no_such_kernel");
  IS(1, cuMemcpyHtoDAsync_v2, x, input, (size_t)(N * 2 + 1), stream);  // past the end
  OK(cuStreamSynchronize, stream);
}
struct attribute { int id; char pad[4]; union { char bytes[64]; int flag; } value; };
struct config { unsigned grid[3], block[3], shared; void* stream; struct attribute* attributes; unsigned n; };
static void dependent_launches(void) {       // cuLaunchKernelEx with programmatic dependent launch: out = norm(norm(x))
  prepare();
  ptr none = 0, twice, from = x, to = out;
  int rows = ROWS, hidden = HIDDEN, parts = 1, norm = 1;
  float eps = 1e-5f;
  OK(cuMemAlloc_v2, &twice, (size_t)(N * 2));
  void* parameters[] = {&from, &none, &none, &none, &to, &rows, &hidden, &parts, &hidden, &eps, &norm};
  struct attribute programmatic = {6, {0}, {{0}}}, cluster = {4, {0}, {{0}}};
  programmatic.value.flag = 1;
  for (int i = 0; i < 3; i++) ((int*)cluster.value.bytes)[i] = 2;
  struct config c = {{1, 1, 1}, {128, 1, 1}, 0, stream, &programmatic, 1};
  OK(cuLaunchKernelEx, &c, function, parameters, NULL);
  from = out;
  to = twice;
  OK(cuLaunchKernelEx, &c, function, parameters, NULL);
  uint16_t got[N];
  OK(cuMemcpyDtoHAsync_v2, got, twice, sizeof got, stream);
  EXPECT(right(got));                        // normalising again changes nothing
  c.attributes = &cluster;
  IS(801, cuLaunchKernelEx, &c, function, parameters, NULL);
}
static void wild_pointer(void) {             // the launch succeeds, whoever waits hears of it, and so does everyone after
  prepare();
  EXPECT(launch_with(128, 0, x, x + 0x100000) == 0);
  IS(700, cuStreamSynchronize, stream);
  IS(700, cuMemAlloc_v2, &x, (size_t)64);
}
static void out_of_bounds(void) {            // inside an allocation, but too short: the emulator's wrappers see it
  prepare();
  ptr small;
  OK(cuMemAlloc_v2, &small, (size_t)(N * 2 - 16));
  EXPECT(launch_with(128, 0, x, small) == 0);
  IS(700, cuStreamSynchronize, stream);
}
static void failing_launch(void) {
  setenv("BERTHIER_EMU_FAIL_LAUNCH", "2", 1);
  prepare();
  EXPECT(launch() == 0);
  OK(cuStreamSynchronize, stream);
  EXPECT(launch() == 0);
  IS(719, cuStreamSynchronize, stream);
  EXPECT(launch() == 719);
}
static void lost_device(void) {
  setenv("BERTHIER_EMU_LOSE_DEVICE", "1", 1);
  prepare();
  EXPECT(launch() == 0);
  IS(999, cuCtxSynchronize);
}
static void hung_device(void) {
  setenv("BERTHIER_EMU_HANG_DEVICE", "2", 1);
  prepare();
  EXPECT(launch() == 0);
  OK(cuStreamSynchronize, stream);
  void* event;
  OK(cuEventCreate, &event, 2);
  EXPECT(launch() == 0);
  OK(cuEventRecord, event, stream);
  for (int i = 0; i < 10; i++) IS(600, cuEventQuery, event);
}
static void mapped_memory(void) {            // a kernel reads and writes pinned memory, by the address that the device has for it
  prepare();
  uint16_t *from, *to;
  ptr seen_from, seen_to;
  OK(cuMemHostAlloc, &from, (size_t)(N * 2), 2);
  OK(cuMemHostAlloc, &to, (size_t)(N * 2), 2);
  OK(cuMemHostGetDevicePointer_v2, &seen_from, from, 0);
  OK(cuMemHostGetDevicePointer_v2, &seen_to, to, 0);
  IS(1, cuMemHostGetDevicePointer_v2, &seen_to, input, 0);  // pageable
  OK(cuStreamSynchronize, stream);
  memcpy(from, input, sizeof input);
  EXPECT(launch_with(128, 0, seen_from, seen_to) == 0);
  EXPECT(to[0] == 0xFFFF);
  OK(cuStreamSynchronize, stream);
  EXPECT(right(to));
}
static void unmapped_memory(void) {
  setenv("BERTHIER_EMU_MAPS_HOST_MEMORY", "0", 1);
  prepare();
  int maps;
  OK(cuDeviceGetAttribute, &maps, 19, 0);
  EXPECT(!maps);
  uint16_t* pinned;
  ptr seen;
  OK(cuMemHostAlloc, &pinned, (size_t)(N * 2), 2);
  IS(1, cuMemHostGetDevicePointer_v2, &seen, pinned, 0);
  EXPECT(launch_with(128, 0, (ptr)pinned, out) == 0);
  IS(700, cuStreamSynchronize, stream);
}
static void a_known_clock(void) {            // what events say is the sum of what was said of kernels and copies
  setenv("BERTHIER_EMU_KERNEL_US", "7", 1);
  setenv("BERTHIER_EMU_COPY_US", "2", 1);
  prepare();
  void* events[3];
  float ms;
  for (int i = 0; i < 3; i++) OK(cuEventCreate, &events[i], 0);
  OK(cuEventRecord, events[0], stream);
  EXPECT(launch() == 0 && launch() == 0);
  OK(cuEventRecord, events[1], stream);
  OK(cuMemcpyHtoDAsync_v2, x, input, (size_t)(N * 2), stream);
  OK(cuEventRecord, events[2], stream);
  IS(600, cuEventElapsedTime_v2, &ms, events[0], events[2]);
  OK(cuStreamSynchronize, stream);
  OK(cuEventElapsedTime_v2, &ms, events[0], events[1]);
  EXPECT(fabsf(ms - 0.014f) < 1e-6f);
  OK(cuEventElapsedTime_v2, &ms, events[0], events[2]);
  EXPECT(fabsf(ms - 0.016f) < 1e-6f);
}
static void calls_are_told(void) {           // and no kernel has to run for that
  char file[] = "/tmp/berthier-calls-XXXXXX", line[80];
  EXPECT(mkstemp(file) >= 0);
  setenv("BERTHIER_EMU_CALLS", file, 1);
  setenv("BERTHIER_EMU_COMPUTES", "0", 1);
  prepare();
  EXPECT(launch() == 0);
  uint16_t got[N];
  OK(cuMemcpyDtoHAsync_v2, got, out, sizeof got, stream);
  EXPECT(got[0] == 0);
  FILE* told = fopen(file, "r");
  int launches = 0, copies = 0;
  while (fgets(line, sizeof line, told)) {
    launches += !strcmp(line, "cuLaunchKernel\n");
    copies += !strncmp(line, "cuMemcpy", 8);
  }
  EXPECT(launches == 1 && copies == 2);
  fclose(told);
  unlink(file);
}
static void out_of_memory(void) {
  setenv("BERTHIER_EMU_MEMORY_BYTES", "1048576", 1);
  setenv("BERTHIER_EMU_FAIL_ALLOCATION", "3", 1);
  prepare();
  ptr p;
  IS(2, cuMemAlloc_v2, &p, (size_t)512);     // the third, by decree
  OK(cuMemAlloc_v2, &p, (size_t)512);
  IS(2, cuMemAlloc_v2, &p, (size_t)1048576); // does not fit
  OK(cuMemAlloc_v2, &p, (size_t)524288);
}
static void no_device(void) {
  setenv("BERTHIER_EMU_DEVICES", "0", 1);
  IS(100, cuInit, 0);
}
static void old_driver(void) {
  setenv("BERTHIER_EMU_DRIVER_VERSION", "12020", 1);
  int v;
  OK(cuInit, 0);
  OK(cuDriverGetVersion, &v);
  EXPECT(v == 12020);
}
static void old_gpu(void) {
  setenv("BERTHIER_EMU_ARCH", "75", 1);
  open_device(0);
  IS(209, cuModuleLoadData, &module, image);
  IS(200, cuModuleLoadData, &module, "neither an image nor PTX");
}
static void two_devices(void) {
  setenv("BERTHIER_EMU_DEVICES", "2", 1);
  setenv("BERTHIER_EMU_ARCH", "80,90", 1);
  prepare();
  int n, major;
  OK(cuDeviceGetCount, &n);
  EXPECT(n == 2);
  OK(cuDeviceGetAttribute, &major, 75, 1);
  EXPECT(major == 9);
  ptr first = x;
  OK(cuStreamSynchronize, stream);
  open_device(1);
  load();
  OK(cuMemAlloc_v2, &x, (size_t)(N * 2));
  OK(cuMemAlloc_v2, &out, (size_t)(N * 2));
  OK(cuMemcpyDtoDAsync_v2, x, first, (size_t)(N * 2), stream);
  uint16_t got[N];
  EXPECT(launch() == 0);
  OK(cuMemcpyDtoH_v2, got, out, sizeof got); // the null stream does not wait for a non-blocking one
  EXPECT(got[0] == 0xFFFF);
  OK(cuMemcpyDtoHAsync_v2, got, out, sizeof got, stream);
  EXPECT(right(got));
  EXPECT(launch_with(128, 0, first, out) == 0);
  IS(700, cuStreamSynchronize, stream);      // the other device's memory
}

static const struct { const char* name; void (*run)(void); } scenarios[] = {
#define S(f) {#f, f}
    S(run_a_kernel), S(host_forgets_to_wait), S(streams_do_not_wait_by_themselves), S(graph), S(capture_mistakes), S(wrong_launches), S(dependent_launches),
    S(wild_pointer), S(out_of_bounds), S(failing_launch), S(lost_device), S(hung_device), S(mapped_memory), S(unmapped_memory),
    S(a_known_clock), S(calls_are_told), S(out_of_memory), S(no_device), S(old_driver), S(old_gpu), S(two_devices)};

int main(int argc, char** argv) {
  if (argc < 2) return 2;
  FILE* f = fopen(argv[1], "rb");
  if (!f) { printf("FAIL cannot open %s\n", argv[1]); return 1; }
  fseek(f, 0, SEEK_END);
  size_t size = (size_t)ftell(f);
  rewind(f);
  image = malloc(size);
  if (fread(image, 1, size, f) != size) return 2;
  fclose(f);
  int failed = 0, n = (int)(sizeof scenarios / sizeof *scenarios);
  for (int i = 0; i < n; i++) {
    if (argc > 2 && strcmp(argv[2], scenarios[i].name)) continue;
    fflush(stdout);
    pid_t child = fork();
    if (!child) {
      library = dlopen("libcuda.so.1", RTLD_NOW | RTLD_LOCAL);
      if (!library) { printf("%s\n", dlerror()); exit(1); }
      scenarios[i].run();
      exit(0);
    }
    int status;
    waitpid(child, &status, 0);
    int bad = !WIFEXITED(status) || WEXITSTATUS(status);
    printf("%s %s\n", bad ? "FAIL" : "ok  ", scenarios[i].name);
    failed += bad;
  }
  printf("%d scenarios, %d failed\n", n, failed);
  return failed != 0;
}
