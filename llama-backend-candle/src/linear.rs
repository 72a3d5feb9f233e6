//! Weight matrices: the only place that knows how weights are stored.
//!
//! On the CPU a matrix is the checkpoint's own bytes, shared with the reader's memory map, and is widened in registers or tile by
//! tile as it is used. On a device it is a tensor of the stored type, widened as a whole for the one product.
//!
//! Shapes: a matrix is `[n_out, n_in]`, row-major; activations are `[n, n_in]`, f32.

use std::sync::Arc;

use candle_core::{CpuStorage, CustomOp1, Layout, Result, Shape, Tensor};
use half::{bf16, f16};
use llama_backend::{DType, TokenId, WeightBytes};

use crate::kernels::Context;
use crate::kernels::matmul::{self, Element};
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
    /// As the checkpoint stores it. Whole, and aligned to its type: [`Linear::new`] checked that.
    Host {
        ctx: Arc<Context>,
        dtype: DType,
        bytes: WeightBytes,
    },
    Tensor(Tensor),
}

/// Calls `$f` with the weights as a slice of their own type.
macro_rules! with_elements {
    ($dtype:expr, $bytes:expr, |$weights:ident| $f:expr) => {
        match $dtype {
            DType::F32 => {
                let $weights = elements::<f32>($bytes)?;
                $f
            }
            DType::F16 => {
                let $weights = elements::<f16>($bytes)?;
                $f
            }
            DType::BF16 => {
                let $weights = elements::<bf16>($bytes)?;
                $f
            }
            other => candle_core::bail!("no kernel for weights stored as {other}"),
        }
    };
}

impl Linear {
    /// A matrix over a checkpoint's bytes. Fails where they are not `[n_out, n_in]` elements at an aligned address.
    pub(crate) fn new(
        ops: &Ops,
        n_out: usize,
        n_in: usize,
        dtype: DType,
        bytes: WeightBytes,
    ) -> Result<Self> {
        with_elements!(dtype, &bytes, |weights| if weights.len() != n_out * n_in {
            candle_core::bail!("{} elements for a matrix of [{n_out}, {n_in}]", weights.len())
        });
        let weight = match ops {
            Ops::Host(ctx) => {
                let ctx = Arc::clone(ctx);
                Weight::Host { ctx, dtype, bytes }
            }
            Ops::Tensors(device) => {
                let dtype = tensor_dtype(dtype)?;
                Weight::Tensor(Tensor::from_raw_buffer(&bytes, dtype, &[n_out, n_in], device)?)
            }
        };
        Ok(Self { n_out, n_in, weight })
    }

    /// `x · Wᵀ`: `[n, n_in]` to `[n, n_out]`.
    pub(crate) fn forward(&self, x: &Tensor) -> Result<Tensor> {
        match &self.weight {
            Weight::Host { ctx, dtype, bytes } => {
                let (n_out, n_in) = (self.n_out, self.n_in);
                x.apply_op1_no_bwd(&MatMul { ctx, dtype: *dtype, bytes, n_out, n_in })
            }
            Weight::Tensor(weight) => x.matmul(&weight.to_dtype(candle_core::DType::F32)?.t()?),
        }
    }

    /// `x · Wᵀ`, written to `out: [n, n_out]`: logits leave the engine without a copy of their own.
    pub(crate) fn forward_into(&self, x: &Tensor, out: &mut [f32]) -> Result<()> {
        let (n, k) = x.dims2()?;
        if k != self.n_in || out.len() != n * self.n_out {
            candle_core::bail!(
                "[{n}, {k}] times a matrix of [{}, {}] into {}",
                self.n_out,
                self.n_in,
                out.len()
            );
        }
        match &self.weight {
            Weight::Host { ctx, dtype, bytes } => {
                let (storage, layout) = x.storage_and_layout();
                let candle_core::Storage::Cpu(storage) = &*storage else {
                    candle_core::bail!("weights on the host, activations on a device");
                };
                let x = floats(storage, layout)?;
                with_elements!(*dtype, bytes, |weights| matmul::matmul(ctx, x, weights, k, out));
            }
            Weight::Tensor(_) => {
                let logits = self.forward(x)?.flatten_all()?.to_vec1::<f32>()?;
                out.copy_from_slice(&logits);
            }
        }
        Ok(())
    }

    /// The rows of an embedding: `[ids.len(), n_in]`.
    pub(crate) fn rows(&self, ids: &[TokenId]) -> Result<Tensor> {
        let shape = (ids.len(), self.n_in);
        match &self.weight {
            Weight::Host { ctx, dtype, bytes } => {
                let mut out = vec![0.0; ids.len() * self.n_in];
                with_elements!(*dtype, bytes, |weights| {
                    for (id, out) in ids.iter().zip(out.chunks_exact_mut(self.n_in)) {
                        let from = id.0 as usize * self.n_in;
                        matmul::widen(ctx, &weights[from..from + self.n_in], out);
                    }
                });
                Tensor::from_vec(out, shape, &candle_core::Device::Cpu)
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
    let widened: Vec<f32> =
        with_elements!(dtype, bytes, |weights| weights.iter().map(|w| w.widen()).collect());
    let n = widened.len();
    Tensor::from_vec(widened, n, ops.device())
}

fn elements<E: Element>(bytes: &[u8]) -> Result<&[E]> {
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

struct MatMul<'a> {
    ctx: &'a Context,
    dtype: DType,
    bytes: &'a WeightBytes,
    n_out: usize,
    n_in: usize,
}

impl CustomOp1 for MatMul<'_> {
    fn name(&self) -> &'static str {
        "matmul-as-stored"
    }

    fn cpu_fwd(&self, x: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let (n, k) = layout.shape().dims2()?;
        if k != self.n_in {
            candle_core::bail!("[{n}, {k}] times a matrix of [{}, {}]", self.n_out, self.n_in);
        }
        let x = floats(x, layout)?;
        let mut out = vec![0.0; n * self.n_out];
        with_elements!(self.dtype, self.bytes, |weights| matmul::matmul(self.ctx, x, weights, k, &mut out));
        Ok((CpuStorage::F32(out), (n, self.n_out).into()))
    }
}
