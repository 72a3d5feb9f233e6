//! `x · Wᵀ` in f32, for weights that are used as they are stored: f32, f16, bf16, and quantised blocks, exactly.
//!
//! Both sides lie along their rows, so that a product is a dot product: eight lanes run along `k`, and are added at the end of each
//! [`CHUNK`]. A tile of several weight rows and several rows of `x` loads each vector once for all of them.
//!
//! For few rows of activations weights are widened in registers as memory brings them. For more, and for blocks always, a few weight rows
//! are brought chunk by chunk into a scratch that stays in the first cache (f32 is copied, so that it lies side by side), and no f32 copy of
//! a matrix ever exists.
//!
//! Shapes: `x: [n, k]`, `weights: [n_out, k]`, `out: [n, n_out]`.

use std::ops::Range;

use half::{bf16, f16};
use llama_backend::DType;
use llama_backend::quant::dequantize;

use super::Isa;
use super::columns::Columns;
use super::simd::{Kernel, LANES, Simd};

/// Elements of a row whose products are one sum of lanes. Whole blocks of every type.
pub(crate) const CHUNK: usize = 512;
/// Weight rows that are read from memory at a time: enough to hide the latency of their sums, and half of what the first cache holds where
/// rows are a power of two apart, as they often are.
const STREAMS: usize = 4;
/// Weight rows that are widened at a time: with their chunk, half of the first cache.
const WIDE: usize = 8;
/// Rows of activations at a time, of which the outer caches hold a chunk: weights are widened once for so many.
pub(crate) const MANY: usize = 384;
/// Rows of activations from which weights are brought into the scratch first.
const WIDEN: usize = 6;
/// Rows of activations that are multiplied at a time.
const TILE: usize = 3;

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

/// Rows of stored elements, `k` each.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Rows<'a> {
    F32(&'a [f32]),
    F16(&'a [f16]),
    BF16(&'a [bf16]),
    /// Whole blocks of a quantised type.
    Blocks(DType, &'a [u8]),
}

/// The bytes of the whole blocks of so many elements.
pub(crate) fn block_bytes(dtype: DType, n_elements: usize) -> usize {
    n_elements / dtype.block_len() * dtype.size()
}

/// Writes columns of `out = x · weightsᵀ`: of the weight rows `which`, on one thread.
pub(crate) fn multiply(
    isa: Isa,
    weights: Rows<'_>,
    which: Range<usize>,
    x: &[f32],
    k: usize,
    out: &mut Columns<'_>,
) {
    let part = which.start * k..which.end * k;
    match weights {
        Rows::F32(weights) => isa.run(Multiply { weights: &weights[part], k, x, out }),
        Rows::F16(weights) => isa.run(Multiply { weights: &weights[part], k, x, out }),
        Rows::BF16(weights) => isa.run(Multiply { weights: &weights[part], k, x, out }),
        Rows::Blocks(dtype, bytes) => {
            let row = block_bytes(dtype, k);
            let bytes = &bytes[which.start * row..which.end * row];
            isa.run(MultiplyBlocks { dtype, bytes, row, k, x, out });
        }
    }
}

/// Widens `from` into `to`, of the same length, on one thread.
pub(crate) fn widen<E: Element>(isa: Isa, from: &[E], to: &mut [f32]) {
    isa.run(Widen { from, to });
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

struct Multiply<'a, 'b, E> {
    weights: &'a [E],
    k: usize,
    x: &'a [f32],
    out: &'a mut Columns<'b>,
}

impl<E: Element> Kernel for Multiply<'_, '_, E> {
    type Out = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let Self { weights, k, x, out } = self;
        if x.len() / k < WIDEN {
            for (i, weights) in weights.chunks(STREAMS * k).enumerate() {
                few(s, weights, k, x, i * STREAMS, out);
            }
        } else {
            many(s, Elements { weights, k }, weights.len() / k, k, x, out);
        }
    }
}

struct MultiplyBlocks<'a, 'b> {
    dtype: DType,
    bytes: &'a [u8],
    /// The bytes of a row.
    row: usize,
    k: usize,
    x: &'a [f32],
    out: &'a mut Columns<'b>,
}

impl Kernel for MultiplyBlocks<'_, '_> {
    type Out = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let Self { dtype, bytes, row, k, x, out } = self;
        many(s, Blocks { dtype, bytes, row }, bytes.len() / row, k, x, out);
    }
}

/// What can be widened, a chunk of some rows at a time.
///
/// A method and not a closure: a closure that is not inlined is compiled for the plain processor, and twenty times slower.
trait Wide {
    /// Writes a chunk of each of some rows: `to: [rows.len(), chunk.len()]`.
    fn widen<S: Simd>(&self, s: S, rows: Range<usize>, chunk: &Range<usize>, to: &mut [f32]);
}

struct Elements<'a, E> {
    weights: &'a [E],
    k: usize,
}

impl<E: Element> Wide for Elements<'_, E> {
    #[inline(always)]
    fn widen<S: Simd>(&self, s: S, rows: Range<usize>, chunk: &Range<usize>, to: &mut [f32]) {
        for (row, to) in rows.zip(to.chunks_exact_mut(chunk.len())) {
            let from = &self.weights[row * self.k..][chunk.clone()];
            match E::as_f32(from) {
                Some(from) => to.copy_from_slice(from),
                None => Widen { from, to }.run(s),
            }
        }
    }
}

struct Blocks<'a> {
    dtype: DType,
    bytes: &'a [u8],
    row: usize,
}

impl Wide for Blocks<'_> {
    #[inline(always)]
    fn widen<S: Simd>(&self, _: S, rows: Range<usize>, chunk: &Range<usize>, to: &mut [f32]) {
        let place = |element: usize| block_bytes(self.dtype, element);
        for (row, to) in rows.zip(to.chunks_exact_mut(chunk.len())) {
            let blocks = &self.bytes[row * self.row..][place(chunk.start)..place(chunk.end)];
            // Whole blocks, as many as there are elements: it cannot fail.
            let _ = dequantize(self.dtype, blocks, to);
        }
    }
}

/// At most [`STREAMS`] weight rows times each row of `x`, as they are stored.
#[inline(always)]
fn few<S: Simd, E: Element>(s: S, weights: &[E], k: usize, x: &[f32], column: usize, out: &mut Columns<'_>) {
    for (i, x) in x.chunks_exact(k).enumerate() {
        if weights.len() == STREAMS * k {
            let mut sums = [0.0; STREAMS];
            for from in (0..k).step_by(CHUNK) {
                let part = from..k.min(from + CHUNK);
                let mut rows = [&weights[..part.len()]; STREAMS];
                for r in 0..STREAMS {
                    rows[r] = &weights[r * k..][part.clone()];
                    // The same part of the next rows: as far ahead as memory needs, over the borders of rows and pages.
                    let next = rows[r].as_ptr().wrapping_add(STREAMS * k).cast::<u8>();
                    for line in (0..part.len() * size_of::<E>()).step_by(64) {
                        s.prefetch(next.wrapping_add(line));
                    }
                }
                let [added] = dots_by_four(s, rows, [&x[part]]);
                for r in 0..STREAMS {
                    sums[r] += added[r];
                }
            }
            out.write(i, column, &sums);
        } else {
            for (r, weights) in weights.chunks_exact(k).enumerate() {
                let mut sum = 0.0;
                for (weights, x) in weights.chunks(CHUNK).zip(x.chunks(CHUNK)) {
                    let [[added]] = dots(s, [weights], [x]);
                    sum += added;
                }
                out.write(i, column + r, &[sum]);
            }
        }
    }
}

/// Any number of weight rows times the rows of `x`.
#[inline(always)]
fn many<S: Simd>(s: S, weights: impl Wide, n_out: usize, k: usize, x: &[f32], out: &mut Columns<'_>) {
    let mut wide = [0.0; WIDE * CHUNK];
    let mut sums = [[0.0; WIDE]; MANY];
    // A chunk of each row, side by side: rows that are a power of two apart would drive each other out of the caches.
    let mut side_by_side = vec![0.0; MANY.min(x.len() / k) * CHUNK.min(k)];
    for (block, x) in x.chunks(MANY * k).enumerate() {
        let n = x.len() / k;
        for from in (0..k).step_by(CHUNK) {
            let chunk = from..k.min(from + CHUNK);
            let side_by_side = &mut side_by_side[..n * chunk.len()];
            for (to, x) in side_by_side.chunks_exact_mut(chunk.len()).zip(x.chunks_exact(k)) {
                to.copy_from_slice(&x[chunk.clone()]);
            }
            for first in (0..n_out).step_by(WIDE) {
                let rows = first..n_out.min(first + WIDE);
                let wide = &mut wide[..rows.len() * chunk.len()];
                weights.widen(s, rows, &chunk, wide);
                sums[..n].fill([0.0; WIDE]);
                add_products(s, wide, chunk.len(), side_by_side, &mut sums[..n]);
                for (i, sums) in sums[..n].iter().enumerate() {
                    let row = block * MANY + i;
                    if from == 0 {
                        out.write(row, first, sums);
                    } else {
                        out.row(row, first, WIDE).iter_mut().zip(sums).for_each(|(out, sum)| *out += sum);
                    }
                }
            }
        }
    }
}

/// `sums[i][r] += wide[r] · x[i]`, tile by tile: rows of `len`.
#[inline(always)]
fn add_products<S: Simd>(s: S, wide: &[f32], len: usize, x: &[f32], sums: &mut [[f32; WIDE]]) {
    let x = |i: usize| &x[i * len..(i + 1) * len];
    for (t, sums) in sums.chunks_mut(TILE).enumerate() {
        let i = t * TILE;
        match sums {
            [a, b, c] => tile(s, wide, len, [x(i), x(i + 1), x(i + 2)], [a, b, c]),
            [a, b] => tile(s, wide, len, [x(i), x(i + 1)], [a, b]),
            [a] => tile(s, wide, len, [x(i)], [a]),
            _ => {}
        }
    }
}

/// `N` rows of `x` and all rows of `wide`, four at a time.
#[inline(always)]
fn tile<S: Simd, const N: usize>(
    s: S,
    wide: &[f32],
    len: usize,
    x: [&[f32]; N],
    sums: [&mut [f32; WIDE]; N],
) {
    let mut r = 0;
    while (r + 4) * len <= wide.len() {
        let row = |r: usize| &wide[r * len..(r + 1) * len];
        let added = dots_by_four(s, [row(r), row(r + 1), row(r + 2), row(r + 3)], x);
        for i in 0..N {
            if let Some(sums) = sums[i][r..].first_chunk_mut::<4>() {
                for j in 0..4 {
                    sums[j] += added[i][j];
                }
            }
        }
        r += 4;
    }
    while (r + 1) * len <= wide.len() {
        let [added] = dots(s, [&wide[r * len..(r + 1) * len]], x);
        for i in 0..N {
            sums[i][r] += added[i];
        }
        r += 1;
    }
}

/// The product of each of `R` weight rows with each of `N` rows of activations, all of one length.
///
/// A sum is taken in the same order whatever `R` and `N` are.
#[inline(always)]
pub(crate) fn dots<S: Simd, E: Element, const R: usize, const N: usize>(
    s: S,
    weights: [&[E]; R],
    x: [&[f32]; N],
) -> [[f32; N]; R] {
    let sums = lanes(s, weights, x);
    let mut products = [[0.0; N]; R];
    for r in 0..R {
        for i in 0..N {
            products[r][i] = s.sum(sums[r][i]);
            if !x[i].len().is_multiple_of(LANES) {
                products[r][i] += tail(weights[r], x[i]);
            }
        }
    }
    products
}

/// The same for four weight rows, by rows of activations.
#[inline(always)]
pub(crate) fn dots_by_four<S: Simd, E: Element, const N: usize>(
    s: S,
    weights: [&[E]; 4],
    x: [&[f32]; N],
) -> [[f32; 4]; N] {
    let sums = lanes(s, weights, x);
    let mut products = [[0.0; 4]; N];
    for i in 0..N {
        products[i] = s.sum_four([sums[0][i], sums[1][i], sums[2][i], sums[3][i]]);
    }
    if !x[0].len().is_multiple_of(LANES) {
        for i in 0..N {
            for r in 0..4 {
                products[i][r] += tail(weights[r], x[i]);
            }
        }
    }
    products
}

/// What is left behind the last whole vector.
#[inline(always)]
fn tail<E: Element>(weights: &[E], x: &[f32]) -> f32 {
    let mut tail = 0.0;
    for at in x.len() / LANES * LANES..x.len() {
        tail += weights[at].widen() * x[at];
    }
    tail
}

/// The sums of products, lane by lane.
#[inline(always)]
fn lanes<S: Simd, E: Element, const R: usize, const N: usize>(
    s: S,
    weights: [&[E]; R],
    x: [&[f32]; N],
) -> [[S::V; N]; R] {
    let n_chunks = x[0].len() / LANES;
    // All of one length: known to the compiler, so that the loop checks nothing.
    let mut w = [&weights[0].as_chunks::<LANES>().0[..n_chunks]; R];
    let mut y = [&x[0].as_chunks::<LANES>().0[..n_chunks]; N];
    for r in 0..R {
        w[r] = &weights[r].as_chunks::<LANES>().0[..n_chunks];
    }
    for i in 0..N {
        y[i] = &x[i].as_chunks::<LANES>().0[..n_chunks];
    }
    let mut sums = [[s.splat(0.0); N]; R];
    for c in 0..n_chunks {
        let mut loaded = [s.splat(0.0); N];
        for i in 0..N {
            loaded[i] = s.load(&y[i][c]);
        }
        for r in 0..R {
            let w = E::load(s, &w[r][c]);
            for i in 0..N {
                sums[r][i] = s.mul_add(w, loaded[i], sums[r][i]);
            }
        }
    }
    sums
}
