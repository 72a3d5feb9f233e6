//! A model in half precision or in blocks takes the memory of its file and its KV cache, and no more: no second copy is ever made.
//!
//! A test binary of its own, so that nothing else is in the process. Linux only: it reads what the kernel says of it. The shared
//! library takes memory of its own, more or less by what has been used of it: a small model before the large one takes it first.
#![cfg(target_os = "linux")]
#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "a test, with helpers")]

use std::io::{BufWriter, Write};
use std::sync::Arc;

use llama_backend::testing::{FlatWeights, prefill_and_decode, process_status};
use llama_backend::{Backend, DType, LoadParams, Model, ModelConfig, ModelSource};
use llama_backend_tch::TchBackend;
use memmap2::Mmap;

/// A model in a temporary file, mapped: its bytes, and how many. The file goes with the map.
#[allow(unsafe_code)] // memory maps are
fn mapped(config: &ModelConfig, dtype: DType) -> (Arc<FlatWeights>, u64) {
    let file = tempfile::tempfile().unwrap();
    let mut writer = BufWriter::new(&file);
    FlatWeights::write_to(config, dtype, &mut writer).unwrap();
    writer.flush().unwrap();
    drop(writer);
    // SAFETY: the file has no name, so that nobody else can change it.
    let map = unsafe { Mmap::map(&file) }.unwrap();
    let len = map.len() as u64;
    (Arc::new(FlatWeights::new(config.clone(), dtype, Arc::new(map)).unwrap()), len)
}

fn status(field: &str) -> u64 {
    process_status(field).unwrap()
}

/// A model that has been used.
fn use_model(backend: &TchBackend, source: Arc<FlatWeights>, params: &LoadParams) -> Box<dyn Model> {
    let mut model = backend.load(ModelSource::Weights(source), params).unwrap();
    let logits = prefill_and_decode(&mut *model).unwrap();
    assert!(logits.iter().all(|logit| logit.is_finite()));
    model
}

#[test]
fn a_model_is_in_memory_once() {
    let config = ModelConfig {
        dim: 2048,
        n_layers: 5,
        n_heads: 32,
        n_kv_heads: 8,
        head_dim: 64,
        ffn_dim: 5632,
        vocab_size: 12000,
        norm_eps: 1e-5,
        rope_theta: 10000.0,
    };
    let params = LoadParams::new(512, 2);
    // Without half products all is widened: what must not be kept.
    let half_products = TchBackend::default().with_half_products();
    for (backend, dtype, n_layers) in [
        (TchBackend::default(), DType::BF16, 5),
        (half_products, DType::BF16, 5),
        (TchBackend::default(), DType::Q4_K, 10),
    ] {
        let config = ModelConfig { n_layers, ..config.clone() };
        let small = ModelConfig { dim: 256, n_layers: 1, ffn_dim: 256, vocab_size: 256, ..config.clone() };
        drop(use_model(&backend, mapped(&small, dtype).0, &params));
        let before = status("VmRSS");
        std::fs::write("/proc/self/clear_refs", "5").unwrap(); // the highest is counted from here

        let (source, file) = mapped(&config, dtype);
        assert!(file >= 250_000_000, "{file} bytes");
        let plan = backend.plan(&config, dtype, &params);
        assert!(plan.weights.abs_diff(file) < file / 1000, "planned {}", plan.weights);
        let model = use_model(&backend, source, &params);

        // Now, and at its highest since the process began.
        let limit = file * 12 / 10 + plan.kv_cache;
        for field in ["VmRSS", "VmHWM"] {
            let found = status(field).saturating_sub(before);
            let share = found.saturating_sub(plan.kv_cache) as f64 / file as f64;
            println!("{field}: {found} bytes; less the KV cache, {share:.3} of the file's {file}");
            assert!(found <= limit, "{field} is {found}, expected at most {limit}");
            // All but the embeddings of tokens that did not occur.
            assert!(found >= file / 10 * 8, "{field} is {found}: the weights were not read");
        }
        drop(model);
        let left = status("VmRSS").saturating_sub(before);
        assert!(left < file / 5, "{left} bytes are left of a model that was dropped");
    }
}
