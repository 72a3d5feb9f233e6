//! Views on a checkpoint's weights: in other types ([`Cast`]), or watched while they are loaded ([`Watched`]).

mod cast;

use std::fmt;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use llama_backend::{ModelConfig, TensorInfo, WeightBytes, WeightError, WeightSource};

pub use cast::Quantization;
pub(crate) use cast::{Cast, Rule};

/// Called with the bytes of weights that were handed to the backend, in whole tensors, and the bytes of all.
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
        // The rest of the tensor is another rank's, and as good as done.
        self.report(self.inner.info(name)?.n_bytes().unwrap_or(out.len()));
        Ok(())
    }

    fn shares(&self, name: &str) -> bool {
        self.inner.shares(name)
    }

    fn release(&self, name: &str) {
        self.inner.release(name);
    }
}
