//! The operations in candle's own tensors, for devices that have no kernels here.
//!
//! Plain and short rather than fast. The tests run it on the CPU against the kernels, so that a device meets proven code.
//!
//! Shapes: as in [`attention`](crate::attention) and [`ops`](crate::ops).

use candle_core::{D, Device, Result, Tensor};
use llama_backend::Span;

use crate::kernels::attention::Shape;
use crate::kernels::rope::RopeTables;
use crate::kv_cache::SlotTensors;

/// `x / rms(x) · weight`.
pub(crate) fn rms_norm(x: &Tensor, weight: &Tensor, eps: f32) -> Result<Tensor> {
    let mean = x.sqr()?.mean_keepdim(D::Minus1)?;
    let rms = (mean + f64::from(eps))?.sqrt()?;
    x.broadcast_div(&rms)?.broadcast_mul(weight)
}

/// What the attention of every layer has in common.
#[derive(Debug)]
pub(crate) struct Attention {
    shape: Shape,
    /// `[max_seq_len, 1, head_dim / 2]` each.
    cos: Tensor,
    sin: Tensor,
}

impl Attention {
    pub(crate) fn new(shape: Shape, rope: RopeTables, device: &Device) -> Result<Self> {
        let table = |values| Tensor::from_vec(values, (shape.max_seq_len, 1, shape.head_dim / 2), device);
        let (cos, sin) = (table(rope.cos)?, table(rope.sin)?);
        Ok(Self { shape, cos, sin })
    }

    pub(crate) fn forward(
        &self,
        slots: &[SlotTensors],
        spans: &[Span],
        q: &Tensor,
        k: &Tensor,
        v: &Tensor,
    ) -> Result<Tensor> {
        let run = |span: &Span| {
            let part = |x: &Tensor| x.narrow(0, span.first_row, span.n_tokens);
            self.run(&slots[span.slot], span, &part(q)?, &part(k)?, &part(v)?)
        };
        Tensor::cat(&spans.iter().map(run).collect::<Result<Vec<_>>>()?, 0)
    }

    /// One run: `q: [n, n_heads * head_dim]`, `k`, `v`: `[n, n_kv_heads * head_dim]`.
    fn run(&self, slot: &SlotTensors, span: &Span, q: &Tensor, k: &Tensor, v: &Tensor) -> Result<Tensor> {
        let Shape { n_kv_heads, n_rep, head_dim, .. } = self.shape;
        let (n, start) = (span.n_tokens, span.start_pos);
        let len = start + n;

        let k = self.rotate(&k.reshape((n, n_kv_heads, head_dim))?, start)?;
        let v = v.reshape((n, n_kv_heads, head_dim))?;
        slot.keys.slice_set(&k.transpose(0, 1)?.contiguous()?, 1, start)?;
        slot.values.slice_set(&v.transpose(0, 1)?.contiguous()?, 1, start)?;
        let keys = slot.keys.narrow(1, 0, len)?.contiguous()?; // [n_kv_heads, len, head_dim]
        let values = slot.values.narrow(1, 0, len)?.contiguous()?;

        // The query heads of a group are more rows for its one KV head: nothing is repeated.
        let q = self.rotate(&q.reshape((n, n_kv_heads * n_rep, head_dim))?, start)?;
        let q = q.transpose(0, 1)?.contiguous()?.reshape((n_kv_heads, n_rep * n, head_dim))?;
        let scores = (q.matmul(&keys.t()?)? / (head_dim as f64).sqrt())?;
        let scores = scores.reshape((n_kv_heads, n_rep, n, len))?;
        let probs = softmax(&scores.broadcast_add(&causal_mask(start, n, q.device())?)?)?;
        let out = probs.reshape((n_kv_heads, n_rep * n, len))?.matmul(&values)?;
        let out = out.reshape((n_kv_heads * n_rep, n, head_dim))?.transpose(0, 1)?;
        out.contiguous()?.reshape((n, n_kv_heads * n_rep * head_dim))
    }

    /// Turns the heads of consecutive positions: `x: [n, heads, head_dim]`.
    fn rotate(&self, x: &Tensor, start_pos: usize) -> Result<Tensor> {
        let (n, heads, head_dim) = x.dims3()?;
        let (cos, sin) = (self.cos.narrow(0, start_pos, n)?, self.sin.narrow(0, start_pos, n)?);
        let pairs = x.contiguous()?.reshape((n, heads, head_dim / 2, 2))?;
        let (x0, x1) = (pairs.narrow(3, 0, 1)?.squeeze(3)?, pairs.narrow(3, 1, 1)?.squeeze(3)?);
        let y0 = (x0.broadcast_mul(&cos)? - x1.broadcast_mul(&sin)?)?;
        let y1 = (x0.broadcast_mul(&sin)? + x1.broadcast_mul(&cos)?)?;
        Tensor::stack(&[y0, y1], 3)?.reshape((n, heads, head_dim))
    }
}

/// 0 where a token may look, minus infinity where it may not: `[n, start + n]`.
fn causal_mask(start: usize, n: usize, device: &Device) -> Result<Tensor> {
    let len = start + n;
    let mask = (0..n)
        .flat_map(|t| (0..len).map(move |pos| if pos <= start + t { 0.0 } else { f32::NEG_INFINITY }))
        .collect::<Vec<f32>>();
    Tensor::from_vec(mask, (n, len), device)
}

fn softmax(x: &Tensor) -> Result<Tensor> {
    let e = x.broadcast_sub(&x.max_keepdim(D::Minus1)?)?.exp()?;
    e.broadcast_div(&e.sum_keepdim(D::Minus1)?)
}
