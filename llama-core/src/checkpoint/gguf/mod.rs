//! GGUF: one file with the shape, the tokenizer and the tensors, quantised or not. Its words stay in this folder.
//!
//! A file of the architecture `llama` holds `wq` and `wk` in Meta's order of rows, so that all that differs from the canonical
//! form is names, and dimensions written innermost first. Quantised blocks are handed out as they lie in the file. A model
//! without `output.weight` is tied to its embedding.
//!
//! Written from the format's specification (`docs/gguf.md` of ggml); versions 2 and 3, which differ only in that the latter may be
//! big-endian, which this reader refuses.

mod config;
mod error;
mod header;
mod metadata;

use std::collections::HashMap;
use std::path::Path;

use llama_backend::{DType, ModelConfig};

use super::CheckpointError;
use super::blob::Blob;
use super::mmap::map;
use super::view::{FileTensors, RowOrder, Stored, dense_strides};
use super::weights::{Axis, Tensor, Weights};

pub use error::GgufError;
use header::TensorEntry;
pub(crate) use header::{Header, MAGIC, Metadata, Value};

/// The kind of tokenizer that is read: SentencePiece's.
pub(crate) const TOKENIZER: &str = "llama";

/// The types that are read, for errors.
const SUPPORTED: &str =
    "f32, f16, bf16, q4_0, q4_1, q5_0, q5_1, q8_0, q2_K, q3_K, q4_K, q5_K, q6_K, iq4_nl or iq4_xs";

/// What a GGUF file makes.
pub(super) struct Model {
    pub(super) weights: Weights,
    pub(super) max_seq_len: usize,
    /// The kind of tokenizer that the file holds, if it holds one.
    pub(super) tokenizer: Option<String>,
}

/// Whether a file's name is that of a GGUF file.
pub(super) fn is_name(name: &str) -> bool {
    name.ends_with(".gguf")
}

/// Whether a file begins as GGUF files do.
pub(super) fn sniff(path: &Path) -> bool {
    use std::io::Read;
    let mut start = [0; 4];
    let read = std::fs::File::open(path).and_then(|mut file| file.read_exact(&mut start));
    read.is_ok() && start == MAGIC
}

/// Opens a GGUF file.
pub(super) fn open(path: &Path) -> Result<Model, CheckpointError> {
    read(map(path)?)
}

/// Reads a model; no element is touched.
pub(super) fn read(blob: Blob) -> Result<Model, CheckpointError> {
    let shared = blob.clone();
    let header = Header::read(blob.bytes()).map_err(|source| located(&blob, source))?;
    let config::Config { model, max_seq_len } =
        config::read(&header).map_err(|source| located(&blob, source))?;
    model
        .validate()
        .map_err(|source| CheckpointError::Config { file: blob.path(), source: Box::new(source) })?;
    let tokenizer =
        header.metadata.string("tokenizer.ggml.model").map_err(|source| located(&blob, source))?;
    let tokenizer = tokenizer.map(str::to_owned);
    let tensors = tensors(&blob, &header)?;
    let file = FileTensors { blob: shared, tensors, supported: SUPPORTED };
    let weights = canonical(file, model)?;
    Ok(Model { weights, max_seq_len, tokenizer })
}

/// A header's error, and the file it is in.
fn located(blob: &Blob, source: GgufError) -> CheckpointError {
    let file = blob.path();
    match source {
        GgufError::Value { key, found, expected } => {
            CheckpointError::Field { file, field: key, found, expected }
        }
        source => CheckpointError::Gguf { file, source },
    }
}

/// The model's tensors under Meta's names.
fn canonical(mut file: FileTensors, model: ModelConfig) -> Result<Weights, CheckpointError> {
    let tied = !file.tensors.contains_key(OUTPUT);
    let mut tensors = HashMap::new();
    for (name, shape) in model.tensors() {
        let stored = match &*name {
            "output.weight" if tied => continue,
            name => stored_name(name),
        };
        let view = file.take(&stored, &shape, RowOrder::Canonical)?;
        tensors.insert(name, Tensor::new(view.dtype(), shape, Axis::Rows, vec![view]));
    }
    if tied && let Some(embedding) = tensors.get("tok_embeddings.weight").cloned() {
        tensors.insert("output.weight".to_owned(), embedding);
    }
    // RoPE's frequencies follow from the configuration; old converters saved them all the same.
    let mut left_over = file.tensors.keys().filter(|name| !name.ends_with(".attn_rot_embd.weight"));
    if let Some(tensor) = left_over.next() {
        return Err(CheckpointError::ExtraTensor { file: file.blob.path(), tensor: tensor.clone() });
    }
    Ok(Weights::new(file.blob.path(), model, tensors))
}

const OUTPUT: &str = "output.weight";

/// The name that GGUF gives a tensor.
fn stored_name(name: &str) -> String {
    match name {
        "tok_embeddings.weight" => "token_embd.weight".to_owned(),
        "norm.weight" => "output_norm.weight".to_owned(),
        "output.weight" => OUTPUT.to_owned(),
        _ => name
            .replace("layers.", "blk.")
            .replace("attention.wq", "attn_q")
            .replace("attention.wk", "attn_k")
            .replace("attention.wv", "attn_v")
            .replace("attention.wo", "attn_output")
            .replace("feed_forward.w1", "ffn_gate")
            .replace("feed_forward.w2", "ffn_down")
            .replace("feed_forward.w3", "ffn_up")
            .replace("attention_norm", "attn_norm"),
    }
}

/// The tensors, each known to lie within the file and apart from the others.
fn tensors(blob: &Blob, header: &Header<'_>) -> Result<HashMap<String, Stored>, CheckpointError> {
    let file_len = blob.bytes().len();
    let mut tensors = HashMap::new();
    let mut places = Vec::with_capacity(header.tensors.len());
    for entry in &header.tensors {
        let wrong =
            |what: String| CheckpointError::Layout { file: blob.path(), tensor: entry.name.to_owned(), what };
        let stored = stored(header, entry).map_err(wrong)?;
        // The size of an unknown type is unknown too: such a tensor is refused when the model asks for it, and if it does not.
        if let Some(dtype) = stored.dtype {
            let len = row_major_bytes(dtype, &stored.shape).ok_or_else(|| {
                wrong(format!(
                    "shape {:?} of {dtype} is not rows of whole blocks that fit memory",
                    stored.shape
                ))
            })?;
            let end = stored.start.checked_add(len).filter(|&end| end <= file_len).ok_or_else(|| {
                let start = stored.start;
                wrong(format!("its {len} bytes from byte {start} on do not lie within the file's {file_len}"))
            })?;
            places.push((stored.start, end, entry.name));
        }
        if tensors.insert(entry.name.to_owned(), stored).is_some() {
            return Err(wrong("it is there twice".to_owned()));
        }
    }
    places.sort_unstable();
    for pair in places.windows(2) {
        let ((_, end, first), (start, _, second)) = (pair[0], pair[1]);
        if end > start {
            let what = format!("it begins at byte {start}, where {first:?} has not ended (at {end})");
            return Err(CheckpointError::Layout { file: blob.path(), tensor: second.to_owned(), what });
        }
    }
    Ok(tensors)
}

fn row_major_bytes(dtype: DType, shape: &[usize]) -> Option<usize> {
    llama_backend::TensorInfo { dtype, shape: shape.to_vec() }.n_bytes()
}

/// A tensor's place and shape; the error says what is wrong with them.
fn stored(header: &Header<'_>, entry: &TensorEntry<'_>) -> Result<Stored, String> {
    let TensorEntry { dimensions, type_id, offset, .. } = entry;
    let shape: Option<Vec<usize>> = dimensions.iter().rev().map(|&dim| usize::try_from(dim).ok()).collect();
    let shape = shape
        .filter(|shape| {
            let n_elements = shape.iter().try_fold(1_usize, |n, &dim| n.checked_mul(dim));
            n_elements.is_some_and(|n| n > 0)
        })
        .ok_or_else(|| format!("dimensions {dimensions:?} make no tensor"))?;
    let offset = usize::try_from(*offset).ok().filter(|offset| offset.is_multiple_of(header.alignment));
    let start = offset.and_then(|offset| header.data_start.checked_add(offset)).ok_or_else(|| {
        format!("its offset is {}, expected a multiple of the alignment {}", entry.offset, header.alignment)
    })?;
    let dtype = dtype(*type_id);
    let type_name = match dtype {
        Some(dtype) => dtype.to_string(),
        None => format!("type {type_id}{}", unsupported_name(*type_id)),
    };
    Ok(Stored { dtype, type_name, strides: dense_strides(&shape), shape, start })
}

/// ggml's number of a type.
fn dtype(id: u32) -> Option<DType> {
    Some(match id {
        0 => DType::F32,
        1 => DType::F16,
        2 => DType::Q4_0,
        3 => DType::Q4_1,
        6 => DType::Q5_0,
        7 => DType::Q5_1,
        8 => DType::Q8_0,
        10 => DType::Q2_K,
        11 => DType::Q3_K,
        12 => DType::Q4_K,
        13 => DType::Q5_K,
        14 => DType::Q6_K,
        20 => DType::IQ4_NL,
        23 => DType::IQ4_XS,
        30 => DType::BF16,
        _ => return None,
    })
}

/// ggml's name of a type that is not read, in brackets; nothing for one that has none.
fn unsupported_name(id: u32) -> &'static str {
    match id {
        4 | 5 => " (q4_2 or q4_3, which ggml has dropped)",
        9 => " (q8_1)",
        15 => " (q8_K)",
        16 => " (iq2_xxs)",
        17 => " (iq2_xs)",
        18 => " (iq3_xxs)",
        19 => " (iq1_s)",
        21 => " (iq3_s)",
        22 => " (iq2_s)",
        24..=27 => " (whole numbers)",
        28 => " (f64)",
        29 => " (iq1_m)",
        34 => " (tq1_0)",
        35 => " (tq2_0)",
        39 => " (mxfp4)",
        _ => "",
    }
}
