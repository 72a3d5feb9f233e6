//! ggml's block formats, said plainly: where the bits of a block lie, what they mean, and how they are made.
//!
//! Everything here is scalar and written to be read. It is what a backend that knows no blocks is given its weights by, what
//! fast kernels are compared with, and how a checkpoint in f32, f16 or bf16 is quantised when it is loaded. Results are ggml's
//! to the bit, so each formula keeps ggml's order of operations; llama-core's `quant_golden` test holds every type against its numbers.
//!
//! In the layouts below *scale* `d` and *minimum* `m` are f16, `q` are the quantised elements, and bits are counted from the
//! lowest.

mod k_quants;
mod quantize;
mod quantize_q4_k;
mod simple;

use half::{bf16, f16};

use crate::DType;

pub use quantize::quantize;
pub use simple::UNEVEN;

/// Bytes and elements that do not belong together, or a type that elements cannot be made of.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum QuantError {
    /// The lengths are not those of the same whole blocks.
    #[error("{n_bytes} bytes and {n_elements} elements are not the same whole blocks of {dtype}")]
    Length {
        /// The type of the blocks.
        dtype: DType,
        /// The bytes.
        n_bytes: usize,
        /// The elements.
        n_elements: usize,
    },
    /// A type that can be read but not made.
    #[error("nothing is quantised to {dtype}: it can only be read")]
    ReadOnly {
        /// The type.
        dtype: DType,
    },
    /// A number that the type cannot hold.
    #[error("{value} does not fit {dtype}")]
    Range {
        /// The type.
        dtype: DType,
        /// The number.
        value: f32,
    },
}

/// Turns stored elements into f32, exactly as ggml's reference does.
///
/// ```
/// use llama_backend::DType;
/// use llama_backend::quant::dequantize;
///
/// let mut out = [0.0; 2];
/// dequantize(DType::F16, &[0x00, 0x3c, 0x00, 0xc0], &mut out)?;
/// assert_eq!(out, [1.0, -2.0]);
/// # Ok::<(), llama_backend::quant::QuantError>(())
/// ```
///
/// # Shapes
///
/// `bytes`: whole blocks; `out`: the elements of all of them.
///
/// # Errors
///
/// [`QuantError::Length`].
pub fn dequantize(dtype: DType, bytes: &[u8], out: &mut [f32]) -> Result<(), QuantError> {
    check(dtype, bytes.len(), out.len())?;
    match dtype {
        DType::F32 => each(bytes, out, |b, out: &mut [f32; 1]| *out = [f32::from_le_bytes(*b)]),
        DType::F16 => each(bytes, out, |b, out: &mut [f32; 1]| *out = [f16::from_le_bytes(*b).to_f32()]),
        DType::BF16 => each(bytes, out, |b, out: &mut [f32; 1]| *out = [bf16::from_le_bytes(*b).to_f32()]),
        DType::Q4_0 => each(bytes, out, simple::q4_0),
        DType::Q4_1 => each(bytes, out, simple::q4_1),
        DType::Q5_0 => each(bytes, out, simple::q5_0),
        DType::Q5_1 => each(bytes, out, simple::q5_1),
        DType::Q8_0 => each(bytes, out, simple::q8_0),
        DType::IQ4_NL => each(bytes, out, simple::iq4_nl),
        DType::Q2_K => each(bytes, out, k_quants::q2_k),
        DType::Q3_K => each(bytes, out, k_quants::q3_k),
        DType::Q4_K => each(bytes, out, k_quants::q4_k),
        DType::Q5_K => each(bytes, out, k_quants::q5_k),
        DType::Q6_K => each(bytes, out, k_quants::q6_k),
        DType::IQ4_XS => each(bytes, out, k_quants::iq4_xs),
    }
    Ok(())
}

/// Refuses lengths that are not the same number of whole blocks.
fn check(dtype: DType, n_bytes: usize, n_elements: usize) -> Result<(), QuantError> {
    match dtype.n_bytes(n_elements) == Some(n_bytes) {
        true => Ok(()),
        false => Err(QuantError::Length { dtype, n_bytes, n_elements }),
    }
}

/// Reads block by block. The lengths were checked.
fn each<const BYTES: usize, const LEN: usize>(
    bytes: &[u8],
    out: &mut [f32],
    read: impl Fn(&[u8; BYTES], &mut [f32; LEN]),
) {
    for (block, out) in bytes.as_chunks().0.iter().zip(out.as_chunks_mut().0) {
        read(block, out);
    }
}

/// The f16 at the place `at` of a block.
fn half_at(block: &[u8], at: usize) -> f32 {
    f16::from_le_bytes([block[at], block[at + 1]]).to_f32()
}
