//! [`Slots`]: the lengths of a model's slots, and the one place where a batch is checked against them.
//!
//! Each model keeps one. The rules are the seam's, not an engine's: written once here, they cannot differ between engines,
//! and an engine's own code starts from a batch that is known to be right.

use crate::{BackendError, Batch, LoadParams, ModelConfig, Slot};

/// The length of every slot of a model.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Slots {
    lens: Vec<usize>,
    max_seq_len: usize,
    max_batch_tokens: usize,
    vocab_size: usize,
}

impl Slots {
    /// Empty slots for a model of this shape and these limits.
    #[must_use]
    pub fn new(config: &ModelConfig, params: &LoadParams) -> Self {
        Self {
            lens: vec![0; params.n_slots],
            max_seq_len: params.max_seq_len,
            max_batch_tokens: params.max_batch_tokens,
            vocab_size: config.vocab_size,
        }
    }

    /// The positions that a slot holds.
    ///
    /// # Errors
    ///
    /// [`BackendError::UnknownSlot`].
    pub fn len(&self, slot: Slot) -> Result<usize, BackendError> {
        self.lens.get(slot.0).copied().ok_or(BackendError::UnknownSlot { slot, n_slots: self.lens.len() })
    }

    /// Whether every slot is free.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.lens.iter().all(|&len| len == 0)
    }

    /// Checks a batch before any compute. Nothing changes.
    ///
    /// # Errors
    ///
    /// The first rule that is broken: at least one run; at most `max_batch_tokens` tokens; each run has a token and a slot of
    /// its own that exists, starts where the slot ends, ends at `max_seq_len` or before, and its tokens are below `vocab_size`.
    pub fn check(&self, batch: &Batch<'_>) -> Result<(), BackendError> {
        if batch.runs.is_empty() {
            return Err(BackendError::EmptyBatch);
        }
        let n_tokens = batch.n_tokens();
        if n_tokens > self.max_batch_tokens {
            return Err(BackendError::BatchTooLarge { n_tokens, limit: self.max_batch_tokens });
        }
        for (i, run) in batch.runs.iter().enumerate() {
            let slot = run.slot;
            let len = self.len(slot)?;
            // Batches are small: comparing pairs costs less than a set.
            if batch.runs[..i].iter().any(|earlier| earlier.slot == slot) {
                return Err(BackendError::DuplicateSlot { slot });
            }
            if run.tokens.is_empty() {
                return Err(BackendError::EmptyRun { slot });
            }
            if run.start_pos != len {
                return Err(BackendError::NotContiguous { slot, start_pos: run.start_pos, len });
            }
            if run.end_pos() > self.max_seq_len {
                let (end_pos, max_seq_len) = (run.end_pos(), self.max_seq_len);
                return Err(BackendError::SlotFull { slot, end_pos, max_seq_len });
            }
            if let Some(&token) = run.tokens.iter().find(|token| token.0 as usize >= self.vocab_size) {
                return Err(BackendError::TokenOutOfRange { slot, token, vocab_size: self.vocab_size });
            }
        }
        Ok(())
    }

    /// Takes a batch that was checked and computed into account.
    pub fn advance(&mut self, batch: &Batch<'_>) {
        for run in batch.runs {
            if let Some(len) = self.lens.get_mut(run.slot.0) {
                *len = run.end_pos();
            }
        }
    }

    /// Keeps the positions `< len` of a slot.
    ///
    /// # Errors
    ///
    /// [`BackendError::UnknownSlot`], [`BackendError::BeyondLength`].
    pub fn truncate(&mut self, slot: Slot, len: usize) -> Result<(), BackendError> {
        self.at_least(slot, len)?;
        self.lens[slot.0] = len; // in range: `at_least` looked it up
        Ok(())
    }

    /// Makes `to` as long as the prefix of `from` that is copied into it.
    ///
    /// # Errors
    ///
    /// [`BackendError::UnknownSlot`], [`BackendError::BeyondLength`].
    pub fn fork(&mut self, from: Slot, to: Slot, len: usize) -> Result<(), BackendError> {
        self.at_least(from, len)?;
        self.len(to)?;
        self.lens[to.0] = len; // in range: `len` looked it up
        Ok(())
    }

    fn at_least(&self, slot: Slot, wanted: usize) -> Result<(), BackendError> {
        let len = self.len(slot)?;
        if wanted > len {
            return Err(BackendError::BeyondLength { slot, len, wanted });
        }
        Ok(())
    }
}
