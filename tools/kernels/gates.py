"""What an image must hold to be committed. Each check gives sentences about what is wrong."""

import re

from . import sources
from .image import spill_bytes
from .occupancy import blocks_per_sm

# What a user downloads and the library maps; also what it may add to a binary.
MAX_IMAGE_BYTES = 1_250_000

# Global accesses are 16 bytes a lane, except for: (kernels, access, most of them in the code of one, what they are).
# None of these is of a matrix or a row of activations.
NARROW = [
    ("(gemm|splitk_reduce|layernorm_from_stats|first_rows)_.*", "LDG.64", 8, "statistics: mean and M2 of 64 columns of a row"),
    ("(gemm|splitk_reduce|first_rows)_.*", "STG.64", 1, "the same, of the rows stored"),
    ("first_rows_.*", "LDG.32", 2, "cu_seqlens"),
    ("attention_.*", "LDGSTS.32", 4, "the additive bias: neighbouring floats of a head's line, at any offset"),
    ("attention_wgmma_.*", "LDG.32", 2, "an entry of the work list, of which the warp that clears needs the tokens alone"),
    ("embed_layernorm_.*", "LDG.32", 3, "the token's id, position and type"),
    ("rotary_.*", "LDG.32", 1, "the token's position"),
    ("pool_.*", "LDG.32", 3, "cu_seqlens, left_out"),
    ("(pool|l2_normalize)_.*", "STG.64", 5, "a sentence's vector where it is stored in 16 bits: four columns a lane"),
    ("(pool|l2_normalize)_.*", "STG.32", 1, "the sentence's status"),
    ("persistent_encoder_.*", "LDG.32", 10, "ids of a token, cu_seqlens, left_out and their copies, the barrier's words"),
    ("persistent_encoder_.*", "STG.32", 4, "the copies of cu_seqlens and left_out, the barrier's words"),
]
# Generic addresses, except for: (kernels, access, most of them, what they are).
FEW_ROWS = "gemm_wgmma_(16|32|64)x"
GENERIC = [(FEW_ROWS + ".*", "LD.128", 8, "other blocks' sums: the instruction that distributed shared memory is read with")]
# Products are made by these: mma.sync from what ldmatrix read, or wgmma from what TMA loaded, stored by TMA.
TENSOR = [
    (re.compile(r"gemm_wgmma_128x"), ["HGMMA", "UTMALDG", "UTMASTG"]),
    (re.compile(FEW_ROWS), ["HGMMA", "UTMALDG", "LD.128"]),
    (re.compile(r"attention_wgmma_"), ["HGMMA", "UTMALDG"]),
    (re.compile(r"(?:(?:gemm|attention)(?!_wgmma)|persistent_encoder)_"), ["HMMA", "LDSM"]),
]


def problems(images, logs):
    """`images`: {unit: (fatbin, {architecture: {kernel: Usage}})}."""
    found = compiler("all.cu", logs["all.cu"])
    for arch, kernels in images["all.cu"][1].items():
        for name, usage in kernels.items():
            wrong = local_memory(usage) + accesses(name, usage) + launch(arch, name, usage)
            found += [f"{arch} {name}: {what}" for what in wrong]
    return found + serialised("conformance.cu", logs["conformance.cu"])  # which tries every access there is


def compiler(unit, log):
    """Spills and any other warning."""
    found = [f"{unit}: {kernel} spills {size} bytes" for kernel, size in spill_bytes(log).items()]
    return found + [f"{unit}: {line.strip()}" for line in log.splitlines() if "warning" in line.lower()] + serialised(unit, log)


def serialised(unit, log):
    """C75xx: setmaxnreg ignored, wgmma serialised. Not C7519, which says that an arrive was put in where it belongs."""
    return [f"{unit}: {line.strip()}" for line in log.splitlines() if re.search(r"\bC75(?!19)\d\d\b", line)]


def names(unit, ptx):
    """Internal linkage: nvcc puts a hash of the source's folder into such names, and thus into the image."""
    found = sorted(set(re.findall(r"\w*_INTERNAL_\w*", ptx)))
    return [f"{unit}: {name}: a name that depends on the folder: not static, or into the kernel" for name in found]


def local_memory(usage):
    found = [f"{n} bytes of {what}" for what, n in [("stack", usage.stack), ("local memory", usage.local)] if n]
    return found + [f"{n} {op}: local memory" for op, n in usage.accesses.items() if op.startswith(("LDL", "STL"))]


def accesses(name, usage):
    """Atomics (their order is not fixed), generic addresses (slower, and of unknown space), narrow accesses."""
    found = []
    for op, count in sorted(usage.accesses.items()):
        base = op.split(".")[0]
        if base in ("ATOM", "ATOMG", "RED", "REDG"):
            found.append(f"{count} {op}: atomics sum in no fixed order")
        elif base in ("LD", "ST") and count > sum(most for kernel, access, most, _ in GENERIC if re.fullmatch(kernel, name) and access == op):
            found.append(f"{count} {op}: a generic address, where a global or shared one is meant")
        elif base in ("LDG", "STG", "LDGSTS") and not op.endswith(".128"):
            allowed = sum(most for kernel, access, most, _ in NARROW if re.fullmatch(kernel, name) and access == op)
            if count > allowed:
                found.append(f"{count} {op}, {allowed} allowed: 16 bytes a lane are wanted")
    for kernels, needed in TENSOR:
        if kernels.match(name) and not all(usage.accesses[op] for op in needed):
            found.append(f"no {' or no '.join(needed)}: not on the tensor cores as it should be")
    return found


def launch(arch, name, usage):
    if not usage.threads:
        return ["no launch bounds: KERNEL(threads, ...) names the block size"]
    shared = usage.static_shared + sources.dynamic_shared(name)
    if blocks_per_sm(arch, usage.threads, usage.registers, shared) == 0:
        return [f"{usage.threads} threads, {usage.registers} registers and {shared} bytes of shared memory do not fit"]
    return []
