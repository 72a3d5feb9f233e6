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
    // Enough tasks to even out a thread that is held up, and each large enough that taking it costs nothing.
    let per_thread = match n {
        _ if serial => 1,
        0..LASTING => TASKS,
        _ => TASKS_OF_LASTING,
    };
    let mut width = all.div_ceil(per_thread * ctx.pool.n_threads());
    if n < LASTING {
        let row = products.iter().map(|product| product.weights.row_bytes(k)).max().unwrap_or(0);
        width = width.min(TASK_BYTES / row.max(1));
    }
    // A panel that is left over is taken alone, which is slower.
    let width = width.max(1).next_multiple_of(quant::STREAMS * PANEL);
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
    for Product { weights, n_out, out } in products {
        let rows = (0..n_out).step_by(width).map(|from| from..n_out.min(from + width));
        let columns = Columns::split(out, n_out, width);
        tasks.extend(rows.zip(columns).map(|(rows, out)| Mutex::new(Task { weights, rows, out })));
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
/// Tasks of a thread.
const TASKS: usize = 8;
/// Weights that a task reads at most, where reading them is its work: threads that read far apart are slower by a fifth.
const TASK_BYTES: usize = 1 << 19;
/// Rows of activations with which a task lasts, and weights are read once for many products.
const LASTING: usize = 64;
/// Tasks of a thread that last: each brings the activations to its caches anew.
const TASKS_OF_LASTING: usize = 4;
