//! The forward pass of Llama 2 (arXiv 2307.09288; `Transformer.forward` in the reference).
//!
//! The tokens of all runs are stacked: each matrix is multiplied once a step, whatever the mix of prefill and decode. Only
//! attention knows of runs, and only the wanted rows reach the output.
//!
//! One of several ranks has some of the heads, of the feed-forward network's width and of the vocabulary: what `wo` and `w2` give is its part of
//! a sum, which all ranks add up, and its logits are some of the columns, which all ranks put together. Two sums a layer, and nothing else.
//!
//! Shapes: `h`, `x`: `[n_tokens, dim]`; `q`: `[n_tokens, n_heads * head_dim]`; `k`, `v`: `[n_tokens, n_kv_heads * head_dim]`, heads being
//! the rank's.

use std::ops::Range;
use std::sync::Arc;

use candle_core::{Result, Tensor};
use llama_backend::{
    BackendError, Batch, Communicator, LoadParams, Logits, Model, ModelConfig, Notice, Slot, Slots, Span,
    TokenId,
};

use crate::attention::Attention;
use crate::engine;
use crate::kv_cache::{KvCache, LayerCache};
use crate::linear::Linear;
use crate::ops::Ops;

/// A loaded model.
#[derive(Debug)]
pub(crate) struct CandleModel {
    pub(crate) config: ModelConfig,
    pub(crate) params: LoadParams,
    pub(crate) slots: Slots,
    pub(crate) transformer: Transformer,
    pub(crate) cache: KvCache,
    pub(crate) notices: Vec<Notice>,
}

/// The weights, and what is computed with them.
#[derive(Debug)]
pub(crate) struct Transformer {
    pub(crate) tok_embeddings: Linear,
    pub(crate) layers: Vec<Layer>,
    pub(crate) norm: Tensor,
    pub(crate) output: Output,
    pub(crate) norm_eps: f32,
    pub(crate) attention: Attention,
    pub(crate) ops: Ops,
}

/// From the last layer to logits.
#[derive(Debug)]
pub(crate) struct Output {
    /// This rank's rows: tokens of the vocabulary.
    pub(crate) weight: Linear,
    /// Each rank's.
    pub(crate) parts: Vec<Range<usize>>,
    pub(crate) communicator: Arc<dyn Communicator>,
}

/// The weights of one block, by Meta's names.
#[derive(Debug)]
pub(crate) struct Layer {
    pub(crate) attention_norm: Tensor,
    pub(crate) wq: Linear,
    pub(crate) wk: Linear,
    pub(crate) wv: Linear,
    pub(crate) wo: Linear,
    pub(crate) ffn_norm: Tensor,
    pub(crate) w1: Linear,
    pub(crate) w2: Linear,
    pub(crate) w3: Linear,
}

impl Model for CandleModel {
    fn config(&self) -> &ModelConfig {
        &self.config
    }

    fn params(&self) -> &LoadParams {
        &self.params
    }

    fn notices(&self) -> &[Notice] {
        &self.notices
    }

    fn forward(&mut self, batch: &Batch<'_>, out: &mut Logits) -> std::result::Result<(), BackendError> {
        self.slots.check(batch)?;
        let out = out.reset(batch.n_rows(), self.config.vocab_size);
        let (transformer, cache) = (&self.transformer, &mut self.cache);
        let result = transformer.forward(cache, batch, out);
        transformer.ops.finish();
        result.map_err(engine)?;
        // Until here the new rows lie beyond every slot's length, where nobody reads.
        self.slots.advance(batch);
        Ok(())
    }

    fn truncate(&mut self, slot: Slot, len: usize) -> std::result::Result<(), BackendError> {
        self.slots.truncate(slot, len)
    }

    fn fork(&mut self, from: Slot, to: Slot, len: usize) -> std::result::Result<(), BackendError> {
        let mut slots = self.slots.clone();
        slots.fork(from, to, len)?;
        if let Err(error) = self.cache.copy(from.0, to.0, len) {
            self.slots.truncate(to, 0)?;
            let source = error.into();
            return Err(BackendError::SlotLost { slot: to, source });
        }
        self.slots = slots;
        Ok(())
    }
}

impl Transformer {
    /// `out: [batch.n_rows(), vocab_size]`.
    fn forward(&self, cache: &mut KvCache, batch: &Batch<'_>, out: &mut [f32]) -> Result<()> {
        let tokens: Vec<TokenId> = batch.runs.iter().flat_map(|run| run.tokens).copied().collect();
        let spans: Vec<Span> = batch.spans().collect();

        let mut h = self.tok_embeddings.rows(&tokens)?; // [n_tokens, dim]
        for (layer, cache) in self.layers.iter().zip(&mut cache.layers) {
            h = self.layer(layer, cache, &spans, h)?;
        }
        // Less than 2^32, as the limit of a batch is.
        let rows: Vec<u32> = batch.wanted_rows().map(|row| row as u32).collect();
        if rows.is_empty() {
            return Ok(());
        }
        if rows.len() < tokens.len() {
            h = h.index_select(&Tensor::new(rows, h.device())?, 0)?; // [n_rows, dim]
        }
        let x = self.ops.rms_norm(&h, &self.norm, self.norm_eps)?;
        self.output.forward(&x, out)
    }

    /// One block: attention, then the feed-forward network, each on a normed view of the residual stream `h`.
    fn layer(&self, layer: &Layer, cache: &mut LayerCache, spans: &[Span], h: Tensor) -> Result<Tensor> {
        let ops = &self.ops;
        let x = ops.rms_norm(&h, &layer.attention_norm, self.norm_eps)?;
        let [q, k, v] = Linear::forward_all([&layer.wq, &layer.wk, &layer.wv], &x)?;
        ops.recycle(x)?;
        let attended = self.attention.forward(cache, spans, [&q, &k, &v])?;
        [q, k, v].into_iter().try_for_each(|x| ops.recycle(x))?;
        let o = layer.wo.forward(&attended)?;
        ops.recycle(attended)?;
        let h = ops.add(h, self.sum(o)?)?;

        let x = ops.rms_norm(&h, &layer.ffn_norm, self.norm_eps)?;
        let [gate, up] = Linear::forward_all([&layer.w1, &layer.w3], &x)?; // [n_tokens, ffn_dim] each
        ops.recycle(x)?;
        let gated = ops.silu_mul(gate, up)?;
        let down = layer.w2.forward(&gated)?;
        ops.recycle(gated)?;
        ops.add(h, self.sum(down)?)
    }

    /// The sum of what all ranks have of it: `[n_tokens, dim]`.
    fn sum(&self, part: Tensor) -> Result<Tensor> {
        self.ops.all_reduce_sum(&*self.output.communicator, part)
    }
}

impl Output {
    /// `x: [n, dim]`, `out: [n, vocab_size]`.
    fn forward(&self, x: &Tensor, out: &mut [f32]) -> Result<()> {
        if self.parts.len() == 1 {
            return self.weight.forward_into(x, out);
        }
        let (n, _) = x.dims2()?;
        let lens: Vec<usize> = self.parts.iter().map(|part| n * part.len()).collect();
        let mut own = vec![0.0; lens[self.communicator.rank()]];
        self.weight.forward_into(x, &mut own)?;
        let gather = |all: &mut [f32]| {
            self.communicator.all_gather(&own, &lens, all).map_err(candle_core::Error::wrap)
        };
        if n == 1 {
            return gather(out);
        }
        // Rank by rank, [n, part] each, to rows.
        let mut all = vec![0.0; out.len()];
        gather(&mut all)?;
        let vocab_size = out.len() / n;
        let mut rest = &all[..];
        for part in &self.parts {
            let (columns, others) = rest.split_at(n * part.len());
            for (columns, row) in columns.chunks_exact(part.len()).zip(out.chunks_exact_mut(vocab_size)) {
                row[part.clone()].copy_from_slice(columns);
            }
            rest = others;
        }
        Ok(())
    }
}
