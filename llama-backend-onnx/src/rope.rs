//! The cosines and sines of rotary position embedding (RoFormer, arXiv 2104.09864), which the engine takes as tensors.
//!
//! They hold what the reference computes (`precompute_freqs_cis`): frequencies and angles rounded to f32, since an angle of
//! thousands of radians shows the rounding.

/// Cosines and sines, `[max_seq_len, width / 2]` each. The pairs beyond `head_dim` do not turn.
pub(crate) fn tables(max_seq_len: usize, head_dim: usize, width: usize, theta: f64) -> [Vec<f32>; 2] {
    let frequency = |i: usize| 1.0 / theta.powf(f64::from((2 * i) as f32 / head_dim as f32)) as f32;
    let frequencies: Vec<f32> =
        (0..width / 2).map(|i| if 2 * i < head_dim { frequency(i) } else { 0.0 }).collect();
    let angles = (0..max_seq_len).flat_map(|pos| frequencies.iter().map(move |f| f64::from(pos as f32 * f)));
    [
        angles.clone().map(|angle| angle.cos() as f32).collect(),
        angles.map(|angle| angle.sin() as f32).collect(),
    ]
}
