//! A model computes on as many threads as it was loaded for, and none is started beside libtorch's own pool.
//!
//! A test binary of its own, and one test, so that nothing else starts threads. Linux only: it counts them as the kernel does.
#![cfg(target_os = "linux")]
#![allow(clippy::unwrap_used, reason = "a test, with helpers")]

use std::sync::{Arc, Barrier};
use std::thread;

use llama_backend::testing::RandomWeights;
use llama_backend::{
    Backend, Batch, DType, LoadParams, Logits, Model, ModelConfig, ModelSource, Run, Slot, TokenId, Want,
};
use llama_backend_tch::TchBackend;

fn n_threads() -> usize {
    std::fs::read_dir("/proc/self/task").unwrap().count()
}

fn load(threads: usize) -> Box<dyn Model> {
    // Large enough for libtorch to share the work.
    let config = ModelConfig {
        dim: 512,
        n_layers: 2,
        n_heads: 8,
        n_kv_heads: 4,
        head_dim: 64,
        ffn_dim: 1376,
        vocab_size: 1000,
        norm_eps: 1e-5,
        rope_theta: 10000.0,
    };
    let mut params = LoadParams::new(256, 2);
    params.threads = Some(threads);
    let source = Arc::new(RandomWeights::new(config, DType::F32, 1));
    TchBackend::default().load(ModelSource::Weights(source), &params).unwrap()
}

/// A prefill in two chunks and a few decodes; the rows of all.
fn script(model: &mut dyn Model) -> Vec<f32> {
    let tokens: Vec<TokenId> = (0..200).map(|i| TokenId(i * 37 % 1000)).collect();
    let mut rows = Vec::new();
    let mut logits = Logits::new();
    model.truncate(Slot(1), 0).unwrap();
    for (start, end) in [(0, 100), (100, 196), (196, 197), (197, 198)] {
        let (slot, want) = (Slot(1), Want::Last);
        let run = Run { slot, start_pos: start, tokens: &tokens[start..end], want };
        model.forward(&Batch::new(&[run]), &mut logits).unwrap();
        rows.extend_from_slice(logits.as_slice());
    }
    rows
}

#[test]
fn each_model_keeps_to_its_threads() {
    let before = n_threads();
    let mut alone = load(1);
    let expected = script(&mut *alone);
    assert_eq!((n_threads(), tch::get_num_threads()), (before, 1), "a model on one thread starts none");

    let mut pair = load(2);
    script(&mut *pair);
    assert_eq!((n_threads(), tch::get_num_threads()), (before + 1, 2), "a model on two threads starts one");
    assert_eq!(script(&mut *alone), expected, "the same bits beside another model");
    assert_eq!(tch::get_num_threads(), 1, "the model that computes sets the count");

    // Two at once, on a thread each, with a count each.
    let start = Arc::new(Barrier::new(2));
    let on_a_thread = |mut model: Box<dyn Model>, threads: i32| {
        let start = Arc::clone(&start);
        thread::spawn(move || {
            start.wait();
            let rows: Vec<_> = (0..20)
                .map(|_| {
                    let rows = script(&mut *model);
                    assert_eq!(tch::get_num_threads(), threads, "the other thread's count is its own");
                    rows
                })
                .collect();
            rows
        })
    };
    let both = [on_a_thread(alone, 1), on_a_thread(pair, 2)].map(|thread| thread.join().unwrap());
    assert!(both[0].iter().all(|rows| *rows == expected));
    for rows in &both[1] {
        // Two threads may add in another order.
        let apart = rows.iter().zip(&expected).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
        assert!(apart <= 1e-4, "{apart}");
    }
}
