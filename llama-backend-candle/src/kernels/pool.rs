//! The threads of a model: tasks of one step of the forward pass, handed out one by one.
//!
//! A decode has a hundred such steps, each of some tens of microseconds, so that a thread must be there at once: it spins for a
//! moment, and then sleeps. Nobody waits for a *thread*, only for tasks that somebody took: where another process has a core, the
//! thread that was to run there takes no tasks, and the others take them all.
//!
//! The caller is one of the threads. What a thread takes is a number counted down; only who has taken one reads the step's job, so that
//! a thread that comes late finds nothing to take, or a task of the step that is under way.

use std::any::Any;
use std::cell::UnsafeCell;
use std::fmt;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, TryLockError};
use std::thread::{self, JoinHandle, Thread};
use std::time::{Duration, Instant};

/// How long a thread spins before it sleeps: longer than the gaps within a step of the model, shorter than anybody would notice.
const SPIN: Duration = Duration::from_micros(60);
/// Looks between two looks at the clock.
const LOOKS: u32 = 64;

/// A number of threads, of which the caller is one.
pub(crate) struct Pool {
    shared: Arc<Shared>,
    workers: Vec<JoinHandle<()>>,
    /// Held by the one caller whose tasks are under way.
    caller: Mutex<()>,
}

/// What workers do with a task's number.
type Task<'a> = dyn Fn(usize) + Sync + 'a;

struct Shared {
    /// The tasks of the step that nobody has taken.
    left: AtomicUsize,
    /// The tasks of the step that are done.
    done: AtomicUsize,
    job: JobCell,
    /// Workers that sleep, or are about to.
    sleeping: AtomicUsize,
    wake: Mutex<bool>,
    awake: Condvar,
    /// The first panic of a task.
    panic: Mutex<Option<Box<dyn Any + Send>>>,
}

struct Job {
    task: *const Task<'static>,
    n_tasks: usize,
    caller: Thread,
}

/// The step's task and the caller's thread: written between steps, read by those that took a task.
struct JobCell(UnsafeCell<Option<Job>>);

// SAFETY: it is written by the holder of `Pool::caller` while no task is taken or left to take (`run_all` returns after the last is
// done), and read by a thread only while a task that it took is not done. The write happens before the store that offers the tasks,
// which happens before taking one; being done happens before the next write.
#[allow(unsafe_code)]
unsafe impl Sync for JobCell {}
// SAFETY: the pointer in it is what keeps it from being `Send`. It is followed under the rule above alone, to a task that is `Sync`, and
// may be dropped anywhere.
#[allow(unsafe_code)]
unsafe impl Send for JobCell {}

impl Pool {
    /// `n_threads` threads, the caller's included.
    pub(crate) fn new(n_threads: usize) -> io::Result<Self> {
        let shared = Arc::new(Shared {
            left: AtomicUsize::new(0),
            done: AtomicUsize::new(0),
            job: JobCell(UnsafeCell::new(None)),
            sleeping: AtomicUsize::new(0),
            wake: Mutex::new(false),
            awake: Condvar::new(),
            panic: Mutex::new(None),
        });
        let mut pool = Self { shared, workers: Vec::new(), caller: Mutex::new(()) };
        for i in 1..n_threads {
            let shared = Arc::clone(&pool.shared);
            let worker = thread::Builder::new().name(format!("llama-candle-{i}"));
            // Where one cannot be had, the drop of `pool` ends those before it.
            pool.workers.push(worker.spawn(move || shared.work())?);
        }
        Ok(pool)
    }

    /// The threads, the caller's included.
    pub(crate) fn n_threads(&self) -> usize {
        self.workers.len() + 1
    }

    /// Runs `task(0)` to `task(n_tasks - 1)`, each once, on any of the threads and in any order; returns when all are done.
    ///
    /// A task that calls this again, and a second caller at the same time, run their tasks alone. A task's panic is the caller's.
    pub(crate) fn run(&self, n_tasks: usize, task: impl Fn(usize) + Sync) {
        let alone = match self.caller.try_lock() {
            Ok(alone) => Some(alone),
            Err(TryLockError::Poisoned(alone)) => Some(alone.into_inner()), // by a task's panic, which broke nothing
            Err(TryLockError::WouldBlock) => None,
        };
        if alone.is_some() && n_tasks > 1 && !self.workers.is_empty() {
            self.shared.run_all(n_tasks, &task);
        } else {
            (0..n_tasks).for_each(task);
        }
    }

    /// Runs `task` on each part of `len` elements of `data` (the last may be shorter), with its number.
    pub(crate) fn chunks<T: Send>(&self, data: &mut [T], len: usize, task: impl Fn(usize, &mut [T]) + Sync) {
        let parts = Mutex::new(data.chunks_mut(len).enumerate());
        let n_parts = lock(&parts).len();
        self.run(n_parts, |_| {
            // Which part it is does not matter: each is taken once.
            let part = lock(&parts).next();
            if let Some((i, part)) = part {
                task(i, part);
            }
        });
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        *lock(&self.shared.wake) = true;
        self.shared.awake.notify_all();
        for worker in self.workers.drain(..) {
            // It catches its tasks' panics, and has no others.
            let _ = worker.join();
        }
    }
}

impl fmt::Debug for Pool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Pool({} threads)", self.n_threads())
    }
}

impl Shared {
    /// Called by one thread at a time: the holder of `Pool::caller`.
    fn run_all(&self, n_tasks: usize, task: &Task<'_>) {
        // SAFETY: only the lifetime changes. No thread calls the task after the last task is done, and this function does not
        // return before that: it waits below, and nothing until there unwinds.
        #[allow(unsafe_code)]
        let task: *const Task<'static> = unsafe { std::mem::transmute(task) };
        self.done.store(0, Ordering::Relaxed);
        // SAFETY: no task is taken and none is left to take, so that nobody reads (see `Sync` above).
        #[allow(unsafe_code)]
        unsafe {
            *self.job.0.get() = Some(Job { task, n_tasks, caller: thread::current() });
        }
        self.left.store(n_tasks, Ordering::SeqCst);
        if self.sleeping.load(Ordering::SeqCst) > 0 {
            drop(lock(&self.wake)); // a worker between its last look and its sleep is let through
            self.awake.notify_all();
        }
        while self.take() {}
        let finished = || self.done.load(Ordering::Acquire) == n_tasks;
        if !spin(finished) {
            while !finished() {
                thread::park(); // the last task's thread unparks
            }
        }
        if let Some(panic) = lock(&self.panic).take() {
            resume_unwind(panic);
        }
    }

    /// Takes a task and runs it; false where none is left.
    fn take(&self) -> bool {
        let mut left = self.left.load(Ordering::Acquire);
        let number = loop {
            if left == 0 {
                return false;
            }
            match self.left.compare_exchange_weak(left, left - 1, Ordering::AcqRel, Ordering::Acquire) {
                Ok(_) => break left - 1,
                Err(now) => left = now,
            }
        };
        // SAFETY: this thread has taken a task that is not done, so that nobody writes (see `Sync` above).
        #[allow(unsafe_code)]
        let job = unsafe { &*self.job.0.get() };
        // Never none: tasks are offered after it is written.
        let Some(Job { task, n_tasks, caller }) = job else { return false };
        let (n_tasks, caller) = (*n_tasks, caller.clone());
        // SAFETY: `run_all` keeps the task alive until this one is done.
        #[allow(unsafe_code)]
        let task = unsafe { &**task };
        // From the first on: parts of memory that lie behind each other are taken in that order.
        if let Err(panic) = catch_unwind(AssertUnwindSafe(|| task(n_tasks - 1 - number))) {
            let mut first = lock(&self.panic);
            match &*first {
                None => *first = Some(panic),
                Some(_) => std::mem::forget(panic), // dropping it may panic, and nothing here may unwind
            }
        }
        if self.done.fetch_add(1, Ordering::AcqRel) + 1 == n_tasks {
            caller.unpark();
        }
        true
    }

    /// A worker's life.
    fn work(&self) {
        let offered = || self.left.load(Ordering::Acquire) != 0;
        loop {
            while self.take() {}
            if spin(offered) {
                continue;
            }
            let mut end = lock(&self.wake);
            self.sleeping.fetch_add(1, Ordering::SeqCst);
            while !*end && self.left.load(Ordering::SeqCst) == 0 {
                end = self.awake.wait(end).unwrap_or_else(PoisonError::into_inner);
            }
            self.sleeping.fetch_sub(1, Ordering::SeqCst);
            if *end {
                return;
            }
        }
    }
}

/// Looks for a moment; whether it came true.
fn spin(done: impl Fn() -> bool) -> bool {
    let start = Instant::now();
    loop {
        for _ in 0..LOOKS {
            if done() {
                return true;
            }
            std::hint::spin_loop();
        }
        if start.elapsed() > SPIN {
            return false;
        }
    }
}

/// What these locks hold is whole between any two calls: a panic elsewhere cannot have broken it.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_task_runs_once_step_after_step() {
        for n_threads in [1, 2, 3, 8] {
            let pool = Pool::new(n_threads).unwrap();
            for step in 0..2000 {
                let n_tasks = step % 17;
                let runs: Vec<AtomicUsize> = (0..n_tasks).map(|_| AtomicUsize::new(0)).collect();
                pool.run(n_tasks, |i| {
                    runs[i].fetch_add(1, Ordering::Relaxed);
                });
                assert!(runs.iter().all(|runs| runs.load(Ordering::Relaxed) == 1), "{n_threads} {step}");
            }
        }
    }

    #[test]
    fn chunks_are_handed_out_whole() {
        let pool = Pool::new(2).unwrap();
        let mut data = vec![0; 1000];
        pool.chunks(&mut data, 7, |i, part| part.fill(i));
        let expected: Vec<usize> = (0..1000).map(|i| i / 7).collect();
        assert_eq!(data, expected);
    }

    #[test]
    fn a_sleeping_pool_wakes() {
        let pool = Pool::new(3).unwrap();
        for _ in 0..5 {
            // Until all sleep, however long that takes.
            while pool.shared.sleeping.load(Ordering::SeqCst) < 2 {
                thread::yield_now();
            }
            let sum = AtomicUsize::new(0);
            pool.run(100, |i| {
                sum.fetch_add(i, Ordering::Relaxed);
            });
            assert_eq!(sum.into_inner(), 4950);
        }
    }

    #[test]
    fn nested_and_concurrent_calls_end() {
        let pool = Pool::new(2).unwrap();
        let sum = AtomicUsize::new(0);
        let add = |_| {
            pool.run(10, |i| {
                sum.fetch_add(i, Ordering::Relaxed);
            });
        };
        thread::scope(|scope| {
            scope.spawn(|| pool.run(10, add));
            scope.spawn(|| pool.run(10, add));
        });
        assert_eq!(sum.into_inner(), 900);
    }

    #[test]
    fn a_panic_reaches_the_caller_and_leaves_the_pool_whole() {
        let pool = Pool::new(2).unwrap();
        for guilty in [&[0][..], &[3], &[7], &[1, 5, 6]] {
            let run = || pool.run(8, |i| assert!(!guilty.contains(&i), "a task's panic"));
            assert!(catch_unwind(AssertUnwindSafe(run)).is_err());
            let sum = AtomicUsize::new(0);
            pool.run(8, |i| {
                sum.fetch_add(i, Ordering::Relaxed);
            });
            assert_eq!(sum.into_inner(), 28);
        }
    }
}
