//! One of four ranks takes a fourth of the model's memory: its slices, and nothing of the others'.
//!
//! A test binary of its own, so that nothing else is in the process. Linux only: it reads what the kernel says of it.
#![cfg(target_os = "linux")]
#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "a test")]

use std::sync::Arc;

use llama_backend::testing::{RandomWeights, ThreadCommunicator, process_status};
use llama_backend::{Backend, DType, LoadParams, ModelConfig, ModelSource, WeightSource};
use llama_backend_candle::CandleBackend;

#[test]
fn a_rank_takes_its_part_of_the_memory() {
    let config = ModelConfig {
        dim: 2048,
        n_layers: 6,
        n_heads: 32,
        n_kv_heads: 8,
        head_dim: 64,
        ffn_dim: 5632,
        vocab_size: 8000,
        norm_eps: 1e-5,
        rope_theta: 10000.0,
    };
    for dtype in [DType::F16, DType::Q8_0] {
        // Tensors are made as they are asked for: what the process has is what the rank keeps.
        let weights = RandomWeights::new(config.clone(), dtype, 1);
        let bytes = |name: &str| weights.info(name).unwrap().n_bytes().unwrap() as u64;
        let whole = bytes("tok_embeddings.weight");
        let split: u64 = config.tensors().map(|(name, _)| bytes(&name)).sum::<u64>() - whole;

        let mut params = LoadParams::new(512, 4);
        params.communicator = ThreadCommunicator::group(4).nth(1).unwrap();
        params.threads = Some(1);
        let backend = CandleBackend::default();
        let plan = backend.plan(&config, dtype, &params);
        let before = process_status("RssAnon").unwrap();
        let model = backend.load(ModelSource::Weights(Arc::new(weights)), &params).unwrap();
        let found = process_status("RssAnon").unwrap() - before;
        let limit = (split / 4 + whole) * 11 / 10 + plan.kv_cache;
        println!(
            "{dtype}: {found} bytes of {} in all, planned {}",
            split + whole,
            plan.weights + plan.kv_cache
        );
        assert!(found <= limit, "{dtype}: {found} bytes, expected at most {limit}");
        assert!(found >= split / 4, "{dtype}: {found} bytes, and a part is {}", split / 4);
        assert!(found.abs_diff(plan.weights + plan.kv_cache) < found / 10, "{dtype}: {found}, {plan:?}");
        drop(model);
    }
}
