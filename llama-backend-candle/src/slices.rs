//! A rank's part of a matrix, read from a checkpoint without the rest.
//!
//! A whole matrix is the reader's own bytes, a memory map's where that can be. A part is copied to pages of this process: columns lie strided in
//! the file, and the rank that touches its pages first has them near its processors.

use std::ops::Range;
use std::sync::Arc;

use llama_backend::quant::{dequantize, quantize};
use llama_backend::{BackendError, DType, TensorInfo, WeightBytes, WeightError, WeightSource, read_tensor};
use memmap2::MmapMut;

use crate::split::Columns;

/// What is wanted of a matrix.
#[derive(Debug, Clone)]
pub(crate) enum Part {
    Whole,
    Rows(Range<usize>),
    Columns(Columns),
}

/// A matrix, or a part of one.
#[derive(Debug)]
pub(crate) struct Read {
    /// `[n_out, n_in]` of the part.
    pub(crate) shape: [usize; 2],
    pub(crate) dtype: DType,
    pub(crate) bytes: WeightBytes,
    /// The type that it was stored in, where that is another.
    pub(crate) recast: Option<DType>,
}

/// Reads a part of a matrix, whose type and shape were checked.
pub(crate) fn read_part(source: &dyn WeightSource, name: &str, part: Part) -> Result<Read, BackendError> {
    let TensorInfo { dtype, shape } = source.info(name)?;
    let &[rows, columns] = &*shape else {
        return Err(WeightError::unreadable(name, format!("{shape:?} is no matrix")).into());
    };
    let slice = |dim: usize, range: Range<usize>| slice(source, name, dtype, [rows, columns], dim, range);
    let read = match part {
        Part::Whole => {
            let (dtype, bytes) = read_tensor(source, name)?;
            Read { shape: [rows, columns], dtype, bytes, recast: None }
        }
        Part::Rows(range) => Read {
            shape: [range.len(), columns],
            dtype,
            bytes: shared(name, slice(0, range)?)?,
            recast: None,
        },
        Part::Columns(Columns { range, dtype: kept }) if kept == dtype => {
            Read { shape: [rows, range.len()], dtype, bytes: shared(name, slice(1, range)?)?, recast: None }
        }
        Part::Columns(Columns { range, dtype: kept }) => {
            // The blocks that the columns lie in, and then the columns.
            let len = dtype.block_len();
            let wide = range.start / len * len..range.end.next_multiple_of(len);
            let stored = slice(1, wide.clone())?;
            let own = range.start - wide.start..range.end - wide.start;
            let bytes = recast(name, (dtype, &stored, wide.len()), own.clone(), kept)?;
            Read { shape: [rows, own.len()], dtype: kept, bytes: shared(name, bytes)?, recast: Some(dtype) }
        }
    };
    Ok(read)
}

fn slice(
    source: &dyn WeightSource,
    name: &str,
    dtype: DType,
    [rows, columns]: [usize; 2],
    dim: usize,
    range: Range<usize>,
) -> Result<MmapMut, BackendError> {
    let elements = range.len() * if dim == 0 { columns } else { rows };
    let mut bytes = pages(name, dtype.n_bytes(elements))?;
    source.read_slice(name, dim, range, &mut bytes)?;
    Ok(bytes)
}

/// Some columns of rows of `n` elements, in another type.
fn recast(
    name: &str,
    (stored, bytes, n): (DType, &[u8], usize),
    columns: Range<usize>,
    kept: DType,
) -> Result<MmapMut, BackendError> {
    let failed = |error| WeightError::unreadable(name, error);
    let row_bytes = stored.n_bytes(n).unwrap_or(0).max(1); // whole blocks, as they were just read
    let kept_bytes = kept.n_bytes(columns.len());
    let mut out = pages(name, kept_bytes.map(|row| bytes.len() / row_bytes * row))?;
    let mut row = vec![0.0; n];
    let outs = out.chunks_exact_mut(kept_bytes.unwrap_or(0).max(1));
    for (bytes, out) in bytes.chunks_exact(row_bytes).zip(outs) {
        dequantize(stored, bytes, &mut row).map_err(failed)?;
        quantize(kept, &row[columns.clone()], out).map_err(failed)?;
    }
    Ok(out)
}

/// Memory of the system's own, in large pages where it has them: a stream of them is read faster.
fn pages(name: &str, len: Option<usize>) -> Result<MmapMut, WeightError> {
    let len = len.ok_or_else(|| WeightError::unreadable(name, "its part is no whole blocks"))?;
    let pages = MmapMut::map_anon(len).map_err(|error| WeightError::unreadable(name, error))?;
    #[cfg(target_os = "linux")]
    let _ = pages.advise(memmap2::Advice::HugePage); // a kernel without them is as good, but slower
    Ok(pages)
}

fn shared(name: &str, pages: MmapMut) -> Result<WeightBytes, WeightError> {
    let len = pages.len();
    // Never refused: it is the whole of it.
    WeightBytes::new(Arc::new(pages), 0..len)
        .ok_or_else(|| WeightError::unreadable(name, "its part is short"))
}
