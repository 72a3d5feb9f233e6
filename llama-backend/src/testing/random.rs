//! [`RandomWeights`]: a checkpoint of any shape made from a seed.
//!
//! Every element is a hash of (seed, tensor, index), so a tensor is made when it is asked for, any slice of it without the
//! rest, and always the same: a model of gigabytes costs no memory beyond what the engine under test keeps. No generator of
//! another crate is used, so the weights are the same in every version of everything.

use std::collections::HashMap;
use std::ops::Range;
use std::path::PathBuf;

use super::random_blocks::random_block;
use crate::quant::quantize;
use crate::{DType, ModelConfig, TensorInfo, WeightBytes, WeightError, WeightSource};

/// A seeded model. Matrices are uniform with standard deviation `1 / sqrt(in)`, so that activations stay near 1 through any
/// number of layers; norms are near 1, but not 1, so that a norm that is left out shows.
///
/// ```
/// use llama_backend::testing::RandomWeights;
/// use llama_backend::{DType, ModelConfig, WeightSource};
///
/// let config = ModelConfig {
///     dim: 8, n_layers: 1, n_heads: 2, n_kv_heads: 1, head_dim: 4, ffn_dim: 12, vocab_size: 5,
///     norm_eps: 1e-5, rope_theta: 10000.0,
/// };
/// let weights = RandomWeights::new(config, DType::BF16, 7);
/// assert_eq!(weights.bytes("norm.weight")?.len(), 8 * 2);
/// # Ok::<(), llama_backend::WeightError>(())
/// ```
#[derive(Debug, Clone)]
pub struct RandomWeights {
    config: ModelConfig,
    dtype: DType,
    seed: u64,
    shapes: HashMap<String, Vec<usize>>,
    kept: HashMap<String, WeightBytes>,
}

impl RandomWeights {
    /// A model of this shape, its tensors made each time that they are asked for. Of types that [`quantize`] makes they are the seed's
    /// numbers quantised; of the others, blocks of random bits with the same standard deviation.
    #[must_use]
    pub fn new(config: ModelConfig, dtype: DType, seed: u64) -> Self {
        Self { shapes: config.tensors().collect(), config, dtype, seed, kept: HashMap::new() }
    }

    /// The same model with every tensor made now and shared from then on, as a memory-mapped file would be.
    #[must_use]
    pub fn materialised(mut self) -> Self {
        self.kept = self.shapes.iter().map(|(name, shape)| (name.clone(), self.make(name, shape))).collect();
        self
    }

    fn make(&self, name: &str, shape: &[usize]) -> WeightBytes {
        let dtype = self.dtype_of(shape);
        // `dtype_of` gives a type in which the rows are whole blocks.
        let mut bytes = vec![0; shape.iter().product::<usize>() / dtype.block_len() * dtype.size()];
        write(dtype, &Elements::of(self.seed, name, shape), 0, &mut bytes);
        WeightBytes::from(bytes)
    }

    /// What a tensor is stored as: as GGUF files do, norms and rows that are no whole blocks are f32 in a quantised model.
    fn dtype_of(&self, shape: &[usize]) -> DType {
        let in_blocks = shape.len() > 1
            && shape.iter().all(|&dim| dim > 0)
            && shape.last().is_some_and(|row| row.is_multiple_of(self.dtype.block_len()));
        if self.dtype.is_quantized() && !in_blocks { DType::F32 } else { self.dtype }
    }

    fn shape(&self, name: &str) -> Result<&[usize], WeightError> {
        let shape = self.shapes.get(name).ok_or_else(|| WeightError::Missing {
            file: PathBuf::from("random weights"),
            tensor: name.to_owned(),
        })?;
        Ok(shape)
    }
}

/// Writes the elements from index `first` on, as many as `out` holds.
fn write(dtype: DType, elements: &Elements, first: usize, out: &mut [u8]) {
    /// A whole number of blocks of every type.
    const CHUNK: usize = 256;
    if quantize(dtype, &[], &mut []).is_err() {
        let blocks = out.chunks_mut(dtype.size()).enumerate();
        let first = first / dtype.block_len();
        let deviation = elements.spread / 3_f32.sqrt();
        return blocks.for_each(|(i, block)| random_block(dtype, elements.key, first + i, deviation, block));
    }
    let mut chunk = [0.0; CHUNK];
    let chunks = out.chunks_mut(CHUNK / dtype.block_len() * dtype.size());
    for (i, bytes) in chunks.enumerate() {
        let chunk = &mut chunk[..bytes.len() / dtype.size() * dtype.block_len()];
        for (j, element) in chunk.iter_mut().enumerate() {
            *element = elements.get(first + i * CHUNK + j);
        }
        // Whole blocks, of numbers near 1, of a type that can be made: nothing is left to fail.
        let written = quantize(dtype, chunk, bytes);
        debug_assert!(written.is_ok(), "{written:?}");
    }
}

impl WeightSource for RandomWeights {
    fn config(&self) -> &ModelConfig {
        &self.config
    }

    fn info(&self, name: &str) -> Result<TensorInfo, WeightError> {
        let shape = self.shape(name)?.to_vec();
        Ok(TensorInfo { dtype: self.dtype_of(&shape), shape })
    }

    fn bytes(&self, name: &str) -> Result<WeightBytes, WeightError> {
        let shape = self.shape(name)?;
        Ok(match self.kept.get(name) {
            Some(kept) => kept.clone(),
            None => self.make(name, shape),
        })
    }

    fn read_slice(
        &self,
        name: &str,
        dim: usize,
        range: Range<usize>,
        out: &mut [u8],
    ) -> Result<(), WeightError> {
        let shape = self.shape(name)?;
        let misfit = |what: String| WeightError::Slice { tensor: name.to_owned(), what };
        let Some(&len) = shape.get(dim) else {
            return Err(misfit(format!("dimension {dim} of shape {shape:?}")));
        };
        if range.start > range.end || range.end > len {
            return Err(misfit(format!("{range:?} of dimension {dim} of shape {shape:?}")));
        }
        let outer: usize = shape[..dim].iter().product();
        let inner: usize = shape[dim + 1..].iter().product();
        let dtype = self.dtype_of(shape);
        let blocks = |n: usize| dtype.n_bytes(n * inner);
        let (Some(n_bytes), Some(_)) = (blocks(range.len()), blocks(range.start)) else {
            return Err(misfit(format!("{range:?} of dimension {dim} is no whole blocks of {dtype}")));
        };
        if out.len() != outer * n_bytes {
            let (found, expected) = (out.len(), outer * n_bytes);
            return Err(misfit(format!("a buffer of {found} bytes, expected {expected}")));
        }
        if n_bytes == 0 {
            return Ok(());
        }
        let elements = Elements::of(self.seed, name, shape);
        for (o, part) in out.chunks_exact_mut(n_bytes).enumerate() {
            write(dtype, &elements, (o * len + range.start) * inner, part);
        }
        Ok(())
    }
}

/// The elements of one tensor: element `i` is `mean + spread * u`, where `u`, in -1..1, is a hash of (`key`, `i`).
struct Elements {
    key: u64,
    mean: f32,
    spread: f32,
}

impl Elements {
    fn of(seed: u64, name: &str, shape: &[usize]) -> Self {
        // FNV-1a over the name, from a start that the seed moves.
        let key = name
            .bytes()
            .fold(mix(seed), |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3));
        // A uniform number in -a..a has the standard deviation a / sqrt(3).
        let (mean, spread) = match shape {
            [_] => (1.0, 0.25),
            _ if name == "tok_embeddings.weight" => (0.0, 3_f32.sqrt()),
            [.., n_in] => (0.0, (3.0 / *n_in as f32).sqrt()),
            [] => (0.0, 1.0),
        };
        Self { key: mix(key), mean, spread }
    }

    fn get(&self, i: usize) -> f32 {
        self.mean + self.spread * symmetric(mix(self.key.wrapping_add(i as u64)))
    }
}

/// A small seeded stream of numbers (SplitMix64), for tests that draw shapes, tokens and steps.
#[derive(Debug, Clone)]
pub struct Rng(u64);

impl Rng {
    /// The stream of this seed.
    #[must_use]
    pub fn new(seed: u64) -> Self {
        Self(mix(seed))
    }

    /// The next number.
    pub fn next_u64(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(1);
        mix(self.0)
    }

    /// A number below `end`; 0 where `end` is 0.
    pub fn below(&mut self, end: usize) -> usize {
        // Test ranges are tiny beside 2^64: the bias of the remainder cannot be seen.
        self.next_u64().checked_rem(end as u64).unwrap_or(0) as usize
    }
}

/// SplitMix64's output function (Steele, Lea & Flood 2014) on the `n`-th state.
pub(super) fn mix(n: u64) -> u64 {
    let mut z = n.wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// The upper 24 bits, which an f32 holds exactly, as a number in -1..1.
fn symmetric(bits: u64) -> f32 {
    const HALF: f32 = (1 << 23) as f32;
    (bits >> 40) as f32 / HALF - 1.0
}
