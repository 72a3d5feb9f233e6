//! [`LoadParams`], the limits that a model is loaded with, and [`MemoryPlan`], what they cost.

use crate::BackendError;

/// The limits that a model is loaded with. Memory for all of them is taken at load, none at run time.
///
/// ```
/// use llama_backend::LoadParams;
///
/// let params = LoadParams::new(512, 8);
/// assert_eq!((params.max_seq_len, params.n_slots), (512, 8));
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct LoadParams {
    /// Positions that a slot holds.
    pub max_seq_len: usize,
    /// Slots of the KV cache: at least as many as sequences run at a time; the others keep prefixes.
    pub n_slots: usize,
    /// Tokens that one forward pass may hold, over all its runs.
    pub max_batch_tokens: usize,
    /// Threads to compute on; `None` for as many as the process may use.
    pub threads: Option<usize>,
}

impl LoadParams {
    /// Limits for `n_slots` sequences of `max_seq_len` positions, 512 tokens a forward pass, on all threads.
    #[must_use]
    pub fn new(max_seq_len: usize, n_slots: usize) -> Self {
        Self { max_seq_len, n_slots, max_batch_tokens: 512.max(n_slots), threads: None }
    }

    /// The threads to compute on.
    #[must_use]
    pub fn n_threads(&self) -> usize {
        self.threads.unwrap_or_else(|| std::thread::available_parallelism().map_or(1, usize::from))
    }

    /// Checks that every limit is within bounds.
    ///
    /// # Errors
    ///
    /// [`BackendError::Params`] names the first limit that is not.
    pub fn validate(&self) -> Result<(), BackendError> {
        // 2^24 positions or slots are far above any use; their products with a model's sizes are checked by `Backend::plan`.
        const LIMIT: usize = 1 << 24;
        let limits = [
            ("max_seq_len", self.max_seq_len),
            ("n_slots", self.n_slots),
            ("max_batch_tokens", self.max_batch_tokens),
            ("threads", self.n_threads()),
        ];
        for (what, found) in limits {
            if !(1..=LIMIT).contains(&found) {
                return Err(BackendError::params(what, found, format!("between 1 and {LIMIT}")));
            }
        }
        Ok(())
    }
}

/// The bytes that a model takes, before it is loaded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MemoryPlan {
    /// The weights as the engine keeps them, memory-mapped pages included.
    pub weights: u64,
    /// Keys and values of every slot.
    pub kv_cache: u64,
    /// Activations of the largest batch.
    pub scratch: u64,
}

impl MemoryPlan {
    /// All of it, in bytes.
    #[must_use]
    pub fn total(&self) -> u64 {
        self.weights.saturating_add(self.kv_cache).saturating_add(self.scratch)
    }
}
