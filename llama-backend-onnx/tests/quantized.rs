//! What quantised weights cost in exactness, type by type: the table in the crate's documentation, held to.

#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "a test, with helpers")]

use std::sync::Arc;

use llama_backend::testing::{Oracle, RandomWeights};
use llama_backend::{
    Backend, Batch, Computation, DType, Device, LoadParams, Logits, Model, ModelConfig, ModelSource, Run,
    Slot, TokenId, Want,
};
use llama_backend_onnx::OnnxBackend;

/// Tokens of the sequence.
const LEN: usize = 32;
/// The table: how far logits of about -4..4 may lie from those of an f64 model on the same weights.
const EXACT: f32 = 1e-3;
const FAST: f32 = 2e-1;

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

fn tokens() -> Vec<TokenId> {
    (0..LEN as u32).map(|i| TokenId(i * 97 % 320)).collect()
}

fn load(source: &Arc<RandomWeights>, computation: Computation) -> Box<dyn Model> {
    let mut params = LoadParams::new(LEN, 3);
    params.computation = computation;
    let weights = ModelSource::Weights(Arc::<RandomWeights>::clone(source));
    OnnxBackend::new(Device::Cpu).unwrap().load(weights, &params).unwrap()
}

/// All rows of a sequence in slot 0, fed in chunks.
fn rows(model: &mut dyn Model, chunk: usize) -> Vec<f32> {
    model.truncate(Slot(0), 0).unwrap();
    let (mut rows, mut logits) = (Vec::new(), Logits::new());
    for (i, tokens) in tokens().chunks(chunk).enumerate() {
        let run = Run { slot: Slot(0), start_pos: i * chunk, tokens, want: Want::All };
        model.forward(&Batch::new(&[run]), &mut logits).unwrap();
        rows.extend_from_slice(logits.as_slice());
    }
    rows
}

/// The largest distance; a NaN is farther than anything.
fn apart(a: &[f32], b: &[f32]) -> f32 {
    assert_eq!(a.len(), b.len());
    let apart = |(a, b): (&f32, &f32)| if a.is_nan() { f32::INFINITY } else { (a - b).abs() };
    a.iter().zip(b).map(apart).fold(0.0, f32::max)
}

fn quantized() -> impl Iterator<Item = DType> {
    DType::ALL.iter().copied().filter(|dtype| dtype.is_quantized())
}

#[test]
fn the_table_of_tolerances_holds() {
    for dtype in quantized() {
        let source = Arc::new(RandomWeights::new(config(), dtype, 11).materialised());
        let expected = Oracle::new(&*source).unwrap().logits(&tokens(), 0).concat();
        for (computation, tolerance) in [(Computation::Exact, EXACT), (Computation::Fast, FAST)] {
            let mut model = load(&source, computation);
            for chunk in [1, 2, LEN] {
                let found = apart(&rows(&mut *model, chunk), &expected);
                println!("{dtype} {computation:?}, {chunk} at a time: {found:.1e}, at most {tolerance:.0e}");
                assert!(found <= tolerance, "{dtype} {computation:?}: {found}");
            }
        }
    }
}

/// Nothing is rounded over more than one row: a decode beside others is what it is alone, to the last bits of a sum, and to what those may
/// tip over in the next rounding.
#[test]
fn a_row_is_rounded_by_itself() {
    for dtype in quantized() {
        let source = Arc::new(RandomWeights::new(config(), dtype, 5).materialised());
        let mut model = load(&source, Computation::Fast);
        let mut logits = Logits::new();
        let mut step = |feeds: &[(usize, usize, &[TokenId])]| {
            let run =
                |&(slot, start_pos, tokens)| Run { slot: Slot(slot), start_pos, tokens, want: Want::Last };
            let runs: Vec<Run<'_>> = feeds.iter().map(run).collect();
            model.forward(&Batch::new(&runs), &mut logits).unwrap();
            let last = logits.row(0).unwrap().to_vec();
            feeds.iter().for_each(|&(slot, start, _)| model.truncate(Slot(slot), start).unwrap());
            last
        };
        let tokens = tokens();
        let alone = step(&[(0, 0, &tokens[..1])]);
        let beside = step(&[(0, 0, &tokens[..1]), (1, 0, &tokens[1..2]), (2, 0, &tokens[2..3])]);
        let found = apart(&alone, &beside);
        println!("{dtype}: alone and beside two others {found:.1e} apart");
        assert!(found <= FAST, "{dtype}: {found}");
    }
}
