//! [`GgufError`]: what can be wrong with a GGUF file before its tensors are looked at.

/// Why the header of a GGUF file cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum GgufError {
    /// Not a GGUF file at all.
    #[error("not a GGUF file: it begins with {start:?}, expected \"GGUF\"")]
    NotGguf {
        /// How the file begins.
        start: String,
    },
    /// A version of the format that is not read.
    #[error("GGUF version {found}, expected 2 or 3{}", if *.found == 1 { "; convert the model anew" } else { "" })]
    Version {
        /// The version that the file states.
        found: u32,
    },
    /// Numbers stored with their highest byte first.
    #[error("its numbers are big-endian, expected little-endian")]
    ByteOrder,
    /// A file that ends too early, or a length that leads out of it.
    #[error("{place} takes {needed} bytes from byte {at} on, but the file has only {left} more")]
    Truncated {
        /// What was being read.
        place: String,
        /// Where it stands in the file.
        at: usize,
        /// The bytes that it takes, at least.
        needed: u64,
        /// The bytes that there are from there on.
        left: usize,
    },
    /// More entries, or longer names, than any model has.
    #[error("{place}: {found}, expected at most {limit}")]
    TooMany {
        /// What was being read.
        place: String,
        /// The number that the file states.
        found: u64,
        /// The most that is read.
        limit: u64,
    },
    /// Text that is not UTF-8.
    #[error("{place} at byte {at} is not UTF-8")]
    Utf8 {
        /// What was being read.
        place: String,
        /// Where it stands in the file.
        at: usize,
    },
    /// A value of a type that the format does not have.
    #[error("{place} has the value type {found}, expected 0 to 12")]
    ValueType {
        /// What was being read.
        place: String,
        /// The type's number.
        found: u32,
    },
    /// A truth value that is neither 0 nor 1.
    #[error("{place} is a bool of value {found}, expected 0 or 1")]
    Bool {
        /// What was being read.
        place: String,
        /// The byte found.
        found: u8,
    },
    /// Arrays of arrays of arrays, deeper than any file has.
    #[error("{place} nests arrays more than {limit} deep")]
    Nesting {
        /// What was being read.
        place: String,
        /// The deepest that is read.
        limit: u32,
    },
    /// A key that is there twice.
    #[error("{key:?} is there twice")]
    DuplicateKey {
        /// The key.
        key: String,
    },
    /// A tensor with more dimensions than the format allows, or none.
    #[error("tensor {tensor:?} has {found} dimensions, expected 1 to 4")]
    Dimensions {
        /// The tensor.
        tensor: String,
        /// Its dimensions.
        found: u32,
    },
    /// A key that is absent, or has a value that is not supported.
    #[error("{key:?} is {found}, expected {expected}")]
    Value {
        /// The key.
        key: String,
        /// Its value.
        found: String,
        /// What would have been accepted.
        expected: String,
    },
}

impl GgufError {
    /// Whether this is a sound file of a kind that is not supported, rather than a broken one.
    #[must_use]
    pub fn is_unsupported(&self) -> bool {
        matches!(self, Self::Version { .. } | Self::ByteOrder | Self::Value { .. })
    }
}
