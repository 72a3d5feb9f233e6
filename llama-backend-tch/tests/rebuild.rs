//! A model that is dropped leaves nothing behind, also when the thread that owned it ends.
//!
//! A test binary of its own, so that nothing else is in the process. Linux only: it reads what the kernel says of it.
#![cfg(target_os = "linux")]
#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "a test, with helpers")]

use std::sync::Arc;
use std::thread;

use llama_backend::testing::{RandomWeights, process_status};
use llama_backend::{
    Backend, Batch, DType, LoadParams, Logits, ModelConfig, ModelSource, Run, Slot, TokenId, Want,
};
use llama_backend_tch::TchBackend;

fn status(field: &str) -> u64 {
    process_status(field).unwrap()
}

/// Builds a model, prefills, decodes, forks, and drops it, on a thread of its own: as llama-core does.
fn once(source: &Arc<RandomWeights>) {
    let source = Arc::clone(source);
    let engine = thread::spawn(move || {
        let mut params = LoadParams::new(1024, 4);
        params.threads = Some(2);
        let mut model = TchBackend::default().load(ModelSource::Weights(source), &params).unwrap();
        let mut logits = Logits::new();
        let tokens: Vec<TokenId> = (0..65).map(TokenId).collect();
        for (start_pos, tokens) in [(0, &tokens[..64]), (64, &tokens[64..])] {
            let run = Run { slot: Slot(0), start_pos, tokens, want: Want::Last };
            model.forward(&Batch::new(&[run]), &mut logits).unwrap();
        }
        model.fork(Slot(0), Slot(3), 65).unwrap();
    });
    engine.join().unwrap();
}

#[test]
fn fifty_rebuilds_take_no_more_memory_than_one() {
    let config = ModelConfig {
        dim: 256,
        n_layers: 2,
        n_heads: 8,
        n_kv_heads: 4,
        head_dim: 32,
        ffn_dim: 688,
        vocab_size: 512,
        norm_eps: 1e-5,
        rope_theta: 10000.0,
    };
    for dtype in [DType::F32, DType::BF16] {
        let source = Arc::new(RandomWeights::new(config.clone(), dtype, 1).materialised());
        let plan = TchBackend::default().plan(&config, dtype, &LoadParams::new(1024, 4));
        // libtorch keeps what it has compiled, and the allocator what it was given back.
        (0..5).for_each(|_| once(&source));
        let (before, threads) = (status("VmRSS"), status("Threads"));
        (0..50).for_each(|_| once(&source));
        let grown = status("VmRSS").saturating_sub(before);
        println!("{dtype}: grown by {grown} bytes; a model takes {}", plan.total());
        // One model kept in ten would show.
        assert!(grown < 5 * plan.total(), "{dtype}: grown by {grown} bytes");
        assert!(status("Threads") <= threads, "threads are left behind");
    }
}
