//! From ggml's blocks to those of the engine's `MatMulNBits`, weight by weight the same numbers.
//!
//! The engine multiplies blocks of 16 or 32 whole numbers of 4 or 8 bits, each with a scale in f32. All of ggml's types can be said so:
//! what a type has more of is multiplied out (a scale of 6 bits with that of its block, to the f32 that ggml makes of them), what has
//! another width takes the next wider one, and uneven steps are whole numbers of 8 bits. What is left is a *minimum*, which a block has
//! subtracted from all of its weights; it is a product of its own, with the sums of the activations of each block:
//!
//! `Σ (scale · q - minimum) · x = Σ scale · (q - middle) · x - (minimum - middle · scale) · Σ x`
//!
//! The middle of what `q` can be is moved to the minimum, since the engine rounds activations: what that costs is in proportion to `q`, and
//! least where `q` lies around 0.
//!
//! Zero points of the engine's would say minimums too, but only whole ones are fast, and those would not be the same numbers.
//!
//! Shapes: a matrix is `[n_out, n_in]`; `q: [n_out, n_in / len, len * bits / 8]`, `scales`, `minimums`: `[n_out, n_in / len]`.

use half::f16;
use llama_backend::DType;

/// How the engine is told a type.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Layout {
    /// Bits of a number: 4 or 8.
    pub(crate) bits: usize,
    /// Numbers of a block of the engine's, a part of ggml's: 16 or 32.
    pub(crate) len: usize,
    /// Whether there are minimums.
    pub(crate) has_minimums: bool,
}

impl Layout {
    /// How a type is told; `None` for one that has no blocks.
    pub(crate) fn of(dtype: DType) -> Option<Self> {
        let (bits, len, has_minimums) = match dtype {
            DType::Q4_0 => (4, 32, false),
            DType::Q4_1 | DType::Q4_K => (4, 32, true),
            DType::Q5_0 | DType::Q8_0 | DType::IQ4_NL | DType::IQ4_XS => (8, 32, false),
            DType::Q5_1 | DType::Q5_K => (8, 32, true),
            DType::Q2_K => (4, 16, true),
            DType::Q3_K => (4, 16, false),
            DType::Q6_K => (8, 16, false),
            _ => return None,
        };
        Some(Self { bits, len, has_minimums })
    }

    /// The bytes of so many weights as the engine keeps them: beside the numbers and the minimums, a block's scale, the copy of it that is packed
    /// with the numbers, and the sum that the engine makes of them.
    pub(crate) fn n_bytes(self, n: u128) -> u128 {
        let numbers = n.saturating_mul(self.bits as u128) / 8;
        let floats = if self.has_minimums { 4 } else { 3 };
        numbers.saturating_add(n.div_ceil(self.len as u128).saturating_mul(4 * floats))
    }
}

/// Numbers of the longest block.
const LONGEST: usize = 256;
/// Parts of a block, at most.
const PARTS: usize = 16;
/// What the 4 bits of the `iq4` types stand for.
const UNEVEN: [i8; 16] = [-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113];

/// A block, read: `scales[part] · q - minimums[part]`, where `q` may lie around its middle already.
struct Read {
    q: [i8; LONGEST],
    scales: [f32; PARTS],
    minimums: [f32; PARTS],
}

/// Where the blocks of a matrix go.
pub(crate) struct Repacked<'a> {
    pub(crate) q: &'a mut [u8],
    pub(crate) scales: &'a mut [f32],
    /// Empty where the type has none.
    pub(crate) minimums: &'a mut [f32],
}

/// Repacks whole blocks of a type that has a [`Layout`], on so many threads; of any other, nothing is written. The buffers are as long as
/// the shapes above.
pub(crate) fn repack(dtype: DType, bytes: &[u8], out: Repacked<'_>, n_threads: usize) {
    /// Blocks below which a thread is not worth its start.
    const LEAST: usize = 1 << 12;
    let Some(layout) = Layout::of(dtype) else { return };
    let parts = dtype.block_len() / layout.len;
    let each = (bytes.len() / dtype.size()).div_ceil(n_threads.max(1)).max(LEAST);
    let n_parts = bytes.len().div_ceil(each * dtype.size());
    let mut minimums = out.minimums.chunks_mut(each * parts);
    std::thread::scope(|scope| {
        let q = out.q.chunks_mut(each * dtype.block_len() * layout.bits / 8);
        let rest = q.zip(out.scales.chunks_mut(each * parts));
        for (i, (bytes, (q, scales))) in bytes.chunks(each * dtype.size()).zip(rest).enumerate() {
            let part = Repacked { q, scales, minimums: minimums.next().unwrap_or_default() };
            let work = move || repack_part(dtype, layout, bytes, part);
            // The last is this thread's own.
            if i + 1 < n_parts { drop(scope.spawn(work)) } else { work() }
        }
    });
}

/// Repacks blocks one after the other.
fn repack_part(dtype: DType, layout: Layout, bytes: &[u8], out: Repacked<'_>) {
    let (n, parts) = (dtype.block_len(), dtype.block_len() / layout.len);
    let mut read = Read { q: [0; LONGEST], scales: [0.0; PARTS], minimums: [0.0; PARTS] };
    let mut minimums = out.minimums.chunks_exact_mut(parts);
    let blocks = bytes.chunks_exact(dtype.size()).zip(out.q.chunks_exact_mut(n * layout.bits / 8));
    for ((block, q), scales) in blocks.zip(out.scales.chunks_exact_mut(parts)) {
        read.block(dtype, block);
        scales.copy_from_slice(&read.scales[..parts]);
        if let Some(minimums) = minimums.next() {
            minimums.copy_from_slice(&read.minimums[..parts]);
        }
        // The engine's own zero: 8 of 16, or 128 of 256.
        if layout.bits == 8 {
            for (out, q) in q.iter_mut().zip(&read.q) {
                *out = (*q as u8) ^ 0x80;
            }
        } else {
            for (out, [low, high]) in q.iter_mut().zip(read.q.as_chunks::<2>().0) {
                *out = (low + 8) as u8 | ((high + 8) as u8) << 4;
            }
        }
    }
}

impl Read {
    /// Reads one block, whose layout [`llama_backend::quant`] describes.
    fn block(&mut self, dtype: DType, block: &[u8]) {
        match dtype {
            DType::Q4_0 => self.nibbles(half_at(block, 0), &block[2..], |_, q| q as i8 - 8),
            DType::Q4_1 => {
                self.nibbles(half_at(block, 0), &block[4..], |_, q| q as i8 - 8);
                self.minimum(0, -half_at(block, 2), 8.0);
            }
            DType::Q5_0 => {
                let fifth = fifth_bits(block, 2);
                self.nibbles(half_at(block, 0), &block[6..], |j, q| with_fifth(q, fifth >> j) - 16);
            }
            DType::Q5_1 => {
                let fifth = fifth_bits(block, 4);
                self.nibbles(half_at(block, 0), &block[8..], |j, q| with_fifth(q, fifth >> j) - 16);
                self.minimum(0, -half_at(block, 2), 16.0);
            }
            DType::Q8_0 => {
                self.scales[0] = half_at(block, 0);
                self.part(0, 32, |j| block[2 + j] as i8);
            }
            DType::IQ4_NL => {
                self.nibbles(half_at(block, 0), &block[2..], |_, q| UNEVEN[usize::from(q)]);
            }
            DType::IQ4_XS => self.iq4_xs(block),
            DType::Q2_K => self.q2_k(block),
            DType::Q3_K => self.q3_k(block),
            DType::Q4_K => self.q45_k(block, &block[16..], |_, _, q| q as i8 - 8, 8.0),
            DType::Q5_K => {
                let fifth = &block[16..48];
                let q5 = |part, j: usize, q| with_fifth(q, u32::from(fifth[j]) >> part) - 16;
                self.q45_k(block, &block[48..], q5, 16.0);
            }
            DType::Q6_K => self.q6_k(block),
            _ => {}
        }
    }

    /// The numbers of a part.
    fn part(&mut self, part: usize, len: usize, q: impl Fn(usize) -> i8) {
        for (j, out) in self.q[part * len..(part + 1) * len].iter_mut().enumerate() {
            *out = q(j);
        }
    }

    /// The minimum of a part whose numbers were moved down by `middle`.
    fn minimum(&mut self, part: usize, minimum: f32, middle: f32) {
        self.minimums[part] = minimum - middle * self.scales[part];
    }

    /// A block of 32: element `j` in the lower half of byte `j`, element `j + 16` in the upper half.
    fn nibbles(&mut self, scale: f32, bytes: &[u8], q: impl Fn(usize, u8) -> i8) {
        self.scales[0] = scale;
        self.part(0, 32, |j| q(j, nibble(bytes[j % 16], j / 16)));
    }

    fn q2_k(&mut self, block: &[u8]) {
        let (d, m) = (half_at(block, 80), half_at(block, 82));
        for part in 0..16 {
            let (scale, q) = (block[part], &block[16 + part / 8 * 32 + part % 2 * 16..]);
            self.scales[part] = d * f32::from(scale & 0xf);
            self.minimum(part, m * f32::from(scale >> 4), 2.0);
            self.part(part, 16, |j| (q[j] >> (part % 8 / 2 * 2) & 3) as i8 - 2);
        }
    }

    fn q3_k(&mut self, block: &[u8]) {
        let (third, q, scales) = (&block[..32], &block[32..96], &block[96..108]);
        let d = half_at(block, 108);
        for part in 0..16 {
            let low = nibble(scales[part % 8], part / 8);
            let high = scales[8 + part % 4] >> (part / 4 * 2) & 3;
            self.scales[part] = d * (i32::from(low | high << 4) - 32) as f32;
            let (q, third) = (&q[part / 8 * 32 + part % 2 * 16..], &third[part % 2 * 16..]);
            self.part(part, 16, |j| {
                let low = q[j] >> (part % 8 / 2 * 2) & 3;
                (low | (third[j] >> (part / 2) & 1) << 2) as i8 - 4
            });
        }
    }

    /// `q4_K` and `q5_K`: a number is made of its part, its place in it and its lower four bits.
    fn q45_k(&mut self, block: &[u8], low: &[u8], q: impl Fn(usize, usize, u8) -> i8, middle: f32) {
        let (d, m, scales) = (half_at(block, 0), half_at(block, 2), &block[4..16]);
        for part in 0..8 {
            let (scale, minimum) = match part {
                0..4 => (scales[part] & 63, scales[part + 4] & 63),
                _ => (
                    scales[part + 4] & 0xf | scales[part - 4] >> 6 << 4,
                    scales[part + 4] >> 4 | scales[part] >> 6 << 4,
                ),
            };
            self.scales[part] = d * f32::from(scale);
            self.minimum(part, m * f32::from(minimum), middle);
            let low = &low[part / 2 * 32..];
            self.part(part, 32, |j| q(part, j, nibble(low[j], part % 2)));
        }
    }

    fn q6_k(&mut self, block: &[u8]) {
        let (low, high, scales) = (&block[..128], &block[128..192], &block[192..208]);
        let d = half_at(block, 208);
        for (part, &scale) in scales.iter().enumerate() {
            self.scales[part] = d * f32::from(scale as i8);
            let (half, quarter, first) = (part / 8, part % 8 / 2, part % 2 * 16);
            let (low, high) = (&low[half * 64 + quarter % 2 * 32 + first..], &high[half * 32 + first..]);
            self.part(part, 16, |j| {
                (nibble(low[j], quarter / 2) | (high[j] >> (quarter * 2) & 3) << 4) as i8 - 32
            });
        }
    }

    fn iq4_xs(&mut self, block: &[u8]) {
        let d = half_at(block, 0);
        let high = u16::from_le_bytes([block[2], block[3]]);
        let (low, q) = (&block[4..8], &block[8..]);
        for part in 0..8 {
            let scale = i32::from(nibble(low[part / 2], part % 2)) | i32::from(high >> (part * 2) & 3) << 4;
            self.scales[part] = d * (scale - 32) as f32;
            let q = &q[part * 16..];
            self.part(part, 32, |j| UNEVEN[usize::from(nibble(q[j % 16], j / 16))]);
        }
    }
}

/// The lower or the upper half of a byte.
fn nibble(byte: u8, half: usize) -> u8 {
    byte >> (half * 4) & 0xf
}

/// Four bits, and a fifth that is the lowest of `fifth`.
fn with_fifth(low: u8, fifth: u32) -> i8 {
    (low | (fifth as u8 & 1) << 4) as i8
}

/// The fifth bits of a block of 32, bit `j` that of element `j`.
fn fifth_bits(block: &[u8], at: usize) -> u32 {
    u32::from_le_bytes([block[at], block[at + 1], block[at + 2], block[at + 3]])
}

fn half_at(block: &[u8], at: usize) -> f32 {
    f16::from_le_bytes([block[at], block[at + 1]]).to_f32()
}

#[cfg(test)]
mod tests {
    use llama_backend::quant::dequantize;
    use llama_backend::testing::Rng;

    use super::*;

    /// Blocks of any bits, whose halves are finite numbers.
    fn blocks(dtype: DType, n: usize) -> Vec<u8> {
        let mut rng = Rng::new(7);
        let mut out = Vec::new();
        while out.len() < n * dtype.size() {
            let block: Vec<u8> = (0..dtype.size()).map(|_| rng.next_u64() as u8).collect();
            let mut read = vec![0.0; dtype.block_len()];
            dequantize(dtype, &block, &mut read).unwrap();
            if read.iter().all(|x| x.is_finite()) {
                out.extend(block);
            }
        }
        out
    }

    /// What the engine's documentation says that its blocks mean, and beside it how large the terms are.
    fn meant(layout: Layout, q: &[u8], scales: &[f32], minimums: &[f32]) -> Vec<(f32, f32)> {
        let number = |i: usize| match layout.bits {
            8 => i32::from(q[i]) - 128,
            _ => i32::from(q[i / 2] >> (i % 2 * 4) & 0xf) - 8,
        };
        let weight = |i: usize| {
            let minimum = minimums.get(i / layout.len).copied().unwrap_or(0.0);
            let product = scales[i / layout.len] * number(i) as f32;
            (product - minimum, product.abs().max(minimum.abs()).max(scales[i / layout.len].abs() * 16.0))
        };
        (0..scales.len() * layout.len).map(weight).collect()
    }

    #[test]
    fn every_type_keeps_its_numbers() {
        for &dtype in DType::ALL {
            let Some(layout) = Layout::of(dtype) else {
                assert!(!dtype.is_quantized(), "{dtype}");
                continue;
            };
            let bytes = blocks(dtype, 64);
            let mut expected = vec![0.0; 64 * dtype.block_len()];
            dequantize(dtype, &bytes, &mut expected).unwrap();
            let n_parts = expected.len() / layout.len;
            let (mut q, mut scales) = (vec![0; expected.len() * layout.bits / 8], vec![0.0; n_parts]);
            let mut minimums = vec![0.0; if layout.has_minimums { n_parts } else { 0 }];
            let out = Repacked { q: &mut q, scales: &mut scales, minimums: &mut minimums };
            repack(dtype, &bytes, out, 2);
            for (i, (found, expected)) in
                meant(layout, &q, &scales, &minimums).into_iter().zip(&expected).enumerate()
            {
                // A minimum that was moved is rounded once, and so is the sum; all else is equal to the bit.
                let rounded = if layout.has_minimums { found.1 * 2.0 * f32::EPSILON } else { 0.0 };
                let apart = (found.0 - expected).abs();
                assert!(apart <= rounded, "{dtype} {i}: {} and not {expected}", found.0);
            }
        }
    }
}
