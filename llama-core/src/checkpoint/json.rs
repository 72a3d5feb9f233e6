//! [`Fields`]: a JSON object whose fields are taken one by one, so that errors name them and what is left over is known.

use std::path::{Path, PathBuf};

use serde_json::{Map, Value};

use super::CheckpointError;
use super::blob::Blob;

/// An object and the file that it stands in.
#[derive(Debug)]
pub(super) struct Fields {
    file: PathBuf,
    map: Map<String, Value>,
}

impl Fields {
    /// Parses a file that holds one object.
    pub(super) fn parse(blob: &Blob) -> Result<Self, CheckpointError> {
        /// The index of a checkpoint with a thousand tensors has 100 KB.
        const MAX_LEN: usize = 16 << 20;
        let file = blob.path();
        let text = blob.bytes();
        if text.len() > MAX_LEN {
            return Err(CheckpointError::Field {
                file,
                field: "length".to_owned(),
                found: format!("{} bytes", text.len()),
                expected: format!("at most {MAX_LEN}"),
            });
        }
        match serde_json::from_slice(text) {
            Ok(map) => Ok(Self { file, map }),
            Err(source) => Err(match no_number(text, &source) {
                Some((field, found)) => {
                    CheckpointError::Field { file, field, found, expected: "a finite number".to_owned() }
                }
                None => CheckpointError::Json { file, source },
            }),
        }
    }

    /// An object within the object.
    pub(super) fn nested(&self, map: Map<String, Value>) -> Self {
        Self { file: self.file.clone(), map }
    }

    pub(super) fn file(&self) -> &Path {
        &self.file
    }

    /// The error for a field that is not what it must be; a long value is cut.
    pub(super) fn wrong(
        &self,
        field: &str,
        found: impl ToString,
        expected: impl Into<String>,
    ) -> CheckpointError {
        const MAX_CHARS: usize = 100;
        let mut found = found.to_string();
        if let Some((cut, _)) = found.char_indices().nth(MAX_CHARS) {
            found.truncate(cut);
            found.push('…');
        }
        CheckpointError::Field {
            file: self.file.clone(),
            field: field.to_owned(),
            found,
            expected: expected.into(),
        }
    }

    /// Takes a field; `null` is as good as absent.
    pub(super) fn take(&mut self, field: &str) -> Option<Value> {
        self.map.remove(field).filter(|value| !value.is_null())
    }

    /// Takes a field that must be a whole number, 0 or above.
    pub(super) fn size(&mut self, field: &str) -> Result<Option<usize>, CheckpointError> {
        let expected = "a whole number, 0 or above";
        self.take(field)
            .map(|value| {
                let size = value.as_u64().and_then(|size| usize::try_from(size).ok());
                size.ok_or_else(|| self.wrong(field, &value, expected))
            })
            .transpose()
    }

    /// Takes a field without which there is no model.
    pub(super) fn required_size(&mut self, field: &str) -> Result<usize, CheckpointError> {
        self.size(field)?.ok_or_else(|| self.wrong(field, "absent", "a whole number"))
    }

    pub(super) fn number(&mut self, field: &str) -> Result<Option<f64>, CheckpointError> {
        self.take(field)
            .map(|value| value.as_f64().ok_or_else(|| self.wrong(field, &value, "a number")))
            .transpose()
    }

    pub(super) fn flag(&mut self, field: &str) -> Result<Option<bool>, CheckpointError> {
        self.take(field)
            .map(|value| value.as_bool().ok_or_else(|| self.wrong(field, &value, "true or false")))
            .transpose()
    }

    /// A field that was not taken, if one is left.
    pub(super) fn left_over(&self) -> Option<(&String, &Value)> {
        self.map.iter().next()
    }
}

/// The field whose value made the parser stop, where that value is one of the numbers that Python writes and JSON does not
/// have: `NaN`, `Infinity`, or one beyond the range of a double.
fn no_number(text: &[u8], error: &serde_json::Error) -> Option<(String, String)> {
    let line_start = text
        .split_inclusive(|&byte| byte == b'\n')
        .take(error.line().checked_sub(1)?)
        .map(<[u8]>::len)
        .sum::<usize>();
    let text = std::str::from_utf8(text).ok()?;
    // The value begins after the last colon before the place where the parser stopped, which is within it.
    let stopped = text.get(..(line_start + error.column()).min(text.len()))?;
    let colon = stopped.rfind(':')?;
    let value = text[colon + 1..].trim_start();
    let value = &value
        [..value.find(|c: char| matches!(c, ',' | '}' | ']') || c.is_whitespace()).unwrap_or(value.len())];
    // Rust reads Python's spellings, and makes infinity of what is out of range.
    let number: f64 = value.parse().ok()?;
    let field = text[..colon].trim_end().strip_suffix('"')?;
    let field = &field[field.rfind('"')? + 1..];
    (!number.is_finite()).then(|| (field.to_owned(), value.to_owned()))
}
