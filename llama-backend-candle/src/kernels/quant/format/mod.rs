//! ggml's block formats for sixteen rows at once: how a *unit* (a block of each of [`ROWS`] rows) is packed, and how it is read.
//!
//! A unit has the bits of its blocks and little more: four bytes of each row beside each other, as the kernels multiply them, and
//! scales, row beside row. Elements are grouped by the bit that they have in a byte, so that a shift and a mask give a vector of them.
//! Vectors begin at lines of cache, for which two blocks share a unit where one does not fill whole lines.
//!
//! | | unit | elements |
//! |---|---|---|
//! | `Q4_0`, `IQ4_NL` (two blocks), `Q4_1`, `Q5_0` (two), `Q5_1` | `d` (`m`), fifth bits, 4 × 64 bytes each | the lower halves of vector `v` are group `v`, the upper ones group `v + 4` |
//! | `Q8_0` (two) | `d`, 8 × 64 bytes each | vector `v` is group `v` |
//! | `Q4_K`, `Q5_K` | `d`, `-m`, 12 × 16 bytes of scales, 8 × (fifth bits, 4 × 64 bytes) | each part of 32 as in `Q4_0` |
//! | `Q6_K` | `d`, 16 × 16 scales, 8 × 2 × 3 × 64 bytes | each three vectors: the lower six bits three groups, the upper two a third of the next |
//! | `Q2_K`, `Q3_K` | `d` (`-m`), 16 × 16 scales, third bits, 2 × 8 × 64 bytes | as in a block |
//! | `IQ4_XS` | `d`, 8 × 16 scales, 8 × 4 × 64 bytes | as `IQ4_NL` |
//!
//! What a part reads lies after what the parts before it read, or little before: memory is asked for what is ahead (`panel.rs`).
//!
//! A group is four consecutive elements, of which a part of 32 has eight. The scales of `Q3_K` and `IQ4_XS` are a byte each, and theirs and
//! `Q6_K`'s units are filled up to whole lines, which makes them 5 %, 3 % and 1 % larger than their blocks.

use llama_backend::quant::UNEVEN;

use super::lanes::{Bytes, Elements, Lanes, ROWS};

/// What the elements of a part of 32 are multiplied with: `scale · q + minimum`, each for 16 of them, or the first for all.
pub(crate) struct Scales<F> {
    pub(crate) scale: [F; 2],
    pub(crate) minimum: [F; 2],
}

/// A block format.
pub(crate) trait Format: Elements {
    /// The elements of a row in a unit.
    const LEN: usize;
    /// The bytes of a block.
    const BLOCK: usize;
    /// The blocks of a row in a unit.
    const BLOCKS: usize = if Self::LEN == 64 { 2 } else { 1 };
    /// The bytes of a unit, whole lines of cache.
    const UNIT: usize;
    /// A scale is for 16 elements, not for 32.
    const BY_16: bool = false;
    /// There are minima.
    const MINIMUM: bool = false;
    /// The parts of a unit lie alike, so that one code reads them all.
    const ALIKE: bool = false;

    /// Packs the blocks of [`ROWS`] rows; what is not there (a row, the second of two blocks) stays as it is, zero.
    fn pack(blocks: [&[u8]; ROWS], unit: &mut [u8]);

    /// Group `g` of part `part` of a unit.
    fn group<S: Lanes>(s: S, unit: &[u8], part: usize, g: usize) -> S::I;

    /// What the scales of all parts of a unit are made of, read once for all of them.
    type Common<F: Copy>: Copy;
    fn common<S: Lanes>(s: S, unit: &[u8]) -> Self::Common<S::F>;

    /// The scales of part `part` of a unit.
    fn scales<S: Lanes>(s: S, unit: &[u8], common: &Self::Common<S::F>, part: usize) -> Scales<S::F>;
}

/// `N` bytes at a place of a unit.
#[inline(always)]
fn at<const N: usize>(unit: &[u8], place: usize) -> &[u8; N] {
    match unit[place..].first_chunk() {
        Some(bytes) => bytes,
        None => unreachable!("a unit has the length of its format"),
    }
}

/// Vector `v` of those from a place on.
#[inline(always)]
fn vector<S: Lanes>(s: S, unit: &[u8], place: usize, v: usize) -> S::I {
    let bytes: &Bytes = at(unit, place + v * 64);
    s.bytes(bytes)
}

/// A group of 16 bytes a row: lower halves, then upper halves.
#[inline(always)]
fn nibble<S: Lanes>(s: S, unit: &[u8], place: usize, g: usize) -> S::I {
    let both = vector(s, unit, place, g % 4);
    if g < 4 { s.and(both, 15) } else { s.shift_right(both, 4, 15) }
}

/// Bit `part` of eight vectors, as bit `to` of the elements.
#[inline(always)]
fn bit<S: Lanes>(s: S, vector: S::I, part: usize, to: u32) -> S::I {
    s.shift_left(s.shift_right(vector, part as u32, 1), to, 1)
}

/// Four bits and a fifth, whose vector is before theirs.
#[inline(always)]
fn nibble_and_bit<S: Lanes>(s: S, unit: &[u8], place: usize, g: usize) -> S::I {
    let fifth = vector(s, unit, place, 0);
    s.or(nibble(s, unit, place + 64, g), bit(s, fifth, g, 4))
}

/// Puts `from`, whole groups of one row, beside those of the other rows.
fn put(unit: &mut [u8], place: usize, row: usize, from: &[u8]) {
    let vectors = unit[place..].as_chunks_mut::<{ 4 * ROWS }>().0;
    for (vector, group) in vectors.iter_mut().zip(from.as_chunks::<4>().0) {
        vector[4 * row..4 * row + 4].copy_from_slice(group);
    }
}

/// Puts the fifth bits of 32 elements, bit `j` that of element `j`, where bit `g` of a byte is that of its element of group `g`.
fn put_bits(unit: &mut [u8], place: usize, row: usize, bits: &[u8]) {
    for byte in 0..4 {
        let bit = |g: usize| (bits[g / 2] >> (g % 2 * 4 + byte) & 1) << g;
        unit[place + 4 * row + byte] = (0..8).map(bit).sum();
    }
}

/// Puts an f16 of one row beside those of the others.
fn put_f16(unit: &mut [u8], place: usize, row: usize, from: &[u8]) {
    unit[place + 2 * row..place + 2 * row + 2].copy_from_slice(&from[..2]);
}

/// Puts single bytes of one row beside those of the others.
fn put_bytes(unit: &mut [u8], place: usize, row: usize, from: impl IntoIterator<Item = u8>) {
    for (i, byte) in from.into_iter().enumerate() {
        unit[place + i * ROWS + row] = byte;
    }
}

/// The rows that are there.
fn rows(blocks: [&[u8]; ROWS]) -> impl Iterator<Item = (usize, &[u8])> {
    blocks.into_iter().enumerate().filter(|(_, block)| !block.is_empty())
}

/// What elements of the `IQ4` types stand for.
#[inline(always)]
fn uneven<S: Lanes>(s: S, group: S::I) -> S::I {
    s.signed(s.look_up(&UNEVEN, group))
}

macro_rules! format {
    ($name:ident, $bits:literal bits, offset $offset:expr, $block:literal bytes of $len:literal, unit $unit:literal, common $common:ident
     $(, $flag:ident)*; $($methods:item)*) => {
        #[doc = concat!("[`DType::", stringify!($name), "`](llama_backend::DType).")]
        #[allow(non_camel_case_types, reason = "ggml's names")]
        pub(crate) struct $name;

        impl Elements for $name {
            const BITS: u32 = $bits;
            const SIGNED: bool = $bits == 8;
            const OFFSET: Option<f32> = $offset;
        }

        impl Format for $name {
            const LEN: usize = $len;
            const BLOCK: usize = $block;
            const UNIT: usize = $unit;
            $(const $flag: bool = true;)*
            type Common<F: Copy> = $common<F>;
            #[inline(always)]
            fn common<S: Lanes>(s: S, unit: &[u8]) -> $common<S::F> {
                $common::read(s, unit)
            }
            $($methods)*
        }
    };
}

mod blocks;
mod super_blocks;

pub(crate) use blocks::*;
pub(crate) use super_blocks::*;
