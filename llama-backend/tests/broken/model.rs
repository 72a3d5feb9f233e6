//! A model over the oracle that makes one mistake.

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use llama_backend::testing::{NaiveBackend, Oracle, RandomWeights};
use llama_backend::{
    Backend, BackendError, Batch, Capabilities, DType, LoadParams, Logits, MemoryPlan, Model, ModelConfig,
    ModelSource, Run, Slot, Slots, TensorInfo, TokenId, Want, WeightBytes, WeightError, WeightSource,
};

/// What the model does wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fault {
    HalfSplitRope,
    OneKvHeadServesAll,
    SwapsGateAndUp,
    FixedEps,
    FixedTheta,
    ReadsBf16AsF16,
    Sees256Positions,
    DecodesOnePositionLate,
    ChunkIgnoresCache,
    PadsRaggedRuns,
    RowsInSlotOrder,
    LastIsFirst,
    NoneIsNotComputed,
    DecodesComeFirst,
    Noise,
    SkipsWorkOnThreeThreads,
    AddsToBuffer,
    NoneKeepsRows,
    StaleTail,
    StaleAfterFree,
    FreesNeighbour,
    ForkTakesAll,
    ForksShareState,
    SelfForkFrees,
    AppendsBeforeCheck,
    ClampsTokens,
    FailedForkFrees,
    WastesLastPosition,
    LoadsAnything,
    ForgetsParams,
    PlansNoCache,
    SharesStateBetweenModels,
}

/// A backend whose models make one mistake, or none.
#[derive(Debug, Clone, Copy)]
pub(crate) struct FaultyBackend(pub(crate) Option<Fault>);

impl Backend for FaultyBackend {
    fn name(&self) -> &'static str {
        "faulty"
    }

    fn capabilities(&self) -> Capabilities {
        NaiveBackend.capabilities()
    }

    fn plan(&self, config: &ModelConfig, dtype: DType, params: &LoadParams) -> MemoryPlan {
        let plan = NaiveBackend.plan(config, dtype, params);
        match self.0 {
            Some(Fault::PlansNoCache) => MemoryPlan { kv_cache: 1, ..plan },
            _ => plan,
        }
    }

    fn load(&self, source: ModelSource, params: &LoadParams) -> Result<Box<dyn Model>, BackendError> {
        let fault = self.0;
        // The naive backend says what is wrong with source and limits.
        let loaded = NaiveBackend.load(source.clone(), params);
        let model = match loaded {
            Err(_) if fault == Some(Fault::LoadsAnything) => {
                let config = RandomWeights::new(TINY, DType::F32, 0);
                return FaultyBackend(None)
                    .load(ModelSource::Weights(Arc::new(config)), &LoadParams::new(8, 1));
            }
            loaded => loaded?,
        };
        let ModelSource::Weights(inner) = source else { unreachable!("the naive backend took it") };
        let rewired = Rewired { config: misread(model.config(), fault), inner, fault };
        if fault == Some(Fault::SharesStateBetweenModels) {
            SHARED.fetch_add(1, Ordering::SeqCst);
        }
        Ok(Box::new(FaultyModel {
            fault,
            oracle: Oracle::new(&rewired)?,
            config: model.config().clone(),
            params: match fault {
                Some(Fault::ForgetsParams) => LoadParams::new(params.max_seq_len, params.n_slots),
                _ => params.clone(),
            },
            slots: Slots::new(model.config(), params),
            held: vec![Vec::new(); params.n_slots],
            place: (0..params.n_slots).collect(),
            n_calls: 0,
        }))
    }
}

const TINY: ModelConfig = ModelConfig {
    dim: 2,
    n_layers: 1,
    n_heads: 1,
    n_kv_heads: 1,
    head_dim: 2,
    ffn_dim: 1,
    vocab_size: 2,
    norm_eps: 1e-5,
    rope_theta: 10_000.0,
};

/// How many models with shared state there are.
static SHARED: AtomicUsize = AtomicUsize::new(0);

fn misread(config: &ModelConfig, fault: Option<Fault>) -> ModelConfig {
    let mut config = config.clone();
    match fault {
        Some(Fault::FixedEps) => config.norm_eps = 1e-5,
        Some(Fault::FixedTheta) => config.rope_theta = 10_000.0,
        _ => {}
    }
    config
}

/// Weights as a wrong engine would read them.
#[derive(Debug)]
struct Rewired {
    inner: Arc<dyn WeightSource>,
    config: ModelConfig,
    fault: Option<Fault>,
}

impl Rewired {
    /// The row of the tensor that the engine takes for row `row`.
    fn row(&self, name: &str, row: usize) -> usize {
        let head_dim = self.config.head_dim;
        let (head, i) = (row / head_dim, row % head_dim);
        let (q, k, v) = (name.contains(".wq."), name.contains(".wk."), name.contains(".wv."));
        match self.fault {
            // Pair (i, i + head_dim / 2) instead of (2i, 2i + 1).
            Some(Fault::HalfSplitRope) if q || k => head * head_dim + i / 2 + i % 2 * (head_dim / 2),
            Some(Fault::OneKvHeadServesAll) if k || v => i,
            _ => row,
        }
    }
}

impl WeightSource for Rewired {
    fn config(&self) -> &ModelConfig {
        &self.config
    }

    fn info(&self, name: &str) -> Result<TensorInfo, WeightError> {
        let mut info = self.inner.info(name)?;
        if self.fault == Some(Fault::ReadsBf16AsF16) && info.dtype == DType::BF16 {
            info.dtype = DType::F16;
        }
        Ok(info)
    }

    fn bytes(&self, name: &str) -> Result<WeightBytes, WeightError> {
        let swapped = match self.fault {
            Some(Fault::SwapsGateAndUp) if name.contains(".w1.") => name.replace(".w1.", ".w3."),
            Some(Fault::SwapsGateAndUp) => name.replace(".w3.", ".w1."),
            _ => name.to_owned(),
        };
        let bytes = self.inner.bytes(&swapped)?;
        let n_rows = self.inner.info(name)?.shape[0];
        let width = bytes.len() / n_rows;
        let rows = (0..n_rows).flat_map(|row| &bytes[self.row(name, row) * width..][..width]);
        Ok(WeightBytes::from(rows.copied().collect::<Vec<u8>>()))
    }

    fn read_slice(
        &self,
        name: &str,
        dim: usize,
        range: Range<usize>,
        out: &mut [u8],
    ) -> Result<(), WeightError> {
        self.inner.read_slice(name, dim, range, out)
    }
}

struct FaultyModel {
    fault: Option<Fault>,
    oracle: Oracle,
    config: ModelConfig,
    params: LoadParams,
    slots: Slots,
    /// What the model believes that a place in its cache holds.
    held: Vec<Vec<TokenId>>,
    /// The place of each slot.
    place: Vec<usize>,
    n_calls: usize,
}

impl FaultyModel {
    fn has(&self, fault: Fault) -> bool {
        self.fault == Some(fault)
    }

    fn held(&mut self, slot: Slot) -> &mut Vec<TokenId> {
        &mut self.held[self.place[slot.0]]
    }

    fn check(&mut self, batch: &Batch<'_>) -> Result<(), BackendError> {
        let checked = self.slots.check(batch);
        if checked.is_err() && self.has(Fault::AppendsBeforeCheck) {
            let n_slots = self.place.len();
            for run in batch.runs.iter().filter(|run| run.slot.0 < n_slots) {
                self.held(run.slot).extend(run.tokens);
            }
        }
        let full = |run: &&Run<'_>| run.end_pos() == self.params.max_seq_len;
        match batch.runs.iter().find(full) {
            Some(run) if self.has(Fault::WastesLastPosition) => Err(BackendError::SlotFull {
                slot: run.slot,
                end_pos: run.end_pos(),
                max_seq_len: run.end_pos() - 1,
            }),
            _ => checked,
        }
    }

    /// Appends a run and gives its rows.
    fn take(&mut self, run: &Run<'_>, longest: usize) -> Vec<Vec<f32>> {
        let n = run.tokens.len();
        let decodes = run.start_pos > 0 && n == 1;
        if decodes && self.has(Fault::DecodesOnePositionLate) {
            let held = self.held(run.slot);
            held.extend(held.last().copied());
        }
        if run.want == Want::None && self.has(Fault::NoneIsNotComputed) {
            self.held(run.slot).extend(vec![TokenId(0); n]);
            return Vec::new();
        }
        self.held(run.slot).extend(run.tokens);

        let mut sequence = self.held(run.slot).clone();
        if self.has(Fault::ChunkIgnoresCache) && n > 1 {
            sequence.drain(..sequence.len() - n);
        }
        if self.has(Fault::Sees256Positions) {
            // The rows wanted go along, however many they are.
            sequence.drain(..sequence.len().saturating_sub(n.max(256)));
        }
        if self.has(Fault::PadsRaggedRuns) {
            sequence.splice(..0, vec![TokenId(0); longest - n]);
        }
        let all = self.oracle.logits(&sequence, sequence.len() - n); // [n, vocab_size]
        match run.want {
            Want::None => Vec::new(),
            Want::Last if self.has(Fault::LastIsFirst) => all[..1].to_vec(),
            Want::Last => all[n - 1..].to_vec(),
            Want::All => all,
        }
    }
}

impl Model for FaultyModel {
    fn config(&self) -> &ModelConfig {
        &self.config
    }

    fn params(&self) -> &LoadParams {
        &self.params
    }

    fn forward(&mut self, batch: &Batch<'_>, out: &mut Logits) -> Result<(), BackendError> {
        match self.check(batch) {
            Err(BackendError::TokenOutOfRange { .. }) if self.has(Fault::ClampsTokens) => return Ok(()),
            checked => checked?,
        }
        let longest = batch.runs.iter().map(|run| run.tokens.len()).max().unwrap_or(0);
        let mut rows: Vec<_> = batch.runs.iter().map(|run| (run, self.take(run, longest))).collect();
        self.slots.advance(batch);
        self.n_calls += 1;

        match self.fault {
            Some(Fault::RowsInSlotOrder) => rows.sort_by_key(|(run, _)| run.slot),
            Some(Fault::DecodesComeFirst) => rows.sort_by_key(|(run, _)| run.tokens.len() > 1),
            Some(Fault::NoneKeepsRows) if batch.n_rows() == 0 => return Ok(()),
            _ => {}
        }
        let error = match self.fault {
            Some(Fault::Noise) => 1e-5 * self.n_calls as f32,
            Some(Fault::SkipsWorkOnThreeThreads) if self.params.threads == Some(3) => 1.0,
            Some(Fault::SharesStateBetweenModels) if SHARED.load(Ordering::SeqCst) > 1 => 1.0,
            _ => 0.0,
        };
        let keeps = self.has(Fault::AddsToBuffer);
        let out = out.reset(batch.n_rows(), self.config.vocab_size).iter_mut();
        for (out, logit) in out.zip(rows.iter().flat_map(|(_, rows)| rows.iter().flatten())) {
            *out = logit + error + if keeps { *out } else { 0.0 };
        }
        Ok(())
    }

    fn truncate(&mut self, slot: Slot, len: usize) -> Result<(), BackendError> {
        self.slots.truncate(slot, len)?;
        let stale = match len {
            0 => self.has(Fault::StaleAfterFree),
            _ => self.has(Fault::StaleTail),
        };
        if !stale {
            self.held(slot).truncate(len);
        }
        if len == 0 && self.has(Fault::FreesNeighbour) {
            let neighbour = Slot((slot.0 + 1) % self.params.n_slots);
            self.held(neighbour).clear();
        }
        Ok(())
    }

    fn fork(&mut self, from: Slot, to: Slot, len: usize) -> Result<(), BackendError> {
        let forked = self.slots.fork(from, to, len);
        if forked.is_err() && self.has(Fault::FailedForkFrees) && to.0 < self.place.len() {
            self.held(to).clear();
        }
        forked?;
        match self.fault {
            Some(Fault::ForksShareState) => self.place[to.0] = self.place[from.0],
            Some(Fault::ForkTakesAll) => *self.held(to) = self.held(from).clone(),
            Some(Fault::SelfForkFrees) if from == to => self.held(to).clear(),
            _ => *self.held(to) = self.held(from)[..len].to_vec(),
        }
        Ok(())
    }
}

impl Drop for FaultyModel {
    fn drop(&mut self) {
        if self.has(Fault::SharesStateBetweenModels) {
            SHARED.fetch_sub(1, Ordering::SeqCst);
        }
    }
}
