//! From a checkpoint's tensors to a model, and what that will cost.
//!
//! Everything is checked before anything large is allocated. What is not packed is not read at all: it stays in the reader's
//! memory map, and the first step that uses it brings it in. One of several ranks reads its slices, into memory of its own.

use std::ops::Range;
use std::sync::Arc;

use candle_core::Tensor;
use llama_backend::{
    BackendError, Computation, DType, LoadParams, MemoryPlan, ModelConfig, Notice, Slots, WeightError,
    WeightSource, check_weights, read_tensor,
};

use crate::attention::Attention;
use crate::kernels::Context;
use crate::kernels::attention::Shape;
use crate::kernels::halves::Halves;
use crate::kernels::quant::Packed;
use crate::kernels::rope::RopeTables;
use crate::kv_cache::KvCache;
use crate::linear::{Linear, Use, vector};
use crate::model::{CandleModel, Layer, Output, Transformer};
use crate::ops::Ops;
use crate::slices::{Part, read_part};
use crate::split::Split;
use crate::{DTYPES, NAME, Place, engine, tensors};

/// The bytes of a model of this shape, or of this rank's part of one.
pub(crate) fn plan(place: &Place, config: &ModelConfig, dtype: DType, params: &LoadParams) -> MemoryPlan {
    // A device is given blocks in f32.
    let on_host = matches!(place, Place::Host(_));
    let stored = dtype;
    let dtype = if on_host || !dtype.is_quantized() { dtype } else { DType::F32 };
    let split = config
        .validate()
        .and_then(|()| Split::new(config, &*params.communicator, computation(place, params.computation)));
    // What cannot be split, or is no model, is refused when it is loaded.
    let Some(split) = split.ok().filter(|split| !split.is_whole()) else {
        return plan_of(on_host, config, dtype, params);
    };
    let plan = plan_of(on_host, &split.local(stored), dtype, params);
    let bytes = |vocab: usize| {
        let bytes = vocab as u128 * config.dim as u128 * dtype.size() as u128 / dtype.block_len() as u128;
        u64::try_from(bytes).unwrap_or(u64::MAX)
    };
    // The output's rows that are others', and logits before they are everyone's.
    let others = bytes(config.vocab_size - split.own_vocab().len());
    // What a border within blocks costs: columns in another type than the rest.
    let kept = |dtype: DType, range: &Range<usize>| {
        let elements = range.len() as u128 * config.dim as u128;
        let bytes = elements.saturating_mul(dtype.size() as u128) / dtype.block_len() as u128;
        let bytes = u64::try_from(bytes).unwrap_or(u64::MAX);
        if params.computation == Computation::Fast { Packed::enlarged(dtype, bytes) } else { bytes }
    };
    let recast = [split.wo(stored), split.w2(stored)].into_iter().filter(|_| on_host);
    let recast = recast
        .map(|columns| kept(columns.dtype, &columns.range).saturating_sub(kept(stored, &columns.range)));
    let recast = recast.fold(0, u64::saturating_add).saturating_mul(config.n_layers as u64);
    let logits = (8 * config.vocab_size as u64).saturating_mul(params.max_batch_tokens as u64);
    MemoryPlan {
        weights: plan.weights.saturating_sub(others).saturating_add(recast),
        // Slices are copies.
        in_place: plan.in_place.min(bytes(config.vocab_size)),
        scratch: plan.scratch.saturating_add(logits),
        ..plan
    }
}

/// The same for all of a model.
fn plan_of(on_host: bool, config: &ModelConfig, dtype: DType, params: &LoadParams) -> MemoryPlan {
    let product = |sizes: &[usize]| {
        let sizes = sizes.iter().map(|&size| size as u128);
        sizes.fold(1, u128::saturating_mul)
    };
    let sum = |sizes: &[u128]| sizes.iter().copied().fold(0, u128::saturating_add);
    let ModelConfig { dim, n_heads, n_kv_heads, head_dim, ffn_dim, .. } = *config;

    let (q_dim, kv_dim) = (product(&[n_heads, head_dim]), product(&[n_kv_heads, head_dim]));

    // The widest points of a block, beside h, its successor and x: q, k, v and attention's output, of which a device has a
    // copy; or gate, up and their product.
    let outputs = if on_host { 1 } else { 2 };
    let in_attention = sum(&[q_dim.saturating_mul(1 + outputs), kv_dim.saturating_mul(2)]);
    let in_ffn = product(&[3, ffn_dim]);
    let width = sum(&[product(&[3, dim]), in_attention.max(in_ffn)]);
    let activations = width.saturating_mul(params.max_batch_tokens as u128);
    let rope = product(&[params.max_seq_len, head_dim]);
    let tasks = product(&[params.max_batch_tokens, n_kv_heads]).min(params.n_threads() as u128);
    let shape = shape(config, params);
    let scores = tasks.saturating_mul(shape.task_scratch());
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
    let mut plan = MemoryPlan::as_stored(config, dtype, params, sum(&[activations, rope, scores, products]));
    if on_host {
        // Keys are in whole groups, which a device does not have.
        let (padding, size) = (shape.keys_padding(), params.kv_dtype.size());
        let bytes = product(&[config.n_layers, params.n_slots, n_kv_heads, padding, head_dim, size]);
        plan.kv_cache = plan.kv_cache.saturating_add(u64::try_from(bytes).unwrap_or(u64::MAX));
    }
    match params.computation {
        // A device has a copy of its own.
        _ if !on_host => MemoryPlan { in_place: 0, ..plan },
        // All but the embeddings is packed. The packed forms of some types are a little larger than their blocks.
        computation if Halves::are(dtype) || computation == Computation::Fast && dtype.is_quantized() => {
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

    let split = Split::new(&config, &*params.communicator, computation(place, params.computation))?;
    // Of the feed-forward network's width, which goes by the type of each layer, nothing below asks.
    let shape = shape(&split.local(DType::F32), params);
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
    let computation = computation(place, params.computation);
    let mut reader = Reader { source, ops: &ops, computation, split: &split, notices: Vec::new() };
    let transformer = reader.transformer(&config, attention, params)?;
    let notices = reader.notices;
    let slots = Slots::new(&config, params);
    Ok(CandleModel { slots, params: params.clone(), config, transformer, cache, notices })
}

/// How blocks are multiplied there: a device has no faster way than exactly.
pub(crate) fn computation(place: &Place, asked: Computation) -> Computation {
    match place {
        Place::Host(_) => asked,
        Place::Tensors(_) => Computation::Exact,
    }
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

/// Takes tensors, or this rank's parts of them, from a checkpoint by name.
struct Reader<'a> {
    source: &'a dyn WeightSource,
    ops: &'a Ops,
    /// How quantised matrices are multiplied.
    computation: Computation,
    split: &'a Split,
    notices: Vec<Notice>,
}

impl Reader<'_> {
    fn transformer(
        &mut self,
        config: &ModelConfig,
        attention: Attention,
        params: &LoadParams,
    ) -> Result<Transformer, BackendError> {
        let fine = Use::FineProducts(self.computation);
        Ok(Transformer {
            tok_embeddings: self.matrix("tok_embeddings.weight", Part::Whole, Use::Rows)?,
            layers: (0..config.n_layers).map(|i| self.layer(i)).collect::<Result<_, _>>()?,
            norm: self.norm("norm.weight")?,
            output: Output {
                weight: self.matrix("output.weight", Part::Rows(self.split.own_vocab()), fine)?,
                parts: self.split.vocab().collect(),
                communicator: Arc::clone(&params.communicator),
            },
            norm_eps: config.norm_eps,
            attention,
            ops: self.ops.clone(),
        })
    }

    fn layer(&mut self, i: usize) -> Result<Layer, BackendError> {
        let name = |part: &str| format!("layers.{i}.{part}.weight");
        let dtype = |name: &str| self.source.info(name).map(|info| info.dtype);
        let wo = self.split.wo(dtype(&name("attention.wo"))?);
        let w2 = self.split.w2(dtype(&name("feed_forward.w2"))?);
        let (q, kv, ffn) = (self.split.q(), self.split.kv(), w2.range.clone());
        Ok(Layer {
            attention_norm: self.norm(&name("attention_norm"))?,
            wq: self.linear(&name("attention.wq"), Part::Rows(q))?,
            wk: self.linear(&name("attention.wk"), Part::Rows(kv.clone()))?,
            wv: self.linear(&name("attention.wv"), Part::Rows(kv))?,
            wo: self.linear(&name("attention.wo"), Part::Columns(wo))?,
            ffn_norm: self.norm(&name("ffn_norm"))?,
            w1: self.linear(&name("feed_forward.w1"), Part::Rows(ffn.clone()))?,
            w2: self.linear(&name("feed_forward.w2"), Part::Columns(w2))?,
            w3: self.linear(&name("feed_forward.w3"), Part::Rows(ffn))?,
        })
    }

    /// A matrix that is multiplied.
    fn linear(&mut self, name: &str, part: Part) -> Result<Linear, BackendError> {
        self.matrix(name, part, Use::Products(self.computation))
    }

    fn matrix(&mut self, name: &str, part: Part, used: Use) -> Result<Linear, BackendError> {
        let part = if self.split.is_whole() { Part::Whole } else { part };
        let read = read_part(self.source, name, part)?;
        if let Some(from) = read.recast {
            self.notice(name, from, read.dtype);
        }
        let linear = Linear::new(self.ops, read.shape, read.dtype, read.bytes, used);
        let linear = linear.map_err(|e| unreadable(name, e))?;
        if linear.is_copy() {
            self.source.release(name); // so that no more than this tensor is ever in memory twice
        }
        Ok(linear)
    }

    fn notice(&mut self, name: &str, stored: DType, kept: DType) {
        for notice in &mut self.notices {
            if let Notice::Recast { tensors, from, to } = notice
                && (*from, *to) == (stored, kept)
            {
                return tensors.push(name.to_owned());
            }
        }
        self.notices.push(Notice::Recast { tensors: vec![name.to_owned()], from: stored, to: kept });
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
