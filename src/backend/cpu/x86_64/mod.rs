//! The x86-64 instruction sets: the only place with intrinsics.

pub(super) mod amx;
pub(super) mod avx2;
pub(super) mod avx512;

/// Bytes of one core's level 2 cache, as the processor tells (Intel and AMD alike: leaf 0x8000_0006).
pub(super) fn l2_bytes() -> Option<usize> {
    const LEAF: u32 = 0x8000_0006;
    let cpuid = std::arch::x86_64::__cpuid;
    if cpuid(0x8000_0000).eax < LEAF {
        return None;
    }
    let kib = (cpuid(LEAF).ecx >> 16) as usize;
    (kib > 0).then_some(kib << 10)
}
