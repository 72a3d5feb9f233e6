//! Blocks, by what must hold of any: lengths are checked, nothing panics, and what is made is near what it was made of.

#![allow(clippy::unwrap_used, reason = "a test")]

use llama_backend::quant::{QuantError, dequantize, quantize};
use llama_backend::testing::{RandomWeights, Rng};
use llama_backend::{DType, ModelConfig, TensorInfo, WeightError, WeightSource};

/// Types that are made, with the largest error of an element, relative to the largest element of its block.
const MADE: [(DType, f32); 6] = [
    (DType::F32, 0.0),
    (DType::F16, 0.0005),
    (DType::BF16, 0.004),
    (DType::Q8_0, 0.0045),
    (DType::Q4_0, 0.13),
    (DType::Q4_K, 0.13),
];

fn uniform(rng: &mut Rng) -> f32 {
    rng.below(2_000_001) as f32 / 1e6 - 1.0
}

#[test]
fn lengths_are_checked() {
    for &dtype in DType::ALL {
        let (len, size) = (dtype.block_len(), dtype.size());
        assert_eq!(dtype.n_bytes(3 * len), Some(3 * size));
        assert_eq!(dtype.n_bytes(0), Some(0));
        assert_eq!(dtype.n_bytes(usize::MAX), None);
        assert!(dtype.size().is_multiple_of(dtype.align()));
        let mut out = vec![0.0; 2 * len];
        for n_bytes in [0, size, 2 * size - 1, 2 * size + 1, 3 * size] {
            let error = dequantize(dtype, &vec![0; n_bytes], &mut out).unwrap_err();
            assert_eq!(error, QuantError::Length { dtype, n_bytes, n_elements: 2 * len });
        }
        let made = quantize(dtype, &out, &mut vec![0; 2 * size]);
        match MADE.iter().any(|&(made, _)| made == dtype) {
            true => made.unwrap(),
            false => assert_eq!(made, Err(QuantError::ReadOnly { dtype })),
        }
        assert!(out.iter().all(|&x| x == 0.0));
    }
    let info = |dtype, shape: &[usize]| TensorInfo { dtype, shape: shape.to_vec() }.n_bytes();
    assert_eq!(info(DType::Q4_K, &[3, 512]), Some(3 * 288));
    // 768 elements, but no rows of whole blocks.
    assert_eq!(info(DType::Q4_K, &[6, 128]), None);
    assert_eq!(info(DType::F16, &[2, 3, 5]), Some(60));
    assert_eq!(info(DType::F32, &[]), Some(4));
    assert_eq!(info(DType::Q8_0, &[usize::MAX / 8, 64]), None);
}

#[test]
fn any_bytes_are_blocks() {
    let mut rng = Rng::new(1);
    for &dtype in DType::ALL {
        for _ in 0..200 {
            let bytes: Vec<u8> = (0..dtype.size() * 3).map(|_| rng.next_u64() as u8).collect();
            let mut out = vec![0.0; dtype.block_len() * 3];
            dequantize(dtype, &bytes, &mut out).unwrap();
        }
        let ones = vec![0xff; dtype.size()];
        dequantize(dtype, &ones, &mut vec![0.0; dtype.block_len()]).unwrap();
    }
}

#[test]
fn what_is_made_is_near_what_it_was_made_of() {
    let mut rng = Rng::new(2);
    for (dtype, tolerance) in MADE {
        for case in 0..100 {
            // Where the scale of a block is no subnormal f16, and an element no infinite one.
            let scale = 10_f32.powi(case % 6 - 1);
            let x: Vec<f32> = (0..256).map(|_| uniform(&mut rng) * scale).collect();
            let mut bytes = vec![0; dtype.n_bytes(256).unwrap()];
            let mut found = vec![0.0; 256];
            quantize(dtype, &x, &mut bytes).unwrap();
            dequantize(dtype, &bytes, &mut found).unwrap();
            for (x, found) in x.iter().zip(&found) {
                assert!((x - found).abs() <= tolerance * scale, "{dtype}: {x} became {found} of {scale}");
            }
            // A block stands for itself alone: blocks together are what each is.
            let mut again = bytes.clone();
            for (x, out) in x.chunks(dtype.block_len()).zip(again.chunks_mut(dtype.size())) {
                quantize(dtype, x, out).unwrap();
            }
            assert_eq!(bytes, again);
        }
    }
}

#[test]
fn numbers_that_do_not_fit_are_errors() {
    for (dtype, bad) in [
        (DType::F16, 1e6),
        (DType::BF16, f32::MAX),
        (DType::Q8_0, f32::NAN),
        (DType::Q8_0, f32::MAX),
        (DType::Q4_0, f32::NEG_INFINITY),
        (DType::Q4_0, -1e7),
        (DType::Q4_K, f32::NAN),
        (DType::Q4_K, 1e8),
    ] {
        let mut x = vec![1.0; 256];
        x[77] = bad;
        let error = quantize(dtype, &x, &mut vec![0; dtype.n_bytes(256).unwrap()]).unwrap_err();
        let QuantError::Range { dtype: named, value } = error else { unreachable!("{error}") };
        assert_eq!((named, value.to_bits()), (dtype, bad.to_bits()));
    }
    // f16 and bf16 hold what is not finite.
    for dtype in [DType::F16, DType::BF16] {
        quantize(dtype, &[f32::NAN, f32::INFINITY], &mut [0; 4]).unwrap();
    }
}

#[test]
fn blocks_of_one_value_are_made() {
    for (dtype, tolerance) in MADE {
        for x in [0.0, -0.0, 1.0, -1.0, f32::MIN_POSITIVE] {
            let mut bytes = vec![0; dtype.n_bytes(256).unwrap()];
            let mut found = vec![f32::NAN; 256];
            quantize(dtype, &[x; 256], &mut bytes).unwrap();
            dequantize(dtype, &bytes, &mut found).unwrap();
            // The smallest f16 is 6e-8: below it scales are 0.
            assert!(found.iter().all(|found| (found - x).abs() <= tolerance * x.abs() + 1e-6), "{dtype} {x}");
        }
    }
}

#[test]
fn random_weights_are_made_in_blocks() {
    let config = ModelConfig {
        dim: 64,
        n_layers: 1,
        n_heads: 2,
        n_kv_heads: 1,
        head_dim: 32,
        ffn_dim: 40,
        vocab_size: 50,
        norm_eps: 1e-5,
        rope_theta: 1e4,
    };
    let weights = RandomWeights::new(config.clone(), DType::Q4_0, 3);
    let plain = RandomWeights::new(config, DType::F32, 3);
    let dtype = |name: &str| weights.info(name).unwrap().dtype;
    assert_eq!(dtype("norm.weight"), DType::F32);
    assert_eq!(dtype("layers.0.feed_forward.w2.weight"), DType::F32); // rows of 40
    let name = "layers.0.attention.wq.weight";
    assert_eq!(dtype(name), DType::Q4_0);
    let mut found = vec![0.0; 64 * 64];
    let bytes = weights.bytes(name).unwrap();
    dequantize(DType::Q4_0, &bytes, &mut found).unwrap();
    let expected = plain.bytes(name).unwrap();
    let expected = expected.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]]));
    assert!(expected.zip(&found).all(|(expected, found)| (expected - found).abs() < 0.05));
    // The second block of every row, and a slice that would cut one.
    let mut half = vec![0; 64 * 18];
    weights.read_slice(name, 1, 32..64, &mut half).unwrap();
    assert!(half.chunks(18).zip(bytes.chunks(36)).all(|(found, row)| found == &row[18..]));
    let cut = weights.read_slice(name, 1, 16..64, &mut half);
    assert!(matches!(cut, Err(WeightError::Slice { .. })));
}
