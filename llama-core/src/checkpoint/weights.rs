//! [`Weights`]: a checkpoint's tensors in the canonical form, as views of its files.
//!
//! Every reader describes each tensor as parts joined along one axis, each part a strided matrix somewhere in a file. That one
//! description covers what the formats do: model-parallel shards are several parts, PyTorch's views are strides, tied tensors
//! are the same part twice, and Hugging Face's row order is an order of rows. A tensor that is one dense part is handed out
//! as the file's own bytes; any other is gathered when it is asked for, and only what is asked for.

use std::collections::HashMap;
use std::fmt;
use std::ops::Range;
use std::path::PathBuf;

use llama_backend::{DType, ModelConfig, TensorInfo, WeightBytes, WeightError, WeightSource};

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

/// The tensors of one file, each to be taken once: what is left over is not the model's.
#[derive(Debug)]
pub(super) struct FileTensors {
    pub(super) blob: Blob,
    pub(super) tensors: HashMap<String, Stored>,
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
        let stored = self.tensors.remove(tensor).ok_or_else(|| WeightError::Missing {
            file: file(),
            tensor: tensor.to_owned(),
        })?;
        let Some(dtype) = stored.dtype else {
            return Err(WeightError::DType {
                file: file(),
                tensor: tensor.to_owned(),
                found: stored.type_name,
                expected: "f32, f16 or bf16".to_owned(),
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
    n_cols: usize,
    /// In elements, as `col_stride`.
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

    /// Whether the elements lie in the file as in the canonical form.
    fn is_dense(&self) -> bool {
        self.order == RowOrder::Canonical
            && self.col_stride == 1
            && (self.row_stride == self.n_cols || self.n_rows == 1)
    }

    /// The file's own bytes, where they are in the canonical form and aligned to the element.
    fn share(&self) -> Option<WeightBytes> {
        let len = self.n_rows * self.n_cols * self.dtype.size(); // the end of the view is within the file
        let bytes = self.blob.share(self.start..self.start + len)?;
        let aligned = bytes.as_ptr().addr().is_multiple_of(self.dtype.size());
        aligned.then_some(bytes)
    }

    /// Copies a part of the matrix to `out`, whose rows lie `pitch` bytes apart. `None` if the file does not hold it.
    fn copy(&self, rows: Range<usize>, cols: Range<usize>, out: &mut [u8], pitch: usize) -> Option<()> {
        let size = self.dtype.size();
        let file = self.blob.bytes();
        let width = cols.len() * size;
        if self.is_dense() && cols.len() == self.n_cols && pitch == width {
            let from = self.start + rows.start * width;
            let len = rows.len() * width;
            out.get_mut(..len)?.copy_from_slice(file.get(from..from + len)?);
            return Some(());
        }
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
        Some(())
    }
}

/// The dimension along which parts are joined.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Axis {
    Rows,
    Cols,
}

/// A tensor of the model: `info.shape` and the parts that make it.
#[derive(Debug, Clone)]
pub(super) struct Tensor {
    info: TensorInfo,
    axis: Axis,
    parts: Vec<View>,
}

impl Tensor {
    /// Parts of one type, which together have this shape.
    pub(super) fn new(dtype: DType, shape: Vec<usize>, axis: Axis, parts: Vec<View>) -> Self {
        Self {
            info: TensorInfo { dtype, shape },
            axis,
            parts,
        }
    }

    /// Rows and columns; a vector is one row.
    fn extent(&self) -> (usize, usize) {
        match *self.info.shape {
            [rows, cols] => (rows, cols),
            [cols] => (1, cols),
            _ => (0, 0), // views are vectors and matrices
        }
    }

    /// Gathers a part of the tensor, row-major. The error is the part whose file does not hold it.
    fn gather(&self, rows: &Range<usize>, cols: &Range<usize>, out: &mut [u8]) -> Result<(), &View> {
        let size = self.info.dtype.size();
        let pitch = cols.len() * size;
        let mut start = 0;
        for part in &self.parts {
            let (wanted, len) = match self.axis {
                Axis::Rows => (rows, part.n_rows),
                Axis::Cols => (cols, part.n_cols),
            };
            let overlap = wanted.start.max(start)..wanted.end.min(start + len);
            if !overlap.is_empty() {
                let within = overlap.start - start..overlap.end - start;
                let skipped = overlap.start - wanted.start;
                let copied = match self.axis {
                    Axis::Rows => {
                        let out = out.get_mut(skipped * pitch..);
                        out.and_then(|out| part.copy(within, cols.clone(), out, pitch))
                    }
                    Axis::Cols => {
                        let out = out.get_mut(skipped * size..);
                        out.and_then(|out| part.copy(rows.clone(), within, out, pitch))
                    }
                };
                copied.ok_or(part)?;
            }
            start += len;
        }
        Ok(())
    }
}

/// A checkpoint's tensors in the canonical form.
pub(super) struct Weights {
    config: ModelConfig,
    tensors: HashMap<String, Tensor>,
    /// The checkpoint, for errors that concern no file of it.
    root: PathBuf,
}

impl Weights {
    /// `tensors` holds each of [`ModelConfig::tensors`] with its shape.
    pub(super) fn new(root: PathBuf, config: ModelConfig, tensors: HashMap<String, Tensor>) -> Self {
        Self {
            config,
            tensors,
            root,
        }
    }

    fn tensor(&self, name: &str) -> Result<&Tensor, WeightError> {
        self.tensors.get(name).ok_or_else(|| WeightError::Missing {
            file: self.root.clone(),
            tensor: name.to_owned(),
        })
    }

    fn gather(
        &self,
        name: &str,
        tensor: &Tensor,
        rows: &Range<usize>,
        cols: &Range<usize>,
        out: &mut [u8],
    ) -> Result<(), WeightError> {
        tensor.gather(rows, cols, out).map_err(|part| WeightError::Read {
            file: part.path(),
            tensor: name.to_owned(),
            source: "the file is shorter than when it was opened".into(),
        })
    }
}

impl WeightSource for Weights {
    fn config(&self) -> &ModelConfig {
        &self.config
    }

    fn info(&self, name: &str) -> Result<TensorInfo, WeightError> {
        Ok(self.tensor(name)?.info.clone())
    }

    fn bytes(&self, name: &str) -> Result<WeightBytes, WeightError> {
        /// Cache lines, and more than any element: the start of a gathered tensor suits vector loads.
        const ALIGN: usize = 64;
        let tensor = self.tensor(name)?;
        if let [part] = &*tensor.parts
            && part.is_dense()
            && let Some(bytes) = part.share()
        {
            return Ok(bytes);
        }
        let (n_rows, n_cols) = tensor.extent();
        // No larger than the files: every part was checked to have as many elements as it says.
        let len = n_rows * n_cols * tensor.info.dtype.size();
        let mut buffer = vec![0; len + ALIGN];
        let start = buffer.as_ptr().addr().next_multiple_of(ALIGN) - buffer.as_ptr().addr();
        self.gather(
            name,
            tensor,
            &(0..n_rows),
            &(0..n_cols),
            &mut buffer[start..start + len],
        )?;
        WeightBytes::new(std::sync::Arc::new(buffer), start..start + len).ok_or_else(|| WeightError::Read {
            file: self.root.clone(),
            tensor: name.to_owned(),
            source: "the buffer is too short".into(),
        })
    }

    fn read_slice(
        &self,
        name: &str,
        dim: usize,
        range: Range<usize>,
        out: &mut [u8],
    ) -> Result<(), WeightError> {
        let tensor = self.tensor(name)?;
        let wrong = |what: String| WeightError::Slice {
            tensor: name.to_owned(),
            what,
        };
        let shape = &tensor.info.shape;
        let Some(&len) = shape.get(dim) else {
            return Err(wrong(format!("no dimension {dim} in shape {shape:?}")));
        };
        if range.start > range.end || range.end > len {
            return Err(wrong(format!(
                "no range {range:?} in dimension {dim} of shape {shape:?}"
            )));
        }
        let (n_rows, n_cols) = tensor.extent();
        let (rows, cols) = match (&**shape, dim) {
            ([_, _], 0) => (range, 0..n_cols),
            _ => (0..n_rows, range), // the columns of a matrix, or a vector's only dimension
        };
        let expected = rows.len() * cols.len() * tensor.info.dtype.size();
        if out.len() != expected {
            return Err(wrong(format!(
                "a buffer of {} bytes, expected {expected}",
                out.len()
            )));
        }
        self.gather(name, tensor, &rows, &cols, out)
    }
}

impl fmt::Debug for Weights {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Weights")
            .field("root", &self.root)
            .field("config", &self.config)
            .field("n_tensors", &self.tensors.len())
            .finish_non_exhaustive()
    }
}
