//! Meta's layout: `params.json` as the reference takes it, and shards that agree with it and with each other.
#![allow(clippy::unwrap_used, clippy::panic)]

#[path = "fixtures/pth.rs"]
mod pth;

use llama_backend::WeightError;
use llama_core::checkpoint::{self, Checkpoint, CheckpointError};
use pth::PARAMS;

fn open(params: &str, pth: Vec<u8>) -> Result<Checkpoint, CheckpointError> {
    checkpoint::from_bytes(params.as_bytes(), [pth])
}

#[test]
fn shards_must_agree() {
    let mut half = pth::entries();
    for entry in &mut half {
        let dim = match entry.name.rsplit('.').nth(1).unwrap() {
            "wo" | "w2" | "tok_embeddings" => 1,
            "norm" | "attention_norm" | "ffn_norm" => continue,
            _ => 0,
        };
        entry.shape[dim] /= 2;
        entry.strides = vec![entry.shape[1], 1];
        entry.n /= 2;
    }
    let shard = pth::pth(pth::pickle(&half), &half);
    let joined = checkpoint::from_bytes(PARAMS.as_bytes(), [shard.clone(), shard.clone()]);
    assert!(joined.is_ok());
    let error = checkpoint::from_bytes(PARAMS.as_bytes(), [shard.clone(), pth::model()]).unwrap_err();
    let CheckpointError::Weights(WeightError::Shape { file, .. }) = &error else { panic!("{error}") };
    assert!(file.ends_with("consolidated.01.pth"));
    let error = checkpoint::from_bytes(PARAMS.as_bytes(), [shard.clone(), shard.clone(), shard]).unwrap_err();
    assert!(matches!(error, CheckpointError::Shards { .. }), "{error}");
    let error = checkpoint::from_bytes(PARAMS.as_bytes(), Vec::<Vec<u8>>::new()).unwrap_err();
    assert!(matches!(error, CheckpointError::Shards { .. }), "{error}");
}

#[test]
fn params_that_make_no_model_are_named() {
    let cases = [
        (r#""dim": 8"#, r#""dim": NaN"#, "dim"),
        (r#""dim": 8"#, r#""dim": -8"#, "dim"),
        (r#""dim": 8"#, r#""dim": 8.5"#, "dim"),
        (r#""dim": 8"#, r#""dim": "8""#, "dim"),
        (r#""dim": 8"#, r#""dim": null"#, "dim"),
        (r#""dim": 8"#, r#""dim": 7"#, "n_heads"),
        (r#""dim": 8"#, r#""dim": 18446744073709551615"#, "n_heads"),
        (r#""dim": 8"#, r#""dim": 1e30"#, "dim"),
        (r#""n_heads": 2"#, r#""n_heads": 0"#, "n_heads"),
        (r#""n_heads": 2"#, r#""n_heads": 3"#, "n_heads"),
        (r#""n_kv_heads": 1"#, r#""n_kv_heads": [1]"#, "n_kv_heads"),
        (r#""n_layers": 1"#, r#""n_layer": 1"#, "n_layers"),
        (r#""norm_eps": 1e-05"#, "\"norm_eps\":\n  NaN , \"ffn_dim_multiplier\": 1", "norm_eps"),
        (r#""norm_eps": 1e-05"#, r#""norm_eps": -Infinity"#, "norm_eps"),
        (r#""norm_eps": 1e-05"#, r#""norm_eps": 1e999"#, "norm_eps"),
        (r#""norm_eps": 1e-05"#, r#""norm_eps": true"#, "norm_eps"),
        (r#""multiple_of": 4"#, r#""multiple_of": 0"#, "multiple_of"),
        (r#""vocab_size": -1"#, r#""vocab_size": -2"#, "vocab_size"),
        (r#""vocab_size": -1"#, r#""use_scaled_rope": true"#, "use_scaled_rope"),
        (r#""vocab_size": -1"#, r#""max_seq_len": 512"#, "max_seq_len"),
        (r#""vocab_size": -1"#, r#""max_batch_size": 8"#, "max_batch_size"),
    ];
    for (from, to, name) in cases {
        assert!(PARAMS.contains(from), "{from}");
        let params = PARAMS.replace(from, to);
        let error = open(&params, pth::model()).unwrap_err();
        assert!(matches!(&error, CheckpointError::Field { field, .. } if field == name), "{to}: {error}");
        assert!(error.to_string().contains("params.json"), "{error}");
    }
    for (from, to) in [
        (r#""n_kv_heads": 1"#, r#""n_kv_heads": 0"#),
        (r#""n_kv_heads": 1"#, r#""n_kv_heads": 3"#),
        (r#""norm_eps": 1e-05"#, r#""norm_eps": 1e300"#),
        (r#""norm_eps": 1e-05"#, r#""norm_eps": -1"#),
        (r#""multiple_of": 4"#, r#""multiple_of": 18446744073709551615"#),
        (r#""norm_eps": 1e-05"#, r#""rope_theta": 0"#),
        (r#""n_layers": 1"#, r#""n_layers": 4294967296"#),
    ] {
        let error = open(&PARAMS.replace(from, to), pth::model()).unwrap_err();
        assert!(matches!(error, CheckpointError::Config { .. }), "{to}: {error}");
    }
    // More layers than the file has, or another vocabulary: the tensor says so.
    for (from, to) in
        [(r#""n_layers": 1"#, r#""n_layers": 16777216"#), (r#""vocab_size": -1"#, r#""vocab_size": 7"#)]
    {
        let error = open(&PARAMS.replace(from, to), pth::model()).unwrap_err();
        assert!(matches!(error, CheckpointError::Weights(_)), "{to}: {error}");
    }
    for broken in ["", "[]", "{", "nul", "\u{feff}{}", &"[".repeat(100_000)] {
        let error = open(broken, pth::model()).unwrap_err();
        assert!(matches!(error, CheckpointError::Json { .. }), "{error}");
    }
    for accepted in [
        PARAMS.replace(r#""norm_eps": 1e-05"#, r#""rope_theta": 1000000.0"#),
        PARAMS.replace(r#""vocab_size": -1"#, r#""vocab_size": 6"#),
        PARAMS.replace(r#""vocab_size": -1"#, r#""ffn_dim_multiplier": null"#),
    ] {
        open(&accepted, pth::model()).unwrap();
    }
}
