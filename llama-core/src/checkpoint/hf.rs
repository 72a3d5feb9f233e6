//! Hugging Face's layout: `config.json` and `model.safetensors`, or shards of it with an index. Its words stay in this file.
//!
//! Two things differ from the canonical form, and both are settled here, once: the names, and the order of the rows of
//! `q_proj` and `k_proj`, which within each head have the first elements of all RoPE pairs before the second ones.
//!
//! `config.json` has many fields that say nothing about inference; those are left alone. Each one that would change the
//! numbers must have the value that Llama 2 has, or it is an error: a model that loads is computed as its makers meant it.

use std::collections::{BTreeMap, HashMap};
use std::path::{Component, Path, PathBuf};

use llama_backend::{ModelConfig, WeightError};
use serde_json::Value;

use super::blob::Blob;
use super::json::Fields;
use super::mmap::map;
use super::view::{FileTensors, RowOrder};
use super::weights::{Axis, Tensor, Weights};
use super::{CheckpointError, safetensors};

pub(super) const CONFIG: &str = "config.json";
pub(super) const MODEL: &str = "model.safetensors";
pub(super) const INDEX: &str = "model.safetensors.index.json";

/// Far above the positions of any model.
const MAX_POSITIONS: usize = 1 << 24;

/// What `config.json` says.
struct Config {
    model: ModelConfig,
    max_seq_len: usize,
    tied: bool,
}

/// Opens a folder that holds `config.json` and, as `has_index` says, an index or one file.
pub(super) fn open(dir: &Path, has_index: bool) -> Result<(Weights, usize), CheckpointError> {
    let config = read_config(&map(&dir.join(CONFIG))?)?;
    let mut files = Files::open(dir, has_index)?;
    let mut tensors = HashMap::new();
    for (name, shape) in config.model.tensors() {
        if config.tied && name == "output.weight" {
            continue;
        }
        let tensor = files.take(&name, shape, config.model.head_dim)?;
        tensors.insert(name, tensor);
    }
    if config.tied {
        // transformers ties them after it has read the file, so that a stored lm_head has no say there either.
        files.discard("lm_head.weight");
        if let Some(embedding) = tensors.get("tok_embeddings.weight").cloned() {
            tensors.insert("output.weight".to_owned(), embedding);
        }
    }
    files.check_left_over()?;
    Ok((Weights::new(dir.to_owned(), config.model, tensors), config.max_seq_len))
}

/// The name that Hugging Face gives a tensor.
fn stored_name(name: &str) -> String {
    match name {
        "tok_embeddings.weight" => "model.embed_tokens.weight".to_owned(),
        "norm.weight" => "model.norm.weight".to_owned(),
        "output.weight" => "lm_head.weight".to_owned(),
        _ => {
            let stored = name
                .replace("attention.wq", "self_attn.q_proj")
                .replace("attention.wk", "self_attn.k_proj")
                .replace("attention.wv", "self_attn.v_proj")
                .replace("attention.wo", "self_attn.o_proj")
                .replace("feed_forward.w1", "mlp.gate_proj")
                .replace("feed_forward.w2", "mlp.down_proj")
                .replace("feed_forward.w3", "mlp.up_proj")
                .replace("attention_norm", "input_layernorm")
                .replace("ffn_norm", "post_attention_layernorm");
            format!("model.{stored}")
        }
    }
}

/// The files of a checkpoint, and which of them holds which tensor.
struct Files {
    files: Vec<FileTensors>,
    /// Where there is an index: its path, and the file of each tensor.
    index: Option<(PathBuf, HashMap<String, usize>)>,
}

impl Files {
    fn open(dir: &Path, has_index: bool) -> Result<Self, CheckpointError> {
        if !has_index {
            let file = safetensors::read(map(&dir.join(MODEL))?)?;
            return Ok(Self { files: vec![file], index: None });
        }
        let path = dir.join(INDEX);
        let mut index = HashMap::new();
        let mut files = Vec::new();
        for (shard, tensors) in read_index(&map(&path)?)? {
            let shard = dir.join(&shard);
            if !shard.exists() {
                return Err(CheckpointError::MissingFile {
                    file: shard,
                    needed_for: format!("{INDEX} asks for it"),
                });
            }
            let file = safetensors::read(map(&shard)?)?;
            for tensor in tensors {
                if !file.tensors.contains_key(&tensor) {
                    let file = shard;
                    return Err(WeightError::Missing { file, tensor }.into());
                }
                index.insert(tensor, files.len());
            }
            files.push(file);
        }
        Ok(Self { files, index: Some((path, index)) })
    }

    /// Takes the tensor of this canonical name.
    fn take(&mut self, name: &str, shape: Vec<usize>, head_dim: usize) -> Result<Tensor, CheckpointError> {
        let stored = stored_name(name);
        let order = if name.ends_with(".wq.weight") || name.ends_with(".wk.weight") {
            RowOrder::HalfSplit { head_dim }
        } else {
            RowOrder::Canonical
        };
        let file = match &self.index {
            None => 0,
            Some((path, index)) => *index
                .get(&stored)
                .ok_or_else(|| WeightError::Missing { file: path.clone(), tensor: stored.clone() })?,
        };
        let view = self.files[file].take(&stored, &shape, order)?; // there is a file: `open` saw to it
        Ok(Tensor::new(view.dtype(), shape, Axis::Rows, vec![view]))
    }

    fn discard(&mut self, stored: &str) {
        for file in &mut self.files {
            file.tensors.remove(stored);
        }
    }

    fn check_left_over(&self) -> Result<(), CheckpointError> {
        for file in &self.files {
            // RoPE's frequencies follow from the configuration; old versions of transformers saved them.
            let mut names = file.tensors.keys();
            if let Some(tensor) = names.find(|name| !name.ends_with(".rotary_emb.inv_freq")) {
                return Err(CheckpointError::ExtraTensor { file: file.blob.path(), tensor: tensor.clone() });
            }
        }
        Ok(())
    }
}

/// The shards that an index names, each with its tensors.
fn read_index(index: &Blob) -> Result<BTreeMap<String, Vec<String>>, CheckpointError> {
    let mut fields = Fields::parse(index)?;
    let expected = "an object of file names by tensor name";
    let map = match fields.take("weight_map") {
        Some(Value::Object(map)) if !map.is_empty() => map,
        found => {
            let found = found.map_or_else(|| "absent".to_owned(), |value| value.to_string());
            return Err(fields.wrong("weight_map", found, expected));
        }
    };
    let mut shards: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for (tensor, shard) in map {
        // A name, not a path: an index must not lead out of its folder.
        let is_name = |shard: &&str| {
            let mut parts = Path::new(shard).components();
            matches!((parts.next(), parts.next()), (Some(Component::Normal(_)), None))
                && !shard.contains(['/', '\\', ':', '\0'])
        };
        let Some(name) = shard.as_str().filter(is_name) else {
            let expected = "the name of a file in the same folder";
            return Err(fields.wrong(&format!("weight_map.{tensor}"), shard, expected));
        };
        shards.entry(name.to_owned()).or_default().push(tensor);
    }
    Ok(shards)
}

/// The shape and the positions in a `config.json`.
pub(super) fn shape(path: &Path) -> Result<(ModelConfig, usize), CheckpointError> {
    let config = read_config(&map(path)?)?;
    Ok((config.model, config.max_seq_len))
}

fn read_config(file: &Blob) -> Result<Config, CheckpointError> {
    let mut fields = Fields::parse(file)?;
    must_be(&mut fields, "model_type", &["llama".into()])?;
    must_be(&mut fields, "architectures", &[vec!["LlamaForCausalLM"].into()])?;
    must_be(&mut fields, "hidden_act", &["silu".into()])?;
    for flag in ["attention_bias", "mlp_bias"] {
        must_be(&mut fields, flag, &[false.into()])?;
    }
    must_be(&mut fields, "partial_rotary_factor", &[1.into(), 1.0.into()])?;
    for feature in ["rope_scaling", "quantization_config"] {
        must_be(&mut fields, feature, &[])?;
    }
    let rope_theta = rope_theta(&mut fields)?;

    let dim = fields.required_size("hidden_size")?;
    let n_heads = fields.required_size("num_attention_heads")?;
    let n_kv_heads = fields.size("num_key_value_heads")?.unwrap_or(n_heads);
    let head_dim = match fields.size("head_dim")? {
        Some(head_dim) => head_dim,
        None => dim
            .checked_div(n_heads)
            .filter(|head_dim| head_dim.checked_mul(n_heads) == Some(dim))
            .ok_or_else(|| {
                let expected = format!("a divisor of hidden_size = {dim}");
                fields.wrong("num_attention_heads", n_heads, expected)
            })?,
    };
    let model = ModelConfig {
        dim,
        n_layers: fields.required_size("num_hidden_layers")?,
        n_heads,
        n_kv_heads,
        head_dim,
        ffn_dim: fields.required_size("intermediate_size")?,
        vocab_size: fields.required_size("vocab_size")?,
        // Where a field is absent, LlamaConfig's default.
        norm_eps: fields.number("rms_norm_eps")?.unwrap_or(1e-6) as f32,
        rope_theta,
    };
    model.validate().map_err(|source| CheckpointError::Config {
        file: fields.file().to_owned(),
        source: Box::new(source),
    })?;
    let max_seq_len = fields.size("max_position_embeddings")?.unwrap_or(2048);
    if !(1..=MAX_POSITIONS).contains(&max_seq_len) {
        let expected = format!("between 1 and {MAX_POSITIONS}");
        return Err(fields.wrong("max_position_embeddings", max_seq_len, expected));
    }
    Ok(Config { model, max_seq_len, tied: fields.flag("tie_word_embeddings")?.unwrap_or(false) })
}

/// Checks a field that has one of these values in every Llama 2 model, or is absent.
fn must_be(fields: &mut Fields, field: &str, accepted: &[Value]) -> Result<(), CheckpointError> {
    match fields.take(field) {
        Some(found) if !accepted.contains(&found) => {
            let expected = match accepted.first() {
                Some(value) => format!("{value}; no other is supported"),
                None => "null; it is not supported".to_owned(),
            };
            Err(fields.wrong(field, found, expected))
        }
        _ => Ok(()),
    }
}

/// RoPE's base: `rope_theta`, which transformers 5 moved into `rope_parameters`.
fn rope_theta(fields: &mut Fields) -> Result<f64, CheckpointError> {
    let outer = fields.number("rope_theta")?;
    let inner = match fields.take("rope_parameters") {
        None => None,
        Some(Value::Object(map)) => {
            let mut parameters = fields.nested(map);
            must_be(&mut parameters, "rope_type", &["default".into()])?;
            must_be(&mut parameters, "type", &["default".into()])?;
            must_be(&mut parameters, "partial_rotary_factor", &[1.into(), 1.0.into()])?;
            let theta = parameters.number("rope_theta")?;
            if let Some((field, value)) = parameters.left_over() {
                let field = format!("rope_parameters.{field}");
                return Err(fields.wrong(&field, value, "absent; it is not supported"));
            }
            theta
        }
        Some(other) => return Err(fields.wrong("rope_parameters", other, "an object")),
    };
    match (outer, inner) {
        (Some(outer), Some(inner)) if outer != inner => {
            Err(fields.wrong("rope_theta", outer, format!("{inner}, as in rope_parameters")))
        }
        (outer, inner) => Ok(outer.or(inner).unwrap_or(10000.0)),
    }
}
