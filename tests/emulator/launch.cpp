// launch.cpp - launching by name, in the emulator. Alone in its file, so that a program that brings its own (a GPU's:
// tools/gpu-check/launch.cpp) does not get this one out of the archive.
#include "emulator.h"

namespace emu {
void launch(const Kernel& kernel, dim3e grid, dim3e block, size_t smem_bytes, void** parameters, int cluster) {
  launch(grid, block, smem_bytes, [&] { kernel.invoke(parameters); }, cluster);
}
bool emulated() { return true; }
}  // namespace emu
