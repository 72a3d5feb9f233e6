//! Blocks of 32 elements, each with a scale of its own.
//!
//! Elements of 4 bits lie in 16 bytes: element `j` in the lower half of byte `j`, element `j + 16` in the upper half.

use super::half_at;

const LEN: usize = 32;

/// What the 4 bits of the `iq4` types stand for.
pub const UNEVEN: [i8; 16] = [-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113];

/// Reads the 4-bit elements in the last 16 bytes of a block, each by its place.
fn nibbles<const BYTES: usize>(block: &[u8; BYTES], out: &mut [f32; LEN], value: impl Fn(usize, u8) -> f32) {
    const HALF: usize = LEN / 2;
    let (low, high) = out.split_at_mut(HALF);
    for (j, ((low, high), byte)) in low.iter_mut().zip(high).zip(&block[BYTES - HALF..]).enumerate() {
        *low = value(j, byte & 0xf);
        *high = value(j + HALF, byte >> 4);
    }
}

/// `d`, 16 bytes of `q`: `d · (q - 8)`.
pub(super) fn q4_0(block: &[u8; 18], out: &mut [f32; LEN]) {
    let d = half_at(block, 0);
    nibbles(block, out, |_, q| (i32::from(q) - 8) as f32 * d);
}

/// `d`, `m`, 16 bytes of `q`: `d · q + m`.
pub(super) fn q4_1(block: &[u8; 20], out: &mut [f32; LEN]) {
    let (d, m) = (half_at(block, 0), half_at(block, 2));
    nibbles(block, out, |_, q| f32::from(q) * d + m);
}

/// The fifth bits of all elements, bit `j` that of element `j`, in the four bytes from `at` on.
fn fifth_bits(block: &[u8], at: usize) -> u32 {
    u32::from_le_bytes([block[at], block[at + 1], block[at + 2], block[at + 3]])
}

/// `d`, the fifth bits, 16 bytes of the lower four: `d · (q - 16)`.
pub(super) fn q5_0(block: &[u8; 22], out: &mut [f32; LEN]) {
    let (d, high) = (half_at(block, 0), fifth_bits(block, 2));
    nibbles(block, out, |j, low| {
        let q = u32::from(low) | (high >> j & 1) << 4;
        (q as i32 - 16) as f32 * d
    });
}

/// `d`, `m`, the fifth bits, 16 bytes of the lower four: `d · q + m`.
pub(super) fn q5_1(block: &[u8; 24], out: &mut [f32; LEN]) {
    let (d, m, high) = (half_at(block, 0), half_at(block, 2), fifth_bits(block, 4));
    nibbles(block, out, |j, low| {
        let q = u32::from(low) | (high >> j & 1) << 4;
        q as f32 * d + m
    });
}

/// `d`, 32 signed bytes: `d · q`.
pub(super) fn q8_0(block: &[u8; 34], out: &mut [f32; LEN]) {
    let d = half_at(block, 0);
    for (&q, out) in block[2..].iter().zip(out) {
        *out = f32::from(q as i8) * d;
    }
}

/// `d`, 16 bytes of `q`: `d · UNEVEN[q]`.
pub(super) fn iq4_nl(block: &[u8; 18], out: &mut [f32; LEN]) {
    let d = half_at(block, 0);
    nibbles(block, out, |_, q| d * f32::from(UNEVEN[usize::from(q)]));
}
