//! A model on several ranks, which are threads here: the laws, what each rank reads, says and tells, and what it takes.

#![allow(clippy::unwrap_used, reason = "a test")]

use std::collections::HashMap;
use std::ops::Range;
use std::sync::{Arc, Mutex};

use llama_backend::testing::{
    RandomWeights, Suite, ThreadCommunicator, ThreadRanks, Tolerance, together_and_alone,
};
use llama_backend::{
    Backend, BackendError, Batch, Computation, DType, LoadParams, Logits, Model, ModelConfig, ModelSource,
    Notice, Run, Slot, TensorInfo, TokenId, Want, WeightBytes, WeightError, WeightSource,
};
use llama_backend_candle::CandleBackend;

mod two {
    use llama_backend::testing::{ThreadRanks, Tolerance};
    use llama_backend_candle::CandleBackend;

    llama_backend::conformance_tests!(
        ThreadRanks::at_most(std::sync::Arc::new(CandleBackend::default()), 2),
        Tolerance { fast: 1e-1, ..Tolerance::default() }
    );
}

mod four {
    use llama_backend::testing::{ThreadRanks, Tolerance};
    use llama_backend_candle::CandleBackend;

    llama_backend::conformance_tests!(
        ThreadRanks::at_most(std::sync::Arc::new(CandleBackend::default()), 4),
        Tolerance { fast: 1e-1, ..Tolerance::default() }
    );
}

fn config() -> ModelConfig {
    ModelConfig {
        dim: 512,
        n_layers: 3,
        n_heads: 8,
        n_kv_heads: 4,
        head_dim: 64,
        ffn_dim: 5 * 256,
        vocab_size: 1000,
        norm_eps: 1e-5,
        rope_theta: 10000.0,
    }
}

/// A shape whose parts are as even as a real model's: heads of whole blocks, and 22 blocks of the feed-forward network's width.
fn even() -> ModelConfig {
    ModelConfig { n_layers: 1, head_dim: 128, ffn_dim: 22 * 256, ..config() }
}

/// Random weights that count the bytes that they are read for, by tensor.
#[derive(Debug)]
struct Counted {
    inner: RandomWeights,
    read: Mutex<HashMap<String, u64>>,
}

impl Counted {
    fn new(config: ModelConfig, dtype: DType) -> Arc<Self> {
        Arc::new(Self { inner: RandomWeights::new(config, dtype, 3), read: Mutex::default() })
    }

    fn count(&self, name: &str, bytes: usize) {
        *self.read.lock().unwrap().entry(name.to_owned()).or_default() += bytes as u64;
    }

    fn read(&self) -> u64 {
        self.read.lock().unwrap().values().sum()
    }

    /// All bytes of the tensors that are split, and of those that every rank has whole.
    fn split_and_whole(&self) -> [u64; 2] {
        let mut sums = [0; 2];
        for (name, shape) in self.config().tensors() {
            let is_whole = shape.len() == 1 || name.starts_with("tok");
            sums[usize::from(is_whole)] += self.inner.info(&name).unwrap().n_bytes().unwrap() as u64;
        }
        sums
    }
}

impl WeightSource for Counted {
    fn config(&self) -> &ModelConfig {
        self.inner.config()
    }

    fn info(&self, name: &str) -> Result<TensorInfo, WeightError> {
        self.inner.info(name)
    }

    fn bytes(&self, name: &str) -> Result<WeightBytes, WeightError> {
        let bytes = self.inner.bytes(name)?;
        self.count(name, bytes.len());
        Ok(bytes)
    }

    fn read_slice(
        &self,
        name: &str,
        dim: usize,
        range: Range<usize>,
        out: &mut [u8],
    ) -> Result<(), WeightError> {
        self.count(name, out.len());
        self.inner.read_slice(name, dim, range, out)
    }
}

/// Every rank of a group, loaded: loading says nothing to the others.
fn load_each(
    config: &ModelConfig,
    dtype: DType,
    computation: Computation,
    size: usize,
) -> Vec<(Arc<Counted>, Box<dyn Model>)> {
    let load = |communicator: Arc<ThreadCommunicator>| {
        let weights = Counted::new(config.clone(), dtype);
        let mut params = LoadParams::new(32, 2);
        (params.communicator, params.computation, params.threads) = (communicator, computation, Some(1));
        let source = ModelSource::Weights(Arc::<Counted>::clone(&weights));
        (weights, CandleBackend::default().load(source, &params).unwrap())
    };
    ThreadCommunicator::group(size).map(load).collect()
}

#[test]
fn a_rank_reads_its_part_and_no_more() {
    for dtype in [DType::F32, DType::F16, DType::Q8_0, DType::Q4_K] {
        for size in [2, 4] {
            let ranks = load_each(&even(), dtype, Computation::Fast, size);
            let [split, whole] = ranks[0].0.split_and_whole();
            let mut sum = 0;
            for (rank, (weights, _)) in ranks.iter().enumerate() {
                let read = weights.read();
                sum += read - whole;
                let limit = 1.1 * (split as f64 / size as f64 + whole as f64);
                assert!(read as f64 <= limit, "{dtype}: rank {rank} of {size} read {read}, limit {limit}");

                let mut params = LoadParams::new(32, 2);
                params.communicator = ThreadCommunicator::group(size).nth(rank).unwrap();
                let plan = CandleBackend::default().plan(&even(), dtype, &params);
                let apart = plan.weights.abs_diff(read) as f64 / read as f64;
                assert!(apart < 0.02, "{dtype}: rank {rank} of {size} read {read}, planned {}", plan.weights);
            }
            // Every element of what is split is somebody's, and nobody else's.
            assert_eq!(sum, split, "{dtype}, {size} ranks");
        }
    }
}

#[test]
fn plans_count_what_is_kept_in_another_type() {
    // On 4 ranks a border between heads cuts blocks of `wo`, and with 3 blocks of width, those of `w2` too.
    for (ffn_dim, cut) in [(5 * 256, &["attention.wo"][..]), (3 * 256, &["attention.wo", "feed_forward.w2"])]
    {
        let config = ModelConfig { ffn_dim, ..config() };
        for (computation, kept) in [(Computation::Exact, DType::F32), (Computation::Fast, DType::Q8_0)] {
            let ranks = load_each(&config, DType::Q4_K, computation, 4);
            for (rank, (weights, _)) in ranks.iter().enumerate() {
                let read = weights.read.lock().unwrap();
                // A quarter of the columns each: two heads of 64, or 24 blocks of 32 and none of 256.
                let bytes = |name: &str, read: u64| match cut.iter().find(|part| name.contains(*part)) {
                    Some(&"attention.wo") => kept.n_bytes(128 * config.dim).unwrap() as u64,
                    Some(_) => kept.n_bytes(ffn_dim / 4 * config.dim).unwrap() as u64,
                    None => read,
                };
                let expected: u64 = read.iter().map(|(name, &read)| bytes(name, read)).sum();
                let mut params = LoadParams::new(32, 2);
                params.communicator = ThreadCommunicator::group(4).nth(rank).unwrap();
                params.computation = computation;
                let planned = CandleBackend::default().plan(&config, DType::Q4_K, &params).weights;
                let apart = planned.abs_diff(expected) as f64 / expected as f64;
                assert!(
                    apart < 0.05,
                    "{computation:?}, {ffn_dim}: rank {rank} keeps {expected}, planned {planned}"
                );
            }
        }
    }
}

#[test]
fn plans_divide_the_cache() {
    let backend = CandleBackend::default();
    let params = LoadParams::new(4096, 4);
    let whole = backend.plan(&config(), DType::F16, &params);
    for communicator in ThreadCommunicator::group(4) {
        let mut params = params.clone();
        params.communicator = communicator;
        let plan = backend.plan(&config(), DType::F16, &params);
        assert_eq!(plan.kv_cache * 4, whole.kv_cache);
        assert!(plan.scratch < whole.scratch, "{plan:?}");
        // The embeddings alone are used where they lie.
        assert_eq!(plan.in_place, 1000 * 512 * 2);
    }
}

fn step(model: &mut dyn Model, start_pos: usize, tokens: &[TokenId], want: Want) -> Vec<f32> {
    let mut logits = Logits::new();
    let run = Run { slot: Slot(0), start_pos, tokens, want };
    model.forward(&Batch::new(&[run]), &mut logits).unwrap();
    logits.as_slice().to_vec()
}

#[test]
fn a_forward_reduces_twice_a_layer_and_gathers_once() {
    let backend = ThreadRanks::new(Arc::new(CandleBackend::default()), 4);
    let weights = RandomWeights::new(config(), DType::F16, 3);
    let mut model = backend.load(ModelSource::Weights(Arc::new(weights)), &LoadParams::new(32, 2)).unwrap();
    let tokens: Vec<TokenId> = (0..20).map(TokenId).collect();
    let counts = |calls: &dyn Fn(&ThreadCommunicator) -> usize| {
        backend.last().iter().map(|rank| calls(rank)).collect::<Vec<_>>()
    };
    let (mut start, mut reduces) = (0, 0);
    for (n, want, others) in [(9, Want::Last, 2), (1, Want::Last, 2), (2, Want::All, 2), (5, Want::None, 1)] {
        let before = counts(&ThreadCommunicator::other_calls);
        step(&mut *model, start, &tokens[start..start + n], want);
        (start, reduces) = (start + n, reduces + 2 * config().n_layers);
        // What a rank adds to after rank 0 has returned, it adds in the same step: one that is told and not yet counted is waited for.
        model.truncate(Slot(1), 0).unwrap();
        assert_eq!(counts(&ThreadCommunicator::all_reduces)[0], reduces, "{n} tokens");
        // The step that is told, the logits, and the truncation that is told.
        let after = counts(&ThreadCommunicator::other_calls);
        assert_eq!(after[0] - before[0], others + 1, "{n} tokens");
    }
    drop(model);
    assert_eq!(counts(&ThreadCommunicator::all_reduces), vec![reduces; 4]);
}

#[test]
fn logits_are_those_of_one_rank() {
    for dtype in [DType::F32, DType::BF16, DType::Q4_0, DType::Q8_0, DType::Q4_K, DType::Q6_K] {
        let logits = |size| {
            let mut params = LoadParams::new(32, 2);
            params.computation = Computation::Exact;
            let source = ModelSource::Weights(Arc::new(RandomWeights::new(config(), dtype, 3)));
            let mut model =
                ThreadRanks::new(Arc::new(CandleBackend::default()), size).load(source, &params).unwrap();
            let tokens: Vec<TokenId> = (0..30).map(|i| TokenId(i * 31)).collect();
            step(&mut *model, 0, &tokens, Want::All)
        };
        let expected = logits(1);
        for size in [2, 4] {
            let found = logits(size);
            let apart = expected.iter().zip(&found).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
            assert!(apart < 1e-3, "{dtype} on {size} ranks: {apart}");
        }
    }
}

#[test]
fn fast_logits_of_recast_blocks_are_near_those_of_one_rank() {
    // 5 blocks of width on 4 ranks, unevenly; 3, which no border leaves whole.
    for ffn_dim in [5 * 256, 3 * 256] {
        let config = ModelConfig { ffn_dim, ..config() };
        let logits = |size| {
            let source = ModelSource::Weights(Arc::new(RandomWeights::new(config.clone(), DType::Q4_K, 3)));
            let ranks = ThreadRanks::new(Arc::new(CandleBackend::default()), size);
            let mut model = ranks.load(source, &LoadParams::new(32, 2)).unwrap();
            let tokens: Vec<TokenId> = (0..30).map(|i| TokenId(i * 31)).collect();
            step(&mut *model, 0, &tokens, Want::All)
        };
        let (expected, found) = (logits(1), logits(4));
        let mean_square = |numbers: &[f32]| numbers.iter().map(|x| x * x).sum::<f32>() / numbers.len() as f32;
        let apart: Vec<f32> = expected.iter().zip(&found).map(|(a, b)| a - b).collect();
        let apart = (mean_square(&apart) / mean_square(&expected)).sqrt();
        // Measured: 0.013 of both.
        assert!(apart < 0.02, "{ffn_dim}: {apart}");
    }
}

#[test]
fn a_row_is_the_same_alone_and_in_a_batch_of_8() {
    for dtype in [DType::F32, DType::F16, DType::Q4_0, DType::Q4_K] {
        let source = ModelSource::Weights(Arc::new(RandomWeights::new(config(), dtype, 3)));
        let ranks = ThreadRanks::new(Arc::new(CandleBackend::default()), 4);
        let mut model = ranks.load(source, &LoadParams::new(8, 8)).unwrap();
        let [together, alone] = together_and_alone(&mut *model, 8).unwrap();
        assert!(together.iter().zip(&alone).all(|(a, b)| a.to_bits() == b.to_bits()), "{dtype}");
        assert_eq!((together.len(), alone.len()), (8 * 1000, 8 * 1000));
    }
}

/// The laws' shapes have few heads: which of them are on four ranks is seen here.
#[test]
fn laws_are_checked_on_as_many_ranks_as_there_are() {
    let ranks = ThreadRanks::at_most(Arc::new(CandleBackend::default()), 4);
    Suite::new(&ranks, Tolerance::default()).check("equals_the_oracle").unwrap();
    assert_eq!(ranks.sizes(), [1, 2, 3, 4].into());
}

#[test]
fn a_border_within_a_block_is_told() {
    // A rank's two heads of 64 are half a block of 256 columns.
    let notices = |dtype, computation| load_each(&config(), dtype, computation, 4)[1].1.notices().to_vec();
    let to = |notices: &[Notice]| match notices {
        [Notice::Recast { tensors, from: DType::Q4_K, to }] => {
            assert_eq!(tensors.len(), config().n_layers);
            assert_eq!(tensors[2], "layers.2.attention.wo.weight");
            *to
        }
        other => unreachable!("{other:?}"),
    };
    let fast = notices(DType::Q4_K, Computation::Fast);
    assert_eq!(to(&fast), DType::Q8_0);
    let said = fast[0].to_string();
    assert!(said.contains("attention.wo") && said.contains("2 more") && said.contains("q8_0"), "{said}");
    // Whoever wants the numbers that the file says has them.
    assert_eq!(to(&notices(DType::Q4_K, Computation::Exact)), DType::F32);
    assert!(notices(DType::Q8_0, Computation::Fast).is_empty());
    assert!(load_each(&config(), DType::Q4_K, Computation::Fast, 2)[0].1.notices().is_empty());
}

#[test]
fn ranks_that_do_not_divide_the_heads_are_refused() {
    let source = ModelSource::Weights(Arc::new(RandomWeights::new(config(), DType::F32, 3)));
    let error = ThreadRanks::new(Arc::new(CandleBackend::default()), 3)
        .load(source, &LoadParams::new(8, 1))
        .err()
        .unwrap();
    assert!(matches!(error, BackendError::Ranks { ranks: 3, what: "n_kv_heads", found: 4, .. }), "{error}");
}
