//! `x · Wᵀ` in f32, for weights that are used as they are stored: f32, and quantised blocks, exactly.
//!
//! The products of a [`CHUNK`] of a weight row and of a row of `x` are summed in eight lanes: lane `l` takes the elements `l`, `l + 8`,
//! `l + 16`, … in turn. The lanes are added as [`Simd::sum`] adds them, and chunks one after the other. Two loops keep this order:
//!
//! - [`few`] rows of activations: lanes are those of a vector, which runs along a weight row as memory brings it;
//! - [`many`](panels::many): a vector runs across weight rows, of which [`panels`] turn a chunk to lie so, and takes the lanes one after
//!   the other. It adds no lanes of one vector, and each number that it loads is used for all of a tile.
//!
//! No f32 copy of a matrix ever exists.
//!
//! Shapes: `x: [n, k]`, `weights: [n_out, k]`, `out: [n, n_out]`.

mod arranged;
mod dots;
mod few;
mod panels;

use std::ops::Range;

use half::{bf16, f16};
use llama_backend::DType;
use llama_backend::quant::dequantize;

use super::columns::Columns;
use super::simd::{Kernel, LANES, LINE, Simd};
use super::{Context, Isa, SERIAL_BELOW};

pub(crate) use arranged::{Arranged, GROUP, Group, arrange, arranged_len};

/// Elements of a row whose products are one sum of lanes: of a panel and of a tile's rows, what the first cache holds. Whole blocks of
/// every type.
pub(super) const CHUNK: usize = 256;
/// Rows of activations from which it pays to turn weights around. Quantised blocks too: what they cost is widening.
const MANY: usize = 24;

/// Whether so many rows of activations are taken [`Arranged`].
pub(crate) fn is_many(n: usize) -> bool {
    n >= MANY
}

/// A number as a weight is stored.
pub(crate) trait Element: Copy + Sync {
    fn widen(self) -> f32;
    fn load<S: Simd>(s: S, from: &[Self; LANES]) -> S::V;
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
    /// Whole blocks of a quantised type.
    Blocks(DType, &'a [u8]),
}

impl Rows<'_> {
    /// The bytes of a row of `k` elements.
    pub(crate) fn row_bytes(&self, k: usize) -> usize {
        match self {
            Self::F32(_) => k * size_of::<f32>(),
            Self::Blocks(dtype, _) => block_bytes(*dtype, k),
        }
    }
}

/// The bytes of the whole blocks of so many elements.
pub(crate) fn block_bytes(dtype: DType, n_elements: usize) -> usize {
    n_elements / dtype.block_len() * dtype.size()
}

/// Activations, `[n, k]`.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Activations<'a> {
    /// As they are: a few.
    Rows { x: &'a [f32], k: usize },
    /// Many.
    Arranged(Arranged<'a>),
}

/// Writes columns of `out = x · weightsᵀ`: of the weight rows `which`, on one thread.
pub(crate) fn multiply(
    isa: Isa,
    weights: Rows<'_>,
    which: Range<usize>,
    x: Activations<'_>,
    out: &mut Columns<'_>,
) {
    let k = match x {
        Activations::Rows { k, .. } => k,
        Activations::Arranged(x) => x.k(),
    };
    let part = which.start * k..which.end * k;
    let n_out = which.len();
    match weights {
        Rows::F32(weights) => {
            isa.run(Multiply { weights: Elements { weights: &weights[part], k }, n_out, x, out });
        }
        Rows::Blocks(dtype, bytes) => {
            let row = block_bytes(dtype, k);
            let bytes = &bytes[which.start * row..which.end * row];
            isa.run(Multiply { weights: Blocks { dtype, bytes, row }, n_out, x, out });
        }
    }
}

struct Multiply<'a, 'b, W> {
    weights: W,
    n_out: usize,
    x: Activations<'a>,
    out: &'a mut Columns<'b>,
}

impl<W: Source> Kernel for Multiply<'_, '_, W> {
    type Out = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let Self { weights, n_out, x, out } = self;
        match x {
            Activations::Rows { x, k } => few::few(s, weights, n_out, x, k, out),
            Activations::Arranged(x) => panels::many(s, weights, n_out, x, out),
        }
    }
}

/// Where weight rows come from.
///
/// Methods and not closures: a closure that is not inlined is compiled for the plain processor, and twenty times slower.
trait Source {
    /// A chunk of a row: of the matrix itself, or widened into `wide`.
    fn chunk<'a>(&'a self, row: usize, chunk: &Range<usize>, wide: &'a mut [f32; CHUNK]) -> &'a [f32];
    /// Where an element lies, which need not be there: for prefetches.
    fn place(&self, element: usize) -> *const u8;

    /// Asks for the memory of some elements, which need not be there.
    #[inline(always)]
    fn prefetch<S: Simd>(&self, s: S, from: usize, n: usize) {
        let (from, to) = (self.place(from), self.place(from + n));
        for line in (0..to.addr().wrapping_sub(from.addr())).step_by(LINE) {
            s.prefetch(from.wrapping_add(line));
        }
    }

    /// A chunk of `R` rows. Behind the last of `n_out` it is that again, whose products nobody writes: there are no such columns.
    #[inline(always)]
    fn chunks<'a, const R: usize>(
        &'a self,
        first: usize,
        n_out: usize,
        chunk: &Range<usize>,
        wide: &'a mut [[f32; CHUNK]; R],
    ) -> [&'a [f32]; R] {
        let mut rows: [&[f32]; R] = [&[]; R];
        for (r, wide) in wide.iter_mut().enumerate() {
            rows[r] = self.chunk((first + r).min(n_out - 1), chunk, wide);
        }
        rows
    }
}

struct Elements<'a> {
    weights: &'a [f32],
    k: usize,
}

impl Source for Elements<'_> {
    #[inline(always)]
    fn chunk<'a>(&'a self, row: usize, chunk: &Range<usize>, _: &'a mut [f32; CHUNK]) -> &'a [f32] {
        &self.weights[row * self.k..][chunk.clone()]
    }
    #[inline(always)]
    fn place(&self, element: usize) -> *const u8 {
        self.weights.as_ptr().wrapping_add(element).cast()
    }
}

struct Blocks<'a> {
    dtype: DType,
    bytes: &'a [u8],
    /// The bytes of a row.
    row: usize,
}

impl Source for Blocks<'_> {
    #[inline(always)]
    fn chunk<'a>(&'a self, row: usize, chunk: &Range<usize>, wide: &'a mut [f32; CHUNK]) -> &'a [f32] {
        let place = |element: usize| block_bytes(self.dtype, element);
        let blocks = &self.bytes[row * self.row..][place(chunk.start)..place(chunk.end)];
        let wide = &mut wide[..chunk.len()];
        // Whole blocks, as many as there are elements: it cannot fail.
        let _ = dequantize(self.dtype, blocks, wide);
        wide
    }
    #[inline(always)]
    fn place(&self, element: usize) -> *const u8 {
        self.bytes.as_ptr().wrapping_add(block_bytes(self.dtype, element))
    }
}

/// The first vector of some numbers; where they end before it does, zeros follow.
#[inline(always)]
fn load<S: Simd>(s: S, from: &[f32]) -> S::V {
    match from.first_chunk() {
        Some(vector) => s.load(vector),
        None => {
            let mut vector = [0.0; LANES];
            vector[..from.len()].copy_from_slice(from);
            s.load(&vector)
        }
    }
}

/// The parts of a row that are summed each for itself.
pub(super) fn chunks(k: usize) -> impl Iterator<Item = Range<usize>> {
    (0..k).step_by(CHUNK).map(move |from| from..k.min(from + CHUNK))
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
