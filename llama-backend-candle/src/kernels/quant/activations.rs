//! Activations as bytes: each 32 of a row with a scale of their own.
//!
//! A block knows its row alone, so that a row's result cannot depend on its batch. A block and what is known of it fill a line of cache.
//!
//! Blocks lie chunk after chunk of some rows' columns, and within a chunk row after row: what is multiplied together lies together. Whole
//! rows lie a power of two apart in most models, where the same column of each falls on the same few lines of a cache.

use std::ops::Range;

use super::lanes::{Lanes, Quads};

/// The elements of a block.
pub(crate) const LEN: usize = 32;
/// The blocks of a row in a chunk: as many parts of a panel, unpacked, with a few rows of activations, fill half of the first cache.
/// Whole blocks of every type.
pub(crate) const PARTS: usize = 16;

/// Rows of blocks for each row of activations.
pub(super) fn rows_of_each(fine: bool) -> usize {
    1 + usize::from(fine)
}

/// Rows of blocks: `[k / LEN / PARTS][rows][PARTS]`, of the last chunk perhaps fewer parts.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Arranged<'a> {
    pub(super) blocks: &'a [Block],
    /// Twice as many as there are activations, where they are fine: each row is followed by what rounding took from it.
    pub(super) rows: usize,
    pub(super) fine: bool,
}

impl<'a> Arranged<'a> {
    /// How many parts a row has.
    pub(super) fn parts(&self) -> usize {
        self.blocks.len() / self.rows.max(1)
    }

    /// The parts of a row, as chunks have them.
    pub(super) fn chunks(&self) -> impl Iterator<Item = Range<usize>> + use<> {
        let parts = self.parts();
        (0..parts).step_by(PARTS).map(move |from| from..parts.min(from + PARTS))
    }

    /// A chunk of some rows.
    pub(super) fn of(&self, rows: Range<usize>, chunk: &Range<usize>) -> &'a [Block] {
        let before = chunk.start * self.rows + rows.start * chunk.len();
        &self.blocks[before..][..rows.len() * chunk.len()]
    }
}

/// 32 activations: `scale · q`.
#[derive(Debug, Clone, Copy)]
#[repr(C, align(64))]
pub(crate) struct Block {
    /// Groups of four, as the kernels take them. Within -127..=127.
    pub(crate) q: Quads,
    pub(crate) scale: f32,
    /// The negative sum of `q`, of its first half and of its second half: whole numbers.
    pub(crate) minus_sum: [f32; 3],
    /// `scale` times the sum of `q`, of its first half and of its second half.
    pub(crate) sum: [f32; 3],
}

impl Block {
    /// Before it is written.
    pub(crate) const EMPTY: Self =
        Self { q: [[0; 4]; LEN / 4], scale: 0.0, minus_sum: [0.0; 3], sum: [0.0; 3] };

    /// Rounds 32 numbers to the nearest of 255 steps, the largest to ±127.
    ///
    /// A number that is not finite makes the scale NaN, and with it every product: it is not hidden.
    #[inline(always)]
    pub(crate) fn quantize<S: Lanes>(s: S, x: &[f32; LEN]) -> Self {
        let max = s.largest(x);
        if !max.is_finite() {
            return Self { scale: f32::NAN, sum: [f32::NAN; 3], ..Self::EMPTY };
        }
        let inverse = 127.0 / max;
        if inverse.is_infinite() {
            return Self::EMPTY; // zeros, or as good as zeros: below 1e-36
        }
        let (q, [first, second]) = s.round(x, inverse);
        let sums = [first + second, first, second].map(|sum| sum as f32);
        let scale = max / 127.0;
        Self { q, scale, minus_sum: sums.map(|sum| -sum), sum: sums.map(|sum| scale * sum) }
    }

    /// What rounding took from the numbers.
    #[inline(always)]
    pub(crate) fn rest(&self, x: &[f32; LEN]) -> [f32; LEN] {
        let mut rest = *x;
        for (rest, q) in rest.iter_mut().zip(self.q.as_flattened()) {
            *rest -= self.scale * f32::from(*q);
        }
        rest
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernels::Isa;
    use crate::kernels::quant::RowsKernel;
    use crate::test_util::random;

    /// The block of some numbers, by each instruction set.
    fn blocks(x: &[f32; LEN]) -> Vec<(Isa, Block)> {
        struct Quantize<'a>(&'a [f32; LEN], &'a mut Block);
        impl RowsKernel for Quantize<'_> {
            #[inline(always)]
            fn run<S: Lanes>(self, s: S) {
                *self.1 = Block::quantize(s, self.0);
            }
        }
        let of = |isa: Isa| {
            let mut block = Block::EMPTY;
            isa.run_rows(Quantize(x, &mut block));
            (isa, block)
        };
        Isa::all().into_iter().map(of).collect()
    }

    fn numbers(seed: u64) -> [f32; LEN] {
        let mut x = [0.0; LEN];
        x.copy_from_slice(&random(LEN, seed));
        x
    }

    #[test]
    fn a_block_is_within_half_a_step() {
        assert_eq!(size_of::<Block>(), 64);
        for x in (0..50).map(numbers) {
            for (isa, block) in blocks(&x) {
                let q = block.q.as_flattened();
                for (x, q) in x.iter().zip(q) {
                    assert!((x - f32::from(*q) * block.scale).abs() <= block.scale * 0.5001, "{isa:?}");
                }
                let sum = |q: &[i8]| q.iter().map(|q| f32::from(*q)).sum::<f32>();
                assert_eq!(block.minus_sum, [-sum(q), -sum(&q[..16]), -sum(&q[16..])], "{isa:?}");
                assert_eq!(block.sum, block.minus_sum.map(|sum| block.scale * -sum), "{isa:?}");
            }
        }
    }

    #[test]
    fn every_instruction_set_rounds_to_the_same_bits() {
        // Halves of steps as well, which go to the even one.
        let halves = std::array::from_fn(|i| if i == 9 { -127.0 } else { i as f32 * 7.5 - 120.0 });
        for x in (0..50).map(numbers).chain([halves]) {
            let blocks = blocks(&x);
            for (isa, block) in &blocks {
                let bits = |block: &Block| (block.q, block.scale.to_bits(), block.minus_sum, block.sum);
                assert_eq!(bits(block), bits(&blocks[0].1), "{isa:?}");
            }
        }
    }

    #[test]
    fn zeros_are_zeros_and_what_is_not_finite_stays_so() {
        for (isa, zero) in blocks(&[0.0; LEN]) {
            assert_eq!((zero.scale, zero.minus_sum), (0.0, [0.0; 3]), "{isa:?}");
        }
        for bad in [f32::NAN, -f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            for place in 0..LEN {
                let mut x = [1.0; LEN];
                x[place] = bad;
                assert!(blocks(&x).iter().all(|(_, block)| block.scale.is_nan()), "{bad} at {place}");
            }
        }
        for (isa, tiny) in blocks(&[f32::from_bits(1); LEN]) {
            assert!(tiny.q.as_flattened().iter().all(|q| (0..=127).contains(q)), "{isa:?}");
        }
    }
}
