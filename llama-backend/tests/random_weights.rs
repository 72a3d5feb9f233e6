//! The seeded model is a checkpoint like any other: the same at each reading, whole or in parts.

use llama_backend::testing::{Oracle, RandomWeights};
use llama_backend::{DType, ModelConfig, TokenId, WeightError, WeightSource};

fn config() -> ModelConfig {
    ModelConfig {
        dim: 32,
        n_layers: 2,
        n_heads: 4,
        n_kv_heads: 2,
        head_dim: 6,
        ffn_dim: 20,
        vocab_size: 50,
        norm_eps: 1e-5,
        rope_theta: 10_000.0,
    }
}

const DTYPES: [DType; 3] = [DType::F32, DType::F16, DType::BF16];

fn f32s(weights: &RandomWeights, name: &str) -> Result<Vec<f32>, WeightError> {
    let bytes = weights.bytes(name)?;
    let elements = bytes.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]]));
    Ok(elements.collect())
}

#[test]
fn every_tensor_has_its_shape_and_the_same_bytes_each_time() {
    for dtype in DTYPES {
        let weights = RandomWeights::new(config(), dtype, 3);
        let kept = weights.clone().materialised();
        for (name, shape) in config().tensors() {
            let info = weights.info(&name).unwrap();
            assert_eq!((info.dtype, &info.shape), (dtype, &shape));
            let bytes = weights.bytes(&name).unwrap();
            assert_eq!(Some(bytes.len()), info.n_bytes());
            assert_eq!(bytes[..], weights.bytes(&name).unwrap()[..], "{name}");
            assert_eq!(bytes[..], kept.bytes(&name).unwrap()[..], "{name}");
            // Kept once means shared from then on.
            assert_eq!(kept.bytes(&name).unwrap().as_ptr(), kept.bytes(&name).unwrap().as_ptr());
        }
    }
}

#[test]
fn seeds_and_names_make_different_tensors() {
    let weights = RandomWeights::new(config(), DType::F32, 3);
    let other = RandomWeights::new(config(), DType::F32, 4);
    let name = "layers.0.attention.wq.weight";
    assert_ne!(f32s(&weights, name).unwrap(), f32s(&other, name).unwrap());
    assert_ne!(f32s(&weights, name).unwrap(), f32s(&weights, "layers.1.attention.wq.weight").unwrap());
}

#[test]
fn elements_are_as_wide_as_they_should_be() {
    let weights = RandomWeights::new(config(), DType::F32, 3);
    for (name, shape) in config().tensors().filter(|(_, shape)| shape.len() == 2) {
        let elements = f32s(&weights, &name).unwrap();
        let n = elements.len() as f32;
        let mean = elements.iter().sum::<f32>() / n;
        let deviation = (elements.iter().map(|w| (w - mean).powi(2)).sum::<f32>() / n).sqrt();
        let expected = match &name[..] {
            "tok_embeddings.weight" => 1.0,
            _ => 1.0 / (shape[1] as f32).sqrt(),
        };
        assert!(mean.abs() < 0.2 * expected, "{name}: mean {mean}");
        assert!(
            (deviation / expected - 1.0).abs() < 0.1,
            "{name}: deviation {deviation}, expected {expected}"
        );
    }
    assert!(f32s(&weights, "norm.weight").unwrap().iter().all(|w| (0.75..1.25).contains(w)));
}

#[test]
fn a_slice_is_what_stands_there_in_the_whole() {
    let name = "layers.1.feed_forward.w2.weight"; // [32, 20]
    for dtype in DTYPES {
        let weights = RandomWeights::new(config(), dtype, 3);
        let (whole, size) = (weights.bytes(name).unwrap(), dtype.size());
        let row = 20 * size;

        let mut rows = vec![0; 5 * row];
        weights.read_slice(name, 0, 7..12, &mut rows).unwrap();
        assert_eq!(rows, whole[7 * row..12 * row]);

        let mut columns = vec![0; 32 * 3 * size];
        weights.read_slice(name, 1, 4..7, &mut columns).unwrap();
        let expected: Vec<u8> =
            whole.chunks_exact(row).flat_map(|row| row[4 * size..7 * size].to_vec()).collect();
        assert_eq!(columns, expected);

        weights.read_slice(name, 1, 4..4, &mut []).unwrap();
    }
}

#[test]
fn slices_that_do_not_fit_are_refused() {
    let weights = RandomWeights::new(config(), DType::F32, 3);
    let mut out = [0; 32 * 4];
    let mut slice = |name: &str, dim, range| weights.read_slice(name, dim, range, &mut out);
    assert!(matches!(slice("norm.weight", 0, 0..31), Err(WeightError::Slice { .. })));
    assert!(matches!(slice("norm.weight", 0, 1..33), Err(WeightError::Slice { .. })));
    assert!(matches!(slice("norm.weight", 1, 0..1), Err(WeightError::Slice { .. })));
    #[allow(clippy::reversed_empty_ranges, reason = "a range that a caller got wrong")]
    let reversed = slice("norm.weight", 0, 9..3);
    assert!(matches!(reversed, Err(WeightError::Slice { .. })));
    assert!(matches!(slice("rope.freqs", 0, 0..1), Err(WeightError::Missing { .. })));
    assert!(slice("norm.weight", 0, 0..32).is_ok());
}

#[test]
fn activations_stay_tame_in_a_deep_model() {
    let deep = ModelConfig { n_layers: 24, ..config() };
    let oracle = Oracle::new(&RandomWeights::new(deep, DType::F32, 5)).unwrap();
    let tokens: Vec<TokenId> = (0..8).map(TokenId).collect();
    let logits = oracle.logits(&tokens, 0).concat();
    let rms = (logits.iter().map(|x| x * x).sum::<f32>() / logits.len() as f32).sqrt();
    assert!((0.5..2.0).contains(&rms), "logits of {rms}");
}
