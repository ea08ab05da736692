"""A translation unit with one kernel for each thing that gates.py refuses: what is not refused here is not checked."""

from . import gates, image, sources

ARCH = "sm_80"

FAULTY = r"""
#include "numeric.cuh"
KERNEL_MIN_BLOCKS(1024, 1, spills, float* p, int n) {
  float a[96];
#pragma unroll
  for (int i = 0; i < 96; i++) a[i] = p[i * 1024 + threadIdx.x];
#pragma unroll 1
  for (int k = 0; k < n; k++)
#pragma unroll
    for (int i = 0; i < 96; i++) a[i] = fmaf(a[i], a[(i * 7 + 3) % 96], p[k]);
#pragma unroll
  for (int i = 0; i < 96; i++) p[i * 1024 + threadIdx.x] = a[i];
}
KERNEL(128, local_array, float* p, int n) {
  float a[128];
  for (int i = 0; i < 128; i++) a[(i * n) & 127] = p[i];
  p[n] = a[n & 127];
}
KERNEL(128, gemm_without_mma, u128* p) { st_global_128(p, ld_global_128(p + threadIdx.x)); }
KERNEL(128, attention_wgmma_without, u128* p) { st_global_128(p, ld_global_128(p + threadIdx.x)); }
KERNEL(128, narrow, uint32_t* p) { p[threadIdx.x] = p[threadIdx.x + 1]; }
KERNEL(128, atomic, float* p) { atomicAdd(p, 1.0f); }
KERNEL(128, generic, u128* p, int n) {
  SMEM_ARRAY(u128, s, 128);
  u128* q = n ? p : s;
  q[threadIdx.x] = q[threadIdx.x + 1];
}
extern "C" __global__ void without_bounds(u128* p) { st_global_128(p, ld_global_128(p + threadIdx.x)); }
KERNEL(128, good, u128* p) { st_global_128(p, ld_global_128(p + threadIdx.x)); }
"""

# Kernel: what must be among the sentences about it. None: there must be no sentence.
EXPECTED = {
    "spills": "local memory",
    "local_array": "of stack",
    "gemm_without_mma": "tensor cores",
    "attention_wgmma_without": "no HGMMA or no UTMALDG",
    "narrow": "16 bytes a lane",
    "atomic": "atomics",
    "generic": "generic address",
    "without_bounds": "no launch bounds",
    "good": None,
}


def problems(toolchain):
    """Gates that let a faulty kernel pass."""
    flags = [flag for flag in sources.flags() if not flag.startswith("-gencode")] + [f"-gencode=arch=compute_80,code={ARCH}"]
    fatbin, log = image.compile(toolchain, "faulty.cu", flags, {"faulty.cu": FAULTY.encode()})
    usages = image.inspect(toolchain, fatbin, [ARCH])[ARCH]
    found = []
    for kernel, expected in EXPECTED.items():
        usage = usages[kernel]
        said = " ".join(gates.local_memory(usage) + gates.accesses(kernel, usage) + gates.launch(ARCH, kernel, usage))
        if (expected not in said) if expected else said:
            found.append(f"self-test: of kernel '{kernel}' the gates said '{said}', expected: {expected}")
    if not any("spills spills" in line for line in gates.compiler("faulty.cu", log)):
        found.append("self-test: the compiler's warning of spills was not heard")
    if not gates.serialised("x", "ptxas info : (C7510) Potential Performance Loss: wgmma.mma_async are serialized"):
        found.append("self-test: C7510 was not heard")
    return found
