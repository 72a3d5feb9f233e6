//! What GGUF calls a Llama model's shape and its tensors.

use llama_backend::ModelConfig;

use super::Value;

/// The metadata that say the shape.
#[must_use]
pub fn model_keys(config: &ModelConfig, name: &str, max_seq_len: usize) -> Vec<(String, Value)> {
    // Sizes of models are far below 2^32.
    let sizes = [
        ("context_length", max_seq_len),
        ("embedding_length", config.dim),
        ("block_count", config.n_layers),
        ("feed_forward_length", config.ffn_dim),
        ("rope.dimension_count", config.head_dim),
        ("attention.head_count", config.n_heads),
        ("attention.head_count_kv", config.n_kv_heads),
        ("attention.key_length", config.head_dim),
        ("attention.value_length", config.head_dim),
        ("vocab_size", config.vocab_size),
    ];
    let floats = [
        ("attention.layer_norm_rms_epsilon", config.norm_eps),
        ("rope.freq_base", config.rope_theta as f32), // the format's width
    ];
    let of_llama = |key: &str| format!("llama.{key}");
    let first = [
        ("general.architecture".to_owned(), Value::Text("llama".to_owned())),
        ("general.name".to_owned(), Value::Text(name.to_owned())),
        ("general.quantization_version".to_owned(), Value::U32(2)),
    ];
    let sizes = sizes.map(|(key, size)| (of_llama(key), Value::U32(size as u32)));
    let floats = floats.map(|(key, x)| (of_llama(key), Value::F32(x)));
    first.into_iter().chain(sizes).chain(floats).collect()
}

/// The name that GGUF gives one of Meta's tensors.
#[must_use]
pub fn stored_name(name: &str) -> String {
    let Some((layer, part)) = name.strip_prefix("layers.").and_then(|rest| rest.split_once('.')) else {
        return match name {
            "tok_embeddings.weight" => "token_embd.weight",
            "norm.weight" => "output_norm.weight",
            other => other,
        }
        .to_owned();
    };
    let part = match part {
        "attention.wq.weight" => "attn_q.weight",
        "attention.wk.weight" => "attn_k.weight",
        "attention.wv.weight" => "attn_v.weight",
        "attention.wo.weight" => "attn_output.weight",
        "feed_forward.w1.weight" => "ffn_gate.weight",
        "feed_forward.w2.weight" => "ffn_down.weight",
        "feed_forward.w3.weight" => "ffn_up.weight",
        "attention_norm.weight" => "attn_norm.weight",
        other => other, // ffn_norm.weight is called the same
    };
    format!("blk.{layer}.{part}")
}
