//! [`Rig`]: a loaded model that knows how long its slots are, and the small shapes that the laws are checked on.

use std::sync::Arc;

use super::random::{RandomWeights, Rng};
use super::suite::{Broken, Checked, Suite};
use crate::{
    Batch, Computation, DType, LoadParams, Logits, Model, ModelConfig, ModelSource, Run, Slot, TokenId, Want,
    WeightSource,
};

/// Rows of logits: `[n_rows][vocab_size]`.
pub(super) type Rows = Vec<Vec<f32>>;

/// A run at the end of its slot.
pub(super) type Feed<'a> = (usize, &'a [TokenId], Want);

/// The shape that laws about slots and batches run on: small, with grouped heads and odd sizes.
pub(super) fn small() -> ModelConfig {
    ModelConfig {
        dim: 32,
        n_layers: 2,
        n_heads: 4,
        n_kv_heads: 2,
        head_dim: 8,
        ffn_dim: 43,
        vocab_size: 61,
        norm_eps: 1e-5,
        rope_theta: 10_000.0,
    }
}

/// Seeded tokens below `vocab_size`.
pub(super) fn tokens(seed: u64, n: usize, vocab_size: usize) -> Vec<TokenId> {
    let mut rng = Rng::new(seed);
    (0..n).map(|_| TokenId(rng.below(vocab_size) as u32)).collect()
}

/// One sequence after another.
pub(super) fn joined(parts: &[&[TokenId]]) -> Vec<TokenId> {
    parts.concat()
}

impl Suite<'_> {
    /// The shape that laws about slots and batches run on.
    pub(super) fn config(&self) -> ModelConfig {
        self.model.map_or_else(small, |model| model.weights.config().clone())
    }

    /// Whether there is one model only.
    pub(super) fn is_fixed(&self) -> bool {
        self.model.is_some()
    }

    /// Seeded f32 weights of that shape; the one model's, whatever the seed, where there is one only.
    pub(super) fn weights(&self, seed: u64) -> Arc<dyn WeightSource> {
        self.weights_of(self.config(), DType::F32, seed)
    }

    /// Seeded weights; the one model's, whatever the rest, where there is one only.
    pub(super) fn weights_of(&self, config: ModelConfig, dtype: DType, seed: u64) -> Arc<dyn WeightSource> {
        match self.model {
            Some(model) => Arc::clone(&model.weights),
            None => Arc::new(RandomWeights::new(config, dtype, seed)),
        }
    }

    /// Seeded tokens.
    pub(super) fn text(&self, seed: u64, n: usize) -> Vec<TokenId> {
        tokens(seed, n, self.config().vocab_size)
    }

    /// A model of these weights.
    pub(super) fn load(&self, weights: &Arc<dyn WeightSource>, params: &LoadParams) -> Checked<Rig> {
        let source = self.source(weights);
        let model = self.backend.load(source, &self.params(params))?;
        Ok(Rig {
            lens: vec![0; params.n_slots],
            vocab_size: weights.config().vocab_size,
            model,
            logits: Logits::new(),
        })
    }

    /// What a backend loads for these weights.
    pub(super) fn source(&self, weights: &Arc<dyn WeightSource>) -> ModelSource {
        match self.model {
            Some(model) => model.source.clone(),
            None => ModelSource::Weights(Arc::clone(weights)),
        }
    }

    /// The model with 4 slots of 32 positions.
    pub(super) fn small(&self) -> Checked<Rig> {
        self.load(&self.weights(1), &LoadParams::new(32, 4))
    }

    /// The rows of one sequence fed at once to a fresh [`small`](Self::small) model.
    pub(super) fn fresh(&self, sequence: &[TokenId]) -> Checked<Rows> {
        self.small()?.feed(0, sequence, Want::All)
    }

    /// That rows are the oracle's.
    pub(super) fn is_exact(&self, found: &[Vec<f32>], expected: &[Vec<f32>]) -> Checked {
        close(found, expected, self.tolerance.oracle)
    }

    /// That rows are the oracle's, for weights stored and computed so.
    pub(super) fn is_exact_as(
        &self,
        dtype: DType,
        computation: Computation,
        found: &[Vec<f32>],
        expected: &[Vec<f32>],
    ) -> Checked {
        let tolerance = match (dtype, computation) {
            (DType::F16, _) => self.tolerance.f16,
            (DType::BF16, _) => self.tolerance.bf16,
            (dtype, Computation::Fast) if dtype.is_quantized() => self.tolerance.fast,
            // Blocks are f32 once they are read.
            _ => self.tolerance.oracle,
        };
        close(found, expected, tolerance)
    }

    /// That rows are what the engine gave by another route.
    pub(super) fn is_same(&self, found: &[Vec<f32>], expected: &[Vec<f32>]) -> Checked {
        close(found, expected, self.tolerance.routes)
    }
}

/// A loaded model, the lengths of its slots, and a buffer.
pub(super) struct Rig {
    pub(super) model: Box<dyn Model>,
    pub(super) lens: Vec<usize>,
    vocab_size: usize,
    logits: Logits,
}

impl Rig {
    /// One run; its rows.
    pub(super) fn feed(&mut self, slot: usize, tokens: &[TokenId], want: Want) -> Checked<Rows> {
        Ok(self.step(&[(slot, tokens, want)])?.concat())
    }

    /// One forward pass; the rows of each run.
    pub(super) fn step(&mut self, feeds: &[Feed<'_>]) -> Checked<Vec<Rows>> {
        let runs: Vec<Run<'_>> = feeds
            .iter()
            .map(|&(slot, tokens, want)| Run { slot: Slot(slot), start_pos: self.lens[slot], tokens, want })
            .collect();
        self.model.forward(&Batch::new(&runs), &mut self.logits)?;
        for run in &runs {
            self.lens[run.slot.0] = run.end_pos();
        }
        let n_rows: usize = runs.iter().map(Run::n_rows).sum();
        let (found, expected) = (self.logits.as_slice().len(), n_rows * self.vocab_size);
        if found != expected {
            return Err(Broken(format!(
                "{found} logits for {feeds:?}, expected {n_rows} rows of {}",
                self.vocab_size
            )));
        }
        let mut rows = self.logits.rows();
        let take = |run: &Run<'_>| rows.by_ref().take(run.n_rows()).map(<[f32]>::to_vec).collect();
        Ok(runs.iter().map(take).collect())
    }

    /// Keeps the first `len` positions.
    pub(super) fn truncate(&mut self, slot: usize, len: usize) -> Checked {
        self.model.truncate(Slot(slot), len)?;
        self.lens[slot] = len;
        Ok(())
    }

    /// Makes `to` the first `len` positions of `from`.
    pub(super) fn fork(&mut self, from: usize, to: usize, len: usize) -> Checked {
        self.model.fork(Slot(from), Slot(to), len)?;
        self.lens[to] = len;
        Ok(())
    }
}

/// That rows are equal within a tolerance; NaN is equal to nothing.
pub(super) fn close(found: &[Vec<f32>], expected: &[Vec<f32>], tolerance: f32) -> Checked {
    if found.len() != expected.len() {
        let (found, expected) = (found.len(), expected.len());
        return Err(Broken(format!("{found} rows, expected {expected}")));
    }
    for (row, (found, expected)) in found.iter().zip(expected).enumerate() {
        if found.len() != expected.len() {
            let (found, expected) = (found.len(), expected.len());
            return Err(Broken(format!("row {row} has {found} logits, expected {expected}")));
        }
        for (token, (found, expected)) in found.iter().zip(expected).enumerate() {
            let within = (found - expected).abs() <= tolerance;
            if !within {
                return Err(Broken(format!(
                    "row {row}, token {token}: logit {found}, expected {expected} within {tolerance}"
                )));
            }
        }
    }
    Ok(())
}

/// That rows are equal bit for bit.
pub(super) fn same_bits(found: &[Vec<f32>], expected: &[Vec<f32>]) -> Checked {
    close(found, expected, 0.0)
}
