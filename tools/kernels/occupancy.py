"""Blocks of a kernel that fit on a multiprocessor. src/backend/cuda/occupancy.rs computes the same."""

# CUDA C++ Programming Guide 13.0, "Compute Capabilities": threads, blocks and bytes of shared memory of a multiprocessor.
LIMITS = {
    "sm_80": (2048, 32, 164 << 10),
    "sm_86": (1536, 16, 100 << 10),
    "sm_89": (1536, 24, 100 << 10),
    "sm_90": (2048, 32, 228 << 10),
    "sm_100": (2048, 32, 228 << 10),
    "sm_120": (1536, 24, 100 << 10),
}
REGISTERS = 64 << 10
# Registers are given to whole warps in units of 256, to warps in fours (one a scheduler); a block takes 1 KiB of shared
# memory for the system, and shared memory in units of 128 bytes.
REGISTER_UNIT, WARP_UNIT, SHARED_UNIT, RESERVED_SHARED = 256, 4, 128, 1024


def round_up(n, unit):
    return -(-n // unit) * unit


def blocks_per_sm(arch, threads, registers, shared):
    """How many blocks of `threads` with `registers` each and `shared` bytes, static and dynamic."""
    max_threads, max_blocks, max_shared = LIMITS[arch.rstrip("af")]
    warps = -(-max(threads, 1) // 32)
    by_registers = REGISTERS // round_up(registers * 32, REGISTER_UNIT) // WARP_UNIT * WARP_UNIT // warps
    by_shared = max_shared // round_up(shared + RESERVED_SHARED, SHARED_UNIT)
    return min(max_threads // (warps * 32), max_blocks, by_registers, by_shared)
