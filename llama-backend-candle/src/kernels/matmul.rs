//! `x · Wᵀ` for weights as they are stored: f32, f16 or bf16.
//!
//! Few rows are bound by memory: each weight row is read once, widened in registers, and multiplied with every row of `x`.
//! Many rows are bound by arithmetic, which the `gemm` crate does well for f32; half weights are widened for it tile by tile
//! into a scratch that fits the cache, so that no f32 copy of a matrix ever exists.
//!
//! Shapes: `x: [n, k]`, `weights: [n_out, k]`, `out: [n, n_out]`.

use half::{bf16, f16};
use rayon::prelude::*;

use super::simd::{Kernel, LANES, Simd};
use super::{Context, SERIAL_BELOW};

/// Up to here the dot kernels are faster than packing a matrix for `gemm`.
const FEW_ROWS: usize = 16;
/// Widened weights at a time: 2 MB, which the outer caches hold.
pub(crate) const TILE: usize = 1 << 19;

/// A number as a weight is stored.
pub(crate) trait Element: Copy + Sync + bytemuck::Pod {
    fn widen(self) -> f32;
    fn load<S: Simd>(s: S, from: &[Self; LANES]) -> S::V;
    /// The numbers themselves, where they need no widening.
    fn as_f32(_weights: &[Self]) -> Option<&[f32]> {
        None
    }
}

impl Element for f32 {
    #[inline(always)]
    fn widen(self) -> f32 {
        self
    }
    #[inline(always)]
    fn load<S: Simd>(s: S, from: &[Self; LANES]) -> S::V {
        s.load(from)
    }
    fn as_f32(weights: &[Self]) -> Option<&[f32]> {
        Some(weights)
    }
}

impl Element for f16 {
    #[inline(always)]
    fn widen(self) -> f32 {
        self.to_f32()
    }
    #[inline(always)]
    fn load<S: Simd>(s: S, from: &[Self; LANES]) -> S::V {
        s.load_f16(from)
    }
}

impl Element for bf16 {
    #[inline(always)]
    fn widen(self) -> f32 {
        self.to_f32()
    }
    #[inline(always)]
    fn load<S: Simd>(s: S, from: &[Self; LANES]) -> S::V {
        s.load_bf16(from)
    }
}

/// `out = x · weightsᵀ`.
pub(crate) fn matmul<E: Element>(ctx: &Context, x: &[f32], weights: &[E], k: usize, out: &mut [f32]) {
    let (n, n_out) = (x.len() / k, weights.len() / k);
    if n == 1 {
        dot_rows(ctx, x, weights, k, out);
    } else if n <= FEW_ROWS {
        // The kernel goes along weight rows, so it makes outᵀ: small, and turned over afterwards.
        ctx.scratch.with(n_out * n, |turned| {
            dot_rows(ctx, x, weights, k, turned);
            for (i, out) in out.chunks_exact_mut(n_out).enumerate() {
                for (out, turned) in out.iter_mut().zip(turned.chunks_exact(n)) {
                    *out = turned[i];
                }
            }
        });
    } else if let Some(weights) = E::as_f32(weights) {
        let (x, weights) = (Matrix::new(x, k), Matrix::new(weights, k).transposed());
        gemm(x, weights, out, n_out, ctx.n_threads);
    } else {
        let tile_rows = (TILE / k).clamp(1, n_out);
        ctx.scratch.with(tile_rows * k, |widened| {
            for (i, tile) in weights.chunks(tile_rows * k).enumerate() {
                let widened = &mut widened[..tile.len()];
                widen(ctx, tile, widened);
                let (x, tile) = (Matrix::new(x, k), Matrix::new(widened, k).transposed());
                gemm(x, tile, &mut out[i * tile_rows..], n_out, ctx.n_threads);
            }
        });
    }
}

/// Widens `from` into `to`, of the same length.
pub(crate) fn widen<E: Element>(ctx: &Context, from: &[E], to: &mut [f32]) {
    const CHUNK: usize = 1 << 14;
    let chunk = |(from, to): (&[E], &mut [f32])| ctx.isa.run(Widen { from, to });
    if from.len() < SERIAL_BELOW {
        chunk((from, to));
    } else {
        from.par_chunks(CHUNK).zip(to.par_chunks_mut(CHUNK)).for_each(chunk);
    }
}

struct Widen<'a, E> {
    from: &'a [E],
    to: &'a mut [f32],
}

impl<E: Element> Kernel for Widen<'_, E> {
    type Out = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let (from, from_rest) = self.from.as_chunks::<LANES>();
        let (to, to_rest) = self.to.as_chunks_mut::<LANES>();
        for (from, to) in from.iter().zip(to) {
            s.store(E::load(s, from), to);
        }
        for (from, to) in from_rest.iter().zip(to_rest) {
            *to = from.widen();
        }
    }
}

/// `out[o, i] = weights[o] · x[i]`: `out: [n_out, n]`.
fn dot_rows<E: Element>(ctx: &Context, x: &[f32], weights: &[E], k: usize, out: &mut [f32]) {
    let (n, n_out) = (x.len() / k, weights.len() / k);
    let chunk = |(weights, out): (&[E], &mut [f32])| ctx.isa.run(DotRows { x, weights, k, out });
    if weights.len() * n < SERIAL_BELOW {
        chunk((weights, out));
    } else {
        // Four parts a thread: few enough to stream, enough to even out a thread that was held up.
        let rows = n_out.div_ceil(4 * ctx.n_threads).max(1);
        weights.par_chunks(rows * k).zip(out.par_chunks_mut(rows * n)).for_each(chunk);
    }
}

/// `out[o, i] = weights[o] · x[i]`, on one thread.
pub(crate) struct DotRows<'a, E> {
    /// `[n, k]`.
    pub(crate) x: &'a [f32],
    /// `[n_out, k]`.
    pub(crate) weights: &'a [E],
    pub(crate) k: usize,
    /// `[n_out, n]`.
    pub(crate) out: &'a mut [f32],
}

impl<E: Element> Kernel for DotRows<'_, E> {
    type Out = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let Self { x, weights, k, out } = self;
        let rows = weights.len() / k;
        // Four weight rows at a time, far apart: four streams of loads keep memory busy where one does not.
        let quarter = rows / 4;
        for row in 0..quarter {
            rows_by_rows(s, weights, x, k, out, [0, 1, 2, 3].map(|q| q * quarter + row));
        }
        for row in 4 * quarter..rows {
            rows_by_rows(s, weights, x, k, out, [row]);
        }
    }
}

/// `out[o, i] = weights[o] · x[i]` for the weight rows `which` and any number of rows of `x`.
#[inline(always)]
fn rows_by_rows<S: Simd, E: Element, const R: usize>(
    s: S,
    weights: &[E],
    x: &[f32],
    k: usize,
    out: &mut [f32],
    which: [usize; R],
) {
    let n = x.len() / k;
    let weights = which.map(|row| &weights[row * k..(row + 1) * k]);
    for (i, x) in x.chunks_exact(k).enumerate() {
        let products = dot(s, weights, x);
        for (row, product) in which.into_iter().zip(products) {
            out[row * n + i] = product;
        }
    }
}

/// The product of each of `R` weight rows with one row of activations, all of one length.
///
/// A sum is taken in the same order whatever `R` is, and knows nothing of other rows: alone or with others, a row's result is
/// the same to the bit.
#[inline(always)]
fn dot<S: Simd, E: Element, const R: usize>(s: S, weights: [&[E]; R], x: &[f32]) -> [f32; R] {
    // Two sums a row: with four rows, as many as hide the latency of the multiply-add.
    const SUMS: usize = 2;
    let mut sums = [[s.splat(0.0); SUMS]; R];
    let (chunks, rest) = x.as_chunks::<LANES>();
    let (groups, single) = chunks.as_chunks::<SUMS>();
    let weights = weights.map(|row| {
        let (row_chunks, row_rest) = row[..x.len()].as_chunks::<LANES>();
        let (row_groups, row_single) = row_chunks.as_chunks::<SUMS>();
        (&row_groups[..groups.len()], &row_single[..single.len()], row_rest)
    });
    for (g, group) in groups.iter().enumerate() {
        for j in 0..SUMS {
            let x = s.load(&group[j]);
            for r in 0..R {
                sums[r][j] = s.mul_add(E::load(s, &weights[r].0[g][j]), x, sums[r][j]);
            }
        }
    }
    if let [chunk] = single {
        let x = s.load(chunk);
        for r in 0..R {
            sums[r][0] = s.mul_add(E::load(s, &weights[r].1[0]), x, sums[r][0]);
        }
    }
    std::array::from_fn(|r| {
        let [a, b] = sums[r];
        let mut tail = 0.0;
        for (w, x) in weights[r].2.iter().zip(rest) {
            tail += w.widen() * x;
        }
        s.sum(s.add(a, b)) + tail
    })
}

/// A view of numbers as a matrix.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Matrix<'a> {
    data: &'a [f32],
    rows: usize,
    cols: usize,
    row_stride: usize,
    col_stride: usize,
}

impl<'a> Matrix<'a> {
    /// `[data.len() / cols, cols]`, row-major.
    pub(crate) fn new(data: &'a [f32], cols: usize) -> Self {
        Self { data, rows: data.len() / cols, cols, row_stride: cols, col_stride: 1 }
    }

    pub(crate) fn transposed(self) -> Self {
        Self {
            data: self.data,
            rows: self.cols,
            cols: self.rows,
            row_stride: self.col_stride,
            col_stride: self.row_stride,
        }
    }
}

/// `out[i, j] = Σ a[i, l] · b[l, j]`, with `row_stride` numbers from one row of `out` to the next.
#[allow(unsafe_code)] // the gemm crate takes pointers
pub(crate) fn gemm(a: Matrix<'_>, b: Matrix<'_>, out: &mut [f32], row_stride: usize, n_threads: usize) {
    let (m, n, k) = (a.rows, b.cols, a.cols);
    // What the safety below rests on. Views are made of whole rows, so `a` and `b` lie within their slices.
    assert!(b.rows == k && n <= row_stride, "matrices of shapes that do not multiply");
    assert!(m == 0 || out.len() >= (m - 1) * row_stride + n, "a product that does not fit");
    let parallelism = match n_threads {
        0 | 1 => gemm::Parallelism::None,
        n => gemm::Parallelism::Rayon(n),
    };
    // SAFETY:
    // - every element of `a` and `b` that gemm reads is `row * row_stride + col * col_stride` of a view whose rows and columns
    //   `Matrix` made to lie within its slice;
    // - every element of `out` that it writes lies within the slice, by the assertion; it is borrowed mutably, so it overlaps
    //   neither of them;
    // - strides fit `isize`, since slices do.
    unsafe {
        gemm::gemm(
            m,
            n,
            k,
            out.as_mut_ptr(),
            1,
            row_stride as isize,
            false,
            a.data.as_ptr(),
            a.col_stride as isize,
            a.row_stride as isize,
            b.data.as_ptr(),
            b.col_stride as isize,
            b.row_stride as isize,
            0.0,
            1.0,
            false,
            false,
            false,
            parallelism,
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernels::Isa;
    use crate::test_util::{close, random};

    fn naive(x: &[f32], weights: &[f32], k: usize) -> Vec<f32> {
        let dot = |x: &[f32], w: &[f32]| {
            x.iter().zip(w).map(|(x, w)| f64::from(*x) * f64::from(*w)).sum::<f64>() as f32
        };
        x.chunks(k).flat_map(|x| weights.chunks(k).map(move |w| dot(x, w))).collect()
    }

    fn check<E: Element>(narrow: impl Fn(f32) -> E) {
        for isa in Isa::all() {
            let ctx = Context::new(isa, 2);
            for (n, n_out, k) in
                [(1, 1, 1), (1, 172, 64), (2, 5, 31), (3, 7, 40), (16, 9, 129), (17, 3, 33), (40, 700, 1027)]
            {
                let x = random(n * k, 1);
                let weights: Vec<E> = random(n_out * k, 2).into_iter().map(&narrow).collect();
                let widened: Vec<f32> = weights.iter().map(|w| w.widen()).collect();
                let mut out = vec![f32::NAN; n * n_out];
                matmul(&ctx, &x, &weights, k, &mut out);
                close(&out, &naive(&x, &widened, k), 1e-4, &format!("{isa:?} {n} {n_out} {k}"));
            }
        }
    }

    #[test]
    fn equals_the_naive_product() {
        check(|x| x);
        check(f16::from_f32);
        check(bf16::from_f32);
    }

    #[test]
    fn a_row_among_few_is_the_same_to_the_bit() {
        let (ctx, k, n_out) = (Context::new(Isa::detect(), 2), 1029, 40);
        let (x, weights) = (random(7 * k, 3), random(n_out * k, 4));
        let mut together = vec![0.0; 7 * n_out];
        matmul(&ctx, &x, &weights, k, &mut together);
        for (x, row) in x.chunks(k).zip(together.chunks(n_out)) {
            let mut alone = vec![0.0; n_out];
            matmul(&ctx, x, &weights, k, &mut alone);
            assert_eq!(alone, row);
        }
    }
}
