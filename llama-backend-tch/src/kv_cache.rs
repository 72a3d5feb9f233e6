//! The keys and values of every slot, allocated once at load.
//!
//! Head by head, so that attention streams a head's positions in the order of memory. What a slot holds beyond its length is
//! left over, and is written before it is read: freeing costs nothing, and a failed step leaves no trace.
//!
//! Shapes: a layer's keys and values are `[n_slots, n_kv_heads, max_seq_len, head_dim]`, f32.

use llama_backend::{ModelConfig, Span};
use tch::{Device, Kind, Tensor};

use crate::Result;

/// The KV cache of a model, by layer.
#[derive(Debug)]
pub(crate) struct KvCache {
    pub(crate) layers: Vec<LayerCache>,
}

/// Keys and values of one layer.
#[derive(Debug)]
pub(crate) struct LayerCache {
    keys: Tensor,
    values: Tensor,
}

impl KvCache {
    /// An empty cache. Its size has been checked to be one.
    pub(crate) fn new(
        config: &ModelConfig,
        n_slots: usize,
        max_seq_len: usize,
        device: Device,
    ) -> Result<Self> {
        let size = [n_slots, config.n_kv_heads, max_seq_len, config.head_dim].map(|n| n as i64);
        let zeros = || Tensor::f_zeros(size, (Kind::Float, device));
        let layer = |_| Ok(LayerCache { keys: zeros()?, values: zeros()? });
        Ok(Self { layers: (0..config.n_layers).map(layer).collect::<Result<_>>()? })
    }

    /// Copies the first `len` positions of one slot to another, both of which exist.
    pub(crate) fn copy(&mut self, from: usize, to: usize, len: usize) -> Result<()> {
        if from == to || len == 0 {
            return Ok(());
        }
        for layer in &mut self.layers {
            for whole in [&layer.keys, &layer.values] {
                positions(whole, to, 0, len)?.f_copy_(&positions(whole, from, 0, len)?)?;
            }
        }
        Ok(())
    }
}

impl LayerCache {
    /// Writes the keys and values of a run, `[n_tokens, n_kv_heads, head_dim]` each, to their positions.
    pub(crate) fn append(&mut self, span: &Span, keys: &Tensor, values: &Tensor) -> Result<()> {
        for (whole, new) in [(&self.keys, keys), (&self.values, values)] {
            // A view of the cache: what is copied to it is written there.
            let mut place = positions(whole, span.slot, span.start_pos, span.n_tokens)?;
            place.f_copy_(&new.f_transpose(0, 1)?)?;
        }
        Ok(())
    }

    /// The first `len` keys and values of a slot, `[1, n_kv_heads, len, head_dim]` each, where they lie.
    pub(crate) fn prefix(&self, slot: usize, len: usize) -> Result<[Tensor; 2]> {
        let prefix = |whole| positions(whole, slot, 0, len)?.f_unsqueeze(0);
        Ok([prefix(&self.keys)?, prefix(&self.values)?])
    }
}

/// `n` positions of a slot, as a view: `[n_kv_heads, n, head_dim]`.
fn positions(whole: &Tensor, slot: usize, start: usize, n: usize) -> Result<Tensor> {
    whole.f_select(0, slot as i64)?.f_narrow(1, start as i64, n as i64)
}
