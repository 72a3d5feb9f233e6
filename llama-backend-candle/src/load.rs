//! From a checkpoint's tensors to a model, and what that will cost.
//!
//! Everything is checked before anything large is allocated. A matrix on the CPU is not read at all: it stays in the reader's
//! memory map, and the first step that uses it brings it in.

use std::sync::Arc;

use candle_core::Tensor;
use llama_backend::{
    BackendError, Computation, DType, LoadParams, MemoryPlan, ModelConfig, Slots, WeightError, WeightSource,
    check_weights, read_tensor,
};

use crate::attention::Attention;
use crate::kernels::Context;
use crate::kernels::attention::Shape;
use crate::kernels::quant::Packed;
use crate::kernels::rope::RopeTables;
use crate::kv_cache::KvCache;
use crate::linear::{Linear, Use, vector};
use crate::model::{CandleModel, Layer, Transformer};
use crate::ops::Ops;
use crate::{DTYPES, NAME, Place, engine, tensors};

/// The bytes of a model of this shape.
pub(crate) fn plan(place: &Place, config: &ModelConfig, dtype: DType, params: &LoadParams) -> MemoryPlan {
    // A device is given blocks in f32.
    let on_host = matches!(place, Place::Host(_));
    let dtype = if on_host || !dtype.is_quantized() { dtype } else { DType::F32 };
    let product = |sizes: &[usize]| {
        let sizes = sizes.iter().map(|&size| size as u128);
        sizes.fold(1, u128::saturating_mul)
    };
    let sum = |sizes: &[u128]| sizes.iter().copied().fold(0, u128::saturating_add);
    let ModelConfig { dim, n_heads, n_kv_heads, head_dim, ffn_dim, .. } = *config;

    let (q_dim, kv_dim) = (product(&[n_heads, head_dim]), product(&[n_kv_heads, head_dim]));

    // The widest points of a block, beside h, its successor and x: q, k, v and two copies of attention's output; or gate, up
    // and their product.
    let in_attention = sum(&[q_dim.saturating_mul(3), kv_dim.saturating_mul(2)]);
    let in_ffn = product(&[3, ffn_dim]);
    let width = sum(&[product(&[3, dim]), in_attention.max(in_ffn)]);
    let activations = width.saturating_mul(params.max_batch_tokens as u128);
    let rope = product(&[params.max_seq_len, head_dim]);
    let tasks = product(&[params.max_batch_tokens, n_kv_heads]).min(params.n_threads() as u128);
    let scores = tasks.saturating_mul(shape(config, params).task_scratch());
    let products = match (params.computation, dtype.is_quantized()) {
        // Activations as bytes: 64 bytes for 32 elements; twice for the output's, which are fine.
        (Computation::Fast, true) => {
            let widest = q_dim.max(product(&[2, dim])).max(ffn_dim as u128);
            widest.saturating_mul(params.max_batch_tokens as u128) / 2
        }
        // A copy of activations, arranged for the product.
        _ if on_host => {
            let widest = q_dim.max(dim as u128).max(ffn_dim as u128);
            widest.saturating_mul(params.max_batch_tokens as u128)
        }
        // A matrix at a time is widened as a whole.
        _ if dtype == DType::F32 => 0,
        _ => product(&[dim.max(ffn_dim).max(config.vocab_size), dim]),
    };
    let plan = MemoryPlan::as_stored(config, dtype, params, sum(&[activations, rope, scores, products]));
    match params.computation {
        // A device has a copy of its own.
        _ if !on_host => MemoryPlan { in_place: 0, ..plan },
        // All but the embeddings is packed. The packed forms of some types are a little larger than their blocks.
        Computation::Fast if dtype.is_quantized() => {
            let embeddings = product(&[config.vocab_size, dim, dtype.size()]) / dtype.block_len() as u128;
            let in_place = plan.in_place.min(u64::try_from(embeddings).unwrap_or(u64::MAX));
            MemoryPlan { weights: Packed::enlarged(dtype, plan.weights), in_place, ..plan }
        }
        _ => plan,
    }
}

/// Loads a model to where it will run.
pub(crate) fn load(
    place: &Place,
    source: &dyn WeightSource,
    params: &LoadParams,
) -> Result<CandleModel, BackendError> {
    let config = source.config().clone();
    config.validate()?;
    params.validate()?;
    plan(place, &config, DType::F32, params).check()?;
    check_weights(source, DTYPES)?;

    let shape = shape(&config, params);
    let rope = || RopeTables::new(shape.max_seq_len, shape.head_dim, config.rope_theta).map_err(engine);
    // The cache is the largest allocation: it comes first, so that a size that cannot be had costs nothing.
    let (ops, attention, cache) = match place {
        Place::Host(isa) => {
            let cache = KvCache::host(shape, config.n_layers, params)?;
            let ctx = Arc::new(Context::new(*isa, params.n_threads()).map_err(engine)?);
            let rope = rope()?;
            let ops = Ops::Host(Arc::clone(&ctx));
            (ops, Attention::Host { ctx, shape, rope }, cache)
        }
        Place::Tensors(device) => {
            params.require_f32_cache(NAME)?;
            let cache = KvCache::tensors(shape, config.n_layers, params.n_slots, device)?;
            let rope = rope()?;
            let attention = tensors::Attention::new(shape, rope, device).map_err(engine)?;
            (Ops::Tensors(device.clone()), Attention::Tensors(attention), cache)
        }
    };
    let reader = Reader { source, ops: &ops, computation: params.computation };
    let transformer = reader.transformer(&config, attention)?;
    Ok(CandleModel { slots: Slots::new(&config, params), params: params.clone(), config, transformer, cache })
}

fn shape(config: &ModelConfig, params: &LoadParams) -> Shape {
    Shape {
        n_kv_heads: config.n_kv_heads,
        // `plan` may be asked about numbers that make no model.
        n_rep: config.n_heads.checked_div(config.n_kv_heads).unwrap_or(1).max(1),
        head_dim: config.head_dim,
        max_seq_len: params.max_seq_len,
    }
}

/// Takes tensors from a checkpoint by name.
struct Reader<'a> {
    source: &'a dyn WeightSource,
    ops: &'a Ops,
    /// How quantised matrices are multiplied.
    computation: Computation,
}

impl Reader<'_> {
    fn transformer(&self, config: &ModelConfig, attention: Attention) -> Result<Transformer, BackendError> {
        let ModelConfig { dim, ffn_dim, vocab_size, .. } = *config;
        let (q_dim, kv_dim) = (config.q_dim(), config.kv_dim());
        let layer = |i: usize| {
            let name = |part: &str| format!("layers.{i}.{part}.weight");
            Ok(Layer {
                attention_norm: self.norm(&name("attention_norm"))?,
                wq: self.linear(&name("attention.wq"), q_dim, dim)?,
                wk: self.linear(&name("attention.wk"), kv_dim, dim)?,
                wv: self.linear(&name("attention.wv"), kv_dim, dim)?,
                wo: self.linear(&name("attention.wo"), dim, q_dim)?,
                ffn_norm: self.norm(&name("ffn_norm"))?,
                w1: self.linear(&name("feed_forward.w1"), ffn_dim, dim)?,
                w2: self.linear(&name("feed_forward.w2"), dim, ffn_dim)?,
                w3: self.linear(&name("feed_forward.w3"), ffn_dim, dim)?,
            })
        };
        Ok(Transformer {
            tok_embeddings: self.matrix("tok_embeddings.weight", [vocab_size, dim], Use::Rows)?,
            layers: (0..config.n_layers).map(layer).collect::<Result<_, BackendError>>()?,
            norm: self.norm("norm.weight")?,
            output: self.matrix("output.weight", [vocab_size, dim], Use::FineProducts(self.computation))?,
            norm_eps: config.norm_eps,
            attention,
            ops: self.ops.clone(),
        })
    }

    /// A matrix that is multiplied.
    fn linear(&self, name: &str, n_out: usize, n_in: usize) -> Result<Linear, BackendError> {
        self.matrix(name, [n_out, n_in], Use::Products(self.computation))
    }

    fn matrix(&self, name: &str, shape: [usize; 2], used: Use) -> Result<Linear, BackendError> {
        let (dtype, bytes) = read_tensor(self.source, name)?;
        let linear = Linear::new(self.ops, shape, dtype, bytes, used).map_err(|e| unreadable(name, e))?;
        if linear.is_copy() {
            self.source.release(name); // so that no more than this tensor is ever in memory twice
        }
        Ok(linear)
    }

    /// A norm's weight, `[dim]`.
    fn norm(&self, name: &str) -> Result<Tensor, BackendError> {
        let (dtype, bytes) = read_tensor(self.source, name)?;
        vector(self.ops, dtype, &bytes).map_err(|e| unreadable(name, e))
    }
}

fn unreadable(name: &str, source: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> BackendError {
    BackendError::Weights(WeightError::unreadable(name, source))
}
