//! How the graph multiplies with a matrix: the only place that tells f32 from quantised.
//!
//! A matrix in f32 is taken as it lies. One in [blocks](crate::blocks) goes to `MatMulNBits` at its accuracy level 4, which rounds activations
//! to 8 bits with a scale for each block of a row, and never over the rows of a batch: a row's numbers are its own. The engine's exact levels
//! are no way for quantised weights: those of 8 bits are widened anew at each step, a hundred times slower, and those of 4 bits are slower than
//! f32. Who wants exact products has the weights widened at load.
//!
//! The minimums of blocks are a small product in f32 with the sums of the activations over each block.

use crate::graph::{Attribute, Builder, MICROSOFT, Node, ONNX, Target};

impl<T: Target> Builder<'_, T> {
    /// `x · weightᵀ`: `[B * S, n_in]` to `[B * S, n_out]`, under this name.
    pub(crate) fn linear(
        &mut self,
        x: &str,
        weight: &str,
        out: &str,
        shape: [usize; 2],
    ) -> Result<(), T::Error> {
        let Some(layout) = self.target.matrix(weight, shape)? else {
            // A checkpoint's matrix is [out, in]: taken as it lies.
            return self.gemm(&[x, weight], out, 1.0);
        };
        let scales = format!("{weight}.scales");
        let product = if layout.has_minimums { format!("{out}.product") } else { out.to_owned() };
        let [n_out, n_in] = shape;
        let int = |n: usize| Attribute::Int(n as i64); // validated: at most 2^24
        self.target.node(Node {
            op: "MatMulNBits",
            domain: MICROSOFT,
            inputs: &[x, weight, &scales],
            outputs: &[&product],
            attributes: &[
                ("K", int(n_in)),
                ("N", int(n_out)),
                ("bits", int(layout.bits)),
                ("block_size", int(layout.len)),
                ("accuracy_level", int(4)), // activations of 8 bits
            ],
        })?;
        if layout.has_minimums {
            let sums = self.sums(x, n_in / layout.len, layout.len)?;
            self.gemm(&[&sums, &format!("{weight}.minimums"), &product], out, -1.0)?;
        }
        Ok(())
    }

    /// `alpha · x · wᵀ`, plus a third input where there is one.
    fn gemm(&mut self, inputs: &[&str], out: &str, alpha: f32) -> Result<(), T::Error> {
        let attributes = &[("alpha", Attribute::Float(alpha)), ("transB", Attribute::Int(1))];
        self.target.node(Node { op: "Gemm", domain: ONNX, inputs, outputs: &[out], attributes })
    }

    /// The sums of `x` over blocks of `len`: `[B * S, n_blocks]`. Made once for the matrices that are multiplied with the same `x`.
    fn sums(&mut self, x: &str, n_blocks: usize, len: usize) -> Result<String, T::Error> {
        let [shape, blocks, sums] = ["shape", "blocks", "sums"].map(|what| format!("{x}.{what}.{len}"));
        if !self.sums.insert(sums.clone()) {
            return Ok(sums);
        }
        self.target.integers(&shape, &[-1, n_blocks as i64, len as i64])?; // validated: at most 2^24
        self.op("Reshape", &[x, &shape], &blocks)?;
        let axis = format!("{sums}.axis");
        self.target.integers(&axis, &[2])?;
        self.target.node(Node {
            op: "ReduceSum",
            domain: ONNX,
            inputs: &[&blocks, &axis],
            outputs: &[&sums],
            attributes: &[("keepdims", Attribute::Int(0))],
        })?;
        Ok(sums)
    }
}
