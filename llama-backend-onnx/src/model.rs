//! A loaded model: which runs of the engine a batch needs.
//!
//! All runs of one token go together, whatever their positions: one run of the engine. Of the others each is one of its own,
//! since the attention kernel takes several tokens behind a past for one sequence only.

use std::ffi::CString;
use std::ops::Range;

use llama_backend::{
    BackendError, Batch, LoadParams, Logits, Model, ModelConfig, Run, Slot, Slots, TokenId, Want, WeightBytes,
};

use crate::embedding::Embedding;
use crate::engine;
use crate::graph::{Interface, planes};
use crate::kv_cache::KvCache;
use crate::sys::Bound;

/// A loaded model.
#[derive(Debug)]
pub(crate) struct OnnxModel {
    // First, so that the session is gone before what it borrows.
    bound: Bound,
    #[allow(dead_code, reason = "kept alive for the session")]
    kept: Vec<WeightBytes>,
    embedding: Embedding,
    cache: KvCache,
    slots: Slots,
    config: ModelConfig,
    params: LoadParams,
    /// The cache's inputs and outputs: keys and values of each layer in turn, past and present.
    cache_names: Vec<[CString; 2]>,
    /// Logits of decodes, `[n, vocab_size]`, before they are put where they belong.
    decoded: Vec<f32>,
    /// The tokens of a run of the engine, `[B * S, dim]`.
    embedded: Vec<f32>,
}

/// One run of the engine: `n_sequences` rows of the cache from `rows.start` on, with as many tokens each.
struct Pass<'a> {
    rows: Range<usize>,
    /// `[B, S]`.
    tokens: Vec<TokenId>,
    /// The last position of each sequence.
    seqlens: Vec<i32>,
    /// Which of the `B * S` rows are wanted.
    wanted: Vec<i64>,
    /// `[wanted.len(), vocab_size]`.
    logits: &'a mut [f32],
}

impl OnnxModel {
    pub(crate) fn new(
        bound: Bound,
        kept: Vec<WeightBytes>,
        embedding: Embedding,
        cache: KvCache,
        config: ModelConfig,
        params: LoadParams,
    ) -> Result<Self, BackendError> {
        let names = |(layer, kind)| {
            let [past, present] = Interface::Ours.cache_names(layer, kind).map(CString::new);
            Ok([past.map_err(engine)?, present.map_err(engine)?])
        };
        let cache_names = planes(config.n_layers).map(names).collect::<Result<_, BackendError>>()?;
        let slots = Slots::new(&config, &params);
        let (decoded, embedded) = (Vec::new(), Vec::new());
        Ok(Self { bound, kept, embedding, cache, slots, config, params, cache_names, decoded, embedded })
    }

    /// Runs of one token, all together; `out` is where the logits of each belong.
    fn decode(&mut self, runs: Vec<(&Run<'_>, &mut [f32])>) -> Result<(), BackendError> {
        let slots: Vec<usize> = runs.iter().map(|(run, _)| run.slot.0).collect();
        let rows = self.cache.side_by_side(&slots, &self.lens()?);
        let (mut tokens, mut seqlens) = (vec![TokenId(0); runs.len()], vec![0; runs.len()]);
        let mut wanted = Vec::with_capacity(runs.len());
        for (run, _) in &runs {
            let row = self.cache.row_of(run.slot.0) - rows.start;
            tokens[row] = run.tokens[0]; // every run has one: `Slots::check`
            seqlens[row] = run.start_pos as i32; // below 2^24
            if run.want != Want::None {
                wanted.push(row as i64);
            }
        }
        let mut decoded = std::mem::take(&mut self.decoded);
        decoded.resize(wanted.len() * self.config.vocab_size, 0.0);
        let result = self.run(Pass { rows, tokens, seqlens, wanted, logits: &mut decoded });
        let mut rows = decoded.chunks_exact(self.config.vocab_size);
        for (_, out) in runs.into_iter().filter(|(run, _)| run.want != Want::None) {
            if let Some(row) = rows.next() {
                out.copy_from_slice(row);
            }
        }
        self.decoded = decoded;
        result
    }

    /// A run of several tokens.
    fn prefill(&mut self, run: &Run<'_>, logits: &mut [f32]) -> Result<(), BackendError> {
        let row = self.cache.row_of(run.slot.0);
        let n = run.tokens.len() as i64;
        let wanted = match run.want {
            Want::None => 0..0,
            Want::Last => n - 1..n,
            Want::All => 0..n,
        };
        self.run(Pass {
            rows: row..row + 1,
            tokens: run.tokens.to_vec(),
            seqlens: vec![run.end_pos() as i32 - 1], // below 2^24
            wanted: wanted.collect(),
            logits,
        })
    }

    fn run(&mut self, pass: Pass<'_>) -> Result<(), BackendError> {
        let Pass { rows, tokens, seqlens, wanted, logits } = pass;
        let int = |n: usize| n as i64; // sizes of memory
        let n = seqlens.len();
        let shape = self.cache.shape;
        // A wrong length would let the engine write beyond the row. `Slots::check` keeps them right; this is the last look.
        if !seqlens.iter().all(|&last| usize::try_from(last).is_ok_and(|last| last < shape.max_seq_len)) {
            return Err(engine(format!("positions {seqlens:?} in rows of {}", shape.max_seq_len)));
        }
        self.embedding.rows(tokens.iter().copied(), &mut self.embedded)?;
        let longest = [seqlens.iter().copied().max().unwrap_or(0) + 1];
        let past = [int(n), int(shape.n_kv_heads), int(shape.max_seq_len), int(shape.width)];
        let result = self.bound.run(|bind| {
            let embedded = [int(n), int(tokens.len() / n), int(self.config.dim)];
            bind.input(c"embedded", &embedded, &self.embedded)?;
            bind.input(c"seqlens", &[int(n)], &seqlens)?;
            bind.input(c"longest", &[], &longest)?;
            bind.input(c"rows", &[int(wanted.len())], &wanted)?;
            for ([input, output], rows) in self.cache_names.iter().zip(self.cache.rows(rows)) {
                bind.in_place([input, output], &past, rows)?;
            }
            bind.output(c"logits", &[int(wanted.len()), int(self.config.vocab_size)], logits)
        });
        result.map_err(engine)
    }

    /// The length of every slot.
    fn lens(&self) -> Result<Vec<usize>, BackendError> {
        (0..self.params.n_slots).map(|slot| self.slots.len(Slot(slot))).collect()
    }

    /// How many times the engine ran.
    #[cfg(test)]
    pub(crate) fn n_runs(&self) -> u64 {
        self.bound.n_runs
    }

    /// What a slot holds in the cache.
    #[cfg(test)]
    pub(crate) fn held(&self, slot: usize) -> Vec<f32> {
        self.cache.held(slot, self.slots.len(Slot(slot)).unwrap())
    }
}

impl Model for OnnxModel {
    fn config(&self) -> &ModelConfig {
        &self.config
    }

    fn params(&self) -> &LoadParams {
        &self.params
    }

    fn forward(&mut self, batch: &Batch<'_>, out: &mut Logits) -> Result<(), BackendError> {
        self.slots.check(batch)?;
        if self.slots.is_empty() {
            self.cache.reset();
        }
        let mut rest = out.reset(batch.n_rows(), self.config.vocab_size);
        let mut decodes = Vec::new();
        let mut prefills = Vec::new();
        for run in batch.runs {
            let (logits, after) = rest.split_at_mut(run.n_rows() * self.config.vocab_size);
            rest = after;
            if run.tokens.len() == 1 { &mut decodes } else { &mut prefills }.push((run, logits));
        }
        if !decodes.is_empty() {
            self.decode(decodes)?;
        }
        for (run, logits) in prefills {
            self.prefill(run, logits)?;
        }
        // Until here the new positions lie beyond every slot's length, where nobody reads.
        self.slots.advance(batch);
        Ok(())
    }

    fn truncate(&mut self, slot: Slot, len: usize) -> Result<(), BackendError> {
        self.slots.truncate(slot, len)
    }

    fn fork(&mut self, from: Slot, to: Slot, len: usize) -> Result<(), BackendError> {
        self.slots.fork(from, to, len)?;
        self.cache.copy(from.0, to.0, len);
        Ok(())
    }
}
