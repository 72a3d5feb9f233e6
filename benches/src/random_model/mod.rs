//! Random models as GGUF files: of a known shape, in any type, in seconds and without a download.
//!
//! How fast a model is does not depend on what its weights say, as long as no number on the way becomes infinite. Blocks are
//! filled with random bits directly, rather than quantised from random numbers: a file of 7 billion parameters is then made as fast
//! as a disk takes it. Scales are such that weights have a standard deviation of 0.02, as trained ones do.

mod blocks;
mod shape;
mod types;

use std::io::{self, Write};

use llama_backend::testing::Rng;
use llama_backend::{DType, ModelConfig, TensorInfo};

use crate::gguf::{Gguf, MIN_VOCAB_SIZE, Tensor, Value, WriteError, model_keys, stored_name, tokenizer_keys};
use blocks::Blocks;

pub use shape::Shape;
pub use types::{FileType, UnknownName};

/// The positions that the file says the model was trained for.
const MAX_SEQ_LEN: usize = 4096;

/// A random model: the same numbers from the same seed.
#[derive(Debug, Clone, PartialEq)]
pub struct RandomModel {
    /// Its shape.
    pub config: ModelConfig,
    /// Its name in the file.
    pub name: String,
    /// How its tensors are stored.
    pub file_type: FileType,
    /// Every matrix in the type's main type: no matrix in another, as llama.cpp chooses them.
    pub pure: bool,
    /// Where its numbers come from.
    pub seed: u64,
}

/// Why a random model was not made.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RandomModelError {
    /// A vocabulary without room for the control pieces, the bytes and the space.
    #[error("a vocabulary of {found} tokens, expected {MIN_VOCAB_SIZE} or more")]
    Vocabulary {
        /// Its size.
        found: usize,
    },
    /// The file could not be written.
    #[error(transparent)]
    Write(#[from] WriteError),
}

impl RandomModel {
    /// What the file holds.
    ///
    /// # Errors
    ///
    /// [`RandomModelError::Vocabulary`].
    pub fn header(&self) -> Result<Gguf, RandomModelError> {
        let vocab_size = self.config.vocab_size;
        if vocab_size < MIN_VOCAB_SIZE {
            return Err(RandomModelError::Vocabulary { found: vocab_size });
        }
        let mut keys = model_keys(&self.config, &self.name, MAX_SEQ_LEN);
        keys.push(("general.file_type".to_owned(), Value::U32(self.file_type.id())));
        keys.extend(tokenizer_keys(vocab_size));
        let tensors = self.config.tensors().map(|(name, shape)| {
            let dtype = self.dtype_of(&name, &shape);
            Tensor { name: stored_name(&name), info: TensorInfo { dtype, shape } }
        });
        Ok(Gguf { keys, tensors: tensors.collect() })
    }

    /// Writes the file.
    ///
    /// # Errors
    ///
    /// [`RandomModelError`].
    pub fn write(&self, out: impl Write) -> Result<(), RandomModelError> {
        let mut seeds = Rng::new(self.seed);
        let fill = |tensor: &Tensor, out: &mut dyn Write| {
            let mut rng = Rng::new(seeds.next_u64());
            match tensor.info.shape.len() {
                1 => norm(&mut rng, tensor.info.shape[0], out),
                _ => Blocks::new(tensor.info.dtype).write(&mut rng, tensor.info.n_bytes().unwrap_or(0), out),
            }
        };
        Ok(self.header()?.write(out, fill)?)
    }

    fn dtype_of(&self, name: &str, shape: &[usize]) -> DType {
        match shape {
            [_] => DType::F32,
            _ if self.pure => self.file_type.dtype(),
            _ => self.file_type.dtype_of(name, self.config.n_layers),
        }
    }
}

/// Near 1, as a norm is.
fn norm(rng: &mut Rng, len: usize, out: &mut dyn Write) -> io::Result<()> {
    for _ in 0..len {
        let x = 0.9 + rng.below(1 << 16) as f32 / (5 << 16) as f32;
        out.write_all(&x.to_le_bytes())?;
    }
    Ok(())
}
