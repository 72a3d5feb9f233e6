//! How an answer ends: its reason, what it cost, how long it took, and what can go wrong.

use std::sync::Arc;
use std::time::Duration;

use llama_backend::BackendError;
use serde::{Deserialize, Serialize};

use crate::sampler::SamplingError;

/// Why an answer ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum FinishReason {
    /// The model ended it with EOS.
    Stop,
    /// One of the caller's stop strings came; the text ends before it.
    StopString,
    /// It reached `max_gen_len`.
    Length,
    /// It reached `max_seq_len`: the context is full.
    Context,
    /// It was cancelled; what was said until then is kept.
    Cancelled,
    /// Its time was up; what was said until then is kept.
    Deadline,
    /// It was not begun: the dialog holds a special tag.
    Refused,
    /// A guard refused the prompt, so that it was not begun, or what was to follow; what was told until then is kept.
    Guarded,
}

/// The tokens that an answer cost.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Hash, Serialize, Deserialize)]
pub struct Usage {
    /// Tokens of the prompt, BOS included.
    pub prompt_tokens: usize,
    /// Tokens that the model said, EOS not included; those of a stop string are.
    pub completion_tokens: usize,
}

/// How long an answer took, and how much of its prompt was in the KV cache already.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Metrics {
    /// From submission until the request got a slot.
    pub queue_time: Duration,
    /// From submission until the first token was sampled; `None` when there was none.
    pub time_to_first_token: Option<Duration>,
    /// Tokens a second from the first token to the last; `None` for fewer than two.
    pub tokens_per_second: Option<f64>,
    /// Tokens of the prompt whose keys and values were kept from earlier requests: the others were prefilled.
    pub cached_tokens: usize,
}

/// Why the engine could not take a request or complete an answer.
#[derive(Debug, Clone, thiserror::Error)]
#[non_exhaustive]
pub enum GenerateError {
    /// The backend failed in a step that this request was a part of. Other requests go on.
    #[error("the forward pass failed: {0}")]
    Backend(Arc<BackendError>),
    /// The backend gave fewer rows of logits than it was asked for.
    #[error("the backend gave {n_rows} rows of logits, row {row} is missing")]
    MissingLogits {
        /// The row that is missing.
        row: usize,
        /// The rows that are there.
        n_rows: usize,
    },
    /// No token could be chosen from the logits.
    #[error(transparent)]
    Sampling(#[from] SamplingError),
    /// The queue has no room, and the caller did not want to wait ([`WhenFull::Refuse`](crate::WhenFull::Refuse)).
    #[error("the queue is full: {waiting} requests wait, {asked} more were asked for, {limit} may wait")]
    QueueFull {
        /// Requests that wait.
        waiting: usize,
        /// Requests of the refused call.
        asked: usize,
        /// [`LlamaBuilder::max_queue_len`](crate::LlamaBuilder::max_queue_len).
        limit: usize,
    },
    /// The backend panicked, while it loaded or later: what the model's memory holds is unknown, and the engine has stopped.
    #[error("the engine has stopped, because it panicked: {message}")]
    Panicked {
        /// What the panic said.
        message: String,
    },
    /// The backend could not free a slot of the KV cache, and the engine has stopped.
    #[error("the engine has stopped, because a slot of the KV cache could not be freed: {0}")]
    ModelLost(Arc<BackendError>),
    /// The engine's thread has ended.
    #[error("the engine has stopped")]
    Stopped,
}

impl GenerateError {
    /// Whether the model is of no more use, to this request and to every other: it must be loaded again.
    #[must_use]
    pub fn is_fatal(&self) -> bool {
        matches!(self, Self::Panicked { .. } | Self::ModelLost(_) | Self::Stopped)
    }

    /// Whether the queue was full: later there may be room.
    #[must_use]
    pub fn is_queue_full(&self) -> bool {
        matches!(self, Self::QueueFull { .. })
    }
}
