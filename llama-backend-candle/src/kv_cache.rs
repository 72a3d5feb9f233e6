//! The keys and values of every slot, allocated once at load.
//!
//! Head by head, so that attention streams a head's positions in the order of memory. What a slot holds beyond its length is
//! left over, and is written before it is read: freeing costs nothing, and a failed step leaves no trace.
//!
//! Shapes: host: `[n_slots, n_kv_heads, max_seq_len, head_dim]` a layer; tensors: `[n_kv_heads, max_seq_len, head_dim]` a layer
//! and slot, since candle writes into a tensor along one dimension.

use candle_core::{DType, Device, Tensor};
use llama_backend::BackendError;

use crate::engine;
use crate::kernels::attention::Shape;

/// The KV cache of a model.
#[derive(Debug)]
pub(crate) struct KvCache {
    pub(crate) layers: Vec<LayerCache>,
    shape: Shape,
}

/// The KV cache of one layer.
#[derive(Debug)]
pub(crate) enum LayerCache {
    Host(HostCache),
    /// By slot.
    Tensors(Vec<SlotTensors>),
}

/// Keys and values, `[n_slots, n_kv_heads, max_seq_len, head_dim]` each.
#[derive(Debug)]
pub(crate) struct HostCache {
    pub(crate) keys: Vec<f32>,
    pub(crate) values: Vec<f32>,
}

/// Keys and values of one slot, `[n_kv_heads, max_seq_len, head_dim]` each.
#[derive(Debug)]
pub(crate) struct SlotTensors {
    pub(crate) keys: Tensor,
    pub(crate) values: Tensor,
}

impl KvCache {
    /// An empty cache in this process's memory. Its size has been checked to be one.
    pub(crate) fn host(shape: Shape, n_layers: usize, n_slots: usize) -> Result<Self, BackendError> {
        let numbers = n_slots * shape.n_kv_heads * shape.max_seq_len * shape.head_dim;
        let zeros = || {
            let mut zeros = Vec::new();
            zeros.try_reserve_exact(numbers).map_err(|_| {
                let positions = n_slots * shape.max_seq_len;
                BackendError::params("n_slots * max_seq_len", positions, "as many as fit in memory")
            })?;
            zeros.resize(numbers, 0.0);
            Ok::<_, BackendError>(zeros)
        };
        let layer = |_| {
            let (keys, values) = (zeros()?, zeros()?);
            Ok(LayerCache::Host(HostCache { keys, values }))
        };
        let layers = (0..n_layers).map(layer).collect::<Result<_, BackendError>>()?;
        Ok(Self { layers, shape })
    }

    /// An empty cache on a device.
    pub(crate) fn tensors(
        shape: Shape,
        n_layers: usize,
        n_slots: usize,
        device: &Device,
    ) -> Result<Self, BackendError> {
        let zeros =
            || Tensor::zeros((shape.n_kv_heads, shape.max_seq_len, shape.head_dim), DType::F32, device);
        let slot = |_| {
            let (keys, values) = (zeros()?, zeros()?);
            Ok(SlotTensors { keys, values })
        };
        let layer = |_| Ok(LayerCache::Tensors((0..n_slots).map(slot).collect::<candle_core::Result<_>>()?));
        let layers = (0..n_layers).map(layer).collect::<candle_core::Result<_>>().map_err(engine)?;
        Ok(Self { layers, shape })
    }

    /// Copies the first `len` positions of one slot to another, both of which exist.
    pub(crate) fn copy(&mut self, from: usize, to: usize, len: usize) -> candle_core::Result<()> {
        if from == to || len == 0 {
            return Ok(());
        }
        let Shape { n_kv_heads, max_seq_len, head_dim, .. } = self.shape;
        for layer in &mut self.layers {
            match layer {
                LayerCache::Host(HostCache { keys, values }) => {
                    for head in 0..n_kv_heads {
                        let at = |slot: usize| (slot * n_kv_heads + head) * max_seq_len * head_dim;
                        let prefix = at(from)..at(from) + len * head_dim;
                        keys.copy_within(prefix.clone(), at(to));
                        values.copy_within(prefix, at(to));
                    }
                }
                LayerCache::Tensors(slots) => {
                    let (source, target) = (&slots[from], &slots[to]);
                    let prefix = |whole: &Tensor| whole.narrow(1, 0, len)?.force_contiguous();
                    target.keys.slice_set(&prefix(&source.keys)?, 1, 0)?;
                    target.values.slice_set(&prefix(&source.values)?, 1, 0)?;
                }
            }
        }
        Ok(())
    }
}
