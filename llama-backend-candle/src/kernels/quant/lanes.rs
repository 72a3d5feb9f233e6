//! What a kernel on quantised weights may do with sixteen rows of a matrix at once, on whatever the processor has.
//!
//! There is one 32-bit lane for each row: four consecutive elements of the row as bytes, or a sum, a scale, a product. Sixteen
//! lanes are one vector of 64 bytes, or two on processors whose vectors have 32. As in [`simd`](crate::kernels::simd), a kernel is
//! written once and compiled for each instruction set, and a value of a type is the proof that the processor has its instructions.
//!
//! Sums of products of integers are exact, so that instruction sets differ only in how they add the f32 scaled sums.

use std::convert::Infallible;
use std::fmt::Debug;

use half::{bf16, f16};

use super::activations::{Block, LEN, PARTS};
use crate::kernels::simd::LINE;

/// Rows of a matrix that are multiplied side by side.
pub(crate) const ROWS: usize = 16;

/// Four bytes of each of [`ROWS`] rows.
pub(crate) type Bytes = [u8; 4 * ROWS];

/// The elements of a weight as bytes: what a product of them must know.
pub(crate) trait Elements {
    /// The bits of an unsigned element, which is from 0 up; 8 for signed bytes.
    const BITS: u32;
    /// Elements are signed bytes.
    const SIGNED: bool;
    /// What an unsigned element is too large by; `None` where it is not.
    const OFFSET: Option<f32>;
}

/// Some weights as eight groups, of four bytes of each of [`ROWS`] rows.
pub(crate) trait Groups<S: Lanes>: Copy {
    type Elements: Elements;
    fn group(self, s: S, g: usize) -> S::I;
    /// Where group `g` is magnitudes, the elements' signs as [`apart`](Lanes::apart) gives them.
    fn signs(self, s: S, g: usize) -> Option<S::I>;
    /// Where groups are magnitudes, what [`dots`](Lanes::dots) is to subtract: what it gives for zeros.
    fn of_zeros(self, s: S) -> S::I;
}

/// A block of activations as groups of four.
pub(crate) type Quads = [[i8; 4]; LEN / 4];

/// Products of whole matrices of bytes, where a processor has them.
pub(crate) trait Matrices: Copy + Debug {
    /// What a thread that computes them needs; it has one at a time.
    type Tiles: Debug;

    fn tiles(self) -> Self::Tiles;

    /// The sum of the products of the elements in the groups from `FROM` to `TO`, eight or four of them, for block `part` of each of
    /// [`ROWS`] rows of activations, and each row of the weights, which are signed bytes.
    fn products<const FROM: usize, const TO: usize>(
        tiles: &Self::Tiles,
        w: &[Bytes; 8],
        x: &Sixteen,
        part: usize,
        sums: &mut [Bytes; ROWS],
    );
}

/// [`ROWS`] rows of a chunk of activations.
pub(crate) type Sixteen = [[Block; PARTS]; ROWS];

/// Of a processor that has none.
impl Matrices for Infallible {
    type Tiles = Self;

    fn tiles(self) -> Self {
        self
    }
    fn products<const FROM: usize, const TO: usize>(
        tiles: &Self,
        _: &[Bytes; 8],
        _: &Sixteen,
        _: usize,
        _: &mut [Bytes; ROWS],
    ) {
        match *tiles {}
    }
}

/// Does something with each of eight (groups of a part, parts of a unit), of which `$g` is the constant number: straight code, where a
/// loop over so much might stay one.
macro_rules! each_of_eight {
    ($g:ident: $body:expr) => {
        each_of_eight!(@ $g $body, 0 1 2 3 4 5 6 7)
    };
    (@ $g:ident $body:expr, $($n:literal)*) => {
        $({
            const $g: usize = $n;
            $body
        })*
    };
}
pub(crate) use each_of_eight;

/// An instruction set, on [`ROWS`] lanes.
pub(crate) trait Lanes: Copy + Debug {
    /// Up to so many rows, a panel is read as it is packed; for more, unpacking it first pays. None where that always pays but for one row,
    /// which is multiplied apart.
    const DIRECT: usize;
    /// Bytes between what a row of activations reads of quantised weights and what memory is asked for; 0 where asking gains nothing.
    const AHEAD: usize;
    /// Whether one row of bytes reads several panels at a time.
    const STREAMS: bool;
    /// Rows of bytes of a tile, as registers allow: up to 8.
    const TILE_OF_BYTES: usize;
    /// Bytes, or 32-bit integers.
    type I: Copy;
    /// f32.
    type F: Copy;
    /// Groups of f32 activations times panels, of which registers hold the sums beside a few vectors more.
    const TILES: usize;

    /// Products of whole matrices.
    type Matrices: Matrices;

    /// Products of whole matrices, where the processor has them.
    fn matrices(self) -> Option<Self::Matrices>;

    /// What the elements that [`dots`](Self::dots) multiplies are too large by.
    fn offset<E: Elements>() -> Option<f32> {
        E::OFFSET
    }

    /// Runs a kernel as a function of its own, compiled for this instruction set.
    ///
    /// For a part of another kernel as well: what is all inlined into one function takes the compiler many times as long.
    fn call_rows<K: RowsKernel>(self, kernel: K);

    /// The bytes as they are stored.
    fn bytes(self, from: &Bytes) -> Self::I;
    fn store_bytes(self, bytes: Self::I, to: &mut Bytes);
    /// A byte for each row, widened.
    fn widen(self, from: &[u8; ROWS]) -> Self::I;
    /// A signed byte for each row, widened.
    fn widen_signed(self, from: &[u8; ROWS]) -> Self::I;
    /// `a & mask`, in every byte.
    fn and(self, a: Self::I, mask: u8) -> Self::I;
    /// `(a >> n) & mask`, in every byte.
    fn shift_right(self, a: Self::I, n: u32, mask: u8) -> Self::I;
    /// `(a & mask) << n`, in every byte.
    fn shift_left(self, a: Self::I, n: u32, mask: u8) -> Self::I;
    fn or(self, a: Self::I, b: Self::I) -> Self::I;
    /// `a - b`, in every byte, modulo 256.
    fn subtract(self, a: Self::I, b: u8) -> Self::I;
    /// `table[a]` in every byte; each is below 16.
    fn look_up(self, table: &[i8; 16], a: Self::I) -> Self::I;
    /// Signed bytes as [`dots`](Self::dots) wants them.
    fn signed(self, a: Self::I) -> Self::I;
    /// Signed bytes as magnitudes and as signs, 255 where one is negative: the form in which [`dots`](Self::dots) is fastest, for what
    /// it multiplies many times. `None` where it is so as they are.
    #[inline(always)]
    fn apart(self, _: Self::I) -> Option<[Self::I; 2]> {
        None
    }
    /// For each row of `x` and of the weights, the sum of the products of their elements in the groups from `FROM` to `TO`.
    fn dots<W: Groups<Self>, const N: usize, const FROM: usize, const TO: usize>(
        self,
        w: W,
        x: [&Quads; N],
    ) -> [Self::I; N];

    /// The largest magnitude of a block's numbers: infinity or NaN where one is not finite.
    fn largest(self, x: &[f32; LEN]) -> f32;
    /// A block's numbers times `by`, rounded to the nearest whole numbers, of two to the even one: within -127..=127, as `by` is to see to.
    /// And the sums of the first and of the second half.
    fn round(self, x: &[f32; LEN], by: f32) -> (Quads, [i32; 2]);

    /// Integers as f32.
    fn float(self, a: Self::I) -> Self::F;
    fn splat(self, x: f32) -> Self::F;
    fn load(self, from: &[f32; ROWS]) -> Self::F;
    fn load_f16(self, from: &[u8; 2 * ROWS]) -> Self::F;
    fn load_bf16(self, from: &[u8; 2 * ROWS]) -> Self::F;
    fn store(self, v: Self::F, to: &mut [f32; ROWS]);
    fn mul(self, a: Self::F, b: Self::F) -> Self::F;
    /// `a * b + c`.
    fn mul_add(self, a: Self::F, b: Self::F, c: Self::F) -> Self::F;
    /// Asks for a line of memory that will be read soon. The address need not be anybody's.
    fn prefetch(self, line: *const u8);
    /// Asks for share `i` of `n` of some bytes' lines, for what is asked for bit by bit.
    #[inline(always)]
    fn prefetch_share(self, from: *const u8, bytes: usize, i: usize, n: usize) {
        let lines = bytes.div_ceil(LINE);
        for line in lines * i / n..lines * (i + 1) / n {
            self.prefetch(from.wrapping_add(line * LINE));
        }
    }
}

/// Code to be compiled for each instruction set.
pub(crate) trait RowsKernel {
    /// Must be `#[inline(always)]`: its code takes the instruction set of the function that it is inlined into.
    fn run<S: Lanes>(self, s: S);
}

/// Plain Rust: for every processor, and what the others are compared with.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Scalar {
    /// Whether it has matrices: in tests, which run what is written for them on processors that have none.
    pub(crate) matrices: bool,
}

impl Matrices for Scalar {
    type Tiles = ();

    fn tiles(self) {}
    fn products<const FROM: usize, const TO: usize>(
        (): &(),
        w: &[Bytes; 8],
        x: &Sixteen,
        part: usize,
        sums: &mut [Bytes; ROWS],
    ) {
        for (x, sums) in x.iter().zip(sums) {
            let mut row = [[0; ROWS]];
            for g in FROM..TO {
                let (lanes, _) = w[g].as_chunks::<4>();
                let lanes = std::array::from_fn(|i| u32::from_le_bytes(lanes[i]));
                add_products(true, lanes, [x[part].q[g]], &mut row);
            }
            sums.as_chunks_mut().0.copy_from_slice(&row[0].map(u32::to_le_bytes));
        }
    }
}

/// A lane's four bytes.
fn each(a: [u32; ROWS], f: impl Fn(u8) -> u8) -> [u32; ROWS] {
    a.map(|lane| u32::from_le_bytes(lane.to_le_bytes().map(&f)))
}

/// Adds the products of four elements of each row.
#[inline(never)] // there are few of them, for all types of weights
fn add_products<const N: usize>(signed: bool, w: [u32; ROWS], x: [[i8; 4]; N], sums: &mut [[u32; ROWS]; N]) {
    for (sums, x) in sums.iter_mut().zip(x) {
        for (sum, w) in sums.iter_mut().zip(w) {
            for (w, x) in w.to_le_bytes().into_iter().zip(x) {
                let w = if signed { i32::from(w as i8) } else { i32::from(w) };
                *sum = sum.wrapping_add((w * i32::from(x)) as u32);
            }
        }
    }
}

impl Lanes for Scalar {
    const DIRECT: usize = 0;
    const AHEAD: usize = 0;
    const STREAMS: bool = false;
    const TILE_OF_BYTES: usize = 4;
    const TILES: usize = 1;
    type I = [u32; ROWS];
    type F = [f32; ROWS];
    type Matrices = Self;

    #[inline(always)]
    fn matrices(self) -> Option<Self> {
        (cfg!(test) && self.matrices).then_some(self)
    }
    #[inline(never)]
    fn call_rows<K: RowsKernel>(self, kernel: K) {
        kernel.run(self);
    }
    #[inline(always)]
    fn bytes(self, from: &Bytes) -> Self::I {
        let (lanes, _) = from.as_chunks::<4>();
        std::array::from_fn(|i| u32::from_le_bytes(lanes[i]))
    }
    #[inline(always)]
    fn store_bytes(self, bytes: Self::I, to: &mut Bytes) {
        for (to, lane) in to.as_chunks_mut::<4>().0.iter_mut().zip(bytes) {
            *to = lane.to_le_bytes();
        }
    }
    #[inline(always)]
    fn widen(self, from: &[u8; ROWS]) -> Self::I {
        from.map(u32::from)
    }
    #[inline(always)]
    fn widen_signed(self, from: &[u8; ROWS]) -> Self::I {
        from.map(|byte| i32::from(byte as i8) as u32)
    }
    #[inline(always)]
    fn and(self, a: Self::I, mask: u8) -> Self::I {
        each(a, |a| a & mask)
    }
    #[inline(always)]
    fn shift_right(self, a: Self::I, n: u32, mask: u8) -> Self::I {
        each(a, |a| a >> n & mask)
    }
    #[inline(always)]
    fn shift_left(self, a: Self::I, n: u32, mask: u8) -> Self::I {
        each(a, |a| (a & mask) << n)
    }
    #[inline(always)]
    fn or(self, a: Self::I, b: Self::I) -> Self::I {
        std::array::from_fn(|i| a[i] | b[i])
    }
    #[inline(always)]
    fn subtract(self, a: Self::I, b: u8) -> Self::I {
        each(a, |a| a.wrapping_sub(b))
    }
    #[inline(always)]
    fn look_up(self, table: &[i8; 16], a: Self::I) -> Self::I {
        each(a, |a| table[usize::from(a & 15)] as u8)
    }
    #[inline(always)]
    fn signed(self, a: Self::I) -> Self::I {
        a
    }
    #[inline(always)]
    fn dots<W: Groups<Self>, const N: usize, const FROM: usize, const TO: usize>(
        self,
        w: W,
        x: [&Quads; N],
    ) -> [Self::I; N] {
        let mut sums = [[0; ROWS]; N];
        for g in FROM..TO {
            add_products(W::Elements::SIGNED, w.group(self, g), x.map(|x| x[g]), &mut sums);
        }
        sums
    }
    fn largest(self, x: &[f32; LEN]) -> f32 {
        // Of positive numbers the larger has the larger bits; those of infinity and NaN are larger than all.
        f32::from_bits(x.iter().fold(0, |max, x| x.abs().to_bits().max(max)))
    }
    fn round(self, x: &[f32; LEN], by: f32) -> (Quads, [i32; 2]) {
        let rounded = x.map(|x| (x * by).round_ties_even() as i8);
        let (quads, _) = rounded.as_chunks();
        let (first, second) = rounded.split_at(LEN / 2);
        let sum = |half: &[i8]| half.iter().map(|&q| i32::from(q)).sum();
        (std::array::from_fn(|i| quads[i]), [sum(first), sum(second)])
    }
    #[inline(always)]
    fn float(self, a: Self::I) -> Self::F {
        a.map(|a| a as i32 as f32)
    }
    #[inline(always)]
    fn splat(self, x: f32) -> Self::F {
        [x; ROWS]
    }
    #[inline(always)]
    fn load(self, from: &[f32; ROWS]) -> Self::F {
        *from
    }
    #[inline(always)]
    fn load_f16(self, from: &[u8; 2 * ROWS]) -> Self::F {
        let (halves, _) = from.as_chunks::<2>();
        std::array::from_fn(|i| f16::from_le_bytes(halves[i]).to_f32())
    }
    #[inline(always)]
    fn load_bf16(self, from: &[u8; 2 * ROWS]) -> Self::F {
        let (halves, _) = from.as_chunks::<2>();
        std::array::from_fn(|i| bf16::from_le_bytes(halves[i]).to_f32())
    }
    #[inline(always)]
    fn store(self, v: Self::F, to: &mut [f32; ROWS]) {
        *to = v;
    }
    #[inline(always)]
    fn mul(self, a: Self::F, b: Self::F) -> Self::F {
        std::array::from_fn(|i| a[i] * b[i])
    }
    #[inline(always)]
    fn mul_add(self, a: Self::F, b: Self::F, c: Self::F) -> Self::F {
        // Not f32::mul_add: without the instruction that is a call per number.
        std::array::from_fn(|i| a[i] * b[i] + c[i])
    }
    #[inline(always)]
    fn prefetch(self, _: *const u8) {}
}
