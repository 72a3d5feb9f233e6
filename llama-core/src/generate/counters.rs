//! What an engine has done since it was started, and what it does now.

use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

/// What a model has done since it was loaded, and what it does now ([`Llama::stats`](crate::Llama::stats)).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub struct EngineStats {
    /// Slots of the KV cache.
    pub slots: usize,
    /// Requests that hold a slot.
    pub running: usize,
    /// Requests that wait for one.
    pub waiting: usize,
    /// Requests that were given a slot so far.
    pub admitted: u64,
    /// Tokens of prompts that were computed.
    pub prefilled_tokens: u64,
    /// Tokens of prompts that were found in the KV cache.
    pub cached_tokens: u64,
    /// Tokens of answers.
    pub generated_tokens: u64,
    /// Requests that found a prefix of their prompt in the KV cache.
    pub prefix_hits: u64,
    /// Prefixes that were taken over from a slot that keeps them.
    pub forks: u64,
    /// Prefixes that were dropped, because their slot was the least recently used.
    pub evictions: u64,
}

#[derive(Debug, Default)]
pub(super) struct Counters {
    pub(super) running: AtomicUsize,
    pub(super) admitted: AtomicU64,
    pub(super) prefilled_tokens: AtomicU64,
    pub(super) cached_tokens: AtomicU64,
    pub(super) generated_tokens: AtomicU64,
    pub(super) prefix_hits: AtomicU64,
    pub(super) forks: AtomicU64,
    pub(super) evictions: AtomicU64,
}

/// One more, or so many more. Only the engine's thread writes; others read at any time.
pub(super) fn add(counter: &AtomicU64, n: usize) {
    counter.fetch_add(n as u64, Ordering::Relaxed);
}

impl Counters {
    pub(super) fn snapshot(&self, slots: usize, waiting: usize) -> EngineStats {
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        EngineStats {
            slots,
            running: self.running.load(Ordering::Relaxed),
            waiting,
            admitted: read(&self.admitted),
            prefilled_tokens: read(&self.prefilled_tokens),
            cached_tokens: read(&self.cached_tokens),
            generated_tokens: read(&self.generated_tokens),
            prefix_hits: read(&self.prefix_hits),
            forks: read(&self.forks),
            evictions: read(&self.evictions),
        }
    }
}
