//! Generation on token ids: requests go in, events come out.
//!
//! Nothing here knows text. One [`Engine`] thread owns the model; the [`scheduler`] decides, without I/O or tensors, which
//! tokens go into the next forward pass, and [`prefixes`] which of them the KV cache holds already; the [`worker`] runs it, samples, and
//! sends events. Every way to generate, be it a batch that is waited for or a stream, is the same: submit requests, read events.

mod active;
mod cancel;
mod channel;
mod counters;
mod engine;
mod outcome;
mod prefixes;
mod queue;
mod request;
mod scheduler;
#[cfg(test)]
mod tests;
mod worker;

use std::sync::Arc;
use std::time::Instant;

pub use cancel::CancelToken;
pub(crate) use channel::Submission;
pub use counters::EngineStats;
pub(crate) use engine::{Engine, Limits};
pub use outcome::{FinishReason, GenerateError, Metrics, Usage};
pub use queue::WhenFull;
pub(crate) use request::{Call, Event, NewToken, PromptLogprobs, Request};

/// Tells the time: the system's, but for tests.
pub(crate) type Clock = Arc<dyn Fn() -> Instant + Send + Sync>;
