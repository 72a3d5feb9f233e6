//! [`Weights`]: a checkpoint's tensors in the canonical form, as views of its files.
//!
//! Every reader describes each tensor as parts joined along one axis, each part a [`View`] of a file. That one description
//! covers what the formats do: model-parallel shards are several parts, PyTorch's views are strides, tied tensors are the
//! same part twice, and Hugging Face's row order is an order of rows. A tensor that is one dense part is handed out as the
//! file's own bytes; any other is gathered when it is asked for, and only what is asked for.

use std::collections::HashMap;
use std::fmt;
use std::ops::Range;
use std::path::PathBuf;
use std::sync::Arc;

use llama_backend::{DType, ModelConfig, TensorInfo, WeightBytes, WeightError, WeightSource};

use super::view::View;

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
        Self { info: TensorInfo { dtype, shape }, axis, parts }
    }

    /// Rows, and columns in blocks; a vector is one row.
    fn extent(&self) -> (usize, usize) {
        let blocks = |cols| cols / self.info.dtype.block_len(); // views have whole blocks
        match *self.info.shape {
            [rows, cols] => (rows, blocks(cols)),
            [cols] => (1, blocks(cols)),
            _ => (0, 0), // views are vectors and matrices
        }
    }

    /// The file's own bytes, where they are the whole tensor.
    fn shared(&self) -> Option<WeightBytes> {
        match &*self.parts {
            [part] => part.share(),
            _ => None,
        }
    }

    /// Gathers a part of the tensor, row-major, columns counted in blocks. The error is the part whose file does not hold it.
    fn gather(&self, rows: &Range<usize>, cols: &Range<usize>, out: &mut [u8]) -> Result<(), &View> {
        if out.is_empty() {
            return Ok(());
        }
        let size = self.info.dtype.size();
        let pitch = cols.len() * size;
        let mut start = 0;
        for part in &self.parts {
            let (wanted, len) = match self.axis {
                Axis::Rows => (rows, part.n_rows()),
                Axis::Cols => (cols, part.n_cols()),
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
        Self { config, tensors, root }
    }

    fn tensor(&self, name: &str) -> Result<&Tensor, WeightError> {
        self.tensors
            .get(name)
            .ok_or_else(|| WeightError::Missing { file: self.root.clone(), tensor: name.to_owned() })
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
        if let Some(bytes) = tensor.shared() {
            return Ok(bytes);
        }
        let (n_rows, n_cols) = tensor.extent();
        // No larger than the files: every part was checked to have as many elements as it says.
        let len = n_rows * n_cols * tensor.info.dtype.size();
        let mut buffer = vec![0; len + ALIGN];
        let start = buffer.as_ptr().addr().next_multiple_of(ALIGN) - buffer.as_ptr().addr();
        self.gather(name, tensor, &(0..n_rows), &(0..n_cols), &mut buffer[start..start + len])?;
        WeightBytes::new(Arc::new(buffer), start..start + len).ok_or_else(|| WeightError::Read {
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
        let wrong = |what: String| WeightError::Slice { tensor: name.to_owned(), what };
        let shape = &tensor.info.shape;
        let Some(&len) = shape.get(dim) else {
            return Err(wrong(format!("no dimension {dim} in shape {shape:?}")));
        };
        if range.start > range.end || range.end > len {
            return Err(wrong(format!("no range {range:?} in dimension {dim} of shape {shape:?}")));
        }
        let (n_rows, n_cols) = tensor.extent();
        let (rows, cols) = match (&**shape, dim) {
            ([_, _], 0) => (range, 0..n_cols),
            // The columns of a matrix, or a vector's only dimension.
            _ => {
                let len = tensor.info.dtype.block_len();
                if !range.start.is_multiple_of(len) || !range.end.is_multiple_of(len) {
                    return Err(wrong(format!("{range:?} cuts blocks of {len} elements")));
                }
                (0..n_rows, range.start / len..range.end / len)
            }
        };
        let expected = rows.len() * cols.len() * tensor.info.dtype.size();
        if out.len() != expected {
            return Err(wrong(format!("a buffer of {} bytes, expected {expected}", out.len())));
        }
        self.gather(name, tensor, &rows, &cols, out)
    }

    fn shares(&self, name: &str) -> bool {
        self.tensor(name).is_ok_and(|tensor| tensor.shared().is_some())
    }

    fn release(&self, name: &str) {
        if let Ok(tensor) = self.tensor(name) {
            tensor.parts.iter().for_each(View::release);
        }
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
