//! Attention over the KV cache for a batch of runs: RoPE, the cache's new rows, and each token's view of its past.
//!
//! The runs of a batch are independent: each token knows its slot and its position, so that ragged prompts and decodes of
//! different lengths need neither padding nor a mask over the batch.
//!
//! Shapes: `q: [n_tokens, n_heads * head_dim]`, `k`, `v`: `[n_tokens, n_kv_heads * head_dim]`; the output has `q`'s.

use std::cell::RefCell;
use std::sync::Arc;

use candle_core::{CpuStorage, CustomOp3, Layout, Result, Tensor};
use llama_backend::Span;

use crate::kernels::Context;
use crate::kernels::attention::{self, Kept, Shape};
use crate::kernels::rope::RopeTables;
use crate::kv_cache::{HostCache, LayerCache};
use crate::ops::floats;
use crate::tensors;

/// What the attention of every layer has in common.
#[derive(Debug)]
pub(crate) enum Attention {
    Host { ctx: Arc<Context>, shape: Shape, rope: RopeTables },
    Tensors(tensors::Attention),
}

impl Attention {
    /// Appends `k` and `v` to the slots of the runs and gives every token of `q` its view.
    pub(crate) fn forward(
        &self,
        cache: &mut LayerCache,
        spans: &[Span],
        [q, k, v]: [&Tensor; 3],
    ) -> Result<Tensor> {
        match (self, cache) {
            (Self::Host { ctx, shape, rope }, LayerCache::F32(cache)) => {
                let cache = RefCell::new(cache);
                q.apply_op3_no_bwd(k, v, &Attend { ctx, shape, rope, spans, cache })
            }
            (Self::Host { ctx, shape, rope }, LayerCache::F16(cache)) => {
                let cache = RefCell::new(cache);
                q.apply_op3_no_bwd(k, v, &Attend { ctx, shape, rope, spans, cache })
            }
            (Self::Tensors(attention), LayerCache::Tensors(slots)) => {
                attention.forward(slots, spans, q, k, v)
            }
            _ => candle_core::bail!("attention and KV cache are in different places"),
        }
    }
}

struct Attend<'a, E> {
    ctx: &'a Context,
    shape: &'a Shape,
    rope: &'a RopeTables,
    spans: &'a [Span],
    /// A custom operation is shared while it runs, and this one writes.
    cache: RefCell<&'a mut HostCache<E>>,
}

impl<E: Kept> CustomOp3 for Attend<'_, E> {
    fn name(&self) -> &'static str {
        "attention"
    }

    fn cpu_fwd(
        &self,
        q: &CpuStorage,
        q_layout: &Layout,
        k: &CpuStorage,
        k_layout: &Layout,
        v: &CpuStorage,
        v_layout: &Layout,
    ) -> Result<(CpuStorage, candle_core::Shape)> {
        let Self { ctx, shape, rope, spans, cache } = self;
        let (q, k, v) = (floats(q, q_layout)?, floats(k, k_layout)?, floats(v, v_layout)?);
        let mut cache = cache.borrow_mut(); // the operation is called once
        let HostCache { keys, values } = &mut **cache;
        attention::store(ctx, shape, rope, spans, (k, v), (keys, values));
        let mut out = ctx.spare.take(q.len());
        attention::attend(ctx, shape, rope, spans, q, (keys, values), &mut out);
        Ok((CpuStorage::F32(out), q_layout.shape().clone()))
    }
}
