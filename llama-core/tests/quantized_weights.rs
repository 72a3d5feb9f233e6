//! Weights that are not as they are stored: quantised at load, or converted because an engine does not take their type.

#![allow(clippy::unwrap_used, clippy::panic, clippy::print_stdout, reason = "a test")]

#[path = "fixtures/gguf.rs"]
mod gguf;

use std::fs;
use std::sync::{Arc, Mutex};

use gguf::Gguf;
use llama_backend::quant::{dequantize, quantize};
use llama_backend::testing::{NaiveBackend, RandomWeights};
use llama_backend::{
    Backend, BackendError, Capabilities, DType, LoadParams, MemoryPlan, Model, ModelConfig, ModelSource,
    WeightBytes, WeightError, WeightSource,
};
use llama_core::tokenizer::Tokenizer;
use llama_core::{Error, GenerationOptions, Llama, LlamaBuilder, Quantization, checkpoint};

const FIXTURE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/tokenizer.model");
const Q8_0: &[DType] = &[DType::F32, DType::Q8_0];

/// The naive engine, taking these types alone, and what it was handed.
#[derive(Debug, Clone)]
struct Taker {
    dtypes: &'static [DType],
    handed: Arc<Mutex<Option<Arc<dyn WeightSource>>>>,
}

impl Taker {
    fn of(dtypes: &'static [DType]) -> Self {
        Self { dtypes, handed: Arc::default() }
    }

    /// What a builder hands to an engine that takes these types.
    fn handed(dtypes: &'static [DType], builder: LlamaBuilder) -> Result<Arc<dyn WeightSource>, Error> {
        let taker = Self::of(dtypes);
        let tokenizer = Tokenizer::open(FIXTURE).unwrap();
        builder.tokenizer_from(tokenizer).max_seq_len(8).custom_backend(Arc::new(taker.clone())).build()?;
        Ok(taker.handed.lock().unwrap().take().unwrap())
    }
}

impl Backend for Taker {
    fn name(&self) -> &'static str {
        "taker"
    }

    fn capabilities(&self) -> Capabilities {
        Capabilities { dtypes: self.dtypes, skipped_laws: &[], tensor_parallel: false }
    }

    fn plan(&self, config: &ModelConfig, dtype: DType, params: &LoadParams) -> MemoryPlan {
        NaiveBackend.plan(config, dtype, params)
    }

    fn load(&self, source: ModelSource, params: &LoadParams) -> Result<Box<dyn Model>, BackendError> {
        let ModelSource::Weights(weights) = &source else { panic!("{source:?}") };
        *self.handed.lock().unwrap() = Some(Arc::clone(weights));
        NaiveBackend.load(source, params)
    }
}

/// A random model of rows of 256 (into `dim`) and `ffn_dim`, with the fixture's vocabulary.
fn random(ffn_dim: usize, dtype: DType) -> Arc<dyn WeightSource> {
    let config = ModelConfig {
        dim: 256,
        n_layers: 1,
        n_heads: 2,
        n_kv_heads: 1,
        head_dim: 128,
        ffn_dim,
        vocab_size: 266,
        norm_eps: 1e-5,
        rope_theta: 1e4,
    };
    Arc::new(RandomWeights::new(config, dtype, 7))
}

fn floats(weights: &dyn WeightSource, name: &str) -> Vec<f32> {
    let info = weights.info(name).unwrap();
    let mut out = vec![0.0; info.shape.iter().product()];
    dequantize(info.dtype, &weights.bytes(name).unwrap(), &mut out).unwrap();
    out
}

fn bytes_of(x: &[f32]) -> Vec<u8> {
    x.iter().flat_map(|x| x.to_le_bytes()).collect()
}

/// Every slice is what stands there in the whole, along both dimensions, in steps of whole blocks.
fn assert_slices(weights: &dyn WeightSource, name: &str) {
    let info = weights.info(name).unwrap();
    let [rows, cols] = info.shape[..] else { panic!("{name} is a vector") };
    let whole = weights.bytes(name).unwrap();
    let (size, len) = (info.dtype.size(), info.dtype.block_len());
    let row = cols / len * size;
    let mut some = vec![0; 3 * row];
    weights.read_slice(name, 0, 2..5, &mut some).unwrap();
    assert!(some == whole[2 * row..5 * row], "{name}: rows");
    let blocks = cols / len;
    for range in [0..blocks, 1..blocks, 0..blocks - 1, blocks / 2..blocks / 2 + 1, 1..1] {
        let mut some = vec![0; rows * range.len() * size];
        weights.read_slice(name, 1, range.start * len..range.end * len, &mut some).unwrap();
        let cut = |line: &[u8]| line[range.start * size..range.end * size].to_vec();
        let expected: Vec<u8> = whole.chunks(row).flat_map(cut).collect();
        assert!(some == expected, "{name}: columns {range:?} in blocks of {len}");
    }
    for (dim, range, n_bytes) in
        [(2, 0..1, 4), (0, rows..rows + 1, row), (1, 0..cols, 7), (1, 0..usize::MAX, 0)]
    {
        let mut out = vec![0; n_bytes];
        let error = weights.read_slice(name, dim, range, &mut out).unwrap_err();
        assert!(matches!(error, WeightError::Slice { .. }), "{error}");
    }
}

#[test]
fn an_engine_gets_in_f32_what_it_does_not_take() {
    for (id, dtype) in [(8, DType::Q8_0), (2, DType::Q4_0), (12, DType::Q4_K), (30, DType::BF16)] {
        let mut file = Gguf::with_shape(256, 512, 266);
        let name = "blk.0.ffn_down.weight";
        file.set_blocks(name, id, dtype.block_len() as u64, dtype.size());
        let opened = checkpoint::from_gguf_bytes(file.to_bytes()).unwrap();
        let stored = opened.weights();
        let name = "layers.0.feed_forward.w2.weight";
        let taken = Taker::handed(&[DType::F32], Llama::builder().checkpoint_from(opened.clone())).unwrap();
        assert_eq!(taken.info(name).unwrap().dtype, DType::F32);
        assert!(taken.bytes(name).unwrap()[..] == bytes_of(&floats(&*stored, name))[..], "{dtype}");
        assert_slices(&*taken, name);
        // What it takes is the file's own bytes.
        for name in ["layers.0.feed_forward.w1.weight", "norm.weight"] {
            assert_eq!(taken.bytes(name).unwrap().as_ptr(), stored.bytes(name).unwrap().as_ptr());
        }
        let by_hand = opened.weights_for(&Taker::of(&[DType::F32]));
        assert!(by_hand.bytes(name).unwrap()[..] == taken.bytes(name).unwrap()[..]);
    }
}

#[test]
fn blocks_that_an_engine_takes_are_the_files_own() {
    let mut file = Gguf::in_blocks();
    file.set_blocks("blk.0.ffn_down.weight", 8, 32, 34);
    let opened = checkpoint::from_gguf_bytes(file.to_bytes()).unwrap();
    let weights = opened.weights_for(&Taker::of(Q8_0));
    for (name, _) in opened.config().tensors() {
        let (found, stored) = (weights.bytes(&name).unwrap(), opened.weights().bytes(&name).unwrap());
        assert_eq!(found.as_ptr(), stored.as_ptr(), "{name}");
    }
}

#[test]
fn a_tied_model_is_converted_once() {
    let mut file = Gguf::in_blocks();
    file.set_blocks("token_embd.weight", 8, 32, 34);
    let opened = checkpoint::from_gguf_bytes(file.to_bytes()).unwrap();
    let weights = opened.weights_for(&Taker::of(&[DType::F32]));
    let bytes = |name: &str| -> WeightBytes { weights.bytes(name).unwrap() };
    let (embedding, output) = (bytes("tok_embeddings.weight"), bytes("output.weight"));
    assert_eq!(embedding.as_ptr(), output.as_ptr());
    // Asked for alone it is the same, elsewhere.
    assert_eq!(bytes("output.weight")[..], embedding[..]);
    // One that is not tied is not taken for one that is.
    file.push("output.weight", &[32, 6]);
    file.set_blocks("output.weight", 8, 32, 34);
    file.tensor("output.weight").data.reverse();
    let opened = checkpoint::from_gguf_bytes(file.to_bytes()).unwrap();
    let weights = opened.weights_for(&Taker::of(&[DType::F32]));
    let (embedding, output) =
        (weights.bytes("tok_embeddings.weight").unwrap(), weights.bytes("output.weight").unwrap());
    assert_ne!(embedding[..], output[..]);
}

#[test]
fn matrices_are_quantised_at_load() {
    const ALL: &[DType] = DType::ALL;
    for (quantization, ffn_dim, in_ffn) in [
        (Quantization::Q8_0, 288, DType::Q8_0),
        (Quantization::Q4_0, 288, DType::Q4_0),
        (Quantization::Q4_K, 512, DType::Q4_K),
        // Rows that are no blocks of 256, and rows that are no blocks of 32.
        (Quantization::Q4_K, 288, DType::Q8_0),
        (Quantization::Q4_0, 300, DType::BF16),
    ] {
        let stored = random(ffn_dim, DType::BF16);
        let builder = || Llama::builder().weights(Arc::clone(&stored)).quantize(quantization);
        let weights = Taker::handed(ALL, builder()).unwrap();
        for (name, shape) in stored.config().tensors() {
            let expected = match &*shape {
                [_] => DType::BF16,
                [_, 256] => quantization.dtype(),
                _ => in_ffn,
            };
            let info = weights.info(&name).unwrap();
            assert_eq!((info.dtype, &info.shape), (expected, &shape), "{quantization:?} {name}");
            let mut blocks = vec![0; info.n_bytes().unwrap()];
            quantize(expected, &floats(&*stored, &name), &mut blocks).unwrap();
            assert!(weights.bytes(&name).unwrap()[..] == blocks[..], "{quantization:?} {name}");
        }
        assert_slices(&*weights, "layers.0.feed_forward.w2.weight");
        assert_slices(&*weights, "layers.0.attention.wo.weight");
        // An engine that does not take the blocks gets their numbers.
        let widened = Taker::handed(&[DType::F32], builder()).unwrap();
        for (name, _) in stored.config().tensors() {
            assert_eq!(floats(&*widened, &name), floats(&*weights, &name), "{quantization:?} {name}");
        }
    }
}

#[test]
fn what_is_quantised_already_is_not_quantised_again() {
    let mut file = Gguf::with_shape(32, 64, 266);
    file.set_blocks("blk.0.ffn_down.weight", 8, 32, 34);
    let opened = checkpoint::from_gguf_bytes(file.to_bytes()).unwrap();
    let builder = Llama::builder().checkpoint_from(opened).quantize(Quantization::Q4_0);
    let error = Taker::handed(&[DType::F32], builder).unwrap_err();
    assert!(
        matches!(&error, Error::Option { option: "quantize", found, .. } if found.contains("w2") && found.contains("q8_0")),
        "{error}"
    );
    let builder = Llama::builder().weights(random(288, DType::F32)).dtype(DType::Q8_0);
    let error = Taker::handed(&[DType::F32], builder).unwrap_err();
    assert!(matches!(&error, Error::Option { option: "dtype", .. }), "{error}");
}

#[test]
fn a_number_that_does_not_fit_names_its_tensor() {
    let mut file = Gguf::with_shape(32, 64, 266);
    let name = "blk.0.ffn_down.weight";
    for bad in [f32::NAN, f32::INFINITY, 1e30] {
        file.tensor(name).data[40..44].copy_from_slice(&bad.to_le_bytes());
        let opened = checkpoint::from_gguf_bytes(file.to_bytes()).unwrap();
        let builder = Llama::builder().checkpoint_from(opened).quantize(Quantization::Q4_0);
        let error = Taker::handed(&[DType::F32], builder).unwrap_err();
        assert!(
            matches!(&error, Error::Backend(BackendError::Weights(WeightError::Read { tensor, .. })) if tensor.contains("w2")),
            "{error}"
        );
    }
}

#[test]
fn a_gguf_file_is_its_own_tokenizer() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("tiny.gguf");
    let mut gguf = Gguf::with_shape(32, 64, 266);
    gguf.set_blocks("blk.0.attn_q.weight", 8, 32, 34);
    gguf.set_tokenizer(&Tokenizer::open(FIXTURE).unwrap());
    fs::write(&file, gguf.to_bytes()).unwrap();
    let options = GenerationOptions { temperature: 0.0, max_gen_len: Some(4), ..Default::default() };
    let answer = |llama: Llama| {
        let prompt = llama.tokenizer().encode_prompt("a");
        llama.generate(&[prompt], &options).unwrap().0
    };
    let builder = || Llama::builder().custom_backend(Arc::new(NaiveBackend)).max_seq_len(16);
    let expected = answer(builder().checkpoint(&file).build().unwrap());
    assert_eq!(answer(builder().checkpoint(dir.path()).tokenizer(&file).build().unwrap()), expected);
    // The file says for how many positions the model was trained.
    let error = builder().checkpoint(&file).max_seq_len(17).build().unwrap_err();
    assert!(matches!(error, Error::MaxSeqLen { found: 17, limit: 16 }), "{error}");
}
