//! A row's logits are the same to the bit, however they are computed: alone, among others, in chunks of any size, on any threads; and so
//! on several ranks, whose sums are taken in one order.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test")]

use std::sync::Arc;

use llama_backend::testing::{RandomWeights, ThreadRanks};
use llama_backend::{
    Backend, Batch, Computation, DType, LoadParams, Logits, Model, ModelConfig, ModelSource, Run, Slot,
    TokenId, Want,
};
use llama_backend_candle::CandleBackend;

/// Eight sequences at a time.
const SLOTS: usize = 8;

/// Grouped heads, rows of whole blocks of every type.
fn small() -> ModelConfig {
    ModelConfig {
        dim: 256,
        n_layers: 2,
        n_heads: 8,
        n_kv_heads: 2,
        head_dim: 32,
        ffn_dim: 768,
        vocab_size: 101,
        norm_eps: 1e-5,
        rope_theta: 10000.0,
    }
}

/// A block of TinyLlama's: above every tile.
fn large() -> ModelConfig {
    ModelConfig { dim: 2048, n_layers: 1, n_heads: 32, n_kv_heads: 4, head_dim: 64, ffn_dim: 5632, ..small() }
}

struct Case {
    config: ModelConfig,
    dtype: DType,
    computation: Computation,
    kv_dtype: DType,
    len: usize,
    ranks: usize,
}

impl Case {
    fn load(&self, weights: &Arc<RandomWeights>, threads: usize) -> Box<dyn Model> {
        let mut params = LoadParams::new(self.len, SLOTS);
        params.threads = Some(threads);
        params.computation = self.computation;
        params.kv_dtype = self.kv_dtype;
        params.max_batch_tokens = SLOTS * self.len;
        let source = ModelSource::Weights(Arc::<RandomWeights>::clone(weights));
        ThreadRanks::new(Arc::new(CandleBackend::default()), self.ranks).load(source, &params).unwrap()
    }

    fn tokens(&self, slot: usize) -> Vec<TokenId> {
        let id = |i: usize| ((i * 31 + slot * 17) % self.config.vocab_size) as u32;
        (0..self.len).map(|i| TokenId(id(i))).collect()
    }

    fn what(&self) -> String {
        let Self { config, dtype, computation, kv_dtype, ranks, .. } = self;
        format!("dim {}, {dtype}, {computation:?}, KV cache in {kv_dtype}, {ranks} ranks", config.dim)
    }

    /// The logits of slot 0's sequence, in chunks.
    fn in_chunks(&self, model: &mut dyn Model, of: usize) -> Vec<f32> {
        let tokens = self.tokens(0);
        let (mut rows, mut logits) = (Vec::new(), Logits::new());
        for (i, chunk) in tokens.chunks(of).enumerate() {
            let run = Run { slot: Slot(0), start_pos: i * of, tokens: chunk, want: Want::All };
            model.forward(&Batch::new(&[run]), &mut logits).unwrap();
            rows.extend(logits.rows().flatten().copied());
        }
        model.truncate(Slot(0), 0).unwrap();
        rows
    }

    /// The same among seven others, in chunks.
    fn among_others(&self, model: &mut dyn Model, of: usize) -> Vec<f32> {
        let tokens: Vec<_> = (0..SLOTS).map(|slot| self.tokens(slot)).collect();
        let (mut rows, mut logits) = (Vec::new(), Logits::new());
        for from in (0..self.len).step_by(of) {
            let to = self.len.min(from + of);
            // The sequence that counts comes last: its rows lie elsewhere in every tile.
            let run = |slot: usize| {
                let want = if slot == 0 { Want::All } else { Want::None };
                Run { slot: Slot(slot), start_pos: from, tokens: &tokens[slot][from..to], want }
            };
            let runs: Vec<_> = (0..SLOTS).rev().map(run).collect();
            model.forward(&Batch::new(&runs), &mut logits).unwrap();
            rows.extend(logits.rows().flatten().copied());
        }
        for slot in 0..SLOTS {
            model.truncate(Slot(slot), 0).unwrap();
        }
        rows
    }

    fn check(&self, chunks: &[usize]) {
        let weights = Arc::new(RandomWeights::new(self.config.clone(), self.dtype, 7).materialised());
        let mut expected = None;
        for threads in [1, 2] {
            let mut model = self.load(&weights, threads);
            let whole = self.in_chunks(&mut *model, self.len);
            let expected = &*expected.get_or_insert(whole.clone());
            let check = |how: String, found: &[f32]| {
                assert!(expected == found, "{}, {threads} threads, {how}: a row differs", self.what());
            };
            check("whole".to_owned(), &whole);
            for &of in chunks {
                check(format!("chunks of {of}"), &self.in_chunks(&mut *model, of));
                check(format!("among others, chunks of {of}"), &self.among_others(&mut *model, of));
            }
        }
    }
}

#[test]
fn every_type_alone_among_others_and_in_chunks() {
    for &dtype in DType::ALL {
        // 70 positions: across two borders of the attention's blocks, and more rows than a tile of products.
        let case = |computation| {
            Case { config: small(), dtype, computation, kv_dtype: DType::F32, len: 70, ranks: 1 }
                .check(&[1, 7, 64]);
        };
        case(Computation::Fast);
        if dtype.is_quantized() {
            case(Computation::Exact);
        }
    }
}

#[test]
fn a_cache_in_f16() {
    let case = |dtype| Case {
        config: small(),
        dtype,
        computation: Computation::Fast,
        kv_dtype: DType::F16,
        len: 70,
        ranks: 1,
    };
    for dtype in [DType::F32, DType::Q8_0] {
        case(dtype).check(&[1, 7, 64]);
    }
}

#[test]
fn on_four_ranks() {
    // Borders between blocks, and within them.
    for (head_dim, ffn_dim) in [(32, 768), (256, 4 * 256)] {
        let config = ModelConfig { n_heads: 4, n_kv_heads: 4, head_dim, ffn_dim, ..small() };
        for dtype in [DType::F16, DType::Q8_0, DType::Q4_K] {
            let case = |computation| {
                let (config, kv_dtype) = (config.clone(), DType::F32);
                Case { config, dtype, computation, kv_dtype, len: 30, ranks: 4 }.check(&[7]);
            };
            case(Computation::Fast);
            if dtype.is_quantized() {
                case(Computation::Exact);
            }
        }
    }
}

#[test]
fn at_the_size_of_a_real_model() {
    for dtype in [DType::F16, DType::Q4_0, DType::Q6_K] {
        let case = Case {
            config: large(),
            dtype,
            computation: Computation::Fast,
            kv_dtype: DType::F32,
            len: 70,
            ranks: 1,
        };
        case.check(&[7, 64]);
    }
}

#[test]
fn a_cache_in_f16_is_near_one_in_f32() {
    let case = |kv_dtype| Case {
        config: small(),
        dtype: DType::F32,
        computation: Computation::Exact,
        kv_dtype,
        len: 40,
        ranks: 1,
    };
    let weights = Arc::new(RandomWeights::new(small(), DType::F32, 7).materialised());
    let logits = |kv_dtype| {
        let case = case(kv_dtype);
        case.in_chunks(&mut *case.load(&weights, 2), case.len)
    };
    let (whole, half) = (logits(DType::F32), logits(DType::F16));
    assert_ne!(whole, half, "the option does nothing");
    let apart = whole.iter().zip(&half).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
    assert!(apart < 2e-2, "{apart}");
}

#[test]
fn a_cache_in_another_type_is_refused() {
    let mut params = LoadParams::new(8, 1);
    params.kv_dtype = DType::Q8_0;
    let source = ModelSource::Weights(Arc::new(RandomWeights::new(small(), DType::F32, 7)));
    let error = CandleBackend::default().load(source, &params).err().unwrap().to_string();
    assert!(error.contains("kv_dtype") && error.contains("q8_0"), "{error}");
}
