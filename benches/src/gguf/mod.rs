//! Writes GGUF files as a stream: what stands in the header is known beforehand, the elements are asked for tensor by tensor.
//!
//! A random model of 7 billion parameters is a file of gigabytes; nothing of it is ever in memory but the part that is being
//! written. Written from the format's specification (`docs/gguf.md` of ggml), version 3.

mod model;
mod tokenizer;

use std::io::{self, Write};

use llama_backend::{DType, TensorInfo};

pub use model::{model_keys, stored_name};
pub use tokenizer::{MIN_VOCAB_SIZE, tokenizer_keys};

/// What the places of tensors are multiples of: the format's default.
const ALIGNMENT: u64 = 32;

/// A value of the metadata, in the widths that the format's own keys have.
#[derive(Debug, Clone, PartialEq)]
pub enum Value {
    /// A whole number.
    U32(u32),
    /// A number.
    F32(f32),
    /// True or false.
    Bool(bool),
    /// Text.
    Text(String),
    /// Several texts.
    Texts(Vec<String>),
    /// Several numbers.
    F32s(Vec<f32>),
    /// Several whole numbers.
    I32s(Vec<i32>),
}

/// A tensor that the file will hold.
#[derive(Debug, Clone, PartialEq)]
pub struct Tensor {
    /// Its name in the file.
    pub name: String,
    /// Its type and shape, outermost dimension first.
    pub info: TensorInfo,
}

/// Everything but the elements.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Gguf {
    /// The metadata.
    pub keys: Vec<(String, Value)>,
    /// The tensors, in the order in which their elements are written.
    pub tensors: Vec<Tensor>,
}

/// Why a file was not written.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum WriteError {
    /// A tensor whose rows are no whole blocks of its type.
    #[error("tensor {tensor:?}: shape {shape:?} is not rows of whole blocks of {dtype}")]
    Blocks {
        /// The tensor.
        tensor: String,
        /// Its shape.
        shape: Vec<usize>,
        /// Its type.
        dtype: DType,
    },
    /// A type that GGUF has no number for.
    #[error("tensor {tensor:?}: {dtype} is no type of GGUF files")]
    DType {
        /// The tensor.
        tensor: String,
        /// Its type.
        dtype: DType,
    },
    /// Another number of bytes than the header promised for a tensor.
    #[error("tensor {tensor:?}: {found} bytes were written, expected {expected}")]
    Length {
        /// The tensor.
        tensor: String,
        /// The bytes written.
        found: u64,
        /// The bytes that its type and shape take.
        expected: u64,
    },
    /// The system's error.
    #[error(transparent)]
    Io(#[from] io::Error),
}

impl Gguf {
    /// Writes the header, and each tensor as `fill` writes its elements.
    ///
    /// # Errors
    ///
    /// [`WriteError`]; what `fill` says. What was written so far is no GGUF file then.
    pub fn write<W: Write>(
        &self,
        mut out: W,
        mut fill: impl FnMut(&Tensor, &mut dyn Write) -> io::Result<()>,
    ) -> Result<(), WriteError> {
        let (header, lens) = self.header()?;
        out.write_all(&header)?;
        pad(&mut out, header.len() as u64)?;
        for (tensor, expected) in self.tensors.iter().zip(lens) {
            let mut counted = Counted { out: &mut out, n: 0 };
            fill(tensor, &mut counted)?;
            let found = counted.n;
            if found != expected {
                return Err(WriteError::Length { tensor: tensor.name.clone(), found, expected });
            }
            pad(&mut out, found)?;
        }
        out.flush()?;
        Ok(())
    }

    /// The header, and the bytes of each tensor.
    fn header(&self) -> Result<(Vec<u8>, Vec<u64>), WriteError> {
        let mut bytes = b"GGUF".to_vec();
        bytes.extend(3_u32.to_le_bytes());
        bytes.extend((self.tensors.len() as u64).to_le_bytes());
        bytes.extend((self.keys.len() as u64).to_le_bytes());
        for (key, value) in &self.keys {
            text(&mut bytes, key);
            value.write(&mut bytes);
        }
        let mut at = 0_u64;
        let mut lens = Vec::with_capacity(self.tensors.len());
        for Tensor { name, info } in &self.tensors {
            let dtype = info.dtype;
            let len = info.n_bytes().ok_or_else(|| WriteError::Blocks {
                tensor: name.clone(),
                shape: info.shape.clone(),
                dtype,
            })?;
            let id = type_id(dtype).ok_or_else(|| WriteError::DType { tensor: name.clone(), dtype })?;
            text(&mut bytes, name);
            bytes.extend((info.shape.len() as u32).to_le_bytes());
            for &dim in info.shape.iter().rev() {
                bytes.extend((dim as u64).to_le_bytes());
            }
            bytes.extend(id.to_le_bytes());
            bytes.extend(at.to_le_bytes());
            lens.push(len as u64);
            at = (at + len as u64).next_multiple_of(ALIGNMENT);
        }
        Ok((bytes, lens))
    }
}

impl Value {
    /// The type's number and the value.
    fn write(&self, out: &mut Vec<u8>) {
        const U32: u32 = 4;
        const I32: u32 = 5;
        const F32: u32 = 6;
        const BOOL: u32 = 7;
        const TEXT: u32 = 8;
        const ARRAY: u32 = 9;
        let array = |out: &mut Vec<u8>, kind: u32, len: usize| {
            out.extend(ARRAY.to_le_bytes());
            out.extend(kind.to_le_bytes());
            out.extend((len as u64).to_le_bytes());
        };
        match self {
            Self::U32(n) => out.extend([U32, *n].map(u32::to_le_bytes).as_flattened()),
            Self::F32(x) => out.extend([F32, x.to_bits()].map(u32::to_le_bytes).as_flattened()),
            Self::Bool(flag) => {
                out.extend(BOOL.to_le_bytes());
                out.push(u8::from(*flag));
            }
            Self::Text(value) => {
                out.extend(TEXT.to_le_bytes());
                text(out, value);
            }
            Self::Texts(values) => {
                array(out, TEXT, values.len());
                values.iter().for_each(|value| text(out, value));
            }
            Self::F32s(values) => {
                array(out, F32, values.len());
                out.extend(values.iter().flat_map(|x| x.to_le_bytes()));
            }
            Self::I32s(values) => {
                array(out, I32, values.len());
                out.extend(values.iter().flat_map(|n| n.to_le_bytes()));
            }
        }
    }
}

fn text(out: &mut Vec<u8>, text: &str) {
    out.extend((text.len() as u64).to_le_bytes());
    out.extend(text.as_bytes());
}

/// Zeros up to the next place where a tensor may begin.
fn pad(out: &mut impl Write, written: u64) -> io::Result<()> {
    let zeros = [0; ALIGNMENT as usize];
    let n = written.next_multiple_of(ALIGNMENT) - written; // below the alignment
    out.write_all(&zeros[..n as usize])
}

/// Counts what is written.
struct Counted<W> {
    out: W,
    n: u64,
}

impl<W: Write> Write for Counted<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let n = self.out.write(bytes)?;
        self.n += n as u64;
        Ok(n)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.out.flush()
    }
}

/// ggml's number of a type.
fn type_id(dtype: DType) -> Option<u32> {
    Some(match dtype {
        DType::F32 => 0,
        DType::F16 => 1,
        DType::Q4_0 => 2,
        DType::Q4_1 => 3,
        DType::Q5_0 => 6,
        DType::Q5_1 => 7,
        DType::Q8_0 => 8,
        DType::Q2_K => 10,
        DType::Q3_K => 11,
        DType::Q4_K => 12,
        DType::Q5_K => 13,
        DType::Q6_K => 14,
        DType::IQ4_NL => 20,
        DType::IQ4_XS => 23,
        DType::BF16 => 30,
        _ => return None, // a type that was added since
    })
}
