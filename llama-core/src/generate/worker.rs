//! The engine's thread: admit → plan → forward → sample → emit, step by step.
//!
//! Before each step it looks who was cancelled, is out of time or has left: they cost nothing from then on, whether they wait, are
//! prefilled or answer. It never waits for a caller.
//!
//! A forward pass that fails, fails the requests that were a part of it; what their slots hold is dropped, and the others go on. A panic
//! leaves the model in a state that nobody knows: the thread ends, every request is told why, and so is whoever submits later.

use std::any::Any;
use std::collections::HashMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::sync::mpsc::{Receiver, TryRecvError};

use llama_backend::{BackendError, Batch, Logits, Model, Run, Slot};

use super::active::{Active, Ending, GoesOn};
use super::counters::add;
use super::engine::{Shared, Submitted};
use super::prefixes::Placement;
use super::request::{Event, RequestId};
use super::scheduler::{Job, Scheduler, Step};
use super::{FinishReason, GenerateError};

pub(super) struct Worker {
    model: Box<dyn Model>,
    scheduler: Scheduler,
    active: HashMap<RequestId, Active>,
    logits: Logits,
    max_seq_len: usize,
    shared: Arc<Shared>,
}

impl Worker {
    pub(super) fn new(model: Box<dyn Model>, max_batch_size: usize, shared: Arc<Shared>) -> Self {
        let params = model.params();
        let scheduler = Scheduler::new(params.n_slots, max_batch_size, params.max_batch_tokens);
        let max_seq_len = params.max_seq_len;
        Self { model, scheduler, active: HashMap::new(), logits: Logits::new(), max_seq_len, shared }
    }

    /// Works until the handle is dropped, or the model is of no more use.
    pub(super) fn run(mut self, inbox: Receiver<Vec<Submitted>>) {
        // What a panic leaves behind is not looked at again, but for the channels of those who wait.
        let worked = catch_unwind(AssertUnwindSafe(|| self.work(&inbox)));
        let cause = match worked {
            Ok(Ok(())) => return, // the handle is gone, and with it all who listened
            Ok(Err(error)) => GenerateError::ModelLost(Arc::new(error)),
            Err(panic) => GenerateError::Panicked { message: message(&*panic) },
        };
        let _ = self.shared.failure.set(cause.clone()); // set once: here
        self.shared.queue.close();
        for active in self.active.values() {
            active.events.send(Event::Failed(cause.clone()));
        }
    }

    /// An error means that the model cannot go on.
    fn work(&mut self, inbox: &Receiver<Vec<Submitted>>) -> Result<(), BackendError> {
        loop {
            if self.scheduler.is_idle() {
                let Ok(submitted) = inbox.recv() else { return Ok(()) };
                submitted.into_iter().for_each(|submitted| self.begin(submitted));
            }
            loop {
                match inbox.try_recv() {
                    Ok(submitted) => submitted.into_iter().for_each(|submitted| self.begin(submitted)),
                    Err(TryRecvError::Empty) => break,
                    Err(TryRecvError::Disconnected) => return Ok(()),
                }
            }
            self.interrupt()?;
            self.admit()?;
            self.step()?;
        }
    }

    fn begin(&mut self, submitted: Submitted) {
        let id = submitted.id;
        let mut active = match Active::new(submitted) {
            Ok(active) => active,
            Err((events, error)) => {
                self.shared.queue.leave(1);
                events.send(Event::Failed(error));
                return;
            }
        };
        let n_prefill = active.request.n_prefill();
        if n_prefill == 0 {
            self.shared.queue.leave(1);
            active.send_prompt_logprobs();
            active.events.send(Event::Finished(FinishReason::Length));
            return;
        }
        let prompt = Arc::clone(&active.request.prompt);
        // A token's logprob is read from the row of the one before it.
        let rows_from = active.request.prompt_logprobs.map(|from| from - 1); // at least 1
        self.scheduler.submit(Job { id, prompt, n_prefill, rows_from });
        self.active.insert(id, active);
    }

    /// Ends the requests that are over before their time.
    fn interrupt(&mut self) -> Result<(), BackendError> {
        let now = (self.shared.clock)();
        let interrupted: Vec<_> =
            self.active.iter().filter_map(|(&id, active)| Some((id, active.interrupted(now)?))).collect();
        interrupted.into_iter().try_for_each(|(id, ending)| self.end(id, ending))
    }

    /// Gives slots to those who wait, with the prefixes that the cache holds.
    fn admit(&mut self) -> Result<(), BackendError> {
        for (id, placement) in self.scheduler.admit() {
            self.shared.queue.leave(1);
            let cached = self.place(id, &placement)?;
            let counters = &self.shared.counters;
            counters.running.fetch_add(1, Ordering::Relaxed);
            add(&counters.admitted, 1);
            add(&counters.cached_tokens, cached);
            add(&counters.prefix_hits, usize::from(cached > 0));
            add(&counters.forks, usize::from(cached > 0 && placement.from.is_some()));
            add(&counters.evictions, usize::from(placement.evicts));
            let now = (self.shared.clock)();
            if let Some(active) = self.active.get_mut(&id) {
                active.start(now, cached);
            }
        }
        Ok(())
    }

    /// Makes the slot hold the prefix; gives its length. A prefix saves work and is no more than that: where it cannot be had, the prompt
    /// is fed from its beginning.
    fn place(&mut self, id: RequestId, placement: &Placement) -> Result<usize, BackendError> {
        let &Placement { slot, from, len, .. } = placement;
        let placed = match from {
            Some(from) => self.model.fork(from, slot, len),
            None => self.model.truncate(slot, len),
        };
        if placed.is_ok() {
            return Ok(len);
        }
        self.model.truncate(slot, 0)?;
        self.scheduler.refill(id);
        Ok(0)
    }

    /// One forward pass.
    fn step(&mut self) -> Result<(), BackendError> {
        let steps = self.scheduler.plan();
        if steps.is_empty() {
            return Ok(());
        }
        if let Err(error) = self.forward(&steps) {
            return self.fail(&steps, error);
        }
        let now = (self.shared.clock)();
        let mut first_row = 0;
        for step in &steps {
            let goes_on = match self.active.get_mut(&step.id) {
                Some(active) => {
                    let tokens = &active.history[step.start_pos..step.start_pos + step.n_tokens]; // as they were fed
                    self.scheduler.fed(step, tokens);
                    let n_prefilled =
                        active.request.n_prefill().saturating_sub(step.start_pos).min(step.n_tokens);
                    add(&self.shared.counters.prefilled_tokens, n_prefilled);
                    let known = active.history.len();
                    let goes_on = active.take(step, first_row, &self.logits, self.max_seq_len, now);
                    add(&self.shared.counters.generated_tokens, active.history.len() - known);
                    goes_on
                }
                None => Ok(GoesOn::Ended(Ending::Unwanted)), // never: a step is of an active request
            };
            first_row += step.want.n_rows(step.n_tokens);
            match goes_on {
                Ok(GoesOn::Prefill) => {}
                Ok(GoesOn::Decode) => self.scheduler.sampled(step.id),
                Ok(GoesOn::Ended(ending)) => self.end(step.id, ending)?,
                Err(error) => self.end(step.id, Ending::Failed(error))?,
            }
        }
        Ok(())
    }

    fn forward(&mut self, steps: &[Step]) -> Result<(), BackendError> {
        let runs: Vec<Run<'_>> = steps
            .iter()
            .filter_map(|step| {
                let history = &self.active.get(&step.id)?.history;
                let tokens = history.get(step.start_pos..step.start_pos + step.n_tokens)?;
                Some(Run { slot: step.slot, start_pos: step.start_pos, tokens, want: step.want })
            })
            .collect();
        debug_assert_eq!(runs.len(), steps.len());
        self.model.forward(&Batch::new(&runs), &mut self.logits)
    }

    /// A failed forward pass fails the requests that were a part of it. A slot that is lost may be another's: an idle one's prefix is
    /// forgotten then, and a row that had no part in the pass is fed from its beginning.
    fn fail(&mut self, steps: &[Step], error: BackendError) -> Result<(), BackendError> {
        if let BackendError::SlotLost { slot, .. } = &error
            && steps.iter().all(|step| step.slot != *slot)
        {
            self.forget(*slot)?;
        }
        let error = Arc::new(error);
        for step in steps {
            self.end(step.id, Ending::Failed(GenerateError::Backend(Arc::clone(&error))))?;
        }
        Ok(())
    }

    /// Gives the request's slot back, then tells the caller.
    fn end(&mut self, id: RequestId, ending: Ending) -> Result<(), BackendError> {
        let Some(active) = self.active.remove(&id) else { return Ok(()) };
        let freed = match self.scheduler.finish(id) {
            Some(slot) => {
                self.shared.counters.running.fetch_sub(1, Ordering::Relaxed);
                // What a failure has left in the slot is not to be built upon.
                if matches!(ending, Ending::Failed(_)) { self.forget(slot) } else { Ok(()) }
            }
            None => {
                self.shared.queue.leave(1);
                Ok(())
            }
        };
        match ending {
            Ending::Finished(reason) => active.events.send(Event::Finished(reason)),
            Ending::Failed(error) => active.events.send(Event::Failed(error)),
            Ending::Unwanted => {}
        }
        freed
    }

    fn forget(&mut self, slot: Slot) -> Result<(), BackendError> {
        self.scheduler.forget(slot);
        self.model.truncate(slot, 0)
    }
}

/// What a panic said.
pub(super) fn message(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().copied().map(str::to_owned);
    text.or_else(|| panic.downcast_ref::<String>().cloned()).unwrap_or_else(|| "no message".to_owned())
}
