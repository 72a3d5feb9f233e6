//! Views on a checkpoint's weights: converted to another type, or watched while they are loaded.

use std::fmt;
use std::ops::Range;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use half::{bf16, f16};
use llama_backend::{DType, ModelConfig, TensorInfo, WeightBytes, WeightError, WeightSource};

/// The matrices of a checkpoint in another type; norms stay as they are: they are small, and their precision counts.
#[derive(Debug)]
pub(crate) struct Cast {
    inner: Arc<dyn WeightSource>,
    dtype: DType,
}

impl Cast {
    pub(crate) fn wrap(inner: Arc<dyn WeightSource>, dtype: DType) -> Arc<dyn WeightSource> {
        Arc::new(Self { inner, dtype })
    }

    /// The type that a tensor is stored in, when it is to be converted.
    fn from(&self, name: &str) -> Result<Option<DType>, WeightError> {
        let info = self.inner.info(name)?;
        Ok((info.shape.len() > 1 && info.dtype != self.dtype).then_some(info.dtype))
    }

    fn convert(&self, name: &str, from: DType, bytes: &[u8], out: &mut Vec<u8>) -> Result<(), WeightError> {
        let lost = |x: f32| WeightError::Read {
            file: PathBuf::from("checkpoint"),
            tensor: name.to_owned(),
            source: format!("{x} does not fit {}", self.dtype).into(),
        };
        for element in bytes.chunks_exact(from.size()) {
            let x = match (from, element) {
                (DType::F32, &[a, b, c, d]) => f32::from_le_bytes([a, b, c, d]),
                (DType::F16, &[a, b]) => f16::from_le_bytes([a, b]).to_f32(),
                (DType::BF16, &[a, b]) => bf16::from_le_bytes([a, b]).to_f32(),
                _ => return Err(self.unsupported(name, from)),
            };
            let rounded = match self.dtype {
                DType::F32 => {
                    out.extend(x.to_le_bytes());
                    x
                }
                DType::F16 => {
                    out.extend(f16::from_f32(x).to_le_bytes());
                    f16::from_f32(x).to_f32()
                }
                DType::BF16 => {
                    out.extend(bf16::from_f32(x).to_le_bytes());
                    bf16::from_f32(x).to_f32()
                }
                _ => return Err(self.unsupported(name, from)),
            };
            if rounded.is_infinite() && x.is_finite() {
                return Err(lost(x));
            }
        }
        Ok(())
    }

    fn unsupported(&self, name: &str, from: DType) -> WeightError {
        WeightError::DType {
            file: PathBuf::from("checkpoint"),
            tensor: name.to_owned(),
            found: from.to_string(),
            expected: format!("a type that converts to {}", self.dtype),
        }
    }
}

impl WeightSource for Cast {
    fn config(&self) -> &ModelConfig {
        self.inner.config()
    }

    fn info(&self, name: &str) -> Result<TensorInfo, WeightError> {
        let info = self.inner.info(name)?;
        let dtype = if info.shape.len() > 1 { self.dtype } else { info.dtype };
        Ok(TensorInfo { dtype, ..info })
    }

    fn bytes(&self, name: &str) -> Result<WeightBytes, WeightError> {
        let bytes = self.inner.bytes(name)?;
        let Some(from) = self.from(name)? else { return Ok(bytes) };
        let mut out = Vec::with_capacity(bytes.len() / from.size() * self.dtype.size());
        self.convert(name, from, &bytes, &mut out)?;
        Ok(out.into())
    }

    fn read_slice(
        &self,
        name: &str,
        dim: usize,
        range: Range<usize>,
        out: &mut [u8],
    ) -> Result<(), WeightError> {
        let Some(from) = self.from(name)? else {
            return self.inner.read_slice(name, dim, range, out);
        };
        let mut stored = vec![0; out.len() / self.dtype.size() * from.size()];
        self.inner.read_slice(name, dim, range, &mut stored)?;
        let mut converted = Vec::with_capacity(out.len());
        self.convert(name, from, &stored, &mut converted)?;
        if converted.len() != out.len() {
            let what = format!("a buffer of {} bytes does not hold whole {} elements", out.len(), self.dtype);
            return Err(WeightError::Slice { tensor: name.to_owned(), what });
        }
        out.copy_from_slice(&converted);
        Ok(())
    }
}

/// Called with the bytes of weights that were handed to the backend, and the bytes of all.
#[derive(Clone)]
pub(crate) struct Progress(Arc<dyn Fn(u64, u64) + Send + Sync>);

impl Progress {
    pub(crate) fn new(report: impl Fn(u64, u64) + Send + Sync + 'static) -> Self {
        Self(Arc::new(report))
    }
}

impl fmt::Debug for Progress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Progress")
    }
}

/// A checkpoint that reports how much of it was handed over.
#[derive(Debug)]
pub(crate) struct Watched {
    inner: Arc<dyn WeightSource>,
    progress: Progress,
    done: AtomicU64,
    total: u64,
}

impl Watched {
    pub(crate) fn wrap(inner: Arc<dyn WeightSource>, progress: Progress) -> Arc<dyn WeightSource> {
        let sizes = inner.config().tensors().filter_map(|(name, _)| inner.info(&name).ok()?.n_bytes());
        let total = sizes.map(|bytes| bytes as u64).sum();
        Arc::new(Self { inner, progress, done: AtomicU64::new(0), total })
    }

    fn report(&self, bytes: usize) {
        let bytes = bytes as u64;
        let done = self.done.fetch_add(bytes, Ordering::Relaxed) + bytes;
        // A backend may read a tensor more than once.
        (self.progress.0)(done.min(self.total), self.total);
    }
}

impl WeightSource for Watched {
    fn config(&self) -> &ModelConfig {
        self.inner.config()
    }

    fn info(&self, name: &str) -> Result<TensorInfo, WeightError> {
        self.inner.info(name)
    }

    fn bytes(&self, name: &str) -> Result<WeightBytes, WeightError> {
        let bytes = self.inner.bytes(name)?;
        self.report(bytes.len());
        Ok(bytes)
    }

    fn read_slice(
        &self,
        name: &str,
        dim: usize,
        range: Range<usize>,
        out: &mut [u8],
    ) -> Result<(), WeightError> {
        self.inner.read_slice(name, dim, range, out)?;
        self.report(out.len());
        Ok(())
    }
}
