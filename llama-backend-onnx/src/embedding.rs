//! The rows of the token embeddings, looked up where the checkpoint holds them.
//!
//! The graph is given rows and not tokens: so the table stays as it is stored, in the reader's memory map and in whatever type, and only what
//! is asked for is widened, exactly. The engine's own look-up takes some types, each in a form of its own, which would be a second table.

use llama_backend::quant::dequantize;
use llama_backend::{
    BackendError, DType, ModelConfig, TokenId, WeightBytes, WeightError, WeightSource, read_tensor,
};

/// The tensor's name.
const TENSOR: &str = "tok_embeddings.weight";

/// The table, `[vocab_size, dim]`.
#[derive(Debug)]
pub(crate) struct Embedding {
    dtype: DType,
    dim: usize,
    /// Bytes of a row.
    row: usize,
    bytes: WeightBytes,
}

impl Embedding {
    /// The table of a checkpoint whose tensors have been checked.
    pub(crate) fn new(source: &dyn WeightSource, config: &ModelConfig) -> Result<Self, BackendError> {
        let (dtype, bytes) = read_tensor(source, TENSOR)?;
        let row = dtype.n_bytes(config.dim);
        let row =
            row.ok_or_else(|| unreadable(format!("rows of {} are no blocks of {dtype}", config.dim)))?;
        Ok(Self { dtype, dim: config.dim, row, bytes })
    }

    /// The rows of these tokens, `[tokens.len(), dim]`, instead of what `out` held.
    pub(crate) fn rows(
        &self,
        tokens: impl ExactSizeIterator<Item = TokenId>,
        out: &mut Vec<f32>,
    ) -> Result<(), BackendError> {
        out.resize(tokens.len() * self.dim, 0.0);
        for (token, out) in tokens.zip(out.chunks_exact_mut(self.dim)) {
            let start = token.0 as usize * self.row; // a token of the vocabulary: `Slots::check`
            let row = self.bytes.get(start..start + self.row);
            let row = row.ok_or_else(|| unreadable(format!("no row {}", token.0)))?;
            dequantize(self.dtype, row, out).map_err(unreadable)?;
        }
        Ok(())
    }
}

fn unreadable(what: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> BackendError {
    BackendError::Weights(WeightError::unreadable(TENSOR, what))
}
