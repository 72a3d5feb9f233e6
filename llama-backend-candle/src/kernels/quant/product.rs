//! The loops over panels, parts of panels and rows.

use std::marker::PhantomData;
use std::ops::Range;

use super::activations::{Arranged, Block, PARTS, rows_of_each};
use super::format::{Format, Scales};
use super::lanes::{Bytes, Elements, Lanes, Matrices, ROWS, RowsKernel, Sixteen, each_of_eight};
use super::panel::{Direct, Panel, Part, PartOf, Unit, Unpacked, unpack};
use super::{Packed, with_format};
use crate::kernels::Isa;
use crate::kernels::columns::Columns;

/// Rows of activations at a time, of which the second cache holds a chunk.
const MANY: usize = 64;
/// Panels at a time: a chunk of the rows is brought to the second cache once for so many.
const PANELS: usize = 4;
/// Panels at a time for [`STREAMED`] rows.
pub(crate) const STREAMS: usize = 4;
/// Rows at most that read [`STREAMS`] panels at a time: one, which may be fine.
const STREAMED: usize = 2;

/// `out = x · weightsᵀ` for some panels, on one thread.
///
/// `out: [n, panels · ROWS]`, or fewer columns at the end.
pub(crate) fn multiply(
    isa: Isa,
    weights: &Packed,
    panels: Range<usize>,
    x: Arranged<'_>,
    out: &mut Columns<'_>,
) {
    with_format!(
        weights.dtype,
        |F| isa.run_rows(Multiply::<F> { weights, panels, x, out, format: PhantomData }),
        else ()
    );
}

struct Multiply<'a, 'b, F> {
    weights: &'a Packed,
    panels: Range<usize>,
    x: Arranged<'a>,
    out: &'a mut Columns<'b>,
    format: PhantomData<F>,
}

/// The sums of some rows of activations with the [`ROWS`] rows of a panel.
type Sums = [[f32; ROWS]; MANY];

impl<F: Format> RowsKernel for Multiply<'_, '_, F> {
    #[inline(always)]
    fn run<S: Lanes>(self, s: S) {
        if self.x.rows <= STREAMED {
            return self.stream(s);
        }
        let Self { weights, panels, x, out, .. } = self;
        let mut unpacked = [const { Part::EMPTY }; PARTS];
        let mut sums: [Sums; PANELS] = [[[0.0; ROWS]; MANY]; PANELS];
        let tiles = s.matrices().filter(|_| x.rows > S::DIRECT).map(Matrices::tiles);
        let mut filled = Vec::new();
        let all_parts = x.parts();
        let direct = |panel| Direct::<F>(weights.panel(panel), PhantomData);
        for row in (0..x.rows).step_by(MANY) {
            let n = MANY.min(x.rows - row);
            // Few rows wait for memory, which is fastest where a panel is read from one end to the other.
            let at_once = if n <= S::DIRECT { 1 } else { PANELS };
            for first in panels.clone().step_by(at_once) {
                let these = first..panels.end.min(first + at_once);
                for sums in &mut sums[..at_once] {
                    sums[..n].fill([0.0; ROWS]);
                }
                for chunk in x.chunks() {
                    let x = x.of(row..row + n, &chunk);
                    let sixteens = match tiles {
                        Some(_) if n > S::DIRECT => sixteens(x, chunk.len(), &mut filled),
                        _ => &[],
                    };
                    for (panel, sums) in these.clone().zip(&mut sums) {
                        let (panel, next) = (direct(panel), panel + 1);
                        // A constant first: what an instruction set never does is not compiled for it.
                        if const { S::DIRECT > 0 } && n <= S::DIRECT {
                            rows(s, panel, chunk.clone(), x, &mut sums[..n], &[]);
                            continue;
                        }
                        let of_unit = Direct::<F>::PARTS;
                        for (i, parts) in unpacked[..chunk.len()].chunks_mut(of_unit).enumerate() {
                            unpack(s, panel.unit(chunk.start / of_unit + i), tiles.is_some(), parts);
                        }
                        let unpacked = Unpacked::<F>(&unpacked, PhantomData);
                        let parts = chunk.len();
                        // What is read next lies elsewhere, which memory cannot know. Nobody waits for it here.
                        let next = if next < these.end {
                            direct(next).bytes(chunk.clone())
                        } else {
                            direct(these.start).bytes(chunk.end..all_parts.min(chunk.end + PARTS))
                        };
                        match &tiles {
                            Some(tiles) => {
                                let n = sixteens.len();
                                for (i, (x, sums)) in sixteens.iter().zip(sums.as_chunks_mut().0).enumerate()
                                {
                                    s.prefetch_share(next.as_ptr(), next.len(), i, n);
                                    s.call_rows(TileOfSixteen::<F, S::Matrices> {
                                        tiles,
                                        unpacked,
                                        parts,
                                        x,
                                        sums,
                                    });
                                }
                            }
                            None => rows(s, unpacked, 0..parts, x, &mut sums[..n], next),
                        }
                    }
                }
                let (column, top) = ((first - panels.start) * ROWS, row / rows_of_each(x.fine));
                // Row by row: each is another page, which is come to once for all panels.
                for i in 0..n / rows_of_each(x.fine) {
                    let sums = sums[..these.len()].iter().map(|sums| of_row(sums, x.fine, i));
                    out.write(top + i, column, sums);
                }
            }
        }
    }
}

impl<F: Format> Multiply<'_, '_, F> {
    /// One row, which may be fine: it waits for memory, which brings several streams that are far apart faster than one.
    #[inline(always)]
    fn stream<S: Lanes>(mut self, s: S) {
        let Range { mut start, end } = self.panels;
        if const { S::STREAMS } {
            let apart = (end - start) / STREAMS;
            for panel in start..start + apart {
                self.panels(s, std::array::from_fn::<_, STREAMS, _>(|m| panel + m * apart));
            }
            start += STREAMS * apart;
        }
        for panel in start..end {
            self.panels(s, [panel]);
        }
    }

    /// The sums of that row with the rows of `M` panels.
    #[inline(always)]
    fn panels<S: Lanes, const M: usize>(&mut self, s: S, panels: [usize; M]) {
        let Arranged { rows: n, fine, .. } = self.x;
        let direct = panels.map(|panel| Direct::<F>(self.weights.panel(panel), PhantomData));
        let mut sums = [[[0.0; ROWS]; STREAMED]; M];
        for chunk in self.x.chunks() {
            let x = self.x.of(0..n, &chunk);
            let sums = sums.each_mut().map(|sums| &mut sums[..n]);
            match n {
                1 => s.call_rows(Tile::<_, 1, M> { panels: direct, parts: chunk, x, sums }),
                _ => s.call_rows(Tile::<_, STREAMED, M> { panels: direct, parts: chunk, x, sums }),
            }
        }
        for (panel, sums) in panels.into_iter().zip(&sums) {
            let column = (panel - self.panels.start) * ROWS;
            for i in 0..n / rows_of_each(fine) {
                self.out.write(i, column, [of_row(sums, fine, i)]);
            }
        }
    }
}

/// Row `i` of the result.
#[inline(always)]
fn of_row(sums: &[[f32; ROWS]], fine: bool, i: usize) -> [f32; ROWS] {
    if fine { std::array::from_fn(|r| sums[2 * i][r] + sums[2 * i + 1][r]) } else { sums[i] }
}

/// Adds the products of some parts for each row of `x`, which are as many blocks a row, and asks memory for `next`.
#[inline(always)]
fn rows<S: Lanes, P: Panel>(
    s: S,
    panel: P,
    parts: Range<usize>,
    x: &[Block],
    sums: &mut [[f32; ROWS]],
    next: &[u8],
) {
    let tiles = sums.len().div_ceil(S::TILE_OF_BYTES);
    let x = x.chunks(S::TILE_OF_BYTES * parts.len());
    for (i, (x, sums)) in x.zip(sums.chunks_mut(S::TILE_OF_BYTES)).enumerate() {
        s.prefetch_share(next.as_ptr(), next.len(), i, tiles);
        let (panels, parts, sums) = ([panel], parts.clone(), [sums]);
        match sums[0].len() {
            8 if const { S::TILE_OF_BYTES >= 8 } => s.call_rows(Tile::<P, 8, 1> { panels, parts, x, sums }),
            7 if const { S::TILE_OF_BYTES >= 7 } => s.call_rows(Tile::<P, 7, 1> { panels, parts, x, sums }),
            6 if const { S::TILE_OF_BYTES >= 6 } => s.call_rows(Tile::<P, 6, 1> { panels, parts, x, sums }),
            5 if const { S::TILE_OF_BYTES >= 5 } => s.call_rows(Tile::<P, 5, 1> { panels, parts, x, sums }),
            4 => s.call_rows(Tile::<P, 4, 1> { panels, parts, x, sums }),
            3 => s.call_rows(Tile::<P, 3, 1> { panels, parts, x, sums }),
            2 => s.call_rows(Tile::<P, 2, 1> { panels, parts, x, sums }),
            1 => s.call_rows(Tile::<P, 1, 1> { panels, parts, x, sums }),
            _ => unreachable!("a tile has from one to eight rows"),
        }
    }
}

/// Adds the products of some parts of `M` panels for `N` rows of `x`, one part after the other.
struct Tile<'a, 'b, P, const N: usize, const M: usize> {
    panels: [P; M],
    parts: Range<usize>,
    x: &'a [Block],
    sums: [&'b mut [[f32; ROWS]]; M],
}

impl<P: Panel, const N: usize, const M: usize> RowsKernel for Tile<'_, '_, P, N, M> {
    #[inline(always)]
    fn run<S: Lanes>(self, s: S) {
        let Self { panels, parts, x, sums } = self;
        let n = parts.len();
        let mut rows: [&[Block]; N] = [&[]; N];
        for i in 0..N {
            rows[i] = &x[i * n..][..n];
        }
        let mut added = [[s.splat(0.0); N]; M];
        for m in 0..M {
            for i in 0..N {
                added[m][i] = s.load(&sums[m][i]);
            }
        }
        const { assert!(PARTS.is_multiple_of(P::Unit::PARTS), "a chunk has whole units, but for the last") };
        for first in (0..n).step_by(P::Unit::PARTS) {
            // Where it is one part, the compiler is to know.
            let end = if P::Unit::PARTS == 1 { first + 1 } else { n.min(first + P::Unit::PARTS) };
            let unit = (parts.start + first) / P::Unit::PARTS;
            let mut commons = [panels[0].unit(unit).common(s); M];
            for m in 1..M {
                commons[m] = panels[m].unit(unit).common(s);
            }
            // A part of each panel in turn: memory idles on a stream while a whole unit of each other is read, 2 KiB or more. But straight
            // code where parts lie in several ways, for what waits for memory: else it would be long for nothing.
            if const { N > STREAMED || P::Unit::ALIKE } {
                for part in first..end {
                    for m in 0..M {
                        let unit = panels[m].unit(unit);
                        add_part(s, unit, &commons[m], part - first, rows, part, &mut added[m]);
                    }
                }
            } else {
                for m in 0..M {
                    let unit = panels[m].unit(unit);
                    each_of_eight!(WAY: if WAY < P::Unit::PARTS && first + WAY < end {
                        add_part(s, unit, &commons[m], WAY, rows, first + WAY, &mut added[m]);
                    });
                }
            }
        }
        for m in 0..M {
            for i in 0..N {
                s.store(added[m][i], &mut sums[m][i]);
            }
        }
    }
}

/// Adds the products of a part of a unit for block `block` of each of `N` rows.
#[inline(always)]
fn add_part<S: Lanes, U: Unit, const N: usize>(
    s: S,
    unit: U,
    common: &U::Common<S::F>,
    part: usize,
    rows: [&[Block]; N],
    block: usize,
    added: &mut [S::F; N],
) {
    let mut x = [&rows[0][block]; N];
    for i in 0..N {
        x[i] = &rows[i][block];
    }
    let groups = PartOf { unit, part };
    let quads = x.map(|x| &x.q);
    // Scales are read after the products. Before, they would lie on the stack meanwhile, and a store there delays what is read of an
    // address with the same lower twelve bits.
    if U::Format::BY_16 {
        let first = s.dots::<_, N, 0, 4>(groups, quads);
        let second = s.dots::<_, N, 4, 8>(groups, quads);
        let scales = unit.scales(s, common, part);
        for i in 0..N {
            let dots = [
                whole::<S, U::Format>(s, first[i], x[i].minus_sum[1]),
                whole::<S, U::Format>(s, second[i], x[i].minus_sum[2]),
            ];
            added[i] = add_halves::<S, U::Format>(s, dots, &scales, x[i], added[i]);
        }
    } else {
        let dots = s.dots::<_, N, 0, 8>(groups, quads);
        let scales = unit.scales(s, common, part);
        for i in 0..N {
            let dot = whole::<S, U::Format>(s, dots[i], x[i].minus_sum[0]);
            added[i] = add::<S, U::Format>(s, dot, &scales, x[i], added[i]);
        }
    }
}

/// A sum of products as f32, without what the elements were too large by: a whole number below 2^24.
#[inline(always)]
fn whole<S: Lanes, E: Elements>(s: S, dot: S::I, minus_sum: f32) -> S::F {
    let dot = s.float(dot);
    match S::offset::<E>() {
        Some(offset) => s.mul_add(s.splat(minus_sum), s.splat(offset), dot),
        None => dot,
    }
}

/// Adds the scaled product of a part and a block to a sum.
#[inline(always)]
fn add<S: Lanes, F: Format>(s: S, dot: S::F, scales: &Scales<S::F>, x: &Block, added: S::F) -> S::F {
    let added = s.mul_add(s.mul(dot, scales.scale[0]), s.splat(x.scale), added);
    if F::MINIMUM { s.mul_add(scales.minimum[0], s.splat(x.sum[0]), added) } else { added }
}

/// The same where halves of a part have scales of their own.
#[inline(always)]
fn add_halves<S: Lanes, F: Format>(
    s: S,
    [first, second]: [S::F; 2],
    scales: &Scales<S::F>,
    x: &Block,
    mut added: S::F,
) -> S::F {
    let Scales { scale, minimum } = scales;
    let scaled = s.mul_add(first, scale[0], s.mul(second, scale[1]));
    added = s.mul_add(scaled, s.splat(x.scale), added);
    if F::MINIMUM {
        added = s.mul_add(minimum[0], s.splat(x.sum[1]), added);
        added = s.mul_add(minimum[1], s.splat(x.sum[2]), added);
    }
    added
}

/// Rows of so many blocks, sixteen at a time. Where there are fewer rows, or fewer parts than a chunk has, they are copied: what is
/// missing is anything, and nobody asks for its sums.
fn sixteens<'a>(x: &'a [Block], parts: usize, filled: &'a mut Vec<Sixteen>) -> &'a [Sixteen] {
    if parts == PARTS
        && let (rows, []) = x.as_chunks()
        && let (sixteens, []) = rows.as_chunks()
    {
        return sixteens;
    }
    let rows = x.chunks_exact(parts);
    filled.resize(rows.len().div_ceil(ROWS), [[Block::EMPTY; PARTS]; ROWS]);
    for (to, row) in filled.as_flattened_mut().iter_mut().zip(rows) {
        to[..parts].copy_from_slice(row);
    }
    filled
}

/// Adds the products of some parts of a panel for sixteen rows, one part after the other.
struct TileOfSixteen<'a, F, M: Matrices> {
    tiles: &'a M::Tiles,
    unpacked: Unpacked<'a, F>,
    parts: usize,
    x: &'a Sixteen,
    sums: &'a mut [[f32; ROWS]; ROWS],
}

impl<F: Format, M: Matrices> RowsKernel for TileOfSixteen<'_, F, M> {
    #[inline(always)]
    fn run<S: Lanes>(self, s: S) {
        let Self { tiles, unpacked, parts, x, sums } = self;
        let mut added = [s.splat(0.0); ROWS];
        for i in 0..ROWS {
            added[i] = s.load(&sums[i]);
        }
        let [mut first, mut second] = [const { Products([[0; 4 * ROWS]; ROWS]) }; 2];
        for part in 0..parts {
            let weights = &unpacked.0[part].elements;
            if F::BY_16 {
                M::products::<0, 4>(tiles, weights, x, part, &mut first.0);
                M::products::<4, 8>(tiles, weights, x, part, &mut second.0);
            } else {
                M::products::<0, 8>(tiles, weights, x, part, &mut first.0);
            }
            let scales = unpacked.unit(part).scales(s, &(), part);
            for i in 0..ROWS {
                let x = &x[i][part];
                let dot = s.float(s.bytes(&first.0[i]));
                added[i] = if F::BY_16 {
                    let dots = [dot, s.float(s.bytes(&second.0[i]))];
                    add_halves::<S, F>(s, dots, &scales, x, added[i])
                } else {
                    add::<S, F>(s, dot, &scales, x, added[i])
                };
            }
        }
        for i in 0..ROWS {
            s.store(added[i], &mut sums[i]);
        }
    }
}

/// Sums of a tile: 32-bit integers.
#[repr(align(64))]
struct Products([Bytes; ROWS]);
