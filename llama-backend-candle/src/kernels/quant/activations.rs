//! Activations as bytes: each 32 of a row with a scale of their own.
//!
//! A block knows its row alone, so that a row's result cannot depend on its batch. A block and what is known of it fill a line of cache.

/// The elements of a block.
pub(crate) const LEN: usize = 32;

/// 32 activations: `scale · q`.
#[derive(Debug, Clone, Copy)]
#[repr(C, align(64))]
pub(crate) struct Block {
    /// Groups of four, as the kernels take them. Within -127..=127.
    pub(crate) q: [[i8; 4]; LEN / 4],
    pub(crate) scale: f32,
    /// The negative sum of `q`, of its first half and of its second half.
    pub(crate) minus_sum: [i32; 3],
    /// `scale` times the sum of `q`, of its first half and of its second half.
    pub(crate) sum: [f32; 3],
}

impl Block {
    /// Before it is written.
    pub(crate) const EMPTY: Self =
        Self { q: [[0; 4]; LEN / 4], scale: 0.0, minus_sum: [0; 3], sum: [0.0; 3] };

    /// Rounds 32 numbers to the nearest of 255 steps, the largest to ±127.
    ///
    /// A number that is not finite makes the scale so, and with it every product: it is not hidden.
    #[inline(always)]
    pub(crate) fn quantize(x: &[f32; LEN]) -> Self {
        let mut max = [0.0f32; 8];
        let mut poison = [0.0f32; 8]; // 0, or NaN
        for x in x.as_chunks::<8>().0 {
            for i in 0..8 {
                max[i] = max[i].max(x[i].abs());
                poison[i] += x[i] * 0.0;
            }
        }
        let max = max.into_iter().fold(0.0, f32::max);
        let scale = max / 127.0 + poison.into_iter().sum::<f32>();
        let inverse = if max > 0.0 { 127.0 / max } else { 0.0 };
        let mut q = [0i32; LEN];
        for (q, x) in q.iter_mut().zip(x) {
            // For a subnormal maximum the inverse is infinite: the conversion saturates.
            *q = ((x * inverse).round_ties_even() as i32).clamp(-127, 127);
        }
        let sum = |q: &[i32]| q.iter().sum::<i32>();
        let halves = [sum(&q[..LEN / 2]), sum(&q[LEN / 2..])];
        let sums = [halves[0] + halves[1], halves[0], halves[1]];
        let q = q.map(|q| q as i8);
        Self {
            q: std::array::from_fn(|g| [q[4 * g], q[4 * g + 1], q[4 * g + 2], q[4 * g + 3]]),
            scale,
            minus_sum: sums.map(|sum| -sum),
            sum: sums.map(|sum| scale * sum as f32),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_block_is_within_half_a_step() {
        for seed in 0..50 {
            let mut x = [0.0; LEN];
            x.copy_from_slice(&crate::test_util::random(LEN, seed));
            let block = Block::quantize(&x);
            let q = block.q.as_flattened();
            for (x, q) in x.iter().zip(q) {
                assert!((x - f32::from(*q) * block.scale).abs() <= block.scale * 0.5001);
            }
            let sum = |q: &[i8]| q.iter().map(|q| i32::from(*q)).sum::<i32>();
            assert_eq!(block.minus_sum, [-sum(q), -sum(&q[..16]), -sum(&q[16..])]);
            assert_eq!(block.sum, block.minus_sum.map(|sum| block.scale * -sum as f32));
        }
        assert_eq!(size_of::<Block>(), 64);
    }

    #[test]
    fn zeros_are_zeros_and_what_is_not_finite_stays_so() {
        let zero = Block::quantize(&[0.0; LEN]);
        assert_eq!((zero.scale, zero.minus_sum), (0.0, [0; 3]));
        for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            let mut x = [1.0; LEN];
            x[17] = bad;
            assert!(!Block::quantize(&x).scale.is_finite());
        }
        let tiny = Block::quantize(&[f32::from_bits(1); LEN]);
        assert!(tiny.q.as_flattened().iter().all(|q| (0..=127).contains(q)));
    }
}
