//! The operations without weights of their own, and where they run.
//!
//! On the CPU each is a candle custom operation over a kernel; elsewhere it is written in candle's operations
//! ([`tensors`]). The model code calls the one name, and never asks which.

use std::sync::Arc;

use candle_core::{CpuStorage, CustomOp2, InplaceOp1, InplaceOp2, Layout, Result, Shape, Tensor};
use llama_backend::Communicator;

use crate::kernels::{Context, elementwise};
use crate::tensors;

/// Where a model's operations run.
#[derive(Debug, Clone)]
pub(crate) enum Ops {
    Host(Arc<Context>),
    Tensors(candle_core::Device),
}

impl Ops {
    /// `x / rms(x) · weight`: `x: [n, dim]`, `weight: [dim]`.
    pub(crate) fn rms_norm(&self, x: &Tensor, weight: &Tensor, eps: f32) -> Result<Tensor> {
        match self {
            Self::Host(ctx) => x.apply_op2_no_bwd(weight, &RmsNorm { ctx, eps }),
            Self::Tensors(_) => tensors::rms_norm(x, weight, eps),
        }
    }

    /// `h + x`, of one shape; on the host, written over `h`.
    pub(crate) fn add(&self, h: Tensor, x: Tensor) -> Result<Tensor> {
        match self {
            Self::Host(ctx) => {
                h.inplace_op2(&x, &Add { ctx })?;
                self.recycle(x)?;
                Ok(h)
            }
            Self::Tensors(_) => h + x,
        }
    }

    /// SwiGLU's inner product, `silu(gate) · up`: `[n, ffn_dim]` all three; on the host, written over `gate`.
    pub(crate) fn silu_mul(&self, gate: Tensor, up: Tensor) -> Result<Tensor> {
        match self {
            Self::Host(ctx) => {
                gate.inplace_op2(&up, &SiluMul { ctx })?;
                self.recycle(up)?;
                Ok(gate)
            }
            Self::Tensors(_) => gate.silu()? * up,
        }
    }

    /// Takes the memory of activations that nothing needs any more, for others of their size.
    pub(crate) fn recycle(&self, x: Tensor) -> Result<()> {
        match self {
            Self::Host(ctx) => x.inplace_op1(&Recycle { ctx }),
            Self::Tensors(_) => Ok(()),
        }
    }

    /// Ends a forward pass: returns the memory of all that it [recycled](Self::recycle).
    pub(crate) fn finish(&self) {
        if let Self::Host(ctx) = self {
            ctx.spare.clear();
        }
    }

    /// The sum of every rank's `x`; on the host, written over `x`.
    pub(crate) fn all_reduce_sum(&self, communicator: &dyn Communicator, x: Tensor) -> Result<Tensor> {
        if communicator.size() == 1 {
            return Ok(x);
        }
        match self {
            Self::Host(_) => {
                x.inplace_op1(&AllReduce { communicator })?;
                Ok(x)
            }
            Self::Tensors(device) => {
                let mut numbers = x.flatten_all()?.to_vec1::<f32>()?;
                communicator.all_reduce_sum(&mut numbers).map_err(candle_core::Error::wrap)?;
                Tensor::from_vec(numbers, x.shape(), device)
            }
        }
    }

    /// The device of this place's tensors.
    pub(crate) fn device(&self) -> &candle_core::Device {
        match self {
            Self::Host(_) => &candle_core::Device::Cpu,
            Self::Tensors(device) => device,
        }
    }
}

struct RmsNorm<'a> {
    ctx: &'a Context,
    eps: f32,
}

impl CustomOp2 for RmsNorm<'_> {
    fn name(&self) -> &'static str {
        "rms-norm"
    }

    fn cpu_fwd(
        &self,
        x: &CpuStorage,
        xl: &Layout,
        w: &CpuStorage,
        wl: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let (x, weight) = (floats(x, xl)?, floats(w, wl)?);
        let mut out = self.ctx.spare.take(x.len());
        elementwise::rms_norm(self.ctx, x, weight, self.eps, &mut out);
        Ok((CpuStorage::F32(out), xl.shape().clone()))
    }
}

struct Add<'a> {
    ctx: &'a Context,
}

impl InplaceOp2 for Add<'_> {
    fn name(&self) -> &'static str {
        "residual"
    }

    fn cpu_fwd(&self, h: &mut CpuStorage, hl: &Layout, x: &CpuStorage, xl: &Layout) -> Result<()> {
        let (h, x) = same_len(floats_mut(h, hl)?, floats(x, xl)?)?;
        elementwise::add(self.ctx, h, x);
        Ok(())
    }
}

struct AllReduce<'a> {
    communicator: &'a dyn Communicator,
}

impl InplaceOp1 for AllReduce<'_> {
    fn name(&self) -> &'static str {
        "all-reduce"
    }

    fn cpu_fwd(&self, x: &mut CpuStorage, xl: &Layout) -> Result<()> {
        self.communicator.all_reduce_sum(floats_mut(x, xl)?).map_err(candle_core::Error::wrap)
    }
}

struct SiluMul<'a> {
    ctx: &'a Context,
}

impl InplaceOp2 for SiluMul<'_> {
    fn name(&self) -> &'static str {
        "silu-mul"
    }

    fn cpu_fwd(&self, gate: &mut CpuStorage, gl: &Layout, up: &CpuStorage, ul: &Layout) -> Result<()> {
        let (gate, up) = same_len(floats_mut(gate, gl)?, floats(up, ul)?)?;
        elementwise::silu_mul(self.ctx, gate, up);
        Ok(())
    }
}

struct Recycle<'a> {
    ctx: &'a Context,
}

impl InplaceOp1 for Recycle<'_> {
    fn name(&self) -> &'static str {
        "recycle"
    }

    fn cpu_fwd(&self, x: &mut CpuStorage, _: &Layout) -> Result<()> {
        if let CpuStorage::F32(numbers) = x {
            self.ctx.spare.give(std::mem::take(numbers));
        }
        Ok(())
    }
}

/// The numbers of a contiguous f32 tensor.
pub(crate) fn floats<'a>(storage: &'a CpuStorage, layout: &Layout) -> Result<&'a [f32]> {
    match layout.contiguous_offsets() {
        Some((from, to)) => Ok(&storage.as_slice::<f32>()?[from..to]),
        None => candle_core::bail!("a kernel was given a tensor that is not contiguous"),
    }
}

/// The same, to be written over.
fn floats_mut<'a>(storage: &'a mut CpuStorage, layout: &Layout) -> Result<&'a mut [f32]> {
    match (storage, layout.contiguous_offsets()) {
        (CpuStorage::F32(numbers), Some((from, to))) => Ok(&mut numbers[from..to]),
        _ => candle_core::bail!("a kernel was given a tensor that is not contiguous, or not of f32"),
    }
}

fn same_len<'a>(a: &'a mut [f32], b: &'a [f32]) -> Result<(&'a mut [f32], &'a [f32])> {
    if a.len() != b.len() {
        candle_core::bail!("{} numbers and {}, which should be as many", a.len(), b.len());
    }
    Ok((a, b))
}
