//! Several devices, or one that computes while the next batch is packed: one queue of batches, from which a thread for
//! each device pulls.
//!
//! Work is pulled, never dealt: a slow device takes fewer batches and delays nobody else's. A batch owns its tokens and its
//! vectors, so that a call that is given up leaves nothing behind that is borrowed. Knows nothing of texts and rows.

use crate::backend::Backend;
use crate::batch::{PackedBatch, Plan};
use crate::error::{Error, Result};
use std::any::Any;
use std::collections::VecDeque;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;

/// One batch and the place of its vectors, `[batch, dim]`, and a window's plan. Kept for their memory.
#[derive(Debug, Default)]
pub(super) struct Buffers {
    pub(super) batch: PackedBatch,
    pub(super) vectors: Vec<f32>,
    pub(super) plan: Plan,
}

/// Devices with a thread each.
pub(super) struct Pool {
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
}

struct Shared {
    queue: Mutex<Queue>,
    /// A batch came, or the end.
    work: Condvar,
    devices: Vec<Worker>,
    /// Batches that all devices together take at a time.
    in_flight: usize,
}

struct Worker {
    name: String,
    in_flight: usize,
    /// None once it has failed. Held while it computes.
    backend: Mutex<Option<Box<dyn Backend>>>,
}

#[derive(Default)]
struct Queue {
    jobs: VecDeque<Job>,
    /// Devices that have not failed.
    alive: usize,
    /// Of these, those that no thread serves at the moment.
    idle: usize,
    closed: bool,
    /// Name and message of each device that failed, in that order.
    failures: Vec<(String, String)>,
    spares: Vec<Buffers>,
}

/// One batch of one call.
struct Job {
    call: Arc<Inbox>,
    tag: (usize, usize),
    buffers: Buffers,
}

/// Where a call's batches come back to.
#[derive(Default)]
struct Inbox {
    done: Mutex<VecDeque<Done>>,
    ready: Condvar,
    abandoned: AtomicBool,
}

/// A batch that came back.
pub(super) struct Done {
    /// As it was pushed.
    pub(super) tag: (usize, usize),
    pub(super) buffers: Buffers,
    /// Whether the vectors are there. Otherwise its device failed, and the batch has lost its tokens.
    pub(super) computed: bool,
}

/// One caller's batches. Those that are not done are given up when it is dropped.
pub(super) struct Call<'p> {
    pool: &'p Pool,
    /// Since the first push.
    inbox: Option<Arc<Inbox>>,
    /// Pushed and not taken back.
    outstanding: usize,
}

/// Mutexes here guard plain data that is whole after every statement: a panic elsewhere is no reason to stop.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Pool {
    /// Starts a thread for each backend.
    ///
    /// # Errors
    /// [`Error::InvalidOption`] if the operating system refuses a thread.
    pub(super) fn new(backends: Vec<Box<dyn Backend>>) -> Result<Self> {
        let devices: Vec<_> = backends
            .into_iter()
            .map(|backend| Worker {
                name: backend.name(),
                in_flight: backend.capacity().in_flight.max(1),
                backend: Mutex::new(Some(backend)),
            })
            .collect();
        let shared = Arc::new(Shared {
            queue: Mutex::new(Queue { alive: devices.len(), idle: devices.len(), ..Queue::default() }),
            work: Condvar::new(),
            in_flight: devices.iter().map(|d| d.in_flight).sum(),
            devices,
        });
        let mut pool = Self { shared: shared.clone(), threads: Vec::new() };
        for i in 0..shared.devices.len() {
            let shared = shared.clone();
            let thread = std::thread::Builder::new()
                .name(format!("berthier-device-{i}"))
                .spawn(move || shared.work(i))
                .map_err(|e| Error::InvalidOption {
                    name: "device",
                    message: format!("a thread for it: {e}"),
                })?;
            pool.threads.push(thread);
        }
        Ok(pool)
    }

    /// Batches that all devices together take at a time.
    pub(super) fn in_flight(&self) -> usize {
        self.shared.in_flight
    }

    /// What each device that failed said, with its name.
    pub(super) fn failures(&self) -> Vec<String> {
        lock(&self.shared.queue).failures.iter().map(|(name, message)| format!("{name}: {message}")).collect()
    }

    /// Each backend that has not failed, when it is free.
    pub(super) fn each(&self, mut f: impl FnMut(&mut dyn Backend) -> Result<()>) -> Result<()> {
        for device in &self.shared.devices {
            if let Some(backend) = lock(&device.backend).as_mut() {
                f(&mut **backend)?;
            }
        }
        Ok(())
    }

    /// Memory for a batch: another one's that is done, or none yet.
    pub(super) fn spare(&self) -> Buffers {
        lock(&self.shared.queue).spares.pop().unwrap_or_default()
    }

    /// Gives memory back.
    pub(super) fn give_back(&self, buffers: Buffers) {
        lock(&self.shared.queue).keep(buffers, 2 * self.shared.in_flight);
    }

    /// Opens a call.
    pub(super) fn call(&self) -> Call<'_> {
        Call { pool: self, inbox: None, outstanding: 0 }
    }

    /// Computes one batch on the caller's own thread, if a device is free and nobody waits: without the way to another
    /// thread and back, which a single text would feel. Otherwise, or if the device fails, gives it back as not computed.
    pub(super) fn try_now(&self, mut buffers: Buffers) -> (Buffers, bool) {
        if !lock(&self.shared.queue).jobs.is_empty() {
            return (buffers, false);
        }
        for (i, device) in self.shared.devices.iter().enumerate() {
            let Ok(mut guard) = device.backend.try_lock() else { continue };
            let Some(backend) = guard.as_mut() else { continue };
            let batch = std::mem::take(&mut buffers.batch);
            let result = guarded(|| {
                backend.submit(batch)?;
                backend.collect(&mut buffers.vectors)
            });
            match result {
                Ok(batch) => {
                    buffers.batch = batch;
                    return (buffers, true);
                }
                Err(error) => {
                    lock(&self.shared.queue).idle -= 1;
                    self.shared.lose(i, guard, &error);
                    return (buffers, false);
                }
            }
        }
        (buffers, false)
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        lock(&self.shared.queue).closed = true;
        self.shared.work.notify_all();
        for thread in self.threads.drain(..) {
            // a panic of a backend was caught; there is none of ours to report from here
            let _ = thread.join();
        }
    }
}

impl Call<'_> {
    /// Queues a batch; its vectors' length is set by the caller.
    ///
    /// # Errors
    /// [`Error::DeviceLost`] if no device is left.
    pub(super) fn push(&mut self, tag: (usize, usize), buffers: Buffers) -> Result<()> {
        let mut queue = lock(&self.pool.shared.queue);
        if queue.alive == 0 {
            return Err(queue.lost());
        }
        let call = self.inbox.get_or_insert_default().clone();
        queue.jobs.push_back(Job { call, tag, buffers });
        drop(queue);
        // all: the one that hears it may have to wait for a caller who has its device
        self.pool.shared.work.notify_all();
        self.outstanding += 1;
        Ok(())
    }

    /// Batches that were pushed and not taken back.
    pub(super) fn outstanding(&self) -> usize {
        self.outstanding
    }

    /// A batch that has come back, in whatever order.
    pub(super) fn try_take(&mut self) -> Option<Done> {
        let done = lock(&self.inbox.as_ref()?.done).pop_front()?;
        self.outstanding -= 1;
        Some(done)
    }

    /// Waits for a batch.
    ///
    /// # Panics
    /// If none is outstanding.
    pub(super) fn take(&mut self) -> Done {
        assert!(self.outstanding > 0, "something to wait for");
        self.outstanding -= 1;
        let inbox = self.inbox.as_ref().expect("what is outstanding was pushed");
        let mut done = lock(&inbox.done);
        loop {
            match done.pop_front() {
                Some(done) => return done,
                None => done = inbox.ready.wait(done).unwrap_or_else(PoisonError::into_inner),
            }
        }
    }
}

impl Drop for Call<'_> {
    fn drop(&mut self) {
        if let Some(inbox) = &self.inbox {
            inbox.abandoned.store(true, Ordering::Relaxed);
        }
    }
}

impl Inbox {
    fn put(&self, tag: (usize, usize), buffers: Buffers, computed: bool) {
        lock(&self.done).push_back(Done { tag, buffers, computed });
        self.ready.notify_one();
    }
}

impl Queue {
    fn keep(&mut self, buffers: Buffers, at_most: usize) {
        if self.spares.len() < at_most {
            self.spares.push(buffers);
        }
    }

    /// The failure of the last device.
    fn lost(&self) -> Error {
        let (device, message) = self.failures.last().cloned().unwrap_or_default();
        Error::DeviceLost { device, message }
    }
}

impl Shared {
    /// The life of a device's thread: until the end, or until the device fails.
    fn work(&self, i: usize) {
        // outside of what may panic, so that its batches come back to their callers
        let mut in_flight = VecDeque::with_capacity(self.devices[i].in_flight);
        while self.wait() {
            // before a batch is taken: a caller may have the device, and another device may have the time
            let mut guard = lock(&self.devices[i].backend);
            let Some(backend) = guard.as_mut() else { return };
            let result = guarded(|| self.serve(&mut **backend, self.devices[i].in_flight, &mut in_flight));
            if let Err(error) = result {
                self.lose(i, guard, &error);
                for Job { call, tag, buffers } in in_flight.drain(..) {
                    call.put(tag, buffers, false);
                }
                return;
            }
        }
    }

    /// Whether there is work, and not the end.
    fn wait(&self) -> bool {
        let mut queue = lock(&self.queue);
        while queue.jobs.is_empty() && !queue.closed {
            queue = self.work.wait(queue).unwrap_or_else(PoisonError::into_inner);
        }
        !queue.closed
    }

    /// Computes until the queue is empty, with as many batches submitted as the device takes.
    fn serve(&self, backend: &mut dyn Backend, limit: usize, in_flight: &mut VecDeque<Job>) -> Result<()> {
        let mut idle = true;
        loop {
            while in_flight.len() < limit
                && let Some(mut job) = self.pop(idle, !in_flight.is_empty())
            {
                idle = false;
                let batch = std::mem::take(&mut job.buffers.batch);
                in_flight.push_back(job);
                backend.submit(batch)?;
            }
            let Some(job) = in_flight.front_mut() else {
                lock(&self.queue).idle += usize::from(!idle);
                return Ok(());
            };
            job.buffers.batch = backend.collect(&mut job.buffers.vectors)?;
            if let Some(Job { call, tag, buffers }) = in_flight.pop_front() {
                call.put(tag, buffers, true);
            }
        }
    }

    /// The next batch, for a device that so far was `idle`, or that is `busy` with another and leaves one for each idle one.
    fn pop(&self, idle: bool, busy: bool) -> Option<Job> {
        let mut queue = lock(&self.queue);
        loop {
            if busy && queue.jobs.len() <= queue.idle {
                return None;
            }
            let job = queue.jobs.pop_front()?;
            if !job.call.abandoned.load(Ordering::Relaxed) {
                queue.idle -= usize::from(idle);
                return Some(job);
            }
            queue.keep(job.buffers, 2 * self.in_flight);
        }
    }

    /// Gives a device up. With the last one, all that is queued comes back.
    fn lose(&self, i: usize, mut backend: MutexGuard<'_, Option<Box<dyn Backend>>>, error: &Error) {
        let backend_lost = backend.take();
        drop(backend);
        // what it holds may be as broken as it is
        let _ = catch_unwind(AssertUnwindSafe(|| drop(backend_lost)));
        let message =
            if let Error::DeviceLost { message, .. } = error { message.clone() } else { error.to_string() };
        let mut queue = lock(&self.queue);
        queue.failures.push((self.devices[i].name.clone(), message));
        queue.alive -= 1;
        let orphans = if queue.alive == 0 { std::mem::take(&mut queue.jobs) } else { VecDeque::new() };
        drop(queue);
        for Job { call, tag, buffers } in orphans {
            call.put(tag, buffers, false);
        }
        // the batch that this thread was woken for is another's now
        self.work.notify_all();
    }
}

/// A panic of a backend is our mistake, and yet no reason for its callers to wait for ever.
fn guarded<T>(f: impl FnOnce() -> Result<T>) -> Result<T> {
    catch_unwind(AssertUnwindSafe(f)).unwrap_or_else(|panic: Box<dyn Any + Send>| {
        let text = panic.downcast_ref::<String>().map(String::as_str);
        let text = text.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("a panic");
        Err(Error::DeviceLost { device: String::new(), message: format!("internal: {text}") })
    })
}
