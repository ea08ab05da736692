"""What an image must hold to be committed. Each check gives sentences about what is wrong."""

import re

from . import sources
from .image import spill_bytes
from .occupancy import blocks_per_sm

# What a user downloads and the library maps; also what it may add to a binary.
MAX_IMAGE_BYTES = 1 << 20

# Kernels whose matrices must be read and written 16 bytes a lane.
WIDE = re.compile(r"(gemm|splitk_reduce|attention)_")

# Narrower global accesses of those kernels: (kernel, access, most of them in the code, why they are not of matrices).
NARROW = [
    ("(gemm|splitk_reduce)_.*", "LDG.64", 29, "statistics of rows to normalise: mean and M2, two floats for 64 columns"),
    ("(gemm|splitk_reduce)_.*", "LDG.32", 29, "the same, where only the mean is used"),
    ("(gemm|splitk_reduce)_.*", "STG.64", 1, "statistics of the rows stored"),
    ("attention_.*", "LDGSTS.32", 4, "the additive bias: neighbouring floats of a head's line, at any offset"),
]


def problems(images, logs):
    """`images`: {unit: (fatbin, {architecture: {kernel: Usage}})}."""
    found = []
    for unit, (fatbin, usages) in images.items():
        found += compiler(unit, logs[unit])
        for arch, kernels in usages.items():
            for name, usage in kernels.items():
                found += [f"{arch} {name}: {what}" for what in local_memory(usage) + accesses(name, usage) + launch(arch, name, usage)]
    return found


def compiler(unit, log):
    """Spills; serialisation (C75xx: setmaxnreg ignored, wgmma serialised); any other warning."""
    found = [f"{unit}: {kernel} spills {size} bytes" for kernel, size in spill_bytes(log).items()]
    return found + [f"{unit}: {line.strip()}" for line in log.splitlines() if "warning" in line.lower() or re.search(r"\bC75\d\d\b", line)]


def local_memory(usage):
    found = [f"{n} bytes of {what}" for what, n in [("stack", usage.stack), ("local memory", usage.local)] if n]
    return found + [f"{n} {op}: local memory" for op, n in usage.accesses.items() if op.startswith(("LDL", "STL"))]


def accesses(name, usage):
    """Atomics (their order is not fixed), generic addresses (slower, and of unknown space), narrow accesses to matrices."""
    found = []
    for op, count in sorted(usage.accesses.items()):
        base = op.split(".")[0]
        if base in ("ATOM", "ATOMG", "RED", "REDG"):
            found.append(f"{count} {op}: atomics sum in no fixed order")
        elif base in ("LD", "ST"):
            found.append(f"{count} {op}: a generic address, where a global or shared one is meant")
        elif base in ("LDG", "STG", "LDGSTS") and not op.endswith(".128") and WIDE.match(name):
            allowed = sum(most for kernel, access, most, _ in NARROW if re.fullmatch(kernel, name) and access == op)
            if count > allowed:
                found.append(f"{count} {op}, {allowed} allowed: matrices are read and written 16 bytes a lane")
    return found


def launch(arch, name, usage):
    if not usage.threads:
        return ["no launch bounds: KERNEL(threads, ...) names the block size"]
    shared = usage.static_shared + sources.dynamic_shared(name)
    if blocks_per_sm(arch, usage.threads, usage.registers, shared) == 0:
        return [f"{usage.threads} threads, {usage.registers} registers and {shared} bytes of shared memory do not fit"]
    return []
