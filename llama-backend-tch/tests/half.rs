//! What half-precision and quantised weights cost in exactness: the table in the crate's documentation, held to.

#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "a test, with helpers")]

use std::sync::Arc;

use llama_backend::testing::{Oracle, RandomWeights};
use llama_backend::{
    Backend, Batch, DType, LoadParams, Logits, ModelConfig, ModelSource, Run, Slot, TokenId, Want,
};
use llama_backend_tch::TchBackend;

/// Tokens of the sequence.
const LEN: usize = 32;

fn config() -> ModelConfig {
    ModelConfig {
        dim: 256,
        n_layers: 6,
        n_heads: 8,
        n_kv_heads: 2,
        head_dim: 32,
        ffn_dim: 768,
        vocab_size: 320,
        norm_eps: 1e-5,
        rope_theta: 10000.0,
    }
}

/// The largest distance of any logit from the oracle's, with the sequence fed in chunks of `chunk`.
fn distance(backend: &TchBackend, source: &Arc<RandomWeights>, expected: &[f32], chunk: usize) -> f32 {
    let weights = ModelSource::Weights(Arc::<RandomWeights>::clone(source));
    let mut model = backend.load(weights, &LoadParams::new(LEN, 1)).unwrap();
    let mut logits = Logits::new();
    let mut found = Vec::new();
    for (i, tokens) in tokens().chunks(chunk).enumerate() {
        let run = Run { slot: Slot(0), start_pos: i * chunk, tokens, want: Want::All };
        model.forward(&Batch::new(&[run]), &mut logits).unwrap();
        found.extend_from_slice(logits.as_slice());
    }
    assert_eq!(found.len(), expected.len());
    // A NaN is farther than anything.
    let apart = |(a, b): (&f32, &f32)| if a.is_nan() { f32::INFINITY } else { (a - b).abs() };
    found.iter().zip(expected).map(apart).fold(0.0, f32::max)
}

fn tokens() -> Vec<TokenId> {
    (0..LEN as u32).map(|i| TokenId(i * 97 % 320)).collect()
}

#[test]
fn the_table_of_tolerances_holds() {
    let native_bf16 = if bf16_is_native() { 1e-1 } else { 1e-3 };
    // Weights; as it comes; with half products: a row at a time, more rows.
    let mut table = vec![
        (DType::F32, 1e-3, 1e-3, 1e-3),
        (DType::F16, 1e-3, 1e-2, 1e-3),
        (DType::BF16, 1e-3, 1e-1, native_bf16),
    ];
    let quantized = DType::ALL.iter().filter(|dtype| dtype.is_quantized());
    table.extend(quantized.map(|&dtype| (dtype, 1e-3, 1e-3, 1e-3)));
    for (dtype, exact, decode, prefill) in table {
        let source = Arc::new(RandomWeights::new(config(), dtype, 11).materialised());
        let expected = Oracle::new(&*source).unwrap().logits(&tokens(), 0).concat();
        let (whole, half) = (TchBackend::default(), TchBackend::default().with_half_products());
        let cases = [
            ("decode", &whole, 1, exact),
            ("prefill", &whole, LEN, exact),
            ("decode, half products", &half, 1, decode),
            ("prefill, half products", &half, LEN, prefill),
            ("chunks of 2, half products", &half, 2, prefill),
        ];
        // Blocks are computed in one way only.
        let n_cases = if dtype.is_quantized() { 2 } else { cases.len() };
        for (what, backend, chunk, tolerance) in cases.into_iter().take(n_cases) {
            let found = distance(backend, &source, &expected, chunk);
            println!("{dtype} {what}: {found:.1e}, at most {tolerance:.0e}");
            assert!(found <= tolerance, "{dtype} {what}: {found}");
        }
    }
}

fn bf16_is_native() -> bool {
    #[cfg(target_arch = "x86_64")]
    return std::arch::is_x86_feature_detected!("avx512bf16");
    #[cfg(not(target_arch = "x86_64"))]
    false
}
