//! What a step has to read and to compute, by the model's shape: what rates are held against.

use llama_backend::{DType, ModelConfig, WeightError, WeightSource};

/// What a model's tensors take.
#[derive(Debug, Clone, PartialEq)]
pub struct Weights {
    /// The elements of all tensors; those of a tied embedding once.
    pub n_params: u64,
    /// Their bytes, as they are stored.
    pub n_bytes: u64,
    /// The bytes that one decode reads: all but the rows of the embedding that it does not look up. A tied embedding is read as output.
    pub decode_bytes: u64,
    /// The type of most elements.
    pub dtype: DType,
}

impl Weights {
    /// What a source's tensors take.
    ///
    /// # Errors
    ///
    /// The source's.
    pub fn of(source: &dyn WeightSource) -> Result<Self, WeightError> {
        // One tensor under two names is the same memory. (Where a reader copies, it is counted twice: that is what an engine then gets.)
        let (embedding, output) = (source.bytes("tok_embeddings.weight")?, source.bytes("output.weight")?);
        let tied = embedding.as_ptr() == output.as_ptr();
        let mut weights = Self { n_params: 0, n_bytes: 0, decode_bytes: 0, dtype: DType::F32 };
        let mut by_type: Vec<(DType, u64)> = Vec::new();
        for (name, shape) in source.config().tensors() {
            let info = source.info(&name)?;
            let n_bytes = info.n_bytes().unwrap_or(0) as u64; // readers check that blocks are whole
            let is_embedding = name == "tok_embeddings.weight";
            if !is_embedding {
                weights.decode_bytes += n_bytes;
            }
            if is_embedding && tied {
                continue;
            }
            let n_params = shape.iter().map(|&dim| dim as u64).product::<u64>();
            weights.n_params += n_params;
            weights.n_bytes += n_bytes;
            match by_type.iter_mut().find(|(dtype, _)| *dtype == info.dtype) {
                Some((_, n)) => *n += n_params,
                None => by_type.push((info.dtype, n_params)),
            }
        }
        weights.dtype = by_type.iter().max_by_key(|(_, n)| *n).map_or(DType::F32, |(dtype, _)| *dtype);
        Ok(weights)
    }
}

/// The operations of appending `n` tokens to `depth` others in passes of `max_batch_tokens`, a multiplication and an addition counted as two: the
/// products with matrices, and queries with keys and values as far as the mask lets through. The output is computed for the last
/// token of all.
#[must_use]
pub fn prefill_flops(config: &ModelConfig, n: usize, depth: usize) -> f64 {
    let matrix = |name: &str, shape: &[usize]| match (name, shape) {
        (_, [_]) | ("tok_embeddings.weight", _) => 0.0,
        ("output.weight", [n_out, n_in]) => (n_out * n_in) as f64,
        (_, shape) => n as f64 * shape.iter().product::<usize>() as f64,
    };
    let matrices: f64 = config.tensors().map(|(name, shape)| matrix(&name, &shape)).sum();
    let pairs = n as f64 * (depth as f64 + (n as f64 + 1.0) / 2.0); // of a query and a position that it sees
    let attention = config.n_layers as f64 * pairs * (2 * config.q_dim()) as f64;
    2.0 * (matrices + attention)
}

#[cfg(test)]
mod tests {
    use llama_backend::testing::RandomWeights;

    use super::*;

    fn config() -> ModelConfig {
        ModelConfig {
            dim: 32,
            n_layers: 2,
            n_heads: 2,
            n_kv_heads: 1,
            head_dim: 16,
            ffn_dim: 64,
            vocab_size: 5,
            norm_eps: 1e-5,
            rope_theta: 10000.0,
        }
    }

    #[test]
    fn a_decode_reads_everything_but_the_embedding() {
        let weights = Weights::of(&RandomWeights::new(config(), DType::F16, 1).materialised()).unwrap();
        assert_eq!(weights.n_params, config().n_params());
        assert_eq!(weights.n_bytes, 2 * config().n_params());
        assert_eq!(weights.n_bytes - weights.decode_bytes, 2 * 5 * 32);
        assert_eq!(weights.dtype, DType::F16);
    }

    #[test]
    fn operations_of_one_token_are_two_an_element_and_its_attention() {
        let matrices = 2 * (32 * 32 * 2 + 16 * 32 * 2 + 32 * 64 * 3) + 5 * 32;
        let attention = 2 * 2 * 32; // layers, keys and values, width: one position
        assert_eq!(prefill_flops(&config(), 1, 0), f64::from(2 * (matrices + attention)));
        let deeper = prefill_flops(&config(), 1, 3) - prefill_flops(&config(), 1, 0);
        assert_eq!(deeper, f64::from(2 * 3 * attention));
    }
}
