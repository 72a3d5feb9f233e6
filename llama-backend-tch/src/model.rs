//! The forward pass of Llama 2 (arXiv 2307.09288; `Transformer.forward` in the reference).
//!
//! The tokens of all runs are stacked: each matrix is multiplied once a step, whatever the mix of prefill and decode. Only
//! attention knows of runs, and only the wanted rows reach the output.
//!
//! Shapes: `h`, `x`: `[n_tokens, dim]`; `q`: `[n_tokens, n_heads * head_dim]`; `k`, `v`: `[n_tokens, n_kv_heads * head_dim]`.

use llama_backend::{BackendError, Batch, LoadParams, Logits, Model, ModelConfig, Slot, Slots};
use tch::Tensor;

use crate::attention::{Attention, Step};
use crate::kv_cache::{KvCache, LayerCache};
use crate::linear::{Linear, Ops};
use crate::{Result, engine, message};

/// A loaded model.
#[derive(Debug)]
pub(crate) struct TchModel {
    pub(crate) config: ModelConfig,
    pub(crate) params: LoadParams,
    /// The count of `params`: to ask how many there are reads files.
    pub(crate) n_threads: i32,
    pub(crate) slots: Slots,
    pub(crate) transformer: Transformer,
    pub(crate) cache: KvCache,
}

/// The weights, and what is computed with them.
#[derive(Debug)]
pub(crate) struct Transformer {
    pub(crate) tok_embeddings: Linear,
    pub(crate) layers: Vec<Layer>,
    pub(crate) norm: Tensor,
    pub(crate) output: Linear,
    pub(crate) norm_eps: f64,
    pub(crate) attention: Attention,
    pub(crate) ops: Ops,
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

impl Model for TchModel {
    fn config(&self) -> &ModelConfig {
        &self.config
    }

    fn params(&self) -> &LoadParams {
        &self.params
    }

    fn forward(&mut self, batch: &Batch<'_>, out: &mut Logits) -> std::result::Result<(), BackendError> {
        self.slots.check(batch)?;
        let out = out.reset(batch.n_rows(), self.config.vocab_size);
        // Both are settings of the calling thread. A model may be moved to another between two steps.
        use_threads(self.n_threads);
        let _no_grad = tch::no_grad_guard();
        self.transformer.forward(&mut self.cache, batch, out).map_err(engine)?;
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
        use_threads(self.n_threads);
        let _no_grad = tch::no_grad_guard();
        if let Err(error) = self.cache.copy(from.0, to.0, len) {
            self.slots.truncate(to, 0)?;
            return Err(BackendError::SlotLost { slot: to, source: message(&error).into() });
        }
        self.slots = slots;
        Ok(())
    }
}

/// Makes libtorch compute on so many threads while this thread calls it. Other threads keep their counts: what is global is only
/// what a thread starts with.
pub(crate) fn use_threads(n_threads: i32) {
    // libtorch refuses, and tch would panic, below 1: a count that `LoadParams::validate` does not let through.
    tch::set_num_threads(n_threads.max(1));
}

impl Transformer {
    /// `out: [batch.n_rows(), vocab_size]`.
    fn forward(&self, cache: &mut KvCache, batch: &Batch<'_>, out: &mut [f32]) -> Result<()> {
        let tokens: Vec<i64> =
            batch.runs.iter().flat_map(|run| run.tokens).map(|token| i64::from(token.0)).collect();
        let step = self.attention.step(batch.spans().collect())?;

        let mut h = self.ops.rows(&self.tok_embeddings, &tokens)?; // [n_tokens, dim]
        for (layer, cache) in self.layers.iter().zip(&mut cache.layers) {
            self.layer(layer, cache, &step, &mut h)?;
        }
        let rows: Vec<i64> = batch.wanted_rows().map(|row| row as i64).collect();
        if rows.is_empty() {
            return Ok(());
        }
        if rows.len() < tokens.len() {
            let rows = Tensor::f_from_slice(&rows)?.f_to_device(h.device())?;
            h = h.f_index_select(0, &rows)?; // [n_rows, dim]
        }
        self.ops.linear_into(&self.rms_norm(&h, &self.norm)?, &self.output, out)
    }

    /// One block: attention, then the feed-forward network, each on a normed view of the residual stream `h`.
    fn layer(&self, layer: &Layer, cache: &mut LayerCache, step: &Step, h: &mut Tensor) -> Result<()> {
        let ops = &self.ops;
        let x = self.rms_norm(h, &layer.attention_norm)?;
        let (q, k, v) = (ops.linear(&x, &layer.wq)?, ops.linear(&x, &layer.wk)?, ops.linear(&x, &layer.wv)?);
        let attended = self.attention.forward(step, cache, [&q, &k, &v])?;
        *h = h.f_add_(&ops.linear(&attended, &layer.wo)?)?;

        let x = self.rms_norm(h, &layer.ffn_norm)?;
        let mut gate = ops.linear(&x, &layer.w1)?; // [n_tokens, ffn_dim]
        let up = ops.linear(&x, &layer.w3)?; // [n_tokens, ffn_dim]
        let gated = gate.f_silu_()?.f_mul_(&up)?;
        *h = h.f_add_(&ops.linear(&gated, &layer.w2)?)?;
        Ok(())
    }

    /// `x / rms(x) · weight`: `x: [n, dim]`, `weight: [dim]`.
    fn rms_norm(&self, x: &Tensor, weight: &Tensor) -> Result<Tensor> {
        x.f_rms_norm(weight.size1()?, Some(weight), self.norm_eps)
    }
}
