//! A slice of a tensor is what the whole tensor has there, in every format; and a slice that does not exist is an error.
#![allow(clippy::unwrap_used, clippy::panic)]

mod golden;
#[path = "fixtures/pth.rs"]
mod pth;

use std::ops::Range;

use golden::data;
use llama_backend::{WeightError, WeightSource};
use llama_core::checkpoint;

const SOURCES: [&str; 18] = [
    "stories260K",
    "stories260K-mp2",
    "stories260K-mp4",
    "stories260K-pth-variants/bf16",
    "stories260K-pth-variants/f16",
    "stories260K-pth-variants/tied-storage",
    "stories260K-pth-variants/flat-storage-ordereddict",
    "stories260K-pth-variants/strided",
    "stories260K-pth-variants/legacy-format",
    "stories260K-hf",
    "stories260K-hf-sharded",
    "stories260K-hf-f16",
    "random256-hf",
    "stories260K-gguf/stories260K-f32.gguf",
    "stories260K-gguf/stories260K-q8_0.gguf",
    "stories260K-gguf/stories260K-q5_1.gguf",
    "random256-gguf/random256-q3_k_m.gguf",
    "random256-gguf/random256-q4_k_m.gguf",
];

/// `range` of dimension `dim`, cut from the whole tensor; its last dimension is counted in blocks of this size.
fn cut(bytes: &[u8], shape: &[usize], size: usize, dim: usize, range: Range<usize>) -> Vec<u8> {
    let inner = shape[dim + 1..].iter().product::<usize>() * size;
    bytes
        .chunks(shape[dim] * inner)
        .flat_map(|block| &block[range.start * inner..range.end * inner])
        .copied()
        .collect()
}

/// Ranges that touch the ends, the shards' borders, and some between; the numbers only have to differ.
fn ranges(len: usize, seed: usize) -> Vec<Range<usize>> {
    let a = seed.wrapping_mul(0x9e37_79b9) % (len + 1);
    let b = seed.wrapping_mul(0x85eb_ca6b) % (len + 1);
    vec![0..len, 0..0, len..len, 0..1, len - 1..len, len / 2..len, len / 4..len / 2 + 1, a.min(b)..a.max(b)]
}

fn assert_slices(weights: &dyn WeightSource, what: &str) {
    for (seed, (name, shape)) in weights.config().tensors().enumerate() {
        let bytes = weights.bytes(&name).unwrap();
        let dtype = weights.info(&name).unwrap().dtype;
        let mut blocks = shape.clone();
        *blocks.last_mut().unwrap() /= dtype.block_len();
        for dim in 0..shape.len() {
            let block_len = shape[dim] / blocks[dim];
            for range in ranges(blocks[dim], seed + 1) {
                let expected = cut(&bytes, &blocks, dtype.size(), dim, range.clone());
                let range = range.start * block_len..range.end * block_len;
                let mut slice = vec![0xaa; expected.len()];
                weights.read_slice(&name, dim, range.clone(), &mut slice).unwrap();
                assert!(slice == expected, "{what}: {name}, dimension {dim}, {range:?}");
            }
        }
    }
}

#[test]
fn a_slice_is_a_part_of_the_whole() {
    for source in SOURCES {
        let Some(dir) = data(source) else { return };
        let checkpoint = checkpoint::open(dir).unwrap();
        assert_slices(&*checkpoint.weights(), source);
    }
}

#[test]
fn a_slice_of_an_embedded_model_is_a_part_of_the_whole() {
    for bytes in [pth::model(), pth::legacy()] {
        let checkpoint = checkpoint::from_bytes(pth::PARAMS.as_bytes(), [bytes]).unwrap();
        assert_slices(&*checkpoint.weights(), "tiny");
    }
}

#[test]
fn bytes_at_an_odd_address_are_copied_to_an_aligned_one() {
    /// The bytes after the first one.
    struct Shifted(Vec<u8>);
    impl AsRef<[u8]> for Shifted {
        fn as_ref(&self) -> &[u8] {
            &self.0[1..]
        }
    }
    let straight = checkpoint::from_bytes(pth::PARAMS.as_bytes(), [pth::model()]).unwrap();
    let shifted = Shifted([vec![0], pth::model()].concat());
    let shifted = checkpoint::from_bytes(pth::PARAMS.as_bytes(), [shifted]).unwrap();
    for (name, _) in straight.config().tensors() {
        let bytes = shifted.weights().bytes(&name).unwrap();
        assert!(bytes.as_ptr().addr().is_multiple_of(4));
        assert!(bytes[..] == straight.weights().bytes(&name).unwrap()[..]);
    }
}

#[test]
fn slices_that_do_not_exist_are_errors() {
    let checkpoint = checkpoint::from_bytes(pth::PARAMS.as_bytes(), [pth::model()]).unwrap();
    let weights = checkpoint.weights();
    let mut out = [0; 32];
    let mut read = |name: &str, dim: usize, start: usize, end: usize, len: usize| {
        weights.read_slice(name, dim, Range { start, end }, &mut out[..len]).unwrap_err()
    };
    for error in [
        read("norm.weight", 1, 0, 1, 4),
        read("norm.weight", 0, 0, 9, 32),
        read("norm.weight", 0, 3, 2, 0),
        read("norm.weight", 0, 0, 2, 4),
        read("output.weight", 2, 0, 1, 4),
        read("output.weight", 1, usize::MAX, usize::MAX, 0),
    ] {
        assert!(matches!(error, WeightError::Slice { .. }), "{error}");
    }
    let error = read("layers.1.ffn_norm.weight", 0, 0, 1, 4);
    assert!(matches!(error, WeightError::Missing { .. }), "{error}");
    assert!(weights.bytes("rope.freqs").is_err() && weights.info("rope.freqs").is_err());
}
