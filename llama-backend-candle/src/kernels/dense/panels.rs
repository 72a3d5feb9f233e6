//! Products of many rows of activations: weights are turned around, so that no vector's lanes are ever added.
//!
//! A panel is a chunk of [`PANEL`] weight rows, widened and transposed: `[LANES][n_vectors][PANEL]`, of which `[l][j]` are the elements
//! `LANES · j + l` of its rows. A tile multiplies it with a few rows of activations, whose sums stay in registers. The tile takes the
//! elements of each lane in turn, and adds the lanes' sums as [`Simd::sum`] does: the order of sums is that of a dot product.

use std::ops::Range;

use super::{CHUNK, Source, chunks, load};
use crate::kernels::columns::Columns;
use crate::kernels::simd::{Kernel, LANES, LINE, Simd};
use crate::kernels::{Context, SERIAL_BELOW};

/// Weight rows of a panel.
const PANEL: usize = 2 * LANES;
/// Rows of activations of a tile: their sums and a few more fill the sixteen registers.
const TILE: usize = 6;
/// Rows of activations at a time, of which the second cache holds a chunk: a panel is made once for so many.
const BLOCK: usize = 44 * TILE;

/// A tile's sums.
type Sums<S, const N: usize> = [[<S as Simd>::V; 2]; N];

/// Activations as tiles take them: chunk after chunk, of each the part of every row; the last is filled up with zeros. The rows of a
/// chunk are a constant apart, so that a tile of any number of them has one pointer.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Arranged<'a> {
    numbers: &'a [f32],
    n: usize,
    k: usize,
}

impl<'a> Arranged<'a> {
    /// The rows.
    pub(crate) fn n(&self) -> usize {
        self.n
    }

    /// The numbers of a row.
    pub(crate) fn k(&self) -> usize {
        self.k
    }

    /// The chunk from column `chunk` on of some rows.
    pub(crate) fn rows(&self, from: usize, n: usize, chunk: usize) -> &'a [[f32; CHUNK]] {
        let start = chunk * self.n + from * CHUNK;
        self.numbers[start..start + n * CHUNK].as_chunks().0
    }
}

/// The numbers of [`Arranged`] activations, of which there are `n` rows.
pub(crate) fn arranged_len(n: usize, k: usize) -> usize {
    n * k.next_multiple_of(CHUNK)
}

/// Copies activations `[n, k]` into `numbers`, which are [`arranged_len`] ones.
pub(crate) fn arrange<'a>(ctx: &Context, x: &[f32], k: usize, numbers: &'a mut [f32]) -> Arranged<'a> {
    let n = x.len() / k;
    let task = |c: usize, to: &mut [f32]| {
        let chunk = c * CHUNK..k.min((c + 1) * CHUNK);
        for (x, to) in x.chunks_exact(k).zip(to.chunks_exact_mut(CHUNK)) {
            let (to, zeros) = to.split_at_mut(chunk.len());
            to.copy_from_slice(&x[chunk.clone()]);
            zeros.fill(0.0);
        }
    };
    if x.len() < SERIAL_BELOW {
        numbers.chunks_mut(CHUNK * n).enumerate().for_each(|(c, to)| task(c, to));
    } else {
        ctx.pool.chunks(numbers, CHUNK * n, task);
    }
    Arranged { numbers, n, k }
}

/// `n_out` weight rows times any number of rows of `x`.
#[inline(always)]
pub(super) fn many<S: Simd>(
    s: S,
    weights: impl Source,
    n_out: usize,
    x: Arranged<'_>,
    out: &mut Columns<'_>,
) {
    let mut panel = Panel([[0.0; PANEL]; CHUNK]);
    for block in (0..x.n).step_by(BLOCK) {
        let n = BLOCK.min(x.n - block);
        for chunk in chunks(x.k) {
            let n_vectors = chunk.len().div_ceil(LANES);
            let rows = x.rows(block, n, chunk.start);
            for first in (0..n_out).step_by(PANEL) {
                panel.fill(s, &weights, first, n_out, &chunk);
                let panel = &panel.0[..LANES * n_vectors];
                for (t, rows) in rows.chunks(TILE).enumerate() {
                    if t < PANEL {
                        // The next panel's memory, some with each tile.
                        weights.prefetch(s, (first + PANEL + t) * x.k + chunk.start, chunk.len());
                    }
                    let place = Place { row: block + t * TILE, column: first, is_first: chunk.start == 0 };
                    match rows.len() {
                        1 => s.call(Tile::<1> { panel, rows, place, out }),
                        2 => s.call(Tile::<2> { panel, rows, place, out }),
                        3 => s.call(Tile::<3> { panel, rows, place, out }),
                        4 => s.call(Tile::<4> { panel, rows, place, out }),
                        5 => s.call(Tile::<5> { panel, rows, place, out }),
                        _ => s.call(Tile::<TILE> { panel, rows, place, out }),
                    }
                }
            }
        }
    }
}

/// Lines of the cache.
#[repr(align(64))]
struct Panel([[f32; PANEL]; CHUNK]);

impl Panel {
    /// Takes a chunk of the rows from `first` on.
    #[inline(always)]
    fn fill<S: Simd, W: Source>(
        &mut self,
        s: S,
        weights: &W,
        first: usize,
        n_out: usize,
        chunk: &Range<usize>,
    ) {
        let n_vectors = chunk.len().div_ceil(LANES);
        for half in 0..2 {
            let mut wide = [[0.0; CHUNK]; LANES];
            let from = weights.chunks::<LANES>(first + half * LANES, n_out, chunk, &mut wide);
            for j in 0..n_vectors {
                let mut vectors = [s.splat(0.0); LANES];
                for r in 0..LANES {
                    vectors[r] = load(s, &from[r][j * LANES..]);
                }
                let turned = s.transpose(vectors);
                for l in 0..LANES {
                    if let Some(to) = self.0[l * n_vectors + j][half * LANES..].first_chunk_mut() {
                        s.store(turned[l], to);
                    }
                }
            }
        }
    }
}

/// Where a tile's sums go.
#[derive(Clone, Copy)]
struct Place {
    row: usize,
    column: usize,
    /// Whether they are the first there.
    is_first: bool,
}

/// `N` rows times a panel.
struct Tile<'a, 'b, 'c, const N: usize> {
    panel: &'a [[f32; PANEL]],
    rows: &'a [[f32; CHUNK]],
    place: Place,
    out: &'b mut Columns<'c>,
}

impl<const N: usize> Kernel for Tile<'_, '_, '_, N> {
    type Out = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let Self { panel, rows, place, out } = self;
        for i in 0..N {
            // Rows of the result lie far apart: asked for now, they are there when the sums are.
            let row = out.row(place.row + i, place.column, PANEL);
            s.prefetch_near(row.as_ptr().cast());
            s.prefetch_near(row.as_ptr().wrapping_add(PANEL - 1).cast());
        }
        let even = {
            let left = add(s, lane::<S, N>(s, panel, rows, 0), lane(s, panel, rows, 4));
            add(s, left, add(s, lane(s, panel, rows, 2), lane(s, panel, rows, 6)))
        };
        let odd = {
            let left = add(s, lane::<S, N>(s, panel, rows, 1), lane(s, panel, rows, 5));
            add(s, left, add(s, lane(s, panel, rows, 3), lane(s, panel, rows, 7)))
        };
        let sums = add(s, even, odd);
        for i in 0..N {
            let to = out.row(place.row + i, place.column, PANEL);
            match to.as_chunks_mut::<LANES>() {
                ([a, b], []) => {
                    finish(s, sums[i][0], place.is_first, a);
                    finish(s, sums[i][1], place.is_first, b);
                }
                _ => {
                    // The last columns, fewer than a panel's.
                    let mut whole = [[0.0; LANES]; 2];
                    whole.as_flattened_mut()[..to.len()].copy_from_slice(to);
                    finish(s, sums[i][0], place.is_first, &mut whole[0]);
                    finish(s, sums[i][1], place.is_first, &mut whole[1]);
                    to.copy_from_slice(&whole.as_flattened()[..to.len()]);
                }
            }
        }
    }
}

/// The sums of one lane's elements.
#[inline(always)]
fn lane<S: Simd, const N: usize>(
    s: S,
    panel: &[[f32; PANEL]],
    rows: &[[f32; CHUNK]],
    l: usize,
) -> Sums<S, N> {
    let n_vectors = panel.len() / LANES;
    // All of one length: known to the compiler, so that the loop checks nothing.
    let panel = &panel[l * n_vectors..][..n_vectors];
    let mut x = [&rows[0].as_chunks::<LANES>().0[..n_vectors]; N];
    for i in 0..N {
        x[i] = &rows[i].as_chunks().0[..n_vectors];
    }
    // A lane reads some of every line of the rows. The next tile's are asked for meanwhile: an eighth of them for each lane.
    let lines = N * CHUNK * size_of::<f32>() / LINE;
    for line in lines * l / LANES..lines * (l + 1) / LANES {
        s.prefetch_near(rows.as_ptr().cast::<u8>().wrapping_add((lines + line) * LINE));
    }
    let mut sums = [[s.splat(0.0); 2]; N];
    for j in 0..n_vectors {
        let (weights, _) = panel[j].as_chunks();
        let (a, b) = (s.load(&weights[0]), s.load(&weights[1]));
        for i in 0..N {
            let x = s.splat(x[i][j][l]);
            sums[i][0] = s.mul_add(a, x, sums[i][0]);
            sums[i][1] = s.mul_add(b, x, sums[i][1]);
        }
    }
    sums
}

#[inline(always)]
fn add<S: Simd, const N: usize>(s: S, a: Sums<S, N>, b: Sums<S, N>) -> Sums<S, N> {
    let mut sums = a;
    for i in 0..N {
        sums[i] = [s.add(a[i][0], b[i][0]), s.add(a[i][1], b[i][1])];
    }
    sums
}

/// Adds a chunk's sums to those of the chunks before it.
#[inline(always)]
fn finish<S: Simd>(s: S, sums: S::V, is_first: bool, to: &mut [f32; LANES]) {
    let sums = if is_first { sums } else { s.add(s.load(to), sums) };
    s.store(sums, to);
}
