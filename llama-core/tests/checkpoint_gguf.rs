//! GGUF files: what is read of them, and where they are found.
#![allow(clippy::unwrap_used, clippy::panic, clippy::print_stdout, reason = "a test")]

#[path = "fixtures/gguf.rs"]
mod gguf;
mod golden;

use std::fs;
use std::sync::Arc;

use gguf::{ARRAY, Gguf, STRING, U32, array, string};
use golden::data;
use llama_backend::quant::dequantize;
use llama_backend::{DType, WeightError, WeightSource};
use llama_core::checkpoint::{self, Checkpoint, CheckpointError, Format};
use llama_core::tokenizer::{Tokenizer, TokenizerError};

const FIXTURE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/tokenizer.model");

fn open(gguf: &Gguf) -> Result<Checkpoint, CheckpointError> {
    checkpoint::from_gguf_bytes(gguf.to_bytes())
}

fn floats(weights: &Arc<dyn WeightSource>, name: &str) -> Vec<f32> {
    let info = weights.info(name).unwrap();
    let mut out = vec![0.0; info.shape.iter().product()];
    dequantize(info.dtype, &weights.bytes(name).unwrap(), &mut out).unwrap();
    out
}

#[test]
fn the_tiny_model_opens_in_both_versions() {
    for version in [2, 3] {
        let mut gguf = Gguf::tiny();
        gguf.version = version;
        let checkpoint = open(&gguf).unwrap();
        let config = checkpoint.config();
        assert_eq!((config.dim, config.n_layers, config.n_heads, config.n_kv_heads), (8, 1, 2, 1));
        assert_eq!((config.head_dim, config.ffn_dim, config.vocab_size), (4, 24, 6));
        assert_eq!((config.norm_eps, config.rope_theta), (1e-5, 10000.0));
        assert_eq!((checkpoint.format(), checkpoint.max_seq_len()), (Format::Gguf, Some(16)));
        let weights = checkpoint.weights();
        for (name, shape) in config.tensors() {
            let info = weights.info(&name).unwrap();
            assert_eq!((info.dtype, &info.shape), (DType::F32, &shape), "{name}");
            let n = shape.iter().product::<usize>();
            let expected: Vec<_> = (0..n).map(|i| i as f32 / 64.0).collect();
            assert_eq!(floats(&weights, &name), expected, "{name}");
        }
        // Tied: no output.weight is in the file.
        let [embedding, output] =
            ["tok_embeddings.weight", "output.weight"].map(|name| weights.bytes(name).unwrap());
        assert_eq!(embedding.as_ptr(), output.as_ptr());
    }
}

#[test]
fn alignments_are_kept() {
    for alignment in [8, 16, 24, 64, 4096] {
        let mut gguf = Gguf::tiny();
        gguf.alignment = alignment;
        gguf.set("general.alignment", U32, (alignment as u32).to_le_bytes());
        let weights = open(&gguf).unwrap().weights();
        assert_eq!(floats(&weights, "layers.0.ffn_norm.weight")[7], 7.0 / 64.0, "{alignment}");
    }
}

#[test]
fn defaults_stand_in_for_absent_keys() {
    let mut gguf = Gguf::tiny();
    for key in ["rope.freq_base", "rope.dimension_count", "vocab_size"] {
        gguf.remove(&format!("llama.{key}"));
    }
    gguf.set("llama.rope.scaling.type", STRING, string("none"));
    gguf.set("llama.attention.key_length", 10, 4_u64.to_le_bytes());
    assert_eq!(open(&gguf).unwrap().config(), open(&Gguf::tiny()).unwrap().config());
}

#[test]
fn every_type_is_handed_out_in_its_blocks() {
    for &dtype in DType::ALL {
        // Rows of 256 elements.
        let mut gguf = Gguf::with_shape(256, 512, 6);
        let name = "blk.0.ffn_down.weight";
        let id = [0, 1, 30, 2, 3, 6, 7, 8, 10, 11, 12, 13, 14, 20, 23]
            [DType::ALL.iter().position(|&other| other == dtype).unwrap()];
        gguf.set_blocks(name, id, dtype.block_len() as u64, dtype.size());
        let stored = gguf.tensor(name).data.clone();
        let weights = open(&gguf).unwrap().weights();
        let name = "layers.0.feed_forward.w2.weight";
        let info = weights.info(name).unwrap();
        assert_eq!((info.dtype, &*info.shape), (dtype, &[256, 512][..]));
        assert_eq!(info.n_bytes(), Some(stored.len()));
        assert!(weights.bytes(name).unwrap()[..] == stored[..], "{dtype}");
        // Rows 3 and 4, and the second half of every row.
        let row = dtype.n_bytes(512).unwrap();
        let mut rows = vec![0; 2 * row];
        weights.read_slice(name, 0, 3..5, &mut rows).unwrap();
        assert!(rows == stored[3 * row..5 * row], "{dtype}");
        let mut half = vec![0; stored.len() / 2];
        weights.read_slice(name, 1, 256..512, &mut half).unwrap();
        let expected: Vec<u8> =
            stored.chunks(row).flat_map(|row_bytes| &row_bytes[row / 2..]).copied().collect();
        assert!(half == expected, "{dtype}");
        if dtype.is_quantized() {
            let error = weights.read_slice(name, 1, 8..512, &mut half).unwrap_err();
            assert!(matches!(&error, WeightError::Slice { what, .. } if what.contains("blocks")), "{error}");
        }
    }
}

#[test]
fn a_file_and_a_folder_with_one_are_opened() {
    let dir = tempfile::tempdir().unwrap();
    let mut gguf = Gguf::tiny();
    let file = dir.path().join("model.gguf");
    fs::write(&file, gguf.to_bytes()).unwrap();
    for path in [file.as_path(), dir.path()] {
        let checkpoint = checkpoint::open(path).unwrap();
        assert_eq!(checkpoint.format(), Format::Gguf);
        assert_eq!(checkpoint.tokenizer_path(), None);
    }
    // The name says nothing where the content does.
    let unnamed = dir.path().join("model");
    fs::write(&unnamed, gguf.to_bytes()).unwrap();
    assert!(checkpoint::open(&unnamed).is_ok());
    fs::write(&unnamed, b"GG").unwrap();
    let error = checkpoint::open(&unnamed).unwrap_err();
    assert!(matches!(&error, CheckpointError::NotAFolder { path } if *path == unnamed), "{error}");
    // A tokenizer beside it serves a file that has none; its own comes first.
    fs::copy(FIXTURE, dir.path().join("tokenizer.model")).unwrap();
    let beside = checkpoint::open(dir.path()).unwrap();
    assert!(beside.tokenizer_path().unwrap().ends_with("tokenizer.model"));
    gguf.set_tokenizer(&Tokenizer::open(FIXTURE).unwrap());
    fs::remove_file(&file).unwrap();
    fs::write(&file, gguf.to_bytes()).unwrap();
    assert_eq!(checkpoint::open(dir.path()).unwrap().tokenizer_path(), Some(file.as_path()));
    // Two files: either could be meant.
    fs::copy(&file, dir.path().join("other.gguf")).unwrap();
    let error = checkpoint::open(dir.path()).unwrap_err();
    assert!(matches!(&error, CheckpointError::Ambiguous { found, .. } if found.len() == 2), "{error}");
    assert!(checkpoint::open(&file).is_ok());
}

#[test]
fn the_tokenizer_is_that_of_the_model_file() {
    let model = Tokenizer::open(FIXTURE).unwrap();
    let mut gguf = Gguf::tiny();
    gguf.set_tokenizer(&model);
    let embedded = Tokenizer::from_bytes(&gguf.to_bytes()).unwrap();
    let text = "Once upon a time, <s> 日本 ⁇  <0x0A>\n";
    assert_eq!(embedded.encode_prompt(text), model.encode_prompt(text));
    assert_eq!(embedded.vocab_size(), model.vocab_size());
    assert_eq!(embedded.decode(&[embedded.unk_id()]).unwrap(), " ⁇ ");
    // A file that does not say of which kind its pieces are.
    gguf.remove("tokenizer.ggml.token_type");
    let untyped = Tokenizer::from_bytes(&gguf.to_bytes()).unwrap();
    assert_eq!(untyped.encode_prompt(text), model.encode_prompt(text));
    // Spaces, as the file says.
    gguf.set("tokenizer.ggml.add_space_prefix", gguf::BOOL, [0]);
    let unprefixed = Tokenizer::from_bytes(&gguf.to_bytes()).unwrap();
    assert_ne!(unprefixed.encode("a"), model.encode("a"));
}

#[test]
fn other_tokenizers_are_refused_by_name() {
    let mut gguf = Gguf::tiny();
    let refused = |gguf: &Gguf| Tokenizer::from_bytes(&gguf.to_bytes()).unwrap_err();
    assert!(matches!(refused(&gguf), TokenizerError::Gguf(_)));
    gguf.set_tokenizer(&Tokenizer::open(FIXTURE).unwrap());
    let whole = gguf.clone();

    gguf.set("tokenizer.ggml.model", STRING, string("gpt2"));
    let error = refused(&gguf);
    assert!(error.is_unsupported() && error.to_string().contains("gpt2"), "{error}");

    type Change = fn(&mut Gguf);
    let broken: [(&str, Change); 7] = [
        ("fewer scores", |gguf| gguf.set("tokenizer.ggml.scores", ARRAY, array(gguf::F32, &[vec![0; 4]]))),
        ("scores of text", |gguf| {
            let texts = vec![string("a"); 266];
            gguf.set("tokenizer.ggml.scores", ARRAY, array(STRING, &texts));
        }),
        ("no scores", |gguf| gguf.remove("tokenizer.ggml.scores")),
        ("tokens of numbers", |gguf| gguf.set("tokenizer.ggml.tokens", ARRAY, array(U32, &[vec![0; 4]]))),
        ("one number of tokens", |gguf| gguf.set("tokenizer.ggml.tokens", U32, [0; 4])),
        ("BOS out of range", |gguf| gguf.set("tokenizer.ggml.bos_token_id", U32, 999_u32.to_le_bytes())),
        ("BOS that is text", |gguf| gguf.set("tokenizer.ggml.bos_token_id", U32, 261_u32.to_le_bytes())),
    ];
    for (what, change) in broken {
        let mut gguf = whole.clone();
        change(&mut gguf);
        let error = refused(&gguf);
        assert!(!error.to_string().is_empty(), "{what}");
    }
}

/// The files of llama.cpp hold the tensors of the checkpoint that they were made of: to the bit, rounded, or quantised.
#[test]
fn stories260k_is_the_same_model_in_every_file() {
    for (name, original, tolerance) in [
        ("f32", "stories260K", 0.0),
        ("eos-f32", "stories260K-eos", 0.0),
        ("f16", "stories260K", 1e-3),
        ("bf16", "stories260K", 1e-2),
        ("q8_0", "stories260K", 1e-2),
        ("q5_1", "stories260K", 5e-2),
        ("q5_0", "stories260K", 8e-2),
        ("q4_1", "stories260K", 1e-1),
        ("q4_0", "stories260K", 2e-1),
        ("q4_k_m-fallback", "stories260K", 8e-2),
    ] {
        let (Some(file), Some(original)) =
            (data(&format!("stories260K-gguf/stories260K-{name}.gguf")), data(original))
        else {
            return;
        };
        let (gguf, original) = (checkpoint::open(file).unwrap(), checkpoint::open(original).unwrap());
        assert_eq!(gguf.config(), original.config(), "{name}");
        assert_eq!(gguf.max_seq_len(), Some(512));
        let (gguf, original) = (gguf.weights(), original.weights());
        for (tensor, _) in gguf.config().tensors() {
            let (found, expected) = (floats(&gguf, &tensor), floats(&original, &tensor));
            // Relative to the largest element: scales are for blocks.
            let largest = expected.iter().fold(0.0, |max: f32, x| max.max(x.abs()));
            let distance = found.iter().zip(&expected).fold(0.0, |max: f32, (a, b)| max.max((a - b).abs()));
            assert!(distance <= tolerance * largest, "{name}: {tensor} differs by {distance} of {largest}");
        }
    }
}
