//! Meta's layout: `params.json` and `consolidated.*.pth`, one file for each rank that the model was trained for.
//!
//! The reference starts as many processes as there are files. Here the shards are joined as they are read, by the rules of
//! its parallel layers, so that any number of them serves any number of processes.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use llama_backend::{ModelConfig, WeightError, meta_ffn_dim};

use super::blob::Blob;
use super::json::Fields;
use super::mmap::map;
use super::view::{FileTensors, RowOrder, View};
use super::weights::{Axis, Tensor, Weights};
use super::{CheckpointError, pth};

pub(super) const PARAMS: &str = "params.json";

/// Whether a file name is that of a shard.
pub(super) fn is_shard(name: &str) -> bool {
    name.starts_with("consolidated.") && name.ends_with(".pth")
}

/// Opens a folder that holds `params.json` and these shards.
pub(super) fn open(dir: &Path, mut shards: Vec<String>) -> Result<Weights, CheckpointError> {
    shards.sort();
    // Meta numbers them with two digits.
    let expected: Vec<_> = (0..shards.len()).map(|i| format!("consolidated.{i:02}.pth")).collect();
    if shards != expected {
        return Err(CheckpointError::Shards {
            dir: dir.to_owned(),
            found: shards,
            expected: "consolidated.00.pth and on, without a gap".to_owned(),
        });
    }
    let params = map(&dir.join(PARAMS))?;
    let shards: Vec<_> = shards.iter().map(|name| map(&dir.join(name))).collect::<Result<_, _>>()?;
    join(dir, &params, shards)
}

/// Joins the shards of a model.
pub(super) fn join(root: &Path, params: &Blob, shards: Vec<Blob>) -> Result<Weights, CheckpointError> {
    let mut shards: Vec<_> = shards.into_iter().map(pth::read).collect::<Result<_, _>>()?;
    let config = read_params(params, &shards)?;
    config
        .validate()
        .map_err(|source| CheckpointError::Config { file: params.path(), source: Box::new(source) })?;
    let mut tensors = HashMap::new();
    for (name, shape) in config.tensors() {
        let tensor = join_tensor(root, &mut shards, &name, shape)?;
        tensors.insert(name, tensor);
    }
    for shard in &shards {
        // RoPE's frequencies follow from the configuration; Meta's files have them all the same.
        if let Some(tensor) = shard.tensors.keys().find(|name| *name != "rope.freqs") {
            return Err(CheckpointError::ExtraTensor { file: shard.blob.path(), tensor: tensor.clone() });
        }
    }
    Ok(Weights::new(root.to_owned(), config, tensors))
}

/// How the reference's parallel layers split a tensor: `ColumnParallelLinear` by output, `RowParallelLinear` by input,
/// `ParallelEmbedding` by width; `None` for what every rank has whole.
fn split(name: &str) -> Option<Axis> {
    let (owner, _) = name.rsplit_once('.')?; // without ".weight"
    match owner.rsplit('.').next()? {
        "wq" | "wk" | "wv" | "w1" | "w3" | "output" => Some(Axis::Rows),
        "wo" | "w2" | "tok_embeddings" => Some(Axis::Cols),
        _ => None,
    }
}

fn join_tensor(
    root: &Path,
    shards: &mut [FileTensors],
    name: &str,
    shape: Vec<usize>,
) -> Result<Tensor, CheckpointError> {
    let n = shards.len();
    let axis = split(name);
    let mut part_shape = shape.clone();
    let dim = match axis {
        Some(Axis::Rows) => part_shape.first_mut(),
        Some(Axis::Cols) => part_shape.last_mut(),
        None => None,
    };
    if let Some(dim) = dim {
        if !dim.is_multiple_of(n) {
            return Err(CheckpointError::Shards {
                dir: root.to_owned(),
                found: shards.iter().map(|shard| shard.blob.name()).collect(),
                expected: format!("a number of shards that divides tensor {name:?} of shape {shape:?}"),
            });
        }
        *dim /= n;
    }
    let mut parts: Vec<View> = shards
        .iter_mut()
        .map(|shard| shard.take(name, &part_shape, RowOrder::Canonical))
        .collect::<Result<_, _>>()?;
    let dtype = parts[0].dtype(); // there is a shard: the folder was recognised by it
    if let Some(other) = parts.iter().find(|part| part.dtype() != dtype) {
        return Err(CheckpointError::Weights(WeightError::DType {
            file: other.path(),
            tensor: name.to_owned(),
            found: other.dtype().to_string(),
            expected: format!("{dtype}, as in {}", parts[0].path().display()),
        }));
    }
    if axis.is_none() {
        parts.truncate(1);
    }
    Ok(Tensor::new(dtype, shape, axis.unwrap_or(Axis::Rows), parts))
}

/// Reads `params.json` as the reference's `ModelArgs` takes it: the same defaults, and an unknown field is an error.
///
/// `rope_theta` is accepted beyond that, as Code Llama's files have it. Meta's Llama 2 files give a `vocab_size` of -1 and leave
/// it to the tokenizer; the embedding has the same number of rows.
fn read_params(params: &Blob, shards: &[FileTensors]) -> Result<ModelConfig, CheckpointError> {
    let mut fields = Fields::parse(params)?;
    let dim = fields.required_size("dim")?;
    let n_layers = fields.required_size("n_layers")?;
    let n_heads = fields.required_size("n_heads")?;
    let n_kv_heads = fields.size("n_kv_heads")?.unwrap_or(n_heads);
    let multiple_of = fields.size("multiple_of")?.unwrap_or(256);
    let ffn_dim_multiplier = fields.number("ffn_dim_multiplier")?;
    let norm_eps = fields.number("norm_eps")?.unwrap_or(1e-5);
    let rope_theta = fields.number("rope_theta")?.unwrap_or(10000.0);
    let vocab_size = match fields.take("vocab_size") {
        Some(value) if value.as_i64() != Some(-1) => {
            let size = value.as_u64().and_then(|size| usize::try_from(size).ok());
            size.ok_or_else(|| fields.wrong("vocab_size", value, "a whole number, or -1"))?
        }
        _ => embedding_rows(shards)?,
    };
    for field in ["max_seq_len", "max_batch_size"] {
        if let Some(value) = fields.take(field) {
            let expected = "absent: it is given when a model is loaded, not by the checkpoint";
            return Err(fields.wrong(field, value, expected));
        }
    }
    if let Some((field, value)) = fields.left_over() {
        let expected = "absent: the reference's ModelArgs has no such field";
        return Err(fields.wrong(field, value, expected));
    }
    let head_dim = dim.checked_div(n_heads).unwrap_or(0);
    if head_dim.checked_mul(n_heads) != Some(dim) || n_heads == 0 {
        return Err(fields.wrong("n_heads", n_heads, format!("a divisor of dim = {dim}")));
    }
    let ffn_dim = meta_ffn_dim(dim, ffn_dim_multiplier, multiple_of).ok_or_else(|| {
        let expected = format!("a multiple that makes a feed-forward width for dim = {dim}");
        fields.wrong("multiple_of", multiple_of, expected)
    })?;
    Ok(ModelConfig {
        dim,
        n_layers,
        n_heads,
        n_kv_heads,
        head_dim,
        ffn_dim,
        vocab_size,
        norm_eps: norm_eps as f32,
        rope_theta,
    })
}

fn embedding_rows(shards: &[FileTensors]) -> Result<usize, CheckpointError> {
    let name = "tok_embeddings.weight";
    let rows = shards.first().and_then(|shard| shard.tensors.get(name)?.shape.first());
    rows.copied().ok_or_else(|| {
        CheckpointError::Weights(WeightError::Missing {
            file: shards.first().map_or_else(PathBuf::new, |shard| shard.blob.path()),
            tensor: name.to_owned(),
        })
    })
}
