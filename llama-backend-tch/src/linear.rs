//! Weight matrices: the only place that knows how weights are stored, and the only one with `unsafe`.
//!
//! On the CPU a matrix is the checkpoint's own bytes, shared with the reader's memory map. Which of libtorch's products is fast
//! depends on the type and on the rows, and the differences are large (`benches/record/tch_ops.csv`):
//!
//! - f32: oneDNN's, which takes a dense matrix as it lies, and is as fast as `linear` for one row and faster for more;
//! - f16 and bf16: a tile of rows that fits the cache is widened to f32 and multiplied as f32, and then the next. Nothing is rounded,
//!   and no matrix is ever widened as a whole;
//! - the same with half products allowed: `linear` in the weights' type for one row, where it reads half the memory, and for more rows
//!   of bf16 on processors that multiply it themselves. On others it would be a hundred times slower than f32.
//!
//! Shapes: a matrix is `[n_out, n_in]`, row-major; activations are `[n, n_in]`, f32.

use llama_backend::{DType, WeightBytes};
use tch::{Device, Kind, Tensor};

use crate::Result;

/// Numbers of a tile of widened weights: 4 MiB. Larger ones leave the cache, smaller ones cost more calls.
pub(crate) const TILE: usize = 1 << 20;
/// Rows of logits at a time, so that those of a long prompt are not in memory twice.
const LOGIT_ROWS: usize = 128;

/// How a model multiplies.
#[derive(Debug)]
pub(crate) struct Ops {
    device: Device,
    /// May round activations to the weights' type.
    half_products: bool,
    /// Whether the processor multiplies bf16.
    native_bf16: bool,
    /// Whether f32 products go through oneDNN.
    onednn: bool,
    /// Where tiles of a matrix are widened: `[TILE]` or one row of the widest matrix, f32.
    tile: Tensor,
}

/// A weight matrix, `[n_out, n_in]`.
#[derive(Debug)]
pub(crate) struct Linear {
    n_out: i64,
    n_in: i64,
    kind: Kind,
    // Dropped in this order: the tensor points into the bytes.
    weight: Tensor,
    _bytes: Option<WeightBytes>,
}

impl Ops {
    pub(crate) fn new(device: Device, half_products: bool, widest: usize) -> Result<Self> {
        Ok(Self {
            device,
            half_products,
            native_bf16: native_bf16(),
            onednn: device == Device::Cpu && tch::utils::has_mkldnn(),
            tile: Tensor::f_empty([TILE.max(widest) as i64], (Kind::Float, device))?,
        })
    }

    /// `x · Wᵀ`: `[n, n_in]` to `[n, n_out]`.
    pub(crate) fn linear(&self, x: &Tensor, w: &Linear) -> Result<Tensor> {
        let n = x.size()[0];
        if w.kind == Kind::Float {
            return self.product(x, &w.weight);
        }
        // A device has no cache to tile for, and multiplies both types itself.
        let native = n == 1 || self.device != Device::Cpu || (w.kind == Kind::BFloat16 && self.native_bf16);
        if native && self.half_products {
            return x.f_to_kind(w.kind)?.f_linear(&w.weight, None::<&Tensor>)?.f_to_kind(Kind::Float);
        }
        let out = Tensor::f_empty([n, w.n_out], (Kind::Float, self.device))?;
        let tile_rows = (self.tile.size()[0] / w.n_in).min(w.n_out).max(1);
        for first in (0..w.n_out).step_by(tile_rows as usize) {
            let rows = tile_rows.min(w.n_out - first);
            let mut tile = self.tile.f_narrow(0, 0, rows * w.n_in)?.f_view([rows, w.n_in])?;
            tile.f_copy_(&w.weight.f_narrow(0, first, rows)?)?;
            out.f_narrow(1, first, rows)?.f_copy_(&self.product(x, &tile)?)?;
        }
        Ok(out)
    }

    /// A product in f32.
    fn product(&self, x: &Tensor, weight: &Tensor) -> Result<Tensor> {
        if !self.onednn {
            return x.f_linear(weight, None::<&Tensor>);
        }
        x.f_to_mkldnn(None)?.f_mkldnn_linear(weight, None::<&Tensor>)?.f_to_dense(None, false)
    }

    /// `x · Wᵀ`, written to `out: [n, n_out]`.
    pub(crate) fn linear_into(&self, x: &Tensor, w: &Linear, out: &mut [f32]) -> Result<()> {
        let n_out = w.n_out as usize;
        for (i, out) in out.chunks_mut(LOGIT_ROWS * n_out).enumerate() {
            let rows = out.len() / n_out;
            let x = x.f_narrow(0, (i * LOGIT_ROWS) as i64, rows as i64)?;
            let logits = self.linear(&x, w)?.f_to_device(Device::Cpu)?;
            logits.f_copy_data(out, rows * n_out)?;
        }
        Ok(())
    }

    /// The rows of an embedding: `[ids.len(), n_in]`, f32.
    pub(crate) fn rows(&self, w: &Linear, ids: &[i64]) -> Result<Tensor> {
        let ids = Tensor::f_from_slice(ids)?.f_to_device(self.device)?;
        w.weight.f_index_select(0, &ids)?.f_to_kind(Kind::Float)
    }

    /// A matrix over a checkpoint's bytes, which must be `n_out * n_in` elements.
    pub(crate) fn matrix(
        &self,
        n_out: usize,
        n_in: usize,
        dtype: DType,
        bytes: WeightBytes,
    ) -> Result<Linear> {
        let kind = kind(dtype)?;
        check_len(&bytes, &[n_out, n_in], kind)?;
        let size = [n_out as i64, n_in as i64];
        let (weight, bytes) = if self.device == Device::Cpu && is_aligned(&bytes, kind) {
            (tensor_over(&bytes, size, kind)?, Some(bytes))
        } else {
            (copied(&bytes, &size, kind)?.f_to_device(self.device)?, None)
        };
        Ok(Linear { n_out: size[0], n_in: size[1], kind, weight, _bytes: bytes })
    }

    /// A vector of weights as an f32 tensor, `[n]`: norms are small, and widened once.
    pub(crate) fn vector(&self, dtype: DType, bytes: &[u8]) -> Result<Tensor> {
        let n = bytes.len() / dtype.size();
        let kind = kind(dtype)?;
        check_len(bytes, &[n], kind)?;
        copied(bytes, &[n as i64], kind)?.f_to_kind(Kind::Float)?.f_to_device(self.device)
    }
}

impl Linear {
    pub(crate) fn weight(&self) -> &Tensor {
        &self.weight
    }
}

fn kind(dtype: DType) -> Result<Kind> {
    match dtype {
        DType::F32 => Ok(Kind::Float),
        DType::F16 => Ok(Kind::Half),
        DType::BF16 => Ok(Kind::BFloat16),
        other => Err(tch::TchError::Kind(format!("no tensors of weights stored as {other}"))),
    }
}

/// That bytes are as many as a dense shape has. tch itself does not check: it would copy what lies behind them.
fn check_len(bytes: &[u8], size: &[usize], kind: Kind) -> Result<()> {
    let expected = size.iter().try_fold(kind.elt_size_in_bytes(), |n, &dim| n.checked_mul(dim));
    if expected == Some(bytes.len()) {
        return Ok(());
    }
    Err(tch::TchError::Shape(format!("{} bytes for {size:?} of {kind:?}", bytes.len())))
}

/// A tensor of its own, at an address that libtorch likes. The length has been checked.
fn copied(bytes: &[u8], size: &[i64], kind: Kind) -> Result<Tensor> {
    Tensor::f_from_data_size(bytes, size, kind)
}

fn is_aligned(bytes: &[u8], kind: Kind) -> bool {
    bytes.as_ptr().addr().is_multiple_of(kind.elt_size_in_bytes())
}

/// A tensor that reads a checkpoint's bytes where they lie. It must not outlive them.
fn tensor_over(bytes: &WeightBytes, size: [i64; 2], kind: Kind) -> Result<Tensor> {
    check_len(bytes, &size.map(|n| usize::try_from(n).unwrap_or(usize::MAX)), kind)?;
    if !is_aligned(bytes, kind) {
        return Err(tch::TchError::Shape(format!("bytes that are not aligned to {kind:?}")));
    }
    // SAFETY:
    // - the pointer is aligned to its elements, and as many bytes follow as the dense shape has: checked above;
    // - the bytes stay where they are while the tensor lives: `Linear`, the only owner of both, drops the tensor first, and
    //   `WeightBytes` promises the same bytes as long as it lives;
    // - nobody writes: `Linear` only gives the tensor as a second operand, to functions that read it.
    #[allow(unsafe_code)]
    unsafe {
        Tensor::f_from_blob(bytes.as_ptr(), &size, &[], kind, Device::Cpu)
    }
}

/// Whether the processor multiplies bf16, so that libtorch need not emulate it.
fn native_bf16() -> bool {
    #[cfg(target_arch = "x86_64")]
    return std::arch::is_x86_feature_detected!("avx512bf16");
    #[cfg(not(target_arch = "x86_64"))]
    false
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `n` small numbers as bytes, after `shift` others, in memory that starts at a multiple of 16.
    fn bytes(n: usize, shift: usize) -> WeightBytes {
        let numbers = (0..n).map(|i| (i % 17) as f32 - 8.0);
        let bytes: Vec<u8> =
            std::iter::repeat_n(0, shift).chain(numbers.flat_map(f32::to_le_bytes)).collect();
        WeightBytes::new(std::sync::Arc::new(bytes), shift..shift + 4 * n).unwrap()
    }

    #[test]
    fn weights_are_used_where_they_lie_unless_misaligned() {
        let ops = Ops::new(Device::Cpu, false, 0).unwrap();
        let x = Tensor::f_arange(24, (Kind::Float, Device::Cpu)).unwrap().f_view([3, 8]).unwrap();
        let expected = ops.linear(&x, &ops.matrix(5, 8, DType::F32, bytes(40, 0)).unwrap()).unwrap();
        for (shift, in_place) in [(4, true), (12, true), (2, false), (7, false)] {
            let bytes = bytes(40, shift);
            let matrix = ops.matrix(5, 8, DType::F32, bytes.clone()).unwrap();
            assert_eq!(matrix.weight.data_ptr().cast_const().cast() == bytes.as_ptr(), in_place, "{shift}");
            drop(bytes); // the matrix keeps them
            assert!(ops.linear(&x, &matrix).unwrap().equal(&expected), "{shift}");
        }
    }

    #[test]
    fn bytes_that_do_not_fit_the_shape_are_an_error() {
        let ops = Ops::new(Device::Cpu, false, 0).unwrap();
        assert!(ops.matrix(5, 9, DType::F32, bytes(40, 0)).is_err());
        assert!(ops.matrix(5, 9, DType::F32, bytes(40, 1)).is_err());
        assert!(ops.matrix(4, 8, DType::F32, bytes(40, 4)).is_err());
    }

    #[test]
    fn tiles_make_the_whole_product() {
        // One row of tiles and a rest; one tile; as many tiles as rows.
        for (n_out, n_in, tile) in [(7, 8, 24), (7, 8, 1 << 10), (5, 8, 8)] {
            let mut ops = Ops::new(Device::Cpu, false, 0).unwrap();
            ops.tile = ops.tile.f_narrow(0, 0, tile).unwrap();
            let wide = ops.matrix(n_out, n_in, DType::F32, bytes(n_out * n_in, 0)).unwrap();
            let half = wide.weight.f_to_kind(Kind::Half).unwrap();
            let half = Linear {
                weight: half,
                kind: Kind::Half,
                ..ops.matrix(n_out, n_in, DType::F32, bytes(n_out * n_in, 0)).unwrap()
            };
            for n in [1, 4] {
                let x = Tensor::f_arange(n * n_in as i64, (Kind::Float, Device::Cpu)).unwrap();
                let x = x.f_view([n, n_in as i64]).unwrap();
                assert!(ops.linear(&x, &half).unwrap().equal(&ops.linear(&x, &wide).unwrap()));
            }
        }
    }
}
