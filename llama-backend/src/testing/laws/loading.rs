//! Laws about loading: what is refused, what a plan says, and that models are worlds of their own.

use std::ops::Range;
use std::path::PathBuf;
use std::sync::{Arc, Barrier};
use std::thread;

use super::super::random::RandomWeights;
use super::super::rig::{Rows, small};
use super::super::suite::{Broken, Checked, Suite};
use super::super::threads::ThreadCommunicator;
use crate::{
    BackendError, DType, LoadParams, MemoryPlan, ModelConfig, ModelSource, TensorInfo, Want, WeightBytes,
    WeightError, WeightSource,
};

/// That a load fails, with an error of the right kind.
fn refuses(
    suite: &Suite<'_>,
    source: ModelSource,
    params: &LoadParams,
    kind: &str,
    is: fn(&BackendError) -> bool,
) -> Checked {
    match suite.backend.load(source, params) {
        Err(error) if is(&error) => Ok(()),
        Err(error) => Err(Broken(format!("refused with {error:?}, expected {kind}"))),
        Ok(_) => Err(Broken(format!("loaded, expected {kind}"))),
    }
}

pub(super) fn refuses_bad_configs(suite: &Suite<'_>) -> Checked {
    let bad = [
        ModelConfig { dim: 0, ..small() },
        ModelConfig { n_layers: 0, ..small() },
        ModelConfig { n_heads: 0, ..small() },
        ModelConfig { n_kv_heads: 0, ..small() },
        ModelConfig { head_dim: 0, ..small() },
        ModelConfig { ffn_dim: 0, ..small() },
        ModelConfig { vocab_size: 0, ..small() },
        ModelConfig { n_kv_heads: 3, ..small() },
        ModelConfig { n_kv_heads: 8, ..small() },
        ModelConfig { head_dim: 7, ..small() },
        ModelConfig { norm_eps: f32::NAN, ..small() },
        ModelConfig { norm_eps: -1e-5, ..small() },
        ModelConfig { rope_theta: 0.0, ..small() },
        ModelConfig { rope_theta: f64::INFINITY, ..small() },
    ];
    for config in bad {
        let source = match suite.source(&suite.weights(1)) {
            ModelSource::Graph { path, .. } => ModelSource::Graph { path, config: config.clone() },
            _ => ModelSource::Weights(Arc::new(RandomWeights::new(config.clone(), DType::F32, 1))),
        };
        let is = |error: &BackendError| matches!(error, BackendError::Config { .. });
        refuses(suite, source, &LoadParams::new(8, 1), "BackendError::Config", is)
            .map_err(|broken| broken.at(format_args!("{config:?}")))?;
    }
    Ok(())
}

pub(super) fn refuses_bad_params(suite: &Suite<'_>) -> Checked {
    // 2^48 positions: each limit is within its bounds, and no machine has the memory.
    const MANY: usize = 1 << 24;
    let with = |change: fn(&mut LoadParams)| {
        let mut params = LoadParams::new(8, 2);
        change(&mut params);
        params
    };
    let bad = [
        with(|params| params.max_seq_len = 0),
        with(|params| params.n_slots = 0),
        with(|params| params.max_batch_tokens = 0),
        with(|params| params.threads = Some(0)),
        with(|params| params.max_seq_len = usize::MAX),
        with(|params| params.n_slots = usize::MAX),
        with(|params| (params.max_seq_len, params.n_slots) = (MANY, MANY)),
    ];
    for params in bad {
        let is = |error: &BackendError| matches!(error, BackendError::Params { .. });
        refuses(suite, suite.source(&suite.weights(1)), &params, "BackendError::Params", is)
            .map_err(|broken| broken.at(format_args!("{params:?}")))?;
    }
    if !suite.backend.capabilities().tensor_parallel {
        let mut params = LoadParams::new(8, 2);
        for communicator in ThreadCommunicator::group(2) {
            params.communicator = communicator;
            let is = |error: &BackendError| matches!(error, BackendError::Unsupported { .. });
            refuses(suite, suite.source(&suite.weights(1)), &params, "BackendError::Unsupported", is)
                .map_err(|broken| broken.at(format_args!("{params:?}")))?;
        }
    }
    Ok(())
}

pub(super) fn refuses_bad_weights(suite: &Suite<'_>) -> Checked {
    let is = |error: &BackendError| matches!(error, BackendError::Weights(_));
    for fault in [Fault::Missing, Fault::Transposed, Fault::CutShort, Fault::Unreadable] {
        // A matrix of the first layer, a norm of the last, and what lies outside the layers.
        for tensor in [
            "layers.0.attention.wq.weight",
            "layers.1.feed_forward.w2.weight",
            "layers.1.ffn_norm.weight",
            "tok_embeddings.weight",
            "norm.weight",
            "output.weight",
        ] {
            let inner = RandomWeights::new(small(), DType::F32, 1);
            let source = ModelSource::Weights(Arc::new(FaultyWeights { inner, tensor, fault }));
            refuses(suite, source, &LoadParams::new(8, 1), "BackendError::Weights", is)
                .map_err(|broken| broken.at(format_args!("{tensor} {fault:?}")))?;
        }
    }
    let taken = suite.backend.capabilities().dtypes;
    for dtype in [DType::F32, DType::F16, DType::BF16] {
        if !taken.contains(&dtype) {
            let is = |error: &BackendError| {
                matches!(error, BackendError::Weights(_) | BackendError::Unsupported { .. })
            };
            let source = ModelSource::Weights(Arc::new(RandomWeights::new(small(), dtype, 1)));
            refuses(suite, source, &LoadParams::new(8, 1), "BackendError::Weights or Unsupported", is)
                .map_err(|broken| broken.at(format_args!("weights of {dtype}, which is not declared")))?;
        }
    }
    Ok(())
}

/// What is wrong with a tensor.
#[derive(Debug, Clone, Copy)]
enum Fault {
    Missing,
    /// The same elements in another shape; a vector becomes a matrix of one row.
    Transposed,
    /// Fewer bytes than its shape says.
    CutShort,
    Unreadable,
}

/// A checkpoint with one bad tensor.
#[derive(Debug)]
struct FaultyWeights {
    inner: RandomWeights,
    tensor: &'static str,
    fault: Fault,
}

impl FaultyWeights {
    fn fault(&self, name: &str) -> Option<Fault> {
        (name == self.tensor).then_some(self.fault)
    }

    fn missing(&self) -> WeightError {
        WeightError::Missing { file: PathBuf::from("faulty weights"), tensor: self.tensor.to_owned() }
    }

    fn unreadable(&self) -> WeightError {
        WeightError::Read {
            file: PathBuf::from("faulty weights"),
            tensor: self.tensor.to_owned(),
            source: "the disk is on fire".into(),
        }
    }
}

impl WeightSource for FaultyWeights {
    fn config(&self) -> &ModelConfig {
        self.inner.config()
    }

    fn info(&self, name: &str) -> Result<TensorInfo, WeightError> {
        let mut info = self.inner.info(name)?;
        match self.fault(name) {
            Some(Fault::Missing) => return Err(self.missing()),
            Some(Fault::Transposed) if info.shape.len() == 1 => info.shape.insert(0, 1),
            // Square matrices look the same transposed: one row is added and one column is lost.
            Some(Fault::Transposed) if info.shape[0] == info.shape[1] => {
                info.shape = vec![info.shape[0] * 2, info.shape[1] / 2];
            }
            Some(Fault::Transposed) => info.shape.reverse(),
            Some(Fault::CutShort | Fault::Unreadable) | None => {}
        }
        Ok(info)
    }

    fn bytes(&self, name: &str) -> Result<WeightBytes, WeightError> {
        match self.fault(name) {
            Some(Fault::Missing) => Err(self.missing()),
            Some(Fault::Unreadable) => Err(self.unreadable()),
            Some(Fault::CutShort) => {
                let bytes = self.inner.bytes(name)?;
                Ok(WeightBytes::from(bytes[..bytes.len() - 4].to_vec()))
            }
            Some(Fault::Transposed) | None => self.inner.bytes(name),
        }
    }

    fn read_slice(
        &self,
        name: &str,
        dim: usize,
        range: Range<usize>,
        out: &mut [u8],
    ) -> Result<(), WeightError> {
        match self.fault(name) {
            Some(Fault::Missing) => Err(self.missing()),
            Some(Fault::CutShort | Fault::Unreadable) => Err(self.unreadable()),
            Some(Fault::Transposed) | None => self.inner.read_slice(name, dim, range, out),
        }
    }
}

pub(super) fn model_says_what_it_was_loaded_with(suite: &Suite<'_>) -> Checked {
    let name = suite.backend.name();
    if name.is_empty() || name.chars().any(|c| c.is_whitespace() || c.is_uppercase()) {
        return Err(Broken(format!("the name {name:?}, expected a word in lower case")));
    }
    let mut params = LoadParams::new(11, 3);
    params.max_batch_tokens = 7;
    params.threads = Some(1);
    let params = suite.params(&params);
    let rig = suite.load(&suite.weights(1), &params)?;
    if *rig.model.config() != suite.config() {
        return Err(Broken(format!("config {:?}, expected {:?}", rig.model.config(), suite.config())));
    }
    if *rig.model.params() != params {
        return Err(Broken(format!("params {:?}, expected {params:?}", rig.model.params())));
    }
    Ok(())
}

pub(super) fn plan_grows_with_the_model(suite: &Suite<'_>) -> Checked {
    let plan = |config: &ModelConfig, dtype, max_seq_len, n_slots| {
        suite.backend.plan(config, dtype, &LoadParams::new(max_seq_len, n_slots))
    };
    for &dtype in suite.backend.capabilities().dtypes {
        let found = plan(&small(), dtype, 256, 4);
        let least = small().n_params() / dtype.block_len() as u64 * dtype.size() as u64;
        if found.in_place > found.weights {
            return Err(Broken(format!("{found:?} for {dtype}: more in place than there is")));
        }
        if found.weights < least || found.kv_cache == 0 || found.scratch == 0 {
            return Err(Broken(format!(
                "{found:?} for {dtype}, expected weights of {least} bytes and nothing 0"
            )));
        }
    }
    // Equal steps cost equal bytes; whole blocks of positions, since a cache may be kept in blocks.
    let kv_cache = |max_seq_len, n_slots| plan(&small(), DType::F32, max_seq_len, n_slots).kv_cache;
    for (what, bytes) in [
        ("positions", [1, 2, 3].map(|n| kv_cache(n * 256, 4))),
        ("slots", [1, 2, 3].map(|n| kv_cache(256, n * 4))),
    ] {
        let [one, two, three] = bytes;
        if one >= two || two >= three || two - one != three - two {
            return Err(Broken(format!("a KV cache of {bytes:?} bytes for 1, 2 and 3 times the {what}")));
        }
    }
    // The largest of everything that passes validation: a number, not an overflow.
    const LIMIT: usize = 1 << 24;
    let largest = ModelConfig {
        dim: LIMIT,
        n_layers: LIMIT,
        n_heads: LIMIT / 2,
        n_kv_heads: LIMIT / 2,
        head_dim: 2,
        ffn_dim: LIMIT,
        vocab_size: LIMIT,
        ..small()
    };
    let mut params = LoadParams::new(LIMIT, LIMIT);
    params.max_batch_tokens = LIMIT;
    let MemoryPlan { weights, kv_cache, .. } = suite.backend.plan(&largest, DType::F32, &params);
    let least = plan(&small(), DType::F32, 256, 4);
    if weights <= least.weights || kv_cache <= least.kv_cache {
        return Err(Broken(format!("weights {weights} and KV cache {kv_cache} for the largest model")));
    }
    Ok(())
}

pub(super) fn models_do_not_disturb_each_other(suite: &Suite<'_>) -> Checked {
    // Made, used and dropped on a thread: shapes differ, so that shared scratch would not even fit.
    let script = |config: ModelConfig, start: &Barrier| -> Checked<Rows> {
        let vocab_size = config.vocab_size as u32;
        let loaded = suite.load(&suite.weights_of(config, DType::F32, 1), &LoadParams::new(24, 2));
        start.wait();
        let mut rig = loaded?;
        let mut rows = Rows::new();
        for round in 0..6 {
            for slot in 0..2 {
                let mut tokens = suite.text(110 + round, 4);
                tokens.iter_mut().for_each(|token| token.0 %= vocab_size);
                rows.extend(rig.feed(slot, &tokens, Want::All)?);
            }
        }
        Ok(rows)
    };
    let other = ModelConfig { dim: 16, n_heads: 2, n_kv_heads: 1, vocab_size: 29, ..small() };
    let configs = if suite.is_fixed() { [suite.config(), suite.config()] } else { [small(), other] };
    let alone = |config: &ModelConfig| script(config.clone(), &Barrier::new(1));
    let alone: Vec<Rows> = configs.iter().map(alone).collect::<Checked<_>>()?;
    // Neither starts before both are loaded, so that they do run at once.
    let start = Barrier::new(2);
    let together: Vec<Rows> = thread::scope(|scope| {
        let threads = configs.each_ref().map(|config| scope.spawn(|| script(config.clone(), &start)));
        let join = |thread: thread::ScopedJoinHandle<'_, Checked<Rows>>| {
            thread.join().unwrap_or_else(|_| Err(Broken("a thread panicked".to_owned())))
        };
        threads.into_iter().map(join).collect::<Checked<_>>()
    })?;
    for ((config, alone), together) in configs.iter().zip(alone).zip(together) {
        suite.is_same(&together, &alone).map_err(|broken| broken.at(format_args!("{config:?}")))?;
    }
    Ok(())
}
