//! A request that waits or runs: its history, its sampler, and what it makes of a step's logits.

use std::time::{Duration, Instant};

use llama_backend::{Logits, TokenId, Want};

use super::channel::EventSender;
use super::engine::Submitted;
use super::request::{Event, NewToken, PromptLogprobs, Request};
use super::scheduler::Step;
use super::{CancelToken, FinishReason, GenerateError};
use crate::sampler::{Sampler, argmax, log_softmax_at};
use crate::trace::Phases;

/// What the thread keeps of a request.
pub(super) struct Active {
    pub(super) request: Request,
    pub(super) events: EventSender,
    sampler: Sampler,
    cancel: CancelToken,
    deadline: Option<Instant>,
    submitted: Instant,
    /// The prompt and what was sampled since.
    pub(super) history: Vec<TokenId>,
    /// Of the prompt's tokens so far, when asked for, until they are sent.
    prompt_logprobs: Option<PromptLogprobs>,
    phases: Phases,
}

/// What becomes of a row after a step.
pub(super) enum GoesOn {
    Prefill,
    Decode,
    Ended(Ending),
}

/// How a request is over.
pub(super) enum Ending {
    Finished(FinishReason),
    Failed(GenerateError),
    /// The caller wants no more of it.
    Unwanted,
}

impl Active {
    /// An error's request gets it as its only event.
    pub(super) fn new(submitted: Submitted) -> Result<Self, (EventSender, GenerateError)> {
        let Submitted { id: _, request, events, cancel, deadline, at, phases } = submitted;
        let sampler = match Sampler::new(request.sampling.clone(), request.seed, request.row) {
            Ok(sampler) => sampler.with_prompt(&request.prompt),
            Err(error) => return Err((events, error.into())),
        };
        let nothing = PromptLogprobs { logprobs: Vec::new(), alternatives: Vec::new(), is_greedy: true };
        let prompt_logprobs = request.prompt_logprobs.map(|_| nothing);
        let history = request.prompt.to_vec();
        Ok(Self {
            request,
            events,
            sampler,
            cancel,
            deadline,
            submitted: at,
            history,
            prompt_logprobs,
            phases,
        })
    }

    /// Whether it is over before its time.
    pub(super) fn interrupted(&self, now: Instant) -> Option<Ending> {
        if self.events.is_unwanted() {
            Some(Ending::Unwanted)
        } else if self.cancel.is_cancelled() {
            Some(Ending::Finished(FinishReason::Cancelled))
        } else if self.deadline.is_some_and(|deadline| deadline <= now) {
            Some(Ending::Finished(FinishReason::Deadline))
        } else {
            None
        }
    }

    /// It has a slot with so many tokens of its prompt.
    pub(super) fn start(&mut self, now: Instant, cached_tokens: usize) {
        self.phases.prefilling(cached_tokens);
        self.events.send(Event::Started { at: self.elapsed(now), cached_tokens });
    }

    fn elapsed(&self, now: Instant) -> Duration {
        now.saturating_duration_since(self.submitted)
    }

    /// Takes the step's rows of logits, which start at `first_row`: prompt logprobs from some, the next token from the last.
    pub(super) fn take(
        &mut self,
        step: &Step,
        first_row: usize,
        logits: &Logits,
        max_seq_len: usize,
        now: Instant,
    ) -> Result<GoesOn, GenerateError> {
        let end_pos = step.start_pos + step.n_tokens;
        if step.want == Want::All {
            self.take_prompt_logprobs(step, first_row, logits)?;
        }
        let n_prefill = self.request.n_prefill();
        if end_pos >= n_prefill {
            self.send_prompt_logprobs();
        }
        let is_scored = self.request.max_gen_len == 0;
        // A row whose slot was lost is fed what it has said again.
        if end_pos < if is_scored { n_prefill } else { self.history.len() } {
            return Ok(GoesOn::Prefill);
        }
        if is_scored {
            return Ok(GoesOn::Ended(Ending::Finished(FinishReason::Length)));
        }
        let last_row = first_row + step.want.n_rows(step.n_tokens) - 1; // this step wanted its last row
        let row = logits
            .row(last_row)
            .ok_or(GenerateError::MissingLogits { row: last_row, n_rows: logits.n_rows() })?;
        let reason = self.sample(row, max_seq_len, now)?;
        Ok(reason.map_or(GoesOn::Decode, |reason| GoesOn::Ended(Ending::Finished(reason))))
    }

    fn take_prompt_logprobs(
        &mut self,
        step: &Step,
        first_row: usize,
        logits: &Logits,
    ) -> Result<(), GenerateError> {
        let Some((from, known)) = self.request.prompt_logprobs.zip(self.prompt_logprobs.as_mut()) else {
            return Ok(()); // sent
        };
        // Row i holds what the model expects at position start_pos + i + 1.
        let rows = logits.rows().skip(first_row).take(step.n_tokens);
        for (position, row) in (step.start_pos + 1..).zip(rows) {
            // A row whose slot was lost is fed again what it was fed: its logprobs are known.
            if let Some(&next) = self.request.prompt.get(position)
                && position == from + known.logprobs.len()
            {
                known.logprobs.push(log_softmax_at(row, next)?);
                known.alternatives.push(self.request.alternatives(row)?);
                known.is_greedy = known.is_greedy && argmax(row)? == next;
            }
        }
        Ok(())
    }

    fn sample(
        &mut self,
        row: &[f32],
        max_seq_len: usize,
        now: Instant,
    ) -> Result<Option<FinishReason>, GenerateError> {
        if self.history.len() == self.request.prompt.len() {
            self.phases.decoding();
        }
        let id = self.sampler.sample(row)?;
        if id == self.request.eos_id {
            return Ok(Some(FinishReason::Stop));
        }
        let logprob = self.request.logprobs.then(|| log_softmax_at(row, id)).transpose()?;
        let alternatives = self.request.alternatives(row)?;
        self.history.push(id);
        self.events.send(Event::Token(NewToken { id, at: self.elapsed(now), logprob, alternatives }));
        if self.history.len() - self.request.prompt.len() == self.request.max_gen_len {
            return Ok(Some(FinishReason::Length));
        }
        Ok((self.history.len() == max_seq_len).then_some(FinishReason::Context))
    }

    pub(super) fn send_prompt_logprobs(&mut self) {
        if let Some(logprobs) = self.prompt_logprobs.take() {
            self.events.send(Event::PromptLogprobs(logprobs));
        }
    }
}
