//! [`BackendError`]: what can go wrong below the seam, with the numbers.

use std::error::Error;
use std::fmt::Display;
use std::path::PathBuf;

use crate::{CommunicatorError, Slot, TokenId, WeightError};

/// Why a backend could not load a model or take a step.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum BackendError {
    /// A value of the model's shape that makes no transformer.
    #[error("model configuration: {what} is {found}, expected {expected}")]
    Config {
        /// The field, in Meta's words.
        what: &'static str,
        /// Its value.
        found: String,
        /// What would have been accepted.
        expected: String,
    },
    /// A limit in [`LoadParams`](crate::LoadParams) that makes no model.
    #[error("load parameters: {what} is {found}, expected {expected}")]
    Params {
        /// The field.
        what: &'static str,
        /// Its value.
        found: String,
        /// What would have been accepted.
        expected: String,
    },
    /// The checkpoint does not hold what the model needs.
    #[error(transparent)]
    Weights(#[from] WeightError),
    /// The engine cannot do what was asked for; another may.
    #[error("the {backend} backend does not support {what}")]
    Unsupported {
        /// The backend's name.
        backend: &'static str,
        /// What was asked for.
        what: String,
    },
    /// The engine's shared library is not there, or is not one that will do.
    #[error("the {backend} backend needs the library {}: {source}; {remedy}", .library.display())]
    Library {
        /// The backend's name.
        backend: &'static str,
        /// The library that was tried.
        library: PathBuf,
        /// What to install, and which variable to set.
        remedy: &'static str,
        /// What the system or the engine said.
        source: Box<dyn Error + Send + Sync>,
    },
    /// A model that cannot be split over so many ranks.
    #[error("{ranks} ranks cannot hold a model whose {what} is {found}: expected {expected}")]
    Ranks {
        /// The ranks.
        ranks: usize,
        /// The field of the model's shape, in Meta's words.
        what: &'static str,
        /// Its value.
        found: usize,
        /// Which would do.
        expected: &'static str,
    },
    /// Another rank failed, and with it all of them.
    #[error("rank {rank}: {message}")]
    OtherRank {
        /// The rank.
        rank: usize,
        /// Its error.
        message: String,
    },
    /// The ranks could not do something together.
    #[error(transparent)]
    Communicator(#[from] CommunicatorError),
    /// A batch without runs.
    #[error("the batch holds no run")]
    EmptyBatch,
    /// More tokens than the model was loaded for.
    #[error("the batch holds {n_tokens} tokens, max_batch_tokens is {limit}")]
    BatchTooLarge {
        /// Tokens of all runs together.
        n_tokens: usize,
        /// `LoadParams::max_batch_tokens`.
        limit: usize,
    },
    /// A run without tokens.
    #[error("the run for slot {slot} holds no token")]
    EmptyRun {
        /// The run's slot.
        slot: Slot,
    },
    /// A slot that the model does not have.
    #[error("slot {slot} does not exist: the model was loaded with {n_slots} slots")]
    UnknownSlot {
        /// The slot asked for.
        slot: Slot,
        /// `LoadParams::n_slots`.
        n_slots: usize,
    },
    /// Two runs for one slot in one batch.
    #[error("slot {slot} stands in two runs of one batch")]
    DuplicateSlot {
        /// The slot.
        slot: Slot,
    },
    /// A run that does not start where its slot ends.
    #[error("the run for slot {slot} starts at position {start_pos}, but the slot holds {len} positions")]
    NotContiguous {
        /// The run's slot.
        slot: Slot,
        /// Where the run starts.
        start_pos: usize,
        /// The slot's length.
        len: usize,
    },
    /// A run that would outgrow its slot.
    #[error("the run for slot {slot} ends at position {end_pos}, max_seq_len is {max_seq_len}")]
    SlotFull {
        /// The run's slot.
        slot: Slot,
        /// The slot's length after the run.
        end_pos: usize,
        /// `LoadParams::max_seq_len`.
        max_seq_len: usize,
    },
    /// A token that has no embedding.
    #[error("token {token} in the run for slot {slot} is not below vocab_size {vocab_size}")]
    TokenOutOfRange {
        /// The run's slot.
        slot: Slot,
        /// The token.
        token: TokenId,
        /// `ModelConfig::vocab_size`.
        vocab_size: usize,
    },
    /// A truncation or fork that asks for more positions than the slot holds.
    #[error("slot {slot} holds {len} positions, {wanted} were asked for")]
    BeyondLength {
        /// The slot.
        slot: Slot,
        /// The positions that it holds.
        len: usize,
        /// The positions asked for.
        wanted: usize,
    },
    /// The engine failed in a way that cost a slot its content: free it with `truncate(slot, 0)` before it is used again.
    #[error("slot {slot} is lost")]
    SlotLost {
        /// The slot.
        slot: Slot,
        /// What the engine said.
        source: Box<dyn Error + Send + Sync>,
    },
    /// The engine failed.
    #[error("the {backend} engine failed: {source}")]
    Engine {
        /// The backend's name.
        backend: &'static str,
        /// What the engine said.
        source: Box<dyn Error + Send + Sync>,
    },
}

impl BackendError {
    /// A [`BackendError::Config`].
    pub fn config(what: &'static str, found: impl Display, expected: impl Display) -> Self {
        Self::Config { what, found: found.to_string(), expected: expected.to_string() }
    }

    /// A [`BackendError::Params`].
    pub fn params(what: &'static str, found: impl Display, expected: impl Display) -> Self {
        Self::Params { what, found: found.to_string(), expected: expected.to_string() }
    }

    /// A [`BackendError::Engine`].
    pub fn engine(backend: &'static str, source: impl Into<Box<dyn Error + Send + Sync>>) -> Self {
        Self::Engine { backend, source: source.into() }
    }
}
