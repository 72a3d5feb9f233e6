//! Which tokens go into the next forward pass: slots, admission and chunked prefill, without I/O or tensors.
//!
//! A row has a number of *known* tokens (its prompt and what was sampled since) and a number of *fed* ones, whose keys and values are
//! in the cache. A step feeds some of the difference: prefill is a row that is far behind, decode one that is a single token
//! behind. A row that ends gives its slot to the next one waiting (continuous batching); the slot keeps what it holds until then
//! ([`Prefixes`]).

use std::collections::VecDeque;
use std::sync::Arc;

use llama_backend::{Slot, TokenId, Want};

use super::prefixes::{Placement, Prefixes, common_prefix};
use super::request::RequestId;

/// Logits rows for prompt logprobs are asked for so many at a time: 256 rows of 32000 logits are 32 MB, a prompt's could be
/// many times that.
pub(super) const MAX_PROMPT_ROWS: usize = 256;

/// A prompt waits for another that is being prefilled if so many more tokens will then be in common: what every dialog begins with is
/// less, a system prompt is more.
pub(super) const WORTH_WAITING: usize = 32;

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
#[derive(Debug, Clone)]
pub(super) struct Job {
    pub(super) id: RequestId,
    pub(super) prompt: Arc<[TokenId]>,
    /// Of the prompt, the tokens to feed before the first sample: at least one.
    pub(super) n_prefill: usize,
    /// A row of logits for each of them from this one on, rather than for the last alone.
    pub(super) rows_from: Option<usize>,
}

impl Job {
    /// The tokens that need not be fed if the cache holds them: those whose logits nobody wants. The last one must be, since what comes next is
    /// sampled from its logits.
    fn reusable(&self) -> &[TokenId] {
        let last = self.n_prefill - 1; // at least one, at most the prompt
        &self.prompt[..self.rows_from.unwrap_or(last).min(last)]
    }
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

    /// Whether its next tokens give a row of logits each.
    fn wants_all(&self) -> bool {
        self.job.rows_from.is_some_and(|from| (from..self.job.n_prefill).contains(&self.fed))
    }

    /// The tokens that one step may feed: a step that gives a row for each begins with the first that wants one.
    fn next(&self) -> usize {
        match self.job.rows_from {
            Some(from) if self.fed < from => from - self.fed,
            _ => self.behind(),
        }
    }
}

/// What a forward pass has room for.
struct Room {
    tokens: usize,
    prompt_rows: usize,
}

impl Room {
    /// Takes as many tokens as the row is behind (`taken` of them are taken already), or as there are.
    fn take(&mut self, row: &Row, taken: usize, at_most: usize) -> usize {
        let rows = if row.wants_all() { self.prompt_rows } else { usize::MAX };
        let n_tokens = (row.next() - taken).min(at_most).min(self.tokens).min(rows);
        self.tokens -= n_tokens;
        self.prompt_rows -= if row.wants_all() { n_tokens } else { 0 };
        n_tokens
    }
}

/// The rows that run and the jobs that wait.
#[derive(Debug)]
pub(super) struct Scheduler {
    max_batch_size: usize,
    max_batch_tokens: usize,
    prefixes: Prefixes,
    waiting: VecDeque<Job>,
    /// In the order of admission.
    running: Vec<Row>,
}

impl Scheduler {
    /// `n_slots` is at least `max_batch_size`, and `max_batch_tokens` is more, so that every step can feed all decoding rows and
    /// some of a prompt.
    pub(super) fn new(n_slots: usize, max_batch_size: usize, max_batch_tokens: usize) -> Self {
        debug_assert!(n_slots >= max_batch_size && max_batch_tokens > max_batch_size);
        let prefixes = Prefixes::new(n_slots);
        Self { max_batch_size, max_batch_tokens, prefixes, waiting: VecDeque::new(), running: Vec::new() }
    }

    pub(super) fn submit(&mut self, job: Job) {
        self.waiting.push_back(job);
    }

    pub(super) fn is_idle(&self) -> bool {
        self.waiting.is_empty() && self.running.is_empty()
    }

    /// Gives slots to those who wait, in their order, but for those who gain by waiting. The model must do as the placements say, one by one.
    pub(super) fn admit(&mut self) -> Vec<(RequestId, Placement)> {
        let mut admitted = Vec::new();
        // Those who wait by choice, each of whom keeps the place that it would have: nobody who came later takes it.
        let mut next = 0;
        while self.running.len() + next < self.max_batch_size
            && let Some(job) = self.waiting.get(next)
        {
            if self.gains_by_waiting(job) {
                next += 1;
                continue;
            }
            let Some(placement) = self.prefixes.place(job.reusable()) else { break };
            let Some(job) = self.waiting.remove(next) else { break };
            admitted.push((job.id, placement));
            self.running.push(Row { known: job.n_prefill, job, slot: placement.slot, fed: placement.len });
        }
        admitted
    }

    /// Whether a row that is being prefilled will soon leave more of this prompt in the cache than is there now. Ten dialogs with
    /// one system prompt, asked together, prefill it once.
    fn gains_by_waiting(&self, job: &Job) -> bool {
        let prompt = job.reusable();
        let prefilling = self.running.iter().filter(|row| row.fed < row.job.n_prefill);
        let soon = prefilling.map(|row| common_prefix(&row.job.prompt[..row.job.n_prefill], prompt)).max();
        soon.is_some_and(|soon| {
            soon >= WORTH_WAITING && soon >= self.prefixes.longest(prompt) + WORTH_WAITING
        })
    }

    /// The placement failed: the slot is empty, and the row is fed from the beginning.
    pub(super) fn refill(&mut self, id: RequestId) {
        if let Some(row) = self.running.iter_mut().find(|row| row.job.id == id) {
            row.fed = 0;
            self.prefixes.clear(row.slot);
        }
    }

    /// The next forward pass. Decoding rows come first: a long prompt never makes a running answer wait. Of what they leave, half is for
    /// the prompt that was admitted first, so that each has its turn; the rest goes to the prompts that need least, so that a short one
    /// does not wait for a long one.
    pub(super) fn plan(&self) -> Vec<Step> {
        let mut room = Room { tokens: self.max_batch_tokens, prompt_rows: MAX_PROMPT_ROWS };
        let mut steps = Vec::with_capacity(self.running.len());
        let (decoding, mut prefilling): (Vec<_>, Vec<_>) =
            self.running.iter().partition(|row| row.behind() <= 1 && !row.wants_all());
        for row in decoding {
            let n_tokens = room.take(row, 0, usize::MAX);
            steps.extend(step(row, n_tokens));
        }
        if !prefilling.is_empty() {
            let first = prefilling.remove(0);
            let half = if first.wants_all() { room.prompt_rows.min(room.tokens) } else { room.tokens };
            let mut n_tokens = room.take(first, 0, half.div_ceil(2));
            prefilling.sort_by_key(|row| row.behind()); // stable: the order of admission among equals
            for row in prefilling {
                let n_tokens = room.take(row, 0, usize::MAX);
                steps.extend(step(row, n_tokens));
            }
            n_tokens += room.take(first, n_tokens, usize::MAX);
            steps.extend(step(first, n_tokens));
        }
        steps
    }

    /// The step was computed, with these tokens.
    pub(super) fn fed(&mut self, step: &Step, tokens: &[TokenId]) {
        if let Some(row) = self.running.iter_mut().find(|row| row.job.id == step.id) {
            row.fed += step.n_tokens;
            self.prefixes.extend(step.slot, tokens);
        }
    }

    /// A token was sampled and is to be fed next.
    pub(super) fn sampled(&mut self, id: RequestId) {
        if let Some(row) = self.running.iter_mut().find(|row| row.job.id == id) {
            row.known += 1;
        }
    }

    /// The request is over. Gives the slot that it held, which keeps what it holds, and is free for others from the next
    /// [`admit`](Self::admit) on.
    pub(super) fn finish(&mut self, id: RequestId) -> Option<Slot> {
        if let Some(i) = self.running.iter().position(|row| row.job.id == id) {
            let slot = self.running.remove(i).slot;
            self.prefixes.give_back(slot);
            return Some(slot);
        }
        self.waiting.retain(|job| job.id != id);
        None
    }

    /// What a slot holds is not to be trusted.
    pub(super) fn forget(&mut self, slot: Slot) {
        self.prefixes.clear(slot);
        if let Some(row) = self.running.iter_mut().find(|row| row.slot == slot) {
            row.fed = 0;
        }
    }
}

/// The row's next `n_tokens`; none is no step.
fn step(row: &Row, n_tokens: usize) -> Option<Step> {
    let want = match (row.wants_all(), n_tokens == row.behind()) {
        (true, _) => Want::All,
        (false, true) => Want::Last,
        (false, false) => Want::None,
    };
    (n_tokens > 0).then_some(Step { id: row.job.id, slot: row.slot, start_pos: row.fed, n_tokens, want })
}
