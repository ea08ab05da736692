//! The threads that an embedder was given: the caller's own, and helpers that wait for its work.
//!
//! Work is cut into units, which whoever is free claims one at a time. So a helper that is late or preempted keeps no unit
//! from the others, and a call ends when every unit is done, not when every thread has been there. A helper that finds
//! nothing looks on for a moment, because a layer's steps follow one another within microseconds and waking a sleeper
//! takes longer than many a step; then it sleeps. (On two threads, rayon's pool took 1.5 times as long for a text of 16
//! tokens: it wakes sleepers for each step, and the caller's thread hands its work over and sleeps.)
#![allow(unsafe_code, reason = "helpers call a closure that the caller has borrowed")]

use crate::error::{Error, Result};
use std::any::Any;
use std::cell::Cell;
use std::num::NonZeroUsize;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::{AtomicBool, AtomicPtr, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// For so long a thread looks on before it sleeps: longer than what lies between two steps of a layer or, in a closed
/// loop, between two texts, and short beside a sleeper's way back (some 50 µs on a virtual machine).
const LOOK_ON: Duration = Duration::from_micros(100);
/// Looks between two glances at the clock.
const LOOKS: usize = 64;

thread_local! {
    /// Whether this thread is at work on a unit: what that calls in turn runs on it alone.
    static AT_WORK: Cell<bool> = const { Cell::new(false) };
}

/// A fixed number of threads, the caller's among them. With one, no thread is made.
///
/// Callers from several threads take turns, so that there are never more at work.
#[derive(Debug, Clone)]
pub struct Threads {
    count: usize,
    team: Option<Arc<Team>>,
}

impl Threads {
    /// Makes the threads; `None` asks the operating system how many it offers.
    ///
    /// # Errors
    /// [`Error::InvalidOption`] if the operating system refuses them.
    pub fn new(count: Option<NonZeroUsize>) -> Result<Self> {
        let count = count.or_else(|| std::thread::available_parallelism().ok()).map_or(1, NonZeroUsize::get);
        let team = if count == 1 { None } else { Some(Arc::new(Team::new(count)?)) };
        Ok(Self { count, team })
    }

    /// How many.
    pub fn count(&self) -> usize {
        self.count
    }

    /// Calls `f` for each index below `n`, on all threads, one index at a time to whoever is free.
    ///
    /// # Panics
    /// If a call of `f` does, once all others are done.
    pub fn for_each(&self, n: usize, f: impl Fn(usize) + Send + Sync) {
        match &self.team {
            Some(team) if n > 1 && !AT_WORK.get() => team.run(n, &f),
            _ => (0..n).for_each(f),
        }
    }

    /// Calls `f` for each item with its index, as [`for_each`](Self::for_each) does.
    ///
    /// # Panics
    /// As [`for_each`](Self::for_each).
    pub fn for_each_mut<T: Send>(&self, items: &mut [T], f: impl Fn(usize, &mut T) + Send + Sync) {
        let n = items.len();
        let items = Items(items.as_mut_ptr());
        self.for_each(n, |i| {
            let item = items.at(i);
            // SAFETY: `i` is below the number of items, which this call has borrowed, and is given to one unit only
            f(i, unsafe { &mut *item });
        });
    }

    /// `f` of each item, in order, on all threads.
    ///
    /// # Panics
    /// As [`for_each`](Self::for_each).
    pub fn map<T: Sync, R: Send>(&self, items: &[T], f: impl Fn(&T) -> R + Send + Sync) -> Vec<R> {
        if self.team.is_none() || items.len() < 2 {
            return items.iter().map(f).collect();
        }
        let mut results: Vec<_> = items.iter().map(|_| None).collect();
        self.for_each_mut(&mut results, |i, result| *result = Some(f(&items[i])));
        results.into_iter().map(|result| result.expect("every unit was done")).collect()
    }
}

/// The first of some items, of which units on several threads have one each.
struct Items<T>(*mut T);

// SAFETY: what is shared is where the items are; a unit has its item alone, so that items only go from thread to thread
unsafe impl<T: Send> Sync for Items<T> {}

impl<T> Items<T> {
    fn at(&self, i: usize) -> *mut T {
        self.0.wrapping_add(i)
    }
}

/// Helpers, and the caller whose turn it is.
#[derive(Debug)]
struct Team {
    shared: Arc<Shared>,
    turn: Mutex<()>,
    helpers: Vec<JoinHandle<()>>,
}

#[derive(Debug, Default)]
struct Shared {
    /// Units that nobody has claimed.
    unclaimed: Line<AtomicUsize>,
    /// Units that are not done.
    pending: Line<AtomicUsize>,
    /// Whose they are: alive for as long as one of them is pending.
    job: AtomicPtr<Job<'static>>,
    closing: AtomicBool,
    /// Where helpers wait.
    work: Gate,
    /// Where the caller waits.
    finished: Gate,
}

/// On cache lines of its own (two: processors fetch them in pairs).
#[derive(Debug, Default)]
#[repr(align(128))]
struct Line<T>(T);

struct Job<'a> {
    units: usize,
    f: &'a (dyn Fn(usize) + Sync),
    /// The first panic of a unit.
    panic: Mutex<Option<Box<dyn Any + Send>>>,
}

impl Team {
    fn new(count: usize) -> Result<Self> {
        let mut team = Self { shared: Arc::default(), turn: Mutex::default(), helpers: Vec::new() };
        for i in 1..count {
            let shared = team.shared.clone();
            let helper = std::thread::Builder::new()
                .name(format!("berthier-{i}"))
                .spawn(move || shared.help())
                .map_err(|e| Error::InvalidOption { name: "threads", message: format!("{count}: {e}") })?;
            team.helpers.push(helper);
        }
        Ok(team)
    }

    fn run(&self, units: usize, f: &(dyn Fn(usize) + Sync)) {
        let turn = lock(&self.turn);
        let job = Job { units, f, panic: Mutex::default() };
        let shared = &*self.shared;
        shared.job.store((&raw const job).cast_mut().cast(), Ordering::Relaxed);
        shared.pending.0.store(units, Ordering::Relaxed);
        shared.unclaimed.0.store(units, Ordering::SeqCst);
        shared.work.ring(units - 1);

        AT_WORK.set(true);
        while shared.work_on_one() {}
        AT_WORK.set(false);
        shared.finished.wait(|| shared.pending.0.load(Ordering::SeqCst) == 0);
        drop(turn);
        if let Some(panic) = job.panic.into_inner().unwrap_or_else(PoisonError::into_inner) {
            resume_unwind(panic);
        }
    }
}

impl Drop for Team {
    fn drop(&mut self) {
        self.shared.closing.store(true, Ordering::SeqCst);
        self.shared.work.ring(usize::MAX);
        for helper in self.helpers.drain(..) {
            // what a unit panicked with went to its caller; helpers have no panics of their own
            let _ = helper.join();
        }
    }
}

impl Shared {
    /// The life of a helper.
    fn help(&self) {
        AT_WORK.set(true);
        let closing = || self.closing.load(Ordering::SeqCst);
        while !closing() {
            while self.work_on_one() {}
            self.work.wait(|| self.unclaimed.0.load(Ordering::SeqCst) > 0 || closing());
        }
    }

    /// Claims a unit and does it; false if there is none.
    fn work_on_one(&self) -> bool {
        let claim = |unclaimed: usize| unclaimed.checked_sub(1);
        // whichever job's it is: what is read of a job is read behind the claim
        let Ok(left) = self.unclaimed.0.fetch_update(Ordering::Acquire, Ordering::Relaxed, claim) else {
            return false;
        };
        // SAFETY: the unit that was just claimed is pending, so its caller waits in `run`, where the job lives; the
        // claim has read what `run` wrote to `unclaimed`, or what followed it, so the pointer is that job's
        let job = unsafe { &*self.job.load(Ordering::Relaxed) };
        if let Err(panic) = catch_unwind(AssertUnwindSafe(|| (job.f)(job.units - left))) {
            lock(&job.panic).get_or_insert(panic);
        }
        if self.pending.0.fetch_sub(1, Ordering::SeqCst) == 1 {
            self.finished.ring(1);
        }
        true
    }
}

/// Where threads wait for something that another one does before it rings.
#[derive(Debug, Default)]
struct Gate {
    asleep: AtomicUsize,
    lock: Mutex<()>,
    bell: Condvar,
}

impl Gate {
    /// Looks on until `ready`, then sleeps until `ready`, which loads with `SeqCst`.
    fn wait(&self, ready: impl Fn() -> bool) {
        let mut since = None;
        loop {
            for _ in 0..LOOKS {
                if ready() {
                    return;
                }
                std::hint::spin_loop();
            }
            if since.get_or_insert_with(Instant::now).elapsed() >= LOOK_ON {
                break;
            }
            // to a thread that we may be waiting for, where there are fewer cores than threads
            std::thread::yield_now();
        }
        let mut guard = lock(&self.lock);
        self.asleep.fetch_add(1, Ordering::SeqCst);
        while !ready() {
            guard = self.bell.wait(guard).unwrap_or_else(PoisonError::into_inner);
        }
        self.asleep.fetch_sub(1, Ordering::SeqCst);
    }

    /// Wakes up to `n` of those that sleep; what they wait for was stored with `SeqCst`.
    fn ring(&self, n: usize) {
        // in the one order of all SeqCst operations, either this load sees the sleeper or the sleeper's last look comes
        // behind the store: nobody sleeps through it
        let asleep = self.asleep.load(Ordering::SeqCst);
        if asleep > 0 {
            // whoever has looked and not slept yet still holds it
            drop(lock(&self.lock));
            (0..n.min(asleep)).for_each(|_| self.bell.notify_one());
        }
    }
}

/// What the locks here guard is whole after every statement.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;
    use std::thread::ThreadId;

    fn threads(n: usize) -> Threads {
        Threads::new(NonZeroUsize::new(n)).unwrap()
    }

    /// How often each of `n` units is done, and by whom.
    fn done(threads: &Threads, n: usize) -> (Vec<usize>, HashSet<ThreadId>) {
        let counts: Vec<_> = (0..n).map(|_| AtomicUsize::new(0)).collect();
        let who = Mutex::new(HashSet::new());
        threads.for_each(n, |i| {
            counts[i].fetch_add(1, Ordering::Relaxed);
            lock(&who).insert(std::thread::current().id());
        });
        (counts.into_iter().map(AtomicUsize::into_inner).collect(), who.into_inner().unwrap())
    }

    #[test]
    fn for_each_does_each_unit_once_on_no_more_threads_than_given() {
        for count in [1, 2, 3, 8] {
            let threads = threads(count);
            let mut all = HashSet::new();
            for n in (0..20).chain([1000]).chain([2; 300]) {
                let (counts, who) = done(&threads, n);
                assert_eq!(counts, vec![1; n], "{count} threads");
                all.extend(who);
            }
            assert!(all.len() <= count && all.contains(&std::thread::current().id()), "{count}: {all:?}");
        }
    }

    #[test]
    fn for_each_finds_helpers_that_sleep() {
        let threads = threads(3);
        for _ in 0..5 {
            std::thread::sleep(20 * LOOK_ON);
            // three units that wait for each other: all three threads must come
            let arrived = AtomicUsize::new(0);
            threads.for_each(3, |_| {
                arrived.fetch_add(1, Ordering::SeqCst);
                while arrived.load(Ordering::SeqCst) < 3 {
                    std::thread::yield_now();
                }
            });
        }
    }

    #[test]
    fn for_each_leaves_nothing_to_a_thread_that_is_held_up() {
        let (threads, n) = (threads(2), 50);
        let others = AtomicUsize::new(0);
        // whoever has the first unit does not come back before all others are done
        threads.for_each(n, |i| {
            if i > 0 {
                others.fetch_add(1, Ordering::SeqCst);
            }
            while i == 0 && others.load(Ordering::SeqCst) < n - 1 {
                std::thread::yield_now();
            }
        });
        assert_eq!(others.into_inner(), n - 1);
    }

    #[test]
    fn for_each_waits_for_units_of_others() {
        let threads = threads(2);
        for wait in [LOOK_ON / 10, 20 * LOOK_ON] {
            let arrived = AtomicUsize::new(0);
            let slow = AtomicUsize::new(0);
            let caller = std::thread::current().id();
            threads.for_each(2, |_| {
                arrived.fetch_add(1, Ordering::SeqCst);
                while arrived.load(Ordering::SeqCst) < 2 {
                    std::thread::yield_now();
                }
                if std::thread::current().id() != caller {
                    std::thread::sleep(wait);
                    slow.fetch_add(1, Ordering::SeqCst);
                }
            });
            assert_eq!(slow.into_inner(), 1);
        }
    }

    #[test]
    fn for_each_within_a_unit_stays_on_its_thread() {
        let (outer, inner) = (threads(2), threads(2));
        for threads in [&outer, &inner] {
            outer.for_each(4, |_| {
                let (counts, who) = done(threads, 10);
                assert_eq!(counts, [1; 10]);
                assert_eq!(who, HashSet::from([std::thread::current().id()]));
            });
        }
        assert_eq!(done(&outer, 10).0, [1; 10], "and the caller is free again");
    }

    #[test]
    fn for_each_from_several_callers_takes_turns() {
        let threads = threads(3);
        let (now, most) = (AtomicUsize::new(0), AtomicUsize::new(0));
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    for _ in 0..50 {
                        let sum = AtomicUsize::new(0);
                        threads.for_each(20, |i| {
                            most.fetch_max(1 + now.fetch_add(1, Ordering::SeqCst), Ordering::SeqCst);
                            sum.fetch_add(i, Ordering::SeqCst);
                            now.fetch_sub(1, Ordering::SeqCst);
                        });
                        assert_eq!(sum.into_inner(), 190);
                    }
                });
            }
        });
        assert!(most.into_inner() <= 3);
    }

    #[test]
    fn for_each_passes_a_panic_on_and_goes_on() {
        let threads = threads(2);
        for _ in 0..20 {
            let count = AtomicUsize::new(0);
            let panic = catch_unwind(AssertUnwindSafe(|| {
                threads.for_each(10, |i| {
                    count.fetch_add(1, Ordering::Relaxed);
                    assert!(i != 3, "unit three");
                });
            }));
            assert_eq!(panic.unwrap_err().downcast_ref(), Some(&"unit three"));
            assert_eq!((count.into_inner(), done(&threads, 5).0), (10, vec![1; 5]));
        }
    }

    #[test]
    fn for_each_mut_gives_each_item_once() {
        for count in [1, 2, 4] {
            let mut items: Vec<_> = (0..500).map(|i| vec![i]).collect();
            threads(count).for_each_mut(&mut items, |i, item| item.push(2 * i));
            assert!(items.iter().enumerate().all(|(i, item)| *item == [i, 2 * i]));
        }
    }

    #[test]
    fn map_keeps_the_order() {
        let items: Vec<usize> = (0..500).collect();
        for count in [1, 2, 4] {
            let squares = threads(count).map(&items, |&i| i * i);
            assert!(squares.iter().enumerate().all(|(i, &s)| s == i * i));
        }
    }
}
