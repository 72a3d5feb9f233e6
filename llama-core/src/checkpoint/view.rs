//! [`View`]: a strided matrix within a file, checked to lie there; and what a file's reader gives to make it of.
//!
//! A view knows nothing of models, and of types only how large their blocks are: its columns are counted in blocks, which are
//! single elements unless the type is quantised.
//!
//! The checks are made once, when it is made: after that no offset that a file states can
//! lead out of it, and no product of its numbers can overflow.

use std::collections::HashMap;
use std::ops::Range;
use std::path::PathBuf;

use llama_backend::{DType, WeightBytes, WeightError};

use super::blob::Blob;

/// The order of a matrix's rows in the file.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum RowOrder {
    /// As in the canonical form.
    Canonical,
    /// Within each head, the first elements of all RoPE pairs before the second ones (Hugging Face's `wq` and `wk`):
    /// canonical row `2 * i + half` of a head lies at `half * head_dim / 2 + i`.
    HalfSplit { head_dim: usize },
}

impl RowOrder {
    /// Where a canonical row lies in the file.
    fn stored(self, row: usize) -> usize {
        match self {
            Self::Canonical => row,
            Self::HalfSplit { head_dim } => {
                let (head, within) = (row / head_dim, row % head_dim);
                let (pair, half) = (within / 2, within % 2);
                head * head_dim + half * (head_dim / 2) + pair
            }
        }
    }
}

/// A tensor as a file describes it: named type, and a strided view of the file's bytes.
#[derive(Debug, Clone)]
pub(super) struct Stored {
    /// `None` where the type is none that is supported.
    pub(super) dtype: Option<DType>,
    /// The type as the file names it.
    pub(super) type_name: String,
    pub(super) shape: Vec<usize>,
    /// In elements, one for each dimension.
    pub(super) strides: Vec<usize>,
    /// The byte of the file at which the first element starts.
    pub(super) start: usize,
}

/// The strides of a row-major tensor.
pub(super) fn dense_strides(shape: &[usize]) -> Vec<usize> {
    let mut stride = 1_usize;
    let mut strides: Vec<_> = shape
        .iter()
        .rev()
        .map(|&dim| {
            let this = stride;
            // Readers have validated the shape, so the product fits; one with a dimension of 0 has no elements to find.
            stride = stride.saturating_mul(dim);
            this
        })
        .collect();
    strides.reverse();
    strides
}

/// The types of formats that know no quantised ones, for errors.
pub(super) const PLAIN: &str = "f32, f16 or bf16";

/// The tensors of one file, each to be taken once: what is left over is not the model's.
#[derive(Debug)]
pub(super) struct FileTensors {
    pub(super) blob: Blob,
    pub(super) tensors: HashMap<String, Stored>,
    /// The types that tensors in this format may have, for errors.
    pub(super) supported: &'static str,
}

impl FileTensors {
    /// Takes a tensor whose shape must be `expected`.
    pub(super) fn take(
        &mut self,
        tensor: &str,
        expected: &[usize],
        order: RowOrder,
    ) -> Result<View, WeightError> {
        let file = || self.blob.path();
        let stored = self
            .tensors
            .remove(tensor)
            .ok_or_else(|| WeightError::Missing { file: file(), tensor: tensor.to_owned() })?;
        let Some(dtype) = stored.dtype else {
            return Err(WeightError::DType {
                file: file(),
                tensor: tensor.to_owned(),
                found: stored.type_name,
                expected: self.supported.to_owned(),
            });
        };
        if stored.shape != expected {
            return Err(WeightError::Shape {
                file: file(),
                tensor: tensor.to_owned(),
                found: stored.shape,
                expected: expected.to_vec(),
            });
        }
        View::new(&self.blob, dtype, &stored, order).ok_or_else(|| WeightError::Read {
            file: file(),
            tensor: tensor.to_owned(),
            source: "its elements do not lie within the file".into(),
        })
    }
}

/// A strided matrix within a file; a vector is a matrix of one row.
#[derive(Debug, Clone)]
pub(super) struct View {
    blob: Blob,
    dtype: DType,
    n_rows: usize,
    /// In blocks, as the strides.
    n_cols: usize,
    row_stride: usize,
    col_stride: usize,
    start: usize,
    order: RowOrder,
}

impl View {
    /// `None` unless it is a vector or a matrix whose elements all lie within the file.
    fn new(blob: &Blob, dtype: DType, stored: &Stored, order: RowOrder) -> Option<Self> {
        let (n_rows, n_cols, row_stride, col_stride) = match (&*stored.shape, &*stored.strides) {
            (&[n], &[stride]) => (1, n, n, stride),
            (&[rows, cols], &[row_stride, col_stride]) => (rows, cols, row_stride, col_stride),
            _ => return None,
        };
        let (n_cols, row_stride) = match dtype.block_len() {
            1 => (n_cols, row_stride),
            // Rows of whole blocks, whose elements follow each other.
            len if col_stride == 1 && n_cols.is_multiple_of(len) && row_stride.is_multiple_of(len) => {
                (n_cols / len, row_stride / len)
            }
            _ => return None,
        };
        let last_row = n_rows.checked_sub(1)?.checked_mul(row_stride)?;
        let last_col = n_cols.checked_sub(1)?.checked_mul(col_stride)?;
        let end = last_row
            .checked_add(last_col)?
            .checked_add(1)?
            .checked_mul(dtype.size())?
            .checked_add(stored.start)?;
        (end <= blob.bytes().len()).then(|| Self {
            blob: blob.clone(),
            dtype,
            n_rows,
            n_cols,
            row_stride,
            col_stride,
            start: stored.start,
            order,
        })
    }

    pub(super) fn dtype(&self) -> DType {
        self.dtype
    }

    pub(super) fn path(&self) -> PathBuf {
        self.blob.path()
    }

    pub(super) fn n_rows(&self) -> usize {
        self.n_rows
    }

    /// In blocks.
    pub(super) fn n_cols(&self) -> usize {
        self.n_cols
    }

    /// Whether the blocks lie in the file as in the canonical form.
    fn is_dense(&self) -> bool {
        self.order == RowOrder::Canonical
            && self.col_stride == 1
            && (self.row_stride == self.n_cols || self.n_rows == 1)
    }

    /// The file's own bytes, where they are in the canonical form and aligned to their type.
    pub(super) fn share(&self) -> Option<WeightBytes> {
        if !self.is_dense() {
            return None;
        }
        let len = self.n_rows * self.n_cols * self.dtype.size(); // the end of the view is within the file
        let bytes = self.blob.share(self.start..self.start + len)?;
        let aligned = bytes.as_ptr().addr().is_multiple_of(self.dtype.align());
        aligned.then_some(bytes)
    }

    /// Says that the elements are not needed in memory for now.
    pub(super) fn release(&self) {
        if self.is_dense() {
            self.blob.release(self.start..self.start + self.n_rows * self.n_cols * self.dtype.size());
        }
    }

    /// Copies a part of the matrix to `out`, whose rows lie `pitch` bytes apart; columns are counted in blocks. `None` if the file
    /// does not hold it.
    pub(super) fn copy(
        &self,
        rows: Range<usize>,
        cols: Range<usize>,
        out: &mut [u8],
        pitch: usize,
    ) -> Option<()> {
        let size = self.dtype.size();
        let file = self.blob.bytes();
        let width = cols.len() * size;
        if self.is_dense() && cols.len() == self.n_cols && pitch == width {
            let from = self.start + rows.start * width;
            let len = rows.len() * width;
            out.get_mut(..len)?.copy_from_slice(file.get(from..from + len)?);
            self.blob.release(from..from + len);
            return Some(());
        }
        let touched = self.span(&rows);
        for (i, row) in rows.enumerate() {
            let first = self.order.stored(row) * self.row_stride + cols.start * self.col_stride;
            let from = self.start + first * size;
            let line = out.get_mut(i * pitch..i * pitch + width)?;
            if self.col_stride == 1 {
                line.copy_from_slice(file.get(from..from + width)?);
                continue;
            }
            for (j, element) in line.chunks_exact_mut(size).enumerate() {
                let from = from + j * self.col_stride * size;
                element.copy_from_slice(file.get(from..from + size)?);
            }
        }
        self.blob.release(touched);
        Some(())
    }

    /// The bytes of the file that these rows lie in, among others.
    fn span(&self, rows: &Range<usize>) -> Range<usize> {
        // Other orders keep to their heads; columns may be as far apart as rows.
        let rows = match self.order {
            RowOrder::Canonical => rows.clone(),
            RowOrder::HalfSplit { .. } => 0..self.n_rows,
        };
        let size = self.dtype.size();
        let last = rows.end.saturating_sub(1) * self.row_stride + (self.n_cols - 1) * self.col_stride;
        self.start + rows.start * self.row_stride * size..self.start + (last + 1) * size
    }
}
