// driver.h - the few calls of libcuda that the check's programs make, found at run time: no toolkit, and the same program
// runs on the stand-in driver. One device (the first that CUDA_VISIBLE_DEVICES leaves), one context, one thread.
#pragma once
#include <dlfcn.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>
#include <unistd.h>
#include <fstream>
#include <sstream>
#include <stdexcept>
#include <string>

typedef uint64_t DevicePointer;

struct DriverError : std::runtime_error {
  int code;
  DriverError(int code, const std::string& text) : std::runtime_error(text), code(code) {}
};

class Driver {
 public:
  enum { NOT_FOUND = 500, NOT_READY = 600 };
  // cudaDeviceProp by attribute number: multiprocessors, compute capability, L2 bytes, clock kHz
  enum { MULTIPROCESSORS = 16, L2_BYTES = 38, CLOCK_KHZ = 13, MAJOR = 75, MINOR = 76 };

  static Driver& get() { static Driver driver; return driver; }

  // The call, unchecked and checked.
  template <class... A> int attempt(const char* name, A... args) { return ((int (*)(A...))symbol(name))(args...); }
  template <class... A> void call(const char* name, A... args) {
    if (int code = attempt(name, args...)) throw DriverError(code, std::string(name) + ": " + text(code));
  }
  std::string text(int code) {
    const char *name = nullptr, *text = nullptr;
    attempt("cuGetErrorName", code, &name);
    attempt("cuGetErrorString", code, &text);
    return std::to_string(code) + " " + (name ? name : "?") + ", " + (text ? text : "?");
  }
  int attribute(int which) {
    int value = 0;
    call("cuDeviceGetAttribute", &value, which, device_);
    return value;
  }
  std::string name() {
    char text[256] = "";
    call("cuDeviceGetName", text, (int)sizeof text, device_);
    return text;
  }
  int version() {
    int v = 0;
    call("cuDriverGetVersion", &v);
    return v;
  }

  // A kernel of the images (in the folder BERTHIER_GPU_IMAGES, or kernels/prebuilt beside `tests`); null if they lack it.
  void* function(const std::string& tests, const std::string& name) {
    const bool conformance = name.rfind("conformance_", 0) == 0;
    void*& module = modules_[conformance];
    if (!module) {
      const char* folder = getenv("BERTHIER_GPU_IMAGES");
      std::string path = (folder ? std::string(folder) : tests + "/../kernels/prebuilt") + (conformance ? "/conformance.fatbin" : "/berthier.fatbin");
      std::ifstream file(path, std::ios::binary);
      if (!file) throw DriverError(0, "cannot read " + path);
      std::stringstream bytes;
      bytes << file.rdbuf();
      std::string data = bytes.str();
      call("cuModuleLoadData", &module, (const void*)data.data());
    }
    void* f = nullptr;
    int code = attempt("cuModuleGetFunction", &f, module, name.c_str());
    if (code && code != NOT_FOUND) throw DriverError(code, "cuModuleGetFunction: " + text(code));
    return code ? nullptr : f;
  }
  void allow_shared(void* function, size_t dynamic_bytes) {
    if (dynamic_bytes > 48 << 10) call("cuFuncSetAttribute", function, 8, (int)dynamic_bytes);
  }
  // `cluster`: blocks along x of one, of a kernel that leaves it to its launch; of more than eight where the GPU has them.
  void launch(void* function, unsigned gx, unsigned gy, unsigned gz, unsigned threads, size_t shared, void* stream, void** parameters, unsigned cluster = 1) {
    struct { int id; char pad[4]; union { unsigned cluster[3]; char bytes[64]; } value; } attribute = {4 /* cluster dimension */, {}, {{cluster, 1, 1}}};
    struct { unsigned grid[3], block[3], shared; void *stream, *attributes; unsigned n; } config = {{gx, gy, gz}, {threads, 1, 1}, (unsigned)shared, stream, &attribute, 1};
    if (cluster > 8) call("cuFuncSetAttribute", function, 14, 1);  // a size that not every GPU has
    if (cluster > 1) call("cuLaunchKernelEx", (const void*)&config, function, parameters, (void**)nullptr);
    else call("cuLaunchKernel", function, gx, gy, gz, threads, 1u, 1u, (unsigned)shared, stream, parameters, (void**)nullptr);
  }
  void launch_cooperative(void* function, unsigned gx, unsigned threads, size_t shared, void* stream, void** parameters) {
    call("cuLaunchCooperativeKernel", function, gx, 1u, 1u, threads, 1u, 1u, (unsigned)shared, stream, parameters);
  }
  DevicePointer allocate(size_t bytes) {
    DevicePointer p = 0;
    call("cuMemAlloc_v2", &p, bytes ? bytes : 1);
    return p;
  }
  // Waits for `stream`, but not for ever: a kernel that hangs would take the report with it. A process whose kernel hangs
  // cannot free its memory either, so it ends.
  void wait(void* stream, const char* what) {
    const char* limit = getenv("BERTHIER_GPU_LAUNCH_SECONDS");
    const double seconds = limit ? atof(limit) : 30, start = now();
    for (long spins = 0;; spins++) {
      int code = attempt("cuStreamQuery", stream);
      if (!code) return;
      if (code != NOT_READY) throw DriverError(code, text(code));
      if (now() - start > seconds) {
        printf("FAIL %s: still running after %.0f s; the process ends here\n", what, seconds);
        fflush(stdout);
        _exit(1);
      }
      if (spins > 200) usleep(20);
    }
  }
  static double now() {
    timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + (double)t.tv_nsec * 1e-9;
  }
  // After an error that the context does not survive: a fresh one. What was allocated is gone.
  void reset() {
    attempt("cuDevicePrimaryCtxReset_v2", device_);
    modules_[0] = modules_[1] = nullptr;
    call("cuDevicePrimaryCtxRetain", &context_, device_);
    call("cuCtxSetCurrent", context_);
  }

 private:
  Driver() {
    library_ = dlopen("libcuda.so.1", RTLD_NOW);
    if (!library_) throw DriverError(0, std::string("no driver: ") + dlerror());
    call("cuInit", 0u);
    call("cuDeviceGet", &device_, 0);
    call("cuDevicePrimaryCtxRetain", &context_, device_);
    call("cuCtxSetCurrent", context_);
  }
  void* symbol(const char* name) {
    void* f = dlsym(library_, name);
    if (!f) throw DriverError(0, std::string("the driver has no ") + name);
    return f;
  }
  void *library_ = nullptr, *context_ = nullptr, *modules_[2] = {};
  int device_ = 0;
};
