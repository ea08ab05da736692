//! The x86-64 instruction sets: the only place with intrinsics.

use super::Isa;
use super::gemm::NarrowKernels;

/// A method of a token that is one intrinsic (or a few) and needs nothing but the features that the token proves, and
/// slices as long as it asserts.
macro_rules! op {
    ($name:ident($($arg:ident: $ty:ty),*) -> $ret:ty, $body:expr) => {
        #[inline(always)]
        #[allow(clippy::multiple_unsafe_ops_per_block, reason = "intrinsics with one common reason")]
        fn $name(self, $($arg: $ty),*) -> $ret {
            // SAFETY: the token proves the features; slices are as long as asserted
            unsafe { $body }
        }
    };
}

/// `Vector::opaque` of a token.
macro_rules! opaque {
    () => {
        #[inline(always)]
        #[allow(clippy::pointers_in_nomem_asm_block, reason = "nothing is read through it")]
        fn opaque(self, mut p: *const f32) -> *const f32 {
            // SAFETY: no instruction at all
            unsafe { asm!("/* {} */", inout(reg) p, options(pure, nomem, nostack, preserves_flags)) };
            p
        }
    };
}

mod amx;
pub(super) mod avx2;
pub(super) mod avx512;
mod int8;

/// Kernels for narrow numbers that this machine can run, of each sort of number the best first. Those of one instruction
/// set give the same bits: which of them a machine has is no part of a vector's name.
pub(super) fn narrow_kernels(isa: Isa) -> Vec<&'static NarrowKernels> {
    let mut all = match isa {
        Isa::Avx512 => amx::kernels(),
        Isa::Avx2 | Isa::Portable => Vec::new(),
    };
    all.extend(int8::kernels(isa));
    all
}

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
