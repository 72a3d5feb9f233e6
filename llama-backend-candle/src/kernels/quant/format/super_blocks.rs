//! The formats whose blocks have 256 elements, and scales for parts of them.

use super::{Format, Scales, at, bit, half, nibble, put, put_bytes, put_f16, rows, uneven, vector};
use crate::kernels::quant::lanes::{Elements, Lanes, ROWS};

/// `d` times a signed byte for each 16 elements, behind it.
#[inline(always)]
fn signed_16<S: Lanes>(s: S, unit: &[u8], part: usize) -> Scales<S::F> {
    let d = s.load_f16(at(unit, 0));
    let place = 2 * ROWS + 2 * part * ROWS;
    let scale = [
        s.mul(d, s.float(s.widen_signed(at(unit, place)))),
        s.mul(d, s.float(s.widen_signed(at(unit, place + ROWS)))),
    ];
    Scales { scale, minimum: scale }
}

/// The packed scales and minima of `Q4_K` and `Q5_K`, of 6 bits each, twelve bytes a row from byte 64 on.
#[inline(always)]
fn packed<S: Lanes>(s: S, unit: &[u8], part: usize) -> Scales<S::F> {
    // The byte of a row that a part's scale is in: `first` is that of the first four's scales.
    let first = 64 + part % 4 * ROWS;
    let (scale, minimum) = if part < 4 {
        let (scale, minimum) = (s.widen(at(unit, first)), s.widen(at(unit, first + 4 * ROWS)));
        (s.and(scale, 63), s.and(minimum, 63))
    } else {
        let low = s.widen(at(unit, first + 8 * ROWS));
        let (high_scale, high_minimum) = (s.widen(at(unit, first)), s.widen(at(unit, first + 4 * ROWS)));
        let scale = s.or(s.and(low, 15), s.shift_left(s.shift_right(high_scale, 6, 3), 4, 3));
        let minimum = s.or(s.shift_right(low, 4, 15), s.shift_left(s.shift_right(high_minimum, 6, 3), 4, 3));
        (scale, minimum)
    };
    let scale = s.mul(s.load_f16(at(unit, 0)), s.float(scale));
    let minimum = s.mul(s.load_f16(at(unit, 32)), s.float(minimum));
    Scales { scale: [scale; 2], minimum: [minimum; 2] }
}

/// The same, negative: what is taken away is added.
fn put_minus(unit: &mut [u8], place: usize, row: usize, from: &[u8]) {
    put_f16(unit, place, row, &[from[0], from[1] ^ 0x80]);
}

format! { IQ4_XS, 8 bits, offset None, 136 bytes of 256, unit 2240;
    fn pack(blocks: [&[u8]; ROWS], unit: &mut [u8]) {
        for (row, block) in rows(blocks) {
            put_f16(unit, 0, row, block);
            let scale = |part: usize| {
                let low = block[4 + part / 2] >> (part % 2 * 4) & 15;
                let high = block[2 + part / 4] >> (part % 4 * 2) & 3;
                (low | high << 4).wrapping_sub(32)
            };
            put_bytes(unit, 32, row, (0..8).map(scale));
            put(unit, 192, row, &block[8..]);
        }
    }
    #[inline(always)]
    fn group<S: Lanes>(s: S, unit: &[u8], part: usize, g: usize) -> S::I {
        uneven(s, nibble(s, unit, 192 + part * 256, g))
    }
    #[inline(always)]
    fn scales<S: Lanes>(s: S, unit: &[u8], part: usize) -> Scales<S::F> {
        let d = s.load_f16(at(unit, 0));
        let scale = s.mul(d, s.float(s.widen_signed(at(unit, 32 + part * ROWS))));
        Scales { scale: [scale; 2], minimum: [scale; 2] }
    }
}

/// A group of two bits of a part, of which four share eight vectors.
#[inline(always)]
fn pair<S: Lanes>(s: S, unit: &[u8], place: usize, part: usize, g: usize) -> S::I {
    s.shift_right(vector(s, unit, place + part / 4 * 512, g), part as u32 % 4 * 2, 3)
}

format! { Q2_K, 2 bits, offset None, 84 bytes of 256, unit 1344, BY_16, MINIMUM;
    fn pack(blocks: [&[u8]; ROWS], unit: &mut [u8]) {
        for (row, block) in rows(blocks) {
            put_f16(unit, 0, row, &block[80..]);
            put_minus(unit, 32, row, &block[82..]);
            put_bytes(unit, 64, row, block[..16].iter().copied());
            put(unit, 320, row, &block[16..80]);
        }
    }
    #[inline(always)]
    fn group<S: Lanes>(s: S, unit: &[u8], part: usize, g: usize) -> S::I {
        pair(s, unit, 320, part, g)
    }
    #[inline(always)]
    fn scales<S: Lanes>(s: S, unit: &[u8], part: usize) -> Scales<S::F> {
        let (d, m) = (s.load_f16(at(unit, 0)), s.load_f16(at(unit, 32)));
        let (mut scale, mut minimum) = ([d; 2], [m; 2]);
        for i in 0..2 {
            let byte = s.widen(at(unit, 64 + (2 * part + i) * ROWS));
            scale[i] = s.mul(d, s.float(s.and(byte, 15)));
            minimum[i] = s.mul(m, s.float(s.shift_right(byte, 4, 15)));
        }
        Scales { scale, minimum }
    }
}

format! { Q3_K, 3 bits, offset Some(4.0), 110 bytes of 256, unit 1856, BY_16;
    fn pack(blocks: [&[u8]; ROWS], unit: &mut [u8]) {
        for (row, block) in rows(blocks) {
            let (third, q, scales) = (&block[..32], &block[32..96], &block[96..108]);
            put_f16(unit, 0, row, &block[108..]);
            let scale = |i: usize| {
                let (low, high) = (scales[i % 8] >> (i / 8 * 4) & 15, scales[8 + i % 4] >> (i / 4 * 2) & 3);
                (low | high << 4).wrapping_sub(32)
            };
            put_bytes(unit, 32, row, (0..16).map(scale));
            put(unit, 320, row, third);
            put(unit, 832, row, q);
        }
    }
    #[inline(always)]
    fn group<S: Lanes>(s: S, unit: &[u8], part: usize, g: usize) -> S::I {
        s.or(pair(s, unit, 832, part, g), bit(s, vector(s, unit, 320, g), part, 2))
    }
    #[inline(always)]
    fn scales<S: Lanes>(s: S, unit: &[u8], part: usize) -> Scales<S::F> {
        signed_16(s, unit, part)
    }
}

/// A group of a part of 32, of which two share eight vectors.
#[inline(always)]
fn shared<S: Lanes>(s: S, unit: &[u8], place: usize, upper: bool, g: usize) -> S::I {
    half(s, vector(s, unit, place, g), upper)
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
    fn group<S: Lanes>(s: S, unit: &[u8], part: usize, g: usize) -> S::I {
        shared(s, unit, 256 + part / 2 * 512, part % 2 == 1, g)
    }
    #[inline(always)]
    fn scales<S: Lanes>(s: S, unit: &[u8], part: usize) -> Scales<S::F> {
        packed(s, unit, part)
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
    fn group<S: Lanes>(s: S, unit: &[u8], part: usize, g: usize) -> S::I {
        let four = shared(s, unit, 768 + part / 2 * 512, part % 2 == 1, g);
        s.or(four, bit(s, vector(s, unit, 256, g), part, 4))
    }
    #[inline(always)]
    fn scales<S: Lanes>(s: S, unit: &[u8], part: usize) -> Scales<S::F> {
        packed(s, unit, part)
    }
}

format! { Q6_K, 6 bits, offset Some(32.0), 210 bytes of 256, unit 3392, BY_16, ALIKE;
    fn pack(blocks: [&[u8]; ROWS], unit: &mut [u8]) {
        for (row, block) in rows(blocks) {
            let (lower, upper) = (&block[..128], &block[128..192]);
            put_f16(unit, 0, row, &block[208..]);
            put_bytes(unit, 32, row, block[192..208].iter().copied());
            for part in 0..8 {
                let (half, quarter) = (part / 4, part % 4);
                let six: [u8; 32] = std::array::from_fn(|i| {
                    let lower = lower[64 * half + quarter % 2 * 32 + i] >> (quarter / 2 * 4) & 15;
                    lower | (upper[32 * half + i] >> (2 * quarter) & 3) << 4
                });
                for (i, groups) in six.as_chunks::<16>().0.iter().enumerate() {
                    // Three of four groups, and of each byte of the fourth two bits beside each of theirs.
                    let bytes: [u8; 12] =
                        std::array::from_fn(|j| groups[j] | (groups[12 + j % 4] >> (j / 4 * 2)) << 6);
                    put(unit, 320 + 384 * part + 192 * i, row, &bytes);
                }
            }
        }
    }
    #[inline(always)]
    fn group<S: Lanes>(s: S, unit: &[u8], part: usize, g: usize) -> S::I {
        let place = 320 + 384 * part + g / 4 * 192;
        if g % 4 < 3 {
            return s.and(vector(s, unit, place, g % 4), 63);
        }
        let first = s.shift_right(vector(s, unit, place, 0), 6, 3);
        let second = s.shift_right(vector(s, unit, place, 1), 4, 12);
        s.or(s.or(first, second), s.shift_right(vector(s, unit, place, 2), 2, 48))
    }
    #[inline(always)]
    fn scales<S: Lanes>(s: S, unit: &[u8], part: usize) -> Scales<S::F> {
        signed_16(s, unit, part)
    }
}
