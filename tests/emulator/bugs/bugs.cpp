// The emulator's own test: small right kernels with one bug planted at a time. BUG=<name> plants one; without it every case
// must pass. `run` holds the results against expected.txt, which says which mode must find which bug.
//
// Each kernel is the smallest that needs the thing it gets wrong, so that a bug is found for its own reason.
#include "../../kernels/common.h"

static bool planted(const char* name) {
  static const char* bug = getenv("BUG");
  return bug && !strcmp(bug, name);
}
#include "warp.cu"
#include "block.cu"
#include "copies.cu"
#include "global.cu"
#include "grid.cu"
#include "hopper.cu"

int main(int argc, char** argv) { return run_cases(argc, argv); }
