//! Who works on a tile: the thread that has it, or all of them.

use super::workspace::Pool;
use crate::threads::Threads;

/// One thread, or all.
#[derive(Clone, Copy)]
pub(super) enum Team<'a> {
    One,
    All(&'a Threads),
}

impl Team<'_> {
    pub(super) fn threads(self) -> usize {
        match self {
            Self::One => 1,
            Self::All(threads) => threads.count(),
        }
    }

    /// Calls `f` for each index below `n`.
    pub(super) fn for_each(self, n: usize, f: impl Fn(usize) + Send + Sync) {
        match self {
            Self::One => (0..n).for_each(f),
            Self::All(threads) => threads.for_each(n, f),
        }
    }

    /// As `for_each`, with something of the pool for each call.
    pub(super) fn for_each_with<T: Send>(
        self,
        n: usize,
        pool: &Pool<T>,
        f: impl Fn(usize, &mut T) + Send + Sync,
    ) {
        match self {
            // taken once: threads that each work on a tile of their own do not meet at the pool's lock
            Self::One => pool.with(|item| (0..n).for_each(|i| f(i, item))),
            Self::All(threads) => threads.for_each(n, |i| pool.with(|item| f(i, item))),
        }
    }
}
