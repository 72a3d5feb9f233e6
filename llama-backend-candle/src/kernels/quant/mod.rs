//! Products of quantised weights and activations of 8 bits: `x · Wᵀ`.
//!
//! A matrix is packed once, at load, into panels of [`ROWS`] rows, in which sixteen rows lie side by side as the kernels multiply them
//! ([`format`]); it has the bits of the file's blocks and is in memory once. Activations are rounded to 8 bits, 32 at a time
//! ([`activations`]). Products of bytes and their sums within a block are exact; each block's sum is scaled and added in f32, from the
//! first block of a row to the last.
//!
//! That order knows neither the batch nor the part of it that is computed at a time, so that a row's result is the same to the bit alone,
//! among others and in any chunking, on any number of threads.
//!
//! Few rows read a panel from memory as it is packed. For many rows a part of a panel is unpacked first, which costs as much as a
//! few rows do, and stays in the first cache while all rows use it.
//!
//! Shapes: `x: [n, k]`, weights `[n_out, k]`, `out: [n, n_out]`.

pub(crate) mod activations;
#[cfg(target_arch = "x86_64")]
mod amx;
#[cfg(target_arch = "x86_64")]
mod avx2;
mod format;
mod lanes;
mod panel;
mod product;
#[cfg(target_arch = "x86_64")]
pub(crate) mod vnni;

use std::io;

use llama_backend::DType;

use self::format::Format;
pub(crate) use self::lanes::{Lanes, ROWS, RowsKernel, Scalar};
pub(crate) use self::product::{STREAMS, multiply};
use super::memory::Region;
use super::{Context, SERIAL_BELOW};
use activations::{Arranged, Block, PARTS};

/// A quantised matrix, packed for the kernels.
#[derive(Debug)]
pub(crate) struct Packed {
    dtype: DType,
    /// Activations are two blocks each.
    fine: bool,
    /// The bytes of a panel.
    panel: usize,
    /// The panels.
    data: Region,
}

/// Calls `$f` with the [`Format`] of a type; `$none` for a type that has none.
macro_rules! with_format {
    ($dtype:expr, |$format:ident| $f:expr, else $none:expr) => {
        with_format!(@ $dtype, $format, $f, $none, Q4_0 Q4_1 Q5_0 Q5_1 Q8_0 Q2_K Q3_K Q4_K Q5_K Q6_K IQ4_NL IQ4_XS)
    };
    (@ $dtype:expr, $format:ident, $f:expr, $none:expr, $($name:ident)*) => {
        match $dtype {
            $(llama_backend::DType::$name => {
                type $format = $crate::kernels::quant::format::$name;
                $f
            })*
            _ => $none,
        }
    };
}
use with_format;

impl Packed {
    /// Packs a matrix `[n_out, k]` of whole blocks, its activations to be fine or not.
    ///
    /// `bytes` are those of `n_out * k` elements of a quantised type: `Linear` checks that.
    pub(crate) fn new(
        ctx: &Context,
        dtype: DType,
        [n_out, k]: [usize; 2],
        bytes: &[u8],
        fine: bool,
    ) -> io::Result<Self> {
        let panel: usize = with_format!(dtype, |F| k.div_ceil(F::LEN) * F::UNIT, else 0);
        let n_bytes = n_out.div_ceil(ROWS).saturating_mul(panel);
        let mut data = ctx.memory.take(n_bytes)?;
        let row = bytes.len() / n_out.max(1);
        ctx.pool.chunks(&mut data, panel.max(1), |i, panel| {
            let rows: [&[u8]; ROWS] = std::array::from_fn(|r| {
                let row = (i * ROWS + r) * row..(i * ROWS + r + 1) * row;
                bytes.get(row).unwrap_or(&[]) // past the last row
            });
            with_format!(dtype, |F| pack::<F>(rows, panel), else ());
        });
        Ok(Self { dtype, fine, panel, data })
    }

    /// What so many bytes of blocks take when they are packed; of other types nothing is packed.
    pub(crate) fn enlarged(dtype: DType, bytes: u64) -> u64 {
        let (unit, blocks) = with_format!(dtype, |F| (F::UNIT, ROWS * F::BLOCKS * F::BLOCK), else (1, 1));
        u64::try_from(u128::from(bytes) * unit as u128 / blocks as u128).unwrap_or(u64::MAX)
    }

    /// Whether its activations are to be fine: see [`quantize`].
    pub(crate) fn is_fine(&self) -> bool {
        self.fine
    }

    /// The bytes of a row.
    pub(crate) fn row_bytes(&self) -> usize {
        self.panel / ROWS
    }

    /// A panel: the units of [`ROWS`] rows.
    fn panel(&self, i: usize) -> &[u8] {
        &self.data[i * self.panel..][..self.panel]
    }
}

/// Packs one panel.
fn pack<F: Format>(rows: [&[u8]; ROWS], panel: &mut [u8]) {
    for (i, unit) in panel.chunks_exact_mut(F::UNIT).enumerate() {
        F::pack(rows.map(|row| row.chunks(F::BLOCKS * F::BLOCK).nth(i).unwrap_or(&[])), unit);
    }
}

/// Rounds the rows of `x`, `[n, k]`, whole blocks of [`activations::LEN`], to bytes, into [`n_blocks`] of `x`'s length.
///
/// Where they are to be `fine`, each row is followed by one of what rounding took from it, rounded in turn: two bytes for each number.
pub(crate) fn quantize<'a>(
    ctx: &Context,
    x: &[f32],
    k: usize,
    fine: bool,
    blocks: &'a mut [Block],
) -> Arranged<'a> {
    let n = x.len() / k;
    let rows = n * activations::rows_of_each(fine);
    let task = |chunk: usize, blocks: &mut [Block]| {
        ctx.isa.run_rows(Quantize {
            x,
            k,
            from: chunk * PARTS * activations::LEN,
            fine,
            parts: blocks.len() / rows,
            blocks,
        });
    };
    if x.len() < SERIAL_BELOW {
        blocks.chunks_mut(rows * PARTS).enumerate().for_each(|(chunk, blocks)| task(chunk, blocks));
    } else {
        ctx.pool.chunks(blocks, rows * PARTS, task);
    }
    Arranged { blocks, rows, fine }
}

/// The blocks of so many activations.
pub(crate) fn n_blocks(len: usize, fine: bool) -> usize {
    len / activations::LEN * activations::rows_of_each(fine)
}

/// A chunk.
struct Quantize<'a> {
    x: &'a [f32],
    k: usize,
    /// The chunk's first column.
    from: usize,
    fine: bool,
    parts: usize,
    blocks: &'a mut [Block],
}

impl RowsKernel for Quantize<'_> {
    #[inline(always)]
    fn run<S: Lanes>(self, s: S) {
        let Self { x, k, from, fine, parts, blocks } = self;
        let rows = x.chunks_exact(k);
        let per_row = parts * activations::rows_of_each(fine);
        for (x, blocks) in rows.zip(blocks.chunks_exact_mut(per_row)) {
            let (x, _) = x[from..][..parts * activations::LEN].as_chunks();
            let (first, second) = blocks.split_at_mut(parts);
            for (x, block) in x.iter().zip(&mut *first) {
                *block = Block::quantize(s, x);
            }
            // None where there is no second row.
            for ((x, first), second) in x.iter().zip(first).zip(second) {
                *second = Block::quantize(s, &first.rest(x));
            }
        }
    }
}
