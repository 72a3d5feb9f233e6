//! `x · Wᵀ`: several matrices times the same activations, as one step of the pool.
//!
//! Matrices that share their activations are multiplied together: threads meet once for all of them. Each task takes some rows of one
//! weight matrix, which are some columns of its result.
//!
//! Shapes: `x: [n, k]`, weights `[n_out, k]`, `out: [n, n_out]`.

use std::ops::Range;
use std::sync::{Mutex, PoisonError};

use super::columns::Columns;
use super::dense::{self, Activations, Rows};
use super::halves::{self, Halves};
use super::quant::activations::Arranged;
use super::quant::{self, Packed};
use super::{Context, SERIAL_BELOW};

/// A weight matrix, as a kernel takes it.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Weights<'a> {
    /// As it is stored, `[n_out, k]`: activations in f32.
    Dense(Rows<'a>),
    /// Packed: activations in f32.
    Halves(&'a Halves),
    /// Packed: activations of 8 bits.
    Packed(&'a Packed),
}

impl Weights<'_> {
    /// Whether so many rows of activations are to be arranged for it.
    fn takes_arranged(&self, n: usize) -> bool {
        match self {
            Self::Dense(_) => dense::is_many(n),
            Self::Halves(_) => true,
            Self::Packed(_) => false,
        }
    }

    /// The bytes of a row of `k` weights.
    fn row_bytes(&self, k: usize) -> usize {
        match self {
            Self::Dense(rows) => rows.row_bytes(k),
            Self::Halves(halves) => halves.row_bytes(),
            Self::Packed(packed) => packed.row_bytes(),
        }
    }
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
    let shares = if serial { 1 } else { SHARES * ctx.pool.n_threads() };
    let row = products.iter().map(|product| product.weights.row_bytes(k)).max().unwrap_or(0);
    let most = TASK_BYTES / row.max(1);
    // What the matrices ask of the activations: as they are, arranged, or as bytes.
    let arranged = match products.iter().any(|product| product.weights.takes_arranged(n)) {
        true => dense::arranged_len(n, k),
        false => 0,
    };
    let packed = |product: &Product<'_>| match product.weights {
        Weights::Packed(packed) => Some(packed.is_fine()),
        Weights::Dense(_) | Weights::Halves(_) => None,
    };
    // One kind for all that share the activations: a matrix beside a finer one is computed as that is. A model never mixes them.
    let fine = products.iter().filter_map(packed).max();
    let n_blocks = fine.map_or(0, |fine| quant::n_blocks(x.len(), fine));

    let mut tasks = Vec::new();
    let mut left = all;
    for Product { weights, n_out, out } in products {
        let mut columns = Columns::of(out, n_out);
        let mut from = 0;
        while from < n_out {
            // A panel that is left over is taken alone, which is slower.
            let width = left.div_ceil(shares).min(most).max(1).next_multiple_of(quant::STREAMS * PANEL);
            let rows = from..n_out.min(from + width);
            left -= rows.len();
            from = rows.end;
            let out = columns.split_off_first(rows.len());
            tasks.push(Mutex::new(Task { weights, rows, out }));
        }
    }
    let run = |arranged: Option<dense::Arranged<'_>>, blocks: Option<Arranged<'_>>| {
        let task = |i: usize| {
            // Each is taken once.
            let mut task = tasks[i].lock().unwrap_or_else(PoisonError::into_inner);
            let Task { weights, rows, out } = &mut *task;
            let panels = rows.start / PANEL..rows.end.div_ceil(PANEL);
            match (*weights, arranged, blocks) {
                (Weights::Dense(weights), Some(x), _) if dense::is_many(n) => {
                    dense::multiply(ctx.isa, weights, rows.clone(), Activations::Arranged(x), out);
                }
                (Weights::Dense(weights), ..) => {
                    dense::multiply(ctx.isa, weights, rows.clone(), Activations::Rows { x, k }, out);
                }
                (Weights::Halves(weights), Some(x), _) => halves::multiply(ctx.isa, weights, panels, x, out),
                (Weights::Packed(weights), _, Some(x)) => quant::multiply(ctx.isa, weights, panels, x, out),
                _ => unreachable!("activations are made as each of the matrices takes them"),
            }
        };
        if serial {
            (0..tasks.len()).for_each(task);
        } else {
            ctx.pool.run(tasks.len(), task);
        }
    };
    ctx.arranged.with(arranged, |numbers| {
        ctx.blocks.with(n_blocks, |blocks| {
            let blocks = fine.map(|fine| quant::quantize(ctx, x, k, fine, blocks));
            let arranged = match numbers {
                [] => None,
                numbers => Some(dense::arrange(ctx, x, k, numbers)),
            };
            run(arranged, blocks);
        });
    });
}

/// Rows of a panel of packed weights, whichever they are.
const PANEL: usize = quant::ROWS;
const _: () = assert!(PANEL == halves::ROWS);
/// Shares for each thread of what is left, of which a task takes one: tasks become smaller, and are taken in this order, so that threads end
/// together, however fast each is (Polychronopoulos and Kuck, 1987: guided self-scheduling).
const SHARES: usize = 2;
/// Weights that a task reads, about, at most: threads that read far apart are slower by a fifth.
const TASK_BYTES: usize = 1 << 20;
