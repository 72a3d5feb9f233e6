//! What is measured: prefill and decode of a random model, and the matrix products of a prefill alone.
//!
//! The model: dim 1024, 8 layers, 16 heads of 64 with as many KV heads, ffn_dim 2816, vocabulary 4096, in f32: 428 MB of
//! matrices, far beyond any cache. The vocabulary is small so that the output matrix does not hide the blocks.

use std::sync::Arc;

use candle_core::{Device, Tensor};
use llama_backend::testing::RandomWeights;
use llama_backend::{
    Backend, Batch, DType, LoadParams, Logits, Model, ModelConfig, ModelSource, Run, Slot, TokenId, Want,
    WeightSource,
};

use crate::Error;

/// Tokens of a prefill.
pub const PREFILL: usize = 512;
/// Positions that a decode finds before it.
pub const DECODE_AT: usize = 64;

/// The shape of the random model.
#[must_use]
pub fn config() -> ModelConfig {
    ModelConfig {
        dim: 1024,
        n_layers: 8,
        n_heads: 16,
        n_kv_heads: 16,
        head_dim: 64,
        ffn_dim: 2816,
        vocab_size: 4096,
        norm_eps: 1e-5,
        rope_theta: 10000.0,
    }
}

/// The random model in f32, in memory once and shared by all workloads.
#[must_use]
pub fn weights() -> Arc<RandomWeights> {
    Arc::new(RandomWeights::new(config(), DType::F32, 1).materialised())
}

/// The bytes of weights that one decode reads: every matrix but the embeddings.
#[must_use]
pub fn decode_bytes() -> usize {
    let config = config();
    let read = config.tensors().filter(|(name, _)| name != "tok_embeddings.weight");
    read.map(|(_, shape)| shape.iter().product::<usize>() * 4).sum()
}

/// A model under measurement.
pub struct Forward {
    model: Box<dyn Model>,
    tokens: Vec<TokenId>,
    logits: Logits,
}

impl Forward {
    /// Loads the model with a backend.
    ///
    /// # Errors
    ///
    /// What the backend says.
    pub fn new(backend: &dyn Backend, weights: Arc<RandomWeights>, n_threads: usize) -> Result<Self, Error> {
        let mut params = LoadParams::new(PREFILL, 1);
        params.threads = Some(n_threads);
        Ok(Self {
            model: backend.load(ModelSource::Weights(weights), &params)?,
            tokens: (0..PREFILL as u32).map(|i| TokenId(i * 7 % 4096)).collect(),
            logits: Logits::new(),
        })
    }

    /// Feeds 512 tokens to an empty slot, for the last row of logits.
    ///
    /// # Errors
    ///
    /// What the backend says.
    pub fn prefill(&mut self) -> Result<(), Error> {
        self.feed(0, PREFILL)
    }

    /// Feeds one token after 64 others, for its logits. The first call makes those.
    ///
    /// # Errors
    ///
    /// What the backend says.
    pub fn decode(&mut self) -> Result<(), Error> {
        if self.model.truncate(Slot(0), DECODE_AT).is_err() {
            self.feed(0, DECODE_AT)?;
        }
        self.feed(DECODE_AT, 1)
    }

    fn feed(&mut self, start_pos: usize, n: usize) -> Result<(), Error> {
        self.model.truncate(Slot(0), start_pos)?;
        let run = Run {
            slot: Slot(0),
            start_pos,
            tokens: &self.tokens[start_pos..start_pos + n],
            want: Want::Last,
        };
        self.model.forward(&Batch::new(&[run]), &mut self.logits)?;
        Ok(())
    }
}

impl std::fmt::Debug for Forward {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Forward").finish_non_exhaustive()
    }
}

/// The matrix products of a prefill, through candle's own `matmul`: the same shapes, in the same order, with weights of their own
/// each. No attention, no norms.
#[derive(Debug)]
pub struct Products {
    /// `[n, n_in]` and `[n_out, n_in]`, transposed.
    products: Vec<(Tensor, Tensor)>,
}

impl Products {
    /// Copies the matrices into candle's tensors.
    ///
    /// # Errors
    ///
    /// What candle says.
    pub fn new(weights: &RandomWeights) -> Result<Self, Error> {
        let mut products = Vec::new();
        for (name, shape) in config().tensors() {
            let &[_, n_in] = shape.as_slice() else {
                continue; // a norm
            };
            // An embedding is looked up; the output is wanted for one row.
            let n = match name.as_str() {
                "tok_embeddings.weight" => continue,
                "output.weight" => 1,
                _ => PREFILL,
            };
            let x = Tensor::rand(-1f32, 1f32, (n, n_in), &Device::Cpu)?;
            let bytes = weights.bytes(&name)?;
            let weight = Tensor::from_raw_buffer(&bytes, candle_core::DType::F32, &shape, &Device::Cpu)?;
            products.push((x, weight.t()?));
        }
        Ok(Self { products })
    }

    /// Computes all of them.
    ///
    /// # Errors
    ///
    /// What candle says.
    pub fn run(&self) -> Result<(), Error> {
        for (x, weight) in &self.products {
            std::hint::black_box(x.matmul(weight)?);
        }
        Ok(())
    }
}
