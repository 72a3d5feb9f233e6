//! Every format and variant gives the same tensors: the canonical form does not depend on the file.
#![allow(clippy::unwrap_used, clippy::panic)]

mod golden;

use std::sync::Arc;

use golden::data;
use llama_backend::{DType, ModelConfig, WeightSource};
use llama_core::checkpoint::{self, Checkpoint, Format};

fn open(name: &str) -> Option<Checkpoint> {
    let dir = data(name)?;
    Some(checkpoint::open(&dir).unwrap_or_else(|error| panic!("{error}")))
}

/// A tensor's elements in f32, which holds every element of f16 and bf16.
fn elements(weights: &Arc<dyn WeightSource>, name: &str) -> Vec<f32> {
    let bytes = weights.bytes(name).unwrap();
    let dtype = weights.info(name).unwrap().dtype;
    assert!(bytes.as_ptr().addr().is_multiple_of(dtype.size()), "{name} is aligned");
    match dtype {
        DType::F32 => bytes.as_chunks().0.iter().map(|b| f32::from_le_bytes(*b)).collect(),
        DType::F16 => bytes.as_chunks().0.iter().map(|b| half::f16::from_le_bytes(*b).to_f32()).collect(),
        DType::BF16 => bytes.as_chunks().0.iter().map(|b| half::bf16::from_le_bytes(*b).to_f32()).collect(),
        other => panic!("{other}"),
    }
}

fn names(config: &ModelConfig) -> Vec<String> {
    config.tensors().map(|(name, _)| name).collect()
}

/// Both checkpoints hold the same tensors, to the bit.
fn assert_same(a: &Checkpoint, b: &Checkpoint) {
    assert_eq!(a.config(), b.config());
    let (a, b) = (a.weights(), b.weights());
    for name in names(a.config()) {
        assert_eq!(a.info(&name).unwrap(), b.info(&name).unwrap(), "{name}");
        assert!(a.bytes(&name).unwrap()[..] == b.bytes(&name).unwrap()[..], "{name} differs");
    }
}

/// `b` holds `a`'s tensors, rounded to a type of 8 or 11 significant bits.
fn assert_rounded(a: &Checkpoint, b: &Checkpoint, dtype: DType, tolerance: f32) {
    assert_eq!(a.config(), b.config());
    let (a, b) = (a.weights(), b.weights());
    for name in names(a.config()) {
        assert_eq!(b.info(&name).unwrap().dtype, dtype, "{name}");
        let (a, b) = (elements(&a, &name), elements(&b, &name));
        assert_eq!(a.len(), b.len());
        for (a, b) in a.iter().zip(&b) {
            // The smallest normal f16 is 6e-5: below it, rounding is absolute.
            assert!((a - b).abs() <= tolerance * a.abs() + 3e-8, "{name}: {a} became {b}");
        }
    }
}

#[test]
fn meta_reads_the_shape_and_every_tensor() {
    let Some(plain) = open("stories260K") else { return };
    assert_eq!(plain.format(), Format::Meta);
    assert_eq!(plain.max_seq_len(), None);
    assert!(plain.tokenizer_path().unwrap().ends_with("tokenizer.model"));
    let config = plain.config();
    assert_eq!((config.dim, config.n_layers, config.n_heads, config.n_kv_heads), (64, 5, 8, 4));
    assert_eq!((config.head_dim, config.ffn_dim, config.vocab_size), (8, 172, 512));
    let weights = plain.weights();
    for (name, shape) in config.tensors() {
        let info = weights.info(&name).unwrap();
        assert_eq!((info.dtype, &info.shape), (DType::F32, &shape), "{name}");
        assert_eq!(Some(weights.bytes(&name).unwrap().len()), info.n_bytes(), "{name}");
        assert!(elements(&weights, &name).iter().all(|x| x.is_finite()), "{name}");
    }
}

#[test]
fn params_of_another_width_are_read() {
    let Some(random) = open("random256") else { return };
    assert_eq!((random.config().dim, random.config().ffn_dim), (256, 768));
}

#[test]
fn model_parallel_shards_join_to_the_whole() {
    let Some(plain) = open("stories260K") else { return };
    for name in ["stories260K-mp2", "stories260K-mp4"] {
        let Some(sharded) = open(name) else { return };
        assert_same(&plain, &sharded);
    }
}

#[test]
fn variants_of_pth_hold_the_same_tensors() {
    let Some(plain) = open("stories260K") else { return };
    for name in ["tied-storage", "flat-storage-ordereddict", "strided", "parameters-no-rope", "legacy-format"]
    {
        let Some(variant) = open(&format!("stories260K-pth-variants/{name}")) else {
            return;
        };
        assert_same(&plain, &variant);
    }
}

#[test]
fn half_precision_pth_holds_the_rounded_tensors() {
    let Some(plain) = open("stories260K") else { return };
    for (name, dtype, tolerance) in [("bf16", DType::BF16, 1.0 / 256.0), ("f16", DType::F16, 1.0 / 2048.0)] {
        let Some(half) = open(&format!("stories260K-pth-variants/{name}")) else {
            return;
        };
        assert_rounded(&plain, &half, dtype, tolerance);
    }
}

#[test]
fn one_shard_is_handed_out_as_it_lies_in_the_file() {
    let Some(plain) = open("stories260K") else { return };
    let weights = plain.weights();
    for name in names(plain.config()) {
        let (once, again) = (weights.bytes(&name).unwrap(), weights.bytes(&name).unwrap());
        assert_eq!(once.as_ptr(), again.as_ptr(), "{name} was copied");
    }
}

#[test]
fn embedded_bytes_give_the_same_tensors_as_files() {
    let Some(dir) = data("stories260K-mp2") else {
        return;
    };
    let read = |name: &str| std::fs::read(dir.join(name)).unwrap();
    let shards = [read("consolidated.00.pth"), read("consolidated.01.pth")];
    let embedded = checkpoint::from_bytes(&read("params.json"), shards).unwrap();
    assert_same(&checkpoint::open(&dir).unwrap(), &embedded);
}

#[test]
fn hugging_face_holds_the_same_tensors() {
    for (meta, hf) in [
        ("stories260K", "stories260K-hf"),
        ("stories260K", "stories260K-hf-sharded"),
        ("stories260K-eos", "stories260K-eos-hf"),
        ("random256", "random256-hf"),
    ] {
        let (Some(meta), Some(hf)) = (open(meta), open(hf)) else {
            return;
        };
        assert_same(&meta, &hf);
        assert_eq!(hf.format(), Format::HuggingFace);
        assert!(hf.max_seq_len().is_some());
        assert!(hf.tokenizer_path().unwrap().ends_with("tokenizer.model"));
    }
}

#[test]
fn hugging_face_in_half_precision_holds_the_rounded_tensors() {
    let (Some(plain), Some(half)) = (open("stories260K"), open("stories260K-hf-f16")) else {
        return;
    };
    assert_rounded(&plain, &half, DType::F16, 1.0 / 2048.0);
}

#[test]
fn tied_embeddings_share_their_bytes() {
    let Some(tied) = open("stories260K-hf") else {
        return;
    };
    assert_eq!(tied.max_seq_len(), Some(512));
    let weights = tied.weights();
    let (embedding, output) =
        (weights.bytes("tok_embeddings.weight").unwrap(), weights.bytes("output.weight").unwrap());
    assert_eq!(embedding.as_ptr(), output.as_ptr());
}
