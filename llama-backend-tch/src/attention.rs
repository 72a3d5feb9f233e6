//! Attention over the KV cache for a batch of runs: RoPE, the cache's new rows, and each token's view of its past.
//!
//! The runs of a batch are independent: each token knows its slot and its position, so that ragged prompts and decodes of
//! different lengths need neither padding nor a mask over the batch. Keys and values are read where they lie, and none is
//! repeated for the query heads that share it.
//!
//! Shapes: `q: [n_tokens, n_heads * head_dim]`, `k`, `v`: `[n_tokens, n_kv_heads * head_dim]`; the output has `q`'s.

use llama_backend::{ModelConfig, Span};
use tch::{Device, Kind, Tensor};

use crate::Result;
use crate::kv_cache::LayerCache;

/// What the attention of every layer has in common.
#[derive(Debug)]
pub(crate) struct Attention {
    n_kv_heads: i64,
    /// Query heads per KV head.
    n_rep: i64,
    head_dim: i64,
    /// `cos + i sin` of each position's angles, `[max_seq_len, 1, head_dim / 2]`.
    rope: Tensor,
}

/// What the attention of one forward pass has in common.
#[derive(Debug)]
pub(crate) struct Step {
    spans: Vec<Span>,
    /// The rows of the RoPE table, `[n_tokens, 1, head_dim / 2]`.
    rope: Tensor,
    /// By run: what its tokens may look at, `[n_tokens, start_pos + n_tokens]`. None is needed for a run of one, which sees all,
    /// or one that starts its slot, for which libtorch knows the mask.
    masks: Vec<Option<Tensor>>,
}

impl Attention {
    pub(crate) fn new(config: &ModelConfig, max_seq_len: usize, device: Device) -> Result<Self> {
        let (head_dim, kind) = (config.head_dim as i64, (Kind::Double, device));
        // In f64, as the oracle has them: far positions turn by large angles.
        let exponents =
            Tensor::f_arange_start_step(0, head_dim, 2, kind)?.f_div_scalar(-(head_dim as f64))?;
        let frequencies = Tensor::f_full([1], config.rope_theta, kind)?.f_pow(&exponents)?;
        let positions = Tensor::f_arange(max_seq_len as i64, kind)?;
        let angles = positions.f_outer(&frequencies)?; // [max_seq_len, head_dim / 2]
        let part = |part: Tensor| part.f_to_kind(Kind::Float)?.f_unsqueeze(1);
        Ok(Self {
            n_kv_heads: config.n_kv_heads as i64,
            n_rep: config.n_rep() as i64,
            head_dim,
            rope: Tensor::f_complex(&part(angles.f_cos()?)?, &part(angles.f_sin()?)?)?,
        })
    }

    /// Prepares a forward pass over these runs.
    pub(crate) fn step(&self, spans: Vec<Span>) -> Result<Step> {
        let device = self.rope.device();
        let rope = match spans.as_slice() {
            [span] => self.rope.f_narrow(0, span.start_pos as i64, span.n_tokens as i64)?,
            _ => {
                let positions =
                    |span: &Span| (span.start_pos..span.start_pos + span.n_tokens).map(|p| p as i64);
                let positions: Vec<i64> = spans.iter().flat_map(positions).collect();
                self.rope.f_index_select(0, &Tensor::f_from_slice(&positions)?.f_to_device(device)?)?
            }
        };
        let mask = |span: &Span| {
            if span.n_tokens == 1 || span.start_pos == 0 {
                return Ok(None);
            }
            let (n, start) = (span.n_tokens as i64, span.start_pos as i64);
            // 0 where a token may look, minus infinity above the diagonal that starts at its own position.
            let hidden = Tensor::f_full([n, start + n], f64::NEG_INFINITY, (Kind::Float, device))?;
            Ok(Some(hidden.f_triu(start + 1)?))
        };
        let masks = spans.iter().map(mask).collect::<Result<_>>()?;
        Ok(Step { spans, rope, masks })
    }

    /// Appends `k` and `v` to the slots of the runs and gives every token of `q` its view.
    pub(crate) fn forward(
        &self,
        step: &Step,
        cache: &mut LayerCache,
        [q, k, v]: [&Tensor; 3],
    ) -> Result<Tensor> {
        let n_heads = self.n_kv_heads * self.n_rep;
        let q = self.rotate(q, n_heads, &step.rope)?; // [n_tokens, n_heads, head_dim]
        let k = self.rotate(k, self.n_kv_heads, &step.rope)?;
        let v = v.f_view([-1, self.n_kv_heads, self.head_dim])?;
        let mut outs = Vec::with_capacity(step.spans.len());
        for (span, mask) in step.spans.iter().zip(&step.masks) {
            let rows = |x: &Tensor| x.f_narrow(0, span.first_row as i64, span.n_tokens as i64);
            cache.append(span, &rows(&k)?, &rows(&v)?)?;
            let [keys, values] = cache.prefix(span.slot, span.start_pos + span.n_tokens)?;
            outs.push(self.attend(&rows(&q)?, &keys, &values, mask.as_ref())?);
        }
        match outs.as_slice() {
            [out] => Ok(out.shallow_clone()),
            outs => Tensor::f_cat(outs, 0),
        }
    }

    /// One run: `q: [n, n_heads, head_dim]`, `keys`, `values`: `[1, n_kv_heads, len, head_dim]`, to `[n, n_heads * head_dim]`.
    fn attend(&self, q: &Tensor, keys: &Tensor, values: &Tensor, mask: Option<&Tensor>) -> Result<Tensor> {
        let n = q.size()[0];
        let width = self.n_kv_heads * self.n_rep * self.head_dim;
        let sdpa = |q: &Tensor, causal, grouped| {
            Tensor::f_scaled_dot_product_attention(q, keys, values, mask, 0.0, causal, None, grouped)
        };
        if n == 1 {
            // The query heads of a group are the rows of one small matrix: each key is read once for all of them.
            let q = q.f_view([1, self.n_kv_heads, self.n_rep, self.head_dim])?;
            return sdpa(&q, false, false)?.f_reshape([1, width]);
        }
        let q = q.f_transpose(0, 1)?.f_unsqueeze(0)?; // [1, n_heads, n, head_dim]
        let out = sdpa(&q, mask.is_none(), self.n_rep > 1)?;
        out.f_transpose(1, 2)?.f_reshape([n, width])
    }

    /// Turns the pairs of every head by its position's angles: `[n, heads * head_dim]` to `[n, heads, head_dim]`. As in the
    /// reference, a pair is a complex number.
    fn rotate(&self, x: &Tensor, heads: i64, rope: &Tensor) -> Result<Tensor> {
        let pairs = x.f_view([-1, heads, self.head_dim / 2, 2])?.f_view_as_complex()?;
        pairs.f_mul(rope)?.f_view_as_real()?.f_flatten(-2, -1)
    }
}
