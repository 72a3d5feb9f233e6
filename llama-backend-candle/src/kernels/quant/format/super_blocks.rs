//! The formats whose blocks have 256 elements, and scales for parts of them.

use super::{Format, Scales, at, bit, nibbles, put, put_bytes, put_f16, rows, uneven, vectors};
use crate::kernels::quant::lanes::{Elements, Lanes, ROWS};

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

/// The same, negative: what is taken away is added.
fn put_minus(unit: &mut [u8], place: usize, row: usize, from: &[u8]) {
    put_f16(unit, place, row, &[from[0], from[1] ^ 0x80]);
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
