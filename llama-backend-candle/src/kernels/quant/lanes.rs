//! What a kernel on quantised weights may do with sixteen rows of a matrix at once, on whatever the processor has.
//!
//! A vector holds one 32-bit lane for each row: four consecutive elements of the row as bytes, or a sum, a scale, a product. Sixteen
//! rows are one vector of 64 bytes, or two *halves* on processors whose vectors have 32. As in [`simd`](crate::kernels::simd), a kernel is
//! written once and compiled for each instruction set, and a value of a type is the proof that the processor has its instructions.
//!
//! Sums of products of integers are exact, so that instruction sets differ only in how they add the f32 scaled sums.

use std::fmt::Debug;

use half::f16;

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
    /// The power of two that an unsigned element is too large by, as its exponent; `None` where it is not.
    const OFFSET_LOG2: Option<u32>;
}

/// An instruction set, on [`ROWS`] lanes in [`HALVES`](Self::HALVES).
pub(crate) trait Lanes: Copy + Debug {
    /// Vectors for [`ROWS`] rows.
    const HALVES: usize;
    /// Rows of activations that are multiplied at a time, as registers allow: up to 8.
    const TILE: usize;
    /// Up to so many rows, a panel is read as it is packed; for more, unpacking it first pays.
    const DIRECT: usize;
    /// Bytes, or 32-bit integers.
    type I: Copy;
    /// f32.
    type F: Copy;

    /// Zeros, to begin an array with.
    ///
    /// Kernels fill arrays in loops: a closure that is not inlined is compiled for the plain processor, and many times slower.
    fn zero(self) -> Self::I;
    /// A half of the bytes as they are stored.
    fn bytes(self, from: &Bytes, half: usize) -> Self::I;
    fn store_bytes(self, bytes: Self::I, to: &mut Bytes, half: usize);
    /// A byte for each row, widened.
    fn widen(self, from: &[u8; ROWS], half: usize) -> Self::I;
    /// A signed byte for each row, widened.
    fn widen_signed(self, from: &[u8; ROWS], half: usize) -> Self::I;
    /// `a & mask`, in every byte.
    fn and(self, a: Self::I, mask: u8) -> Self::I;
    /// `(a >> n) & mask`, in every byte.
    fn shift_right(self, a: Self::I, n: u32, mask: u8) -> Self::I;
    /// `(a & mask) << n`, in every byte.
    fn shift_left(self, a: Self::I, n: u32, mask: u8) -> Self::I;
    fn or(self, a: Self::I, b: Self::I) -> Self::I;
    /// `table[a]` in every byte; each is below 16.
    fn look_up(self, table: &[i8; 16], a: Self::I) -> Self::I;
    /// Signed bytes as [`dot`](Self::dot) wants them.
    fn signed(self, a: Self::I) -> Self::I;
    /// For each row, the sum of the products of its elements and those of `x`, of which four belong to each of `w`.
    ///
    /// `minus_sum` is the negative sum of those of `x`.
    fn dot<E: Elements, const G: usize>(self, w: &[Self::I; G], x: &[[i8; 4]; G], minus_sum: i32) -> Self::I;

    /// Integers as f32.
    fn float(self, a: Self::I) -> Self::F;
    fn splat(self, x: f32) -> Self::F;
    fn load(self, from: &[f32; ROWS], half: usize) -> Self::F;
    fn load_f16(self, from: &[u8; 2 * ROWS], half: usize) -> Self::F;
    fn store(self, v: Self::F, to: &mut [f32; ROWS], half: usize);
    fn mul(self, a: Self::F, b: Self::F) -> Self::F;
    /// `a * b + c`.
    fn mul_add(self, a: Self::F, b: Self::F, c: Self::F) -> Self::F;
    /// Asks for a line of memory that will be read soon.
    fn prefetch(self, line: *const u8);
}

/// Code to be compiled for each instruction set.
pub(crate) trait IntKernel {
    /// Must be `#[inline(always)]`: its code takes the instruction set of the function that it is inlined into.
    fn run<S: Lanes>(self, s: S);
}

/// Plain Rust: for every processor, and what the others are compared with.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Scalar;

/// A lane's four bytes.
fn each(a: [u32; ROWS], f: impl Fn(u8) -> u8) -> [u32; ROWS] {
    a.map(|lane| u32::from_le_bytes(lane.to_le_bytes().map(&f)))
}

impl Lanes for Scalar {
    const HALVES: usize = 1;
    const TILE: usize = 4;
    const DIRECT: usize = 2;
    type I = [u32; ROWS];
    type F = [f32; ROWS];

    #[inline(always)]
    fn zero(self) -> Self::I {
        [0; ROWS]
    }
    #[inline(always)]
    fn bytes(self, from: &Bytes, _: usize) -> Self::I {
        let (lanes, _) = from.as_chunks::<4>();
        std::array::from_fn(|i| u32::from_le_bytes(lanes[i]))
    }
    #[inline(always)]
    fn store_bytes(self, bytes: Self::I, to: &mut Bytes, _: usize) {
        for (to, lane) in to.as_chunks_mut::<4>().0.iter_mut().zip(bytes) {
            *to = lane.to_le_bytes();
        }
    }
    #[inline(always)]
    fn widen(self, from: &[u8; ROWS], _: usize) -> Self::I {
        from.map(u32::from)
    }
    #[inline(always)]
    fn widen_signed(self, from: &[u8; ROWS], _: usize) -> Self::I {
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
    fn look_up(self, table: &[i8; 16], a: Self::I) -> Self::I {
        each(a, |a| table[usize::from(a & 15)] as u8)
    }
    #[inline(always)]
    fn signed(self, a: Self::I) -> Self::I {
        a
    }
    #[inline(always)]
    fn dot<E: Elements, const G: usize>(self, w: &[Self::I; G], x: &[[i8; 4]; G], minus_sum: i32) -> Self::I {
        let offset = E::OFFSET_LOG2.map_or(0, |log2| minus_sum << log2);
        std::array::from_fn(|row| {
            let mut sum = offset;
            for (w, x) in w.iter().zip(x) {
                for (w, x) in w[row].to_le_bytes().into_iter().zip(x) {
                    let w = if E::SIGNED { i32::from(w as i8) } else { i32::from(w) };
                    sum += w * i32::from(*x);
                }
            }
            sum as u32
        })
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
    fn load(self, from: &[f32; ROWS], _: usize) -> Self::F {
        *from
    }
    #[inline(always)]
    fn load_f16(self, from: &[u8; 2 * ROWS], _: usize) -> Self::F {
        let (halves, _) = from.as_chunks::<2>();
        std::array::from_fn(|i| f16::from_le_bytes(halves[i]).to_f32())
    }
    #[inline(always)]
    fn store(self, v: Self::F, to: &mut [f32; ROWS], _: usize) {
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
