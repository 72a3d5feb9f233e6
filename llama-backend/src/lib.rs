//! The seam between llama-core and the engines that run the transformer's forward pass.
//!
//! The traits live below both sides, so that `llama-core` can depend on backends by feature and a backend of somebody
//! else's needs nothing but this crate. They are object-safe and coarse: one virtual call a step.
//!
//! # The contract
//!
//! A [`Backend`] is an engine on a device, without state. [`Backend::load`] gives a [`Model`]: weights and a KV cache of
//! [`LoadParams::n_slots`] slots, each holding up to [`LoadParams::max_seq_len`] positions.
//!
//! [`Model::forward`] takes a [`Batch`] of runs. A [`Run`] appends tokens to one slot at consecutive positions and says which
//! rows of logits it wants. *Prefill* is a run of n tokens, *decode* a run of one: the same law, so that chunked prefill and
//! mixed batches cannot disagree with either. These laws hold for every backend (the `testing` feature exports them as a suite):
//!
//! - prefill of n tokens = n decodes = any chunking of the n;
//! - a ragged batch = each of its runs alone; permuted runs = permuted rows;
//! - [`Want::Last`] = the last row of [`Want::All`];
//! - truncate and refeed = a fresh slot; a forked slot = a copy; what happens to one slot leaves the others alone.
//!
//! # Who checks what
//!
//! [`Slots`] is the one place where a batch is checked (slot in range, positions contiguous, tokens in the vocabulary,
//! lengths within limits). Every model keeps one and asks it before it computes, so that no caller can reach an engine with
//! a batch that it would have to survive. A `forward` that failed leaves every slot as it was, or its error says
//! [which slot is lost](BackendError::SlotLost).
//!
//! # Ranks
//!
//! A model may be split over ranks, each a process with a part of every layer ([`LoadParams::communicator`]). [`Ranks`] loads the parts and lets
//! all ranks take the steps of rank 0, so that whoever drives a model need not know how many hold it.
//!
//! # The canonical form of weights
//!
//! Readers deliver one form, whatever the file: Meta's tensor names, row-major `[out, in]`, interleaved RoPE pairs
//! (2i, 2i + 1). See [`WeightSource`]. Elements are as the file stores them, quantised blocks included: an engine names the types
//! that it takes in [`Capabilities::dtypes`], and is given a source that converts the others to f32 ([`quant`] does it). Blocks that it takes
//! it multiplies as [`LoadParams::computation`] says: exactly, or with activations that it may round to 8 bits.

mod backend;
mod batch;
mod communicator;
mod config;
mod device;
mod dtype;
mod error;
mod params;
pub mod quant;
mod ranks;
mod replay;
mod slots;
#[cfg(feature = "testing")]
pub mod testing;
mod weights;

pub use backend::{Backend, Capabilities, Model, ModelSource, Notice, SkippedLaw};
pub use batch::{Batch, Logits, Run, Slot, Span, TokenId, Want};
pub use communicator::{Communicator, CommunicatorError, LocalCommunicator, Phase};
pub use config::{ModelConfig, meta_ffn_dim};
pub use device::{Device, ParseDeviceError};
pub use dtype::DType;
pub use error::BackendError;
pub use params::{Computation, LoadParams, MemoryPlan};
pub use ranks::Ranks;
pub use slots::Slots;
pub use weights::{TensorInfo, WeightBytes, WeightError, WeightSource, check_weights, read_tensor};
