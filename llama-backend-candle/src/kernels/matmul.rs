//! `x · Wᵀ`: several matrices times the same activations, as one step of the pool.
//!
//! Matrices that share their activations are multiplied together: threads meet once for all of them. Each task takes some rows of one
//! weight matrix, which are some columns of its result.
//!
//! Shapes: `x: [n, k]`, weights `[n_out, k]`, `out: [n, n_out]`.

use std::ops::Range;
use std::sync::{Mutex, PoisonError};

use super::columns::Columns;
use super::dense::{self, Rows};
use super::quant::activations::{self, Block};
use super::quant::{self, Packed};
use super::{Context, SERIAL_BELOW};

/// A weight matrix, as a kernel takes it.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Weights<'a> {
    /// As it is stored, `[n_out, k]`: activations in f32.
    Dense(Rows<'a>),
    /// Packed: activations of 8 bits.
    Packed(&'a Packed),
}

/// A product to be computed.
#[derive(Debug)]
pub(crate) struct Product<'a> {
    pub(crate) weights: Weights<'a>,
    /// The rows of the matrix.
    pub(crate) n_out: usize,
    /// `[n, n_out]`.
    pub(crate) out: &'a mut [f32],
}

/// Some rows of one of the matrices.
struct Task<'a> {
    weights: Weights<'a>,
    rows: Range<usize>,
    out: Columns<'a>,
}

/// Every product, with the same `x`.
pub(crate) fn matmul(ctx: &Context, x: &[f32], k: usize, products: Vec<Product<'_>>) {
    let n = x.len() / k;
    let all: usize = products.iter().map(|product| product.n_out).sum();
    let serial = n.saturating_mul(k).saturating_mul(all) < SERIAL_BELOW;
    // Enough tasks to even out a thread that is held up, and each large enough that taking it costs nothing.
    let per_thread = match n {
        _ if serial => 1,
        0..MANY => TASKS,
        _ => TASKS_OF_MANY,
    };
    let width = all.div_ceil(per_thread * ctx.pool.n_threads()).next_multiple_of(quant::ROWS);
    let packed = |product: &Product<'_>| match product.weights {
        Weights::Packed(packed) => Some(packed.is_fine()),
        Weights::Dense(_) => None,
    };
    // One kind for all that share the activations: a matrix beside a finer one is computed as that is. A model never mixes them.
    let fine = products.iter().filter_map(packed).max();

    let mut tasks = Vec::new();
    for Product { weights, n_out, out } in products {
        let rows = (0..n_out).step_by(width).map(|from| from..n_out.min(from + width));
        let columns = Columns::split(out, n_out, width);
        tasks.extend(rows.zip(columns).map(|(rows, out)| Mutex::new(Task { weights, rows, out })));
    }
    let run = |blocks: &[Block]| {
        let task = |i: usize| {
            // Each is taken once.
            let mut task = tasks[i].lock().unwrap_or_else(PoisonError::into_inner);
            let Task { weights, rows, out } = &mut *task;
            match *weights {
                Weights::Dense(weights) => dense::multiply(ctx.isa, weights, rows.clone(), x, k, out),
                Weights::Packed(weights) => {
                    let panels = rows.start / quant::ROWS..rows.end.div_ceil(quant::ROWS);
                    quant::multiply(ctx.isa, weights, panels, blocks, fine == Some(true), out);
                }
            }
        };
        if serial {
            (0..tasks.len()).for_each(task);
        } else {
            ctx.pool.run(tasks.len(), task);
        }
    };
    let Some(fine) = fine else { return run(&[]) };
    ctx.blocks.with(x.len() / activations::LEN * (1 + usize::from(fine)), |blocks| {
        quant::quantize(ctx, x, k, fine, blocks);
        run(blocks);
    });
}

/// Tasks of a thread.
const TASKS: usize = 8;
/// Tasks of a thread where each has so many rows of activations that it lasts: each brings them to its caches anew.
const TASKS_OF_MANY: usize = 4;
const MANY: usize = 64;
