//! The engine: one thread that owns the model and turns requests into events.
//!
//! The model is made, used and dropped on that thread (some engines bind to the thread that made them), so callers share it by
//! sending: any number of threads submit to one engine, and their rows meet in the same forward passes. A step is plan →
//! forward → sample → emit. A caller that drops its receiver is noticed at the next event and costs nothing from then on.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{self, Receiver, Sender};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};

use llama_backend::{BackendError, Batch, LoadParams, Logits, Model, Run, TokenId};

use super::request::{Event, FinishReason, GenerateError, Request, RequestId, Submission};
use super::scheduler::{Job, Scheduler, Step};
use crate::Error;
use crate::sampler::{Sampler, log_softmax_at};

/// A prompt is prefilled in chunks of at most so many tokens: enough rows to run the matrix products at their best, few
/// enough that decoding rows, which share the forward pass, keep moving.
const PREFILL_CHUNK: usize = 512;

/// A handle on the engine's thread. Dropping it ends the thread and waits until the model's memory is given back.
#[derive(Debug)]
pub(crate) struct Engine {
    /// `None` only while it is dropped.
    commands: Option<Mutex<Sender<Command>>>,
    thread: Option<JoinHandle<()>>,
    next_id: AtomicU64,
}

enum Command {
    Submit(Vec<(RequestId, Request, Sender<Event>)>),
    Cancel(RequestId),
}

impl Engine {
    /// Limits for `max_batch_size` rows at a time that leave each forward pass room for a chunk of a prompt.
    pub(crate) fn params(max_seq_len: usize, max_batch_size: usize, threads: Option<usize>) -> LoadParams {
        let mut params = LoadParams::new(max_seq_len, max_batch_size);
        params.max_batch_tokens = PREFILL_CHUNK.min(max_seq_len).saturating_add(max_batch_size);
        params.threads = threads;
        params
    }

    /// Starts the thread and loads the model on it.
    pub(crate) fn start(
        load: impl FnOnce() -> Result<Box<dyn Model>, BackendError> + Send + 'static,
    ) -> Result<Self, Error> {
        let (commands, inbox) = mpsc::channel();
        let (loaded, report) = mpsc::channel();
        let thread = thread::Builder::new()
            .name("llama-engine".to_owned())
            .spawn(move || match load() {
                Ok(model) => {
                    let worker = Worker::new(model);
                    // A caller that is gone shows in the inbox too.
                    let _ = loaded.send(Ok(()));
                    drop(loaded);
                    worker.run(&inbox);
                }
                Err(error) => {
                    let _ = loaded.send(Err(error));
                }
            })
            .map_err(Error::Thread)?;
        let engine =
            Self { commands: Some(Mutex::new(commands)), thread: Some(thread), next_id: AtomicU64::new(0) };
        match report.recv() {
            Ok(Ok(())) => Ok(engine),
            Ok(Err(error)) => Err(Error::Backend(error)),
            Err(mpsc::RecvError) => Err(Error::Generate(GenerateError::Stopped)),
        }
    }

    /// Hands requests over, all at once: as many as there is room for start in the same forward pass.
    pub(crate) fn submit(&self, requests: Vec<Request>) -> Result<Vec<Submission>, GenerateError> {
        let (jobs, submissions) = requests
            .into_iter()
            .map(|request| {
                let id = RequestId(self.next_id.fetch_add(1, Ordering::Relaxed));
                let (sender, events) = mpsc::channel();
                ((id, request, sender), Submission { id, events })
            })
            .unzip();
        self.send(Command::Submit(jobs))?;
        Ok(submissions)
    }

    /// Ends a request before its time; one that has ended is left alone.
    pub(crate) fn cancel(&self, id: RequestId) -> Result<(), GenerateError> {
        self.send(Command::Cancel(id))
    }

    fn send(&self, command: Command) -> Result<(), GenerateError> {
        let commands = self.commands.as_ref().ok_or(GenerateError::Stopped)?;
        // A thread that panicked while it sent left a whole sender behind.
        let commands = commands.lock().unwrap_or_else(PoisonError::into_inner);
        commands.send(command).map_err(|_| GenerateError::Stopped)
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        drop(self.commands.take());
        if let Some(thread) = self.thread.take() {
            // A panic of the thread was seen by those who waited for it.
            let _ = thread.join();
        }
    }
}

/// What the thread keeps of a request that runs or waits.
struct Active {
    request: Request,
    sampler: Sampler,
    events: Sender<Event>,
    /// The prompt and what was sampled since.
    history: Vec<TokenId>,
    /// Of the prompt's tokens so far, when asked for.
    prompt_logprobs: Vec<f32>,
}

struct Worker {
    model: Box<dyn Model>,
    scheduler: Scheduler,
    active: HashMap<RequestId, Active>,
    logits: Logits,
    max_seq_len: usize,
}

impl Worker {
    fn new(model: Box<dyn Model>) -> Self {
        let params = model.params();
        let scheduler = Scheduler::new(params.n_slots, params.max_batch_tokens);
        let max_seq_len = params.max_seq_len;
        Self { model, scheduler, active: HashMap::new(), logits: Logits::new(), max_seq_len }
    }

    /// Works until the handle is dropped, or until the model has lost a slot that cannot be freed.
    fn run(mut self, inbox: &Receiver<Command>) {
        loop {
            if self.scheduler.is_idle() {
                let Ok(command) = inbox.recv() else { return };
                self.obey(command);
            }
            loop {
                match inbox.try_recv() {
                    Ok(command) => self.obey(command),
                    Err(mpsc::TryRecvError::Empty) => break,
                    Err(mpsc::TryRecvError::Disconnected) => return,
                }
            }
            if self.step().is_err() {
                return; // every receiver sees its sender gone: `Stopped`
            }
        }
    }

    fn obey(&mut self, command: Command) {
        match command {
            Command::Submit(jobs) => {
                for (id, request, events) in jobs {
                    self.begin(id, request, events);
                }
            }
            Command::Cancel(id) => {
                self.tell(id, Event::Failed(GenerateError::Cancelled));
                // A slot that cannot be freed shows at the next step.
                let _ = self.end(id);
            }
        }
    }

    fn begin(&mut self, id: RequestId, request: Request, events: Sender<Event>) {
        let sampler = match Sampler::new(request.sampling, request.seed, request.row) {
            Ok(sampler) => sampler,
            Err(error) => {
                let _ = events.send(Event::Failed(error.into()));
                return;
            }
        };
        // Nothing precedes BOS: the reference gives it 0.
        let prompt_logprobs = if request.prompt_logprobs { vec![0.0] } else { Vec::new() };
        let n_prefill = request.n_prefill();
        let history = request.prompt.clone();
        let active = Active { request, sampler, events, history, prompt_logprobs };
        if n_prefill == 0 {
            active.send_prompt_logprobs(&active.prompt_logprobs);
            let _ = active.events.send(Event::Finished(FinishReason::Length));
            return;
        }
        self.scheduler.submit(Job { id, n_prefill, all_rows: active.request.prompt_logprobs });
        self.active.insert(id, active);
    }

    /// One forward pass. An error means that the model cannot go on.
    fn step(&mut self) -> Result<(), BackendError> {
        let steps = self.scheduler.plan();
        if steps.is_empty() {
            return Ok(());
        }
        if let Err(error) = self.forward(&steps) {
            return self.fail(&steps, error);
        }
        let mut first_row = 0;
        for step in &steps {
            self.scheduler.fed(step);
            let n_rows = step.want.n_rows(step.n_tokens);
            let goes_on = match self.active.get_mut(&step.id) {
                Some(active) => active.take(step, first_row, &self.logits, self.max_seq_len),
                None => Ok(GoesOn::Ended),
            };
            let goes_on = goes_on.unwrap_or_else(|error| {
                self.tell(step.id, Event::Failed(error));
                GoesOn::Ended
            });
            first_row += n_rows;
            match goes_on {
                GoesOn::Prefill => {}
                GoesOn::Decode => self.scheduler.sampled(step.id),
                GoesOn::Ended => self.end(step.id)?,
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

    /// A failed forward pass fails the requests that were a part of it; their slots are freed, and the others go on.
    fn fail(&mut self, steps: &[Step], error: BackendError) -> Result<(), BackendError> {
        let error = Arc::new(error);
        for step in steps {
            self.tell(step.id, Event::Failed(GenerateError::Backend(Arc::clone(&error))));
            self.end(step.id)?;
        }
        Ok(())
    }

    /// A listener that left is no failure.
    fn tell(&self, id: RequestId, event: Event) {
        if let Some(active) = self.active.get(&id) {
            let _ = active.events.send(event);
        }
    }

    fn end(&mut self, id: RequestId) -> Result<(), BackendError> {
        self.active.remove(&id);
        match self.scheduler.finish(id) {
            Some(slot) => self.model.truncate(slot, 0),
            None => Ok(()),
        }
    }
}

/// What becomes of a row after a step.
enum GoesOn {
    Prefill,
    Decode,
    Ended,
}

impl Active {
    /// Takes the step's rows of logits, which start at `first_row`: prompt logprobs from some, the next token from the last.
    fn take(
        &mut self,
        step: &Step,
        first_row: usize,
        logits: &Logits,
        max_seq_len: usize,
    ) -> Result<GoesOn, GenerateError> {
        let end_pos = step.start_pos + step.n_tokens;
        let prompt_len = self.request.prompt.len();
        if self.request.prompt_logprobs && step.start_pos < prompt_len {
            // Row i holds what the model expects at position start_pos + i + 1.
            for (i, row) in logits.rows().skip(first_row).take(step.n_tokens).enumerate() {
                if let Some(&next) = self.request.prompt.get(step.start_pos + i + 1) {
                    self.prompt_logprobs.push(log_softmax_at(row, next)?);
                }
            }
        }
        if end_pos < self.request.n_prefill() {
            return Ok(GoesOn::Prefill);
        }
        if end_pos == self.request.n_prefill() {
            self.send_prompt_logprobs(&self.prompt_logprobs);
        }
        if self.request.max_gen_len == 0 {
            return Ok(self.finish(FinishReason::Length));
        }
        let last_row = first_row + step.want.n_rows(step.n_tokens) - 1; // this step wanted its last row
        let row = logits
            .row(last_row)
            .ok_or(GenerateError::MissingLogits { row: last_row, n_rows: logits.n_rows() })?;
        self.sample(row, max_seq_len)
    }

    fn sample(&mut self, row: &[f32], max_seq_len: usize) -> Result<GoesOn, GenerateError> {
        let id = self.sampler.sample(row)?;
        if id == self.request.eos_id {
            return Ok(self.finish(FinishReason::Stop));
        }
        let logprob = self.request.logprobs.then(|| log_softmax_at(row, id)).transpose()?;
        self.history.push(id);
        if self.events.send(Event::Token { id, logprob }).is_err() {
            return Ok(GoesOn::Ended); // nobody listens any more
        }
        if self.history.len() - self.request.prompt.len() == self.request.max_gen_len {
            return Ok(self.finish(FinishReason::Length));
        }
        if self.history.len() == max_seq_len {
            return Ok(self.finish(FinishReason::Context));
        }
        Ok(GoesOn::Decode)
    }

    fn send_prompt_logprobs(&self, logprobs: &[f32]) {
        if self.request.prompt_logprobs {
            let _ = self.events.send(Event::PromptLogprobs(logprobs.to_vec()));
        }
    }

    fn finish(&self, reason: FinishReason) -> GoesOn {
        let _ = self.events.send(Event::Finished(reason));
        GoesOn::Ended
    }
}
