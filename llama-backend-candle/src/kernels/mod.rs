//! The loops of the CPU path, on slices: what candle's custom operations call.
//!
//! The only module with `unsafe`: intrinsics and the calls into the `gemm` crate. Nothing here knows a tensor, a checkpoint
//! or a slot.
//!
//! Shapes: `n` rows of activations, `k` columns; a weight matrix is `[n_out, k]`, row-major, as it is stored.

pub(crate) mod attention;
pub(crate) mod elementwise;
pub(crate) mod matmul;
pub(crate) mod rope;
pub(crate) mod simd;

use std::sync::{Mutex, MutexGuard, PoisonError};

pub(crate) use simd::Isa;

/// Work below this many multiplications is not worth waking a thread for.
pub(crate) const SERIAL_BELOW: usize = 1 << 15;

/// What all kernels of a model share.
#[derive(Debug)]
pub(crate) struct Context {
    pub(crate) isa: Isa,
    /// The threads of the model's pool.
    pub(crate) n_threads: usize,
    pub(crate) scratch: Scratch,
}

impl Context {
    pub(crate) fn new(isa: Isa, n_threads: usize) -> Self {
        Self { isa, n_threads, scratch: Scratch::default() }
    }
}

/// Buffers that are used again from layer to layer and step to step: as many as were ever in use at once.
#[derive(Debug, Default)]
pub(crate) struct Scratch {
    free: Mutex<Vec<Vec<f32>>>,
}

impl Scratch {
    /// Lends `len` numbers of unspecified value.
    pub(crate) fn with<R>(&self, len: usize, f: impl FnOnce(&mut [f32]) -> R) -> R {
        let mut buffer = self.free().pop().unwrap_or_default();
        if buffer.len() < len {
            buffer.resize(len, 0.0);
        }
        let result = f(&mut buffer[..len]);
        self.free().push(buffer);
        result
    }

    fn free(&self) -> MutexGuard<'_, Vec<Vec<f32>>> {
        // The list is whole between any two calls: a panic elsewhere cannot have broken it.
        self.free.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
