//! A folder with `model.onnx`, as Optimum and onnxruntime-genai's builder write it: no tensors to be read, but a graph that an
//! engine runs as it is. What is read here is the shape, from `config.json` or `genai_config.json` beside it.
//!
//! `genai_config.json` has no width of the feed-forward layer, no epsilon and no RoPE base. Where it stands alone, those are
//! Llama 2's: the graph has its own, and nobody computes with these.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use llama_backend::{ModelConfig, meta_ffn_dim};
use serde_json::Value;

use super::json::Fields;
use super::mmap::map;
use super::weights::Weights;
use super::{CheckpointError, hf};

pub(super) const MODEL: &str = "model.onnx";
pub(super) const GENAI: &str = "genai_config.json";

/// Opens a folder that holds `model.onnx` and one or both of the configurations: the graph, weights without tensors, and the
/// positions that the model was made for.
pub(super) fn open(
    dir: &Path,
    has: impl Fn(&str) -> bool,
) -> Result<(PathBuf, Weights, usize), CheckpointError> {
    let genai = if has(GENAI) { Some(read_genai(&dir.join(GENAI))?) } else { None };
    let shape = if has(hf::CONFIG) { Some(hf::shape(&dir.join(hf::CONFIG))?) } else { None };
    let (config, max_seq_len) = match (shape, genai) {
        // The builder cuts RoPE's tables to its own context_length.
        (Some((config, positions)), Some((_, context))) => (config, positions.min(context)),
        (Some(shape), None) | (None, Some(shape)) => shape,
        (None, None) => {
            return Err(CheckpointError::MissingFile {
                file: dir.join(hf::CONFIG),
                needed_for: format!("{MODEL} asks for it, or for {GENAI}"),
            });
        }
    };
    let graph = dir.join(MODEL);
    Ok((graph.clone(), Weights::new(graph, config, HashMap::new()), max_seq_len))
}

/// The shape and the context in `genai_config.json`.
fn read_genai(path: &Path) -> Result<(ModelConfig, usize), CheckpointError> {
    let mut fields = Fields::parse(&map(path)?)?;
    let mut model = object(&mut fields, "model")?;
    for (field, expected) in [("type", "llama")] {
        if let Some(found) = model.take(field).filter(|found| found != expected) {
            return Err(model.wrong(&format!("model.{field}"), found, format!("{expected:?}")));
        }
    }
    let mut decoder = object(&mut model, "decoder")?;
    if let Some(found) = decoder.take("filename").filter(|found| found != MODEL) {
        return Err(decoder.wrong("model.decoder.filename", found, format!("{MODEL:?}")));
    }
    let dim = decoder.required_size("hidden_size")?;
    let n_heads = decoder.required_size("num_attention_heads")?;
    let config = ModelConfig {
        dim,
        n_layers: decoder.required_size("num_hidden_layers")?,
        n_heads,
        n_kv_heads: decoder.size("num_key_value_heads")?.unwrap_or(n_heads),
        head_dim: decoder.required_size("head_size")?,
        ffn_dim: meta_ffn_dim(dim, None, 256).unwrap_or(1),
        vocab_size: model.required_size("vocab_size")?,
        norm_eps: 1e-5,
        rope_theta: 10000.0,
    };
    config
        .validate()
        .map_err(|source| CheckpointError::Config { file: path.to_owned(), source: Box::new(source) })?;
    Ok((config, model.required_size("context_length")?.max(1)))
}

fn object(fields: &mut Fields, field: &str) -> Result<Fields, CheckpointError> {
    match fields.take(field) {
        Some(Value::Object(map)) => Ok(fields.nested(map)),
        found => {
            let found = found.map_or_else(|| "absent".to_owned(), |value| value.to_string());
            Err(fields.wrong(field, found, "an object"))
        }
    }
}
