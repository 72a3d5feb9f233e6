//! How a file's tensors are stored: one type, or one of llama.cpp's mixtures.
//!
//! llama.cpp's quantiser keeps the output in `q6_K` whatever the file's type (but `q8_0`), and has mixtures of types for the
//! other matrices. A file that is to be compared must hold what its users' files hold, so the same is done here; `--pure` has it
//! without, as llama.cpp's own flag of that name.

use std::fmt;
use std::str::FromStr;

use llama_backend::DType;

/// What `general.file_type` calls a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum FileType {
    /// All matrices in one type, but for the output: [`DType::Q6_K`] where the others are quantised below eight bits.
    Plain(DType),
    /// [`DType::Q4_K`]; [`DType::Q6_K`] for the output, and for `wv` and `w2` in half of the layers.
    #[allow(non_camel_case_types, reason = "llama.cpp's name, by which users know it")]
    Q4_K_M,
}

impl FileType {
    /// All of them.
    pub fn all() -> impl Iterator<Item = Self> {
        DType::ALL.iter().map(|&dtype| Self::Plain(dtype)).chain([Self::Q4_K_M])
    }

    /// The type of most matrices.
    #[must_use]
    pub fn dtype(self) -> DType {
        match self {
            Self::Plain(dtype) => dtype,
            Self::Q4_K_M => DType::Q4_K,
        }
    }

    /// The type of a matrix, by Meta's name.
    #[must_use]
    pub fn dtype_of(self, name: &str, n_layers: usize) -> DType {
        let dtype = self.dtype();
        if name == "output.weight" {
            return if dtype.is_quantized() && dtype != DType::Q8_0 { DType::Q6_K } else { dtype };
        }
        let layer = name.strip_prefix("layers.").and_then(|rest| rest.split_once('.'));
        match (self, layer) {
            (Self::Q4_K_M, Some((layer, "attention.wv.weight" | "feed_forward.w2.weight")))
                if layer.parse().is_ok_and(|layer| has_more_bits(layer, n_layers)) =>
            {
                DType::Q6_K
            }
            _ => dtype,
        }
    }

    /// llama.cpp's number of it.
    pub(super) fn id(self) -> u32 {
        match self {
            Self::Q4_K_M => 15,
            Self::Plain(dtype) => match dtype {
                DType::F16 => 1,
                DType::Q4_0 => 2,
                DType::Q4_1 => 3,
                DType::Q8_0 => 7,
                DType::Q5_0 => 8,
                DType::Q5_1 => 9,
                DType::Q2_K => 10,
                DType::Q3_K => 11,
                DType::Q4_K => 14,
                DType::Q5_K => 16,
                DType::Q6_K => 18,
                DType::IQ4_NL => 25,
                DType::IQ4_XS => 30,
                DType::BF16 => 32,
                _ => 0, // f32
            },
        }
    }
}

/// Whether a mixture gives a layer's `wv` and `w2` more bits: the first eighth, the last, and every third between.
fn has_more_bits(layer: usize, n_layers: usize) -> bool {
    let eighth = n_layers / 8;
    layer < eighth || layer >= 7 * n_layers / 8 || (layer - eighth) % 3 == 2
}

impl fmt::Display for FileType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Plain(dtype) => dtype.fmt(f),
            Self::Q4_K_M => f.write_str("q4_K_M"),
        }
    }
}

impl FromStr for FileType {
    type Err = UnknownName;

    fn from_str(name: &str) -> Result<Self, UnknownName> {
        let found = Self::all().find(|kind| kind.to_string().eq_ignore_ascii_case(name));
        found.ok_or_else(|| UnknownName::new("type", name, Self::all().map(|kind| kind.to_string())))
    }
}

/// A name that nothing has.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("unknown {what} {found:?}, expected {}", .known.join(", "))]
pub struct UnknownName {
    what: &'static str,
    found: String,
    known: Vec<String>,
}

impl UnknownName {
    pub(super) fn new<T: Into<String>>(
        what: &'static str,
        found: &str,
        known: impl IntoIterator<Item = T>,
    ) -> Self {
        Self { what, found: found.to_owned(), known: known.into_iter().map(Into::into).collect() }
    }
}
