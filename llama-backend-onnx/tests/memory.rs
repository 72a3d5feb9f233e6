//! A model in f32 takes the memory of its file and its KV cache, and no more; one in half precision twice its file; and what is
//! dropped is gone.
//!
//! A test binary of its own, so that nothing else is in the process. Linux only: it reads what the kernel says of it.
#![cfg(target_os = "linux")]
#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "a test, with helpers")]

use std::collections::HashMap;
use std::io::{BufWriter, Write};
use std::ops::Range;
use std::sync::Arc;

use llama_backend::{
    Backend, Batch, DType, Device, LoadParams, Logits, Model, ModelConfig, ModelSource, Run, Slot,
    TensorInfo, TokenId, Want, WeightBytes, WeightError, WeightSource,
};
use llama_backend_onnx::OnnxBackend;
use memmap2::Mmap;

/// A file of tensors of one type, one after the other, in a memory map.
#[derive(Debug)]
struct MappedFile {
    config: ModelConfig,
    dtype: DType,
    map: Arc<Mmap>,
    ranges: HashMap<String, Range<usize>>,
}

impl WeightSource for MappedFile {
    fn config(&self) -> &ModelConfig {
        &self.config
    }

    fn info(&self, name: &str) -> Result<TensorInfo, WeightError> {
        let (_, shape) = self.config.tensors().find(|(tensor, _)| tensor == name).unwrap();
        Ok(TensorInfo { dtype: self.dtype, shape })
    }

    fn bytes(&self, name: &str) -> Result<WeightBytes, WeightError> {
        Ok(WeightBytes::new(Arc::clone(&self.map) as _, self.ranges[name].clone()).unwrap())
    }

    fn read_slice(&self, _: &str, _: usize, _: Range<usize>, _: &mut [u8]) -> Result<(), WeightError> {
        unimplemented!("the engine reads whole tensors")
    }
}

/// Writes a random model to a temporary file, and maps it. The file goes with the map.
#[allow(unsafe_code)] // memory maps are
fn random_file(config: ModelConfig, dtype: DType) -> MappedFile {
    // Small numbers over and over, in bf16 or as the halves of f32: what they are does not matter here, only that they are no
    // zeros.
    let pattern: Vec<u8> = (0..1u32 << 15)
        .flat_map(|i| (0x3c00 | (i.wrapping_mul(0x9e37_79b9) >> 16) as u16 & 0x80ff).to_le_bytes())
        .collect();
    let file = tempfile::tempfile().unwrap();
    let mut writer = BufWriter::new(&file);
    let (mut ranges, mut end) = (HashMap::new(), 0);
    for (name, shape) in config.tensors() {
        let len = dtype.size() * shape.iter().product::<usize>();
        for part in 0..len.div_ceil(pattern.len()) {
            let left = len - part * pattern.len();
            writer.write_all(&pattern[..left.min(pattern.len())]).unwrap();
        }
        ranges.insert(name, end..end + len);
        end += len;
    }
    writer.flush().unwrap();
    drop(writer);
    // SAFETY: the file has no name, so that nobody else can change it.
    let map = Arc::new(unsafe { Mmap::map(&file) }.unwrap());
    MappedFile { config, dtype, map, ranges }
}

/// A line of /proc/self/status, in bytes.
fn status(field: &str) -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix(field)?.strip_prefix(':'));
    let kilobytes = line.unwrap().trim().strip_suffix(" kB").unwrap();
    kilobytes.parse::<u64>().unwrap() * 1024
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
fn used(source: &Arc<MappedFile>, params: &LoadParams) -> Box<dyn Model> {
    let backend = OnnxBackend::new(Device::Cpu).unwrap();
    let mut model = backend.load(ModelSource::Weights(Arc::clone(source) as _), params).unwrap();
    let mut logits = Logits::new();
    let tokens: Vec<TokenId> = (0..129).map(TokenId).collect();
    let (prompt, next) = tokens.split_at(128);
    for (start_pos, tokens) in [(0, prompt), (128, next)] {
        let (slot, want) = (Slot(0), Want::Last);
        let run = Run { slot, start_pos, tokens, want };
        model.forward(&Batch::new(&[run]), &mut logits).unwrap();
        assert!(logits.as_slice().iter().all(|logit| logit.is_finite()));
    }
    model
}

/// One test, since what it measures is the whole process.
#[test]
fn weights_are_in_memory_once_and_what_is_dropped_is_gone() {
    let params = LoadParams::new(512, 2);
    let backend = OnnxBackend::new(Device::Cpu).unwrap();

    let source = Arc::new(random_file(config(3), DType::F32));
    let file = source.map.len() as u64;
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
    let source = Arc::new(random_file(config(3), DType::BF16));
    let file = source.map.len() as u64;
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
    let source = Arc::new(random_file(small, DType::F32));
    (0..5).for_each(|_| drop(used(&source, &params)));
    let before = status("RssAnon");
    (0..50).for_each(|_| drop(used(&source, &params)));
    let grown = status("RssAnon").saturating_sub(before);
    println!("50 models later: {grown} bytes more");
    // Less than a tenth of a model's KV cache each.
    let one = backend.plan(&source.config, DType::F32, &params).kv_cache;
    assert!(grown < 5 * one, "grown by {grown}; a KV cache is {one}");
}
