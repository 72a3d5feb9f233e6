//! The formats whose blocks have 256 elements, and scales for parts of them.

use super::{
    Format, Scales, at, bit, nibble, nibble_and_bit, put, put_bits, put_bytes, put_f16, rows, uneven, vector,
};
use crate::kernels::quant::lanes::{Bytes, Elements, Lanes, ROWS};

/// `d`, in f16 at the beginning of a unit.
#[derive(Clone, Copy)]
pub(crate) struct D<F>(F);

impl<F: Copy> D<F> {
    #[inline(always)]
    fn read<S: Lanes<F = F>>(s: S, unit: &[u8]) -> Self {
        Self(s.load_f16(at(unit, 0)))
    }

    /// It times a signed byte for each 16 elements, behind it.
    #[inline(always)]
    fn times_bytes<S: Lanes<F = F>>(&self, s: S, unit: &[u8], part: usize) -> Scales<F> {
        let place = 2 * ROWS + 2 * part * ROWS;
        let scale = [
            s.mul(self.0, s.float(s.widen_signed(at(unit, place)))),
            s.mul(self.0, s.float(s.widen_signed(at(unit, place + ROWS)))),
        ];
        Scales { scale, minimum: scale }
    }
}

/// `d` and `-m`.
#[derive(Clone, Copy)]
pub(crate) struct DAndM<F>(F, F);

impl<F: Copy> DAndM<F> {
    #[inline(always)]
    fn read<S: Lanes<F = F>>(s: S, unit: &[u8]) -> Self {
        Self(s.load_f16(at(unit, 0)), s.load_f16(at(unit, 32)))
    }
}

/// The same with eight scales and eight minima of 6 bits each, which are packed in twelve bytes a row from byte 64 on.
#[derive(Clone, Copy)]
pub(crate) struct SixBits<F> {
    d_and_m: DAndM<F>,
    /// A byte each, part after part: four parts' scales, the others', four parts' minima, the others'.
    bytes: [Bytes; 4],
}

impl<F: Copy> SixBits<F> {
    #[inline(always)]
    fn read<S: Lanes<F = F>>(s: S, unit: &[u8]) -> Self {
        // Scales and minima of four parts; the two upper bits of these, and what is in `low`, are those of the others.
        let (scales, minima, low) = (vector(s, unit, 64, 0), vector(s, unit, 64, 1), vector(s, unit, 64, 2));
        let mut bytes = [[0; 4 * ROWS]; 4];
        s.store_bytes(s.and(scales, 63), &mut bytes[0]);
        s.store_bytes(s.or(s.and(low, 15), s.shift_right(scales, 2, 48)), &mut bytes[1]);
        s.store_bytes(s.and(minima, 63), &mut bytes[2]);
        s.store_bytes(s.or(s.shift_right(low, 4, 15), s.shift_right(minima, 2, 48)), &mut bytes[3]);
        Self { d_and_m: DAndM::read(s, unit), bytes }
    }

    #[inline(always)]
    fn scales<S: Lanes<F = F>>(&self, s: S, part: usize) -> Scales<F> {
        let bytes = self.bytes.as_flattened();
        let DAndM(d, m) = self.d_and_m;
        let scale = s.mul(d, s.float(s.widen(at(bytes, part * ROWS))));
        let minimum = s.mul(m, s.float(s.widen(at(bytes, (8 + part) * ROWS))));
        Scales { scale: [scale; 2], minimum: [minimum; 2] }
    }
}

/// Puts an f16 of one row, negative: what is taken away is added.
fn put_minus(unit: &mut [u8], place: usize, row: usize, from: &[u8]) {
    put_f16(unit, place, row, &[from[0], from[1] ^ 0x80]);
}

format! { IQ4_XS, 8 bits, offset None, 136 bytes of 256, unit 2240, common D, ALIKE;
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
    fn scales<S: Lanes>(s: S, unit: &[u8], &D(d): &D<S::F>, part: usize) -> Scales<S::F> {
        let scale = s.mul(d, s.float(s.widen_signed(at(unit, 32 + part * ROWS))));
        Scales { scale: [scale; 2], minimum: [scale; 2] }
    }
}

/// A group of two bits of a part, of which four share eight vectors.
#[inline(always)]
fn pair<S: Lanes>(s: S, unit: &[u8], place: usize, part: usize, g: usize) -> S::I {
    s.shift_right(vector(s, unit, place + part / 4 * 512, g), part as u32 % 4 * 2, 3)
}

format! { Q2_K, 2 bits, offset None, 84 bytes of 256, unit 1344, common DAndM, BY_16, MINIMUM;
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
    fn scales<S: Lanes>(s: S, unit: &[u8], &DAndM(d, m): &DAndM<S::F>, part: usize) -> Scales<S::F> {
        let (mut scale, mut minimum) = ([d; 2], [m; 2]);
        for i in 0..2 {
            let byte = s.widen(at(unit, 64 + (2 * part + i) * ROWS));
            scale[i] = s.mul(d, s.float(s.and(byte, 15)));
            minimum[i] = s.mul(m, s.float(s.shift_right(byte, 4, 15)));
        }
        Scales { scale, minimum }
    }
}

format! { Q3_K, 3 bits, offset Some(4.0), 110 bytes of 256, unit 1856, common D, BY_16;
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
    fn scales<S: Lanes>(s: S, unit: &[u8], d: &D<S::F>, part: usize) -> Scales<S::F> {
        d.times_bytes(s, unit, part)
    }
}

/// The scales' bytes of `Q4_K` and `Q5_K`, which begin alike.
fn put_six_bits(unit: &mut [u8], row: usize, block: &[u8]) {
    put_f16(unit, 0, row, block);
    put_minus(unit, 32, row, &block[2..]);
    put_bytes(unit, 64, row, block[4..16].iter().copied());
}

/// Four bits of the elements of a part, which are the lower or the upper halves of 32 bytes, as those of 16 bytes.
fn nibbles(q: &[u8], part: usize) -> [u8; 16] {
    let of_two = &q[part / 2 * 32..][..32];
    let four = |i: usize| of_two[i] >> (part % 2 * 4) & 15;
    std::array::from_fn(|i| four(i) | four(16 + i) << 4)
}

format! { Q4_K, 4 bits, offset None, 144 bytes of 256, unit 2304, common SixBits, MINIMUM, ALIKE;
    fn pack(blocks: [&[u8]; ROWS], unit: &mut [u8]) {
        for (row, block) in rows(blocks) {
            put_six_bits(unit, row, block);
            for part in 0..8 {
                put(unit, 256 + 256 * part, row, &nibbles(&block[16..], part));
            }
        }
    }
    #[inline(always)]
    fn group<S: Lanes>(s: S, unit: &[u8], part: usize, g: usize) -> S::I {
        nibble(s, unit, 256 + 256 * part, g)
    }
    #[inline(always)]
    fn scales<S: Lanes>(s: S, _: &[u8], bits: &SixBits<S::F>, part: usize) -> Scales<S::F> {
        bits.scales(s, part)
    }
}

format! { Q5_K, 5 bits, offset None, 176 bytes of 256, unit 2816, common SixBits, MINIMUM, ALIKE;
    fn pack(blocks: [&[u8]; ROWS], unit: &mut [u8]) {
        for (row, block) in rows(blocks) {
            let (fifth, q) = (&block[16..48], &block[48..]);
            put_six_bits(unit, row, block);
            for part in 0..8 {
                let bits: [u8; 4] =
                    std::array::from_fn(|i| (0..8).map(|j| (fifth[8 * i + j] >> part & 1) << j).sum());
                put_bits(unit, 256 + 320 * part, row, &bits);
                put(unit, 320 + 320 * part, row, &nibbles(q, part));
            }
        }
    }
    #[inline(always)]
    fn group<S: Lanes>(s: S, unit: &[u8], part: usize, g: usize) -> S::I {
        nibble_and_bit(s, unit, 256 + 320 * part, g)
    }
    #[inline(always)]
    fn scales<S: Lanes>(s: S, _: &[u8], bits: &SixBits<S::F>, part: usize) -> Scales<S::F> {
        bits.scales(s, part)
    }
}

format! { Q6_K, 6 bits, offset Some(32.0), 210 bytes of 256, unit 3392, common D, BY_16, ALIKE;
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
    fn scales<S: Lanes>(s: S, unit: &[u8], d: &D<S::F>, part: usize) -> Scales<S::F> {
        d.times_bytes(s, unit, part)
    }
}
