//! [`Backend`] and [`Model`]: the minimum that an engine implements.

use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;

use crate::{
    BackendError, Batch, Computation, DType, LoadParams, Logits, MemoryPlan, ModelConfig, Slot, WeightSource,
};

/// An engine on a device, without state: what it can do, what a model would cost, and how to load one.
pub trait Backend: fmt::Debug + Send + Sync {
    /// The engine's name, as users write it: `"candle"`.
    fn name(&self) -> &'static str;

    /// What the engine can do. Callers ask before they load, rather than fail half-way.
    fn capabilities(&self) -> Capabilities;

    /// The bytes that a model of this shape would take, were its matrices stored as `dtype`.
    fn plan(&self, config: &ModelConfig, dtype: DType, params: &LoadParams) -> MemoryPlan;

    /// How quantised weights are multiplied where that was asked for: an engine that has no faster way than exactly says so, since ranks
    /// that compute in different ways would cut matrices at different places.
    fn computation(&self, asked: Computation) -> Computation {
        asked
    }

    /// Loads a model and allocates its KV cache. One of several ranks loads its part, by itself: nothing is said to the others through
    /// [`LoadParams::communicator`] before the first [`forward`](Model::forward), since a rank that fails here is told of only when all are done.
    ///
    /// # Errors
    ///
    /// [`BackendError::Config`] or [`BackendError::Params`] for a shape or limits that make no model,
    /// [`BackendError::Weights`] when a tensor is missing, mis-shaped or of a type that the engine does not take,
    /// [`BackendError::Engine`] when the engine itself fails.
    fn load(&self, source: ModelSource, params: &LoadParams) -> Result<Box<dyn Model>, BackendError>;
}

/// Weights and the KV cache slots that go with them.
///
/// A model is made, used and dropped on one thread of its owner's: `Send`, but not `Sync`.
pub trait Model: Send {
    /// The shape of the model.
    fn config(&self) -> &ModelConfig;

    /// The limits that the model was loaded with.
    fn params(&self) -> &LoadParams;

    /// What was done at load that the caller did not ask for, and may want to know.
    fn notices(&self) -> &[Notice] {
        &[]
    }

    /// Appends each run's tokens to its slot and writes the wanted logits, in the order of the runs.
    ///
    /// # Shapes
    ///
    /// `out`: `[batch.n_rows(), vocab_size]`, f32; what it held before is overwritten.
    ///
    /// # Errors
    ///
    /// A batch that breaks a rule of [`Slots::check`](crate::Slots::check) is refused before any compute. After any error every slot is as it was,
    /// unless the error is [`BackendError::SlotLost`].
    fn forward(&mut self, batch: &Batch<'_>, out: &mut Logits) -> Result<(), BackendError>;

    /// Keeps the positions `< len` of a slot; `len` 0 frees it.
    ///
    /// # Errors
    ///
    /// [`BackendError::UnknownSlot`]; [`BackendError::BeyondLength`] when the slot is shorter than `len`.
    fn truncate(&mut self, slot: Slot, len: usize) -> Result<(), BackendError>;

    /// Makes `to` hold the first `len` positions of `from`, shared or copied; what `to` held is gone.
    ///
    /// # Errors
    ///
    /// [`BackendError::UnknownSlot`]; [`BackendError::BeyondLength`] when `from` is shorter than `len`.
    fn fork(&mut self, from: Slot, to: Slot, len: usize) -> Result<(), BackendError>;
}

/// What a model is loaded from.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub enum ModelSource {
    /// A checkpoint's tensors in the canonical form.
    Weights(Arc<dyn WeightSource>),
    /// A file that holds the whole computation, as an `.onnx` file does: for engines that run graphs.
    Graph {
        /// The file.
        path: PathBuf,
        /// The shape that its maker says the model has. The engine checks what the graph shows of it.
        config: ModelConfig,
    },
}

impl ModelSource {
    /// The shape of the model.
    #[must_use]
    pub fn config(&self) -> &ModelConfig {
        match self {
            Self::Weights(weights) => weights.config(),
            Self::Graph { config, .. } => config,
        }
    }
}

/// What an engine can do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Capabilities {
    /// The types of matrices that it takes as they are stored. llama-core hands it those of any other type in f32, so that
    /// f32 is among them.
    pub dtypes: &'static [DType],
    /// The conformance laws that it does not keep. Each is shown in the project's table of backends.
    pub skipped_laws: &'static [SkippedLaw],
    /// Whether it can be one of several ranks, each with a part of every layer (see [`Communicator`](crate::Communicator)).
    pub tensor_parallel: bool,
}

/// Something that a [`Model`] tells once it is loaded.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Notice {
    /// A border between ranks cuts blocks of these matrices, which are kept in another type.
    Recast {
        /// Their names: one or more.
        tensors: Vec<String>,
        /// As they are stored.
        from: DType,
        /// As they are kept.
        to: DType,
    },
}

impl fmt::Display for Notice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Recast { tensors, from, to } => {
                let first = tensors.first().map_or("", String::as_str);
                let others = match tensors.len().saturating_sub(1) {
                    0 => String::new(),
                    n => format!(" and {n} more"),
                };
                write!(f, "{first}{others}: kept in {to}, since a border between ranks cuts blocks of {from}")
            }
        }
    }
}

/// A conformance law that an engine does not keep, and why.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SkippedLaw {
    /// The law's name in the conformance suite.
    pub law: &'static str,
    /// Why the engine cannot keep it.
    pub reason: &'static str,
}
