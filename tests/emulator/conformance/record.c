// Runs the conformance kernels on a GPU and writes what each of them gave: record IMAGE OUTPUT_FOLDER
// IMAGE is kernels/prebuilt/conformance.fatbin, or `nvcc -fatbin kernels/conformance.cu`. Needs a driver, no toolkit.
#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>
#include "cases.h"

typedef uint64_t CUdeviceptr;
static void* library;
static void* symbol(const char* name) {
  void* f = dlsym(library, name);
  if (!f) { fprintf(stderr, "record: the driver has no %s\n", name); exit(1); }
  return f;
}
static void check(int result, const char* what) {
  if (!result) return;
  const char* text = NULL;
  ((int (*)(int, const char**))symbol("cuGetErrorString"))(result, &text);
  fprintf(stderr, "record: %s: %d %s\n", what, result, text ? text : "");
  exit(1);
}
#define CALL(types, name, ...) check(((int (*) types)symbol(#name))(__VA_ARGS__), #name)

int main(int argc, char** argv) {
  if (argc != 3) { fprintf(stderr, "record IMAGE OUTPUT_FOLDER\n"); return 2; }
  library = dlopen("libcuda.so.1", RTLD_NOW);
  if (!library) { fprintf(stderr, "record: %s\n", dlerror()); return 1; }
  FILE* f = fopen(argv[1], "rb");
  if (!f) { perror(argv[1]); return 1; }
  fseek(f, 0, SEEK_END);
  size_t size = (size_t)ftell(f);
  rewind(f);
  void* image = malloc(size);
  if (fread(image, 1, size, f) != size) return 1;
  fclose(f);

  int device, major, minor, version;
  char name[200];
  void *context, *module, *function;
  CALL((unsigned), cuInit, 0);
  CALL((int*), cuDriverGetVersion, &version);
  CALL((int*, int), cuDeviceGet, &device, 0);
  CALL((char*, int, int), cuDeviceGetName, name, sizeof name, device);
  CALL((int*, int, int), cuDeviceGetAttribute, &major, 75, device);
  CALL((int*, int, int), cuDeviceGetAttribute, &minor, 76, device);
  CALL((void**, int), cuDevicePrimaryCtxRetain, &context, device);
  CALL((void*), cuCtxSetCurrent, context);
  CALL((void**, const void*), cuModuleLoadData, &module, image);

  int written = 0;
  for (int i = 0; i < CONFORMANCE_CASES; i++) {
    const struct ConformanceCase* c = &conformance_cases[i];
    int arch = 10 * major + minor;
    if (arch < c->least || arch > c->most) { printf("%s: not on sm_%d\n", c->kernel, arch); continue; }
    uint32_t *in = malloc(4 * (size_t)c->in_words), *out = malloc(4 * (size_t)c->out_words);
    conformance_fill(c, in);
    CUdeviceptr device_in, device_out;
    CALL((CUdeviceptr*, size_t), cuMemAlloc_v2, &device_in, 4 * (size_t)c->in_words);
    CALL((CUdeviceptr*, size_t), cuMemAlloc_v2, &device_out, 4 * (size_t)c->out_words);
    CALL((CUdeviceptr, const void*, size_t), cuMemcpyHtoD_v2, device_in, in, 4 * (size_t)c->in_words);
    _Alignas(128) unsigned char map[128];
    void* parameters[2] = {&device_in, &device_out};
    if (c->tensor_map) {
      int of_out = c->tensor_map == 2;
      uint64_t dimensions[2] = {64, (uint64_t)(of_out ? c->out_words : c->in_words) / 32}, stride[1] = {128};
      uint32_t box[2] = {64, 64}, step[2] = {1, 1};
      CALL((void*, int, unsigned, void*, const uint64_t*, const uint64_t*, const uint32_t*, const uint32_t*, int, int, int, int), cuTensorMapEncodeTiled, map,
           6 /* f16 */, 2, (void*)(of_out ? device_out : device_in), dimensions, stride, box, step, 0, 3 /* 128 bytes */, 0, 0);
      parameters[of_out] = map;
    }
    CALL((void**, void*, const char*), cuModuleGetFunction, &function, module, c->kernel);
    CALL((void*, unsigned, unsigned, unsigned, unsigned, unsigned, unsigned, unsigned, void*, void**, void**), cuLaunchKernel, function, 1, 1, 1,
         (unsigned)c->threads, 1, 1, (unsigned)c->shared_bytes, NULL, parameters, NULL);
    CALL((void), cuCtxSynchronize);
    CALL((void*, CUdeviceptr, size_t), cuMemcpyDtoH_v2, out, device_out, 4 * (size_t)c->out_words);
    char path[4096], date[40];
    time_t now = time(NULL);
    strftime(date, sizeof date, "%Y-%m-%d", gmtime(&now));
    snprintf(path, sizeof path, "%s/%s.txt", argv[2], c->kernel);
    f = fopen(path, "w");
    if (!f) { perror(path); return 1; }
    fprintf(f, "# device: %s, sm_%d, CUDA %d.%d\n# recorded %s by tests/emulator/conformance/record\n", name, arch, version / 1000, version % 1000 / 10, date);
    for (int w = 0; w < c->out_words; w++) fprintf(f, "%08x%c", out[w], w % 8 == 7 || w + 1 == c->out_words ? '\n' : ' ');
    fclose(f);
    written++;
    CALL((CUdeviceptr), cuMemFree_v2, device_in);
    CALL((CUdeviceptr), cuMemFree_v2, device_out);
    free(in);
    free(out);
  }
  printf("%d records from %s, sm_%d%d\n", written, name, major, minor);
  return 0;
}
