//! [`WeightSource`]: a checkpoint's tensors in the canonical form, shared with the model that is made of them.
//!
//! A loaded model outlives the call that loaded it, so weights are shared and not lent: [`WeightBytes`] owns a part of what
//! keeps its memory alive, be it a memory map or a buffer.

use std::fmt;
use std::ops::{Deref, Range};
use std::path::PathBuf;
use std::sync::Arc;

use crate::{DType, ModelConfig};

/// A tensor's type and shape.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TensorInfo {
    /// How its elements are stored.
    pub dtype: DType,
    /// Its dimensions, outermost first: row-major, `[out, in]` for a matrix.
    pub shape: Vec<usize>,
}

impl TensorInfo {
    /// The bytes of all elements; `None` where rows are no whole blocks, or that is more than a `usize` holds.
    #[must_use]
    pub fn n_bytes(&self) -> Option<usize> {
        let (row, outer) = self.shape.split_last().map_or((1, &[][..]), |(&row, outer)| (row, outer));
        outer.iter().try_fold(self.dtype.n_bytes(row)?, |bytes, &dim| bytes.checked_mul(dim))
    }
}

/// A checkpoint's tensors in the canonical form: Meta's names, row-major `[out, in]`, interleaved RoPE pairs.
///
/// Every tensor of [`ModelConfig::tensors`] is there with its shape once a source was opened: a reader checks that, so that a
/// backend need not. A model with tied embeddings gives `output.weight` the bytes of `tok_embeddings.weight`.
pub trait WeightSource: fmt::Debug + Send + Sync {
    /// The shape of the model.
    fn config(&self) -> &ModelConfig;

    /// A tensor's type and shape, without reading it.
    ///
    /// # Errors
    ///
    /// [`WeightError::Missing`].
    fn info(&self, name: &str) -> Result<TensorInfo, WeightError>;

    /// All bytes of a tensor, row-major: the memory map where it lies contiguous in the file, an owned buffer where shards
    /// are joined or rows permuted. They start at a multiple of [`DType::align`].
    ///
    /// # Errors
    ///
    /// [`WeightError::Missing`]; [`WeightError::Read`] when the file does not hold what it promised.
    fn bytes(&self, name: &str) -> Result<WeightBytes, WeightError>;

    /// The part `range` of dimension `dim` of a tensor, row-major, without reading the rest: what a parallel rank reads.
    /// Along the last dimension of a quantised tensor, `range` begins and ends between blocks.
    ///
    /// # Errors
    ///
    /// As [`bytes`](Self::bytes); [`WeightError::Slice`] when `dim`, `range` or the length of `out` does not fit.
    fn read_slice(
        &self,
        name: &str,
        dim: usize,
        range: Range<usize>,
        out: &mut [u8],
    ) -> Result<(), WeightError>;

    /// Whether [`bytes`](Self::bytes) of a tensor are memory that is there anyway, a file's memory map above all, and no copy made for the
    /// caller. It says what a model will take; a source that does not know says no.
    fn shares(&self, name: &str) -> bool {
        let _ = name;
        false
    }

    /// Says that a tensor's bytes were copied elsewhere, and will not be read again for now: a source lets go of memory that stands behind
    /// them, where it can. Reading them again is as good as before.
    fn release(&self, name: &str) {
        let _ = name;
    }
}

/// Checks that every tensor of the model is there, with its shape and of one of these types, without reading any.
///
/// # Errors
///
/// [`WeightError::Missing`], [`WeightError::DType`] or [`WeightError::Shape`] of the first that is not.
pub fn check_weights(source: &dyn WeightSource, dtypes: &[DType]) -> Result<(), WeightError> {
    for (tensor, expected) in source.config().tensors() {
        let info = source.info(&tensor)?;
        if !dtypes.contains(&info.dtype) {
            let expected = dtypes.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
            return Err(WeightError::DType {
                file: unnamed(),
                tensor,
                found: info.dtype.to_string(),
                expected,
            });
        }
        if info.shape != expected {
            return Err(WeightError::Shape { file: unnamed(), tensor, found: info.shape, expected });
        }
    }
    Ok(())
}

/// A tensor's type and all of its bytes, as many as its shape says.
///
/// # Errors
///
/// As [`WeightSource::bytes`]; [`WeightError::Read`] too where there are more bytes or fewer.
pub fn read_tensor(source: &dyn WeightSource, name: &str) -> Result<(DType, WeightBytes), WeightError> {
    let info = source.info(name)?;
    let bytes = source.bytes(name)?;
    if info.n_bytes() != Some(bytes.len()) {
        let what = format!("{} bytes for {:?} of {}", bytes.len(), info.shape, info.dtype);
        return Err(WeightError::unreadable(name, what));
    }
    Ok((info.dtype, bytes))
}

/// A source does not say which file it reads.
fn unnamed() -> PathBuf {
    PathBuf::from("checkpoint")
}

/// Bytes that keep what they lie in alive. Cloning shares them.
///
/// ```
/// use std::sync::Arc;
/// use llama_backend::WeightBytes;
///
/// let bytes = WeightBytes::new(Arc::new(vec![1, 2, 3, 4]), 1..3).unwrap();
/// assert_eq!(&bytes[..], [2, 3]);
/// assert!(WeightBytes::new(Arc::new(vec![1, 2]), 1..3).is_none());
/// ```
#[derive(Clone)]
pub struct WeightBytes {
    owner: Arc<dyn AsRef<[u8]> + Send + Sync>,
    range: Range<usize>,
}

impl WeightBytes {
    /// The part `range` of what `owner` holds; `None` where the range does not lie within.
    ///
    /// `owner` must give the same bytes each time it is asked, as vectors and memory maps do.
    #[must_use]
    pub fn new(owner: Arc<dyn AsRef<[u8]> + Send + Sync>, range: Range<usize>) -> Option<Self> {
        (*owner).as_ref().get(range.clone())?;
        Some(Self { owner, range })
    }
}

impl From<Vec<u8>> for WeightBytes {
    fn from(bytes: Vec<u8>) -> Self {
        let range = 0..bytes.len();
        Self { owner: Arc::new(bytes), range }
    }
}

impl Deref for WeightBytes {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        // The range was checked when the value was made.
        &(*self.owner).as_ref()[self.range.clone()]
    }
}

impl fmt::Debug for WeightBytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "WeightBytes({} bytes)", self.range.len())
    }
}

/// Why a tensor could not be had from a checkpoint.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum WeightError {
    /// The checkpoint has no tensor of this name.
    #[error("{}: no tensor {tensor:?}", .file.display())]
    Missing {
        /// The checkpoint's file or folder.
        file: PathBuf,
        /// The tensor's name in the file.
        tensor: String,
    },
    /// A tensor of another shape than the configuration says.
    #[error("{}: tensor {tensor:?} has shape {found:?}, expected {expected:?}", .file.display())]
    Shape {
        /// The file.
        file: PathBuf,
        /// The tensor's name in the file.
        tensor: String,
        /// Its shape.
        found: Vec<usize>,
        /// The shape that the configuration implies.
        expected: Vec<usize>,
    },
    /// A tensor of a type that is not supported.
    #[error("{}: tensor {tensor:?} is stored as {found}, expected {expected}", .file.display())]
    DType {
        /// The file.
        file: PathBuf,
        /// The tensor's name in the file.
        tensor: String,
        /// Its type, as the file names it.
        found: String,
        /// The types that are supported.
        expected: String,
    },
    /// A part of a tensor that does not exist, or a buffer of another size.
    #[error("tensor {tensor:?}: {what}")]
    Slice {
        /// The tensor.
        tensor: String,
        /// What does not fit.
        what: String,
    },
    /// The file does not hold what it promised, or could not be read.
    #[error("{}: tensor {tensor:?}: {source}", .file.display())]
    Read {
        /// The file.
        file: PathBuf,
        /// The tensor's name in the file.
        tensor: String,
        /// What went wrong.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
}

impl WeightError {
    /// A [`WeightError::Read`] of an engine, which does not know the file.
    pub fn unreadable(tensor: &str, source: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Self {
        Self::Read { file: unnamed(), tensor: tensor.to_owned(), source: source.into() }
    }
}
