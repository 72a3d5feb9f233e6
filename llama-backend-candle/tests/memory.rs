//! A model in half precision takes the memory of its file and its KV cache, and no more: no second copy is ever whole.
//!
//! A test binary of its own, so that nothing else is in the process. Linux only: it reads what the kernel says of it.
#![cfg(target_os = "linux")]
#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "a test, with helpers")]

use std::io::{BufWriter, Write};
use std::ops::Range;
use std::sync::Arc;

use llama_backend::testing::{FlatWeights, prefill_and_decode, process_status};
use llama_backend::{
    Backend, DType, LoadParams, ModelConfig, ModelSource, TensorInfo, WeightBytes, WeightError, WeightSource,
};
use llama_backend_candle::CandleBackend;
use memmap2::{Mmap, UncheckedAdvice};

/// A mapped model that lets go of pages, as readers of checkpoints do.
#[derive(Debug)]
struct Mapped {
    weights: FlatWeights,
    map: Arc<Mmap>,
}

impl WeightSource for Mapped {
    fn config(&self) -> &ModelConfig {
        self.weights.config()
    }

    fn info(&self, name: &str) -> Result<TensorInfo, WeightError> {
        self.weights.info(name)
    }

    fn bytes(&self, name: &str) -> Result<WeightBytes, WeightError> {
        self.weights.bytes(name)
    }

    fn read_slice(
        &self,
        name: &str,
        dim: usize,
        range: Range<usize>,
        out: &mut [u8],
    ) -> Result<(), WeightError> {
        self.weights.read_slice(name, dim, range, out)
    }

    #[allow(unsafe_code)] // memory maps are
    fn release(&self, name: &str) {
        let bytes = self.weights.bytes(name).unwrap();
        let from = bytes.as_ptr().addr() - self.map.as_ptr().addr();
        // SAFETY: the map is read-only and a file stands behind each page: the next access reads the same bytes.
        unsafe { self.map.unchecked_advise_range(UncheckedAdvice::DontNeed, from, bytes.len()) }.unwrap();
    }
}

/// A model in a temporary file, mapped: its bytes, and how many. The file goes with the map.
#[allow(unsafe_code)] // memory maps are
fn mapped(config: &ModelConfig, dtype: DType) -> (Arc<Mapped>, u64) {
    let file = tempfile::tempfile().unwrap();
    let mut writer = BufWriter::new(&file);
    FlatWeights::write_to(config, dtype, &mut writer).unwrap();
    writer.flush().unwrap();
    drop(writer);
    // SAFETY: the file has no name, so that nobody else can change it.
    let map = Arc::new(unsafe { Mmap::map(&file) }.unwrap());
    let len = map.len() as u64;
    let weights = FlatWeights::new(config.clone(), dtype, map.clone()).unwrap();
    (Arc::new(Mapped { weights, map }), len)
}

fn status(field: &str) -> u64 {
    process_status(field).unwrap()
}

#[test]
fn a_half_precision_model_is_in_memory_once() {
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
    let (source, file) = mapped(&config, DType::BF16);
    assert!(file >= 500_000_000, "{file} bytes");

    let params = LoadParams::new(512, 2);
    let backend = CandleBackend::default();
    let plan = backend.plan(&config, DType::BF16, &params);
    let mut model = backend.load(ModelSource::Weights(source), &params).unwrap();
    let logits = prefill_and_decode(&mut *model).unwrap();
    assert!(logits.iter().all(|logit| logit.is_finite()));

    // Now, and at its highest since the process began.
    let limit = file * 12 / 10 + plan.kv_cache;
    for field in ["VmRSS", "VmHWM"] {
        let found = status(field);
        let share = (found - plan.kv_cache) as f64 / file as f64;
        println!("{field}: {found} bytes; less the KV cache, {share:.3} of the file's {file}");
        assert!(found <= limit, "{field} is {found}, expected at most {limit}");
        // All but the embeddings of tokens that did not occur.
        assert!(found >= file / 10 * 8, "{field} is {found}: the weights were not read");
    }
    assert!(plan.weights.abs_diff(file) < file / 1000, "planned {}", plan.weights);

    // What the process has of its own, beside its code and the threads' stacks: as planned. The prompt was a quarter of the largest batch.
    let (found, planned) = (status("RssAnon"), plan.allocated());
    println!("{found} bytes beside the file, planned {planned}");
    assert!(found <= planned + (16 << 20), "{found} bytes beside the file, planned {planned}");
    assert!(found >= plan.kv_cache, "{found} bytes beside the file, a KV cache of {}", plan.kv_cache);
    let (found, planned) = (status("VmHWM"), plan.total());
    println!("{found} bytes at most, planned {planned}");
    assert!(found.abs_diff(planned) < planned * 15 / 100, "{found} bytes at most, planned {planned}");
}
