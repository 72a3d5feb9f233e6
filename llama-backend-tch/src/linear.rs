//! Weight matrices: the only place that knows how weights are stored, and the only one with `unsafe`.
//!
//! On the CPU a matrix is the checkpoint's own bytes, shared with the reader's memory map. Which of libtorch's products is fast
//! depends on the type and on the rows, and the differences are large (`benches/record/tch_ops.csv`):
//!
//! - f32: oneDNN's, which takes a dense matrix as it lies, and is as fast as `linear` for one row and faster for more;
//! - f16 and bf16: a tile of rows that fits the cache is widened to f32 and multiplied as f32, and then the next. Nothing is rounded,
//!   and no matrix is ever widened as a whole;
//! - quantised blocks: the same tile, filled from the blocks as they lie by the conversions of [`llama_backend::quant`]. So such a model takes
//!   its file's own size, gives the numbers of its weights in f32, and a row's result does not depend on the batch. What libtorch has of
//!   its own for small integers would not be those weights: `_weight_int8pack_mm` knows one scale for a whole row of a matrix and bf16
//!   activations, `_weight_int4pack_mm_for_cpu` rounds scales to bf16, and `quantized::linear_dynamic` rounds activations over the whole
//!   batch;
//! - the half types with half products allowed: `linear` in the weights' type for one row, where it reads half the memory, and for more rows
//!   of bf16 on processors that multiply it themselves. On others it would be a hundred times slower than f32.
//!
//! Shapes: a matrix is `[n_out, n_in]`, row-major; activations are `[n, n_in]`, f32.

use llama_backend::quant::dequantize;
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
    stored: Stored,
}

/// How a matrix is stored.
#[derive(Debug)]
enum Stored {
    /// As numbers that libtorch knows, `[n_out, n_in]`.
    Numbers {
        kind: Kind,
        // Dropped in this order: the tensor points into the bytes.
        weight: Tensor,
        _bytes: Option<WeightBytes>,
    },
    /// As blocks, row after row of so many bytes.
    Blocks { dtype: DType, row: usize, bytes: WeightBytes },
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
        if let Stored::Numbers { kind, weight, .. } = &w.stored {
            if *kind == Kind::Float {
                return self.product(x, weight);
            }
            // A device has no cache to tile for, and multiplies both types itself.
            let native =
                n == 1 || self.device != Device::Cpu || (*kind == Kind::BFloat16 && self.native_bf16);
            if native && self.half_products {
                return x.f_to_kind(*kind)?.f_linear(weight, None::<&Tensor>)?.f_to_kind(Kind::Float);
            }
        }
        let out = Tensor::f_empty([n, w.n_out], (Kind::Float, self.device))?;
        let tile_rows = (self.tile.size()[0] / w.n_in).min(w.n_out).max(1);
        for first in (0..w.n_out).step_by(tile_rows as usize) {
            let rows = tile_rows.min(w.n_out - first);
            let tile = self.widened(w, first, rows)?;
            out.f_narrow(1, first, rows)?.f_copy_(&self.product(x, &tile)?)?;
        }
        Ok(out)
    }

    /// Rows of a matrix in the tile, `[rows, n_in]`, f32, until the next are asked for.
    fn widened(&self, w: &Linear, first: i64, rows: i64) -> Result<Tensor> {
        let mut tile = self.tile.f_narrow(0, 0, rows * w.n_in)?.f_view([rows, w.n_in])?;
        match &w.stored {
            Stored::Numbers { weight, .. } => tile.f_copy_(&weight.f_narrow(0, first, rows)?)?,
            Stored::Blocks { dtype, row, bytes } => {
                let range = first as usize * row..(first + rows) as usize * row; // rows of the matrix
                dequantize(*dtype, &bytes[range], numbers(&mut tile)?).map_err(misfit)?;
            }
        }
        Ok(tile)
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
        match &w.stored {
            Stored::Numbers { weight, .. } => {
                let ids = Tensor::f_from_slice(ids)?.f_to_device(self.device)?;
                weight.f_index_select(0, &ids)?.f_to_kind(Kind::Float)
            }
            Stored::Blocks { dtype, row, bytes } => {
                let n_in = w.n_in as usize;
                let mut rows = vec![0.0; ids.len() * n_in];
                for (&id, out) in ids.iter().zip(rows.chunks_exact_mut(n_in)) {
                    let start = id as usize * row; // a token of the vocabulary: `Slots::check`
                    dequantize(*dtype, &bytes[start..start + row], out).map_err(misfit)?;
                }
                Tensor::f_from_slice(&rows)?.f_view([ids.len() as i64, w.n_in])
            }
        }
    }

    /// A matrix over a checkpoint's bytes, which must be `n_out * n_in` elements.
    pub(crate) fn matrix(
        &self,
        n_out: usize,
        n_in: usize,
        dtype: DType,
        bytes: WeightBytes,
    ) -> Result<Linear> {
        let size = [n_out as i64, n_in as i64];
        let Some(kind) = kind(dtype) else {
            return self.blocks(n_out, n_in, dtype, bytes);
        };
        check_len(&bytes, &[n_out, n_in], kind)?;
        let (weight, bytes) = if self.device == Device::Cpu && is_aligned(&bytes, kind) {
            (tensor_over(&bytes, size, kind)?, Some(bytes))
        } else {
            (copied(&bytes, &size, kind)?.f_to_device(self.device)?, None)
        };
        Ok(Linear { n_out: size[0], n_in: size[1], stored: Stored::Numbers { kind, weight, _bytes: bytes } })
    }

    /// A matrix over blocks. A device, which reads no memory of ours, gets it in f32.
    fn blocks(&self, n_out: usize, n_in: usize, dtype: DType, bytes: WeightBytes) -> Result<Linear> {
        let row = dtype.n_bytes(n_in).filter(|row| row.checked_mul(n_out) == Some(bytes.len()));
        let row =
            row.ok_or_else(|| misfit(format!("{} bytes for [{n_out}, {n_in}] of {dtype}", bytes.len())))?;
        let stored = if self.device == Device::Cpu {
            Stored::Blocks { dtype, row, bytes }
        } else {
            let mut floats = vec![0.0; n_out * n_in];
            dequantize(dtype, &bytes, &mut floats).map_err(misfit)?;
            let weight = Tensor::f_from_slice(&floats)?.f_view([n_out as i64, n_in as i64])?;
            Stored::Numbers { kind: Kind::Float, weight: weight.f_to_device(self.device)?, _bytes: None }
        };
        Ok(Linear { n_out: n_out as i64, n_in: n_in as i64, stored })
    }

    /// A vector of weights as an f32 tensor, `[n]`: norms are small, and widened once.
    pub(crate) fn vector(&self, dtype: DType, bytes: &[u8]) -> Result<Tensor> {
        let mut floats = vec![0.0; bytes.len() / dtype.size() * dtype.block_len()];
        dequantize(dtype, bytes, &mut floats).map_err(misfit)?;
        Tensor::f_from_slice(&floats)?.f_to_device(self.device)
    }
}

impl Linear {
    /// The matrix, where it is one of libtorch's.
    pub(crate) fn weight(&self) -> Option<&Tensor> {
        match &self.stored {
            Stored::Numbers { weight, .. } => Some(weight),
            Stored::Blocks { .. } => None,
        }
    }
}

/// libtorch's name of a type; `None` for blocks.
fn kind(dtype: DType) -> Option<Kind> {
    match dtype {
        DType::F32 => Some(Kind::Float),
        DType::F16 => Some(Kind::Half),
        DType::BF16 => Some(Kind::BFloat16),
        _ => None,
    }
}

fn misfit(what: impl ToString) -> tch::TchError {
    tch::TchError::Shape(what.to_string())
}

/// The numbers of a dense f32 tensor on the CPU, to be written.
fn numbers(tensor: &mut Tensor) -> Result<&mut [f32]> {
    if tensor.f_kind()? != Kind::Float || tensor.device() != Device::Cpu || !tensor.is_contiguous() {
        return Err(misfit("numbers of a tensor that is not f32, dense and in memory"));
    }
    // SAFETY:
    // - a dense tensor on the CPU has as many numbers of its kind, one after the other and aligned, as `numel` says: checked above. Those
    //   of the tile may not have been written; any bits are an f32, and libtorch gives memory that may be read;
    // - the memory lives as long as the tensor, which the slice borrows;
    // - nobody else reads or writes it meanwhile: other tensors over it are the tile's, which belongs to one model on one thread (a
    //   `Tensor` is not `Sync`), and no call of libtorch's is under way.
    #[allow(unsafe_code)]
    let numbers = unsafe { std::slice::from_raw_parts_mut(tensor.data_ptr().cast(), tensor.numel()) };
    Ok(numbers)
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
            assert_eq!(
                matrix.weight().unwrap().data_ptr().cast_const().cast() == bytes.as_ptr(),
                in_place,
                "{shift}"
            );
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
            let weight = wide.weight().unwrap().f_to_kind(Kind::Half).unwrap();
            let stored = Stored::Numbers { kind: Kind::Half, weight, _bytes: None };
            let half = Linear { stored, n_out: wide.n_out, n_in: wide.n_in };
            for n in [1, 4] {
                let x = Tensor::f_arange(n * n_in as i64, (Kind::Float, Device::Cpu)).unwrap();
                let x = x.f_view([n, n_in as i64]).unwrap();
                assert!(ops.linear(&x, &half).unwrap().equal(&ops.linear(&x, &wide).unwrap()));
            }
        }
    }

    #[test]
    fn blocks_give_the_product_of_their_numbers() {
        for &dtype in DType::ALL.iter().filter(|dtype| dtype.is_quantized()) {
            let (n_out, n_in) = (7, 256);
            // Any bits whose numbers are finite: those of small halves.
            let blocks: Vec<u8> = (0..n_out * dtype.n_bytes(n_in).unwrap() / 2)
                .flat_map(|i| (0x2c00 | (i * 0x9e37 % 0x3ff) as u16).to_le_bytes())
                .collect();
            let mut floats = vec![0.0; n_out * n_in];
            dequantize(dtype, &blocks, &mut floats).unwrap();
            let floats: Vec<u8> = floats.into_iter().flat_map(f32::to_le_bytes).collect();
            let mut ops = Ops::new(Device::Cpu, false, 0).unwrap();
            ops.tile = ops.tile.f_narrow(0, 0, 3 * n_in as i64).unwrap(); // two tiles and a rest
            let blocks = ops.matrix(n_out, n_in, dtype, blocks.into()).unwrap();
            let wide = ops.matrix(n_out, n_in, DType::F32, floats.into()).unwrap();
            for n in [1, 5] {
                let x = Tensor::f_randn([n, n_in as i64], (Kind::Float, Device::Cpu)).unwrap();
                let (found, expected) = (ops.linear(&x, &blocks).unwrap(), ops.linear(&x, &wide).unwrap());
                // A tile and a whole matrix may be added up in another order.
                let largest = expected.abs().max().double_value(&[]);
                assert!(found.allclose(&expected, 0.0, 1e-5 * largest, false), "{dtype}");
            }
            let ids = [6, 0, 6, 3];
            assert!(ops.rows(&blocks, &ids).unwrap().equal(&ops.rows(&wide, &ids).unwrap()), "{dtype}");
            assert!(ops.matrix(n_out + 1, n_in, dtype, vec![0; 640].into()).is_err());
        }
    }
}
