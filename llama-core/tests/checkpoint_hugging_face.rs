//! Hugging Face's layout: what would change the numbers is refused, rows are put in order, and files that lie are errors.
#![allow(clippy::unwrap_used, clippy::panic)]

#[path = "fixtures/hf.rs"]
mod hf;

use std::fs;
use std::path::Path;

use hf::{CONFIG, Shape, TENSORS, safetensors, with_header};
use llama_backend::WeightError;
use llama_core::checkpoint::{self, CheckpointError};
use tempfile::TempDir;

fn folder(files: &[(&str, &[u8])]) -> TempDir {
    let dir = tempfile::tempdir().unwrap();
    for (name, content) in files {
        fs::write(dir.path().join(name), content).unwrap();
    }
    dir
}

fn error(files: &[(&str, &[u8])]) -> CheckpointError {
    checkpoint::open(folder(files).path()).unwrap_err()
}

fn config_error(config: &str) -> CheckpointError {
    error(&[("config.json", config.as_bytes()), ("model.safetensors", &safetensors(&TENSORS))])
}

fn model_error(model: &[u8]) -> CheckpointError {
    error(&[("config.json", CONFIG.as_bytes()), ("model.safetensors", model)])
}

#[test]
fn what_would_change_the_numbers_is_refused() {
    for (from, to, name) in [
        (r#""silu""#, r#""gelu""#, "hidden_act"),
        (r#""LlamaForCausalLM""#, r#""MistralForCausalLM""#, "architectures"),
        (r#""llama""#, r#""gemma""#, "model_type"),
        (r#""attention_bias": false"#, r#""attention_bias": true"#, "attention_bias"),
        (r#""vocab_size""#, r#""mlp_bias": true, "vocab_size""#, "mlp_bias"),
        (r#""rope_scaling": null"#, r#""rope_scaling": {"type": "linear", "factor": 2.0}"#, "rope_scaling"),
        (r#""rope_scaling": null"#, r#""quantization_config": {"bits": 4}"#, "quantization_config"),
        (r#""rope_scaling": null"#, r#""partial_rotary_factor": 0.5"#, "partial_rotary_factor"),
        (
            r#""rope_scaling": null"#,
            r#""rope_parameters": {"rope_type": "llama3", "factor": 8.0}"#,
            "rope_type",
        ),
        (
            r#""rope_scaling": null"#,
            r#""rope_parameters": {"rope_type": "default", "factor": 8.0}"#,
            "rope_parameters.factor",
        ),
        (r#""rope_scaling": null"#, r#""rope_parameters": {"rope_theta": 500000.0}"#, "rope_theta"),
        (r#""hidden_size": 8"#, r#""hidden_size": -8"#, "hidden_size"),
        (r#""hidden_size": 8"#, r#""hidden_size": 9"#, "num_attention_heads"),
        (r#""num_attention_heads": 2"#, r#""num_attention_heads": 0"#, "num_attention_heads"),
        (r#""vocab_size": 6"#, r#""n_vocab": 6"#, "vocab_size"),
        (r#""rms_norm_eps": 1e-05"#, r#""rms_norm_eps": NaN"#, "rms_norm_eps"),
        (r#""max_position_embeddings": 16"#, r#""max_position_embeddings": 0"#, "max_position_embeddings"),
        (r#""tie_word_embeddings": true"#, r#""tie_word_embeddings": "yes""#, "tie_word_embeddings"),
    ] {
        assert!(CONFIG.contains(from), "{from}");
        let error = config_error(&CONFIG.replace(from, to));
        assert!(matches!(&error, CheckpointError::Field { field, .. } if field == name), "{to}: {error}");
    }
    let error = config_error(&CONFIG.replace(r#""hidden_size": 8"#, r#""head_dim": 3, "hidden_size": 8"#));
    assert!(matches!(error, CheckpointError::Config { .. }), "{error}");
}

#[test]
fn fields_that_may_be_absent_have_their_defaults() {
    let config = CONFIG
        .replace(r#""rope_theta": 10000.0, "#, "")
        .replace(
            r#""rope_scaling": null"#,
            r#""head_dim": 4, "rope_parameters": {"rope_theta": 5e5, "rope_type": "default"}"#,
        )
        .replace(r#""max_position_embeddings": 16, "#, "");
    let files = [("config.json", config.as_bytes()), ("model.safetensors", &safetensors(&TENSORS))];
    let opened = checkpoint::open(folder(&files).path()).unwrap();
    assert_eq!(opened.config().rope_theta, 5e5);
    assert_eq!((opened.config().head_dim, opened.max_seq_len()), (4, Some(2048)));
}

#[test]
fn rows_of_queries_and_keys_are_put_in_metas_order() {
    let files = [("config.json", CONFIG.as_bytes()), ("model.safetensors", &safetensors(&TENSORS))];
    let opened = checkpoint::open(folder(&files).path()).unwrap();
    let bytes = opened.weights().bytes("layers.0.attention.wq.weight").unwrap();
    let first = (6 * 8 + 8) as f32; // after the embedding and the norm
    let rows: Vec<f32> =
        bytes.as_chunks().0.iter().step_by(8).map(|b| (f32::from_le_bytes(*b) - first) / 8.0).collect();
    // Per head of four rows, the file has x0 x1 y0 y1; the canonical form has the pairs x0 y0, x1 y1.
    assert_eq!(rows, [0.0, 2.0, 1.0, 3.0, 4.0, 6.0, 5.0, 7.0]);
}

#[test]
fn wrong_tensors_of_safetensors_are_named() {
    let missing = model_error(&safetensors(&TENSORS[..10]));
    assert!(
        matches!(&missing, CheckpointError::Weights(WeightError::Missing { tensor, .. }) if tensor == TENSORS[10].0),
        "{missing}"
    );
    let untied = CONFIG.replace(r#""tie_word_embeddings": true"#, r#""tie_word_embeddings": false"#);
    let error = config_error(&untied);
    assert!(
        matches!(&error, CheckpointError::Weights(WeightError::Missing { tensor, .. }) if tensor == "lm_head.weight"),
        "{error}"
    );
    let bias: Shape = ("model.layers.0.self_attn.q_proj.bias", &[8]);
    let error = model_error(&safetensors(&[&TENSORS[..], &[bias]].concat()));
    assert!(matches!(&error, CheckpointError::ExtraTensor { tensor, .. } if tensor == bias.0), "{error}");
    let mut shaped = TENSORS;
    shaped[3].1 = &[8, 4];
    let error = model_error(&safetensors(&shaped));
    assert!(
        matches!(&error, CheckpointError::Weights(WeightError::Shape { found, .. }) if *found == [8, 4]),
        "{error}"
    );
    let typed = String::from_utf8_lossy(&safetensors(&TENSORS)).replacen("F32", "I32", 1);
    let error = model_error(typed.as_bytes());
    // The text has no byte above 0x7f up to here, so only the numbers were changed, and those not in length.
    assert!(
        matches!(
            error,
            CheckpointError::Weights(WeightError::DType { .. }) | CheckpointError::Safetensors { .. }
        ),
        "{error}"
    );
    // What old versions of transformers saved, and a stored copy of what is tied, are no error.
    let known: [Shape; 2] =
        [("model.layers.0.self_attn.rotary_emb.inv_freq", &[2]), ("lm_head.weight", &[6, 8])];
    let files = [
        ("config.json", CONFIG.as_bytes()),
        ("model.safetensors", &safetensors(&[&TENSORS[..], &known].concat())),
    ];
    checkpoint::open(folder(&files).path()).unwrap();
}

#[test]
fn headers_that_lie_are_errors() {
    let entry = |shape: &str, offsets: &str| {
        format!(r#"{{"model.norm.weight":{{"dtype":"F32","shape":{shape},"data_offsets":{offsets}}}}}"#)
    };
    // Eight tensors of 2^61 bytes: their sum is beyond 64 bits.
    let chain: Vec<_> = (0..8_u64)
        .map(|i| {
            let (start, end) = (i << 61, ((i + 1) << 61).wrapping_sub(u64::from(i == 7)));
            let len = end - start;
            format!(r#""t{i}":{{"dtype":"U8","shape":[{len}],"data_offsets":[{start},{end}]}}"#)
        })
        .collect();
    for model in [
        Vec::new(),
        vec![0; 7],
        vec![0xff; 8],
        100_u64.to_le_bytes().to_vec(),
        (1_u64 << 33).to_le_bytes().to_vec(),
        with_header("", &[]),
        with_header("[]", &[]),
        with_header(&"[".repeat(100_000), &[]),
        with_header(&entry("[8]", "[0,64]"), &[0; 64]),
        with_header(&entry("[8]", "[32,0]"), &[0; 32]),
        with_header(&entry("[8]", "[4,36]"), &[0; 36]),
        with_header(&entry("[8]", "[0,32]"), &[0; 31]),
        with_header(&entry("[8]", "[0,32]"), &[0; 33]),
        with_header(&entry("[4294967296,4294967296]", "[0,0]"), &[]),
        with_header(&entry("[4611686018427387904]", "[0,18446744073709551615]"), &[]),
        with_header(&format!("{{{}}}", chain.join(",")), &[]),
    ] {
        let error = model_error(&model);
        assert!(matches!(error, CheckpointError::Safetensors { .. }), "{error}");
        assert!(error.is_malformed());
    }
}

fn with_index(weight_map: &str, shards: &[(&str, &[u8])]) -> Result<(), CheckpointError> {
    let index = format!(r#"{{"metadata": {{}}, "weight_map": {weight_map}}}"#);
    let own: [(&str, &[u8]); 2] =
        [("config.json", CONFIG.as_bytes()), ("model.safetensors.index.json", index.as_bytes())];
    checkpoint::open(folder(&[&own, shards].concat()).path()).map(drop)
}

/// An index that says that the tensors before `at` are in a.safetensors, the others in b.safetensors.
fn weight_map(at: usize) -> String {
    let entries = TENSORS.iter().enumerate();
    let entries: Vec<_> = entries
        .map(|(i, (name, _))| format!(r#""{name}": "{}.safetensors""#, if i < at { "a" } else { "b" }))
        .collect();
    format!("{{{}}}", entries.join(","))
}

#[test]
fn an_index_leads_to_its_shards_and_nowhere_else() {
    let (a, b) = (safetensors(&TENSORS[..4]), safetensors(&TENSORS[4..]));
    let shards: [(&str, &[u8]); 2] = [("a.safetensors", &a), ("b.safetensors", &b)];
    with_index(&weight_map(4), &shards).unwrap();

    // A tensor of the index that is not in its shard; a shard that is not there; a tensor that the index does not have.
    let error = with_index(&weight_map(5), &shards).unwrap_err();
    let CheckpointError::Weights(WeightError::Missing { file, tensor }) = &error else { panic!("{error}") };
    assert!(file.ends_with("a.safetensors") && tensor == TENSORS[4].0);
    let error = with_index(&weight_map(4), &shards[..1]).unwrap_err();
    assert!(
        matches!(&error, CheckpointError::MissingFile { file, .. } if file.ends_with("b.safetensors")),
        "{error}"
    );
    let extra: Shape = ("model.layers.1.input_layernorm.weight", &[8]);
    let longer = safetensors(&[&TENSORS[4..], &[extra]].concat());
    let error = with_index(&weight_map(4), &[shards[0], ("b.safetensors", &longer)]).unwrap_err();
    assert!(matches!(&error, CheckpointError::ExtraTensor { tensor, .. } if tensor == extra.0), "{error}");
    let error = with_index(&weight_map(4).replace(TENSORS[0].0, "model.embedding"), &shards);
    assert!(matches!(error, Err(CheckpointError::Weights(_))));

    for path in ["../a.safetensors", "/etc/passwd", "sub/a.safetensors", "..", ".", "", r"..\\a.safetensors"]
    {
        let error = with_index(&weight_map(4).replacen("a.safetensors", path, 1), &shards).unwrap_err();
        assert!(
            matches!(&error, CheckpointError::Field { field, .. } if field.starts_with("weight_map.")),
            "{path}: {error}"
        );
    }
    for broken in ["null", "{}", "[]", r#"{"a": 1}"#] {
        let error = with_index(broken, &shards).unwrap_err();
        assert!(
            matches!(&error, CheckpointError::Field { field, .. } if field.starts_with("weight_map")),
            "{error}"
        );
    }
}

#[test]
fn errors_keep_their_sources() {
    use std::error::Error;

    assert!(checkpoint::open(Path::new("/nonexistent")).unwrap_err().source().is_some());
    assert!(model_error(b"short").source().is_some());
    assert!(config_error("{").source().is_some());
}
