//! The formats whose blocks have 32 elements.

use std::marker::PhantomData;

use super::{Format, Scales, at, nibble, nibble_and_bit, put, put_bits, put_f16, rows, uneven, vector};
use crate::kernels::quant::lanes::{Elements, Lanes, ROWS};

/// Scales have nothing in common.
#[derive(Clone, Copy)]
pub(crate) struct Nothing<F>(PhantomData<F>);

impl<F> Nothing<F> {
    #[inline(always)]
    fn read<S: Lanes<F = F>>(_: S, _: &[u8]) -> Self {
        Self(PhantomData)
    }
}

/// The f16 scale of one of two blocks.
#[inline(always)]
fn one<S: Lanes>(s: S, unit: &[u8], block: usize) -> Scales<S::F> {
    let d = s.load_f16(at(unit, block * 2 * ROWS));
    Scales { scale: [d; 2], minimum: [d; 2] }
}

/// A scale and a minimum in f16, for all.
#[inline(always)]
fn two<S: Lanes>(s: S, unit: &[u8]) -> Scales<S::F> {
    let (d, m) = (s.load_f16(at(unit, 0)), s.load_f16(at(unit, 32)));
    Scales { scale: [d; 2], minimum: [m; 2] }
}

/// The blocks that are there, of one or two of each row: row, which of the two, block.
fn pairs_of<'a>(blocks: [&'a [u8]; ROWS], len: usize) -> impl Iterator<Item = (usize, usize, &'a [u8])> {
    let row = move |(row, two): (usize, &'a [u8])| {
        two.chunks_exact(len).enumerate().map(move |(i, block)| (row, i, block))
    };
    blocks.into_iter().enumerate().flat_map(row)
}

format! { Q4_0, 4 bits, offset Some(8.0), 18 bytes of 64, unit 576, common Nothing;
    fn pack(blocks: [&[u8]; ROWS], unit: &mut [u8]) {
        for (row, i, block) in pairs_of(blocks, Self::BLOCK) {
            put_f16(unit, 32 * i, row, block);
            put(unit, 64 + 256 * i, row, &block[2..]);
        }
    }
    #[inline(always)]
    fn group<S: Lanes>(s: S, unit: &[u8], part: usize, g: usize) -> S::I {
        nibble(s, unit, 64 + 256 * part, g)
    }
    #[inline(always)]
    fn scales<S: Lanes>(s: S, unit: &[u8], _: &Nothing<S::F>, part: usize) -> Scales<S::F> {
        one(s, unit, part)
    }
}

format! { Q4_1, 4 bits, offset None, 20 bytes of 32, unit 320, common Nothing, MINIMUM;
    fn pack(blocks: [&[u8]; ROWS], unit: &mut [u8]) {
        for (row, block) in rows(blocks) {
            put_f16(unit, 0, row, block);
            put_f16(unit, 32, row, &block[2..]);
            put(unit, 64, row, &block[4..]);
        }
    }
    #[inline(always)]
    fn group<S: Lanes>(s: S, unit: &[u8], _: usize, g: usize) -> S::I {
        nibble(s, unit, 64, g)
    }
    #[inline(always)]
    fn scales<S: Lanes>(s: S, unit: &[u8], _: &Nothing<S::F>, _: usize) -> Scales<S::F> {
        two(s, unit)
    }
}

format! { Q5_0, 5 bits, offset Some(16.0), 22 bytes of 64, unit 704, common Nothing;
    fn pack(blocks: [&[u8]; ROWS], unit: &mut [u8]) {
        for (row, i, block) in pairs_of(blocks, Self::BLOCK) {
            put_f16(unit, 32 * i, row, block);
            put_bits(unit, 64 + 320 * i, row, &block[2..6]);
            put(unit, 128 + 320 * i, row, &block[6..]);
        }
    }
    #[inline(always)]
    fn group<S: Lanes>(s: S, unit: &[u8], part: usize, g: usize) -> S::I {
        nibble_and_bit(s, unit, 64 + 320 * part, g)
    }
    #[inline(always)]
    fn scales<S: Lanes>(s: S, unit: &[u8], _: &Nothing<S::F>, part: usize) -> Scales<S::F> {
        one(s, unit, part)
    }
}

format! { Q5_1, 5 bits, offset None, 24 bytes of 32, unit 384, common Nothing, MINIMUM;
    fn pack(blocks: [&[u8]; ROWS], unit: &mut [u8]) {
        for (row, block) in rows(blocks) {
            put_f16(unit, 0, row, block);
            put_f16(unit, 32, row, &block[2..]);
            put_bits(unit, 64, row, &block[4..8]);
            put(unit, 128, row, &block[8..]);
        }
    }
    #[inline(always)]
    fn group<S: Lanes>(s: S, unit: &[u8], _: usize, g: usize) -> S::I {
        nibble_and_bit(s, unit, 64, g)
    }
    #[inline(always)]
    fn scales<S: Lanes>(s: S, unit: &[u8], _: &Nothing<S::F>, _: usize) -> Scales<S::F> {
        two(s, unit)
    }
}

format! { Q8_0, 8 bits, offset None, 34 bytes of 64, unit 1088, common Nothing;
    fn pack(blocks: [&[u8]; ROWS], unit: &mut [u8]) {
        for (row, i, block) in pairs_of(blocks, Self::BLOCK) {
            put_f16(unit, 32 * i, row, block);
            put(unit, 64 + 512 * i, row, &block[2..]);
        }
    }
    #[inline(always)]
    fn group<S: Lanes>(s: S, unit: &[u8], part: usize, g: usize) -> S::I {
        s.signed(vector(s, unit, 64 + 512 * part, g))
    }
    #[inline(always)]
    fn scales<S: Lanes>(s: S, unit: &[u8], _: &Nothing<S::F>, part: usize) -> Scales<S::F> {
        one(s, unit, part)
    }
}

format! { IQ4_NL, 8 bits, offset None, 18 bytes of 64, unit 576, common Nothing;
    fn pack(blocks: [&[u8]; ROWS], unit: &mut [u8]) {
        Q4_0::pack(blocks, unit);
    }
    #[inline(always)]
    fn group<S: Lanes>(s: S, unit: &[u8], part: usize, g: usize) -> S::I {
        uneven(s, nibble(s, unit, 64 + 256 * part, g))
    }
    #[inline(always)]
    fn scales<S: Lanes>(s: S, unit: &[u8], _: &Nothing<S::F>, part: usize) -> Scales<S::F> {
        one(s, unit, part)
    }
}
