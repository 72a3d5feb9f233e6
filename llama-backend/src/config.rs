//! [`ModelConfig`]: the shape of a Llama 2 transformer, in Meta's words.

use crate::BackendError;

/// The shape of a Llama 2 transformer (`ModelArgs` in the reference's `model.py`).
#[derive(Debug, Clone, PartialEq)]
pub struct ModelConfig {
    /// Width of the residual stream.
    pub dim: usize,
    /// Transformer blocks.
    pub n_layers: usize,
    /// Query heads.
    pub n_heads: usize,
    /// Key and value heads; head `j` serves the query heads `j * n_rep .. (j + 1) * n_rep`.
    pub n_kv_heads: usize,
    /// Width of a head: even, since RoPE turns pairs. `dim / n_heads` in every checkpoint of Meta's.
    pub head_dim: usize,
    /// Width of the feed-forward layer.
    pub ffn_dim: usize,
    /// Rows of the embedding and of the output.
    pub vocab_size: usize,
    /// RMSNorm's epsilon.
    pub norm_eps: f32,
    /// Base of RoPE's frequencies; 10000 for Llama 2.
    pub rope_theta: f64,
}

impl ModelConfig {
    /// Query heads per key and value head.
    #[must_use]
    pub fn n_rep(&self) -> usize {
        self.n_heads / self.n_kv_heads
    }

    /// Width of all query heads together.
    #[must_use]
    pub fn q_dim(&self) -> usize {
        self.n_heads * self.head_dim
    }

    /// Width of all key (or value) heads together.
    #[must_use]
    pub fn kv_dim(&self) -> usize {
        self.n_kv_heads * self.head_dim
    }

    /// The tensors that a checkpoint of this shape holds, with their shapes, in the order of the forward pass.
    pub fn tensors(&self) -> impl Iterator<Item = (String, Vec<usize>)> + '_ {
        let layers = (0..self.n_layers).flat_map(move |layer| {
            [
                ("attention_norm", vec![self.dim]),
                ("attention.wq", vec![self.q_dim(), self.dim]),
                ("attention.wk", vec![self.kv_dim(), self.dim]),
                ("attention.wv", vec![self.kv_dim(), self.dim]),
                ("attention.wo", vec![self.dim, self.q_dim()]),
                ("ffn_norm", vec![self.dim]),
                ("feed_forward.w1", vec![self.ffn_dim, self.dim]),
                ("feed_forward.w2", vec![self.dim, self.ffn_dim]),
                ("feed_forward.w3", vec![self.ffn_dim, self.dim]),
            ]
            .map(|(name, shape)| (format!("layers.{layer}.{name}.weight"), shape))
        });
        let embedding = ("tok_embeddings.weight".to_owned(), vec![self.vocab_size, self.dim]);
        let last = [
            ("norm.weight".to_owned(), vec![self.dim]),
            ("output.weight".to_owned(), vec![self.vocab_size, self.dim]),
        ];
        std::iter::once(embedding).chain(layers).chain(last)
    }

    /// The elements of all tensors together; `u64::MAX` where there are more than that.
    #[must_use]
    pub fn n_params(&self) -> u64 {
        // Layers are alike: one is counted, so that a header that promises millions costs nothing.
        let with_layers = |n_layers| {
            let config = Self { n_layers, ..self.clone() };
            config.tensors().fold(0_u64, |sum, (_, shape)| {
                let elements = shape.iter().fold(1_u64, |n, &d| n.saturating_mul(d as u64));
                sum.saturating_add(elements)
            })
        };
        let (outside, with_one) = (with_layers(0), with_layers(1));
        (with_one - outside).saturating_mul(self.n_layers as u64).saturating_add(outside)
    }

    /// Checks that the numbers make a transformer.
    ///
    /// # Errors
    ///
    /// [`BackendError::Config`] names the first value that does not fit, and what was expected.
    pub fn validate(&self) -> Result<(), BackendError> {
        // 2^24 is far above every dimension ever trained; products of three still fit u64 and usize.
        const LIMIT: usize = 1 << 24;
        let sizes = [
            ("dim", self.dim),
            ("n_layers", self.n_layers),
            ("n_heads", self.n_heads),
            ("n_kv_heads", self.n_kv_heads),
            ("head_dim", self.head_dim),
            ("ffn_dim", self.ffn_dim),
            ("vocab_size", self.vocab_size),
        ];
        for (what, found) in sizes {
            if !(1..=LIMIT).contains(&found) {
                return Err(BackendError::config(what, found, format!("between 1 and {LIMIT}")));
            }
        }
        if !self.n_heads.is_multiple_of(self.n_kv_heads) {
            let expected = format!("a divisor of n_heads = {}", self.n_heads);
            return Err(BackendError::config("n_kv_heads", self.n_kv_heads, expected));
        }
        if !self.head_dim.is_multiple_of(2) {
            return Err(BackendError::config("head_dim", self.head_dim, "an even number"));
        }
        if self.q_dim() > LIMIT {
            return Err(BackendError::config("n_heads * head_dim", self.q_dim(), format!("at most {LIMIT}")));
        }
        if !(self.norm_eps.is_finite() && self.norm_eps >= 0.0) {
            return Err(BackendError::config("norm_eps", self.norm_eps, "a finite number, 0 or above"));
        }
        if !(self.rope_theta.is_finite() && self.rope_theta > 0.0) {
            return Err(BackendError::config("rope_theta", self.rope_theta, "a finite number above 0"));
        }
        Ok(())
    }
}

/// The feed-forward width that Meta's checkpoints imply (`FeedForward.__init__`): two thirds of `4 * dim`, times
/// `ffn_dim_multiplier` where given, rounded up to a multiple of `multiple_of`. `None` when the numbers make no width.
///
/// ```
/// use llama_backend::meta_ffn_dim;
///
/// assert_eq!(meta_ffn_dim(4096, None, 256), Some(11008)); // 7B
/// assert_eq!(meta_ffn_dim(8192, Some(1.3), 4096), Some(28672)); // 70B
/// assert_eq!(meta_ffn_dim(64, None, 0), None);
/// ```
#[must_use]
pub fn meta_ffn_dim(dim: usize, ffn_dim_multiplier: Option<f64>, multiple_of: usize) -> Option<usize> {
    const LIMIT: f64 = u32::MAX as f64;
    let two_thirds = dim.checked_mul(8)? / 3;
    let wanted = match ffn_dim_multiplier {
        // Python's int() drops the fraction.
        Some(multiplier) => {
            let wanted = multiplier * two_thirds as f64;
            (0.0..=LIMIT).contains(&wanted).then_some(wanted as usize)?
        }
        None => two_thirds,
    };
    if multiple_of == 0 {
        return None;
    }
    wanted.checked_next_multiple_of(multiple_of)
}
