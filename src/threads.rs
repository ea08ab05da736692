//! The threads that an embedder was given: one pool for tokenising and computing, or the caller's thread.

use crate::error::{Error, Result};
use rayon::prelude::*;
use std::num::NonZeroUsize;
use std::sync::Arc;

/// A fixed number of threads. With one, work runs on the caller's thread and no thread is made.
#[derive(Debug, Clone)]
pub struct Threads {
    count: usize,
    pool: Option<Arc<rayon::ThreadPool>>,
}

impl Threads {
    /// Makes the threads; `None` asks the operating system how many it offers.
    ///
    /// # Errors
    /// [`Error::InvalidOption`] if the operating system refuses them.
    pub fn new(count: Option<NonZeroUsize>) -> Result<Self> {
        let count = count.or_else(|| std::thread::available_parallelism().ok()).map_or(1, NonZeroUsize::get);
        if count == 1 {
            return Ok(Self { count, pool: None });
        }
        let pool = rayon::ThreadPoolBuilder::new()
            .num_threads(count)
            .thread_name(|i| format!("berthier-{i}"))
            .build()
            .map_err(|e| Error::InvalidOption { name: "threads", message: format!("{count}: {e}") })?;
        Ok(Self { count, pool: Some(Arc::new(pool)) })
    }

    /// How many.
    pub fn count(&self) -> usize {
        self.count
    }

    /// Calls `f` for each index below `n`, on all threads, one index at a time to whoever is free.
    pub fn for_each(&self, n: usize, f: impl Fn(usize) + Send + Sync) {
        match &self.pool {
            Some(pool) if n > 1 => pool.install(|| (0..n).into_par_iter().with_max_len(1).for_each(f)),
            _ => (0..n).for_each(f),
        }
    }

    /// `f` of each item, in order, on all threads.
    pub fn map<T: Sync, R: Send>(&self, items: &[T], f: impl Fn(&T) -> R + Send + Sync) -> Vec<R> {
        match &self.pool {
            Some(pool) if items.len() > 1 => pool.install(|| items.par_iter().map(f).collect()),
            _ => items.iter().map(f).collect(),
        }
    }
}
