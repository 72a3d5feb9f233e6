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
//! | `Q4_K`, `Q5_K` | `d`, `-m`, 12 × 16 bytes of scales, fifth bits, 4 × 8 × 64 bytes | each 8 vectors: the lower halves a part of 32, the upper halves the next |
//! | `Q6_K` | 4 × 8 × 64 lower bits, 2 × 8 × 64 upper bits, `d`, 16 × 16 scales | as in a block |
//! | `Q2_K`, `Q3_K` | 2 × 8 × 64 bytes (`Q3_K`: 8 × 64 third bits), `d` (`-m`), 16 × 16 scales | as in a block |
//! | `IQ4_XS` | 8 × 4 × 64 bytes, `d`, 8 × 16 scales | as `IQ4_NL` |
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

    /// Packs the blocks of [`ROWS`] rows; what is not there (a row, the second of two blocks) stays as it is, zero.
    fn pack(blocks: [&[u8]; ROWS], unit: &mut [u8]);

    /// The groups of part `part` of a unit.
    fn elements<S: Lanes>(s: S, unit: &[u8], part: usize, half: usize) -> [S::I; 8];

    /// The scales of part `part` of a unit.
    fn scales<S: Lanes>(s: S, unit: &[u8], part: usize, half: usize) -> Scales<S::F>;
}

/// `N` bytes at a place of a unit.
#[inline(always)]
fn at<const N: usize>(unit: &[u8], place: usize) -> &[u8; N] {
    match unit[place..].first_chunk() {
        Some(bytes) => bytes,
        None => unreachable!("a unit has the length of its format"),
    }
}

/// The vectors from a place on.
#[inline(always)]
fn vectors<S: Lanes, const N: usize>(s: S, unit: &[u8], place: usize, half: usize) -> [S::I; N] {
    let mut vectors = [s.zero(); N];
    for v in 0..N {
        let bytes: &Bytes = at(unit, place + v * 64);
        vectors[v] = s.bytes(bytes, half);
    }
    vectors
}

/// The groups of 16 bytes a row: lower halves, then upper halves.
#[inline(always)]
fn nibbles<S: Lanes>(s: S, unit: &[u8], place: usize, half: usize) -> [S::I; 8] {
    let v: [S::I; 4] = vectors(s, unit, place, half);
    let mut groups = [s.zero(); 8];
    for g in 0..4 {
        groups[g] = s.and(v[g], 15);
        groups[g + 4] = s.shift_right(v[g], 4, 15);
    }
    groups
}

/// The f16 scale of one of two blocks.
#[inline(always)]
fn one<S: Lanes>(s: S, unit: &[u8], block: usize, half: usize) -> Scales<S::F> {
    let d = s.load_f16(at(unit, block * 2 * ROWS), half);
    Scales { scale: [d; 2], minimum: [d; 2] }
}

/// A scale and a minimum in f16, for all.
#[inline(always)]
fn two<S: Lanes>(s: S, unit: &[u8], half: usize) -> Scales<S::F> {
    let (d, m) = (s.load_f16(at(unit, 0), half), s.load_f16(at(unit, 32), half));
    Scales { scale: [d; 2], minimum: [m; 2] }
}

/// `d`, at `place`, times a signed byte for each 16 elements, behind it.
#[inline(always)]
fn signed_16<S: Lanes>(s: S, unit: &[u8], place: usize, part: usize, half: usize) -> Scales<S::F> {
    let d = s.load_f16(at(unit, place), half);
    let place = place + 2 * ROWS + 2 * part * ROWS;
    let scale = [
        s.mul(d, s.float(s.widen_signed(at(unit, place), half))),
        s.mul(d, s.float(s.widen_signed(at(unit, place + ROWS), half))),
    ];
    Scales { scale, minimum: scale }
}

/// The packed scales and minima of `Q4_K` and `Q5_K`, of 6 bits each, twelve bytes a row from byte 64 on.
#[inline(always)]
fn packed<S: Lanes>(s: S, unit: &[u8], part: usize, half: usize) -> Scales<S::F> {
    // The byte of a row that a part's scale is in: `first` is that of the first four's scales.
    let first = 64 + part % 4 * ROWS;
    let (scale, minimum) = if part < 4 {
        let (scale, minimum) = (s.widen(at(unit, first), half), s.widen(at(unit, first + 4 * ROWS), half));
        (s.and(scale, 63), s.and(minimum, 63))
    } else {
        let low = s.widen(at(unit, first + 8 * ROWS), half);
        let (high_scale, high_minimum) =
            (s.widen(at(unit, first), half), s.widen(at(unit, first + 4 * ROWS), half));
        let scale = s.or(s.and(low, 15), s.shift_left(s.shift_right(high_scale, 6, 3), 4, 3));
        let minimum = s.or(s.shift_right(low, 4, 15), s.shift_left(s.shift_right(high_minimum, 6, 3), 4, 3));
        (scale, minimum)
    };
    let scale = s.mul(s.load_f16(at(unit, 0), half), s.float(scale));
    let minimum = s.mul(s.load_f16(at(unit, 32), half), s.float(minimum));
    Scales { scale: [scale; 2], minimum: [minimum; 2] }
}

/// Bit `part` of eight vectors, as bit `to` of the elements.
#[inline(always)]
fn bit<S: Lanes>(s: S, vector: S::I, part: usize, to: u32) -> S::I {
    s.shift_left(s.shift_right(vector, part as u32, 1), to, 1)
}

/// Puts `from`, whole groups of one row, beside those of the other rows.
fn put(unit: &mut [u8], place: usize, row: usize, from: &[u8]) {
    let vectors = unit[place..].as_chunks_mut::<{ 4 * ROWS }>().0;
    for (vector, group) in vectors.iter_mut().zip(from.as_chunks::<4>().0) {
        vector[4 * row..4 * row + 4].copy_from_slice(group);
    }
}

/// Puts an f16 of one row beside those of the others.
fn put_f16(unit: &mut [u8], place: usize, row: usize, from: &[u8]) {
    unit[place + 2 * row..place + 2 * row + 2].copy_from_slice(&from[..2]);
}

/// The same, negative: what is taken away is added.
fn put_minus(unit: &mut [u8], place: usize, row: usize, from: &[u8]) {
    put_f16(unit, place, row, &[from[0], from[1] ^ 0x80]);
}

/// Puts single bytes of one row beside those of the others.
fn put_bytes(unit: &mut [u8], place: usize, row: usize, from: impl IntoIterator<Item = u8>) {
    for (i, byte) in from.into_iter().enumerate() {
        unit[place + i * ROWS + row] = byte;
    }
}

/// Puts the fifth bits of 32 elements, bit `j` that of element `j`, where bit `g` of a byte is that of its element of group `g`.
fn put_bits(unit: &mut [u8], place: usize, row: usize, bits: &[u8]) {
    for byte in 0..4 {
        let bit = |g: usize| (bits[g / 2] >> (g % 2 * 4 + byte) & 1) << g;
        unit[place + 4 * row + byte] = (0..8).map(bit).sum();
    }
}

/// The rows that are there.
fn rows(blocks: [&[u8]; ROWS]) -> impl Iterator<Item = (usize, &[u8])> {
    blocks.into_iter().enumerate().filter(|(_, block)| !block.is_empty())
}

/// The blocks that are there, of one or two of each row: row, which of the two, block.
fn pairs_of<'a>(blocks: [&'a [u8]; ROWS], len: usize) -> impl Iterator<Item = (usize, usize, &'a [u8])> {
    let row = move |(row, two): (usize, &'a [u8])| {
        two.chunks_exact(len).enumerate().map(move |(i, block)| (row, i, block))
    };
    blocks.into_iter().enumerate().flat_map(row)
}

macro_rules! format {
    ($name:ident, $bits:literal bits, offset $offset:expr, $block:literal bytes of $len:literal, unit $unit:literal
     $(, $flag:ident)*; $($methods:item)*) => {
        #[doc = concat!("[`DType::", stringify!($name), "`](llama_backend::DType).")]
        #[allow(non_camel_case_types, reason = "ggml's names")]
        pub(crate) struct $name;

        impl Elements for $name {
            const BITS: u32 = $bits;
            const SIGNED: bool = $bits == 8;
            const OFFSET_LOG2: Option<u32> = $offset;
        }

        impl Format for $name {
            const LEN: usize = $len;
            const BLOCK: usize = $block;
            const UNIT: usize = $unit;
            $(const $flag: bool = true;)*
            $($methods)*
        }
    };
}

format! { Q4_0, 4 bits, offset Some(3), 18 bytes of 64, unit 576;
    fn pack(blocks: [&[u8]; ROWS], unit: &mut [u8]) {
        for (row, i, block) in pairs_of(blocks, Self::BLOCK) {
            put_f16(unit, 32 * i, row, block);
            put(unit, 64 + 256 * i, row, &block[2..]);
        }
    }
    #[inline(always)]
    fn elements<S: Lanes>(s: S, unit: &[u8], part: usize, half: usize) -> [S::I; 8] {
        nibbles(s, unit, 64 + 256 * part, half)
    }
    #[inline(always)]
    fn scales<S: Lanes>(s: S, unit: &[u8], part: usize, half: usize) -> Scales<S::F> {
        one(s, unit, part, half)
    }
}

format! { Q4_1, 4 bits, offset None, 20 bytes of 32, unit 320, MINIMUM;
    fn pack(blocks: [&[u8]; ROWS], unit: &mut [u8]) {
        for (row, block) in rows(blocks) {
            put_f16(unit, 0, row, block);
            put_f16(unit, 32, row, &block[2..]);
            put(unit, 64, row, &block[4..]);
        }
    }
    #[inline(always)]
    fn elements<S: Lanes>(s: S, unit: &[u8], _: usize, half: usize) -> [S::I; 8] {
        nibbles(s, unit, 64, half)
    }
    #[inline(always)]
    fn scales<S: Lanes>(s: S, unit: &[u8], _: usize, half: usize) -> Scales<S::F> {
        two(s, unit, half)
    }
}

/// Four bits and a fifth, whose vector is before theirs.
#[inline(always)]
fn nibbles_and_bits<S: Lanes>(s: S, unit: &[u8], place: usize, half: usize) -> [S::I; 8] {
    let [fifth] = vectors(s, unit, place, half);
    let mut groups = nibbles(s, unit, place + 64, half);
    for g in 0..8 {
        groups[g] = s.or(groups[g], bit(s, fifth, g, 4));
    }
    groups
}

format! { Q5_0, 5 bits, offset Some(4), 22 bytes of 64, unit 704;
    fn pack(blocks: [&[u8]; ROWS], unit: &mut [u8]) {
        for (row, i, block) in pairs_of(blocks, Self::BLOCK) {
            put_f16(unit, 32 * i, row, block);
            put_bits(unit, 64 + 320 * i, row, &block[2..6]);
            put(unit, 128 + 320 * i, row, &block[6..]);
        }
    }
    #[inline(always)]
    fn elements<S: Lanes>(s: S, unit: &[u8], part: usize, half: usize) -> [S::I; 8] {
        nibbles_and_bits(s, unit, 64 + 320 * part, half)
    }
    #[inline(always)]
    fn scales<S: Lanes>(s: S, unit: &[u8], part: usize, half: usize) -> Scales<S::F> {
        one(s, unit, part, half)
    }
}

format! { Q5_1, 5 bits, offset None, 24 bytes of 32, unit 384, MINIMUM;
    fn pack(blocks: [&[u8]; ROWS], unit: &mut [u8]) {
        for (row, block) in rows(blocks) {
            put_f16(unit, 0, row, block);
            put_f16(unit, 32, row, &block[2..]);
            put_bits(unit, 64, row, &block[4..8]);
            put(unit, 128, row, &block[8..]);
        }
    }
    #[inline(always)]
    fn elements<S: Lanes>(s: S, unit: &[u8], _: usize, half: usize) -> [S::I; 8] {
        nibbles_and_bits(s, unit, 64, half)
    }
    #[inline(always)]
    fn scales<S: Lanes>(s: S, unit: &[u8], _: usize, half: usize) -> Scales<S::F> {
        two(s, unit, half)
    }
}

format! { Q8_0, 8 bits, offset None, 34 bytes of 64, unit 1088;
    fn pack(blocks: [&[u8]; ROWS], unit: &mut [u8]) {
        for (row, i, block) in pairs_of(blocks, Self::BLOCK) {
            put_f16(unit, 32 * i, row, block);
            put(unit, 64 + 512 * i, row, &block[2..]);
        }
    }
    #[inline(always)]
    fn elements<S: Lanes>(s: S, unit: &[u8], part: usize, half: usize) -> [S::I; 8] {
        let mut groups = vectors(s, unit, 64 + 512 * part, half);
        for group in &mut groups {
            *group = s.signed(*group);
        }
        groups
    }
    #[inline(always)]
    fn scales<S: Lanes>(s: S, unit: &[u8], part: usize, half: usize) -> Scales<S::F> {
        one(s, unit, part, half)
    }
}

/// What the elements of the `IQ4` types stand for.
#[inline(always)]
fn uneven<S: Lanes>(s: S, mut groups: [S::I; 8]) -> [S::I; 8] {
    for group in &mut groups {
        *group = s.signed(s.look_up(&UNEVEN, *group));
    }
    groups
}

format! { IQ4_NL, 8 bits, offset None, 18 bytes of 64, unit 576;
    fn pack(blocks: [&[u8]; ROWS], unit: &mut [u8]) {
        Q4_0::pack(blocks, unit);
    }
    #[inline(always)]
    fn elements<S: Lanes>(s: S, unit: &[u8], part: usize, half: usize) -> [S::I; 8] {
        uneven(s, nibbles(s, unit, 64 + 256 * part, half))
    }
    #[inline(always)]
    fn scales<S: Lanes>(s: S, unit: &[u8], part: usize, half: usize) -> Scales<S::F> {
        one(s, unit, part, half)
    }
}

format! { IQ4_XS, 8 bits, offset None, 136 bytes of 256, unit 2240;
    fn pack(blocks: [&[u8]; ROWS], unit: &mut [u8]) {
        for (row, block) in rows(blocks) {
            put_f16(unit, 2048, row, block);
            let scale = |part: usize| {
                let low = block[4 + part / 2] >> (part % 2 * 4) & 15;
                let high = block[2 + part / 4] >> (part % 4 * 2) & 3;
                (low | high << 4).wrapping_sub(32)
            };
            put_bytes(unit, 2080, row, (0..8).map(scale));
            put(unit, 0, row, &block[8..]);
        }
    }
    #[inline(always)]
    fn elements<S: Lanes>(s: S, unit: &[u8], part: usize, half: usize) -> [S::I; 8] {
        uneven(s, nibbles(s, unit, part * 256, half))
    }
    #[inline(always)]
    fn scales<S: Lanes>(s: S, unit: &[u8], part: usize, half: usize) -> Scales<S::F> {
        let d = s.load_f16(at(unit, 2048), half);
        let scale = s.mul(d, s.float(s.widen_signed(at(unit, 2080 + part * ROWS), half)));
        Scales { scale: [scale; 2], minimum: [scale; 2] }
    }
}

/// The groups of two bits of a part, of which four share eight vectors.
#[inline(always)]
fn pairs<S: Lanes>(s: S, unit: &[u8], place: usize, part: usize, half: usize) -> [S::I; 8] {
    let mut groups: [S::I; 8] = vectors(s, unit, place + part / 4 * 512, half);
    for group in &mut groups {
        *group = s.shift_right(*group, part as u32 % 4 * 2, 3);
    }
    groups
}

format! { Q2_K, 2 bits, offset None, 84 bytes of 256, unit 1344, BY_16, MINIMUM;
    fn pack(blocks: [&[u8]; ROWS], unit: &mut [u8]) {
        for (row, block) in rows(blocks) {
            put_f16(unit, 1024, row, &block[80..]);
            put_minus(unit, 1056, row, &block[82..]);
            put_bytes(unit, 1088, row, block[..16].iter().copied());
            put(unit, 0, row, &block[16..80]);
        }
    }
    #[inline(always)]
    fn elements<S: Lanes>(s: S, unit: &[u8], part: usize, half: usize) -> [S::I; 8] {
        pairs(s, unit, 0, part, half)
    }
    #[inline(always)]
    fn scales<S: Lanes>(s: S, unit: &[u8], part: usize, half: usize) -> Scales<S::F> {
        let (d, m) = (s.load_f16(at(unit, 1024), half), s.load_f16(at(unit, 1056), half));
        let (mut scale, mut minimum) = ([d; 2], [m; 2]);
        for i in 0..2 {
            let byte = s.widen(at(unit, 1088 + (2 * part + i) * ROWS), half);
            scale[i] = s.mul(d, s.float(s.and(byte, 15)));
            minimum[i] = s.mul(m, s.float(s.shift_right(byte, 4, 15)));
        }
        Scales { scale, minimum }
    }
}

format! { Q3_K, 3 bits, offset Some(2), 110 bytes of 256, unit 1856, BY_16;
    fn pack(blocks: [&[u8]; ROWS], unit: &mut [u8]) {
        for (row, block) in rows(blocks) {
            let (third, q, scales) = (&block[..32], &block[32..96], &block[96..108]);
            put_f16(unit, 1536, row, &block[108..]);
            let scale = |i: usize| {
                let (low, high) = (scales[i % 8] >> (i / 8 * 4) & 15, scales[8 + i % 4] >> (i / 4 * 2) & 3);
                (low | high << 4).wrapping_sub(32)
            };
            put_bytes(unit, 1568, row, (0..16).map(scale));
            put(unit, 0, row, q);
            put(unit, 1024, row, third);
        }
    }
    #[inline(always)]
    fn elements<S: Lanes>(s: S, unit: &[u8], part: usize, half: usize) -> [S::I; 8] {
        let mut groups = pairs(s, unit, 0, part, half);
        let third: [_; 8] = vectors(s, unit, 1024, half);
        for g in 0..8 {
            groups[g] = s.or(groups[g], bit(s, third[g], part, 2));
        }
        groups
    }
    #[inline(always)]
    fn scales<S: Lanes>(s: S, unit: &[u8], part: usize, half: usize) -> Scales<S::F> {
        signed_16(s, unit, 1536, part, half)
    }
}

/// The groups of a part of 32, of which two share eight vectors.
#[inline(always)]
fn shared<S: Lanes>(s: S, unit: &[u8], place: usize, upper: bool, half: usize) -> [S::I; 8] {
    let mut groups: [_; 8] = vectors(s, unit, place, half);
    for group in &mut groups {
        *group = if upper { s.shift_right(*group, 4, 15) } else { s.and(*group, 15) };
    }
    groups
}

format! { Q4_K, 4 bits, offset None, 144 bytes of 256, unit 2304, MINIMUM;
    fn pack(blocks: [&[u8]; ROWS], unit: &mut [u8]) {
        for (row, block) in rows(blocks) {
            put_f16(unit, 0, row, block);
            put_minus(unit, 32, row, &block[2..]);
            put_bytes(unit, 64, row, block[4..16].iter().copied());
            put(unit, 256, row, &block[16..]);
        }
    }
    #[inline(always)]
    fn elements<S: Lanes>(s: S, unit: &[u8], part: usize, half: usize) -> [S::I; 8] {
        shared(s, unit, 256 + part / 2 * 512, part % 2 == 1, half)
    }
    #[inline(always)]
    fn scales<S: Lanes>(s: S, unit: &[u8], part: usize, half: usize) -> Scales<S::F> {
        packed(s, unit, part, half)
    }
}

format! { Q5_K, 5 bits, offset None, 176 bytes of 256, unit 2816, MINIMUM;
    fn pack(blocks: [&[u8]; ROWS], unit: &mut [u8]) {
        for (row, block) in rows(blocks) {
            put_f16(unit, 0, row, block);
            put_minus(unit, 32, row, &block[2..]);
            put_bytes(unit, 64, row, block[4..16].iter().copied());
            put(unit, 256, row, &block[16..48]);
            put(unit, 768, row, &block[48..]);
        }
    }
    #[inline(always)]
    fn elements<S: Lanes>(s: S, unit: &[u8], part: usize, half: usize) -> [S::I; 8] {
        let fifth: [_; 8] = vectors(s, unit, 256, half);
        let mut groups = shared(s, unit, 768 + part / 2 * 512, part % 2 == 1, half);
        for g in 0..8 {
            groups[g] = s.or(groups[g], bit(s, fifth[g], part, 4));
        }
        groups
    }
    #[inline(always)]
    fn scales<S: Lanes>(s: S, unit: &[u8], part: usize, half: usize) -> Scales<S::F> {
        packed(s, unit, part, half)
    }
}

format! { Q6_K, 6 bits, offset Some(5), 210 bytes of 256, unit 3392, BY_16;
    fn pack(blocks: [&[u8]; ROWS], unit: &mut [u8]) {
        for (row, block) in rows(blocks) {
            put_f16(unit, 3072, row, &block[208..]);
            put_bytes(unit, 3104, row, block[192..208].iter().copied());
            put(unit, 0, row, &block[..128]);
            put(unit, 2048, row, &block[128..192]);
        }
    }
    #[inline(always)]
    fn elements<S: Lanes>(s: S, unit: &[u8], part: usize, half: usize) -> [S::I; 8] {
        let (part_of, quarter) = (part / 4, part % 4);
        let mut groups = shared(s, unit, (2 * part_of + quarter % 2) * 512, quarter >= 2, half);
        let high: [_; 8] = vectors(s, unit, 2048 + part_of * 512, half);
        for g in 0..8 {
            let high = s.shift_left(s.shift_right(high[g], 2 * quarter as u32, 3), 4, 3);
            groups[g] = s.or(groups[g], high);
        }
        groups
    }
    #[inline(always)]
    fn scales<S: Lanes>(s: S, unit: &[u8], part: usize, half: usize) -> Scales<S::F> {
        signed_16(s, unit, 3072, part, half)
    }
}
