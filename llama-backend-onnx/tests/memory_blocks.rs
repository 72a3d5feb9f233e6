//! A quantised model takes what is planned for its repacked blocks, beside a file whose pages are the system's to drop. While it is
//! loaded there are the blocks as they were handed over, too: the engine lets go of them when it has packed all.
//!
//! A test binary of its own, and one type, so that nothing else is or was in the process. Linux only: it reads what the kernel says of it.
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

/// Blocks with minimums: whatever a type can have.
const DTYPE: DType = DType::Q4_K;

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

#[test]
fn blocks_are_in_memory_once() {
    let params = LoadParams::new(512, 2);
    let backend = OnnxBackend::new(Device::Cpu).unwrap();
    // What the shared library takes for itself.
    let small =
        ModelConfig { dim: 256, ffn_dim: 512, n_heads: 4, n_kv_heads: 1, vocab_size: 256, ..config(1) };
    drop(used(&mapped(&small, DTYPE).0, &params));
    let before = status("RssAnon");

    let (source, file) = mapped(&config(4), DTYPE);
    let plan = backend.plan(&config(4), DTYPE, &params);
    std::fs::write("/proc/self/clear_refs", "5").unwrap(); // the highest is counted from here
    let files = status("VmRSS") - status("RssAnon");
    let model = used(&source, &params);
    let (found, highest) = (status("RssAnon") - before, status("VmHWM") - files - file - before);
    let weights = found - plan.kv_cache;
    println!(
        "{DTYPE}: {weights} bytes beside the file's {file}, planned {}; at most {highest}",
        plan.weights
    );
    assert!(found <= plan.total() * 11 / 10, "{found} bytes beside the file's {file}");
    assert!(
        highest <= 2 * plan.weights + plan.kv_cache + plan.scratch,
        "{highest} bytes while it was loaded"
    );
    drop(model);
}
