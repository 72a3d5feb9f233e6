//! Blocks of 256 elements, in parts of 16 or 32 that have scales of few bits of their own, relative to the block's.

use super::half_at;
use super::simple::UNEVEN;

pub(super) const LEN: usize = 256;

/// 16 bytes of (scale, minimum) of 4 bits each, 64 bytes of `q`, `d`, `m`: `d · scale · q - m · minimum`, a scale for 16 elements.
///
/// Each half of the block is 32 bytes of `q`: elements 0..32 are bits 0 and 1 of them, 32..64 bits 2 and 3, and on.
pub(super) fn q2_k(block: &[u8; 84], out: &mut [f32; LEN]) {
    let (scales, q) = (&block[..16], &block[16..80]);
    let (d, m) = (half_at(block, 80), half_at(block, 82));
    for (part, out) in out.as_chunks_mut::<16>().0.iter_mut().enumerate() {
        let scale = d * f32::from(scales[part] & 0xf);
        let minimum = m * f32::from(scales[part] >> 4);
        let (half, shift) = (part / 8, part % 8 / 2 * 2);
        let q = &q[half * 32 + part % 2 * 16..];
        for (out, q) in out.iter_mut().zip(q) {
            *out = scale * f32::from(q >> shift & 3) - minimum;
        }
    }
}

/// 32 bytes of third bits, 64 bytes of `q` as in [`q2_k`], 12 bytes of scales, `d`: `d · (scale - 32) · q`, a scale for 16
/// elements. The third bit of element `32 · i + j` is bit `i` of byte `j`; where it is 0, `q` is 4 less.
///
/// Scale `i` has its lower four bits in the nibbles of bytes 0..8 (those of the upper eight scales in the upper nibbles), its
/// upper two in bytes 8..12.
pub(super) fn q3_k(block: &[u8; 110], out: &mut [f32; LEN]) {
    let (third, q, scales) = (&block[..32], &block[32..96], &block[96..108]);
    let d = half_at(block, 108);
    for (part, out) in out.as_chunks_mut::<16>().0.iter_mut().enumerate() {
        let low = scales[part % 8] >> (part / 8 * 4) & 0xf;
        let high = scales[8 + part % 4] >> (part / 4 * 2) & 3;
        let scale = d * (i32::from(low | high << 4) - 32) as f32;
        let (half, shift, first) = (part / 8, part % 8 / 2 * 2, part % 2 * 16);
        let (q, third) = (&q[half * 32 + first..], &third[first..]);
        for ((out, q), third) in out.iter_mut().zip(q).zip(third) {
            let less = if third >> (part / 2) & 1 == 1 { 0 } else { 4 };
            *out = scale * (i32::from(q >> shift & 3) - less) as f32;
        }
    }
}

/// Scale and minimum `i` of the eight that `q4_K` and `q5_K` pack in 12 bytes, 6 bits each.
///
/// The first four are the lower six bits of bytes 0..4 and 4..8. The others have their lower four bits in the nibbles of bytes 8..12,
/// and their upper two in what the first left free.
pub(super) fn packed(scales: &[u8], i: usize) -> (u8, u8) {
    match i {
        0..4 => (scales[i] & 63, scales[i + 4] & 63),
        _ => {
            let scale = scales[i + 4] & 0xf | scales[i - 4] >> 6 << 4;
            let minimum = scales[i + 4] >> 4 | scales[i] >> 6 << 4;
            (scale, minimum)
        }
    }
}

/// `d`, `m`, 12 bytes of [packed] scales and minima, 128 bytes of `q`: `d · scale · q - m · minimum`, a scale for 32 elements.
///
/// Each 32 bytes of `q` are 64 elements: the lower halves the first 32, the upper halves the others.
pub(super) fn q4_k(block: &[u8; 144], out: &mut [f32; LEN]) {
    let (d, m) = (half_at(block, 0), half_at(block, 2));
    let (scales, q) = (&block[4..16], &block[16..]);
    for (part, out) in out.as_chunks_mut::<32>().0.iter_mut().enumerate() {
        let (scale, minimum) = packed(scales, part);
        let (scale, minimum) = (d * f32::from(scale), m * f32::from(minimum));
        let q = &q[part / 2 * 32..];
        for (out, q) in out.iter_mut().zip(q) {
            *out = scale * f32::from(q >> (part % 2 * 4) & 0xf) - minimum;
        }
    }
}

/// As [`q4_k`], with 32 bytes of fifth bits before `q`: that of element `32 · i + j` is bit `i` of byte `j`.
pub(super) fn q5_k(block: &[u8; 176], out: &mut [f32; LEN]) {
    let (d, m) = (half_at(block, 0), half_at(block, 2));
    let (scales, fifth, q) = (&block[4..16], &block[16..48], &block[48..]);
    for (part, out) in out.as_chunks_mut::<32>().0.iter_mut().enumerate() {
        let (scale, minimum) = packed(scales, part);
        let (scale, minimum) = (d * f32::from(scale), m * f32::from(minimum));
        let q = &q[part / 2 * 32..];
        for ((out, q), fifth) in out.iter_mut().zip(q).zip(fifth) {
            let q = q >> (part % 2 * 4) & 0xf | (fifth >> part & 1) << 4;
            *out = scale * f32::from(q) - minimum;
        }
    }
}

/// 128 bytes of lower four bits, 64 bytes of upper two, 16 signed scales, `d`: `d · scale · (q - 32)`, a scale for 16 elements.
///
/// Each half of the block is 64 bytes of lower bits and 32 of upper. Of its four quarters the first two have their lower bits
/// in the lower halves of bytes 0..32 and 32..64, the last two in the upper halves; quarter `i` has bits `2 · i` of the upper bytes.
pub(super) fn q6_k(block: &[u8; 210], out: &mut [f32; LEN]) {
    let (low, high, scales) = (&block[..128], &block[128..192], &block[192..208]);
    let d = half_at(block, 208);
    for (part, out) in out.as_chunks_mut::<16>().0.iter_mut().enumerate() {
        let scale = d * f32::from(scales[part] as i8);
        let (half, quarter, first) = (part / 8, part % 8 / 2, part % 2 * 16);
        let low = &low[half * 64 + quarter % 2 * 32 + first..];
        let high = &high[half * 32 + first..];
        for ((out, low), high) in out.iter_mut().zip(low).zip(high) {
            let q = low >> (quarter / 2 * 4) & 0xf | (high >> (quarter * 2) & 3) << 4;
            *out = scale * (i32::from(q) - 32) as f32;
        }
    }
}

/// `d`, 2 bytes of the scales' upper two bits, 4 bytes of their lower four, 128 bytes of `q`: `d · (scale - 32) · UNEVEN[q]`, a scale
/// for 32 elements, whose 16 bytes are as in the blocks of 32.
pub(super) fn iq4_xs(block: &[u8; 136], out: &mut [f32; LEN]) {
    let d = half_at(block, 0);
    let high = u16::from_le_bytes([block[2], block[3]]);
    let (low, q) = (&block[4..8], &block[8..]);
    for (part, (out, q)) in out.as_chunks_mut::<32>().0.iter_mut().zip(q.as_chunks::<16>().0).enumerate() {
        let low = low[part / 2] >> (part % 2 * 4) & 0xf;
        let scale = i32::from(low) | i32::from(high >> (part * 2) & 3) << 4;
        let scale = d * (scale - 32) as f32;
        for (j, q) in q.iter().enumerate() {
            out[j] = scale * f32::from(UNEVEN[usize::from(q & 0xf)]);
            out[j + 16] = scale * f32::from(UNEVEN[usize::from(q >> 4)]);
        }
    }
}
