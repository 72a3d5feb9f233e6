//! A checkpoint in 1, 2, 4 and 8 shards answers on 1, 2, 4 and 8 ranks: whatever number it came in, whatever number it runs on.
#![allow(clippy::unwrap_used)]

#[path = "fixtures/pth.rs"]
mod pth;

use std::sync::Arc;

use llama_backend::testing::{RandomWeights, ThreadRanks};
use llama_backend::{Batch, LoadParams, Logits, Run, Slot, WeightSource};
use llama_core::checkpoint::{self, Checkpoint};
use llama_core::{BackendKind, DType, Device, ModelConfig, TokenId};
use zip::CompressionMethod;

/// The least of 70B's kind: eight key and value heads, so that eight ranks have one each.
const PARAMS: &str = r#"{"dim": 64, "multiple_of": 32, "n_heads": 16, "n_kv_heads": 8, "n_layers": 2, "norm_eps": 1e-05, "vocab_size": -1}"#;

fn config() -> ModelConfig {
    ModelConfig {
        dim: 64,
        n_layers: 2,
        n_heads: 16,
        n_kv_heads: 8,
        head_dim: 4,
        ffn_dim: 192,
        vocab_size: 72,
        norm_eps: 1e-5,
        rope_theta: 10_000.0,
    }
}

/// The dimension that fairscale's layers are cut along; norms are in every shard.
fn cut_along(name: &str) -> Option<usize> {
    match name.rsplit('.').nth(1) {
        Some("tok_embeddings" | "wo" | "w2") => Some(1),
        Some("wq" | "wk" | "wv" | "w1" | "w3" | "output") => Some(0),
        _ => None,
    }
}

/// The model as `n` files.
fn sharded(weights: &RandomWeights, n: usize) -> Checkpoint {
    let shard = |shard: usize| {
        let mut entries = Vec::new();
        let mut storages = Vec::new();
        for (key, (name, mut shape)) in config().tensors().enumerate() {
            let dim = cut_along(&name);
            if let Some(dim) = dim {
                shape[dim] /= n;
            }
            let (dim, len) = (dim.unwrap_or(0), shape[dim.unwrap_or(0)]);
            let start = if cut_along(&name).is_some() { shard * len } else { 0 };
            let elements = shape.iter().product();
            let mut bytes = vec![0; elements * size_of::<f32>()];
            weights.read_slice(&name, dim, start..start + len, &mut bytes).unwrap();
            storages.push((format!("data/{key}"), bytes));
            entries.push(pth::Entry {
                name,
                class: "FloatStorage",
                key: key.to_string(),
                n: elements,
                offset: 0,
                strides: if let [_, cols] = shape[..] { vec![cols, 1] } else { vec![1] },
                shape,
            });
        }
        storages.insert(0, ("data.pkl".to_owned(), pth::pickle(&entries)));
        pth::archive(&storages, CompressionMethod::Stored)
    };
    checkpoint::from_bytes(PARAMS.as_bytes(), (0..n).map(shard)).unwrap()
}

#[test]
fn any_number_of_shards_runs_on_any_number_of_ranks() {
    let weights = RandomWeights::new(config(), DType::F32, 5);
    let backend = BackendKind::Candle.open(Device::Cpu).unwrap();
    let tokens: Vec<TokenId> = (0..12).map(|i| TokenId(i * 5)).collect();
    let logits = |checkpoint: &Checkpoint, size: usize| {
        let ranks = ThreadRanks::new(Arc::clone(&backend), size);
        let mut params = LoadParams::new(tokens.len(), 1);
        params.threads = Some(1);
        let mut model = llama_backend::Backend::load(&ranks, checkpoint.source(), &params).unwrap();
        let mut logits = Logits::new();
        for (start_pos, tokens) in [(0, &tokens[..11]), (11, &tokens[11..])] {
            let run = Run { slot: Slot(0), start_pos, tokens, want: llama_backend::Want::Last };
            model.forward(&Batch::new(&[run]), &mut logits).unwrap();
        }
        logits.as_slice().to_vec()
    };
    let whole = logits(&sharded(&weights, 1), 1);
    assert_eq!(whole.len(), config().vocab_size);
    for shards in [1, 2, 4, 8] {
        let checkpoint = sharded(&weights, shards);
        for (name, _) in config().tensors() {
            let joined = checkpoint.weights().bytes(&name).unwrap();
            assert!(joined[..] == weights.bytes(&name).unwrap()[..], "{name} of {shards} shards");
        }
        for ranks in [1, 2, 4, 8] {
            let found = logits(&checkpoint, ranks);
            let apart = whole.iter().zip(&found).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
            assert!(apart < 1e-4, "{shards} shards on {ranks} ranks: {apart}");
            assert!(ranks > 1 || apart == 0.0, "{shards} shards: {apart}");
        }
    }
}
