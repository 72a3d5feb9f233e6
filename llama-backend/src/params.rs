//! [`LoadParams`], the limits that a model is loaded with, and [`MemoryPlan`], what they cost.
//!
//! How quantised weights are multiplied is one of them ([`Computation`]): it is the caller's to choose between the numbers and the
//! time, and no engine's.

use std::sync::Arc;

use crate::{BackendError, Communicator, DType, LocalCommunicator, ModelConfig};

/// The limits that a model is loaded with. Memory for all of them is taken at load, none at run time.
///
/// ```
/// use llama_backend::LoadParams;
///
/// let params = LoadParams::new(512, 8);
/// assert_eq!((params.max_seq_len, params.n_slots), (512, 8));
/// ```
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct LoadParams {
    /// Positions that a slot holds.
    pub max_seq_len: usize,
    /// Slots of the KV cache: at least as many as sequences run at a time; the others keep prefixes.
    pub n_slots: usize,
    /// Tokens that one forward pass may hold, over all its runs.
    pub max_batch_tokens: usize,
    /// Threads to compute on; `None` for as many as the process may use ([`Communicator::n_threads`]).
    pub threads: Option<usize>,
    /// How quantised weights are multiplied.
    pub computation: Computation,
    /// How keys and values are kept: [`DType::F32`], as the reference computes, or [`DType::F16`], half the memory to hold and to read, and
    /// not token for token. An engine that has no such cache refuses it.
    pub kv_dtype: DType,
    /// The ranks that the model is split over, and which of them this is: one, unless the caller says otherwise.
    pub communicator: Arc<dyn Communicator>,
}

/// How quantised weights are multiplied. Weights in f32, f16 and bf16 are computed the same under both.
///
/// Both read the same blocks. Nothing is ever rounded over more than one row, so that a row's neighbours in a batch do not change what
/// it is rounded to. An engine that has no faster way for a type computes it as [`Exact`](Self::Exact) says.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
#[non_exhaustive]
pub enum Computation {
    /// Each weight is widened to the number that its block says, and activations stay f32: what "token for token" covers.
    Exact,
    /// Activations are rounded to 8 bits or more, with a scale for each block of a row, and multiplied as whole numbers: several times as fast,
    /// and near the other, not equal to it.
    #[default]
    Fast,
}

/// Communicators are equal where they say the same of rank and size.
impl PartialEq for LoadParams {
    fn eq(&self, other: &Self) -> bool {
        // Every field: one that is new does not compile until it is here. (`derive` cannot compare trait objects.)
        let Self { max_seq_len, n_slots, max_batch_tokens, threads, computation, kv_dtype, communicator } =
            self;
        *max_seq_len == other.max_seq_len
            && *n_slots == other.n_slots
            && *max_batch_tokens == other.max_batch_tokens
            && *threads == other.threads
            && *computation == other.computation
            && *kv_dtype == other.kv_dtype
            && **communicator == *other.communicator
    }
}

impl Eq for LoadParams {}

impl LoadParams {
    /// Limits for `n_slots` sequences of `max_seq_len` positions, 512 tokens a forward pass, on all threads, quantised weights
    /// [fast](Computation::Fast).
    #[must_use]
    pub fn new(max_seq_len: usize, n_slots: usize) -> Self {
        Self {
            max_seq_len,
            n_slots,
            max_batch_tokens: 512.max(n_slots),
            threads: None,
            computation: Computation::default(),
            kv_dtype: DType::F32,
            communicator: Arc::new(LocalCommunicator::default()),
        }
    }

    /// The threads to compute on.
    #[must_use]
    pub fn n_threads(&self) -> usize {
        self.threads.unwrap_or_else(|| self.communicator.n_threads())
    }

    /// Checks that every limit is within bounds.
    ///
    /// # Errors
    ///
    /// [`BackendError::Params`] names the first limit that is not.
    pub fn validate(&self) -> Result<(), BackendError> {
        // 2^24 positions or slots are far above any use; their products with a model's sizes are checked by `Backend::plan`.
        const LIMIT: usize = 1 << 24;
        // Far more than any machine has processors: a number above it is a mistake, and starting so many is an accident.
        const MAX_THREADS: usize = 4096;
        let limits = [
            ("max_seq_len", self.max_seq_len, LIMIT),
            ("n_slots", self.n_slots, LIMIT),
            ("max_batch_tokens", self.max_batch_tokens, LIMIT),
            ("threads", self.n_threads(), MAX_THREADS),
        ];
        for (what, found, limit) in limits {
            if !(1..=limit).contains(&found) {
                return Err(BackendError::params(what, found, format!("between 1 and {limit}")));
            }
        }
        if !matches!(self.kv_dtype, DType::F32 | DType::F16) {
            return Err(BackendError::params("kv_dtype", self.kv_dtype, "f32 or f16"));
        }
        Ok(())
    }

    /// Refuses a KV cache of another type than f32, for engines that have no other.
    ///
    /// # Errors
    ///
    /// [`BackendError::Unsupported`].
    pub fn require_f32_cache(&self, backend: &'static str) -> Result<(), BackendError> {
        match self.kv_dtype {
            DType::F32 => Ok(()),
            other => Err(BackendError::Unsupported { backend, what: format!("a KV cache in {other}") }),
        }
    }

    /// Refuses to be one of several ranks, for engines that cannot hold a part of a model.
    ///
    /// # Errors
    ///
    /// [`BackendError::Unsupported`].
    pub fn require_one_rank(&self, backend: &'static str) -> Result<(), BackendError> {
        match self.communicator.size() {
            0 | 1 => Ok(()),
            size => {
                Err(BackendError::Unsupported { backend, what: format!("a model split over {size} ranks") })
            }
        }
    }
}

/// The bytes that a model takes, before it is loaded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MemoryPlan {
    /// The weights as the engine keeps them, memory-mapped pages included.
    pub weights: u64,
    /// Of these, what is used where the source has it, if the source [shares](crate::WeightSource::shares) it: a memory map's pages, which the
    /// system can drop and read again.
    pub in_place: u64,
    /// Keys and values of every slot.
    pub kv_cache: u64,
    /// Activations of the largest batch.
    pub scratch: u64,
}

impl MemoryPlan {
    /// The plan of an engine that uses matrices where and as they are stored, keeps norms in f32, and needs `scratch` f32
    /// numbers beside them. Computed in 128 bits and cut at `u64::MAX`: any numbers may come, also absurd ones.
    #[must_use]
    pub fn as_stored(config: &ModelConfig, dtype: DType, params: &LoadParams, scratch: u128) -> Self {
        let product = |sizes: &[usize]| sizes.iter().fold(1, |n: u128, &size| n.saturating_mul(size as u128));
        let cut = |bytes: u128| u64::try_from(bytes).unwrap_or(u64::MAX);
        let norms = product(&[2, config.n_layers, config.dim]).saturating_add(config.dim as u128);
        let matrices = u128::from(config.n_params()).saturating_sub(norms);
        let matrices = matrices.saturating_mul(dtype.size() as u128) / dtype.block_len() as u128;
        let weights = matrices.saturating_add(norms.saturating_mul(4));
        let in_place = cut(matrices);
        let positions = product(&[2, config.n_layers, params.n_slots, params.max_seq_len]);
        let kv_dim = product(&[config.n_kv_heads, config.head_dim]);
        Self {
            weights: cut(weights),
            in_place,
            kv_cache: cut(positions.saturating_mul(kv_dim).saturating_mul(params.kv_dtype.size() as u128)),
            scratch: cut(scratch.saturating_mul(4)),
        }
    }

    /// Refuses what no machine could hold, before it is tried.
    ///
    /// # Errors
    ///
    /// [`BackendError::Params`] names the limit that asks for it.
    pub fn check(&self) -> Result<(), BackendError> {
        // The address space of a process: sizes below it can be computed with, and asking for them fails in good order.
        const LIMIT: u64 = 1 << 47;
        let sizes = [("n_slots * max_seq_len", self.kv_cache), ("max_batch_tokens", self.scratch)];
        for (what, found) in sizes {
            if found > LIMIT {
                let found = format!("a size of {found} bytes");
                return Err(BackendError::params(what, found, format!("at most {LIMIT} bytes")));
            }
        }
        Ok(())
    }

    /// What the process has to have of its own, in bytes: all but the weights that are used in place.
    #[must_use]
    pub fn allocated(&self) -> u64 {
        self.total().saturating_sub(self.in_place)
    }

    /// All of it, in bytes.
    #[must_use]
    pub fn total(&self) -> u64 {
        self.weights.saturating_add(self.kv_cache).saturating_add(self.scratch)
    }
}
