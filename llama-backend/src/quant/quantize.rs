//! From f32 to stored elements, by the rules of ggml's reference (`quantize_row_*_ref`).

use half::{bf16, f16};

use super::k_quants::packed;
use super::{QuantError, check};
use crate::DType;

/// Stores elements as `dtype`: f32, f16, bf16, `q8_0`, `q4_0` or `q4_K`.
///
/// A block holds no more than its own elements tell, so that rows may be quantised in any order and in parts.
///
/// ```
/// use llama_backend::DType;
/// use llama_backend::quant::{dequantize, quantize};
///
/// let x: Vec<f32> = (0..32).map(|i| i as f32 / 31.0 - 0.5).collect();
/// let (mut bytes, mut again) = ([0; 34], [0.0; 32]);
/// quantize(DType::Q8_0, &x, &mut bytes)?;
/// dequantize(DType::Q8_0, &bytes, &mut again)?;
/// assert!(x.iter().zip(again).all(|(x, again)| (x - again).abs() < 0.5 / 127.0));
/// # Ok::<(), llama_backend::quant::QuantError>(())
/// ```
///
/// # Shapes
///
/// `bytes`: whole blocks; `x`: the elements of all of them.
///
/// # Errors
///
/// [`QuantError::Length`]; [`QuantError::ReadOnly`] for the other types; [`QuantError::Range`] for a finite number that f16 or bf16
/// cannot hold, and for one that is not finite in a block.
pub fn quantize(dtype: DType, x: &[f32], bytes: &mut [u8]) -> Result<(), QuantError> {
    check(dtype, bytes.len(), x.len())?;
    match dtype {
        DType::F32 => each(dtype, x, bytes, |[x]: &[f32; 1], out| {
            *out = x.to_le_bytes();
            Some(())
        }),
        DType::F16 => each(dtype, x, bytes, |[x]: &[f32; 1], out| {
            *out = f16::from_f32(*x).to_le_bytes();
            (f16::from_f32(*x).is_finite() || !x.is_finite()).then_some(())
        }),
        DType::BF16 => each(dtype, x, bytes, |[x]: &[f32; 1], out| {
            *out = bf16::from_f32(*x).to_le_bytes();
            (bf16::from_f32(*x).is_finite() || !x.is_finite()).then_some(())
        }),
        DType::Q8_0 => each(dtype, x, bytes, q8_0),
        DType::Q4_0 => each(dtype, x, bytes, q4_0),
        DType::Q4_K => each(dtype, x, bytes, q4_k),
        _ => Err(QuantError::ReadOnly { dtype }),
    }
}

/// Writes block by block; the lengths were checked. A block that cannot be written gives its largest number as the reason.
fn each<const BYTES: usize, const LEN: usize>(
    dtype: DType,
    x: &[f32],
    bytes: &mut [u8],
    write: impl Fn(&[f32; LEN], &mut [u8; BYTES]) -> Option<()>,
) -> Result<(), QuantError> {
    for (x, block) in x.as_chunks().0.iter().zip(bytes.as_chunks_mut().0) {
        if write(x, block).is_none() {
            // By `total_cmp`, a NaN is larger than all others.
            let largest = x.iter().copied().max_by(|a, b| a.abs().total_cmp(&b.abs()));
            return Err(QuantError::Range { dtype, value: largest.unwrap_or(0.0) });
        }
    }
    Ok(())
}

/// A scale as it is stored, where f16 holds it.
fn scale(d: f32) -> Option<[u8; 2]> {
    let d = f16::from_f32(d);
    d.is_finite().then(|| d.to_le_bytes())
}

/// `1 / d`, or 0 for a block of zeros.
fn inverse(d: f32) -> f32 {
    if d == 0.0 { 0.0 } else { 1.0 / d }
}

/// The largest magnitude becomes 127.
fn q8_0(x: &[f32; 32], block: &mut [u8; 34]) -> Option<()> {
    let largest = largest(x)?.abs();
    let d = largest / 127.0;
    let inverse = inverse(d);
    block[..2].copy_from_slice(&scale(d)?);
    for (&x, out) in x.iter().zip(&mut block[2..]) {
        *out = (x * inverse).round() as i8 as u8;
    }
    Some(())
}

/// The largest magnitude becomes -8, whatever its sign.
fn q4_0(x: &[f32; 32], block: &mut [u8; 18]) -> Option<()> {
    let d = largest(x)? / -8.0;
    let inverse = inverse(d);
    block[..2].copy_from_slice(&scale(d)?);
    let q = |x: f32| ((x * inverse + 8.5) as u8).min(15);
    for (j, out) in block[2..].iter_mut().enumerate() {
        *out = q(x[j]) | q(x[j + 16]) << 4;
    }
    Some(())
}

/// The element of the largest magnitude, the first of equals; `None` where one is not finite.
fn largest(x: &[f32]) -> Option<f32> {
    x.iter().try_fold(0.0, |largest: f32, &x| {
        let largest = if x.abs() > largest.abs() { x } else { largest };
        x.is_finite().then_some(largest)
    })
}

/// What the quantised elements and the scale of a part are at best, such that `scale · q - minimum` is near `x`.
struct Fit {
    scale: f32,
    minimum: f32,
    q: [u8; 32],
}

/// Each 32 elements get the scale and minimum that fit best; then those are rounded to 6 bits relative to the largest ones, and
/// the elements once more to what became of them.
fn q4_k(x: &[f32; 256], block: &mut [u8; 144]) -> Option<()> {
    largest(x)?;
    let parts = x.as_chunks::<32>().0;
    let mut fits: Vec<Fit> = parts.iter().map(fit).collect();
    let max_scale = fits.iter().fold(0.0, |max: f32, fit| if fit.scale > max { fit.scale } else { max });
    let max_minimum =
        fits.iter().fold(0.0, |max: f32, fit| if fit.minimum > max { fit.minimum } else { max });
    let inverse = |max: f32| if max > 0.0 { 63.0 / max } else { 0.0 };
    let (inverse_scale, inverse_minimum) = (inverse(max_scale), inverse(max_minimum));
    let (d, m) = (scale(max_scale / 63.0)?, scale(max_minimum / 63.0)?);
    block[..2].copy_from_slice(&d);
    block[2..4].copy_from_slice(&m);

    let (scales, q) = block[4..].split_at_mut(12);
    scales.fill(0);
    for (i, fit) in fits.iter().enumerate() {
        let scale = (nearest(inverse_scale * fit.scale) as u8).min(63);
        let minimum = (nearest(inverse_minimum * fit.minimum) as u8).min(63);
        match i {
            0..4 => (scales[i], scales[i + 4]) = (scale, minimum),
            _ => {
                scales[i + 4] = scale & 0xf | (minimum & 0xf) << 4;
                scales[i - 4] |= scale >> 4 << 6;
                scales[i] |= minimum >> 4 << 6;
            }
        }
    }
    let (d, m) = (f16::from_le_bytes(d).to_f32(), f16::from_le_bytes(m).to_f32());
    for (i, (x, fit)) in parts.iter().zip(&mut fits).enumerate() {
        let (scale, minimum) = packed(scales, i);
        let (scale, minimum) = (d * f32::from(scale), m * f32::from(minimum));
        // Without a scale, what the fit left is as good as anything.
        if scale != 0.0 {
            for (q, x) in fit.q.iter_mut().zip(x) {
                *q = nearest((x + minimum) / scale).clamp(0, 15) as u8;
            }
        }
    }
    for (pair, out) in fits.as_chunks::<2>().0.iter().zip(q.as_chunks_mut::<32>().0) {
        for (j, out) in out.iter_mut().enumerate() {
            *out = pair[0].q[j] | pair[1].q[j] << 4;
        }
    }
    Some(())
}

/// Rounds to the nearest whole number, ties to even.
fn nearest(x: f32) -> i32 {
    x.round_ties_even() as i32
}

/// Searches for the scale and minimum with the least squared error, weighted by magnitude (`make_qkx2_quants`): 21 grids a
/// little finer or coarser than the one that spans the elements, each with the least squares solution for its rounding.
fn fit(x: &[f32; 32]) -> Fit {
    const LARGEST: f32 = 15.0;
    let mean_square = x.iter().fold(0.0, |sum: f32, x| sum + x * x) / 32.0;
    let magnitude = mean_square.sqrt();
    let weights = x.map(|x| magnitude + x.abs());

    let low = x.iter().copied().fold(x[0], |low, x| if x < low { x } else { low }).min(0.0);
    let high = x.iter().copied().fold(x[0], |high, x| if x > high { x } else { high });
    if high == low {
        return Fit { scale: 0.0, minimum: -low, q: [0; 32] };
    }
    let weighted = || x.iter().zip(weights);
    let sum_w = weights.iter().fold(0.0, |sum: f32, w| sum + w);
    let sum_x = weighted().fold(0.0, |sum: f32, (x, w)| sum + w * x);
    let round = |inverse: f32, low: f32| x.map(|x| nearest(inverse * (x - low)).clamp(0, 15) as u8);
    let error = |q: &[u8; 32], scale: f32, low: f32| {
        weighted().zip(q).fold(0.0, |sum: f32, ((x, w), &q)| {
            let difference = scale * f32::from(q) + low - x;
            sum + w * (difference * difference)
        })
    };

    let inverse = LARGEST / (high - low);
    let mut best = Fit { scale: 1.0 / inverse, minimum: -low, q: round(inverse, low) };
    let mut least = error(&best.q, best.scale, low);
    for step in 0..=20 {
        // Each grid begins at the lowest value that was best so far.
        let low = -best.minimum;
        let q = round((-1.0 + 0.1 * step as f32 + LARGEST) / (high - low), low);
        let (mut sum_q, mut sum_q2, mut sum_xq) = (0.0_f32, 0.0_f32, 0.0_f32);
        for ((x, w), &q) in weighted().zip(&q) {
            let q = f32::from(q);
            sum_q += w * q;
            sum_q2 += w * q * q;
            sum_xq += w * q * x;
        }
        let determinant = sum_w * sum_q2 - sum_q * sum_q;
        if determinant > 0.0 {
            let mut scale = (sum_w * sum_xq - sum_x * sum_q) / determinant;
            let mut low = (sum_q2 * sum_x - sum_q * sum_xq) / determinant;
            if low > 0.0 {
                (low, scale) = (0.0, sum_xq / sum_q2);
            }
            let error = error(&q, scale, low);
            if error < least {
                (least, best) = (error, Fit { scale, minimum: -low, q });
            }
        }
    }
    best
}
