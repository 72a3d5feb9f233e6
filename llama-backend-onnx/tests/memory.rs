//! A model in f32 takes the memory of its file and its KV cache, and no more; one in half precision twice its file; and what is
//! dropped is gone. Quantised ones are in `memory_blocks.rs`.
//!
//! A test binary of its own, so that nothing else is in the process. Linux only: it reads what the kernel says of it.
#![cfg(target_os = "linux")]
#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "a test, with helpers")]

use std::io::{BufWriter, Write};
use std::sync::Arc;

use llama_backend::testing::{FlatWeights, prefill_and_decode, process_status};
use llama_backend::{Backend, DType, Device, LoadParams, Model, ModelConfig, ModelSource};
use llama_backend_onnx::OnnxBackend;
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

fn config(n_layers: usize) -> ModelConfig {
    ModelConfig {
        dim: 2048,
        n_layers,
        n_heads: 32,
        n_kv_heads: 8,
        head_dim: 64,
        ffn_dim: 5632,
        vocab_size: 12000,
        norm_eps: 1e-5,
        rope_theta: 10000.0,
    }
}

/// Loads a model and uses every weight of it, for a prompt and a decode.
fn used(source: &Arc<FlatWeights>, params: &LoadParams) -> Box<dyn Model> {
    let backend = OnnxBackend::new(Device::Cpu).unwrap();
    let mut model = backend.load(ModelSource::Weights(Arc::clone(source) as _), params).unwrap();
    let logits = prefill_and_decode(&mut *model).unwrap();
    assert!(logits.iter().all(|logit| logit.is_finite()));
    model
}

/// One test, since what it measures is the whole process.
#[test]
fn weights_are_in_memory_once_and_what_is_dropped_is_gone() {
    let params = LoadParams::new(512, 2);
    let backend = OnnxBackend::new(Device::Cpu).unwrap();

    let (source, file) = mapped(&config(3), DType::F32);
    assert!(file >= 500_000_000, "{file} bytes");
    let plan = backend.plan(&config(3), DType::F32, &params);
    let model = used(&source, &params);
    // Now, and at its highest since the process began.
    let limit = file * 12 / 10 + plan.kv_cache;
    for field in ["VmRSS", "VmHWM"] {
        let found = status(field);
        let share = (found - plan.kv_cache) as f64 / file as f64;
        println!("f32, {field}: {found} bytes; less the KV cache, {share:.3} of the file's {file}");
        assert!(found <= limit, "{field} is {found}, expected at most {limit}");
        // All but the embeddings of tokens that did not occur.
        assert!(found >= file / 10 * 8, "{field} is {found}: the weights were not read");
    }
    assert!(plan.weights.abs_diff(file) < file / 1000, "planned {}", plan.weights);
    drop(model);
    drop(source);

    // Widened matrices take twice their file's bytes, which stay mapped until the system wants their memory back.
    let (source, file) = mapped(&config(3), DType::BF16);
    let plan = backend.plan(&config(3), DType::BF16, &params);
    drop(used(&source, &params));
    let model = used(&source, &params);
    let found = status("RssAnon");
    println!("bf16: {found} bytes beside the file, planned {} in all", plan.total());
    assert!(found <= plan.total() * 12 / 10, "{found} bytes beside the file's {file}");
    drop(model);
    drop(source);

    // Small models, made and dropped again and again.
    let small =
        ModelConfig { dim: 256, ffn_dim: 512, n_heads: 4, n_kv_heads: 2, vocab_size: 2000, ..config(2) };
    let (source, _) = mapped(&small, DType::F32);
    (0..5).for_each(|_| drop(used(&source, &params)));
    let before = status("RssAnon");
    (0..50).for_each(|_| drop(used(&source, &params)));
    let grown = status("RssAnon").saturating_sub(before);
    println!("50 models later: {grown} bytes more");
    // Less than a tenth of a model's KV cache each.
    let one = backend.plan(&small, DType::F32, &params).kv_cache;
    assert!(grown < 5 * one, "grown by {grown}; a KV cache is {one}");
}
