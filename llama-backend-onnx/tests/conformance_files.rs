//! The laws of the seam, on models that others exported: one test each, and none skipped.
//!
//! The laws that build models of other shapes run on the one model instead; those about bad weights run on weights.

#![allow(clippy::unwrap_used, reason = "tests")]

use std::path::Path;
use std::sync::Arc;

use llama_backend::testing::{OneModel, RandomWeights, Tolerance};
use llama_backend::{DType, Device, ModelConfig, ModelSource};
use llama_backend_onnx::OnnxBackend;

/// The model of tests/fixtures/make_fixtures.py.
fn fixture(name: &str, head_dim: usize) -> OneModel {
    let config = ModelConfig {
        dim: 64,
        n_layers: 5,
        n_heads: 8,
        n_kv_heads: 4,
        head_dim,
        ffn_dim: 172,
        vocab_size: 512,
        norm_eps: 1e-5,
        rope_theta: 10_000.0,
    };
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures").join(name).join("model.onnx");
    let weights = Arc::new(RandomWeights::new(config.clone(), DType::F32, 7));
    OneModel { source: ModelSource::Graph { path, config }, weights }
}

fn backend() -> OnnxBackend {
    OnnxBackend::new(Device::Cpu).unwrap()
}

mod optimum {
    use super::{Tolerance, backend, fixture};

    llama_backend::conformance_tests!(backend(), Tolerance::default(), fixture("optimum", 8));
}

mod genai {
    use super::{Tolerance, backend, fixture};

    llama_backend::conformance_tests!(backend(), Tolerance::default(), fixture("genai", 16));
}
