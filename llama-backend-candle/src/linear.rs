//! Weight matrices: the only place that knows how weights are stored.
//!
//! On the CPU a matrix in f32, and embeddings, are the checkpoint's own bytes, shared with the reader's memory map; half precision is packed
//! for its kernels. Quantised blocks are packed for the kernels on bytes, or where the caller wants them exact stay as they are, and are
//! widened chunk by chunk. On a device a matrix is a tensor of the stored type (blocks: of f32), widened as a whole for the one product.
//!
//! Shapes: a matrix is `[n_out, n_in]`, row-major; activations are `[n, n_in]`, f32.

use std::sync::Arc;

use candle_core::{Result, Tensor};
use half::{bf16, f16};
use llama_backend::quant::dequantize;
use llama_backend::{Computation, DType, TokenId, WeightBytes};

use crate::kernels::Context;
use crate::kernels::dense::{self, Rows};
use crate::kernels::halves::Halves;
use crate::kernels::matmul::{Product, Weights, matmul};
use crate::kernels::quant::Packed;
use crate::ops::{Ops, floats};

/// A weight matrix, `[n_out, n_in]`.
#[derive(Debug)]
pub(crate) struct Linear {
    n_out: usize,
    n_in: usize,
    weight: Weight,
}

#[derive(Debug)]
enum Weight {
    Host(Arc<Context>, Host),
    Tensor(Tensor),
}

#[derive(Debug)]
enum Host {
    /// As the checkpoint stores it. Whole, and aligned to its type: [`Linear::new`] checked that.
    Stored(DType, WeightBytes),
    /// Half precision, in the kernels' order.
    Halves(Halves),
    /// Blocks, in the kernels' order.
    Packed(Packed),
}

/// What a matrix is used for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Use {
    /// Its rows are looked up.
    Rows,
    /// It is multiplied, its blocks in this way.
    Products(Computation),
    /// The same, with activations of 16 bits where those of others have 8: for the output, whose errors are those of the logits.
    FineProducts(Computation),
}

impl Use {
    fn is_fast(self) -> bool {
        matches!(self, Self::Products(Computation::Fast) | Self::FineProducts(Computation::Fast))
    }
}

impl Linear {
    /// A matrix over a checkpoint's bytes. Fails where they are not `[n_out, n_in]` elements at an aligned address.
    pub(crate) fn new(
        ops: &Ops,
        [n_out, n_in]: [usize; 2],
        dtype: DType,
        bytes: WeightBytes,
        used: Use,
    ) -> Result<Self> {
        if dtype.n_bytes(n_in).and_then(|row| row.checked_mul(n_out)) != Some(bytes.len()) {
            candle_core::bail!("{} bytes for a matrix of [{n_out}, {n_in}] in {dtype}", bytes.len());
        }
        let weight = match ops {
            Ops::Host(ctx) if dtype.is_quantized() && used.is_fast() => {
                let fine = used == Use::FineProducts(Computation::Fast);
                let packed = Packed::new(ctx, dtype, [n_out, n_in], &bytes, fine)?;
                Weight::Host(Arc::clone(ctx), Host::Packed(packed))
            }
            Ops::Host(ctx) if Halves::are(dtype) && used != Use::Rows => {
                let halves = Halves::new(ctx, dtype, [n_out, n_in], &bytes)?;
                Weight::Host(Arc::clone(ctx), Host::Halves(halves))
            }
            Ops::Host(ctx) => {
                match dtype {
                    DType::F16 | DType::BF16 => drop(elements::<u16>(&bytes)?),
                    _ => drop(stored(dtype, &bytes)?),
                }
                Weight::Host(Arc::clone(ctx), Host::Stored(dtype, bytes))
            }
            Ops::Tensors(device) if dtype.is_quantized() => {
                let mut widened = vec![0.0; n_out * n_in];
                dequantize(dtype, &bytes, &mut widened).map_err(candle_core::Error::wrap)?;
                Weight::Tensor(Tensor::from_vec(widened, (n_out, n_in), device)?)
            }
            Ops::Tensors(device) => {
                let dtype = tensor_dtype(dtype)?;
                Weight::Tensor(Tensor::from_raw_buffer(&bytes, dtype, &[n_out, n_in], device)?)
            }
        };
        Ok(Self { n_out, n_in, weight })
    }

    /// Whether the matrix has left the checkpoint's bytes.
    pub(crate) fn is_copy(&self) -> bool {
        !matches!(self.weight, Weight::Host(_, Host::Stored(..)))
    }

    /// `x · Wᵀ`: `[n, n_in]` to `[n, n_out]`.
    pub(crate) fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let [out] = Self::forward_all([self], x)?;
        Ok(out)
    }

    /// The same for several matrices, as one step: on the host the threads meet once for all of them.
    pub(crate) fn forward_all<const N: usize>(all: [&Self; N], x: &Tensor) -> Result<[Tensor; N]> {
        let (n, _) = x.dims2()?;
        if all.iter().any(|linear| matches!(linear.weight, Weight::Tensor(_))) {
            let mut out = [const { None }; N];
            for (out, linear) in out.iter_mut().zip(all) {
                *out = Some(linear.forward_tensor(x)?);
            }
            return whole(out);
        }
        let mut outs = all.map(|linear| match &linear.weight {
            Weight::Host(ctx, _) => ctx.spare.take(n * linear.n_out),
            Weight::Tensor(_) => Vec::new(), // there are none, as just seen
        });
        Self::multiply(&all, x, outs.iter_mut().map(Vec::as_mut_slice))?;
        let mut out = [const { None }; N];
        for ((out, numbers), linear) in out.iter_mut().zip(outs).zip(all) {
            *out = Some(Tensor::from_vec(numbers, (n, linear.n_out), &candle_core::Device::Cpu)?);
        }
        whole(out)
    }

    /// `x · Wᵀ`, written to `out: [n, n_out]`: logits leave the engine without a copy of their own.
    pub(crate) fn forward_into(&self, x: &Tensor, out: &mut [f32]) -> Result<()> {
        match &self.weight {
            Weight::Host(..) => Self::multiply(&[self], x, [out].into_iter()),
            Weight::Tensor(_) => {
                let logits = self.forward_tensor(x)?.flatten_all()?.to_vec1::<f32>()?;
                if logits.len() != out.len() {
                    candle_core::bail!("{} logits into {}", logits.len(), out.len());
                }
                out.copy_from_slice(&logits);
                Ok(())
            }
        }
    }

    fn forward_tensor(&self, x: &Tensor) -> Result<Tensor> {
        match &self.weight {
            Weight::Tensor(weight) => x.matmul(&weight.to_dtype(candle_core::DType::F32)?.t()?),
            Weight::Host(..) => candle_core::bail!("weights on the host, activations on a device"),
        }
    }

    /// On the host: `outs[i] = x · all[i]ᵀ`.
    fn multiply<'a>(all: &[&Self], x: &Tensor, outs: impl Iterator<Item = &'a mut [f32]>) -> Result<()> {
        let (n, k) = x.dims2()?;
        let (storage, layout) = x.storage_and_layout();
        let candle_core::Storage::Cpu(storage) = &*storage else {
            candle_core::bail!("weights on the host, activations on a device");
        };
        let mut context = None;
        let mut products = Vec::with_capacity(all.len());
        for (linear, out) in all.iter().zip(outs) {
            let Self { n_out, n_in, weight } = linear;
            let Weight::Host(ctx, host) = weight else {
                candle_core::bail!("weights in different places");
            };
            if k != *n_in || out.len() != n * n_out {
                candle_core::bail!("[{n}, {k}] times a matrix of [{n_out}, {n_in}] into {}", out.len());
            }
            let weights = match host {
                Host::Stored(dtype, bytes) => Weights::Dense(stored(*dtype, bytes)?),
                Host::Halves(halves) => Weights::Halves(halves),
                Host::Packed(packed) => Weights::Packed(packed),
            };
            context = Some(ctx);
            products.push(Product { weights, n_out: *n_out, out });
        }
        if let Some(ctx) = context {
            matmul(ctx, floats(storage, layout)?, k, products);
        }
        Ok(())
    }

    /// The rows of an embedding: `[ids.len(), n_in]`.
    pub(crate) fn rows(&self, ids: &[TokenId]) -> Result<Tensor> {
        let shape = (ids.len(), self.n_in);
        match &self.weight {
            Weight::Host(ctx, Host::Stored(dtype, bytes)) => {
                let mut out = vec![0.0; ids.len() * self.n_in];
                for (id, out) in ids.iter().zip(out.chunks_exact_mut(self.n_in)) {
                    let from = id.0 as usize * self.n_in;
                    let row = from..from + self.n_in;
                    match dtype {
                        DType::F16 => dense::widen(ctx.isa, &elements::<f16>(bytes)?[row], out),
                        DType::BF16 => dense::widen(ctx.isa, &elements::<bf16>(bytes)?[row], out),
                        dtype => {
                            let place = |element: usize| dense::block_bytes(*dtype, element);
                            let blocks = &bytes[place(row.start)..place(row.end)];
                            dequantize(*dtype, blocks, out).map_err(candle_core::Error::wrap)?;
                        }
                    }
                }
                Tensor::from_vec(out, shape, &candle_core::Device::Cpu)
            }
            Weight::Host(_, Host::Halves(_) | Host::Packed(_)) => {
                candle_core::bail!("rows of a matrix that was packed for products")
            }
            Weight::Tensor(weight) => {
                let ids = ids.iter().map(|id| id.0).collect::<Vec<_>>();
                let ids = Tensor::new(ids, weight.device())?;
                weight.index_select(&ids, 0)?.to_dtype(candle_core::DType::F32)
            }
        }
    }
}

/// A vector of weights as an f32 tensor, `[n]`: norms are small, and widened once.
pub(crate) fn vector(ops: &Ops, dtype: DType, bytes: &WeightBytes) -> Result<Tensor> {
    let mut widened = vec![0.0; bytes.len() / dtype.size() * dtype.block_len()];
    dequantize(dtype, bytes, &mut widened).map_err(candle_core::Error::wrap)?;
    let n = widened.len();
    Tensor::from_vec(widened, n, ops.device())
}

/// A checkpoint's bytes as what they are, of the types that are multiplied so.
fn stored(dtype: DType, bytes: &[u8]) -> Result<Rows<'_>> {
    Ok(match dtype {
        DType::F32 => Rows::F32(elements(bytes)?),
        DType::F16 | DType::BF16 => candle_core::bail!("products of half precision that was not packed"),
        blocks => Rows::Blocks(blocks, bytes),
    })
}

fn elements<E: bytemuck::Pod>(bytes: &[u8]) -> Result<&[E]> {
    bytemuck::try_cast_slice(bytes).map_err(|e| candle_core::Error::msg(format!("a tensor's bytes: {e}")))
}

fn tensor_dtype(dtype: DType) -> Result<candle_core::DType> {
    Ok(match dtype {
        DType::F32 => candle_core::DType::F32,
        DType::F16 => candle_core::DType::F16,
        DType::BF16 => candle_core::DType::BF16,
        other => candle_core::bail!("no tensors of weights stored as {other}"),
    })
}

/// All of them: each was set.
fn whole<const N: usize>(tensors: [Option<Tensor>; N]) -> Result<[Tensor; N]> {
    let tensors: Vec<Tensor> = tensors.into_iter().flatten().collect();
    tensors.try_into().map_err(|_| candle_core::Error::msg("a product that was not computed"))
}
