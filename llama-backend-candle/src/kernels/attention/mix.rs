//! Values, mixed as probabilities say.

use std::ops::Range;

use super::AHEAD;
use crate::kernels::dense::Element;
use crate::kernels::simd::{Kernel, LANES, LINE, Simd};

/// Positions whose values stay in the first cache while every row uses them.
const BLOCK_POSITIONS: usize = 32;

/// `out[i] = Σ probs[i, t] · values[t]`, over the positions that row `i` sees and no others: what a later token left in the cache, be it
/// NaN, is nothing to it.
pub(super) struct Mix<'a, E> {
    /// `[rows, row_len]`.
    pub(super) probs: &'a [f32],
    pub(super) row_len: usize,
    /// `[n_positions, head_dim]`.
    pub(super) values: &'a [E],
    pub(super) head_dim: usize,
    /// Of the first token, which the first `n_rep` rows are of.
    pub(super) start_pos: usize,
    pub(super) n_rep: usize,
    /// `[rows, head_dim]`.
    pub(super) out: &'a mut [f32],
}

impl<E: Element> Kernel for Mix<'_, E> {
    type Out = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let Self { probs, row_len, values, head_dim, start_pos, n_rep, out } = self;
        out.fill(0.0);
        for (b, values) in values.chunks(BLOCK_POSITIONS * head_dim).enumerate() {
            let from = b * BLOCK_POSITIONS;
            let block = Values { s, values, head_dim, row_len };
            // The positions of this block that a row sees.
            let seen =
                |row: usize| (start_pos + row / n_rep + 1).saturating_sub(from).min(values.len() / head_dim);
            let rows = probs.chunks(4 * row_len).zip(out.chunks_mut(4 * head_dim));
            for (i, (probs, out)) in rows.enumerate() {
                let probs = &probs[from..];
                let all = seen(4 * i);
                match out.len() / head_dim {
                    1 => block.add::<1, 8>(0..all, probs, out),
                    2 => block.add::<2, 4>(0..all, probs, out),
                    3 => block.add::<3, 2>(0..all, probs, out),
                    _ => block.add::<4, 2>(0..all, probs, out),
                }
                // Some rows may be of later tokens.
                for (r, out) in out.chunks_exact_mut(head_dim).enumerate().skip(1) {
                    block.add::<1, 8>(all..seen(4 * i + r), &probs[r * row_len..], out);
                }
            }
        }
    }
}

/// Some positions' values.
#[derive(Clone, Copy)]
struct Values<'a, S, E> {
    s: S,
    values: &'a [E],
    head_dim: usize,
    /// From a row of probabilities to the next.
    row_len: usize,
}

impl<S: Simd, E: Element> Values<'_, S, E> {
    /// `out[i] += Σ probs[i, t] · values[t]` for `N` rows, `W` vectors of each at a time: position after position.
    #[inline(always)]
    fn add<const N: usize, const W: usize>(self, positions: Range<usize>, probs: &[f32], out: &mut [f32]) {
        if positions.is_empty() {
            return;
        }
        let Self { head_dim, row_len, .. } = self;
        let values = &self.values[positions.start * head_dim..positions.end * head_dim];
        let probs = &probs[positions.start..];
        let block = Self { values, ..self };
        let mut column = 0;
        while column + W * LANES <= head_dim {
            block.add_columns::<N, W>(column, probs, out);
            column += W * LANES;
        }
        while column + LANES <= head_dim {
            block.add_columns::<N, 1>(column, probs, out);
            column += LANES;
        }
        for (probs, out) in probs.chunks(row_len).zip(out.chunks_exact_mut(head_dim)) {
            for (p, values) in probs.iter().zip(values.chunks_exact(head_dim)) {
                for (out, value) in out[column..].iter_mut().zip(&values[column..]) {
                    *out += p * value.widen();
                }
            }
        }
    }

    /// The `W` vectors from a column on, which stay in registers meanwhile.
    #[inline(always)]
    fn add_columns<const N: usize, const W: usize>(self, column: usize, probs: &[f32], out: &mut [f32]) {
        let Self { s, values, head_dim, row_len } = self;
        let n = values.len() / head_dim;
        let mut p = [&probs[..n]; N];
        for i in 0..N {
            p[i] = &probs[i * row_len..][..n];
        }
        let at = |i: usize| i * head_dim + column;
        let mut sums = [[s.splat(0.0); W]; N];
        for i in 0..N {
            let (from, _) = out[at(i)..].as_chunks::<LANES>();
            for w in 0..W {
                sums[i][w] = s.load(&from[w]);
            }
        }
        let mut rows = values.chunks_exact(head_dim);
        for t in 0..n {
            let Some(row) = rows.next() else { break }; // counted by `t`, which is known to lie within `p[i]`
            let row = &row[column..];
            for byte in (0..W * size_of::<[E; LANES]>()).step_by(LINE) {
                s.prefetch_near(row.as_ptr().cast::<u8>().wrapping_add(AHEAD + byte));
            }
            let (row, _) = row.as_chunks::<LANES>();
            let row = &row[..W];
            let mut value = [s.splat(0.0); W];
            for w in 0..W {
                value[w] = E::load(s, &row[w]);
            }
            for i in 0..N {
                let p = s.splat(p[i][t]);
                for w in 0..W {
                    sums[i][w] = s.mul_add(p, value[w], sums[i][w]);
                }
            }
        }
        for i in 0..N {
            let (to, _) = out[at(i)..].as_chunks_mut::<LANES>();
            for w in 0..W {
                s.store(sums[i][w], &mut to[w]);
            }
        }
    }
}
