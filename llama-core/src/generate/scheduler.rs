//! Which tokens go into the next forward pass: slots, admission and chunked prefill, without I/O or tensors.
//!
//! A row has a number of *known* tokens (its prompt and what was sampled since) and a number of *fed* ones, whose keys and values are
//! in the cache. A step feeds some of the difference: prefill is a row that is far behind, decode one that is a single token
//! behind. A row that ends gives its slot to the next one waiting (continuous batching).

use std::collections::VecDeque;

use llama_backend::{Slot, Want};

use super::request::RequestId;

/// Logits rows for prompt logprobs are asked for so many at a time: 256 rows of 32000 logits are 32 MB, a prompt's could be
/// many times that.
pub(super) const MAX_PROMPT_ROWS: usize = 256;

/// A row's share of a forward pass: `n_tokens` known tokens from position `start_pos` on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Step {
    pub(super) id: RequestId,
    pub(super) slot: Slot,
    pub(super) start_pos: usize,
    pub(super) n_tokens: usize,
    pub(super) want: Want,
}

/// What the scheduler must know of a new request.
#[derive(Debug, Clone, Copy)]
pub(super) struct Job {
    pub(super) id: RequestId,
    /// Tokens to feed before the first sample: at least one.
    pub(super) n_prefill: usize,
    /// A row of logits for each of them, rather than for the last.
    pub(super) all_rows: bool,
}

#[derive(Debug)]
struct Row {
    job: Job,
    slot: Slot,
    known: usize,
    fed: usize,
}

impl Row {
    fn behind(&self) -> usize {
        self.known - self.fed
    }
}

/// The rows that run and the jobs that wait.
#[derive(Debug)]
pub(super) struct Scheduler {
    max_batch_tokens: usize,
    free: Vec<Slot>,
    waiting: VecDeque<Job>,
    /// In the order of admission.
    running: Vec<Row>,
}

impl Scheduler {
    /// `max_batch_tokens` is more than `n_slots`, so that every step can feed all decoding rows and some of a prompt.
    pub(super) fn new(n_slots: usize, max_batch_tokens: usize) -> Self {
        debug_assert!(max_batch_tokens > n_slots);
        // The free list is a stack: reversed, so that slot 0 is taken first.
        let free = (0..n_slots).rev().map(Slot).collect();
        Self { max_batch_tokens, free, waiting: VecDeque::new(), running: Vec::new() }
    }

    pub(super) fn submit(&mut self, job: Job) {
        self.waiting.push_back(job);
    }

    pub(super) fn is_idle(&self) -> bool {
        self.waiting.is_empty() && self.running.is_empty()
    }

    /// The next forward pass. Decoding rows come first: a long prompt never makes a running answer wait. What they leave
    /// of the batch goes to prompts, in the order of admission.
    pub(super) fn plan(&mut self) -> Vec<Step> {
        self.admit();
        let mut tokens_left = self.max_batch_tokens;
        let mut rows_left = MAX_PROMPT_ROWS;
        let (decoding, prefilling): (Vec<_>, Vec<_>) = self.running.iter().partition(|row| row.behind() <= 1);
        let mut steps = Vec::with_capacity(self.running.len());
        for row in decoding.into_iter().chain(prefilling) {
            let in_prompt = row.fed < row.job.n_prefill;
            let all = row.job.all_rows && in_prompt;
            let n_tokens = row.behind().min(tokens_left).min(if all { rows_left } else { usize::MAX });
            if n_tokens == 0 {
                continue;
            }
            let want = match (all, n_tokens == row.behind()) {
                (true, _) => Want::All,
                (false, true) => Want::Last,
                (false, false) => Want::None,
            };
            tokens_left -= n_tokens;
            rows_left -= if all { n_tokens } else { 0 };
            steps.push(Step { id: row.job.id, slot: row.slot, start_pos: row.fed, n_tokens, want });
        }
        steps
    }

    /// The step was computed.
    pub(super) fn fed(&mut self, step: &Step) {
        if let Some(row) = self.running.iter_mut().find(|row| row.job.id == step.id) {
            row.fed += step.n_tokens;
        }
    }

    /// A token was sampled and is to be fed next.
    pub(super) fn sampled(&mut self, id: RequestId) {
        if let Some(row) = self.running.iter_mut().find(|row| row.job.id == id) {
            row.known += 1;
        }
    }

    /// The request is over. Gives the slot that it held, which is free for others from the next [`plan`](Self::plan) on.
    pub(super) fn finish(&mut self, id: RequestId) -> Option<Slot> {
        if let Some(i) = self.running.iter().position(|row| row.job.id == id) {
            let slot = self.running.remove(i).slot;
            self.free.push(slot);
            return Some(slot);
        }
        self.waiting.retain(|job| job.id != id);
        None
    }

    fn admit(&mut self) {
        while !self.waiting.is_empty()
            && let Some(slot) = self.free.pop()
        {
            // Not empty: asked above.
            if let Some(job) = self.waiting.pop_front() {
                self.running.push(Row { job, slot, known: job.n_prefill, fed: 0 });
            }
        }
    }
}
