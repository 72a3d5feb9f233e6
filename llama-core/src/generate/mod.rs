//! Generation on token ids: requests go in, events come out.
//!
//! Nothing here knows text. One [`Engine`] thread owns the model; the [`scheduler`] decides, without I/O or tensors, which
//! tokens go into the next forward pass; the engine runs it, samples, and sends events. Every way to generate, be it a batch
//! that is waited for or a stream, is the same: submit requests, read events.

mod engine;
mod request;
mod scheduler;
#[cfg(test)]
mod tests;

pub(crate) use engine::Engine;
pub(crate) use request::{Event, Request, Submission};
pub use request::{FinishReason, GenerateError, Usage};
