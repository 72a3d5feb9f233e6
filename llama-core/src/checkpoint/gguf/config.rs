//! The shape of the model, from a GGUF file's metadata.
//!
//! Keys that say nothing about inference are left alone. Each one that would change the numbers must have the value that Llama 2
//! has, or it is an error: a model that loads is computed as its makers meant it.

use llama_backend::ModelConfig;

use super::header::Value;
use super::{GgufError, Header, Metadata};

/// Far above the positions of any model.
const MAX_POSITIONS: usize = 1 << 24;

/// What the metadata say.
pub(super) struct Config {
    pub(super) model: ModelConfig,
    pub(super) max_seq_len: usize,
}

pub(super) fn read(header: &Header<'_>) -> Result<Config, GgufError> {
    let metadata = &header.metadata;
    if metadata.string("general.architecture")? != Some("llama") {
        return Err(metadata.wrong("general.architecture", "\"llama\"; no other is supported"));
    }
    refuse_others(header)?;

    let dim = required(metadata, "llama.embedding_length")?;
    let n_heads = required(metadata, "llama.attention.head_count")?;
    let n_kv_heads = metadata.size("llama.attention.head_count_kv")?.unwrap_or(n_heads);
    let model = ModelConfig {
        dim,
        n_layers: required(metadata, "llama.block_count")?,
        n_heads,
        n_kv_heads,
        head_dim: head_dim(metadata, dim, n_heads)?,
        ffn_dim: required(metadata, "llama.feed_forward_length")?,
        vocab_size: vocab_size(header)?,
        norm_eps: metadata
            .float("llama.attention.layer_norm_rms_epsilon")?
            .ok_or_else(|| metadata.wrong("llama.attention.layer_norm_rms_epsilon", "a number"))?
            as f32,
        rope_theta: metadata.float("llama.rope.freq_base")?.unwrap_or(10000.0),
    };
    let max_seq_len = required(metadata, "llama.context_length")?;
    if !(1..=MAX_POSITIONS).contains(&max_seq_len) {
        return Err(metadata.wrong("llama.context_length", format!("between 1 and {MAX_POSITIONS}")));
    }
    Ok(Config { model, max_seq_len })
}

/// A whole number without which there is no model.
fn required(metadata: &Metadata<'_>, key: &str) -> Result<usize, GgufError> {
    metadata.size(key)?.ok_or_else(|| metadata.wrong(key, "a whole number"))
}

/// The width of a head, and of what RoPE turns of it: all of it.
fn head_dim(metadata: &Metadata<'_>, dim: usize, n_heads: usize) -> Result<usize, GgufError> {
    const KEY: &str = "llama.attention.key_length";
    let head_dim = match metadata.size(KEY)? {
        Some(head_dim) => head_dim,
        None => dim
            .checked_div(n_heads)
            .filter(|head_dim| head_dim.checked_mul(n_heads) == Some(dim))
            .ok_or_else(|| {
                metadata.wrong("llama.attention.head_count", format!("a divisor of embedding_length = {dim}"))
            })?,
    };
    for key in ["llama.attention.value_length", "llama.rope.dimension_count"] {
        if metadata.size(key)?.is_some_and(|found| found != head_dim) {
            return Err(metadata.wrong(key, format!("{head_dim}, the width of a head")));
        }
    }
    Ok(head_dim)
}

/// The rows of the embedding; older files say it only by their tokens or the embedding itself.
fn vocab_size(header: &Header<'_>) -> Result<usize, GgufError> {
    let metadata = &header.metadata;
    if let Some(vocab_size) = metadata.size("llama.vocab_size")? {
        return Ok(vocab_size);
    }
    let embedding = header.tensors.iter().find(|tensor| tensor.name == "token_embd.weight");
    let rows = embedding.and_then(|tensor| usize::try_from(*tensor.dimensions.get(1)?).ok());
    rows.ok_or_else(|| metadata.wrong("llama.vocab_size", "a whole number, or the embedding to tell it"))
}

/// Refuses what would change the numbers.
fn refuse_others(header: &Header<'_>) -> Result<(), GgufError> {
    let metadata = &header.metadata;
    // Blocks of an earlier version look the same and mean something else.
    let quantized = |id: u32| super::dtype(id).is_some_and(llama_backend::DType::is_quantized);
    if header.tensors.iter().any(|tensor| quantized(tensor.type_id)) {
        must_be(metadata, "general.quantization_version", &[Value::Unsigned(2)])?;
    }
    must_be(metadata, "split.count", &[Value::Unsigned(0), Value::Unsigned(1)])?;
    must_be(metadata, "llama.tensor_data_layout", &[Value::String("Meta AI original pth")])?;
    // Without a type, ggml takes `linear`, which the factor 1 (or 0, for none) makes nothing of.
    must_be(metadata, "llama.rope.scaling.type", &[Value::String("none"), Value::String("linear")])?;
    for key in ["llama.rope.scaling.factor", "llama.rope.scale_linear"] {
        must_be(metadata, key, &[Value::Float(1.0), Value::Float(0.0)])?;
    }
    must_be(metadata, "llama.rope.scaling.attn_factor", &[Value::Float(1.0)])?;
    for scale in
        ["llama.logit_scale", "llama.residual_scale", "llama.embedding_scale", "llama.attention.scale"]
    {
        must_be(metadata, scale, &[Value::Float(1.0), Value::Float(0.0)])?;
    }
    for none in [
        "llama.expert_count",
        "llama.attention.sliding_window",
        "llama.attention.clamp_kqv",
        "llama.attention.max_alibi_bias",
    ] {
        must_be(metadata, none, &[Value::Unsigned(0), Value::Float(0.0)])?;
    }
    must_be(metadata, "llama.use_parallel_residual", &[Value::Bool(false)])?;
    must_be(metadata, "llama.attention.causal", &[Value::Bool(true)])
}

/// Checks a key that has one of these values in every Llama 2 model, or is absent.
fn must_be(metadata: &Metadata<'_>, key: &str, accepted: &[Value<'_>]) -> Result<(), GgufError> {
    let same = |found: Value<'_>, accepted: &Value<'_>| match (found, *accepted) {
        (Value::Signed(found), Value::Unsigned(accepted)) => u64::try_from(found) == Ok(accepted),
        (found, accepted) => found == accepted,
    };
    match metadata.get(key) {
        Some(found) if !accepted.iter().any(|accepted| same(found, accepted)) => {
            let expected = accepted.first().map_or_else(String::new, ToString::to_string);
            Err(metadata.wrong(key, format!("{expected}, or absent; nothing else is supported")))
        }
        _ => Ok(()),
    }
}
