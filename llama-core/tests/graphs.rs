//! A `model.onnx` of another maker's, through `Llama::build`: what it answers is what the same weights answer.

#![allow(clippy::unwrap_used, reason = "a test")]

use std::path::{Path, PathBuf};
use std::sync::Arc;

use llama_backend::testing::{NaiveBackend, RandomWeights};
use llama_backend::{BackendError, WeightError};
use llama_core::checkpoint::{self, CheckpointError, Format};
use llama_core::{BackendKind, DType, Device, Error, GenerationOptions, Llama, TokenId};

const FIXTURES: [&str; 2] = ["optimum", "genai"];

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../llama-backend-onnx/tests/fixtures").join(name)
}

/// A copy of a fixture without its weights, with a file of other content.
fn altered(name: &str, file: &str, change: impl Fn(String) -> String) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    for entry in std::fs::read_dir(fixture(name)).unwrap() {
        let path = entry.unwrap().path();
        std::fs::copy(&path, dir.path().join(path.file_name().unwrap())).unwrap();
    }
    let path = dir.path().join(file);
    std::fs::write(&path, change(std::fs::read_to_string(&path).unwrap())).unwrap();
    dir
}

#[test]
fn a_graph_has_a_shape_and_a_tokenizer_and_no_tensors() {
    for (name, head_dim) in FIXTURES.into_iter().zip([8, 16]) {
        let graph = checkpoint::open(fixture(name)).unwrap();
        assert_eq!((graph.format(), graph.max_seq_len()), (Format::Onnx, Some(512)));
        let config = graph.config();
        assert_eq!((config.n_layers, config.n_heads, config.n_kv_heads), (5, 8, 4));
        assert_eq!((config.dim, config.head_dim, config.vocab_size), (64, head_dim, 512));
        assert_eq!(graph.tokenizer_path(), Some(&*fixture(name).join("tokenizer.model")));
        let error = graph.weights().bytes("norm.weight").unwrap_err();
        assert!(matches!(error, WeightError::Missing { .. }), "{error:?}");
    }
}

#[test]
fn an_engine_without_graphs_says_what_to_do() {
    let error =
        Llama::builder().checkpoint(fixture("optimum")).backend(BackendKind::Candle).build().unwrap_err();
    let unsupported = matches!(error, Error::Backend(BackendError::Unsupported { backend: "candle", .. }));
    assert!(
        error.is_missing_feature() || (unsupported && error.to_string().contains("onnx backend")),
        "{error}"
    );
}

#[test]
fn what_does_not_fit_is_named() {
    let dir = altered("optimum", "config.json", |text| text.replace("\"llama\"", "\"mistral\""));
    let error = checkpoint::open(dir.path()).unwrap_err();
    assert!(matches!(&error, CheckpointError::Field { field, .. } if field == "model_type"), "{error:?}");

    let dir = altered("genai", "genai_config.json", |text| text.replace("\"model.onnx\"", "\"other.onnx\""));
    let error = checkpoint::open(dir.path()).unwrap_err();
    assert!(error.to_string().contains("model.decoder.filename"), "{error}");

    let dir = altered("genai", "genai_config.json", |text| text);
    std::fs::remove_file(dir.path().join("genai_config.json")).unwrap();
    let error = checkpoint::open(dir.path()).unwrap_err();
    assert!(matches!(error, CheckpointError::MissingFile { .. }) && error.is_not_found(), "{error:?}");

    let error = Llama::builder().checkpoint(fixture("genai")).dtype(DType::F16).build().unwrap_err();
    assert!(
        matches!(error, Error::Option { option: "dtype", .. } | Error::MissingFeature { .. }),
        "{error:?}"
    );
}

/// Where the ONNX backend is compiled in: the rest is about what it answers.
fn onnx() -> bool {
    match BackendKind::Onnx.open(Device::Cpu) {
        Ok(_) => true,
        Err(error) => {
            assert!(error.is_missing_feature(), "{error}");
            false
        }
    }
}

#[test]
fn a_graph_answers_as_the_weights_that_it_was_made_of() {
    if !onnx() {
        return;
    }
    for (name, head_dim) in FIXTURES.into_iter().zip([8, 16]) {
        let graph = Llama::builder().checkpoint(fixture(name)).backend(BackendKind::Onnx).build().unwrap();
        // The numbers that genai_config.json does not have are those of tests/fixtures/make_fixtures.py.
        let config = checkpoint::open(fixture("optimum")).unwrap().config().clone();
        let config = llama_core::ModelConfig { head_dim, ..config };
        let oracle = Llama::builder()
            .weights(Arc::new(RandomWeights::new(config, DType::F32, 7)))
            .tokenizer(fixture(name).join("tokenizer.model"))
            .custom_backend(Arc::new(NaiveBackend))
            .build()
            .unwrap();
        // More than run at a time, of different lengths, one of them a prefix of another.
        let prompts: Vec<Vec<TokenId>> =
            (1..=10).map(|n| (0..n * 3).map(|i| TokenId(1 + (i * i * 7 + i) % 511)).collect()).collect();
        let options = GenerationOptions {
            temperature: 0.0,
            max_gen_len: Some(12),
            logprobs: true,
            ..Default::default()
        };
        let (found, expected) = (graph.generate(&prompts, &options), oracle.generate(&prompts, &options));
        let ((found, found_logprobs), (expected, expected_logprobs)) = (found.unwrap(), expected.unwrap());
        assert_eq!(found, expected, "{name}");
        let [found, expected] = [found_logprobs, expected_logprobs].map(|rows| rows.unwrap().concat());
        assert!(found.iter().zip(&expected).all(|(a, b)| (a - b).abs() < 1e-3), "{name}: {found:?}");
    }
}

#[test]
fn a_configuration_of_another_model_is_refused() {
    if !onnx() {
        return;
    }
    let (layers, heads) = ("\"num_hidden_layers\": ", "\"num_key_value_heads\": ");
    for (name, file) in FIXTURES.into_iter().zip(["config.json", "genai_config.json"]) {
        for (field, from, to, what) in [(layers, "5", "4", "n_layers"), (heads, "4", "2", "n_kv_heads")] {
            let change = |text: String| text.replace(&format!("{field}{from}"), &format!("{field}{to}"));
            let dir = altered(name, file, change);
            let error =
                Llama::builder().checkpoint(dir.path()).backend(BackendKind::Onnx).build().unwrap_err();
            let found = matches!(&error, Error::Backend(BackendError::Config { what: w, .. }) if *w == what);
            assert!(found, "{name}, {what}: {error:?}");
        }
        let dir = altered(name, file, |text| text);
        std::fs::write(dir.path().join("model.onnx"), "no graph").unwrap();
        let error = Llama::builder().checkpoint(dir.path()).backend(BackendKind::Onnx).build().unwrap_err();
        assert!(matches!(error, Error::Backend(BackendError::Engine { .. })), "{error:?}");
        assert!(error.to_string().contains("model.onnx"), "{error}");
    }
}
