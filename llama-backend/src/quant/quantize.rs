//! From f32 to stored elements, by the rules of ggml's reference (`quantize_row_*_ref`).

use half::{bf16, f16};

use super::quantize_q4_k::q4_k;
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
        DType::F32 => round(dtype, x, bytes, f32::to_le_bytes, f32::is_finite),
        DType::F16 => {
            round(dtype, x, bytes, |x| f16::from_f32(x).to_le_bytes(), |x| f16::from_f32(x).is_finite())
        }
        DType::BF16 => {
            round(dtype, x, bytes, |x| bf16::from_f32(x).to_le_bytes(), |x| bf16::from_f32(x).is_finite())
        }
        DType::Q8_0 => each(dtype, x, bytes, q8_0),
        DType::Q4_0 => each(dtype, x, bytes, q4_0),
        DType::Q4_K => each(dtype, x, bytes, q4_k),
        _ => Err(QuantError::ReadOnly { dtype }),
    }
}

/// Writes elements one by one; the lengths were checked. A finite number that becomes infinite is an error.
fn round<const BYTES: usize>(
    dtype: DType,
    x: &[f32],
    bytes: &mut [u8],
    write: impl Fn(f32) -> [u8; BYTES],
    stays_finite: impl Fn(f32) -> bool,
) -> Result<(), QuantError> {
    for (&x, out) in x.iter().zip(bytes.as_chunks_mut().0) {
        *out = write(x);
    }
    match x.iter().find(|x| x.is_finite() && !stays_finite(**x)) {
        None => Ok(()),
        Some(&value) => Err(QuantError::Range { dtype, value }),
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
pub(super) fn scale(d: f32) -> Option<[u8; 2]> {
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
pub(super) fn largest(x: &[f32]) -> Option<f32> {
    x.iter().try_fold(0.0, |largest: f32, &x| {
        let largest = if x.abs() > largest.abs() { x } else { largest };
        x.is_finite().then_some(largest)
    })
}
