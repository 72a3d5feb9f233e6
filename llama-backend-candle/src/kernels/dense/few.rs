//! Products of few rows of activations: weights are read as memory brings them.

use std::ops::Range;

use super::dots::{Ahead, dots};
use super::{CHUNK, MANY, Source, chunks};
use crate::kernels::columns::Columns;
use crate::kernels::simd::{LANES, Simd};

/// Rows of activations that are multiplied at a time.
const TILE: usize = 3;
/// Memory is asked for so many bytes ahead.
const AHEAD: usize = 8192;

/// `n_out` weight rows times fewer than [`MANY`] rows of `x`.
#[inline(always)]
pub(super) fn few<S: Simd>(
    s: S,
    weights: impl Source,
    n_out: usize,
    x: &[f32],
    k: usize,
    out: &mut Columns<'_>,
) {
    if x.len() == k {
        // One row waits for memory alone, which is fastest where it is read from one end to the other: two weight rows at a time are as few
        // as hide the latency of their sums.
        by_rows::<S, 2>(s, &weights, n_out, x, k, out);
    } else {
        by_rows::<S, 4>(s, &weights, n_out, x, k, out);
    }
}

/// `R` weight rows at a time.
#[inline(always)]
fn by_rows<S: Simd, const R: usize>(
    s: S,
    weights: &impl Source,
    n_out: usize,
    x: &[f32],
    k: usize,
    out: &mut Columns<'_>,
) {
    for first in (0..n_out).step_by(R) {
        // -0 is the number that changes none that it is added to.
        let mut sums = [[-0.0; R]; MANY];
        let sums = &mut sums[..x.len() / k];
        for chunk in chunks(k) {
            let mut wide = [[0.0; CHUNK]; R];
            let rows = weights.chunks(first, n_out, &chunk, &mut wide);
            // From one end to the other, over the borders of rows and pages.
            let read = first * k + chunk.start * R;
            let [from, to] = [read, read + chunk.len() * R].map(|element| weights.place(element));
            let n_vectors = (chunk.len() / LANES).max(1);
            let ahead = Ahead {
                from: from.wrapping_add(AHEAD),
                step: to.addr().wrapping_sub(from.addr()) / n_vectors,
            };
            add_products(s, rows, &chunk, x, k, sums, ahead);
        }
        for (i, sums) in sums.iter().enumerate() {
            out.write(i, first, [*sums]);
        }
    }
}

/// Adds to `sums` the products of a chunk of `R` weight rows with that of each row of `x`.
#[inline(always)]
fn add_products<S: Simd, const R: usize>(
    s: S,
    weights: [&[f32]; R],
    chunk: &Range<usize>,
    x: &[f32],
    k: usize,
    sums: &mut [[f32; R]],
    ahead: Ahead,
) {
    let x = |i: usize| &x[i * k..][chunk.clone()];
    let mut ahead = Some(ahead);
    for (t, sums) in sums.chunks_mut(TILE).enumerate() {
        let i = t * TILE;
        let ahead = ahead.take(); // once
        match sums {
            [a, b, c] => add([a, b, c], dots(s, weights, [x(i), x(i + 1), x(i + 2)], ahead)),
            [a, b] => add([a, b], dots(s, weights, [x(i), x(i + 1)], ahead)),
            [a] => add([a], dots(s, weights, [x(i)], ahead)),
            _ => {}
        }
    }
}

#[inline(always)]
fn add<const R: usize, const N: usize>(sums: [&mut [f32; R]; N], added: [[f32; R]; N]) {
    for i in 0..N {
        for r in 0..R {
            sums[i][r] += added[i][r];
        }
    }
}
