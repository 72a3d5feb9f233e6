//! Random models are what they say: read back through llama-core's own reader, in every type.
#![allow(clippy::unwrap_used)]

use std::io::{self, Write};

use benches::gguf::{Gguf, Tensor, WriteError};
use benches::random_model::{FileType, RandomModel, RandomModelError, Shape};
use llama_backend::quant::dequantize;
use llama_backend::{
    Backend, Batch, DType, LoadParams, Logits, ModelConfig, ModelSource, Run, Slot, TensorInfo, TokenId,
    Want, WeightSource, read_tensor,
};
use llama_core::checkpoint::{self, Checkpoint};
use llama_core::tokenizer::Tokenizer;

/// Rows of one block of every type.
fn config() -> ModelConfig {
    ModelConfig {
        dim: 256,
        n_layers: 8,
        n_heads: 4,
        n_kv_heads: 2,
        head_dim: 64,
        ffn_dim: 512,
        vocab_size: 300,
        norm_eps: 1e-5,
        rope_theta: 10000.0,
    }
}

fn model(file_type: FileType) -> RandomModel {
    RandomModel { config: config(), name: "test".to_owned(), file_type, pure: false, seed: 1 }
}

fn bytes(model: &RandomModel) -> Vec<u8> {
    let mut bytes = Vec::new();
    model.write(&mut bytes).unwrap();
    bytes
}

fn opened(model: &RandomModel) -> Checkpoint {
    checkpoint::from_gguf_bytes(bytes(model)).unwrap()
}

fn elements(weights: &dyn WeightSource, name: &str) -> Vec<f32> {
    let (dtype, bytes) = read_tensor(weights, name).unwrap();
    let mut elements = vec![0.0; bytes.len() / dtype.size() * dtype.block_len()];
    dequantize(dtype, &bytes, &mut elements).unwrap();
    elements
}

#[test]
fn every_type_is_read_back_with_sane_numbers() {
    for file_type in FileType::all() {
        let model = model(file_type);
        let checkpoint = opened(&model);
        assert_eq!(checkpoint.config(), &config(), "{file_type}");
        let weights = checkpoint.weights();
        for (name, shape) in config().tensors() {
            let expected =
                if shape.len() == 1 { DType::F32 } else { file_type.dtype_of(&name, config().n_layers) };
            let info = weights.info(&name).unwrap();
            assert_eq!(info, TensorInfo { dtype: expected, shape: shape.clone() }, "{file_type} {name}");
            let x = elements(&*weights, &name);
            let mean = x.iter().sum::<f32>() / x.len() as f32;
            let std = (x.iter().map(|x| (x - mean).powi(2)).sum::<f32>() / x.len() as f32).sqrt();
            let (mean_is, std_is) = if shape.len() == 1 { (1.0, 0.06) } else { (0.0, 0.02) };
            assert!((mean - mean_is).abs() < 0.02, "{file_type} {name}: mean {mean}");
            assert!((std / std_is - 1.0).abs() < 0.2, "{file_type} {name}: standard deviation {std}");
        }
    }
}

#[test]
fn the_file_brings_a_tokenizer() {
    let tokenizer = Tokenizer::from_bytes(&bytes(&model(FileType::Plain(DType::Q4_0)))).unwrap();
    assert_eq!(tokenizer.vocab_size(), config().vocab_size);
    let ids = tokenizer.encode("hi, 日");
    assert_eq!(tokenizer.decode(&ids).unwrap(), "hi, 日");
}

#[test]
fn mixtures_are_llama_cpps() {
    let more_bits = |n_layers: usize| {
        let of = |layer: &usize| {
            let name = format!("layers.{layer}.feed_forward.w2.weight");
            FileType::Q4_K_M.dtype_of(&name, n_layers) == DType::Q6_K
        };
        (0..n_layers).filter(of).collect::<Vec<_>>()
    };
    assert_eq!(more_bits(22), [0, 1, 4, 7, 10, 13, 16, 19, 20, 21]);
    assert_eq!(more_bits(32), [0, 1, 2, 3, 6, 9, 12, 15, 18, 21, 24, 27, 28, 29, 30, 31]);
    let of = |name: &str| FileType::Q4_K_M.dtype_of(name, 22);
    assert_eq!(of("layers.0.attention.wv.weight"), DType::Q6_K);
    assert_eq!(of("layers.0.attention.wk.weight"), DType::Q4_K);
    assert_eq!((of("output.weight"), of("tok_embeddings.weight")), (DType::Q6_K, DType::Q4_K));
    let output = |dtype| FileType::Plain(dtype).dtype_of("output.weight", 22);
    assert_eq!([DType::Q4_0, DType::Q8_0, DType::F16].map(output), [DType::Q6_K, DType::Q8_0, DType::F16]);
}

#[test]
fn pure_is_one_type() {
    let checkpoint = opened(&RandomModel { pure: true, ..model(FileType::Q4_K_M) });
    for (name, shape) in config().tensors() {
        let expected = if shape.len() == 1 { DType::F32 } else { DType::Q4_K };
        assert_eq!(checkpoint.weights().info(&name).unwrap().dtype, expected, "{name}");
    }
}

#[test]
fn the_seed_decides() {
    let model = model(FileType::Plain(DType::Q8_0));
    let other = RandomModel { seed: 2, ..model.clone() };
    assert_eq!(bytes(&model), bytes(&model));
    assert_ne!(bytes(&model), bytes(&other));
}

#[test]
fn activations_stay_finite() {
    for name in ["q4_0", "q8_0", "q4_K_M", "f16"] {
        let backend = llama_backend_candle::CandleBackend::default();
        let checkpoint = opened(&model(name.parse().unwrap()));
        let source = ModelSource::Weights(checkpoint.weights_for(&backend));
        let mut model = backend.load(source, &LoadParams::new(16, 1)).unwrap();
        let tokens: Vec<_> = (0..16).map(|i| TokenId(i * 17)).collect();
        let run = Run { slot: Slot(0), start_pos: 0, tokens: &tokens, want: Want::All };
        let mut logits = Logits::new();
        model.forward(&Batch::new(&[run]), &mut logits).unwrap();
        let largest = logits.as_slice().iter().fold(0.0, |largest: f32, x| largest.max(x.abs()));
        assert!(logits.as_slice().iter().all(|x| x.is_finite()), "{name}");
        assert!((0.1..100.0).contains(&largest), "{name}: {largest}");
    }
}

#[test]
fn shapes_have_as_many_parameters_as_they_say() {
    let billions = Shape::ALL.map(|shape| shape.config().n_params() as f64 / 1e9);
    for (found, expected) in billions.into_iter().zip([1.10, 6.74, 13.02, 68.98]) {
        assert!((found - expected).abs() < 0.005, "{found} of {expected}");
    }
}

#[test]
fn a_vocabulary_without_bytes_is_refused() {
    let mut model = model(FileType::Plain(DType::F32));
    model.config.vocab_size = 259;
    assert!(matches!(model.header(), Err(RandomModelError::Vocabulary { found: 259 })));
}

#[test]
fn a_tensor_that_is_no_whole_blocks_is_refused_and_so_is_one_cut_short() {
    let tensor = |dtype, shape: &[usize]| Gguf {
        keys: Vec::new(),
        tensors: vec![Tensor { name: "t".to_owned(), info: TensorInfo { dtype, shape: shape.to_vec() } }],
    };
    let nothing = |_: &Tensor, _: &mut dyn Write| Ok(());
    let refused = tensor(DType::Q4_0, &[2, 33]).write(io::sink(), nothing);
    assert!(matches!(refused, Err(WriteError::Blocks { dtype: DType::Q4_0, .. })), "{refused:?}");
    let refused = tensor(DType::F32, &[2]).write(io::sink(), |_, out| out.write_all(&[0; 4]));
    assert!(matches!(refused, Err(WriteError::Length { found: 4, expected: 8, .. })), "{refused:?}");
}
