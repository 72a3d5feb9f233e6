//! The loops of the CPU path, on slices: what candle's custom operations call.
//!
//! The only module with `unsafe`: intrinsics, what threads share, and memory. Nothing here knows a tensor, a checkpoint or a slot.
//!
//! **A row's result does not depend on its batch**: each sum is taken in one order, which knows nothing of other rows, of how many rows
//! are computed at a time, or of the threads. So alone, in a batch and in chunks of any size the result is the same to the bit.
//!
//! Shapes: `n` rows of activations, `k` columns; a weight matrix is `[n_out, k]`, row-major, as it is stored.

#![allow(
    clippy::needless_range_loop,
    reason = "a loop over a constant range becomes straight code, which iterators over arrays of vectors do not always"
)]

pub(crate) mod attention;
pub(crate) mod columns;
pub(crate) mod dense;
pub(crate) mod elementwise;
pub(crate) mod halves;
pub(crate) mod matmul;
#[cfg(test)]
mod matmul_tests;
pub(crate) mod memory;
pub(crate) mod pool;
pub(crate) mod quant;
pub(crate) mod rope;
pub(crate) mod simd;

use std::io;
use std::sync::{Mutex, MutexGuard, PoisonError};

use memory::Memory;
pub(crate) use pool::Pool;
use quant::activations::Block;
pub(crate) use simd::Isa;

/// Work below this many multiplications is not worth waking a thread for.
pub(crate) const SERIAL_BELOW: usize = 1 << 15;

/// What all kernels of a model share.
#[derive(Debug)]
pub(crate) struct Context {
    pub(crate) isa: Isa,
    pub(crate) pool: Pool,
    /// Of packed weights.
    pub(crate) memory: Memory,
    pub(crate) scratch: Scratch<f32>,
    /// Activations as [`dense`] takes many rows of them. Apart from the others: they are larger by far, and buffers keep their size.
    pub(crate) arranged: Scratch<f32>,
    /// Activations of 8 bits.
    pub(crate) blocks: Scratch<Block>,
    pub(crate) spare: Spare,
}

impl Context {
    /// Fails where the system has no threads left.
    pub(crate) fn new(isa: Isa, n_threads: usize) -> io::Result<Self> {
        let pool = Pool::new(n_threads)?;
        let (scratch, arranged) = (Scratch::new(0.0), Scratch::new(0.0));
        let (blocks, spare) = (Scratch::new(Block::EMPTY), Spare::default());
        Ok(Self { isa, pool, memory: Memory::default(), scratch, arranged, blocks, spare })
    }
}

/// Buffers that are used again from layer to layer and step to step: as many as were ever in use at once.
#[derive(Debug)]
pub(crate) struct Scratch<T> {
    free: Mutex<Vec<Vec<T>>>,
    /// What a new buffer is filled with.
    empty: T,
}

impl<T: Copy> Scratch<T> {
    fn new(empty: T) -> Self {
        Self { free: Mutex::default(), empty }
    }

    /// Lends `len` elements of unspecified value.
    pub(crate) fn with<R>(&self, len: usize, f: impl FnOnce(&mut [T]) -> R) -> R {
        let mut buffer = self.free().pop().unwrap_or_default();
        if buffer.len() < len {
            buffer.reserve_exact(len - buffer.len()); // not twice as much
            buffer.resize(len, self.empty);
        }
        let result = f(&mut buffer[..len]);
        self.free().push(buffer);
        result
    }

    fn free(&self) -> MutexGuard<'_, Vec<Vec<T>>> {
        // The list is whole between any two calls: a panic elsewhere cannot have broken it.
        self.free.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The memory of activations that are done with, for the next ones of their length in the same forward pass.
///
/// New memory comes from the system page by page, each cleared first: a quarter of a prompt's time where products are fast.
#[derive(Debug, Default)]
pub(crate) struct Spare(Mutex<Vec<Vec<f32>>>);

impl Spare {
    /// `len` numbers of unspecified value.
    pub(crate) fn take(&self, len: usize) -> Vec<f32> {
        let mut free = self.free();
        let found = free.iter().position(|numbers| numbers.len() == len);
        match found.map(|i| free.swap_remove(i)) {
            // So that a test finds whoever reads what it did not write.
            Some(numbers) if cfg!(debug_assertions) => vec![f32::NAN; numbers.len()],
            Some(numbers) => numbers,
            None => vec![0.0; len],
        }
    }

    pub(crate) fn give(&self, numbers: Vec<f32>) {
        self.free().push(numbers);
    }

    /// Ends a forward pass: the next may have another number of tokens.
    pub(crate) fn clear(&self) {
        self.free().clear();
    }

    fn free(&self) -> MutexGuard<'_, Vec<Vec<f32>>> {
        // The list is whole between any two calls: a panic elsewhere cannot have broken it.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
