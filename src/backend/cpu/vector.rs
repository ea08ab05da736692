//! What the kernels need of an instruction set: a token whose methods are its vector operations.
//!
//! A token is made by a `#[target_feature]` function, so whoever holds one runs on a machine that has the
//! features; that is what makes the methods safe. Every generic function over `Vector` is
//! `#[inline(always)]`: only inlined into a `#[target_feature]` function does it compile to the features.

/// f32 vectors of one instruction set.
pub(super) trait Vector: Copy {
    /// `LANES` floats.
    type F: Copy;
    /// Floats of a vector.
    const LANES: usize;
    /// Whether a table of sixteen fits a register, for `lookup`.
    const LOOKS_UP: bool = false;
    /// Whether a product fetches the panel that it reads ahead in every block of rows, or only where no block before could.
    const FETCHES_AGAIN: bool;

    fn splat(self, x: f32) -> Self::F;

    /// # Safety
    /// `p` points to `LANES` readable floats, of any alignment a float may have.
    unsafe fn load_raw(self, p: *const f32) -> Self::F;

    /// # Safety
    /// `p` points to `LANES` writable floats, of any alignment a float may have.
    unsafe fn store_raw(self, v: Self::F, p: *mut f32);

    /// Brings the cache line of `p` near; `p` may point anywhere.
    fn prefetch(self, p: *const f32);
    /// As `prefetch`, as far as the level 2 cache.
    fn prefetch_far(self, p: *const f32);

    /// `p`, without the compiler knowing where it comes from.
    #[inline(always)]
    fn opaque(self, p: *const f32) -> *const f32 {
        p
    }

    fn add(self, a: Self::F, b: Self::F) -> Self::F;
    fn sub(self, a: Self::F, b: Self::F) -> Self::F;
    fn mul(self, a: Self::F, b: Self::F) -> Self::F;
    fn div(self, a: Self::F, b: Self::F) -> Self::F;
    /// a · b + c, rounded once where the instruction set can.
    fn mul_add(self, a: Self::F, b: Self::F, c: Self::F) -> Self::F;
    /// c − a · b, rounded once where the instruction set can.
    fn neg_mul_add(self, a: Self::F, b: Self::F, c: Self::F) -> Self::F;
    /// `a > b ? a : b`, so `b` if either is NaN.
    fn max(self, a: Self::F, b: Self::F) -> Self::F;
    /// `a < b ? a : b`, so `b` if either is NaN.
    fn min(self, a: Self::F, b: Self::F) -> Self::F;
    fn abs(self, a: Self::F) -> Self::F;
    /// a · 2ⁿ for integer-valued n from −126 to 128 and a in [0.5, 2).
    fn scale2(self, a: Self::F, n: Self::F) -> Self::F;
    /// 2ⁿ, where the lowest nine bits of each lane's bit pattern are n + 127, which is from 0 to 254; 0 where it is 0.
    fn power_of_2(self, shifted: Self::F) -> Self::F;
    /// `a < b ? x : y`.
    fn select_lt(self, a: Self::F, b: Self::F, x: Self::F, y: Self::F) -> Self::F;
    /// `table[i]`, where i is the lowest four bits of each lane's bit pattern.
    ///
    /// # Panics
    /// If the instruction set does not look up.
    #[inline(always)]
    fn lookup(self, _table: &[f32; 16], _at: Self::F) -> Self::F {
        unreachable!("asked for only where LOOKS_UP says so")
    }
    /// The sum of the lanes, in an order of its own that never changes.
    fn sum(self, a: Self::F) -> f32;
    /// The greatest lane.
    fn greatest(self, a: Self::F) -> f32;

    /// The first `LANES` floats of `x`.
    #[inline(always)]
    fn load(self, x: &[f32]) -> Self::F {
        assert!(x.len() >= Self::LANES, "a vector's worth of floats");
        // SAFETY: the assertion leaves LANES readable floats
        unsafe { self.load_raw(x.as_ptr()) }
    }

    /// Over the first `LANES` floats of `x`.
    #[inline(always)]
    fn store(self, v: Self::F, x: &mut [f32]) {
        assert!(x.len() >= Self::LANES, "room for a vector");
        // SAFETY: the assertion leaves LANES writable floats
        unsafe { self.store_raw(v, x.as_mut_ptr()) }
    }

    /// Fewer than `LANES` floats; the other lanes are `fill`.
    #[inline(always)]
    fn load_tail(self, x: &[f32], fill: f32) -> Self::F {
        let mut lanes = [fill; MAX_LANES];
        lanes[..x.len()].copy_from_slice(x);
        self.load(&lanes)
    }

    /// The first `x.len()` lanes, fewer than `LANES`.
    #[inline(always)]
    fn store_tail(self, v: Self::F, x: &mut [f32]) {
        let mut lanes = [0.0; MAX_LANES];
        self.store(v, &mut lanes);
        x.copy_from_slice(&lanes[..x.len()]);
    }
}

/// Of any instruction set.
pub(super) const MAX_LANES: usize = 16;

/// What reads numbers of 16 bits as quickly as f32; every one of them is an f32 exactly.
pub(super) trait HalfVector: Vector {
    /// # Safety
    /// `p` points to `LANES` readable f16, at any address.
    unsafe fn load_f16(self, p: *const u8) -> Self::F;

    /// The low and the high halves of words, which are bf16.
    ///
    /// # Safety
    /// `p` points to `LANES` readable words, at any address.
    unsafe fn load_bf16(self, p: *const u8) -> [Self::F; 2];
}
