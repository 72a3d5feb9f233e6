//! The products that a model chooses, by themselves: benches measure them beside the calls that it could have made.

use llama_backend::{BackendError, DType, WeightBytes};
use tch::{Device, Tensor};

use crate::engine;
use crate::linear::{Linear, Ops};

/// One weight matrix on the CPU.
#[derive(Debug)]
pub struct Product {
    ops: Ops,
    matrix: Linear,
}

impl Product {
    /// A matrix `[n_out, n_in]` over these bytes.
    ///
    /// # Errors
    ///
    /// [`BackendError::Engine`] where they do not make one.
    pub fn new(
        [n_out, n_in]: [usize; 2],
        dtype: DType,
        bytes: WeightBytes,
        half_products: bool,
    ) -> Result<Self, BackendError> {
        let ops = Ops::new(Device::Cpu, half_products, n_in).map_err(engine)?;
        let matrix = ops.matrix(n_out, n_in, dtype, bytes).map_err(engine)?;
        Ok(Self { ops, matrix })
    }

    /// `x · Wᵀ` as a model computes it: `[n, n_in]` to `[n, n_out]`, f32.
    ///
    /// # Errors
    ///
    /// [`BackendError::Engine`] as libtorch says.
    pub fn run(&self, x: &Tensor) -> Result<Tensor, BackendError> {
        self.ops.linear(x, &self.matrix).map_err(engine)
    }

    /// The matrix, as libtorch's own functions take it; `None` for blocks. It is read where its bytes lie, and must not be written.
    pub fn weight(&self) -> Option<&Tensor> {
        self.matrix.weight()
    }
}
