//! [`DType`]: how the elements of a tensor are stored.
//!
//! Plain types store an element at a time. Quantised ones are ggml's, by its names: they store a *block* of consecutive elements
//! of a row with what it takes to read them, so that sizes are counted in whole blocks. The layouts are in [`quant`](crate::quant).

use std::fmt;

/// How the elements of a tensor are stored, little-endian.
///
/// ```
/// use llama_backend::DType;
///
/// assert_eq!((DType::F16.block_len(), DType::F16.size()), (1, 2));
/// assert_eq!((DType::Q8_0.block_len(), DType::Q8_0.size()), (32, 34)); // a scale in f16, and a byte for each element
/// assert_eq!(DType::Q8_0.n_bytes(4096), Some(4352));
/// assert_eq!(DType::Q8_0.n_bytes(100), None); // no whole blocks
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
#[allow(non_camel_case_types, reason = "ggml's names, by which users know these types")]
pub enum DType {
    /// 32-bit IEEE.
    F32,
    /// 16-bit IEEE.
    F16,
    /// The upper half of an F32.
    BF16,
    /// 32 elements of 4 bits, a scale.
    Q4_0,
    /// 32 elements of 4 bits, a scale and a minimum.
    Q4_1,
    /// 32 elements of 5 bits, a scale.
    Q5_0,
    /// 32 elements of 5 bits, a scale and a minimum.
    Q5_1,
    /// 32 elements of 8 bits, a scale.
    Q8_0,
    /// 256 elements of 2 bits, a scale and a minimum of 4 bits for each 16.
    Q2_K,
    /// 256 elements of 3 bits, a scale of 6 bits for each 16.
    Q3_K,
    /// 256 elements of 4 bits, a scale and a minimum of 6 bits for each 32.
    Q4_K,
    /// 256 elements of 5 bits, a scale and a minimum of 6 bits for each 32.
    Q5_K,
    /// 256 elements of 6 bits, a scale of 8 bits for each 16.
    Q6_K,
    /// 32 elements of 4 bits that stand for 16 unevenly spaced values, a scale.
    IQ4_NL,
    /// 256 elements of 4 bits that stand for 16 unevenly spaced values, a scale of 6 bits for each 32.
    IQ4_XS,
}

impl DType {
    /// All of them.
    pub const ALL: &[DType] = &[
        Self::F32,
        Self::F16,
        Self::BF16,
        Self::Q4_0,
        Self::Q4_1,
        Self::Q5_0,
        Self::Q5_1,
        Self::Q8_0,
        Self::Q2_K,
        Self::Q3_K,
        Self::Q4_K,
        Self::Q5_K,
        Self::Q6_K,
        Self::IQ4_NL,
        Self::IQ4_XS,
    ];

    /// The elements of a block; 1 where elements are stored one by one.
    #[must_use]
    pub fn block_len(self) -> usize {
        match self {
            Self::F32 | Self::F16 | Self::BF16 => 1,
            Self::Q4_0 | Self::Q4_1 | Self::Q5_0 | Self::Q5_1 | Self::Q8_0 | Self::IQ4_NL => 32,
            Self::Q2_K | Self::Q3_K | Self::Q4_K | Self::Q5_K | Self::Q6_K | Self::IQ4_XS => 256,
        }
    }

    /// The bytes of a block, which is one element where elements are stored one by one.
    #[must_use]
    pub fn size(self) -> usize {
        match self {
            Self::F32 => 4,
            Self::F16 | Self::BF16 => 2,
            Self::Q4_0 | Self::IQ4_NL => 18,
            Self::Q4_1 => 20,
            Self::Q5_0 => 22,
            Self::Q5_1 => 24,
            Self::Q8_0 => 34,
            Self::Q2_K => 84,
            Self::Q3_K => 110,
            Self::Q4_K => 144,
            Self::Q5_K => 176,
            Self::Q6_K => 210,
            Self::IQ4_XS => 136,
        }
    }

    /// What the address of a tensor's bytes is a multiple of: an element's size; of a block, that of the f16 within it.
    #[must_use]
    pub fn align(self) -> usize {
        if self.is_quantized() { 2 } else { self.size() }
    }

    /// Whether elements are stored in blocks.
    #[must_use]
    pub fn is_quantized(self) -> bool {
        self.block_len() > 1
    }

    /// The bytes of `n` consecutive elements; `None` where those are no whole blocks, or more bytes than a `usize` holds.
    #[must_use]
    pub fn n_bytes(self, n: usize) -> Option<usize> {
        let blocks = n.is_multiple_of(self.block_len()).then(|| n / self.block_len())?;
        blocks.checked_mul(self.size())
    }
}

impl fmt::Display for DType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::F32 => "f32",
            Self::F16 => "f16",
            Self::BF16 => "bf16",
            Self::Q4_0 => "q4_0",
            Self::Q4_1 => "q4_1",
            Self::Q5_0 => "q5_0",
            Self::Q5_1 => "q5_1",
            Self::Q8_0 => "q8_0",
            Self::Q2_K => "q2_K",
            Self::Q3_K => "q3_K",
            Self::Q4_K => "q4_K",
            Self::Q5_K => "q5_K",
            Self::Q6_K => "q6_K",
            Self::IQ4_NL => "iq4_nl",
            Self::IQ4_XS => "iq4_xs",
        })
    }
}
