//! One `.safetensors` file: its tensors, and where in the file their elements lie.
//!
//! The `safetensors` crate parses and validates the header; what it cannot know, the lengths of header and file, is checked
//! here first, so that a header is never larger than the file nor longer than any checkpoint needs.

use std::collections::HashMap;
use std::error::Error;

use llama_backend::DType;
use safetensors::Dtype;
use safetensors::tensor::Metadata;

use super::CheckpointError;
use super::blob::Blob;
use super::view::{FileTensors, PLAIN, Stored, dense_strides};

/// Llama 2 70B in one file would take 100 KB.
const MAX_HEADER_LEN: usize = 16 << 20;

/// Reads the header of a `.safetensors` file; no element is touched.
pub(super) fn read(blob: Blob) -> Result<FileTensors, CheckpointError> {
    match read_header(blob.bytes()) {
        Ok(tensors) => Ok(FileTensors { blob, tensors, supported: PLAIN }),
        Err(source) => Err(CheckpointError::Safetensors { file: blob.path(), source }),
    }
}

fn read_header(file: &[u8]) -> Result<HashMap<String, Stored>, Box<dyn Error + Send + Sync>> {
    let (header_len, rest) =
        file.split_first_chunk().ok_or("the file ends within the length of its header")?;
    let header_len = usize::try_from(u64::from_le_bytes(*header_len))
        .ok()
        .filter(|&len| len <= MAX_HEADER_LEN)
        .ok_or_else(|| format!("its header says that it is longer than {MAX_HEADER_LEN} bytes"))?;
    let (header, data) = rest
        .split_at_checked(header_len)
        .ok_or_else(|| format!("the file ends within its header of {header_len} bytes"))?;
    // Validated: the tensors follow each other without a gap, each as long as its shape and type make it.
    let metadata: Metadata = serde_json::from_slice(header)?;
    if metadata.data_len() != data.len() {
        let expected = metadata.data_len();
        return Err(format!("the file holds {} bytes of tensors, expected {expected}", data.len()).into());
    }
    let data_start = file.len() - data.len();
    let tensors = metadata.tensors().into_iter().map(|(name, info)| {
        let stored = Stored {
            dtype: dtype(info.dtype),
            type_name: info.dtype.to_string(),
            shape: info.shape.clone(),
            strides: dense_strides(&info.shape),
            start: data_start + info.data_offsets.0,
        };
        (name, stored)
    });
    Ok(tensors.collect())
}

fn dtype(dtype: Dtype) -> Option<DType> {
    match dtype {
        Dtype::F32 => Some(DType::F32),
        Dtype::F16 => Some(DType::F16),
        Dtype::BF16 => Some(DType::BF16),
        _ => None,
    }
}
