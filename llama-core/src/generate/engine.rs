//! The handle on the engine: one thread that owns the model and turns requests into events.
//!
//! The model is made, used and dropped on that thread (some engines bind to the thread that made them), so callers share it by
//! sending: any number of threads submit to one engine, and their rows meet in the same forward passes.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{self, Sender};
use std::sync::{Arc, OnceLock};
use std::thread::{self, JoinHandle};
use std::time::Instant;

use llama_backend::{BackendError, LoadParams, Model, Notice};

use super::channel::{EventSender, Submission};
use super::counters::{Counters, EngineStats};
use super::queue::{Entry, Queue};
use super::request::{Call, Event, Request, RequestId};
use super::worker::{Worker, message};
use super::{CancelToken, Clock, GenerateError, WhenFull};
use crate::Error;
use crate::trace::Phases;

/// A prompt is prefilled in chunks of at most so many tokens: enough rows to run the matrix products at their best, few
/// enough that decoding rows, which share the forward pass, keep moving.
pub(super) const PREFILL_CHUNK: usize = 512;

/// How many requests an engine takes.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Limits {
    /// Run at a time.
    pub(crate) max_batch_size: usize,
    /// Wait for a slot at a time.
    pub(crate) max_queue_len: usize,
}

/// A handle on the engine's thread. Dropping it ends the thread and waits until the model's memory is given back.
#[derive(Debug)]
pub(crate) struct Engine {
    /// `None` only while it is dropped.
    jobs: Option<Sender<Vec<Submitted>>>,
    thread: Option<JoinHandle<()>>,
    next_id: AtomicU64,
    shared: Arc<Shared>,
    n_slots: usize,
    notices: Vec<Notice>,
}

/// What both sides of the engine see.
pub(super) struct Shared {
    pub(super) queue: Arc<Queue>,
    pub(super) counters: Counters,
    /// Why the thread has ended, if it has.
    pub(super) failure: OnceLock<GenerateError>,
    pub(super) clock: Clock,
}

impl std::fmt::Debug for Shared {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Shared")
            .field("queue", &self.queue)
            .field("failure", &self.failure)
            .finish_non_exhaustive()
    }
}

/// A request on its way to the thread.
pub(super) struct Submitted {
    pub(super) id: RequestId,
    pub(super) request: Request,
    pub(super) events: EventSender,
    pub(super) cancel: CancelToken,
    pub(super) deadline: Option<Instant>,
    pub(super) at: Instant,
    pub(super) phases: Phases,
}

impl Engine {
    /// Limits for `max_batch_size` rows at a time that leave each forward pass room for a chunk of a prompt.
    pub(crate) fn params(
        max_seq_len: usize,
        max_batch_size: usize,
        idle_slots: usize,
        threads: Option<usize>,
    ) -> LoadParams {
        let mut params = LoadParams::new(max_seq_len, max_batch_size.saturating_add(idle_slots));
        params.max_batch_tokens = PREFILL_CHUNK.min(max_seq_len).saturating_add(max_batch_size);
        params.threads = threads;
        params
    }

    /// Starts the thread and loads the model on it.
    pub(crate) fn start(
        limits: Limits,
        clock: Clock,
        load: impl FnOnce() -> Result<Box<dyn Model>, BackendError> + Send + 'static,
    ) -> Result<Self, Error> {
        let shared = Arc::new(Shared {
            queue: Arc::new(Queue::new(limits.max_queue_len)),
            counters: Counters::default(),
            failure: OnceLock::new(),
            clock,
        });
        let (jobs, inbox) = mpsc::channel();
        let (loaded, report) = mpsc::channel();
        let sees = Arc::clone(&shared);
        let thread = thread::Builder::new()
            .name("llama-engine".to_owned())
            .spawn(move || match catch_unwind(AssertUnwindSafe(load)) {
                Ok(Ok(model)) => {
                    let told = (model.params().n_slots, model.notices().to_vec());
                    let worker = Worker::new(model, limits.max_batch_size, sees);
                    // A caller that is gone shows in the inbox too.
                    let _ = loaded.send(Ok(told));
                    drop(loaded);
                    worker.run(inbox);
                }
                Ok(Err(error)) => {
                    let _ = loaded.send(Err(Error::Backend(error)));
                }
                Err(panic) => {
                    let message = message(&*panic);
                    let _ = loaded.send(Err(GenerateError::Panicked { message }.into()));
                }
            })
            .map_err(Error::Thread)?;
        match report.recv() {
            Ok(Ok((n_slots, notices))) => Ok(Self {
                jobs: Some(jobs),
                thread: Some(thread),
                next_id: AtomicU64::new(0),
                shared,
                n_slots,
                notices,
            }),
            Ok(Err(error)) => Err(error),
            Err(mpsc::RecvError) => Err(Error::Generate(GenerateError::Stopped)),
        }
    }

    /// Hands requests over, all at once if the queue has room for all: as many as there are slots for start in the same forward pass.
    pub(crate) fn submit(&self, call: Call) -> Result<Submission, GenerateError> {
        let Call { requests, cancel, deadline, when_full } = call;
        let jobs = self.jobs.as_ref().ok_or(GenerateError::Stopped)?;
        let queue = &self.shared.queue;
        let at = (self.shared.clock)();
        let deadline = deadline.and_then(|deadline| at.checked_add(deadline));
        let mut submission = Submission::default();
        let mut requests = requests.into_iter();
        while requests.len() > 0 {
            let entered = match when_full {
                WhenFull::Refuse => queue.try_enter(requests.len()).map(|()| requests.len())?,
                WhenFull::Wait => match queue.enter(requests.len(), &cancel, deadline, &self.shared.clock) {
                    Entry::Entered(entered) => entered,
                    Entry::Ended(reason) => {
                        for request in requests {
                            submission.sender(request.place).send(Event::Finished(reason));
                        }
                        return Ok(submission);
                    }
                    Entry::Closed => return Err(self.failure()),
                },
            };
            let admitted = requests.by_ref().take(entered).map(|request| {
                let id = RequestId(self.next_id.fetch_add(1, Ordering::Relaxed));
                let events = submission.sender(request.place);
                let phases = Phases::queued(id.0, request.prompt.len());
                Submitted { id, request, events, cancel: cancel.clone(), deadline, at, phases }
            });
            jobs.send(admitted.collect()).map_err(|_| self.failure())?;
        }
        Ok(submission)
    }

    /// Why the thread has ended, if it has.
    pub(crate) fn stopped(&self) -> Option<GenerateError> {
        self.shared.failure.get().cloned()
    }

    /// Why the thread has ended.
    pub(crate) fn failure(&self) -> GenerateError {
        self.stopped().unwrap_or(GenerateError::Stopped)
    }

    pub(crate) fn stats(&self) -> EngineStats {
        self.shared.counters.snapshot(self.n_slots, self.shared.queue.waiting())
    }

    /// What the model told when it was loaded.
    pub(crate) fn notices(&self) -> &[Notice] {
        &self.notices
    }

    /// Callers who wait for room in the queue.
    #[cfg(test)]
    pub(super) fn callers(&self) -> usize {
        self.shared.queue.callers()
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        drop(self.jobs.take());
        // A waker that the engine wakes may drop the last handle on the engine's own thread, which cannot wait for itself.
        if let Some(thread) = self.thread.take()
            && thread.thread().id() != thread::current().id()
        {
            // A panic of the thread was seen by those who waited for it.
            let _ = thread.join();
        }
    }
}
