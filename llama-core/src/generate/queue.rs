//! The queue's door: how many requests may wait for a slot, and who waits to be let in.
//!
//! The requests themselves wait in the engine's scheduler. Here they are counted, so that callers who ask faster than the model answers
//! are told, or held up, instead of filling memory. Those who wait for room are let in in the order in which they came.

use std::collections::VecDeque;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use serde::{Deserialize, Serialize};

use super::{CancelToken, Clock, FinishReason, GenerateError};

/// What a call does when the queue has no room for it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum WhenFull {
    /// It waits, and blocks its thread, until there is room, it is cancelled or its deadline comes. (Not for an executor's threads.)
    #[default]
    Wait,
    /// It fails at once with [`GenerateError::QueueFull`].
    Refuse,
}

#[derive(Debug)]
pub(super) struct Queue {
    limit: usize,
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct State {
    /// Requests that were let in and have no slot yet.
    waiting: usize,
    /// Callers who wait for room.
    line: VecDeque<u64>,
    next_ticket: u64,
    closed: bool,
}

/// What became of a caller who waited.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Entry {
    /// So many of its requests may go in; at least one.
    Entered(usize),
    /// It need not wait any longer.
    Ended(FinishReason),
    /// The engine has stopped.
    Closed,
}

impl Queue {
    pub(super) fn new(limit: usize) -> Self {
        Self { limit, state: Mutex::default(), changed: Condvar::new() }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // Counts are whole at every instruction that could panic: there is none.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Lets in all of them or none.
    pub(super) fn try_enter(&self, asked: usize) -> Result<(), GenerateError> {
        let mut state = self.lock();
        if asked > self.limit.saturating_sub(state.waiting) || !state.line.is_empty() {
            return Err(GenerateError::QueueFull { waiting: state.waiting, asked, limit: self.limit });
        }
        state.waiting += asked;
        Ok(())
    }

    /// Waits until there is room for one at least.
    pub(super) fn enter(
        self: &Arc<Self>,
        asked: usize,
        cancel: &CancelToken,
        deadline: Option<Instant>,
        clock: &Clock,
    ) -> Entry {
        let mut state = self.lock();
        let ticket = state.next_ticket;
        state.next_ticket += 1;
        state.line.push_back(ticket);
        let mut watched = false;
        let entry = loop {
            if state.closed {
                break Entry::Closed;
            }
            let room = self.limit.saturating_sub(state.waiting);
            if room > 0 && state.line.front() == Some(&ticket) {
                let entered = room.min(asked);
                state.waiting += entered;
                break Entry::Entered(entered);
            }
            if !watched {
                // Without the lock: cancelling takes the two in the other order. Whatever happens meanwhile is seen below.
                drop(state);
                cancel.wakes(self);
                watched = true;
                state = self.lock();
                continue;
            }
            if cancel.is_cancelled() {
                break Entry::Ended(FinishReason::Cancelled);
            }
            let left = deadline.map(|deadline| deadline.saturating_duration_since(clock()));
            state = match left {
                Some(left) if left.is_zero() => break Entry::Ended(FinishReason::Deadline),
                Some(left) => {
                    self.changed.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0
                }
                None => self.changed.wait(state).unwrap_or_else(PoisonError::into_inner),
            };
        };
        state.line.retain(|&other| other != ticket);
        drop(state);
        // The next in line may have room too.
        self.changed.notify_all();
        entry
    }

    /// So many requests wait no longer.
    pub(super) fn leave(&self, n: usize) {
        let mut state = self.lock();
        state.waiting = state.waiting.saturating_sub(n);
        drop(state);
        self.changed.notify_all();
    }

    pub(super) fn waiting(&self) -> usize {
        self.lock().waiting
    }

    /// Callers who wait for room.
    #[cfg(test)]
    pub(super) fn callers(&self) -> usize {
        self.lock().line.len()
    }

    /// Lets those who wait look again.
    pub(super) fn wake(&self) {
        // With the lock: who has looked and not yet gone to sleep would miss it.
        let _state = self.lock();
        self.changed.notify_all();
    }

    /// Nobody is let in any more.
    pub(super) fn close(&self) {
        self.lock().closed = true;
        self.changed.notify_all();
    }
}
