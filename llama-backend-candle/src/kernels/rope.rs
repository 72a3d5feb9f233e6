//! Rotary position embedding (RoFormer, arXiv 2104.09864) on interleaved pairs, from tables made once.
//!
//! The tables hold what the reference computes (`precompute_freqs_cis`): frequencies and angles rounded to f32, since an angle
//! of thousands of radians shows the rounding.

use std::collections::TryReserveError;

/// Cosines and sines: `[max_seq_len, head_dim / 2]` each.
#[derive(Debug)]
pub(crate) struct RopeTables {
    pub(crate) cos: Vec<f32>,
    pub(crate) sin: Vec<f32>,
    half: usize,
}

impl RopeTables {
    pub(crate) fn new(max_seq_len: usize, head_dim: usize, theta: f64) -> Result<Self, TryReserveError> {
        let half = head_dim / 2;
        let (mut cos, mut sin) = (Vec::new(), Vec::new());
        cos.try_reserve_exact(max_seq_len.saturating_mul(half))?;
        sin.try_reserve_exact(max_seq_len.saturating_mul(half))?;
        let freqs: Vec<f32> =
            (0..half).map(|i| 1.0 / theta.powf(f64::from((2 * i) as f32 / head_dim as f32)) as f32).collect();
        for pos in 0..max_seq_len {
            let angles = freqs.iter().map(|freq| f64::from(pos as f32 * freq));
            cos.extend(angles.clone().map(|angle| angle.cos() as f32));
            sin.extend(angles.map(|angle| angle.sin() as f32));
        }
        Ok(Self { cos, sin, half })
    }

    /// The heads of `from`, `[.., head_dim]`, turned to a position, pair by pair.
    pub(crate) fn rotated(&self, pos: usize, from: &[f32]) -> impl Iterator<Item = [f32; 2]> {
        let row = pos * self.half..(pos + 1) * self.half;
        let (cos, sin) = (&self.cos[row.clone()], &self.sin[row]);
        from.chunks_exact(2 * self.half).flat_map(move |head| {
            let pairs = head.as_chunks::<2>().0.iter().zip(cos).zip(sin);
            pairs.map(|((x, cos), sin)| [x[0] * cos - x[1] * sin, x[0] * sin + x[1] * cos])
        })
    }
}
