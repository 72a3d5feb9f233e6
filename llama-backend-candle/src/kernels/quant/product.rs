//! The loops over panels, parts of panels and rows.

use std::marker::PhantomData;
use std::ops::Range;

use super::activations::Block;
use super::format::{Format, Scales};
use super::lanes::{Bytes, IntKernel, Lanes, ROWS};
use super::{Packed, with_format};
use crate::kernels::Isa;
use crate::kernels::columns::Columns;

/// Elements of a part of a panel, as activations' blocks have.
const PART: usize = super::activations::LEN;
/// Parts at a time: unpacked, with a few rows of activations, they fill half of the first cache. Whole blocks of every type.
const PARTS: usize = 16;
/// Rows of activations at a time, which the second cache holds.
const MANY: usize = 64;
/// Bytes between what is multiplied and what memory is asked for.
const AHEAD: usize = 4096;

/// `out = x · weightsᵀ` for some panels, on one thread.
///
/// `x: [n, k / PART]`, or `[n, 2, k / PART]` where it is fine; `out: [n, panels · ROWS]`, or fewer columns at the end.
pub(crate) fn multiply(
    isa: Isa,
    weights: &Packed,
    panels: Range<usize>,
    x: &[Block],
    fine: bool,
    out: &mut Columns<'_>,
) {
    let parts = weights.k / PART;
    with_format!(
        weights.dtype,
        |F| isa.run_int(Multiply::<F> { weights, panels, parts, x, fine, out, format: PhantomData }),
        else ()
    );
}

struct Multiply<'a, 'b, F> {
    weights: &'a Packed,
    panels: Range<usize>,
    parts: usize,
    x: &'a [Block],
    fine: bool,
    out: &'a mut Columns<'b>,
    format: PhantomData<F>,
}

/// The sums of some rows of activations with the [`ROWS`] rows of a panel.
type Sums = [[f32; ROWS]; MANY];

impl<F: Format> IntKernel for Multiply<'_, '_, F> {
    #[inline(always)]
    fn run<S: Lanes>(self, s: S) {
        let Self { weights, panels, parts, x, fine, out, .. } = self;
        let mut unpacked = [const { Part::EMPTY }; PARTS];
        let mut sums: Sums = [[0.0; ROWS]; MANY];
        for (i, x) in x.chunks(MANY * parts).enumerate() {
            let n = x.len() / parts;
            for (column, panel) in panels.clone().enumerate() {
                let panel = Direct::<F>(weights.panel(panel), PhantomData);
                sums[..n].fill([0.0; ROWS]);
                for first in (0..parts).step_by(PARTS) {
                    let these = first..parts.min(first + PARTS);
                    let x = &x[these.start..];
                    if n <= S::DIRECT {
                        rows(s, panel, these, parts, x, &mut sums[..n]);
                    } else {
                        for (part, unpacked) in these.clone().zip(&mut unpacked) {
                            unpack(s, panel, part, unpacked);
                        }
                        let panel = Unpacked::<F>(&unpacked, PhantomData);
                        rows(s, panel, 0..these.len(), parts, x, &mut sums[..n]);
                    }
                }
                if fine {
                    for (row, two) in sums[..n].as_chunks::<2>().0.iter().enumerate() {
                        let mut sum = two[0];
                        for (sum, rest) in sum.iter_mut().zip(two[1]) {
                            *sum += rest;
                        }
                        out.write(i * MANY / 2 + row, column * ROWS, &sum);
                    }
                } else {
                    for (row, sums) in sums[..n].iter().enumerate() {
                        out.write(i * MANY + row, column * ROWS, sums);
                    }
                }
            }
        }
    }
}

/// A panel in some form.
trait Panel<S: Lanes>: Copy {
    type Format: Format;
    fn elements(self, s: S, part: usize, half: usize) -> [S::I; 8];
    fn scales(self, s: S, part: usize, half: usize) -> Scales<S::F>;
    /// Asks memory for what will be needed soon, a part at a time.
    #[inline(always)]
    fn prefetch(self, _: S, _part: usize) {}
}

/// As it is packed.
struct Direct<'a, F>(&'a [u8], PhantomData<F>);

impl<F> Clone for Direct<'_, F> {
    fn clone(&self) -> Self {
        *self
    }
}
impl<F> Copy for Direct<'_, F> {}

impl<'a, F: Format> Direct<'a, F> {
    /// The unit that a part lies in, and which of it that is.
    #[inline(always)]
    fn unit(self, part: usize) -> (&'a [u8], usize) {
        let of_unit = F::LEN / PART;
        (&self.0[part / of_unit * F::UNIT..][..F::UNIT], part % of_unit)
    }
}

impl<S: Lanes, F: Format> Panel<S> for Direct<'_, F> {
    type Format = F;

    #[inline(always)]
    fn elements(self, s: S, part: usize, half: usize) -> [S::I; 8] {
        let (unit, part) = self.unit(part);
        F::elements(s, unit, part, half)
    }
    #[inline(always)]
    fn scales(self, s: S, part: usize, half: usize) -> Scales<S::F> {
        let (unit, part) = self.unit(part);
        F::scales(s, unit, part, half)
    }
    #[inline(always)]
    fn prefetch(self, s: S, part: usize) {
        let bytes = F::UNIT / (F::LEN / PART);
        let ahead = self.0.as_ptr().wrapping_add(part * bytes + AHEAD);
        for line in (0..bytes).step_by(64) {
            s.prefetch(ahead.wrapping_add(line));
        }
    }
}

/// 32 elements of [`ROWS`] rows, as bytes with their scales.
#[derive(Clone, Copy)]
#[repr(C, align(64))]
struct Part {
    elements: [Bytes; 8],
    scale: [[f32; ROWS]; 2],
    minimum: [[f32; ROWS]; 2],
}

impl Part {
    const EMPTY: Self =
        Self { elements: [[0; 4 * ROWS]; 8], scale: [[0.0; ROWS]; 2], minimum: [[0.0; ROWS]; 2] };
}

/// Some parts of a panel.
struct Unpacked<'a, F>(&'a [Part; PARTS], PhantomData<F>);

impl<F> Clone for Unpacked<'_, F> {
    fn clone(&self) -> Self {
        *self
    }
}
impl<F> Copy for Unpacked<'_, F> {}

impl<S: Lanes, F: Format> Panel<S> for Unpacked<'_, F> {
    type Format = F;

    #[inline(always)]
    fn elements(self, s: S, part: usize, half: usize) -> [S::I; 8] {
        let part = &self.0[part];
        let mut elements = [s.zero(); 8];
        for g in 0..8 {
            elements[g] = s.bytes(&part.elements[g], half);
        }
        elements
    }
    #[inline(always)]
    fn scales(self, s: S, part: usize, half: usize) -> Scales<S::F> {
        let part = &self.0[part];
        Scales {
            scale: [s.load(&part.scale[0], half), s.load(&part.scale[1], half)],
            minimum: [s.load(&part.minimum[0], half), s.load(&part.minimum[1], half)],
        }
    }
}

#[inline(always)]
fn unpack<S: Lanes, F: Format>(s: S, panel: Direct<'_, F>, part: usize, to: &mut Part) {
    for half in 0..S::HALVES {
        let elements = panel.elements(s, part, half);
        for (elements, to) in elements.into_iter().zip(&mut to.elements) {
            s.store_bytes(elements, to, half);
        }
        let Scales { scale, minimum } = panel.scales(s, part, half);
        for i in 0..2 {
            s.store(scale[i], &mut to.scale[i], half);
            s.store(minimum[i], &mut to.minimum[i], half);
        }
    }
}

/// Adds the products of some parts for each row of `x`; the rows are `stride` blocks apart.
#[inline(always)]
fn rows<S: Lanes, P: Panel<S>>(
    s: S,
    panel: P,
    parts: Range<usize>,
    stride: usize,
    x: &[Block],
    sums: &mut [[f32; ROWS]],
) {
    for (x, sums) in x.chunks(S::TILE * stride).zip(sums.chunks_mut(S::TILE)) {
        let parts = parts.clone();
        match sums.len() {
            8 if S::TILE >= 8 => tile::<S, P, 8>(s, panel, parts, stride, x, sums),
            7 if S::TILE >= 7 => tile::<S, P, 7>(s, panel, parts, stride, x, sums),
            6 if S::TILE >= 6 => tile::<S, P, 6>(s, panel, parts, stride, x, sums),
            5 if S::TILE >= 5 => tile::<S, P, 5>(s, panel, parts, stride, x, sums),
            4 => tile::<S, P, 4>(s, panel, parts, stride, x, sums),
            3 => tile::<S, P, 3>(s, panel, parts, stride, x, sums),
            2 => tile::<S, P, 2>(s, panel, parts, stride, x, sums),
            1 => tile::<S, P, 1>(s, panel, parts, stride, x, sums),
            _ => unreachable!("a chunk has from one to S::TILE rows, of which there are at most eight"),
        }
    }
}

/// Adds the products of some parts for `N` rows of `x`, one part after the other.
#[inline(always)]
fn tile<S: Lanes, P: Panel<S>, const N: usize>(
    s: S,
    panel: P,
    parts: Range<usize>,
    stride: usize,
    x: &[Block],
    sums: &mut [[f32; ROWS]],
) {
    let mut rows: [&[Block]; N] = [&[]; N];
    for i in 0..N {
        rows[i] = &x[i * stride..][..parts.len()];
    }
    for half in 0..S::HALVES {
        let mut added = [s.splat(0.0); N];
        for i in 0..N {
            added[i] = s.load(&sums[i], half);
        }
        for (p, part) in parts.clone().enumerate() {
            if half == 0 {
                panel.prefetch(s, part);
            }
            let elements = panel.elements(s, part, half);
            let Scales { scale, minimum } = panel.scales(s, part, half);
            for i in 0..N {
                let x = &rows[i][p];
                let mut sum = added[i];
                if P::Format::BY_16 {
                    let (w, q) = (quads(&elements), quads(&x.q));
                    let dot = [
                        s.float(s.dot::<P::Format, 4>(w[0], q[0], x.minus_sum[1])),
                        s.float(s.dot::<P::Format, 4>(w[1], q[1], x.minus_sum[2])),
                    ];
                    let scaled = s.mul_add(dot[0], scale[0], s.mul(dot[1], scale[1]));
                    sum = s.mul_add(scaled, s.splat(x.scale), sum);
                    if P::Format::MINIMUM {
                        sum = s.mul_add(minimum[0], s.splat(x.sum[1]), sum);
                        sum = s.mul_add(minimum[1], s.splat(x.sum[2]), sum);
                    }
                } else {
                    let dot = s.float(s.dot::<P::Format, 8>(&elements, &x.q, x.minus_sum[0]));
                    sum = s.mul_add(s.mul(dot, scale[0]), s.splat(x.scale), sum);
                    if P::Format::MINIMUM {
                        sum = s.mul_add(minimum[0], s.splat(x.sum[0]), sum);
                    }
                }
                added[i] = sum;
            }
        }
        for (sums, added) in sums.iter_mut().zip(added) {
            s.store(added, sums, half);
        }
    }
}

/// The first four and the last four of eight.
#[inline(always)]
fn quads<T>(eight: &[T; 8]) -> [&[T; 4]; 2] {
    match (eight.first_chunk(), eight.last_chunk()) {
        (Some(first), Some(last)) => [first, last],
        _ => unreachable!("eight are two times four"),
    }
}
