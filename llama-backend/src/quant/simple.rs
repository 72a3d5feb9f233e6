//! Blocks of 32 elements, each with a scale of its own.
//!
//! Elements of 4 bits lie in 16 bytes: element `j` in the lower half of byte `j`, element `j + 16` in the upper half.

use super::half_at;

const LEN: usize = 32;

/// What the 4 bits of the `iq4` types stand for.
pub(super) const UNEVEN: [i8; 16] =
    [-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113];

/// The 4-bit elements in the last 16 bytes of a block, `q[0]`, `q[16]`, `q[1]`, `q[17]` and on, each with its place.
fn nibbles(block: &[u8]) -> impl Iterator<Item = (usize, u8)> + '_ {
    let bytes = block[block.len() - LEN / 2..].iter().enumerate();
    bytes.flat_map(|(j, byte)| [(j, byte & 0xf), (j + LEN / 2, byte >> 4)])
}

/// `d`, 16 bytes of `q`: `d · (q - 8)`.
pub(super) fn q4_0(block: &[u8; 18], out: &mut [f32; LEN]) {
    let d = half_at(block, 0);
    for (j, q) in nibbles(block) {
        out[j] = (i32::from(q) - 8) as f32 * d;
    }
}

/// `d`, `m`, 16 bytes of `q`: `d · q + m`.
pub(super) fn q4_1(block: &[u8; 20], out: &mut [f32; LEN]) {
    let (d, m) = (half_at(block, 0), half_at(block, 2));
    for (j, q) in nibbles(block) {
        out[j] = f32::from(q) * d + m;
    }
}

/// The fifth bits of all elements, bit `j` that of element `j`, in the four bytes from `at` on.
fn fifth_bits(block: &[u8], at: usize) -> u32 {
    u32::from_le_bytes([block[at], block[at + 1], block[at + 2], block[at + 3]])
}

/// `d`, the fifth bits, 16 bytes of the lower four: `d · (q - 16)`.
pub(super) fn q5_0(block: &[u8; 22], out: &mut [f32; LEN]) {
    let (d, high) = (half_at(block, 0), fifth_bits(block, 2));
    for (j, low) in nibbles(block) {
        let q = i32::from(low) | ((high >> j & 1) << 4) as i32;
        out[j] = (q - 16) as f32 * d;
    }
}

/// `d`, `m`, the fifth bits, 16 bytes of the lower four: `d · q + m`.
pub(super) fn q5_1(block: &[u8; 24], out: &mut [f32; LEN]) {
    let (d, m, high) = (half_at(block, 0), half_at(block, 2), fifth_bits(block, 4));
    for (j, low) in nibbles(block) {
        let q = u32::from(low) | (high >> j & 1) << 4;
        out[j] = q as f32 * d + m;
    }
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
    for (j, q) in nibbles(block) {
        out[j] = d * f32::from(UNEVEN[usize::from(q)]);
    }
}
