//! [`Header`]: everything in a GGUF file but the tensors' elements, borrowed from the file.
//!
//! The format is a tree of counted things, and every count is the file's own word: each is held against what is left of the
//! file before anything is taken or kept, so that a header costs no more memory than a few times its own bytes. Arrays stay where they
//! are and are read when they are asked for.
//!
//! Layout, all little-endian: `"GGUF"`, version `u32`, number of tensors `u64`, number of keys `u64`; for each key its name (a
//! length `u64` and that many bytes), a value type `u32` and the value; for each tensor its name, number of dimensions `u32`, dimensions
//! `u64` innermost first, type `u32`, offset `u64`; then, at the next multiple of the alignment, the elements that offsets count from.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::fmt;

use super::GgufError;

/// What a GGUF file begins with.
pub(crate) const MAGIC: &[u8] = b"GGUF";
const ALIGNMENT: &str = "general.alignment";
const DEFAULT_ALIGNMENT: usize = 32;

/// Llama 2 70B has 723 tensors; models have some fifty keys.
const MAX_ENTRIES: u64 = 1 << 16;
/// The format's limit for keys.
const MAX_NAME_LEN: u64 = (1 << 16) - 1;
const MAX_DIMENSIONS: u32 = 4;
const MAX_NESTING: u32 = 4;

/// Everything but the elements.
#[derive(Debug)]
pub(crate) struct Header<'a> {
    pub(crate) metadata: Metadata<'a>,
    pub(super) tensors: Vec<TensorEntry<'a>>,
    /// What the places of tensors are multiples of.
    pub(super) alignment: usize,
    /// The byte of the file that offsets count from; it may lie beyond the end where there is no tensor.
    pub(super) data_start: usize,
}

/// A tensor as the header describes it; nothing of it is checked but that it is there.
#[derive(Debug)]
pub(super) struct TensorEntry<'a> {
    pub(super) name: &'a str,
    /// Innermost first.
    pub(super) dimensions: Vec<u64>,
    /// ggml's number of the type.
    pub(super) type_id: u32,
    pub(super) offset: u64,
}

/// The values by key.
#[derive(Debug)]
pub(crate) struct Metadata<'a>(pub(super) HashMap<&'a str, Value<'a>>);

/// A value. Whole numbers and floats are widened: files differ in which width they use.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Value<'a> {
    Unsigned(u64),
    Signed(i64),
    Float(f64),
    Bool(bool),
    String(&'a str),
    Array(Array<'a>),
}

/// An array, still as the file has it: checked, and read when it is asked for.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Array<'a> {
    kind: Kind,
    len: usize,
    bytes: &'a [u8],
}

/// The type of a value.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Kind {
    U8,
    I8,
    U16,
    I16,
    U32,
    I32,
    F32,
    Bool,
    String,
    Array,
    U64,
    I64,
    F64,
}

impl Kind {
    fn of(id: u32) -> Option<Self> {
        Some(match id {
            0 => Self::U8,
            1 => Self::I8,
            2 => Self::U16,
            3 => Self::I16,
            4 => Self::U32,
            5 => Self::I32,
            6 => Self::F32,
            7 => Self::Bool,
            8 => Self::String,
            9 => Self::Array,
            10 => Self::U64,
            11 => Self::I64,
            12 => Self::F64,
            _ => return None,
        })
    }

    /// The bytes of a value, or of the shortest where they differ.
    fn min_size(self) -> u64 {
        match self {
            Self::U8 | Self::I8 | Self::Bool => 1,
            Self::U16 | Self::I16 => 2,
            Self::U32 | Self::I32 | Self::F32 => 4,
            Self::U64 | Self::I64 | Self::F64 | Self::String => 8,
            Self::Array => 12,
        }
    }
}

/// What is being read, for errors.
#[derive(Debug, Clone, Copy)]
enum Place<'a> {
    Header,
    Key(u64),
    Value(&'a str),
    TensorName(u64),
    Tensor(&'a str),
}

impl fmt::Display for Place<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Header => f.write_str("the header"),
            Self::Key(i) => write!(f, "the name of key {i}"),
            Self::Value(key) => write!(f, "the value of {key:?}"),
            Self::TensorName(i) => write!(f, "the name of tensor {i}"),
            Self::Tensor(name) => write!(f, "the description of tensor {name:?}"),
        }
    }
}

/// A place in the file, and what stands there.
#[derive(Debug, Clone, Copy)]
struct Cursor<'a> {
    file: &'a [u8],
    at: usize,
    place: Place<'a>,
}

impl<'a> Cursor<'a> {
    fn left(&self) -> usize {
        self.file.len() - self.at
    }

    fn truncated(&self, needed: u64) -> GgufError {
        GgufError::Truncated { place: self.place.to_string(), at: self.at, needed, left: self.left() }
    }

    fn take(&mut self, len: u64) -> Result<&'a [u8], GgufError> {
        let end = usize::try_from(len).ok().and_then(|len| self.at.checked_add(len));
        let taken = end.and_then(|end| self.file.get(self.at..end)).ok_or_else(|| self.truncated(len))?;
        self.at += taken.len();
        Ok(taken)
    }

    fn bytes<const N: usize>(&mut self) -> Result<[u8; N], GgufError> {
        let mut bytes = [0; N];
        bytes.copy_from_slice(self.take(N as u64)?); // which takes N bytes
        Ok(bytes)
    }

    fn u32(&mut self) -> Result<u32, GgufError> {
        self.bytes().map(u32::from_le_bytes)
    }

    fn u64(&mut self) -> Result<u64, GgufError> {
        self.bytes().map(u64::from_le_bytes)
    }

    /// A number of things of at least `min_size` bytes each, of which there is room for so many.
    fn count(&mut self, min_size: u64) -> Result<u64, GgufError> {
        let count = self.u64()?;
        match count.checked_mul(min_size) {
            Some(needed) if needed <= self.left() as u64 => Ok(count),
            needed => Err(self.truncated(needed.unwrap_or(u64::MAX))),
        }
    }

    fn string(&mut self) -> Result<&'a str, GgufError> {
        let len = self.count(1)?;
        let at = self.at;
        let text = std::str::from_utf8(self.take(len)?);
        text.map_err(|_| GgufError::Utf8 { place: self.place.to_string(), at })
    }

    fn name(&mut self) -> Result<&'a str, GgufError> {
        let name = self.string()?;
        self.limited(name.len() as u64, MAX_NAME_LEN)?;
        Ok(name)
    }

    fn limited(&self, found: u64, limit: u64) -> Result<(), GgufError> {
        match found <= limit {
            true => Ok(()),
            false => Err(GgufError::TooMany { place: self.place.to_string(), found, limit }),
        }
    }

    fn kind(&mut self) -> Result<Kind, GgufError> {
        let found = self.u32()?;
        Kind::of(found).ok_or_else(|| GgufError::ValueType { place: self.place.to_string(), found })
    }

    fn flag(&mut self) -> Result<bool, GgufError> {
        match self.bytes()? {
            [0] => Ok(false),
            [1] => Ok(true),
            [found] => Err(GgufError::Bool { place: self.place.to_string(), found }),
        }
    }

    fn value(&mut self, kind: Kind, depth: u32) -> Result<Value<'a>, GgufError> {
        Ok(match kind {
            Kind::U8 => Value::Unsigned(u8::from_le_bytes(self.bytes()?).into()),
            Kind::I8 => Value::Signed(i8::from_le_bytes(self.bytes()?).into()),
            Kind::U16 => Value::Unsigned(u16::from_le_bytes(self.bytes()?).into()),
            Kind::I16 => Value::Signed(i16::from_le_bytes(self.bytes()?).into()),
            Kind::U32 => Value::Unsigned(u32::from_le_bytes(self.bytes()?).into()),
            Kind::I32 => Value::Signed(i32::from_le_bytes(self.bytes()?).into()),
            Kind::U64 => Value::Unsigned(u64::from_le_bytes(self.bytes()?)),
            Kind::I64 => Value::Signed(i64::from_le_bytes(self.bytes()?)),
            Kind::F32 => Value::Float(f32::from_le_bytes(self.bytes()?).into()),
            Kind::F64 => Value::Float(f64::from_le_bytes(self.bytes()?)),
            Kind::Bool => Value::Bool(self.flag()?),
            Kind::String => Value::String(self.string()?),
            Kind::Array => Value::Array(self.array(depth)?),
        })
    }

    /// Reads over an array, so that what is wrong in it is known now.
    fn array(&mut self, depth: u32) -> Result<Array<'a>, GgufError> {
        if depth == MAX_NESTING {
            return Err(GgufError::Nesting { place: self.place.to_string(), limit: MAX_NESTING });
        }
        let kind = self.kind()?;
        let len = self.count(kind.min_size())?;
        let start = self.at;
        match kind {
            Kind::Bool | Kind::String | Kind::Array => {
                for _ in 0..len {
                    self.value(kind, depth + 1)?;
                }
            }
            // Of fixed size, and `count` saw that there are so many bytes.
            _ => drop(self.take(len * kind.min_size())?),
        }
        let len = usize::try_from(len).map_err(|_| self.truncated(len))?;
        Ok(Array { kind, len, bytes: &self.file[start..self.at] })
    }
}

impl<'a> Header<'a> {
    /// Reads the header of a file; no element is touched.
    pub(crate) fn read(file: &'a [u8]) -> Result<Self, GgufError> {
        if !file.starts_with(MAGIC) {
            let start = String::from_utf8_lossy(&file[..file.len().min(16)]).into_owned();
            return Err(GgufError::NotGguf { start });
        }
        let mut cursor = Cursor { file, at: MAGIC.len(), place: Place::Header };
        match cursor.u32()? {
            2 | 3 => {}
            found if matches!(found.swap_bytes(), 1..=3) => return Err(GgufError::ByteOrder),
            found => return Err(GgufError::Version { found }),
        }
        let n_tensors = cursor.u64()?;
        let n_keys = cursor.u64()?;
        for found in [n_tensors, n_keys] {
            cursor.limited(found, MAX_ENTRIES)?;
        }
        let metadata = Metadata::read(&mut cursor, n_keys)?;
        let mut tensors = Vec::new(); // grows as descriptions are found: their number is only the file's word
        for i in 0..n_tensors {
            cursor.place = Place::TensorName(i);
            let name = cursor.name()?;
            cursor.place = Place::Tensor(name);
            let n_dimensions = cursor.u32()?;
            if !(1..=MAX_DIMENSIONS).contains(&n_dimensions) {
                return Err(GgufError::Dimensions { tensor: name.to_owned(), found: n_dimensions });
            }
            let dimensions = (0..n_dimensions).map(|_| cursor.u64()).collect::<Result<_, _>>()?;
            let (type_id, offset) = (cursor.u32()?, cursor.u64()?);
            tensors.push(TensorEntry { name, dimensions, type_id, offset });
        }
        let alignment = metadata.alignment(file.len())?;
        // Both are at most the file's length or 32.
        let data_start = cursor.at.next_multiple_of(alignment);
        Ok(Self { metadata, tensors, alignment, data_start })
    }
}

impl<'a> Metadata<'a> {
    fn read(cursor: &mut Cursor<'a>, n_keys: u64) -> Result<Self, GgufError> {
        let mut values = HashMap::new();
        for i in 0..n_keys {
            cursor.place = Place::Key(i);
            let key = cursor.name()?;
            cursor.place = Place::Value(key);
            let kind = cursor.kind()?;
            let value = cursor.value(kind, 0)?;
            match values.entry(key) {
                Entry::Occupied(_) => return Err(GgufError::DuplicateKey { key: key.to_owned() }),
                Entry::Vacant(entry) => entry.insert(value),
            };
        }
        Ok(Self(values))
    }

    fn alignment(&self, file_len: usize) -> Result<usize, GgufError> {
        let Some(alignment) = self.size(ALIGNMENT)? else { return Ok(DEFAULT_ALIGNMENT) };
        match alignment > 0 && alignment.is_multiple_of(8) && alignment <= file_len {
            true => Ok(alignment),
            false => {
                Err(self.wrong(ALIGNMENT, format!("a multiple of 8, at most the file's length {file_len}")))
            }
        }
    }
}

impl<'a> Array<'a> {
    pub(crate) fn len(&self) -> usize {
        self.len
    }

    /// The values, in order.
    pub(crate) fn values(&self) -> impl Iterator<Item = Value<'a>> + use<'a> {
        let kind = self.kind;
        let mut cursor = Cursor { file: self.bytes, at: 0, place: Place::Header };
        // Everything was read once when the file was opened: reading it again cannot fail.
        (0..self.len).map_while(move |_| cursor.value(kind, 0).ok())
    }
}
