//! Products of many rows of activations: weights are turned around, so that no vector's lanes are ever added.
//!
//! A panel is a chunk of [`PANEL`] weight rows, widened and transposed: `[LANES][n_vectors][PANEL]`, of which `[l][j]` are the elements
//! `LANES · j + l` of its rows. A tile multiplies it with a few rows of activations, whose sums stay in registers. The tile takes the
//! elements of each lane in turn, and adds the lanes' sums as [`Simd::sum`] does: the order of sums is that of a dot product.

use std::ops::Range;

use super::arranged::{Arranged, GROUP, Group};
use super::{CHUNK, Source, chunks, load};
use crate::kernels::columns::Columns;
use crate::kernels::simd::{Kernel, LANES, LINE, Simd};

/// Weight rows of a panel.
const PANEL: usize = 2 * LANES;
/// Groups of activations at a time, of which the second cache holds a chunk: a panel is made once for so many.
const BLOCK: usize = 44;
/// Rows of a group where they do not come to whole ones of [`GROUP`]; of fewer rows than are many, there may be still fewer.
const FEWER: usize = 5;

/// A tile's sums.
type Sums<S, const G: usize> = [[<S as Simd>::V; 2]; G];

/// `n_out` weight rows times any number of rows of `x`.
#[inline(always)]
pub(super) fn many<S: Simd>(
    s: S,
    weights: impl Source,
    n_out: usize,
    x: Arranged<'_>,
    out: &mut Columns<'_>,
) {
    match x.group() {
        GROUP => many_groups::<S, GROUP>(s, weights, n_out, x, out),
        // As few as many rows have.
        _ => many_groups::<S, FEWER>(s, weights, n_out, x, out),
    }
}

/// The same, of groups of `G` rows.
#[inline(always)]
fn many_groups<S: Simd, const G: usize>(
    s: S,
    weights: impl Source,
    n_out: usize,
    x: Arranged<'_>,
    out: &mut Columns<'_>,
) {
    let (k, n_groups) = (x.k(), x.n_groups());
    let mut panel = Panel([[0.0; PANEL]; CHUNK]);
    for block in (0..n_groups).step_by(BLOCK) {
        for chunk in chunks(k) {
            let n_vectors = chunk.len().div_ceil(LANES);
            let groups = x.groups::<G>(block..n_groups.min(block + BLOCK), chunk.start);
            for first in (0..n_out).step_by(PANEL) {
                panel.fill(s, &weights, first, n_out, &chunk);
                let panel = &panel.0[..LANES * n_vectors];
                for (t, group) in groups.iter().enumerate() {
                    if t < PANEL {
                        // The next panel's memory, some with each tile.
                        weights.prefetch(s, (first + PANEL + t) * k + chunk.start, chunk.len());
                    }
                    let row = (block + t) * G;
                    let n = G.min(x.n() - row);
                    let place = Place { row, n, column: first, is_first: chunk.start == 0 };
                    s.call(Tile { panel, group, place, out });
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
    /// The rows that there are of the group.
    n: usize,
    column: usize,
    /// Whether they are the first there.
    is_first: bool,
}

/// A group of `G` rows times a panel.
struct Tile<'a, 'b, 'c, const G: usize> {
    panel: &'a [[f32; PANEL]],
    group: &'a Group<G>,
    place: Place,
    out: &'b mut Columns<'c>,
}

impl<const G: usize> Kernel for Tile<'_, '_, '_, G> {
    type Out = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let Self { panel, group, place, out } = self;
        for i in 0..place.n {
            // Rows of the result lie far apart: asked for now, they are there when the sums are.
            let row = out.row(place.row + i, place.column, PANEL);
            s.prefetch_near(row.as_ptr().cast());
            s.prefetch_near(row.as_ptr().wrapping_add(PANEL - 1).cast());
        }
        let even = {
            let left = add(s, lane::<S, G>(s, panel, group, 0), lane(s, panel, group, 4));
            add(s, left, add(s, lane(s, panel, group, 2), lane(s, panel, group, 6)))
        };
        let odd = {
            let left = add(s, lane::<S, G>(s, panel, group, 1), lane(s, panel, group, 5));
            add(s, left, add(s, lane(s, panel, group, 3), lane(s, panel, group, 7)))
        };
        let sums = add(s, even, odd);
        for i in 0..G {
            // Not a range to `n`: sums that are taken by constant numbers stay in registers.
            if i >= place.n {
                break;
            }
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
fn lane<S: Simd, const G: usize>(s: S, panel: &[[f32; PANEL]], group: &Group<G>, l: usize) -> Sums<S, G> {
    let n_vectors = panel.len() / LANES;
    // All of one length: known to the compiler, so that the loop checks nothing.
    let panel = &panel[l * n_vectors..][..n_vectors];
    let columns = &group.as_chunks::<LANES>().0[..n_vectors];
    // The next tile's lines are asked for meanwhile: an eighth of them for each lane.
    let lines = size_of::<Group<G>>() / LINE;
    for line in lines * l / LANES..lines * (l + 1) / LANES {
        s.prefetch_near(group.as_ptr().cast::<u8>().wrapping_add((lines + line) * LINE));
    }
    let mut sums = [[s.splat(0.0); 2]; G];
    for j in 0..n_vectors {
        let (weights, _) = panel[j].as_chunks();
        let (a, b) = (s.load(&weights[0]), s.load(&weights[1]));
        for i in 0..G {
            let x = s.splat(columns[j][l][i]);
            sums[i][0] = s.mul_add(a, x, sums[i][0]);
            sums[i][1] = s.mul_add(b, x, sums[i][1]);
        }
    }
    sums
}

#[inline(always)]
fn add<S: Simd, const G: usize>(s: S, a: Sums<S, G>, b: Sums<S, G>) -> Sums<S, G> {
    let mut sums = a;
    for i in 0..G {
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
