//! Values of a GGUF file's metadata, taken as what they must be: what they are instead is an error that names the key.

use std::fmt;

use super::GgufError;
use super::header::{Array, Metadata, Value};

impl<'a> Metadata<'a> {
    pub(crate) fn get(&self, key: &str) -> Option<Value<'a>> {
        self.0.get(key).copied()
    }

    /// The error for a key whose value, or absence, is not supported.
    pub(crate) fn wrong(&self, key: &str, expected: impl Into<String>) -> GgufError {
        let found = self.get(key).map_or_else(|| "absent".to_owned(), |value| value.to_string());
        GgufError::Value { key: key.to_owned(), found, expected: expected.into() }
    }

    /// A value that is there, as what it must be.
    fn typed<T>(
        &self,
        key: &str,
        expected: &str,
        read: impl FnOnce(Value<'a>) -> Option<T>,
    ) -> Result<Option<T>, GgufError> {
        self.get(key).map(|value| read(value).ok_or_else(|| self.wrong(key, expected))).transpose()
    }

    /// A whole number, 0 or above.
    pub(crate) fn size(&self, key: &str) -> Result<Option<usize>, GgufError> {
        self.typed(key, "a whole number, 0 or above", |value| match value {
            Value::Unsigned(n) => usize::try_from(n).ok(),
            Value::Signed(n) => usize::try_from(n).ok(),
            _ => None,
        })
    }

    pub(crate) fn float(&self, key: &str) -> Result<Option<f64>, GgufError> {
        self.typed(key, "a finite number", |value| match value {
            Value::Float(x) => x.is_finite().then_some(x),
            _ => None,
        })
    }

    pub(crate) fn flag(&self, key: &str) -> Result<Option<bool>, GgufError> {
        self.typed(key, "true or false", |value| match value {
            Value::Bool(flag) => Some(flag),
            _ => None,
        })
    }

    pub(crate) fn string(&self, key: &str) -> Result<Option<&'a str>, GgufError> {
        self.typed(key, "text", |value| match value {
            Value::String(text) => Some(text),
            _ => None,
        })
    }

    pub(crate) fn array(&self, key: &str) -> Result<Option<Array<'a>>, GgufError> {
        self.typed(key, "an array", |value| match value {
            Value::Array(array) => Some(array),
            _ => None,
        })
    }
}

impl fmt::Display for Value<'_> {
    /// As errors show it, long ones cut.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const MAX_CHARS: usize = 100;
        match self {
            Self::Unsigned(n) => n.fmt(f),
            Self::Signed(n) => n.fmt(f),
            Self::Float(x) => x.fmt(f),
            Self::Bool(flag) => flag.fmt(f),
            Self::String(text) => match text.char_indices().nth(MAX_CHARS) {
                Some((cut, _)) => write!(f, "{:?}…", &text[..cut]),
                None => write!(f, "{text:?}"),
            },
            Self::Array(array) => write!(f, "an array of {} values", array.len()),
        }
    }
}
