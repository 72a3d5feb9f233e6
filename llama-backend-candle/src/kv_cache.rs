//! The keys and values of every slot, allocated once at load.
//!
//! Head by head, so that attention streams a head's positions in the order of memory. What a slot holds beyond its length is
//! left over, and is written before it is read: freeing costs nothing, and a failed step leaves no trace.
//!
//! Shapes: host: those of [`attention`](crate::kernels::attention), a layer; tensors: `[n_kv_heads, max_seq_len, head_dim]` a layer and
//! slot, since candle writes into a tensor along one dimension.

use std::collections::TryReserveError;

use candle_core::{Device, Tensor};
use half::f16;
use llama_backend::{BackendError, DType, LoadParams};

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
    F32(HostCache<f32>),
    F16(HostCache<f16>),
    /// By slot.
    Tensors(Vec<SlotTensors>),
}

/// Keys and values of every slot.
#[derive(Debug)]
pub(crate) struct HostCache<E> {
    pub(crate) keys: Vec<E>,
    pub(crate) values: Vec<E>,
}

impl<E: Copy> HostCache<E> {
    /// Of so many slots.
    fn new(shape: &Shape, n_slots: usize, zero: E) -> Result<Self, TryReserveError> {
        let zeros = |head_len: usize| {
            let numbers = n_slots * shape.n_kv_heads * head_len;
            let mut zeros = Vec::new();
            zeros.try_reserve_exact(numbers)?;
            zeros.resize(numbers, zero);
            Ok::<_, TryReserveError>(zeros)
        };
        let keys = zeros(shape.keys_len(shape.max_seq_len))?;
        Ok(Self { keys, values: zeros(shape.values_len(shape.max_seq_len))? })
    }

    /// Copies `len` positions of one slot to another, keys in whole groups: what comes along behind them is left over there.
    fn copy(&mut self, shape: &Shape, from: usize, to: usize, len: usize) {
        let heads = |slot: usize| slot * shape.n_kv_heads..(slot + 1) * shape.n_kv_heads;
        for (from, to) in heads(from).zip(heads(to)) {
            let copy = |numbers: &mut [E], head_len: usize, len: usize| {
                numbers.copy_within(from * head_len..from * head_len + len, to * head_len);
            };
            copy(&mut self.keys, shape.keys_len(shape.max_seq_len), shape.keys_len(len));
            copy(&mut self.values, shape.values_len(shape.max_seq_len), shape.values_len(len));
        }
    }
}

/// Keys and values of one slot, `[n_kv_heads, max_seq_len, head_dim]` each.
#[derive(Debug)]
pub(crate) struct SlotTensors {
    pub(crate) keys: Tensor,
    pub(crate) values: Tensor,
}

impl KvCache {
    /// An empty cache in this process's memory. Its size has been checked to be one.
    pub(crate) fn host(shape: Shape, n_layers: usize, params: &LoadParams) -> Result<Self, BackendError> {
        let positions = params.n_slots * shape.max_seq_len;
        let layer = |_| {
            Ok(match params.kv_dtype {
                DType::F16 => LayerCache::F16(HostCache::new(&shape, params.n_slots, f16::ZERO)?),
                _ => LayerCache::F32(HostCache::new(&shape, params.n_slots, 0.0)?),
            })
        };
        let layers = (0..n_layers).map(layer).collect::<Result<_, TryReserveError>>();
        let layers = layers.map_err(|_| {
            BackendError::params("n_slots * max_seq_len", positions, "as many as fit in memory")
        })?;
        Ok(Self { layers, shape })
    }

    /// An empty cache on a device.
    pub(crate) fn tensors(
        shape: Shape,
        n_layers: usize,
        n_slots: usize,
        device: &Device,
    ) -> Result<Self, BackendError> {
        let zeros = || {
            Tensor::zeros(
                (shape.n_kv_heads, shape.max_seq_len, shape.head_dim),
                candle_core::DType::F32,
                device,
            )
        };
        let slot = |_| {
            let (keys, values) = (zeros()?, zeros()?);
            Ok(SlotTensors { keys, values })
        };
        let layer = |_| Ok(LayerCache::Tensors((0..n_slots).map(slot).collect::<candle_core::Result<_>>()?));
        let layers = (0..n_layers).map(layer).collect::<candle_core::Result<_>>().map_err(engine)?;
        Ok(Self { layers, shape })
    }

    /// The bytes that were allocated.
    #[cfg(test)]
    pub(crate) fn n_bytes(&self) -> usize {
        fn host<E>(cache: &HostCache<E>) -> usize {
            (cache.keys.capacity() + cache.values.capacity()) * size_of::<E>()
        }
        let tensor = |tensor: &Tensor| tensor.elem_count() * tensor.dtype().size_in_bytes();
        let layer = |layer: &LayerCache| match layer {
            LayerCache::F32(cache) => host(cache),
            LayerCache::F16(cache) => host(cache),
            LayerCache::Tensors(slots) => {
                slots.iter().map(|slot| tensor(&slot.keys) + tensor(&slot.values)).sum()
            }
        };
        self.layers.iter().map(layer).sum()
    }

    /// Copies the first `len` positions of one slot to another, both of which exist.
    pub(crate) fn copy(&mut self, from: usize, to: usize, len: usize) -> candle_core::Result<()> {
        if from == to || len == 0 {
            return Ok(());
        }
        for layer in &mut self.layers {
            match layer {
                LayerCache::F32(cache) => cache.copy(&self.shape, from, to, len),
                LayerCache::F16(cache) => cache.copy(&self.shape, from, to, len),
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
